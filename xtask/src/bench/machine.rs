//! What the machine is, for the reader of a table.

use std::thread::available_parallelism;

/// Processor, cores that may be used, operating system.
pub(crate) fn description() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cores = available_parallelism().map_or(1, usize::from);
    let model = model_in(&text).unwrap_or(std::env::consts::ARCH);
    format!("{model}, {cores} cores, {}", std::env::consts::OS)
}

fn model_in(cpuinfo: &str) -> Option<&str> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim()).filter(|model| !model.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_named() {
        let text = "processor\t: 0\nmodel name\t: A CPU @ 2.0GHz\nmodel name\t: B\n";
        assert_eq!(model_in(text), Some("A CPU @ 2.0GHz"));
        assert_eq!(model_in("processor: 0"), None);
        assert!(description().contains(" cores, "));
    }
}
