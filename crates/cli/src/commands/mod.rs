//! One file for each command.

pub(crate) mod eval;
pub(crate) mod iarc;
pub(crate) mod info;
pub(crate) mod predict;
pub(crate) mod route;
mod route_analyze;
mod route_condition;
mod route_trace;
pub(crate) mod train;

pub(crate) use route_analyze::expert_names;
