//! Answers of the trained miniature against transformers, over precisions, flavours, providers and batches.

use crate::real::{fails, generate, ids, json, package, package_of, root};

/// The miniatures that speak, each with the checkpoint that its golden file is of.
const MODELS: [(&str, &str); 4] = [
    ("qwen3-tiny", "qwen3-tiny"),
    ("qwen3-moe-tiny", "qwen3-moe-tiny"),
    ("glm4-moe-lite-tiny", "glm4-moe-lite-tiny"),
    ("glm4-moe-lite-tiny-absorbed", "glm4-moe-lite-tiny"),
];

/// Every case of a golden file that transformers computed in fp32.
fn cases_of(checkpoint: &str) -> Vec<serde_json::Value> {
    json(&format!("models/{checkpoint}/golden/greedy.json")).as_array().expect("a list").clone()
}

/// Those of the dense miniature.
fn cases() -> Vec<serde_json::Value> {
    cases_of("qwen3-tiny")
}

/// Compares each miniature's cases whose tokens were chosen by at least this distance of logits.
fn check_greedy(name: &str, provider: &[&str], clear: f64) {
    for (model, checkpoint) in MODELS {
        check_greedy_of(model, &cases_of(checkpoint), name, provider, clear);
    }
}

fn check_greedy_of(model: &str, cases: &[serde_json::Value], name: &str, provider: &[&str], clear: f64) {
    let package = package_of(model, name);
    for case in cases {
        if case["smallest_gap"].as_f64().expect("a number") < clear {
            continue;
        }
        let prompt = case["prompt"].as_str().expect("a prompt");
        let mut arguments = vec!["--prompt", prompt, "--max-tokens", "32", "--ids"];
        if case["chat"] == true {
            arguments.push("--chat");
        }
        arguments.extend(provider);
        let printed = generate(&package, &arguments);
        assert_eq!(printed.trim_end(), ids(&case["generated_ids"]), "{model} {name} {provider:?}: {prompt}");
    }
}

#[test]
fn fused_fp32_generates_what_transformers_generates() {
    check_greedy("fp32-fused", &[], 0.0);
}

#[test]
fn plain_fp32_generates_what_transformers_generates() {
    check_greedy("fp32-plain", &[], 0.0);
}

#[test]
fn openvino_generates_what_transformers_generates() {
    check_greedy("fp32-fused", &["--provider", "openvino"], 0.0);
    check_greedy("fp32-plain", &["--provider", "openvino"], 0.0);
}

#[test]
fn fp16_generates_what_transformers_generates() {
    check_greedy("fp16-fused", &[], 0.05);
}

/// A row of a batch of unequal prompts must not know its neighbours: right padding in fused graphs, left in plain ones.
#[test]
fn a_padded_batch_answers_like_each_prompt_alone() {
    let prompts: Vec<_> = cases().iter().map(|case| case["prompt"].as_str().expect("a prompt").to_owned()).collect();
    for (name, provider) in
        [("fp32-fused", "cpu"), ("fp32-plain", "cpu"), ("fp32-fused", "openvino"), ("fp32-plain", "openvino")]
    {
        let package = package(name);
        let mut batch = vec!["--max-tokens", "12", "--ids", "--provider", provider];
        for prompt in &prompts {
            batch.extend(["--prompt", prompt]);
        }
        let together = generate(&package, &batch);
        let alone: String = prompts
            .iter()
            .map(|prompt| {
                generate(&package, &["--max-tokens", "12", "--ids", "--provider", provider, "--prompt", prompt])
            })
            .collect();
        assert_eq!(together, alone, "{name} on {provider}");
    }
}

#[test]
fn samples_repeat_with_their_seed() {
    let package = package("int4-fused");
    let draw = |seed: &str| {
        generate(&package, &["--prompt", "The", "--temperature", "1.5", "--seed", seed, "-n", "24", "--ids"])
    };
    assert_eq!(draw("1"), draw("1"));
    assert_ne!(draw("1"), draw("2"));
    let greedy = generate(&package, &["--prompt", "The", "-n", "24", "--ids"]);
    let top_1 = generate(&package, &["--prompt", "The", "--temperature", "1.5", "--top-k", "1", "-n", "24", "--ids"]);
    assert_eq!(greedy, top_1);
}

