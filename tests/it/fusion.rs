//! Operators of this program in the place of several of ONNX Runtime's: fewer nodes, the same answers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ortbench::cell::{Arm, Cell, Flavour, ModelRef, OptimizationPlan, ProviderKind, Switched, Technique};
use ortbench::engine::sampling::argmax;
use ortbench::engine::{Decoder, Features, Model, Prompt, fake};
use ortbench::error::Result;
use ortbench::loader::pack::{self, Options, Quiet};
use ortbench::optimizations::{Arranged, Workshop, arrange, prepare};
use ortbench::package::Package;
use ortbench::protocol::{FactValue, Reporter};

use crate::real::{cpu, load, package_of, runtime};

/// A cell of that package with one technique.
pub fn cell(package: &Path, derived: &Path, technique: Technique, options: &[(&str, &str)]) -> Cell {
    let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let plain = ModelRef {
        name: "plain".to_owned(),
        package: PathBuf::from(package.to_str().expect("UTF-8").replace("-fused", "-plain")),
        written: "plain".to_owned(),
    };
    let plan = OptimizationPlan {
        switched: vec![Switched { technique, options }],
        plain: Some(plain),
        derived: derived.to_owned(),
    };
    let mut cell = Cell { backend: cpu(), optimizations: Some(Box::new(plan)), ..fake::cell("tiny", "cpu") };
    cell.model.package = package.to_owned();
    cell
}

/// What the optimized arm of a cell runs.
pub fn optimized(cell: &Cell) -> Result<Arranged> {
    let report = Reporter::new(std::io::sink());
    let workshop = Workshop { runtime: runtime(), backend: &cell.backend, threads: 2, report: &report };
    prepare(cell, &workshop)?;
    arrange(cell, Arm::Optimized)
}

/// The logits of a prompt's last token and of each greedy token after it, and these tokens: of two rows of different
/// lengths.
pub fn answers(model: &mut Model) -> (Vec<u32>, Vec<f32>) {
    let prompts = [7_u32, 12].map(|length| Prompt::text((5..5 + length).collect()));
    let mut decoder = Decoder::new(model, 2, 32).expect("a decoder");
    decoder.prefill(model, &prompts, &Features::default()).expect("a prefill");
    let (mut tokens, mut logits) = (Vec::new(), Vec::new());
    for _ in 0..12 {
        logits.extend(decoder.logits().iter().copied());
        let next: Vec<u32> = decoder.logits().rows().into_iter().map(|row| argmax(row).expect("a token")).collect();
        decoder.step(model, &next).expect("a step");
        tokens.extend(next);
    }
    (tokens, logits)
}

/// The largest difference, in units of the largest logit.
fn difference(one: &[f32], other: &[f32]) -> f32 {
    let largest = one.iter().fold(0.0_f32, |most, logit| most.max(logit.abs()));
    one.iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest
}

fn count(evidence: &BTreeMap<String, FactValue>, name: &str) -> u64 {
    match evidence[name] {
        FactValue::Integer(count) => count,
        ref other => panic!("{name} is {other:?}"),
    }
}

#[test]
fn fused_operators_say_the_same_with_fewer_nodes() {
    // Activations of quantized products are rounded to integers: a last digit decides which one.
    for (name, form, operators, bound) in [
        ("qwen3-tiny", "int4-fused", "HeadNorm 4, SkipNorm 8, SwiGlu 4", 2e-2),
        ("qwen3-tiny", "fp32-fused", "HeadNorm 4, SkipNorm 8, SwiGlu 4", 1e-5),
        ("qwen3-moe-tiny", "int4-fused", "HeadNorm 4, SkipNorm 8", 2e-2),
        ("glm4-moe-lite-tiny", "fp32-fused", "SkipNorm 8, SwiGlu 4", 1e-5),
        ("qwen3-vl-tiny", "fp32-fused", "HeadNorm 4, SkipNorm 8, SwiGlu 4", 1e-5),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let from = Package::open(&package_of(name, form)).expect("a package");
        let cell = cell(&from.root, folder.path(), Technique::KernelFusion, &[("baseline", "fused")]);
        let derived = optimized(&cell).expect("a package");
        let fused = Package::open(&derived.package).expect("a package");
        assert_eq!(derived.evidence["fusion_operators"], FactValue::Text(operators.to_owned()), "{name} {form}");
        let nodes = |name: &str| count(&derived.evidence, name);
        assert!(nodes("fusion_nodes_after") < nodes("fusion_nodes_before"), "{name} {form}");
        let (tokens, logits) = answers(&mut load(&from));
        let (fused_tokens, fused_logits) = answers(&mut load(&fused));
        assert_eq!(fused_tokens, tokens, "{name} {form}");
        let difference = difference(&logits, &fused_logits);
        assert!(difference <= bound, "{name} {form}: {difference}");
    }
}

