//! Fidelity: a cell's next-token distributions and greedy continuations against its reference's, over the same tokens.

mod divergence;
mod store;

use std::path::Path;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::categories::accuracy::answers::budget;
use crate::categories::common::choose;
use crate::cell::{FidelityPlan, PromptSource, Scoring};
use crate::engine::sampling;
use crate::engine::scoring::{Normaliser, Scorer, Size, batches, beyond_vocabulary, positions};
use crate::engine::{Decoder, Features, Model, Prompt};
use crate::error::{Context, Error, Result};
use crate::package::Package;
use crate::protocol::Reporter;
use crate::stats;

use divergence::{Divergence, Figures};
use store::{Reader, Writer};

/// The reference's logits, in its folder.
pub const LOGITS: &str = "logits.bin";

/// What a reference leaves behind of the text, beside its logits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReferenceText {
    /// The tokens of every window.
    pub tokens: Vec<u32>,
    /// Greedy continuations of the first windows' contexts.
    pub generations: Vec<Vec<u32>>,
}

/// The text in windows that follow each other without overlap. In each, the tokens behind the context are scored: the
/// first of them is predicted from the whole context.
#[derive(Debug)]
pub struct Windows {
    tokens: Vec<u32>,
    window: usize,
    context: usize,
}

impl Windows {
    /// The plan's tokens, as many windows as its tokens to score take.
    ///
    /// # Errors
    /// A text that cannot be read or does not fill one window, a window beyond the model's context, a tokenizer of
    /// another model.
    pub fn open(package: &Package, plan: &FidelityPlan) -> Result<Self> {
        let (window, context) = (plan.window as usize, plan.context as usize);
        let limit = package.manifest.shape.context_length as usize;
        let needed = window.max(context + plan.generate_tokens as usize);
        if needed > limit {
            return Err(Error::unsupported(format!(
                "fidelity takes sequences of {needed} tokens, and the model's context is {limit}"
            ))
            .hint("lower `fidelity: window` or `generate_tokens`"));
        }
        let scored = window - context;
        let wanted = (plan.tokens as usize).div_ceil(scored);
        let tokens = match &plan.source {
            PromptSource::RandomTokens { seed } => random_tokens(package, *seed, wanted * window),
            PromptSource::TextFile { path } => tokenize(package, path, window, wanted)?,
        };
        let vocab = package.manifest.shape.vocab_size as usize;
        match tokens.iter().find(|token| **token as usize >= vocab) {
            Some(token) => Err(beyond_vocabulary(*token, vocab)),
            None => Ok(Self { tokens, window, context }),
        }
    }

    /// Tokens that are scored.
    pub fn scored(&self) -> usize {
        self.iter().len() * (self.window - self.context)
    }

    fn iter(&self) -> impl ExactSizeIterator<Item = &[u32]> {
        self.tokens.chunks_exact(self.window)
    }

    /// Runs every window; `visit` gets the logits before each scored token, and the token.
    fn visit(
        &self,
        model: &mut Model,
        report: &Reporter,
        visit: &mut dyn FnMut(&[f32], u32) -> Result<()>,
    ) -> Result<()> {
        let budget = budget(model);
        let mut scorer = Scorer::new(model, Scoring::Batched, budget);
        for (number, window) in self.iter().enumerate() {
            report.progress("fidelity", number as u64, self.iter().len() as u64)?;
            // The last token is predicted and predicts nothing.
            let input = &window[..window.len() - 1];
            scorer.stream(input, self.context - 1, &mut |position, logits| visit(logits, window[position + 1]))?;
        }
        Ok(())
    }

