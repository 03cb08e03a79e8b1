//! Items' files: a record a line (JSON Lines), or one JSON array. Read as a stream, and no further than needed.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Context, Error, Result};

/// One record and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Line of the file from 1; in an array the element, from 1.
    pub number: u64,
    /// Its fields.
    pub fields: Map<String, Value>,
}

/// A line may have so many bytes; a file without line ends would fill the memory.
const MAX_LINE_BYTES: u64 = 16 << 20;
/// An array is parsed as a whole.
const MAX_ARRAY_BYTES: u64 = 256 << 20;

/// What the numbers of a file's records count, by its name: lines, or the elements of an array.
pub fn unit(path: &Path) -> &'static str {
    if is_array(path) { "record" } else { "line" }
}

fn is_array(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "json")
}

/// At most the first `limit` records of a file; one that ends in `.json` is an array, every other one has a record a
/// line. Empty lines do not count, a byte order mark is skipped.
///
/// # Errors
/// A file that cannot be read, is not UTF-8 or not JSON, with the line; a file without records.
pub fn read(path: &Path, limit: Option<usize>) -> Result<Vec<Record>> {
    let shown = path.display();
    let failed = || format!("cannot read the items `{shown}`");
    let hint = "`data` in the description or in the matrix names the items' file";
    if path.is_dir() {
        return Err(Error::new(format!("the items `{shown}` are a folder, not a file")).hint(hint));
    }
    // A pipe would make the program wait for ever, a device read for ever.
    if path.exists() && !path.is_file() {
        return Err(Error::new(failed()).because(std::io::Error::other("it is not a regular file")).hint(hint));
    }
    let file = File::open(path).with_context(failed).map_err(|error| error.hint(hint))?;
    let mut reader = BufReader::with_capacity(1 << 16, file);
    // A read that fails is told by the next one, with its line.
    if let Some((format, remedy)) = reader.fill_buf().ok().and_then(other_format) {
        return Err(Error::new(failed()).because(std::io::Error::other(format!("it is {format}"))).hint(remedy));
    }
    let limit = limit.unwrap_or(usize::MAX);
    let records = match is_array(path) {
        true => array(reader, limit),
        false => Lines::new(reader).take(limit).collect(),
    };
    let records: Vec<_> = records.with_context(failed)?;
    if records.is_empty() {
        return Err(Error::new(format!("`{shown}` holds no items")));
    }
    Ok(records)
}

/// What a file is that begins like this and is no text, and what to do with it.
fn other_format(start: &[u8]) -> Option<(&'static str, &'static str)> {
    const JSON: &str = "write it as JSON Lines: `datasets.load_dataset(…).to_json(FILE)` does";
    [
        (&b"\x1f\x8b"[..], "gzip", "unpack it: `gunzip FILE`"),
        (b"\x28\xb5\x2f\xfd", "Zstandard", "unpack it: `zstd -d FILE`"),
        (b"\xfd7zXZ\0", "xz", "unpack it: `xz -d FILE`"),
        (b"BZh", "bzip2", "unpack it: `bunzip2 FILE`"),
        (b"PK\x03\x04", "a zip archive", "unpack it: `unzip FILE`"),
        (b"PAR1", "Parquet", JSON),
        (b"ARROW1", "Arrow", JSON),
    ]
    .into_iter()
    .find_map(|(magic, format, remedy)| start.starts_with(magic).then_some((format, remedy)))
}

/// The records of JSON Lines.
#[derive(Debug)]
pub struct Lines<R> {
    reader: R,
    number: u64,
    max_bytes: u64,
    ended: bool,
}

impl<R: BufRead> Lines<R> {
    /// Reads from there.
    pub fn new(reader: R) -> Self {
        Self { reader, number: 0, max_bytes: MAX_LINE_BYTES, ended: false }
    }

    fn line(&mut self) -> Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        let read = (&mut self.reader).take(self.max_bytes + 1).read_until(b'\n', &mut bytes);
        self.number += 1;
        let count = read.with_context(|| format!("line {}", self.number))? as u64;
        if count > self.max_bytes {
            return Err(Error::new(format!("line {} is longer than {} MiB", self.number, self.max_bytes >> 20))
                .hint("JSON Lines has one record a line; an array belongs in a file that ends in `.json`"));
        }
        Ok((count > 0).then_some(bytes))
    }

    fn record(&mut self) -> Result<Option<Record>> {
        while let Some(mut bytes) = self.line()? {
            if self.number == 1 {
                skip_mark(&mut bytes)?;
            }
            let number = self.number;
            let text = str::from_utf8(&bytes).map_err(|error| not_utf8(number, error))?;
            if text.trim().is_empty() {
                continue;
            }
            let value: Value = serde_json::from_str(text).map_err(|error| {
                // A line's last column is its line end where the record stops too early.
                let column = if error.line() > 1 { text.trim_end().len() + 1 } else { error.column() };
                let cause = error.to_string();
                let cause = cause.split(" at line ").next().unwrap_or(&cause).to_owned();
                Error::new(format!("line {number}, column {column} is not JSON"))
                    .because(std::io::Error::other(cause))
                    .hint("every line holds one whole JSON object: `{\"question\": …}`")
            })?;
            return match value {
                Value::Object(fields) => Ok(Some(Record { number, fields })),
                other => Err(no_object(&format!("line {number}"), &other)),
            };
        }
        Ok(None)
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let record = self.record().transpose();
        self.ended = !matches!(record, Some(Ok(_)));
        record
    }
}

