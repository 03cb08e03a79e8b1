//! What waits on disk in fewer bytes: without loss answers stay the same to the bit, with 8 bits they stay near.

use std::path::Path;

use ortbench::cell::Residency;
use ortbench::engine::{CacheMode, Decoder, Features, Plan, Prompt};
use ortbench::loader::pack;
use ortbench::loader::spill::{SpillCodec, Traffic};
use ortbench::package::Package;
use ortbench::package::shards::Form;

use crate::real::{load_with, package_of};

fn packed(model: &str, name: &str, form: Form, folder: &Path) -> Package {
    let package = Package::open(&package_of(model, name)).expect("a package");
    let options = pack::Options { form, threshold: 4096, ..pack::Options::default() };
    pack::pack(&package, &folder.join("pack"), &options, &pack::Quiet).expect("a pack");
    Package::open(&folder.join("pack")).expect("a package")
}

/// Logits of sequences of unequal length that wait in turns, with a way back in between.
fn run(pack: &Package, plan: &Plan, rows: u32, longest: u32) -> (Vec<f32>, Option<Traffic>) {
    let prompt = |row: u32| Prompt::text((0..longest - 7 * row).map(|i| 3 + (i * (5 + row)) % 390).collect());
    let prompts: Vec<Prompt> = (0..rows).map(prompt).collect();
    let mut model = load_with(pack, plan).expect("a model");
    let mut decoder = Decoder::new(&model, prompts.len(), longest as usize + 20).expect("a decoder");
    let mut all = Vec::new();
    // Twice: room is used again, by fewer tokens.
    for round in 0..2 {
        let prompts: Vec<Prompt> = prompts.iter().map(|prompt| shorter(prompt, round * 50)).collect();
        decoder.prefill(&mut model, &prompts, &Features::default()).expect("a prefill");
        all.extend(decoder.logits().iter().copied());
        for step in 0..3 {
            decoder.step(&mut model, &vec![10 + step; prompts.len()]).expect("a step");
            all.extend(decoder.logits().iter().copied());
        }
    }
    (all, decoder.traffic())
}

fn shorter(prompt: &Prompt, tokens: usize) -> Prompt {
    Prompt::text(prompt.tokens[tokens..].to_vec())
}

/// Caches in place, appended and joined by standard operators; hidden states of groups; floats, halves.
#[test]
fn what_waits_is_compressed_without_loss() {
    for (model, name, form, cache) in [
        ("qwen3-tiny", "fp32-fused", Form::Operators, None),
        ("qwen3-tiny", "fp16-fused", Form::Inputs, Some(CacheMode::Append)),
        ("glm4-moe-lite-tiny-absorbed", "fp16-fused", Form::Operators, None),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let pack = packed(model, name, form, folder.path());
        let residency = Some(if form == Form::Inputs { Residency::Stream } else { Residency::Resident });
        let memory = Plan { micro_batch: Some(2), residency, cache, ..Plan::with_threads(2) };
        let on_disk = |offload_codec| {
            let plan = Plan { offload: Some(folder.path().to_owned()), offload_codec, ..memory.clone() };
            run(&pack, &plan, 4, 600)
        };
        let (expected, _) = run(&pack, &memory, 4, 600);
        for codec in [SpillCodec::Zstd, SpillCodec::Planes] {
            let (found, traffic) = on_disk(codec);
            let traffic = traffic.expect("a disk");
            eprintln!("{model} {name} {codec}: {:.3} {traffic:?}", traffic.read_plain as f64 / traffic.read as f64);
            assert!(found == expected, "{model} {name}: other answers with {codec}");
            // Pages are rounded up.
            assert!(traffic.read <= traffic.read_plain + traffic.read_plain / 4, "{model} {name} {codec}: {traffic:?}");
            if codec == SpillCodec::Planes {
                assert!(traffic.read < traffic.read_plain, "{model} {name}: {traffic:?}");
            }
        }
        let (found, traffic) = on_disk(SpillCodec::Int8);
        let traffic = traffic.expect("a disk");
        let largest = expected.iter().fold(0_f32, |most, value| most.max(value.abs()));
        let apart = expected.iter().zip(&found).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        let apart = (apart / expected.len() as f64).sqrt() / f64::from(largest);
        eprintln!("{model} {name} int8: {apart:.4}, {:.3}", traffic.read_plain as f64 / traffic.read as f64);
        // A router that is all but undecided may choose another expert.
        assert!(traffic.read * 3 < traffic.read_plain * 2, "{model} {name}: {traffic:?}");
        assert!(apart > 0.0 && apart < 0.05, "{model} {name}: {apart}");
    }
}
