//! Packages that were operated on against what others make of the same: the exporter of a checkpoint without that layer,
//! ONNX's own checker.

use std::path::{Path, PathBuf};
use std::process::Command;

use ortbench::package::Package;

use super::{largest_difference, logits, prompt, surgery, with_idle_layer};
use crate::real::{generate, package_of, root};

/// A checkpoint without a layer: `shorten.py CHECKPOINT OUTPUT LAYER`.
const SHORTEN: &str = r#"
import json, shutil, struct, sys
from pathlib import Path

source, output, gone = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
output.mkdir()
for file in source.iterdir():
    if file.is_file() and file.suffix != ".safetensors":
        shutil.copy(file, output)
config = json.loads((source / "config.json").read_text())
text = config.get("text_config", config)
text["num_hidden_layers"] -= 1
for key in ("layer_types", "mlp_layer_types"):
    if isinstance(text.get(key), list):
        del text[key][gone]
(output / "config.json").write_text(json.dumps(config))
data = (source / "model.safetensors").read_bytes()
(length,) = struct.unpack("<Q", data[:8])
header, body = json.loads(data[8:8 + length]), data[8 + length:]
header.pop("__metadata__", None)
kept, blob = {}, b""
for name, entry in header.items():
    parts = name.split(".")
    if "layers" in parts:
        at = parts.index("layers") + 1
        layer = int(parts[at])
        if layer == gone:
            continue
        parts[at] = str(layer - (layer > gone))
    start, end = entry["data_offsets"]
    kept[".".join(parts)] = entry | {"data_offsets": [len(blob), len(blob) + end - start]}
    blob += body[start:end]
text = json.dumps(kept).encode()
(output / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + blob)
"#;

const CHECK: &str =
    "import sys, onnx\nfor path in sys.argv[1:]:\n    onnx.checker.check_model(path, full_check=True)\n";

/// Greedy tokens behind a prompt's, by onnxruntime-genai: `FOLDER COUNT TOKEN…`.
const GENAI: &str = r#"
import sys
import onnxruntime_genai as genai

model, count, prompt = genai.Model(sys.argv[1]), int(sys.argv[2]), [int(word) for word in sys.argv[3:]]
parameters = genai.GeneratorParams(model)
parameters.set_search_options(max_length=len(prompt) + count, do_sample=False)
generator = genai.Generator(model, parameters)
generator.append_tokens(prompt)
while not generator.is_done():
    generator.generate_next_token()
print(*list(generator.get_sequence(0))[len(prompt):])
"#;

