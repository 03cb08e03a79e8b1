//! Cases that can be computed by hand, and what holds of every pipeline.

use proptest::prelude::*;

use super::*;

const FREE: Link = Link { bandwidth: f64::INFINITY, latency: 0.0 };

/// Groups alike: seconds of a prefill and of a step on each device, and bytes over each link.
fn pipeline(groups: usize, prefill: &[f64], step: &[f64], bytes: f64, link: Link, generate: usize) -> Pipeline {
    let run = |seconds: &[f64]| Run {
        work: seconds.iter().copied().map(Work::apart).collect(),
        bytes: vec![bytes; seconds.len()],
    };
    let group = Group { sequences: 2, prefill: run(prefill), step: run(step) };
    let links = if prefill.len() > 1 { vec![link; prefill.len()] } else { Vec::new() };
    Pipeline { groups: vec![group; groups], links, generate }
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1.0)
}

#[test]
fn one_device_takes_the_sum() {
    let outcome = simulate(&pipeline(3, &[2.0], &[0.5], 0.0, FREE, 5));
    assert!(near(outcome.seconds, 3.0 * (2.0 + 4.0 * 0.5)), "{outcome:?}");
    assert_eq!(outcome.tokens, 30);
    assert!(near(outcome.bubble_share(), 0.0));
    assert_eq!(outcome.first_token, [2.0, 2.0, 4.0, 4.0, 6.0, 6.0]);
}

#[test]
fn one_group_on_two_devices_gains_nothing() {
    let link = Link { bandwidth: 100.0, latency: 0.25 };
    let outcome = simulate(&pipeline(1, &[1.0, 1.0], &[0.5, 0.5], 50.0, link, 3));
    // Each round goes over both links: half a second each, and a quarter on the way.
    assert!(near(outcome.seconds, 3.5 + 2.0 * 2.5), "{outcome:?}");
    assert_eq!(outcome.first_token, [3.5, 3.5]);
    assert!(near(outcome.bubble_share(), 1.0 - 4.0 / (2.0 * 8.5)));
    assert!(near(outcome.link_utilisation(), 1.5 / 8.5));
}

#[test]
fn two_groups_fill_two_devices() {
    let outcome = simulate(&pipeline(2, &[1.0, 1.0], &[0.5, 0.5], 0.0, FREE, 101));
    // Two fill the pipeline, then a token of a group each half second on each device.
    assert!(near(outcome.seconds, 3.0 + 100.0), "{outcome:?}");
    assert!(outcome.bubble_share() < 0.02);
}

#[test]
fn devices_that_share_memory_slow_each_other_down() {
    let mut shared = pipeline(2, &[1.0, 1.0], &[1.0, 1.0], 0.0, FREE, 1);
    for group in &mut shared.groups {
        group.prefill.work.iter_mut().for_each(|work| work.together = 1.5);
    }
    // One alone, both for one and a half, the other alone.
    assert!(near(simulate(&shared).seconds, 1.0 + 1.5 + 1.0));
    // A shorter one slows the longer one down only while it computes.
    for group in &mut shared.groups {
        group.prefill.work[1] = Work { alone: 0.2, together: 0.3 };
    }
    // First group: 1.0. Then 0.3 together, in which 0.2 of the second group's 1.0 is done; 0.8 alone; 0.2 alone.
    assert!(near(simulate(&shared).seconds, 1.0 + 0.3 + 0.8 + 0.2));
}

#[test]
fn nothing_takes_no_time() {
    assert_eq!(simulate(&pipeline(0, &[1.0, 1.0], &[1.0, 1.0], 0.0, FREE, 3)).tokens, 0);
    assert_eq!(simulate(&pipeline(2, &[1.0, 1.0], &[1.0, 1.0], 0.0, FREE, 0)).seconds, 0.0);
    let outcome = simulate(&pipeline(2, &[0.0, 0.0], &[0.0, 0.0], 0.0, FREE, 3));
    assert_eq!((outcome.tokens, outcome.seconds), (12, 0.0));
}

fn seconds() -> impl Strategy<Value = f64> {
    0.01..2.0_f64
}

/// Groups of all sizes of work on some devices.
fn any_pipeline() -> impl Strategy<Value = Pipeline> {
    (1..5_usize, 1..6_usize, 1..7_usize).prop_flat_map(|(devices, groups, generate)| {
        let run = || {
            (prop::collection::vec(seconds(), devices), prop::collection::vec(0.0..1000.0_f64, devices))
                .prop_map(|(seconds, bytes)| Run { work: seconds.into_iter().map(Work::apart).collect(), bytes })
        };
        let group = (1..4_usize, run(), run());
        let group = group.prop_map(|(sequences, prefill, step)| Group { sequences, prefill, step });
        let link = (10.0..1e4_f64, 0.0..0.5_f64).prop_map(|(bandwidth, latency)| Link { bandwidth, latency });
        let links = prop::collection::vec(link, if devices > 1 { devices } else { 0 });
        (prop::collection::vec(group, groups), links).prop_map(move |(groups, links)| Pipeline {
            groups,
            links,
            generate,
        })
    })
}

