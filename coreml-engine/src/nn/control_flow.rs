//! Layers that hold networks: `branch` becomes `cond`, `loop` becomes `while_loop`; `loopBreak` and `loopContinue` become flags.
//!
//! A network's blobs are variables: `copy` overwrites them, also from within a branch or a loop, and what a branch or a loop makes
//! is seen after it. The ops are in SSA form. So a branch gives, and a loop carries, every blob that its networks write and that
//! exists already, and of those they make for the first time the ones that something outside reads. What was not made where it
//! is read (by a branch that was not taken, by a loop that ran no iteration) is an empty blob, which fails the first layer that
//! cannot take it; Core ML leaves open what happens.
//!
//! coremltools' converter writes branches that are never taken and in which blobs do not go together (where it lengthens a list).
//! Such a branch fails when it is taken.
//!
//! After a branch that may leave the iteration, the rest of the body is a branch of its own, on the flag.
//!
//! Semantics: the comments of `BranchLayerParams` and `LoopLayerParams` in `NeuralNetwork.proto`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use coreml_proto::proto as spec;
use spec::neural_network_layer::Layer;

use super::context::{self, Blob, Context, Dims, invalid, unsupported};
use super::{BY_NAME, LayerDef, Lower, name};
use crate::custom::CustomLayers;
use crate::decode::{DecodeError, MAX_DEPTH};
use crate::error::OpError;
use crate::ir::{Argument, Block, Constant, Function, Op, Type, ValueId};
use crate::ops::refusal::REFUSAL;
use crate::types::{DType, TensorType};

pub(super) const LAYERS: &[LayerDef] = &[
    LayerDef { name: "branch", lower: Lower::Flow(branch) },
    LayerDef { name: "loop", lower: Lower::Flow(repeat) },
    LayerDef { name: "loopBreak", lower: Lower::Flow(loop_break) },
    LayerDef { name: "loopContinue", lower: Lower::Flow(loop_continue) },
];

/// What is no more than this from 0 counts as false.
const FALSE: f32 = 1e-6;

type Layers<'a> = &'a [spec::NeuralNetworkLayer];

/// A variable of a network: a blob, or a flag of the innermost loop, 0 or 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Name<'a> {
    Blob(&'a str),
    /// The loop is left.
    Break,
    /// The iteration is left, with the loop or without it.
    Skip,
}

#[derive(Clone, Debug)]
struct Entry {
    blob: Blob,
    /// How deep in networks it was made.
    depth: usize,
}

/// A network on its way to ops.
pub(super) struct Lowering<'a, 'f> {
    pub(super) function: &'f mut Function,
    blobs: HashMap<Name<'a>, Entry>,
    /// What each change of `blobs` replaced, to go back to where a network began.
    log: Vec<(Name<'a>, Option<Entry>)>,
    /// How many layers, in all networks, read each blob; outputs of the model are reads.
    reads: HashMap<&'a str, usize>,
    depth: usize,
    in_loop: bool,
    /// Layers that may still be lowered. A loop's are lowered more than once.
    budget: usize,
    /// The classes of custom layers there are.
    pub(super) custom: &'f CustomLayers,
}

impl<'a, 'f> Lowering<'a, 'f> {
    /// `blobs` are there at the start, `outputs` are read at the end.
    pub(super) fn new(
        function: &'f mut Function,
        blobs: HashMap<&'a str, Blob>,
        layers: Layers<'a>,
        outputs: impl Iterator<Item = &'a str>,
        custom: &'f CustomLayers,
    ) -> Self {
        let mut reads = HashMap::new();
        outputs.for_each(|name| *reads.entry(name).or_default() += 1);
        let count = count_reads(layers, &mut reads);
        let blobs = blobs.into_iter().map(|(name, blob)| (Name::Blob(name), Entry { blob, depth: 0 }));
        Self {
            function,
            blobs: blobs.collect(),
            log: Vec::new(),
            reads,
            depth: 0,
            in_loop: false,
            budget: count.saturating_mul(8).saturating_add(50_000),
            custom,
        }
    }

