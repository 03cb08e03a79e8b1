//! Graphs compiled ahead of time, and settings of allocators: other memory, the same answers to the last bit.

use ortbench::cell::{Arm, Cell, ProviderKind, RuntimeRef, Switched, Technique};
use ortbench::optimizations::{Arranged, Compiled, Derivation, arrange};
use ortbench::package::Package;
use ortbench::protocol::FactValue;

use crate::fusion::{answers, cell, optimized};
use crate::real::{load, load_with, package_of};

fn run(arranged: &Arranged) -> (Vec<u32>, Vec<f32>) {
    let package = Package::open(&arranged.package).expect("a package");
    answers(&mut load_with(&package, &arranged.setup.plan).expect("a model"))
}

#[test]
fn compiled_graphs_say_the_same_to_the_last_bit() {
    for (name, form) in [
        ("qwen3-tiny", "int4-fused"),
        ("qwen3-tiny", "fp32-fused"),
        ("qwen3-tiny", "int4-plain"),
        ("qwen3-moe-tiny", "int4-fused"),
        ("glm4-moe-lite-tiny", "int8-fused"),
        ("qwen3-vl-tiny", "int4-fused"),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let from = package_of(name, form);
        let compiled = optimized(&cell(&from, folder.path(), Technique::RuntimeMemory, &[])).expect("a package");
        assert_eq!(run(&compiled), answers(&mut load(&Package::open(&from).expect("a package"))), "{name} {form}");
        let FactValue::Integer(after) = compiled.evidence["compiled_nodes_after"] else { panic!("a number") };
        assert!(after > 0);
        if form == "int4-fused" {
            let FactValue::Integer(prepacked) = compiled.evidence["compiled_prepacked_constants"] else {
                panic!("a number")
            };
            assert!(prepacked > 4, "{name}: {prepacked} constants");
        }
    }
}

#[test]
fn allocators_change_nothing_but_memory() {
    let from = package_of("qwen3-tiny", "int4-fused");
    let expected = answers(&mut load(&Package::open(&from).expect("a package")));
    let folder = tempfile::tempdir().expect("a folder");
    for options in [
        &[("compile", "off"), ("arena", "off")][..],
        &[("compile", "off"), ("arena", "off"), ("memory_pattern", "off")],
        &[("compile", "off"), ("arena", "same_as_requested")],
        &[("compile", "off"), ("shrink", "on")],
        &[("compile", "off"), ("arena", "same_as_requested"), ("shrink", "on")],
    ] {
        let arranged = optimized(&cell(&from, folder.path(), Technique::RuntimeMemory, options)).expect("a package");
        assert_eq!(arranged.package, from);
        assert_eq!(run(&arranged), expected, "{options:?}");
    }
}

#[test]
fn fused_operators_can_be_compiled() {
    let folder = tempfile::tempdir().expect("a folder");
    let from = package_of("qwen3-tiny", "int4-fused");
    let fused = cell(&from, folder.path(), Technique::KernelFusion, &[("baseline", "fused")]);
    let mut both = fused.clone();
    let memory = Switched { technique: Technique::RuntimeMemory, options: [].into() };
    both.optimizations.as_mut().expect("a plan").switched.insert(0, memory);
    let compiled = optimized(&both).expect("a package");
    assert!(compiled.evidence.contains_key("fusion_operators") && compiled.evidence.contains_key("compile_seconds"));
    assert_eq!(run(&compiled), run(&optimized(&fused).expect("a package")));
}

/// What was compiled by another build, or for another processor, is another package.
#[test]
fn what_was_compiled_elsewhere_is_not_used() {
    let here = Compiled::of(&RuntimeRef::Installed("cpu".to_owned())).expect("a runtime");
    let described = here.describe();
    assert!(described.contains(&here.library) && described.contains(&here.processor), "{described}");
    let other = Compiled { library: "1.31.0 (0123456789abcdef)".to_owned(), ..here };
    assert_ne!(other.describe(), described);
    // Nothing is made while a cell runs.
    let folder = tempfile::tempdir().expect("a folder");
    let cell = cell(&package_of("qwen3-tiny", "int4-fused"), folder.path(), Technique::RuntimeMemory, &[]);
    let error = arrange(&cell, Arm::Optimized).unwrap_err();
    assert!(error.chain().contains("is not there"), "{}", error.chain());
}

#[test]
fn what_cannot_be_compiled_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let from = package_of("qwen3-tiny", "int4-fused");
    let refused = |options: &[(&str, &str)], change: &dyn Fn(&mut Cell)| {
        let mut cell = cell(&from, folder.path(), Technique::RuntimeMemory, options);
        change(&mut cell);
        optimized(&cell).unwrap_err().chain()
    };
    let openvino = |cell: &mut Cell| cell.backend.provider = ProviderKind::OpenVino;
    assert!(refused(&[], &openvino).contains("not on openvino"));
    assert!(refused(&[("compile", "off")], &|_| ()).contains("both arms are the same"));
    assert!(refused(&[("arena", "off"), ("shrink", "on")], &|_| ()).contains("nothing to shrink"));
    let error = refused(&[], &|cell| {
        let paging = Switched { technique: Technique::SmartPaging, options: [].into() };
        cell.optimizations.as_mut().expect("a plan").switched.push(paging);
    });
    assert!(error.contains("exclude each other") && error.contains("form of the package"), "{error}");
}
