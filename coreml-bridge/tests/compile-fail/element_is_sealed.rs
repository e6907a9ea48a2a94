//! Nobody adds an element type that the table does not know.

use coreml_bridge::Tensor;

fn sixteen_bits() -> Tensor {
    Tensor::scalar(1_u16)
}

fn main() {}