    /// The blob of that name at this point.
    pub(super) fn blob(&self, name: &'a str) -> Option<&Blob> {
        self.blobs.get(&Name::Blob(name)).map(|entry| &entry.blob)
    }

    fn set(&mut self, name: Name<'a>, blob: Blob) {
        let old = self.blobs.insert(name, Entry { blob, depth: self.depth });
        self.log.push((name, old));
    }

    fn forget(&mut self, name: Name<'a>) {
        let old = self.blobs.remove(&name);
        self.log.push((name, old));
    }

    fn undo(&mut self, mark: usize) {
        for (name, old) in self.log.drain(mark..).rev() {
            match old {
                Some(entry) => self.blobs.insert(name, entry),
                None => self.blobs.remove(&name),
            };
        }
    }

    /// Adds the ops of some layers, in order.
    pub(super) fn layers(&mut self, layers: Layers<'a>) -> Result<(), DecodeError> {
        for (i, layer) in layers.iter().enumerate() {
            self.layer(layer)?;
            let rest = &layers[i + 1..];
            if rest.is_empty() || !exits(layer) {
                continue;
            }
            return match &layer.layer {
                // Nobody gets there.
                Some(Layer::LoopBreak(_) | Layer::LoopContinue(_)) => Ok(()),
                _ => {
                    let go_on = self.flag(Name::Skip, layer, false)?;
                    self.choose(layer, go_on, [rest, &[]], false)
                }
            };
        }
        Ok(())
    }

    /// Adds the ops of one layer, and its outputs to the blobs.
    fn layer(&mut self, layer: &'a spec::NeuralNetworkLayer) -> Result<(), DecodeError> {
        let error = |source| error_of(layer, source);
        let parameters =
            layer.layer.as_ref().ok_or_else(|| error(unsupported("a kind of layer that is not known")))?;
        let kind = name(parameters);
        let def = BY_NAME.get(kind).ok_or_else(|| error(unsupported("this kind of layer")))?;
        self.budget = self.budget.checked_sub(1).ok_or_else(|| {
            error(unsupported("loops and branches that amount to so many more layers than the file has"))
        })?;
        let lower = match def.lower {
            Lower::Flow(lower) => return lower(self, layer),
            Lower::Layer(lower) => lower,
        };
        let inputs = layer.input.iter().map(|name| self.input(name).cloned());
        let inputs = inputs.collect::<Result<Vec<_>, _>>().map_err(error)?;
        let mut cx = self.context(layer);
        cx.inputs = inputs;
        let made = lower(&mut cx, parameters).map_err(error)?;
        self.bind(layer, made, kind == "copy")
    }

    /// Names what a layer made.
    pub(super) fn bind(
        &mut self,
        layer: &'a spec::NeuralNetworkLayer,
        made: Vec<Blob>,
        overwrites: bool,
    ) -> Result<(), DecodeError> {
        let error = |source| error_of(layer, source);
        if layer.output.is_empty() || layer.output.len() > made.len() {
            let reason = format!("{} outputs, expected {}", layer.output.len(), made.len());
            return Err(error(invalid(reason)));
        }
        for (name, blob) in layer.output.iter().zip(made) {
            if blob.rank() > context::MAX_RANK {
                return Err(error(unsupported(format!("blobs of rank {}", blob.rank()))));
            }
            // `copy` may make a blob of the same network anew; nothing else may.
            let there = self.blobs.get(&Name::Blob(name)).is_some_and(|entry| entry.depth == self.depth);
            if there && !overwrites {
                return Err(error(invalid(format!("the blob `{name}` is made twice"))));
            }
            self.set(Name::Blob(name), blob);
        }
        Ok(())
    }