fn array(reader: impl Read, limit: usize) -> Result<Vec<Record>> {
    let mut bytes = Vec::new();
    reader.take(MAX_ARRAY_BYTES + 1).read_to_end(&mut bytes).context("a read failed")?;
    if bytes.len() as u64 > MAX_ARRAY_BYTES {
        return Err(Error::new(format!("it is longer than {} MiB", MAX_ARRAY_BYTES >> 20))
            .hint("JSON Lines, one record a line, has no such bound"));
    }
    skip_mark(&mut bytes)?;
    let text = str::from_utf8(&bytes).map_err(|error| {
        let line = 1 + bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count() as u64;
        not_utf8(line, error)
    })?;
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let values: Vec<Value> = serde_json::from_str(text)
        .context("it is no JSON array")
        .map_err(|error| error.hint("a file that ends in `.json` is an array of records: `[{…}, {…}]`"))?;
    let records = values.into_iter().take(limit).enumerate().map(|(index, value)| match value {
        Value::Object(fields) => Ok(Record { number: index as u64 + 1, fields }),
        other => Err(no_object(&format!("record {}", index + 1), &other)),
    });
    records.collect()
}

fn skip_mark(bytes: &mut Vec<u8>) -> Result<()> {
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(Error::new("it is UTF-16").hint("save it as UTF-8"));
    }
    if bytes.starts_with(&[0xef, 0xbb, 0xbf]) {
        bytes.drain(..3);
    }
    Ok(())
}

fn not_utf8(line: u64, error: std::str::Utf8Error) -> Error {
    Error::new(format!("line {line} is not UTF-8")).because(error).hint("save the file as UTF-8")
}

fn no_object(place: &str, value: &Value) -> Error {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    Error::new(format!("{place} holds {kind}, not an object with fields"))
        .hint("every record is an object: `{\"question\": …, \"answer\": …}`")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(bytes: &[u8]) -> Result<Vec<Record>> {
        Lines::new(bytes).collect()
    }

    fn refused(bytes: &[u8]) -> String {
        lines(bytes).unwrap_err().chain()
    }

    #[test]
    fn records_keep_their_lines() {
        let records = lines(b"\xef\xbb\xbf{\"a\": 1}\r\n\n  \n{\"a\": 2}").unwrap();
        let numbers: Vec<_> = records.iter().map(|record| (record.number, record.fields["a"].clone())).collect();
        assert_eq!(numbers, [(1, 1.into()), (4, 2.into())]);
    }

    #[test]
    fn what_is_wrong_is_said_with_the_line() {
        assert_eq!(refused(b"{\"a\": 1}\n{\"a\": nope}\n"), "line 2, column 8 is not JSON: expected ident");
        assert_eq!(refused(b"{\"a\": 1\n"), "line 1, column 8 is not JSON: EOF while parsing an object");
        assert_eq!(refused(b"{} {}\n"), "line 1, column 4 is not JSON: trailing characters");
        assert_eq!(refused(b"{}\n[1]\n"), "line 2 holds a list, not an object with fields");
        assert_eq!(
            refused(b"{}\n\n{\"a\": \"\xff\"}"),
            "line 3 is not UTF-8: invalid utf-8 sequence of 1 bytes from index 7"
        );
        assert_eq!(
            refused(
                "{}".encode_utf16()
                    .fold(vec![0xff, 0xfe], |mut bytes, unit| {
                        bytes.extend(unit.to_le_bytes());
                        bytes
                    })
                    .as_slice()
            ),
            "it is UTF-16"
        );
        let mut short = Lines { max_bytes: 4, ..Lines::new(&b"{}\n{\"a\": 1}"[..]) };
        assert!(short.next().unwrap().is_ok());
        assert_eq!(short.next().unwrap().unwrap_err().to_string(), "line 2 is longer than 0 MiB");
        assert!(short.next().is_none());
    }

    #[test]
    fn arrays_and_limits() {
        let read = |text: &str, limit| array(text.as_bytes(), limit);
        let records = read("[{\"a\": 1},\n {\"a\": 2}]", 9).unwrap();
        assert_eq!((records.len(), records[1].number), (2, 2));
        assert_eq!(read("[{}, 5]", 1).unwrap().len(), 1);
        assert_eq!(read("[{}, 5]", 2).unwrap_err().to_string(), "record 2 holds a number, not an object with fields");
        assert!(read("[{},\n{]", 9).unwrap_err().chain().contains("at line 2 column 2"));
        // Nothing behind the limit is looked at.
        let mut two = Lines::new(&b"{}\n{}\nnonsense"[..]).take(2);
        assert!(two.all(|record| record.is_ok()));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = lines(&bytes);
            let _ = array(bytes.as_slice(), 10);
        }

        #[test]
        fn what_serde_writes_is_read_back(values in prop::collection::vec(".*", 1..8)) {
            let text: String =
                values.iter().map(|value| format!("{}\n", serde_json::json!({"value": value}))).collect();
            let read = lines(text.as_bytes()).unwrap();
            let found: Vec<_> = read.iter().map(|record| record.fields["value"].as_str().unwrap().to_owned()).collect();
            prop_assert_eq!(found, values);
        }
    }
}
