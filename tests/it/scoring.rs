//! Log-likelihoods by every way of computing them, on every miniature: shared prompts and batches against one sequence
//! after the other, whole sequences against sequences in parts.

use ortbench::cell::Scoring;
use ortbench::engine::scoring::{Budget, Group, Likelihood, Normaliser, Scorer};
use ortbench::engine::{Model, Prompt};
use ortbench::package::Package;
use ortbench::vision;

use crate::real::{load, package_of, root};

const TEXT: [&str; 4] = ["qwen3-tiny", "qwen3-moe-tiny", "glm4-moe-lite-tiny", "glm4-moe-lite-tiny-absorbed"];

/// Single-precision sums in another order.
const TOLERANCE: f64 = 3e-4;

fn score(model: &mut Model, scoring: Scoring, budget: Budget, groups: &[Group]) -> Vec<Vec<Likelihood>> {
    let total: usize = groups.iter().map(|group| group.continuations.len()).sum();
    let mut last = 0;
    let mut progress = |done: usize| {
        assert!(done > last && done <= total, "{done} of {total}");
        last = done;
        Ok(())
    };
    let found = Scorer::new(model, scoring, budget).score(groups, &mut progress).expect("likelihoods");
    assert_eq!(last, total);
    found
}

/// Prompts of many lengths, each with continuations of one to many tokens, some prompts with a single one.
fn groups(vocab: u32) -> Vec<Group> {
    let mut state = 7_u32;
    let mut draw = |below: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % below
    };
    let mut tokens = |count: u32| (0..count).map(|_| draw(vocab)).collect::<Vec<u32>>();
    let shapes: [(u32, &[u32]); 9] = [
        (1, &[1, 1, 1]),
        // Every position of the longest sequence is wanted, and of its neighbours a few.
        (1, &[100]),
        (3, &[9, 2]),
        (40, &[1, 5, 3, 8]),
        (41, &[4, 1]),
        (12, &[6]),
        (90, &[1]),
        (25, &[2, 2, 2, 2, 2]),
        (2, &[30, 1, 12]),
    ];
    let group = |(prompt, continuations): (u32, &[u32])| Group {
        prompt: Prompt::text(tokens(prompt)),
        continuations: continuations.iter().map(|&count| tokens(count)).collect(),
    };
    shapes.into_iter().map(group).collect()
}

/// int4 weights are multiplied with activations rounded to integers, and a last digit may decide which integer.
fn tolerance(what: &str) -> f64 {
    if what.contains("genai-tiny") { 0.3 } else { TOLERANCE }
}

fn assert_alike(found: &[Vec<Likelihood>], expected: &[Vec<Likelihood>], what: &str) {
    assert_eq!(found.len(), expected.len());
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(expected) {
            let difference = (a.log_likelihood - b.log_likelihood).abs();
            assert!(difference < tolerance(what), "{what}, group {at}: {a:?} and {b:?}");
            assert!(a.greedy == b.greedy || tolerance(what) > TOLERANCE, "{what}, group {at}");
        }
    }
}

#[test]
fn every_way_gives_the_same_likelihoods() {
    // The last one's graph gives the logits of every position, whatever is wanted.
    let folders = TEXT.iter().flat_map(|name| ["fp32-fused", "fp32-plain"].map(|kind| package_of(name, kind)));
    for folder in folders.chain([root().join("tests/data/genai-tiny")]) {
        let package = Package::open(&folder).expect("a package");
        let mut model = load(&package);
        let shape = &package.manifest.shape;
        let (vocab, context) = (shape.vocab_size, shape.context_length as usize);
        let mut groups = groups(vocab as u32);
        // The longest prompt and the longest continuation exceed the context together, and are of two items.
        let long = |count: usize| (0..count).map(|i| (i * 11 % 700) as u32).collect::<Vec<u32>>();
        groups.push(Group { prompt: Prompt::text(long(context - 2)), continuations: vec![vec![1], vec![2, 3]] });
        groups.push(Group { prompt: Prompt::text(long(context - 60)), continuations: vec![long(50), vec![2]] });
        let what = folder.display().to_string();
        let expected = score(&mut model, Scoring::OneByOne, Budget::default(), &groups);
        let batched = score(&mut model, Scoring::Batched, Budget::default(), &groups);
        assert_alike(&batched, &expected, &what);
        // Batches of three rows, and logits of two positions at a time: long continuations go in parts.
        let tight = Budget { rows: 3, logits_bytes: 2 * 4 * vocab, ..Budget::default() };
        assert_alike(&score(&mut model, Scoring::Batched, tight, &groups), &expected, &format!("{what}, tight"));
        let single = Budget { rows: 1, ..Budget::default() };
        assert_alike(&score(&mut model, Scoring::Batched, single, &groups), &expected, &format!("{what}, single"));
    }
}

