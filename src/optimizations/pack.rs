//! A package turned into a pack, whose weights a loader can page: what most techniques of memory begin with.

use std::path::Path;
use std::sync::Arc;

use super::derive::{Derivation, Evidence, Stage, Workshop};
use super::setup::{Setup, Subject};
use crate::cell::{ProviderKind, Residency};
use crate::error::Result;
use crate::loader::kernels;
use crate::loader::pack::{self, CodecChoice, Options, Progress};
use crate::package::Package;
use crate::package::shards::{Codec, Form, What};
use crate::protocol::Reporter;

/// Packs a package.
#[derive(Debug, Clone, Copy)]
pub struct PackStep {
    /// How the graph takes its weights.
    pub form: Form,
    /// How records are compressed; see [`Setup::codec`].
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

    /// Makes the setup's package a pack.
    pub fn add(setup: &mut Setup) {
        let form = Self::form_for(setup.backend.provider);
        setup.derive(Self { form, codec: CodecChoice::None });
    }

    /// Makes the setup's package a pack, unless it is one, and says where its weights live.
    pub fn page(setup: &mut Setup, subject: &Subject, residency: Residency) {
        if !subject.is_pack() {
            Self::add(setup);
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

    fn with_codec(&self, codec: CodecChoice) -> Option<Arc<dyn Derivation>> {
        Some(Arc::new(Self { codec, ..*self }))
    }

    fn derive(&self, package: &Package, folder: &Path, workshop: &Workshop) -> Result<Evidence> {
        let options = Options { form: self.form, codec: self.codec, ..Options::default() };
        let summary = pack::pack(package, folder, &options, &Told(workshop.report))?;
        let records = &summary.index.records;
        let [stored, decoded]: [u64; 2] =
            [records.iter().map(|record| record.stored).sum(), records.iter().map(|record| record.bytes).sum()];
        let products = records.iter().filter(|record| !matches!(record.what, What::Tensor { .. })).count() as u64;
        let compressed = records.iter().filter(|record| record.codec != Codec::None).count() as u64;
        let mut evidence = Evidence::from([
            ("pack_records".to_owned(), (records.len() as u64).into()),
            ("pack_products".to_owned(), products.into()),
            ("shards_stored_bytes".to_owned(), stored.into()),
            ("shards_decoded_bytes".to_owned(), decoded.into()),
        ]);
        if self.codec != CodecChoice::None {
            evidence.insert("compression_shards_ratio".to_owned(), (decoded as f64 / stored.max(1) as f64).into());
            evidence.insert("compression_shards_records".to_owned(), compressed.into());
        }
        Ok(evidence)
    }
}

/// Progress as messages.
struct Told<'a>(&'a Reporter);

impl Progress for Told<'_> {
    fn started(&self, _bytes: u64) {}

    fn advanced(&self, _bytes: u64) {}

    fn shard(&self, number: usize, shards: usize, _file: &str, _bytes: u64, _resumed: bool) {
        // A reader that went away is noticed at the end.
        let _ = self.0.progress("pack", number as u64, shards as u64);
    }

    fn finished(&self) {}
}
