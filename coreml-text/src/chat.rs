//! Conversations as the text that a model was trained on.

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Value, context};
use serde::{Deserialize, Serialize};

/// Who says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Whoever sets the rules.
    System,
    /// Whoever asks.
    User,
    /// The model.
    Assistant,
}

/// One turn of a conversation.
///
/// ```
/// use coreml_text::{Message, Role};
///
/// let message = Message::user("What is a monad?");
/// assert_eq!(message.role, Role::User);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said.
    pub content: String,
}

impl Message {
    /// The rules.
    pub fn system(content: impl Into<String>) -> Self {
        Self { role: Role::System, content: content.into() }
    }

    /// A question.
    pub fn user(content: impl Into<String>) -> Self {
        Self { role: Role::User, content: content.into() }
    }

    /// An answer.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self { role: Role::Assistant, content: content.into() }
    }
}

/// Why a template gives no text.
#[derive(Debug, thiserror::Error)]
#[error("the chat template failed")]
pub struct ChatTemplateError {
    #[from]
    source: minijinja::Error,
}

/// A model's own template, in Jinja: `chat_template` of its `tokenizer_config.json`, or its `chat_template.jinja`.
///
/// ```
/// use coreml_text::{ChatTemplate, Message};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let template = ChatTemplate::new("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{{ eos_token }}")?
///     .token("eos_token", "</s>");
/// assert_eq!(template.render(&[Message::user("Hi")], true)?, "<user>Hi</s>");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
}

/// What templates are looked up by.
const NAME: &str = "chat";

impl ChatTemplate {
    /// From the text of the template.
    ///
    /// # Errors
    /// When it is not Jinja.
    pub fn new(source: impl Into<String>) -> Result<Self, ChatTemplateError> {
        let mut environment = Environment::new();
        // As `transformers` sets Jinja up.
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_template_owned(NAME, source.into())?;
        Ok(Self { environment })
    }

    /// Gives a special token a name in the template, such as `bos_token`.
    #[must_use]
    pub fn token(mut self, name: &'static str, text: impl Into<String>) -> Self {
        self.environment.add_global(name, text.into());
        self
    }

    /// The text of a conversation; `answer`: up to where the model's answer begins.
    ///
    /// # Errors
    /// When the template refuses the conversation (many want user and assistant to take turns), or is wrong.
    pub fn render(&self, messages: &[Message], answer: bool) -> Result<String, ChatTemplateError> {
        let template = self.environment.get_template(NAME)?;
        let turn = |message: &Message| {
            let role = match message.role {
                Role::System => "system",
                Role::User => "user",
                Role::Assistant => "assistant",
            };
            context! { role => role, content => message.content.as_str() }
        };
        let messages: Vec<Value> = messages.iter().map(turn).collect();
        Ok(template.render(context! { messages => messages, add_generation_prompt => answer })?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mistral's, in short.
    const MISTRAL: &str = "\
{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate') }}
{% endif %}
{% if message['role'] == 'user' %}
{{ '[INST] ' + message['content'].strip() + ' [/INST]' }}
{% else %}
{{ message['content'] + eos_token }}
{% endif %}
{% endfor %}";

    #[test]
    fn a_template_of_the_wild_gives_what_jinja_gives() {
        let template =
            ChatTemplate::new(MISTRAL).unwrap().token("bos_token", "<s>").token("eos_token", "</s>");
        let messages = [Message::user(" Hi "), Message::assistant("Hello"), Message::user("Bye")];
        // Python's jinja2 3.1.6, set up as `transformers` does it:
        // ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(MISTRAL).render(messages=...,
        //     bos_token="<s>", eos_token="</s>", add_generation_prompt=True)
        assert_eq!(
            template.render(&messages, true).unwrap(),
            "<s>[INST] Hi [/INST]\nHello</s>\n[INST] Bye [/INST]\n"
        );
    }

    #[test]
    fn a_refusal_of_the_template_is_an_error_that_says_why() {
        let template = ChatTemplate::new(MISTRAL).unwrap();
        let error = template.render(&[Message::assistant("I begin")], true).unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("Conversation roles must alternate"), "{source}");
    }

    #[test]
    fn a_broken_template_is_refused_at_once() {
        assert!(ChatTemplate::new("{% for %}").is_err());
    }
}
