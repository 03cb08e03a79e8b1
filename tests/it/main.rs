//! Everything that is tested from outside, in one binary.

mod support;

mod endings;
mod interruption;
mod limits;
mod tables;
