//! Packages that are derived from a cell's: made once, kept in a folder, found again by what they were made of.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::setup::Setup;
use crate::cell::Backend;
use crate::digest;
use crate::error::{Context, Error, Result};
use crate::loader::pack::CodecChoice;
use crate::package::Package;
use crate::protocol::{FactValue, Reporter};
use crate::runtime::Runtime;

/// What a derived package's folder says of how it was made, besides being a package.
const EVIDENCE: &str = "derived.json";

/// Figures and words by name; each is named in `metrics::FACTS`.
pub type Evidence = BTreeMap<String, FactValue>;

/// What a derivation changes, in the order in which derivations follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Layers, experts, tokens.
    Surgery,
    /// How caches are stored.
    Caches,
    /// Which operators nodes are.
    Operators,
    /// How weights are stored: packed, or compiled with the graph. One of them at a time.
    Storage,
}

impl Stage {
    /// The knob's name in messages.
    pub fn knob(self) -> &'static str {
        match self {
            Self::Surgery => "surgery",
            Self::Caches => "form of the caches",
            Self::Operators => "operators of the graph",
            Self::Storage => "form of the package",
        }
    }
}

/// An edit of a package that makes another one.
pub trait Derivation: fmt::Debug + Send + Sync {
    /// What it changes.
    fn stage(&self) -> Stage;

    /// What is done, with every setting and a version of the code: equal descriptions make equal packages.
    fn describe(&self) -> String;

    /// The same with shards that are compressed like that, of a derivation that makes shards.
    fn with_codec(&self, _codec: CodecChoice) -> Option<Arc<dyn Derivation>> {
        None
    }

    /// Makes the package in a folder that does not exist, which appears when it is whole; returns evidence of what was
    /// done.
    ///
    /// # Errors
    /// What cannot be done with the package (`unsupported`), a disk that is full.
    fn derive(&self, package: &Package, folder: &Path, workshop: &Workshop) -> Result<Evidence>;
}

/// What derivations may use.
pub struct Workshop<'a> {
    /// The loaded library.
    pub runtime: &'a Runtime,
    /// On which backend the cell runs.
    pub backend: &'a Backend,
    /// Threads of one operator.
    pub threads: u32,
    /// Progress and warnings.
    pub report: &'a Reporter,
}

/// The package that an arm runs.
#[derive(Debug)]
pub struct Derived {
    /// The package.
    pub package: Package,
    /// What its derivations said.
    pub evidence: Evidence,
}

/// Makes what an arm needs and is not there yet.
///
/// # Errors
/// As [`Derivation::derive`].
pub fn prepare(setup: &Setup, folder: &Path, workshop: &Workshop) -> Result<Derived> {
    walk(setup, folder, Some(workshop))
}

/// What an arm runs, all of it made before.
///
/// # Errors
/// A package that is not there or cannot be opened.
pub fn find(setup: &Setup, folder: &Path) -> Result<Derived> {
    walk(setup, folder, None)
}

fn walk(setup: &Setup, folder: &Path, workshop: Option<&Workshop>) -> Result<Derived> {
    let mut derived = Derived { package: Package::open(&setup.package)?, evidence: Evidence::new() };
    for step in &setup.steps {
        let target = target(folder, &derived.package, &**step);
        if !target.join(EVIDENCE).is_file() {
            let Some(workshop) = workshop else {
                return Err(Error::new(format!("`{}` is not there", target.display()))
                    .hint("it was removed during the run; start the run again with `--resume`"));
            };
            make(&derived.package, &**step, folder, &target, workshop)?;
        }
        let path = target.join(EVIDENCE);
        let text = fs::read(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        let evidence: Evidence =
            serde_json::from_slice(&text).with_context(|| format!("cannot understand `{}`", path.display()))?;
        derived.evidence.extend(evidence);
        derived.package = Package::open(&target)?;
    }
    Ok(derived)
}

/// Readable, and told apart by what it was made of and how.
fn target(folder: &Path, package: &Package, step: &dyn Derivation) -> PathBuf {
    let description = step.describe();
    let word: String = description.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
    let hash = digest::sha256(format!("{}\n{description}\n", package.hash));
    let model: String = package
        .manifest
        .model
        .id
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' })
        .collect();
    folder.join(format!("{}-{}-{word}-{}", model.trim_start_matches('.'), package.manifest.precision.name, &hash[..12]))
}

/// One process makes it; others that want it wait.
fn make(package: &Package, step: &dyn Derivation, folder: &Path, target: &Path, workshop: &Workshop) -> Result<()> {
    let failed = || format!("cannot write into the folder of derived packages `{}`", folder.display());
    fs::create_dir_all(folder).with_context(failed)?;
    let mut lock_path = target.to_owned().into_os_string();
    lock_path.push(".lock");
    let lock_path = PathBuf::from(lock_path);
    let lock = File::create(&lock_path).with_context(failed)?;
    lock.lock().with_context(failed)?;
    if target.join(EVIDENCE).is_file() {
        let _ = fs::remove_file(lock_path);
        return Ok(());
    }
    // What was left without its evidence was not finished.
    if target.exists() {
        fs::remove_dir_all(target).with_context(failed)?;
    }
    workshop.report.phase("derive")?;
    let evidence = step
        .derive(package, target, workshop)
        .with_context(|| format!("cannot derive a package from `{}` ({})", package.root.display(), step.describe()))?;
    let text = serde_json::to_vec_pretty(&evidence).context("cannot express what was derived")?;
    let mut file = tempfile::NamedTempFile::new_in(target).with_context(failed)?;
    std::io::Write::write_all(&mut file, &text).with_context(failed)?;
    file.as_file().sync_all().with_context(failed)?;
    file.persist(target.join(EVIDENCE)).map_err(|error| error.error).with_context(failed)?;
    let _ = fs::remove_file(lock_path);
    Ok(())
}
