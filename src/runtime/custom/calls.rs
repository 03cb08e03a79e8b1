//! What calls of all operators have in common: inputs, threads, failures.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use ort::operator::ComputeContext;
use ort::value::ValueRef;

use super::{Failure, Parallel};
use crate::error::{Error, Result};

/// How operators are called.
#[derive(Clone)]
pub(super) struct Calls {
    threads: usize,
    failure: Failure,
}

impl Calls {
    pub fn new(threads: u32, failure: &Failure) -> Self {
        Self { threads: threads as usize, failure: failure.clone() }
    }

    /// Runs what may fail or panic, and keeps its failure: a panic that reached ONNX Runtime would end the process.
    pub fn guard<T>(&self, node: &str, work: impl FnOnce() -> Result<T>) -> ort::Result<T> {
        let outcome = catch_unwind(AssertUnwindSafe(work))
            .unwrap_or_else(|_| Err(Error::new(format!("the operator `{node}` panicked; this is a bug of ortbench"))));
        outcome.map_err(|error| self.failure.keep(error))
    }

    /// The threads of a call.
    pub fn pool<'a>(&self, context: &'a ComputeContext) -> Pool<'a> {
        Pool { context, threads: self.threads, panicked: AtomicBool::new(false) }
    }
}

/// The threads of a session's operators.
pub(super) struct Pool<'a> {
    context: &'a ComputeContext,
    threads: usize,
    panicked: AtomicBool,
}

// SAFETY: `KernelContext_ParallelFor` may be called from the thread that computes only; `Pool` is handed to code that
// runs there, and what runs on other threads gets a number alone. Sharing the reference is therefore never used.
unsafe impl Sync for Pool<'_> {}

impl Parallel for Pool<'_> {
    fn run(&self, count: usize, task: &(dyn Fn(usize) + Sync)) {
        if self.threads == 1 || count <= 1 {
            (0..count).for_each(task);
            return;
        }
        let guarded = |number| {
            if catch_unwind(AssertUnwindSafe(|| task(number))).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
        };
        let started = self.context.par_for(count, self.threads.min(count), guarded);
        assert!(started.is_ok() && !self.panicked.load(Ordering::Relaxed), "a task of an operator failed");
    }

    fn threads(&self) -> usize {
        self.threads
    }
}

/// An input's dimensions and floats.
pub(super) fn floats<'a>(value: &'a ValueRef<'_>) -> ort::Result<(&'a [i64], &'a [f32])> {
    let (shape, data) = value.try_extract_tensor::<f32>()?;
    Ok((shape, data))
}

pub(super) fn input(context: &ComputeContext, place: usize) -> ort::Result<ValueRef<'_>> {
    context.input(place)?.ok_or_else(|| ort::Error::new(format!("the input {place} is missing")))
}

pub(super) fn missing_output() -> ort::Error {
    ort::Error::new("ONNX Runtime gave no output")
}
