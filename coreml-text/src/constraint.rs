//! Output that must have a form.

use std::fmt;
use std::sync::OnceLock;

use llguidance::api::TopLevelGrammar;
use llguidance::{Matcher, ParserFactory};
use serde_json::Value;

use crate::{Tokenizer, TokenizerError};

/// The form that a text must have.
///
/// ```
/// use coreml_text::Constraint;
///
/// let verdict = Constraint::choice(["kept", "broken", "unclear"]);
/// let date = Constraint::Regex(r"[0-9]{4}-[0-9]{2}-[0-9]{2}".into());
/// # let _ = (verdict, date);
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Constraint {
    /// One of these strings.
    Choice(Vec<String>),
    /// The whole text matches it (Rust's syntax, without look-around and back-references).
    Regex(String),
    /// A JSON value that fits the schema.
    JsonSchema(Value),
}

impl Constraint {
    /// One of these strings.
    pub fn choice<S: Into<String>>(strings: impl IntoIterator<Item = S>) -> Self {
        Self::Choice(strings.into_iter().map(Into::into).collect())
    }

    fn grammar(&self) -> Result<TopLevelGrammar, ConstraintError> {
        Ok(match self {
            Self::Choice(strings) if strings.iter().all(String::is_empty) => {
                return Err(ConstraintError::Invalid { reason: "a choice of nothing".into() });
            }
            Self::Choice(strings) => {
                // A string literal of Lark is one of JSON.
                let literals: Vec<String> =
                    strings.iter().map(|s| Value::from(s.as_str()).to_string()).collect();
                TopLevelGrammar::from_lark(format!("start: {}", literals.join(" | ")))
            }
            Self::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Self::JsonSchema(schema) => TopLevelGrammar::from_json_schema(schema.clone()),
        })
    }
}

/// Why a constraint cannot be kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConstraintError {
    /// The constraint itself is wrong.
    #[error("the constraint is not valid: {reason}")]
    Invalid {
        /// What is wrong with it.
        reason: String,
    },
    /// The tokenizer cannot serve it.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// What all constraints on one model's texts share: the bytes of its tokens, in the form that grammars are matched against. Made with
/// the first of them, for it takes a look at every token.
#[derive(Default)]
pub(crate) struct Grammars(OnceLock<ParserFactory>);

impl Grammars {
    /// Takes that look.
    pub(crate) fn prepare(&self, tokenizer: &Tokenizer, end: u32) -> Result<&ParserFactory, ConstraintError> {
        if let Some(factory) = self.0.get() {
            return Ok(factory);
        }
        let mut factory = ParserFactory::new_simple(&tokenizer.trie(end)?).map_err(|e| invalid(&e))?;
        factory.quiet();
        Ok(self.0.get_or_init(|| factory))
    }

    #[cfg(test)]
    pub(crate) fn is_prepared(&self) -> bool {
        self.0.get().is_some()
    }

    /// Begins a text; `end` is the token that ends it.
    pub(crate) fn guide(
        &self,
        constraint: &Constraint,
        tokenizer: &Tokenizer,
        end: u32,
    ) -> Result<Guide, ConstraintError> {
        let factory = self.prepare(tokenizer, end)?;
        let parser = factory.create_parser(constraint.grammar()?).map_err(|e| invalid(&e))?;
        let mut guide = Guide { matcher: Matcher::new(Ok(parser)), allowed: Default::default() };
        guide.look()?;
        Ok(guide)
    }
}

impl fmt::Debug for Grammars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammars").finish_non_exhaustive()
    }
}

fn invalid(error: &dyn fmt::Display) -> ConstraintError {
    ConstraintError::Invalid { reason: error.to_string() }
}

/// Follows a text token by token.
pub(crate) struct Guide {
    matcher: Matcher,
    allowed: llguidance::toktrie::SimpleVob,
}

