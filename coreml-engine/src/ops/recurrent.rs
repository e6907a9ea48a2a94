//! `recurrent` ops: `gru`, `lstm` and `rnn`.
//!
//! Semantics: coremltools, `mil/ops/defs/iOS15/recurrent.py` (iOS 17 only adds half precision) and `iOS18/recurrent.py`
//! (`reset_after`, `input_bias`). Where the documentation is silent or contradicts itself, the formulas of coremltools' own
//! tests hold, which pass on Apple's Core ML (`mil/ops/tests/iOS14/test_recurrent.py`):
//!
//! * `gru` resets the state before its matrix, `W_ho (r * h)`, and not after, as the documentation has it. `reset_after` of iOS 18
//!   is what PyTorch and Keras call so, `r * (W_ho h + b_ho)`, with `bias` the bias of the state's matrix.
//! * The direction `reverse` gives its outputs in the order in which they are made: the first is that of the last input. Only
//!   `bidirectional` turns them round again.
//! * `scaled_tanh` has factors of 1, which makes it `tanh`.
//!
//! Neural networks are lowered to the same ops, in the opset of iOS 13. There what enters an activation is kept in
//! -50 ..= 50 (`NeuralNetwork.proto`).
//!
//! The products of all inputs with their matrix are one product, made first. What is left for a step is the product with
//! the state.

use rten_simd::SimdUnaryOp;
use rten_tensor::prelude::*;
use rten_tensor::{NdTensorView, Tensor, TensorView};
use rten_vecmath as vecmath;

use super::linear::{Weight, product};
use super::{Kernel, OpBuilder, OpDef, Run, parameter};
use crate::error::{KernelError, OpError};
use crate::ir::Opset::{Ios13, Ios15, Ios17, Ios18};
use crate::kernels::gemm::{PackedRows, Panels, multiply, panel_width};
use crate::kernels::scratch::Scratch;
use crate::value::{Outputs, Value};

pub(crate) const OPS: &[OpDef] = &[
    OpDef::new("gru", &[Ios13, Ios17, Ios18], gru),
    OpDef::new("lstm", &[Ios13, Ios17], lstm),
    OpDef::new("rnn", &[Ios13, Ios17], rnn),
];

/// What neural networks let into an activation.
const NETWORK_CLIP: f32 = 50.0;

/// A function of a gate.
#[derive(Clone, Copy)]
enum Activation {
    HardSigmoid,
    Linear,
    Relu,
    Sigmoid,
    Tanh,
}

impl Activation {
    fn read(op: &mut OpBuilder<'_>, name: &'static str, default: &str) -> Result<Self, OpError> {
        let text = op.string(name, default)?;
        match text.to_ascii_lowercase().as_str() {
            "hard_sigmoid" | "sigmoid_hard" => Ok(Self::HardSigmoid),
            "linear" => Ok(Self::Linear),
            "relu" => Ok(Self::Relu),
            "sigmoid" => Ok(Self::Sigmoid),
            "scaled_tanh" | "tanh" => Ok(Self::Tanh),
            _ => Err(parameter(name, format!("no activation is called `{text}`"))),
        }
    }

    fn apply(self, data: &mut [f32], clip: Option<f32>) {
        if let Some(clip) = clip {
            clamp(data, clip);
        }
        match self {
            Self::HardSigmoid => {
                data.iter_mut()
                    .for_each(|x| *x = super::elementwise_unary::clipped(0.2 * *x + 0.5, 0.0, 1.0));
            }
            Self::Linear => {}
            Self::Relu => data.iter_mut().for_each(|x| *x = if *x < 0.0 { 0.0 } else { *x }),
            Self::Sigmoid => vecmath::Sigmoid {}.map_mut(data),
            Self::Tanh => vecmath::Tanh {}.map_mut(data),
        }
    }
}

/// Keeps all elements in `-clip ..= clip`.
fn clamp(data: &mut [f32], clip: f32) {
    data.iter_mut().for_each(|x| *x = super::elementwise_unary::clipped(*x, -clip, clip));
}

/// Which way the steps go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Forward,
    Reverse,
    Both,
}

impl Direction {
    fn read(op: &mut OpBuilder<'_>, both: bool) -> Result<Self, OpError> {
        match op.string("direction", "forward")?.as_str() {
            "forward" => Ok(Self::Forward),
            "reverse" => Ok(Self::Reverse),
            "bidirectional" if both => Ok(Self::Both),
            other => Err(parameter("direction", format!("no direction is called `{other}`"))),
        }
    }
}

/// The weights of one direction.
struct Weights {
    /// Of the inputs: `[I, gates * H]`.
    input: Weight,
    input_bias: Option<Vec<f32>>,
    /// Of the state, `[gates * H, H]`, as one matrix or several that follow each other.
    hidden: Vec<PackedRows>,
    /// H.
    size: usize,
}

