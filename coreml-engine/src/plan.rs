//! From a typed program to steps: every op built (and so validated), constants folded, dead ops dropped, the life of every value
//! known. After this nothing is looked up by name, and nothing panics.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use rten::BufferPool;
use smallvec::SmallVec;

use crate::Limits;
use crate::decode::DecodeError;
use crate::error::{KernelError, OpError};
use crate::ir::{Constant, Function, Op, Type, ValueId};
use crate::ops::{self, Kernel, OpBuilder, Read, Run, Slot, Source};
use crate::types::{TensorType, element_count};
use crate::value::{Value, ValueView};

/// Ops whose effect is not in their outputs, or whose outputs are not decided by their inputs.
const IMPURE: &[&str] = &["read_state", "write_state"];

/// Folding may not make more than this from nothing: the rest is computed at run time, under the limits of a run.
const FOLD_ELEMENTS: usize = 1 << 16;

/// Multiply-adds below which handing work to other threads costs more than it saves.
const PARALLEL_WORK: usize = 4 << 20;

/// One kernel with the places of its inputs and outputs.
struct Step {
    kernel: Kernel,
    kind: Arc<str>,
    output: Arc<str>,
    reads: Vec<Read>,
    /// Place and declared type of each output; no place if nobody reads it.
    writes: SmallVec<[(Option<usize>, TensorType); 1]>,
    /// Places that are free afterwards.
    frees: SmallVec<[usize; 2]>,
}

/// An input, output or state of a plan.
pub(crate) struct Port<P> {
    pub(crate) name: String,
    pub(crate) place: P,
    pub(crate) ty: TensorType,
}

/// A program ready to run. Immutable: any number of sessions share it.
pub(crate) struct Plan {
    steps: Vec<Step>,
    constants: Vec<Value>,
    slots: usize,
    pub(crate) inputs: Vec<Port<Option<usize>>>,
    pub(crate) outputs: Vec<Port<Source>>,
    pub(crate) states: Vec<Port<()>>,
    work: usize,
    limits: Limits,
}

/// An op failed during a prediction.
pub(crate) struct StepError {
    pub(crate) op: String,
    pub(crate) output: String,
    pub(crate) source: KernelError,
}

struct Compiler<'a> {
    function: Function,
    limits: &'a Limits,
    pool: BufferPool,
    states: HashMap<ValueId, usize>,
    constants: Vec<Value>,
    constant_places: HashMap<ValueId, usize>,
}

impl Plan {
    /// Builds every op of `function`.
    pub(crate) fn compile(
        mut function: Function,
        inputs: Vec<(String, ValueId)>,
        outputs: Vec<(String, ValueId)>,
        limits: &Limits,
    ) -> Result<Self, DecodeError> {
        let ops = std::mem::take(&mut function.body.ops);
        let mut states = HashMap::new();
        let mut state_ports = Vec::new();
        for (name, id) in &inputs {
            if let Type::State(ty) = &function.value(*id).ty {
                let shape = ty.fixed_shape().unwrap_or_default();
                if element_count(&shape).is_none_or(|n| n > limits.tensor_elements) {
                    return Err(DecodeError::corrupt(
                        format!("state `{name}`"),
                        format!("{ty} is over the limit"),
                    ));
                }
                states.insert(*id, state_ports.len());
                state_ports.push(Port { name: name.clone(), place: (), ty: ty.clone() });
            }
        }
        let mut compiler = Compiler {
            function,
            limits,
            pool: BufferPool::new(),
            states,
            constants: Vec::new(),
            constant_places: HashMap::new(),
        };
        let live = compiler.live_ops(&ops, &outputs)?;
        let mut built = Vec::new();
        let mut work = 0_usize;
        for (op, _) in ops.iter().zip(live).filter(|(_, live)| *live) {
            if let Some((kernel, reads)) = compiler.build(op)? {
                work = work.saturating_add(compiler.work(op));
                built.push((op, kernel, reads));
            }
        }
        compiler.schedule(built, inputs, outputs, state_ports, work)
    }

    /// Whether a prediction is worth more than one thread.
    pub(crate) fn is_parallel(&self) -> bool {
        self.work >= PARALLEL_WORK
    }