impl Guide {
    fn look(&mut self) -> Result<(), ConstraintError> {
        self.allowed = self.matcher.compute_mask_or_eos().map_err(|e| invalid(&e))?;
        Ok(())
    }

    /// Whether the text may go on with that token.
    pub(crate) fn allows(&self, token: u32) -> bool {
        (token as usize) < self.allowed.len() && self.allowed.is_allowed(token)
    }

    /// The text goes on with that token; `true`: it is complete, and nothing can follow.
    pub(crate) fn push(&mut self, token: u32) -> Result<bool, ConstraintError> {
        self.matcher.consume_token(token).map_err(|e| invalid(&e))?;
        if self.matcher.is_stopped() {
            return Ok(true);
        }
        self.look().map(|()| false)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::sampling::{Sampler, Sampling};
    use crate::tokenizer::tests::{END, bytes};

    /// What random choice within a constraint writes.
    fn babble(constraint: &Constraint, seed: u64) -> String {
        let tokenizer = bytes();
        let mut guide = Grammars::default().guide(constraint, &tokenizer, END).unwrap();
        let mut sampler = Sampler::new(Sampling { seed: Some(seed), ..Sampling::default() });
        let logits = vec![0.0; tokenizer.vocabulary()];
        let mut tokens = Vec::new();
        while tokens.len() < 2_000 {
            let (token, _) = sampler.next(&logits, &tokens, |token| guide.allows(token)).unwrap();
            if token == END || guide.push(token).unwrap() {
                tokens.extend((token != END).then_some(token));
                return tokenizer.decode(&tokens).unwrap();
            }
            tokens.push(token);
        }
        panic!("no end: {}", tokenizer.decode(&tokens).unwrap());
    }

    #[test]
    fn a_choice_is_one_of_its_strings() {
        let strings = ["kept", "broken", "say \"no\"\n", "brok"];
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..60 {
            let text = babble(&Constraint::choice(strings), seed);
            assert!(strings.contains(&text.as_str()), "{text:?}");
            seen.insert(text);
        }
        assert_eq!(seen.len(), strings.len(), "{seen:?}");
    }

    #[test]
    fn a_regex_is_matched() {
        for seed in 0..20 {
            let text = babble(&Constraint::Regex("[a-c]{2,5}-[0-9]+x".into()), seed);
            let (letters, rest) = text.split_once('-').unwrap();
            assert!(
                (2..=5).contains(&letters.len()) && letters.bytes().all(|b| (b'a'..=b'c').contains(&b)),
                "{text}"
            );
            assert!(rest.strip_suffix('x').unwrap().bytes().all(|b| b.is_ascii_digit()), "{text}");
        }
    }

    #[test]
    fn what_is_no_grammar_is_refused() {
        for constraint in [
            Constraint::Regex("(".into()),
            Constraint::choice([""; 1]),
            Constraint::JsonSchema(json!({"type": 7})),
        ] {
            let error = Grammars::default().guide(&constraint, &bytes(), END).err();
            assert!(matches!(error, Some(ConstraintError::Invalid { .. })), "{constraint:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn json_fits_its_schema(seed: u64) {
            let schema = json!({
                "type": "object",
                "properties": {
                    "verdict": {"enum": ["kept", "broken"]},
                    "confidence": {"type": "integer", "minimum": 0, "maximum": 100},
                    "quote": {"type": "string", "maxLength": 20},
                },
                "required": ["verdict", "confidence", "quote"],
                "additionalProperties": false,
            });
            let text = babble(&Constraint::JsonSchema(schema), seed);
            let value: Value = serde_json::from_str(&text).map_err(|e| TestCaseError::fail(format!("{e}: {text}")))?;
            prop_assert!(["kept", "broken"].contains(&value["verdict"].as_str().unwrap()));
            prop_assert!(value["confidence"].as_i64().is_some_and(|n| (0..=100).contains(&n)));
            prop_assert!(value["quote"].as_str().is_some_and(|q| q.chars().count() <= 20));
        }
    }
}
