//! Generation for a person: one prompt or several, tokens handed over as they come.

use std::ops::ControlFlow;

use crate::engine::decoder::Decoder;
use crate::engine::model::Model;
use crate::engine::prompt::Prompt;
use crate::engine::sampling::{Sampler, Sampling};
use crate::error::Result;

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The model chose a stop token, or the caller ended the row.
    Stop,
    /// The limit was reached.
    Length,
}

/// A generated sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    /// The new tokens, the stop token excluded.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub ended: Ended,
}

/// Generates up to `limit` tokens after each prompt. `on_token` gets each row's tokens as they come, and may end the row.
///
/// # Errors
/// Prompts beyond the context, a failed run, logits that are not finite.
pub fn generate(
    model: &mut Model,
    prompts: &[Prompt],
    limit: usize,
    sampling: &Sampling,
    mut on_token: impl FnMut(usize, u32) -> Result<ControlFlow<()>>,
) -> Result<Vec<Generation>> {
    sampling.check()?;
    let longest = prompts.iter().map(|prompt| prompt.tokens.len()).max().unwrap_or(0);
    let mut decoder = Decoder::new(model, prompts.len(), longest + limit)?;
    let features = model.see(prompts)?;
    decoder.prefill(model, prompts, &features)?;
    let mut sampler = Sampler::new(sampling.clone());
    let stops = model.manifest().tokens.eos.clone();
    let mut rows = vec![Generation { tokens: Vec::new(), ended: Ended::Length }; prompts.len()];
    // A row that ended goes on being fed its stop token: a batch moves together.
    let mut next = vec![stops.first().copied().unwrap_or(0); prompts.len()];
    for count in 0..limit {
        for (row, generation) in rows.iter_mut().enumerate().filter(|(_, g)| g.ended == Ended::Length) {
            let token = sampler.choose(decoder.logits().row(row))?;
            next[row] = token;
            if stops.contains(&token) {
                generation.ended = Ended::Stop;
            } else {
                generation.tokens.push(token);
                if on_token(row, token)?.is_break() {
                    generation.ended = Ended::Stop;
                }
            }
        }
        if rows.iter().all(|row| row.ended == Ended::Stop) || count + 1 == limit {
            break;
        }
        decoder.step(model, &next)?;
    }
    Ok(rows)
}