#[test]
fn text_streams_out_as_the_tokenizer_decodes_it() {
    let case = cases().into_iter().find(|case| case["chat"] == true).expect("a chat");
    let prompt = case["prompt"].as_str().expect("a prompt");
    let text = generate(&package("fp32-fused"), &["--prompt", prompt, "--chat"]);
    let tokenizer =
        tokenizers::Tokenizer::from_file(root().join("models/qwen3-tiny/tokenizer.json")).expect("a tokenizer");
    let ids: Vec<u32> =
        case["generated_ids"].as_array().expect("ids").iter().map(|id| id.as_u64().unwrap() as u32).collect();
    assert_eq!(text.trim_end(), tokenizer.decode(&ids, false).expect("text").trim_end());
}

#[test]
fn tokenizer_and_chat_template_agree_with_transformers() {
    let tokenizer =
        tokenizers::Tokenizer::from_file(root().join("models/qwen3-tiny/tokenizer.json")).expect("a tokenizer");
    for case in json("models/qwen3-tiny/golden/tokenizer.json").as_array().expect("a list") {
        let text = case["text"].as_str().expect("a text");
        let encoding = tokenizer.encode(text, false).expect("ids");
        assert_eq!(serde_json::json!(encoding.get_ids()), case["ids"], "{text:?}");
    }
    let package = ortbench::package::Package::open(&package("fp32-fused")).expect("a package");
    let template = package.chat_template().expect("a template");
    for case in json("models/qwen3-tiny/golden/chat.json").as_array().expect("a list") {
        let messages: Vec<_> = case["messages"]
            .as_array()
            .expect("messages")
            .iter()
            .map(|message| {
                let field = |name: &str| message[name].as_str().expect("a text");
                ortbench::package::ChatMessage::new(field("role"), field("content"), 0)
            })
            .collect();
        if case["add_generation_prompt"] == true {
            assert_eq!(template.render(&messages).expect("a text"), case["rendered"].as_str().expect("a text"));
        }
    }
}

/// A folder made by onnxruntime-genai's builder is read in place; the golden tokens are onnxruntime-genai's own.
#[test]
fn a_folder_of_another_tool_runs_in_place() {
    let folder = root().join("tests/data/genai-tiny");
    let tokenizer = tokenizers::Tokenizer::from_file(folder.join("tokenizer.json")).expect("a tokenizer");
    for case in json("tests/data/genai-tiny/greedy.json")["cases"].as_array().expect("a list") {
        let prompt_ids: Vec<u32> =
            case["prompt_ids"].as_array().expect("ids").iter().map(|id| id.as_u64().expect("an id") as u32).collect();
        let prompt = tokenizer.decode(&prompt_ids, false).expect("text");
        let again = tokenizer.encode(prompt.as_str(), false).expect("ids");
        assert_eq!(again.get_ids(), prompt_ids, "the case's text does not say its ids");
        // The weights are int4 and the kernels compute in int8, whose rounding differs between processors: later
        // tokens may part where two were nearly equal.
        let printed = generate(&folder, &["--prompt", &prompt, "--max-tokens", "8", "--ids"]);
        let expected = ids(&case["generated_ids"]);
        assert!(expected.starts_with(printed.trim_end()), "{prompt}: {printed} is not the beginning of {expected}");
    }
}

