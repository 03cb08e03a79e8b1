//! The manifest's `image`: how an image becomes patches, and patches become tokens.

use serde::{Deserialize, Serialize};

use crate::cell::Flavour;
use crate::error::{Error, Result};
use crate::package::manifest::EXPORT_AGAIN;
use crate::package::{GraphRole, Manifest, PortRole};
use crate::vision::{Grid, ImageSpec};

/// How an image becomes patches, and patches become tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// Side of a patch in pixels.
    pub patch_size: u64,
    /// Frames of a patch; a still image is repeated.
    pub temporal_patch_size: u64,
    /// Side in patches of what becomes one token.
    pub merge_size: u64,
    /// An image is resized to at least this many pixels,
    pub min_pixels: u64,
    /// and to at most this many.
    pub max_pixels: u64,
    /// Of each channel, after scaling to 0 … 1.
    pub mean: [f64; 3],
    /// Likewise.
    pub std: [f64; 3],
    /// The filter of resizing, with antialiasing.
    pub resample: Resample,
    /// The token that stands once for each merged patch.
    pub image_token: u32,
    /// Stands before an image.
    pub vision_start: u32,
    /// Stands behind it.
    pub vision_end: u32,
    /// Columns of the image features: the embedding's and those of each DeepStack layer.
    pub feature_width: u64,
    /// Vision layers whose features are added to the first decoder layers.
    pub deepstack: u64,
    /// Layers of the vision tower.
    pub layers: u64,
    /// Its width.
    pub hidden_size: u64,
    /// The width of its feed-forward.
    pub intermediate_size: u64,
    /// Its attention heads.
    pub heads: u64,
    /// Its weights, part of the model's total.
    pub parameters: u64,
}

impl Image {
    /// What the image itself goes through.
    pub fn spec(&self) -> ImageSpec {
        ImageSpec {
            patch_size: self.patch_size as usize,
            temporal_patch_size: self.temporal_patch_size as usize,
            merge_size: self.merge_size as usize,
            min_pixels: self.min_pixels,
            max_pixels: self.max_pixels,
            mean: self.mean.map(|mean| mean as f32),
            std: self.std.map(|std| std as f32),
        }
    }

    /// Bytes that an image of this grid holds during a prompt: its patches, and its features in the tower's output, in a
    /// list of all, and in the decoder's input.
    pub fn held_bytes(&self, grid: Grid) -> u64 {
        let patches = (grid.patches() as u64).saturating_mul(self.spec().patch_width() as u64);
        let features = (grid.tokens(self.merge_size as usize) as u64).saturating_mul(self.feature_width);
        features.saturating_mul(3).saturating_add(patches).saturating_mul(4)
    }
}

/// A filter of resizing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resample {
    /// Cubic convolution.
    Bicubic,
}

impl Manifest {
    /// Bytes that a run of the vision tower over an image of so many patches takes beside its weights: activations,
    /// and in plain graphs the scores of every pair of patches, before and after the softmax.
    pub fn vision_run_bytes(&self, image: &Image, patches: u64) -> u64 {
        // The stream, its norm, queries, keys, values and the products of a feed-forward stand side by side; the tower is
        // computed in float32 whatever it is stored in.
        let width = [(6, image.hidden_size), (2, image.intermediate_size), (1, image.feature_width)]
            .into_iter()
            .fold(0_u64, |sum, (count, width)| sum.saturating_add(width.saturating_mul(count)));
        let scores = match self.flavour {
            Flavour::Fused => 0,
            Flavour::Plain => image.heads.saturating_mul(2).saturating_mul(patches),
        };
        width.saturating_add(scores).saturating_mul(patches).saturating_mul(4)
    }

    /// A model that takes images has everything that it takes for that, and no other model has any of it.
    pub(super) fn check_images(&self) -> Result<()> {
        let of = |role| self.graphs.iter().find(|graph| graph.role == role);
        let (decoder, vision) = (of(GraphRole::Decoder), of(GraphRole::Vision));
        let parts = [
            ("a vision graph", vision.is_some()),
            (
                "a decoder with image features",
                decoder.is_some_and(|graph| graph.port(PortRole::ImageFeatures).is_some()),
            ),
            (
                "a decoder with positions in three directions",
                decoder.is_some_and(|graph| graph.port(PortRole::MropePositionIds).is_some()),
            ),
        ];
        for (part, there) in parts {
            if there != self.image.is_some() {
                let (with, without) = if there { (part, "`image`") } else { ("`image`", part) };
                return Err(Error::new(format!("its manifest.json names {with} and not {without}")).hint(EXPORT_AGAIN));
            }
        }
        let Some(image) = &self.image else { return Ok(()) };
        image.spec().check()?;
        let numbers = [PortRole::PixelValues, PortRole::ImageFeatures];
        let ports = self.graphs.iter().flat_map(|graph| graph.inputs.iter().chain(&graph.outputs));
        match ports.filter(|port| numbers.contains(&port.role)).find(|port| !port.dtype.is_float()) {
            Some(port) => {
                Err(Error::new(format!("its manifest.json gives `{}` an integer type", port.name)).hint(EXPORT_AGAIN))
            }
            None => Ok(()),
        }
    }
}
