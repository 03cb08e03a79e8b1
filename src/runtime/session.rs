//! A loaded graph.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ort::session::builder::{AutoDevicePolicy, GraphOptimizationLevel, SessionBuilder};

use super::custom::{self, Failure, Weights};
use super::operators::Refusal;
use super::providers::{self, Computes, Provider};
use super::{Arena, Placement, Runtime, ort_error, plugin, preload};
use crate::cell::{Backend, ProviderKind};
use crate::error::{Error, Result};

/// How a session is made.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionOptions {
    /// Threads of one operator.
    pub threads: u32,
    /// Session configuration entries, passed on as they are.
    pub config: BTreeMap<String, String>,
    /// Where the CPU provider keeps freed memory: an arena is faster, but with a session a layer each keeps its share.
    pub arena: Arena,
    /// Whether tensors whose sizes are known when a run begins are given one piece of memory together.
    pub memory_pattern: bool,
    /// Whether the graph is optimized: not where that was done before.
    pub optimize: bool,
    /// The file to which the optimized graph is written.
    pub save: Option<PathBuf>,
    /// How the name of the file begins to which ONNX Runtime writes its profile; `None` for no profile.
    pub profile: Option<PathBuf>,
}

impl SessionOptions {
    /// Defaults with that many threads.
    pub fn with_threads(threads: u32) -> Self {
        Self {
            threads,
            config: BTreeMap::new(),
            arena: Arena::Doubling,
            memory_pattern: true,
            optimize: true,
            save: None,
            profile: None,
        }
    }
}

/// A graph that was loaded, optimized and partitioned among providers.
#[derive(Debug)]
pub struct Session {
    pub(super) inner: ort::session::Session,
    pub(super) failure: Failure,
    /// Whether its provider computes in the host's memory.
    pub(super) uses_host_memory: bool,
    provider: String,
    placement: Placement,
}

/// Where a graph is loaded from.
enum Source<'a> {
    File(&'a Path),
    Bytes(&'a [u8]),
}

impl std::fmt::Debug for dyn Provider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.canonical_name())
    }
}

impl Session {
    /// Loads an ONNX file on the backend's provider.
    ///
    /// # Errors
    /// A provider that the library was not compiled with or that cannot start here (both `unsupported`, with the
    /// remedy), a file that ONNX Runtime refuses.
    pub fn open(runtime: &Runtime, file: &Path, backend: &Backend, options: &SessionOptions) -> Result<Self> {
        Self::open_with(runtime, file, backend, options, None)
    }

    /// Loads an ONNX file whose operators of the domain `ortbench` take their weights from `weights`.
    ///
    /// # Errors
    /// As [`Session::open`], and a record that the graph names and the weights do not have.
    pub fn open_with(
        runtime: &Runtime,
        file: &Path,
        backend: &Backend,
        options: &SessionOptions,
        weights: Option<&Arc<dyn Weights>>,
    ) -> Result<Self> {
        Self::of_source(runtime, Source::File(file), backend, options, weights)
    }

