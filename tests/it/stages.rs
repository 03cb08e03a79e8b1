//! A model in stages, each in a process of its own, says what one process says, to the last bit; and stages that fail
//! end the pipeline with a word.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use ortbench::cell::{Switched, Technique, Workload};
use ortbench::engine::fake;
use ortbench::engine::sampling::argmax;
use ortbench::engine::stages::{Phase, Pipeline, Stages, Via, namespaces_permitted};
use ortbench::engine::{Decoder, Features, Plan, Prompt};
use ortbench::error::Result;
use ortbench::loader::pack;
use ortbench::optimizations::{self, Examination, Setup, Subject, distributed_simulation};
use ortbench::package::Package;
use ortbench::package::shards::Form;
use ortbench::protocol::{FactValue, Reporter};
use rustix::process::{Pid, Signal, kill_process};

use crate::real::{cpu as backend, load_with, package_of, runtime};

fn stages(count: u32, micro_batches: u32) -> Stages {
    Stages { count, bandwidth: None, latency: 0.0, via: Via::Shaper, micro_batches, borders: None }
}

fn packed(model: &str, name: &str, form: Form) -> (tempfile::TempDir, Package) {
    let folder = tempfile::tempdir().expect("a folder");
    let package = Package::open(&package_of(model, name)).expect("a package");
    let options = pack::Options { form, threshold: 4096, ..pack::Options::default() };
    pack::pack(&package, &folder.path().join("pack"), &options, &pack::Quiet).expect("a pack");
    let package = Package::open(&folder.path().join("pack")).expect("a package");
    (folder, package)
}

fn pipeline(package: &Package, stages: Stages) -> Result<Pipeline> {
    let plan = Plan { stages: Some(stages), sequences: 3, tokens: 64, ..Plan::with_threads(2) };
    Pipeline::load_with(runtime(), package, &backend(), &plan, Path::new(env!("CARGO_BIN_EXE_ortbench")))
}

/// Prompts of unequal length.
fn prompts() -> Vec<Prompt> {
    [19_u32, 40, 7].map(|length| Prompt::text((0..length).map(|i| 3 + (i * (5 + length)) % 90).collect())).to_vec()
}

/// What is fed at a step, whatever the model says.
fn fed(step: u32) -> Vec<u32> {
    (0..3).map(|row| 10 + 7 * step + row).collect()
}

/// Logits of one process: groups of the same sizes on as many threads.
fn alone(package: &Package, stages: &Stages) -> Vec<f32> {
    let group = stages.group_sizes(3)[0] as u32;
    let plan = Plan { micro_batch: Some(group), ..Plan::with_threads(stages.threads(2)) };
    let mut model = load_with(package, &plan).expect("a model");
    let mut decoder = Decoder::new(&model, 3, 60).expect("a decoder");
    decoder.prefill(&mut model, &prompts(), &Features::default()).expect("a prefill");
    let mut all: Vec<f32> = decoder.logits().iter().copied().collect();
    for step in 0..5 {
        decoder.step(&mut model, &fed(step)).expect("a step");
        all.extend(decoder.logits().iter());
    }
    all
}

fn together(pipeline: &mut Pipeline) -> Vec<f32> {
    pipeline.prefill(&prompts(), 20).expect("a prefill");
    let mut all: Vec<f32> = pipeline.logits().iter().copied().collect();
    for step in 0..5 {
        pipeline.step(&fed(step)).expect("a step");
        all.extend(pipeline.logits().iter());
    }
    all
}

#[test]
fn stages_say_what_one_process_says() {
    for (model, name, form) in [
        ("qwen3-tiny", "int4-fused", Form::Operators),
        ("qwen3-moe-tiny", "int4-fused", Form::Operators),
        ("glm4-moe-lite-tiny", "int4-plain", Form::Operators),
        ("qwen3-vl-tiny", "int4-fused", Form::Operators),
        ("qwen3-tiny", "fp16-plain", Form::Inputs),
    ] {
        let (_folder, package) = packed(model, name, form);
        for (count, micro_batches) in [(1, 2), (2, 1), (2, 2), (3, 3)] {
            let stages = stages(count, micro_batches);
            let mut pipeline = pipeline(&package, stages.clone()).expect("a pipeline");
            assert_eq!(pipeline.cut().len(), count as usize);
            let expected = alone(&package, &stages);
            assert!(together(&mut pipeline) == expected, "{model} {name}: {count} stages, {micro_batches} groups");
        }
    }
}

