//! What a worker reports of a profile.

use serde::{Deserialize, Serialize};

/// A node's time: a row of `operators.csv`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct OperatorTime {
    /// ONNX Runtime's name of the execution provider.
    pub provider: String,
    /// The operator.
    pub operator: String,
    /// The node's name.
    pub node: String,
    /// Times that it ran in all profiled runs.
    pub calls: u64,
    /// Its time in a mean run.
    pub microseconds_per_run: f64,
    /// Its time ÷ that of all nodes.
    pub share: f64,
}
