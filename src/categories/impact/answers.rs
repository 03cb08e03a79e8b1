//! The baseline's logits over some tokens, and how far the optimized arm's are from them.
//!
//! Both arms are fed the same tokens in the same way as while they are measured: prefill, then step by step, so that
//! what an optimization does to caches shows.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::lost;
use super::running::Running;
use crate::engine::Prompt;
use crate::engine::sampling::argmax;
use crate::engine::scoring::Normaliser;
use crate::engine::serving::{Feed, greedy};
use crate::error::{Context, Error, Result};
use crate::package::Package;
use crate::protocol::Reporter;

/// What was fed, and what was chosen; written last.
const ASKED: &str = "baseline.json";
/// Logits as 32-bit floats, little-endian: for each sequence, after its prompt and after each token.
const LOGITS: &str = "baseline.bin";

/// Sequences that are compared, at most.
const SEQUENCES: usize = 4;
/// Positions of each, at most.
const POSITIONS: usize = 32;

/// What the baseline was asked.
#[derive(Debug, Serialize, Deserialize)]
struct Asked {
    vocabulary: usize,
    prompts: Vec<Vec<u32>>,
    forced: Vec<Vec<u32>>,
    /// What each sequence goes on with by itself.
    greedy: Vec<Vec<u32>>,
}

/// How far the arms are from each other.
#[derive(Debug, Default, PartialEq)]
pub struct Figures {
    tokens: u64,
    identical: bool,
    same_choice: u64,
    kl_sum: f64,
    kl_max: f64,
    max_difference: f64,
    greedy_identical: f64,
}

/// Runs the baseline over the first prompts and leaves its logits in the folder.
///
/// # Errors
/// A failed run, a folder that cannot be written.
pub fn record(
    running: &mut Running,
    package: &Package,
    prompts: &[Prompt],
    generate: usize,
    feed: &mut Feed,
    folder: &Path,
) -> Result<()> {
    let prompts = &prompts[..prompts.len().min(SEQUENCES)];
    let steps = generate.clamp(1, POSITIONS);
    let chosen = running.serve(prompts, steps, &mut greedy)?;
    let mut forced = vec![Vec::with_capacity(steps); prompts.len()];
    // The last token is chosen and not fed.
    for step in 0..steps - 1 {
        for (number, tokens) in forced.iter_mut().enumerate() {
            tokens.push(feed(number, step, chosen.sequences[number].tokens[step]));
        }
    }
    let asked = Asked {
        vocabulary: package.manifest.shape.vocab_size as usize,
        prompts: prompts.iter().map(|prompt| prompt.tokens.clone()).collect(),
        forced,
        greedy: chosen.sequences.into_iter().map(|sequence| sequence.tokens).collect(),
    };
    let path = folder.join(LOGITS);
    let failed = || format!("cannot write `{}`", path.display());
    let positions = asked.forced.first().map_or(0, Vec::len) + 1;
    let file = File::create(&path).with_context(failed)?;
    let mut rows = Rows::new(asked.vocabulary, positions);
    let mut out = BufWriter::new(file);
    running.forced(prompts, &asked.forced, &mut |number, step, logits| rows.keep(number, step, logits))?;
    for row in rows.in_order(prompts.len())? {
        row.iter().try_for_each(|logit| out.write_all(&logit.to_le_bytes())).with_context(failed)?;
    }
    out.flush().with_context(failed)?;
    let path = folder.join(ASKED);
    let failed = || format!("cannot write `{}`", path.display());
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(failed)?;
    file.write_all(&serde_json::to_vec(&asked).context("cannot express tokens as JSON")?).with_context(failed)?;
    file.persist(&path).map_err(|error| error.error).with_context(failed)?;
    Ok(())
}

/// Logits by sequence and step: waves bring them in another order.
struct Rows {
    vocabulary: usize,
    positions: usize,
    kept: std::collections::BTreeMap<(usize, usize), Vec<f32>>,
}

impl Rows {
    fn new(vocabulary: usize, positions: usize) -> Self {
        Self { vocabulary, positions, kept: Default::default() }
    }

    fn keep(&mut self, number: usize, step: usize, logits: &[f32]) -> Result<()> {
        if logits.len() != self.vocabulary {
            return Err(Error::new(format!("{} logits where the vocabulary has {}", logits.len(), self.vocabulary)));
        }
        self.kept.insert((number, step), logits.to_vec());
        Ok(())
    }

    fn in_order(self, sequences: usize) -> Result<Vec<Vec<f32>>> {
        if self.kept.len() != sequences * self.positions {
            return Err(Error::new("not every position has its logits"));
        }
        Ok(self.kept.into_values().collect())
    }
}

