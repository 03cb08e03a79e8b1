//! CUDA.

use std::collections::BTreeMap;

use ort::ep::{CUDA, ExecutionProviderDispatch};

use super::{Computes, Provider};

/// The CUDA provider.
pub struct Cuda;

impl Provider for Cuda {
    fn canonical_name(&self) -> &'static str {
        "CUDAExecutionProvider"
    }

    fn dispatch(&self, _threads: u32, options: &BTreeMap<String, String>) -> Vec<ExecutionProviderDispatch> {
        vec![super::with_options(CUDA::default(), options).build().error_on_failure()]
    }

    fn shares_cache_buffer(&self) -> bool {
        true
    }

    fn computes(&self) -> Computes {
        Computes::Cuda
    }

    fn remedy(&self) -> &'static str {
        "it needs an NVIDIA GPU with its driver, CUDA 13 and cuDNN 9, and `ortbench runtime install cuda`; \
         `ortbench doctor` says which of them is missing"
    }
}
