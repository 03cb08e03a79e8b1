//! `kernel_fusion`: graphs of fused operators against plain ones, and operators of this program in the place of several
//! of ONNX Runtime's.
//!
//! | file | what |
//! |---|---|
//! | `view.rs` | a graph with its edges |
//! | `patterns.rs` | which nodes which operator replaces |
//! | `derive.rs` | the package with the replacements |

mod derive;
mod patterns;
mod view;

use crate::cell::{Flavour, ImpactMetric, ProviderKind, Residency, Technique};
use crate::error::{Error, Result};
use crate::optimizations::pack::PackStep;
use crate::optimizations::{Derivation, Optimization, OptionKind, OptionSpec, Options, Setup, Subject};
use crate::yaml::suggest;

use derive::Operators;
use patterns::PATTERNS;

/// The technique.
pub struct KernelFusion;

const OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        name: "baseline",
        kind: OptionKind::Words(&["plain", "fused"]),
        default: "plain",
        description: "What the fused graph is compared with: the model's `plain` package, or the fused graph as it \
                      was exported, which shows what this program's operators alone do.",
    },
    OptionSpec {
        name: "operators",
        kind: OptionKind::Text,
        default: "all",
        description: "Operators of this program that take the place of others: all, none, or names joined by commas \
                      (HeadNorm, SwiGlu, SkipNorm).",
    },
    OptionSpec {
        name: "products",
        kind: OptionKind::Words(&["stock", "own"]),
        default: "stock",
        description: "Whose kernels multiply with quantized weights: ONNX Runtime's, or this program's, which is then given \
                      a pack whose weights stay in memory.",
    },
];

impl Optimization for KernelFusion {
    fn technique(&self) -> Technique {
        Technique::KernelFusion
    }

    fn summary(&self) -> &'static str {
        "Contrib operators instead of standard ones, and operators of this program that each do in one pass what took \
         several nodes."
    }

    fn options(&self) -> &'static [OptionSpec] {
        OPTIONS
    }

    fn objective(&self, options: &Options) -> ImpactMetric {
        // Kernels of products are told apart where there are several rows: prompts count as much as steps.
        if owns_products(options) { ImpactMetric::Throughput } else { ImpactMetric::Decode }
    }

    fn derives_pack(&self, options: &Options) -> bool {
        owns_products(options)
    }

    fn check(&self, subject: &Subject, options: &Options) -> Result<()> {
        let cell = subject.cell;
        if cell.flavour != Flavour::Fused {
            return Err(Error::unsupported("the cell's own graph is `plain`: there is nothing fused to switch on")
                .hint("apply it to cells of the flavour `fused`; `baseline: plain` compares them with plain ones"));
        }
        if subject.is_pack() {
            return Err(Error::unsupported("the cell's package is a pack, whose graph has no weights to match")
                .hint("name the package that it was made of, and let a technique pack it"));
        }
        let wanted = operators(options)?;
        if wanted.is_some_and(|names| !names.is_empty()) && cell.backend.provider != ProviderKind::Cpu {
            return Err(Error::unsupported(format!(
                "operators of this program run on the provider cpu, not on {}",
                cell.backend.provider
            ))
            .hint("leave `operators` out, or write `operators: none`"));
        }
        if owns_products(options) {
            if cell.backend.provider != ProviderKind::Cpu {
                return Err(Error::unsupported(format!(
                    "this program's kernels of products run on the provider cpu, not on {}",
                    cell.backend.provider
                ))
                .hint("leave `products` out"));
            }
            let precision = &subject.manifest.precision;
            if precision.accuracy_level != Some(4) {
                return Err(Error::unsupported(format!(
                    "this program's kernels round activations to 8 bits, for which the {} package does not ask",
                    precision.name
                ))
                .hint("export it with 4 or 8 bits and `--accuracy-level 4`"));
            }
        }
        if options.is("baseline", "plain") {
            let plan = cell.optimizations.as_ref();
            if plan.is_none_or(|plan| plan.plain.is_none()) {
                return Err(Error::unsupported("the matrix names no `plain` package of the model to compare with")
                    .hint("put `{flavour}` into the model's `package`, or take `baseline: fused`"));
            }
        } else if self.replaces(subject, options)?.is_empty() && !owns_products(options) {
            return Err(Error::unsupported("with `baseline: fused` and no operators both arms are the same"));
        }
        Ok(())
    }

    fn baseline(&self, setup: &mut Setup, subject: &Subject, options: &Options) -> Result<()> {
        let plain = subject.cell.optimizations.as_ref().and_then(|plan| plan.plain.as_ref());
        if let Some(plain) = plain.filter(|_| options.is("baseline", "plain")) {
            setup.package.clone_from(&plain.package);
            setup.flavour = Flavour::Plain;
        }
        Ok(())
    }

    fn apply(&self, setup: &mut Setup, subject: &Subject, options: &Options) -> Result<()> {
        let names = self.replaces(subject, options)?;
        if !names.is_empty() {
            setup.derive(Operators { names });
        }
        if owns_products(options) {
            PackStep::page(setup, subject, Residency::Resident);
        }
        Ok(())
    }
}

/// Whether this program's kernels multiply with quantized weights.
fn owns_products(options: &Options) -> bool {
    options.is("products", "own")
}

impl KernelFusion {
    /// The derivation alone, with the operators that the option `operators` names.
    ///
    /// # Errors
    /// Names that are none of an operator.
    pub fn derivation(operators: &str) -> Result<impl Derivation + use<>> {
        let all = || PATTERNS.iter().map(|pattern| pattern.operator).collect();
        Ok(Operators { names: chosen(operators)?.unwrap_or_else(all) })
    }

    /// The operators that take the place of others; unless some were named, none where the provider is not the CPU's.
    fn replaces(&self, subject: &Subject, options: &Options) -> Result<Vec<&'static str>> {
        let all = || PATTERNS.iter().map(|pattern| pattern.operator).collect();
        Ok(match operators(options)? {
            Some(names) => names,
            None if subject.cell.backend.provider == ProviderKind::Cpu => all(),
            None => Vec::new(),
        })
    }
}

/// The operators that were named; `None` for `all`.
fn operators(options: &Options) -> Result<Option<Vec<&'static str>>> {
    chosen(options.text("operators"))
}

fn chosen(list: &str) -> Result<Option<Vec<&'static str>>> {
    let known: Vec<&'static str> = PATTERNS.iter().map(|pattern| pattern.operator).collect();
    match list {
        "all" => Ok(None),
        "none" => Ok(Some(Vec::new())),
        list => {
            let named = |name: &str| {
                known.iter().find(|known| **known == name).copied().ok_or_else(|| {
                    let message = format!("this program has no operator `{name}` to fuse others");
                    Error::new(message + &suggest(name, &known)).hint("write `all`, `none`, or names joined by commas")
                })
            };
            // In the order of the table, so that equal choices are one package.
            let chosen = list.split([',', '+']).map(|name| named(name.trim())).collect::<Result<Vec<_>>>()?;
            Ok(Some(known.iter().filter(|name| chosen.contains(name)).copied().collect()))
        }
    }
}
