//! What an expression gave, as texts, choices and answers, or why it cannot be.

use minijinja::value::{Value, ValueKind};

use crate::error::{Error, Result};

/// A record as those of a test split whose answers are not published.
pub fn unanswered_record() -> Error {
    Error::new("the record has no answer (-1 or an empty text)")
        .hint("test splits are published without answers: take the validation split")
}

/// Two texts or more; none is empty where they are continuations.
pub fn choices(key: &str, value: &Value) -> Result<Vec<String>> {
    let choices = texts(key, value)?;
    match choices.len() {
        0 => return Err(Error::new(format!("`{key}` is empty; a choice needs two or more"))),
        1 => return Err(Error::new(format!("`{key}` has one element; a choice needs two or more"))),
        _ => {}
    }
    match choices.iter().position(String::is_empty).filter(|_| key == "choices") {
        Some(empty) => Err(Error::new(format!("choice {empty} (counted from 0) is empty"))),
        None => Ok(choices),
    }
}

/// A list of texts or numbers.
pub fn texts(key: &str, value: &Value) -> Result<Vec<String>> {
    if value.is_none() {
        return Err(null(key));
    }
    let list = matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable).then(|| value.try_iter());
    let Some(Ok(list)) = list else {
        return Err(Error::new(format!("`{key}` is {}, not a list of texts", show(value)))
            .hint("`[first, second]` makes a list of two fields"));
    };
    let texts = list.map(|value| match scalar(&value) {
        Some(text) => Ok(text),
        None if value.is_none() => Err(Error::new(format!("`{key}` holds null, not a text"))
            .hint("leave the record out, or write `FIELD | default('', true)` for an empty text")),
        None => Err(Error::new(format!("`{key}` holds {}, not a text", show(&value)))),
    });
    texts.collect()
}

/// A text or a list of texts that are right.
pub fn answers(value: &Value) -> Result<Vec<String>> {
    if let Some(answer) = scalar(value) {
        return Ok(vec![answer]);
    }
    let answers = texts("answer", value)?;
    if answers.is_empty() {
        Err(Error::new("`answer` is an empty list: no answer would be right"))
    } else {
        Ok(answers)
    }
}

/// Which choice is right: an index, or the choice's text.
pub fn answer_index(value: &Value, choices: &[String]) -> Result<usize> {
    let count = choices.len();
    if value.is_none() {
        return Err(null("answer"));
    }
    let unanswered = value.as_str().is_some_and(|text| text.trim().is_empty());
    if unanswered || *value == Value::from(-1) {
        return Err(unanswered_record());
    }
    if let Some(text) = value.as_str() {
        return choices.iter().position(|choice| choice == text).ok_or_else(|| {
            Error::new(format!("the answer {} is none of the {count} choices", show(value)))
                .hint("an index in a text becomes a number by `label | int`, a letter by `index_of(letters(4), label)`")
        });
    }
    if !value.is_integer() {
        let error = Error::new(format!("the answer is {}, neither an index nor a choice's text", show(value)));
        return Err(match value.kind() {
            ValueKind::Bool => error.hint("`answer | int` makes an index of a truth value"),
            _ => error.hint("an index is a whole number, counted from 0"),
        });
    }
    usize::try_from(value.clone()).ok().filter(|index| *index < count).ok_or_else(|| {
        Error::new(format!("the answer's index is {value}, and there are {count} choices, counted from 0"))
            .hint("where records count from 1, write `answer: label | int - 1`")
    })
}

fn null(key: &str) -> Error {
    Error::new(format!("`{key}` is null, as its field of the record is"))
        .hint("leave the record out, or name another field")
}

/// A text or a number, as text.
pub fn scalar(value: &Value) -> Option<String> {
    match value.kind() {
        ValueKind::String => value.as_str().map(str::to_owned),
        ValueKind::Number => Some(value.to_string()),
        _ => None,
    }
}

/// A value in a message, not longer than a line.
pub fn show(value: &Value) -> String {
    let text = format!("{value:?}");
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("`{}…`", &text[..end]),
        None => format!("`{text}`"),
    }
}