/// Prompts with few-shot examples before them: the second of two subjects begins otherwise, and one prompt is the
/// beginning of another.
#[test]
fn prompts_that_begin_alike_share_what_they_share() {
    for name in TEXT {
        for kind in ["fp32-fused", "fp32-plain"] {
            let package = Package::open(&package_of(name, kind)).expect("a package");
            let mut model = load(&package);
            let vocab = package.manifest.shape.vocab_size as u32;
            let examples = |subject: u32| (0..150).map(move |i| (i * 31 + subject * 77 + 9) % vocab);
            let group = |number: u32| {
                let own = (0..number % 7).map(|i| (i * 13 + number * 5 + 3) % vocab);
                let tokens: Vec<u32> = examples(number % 2).chain(own).collect();
                let continuations = vec![vec![number % vocab], vec![4, 5 + number % 3, 6], vec![8; 12]];
                Group { prompt: Prompt::text(tokens), continuations }
            };
            let groups: Vec<Group> = (0..16).map(group).collect();
            let expected = score(&mut model, Scoring::OneByOne, Budget::default(), &groups);
            let shared = score(&mut model, Scoring::Batched, Budget::default(), &groups);
            assert_alike(&shared, &expected, &format!("{name} {kind}"));
        }
    }
}

#[test]
fn a_stream_of_logits_is_that_of_the_whole_sequence() {
    for kind in ["fp32-fused", "fp32-plain"] {
        let package = Package::open(&package_of("qwen3-tiny", kind)).expect("a package");
        let mut model = load(&package);
        let vocab = package.manifest.shape.vocab_size;
        let tokens: Vec<u32> = (0..60).map(|i| (i * 37 + 5) % vocab as u32).collect();
        let mut likelihoods = |budget: Budget, from: usize| {
            let mut found = Vec::new();
            let mut visit = |position: usize, logits: &[f32]| {
                assert_eq!(position, from + found.len());
                let next = tokens.get(position + 1).copied().unwrap_or(0);
                found.push(Normaliser::of(logits)?.log_probability(logits[next as usize]));
                Ok(())
            };
            Scorer::new(&mut model, Scoring::Batched, budget).stream(&tokens, from, &mut visit).expect("logits");
            found
        };
        let whole = likelihoods(Budget::default(), 0);
        assert_eq!(whole.len(), tokens.len());
        for (positions, from) in [(1, 0), (7, 0), (16, 11), (59, 0), (60, 59)] {
            let budget = Budget { logits_bytes: positions * 4 * vocab, ..Budget::default() };
            let parts = likelihoods(budget, from);
            assert_eq!(parts.len(), tokens.len() - from);
            for (a, b) in parts.iter().zip(&whole[from..]) {
                assert!((a - b).abs() < 1e-4, "{kind}, {positions} at a time from {from}: {a} and {b}");
            }
        }
    }
}

#[test]
fn choices_about_a_picture_share_its_prompt() {
    for kind in ["fp32-fused", "fp32-plain"] {
        let package = Package::open(&package_of("qwen3-vl-tiny", kind)).expect("a package");
        let image = package.manifest.image.clone().expect("images");
        let mut model = load(&package);
        let groups: Vec<Group> = [(64, 48), (96, 96)]
            .into_iter()
            .enumerate()
            .map(|(seed, (width, height))| {
                let pixels = vision::synthetic(width, height, seed as u64);
                let patches = vision::preprocess(&pixels, &image.spec()).expect("patches");
                Group {
                    prompt: Prompt::with_images(&[11, 12, 13 + seed as u32], vec![patches], &image).expect("a prompt"),
                    continuations: vec![vec![20], vec![21, 22, 23], vec![24, 25]],
                }
            })
            .collect();
        let together = score(&mut model, Scoring::Batched, Budget::default(), &groups);
        let apart = score(&mut model, Scoring::OneByOne, Budget::default(), &groups);
        assert_alike(&together, &apart, kind);
    }
}

#[test]
fn what_cannot_be_scored_is_named() {
    let package = Package::open(&package_of("qwen3-tiny", "fp32-fused")).expect("a package");
    let mut model = load(&package);
    let mut refuse = |prompt: &[u32], continuation: &[u32]| {
        let group = Group { prompt: Prompt::text(prompt.to_vec()), continuations: vec![continuation.to_vec()] };
        let mut scorer = Scorer::new(&mut model, Scoring::Batched, Budget::default());
        scorer.score(&[group], &mut |_| Ok(())).expect_err("a refusal").chain()
    };
    assert!(refuse(&[], &[1]).contains("empty"));
    assert!(refuse(&[1], &[]).contains("empty"));
    assert!(refuse(&[1], &[1_000_000]).contains("beyond the model's vocabulary"));
    assert!(refuse(&[1; 5000], &[1]).contains("exceed the model's context"));
}
