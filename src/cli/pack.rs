//! `ortbench pack`: a package becomes a pack, or a pack is checked.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::error::{Context, Error, Result};
use crate::loader::pack::{self, CodecChoice, Options, Progress, Summary};
use crate::package::Package;
use crate::package::shards::{Codec, Form, What};
use crate::units;

const EXAMPLES: &str = "\
Examples:
  ortbench pack models/packages/qwen3-4b/int4-fused --output packs/qwen3-4b
  ortbench pack models/packages/qwen3-4b/fp16-fused --output packs/qwen3-4b-fp16 --codec auto
  ortbench pack models/packages/qwen3-4b/fp16-fused --output packs/qwen3-4b-gpu --form inputs
  ortbench pack --verify packs/qwen3-4b

An interrupted run is continued by the same command. docs/pack.md describes the folder.";

/// The options of `ortbench pack`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Folder of the model package.
    #[arg(required_unless_present = "verify", requires = "output")]
    package: Option<PathBuf>,
    /// Folder of the pack: new, empty, or left unfinished by the same command.
    #[arg(long, short, value_name = "FOLDER", requires = "package")]
    output: Option<PathBuf>,
    /// How the graph takes its weights: by this program's operators, which compute on packed weights of 4 and 8 bits,
    /// or as inputs of its segments, which any execution provider can take.
    #[arg(long, value_enum, default_value_t = FormWord::Operators)]
    form: FormWord,
    /// How weights are compressed, without loss. `planes` keeps low and high bytes apart, for weights of 16 bits;
    /// `auto` takes what fits a weight's type where it saves at least one byte in twenty.
    #[arg(long, value_enum, default_value_t = CodecWord::None)]
    codec: CodecWord,
    /// Constants of at most this size stay in the graph (quantized products are packed at any size).
    #[arg(long, value_name = "SIZE", default_value = "256KiB", value_parser = size)]
    threshold: u64,
    /// Memory that weights may take at a time.
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = size)]
    memory: u64,
    /// Pack quantized products although the package does not ask for activations rounded to 8 bits (accuracy_level
    /// 4), which is how this program's operators compute.
    #[arg(long)]
    int8_activations: bool,
    /// Replace a finished pack.
    #[arg(long)]
    force: bool,
    /// Read all of a pack and compare its hashes instead.
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["package", "output", "force"])]
    verify: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FormWord {
    Operators,
    Inputs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum CodecWord {
    None,
    Zstd,
    Lz4,
    Planes,
    Auto,
}

/// Bytes with a unit: `4096`, `256KiB`, `1GiB`.
fn size(text: &str) -> std::result::Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return Err("a size is a number and B, KiB, MiB or GiB, such as 256KiB".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "a size starts with a number, such as 256KiB".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "that is too large".to_owned())
}

/// Runs the command.
pub fn run(args: Args) -> Result<ExitCode> {
    if let Some(folder) = &args.verify {
        return verify(folder);
    }
    let (Some(source), Some(output)) = (&args.package, &args.output) else {
        return Err(Error::new("`pack` needs a package and `--output`"));
    };
    let options = Options {
        form: match args.form {
            FormWord::Operators => Form::Operators,
            FormWord::Inputs => Form::Inputs,
        },
        codec: match args.codec {
            CodecWord::None => CodecChoice::None,
            CodecWord::Zstd => CodecChoice::Zstd,
            CodecWord::Lz4 => CodecChoice::Lz4,
            CodecWord::Planes => CodecChoice::Planes,
            CodecWord::Auto => CodecChoice::Auto,
        },
        threshold: args.threshold,
        memory: args.memory,
        int8_activations: args.int8_activations,
        force: args.force,
    };
    let package = Package::open(source)?;
    let summary = if std::io::stderr().is_terminal() {
        pack::pack(&package, output, &options, &Bar::new())
    } else {
        pack::pack(&package, output, &options, &Lines)
    };
    let text = describe(&summary?, output);
    write!(std::io::stdout().lock(), "{text}").context("cannot print")?;
    Ok(ExitCode::SUCCESS)
}

