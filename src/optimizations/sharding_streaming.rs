//! Shards that are read ahead of use, against the same shards read when the computation asks for them.

use super::options::{OptionSpec, Options};
use super::pack::PackStep;
use super::setup::{Setup, Subject};
use super::{Optimization, budget};
use crate::cell::{ImpactMetric, Residency, Technique};
use crate::error::Result;

/// The technique.
pub struct ShardingStreaming;

impl Optimization for ShardingStreaming {
    fn technique(&self) -> Technique {
        Technique::ShardingStreaming
    }

    fn summary(&self) -> &'static str {
        "The model lies in shards, one a layer, and each is read while those before it compute."
    }

    fn options(&self) -> &'static [OptionSpec] {
        &[budget::SHARE]
    }

    fn objective(&self, _options: &Options) -> ImpactMetric {
        ImpactMetric::Throughput
    }

    fn derives_pack(&self, _options: &Options) -> bool {
        true
    }

    fn baseline(&self, setup: &mut Setup, subject: &Subject, options: &Options) -> Result<()> {
        self.apply(setup, subject, options)?;
        setup.plan.read_ahead = false;
        Ok(())
    }

    fn apply(&self, setup: &mut Setup, subject: &Subject, options: &Options) -> Result<()> {
        PackStep::page(setup, subject, Residency::Stream);
        budget::set(setup, options);
        Ok(())
    }
}
