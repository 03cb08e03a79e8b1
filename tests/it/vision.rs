//! The trained miniature that looks at pictures, against transformers: prompts, positions, answers; and bad pictures.

use std::path::{Path, PathBuf};

use ortbench::engine::sampling::Sampling;
use ortbench::engine::{self, Prompt};
use ortbench::package::{ChatMessage, Package};
use ortbench::vision;
use serde_json::{Value, json};

use crate::real::{self, fails, generate, ids, package_of, root};

const GOLDEN: &str = "models/qwen3-vl-tiny/golden";

/// Every case of the golden file, from picture files to tokens.
fn cases() -> Vec<Value> {
    real::json(&format!("{GOLDEN}/greedy.json")).as_array().expect("a list").clone()
}

fn pictures(case: &Value) -> Vec<PathBuf> {
    let names = case["images"].as_array().expect("a list").iter();
    names.map(|name| root().join(GOLDEN).join(name.as_str().expect("a path"))).collect()
}

fn generate_from(package: &Path, case: &Value, arguments: &[&str]) -> String {
    let pictures = pictures(case);
    let mut all = vec!["--max-tokens", "32", "--ids"];
    for picture in &pictures {
        all.extend(["--image", picture.to_str().expect("UTF-8")]);
    }
    all.extend(arguments);
    generate(package, &all)
}

/// Compares the cases whose tokens were chosen by at least this distance of logits.
fn check_answers(name: &str, provider: &str, clear: f64) {
    let package = package_of("qwen3-vl-tiny", name);
    let cases = cases().into_iter().filter(|case| case["smallest_gap"].as_f64().expect("a number") >= clear);
    for case in cases {
        let rendered = case["rendered"].as_str().expect("a text");
        let printed = generate_from(&package, &case, &["--provider", provider, "--prompt", rendered]);
        assert_eq!(printed.trim_end(), ids(&case["generated_ids"]), "{name} {provider}: {}", case["name"]);
    }
}

#[test]
fn pictures_are_answered_about_as_by_transformers() {
    check_answers("fp32-fused", "cpu", 0.0);
    check_answers("fp32-plain", "cpu", 0.0);
}

#[test]
fn openvino_answers_about_pictures_as_transformers_does() {
    check_answers("fp32-fused", "openvino", 0.0);
    check_answers("fp32-plain", "openvino", 0.0);
}

#[test]
fn half_precision_answers_about_pictures_as_transformers_does() {
    check_answers("fp16-fused", "cpu", 0.3);
}

/// `--chat` puts the pictures before the question, as the golden chats do.
#[test]
fn the_chat_template_places_pictures() {
    let package = package_of("qwen3-vl-tiny", "fp32-fused");
    let mut asked = 0;
    for case in cases() {
        let messages = case["messages"].as_array().expect("a list");
        let [message] = messages.as_slice() else { continue };
        let parts = match &message["content"] {
            Value::Array(parts) => parts.clone(),
            text => vec![json!({"type": "text", "text": text})],
        };
        let (question, before) = parts.split_last().expect("a part");
        if before.iter().any(|part| part["type"] != "image") {
            continue;
        }
        let question = question["text"].as_str().expect("a question");
        let printed = generate_from(&package, &case, &["--chat", "--prompt", question]);
        assert_eq!(printed.trim_end(), ids(&case["generated_ids"]), "{}", case["name"]);
        // The same with the places written out.
        let written = format!("{}{question}", "<|vision_start|><|image_pad|><|vision_end|>".repeat(before.len()));
        assert_eq!(generate_from(&package, &case, &["--chat", "--prompt", &written]), printed, "{}", case["name"]);
        asked += 1;
    }
    assert!(asked >= 5, "{asked} golden chats have one turn");
}

/// A golden case's chat as the model gets it.
fn prompt(case: &Value, package: &Package) -> (String, Prompt) {
    let image = package.manifest.image.clone().expect("images");
    let messages: Vec<ChatMessage> = serde_json::from_value(case["messages"].clone()).expect("messages");
    let rendered = package.chat_template().expect("a template").render(&messages).expect("a text");
    let open = |path: &PathBuf| vision::open(path, 1 << 30).expect("a picture");
    let patches: Vec<_> =
        pictures(case).iter().map(|path| vision::preprocess(&open(path), &image.spec()).expect("patches")).collect();
    let encoding = package.tokenizer().expect("a tokenizer").encode(rendered.as_str(), false).expect("ids");
    let prompt = if patches.is_empty() {
        Prompt::text(encoding.get_ids().to_vec())
    } else {
        Prompt::with_images(encoding.get_ids(), patches, &image).expect("a prompt")
    };
    (rendered, prompt)
}

