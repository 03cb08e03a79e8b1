//! A pack derived from a package: weights in shards, compressed or not.

use std::path::Path;

use super::{Derivation, Evidence, Stage, Workshop};
use crate::error::Result;
use crate::loader::pack::{self, CodecChoice, Options, Progress};
use crate::package::Package;
use crate::package::shards::{Codec, Form};
use crate::protocol::Reporter;

/// Weights in shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackStep {
    /// How the graph takes its weights.
    pub form: Form,
    /// How they are compressed.
    pub codec: CodecChoice,
}

impl Derivation for PackStep {
    fn stage(&self) -> Stage {
        Stage::Storage
    }

    fn describe(&self) -> String {
        format!("pack of the form {:?}, codec {:?}", self.form, self.codec).to_lowercase()
    }

    fn derive(&self, package: &Package, folder: &Path, workshop: &Workshop) -> Result<Evidence> {
        let options = Options { form: self.form, codec: self.codec, ..Options::default() };
        let summary = pack::pack(package, folder, &options, &Told(workshop.report))?;
        let records = &summary.index.records;
        let [stored, decoded]: [u64; 2] =
            [records.iter().map(|record| record.stored).sum(), records.iter().map(|record| record.bytes).sum()];
        let compressed = records.iter().filter(|record| record.codec != Codec::None).count() as u64;
        let mut evidence = Evidence::from([
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
