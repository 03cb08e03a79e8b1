//! Chat templates, as checkpoints carry them: Jinja as transformers sets it up, with Python's methods and its ways of
//! writing values. `jinja.rs` lists what stays different.
//!
//! `bos_token` and `eos_token` are what the tokenizer's settings call them; the ids of a model need not be theirs.

use std::error::Error as StdError;
use std::fmt;
use std::time::SystemTime;

use minijinja::Environment;
use minijinja::value::Value;
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};
use crate::package::SpecialTexts;

mod date;
mod jinja;
mod python;

/// One turn of a conversation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`.
    pub role: String,
    /// What it says and shows.
    pub content: Content,
}

/// The content of a turn, in the two forms that templates know.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Content {
    /// Text alone.
    Text(String),
    /// Images and text, in order.
    Parts(Vec<Part>),
}

/// A part of a turn's content.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Part {
    /// The place of an image.
    Image,
    /// A text.
    Text {
        /// The text.
        text: String,
    },
}

impl ChatMessage {
    /// A turn of text, behind so many images.
    pub fn new(role: &str, text: &str, images: usize) -> Self {
        let content = if images == 0 {
            Content::Text(text.to_owned())
        } else {
            let text = Part::Text { text: text.to_owned() };
            Content::Parts(std::iter::repeat_n(Part::Image, images).chain([text]).collect())
        };
        Self { role: role.to_owned(), content }
    }
}

/// A parsed template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
}

const NAME: &str = "chat_template";

impl ChatTemplate {
    /// Parses a template's text.
    ///
    /// # Errors
    /// Syntax that is no Jinja, with the line.
    pub fn parse(text: String) -> Result<Self> {
        let mut environment = Environment::new();
        jinja::extend(&mut environment);
        environment.add_function("raise_exception", |message: &Value| -> Result<Value, minijinja::Error> {
            let raised = Raised(python::str_of(message));
            Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, "raise_exception").with_source(raised))
        });
        environment.add_function("strftime_now", |format: &str| date::strftime(SystemTime::now(), format));
        environment
            .add_template_owned(NAME, jinja::without_generation_blocks(&text))
            .context("the template does not parse")?;
        Ok(Self { environment })
    }

    /// Holds the clock of `strftime_now`, so that a prompt does not change with the day.
    #[must_use]
    pub fn at(mut self, time: SystemTime) -> Self {
        self.environment.add_function("strftime_now", move |format: &str| date::strftime(time, format));
        self
    }

    /// Lets the template print the tokenizer's special tokens.
    #[must_use]
    pub fn with_special_texts(mut self, texts: &SpecialTexts) -> Self {
        for (name, text) in [("bos_token", &texts.bos), ("eos_token", &texts.eos)] {
            if let Some(text) = text {
                self.environment.add_global(name, text.clone());
            }
        }
        self
    }

    /// The prompt's text, ready for the tokenizer, with the opening of the assistant's turn at its end.
    ///
    /// # Errors
    /// What the template itself refuses.
    pub fn render(&self, messages: &[ChatMessage]) -> Result<String> {
        self.render_with(&serde_json::json!({ "messages": messages }), true)
    }

    /// The prompt's text from all that a template may read: `messages`, `tools`, `documents`, the texts of special
    /// tokens (`bos_token`, `eos_token`) and any keyword (`enable_thinking`). Order of keys is kept. As in
    /// transformers, a message's keys that are null are left out, and reasoning is found under each of its names.
    ///
    /// # Errors
    /// A context or a message that is no object, and what the template itself refuses.
    pub fn render_with(&self, context: &serde_json::Value, add_generation_prompt: bool) -> Result<String> {
        let mut context = context.as_object().cloned().ok_or_else(|| not_messages("its context is no object"))?;
        let messages = context.get("messages").and_then(serde_json::Value::as_array);
        let messages = messages.ok_or_else(|| not_messages("`messages` is no list"))?;
        let messages: Option<Vec<_>> = messages.iter().map(|each| each.as_object().map(normalized)).collect();
        let messages = messages.ok_or_else(|| not_messages("a message is no object"))?;
        context.insert("messages".to_owned(), messages.into());
        context.insert("add_generation_prompt".to_owned(), add_generation_prompt.into());
        for absent in ["tools", "documents"] {
            context.entry(absent).or_insert(serde_json::Value::Null);
        }
        let rendered = self.environment.get_template(NAME).and_then(|template| template.render(&context));
        rendered.map_err(|error| {
            let refused = Error::new("the chat template refuses these messages");
            match raised(&error) {
                Some(raised) => refused.because(raised),
                None => refused.because(error),
            }
        })
    }
}

fn not_messages(why: &str) -> Error {
    Error::new(format!("the chat template cannot be applied: {why}"))
        .hint("give an object whose `messages` is a list of objects with `role` and `content`")
}

/// The names of an assistant's reasoning; the first is what templates read, the second what some do.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A message as transformers hands it to templates.
fn normalized(message: &serde_json::Map<String, serde_json::Value>) -> serde_json::Value {
    let mut message = message.clone();
    message.retain(|_, value| !value.is_null());
    if let Some(reasoning) = REASONING.iter().find_map(|name| message.get(*name)).cloned() {
        message.entry("thinking").or_insert_with(|| reasoning.clone());
        message.insert("reasoning_content".to_owned(), reasoning);
    }
    message.into()
}

/// What a template said with `raise_exception`.
#[derive(Debug, Clone)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for Raised {}

fn raised(error: &minijinja::Error) -> Option<Raised> {
    let mut next = error.source();
    while let Some(source) = next {
        if let Some(raised) = source.downcast_ref::<Raised>() {
            return Some(raised.clone());
        }
        next = source.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHATML: &str = "{%- for message in messages %}\n{{- '<|im_start|>' + message.role + '\\n' + \
                          message.content.strip() + '<|im_end|>\\n' }}\n{%- endfor %}\n\
                          {%- if add_generation_prompt %}\n{{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n";

    #[test]
    fn renders_with_python_methods() {
        let template = ChatTemplate::parse(CHATML.to_owned()).unwrap();
        let messages = [ChatMessage::new("user", " hi ", 0)];
        assert_eq!(template.render(&messages).unwrap(), "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
    }

    #[test]
    fn images_are_parts_of_a_list() {
        let text =
            "{%- for part in messages[0].content -%}{{ part.type }}{{ part.text if 'text' in part }};{%- endfor -%}";
        let template = ChatTemplate::parse(text.to_owned()).unwrap();
        assert_eq!(template.render(&[ChatMessage::new("user", "hi", 2)]).unwrap(), "image;image;texthi;");
    }

    #[test]
    fn a_context_that_is_no_conversation_is_refused() {
        let template = ChatTemplate::parse("{{ messages[0].content }}".into()).unwrap();
        for context in [
            serde_json::json!([]),
            serde_json::json!({}),
            serde_json::json!({"messages": "hi"}),
            serde_json::json!({"messages": ["hi"]}),
        ] {
            let error = template.render_with(&context, true).unwrap_err();
            assert!(error.chain().contains("cannot be applied"), "{context}: {}", error.chain());
            assert!(error.find_hint().is_some());
        }
    }

    #[test]
    fn errors_are_errors() {
        assert!(ChatTemplate::parse("{% if %}".into()).is_err());
        let template = ChatTemplate::parse("{{ raise_exception('no system role') }}".into()).unwrap();
        assert!(template.render(&[]).unwrap_err().chain().contains("no system role"));
    }
}
