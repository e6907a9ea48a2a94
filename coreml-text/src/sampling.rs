//! How the next token is chosen from a model's logits.

use std::cmp::Ordering;
use std::num::NonZeroUsize;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How tokens are chosen. The rules act in the order of the fields, as in Hugging Face's `transformers`.
///
/// ```
/// use coreml_text::Sampling;
///
/// let sampling = Sampling { temperature: 0.8, top_p: 0.95, seed: Some(7), ..Sampling::default() };
/// assert_eq!(Sampling::greedy().temperature, 0.0);
/// # let _ = sampling;
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Logits of tokens that occurred are divided (if positive) or multiplied (if negative) by it; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Logits are divided by it; 0 always takes the likeliest token.
    pub temperature: f32,
    /// Only so many of the likeliest tokens can be chosen.
    pub top_k: Option<NonZeroUsize>,
    /// Only the likeliest tokens can be chosen whose probabilities together reach it; 1 excludes none.
    pub top_p: f32,
    /// Only tokens can be chosen whose probability is at least this share of the likeliest one's; 0 excludes none.
    pub min_p: f32,
    /// The same seed chooses the same tokens; none: another one each time.
    pub seed: Option<u64>,
}

impl Sampling {
    /// Always the likeliest token.
    #[must_use]
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// What is wrong with the settings, if anything.
    pub(crate) fn check(&self) -> Result<(), String> {
        let positive = |x: f32| x.is_finite() && x > 0.0;
        match self {
            s if !positive(s.repetition_penalty) => {
                Err(format!("a repetition penalty of {}", s.repetition_penalty))
            }
            s if s.temperature != 0.0 && !positive(s.temperature) => {
                Err(format!("a temperature of {}", s.temperature))
            }
            s if !(0.0..=1.0).contains(&s.top_p) => Err(format!("top-p {} is no probability", s.top_p)),
            s if !(0.0..=1.0).contains(&s.min_p) => Err(format!("min-p {} is no probability", s.min_p)),
            _ => Ok(()),
        }
    }
}

/// As the model is: temperature 1 and no rule.
impl Default for Sampling {
    fn default() -> Self {
        Self { repetition_penalty: 1.0, temperature: 1.0, top_k: None, top_p: 1.0, min_p: 0.0, seed: None }
    }
}

/// Chooses tokens; carries the random numbers from one to the next.
pub(crate) struct Sampler {
    rules: Sampling,
    random: ChaCha8Rng,
    /// Tokens that can be chosen, with their logits and then probabilities; kept for its memory.
    candidates: Vec<(u32, f32)>,
    /// The tokens that occurred, each once; kept for its memory.
    repeated: Vec<u32>,
}

impl Sampler {
    pub(crate) fn new(rules: Sampling) -> Self {
        let random = ChaCha8Rng::seed_from_u64(rules.seed.unwrap_or_else(fresh_seed));
        Self { rules, random, candidates: Vec::new(), repeated: Vec::new() }
    }

