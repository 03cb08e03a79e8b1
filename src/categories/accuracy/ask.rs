//! Asks a task's items and judges the answers.

use std::time::Instant;

use serde_json::json;

use crate::cell::Scoring;
use crate::engine::Model;
use crate::error::{Error, Result};
use crate::package::Package;
use crate::protocol::Reporter;
use crate::sandbox::{Limits, Sandbox, Verdict};
use crate::tasks::{Kind, Scored, Scores, TaskSet};

use super::answers::{Answers, Truncated};

/// Asks the items of one task.
pub struct Asker<'a> {
    pub package: &'a Package,
    pub model: &'a mut Model,
    pub scoring: Scoring,
    pub sandbox: Option<&'a Sandbox>,
    pub report: &'a Reporter,
}

/// A task that was asked.
pub struct Asked {
    pub scored: Scored,
    /// What was cut to fit.
    pub truncated: Truncated,
    /// Wall time, without loading the tokenizer.
    pub seconds: f64,
}

impl Asker<'_> {
    /// Asks every item.
    ///
    /// # Errors
    /// Items that do not fit the model, a failed run.
    pub fn ask(self, set: &TaskSet) -> Result<Asked> {
        let (phase, of) = (format!("task {}", set.name), set.items.len() as u64);
        let mut answers = Answers::new(set, self.package, self.model, self.scoring)?;
        let start = Instant::now();
        let mut scores = Scores::new(set);
        match set.kind {
            Kind::Choice | Kind::Continuation | Kind::Perplexity => {
                let found = answers.likelihoods(&mut |done| self.report.progress(&phase, done as u64, of))?;
                for (index, found) in found.iter().enumerate() {
                    let values = found.iter().map(|likelihood| likelihood.log_likelihood);
                    match (set.kind, &found[..]) {
                        (Kind::Choice, _) => scores.choice(index, &values.collect::<Vec<f64>>())?,
                        (Kind::Continuation, [one]) => scores.continuation(index, one.log_likelihood, one.greedy)?,
                        _ => scores.perplexity(index, values.sum())?,
                    };
                }
            }
            Kind::Generation | Kind::Code => {
                let mut done = 0;
                answers.texts(&mut |index, text| {
                    judge(self.sandbox, set, index, text, &mut scores)?;
                    done += 1;
                    self.report.progress(&phase, done, of)
                })?;
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        Ok(Asked { scored: scores.finish()?, truncated: answers.truncated(), seconds })
    }
}

/// Judges a text. What was written, and how a program ended, stands in the process's log, one JSON object a line: a table
/// of numbers has no place for it.
fn judge(sandbox: Option<&Sandbox>, set: &TaskSet, index: usize, text: &str, scores: &mut Scores) -> Result<()> {
    let item = &set.items[index];
    if set.kind == Kind::Generation {
        let outcome = scores.generation(index, text)?;
        let (answer, right) = (&outcome.chosen, outcome.right);
        eprintln!("{}", json!({"task": set.name, "item": item.id, "text": text, "answer": answer, "right": right}));
        return Ok(());
    }
    let (Some(sandbox), Some(run)) = (sandbox, &set.run) else {
        return Err(Error::new(format!("the task `{}` has programs and no way to run them", set.name)));
    };
    let program = set.program(item, text)?;
    let limits =
        Limits { wall_seconds: run.seconds, memory_bytes: u64::from(run.memory_mib) << 20, ..Limits::default() };
    let ended = sandbox.run(&run.command, &run.file, &program, &limits)?;
    let (verdict, output) = (&ended.verdict, &ended.output);
    eprintln!("{}", json!({"task": set.name, "item": item.id, "text": text, "verdict": verdict, "output": output}));
    scores.code(index, ended.verdict == Verdict::Passed)?;
    Ok(())
}
