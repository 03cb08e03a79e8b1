//! `scripts/gpu-check` without a GPU: it says so, and judges tables by its rules.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::real::root;

fn check(arguments: &[&str]) -> (i32, String) {
    let output = Command::new("python3").arg(root().join("scripts/gpu-check")).args(arguments).output();
    let output = output.expect("python3");
    (output.status.code().expect("a code"), String::from_utf8_lossy(&output.stdout).into_owned())
}

const HEADER: &str =
    "provider,model,precision,flavour,status,reason,cache_mode,provider_nodes,kl_divergence_mean,accuracy_score";
const CPU: &str = "cpu,tiny,int4,fused,measured,,in_place,90,0.04,0.8";
const CUDA: &str = "cuda,tiny,int4,fused,measured,,in_place,90,0.05,0.81";

fn judge(rows: &[&str]) -> (i32, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("summary.csv");
    fs::write(&file, format!("{HEADER}\n{}\n", rows.join("\n"))).expect("a table");
    check(&["--judge", &file.display().to_string()])
}

#[test]
fn a_machine_without_a_gpu_has_a_code_of_its_own() {
    if Path::new("/dev/nvidia0").exists() || Path::new("/proc/driver/nvidia/gpus").exists() {
        return;
    }
    let (code, text) = check(&[]);
    assert_eq!(code, 4, "{text}");
    assert!(text.starts_with("no GPU:"), "{text}");
}

#[test]
fn cells_that_agree_with_the_cpu_pass() {
    let (code, text) = judge(&[CPU, CUDA]);
    assert_eq!(code, 0, "{text}");
    assert!(text.ends_with("verdict: all 1 cells pass\n"), "{text}");
}

#[test]
fn every_fault_is_named() {
    for (row, fault) in [
        ("cuda,tiny,int4,fused,failed,it crashed,,,,", "failed: it crashed"),
        ("cuda,tiny,int4,fused,measured,,append,90,0.05,0.8", "the cache is append, not in place"),
        ("cuda,tiny,int4,fused,measured,,in_place,0,0.05,0.8", "the provider runs no node"),
        ("cuda,tiny,int4,fused,measured,,in_place,90,0.2,0.8", "diverges by 0.2 nats where the CPU does by 0.04"),
        ("cuda,tiny,int4,fused,measured,,in_place,90,,0.8", "its divergence was not measured"),
        ("cuda,tiny,int4,fused,measured,,in_place,90,0.05,0.7", "scores 0.700 where the CPU scores 0.800"),
        ("cuda,tiny,int4,plain,measured,,append,90,0.05,0.8", "the CPU's row to compare with is missing"),
        ("cuda,tiny,int4,fused,unsupported,the driver is too old,,,,", "unsupported: the driver is too old"),
        ("tensorrt,tiny,int4,plain,unsupported,driver and TensorRT 10 are missing,,,,", "unsupported: driver"),
    ] {
        let (code, text) = judge(&[CPU, row]);
        assert_eq!(code, 1, "{text}");
        assert!(text.contains(fault), "{fault}: {text}");
    }
    assert_eq!(judge(&[CPU]).0, 1, "nothing ran on a GPU");
}

#[test]
fn a_machine_without_tensorrt_passes_in_part() {
    let lacks = "tensorrt,tiny,int4,fused,unsupported,TensorRT 10 (libnvinfer.so.10) is missing,,,,";
    let (code, text) = judge(&[CPU, CUDA, lacks]);
    assert_eq!(code, 5, "{text}");
    let limit = "tensorrt,tiny,int4,fused,failed,no associated shape profiles,,,,";
    let (code, text) = judge(&[CPU, CUDA, limit]);
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains("known limit: failed: no associated") && text.contains("all 1 cells pass, 1 are beyond"),
        "{text}"
    );
    assert_eq!(judge(&[CPU, limit]).0, 1, "nothing ran");
    let (_, text) = judge(&[CPU, CUDA, lacks]);
    assert!(text.contains("1 cells pass, 1 could not run for want of TensorRT"), "{text}");
}
