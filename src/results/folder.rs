//! A run's folder: made, locked, and written so that a file under its final name is whole.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::cell::CellId;
use crate::digest;
use crate::error::{Error, Result};
use crate::results::{JobKey, time};
use crate::units;

/// The journal's name.
pub const JOURNAL: &str = "journal.jsonl";
/// The table with a row for each cell.
pub const SUMMARY: &str = "summary.csv";
/// The table with a row for each raw measurement.
pub const SAMPLES: &str = "samples.csv";
/// The table with a row for each cell and task.
pub const TASKS: &str = "tasks.csv";
/// The table with a row for each node of each profiled cell.
pub const OPERATORS: &str = "operators.csv";
/// The table with a row for each figure of each cell whose optimizations are compared.
pub const IMPACT: &str = "impact.csv";
/// The machine and this program.
pub const ENVIRONMENT: &str = "environment.json";
/// The copy of the matrix file.
pub const MATRIX: &str = "matrix.yaml";
const LOGS: &str = "logs";
const REFERENCES: &str = "references";
const LOCK: &str = ".lock";
/// How the names of files begin that are still being written.
const UNFINISHED: &str = ".part-";
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// Less room than this is not worth a start: a small run's tables and logs would not fit.
const LEAST_ROOM_BYTES: u64 = 16 << 20;

/// The folder of a run, locked against a second runner for as long as this value lives (and no longer: the kernel
/// releases the lock of a process that is gone).
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    _lock: File,
}

impl RunFolder {
    /// Makes `<results>/<UTC time>-<name>/`.
    ///
    /// # Errors
    /// A results folder that cannot be written, or has no room.
    pub fn create(results: &Path, name: &str) -> Result<Self> {
        fs::create_dir_all(results).map_err(|error| write_error(results, "cannot make the results folder", error))?;
        check_room(results)?;
        let stem = format!("{}-{}", time::compact(SystemTime::now()), file_name(name));
        for attempt in 1..100 {
            let path = results.join(if attempt == 1 { stem.clone() } else { format!("{stem}-{attempt}") });
            match fs::create_dir(&path) {
                Ok(()) => return Self::prepare(path),
                // Two runs may start within one second.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(write_error(&path, "cannot make the run's folder", error)),
            }
        }
        Err(Error::environment(format!("cannot find a free name for the run in `{}`", results.display())))
    }

    /// Opens the folder of an earlier run to continue it.
    ///
    /// # Errors
    /// A folder that is no run's, that another runner holds, or that cannot be written.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.join(JOURNAL).is_file() {
            return Err(Error::new(format!("`{}` is not the folder of a run: it has no {JOURNAL}", path.display())));
        }
        check_room(path)?;
        let folder = Self::prepare(path.to_owned())?;
        folder.sweep();
        Ok(folder)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The run's id, which is the folder's name.
    pub fn run_id(&self) -> String {
        self.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// A file in the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Where a job's process writes what it has to say.
    pub fn log(&self, job: &JobKey) -> PathBuf {
        self.path.join(LOGS).join(format!("{}.{}.{}.log", file_name(&job.cell.0), job.category, job.process))
    }

    /// Where the process that derives a cell's packages writes what it has to say.
    pub fn preparation_log(&self, cell: &CellId) -> PathBuf {
        self.path.join(LOGS).join(format!("{}.prepare.log", file_name(&cell.0)))
    }

    /// Where the process that measures the ceilings writes what it has to say.
    pub fn ceilings_log(&self, threads: u32) -> PathBuf {
        self.path.join(LOGS).join(format!("ceilings.{threads}.log"))
    }

    /// The folder of a reference's answers; [`RunFolder::make_references`] makes the one above it.
    pub fn reference(&self, cell: &CellId) -> PathBuf {
        let mut name = file_name(&cell.0);
        // Names of logs may coincide where ids are long; two references must not.
        if name != cell.0 {
            name = format!("{}-{}", name.chars().take(100).collect::<String>(), &digest::sha256(&cell.0)[..12]);
        }
        self.path.join(REFERENCES).join(name)
    }

    /// Makes the folder in which references have theirs.
    ///
    /// # Errors
    /// What the file system says.
    pub fn make_references(&self) -> Result<()> {
        let path = self.path.join(REFERENCES);
        fs::create_dir_all(&path).map_err(|error| write_error(&path, "cannot make", error))
    }

    /// Replaces a file of the folder: it is written under another name, synced and renamed, so that its name never
    /// stands for half of it.
    ///
    /// # Errors
    /// What the file system says; the earlier file is then still there.
    pub fn replace(&self, name: &str, contents: &[u8]) -> Result<()> {
        let path = self.file(name);
        write_whole(&path, contents).map_err(|error| write_error(&path, "cannot write", error))
    }

    /// Removes what a runner that was killed had not finished writing. What cannot be removed does no harm.
    fn sweep(&self) {
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(UNFINISHED)) {
            let _ = fs::remove_file(entry.path());
        }
    }

    fn prepare(path: PathBuf) -> Result<Self> {
        let logs = path.join(LOGS);
        fs::create_dir_all(&logs).map_err(|error| write_error(&logs, "cannot make", error))?;
        let lock_path = path.join(LOCK);
        let lock = File::create(&lock_path).map_err(|error| write_error(&lock_path, "cannot write", error))?;
        take(&lock, &path).map(|()| Self { path: path.clone(), _lock: lock })
    }
}