#[test]
fn fused_packages_can_be_packed_and_cut() {
    let folder = tempfile::tempdir().expect("a folder");
    let from = package_of("qwen3-tiny", "int4-fused");
    let cell = cell(&from, folder.path(), Technique::KernelFusion, &[("baseline", "fused")]);
    let fused = Package::open(&optimized(&cell).expect("a package").package).expect("a package");
    let to = folder.path().join("pack");
    pack::pack(&fused, &to, &Options::default(), &Quiet).expect("a pack");
    let packed = Package::open(&to).expect("a pack");
    let whole = answers(&mut load(&packed));
    let plan = ortbench::engine::Plan { micro_batch: Some(1), ..ortbench::engine::Plan::with_threads(2) };
    let cut = answers(&mut crate::real::load_with(&packed, &plan).expect("a model"));
    assert_eq!(whole, cut);
    assert_eq!(whole.0, answers(&mut load(&fused)).0);
}

#[test]
fn products_of_this_program_say_the_same() {
    for (name, form) in [("qwen3-tiny", "int4-fused"), ("qwen3-tiny", "int8-fused"), ("qwen3-moe-tiny", "int4-fused")] {
        let folder = tempfile::tempdir().expect("a folder");
        let from = Package::open(&package_of(name, form)).expect("a package");
        let options = [("baseline", "fused"), ("operators", "none"), ("products", "own")];
        let derived = optimized(&cell(&from.root, folder.path(), Technique::KernelFusion, &options)).expect("a pack");
        let pack = Package::open(&derived.package).expect("a pack");
        assert!(pack.manifest.pack.is_some());
        assert!(count(&derived.evidence, "pack_products") > 0, "{name} {form}");
        let (tokens, logits) = answers(&mut load(&from));
        let (own_tokens, own_logits) = answers(&mut load(&pack));
        assert_eq!(own_tokens, tokens, "{name} {form}");
        let difference = difference(&logits, &own_logits);
        assert!(difference <= 2e-2, "{name} {form}: {difference}");
    }
}

#[test]
fn what_cannot_be_fused_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let refused = |form: &str, options: &[(&str, &str)], change: &dyn Fn(&mut Cell)| {
        let mut cell = cell(&package_of("qwen3-tiny", form), folder.path(), Technique::KernelFusion, options);
        change(&mut cell);
        optimized(&cell).unwrap_err().chain()
    };
    let openvino = |cell: &mut Cell| cell.backend.provider = ProviderKind::OpenVino;
    let plain = |cell: &mut Cell| cell.flavour = Flavour::Plain;
    let without = |cell: &mut Cell| cell.optimizations.as_mut().expect("a plan").plain = None;
    assert!(refused("int4-fused", &[("operators", "SwiGlu")], &openvino).contains("not on openvino"));
    assert!(refused("int4-fused", &[("operators", "SwiGulu")], &|_| ()).contains("did you mean `SwiGlu`"));
    assert!(refused("int4-plain", &[], &plain).contains("the cell's own graph is `plain`"));
    assert!(refused("int4-fused", &[], &without).contains("names no `plain` package"));
    let nothing = &[("baseline", "fused"), ("operators", "none")];
    assert!(refused("int4-fused", nothing, &|_| ()).contains("both arms are the same"));
    let own = &[("baseline", "fused"), ("products", "own")];
    assert!(refused("fp32-fused", own, &|_| ()).contains("for which the fp32 package does not ask"));
    let own = &[("products", "own"), ("operators", "none")];
    assert!(refused("int4-fused", own, &openvino).contains("this program's kernels of products run on"));
    // Halves are none of the operators' floats.
    let error = refused("fp16-fused", &[("baseline", "fused")], &|_| ());
    assert!(error.contains("nothing in the graph"), "{error}");
}
