//! `elementwise_binary` ops.

use super::OpDef;

pub(crate) const OPS: &[OpDef] = &[];
