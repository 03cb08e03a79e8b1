//! Ctrl-C and SIGTERM: the first one ends the run cleanly, the second one at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Context, Kind, Result};

/// Exit code of a program that was interrupted (128 + SIGINT).
pub const INTERRUPTED: u8 = 130;

/// Whether the user asked for the end.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Listens to SIGINT, SIGTERM and SIGHUP from now on.
    ///
    /// # Errors
    /// A handler that is already there.
    pub fn install() -> Result<Self> {
        let interrupt = Self::default();
        let handle = interrupt.clone();
        let handler = move || {
            if handle.0.swap(true, Ordering::SeqCst) {
                // The worker ends with this process, and the journal has all that was finished.
                std::process::exit(i32::from(INTERRUPTED));
            }
            eprintln!("interrupted: what is finished is kept (once more ends at once)");
        };
        ctrlc::set_handler(handler)
            .context("cannot listen to Ctrl-C")
            .map_err(|error| error.kind(Kind::Environment))?;
        Ok(interrupt)
    }

    /// True once the user asked for the end.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}
