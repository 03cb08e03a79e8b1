//! `ortbench surgery` on the exported miniatures: what is cut off is gone, and what stays computes what it did.

mod bad_input;
mod references;
mod technique;

use std::path::{Path, PathBuf};

use ortbench::engine::{Decoder, Features, Prompt};
use ortbench::package::Package;
use ortbench::package::edition::Edition;
use ortbench::vision;

use crate::real::{generate, load, ortbench, package_of, root};

const MODELS: [&str; 5] =
    ["qwen3-tiny", "qwen3-moe-tiny", "glm4-moe-lite-tiny", "glm4-moe-lite-tiny-absorbed", "qwen3-vl-tiny"];
const MIXTURES: [&str; 3] = ["qwen3-moe-tiny", "glm4-moe-lite-tiny", "glm4-moe-lite-tiny-absorbed"];

/// Runs `ortbench surgery` into a new folder; what it printed.
fn surgery(package: &Path, output: &Path, arguments: &[&str]) -> String {
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let (package, output) = (text(package), text(output));
    let mut all = vec!["surgery", &package, "--output", &output, "--threads", "2"];
    all.extend(arguments);
    let run = ortbench(&all);
    assert!(run.status.success(), "{all:?}: {}", String::from_utf8_lossy(&run.stderr));
    Package::open(Path::new(&output)).expect("a package").verify().expect("hashes of all files");
    String::from_utf8(run.stdout).expect("UTF-8")
}

/// The logits behind a prompt and behind each of two more tokens.
fn logits(package: &Package, prompt: &Prompt, more: &[u32]) -> Vec<Vec<f32>> {
    let mut model = load(package);
    let mut decoder = Decoder::new(&model, 1, prompt.tokens.len() + more.len()).expect("a decoder");
    let prompts = std::slice::from_ref(prompt);
    let features = if prompt.images.is_empty() { Features::default() } else { model.see(prompts).expect("features") };
    decoder.prefill(&mut model, prompts, &features).expect("a prefill");
    let mut all = vec![decoder.logits().iter().copied().collect()];
    for &token in more {
        decoder.step(&mut model, &[token]).expect("a step");
        all.push(decoder.logits().iter().copied().collect());
    }
    all
}

fn largest_difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!(a.iter().map(Vec::len).collect::<Vec<_>>(), b.iter().map(Vec::len).collect::<Vec<_>>());
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    pairs.fold(0.0, |most, (a, b)| if (a - b).abs() <= most { most } else { (a - b).abs() })
}

/// A prompt of some tokens; of the model of images, with an image before them.
fn prompt(package: &Package) -> Prompt {
    let tokens = vec![30, 41, 17, 99, 5, 60];
    match &package.manifest.image {
        None => Prompt::text(tokens),
        Some(image) => {
            let picture = vision::synthetic(96, 64, 3);
            let patches = vision::preprocess(&picture, &image.spec()).expect("patches");
            Prompt::with_images(&tokens, vec![patches], image).expect("a prompt")
        }
    }
}

/// A copy of a package in which a layer adds nothing to the stream: what its last products multiply with is zero.
fn with_idle_layer(package: &Package, layer: usize, output: &Path) -> Package {
    let mut edition = Edition::of(package).expect("an edition");
    let of_layer = format!("model.layers.{layer}.");
    let mut zeros = 0;
    for (name, data_type, dims) in edition.constants_read() {
        let last = name.contains("o_proj.") || name.contains("down_proj.");
        if name.starts_with(&of_layer) && last && (name.ends_with(".weight") || name.ends_with(".scales")) {
            let bytes = edition.source().tensor(&name).expect("a constant").bytes;
            edition.set(&name, data_type, &dims, vec![0; bytes as usize]);
            zeros += 1;
        }
    }
    assert!(zeros >= 2, "attention and feed-forward each end in a product");
    edition.write(output).expect("a package")
}

