//! How a model takes tokens and gives logits: found in its description, by shapes first and names second.

use std::fmt;
use std::sync::Arc;

use coreml_bridge::{Dtype, Feature, Flexibility, ModelDescription, TensorSpec};

/// A model that nobody here knows how to ask.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: not a text model of a known layout: {reason}")]
pub struct UnknownLayout {
    /// The model.
    pub path: String,
    /// What is missing, or too much.
    pub reason: String,
}

/// Where a causal language model keeps what it has read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Memory {
    /// In states, as Apple's exports of Llama and Mistral do.
    State,
    /// In tensors that go in and come out: inputs, each with the output that replaces it.
    Explicit(Vec<(TensorPort, Arc<str>)>),
    /// Nowhere: every token is read again for every other.
    None,
}

/// A tensor by name.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TensorPort {
    pub(crate) name: Arc<str>,
    pub(crate) spec: TensorSpec,
}

impl TensorPort {
    fn of(feature: &Feature) -> Option<Self> {
        let spec = feature.kind.tensor()?.clone();
        Some(Self { name: feature.name.as_str().into(), spec })
    }

    fn rank(&self) -> usize {
        self.spec.shape.len()
    }

    /// The name without case and punctuation.
    fn plain(&self) -> String {
        self.name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
    }

    /// The most that an axis can be; `None`: no bound.
    fn most(&self, axis: usize) -> Option<usize> {
        let own = self.spec.shape.get(axis).copied().unwrap_or(1);
        match &self.spec.flexible {
            Flexibility::Fixed => Some(own),
            Flexibility::Enumerated(shapes) => {
                shapes.iter().filter_map(|shape| shape.get(axis).copied()).chain([own]).max()
            }
            Flexibility::Ranges(ranges) => ranges.get(axis).map_or(Some(own), |range| range.most),
        }
    }

    fn takes(&self, count: usize) -> bool {
        self.spec.accepts(self.spec.dtype, &[1, count]).is_ok()
    }

    /// The length to pad `count` tokens to, in a port `[1, n]`.
    pub(crate) fn padded(&self, count: usize) -> Option<usize> {
        if self.takes(count) {
            return Some(count);
        }
        match &self.spec.flexible {
            Flexibility::Fixed => self.spec.shape.get(1).copied(),
            Flexibility::Enumerated(shapes) => {
                shapes.iter().filter_map(|shape| shape.get(1).copied()).filter(|&n| n >= count).min()
            }
            Flexibility::Ranges(ranges) => ranges.get(1).map(|range| range.least),
        }
        .filter(|&length| length >= count)
    }

    fn is_fixed(&self, axis: usize) -> bool {
        let own = self.spec.shape.get(axis).copied().unwrap_or(1);
        match &self.spec.flexible {
            Flexibility::Fixed => true,
            Flexibility::Enumerated(shapes) => shapes.iter().all(|shape| shape.get(axis) == Some(&own)),
            Flexibility::Ranges(ranges) => {
                ranges.get(axis).is_none_or(|range| range.most == Some(range.least))
            }
        }
    }
}

/// What a causal language model wants, and where its logits are.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Causal {
    pub(crate) tokens: TensorPort,
    /// `[1, 1, tokens, all tokens so far]`, added to attention's scores.
    pub(crate) mask: Option<TensorPort>,
    /// The last axis of the mask is as long as the context, whatever has been read.
    pub(crate) mask_is_whole: bool,
    /// Positions of the tokens, `[1, tokens]` or `[tokens]`.
    pub(crate) positions: Option<TensorPort>,
    /// `[1, tokens]`: 1 for tokens, 0 for padding.
    pub(crate) padding: Option<TensorPort>,
    pub(crate) logits: Arc<str>,
    pub(crate) memory: Memory,
    /// What one text's memory takes.
    pub(crate) memory_bytes: usize,
    /// The most tokens that the model can have before it.
    pub(crate) context: usize,
}

/// Tokens that are read at once, if the model allows it: more make the pauses between looks at the clock longer.
const CHUNK: usize = 64;

