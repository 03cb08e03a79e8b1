//! Guesses of the next layer's experts: routers in packs, reads ahead, and results that do not change.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use ortbench::cell::Residency;
use ortbench::engine::{Decoder, Features, Plan, Prompt};
use ortbench::loader::pack;
use ortbench::loader::pager::{Options, Pager};
use ortbench::loader::store::Store;
use ortbench::package::Package;
use ortbench::package::onnx::GraphProto;
use ortbench::package::shards::{ROUTERS, ShardIndex, What};
use ortbench::runtime::custom::{Parallel, Routing, Weights};

use crate::pack::checks::{constant, graph};
use crate::real::{fails, load_with, package_of};

const MIXTURES: [&str; 3] = ["qwen3-moe-tiny", "glm4-moe-lite-tiny", "glm4-moe-lite-tiny-absorbed"];

fn packed(from: &Path, folder: &Path) -> Package {
    let package = Package::open(from).expect("a package");
    pack::pack(&package, folder, &pack::Options::default(), &pack::Quiet).expect("a pack");
    Package::open(folder).expect("a package")
}

/// The bytes of a layer's constant with a word in its name.
fn of_layer(folder: &Path, graph: &GraphProto, layer: &str, word: &str) -> Option<Vec<u8>> {
    let names = graph.initializer.iter().map(|tensor| tensor.name());
    let name = names.into_iter().find(|name| name.contains(layer) && name.contains(word));
    name.map(|name| constant(folder, graph, name))
}

#[test]
fn packs_have_copies_of_their_routers() {
    for model in MIXTURES {
        for name in ["int4-fused", "int8-fused", "fp16-fused", "int4-plain"] {
            let from = package_of(model, name);
            let folder = tempfile::tempdir().expect("a folder");
            let package = packed(&from, &folder.path().join("pack"));
            let index = package.shards().expect("an index").expect("a pack");
            if name != "int4-fused" && name != "int8-fused" {
                assert!(index.routers.is_empty(), "{model} {name}");
                assert!(!package.root.join(ROUTERS).exists());
                continue;
            }
            package.verify().expect("hashes of all files");
            let source = graph(&from.join("model.onnx"));
            let all = fs::read(package.root.join(ROUTERS)).expect("routers");
            assert!(index.routers.len() > 1, "{model} {name}");
            for router in &index.routers {
                let layer = router.mixture.split('/').find(|part| part.starts_with("layers.")).expect("a layer");
                let layer = format!("{layer}.");
                let mut expected = of_layer(&from, &source, &layer, "router.weight").expect("a router");
                let bias = of_layer(&from, &source, &layer, "correction_bias");
                assert_eq!(router.bias, bias.is_some());
                assert_eq!(router.bias, model.starts_with("glm4"));
                expected.extend(bias.unwrap_or_default());
                assert!(all[router.offset as usize..][..expected.len()] == expected[..], "{model} {layer}");
                assert_eq!(router.bytes(), Some(expected.len() as u64));
            }
        }
    }
}

/// The logits of a short prompt and some steps after it.
fn logits(package: &Package, plan: &Plan) -> Vec<f32> {
    let mut model = load_with(package, plan).expect("a model");
    let prompts = [Prompt::text(vec![5, 6, 7]), Prompt::text(vec![60, 61, 62, 63])];
    let mut decoder = Decoder::new(&model, prompts.len(), 40).expect("a decoder");
    decoder.prefill(&mut model, &prompts, &Features::default()).expect("a prefill");
    let mut all: Vec<f32> = decoder.logits().iter().copied().collect();
    for step in 0..24u32 {
        decoder.step(&mut model, &[(7 * step) % 90, (11 * step) % 90]).expect("a step");
        all.extend(decoder.logits().iter());
    }
    let statistics = model.pager_statistics().expect("a pager");
    assert!(statistics.guessed_right <= statistics.guessed && (plan.guess > 0 || statistics.guessed == 0));
    all
}

#[test]
fn guesses_change_no_result() {
    for model in MIXTURES {
        let folder = tempfile::tempdir().expect("a folder");
        let package = packed(&package_of(model, "int4-fused"), &folder.path().join("pack"));
        let plan = Plan { residency: Some(Residency::Experts), ..Plan::with_threads(2) };
        let expected = logits(&package, &plan);
        for guess in [1, 2, 100] {
            assert!(logits(&package, &Plan { guess, ..plan.clone() }) == expected, "{model} {guess}");
            let cut = Plan { guess, micro_batch: Some(1), ..plan.clone() };
            let without = Plan { micro_batch: Some(1), ..plan.clone() };
            assert!(logits(&package, &cut) == logits(&package, &without), "{model} {guess} cut");
        }
    }
}

