//! Later.
pub mod simulator;
