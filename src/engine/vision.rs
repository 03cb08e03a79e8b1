//! The vision tower: patches of images to the features that the decoder places at the image's tokens.

use crate::cell::Backend;
use crate::engine::prompt::Prompt;
use crate::error::{Error, Result};
use crate::package::{Image, Package, Port, PortRole};
use crate::runtime::{Bindings, BufferId, Runtime, Session, SessionOptions};
use crate::vision::Patches;

/// Image features `[image_tokens, feature_width]`, all images of a batch in the order of their tokens.
#[derive(Debug, Clone, Default)]
pub struct Features {
    pub(super) values: Vec<f32>,
    width: usize,
}

impl Features {
    /// Image tokens.
    pub fn rows(&self) -> usize {
        self.values.len() / self.width.max(1)
    }

    /// Takes the first rows out, as many as there are.
    pub(super) fn take_rows(&mut self, rows: usize) -> Self {
        let later = self.values.split_off((rows * self.width).min(self.values.len()));
        Self { values: std::mem::replace(&mut self.values, later), width: self.width }
    }
}

/// The loaded tower.
#[derive(Debug)]
pub(super) struct Vision {
    pub session: Session,
    image: Image,
    pixels: Port,
    grid: Port,
    features: Port,
    bound: Option<Bound>,
}

/// Buffers for an image of one size: the images of a workload are alike.
#[derive(Debug)]
struct Bound {
    bindings: Bindings,
    shape: [usize; 2],
    pixels: BufferId,
    grid: BufferId,
    features: BufferId,
}

impl Vision {
    /// Loads the package's vision graph.
    pub fn load(
        runtime: &Runtime,
        package: &Package,
        backend: &Backend,
        options: &SessionOptions,
        image: &Image,
    ) -> Result<Self> {
        let graph = package.vision()?;
        let session = Session::open(runtime, &package.root.join(&graph.file), backend, options)?;
        super::model::agree(&session, graph)?;
        Ok(Self {
            session,
            image: image.clone(),
            pixels: graph.need(PortRole::PixelValues, "the pixels")?,
            grid: graph.need(PortRole::ImageGrid, "the grid of patches")?,
            features: graph.need(PortRole::ImageFeatures, "the features")?,
            bound: None,
        })
    }

    /// The features of every image of the prompts, one run an image.
    pub fn encode(&mut self, prompts: &[Prompt]) -> Result<Features> {
        let mut features = Features { values: Vec::new(), width: self.image.feature_width as usize };
        for patches in prompts.iter().flat_map(|prompt| &prompt.images) {
            self.encode_one(patches, &mut features.values)?;
        }
        Ok(features)
    }

    fn encode_one(&mut self, patches: &Patches, into: &mut Vec<f32>) -> Result<()> {
        let shape = [patches.values.nrows(), patches.values.ncols()];
        let tokens = patches.grid.tokens(self.image.merge_size as usize);
        let width = self.image.feature_width as usize;
        if self.bound.as_ref().is_none_or(|bound| bound.shape != shape) {
            // The old buffers first: two of the largest images need not fit at once.
            self.bound = None;
            let mut bindings = Bindings::new(&self.session)?;
            let pixels = bindings.allocate(shape[0] * shape[1] * self.pixels.dtype.size())?;
            let grid = bindings.allocate(3 * size_of::<i64>())?;
            let features = bindings.allocate(tokens * width * self.features.dtype.size())?;
            bindings.bind_input(0, &self.pixels.name, pixels, self.pixels.dtype, &shape)?;
            bindings.bind_input(0, &self.grid.name, grid, self.grid.dtype, &[1, 3])?;
            bindings.bind_output(0, &self.features.name, features, self.features.dtype, &[tokens, width])?;
            self.bound = Some(Bound { bindings, shape, pixels, grid, features });
        }
        let Some(bound) = &mut self.bound else { return Err(Error::new("the vision tower has no buffers")) };
        let values = patches.values.as_slice().ok_or_else(|| Error::new("patches do not lie in order"))?;
        bound.bindings.write_f32(bound.pixels, self.pixels.dtype, values);
        bound.bindings.write::<i64>(bound.grid, 3).copy_from_slice(&patches.grid.thw());
        bound.bindings.run(&mut self.session)?;
        bound.bindings.read_f32(bound.features, self.features.dtype, 0..tokens * width, into);
        Ok(())
    }
}
