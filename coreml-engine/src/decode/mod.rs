//! From the protobuf specification to the typed program. Nothing above this module sees protobuf.

pub(crate) mod mil;

use std::fmt;

use crate::error::{LoadError, OpError};

/// Blocks may hold ops that hold blocks; deeper than this is not a program but an attack on the stack.
pub(crate) const MAX_DEPTH: usize = 32;

/// A decoding error that does not yet know the model's path.
#[derive(Debug)]
pub(crate) enum DecodeError {
    Corrupt { at: String, reason: String },
    Unsupported(String),
    Op { op: String, output: String, source: OpError },
}

impl DecodeError {
    pub(crate) fn corrupt(at: impl Into<String>, reason: impl fmt::Display) -> Self {
        Self::Corrupt { at: at.into(), reason: reason.to_string() }
    }

    pub(crate) fn of(self, model: &str) -> LoadError {
        let model = model.to_owned();
        match self {
            Self::Corrupt { at, reason } => LoadError::Corrupt { model, at, reason },
            Self::Unsupported(what) => LoadError::Unsupported { model, what },
            Self::Op { op, output, source } => LoadError::Op { model, op, output, source },
        }
    }
}
