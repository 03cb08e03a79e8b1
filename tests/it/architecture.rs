//! What `ARCHITECTURE.md` promises and imports can show.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Layer of each top-level module; a module may name only modules of lower layers, and itself.
const LAYERS: &[(&str, u32)] = &[
    ("cli", 11),
    ("orchestrator", 10),
    ("worker", 10),
    ("categories", 9),
    ("config", 9),
    ("results", 9),
    ("optimizations", 8),
    ("engine", 7),
    ("probe", 7),
    ("tasks", 7),
    ("loader", 6),
    ("package", 5),
    ("runtime", 5),
    ("vision", 4),
    ("sandbox", 4),
    ("stats", 4),
    ("protocol", 3),
    ("metrics", 2),
    ("yaml", 2),
    ("cell", 1),
    ("digest", 1),
    ("error", 1),
    ("units", 1),
];

/// Files of `runtime/` that the parent process may use: they name no `ort`.
const PARENT_SAFE_RUNTIME: &[&str] = &["catalog.rs", "fetch.rs", "install.rs", "nvidia.rs", "pieces.rs", "engines.rs"];

fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                files.push((path.strip_prefix(&root).unwrap().to_owned(), text));
            }
        }
    }
    assert!(files.len() > 30, "the sources were not found");
    files
}

/// Lines of code: comments do not count.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.starts_with("//"))
}

fn module_of(path: &Path) -> String {
    path.components().next().unwrap().as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
}

/// Top-level modules named as `crate::name` in a file.
fn uses(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    for line in code(text) {
        for part in line.split("crate::").skip(1) {
            names.push(part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
    }
    names
}

#[test]
fn arrows_point_down() {
    let layers: BTreeMap<_, _> = LAYERS.iter().copied().collect();
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let from = module_of(&path);
        let Some(level) = layers.get(from.as_str()) else { continue };
        for to in uses(&text) {
            let Some(target) = layers.get(to.as_str()) else { continue };
            if from != to && target >= level {
                wrong.push(format!("{} uses crate::{to}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "arrows that point up or sideways:\n{}", wrong.join("\n"));
}

#[test]
fn every_module_has_a_layer() {
    for (path, _) in sources() {
        let module = module_of(&path);
        let known = LAYERS.iter().any(|(name, _)| *name == module) || module == "lib" || module == "main";
        assert!(known, "{} belongs to no layer of ARCHITECTURE.md", path.display());
    }
}

#[test]
fn only_runtime_names_ort() {
    for (path, text) in sources() {
        let in_runtime = module_of(&path) == "runtime";
        let parent_safe = path.file_name().is_some_and(|name| PARENT_SAFE_RUNTIME.iter().any(|safe| name == *safe));
        let names = code(&text).any(|line| {
            line.split("ort::").skip(1).count() > 0
                && line.match_indices("ort::").any(|(at, _)| {
                    at == 0 || !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':')
                })
        });
        assert!(!names || (in_runtime && !parent_safe), "{} names ort", path.display());
    }
}

#[test]
fn unsafe_stands_only_in_runtime_and_loader() {
    for (path, text) in sources() {
        let allowed = ["runtime", "loader"].contains(&module_of(&path).as_str());
        let found = code(&text)
            .any(|line| line.contains("unsafe {") || line.contains("unsafe fn") || line.contains("unsafe impl"));
        assert!(!found || allowed, "{} has an unsafe block", path.display());
    }
}

#[test]
fn every_unsafe_block_has_its_argument() {
    for (path, text) in sources() {
        let lines: Vec<_> = text.lines().collect();
        for (number, line) in lines.iter().enumerate().filter(|(_, line)| line.contains("unsafe {")) {
            if line.trim_start().starts_with("//") {
                continue;
            }
            let before = &lines[number.saturating_sub(6)..number];
            assert!(
                before.iter().any(|line| line.contains("SAFETY:")),
                "{}:{} has no SAFETY comment",
                path.display(),
                number + 1
            );
        }
    }
}

#[test]
fn the_parent_does_not_load_the_library() {
    // The orchestrator and results may use of runtime/ only what looks at files.
    for (path, text) in sources() {
        if !["orchestrator", "results", "config", "probe"].contains(&module_of(&path).as_str()) {
            continue;
        }
        for line in code(&text).filter(|line| line.contains("crate::runtime")) {
            assert!(
                line.contains("runtime::catalog")
                    || line.contains("runtime::install")
                    || line.contains("runtime::{catalog"),
                "{}: {line}",
                path.display()
            );
        }
    }
}
