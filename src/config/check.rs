//! From the file as written to what it means: every value typed, every name resolved, all mistakes together.

mod measurement;
mod values;

use std::path::{Path, PathBuf};

use serde_yaml::{Location, Spanned};

use super::accuracy::Accuracy;
use super::axes::{Axes, Axis, NOTHING};
use super::file::{BackendEntry, File, MeasurementEntry, ModelEntry, ProviderEntry, RuntimeEntry};
use super::graph::{self, GraphModel};
use super::optimizations::Known;
use super::paths;
use super::problem::Problem;
use crate::cell::{
    Backend, Category, Flavour, MeasurementPlan, ModelKind, Plugin, PowerPlan, Precision, PromptSource, ProviderKind,
    RuntimeRef,
};
use crate::yaml::suggest;

/// The file format's version.
const VERSION: u32 = 1;

/// A valid file.
#[derive(Debug)]
pub struct Checked {
    /// The file's folder, where relative paths start.
    pub folder: PathBuf,
    pub name: String,
    pub models: Vec<Model>,
    pub backends: Vec<Backend>,
    pub matrix: Axes,
    pub categories: Vec<Category>,
    pub accuracy: Option<Accuracy>,
    pub power: PowerPlan,
    pub prompt: PromptSource,
    pub measurement: MeasurementPlan,
    pub strict_placement: bool,
    /// The folder for caches that wait on disk.
    pub offload_dir: Option<PathBuf>,
    pub exclude: Vec<Rule>,
    pub include: Vec<Axes>,
    pub overrides: Vec<Override>,
    /// The folder for packages that optimizations derive.
    pub derived_dir: PathBuf,
    /// What stands on the axis `optimizations`, and whether the file names that axis.
    pub optimizations: Known,
    pub names_optimizations: bool,
    /// What stands on the axis `dimensions`.
    pub dimensions: graph::Known,
}

/// A model entry.
#[derive(Debug)]
pub struct Model {
    pub name: String,
    /// What it was exported from, by name: that of its tasks' files.
    pub checkpoint: String,
    /// As written, with `{precision}` and the like not yet filled in.
    pub package: String,
    pub precision: Option<Precision>,
    pub flavour: Option<Flavour>,
    /// What there is instead of a package, of a model of the kind `graph`.
    pub graph: Option<GraphModel>,
    pub kind: ModelKind,
}

impl Model {
    /// Whether an output has an expected value.
    pub fn expects(&self) -> bool {
        self.graph.as_ref().is_some_and(GraphModel::expects)
    }
}

/// An exclusion.
#[derive(Debug)]
pub struct Rule {
    pub axes: Axes,
    pub reason: Option<String>,
    pub at: Location,
}

/// Settings for the cells that match.
#[derive(Debug)]
pub struct Override {
    pub when: Axes,
    pub set: Set,
    pub at: Location,
}

/// What an override sets.
#[derive(Debug, Default)]
pub struct Set {
    pub warmup: Option<u32>,
    pub repetitions: Option<u32>,
    pub min_seconds: Option<f64>,
    pub processes: Option<u32>,
    pub timeout_seconds: Option<f64>,
    pub categories: Option<Vec<Category>>,
    pub strict_placement: Option<bool>,
}

/// Largest values that make sense; anything above is a slip of the hand.
/// The longest name of a plugin's provider: its options are told apart by it, in a buffer of 128 bytes.
const LONGEST_PROVIDER: usize = 100;
const MAX_REPETITIONS: u32 = 1_000_000;
const MAX_SECONDS: f64 = 7.0 * 86_400.0;

/// Checks the file; relative paths start at `folder`.
pub fn check(file: &File, folder: &Path) -> Result<Checked, Vec<Problem>> {
    let mut checker = Checker {
        folder,
        problems: Vec::new(),
        models: Vec::new(),
        backends: Vec::new(),
        has_accuracy: file.accuracy.is_some(),
        kinds: Vec::new(),
        expects: false,
        optimizations: Known::default(),
        names_optimizations: file.names_optimizations(),
        dimensions: graph::Known::default(),
        free: Vec::new(),
    };
    let checked = checker.file(file);
    if checker.problems.is_empty() { Ok(checked) } else { Err(checker.problems) }
}

