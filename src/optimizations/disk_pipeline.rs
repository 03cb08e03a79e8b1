//! Layer by layer over many sequences from disk: each layer is read once for all of them, against reading the whole model
//! for each.

use super::options::{OptionKind, OptionSpec, Options};
use super::pack::{PackStep, paged};
use super::setup::{Setup, Subject};
use super::{Optimization, budget};
use crate::cell::{ImpactMetric, Technique};
use crate::engine::serving::Waves;
use crate::error::Result;

/// The technique.
pub struct DiskPipeline;

const OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        name: "group",
        kind: OptionKind::CountOr("all", 1, 1 << 16),
        default: "all",
        description: "Sequences that go through a layer together; the others have their turn before the next layer is read.",
    },
    budget::SHARE,
];

impl Optimization for DiskPipeline {
    fn technique(&self) -> Technique {
        Technique::DiskPipeline
    }

    fn summary(&self) -> &'static str {
        "All sequences go through a layer before the next one is read, so that a pass over the disk serves all of them."
    }

    fn options(&self) -> &'static [OptionSpec] {
        OPTIONS
    }

    fn objective(&self, _options: &Options) -> ImpactMetric {
        ImpactMetric::Throughput
    }

    fn derives_pack(&self, _options: &Options) -> bool {
        true
    }

    fn check(&self, subject: &Subject, _options: &Options) -> Result<()> {
        budget::expect_sequences(subject)
    }

    fn baseline(&self, setup: &mut Setup, subject: &Subject, options: &Options) -> Result<()> {
        PackStep::page(setup, subject, paged(subject));
        budget::set(setup, options);
        setup.plan.waves = Waves::Fixed(1);
        Ok(())
    }

    fn apply(&self, setup: &mut Setup, subject: &Subject, options: &Options) -> Result<()> {
        PackStep::page(setup, subject, paged(subject));
        budget::set(setup, options);
        let all = subject.cell.workload.batch;
        setup.plan.micro_batch = Some(options.count("group").unwrap_or(all).min(all));
        Ok(())
    }
}
