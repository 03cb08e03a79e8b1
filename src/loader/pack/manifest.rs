//! The manifest of a pack: the source's, with other files.

use super::rewrite::DOMAIN;
use super::write::{DATA, MODEL};
use crate::package::shards::{self, Form};
use crate::package::{FileEntry, Graph, GraphRole, Manifest, Pack, Package};

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
