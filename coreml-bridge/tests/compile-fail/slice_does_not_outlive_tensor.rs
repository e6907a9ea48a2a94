//! A view of the elements does not outlive the tensor, nor its next change.

use coreml_bridge::Tensor;

fn dangling() -> usize {
    let mut tensor = Tensor::scalar(1.0_f32);
    let before = tensor.as_slice::<f32>().unwrap();
    tensor.make_mut::<f32>().unwrap()[0] = 2.0;
    before.len()
}

fn main() {}
