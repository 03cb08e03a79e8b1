//! A synthetic pack for tests: an index, its shards in a temporary folder, and the bytes that records should hold.

use std::fs;
use std::sync::Arc;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tempfile::TempDir;
use xxhash_rust::xxh3::xxh3_64;

use super::RecordId;
use crate::package::shards::{
    ALIGNMENT, Codec, FORMAT, Form, Made, NBits, Record, Segment, ShardFile, ShardIndex, What,
};

/// Bytes of a layer's records.
#[derive(Debug, Clone, Default)]
pub(super) struct Layer {
    pub dense: Vec<usize>,
    pub experts: Vec<usize>,
}

impl Layer {
    pub fn new(dense: &[usize], experts: usize, bytes: usize) -> Self {
        Self { dense: dense.to_vec(), experts: vec![bytes; experts] }
    }
}

pub(super) struct Pack {
    pub folder: TempDir,
    pub index: Arc<ShardIndex>,
    pub bytes: Vec<Vec<u8>>,
}

impl Pack {
    /// Writes a pack of one file and one segment a layer.
    pub fn new(layers: &[Layer]) -> Self {
        Self::coded(layers, |_| Codec::None)
    }

    /// As [`Pack::new`], with records stored by no codec or as LZ4.
    pub fn coded(layers: &[Layer], codec: impl Fn(RecordId) -> Codec) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let mut index = ShardIndex {
            format: FORMAT,
            form: Form::Operators,
            made: Made {
                layout: "test".to_owned(),
                architecture: "test".to_owned(),
                program: "test".to_owned(),
                source: String::new(),
            },
            files: Vec::new(),
            segments: Vec::new(),
            records: Vec::new(),
            routers: Vec::new(),
        };
        let mut contents = Vec::new();
        for (number, layer) in layers.iter().enumerate() {
            let mut file = Vec::new();
            let first_record = index.records.len();
            let sizes = layer.dense.iter().map(|bytes| (*bytes, false));
            for (place, (bytes, expert)) in sizes.chain(layer.experts.iter().map(|bytes| (*bytes, true))).enumerate() {
                let mut data = vec![0; bytes];
                random.fill_bytes(&mut data);
                let codec = codec(index.records.len());
                if codec != Codec::None {
                    // Something to compress.
                    data.iter_mut().for_each(|byte| *byte &= 1);
                }
                let stored = if codec == Codec::None { data.clone() } else { lz4_flex::block::compress(&data) };
                let shape = NBits { rows: 1, columns: 32, block: 32, bits: 4, zero_points: false, half_scales: false };
                let what = if expert {
                    let expert = (place - layer.dense.len()) as u32;
                    What::Expert { mixture: format!("mixture.{number}"), expert, gate_up: shape, down: shape }
                } else {
                    What::Tensor { data_type: 2, dims: vec![bytes as u64] }
                };
                index.records.push(Record {
                    name: format!("layer.{number}.{place}"),
                    file: number,
                    offset: file.len() as u64,
                    stored: stored.len() as u64,
                    bytes: bytes as u64,
                    codec,
                    hash: format!("{:016x}", xxh3_64(&stored)),
                    layer: Some(number as u32),
                    what,
                });
                file.extend_from_slice(&stored);
                file.resize(file.len().next_multiple_of(ALIGNMENT as usize), 0);
                contents.push(data);
            }
            let name = format!("layer-{number}.shard");
            fs::write(folder.path().join(&name), &file).unwrap();
            index.files.push(ShardFile { file: name, bytes: file.len() as u64 });
            index.segments.push(Segment {
                file: format!("layer-{number}.onnx"),
                layer: Some(number as u32),
                takes: Vec::new(),
                makes: Vec::new(),
                first_record,
                records: index.records.len() - first_record,
            });
        }
        Self { folder, index: Arc::new(index), bytes: contents }
    }

    /// Dense records, or experts.
    pub fn ids(&self, experts: bool) -> Vec<RecordId> {
        let records = &self.index.records;
        (0..records.len()).filter(|id| super::is_expert(&records[*id]) == experts).collect()
    }

    /// The memory that all records take.
    pub fn total(&self) -> u64 {
        self.index.records.iter().map(super::slot).sum()
    }

    pub fn shard(&self, number: usize) -> std::path::PathBuf {
        self.folder.path().join(&self.index.files[number].file)
    }
}