impl Weights {
    /// Reads `[gates * H, I]` and `[gates * H, H]`. The gates are put in the order `order`, and those of the state packed into
    /// matrices of so many gates as `split` says.
    fn read(
        op: &mut OpBuilder<'_>,
        [weight_ih, weight_hh]: [&'static str; 2],
        input_bias: Option<Vec<f32>>,
        order: &[usize],
        split: &[usize],
    ) -> Result<Self, OpError> {
        let gates = order.len();
        let (ih, hh) = (op.constant(weight_ih)?, op.constant(weight_hh)?);
        let (&[rows, inputs], &[hidden_rows, size]) = (ih.shape(), hh.shape()) else {
            return Err(parameter(weight_ih, "expected two matrices"));
        };
        if size == 0 || size.checked_mul(gates) != Some(rows) || hidden_rows != rows {
            let (a, b) = (ih.shape(), hh.shape());
            return Err(parameter(
                weight_hh,
                format!("shapes {a:?} and {b:?} are not those of {gates} gates"),
            ));
        }
        let in_order = |elements: Vec<f32>, row: usize| -> Vec<f32> {
            let gate = |gate: &usize| elements[gate * size * row..(gate + 1) * size * row].iter().copied();
            order.iter().flat_map(gate).collect()
        };
        let elements = in_order(ih.to_f32()?, inputs);
        let input = Weight::new(NdTensorView::from_data([rows, inputs], &elements[..]).transposed(), None);
        let elements = in_order(hh.to_f32()?, size);
        let mut rest = &elements[..];
        let hidden = split.iter().map(|count| {
            let (own, others) = rest.split_at(count * size * size);
            rest = others;
            PackedRows::new(Vec::new(), own, count * size, size, size, 1)
        });
        let hidden = hidden.collect();
        Ok(Self { input, input_bias: input_bias.map(|bias| in_order(bias, 1)), hidden, size })
    }
}

/// A vector of `gates` per hidden unit, which is as long as a matrix of the state has rows.
fn vector(
    op: &mut OpBuilder<'_>,
    name: &'static str,
    weight_hh: &'static str,
    gates: usize,
) -> Result<Option<Vec<f32>>, OpError> {
    let size = op.constant(weight_hh)?.shape().get(1).copied().unwrap_or(0);
    let Some(vector) = op.floats_opt(name)? else { return Ok(None) };
    if size.checked_mul(gates) != Some(vector.len()) {
        let found = vector.len();
        return Err(parameter(name, format!("expected {gates} numbers for each of {size}, found {found}")));
    }
    Ok(Some(vector))
}

/// What passes from step to step, and memory for one. All is `[_, batch]`, so that what belongs to a gate lies together.
struct State {
    batch: usize,
    /// `[H, batch]`, in the order and as the columns that a product takes.
    h: Scratch,
    columns: Scratch,
    /// `[H, batch]`; only of `lstm`.
    c: Scratch,
    /// `[gates * H, batch]`.
    gates: Scratch,
    /// `[H, batch]`.
    spare: Scratch,
}

impl State {
    fn new(run: &Run<'_, '_>, batch: usize, size: usize, gates: usize) -> Result<Self, KernelError> {
        let columns = run.check_size(&[batch.next_multiple_of(panel_width()), size])?;
        let rows = run.check_size(&[gates, size, batch])?;
        let one = || Scratch::new(size * batch);
        let (columns, gates) = (Scratch::new(columns), Scratch::new(rows));
        Ok(Self { batch, h: one(), columns, c: one(), gates, spare: one() })
    }

    /// The product of a matrix with what is in `columns`, as the gates from `first` on.
    fn multiply(&mut self, weight: &PackedRows, bias: Option<&[f32]>, first: usize) {
        let panels = Panels { data: &self.columns, first: 0, count: self.batch };
        multiply(weight, panels, bias, &mut self.gates[first * self.batch..], self.batch);
    }
}

/// Writes `[size, batch]` as panels of columns.
fn to_columns(columns: &mut [f32], values: &[f32], size: usize, batch: usize) {
    let width = panel_width();
    for (k, row) in values.chunks_exact(batch).enumerate() {
        for (panel, row) in row.chunks(width).enumerate() {
            let start = (panel * size + k) * width;
            columns[start..start + row.len()].copy_from_slice(row);
        }
    }
}

/// `to[r, j] += from[j, first + r]`, where rows of `from` are `pitch` long.
fn add_transposed(to: &mut [f32], from: &[f32], first: usize, pitch: usize, batch: usize) {
    if batch == 1 {
        to.iter_mut().zip(&from[first..]).for_each(|(to, from)| *to += from);
        return;
    }
    for (r, row) in to.chunks_exact_mut(batch).enumerate() {
        let from = from[first + r..].iter().step_by(pitch);
        row.iter_mut().zip(from).for_each(|(to, from)| *to += from);
    }
}

/// `to[r, j] += c[r, j] * weight[r]`.
fn add_scaled(to: &mut [f32], c: &[f32], weight: &[f32], batch: usize) {
    let rows = to.chunks_exact_mut(batch).zip(c.chunks_exact(batch));
    for ((to, c), weight) in rows.zip(weight) {
        to.iter_mut().zip(c).for_each(|(to, c)| *to += c * weight);
    }
}

/// A layer that can make one step.
trait Cell: Send + Sync {
    fn weights(&self) -> &Weights;

    /// How many numbers per hidden unit the product of an input makes.
    const GATES: usize;

