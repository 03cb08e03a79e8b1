//! Runs a model: plan, key/value cache, prefill and decode, sampling.

pub mod fake;
