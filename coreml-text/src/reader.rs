//! What runs on the inference thread: reading tokens into a model's memory.
//!
//! A model's memory cannot leave its thread, and a thread can lose its instance. So the tokens are the truth and a memory is a
//! cache of them: each inference thread keeps the memories that were used last, as many as there is room for
//! ([`TextModel::with_memory`](crate::TextModel::with_memory)), and a text goes on with the one that holds the longest beginning of it. What is not there is read again. So several texts share one model, one that begins like another
//! continues from a copy of its memory, and nothing is lost when a thread starts anew. `docs/decisions/0006` has the reasons.

use std::cell::RefCell;
use std::sync::Arc;

use coreml_bridge::{
    CoreMlHandle, Dtype, Element, Error, FeatureError, Features, PredictOptions, Role, State, Tensor,
    TensorError,
};
use coreml_client::ModelRef;
use half::f16;

use crate::layout::{Causal, Memory, TensorPort};

/// Less than this is sooner read again than copied.
const WORTH_A_COPY: usize = 16;

thread_local! {
    /// The one that was used last comes last.
    static MEMORIES: RefCell<Vec<Reader>> = const { RefCell::new(Vec::new()) };
}

/// Tokens that a model has read.
pub(crate) struct Reader {
    model_ref: ModelRef,
    store: Store,
    read: Vec<u32>,
    /// Tokens read since it was opened; a step that reads none counts as one.
    worked: usize,
}

enum Store {
    State(State),
    Explicit(Vec<Tensor>),
    None,
}

impl Store {
    fn new(model: &CoreMlHandle, layout: &Causal) -> Result<Self, Error> {
        Ok(match &layout.memory {
            Memory::State => Self::State(model.new_state()?),
            Memory::Explicit(pairs) => {
                let zeros = |(port, _): &(TensorPort, _)| {
                    Tensor::zeros(port.spec.dtype, &port.spec.shape)
                        .map_err(|source| input(model, port, source))
                };
                Self::Explicit(pairs.iter().map(zeros).collect::<Result<_, _>>()?)
            }
            Memory::None => Self::None,
        })
    }

    fn fork(&self) -> Result<Self, Error> {
        Ok(match self {
            Self::State(state) => Self::State(state.fork()?),
            Self::Explicit(tensors) => Self::Explicit(tensors.clone()),
            Self::None => Self::None,
        })
    }
}

fn input(model: &CoreMlHandle, port: &TensorPort, source: TensorError) -> Error {
    Error::Tensor { model: Arc::clone(model.path()), feature: Arc::clone(&port.name), source }
}

impl Reader {
    /// The memory of this thread that holds the longest beginning of `tokens`, or a new one. A text that goes on takes its own
    /// memory; one that only begins like another takes a copy, and leaves the other its own.
    pub(crate) fn open(
        model: &CoreMlHandle,
        model_ref: ModelRef,
        layout: &Causal,
        tokens: &[u32],
    ) -> Result<Self, Error> {
        let found = MEMORIES.with_borrow_mut(|memories| {
            let own = memories.iter().enumerate().filter(|(_, reader)| reader.model_ref == model_ref);
            let candidates = own.map(|(i, reader)| {
                // At least one token is read anew: its logits are wanted.
                let common = reader.shared(tokens).min(tokens.len().saturating_sub(1));
                // Of equals one that need not be copied: the text's own, and not one that went the same way before it.
                (common, reader.read.len() <= common + 1, i)
            });
            let (common, ends_there, best) = candidates.max()?;
            if ends_there && common > 0 {
                let mut reader = memories.remove(best);
                reader.read.truncate(common);
                reader.worked = 0;
                return Some(Ok::<_, Error>(reader));
            }
            (common >= WORTH_A_COPY).then(|| {
                let store = memories[best].store.fork()?;
                Ok(Self { model_ref, store, read: tokens[..common].to_vec(), worked: 0 })
            })
        });
        match found {
            Some(Ok(reader)) => Ok(reader),
            // A memory of an instance that is gone cannot be copied.
            Some(Err(_)) | None => Self::new(model, model_ref, layout),
        }
    }

