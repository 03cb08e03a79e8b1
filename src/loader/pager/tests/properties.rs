//! Whatever is asked for in whatever order, by two threads, on whatever disk: leases hold the record's bytes, memory
//! stays within the capacity, and nobody waits for ever.

use std::sync::mpsc::channel;

use proptest::prelude::*;

use super::failures::{Fault, Faulty};
use super::*;
use crate::package::shards::{Codec, Form};

/// What a thread does; numbers are taken modulo what there is.
#[derive(Debug, Clone)]
enum Step {
    /// Acquires some records in order, from where the last ones ended.
    Pass(usize),
    Acquire(usize),
    /// Acquires a dense record and keeps the lease until the next one is kept.
    Keep(usize),
    /// Asks for experts of a layer, and takes some of what comes, holding so many leases at once.
    Request {
        layer: usize,
        experts: Vec<usize>,
        take: usize,
        hold: usize,
    },
    Guess(Vec<usize>),
    Capacity(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let numbers = || prop::collection::vec(0_usize..100, 0..10);
    prop_oneof![
        4 => (1_usize..12).prop_map(Step::Pass),
        2 => (0_usize..100).prop_map(Step::Acquire),
        1 => (0_usize..100).prop_map(Step::Keep),
        4 => (0_usize..100, numbers(), 0_usize..12, 1_usize..5)
            .prop_map(|(layer, experts, take, hold)| Step::Request { layer, experts, take, hold }),
        1 => numbers().prop_map(Step::Guess),
        2 => (0_u64..600_000).prop_map(Step::Capacity),
    ]
}

#[derive(Debug, Clone)]
struct Case {
    layers: Vec<(Vec<usize>, Vec<usize>)>,
    coded: u8,
    inputs: bool,
    residency: Residency,
    eviction: Eviction,
    method: Method,
    extra: u64,
    depth: usize,
    chunk: usize,
    delays: u8,
    threads: [Vec<Step>; 2],
}

fn case() -> impl Strategy<Value = Case> {
    let sizes = |most: usize| prop::collection::vec(1_usize..50_000, 0..most);
    // Mostly equal experts, as in models; sometimes all different.
    let experts = prop_oneof![sizes(8), (1_usize..12, 1_usize..30_000).prop_map(|(count, bytes)| vec![bytes; count])];
    let shape = (prop::collection::vec((sizes(5), experts), 1..6), 0_u8..3, any::<bool>());
    let kinds = (
        prop::sample::select(&PAGED),
        prop::sample::select(Eviction::ALL),
        prop::sample::select(&[Method::Pool, Method::Pool, Method::Auto]),
    );
    let room = (0_u64..400_000, 1_usize..5, prop::sample::select(&[4096_usize, 8192, 1 << 20]), 0_u8..4);
    let threads = [prop::collection::vec(step(), 1..25), prop::collection::vec(step(), 0..25)];
    (shape, kinds, room, threads).prop_map(
        |((layers, coded, inputs), (residency, eviction, method), (extra, depth, chunk, delays), threads)| Case {
            layers,
            coded,
            inputs,
            residency,
            eviction,
            method,
            extra,
            depth,
            chunk,
            delays,
            threads,
        },
    )
}

/// Does the steps; gives the largest capacity that it set.
fn run(pack: &Pack, pager: &Arc<Pager>, steps: &[Step], least: u64, keeps: bool) -> u64 {
    let (dense, experts) = (pack.ids(false), pack.ids(true));
    let (mut at, mut most) = (0, 0);
    let mut kept = None;
    for step in steps {
        match step {
            Step::Pass(count) => {
                for _ in 0..*count {
                    let Some(id) = dense.get(at % dense.len().max(1)) else { break };
                    check(pack, pager, *id);
                    at += 1;
                }
            }
            Step::Acquire(id) => {
                let all = pack.bytes.len();
                if all > 0 {
                    check(pack, pager, id % all);
                }
            }
            Step::Keep(id) => {
                drop(kept.take());
                if keeps && let Some(id) = dense.get(id % dense.len().max(1)) {
                    kept = Some((*id, pager.acquire(*id).unwrap()));
                }
            }
            Step::Request { layer, experts, take, hold } => {
                let layer = layer % pack.index.segments.len();
                let of = |id: &RecordId| pack.index.records[*id].file == layer;
                let there: Vec<RecordId> = pack.ids(true).into_iter().filter(of).collect();
                if there.is_empty() {
                    continue;
                }
                let ids: Vec<RecordId> = experts.iter().map(|number| there[number % there.len()]).collect();
                let mut request = pager.request(&ids);
                let mut held = std::collections::VecDeque::new();
                for _ in 0..*take {
                    let Some(next) = request.next() else { break };
                    let (place, lease) = next.unwrap();
                    assert!(*lease == *pack.bytes[ids[place]]);
                    held.push_back(lease);
                    // One thread alone may hold several while it waits: there is room for eight experts.
                    if held.len() >= if keeps { *hold } else { 1 } {
                        held.pop_front();
                    }
                }
            }
            Step::Guess(numbers) if experts.is_empty() => assert!(numbers.len() < 10),
            Step::Guess(numbers) => {
                let ids: Vec<RecordId> = numbers.iter().map(|number| experts[number % experts.len()]).collect();
                pager.guess(&ids);
            }
            Step::Capacity(extra) => {
                pager.set_capacity(least + extra).unwrap();
                most = most.max(least + extra);
            }
        }
        if let Some((id, lease)) = &kept {
            assert!(**lease == *pack.bytes[*id], "a kept lease changed");
        }
    }
    most
}

fn check_case(case: &Case) {
    let layers: Vec<Layer> =
        case.layers.iter().map(|(dense, experts)| Layer { dense: dense.clone(), experts: experts.clone() }).collect();
    let coded = usize::from(case.coded);
    let mut pack = Pack::coded(&layers, |id| if coded > 0 && id % coded == 0 { Codec::Lz4 } else { Codec::None });
    if case.inputs {
        Arc::make_mut(&mut pack.index).form = Form::Inputs;
    }
    let mut options = options(case.residency, None);
    options.eviction = case.eviction;
    (options.reads.method, options.reads.depth) = (case.method, case.depth);
    let least = super::super::plan::least(&pack.index, case.residency, case.depth, case.chunk);
    let capacity = least + case.extra;
    options.capacity = Some(capacity);
    let delays = usize::from(case.delays);
    let faulty = Faulty::disk(&pack, move |read| match read % 7 {
        0 | 1 if delays > 1 => Fault::Slow(Duration::from_micros(((read * 7919) % (delays * 500)) as u64)),
        3 if delays > 2 => Fault::Short(1 + read * 31 % 6000),
        _ => Fault::None,
    });
    let disk = if delays == 0 || case.method != Method::Pool { None } else { faulty };
    let tuning = Tuning { disk, chunk: case.chunk, patience: Duration::from_secs(5) };
    let pager = Pager::open_tuned(pack.folder.path(), &pack.index, &options, tuning).unwrap();
    let [first, second] = &case.threads;
    let most = std::thread::scope(|scope| {
        let second = scope.spawn(|| run(&pack, &pager, second, least, false));
        run(&pack, &pager, first, least, true).max(second.join().unwrap()).max(capacity)
    });
    let statistics = pager.statistics();
    assert!(statistics.peak_bytes <= most, "{statistics:?} within {most}");
    assert!(statistics.experts_hit <= statistics.experts_wanted);
    assert!(statistics.guessed_right <= statistics.guessed);
}

proptest! {
    // A failing case may wait for seconds, so cases are not shrunk.
    #![proptest_config(ProptestConfig {
        cases: 128,
        max_shrink_iters: 0,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn leases_hold_their_records_within_the_capacity(case in case()) {
        let (send, receive) = channel();
        let thread = std::thread::spawn({
            let case = case.clone();
            move || {
                check_case(&case);
                let _ = send.send(());
            }
        });
        // A panic drops the sender; only a hang lets the time pass.
        let hung = matches!(
            receive.recv_timeout(Duration::from_secs(20)),
            Err(std::sync::mpsc::RecvTimeoutError::Timeout)
        );
        prop_assert!(!hung, "somebody waits for ever");
        prop_assert!(thread.join().is_ok());
    }
}