#[test]
fn bad_input_is_named() {
    let package = package("fp32-fused");
    let path = package.to_str().expect("UTF-8");
    let long = "12 + 34 = ".repeat(2000);
    let cases: &[(&[&str], i32, &str)] = &[
        (&["generate", "/nothing/here", "--prompt", "x"], 2, "no such folder"),
        (&["generate", path, "--prompt", &long], 2, "context of"),
        (&["generate", path, "--prompt", ""], 2, "at least one token"),
        (&["generate", path, "--prompt", "x", "--temperature=-1"], 2, "temperature"),
        (&["generate", path, "--prompt", "x", "--runtime", "/nothing.so"], 3, "/nothing.so"),
        (&["generate", path, "--prompt", "x", "--runtime", path], 3, "not a file"),
        (&["generate", path, "--prompt", "x", "--runtime", "rocm"], 2, "known are"),
        (&["generate", path, "--prompt", "x", "--provider", "openvino", "--runtime", "cpu"], 2, "built without"),
        (&["generate", path, "--prompt", "x", "--provider", "cuda", "--runtime", "cpu"], 2, "cuDNN 9"),
    ];
    for (arguments, code, words) in cases {
        let (found, text) = fails(arguments);
        assert_eq!(found, *code, "{text}");
        assert!(text.contains(words), "`{words}` is not in: {text}");
        assert!(text.contains("hint:"), "no remedy: {text}");
    }
}

#[test]
fn a_file_that_is_no_library_is_no_runtime() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("libonnxruntime.so");
    std::fs::write(&file, "not ELF").expect("a file");
    let package = package("fp32-fused");
    let (code, text) = fails(&[
        "generate",
        package.to_str().expect("UTF-8"),
        "--prompt",
        "x",
        "--runtime",
        file.to_str().expect("UTF-8"),
    ]);
    assert_eq!(code, 3, "{text}");
    assert!(text.contains("cannot load ONNX Runtime"), "{text}");
}

/// Copies a package, damages one file, and expects the file's name and a remedy.
#[test]
fn damaged_packages_are_named() {
    type Change = fn(&std::path::Path);
    let damage: &[(&str, Change, &str)] = &[
        (
            "a truncated file",
            |root| {
                let file = std::fs::OpenOptions::new().write(true).open(root.join("model.onnx.data")).expect("a file");
                file.set_len(1000).expect("truncated");
            },
            "model.onnx.data",
        ),
        ("a missing file", |root| std::fs::remove_file(root.join("model.onnx")).expect("removed"), "model.onnx"),
        (
            "a changed byte",
            |root| {
                let path = root.join("model.onnx.data");
                let mut bytes = std::fs::read(&path).expect("bytes");
                bytes[100_000] ^= 1;
                std::fs::write(&path, bytes).expect("written");
            },
            "not the file that its manifest describes",
        ),
        ("no manifest", |root| std::fs::remove_file(root.join("manifest.json")).expect("removed"), "manifest.json"),
        (
            "a manifest of the future",
            |root| {
                let path = root.join("manifest.json");
                let text = std::fs::read_to_string(&path).expect("text");
                std::fs::write(&path, text.replace("\"format_version\": 2", "\"format_version\": 9")).expect("written");
            },
            "format version",
        ),
        (
            "a manifest that leads out",
            |root| {
                let path = root.join("manifest.json");
                let text = std::fs::read_to_string(&path).expect("text");
                std::fs::write(&path, text.replace("\"path\": \"model.onnx\"", "\"path\": \"../model.onnx\""))
                    .expect("written");
            },
            "model.onnx",
        ),
    ];
    for (name, change, words) in damage {
        let copy = tempfile::tempdir().expect("a folder");
        // A fused package is a folder of onnxruntime-genai as well, and runs as one without its manifest.
        for entry in std::fs::read_dir(package("int4-plain")).expect("a package") {
            let entry = entry.expect("an entry");
            std::fs::copy(entry.path(), copy.path().join(entry.file_name())).expect("a copy");
        }
        change(copy.path());
        let (code, text) = fails(&["generate", copy.path().to_str().expect("UTF-8"), "--prompt", "x", "--verify"]);
        assert_eq!(code, 2, "{name}: {text}");
        assert!(text.contains(words), "{name}: {text}");
        assert!(text.contains("hint:"), "{name}: {text}");
    }
}
