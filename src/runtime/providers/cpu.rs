//! ONNX Runtime's own CPU kernels.

use std::collections::BTreeMap;

use ort::ep::ExecutionProviderDispatch;

use super::{Computes, Provider};

/// The CPU provider.
pub struct Cpu;

impl Provider for Cpu {
    fn canonical_name(&self) -> &'static str {
        "CPUExecutionProvider"
    }

    fn dispatch(&self, _threads: u32, _options: &BTreeMap<String, String>) -> Vec<ExecutionProviderDispatch> {
        // ONNX Runtime adds it by itself, with its arena on; registering it by hand would turn the arena off.
        Vec::new()
    }

    fn shares_cache_buffer(&self) -> bool {
        true
    }

    fn computes(&self) -> Computes {
        Computes::Host
    }

    fn remedy(&self) -> &'static str {
        "every build of ONNX Runtime has it: `ortbench runtime install cpu`"
    }
}