/// Greedy tokens of one process.
fn greedy(package: &Package, stages: &Stages, generate: usize) -> Vec<Vec<u32>> {
    let group = stages.group_sizes(3)[0] as u32;
    let plan = Plan { micro_batch: Some(group), ..Plan::with_threads(stages.threads(2)) };
    let mut model = load_with(package, &plan).expect("a model");
    let mut decoder = Decoder::new(&model, 3, 60).expect("a decoder");
    decoder.prefill(&mut model, &prompts(), &Features::default()).expect("a prefill");
    let mut all = vec![Vec::new(); 3];
    for step in 0..generate {
        let chosen: Vec<u32> = decoder.logits().rows().into_iter().map(|row| argmax(row).expect("finite")).collect();
        all.iter_mut().zip(&chosen).for_each(|(row, token)| row.push(*token));
        if step + 1 < generate {
            decoder.step(&mut model, &chosen).expect("a step");
        }
    }
    all
}

fn serve(pipeline: &mut Pipeline, generate: usize) -> Result<Vec<Vec<u32>>> {
    let served = pipeline.serve(&prompts(), generate, &mut |_, _, chosen| chosen)?;
    for sequence in &served.sequences {
        assert!(sequence.first_seconds <= sequence.last_seconds && sequence.last_seconds <= served.seconds);
    }
    Ok(served.sequences.into_iter().map(|sequence| sequence.tokens).collect())
}

#[test]
fn several_groups_are_served_over_a_slow_link() {
    let (_folder, package) = packed("qwen3-tiny", "int4-fused", Form::Operators);
    // A megabyte a second and two milliseconds: slow for a computer, not for a test.
    let slow = Stages { bandwidth: Some(1e6), latency: 2e-3, ..stages(2, 3) };
    let expected = greedy(&package, &slow, 8);
    let mut pipeline = pipeline(&package, slow).expect("a pipeline");
    for _ in 0..2 {
        assert_eq!(serve(&mut pipeline, 8).expect("served"), expected);
    }
    // Three groups, twice: prompts, and seven steps each.
    let times = pipeline.times().expect("times");
    assert_eq!(times.len(), 2);
    for (stage, (timings, sent)) in times.iter().enumerate() {
        let runs: Vec<_> = timings.iter().map(|timing| (timing.phase, timing.sequences, timing.runs)).collect();
        assert_eq!(runs, [(Phase::Prefill, 1, 6), (Phase::Step, 1, 42)]);
        // The first stage also says what batch begins, which is the same one the second time.
        assert_eq!(sent.frames, if stage == 0 { 50 } else { 48 });
        for timing in timings {
            assert_eq!(timing.parts.len(), pipeline.cut()[stage].len());
            let hidden = timing.handed.last().copied().expect("parts");
            assert_eq!(hidden > 0, stage == 0, "what crosses the border");
        }
    }
    let facts = pipeline.facts();
    assert!(facts.iter().all(|facts| facts.load_seconds > 0.0 && facts.resident_bytes > 0));
}

#[test]
fn all_stages_may_be_in_other_processes() {
    let (_folder, package) = packed("qwen3-tiny", "int4-fused", Form::Operators);
    let program = Path::new(env!("CARGO_BIN_EXE_ortbench"));
    for count in [1, 2] {
        let stages = Stages { micro_batches: 2, ..stages(count, 1) };
        let plan = Plan { stages: Some(stages.clone()), sequences: 3, tokens: 64, ..Plan::with_threads(2) };
        let mut pipeline = Pipeline::load_apart(runtime(), &package, &backend(), &plan, program).expect("a pipeline");
        assert_eq!(pipeline.processes().len(), count as usize);
        assert!(pipeline.model().is_none());
        assert_eq!(serve(&mut pipeline, 4).expect("served"), greedy(&package, &stages, 4));
        pipeline.set_micro_batches(1);
        serve(&mut pipeline, 2).expect("served");
        let times = pipeline.times().expect("times");
        let sizes: Vec<usize> = times[0].0.iter().map(|timing| timing.sequences).collect();
        assert_eq!((times.len(), sizes), (count as usize, vec![1, 2, 3, 1, 2, 3]));
    }
}

