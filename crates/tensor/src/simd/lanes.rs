//! One vector register, for loops that must not be left to the
//! autovectoriser.
//!
//! The microkernels of [`crate::gemm`] keep a tile of C in registers. Written
//! over arrays, the same loop reaches the same speed for some tile shapes and
//! a third of it for others (tiles one register wide: 70 instead of 200
//! GFLOP/s), hence these types.

#![allow(unsafe_code)]
// Public in a private module, as types of a sealed trait have to be.
#![allow(unreachable_pub)]

/// A vector register of elements `E`.
///
/// The types of a level wider than the baseline exist only as associated
/// types of that level, which [`super::dispatch`] alone instantiates, after it
/// has seen that the CPU has the level. That is what makes the safe methods
/// here safe.
pub trait Lanes<E>: Copy {
    /// Number of elements.
    const LANES: usize;

    /// All lanes equal to `x`.
    fn splat(x: E) -> Self;
    /// Lanewise `self + b`.
    fn add(self, b: Self) -> Self;
    /// Lanewise `self · b`.
    fn mul(self, b: Self) -> Self;
    /// Lanewise `self · b + c`, fused where the level has the instruction.
    fn mul_add(self, b: Self, c: Self) -> Self;
    /// Lanewise the larger: `b` unless `self > b`, so also where `self` is NaN.
    fn max(self, b: Self) -> Self;
    /// Sum of the lanes, joined as a binary tree.
    fn sum(self) -> E;
    /// The largest lane; NaN must not be among them.
    fn largest(self) -> E;
    /// Reads `LANES` elements.
    ///
    /// # Safety
    /// They must be readable; no alignment is needed.
    unsafe fn load(p: *const E) -> Self;
    /// Writes `LANES` elements.
    ///
    /// # Safety
    /// They must be writable; no alignment is needed.
    unsafe fn store(self, p: *mut E);
    /// Reads the first `count < LANES` elements, and zero for the rest.
    ///
    /// # Safety
    /// The first `count` must be readable.
    unsafe fn load_first(p: *const E, count: usize) -> Self;
    /// Writes the first `count < LANES` elements.
    ///
    /// # Safety
    /// The first `count` must be writable.
    unsafe fn store_first(self, p: *mut E, count: usize);
}

