//! From a typed program to steps: every op built (and so validated), constants folded, dead ops dropped, the life of every value
//! known. After this nothing is looked up by name, and nothing panics.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use rten::BufferPool;
use smallvec::SmallVec;

use crate::Limits;
use crate::decode::DecodeError;
use crate::error::{KernelError, OpError};
use crate::ir::{Block, Constant, Function, Op, Type, ValueId};
use crate::ops::{self, Kernel, OpBuilder, Read, Run, Slot, Source};
use crate::structure;
use crate::types::{TensorType, element_count};
use crate::value::{Outputs, Value, ValueView};

/// Ops whose effect is not in their outputs, or whose outputs are not decided by their inputs.
const IMPURE: &[&str] = &[
    "#custom",
    "#refusal",
    "random_bernoulli",
    "random_categorical",
    "random_normal",
    "random_uniform",
    "read_state",
    "write_state",
];

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

/// Steps in order, and how many places their values need. The body of a function, or of a block inside one.
struct Steps {
    steps: Vec<Step>,
    slots: usize,
}

/// A program ready to run. Immutable: any number of sessions share it.
pub(crate) struct Plan {
    steps: Steps,
    constants: Vec<Value>,
    pub(crate) inputs: Vec<Port<Option<usize>>>,
    pub(crate) outputs: Vec<Port<Source>>,
    pub(crate) states: Vec<Port<()>>,
    /// Steps, with those of blocks.
    size: usize,
    work: usize,
    limits: Limits,
}

/// A block of an op, ready to run: it shares the constants and the states of the plan, and reads values of the blocks
/// around it, which it borrows.
pub(crate) struct Body {
    steps: Steps,
    /// Place of each input of the block, if anything reads it, and its declared type.
    inputs: Vec<(Option<usize>, TensorType)>,
    /// Place of each captured value, in the order of the reads of the op that the block belongs to.
    captured: Vec<usize>,
    outputs: Vec<Source>,
    size: usize,
    work: usize,
}

/// What one prediction has used of its [`Limits`], all blocks together.
#[derive(Debug, Default)]
pub(crate) struct Used {
    /// Elements of the values that are alive.
    pub(crate) live: usize,
    /// Iterations of all loops.
    pub(crate) iterations: usize,
}

/// An op failed during a prediction.
#[derive(Debug)]
pub(crate) struct StepError {
    pub(crate) op: String,
    pub(crate) output: String,
    pub(crate) source: KernelError,
}

