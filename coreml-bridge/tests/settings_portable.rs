//! What a process says to the portable engine: classes of custom layers, and limits. In a process of its own, which they hold for.
#![cfg(not(target_vendor = "apple"))]

use coreml_bridge::{Bridge, Config, CoreMlHandle, Error, Features, Tensor};
use coreml_portable::{
    CustomError, CustomLayer, CustomTensor, CustomWeights, Limits, register_custom_layer, set_limits,
};

/// One model that has a custom layer, and one without.
const CUSTOM: &str = "../coreml-engine/tests/fixtures/nn/custom_single.mlmodel";
const PLAIN: &str = "../models/digits/digits.mlpackage";

/// `y` is `x` times the scale of its column, and `y1` the sums of its rows.
struct Scaled(Vec<f32>);

impl CustomLayer for Scaled {
    fn output_shapes(&self, inputs: &[Vec<Option<usize>>]) -> Result<Vec<Vec<Option<usize>>>, CustomError> {
        let [rows, _] = inputs[0][..] else { return Err("no matrix".into()) };
        Ok(vec![inputs[0].clone(), vec![rows, Some(1)]])
    }

    fn evaluate(&self, inputs: &[CustomTensor<'_>], outputs: &mut [&mut [f32]]) -> Result<(), CustomError> {
        let [x] = inputs else { return Err("one input".into()) };
        let [y, sums] = outputs else { return Err("two outputs".into()) };
        for (i, x) in x.data.iter().enumerate() {
            if x.is_nan() {
                panic!("a layer of the user's");
            }
            y[i] = x * self.0[i % self.0.len()];
            sums[i / self.0.len()] += y[i];
        }
        Ok(())
    }
}

fn load(path: &str) -> Result<CoreMlHandle, Error> {
    Bridge::portable().load(path, &Config::default())
}

fn chain(error: &Error) -> String {
    coreml_testing::messages(error).join(": ")
}

#[test]
fn a_custom_layer_runs_once_its_class_is_known_and_limits_hold_for_what_is_loaded_after() {
    let unknown = chain(&load(CUSTOM).expect_err("no class is known"));
    assert!(unknown.contains("PowerAndSum"), "{unknown}");

    register_custom_layer("PowerAndSum", |spec| match &spec.weights[0] {
        CustomWeights::Floats(scale) => Ok(Box::new(Scaled(scale.clone()))),
        CustomWeights::Bytes(_) => Err("no scale".into()),
    });
    let model = load(CUSTOM).expect("the class is known");
    let ask = |x: Vec<f32>| {
        let x = Tensor::from_vec(&[2, 3], x).expect("six numbers");
        model.predict(&Features::new().with("x", x))
    };
    let ones = ask(vec![1.0; 6]).expect("it runs");
    let scaled = ones.tensor("y").expect("y").to_vec::<f32>().expect("float32");
    let sums = ones.tensor("y1").expect("y1").to_vec::<f32>().expect("float32");
    assert_eq!(scaled[..3], scaled[3..], "each row by the scales of the model's weights");
    assert!((sums[0] - scaled[..3].iter().sum::<f32>()).abs() < 1e-6, "{sums:?} of {scaled:?}");
    assert_ne!(scaled, [1.0; 6], "the weights are not all one");

    let panicked = chain(&ask(vec![f32::NAN; 6]).expect_err("the layer panics"));
    assert!(panicked.contains("a layer of the user's"), "{panicked}");
    assert!(ask(vec![1.0; 6]).is_ok(), "a panic fails one prediction only");

    let before = load(PLAIN).expect("within the default limits");
    let mut tight = Limits::default();
    tight.tensor_elements = 32;
    set_limits(tight);
    let refused = chain(&load(PLAIN).expect_err("the image alone has 64 elements"));
    assert!(refused.contains("is over its limit of elements"), "{refused}");
    let image = Tensor::from_vec(&[1, 1, 8, 8], vec![0.5_f32; 64]).expect("64 numbers");
    assert!(before.predict(&Features::new().with("image", image)).is_ok(), "it keeps its limits");
}
