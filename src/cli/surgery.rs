//! `ortbench surgery`: a package becomes a smaller one.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::cell::{Backend, ProviderKind, RuntimeRef};
use crate::error::{Context, Error, Result};
use crate::optimizations::Workshop;
use crate::optimizations::model_surgery::{Amount, Outcome, Spec, operate, texts_of_files};
use crate::package::Package;
use crate::probe;
use crate::protocol::Reporter;
use crate::runtime::{Runtime, catalog};
use crate::units;

const EXAMPLES: &str = "\
Examples:
  ortbench surgery models/packages/qwen3-4b/int4-fused --output cut/qwen3-4b --drop-layers 25%
  ortbench surgery models/packages/qwen3-coder-30b-a3b/int4-fused --output cut/coder --keep-experts 96 \\
    --calibration-text prompts.txt
  ortbench surgery models/packages/qwen3-4b/int4-fused --output cut/english --trim-vocabulary corpus.txt

All that is asked for becomes one edit. docs/optimizations/model_surgery.md says what it does to answers.";

/// The options of `ortbench surgery`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Folder of the model package.
    package: PathBuf,
    /// Folder of the new package, which must not exist.
    #[arg(long, short, value_name = "FOLDER")]
    output: PathBuf,
    /// Take out that many layers, or that share of them as `25%`: those that change the residual stream least.
    #[arg(long, value_name = "N|SHARE", value_parser = amount)]
    drop_layers: Option<Amount>,
    /// Let the first and the last layer go too.
    #[arg(long, requires = "drop_layers")]
    unprotected: bool,
    /// Keep that many experts of each layer, or that share: those that the routers choose most.
    #[arg(long, value_name = "N|SHARE", value_parser = amount)]
    keep_experts: Option<Amount>,
    /// Keep the tokens of these texts, single bytes and special tokens alone.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    trim_vocabulary: Vec<PathBuf>,
    /// Let the head compute the logits of chosen positions only, where it computes all.
    #[arg(long)]
    last_logits: bool,
    /// Measure importance and use over this text; random tokens without it.
    #[arg(long, value_name = "FILE")]
    calibration_text: Option<PathBuf>,
    /// Tokens to measure over, at most.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    calibration_tokens: u32,
    /// Runtime to measure with: an installed one (cpu, openvino, cuda) or the path of a libonnxruntime. Its CPU provider
    /// is used.
    #[arg(long, value_name = "NAME", default_value = "cpu")]
    runtime: String,
    /// Threads of one operator. Default: the cores that this process may use.
    #[arg(long)]
    threads: Option<u32>,
}

fn amount(text: &str) -> std::result::Result<Amount, String> {
    Amount::parse(text, "").ok_or_else(|| "write a count as `8`, or a share as `25%`".to_owned())
}

/// Runs the command.
pub fn run(args: Args) -> Result<ExitCode> {
    let spec = Spec {
        drop_layers: args.drop_layers.unwrap_or(Amount::Untouched),
        protect_ends: !args.unprotected,
        keep_experts: args.keep_experts.unwrap_or(Amount::Untouched),
        vocabulary: match args.trim_vocabulary.as_slice() {
            [] => None,
            paths => Some(texts_of_files(paths)?),
        },
        last_logits: args.last_logits,
        calibration_tokens: args.calibration_tokens,
        calibration: args
            .calibration_text
            .as_slice()
            .first()
            .map(std::slice::from_ref)
            .map(texts_of_files)
            .transpose()?,
    };
    if spec.is_empty() {
        return Err(Error::new("nothing is to be cut off")
            .hint("ask for `--drop-layers`, `--keep-experts`, `--trim-vocabulary` or `--last-logits`"));
    }
    let package = Package::open(&args.package)?;
    spec.check(&package.manifest)?;
    let runtime = match args.runtime.contains('/') {
        true => RuntimeRef::Path(args.runtime.clone().into()),
        false => RuntimeRef::Installed(args.runtime.clone()),
    };
    let library = catalog::find(&runtime)?;
    let threads = args.threads.unwrap_or_else(probe::cpu::default_threads);
    let name = "cpu".to_owned();
    let backend = Backend { name, runtime, provider: ProviderKind::Cpu, plugin: None, options: Default::default() };
    let loaded = Runtime::load(&library.path)?;
    // Messages are for a parent, and there is none.
    let report = Reporter::new(std::io::sink());
    let workshop = Workshop { runtime: &loaded, backend: &backend, threads, report: &report };
    let (_, outcome) = operate(&package, &spec, &args.output, &workshop)?;
    let text = describe(&outcome, &spec, &args.output);
    write!(std::io::stdout().lock(), "{text}").context("cannot print")?;
    Ok(ExitCode::SUCCESS)
}