#[test]
fn a_layer_that_adds_nothing_leaves_without_a_trace() {
    let folder = tempfile::tempdir().expect("a folder");
    for model in MODELS {
        for (kind, layers) in [
            ("fp32-fused", &[0, 1, 3][..]),
            ("fp32-plain", &[0, 2]),
            ("fp16-fused", &[1]),
            ("int4-fused", &[1, 2]),
            ("int4-plain", &[1]),
        ] {
            for &layer in layers {
                let what = format!("{model}-{kind}-{layer}");
                let package = Package::open(&package_of(model, kind)).expect("a package");
                let idle = with_idle_layer(&package, layer, &folder.path().join(format!("{what}-idle")));
                let output = folder.path().join(&what);
                let printed = surgery(&idle.root, &output, &["--drop-layers", "1", "--unprotected"]);
                let line = printed.lines().find(|line| line.ends_with("dropped")).expect("a dropped layer");
                assert!(line.trim_start().starts_with(&format!("{layer}  ")), "{what}: {printed}");
                let cut = Package::open(&output).expect("a package");
                assert_eq!(cut.manifest.shape.layers, 3);
                assert_eq!(cut.manifest.cache.bytes_per_token * 4, package.manifest.cache.bytes_per_token * 3);
                assert!(cut.bytes() < package.bytes(), "{what}");
                let prompt = prompt(&package);
                let difference = largest_difference(&logits(&cut, &prompt, &[7, 8]), &logits(&idle, &prompt, &[7, 8]));
                // Other kernels may follow where the first layer left, features of images are added in another order, and
                // rounding to few bits makes much of little.
                let exact = layer > 0 && model != "qwen3-vl-tiny" && ["fp32-fused", "int4-fused"].contains(&kind);
                let allowed = match (exact, kind.starts_with("fp32")) {
                    (true, _) => 0.0,
                    (false, true) => 1e-3,
                    (false, false) => 0.3,
                };
                assert!(difference <= allowed, "{what}: {difference}");
            }
        }
    }
}

#[test]
fn experts_that_nobody_asks_for_leave_without_a_trace() {
    let folder = tempfile::tempdir().expect("a folder");
    for model in MIXTURES {
        for kind in ["fp32-fused", "fp16-fused", "int8-fused", "int4-fused", "fp32-plain", "int4-plain"] {
            let what = format!("{model}-{kind}");
            let package = Package::open(&package_of(model, kind)).expect("a package");
            let tokenizer = package.tokenizer().expect("a tokenizer");
            // Three tokens choose six experts of a layer at most.
            let text = "one two";
            let tokens = tokenizer.encode(text, false).expect("tokens").get_ids().to_vec();
            let tokens = &tokens[..tokens.len().min(3)];
            let file = folder.path().join("text.txt");
            std::fs::write(&file, text).expect("a file");
            let calibration = file.to_str().expect("UTF-8");
            let output = folder.path().join(&what);
            let count = tokens.len().to_string();
            let measured = ["--calibration-text", calibration, "--calibration-tokens", &count];
            surgery(&package.root, &output, &[&["--keep-experts", "6"], &measured[..]].concat());
            let cut = Package::open(&output).expect("a package");
            assert_eq!(cut.manifest.shape.experts, Some(6));
            assert!(cut.manifest.parameters.total < package.manifest.parameters.total);
            let prompt = Prompt::text(tokens.to_vec());
            let difference = largest_difference(&logits(&cut, &prompt, &[]), &logits(&package, &prompt, &[]));
            // Scores of fewer experts are summed up in another order.
            let allowed = if kind.starts_with("fp16") { 0.05 } else { 1e-4 };
            assert!(difference <= allowed, "{what}: {difference}");
            // All of them are none to leave.
            let all = folder.path().join(format!("{what}-all"));
            surgery(&package.root, &all, &[&["--keep-experts", "8"], &measured[..]].concat());
            let all = Package::open(&all).expect("a package");
            assert_eq!(largest_difference(&logits(&all, &prompt, &[7]), &logits(&package, &prompt, &[7])), 0.0);
        }
    }
}

