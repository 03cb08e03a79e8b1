//! Damage and failing disks: each a clear error that names the record and its file, never wrong bytes, never a hang.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::error::{Error, Kind};

/// The pack's files, read through the page cache, with faults.
pub(super) struct Faulty {
    files: Vec<File>,
    reads: AtomicUsize,
    /// What happens at a read, by its number.
    fault: Box<dyn Fn(usize) -> Fault + Send + Sync>,
}

pub(super) enum Fault {
    None,
    Fails(i32),
    Slow(Duration),
    Short(usize),
}

impl Faulty {
    pub(super) fn disk(pack: &Pack, fault: impl Fn(usize) -> Fault + Send + Sync + 'static) -> Option<Arc<dyn ReadAt>> {
        let files = (0..pack.index.files.len()).map(|file| File::open(pack.shard(file)).unwrap()).collect();
        Some(Arc::new(Self { files, reads: AtomicUsize::new(0), fault: Box::new(fault) }))
    }
}

impl ReadAt for Faulty {
    fn read_at(&self, file: usize, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let mut bytes = into.len();
        match (self.fault)(self.reads.fetch_add(1, Ordering::Relaxed)) {
            Fault::None => {}
            Fault::Fails(number) => return Err(io::Error::from_raw_os_error(number)),
            Fault::Slow(time) => std::thread::sleep(time),
            Fault::Short(most) => bytes = bytes.min(most),
        }
        self.files[file].read_at(&mut into[..bytes], offset)
    }
}

fn text(error: &Error) -> String {
    format!("{} | {}", error.chain(), error.find_hint().unwrap_or_default())
}

#[test]
fn a_missing_shard_is_named() {
    let pack = mixture();
    std::fs::remove_file(pack.shard(3)).unwrap();
    for residency in Residency::ALL {
        let error = open(&pack, &options(*residency, None)).unwrap_err();
        assert!(text(&error).contains("layer-3.shard"), "{}", text(&error));
    }
}

#[test]
fn a_cut_shard_is_found_at_open() {
    let pack = mixture();
    let file = OpenOptions::new().write(true).open(pack.shard(2)).unwrap();
    file.set_len(pack.index.files[2].bytes - 4096).unwrap();
    for residency in Residency::ALL {
        let error = open(&pack, &options(*residency, None)).unwrap_err();
        assert!(text(&error).contains("layer-2.shard` was cut"), "{}", text(&error));
    }
}

#[test]
fn one_flipped_bit_is_found_and_named_in_every_residency() {
    let pack = mixture();
    let damaged = 2 * 18 + 7;
    let record = &pack.index.records[damaged];
    let file = OpenOptions::new().write(true).open(pack.shard(2)).unwrap();
    file.write_all_at(&[pack.bytes[damaged][777] ^ 16], record.offset + 777).unwrap();
    for residency in Residency::ALL {
        let opened = open(&pack, &options(*residency, None));
        let error = if *residency == Residency::Resident {
            opened.unwrap_err()
        } else {
            let pager = opened.unwrap();
            check_all(&pack, &pager, &[damaged - 1, damaged + 1]);
            assert!(pager.acquire(damaged).is_err());
            let mut request = pager.request(&[damaged, damaged - 1]);
            let given: Vec<_> = std::iter::from_fn(|| request.next()).collect();
            assert_eq!(given.iter().filter(|given| given.is_ok()).count(), 1);
            given.into_iter().find_map(Result::err).unwrap()
        };
        let text = text(&error);
        assert!(text.contains("layer.2.7") && text.contains("layer-2.shard") && text.contains("damaged"), "{text}");
    }
    let unchecked = Options { verify: false, ..options(Residency::Resident, None) };
    open(&pack, &unchecked).unwrap();
}

#[test]
fn a_shard_cut_while_running_is_an_error_and_no_hang() {
    for method in [Method::Pool, Method::Auto] {
        let pack = dense_pack();
        let mut options = options(Residency::Stream, Some(least(&pack, Residency::Stream)));
        options.reads.method = method;
        let pager = open(&pack, &options).unwrap();
        check(&pack, &pager, 0);
        OpenOptions::new().write(true).open(pack.shard(5)).unwrap().set_len(4096).unwrap();
        let error = (20..24).find_map(|id| pager.acquire(id).err()).unwrap();
        assert!(text(&error).contains("layer-5.shard") && text(&error).contains("ends at byte"), "{}", text(&error));
        check(&pack, &pager, 30);
    }
}

