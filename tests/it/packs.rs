//! Packs run as the packages do that they were made of, whole or layer by layer, wherever their weights are.

use std::path::Path;

use ortbench::cell::{Residency, RuntimeRef};
use ortbench::engine::{Decoder, Features, Plan, Prompt};
use ortbench::loader::pack;
use ortbench::package::Package;
use ortbench::package::shards::Form;
use ortbench::runtime::catalog;

use crate::real::{fails, generate, load_with, package, package_of};

/// Two prompts of unequal length: the first is padded.
fn prompts() -> Vec<Prompt> {
    vec![Prompt::text((0..19).map(|i| 3 + (i * 7) % 90).collect()), Prompt::text((0..40).map(|i| 5 + i % 80).collect())]
}

/// The logits of the prompts' last tokens and of some steps after them.
fn logits(package: &Package, plan: &Plan) -> Vec<f32> {
    let mut model = load_with(package, plan).expect("a model");
    let prompts = prompts();
    let mut decoder = Decoder::new(&model, prompts.len(), 48).expect("a decoder");
    decoder.prefill(&mut model, &prompts, &Features::default()).expect("a prefill");
    let mut all: Vec<f32> = decoder.logits().iter().copied().collect();
    for step in 0..6u32 {
        decoder.step(&mut model, &[10 + step, 20 + step]).expect("a step");
        all.extend(decoder.logits().iter());
    }
    all
}

fn packed(package: &Package, folder: &Path) -> Package {
    packed_as(Form::Operators, package, folder)
}

fn packed_as(form: Form, package: &Package, folder: &Path) -> Package {
    let options = pack::Options { form, threshold: 4096, ..pack::Options::default() };
    pack::pack(package, folder, &options, &pack::Quiet).expect("a pack");
    Package::open(folder).expect("a package")
}

/// The largest difference, as a share of the largest logit.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = a.iter().fold(0f32, |most, value| most.max(value.abs()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max) / largest
}

/// The same for each row of logits: a prefill and six steps of two sequences.
fn differences(a: &[f32], b: &[f32]) -> Vec<f32> {
    let row = a.len() / 14;
    a.chunks_exact(row).zip(b.chunks_exact(row)).map(|(a, b)| difference(a, b)).collect()
}

/// Every model, precision and flavour: whole, cut into layers, in groups, with caches that wait on disk.
#[test]
fn packs_compute_what_their_packages_do() {
    for model in ["qwen3-tiny", "qwen3-moe-tiny", "glm4-moe-lite-tiny", "qwen3-vl-tiny"] {
        for name in ["int4-fused", "int8-fused", "fp32-fused", "fp16-fused", "int4-plain", "fp32-plain"] {
            let package = Package::open(&package_of(model, name)).expect("a package");
            let folder = tempfile::tempdir().expect("a folder");
            let pack = packed(&package, &folder.path().join("pack"));
            assert!(pack.shards().expect("an index").is_some_and(|index| !index.records.is_empty()), "{model} {name}");
            let plan = Plan::with_threads(2);
            let expected = logits(&package, &plan);
            let whole = logits(&pack, &plan);
            let cut = Plan { micro_batch: Some(2), ..plan.clone() };
            let cases = [
                ("whole", whole.clone()),
                ("cut", logits(&pack, &cut)),
                ("cut in groups", logits(&pack, &Plan { micro_batch: Some(1), ..plan.clone() })),
                ("caches on disk", logits(&pack, &Plan { offload: Some(folder.path().to_owned()), ..cut })),
            ];
            for (case, found) in cases {
                let apart = difference(&expected, &found);
                eprintln!("{model} {name} {case}: {apart}");
                assert!(apart < 2e-2, "{model} {name} {case}: {apart}");
            }
        }
    }
}