impl Causal {
    /// What the description says.
    pub(crate) fn find(path: &str, description: &ModelDescription) -> Result<Self, UnknownLayout> {
        let unknown = |reason: String| UnknownLayout { path: path.to_owned(), reason };
        let mut rest = inputs(description).map_err(&unknown)?;
        let mut take =
            |what: &dyn Fn(&TensorPort) -> bool| rest.iter().position(what).map(|index| rest.remove(index));
        let integers = |port: &TensorPort| port.spec.dtype == Dtype::Int32;
        let positions = take(&|p| integers(p) && p.plain().contains("position"));
        let padding = take(&|p| p.rank() == 2 && p.plain().contains("mask"));
        let mask = take(&|p| p.rank() == 4 && p.plain().contains("mask"));
        let tokens = take(&|p| integers(p) && p.rank() == 2)
            .ok_or_else(|| unknown("no input of tokens, int32 [1, n]".into()))?;
        if tokens.spec.shape[0] != 1 {
            return Err(unknown(format!("`{}` is a batch: {}", tokens.name, tokens.spec)));
        }
        let logits = Self::logits(description).map_err(&unknown)?;

        let memory = if !description.states.is_empty() {
            Memory::State
        } else if rest.is_empty() {
            Memory::None
        } else {
            Memory::Explicit(Self::pairs(&mut rest, description).map_err(&unknown)?)
        };
        none_left(&rest).map_err(&unknown)?;
        let cache = |shape: &[usize]| shape.len().checked_sub(2).map(|axis| shape[axis]);
        let lengths = match &memory {
            Memory::State => {
                let states = description.states.iter().filter_map(|state| state.kind.tensor());
                states.filter_map(|spec| cache(&spec.shape)).min()
            }
            Memory::Explicit(pairs) => pairs.iter().filter_map(|(port, _)| cache(&port.spec.shape)).min(),
            Memory::None => None,
        };
        let bounds = [
            lengths,
            mask.as_ref().and_then(|mask| mask.most(3)),
            matches!(memory, Memory::None).then(|| tokens.most(1)).flatten(),
        ];
        let context = bounds.into_iter().flatten().min();
        let context =
            context.ok_or_else(|| unknown("nothing says how many tokens it can have before it".into()))?;
        let mask_is_whole = mask.as_ref().is_some_and(|mask| mask.is_fixed(3));
        let bytes = |spec: &TensorSpec| {
            spec.shape.iter().fold(spec.dtype.size(), |bytes, &axis| bytes.saturating_mul(axis))
        };
        let memory_bytes = match &memory {
            Memory::State => {
                description.states.iter().filter_map(|state| state.kind.tensor()).map(bytes).sum()
            }
            Memory::Explicit(pairs) => pairs.iter().map(|(port, _)| bytes(&port.spec)).sum(),
            Memory::None => 0,
        };
        let layout =
            Self { tokens, mask, mask_is_whole, positions, padding, logits, memory, memory_bytes, context };
        layout.check().map_err(unknown)?;
        Ok(layout)
    }

    fn logits(description: &ModelDescription) -> Result<Arc<str>, String> {
        let tensors = || description.outputs.iter().filter(|output| output.kind.tensor().is_some());
        let named = tensors().find(|output| output.name.eq_ignore_ascii_case("logits"));
        match (named, tensors().count()) {
            (Some(output), _) => Ok(output.name.as_str().into()),
            (None, 1) => Ok(tensors().next().map_or("", |output| &output.name).into()),
            (None, count) => Err(format!("no output `logits`, and {count} others")),
        }
    }

    /// Each cache that goes in with the one output that has its name, but for the words that say which way it goes, and its shape (if
    /// outputs say one).
    fn pairs(
        rest: &mut Vec<TensorPort>,
        description: &ModelDescription,
    ) -> Result<Vec<(TensorPort, Arc<str>)>, String> {
        let mut outputs: Vec<TensorPort> = description.outputs.iter().filter_map(TensorPort::of).collect();
        let pair = |input: TensorPort| {
            let stem = stem(&input.name);
            let same = |output: &TensorPort| {
                self::stem(&output.name) == stem
                    && (output.spec.shape.is_empty() || output.spec.shape == input.spec.shape)
            };
            let found: Vec<usize> = (0..outputs.len()).filter(|&i| same(&outputs[i])).collect();
            match found[..] {
                [only] if input.rank() >= 3 && input.spec.flexible == Flexibility::Fixed => {
                    let output = outputs.remove(only).name;
                    Ok((input, output))
                }
                [_] => Err(format!("the cache `{}` has no fixed shape", input.name)),
                [] => Err(format!("no output replaces `{}` ({})", input.name, input.spec)),
                [one, other, ..] => Err(format!(
                    "`{}` and `{}` may replace `{}`",
                    outputs[one].name, outputs[other].name, input.name
                )),
            }
        };
        rest.drain(..).map(pair).collect()
    }

