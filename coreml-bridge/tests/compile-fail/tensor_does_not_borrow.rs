//! A tensor owns its memory: no borrowed slice gets in without a copy.

use coreml_bridge::Tensor;

fn borrowed(numbers: &[f32]) -> Tensor {
    Tensor::from_vec(&[numbers.len()], numbers).unwrap()
}

fn main() {}