#[test]
fn kept_tokens_keep_their_logits() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = "What is the capital of France? Paris, and 12 + 30 = 42.\n";
    let file = folder.path().join("text.txt");
    std::fs::write(&file, text).expect("a file");
    for model in ["qwen3-tiny", "qwen3-moe-tiny", "glm4-moe-lite-tiny", "qwen3-vl-tiny"] {
        for kind in ["fp32-fused", "fp16-fused", "int8-fused", "int4-fused", "fp32-plain", "int8-plain", "int4-plain"] {
            let what = format!("{model}-{kind}");
            let package = Package::open(&package_of(model, kind)).expect("a package");
            assert_eq!(package.kept_tokens().expect("no map"), None);
            let output = folder.path().join(&what);
            surgery(&package.root, &output, &["--trim-vocabulary", file.to_str().expect("UTF-8")]);
            let cut = Package::open(&output).expect("a package");
            let kept = cut.kept_tokens().expect("a map").expect("a trimmed package").old_ids;
            assert!((kept.len() as u64) < package.manifest.shape.vocab_size, "{what}");
            assert_eq!(kept.len() as u64, cut.manifest.shape.vocab_size);
            let old = |id: &u32| kept[*id as usize];

            let encode = |package: &Package| {
                package.tokenizer().expect("a tokenizer").encode(text, true).expect("tokens").get_ids().to_vec()
            };
            let (new_ids, old_ids) = (encode(&cut), encode(&package));
            assert_eq!(new_ids.iter().map(old).collect::<Vec<_>>(), old_ids, "{what}");
            let tokens = |package: &Package| package.special_tokens();
            assert_eq!(tokens(&cut).iter().map(old).collect::<Vec<_>>(), tokens(&package), "{what}");

            let after = logits(&cut, &Prompt::text(new_ids.clone()), &new_ids[..2]);
            let before = logits(&package, &Prompt::text(old_ids.clone()), &old_ids[..2]);
            let chosen: Vec<Vec<f32>> =
                before.iter().map(|row| kept.iter().map(|&id| row[id as usize]).collect()).collect();
            let difference = largest_difference(&after, &chosen);
            assert!(difference == 0.0, "{what}: {difference}");
        }
    }
}

#[test]
fn images_are_found_by_their_new_tokens() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("text.txt");
    std::fs::write(&file, "How many circles are there?").expect("a file");
    for kind in ["fp32-fused", "int4-plain"] {
        let package = Package::open(&package_of("qwen3-vl-tiny", kind)).expect("a package");
        let output = folder.path().join(kind);
        surgery(&package.root, &output, &["--trim-vocabulary", file.to_str().expect("UTF-8")]);
        let cut = Package::open(&output).expect("a package");
        let kept = cut.kept_tokens().expect("a map").expect("a trimmed package").old_ids;
        let mut prompt = prompt(&cut);
        let after = logits(&cut, &prompt, &[]);
        prompt.tokens.iter_mut().for_each(|id| *id = kept[*id as usize]);
        let before = logits(&package, &prompt, &[]);
        let chosen = vec![kept.iter().map(|&id| before[0][id as usize]).collect()];
        assert_eq!(largest_difference(&after, &chosen), 0.0, "{kind}");
    }
}