/// Templates, image tokens, grids and M-RoPE positions, number by number.
#[test]
fn prompts_with_pictures_agree_with_transformers() {
    let package = Package::open(&package_of("qwen3-vl-tiny", "fp32-fused")).expect("a package");
    let image = package.manifest.image.clone().expect("images");
    for case in cases() {
        let (rendered, prompt) = prompt(&case, &package);
        assert_eq!(rendered, case["rendered"].as_str().expect("a text"), "{}", case["name"]);
        let grids: Vec<_> = prompt.images.iter().map(|patches| patches.grid.thw()).collect();
        assert_eq!(json!(grids), case["image_grids"], "{}", case["name"]);
        assert_eq!(json!(prompt.tokens), case["prompt_ids"], "{}", case["name"]);
        let positions = prompt.positions(&image).expect("positions");
        assert_eq!(json!(positions.values), case["position_ids"], "{}", case["name"]);
        assert_eq!(json!(positions.delta()), case["rope_delta"], "{}", case["name"]);
    }
}

/// Rows with one picture, with two and with none in one batch: features, padding and positions of a row must not know the
/// others. Right padding in fused graphs, left in plain ones.
#[test]
fn a_batch_of_pictures_answers_like_each_prompt_alone() {
    for name in ["fp32-fused", "fp32-plain"] {
        let package = Package::open(&package_of("qwen3-vl-tiny", name)).expect("a package");
        let mut model = real::load(&package);
        let prompts: Vec<_> = cases().iter().map(|case| prompt(case, &package).1).collect();
        assert!(
            prompts.iter().any(|prompt| prompt.images.is_empty())
                && prompts.iter().any(|prompt| prompt.images.len() > 1)
        );
        let greedy = Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 };
        let mut answers = |prompts: &[Prompt]| -> Vec<Vec<u32>> {
            let made =
                engine::generate(&mut model, prompts, 16, &greedy, |_, _| Ok(std::ops::ControlFlow::Continue(())));
            made.expect("answers").into_iter().map(|generation| generation.tokens).collect()
        };
        let together = answers(&prompts);
        let alone: Vec<_> = prompts.iter().flat_map(|prompt| answers(std::slice::from_ref(prompt))).collect();
        assert_eq!(together, alone, "{name}");
        // A generated image token is a token like others: no image stands behind it.
        let token = package.manifest.image.as_ref().expect("images").image_token;
        let text = [Prompt::text(vec![1, 2, 3])];
        let features = model.see(&text).expect("no features");
        let mut decoder = engine::Decoder::new(&model, 1, 8).expect("a decoder");
        decoder.prefill(&mut model, &text, &features).expect("a prefill");
        decoder.step(&mut model, &[token]).expect("a step");
        assert!(decoder.logits().iter().all(|logit| logit.is_finite()), "{name}");
    }
}

#[test]
fn bad_pictures_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("a file");
        path.to_str().expect("UTF-8").to_owned()
    };
    let data = |name: &str| root().join("tests/data/images").join(name).to_str().expect("UTF-8").to_owned();
    let whole = std::fs::read(data("photo.jpg")).expect("a picture");
    let (good, moving) = (data("landscape.png"), data("moving.gif"));
    let (cut, text, empty) =
        (file("cut.jpg", &whole[..whole.len() / 2]), file("text.png", b"no picture"), file("empty.png", b""));
    let seeing = package_of("qwen3-vl-tiny", "fp32-fused");
    let reading = package_of("qwen3-tiny", "fp32-fused");
    let (seeing, reading) = (seeing.to_str().expect("UTF-8"), reading.to_str().expect("UTF-8"));
    let two = "<|vision_start|><|image_pad|><|vision_end|><|vision_start|><|image_pad|><|vision_end|>?";
    let cases: &[(&[&str], &str)] = &[
        (&[reading, "--prompt", "x", "--image", &good], "takes no images"),
        (&[seeing, "--prompt", "x", "--image", "/nothing.png"], "/nothing.png"),
        (&[seeing, "--prompt", "x", "--image", &cut], "cut.jpg"),
        (&[seeing, "--prompt", "x", "--image", &text], "text.png"),
        (&[seeing, "--prompt", "x", "--image", &empty], "empty.png"),
        (&[seeing, "--prompt", "x", "--image", &moving], "moving.gif"),
        (&[seeing, "--prompt", two, "--image", &good], "2 image"),
        (&[seeing, "--prompt", "x", "--prompt", "y", "--image", &good], "2 prompts"),
        (&[seeing, "--prompt", "x", "--image", &good, "--max-pixels", "9"], "`--max-pixels` is 9"),
    ];
    for (arguments, words) in cases {
        let mut all = vec!["generate"];
        all.extend(*arguments);
        let (code, message) = fails(&all);
        assert_eq!(code, 2, "{all:?}: {message}");
        assert!(message.contains(words), "`{words}` is not in: {message}");
        assert!(message.contains("hint:"), "no remedy: {message}");
    }
}