#[test]
fn a_mapped_shard_that_changes_is_an_error_at_the_next_lease() {
    let pack = dense_pack();
    let pager = open(&pack, &options(Residency::Mapped, None)).unwrap();
    check(&pack, &pager, 0);
    // Another file under its name is not seen …
    std::fs::copy(pack.shard(0), pack.folder.path().join("other")).unwrap();
    std::fs::rename(pack.folder.path().join("other"), pack.shard(1)).unwrap();
    check(&pack, &pager, 4);
    // … what is done to the file itself is.
    OpenOptions::new().write(true).open(pack.shard(2)).unwrap().set_len(4096).unwrap();
    let error = pager.acquire(8).unwrap_err();
    assert!(text(&error).contains("was cut from"), "{}", text(&error));
    std::fs::write(pack.shard(3), vec![0; pack.index.files[3].bytes as usize]).unwrap();
    let error = pager.acquire(12).unwrap_err();
    assert!(text(&error).contains("written to"), "{}", text(&error));
}

/// The child of the next test: reads a page of a mapped shard that was cut after the lease.
#[test]
#[ignore = "ends its process by a signal; run by the test below"]
fn fault_in_a_mapping() {
    let pack = dense_pack();
    let pager = open(&pack, &Options { verify: false, ..options(Residency::Mapped, None) }).unwrap();
    let lease = pager.acquire(1).unwrap();
    OpenOptions::new().write(true).open(pack.shard(0)).unwrap().set_len(4096).unwrap();
    println!("{}", lease.iter().map(|byte| u64::from(*byte)).sum::<u64>());
}

#[test]
fn a_fault_in_a_mapping_names_the_pack() {
    use std::os::unix::process::ExitStatusExt;
    let name = "loader::pager::tests::failures::fault_in_a_mapping";
    let program = std::env::current_exe().unwrap();
    let output =
        std::process::Command::new(program).args(["--exact", name, "--ignored", "--nocapture"]).output().unwrap();
    assert_eq!(output.status.signal(), Some(libc::SIGBUS));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("layer-0.shard` was cut") && said.contains("hint: "), "{said}");
}

#[test]
fn a_codec_forbids_mapping() {
    let mut pack = dense_pack();
    let index = Arc::make_mut(&mut pack.index);
    index.records[3].codec = crate::package::shards::Codec::Zstd;
    let error = open(&pack, &options(Residency::Mapped, None)).unwrap_err();
    assert!(text(&error).contains("without a codec"), "{}", text(&error));
}

#[test]
fn an_index_that_cannot_be_true_is_refused() {
    let pack = dense_pack();
    type Change = fn(&mut crate::package::shards::Record);
    let wrong: [(&str, Change); 6] = [
        ("beyond the end", |record| record.offset = 1 << 40),
        ("beyond the end", |record| record.stored = u64::MAX),
        ("multiple of 4096", |record| record.offset = 512),
        ("without a codec", |record| record.bytes += 1),
        ("names file 9", |record| record.file = 9),
        ("has the hash", |record| record.hash = "xyz".to_owned()),
    ];
    for (what, change) in wrong {
        let mut index = (*pack.index).clone();
        change(&mut index.records[2]);
        let error = Pager::open(pack.folder.path(), Arc::new(index), &options(Residency::Stream, None)).unwrap_err();
        assert!(text(&error).contains(what) && text(&error).contains("layer.0.2"), "{}", text(&error));
    }
    let pager = open(&pack, &options(Residency::Stream, None)).unwrap();
    assert!(pager.acquire(1000).is_err());
    assert!(pager.request(&[1000]).next().unwrap().is_err());
}

#[test]
fn a_read_that_fails_is_told_once_and_can_be_tried_again() {
    let pack = mixture();
    for residency in PAGED {
        // Everything is opened well, or fails clearly at any of its first reads; afterwards it works again.
        for failing in (0..90).step_by(7) {
            let fault = move |read| if read == failing { Fault::Fails(libc::EIO) } else { Fault::None };
            let disk = Faulty::disk(&pack, fault);
            let folder = pack.folder.path();
            let options = options(residency, Some(least(&pack, residency)));
            let mut errors = Vec::new();
            match Pager::open_tuned(folder, &pack.index, &options, tuning(disk)) {
                Err(error) => errors.push(error),
                Ok(pager) => {
                    for id in (0..pack.bytes.len()).chain(0..pack.bytes.len()) {
                        match pager.acquire(id) {
                            Ok(lease) => assert!(*lease == *pack.bytes[id]),
                            Err(error) => {
                                errors.push(error);
                                check(&pack, &pager, id);
                            }
                        }
                    }
                }
            }
            // A read ahead that failed is told to nobody if it was tried again before anybody waited.
            assert!(errors.len() <= 1);
            for error in errors {
                assert!(text(&error).contains("cannot read record `layer."), "{}", text(&error));
                assert!(text(&error).contains("Input/output error"), "{}", text(&error));
                assert_eq!(error.root_kind(), Kind::Environment);
            }
        }
    }
}