/// Wherever weights are, the figures are the same to the last bit.
#[test]
fn residencies_agree_to_the_bit() {
    for (model, name) in
        [("qwen3-tiny", "int4-fused"), ("qwen3-moe-tiny", "int4-fused"), ("glm4-moe-lite-tiny", "fp16-plain")]
    {
        let package = Package::open(&package_of(model, name)).expect("a package");
        let folder = tempfile::tempdir().expect("a folder");
        let pack = packed(&package, &folder.path().join("pack"));
        let at = |residency| logits(&pack, &Plan { residency: Some(residency), ..Plan::with_threads(2) });
        let expected = at(Residency::Resident);
        for residency in [Residency::Mapped, Residency::Stream, Residency::Experts] {
            assert_eq!(expected, at(residency), "{model} {name} {residency}");
        }
        let one = logits(&pack, &Plan { residency: Some(Residency::Stream), ..Plan::with_threads(1) });
        assert!(difference(&expected, &one) < 5e-3, "{model} {name} on one thread");
    }
}

/// Weights as inputs of segments: lent from where they are, streamed, copied ahead as to a device; in groups.
#[test]
fn packs_of_inputs_compute_what_their_packages_do() {
    for model in ["qwen3-tiny", "qwen3-moe-tiny", "glm4-moe-lite-tiny", "qwen3-vl-tiny"] {
        for precision in ["int4", "int8", "fp32", "fp16"] {
            for flavour in ["fused", "plain"] {
                let name = format!("{precision}-{flavour}");
                // Quantized weights that are no constants are multiplied without rounding activations to 8 bits, as the
                // package's are: that alone moves logits so much.
                let most = if precision.starts_with("int") { 6e-2 } else { 3e-3 };
                let package = Package::open(&package_of(model, &name)).expect("a package");
                let folder = tempfile::tempdir().expect("a folder");
                let pack = packed_as(Form::Inputs, &package, &folder.path().join("pack"));
                let plan = Plan::with_threads(2);
                let expected = logits(&package, &plan);
                let resident = logits(&pack, &plan);
                let stream = Plan { residency: Some(Residency::Stream), ..plan.clone() };
                let copied = Plan { copies_weights: true, ..stream.clone() };
                let mut cases = vec![("streamed", stream.clone()), ("copied ahead", copied.clone())];
                if model == "qwen3-moe-tiny" {
                    cases.push(("mapped", Plan { residency: Some(Residency::Mapped), ..plan.clone() }));
                    cases.push(("all copied", Plan { copies_weights: true, ..plan.clone() }));
                }
                for (case, plan) in &cases {
                    assert!(logits(&pack, plan) == resident, "{model} {name} {case}");
                }
                let groups = Plan { micro_batch: Some(1), ..copied };
                for (case, found) in [("groups", logits(&pack, &groups)), ("resident", resident)] {
                    let mut rows = differences(&expected, &found);
                    rows.sort_by(f32::total_cmp);
                    // A router that is all but undecided may choose another expert: in one row, not in two.
                    let flips = usize::from(most > 0.01 && model.contains("moe"));
                    let apart = rows[rows.len() - 1 - flips];
                    eprintln!("{model} {name} {case}: {apart}");
                    assert!(apart < most, "{model} {name} {case}: {rows:?}");
                }
            }
        }
    }
}