    pub(super) fn input(&self, name: &'a str) -> Result<&Blob, OpError> {
        self.blob(name)
            .ok_or_else(|| invalid(format!("the input `{name}` is used before it is made, or never made")))
    }

    /// What ops of a layer are added with.
    pub(super) fn context(&mut self, layer: &spec::NeuralNetworkLayer) -> Context<'_> {
        let outputs = layer.output.len();
        Context { function: self.function, name: label(layer), inputs: Vec::new(), outputs }
    }

    /// Whether a flag is as `wanted`; flags that nobody set are 0.
    fn flag(
        &mut self,
        name: Name<'a>,
        layer: &spec::NeuralNetworkLayer,
        wanted: bool,
    ) -> Result<ValueId, DecodeError> {
        let entry = self.blobs.get(&name).cloned();
        let entry = entry.ok_or_else(|| error_of(layer, invalid("it is not in a loop")))?;
        let kind = if wanted { "not_equal" } else { "equal" };
        let arguments = [("x", (&entry.blob).into()), ("y", 0.0.into())];
        Ok(self.context(layer).op1(kind, arguments, DType::Bool, entry.blob.dims))
    }

    /// Whether the one number in a blob counts as true.
    fn truth(&mut self, layer: &spec::NeuralNetworkLayer, blob: &Blob) -> ValueId {
        let mut cx = self.context(layer);
        let size = cx.unary("abs", blob);
        cx.op1("greater", [("x", (&size).into()), ("y", FALSE.into())], DType::Bool, blob.dims.clone())
    }

    /// Both of two booleans; that they are one each shows while the network runs.
    fn both(&mut self, layer: &spec::NeuralNetworkLayer, a: ValueId, b: ValueId) -> ValueId {
        let id = self.function.new_value(label(layer), boolean());
        self.context(layer).push("logical_and", [("x", a.into()), ("y", b.into())], vec![id]);
        id
    }

