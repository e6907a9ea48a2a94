//! The ops: one MIL op = one [`OpDef`] entry in the file of its family (Apple's own op groups).
//!
//! An entry has a name, the opsets that define it, and `build`: a function that reads the op's parameters (checking
//! each) and returns the kernel that runs it. The list of ops, `docs/ops.md`, the command line's listing and the test
//! that every op has a case (`tests/conformance.rs`) are derived from [`FAMILIES`]. Neural-network layers are lowered to these ops
//! (`crate::nn`), so a kernel serves both.
//!
//! `docs/adding-an-op.md` shows how to add one.

mod builder;
mod run;
mod strided;
#[cfg(test)]
pub(crate) mod testing;

pub(crate) mod activation;
pub(crate) mod constexpr;
pub(crate) mod control_flow;
pub(crate) mod conv;
mod custom;
pub(crate) mod elementwise_binary;
pub(crate) mod elementwise_unary;
pub(crate) mod image_resizing;
pub(crate) mod integers;
pub(crate) mod linear;
pub(crate) mod list;
pub(crate) mod normalization;
pub(crate) mod pool;
pub(crate) mod quantization;
pub(crate) mod random;
pub(crate) mod recurrent;
pub(crate) mod reduction;
pub(crate) mod refusal;
pub(crate) mod scatter_gather;
pub(crate) mod slicing;
pub(crate) mod states;
pub(crate) mod tensor_operation;
pub(crate) mod tensor_transformation;
pub(crate) mod transformers;

pub(crate) use builder::{Axis, BlockInput, Input, Ints, OpBuilder, parameter, resolve_axis};
pub(crate) use run::{Read, Run, Slot, Source};

use crate::error::{KernelError, OpError};
use crate::ir::Opset;
use crate::value::Outputs;

/// What a plan runs for one op. Pure but for states and random numbers: the same inputs give the same outputs.
pub(crate) type Kernel = Box<dyn Fn(&mut Run<'_, '_>) -> Result<Outputs, KernelError> + Send + Sync>;

/// One MIL op.
#[derive(Clone, Copy)]
pub struct OpDef {
    /// The op's type in a program.
    pub name: &'static str,
    /// The first opset that has it, then those that redefine it.
    pub opsets: &'static [Opset],
    pub(crate) build: fn(&mut OpBuilder<'_>) -> Result<Kernel, OpError>,
}

impl OpDef {
    pub(crate) const fn new(
        name: &'static str,
        opsets: &'static [Opset],
        build: fn(&mut OpBuilder<'_>) -> Result<Kernel, OpError>,
    ) -> Self {
        Self { name, opsets, build }
    }
}

/// A group of ops, as Apple's documentation groups them.
#[derive(Clone, Copy)]
pub struct Family {
    /// `elementwise_unary`, `conv`, …
    pub name: &'static str,
    /// Its ops, in order of name.
    pub ops: &'static [OpDef],
}

/// Every op there is.
pub static FAMILIES: &[Family] = &[
    Family { name: "activation", ops: activation::OPS },
    Family { name: "control_flow", ops: control_flow::OPS },
    Family { name: "constexpr", ops: constexpr::OPS },
    Family { name: "conv", ops: conv::OPS },
    Family { name: "elementwise_binary", ops: elementwise_binary::OPS },
    Family { name: "elementwise_unary", ops: elementwise_unary::OPS },
    Family { name: "image_resizing", ops: image_resizing::OPS },
    Family { name: "linear", ops: linear::OPS },
    Family { name: "list", ops: list::OPS },
    Family { name: "normalization", ops: normalization::OPS },
    Family { name: "pool", ops: pool::OPS },
    Family { name: "quantization", ops: quantization::OPS },
    Family { name: "random", ops: random::OPS },
    Family { name: "recurrent", ops: recurrent::OPS },
    Family { name: "reduction", ops: reduction::OPS },
    Family { name: "scatter_gather", ops: scatter_gather::OPS },
    Family { name: "slicing", ops: slicing::OPS },
    Family { name: "states", ops: states::OPS },
    Family { name: "tensor_operation", ops: tensor_operation::OPS },
    Family { name: "tensor_transformation", ops: tensor_transformation::OPS },
    Family { name: "transformers", ops: transformers::OPS },
];

/// Ops that no kernel runs, because they say something of the program: the decoder takes them.
pub static DECODED: &[&str] = &["classify", "const"];

/// The op of that name, if `opset` has it.
pub(crate) fn find(name: &str, opset: Opset) -> Option<&'static OpDef> {
    use std::collections::HashMap;
    use std::sync::LazyLock;
    static BY_NAME: LazyLock<HashMap<&'static str, &'static OpDef>> = LazyLock::new(|| {
        let ops = FAMILIES.iter().flat_map(|f| f.ops).chain([
            &custom::CUSTOM,
            &integers::INTEGERS,
            &refusal::REFUSAL,
        ]);
        ops.map(|op| (op.name, op)).collect()
    });
    BY_NAME.get(name).copied().filter(|op| op.opsets.first().is_some_and(|&first| first <= opset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_op_has_one_entry_and_opsets_in_order() {
        let mut names = std::collections::HashSet::new();
        for family in FAMILIES {
            for op in family.ops {
                assert!(names.insert(op.name), "{} twice", op.name);
                assert!(!op.opsets.is_empty() && op.opsets.is_sorted(), "{}", op.name);
            }
            assert!(family.ops.is_sorted_by_key(|op| op.name), "{} is not in order", family.name);
        }
    }
}
