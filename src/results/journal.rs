//! The journal of a run: what happened, one JSON object a line, synced before the next thing happens. It is the truth
//! from which a run continues; the tables can be made again from it and from the samples.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cell::{Cell, CellId};
use crate::error::{Context, Error, Result};
use crate::results::folder::write_error;
use crate::results::{JobEnd, JobKey, Refusal};

/// Raised when an event changes its meaning.
pub const JOURNAL_VERSION: u32 = 1;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The first line: everything that will run.
    Started {
        /// [`JOURNAL_VERSION`].
        version: u32,
        /// ISO 8601.
        time: String,
        /// The matrix's name.
        name: String,
        /// SHA-256 of the cells.
        matrix_hash: String,
        /// Every cell, in the order of the rows.
        cells: Vec<Cell>,
        /// Cells that will not be started.
        refused: BTreeMap<CellId, Refusal>,
        /// Facts of the machine and of this program.
        environment: serde_json::Value,
    },
    /// The run went on after an interruption.
    Resumed {
        /// ISO 8601.
        time: String,
        /// What is refused now replaces what was refused before.
        refused: BTreeMap<CellId, Refusal>,
        /// True when jobs that ended without a measurement are done again.
        retry_failed: bool,
        /// Facts of the machine and of this program, now.
        environment: serde_json::Value,
    },
    /// The machine's ceilings with that many threads.
    Ceilings {
        /// Threads used.
        threads: u32,
        /// Values by name.
        values: BTreeMap<String, f64>,
        /// Why there are none.
        problem: Option<String>,
    },
    /// A job's process was started.
    JobStarted {
        /// The job.
        job: JobKey,
        /// ISO 8601.
        time: String,
    },
    /// A job ended, and its samples are on disk.
    JobEnded {
        /// The job.
        job: JobKey,
        /// How.
        end: Box<JobEnd>,
        /// Length of `samples.csv` with the job's samples: what lies behind it belongs to no job.
        samples_length: u64,
    },
    /// The run was interrupted from outside.
    Interrupted {
        /// ISO 8601.
        time: String,
    },
    /// No job is left.
    Finished {
        /// ISO 8601.
        time: String,
    },
}

/// The journal, open at its end.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Makes an empty journal.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn create(path: &Path) -> Result<Self> {
        let file = OpenOptions::new()
            .append(true)
            .create_new(true)
            .open(path)
            .map_err(|error| write_error(path, "cannot make the journal", error))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Opens a journal to go on behind its last whole line, which `length` is the end of.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn open(path: &Path, length: u64) -> Result<Self> {
        let open = || {
            let file = OpenOptions::new().append(true).open(path)?;
            file.set_len(length)?;
            Ok(file)
        };
        let file = open().map_err(|error| write_error(path, "cannot write the journal", error))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Adds an event; it is on disk when this returns.
    ///
    /// # Errors
    /// What the file system says.
    pub fn append(&mut self, event: &Event) -> Result<()> {
        let mut line = serde_json::to_vec(event).context("cannot express an event of the journal")?;
        line.push(b'\n');
        self.file
            .write_all(&line)
            .and_then(|()| self.file.sync_data())
            .map_err(|error| write_error(&self.path, "cannot write the journal", error))
    }
}

/// Reads a journal: its events, and the length of its whole lines. A runner that was killed may have left a last line
/// without end; that line's event did not happen.
///
/// # Errors
/// A file that cannot be read, or a damaged line that is not the last.
pub fn read(path: &Path) -> Result<(Vec<Event>, u64)> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read the journal `{}`", path.display()))?;
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let mut events = Vec::new();
    let mut length = 0;
    for (index, line) in bytes[..whole].split_inclusive(|byte| *byte == b'\n').enumerate() {
        match serde_json::from_slice(line) {
            Ok(event) => events.push(event),
            // A crash of the machine may leave zeros where the last line's data had not reached the disk.
            Err(_) if length + line.len() == whole => break,
            Err(error) => {
                return Err(Error::new(format!("line {} of the journal `{}` is damaged", index + 1, path.display()))
                    .because(error)
                    .hint("the tables in the folder are still valid; start a new run to measure the rest"));
            }
        }
        length += line.len();
    }
    Ok((events, length as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(time: &str) -> Event {
        Event::Interrupted { time: time.to_owned() }
    }

    #[test]
    fn a_torn_last_line_did_not_happen_and_is_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.jsonl");
        let mut journal = Journal::create(&path).unwrap();
        journal.append(&event("a")).unwrap();
        journal.append(&event("b")).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let first = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        for cut in first + 1..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(read(&path).unwrap(), (vec![event("a")], first as u64));
        }
        let (_, length) = read(&path).unwrap();
        Journal::open(&path, length).unwrap().append(&event("c")).unwrap();
        assert_eq!(read(&path).unwrap().0, [event("a"), event("c")]);
    }

    #[test]
    fn a_journal_from_before_there_were_tasks_is_read() {
        let line = r#"{"event":"job_ended","job":{"cell":"a","category":"speed","process":0},"end":{"status":"measured",
            "reason":null,"hint":null,"facts":{},"warnings":[],"started":"","seconds":1.0},"samples_length":7}"#;
        let Event::JobEnded { end, .. } = serde_json::from_str(line).unwrap() else { panic!("another event") };
        assert!(end.tasks.is_empty());
        assert!(!serde_json::to_string(&end).unwrap().contains("tasks"), "and is written as it was");
    }

    #[test]
    fn damage_before_the_end_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.jsonl");
        let good = serde_json::to_string(&event("a")).unwrap();
        std::fs::write(&path, format!("{good}\n{{\"event\":\n{good}\n")).unwrap();
        assert!(read(&path).unwrap_err().to_string().starts_with("line 2 of the journal"));
    }
}
