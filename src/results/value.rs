//! One field of a CSV file, written so that spreadsheets and programs read the same thing.
//!
//! * Numbers have `.` as decimal mark, no thousands marks and no exponent, and the fewest digits that read back as the
//!   same number.
//! * What is missing is an empty field; there is no value for it here.
//! * A text that a spreadsheet would take for a formula or for a number gets a leading apostrophe, which spreadsheets
//!   know as "text follows".

/// Integers above this lose digits in a spreadsheet's (and JavaScript's) numbers.
const LARGEST_EXACT_INTEGER: u64 = 1 << 53;

/// A field that is not empty.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A word, a sentence, a time.
    Text(String),
    /// A count or a number of bytes.
    Integer(u64),
    /// A quantity.
    Float(f64),
    /// Yes or no.
    Bool(bool),
}

impl Value {
    /// The field's text, before CSV quoting.
    pub fn field(&self) -> String {
        match self {
            Self::Text(text) => guard(&one_line(text)),
            Self::Integer(value) if *value > LARGEST_EXACT_INTEGER => format!("'{value}"),
            Self::Integer(value) => value.to_string(),
            Self::Float(value) => float(*value),
            Self::Bool(value) => value.to_string(),
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}
impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}
impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Integer(value)
    }
}
impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::Integer(u64::from(value))
    }
}
impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Self::Integer(value as u64)
    }
}
impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}
impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

/// A number as CSV carries it. Rust's `Display` of a float is the shortest text that reads back as the same number, and
/// never has an exponent. What is not finite has no place in a table; it is checked where it is measured, and an empty
/// field is what remains should one slip through.
pub fn float(value: f64) -> String {
    if !value.is_finite() {
        String::new()
    } else if value == 0.0 {
        "0".to_owned()
    } else {
        format!("{value}")
    }
}

/// Adds the apostrophe where a spreadsheet would read more than text into a field.
pub fn guard(text: &str) -> String {
    let formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']);
    // `1e5` as a model's name, or a hash of digits around one `e`, would come out as another text.
    let number = !text.is_empty() && text.parse::<f64>().is_ok_and(|_| text.contains(|c: char| c.is_ascii_digit()));
    if formula || number { format!("'{text}") } else { text.to_owned() }
}

/// Undoes [`guard`].
pub fn unguard(field: &str) -> &str {
    match field.strip_prefix('\'') {
        Some(rest) if guard(rest).len() > rest.len() => rest,
        _ => field,
    }
}

/// A row is a line: breaks inside a field are legal CSV, and break every line-oriented tool.
fn one_line(text: &str) -> String {
    let text = text.trim_end();
    if text.contains(['\n', '\r', '\0']) {
        text.replace("\r\n", " ").replace(['\n', '\r'], " ").replace('\0', "")
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_stay_numbers_and_text_stays_text() {
        let cases: [(Value, &str); 17] = [
            (Value::Float(-1.5), "-1.5"),
            (Value::Float(1e-7), "0.0000001"),
            (Value::Float(1.5e12), "1500000000000"),
            (Value::Float(-0.0), "0"),
            (Value::Float(f64::NAN), ""),
            (Value::Integer(0), "0"),
            (Value::Integer(1 << 53), "9007199254740992"),
            (Value::Integer((1 << 53) + 1), "'9007199254740993"),
            (Value::from("=HYPERLINK(\"x\")"), "'=HYPERLINK(\"x\")"),
            (Value::from("+1"), "'+1"),
            (Value::from("-model"), "'-model"),
            (Value::from("@x"), "'@x"),
            (Value::from("\tx"), "'\tx"),
            (Value::from("1234e567890"), "'1234e567890"),
            (Value::from("infinity"), "infinity"),
            (Value::from("two\r\nlines\nhere\n"), "two lines here"),
            (Value::Bool(true), "true"),
        ];
        for (value, field) in cases {
            assert_eq!(value.field(), field, "{value:?}");
        }
    }

    proptest! {
        #[test]
        fn floats_read_back_exactly(value in prop::num::f64::NORMAL) {
            let text = float(value);
            prop_assert!(!text.contains(['e', 'E', ',']));
            prop_assert_eq!(text.parse::<f64>().unwrap(), value);
        }

        #[test]
        fn guarded_text_reads_back(text in "[=+@'\\-a-z0-9.]{0,8}") {
            // A text that begins with an apostrophe by itself is the one thing that cannot be told apart.
            prop_assume!(!text.starts_with('\''));
            let guarded = guard(&text);
            prop_assert_eq!(unguard(&guarded), text.as_str());
            prop_assert!(!guarded.starts_with(['=', '+', '-', '@']));
        }
    }
}
