//! Inference speed: time to first token, prefill, time per output token, decode.

use std::time::Instant;

use crate::categories::common::{self, Loaded, Repetitions, choose};
use crate::categories::feeding::{Tokens, Turn};
use crate::categories::gpu::Watching;
use crate::categories::streaming::{Meter, Reading};
use crate::categories::{Context, Measure, disk};
use crate::digest;
use crate::engine::{Decoder, Model, Prompter};
use crate::error::Result;
use crate::package::Manifest;

/// The category.
pub struct Speed;

/// One request's timings.
struct Run {
    ttft: f64,
    preparation: f64,
    vision: f64,
    prefill: f64,
    gaps: Vec<f64>,
    end_to_end: f64,
    tokens: Vec<u32>,
}

impl Measure for Speed {
    fn measure(&self, context: &Context) -> Result<()> {
        let Loaded { mut model, mut feeding } = common::load(context)?;
        let (cell, report) = (context.cell, context.report);
        let mut decoder = common::decoder(context, &model)?;
        let generate = cell.workload.generate_tokens as usize;
        let batch = cell.workload.batch as usize;

        report.phase("warmup")?;
        common::first_run(context, &mut model, &mut decoder, &feeding.turn(Turn::Unmeasured(0))?.0.prompts()?)?;
        for run in 0..cell.measurement.warmup {
            let turn = feeding.turn(Turn::Unmeasured(1 + run))?;
            request(&mut decoder, &mut model, turn, generate, &mut Meter::default())?;
        }
        report.fact("warmup_runs", u64::from(cell.measurement.warmup))?;

        let watching = Watching::start(context)?;
        let mut repetitions = Repetitions::new(&cell.measurement);
        let mut meter = Meter::default();
        let mut smallest = f64::INFINITY;
        while let Some(repetition) = repetitions.next() {
            let (done, of) = repetitions.progress();
            report.progress("measure", done, of)?;
            let turn = feeding.turn(Turn::Measured(repetition))?;
            let run = request(&mut decoder, &mut model, turn, generate, &mut meter)?;
            repetitions.add(run.end_to_end);
            smallest = run.gaps.iter().copied().fold(smallest.min(run.prefill), f64::min);
            if repetition == 0 {
                report.fact("output_tokens_hash", hash(&run.tokens))?;
            }
            let prompt_tokens = f64::from(cell.workload.prompt_tokens) * batch as f64;
            report.samples("ttft_seconds", repetition, vec![run.ttft])?;
            if cell.workload.image.is_some() {
                report.samples("image_preparation_seconds", repetition, vec![run.preparation])?;
                report.samples("vision_seconds", repetition, vec![run.vision])?;
                smallest = smallest.min(run.preparation).min(run.vision);
            }
            report.samples("prefill_seconds", repetition, vec![run.prefill])?;
            report.samples("prefill_tokens_per_second", repetition, vec![prompt_tokens / run.prefill])?;
            report.samples("end_to_end_seconds", repetition, vec![run.end_to_end])?;
            if !run.gaps.is_empty() {
                let after_first = run.end_to_end - run.ttft;
                let steps = run.gaps.len() as f64;
                report.samples("tpot_seconds", repetition, vec![after_first / steps])?;
                report.samples("decode_tokens_per_second", repetition, vec![steps * batch as f64 / after_first])?;
                report.samples("itl_seconds", repetition, run.gaps)?;
            }
        }
        watching.report(report)?;
        let work = Work::of(context, model.manifest(), model.computes_selected_logits());
        report.fact("decode_context_tokens", work.decode_context)?;
        report.fact("decode_bytes_per_step", work.decode_bytes)?;
        report.fact("decode_flops_per_step", work.decode_flops)?;
        report.fact("prefill_flops", work.prefill_flops)?;
        meter.report(report)?;
        // What the model holds must not be in memory beside the buffers of these reads.
        drop((decoder, model));
        if context.process == 0 {
            disk::report_bandwidth(feeding.package(), context.setup.plan.residency, report)?;
        }
        common::check_resolution(context, smallest)
    }
}

/// One request, from its text or ids to its last token; stop tokens are ignored, so that lengths are exact. What the
/// loader did meanwhile, where there is one, is counted by `meter`.
fn request(
    decoder: &mut Decoder,
    model: &mut Model,
    (prompter, mut feed): (&Prompter, Tokens),
    generate: usize,
    meter: &mut Meter,
) -> Result<Run> {
    let start = Instant::now();
    let images = prompter.images()?;
    let preparation = start.elapsed().as_secs_f64();
    // A text is tokenized within the request, as a server would.
    let prompts = prompter.prompts_with(images)?;
    let seeing = Instant::now();
    let features = model.see(&prompts)?;
    let vision = seeing.elapsed().as_secs_f64();
    let before = Reading::now(model, decoder);
    let prefill_start = Instant::now();
    decoder.prefill(model, &prompts, &features)?;
    let prefill = prefill_start.elapsed().as_secs_f64();
    let between = Reading::now(model, decoder);
    let mut chosen = choose(decoder)?;
    let first = Instant::now();
    let mut tokens = chosen.clone();
    let mut gaps = Vec::with_capacity(generate.saturating_sub(1));
    let mut last = first;
    for _ in 1..generate {
        decoder.step(model, &feed.after(&mut chosen))?;
        chosen = choose(decoder)?;
        tokens.extend_from_slice(&chosen);
        let now = Instant::now();
        gaps.push((now - last).as_secs_f64());
        last = now;
    }
    let decoded = tokens.len() - chosen.len();
    meter.prefilled(&before, &between);
    meter.decoded(&between, &Reading::now(model, decoder), decoded as u64, (last - first).as_secs_f64());
    let (ttft, end_to_end) = ((first - start).as_secs_f64(), (last - start).as_secs_f64());
    Ok(Run { ttft, preparation, vision, prefill, gaps, end_to_end, tokens })
}

fn hash(tokens: &[u32]) -> String {
    let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
    digest::sha256(bytes)[..16].to_owned()
}

/// Bytes and operations that the workload needs, for utilisation (`docs/method.md`).
struct Work {
    decode_context: u64,
    decode_bytes: u64,
    decode_flops: f64,
    prefill_flops: f64,
}

impl Work {
    fn of(context: &Context, manifest: &Manifest, selected_logits: bool) -> Self {
        let workload = &context.cell.workload;
        let (batch, prompt) = (f64::from(workload.batch), f64::from(workload.prompt_tokens));
        // Step i of `generate − 1` attends to the prompt and i tokens, its own among them.
        let steps = f64::from(workload.generate_tokens.saturating_sub(1));
        let decode_context = prompt + (steps + 1.0) / 2.0;
        let shape = &manifest.shape;
        // Scores and weighted values of each head, query and key; a multiplication and an addition count two.
        let attention = [shape.layers, shape.attention_heads, shape.attention_width]
            .into_iter()
            .fold(2.0, |product, factor| product * factor as f64);
        let active = manifest.parameters.active_per_token as f64;
        let head = (shape.vocab_size * shape.hidden_size) as f64;
        let heads_computed = if selected_logits { 1.0 } else { prompt };
        // Causal: token i attends to i keys.
        let prefill =
            2.0 * ((active - head) * prompt + head * heads_computed) + attention * prompt * (prompt + 1.0) / 2.0;
        Self {
            decode_context: decode_context.round() as u64,
            decode_bytes: manifest.bytes_read_per_token.weights
                + (batch * decode_context * manifest.cache.bytes_per_token as f64) as u64,
            decode_flops: batch * (2.0 * active + attention * decode_context),
            prefill_flops: batch * prefill,
        }
    }
}
