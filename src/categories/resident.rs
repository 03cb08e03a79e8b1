//! The memory of this process from before a load to the end of its work, as language models and graphs report it.

use crate::categories::Context;
use crate::error::{Error, Result};
use crate::probe::memory::{Counters, Resident, proportional, reset_peak};
use crate::probe::sampler::{Readings, Sampler};

/// Counters and a sampling thread that run since before the load.
pub struct Observing {
    baseline: Resident,
    counters: Counters,
    sampler: Sampler,
}

/// What was seen by the end.
pub struct Seen<'a> {
    context: &'a Context<'a>,
    baseline: Resident,
    last: Resident,
    proportional: Option<u64>,
    counted: Counters,
    readings: Readings,
}

impl Observing {
    /// Begins, in the phase `load`.
    ///
    /// # Errors
    /// A process that may not see its own memory, or have another thread.
    pub fn start(context: &Context) -> Result<Self> {
        let baseline = Resident::now()?;
        if !reset_peak() {
            context.report.warning(
                "the kernel does not let this process reset its peak counter (/proc/self/clear_refs), so the peak \
                 includes what happened before the load",
            )?;
        }
        Ok(Self { baseline, counters: Counters::now()?, sampler: Sampler::start("load")? })
    }

    /// Another phase begins.
    pub fn enter(&self, phase: &'static str) {
        self.sampler.enter(phase);
    }

    /// Ends.
    ///
    /// # Errors
    /// A process that may not see its own memory.
    pub fn finish<'a>(self, context: &'a Context<'a>) -> Result<Seen<'a>> {
        let proportional = proportional();
        let last = Resident::now()?;
        let counted = Counters::now()?.since(&self.counters);
        let readings = self.sampler.finish()?;
        Ok(Seen { context, baseline: self.baseline, last, proportional, counted, readings })
    }
}

impl Seen<'_> {
    /// The kernel's peak of resident memory, in bytes.
    pub fn peak(&self) -> u64 {
        self.last.peak
    }

    /// Sends one of this process's figures.
    ///
    /// # Errors
    /// A parent that no longer listens.
    pub fn series(&self, name: &str, bytes: u64) -> Result<()> {
        self.context.report.samples(name, self.context.process, vec![bytes as f64])
    }

    /// Sends the largest reading within a phase.
    ///
    /// # Errors
    /// A phase without a reading makes the cell `invalid`.
    pub fn peak_of(&self, name: &str, phase: Option<&str>, value: impl Fn(&Resident) -> u64) -> Result<()> {
        self.series(name, reading(self.readings.peak(phase, value))?)
    }

    /// Sends the median reading within a phase.
    ///
    /// # Errors
    /// As [`Seen::peak_of`].
    pub fn median_of(&self, name: &str, phase: &str, value: impl Fn(&Resident) -> u64) -> Result<()> {
        self.series(name, reading(self.readings.median(phase, value))?)
    }

    /// Sends baseline, peaks, and what was held when the model was loaded.
    ///
    /// # Errors
    /// As [`Seen::peak_of`].
    pub fn report_peaks(&self, loaded: &Resident) -> Result<()> {
        self.series("baseline_rss_bytes", self.baseline.total)?;
        self.series("peak_rss_bytes", self.last.peak)?;
        self.series("peak_rss_above_baseline_bytes", self.last.peak.saturating_sub(self.baseline.total))?;
        self.peak_of("peak_anonymous_bytes", None, |r| r.anonymous)?;
        self.peak_of("peak_file_backed_bytes", None, |r| r.file_backed)?;
        self.series("loaded_anonymous_bytes", loaded.anonymous)?;
        self.series("loaded_file_backed_bytes", loaded.file_backed)
    }

    /// Sends the proportional set size under that name, if the kernel has it.
    ///
    /// # Errors
    /// A parent that no longer listens.
    pub fn report_proportional(&self, name: &str) -> Result<()> {
        match self.proportional {
            Some(bytes) => self.series(name, bytes),
            None => self.context.report.warning("the kernel has no smaps_rollup, so there is no proportional set size"),
        }
    }

    /// Sends faults and bytes read since the start. No run is a warm-up here.
    ///
    /// # Errors
    /// A parent that no longer listens.
    pub fn report_counters(&self) -> Result<()> {
        self.series("major_faults", self.counted.major_faults)?;
        self.series("minor_faults", self.counted.minor_faults)?;
        match self.counted.read_bytes {
            Some(bytes) => self.series("disk_read_bytes", bytes)?,
            None => {
                self.context.report.warning("the kernel does not count this process's reads (/proc/self/io)")?;
            }
        }
        self.context.report.fact("warmup_runs", 0_u64)
    }
}

fn reading(value: Option<u64>) -> Result<u64> {
    value.ok_or_else(|| Error::invalid("a phase passed without a reading"))
}
