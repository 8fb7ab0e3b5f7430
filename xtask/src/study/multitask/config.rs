//! The models of the multi-task study, as configuration files.
//!
//! All act on a token with about the same number of parameters: what adapters
//! and experts take is taken from the dense feed-forward layer.

use std::fmt::Write as _;
use std::path::Path;

/// A task of the data: its name, what the model's head is, and its symbols.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) name: &'static str,
    /// Head and outputs as they stand in the model's section.
    head: &'static str,
    symbols: usize,
}

const fn task(name: &'static str, head: &'static str, symbols: usize) -> Task {
    Task { name, head, symbols }
}

/// The task that is answered with a number.
pub(super) const REGRESSION: &str = "mean";

pub(super) const TASKS: [Task; 13] = [
    task("iarc-increment", "", 10),
    task("iarc-addition", "", 10),
    task("iarc-reverse", "", 10),
    task("iarc-context", "", 10),
    task("iarc-rule", ", head = \"classification\", outputs = 4", 11),
    task("iarc-pointer", ", head = \"labelling\", outputs = 11", 10),
    task("sort", "", 10),
    task("sort-descending", "", 10),
    task("running-sum-7", "", 10),
    task("running-sum-10", "", 10),
    task("bracket-depth", ", head = \"labelling\", outputs = 7", 4),
    task("keyword", ", head = \"classification\", outputs = 4", 12),
    task(REGRESSION, ", head = \"regression\"", 10),
];

/// PAD, BOS, SEP and EOS.
const SPECIAL: usize = 4;
/// Symbols of all tasks together: digits, a rule's letter, brackets, letters.
const ALL_SYMBOLS: usize = 27;
/// Training examples of each task at 100 %.
const EXAMPLES: usize = 20_000;
/// Examples of each task in the shifted domain that a model adapts to.
pub(super) const SHIFTED_EXAMPLES: usize = 64;

/// A model of the study.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Variant {
    Dense,
    Moe,
    Adapter,
    Hybrid,
    MoeUnbalanced,
    MoeTaught,
}

impl Variant {
    pub(super) const ALL: [Self; 6] =
        [Self::Dense, Self::Moe, Self::Adapter, Self::Hybrid, Self::MoeUnbalanced, Self::MoeTaught];

    /// The name in results.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Moe => "moe",
            Self::Adapter => "adapter",
            Self::Hybrid => "hybrid",
            Self::MoeUnbalanced => "moe-unbalanced",
            Self::MoeTaught => "moe-contrastive-distilled",
        }
    }

    pub(super) fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|variant| variant.name() == name)
    }

    pub(super) fn has_experts(self) -> bool {
        !matches!(self, Self::Dense | Self::Adapter)
    }

    /// The variant whose run is the teacher.
    pub(super) fn teacher(self) -> Option<Self> {
        (self == Self::MoeTaught).then_some(Self::Moe)
    }

    /// The fields of the model's section that differ, and its parts.
    fn specialisation(self) -> String {
        let adapter = |width: usize| {
            format!(
                "[model.adapter]\nkind = \"bottleneck\"\nwidth = {width}\nplacement = \"parallel\"\n"
            )
        };
        let moe = |hidden: usize, experts: usize, top_k: usize, balance: &str| {
            format!(
                "[model.moe]\nhidden = {hidden}\nkind = {{ plain = \"gelu\" }}\n\
                 router = {{ experts = {experts}, top_k = {top_k}, \
                 gate = {{ kind = \"softmax-top-k\", normalize = true }}, \
                 balance = {{ {balance} }} }}\n"
            )
        };
        const BALANCE: &str = "load_balance = 0.01, z = 0.001";
        let (kind, feed_forward, parts) = match self {
            Self::Dense => ("none", 64, String::new()),
            Self::Adapter => ("adapter", 48, adapter(8)),
            Self::Hybrid => ("hybrid", 12, moe(16, 8, 2, BALANCE) + &adapter(8)),
            Self::MoeUnbalanced => ("moe", 64, moe(16, 16, 4, "")),
            Self::Moe | Self::MoeTaught => ("moe", 64, moe(16, 16, 4, BALANCE)),
        };
        format!("feed_forward = {feed_forward}\nspecialisation = \"{kind}\"\n{{tasks}}\n{parts}")
    }
}

/// What a run trains on and for how long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Training<'a> {
    /// One task alone; all of them if absent.
    pub(super) only: Option<&'a Task>,
    /// The share of the training examples.
    pub(super) share: f64,
    pub(super) steps: u64,
    pub(super) seed: u64,
    /// The run folder of the teacher.
    pub(super) teacher: Option<&'a Path>,
    /// Adapt to the shifted domain.
    pub(super) shifted: bool,
    /// Rows of the test set.
    pub(super) test_size: usize,
}

