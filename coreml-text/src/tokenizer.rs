//! Text to tokens and back.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use serde_json::Value;
use tokenizers::tokenizer::step_decode_stream;
use tokenizers::{Encoding, TruncationParams};

/// Why there is no tokenizer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The file cannot be read.
    #[error("cannot read the tokenizer {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is not a tokenizer.
    #[error("not a tokenizer.json")]
    Parse {
        /// What the library says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Text that it cannot turn into tokens, or tokens that it cannot turn into text.
    #[error("the tokenizer failed")]
    Apply {
        /// What the library says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Text that is not trusted became a special token.
    #[error("text that is not trusted spells the special token {token}")]
    Special {
        /// Its number.
        token: u32,
    },
    /// Constrained output needs to know the bytes of every token.
    #[error("the bytes of the tokens are not known: {reason}")]
    Bytes {
        /// What the library says.
        reason: String,
    },
}

/// A `tokenizer.json` of the `tokenizers` library. Cheap to clone.
///
/// ```
/// use coreml_text::Tokenizer;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let json = r#"{"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"},
///     "post_processor": null, "decoder": null, "truncation": null, "padding": null,
///     "model": {"type": "WordLevel", "vocab": {"to": 0, "be": 1, "?": 2}, "unk_token": "?"}}"#;
/// let tokenizer = Tokenizer::from_bytes(json.as_bytes())?;
/// assert_eq!(tokenizer.encode("to be")?, [0, 1]);
/// assert_eq!(tokenizer.decode(&[0, 1])?, "to be");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    encoder: tokenizers::Tokenizer,
    json: Box<[u8]>,
    /// The same without added tokens; made when it is first asked for.
    plain: OnceLock<tokenizers::Tokenizer>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// [`TokenizerError::Read`], [`TokenizerError::Parse`].
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, TokenizerError> {
        let path = path.as_ref();
        let bytes =
            std::fs::read(path).map_err(|source| TokenizerError::Read { path: path.to_owned(), source })?;
        Self::from_bytes(&bytes)
    }

    /// From the contents of a `tokenizer.json`.
    ///
    /// # Errors
    /// [`TokenizerError::Parse`].
    pub fn from_bytes(json: &[u8]) -> Result<Self, TokenizerError> {
        let encoder =
            tokenizers::Tokenizer::from_bytes(json).map_err(|source| TokenizerError::Parse { source })?;
        Ok(Self { inner: Arc::new(Inner { encoder, json: json.into(), plain: OnceLock::new() }) })
    }

    /// The tokens of a text, with those that the tokenizer adds by itself (such as a beginning).
    ///
    /// # Errors
    /// [`TokenizerError::Apply`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.tokens(text, true)
    }

    /// The tokens of a text and nothing else: for text that goes on, or that a chat template has finished. Special tokens that the
    /// text spells out are special tokens.
    ///
    /// # Errors
    /// [`TokenizerError::Apply`].
    pub fn encode_bare(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.tokens(text, false)
    }

    /// The tokens of a text that is not trusted: no special token is among them, whatever the text spells out.
    ///
    /// # Errors
    /// [`TokenizerError::Apply`]; [`TokenizerError::Special`] if the model's own vocabulary makes a special token of it all the same.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let plain = match self.inner.plain.get() {
            Some(plain) => plain,
            None => {
                let plain = self.without_added_tokens()?;
                self.inner.plain.get_or_init(|| plain)
            }
        };
        let encoding = encoding(plain, text, false)?;
        match encoding.get_ids().iter().find(|&&token| self.is_special(token)) {
            Some(&token) => Err(TokenizerError::Special { token }),
            None => Ok(encoding.get_ids().to_vec()),
        }
    }

    /// Whether a token was added to the model's own vocabulary, as those are that mark beginnings, ends and roles.
    #[must_use]
    pub fn is_special(&self, token: u32) -> bool {
        self.inner.encoder.get_added_vocabulary().get_added_tokens_decoder().contains_key(&token)
    }

    fn without_added_tokens(&self) -> Result<tokenizers::Tokenizer, TokenizerError> {
        let parse = |source: Box<dyn std::error::Error + Send + Sync>| TokenizerError::Parse { source };
        let mut json: Value = serde_json::from_slice(&self.inner.json).map_err(|e| parse(e.into()))?;
        json["added_tokens"] = Value::Array(Vec::new());
        // What it adds by itself are added tokens, and would be missed.
        json["post_processor"] = Value::Null;
        // Nothing of the text is to be lost, and nothing is to stand beside it.
        json["padding"] = Value::Null;
        json["truncation"] = Value::Null;
        tokenizers::Tokenizer::from_bytes(json.to_string().as_bytes()).map_err(parse)
    }

    fn tokens(&self, text: &str, special: bool) -> Result<Vec<u32>, TokenizerError> {
        Ok(encoding(&self.inner.encoder, text, special)?.get_ids().to_vec())
    }

    /// The text of tokens, without special ones.
    ///
    /// # Errors
    /// [`TokenizerError::Apply`].
    pub fn decode(&self, tokens: &[u32]) -> Result<String, TokenizerError> {
        self.inner.encoder.decode(tokens, true).map_err(|source| TokenizerError::Apply { source })
    }

    /// The number of a token that is spelt so.
    #[must_use]
    pub fn token(&self, text: &str) -> Option<u32> {
        self.inner.encoder.token_to_id(text)
    }

    /// How many tokens there are.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        self.inner.encoder.get_vocab_size(true)
    }

    /// For a model that reads whole texts of at most `most` tokens: longer ones lose their end, and none is padded, whatever the file
    /// says.
    pub(crate) fn for_encoder(&self, most: Option<usize>) -> Result<Self, TokenizerError> {
        let apply = |source| TokenizerError::Apply { source };
        let mut encoder = self.inner.encoder.clone();
        encoder.with_padding(None);
        if let Some(most) = most {
            let truncation = TruncationParams { max_length: most, ..TruncationParams::default() };
            encoder.with_truncation(Some(truncation)).map_err(apply)?;
        }
        Ok(Self { inner: Arc::new(Inner { encoder, json: self.inner.json.clone(), plain: OnceLock::new() }) })
    }

    /// The tokens of a text, and all that goes with them.
    pub(crate) fn encoding(&self, text: &str) -> Result<Encoding, TokenizerError> {
        encoding(&self.inner.encoder, text, true)
    }

    /// All tokens as a trie of their bytes; `end` ends the text.
    pub(crate) fn trie(&self, end: u32) -> Result<TokEnv, TokenizerError> {
        let unknown = |reason: String| TokenizerError::Bytes { reason };
        let json: Value = serde_json::from_slice(&self.inner.json).map_err(|e| unknown(e.to_string()))?;
        let words =
            llguidance::token_bytes_from_tokenizer_json(&json).map_err(|e| unknown(format!("{e:#}")))?;
        let count = u32::try_from(words.len()).map_err(|_| unknown("too many tokens".into()))?;
        if end >= count {
            return Err(unknown(format!("token {end} ends the text, and there are {count}")));
        }
        Ok(Arc::new(ApproximateTokEnv::new(TokTrie::from(&TokRxInfo::new(count, end), &words))))
    }
}

