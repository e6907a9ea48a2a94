//! A text model as its publisher ships it: a model, and the tokenizer's files beside it.

use std::path::{Path, PathBuf};

use coreml_client::{ModelClient, ModelRef, ModelSource};
use serde::Deserialize;
use tokio::sync::oneshot;

use crate::constraint::Grammars;
use crate::{ChatTemplate, TextError, TextModel, Tokenizer, TokenizerError};

/// Loads a text model with the default client; blocks until it is there. See [`TextModel::load`] for the files, and
/// [`load_model_async`] for async code.
///
/// ```
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/handbook/handbook.mlpackage");
/// use coreml_client::ModelClient;
/// use coreml_text::PromptRequest;
///
/// // On any thread:
/// let model_ref = coreml_text::load_model(path)?;
/// let client = ModelClient::new();
///
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// // In async code:
/// let result = client.enqueue_inference(PromptRequest::new(model_ref, "Hello world")).await?;
/// println!("{}", result.text);
/// # Ok::<(), coreml_text::TextError>(())
/// # })?;
/// # Ok::<(), coreml_text::TextError>(())
/// ```
///
/// # Errors
/// As [`TextModel::load`].
pub fn load_model(path: impl AsRef<Path>) -> Result<ModelRef, TextError> {
    let (client, path) = (ModelClient::new(), path.as_ref());
    let files = Files::read(path)?;
    let model_ref = client.load_model(path)?;
    Ok(files.model_or_unload(&client, model_ref)?.model_ref())
}

/// As [`load_model`], for async code.
///
/// See [`PromptRequest`](crate::PromptRequest) for an example.
///
/// # Errors
/// As [`TextModel::load`].
pub async fn load_model_async(path: impl Into<PathBuf>) -> Result<ModelRef, TextError> {
    Ok(TextModel::load(&ModelClient::new(), path.into()).await?.model_ref())
}

impl TextModel {
    /// Loads a model and what its publisher ships in the folder that it lies in, under the names of the `transformers` library:
    /// `tokenizer.json`; if they are there `tokenizer_config.json`, which names the token that ends a text and may hold the chat template, and
    /// `chat_template.jinja`, which goes before that.
    ///
    /// # Errors
    /// [`TextError::Tokenizer`], [`TextError::TokenizerConfig`], [`TextError::Template`] with what is wrong with a file; what
    /// [`new`](Self::new) says; [`TextError::Client`] if the model cannot be loaded. No model stays loaded then.
    ///
    /// # Cancel safety
    /// As [`ModelClient::load`].
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/handbook/handbook.mlpackage");
    /// use coreml_client::ModelClient;
    /// use coreml_text::TextModel;
    ///
    /// let client = ModelClient::builder().threads(1).build();
    /// let model = TextModel::load(&client, path).await?;
    /// assert_eq!(model.tokenizer().vocabulary(), 4096);
    /// # Ok::<(), coreml_text::TextError>(())
    /// # }).unwrap();
    /// ```
    pub async fn load(client: &ModelClient, source: impl Into<ModelSource>) -> Result<Self, TextError> {
        let source = source.into();
        let path = source.path().to_owned();
        let (sender, receiver) = oneshot::channel();
        // Files, and a vocabulary to sort, several times: not on a thread of the executor.
        let read = move || {
            let _ = sender.send(Files::read(&path));
        };
        let thread = std::thread::Builder::new().name("tokenizer".to_owned()).spawn(read);
        thread.map_err(|source| coreml_client::Error::Thread { source: source.into() })?;
        // Without an answer the thread has panicked.
        let panicked = || TokenizerError::Parse { source: "its library panicked".into() };
        let files = receiver.await.map_err(|_| panicked())??;
        let model_ref = client.load(source).await?;
        files.model_or_unload(client, model_ref)
    }
}

/// What lies beside a model.
struct Files {
    tokenizer: Tokenizer,
    grammars: Grammars,
    end: Option<String>,
    template: Option<ChatTemplate>,
}

