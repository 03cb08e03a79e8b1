//! Operators of this program, in the domain `ortbench`.
//!
//! Some take their weights from a loader instead of the graph; what they compute is behind [`Weights`]:
//!
//! | operator | inputs | attributes | output |
//! |---|---|---|---|
//! | `Matrix` | x `[…, K]` | `record` | `[…, N]` |
//! | `Experts` | x `[tokens, hidden]`, scores `[tokens, experts]`, optional mixing weights `[tokens, experts]` | `record`, `k`, `normalize` | `[tokens, hidden]` |
//! | `Weight1`, `Weight10`, … | — | `record` | the tensor, of the element type with that ONNX number |
//!
//! Others do in one pass what takes several of ONNX Runtime's; all floats are of 32 bits:
//!
//! | operator | inputs | attributes | outputs |
//! |---|---|---|---|
//! | `HeadNorm` | queries, keys and values `[…, Q + K + V]`, weights of the queries' and of the keys' norm `[head]` | `queries` (Q), `keys` (K), `epsilon` | queries `[…, Q]` and keys `[…, K]`, each head normed by its root mean square, and values `[…, V]` |
//! | `SwiGlu` | gate and up projection `[…]` | — | `silu(gate) · up` |
//! | `SkipNorm` | x and skip `[…, hidden]`, weight `[hidden]` | `epsilon` | the sum's norm by its root mean square, the sum |
//!
//! | file | what |
//! |---|---|
//! | `kernels.rs`, `fused.rs` | the operators of the two tables as ONNX Runtime sees them |
//! | `math.rs` | what the second table's compute |
//! | `calls.rs`, `parallel.rs` | what all have in common: failures and panics, threads |

use std::sync::{Arc, Mutex, PoisonError};

use ort::operator::OperatorDomain;

use super::ort_error;
use crate::error::{Error, Result};

mod calls;
mod fused;
mod kernels;
pub mod math;
mod parallel;

pub use parallel::{Parallel, Shared};

/// The domain of the operators.
pub const DOMAIN: &str = "ortbench";

/// Where operators find their weights, by the name of a record or mixture.
pub trait Weights: Send + Sync + std::fmt::Debug {
    /// A matrix to multiply by.
    fn matrix(&self, name: &str) -> Result<Arc<dyn Matrix>>;
    /// The routed experts of one layer.
    fn experts(&self, name: &str, routing: Routing) -> Result<Arc<dyn Experts>>;
    /// A tensor that is handed to stock operators.
    fn tensor(&self, name: &str) -> Result<Arc<dyn Tensor>>;
}

/// A quantized matrix.
pub trait Matrix: Send + Sync {
    /// Outputs and inputs (N, K).
    fn shape(&self) -> (usize, usize);
    /// `out[m, n] = Σ_k x[m, k] · W[n, k]`.
    fn multiply(&self, x: &[f32], out: &mut [f32], parallel: &dyn Parallel) -> Result<()>;
}

/// How a mixture chooses and weighs experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Routing {
    /// Experts a token.
    pub k: usize,
    /// Whether the chosen weights are divided by their sum.
    pub normalize: bool,
}

/// The routed experts of one layer.
pub trait Experts: Send + Sync {
    /// Inputs and outputs of an expert (hidden), and the number of experts.
    fn shape(&self) -> (usize, usize);
    /// For each row of `x` `[tokens, hidden]` the sum of its experts, weighed. `scores` `[tokens, experts]` choose;
    /// they also weigh, by softmax, unless `mixing` has weights of its own.
    fn mix(
        &self,
        x: &[f32],
        scores: &[f32],
        mixing: Option<&[f32]>,
        out: &mut [f32],
        parallel: &dyn Parallel,
    ) -> Result<()>;
}

/// A tensor as ONNX lays it out.
pub trait Tensor: Send + Sync {
    /// ONNX's number of the element type.
    fn data_type(&self) -> i32;
    /// Dimensions.
    fn dims(&self) -> &[i64];
    /// Bytes of its elements; those narrower than a byte are packed.
    fn bytes(&self) -> usize;
    /// Copies it.
    fn copy_to(&self, into: &mut [u8]) -> Result<()>;
}

/// What an operator's failure was, kept for the run's caller: ONNX Runtime hands on words only, without the kind and
/// the remedy.
#[derive(Debug, Clone, Default)]
pub(super) struct Failure(Arc<Mutex<Option<Error>>>);

impl Failure {
    /// Keeps the first failure of a run and returns its words for ONNX Runtime.
    fn keep(&self, error: Error) -> ort::Error {
        let words = ort::Error::new(error.chain());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        words
    }

    /// The failure since the last call.
    pub(super) fn take(&self) -> Option<Error> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The domain, with operators that run on that many threads; those that take weights are there where `weights` are.
pub(super) fn domain(weights: Option<&Arc<dyn Weights>>, threads: u32, failure: &Failure) -> Result<OperatorDomain> {
    let calls = calls::Calls::new(threads, failure);
    let mut domain = OperatorDomain::new(DOMAIN).and_then(|domain| fused::add_to(domain, &calls));
    if let Some(weights) = weights {
        domain = domain.and_then(|domain| kernels::add_to(domain, weights, &calls));
    }
    domain.map_err(|error| ort_error("cannot define the operators of the domain `ortbench`", error))
}
