//! Carries a task's items to the model and its answers back.

use std::ops::ControlFlow;

use crate::cell::Scoring;
use crate::engine::sampling::Sampling;
use crate::engine::scoring::{Budget, Group, Likelihood, Scorer, Size, batches};
use crate::engine::{Model, Prompt, generate};
use crate::error::{Context, Error, Result};
use crate::package::Package;
use crate::probe;
use crate::protocol::Reporter;
use crate::sandbox::{Limits, Sandbox, Verdict};
use crate::tasks::{Ask, Encoder, Item, Kind, Scored, Scores, TaskSet};
use crate::vision::{self, Patches};

/// Items whose images are held at a time: an image's patches weigh more than its item.
const WITH_IMAGES: usize = 16;

/// A decoded image may take this part of the memory that there is.
const IMAGE_SHARE: u64 = 4;

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
    /// Requests whose context was cut.
    pub truncated: u64,
}

impl Asker<'_> {
    /// Asks every item.
    ///
    /// # Errors
    /// Items that do not fit the model, a failed run.
    pub fn ask(&mut self, set: &TaskSet) -> Result<Asked> {
        let encoder = Encoder::open(self.package, set.max_length)?;
        let mut scores = Scores::new(set);
        let mut truncated = 0;
        let slice = if set.items.iter().any(|item| !item.images.is_empty()) { WITH_IMAGES } else { usize::MAX };
        let mut start = 0;
        while start < set.items.len() {
            let end = set.items.len().min(start.saturating_add(slice));
            let items = start..end;
            truncated += match set.kind {
                Kind::Choice | Kind::Continuation => self.choose(set, &encoder, items, &mut scores)?,
                Kind::Perplexity => self.read(set, &encoder, items, &mut scores)?,
                Kind::Generation | Kind::Code => self.write(set, &encoder, items, &mut scores)?,
            };
            start = end;
        }
        Ok(Asked { scored: scores.finish()?, truncated })
    }

    /// Scores given continuations; pairs of one item with the same context form a group.
    fn choose(
        &mut self,
        set: &TaskSet,
        encoder: &Encoder,
        items: std::ops::Range<usize>,
        scores: &mut Scores,
    ) -> Result<u64> {
        let mut groups: Vec<Group> = Vec::new();
        // Group and continuation of each item's pairs.
        let mut places: Vec<Vec<(usize, usize)>> = Vec::with_capacity(items.len());
        let mut truncated = 0;
        for item in &set.items[items.clone()] {
            let pairs: Vec<(&str, &str)> = match &item.ask {
                Ask::Choice { pairs, .. } => {
                    pairs.iter().map(|(context, choice)| (&**context, choice.as_str())).collect()
                }
                Ask::Continuation { context, continuation } => vec![(context, continuation)],
                _ => return Err(other_kind(item)),
            };
            let images = self.images(item)?;
            let first = groups.len();
            let mut contexts: Vec<Vec<u32>> = Vec::new();
            let mut found = Vec::with_capacity(pairs.len());
            for (context, continuation) in pairs {
                let request = encoder.pair(context, continuation).with_context(|| in_item(set, item))?;
                truncated += u64::from(request.truncated);
                let whole = |fits: bool| whole(&images, fits, encoder).with_context(|| in_item(set, item));
                whole(!request.truncated)?;
                let place = match contexts.iter().position(|known| *known == request.context) {
                    Some(place) => place,
                    None => {
                        let prompt = self.prompt(&request.context, &images).with_context(|| in_item(set, item))?;
                        groups.push(Group { prompt, continuations: Vec::new() });
                        contexts.push(request.context);
                        contexts.len() - 1
                    }
                };
                let Group { prompt, continuations } = &mut groups[first + place];
                whole(prompt.tokens.len() + request.continuation.len() <= encoder.max_length() + 1)?;
                found.push((first + place, continuations.len()));
                continuations.push(request.continuation);
            }
            places.push(found);
        }
        let likelihoods = self.score(set, &groups, items.start)?;
        for (index, places) in items.zip(places) {
            let found: Vec<Likelihood> = places.iter().map(|&(group, place)| likelihoods[group][place]).collect();
            match (set.kind, &found[..]) {
                (Kind::Continuation, &[Likelihood { log_likelihood, greedy }]) => {
                    scores.continuation(index, log_likelihood, greedy)?
                }
                _ => {
                    let values: Vec<f64> = found.iter().map(|likelihood| likelihood.log_likelihood).collect();
                    scores.choice(index, &values)?
                }
            };
        }
        Ok(truncated)
    }

    /// Scores whole documents, window by window.
    fn read(
        &mut self,
        set: &TaskSet,
        encoder: &Encoder,
        items: std::ops::Range<usize>,
        scores: &mut Scores,
    ) -> Result<u64> {
        let mut groups = Vec::new();
        let mut windows = Vec::with_capacity(items.len());
        for item in &set.items[items.clone()] {
            let Ask::Perplexity { text, .. } = &item.ask else { return Err(other_kind(item)) };
            let requests = encoder.windows(text).with_context(|| in_item(set, item))?;
            windows.push(groups.len()..groups.len() + requests.len());
            groups.extend(requests.into_iter().map(|request| Group {
                prompt: Prompt::text(request.context),
                continuations: vec![request.continuation],
            }));
        }
        let likelihoods = self.score(set, &groups, items.start)?;
        for (index, windows) in items.zip(windows) {
            let document = likelihoods[windows].iter().flatten().map(|likelihood| likelihood.log_likelihood).sum();
            scores.perplexity(index, document)?;
        }
        Ok(0)
    }

    fn score(&mut self, set: &TaskSet, groups: &[Group], before: usize) -> Result<Vec<Vec<Likelihood>>> {
        let (report, phase) = (self.report, format!("task {}", set.name));
        let all = groups.iter().map(|group| group.continuations.len()).sum::<usize>().max(1);
        let (items, of) = (set.items.len() - before, set.items.len() as u64);
        let mut progress = |done: usize| report.progress(&phase, (before + items * done / all) as u64, of);
        Scorer::new(self.model, self.scoring, Budget::default()).score(groups, &mut progress)
    }

    /// Lets the model write: the most likely token each time, up to a stop.
    fn write(
        &mut self,
        set: &TaskSet,
        encoder: &Encoder,
        items: std::ops::Range<usize>,
        scores: &mut Scores,
    ) -> Result<u64> {
        let mut prompts = Vec::with_capacity(items.len());
        let mut truncated = 0;
        for item in &set.items[items.clone()] {
            let (Ask::Generation { context, .. } | Ask::Code { context, .. }) = &item.ask else {
                return Err(other_kind(item));
            };
            let images = self.images(item)?;
            let (tokens, cut) = encoder.prompt(context, set.max_tokens).with_context(|| in_item(set, item))?;
            truncated += u64::from(cut);
            let whole = |fits: bool| whole(&images, fits, encoder).with_context(|| in_item(set, item));
            whole(!cut)?;
            let prompt = self.prompt(&tokens, &images).with_context(|| in_item(set, item))?;
            whole(prompt.tokens.len() + set.max_tokens <= encoder.max_length())?;
            prompts.push(prompt);
        }
        let sizes: Vec<Size> = prompts
            .iter()
            .map(|prompt| {
                let tokens = prompt.tokens.len();
                Size { tokens, capacity: tokens + set.max_tokens, tail: 1 }
            })
            .collect();
        let budget = match self.scoring {
            Scoring::Batched => Budget::default(),
            Scoring::OneByOne => Budget { rows: 1, ..Budget::default() },
        };
        let mut done = items.start as u64;
        for batch in batches(self.model, &sizes, budget) {
            let rows: Vec<Prompt> = batch.iter().map(|&index| prompts[index].clone()).collect();
            let mut written: Vec<Vec<u32>> = vec![Vec::new(); rows.len()];
            generate(self.model, &rows, set.max_tokens, &Sampling::GREEDY, |row, token| {
                written[row].push(token);
                let text = encoder.decode(&written[row])?;
                Ok(if set.stops.cut(&text).is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
            for (&index, tokens) in batch.iter().zip(&written) {
                self.judge(set, items.start + index, &encoder.decode(tokens)?, scores)?;
            }
            done += batch.len() as u64;
            self.report.progress(&format!("task {}", set.name), done, set.items.len() as u64)?;
        }
        Ok(truncated)
    }

    fn judge(&self, set: &TaskSet, index: usize, text: &str, scores: &mut Scores) -> Result<()> {
        if set.kind == Kind::Generation {
            scores.generation(index, text)?;
            return Ok(());
        }
        let (Some(sandbox), Some(run)) = (self.sandbox, &set.run) else {
            return Err(Error::new(format!("the task `{}` has programs and no way to run them", set.name)));
        };
        let program = set.program(&set.items[index], text)?;
        let limits =
            Limits { wall_seconds: run.seconds, memory_bytes: u64::from(run.memory_mib) << 20, ..Limits::default() };
        let ended = sandbox.run(&run.command, &run.file, &program, &limits)?;
        scores.code(index, ended.verdict == Verdict::Passed)?;
        Ok(())
    }

    /// The prompt's tokens, with the images in their places.
    fn prompt(&self, tokens: &[u32], images: &[Patches]) -> Result<Prompt> {
        match &self.package.manifest.image {
            Some(image) if !images.is_empty() => Prompt::with_images(tokens, images.to_vec(), image),
            _ => Ok(Prompt::text(tokens.to_vec())),
        }
    }

    fn images(&self, item: &Item) -> Result<Vec<Patches>> {
        if item.images.is_empty() {
            return Ok(Vec::new());
        }
        let image = self.package.manifest.image.as_ref().ok_or_else(|| self.package.takes_no_images())?;
        let (spec, limit) = (image.spec(), probe::usable_memory_bytes().unwrap_or(u64::MAX) / IMAGE_SHARE);
        let open = |path: &std::path::PathBuf| {
            let picture = vision::open(path, limit)?;
            vision::preprocess(&picture, &spec).with_context(|| format!("cannot use the image `{}`", path.display()))
        };
        item.images.iter().map(open).collect()
    }
}

/// Refuses to cut a prompt with images, whose tokens would go with what is cut. They count only once they are in their
/// places, so that the encoder alone cannot tell.
fn whole(images: &[Patches], fits: bool, encoder: &Encoder) -> Result<()> {
    if fits || images.is_empty() {
        return Ok(());
    }
    let most = encoder.max_length();
    Err(Error::new(format!("with its images it has more than the {most} tokens that fit, and those are not cut"))
        .hint("raise the task's `max_length`, make the images smaller, or leave the item out"))
}

fn in_item(set: &TaskSet, item: &Item) -> String {
    format!("the item `{}` of the task `{}` cannot be asked", item.id, set.name)
}

fn other_kind(item: &Item) -> Error {
    Error::new(format!("the item `{}` is of another kind than its task", item.id))
}
