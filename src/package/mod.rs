//! What an exported model's folder promises (`docs/package.md`).

mod chat;
pub mod edition;
mod genai;
mod image;
mod kept;
mod manifest;
pub mod npy;
pub mod onnx;
pub mod shards;
mod special;

pub use chat::{ChatMessage, ChatTemplate, Content, Part};
pub use image::{Image, Resample};
pub use kept::{KEPT_TOKENS, KeptTokens};
pub use manifest::*;
pub use special::SpecialTexts;

use manifest::EXPORT_AGAIN;

use std::fs;
use std::path::{Component, Path, PathBuf};

use rayon::prelude::*;

use crate::cell::{Flavour, Precision, Workload};
use crate::digest;
use crate::error::{Context, Error, Result};

/// A model's folder whose manifest was read and whose files were found at their sizes.
#[derive(Debug, Clone)]
pub struct Package {
    /// The folder, absolute.
    pub root: PathBuf,
    /// What it promises.
    pub manifest: Manifest,
    /// SHA-256 of the manifest's bytes, in hex: it holds the files' hashes, so it names the whole package.
    pub hash: String,
}

impl Package {
    /// Reads the manifest, or `genai_config.json` of a folder that onnxruntime-genai's builder made, and checks that
    /// every file is there at its size. Contents are checked by [`Package::verify`].
    ///
    /// # Errors
    /// A missing, truncated or foreign folder, named with the remedy.
    pub fn open(root: &Path) -> Result<Self> {
        let failed = || format!("cannot open the model package `{}`", root.display());
        if !root.is_dir() {
            return Err(Error::new(failed())
                .because(std::io::Error::other("there is no such folder"))
                .hint("export the model first: `python -m ortbench_export export CHECKPOINT --output FOLDER`"));
        }
        let root = fs::canonicalize(root).with_context(failed)?;
        let path = root.join("manifest.json");
        if !path.exists() && root.join(genai::CONFIG).exists() {
            return genai::open(&root).with_context(failed);
        }
        let bytes = fs::read(&path).with_context(|| format!("cannot read `{}`", path.display())).map_err(|error| {
            Error::new(failed()).because(error).hint(
                "a package has a manifest.json, written last by the exporter; a folder without it is unfinished \
                 or of another kind",
            )
        })?;
        let manifest = Manifest::parse(&bytes).with_context(failed)?;
        for file in &manifest.files {
            check_size(&root, file).with_context(failed)?;
        }
        let hash = digest::sha256(&bytes);
        Ok(Self { root, manifest, hash })
    }

