//! Whole training steps and attention alone, on one and on two threads: the
//! cases of the comparison with other frameworks, without the others.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use specialformer_benches::cases;

fn steps(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("steps");
    group.sample_size(10).warm_up_time(Duration::from_millis(500));
    // The largest case takes seconds a step; `cargo xtask bench --peers`
    // times it.
    for name in cases::NAMES.into_iter().filter(|name| *name != "decoder_d512") {
        for threads in [1, 2] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let pool = pool.expect("a pool of this size can be made");
            group.bench_function(BenchmarkId::new(name, threads), |bencher| {
                pool.install(|| {
                    let mut case = cases::build(name, None).expect("the name is of a case");
                    bencher.iter(|| case.step());
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, steps);
criterion_main!(benches);
