//! `states` ops: the memory of a stateful model.
//!
//! Semantics: coremltools, `iOS18/states.py`.

use super::strided::take_dense;
use super::{Kernel, OpBuilder, OpDef};
use crate::error::OpError;
use crate::ir::Opset::Ios18;
use crate::value::{Outputs, one};

pub(crate) const OPS: &[OpDef] =
    &[OpDef::new("read_state", &[Ios18], read_state), OpDef::new("write_state", &[Ios18], write_state)];

/// A copy of the state, so that a later write does not change what was read.
fn read_state(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let input = op.state("input")?;
    Ok(Box::new(move |run| {
        let pool = run.pool();
        let value = run.state(input.slot)?.view().to_owned_in(pool);
        Ok(one(value))
    }))
}

fn write_state(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let state = op.state("input")?;
    let data = op.input("data")?;
    if state.ty != data.ty {
        return Err(OpError::Invalid(format!("a state of type {} cannot hold {}", state.ty, data.ty)));
    }
    Ok(Box::new(move |run| {
        let value = take_dense(run, data.slot)?;
        let old = std::mem::replace(run.state(state.slot)?, value);
        run.recycle(old);
        Ok(Outputs::new())
    }))
}