    /// From `state.h` (and, as columns, `state.columns`) to the next; `x` is `[batch, gates * H]`, bias added.
    fn step(&self, x: &[f32], state: &mut State);
}

/// Runs all steps; `made` sees the number of the step and the state after it.
fn steps<C: Cell>(
    run: &Run<'_, '_>,
    cell: &C,
    x: &TensorView<'_, f32>,
    backwards: bool,
    state: &mut State,
    mut made: impl FnMut(usize, &State),
) -> Result<(), KernelError> {
    let weights = cell.weights();
    let count = x.size(0);
    let projected = product(run, x.view(), &weights.input, weights.input_bias.as_deref())?;
    let step = state.batch * C::GATES * weights.size;
    let data = projected.data().ok_or_else(|| KernelError::shape("a product that is not dense"))?;
    for i in 0..count {
        let place = if backwards { count - 1 - i } else { i };
        to_columns(&mut state.columns, &state.h, weights.size, state.batch);
        cell.step(&data[place * step..(place + 1) * step], state);
        made(i, state);
    }
    run.recycle(projected);
    Ok(())
}

/// `to[j, first + r] = from[r, j]`, where rows of `to` are `pitch` long.
fn transpose_into(to: &mut [f32], from: &[f32], first: usize, pitch: usize, batch: usize) {
    for (r, row) in from.chunks_exact(batch).enumerate() {
        to[first + r..].iter_mut().step_by(pitch).zip(row).for_each(|(to, &from)| *to = from);
    }
}

/// Where the op finds what it works on.
struct Operands {
    x: usize,
    initial_h: usize,
    initial_c: Option<usize>,
    sequence: bool,
}

/// Runs one or two directions: the sequence, the last state, and the last memory of an `lstm`.
fn layer<C: Cell>(
    run: &mut Run<'_, '_>,
    operands: &Operands,
    cells: &[(C, bool)],
) -> Result<Outputs, KernelError> {
    let x = run.f32(operands.x)?;
    let &[count, batch, _] = x.shape() else {
        return Err(KernelError::shape(format!("a sequence of shape {:?}, expected rank 3", x.shape())));
    };
    if count == 0 {
        return Err(KernelError::shape("a sequence of no steps"));
    }
    let size = cells.first().map_or(0, |(cell, _)| cell.weights().size);
    let all = size * cells.len();
    let initial = |slot: usize| -> Result<TensorView<'_, f32>, KernelError> {
        let view = run.f32(slot)?;
        match *view.shape() {
            // coremltools' converter of PyTorch's packed sequences gives the state as many rows as the first sequence is long. Its
            // tests demand PyTorch's answer, for which the first rows count.
            [rows, columns] if rows >= batch && columns == all => Ok(view.slice_axis(0, 0..batch)),
            ref found => {
                Err(KernelError::shape(format!("an initial state of {found:?}, not [{batch}, {all}]")))
            }
        }
    };
    let initial_h = initial(operands.initial_h)?;
    let initial_c = operands.initial_c.map(&initial).transpose()?;
    let lasting = if operands.sequence { count } else { 1 };
    let mut out = run.zeros::<f32>(&[lasting, batch, all])?;
    let mut last_h = run.zeros::<f32>(&[batch, all])?;
    let mut last_c = initial_c.is_some().then(|| run.zeros::<f32>(&[batch, all])).transpose()?;
    if batch > 0 {
        let step = batch * all;
        for (i, (cell, backwards)) in cells.iter().enumerate() {
            let first = i * size;
            let mut state = State::new(run, batch, size, C::GATES)?;
            let load = |to: &mut [f32], from: &TensorView<'_, f32>| {
                let from = from.slice((.., first..first + size));
                to.iter_mut().zip(from.transposed().iter()).for_each(|(to, &from)| *to = from);
            };
            load(&mut state.h, &initial_h);
            if let Some(initial_c) = &initial_c {
                load(&mut state.c, initial_c);
            }
            // Of two directions, the second goes backwards and is put in the order of the inputs.
            let turned = *backwards && cells.len() > 1;
            let data = dense(&mut out)?;
            steps(run, cell, &x, *backwards, &mut state, |t, state| {
                let place = match (operands.sequence, turned) {
                    (false, _) if t + 1 < count => return,
                    (false, _) => 0,
                    (true, true) => count - 1 - t,
                    (true, false) => t,
                };
                let to = &mut data[place * step..(place + 1) * step];
                transpose_into(to, &state.h, first, all, batch);
            })?;
            transpose_into(dense(&mut last_h)?, &state.h, first, all, batch);
            if let Some(last_c) = &mut last_c {
                transpose_into(dense(last_c)?, &state.c, first, all, batch);
            }
        }
    }
    Ok([Some(out), Some(last_h), last_c].into_iter().flatten().map(Value::from).collect())
}

fn dense(tensor: &mut Tensor<f32>) -> Result<&mut [f32], KernelError> {
    tensor.data_mut().ok_or_else(|| KernelError::shape("memory that is not dense"))
}

struct Rnn {
    weights: Weights,
    activation: Activation,
    gate_clip: Option<f32>,
}

