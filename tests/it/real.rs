//! Real packages on real libraries: what `make packages` exported and `ortbench runtime install` placed.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use ortbench::cell::{Backend, ProviderKind, RuntimeRef};
use ortbench::engine::{Model, Plan};
use ortbench::error::Result;
use ortbench::package::Package;
use ortbench::runtime::{Runtime, catalog};
use serde_json::Value;

/// A model loaded into this process on the CPU provider. A process has one library, which all tests share.
pub fn load(package: &Package) -> Model {
    load_with(package, &Plan { images: package.manifest.image.is_some(), ..Plan::with_threads(2) }).expect("a model")
}

/// The same by a plan of one's own.
pub fn load_with(package: &Package, plan: &Plan) -> Result<Model> {
    Model::load(runtime(), package, &backend(), plan)
}

/// The library of this process.
pub fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let library = catalog::find(&backend().runtime).expect("a runtime");
        Runtime::load(&library.path).expect("the library")
    })
}

/// The CPU provider.
pub fn backend() -> Backend {
    Backend {
        name: "cpu".to_owned(),
        runtime: RuntimeRef::Installed("cpu".to_owned()),
        provider: ProviderKind::Cpu,
        plugin: None,
        options: [].into(),
    }
}

/// The repository's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The folder of the dense miniature's package.
pub fn package(name: &str) -> PathBuf {
    package_of("qwen3-tiny", name)
}

/// The folder of an exported miniature.
pub fn package_of(model: &str, name: &str) -> PathBuf {
    let folder = root().join("models/packages").join(model).join(name);
    assert!(folder.join("manifest.json").is_file(), "`{}` is missing: run `make packages`", folder.display());
    folder
}

/// Runs the program.
pub fn ortbench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ortbench")).args(arguments).output().expect("the program starts")
}

/// Runs `ortbench generate` and returns what it printed.
pub fn generate(package: &Path, arguments: &[&str]) -> String {
    let mut all = vec!["generate", package.to_str().expect("a path in UTF-8"), "--quiet"];
    all.extend(arguments);
    let output = ortbench(&all);
    assert!(output.status.success(), "{all:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Runs a command that must fail; returns its exit code and standard error.
pub fn fails(arguments: &[&str]) -> (i32, String) {
    let output = ortbench(arguments);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{arguments:?} should fail");
    assert!(!text.contains("panicked"), "{text}");
    (output.status.code().expect("an exit code"), text)
}

/// A committed JSON file.
pub fn json(path: &str) -> Value {
    let text = std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_str(&text).expect("JSON")
}

/// A list of ids as `generate --ids` prints them.
pub fn ids(value: &Value) -> String {
    let ids: Vec<_> = value.as_array().expect("a list").iter().map(|id| id.to_string()).collect();
    ids.join(" ")
}
