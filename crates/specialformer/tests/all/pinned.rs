//! The bits of small training runs, for each instruction set: a change of any
//! of them is a change of what runs compute, and has to be meant.
//!
//! `SPECIALFORMER_PIN=1 cargo test -p specialformer --test all pinned -- --nocapture`
//! prints them anew.

use std::collections::BTreeMap;
use std::process::Command;

use specialformer::prelude::NamedParameters;
use specialformer::tensor::simd::LevelId;
use specialformer::{RunConfig, Start};

const CHILD: &str = "SPECIALFORMER_PINNED_RUN";

/// Model sections by name, each with its data.
const RUNS: [(&str, &str); 5] = [
    (
        "cisformer, expressive",
        "[model]\nkind = \"cisformer\"\nvocabulary = 14\noutputs = 10\nwidth = 16\nlayers = 2\n\
         heads = 2\nfeed_forward = 32\nwindow = 16\nattention = { kind = \"expressive\" }\n\
         [data]\nkind = \"iarc\"",
    ),
    (
        "transformer, softmax, rope",
        "[model]\nkind = \"transformer\"\nvocabulary = 14\noutputs = 10\nwidth = 16\nlayers = 2\n\
         heads = 2\nfeed_forward = 32\nwindow = 16\npositions = \"rope\"\n\
         attention = { kind = \"softmax\" }\n[data]\nkind = \"iarc\"",
    ),
    (
        "lstm",
        "[model]\nkind = \"lstm\"\nvocabulary = 14\noutputs = 10\nembedding = 8\nhidden = 16\n\
         layers = 1\n[data]\nkind = \"iarc\"",
    ),
    (
        "mlp",
        "[model]\nkind = \"mlp\"\nvocabulary = 14\noutputs = 10\nwindow = 16\nhidden = [24]\n\
         [data]\nkind = \"iarc\"",
    ),
    (
        "specialformer, experts and adapters",
        "[model]\nkind = \"specialformer\"\ntopology = \"decoder\"\nvocabulary = 21\nwidth = 16\n\
         layers = 2\nheads = 2\nfeed_forward = 16\nwindow = 40\npositions = \"rope\"\n\
         specialisation = \"hybrid\"\ntasks = [{ name = \"sort\" }, { name = \"bracket-depth\", \
         head = \"labelling\", outputs = 7 }, { name = \"mean\", head = \"regression\" }]\n\
         [model.moe]\nhidden = 8\nrouter = { experts = 4, top_k = 2, \
         balance = { load_balance = 0.01 } }\n\
         [model.adapter]\nkind = \"bottleneck\"\nwidth = 4\n\
         [data]\nkind = \"multitask\"\ntasks = [\"sort\", \"bracket-depth\", \"mean\"]\n\
         examples = 200",
    ),
];

/// What the weights hash to after 20 steps, in the order of [`RUNS`].
const PINNED: [(&str, [u64; 5]); 3] = [
    (
        "baseline",
        [
            0xc542_e9cd_ae11_ccd3,
            0x5014_062c_a57a_6af3,
            0x98f0_1bb9_c07d_42af,
            0x1269_4d94_94fa_289d,
            0x6f62_f064_9b46_a64a,
        ],
    ),
    (
        "avx2",
        [
            0x5556_bb14_d584_c2a1,
            0xb586_18f4_a175_3aa7,
            0xe5af_b25e_33f9_bb38,
            0x9f27_1296_1168_cb1d,
            0x2a2d_cf9d_fb8c_11db,
        ],
    ),
    (
        "avx512",
        [
            0x5556_bb14_d584_c2a1,
            0xb586_18f4_a175_3aa7,
            0xe5af_b25e_33f9_bb38,
            0x9f27_1296_1168_cb1d,
            0x2c81_945c_e610_2920,
        ],
    ),
];

fn trained(run: &str) -> u64 {
    let text = format!(
        "name = \"pinned\"\n{run}\n[train]\nsteps = 20\nbatch_size = 24\nlearning_rate = 5e-3\n\
         eval_size = 16\nclip_norm = 1.0\nseed = 5\n"
    );
    let config = RunConfig::parse(&text, "pinned").unwrap_or_else(|e| panic!("{e}"));
    let folder = tempfile::tempdir().unwrap();
    let run = specialformer::train(&config, &folder.path().join("r"), Start::New, (), || false);
    // FNV-1a over the bits of all weights.
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for (_, parameter) in NamedParameters::of(&run.unwrap().model).iter() {
        for byte in parameter.value().as_slice().iter().flat_map(|v| v.to_bits().to_le_bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    hash
}

/// Does nothing as a test; the other one runs it in a process of its own,
/// because the instruction set of a process is chosen once.
#[test]
fn training_process() {
    if std::env::var_os(CHILD).is_some() {
        for (name, run) in RUNS {
            println!("\n{name}: {:#018x}", trained(run));
        }
    }
}

#[test]
#[cfg(all(target_arch = "x86_64", target_os = "linux", target_env = "gnu"))]
fn small_runs_keep_their_bits() {
    let printing = std::env::var_os("SPECIALFORMER_PIN").is_some();
    let mut wrong = BTreeMap::new();
    for ((level, pinned), id) in PINNED.into_iter().zip(LevelId::ALL) {
        if !id.is_supported() {
            println!("{level}: this CPU does not have it");
            continue;
        }
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "pinned::training_process", "--nocapture"])
            .envs([(CHILD, "1"), ("SPECIALFORMER_SIMD", level)])
            .output()
            .unwrap();
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
        for ((name, _), wanted) in RUNS.iter().zip(pinned) {
            let start = format!("{name}: ");
            let line = printed.lines().find_map(|line| line.strip_prefix(&start)).unwrap();
            if printing {
                println!("{level}: {name}: {line}");
            } else if line != format!("{wanted:#018x}") {
                wrong.insert(format!("{level}: {name}"), (line.to_owned(), wanted));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#x?}");
}