impl Cell for Rnn {
    const GATES: usize = 1;

    fn weights(&self) -> &Weights {
        &self.weights
    }

    /// `h = f(W x + R h + b)`.
    fn step(&self, x: &[f32], state: &mut State) {
        let size = self.weights.size;
        state.multiply(&self.weights.hidden[0], None, 0);
        add_transposed(&mut state.gates, x, 0, size, state.batch);
        self.activation.apply(&mut state.gates, self.gate_clip);
        std::mem::swap(&mut state.h, &mut state.gates);
    }
}

struct Gru {
    weights: Weights,
    /// Of the state's matrix, if the reset gate acts after it.
    hidden_bias: Option<Vec<f32>>,
    reset_after: bool,
    recurrent_activation: Activation,
    activation: Activation,
    gate_clip: Option<f32>,
}

impl Cell for Gru {
    const GATES: usize = 3;

    fn weights(&self) -> &Weights {
        &self.weights
    }

    /// `h = (1 - z) o + z h`, where `o = g(W x + b + R (r h))`, or with `r (R h + b')`. Gates lie in the order r, z, o.
    fn step(&self, x: &[f32], state: &mut State) {
        let (size, batch) = (self.weights.size, state.batch);
        let one = size * batch;
        state.multiply(&self.weights.hidden[0], self.hidden_bias.as_deref(), 0);
        let (gates, output) = state.gates.split_at_mut(2 * one);
        add_transposed(gates, x, 0, 3 * size, batch);
        self.recurrent_activation.apply(gates, self.gate_clip);
        let reset = &gates[..one];
        if self.reset_after {
            output.iter_mut().zip(reset).for_each(|(o, r)| *o *= r);
        } else {
            let products = reset.iter().zip(state.h.iter()).map(|(r, h)| r * h);
            state.spare.iter_mut().zip(products).for_each(|(to, x)| *to = x);
            to_columns(&mut state.columns, &state.spare, size, batch);
            state.multiply(&self.weights.hidden[1], None, 2 * size);
        }
        let (gates, output) = state.gates.split_at_mut(2 * one);
        add_transposed(output, x, 2 * size, 3 * size, batch);
        self.activation.apply(output, self.gate_clip);
        let update = &gates[one..];
        for ((h, z), o) in state.h.iter_mut().zip(update).zip(output.iter()) {
            *h = (1.0 - z) * o + z * *h;
        }
    }
}

struct Lstm {
    weights: Weights,
    /// Of the input, the forget and the output gate.
    peephole: Option<Vec<f32>>,
    functions: LstmFunctions,
}

#[derive(Clone, Copy)]
struct LstmFunctions {
    recurrent_activation: Activation,
    cell_activation: Activation,
    activation: Activation,
    clip: Option<f32>,
    gate_clip: Option<f32>,
}

impl Cell for Lstm {
    const GATES: usize = 4;

    fn weights(&self) -> &Weights {
        &self.weights
    }

    /// `c = f c + i z`, `h = o h(c)`. Gates lie in the order i, f, o, z.
    fn step(&self, x: &[f32], state: &mut State) {
        let LstmFunctions { recurrent_activation, cell_activation, activation, clip, gate_clip } =
            self.functions;
        let (size, batch) = (self.weights.size, state.batch);
        let one = size * batch;
        state.multiply(&self.weights.hidden[0], None, 0);
        add_transposed(&mut state.gates, x, 0, 4 * size, batch);
        let (input_and_forget, others) = state.gates.split_at_mut(2 * one);
        let (output, block) = others.split_at_mut(one);
        let c = &mut *state.c;
        if let Some(peephole) = &self.peephole {
            let (input, forget) = input_and_forget.split_at_mut(one);
            add_scaled(input, c, peephole, batch);
            add_scaled(forget, c, &peephole[size..], batch);
        }
        recurrent_activation.apply(input_and_forget, gate_clip);
        cell_activation.apply(block, gate_clip);
        let (input, forget) = input_and_forget.split_at(one);
        for (((c, i), f), z) in c.iter_mut().zip(input).zip(forget).zip(block.iter()) {
            *c = f * *c + i * z;
        }
        if let Some(clip) = clip {
            clamp(c, clip);
        }
        if let Some(peephole) = &self.peephole {
            add_scaled(output, c, &peephole[2 * size..], batch);
        }
        recurrent_activation.apply(output, gate_clip);
        state.h.copy_from_slice(c);
        activation.apply(&mut state.h, None);
        state.h.iter_mut().zip(output.iter()).for_each(|(h, o)| *h *= o);
    }
}

fn operands(op: &mut OpBuilder<'_>, memory: bool) -> Result<Operands, OpError> {
    Ok(Operands {
        x: op.float_input("x", 3..=3)?.slot,
        initial_h: op.float_input("initial_h", 2..=2)?.slot,
        initial_c: memory.then(|| op.float_input("initial_c", 2..=2)).transpose()?.map(|input| input.slot),
        sequence: op.bool("output_sequence", false)?,
    })
}

fn gate_clip(op: &OpBuilder<'_>) -> Option<f32> {
    (op.opset() < Ios15).then_some(NETWORK_CLIP)
}

