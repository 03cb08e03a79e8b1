//! `ortbench generate`: lets a model answer a prompt.

use std::io::{IsTerminal, Read, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use tokenizers::Tokenizer;

use crate::cell::{Backend, MemoryAmount, ProviderKind, Residency, RuntimeRef};
use crate::engine::sampling::Sampling;
use crate::engine::{Ended, Model, Plan, Prompt, generate};
use crate::error::{Context, Error, Result};
use crate::loader::pager::Statistics;
use crate::package::{ChatMessage, Package};
use crate::probe;
use crate::runtime::{Runtime, catalog};
use crate::units;
use crate::vision::{self, Patches};

/// The options of `ortbench generate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of a model package (or of a model that onnxruntime-genai's builder made).
    model: PathBuf,
    /// The prompt; `-` reads standard input. Several make a batch.
    #[arg(long, short, required = true)]
    prompt: Vec<String>,
    /// An image file that the prompt is about. Several stand in the order given, before the text unless the prompt
    /// itself holds the model's image tokens.
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
    /// Resize images to at most this many pixels, where the model would take more.
    #[arg(long, value_name = "N", requires = "image")]
    max_pixels: Option<u64>,
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
    #[arg(long, default_value = "cpu", value_parser = provider)]
    provider: ProviderKind,
    /// Runtime: an installed one (cpu, openvino, cuda) or the path of a libonnxruntime. Default: the provider's own.
    #[arg(long)]
    runtime: Option<String>,
    /// Threads of one operator. Default: the cores that this process may use.
    #[arg(long)]
    threads: Option<u32>,
    /// Where a pack's weights live: all in memory, mapped, streamed ahead of use, or experts on demand.
    #[arg(long, value_name = "RESIDENCY", help_heading = "Packs")]
    residency: Option<Residency>,
    /// What the process may hold in all, as `4GiB`, or a share of the weights, as `50%`; for streamed weights and
    /// experts on demand.
    #[arg(long, value_name = "SIZE", requires = "residency", help_heading = "Packs")]
    memory_budget: Option<MemoryAmount>,
    /// Let that many prompts go through a layer together, all of them before the next layer's weights are read.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Packs")]
    micro_batch: Option<u32>,
    /// Guess so many experts a token of the next layer, and read them while the disk is idle.
    #[arg(long, value_name = "N", default_value_t = 0, requires = "residency", help_heading = "Packs")]
    guess: u32,
    /// Let the key/value caches wait in an unnamed file in this folder.
    #[arg(long, value_name = "DIR", help_heading = "Packs")]
    offload: Option<PathBuf>,
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
    let images = images(&args, &package)?;
    let prompts = prompts(&args, &package, &tokenizer, images)?;

    let backend = backend(&args);
    let library = catalog::find(&backend.runtime)?;
    let threads = args.threads.unwrap_or_else(probe::cpu::default_threads);
    let longest = prompts.iter().map(|prompt| prompt.tokens.len()).max().unwrap_or(0);
    let budget = match args.memory_budget {
        Some(amount) => amount.bytes(package.weights_bytes()?, None),
        None => None,
    };
    let plan = Plan {
        images: !args.image.is_empty(),
        residency: args.residency,
        budget,
        micro_batch: args.micro_batch,
        offload: args.offload.clone(),
        guess: args.guess,
        sequences: prompts.len() as u32,
        tokens: (longest + args.max_tokens) as u32,
        ..Plan::with_threads(threads)
    };
    let runtime = Runtime::load_sharing(&library.path, plan.shared_threads())?;
    let loading = Instant::now();
    let mut model = Model::load(&runtime, &package, &backend, &plan)?;
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
            return Ok(ControlFlow::Continue(()));
        }
        let piece = streams[row]
            .step(token)
            .map_err(|error| Error::new("cannot turn a token into text").because(error))?
            .unwrap_or_default();
        if batch == 1 {
            out.write_all(piece.as_bytes()).and_then(|()| out.flush()).context("cannot write the answer")?;
        }
        answers[row].push_str(&piece);
        Ok(ControlFlow::Continue(()))
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
            model.placement().describe(model.provider()),
        );
        if let Some(statistics) = model.pager_statistics() {
            eprintln!("{}", describe(&statistics));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What a pack's weights took, loading included.
fn describe(statistics: &Statistics) -> String {
    let &Statistics { experts_wanted, experts_hit, guessed, guessed_right, .. } = statistics;
    let mut text = format!(
        "{} read from disk in {}, waited for {}",
        units::bytes(statistics.bytes_read),
        units::seconds(statistics.read_nanos as f64 / 1e9),
        units::seconds(statistics.wait_nanos as f64 / 1e9),
    );
    if experts_wanted > 0 {
        let share = units::significant(100.0 * experts_hit as f64 / experts_wanted as f64, 3);
        text += &format!("; of {experts_wanted} experts {share} % were in memory");
    }
    if guessed > 0 {
        text += &format!("; {guessed} were read on a guess, {guessed_right} of them rightly");
    }
    text
}

/// The images as patches: opened, resized to the model's limits, and small enough for the vision tower to run on.
fn images(args: &Args, package: &Package) -> Result<Vec<Patches>> {
    if args.image.is_empty() {
        return Ok(Vec::new());
    }
    let manifest = &package.manifest;
    let image = manifest.image.as_ref().ok_or_else(|| package.takes_no_images())?;
    if args.prompt.len() > 1 {
        return Err(Error::new(format!("{} prompts share {} images", args.prompt.len(), args.image.len()))
            .hint("ask about images in one prompt at a time"));
    }
    let mut spec = image.spec();
    if let Some(pixels) = args.max_pixels {
        if pixels < spec.min_pixels {
            let message = format!("`--max-pixels` is {pixels}, and the model enlarges images to {}", spec.min_pixels);
            return Err(Error::new(message).hint("give a larger number, or leave it out"));
        }
        spec.max_pixels = pixels.min(spec.max_pixels);
    }
    let limit = probe::usable_memory_bytes().unwrap_or(u64::MAX);
    let mut held = 0_u64;
    let mut patches = Vec::with_capacity(args.image.len());
    for path in &args.image {
        let picture = vision::open(path, limit / IMAGE_SHARE)?;
        let failed = || format!("cannot use the image `{}`", path.display());
        // Before anything is resized: the patches of all images stay, the tower runs on one after the other.
        let grid = spec.grid(picture.width(), picture.height()).with_context(failed)?;
        held = held.saturating_add(image.held_bytes(grid));
        let needed = manifest.vision_run_bytes(image, grid.patches() as u64).saturating_add(held);
        if needed > limit {
            let cause = format!(
                "{} patches need about {}, and a process may use {} now",
                grid.patches(),
                units::bytes(needed),
                units::bytes(limit)
            );
            return Err(Error::new(failed())
                .because(std::io::Error::other(cause))
                .hint("let images be smaller with `--max-pixels`, or give fewer"));
        }
        patches.push(vision::preprocess(&picture, &spec).with_context(failed)?);
    }
    Ok(patches)
}

/// A decoded image may take this part of the memory that there is: the model needs the rest.
const IMAGE_SHARE: u64 = 4;

/// The prompts as the model gets them; images belong to the only one.
fn prompts(args: &Args, package: &Package, tokenizer: &Tokenizer, images: Vec<Patches>) -> Result<Vec<Prompt>> {
    let encode = |text: &String| {
        let encoding = tokenizer
            .encode(text.as_str(), false)
            .map_err(|error| Error::new("cannot tokenize the prompt").because(error))?;
        Ok(encoding.get_ids().to_vec())
    };
    let tokens = texts(args, package, tokenizer)?.iter().map(encode).collect::<Result<Vec<_>>>()?;
    match (&package.manifest.image, tokens.as_slice()) {
        (Some(image), [tokens]) if !images.is_empty() => Ok(vec![Prompt::with_images(tokens, images, image)?]),
        _ => Ok(tokens.into_iter().map(Prompt::text).collect()),
    }
}

/// The prompts as the tokenizer gets them.
fn texts(args: &Args, package: &Package, tokenizer: &Tokenizer) -> Result<Vec<String>> {
    let template = if args.chat { Some(package.chat_template()?) } else { None };
    let place = package.manifest.image.as_ref().and_then(|image| tokenizer.id_to_token(image.image_token));
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
            let system = args.system.iter().map(|system| ChatMessage::new("system", system, 0));
            // A prompt that has its images' places keeps them.
            let placed = place.as_ref().is_some_and(|place| text.contains(place));
            let before = if placed { 0 } else { args.image.len() };
            let messages: Vec<_> = system.chain([ChatMessage::new("user", &text, before)]).collect();
            template.render(&messages)
        })
        .collect()
}

fn provider(text: &str) -> std::result::Result<ProviderKind, String> {
    let known = ProviderKind::words().contains(&text);
    if known { text.parse() } else { Err(format!("`{text}` is not one of {}", ProviderKind::words().join(", "))) }
}

fn backend(args: &Args) -> Backend {
    let name = args.runtime.clone().unwrap_or_else(|| {
        match args.provider {
            ProviderKind::Cpu | ProviderKind::Plugin => "cpu",
            ProviderKind::OpenVino => "openvino",
            ProviderKind::Cuda | ProviderKind::TensorRt => "cuda",
        }
        .to_owned()
    });
    let runtime = if name.contains('/') { RuntimeRef::Path(name.into()) } else { RuntimeRef::Installed(name) };
    let name = args.provider.name().into();
    Backend { name, runtime, provider: args.provider, plugin: None, options: Default::default() }
}