    /// The next token and the natural logarithm of its probability under temperature 1 and no other rule but `allowed`. `history`
    /// is what repetition is judged by. `None`: no token is allowed, or no logit is a number.
    pub(crate) fn next(
        &mut self,
        logits: &[f32],
        history: &[u32],
        allowed: impl Fn(u32) -> bool,
    ) -> Option<(u32, f32)> {
        let candidates = &mut self.candidates;
        candidates.clear();
        candidates.extend(
            (0_u32..)
                .zip(logits)
                .filter(|&(token, logit)| !logit.is_nan() && allowed(token))
                .map(|(t, &l)| (t, l)),
        );
        let own = log_sum_exp(candidates.iter().map(|&(_, logit)| logit));
        if self.rules.repetition_penalty != 1.0 {
            let penalty = self.rules.repetition_penalty;
            self.repeated.clear();
            self.repeated.extend_from_slice(history);
            self.repeated.sort_unstable();
            self.repeated.dedup();
            // Candidates are still in the order of their tokens.
            for token in &self.repeated {
                if let Ok(at) = candidates.binary_search_by_key(token, |&(candidate, _)| candidate) {
                    let logit = &mut candidates[at].1;
                    *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
                }
            }
        }
        let log_probability = |token: u32| logits.get(token as usize).map_or(f32::NEG_INFINITY, |l| l - own);
        if self.rules.temperature == 0.0 {
            // Of equals the first, as every other implementation has it.
            let best =
                candidates.iter().copied().reduce(|best, one| if one.1 > best.1 { one } else { best })?;
            return Some((best.0, log_probability(best.0)));
        }
        candidates
            .sort_unstable_by(|a, b| b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal).then(a.0.cmp(&b.0)));
        if let Some(k) = self.rules.top_k {
            candidates.truncate(k.get());
        }
        let scale = self.rules.temperature;
        let sum = log_sum_exp(candidates.iter().map(|&(_, logit)| logit / scale));
        let likeliest = (candidates.first()?.1 / scale - sum).exp();
        candidates.iter_mut().for_each(|(_, logit)| *logit = (*logit / scale - sum).exp());
        let mut mass = 0.0;
        let keep = candidates.iter().take_while(|&&(_, p)| {
            let before = mass;
            mass += p;
            before < self.rules.top_p && p >= self.rules.min_p * likeliest
        });
        let keep = keep.count().max(1);
        candidates.truncate(keep);
        let total: f32 = candidates.iter().map(|&(_, p)| p).sum();
        let mut point = self.random.random::<f32>() * total;
        let chosen = candidates.iter().find(|&&(_, p)| {
            point -= p;
            point < 0.0
        });
        // Rounding may leave the point just beyond the last one.
        let &(token, _) = chosen.or(candidates.last())?;
        Some((token, log_probability(token)))
    }
}

/// The logarithm of the sum of exponentials.
pub(crate) fn log_sum_exp(logits: impl Iterator<Item = f32> + Clone) -> f32 {
    let greatest = logits.clone().fold(f32::NEG_INFINITY, f32::max);
    if !greatest.is_finite() {
        return greatest;
    }
    greatest + logits.map(|logit| (logit - greatest).exp()).sum::<f32>().ln()
}

