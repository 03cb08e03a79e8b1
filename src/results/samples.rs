//! `samples.csv`: a row for each raw measurement, appended job by job.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use crate::cell::CellId;
use crate::error::{Context, Error, Result};
use crate::metrics;
use crate::results::columns::SCHEMA_VERSION;
use crate::results::folder::write_error;
use crate::results::summary::BYTE_ORDER_MARK;
use crate::results::{JobKey, SampleRun, float, guard, unguard};

/// The columns.
pub const HEADER: [&str; 10] =
    ["schema_version", "run_id", "cell_id", "category", "process", "metric", "unit", "repetition", "index", "value"];

/// The file, open at its end.
#[derive(Debug)]
pub struct SamplesFile {
    path: PathBuf,
    file: File,
    length: u64,
    run_id: String,
}

impl SamplesFile {
    /// Makes the file with its header.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn create(path: &Path, run_id: &str, byte_order_mark: bool) -> Result<Self> {
        let open = OpenOptions::new().append(true).create_new(true).open(path);
        let file = open.map_err(|error| write_error(path, "cannot make", error))?;
        let mut samples = Self { path: path.to_owned(), file, length: 0, run_id: run_id.to_owned() };
        let mut bytes = if byte_order_mark { BYTE_ORDER_MARK.to_vec() } else { Vec::new() };
        bytes.extend(lines([HEADER.map(str::to_owned)])?);
        samples.write(&bytes)?;
        Ok(samples)
    }

    /// Opens the file to go on at `length`; what lies behind it belongs to a job that did not end.
    ///
    /// # Errors
    /// A file that is missing, shorter than that, or cannot be written.
    pub fn open(path: &Path, run_id: &str, length: u64) -> Result<Self> {
        let open = || {
            let file = OpenOptions::new().append(true).open(path)?;
            let found = file.metadata()?.len();
            if found >= length {
                file.set_len(length)?;
            }
            Ok((file, found))
        };
        let (file, found) = open().map_err(|error| write_error(path, "cannot write", error))?;
        if found < length {
            return Err(Error::new(format!(
                "`{}` has {found} bytes and the journal says {length}: it was changed after the run",
                path.display()
            ))
            .hint("start a new run"));
        }
        Ok(Self { path: path.to_owned(), file, length, run_id: run_id.to_owned() })
    }

    /// True when the file was begun for Excel.
    pub fn has_byte_order_mark(&self) -> bool {
        let mut start = [0; BYTE_ORDER_MARK.len()];
        let read = File::open(&self.path).and_then(|mut file| file.read_exact(&mut start));
        read.is_ok() && start == BYTE_ORDER_MARK
    }

    /// Length of what is whole.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Adds a job's samples; they are on disk when this returns.
    ///
    /// # Errors
    /// What the file system says.
    pub fn append(&mut self, job: &JobKey, samples: &[SampleRun]) -> Result<()> {
        let rows = samples.iter().flat_map(|run| {
            let unit = metrics::find_series(run.metric).map_or("", |series| series.unit);
            run.values.iter().enumerate().map(move |(index, value)| (run, unit, index, *value))
        });
        let rows = rows.map(|(run, unit, index, value)| {
            [
                SCHEMA_VERSION.to_string(),
                guard(&self.run_id),
                guard(&job.cell.0),
                job.category.to_string(),
                job.process.to_string(),
                run.metric.to_owned(),
                unit.to_owned(),
                run.repetition.to_string(),
                index.to_string(),
                float(value),
            ]
        });
        let bytes = lines(rows)?;
        self.write(&bytes)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all(bytes)
            .and_then(|()| self.file.sync_data())
            .map_err(|error| write_error(&self.path, "cannot write", error))?;
        self.length += bytes.len() as u64;
        Ok(())
    }
}

/// Reads the first `length` bytes back, by job.
///
/// # Errors
/// A file that is missing or is not what this program wrote.
pub fn read(path: &Path, length: u64) -> Result<BTreeMap<JobKey, Vec<SampleRun>>> {
    let wrong = || Error::new(format!("`{}` is not the samples of a run", path.display()));
    let file = File::open(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let mut reader = csv::Reader::from_reader(file.take(length));
    // The first field's name may carry a byte order mark, which the reader drops.
    if reader.headers().map_err(|error| wrong().because(error))? != HEADER.as_slice() {
        return Err(wrong());
    }
    let mut jobs: BTreeMap<JobKey, Vec<SampleRun>> = BTreeMap::new();
    for record in reader.records() {
        let record = record.map_err(|error| wrong().because(error))?;
        let (job, metric, repetition, value) = parse(&record).ok_or_else(|| {
            let line = record.position().map_or(0, csv::Position::line);
            Error::new(format!("line {line} of `{}` is not a sample", path.display()))
        })?;
        let runs = jobs.entry(job).or_default();
        match runs.last_mut() {
            Some(run) if run.metric == metric && run.repetition == repetition => run.values.push(value),
            _ => runs.push(SampleRun { metric, repetition, values: vec![value] }),
        }
    }
    Ok(jobs)
}

fn parse(record: &csv::StringRecord) -> Option<(JobKey, &'static str, u32, f64)> {
    let [_, _, cell, category, process, metric, _, repetition, _, value] = std::array::from_fn(|i| record.get(i));
    let job = JobKey {
        cell: CellId(unguard(cell?).to_owned()),
        category: category?.parse().ok()?,
        process: process?.parse().ok()?,
    };
    Some((job, metrics::find_series(metric?)?.name, repetition?.parse().ok()?, value?.parse().ok()?))
}

fn lines<const N: usize>(rows: impl IntoIterator<Item = [String; N]>) -> Result<Vec<u8>> {
    let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new());
    for row in rows {
        writer.write_record(&row).context("cannot express a row as CSV")?;
    }
    writer.into_inner().map_err(|error| Error::new("cannot express rows as CSV").because(error.into_error()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::Category;

    #[test]
    fn what_was_written_reads_back_and_the_torn_rest_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samples.csv");
        let job = |process| JobKey { cell: CellId("-odd, \"id\"".into()), category: Category::Memory, process };
        let run = |metric, repetition, values: &[f64]| SampleRun { metric, repetition, values: values.to_vec() };
        let first = vec![run("load_seconds", 0, &[0.1 + 0.2]), run("peak_rss_bytes", 0, &[1e9, 2e9])];
        for byte_order_mark in [false, true] {
            let mut file = SamplesFile::create(&path, "r", byte_order_mark).unwrap();
            file.append(&job(0), &first).unwrap();
            let length = file.length();
            file.append(&job(1), &[run("load_seconds", 0, &[1.0])]).unwrap();
            drop(file);

            assert_eq!(read(&path, length).unwrap(), BTreeMap::from([(job(0), first.clone())]));
            let mut file = SamplesFile::open(&path, "r", length).unwrap();
            file.append(&job(2), &[run("load_seconds", 0, &[3.0])]).unwrap();
            let jobs = read(&path, file.length()).unwrap();
            assert_eq!(jobs.keys().cloned().collect::<Vec<_>>(), [job(0), job(2)]);
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn a_file_that_lost_rows_is_not_continued() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samples.csv");
        let length = SamplesFile::create(&path, "r", false).unwrap().length();
        assert!(SamplesFile::open(&path, "r", length + 1).is_err());
        assert_eq!(std::fs::metadata(&path).unwrap().len(), length);
    }
}
