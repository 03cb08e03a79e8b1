//! The derivation: what a session makes of a graph and its weights when it is loaded, saved as a package.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

use super::saved::{self, Saved};
use crate::cell::RuntimeRef;
use crate::digest;
use crate::error::{Context, Error, Result};
use crate::optimizations::{Derivation, Evidence, Stage, Workshop};
use crate::package::edition::{self, Data, Unfinished};
use crate::package::onnx;
use crate::package::{Graph, Manifest, Package};
use crate::probe::cpu::Cpu;
use crate::runtime::{Arena, Session, SessionOptions, catalog};

/// Changes with what is written.
const VERSION: u32 = 1;
/// Smaller constants stand in the graph.
const OUTSIDE_FROM: usize = 1024;
/// Bytes on disk for a byte of the decoder's files, while it is compiled.
const ROOM: f64 = 2.5;

const MODEL: &str = "model.onnx";
const DATA: &str = "model.onnx.data";
/// What ONNX Runtime writes, before it is brought in order.
const SAVED: &str = "saved.onnx";
const SAVED_DATA: &str = "saved.onnx.data";

/// Compiles the decoder's graph for one build of ONNX Runtime on one kind of processor.
#[derive(Debug)]
pub struct Compiled {
    /// The library, by its contents: kernels and their layouts are its own.
    pub library: String,
    /// The processor, by which kernels are chosen.
    pub processor: String,
}

impl Compiled {
    /// For that runtime on this machine.
    ///
    /// # Errors
    /// A runtime that is not installed.
    pub fn of(runtime: &RuntimeRef) -> Result<Self> {
        let library = catalog::find(runtime)?;
        let cpu = Cpu::now();
        let version = library.version.as_deref().unwrap_or("of a path");
        let hash = hash_of(&library.path)?;
        Ok(Self {
            library: format!("{version} ({})", &hash[..16]),
            processor: format!("{} with {}", cpu.model.as_deref().unwrap_or(std::env::consts::ARCH), cpu.flags),
        })
    }
}

/// The hash of a library, read once a process.
fn hash_of(library: &Path) -> Result<String> {
    static KNOWN: Mutex<Option<HashMap<PathBuf, String>>> = Mutex::new(None);
    let mut known = KNOWN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let known = known.get_or_insert_default();
    if let Some(hash) = known.get(library) {
        return Ok(hash.clone());
    }
    let hash = digest::sha256_file(library).with_context(|| format!("cannot read `{}`", library.display()))?;
    known.insert(library.to_owned(), hash.clone());
    Ok(hash)
}

impl Derivation for Compiled {
    fn stage(&self) -> Stage {
        Stage::Storage
    }

    fn describe(&self) -> String {
        format!("compiled by ONNX Runtime {} for {}, version {VERSION}", self.library, self.processor)
    }

    fn derive(&self, package: &Package, folder: &Path, workshop: &Workshop) -> Result<Evidence> {
        let start = Instant::now();
        let decoder = package.decoder()?;
        check_room(package, decoder, folder)?;
        let file = package.root.join(&decoder.file);
        let graph = fs::read(&file).with_context(|| format!("cannot read `{}`", file.display()))?;
        let before = onnx::read(&graph)?.0.node.len();
        let unfinished = Unfinished::beside(folder)?;
        let into = unfinished.path();
        save(package, decoder, into, workshop)?;
        let saved = bring_in_order(into)?;
        write_package(package, decoder, &saved, into)?;
        fs::rename(into, folder).with_context(|| format!("cannot give `{}` its name", folder.display()))?;
        let bytes = saved.files.iter().map(|file| file.bytes).sum::<u64>();
        Ok(Evidence::from([
            ("compiled_nodes_before".to_owned(), (before as u64).into()),
            ("compiled_nodes_after".to_owned(), saved.nodes.into()),
            ("compiled_prepacked_constants".to_owned(), saved.prepacked.into()),
            ("compiled_prepacked_bytes".to_owned(), saved.prepacked_bytes.into()),
            ("compiled_bytes".to_owned(), bytes.into()),
            ("compile_seconds".to_owned(), start.elapsed().as_secs_f64().into()),
        ]))
    }
}

