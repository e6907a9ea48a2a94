//! `linear` ops: matrix products. Weights are packed once, at load.
//!
//! Semantics: coremltools, `mil/ops/defs/iOS15/linear.py`.

use super::OpDef;

pub(crate) const OPS: &[OpDef] = &[];