    /// Lowers layers as a block of their own: its ops, and what `names` are at its end. Whether a loop is around them is as before.
    fn block(
        &mut self,
        layer: &spec::NeuralNetworkLayer,
        names: &[Name<'a>],
        lower: impl FnOnce(&mut Self) -> Result<(), DecodeError>,
    ) -> Result<(Vec<Op>, Vec<Option<Blob>>), DecodeError> {
        if self.depth >= MAX_DEPTH {
            return Err(error_of(layer, unsupported(format!("networks nested deeper than {MAX_DEPTH}"))));
        }
        let outer = std::mem::take(&mut self.function.body.ops);
        let mark = self.log.len();
        self.depth += 1;
        let in_loop = self.in_loop;
        let result = lower(self);
        self.in_loop = in_loop;
        let found = names.iter().map(|name| self.blobs.get(name).map(|entry| entry.blob.clone())).collect();
        self.undo(mark);
        self.depth -= 1;
        let ops = std::mem::replace(&mut self.function.body.ops, outer);
        result.map(|()| (ops, found))
    }

    /// A block in the place of one whose blobs do not go together, and would be like those of `other`. What the engine does not know is
    /// an error at load wherever it is.
    fn refusal(
        &mut self,
        layer: &spec::NeuralNetworkLayer,
        other: &[Option<Blob>],
        wrong: DecodeError,
    ) -> Result<(Vec<Op>, Vec<Option<Blob>>), DecodeError> {
        let reason = match wrong {
            DecodeError::Op { op, output, source: OpError::Shapes(reason) } => {
                format!("the branch has an op `{op}` that makes `{output}` and cannot run: {reason}")
            }
            other => return Err(other),
        };
        let unknown = |blob: &Blob| vec![None; blob.rank()];
        let blobs: Vec<_> = other
            .iter()
            .map(|blob| {
                let dims = blob.as_ref().map(unknown)?;
                Some(Blob::new(self.function.new_value(label(layer), floats(&dims)), dims))
            })
            .collect();
        let reason = self.function.new_constant("reason", Constant::string(&reason));
        let refusal = Op {
            kind: REFUSAL.name.into(),
            arguments: vec![("reason".into(), Argument::One(reason))],
            outputs: blobs.iter().flatten().map(|blob| blob.id).collect(),
            blocks: vec![],
        };
        Ok((vec![refusal], blobs))
    }

    /// Runs the first layers if `pred`, else the second. If only one of them can be, and the other is `optional`, the other fails when
    /// it is taken.
    fn choose(
        &mut self,
        layer: &'a spec::NeuralNetworkLayer,
        pred: ValueId,
        arms: [Layers<'a>; 2],
        optional: bool,
    ) -> Result<(), DecodeError> {
        let error = |source| error_of(layer, source);
        let names = written(&arms);
        let made = arms.map(|arm| self.block(layer, &names, |cx| cx.layers(arm)));
        let ((yes_ops, yes), (no_ops, no)) = match made {
            [Ok(yes), Err(wrong)] if optional => {
                let no = self.refusal(layer, &yes.1, wrong)?;
                (yes, no)
            }
            [Err(wrong), Ok(no)] if optional => (self.refusal(layer, &no.1, wrong)?, no),
            // What the engine does not know tells more than shapes that do not go together.
            [Err(DecodeError::Op { source: OpError::Shapes(_), .. }), Err(wrong)] => return Err(wrong),
            [yes, no] => (yes?, no?),
        };
        let inside = reads_of(&arms);
        let (mut outputs, mut yes_ids, mut no_ids) = (Vec::new(), Vec::new(), Vec::new());
        for ((&name, yes), no) in names.iter().zip(yes).zip(no) {
            let wanted = self.wanted(name, &inside);
            let dims = match (&yes, &no) {
                (None, None) => continue,
                (Some(yes), Some(no)) if yes.rank() == no.rank() => common(&yes.dims, &no.dims),
                (Some(_), Some(_)) if wanted => {
                    return Err(error(unsupported("a blob whose rank depends on the branch")));
                }
                (Some(_), Some(_)) => {
                    self.forget(name);
                    continue;
                }
                (Some(one), None) | (None, Some(one)) if wanted => vec![None; one.rank()],
                (Some(_), None) | (None, Some(_)) => continue,
            };
            let empty = |cx: &mut Self| cx.empty(layer, dims.len()).map_err(error);
            yes_ids.push(yes.map_or_else(|| empty(self), |blob| Ok(blob.id))?);
            no_ids.push(no.map_or_else(|| empty(self), |blob| Ok(blob.id))?);
            outputs.push((name, dims));
        }
        if outputs.is_empty() {
            return Ok(());
        }
        let ids: Vec<_> =
            outputs.iter().map(|(_, dims)| self.function.new_value(label(layer), floats(dims))).collect();
        self.function.body.ops.push(Op {
            kind: "cond".into(),
            arguments: vec![("pred".into(), Argument::One(pred))],
            outputs: ids.clone(),
            blocks: vec![
                Block { inputs: vec![], ops: yes_ops, outputs: yes_ids },
                Block { inputs: vec![], ops: no_ops, outputs: no_ids },
            ],
        });
        for ((name, dims), id) in outputs.into_iter().zip(ids) {
            self.set(name, Blob::new(id, dims));
        }
        Ok(())
    }

    /// Whether something outside of networks reads what they write; `inside` is how often they read it themselves.
    fn wanted(&self, name: Name<'a>, inside: &HashMap<&'a str, usize>) -> bool {
        match name {
            Name::Blob(name) => self.reads.get(name) > inside.get(name),
            Name::Break | Name::Skip => true,
        }
    }

    /// A blob that was never made.
    fn empty(&mut self, layer: &spec::NeuralNetworkLayer, rank: usize) -> Result<ValueId, OpError> {
        self.context(layer).constant(&vec![0; rank.max(1)], Vec::new()).map(|blob| blob.id)
    }

    /// A flag of the loop around.
    fn raise(&mut self, layer: &spec::NeuralNetworkLayer, name: Name<'a>) -> Result<(), DecodeError> {
        if !self.in_loop {
            return Err(error_of(layer, invalid("it is not in a loop")));
        }
        let blob = self.context(layer).scalar(1.0);
        self.set(name, blob);
        Ok(())
    }
}

/// What runs while the loop does: the layers, the name of the condition, and how often at most.
struct Loop<'a> {
    layer: &'a spec::NeuralNetworkLayer,
    body: Layers<'a>,
    condition_layers: Layers<'a>,
    condition: Option<&'a str>,
    most: Option<ValueId>,
    breaks: bool,
}

/// One lowering of a loop's body, with the dimensions assumed of what it carries.
struct Attempt {
    inputs: Vec<ValueId>,
    ops: Vec<Op>,
    outputs: Vec<ValueId>,
    /// Of the carried blobs after the iteration, then of those that it makes.
    dims: Vec<Dims>,
}

fn branch<'a>(cx: &mut Lowering<'a, '_>, layer: &'a spec::NeuralNetworkLayer) -> Result<(), DecodeError> {
    let error = |source| error_of(layer, source);
    let Some(Layer::Branch(parameters)) = &layer.layer else {
        return Err(error(super::misrouted_layer("branch")));
    };
    let spec::BranchLayerParams { if_branch, else_branch } = parameters;
    let [input] = &layer.input[..] else {
        return Err(error(invalid(format!("{} inputs, expected 1", layer.input.len()))));
    };
    no_outputs(layer)?;
    let blob = cx.input(input).map_err(error)?.clone();
    let pred = cx.truth(layer, &blob);
    let layers = |network: &'a Option<spec::NeuralNetwork>| network.as_ref().map_or(&[][..], |n| &n.layers);
    cx.choose(layer, pred, [layers(if_branch), layers(else_branch)], true)
}