    /// Loads an ONNX model from memory.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub fn of_bytes(runtime: &Runtime, model: &[u8], backend: &Backend, options: &SessionOptions) -> Result<Self> {
        Self::of_source(runtime, Source::Bytes(model), backend, options, None)
    }

    fn of_source(
        runtime: &Runtime,
        source: Source,
        backend: &Backend,
        options: &SessionOptions,
        weights: Option<&Arc<dyn Weights>>,
    ) -> Result<Self> {
        let provider = providers::of(backend.provider);
        let name = providers::name_of(backend);
        if backend.plugin.is_none() && !runtime.compiled_providers()?.iter().any(|compiled| compiled == name) {
            let message = format!("the runtime `{}` was built without {name}", runtime.library().display());
            return Err(Error::unsupported(message).hint(provider.remedy()));
        }
        preload::for_provider(backend.provider, runtime.library())?;
        let builder = builder(runtime, options)?;
        let mut dispatched = provider.dispatch(options.threads, &backend.options);
        if options.arena == Arena::Off {
            // Registered by hand, ONNX Runtime's CPU provider has no arena; otherwise it comes by itself, with one.
            dispatched.push(ort::ep::CPU::default().with_arena_allocator(false).build());
        }
        let mut builder = builder
            .with_execution_providers(dispatched)
            .map_err(|error| preload::failure(backend.provider, name, runtime.library(), &error.into()))?;
        if let Some(plugin) = &backend.plugin {
            builder = plugin::add(builder, runtime, plugin, &backend.options)?;
        }
        let failure = Failure::default();
        // On other providers they would copy what is on a device, and a row would bear the name of one that did not
        // compute them.
        if backend.provider == ProviderKind::Cpu || weights.is_some() {
            let domain = custom::domain(weights, options.threads, &failure)?;
            builder = builder
                .with_operators(domain)
                .map_err(|error| ort_error("cannot add the operators of the domain `ortbench`", error.into()))?;
        }
        let (inner, file) = match source {
            Source::File(file) => (builder.commit_from_file(file), file),
            Source::Bytes(model) => (builder.commit_from_memory(model), Path::new("a graph of this program")),
        };
        let inner = inner.map_err(|error| {
            let of_machine = || preload::started_badly(backend.provider, name, &error.to_string());
            failure.take().or_else(of_machine).unwrap_or_else(|| refused(runtime, file, name, error))
        })?;
        let placement = Placement::read(&inner)?;
        Ok(Self {
            inner,
            failure,
            uses_host_memory: provider.computes() == Computes::Host,
            provider: name.to_owned(),
            placement,
        })
    }

    /// ONNX Runtime's name of the provider that was asked for.
    pub fn provider(&self) -> &str {
        &self.provider
    }

    /// Which provider runs which node.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Ends the profile of a session that was made for one; returns its file.
    ///
    /// # Errors
    /// What ONNX Runtime says.
    pub fn end_profile(&mut self) -> Result<PathBuf> {
        let path = self.inner.end_profiling();
        path.map(PathBuf::from).map_err(|error| ort_error("cannot end the profile", error))
    }

    /// Names of the graph's inputs.
    pub fn input_names(&self) -> impl Iterator<Item = &str> {
        self.inner.inputs().iter().map(|outlet| outlet.name())
    }

    /// The most bytes of an input of so many sequences of so many tokens, where the graph says enough of it: sizes that it
    /// leaves open are taken for the sequences first, then for tokens.
    pub fn input_bytes(&self, name: &str, sequences: u64, tokens: u64) -> Option<u64> {
        let input = self.inner.inputs().iter().find(|outlet| outlet.name() == name)?;
        let element = input.dtype().tensor_type()?.byte_size(1)? as u64;
        let mut open = 0;
        let sizes = input.dtype().tensor_shape()?.iter().map(|size| {
            u64::try_from(*size).unwrap_or_else(|_| {
                open += 1;
                if open == 1 { sequences } else { tokens }
            })
        });
        Some(sizes.fold(element, u64::saturating_mul))
    }

    /// Names of the graph's outputs.
    pub fn output_names(&self) -> impl Iterator<Item = &str> {
        self.inner.outputs().iter().map(|outlet| outlet.name())
    }
}

/// Why a graph was not loaded; an operator that this build does not know is no failure of the graph.
fn refused(runtime: &Runtime, file: &Path, provider: &str, error: ort::Error) -> Error {
    let message = error.to_string();
    let Some(refusal) = Refusal::find(&message) else {
        return ort_error(format!("ONNX Runtime cannot load `{}` on {provider}", file.display()), error);
    };
    // The row names the package; its place on this disk is nothing for a table that travels.
    let name = file.file_name().unwrap_or_default();
    let version = runtime.version().unwrap_or_default();
    let node = if refusal.node.is_empty() { String::new() } else { format!(" (node `{}`)", refusal.node) };
    Error::unsupported(format!(
        "ONNX Runtime {version} with {provider} does not take the operator `{}` of {}{node}",
        refusal.operator,
        name.display(),
    ))
    .because(std::io::Error::other(refusal.cause))
    .hint("run a newer ONNX Runtime there, or of a package the graph of the `plain` flavour")
}

/// Options that every session has.
#[expect(clippy::result_large_err, reason = "ort's builder methods hand the builder back in their errors")]
pub(super) fn builder(runtime: &Runtime, options: &SessionOptions) -> Result<SessionBuilder> {
    let failed = |error: ort::Error| ort_error("cannot set a session's options", error);
    let level = if options.optimize { GraphOptimizationLevel::All } else { GraphOptimizationLevel::Disable };
    let mut builder = ort::session::Session::builder(&runtime.environment)
        .map_err(failed)?
        // Without this, ort lets ONNX Runtime choose devices by itself.
        .with_auto_device(AutoDevicePolicy::PreferCPU)
        .and_then(|builder| builder.with_optimization_level(level))
        .and_then(|builder| builder.with_intra_threads(options.threads as usize))
        .and_then(|builder| builder.with_inter_threads(1))
        .and_then(|builder| builder.with_parallel_execution(false))
        .and_then(|builder| builder.with_memory_pattern(options.memory_pattern))
        .and_then(|builder| builder.with_config_entry("session.record_ep_graph_assignment_info", "1"))
        .map_err(|error| failed(error.into()))?;
    if runtime.shared.is_some_and(|shared| shared.threads != options.threads) {
        builder = builder.with_independent_thread_pool().map_err(|error| failed(error.into()))?;
    }
    if let Some(prefix) = &options.profile {
        builder = builder.with_profiling(prefix).map_err(|error| failed(error.into()))?;
    }
    if let Some(file) = &options.save {
        builder = builder.with_optimized_model_path(file).map_err(|error| failed(error.into()))?;
    }
    if options.arena == Arena::AsRequested {
        super::arena::register(runtime)?;
        builder = builder.with_env_allocators().map_err(|error| failed(error.into()))?;
    }
    for (key, value) in &options.config {
        builder = builder.with_config_entry(key, value).map_err(|error| failed(error.into()))?;
    }
    Ok(builder)
}