/// Large hidden states of groups that wait leave for the disk, and come back as they were.
#[test]
fn hidden_states_wait_on_disk() {
    let prompts: Vec<Prompt> =
        (0..12u32).map(|row| Prompt::text((0..600 - 7 * row).map(|i| 3 + (i * (5 + row)) % 400).collect())).collect();
    let cases = [("fp32-fused", Form::Operators, Residency::Resident), ("fp32-plain", Form::Inputs, Residency::Stream)];
    for (name, form, residency) in cases {
        let package = Package::open(&package(name)).expect("a package");
        let folder = tempfile::tempdir().expect("a folder");
        let pack = packed_as(form, &package, &folder.path().join("pack"));
        let run = |offload: Option<&Path>| {
            let plan = Plan {
                micro_batch: Some(2),
                residency: Some(residency),
                offload: offload.map(Path::to_owned),
                ..Plan::with_threads(2)
            };
            let mut model = load_with(&pack, &plan).expect("a model");
            let mut decoder = Decoder::new(&model, prompts.len(), 640).expect("a decoder");
            let mut all = Vec::new();
            // Twice: room is used again.
            for _ in 0..2 {
                decoder.prefill(&mut model, &prompts, &Features::default()).expect("a prefill");
                all.extend(decoder.logits().iter().copied());
                for step in 0..2 {
                    decoder.step(&mut model, &[10 + step; 12]).expect("a step");
                    all.extend(decoder.logits().iter().copied());
                }
            }
            (all, decoder.most_hidden_bytes(), decoder.traffic(), model.hidden_bytes(2, 600) as usize)
        };
        let (expected, in_memory, none, estimate) = run(None);
        let (found, waiting, traffic, _) = run(Some(folder.path()));
        assert!(none.is_none() && found == expected, "{name} {form:?}");
        // Every group's at once, against those of the one that ran, the next one and the one that leaves.
        assert!(in_memory > 6 << 20, "{name} {form:?}: {in_memory}");
        // A budget counts them beforehand, those of six groups here.
        assert!(
            in_memory <= 6 * estimate && 6 * estimate < 2 * in_memory,
            "{name} {form:?}: {estimate} of {in_memory}"
        );
        assert!(waiting * 2 <= in_memory, "{name} {form:?}: {waiting} of {in_memory}");
        let traffic = traffic.expect("a disk");
        eprintln!("{name} {form:?}: {waiting} of {in_memory} bytes, {traffic:?}");
        assert!(traffic.read > 2 * in_memory as u64, "{name} {form:?}: {traffic:?}");
    }
}

/// Whether a runtime is there; says so where it is not.
fn installed(name: &str) -> bool {
    let found = catalog::find(&RuntimeRef::Installed(name.to_owned())).is_ok();
    if !found {
        eprintln!("skipped: the runtime `{name}` is not installed");
    }
    found
}

/// A process of its own for each provider: it can load one library only.
fn generated(pack: &Path, arguments: &[&str]) -> String {
    generate(pack, &[&["--prompt", "The quick", "-n", "12", "--ids"], arguments].concat())
}

#[test]
fn packs_of_inputs_run_on_openvino() {
    if !installed("openvino") {
        return;
    }
    for model in ["qwen3-tiny", "qwen3-moe-tiny"] {
        let package = Package::open(&package_of(model, "fp32-plain")).expect("a package");
        let folder = tempfile::tempdir().expect("a folder");
        let pack = packed_as(Form::Inputs, &package, &folder.path().join("pack"));
        let expected = generated(&package.root, &[]);
        for residency in ["resident", "stream"] {
            let found = generated(&pack.root, &["--provider", "openvino", "--residency", residency]);
            assert_eq!(found, expected, "{model} {residency}");
        }
    }
}

/// Our operators run on the CPU: a row of another provider with them would say what is not so.
#[test]
fn packs_of_operators_name_the_other_form_to_other_providers() {
    if !installed("openvino") {
        return;
    }
    let package = Package::open(&package("int4-fused")).expect("a package");
    let folder = tempfile::tempdir().expect("a folder");
    let pack = packed(&package, &folder.path().join("pack"));
    let path = pack.root.to_str().expect("a path");
    let (_, text) = fails(&["generate", path, "--prompt", "The quick", "--provider", "openvino"]);
    assert!(text.contains("run on the CPU, not on OpenVINO") && text.contains("--form inputs"), "{text}");
}

#[test]
fn packs_of_inputs_run_on_a_gpu() {
    if !installed("cuda") {
        return;
    }
    if !Path::new("/proc/driver/nvidia/version").exists() {
        eprintln!("skipped: this machine has no NVIDIA driver");
        return;
    }
    let package = Package::open(&package_of("qwen3-tiny", "fp16-plain")).expect("a package");
    let folder = tempfile::tempdir().expect("a folder");
    let pack = packed_as(Form::Inputs, &package, &folder.path().join("pack"));
    let expected = generated(&package.root, &["--provider", "cuda"]);
    for residency in ["resident", "stream"] {
        assert_eq!(generated(&pack.root, &["--provider", "cuda", "--residency", residency]), expected, "{residency}");
    }
}
