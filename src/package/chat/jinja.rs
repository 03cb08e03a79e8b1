//! What Jinja and Hugging Face have and minijinja lacks, or has otherwise.
//!
//! What stays different; `tests/it/templates.rs` holds an example of each.
//!
//! * Refused, where Jinja accepts: `text % values` (`format` is known), `a, b` without parentheses, a sign `+` before a
//!   number, negative powers of integers, `varargs` and `kwargs` in macros, `sum(start=…)`; the globals `cycler`,
//!   `joiner`, `lipsum`; the filters `center`, `filesizeformat`, `random`, `truncate`, `urlencode`, `wordcount`,
//!   `xmlattr`; the test `callable`; `center`, `encode`, `expandtabs`, `ljust`, `swapcase`, `zfill` of strings,
//!   positions in `startswith`, `copy` of mappings.
//! * Accepted, where Jinja raises: `none` as an empty list, order between values of different kinds, division by zero,
//!   JSON of a namespace or a range, `join` of what is no text, a number with a fraction as an index.
//! * Printed otherwise: a tuple (which a pair of `items` is) reads as a list, `pprint` has a form of its own, `and` of
//!   two constants is a truth value, integer division by a negative number rounds towards zero, two undefined values
//!   are the same one, `attr` finds keys too, attributes of Python's numbers are undefined, `strip` leaves the four
//!   separators of ASCII.
//! * `strftime_now` tells the time in UTC, where Hugging Face takes the machine's zone, and knows fewer directives than
//!   C; an unknown one is refused.

use minijinja::value::{Kwargs, Rest, Value, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State};

use super::python::{Json, str_of};

/// Registers everything.
pub fn extend(environment: &mut Environment<'static>) {
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_formatter(|out, _, value| out.write_str(&str_of(value)).map_err(Error::from));
    environment.set_unknown_method_callback(method);
    environment.add_filter("tojson", tojson);
    environment.add_filter("string", |value: &Value| str_of(value));
    environment.add_filter("join", join);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("round", round);
    environment.add_filter("replace", replace);
    environment.add_filter("indent", indent);
    environment.add_filter("first", |value: &Value| end_of(value, false));
    environment.add_filter("last", |value: &Value| end_of(value, true));
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String | ValueKind::Undefined)
    });
    environment.add_test("iterable", |value: &Value| {
        use ValueKind::{Iterable, Map, Seq, String, Undefined};
        matches!(value.kind(), Seq | Iterable | Map | String | Undefined)
    });
    environment.add_test("number", |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool));
}

/// `generation` blocks mark what the assistant said, for training; a prompt is the same without the marks. A block has
/// a scope of its own, as `with` has.
pub fn without_generation_blocks(template: &str) -> String {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        rest = tag;
        let name = tag.trim_start_matches(['-', '+']).trim_start();
        let sign_and_blank = tag.len() - name.len();
        for (known, instead) in [("generation", "with"), ("endgeneration", "endwith")] {
            let Some(after) = name.strip_prefix(known) else { continue };
            let end = after.trim_start();
            if end.starts_with("%}") || end.starts_with("-%}") || end.starts_with("+%}") {
                out.push_str(&tag[..sign_and_blank]);
                out.push_str(instead);
                rest = after;
            }
        }
    }
    out + rest
}

/// Hugging Face's `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`, which is `json.dumps`.
fn tojson(value: &Value, positional: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let argument = |place: usize, name: &str| -> Result<Option<Value>, Error> {
        let found = positional.get(place).cloned();
        let found = if found.is_some() { found } else { named.get::<Option<Value>>(name)? };
        Ok(found.filter(|value| !value.is_none() && !value.is_undefined()))
    };
    let truth = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let ensure_ascii = truth(argument(0, "ensure_ascii")?);
    let indent = match argument(1, "indent")? {
        None => None,
        Some(indent) => match indent.as_str() {
            Some(text) => Some(text.to_owned()),
            None if indent.kind() == ValueKind::Bool => Some(" ".repeat(indent.is_true().into())),
            None => Some(" ".repeat(usize::try_from(indent)?)),
        },
    };
    let separators = match argument(2, "separators")? {
        Some(two) => {
            let part = |place: usize| two.get_item_by_index(place).map(|part| str_of(&part));
            (part(0)?, part(1)?)
        }
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
    };
    let sort_keys = truth(argument(3, "sort_keys")?);
    named.assert_all_used()?;
    Json { ensure_ascii, indent, separators, sort_keys }.dumps(value)
}

