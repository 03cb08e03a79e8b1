//! Each residency gives the right bytes, within its capacity, and reads no more than it must.

use super::*;
use crate::package::shards::{Codec, Form, ShardIndex};

#[test]
fn resident_reads_each_record_once() {
    let pack = mixture();
    let pager = open(&pack, &options(Residency::Resident, None)).unwrap();
    for _ in 0..2 {
        pack.ids(false).iter().for_each(|id| check(&pack, &pager, *id));
        check_all(&pack, &pager, &pack.ids(true));
    }
    let statistics = pager.statistics();
    assert_eq!(statistics.bytes_read, pack.total());
    assert_eq!(statistics.reads as usize, pack.bytes.len());
    assert_eq!((statistics.evictions, statistics.held_bytes), (0, pack.total()));
    assert_eq!(statistics.experts_wanted, statistics.experts_hit);
    assert_eq!(pager.find("layer.1.0"), Some(18));
    assert_eq!(pager.find("layer.9.0"), None);
    assert_eq!(pager.index(), &*pack.index);
}

#[test]
fn mapped_gives_the_files_bytes() {
    let pack = mixture();
    let pager = open(&pack, &options(Residency::Mapped, Some(1))).unwrap();
    for _ in 0..2 {
        pack.ids(false).iter().for_each(|id| check(&pack, &pager, *id));
        check_all(&pack, &pager, &pack.ids(true));
    }
    assert_eq!(pager.facts().method, "mmap");
}

#[test]
fn stream_reads_per_pass_what_is_not_pinned() {
    let pack = dense_pack();
    let capacity = least(&pack, Residency::Stream) + 400_000;
    let pager = open(&pack, &options(Residency::Stream, Some(capacity))).unwrap();
    let facts = pager.facts();
    assert!(facts.pinned_bytes >= 380_000, "{facts:?}");
    let ids = pack.ids(false);
    let pass = || ids.iter().for_each(|id| check(&pack, &pager, *id));
    pass();
    pass();
    let before = pager.statistics();
    for _ in 0..4 {
        pass();
    }
    let after = pager.statistics();
    let streamed = pack.total() - facts.pinned_bytes;
    let read = after.bytes_read - before.bytes_read;
    // What is read ahead at either end moves the figure by what fits into the stream's memory.
    assert!(read.abs_diff(4 * streamed) <= facts.stream_bytes, "{read} of {streamed} a pass; {facts:?}");
    assert!(after.peak_bytes <= capacity, "{after:?}");
}

#[test]
fn on_demand_nothing_is_read_before_it_is_asked_for() {
    for (pack, residency, more) in [(dense_pack(), Residency::Stream, 200_000), (mixture(), Residency::Experts, 50_000)]
    {
        let capacity = least(&pack, residency) + more;
        let pager = open(&pack, &Options { ahead: false, ..options(residency, Some(capacity)) }).unwrap();
        let super::super::Core::Paged { shared, .. } = &pager.core else { panic!() };
        let pinned = shared.lock().plan.pinned.clone();
        let first = pager.statistics().reads;
        let ids = pack.ids(false);
        let (mut asked, mut missed) = (pinned.clone(), 0);
        for _ in 0..3 {
            for &id in &ids {
                asked[id] = true;
                let there = shared.lock().entries[id].phase == super::super::state::Phase::Ready;
                missed += u64::from(!there);
                check(&pack, &pager, id);
                let state = shared.lock();
                assert_eq!((state.in_flight, state.finishing), (0, 0), "something is read that nobody asked for");
                let known = |id: usize| asked[id] || state.entries[id].phase == super::super::state::Phase::Absent;
                assert!((0..asked.len()).all(known), "something is there that nobody asked for");
            }
        }
        let statistics = pager.statistics();
        assert_eq!(statistics.reads - first, missed, "one read for each record that was not there");
        assert!(missed > 0 && statistics.peak_bytes <= capacity);
    }
}

