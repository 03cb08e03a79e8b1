//! What several techniques of memory ask and are told alike.

use super::options::{OptionKind, OptionSpec, Options};
use super::setup::{Setup, Subject};
use crate::error::{Error, Result};
use crate::probe::limits::MemoryLimits;

/// How much of a pack's weights may be in memory, where the cell has no `memory_budget`.
pub const SHARE: OptionSpec = OptionSpec {
    name: "share",
    kind: OptionKind::Share,
    default: "50%",
    description: "Share of the pack's weights that may be in memory, where the cell has no `memory_budget`.",
};

/// Sets it.
pub fn set(setup: &mut Setup, options: &Options) {
    if setup.plan.budget.is_none() {
        setup.plan.weights_share = options.share(SHARE.name);
    }
}

/// Refuses a single sequence, where it is others that wait.
///
/// # Errors
/// A batch of one.
pub fn expect_sequences(subject: &Subject) -> Result<()> {
    if subject.cell.workload.batch >= 2 {
        return Ok(());
    }
    Err(Error::unsupported("it needs several sequences, and the cell's `batch` is 1").hint("set the axis `batch`"))
}

/// Refuses a machine without swap.
///
/// # Errors
/// No swap, which the kernel could move anything to.
pub fn expect_swap() -> Result<()> {
    match MemoryLimits::now().swap_bytes {
        Some(bytes) if bytes > 0 => Ok(()),
        _ => Err(Error::unsupported("this machine has no swap to compare with").hint("switch one on: `swapon FILE`")),
    }
}