#[test]
fn a_disk_that_always_fails_never_hangs_anybody() {
    let pack = mixture();
    let disk = Faulty::disk(&pack, |read| if read < 40 { Fault::None } else { Fault::Fails(libc::EIO) });
    let options = options(Residency::Experts, Some(least(&pack, Residency::Experts)));
    let pager = Pager::open_tuned(pack.folder.path(), &pack.index, &options, tuning(disk)).unwrap();
    pager.guess(&[20, 21, 22]);
    let mut request = pager.request(&pack.ids(true));
    let (mut right, mut failed) = (0, 0);
    while let Some(next) = request.next() {
        *(if next.is_ok() { &mut right } else { &mut failed }) += 1;
    }
    assert_eq!(right + failed, 96);
    assert!(failed > 80);
}

#[test]
fn slow_interrupted_and_short_reads_are_right() {
    let pack = mixture();
    let disk = Faulty::disk(&pack, |read| match read % 5 {
        0 => Fault::Fails(libc::EINTR),
        1 => Fault::Short(1 + read * 37 % 5000),
        2 => Fault::Slow(Duration::from_millis(1)),
        _ => Fault::None,
    });
    let options = options(Residency::Stream, Some(least(&pack, Residency::Stream)));
    let pager = Pager::open_tuned(pack.folder.path(), &pack.index, &options, tuning(disk)).unwrap();
    pack.ids(false).iter().for_each(|id| check(&pack, &pager, *id));
    check_all(&pack, &pager, &pack.ids(true));
}

#[test]
fn leases_that_fill_the_memory_are_named_instead_of_waiting_for_ever() {
    let pack = mixture();
    let options = options(Residency::Experts, Some(least(&pack, Residency::Experts)));
    let tuning = Tuning { patience: Duration::from_millis(500), ..tuning(None) };
    let pager = Pager::open_tuned(pack.folder.path(), &pack.index, &options, tuning).unwrap();
    let mut held = Vec::new();
    let error =
        pack.ids(true).into_iter().find_map(|id| pager.acquire(id).map(|lease| held.push(lease)).err()).unwrap();
    assert!(text(&error).contains("no room for record") && text(&error).contains("in use at once"), "{}", text(&error));
    assert_eq!(held.len(), 8);
    held.clear();
    check_all(&pack, &pager, &pack.ids(true));
}

/// What is read ahead into the room that is left, and leaves again for what is wanted, is no progress.
#[test]
fn reading_ahead_hides_nobody_who_waits_for_ever() {
    let pack = Pack::new(&vec![Layer::new(&[70_001, 5_000, 6_000], 0, 0); 6]);
    let options = options(Residency::Stream, Some(least(&pack, Residency::Stream)));
    let tuning = Tuning { patience: Duration::from_millis(500), ..tuning(None) };
    let pager = Pager::open_tuned(pack.folder.path(), &pack.index, &options, tuning).unwrap();
    let large: Vec<RecordId> = pack.ids(false).into_iter().step_by(3).collect();
    let mut held = Vec::new();
    let error = large.iter().find_map(|id| pager.acquire(*id).map(|lease| held.push(lease)).err()).unwrap();
    assert!(text(&error).contains("no room for record"), "{}", text(&error));
    let reads = pager.statistics().reads;
    assert!(reads < 4 * pack.bytes.len() as u64, "{reads} reads");
    held.clear();
    pack.ids(false).iter().for_each(|id| check(&pack, &pager, *id));
}

#[test]
fn dropping_the_pager_ends_its_threads_and_keeps_what_is_leased() {
    let pack = mixture();
    let disk = Faulty::disk(&pack, |_| Fault::Slow(Duration::from_millis(1)));
    let options = options(Residency::Experts, Some(least(&pack, Residency::Experts)));
    let pager = Pager::open_tuned(pack.folder.path(), &pack.index, &options, tuning(disk)).unwrap();
    let lease = pager.acquire(5).unwrap();
    let mut request = pager.request(&pack.ids(true)[..8]);
    drop(pager);
    assert!(*lease == *pack.bytes[5]);
    // What was there is still given; what was not is an error.
    while let Some(next) = request.next() {
        if let Err(error) = next {
            assert!(text(&error).contains("was closed"), "{}", text(&error));
        }
    }
}
