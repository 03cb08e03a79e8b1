//! Caches and logits in memory of ONNX Runtime's, as on a device, here that of the CPU provider: what only decides where
//! bytes are must change none of them.

use ortbench::cell::{Dtype, Scoring};
use ortbench::engine::scoring::{Budget, Group, Scorer};
use ortbench::engine::{CacheMode, Decoder, Features, Plan, Prompt};
use ortbench::loader::pack;
use ortbench::package::Package;
use ortbench::package::shards::Form;
use ortbench::runtime::Bindings;

use crate::real::{load_with, package_of};

fn there(plan: &Plan) -> Plan {
    Plan { copies_caches: true, ..plan.clone() }
}

/// Logits of two prompts of unequal length and of steps after them, twice in one decoder.
fn logits(package: &Package, plan: &Plan) -> Vec<f32> {
    let mut model = load_with(package, plan).expect("a model");
    let prompt = |count: u32, factor: u32| Prompt::text((0..count).map(|i| 3 + (i * factor) % 90).collect());
    let mut all = Vec::new();
    let mut decoder = Decoder::new(&model, 2, 48).expect("a decoder");
    decoder.touch_cache();
    for prompts in [[prompt(19, 7), prompt(40, 3)], [prompt(33, 5), prompt(4, 11)]] {
        decoder.prefill(&mut model, &prompts, &Features::default()).expect("a prefill");
        all.extend(decoder.logits().iter().copied());
        for step in 0..5 {
            decoder.step(&mut model, &[10 + step, 20 + step]).expect("a step");
            all.extend(decoder.logits().iter().copied());
        }
    }
    all
}

#[test]
fn caches_on_a_device_change_no_bit() {
    for model in ["qwen3-tiny", "qwen3-moe-tiny", "glm4-moe-lite-tiny-absorbed", "qwen3-vl-tiny"] {
        for name in ["fp32-fused", "fp16-fused", "int4-fused", "fp16-plain"] {
            let package = Package::open(&package_of(model, name)).expect("a package");
            for cache in [None, Some(CacheMode::Append)] {
                let plan = Plan { cache, ..Plan::with_threads(2) };
                assert!(logits(&package, &plan) == logits(&package, &there(&plan)), "{model} {name} {cache:?}");
            }
        }
    }
}

/// A mask as wide as the cache, and inputs and logits that are copied to and from one place each.
#[test]
fn steps_of_fixed_shapes_compute_the_same() {
    for model in ["qwen3-tiny", "qwen3-moe-tiny", "qwen3-vl-tiny"] {
        for name in ["fp32-fused", "fp16-fused", "int4-fused"] {
            let package = Package::open(&package_of(model, name)).expect("a package");
            let plan = Plan::with_threads(2);
            let fixed = Plan { fixed_steps: true, ..there(&plan) };
            let (expected, found) = (logits(&package, &plan), logits(&package, &fixed));
            assert!(expected == found, "{model} {name}");
        }
    }
}

/// What parts hand over is on the device as well.
#[test]
fn parts_hand_over_on_a_device() {
    for name in ["int4-fused", "fp32-plain"] {
        let package = Package::open(&package_of("qwen3-tiny", name)).expect("a package");
        let folder = tempfile::tempdir().expect("a folder");
        let options = pack::Options { form: Form::Inputs, threshold: 4096, ..pack::Options::default() };
        let place = folder.path().join("pack");
        pack::pack(&package, &place, &options, &pack::Quiet).expect("a pack");
        let pack = Package::open(&place).expect("a package");
        for micro_batch in [None, Some(1)] {
            let plan = Plan { micro_batch, copies_weights: true, ..Plan::with_threads(2) };
            assert!(logits(&pack, &plan) == logits(&pack, &there(&plan)), "{name} {micro_batch:?}");
        }
    }
}

/// Trying out several continuations of a batch overwrites caches in `append` mode, and brings them back.
#[test]
fn caches_on_a_device_are_brought_back_after_trying_out() {
    let package = Package::open(&package_of("qwen3-tiny", "fp32-fused")).expect("a package");
    let tokens = |count: u32, factor: u32| (0..count).map(|i| 3 + (i * factor) % 90).collect::<Vec<u32>>();
    let groups: Vec<Group> = [(30, 3), (12, 5), (30, 7)]
        .map(|(count, factor)| Group {
            prompt: Prompt::text(tokens(count, factor)),
            continuations: vec![tokens(4, 2), tokens(2, 9), tokens(7, 13)],
        })
        .into();
    let scored = |plan: &Plan| {
        let mut model = load_with(&package, plan).expect("a model");
        Scorer::new(&mut model, Scoring::Batched, Budget::default()).score(&groups, &mut |_| Ok(())).expect("scores")
    };
    let plan = Plan { cache: Some(CacheMode::Append), ..Plan::with_threads(2) };
    assert_eq!(scored(&plan), scored(&there(&plan)));
}

#[test]
fn bfloat16_passes_through_buffers() {
    let package = Package::open(&package_of("qwen3-tiny", "fp32-fused")).expect("a package");
    // Loads ONNX Runtime, whose memory descriptions bindings need.
    load_with(&package, &Plan::with_threads(1)).expect("a model");
    let mut bindings = Bindings::of_parts([]).expect("bindings");
    let values = [1.0, -0.5, 3.140_625, 1e38];
    let id = bindings.allocate(values.len() * Dtype::BFloat16.size()).expect("a buffer");
    bindings.write_f32(id, Dtype::BFloat16, &values);
    let mut back = Vec::new();
    bindings.read_f32(id, Dtype::BFloat16, 1..4, &mut back);
    assert_eq!(back[..2], values[1..3]);
    assert!((back[2] / values[3] - 1.0).abs() < 1.0 / 128.0);
    // The upper half of a single-precision number.
    assert_eq!(bindings.read::<u8>(id, 4), [0x80, 0x3f, 0x00, 0xbf]);
    assert_eq!(serde_json::to_string(&Dtype::BFloat16).expect("a word"), "\"bfloat16\"");
}
