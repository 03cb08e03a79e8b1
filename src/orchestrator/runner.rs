//! The loop over the jobs of a matrix.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::cell::{Category, Cell, CellId, Status};
use crate::config::Matrix;
use crate::error::{Context, Error, Kind, Result};
use crate::optimizations;
use crate::orchestrator::child::{self, End, Worker};
use crate::orchestrator::collect::{Collector, Line};
use crate::orchestrator::conditions::Conditions;
use crate::orchestrator::interrupt::Interrupt;
use crate::orchestrator::progress::Progress;
use crate::orchestrator::references::{self, Found};
use crate::orchestrator::{Host, ceilings, schedule};
use crate::protocol::{Job, PROTOCOL_VERSION, Work};
use crate::results::columns::Row;
use crate::results::folder::{self, RunFolder, write_error};
use crate::results::journal::{Event, JOURNAL_VERSION, Journal};
use crate::results::record::{self, Record};
use crate::results::samples::SamplesFile;
use crate::results::{JobEnd, JobKey, Outcome, Raw, Refusal, SampleRun, impact, operators, summary, tasks, time};

/// How a matrix is run.
pub struct Options<'a> {
    /// What starts a worker.
    pub worker: Worker,
    /// What the machine says.
    pub host: &'a dyn Host,
    /// Who is told.
    pub progress: &'a mut dyn Progress,
    /// Whether the user wants the end.
    pub interrupt: Interrupt,
    /// Tables begin with a byte order mark, for Excel.
    pub byte_order_mark: bool,
}

/// What a run came to.
#[derive(Debug)]
pub struct Report {
    /// The run's folder.
    pub folder: PathBuf,
    /// Every cell that ended, in the order of the matrix.
    pub outcomes: Vec<Outcome>,
    /// Cells of the matrix.
    pub cells: usize,
    /// True when the user ended it.
    pub interrupted: bool,
}

impl Report {
    /// True when every cell has all its figures.
    pub fn all_measured(&self) -> bool {
        self.all_end_at_worst(Status::Measured)
    }

    /// True when every cell ran and none ended worse than this.
    pub fn all_end_at_worst(&self, status: Status) -> bool {
        self.outcomes.len() == self.cells && self.outcomes.iter().all(|outcome| outcome.status <= status)
    }
}

/// Runs a matrix in a new folder below `results`.
///
/// # Errors
/// A folder that cannot be written, now or later; what was finished stays and can be resumed.
pub fn start(matrix: &Matrix, results: &Path, options: Options) -> Result<Report> {
    let matrix_hash = record::matrix_hash(&matrix.cells)?;
    let folder = RunFolder::create(results, &matrix.name)?;
    let refused = refusals(&matrix.cells, options.host);
    let environment = options.host.environment();
    folder.replace(folder::MATRIX, matrix.text.as_bytes())?;
    let samples = SamplesFile::create(&folder.file(folder::SAMPLES), &folder.run_id(), options.byte_order_mark)?;
    let journal = Journal::create(&folder.file(folder::JOURNAL))?;
    let mut runner = Runner::new(folder, journal, samples, Record::default(), options);
    let event = Event::Started {
        version: JOURNAL_VERSION,
        time: now(),
        name: matrix.name.clone(),
        matrix_hash,
        cells: matrix.cells.clone(),
        refused,
        environment,
    };
    runner.happened(event, Vec::new())?;
    runner.run()
}

