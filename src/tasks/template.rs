//! Templates and expressions over the fields of a record: Jinja with Python's string and list methods, and a few
//! functions that public formats need.

use std::collections::BTreeSet;

use fancy_regex::Regex;
use minijinja::value::{Kwargs, Value};
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior};

use super::values::unanswered_record;
use crate::error::Error;

/// Functions that are added to Jinja's own.
const FUNCTIONS: &[&str] = &["letters", "index_of"];

/// The environment in which templates and expressions are compiled: what is undefined is an error, nothing is escaped,
/// a newline at the end stays.
pub fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_keep_trailing_newline(true);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("letters", letters);
    environment.add_function("index_of", index_of);
    environment.add_filter("regex_replace", regex_replace);
    environment
}

/// `letters(4)`: `["A", "B", "C", "D"]`.
fn letters(count: usize) -> Result<Vec<String>, minijinja::Error> {
    if count > 26 {
        return Err(invalid(format!("letters({count}): there are 26 letters")));
    }
    Ok(('A'..='Z').take(count).map(String::from).collect())
}

/// `index_of(["A", "B"], "B")`: 1. A value that is not there is an error.
fn index_of(list: Value, value: Value) -> Result<usize, minijinja::Error> {
    let found = list.try_iter()?.position(|item| item == value);
    found.ok_or_else(|| invalid(format!("index_of: {value:?} is not in {list:?}")))
}

/// `text | regex_replace("\\s+", " ")`: every match; `${1}` in the replacement is the first group.
fn regex_replace(
    text: String,
    pattern: String,
    replacement: String,
    kwargs: Kwargs,
) -> Result<String, minijinja::Error> {
    kwargs.assert_all_used()?;
    let regex = Regex::new(&pattern).map_err(|error| invalid(format!("`{pattern}`: {error}")))?;
    let replaced = regex.try_replacen(&text, 0, replacement.as_str());
    Ok(replaced.map_err(|error| invalid(format!("`{pattern}`: {error}")))?.into_owned())
}

fn invalid(message: String) -> minijinja::Error {
    minijinja::Error::new(ErrorKind::InvalidOperation, message)
}

/// A template that gives a text.
#[derive(Debug)]
pub struct Template<'e> {
    key: &'static str,
    compiled: minijinja::Template<'e, 'e>,
}

impl<'e> Template<'e> {
    /// Compiles the value of a key.
    pub fn compile(environment: &'e Environment, key: &'static str, text: &'e str) -> Result<Self, minijinja::Error> {
        Ok(Self { key, compiled: environment.template_from_str(text)? })
    }

    /// The text for a record.
    ///
    /// # Errors
    /// A field that the record lacks, an operation that a field's value does not allow.
    pub fn render(&self, record: &Value) -> Result<String, Error> {
        let names = || self.compiled.undeclared_variables(true);
        let text =
            self.compiled.render(record).map_err(|error| explain("template", self.key, error, names(), record))?;
        if null_became_text(&text, record, |marked| self.compiled.render(marked).ok()) {
            return Err(null("template", self.key, names(), record));
        }
        Ok(text)
    }
}

/// An expression that gives a value.
#[derive(Debug)]
pub struct Expression<'e> {
    key: &'static str,
    compiled: minijinja::Expression<'e, 'e>,
}

impl<'e> Expression<'e> {
    /// Compiles the value of a key.
    pub fn compile(environment: &'e Environment, key: &'static str, text: &'e str) -> Result<Self, minijinja::Error> {
        Ok(Self { key, compiled: environment.compile_expression(text)? })
    }

    /// The value for a record.
    ///
    /// # Errors
    /// A field that the record lacks, an operation that a field's value does not allow.
    pub fn eval(&self, record: &Value) -> Result<Value, Error> {
        let value = self.compiled.eval(record).and_then(|value| match value.is_undefined() {
            true => Err(minijinja::Error::from(ErrorKind::UndefinedError)),
            false => Ok(value),
        });
        let names = || self.compiled.undeclared_variables(true);
        let value = value.map_err(|error| explain("expression", self.key, error, names(), record))?;
        // As it is written in Jinja, a text has quotes and null has none: a value that is null is no text yet.
        let again = |marked: &Value| self.compiled.eval(marked).ok().map(|value| format!("{value:?}"));
        if null_became_text(&format!("{value:?}"), record, again) {
            return Err(null("expression", self.key, names(), record));
        }
        Ok(value)
    }
}

