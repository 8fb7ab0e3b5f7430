//! Which weights of a run are used, and checkpoints that cannot be read.

use std::fs;
use std::path::Path;

use crate::common::{Mlp, Sums};
use specialformer_train::{RunFolder, TrainConfig, TrainError, Trainer};

fn trainer(model: &Mlp<f32>) -> Trainer<'_, Mlp<f32>> {
    let config = TrainConfig { checkpoint_every: 5, ..TrainConfig::new(10, 8, 0.02) };
    Trainer::new(model, Sums::new(2), config).unwrap()
}

fn finished(path: &Path) {
    let model = Mlp::<f32>::new(16, 1);
    let folder = RunFolder::create(path).unwrap();
    trainer(&model).start_in(folder, &"toy").unwrap().run().unwrap();
}

#[test]
fn a_run_that_ended_has_its_final_weights() {
    let place = tempfile::tempdir().unwrap();
    let run = place.path().join("run");
    finished(&run);
    assert_eq!(RunFolder::weights(&run).unwrap(), run.join("model.safetensors"));
    assert_eq!(RunFolder::weights_step(&run).unwrap(), Some(10));
    // One that goes on has those of its checkpoint.
    fs::rename(run.join("model.safetensors"), run.join("away")).unwrap();
    let checkpoint = run.join("checkpoints/step-00000010");
    assert_eq!(RunFolder::weights(&run).unwrap(), checkpoint.join("model.safetensors"));
    // So does one that ended and was gone on with.
    fs::rename(&checkpoint, run.join("checkpoints/step-00000012")).unwrap();
    fs::rename(run.join("away"), run.join("model.safetensors")).unwrap();
    assert!(RunFolder::weights(&run).unwrap().starts_with(run.join("checkpoints")));
    for (path, what) in [(place.path(), "neither"), (&run.join("absent"), "no such folder")] {
        let error = RunFolder::weights(path).unwrap_err().to_string();
        assert!(
            error.contains("not the folder of a trained run") && error.contains(what),
            "{error}"
        );
    }
}

#[test]
fn a_damaged_checkpoint_says_what_to_do() {
    let place = tempfile::tempdir().unwrap();
    let run = place.path().join("run");
    finished(&run);
    let checkpoint = run.join("checkpoints/step-00000010");
    fs::write(checkpoint.join("optimizer.safetensors"), "x").unwrap();
    let resume = || {
        let model = Mlp::<f32>::new(16, 1);
        let resumed = trainer(&model).resume_in(RunFolder::open(&run).unwrap(), &"toy");
        let Err(error) = resumed else { panic!("the checkpoint is damaged") };
        error.to_string()
    };
    let error = resume();
    assert!(error.contains("optimizer.safetensors: not a valid"), "{error}");
    assert!(error.ends_with("no older checkpoint to go on from: train anew in another folder"));
    let older = run.join("checkpoints/step-00000005");
    fs::create_dir(&older).unwrap();
    let error = resume();
    let remedy = format!("remove {} to go on from {}", checkpoint.display(), older.display());
    assert!(error.ends_with(&remedy), "{error}");
    // A model that grows reads the same files.
    let model = Mlp::<f32>::new(16, 1);
    let grown = trainer(&model).resume_grown_in(RunFolder::open(&run).unwrap(), &"toy");
    let error = grown.err().unwrap().to_string();
    assert!(error.ends_with(&remedy), "{error}");
    // So is one of which a file is not there.
    fs::remove_file(checkpoint.join("state.json")).unwrap();
    let error = resume();
    assert!(error.contains("state.json: cannot read: ") && error.ends_with(&remedy), "{error}");
}

#[test]
fn a_checkpoint_that_the_system_does_not_give_is_not_called_damaged() {
    let place = tempfile::tempdir().unwrap();
    let run = place.path().join("run");
    finished(&run);
    for name in ["state.json", "model.safetensors"] {
        let file = run.join("checkpoints/step-00000010").join(name);
        let away = place.path().join("away");
        fs::rename(&file, &away).unwrap();
        fs::create_dir(&file).unwrap();
        let model = Mlp::<f32>::new(16, 1);
        let resumed = trainer(&model).resume_in(RunFolder::open(&run).unwrap(), &"toy");
        let Err(error) = resumed else { panic!("a folder was read") };
        assert!(!matches!(error, TrainError::Damaged { .. }), "{error}");
        let error = error.to_string();
        assert!(error.contains(&format!("{name}: cannot ")), "{error}");
        assert!(!error.contains("remove") && !error.contains("anew"), "{error}");
        fs::remove_dir(&file).unwrap();
        fs::rename(&away, &file).unwrap();
    }
}
