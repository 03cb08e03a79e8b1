//! Where weights live when memory is short: packs on disk, what of them is in memory, and what is read ahead of use.
//!
//! `pack/` turns a package into a pack; `kernels/` computes on packed weights; `pager/` keeps records in memory under
//! a budget and reads the others ahead, through `io/`; `operators.rs` gives both to ONNX Runtime.

pub mod codec;
mod guess;
pub mod held;
pub mod io;
pub mod kernels;
mod mixture;
pub mod pack;
pub mod page_cache;
pub mod pager;
pub mod spill;
pub mod store;
