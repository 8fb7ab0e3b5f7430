//! Signatures: sums, exact merging, parity with stored router logits.

use proptest::prelude::*;
use specialformer_routing::{SignatureKind, SignatureSum};
use specialformer_testkit::GoldenCase;

const KINDS: [SignatureKind; 3] =
    [SignatureKind::Count, SignatureKind::Weight, SignatureKind::Rank];

/// Tokens of two layers with 5 and 3 experts: layer, experts in order, weights.
fn tokens() -> impl Strategy<Value = Vec<(usize, Vec<(usize, f32)>)>> {
    let token = (0usize..2, 0usize..5, 1usize..3, 0.0f32..1.0, 0.0f32..1.0).prop_map(
        |(layer, first, k, a, b)| {
            let experts = [5, 3][layer];
            let choices = [(first % experts, a), ((first + 1) % experts, b)];
            (layer, choices[..k].to_vec())
        },
    );
    proptest::collection::vec(token, 0..60)
}

fn sum_of(tokens: &[(usize, Vec<(usize, f32)>)]) -> SignatureSum {
    let mut sum = SignatureSum::new(&[5, 3]);
    for (layer, choices) in tokens {
        sum.add_token(*layer, choices.iter().copied()).unwrap();
    }
    sum
}

proptest! {
    #[test]
    fn shares_sum_to_one_in_each_layer(tokens in tokens()) {
        let sum = sum_of(&tokens);
        for kind in KINDS {
            for layer in 0..2 {
                let total: f64 = sum.layer(kind, layer).iter().sum();
                let weighed: f32 = tokens.iter().filter(|t| t.0 == layer)
                    .flat_map(|t| &t.1).map(|c| c.1).sum();
                let empty = sum.tokens(layer) == 0
                    || (kind == SignatureKind::Weight && weighed == 0.0);
                prop_assert!((total - f64::from(u8::from(!empty))).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn merging_is_exact_and_associative(a in tokens(), b in tokens(), c in tokens()) {
        let merged = |x: &SignatureSum, y: &SignatureSum| {
            let mut sum = x.clone();
            sum.merge(y).unwrap();
            sum
        };
        let (sa, sb, sc) = (sum_of(&a), sum_of(&b), sum_of(&c));
        let whole = sum_of(&[c.clone(), a.clone(), b.clone()].concat());
        let left = merged(&merged(&sa, &sb), &sc);
        let right = merged(&sa, &merged(&sb, &sc));
        prop_assert_eq!(&left, &right);
        prop_assert_eq!(&left, &whole);
        for kind in KINDS {
            let bits = |s: &SignatureSum| -> Vec<u64> {
                s.signature(kind).iter().map(|x| x.to_bits()).collect()
            };
            prop_assert_eq!(bits(&left), bits(&whole));
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut sum = SignatureSum::new(&[2]);
    let message = |sum: &mut SignatureSum, layer, choice| {
        sum.add_token(layer, [choice]).unwrap_err().to_string()
    };
    assert_eq!(message(&mut sum, 1, (0, 1.0)), "routing signature: layer = 1: there are 1 layers");
    assert_eq!(
        message(&mut sum, 0, (2, 1.0)),
        "routing signature: expert = 2: layer 0 has 2 experts"
    );
    assert!(message(&mut sum, 0, (0, f32::NAN)).contains("must be finite"));
    assert!(sum.merge(&SignatureSum::new(&[3])).is_err());
    assert_eq!(sum, SignatureSum::new(&[2]));
}

/// Signatures of the pretrained models' stored router logits, worked out here
/// with nothing of this crate; the facade's tests compare whole models with
/// the same numbers.
#[test]
fn signatures_of_stored_router_logits() {
    for (name, normalize) in [("05_olmoe", false), ("06_qwen3_moe", true)] {
        let case = GoldenCase::committed(name).unwrap();
        let k = case.config().unwrap()["num_experts_per_tok"].as_u64().unwrap() as usize;
        let layers: Vec<_> =
            (0..2).map(|l| case.f32(&format!("router_logits.{l}")).unwrap().clone()).collect();
        let experts = layers[0].shape()[1];
        let mut sum = SignatureSum::new(&[experts, experts]);
        for (l, logits) in layers.iter().enumerate() {
            let mut want = [vec![0.0; experts], vec![0.0; experts], vec![0.0; experts]];
            for row in logits.rows() {
                let most = row.fold(f32::MIN, |a, &b| a.max(b));
                let p: Vec<f32> = row.iter().map(|z| (z - most).exp()).collect();
                let total: f32 = p.iter().sum();
                let mut order: Vec<usize> = (0..experts).collect();
                order.sort_by(|&a, &b| p[b].total_cmp(&p[a]));
                let kept: f32 = order[..k].iter().map(|&e| p[e]).sum();
                let weight = |e: usize| p[e] / if normalize { kept } else { total };
                for (rank, &e) in order[..k].iter().enumerate() {
                    want[0][e] += 1.0;
                    want[1][e] += f64::from(weight(e));
                    want[2][e] += (k - rank) as f64;
                }
                sum.add_token(l, order[..k].iter().map(|&e| (e, weight(e))).collect::<Vec<_>>())
                    .unwrap();
            }
            for (kind, want) in KINDS.into_iter().zip(want) {
                let total: f64 = want.iter().sum();
                for (got, want) in sum.layer(kind, l).iter().zip(want) {
                    assert!((got - want / total).abs() < 1e-9, "{name} {kind:?}");
                }
            }
        }
    }
}
