//! Any bytes as the text of a compiled program: parse, and if that succeeds, decode, validate and plan; what is printed of it and
//! parsed again is printed in the same way. And any bytes as its `coremldata.bin`. An error is fine; a panic, a hang or memory beyond the
//! limits is not.
#![no_main]

use std::collections::HashMap;

use coreml_engine::compiled::{compile, specification};
use coreml_engine::{Limits, LoadOptions, Model};

const DATA: &[u8] =
    include_bytes!("../../coreml-engine/tests/fixtures/mlmodelc/test_linear.mlmodelc/coremldata.bin");

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = specification(bytes, b"");
    let Ok(model) = specification(DATA, bytes) else { return };
    let printed = compile(&model).expect("what was parsed can be printed");
    let again =
        specification(&printed.data, printed.program.as_bytes()).expect("what was printed can be parsed");
    assert_eq!(compile(&again).expect("once more").program, printed.program);
    let mut limits = Limits::default();
    limits.tensor_elements = 1 << 20;
    let _ = Model::from_memory("fuzz", &model, &HashMap::new(), &LoadOptions::default().limits(limits));
});