fn join(value: &Value, separator: Option<&str>, named: Kwargs) -> Result<String, Error> {
    let named_separator: Option<String> = named.get("d")?;
    let attribute: Option<String> = named.get("attribute")?;
    named.assert_all_used()?;
    let separator = separator.map(str::to_owned).or(named_separator).unwrap_or_default();
    let texts: Result<Vec<_>, Error> = value
        .try_iter()?
        .map(|item| match &attribute {
            Some(path) => Ok(str_of(&path.split('.').try_fold(item, |item, name| item.get_attr(name))?)),
            None => Ok(str_of(&item)),
        })
        .collect();
    Ok(texts?.join(&separator))
}

fn length(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() {
        return Ok(0);
    }
    value.len().ok_or_else(|| invalid(format!("an {} value has no length", value.kind())))
}

/// What is no number becomes the default, 0.
fn int(value: &Value, default: Option<Value>, base: Option<u32>) -> Value {
    let text = str_of(value);
    let text = text.trim().replace('_', "");
    let whole = match base {
        Some(base @ 2..=36) => i128::from_str_radix(text.trim_start_matches("0x").trim_start_matches("0b"), base).ok(),
        _ => text.parse::<i128>().ok(),
    };
    let truncated = || number(value).map(|float| float.trunc() as i128);
    whole.or_else(truncated).map_or_else(
        || default.unwrap_or_else(|| Value::from(0)),
        |whole| i64::try_from(whole).map_or_else(|_| Value::from(whole), Value::from),
    )
}

/// Half to even, as Python rounds; an integer stays one.
fn round(value: &Value, precision: Option<i32>, method: Option<&str>) -> Result<Value, Error> {
    let number = number(value).ok_or_else(|| invalid(format!("an {} value is no number", value.kind())))?;
    let precision = precision.unwrap_or(0);
    let scale = 10_f64.powi(precision);
    Ok(match method.unwrap_or("common") {
        "common" if precision >= 0 && value.is_integer() => value.clone(),
        // Decimal digits are rounded from the exact value, which a product with the scale would not be.
        "common" if precision > 0 => {
            let digits = usize::try_from(precision).unwrap_or_default().min(400);
            Value::from(format!("{number:.digits$}").parse().unwrap_or(number))
        }
        "common" if value.is_integer() => Value::from(((number * scale).round_ties_even() / scale) as i64),
        "common" => Value::from((number * scale).round_ties_even() / scale),
        "ceil" => Value::from((number * scale).ceil() / scale),
        "floor" => Value::from((number * scale).floor() / scale),
        other => return Err(invalid(format!("`round` does not know `{other}`"))),
    })
}

fn replace(value: &Value, old: &Value, new: &Value, count: Option<usize>) -> String {
    let (text, old, new) = (str_of(value), str_of(old), str_of(new));
    count.map_or_else(|| text.replace(&old, &new), |count| text.replacen(&old, &new, count))
}

fn indent(
    value: &Value,
    width: Option<Value>,
    first: Option<bool>,
    blank: Option<bool>,
    named: Kwargs,
) -> Result<String, Error> {
    let width = width.map_or_else(|| named.get::<Option<Value>>("width"), |width| Ok(Some(width)))?;
    let first = first.map_or_else(|| named.get::<Option<bool>>("first"), |first| Ok(Some(first)))?;
    let blank = blank.map_or_else(|| named.get::<Option<bool>>("blank"), |blank| Ok(Some(blank)))?;
    named.assert_all_used()?;
    let margin = match width {
        None => " ".repeat(4),
        Some(width) => match width.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(width)?),
        },
    };
    let text = str_of(value);
    let lines = text.split('\n').enumerate().map(|(index, line)| {
        let indented = if index == 0 { first == Some(true) } else { blank == Some(true) || !line.is_empty() };
        format!("{}{line}", if indented { &margin } else { "" })
    });
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

/// The first or the last item; of nothing, nothing.
fn end_of(value: &Value, last: bool) -> Result<Value, Error> {
    if value.is_undefined() {
        return Ok(Value::UNDEFINED);
    }
    let mut items = match value.as_str() {
        Some(text) => text.chars().map(Value::from).collect::<Value>().try_iter()?,
        None => value.try_iter()?,
    };
    Ok(if last { items.last() } else { items.next() }.unwrap_or(Value::UNDEFINED))
}

