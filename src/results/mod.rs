//! What a run leaves behind: a folder with `summary.csv` (a row a cell), `samples.csv` (a row a raw measurement),
//! `tasks.csv` (a row a cell and task, where accuracy is asked for), `impact.csv` (a row a cell and figure, where
//! optimizations are compared),
//! `environment.json`, a copy of the matrix, the journal and logs. `docs/results.md` describes it to its readers.

mod accuracy;
pub mod columns;
pub mod compare;
pub mod folder;
pub mod impact;
pub mod journal;
pub mod operators;
mod outcome;
pub mod record;
pub mod samples;
mod side;
pub mod summary;
pub mod table;
pub mod tasks;
pub mod time;
pub mod validate;
mod validate_power;
pub mod validate_tasks;
mod value;

pub use accuracy::{gate_failure, score};
pub use outcome::{JobEnd, JobKey, JobResult, Outcome, Raw, Refusal, SampleRun};
pub use value::{Value, float, guard, unguard};
