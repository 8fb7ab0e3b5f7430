//! Once warm, a training step allocates no tensor buffers.
#![allow(unsafe_code, reason = "a global allocator that counts")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Mlp, Sums};
use specialformer_train::{TrainConfig, Trainer};

/// Counts allocations of at least this many bytes.
const LARGE: usize = 4096;

struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout, layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(layout, size);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Tensors live in plain vectors; what is aligned to cache lines is scratch
/// memory of the matrix kernels, which keep it or not as they see fit.
fn count(layout: Layout, bytes: usize) {
    if bytes >= LARGE && layout.align() <= align_of::<u64>() {
        COUNT.fetch_add(1, Ordering::Relaxed);
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_warm_step_allocates_no_tensor_buffers() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    for (shards, accumulation) in [(1, 1), (4, 1), (2, 3)] {
        let model = Mlp::<f32>::new(256, 1).with_noise(0.1);
        let config = TrainConfig {
            shards: Some(shards),
            accumulation,
            clip_norm: Some(1.0),
            ..TrainConfig::new(1000, 240, 0.01)
        };
        let mut trainer = Trainer::new(&model, Sums::new(2), config).unwrap();
        pool.install(|| {
            for _ in 0..5 {
                trainer.step().unwrap();
            }
            let (fresh, large) = (trainer.fresh_allocations(), COUNT.load(Ordering::Relaxed));
            assert!(fresh > 0 && large > 0, "the counters count");
            for _ in 0..20 {
                trainer.step().unwrap();
            }
            let name = format!("{shards} shards, accumulation {accumulation}");
            assert_eq!(trainer.fresh_allocations(), fresh, "{name}: pools grew");
            let large = COUNT.load(Ordering::Relaxed) - large;
            assert_eq!(large, 0, "{name}: {large} allocations of {LARGE} bytes or more");
        });
    }
}
