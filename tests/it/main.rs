//! The one integration binary.

mod real;
mod support;

mod architecture;
mod commands;
mod endings;
mod generation;
mod images;
mod interruption;
mod limits;
mod measuring;
mod sandbox;
mod tables;
mod templates;
mod vision;
