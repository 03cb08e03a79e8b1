//! `.pack-journal.jsonl`: which files of a pack that is being written are whole. It is gone once the pack is.
//!
//! Its first line says what is packed and how; each other line is a file, written when the file has its final name.
//! A torn last line counts for nothing.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};
use crate::package::FileEntry;
use crate::package::shards::Record;

/// The journal's file in the pack's folder.
pub const FILE: &str = ".pack-journal.jsonl";

/// What is packed and how: a pack is continued only where all of it is the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// SHA-256 of the source's manifest.
    pub source: String,
    /// The program's version, the kernels' layout and the processor's architecture.
    pub program: String,
    /// Options that shape the pack.
    pub options: String,
}

/// A file that is whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// The file, as the manifest will list it.
    pub entry: FileEntry,
    /// The records in it, where it is a shard.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub records: Vec<Record>,
}

/// The journal of a folder.
#[derive(Debug)]
pub struct Journal {
    file: File,
    done: HashMap<String, Line>,
    /// Files of an unfinished pack of something else.
    pub stale: Vec<String>,
}

impl Journal {
    /// Opens a folder's journal for one writer, or starts one. What another source or other options left is forgotten.
    ///
    /// # Errors
    /// A folder that cannot be written, or that another process is packing into.
    pub fn open(folder: &Path, header: &Header) -> Result<Self> {
        let path = folder.join(FILE);
        let failed = || format!("cannot open `{}`", path.display());
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = options.with_context(failed).map_err(|error| error.kind(crate::error::Kind::Environment))?;
        if file.try_lock().is_err() {
            return Err(Error::environment(format!("another process is packing into `{}`", folder.display()))
                .hint("wait for it, or choose another folder"));
        }
        let mut text = Vec::new();
        file.read_to_end(&mut text).with_context(failed)?;
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let mut lines = text[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let same = lines.next().and_then(|line| serde_json::from_slice::<Header>(line).ok()).as_ref() == Some(header);
        let lines: Vec<Line> = lines.map_while(|line| serde_json::from_slice(line).ok()).collect();
        let mut journal = Self { file, done: HashMap::new(), stale: Vec::new() };
        if same {
            journal.file.set_len(whole as u64).with_context(failed)?;
            journal.file.seek(SeekFrom::End(0)).with_context(failed)?;
            journal.done = lines.into_iter().map(|line| (line.entry.path.clone(), line)).collect();
        } else {
            journal.stale = lines.into_iter().map(|line| line.entry.path).collect();
            journal.file.set_len(0).with_context(failed)?;
            journal.file.rewind().with_context(failed)?;
            journal.append(header)?;
        }
        Ok(journal)
    }

    /// A file that was written whole before.
    pub fn done(&self, path: &str) -> Option<&Line> {
        self.done.get(path)
    }

    /// Notes that a file is whole.
    ///
    /// # Errors
    /// A journal that cannot be written.
    pub fn add(&mut self, line: &Line) -> Result<()> {
        self.append(line)
    }

    fn append(&mut self, line: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_vec(line).context("cannot write the journal")?;
        text.push(b'\n');
        let written = self.file.write_all(&text).and_then(|()| self.file.sync_data());
        written.context("cannot write the journal").map_err(|error| error.kind(crate::error::Kind::Environment))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(source: &str) -> Header {
        Header { source: source.to_owned(), program: "1".to_owned(), options: "{}".to_owned() }
    }

    fn line(path: &str) -> Line {
        Line { entry: FileEntry { path: path.to_owned(), bytes: 7, sha256: "00".to_owned() }, records: Vec::new() }
    }

    #[test]
    fn a_torn_line_counts_for_nothing_and_another_source_starts_anew() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(folder.path(), &header("a")).unwrap();
        journal.add(&line("one")).unwrap();
        journal.add(&line("two")).unwrap();
        assert!(Journal::open(folder.path(), &header("a")).is_err(), "one writer at a time");
        drop(journal);
        let path = folder.path().join(FILE);
        let text = std::fs::read(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 3]).unwrap();

        let mut journal = Journal::open(folder.path(), &header("a")).unwrap();
        assert_eq!((journal.done("one"), journal.done("two")), (Some(&line("one")), None));
        journal.add(&line("three")).unwrap();
        drop(journal);
        let journal = Journal::open(folder.path(), &header("a")).unwrap();
        assert!(journal.done("one").is_some() && journal.done("three").is_some());
        drop(journal);

        let journal = Journal::open(folder.path(), &header("b")).unwrap();
        assert!(journal.done("one").is_none());
        assert_eq!(journal.stale, ["one", "three"]);
    }
}