#[test]
fn streamed_records_are_spread_over_the_pass() {
    let pack = Pack::new(&vec![Layer::new(&[20_000, 20_000, 20_000, 20_000], 0, 0); 32]);
    let pager = open(&pack, &options(Residency::Stream, Some(pack.total() / 2))).unwrap();
    let super::super::Core::Paged { shared, .. } = &pager.core else { panic!() };
    let pinned = shared.lock().plan.pinned.clone();
    let quarters: Vec<usize> =
        pinned.chunks(pinned.len() / 8).map(|part| part.iter().filter(|pinned| **pinned).count()).collect();
    let (least, most) = (quarters.iter().min().unwrap(), quarters.iter().max().unwrap());
    assert!(most - least <= 2, "{quarters:?}");
}

#[test]
fn a_segment_gone_through_again_is_not_read_again_while_it_fits() {
    let pack = dense_pack();
    let capacity = least(&pack, Residency::Stream) + 500_000;
    let pager = open(&pack, &options(Residency::Stream, Some(capacity))).unwrap();
    let segments: Vec<std::ops::Range<usize>> = (0..8).map(|layer| layer * 4..layer * 4 + 4).collect();
    let pass = |times: usize| {
        for segment in &segments {
            for _ in 0..times {
                segment.clone().for_each(|id| check(&pack, &pager, id));
            }
        }
    };
    pass(3);
    pass(3);
    let before = pager.statistics().bytes_read;
    pass(3);
    pass(3);
    let facts = pager.facts();
    let read = pager.statistics().bytes_read - before;
    assert!(read <= 2 * (pack.total() - facts.pinned_bytes) + facts.stream_bytes, "{read}; {facts:?}");
}

#[test]
fn records_out_of_order_are_right() {
    let pack = dense_pack();
    let pager = open(&pack, &options(Residency::Stream, Some(least(&pack, Residency::Stream)))).unwrap();
    for step in 0..100 {
        check(&pack, &pager, step * 13 % pack.bytes.len());
    }
    assert!(pager.statistics().peak_bytes <= least(&pack, Residency::Stream));
}

#[test]
fn experts_that_are_used_often_stay() {
    let pack = mixture();
    for (eviction, residency) in
        [(Eviction::Lru, Residency::Experts), (Eviction::Lfu, Residency::Experts), (Eviction::Lru, Residency::Stream)]
    {
        let capacity = least(&pack, residency) + 900_000;
        let pager = open(&pack, &Options { eviction, ..options(residency, Some(capacity)) }).unwrap();
        for pass in 0..12 {
            for layer in 0..6 {
                check(&pack, &pager, layer * 18);
                check(&pack, &pager, layer * 18 + 1);
                let expert = |number: usize| layer * 18 + 2 + number;
                // Three experts in every pass, and one of the others in turn.
                check_all(&pack, &pager, &[expert(0), expert(3 + pass % 13), expert(1), expert(2)]);
            }
        }
        let statistics = pager.statistics();
        assert_eq!(statistics.experts_wanted, 12 * 6 * 4);
        assert!(statistics.peak_bytes <= capacity);
        if residency == Residency::Experts {
            assert!(statistics.experts_hit >= 11 * 6 * 3, "{eviction}: {statistics:?}");
        }
    }
}

#[test]
fn a_request_larger_than_the_cache_goes_through_it() {
    let pack = mixture();
    let pager = open(&pack, &options(Residency::Experts, Some(least(&pack, Residency::Experts)))).unwrap();
    for layer in 0..6 {
        let ids: Vec<usize> = (layer * 18 + 2..layer * 18 + 18).rev().collect();
        check_all(&pack, &pager, &ids);
    }
    check_all(&pack, &pager, &pack.ids(true));
    drop(pager.request(&pack.ids(true)));
    let mut half = pager.request(&pack.ids(true));
    half.next().unwrap().unwrap();
    drop(half);
    check_all(&pack, &pager, &[5, 5, 0, 5]);
}

#[test]
fn guesses_count_apart_and_are_right_or_wrong() {
    let pack = mixture();
    let capacity = least(&pack, Residency::Experts) + 900_000;
    let pager = open(&pack, &options(Residency::Experts, Some(capacity))).unwrap();
    pager.guess(&[2, 3, 4]);
    while pager.statistics().reads < 12 + 3 {
        std::thread::yield_now();
    }
    check_all(&pack, &pager, &[2, 3, 10]);
    let statistics = pager.statistics();
    assert_eq!((statistics.guessed, statistics.guessed_right), (3, 2));
    assert_eq!((statistics.experts_wanted, statistics.experts_hit), (3, 2));
}

