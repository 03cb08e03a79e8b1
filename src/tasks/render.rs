//! From a record to what is asked: templates and expressions applied, examples before it, a chat around it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use minijinja::Environment;
use minijinja::value::{Value, ValueKind};

use super::description::{Description, Form, Inputs};
use super::encode::is_space;
use super::records::Record;
use super::template::{Expression, Template};
use super::values::{answer_index, answers, choices, scalar, show, texts};
use super::{Ask, Item};
use crate::error::{Context, Error, Result};
use crate::package::{ChatMessage, ChatTemplate};

/// A description's templates and expressions, compiled.
#[derive(Debug)]
pub struct Renderer<'e> {
    description: &'e Description,
    /// By key.
    templates: BTreeMap<&'static str, Template<'e>>,
    expressions: BTreeMap<&'static str, Expression<'e>>,
    /// Where images' paths start.
    folder: &'e Path,
    /// What records are in their file: lines, say.
    unit: &'static str,
    chat: Option<&'e ChatTemplate>,
}

/// A record before an item: what is asked, and its answer.
#[derive(Debug)]
pub struct Example {
    question: String,
    answer: String,
}

impl<'e> Renderer<'e> {
    /// Compiles them for the items of a file. Images' paths start at `folder`, the file's own; prompts become chats
    /// where there is a template for one.
    ///
    /// # Errors
    /// None for a description that was checked.
    pub fn new(
        environment: &'e Environment<'static>,
        description: &'e Description,
        folder: &'e Path,
        unit: &'static str,
        chat: Option<&'e ChatTemplate>,
    ) -> Result<Self> {
        let (templates, expressions) = (BTreeMap::new(), BTreeMap::new());
        let mut renderer = Self { description, templates, expressions, folder, unit, chat };
        let (mut templates, mut expressions): (Vec<(_, &String)>, Vec<(_, &String)>) = (Vec::new(), Vec::new());
        match &description.form {
            Form::Choice { inputs, answer } => {
                expressions.push(("answer", answer));
                match inputs {
                    Inputs::Continuations { context, choices } => {
                        templates.push(("context", context));
                        expressions.push(("choices", choices));
                    }
                    Inputs::Contexts { contexts, continuation } => {
                        expressions.push(("contexts", contexts));
                        templates.push(("continuation", continuation));
                    }
                }
            }
            Form::Continuation { context, continuation } => {
                templates.push(("context", context));
                templates.push(("continuation", continuation));
            }
            Form::Perplexity { text, original } => {
                templates.push(("text", text));
                templates.extend(original.iter().map(|text| ("original", text)));
            }
            Form::Generation { context, answer } => {
                templates.push(("context", context));
                expressions.push(("answer", answer));
            }
            Form::Code { context, program: _, answer } => {
                templates.push(("context", context));
                templates.extend(answer.iter().map(|text| ("answer", text)));
            }
        }
        templates.extend(description.preamble.iter().map(|text| ("preamble", text)));
        templates.extend(description.system.iter().map(|text| ("system", text)));
        expressions.extend(description.id.iter().map(|text| ("id", text)));
        expressions.extend(description.fewshot.like.iter().map(|text| ("like", text)));
        expressions.extend(description.images.iter().map(|text| ("images", text)));
        for (key, text) in templates {
            let template = Template::compile(environment, key, text).context("a template does not parse")?;
            renderer.templates.insert(key, template);
        }
        for (key, text) in expressions {
            let expression = Expression::compile(environment, key, text).context("an expression does not parse")?;
            renderer.expressions.insert(key, expression);
        }
        Ok(renderer)
    }

    fn text(&self, key: &str, record: &Value) -> Result<String> {
        self.templates.get(key).map_or(Ok(String::new()), |template| template.render(record))
    }

    fn value(&self, key: &str, record: &Value) -> Result<Value> {
        self.expressions.get(key).map_or(Ok(Value::UNDEFINED), |expression| expression.eval(record))
    }