/// Stands in for null: a character that no filter changes, and that records hardly have (the picture of NUL).
const MARK: &str = "\u{2400}";
/// What Jinja makes of null where it needs a text, but for case.
const NULL: &str = "none";

/// Whether a result has the word `none` because a field of the record is null. Filters and `~` make that word without
/// a trace; but where it came from null, a mark in null's place would stand where the word does.
fn null_became_text(result: &str, record: &Value, again: impl FnOnce(&Value) -> Option<String>) -> bool {
    let result = result.to_ascii_lowercase();
    if !result.contains(NULL) {
        return false;
    }
    let Ok(mut marked) = serde_json::to_value(record) else { return false };
    mark(&mut marked);
    let with_marks = again(&Value::from_serialize(&marked)).filter(|text| text.contains(MARK));
    with_marks.is_some_and(|text| text.to_ascii_lowercase().replace(MARK, NULL) == result)
}

fn mark(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Null => *value = MARK.into(),
        serde_json::Value::Array(values) => values.iter_mut().for_each(mark),
        serde_json::Value::Object(fields) => fields.values_mut().for_each(mark),
        _ => {}
    }
}

/// Which fields are null, and what to write.
fn null(what: &str, key: &str, names: impl IntoIterator<Item = String>, record: &Value) -> Error {
    let at = |name: &String| name.split('.').try_fold(record.clone(), |value, part| value.get_attr(part)).ok();
    let is_null = |name: &String| at(name).is_some_and(|value| value.is_none());
    let fields: BTreeSet<String> = names.into_iter().filter(is_null).collect();
    let listed: Vec<_> = fields.iter().map(|name| format!("`{name}`")).collect();
    let named = if listed.is_empty() { "a part of a field".to_owned() } else { listed.join(" and ") };
    let first = fields.first().map_or("field", String::as_str);
    let remedy = match what {
        "template" => format!("{{{{ {first} | default('', true) }}}}"),
        _ => format!("{first} | default('', true)"),
    };
    Error::new(format!("the {what} `{key}` needs a text of {named}, which is null"))
        .hint(format!("leave the record out, or write `{remedy}` for an empty text"))
}

/// Jinja's error in words of a record: which field is missing, where that is the reason.
fn explain(
    what: &str,
    key: &str,
    error: minijinja::Error,
    names: impl IntoIterator<Item = String>,
    record: &Value,
) -> Error {
    let names = Vec::from_iter(names);
    let empty = |name: &String| record.get_attr(name).is_ok_and(|value| value.as_str() == Some(""));
    if key == "answer" && names.iter().any(empty) {
        // An empty text is no number and no letter.
        return unanswered_record().because(error);
    }
    let of_undefined = error.kind() == ErrorKind::UndefinedError || error.to_string().contains("undefined");
    let missing: BTreeSet<String> = names
        .into_iter()
        .filter(|name| of_undefined && !FUNCTIONS.contains(&name.as_str()))
        .filter_map(|name| missing_part(record, &name))
        .map(|name| format!("`{name}`"))
        .collect();
    let missing = Vec::from_iter(missing);
    if missing.is_empty() {
        return Error::new(format!("the {what} `{key}` cannot be applied")).because(error);
    }
    let fields: Vec<_> = record.try_iter().into_iter().flatten().take(30).map(|field| format!("`{field}`")).collect();
    Error::new(format!("the {what} `{key}` names {}, which the record lacks", missing.join(" and ")))
        .hint(format!("the record has {}", fields.join(", ")))
}