/// Continues the run in `path`. With a matrix, it must be the one that the run was started with. With `retry_failed`,
/// what ended without a measurement is done again.
///
/// # Errors
/// As [`start`], and a folder that is no run's or another matrix's.
pub fn resume(path: &Path, matrix: Option<&Matrix>, retry_failed: bool, mut options: Options) -> Result<Report> {
    let folder = RunFolder::open(path)?;
    let (record, journal_length) = Record::load(path)?;
    if let Some(matrix) = matrix
        && record::matrix_hash(&matrix.cells)? != record.matrix_hash
    {
        return Err(Error::new(format!("`{}` was started with another matrix", path.display()))
            .hint("leave the file out to continue as it was started, or start a new run"));
    }
    let samples_path = folder.file(folder::SAMPLES);
    let samples = match record.samples_length {
        Some(length) => SamplesFile::open(&samples_path, &folder.run_id(), length)?,
        None => {
            // Nothing was measured yet, and the header itself may be torn.
            match std::fs::remove_file(&samples_path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(write_error(&samples_path, "cannot make anew", error));
                }
                _ => SamplesFile::create(&samples_path, &folder.run_id(), options.byte_order_mark)?,
            }
        }
    };
    options.byte_order_mark |= samples.has_byte_order_mark();
    let journal = Journal::open(&folder.file(folder::JOURNAL), journal_length)?;
    let refused = refusals_of_unfinished(&record, retry_failed, options.host);
    let environment = options.host.environment();
    let mut runner = Runner::new(folder, journal, samples, record, options);
    runner.happened(Event::Resumed { time: now(), refused, retry_failed, environment }, Vec::new())?;
    runner.run()
}

/// The longest that packages may take to be derived: those of the largest models are read and written whole.
const PREPARATION: Duration = Duration::from_secs(2 * 3600);

/// The phase of a worker that derives a package, which is worth a word.
const DERIVE: &str = "derive";

/// What came of deriving packages.
enum Prepared {
    Ready,
    Failed(JobEnd),
    Interrupted,
}

struct Runner<'a> {
    folder: RunFolder,
    run_id: String,
    journal: Journal,
    samples: SamplesFile,
    record: Record,
    outcomes: BTreeMap<CellId, Outcome>,
    /// Cells whose derived packages are there, and those for which they could not be made.
    prepared: BTreeMap<CellId, Option<JobEnd>>,
    /// References that were run a second time: a third would change nothing.
    rerun: BTreeSet<JobKey>,
    options: Options<'a>,
}

impl<'a> Runner<'a> {
    fn new(folder: RunFolder, journal: Journal, samples: SamplesFile, record: Record, options: Options<'a>) -> Self {
        let run_id = folder.run_id();
        let (outcomes, prepared, rerun) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        Self { folder, run_id, journal, samples, record, outcomes, prepared, rerun, options }
    }

    fn run(mut self) -> Result<Report> {
        for cell in self.record.cells.clone() {
            if self.settle(&cell) && self.record.refused().contains_key(&cell.id) {
                self.tell_of(&cell.id);
            }
        }
        self.write_tables()?;
        self.write_environment()?;
        self.measure_ceilings()?;
        let mut jobs = schedule::order(&self.record.cells);
        jobs.retain(|job| self.record.is_due(job));
        self.options.progress.started(jobs.len());
        for job in &jobs {
            if self.options.interrupt.requested() {
                break;
            }
            self.run_job(job)?;
        }
        self.options.progress.finished();
        if self.outcomes.len() == self.record.cells.len() {
            references::remove_distributions(&self.record, &self.folder);
        }
        // Who asks for the end when nothing is left gets it without loss.
        let interrupted = self.options.interrupt.requested() && self.outcomes.len() < self.record.cells.len();
        let end = if interrupted { Event::Interrupted { time: now() } } else { Event::Finished { time: now() } };
        self.happened(end, Vec::new())?;
        Ok(Report {
            folder: self.folder.path().to_owned(),
            cells: self.record.cells.len(),
            outcomes: self.record.cells.iter().filter_map(|cell| self.outcomes.remove(&cell.id)).collect(),
            interrupted,
        })
    }

    /// Puts an event on disk and then into the record.
    fn happened(&mut self, event: Event, samples: Vec<SampleRun>) -> Result<()> {
        self.journal.append(&event)?;
        self.record.apply(event, samples);
        Ok(())
    }

    fn run_job(&mut self, job: &JobKey) -> Result<()> {
        let cell = self.record.cell(&job.cell).cloned();
        let cell = cell.ok_or_else(|| Error::new(format!("the matrix has no cell `{}`", job.cell)))?;
        if self.record.is_due(job) {
            if !self.measure(job, &cell)? {
                return Ok(());
            }
        } else {
            self.options.progress.job_ended(job, None);
        }
        if !self.outcomes.contains_key(&cell.id) && self.settle(&cell) {
            self.write_tables()?;
            self.tell_of(&cell.id);
        }
        Ok(())
    }

