//! Every answer of every task, computed again from the task's definition.

use proptest::prelude::*;
use specialformer::data::{
    Domain, Example, ExampleTarget, TASK_NAMES, Task, TaskKind, TaskSpec, Words, task,
};
use specialformer::iarc_data::{Iarc, Settings, Subtask};

const DOMAINS: [Domain; 2] = [Domain::Base, Domain::Shifted];

fn generate(task: &dyn Task, seed: u64) -> Example {
    let mut example = Example::default();
    task.generate(&mut Words::seeded(seed), &mut example);
    example
}

/// The digits that a rule appends, straight from its formula with d[1..=n].
fn continued(rule: Subtask, input: &[u32], steps: usize, pointer_range: i64) -> Vec<u32> {
    let mut d: Vec<i64> = std::iter::once(-1).chain(input.iter().map(|&x| i64::from(x))).collect();
    for k in 0..steps as i64 {
        let n = d.len() as i64 - 1;
        let at = |i: i64| d[i as usize];
        let next = match rule {
            Subtask::Increment => (at(n) + 1) % 10,
            Subtask::Add => (at(n) + at(n - 1)) % 10,
            Subtask::Reverse => at(n - 2 * k),
            Subtask::Context => (at(n - 1 - (at(n) % pointer_range)) + 1) % 10,
        };
        d.push(next);
    }
    d[input.len() + 1..].iter().map(|&x| x as u32).collect()
}

fn number(symbol: u32, spec: &TaskSpec) -> u32 {
    spec.symbols[symbol as usize].parse().unwrap()
}

/// The answer that the task's definition gives.
fn oracle(spec: &TaskSpec, domain: Domain, input: &[u32]) -> ExampleTarget {
    use ExampleTarget::{Class, Labels, Sequence, Value};
    let shifted = domain == Domain::Shifted;
    let n = input.len();
    let steps = if shifted { 9 } else { 6 };
    match spec.name.as_str() {
        "iarc-increment" => Sequence((1..=steps).map(|i| (input[n - 1] + i) % 10).collect()),
        "iarc-addition" => Sequence(continued(Subtask::Add, input, steps as usize, 8)),
        "iarc-reverse" => Sequence((0..n).map(|i| input[n - 1 - i]).collect()),
        "iarc-context" => {
            let range = if shifted { 5 } else { 8 };
            Sequence(continued(Subtask::Context, input, 4, range))
        }
        "iarc-rule" => {
            let mark = input.iter().position(|&s| spec.symbols[s as usize] == "|").unwrap();
            let (before, after) = (&input[..mark], &input[mark + 1..]);
            let explain: Vec<_> = Subtask::ALL
                .iter()
                .filter(|&&rule| continued(rule, before, after.len(), 8) == after)
                .collect();
            assert_eq!(explain.len(), 1, "{input:?} has one explanation");
            let class = spec.labels.iter().position(|l| l == explain[0].name()).unwrap();
            Class(class as u32)
        }
        "iarc-pointer" => {
            let label = |t: usize| {
                let back = 1 + input[t] as usize % 8;
                let name = match t.checked_sub(back) {
                    Some(at) => input[at].to_string(),
                    None => "outside".into(),
                };
                spec.labels.iter().position(|l| *l == name).unwrap() as u32
            };
            Labels((0..n).map(label).collect())
        }
        // Counting in place of sorting.
        "sort" | "sort-descending" => {
            let all = |digit| input.iter().filter(move |&&d| d == digit).copied();
            let mut sorted: Vec<u32> = (0..10).flat_map(all).collect();
            if spec.name == "sort-descending" {
                sorted = (0..10).rev().flat_map(all).collect();
            }
            Sequence(sorted)
        }
        "running-sum-7" | "running-sum-10" => {
            let modulus = match (spec.name.as_str(), shifted) {
                ("running-sum-7", _) => 7,
                (_, false) => 10,
                (_, true) => 9,
            };
            let sum =
                |t: usize| input[..=t].iter().map(|&s| number(s, spec)).sum::<u32>() % modulus;
            Sequence((0..n).map(sum).collect())
        }
        "bracket-depth" => {
            let text: Vec<_> = input.iter().map(|&s| spec.symbols[s as usize].as_str()).collect();
            let (mut open, mut labels) = (Vec::new(), Vec::new());
            for bracket in text {
                match bracket {
                    "(" | "[" => open.push(bracket),
                    close => {
                        let opened = open.pop().expect("nothing is closed that is not open");
                        assert_eq!(close, if opened == "(" { ")" } else { "]" });
                    }
                }
                let label = open.len().to_string();
                labels.push(spec.labels.iter().position(|l| *l == label).unwrap() as u32);
            }
            Labels(labels)
        }
        "keyword" => {
            let text: String = input.iter().map(|&s| spec.symbols[s as usize].as_str()).collect();
            let kinds = [
                ("bad", "north"),
                ("cab", "east"),
                ("egg", "south"),
                ("ice", "west"),
                ("jab", "north"),
                ("keg", "east"),
                ("lid", "south"),
                ("age", "west"),
            ];
            let hidden: Vec<_> = kinds
                .iter()
                .flat_map(|(word, kind)| {
                    (0..n - 2).filter(|&i| &text[i..i + 3] == *word).map(|_| *kind)
                })
                .collect();
            assert_eq!(hidden.len(), 1, "{text} hides one word");
            Class(spec.labels.iter().position(|l| l == hidden[0]).unwrap() as u32)
        }
        "mean" => {
            let mean = input.iter().map(|&s| f64::from(number(s, spec))).sum::<f64>() / n as f64;
            Value((mean / 9.0) as f32)
        }
        other => panic!("no oracle for {other}"),
    }
}

