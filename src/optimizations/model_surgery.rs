//! Model surgery: fewer layers, experts and tokens, and logits of the positions that are wanted alone.
//!
//! The result is a package of its own. It gives other answers than the model, which is why its fidelity is measured.

mod account;
mod calibrate;
mod experts;
mod genai;
mod head;
mod layers;
mod operate;
mod rows;
mod slice;
mod spec;
mod stream;
mod texts;
mod tokenizer;
mod vocabulary;
mod window;

pub use calibrate::Calibration;
pub use operate::{Outcome, operate};
pub use spec::{Amount, Spec, Texts};
pub use texts::of_files as texts_of_files;

use std::path::Path;

use super::{Derivation, Evidence, Optimization, OptionKind, OptionSpec, Options, Setup, Stage, Subject, Workshop};
use crate::cell::{ImpactMetric, Technique};
use crate::error::{Error, Result};
use crate::package::Package;

/// Counts up when the same settings make another package.
const VERSION: u32 = 1;

/// The technique.
pub struct ModelSurgery;

const OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        name: "drop_layers",
        kind: OptionKind::AmountOr("none"),
        default: "25%",
        description: "Layers that leave, the least important ones: a count, or a share, rounded down.",
    },
    OptionSpec {
        name: "protect",
        kind: OptionKind::Words(&["ends", "none"]),
        default: "ends",
        description: "Layers that stay whatever their importance: the first and the last one, or none.",
    },
    OptionSpec {
        name: "keep_experts",
        kind: OptionKind::AmountOr("all"),
        default: "all",
        description: "Experts that stay in each layer, those that routers choose most: a count, or a share, rounded down.",
    },
    OptionSpec {
        name: "trim_vocabulary",
        kind: OptionKind::Text,
        default: "none",
        description: "Keep the tokens of a text alone: `none`, `tasks` for the cell's tasks, or a file's path.",
    },
    OptionSpec {
        name: "last_logits",
        kind: OptionKind::Words(&["true", "false"]),
        default: "true",
        description: "Let the head compute the logits of the wanted positions alone, where it computes all.",
    },
    OptionSpec {
        name: "calibration",
        kind: OptionKind::Count(1, 1 << 20),
        default: "512",
        description: "Tokens over which importance and use are measured, at most.",
    },
    OptionSpec {
        name: "calibration_text",
        kind: OptionKind::Text,
        default: "auto",
        description: "Where they come from: `random`, a file's path, or `auto`: the cell's tasks, else its prompt's text, else random.",
    },
];

impl ModelSurgery {
    fn spec(subject: &Subject, options: &Options) -> Result<Spec> {
        let amount = |name: &str, word: &str| {
            Amount::parse(options.text(name), word)
                .ok_or_else(|| Error::new(format!("`{name}` is no amount: `{}`", options.text(name))))
        };
        Ok(Spec {
            drop_layers: amount("drop_layers", "none")?,
            protect_ends: options.is("protect", "ends"),
            keep_experts: amount("keep_experts", "all")?,
            vocabulary: texts::of_vocabulary(subject.cell, options.text("trim_vocabulary"))?,
            last_logits: options.is("last_logits", "true"),
            calibration_tokens: options.count("calibration").unwrap_or(512),
            calibration: texts::of_calibration(subject.cell, options.text("calibration_text"))?,
        })
    }
}

impl Optimization for ModelSurgery {
    fn technique(&self) -> Technique {
        Technique::ModelSurgery
    }

    fn summary(&self) -> &'static str {
        "Edits the model's graph: fewer layers, experts and tokens, by what was measured of them."
    }

    fn options(&self) -> &'static [OptionSpec] {
        OPTIONS
    }

    fn objective(&self, _options: &Options) -> ImpactMetric {
        ImpactMetric::Decode
    }

    fn check(&self, subject: &Subject, options: &Options) -> Result<()> {
        Self::spec(subject, options)?.check(subject.manifest)
    }

    fn apply(&self, setup: &mut Setup, subject: &Subject, options: &Options) -> Result<()> {
        setup.derive(Surgery(Self::spec(subject, options)?));
        Ok(())
    }
}

/// The edit.
#[derive(Debug)]
struct Surgery(Spec);

impl Derivation for Surgery {
    fn stage(&self) -> Stage {
        Stage::Surgery
    }

    fn describe(&self) -> String {
        format!("surgery {VERSION} {}", self.0.describe())
    }

    fn derive(&self, package: &Package, folder: &Path, workshop: &Workshop) -> Result<Evidence> {
        let (_, outcome) = operate(package, &self.0, folder, workshop)?;
        Ok(outcome.evidence())
    }
}