    /// Whether it can be asked token by token, and knows where a token stands.
    fn check(&self) -> Result<(), String> {
        if self.memory == Memory::None {
            return Ok(());
        }
        if !self.tokens.takes(1) {
            return Err(format!("`{}` takes no single token: {}", self.tokens.name, self.tokens.spec));
        }
        if let Some(padding) = &self.padding {
            return Err(format!("nobody knows what `{}` ({}) hides of a memory", padding.name, padding.spec));
        }
        let says_where = self.positions.is_some() || (self.mask.is_some() && !self.mask_is_whole);
        if says_where { Ok(()) } else { Err("no input says how much has been read".into()) }
    }

    /// How many of `count` tokens to give the model at once. What has no memory takes all of them.
    pub(crate) fn chunk(&self, count: usize) -> usize {
        (1..=count.min(CHUNK)).rev().find(|&n| self.tokens.takes(n)).unwrap_or(1)
    }
}

impl fmt::Display for Causal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let memory = match &self.memory {
            Memory::State => "states",
            Memory::Explicit(_) => "caches that go in and out",
            Memory::None => "no memory",
        };
        write!(
            f,
            "tokens `{}`, logits `{}`, {memory}, context {}",
            self.tokens.name, self.logits, self.context
        )
    }
}

/// The words of a cache's name but for those that say which way it goes: `k_cache_1_in` and `k_cache_1_out`, `kCache` and `newKCache`,
/// `past_key_values.0.key` and `present.0.key` are the same caches. Numbers are kept apart, or 1 and 2 would be 12.
fn stem(name: &str) -> String {
    const WAYS: [&str; 13] = [
        "in", "input", "out", "output", "past", "present", "new", "old", "updated", "next", "current",
        "prev", "previous",
    ];
    let mut words: Vec<String> = Vec::new();
    let mut before = ' ';
    for c in name.chars() {
        let begins = !before.is_ascii_alphanumeric()
            || before.is_ascii_lowercase() && c.is_ascii_uppercase()
            || before.is_ascii_digit() != c.is_ascii_digit();
        if c.is_ascii_alphanumeric() {
            match words.last_mut() {
                Some(word) if !begins => word.push(c.to_ascii_lowercase()),
                _ => words.push(c.to_ascii_lowercase().into()),
            }
        }
        before = c;
    }
    // `past_key_values` is the name of all of them.
    let all = words.first().is_some_and(|word| word == "past" || word == "present")
        && words.get(1..3).is_some_and(|words| words == ["key", "values"]);
    words.drain(..if all { 3 } else { 0 });
    words.retain(|word| !WAYS.contains(&word.as_str()));
    words.into_iter().fold(String::new(), |stem, word| {
        let numbers =
            stem.ends_with(|c: char| c.is_ascii_digit()) && word.starts_with(|c: char| c.is_ascii_digit());
        stem + if numbers { "." } else { "" } + &word
    })
}

/// The inputs that are tensors; no other may be needed.
fn inputs(description: &ModelDescription) -> Result<Vec<TensorPort>, String> {
    let needed = description.inputs.iter().find(|input| !input.optional && input.kind.tensor().is_none());
    match needed {
        Some(input) => Err(format!("the input `{}` is no tensor", input.name)),
        None => Ok(description.inputs.iter().filter_map(TensorPort::of).collect()),
    }
}

/// All inputs have been given a meaning.
fn none_left(rest: &[TensorPort]) -> Result<(), String> {
    match rest.first() {
        Some(port) => Err(format!("nobody knows what `{}` ({}) is for", port.name, port.spec)),
        None => Ok(()),
    }
}

/// What a sentence encoder wants, and where its vectors are.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Encoder {
    pub(crate) tokens: TensorPort,
    /// `[1, n]`: 1 for tokens, 0 for padding.
    pub(crate) mask: Option<TensorPort>,
    /// `[1, n]`: which of two texts a token is of.
    pub(crate) types: Option<TensorPort>,
    /// `[1, width]` or `[1, n, width]`.
    pub(crate) output: Arc<str>,
    /// The most tokens of a text; `None`: no bound.
    pub(crate) length: Option<usize>,
}