impl From<StepError> for KernelError {
    /// As the error of the op whose block the step is in.
    fn from(error: StepError) -> Self {
        Self::Inner { op: error.op, output: error.output, source: Box::new(error.source) }
    }
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
        let mut block = std::mem::take(&mut function.body);
        block.inputs = inputs.iter().map(|(_, id)| *id).collect();
        block.outputs = outputs.iter().map(|(_, id)| *id).collect();
        let mut states = HashMap::new();
        let mut state_ports = Vec::new();
        let mut state_elements = 0_usize;
        for (name, id) in inputs.iter().chain(&outputs) {
            if let Type::List(_) = &function.value(*id).ty {
                return Err(DecodeError::Unsupported(format!(
                    "`{name}`, a list that enters or leaves a function"
                )));
            }
        }
        for (name, id) in &inputs {
            if let Type::State(ty) = &function.value(*id).ty {
                let shape = ty.fixed_shape().unwrap_or_default();
                if element_count(&shape).is_none_or(|n| n > limits.tensor_elements) {
                    return Err(DecodeError::corrupt(
                        format!("state `{name}`"),
                        format!("{ty} is over the limit"),
                    ));
                }
                // A state's memory is asked for by whoever makes one, and nothing is counted then.
                state_elements = state_elements.saturating_add(element_count(&shape).unwrap_or(usize::MAX));
                if state_elements > limits.total_elements {
                    return Err(DecodeError::corrupt(
                        format!("state `{name}`"),
                        format!(
                            "the states together are over the limit of {} elements",
                            limits.total_elements
                        ),
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
        let block = compiler.block(&block)?;
        if let Some(&id) = block.captured.first() {
            return Err(compiler.unmade(id));
        }
        let ty = |id: ValueId| compiler.function.value(id).ty.tensor().clone();
        let inputs = inputs.into_iter().zip(&block.inputs);
        let inputs = inputs
            .filter(|((_, id), _)| !compiler.states.contains_key(id))
            .map(|((name, id), &place)| Port { name, place, ty: ty(id) })
            .collect();
        let outputs = outputs.into_iter().zip(&block.outputs);
        let outputs = outputs.map(|((name, id), &place)| Port { name, place, ty: ty(id) }).collect();
        Ok(Self {
            steps: block.steps,
            constants: compiler.constants,
            inputs,
            outputs,
            states: state_ports,
            size: block.size,
            work: block.work,
            limits: limits.clone(),
        })
    }

    /// Whether a prediction is worth more than one thread.
    pub(crate) fn is_parallel(&self) -> bool {
        self.work >= PARALLEL_WORK
    }

    /// Number of steps (those of blocks counted once) and multiply-adds of one prediction, as estimated from the declared
    /// shapes.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.size, self.work)
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
        let mut slots = self.steps.empty_slots();
        for (port, view) in self.inputs.iter().zip(inputs) {
            if let Some(place) = port.place {
                slots[place] = Slot::Borrowed(view);
            }
        }
        let context = &mut Context {
            constants: &self.constants,
            states,
            pool,
            limits: &self.limits,
            used: &mut Used::default(),
        };
        let collected = self.steps.run(&mut slots, context).map(|()| {
            collect(&|source| match source {
                Source::Constant(i) => self.constants.get(i).map(Value::view),
                Source::Slot(i) => slots.get(i).and_then(Slot::view),
            })
        });
        for slot in slots {
            recycle(slot, pool);
        }
        collected
    }
}

/// What all steps of a prediction share.
pub(crate) struct Context<'r> {
    pub(crate) constants: &'r [Value],
    pub(crate) states: &'r mut [Value],
    pub(crate) pool: &'r BufferPool,
    pub(crate) limits: &'r Limits,
    pub(crate) used: &'r mut Used,
}

impl Steps {
    fn empty_slots<'v>(&self) -> Vec<Slot<'v>> {
        let mut slots = Vec::new();
        slots.resize_with(self.slots, Slot::default);
        slots
    }

    fn run(&self, slots: &mut [Slot<'_>], context: &mut Context<'_>) -> Result<(), StepError> {
        self.steps.iter().try_for_each(|step| {
            step.run(slots, context).map_err(|source| StepError {
                op: step.kind.to_string(),
                output: step.output.to_string(),
                source,
            })
        })
    }
}

impl Step {
    fn run(&self, slots: &mut [Slot<'_>], context: &mut Context<'_>) -> Result<(), KernelError> {
        let before = live_elements(slots, &self.frees);
        let mut run = Run {
            slots,
            constants: context.constants,
            reads: &self.reads,
            states: context.states,
            pool: context.pool,
            limits: context.limits,
            used: context.used,
        };
        let outputs = (self.kernel)(&mut run)?;
        if outputs.len() != self.writes.len() {
            return Err(KernelError::value(format!(
                "{} outputs where {} are declared",
                outputs.len(),
                self.writes.len()
            )));
        }
        context.used.live = context.used.live.saturating_sub(before);
        for &place in &self.frees {
            recycle(std::mem::take(&mut slots[place]), context.pool);
        }
        for (value, (place, ty)) in outputs.into_iter().zip(&self.writes) {
            check_type(&value, ty)?;
            let Some(place) = place else {
                value.recycle(context.pool);
                continue;
            };
            context.used.add(value.shape(), context.limits)?;
            slots[*place] = Slot::Owned(value);
        }
        Ok(())
    }
}

impl Used {
    /// Counts a value of `shape` as alive, if the limits allow one more.
    pub(crate) fn add(&mut self, shape: &[usize], limits: &Limits) -> Result<(), KernelError> {
        self.live = self.live.saturating_add(element_count(shape).unwrap_or(usize::MAX));
        if self.live > limits.total_elements {
            return Err(KernelError::TooLarge { shape: shape.to_vec(), limit: limits.total_elements });
        }
        Ok(())
    }
}

impl Body {
    /// Runs the block and returns its outputs, which are not counted as alive any more. `inputs` are; those that are owned
    /// are freed after their last use.
    pub(crate) fn run<'i, 'c>(
        &self,
        inputs: impl IntoIterator<Item = Slot<'i>>,
        captured: &[ValueView<'c>],
        context: &mut Context<'_>,
    ) -> Result<Outputs, KernelError> {
        let mut slots = self.steps.empty_slots();
        for ((place, ty), slot) in self.inputs.iter().zip(inputs) {
            if let Some(view) = slot.view() {
                check_view(view.is_float(), view.shape(), ty)?;
            }
            match place {
                Some(place) => slots[*place] = slot,
                None => {
                    if let Slot::Owned(value) = &slot {
                        context.used.live = context.used.live.saturating_sub(count(value));
                    }
                    recycle(slot, context.pool);
                }
            }
        }
        for (&place, view) in self.captured.iter().zip(captured) {
            slots[place] = Slot::Borrowed(view.clone());
        }
        let result = self.steps.run(&mut slots, context).map_err(KernelError::from);
        let outputs = result.and_then(|()| self.take_outputs(&mut slots, context));
        for slot in slots {
            if let Slot::Owned(value) = &slot {
                context.used.live = context.used.live.saturating_sub(count(value));
            }
            recycle(slot, context.pool);
        }
        outputs
    }

    /// Moves what the block made out of its places, and copies what it only passes on.
    fn take_outputs(
        &self,
        slots: &mut [Slot<'_>],
        context: &mut Context<'_>,
    ) -> Result<Outputs, KernelError> {
        let unmade = || KernelError::value("a value is read before it is made");
        let mut outputs = Outputs::new();
        for (i, source) in self.outputs.iter().enumerate() {
            let again = self.outputs[i + 1..].contains(source);
            let value = match *source {
                Source::Constant(place) => {
                    context.constants.get(place).ok_or_else(unmade)?.view().to_owned_in(context.pool)
                }
                Source::Slot(place) => match slots.get_mut(place) {
                    Some(slot @ Slot::Owned(_)) if !again => match std::mem::take(slot) {
                        Slot::Owned(value) => {
                            context.used.live = context.used.live.saturating_sub(count(&value));
                            value
                        }
                        Slot::Borrowed(_) | Slot::Empty => return Err(unmade()),
                    },
                    Some(slot) => slot.view().ok_or_else(unmade)?.to_owned_in(context.pool),
                    None => return Err(unmade()),
                },
            };
            outputs.push(value);
        }
        Ok(outputs)
    }
}

fn count(value: &Value) -> usize {
    element_count(value.shape()).unwrap_or(0)
}

/// Elements of the values in those places that the plan owns.
fn live_elements(slots: &[Slot<'_>], places: &[usize]) -> usize {
    let owned = |&place: &usize| match &slots[place] {
        Slot::Owned(value) => count(value),
        Slot::Borrowed(_) | Slot::Empty => 0,
    };
    places.iter().map(owned).sum()
}

fn recycle(slot: Slot<'_>, pool: &BufferPool) {
    if let Slot::Owned(value) = slot {
        value.recycle(pool);
    }
}

/// A kernel must make what the program declares; anything else would be a wrong answer further down.
fn check_type(value: &Value, ty: &TensorType) -> Result<(), KernelError> {
    check_view(value.is_float(), value.shape(), ty)
}

fn check_view(is_float: bool, shape: &[usize], ty: &TensorType) -> Result<(), KernelError> {
    if is_float == ty.dtype.is_float() && ty.admits(shape) {
        return Ok(());
    }
    let kind = if is_float { "floats" } else { "integers" };
    Err(KernelError::Type { expected: ty.to_string(), found: format!("{kind} {shape:?}") })
}

/// What a block becomes.
struct Compiled {
    steps: Steps,
    inputs: Vec<Option<usize>>,
    /// Values of the blocks around it that it reads, and their places.
    captured: Vec<ValueId>,
    captured_places: Vec<usize>,
    outputs: Vec<Source>,
    size: usize,
    work: usize,
}

impl Compiler<'_> {
    fn op_error(&self, op: &Op, source: OpError) -> DecodeError {
        let output = op.outputs.first().map(|id| self.function.value(*id).name.to_string());
        DecodeError::Op { op: op.kind.to_string(), output: output.unwrap_or_default(), source }
    }

    /// A value that no op makes before it is read.
    fn unmade(&self, id: ValueId) -> DecodeError {
        let name = &self.function.value(id).name;
        DecodeError::corrupt(format!("value `{name}`"), "it is read before it is made, or never made")
    }

    /// Builds the ops of a block and gives their values places.
    fn block(&mut self, block: &Block) -> Result<Compiled, DecodeError> {
        let live = self.live_ops(&block.ops, &block.outputs)?;
        let mut built = Vec::new();
        let (mut size, mut work) = (0_usize, 0_usize);
        for (op, _) in block.ops.iter().zip(live).filter(|(_, live)| *live) {
            let Built { kernel, reads, size: inner_size, work: inner_work } = match self.build(op)? {
                Some(built) => built,
                None => continue,
            };
            size = size.saturating_add(inner_size).saturating_add(1);
            work = work.saturating_add(self.work(op)).saturating_add(inner_work);
            built.push((op, kernel, reads));
        }
        self.schedule(block, built, size, work)
    }

    /// A block of an op, and the values it captures.
    fn body(&mut self, block: &Block) -> Result<(Body, Vec<ValueId>), DecodeError> {
        if let Some(id) =
            block.outputs.iter().find(|id| matches!(self.function.value(**id).ty, Type::State(_)))
        {
            let name = &self.function.value(*id).name;
            return Err(DecodeError::corrupt(format!("value `{name}`"), "a state that leaves a block"));
        }
        let Compiled { steps, inputs, captured, captured_places, outputs, size, work } = self.block(block)?;
        let types = block.inputs.iter().map(|id| self.function.value(*id).ty.run_time());
        let inputs = inputs.into_iter().zip(types).collect();
        Ok((Body { steps, inputs, captured: captured_places, outputs, size, work }, captured))
    }

    /// Which ops reach an output or a state. Every op must exist, dead or alive.
    fn live_ops(&self, ops: &[Op], outputs: &[ValueId]) -> Result<Vec<bool>, DecodeError> {
        let mut wanted: HashSet<ValueId> = outputs.iter().copied().collect();
        let mut live = vec![false; ops.len()];
        for (op, live) in ops.iter().zip(&mut live).rev() {
            self.all_exist(op)?;
            if op.outputs.iter().any(|id| wanted.contains(id)) || writes_state(op) {
                *live = true;
                op.for_each_read(&mut |id| {
                    wanted.insert(id);
                });
            }
        }
        Ok(live)
    }

    fn all_exist(&self, op: &Op) -> Result<(), DecodeError> {
        let opset = self.function.opset;
        if ops::find(&op.kind, opset).is_none() {
            return Err(self.op_error(op, OpError::Unknown { opset: opset.name().into() }));
        }
        // The ops of the blocks of a living op are looked at when it is built; of a dead one, nobody else does.
        op.blocks.iter().flat_map(|block| &block.ops).try_for_each(|op| self.all_exist(op))
    }

    /// Builds one op; `None` if it could be folded into constants.
    fn build(&mut self, op: &Op) -> Result<Option<Built>, DecodeError> {
        let def = ops::find(&op.kind, self.function.opset).ok_or_else(|| {
            self.op_error(op, OpError::Unknown { opset: self.function.opset.name().into() })
        })?;
        let bodies = op.blocks.iter().map(|block| self.body(block)).collect::<Result<Vec<_>, _>>()?;
        let size = bodies.iter().map(|(body, _)| body.size).fold(0, usize::saturating_add);
        let work = bodies.iter().map(|(body, _)| body.work).fold(0, usize::saturating_add);
        let mut builder = OpBuilder::new(&self.function, op, self.limits, bodies);
        let kernel = (def.build)(&mut builder)
            .and_then(|kernel| builder.finish().map(|reads| (kernel, reads)))
            .map_err(|source| self.op_error(op, source))?;
        let (kernel, reads) = kernel;
        if self.folds(op, &reads) {
            self.fold(op, &kernel, &reads).map_err(|source| self.op_error(op, source))?;
            return Ok(None);
        }
        Ok(Some(Built { kernel, reads, size, work: work.saturating_mul(op.repetitions()) }))
    }

    fn folds(&self, op: &Op, reads: &[ValueId]) -> bool {
        let elements = |id: &ValueId| {
            self.function.value(*id).ty.tensor().fixed_shape().and_then(|shape| element_count(&shape))
        };
        let sum = |ids: &[ValueId]| ids.iter().try_fold(0_usize, |n, id| n.checked_add(elements(id)?));
        let known = reads.iter().all(|id| self.function.value(*id).constant.is_some());
        known
            && !IMPURE.contains(&&*op.kind)
            && op.blocks.is_empty()
            && op.outputs.iter().all(|id| matches!(self.function.value(*id).ty, Type::Tensor(_)))
            && match (sum(&op.outputs), sum(reads)) {
                // A byte of a compressed weight may hold the indices of eight vectors.
                (Some(made), Some(read)) if op.kind.starts_with("constexpr_") => {
                    made <= read.saturating_mul(64).max(FOLD_ELEMENTS)
                }
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
            used: &mut Used::default(),
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

    /// Multiply-adds of an op, from its declared shapes.
    fn work(&self, op: &Op) -> usize {
        usize::try_from(structure::multiply_adds_of(&self.function, op)).unwrap_or(usize::MAX)
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

    /// Gives every value a place, and frees it after its last use. Captured values are never freed: they are lent.
    fn schedule(
        &mut self,
        block: &Block,
        built: Vec<(&Op, Kernel, Vec<ValueId>)>,
        size: usize,
        work: usize,
    ) -> Result<Compiled, DecodeError> {
        const FOREVER: usize = usize::MAX;
        let mut last_use: HashMap<ValueId, usize> = HashMap::new();
        for (step, (_, _, reads)) in built.iter().enumerate() {
            last_use.extend(reads.iter().map(|id| (*id, step)));
        }
        last_use.extend(block.outputs.iter().map(|id| (*id, FOREVER)));

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
        let mut inputs = Vec::new();
        for &id in &block.inputs {
            let used = last_use.contains_key(&id) && !self.states.contains_key(&id);
            inputs.push(used.then(|| place_of(id, &mut places, &mut free)));
        }
        let made: HashSet<ValueId> =
            block.inputs.iter().chain(built.iter().flat_map(|(op, ..)| &op.outputs)).copied().collect();
        let reads = built.iter().flat_map(|(_, _, reads)| reads).chain(&block.outputs);
        let (mut captured, mut captured_places) = (Vec::new(), Vec::new());
        for &id in reads {
            if !made.contains(&id)
                && !places.contains_key(&id)
                && !self.states.contains_key(&id)
                && self.function.value(id).constant.is_none()
            {
                captured.push(id);
                captured_places.push(place_of(id, &mut places, &mut free));
                last_use.insert(id, FOREVER);
            }
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
                    (place, self.function.value(*id).ty.run_time())
                })
                .collect();
            let output =
                op.outputs.first().map_or_else(|| "".into(), |id| Arc::clone(&self.function.value(*id).name));
            steps.push(Step { kernel, kind: Arc::clone(&op.kind), output, reads, writes, frees });
        }

        let mut outputs = Vec::with_capacity(block.outputs.len());
        for &id in &block.outputs {
            let place = match self.constant(id) {
                Ok(Some(place)) => Source::Constant(place),
                Ok(None) => Source::Slot(*places.get(&id).ok_or_else(|| self.unmade(id))?),
                Err(error) => {
                    let name = &self.function.value(id).name;
                    return Err(DecodeError::corrupt(format!("output `{name}`"), error));
                }
            };
            outputs.push(place);
        }
        let steps = Steps { steps, slots };
        Ok(Compiled { steps, inputs, captured, captured_places, outputs, size, work })
    }
}

/// An op that is built: what runs, what it reads, and the steps and work of its blocks.
struct Built {
    kernel: Kernel,
    reads: Vec<ValueId>,
    size: usize,
    work: usize,
}

/// Whether the op, or one in its blocks, has an effect beside its outputs.
fn writes_state(op: &Op) -> bool {
    &*op.kind == "write_state" || op.blocks.iter().flat_map(|block| &block.ops).any(writes_state)
}
