//! Texts of a task are continued with the task's own parts.

use specialformer::generate::{Flow, GenerateConfig, generate};
use specialformer::nn::TaskRows;
use specialformer::prelude::*;
use specialformer::training::{Batch, IGNORE};

use super::common::{build, of};

/// A decoder of two tasks with parts of their own, which are not at their start.
fn model(adapter: &str, own_heads: bool) -> Model<f64> {
    let text = format!(
        "kind = 'specialformer'\ntopology = 'decoder'\nvocabulary = 12\nwidth = 16\nlayers = 2\n\
         heads = 2\nfeed_forward = 24\nwindow = 16\nown_heads = {own_heads}\n\
         tasks = [{{ name = 'verse' }}, {{ name = 'prose' }}]\n\
         task_input = {{ embedding = true }}\nspecialisation = 'adapter'\nadapter = {adapter}"
    );
    let model = build::<f64>(&toml::from_str(&text).unwrap(), 3);
    let rng = &mut Seed::new(8).stream("move");
    for (_, parameter) in NamedParameters::of(&model).iter() {
        parameter.update(|all| all.iter_mut().for_each(|v| *v += 0.3 * rng.normal()));
    }
    model
}

/// The most probable tokens after a text, each from a pass over all before it.
fn continued(model: &Model<f64>, prompt: &[u32], task: u32, count: usize) -> Vec<u32> {
    let mut text = prompt.to_vec();
    for _ in 0..count {
        let mut batch = Batch::from_vecs(1, text.clone(), vec![IGNORE; text.len()]).unwrap();
        batch.task_ids_mut().fill(task);
        let answers = of(model).forward(&Ctx::eval(), &batch.all()).unwrap().answers;
        let logits = answers[0].output.value().as_slice();
        let last = &logits[logits.len() - 12..];
        let best = (1..12).fold(0, |best, i| if last[i] > last[best] { i } else { best });
        text.push(best as u32);
    }
    text.split_off(prompt.len())
}

#[test]
fn texts_are_continued_as_of_their_task() {
    let prompts = [vec![1, 2, 3], vec![1, 2, 3], vec![4, 5], vec![1, 2, 3]];
    for adapter in ["{ kind = 'bottleneck', width = 4 }", "{ kind = 'lora', rank = 2 }"] {
        for own_heads in [false, true] {
            let model = model(adapter, own_heads);
            // Without a head that tasks share, there are no texts of no task.
            let last = if own_heads { 1 } else { TaskRows::NONE };
            let tasks = vec![0, 1, 1, last];
            let config = GenerateConfig { tasks: tasks.clone(), ..GenerateConfig::new(8) };
            let go_on = |_, _| Flow::Continue;
            let texts = generate::<f64, f64>(&model, &prompts, &config, go_on).unwrap();
            for ((prompt, &task), text) in prompts.iter().zip(&tasks).zip(&texts) {
                assert_eq!(text.tokens, continued(&model, prompt, task, 8), "{adapter} {task}");
            }
            assert_ne!(texts[0].tokens, texts[1].tokens);
            let of_none = generate::<f64, f64>(&model, &prompts, &GenerateConfig::new(8), go_on);
            match own_heads {
                false => assert_eq!(of_none.unwrap()[0].tokens, texts[3].tokens),
                true => {
                    let error = of_none.unwrap_err().to_string();
                    assert!(error.ends_with("say of which task they are"), "{error}");
                }
            }
            let config = GenerateConfig { tasks: vec![2; 4], ..GenerateConfig::new(8) };
            let error = generate::<f64, f64>(&model, &prompts, &config, go_on).unwrap_err();
            assert!(error.to_string().ends_with("task 2 of 2 tasks"), "{error}");
        }
    }
}
