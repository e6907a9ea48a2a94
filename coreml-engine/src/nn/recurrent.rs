//! Recurrent layers.
//!
//! A sequence is `[Seq, Batch, size, 1, 1]`, a state `[1, Batch, size, 1, 1]`. Which matrix goes where in the ops, and the order
//! of states among the inputs and outputs, is as in coremltools' `converters/mil/backend/nn/op_mapping.py`. Without states among
//! its inputs a layer begins with zeros.

use coreml_proto::proto as spec;
use spec::activation_params::NonlinearityType as Kind;

use super::context::{Arg, Blob, Context, Dim, Dims, invalid, size, unsupported};
use super::{LayerDef, weights};
use crate::error::OpError;
use crate::ir::Constant;
use crate::types::DType;

pub(super) const LAYERS: &[LayerDef] = &[
    layer!("simpleRecurrent", SimpleRecurrent, simple),
    layer!("gru", Gru, gru),
    layer!("uniDirectionalLSTM", UniDirectionalLstm, lstm),
    layer!("biDirectionalLSTM", BiDirectionalLstm, lstm_both_ways),
];

/// Limit of the memory where the file has none.
const CELL_CLIP: f32 = 50.0;

/// The name of an activation among the parameters of ops. They have one set of factors; the format says that these are the
/// layers' too, so a file that asks for others is refused.
fn activation(p: Option<&spec::ActivationParams>) -> Result<&'static str, OpError> {
    let kind = p.and_then(|p| p.nonlinearity_type.as_ref());
    let factors = |name: &'static str, given: [f32; 2], right: [f32; 2]| {
        // coremltools leaves them unset.
        let near = given.iter().zip(right).all(|(given, right)| (given - right).abs() < 1e-3);
        if given == [0.0; 2] || near {
            return Ok(name);
        }
        Err(unsupported(format!("the activation {name} with the factors {given:?} in a recurrent layer")))
    };
    match kind.ok_or_else(|| invalid("a recurrent layer without an activation"))? {
        Kind::Linear(p) => factors("linear", [p.alpha, p.beta], [1.0, 0.0]),
        Kind::ReLu(_) => Ok("relu"),
        Kind::Tanh(_) => Ok("tanh"),
        Kind::ScaledTanh(p) => factors("scaled_tanh", [p.alpha, p.beta], [1.0, 1.0]),
        Kind::Sigmoid(_) => Ok("sigmoid"),
        Kind::SigmoidHard(p) => factors("hard_sigmoid", [p.alpha, p.beta], [0.2, 0.5]),
        Kind::LeakyReLu(_)
        | Kind::ThresholdedReLu(_)
        | Kind::PReLu(_)
        | Kind::Elu(_)
        | Kind::Softsign(_)
        | Kind::Softplus(_)
        | Kind::ParametricSoftplus(_) => Err(invalid("an activation that recurrent layers do not have")),
    }
}

fn activations<const N: usize>(p: &[spec::ActivationParams]) -> Result<[&'static str; N], OpError> {
    let names = p.iter().map(|p| activation(Some(p))).collect::<Result<Vec<_>, _>>()?;
    names.try_into().map_err(|names: Vec<_>| invalid(format!("{} activations, expected {N}", names.len())))
}

/// Weights as they are in the file, with the name for error texts.
type Part<'a> = (&'static str, Option<&'a spec::WeightParams>);

