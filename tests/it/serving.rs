//! A queue of requests says the same in waves of any size.

use ortbench::cell::{ImageSize, PromptSource, Workload};
use ortbench::engine::serving::{Objective, Served, Server, Waves, greedy};
use ortbench::engine::{Decoder, Features, Model, Plan, Prompt, Prompter};
use ortbench::loader::pack;
use ortbench::optimizations::adaptive_microbatching::{Queue, sweep};
use ortbench::package::Package;

use crate::real::{load, load_with, package_of};

const NEW: usize = 6;

/// Seven prompts; of unequal lengths where `ragged`.
fn prompts(ragged: bool) -> Vec<Prompt> {
    let length = |number: u32| if ragged { 3 + (number * 5) % 11 } else { 9 };
    (0..7).map(|number| Prompt::text((0..length(number)).map(|at| 5 + (number * 13 + at * 7) % 90).collect())).collect()
}

fn serve(model: &mut Model, prompts: &[Prompt], waves: &Waves) -> Served {
    Server::new(waves).serve(model, prompts, NEW, &mut greedy).expect("answers")
}

fn tokens(served: &Served) -> Vec<&[u32]> {
    served.sequences.iter().map(|sequence| sequence.tokens.as_slice()).collect()
}

fn sizes(served: &Served) -> Vec<usize> {
    served.waves.iter().map(|wave| wave.size).collect()
}

/// As many as are found while running.
fn found(objective: Objective) -> Waves {
    Waves::Adaptive(objective)
}

/// In 32 bits: what more sequences change by rounding is too little to change a choice. Kernels on weights of 4 bits
/// compute one row another way than several, so that their choices may differ.
#[test]
fn waves_of_any_size_give_the_same_tokens() {
    for name in ["qwen3-tiny", "qwen3-moe-tiny", "glm4-moe-lite-tiny", "qwen3-vl-tiny"] {
        for (form, ragged) in [("fp32-fused", false), ("fp32-fused", true), ("fp32-plain", true)] {
            let package = Package::open(&package_of(name, form)).expect("a package");
            let (mut model, prompts) = (load(&package), prompts(ragged));
            let together = serve(&mut model, &prompts, &Waves::Together);
            assert_eq!(sizes(&together), [7]);
            assert_eq!(together.tokens(), 7 * NEW);
            for (size, expected) in
                [(1, vec![1; 7]), (2, vec![2, 2, 2, 1]), (3, vec![3, 3, 1]), (7, vec![7]), (u32::MAX, vec![7])]
            {
                let served = serve(&mut model, &prompts, &Waves::Fixed(size));
                assert_eq!(sizes(&served), expected);
                assert_eq!(tokens(&served), tokens(&together), "{name} {form} in waves of {size}");
            }
            for (start, step_seconds) in [(1, None), (2, None), (1, Some(1e3)), (3, Some(1e-9))] {
                let objective = Objective { start, step_seconds, ..Objective::default() };
                let served = serve(&mut model, &prompts, &found(objective));
                let case = format!("{name} {form} from {start}: {:?}", sizes(&served));
                assert_eq!(tokens(&served), tokens(&together), "{case}");
                assert_eq!(served.search.as_ref().expect("a search").tried[0], start as usize, "{case}");
                let steps: usize = served.waves.iter().map(|wave| wave.size * wave.steps).sum();
                assert_eq!(steps, 7 * (NEW - 1), "{case}");
                assert_eq!(served.waves.iter().map(|wave| wave.began).sum::<usize>(), 7, "{case}");
            }
        }
    }
}

#[test]
fn times_follow_the_waves() {
    let package = Package::open(&package_of("qwen3-tiny", "int4-fused")).expect("a package");
    let served = serve(&mut load(&package), &prompts(false), &Waves::Fixed(3));
    let of = |number: usize| &served.sequences[number];
    for pair in [0..3, 3..6, 6..7] {
        for number in pair.clone() {
            assert!(of(number).first_seconds < of(number).last_seconds);
            assert_eq!(of(number).first_seconds, of(pair.start).first_seconds, "one wave has its tokens together");
        }
    }
    assert!(of(2).last_seconds < of(3).first_seconds && of(5).last_seconds < of(6).first_seconds);
    assert!(of(6).last_seconds <= served.seconds);
    // The middle one of seven is in the second wave.
    assert_eq!(served.ttft_seconds(), of(3).first_seconds);
    assert!(served.waves.iter().all(|wave| wave.steps == NEW - 1 && wave.decode_seconds > 0.0));
    let in_waves: f64 = served.waves.iter().map(|wave| wave.prefill_seconds + wave.decode_seconds).sum();
    assert!(in_waves <= served.seconds);
    assert!(served.decode_tokens_per_second().expect("steps") > 0.0 && served.tokens_per_second() > 0.0);
    assert!(served.traffic.is_none() && served.read_bytes() == 0);
}

