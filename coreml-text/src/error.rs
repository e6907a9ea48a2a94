use crate::{ChatTemplateError, ConstraintError, TokenizerError, UnknownLayout};

/// What went wrong with a text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// The model is not one that this crate knows how to ask.
    #[error(transparent)]
    UnknownLayout(#[from] UnknownLayout),
    /// There is no tokenizer, or it failed.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The file beside the tokenizer that names its special tokens is wrong.
    #[error("{} cannot be used", path.display())]
    TokenizerConfig {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A prompt for a model without a tokenizer.
    #[error("{model_ref} takes no prompts: it was not loaded with a tokenizer")]
    NotText {
        /// The model.
        model_ref: coreml_client::ModelRef,
    },
    /// The tokenizer has no such token.
    #[error("the tokenizer knows no token `{token}`")]
    UnknownToken {
        /// Its text.
        token: String,
    },
    /// The prompt leaves the model no room for a single token.
    #[error("the prompt has {found} tokens, and the model takes at most {most}")]
    PromptTooLong {
        /// How many it has.
        found: usize,
        /// How many it may have.
        most: usize,
    },
    /// There is nothing to go on with.
    #[error("the prompt has no tokens")]
    EmptyPrompt,
    /// Settings that cannot be.
    #[error("tokens cannot be chosen so: {reason}")]
    Sampling {
        /// Which.
        reason: String,
    },
    /// The constraint is wrong.
    #[error(transparent)]
    Constraint(#[from] ConstraintError),
    /// Constrained text needs a token that ends it.
    #[error("a constrained text needs a token that ends it, and the model was given none")]
    NoEnd,
    /// No token can be chosen: the model's logits are no numbers, or no token is allowed.
    #[error("no token can follow: the logits are no numbers, or none that may follow has one")]
    NoToken,
    /// The model's answer is no vector for the text.
    #[error("no embedding: {reason}")]
    NoEmbedding {
        /// What it is.
        reason: String,
    },
    /// Conversations need a template.
    #[error("the model was given no chat template")]
    NoTemplate,
    /// The template gives no text for this conversation.
    #[error(transparent)]
    Template(#[from] ChatTemplateError),
    /// What became of a request.
    #[error("the model could not be asked")]
    Client(#[from] coreml_client::Error),
}
