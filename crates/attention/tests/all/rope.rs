//! Options of the rotary embedding against plain rotations.

use ndarray::{Array3, ArrayD, s};
use specialformer_attention::{QueryOffset, RopeArgs, RopePairing, RopeTable, rope, rope_with};
use specialformer_tensor::{Tape, Tensor};
use specialformer_testkit::{assert_close, random_array};

fn rotate(
    x: &ArrayD<f64>,
    table: &RopeTable<f64>,
    args: &RopeArgs<'_>,
) -> specialformer_attention::Result<Array3<f64>> {
    let x = Tape::no_grad().constant(Tensor::from_array(x.clone()));
    let y = rope_with(&x, table, args)?.into_value();
    Ok(y.into_array().into_dimensionality().unwrap())
}

fn random(shape: &[usize]) -> ArrayD<f64> {
    random_array(1, shape, -1.5, 1.5)
}

const PAIRINGS: [RopePairing; 2] = [RopePairing::Halves, RopePairing::Adjacent];

#[test]
fn pairs_turn_by_their_angles() {
    let (theta, width) = (100.0f64, 6);
    let table = RopeTable::new(width, theta, 20).unwrap();
    // Three heads of 8 elements, of which two heads' first 6 are rotated.
    let x = random(&[2, 4, 24]);
    for pairing in PAIRINGS {
        let offsets = [7, 2];
        let args = RopeArgs {
            offset: QueryOffset::PerRow(&offsets),
            lengths: Some(&[4, 3]),
            pairing,
            head_width: Some(8),
            ..RopeArgs::new(3, 2)
        };
        let mut want = x.clone();
        for (b, tokens) in [(0, 4), (1, 3)] {
            for t in 0..tokens {
                for (head, i) in (0..2usize).flat_map(|head| (0..3).map(move |i| (head, i))) {
                    let (first, second) = match pairing {
                        RopePairing::Halves => (i, i + 3),
                        RopePairing::Adjacent => (2 * i, 2 * i + 1),
                    };
                    let at = |element| [b, t, head * 8 + element];
                    let frequency = theta.powf(-2.0 * i as f64 / width as f64);
                    let (sin, cos) = ((offsets[b] + t) as f64 * frequency).sin_cos();
                    let (p, q) = (x[at(first)], x[at(second)]);
                    want[at(first)] = p * cos - q * sin;
                    want[at(second)] = q * cos + p * sin;
                }
            }
        }
        let want: Array3<f64> = want.into_dimensionality().unwrap();
        assert_close(&rotate(&x, &table, &args).unwrap(), &want, 1e-14, 1e-14);
    }
}

#[test]
fn each_row_turns_as_it_would_alone() {
    let table = RopeTable::new(4, 100.0, 20).unwrap();
    let x = random(&[3, 2, 8]);
    let offsets = [5, 0, 18];
    let args = RopeArgs { offset: QueryOffset::PerRow(&offsets), ..RopeArgs::new(2, 2) };
    let together = rotate(&x, &table, &args).unwrap();
    for (b, &offset) in offsets.iter().enumerate() {
        let row = x.slice(s![b..b + 1, .., ..]).to_owned().into_dyn();
        let tape = Tape::no_grad();
        let alone = rope(&tape.constant(Tensor::from_array(row)), 2, 2, &table, offset).unwrap();
        let alone = alone.into_value().into_array();
        assert_eq!(together.slice(s![b..b + 1, .., ..]).into_dyn(), alone);
    }
}

#[test]
fn errors_name_what_does_not_fit() {
    let table = RopeTable::new(4, 100.0, 20).unwrap();
    let x = random(&[2, 3, 8]);
    let message = |args: &RopeArgs<'_>| rotate(&x, &table, args).unwrap_err().to_string();
    let base = RopeArgs::new(2, 2);
    let with = |offset| RopeArgs { offset, ..base };
    assert_eq!(
        message(&with(QueryOffset::PerRow(&[1]))),
        "rope: offset = 1 entries: needs one entry for each of the 2 batch rows"
    );
    assert_eq!(
        message(&with(QueryOffset::PerRow(&[1, 18]))),
        "rope: positions = 18..21: the table has 20 positions"
    );
    assert!(message(&with(usize::MAX.into())).contains("the table has 20 positions"));
    let lengths = RopeArgs { lengths: Some(&[1, 4]), ..base };
    assert_eq!(message(&lengths), "rope: lengths = 4: there are only 3 tokens a row");
    let lengths = RopeArgs { lengths: Some(&[1]), ..base };
    assert!(message(&lengths).contains("lengths = 1 entries"));
    let narrow = RopeArgs { head_width: Some(2), ..base };
    assert_eq!(message(&narrow), "rope: head_width = 2: the table rotates 4 elements of a head");
    assert_eq!(message(&RopeArgs::new(3, 2)), "rope: x [2, 3, 8]: must be [B, T, 12]");
    assert_eq!(message(&RopeArgs::new(2, 3)), "rope: rotated = 3: there are only 2 heads");
}