/// Matrices or vectors of several gates, one below the other. Without columns they are vectors.
fn stacked(parts: &[Part<'_>], rows: usize, columns: Option<usize>) -> Result<Vec<f32>, OpError> {
    let shape: Vec<_> = std::iter::once(rows).chain(columns).collect();
    let parts = parts.iter().map(|&(name, part)| weights::floats(name, part, &shape));
    Ok(parts.collect::<Result<Vec<_>, _>>()?.concat())
}

fn argument(data: Vec<f32>, columns: Option<usize>) -> Result<Arg, OpError> {
    let shape: Vec<_> = std::iter::once(data.len() / columns.unwrap_or(1)).chain(columns).collect();
    Ok(Constant::f32(&shape, data).map_err(OpError::Invalid)?.into())
}

fn sizes(inputs: u64, outputs: u64) -> Result<(usize, usize), OpError> {
    Ok((size(inputs)?, size(outputs)?))
}

/// The blobs of a layer as what the ops take.
struct Blobs {
    /// `[Seq, Batch, size]`.
    x: Blob,
    /// `[Batch, size]`, in the order of the layer's inputs.
    states: Vec<Blob>,
}

impl Blobs {
    /// Of a layer that takes a sequence of vectors of `inputs`, and `count` states of `outputs` or none.
    fn read(cx: &mut Context<'_>, inputs: usize, outputs: usize, count: usize) -> Result<Self, OpError> {
        let x = cx.first()?;
        if x.rank() != 5 || x.dims[2].is_some_and(|dim| dim != inputs) {
            return Err(invalid(format!("{}, expected [Seq, Batch, {inputs}, 1, 1]", x.words())));
        }
        let x = cx.squeeze(&x, &[3, 4])?;
        let states = match cx.inputs.clone().split_off(1) {
            none if none.is_empty() => {
                let shape = match x.dims[1] {
                    Some(batch) => Arg::from(super::context::ints(&[batch, outputs])?),
                    None => cx.shape_of_dims(&[Dim::Of(&x, 1), Dim::Known(outputs)])?.into(),
                };
                let dims = vec![x.dims[1], Some(outputs)];
                vec![cx.op("fill", [("shape", shape), ("value", 0.0.into())], dims); count]
            }
            states if states.len() == count => {
                let state = |state: &Blob| {
                    let is = |axis: usize, size| state.dims[axis].is_none_or(|dim| dim == size);
                    let specified = state.rank() == 5 && is(0, 1) && is(2, outputs);
                    // As coremltools' converter of the op `rnn` writes it: [Batch, size, 1, 1, 1].
                    let converted = state.rank() == 5 && is(1, outputs) && (2..5).all(|axis| is(axis, 1));
                    // Where a state of one number may be either, a first dimension that is left open is the batch.
                    if specified && !(converted && state.dims[0].is_none()) {
                        return cx.squeeze(state, &[0, 3, 4]);
                    }
                    if converted {
                        return cx.squeeze(state, &[2, 3, 4]);
                    }
                    Err(invalid(format!("{}, expected [1, Batch, {outputs}, 1, 1]", state.words())))
                };
                states.iter().map(state).collect::<Result<_, _>>()?
            }
            states => {
                return Err(invalid(format!("{} inputs, expected 1 or {}", states.len() + 1, count + 1)));
            }
        };
        Ok(Self { x, states })
    }

    /// Adds the op: its sequence as the layer's first output, and its `states` states of `outputs` numbers as they are.
    fn op(
        &self,
        cx: &mut Context<'_>,
        kind: &str,
        mut arguments: Vec<(&'static str, Arg)>,
        (sequence, outputs, states): (bool, usize, usize),
    ) -> Result<(Blob, Vec<Blob>), OpError> {
        arguments.extend([("x", (&self.x).into()), ("output_sequence", sequence.into())]);
        let (count, batch) = (self.x.dims[0], self.x.dims[1]);
        let made: Dims = vec![if sequence { count } else { Some(1) }, batch, Some(outputs)];
        let types = std::iter::once((DType::F32, made))
            .chain(std::iter::repeat_n((DType::F32, vec![batch, Some(outputs)]), states));
        let mut blobs = cx.ops(kind, arguments, types.collect());
        let states = blobs.split_off(1);
        let out = cx.expand(&blobs[0], &[3, 4])?;
        Ok((out, states))
    }
}

/// A state as an output of a layer.
fn state(cx: &mut Context<'_>, state: &Blob) -> Result<Blob, OpError> {
    cx.expand(state, &[0, 3, 4])
}

/// The outputs of a layer of one direction.
fn outputs(cx: &mut Context<'_>, out: Blob, states: &[Blob]) -> Result<Vec<Blob>, OpError> {
    let states = states.iter().map(|blob| state(cx, blob)).collect::<Result<Vec<_>, _>>()?;
    Ok(std::iter::once(out).chain(states).collect())
}

fn direction(reverse: bool) -> Arg {
    (if reverse { "reverse" } else { "forward" }).into()
}

fn simple(cx: &mut Context<'_>, p: &spec::SimpleRecurrentLayerParams) -> Result<Vec<Blob>, OpError> {
    let (n, h) = sizes(p.input_vector_size, p.output_vector_size)?;
    let blobs = Blobs::read(cx, n, h, 1)?;
    let input = stacked(&[("weightMatrix", p.weight_matrix.as_ref())], h, Some(n))?;
    let hidden = stacked(&[("recursionMatrix", p.recursion_matrix.as_ref())], h, Some(h))?;
    let mut arguments = vec![
        ("initial_h", (&blobs.states[0]).into()),
        ("weight_ih", argument(input, Some(n))?),
        ("weight_hh", argument(hidden, Some(h))?),
        ("activation", activation(p.activation.as_ref())?.into()),
        ("direction", direction(p.reverse_input)),
    ];
    if p.has_bias_vector {
        let bias = stacked(&[("biasVector", p.bias_vector.as_ref())], h, None)?;
        arguments.push(("bias", argument(bias, None)?));
    }
    let (out, states) = blobs.op(cx, "rnn", arguments, (p.sequence_output, h, 1))?;
    outputs(cx, out, &states)
}

fn gru(cx: &mut Context<'_>, p: &spec::GruLayerParams) -> Result<Vec<Blob>, OpError> {
    let (n, h) = sizes(p.input_vector_size, p.output_vector_size)?;
    let blobs = Blobs::read(cx, n, h, 1)?;
    let input = [
        ("resetGateWeightMatrix", p.reset_gate_weight_matrix.as_ref()),
        ("outputGateWeightMatrix", p.output_gate_weight_matrix.as_ref()),
        ("updateGateWeightMatrix", p.update_gate_weight_matrix.as_ref()),
    ];
    let hidden = [
        ("resetGateRecursionMatrix", p.reset_gate_recursion_matrix.as_ref()),
        ("outputGateRecursionMatrix", p.output_gate_recursion_matrix.as_ref()),
        ("updateGateRecursionMatrix", p.update_gate_recursion_matrix.as_ref()),
    ];
    let [gates, output] = activations(&p.activations)?;
    let mut arguments = vec![
        ("initial_h", (&blobs.states[0]).into()),
        ("weight_ih", argument(stacked(&input, h, Some(n))?, Some(n))?),
        ("weight_hh", argument(stacked(&hidden, h, Some(h))?, Some(h))?),
        ("recurrent_activation", gates.into()),
        ("activation", output.into()),
        ("direction", direction(p.reverse_input)),
    ];
    if p.has_bias_vectors {
        let bias = [
            ("resetGateBiasVector", p.reset_gate_bias_vector.as_ref()),
            ("outputGateBiasVector", p.output_gate_bias_vector.as_ref()),
            ("updateGateBiasVector", p.update_gate_bias_vector.as_ref()),
        ];
        arguments.push(("bias", argument(stacked(&bias, h, None)?, None)?));
    }
    let (out, states) = blobs.op(cx, "gru", arguments, (p.sequence_output, h, 1))?;
    outputs(cx, out, &states)
}

/// The names of the weights of one direction in the op.
type Names = [&'static str; 4];
const FORWARD: Names = ["weight_ih", "weight_hh", "bias", "peephole"];
const BACK: Names = ["weight_ih_back", "weight_hh_back", "bias_back", "peephole_back"];

/// The weights of one direction.
fn direction_weights(
    flags: &spec::LstmParams,
    p: &spec::LstmWeightParams,
    (n, h): (usize, usize),
    [weight_ih, weight_hh, bias, peephole]: Names,
) -> Result<Vec<(&'static str, Arg)>, OpError> {
    // Of coupled gates the forget gate is 1 - i. For both sigmoids that is the input gate of the negative sum.
    let coupled = flags.coupled_input_and_forget_gate;
    let couple = |mut data: Vec<f32>, gates: usize| {
        if coupled {
            let gate = data.len() / gates;
            let (input, others) = data.split_at_mut(gate);
            others.iter_mut().zip(input).for_each(|(forget, input)| *forget = -*input);
        }
        data
    };
    let order = |input, forget, output, block| [input, if coupled { input } else { forget }, output, block];
    let matrices = order(
        ("inputGateWeightMatrix", p.input_gate_weight_matrix.as_ref()),
        ("forgetGateWeightMatrix", p.forget_gate_weight_matrix.as_ref()),
        ("outputGateWeightMatrix", p.output_gate_weight_matrix.as_ref()),
        ("blockInputWeightMatrix", p.block_input_weight_matrix.as_ref()),
    );
    let recursion = order(
        ("inputGateRecursionMatrix", p.input_gate_recursion_matrix.as_ref()),
        ("forgetGateRecursionMatrix", p.forget_gate_recursion_matrix.as_ref()),
        ("outputGateRecursionMatrix", p.output_gate_recursion_matrix.as_ref()),
        ("blockInputRecursionMatrix", p.block_input_recursion_matrix.as_ref()),
    );
    let mut arguments = vec![
        (weight_ih, argument(couple(stacked(&matrices, h, Some(n))?, 4), Some(n))?),
        (weight_hh, argument(couple(stacked(&recursion, h, Some(h))?, 4), Some(h))?),
    ];
    let mut biases = if flags.has_bias_vectors {
        let biases = order(
            ("inputGateBiasVector", p.input_gate_bias_vector.as_ref()),
            ("forgetGateBiasVector", p.forget_gate_bias_vector.as_ref()),
            ("outputGateBiasVector", p.output_gate_bias_vector.as_ref()),
            ("blockInputBiasVector", p.block_input_bias_vector.as_ref()),
        );
        couple(stacked(&biases, h, None)?, 4)
    } else {
        vec![0.0; h.checked_mul(4).ok_or_else(|| invalid("the size overflows"))?]
    };
    if flags.forget_bias && !coupled {
        biases[h..2 * h].iter_mut().for_each(|b| *b += 1.0);
    }
    arguments.push((bias, argument(biases, None)?));
    if flags.has_peephole_vectors {
        let own = ("forgetGatePeepholeVector", p.forget_gate_peephole_vector.as_ref());
        let input = ("inputGatePeepholeVector", p.input_gate_peephole_vector.as_ref());
        let output = ("outputGatePeepholeVector", p.output_gate_peephole_vector.as_ref());
        let data = stacked(&[input, if coupled { input } else { own }, output], h, None)?;
        arguments.push((peephole, argument(couple(data, 3), None)?));
    }
    Ok(arguments)
}

/// What both kinds of layer have in common: the activations and the limit of the memory.
fn common(
    flags: &spec::LstmParams,
    functions: &[spec::ActivationParams],
) -> Result<Vec<(&'static str, Arg)>, OpError> {
    let [gates, cell, output] = activations(functions)?;
    if flags.coupled_input_and_forget_gate && !matches!(gates, "sigmoid" | "hard_sigmoid") {
        return Err(unsupported(format!("coupled gates with the activation {gates}")));
    }
    let clip = flags.cell_clip_threshold;
    let clip = if clip == 0.0 { CELL_CLIP } else { clip };
    Ok(vec![
        ("recurrent_activation", gates.into()),
        ("cell_activation", cell.into()),
        ("activation", output.into()),
        ("clip", clip.into()),
    ])
}

fn lstm(cx: &mut Context<'_>, p: &spec::UniDirectionalLstmLayerParams) -> Result<Vec<Blob>, OpError> {
    let (n, h) = sizes(p.input_vector_size, p.output_vector_size)?;
    let flags = p.params.unwrap_or_default();
    let weights = p.weight_params.as_ref().ok_or(OpError::Missing("weightParams"))?;
    let blobs = Blobs::read(cx, n, h, 2)?;
    let mut arguments = common(&flags, &p.activations)?;
    arguments.extend(direction_weights(&flags, weights, (n, h), FORWARD)?);
    arguments.extend([
        ("initial_h", (&blobs.states[0]).into()),
        ("initial_c", (&blobs.states[1]).into()),
        ("direction", direction(p.reverse_input)),
    ]);
    let (out, states) = blobs.op(cx, "lstm", arguments, (flags.sequence_output, h, 2))?;
    outputs(cx, out, &states)
}

fn lstm_both_ways(
    cx: &mut Context<'_>,
    p: &spec::BiDirectionalLstmLayerParams,
) -> Result<Vec<Blob>, OpError> {
    let (n, h) = sizes(p.input_vector_size, p.output_vector_size)?;
    let both = h.checked_mul(2).ok_or_else(|| invalid("the size overflows"))?;
    let flags = p.params.unwrap_or_default();
    let [forward, back] = &p.weight_params[..] else {
        return Err(invalid(format!("the weights of {} directions, expected 2", p.weight_params.len())));
    };
    if activations::<3>(&p.activations_forward_lstm)? != activations(&p.activations_backward_lstm)? {
        return Err(invalid("the two directions have different activations"));
    }
    // Inputs: x, h, c, h of the way back, c of the way back.
    let blobs = Blobs::read(cx, n, h, 4)?;
    let mut arguments = common(&flags, &p.activations_forward_lstm)?;
    arguments.extend(direction_weights(&flags, forward, (n, h), FORWARD)?);
    arguments.extend(direction_weights(&flags, back, (n, h), BACK)?);
    let [h0, c0, h0_back, c0_back] = &blobs.states[..] else { return Err(invalid("four states are needed")) };
    let initial_h = cx.concat(&[h0.clone(), h0_back.clone()], 1, false)?;
    let initial_c = cx.concat(&[c0.clone(), c0_back.clone()], 1, false)?;
    arguments.extend([
        ("initial_h", (&initial_h).into()),
        ("initial_c", (&initial_c).into()),
        ("direction", "bidirectional".into()),
    ]);
    let (out, states) = blobs.op(cx, "lstm", arguments, (flags.sequence_output, both, 2))?;
    let mut made = vec![out];
    if cx.outputs > 1 {
        let middle = i64::try_from(h).map_err(|_| invalid("the size overflows"))?;
        for (begin, end) in [(0, Some(middle)), (middle, None)] {
            for blob in &states {
                let half = cx.slice(blob, 1, begin, end, 1)?;
                made.push(state(cx, &half)?);
            }
        }
    }
    Ok(made)
}
