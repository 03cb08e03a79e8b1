//! The one integration binary.

mod differences;
mod real;
mod support;

mod accuracy;
mod architecture;
mod commands;
mod damage;
mod devices;
mod endings;
mod expected;
mod generation;
mod gpu_check;
mod graphs;
mod guesses;
mod harness;
mod images;
mod interruption;
mod limits;
mod measuring;
mod pack;
mod packs;
mod plugins;
mod power;
mod reliability;
mod rewinding;
mod sandbox;
mod scoring;
mod serving;
mod stages;
mod streamed;
mod tables;
mod tasks;
mod templates;
mod vision;
