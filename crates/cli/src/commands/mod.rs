//! One file for each command.

pub(crate) mod ask;
pub(crate) mod eval;
pub(crate) mod iarc;
pub(crate) mod info;
pub(crate) mod predict;
pub(crate) mod route;
pub(crate) mod train;
