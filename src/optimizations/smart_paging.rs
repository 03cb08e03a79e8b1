//! What of a pack's weights is in memory under a budget: a fixed part and a streamed rest, or the experts that routers
//! want, against leaving it to the operating system.

use super::options::{OptionKind, OptionSpec, Options};
use super::pack::{PackStep, paged};
use super::setup::{Setup, Subject};
use super::{Optimization, budget};
use crate::cell::{ImpactMetric, Residency, Technique};
use crate::error::Result;

/// The technique.
pub struct SmartPaging;

const OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        name: "against",
        kind: OptionKind::Words(&["mapped", "swap"]),
        default: "mapped",
        description: "What it is compared with: weights mapped from their files, or weights in memory of the program's own, which under a limit the kernel swaps.",
    },
    budget::SHARE,
];

impl Optimization for SmartPaging {
    fn technique(&self) -> Technique {
        Technique::SmartPaging
    }

    fn summary(&self) -> &'static str {
        "Weights are paged by what is known of the model: a fixed part stays, the rest streams, routed experts are cached."
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

    fn check(&self, _subject: &Subject, options: &Options) -> Result<()> {
        if options.is("against", "swap") { budget::expect_swap() } else { Ok(()) }
    }

    fn baseline(&self, setup: &mut Setup, subject: &Subject, options: &Options) -> Result<()> {
        let swap = options.is("against", "swap");
        PackStep::page(setup, subject, if swap { Residency::Resident } else { Residency::Mapped });
        setup.swap = swap;
        // A budget is what the technique works with.
        setup.plan.budget = None;
        Ok(())
    }

    fn apply(&self, setup: &mut Setup, subject: &Subject, options: &Options) -> Result<()> {
        PackStep::page(setup, subject, paged(subject));
        budget::set(setup, options);
        Ok(())
    }
}
