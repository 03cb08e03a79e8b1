//! Fewer bytes for what a model keeps: caches of 8 or 4 bits, compressed shards, compressed states of what waits on disk.
//!
//! | file | what |
//! |---|---|
//! | `caches.rs` | the derivation: measure, choose scales, edit |
//! | `calibrate.rs` | a run whose caches are read |
//! | `scales.rs` | from measured values to scales |
//! | `graph.rs` | the edit of graph and manifest |
//! | `probe.rs` | whether the loaded library can |

mod caches;
mod calibrate;
mod graph;
mod probe;
mod scales;

pub use caches::CacheStep;
pub use scales::{Bits, Channels, Scales, Sharing};

use super::pack::{PackStep, paged};
use super::setup::known;
use super::{Optimization, OptionKind, OptionSpec, Options, Setup, Subject, budget};
use crate::cell::{ImpactMetric, Technique};
use crate::error::{Error, Result};
use crate::loader::pack::CodecChoice;
use crate::loader::spill::SpillCodec;

/// The technique.
pub struct TensorCompression;

const OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        name: "cache",
        kind: OptionKind::Words(&["int8", "int4", "none"]),
        default: "int8",
        description: "bits of keys and values that are kept",
    },
    OptionSpec {
        name: "scales",
        kind: OptionKind::Words(&["channel", "tensor"]),
        default: "channel",
        description: "a scale for each channel of a quantized cache, or one for each of its tensors",
    },
    OptionSpec {
        name: "calibration_tokens",
        kind: OptionKind::Count(16, 16_384),
        default: "512",
        description: "tokens over which the scales of quantized caches are measured",
    },
    OptionSpec {
        name: "shards",
        kind: OptionKind::Words(&["none", "auto", "zstd", "lz4", "planes"]),
        default: "none",
        description: "pack the weights, compressed without loss, to be decoded when they are read",
    },
    OptionSpec {
        name: "offload",
        kind: OptionKind::Words(SpillCodec::NAMES),
        default: "none",
        description: "how caches and hidden states that wait on disk are stored there: compressed without loss (lz4, \
                      zstd, planes), or floats as 8 bits",
    },
    budget::SHARE,
];

impl Optimization for TensorCompression {
    fn technique(&self) -> Technique {
        Technique::TensorCompression
    }

    fn summary(&self) -> &'static str {
        "Caches of 8 or 4 bits with measured scales, shards and waiting states that are compressed on their way out and \
         decoded on their way in."
    }

    fn options(&self) -> &'static [OptionSpec] {
        OPTIONS
    }

    fn derives_pack(&self, options: &Options) -> bool {
        !options.is("shards", "none")
    }

    fn objective(&self, options: &Options) -> ImpactMetric {
        if options.is("cache", "none") { ImpactMetric::BytesRead } else { ImpactMetric::PeakResident }
    }

    fn check(&self, subject: &Subject, options: &Options) -> Result<()> {
        if let Some(step) = caches(options) {
            step.check(subject.manifest, subject.cell.backend.provider)?;
        }
        if codec(options).is_some() && subject.is_pack() {
            return Err(Error::unsupported("the cell's package is a pack already").hint(
                "name the package that the pack was made of, or pack that one with the codec yourself: \
                 `ortbench pack --codec`",
            ));
        }
        if !options.is("offload", "none") && !waits_on_disk(subject) {
            return Err(Error::unsupported(
                "`offload` says how what waits on disk is stored, and nothing of this cell waits there",
            )
            .hint("set the axis `offload: disk`, or switch on `disk_offload` or `activation_offload` beside it"));
        }
        if ["cache", "shards", "offload"].iter().all(|name| options.is(name, "none")) {
            return Err(Error::unsupported("`cache`, `shards` and `offload` are `none`: there is nothing to compress"));
        }
        Ok(())
    }

    fn baseline(&self, setup: &mut Setup, subject: &Subject, options: &Options) -> Result<()> {
        // What compression does is held against shards without it, not against a package in one piece.
        if codec(options).is_some() {
            stream(setup, subject, options);
        }
        Ok(())
    }

    fn apply(&self, setup: &mut Setup, subject: &Subject, options: &Options) -> Result<()> {
        if let Some(step) = caches(options) {
            setup.derive(step);
        }
        if let Some(codec) = codec(options) {
            stream(setup, subject, options);
            setup.codec = codec;
        }
        if let Ok(codec) = options.text("offload").parse() {
            setup.plan.offload_codec = codec;
        }
        Ok(())
    }
}

/// Makes a pack of the package, and reads a share of it in every pass, where neither an axis nor another technique says
/// what is read when.
fn stream(setup: &mut Setup, subject: &Subject, options: &Options) {
    PackStep::add(setup);
    let mut switched = subject.cell.optimizations.iter().flat_map(|plan| &plan.switched);
    let others = switched.any(|other| {
        other.technique != Technique::TensorCompression
            && known(other).is_ok_and(|(technique, options)| technique.derives_pack(&options))
    });
    if !others && setup.plan.residency.is_none() {
        setup.plan.residency = Some(paged(subject));
        budget::set(setup, options);
    }
}

/// Whether anything of the cell goes to the disk while it waits.
fn waits_on_disk(subject: &Subject) -> bool {
    let with = [Technique::DiskOffload, Technique::DiskPipeline, Technique::ActivationOffload];
    let mut switched = subject.cell.optimizations.iter().flat_map(|plan| &plan.switched);
    subject.cell.memory.offload || switched.any(|other| with.contains(&other.technique))
}

fn caches(options: &Options) -> Option<CacheStep> {
    let bits = match options.text("cache") {
        "int8" => Bits::Eight,
        "int4" => Bits::Four,
        _ => return None,
    };
    let tokens = options.count("calibration_tokens").unwrap_or(512);
    Some(CacheStep { bits, per_channel: options.is("scales", "channel"), tokens })
}

fn codec(options: &Options) -> Option<CodecChoice> {
    match options.text("shards") {
        "auto" => Some(CodecChoice::Auto),
        "zstd" => Some(CodecChoice::Zstd),
        "lz4" => Some(CodecChoice::Lz4),
        "planes" => Some(CodecChoice::Planes),
        _ => None,
    }
}
