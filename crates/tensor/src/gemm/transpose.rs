//! Transposes of blocks of 4 × 4, the inner step of packing.

#![allow(unsafe_code)]

/// # Safety
/// Both blocks must be within their buffers.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) unsafe fn f32(block: *const f32, stride: isize, out: *mut f32, out_stride: usize) {
    use std::arch::x86_64::*;
    // SAFETY: SSE is part of x86-64; the caller vouches for four elements in
    // each of four rows.
    unsafe {
        let mut r0 = _mm_loadu_ps(block);
        let mut r1 = _mm_loadu_ps(block.offset(stride));
        let mut r2 = _mm_loadu_ps(block.offset(2 * stride));
        let mut r3 = _mm_loadu_ps(block.offset(3 * stride));
        _MM_TRANSPOSE4_PS(&mut r0, &mut r1, &mut r2, &mut r3);
        _mm_storeu_ps(out, r0);
        _mm_storeu_ps(out.add(out_stride), r1);
        _mm_storeu_ps(out.add(2 * out_stride), r2);
        _mm_storeu_ps(out.add(3 * out_stride), r3);
    }
}

/// # Safety
/// Both blocks must be within their buffers.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
pub(super) unsafe fn f32(block: *const f32, stride: isize, out: *mut f32, out_stride: usize) {
    // SAFETY: as for this function.
    unsafe { scalar(block, stride, out, out_stride) }
}

/// # Safety
/// Both blocks must be within their buffers.
#[inline(always)]
pub(super) unsafe fn f64(block: *const f64, stride: isize, out: *mut f64, out_stride: usize) {
    // SAFETY: as for this function.
    unsafe { scalar(block, stride, out, out_stride) }
}

#[inline(always)]
unsafe fn scalar<E: Copy>(block: *const E, stride: isize, out: *mut E, out_stride: usize) {
    for i in 0..4 {
        for j in 0..4 {
            // SAFETY: the caller vouches for both blocks.
            unsafe { *out.add(j * out_stride + i) = *block.offset(i as isize * stride).add(j) };
        }
    }
}
