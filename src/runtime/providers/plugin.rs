//! Providers in libraries of their own; `runtime/plugin.rs` finds them.

use std::collections::BTreeMap;

use ort::ep::ExecutionProviderDispatch;

use super::{Computes, Provider};

/// A plugin's provider, of which nothing is known beforehand.
pub struct OfLibrary;

impl Provider for OfLibrary {
    fn canonical_name(&self) -> &'static str {
        "plugin"
    }

    fn dispatch(&self, _threads: u32, _options: &BTreeMap<String, String>) -> Vec<ExecutionProviderDispatch> {
        // It is added by its devices.
        Vec::new()
    }

    fn shares_cache_buffer(&self) -> bool {
        false
    }

    fn computes(&self) -> Computes {
        Computes::Unknown
    }

    fn remedy(&self) -> &'static str {
        "take the plugin's library for this version of ONNX Runtime, on a machine with its device"
    }
}
