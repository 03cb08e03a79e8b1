//! Runs a model: plan, key/value cache, prefill and decode, sampling.

mod decoder;
pub mod fake;
mod feed;
mod fixed;
mod generate;
mod graph;
mod group;
mod hidden;
mod inputs;
mod kept;
mod model;
mod offload;
mod parts;
mod placing;
mod plan;
mod prompt;
pub mod sampling;
pub mod scoring;
pub mod serving;
pub mod stages;
mod tensorrt;
mod vision;
mod weights;

pub use decoder::{Checkpoint, Decoder};
pub use generate::{Ended, Generation, generate};
pub use graph::{Graph, Inputs, Profile};
pub use model::Model;
pub use plan::{CacheMode, Plan};
pub use prompt::{Prompt, Prompter};
pub use tensorrt::EngineFacts;
pub use vision::Features;
