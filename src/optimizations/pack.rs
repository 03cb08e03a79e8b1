//! A package turned into a pack, whose weights a loader can page: what most techniques of memory begin with.

use std::path::Path;

use super::derive::{Derivation, Evidence, Stage, Workshop};
use super::setup::{Setup, Subject};
use crate::cell::{ProviderKind, Residency};
use crate::error::Result;
use crate::loader::kernels;
use crate::loader::pack::{self, CodecChoice, Options, Quiet};
use crate::package::Package;
use crate::package::shards::Form;

/// Packs a package.
#[derive(Debug, Clone, Copy)]
pub struct PackStep {
    /// How the graph takes its weights.
    pub form: Form,
    /// How records are compressed.
    pub codec: CodecChoice,
}

impl PackStep {
    /// The form that a provider can run: this program's operators compute on the CPU.
    pub fn form_for(provider: ProviderKind) -> Form {
        match provider {
            ProviderKind::Cpu => Form::Operators,
            _ => Form::Inputs,
        }
    }

    /// Makes the setup's package a pack, unless it is one, and says where its weights live.
    pub fn page(setup: &mut Setup, subject: &Subject, residency: Residency) {
        if !subject.is_pack() {
            let form = Self::form_for(setup.backend.provider);
            setup.derive(Self { form, codec: CodecChoice::None });
        }
        setup.plan.residency = Some(residency);
    }
}

/// The residency that pages a model's weights best on a provider: routed experts on demand, where this program computes
/// them, and everything else streamed.
pub fn paged(subject: &Subject) -> Residency {
    match subject.has_experts() && subject.cell.backend.provider == ProviderKind::Cpu {
        true => Residency::Experts,
        false => Residency::Stream,
    }
}

impl Derivation for PackStep {
    fn stage(&self) -> Stage {
        Stage::Storage
    }

    fn describe(&self) -> String {
        let (layout, architecture) = (kernels::LAYOUT, std::env::consts::ARCH);
        format!("pack form {:?}, codec {:?}, layout {layout}, {architecture}", self.form, self.codec)
    }

    fn derive(&self, package: &Package, folder: &Path, _workshop: &Workshop) -> Result<Evidence> {
        let options = Options { form: self.form, codec: self.codec, ..Options::default() };
        let summary = pack::pack(package, folder, &options, &Quiet)?;
        Ok(Evidence::from([
            ("pack_records".to_owned(), (summary.index.records.len() as u64).into()),
            ("pack_source_bytes".to_owned(), summary.source_bytes.into()),
            ("pack_bytes".to_owned(), summary.bytes.into()),
        ]))
    }
}
