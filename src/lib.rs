//! `ortbench`: compares execution providers of ONNX Runtime on language models, from a matrix in YAML to a table in
//! CSV. `ARCHITECTURE.md` draws the map; arrows between these modules point down this list only.

pub mod cli;

pub mod orchestrator;
pub mod worker;

pub mod categories;
pub mod config;
pub mod results;

pub mod optimizations;

pub mod engine;
pub mod probe;
pub mod tasks;

pub mod loader;

pub mod package;
pub mod runtime;

pub mod sandbox;
pub mod stats;
pub mod vision;

pub mod protocol;

pub mod metrics;
pub mod yaml;

pub mod cell;
pub mod digest;
pub mod error;
pub mod units;
