//! OpenVINO, in the build of ONNX Runtime that carries its libraries.

use std::collections::BTreeMap;

use ort::ep::{ExecutionProviderDispatch, OpenVINO};

use super::{Computes, Provider};

/// The OpenVINO provider.
pub struct OpenVino;

impl Provider for OpenVino {
    fn canonical_name(&self) -> &'static str {
        "OpenVINOExecutionProvider"
    }

    fn dispatch(&self, threads: u32, options: &BTreeMap<String, String>) -> Vec<ExecutionProviderDispatch> {
        // The provider's default is 8 threads whatever the machine has.
        let provider = OpenVINO::default().with_device_type("CPU").with_num_threads(threads as usize);
        vec![super::with_options(provider, options).build().error_on_failure()]
    }

    fn shares_cache_buffer(&self) -> bool {
        // Its translation of GroupQueryAttention concatenates past and new tokens.
        false
    }

    fn computes(&self) -> Computes {
        Computes::Host
    }

    fn remedy(&self) -> &'static str {
        "`ortbench runtime install openvino` brings a build of ONNX Runtime with OpenVINO's libraries"
    }
}
