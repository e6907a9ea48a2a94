//! `scatter_gather` ops.

use super::OpDef;

pub(crate) const OPS: &[OpDef] = &[];