fn float(value: &Value, default: Option<Value>) -> Value {
    number(value).map_or_else(|| default.unwrap_or_else(|| Value::from(0.0)), Value::from)
}

fn number(value: &Value) -> Option<f64> {
    match value.kind() {
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::Number => f64::try_from(value.clone()).ok(),
        ValueKind::String => value.as_str()?.trim().parse().ok(),
        _ => None,
    }
}

/// Methods of Python's strings and lists: those that count in characters, and those that minijinja's collection lacks;
/// all others come from there.
fn method(state: &State, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    let Some(text) = value.as_str() else {
        if name == "index" && value.kind() == ValueKind::Seq {
            let (what,): (&Value,) = from_args(arguments)?;
            let found = value.try_iter()?.position(|item| item == *what);
            return found.map(Value::from).ok_or_else(|| invalid(format!("{} is not in the list", str_of(what))));
        }
        return minijinja_contrib::pycompat::unknown_method_callback(state, value, name, arguments);
    };
    let place = |byte: Option<usize>| byte.map_or(-1, |byte| text[..byte].chars().count() as i64);
    Ok(match name {
        "find" | "index" | "rfind" | "rindex" => {
            let (what,): (&str,) = from_args(arguments)?;
            let found = place(if name.starts_with('r') { text.rfind(what) } else { text.find(what) });
            if found < 0 && name.ends_with("index") {
                return Err(invalid("substring not found".to_owned()));
            }
            Value::from(found)
        }
        "removeprefix" => {
            let (what,): (&str,) = from_args(arguments)?;
            Value::from(text.strip_prefix(what).unwrap_or(text))
        }
        "removesuffix" => {
            let (what,): (&str,) = from_args(arguments)?;
            Value::from(text.strip_suffix(what).unwrap_or(text))
        }
        "partition" | "rpartition" => {
            let (what,): (&str,) = from_args(arguments)?;
            let last = name == "rpartition";
            let found = if last { text.rsplit_once(what) } else { text.split_once(what) };
            let parts = match found {
                Some((before, after)) => [before, what, after],
                None if last => ["", "", text],
                None => [text, "", ""],
            };
            parts.into_iter().map(Value::from).collect()
        }
        "split" | "rsplit" => {
            let (what, most, named): (Option<&str>, Option<i64>, Kwargs) = from_args(arguments)?;
            let most = most.map_or_else(|| named.get::<Option<i64>>("maxsplit"), |most| Ok(Some(most)))?;
            let what = what.map_or_else(|| named.get::<Option<&str>>("sep"), |what| Ok(Some(what)))?;
            named.assert_all_used()?;
            let most = most.and_then(|most| usize::try_from(most).ok());
            split(text, what, most, name == "rsplit")?
        }
        // An empty string is none of these.
        "isalnum" | "isalpha" | "isdigit" | "isnumeric" | "isspace" | "islower" | "isupper" if text.is_empty() => {
            Value::from(false)
        }
        _ => return minijinja_contrib::pycompat::unknown_method_callback(state, value, name, arguments),
    })
}

fn split(text: &str, what: Option<&str>, most: Option<usize>, from_the_right: bool) -> Result<Value, Error> {
    let pieces = most.unwrap_or(usize::MAX - 1) + 1;
    let mut parts: Vec<String> = match what {
        Some("") => return Err(invalid("empty separator".to_owned())),
        Some(what) if from_the_right => text.rsplitn(pieces, what).map(str::to_owned).collect(),
        Some(what) => text.splitn(pieces, what).map(str::to_owned).collect(),
        None if from_the_right && most.is_some() => {
            return Err(invalid("`rsplit` with a number of splits needs a separator".to_owned()));
        }
        None => {
            let mut parts = Vec::new();
            let mut rest = text.trim_start();
            while !rest.is_empty() {
                let end = rest.find(char::is_whitespace).filter(|_| parts.len() + 1 < pieces).unwrap_or(rest.len());
                parts.push(rest[..end].to_owned());
                rest = rest[end..].trim_start();
            }
            parts
        }
    };
    if from_the_right && what.is_some() {
        parts.reverse();
    }
    Ok(parts.into_iter().map(Value::from).collect())
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}