fn rnn(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let operands = operands(op, false)?;
    let backwards = Direction::read(op, false)? == Direction::Reverse;
    let bias = vector(op, "bias", "weight_hh", 1)?;
    let cell = Rnn {
        weights: Weights::read(op, ["weight_ih", "weight_hh"], bias, &[0], &[1])?,
        activation: Activation::read(op, "activation", "tanh")?,
        gate_clip: gate_clip(op),
    };
    let cells = [(cell, backwards)];
    Ok(Box::new(move |run| layer(run, &operands, &cells)))
}

fn gru(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    /// From r, o, z in the file.
    const ORDER: [usize; 3] = [0, 2, 1];
    let operands = operands(op, false)?;
    let backwards = Direction::read(op, false)? == Direction::Reverse;
    let bias = vector(op, "bias", "weight_hh", 3)?;
    let (reset_after, input_bias) = if op.opset() >= Ios18 {
        (op.bool("reset_after", false)?, vector(op, "input_bias", "weight_hh", 3)?)
    } else {
        (false, None)
    };
    let (input_bias, hidden_bias) = match (bias, input_bias) {
        (bias, input_bias) if reset_after => (input_bias, bias),
        (Some(a), Some(b)) => (Some(a.iter().zip(&b).map(|(a, b)| a + b).collect()), None),
        (a, b) => (a.or(b), None),
    };
    let split: &[usize] = if reset_after { &[3] } else { &[2, 1] };
    let weights = Weights::read(op, ["weight_ih", "weight_hh"], input_bias, &ORDER, split)?;
    let size = weights.size;
    let cell = Gru {
        hidden_bias: hidden_bias.map(|bias| {
            ORDER.iter().flat_map(|gate| bias[gate * size..(gate + 1) * size].iter().copied()).collect()
        }),
        weights,
        reset_after,
        recurrent_activation: Activation::read(op, "recurrent_activation", "sigmoid")?,
        activation: Activation::read(op, "activation", "tanh")?,
        gate_clip: gate_clip(op),
    };
    let cells = [(cell, backwards)];
    Ok(Box::new(move |run| layer(run, &operands, &cells)))
}

