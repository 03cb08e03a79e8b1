//! The manifest of a pack: the source's, with other files.

use super::rewrite::DOMAIN;
use super::write::{DATA, MODEL};
use crate::package::shards::{self, Form};
use crate::package::{FileEntry, Graph, GraphRole, Manifest, Pack, Package};

/// Files of the source that a pack has too, with their sizes: tokenizer, template, graphs other than the decoder.
pub fn copied(package: &Package, decoder: &Graph) -> Vec<(String, u64)> {
    let manifest = &package.manifest;
    let others: Vec<&String> = manifest
        .graphs
        .iter()
        .filter(|graph| graph.file != decoder.file)
        .flat_map(|graph| std::iter::once(&graph.file).chain(&graph.external_data))
        .collect();
    let of_decoder = |path: &String| *path == decoder.file || decoder.external_data.contains(path);
    // Graphs that the manifest does not name are for other programs, and take the decoder's weights.
    let foreign = |path: &String| path.ends_with(".onnx") || path == "genai_config.json";
    let wanted = |path: &String| others.contains(&path) || !(of_decoder(path) || foreign(path));
    let mut files: Vec<(String, u64)> =
        manifest.files.iter().filter(|file| wanted(&file.path)).map(|file| (file.path.clone(), file.bytes)).collect();
    // Folders of onnxruntime-genai have it and no list of files.
    let special = "tokenizer_config.json";
    if !files.iter().any(|(path, _)| path == special)
        && let Ok(found) = package.root.join(special).metadata()
    {
        files.push((special.to_owned(), found.len()));
    }
    files
}

/// The manifest of a pack with these files.
pub fn of_pack(package: &Package, decoder: &Graph, form: Form, files: &[FileEntry]) -> Manifest {
    let mut manifest = package.manifest.clone();
    for graph in manifest.graphs.iter_mut().filter(|graph| graph.role == GraphRole::Decoder) {
        if graph.file == decoder.file {
            graph.file = if form == Form::Operators { MODEL } else { shards::FILE }.to_owned();
            graph.external_data = files.iter().filter(|file| file.path == DATA).map(|file| file.path.clone()).collect();
        }
    }
    if form == Form::Operators {
        manifest.opsets.insert(DOMAIN.0.to_owned(), DOMAIN.1 as u32);
    }
    manifest.files = files.to_vec();
    manifest.pack = Some(Pack { index: shards::FILE.to_owned(), form });
    manifest
}
