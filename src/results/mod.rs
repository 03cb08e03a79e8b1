//! What a run leaves behind: a folder with `summary.csv` (a row a cell), `samples.csv` (a row a raw measurement),
//! `environment.json`, a copy of the matrix, the journal and logs. `docs/results.md` describes it to its readers.

pub mod columns;
pub mod compare;
pub mod folder;
pub mod journal;
mod outcome;
pub mod record;
pub mod samples;
pub mod summary;
pub mod table;
pub mod time;
pub mod validate;
mod value;

pub use outcome::{JobEnd, JobKey, JobResult, Outcome, Refusal, SampleRun};
pub use value::{Value, float, guard, unguard};