/// Locks the file, or says who has it. A runner that was killed while it started a worker leaves its lock to that
/// worker for the moment until the worker's program is loaded, so a lock is refused only when it stays.
fn take(lock: &File, folder: &Path) -> Result<()> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(Duration::from_millis(20)),
            Err(TryLockError::WouldBlock) => {
                let error = Error::environment(format!("another runner is at work in `{}`", folder.display()));
                return Err(error.hint("wait until it ends, or end it"));
            }
            Err(TryLockError::Error(error)) => return Err(write_error(folder, "cannot lock", error)),
        }
    }
}

/// The newest run's folder in `results`, by name (which begins with the time).
///
/// # Errors
/// No such folder, or no run in it.
pub fn newest(results: &Path) -> Result<PathBuf> {
    let nothing = || {
        Error::new(format!("no run was found in `{}`", results.display()))
            .hint("`ortbench run` makes one; or name the folder of a run")
    };
    let entries = fs::read_dir(results).map_err(|error| nothing().because(error))?;
    let runs = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.join(JOURNAL).is_file());
    // A folder such as `samples/` holds runs without being named by a time.
    let dated = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(|c: char| c.is_ascii_digit()))
    };
    runs.filter(dated).max().ok_or_else(nothing)
}

/// An error of writing, with what can be done about it.
pub fn write_error(path: &Path, operation: &str, error: io::Error) -> Error {
    let hint = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            Some("free some room; a run that was under way continues with `ortbench run --resume DIR`")
        }
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            Some("name a folder that you may write with `--results DIR`")
        }
        ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
            Some("a file stands where a folder is needed; name another with `--results DIR`")
        }
        _ => None,
    };
    let wrapped = Error::environment(format!("{operation} `{}`", path.display())).because(error);
    match hint {
        Some(hint) => wrapped.hint(hint),
        None => wrapped,
    }
}

fn write_whole(path: &Path, contents: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    // The temporary file removes itself on every way out but `persist`.
    // Results are for whoever the umask says, while temporary files are for their owner alone unless told otherwise.
    let permissions = fs::Permissions::from_mode(0o666);
    let mut file = tempfile::Builder::new().prefix(UNFINISHED).permissions(permissions).tempfile_in(folder)?;
    file.write_all(contents)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(folder)?.sync_all()
}

fn check_room(path: &Path) -> Result<()> {
    let Ok(stat) = rustix::fs::statvfs(path) else { return Ok(()) };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free < LEAST_ROOM_BYTES {
        let (free, least) = (units::bytes(free), units::bytes(LEAST_ROOM_BYTES));
        return Err(Error::environment(format!(
            "the disk of `{}` has {free} left, a run needs {least}",
            path.display()
        ))
        .hint("free some room, or name another folder with `--results DIR`"));
    }
    Ok(())
}

/// A name that every file system takes.
fn file_name(name: &str) -> String {
    let safe = |c: char| if c.is_alphanumeric() || "-_.+,=@".contains(c) { c } else { '_' };
    let name: String = name.chars().map(safe).take(120).collect();
    if name.trim_matches('.').is_empty() { "run".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_folders_are_safe() {
        assert_eq!(file_name("a b/../c"), "a_b_.._c");
        assert_eq!(file_name(".."), "run");
        assert_eq!(file_name(""), "run");
    }

    #[test]
    fn references_of_two_cells_have_two_folders() {
        let results = tempfile::tempdir().unwrap();
        let folder = RunFolder::create(results.path(), "x").unwrap();
        let names =
            ["a", "a b", "a_b", &"x".repeat(150), &"x".repeat(151)].map(|id| folder.reference(&CellId(id.into())));
        assert!(names[0].ends_with("references/a"));
        for (index, name) in names.iter().enumerate() {
            assert_eq!(name.parent(), names[0].parent());
            assert!(!names[..index].contains(name), "{}", name.display());
        }
    }

    #[test]
    fn a_folder_is_opened_by_one_and_swept() {
        let results = tempfile::tempdir().unwrap();
        let folder = RunFolder::create(results.path(), "x").unwrap();
        let path = folder.path().to_owned();
        folder.replace(JOURNAL, b"1").unwrap();
        folder.replace(JOURNAL, b"22").unwrap();
        assert_eq!(fs::read(path.join(JOURNAL)).unwrap(), b"22");
        fs::write(path.join(".part-abc"), "half").unwrap();
        assert!(RunFolder::open(&path).unwrap_err().to_string().contains("another runner"));
        assert!(path.join(".part-abc").exists(), "it may be the other runner's");
        drop(folder);
        RunFolder::open(&path).unwrap();
        assert!(!path.join(".part-abc").exists());
    }

    #[test]
    fn the_newest_run_is_found_among_other_folders() {
        let results = tempfile::tempdir().unwrap();
        for name in ["20260101T000000Z-b", "20260102T000000Z-a", "samples", "20270101T000000Z-no-run"] {
            fs::create_dir(results.path().join(name)).unwrap();
            if !name.ends_with("no-run") {
                fs::write(results.path().join(name).join(JOURNAL), "").unwrap();
            }
        }
        assert!(newest(results.path()).unwrap().ends_with("20260102T000000Z-a"));
        assert!(newest(&results.path().join("samples")).is_err());
    }
}
