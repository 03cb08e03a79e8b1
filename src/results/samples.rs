//! `samples.csv`: a row for each raw measurement, appended job by job.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Take, Write};
use std::path::{Path, PathBuf};

use crate::cell::CellId;
use crate::error::{Context, Error, Result};
use crate::metrics;
use crate::results::columns::{SCHEMA_VERSION, item_unit};
use crate::results::folder::write_error;
use crate::results::summary::BYTE_ORDER_MARK;
use crate::results::{JobKey, Raw, SampleRun, Value, float, guard, unguard};

/// The columns.
pub const HEADER: [&str; 12] = [
    "schema_version",
    "run_id",
    "cell_id",
    "category",
    "process",
    "metric",
    "unit",
    "repetition",
    "index",
    "value",
    "task",
    "item",
];

/// Files of the first version have no columns for items.
const FIRST_COLUMNS: usize = 10;

/// The file, open at its end.
#[derive(Debug)]
pub struct SamplesFile {
    path: PathBuf,
    file: File,
    length: u64,
    run_id: String,
    columns: usize,
}

impl SamplesFile {
    /// Makes the file with its header.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn create(path: &Path, run_id: &str, byte_order_mark: bool) -> Result<Self> {
        let open = OpenOptions::new().append(true).create_new(true).open(path);
        let file = open.map_err(|error| write_error(path, "cannot make", error))?;
        let mut samples =
            Self { path: path.to_owned(), file, length: 0, run_id: run_id.to_owned(), columns: HEADER.len() };
        let mut bytes = if byte_order_mark { BYTE_ORDER_MARK.to_vec() } else { Vec::new() };
        bytes.extend(lines([HEADER.map(str::to_owned)], HEADER.len())?);
        samples.write(&bytes)?;
        Ok(samples)
    }

    /// Opens the file to go on at `length`; what lies behind it belongs to a job that did not end.
    ///
    /// # Errors
    /// A file that is missing, shorter than that, no file of samples, or cannot be written.
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
        let columns = read_header(path, length)?.1;
        Ok(Self { path: path.to_owned(), file, length, run_id: run_id.to_owned(), columns })
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

    /// Adds a job's samples and items; they are on disk when this returns.
    ///
    /// # Errors
    /// What the file system says; items in a file of the first version.
    pub fn append(&mut self, job: &JobKey, raw: &Raw) -> Result<()> {
        if !raw.items.is_empty() && self.columns < HEADER.len() {
            return Err(Error::new(format!("`{}` has no columns for tasks' items", self.path.display()))
                .hint("an earlier version of ortbench began this run; start a new one"));
        }
        let row = |metric: &str, unit: &str, repetition: u32, index: usize, value: f64, task: &str, item: &str| {
            [
                SCHEMA_VERSION.to_string(),
                guard(&self.run_id),
                guard(&job.cell.0),
                job.category.to_string(),
                job.process.to_string(),
                metric.to_owned(),
                unit.to_owned(),
                repetition.to_string(),
                index.to_string(),
                float(value),
                Value::from(task).field(),
                Value::from(item).field(),
            ]
        };
        let samples = raw.samples.iter().flat_map(|run| {
            let unit = metrics::find_series(run.metric).map_or("", |series| series.unit);
            let values = run.values.iter().enumerate();
            values.map(move |(index, value)| row(run.metric, unit, run.repetition, index, *value, "", ""))
        });
        let items = raw.items.iter().flat_map(|of| {
            let values = of.ids.iter().zip(&of.values).enumerate();
            values
                .map(move |(index, (id, value))| row(&of.metric, item_unit(&of.metric), 0, index, *value, &of.task, id))
        });
        let bytes = lines(samples.chain(items), self.columns)?;
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

/// Reads the first `length` bytes back, by job. Rows of items are only looked at: no one computes with them.
///
/// # Errors
/// A file that is missing or is not what this program wrote.
pub fn read(path: &Path, length: u64) -> Result<BTreeMap<JobKey, Vec<SampleRun>>> {
    let (mut reader, _) = read_header(path, length)?;
    let mut jobs: BTreeMap<JobKey, Vec<SampleRun>> = BTreeMap::new();
    for record in reader.records() {
        let record = record.map_err(|error| not_samples(path).because(error))?;
        let row = parse(&record).ok_or_else(|| {
            let line = record.position().map_or(0, csv::Position::line);
            Error::new(format!("line {line} of `{}` is not a sample", path.display()))
        })?;
        let Row::Sample { job, metric, repetition, value } = row else { continue };
        let runs = jobs.entry(job).or_default();
        match runs.last_mut() {
            Some(run) if run.metric == metric && run.repetition == repetition => run.values.push(value),
            _ => runs.push(SampleRun { metric, repetition, values: vec![value] }),
        }
    }
    Ok(jobs)
}

/// A reader behind the header, and the number of columns.
fn read_header(path: &Path, length: u64) -> Result<(csv::Reader<Take<File>>, usize)> {
    let file = File::open(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let mut reader = csv::Reader::from_reader(file.take(length));
    // The first field's name may carry a byte order mark, which the reader drops.
    let header = reader.headers().map_err(|error| not_samples(path).because(error))?;
    let columns = header.len();
    let known = columns == HEADER.len() || columns == FIRST_COLUMNS;
    if known && *header == HEADER[..columns] { Ok((reader, columns)) } else { Err(not_samples(path)) }
}

fn not_samples(path: &Path) -> Error {
    Error::new(format!("`{}` is not the samples of a run", path.display()))
}

enum Row {
    Sample { job: JobKey, metric: &'static str, repetition: u32, value: f64 },
    Item,
}

fn parse(record: &csv::StringRecord) -> Option<Row> {
    let [_, _, cell, category, process, metric, _, repetition, _, value] = std::array::from_fn(|i| record.get(i));
    let job = JobKey {
        cell: CellId(unguard(cell?).to_owned()),
        category: category?.parse().ok()?,
        process: process?.parse().ok()?,
    };
    let (metric, repetition, value) = (metric?, repetition?.parse().ok()?, value?.parse().ok()?);
    if record.get(FIRST_COLUMNS).is_some_and(|task| !task.is_empty()) {
        return metrics::find_item_figure(metric).map(|_| Row::Item);
    }
    Some(Row::Sample { job, metric: metrics::find_series(metric)?.name, repetition, value })
}

/// Rows as bytes, each cut to that many columns.
fn lines<const N: usize>(rows: impl IntoIterator<Item = [String; N]>, columns: usize) -> Result<Vec<u8>> {
    let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new());
    for row in rows {
        writer.write_record(row.iter().take(columns)).context("cannot express a row as CSV")?;
    }
    writer.into_inner().map_err(|error| Error::new("cannot express rows as CSV").because(error.into_error()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cell::Category;
    use crate::protocol::ItemResults;

    fn raw(samples: &[SampleRun]) -> Raw {
        Raw { samples: samples.to_vec(), items: Vec::new() }
    }

    fn items(metric: &str, ids: &[&str], values: &[f64]) -> ItemResults {
        let ids = ids.iter().map(|id| (*id).to_owned()).collect();
        ItemResults { task: "recall".into(), metric: metric.into(), ids, values: values.to_vec() }
    }

    #[test]
    fn items_are_rows_of_their_own_and_are_passed_over_when_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samples.csv");
        let job = JobKey { cell: CellId("a".into()), category: Category::Accuracy, process: 0 };
        let samples = vec![SampleRun { metric: "load_seconds", repetition: 0, values: vec![0.5] }];
        let mut file = SamplesFile::create(&path, "r", false).unwrap();
        let figures = [items("item_acc", &["=1+1", "a\nb", "007"], &[1.0, 0.0, 1.0]), items("item_choice", &[], &[])];
        file.append(&job, &Raw { samples: samples.clone(), items: figures.to_vec() }).unwrap();
        let length = file.length();
        drop(file);
        let mut file = SamplesFile::open(&path, "r", length).unwrap();
        file.append(&job, &Raw { samples: Vec::new(), items: vec![items("item_acc", &["z"], &[0.0])] }).unwrap();
        assert_eq!(read(&path, file.length()).unwrap(), BTreeMap::from([(job, samples)]));
        let text = std::fs::read_to_string(&path).unwrap();
        let rows: Vec<_> = text.lines().skip(1).map(|line| line.strip_prefix("1,r,a,accuracy,0,").unwrap()).collect();
        assert_eq!(
            rows,
            [
                "load_seconds,s,0,0,0.5,,",
                "item_acc,,0,0,1,recall,'=1+1",
                "item_acc,,0,1,0,recall,a b",
                "item_acc,,0,2,1,recall,'007",
                "item_acc,,0,0,0,recall,z",
            ]
        );
    }

    proptest! {
        /// Whatever ids a data set has, the file stays one row a line that reads back.
        #[test]
        fn no_id_breaks_the_file(ids in prop::collection::vec(any::<String>(), 1..8), task in "[a-z0-9=.-]{1,8}") {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("samples.csv");
            let job = JobKey { cell: CellId("a".into()), category: Category::Accuracy, process: 0 };
            let values = vec![1.0; ids.len()];
            let of = ItemResults { task, metric: "item_acc".into(), ids: ids.clone(), values };
            let mut file = SamplesFile::create(&path, "r", false).unwrap();
            file.append(&job, &Raw { samples: Vec::new(), items: vec![of] }).unwrap();
            prop_assert!(read(&path, file.length()).unwrap().is_empty());
            let bytes = std::fs::read(&path).unwrap();
            prop_assert_eq!(bytes.iter().filter(|byte| **byte == b'\n').count(), 1 + ids.len());
            let mut reader = csv::Reader::from_path(&path).unwrap();
            for record in reader.records() {
                prop_assert!(!record.unwrap()[11].starts_with(['=', '+', '-', '@', '\t', '\r']));
            }
        }
    }

    #[test]
    fn a_file_of_the_first_version_goes_on_with_its_own_columns() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samples.csv");
        let old = format!("{}\r\n1,r,a,memory,0,load_seconds,s,0,0,0.5\r\n", HEADER[..FIRST_COLUMNS].join(","));
        std::fs::write(&path, &old).unwrap();
        let mut file = SamplesFile::open(&path, "r", old.len() as u64).unwrap();
        let job = |process| JobKey { cell: CellId("a".into()), category: Category::Memory, process };
        let run = SampleRun { metric: "load_seconds", repetition: 0, values: vec![0.5] };
        file.append(&job(1), &raw(std::slice::from_ref(&run))).unwrap();
        let error = file.append(&job(2), &Raw { samples: Vec::new(), items: vec![items("item_acc", &["x"], &[1.0])] });
        assert!(error.unwrap_err().to_string().contains("no columns"));
        let read_back = read(&path, file.length()).unwrap();
        assert_eq!(read_back, BTreeMap::from([(job(0), vec![run.clone()]), (job(1), vec![run])]));
        std::fs::write(&path, "a,b\r\n").unwrap();
        assert!(SamplesFile::open(&path, "r", 5).is_err());
    }

    #[test]
    fn what_was_written_reads_back_and_the_torn_rest_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samples.csv");
        let job = |process| JobKey { cell: CellId("-odd, \"id\"".into()), category: Category::Memory, process };
        let run = |metric, repetition, values: &[f64]| SampleRun { metric, repetition, values: values.to_vec() };
        let first = vec![run("load_seconds", 0, &[0.1 + 0.2]), run("peak_rss_bytes", 0, &[1e9, 2e9])];
        for byte_order_mark in [false, true] {
            let mut file = SamplesFile::create(&path, "r", byte_order_mark).unwrap();
            file.append(&job(0), &raw(&first)).unwrap();
            let length = file.length();
            file.append(&job(1), &raw(&[run("load_seconds", 0, &[1.0])])).unwrap();
            drop(file);

            assert_eq!(read(&path, length).unwrap(), BTreeMap::from([(job(0), first.clone())]));
            let mut file = SamplesFile::open(&path, "r", length).unwrap();
            file.append(&job(2), &raw(&[run("load_seconds", 0, &[3.0])])).unwrap();
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