/// Joins lanes as a binary tree, halves first.
#[inline(always)]
fn join<E: Copy, const N: usize>(mut lanes: [E; N], f: impl Fn(E, E) -> E) -> E {
    let mut width = N / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = f(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(not(target_arch = "x86_64"))]
pub use portable::{F32 as BaselineF32, F64 as BaselineF64};
#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2F32, Avx2F64, Avx512F32, Avx512F64, BaselineF32, BaselineF64};

/// Arrays of 128 bits, for targets without types of their own here.
#[cfg(any(test, not(target_arch = "x86_64")))]
mod portable {
    use super::{Lanes, join};
    use std::array::from_fn;

    macro_rules! portable {
        ($name:ident, $e:ident, $lanes:literal) => {
            #[derive(Clone, Copy)]
            #[repr(C, align(16))]
            pub struct $name([$e; $lanes]);

            impl Lanes<$e> for $name {
                const LANES: usize = $lanes;

                #[inline(always)]
                fn splat(x: $e) -> Self {
                    Self([x; $lanes])
                }
                #[inline(always)]
                fn add(self, b: Self) -> Self {
                    Self(from_fn(|i| self.0[i] + b.0[i]))
                }
                #[inline(always)]
                fn mul(self, b: Self) -> Self {
                    Self(from_fn(|i| self.0[i] * b.0[i]))
                }
                #[inline(always)]
                fn mul_add(self, b: Self, c: Self) -> Self {
                    if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
                        Self(from_fn(|i| self.0[i].mul_add(b.0[i], c.0[i])))
                    } else {
                        Self(from_fn(|i| self.0[i] * b.0[i] + c.0[i]))
                    }
                }
                #[inline(always)]
                fn max(self, b: Self) -> Self {
                    Self(from_fn(|i| if self.0[i] > b.0[i] { self.0[i] } else { b.0[i] }))
                }
                #[inline(always)]
                fn sum(self) -> $e {
                    join(self.0, |a, b| a + b)
                }
                #[inline(always)]
                fn largest(self) -> $e {
                    join(self.0, |a, b| if a > b { a } else { b })
                }
                #[inline(always)]
                unsafe fn load(p: *const $e) -> Self {
                    // SAFETY: the caller vouches for `LANES` elements.
                    Self(unsafe { p.cast::<[$e; $lanes]>().read_unaligned() })
                }
                #[inline(always)]
                unsafe fn store(self, p: *mut $e) {
                    // SAFETY: the caller vouches for `LANES` elements.
                    unsafe { p.cast::<[$e; $lanes]>().write_unaligned(self.0) }
                }
                #[inline(always)]
                unsafe fn load_first(p: *const $e, count: usize) -> Self {
                    let mut lanes = [0.0; $lanes];
                    for (i, lane) in lanes.iter_mut().enumerate().take(count) {
                        // SAFETY: the caller vouches for `count` elements.
                        *lane = unsafe { *p.add(i) };
                    }
                    Self(lanes)
                }
                #[inline(always)]
                unsafe fn store_first(self, p: *mut $e, count: usize) {
                    for (i, lane) in self.0.into_iter().enumerate().take(count) {
                        // SAFETY: the caller vouches for `count` elements.
                        unsafe { *p.add(i) = lane };
                    }
                }
            }
        };
    }

    portable!(F32, f32, 4);
    portable!(F64, f64, 2);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Lanes, join};
    use std::arch::x86_64::*;

    /// Declares a register type from its intrinsics.
    macro_rules! register {
        (
            $name:ident, $e:ident, $lanes:literal, $raw:ident,
            $set1:ident, $add:ident, $mul:ident, $max:ident, $load:ident, $store:ident,
            mul_add: |$a:ident, $b:ident, $c:ident| $mul_add:expr,
            load_first: |$p:ident, $count:ident| $load_first:expr,
            store_first: |$q:ident, $number:ident, $x:ident| $store_first:expr
        ) => {
            #[derive(Clone, Copy)]
            pub struct $name($raw);

            impl Lanes<$e> for $name {
                const LANES: usize = $lanes;

                #[inline(always)]
                fn splat(x: $e) -> Self {
                    // SAFETY: the CPU has the level (see the trait).
                    Self(unsafe { $set1(x) })
                }
                #[inline(always)]
                fn add(self, b: Self) -> Self {
                    // SAFETY: the CPU has the level (see the trait).
                    Self(unsafe { $add(self.0, b.0) })
                }
                #[inline(always)]
                fn mul(self, b: Self) -> Self {
                    // SAFETY: the CPU has the level (see the trait).
                    Self(unsafe { $mul(self.0, b.0) })
                }
                #[inline(always)]
                fn mul_add(self, b: Self, c: Self) -> Self {
                    let ($a, $b, $c) = (self.0, b.0, c.0);
                    // SAFETY: the CPU has the level (see the trait).
                    Self(unsafe { $mul_add })
                }
                #[inline(always)]
                fn max(self, b: Self) -> Self {
                    // SAFETY: the CPU has the level (see the trait).
                    Self(unsafe { $max(self.0, b.0) })
                }
                #[inline(always)]
                fn sum(self) -> $e {
                    // SAFETY: a register is as many elements, in order.
                    let lanes: [$e; $lanes] = unsafe { std::mem::transmute(self.0) };
                    join(lanes, |a, b| a + b)
                }
                #[inline(always)]
                fn largest(self) -> $e {
                    // SAFETY: a register is as many elements, in order.
                    let lanes: [$e; $lanes] = unsafe { std::mem::transmute(self.0) };
                    join(lanes, |a, b| if a > b { a } else { b })
                }
                #[inline(always)]
                unsafe fn load(p: *const $e) -> Self {
                    // SAFETY: the caller vouches for `LANES` elements.
                    Self(unsafe { $load(p) })
                }
                #[inline(always)]
                unsafe fn store(self, p: *mut $e) {
                    // SAFETY: the caller vouches for `LANES` elements.
                    unsafe { $store(p, self.0) }
                }
                #[inline(always)]
                unsafe fn load_first($p: *const $e, $count: usize) -> Self {
                    // SAFETY: the caller vouches for `count` elements.
                    Self(unsafe { $load_first })
                }
                #[inline(always)]
                unsafe fn store_first(self, $q: *mut $e, $number: usize) {
                    let $x = self.0;
                    // SAFETY: the caller vouches for `count` elements.
                    unsafe { $store_first }
                }
            }
        };
    }

    /// # Safety
    /// `p` has `count < 4` readable elements.
    #[inline(always)]
    unsafe fn sse_load_first_ps(p: *const f32, count: usize) -> __m128 {
        let mut lanes = [0.0; 4];
        for (i, lane) in lanes.iter_mut().enumerate().take(count) {
            // SAFETY: the caller vouches for `count` elements.
            *lane = unsafe { *p.add(i) };
        }
        // SAFETY: SSE2 is part of x86-64; the array has four elements.
        unsafe { _mm_loadu_ps(lanes.as_ptr()) }
    }

    /// # Safety
    /// `p` has `count < 4` writable elements.
    #[inline(always)]
    unsafe fn sse_store_first_ps(p: *mut f32, count: usize, x: __m128) {
        let mut lanes = [0.0; 4];
        // SAFETY: SSE2 is part of x86-64; the array has four elements.
        unsafe { _mm_storeu_ps(lanes.as_mut_ptr(), x) };
        for (i, lane) in lanes.into_iter().enumerate().take(count) {
            // SAFETY: the caller vouches for `count` elements.
            unsafe { *p.add(i) = lane };
        }
    }

    /// A mask of 32-bit lanes, the first `count` set.
    ///
    /// # Safety
    /// The CPU has AVX2.
    #[inline(always)]
    unsafe fn mask32(count: usize) -> __m256i {
        // SAFETY: the caller vouches for AVX2.
        unsafe {
            let index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            _mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), index)
        }
    }

    /// A mask of 64-bit lanes, the first `count` set.
    ///
    /// # Safety
    /// The CPU has AVX2.
    #[inline(always)]
    unsafe fn mask64(count: usize) -> __m256i {
        // SAFETY: the caller vouches for AVX2.
        unsafe {
            let index = _mm256_setr_epi64x(0, 1, 2, 3);
            _mm256_cmpgt_epi64(_mm256_set1_epi64x(count as i64), index)
        }
    }

    register!(
        BaselineF32, f32, 4, __m128,
        _mm_set1_ps, _mm_add_ps, _mm_mul_ps, _mm_max_ps, _mm_loadu_ps, _mm_storeu_ps,
        mul_add: |a, b, c| _mm_add_ps(_mm_mul_ps(a, b), c),
        load_first: |p, count| sse_load_first_ps(p, count),
        store_first: |p, count, x| sse_store_first_ps(p, count, x)
    );
    // Of two lanes, a partial access is one lane.
    register!(
        BaselineF64, f64, 2, __m128d,
        _mm_set1_pd, _mm_add_pd, _mm_mul_pd, _mm_max_pd, _mm_loadu_pd, _mm_storeu_pd,
        mul_add: |a, b, c| _mm_add_pd(_mm_mul_pd(a, b), c),
        load_first: |p, count| if count == 0 { _mm_setzero_pd() } else { _mm_load_sd(p) },
        store_first: |p, count, x| if count > 0 { _mm_store_sd(p, x) }
    );
    register!(
        Avx2F32, f32, 8, __m256,
        _mm256_set1_ps, _mm256_add_ps, _mm256_mul_ps, _mm256_max_ps, _mm256_loadu_ps, _mm256_storeu_ps,
        mul_add: |a, b, c| _mm256_fmadd_ps(a, b, c),
        load_first: |p, count| _mm256_maskload_ps(p, mask32(count)),
        store_first: |p, count, x| _mm256_maskstore_ps(p, mask32(count), x)
    );
    register!(
        Avx2F64, f64, 4, __m256d,
        _mm256_set1_pd, _mm256_add_pd, _mm256_mul_pd, _mm256_max_pd, _mm256_loadu_pd, _mm256_storeu_pd,
        mul_add: |a, b, c| _mm256_fmadd_pd(a, b, c),
        load_first: |p, count| _mm256_maskload_pd(p, mask64(count)),
        store_first: |p, count, x| _mm256_maskstore_pd(p, mask64(count), x)
    );
    register!(
        Avx512F32, f32, 16, __m512,
        _mm512_set1_ps, _mm512_add_ps, _mm512_mul_ps, _mm512_max_ps, _mm512_loadu_ps, _mm512_storeu_ps,
        mul_add: |a, b, c| _mm512_fmadd_ps(a, b, c),
        load_first: |p, count| _mm512_maskz_loadu_ps(((1u32 << count) - 1) as u16, p),
        store_first: |p, count, x| _mm512_mask_storeu_ps(p, ((1u32 << count) - 1) as u16, x)
    );
    register!(
        Avx512F64, f64, 8, __m512d,
        _mm512_set1_pd, _mm512_add_pd, _mm512_mul_pd, _mm512_max_pd, _mm512_loadu_pd, _mm512_storeu_pd,
        mul_add: |a, b, c| _mm512_fmadd_pd(a, b, c),
        load_first: |p, count| _mm512_maskz_loadu_pd(((1u32 << count) - 1) as u8, p),
        store_first: |p, count, x| _mm512_mask_storeu_pd(p, ((1u32 << count) - 1) as u8, x)
    );
}