fn lstm(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    const FORWARD: [&str; 4] = ["weight_ih", "weight_hh", "bias", "peephole"];
    const BACK: [&str; 4] = ["weight_ih_back", "weight_hh_back", "bias_back", "peephole_back"];
    let operands = operands(op, true)?;
    let direction = Direction::read(op, true)?;
    let clip = op.float_opt("clip")?;
    if clip.is_some_and(|clip| clip.is_nan() || clip < 0.0) {
        return Err(parameter("clip", "expected a number that is not negative"));
    }
    let functions = LstmFunctions {
        recurrent_activation: Activation::read(op, "recurrent_activation", "sigmoid")?,
        cell_activation: Activation::read(op, "cell_activation", "tanh")?,
        activation: Activation::read(op, "activation", "tanh")?,
        clip,
        gate_clip: gate_clip(op),
    };
    let read = |op: &mut OpBuilder<'_>, [weight_ih, weight_hh, bias, peephole]: [&'static str; 4]| {
        let bias = vector(op, bias, weight_hh, 4)?;
        let weights = Weights::read(op, [weight_ih, weight_hh], bias, &[0, 1, 2, 3], &[4])?;
        Ok::<_, OpError>(Lstm { weights, peephole: vector(op, peephole, weight_hh, 3)?, functions })
    };
    let forward = read(op, FORWARD)?;
    let cells = if direction == Direction::Both {
        let back = read(op, BACK)?;
        if back.weights.size != forward.weights.size {
            return Err(parameter("weight_hh_back", "the two directions are not of one size"));
        }
        vec![(forward, false), (back, true)]
    } else {
        // Given or not, they are used in two directions only.
        BACK.iter().for_each(|name| _ = op.has(name));
        vec![(forward, direction == Direction::Reverse)]
    };
    Ok(Box::new(move |run| layer(run, &operands, &cells)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Opset;
    use crate::ops::testing::{Case, assert_close};
    use crate::types::DType;

    /// Numbers without a pattern, between -1 and 1.
    fn numbers(seed: u32, count: usize) -> Vec<f32> {
        let next = |state: &mut u32| {
            *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            Some((*state >> 8) as f32 / (1 << 23) as f32 - 1.0)
        };
        let mut state = seed;
        std::iter::from_fn(|| next(&mut state)).take(count).collect()
    }

    type Step<'a> = &'a dyn Fn(&[f64], &mut [f64], &mut [f64]);

    /// `W [rows, x.len()] x`, row by row, by the definition.
    fn times(weight: &[f32], x: &[f64]) -> Vec<f64> {
        let row = |row: &[f32]| row.iter().zip(x).map(|(&w, &x)| f64::from(w) * x).sum();
        weight.chunks_exact(x.len()).map(row).collect()
    }

    /// Runs every sequence of a batch by itself: `[s, b, H]`, and the last states `[b, H]`.
    fn reference(
        (x, inputs): (&[f32], usize),
        (h0, c0, size): (&[f32], &[f32], usize),
        backwards: bool,
        step: Step<'_>,
    ) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let batch = h0.len() / size;
        let count = x.len() / inputs / batch;
        let mut out = vec![0.0; count * batch * size];
        let (mut last_h, mut last_c) = (Vec::new(), Vec::new());
        let wide = |x: &[f32]| -> Vec<f64> { x.iter().map(|&x| x.into()).collect() };
        for j in 0..batch {
            let (mut h, mut c) = (wide(&h0[j * size..][..size]), wide(&c0[j * size..][..size]));
            for t in 0..count {
                let place = if backwards { count - 1 - t } else { t };
                step(&wide(&x[(place * batch + j) * inputs..][..inputs]), &mut h, &mut c);
                for (to, &h) in out[(t * batch + j) * size..].iter_mut().zip(&h) {
                    *to = h as f32;
                }
            }
            last_h.extend(h.iter().map(|&x| x as f32));
            last_c.extend(c.iter().map(|&x| x as f32));
        }
        (out, last_h, last_c)
    }

    fn sigmoid(x: f64) -> f64 {
        1.0 / (1.0 + (-x).exp())
    }

    fn values(found: Vec<Value>) -> Vec<Vec<f32>> {
        let floats = |value| match value {
            Value::F32(tensor) => tensor.to_vec(),
            Value::I32(_) => panic!("integers"),
        };
        found.into_iter().map(floats).collect()
    }

    /// Batches of one, of less than a vector, and of several panels; more states than a block of the product is deep.
    const SIZES: [(usize, usize, usize, usize); 4] =
        [(5, 1, 3, 4), (3, 2, 7, 9), (2, 101, 3, 5), (2, 3, 2, 300)];

    #[test]
    fn lstm_is_its_formula_in_every_direction_and_for_every_batch() {
        for (count, batch, inputs, size) in SIZES {
            let x = numbers(1, count * batch * inputs);
            let (h0, c0) = (numbers(2, batch * size), numbers(3, batch * size));
            let (w, u) = (numbers(4, 4 * size * inputs), numbers(5, 4 * size * size));
            let (b, p) = (numbers(6, 4 * size), numbers(7, 3 * size));
            let step = |x: &[f64], h: &mut [f64], c: &mut [f64]| {
                let sums: Vec<f64> = times(&w, x).iter().zip(times(&u, h)).map(|(a, b)| a + b).collect();
                for k in 0..size {
                    let gate = |g: usize, c: f64| {
                        let peephole = p.get(g * size + k).map_or(0.0, |&p| f64::from(p));
                        sums[g * size + k] + f64::from(b[g * size + k]) + c * peephole
                    };
                    let (i, f) = (sigmoid(gate(0, c[k])), sigmoid(gate(1, c[k])));
                    c[k] = (f * c[k] + i * gate(3, 0.0).tanh()).clamp(-0.75, 0.75);
                    h[k] = sigmoid(gate(2, c[k])) * c[k].tanh();
                }
            };
            for direction in ["forward", "reverse"] {
                for sequence in [true, false] {
                    let found = Case::new("lstm")
                        .input("x", &[count, batch, inputs], &x)
                        .input("initial_h", &[batch, size], &h0)
                        .input("initial_c", &[batch, size], &c0)
                        .floats("weight_ih", &[4 * size, inputs], &w)
                        .floats("weight_hh", &[4 * size, size], &u)
                        .floats("bias", &[4 * size], &b)
                        .floats("peephole", &[3 * size], &p)
                        .string("direction", direction)
                        .bool("output_sequence", sequence)
                        .float("clip", 0.75)
                        .run(&[DType::F32; 3]);
                    let found = values(found.unwrap());
                    let (out, h, c) =
                        reference((&x, inputs), (&h0, &c0, size), direction == "reverse", &step);
                    assert_close(&found[0], if sequence { &out } else { &h }, 2e-5);
                    assert_close(&found[1], &h, 2e-5);
                    assert_close(&found[2], &c, 2e-5);
                }
            }
        }
    }

    #[test]
    fn both_directions_are_two_layers_side_by_side_in_the_order_of_the_inputs() {
        let (count, batch, inputs, size) = (4, 2, 3, 2);
        let x = numbers(1, count * batch * inputs);
        let (h0, c0) = (numbers(2, batch * 2 * size), numbers(3, batch * 2 * size));
        let weights = |seed| (numbers(seed, 4 * size * inputs), numbers(seed + 1, 4 * size * size));
        let part = |state: &[f32], i: usize| -> Vec<f32> {
            state.chunks(2 * size).flat_map(|row| row[i * size..][..size].to_vec()).collect()
        };
        let (ahead, back) = (weights(10), weights(20));
        let bias = numbers(30, 4 * size);
        let one = |(w, u): &(Vec<f32>, Vec<f32>), i: usize, bias: &[f32]| {
            let found = Case::new("lstm")
                .input("x", &[count, batch, inputs], &x)
                .input("initial_h", &[batch, size], &part(&h0, i))
                .input("initial_c", &[batch, size], &part(&c0, i))
                .floats("weight_ih", &[4 * size, inputs], w)
                .floats("weight_hh", &[4 * size, size], u)
                .floats("bias", &[4 * size], bias)
                .string("direction", ["forward", "reverse"][i])
                .bool("output_sequence", true)
                .run(&[DType::F32; 3]);
            values(found.unwrap())
        };
        let (first, second) = (one(&ahead, 0, &[0.0; 8]), one(&back, 1, &bias));
        for sequence in [true, false] {
            let found = Case::new("lstm")
                .input("x", &[count, batch, inputs], &x)
                .input("initial_h", &[batch, 2 * size], &h0)
                .input("initial_c", &[batch, 2 * size], &c0)
                .floats("weight_ih", &[4 * size, inputs], &ahead.0)
                .floats("weight_hh", &[4 * size, size], &ahead.1)
                .floats("weight_ih_back", &[4 * size, inputs], &back.0)
                .floats("weight_hh_back", &[4 * size, size], &back.1)
                .floats("bias_back", &[4 * size], &bias)
                .string("direction", "bidirectional")
                .bool("output_sequence", sequence)
                .run(&[DType::F32; 3]);
            let found = values(found.unwrap());
            let joined = |t: usize, back: usize, j: usize| {
                let row = |data: &[f32], t: usize| data[(t * batch + j) * size..][..size].to_vec();
                [row(&first[0], t), row(&second[0], back)].concat()
            };
            let rows = |steps: &[(usize, usize)]| -> Vec<f32> {
                steps.iter().flat_map(|&(t, back)| (0..batch).flat_map(move |j| joined(t, back, j))).collect()
            };
            let last = [(count - 1, count - 1)];
            let every: Vec<_> = (0..count).map(|t| (t, count - 1 - t)).collect();
            assert_close(&found[0], &rows(if sequence { &every } else { &last }), 0.0);
            assert_close(&found[1], &rows(&last), 0.0);
            for j in 0..batch {
                let row = |data: &[f32]| data[j * size..][..size].to_vec();
                assert_close(
                    &found[2][j * 2 * size..][..2 * size],
                    &[row(&first[2]), row(&second[2])].concat(),
                    0.0,
                );
            }
        }
    }

    #[test]
    fn gru_resets_before_the_matrix_or_after_it() {
        for (count, batch, inputs, size) in SIZES {
            let x = numbers(1, count * batch * inputs);
            let h0 = numbers(2, batch * size);
            let (w, u) = (numbers(4, 3 * size * inputs), numbers(5, 3 * size * size));
            let (bias, input_bias) = (numbers(6, 3 * size), numbers(7, 3 * size));
            for reset_after in [false, true] {
                let step = |x: &[f64], h: &mut [f64], _: &mut [f64]| {
                    let at = |v: &[f32], k: usize| f64::from(v[k]);
                    let (a, b) = (times(&w, x), times(&u, h));
                    let gate = |k: usize| a[k] + b[k] + at(&bias, k) + at(&input_bias, k);
                    let r: Vec<f64> = (0..size).map(|k| sigmoid(gate(k))).collect();
                    let held: Vec<f64> = h.iter().zip(&r).map(|(h, r)| h * r).collect();
                    let inner = times(&u[size * size..][..size * size], &held);
                    for k in 0..size {
                        let (o, z) = (size + k, sigmoid(gate(2 * size + k)));
                        let n = if reset_after {
                            a[o] + at(&input_bias, o) + r[k] * (b[o] + at(&bias, o))
                        } else {
                            a[o] + at(&input_bias, o) + at(&bias, o) + inner[k]
                        };
                        h[k] = (1.0 - z) * n.tanh() + z * h[k];
                    }
                };
                for direction in ["forward", "reverse"] {
                    let found = Case::in_opset("gru", Opset::Ios18)
                        .input("x", &[count, batch, inputs], &x)
                        .input("initial_h", &[batch, size], &h0)
                        .floats("weight_ih", &[3 * size, inputs], &w)
                        .floats("weight_hh", &[3 * size, size], &u)
                        .floats("bias", &[3 * size], &bias)
                        .floats("input_bias", &[3 * size], &input_bias)
                        .bool("reset_after", reset_after)
                        .string("direction", direction)
                        .bool("output_sequence", true)
                        .run(&[DType::F32; 2]);
                    let found = values(found.unwrap());
                    let backwards = direction == "reverse";
                    let (out, h, _) = reference((&x, inputs), (&h0, &h0, size), backwards, &step);
                    assert_close(&found[0], &out, 2e-5);
                    assert_close(&found[1], &h, 2e-5);
                }
            }
        }
    }

    /// An `rnn` of one number, weights 2 and 3, over the inputs 0.5, 20, -40.
    fn small(opset: Opset, activation: &str) -> Case {
        Case::in_opset("rnn", opset)
            .input("x", &[3, 1, 1], &[0.5, 20.0, -40.0])
            .input("initial_h", &[1, 1], &[1.0])
            .floats("weight_ih", &[1, 1], &[2.0])
            .floats("weight_hh", &[1, 1], &[3.0])
            .floats("bias", &[1], &[0.25])
            .bool("output_sequence", true)
            .string("activation", activation)
    }

    #[test]
    fn rnn_has_every_activation_and_networks_limit_what_enters_it() {
        let run =
            |opset, activation| values(small(opset, activation).run(&[DType::F32; 2]).unwrap()).remove(0);
        // 0.5 * 2 + 1 * 3 + 0.25 = 4.25; then 20 * 2 + 4.25 * 3 + 0.25 = 53; then -80 + 53 * 3 + 0.25 = 79.25.
        assert_eq!(run(Opset::Ios15, "linear"), [4.25, 53.0, 79.25]);
        assert_eq!(run(Opset::Ios13, "linear"), [4.25, 50.0, 50.0]);
        assert_eq!(run(Opset::Ios17, "RELU"), [4.25, 53.0, 79.25]);
        // clip(0.2 * 4.25 + 0.5), clip(0.2 * (40 + 3.25) + 0.5), clip(0.2 * (-80 + 3.25) + 0.5)
        assert_eq!(run(Opset::Ios15, "hard_sigmoid"), [1.0, 1.0, 0.0]);
        assert_eq!(run(Opset::Ios15, "sigmoid_hard"), [1.0, 1.0, 0.0]);
        let tanh = 4.25_f32.tanh();
        assert_close(&run(Opset::Ios15, "tanh"), &[tanh, 1.0, -1.0], 1e-6);
        assert_close(&run(Opset::Ios15, "scaled_tanh"), &[tanh, 1.0, -1.0], 1e-6);
        assert_close(&run(Opset::Ios15, "sigmoid"), &[1.0 / (1.0 + (-4.25_f32).exp()), 1.0, 0.0], 1e-6);
        assert!(small(Opset::Ios15, "elu").error().contains("no activation is called `elu`"));
    }

    fn bare(x: &[usize], h: &[usize], weight_ih: &[usize], weight_hh: &[usize]) -> Case {
        let data = |shape: &[usize]| vec![0.5; shape.iter().product()];
        Case::new("rnn")
            .input("x", x, &data(x))
            .input("initial_h", h, &data(h))
            .floats("weight_ih", weight_ih, &data(weight_ih))
            .floats("weight_hh", weight_hh, &data(weight_hh))
    }

    #[test]
    fn sizes_that_do_not_go_together_are_refused() {
        let run = |case: Case| case.run(&[DType::F32; 2]).map(|_| ()).unwrap_err();
        assert!(bare(&[2, 1, 3], &[1, 4], &[4, 3], &[4, 4]).run(&[DType::F32; 2]).is_ok());
        assert!(run(bare(&[2, 1, 2], &[1, 4], &[4, 3], &[4, 4])).contains("rows of 2 elements"));
        assert!(run(bare(&[2, 2, 3], &[1, 4], &[4, 3], &[4, 4])).contains("[2, 4]"));
        assert!(run(bare(&[0, 1, 3], &[1, 4], &[4, 3], &[4, 4])).contains("no steps"));
        assert!(run(bare(&[2, 1, 3], &[1, 4], &[5, 3], &[4, 4])).contains("not those of 1 gates"));
        assert!(run(bare(&[2, 1, 3], &[1, 0], &[0, 3], &[0, 0])).contains("not those of 1 gates"));
        assert!(run(bare(&[2, 3], &[1, 4], &[4, 3], &[4, 4])).contains("rank"));
        assert!(
            run(bare(&[2, 1, 3], &[1, 4], &[4, 3], &[4, 4]).floats("bias", &[3], &[0.0; 3]))
                .contains("found 3")
        );
        let both = bare(&[2, 1, 3], &[1, 4], &[4, 3], &[4, 4]).string("direction", "bidirectional");
        assert!(run(both).contains("no direction"));
    }

    #[test]
    fn of_a_state_with_more_rows_than_the_batch_the_first_count() {
        let run = |rows: usize| {
            let state = numbers(2, 12);
            let case = Case::new("rnn")
                .input("x", &[3, 2, 1], &numbers(1, 6))
                .input("initial_h", &[rows, 4], &state[..rows * 4])
                .floats("weight_ih", &[4, 1], &numbers(3, 4))
                .floats("weight_hh", &[4, 4], &numbers(4, 16));
            values(case.run(&[DType::F32; 2]).unwrap())
        };
        assert_eq!(run(3), run(2));
    }

    #[test]
    fn a_batch_of_none_gives_nothing() {
        let found = bare(&[2, 0, 3], &[0, 4], &[4, 3], &[4, 4]).run(&[DType::F32; 2]).unwrap();
        assert_eq!(found[0].shape(), [1, 0, 4]);
        assert_eq!(found[1].shape(), [0, 4]);
    }

    #[test]
    fn gru_of_an_older_opset_does_not_know_reset_after() {
        let case = Case::in_opset("gru", Opset::Ios17)
            .input("x", &[1, 1, 1], &[0.5])
            .input("initial_h", &[1, 1], &[0.5])
            .floats("weight_ih", &[3, 1], &[0.5; 3])
            .floats("weight_hh", &[3, 1], &[0.5; 3])
            .bool("reset_after", true);
        assert!(case.run(&[DType::F32; 2]).unwrap_err().contains("reset_after"));
    }
}