fn repeat<'a>(cx: &mut Lowering<'a, '_>, layer: &'a spec::NeuralNetworkLayer) -> Result<(), DecodeError> {
    let error = |source| error_of(layer, source);
    let Some(Layer::Loop(parameters)) = &layer.layer else {
        return Err(error(super::misrouted_layer("loop")));
    };
    let spec::LoopLayerParams { max_loop_iterations, condition_var, condition_network, body_network } =
        parameters;
    no_outputs(layer)?;
    let layers = |network: &'a Option<spec::NeuralNetwork>| network.as_ref().map_or(&[][..], |n| &n.layers);
    let (body, condition_layers) = (layers(body_network), layers(condition_network));
    let condition = (!condition_var.is_empty()).then_some(condition_var.as_str());
    if condition.is_none() && !condition_layers.is_empty() {
        return Err(error(invalid("a network for the condition, but no name of it")));
    }
    // Without a condition, no iterations are none; with one, no number is no limit.
    let most = match &layer.input[..] {
        [input] => {
            let blob = cx.input(input).map_err(error)?.clone();
            Some(cx.context(layer).integers(&blob))
        }
        [] if condition.is_some() && *max_loop_iterations == 0 => None,
        [] => {
            let most = i32::try_from(*max_loop_iterations).unwrap_or(i32::MAX);
            Some(cx.function.new_constant(label(layer), Constant::int(most)))
        }
        _ => return Err(error(invalid(format!("{} inputs, expected 1 or none", layer.input.len())))),
    };
    let breaks = body.iter().any(|layer| exits_with(layer, &|l| matches!(l, Layer::LoopBreak(_))));
    // Only the body may leave the loop.
    let in_loop = std::mem::replace(&mut cx.in_loop, false);
    cx.layers(condition_layers)?;
    cx.in_loop = in_loop;
    let zero = cx.function.new_constant(label(layer), Constant::int(0));
    let this = Loop { layer, body, condition_layers, condition, most, breaks };
    let go = cx.goes_on(&this, zero)?;
    cx.run_loop(&this, go, zero)
}

