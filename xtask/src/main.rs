//! Development tasks: validate, bench, parity, study.
fn main() {}