#[test]
fn one_token_has_no_steps() {
    let package = Package::open(&package_of("qwen3-tiny", "fp32-fused")).expect("a package");
    let mut server = Server::new(&Waves::Fixed(4));
    let served = server.serve(&mut load(&package), &prompts(false), 1, &mut greedy).expect("answers");
    assert_eq!((served.tokens(), served.decode_tokens_per_second()), (7, None));
}

#[test]
fn forced_tokens_give_the_logits_of_a_decoder_fed_by_hand() {
    let package = Package::open(&package_of("qwen3-moe-tiny", "fp32-fused")).expect("a package");
    let (mut model, prompts) = (load(&package), prompts(true));
    let forced: Vec<Vec<u32>> = (0..7).map(|number| (0..4).map(|at| 11 + number * 3 + at * 5).collect()).collect();
    let mut found = Vec::new();
    let waves = Waves::Fixed(1);
    Server::new(&waves)
        .forced(&mut model, &prompts, &forced, &mut |sequence, fed, logits| {
            found.push((sequence, fed, logits.to_vec()));
            Ok(())
        })
        .expect("logits");
    let mut expected = Vec::new();
    for (number, (prompt, tokens)) in prompts.iter().zip(&forced).enumerate() {
        let mut decoder = Decoder::new(&model, 1, 32).expect("a decoder");
        decoder.prefill(&mut model, std::slice::from_ref(prompt), &Features::default()).expect("a prefill");
        expected.push((number, 0, decoder.logits().iter().copied().collect::<Vec<_>>()));
        for (at, token) in tokens.iter().enumerate() {
            decoder.step(&mut model, &[*token]).expect("a step");
            expected.push((number, at + 1, decoder.logits().iter().copied().collect()));
        }
    }
    assert!(found == expected, "other logits");
}

/// A pack cut into layers, with caches that wait on disk: what went there is counted over all waves.
#[test]
fn packs_are_served_in_waves_too() {
    let package = Package::open(&package_of("qwen3-tiny", "fp32-fused")).expect("a package");
    let folder = tempfile::tempdir().expect("a folder");
    let options = pack::Options { threshold: 4096, ..pack::Options::default() };
    pack::pack(&package, &folder.path().join("pack"), &options, &pack::Quiet).expect("a pack");
    let pack = Package::open(&folder.path().join("pack")).expect("a package");
    let plan = Plan {
        micro_batch: Some(2),
        offload: Some(folder.path().to_owned()),
        sequences: 7,
        tokens: 32,
        ..Plan::with_threads(2)
    };
    let mut model = load_with(&pack, &plan).expect("a model");
    let together = serve(&mut model, &prompts(true), &Waves::Together);
    let waves = serve(&mut model, &prompts(true), &Waves::Fixed(3));
    assert_eq!(tokens(&together), tokens(&waves));
    let traffic = [together, waves].map(|served| served.traffic.expect("caches that wait on disk"));
    assert!(traffic.iter().all(|traffic| traffic.written > 0 && traffic.read > 0), "{traffic:?}");
}

/// Sequences join others that run, with images and without, whole and in groups of a pack's parts; their logits are those
/// that they have alone.
#[test]
fn sequences_that_join_have_the_logits_that_they_have_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let options = pack::Options { threshold: 4096, ..pack::Options::default() };
    for name in ["qwen3-tiny", "qwen3-vl-tiny"] {
        let package = Package::open(&package_of(name, "fp32-fused")).expect("a package");
        pack::pack(&package, &folder.path().join(name), &options, &pack::Quiet).expect("a pack");
        let packed = Package::open(&folder.path().join(name)).expect("a package");
        let images = package.manifest.image.is_some();
        let image = images.then_some(ImageSize { width: 64, height: 64 });
        let prompt_tokens = if images { 40 } else { 9 };
        let workload = Workload {
            batch: 7,
            image,
            prompt_tokens,
            generate_tokens: NEW as u32,
            prompt: PromptSource::RandomTokens { seed: 3 },
        };
        let prompts = Prompter::open(&package, &workload).expect("prompts").prompts().expect("prompts");
        let forced: Vec<Vec<u32>> = (0..7).map(|number| (0..5).map(|at| 11 + number * 3 + at * 5).collect()).collect();
        let cut = Plan { micro_batch: Some(2), images, ..Plan::with_threads(2) };
        for (package, plan) in [(&package, Plan { images, ..Plan::with_threads(2) }), (&packed, cut)] {
            let mut model = load_with(package, &plan).expect("a model");
            let mut logits = |waves: &Waves| {
                let mut all = std::collections::BTreeMap::new();
                let served = Server::new(waves)
                    .forced(&mut model, &prompts, &forced, &mut |sequence, fed, logits| {
                        assert!(all.insert((sequence, fed), logits.to_vec()).is_none());
                        Ok(())
                    })
                    .expect("logits");
                (all, sizes(&served))
            };
            let (alone, _) = logits(&Waves::Fixed(1));
            let (joined, sizes) = logits(&found(Objective { start: 2, ..Objective::default() }));
            assert!(sizes.len() > 2, "nobody joined: {sizes:?}");
            assert_eq!(alone.len(), 7 * 6);
            for (place, expected) in &alone {
                let largest = expected.iter().fold(0f32, |most, value| most.max(value.abs()));
                let apart = expected.iter().zip(&joined[place]).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
                assert!(apart < 1e-4 * largest, "{name} {place:?} in {sizes:?}: {apart} of {largest}");
            }
        }
    }
}

