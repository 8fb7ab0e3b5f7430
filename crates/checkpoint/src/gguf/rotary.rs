//! The two orders in which query and key rows are stored for rotary positions.
//!
//! A head of D rows rotates D/2 pairs. Hugging Face folders store pair j of a
//! head as rows j and j + D/2 (halves); llama GGUF files as rows 2j and 2j + 1
//! (adjacent pairs). The rotation is the same, so the rows of `q` and `k`,
//! weights and biases, are put into the other order and nothing else changes.

use specialformer_tensor::{Element, Tensor};

use crate::error::{CheckpointError, Result};
use crate::storage::in_order;

/// For each row in halves order, which row it is in adjacent-pairs order:
/// what to take from a llama GGUF file. `head_dim` is even.
///
/// ```
/// use specialformer_checkpoint::pairs_to_halves_order;
/// assert_eq!(pairs_to_halves_order(2, 4), [0, 2, 1, 3, 4, 6, 5, 7]);
/// ```
pub fn pairs_to_halves_order(heads: usize, head_dim: usize) -> Vec<usize> {
    let half = head_dim / 2;
    let row = |head, side, pair| head * head_dim + 2 * pair + side;
    each(heads, |head| each(2, |side| each(half, |pair| vec![row(head, side, pair)])))
}

/// For each row in adjacent-pairs order, which row it is in halves order: the
/// inverse of [`pairs_to_halves_order`], for writing a llama GGUF file.
pub fn halves_to_pairs_order(heads: usize, head_dim: usize) -> Vec<usize> {
    let half = head_dim / 2;
    let row = |head, side, pair| head * head_dim + side * half + pair;
    each(heads, |head| each(half, |pair| each(2, |side| vec![row(head, side, pair)])))
}

fn each(count: usize, make: impl Fn(usize) -> Vec<usize>) -> Vec<usize> {
    (0..count).flat_map(make).collect()
}

/// A copy of a tensor whose slice i along the first axis is slice `order[i]`.
/// [`crate::RawTensor::reorder_rows`] does the same to stored bytes.
///
/// # Errors
/// [`CheckpointError::Layout`] unless `order` holds each index of the first
/// axis once; `name` names the tensor there.
pub fn reorder_rows<E: Element>(
    name: &str,
    tensor: &Tensor<E>,
    order: &[usize],
) -> Result<Tensor<E>> {
    let rows = tensor.shape().first().copied().unwrap_or(0);
    let values = in_order(tensor.as_slice(), rows, order).ok_or_else(|| {
        let what =
            format!("shape {} has not the {} rows of the heads", tensor.shape(), order.len());
        CheckpointError::Layout { tensor: name.to_owned(), what }
    })?;
    Ok(Tensor::from_vec(values, tensor.shape()).expect("a permutation keeps the shape"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_orders_are_inverse(heads in 0usize..5, half in 0usize..9) {
            let to_halves = pairs_to_halves_order(heads, 2 * half);
            let to_pairs = halves_to_pairs_order(heads, 2 * half);
            prop_assert_eq!(to_halves.len(), heads * 2 * half);
            for (row, &from) in to_halves.iter().enumerate() {
                prop_assert_eq!(to_pairs[from], row);
            }
        }
    }

    /// Rotating halves of the reordered query equals rotating adjacent pairs.
    #[test]
    fn rotations_agree() {
        let stored: Vec<f64> = (0..8).map(|i| f64::from(i * i) - 5.0).collect();
        let order = pairs_to_halves_order(1, 8);
        let rotate = |a: f64, b: f64, pair: usize| {
            let (sin, cos) = (0.3 / (pair as f64 + 1.0)).sin_cos();
            (a * cos - b * sin, a * sin + b * cos)
        };
        for pair in 0..4 {
            let adjacent = rotate(stored[2 * pair], stored[2 * pair + 1], pair);
            let halves = rotate(stored[order[pair]], stored[order[pair + 4]], pair);
            assert_eq!(adjacent, halves);
        }
    }

    #[test]
    fn weights_and_biases_reorder() {
        let order = pairs_to_halves_order(1, 4);
        let bias = Tensor::from_vec(vec![0.0f32, 1.0, 2.0, 3.0], [4]).unwrap();
        assert_eq!(reorder_rows("b", &bias, &order).unwrap().as_slice(), [0.0, 2.0, 1.0, 3.0]);
        let weight = Tensor::from_vec((0..8).map(|v| v as f32).collect(), [4, 2]).unwrap();
        let there = reorder_rows("w", &weight, &order).unwrap();
        assert_eq!(there.as_slice(), [0.0, 1.0, 4.0, 5.0, 2.0, 3.0, 6.0, 7.0]);
        let back = reorder_rows("w", &there, &halves_to_pairs_order(1, 4)).unwrap();
        assert_eq!(back.as_slice(), weight.as_slice());
        let error = reorder_rows("k.weight", &weight, &pairs_to_halves_order(2, 4)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "tensor `k.weight`: shape [4, 2] has not the 8 rows of the heads"
        );
    }
}