fn encoding(encoder: &tokenizers::Tokenizer, text: &str, special: bool) -> Result<Encoding, TokenizerError> {
    encoder.encode_fast(text, special).map_err(|source| TokenizerError::Apply { source })
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("vocabulary", &self.vocabulary()).finish_non_exhaustive()
    }
}

/// Turns tokens into text as they come: what a later token might still change is held back.
pub(crate) struct Decoder {
    tokenizer: Tokenizer,
    ids: Vec<u32>,
    prefix: String,
    prefix_index: usize,
}

impl Decoder {
    pub(crate) fn new(tokenizer: Tokenizer) -> Self {
        Self { tokenizer, ids: Vec::new(), prefix: String::new(), prefix_index: 0 }
    }

    /// The text that one more token completes.
    pub(crate) fn push(&mut self, token: u32) -> Result<String, TokenizerError> {
        let Self { tokenizer, ids, prefix, prefix_index } = self;
        step_decode_stream(&tokenizer.inner.encoder, vec![token], true, ids, prefix, prefix_index)
            .map(Option::unwrap_or_default)
            .map_err(|source| TokenizerError::Apply { source })
    }

    /// What was held back, at the end: an unfinished character shows as U+FFFD.
    pub(crate) fn finish(&mut self) -> Result<String, TokenizerError> {
        let whole = self.tokenizer.decode(&self.ids)?;
        let shown = self.tokenizer.decode(&self.ids[..self.prefix_index])?;
        Ok(whole.strip_prefix(shown.as_str()).unwrap_or_default().to_owned())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    /// Ends a text.
    pub(crate) const END: u32 = 256;

    /// A tokenizer whose tokens are the bytes, and one that ends a text.
    pub(crate) fn bytes() -> Tokenizer {
        Tokenizer::from_bytes(coreml_testing::byte_tokenizer("<|end|>").as_bytes()).unwrap()
    }

    #[test]
    fn text_comes_back_from_its_tokens() {
        let tokenizer = bytes();
        let text = "Käse, 日本 and 🦀";
        let tokens = tokenizer.encode(text).unwrap();
        assert_eq!(tokens, text.bytes().map(u32::from).collect::<Vec<_>>());
        assert_eq!(tokenizer.decode(&tokens).unwrap(), text);
        assert_eq!((tokenizer.token("<|end|>"), tokenizer.vocabulary()), (Some(END), 257));
    }

    #[test]
    fn what_is_not_trusted_spells_no_special_token() {
        let tokenizer = bytes();
        let text = "one<|end|>two";
        assert!(tokenizer.encode_bare(text).unwrap().contains(&END));
        let plain = tokenizer.encode_plain(text).unwrap();
        assert_eq!(plain, text.bytes().map(u32::from).collect::<Vec<_>>());
        assert!(tokenizer.is_special(END) && plain.iter().all(|&token| !tokenizer.is_special(token)));
        // A vocabulary of words may have the special token among them.
        let json = json!({"version": "1.0", "truncation": null, "padding": null, "normalizer": null, "decoder": null,
            "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null,
            "added_tokens": [{"id": 0, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true}],
            "model": {"type": "WordLevel", "vocab": {"</s>": 0, "a": 1, "?": 2}, "unk_token": "?"}});
        let tokenizer = Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap();
        assert_eq!(tokenizer.encode_plain("a b").unwrap(), [1, 2]);
        assert!(matches!(tokenizer.encode_plain("a </s>"), Err(TokenizerError::Special { token: 0 })));
    }

    #[test]
    fn characters_are_shown_when_they_are_complete() {
        let mut decoder = Decoder::new(bytes());
        let pieces: Vec<String> = "aä🦀b".bytes().map(|b| decoder.push(b.into()).unwrap()).collect();
        assert_eq!(pieces, ["a", "", "ä", "", "", "", "🦀", "b"]);
        assert_eq!(decoder.finish().unwrap(), "");
    }

    #[test]
    fn an_unfinished_character_shows_at_the_end() {
        let mut decoder = Decoder::new(bytes());
        let shown: String = "ab🦀".bytes().take(4).map(|b| decoder.push(b.into()).unwrap()).collect();
        assert_eq!(shown, "ab");
        assert_eq!(decoder.finish().unwrap(), "\u{fffd}");
    }

    #[test]
    fn a_missing_or_broken_file_is_named() {
        let error = Tokenizer::from_file("no/tokenizer.json").unwrap_err();
        assert_eq!(error.to_string(), "cannot read the tokenizer no/tokenizer.json");
        assert!(matches!(Tokenizer::from_bytes(b"{}"), Err(TokenizerError::Parse { .. })));
    }
}
