//! Execution providers: one file each, one row in [`of`].

mod cpu;
mod cuda;
mod openvino;
mod plugin;
mod tensorrt;

use std::collections::BTreeMap;

use ort::ep::ExecutionProviderDispatch;

use crate::cell::{Backend, ProviderKind};

/// What the engine must know of an execution provider.
pub trait Provider: Sync {
    /// ONNX Runtime's own name, e.g. `OpenVINOExecutionProvider`.
    fn canonical_name(&self) -> &'static str;

    /// The providers to register, in order of preference, so that `threads` threads and the user's options are
    /// honoured. The CPU provider is always behind them, as ONNX Runtime has it.
    fn dispatch(&self, threads: u32, options: &BTreeMap<String, String>) -> Vec<ExecutionProviderDispatch>;

    /// Whether GroupQueryAttention may write into the buffer that it reads, of full capacity, where that buffer is in
    /// the memory in which the provider computes.
    fn shares_cache_buffer(&self) -> bool;

    /// The memory in which the provider computes.
    fn computes(&self) -> Computes;

    /// What adds the provider to a machine that lacks it.
    fn remedy(&self) -> &'static str;
}

/// A kind of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Computes {
    /// The host's.
    Host,
    /// That of an NVIDIA GPU.
    Cuda,
    /// One that this program cannot name: what is bound is the host's, and ONNX Runtime copies it where it must.
    Unknown,
}

/// The provider behind a name.
pub fn of(kind: ProviderKind) -> &'static dyn Provider {
    match kind {
        ProviderKind::Cpu => &cpu::Cpu,
        ProviderKind::OpenVino => &openvino::OpenVino,
        ProviderKind::Cuda => &cuda::Cuda,
        ProviderKind::TensorRt => &tensorrt::TensorRt,
        ProviderKind::Plugin => &plugin::OfLibrary,
    }
}

/// ONNX Runtime's name of a backend's provider.
pub fn name_of(backend: &Backend) -> &str {
    backend.plugin.as_ref().map_or_else(|| of(backend.provider).canonical_name(), |plugin| &plugin.provider)
}

/// Adds the user's options, which win over ours.
fn with_options<E: ort::ep::ArbitrarilyConfigurableExecutionProvider>(
    mut provider: E,
    options: &BTreeMap<String, String>,
) -> E {
    for (key, value) in options {
        provider = provider.with_arbitrary_config(key, value);
    }
    provider
}