    fn new(model: &CoreMlHandle, model_ref: ModelRef, layout: &Causal) -> Result<Self, Error> {
        Ok(Self { model_ref, store: Store::new(model, layout)?, read: Vec::new(), worked: 0 })
    }

    /// How much it has read since it was opened, which a slice of work is measured by.
    pub(crate) fn worked(&self) -> usize {
        self.worked
    }

    /// How many tokens it has read.
    pub(crate) fn len(&self) -> usize {
        self.read.len()
    }

    /// Goes back to where `tokens` part from what it has read, if they do. Nothing has to be undone: what comes later is hidden until it
    /// is overwritten.
    pub(crate) fn rewind(&mut self, tokens: &[u32]) {
        // As when it was opened, the last token is read anew.
        let common = self.shared(tokens).min(tokens.len().saturating_sub(1));
        self.read.truncate(common);
    }

    fn shared(&self, tokens: &[u32]) -> usize {
        self.read.iter().zip(tokens).take_while(|(a, b)| a == b).count()
    }

    /// Leaves the memory to whoever goes on with its text; of all of its model the `most` that were used last are kept.
    pub(crate) fn keep(self, most: usize) {
        MEMORIES.with_borrow_mut(|memories| {
            let model_ref = self.model_ref;
            memories.push(self);
            let own = |reader: &Reader| reader.model_ref == model_ref;
            while memories.iter().filter(|reader| own(reader)).count() > most {
                // The first is the one that nobody used for the longest time.
                let Some(oldest) = memories.iter().position(own) else { break };
                memories.remove(oldest);
            }
        });
    }

    /// Reads one chunk of what is not read yet of `tokens`, which begin with what is; `Some`: all is read, and these are the logits
    /// of the token after it. A memory whose instance is gone begins anew.
    pub(crate) fn advance(
        &mut self,
        model: &CoreMlHandle,
        layout: &Causal,
        tokens: &[u32],
    ) -> Result<Option<Vec<f32>>, Error> {
        match self.read_chunk(model, layout, tokens) {
            Err(Error::ForeignState { .. }) => {
                let model_ref = self.model_ref;
                MEMORIES.with_borrow_mut(|memories| memories.retain(|reader| reader.model_ref != model_ref));
                *self = Self { worked: self.worked + 1, ..Self::new(model, model_ref, layout)? };
                Ok(None)
            }
            other => other,
        }
    }

    fn read_chunk(
        &mut self,
        model: &CoreMlHandle,
        layout: &Causal,
        tokens: &[u32],
    ) -> Result<Option<Vec<f32>>, Error> {
        let start = self.read.len();
        let (outputs, end) = match &mut self.store {
            Store::State(state) => {
                let end = start + layout.chunk(tokens.len() - start);
                let inputs = inputs(model, layout, &tokens[start..end], start, end - start)?;
                let options = PredictOptions { state: Some(state), ..PredictOptions::default() };
                (model.predict_with(&inputs, options)?.outputs, end)
            }
            Store::Explicit(caches) => {
                let Memory::Explicit(pairs) = &layout.memory else {
                    unreachable!("the store was made for the layout")
                };
                let end = start + layout.chunk(tokens.len() - start);
                let mut inputs = inputs(model, layout, &tokens[start..end], start, end - start)?;
                for ((port, _), cache) in pairs.iter().zip(caches.iter()) {
                    inputs.insert(Arc::clone(&port.name), cache.clone());
                }
                let outputs = model.predict(&inputs)?;
                for ((_, output), cache) in pairs.iter().zip(caches.iter_mut()) {
                    *cache = tensor(model, &outputs, output)?;
                }
                (outputs, end)
            }
            Store::None => {
                let length = layout.tokens.padded(tokens.len()).unwrap_or(tokens.len());
                let mut inputs = inputs(model, layout, tokens, 0, length)?;
                if let Some(port) = &layout.padding {
                    let ones = padded(tokens.iter().map(|_| 1.0_f32), length);
                    inputs.insert(Arc::clone(&port.name), row(model, port, ones)?.cast(port.spec.dtype));
                }
                self.read.clear();
                (model.predict(&inputs)?, tokens.len())
            }
        };
        self.worked += end.saturating_sub(start).max(1);
        let start = self.read.len();
        self.read.extend_from_slice(&tokens[start..end]);
        if end < tokens.len() {
            return Ok(None);
        }
        last_logits(model, layout, &outputs, end - start - 1).map(Some)
    }
}

