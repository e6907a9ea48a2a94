//! Questions: how likely a model goes on with each of a few texts, and one slice of the work on the inference thread.

use std::sync::{Arc, Weak};

use coreml_bridge::{CoreMlHandle, Error};
use coreml_client::ModelRef;

use crate::generation::SLICE;
use crate::layout::Causal;
use crate::reader::Reader;
use crate::sampling::log_sum_exp;

/// A question under way. The prompt is read once; then the memory goes on with one choice after the other, and back in between.
pub(crate) struct Question {
    model_ref: ModelRef,
    layout: Arc<Causal>,
    /// Memories that the thread keeps.
    kept: usize,
    choices: Vec<Vec<u32>>,
    /// The logarithms of the choices' probabilities, as far as they are known.
    scores: Vec<f32>,
    /// The length of the prompt.
    prompt: usize,
    /// The prompt and the beginning of a choice: the logits after it are wanted.
    tokens: Vec<u32>,
    /// That choice; after the last of them all is known.
    at: usize,
    /// Gone when nobody wants the answer any more.
    asker: Weak<()>,
}

impl Question {
    pub(crate) fn new(
        model_ref: ModelRef,
        layout: Arc<Causal>,
        kept: usize,
        prompt: Vec<u32>,
        choices: Vec<Vec<u32>>,
        asker: Weak<()>,
    ) -> Self {
        let scores = vec![0.0; choices.len()];
        Self { model_ref, layout, kept, scores, prompt: prompt.len(), tokens: prompt, at: 0, choices, asker }
    }

    /// Goes on for a slice.
    pub(crate) fn slice(&mut self, model: &CoreMlHandle) -> Result<(), Error> {
        let mut reader = Reader::open(model, self.model_ref, &self.layout, &self.tokens)?;
        while reader.worked() < SLICE && self.asker.strong_count() > 0 && self.at < self.choices.len() {
            if let Some(logits) = reader.advance(model, &self.layout, &self.tokens)? {
                self.score(&logits);
                reader.rewind(&self.tokens);
            }
        }
        // Back at the prompt, or where the next slice begins: whoever goes on from here need not copy the memory.
        reader.keep(self.kept);
        Ok(())
    }

    /// What the logits after `tokens` say, and which are wanted next.
    fn score(&mut self, logits: &[f32]) {
        let all = log_sum_exp(logits.iter().copied());
        let of = |token: u32| logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY) - all;
        let read = self.tokens.len() - self.prompt;
        if read == 0 {
            // Those after the prompt are the same for all.
            for (score, choice) in self.scores.iter_mut().zip(&self.choices) {
                *score += choice.first().map_or(0.0, |&token| of(token));
            }
        } else {
            let choice = &self.choices[self.at];
            self.scores[self.at] += of(choice[read]);
            if choice.len() > read + 1 {
                self.tokens.push(choice[read]);
                return;
            }
            self.at += 1;
        }
        self.tokens.truncate(self.prompt);
        let unfinished = self.choices[self.at..].iter().position(|choice| choice.len() > 1);
        self.at = unfinished.map_or(self.choices.len(), |next| self.at + next);
        self.tokens.extend(self.choices.get(self.at).map(|choice| choice[0]));
    }

    /// The logarithm of each choice's probability, when all are known.
    pub(crate) fn answer(&mut self) -> Option<Vec<f32>> {
        (self.at == self.choices.len()).then(|| std::mem::take(&mut self.scores))
    }
}
