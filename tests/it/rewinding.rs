//! Going back to the end of a prompt: decode behind it again is the same decode.

use ortbench::engine::sampling::argmax;
use ortbench::engine::{Decoder, Features, Model, Prompt};
use ortbench::package::Package;

use crate::real::{load, package_of};

/// Greedy tokens of all rows, and the last logits.
fn decode(model: &mut Model, decoder: &mut Decoder, first: &[u32], steps: usize) -> (Vec<u32>, Vec<f32>) {
    let mut tokens = first.to_vec();
    let mut all = Vec::new();
    for _ in 0..steps {
        decoder.step(model, &tokens).expect("a step");
        tokens = decoder.logits().rows().into_iter().map(|row| argmax(row).expect("a token")).collect();
        all.extend_from_slice(&tokens);
    }
    (all, decoder.logits().iter().copied().collect())
}

#[test]
fn decode_behind_a_checkpoint_repeats_itself() {
    // Caches in place and caches that grow; rows of different lengths; latent attention's cache as well.
    for (name, form) in [
        ("qwen3-tiny", "fp32-fused"),
        ("qwen3-tiny", "fp32-plain"),
        ("qwen3-moe-tiny", "int4-fused"),
        ("glm4-moe-lite-tiny-absorbed", "fp32-plain"),
    ] {
        let package = Package::open(&package_of(name, form)).expect("a package");
        let mut model = load(&package);
        let prompts = [7_u32, 12].map(|length| Prompt::text((5..5 + length).collect()));
        let mut decoder = Decoder::new(&model, 2, 32).expect("a decoder");
        decoder.prefill(&mut model, &prompts, &Features::default()).expect("a prefill");
        let first: Vec<u32> = decoder.logits().rows().into_iter().map(|row| argmax(row).expect("a token")).collect();
        let checkpoint = decoder.checkpoint().expect("a copy").expect("caches in memory");
        let once = decode(&mut model, &mut decoder, &first, 9);
        for _ in 0..3 {
            decoder.rewind(&checkpoint).expect("a copy back");
            let again = decode(&mut model, &mut decoder, &first, 9);
            assert_eq!(again, once, "{name} {form}");
        }
    }
}