#[test]
fn heads_get_the_choice_of_positions_once() {
    let folder = tempfile::tempdir().expect("a folder");
    for model in ["qwen3-tiny", "qwen3-moe-tiny"] {
        for kind in ["fp32-fused", "int4-fused", "fp16-fused"] {
            // Without a manifest the folder is one of onnxruntime-genai's, whose graph gives all logits.
            let source = package_of(model, kind);
            let all = folder.path().join(format!("{model}-{kind}-all"));
            std::fs::create_dir(&all).expect("a folder");
            for file in std::fs::read_dir(&source).expect("files") {
                let file = file.expect("a file");
                if file.file_name() != "manifest.json" && file.file_name() != "model.onnx" {
                    std::fs::copy(file.path(), all.join(file.file_name())).expect("a copy");
                }
            }
            let package = Package::open(&all).expect("a package");
            assert!(!load(&package).computes_selected_logits());
            let output = folder.path().join(format!("{model}-{kind}"));
            let printed = surgery(&all, &output, &["--last-logits"]);
            assert!(printed.contains("all -> those that are wanted"), "{printed}");
            let cut = Package::open(&output).expect("a package");
            assert!(load(&cut).computes_selected_logits());
            let prompt = prompt(&package);
            let difference = largest_difference(&logits(&cut, &prompt, &[3]), &logits(&package, &prompt, &[3]));
            // One row or many: kernels may differ.
            let allowed = if kind == "fp32-fused" { 1e-4 } else { 0.05 };
            assert!(difference <= allowed, "{model} {kind}: {difference}");

            let again = folder.path().join(format!("{model}-{kind}-again"));
            let printed = surgery(&output, &again, &["--last-logits"]);
            assert!(printed.contains("those that are wanted already"), "{printed}");
        }
    }
}

#[test]
fn everything_at_once_is_one_package_that_other_commands_take() {
    let folder = tempfile::tempdir().expect("a folder");
    let readme = root().join("README.md");
    let readme = readme.to_str().expect("UTF-8");
    for model in MODELS {
        for kind in ["int4-fused", "fp32-plain"] {
            let package = Package::open(&package_of(model, kind)).expect("a package");
            let output = folder.path().join(format!("{model}-{kind}"));
            let mut arguments = vec!["--drop-layers", "25%", "--last-logits", "--trim-vocabulary", readme];
            if package.manifest.shape.experts.is_some() {
                arguments.extend(["--keep-experts", "50%"]);
            }
            surgery(&package.root, &output, &arguments);
            let cut = Package::open(&output).expect("a package");
            assert_eq!(cut.manifest.shape.layers, 3);
            assert!(cut.manifest.bytes_read_per_token.weights < package.manifest.bytes_read_per_token.weights);
            assert!(cut.manifest.exporter.options["surgery"].is_string());
            let answer = generate(&output, &["--prompt", "Hello", "-n", "6", "--ids"]);
            assert!(!answer.trim().is_empty(), "{model} {kind}");
            // The OpenVINO build's ONNX Runtime knows no `QMoE` of this form.
            if kind == "fp32-plain" || package.manifest.shape.experts.is_none() {
                let openvino = generate(&output, &["--prompt", "Hello", "-n", "6", "--ids", "--provider", "openvino"]);
                assert!(!openvino.trim().is_empty(), "{model} {kind}");
            }

            // Packs are cut between layers, which the names of nodes and weights tell.
            let pack = folder.path().join(format!("{model}-{kind}-pack"));
            let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
            let made = ortbench(&[
                "pack",
                &text(&output),
                "--output",
                &text(&pack),
                "--threshold",
                "8KiB",
                "--form",
                "inputs",
            ]);
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
            let packed = Package::open(&pack).expect("a pack");
            assert_eq!(packed.shards().expect("an index").expect("a pack").segments.len(), 5);
            generate(&pack, &["--prompt", "Hello", "-n", "2", "--residency", "resident"]);

            // A second surgery finds the layers of the first one's package.
            let again = folder.path().join(format!("{model}-{kind}-again"));
            surgery(&output, &again, &["--drop-layers", "1"]);
            assert_eq!(Package::open(&again).expect("a package").manifest.shape.layers, 2);
            generate(&again, &["--prompt", "Hello", "-n", "2"]);
        }
    }
}

/// A file of some text.
fn text_file(folder: &Path, text: &str) -> PathBuf {
    let file = folder.join("text.txt");
    std::fs::write(&file, text).expect("a file");
    file
}

#[test]
fn help_is_as_documented() {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ortbench"));
    let help = command.args(["surgery", "--help"]).env_remove("COLUMNS").output().expect("the program");
    insta::assert_snapshot!("surgery_help", String::from_utf8(help.stdout).expect("UTF-8"));
}