    /// Number of steps and multiply-adds of one prediction, as estimated from the declared shapes.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.steps.len(), self.work)
    }

    /// Bytes that the plan keeps beside packed weights.
    pub(crate) fn constant_bytes(&self) -> usize {
        self.constants.iter().map(|v| v.shape().iter().product::<usize>() * 4).sum()
    }

    /// Runs all steps, then gives the outputs to `collect`.
    pub(crate) fn run<'v, R>(
        &'v self,
        inputs: impl IntoIterator<Item = ValueView<'v>>,
        states: &mut [Value],
        pool: &BufferPool,
        collect: impl for<'s> FnOnce(&'s dyn Fn(Source) -> Option<ValueView<'s>>) -> R,
    ) -> Result<R, StepError> {
        let mut slots: Vec<Slot<'v>> = Vec::new();
        slots.resize_with(self.slots, Slot::default);
        for (port, view) in self.inputs.iter().zip(inputs) {
            if let Some(place) = port.place {
                slots[place] = Slot::Borrowed(view);
            }
        }
        let mut live = 0;
        let result = self.steps.iter().try_for_each(|step| {
            self.step(step, &mut slots, &mut live, states, pool).map_err(|source| StepError {
                op: step.kind.to_string(),
                output: step.output.to_string(),
                source,
            })
        });
        let collected = result.map(|()| {
            collect(&|source| match source {
                Source::Constant(i) => self.constants.get(i).map(Value::view),
                Source::Slot(i) => match slots.get(i) {
                    Some(Slot::Owned(value)) => Some(value.view()),
                    Some(Slot::Borrowed(view)) => Some(view.clone()),
                    Some(Slot::Empty) | None => None,
                },
            })
        });
        for slot in slots {
            recycle(slot, pool);
        }
        collected
    }

    fn step(
        &self,
        step: &Step,
        slots: &mut [Slot<'_>],
        live: &mut usize,
        states: &mut [Value],
        pool: &BufferPool,
    ) -> Result<(), KernelError> {
        let before = live_elements(slots, &step.frees);
        let mut run =
            Run { slots, constants: &self.constants, reads: &step.reads, states, pool, limits: &self.limits };
        let outputs = (step.kernel)(&mut run)?;
        if outputs.len() != step.writes.len() {
            return Err(KernelError::value(format!(
                "{} outputs where {} are declared",
                outputs.len(),
                step.writes.len()
            )));
        }
        *live = live.saturating_sub(before);
        for &place in &step.frees {
            recycle(std::mem::take(&mut slots[place]), pool);
        }
        for (value, (place, ty)) in outputs.into_iter().zip(&step.writes) {
            check_type(&value, ty)?;
            let Some(place) = place else {
                value.recycle(pool);
                continue;
            };
            *live = live.saturating_add(element_count(value.shape()).unwrap_or(usize::MAX));
            if *live > self.limits.total_elements {
                let limit = self.limits.total_elements;
                return Err(KernelError::TooLarge { shape: value.shape().to_vec(), limit });
            }
            slots[*place] = Slot::Owned(value);
        }
        Ok(())
    }
}

