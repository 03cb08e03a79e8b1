//! Weights and caches on disk beyond a budget, against all of them in memory.

use std::path::PathBuf;

use super::options::{OptionKind, OptionSpec, Options};
use super::pack::{PackStep, paged};
use super::setup::{Setup, Subject};
use super::{Optimization, budget};
use crate::cell::{ImpactMetric, Residency, Technique};
use crate::error::Result;

/// The technique.
pub struct DiskOffload;

const OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        name: "caches",
        kind: OptionKind::Words(&["disk", "memory"]),
        default: "disk",
        description: "Where the key/value caches of layers that do not run wait.",
    },
    budget::SHARE,
];

impl Optimization for DiskOffload {
    fn technique(&self) -> Technique {
        Technique::DiskOffload
    }

    fn summary(&self) -> &'static str {
        "Of weights only a share is in memory, and caches of the layers that do not run wait on disk."
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

    fn baseline(&self, setup: &mut Setup, subject: &Subject, _options: &Options) -> Result<()> {
        PackStep::page(setup, subject, Residency::Resident);
        // A budget is what the technique works with.
        setup.plan.budget = None;
        Ok(())
    }

    fn apply(&self, setup: &mut Setup, subject: &Subject, options: &Options) -> Result<()> {
        PackStep::page(setup, subject, paged(subject));
        budget::set(setup, options);
        if options.is("caches", "disk") {
            // The run says in which folder.
            setup.plan.offload = Some(PathBuf::new());
        }
        Ok(())
    }
}