/// The shortest start of a dotted name that leads to no value. A part behind a text or a list is a method, no field.
fn missing_part(record: &Value, name: &str) -> Option<String> {
    let mut value = record.clone();
    let mut path: Vec<&str> = Vec::new();
    for part in name.split('.') {
        if value.kind() != minijinja::value::ValueKind::Map {
            return None;
        }
        path.push(part);
        match value.get_attr(part) {
            Ok(inner) if !inner.is_undefined() => value = inner,
            // A map has methods too.
            _ => return (!["items", "keys", "values", "get"].contains(&part)).then(|| path.join(".")),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eval(text: &str, record: serde_json::Value) -> Result<Value, String> {
        let environment = environment();
        let expression = Expression::compile(&environment, "answer", text).map_err(|error| error.to_string())?;
        expression
            .eval(&Value::from_serialize(&record))
            .map_err(|error| format!("{}; {}", error.chain(), error.find_hint().unwrap_or_default()))
    }

    fn render(text: &str, record: serde_json::Value) -> String {
        let environment = environment();
        let template = Template::compile(&environment, "context", text).unwrap();
        template.render(&Value::from_serialize(&record)).unwrap_or_else(|error| error.chain())
    }

    #[test]
    fn functions_that_formats_need() {
        let none = || serde_json::json!({});
        assert_eq!(eval("letters(3)", none()).unwrap(), Value::from(vec!["A", "B", "C"]));
        assert_eq!(eval("index_of(letters(4), 'C')", none()).unwrap(), Value::from(2));
        assert!(eval("index_of(letters(4), 'E')", none()).unwrap_err().contains("\"E\" is not in"));
        assert!(eval("letters(27)", none()).unwrap_err().contains("there are 26 letters"));
        let text = serde_json::json!({"text": "( a ) ( b )"});
        assert_eq!(
            eval(r"text | regex_replace('\\( (.) \\)', '[${1}]')", text.clone()).unwrap(),
            Value::from("[a] [b]")
        );
        assert!(eval("text | regex_replace('(', '')", text).unwrap_err().contains("`(`"));
        let list = serde_json::json!({"list": ["a b", "c"], "label": "2"});
        assert_eq!(eval("list | map('replace', ' ', '') | list", list.clone()).unwrap(), Value::from(vec!["ab", "c"]));
        assert_eq!(eval("label | int - 1", list).unwrap(), Value::from(1));
    }

    #[test]
    fn texts_stand_as_they_are() {
        assert_eq!(render("{{ a.strip() }}\n", serde_json::json!({"a": " <b>&\" "})), "<b>&\"\n");
        // As Python writes it.
        assert_eq!(render("{{ a }}", serde_json::json!({"a": true})), "True");
    }

    #[test]
    fn null_is_no_text() {
        let record = || serde_json::json!({"a": null, "b": "none of these", "c": {"d": null}, "e": ["x", null]});
        let refused = |of: &str| format!("the template `context` needs a text of {of}, which is null");
        for text in ["{{ a }}", "{{ b }} {{ a | trim }}", "{{ a | upper }}", "{{ a ~ b }}"] {
            assert_eq!(render(text, record()), refused("`a`"), "{text}");
        }
        assert_eq!(render("{{ c.d }}", record()), refused("`c.d`"));
        assert_eq!(render("{{ e[1] }}", record()), refused("a part of a field"));
        let allowed = [
            "{{ a | default('', true) }}{{ b }}",
            "{% if a is none %}{{ b }}{% endif %}",
            "{% if a %}{{ a }}{% else %}{{ b }}{% endif %}",
            "{{ a or b }}",
            "{{ b }}",
        ];
        assert_eq!(allowed.map(|text| render(text, record())), ["none of these"; 5]);
        assert_eq!(
            eval("[a ~ 'x', b]", record()).unwrap_err(),
            "the expression `answer` needs a text of `a`, which is null; leave the record out, or write \
             `a | default('', true)` for an empty text"
        );
        assert_eq!(eval("[a | default('', true), b]", record()).unwrap(), Value::from(vec!["", "none of these"]));
        // A value that is null is looked at by who needs it: images may be.
        assert!(eval("a", record()).unwrap().is_none());
        assert!(eval("[a, b]", record()).is_ok());
    }

    #[test]
    fn a_missing_field_is_named_with_those_that_are_there() {
        let record = serde_json::json!({"question": "?", "choices": {"text": []}});
        assert_eq!(
            eval("choices.label.index(answerKey)", record.clone()).unwrap_err(),
            "the expression `answer` names `answerKey` and `choices.label`, which the record lacks; \
             the record has `question`, `choices`"
        );
        assert_eq!(
            render("{{ question.strip() }} {{ ctx }}", record),
            "the template `context` names `ctx`, which the record lacks"
        );
    }
}