    /// Reads every file and compares its hash with the manifest's.
    ///
    /// # Errors
    /// The first file that differs, by name.
    pub fn verify(&self) -> Result<()> {
        // One file a thread: hashing is slower than the disks that packages lie on.
        self.manifest.files.par_iter().try_for_each(|file| {
            let path = self.root.join(&file.path);
            let found = digest::sha256_file(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
            if found == file.sha256 {
                return Ok(());
            }
            let cause = format!("its SHA-256 is {found}, the manifest says {}", file.sha256);
            Err(Error::new(format!("`{}` is not the file that its manifest describes", path.display()))
                .because(std::io::Error::other(cause))
                .hint("the file was changed or damaged; export the package again"))
        })
    }

    /// Checks that the package is what a cell names.
    ///
    /// # Errors
    /// Another precision or flavour.
    pub fn expect(&self, precision: Precision, flavour: Flavour) -> Result<()> {
        let (found, graphs) = (self.manifest.precision.name, self.manifest.flavour);
        if (found, graphs) == (precision, flavour) {
            return Ok(());
        }
        Err(Error::unsupported(format!(
            "the package `{}` is {found} {graphs}, the cell asks for {precision} {flavour}",
            self.root.display(),
        ))
        .hint("correct `package`, `precision` or `flavour` in the matrix file"))
    }

    /// The graph that turns token ids into logits.
    ///
    /// # Errors
    /// A package without one.
    pub fn decoder(&self) -> Result<&Graph> {
        self.manifest.graphs.iter().find(|graph| graph.role == GraphRole::Decoder).ok_or_else(|| {
            Error::unsupported(format!("the package `{}` has no decoder graph", self.root.display()))
                .hint("only packages of language models can be run")
        })
    }

    /// The graph that turns an image's patches into features.
    ///
    /// # Errors
    /// A package without one.
    pub fn vision(&self) -> Result<&Graph> {
        let graph = self.manifest.graphs.iter().find(|graph| graph.role == GraphRole::Vision);
        // A manifest with `image` and no such graph is refused when it is read.
        graph.ok_or_else(|| self.takes_no_images())
    }

    /// What to say to an image.
    pub fn takes_no_images(&self) -> Error {
        let model = &self.manifest.model;
        Error::unsupported(format!("the model `{}` ({}) takes no images", model.id, model.architecture))
            .hint("leave the image out, or name a vision-language model")
    }

    /// Tokens of a prompt of this workload that are not its image's.
    ///
    /// # Errors
    /// An image for a model that takes none, of a size that it excludes, or that leaves no token for text.
    pub fn text_tokens(&self, workload: &Workload) -> Result<usize> {
        let Some(size) = workload.image else { return Ok(workload.prompt_tokens as usize) };
        let image = self.manifest.image.as_ref().ok_or_else(|| self.takes_no_images())?;
        let grid = image.spec().grid(u32::from(size.width), u32::from(size.height))?;
        // Behind the token that starts an image, before the one that ends it.
        let taken = grid.tokens(image.merge_size as usize) + 2;
        (workload.prompt_tokens as usize).checked_sub(taken).filter(|left| *left > 0).ok_or_else(|| {
            Error::unsupported(format!(
                "an image of {size} takes {taken} tokens, and the prompt has {}",
                workload.prompt_tokens
            ))
            .hint("raise `prompt_tokens`, or ask for a smaller `image`")
        })
    }

    /// Tokens that random prompts must not hold: those that end, start or pad a text, and those of images.
    pub fn special_tokens(&self) -> Vec<u32> {
        let (tokens, image) = (&self.manifest.tokens, &self.manifest.image);
        let image = image.as_ref().map(|image| [image.image_token, image.vision_start, image.vision_end]);
        tokens.eos.iter().copied().chain(tokens.pad).chain(tokens.bos).chain(image.into_iter().flatten()).collect()
    }

    /// The index of the shards, of a package that is a pack.
    ///
    /// # Errors
    /// An index that contradicts itself, its folder or the manifest, or was made for another machine.
    pub fn shards(&self) -> Result<Option<shards::ShardIndex>> {
        let Some(pack) = &self.manifest.pack else { return Ok(None) };
        let index = shards::ShardIndex::read(&self.root)?;
        if index.form != pack.form {
            return Err(Error::new(format!("the manifest and the index of `{}` differ", self.root.display()))
                .hint(shards::PACK_AGAIN));
        }
        Ok(Some(index))
    }

    /// Bytes of the weights as they are stored: the records of a pack, and the external data of the graphs.
    ///
    /// # Errors
    /// As [`Package::shards`].
    pub fn weights_bytes(&self) -> Result<u64> {
        let index = self.shards()?;
        let external = self.manifest.graphs.iter().flat_map(|graph| &graph.external_data);
        let files = external.filter_map(|name| self.manifest.files.iter().find(|file| file.path == *name));
        // What a graph still names as external data and lies in a shard counts once.
        let shards = index.as_ref().map_or(&[][..], |index| &index.files);
        let apart = files.filter(|file| shards.iter().all(|shard| shard.file != file.path));
        let records = index.iter().flat_map(|index| &index.records).map(|record| record.stored);
        Ok(apart.map(|file| file.bytes).chain(records).fold(0, u64::saturating_add))
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.manifest.files.iter().map(|file| file.bytes).sum()
    }

    /// The tokenizer, if the package has one.
    ///
    /// # Errors
    /// A package without tokenizer, a file that the `tokenizers` library refuses.
    pub fn tokenizer(&self) -> Result<tokenizers::Tokenizer> {
        let Some(name) = &self.manifest.tokenizer else {
            return Err(Error::unsupported(format!("the package `{}` has no tokenizer", self.root.display()))
                .hint("export it from a checkpoint that has a tokenizer.json"));
        };
        let path = self.root.join(name);
        let failed = || format!("cannot read the tokenizer `{}`", path.display());
        let mut tokenizer =
            tokenizers::Tokenizer::from_file(&path).map_err(|error| Error::new(failed()).because(error))?;
        // Training leaves its own lengths in the file.
        tokenizer.with_truncation(None).map_err(|error| Error::new(failed()).because(error))?;
        tokenizer.with_padding(None);
        Ok(tokenizer)
    }

    /// The chat template, if the package has one.
    ///
    /// # Errors
    /// A package without template, a template that does not parse.
    pub fn chat_template(&self) -> Result<ChatTemplate> {
        let Some(name) = &self.manifest.chat_template else {
            return Err(Error::unsupported(format!("the package `{}` has no chat template", self.root.display()))
                .hint("leave `--chat` out, or export the model from a checkpoint that has a template"));
        };
        let path = self.root.join(name);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        let template =
            ChatTemplate::parse(text).with_context(|| format!("cannot use the chat template `{}`", path.display()))?;
        Ok(template.with_special_texts(&SpecialTexts::read(&self.root)?))
    }
}

fn check_size(root: &Path, file: &FileEntry) -> Result<()> {
    let inside = Path::new(&file.path).components().all(|part| matches!(part, Component::Normal(_)));
    if !inside {
        return Err(Error::new(format!("the manifest names `{}`, which leads out of its folder", file.path)));
    }
    let path = root.join(&file.path);
    let size = fs::metadata(&path)
        .with_context(|| format!("cannot find `{}`, which the manifest names", path.display()))
        .map_err(|error| Error::new(format!("`{}` is missing", file.path)).because(error).hint(EXPORT_AGAIN))?
        .len();
    if size != file.bytes {
        return Err(Error::new(format!("`{}` has {size} bytes, its manifest says {}", path.display(), file.bytes))
            .hint(EXPORT_AGAIN));
    }
    Ok(())
}
