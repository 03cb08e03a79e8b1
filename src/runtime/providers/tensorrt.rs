//! TensorRT, with CUDA behind it for the nodes that it does not take.

use std::collections::BTreeMap;

use ort::ep::{CUDA, ExecutionProviderDispatch, TensorRT};

use super::{Computes, Provider};

/// The TensorRT provider.
pub struct TensorRt;

impl Provider for TensorRt {
    fn canonical_name(&self) -> &'static str {
        "TensorrtExecutionProvider"
    }

    fn dispatch(&self, _threads: u32, options: &BTreeMap<String, String>) -> Vec<ExecutionProviderDispatch> {
        // What TensorRT leaves runs on the same GPU.
        let device = options.iter().filter(|(key, _)| *key == "device_id");
        let device = device.map(|(key, value)| (key.clone(), value.clone())).collect();
        vec![
            super::with_options(TensorRT::default(), options).build().error_on_failure(),
            super::with_options(CUDA::default(), &device).build().error_on_failure(),
        ]
    }

    fn shares_cache_buffer(&self) -> bool {
        // Whichever provider takes a graph's attention, TensorRT gives its engines outputs of their own.
        false
    }

    fn computes(&self) -> Computes {
        Computes::Cuda
    }

    fn remedy(&self) -> &'static str {
        "it needs what CUDA needs (an NVIDIA GPU with its driver, CUDA 13, cuDNN 9, `ortbench runtime install cuda`) \
         and TensorRT's libraries; `ortbench doctor` says which of them is missing"
    }
}