fn describe(outcome: &Outcome, spec: &Spec, output: &Path) -> String {
    let mut text = String::new();
    let calibration = &outcome.calibration;
    // Writing to a string cannot fail.
    if calibration.tokens > 0 {
        let _ = writeln!(text, "measured over {} tokens ({})", calibration.tokens, calibration.source);
    }
    if !calibration.importance.is_empty() {
        let most = calibration.importance.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        let _ = writeln!(text, "layer  importance");
        for (layer, &importance) in calibration.importance.iter().enumerate() {
            let bar = "#".repeat((20.0 * importance.max(0.0) / most).round() as usize);
            let gone = if outcome.dropped.contains(&layer) { "  dropped" } else { "" };
            let line = format!("{layer:>5}  {importance:>10.4}  {bar:<20}{gone}");
            let _ = writeln!(text, "{}", line.trim_end());
        }
    }
    if !calibration.uses.is_empty() {
        let _ = writeln!(text, "layer  experts by use, the most chosen first (* dropped)");
        let keep = outcome.experts.map_or(usize::MAX, |(_, kept)| kept as usize);
        for (layer, uses) in &calibration.uses {
            let mut order: Vec<usize> = (0..uses.len()).collect();
            order.sort_by(|&a, &b| uses[b].cmp(&uses[a]).then(a.cmp(&b)));
            let shown = order
                .iter()
                .enumerate()
                .map(|(place, &expert)| format!("{expert}:{}{}", uses[expert], if place < keep { "" } else { "*" }));
            let shown: Vec<String> = shown.collect();
            let _ = writeln!(text, "{layer:>5}  {}", shortened(&shown));
        }
    }
    if outcome.dropped.is_empty() {
        let _ = writeln!(text, "layers       {}", outcome.layers);
    } else {
        let left = outcome.layers - outcome.dropped.len();
        let _ = writeln!(text, "layers       {} -> {left}", outcome.layers);
    }
    if let Some((before, kept)) = outcome.experts {
        let share = outcome
            .kept_choices
            .map(|share| format!(" ({} % of the measured choices)", units::significant(100.0 * share, 3)));
        let _ = writeln!(text, "experts      {}{}", arrow(before, kept), share.unwrap_or_default());
    }
    let _ = writeln!(text, "tokens       {}", arrow(outcome.tokens.0, outcome.tokens.1));
    if spec.last_logits {
        let done =
            if outcome.selects_logits { "all -> those that are wanted" } else { "those that are wanted already" };
        let _ = writeln!(text, "logits       {done}");
    }
    let _ = writeln!(text, "parameters   {}", arrow(outcome.parameters.0, outcome.parameters.1));
    let (before, after) = outcome.bytes;
    let ratio = units::significant(after as f64 / before.max(1) as f64, 3);
    let _ = writeln!(text, "size         {} -> {} ({ratio} times)", units::bytes(before), units::bytes(after));
    let _ = writeln!(text, "{}", output.display());
    text
}

fn arrow(before: u64, after: u64) -> String {
    if before == after { before.to_string() } else { format!("{before} -> {after}") }
}

/// Words of a long list: the first and the last ones.
fn shortened(words: &[String]) -> String {
    const ENDS: usize = 8;
    if words.len() <= 2 * ENDS {
        return words.join(" ");
    }
    format!("{} … {}", words[..ENDS].join(" "), words[words.len() - ENDS..].join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optimizations::model_surgery::Calibration;

    #[test]
    fn what_was_done_is_a_table() {
        let spec = Spec {
            drop_layers: Amount::Count(1),
            protect_ends: true,
            keep_experts: Amount::Share(0.5),
            vocabulary: None,
            last_logits: true,
            calibration_tokens: 512,
            calibration: None,
        };
        let calibration = Calibration {
            tokens: 512,
            source: "random tokens".to_owned(),
            importance: vec![0.91, 0.12, 0.0403, 0.2],
            uses: [(1, vec![3, 500, 21, 500]), (2, (0..20).collect())].into(),
        };
        let outcome = Outcome {
            calibration,
            layers: 4,
            dropped: vec![2],
            experts: Some((4, 2)),
            kept_choices: Some(0.97656),
            tokens: (1024, 512),
            selects_logits: true,
            parameters: (1_774_976, 1_018_624),
            bytes: (1_345_294, 872_448),
        };
        insta::assert_snapshot!(describe(&outcome, &spec, Path::new("cut/model")));
        let untouched = Outcome {
            calibration: Calibration::default(),
            dropped: vec![],
            experts: None,
            kept_choices: None,
            tokens: (1024, 1024),
            selects_logits: false,
            ..outcome
        };
        insta::assert_snapshot!(describe(&untouched, &spec, Path::new("cut/model")));
    }
}