/// The mistakes so far, and the names that later parts of the file may use.
pub(super) struct Checker<'a> {
    folder: &'a Path,
    problems: Vec<Problem>,
    models: Vec<String>,
    backends: Vec<String>,
    has_accuracy: bool,
    /// Kinds of the models, in their order.
    pub(super) kinds: Vec<ModelKind>,
    /// Whether an output of a graph has an expected value.
    pub(super) expects: bool,
    pub(super) optimizations: Known,
    pub(super) names_optimizations: bool,
    pub(super) dimensions: graph::Known,
    /// Free dimensions of all graphs.
    pub(super) free: Vec<String>,
}

impl Checker<'_> {
    pub(super) fn problem(&mut self, at: Location, message: impl Into<String>) {
        self.problems.push(Problem::at(at, message));
    }

    fn file(&mut self, file: &File) -> Checked {
        if file.version.value != VERSION {
            let message = format!("the version is {}, this program reads {VERSION}", file.version.value);
            self.problem(file.version.referenced, message);
        }
        self.name(&file.name, "the run's name");
        self.models = file.models.value.iter().map(|model| model.name.value.clone()).collect();
        self.backends = file.backends.value.iter().map(|backend| backend.name.value.clone()).collect();
        if file.models.value.is_empty() {
            self.problem(file.models.referenced, "`models` is empty");
        }
        if file.backends.value.is_empty() {
            self.problem(file.backends.referenced, "`backends` is empty");
        }
        let models: Vec<Model> = file.models.value.iter().map(|entry| self.model(entry)).collect();
        self.kinds = models.iter().map(|model| model.kind).collect();
        self.expects = models.iter().any(Model::expects);
        let of_cells = std::iter::once(&file.matrix.value).chain(file.include.iter().map(|rule| &rule.value));
        self.collect_dimensions(of_cells, &models);
        let backends = file.backends.value.iter().map(|entry| self.backend(entry)).collect();
        self.unique(file.models.value.iter().map(|entry| &entry.name), "model");
        self.unique(file.backends.value.iter().map(|entry| &entry.name), "backend");

        let measurement = self.measurement(file.measurement.as_ref().unwrap_or(&MeasurementEntry::default()));
        let mut matrix = self.axes(&file.matrix.value, "matrix");
        self.tell_silent_axes(&matrix);
        for axis in Axis::ALL.into_iter().filter(|axis| file.matrix.value.place(*axis).is_none()) {
            match axis.default_values() {
                Some(values) => matrix.set(axis, values),
                None if self.is_silent(axis) => matrix.set(axis, vec![NOTHING]),
                None => self.problem(file.matrix.referenced, format!("`matrix` lacks the axis `{}`", axis.name())),
            }
        }

        let checked = Checked {
            folder: self.folder.to_owned(),
            name: file.name.value.clone(),
            models,
            backends,
            matrix,
            categories: match &file.categories {
                Some(axis) => self.categories(axis),
                None => self.default_categories(file.power.is_some()),
            },
            accuracy: self.accuracy(file.accuracy.as_ref(), file.accuracy_floor.as_ref()),
            prompt: self.prompt(file.prompt.as_ref()),
            power: self.power(file.power.as_ref(), &measurement),
            measurement,
            strict_placement: file.strict_placement.unwrap_or(false),
            offload_dir: self.offload_dir(file.offload_dir.as_ref()),
            derived_dir: self.derived_dir(file.derived_dir.as_ref()),
            exclude: file
                .exclude
                .iter()
                .map(|rule| Rule {
                    axes: self.rule(&rule.value, rule.referenced, "exclude"),
                    reason: rule.value.reason.as_ref().map(|reason| reason.value.clone()),
                    at: rule.referenced,
                })
                .collect(),
            include: file.include.iter().map(|rule| self.rule(&rule.value, rule.referenced, "include")).collect(),
            overrides: file
                .overrides
                .iter()
                .map(|rule| Override {
                    when: self.rule(&rule.value.when, rule.referenced, "overrides"),
                    set: self.set(&rule.value.set),
                    at: rule.referenced,
                })
                .collect(),
            optimizations: Known::default(),
            names_optimizations: self.names_optimizations,
            dimensions: graph::Known::default(),
        };
        Checked {
            dimensions: std::mem::take(&mut self.dimensions),
            optimizations: std::mem::take(&mut self.optimizations),
            ..checked
        }
    }

    fn model(&mut self, entry: &ModelEntry) -> Model {
        self.name(&entry.name, "a model's name");
        let kind = self.kind(entry);
        if kind == ModelKind::Graph {
            graph::graph_only(self, entry);
            return Model {
                name: entry.name.value.clone(),
                checkpoint: entry.name.value.clone(),
                package: entry.path.as_ref().map(|path| path.value.clone()).unwrap_or_default(),
                precision: None,
                flavour: None,
                graph: GraphModel::check(self, entry),
                kind,
            };
        }
        graph::package_only(self, entry);
        if let Some(checkpoint) = &entry.checkpoint {
            self.name(checkpoint, "a checkpoint's name");
        }
        Model {
            name: entry.name.value.clone(),
            checkpoint: entry.checkpoint.as_ref().unwrap_or(&entry.name).value.clone(),
            package: entry.package.as_ref().map(|package| package.value.clone()).unwrap_or_default(),
            precision: entry.precision.as_ref().and_then(|word| self.word(word, Precision::NAMES)),
            flavour: entry.flavour.as_ref().and_then(|word| self.word(word, Flavour::NAMES)),
            graph: None,
            kind,
        }
    }

    fn backend(&mut self, entry: &BackendEntry) -> Backend {
        self.name(&entry.name, "a backend's name");
        let runtime = match &entry.runtime.value {
            RuntimeEntry::Path(path) => RuntimeRef::Path(self.path(path)),
            RuntimeEntry::Name(name) => {
                let known = ["cpu", "openvino", "cuda"];
                if !known.contains(&name.as_str()) {
                    let message = format!(
                        "unknown runtime `{name}`{} (a library of your own is named by `{{path: FILE}}`)",
                        suggest(name, &known)
                    );
                    self.problem(entry.runtime.referenced, message);
                }
                RuntimeRef::Installed(name.clone())
            }
        };
        let (provider, plugin) = self.provider(&entry.provider);
        Backend { name: entry.name.value.clone(), runtime, provider, plugin, options: entry.options.clone() }
    }

    fn provider(&mut self, entry: &Spanned<ProviderEntry>) -> (ProviderKind, Option<Plugin>) {
        let unknown = |word: &str| {
            let near = suggest(word, ProviderKind::words());
            format!("unknown provider `{word}`{near} (a library of your own is `{{plugin: LIBRARY, name: PROVIDER}}`)")
        };
        match &entry.value {
            ProviderEntry::Word(word) => match word.parse() {
                Ok(kind) if kind != ProviderKind::Plugin => (kind, None),
                _ => {
                    self.problem(entry.referenced, unknown(word));
                    (ProviderKind::Cpu, None)
                }
            },
            ProviderEntry::Plugin { library, name } => {
                if name.is_empty() || name.len() > LONGEST_PROVIDER || name.contains('\0') {
                    let message =
                        format!("`{name}` cannot be the name of a plugin's provider (1 to {LONGEST_PROVIDER} bytes)");
                    self.problem(entry.referenced, message);
                }
                let plugin = Plugin { library: self.path(library), provider: name.clone() };
                (ProviderKind::Plugin, Some(plugin))
            }
        }
    }

    pub(super) fn word<T: std::str::FromStr>(&mut self, word: &Spanned<String>, known: &[&str]) -> Option<T> {
        let parsed = word.value.parse().ok();
        if parsed.is_none() {
            self.problem(word.referenced, format!("unknown word `{}`{}", word.value, suggest(&word.value, known)));
        }
        parsed
    }

    pub(super) fn name(&mut self, name: &Spanned<String>, what: &str) {
        let text = &name.value;
        let valid = !text.is_empty()
            && text.len() <= 64
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        if !valid {
            let message = format!(
                "{what} is `{text}`; it may hold up to 64 letters, digits, `.`, `_` and `-`, a letter or digit first, \
                 because files are named by it"
            );
            self.problem(name.referenced, message);
        }
    }

    fn unique<'n>(&mut self, names: impl Iterator<Item = &'n Spanned<String>>, what: &str) {
        let mut seen = Vec::new();
        for name in names {
            if seen.contains(&&name.value) {
                self.problem(name.referenced, format!("the {what} `{}` is declared twice", name.value));
            }
            seen.push(&name.value);
        }
    }

    pub(super) fn path(&self, text: &str) -> PathBuf {
        paths::resolve(self.folder, text)
    }
}
