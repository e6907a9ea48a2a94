//! Looking a model up in the thread's registry, against a bare hash map of counted pointers.

use std::collections::HashMap;
use std::rc::Rc;

use coreml_bridge::{Config, ModelRef, get_model_handle, register_model, unload_model};
use coreml_testing::FakeBridge;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use std::hint::black_box;

fn lookup(criterion: &mut Criterion) {
    let fake = FakeBridge::new();
    let handle = fake.bridge().load("fake.mlmodel", &Config::default()).expect("the fake loads anything");
    let mut group = criterion.benchmark_group("registry look-up");
    for count in [1_usize, 100] {
        let refs: Vec<ModelRef> = (0..count).map(|_| register_model(handle.clone())).collect();
        let map: HashMap<ModelRef, Rc<u64>> = refs.iter().map(|&r| (r, Rc::new(0))).collect();
        let wanted = refs[count / 2];
        group.bench_function(BenchmarkId::new("bare", count), |bencher| {
            bencher.iter(|| map.get(&black_box(wanted)).cloned());
        });
        group.bench_function(BenchmarkId::new("registry", count), |bencher| {
            bencher.iter(|| get_model_handle(black_box(wanted)));
        });
        refs.into_iter().for_each(|r| drop(unload_model(r)));
    }
    group.finish();
}

criterion_group!(benches, lookup);
criterion_main!(benches);