impl<'a> Lowering<'a, '_> {
    /// Whether the iteration of that number runs.
    fn goes_on(&mut self, this: &Loop<'a>, number: ValueId) -> Result<ValueId, DecodeError> {
        let layer = this.layer;
        let mut go = None;
        if let Some(name) = this.condition {
            let blob = self.input(name).map_err(|source| error_of(layer, source))?.clone();
            go = Some(self.truth(layer, &blob));
        }
        if let Some(most) = this.most {
            let id = self.function.new_value(label(layer), boolean());
            self.context(layer).push("less", [("x", number.into()), ("y", most.into())], vec![id]);
            go = Some(go.map_or(id, |go| self.both(layer, go, id)));
        }
        go.ok_or_else(|| error_of(layer, invalid("a loop without an end")))
    }

    fn run_loop(&mut self, this: &Loop<'a>, go: ValueId, zero: ValueId) -> Result<(), DecodeError> {
        let layer = this.layer;
        let error = |source| error_of(layer, source);
        let networks = [this.body, this.condition_layers];
        let mut inside = reads_of(&networks);
        if let Some(name) = this.condition {
            *inside.entry(name).or_default() += 1;
        }
        let mut names = written(&networks);
        names.retain(|name| matches!(name, Name::Blob(_)));
        let (carried, mut made): (Vec<_>, Vec<_>) =
            names.into_iter().partition(|name| self.blobs.contains_key(name));
        made.retain(|&name| self.wanted(name, &inside));
        let start: Vec<Blob> = carried.iter().map(|name| self.blobs[name].blob.clone()).collect();

        // What is known of a carried blob's shape must hold in every iteration: forget what the body changes, until it changes
        // nothing that is known.
        let mut dims: Vec<Dims> = start.iter().map(|blob| blob.dims.clone()).collect();
        let attempt = loop {
            let mark = self.function.values.len();
            let attempt = self.attempt(this, &carried, &made, &dims)?;
            if attempt.dims.iter().zip(&dims).any(|(after, before)| after.len() != before.len()) {
                return Err(error(unsupported("a blob whose rank the loop changes")));
            }
            let merged: Vec<Dims> = dims.iter().zip(&attempt.dims).map(|(a, b)| common(a, b)).collect();
            if merged == dims {
                break attempt;
            }
            self.function.values.truncate(mark);
            dims = merged;
        };

        let Attempt { mut inputs, ops, outputs, dims: after } = attempt;
        let made_dims = &after[dims.len()..];
        let mut start_ids = vec![go, zero];
        start_ids.extend(start.iter().map(|blob| blob.id));
        for made in made_dims {
            let unknown = vec![None; made.len()];
            inputs.push(self.function.new_value(label(layer), floats(&unknown)));
            start_ids.push(self.empty(layer, made.len()).map_err(error)?);
        }
        let types: Vec<Type> = inputs.iter().map(|id| self.function.value(*id).ty.clone()).collect();
        let condition_inputs: Vec<_> =
            types.iter().map(|ty| self.function.new_value(label(layer), ty.clone())).collect();
        let condition_outputs = condition_inputs.first().copied().into_iter().collect();
        let mut results = vec![
            self.function.new_value(label(layer), boolean()),
            self.function.new_value(label(layer), int()),
        ];
        for dims in dims.iter().chain(made_dims) {
            results.push(self.function.new_value(label(layer), floats(dims)));
        }
        self.function.body.ops.push(Op {
            kind: "while_loop".into(),
            arguments: vec![("loop_vars".into(), Argument::Many(start_ids))],
            outputs: results.clone(),
            blocks: vec![
                Block { inputs: condition_inputs, ops: vec![], outputs: condition_outputs },
                Block { inputs, ops, outputs },
            ],
        });
        let names = carried.into_iter().chain(made);
        let dims = dims.iter().chain(made_dims).cloned();
        for ((name, dims), id) in names.zip(dims).zip(results.into_iter().skip(2)) {
            self.set(name, Blob::new(id, dims));
        }
        Ok(())
    }

    fn attempt(
        &mut self,
        this: &Loop<'a>,
        carried: &[Name<'a>],
        made: &[Name<'a>],
        dims: &[Dims],
    ) -> Result<Attempt, DecodeError> {
        let layer = this.layer;
        let again = self.function.new_value(label(layer), boolean());
        let number = self.function.new_value(label(layer), int());
        let mut inputs = vec![again, number];
        // In sight of the body, but not made by it.
        let mark = self.log.len();
        for (&name, dims) in carried.iter().zip(dims) {
            let id = self.function.new_value(label(layer), floats(dims));
            inputs.push(id);
            self.set(name, Blob::new(id, dims.clone()));
        }
        for flag in [Name::Break, Name::Skip] {
            let blob = self.context(layer).scalar(0.0);
            self.set(flag, blob);
        }
        let names: Vec<_> = carried.iter().chain(made).copied().collect();
        let mut heads = Vec::new();
        let block = self.block(layer, &names, |cx| {
            cx.in_loop = true;
            cx.layers(this.body)?;
            let mut stays = None;
            if this.breaks {
                let stay = cx.flag(Name::Break, layer, false)?;
                cx.in_loop = false;
                cx.choose(layer, stay, [this.condition_layers, &[]], false)?;
                stays = Some(stay);
            } else {
                cx.in_loop = false;
                cx.layers(this.condition_layers)?;
            }
            let arguments = [("x", number.into()), ("y", 1.into())];
            let next = cx.context(layer).op1("add", arguments, DType::I32, vec![]);
            let mut go = cx.goes_on(this, next)?;
            if let Some(stay) = stays {
                go = cx.both(layer, go, stay);
            }
            heads = vec![go, next];
            Ok(())
        });
        self.undo(mark);
        let (ops, found) = block?;
        let mut outputs = heads;
        let mut after = Vec::new();
        for (name, blob) in names.iter().zip(found) {
            let blob = blob.ok_or_else(|| {
                error_of(
                    layer,
                    invalid(format!("{name:?} is read outside of the loop, and not always made in it")),
                )
            })?;
            outputs.push(blob.id);
            after.push(blob.dims);
        }
        Ok(Attempt { inputs, ops, outputs, dims: after })
    }
}

fn loop_break<'a>(cx: &mut Lowering<'a, '_>, layer: &'a spec::NeuralNetworkLayer) -> Result<(), DecodeError> {
    no_outputs(layer)?;
    cx.raise(layer, Name::Break)?;
    cx.raise(layer, Name::Skip)
}

