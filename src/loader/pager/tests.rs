//! The residencies on synthetic packs, with real files.

mod failures;
mod guesses;
mod measure;
mod properties;
mod residencies;

use std::sync::Arc;
use std::time::Duration;

use super::fixture::{Layer, Pack};
use super::{Eviction, Options, Pager, RecordId, Tuning};
use crate::cell::Residency;
use crate::error::Result;
use crate::loader::io::{Direct, Method, ReadAt, Reads};

const PAGED: [Residency; 3] = [Residency::Resident, Residency::Stream, Residency::Experts];

const CHUNK: usize = 8192;

fn options(residency: Residency, capacity: Option<u64>) -> Options {
    let reads = Reads { method: Method::Pool, depth: 2, direct: Direct::Auto };
    Options { residency, capacity, reads, verify: true, eviction: Eviction::Lfu, ahead: true }
}

fn tuning(disk: Option<Arc<dyn ReadAt>>) -> Tuning {
    Tuning { disk, chunk: CHUNK, patience: Duration::from_secs(2) }
}

fn open(pack: &Pack, options: &Options) -> Result<Arc<Pager>> {
    Pager::open_tuned(pack.folder.path(), &pack.index, options, tuning(None))
}

/// The least capacity at the tests' size of a read.
fn least(pack: &Pack, residency: Residency) -> u64 {
    super::plan::least(&pack.index, residency, 2, CHUNK)
}

fn check(pack: &Pack, pager: &Pager, id: RecordId) {
    let lease = pager.acquire(id).unwrap();
    assert!(*lease == *pack.bytes[id], "record {id} holds other bytes");
    assert!((lease.as_ptr() as usize).is_multiple_of(64));
}

/// Leases all of a request while it runs, and checks the bytes.
fn check_all(pack: &Pack, pager: &Arc<Pager>, ids: &[RecordId]) {
    let mut request = pager.request(ids);
    let mut seen = vec![false; ids.len()];
    while let Some(next) = request.next() {
        let (place, lease) = next.unwrap();
        assert!(*lease == *pack.bytes[ids[place]]);
        assert!(!std::mem::replace(&mut seen[place], true));
    }
    assert!(seen.into_iter().all(|seen| seen));
}

fn dense_pack() -> Pack {
    Pack::new(&vec![Layer::new(&[30_000, 20_000, 70_001, 40_000], 0, 0); 8])
}

fn mixture() -> Pack {
    Pack::new(&vec![Layer::new(&[30_000, 5_000], 16, 20_000); 6])
}