/// Runs the exporter's Python, which `make packages` installs; what it printed.
fn python(arguments: &[&str]) -> String {
    let program = root().join(".venv/bin/python");
    assert!(program.exists(), "`{}` is missing: run `make packages`", program.display());
    let mut command = Command::new(program);
    let run = command.args(arguments).env("PYTHONPATH", root().join("export_scripts")).output().expect("Python");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    String::from_utf8(run.stdout).expect("UTF-8")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Exports a miniature without that layer.
fn exported(folder: &Path, model: &str, kind: &str, layer: usize) -> PathBuf {
    let script = folder.join("shorten.py");
    std::fs::write(&script, SHORTEN).expect("a script");
    let checkpoint = folder.join(model);
    if !checkpoint.exists() {
        let source = root().join("models").join(model);
        python(&[text(&script), text(&source), text(&checkpoint), &layer.to_string()]);
    }
    let (precision, flavour) = kind.split_once('-').expect("precision and flavour");
    let output = folder.join(format!("{model}-{kind}-exported"));
    let arguments = ["-m", "ortbench_export", "export", text(&checkpoint), "--output", text(&output)];
    python(&[&arguments[..], &["--precision", precision, "--flavour", flavour]].concat());
    output
}

#[test]
fn a_dropped_layer_is_a_checkpoint_without_it() {
    let folder = tempfile::tempdir().expect("a folder");
    // The layer that is least important of each, whose first and last ones stay.
    for model in ["qwen3-tiny", "qwen3-moe-tiny", "glm4-moe-lite-tiny", "qwen3-vl-tiny"] {
        for kind in ["fp32-fused", "int4-fused", "int4-plain"] {
            let package = Package::open(&package_of(model, kind)).expect("a package");
            let layer = 2;
            // Its importance is nothing, so that it is this one that goes.
            let idle = with_idle_layer(&package, layer, &folder.path().join(format!("{model}-{kind}-idle")));
            let output = folder.path().join(format!("{model}-{kind}"));
            surgery(&idle.root, &output, &["--drop-layers", "1"]);
            let cut = Package::open(&output).expect("a package");
            let reference = Package::open(&exported(folder.path(), model, kind, layer)).expect("a package");
            let (a, b) = (&cut.manifest, &reference.manifest);
            assert_eq!(a.shape, b.shape, "{model} {kind}");
            assert_eq!(a.parameters, b.parameters, "{model} {kind}");
            assert_eq!(a.cache, b.cache, "{model} {kind}");
            assert_eq!(a.bytes_read_per_token, b.bytes_read_per_token, "{model} {kind}");
            let (a, b) = (cut.decoder().unwrap(), reference.decoder().unwrap());
            assert_eq!((&a.inputs, &a.outputs), (&b.inputs, &b.outputs), "{model} {kind}");
            if model == "qwen3-vl-tiny" {
                // Features that joined behind the dropped layer stay there; the exporter gives them to the next one.
                continue;
            }
            let prompt = prompt(&package);
            let difference = largest_difference(&logits(&cut, &prompt, &[4, 9]), &logits(&reference, &prompt, &[4, 9]));
            assert_eq!(difference, 0.0, "{model} {kind}");
        }
    }
}

#[test]
fn onnx_accepts_plain_graphs_that_were_operated_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let readme = root().join("README.md");
    let mut paths = Vec::new();
    for model in ["qwen3-tiny", "qwen3-moe-tiny", "glm4-moe-lite-tiny", "qwen3-vl-tiny"] {
        for kind in ["fp32-plain", "int4-plain"] {
            let output = folder.path().join(format!("{model}-{kind}"));
            let mut arguments = vec!["--drop-layers", "2", "--unprotected", "--trim-vocabulary", text(&readme)];
            if model.contains("moe") {
                arguments.extend(["--keep-experts", "5"]);
            }
            surgery(&package_of(model, kind), &output, &arguments);
            paths.push(output.join("model.onnx"));
        }
    }
    let mut arguments = vec!["-c", CHECK];
    arguments.extend(paths.iter().map(|path| text(path)));
    python(&arguments);
}

#[test]
fn onnxruntime_genai_answers_from_what_was_cut() {
    let folder = tempfile::tempdir().expect("a folder");
    let readme = root().join("README.md");
    for model in ["qwen3-tiny", "qwen3-moe-tiny"] {
        let output = folder.path().join(model);
        let mut arguments = vec!["--drop-layers", "1", "--trim-vocabulary", text(&readme)];
        if model.contains("moe") {
            arguments.extend(["--keep-experts", "6"]);
        }
        surgery(&package_of(model, "fp32-fused"), &output, &arguments);
        let package = Package::open(&output).expect("a package");
        let encoding = package.tokenizer().expect("a tokenizer").encode("The program", false).expect("tokens");
        let prompt: Vec<String> = encoding.get_ids().iter().map(u32::to_string).collect();
        let mut arguments = vec!["-c", GENAI, text(&output), "8"];
        arguments.extend(prompt.iter().map(String::as_str));
        let theirs = python(&arguments);
        let ours = generate(&output, &["--prompt", "The program", "-n", "8", "--ids"]);
        assert_eq!(ours.trim(), theirs.trim(), "{model}");
    }
}