fn verify(folder: &Path) -> Result<ExitCode> {
    let verified = pack::verify(folder)?;
    let mut text = String::new();
    for damage in &verified.damage {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "damaged: {} in {}: {}", damage.name, damage.file, damage.cause);
    }
    if verified.damage.is_empty() {
        let _ = writeln!(text, "{} records, {}: as they were written", verified.records, units::bytes(verified.bytes));
    }
    write!(std::io::stdout().lock(), "{text}").context("cannot print")?;
    let Some(first) = verified.damage.first() else { return Ok(ExitCode::SUCCESS) };
    let more = verified.damage.len() - 1;
    let others = if more == 0 { String::new() } else { format!(" and {more} others") };
    Err(Error::new(format!("`{}` is damaged: `{}`{others}", folder.display(), first.name))
        .hint("pack the package again, with `--force`"))
}

fn describe(summary: &Summary, output: &Path) -> String {
    let index = &summary.index;
    let of = |wanted: fn(&What) -> bool| index.records.iter().filter(|record| wanted(&record.what)).count();
    let stored: u64 = index.records.iter().map(|record| record.stored).sum();
    let compressed = index.records.iter().filter(|record| record.codec != Codec::None).count();
    let seconds = summary.time.as_secs_f64();
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "{} records: {} matrices, {} experts, {} tensors, in {} of {} segments",
        index.records.len(),
        of(|what| matches!(what, What::Matrix { .. })),
        of(|what| matches!(what, What::Expert { .. })),
        of(|what| matches!(what, What::Tensor { .. })),
        index.files.len(),
        index.segments.len(),
    );
    let ratio = |part: u64, whole: u64| units::significant(part as f64 / whole.max(1) as f64, 3);
    let _ = writeln!(
        text,
        "{} in records, {} times the source's {}{}",
        units::bytes(stored),
        ratio(stored, summary.source_bytes),
        units::bytes(summary.source_bytes),
        if compressed == 0 { String::new() } else { format!(", {compressed} compressed") },
    );
    let (pack, package) = (units::bytes(summary.bytes), units::bytes(summary.package_bytes));
    let _ =
        writeln!(text, "{pack} in all, {} times the package's {package}", ratio(summary.bytes, summary.package_bytes));
    let _ = writeln!(text, "{} stay beside the graph, mapped when it is opened", units::bytes(summary.kept_bytes));
    for (name, bytes) in summary.kept_largest.iter().filter(|(_, bytes)| *bytes >= 1 << 20) {
        let _ = writeln!(text, "  {name} ({})", units::bytes(*bytes));
    }
    for (operator, reason, count, bytes) in &summary.stock {
        let bytes = units::bytes(*bytes);
        let _ = writeln!(text, "{count} {operator} ({bytes}) keep their stock operator, which is slow here: {reason}");
    }
    let rate = units::significant(summary.packed_bytes as f64 / seconds.max(1e-9) / 1e9, 3);
    let time = units::seconds(seconds);
    let _ = if index.records.is_empty() {
        writeln!(text, "{time}; no weights are large enough for a shard")
    } else if summary.packed_bytes == 0 {
        writeln!(text, "{time}; every shard was there already")
    } else {
        writeln!(text, "{time}, {rate} GB/s")
    };
    let _ = writeln!(text, "{}", output.display());
    text
}

/// A line a shard.
struct Lines;

impl Progress for Lines {
    fn started(&self, bytes: u64) {
        eprintln!("{} of weights to pack", units::bytes(bytes));
    }

    fn advanced(&self, _bytes: u64) {}

    fn shard(&self, number: usize, shards: usize, file: &str, bytes: u64, resumed: bool) {
        let there = if resumed { ", was there" } else { "" };
        eprintln!("[{number}/{shards}] {file}: {}{there}", units::bytes(bytes));
    }

    fn finished(&self) {}
}

/// A bar with the time that is left.
struct Bar(ProgressBar);

impl Bar {
    fn new() -> Self {
        let style =
            ProgressStyle::with_template("{bar:24} {bytes}/{total_bytes} {bytes_per_sec} {eta} left  {wide_msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
        Self(ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr()).with_style(style))
    }
}

impl Progress for Bar {
    fn started(&self, bytes: u64) {
        self.0.set_length(bytes);
    }

    fn advanced(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    fn shard(&self, number: usize, shards: usize, _file: &str, _bytes: u64, _resumed: bool) {
        self.0.set_message(format!("{number}/{shards}"));
    }

    fn finished(&self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_have_units() {
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("256KiB"), Ok(256 << 10));
        assert_eq!(size("2 GiB"), Ok(2 << 30));
        assert!(size("1GB").is_err() && size("").is_err() && size("99999999999999999999").is_err());
        assert!(size("17179869184GiB").is_err());
    }
}
