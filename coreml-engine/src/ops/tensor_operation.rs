//! `tensor_operation` ops.

use super::OpDef;

pub(crate) const OPS: &[OpDef] = &[];