fn loop_continue<'a>(
    cx: &mut Lowering<'a, '_>,
    layer: &'a spec::NeuralNetworkLayer,
) -> Result<(), DecodeError> {
    no_outputs(layer)?;
    cx.raise(layer, Name::Skip)
}

fn no_outputs(layer: &spec::NeuralNetworkLayer) -> Result<(), DecodeError> {
    match layer.output.len() {
        0 => Ok(()),
        n => Err(error_of(layer, invalid(format!("{n} outputs, expected none")))),
    }
}

/// What names a layer in an error: its first output, or itself.
fn label(layer: &spec::NeuralNetworkLayer) -> Arc<str> {
    layer.output.first().unwrap_or(&layer.name).as_str().into()
}

pub(super) fn error_of(layer: &spec::NeuralNetworkLayer, source: OpError) -> DecodeError {
    let op = layer.layer.as_ref().map_or("?", name).to_owned();
    DecodeError::Op { op, output: label(layer).to_string(), source }
}

fn floats(dims: &[Option<usize>]) -> Type {
    Type::Tensor(TensorType { dtype: DType::F32, shape: Some(dims.to_vec()) })
}

fn int() -> Type {
    Type::Tensor(TensorType::fixed(DType::I32, &[]))
}

/// Of one element, and any rank.
fn boolean() -> Type {
    Type::Tensor(TensorType { dtype: DType::Bool, shape: None })
}