#[test]
fn a_link_of_a_network_namespace_changes_nothing() {
    if let Err(error) = namespaces_permitted() {
        eprintln!("skipped: {}", error.chain());
        return;
    }
    let (_folder, package) = packed("qwen3-moe-tiny", "int4-fused", Form::Operators);
    let stages = Stages { bandwidth: Some(12.5e6), latency: 1e-3, via: Via::Namespace, ..stages(2, 2) };
    let expected = greedy(&package, &stages, 6);
    let mut pipeline = pipeline(&package, stages).expect("a pipeline");
    assert_eq!(serve(&mut pipeline, 6).expect("served"), expected);
    let child = pipeline.processes()[0];
    let device = format!("/sys/class/net/ob{child}h");
    assert!(Path::new(&device).exists(), "its end of the link");
    drop(pipeline);
    assert!(!Path::new(&device).exists(), "the link has gone with the stage");
    assert!(!Path::new(&format!("/proc/{child}")).exists());
}

#[test]
fn a_stage_that_is_killed_ends_the_pipeline_with_a_word() {
    let (_folder, package) = packed("qwen3-tiny", "int4-fused", Form::Operators);
    for victim in 0..2 {
        let mut pipeline = pipeline(&package, stages(3, 3)).expect("a pipeline");
        serve(&mut pipeline, 2).expect("served");
        let processes = pipeline.processes();
        let killed = Pid::from_raw(processes[victim] as i32).expect("a process");
        let later = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            kill_process(killed, Signal::KILL).expect("a process that runs");
        });
        let error = (0..1000).find_map(|_| serve(&mut pipeline, 8).err()).expect("an error");
        later.join().expect("killed");
        let text = error.chain();
        assert!(text.contains(&format!("stage {}", victim + 1)) && text.contains("signal: 9"), "{text}");
        assert!(error.exit_code() == 3 && error.find_hint().is_some());
        assert!(serve(&mut pipeline, 1).unwrap_err().chain().contains("broke before"));
        drop(pipeline);
        assert!(processes.iter().all(|process| !Path::new(&format!("/proc/{process}")).exists()));
    }
}

#[test]
fn a_stage_whose_pipeline_is_gone_ends() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ortbench"));
    let child = child.arg("stage").stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a process");
    // Its standard input ends without a job.
    let output = child.wait_with_output().expect("its end");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("not understood") && !text.contains("panicked"), "{text}");
}

#[test]
fn what_cannot_run_in_stages_is_refused() {
    let (folder, package) = packed("qwen3-tiny", "int4-fused", Form::Operators);
    let refused = |package: &Package, plan: Plan| {
        let program = Path::new(env!("CARGO_BIN_EXE_ortbench"));
        Pipeline::load_with(runtime(), package, &backend(), &plan, program).map(drop).unwrap_err().chain()
    };
    let plan = |stages: Stages| Plan { stages: Some(stages), ..Plan::with_threads(2) };
    let unpacked = Package::open(&package_of("qwen3-tiny", "int4-fused")).expect("a package");
    assert!(refused(&unpacked, plan(stages(2, 1))).contains("is no pack"));
    assert!(refused(&package, plan(stages(99, 1))).contains("as many as the pack has segments"));
    assert!(refused(&package, plan(stages(0, 1))).contains("at least one"));
    let namespace = Stages { via: Via::Namespace, ..stages(3, 1) };
    assert!(refused(&package, plan(namespace)).contains("two of them at most"));
    let cut = Stages { borders: Some(vec![0]), ..stages(2, 1) };
    assert!(refused(&package, plan(cut)).contains("do not cut"));
    let offload = Plan { offload: Some(folder.path().to_owned()), ..plan(stages(2, 1)) };
    assert!(refused(&package, offload).contains("not on disk"));
    let images = Plan { images: true, ..plan(stages(2, 1)) };
    assert!(refused(&package, images).contains("no images"));
    // A program that is no stage, and one that is not there.
    let with = |program: &str| {
        let plan = plan(stages(2, 1));
        Pipeline::load_with(runtime(), &package, &backend(), &plan, Path::new(program)).map(drop).unwrap_err().chain()
    };
    let text = with("/bin/false");
    assert!(text.contains("stage 1 ended (exit status: 1)"), "{text}");
    assert!(with("/nowhere").contains("cannot start"));
    // A stage that cannot load says why.
    std::fs::remove_file(package.root.join("shards.json")).expect("removed");
    let text = refused(&package, plan(stages(2, 1)));
    assert!(text.contains("shards.json"), "{text}");
}

