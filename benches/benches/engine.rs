//! The engine on the committed models, without any layer above it.

use std::num::NonZeroUsize;
use std::path::Path;

use coreml_engine::{ArrayRef, Elements, Input, LoadOptions, Model};
use criterion::{Criterion, criterion_group, criterion_main};

fn digits(criterion: &mut Criterion) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/digits");
    let image = Elements::Float32((0..64).map(|i| (i % 17) as f32 / 16.0).collect());
    let array = ArrayRef { dtype: image.dtype(), shape: &[1, 1, 8, 8], strides: None, bytes: image.bytes() };
    let mut group = criterion.benchmark_group("engine");
    for file in ["digits.mlpackage", "digits-f32.mlpackage", "digits.mlmodel"] {
        let path = folder.join(file);
        let model = Model::load(&path, &LoadOptions::default()).expect("a committed model loads");
        let mut session = model.session(NonZeroUsize::MIN);
        group.bench_function(format!("predict {file}"), |bencher| {
            bencher
                .iter(|| session.predict(&[("image", Input::Array(array))], None, &[]).expect("it predicts"));
        });
        group.bench_function(format!("load {file}"), |bencher| {
            bencher.iter(|| Model::load(&path, &LoadOptions::default()).expect("a committed model loads"));
        });
    }
    group.finish();
}

criterion_group!(benches, digits);
criterion_main!(benches);
