//! One file for each command.

pub(crate) mod adapt;
pub(crate) mod chat;
pub(crate) mod convert;
pub(crate) mod eval;
pub(crate) mod generate;
pub(crate) mod iarc;
pub(crate) mod info;
pub(crate) mod inspect;
pub(crate) mod manual;
pub(crate) mod perplexity;
pub(crate) mod picture;
pub(crate) mod predict;
pub(crate) mod published;
pub(crate) mod route;
mod route_analyze;
mod route_condition;
mod route_trace;
pub(crate) mod svf;
pub(crate) mod tokenize;
pub(crate) mod train;

pub(crate) use route_analyze::expert_names;