#[test]
fn too_little_memory_names_the_least() {
    let pack = mixture();
    for residency in [Residency::Resident, Residency::Stream, Residency::Experts] {
        let least = least(&pack, residency);
        let error = open(&pack, &options(residency, Some(least - 1))).unwrap_err();
        assert!(error.find_hint().unwrap().contains(&format!("{least} bytes")), "{error:?}");
        let pager = open(&pack, &options(residency, Some(least))).unwrap();
        pack.ids(false).iter().for_each(|id| check(&pack, &pager, *id));
        assert!(pager.statistics().peak_bytes <= least);
        let error = pager.set_capacity(least - 1).unwrap_err();
        assert!(error.find_hint().unwrap().contains(&format!("{least} bytes")), "{error:?}");
    }
}

#[test]
fn the_capacity_changes_while_running() {
    let pack = dense_pack();
    let least = least(&pack, Residency::Stream);
    let pager = open(&pack, &options(Residency::Stream, Some(least + 600_000))).unwrap();
    let pass = || pack.ids(false).iter().for_each(|id| check(&pack, &pager, *id));
    pass();
    pager.set_capacity(least + 100_000).unwrap();
    assert!(pager.statistics().held_bytes <= least + 100_000);
    pass();
    pass();
    pager.set_capacity(least + 700_000).unwrap();
    pass();
    pass();
    let facts = pager.facts();
    let before = pager.statistics();
    pass();
    let read = pager.statistics().bytes_read - before.bytes_read;
    assert!(read <= facts.streamed_bytes_per_pass + 40_000 + facts.stream_bytes, "{read}; {facts:?}");
    assert!(before.peak_bytes <= least + 700_000);
}

/// A plan that lets a coded record stay needs room to decode it beside what is in use when the plan changes.
#[test]
fn what_comes_to_stay_is_decoded_beside_what_is_in_use() {
    let pack = Pack::coded(&vec![Layer::new(&[4_000, 45_000, 20_000], 0, 0); 2], |_| Codec::Lz4);
    let dense = pack.ids(false);
    for form in [Form::Operators, Form::Inputs] {
        let index = Arc::new(ShardIndex { form, ..(*pack.index).clone() });
        let least = super::super::plan::least(&index, Residency::Stream, 1, CHUNK);
        let mut options = options(Residency::Stream, Some(least));
        options.reads.depth = 1;
        for capacity in (least..pack.total() + 100_000).step_by(4096) {
            for used in &dense {
                let pager = Pager::open_tuned(pack.folder.path(), &index, &options, tuning(None)).unwrap();
                let lease = pager.acquire(*used).unwrap();
                pager.set_capacity(capacity).unwrap();
                dense.iter().for_each(|id| check(&pack, &pager, *id));
                assert!(*lease == *pack.bytes[*used]);
                assert!(pager.statistics().peak_bytes <= capacity);
            }
        }
    }
}

#[test]
fn the_system_counts_no_more_than_the_capacity() {
    let pack = Pack::new(&vec![Layer::new(&[3 << 20, 1_000_000, 500_000], 8, 700_001); 6]);
    for residency in [Residency::Stream, Residency::Experts] {
        // With small pages and with huge ones.
        for capacity in [14 << 20, 24 << 20] {
            let pager = open(&pack, &options(residency, Some(capacity))).unwrap();
            let super::super::Core::Paged { shared, .. } = &pager.core else { panic!() };
            for pass in 0..3 {
                for layer in 0..6 {
                    (0..3).for_each(|place| check(&pack, &pager, layer * 11 + place));
                    let expert = |number: usize| layer * 11 + 3 + (number + pass) % 8;
                    check_all(&pack, &pager, &[expert(0), expert(2), expert(4)]);
                    let resident = shared.lock().arena.resident() as u64;
                    assert!(resident <= capacity, "{residency}: {resident} of {capacity}");
                }
                pager.set_capacity(capacity - (2 << 20) * u64::from(pass == 1)).unwrap();
            }
        }
    }
}
