//! `ortbench generate`: lets a model answer a prompt.

use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use crate::cell::{Backend, ProviderKind, RuntimeRef};
use crate::engine::sampling::Sampling;
use crate::engine::{Ended, Model, Plan, generate};
use crate::error::{Context, Error, Result};
use crate::package::{ChatMessage, Package};
use crate::runtime::{Runtime, catalog};
use crate::units;

/// The options of `ortbench generate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of a model package (or of a model that onnxruntime-genai's builder made).
    model: PathBuf,
    /// The prompt; `-` reads standard input. Several make a batch.
    #[arg(long, short, required = true)]
    prompt: Vec<String>,
    /// Apply the model's chat template to the prompt.
    #[arg(long)]
    chat: bool,
    /// System message of the chat.
    #[arg(long, requires = "chat")]
    system: Option<String>,
    /// Generate at most this many tokens.
    #[arg(long, short = 'n', default_value_t = 128)]
    max_tokens: usize,
    /// 0 takes the most likely token; larger values draw more freely.
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Draw among this many of the most likely tokens; 0 means all.
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Draw among the most likely tokens that together reach this probability.
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Execution provider.
    #[arg(long, default_value = "cpu")]
    provider: ProviderKind,
    /// Runtime: an installed one (cpu, openvino, cuda) or the path of a libonnxruntime. Default: the provider's own.
    #[arg(long)]
    runtime: Option<String>,
    /// Threads of one operator. Default: the cores that this process may use.
    #[arg(long)]
    threads: Option<u32>,
    /// Print the generated token ids instead of text.
    #[arg(long)]
    ids: bool,
    /// Check the hashes of the package's files before loading them.
    #[arg(long)]
    verify: bool,
    /// Print nothing but the answer.
    #[arg(long, short)]
    quiet: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Result<ExitCode> {
    let sampling = Sampling { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p, seed: args.seed };
    sampling.check()?;
    let package = Package::open(&args.model)?;
    if args.verify {
        package.verify()?;
    }
    let tokenizer = package.tokenizer()?;
    let texts = texts(&args, &package)?;
    let prompts = texts
        .iter()
        .map(|text| {
            let encoding = tokenizer
                .encode(text.as_str(), false)
                .map_err(|error| Error::new("cannot tokenize the prompt").because(error))?;
            Ok(encoding.get_ids().to_vec())
        })
        .collect::<Result<Vec<_>>>()?;

    let backend = backend(&args);
    let library = catalog::find(&backend.runtime)?;
    let runtime = Runtime::load(&library.path)?;
    let threads = args.threads.unwrap_or_else(default_threads);
    let loading = Instant::now();
    let mut model = Model::load(&runtime, &package, &backend, &Plan::with_threads(threads))?;
    let loaded = loading.elapsed().as_secs_f64();

    let mut streams: Vec<_> = prompts.iter().map(|_| tokenizer.decode_stream(false)).collect();
    let batch = prompts.len();
    let mut answers = vec![String::new(); batch];
    let mut out = std::io::stdout();
    let started = Instant::now();
    let mut first = None;
    let generations = generate(&mut model, &prompts, args.max_tokens, &sampling, |row, token| {
        first.get_or_insert_with(|| started.elapsed().as_secs_f64());
        if args.ids {
            return Ok(());
        }
        let piece = streams[row]
            .step(token)
            .map_err(|error| Error::new("cannot turn a token into text").because(error))?
            .unwrap_or_default();
        if batch == 1 {
            out.write_all(piece.as_bytes()).and_then(|()| out.flush()).context("cannot write the answer")?;
        }
        answers[row].push_str(&piece);
        Ok(())
    })?;
    let seconds = started.elapsed().as_secs_f64();

    let mut out = std::io::stdout();
    let written = if args.ids {
        generations.iter().try_for_each(|generation| {
            let ids: Vec<_> = generation.tokens.iter().map(u32::to_string).collect();
            writeln!(out, "{}", ids.join(" "))
        })
    } else if batch == 1 {
        writeln!(out)
    } else {
        answers.iter().enumerate().try_for_each(|(row, text)| writeln!(out, "[{row}] {text}"))
    };
    written.context("cannot write the answer")?;
    if !args.quiet && std::io::stderr().is_terminal() {
        let tokens: usize = generations.iter().map(|generation| generation.tokens.len()).sum();
        let stopped = generations.iter().filter(|generation| generation.ended == Ended::Stop).count();
        eprintln!(
            "{tokens} tokens, {stopped} of {batch} stopped by themselves; loaded in {}, first token after {}, \
             {} tokens/s in all, on {}",
            units::seconds(loaded),
            units::seconds(first.unwrap_or(seconds)),
            units::significant(tokens as f64 / seconds, 3),
            model.session().placement().describe(model.session().provider()),
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// The prompts as the tokenizer gets them.
fn texts(args: &Args, package: &Package) -> Result<Vec<String>> {
    let template = if args.chat { Some(package.chat_template()?) } else { None };
    args.prompt
        .iter()
        .map(|prompt| {
            let text = if prompt == "-" {
                let mut text = String::new();
                std::io::stdin().read_to_string(&mut text).context("cannot read the prompt from standard input")?;
                text
            } else {
                prompt.clone()
            };
            let Some(template) = &template else { return Ok(text) };
            let message = |role: &str, content: &str| ChatMessage { role: role.into(), content: content.into() };
            let mut messages: Vec<_> = args.system.iter().map(|system| message("system", system)).collect();
            messages.push(message("user", &text));
            template.render(&messages)
        })
        .collect()
}

fn backend(args: &Args) -> Backend {
    let name = args.runtime.clone().unwrap_or_else(|| {
        match args.provider {
            ProviderKind::Cpu => "cpu",
            ProviderKind::OpenVino => "openvino",
            ProviderKind::Cuda | ProviderKind::TensorRt => "cuda",
        }
        .to_owned()
    });
    let runtime = if name.contains('/') { RuntimeRef::Path(name.into()) } else { RuntimeRef::Installed(name) };
    Backend { name: args.provider.name().into(), runtime, provider: args.provider, options: Default::default() }
}

fn default_threads() -> u32 {
    std::thread::available_parallelism().map_or(1, |count| count.get() as u32)
}