/// What two shapes of one rank have in common.
fn common(a: &[Option<usize>], b: &[Option<usize>]) -> Dims {
    a.iter().zip(b).map(|(&a, &b)| a.filter(|_| a == b)).collect()
}

/// The networks of a layer.
fn networks<'a>(layer: &'a spec::NeuralNetworkLayer) -> impl Iterator<Item = Layers<'a>> {
    let pair = match &layer.layer {
        Some(Layer::Branch(p)) => [&p.if_branch, &p.else_branch],
        Some(Layer::Loop(p)) => [&p.condition_network, &p.body_network],
        _ => [&None, &None],
    };
    pair.into_iter().flatten().map(|network| &network.layers[..])
}

/// Whether `test` is true of a layer or of one in its networks.
pub(super) fn any_layer(layer: &spec::NeuralNetworkLayer, test: &impl Fn(&Layer) -> bool) -> bool {
    layer.layer.as_ref().is_some_and(test) || networks(layer).flatten().any(|layer| any_layer(layer, test))
}

/// As [`any_layer`], but not in loops inside: what leaves those goes on here.
fn exits_with(layer: &spec::NeuralNetworkLayer, test: &impl Fn(&Layer) -> bool) -> bool {
    match &layer.layer {
        Some(Layer::Loop(_)) | None => false,
        Some(Layer::Branch(_)) => networks(layer).flatten().any(|layer| exits_with(layer, test)),
        Some(layer) => test(layer),
    }
}

/// Whether the iteration of the loop around may end with this layer.
fn exits(layer: &spec::NeuralNetworkLayer) -> bool {
    exits_with(layer, &|layer| matches!(layer, Layer::LoopBreak(_) | Layer::LoopContinue(_)))
}

/// The variables that networks write, each once, in order.
fn written<'a>(networks: &[Layers<'a>]) -> Vec<Name<'a>> {
    fn collect<'a>(layers: Layers<'a>, found: &mut Vec<Name<'a>>) {
        for layer in layers {
            found.extend(layer.output.iter().map(|name| Name::Blob(name)));
            match &layer.layer {
                Some(Layer::LoopBreak(_)) => found.extend([Name::Break, Name::Skip]),
                Some(Layer::LoopContinue(_)) => found.push(Name::Skip),
                Some(Layer::Loop(_)) => {
                    // Its flags are its own.
                    let mut inner = Vec::new();
                    self::networks(layer).for_each(|layers| collect(layers, &mut inner));
                    found.extend(inner.into_iter().filter(|name| matches!(name, Name::Blob(_))));
                }
                Some(_) | None => self::networks(layer).for_each(|layers| collect(layers, found)),
            }
        }
    }
    let mut found = Vec::new();
    networks.iter().for_each(|layers| collect(layers, &mut found));
    let mut seen = HashSet::new();
    found.retain(|name| seen.insert(*name));
    found
}

/// Adds how often layers read each blob, with those of their networks; gives the number of layers.
fn count_reads<'a>(layers: Layers<'a>, reads: &mut HashMap<&'a str, usize>) -> usize {
    let mut count = layers.len();
    for layer in layers {
        layer.input.iter().for_each(|name| *reads.entry(name).or_default() += 1);
        if let Some(Layer::Loop(p)) = &layer.layer {
            *reads.entry(&p.condition_var).or_default() += 1;
        }
        count += networks(layer).map(|layers| count_reads(layers, reads)).sum::<usize>();
    }
    count
}

fn reads_of<'a>(networks: &[Layers<'a>]) -> HashMap<&'a str, usize> {
    let mut reads = HashMap::new();
    for layers in networks {
        count_reads(layers, &mut reads);
    }
    reads
}
