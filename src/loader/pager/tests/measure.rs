//! Figures of this machine's disk, printed and not judged:
//! `ORTBENCH_MEASURE=FILE cargo test --lib loader::pager::tests::measure -- --ignored --nocapture`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Instant;

use xxhash_rust::xxh3::xxh3_64;

use super::*;
use crate::loader::io::bandwidth::bandwidth;
use crate::package::shards::{Codec, FORMAT, Form, Made, Record, ShardFile, ShardIndex, What};

/// An index whose records are the parts of one large file.
fn index_over(path: &std::path::Path, bytes: u64) -> ShardIndex {
    let file = File::open(path).unwrap();
    let length = file.metadata().unwrap().len();
    let mut data = vec![0; bytes as usize];
    let records = (0..length / bytes).map(|number| {
        file.read_exact_at(&mut data, number * bytes).unwrap();
        Record {
            name: format!("part.{number}"),
            file: 0,
            offset: number * bytes,
            stored: bytes,
            bytes,
            codec: Codec::None,
            hash: format!("{:016x}", xxh3_64(&data)),
            layer: Some(number as u32 / 4),
            what: What::Tensor { data_type: 2, dims: vec![bytes] },
        }
    });
    let made =
        Made { layout: String::new(), architecture: String::new(), program: String::new(), source: String::new() };
    ShardIndex {
        format: FORMAT,
        form: Form::Operators,
        made,
        records: records.collect(),
        files: vec![ShardFile { file: path.file_name().unwrap().to_str().unwrap().to_owned(), bytes: length }],
        segments: Vec::new(),
        routers: Vec::new(),
    }
}

#[test]
#[ignore = "measures for a minute; asserts nothing"]
fn pool_against_uring() {
    let Some(path) = std::env::var_os("ORTBENCH_MEASURE").map(PathBuf::from) else { return };
    let methods = [Method::Pool, Method::Uring];
    for read_bytes in [1 << 20, 4 << 20] {
        for round in 0..3 {
            for depth in [1, 2, 4, 8] {
                for method in methods {
                    let reads = Reads { method, depth, direct: Direct::Auto };
                    let found = bandwidth(std::slice::from_ref(&path), &reads, read_bytes, 1.0).unwrap();
                    println!(
                        "disk round={round} read={read_bytes} depth={depth} {method} direct={} {:.3} GB/s",
                        found.direct,
                        found.bytes_per_second / 1e9
                    );
                }
            }
        }
    }
}

#[test]
#[ignore = "measures for a minute; asserts nothing"]
fn pager_against_disk() {
    let Some(path) = std::env::var_os("ORTBENCH_MEASURE").map(PathBuf::from) else { return };
    let folder = path.parent().unwrap();
    for record in [2_654_208, 25 << 20] {
        let index = Arc::new(index_over(&path, record));
        for round in 0..2 {
            for (method, verify, memory) in [
                (Method::Pool, true, 8),
                (Method::Pool, true, 512),
                (Method::Pool, false, 512),
                (Method::Uring, true, 512),
                (Method::Uring, false, 512),
            ] {
                let reads = Reads { method, depth: 4, direct: Direct::Auto };
                let capacity = Pager::least_capacity(&index, Residency::Stream, 4) + (memory << 20);
                let options = Options { reads, verify, ..options(Residency::Stream, Some(capacity)) };
                let pager = Pager::open(folder, Arc::clone(&index), &options).unwrap();
                let (start, before) = (Instant::now(), pager.statistics());
                for id in 0..index.records.len() {
                    pager.acquire(id).unwrap();
                }
                let (seconds, after) = (start.elapsed().as_secs_f64(), pager.statistics());
                let read_bytes = (record as usize).min(super::super::plan::CHUNK);
                let disk = bandwidth(std::slice::from_ref(&path), &reads, read_bytes, 1.5).unwrap();
                println!(
                    "pager round={round} record={record} {method} verify={verify} spare={memory} MiB: {:.3} GB/s \
                     (disk {:.3}), peak {} of {} bytes",
                    (after.bytes_read - before.bytes_read) as f64 / seconds / 1e9,
                    disk.bytes_per_second / 1e9,
                    after.peak_bytes,
                    capacity
                );
            }
        }
    }
}