/// Seconds that a group needs if nothing else is there.
fn path(pipeline: &Pipeline, group: &Group) -> f64 {
    let once = |run: &Run| {
        let work: f64 = run.work.iter().map(|work| work.alone).sum();
        let links = pipeline.links.iter().zip(&run.bytes).map(|(link, bytes)| bytes / link.bandwidth + link.latency);
        work + links.sum::<f64>()
    };
    once(&group.prefill) + (pipeline.generate - 1) as f64 * once(&group.step)
}

proptest! {
    #[test]
    fn never_faster_than_the_critical_path_nor_slower_than_one_after_the_other(pipeline in any_pipeline()) {
        let outcome = simulate(&pipeline);
        let alone: Vec<f64> = pipeline.groups.iter().map(|group| path(&pipeline, group)).collect();
        let longest = alone.iter().copied().fold(0.0, f64::max);
        prop_assert!(outcome.seconds >= longest - 1e-9);
        prop_assert!(outcome.seconds <= alone.iter().sum::<f64>() + 1e-6);
        for (device, busy) in outcome.busy.iter().enumerate() {
            let steps = (pipeline.generate - 1) as f64;
            let work = |group: &Group| group.prefill.work[device].alone + steps * group.step.work[device].alone;
            let all: f64 = pipeline.groups.iter().map(work).sum();
            prop_assert!((busy.all() - all).abs() < 1e-6);
            prop_assert!(outcome.seconds >= all - 1e-9);
        }
        let sequences: usize = pipeline.groups.iter().map(|group| group.sequences).sum();
        prop_assert_eq!(outcome.tokens, sequences * pipeline.generate);
        prop_assert_eq!(outcome.first_token.len(), sequences);
        prop_assert!(outcome.first_token.iter().all(|at| *at > 0.0 && *at <= outcome.seconds));
        prop_assert!((0.0..1.0).contains(&(outcome.bubble_share() + 1e-12)));
        prop_assert!(outcome.link_utilisation() <= 1.0 + 1e-9);
    }

    #[test]
    fn more_bandwidth_and_less_latency_never_hurt(pipeline in any_pipeline(), faster in 1.0..10.0_f64) {
        let before = simulate(&pipeline).seconds;
        let mut better = pipeline;
        better.links.iter_mut().for_each(|link| {
            link.bandwidth *= faster;
            link.latency /= faster;
        });
        prop_assert!(simulate(&better).seconds <= before + 1e-9);
    }

    #[test]
    fn one_device_is_the_sum_of_its_work(
        work in prop::collection::vec((seconds(), seconds()), 1..5),
        generate in 1..6_usize,
    ) {
        let run = |seconds| Run { work: vec![Work::apart(seconds)], bytes: Vec::new() };
        let groups: Vec<Group> = (work.iter())
            .map(|(prefill, step)| Group { sequences: 1, prefill: run(*prefill), step: run(*step) })
            .collect();
        let all: f64 = work.iter().map(|(prefill, step)| prefill + (generate - 1) as f64 * step).sum();
        let outcome = simulate(&Pipeline { groups, links: Vec::new(), generate });
        prop_assert!((outcome.seconds - all).abs() < 1e-6);
    }

    #[test]
    fn balanced_devices_over_free_links_come_near_the_limit(devices in 2..6_usize, rounds in 50..80_usize) {
        // As many groups as devices: after the pipeline is full, every device computes all the time.
        let outcome = simulate(&pipeline(devices, &vec![1.0; devices], &vec![1.0; devices], 0.0, FREE, rounds));
        let limit = (devices * rounds) as f64;
        prop_assert!((outcome.seconds - (limit + devices as f64 - 1.0)).abs() < 1e-6);
    }

    #[test]
    fn contention_never_helps_and_never_more_than_doubles_what_it_doubles(pipeline in any_pipeline()) {
        let apart = simulate(&pipeline).seconds;
        let mut shared = pipeline;
        for group in &mut shared.groups {
            for work in group.prefill.work.iter_mut().chain(&mut group.step.work) {
                work.together = 2.0 * work.alone;
            }
        }
        let together = simulate(&shared).seconds;
        prop_assert!(together >= apart - 1e-9 && together <= 2.0 * apart + 1e-6);
    }
}
