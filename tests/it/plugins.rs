//! Execution providers in libraries of their own, named by path in a matrix.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::real::package_of;
use crate::support::{only_run, summary};

/// A library that offers the entry points of a plugin, and no provider.
const EMPTY: &str = "#include <stddef.h>
void *CreateEpFactories(const char *name, const void *api, const void *log, void **factories, size_t most, size_t *count) {
  *count = 0; return NULL; }
void *ReleaseEpFactory(void *factory) { return NULL; }
";

fn library(folder: &Path, name: &str, source: &str) -> PathBuf {
    let (file, code) = (folder.join(name), folder.join(format!("{name}.c")));
    fs::write(&code, source).expect("a source");
    let compiled = Command::new("cc").arg("-shared").arg("-fPIC").arg("-o").arg(&file).arg(&code).status();
    assert!(compiled.expect("a C compiler").success());
    file
}

/// The rows of a cell on each of the plugins' providers.
fn rows(folder: &Path, plugins: &[(&str, &str)]) -> Vec<BTreeMap<String, String>> {
    let package = package_of("qwen3-tiny", "fp32-plain");
    let backend = |(at, (library, name)): (usize, &(&str, &str))| {
        format!("  - {{name: vendor-{at}, runtime: cpu, provider: {{plugin: {library}, name: {name}}}}}\n")
    };
    let backends: String = plugins.iter().enumerate().map(backend).collect();
    let names: Vec<_> = (0..plugins.len()).map(|at| format!("vendor-{at}")).collect();
    let matrix = format!(
        "version: 1\nname: plugins\nmodels: [{{name: tiny, package: {}}}]\nbackends:\n{backends}matrix: {{model: tiny, \
         backend: [{}], precision: fp32, flavour: plain, threads: 2, batch: 1, prompt_tokens: 16, generate_tokens: 8}}\n\
         categories: [speed]\nmeasurement: {{profile: quick}}\n",
        package.display(),
        names.join(", ")
    );
    fs::write(folder.join("benchmarks.yaml"), matrix).expect("a matrix");
    let output = Command::new(env!("CARGO_BIN_EXE_ortbench"))
        .current_dir(folder)
        .args(["run", "--quiet", "--allow-unsupported"])
        .output()
        .expect("the program");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    summary(&only_run(&folder.join("results"))).into_iter().map(|row| row.into_iter().collect()).collect()
}

#[test]
fn plugins_that_cannot_run_are_rows_that_say_why() {
    let folder = tempfile::tempdir().expect("a folder");
    library(folder.path(), "empty.so", EMPTY);
    library(folder.path(), "other.so", "int nothing;");
    fs::write(folder.path().join("text.so"), "no library").expect("a file");
    let expected = [
        ("nowhere.so", "there is no such file"),
        ("text.so", "cannot load the plugin"),
        ("other.so", "CreateEpFactories"),
        ("empty.so", "offers no device to `VendorExecutionProvider`: no plugin found a device on this machine"),
    ];
    let rows = rows(folder.path(), &expected.map(|(file, _)| (file, "VendorExecutionProvider")));
    assert_eq!(rows.len(), expected.len());
    for (row, (file, reason)) in rows.iter().zip(expected) {
        assert_eq!(row["status"], "unsupported", "{file}");
        assert!(row["reason"].contains(reason), "{file}: {}", row["reason"]);
        assert!(row["reason"].contains(file), "{file}: {}", row["reason"]);
        assert!(!row["hint"].is_empty(), "{file}");
        assert_eq!(row["provider"], format!("VendorExecutionProvider of {file}"));
    }
}

/// A vendor's own, where one is at hand: `ORTBENCH_PLUGIN=LIBRARY:NAME cargo test -- --ignored a_vendors_plugin`. It is
/// measured where it finds its device, and is a row that names the lack of one elsewhere.
#[test]
#[ignore = "needs a plugin's library, named by ORTBENCH_PLUGIN"]
fn a_vendors_plugin_runs_or_says_that_its_device_is_missing() {
    let named = std::env::var("ORTBENCH_PLUGIN").expect("ORTBENCH_PLUGIN=LIBRARY:NAME");
    let (library, name) = named.rsplit_once(':').expect("ORTBENCH_PLUGIN=LIBRARY:NAME");
    let folder = tempfile::tempdir().expect("a folder");
    let row = rows(folder.path(), &[(library, name)]).remove(0);
    eprintln!("{}: {}", row["status"], row["reason"]);
    match row["status"].as_str() {
        "measured" => assert_ne!(row["provider_nodes"], "0"),
        "unsupported" => assert!(row["reason"].contains("offers no device to"), "{}", row["reason"]),
        other => panic!("{other}: {}", row["reason"]),
    }
}
