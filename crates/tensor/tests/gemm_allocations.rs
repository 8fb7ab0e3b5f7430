//! Products allocate nothing once a thread has its packing buffers.

// A global allocator that counts.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use ndarray::{Array1, Array2};
use specialformer_tensor::Parallelism;
use specialformer_tensor::gemm::gemm_bias;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_second_round_of_products_allocates_nothing() {
    // Read in place, packed, packed on both sides, transposed C, dot products.
    let shapes = [(64, 16, 64), (300, 70, 33), (200, 600, 600), (3, 2000, 40), (1, 512, 64)];
    let mut operands: Vec<_> = shapes
        .iter()
        .map(|&(m, k, n)| {
            let (a, b) = (Array2::<f32>::ones((m, k)), Array2::<f32>::ones((n, k)));
            (a, b, Array1::<f32>::ones(n), Array2::<f32>::ones((m, n)))
        })
        .collect();
    let mut round = || {
        for (a, b, bias, c) in &mut operands {
            let bias = Some(bias.view());
            gemm_bias(1.0, a.view(), b.t(), 0.0, bias, c.view_mut(), Parallelism::Serial);
            // The gradient of B: Cᵀ·A, and its transpose.
            let c = c.view();
            let mut db = Array2::<f32>::zeros((0, 0));
            std::mem::swap(&mut db, b);
            gemm_bias(1.0, c.t(), a.view(), 1.0, None, db.view_mut(), Parallelism::Serial);
            gemm_bias(1.0, a.t(), c, 1.0, None, db.view_mut().reversed_axes(), Parallelism::Serial);
            std::mem::swap(&mut db, b);
        }
    };
    round();
    let before = ALLOCATIONS.get();
    round();
    assert_eq!(ALLOCATIONS.get(), before);
}
