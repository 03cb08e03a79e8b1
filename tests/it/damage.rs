//! The category sees what it is there for: weights that were quantized badly, and layers that are not there.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ortbench::package::onnx;

use crate::measuring::{only_run, rows};
use crate::real::{ortbench, package, root};

/// A weight of a projection: rows of single-precision numbers.
type Damage = fn(&str, &mut [f32]);

/// Symmetric rounding of each 32 neighbours to this many bits.
fn round_to(bits: u32, weights: &mut [f32]) {
    let most = ((1 << (bits - 1)) - 1) as f32;
    for block in weights.chunks_mut(32) {
        let scale = block.iter().fold(0.0_f32, |max, weight| max.max(weight.abs())) / most;
        for weight in block.iter_mut().filter(|_| scale > 0.0) {
            *weight = (*weight / scale).round().clamp(-most, most) * scale;
        }
    }
}

/// A layer whose two outputs into the residual stream are zero passes on what it gets: it is not there.
fn drop_layer(layer: usize, name: &str, weights: &mut [f32]) {
    let outputs = [format!("layers.{layer}.attn.o_proj."), format!("layers.{layer}.mlp.down_proj.")];
    if outputs.iter().any(|output| name.contains(output)) {
        weights.fill(0.0);
    }
}

const MODELS: [(&str, Damage); 6] = [
    ("whole", |_, _| {}),
    ("copy", |_, _| {}),
    ("six-bits", |_, weights| round_to(6, weights)),
    ("four-bits", |_, weights| round_to(4, weights)),
    ("two-bits", |_, weights| round_to(2, weights)),
    ("a-layer-less", |name, weights| drop_layer(2, name, weights)),
];

/// Copies the dense miniature with damaged projections. Sizes stay, and hashes are checked by `--verify` alone.
fn write(folder: &Path, damage: Damage) {
    let from = package("fp32-fused");
    fs::create_dir(folder).expect("a folder");
    for entry in fs::read_dir(&from).expect("a package") {
        let path = entry.expect("an entry").path();
        fs::copy(&path, folder.join(path.file_name().expect("a name"))).expect("a copy");
    }
    let (graph, _) = onnx::read(&fs::read(folder.join("model.onnx")).expect("a graph")).expect("a graph");
    let data = folder.join("model.onnx.data");
    let mut bytes = fs::read(&data).expect("weights");
    let mut damaged = 0;
    for tensor in graph.initializer.iter().filter(|tensor| tensor.name().contains("_proj.")) {
        let number = |key: &str| -> usize {
            let entry = tensor.external_data.iter().find(|entry| entry.key() == key).expect("outside the graph");
            entry.value().parse().expect("a number")
        };
        let range = number("offset")..number("offset") + number("length");
        let mut weights: Vec<f32> =
            bytes[range.clone()].chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        damage(tensor.name(), &mut weights);
        bytes.splice(range, weights.iter().flat_map(|weight| weight.to_le_bytes()));
        damaged += 1;
    }
    assert_eq!(damaged, 20, "projections of four layers");
    fs::write(data, bytes).expect("weights are written");
}

#[test]
fn bad_weights_and_missing_layers_show() {
    let folder = tempfile::tempdir().expect("a folder");
    let names: Vec<&str> = MODELS.iter().map(|(name, _)| *name).collect();
    for (name, damage) in MODELS {
        write(&folder.path().join(name), damage);
    }
    let models: Vec<String> = names.iter().map(|name| format!("{{name: {name}, package: {name}}}")).collect();
    let text = format!(
        "version: 1\nname: damage\nmodels: [{}]\nbackends: [{{name: cpu, runtime: cpu, provider: cpu}}]\n\
         matrix: {{model: [{}], backend: cpu, precision: fp32, flavour: fused, threads: 2, batch: 1, prompt_tokens: 8, generate_tokens: 2}}\n\
         categories: accuracy\naccuracy:\n  tasks:\n    - {{task: '{root}/models/tasks/arithmetic.yaml', data: '{root}/models/qwen3-tiny/tasks/arithmetic.jsonl'}}\n  \
         reference: {{model: whole}}\n  fidelity: {{text: '{root}/models/qwen3-tiny/tasks/text.txt', tokens: 1024}}\n\
         accuracy_floor: 0.99 of reference\nmeasurement: {{profile: quick}}\n",
        models.join(", "),
        names.join(", "),
        root = root().display()
    );
    let file = folder.path().join("matrix.yaml");
    fs::write(&file, text).expect("the matrix");
    let results = folder.path().join("results");
    let path = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let output = ortbench(&["run", &path(&file), "--results", &path(&results), "--quiet"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rows: BTreeMap<String, BTreeMap<String, String>> =
        rows(&only_run(&results).join("summary.csv")).into_iter().map(|row| (row["model"].clone(), row)).collect();
    let text = |model: &str, name: &str| rows[model][name].clone();
    let number = |model: &str, name: &str| {
        let field = text(model, name);
        field.parse::<f64>().unwrap_or_else(|_| panic!("`{name}` of `{model}` is `{field}`"))
    };
    let divergence = |model: &str| number(model, "kl_divergence_mean");
    let score = |model: &str| number(model, "accuracy_score");
    for name in &names {
        assert_eq!(text(name, "status"), "measured", "{name}: {}", text(name, "reason"));
    }

    assert_eq!(score("whole"), 1.0);
    assert_eq!((score("copy"), number("copy", "answer_flips")), (1.0, 0.0));
    assert!(divergence("copy") < 1e-9 && number("copy", "greedy_identical_share") == 1.0);
    assert_eq!(text("copy", "accuracy_gate"), "pass");

    // The perplexity alone would mislead: what a text has at random, a damaged model is less sure of.
    assert!(number("a-layer-less", "perplexity_ratio") < 1.0);
    // Fewer bits diverge more, and so does a model that lacks a layer.
    assert!(divergence("copy") < divergence("six-bits") / 100.0);
    assert!(divergence("six-bits") < divergence("four-bits") / 3.0);
    assert!(divergence("four-bits") < divergence("two-bits") / 3.0);
    assert!(divergence("a-layer-less") > divergence("four-bits"));
    assert_eq!(text("six-bits", "accuracy_gate"), "pass", "{}", text("six-bits", "accuracy_gate_detail"));
    for bad in ["two-bits", "a-layer-less"] {
        assert!(score(bad) < 0.9, "{bad}: {}", score(bad));
        assert_eq!(text(bad, "accuracy_gate"), "fail", "{bad}");
        assert!(number(bad, "top1_agreement_share") < 0.9 && number(bad, "greedy_identical_share") == 0.0, "{bad}");
        assert!(number(bad, "answer_flips_to_wrong") >= 18.0, "{bad}");
    }
}