    /// Runs the job's process and writes down how it ended; `false` when the user ended it.
    fn measure(&mut self, job: &JobKey, cell: &Cell) -> Result<bool> {
        let found = match references::look(&self.record, &self.folder, cell, job.category) {
            Found::NoFiles(reference) => match self.run_again(&reference, cell)? {
                Some(found) => found,
                None => return Ok(false),
            },
            found => found,
        };
        let started = now();
        self.happened(Event::JobStarted { job: job.clone(), time: started.clone() }, Vec::new())?;
        self.options.progress.job_started(job);
        let (mut end, raw) = match (found, self.options.host.library(&cell.backend.runtime)) {
            (Found::NoAnswers(reason), _) => {
                let hint = "`ortbench run --resume DIR --retry-failed` tries once more".to_owned();
                (JobEnd::without_result(Status::Failed, reason, Some(hint)), Raw::default())
            }
            (found, Ok(library)) => match self.execute(job, cell, library, missing(found))? {
                Some(end) => end,
                None => return Ok(false),
            },
            (_, Err(error)) => unsupported(&error),
        };
        end.started = started;
        self.options.progress.job_ended(job, Some(&end));
        self.samples.append(job, &raw)?;
        let samples_length = self.samples.length();
        self.happened(Event::JobEnded { job: job.clone(), end: Box::new(end), samples_length }, raw.samples)?;
        Ok(true)
    }

    /// Runs a reference's job for the files that it leaves; what it measures was measured before. `None` when the user
    /// ended it.
    fn run_again(&mut self, reference: &JobKey, dependent: &Cell) -> Result<Option<Found>> {
        let no_answers = |why: &str| {
            Some(Found::NoAnswers(format!("the reference `{}` lost its answers, and {why}", reference.cell)))
        };
        let Some(cell) = self.record.cell(&reference.cell).cloned() else {
            return Ok(no_answers("it is no cell of the matrix"));
        };
        if !self.rerun.insert(reference.clone()) {
            return Ok(no_answers("another run of it left none"));
        }
        let library = match self.options.host.library(&cell.backend.runtime) {
            Ok(library) => library,
            Err(error) => return Ok(no_answers(&error.chain())),
        };
        self.options.progress.note(&format!("{}: accuracy once more, for its answers are no longer there", cell.id));
        let Some((end, _)) = self.execute(reference, &cell, library, None)? else { return Ok(None) };
        Ok(match end.status {
            // Its row stands already, and other cells may have been held against its first answers.
            Status::Measured if !self.record.end(reference).is_some_and(|first| references::same(first, &end)) => {
                references::forget(&self.folder, &reference.cell);
                no_answers("another run of it gave others: a file changed in between")
            }
            Status::Measured if references::has_files(&self.folder, dependent, &reference.cell) => {
                Some(Found::Everything)
            }
            Status::Measured => no_answers("another run of it left none"),
            status => no_answers(&format!(
                "another run of it ended: {status}: {}",
                end.reason.as_deref().unwrap_or("no reason was given")
            )),
        })
    }