/// Elements of the values in those places that the plan owns.
fn live_elements(slots: &[Slot<'_>], places: &[usize]) -> usize {
    let count = |&place: &usize| match &slots[place] {
        Slot::Owned(value) => element_count(value.shape()).unwrap_or(0),
        Slot::Borrowed(_) | Slot::Empty => 0,
    };
    places.iter().map(count).sum()
}

fn recycle(slot: Slot<'_>, pool: &BufferPool) {
    if let Slot::Owned(value) = slot {
        value.recycle(pool);
    }
}

/// A kernel must make what the program declares; anything else would be a wrong answer further down.
fn check_type(value: &Value, ty: &TensorType) -> Result<(), KernelError> {
    if value.is_float() == ty.dtype.is_float() && ty.admits(value.shape()) {
        return Ok(());
    }
    let kind = if value.is_float() { "floats" } else { "integers" };
    Err(KernelError::Type { expected: ty.to_string(), found: format!("{kind} {:?}", value.shape()) })
}

impl Compiler<'_> {
    fn op_error(&self, op: &Op, source: OpError) -> DecodeError {
        let output = op.outputs.first().map(|id| self.function.value(*id).name.to_string());
        DecodeError::Op { op: op.kind.to_string(), output: output.unwrap_or_default(), source }
    }

    /// Which ops reach an output or a state. Every op must exist, dead or alive.
    fn live_ops(&self, ops: &[Op], outputs: &[(String, ValueId)]) -> Result<Vec<bool>, DecodeError> {
        let mut wanted: HashSet<ValueId> = outputs.iter().map(|(_, id)| *id).collect();
        let mut live = vec![false; ops.len()];
        for (op, live) in ops.iter().zip(&mut live).rev() {
            let opset = self.function.opset;
            if ops::find(&op.kind, opset).is_none() {
                return Err(self.op_error(op, OpError::Unknown { opset: opset.name().into() }));
            }
            if op.outputs.iter().any(|id| wanted.contains(id)) || &*op.kind == "write_state" {
                *live = true;
                wanted.extend(op.arguments.iter().flat_map(|(_, argument)| argument.ids()));
            }
        }
        Ok(live)
    }

    /// Builds one op; `None` if it could be folded into constants.
    fn build(&mut self, op: &Op) -> Result<Option<(Kernel, Vec<ValueId>)>, DecodeError> {
        let def = ops::find(&op.kind, self.function.opset).ok_or_else(|| {
            self.op_error(op, OpError::Unknown { opset: self.function.opset.name().into() })
        })?;
        if !op.blocks.is_empty() {
            return Err(self.op_error(op, OpError::Invalid("it does not take blocks".into())));
        }
        let mut builder = OpBuilder::new(&self.function, op, self.limits);
        let kernel = (def.build)(&mut builder)
            .and_then(|kernel| builder.finish().map(|reads| (kernel, reads)))
            .map_err(|source| self.op_error(op, source))?;
        let (kernel, reads) = kernel;
        if self.folds(op, &reads) {
            self.fold(op, &kernel, &reads).map_err(|source| self.op_error(op, source))?;
            return Ok(None);
        }
        Ok(Some((kernel, reads)))
    }

    fn folds(&self, op: &Op, reads: &[ValueId]) -> bool {
        let elements = |id: &ValueId| {
            self.function.value(*id).ty.tensor().fixed_shape().and_then(|shape| element_count(&shape))
        };
        let sum = |ids: &[ValueId]| ids.iter().try_fold(0_usize, |n, id| n.checked_add(elements(id)?));
        let known = reads.iter().all(|id| self.function.value(*id).constant.is_some());
        known
            && !IMPURE.contains(&&*op.kind)
            && match (sum(&op.outputs), sum(reads)) {
                (Some(made), Some(read)) => made <= read.saturating_mul(4).max(FOLD_ELEMENTS),
                _ => false,
            }
    }

    fn fold(&mut self, op: &Op, kernel: &Kernel, reads: &[ValueId]) -> Result<(), OpError> {
        let values = reads
            .iter()
            .map(|id| match &self.function.value(*id).constant {
                Some(constant) => constant.to_value(),
                None => Err(OpError::Invalid("folding a value that is not constant".into())),
            })
            .collect::<Result<Vec<_>, _>>()?;
        let reads: Vec<_> =
            (0..values.len()).map(|i| Read { source: Source::Constant(i), last: false }).collect();
        let mut run = Run {
            slots: &mut [],
            constants: &values,
            reads: &reads,
            states: &mut [],
            pool: &self.pool,
            limits: self.limits,
        };
        let outputs = kernel(&mut run).map_err(OpError::Fold)?;
        if outputs.len() != op.outputs.len() {
            return Err(OpError::Invalid(format!(
                "{} outputs where {} are declared",
                outputs.len(),
                op.outputs.len()
            )));
        }
        for (id, value) in op.outputs.iter().zip(outputs) {
            let ty = self.function.value(*id).ty.tensor().clone();
            check_type(&value, &ty).map_err(OpError::Fold)?;
            self.function.values[id.index()].constant = Some(Arc::new(Constant::from_value(ty.dtype, value)));
        }
        Ok(())
    }

    /// Multiply-adds of an op, from its declared shapes: outputs times the length of the inner product, if it has a weight.
    fn work(&self, op: &Op) -> usize {
        let count = |id: &ValueId| {
            self.function.value(*id).ty.tensor().fixed_shape().and_then(|s| element_count(&s)).unwrap_or(1)
        };
        let made: usize = op.outputs.iter().map(count).sum();
        let find = |name: &str| op.arguments.iter().find(|(key, _)| &**key == name);
        let inner = match (find("weight"), &*op.kind) {
            (Some((_, weight)), _) => weight.ids().first().and_then(|id| {
                let shape = self.function.value(*id).ty.tensor().fixed_shape()?;
                element_count(shape.get(1..)?)
            }),
            (None, "matmul") => find("x").and_then(|(_, x)| {
                self.function.value(*x.ids().first()?).ty.tensor().fixed_shape()?.last().copied()
            }),
            _ => None,
        };
        made.saturating_mul(inner.unwrap_or(1).max(1))
    }

    /// The place of a constant that a kernel reads at run time.
    fn constant(&mut self, id: ValueId) -> Result<Option<usize>, OpError> {
        if let Some(&place) = self.constant_places.get(&id) {
            return Ok(Some(place));
        }
        let Some(constant) = &self.function.value(id).constant else { return Ok(None) };
        self.constants.push(constant.to_value()?);
        let place = self.constants.len() - 1;
        self.constant_places.insert(id, place);
        Ok(Some(place))
    }

    /// Gives every value a place, and frees it after its last use.
    fn schedule(
        mut self,
        built: Vec<(&Op, Kernel, Vec<ValueId>)>,
        inputs: Vec<(String, ValueId)>,
        outputs: Vec<(String, ValueId)>,
        states: Vec<Port<()>>,
        work: usize,
    ) -> Result<Plan, DecodeError> {
        const FOREVER: usize = usize::MAX;
        let mut last_use: HashMap<ValueId, usize> = HashMap::new();
        for (step, (_, _, reads)) in built.iter().enumerate() {
            last_use.extend(reads.iter().map(|id| (*id, step)));
        }
        last_use.extend(outputs.iter().map(|(_, id)| (*id, FOREVER)));

        let mut places: HashMap<ValueId, usize> = HashMap::new();
        let mut free: Vec<usize> = Vec::new();
        let mut slots = 0;
        let mut place_of = |id: ValueId, places: &mut HashMap<ValueId, usize>, free: &mut Vec<usize>| {
            let place = free.pop().unwrap_or_else(|| {
                slots += 1;
                slots - 1
            });
            places.insert(id, place);
            place
        };
        let mut input_ports = Vec::new();
        for (name, id) in inputs {
            if self.states.contains_key(&id) {
                continue;
            }
            let place = last_use.contains_key(&id).then(|| place_of(id, &mut places, &mut free));
            let ty = self.function.value(id).ty.tensor().clone();
            input_ports.push(Port { name, place, ty });
        }

        let mut steps = Vec::with_capacity(built.len());
        for (index, (op, kernel, ids)) in built.into_iter().enumerate() {
            let mut reads = Vec::with_capacity(ids.len());
            let mut frees = SmallVec::new();
            for (i, id) in ids.iter().enumerate() {
                if let Some(&state) = self.states.get(id) {
                    reads.push(Read { source: Source::Slot(state), last: false });
                    continue;
                }
                let source = match self.constant(*id).map_err(|source| self.op_error(op, source))? {
                    Some(place) => Source::Constant(place),
                    None => Source::Slot(*places.get(id).ok_or_else(|| {
                        self.op_error(op, OpError::Invalid("a value is read before it is made".into()))
                    })?),
                };
                let dies = last_use.get(id) == Some(&index);
                let once = ids.iter().filter(|other| *other == id).count() == 1;
                let last = dies && once;
                if dies
                    && !ids[..i].contains(id)
                    && let Source::Slot(place) = source
                {
                    frees.push(place);
                }
                reads.push(Read { source, last });
            }
            free.extend(frees.iter().copied());
            let writes = op
                .outputs
                .iter()
                .map(|id| {
                    let used = last_use.contains_key(id);
                    let place = used.then(|| place_of(*id, &mut places, &mut free));
                    (place, self.function.value(*id).ty.tensor().clone())
                })
                .collect();
            let output =
                op.outputs.first().map_or_else(|| "".into(), |id| Arc::clone(&self.function.value(*id).name));
            steps.push(Step { kernel, kind: Arc::clone(&op.kind), output, reads, writes, frees });
        }

        let mut output_ports = Vec::new();
        for (name, id) in outputs {
            let ty = self.function.value(id).ty.tensor().clone();
            let place =
                match self.constant(id).map_err(|e| DecodeError::corrupt(format!("output `{name}`"), e))? {
                    Some(place) => Source::Constant(place),
                    None => {
                        Source::Slot(*places.get(&id).ok_or_else(|| {
                            DecodeError::corrupt(format!("output `{name}`"), "no op makes it")
                        })?)
                    }
                };
            output_ports.push(Port { name, place, ty });
        }
        Ok(Plan {
            steps,
            constants: self.constants,
            slots,
            inputs: input_ports,
            outputs: output_ports,
            states,
            work,
            limits: self.limits.clone(),
        })
    }
}