#[test]
fn a_sweep_says_what_is_best_and_how_near_the_search_comes() {
    let package = Package::open(&package_of("qwen3-tiny", "int4-fused")).expect("a package");
    let mut model = load(&package);
    let prompts = prompts(false);
    let queue = Queue { package: &package, prompts: &prompts, generate: NEW };
    let found = |model: &mut Model, objective: Objective| {
        sweep(model, &queue, &objective, 2, &mut |_, _| Ok(())).expect("a sweep")
    };
    let all = found(&mut model, Objective::default());
    assert_eq!(all.rates.iter().map(|(size, _)| *size).collect::<Vec<_>>(), [1, 2, 4, 7]);
    assert_eq!(all.shares.len(), 5);
    assert!(all.rates.iter().all(|(_, rate)| *rate > 0.0));
    assert!(all.shares.iter().all(|share| *share > 0.0));
    let evidence = all.evidence();
    for name in evidence.keys() {
        assert!(ortbench::metrics::find_fact(name).is_some(), "{name}");
    }
    assert_eq!(evidence.len(), 9);
    // Numbers for which memory will not do are not tried: they would end the process.
    let bounded = found(&mut model, Objective { memory_bytes: Some(1 << 20), ..Objective::default() });
    assert_eq!(bounded.rates.len(), 1);
    assert_eq!((bounded.best, bounded.search.most_that_fit), (1, Some(1)));
    assert!(bounded.search.backoffs > 0);
    let few = found(&mut model, Objective { max: Some(3), ..Objective::default() });
    assert_eq!(few.rates.iter().map(|(size, _)| *size).collect::<Vec<_>>(), [1, 2]);
}

/// How near the search comes on a model of real size: `ORTBENCH_PACKAGE`, `ORTBENCH_QUEUE` (sequences, tokens of each
/// prompt, tokens after it, rounds), `ORTBENCH_MEMORY` in MiB and `ORTBENCH_LATENCY` in milliseconds, where wanted.
#[test]
#[ignore = "measures for minutes; asserts nothing"]
fn search_against_sweep() {
    let variable = |name: &str| std::env::var(name).ok();
    let numbers = variable("ORTBENCH_QUEUE").unwrap_or_else(|| "8 16 8 1".to_owned());
    let numbers: Vec<u32> = numbers.split_whitespace().map(|word| word.parse().expect("a number")).collect();
    let package = variable("ORTBENCH_PACKAGE").expect("ORTBENCH_PACKAGE");
    let package = Package::open(package.as_ref()).expect("a package");
    let workload = Workload {
        batch: numbers[0],
        image: None,
        prompt_tokens: numbers[1],
        generate_tokens: numbers[2],
        prompt: PromptSource::RandomTokens { seed: 0 },
    };
    let plan = Plan { sequences: numbers[0], tokens: numbers[1] + numbers[2], ..Plan::with_threads(2) };
    let mut model = load_with(&package, &plan).expect("a model");
    let prompts = Prompter::open(&package, &workload).expect("prompts").prompts().expect("prompts");
    let queue = Queue { package: &package, prompts: &prompts, generate: numbers[2] as usize };
    let objective = Objective {
        memory_bytes: variable("ORTBENCH_MEMORY").map(|mib| mib.parse::<u64>().expect("MiB") << 20),
        step_seconds: variable("ORTBENCH_LATENCY").map(|ms| ms.parse::<f64>().expect("milliseconds") / 1e3),
        max: variable("ORTBENCH_MAX").map(|max| max.parse().expect("a number")),
        ..Objective::default()
    };
    let found = sweep(&mut model, &queue, &objective, numbers[3], &mut |_, _| Ok(())).expect("a sweep");
    println!("{found:#?}");
}

#[test]
fn a_queue_that_cannot_be_served_is_refused() {
    let package = Package::open(&package_of("qwen3-tiny", "int4-fused")).expect("a package");
    let mut model = load(&package);
    let mut server = Server::new(&Waves::Together);
    let mut error = |prompts: &[Prompt], generate| {
        server.serve(&mut model, prompts, generate, &mut greedy).expect_err("nothing to serve").chain()
    };
    assert!(error(&[], 4).contains("at least one request"));
    assert!(error(&prompts(false), 0).contains("at least one new token"));
    assert!(error(&[Prompt::default()], 4).contains("empty prompt"));
    assert!(error(&prompts(false), 1 << 20).contains("context"));
    let forced = server.forced(&mut model, &prompts(false), &[vec![1, 2]], &mut |_, _, _| Ok(()));
    assert!(forced.expect_err("one list for seven prompts").chain().contains("1 lists"));
}