proptest! {
    #[test]
    fn answers_are_as_defined(seed: u64) {
        for name in TASK_NAMES {
            for domain in DOMAINS {
                let task = task(name, domain).unwrap();
                let (spec, example) = (task.spec(), generate(task.as_ref(), seed));
                let expected = oracle(spec, domain, &example.input);
                match (&example.target, &expected) {
                    (ExampleTarget::Value(a), ExampleTarget::Value(b)) => {
                        prop_assert!((a - b).abs() <= 1e-6 && (0.0..=1.0).contains(a));
                    }
                    (target, expected) => prop_assert_eq!(target, expected, "{}", name),
                }

                let input = example.input.len();
                prop_assert!((spec.min_input..=spec.max_input).contains(&input));
                prop_assert!(example.input.iter().all(|&s| (s as usize) < spec.symbols.len()));
                let (kind, tokens, bound) = match &example.target {
                    ExampleTarget::Sequence(t) => (TaskKind::Sequence, t.as_slice(), spec.symbols.len()),
                    ExampleTarget::Labels(l) => (TaskKind::Labelling, l.as_slice(), spec.labels.len()),
                    ExampleTarget::Class(c) => {
                        (TaskKind::Classification, std::slice::from_ref(c), spec.labels.len())
                    }
                    ExampleTarget::Value(_) => (TaskKind::Regression, &[][..], 0),
                };
                prop_assert_eq!(kind, spec.kind);
                prop_assert!(tokens.iter().all(|&t| (t as usize) < bound));
                if kind == TaskKind::Sequence {
                    prop_assert!(tokens.len() <= spec.max_output);
                    prop_assert!(!spec.within_input || tokens.len() <= input);
                }
            }
        }
    }
}

#[test]
fn continuations_are_what_the_benchmark_has_after_a_control() {
    let iarc = Iarc::new(Settings::default()).unwrap();
    let tokens: Vec<_> = iarc.stream(3).take(20_000).collect();
    let mut checked = [0; Subtask::COUNT];
    for (at, control) in tokens.iter().enumerate().filter(|(at, t)| t.reach == 0 && *at > 40) {
        let before: Vec<u32> =
            tokens[..at].iter().filter(|t| t.token < 10).map(|t| t.token).collect();
        let run: Vec<u32> =
            tokens[at + 1..].iter().take_while(|t| t.token < 10).map(|t| t.token).collect();
        let history = &before[before.len().saturating_sub(20)..];
        assert_eq!(continued(control.subtask, history, run.len(), 8), run);
        checked[control.subtask.index()] += 1;
    }
    assert!(checked.iter().all(|&count| count > 100), "{checked:?}");
}

#[test]
fn both_domains_have_the_same_symbols_and_labels() {
    for name in TASK_NAMES {
        let [base, shifted] = DOMAINS.map(|domain| task(name, domain).unwrap().spec().clone());
        assert_eq!(
            (base.symbols, base.labels, base.kind),
            (shifted.symbols, shifted.labels, shifted.kind)
        );
    }
}

#[test]
fn shifted_examples_differ_in_length_rule_or_frequency() {
    for name in TASK_NAMES {
        let [base, shifted] = DOMAINS.map(|domain| task(name, domain).unwrap());
        let lengths = |t: &dyn Task| (t.spec().min_input, t.spec().max_input, t.spec().max_output);
        if lengths(base.as_ref()) != lengths(shifted.as_ref()) {
            continue;
        }
        // The same lengths: either some input has another answer, or small
        // symbols are drawn more often.
        let mean = |task: &dyn Task| {
            let inputs = (0..500).flat_map(|seed| generate(task, seed).input);
            let (sum, count) = inputs.fold((0.0, 0.0), |(s, c), x| (s + f64::from(x), c + 1.0));
            sum / count
        };
        let other_answer = (0..500).any(|seed| {
            let (a, b) = (generate(base.as_ref(), seed), generate(shifted.as_ref(), seed));
            a.input == b.input && a.target != b.target
        });
        assert!(other_answer || mean(shifted.as_ref()) < mean(base.as_ref()) - 0.5, "{name}");
    }
}

#[test]
fn classes_are_about_as_frequent_as_each_other() {
    for name in ["iarc-rule", "keyword"] {
        let task = task(name, Domain::Base).unwrap();
        let mut counts = vec![0; task.spec().labels.len()];
        for seed in 0..2000 {
            let ExampleTarget::Class(class) = generate(task.as_ref(), seed).target else {
                panic!()
            };
            counts[class as usize] += 1;
        }
        let fair = 2000 / counts.len();
        assert!(
            counts.iter().all(|c| (fair * 3 / 4..fair * 5 / 4).contains(c)),
            "{name}: {counts:?}"
        );
    }
}

/// A change here changes results that were published: raise the format of
/// the words then.
#[test]
fn examples_are_pinned() {
    let mut hash = 0_u64;
    let mut absorb = |value: u64| {
        hash = (hash ^ value).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    };
    for name in TASK_NAMES {
        for domain in DOMAINS {
            let task = task(name, domain).unwrap();
            for seed in 0..20 {
                let example = generate(task.as_ref(), seed);
                example.input.iter().for_each(|&t| absorb(t.into()));
                match example.target {
                    ExampleTarget::Sequence(t) | ExampleTarget::Labels(t) => {
                        t.iter().for_each(|&t| absorb(t.into()));
                    }
                    ExampleTarget::Class(c) => absorb(c.into()),
                    ExampleTarget::Value(v) => absorb(v.to_bits().into()),
                }
            }
        }
    }
    assert_eq!(hash, 0x5604_de35_7390_8a8a, "{hash:#018x}");
}
