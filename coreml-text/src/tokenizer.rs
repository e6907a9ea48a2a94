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
    #[error("{} is not a tokenizer.json", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the library says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The text is not a tokenizer.
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
    /// The same for what stands in the middle of a text; `None`: it makes no difference. Made when it is first asked for, as is the next.
    middle: OnceLock<Option<tokenizers::Tokenizer>>,
    /// The same for that, without added tokens.
    plain: OnceLock<tokenizers::Tokenizer>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// [`TokenizerError::Read`], [`TokenizerError::File`].
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, TokenizerError> {
        let path = path.as_ref();
        let bytes =
            std::fs::read(path).map_err(|source| TokenizerError::Read { path: path.to_owned(), source })?;
        Self::from_bytes(&bytes).map_err(|error| match error {
            TokenizerError::Parse { source } => TokenizerError::File { path: path.to_owned(), source },
            other => other,
        })
    }

    /// From the contents of a `tokenizer.json`.
    ///
    /// # Errors
    /// [`TokenizerError::Parse`].
    pub fn from_bytes(json: &[u8]) -> Result<Self, TokenizerError> {
        let encoder =
            tokenizers::Tokenizer::from_bytes(json).map_err(|source| TokenizerError::Parse { source })?;
        Ok(Self::with(encoder, json.into()))
    }

    fn with(encoder: tokenizers::Tokenizer, json: Box<[u8]>) -> Self {
        let (middle, plain) = (OnceLock::new(), OnceLock::new());
        Self { inner: Arc::new(Inner { encoder, json, middle, plain }) }
    }

    /// Makes what [`encode_more`](Self::encode_more) and [`encode_plain`](Self::encode_plain) need, which else the first of them makes:
    /// it reads the whole file again, so async code has this done on a thread that may block.
    ///
    /// # Errors
    /// [`TokenizerError::Parse`].
    pub fn prepare(&self) -> Result<(), TokenizerError> {
        self.middle()?;
        self.plain().map(|_| ())
    }

    #[cfg(test)]
    pub(crate) fn is_prepared(&self) -> bool {
        self.inner.middle.get().is_some() && self.inner.plain.get().is_some()
    }

    /// The tokens of a text, with those that the tokenizer adds by itself (such as a beginning).
    ///
    /// # Errors
    /// [`TokenizerError::Apply`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.tokens(text, true)
    }

    /// The tokens of a text and nothing else: for text that a chat template has finished. Special tokens that the text spells out are
    /// special tokens.
    ///
    /// # Errors
    /// [`TokenizerError::Apply`].
    pub fn encode_bare(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.tokens(text, false)
    }

    /// As [`encode_bare`](Self::encode_bare), for what stands in the middle of a text. Tokenizers in the manner of SentencePiece, such as
    /// those of Llama and Mistral, put a space before every text, which here would be one too many.
    ///
    /// # Errors
    /// [`TokenizerError::Apply`], [`TokenizerError::Parse`].
    ///
    /// ```
    /// use coreml_text::Tokenizer;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let json = r#"{"version": "1.0", "added_tokens": [], "normalizer": null,
    ///     "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
    ///     "post_processor": null, "decoder": null, "truncation": null, "padding": null,
    ///     "model": {"type": "WordLevel", "vocab": {"▁be": 0, "be": 1, "?": 2}, "unk_token": "?"}}"#;
    /// let tokenizer = Tokenizer::from_bytes(json.as_bytes())?;
    /// assert_eq!((tokenizer.encode_bare("be be")?, tokenizer.encode_more("be be")?), (vec![0, 0], vec![1, 0]));
    /// # Ok(())
    /// # }
    /// ```
    pub fn encode_more(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        Ok(encoding(self.middle()?, text, false)?.get_ids().to_vec())
    }

    /// The tokens of a text that is not trusted and stands in the middle of another: no special token is among them, whatever the text
    /// spells out.
    ///
    /// # Errors
    /// [`TokenizerError::Apply`], [`TokenizerError::Parse`]; [`TokenizerError::Special`] if the model's own vocabulary makes a special
    /// token of it all the same.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let plain = self.plain()?;
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

    fn middle(&self) -> Result<&tokenizers::Tokenizer, TokenizerError> {
        let Inner { encoder, json, middle, .. } = &*self.inner;
        let made = match middle.get() {
            Some(made) => made,
            None => {
                let mut json = parsed(json)?;
                let made = if begins_nothing(&mut json) { Some(built(&json)?) } else { None };
                middle.get_or_init(|| made)
            }
        };
        Ok(made.as_ref().unwrap_or(encoder))
    }

    fn plain(&self) -> Result<&tokenizers::Tokenizer, TokenizerError> {
        let Inner { json, plain, .. } = &*self.inner;
        if let Some(made) = plain.get() {
            return Ok(made);
        }
        let mut json = parsed(json)?;
        begins_nothing(&mut json);
        json["added_tokens"] = Value::Array(Vec::new());
        // What it adds by itself are added tokens, and would be missed.
        json["post_processor"] = Value::Null;
        // Nothing of the text is to be lost, and nothing is to stand beside it.
        json["padding"] = Value::Null;
        json["truncation"] = Value::Null;
        let made = built(&json)?;
        Ok(plain.get_or_init(|| made))
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
        Ok(Self::with(encoder, self.inner.json.clone()))
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

fn parsed(json: &[u8]) -> Result<Value, TokenizerError> {
    serde_json::from_slice(json).map_err(|error| TokenizerError::Parse { source: error.into() })
}

fn built(json: &Value) -> Result<tokenizers::Tokenizer, TokenizerError> {
    tokenizers::Tokenizer::from_bytes(json.to_string()).map_err(|source| TokenizerError::Parse { source })
}

/// Takes out of a `tokenizer.json` what puts a space before a text; `true`: there was something.
fn begins_nothing(json: &mut Value) -> bool {
    fn prepends(step: &Value) -> bool {
        step["type"] == "Prepend"
    }
    /// Normalizers and pre-tokenizers may be lists of others.
    fn within(step: &mut Value) -> bool {
        let mut found = false;
        for list in ["normalizers", "pretokenizers"] {
            if let Some(steps) = step.get_mut(list).and_then(Value::as_array_mut) {
                let before = steps.len();
                steps.retain(|step| !prepends(step));
                found |= steps.len() < before;
                for step in steps {
                    found |= within(step);
                }
            }
        }
        // One name is Metaspace's of today, the other that of its older files and of byte-level tokenizers.
        for (name, never) in
            [("prepend_scheme", Value::from("never")), ("add_prefix_space", Value::from(false))]
        {
            if let Some(set) = step.get_mut(name).filter(|set| **set != never) {
                *set = never;
                found = true;
            }
        }
        found
    }
    let mut found = false;
    if prepends(&json["normalizer"]) {
        json["normalizer"] = Value::Null;
        found = true;
    }
    for part in ["normalizer", "pre_tokenizer"] {
        found |= within(&mut json[part]);
    }
    found
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

/// Tokens of what stands before a text that its decoder looks at.
const BEFORE: usize = 8;

impl Decoder {
    /// For a text that goes on behind these tokens: many decoders take the space from the beginning of a text, and this is none.
    pub(crate) fn after(tokenizer: Tokenizer, tokens: &[u32]) -> Result<Self, TokenizerError> {
        // Without half a character at either end: it would look otherwise with its other half. Special tokens have no text, and before
        // a turn of a conversation there may be nothing else.
        for count in (1..=BEFORE.min(tokens.len())).rev() {
            let ids = &tokens[tokens.len() - count..];
            let prefix = tokenizer.decode(ids)?;
            if !prefix.is_empty() && !prefix.contains('\u{fffd}') {
                let ids = ids.to_vec();
                return Ok(Self { tokenizer, prefix_index: ids.len(), ids, prefix });
            }
        }
        Ok(Self { tokenizer, ids: Vec::new(), prefix: String::new(), prefix_index: 0 })
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

    /// As Mistral's: bytes for what the vocabulary lacks, a space before every text and none after decoding. `pre` says how the space is
    /// put there, by a normalizer as in the first files or by a pre-tokenizer as in later ones.
    pub(crate) fn sentence_piece(pre: bool) -> Tokenizer {
        let mut words = vec!["<unk>".to_owned(), "<s>".to_owned(), "</s>".to_owned()];
        words.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
        words.extend("▁abcdefghijklmnopqrstuvwxyz.".chars().map(String::from));
        words.extend(["th", "the", "▁the"].map(String::from));
        let vocabulary: serde_json::Map<_, _> = words.into_iter().zip((0..).map(Value::from)).collect();
        let added: Vec<Value> = ["<unk>", "<s>", "</s>"]
            .iter()
            .zip(0..)
            .map(|(content, id)| {
                json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": true})
            })
            .collect();
        let space =
            |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
        let normalizer = json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, space(" ", "▁")]});
        let metaspace =
            json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false});
        let json = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": if pre { Value::Null } else { normalizer },
            "pre_tokenizer": if pre { metaspace } else { Value::Null },
            "post_processor": {"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
            "decoder": {"type": "Sequence", "decoders": [space("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
                "vocab": vocabulary, "merges": [["t", "h"], ["th", "e"], ["▁", "the"]]}});
        Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn no_space_is_put_into_the_middle_of_a_text() {
        for pre in [false, true] {
            let tokenizer = sentence_piece(pre);
            let words = |tokens: Vec<u32>| {
                tokens
                    .into_iter()
                    .map(|t| tokenizer.inner.encoder.id_to_token(t).unwrap())
                    .collect::<Vec<_>>()
            };
            assert_eq!(words(tokenizer.encode("the the").unwrap()), ["<s>", "▁the", "▁the"]);
            assert_eq!(words(tokenizer.encode_bare("the").unwrap()), ["▁the"]);
            assert_eq!(words(tokenizer.encode_more("the the").unwrap()), ["the", "▁the"]);
            assert_eq!(words(tokenizer.encode_more("</s>the").unwrap()), ["</s>", "the"]);
            assert_eq!(words(tokenizer.encode_plain(" a\n").unwrap()), ["▁", "a", "<0x0A>"]);
            // Text in pieces is the same text.
            let pieces = ["the", " end", ".", "\n| é", " the"];
            let mut tokens = tokenizer.encode(pieces[0]).unwrap();
            for piece in &pieces[1..] {
                tokens.extend(tokenizer.encode_more(piece).unwrap());
            }
            assert_eq!(tokenizer.decode(&tokens).unwrap(), pieces.concat());
        }
        // What puts no space before a text needs no second tokenizer.
        let bytes = bytes();
        bytes.prepare().unwrap();
        assert!(bytes.inner.middle.get().unwrap().is_none() && bytes.is_prepared());
    }

    #[test]
    fn the_space_at_the_beginning_of_an_answer_is_shown() {
        for pre in [false, true] {
            let tokenizer = sentence_piece(pre);
            let answer = tokenizer.encode_more(" the é the").unwrap();
            let shown = |before: &[u32]| {
                let mut decoder = Decoder::after(tokenizer.clone(), before).unwrap();
                let text: String = answer.iter().map(|&token| decoder.push(token).unwrap()).collect();
                text + &decoder.finish().unwrap()
            };
            assert_eq!(shown(&tokenizer.encode("of").unwrap()), " the é the");
            let long = tokenizer.encode("é the end of the world").unwrap();
            for length in 1..long.len() {
                let text = shown(&long[..length]);
                // Behind a special token, or half a character, nobody knows better.
                assert_eq!(text.trim_start(), "the é the", "{length}");
                assert!(length <= 4 || text.starts_with(' '), "{length}: {text:?}");
            }
        }
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
        let mut decoder = Decoder::after(bytes(), &[]).unwrap();
        let pieces: Vec<String> = "aä🦀b".bytes().map(|b| decoder.push(b.into()).unwrap()).collect();
        assert_eq!(pieces, ["a", "", "ä", "", "", "", "🦀", "b"]);
        assert_eq!(decoder.finish().unwrap(), "");
    }

    #[test]
    fn an_unfinished_character_shows_at_the_end() {
        let mut decoder = Decoder::after(bytes(), &[]).unwrap();
        let shown: String = "ab🦀".bytes().take(4).map(|b| decoder.push(b.into()).unwrap()).collect();
        assert_eq!(shown, "ab");
        assert_eq!(decoder.finish().unwrap(), "\u{fffd}");
    }

    #[test]
    fn a_missing_or_broken_file_is_named() {
        let error = Tokenizer::from_file("no/tokenizer.json").unwrap_err();
        assert_eq!(error.to_string(), "cannot read the tokenizer no/tokenizer.json");
        assert!(matches!(Tokenizer::from_bytes(b"{}"), Err(TokenizerError::Parse { .. })));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        std::fs::write(&path, "{}").unwrap();
        let error = Tokenizer::from_file(&path).unwrap_err();
        assert_eq!(error.to_string(), format!("{} is not a tokenizer.json", path.display()));
    }
}
