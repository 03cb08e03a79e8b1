//! The one integration binary.

mod support;

mod architecture;
mod commands;
mod endings;
mod interruption;
mod limits;
mod tables;