#[test]
fn a_pipeline_refuses_batches_that_it_cannot_serve() {
    let (_folder, package) = packed("qwen3-tiny", "int4-fused", Form::Operators);
    let mut pipeline = pipeline(&package, stages(2, 2)).expect("a pipeline");
    let mut serve = |prompts: &[Prompt], generate| {
        pipeline.serve(prompts, generate, &mut |_, _, chosen| chosen).map(|served| served.sequences.len())
    };
    assert!(serve(&[], 1).unwrap_err().chain().contains("at least one prompt"));
    assert!(serve(&[Prompt::text(vec![])], 1).unwrap_err().chain().contains("at least one token"));
    assert!(serve(&prompts(), 0).unwrap_err().chain().contains("at least one new token"));
    assert!(serve(&prompts(), 1 << 30).unwrap_err().chain().contains("context"));
    // None of which broke anything.
    assert_eq!(serve(&prompts(), 2).expect("served"), 3);
    assert_eq!(serve(&prompts()[..1], 2).expect("a smaller batch"), 1);
}

/// What the technique measures of itself: figures that fit each other, whatever the machine.
#[test]
fn a_simulation_is_held_against_two_processes() {
    let (_folder, package) = packed("qwen3-tiny", "int4-fused", Form::Operators);
    let mut cell = fake::cell("tiny", "cpu");
    cell.model.package.clone_from(&package.root);
    cell.threads = 2;
    cell.workload = Workload { batch: 4, prompt_tokens: 12, generate_tokens: 6, ..cell.workload };
    let technique = optimizations::of(Technique::DistributedSimulation);
    for (options, real) in [
        (vec![("bandwidth", "1"), ("latency", "0.5")], true),
        (vec![("devices", "4"), ("micro_batches", "4"), ("link", "shaper")], true),
        (vec![("parallel", "tensor"), ("devices", "2")], false),
    ] {
        let options = options.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let switched = Switched { technique: Technique::DistributedSimulation, options };
        let (_, told) = optimizations::known(&switched).expect("options");
        let subject = Subject { cell: &cell, manifest: &package.manifest };
        technique.check(&subject, &told).expect("applicable");
        let mut setup = Setup { backend: backend(), ..Setup::plain(&cell) };
        technique.apply(&mut setup, &subject, &told).expect("applied");
        assert_eq!(setup.plan.stages.is_some(), real && told.is("devices", "2"));
        let exam = Examination {
            runtime: runtime(),
            cell: &cell,
            setup: &setup,
            package: &package,
            report: &Reporter::new(std::io::sink()),
        };
        let program = Path::new(env!("CARGO_BIN_EXE_ortbench"));
        let evidence = distributed_simulation::examine_with(&exam, &told, program).expect("evidence");
        let figure = |name: &str| match evidence.get(name) {
            Some(FactValue::Float(value)) => *value,
            other => panic!("{name}: {other:?}"),
        };
        for name in ["simulated_tokens_per_second", "simulated_ttft_seconds", "simulated_speedup"] {
            assert!(figure(name) > 0.0, "{name}: {evidence:?}");
        }
        assert!((0.0..1.0).contains(&figure("simulated_bubble_share")), "{evidence:?}");
        assert!((0.0..=1.0).contains(&figure("simulated_link_share")), "{evidence:?}");
        assert_eq!(evidence.contains_key("simulation_error_percent"), real, "{evidence:?}");
        if real {
            let share =
                figure("simulation_predicted_tokens_per_second") / figure("simulation_measured_tokens_per_second");
            assert!((figure("simulation_error_percent") - (share - 1.0) * 100.0).abs() < 1e-6);
            assert!(figure("simulation_slowdown") >= 1.0 && figure("simulation_hop_seconds") >= 0.0);
        }
    }
}
