//! Sentences as vectors.

use std::sync::Arc;

use coreml_bridge::{Dtype, Features, Tensor};
use coreml_client::{InferenceRequest, ModelClient, ModelRef};
use futures_util::future::try_join_all;

use crate::layout::{Encoder, TensorPort};
use crate::{TextError, Tokenizer};

/// How a vector is made of the vectors of a text's tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Pooling {
    /// Their mean, without padding; as sentence-transformers do.
    #[default]
    Mean,
    /// The first token's, which BERT calls `[CLS]`.
    First,
}

/// A text as a vector.
///
/// ```
/// use coreml_text::Embedding;
///
/// let embedding = |vector: &[f32]| Embedding { vector: vector.to_vec(), tokens: 1, truncated: false };
/// assert_eq!(embedding(&[3.0, 0.0]).similarity(&embedding(&[0.0, 2.0])), 0.0);
/// assert_eq!(embedding(&[3.0, 0.0]).similarity(&embedding(&[2.0, 0.0])), 1.0);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    /// The vector; of length 1 unless the embedder was told otherwise.
    pub vector: Vec<f32>,
    /// How many tokens the model read.
    pub tokens: usize,
    /// Whether the text was longer than the model is, and lost its end.
    pub truncated: bool,
}

impl Embedding {
    /// The cosine of the angle between two vectors, from -1 to 1; 0 if either is all zeros. Elements that only one of them has
    /// count as zeros of the other.
    #[must_use]
    pub fn similarity(&self, other: &Self) -> f32 {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let lengths = dot(&self.vector, &self.vector).sqrt() * dot(&other.vector, &other.vector).sqrt();
        if lengths > 0.0 { dot(&self.vector, &other.vector) / lengths } else { 0.0 }
    }
}

/// A sentence encoder with its tokenizer: texts in, vectors out.
///
/// The model is loaded through the client like any other. Its description says where tokens go in (`int32 [1, n]`, and a mask of the
/// same shape if there is one) and what comes out: a vector for the text, or one for every token, which are [pooled](Pooling).
///
/// Cheap to clone; clones share everything.
///
/// ```no_run
/// use coreml_client::ModelClient;
/// use coreml_text::{Embedder, Tokenizer};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let client = ModelClient::new();
/// let model_ref = client.load_model_async("minilm.mlpackage").await?;
/// let embedder = Embedder::new(&client, model_ref, &Tokenizer::from_file("tokenizer.json")?)?;
/// let [question, answer] = ["What is the capital of France?", "Paris is the seat of the government."];
/// let embeddings = embedder.embed_all([question, answer]).await?;
/// println!("{:.2}", embeddings[0].similarity(&embeddings[1]));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Embedder {
    client: ModelClient,
    model_ref: ModelRef,
    layout: Arc<Encoder>,
    tokenizer: Tokenizer,
    pooling: Pooling,
    normalised: bool,
}

impl Embedder {
    /// A model that `client` has loaded. Texts that are too long for it lose their end.
    ///
    /// # Errors
    /// [`TextError::UnknownLayout`]; [`TextError::Tokenizer`] if the model is shorter than what the tokenizer adds to every text;
    /// [`TextError::Client`] if the model is not loaded.
    pub fn new(client: &ModelClient, model_ref: ModelRef, tokenizer: &Tokenizer) -> Result<Self, TextError> {
        let description = client.description(model_ref)?;
        let layout = Encoder::find(&crate::model::name(client, model_ref), &description)?;
        let tokenizer = tokenizer.for_encoder(layout.length)?;
        Ok(Self {
            client: client.clone(),
            model_ref,
            layout: Arc::new(layout),
            tokenizer,
            pooling: Pooling::default(),
            normalised: true,
        })
    }

    /// With another pooling, where the model leaves it to its callers.
    #[must_use]
    pub fn pooling(mut self, pooling: Pooling) -> Self {
        self.pooling = pooling;
        self
    }