/// Runs the optimized arm over the baseline's tokens.
///
/// # Errors
/// Answers that are not there or of other prompts (`unsupported`), a failed run, logits that are not finite.
pub fn compare(running: &mut Running, package: &Package, mut prompts: Vec<Prompt>, folder: &Path) -> Result<Figures> {
    let text = fs::read(folder.join(ASKED)).map_err(|_| lost("are not there: its process is of an earlier session"))?;
    let asked: Asked = serde_json::from_slice(&text).context("cannot understand the baseline's answers")?;
    let kept = package.kept_tokens()?;
    let vocabulary = package.manifest.shape.vocab_size as usize;
    if kept.is_none() && vocabulary != asked.vocabulary {
        return Err(lost("are over another vocabulary"));
    }
    let translation = Translation::of(kept.as_ref().map(|kept| kept.old_ids.as_slice()));
    prompts.truncate(asked.prompts.len());
    for (prompt, tokens) in prompts.iter_mut().zip(&asked.prompts) {
        prompt.tokens = translation.all(tokens)?;
    }
    let forced = asked.forced.iter().map(|tokens| translation.all(tokens)).collect::<Result<Vec<_>>>()?;
    let positions = forced.first().map_or(0, Vec::len) + 1;
    let mut rows = Rows::new(vocabulary, positions);
    running.forced(&prompts, &forced, &mut |number, step, logits| rows.keep(number, step, logits))?;

    let file = File::open(folder.join(LOGITS)).map_err(|_| lost("are not there"))?;
    let mut file = BufReader::new(file);
    let mut figures = Figures { identical: true, ..Figures::default() };
    let mut bytes = vec![0; asked.vocabulary * size_of::<f32>()];
    for own in rows.in_order(prompts.len())? {
        file.read_exact(&mut bytes).map_err(|_| lost("are cut off"))?;
        let baseline: Vec<f32> = bytes
            .chunks_exact(size_of::<f32>())
            .map(|chunk| chunk.try_into().map_or(f32::NAN, f32::from_le_bytes))
            .collect();
        figures.add(&translation.kept_of(baseline), &own)?;
    }
    let chosen = running.serve(&prompts, positions, &mut greedy)?;
    let same = |(sequence, expected): (&crate::engine::serving::Sequence, &Vec<u32>)| {
        translation.all(expected).is_ok_and(|expected| expected == sequence.tokens)
    };
    let identical = chosen.sequences.iter().zip(&asked.greedy).filter(|pair| same(*pair)).count();
    figures.greedy_identical = identical as f64 / asked.greedy.len().max(1) as f64;
    Ok(figures)
}

/// From the baseline's ids to those of a package whose vocabulary was trimmed.
struct Translation<'a> {
    /// The old id of each new one.
    kept: Option<&'a [u32]>,
}

impl<'a> Translation<'a> {
    fn of(kept: Option<&'a [u32]>) -> Self {
        Self { kept }
    }

    fn all(&self, tokens: &[u32]) -> Result<Vec<u32>> {
        let Some(kept) = self.kept else { return Ok(tokens.to_vec()) };
        let new = |token: &u32| {
            // They ascend.
            kept.binary_search(token).map(|place| place as u32).map_err(|_| {
                lost(&format!("are to token {token}, which the trimmed vocabulary does not have"))
                    .hint("trim the vocabulary to the prompt's text, and take that text as the prompt")
            })
        };
        tokens.iter().map(new).collect()
    }

    fn kept_of(&self, logits: Vec<f32>) -> Vec<f32> {
        match self.kept {
            Some(kept) => kept.iter().map(|old| logits.get(*old as usize).copied().unwrap_or(f32::NAN)).collect(),
            None => logits,
        }
    }
}

impl Figures {
    /// KL(baseline ‖ optimized) in double precision, over every token of the vocabulary.
    fn add(&mut self, baseline: &[f32], own: &[f32]) -> Result<()> {
        let (p, q) = (Normaliser::of(baseline)?, Normaliser::of(own)?);
        self.tokens += 1;
        self.identical &= baseline.iter().zip(own).all(|(a, b)| a.to_bits() == b.to_bits());
        let mut kl = 0.0;
        for (&a, &b) in baseline.iter().zip(own) {
            let log_p = p.log_probability(a);
            kl += log_p.exp() * (log_p - q.log_probability(b));
            self.max_difference = self.max_difference.max((f64::from(a) - f64::from(b)).abs());
        }
        let kl = kl.max(0.0);
        self.kl_sum += kl;
        self.kl_max = self.kl_max.max(kl);
        self.same_choice += u64::from(argmax(baseline.into())? == argmax(own.into())?);
        Ok(())
    }

    /// Says them.
    ///
    /// # Errors
    /// A parent that no longer listens.
    pub fn report(&self, report: &Reporter) -> Result<()> {
        let count = self.tokens.max(1) as f64;
        report.fact("impact_compared_tokens", self.tokens)?;
        report.fact("impact_identical", self.identical)?;
        report.fact("impact_top1_agreement_share", self.same_choice as f64 / count)?;
        report.fact("impact_kl_divergence_mean", self.kl_sum / count)?;
        report.fact("impact_kl_divergence_max", self.kl_max)?;
        report.fact("impact_max_logit_difference", self.max_difference)?;
        report.fact("impact_greedy_identical_share", self.greedy_identical)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_two_positions() {
        let mut figures = Figures { identical: true, ..Figures::default() };
        figures.add(&[2.0, 1.0, 0.0], &[2.0, 1.0, 0.0]).unwrap();
        assert!(figures.identical && figures.kl_max == 0.0);
        figures.add(&[2.0, 1.0, 0.0], &[1.0, 2.0, 0.0]).unwrap();
        // p0 − p1 of the softmax of 2, 1, 0.
        let sum = 2.0_f64.exp() + 1.0_f64.exp() + 1.0;
        let kl = (2.0_f64.exp() - 1.0_f64.exp()) / sum;
        assert!((figures.kl_max - kl).abs() < 1e-6 && (figures.kl_sum - kl).abs() < 1e-6);
        assert!(!figures.identical && figures.same_choice == 1 && figures.max_difference == 1.0);
        assert!(figures.add(&[f32::NAN], &[0.0]).is_err());
    }

    #[test]
    fn a_trimmed_vocabulary_has_other_ids() {
        let kept = [0, 3, 7];
        let translation = Translation::of(Some(&kept));
        assert_eq!(translation.all(&[7, 0, 3]).unwrap(), [2, 0, 1]);
        assert!(translation.all(&[4]).unwrap_err().chain().contains("token 4"));
        assert_eq!(translation.kept_of((0..9).map(|n| n as f32).collect()), [0.0, 3.0, 7.0]);
        assert_eq!(Translation::of(None).all(&[9]).unwrap(), [9]);
    }
}