/// Tokens, mask and positions for `length` places from `start` on; where there are fewer tokens it is padded on the right, where a causal
/// model does not look.
fn inputs(
    model: &CoreMlHandle,
    layout: &Causal,
    tokens: &[u32],
    start: usize,
    length: usize,
) -> Result<Features, Error> {
    let mut inputs = Features::new();
    let ids = padded(tokens.iter().map(|&token| token.cast_signed()), length);
    inputs.insert(Arc::clone(&layout.tokens.name), row(model, &layout.tokens, ids)?);
    if let Some(port) = &layout.mask {
        let width = if layout.mask_is_whole { layout.context } else { start + length };
        inputs.insert(Arc::clone(&port.name), causal_mask(model, port, start, length, width)?);
    }
    if let Some(port) = &layout.positions {
        let positions = (start..start + length).map(|i| i32::try_from(i).unwrap_or(i32::MAX)).collect();
        inputs.insert(Arc::clone(&port.name), row(model, port, positions)?);
    }
    Ok(inputs)
}

fn padded<T: Clone + Default>(elements: impl Iterator<Item = T>, length: usize) -> Vec<T> {
    let mut padded: Vec<T> = elements.collect();
    padded.resize(length, T::default());
    padded
}

/// `[1, n]`, or `[n]` where the model wants that.
fn row<T: Element>(model: &CoreMlHandle, port: &TensorPort, elements: Vec<T>) -> Result<Tensor, Error> {
    let count = elements.len();
    let shape = if port.spec.shape.len() == 1 { &[count][..] } else { &[1, count] };
    Tensor::from_vec(shape, elements).map_err(|source| input(model, port, source))
}

/// `[1, 1, count, width]`: 0 where a token may look, the least number of the type where not.
fn causal_mask(
    model: &CoreMlHandle,
    port: &TensorPort,
    start: usize,
    count: usize,
    width: usize,
) -> Result<Tensor, Error> {
    let hidden = if port.spec.dtype == Dtype::Float16 { f16::MIN.to_f32() } else { f32::MIN };
    let row = |i: usize| (0..width).map(move |j| if j <= start + i { 0.0 } else { hidden });
    let mask: Vec<f32> = (0..count).flat_map(row).collect();
    let mask = Tensor::from_vec(&[1, 1, count, width], mask).map_err(|e| input(model, port, e))?;
    Ok(mask.cast(port.spec.dtype))
}

fn tensor(model: &CoreMlHandle, outputs: &Features, name: &str) -> Result<Tensor, Error> {
    outputs.tensor(name).cloned().map_err(|error| {
        let model = Arc::clone(model.path());
        match error {
            FeatureError::Kind { expected, found, .. } => {
                Error::WrongKind { model, feature: name.into(), expected, found }
            }
            _ => {
                let known = outputs.names().map(str::to_owned).collect();
                Error::UnknownFeature { model, role: Role::Output, feature: name.into(), known }
            }
        }
    })
}

/// The logits after the `row`th of the tokens that were given; a model may return only the last row.
fn last_logits(
    model: &CoreMlHandle,
    layout: &Causal,
    outputs: &Features,
    row: usize,
) -> Result<Vec<f32>, Error> {
    let logits = tensor(model, outputs, &layout.logits)?;
    let width = logits.shape().last().copied().unwrap_or(0);
    let rows = logits.len().checked_div(width).unwrap_or(0);
    let row = row.min(rows.saturating_sub(1));
    // Only the row that is wanted is converted.
    let row = logits.reshape(&[rows, width]).and_then(|rows| rows.narrow(0, row..row + 1));
    row.and_then(|row| row.cast(Dtype::Float32).to_vec()).map_err(|source| Error::Tensor {
        model: Arc::clone(model.path()),
        feature: Arc::clone(&layout.logits),
        source,
    })
}