    /// Greedy continuations of the first windows' contexts, stop tokens ignored.
    fn generate(&self, model: &mut Model, plan: &FidelityPlan) -> Result<Vec<Vec<u32>>> {
        let prompts: Vec<Prompt> = self
            .iter()
            .take(plan.generations as usize)
            .map(|window| Prompt::text(window[..self.context].to_vec()))
            .collect();
        let steps = plan.generate_tokens as usize;
        if prompts.is_empty() || steps == 0 {
            return Ok(Vec::new());
        }
        let size = Size { tokens: self.context, more: steps, tail: positions(model, self.context, 1) };
        let mut rows = Vec::with_capacity(prompts.len());
        // All are of one size, so that batches are the prompts in order.
        for batch in batches(model, &vec![size; prompts.len()], budget(model)) {
            let prompts: Vec<Prompt> = batch.iter().map(|&index| prompts[index].clone()).collect();
            rows.extend(greedy(model, &prompts, steps)?);
        }
        Ok(rows)
    }
}

/// The likeliest tokens after each prompt.
fn greedy(model: &mut Model, prompts: &[Prompt], steps: usize) -> Result<Vec<Vec<u32>>> {
    let longest = prompts.iter().map(|prompt| prompt.tokens.len()).max().unwrap_or(0);
    let mut decoder = Decoder::new(model, prompts.len(), longest + steps)?;
    decoder.prefill(model, prompts, &Features::default())?;
    let mut rows = vec![Vec::with_capacity(steps); prompts.len()];
    for step in 0..steps {
        let next = choose(&decoder)?;
        rows.iter_mut().zip(&next).for_each(|(row, token)| row.push(*token));
        if step + 1 < steps {
            decoder.step(model, &next)?;
        }
    }
    Ok(rows)
}

/// The tokens of as many windows of a text as are wanted, or as there are.
fn tokenize(package: &Package, path: &Path, window: usize, wanted: usize) -> Result<Vec<u32>> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the text `{shown}`"))?;
    let encoding = package
        .tokenizer()?
        .encode(text, false)
        .map_err(|error| Error::new(format!("cannot tokenize the text `{shown}`")).because(error))?;
    let count = wanted.min(encoding.len() / window);
    if count == 0 {
        return Err(Error::new(format!(
            "the text `{shown}` has {} tokens and does not fill one window of {window}",
            encoding.len()
        ))
        .hint("take a longer text, or lower `fidelity: window`"));
    }
    Ok(encoding.get_ids()[..count * window].to_vec())
}

/// Uniform ids, special tokens excluded.
fn random_tokens(package: &Package, seed: u64, count: usize) -> Vec<u32> {
    let vocab = package.manifest.shape.vocab_size as u32;
    sampling::random_tokens(&mut ChaCha8Rng::seed_from_u64(seed), count, vocab, &package.special_tokens())
}

/// Writes the reference's logits into its folder, and returns the rest.
///
/// # Errors
/// A failed run, a folder that cannot be written.
pub fn record(
    model: &mut Model,
    windows: &Windows,
    plan: &FidelityPlan,
    folder: &Path,
    report: &Reporter,
) -> Result<ReferenceText> {
    let vocab = model.manifest().shape.vocab_size as usize;
    let mut writer = Writer::create(&folder.join(LOGITS), vocab)?;
    perplexity(model, windows, report, &mut |logits, next| writer.add(logits, next))?;
    writer.finish()?;
    Ok(ReferenceText { tokens: windows.tokens.clone(), generations: windows.generate(model, plan)? })
}

/// Reports the text's perplexity where there is no reference.
///
/// # Errors
/// A failed run.
pub fn read_alone(model: &mut Model, windows: &Windows, report: &Reporter) -> Result<()> {
    perplexity(model, windows, report, &mut |logits, next| {
        Ok(Normaliser::of(logits)?.log_probability(logits[next as usize]))
    })
}

/// Reports exp(−mean log-probability) of the scored tokens, each of which `log_probability` takes from its logits.
fn perplexity(
    model: &mut Model,
    windows: &Windows,
    report: &Reporter,
    log_probability: &mut dyn FnMut(&[f32], u32) -> Result<f64>,
) -> Result<()> {
    let mut sum = 0.0;
    windows.visit(model, report, &mut |logits, next| {
        sum += log_probability(logits, next)?;
        Ok(())
    })?;
    let count = windows.scored();
    report.fact("fidelity_tokens", count as u64)?;
    report.fact("perplexity", (-sum / count as f64).exp())
}