/// The part of a `tokenizer_config.json` that matters here.
#[derive(Default, Deserialize)]
struct Config {
    #[serde(default)]
    bos_token: Option<Token>,
    #[serde(default)]
    eos_token: Option<Token>,
    #[serde(default)]
    chat_template: Option<Templates>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Token {
    Text(String),
    Added { content: String },
}

impl Token {
    fn text(self) -> String {
        match self {
            Self::Text(text) | Self::Added { content: text } => text,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<Named>),
}

#[derive(Deserialize)]
struct Named {
    name: String,
    template: String,
}

impl Templates {
    fn default(self) -> Option<String> {
        match self {
            Self::One(template) => Some(template),
            Self::Named(all) => all.into_iter().find(|one| one.name == "default").map(|one| one.template),
        }
    }
}

impl Files {
    fn read(model: &Path) -> Result<Self, TextError> {
        let folder = model.parent().unwrap_or(Path::new(""));
        let tokenizer = Tokenizer::from_file(folder.join("tokenizer.json"))?;
        let path = folder.join("tokenizer_config.json");
        let Config { bos_token, eos_token, chat_template } = match optional(&path)? {
            Some(json) => serde_json::from_str(&json)
                .map_err(|source| TextError::TokenizerConfig { path, source: source.into() })?,
            None => Config::default(),
        };
        let (start, end) = (bos_token.map(Token::text), eos_token.map(Token::text));
        let of_config = chat_template.and_then(Templates::default);
        let template = match optional(&folder.join("chat_template.jinja"))?.or(of_config) {
            Some(template) => {
                let mut template = ChatTemplate::new(template)?;
                for (name, text) in [("bos_token", &start), ("eos_token", &end)] {
                    if let Some(text) = text {
                        template = template.token(name, text);
                    }
                }
                Some(template)
            }
            None => None,
        };
        tokenizer.prepare()?;
        let grammars = Grammars::default();
        if let Some(token) = end.as_deref().and_then(|end| tokenizer.token(end)) {
            // If it fails it fails again, for the first who wants constrained text; others need none of it.
            let _ = grammars.prepare(&tokenizer, token);
        }
        Ok(Self { tokenizer, grammars, end, template })
    }

    /// The loaded model with all this. Nobody would unload one whose reference nobody has.
    fn model_or_unload(self, client: &ModelClient, model_ref: ModelRef) -> Result<TextModel, TextError> {
        self.model(client, model_ref).inspect_err(|_| {
            // It may be gone already.
            let _ = client.unload(model_ref);
        })
    }

    fn model(self, client: &ModelClient, model_ref: ModelRef) -> Result<TextModel, TextError> {
        let end: Vec<&str> = self.end.as_deref().into_iter().collect();
        let model = TextModel::with_grammars(client, model_ref, self.tokenizer, &end, self.grammars.into())?;
        match self.template {
            Some(template) => model.with_template(template),
            None => Ok(model),
        }
    }
}

/// A file that need not be there.
fn optional(path: &Path) -> Result<Option<String>, TokenizerError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TokenizerError::Read { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use coreml_testing::{FakeBridge, byte_tokenizer};

    use super::*;
    use crate::tests::stateful;

    fn folder(config: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), byte_tokenizer("</s>")).unwrap();
        std::fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
        folder
    }

    async fn load(fake: FakeBridge, config: &str) -> (ModelClient, Result<TextModel, TextError>) {
        let folder = folder(config);
        let client = ModelClient::builder().bridge(fake.bridge()).threads(1).build();
        let model = TextModel::load(&client, folder.path().join("fake.mlpackage").as_path()).await;
        (client, model)
    }

    #[tokio::test]
    async fn what_takes_a_look_at_every_token_is_done_when_a_model_is_loaded() {
        let (client, model) = load(stateful(), r#"{"eos_token": "</s>"}"#).await;
        let model = model.unwrap();
        assert!(model.is_prepared());
        let again =
            TextModel::new(&client, model.model_ref(), crate::tokenizer::tests::bytes(), &["<|end|>"]);
        let again = again.unwrap();
        assert!(!again.is_prepared());
        again.prepare().unwrap();
        assert!(again.is_prepared());
    }

    /// A model that was unloaded is counted until its threads have ended.
    async fn none_left(client: &ModelClient) {
        let end = Instant::now() + Duration::from_secs(30);
        while !client.stats().models.is_empty() {
            assert!(Instant::now() < end, "{:?}", client.stats().models);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn a_model_that_is_no_text_model_does_not_stay_loaded_and_is_named() {
        let (client, model) = load(stateful(), r#"{"eos_token": "<eos>"}"#).await;
        assert!(matches!(model, Err(TextError::UnknownToken { .. })));
        none_left(&client).await;
        // The fake's own model knows neither tokens nor logits.
        let (client, model) = load(FakeBridge::new(), "{}").await;
        let error = model.unwrap_err();
        assert!(matches!(error, TextError::UnknownLayout(_)), "{error:?}");
        assert!(error.to_string().contains("fake.mlpackage: not a text model"), "{error}");
        none_left(&client).await;
    }
}
