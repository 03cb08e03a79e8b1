//! `runtime_memory`: the decoder's graph compiled ahead of time, and what ONNX Runtime's allocators are told.
//!
//! | file | what |
//! |---|---|
//! | `compile.rs` | a package whose graph is optimized and whose weights are prepacked already |
//! | `saved.rs` | the file of weights that ONNX Runtime saves, written anew in order |

mod compile;
mod saved;

use crate::cell::{ImpactMetric, ProviderKind, Technique};
use crate::error::{Error, Result};
use crate::optimizations::{Optimization, OptionKind, OptionSpec, Options, Setup, Subject};
use crate::runtime::Arena;

pub use compile::Compiled;

/// The technique.
pub struct RuntimeMemory;

const ARENAS: [Arena; 3] = [Arena::Doubling, Arena::Off, Arena::AsRequested];

const OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        name: "compile",
        kind: OptionKind::Words(&["on", "off"]),
        default: "on",
        description: "Let ONNX Runtime optimize the graph and bring its weights into its kernels' order once, into a \
                      package that later loads map.",
    },
    OptionSpec {
        name: "arena",
        kind: OptionKind::Words(&["default", "off", "same_as_requested"]),
        default: "default",
        description: "Where freed memory is kept: in an arena that doubles, in none, or in one that grows by what is \
                      asked for.",
    },
    OptionSpec {
        name: "memory_pattern",
        kind: OptionKind::Words(&["on", "off"]),
        default: "on",
        description: "Give tensors of known sizes one piece of memory together when a run begins.",
    },
    OptionSpec {
        name: "shrink",
        kind: OptionKind::Words(&["on", "off"]),
        default: "off",
        description: "Give freed memory of the arena back to the system after each run of a prompt.",
    },
];

impl Optimization for RuntimeMemory {
    fn technique(&self) -> Technique {
        Technique::RuntimeMemory
    }

    fn summary(&self) -> &'static str {
        "The graph optimized and its weights prepacked once, ahead of time, so that loading maps them; and settings of \
         ONNX Runtime's allocators."
    }

    fn options(&self) -> &'static [OptionSpec] {
        OPTIONS
    }

    fn objective(&self, _options: &Options) -> ImpactMetric {
        ImpactMetric::PeakAnonymous
    }

    fn check(&self, subject: &Subject, options: &Options) -> Result<()> {
        let why = match subject.cell.backend.provider {
            ProviderKind::Cpu => None,
            ProviderKind::TensorRt => Some("TensorRT's engines and timings are kept between runs with or without it"),
            ProviderKind::OpenVino => Some("what OpenVINO compiles is not ONNX Runtime's to prepack and to map"),
            ProviderKind::Cuda => Some("CUDA's weights are copied to the device as they are"),
            ProviderKind::Plugin => Some("a provider of a library of its own has allocators of its own"),
        };
        if let Some(why) = why {
            let provider = subject.cell.backend.provider;
            return Err(Error::unsupported(format!("it acts on the provider cpu, not on {provider}: {why}")));
        }
        if options.is("compile", "on") && subject.is_pack() {
            return Err(Error::unsupported("a pack's weights are in the order of this program's kernels already")
                .hint("write `compile: off`, or name the package that the pack was made of"));
        }
        if options.is("shrink", "on") && options.is("arena", "off") {
            return Err(Error::unsupported("without an arena there is nothing to shrink"));
        }
        let changed = |name: &str, default: &str| !options.is(name, default);
        if !changed("compile", "off")
            && !changed("arena", "default")
            && !changed("memory_pattern", "on")
            && !changed("shrink", "off")
        {
            return Err(Error::unsupported(
                "with `compile: off` and every setting at its default both arms are the same",
            ));
        }
        Ok(())
    }

    fn apply(&self, setup: &mut Setup, subject: &Subject, options: &Options) -> Result<()> {
        if options.is("compile", "on") {
            setup.derive(Compiled::of(&subject.cell.backend.runtime)?);
            setup.plan.optimize_graph = false;
        }
        let arena = ARENAS.into_iter().find(|arena| options.is("arena", arena.name()));
        setup.plan.arena = arena.filter(|arena| *arena != Arena::Doubling);
        setup.plan.memory_pattern = options.is("memory_pattern", "off").then_some(false);
        setup.plan.shrink = options.is("shrink", "on");
        Ok(())
    }
}