    /// The job's process, from start to end; `None` when the user ended it. With a sentence on why the reference is
    /// missing, the process is not told of one.
    fn execute(
        &mut self,
        job: &JobKey,
        cell: &Cell,
        library: PathBuf,
        missing: Option<String>,
    ) -> Result<Option<(JobEnd, Raw)>> {
        let (category, process) = (job.category, job.process);
        let (package, swap) = match self.prepare(cell, &library)? {
            Prepared::Ready => match optimizations::arrange(cell, optimizations::arm(category, process)) {
                Ok(arranged) => (arranged.package, arranged.setup.swap),
                // The worker finds out what is wrong with its package, if something is.
                Err(_) => (cell.model.package.clone(), false),
            },
            Prepared::Failed(end) => return Ok(Some((end, Raw::default()))),
            Prepared::Interrupted => return Ok(None),
        };
        let conditions = match Conditions::of(cell, &package, swap) {
            Ok(conditions) => conditions,
            Err(error) if error.root_kind() == Kind::Unsupported => return Ok(Some(unsupported(&error))),
            Err(error) => return Err(error),
        };
        let reference = match &missing {
            None => references::prepare(&self.folder, cell, category)?,
            Some(_) => None,
        };
        let offloads = cell.memory.offload || cell.is_optimized();
        let offload = offloads.then(|| self.folder.path().to_owned());
        let offload = cell.offload_dir.clone().or(offload);
        let work = Work::Measure { cell: Box::new(cell.clone()), category, process, reference, offload };
        let order = Job { protocol: PROTOCOL_VERSION, library, work };
        let log_path = self.folder.log(job);
        let mut log = child::open_log(&log_path)?;
        let mut collector = Collector::without_reference(missing);
        collector.conditions(&conditions);
        let progress = &mut *self.options.progress;
        let mut on_line = |line: &[u8]| match collector.line(line) {
            Line::Message => {}
            Line::Phase(name, done) => progress.phase(job, &name, done),
            // A log that cannot be written loses a line that no one asked for.
            Line::Noise => drop(log.write_all(line)),
        };
        let (worker, interrupt) = (&self.options.worker, &self.options.interrupt);
        let ended = match child::run(worker, &order, &log_path, &conditions, interrupt, &mut on_line) {
            Err(error) if error.root_kind() == Kind::Unsupported => return Ok(Some(unsupported(&error))),
            ended => ended?,
        };
        Ok((ended.end != End::Interrupted).then(|| collector.finish(cell, job.category, &ended, &log_path)))
    }

    /// Derives the packages that the cell's optimizations need, once in a session.
    fn prepare(&mut self, cell: &Cell, library: &Path) -> Result<Prepared> {
        if !cell.is_optimized() {
            return Ok(Prepared::Ready);
        }
        if let Some(end) = self.prepared.get(&cell.id) {
            return Ok(end.clone().map_or(Prepared::Ready, Prepared::Failed));
        }
        // No process for what an earlier run left, or where nothing is derived.
        if optimizations::is_prepared(cell) {
            self.prepared.insert(cell.id.clone(), None);
            return Ok(Prepared::Ready);
        }
        let work = Work::Prepare { cell: Box::new(cell.clone()) };
        let order = Job { protocol: PROTOCOL_VERSION, library: library.to_owned(), work };
        let log_path = self.folder.preparation_log(&cell.id);
        let mut log = child::open_log(&log_path)?;
        let mut collector = Collector::default();
        let progress = &mut *self.options.progress;
        let mut on_line = |line: &[u8]| match collector.line(line) {
            Line::Phase(name, None) if name == DERIVE => progress.note(&format!("{}: deriving a package", cell.id)),
            Line::Message | Line::Phase(..) => {}
            Line::Noise => drop(log.write_all(line)),
        };
        let conditions = Conditions::within(PREPARATION);
        let (worker, interrupt) = (&self.options.worker, &self.options.interrupt);
        let ended = child::run(worker, &order, &log_path, &conditions, interrupt, &mut on_line)?;
        if ended.end == End::Interrupted {
            return Ok(Prepared::Interrupted);
        }
        let failed = collector.failed(&ended, PREPARATION.as_secs_f64(), &log_path);
        self.prepared.insert(cell.id.clone(), failed.clone());
        Ok(failed.map_or(Prepared::Ready, Prepared::Failed))
    }

    /// Makes the row of a cell of which no job is due.
    fn settle(&mut self, cell: &Cell) -> bool {
        let outcome = self.record.outcome(cell);
        outcome.map(|outcome| self.outcomes.insert(cell.id.clone(), outcome)).is_some()
    }

    fn tell_of(&mut self, cell: &CellId) {
        let (ended, cells) = (self.outcomes.len(), self.record.cells.len());
        if let Some(outcome) = self.outcomes.get(cell) {
            self.options.progress.cell_ended(outcome, ended, cells);
        }
    }