#[cfg(test)]
mod tests {
    use super::super::{Kernel, Level, LevelId, dispatch_at};
    use super::{Lanes, portable};
    use crate::element::Element;

    /// Each operation against scalars; NaN outside a partial access would show.
    #[inline(always)]
    fn check<E: Element, V: Lanes<E>>() {
        let n = V::LANES;
        let value = |i: usize| E::from_f64(i as f64 * 0.75 - 2.0);
        let x: Vec<E> = (0..n).map(value).collect();
        let y: Vec<E> = (n..2 * n).map(value).collect();
        // SAFETY: `n` elements each, of which partial accesses use fewer.
        unsafe {
            let (a, b, two) = (V::load(x.as_ptr()), V::load(y.as_ptr()), V::splat(value(4)));
            let stored = |v: V| {
                let mut out = vec![E::ZERO; n];
                v.store(out.as_mut_ptr());
                out
            };
            for i in 0..n {
                assert!(stored(a.add(b))[i] == x[i] + y[i]);
                assert!(stored(a.mul(b))[i] == x[i] * y[i]);
                assert!(stored(a.max(two))[i] == x[i].maximum(value(4)));
                assert!(stored(a.mul_add(b, two))[i] == x[i] * y[i] + value(4));
            }
            assert!(a.sum() == x.iter().copied().sum() && a.largest() == x[n - 1]);
            let nan = V::splat(E::from_f64(f64::NAN));
            assert!(stored(nan.max(a)) == x);
            for count in 0..n {
                let part = stored(V::load_first(x[..count].as_ptr(), count));
                assert!((0..n).all(|i| part[i] == if i < count { x[i] } else { E::ZERO }));
                let mut out = vec![E::ONE; n];
                b.store_first(out.as_mut_ptr(), count);
                assert!((0..n).all(|i| out[i] == if i < count { y[i] } else { E::ONE }));
            }
        }
    }

    struct CheckLevel;

    impl Kernel for CheckLevel {
        type Output = ();

        #[inline(always)]
        fn run<L: Level>(self) {
            assert_eq!(<L::F32 as Lanes<f32>>::LANES, L::LANES_F32);
            check::<f32, L::F32>();
            check::<f64, L::F64>();
        }
    }

    #[test]
    fn operations_match_scalars() {
        for level in LevelId::ALL {
            dispatch_at(level, CheckLevel);
        }
        check::<f32, portable::F32>();
        check::<f64, portable::F64>();
    }
}
