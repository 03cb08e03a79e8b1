//! Chat templates, as checkpoints carry them: Jinja with Python's string and list methods.

use minijinja::value::Value;
use minijinja::{Environment, context};
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};

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
        // Hugging Face renders with trim_blocks and lstrip_blocks.
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, message))
        });
        environment.add_template_owned(NAME, text).context("the template does not parse")?;
        Ok(Self { environment })
    }

    /// The prompt's text, ready for the tokenizer, with the opening of the assistant's turn at its end.
    ///
    /// # Errors
    /// What the template itself refuses.
    pub fn render(&self, messages: &[ChatMessage]) -> Result<String> {
        self.environment
            .get_template(NAME)
            .and_then(|template| template.render(context! { messages, add_generation_prompt => true }))
            .map_err(|error| Error::new("the chat template refuses these messages").because(error))
    }
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
    fn errors_are_errors() {
        assert!(ChatTemplate::parse("{% if %}".into()).is_err());
        let template = ChatTemplate::parse("{{ raise_exception('no system role') }}".into()).unwrap();
        assert!(template.render(&[]).unwrap_err().chain().contains("no system role"));
    }
}