impl Encoder {
    /// What the description says.
    pub(crate) fn find(path: &str, description: &ModelDescription) -> Result<Self, UnknownLayout> {
        let unknown = |reason: String| UnknownLayout { path: path.to_owned(), reason };
        let mut rest = inputs(description).map_err(&unknown)?;
        let mut take =
            |what: &dyn Fn(&TensorPort) -> bool| rest.iter().position(what).map(|index| rest.remove(index));
        let row = |port: &TensorPort| port.rank() == 2 && port.spec.shape[0] == 1;
        let mask = take(&|p| row(p) && p.plain().contains("mask"));
        let types = take(&|p| row(p) && (p.plain().contains("type") || p.plain().contains("segment")));
        let tokens = take(&|p| row(p) && p.spec.dtype == Dtype::Int32)
            .ok_or_else(|| unknown("no input of tokens, int32 [1, n]".into()))?;
        none_left(&rest).map_err(&unknown)?;
        if mask.is_none() && tokens.padded(1) != Some(1) {
            return Err(unknown("texts have to be padded, and no mask says where".into()));
        }
        let outputs: Vec<TensorPort> = description.outputs.iter().filter_map(TensorPort::of).collect();
        let named = |parts: &[&str]| {
            outputs.iter().find(|output| parts.iter().any(|part| output.plain().contains(part)))
        };
        let output = match &outputs[..] {
            [only] => Some(only),
            _ => named(&["embedding", "sentence", "pool"]).or_else(|| named(&["hiddenstate"])),
        };
        let output = output.ok_or_else(|| unknown("no output is known as an embedding".into()))?;
        let ports = [Some(&tokens), mask.as_ref(), types.as_ref()];
        let length = ports.into_iter().flatten().filter_map(|port| port.most(1)).min();
        let output = Arc::clone(&output.name);
        Ok(Self { output, tokens, mask, types, length })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn description(caches: &[(&str, &str)]) -> ModelDescription {
        let feature = |name: &str, dtype: &str, shape: &[usize]| {
            format!(
                r#"{{"name": "{name}", "kind": "tensor", "tensor": {{"dtype": "{dtype}", "shape": {shape:?}}}}}"#
            )
        };
        let cache = |name: &str| feature(name, "float32", &[1, 2, 9, 4]);
        let inputs = [feature("input_ids", "int32", &[1, 1]), feature("position_ids", "int32", &[1, 1])];
        let inputs: Vec<String> =
            inputs.into_iter().chain(caches.iter().map(|(input, _)| cache(input))).collect();
        let outputs: Vec<String> = caches.iter().map(|(_, output)| cache(output)).collect();
        let logits = feature("logits", "float32", &[1, 1, 7]);
        let json = format!(
            r#"{{"inputs": [{}], "outputs": [{}, {logits}]}}"#,
            inputs.join(", "),
            outputs.join(", ")
        );
        serde_json::from_str(&json).unwrap()
    }

    fn pairs(caches: &[(&str, &str)]) -> Result<Vec<(String, String)>, String> {
        match Causal::find("m", &description(caches)).map_err(|unknown| unknown.reason)?.memory {
            Memory::Explicit(pairs) => Ok(pairs
                .into_iter()
                .map(|(port, output)| (port.name.to_string(), output.to_string()))
                .collect()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_cache_of_twelve_layers_has_an_output_of_its_own() {
        type Name = fn(usize) -> String;
        let namings: [(Name, Name); 4] = [
            (|i| format!("k_cache_{i}_in"), |i| format!("k_cache_{i}_out")),
            (|i| format!("kCache{i}"), |i| format!("newKCache{i}")),
            (|i| format!("past_key_values.{i}.key"), |i| format!("present.{i}.key")),
            (|i| format!("past_value_{i}"), |i| format!("present_value_{i}")),
        ];
        for (input, output) in namings {
            // From the last on, so that what comes first is not what is right.
            let names: Vec<(String, String)> = (0..12).rev().map(|i| (input(i), output(i))).collect();
            let caches: Vec<(&str, &str)> = names.iter().map(|(i, o)| (i.as_str(), o.as_str())).collect();
            let found = pairs(&caches).unwrap();
            assert_eq!(found, names);
            assert_eq!(found.iter().map(|(_, output)| output).collect::<BTreeSet<_>>().len(), 12);
        }
        assert_eq!(pairs(&[("cache", "updated_cache")]).unwrap().len(), 1);
    }

    #[test]
    fn a_cache_whose_output_is_not_certain_is_refused() {
        for (caches, reason) in [
            (
                &[("k_1_in", "k_1_out"), ("k_in", "k_1_new")][..],
                "`k_1_out` and `k_1_new` may replace `k_1_in`",
            ),
            (&[("k_1_in", "k_10_out")], "no output replaces `k_1_in`"),
            (&[("k_1_2_in", "k_12_out")], "no output replaces `k_1_2_in`"),
            (&[("k_in", "k_out"), ("k_old", "v_out")], "no output replaces `k_old`"),
        ] {
            let error = pairs(caches).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }
}