    /// A record with its answer, as it stands before other items.
    ///
    /// # Errors
    /// A record that does not fit the description.
    pub fn example(&self, record: &Record) -> Result<Example> {
        let value = Value::from_serialize(&record.fields);
        let (question, answer) = match &self.description.form {
            Form::Choice { inputs: Inputs::Continuations { .. }, .. } => {
                let choices = texts("choices", &self.value("choices", &value)?)?;
                let answer = answer_index(&self.value("answer", &value)?, &choices)?;
                (self.text("context", &value)?, choices[answer].clone())
            }
            Form::Choice { inputs: Inputs::Contexts { .. }, .. } => {
                let contexts = texts("contexts", &self.value("contexts", &value)?)?;
                let answer = answer_index(&self.value("answer", &value)?, &contexts)?;
                (contexts[answer].clone(), self.text("continuation", &value)?)
            }
            Form::Continuation { .. } => (self.text("context", &value)?, self.continuation(&value)?),
            Form::Generation { .. } => {
                let answers = answers(&self.value("answer", &value)?)?;
                (self.text("context", &value)?, answers[0].clone())
            }
            Form::Code { .. } => (self.text("context", &value)?, self.text("answer", &value)?),
            Form::Perplexity { .. } => return Err(Error::new("texts of the kind `perplexity` have no examples")),
        };
        Ok(Example { question, answer })
    }

    /// What is asked of a record, behind its examples.
    ///
    /// # Errors
    /// A record that does not fit the description.
    pub fn item(&self, record: &Record, examples: &[Example]) -> Result<Item> {
        let value = Value::from_serialize(&record.fields);
        let images = self.images(&value)?;
        let prompt = |context: &str| self.prompt(context, &value, examples, images.len());
        // In a chat the answer begins the assistant's turn.
        let delimiter = if self.chat.is_some() { "" } else { self.description.delimiter.as_str() };
        let ask = match &self.description.form {
            Form::Choice { inputs: Inputs::Continuations { .. }, .. } => {
                let choices = choices("choices", &self.value("choices", &value)?)?;
                let answer = answer_index(&self.value("answer", &value)?, &choices)?;
                let context = Arc::<str>::from(prompt(&self.text("context", &value)?)?);
                let pairs =
                    choices.iter().map(|choice| (Arc::clone(&context), format!("{delimiter}{choice}"))).collect();
                Ask::Choice { pairs, choices, answer }
            }
            Form::Choice { inputs: Inputs::Contexts { .. }, .. } => {
                let contexts = choices("contexts", &self.value("contexts", &value)?)?;
                let answer = answer_index(&self.value("answer", &value)?, &contexts)?;
                let continuation = format!("{delimiter}{}", self.text("continuation", &value)?);
                let pairs: Result<_> =
                    contexts.iter().map(|context| Ok((prompt(context)?.into(), continuation.clone()))).collect();
                Ask::Choice { pairs: pairs?, choices: contexts, answer }
            }
            Form::Continuation { .. } => Ask::Continuation {
                context: prompt(&self.text("context", &value)?)?,
                continuation: format!("{delimiter}{}", self.continuation(&value)?),
            },
            Form::Perplexity { original, .. } => {
                let text = self.text("text", &value)?;
                let counted = if original.is_some() { &self.text("original", &value)? } else { &text };
                let (words, bytes) = (words(counted), counted.len());
                Ask::Perplexity { text, words, bytes }
            }
            Form::Generation { .. } => Ask::Generation {
                context: prompt(&self.text("context", &value)?)?,
                answers: answers(&self.value("answer", &value)?)?,
            },
            Form::Code { .. } => Ask::Code {
                context: prompt(&self.text("context", &value)?)?,
                record: serde_json::Value::Object(record.fields.clone()),
            },
        };
        Ok(Item { id: self.id(record, &value)?, images, ask })
    }

    /// What a record and its examples have in common; the same for all where the description does not say.
    ///
    /// # Errors
    /// A record that does not fit the description.
    pub fn likeness(&self, record: &Record) -> Result<String> {
        if self.description.fewshot.like.is_none() {
            return Ok(String::new());
        }
        let value = self.value("like", &Value::from_serialize(&record.fields))?;
        scalar(&value).ok_or_else(|| Error::new(format!("`like` is {}, neither text nor number", show(&value))))
    }

    fn id(&self, record: &Record, value: &Value) -> Result<String> {
        let id = match (&self.description.id, record.fields.get("id")) {
            (Some(_), _) => self.value("id", value)?,
            (None, Some(id)) => Value::from_serialize(id),
            // A bare number is what spreadsheets and guards against formulas change.
            (None, None) => format!("{}-{}", self.unit, record.number).into(),
        };
        match scalar(&id).filter(|id| !id.is_empty()) {
            Some(id) => Ok(id),
            None => Err(Error::new(format!("the id is {}, neither text nor number", show(&id)))),
        }
    }

