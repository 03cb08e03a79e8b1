//! A package whose caches are quantized, derived from one whose caches are floats.

use std::path::Path;

use super::calibrate::Calibration;
use super::graph::{self, Cache};
use super::probe;
use super::scales::{Bits, Scales};
use crate::cell::ProviderKind;
use crate::error::{Error, Result};
use crate::optimizations::{Derivation, Evidence, Stage, Workshop};
use crate::package::edition::Edition;
use crate::package::{CacheUpdate, Manifest, Package};

/// Caches of fewer bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheStep {
    /// Bits of an element.
    pub bits: Bits,
    /// A scale for each channel, or one for a tensor.
    pub per_channel: bool,
    /// Tokens over which scales are measured.
    pub tokens: u32,
}

impl CacheStep {
    /// Refuses what cannot be done, as far as the manifest and the provider's name tell.
    ///
    /// # Errors
    /// What lacks, by name (`unsupported`).
    pub fn check(&self, manifest: &Manifest, provider: ProviderKind) -> Result<()> {
        if manifest.pack.is_some() {
            return Err(Error::unsupported("a pack's graph has no constants to put scales among")
                .hint("name the package that the pack was made of; `shards` packs what is derived of it"));
        }
        if !manifest.cache.dtype.is_float() {
            return Err(Error::unsupported("the package's caches are quantized already"));
        }
        let attention = manifest.cache.update == CacheUpdate::InPlaceOrAppend;
        if self.bits == Bits::Four && !attention {
            return Err(graph::needs_attention());
        }
        if attention && provider == ProviderKind::OpenVino {
            return Err(Error::unsupported(
                "OpenVINO's translation of GroupQueryAttention takes no quantized caches in the versions of its \
                 execution provider up to 1.24",
            )
            .hint("a package of the `plain` flavour works there with `cache: int8`; or take the provider `cpu`"));
        }
        Ok(())
    }
}

impl Derivation for CacheStep {
    fn stage(&self) -> Stage {
        Stage::Caches
    }

    fn describe(&self) -> String {
        let sharing = if self.per_channel { "channel" } else { "tensor" };
        format!("int{}_caches, a scale a {sharing}, {} tokens, version 1", self.bits.count(), self.tokens)
    }

    fn derive(&self, package: &Package, folder: &Path, workshop: &Workshop) -> Result<Evidence> {
        let mut edition = Edition::of(package)?;
        let caches = Cache::all(&mut edition, self.bits)?;
        if caches.iter().any(Cache::is_attention) {
            probe::attention(workshop, self.bits)?;
        }
        let calibration = Calibration::run(package, workshop, self.tokens as usize)?;
        let (mut before, mut after, mut lost, mut of) = (0_u64, 0_u64, 0.0, 0.0_f64);
        let mut scales = Vec::with_capacity(caches.len());
        for cache in &caches {
            let channels = cache.channels(&edition, self.per_channel)?;
            let values = calibration.values(&cache.past)?;
            let measured = Scales::measure(&values, calibration.columns, &channels, self.bits)?;
            before += cache.bytes_per_token(None)?;
            after += cache.bytes_per_token(Some(self.bits))?;
            (lost, of) = (lost + measured.lost, of + measured.of);
            scales.push((measured.values, channels));
        }
        graph::quantize(&mut edition, &caches, &scales, self.bits)?;
        let tokens = calibration.tokens();
        drop(calibration);
        edition.write(folder)?;
        Ok(Evidence::from([
            ("compression_cache_bytes_per_token_before".to_owned(), before.into()),
            ("compression_cache_bytes_per_token_after".to_owned(), after.into()),
            ("compression_cache_ratio".to_owned(), (before as f64 / after.max(1) as f64).into()),
            ("compression_cache_error".to_owned(), (lost / of.max(f64::MIN_POSITIVE)).sqrt().into()),
            ("compression_calibration_tokens".to_owned(), (tokens as u64).into()),
        ]))
    }
}
