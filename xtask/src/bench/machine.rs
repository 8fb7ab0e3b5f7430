//! What the machine is, for the reader of a table.

use std::thread::available_parallelism;

/// Processor, cores that may be used, operating system.
pub(crate) fn description() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cores = available_parallelism().map_or(1, usize::from);
    format!("{}, {cores} cores, {}", processor_in(&text), std::env::consts::OS)
}

/// The processor's name and, as a virtual machine's name may hide it, its
/// generation.
fn processor_in(cpuinfo: &str) -> String {
    let field = |name: &str| {
        let mut fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        let (_, value) = fields.find(|(field, _)| field.trim() == name)?;
        Some(value.trim()).filter(|value| !value.is_empty())
    };
    let name = field("model name").unwrap_or(std::env::consts::ARCH);
    match (field("cpu family"), field("model")) {
        (Some(family), Some(model)) => format!("{name} (family {family}, model {model})"),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_named() {
        let text = "processor\t: 0\nmodel name\t: A CPU @ 2.0GHz\nmodel name\t: B\n";
        assert_eq!(processor_in(text), "A CPU @ 2.0GHz");
        let text = format!("{text}cpu family\t: 25\nmodel\t\t: 17\n");
        assert_eq!(processor_in(&text), "A CPU @ 2.0GHz (family 25, model 17)");
        assert_eq!(processor_in("processor: 0"), std::env::consts::ARCH);
        assert!(description().contains(" cores, "));
    }
}
