//! What stands where a network's branch cannot run: it fails if it is taken. No file can name the op: the lowering of layers does.

use super::{Kernel, OpBuilder, OpDef};
use crate::error::{KernelError, OpError};
use crate::ir::Opset::Ios13;

/// Its name is none that the decoder of programs lets pass.
pub(crate) const REFUSAL: OpDef = OpDef::new("#refusal", &[Ios13], refusal);

fn refusal(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let reason = op.string("reason", "")?;
    Ok(Box::new(move |_| Err(KernelError::value(reason.as_str()))))
}
