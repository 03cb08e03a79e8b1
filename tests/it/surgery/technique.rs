//! The technique `model_surgery`, from its options to a derived package and the evidence beside it.

use std::collections::BTreeMap;
use std::path::Path;

use ortbench::cell::{AccuracyPlan, Cell, OptimizationPlan, Scoring, Switched, TaskRef, TaskSource, Technique};
use ortbench::engine::fake;
use ortbench::metrics::FACTS;
use ortbench::optimizations::{Workshop, arms, arrange, prepare};
use ortbench::package::Package;
use ortbench::protocol::{FactValue, Reporter};

use crate::real::{cpu, generate, package_of, root, runtime};

fn cell(model: &str, derived: &Path, options: &[(&str, &str)]) -> Cell {
    let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let task = |name: &str| TaskRef {
        data: Some(root().join("models").join(model).join(format!("tasks/{name}.jsonl"))),
        limit: Some(20),
        ..TaskRef::new(name, TaskSource::File(root().join(format!("models/tasks/{name}.yaml"))))
    };
    let accuracy = AccuracyPlan {
        tasks: vec![task("arithmetic"), task("sums")],
        seed: 0,
        scoring: Scoring::Batched,
        run_code: false,
        fidelity: None,
        reference: None,
        floor: None,
    };
    let mut cell = fake::cell(model, "cpu");
    cell.model.package = package_of(model, "int4-fused");
    cell.accuracy = Some(Box::new(accuracy));
    let switched = vec![Switched { technique: Technique::ModelSurgery, options }];
    cell.optimizations = Some(Box::new(OptimizationPlan { switched, plain: None, derived: derived.to_owned() }));
    cell
}

/// What the optimized arm runs, derived twice: the second time it is there.
fn derived(cell: &Cell) -> (Package, BTreeMap<String, FactValue>) {
    let report = Reporter::new(std::io::sink());
    let backend = cpu();
    let workshop = Workshop { runtime: runtime(), backend: &backend, threads: 2, report: &report };
    prepare(cell, &workshop).unwrap_or_else(|error| panic!("{}", error.chain()));
    let arranged = arrange(cell, ortbench::cell::Arm::Optimized).expect("a package");
    let written = arranged.package.join("model.onnx").metadata().expect("a file").modified().expect("a time");
    prepare(cell, &workshop).expect("what is there already");
    let again = arranged.package.join("model.onnx").metadata().expect("a file").modified().expect("a time");
    assert_eq!(written, again);
    for name in arranged.evidence.keys() {
        assert!(FACTS.iter().any(|fact| fact.name == *name), "`{name}` is no column");
    }
    (Package::open(&arranged.package).expect("a package"), arranged.evidence)
}

#[test]
fn without_options_a_quarter_of_the_layers_leaves() {
    let folder = tempfile::tempdir().expect("a folder");
    for model in ["qwen3-tiny", "qwen3-moe-tiny", "glm4-moe-lite-tiny"] {
        let (package, evidence) = derived(&cell(model, folder.path(), &[]));
        assert_eq!(package.manifest.shape.layers, 3);
        assert_eq!(evidence["surgery_layers_dropped"], FactValue::Integer(1));
        assert_eq!(evidence["surgery_calibration"], FactValue::Text("tasks arithmetic, sums".to_owned()));
        let FactValue::Text(importance) = &evidence["surgery_layer_importance"] else { panic!("no text") };
        assert_eq!(importance.split(' ').count(), 4);
        assert_eq!(evidence["surgery_logits_selected"], FactValue::Bool(false));
        assert_eq!(evidence["surgery_parameters_after"], FactValue::Integer(package.manifest.parameters.total));
        assert!(!generate(&package.root, &["--prompt", "12 + 30 =", "-n", "4"]).is_empty());
    }
}

#[test]
fn options_make_other_packages() {
    let folder = tempfile::tempdir().expect("a folder");
    let options = [
        ("drop_layers", "none"),
        ("keep_experts", "50%"),
        ("trim_vocabulary", "tasks"),
        ("calibration", "64"),
        ("calibration_text", "random"),
    ];
    let (package, evidence) = derived(&cell("qwen3-moe-tiny", folder.path(), &options));
    assert_eq!((package.manifest.shape.layers, package.manifest.shape.experts), (4, Some(4)));
    assert!(package.manifest.shape.vocab_size < 1024);
    assert_eq!(evidence["surgery_experts_kept"], FactValue::Integer(4));
    assert_eq!(evidence["surgery_tokens_kept"], FactValue::Integer(package.manifest.shape.vocab_size));
    assert_eq!(evidence["surgery_calibration_tokens"], FactValue::Integer(64));
    let (other, _) = derived(&cell("qwen3-moe-tiny", folder.path(), &options[..3]));
    assert_ne!(package.root, other.root, "another calibration");
}

#[test]
fn what_the_model_lacks_is_named_before_anything_runs() {
    let folder = tempfile::tempdir().expect("a folder");
    for (model, options, expected) in [
        ("qwen3-tiny", &[("keep_experts", "4")][..], "`model_surgery` cannot be applied: the model `qwen3-tiny`"),
        ("qwen3-moe-tiny", &[("keep_experts", "1")], "at most 6 can go"),
        ("qwen3-tiny", &[("drop_layers", "4")], "would leave none: at most 2 can go"),
        (
            "qwen3-tiny",
            &[("drop_layers", "few")],
            "`drop_layers` of `model_surgery` is `few`; it is one of: none, a count",
        ),
        ("qwen3-tiny", &[("trim_vocabulary", "/no/such/file")], "cannot read the text `/no/such/file`"),
    ] {
        let error = arms(&cell(model, folder.path(), options)).expect_err("nothing to be applied");
        assert!(error.chain().contains(expected), "{}", error.chain());
    }
    let mut bare = cell("qwen3-tiny", folder.path(), &[("trim_vocabulary", "tasks")]);
    bare.accuracy = None;
    let error = arms(&bare).expect_err("no tasks");
    assert!(error.chain().contains("the cell has none"), "{}", error.chain());
    assert!(std::fs::read_dir(folder.path()).expect("a folder").next().is_none());
}