    /// Whether vectors are made as long as 1, which is the default.
    #[must_use]
    pub fn normalised(mut self, normalised: bool) -> Self {
        self.normalised = normalised;
        self
    }

    /// The most tokens that a text can have; `None`: no bound.
    #[must_use]
    pub fn length(&self) -> Option<usize> {
        self.layout.length
    }

    /// A text as a vector.
    ///
    /// # Errors
    /// [`TextError::Tokenizer`], [`TextError::Client`]; [`TextError::NoEmbedding`] if what the model answers is none.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the request, as with any other.
    pub async fn embed(&self, text: &str) -> Result<Embedding, TextError> {
        let encoding = self.tokenizer.encoding(text)?;
        let tokens = encoding.get_ids().len();
        let place = self.layout.tokens.padded(tokens).unwrap_or(tokens);
        let row = |port: &TensorPort, elements: &[u32]| {
            let mut row: Vec<i32> = elements.iter().map(|&element| element.cast_signed()).collect();
            row.resize(place, 0);
            let tensor = Tensor::from_vec(&[1, place], row).map(|row| row.cast(port.spec.dtype));
            tensor.map_err(|_| TextError::NoEmbedding { reason: format!("{place} tokens are too many") })
        };
        let Encoder { tokens: ids, mask, types, output, .. } = &*self.layout;
        let mut features = Features::new();
        features.insert(Arc::clone(&ids.name), row(ids, encoding.get_ids())?);
        if let Some(mask) = mask {
            features.insert(Arc::clone(&mask.name), row(mask, encoding.get_attention_mask())?);
        }
        if let Some(types) = types {
            features.insert(Arc::clone(&types.name), row(types, encoding.get_type_ids())?);
        }
        let request = InferenceRequest::new(self.model_ref, features);
        let outputs = self.client.enqueue_inference(request).await?.outputs;
        let no_embedding = |reason: String| TextError::NoEmbedding { reason };
        let answer = outputs.tensor(output).map_err(|error| no_embedding(error.to_string()))?;
        let mut vector = self.pool(answer, tokens).map_err(no_embedding)?;
        if self.normalised {
            let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
            vector.iter_mut().for_each(|x| *x /= length.max(f32::MIN_POSITIVE));
        }
        let truncated = !encoding.get_overflowing().is_empty();
        Ok(Embedding { vector, tokens, truncated })
    }

    /// Texts as vectors, in the same order. All are handed in at once, so that the model's threads share them, and a client that
    /// [batches](coreml_client::ModelClientBuilder) batches them.
    ///
    /// # Errors
    /// As [`embed`](Self::embed), for the first text that fails.
    ///
    /// # Cancel safety
    /// As [`embed`](Self::embed), for all of them.
    pub async fn embed_all<T: AsRef<str>>(
        &self,
        texts: impl IntoIterator<Item = T>,
    ) -> Result<Vec<Embedding>, TextError> {
        let texts: Vec<T> = texts.into_iter().collect();
        try_join_all(texts.iter().map(|text| self.embed(text.as_ref()))).await
    }

    /// One vector of what the model answers: `[1, width]`, or `[1, tokens, width]`.
    fn pool(&self, answer: &Tensor, tokens: usize) -> Result<Vec<f32>, String> {
        let shape = answer.shape().to_vec();
        let all: Vec<f32> = answer.cast(Dtype::Float32).to_vec().map_err(|error| error.to_string())?;
        match shape[..] {
            [width] | [1, width] if width > 0 => Ok(all),
            [1, rows, width] if rows >= tokens && tokens > 0 && width > 0 => {
                let mut rows = all.chunks_exact(width).take(match self.pooling {
                    Pooling::Mean => tokens,
                    Pooling::First => 1,
                });
                let mut sum = rows.next().unwrap_or_default().to_vec();
                let count = 1 + rows.len();
                rows.for_each(|row| sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x));
                sum.iter_mut().for_each(|x| *x /= count as f32);
                Ok(sum)
            }
            _ => Err(format!("`{}` has the shape {shape:?}, for {tokens} tokens", self.layout.output)),
        }
    }
}
