//! Factorisations by faer, on one thread: the result must not depend on how
//! many there are.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::svd::{ComputeSvdVectors, svd, svd_scratch};
use faer::{ColMut, MatMut, MatRef, Par};
use ndarray::{Array1, Array2, ArrayView2, ShapeBuilder};

use super::{Backend, Factors};

macro_rules! backend {
    ($e:ident) => {
        impl Backend for $e {
            fn embedded_svd(a: ArrayView2<'_, Self>) -> Factors<Self> {
                let (m, n) = a.dim();
                let rank = m.min(n);
                // faer prefers columns that lie together.
                let mut columns = Array2::zeros((m, n).f());
                columns.assign(&a);
                let mut u = vec![0.0; m * rank];
                let mut v = vec![0.0; n * rank];
                let mut sigma = vec![0.0; rank];
                let thin = ComputeSvdVectors::Thin;
                let scratch =
                    svd_scratch::<Self>(m, n, thin, thin, Par::Seq, Default::default());
                let columns = columns.as_slice_memory_order().expect("owned and dense");
                svd(
                    MatRef::from_column_major_slice(columns, m, n),
                    ColMut::from_slice_mut(&mut sigma).as_diagonal_mut(),
                    Some(MatMut::from_column_major_slice_mut(&mut u, m, rank)),
                    Some(MatMut::from_column_major_slice_mut(&mut v, n, rank)),
                    Par::Seq,
                    MemStack::new(&mut MemBuffer::new(scratch)),
                    Default::default(),
                )
                .ok()?;
                let matrix = |data, rows: usize| {
                    Array2::from_shape_vec((rows, rank).f(), data).expect("rows·rank numbers")
                };
                Some((matrix(u, m), Array1::from(sigma), matrix(v, n)))
            }

            #[cfg(feature = "blas")]
            fn lapack_svd(a: ArrayView2<'_, Self>) -> Factors<Self> {
                super::lapack::$e(a)
            }
        }
    };
}

backend!(f32);
backend!(f64);
