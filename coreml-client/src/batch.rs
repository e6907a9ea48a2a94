//! Several requests in one prediction: inputs joined along the first axis, outputs parted along it.

use coreml_bridge::{Features, Tensor, Value};

use crate::InferenceRequest;

/// Whether two requests can be joined: tensors only, of the same names, types and shapes, the same outputs wanted, and
/// no procedures.
pub(crate) fn joins(first: &InferenceRequest, other: &InferenceRequest) -> bool {
    // A procedure may do anything with its inputs.
    first.procedure.is_none()
        && other.procedure.is_none()
        && first.wanted == other.wanted
        && first.features.len() == other.features.len()
        && first.features.iter().all(|(name, value)| match (value, other.features.get(name)) {
            (Value::Tensor(a), Some(Value::Tensor(b))) => {
                a.dtype() == b.dtype() && a.shape() == b.shape() && a.rank() > 0 && a.shape()[0] > 0
            }
            _ => false,
        })
}

/// The inputs of all members, one after the other along the first axis. `None` if that cannot be done.
pub(crate) fn join(members: &[&Features]) -> Option<Features> {
    let mut joined = Features::new();
    for (name, value) in members.first()?.iter() {
        let Value::Tensor(first) = value else { return None };
        let mut bytes = Vec::with_capacity(first.byte_len().checked_mul(members.len())?);
        for member in members {
            let tensor = member.tensor(name).ok()?;
            bytes.extend_from_slice(tensor.to_dense().as_bytes().ok()?);
        }
        let mut shape = first.shape().to_vec();
        shape[0] = shape[0].checked_mul(members.len())?;
        joined.insert(name, Tensor::from_bytes(first.dtype(), &shape, None, &bytes).ok()?);
    }
    Some(joined)
}

/// Rows of each member along the first axis; `None` unless all inputs agree.
pub(crate) fn rows(member: &Features) -> Option<usize> {
    let mut rows = member.iter().map(|(_, value)| match value {
        Value::Tensor(tensor) => tensor.shape().first().copied(),
        _ => None,
    });
    let first = rows.next()??;
    rows.all(|other| other == Some(first)).then_some(first)
}

/// Each member's share of the outputs. `None` if any output is not as long as the batch: then its first axis is another.
pub(crate) fn part(outputs: &Features, members: usize, rows: usize) -> Option<Vec<Features>> {
    let mut parts = vec![Features::new(); members];
    for (name, value) in outputs.iter() {
        let Value::Tensor(tensor) = value else { return None };
        if tensor.shape().first() != Some(&members.checked_mul(rows)?) {
            return None;
        }
        for (index, part) in parts.iter_mut().enumerate() {
            let share = tensor.narrow(0, index * rows..(index + 1) * rows).ok()?;
            // A view would keep the whole batch alive for one member.
            let share =
                Tensor::from_bytes(share.dtype(), share.shape(), None, share.to_dense().as_bytes().ok()?);
            part.insert(name, share.ok()?);
        }
    }
    Some(parts)
}
