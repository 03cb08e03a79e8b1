//! Packs run as the packages do that they were made of, whole or layer by layer, wherever their weights are.

use std::path::Path;

use ortbench::cell::Residency;
use ortbench::engine::{Decoder, Features, Plan, Prompt};
use ortbench::loader::pack;
use ortbench::package::Package;

use crate::real::{load_with, package_of};

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
    let options = pack::Options { threshold: 4096, ..pack::Options::default() };
    pack::pack(package, folder, &options, &pack::Quiet).expect("a pack");
    Package::open(folder).expect("a package")
}

/// The largest difference, as a share of the largest logit.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = a.iter().fold(0f32, |most, value| most.max(value.abs()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max) / largest
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