/// From the hasher's keys, which the standard library draws from the system.
fn fresh_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(_: u32) -> bool {
        true
    }

    /// How often each token is chosen in so many draws.
    fn frequencies(rules: Sampling, logits: &[f32], draws: usize) -> Vec<f32> {
        let mut sampler = Sampler::new(Sampling { seed: Some(1), ..rules });
        let mut counts = vec![0.0; logits.len()];
        for _ in 0..draws {
            counts[sampler.next(logits, &[], all).unwrap().0 as usize] += 1.0 / draws as f32;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_first_of_the_likeliest() {
        let mut sampler = Sampler::new(Sampling::greedy());
        assert_eq!(sampler.next(&[1.0, 3.0, f32::NAN, 3.0], &[], all).unwrap().0, 1);
    }

    #[test]
    fn tokens_come_as_often_as_the_softmax_says() {
        let logits = [0.0, 1.0, 2.0];
        let found = frequencies(Sampling::default(), &logits, 20_000);
        let sum: f32 = logits.iter().map(|x| x.exp()).sum();
        for (found, logit) in found.iter().zip(logits) {
            assert!((found - logit.exp() / sum).abs() < 0.015, "{found} for {logit}");
        }
        let cold = frequencies(Sampling { temperature: 0.5, ..Sampling::default() }, &logits, 20_000);
        let sum: f32 = logits.iter().map(|x| (2.0 * x).exp()).sum();
        assert!((cold[2] - 4.0_f32.exp() / sum).abs() < 0.015, "{cold:?}");
    }

    #[test]
    fn rules_exclude_what_they_say() {
        // Probabilities 0.5, 0.25, 0.15, 0.1.
        let logits = [0.5_f32, 0.25, 0.15, 0.1].map(f32::ln);
        let chosen = |rules| {
            let found = frequencies(rules, &logits, 5_000);
            found.iter().map(|&p| p > 0.0).collect::<Vec<_>>()
        };
        let rules = Sampling::default();
        assert_eq!(
            chosen(Sampling { top_k: NonZeroUsize::new(2), ..rules.clone() }),
            [true, true, false, false]
        );
        assert_eq!(chosen(Sampling { top_p: 0.7, ..rules.clone() }), [true, true, false, false]);
        assert_eq!(chosen(Sampling { top_p: 0.8, ..rules.clone() }), [true, true, true, false]);
        assert_eq!(chosen(Sampling { top_p: 0.0, ..rules.clone() }), [true, false, false, false]);
        assert_eq!(chosen(Sampling { min_p: 0.25, ..rules.clone() }), [true, true, true, false]);
        assert_eq!(chosen(rules), [true, true, true, true]);
    }

    #[test]
    fn repetition_is_penalised_on_both_sides_of_zero() {
        let rules = Sampling { repetition_penalty: 2.0, ..Sampling::greedy() };
        let mut sampler = Sampler::new(rules);
        assert_eq!(sampler.next(&[3.0, 2.0], &[0], all).unwrap().0, 1);
        assert_eq!(sampler.next(&[-2.0, -3.0], &[0], all).unwrap().0, 1);
    }

    /// The rule by its letter, every candidate held against all of the history.
    fn penalised(logits: &[f32], history: &[u32], penalty: f32, allowed: &[bool]) -> Option<u32> {
        let score = |(token, &logit): (u32, &f32)| {
            let repeats = history.contains(&token);
            let changed = if logit > 0.0 { logit / penalty } else { logit * penalty };
            (token, if repeats { changed } else { logit })
        };
        let candidates = (0_u32..).zip(logits).filter(|&(token, _)| allowed[token as usize]).map(score);
        candidates.reduce(|best, one| if one.1 > best.1 { one } else { best }).map(|(token, _)| token)
    }

    #[test]
    fn the_probability_is_the_models_own_over_what_is_allowed() {
        let mut sampler = Sampler::new(Sampling::greedy());
        let (token, log_p) = sampler.next(&[5.0, 1.0, 1.0], &[], |token| token != 0).unwrap();
        assert_eq!(token, 1);
        assert!((log_p - 0.5_f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn a_seed_chooses_the_same_tokens_again() {
        let rules = Sampling { seed: Some(42), ..Sampling::default() };
        let draw = || {
            let mut sampler = Sampler::new(rules.clone());
            (0..50).map(|_| sampler.next(&[0.0; 100], &[], all).unwrap().0).collect::<Vec<_>>()
        };
        assert_eq!(draw(), draw());
    }

    #[test]
    fn nothing_allowed_is_no_token() {
        let mut sampler = Sampler::new(Sampling::default());
        assert_eq!(sampler.next(&[1.0, 2.0], &[], |_| false), None);
        assert_eq!(sampler.next(&[f32::NAN], &[], all), None);
        assert_eq!(sampler.next(&[], &[], all), None);
    }

    proptest! {
        #[test]
        fn a_token_that_came_often_is_penalised_once(
            logits in prop::collection::vec(-5.0_f32..5.0, 1..40),
            history in prop::collection::vec(0_u32..50, 0..80),
            allowed in prop::collection::vec(any::<bool>(), 40),
            penalty in 0.5_f32..3.0,
        ) {
            let rules = Sampling { repetition_penalty: penalty, ..Sampling::greedy() };
            let found = Sampler::new(rules).next(&logits, &history, |token| allowed[token as usize]);
            let expected = penalised(&logits, &history, penalty, &allowed);
            prop_assert_eq!(found.map(|(token, _)| token), expected);
        }

        #[test]
        fn what_is_chosen_is_allowed_whatever_the_logits(
            logits in prop::collection::vec(prop::num::f32::ANY, 1..40),
            mask in prop::collection::vec(any::<bool>(), 40),
            temperature in 0.0_f32..3.0,
            top_p in 0.0_f32..=1.0,
            min_p in 0.0_f32..=1.0,
            top_k in 0_usize..5,
        ) {
            let rules =
                Sampling { temperature, top_p, min_p, top_k: NonZeroUsize::new(top_k), seed: Some(3), ..Sampling::default() };
            let chosen = Sampler::new(rules).next(&logits, &[], |token| mask[token as usize]);
            if let Some((token, _)) = chosen {
                prop_assert!(mask[token as usize] && !logits[token as usize].is_nan());
            }
        }
    }
}