/// Compares a cell with its reference and reports every figure.
///
/// # Errors
/// A reference of other tokens, a failed run, a damaged file.
pub fn compare(
    model: &mut Model,
    windows: &Windows,
    plan: &FidelityPlan,
    reference: &ReferenceText,
    folder: &Path,
    report: &Reporter,
) -> Result<()> {
    if reference.tokens != windows.tokens {
        return Err(Error::unsupported("the reference's tokenizer makes other tokens of the fidelity text")
            .hint("compare models of one tokenizer"));
    }
    let mut reader = Reader::open(&folder.join(LOGITS), model.manifest().shape.vocab_size as usize)?;
    let mut divergence = Divergence::default();
    windows.visit(model, report, &mut |logits, next| divergence.add(logits, next, reader.next()?))?;
    let figures = divergence.figures().ok_or_else(|| Error::new("no token of the fidelity text was scored"))?;
    report_figures(&figures, report)?;
    report_generations(&windows.generate(model, plan)?, &reference.generations, report)
}

fn report_figures(figures: &Figures, report: &Reporter) -> Result<()> {
    report.fact("fidelity_tokens", figures.tokens)?;
    report.fact("kl_divergence_mean", figures.kl_mean)?;
    optional(report, "kl_divergence_mean_stderr", figures.kl_stderr)?;
    report.fact("kl_divergence_median", figures.kl_median)?;
    report.fact("kl_divergence_p90", figures.kl_p90)?;
    optional(report, "kl_divergence_p99", figures.kl_p99)?;
    report.fact("kl_divergence_max", figures.kl_max)?;
    report.fact("top1_agreement_share", figures.top1)?;
    optional(report, "top1_agreement_stderr", figures.top1_stderr)?;
    report.fact("top5_overlap_share", figures.top5)?;
    report.fact("rms_probability_difference", figures.rms_probability)?;
    report.fact("max_logit_difference", figures.max_difference)?;
    report.fact("perplexity", figures.perplexity)?;
    report.fact("reference_perplexity", figures.reference_perplexity)?;
    report.fact("perplexity_ratio", figures.ratio)?;
    optional(report, "perplexity_ratio_stderr", figures.ratio_stderr)
}

fn optional(report: &Reporter, name: &str, value: Option<f64>) -> Result<()> {
    value.map_or(Ok(()), |value| report.fact(name, value))
}

fn report_generations(found: &[Vec<u32>], reference: &[Vec<u32>], report: &Reporter) -> Result<()> {
    if found.is_empty() || found.len() != reference.len() {
        return Ok(());
    }
    let mut divergent: Vec<f64> =
        found.iter().zip(reference).filter_map(|(a, b)| first_difference(a, b)).map(|index| index as f64).collect();
    divergent.sort_unstable_by(f64::total_cmp);
    report.fact("greedy_generations", found.len() as u64)?;
    report.fact("greedy_identical_share", 1.0 - divergent.len() as f64 / found.len() as f64)?;
    if let Some(first) = divergent.first() {
        report.fact("first_divergent_token_min", *first as u64)?;
        report.fact("first_divergent_token_median", stats::quantile(&divergent, 0.5))?;
    }
    Ok(())
}

/// The index of the first token that differs.
fn first_difference(a: &[u32], b: &[u32]) -> Option<usize> {
    let common = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    (common < a.len().max(b.len())).then_some(common)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continuations_diverge_where_they_first_differ() {
        assert_eq!(first_difference(&[1, 2, 3], &[1, 2, 3]), None);
        assert_eq!(first_difference(&[1, 2, 3], &[1, 5, 3]), Some(1));
        assert_eq!(first_difference(&[1, 2], &[1, 2, 3]), Some(2));
        assert_eq!(first_difference(&[], &[]), None);
    }
}