    /// The continuation of its own kind, which has something to score.
    fn continuation(&self, record: &Value) -> Result<String> {
        let text = self.text("continuation", record)?;
        if text.is_empty() { Err(Error::new("`continuation` is empty")) } else { Ok(text) }
    }

    fn prompt(&self, context: &str, record: &Value, examples: &[Example], images: usize) -> Result<String> {
        let preamble = self.text("preamble", record)?;
        let fewshot = &self.description.fewshot;
        let in_one_text = || {
            let mut text = String::new();
            for Example { question, answer } in examples {
                text.extend([question, &self.description.delimiter, answer, &fewshot.separator].map(String::as_str));
            }
            text + context
        };
        let Some(chat) = self.chat else { return Ok(preamble + &in_one_text()) };
        let system = join(&self.text("system", record)?, &preamble, &fewshot.separator);
        let render = |images: usize| chat.render(&self.messages(context, in_one_text, &system, examples, images));
        render(images).map_err(|error| match images {
            // A template for texts alone joins or strips a turn's content, which is a list where it has images.
            1.. if render(0).is_ok() => Error::unsupported("the model's chat template takes no images")
                .because(error)
                .hint("ask the task of models that take images: `when: {model: …}` in the matrix's task"),
            _ => error,
        })
    }

    /// The turns of a chat.
    fn messages(
        &self,
        context: &str,
        in_one_text: impl Fn() -> String,
        system: &str,
        examples: &[Example],
        images: usize,
    ) -> Vec<ChatMessage> {
        let mut messages = Vec::new();
        if !system.is_empty() {
            messages.push(ChatMessage::new("system", system, 0));
        }
        if self.description.fewshot.turns {
            for Example { question, answer } in examples {
                messages.push(ChatMessage::new("user", question, 0));
                messages.push(ChatMessage::new("assistant", answer, 0));
            }
            messages.push(ChatMessage::new("user", context, images));
        } else {
            messages.push(ChatMessage::new("user", &in_one_text(), images));
        }
        messages
    }

    fn images(&self, record: &Value) -> Result<Vec<PathBuf>> {
        let value = self.value("images", record)?;
        let paths = match value.kind() {
            ValueKind::Undefined | ValueKind::None => Vec::new(),
            ValueKind::Seq | ValueKind::Iterable => {
                let paths = value.try_iter().context("`images` is no list")?;
                paths.filter(|path| !path.is_none()).collect()
            }
            _ => vec![value],
        };
        let found = paths.iter().map(|value| {
            let Some(path) = value.as_str().filter(|path| !path.is_empty()) else {
                return Err(Error::new(format!("an image is {}, not a path", show(value)))
                    .hint("`images` is an expression that gives a path or a list of paths"));
            };
            let path = self.folder.join(path);
            if path.is_file() {
                return Ok(path);
            }
            Err(Error::new(format!("there is no image `{}`", path.display()))
                .hint("images' paths start at the folder of the items' file"))
        });
        found.collect()
    }
}

/// Two texts, with a separator where neither has white space at the border.
fn join(first: &str, second: &str, separator: &str) -> String {
    let spaced = first.ends_with(is_space) || second.starts_with(is_space);
    let separator = if first.is_empty() || second.is_empty() || spaced { "" } else { separator };
    format!("{first}{separator}{second}")
}

/// Words between white space, counted as the harness does: white space at an end of the text has an empty word beside
/// it, and a text without any is one word.
fn words(text: &str) -> usize {
    let (mut words, mut in_space) = (1, false);
    for c in text.chars() {
        let space = is_space(c);
        words += usize::from(space && !in_space);
        in_space = space;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_as_the_harness_counts_them() {
        let counts = ["", "one", "one two", " one\n\ntwo ", "a\u{a0}b\u{1f}c"].map(words);
        assert_eq!(counts, [1, 1, 2, 4, 3]);
    }

    #[test]
    fn separators_stand_only_between_words() {
        assert_eq!(join("a", "b", "\n\n"), "a\n\nb");
        assert_eq!(join("a\n", "b", "\n\n"), "a\nb");
        assert_eq!((join("", "b", "-"), join("a", "", "-")), ("b".to_owned(), "a".to_owned()));
    }
}