    fn measure_ceilings(&mut self) -> Result<()> {
        for threads in self.record.ceilings_due() {
            if self.options.interrupt.requested() {
                return Ok(());
            }
            self.options.progress.note(&format!("measuring what this machine can do at most with {threads} threads"));
            let (values, problem) = match ceilings::library(&self.record.cells, self.options.host) {
                Some(library) => {
                    let log = self.folder.ceilings_log(threads);
                    ceilings::measure(&self.options.worker, library, threads, &log, &self.options.interrupt)?
                }
                None => (BTreeMap::new(), Some("no runtime was found".to_owned())),
            };
            if self.options.interrupt.requested() {
                return Ok(());
            }
            if let Some(problem) = &problem {
                let note = format!("warning: utilisation is not complete with {threads} threads: {problem}");
                self.options.progress.note(&note);
            }
            self.happened(Event::Ceilings { threads, values, problem }, Vec::new())?;
            self.write_environment()?;
        }
        Ok(())
    }

    fn write_tables(&self) -> Result<()> {
        let ended = || self.record.cells.iter().filter_map(|cell| self.outcomes.get(&cell.id));
        let mark = self.options.byte_order_mark;
        if self.record.cells.iter().any(|cell| cell.categories.contains(&Category::Accuracy)) {
            self.folder.replace(folder::TASKS, &tasks::TABLE.render(&self.run_id, ended(), mark)?)?;
        }
        if self.record.cells.iter().any(|cell| cell.categories.contains(&Category::Operators)) {
            self.folder.replace(folder::OPERATORS, &operators::TABLE.render(&self.run_id, ended(), mark)?)?;
        }
        if self.record.cells.iter().any(|cell| cell.categories.contains(&Category::OptimizationImpact)) {
            self.folder.replace(folder::IMPACT, &impact::TABLE.render(&self.run_id, ended(), mark)?)?;
        }
        let rows = ended().map(|outcome| Row { run_id: &self.run_id, outcome });
        self.folder.replace(folder::SUMMARY, &summary::render(rows, mark)?)
    }

    fn write_environment(&self) -> Result<()> {
        let text = serde_json::to_vec_pretty(&self.record.environment()).context("cannot express the environment")?;
        self.folder.replace(folder::ENVIRONMENT, &text)
    }
}

fn unsupported(error: &Error) -> (JobEnd, Raw) {
    let hint = error.find_hint().map(str::to_owned);
    (JobEnd::without_result(Status::Unsupported, error.chain(), hint), Raw::default())
}

fn missing(found: Found) -> Option<String> {
    match found {
        Found::NotMeasured(sentence) => Some(sentence),
        Found::Everything | Found::NoFiles(_) | Found::NoAnswers(_) => None,
    }
}

fn refusals(cells: &[Cell], host: &dyn Host) -> BTreeMap<CellId, Refusal> {
    cells.iter().filter_map(|cell| Some((cell.id.clone(), refuse(cell, host)?))).collect()
}

/// The machine is asked about every cell that is still to be done: its runtime may have gone or come. What was refused
/// before stays so unless what failed is to be tried again.
fn refusals_of_unfinished(record: &Record, retry_failed: bool, host: &dyn Host) -> BTreeMap<CellId, Refusal> {
    let mut refused = if retry_failed { BTreeMap::new() } else { record.refused().clone() };
    for cell in &record.cells {
        let due = match record.outcome(cell) {
            Some(outcome) => retry_failed && outcome.status != Status::Measured,
            None => true,
        };
        if due {
            refused.extend(refuse(cell, host).map(|refusal| (cell.id.clone(), refusal)));
        }
    }
    refused
}

fn refuse(cell: &Cell, host: &dyn Host) -> Option<Refusal> {
    host.refuse(cell).or_else(|| {
        let error = host.library(&cell.backend.runtime).err()?;
        let hint = error.find_hint().map(str::to_owned);
        Some(Refusal { status: Status::Unsupported, reason: error.chain(), hint })
    })
}

fn now() -> String {
    time::iso(SystemTime::now())
}