struct Alone;

impl Parallel for Alone {
    fn run(&self, count: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..count).for_each(task);
    }

    fn threads(&self) -> usize {
        1
    }
}

/// A router's scores for a state.
fn scores(folder: &Path, index: &ShardIndex, place: usize, x: &[f32]) -> Vec<f32> {
    let router = &index.routers[place];
    let all = fs::read(folder.join(ROUTERS)).expect("routers");
    let bytes = &all[router.offset as usize..][..router.bytes().expect("a size") as usize];
    let values: Vec<f32> = bytes.chunks_exact(4).map(|value| f32::from_le_bytes(value.try_into().unwrap())).collect();
    let experts = router.experts as usize;
    let (weights, bias) = values.split_at(router.hidden as usize * experts);
    let logit = |expert: usize| x.iter().zip(weights.chunks_exact(experts)).map(|(x, row)| x * row[expert]).sum();
    let logits = (0..experts).map(|expert| -> f32 { logit(expert) });
    if bias.is_empty() {
        return logits.collect();
    }
    logits.zip(bias).map(|(logit, bias)| 1.0 / (1.0 + (-logit).exp()) + bias).collect()
}

#[test]
fn a_right_guess_is_a_hit() {
    for model in MIXTURES {
        let folder = tempfile::tempdir().expect("a folder");
        let package = packed(&package_of(model, "int4-fused"), &folder.path().join("pack"));
        let index = Arc::new(pack::open(&package.root).expect("an index"));
        let store = Store::new(&package.root, Arc::clone(&index));
        store.guess(2).expect("routers");
        store.open(&Options::new(Residency::Experts)).expect("a pager");
        let pager: &Arc<Pager> = store.pager().expect("a pager");
        let routing = Routing { k: 2, normalize: true };
        let mixtures = [0, 1].map(|place| store.experts(&index.routers[place].mixture, routing).expect("experts"));
        let (hidden, experts) = mixtures[0].shape();
        let x: Vec<f32> = (0..hidden).map(|place| ((place * 37 % 23) as f32 - 11.0) / 7.0).collect();
        let mut out = vec![0.0; hidden];
        let mix = |place: usize, out: &mut [f32]| {
            let scores = scores(&package.root, &index, place, &x);
            assert_eq!(scores.len(), experts);
            mixtures[place].mix(&x, &scores, None, out, &Alone).expect("a sum");
        };
        mix(0, &mut out);
        let first = pager.statistics();
        assert_eq!((first.experts_wanted, first.experts_hit), (2, 0), "{model}");
        // The guess is right, since the state is the same; it comes in its own time.
        let dense = index.records.iter().filter(|record| !matches!(record.what, What::Expert { .. })).count() as u64;
        while pager.statistics().reads < dense + 4 {
            std::thread::yield_now();
        }
        let before = pager.statistics();
        assert_eq!((before.guessed, before.guessed_right), (2, 0), "{model}");
        mix(1, &mut out);
        let after = pager.statistics();
        // The second mixture guesses for the third.
        assert!(after.guessed >= 2 && after.guessed_right == 2, "{model}: {after:?}");
        assert_eq!((after.experts_wanted, after.experts_hit), (4, 2), "{model}");
    }
}

#[test]
fn what_cannot_be_guessed_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let package = packed(&package_of("qwen3-moe-tiny", "int4-fused"), &folder.path().join("moe"));
    let plan = Plan { residency: Some(Residency::Stream), guess: 1, ..Plan::with_threads(1) };
    let error = load_with(&package, &plan).expect_err("nothing to guess for");
    assert!(error.chain().contains("not guessed") && error.find_hint().is_some(), "{}", error.chain());

    let plan = Plan { residency: Some(Residency::Experts), ..plan };
    let path = package.root.join(ROUTERS);
    let mut bytes = fs::read(&path).expect("routers");
    bytes[77] ^= 1;
    fs::write(&path, bytes).expect("a damaged file");
    let error = load_with(&package, &plan).expect_err("damage");
    assert!(error.chain().contains("has the hash"), "{}", error.chain());
    let (_, text) = fails(&["pack", "--verify", package.root.to_str().expect("a path")]);
    assert!(text.contains(ROUTERS), "{text}");

    let dense = packed(&package_of("qwen3-tiny", "int4-fused"), &folder.path().join("dense"));
    let error = load_with(&dense, &plan).expect_err("no routers");
    assert!(error.chain().contains("names no routers"), "{}", error.chain());
}