/// The configuration file of a run.
pub(super) fn toml(name: &str, variant: Variant, training: &Training<'_>) -> String {
    let Training { only, share, steps, seed, teacher, shifted, test_size } = *training;
    let tasks: Vec<&Task> =
        TASKS.iter().filter(|t| only.is_none_or(|o| o.name == t.name)).collect();
    let symbols = only.map_or(ALL_SYMBOLS, |task| task.symbols);
    let vocabulary = SPECIAL + tasks.len() + symbols;
    let list = |of: &dyn Fn(&Task) -> String| {
        let items: Vec<_> = tasks.iter().map(|task| of(task)).collect();
        format!("[{}]", items.join(", "))
    };
    let heads = list(&|task| format!("{{ name = \"{}\"{} }}", task.name, task.head));
    let names = list(&|task| format!("\"{}\"", task.name));
    let mut text = format!("name = \"{name}\"\n");
    if let Some(teacher) = teacher {
        let _ = writeln!(text, "teacher = {:?}", teacher.display().to_string());
    }
    let _ = write!(
        text,
        "\n[model]\nkind = \"specialformer\"\ntopology = \"decoder\"\nvocabulary = {vocabulary}\n\
         width = 32\nlayers = 2\nheads = 4\nwindow = 72\npositions = \"rope\"\n{}\n\
         [data]\nkind = \"multitask\"\nlayout = \"decoder\"\ntasks = {names}\n",
        variant.specialisation().replace("{tasks}", &format!("tasks = {heads}"))
    );
    let (examples, rate, batch, warmup) = match shifted {
        true => (SHIFTED_EXAMPLES, ADAPTING_RATE, 64, 0),
        false => (EXAMPLES, RATE, BATCH, 200.min(steps / 5)),
    };
    let _ = writeln!(text, "examples = {examples}");
    match shifted {
        true => text.push_str("domain = \"shifted\"\n"),
        false => {
            let _ = writeln!(text, "share = {share:?}");
        }
    }
    let _ = write!(
        text,
        "\n[train]\nsteps = {steps}\nbatch_size = {batch}\nlearning_rate = {rate}\n\
         schedule = {{ kind = \"cosine\", warmup = {warmup}, floor = 0.05 }}\n\
         optimizer = {{ kind = \"adam-w\", weight_decay = 0.01 }}\nclip_norm = 1.0\n\
         seed = {seed}\neval_every = {}\neval_size = 2048\ntest_size = {test_size}\n\
         checkpoint_every = {}\n\n[train.multi_task]\naverage = \"task\"\n",
        (steps / 5).max(1),
        (steps / 2).max(1),
    );
    if variant == Variant::MoeTaught && !shifted {
        text.push_str(
            "\n[train.multi_task.contrastive]\nweight = 0.02\n\
             \n[train.multi_task.distillation]\nweight = 0.5\ntemperature = 2.0\n",
        );
    }
    text
}

/// Rows of a step.
pub(super) const BATCH: usize = 128;
/// Peak learning rate of training.
const RATE: f64 = 4e-3;
/// Learning rate of adapting to the shifted domain.
const ADAPTING_RATE: f64 = 5e-4;

#[cfg(test)]
mod tests {
    use super::*;

    fn training<'a>() -> Training<'a> {
        Training {
            only: None,
            share: 0.3,
            steps: 1000,
            seed: 2,
            teacher: None,
            shifted: false,
            test_size: 64,
        }
    }

    #[test]
    fn files_say_what_differs() {
        for variant in Variant::ALL {
            let text = toml("x", variant, &training());
            assert_eq!(Variant::of(variant.name()), Some(variant));
            assert_eq!(text.contains("[model.moe]"), variant.has_experts(), "{text}");
            assert!(text.contains("vocabulary = 44\n") && text.contains("share = 0.3\n"), "{text}");
        }
        let text = toml("x", Variant::MoeUnbalanced, &training());
        assert!(text.contains("balance = {  }"), "{text}");
        let teacher = Path::new("runs/t");
        let taught = Training { teacher: Some(teacher), ..training() };
        let text = toml("x", Variant::MoeTaught, &taught);
        assert!(text.starts_with("name = \"x\"\nteacher = \"runs/t\"\n"), "{text}");
        assert!(text.contains("[train.multi_task.distillation]"), "{text}");
    }

    #[test]
    fn one_task_has_its_own_vocabulary() {
        let one = Training { only: Some(&TASKS[11]), ..training() };
        let text = toml("x", Variant::Dense, &one);
        assert!(text.contains("vocabulary = 17\n"), "{text}");
        assert!(text.contains("tasks = [\"keyword\"]"), "{text}");
        let shifted = Training { shifted: true, ..training() };
        let text = toml("x", Variant::Moe, &shifted);
        assert!(text.contains("domain = \"shifted\"") && !text.contains("share"), "{text}");
    }
}
