use proptest::prelude::*;

use super::*;

const FREE: Link = Link { bandwidth: f64::INFINITY, latency: 0.0 };

fn timing(phase: Phase, sequences: usize, runs: u64, parts: &[f64]) -> Timing {
    let parts: Vec<f64> = parts.iter().map(|seconds| seconds * runs as f64).collect();
    let handed = vec![1000 * sequences as u64; parts.len()];
    Timing { phase, sequences, runs, parts, around: 0.25 * runs as f64, handed }
}

fn costs(prefill: &[f64], step: &[f64]) -> Costs {
    Costs::of(&vec![timing(Phase::Prefill, 2, 3, prefill), timing(Phase::Step, 2, 5, step)])
}

fn task(groups: usize, generate: usize) -> Task {
    Task { sizes: vec![2; groups], prompt: 10, generate }
}

#[test]
fn what_was_not_measured_lies_between_what_was() {
    let times = vec![timing(Phase::Step, 1, 2, &[1.0, 2.0]), timing(Phase::Step, 3, 1, &[2.0, 2.0])];
    let costs = Costs::of(&times);
    assert_eq!(costs.at(Phase::Step, 1).expect("measured").parts, [1.0, 2.0]);
    let between = costs.at(Phase::Step, 2).expect("between");
    assert_eq!((between.parts.as_slice(), between.handed.as_slice()), (&[1.5, 2.0][..], &[2000.0, 2000.0][..]));
    assert!(costs.at(Phase::Step, 4).is_err() && costs.at(Phase::Prefill, 1).is_err());
}

#[test]
fn one_device_is_what_was_measured() {
    let costs = costs(&[1.0, 2.0, 3.0], &[0.1, 0.2, 0.3]);
    let (seconds, first) = costs.of_batch(2, 11).expect("measured");
    assert!((first - 6.25).abs() < 1e-12 && (seconds - (6.25 + 10.0 * 0.85)).abs() < 1e-9);
    let cut = balanced(&costs, &task(1, 11), 1).expect("a cut");
    let outcome = simulate(&apart(&costs, &task(1, 11), &cut, FREE).expect("a pipeline"));
    assert!((outcome.seconds - seconds).abs() < 1e-9);
    let ring = TensorParallel { devices: 1, link: FREE, hidden_bytes: 4.0 };
    let outcome = ring.simulate(&costs, &[false, true, false], 2, &task(1, 11)).expect("measured");
    assert!((outcome.seconds - seconds).abs() < 1e-9 && outcome.bubble_share().abs() < 1e-9);
}

#[test]
fn parts_are_shared_out_by_their_time() {
    let costs = costs(&[1.0, 1.0, 1.0, 1.0], &[0.1, 0.1, 0.1, 0.9]);
    assert_eq!(balanced(&costs, &task(2, 1), 2).expect("a cut"), [0..2, 2..4]);
    assert_eq!(balanced(&costs, &task(2, 100), 2).expect("a cut"), [0..3, 3..4]);
    assert!(balanced(&costs, &task(2, 100), 5).unwrap_err().chain().contains("too few for 5"));
}

#[test]
fn tensor_parallel_divides_layers_and_adds_rings() {
    let link = Link { bandwidth: 1000.0, latency: 0.01 };
    let ring = TensorParallel { devices: 4, link, hidden_bytes: 8.0 };
    let costs = PartCosts { parts: vec![1.0, 4.0, 4.0, 2.0], around: 0.5, handed: vec![0.0; 4] };
    let (seconds, transfers) = ring.run(&costs, &[false, true, true, false], 10);
    // Two rings in each of two layers: three quarters of 80 bytes twice, in six messages.
    let one = 1.5 * 80.0 / 1000.0 + 6.0 * 0.01;
    assert!((transfers - 4.0 * one).abs() < 1e-12);
    assert!((seconds - (3.5 + 2.0 + 4.0 * one)).abs() < 1e-12);
}

#[test]
fn the_slowdown_of_stages_is_found_again() {
    let alone = || {
        let stage = |prefill: f64, step: f64| costs(&[prefill], &[step]);
        vec![stage(2.0, 0.5), stage(1.7, 0.7)]
    };
    let link = Link { bandwidth: 1e6, latency: 0.01 };
    let real = Stages { alone: alone(), slow: vec![[1.3, 1.8], [1.5, 1.2]] };
    let calibration = task(4, 12);
    let measured = simulate(&real.pipeline(&calibration, link).expect("a pipeline")).busy;
    let found = Stages::fit(alone(), &calibration, link, &measured).expect("found");
    for (found, real) in found.slow.iter().flatten().zip(real.slow.iter().flatten()) {
        assert!((found / real - 1.0).abs() < 0.05, "{found} {real}");
    }
    // With which another task is predicted.
    let other = task(2, 40);
    let [expected, predicted] =
        [&real, &found].map(|stages| simulate(&stages.pipeline(&other, link).expect("a pipeline")).seconds);
    assert!((predicted / expected - 1.0).abs() < 0.02, "{predicted} {expected}");
}

proptest! {
    #[test]
    fn more_devices_over_free_links_never_hurt_tensor_parallelism(
        parts in prop::collection::vec((0.01..2.0_f64, any::<bool>()), 1..8),
        devices in 1..8_usize,
    ) {
        let (parts, layers): (Vec<f64>, Vec<bool>) = parts.into_iter().unzip();
        let costs = PartCosts { handed: vec![0.0; parts.len()], parts, around: 0.1 };
        let run = |devices| TensorParallel { devices, link: FREE, hidden_bytes: 4.0 }.run(&costs, &layers, 3).0;
        prop_assert!(run(devices + 1) <= run(devices) + 1e-12);
        prop_assert!(run(devices) >= costs.seconds() / devices as f64 - 1e-12);
    }

    #[test]
    fn a_pipeline_is_never_faster_than_its_devices_together(
        prefill in prop::collection::vec(0.01..2.0_f64, 4..9),
        devices in 1..5_usize,
        groups in 1..5_usize,
        generate in 1..9_usize,
    ) {
        let costs = costs(&prefill, &prefill);
        let task = task(groups, generate);
        let cut = balanced(&costs, &task, devices).expect("a cut");
        let link = Link { bandwidth: 1e5, latency: 0.001 };
        let outcome = simulate(&apart(&costs, &task, &cut, link).expect("a pipeline"));
        let alone = groups as f64 * costs.of_batch(2, generate).expect("measured").0;
        prop_assert!(outcome.seconds >= alone / devices as f64 - 1e-9);
    }
}
