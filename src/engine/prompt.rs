//! Prompts: tokens and the images that stand in them, of an exact number of tokens.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::cell::{ImageSize, PromptSource, Workload};
use crate::engine::sampling::random_tokens;
use crate::error::{Context, Error, Result};
use crate::package::{Image, Package};
use crate::vision::{self, Grid, Patches, Positions, RgbImage};

/// One sequence's prompt.
#[derive(Debug, Clone, Default)]
pub struct Prompt {
    /// Token ids; an image's token stands as often as the image has merged patches.
    pub tokens: Vec<u32>,
    /// The images, in the order of their tokens.
    pub images: Vec<Patches>,
}

impl Prompt {
    /// A prompt of text alone.
    pub fn text(tokens: Vec<u32>) -> Self {
        Self { tokens, images: Vec::new() }
    }

    /// A prompt in which each image's token stands once. Where there is none at all, the images come first.
    ///
    /// # Errors
    /// Another number of image tokens than of images.
    pub fn with_images(tokens: &[u32], images: Vec<Patches>, image: &Image) -> Result<Self> {
        let mut tokens = tokens.to_vec();
        if !tokens.contains(&image.image_token) {
            let before = images.iter().flat_map(|_| [image.vision_start, image.image_token, image.vision_end]);
            tokens.splice(0..0, before);
        }
        let grids: Vec<Grid> = images.iter().map(|patches| patches.grid).collect();
        let tokens = vision::expand_image_tokens(&tokens, &grids, image.image_token, image.merge_size as usize)?;
        Ok(Self { tokens, images })
    }

    /// M-RoPE positions of the tokens.
    ///
    /// # Errors
    /// Another number of image tokens than the images have.
    pub fn positions(&self, image: &Image) -> Result<Positions> {
        let grids: Vec<Grid> = self.images.iter().map(|patches| patches.grid).collect();
        vision::positions(&self.tokens, &grids, image.image_token, image.merge_size as usize)
    }
}

/// Gives a batch of prompts, each of exactly the same number of tokens.
///
/// Random prompts differ from row to row. A text is tokenized and cut; one that is too short is repeated; each row
/// starts a little later in it, so that rows differ. A workload with an image puts one at the start of every row; its
/// tokens count among the prompt's.
#[derive(Debug)]
pub struct Prompter {
    kind: Kind,
    picture: Option<Picture>,
    batch: usize,
    /// Tokens of a row, those of its image excluded.
    tokens: usize,
}

#[derive(Debug)]
enum Kind {
    Ids(Vec<Vec<u32>>),
    Text { text: String, tokenizer: Box<tokenizers::Tokenizer> },
}

/// The rows' images.
#[derive(Debug)]
struct Picture {
    /// One a row.
    pixels: Vec<RgbImage>,
    image: Image,
}

/// Tokens by which a row starts later in the text than the one before it.
const STRIDE: usize = 17;

impl Prompter {
    /// Draws the ids and the images, or reads the text and the package's tokenizer.
    ///
    /// # Errors
    /// A text that cannot be read, a package without tokenizer, an image for a model that takes none or that has more
    /// tokens than the prompt.
    pub fn open(package: &Package, workload: &Workload) -> Result<Self> {
        let manifest = &package.manifest;
        let batch = workload.batch as usize;
        let seed = match &workload.prompt {
            PromptSource::RandomTokens { seed } => *seed,
            PromptSource::TextFile { .. } => 0,
        };
        let picture = workload.image.map(|size| Picture::draw(package, size, batch, seed)).transpose()?;
        let tokens = package.text_tokens(workload)?;
        let kind = match &workload.prompt {
            PromptSource::RandomTokens { seed } => {
                let mut random = ChaCha8Rng::seed_from_u64(*seed);
                let exclude = package.special_tokens();
                let vocab = manifest.shape.vocab_size as u32;
                Kind::Ids((0..batch).map(|_| random_tokens(&mut random, tokens, vocab, &exclude)).collect())
            }
            PromptSource::TextFile { path } => Kind::Text {
                text: std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read the prompt `{}`", path.display()))?,
                tokenizer: Box::new(package.tokenizer()?),
            },
        };
        Ok(Self { kind, picture, batch, tokens })
    }

    /// The prompts' texts as ids, without images; a text is tokenized on every call.
    ///
    /// # Errors
    /// A text that has no tokens.
    fn ids(&self) -> Result<Vec<Vec<u32>>> {
        match &self.kind {
            Kind::Ids(ids) => Ok(ids.clone()),
            Kind::Text { text, tokenizer } => {
                let encoding = tokenizer
                    .encode(text.as_str(), false)
                    .map_err(|error| Error::new("cannot tokenize the prompt").because(error))?;
                let ids = encoding.get_ids();
                if ids.is_empty() {
                    return Err(Error::new("the prompt's text has no tokens"));
                }
                let row = |row: usize| ids.iter().cycle().skip(row * STRIDE % ids.len()).take(self.tokens).copied();
                Ok((0..self.batch).map(|number| row(number).collect()).collect())
            }
        }
    }

    /// Resizes, normalizes and cuts the rows' images; as many empty rows where there are none.
    ///
    /// # Errors
    /// An image that the model's settings exclude.
    pub fn images(&self) -> Result<Vec<Vec<Patches>>> {
        match &self.picture {
            None => Ok(vec![Vec::new(); self.batch]),
            Some(picture) => {
                let spec = picture.image.spec();
                picture.pixels.iter().map(|pixels| Ok(vec![vision::preprocess(pixels, &spec)?])).collect()
            }
        }
    }

    /// The prompts with these images; a text is tokenized on every call.
    ///
    /// # Errors
    /// A text that has no tokens.
    pub fn prompts_with(&self, images: Vec<Vec<Patches>>) -> Result<Vec<Prompt>> {
        let rows = self.ids()?.into_iter().zip(images);
        match &self.picture {
            None => Ok(rows.map(|(ids, _)| Prompt::text(ids)).collect()),
            Some(picture) => rows.map(|(ids, images)| Prompt::with_images(&ids, images, &picture.image)).collect(),
        }
    }

    /// The prompts, images and all.
    ///
    /// # Errors
    /// As [`Prompter::images`] and [`Prompter::prompts_with`].
    pub fn prompts(&self) -> Result<Vec<Prompt>> {
        self.prompts_with(self.images()?)
    }
}

impl Picture {
    fn draw(package: &Package, size: ImageSize, batch: usize, seed: u64) -> Result<Self> {
        let image = package.manifest.image.clone().ok_or_else(|| package.takes_no_images())?;
        let (width, height) = (u32::from(size.width), u32::from(size.height));
        let pixels = (0..batch as u64).map(|row| vision::synthetic(width, height, seed.wrapping_add(row))).collect();
        Ok(Self { pixels, image })
    }
}