/// Refuses before anything is written what would fill the disk.
fn check_room(package: &Package, decoder: &Graph, folder: &Path) -> Result<()> {
    let of_decoder = |path: &String| *path == decoder.file || decoder.external_data.contains(path);
    let bytes: u64 = package.manifest.files.iter().filter(|file| of_decoder(&file.path)).map(|file| file.bytes).sum();
    let needed = (bytes as f64 * ROOM) as u64;
    let place = folder.parent().unwrap_or(Path::new("."));
    let Ok(disk) = rustix::fs::statvfs(place) else { return Ok(()) };
    let free = disk.f_bavail * disk.f_frsize;
    if free < needed {
        let sizes = (crate::units::bytes(needed), crate::units::bytes(free));
        return Err(Error::environment(format!(
            "a compiled package needs {}, and `{}` has {}",
            sizes.0,
            place.display(),
            sizes.1
        ))
        .hint("free some room, or write `compile: off`"));
    }
    Ok(())
}

/// Lets a session write the graph that it optimized, with its weights as they are and as its kernels want them.
fn save(package: &Package, decoder: &Graph, into: &Path, workshop: &Workshop) -> Result<()> {
    let config = [
        ("session.save_external_prepacked_constant_initializers", "1".to_owned()),
        ("session.optimized_model_external_initializers_file_name", SAVED_DATA.to_owned()),
        ("session.optimized_model_external_initializers_min_size_in_bytes", OUTSIDE_FROM.to_string()),
    ];
    let options = SessionOptions {
        config: config.map(|(key, value)| (key.to_owned(), value)).into(),
        save: Some(into.join(SAVED)),
        // Nothing runs.
        arena: Arena::Off,
        ..SessionOptions::with_threads(workshop.threads)
    };
    let session = Session::open(workshop.runtime, &package.root.join(&decoder.file), workshop.backend, &options)?;
    drop(session);
    Ok(())
}

/// Writes the saved graph and its weights anew, each where a package has it.
fn bring_in_order(into: &Path) -> Result<Saved> {
    let (graph, weights) = (into.join(SAVED), into.join(SAVED_DATA));
    let failed = || format!("cannot use what ONNX Runtime saved as `{}`", graph.display());
    let mut model = onnx::read_whole(&fs::read(&graph).with_context(failed)?).with_context(failed)?;
    let mut data = Data::create(&into.join(DATA))?;
    let mut saved = Saved::default();
    if weights.is_file() {
        let from = File::options().read(true).write(true).open(&weights).with_context(failed)?;
        let constants = model.graph.iter_mut().flat_map(|graph| &mut graph.initializer);
        for tensor in constants.filter(|tensor| tensor.location() == Some(SAVED_DATA)) {
            saved::bring(tensor, &from, &mut data, DATA, &mut saved).with_context(failed)?;
        }
        fs::remove_file(&weights).with_context(failed)?;
    }
    fs::remove_file(&graph).with_context(failed)?;
    saved.nodes = model.graph.as_ref().map_or(0, |graph| graph.node.len() as u64);
    saved.files.push(edition::write_file(into, MODEL, &onnx::write(&model))?);
    saved.files.extend(data.finish(DATA)?);
    Ok(saved)
}

fn write_package(package: &Package, decoder: &Graph, saved: &Saved, into: &Path) -> Result<()> {
    let mut manifest = package.manifest.clone();
    manifest.files = saved.files.clone();
    for (name, _) in edition::copied(package, decoder) {
        manifest.files.push(edition::link(package, into, &name)?);
    }
    for graph in manifest.graphs.iter_mut().filter(|graph| graph.file == decoder.file) {
        graph.file = MODEL.to_owned();
        graph.external_data = saved.files.iter().map(|file| file.path.clone()).filter(|path| path != MODEL).collect();
    }
    let mut text = serde_json::to_vec_pretty(&manifest).context("cannot express the manifest")?;
    text.push(b'\n');
    Manifest::parse(&text).context("the compiled manifest contradicts itself; this is a bug")?;
    edition::write_file(into, "manifest.json", &text).map(|_| ())
}
