//! What a text model has done.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use coreml_client::Latencies;

/// What a text model has written since it was loaded, for all its [`TextModel`](crate::TextModel)s of one client. Questions that
/// write nothing ([`choose`](crate::TextModel::choose)) are not in it.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/handbook/handbook.mlpackage");
/// use coreml_client::ModelClient;
/// use coreml_text::{Generation, TextModel};
///
/// let client = ModelClient::builder().threads(1).build();
/// let model = TextModel::load(&client, path).await?;
/// model.generate("A list is", Generation { most: 5, ..Generation::default() })?.complete().await?;
/// let stats = model.stats();
/// assert_eq!((stats.texts, stats.finished, stats.tokens, stats.token_time.count()), (1, 1, 5, 4));
/// println!("{stats}");
/// # Ok::<(), coreml_text::TextError>(())
/// # }).unwrap();
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct TextStats {
    /// Texts begun.
    pub texts: u64,
    /// Texts that came to an end of their own: neither dropped nor failed.
    pub finished: u64,
    /// Tokens of prompts.
    pub prompt_tokens: u64,
    /// Those of them that a memory had, so that they were not read.
    pub reused_tokens: u64,
    /// Tokens made.
    pub tokens: u64,
    /// Time in reading prompts, on the inference threads.
    pub prompt_time: Duration,
    /// Time in making tokens, on the inference threads.
    pub decode_time: Duration,
    /// From when a text was asked for, waiting included, to its first token.
    pub first_token: Latencies,
    /// Each further token, on the inference thread.
    pub token_time: Latencies,
}

impl TextStats {
    /// Tokens made per second of an inference thread, without the first of each text, which come with the prompts.
    #[must_use]
    pub fn tokens_per_second(&self) -> f64 {
        self.token_time.count() as f64 / self.decode_time.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

impl fmt::Display for TextStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { texts, finished, prompt_tokens, reused_tokens, tokens, prompt_time, .. } = self;
        let read = prompt_tokens.saturating_sub(*reused_tokens);
        let reading = read as f64 / prompt_time.as_secs_f64().max(f64::MIN_POSITIVE);
        writeln!(f, "texts         {texts} ({finished} finished)")?;
        writeln!(f, "prompts       {prompt_tokens} tokens, {reused_tokens} of them reused, {reading:.0}/s")?;
        writeln!(f, "answers       {tokens} tokens, {:.0}/s", self.tokens_per_second())?;
        let line = |latencies: &Latencies| {
            let [p50, p99] = [0.5, 0.99].map(|quantile| latencies.quantile(quantile));
            format!("p50 {p50:.1?}  p99 {p99:.1?}  max {:.1?}", latencies.max())
        };
        writeln!(f, "first token   {}", line(&self.first_token))?;
        write!(f, "each further  {}", line(&self.token_time))
    }
}

#[derive(Debug, Default)]
pub(crate) struct Recorder(Mutex<TextStats>);

impl Recorder {
    pub(crate) fn record(&self, record: impl FnOnce(&mut TextStats)) {
        record(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn snapshot(&self) -> TextStats {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
