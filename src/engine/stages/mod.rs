//! A model in stages: each runs some of a pack's segments in a process of its own, and hands what the next one
//! takes over a connection, which may be slowed down to what a network between machines would be.
//!
//! | file | what |
//! |---|---|
//! | `pipeline.rs` | the process that has the requests, and stage 0: several groups of sequences are under way at once |
//! | `processes.rs`, `job.rs` | the processes of the other stages, and what they are told |
//! | `child.rs` | such a process |
//! | `stage.rs` | what every stage does with a run; what it took |
//! | `wire.rs` | what goes over connections |
//! | `link.rs` | a connection that is as slow as it is told |
//! | `meeting.rs` | who may connect |
//! | `network.rs` | a network namespace with a link of its own, where the machine permits |
//! | `balance.rs` | which segments a stage gets |

mod balance;
mod child;
mod job;
mod link;
mod meeting;
mod network;
mod pipeline;
mod processes;
mod stage;
mod wire;

pub use balance::{Cut, balance};
pub use child::run as run_child;
pub use job::{Job, Stages, Via};
pub use link::LinkUse;
pub use network::permitted as namespaces_permitted;
pub use pipeline::{Pipeline, StageFacts};
pub use stage::{Phase, Times, Timing};
