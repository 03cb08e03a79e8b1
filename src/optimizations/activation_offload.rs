//! Caches and hidden states of the sequences that wait for their turn leave memory and come back ahead of it.

use std::path::PathBuf;

use super::options::{OptionKind, OptionSpec, Options};
use super::pack::{PackStep, paged};
use super::setup::{Setup, Subject};
use super::{Optimization, budget};
use crate::cell::{ImpactMetric, Residency, Technique};
use crate::error::Result;

/// The technique.
pub struct ActivationOffload;

const OPTIONS: &[OptionSpec] = &[OptionSpec {
    name: "group",
    kind: OptionKind::CountOr("quarter", 1, 1 << 16),
    default: "quarter",
    description: "Sequences that go through a layer together while the others wait: a count, or a quarter of them.",
}];

impl Optimization for ActivationOffload {
    fn technique(&self) -> Technique {
        Technique::ActivationOffload
    }

    fn summary(&self) -> &'static str {
        "Sequences take turns at a layer; caches and hidden states of those that wait are on disk."
    }

    fn options(&self) -> &'static [OptionSpec] {
        OPTIONS
    }

    fn objective(&self, _options: &Options) -> ImpactMetric {
        ImpactMetric::PeakResident
    }

    fn derives_pack(&self, _options: &Options) -> bool {
        true
    }

    fn check(&self, subject: &Subject, _options: &Options) -> Result<()> {
        budget::expect_sequences(subject)
    }

    fn baseline(&self, setup: &mut Setup, subject: &Subject, options: &Options) -> Result<()> {
        let enough = if setup.plan.budget.is_some() { paged(subject) } else { Residency::Resident };
        PackStep::page(setup, subject, subject.cell.memory.residency.unwrap_or(enough));
        let all = subject.cell.workload.batch;
        let group = options.count("group").unwrap_or((all / 4).max(1));
        setup.plan.micro_batch = Some(group.min(all));
        Ok(())
    }

    fn apply(&self, setup: &mut Setup, subject: &Subject, options: &Options) -> Result<()> {
        self.baseline(setup, subject, options)?;
        // The run says in which folder.
        setup.plan.offload = Some(PathBuf::new());
        Ok(())
    }
}
