//! What a model makes of a task set's items: log-likelihoods and texts, before anything judges them.

use std::ops::{ControlFlow, Range};
use std::path::PathBuf;

use crate::cell::Scoring;
use crate::engine::sampling::Sampling;
use crate::engine::scoring::{Budget, Group, Likelihood, Scorer, Size, batches, positions};
use crate::engine::{Model, Prompt, generate};
use crate::error::{Context, Error, Result};
use crate::package::Package;
use crate::probe;
use crate::tasks::{Ask, Encoder, Item, TaskSet};
use crate::vision::{self, Patches};

/// Items whose images are held at a time: an image's patches weigh more than its item.
const WITH_IMAGES: usize = 16;

/// A decoded image may take this part of the memory that there is.
const IMAGE_SHARE: u64 = 4;

/// A task set before a model.
#[derive(Debug)]
pub struct Answers<'a> {
    set: &'a TaskSet,
    package: &'a Package,
    model: &'a mut Model,
    scoring: Scoring,
    encoder: Encoder,
    budget: Budget,
    truncated: Truncated,
}

/// What was cut from the left to fit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Truncated {
    /// Requests.
    pub requests: u64,
    /// Items of which at least one request was cut.
    pub items: u64,
}

/// Groups of requests, and each item's places among them.
#[derive(Default)]
struct Requests {
    groups: Vec<Group>,
    /// Group and continuation of what belongs to an item, in its order.
    places: Vec<Vec<(usize, usize)>>,
}

impl<'a> Answers<'a> {
    /// The items of `set` for `model`, which was loaded from `package`.
    ///
    /// # Errors
    /// As [`Encoder::open`].
    pub fn new(set: &'a TaskSet, package: &'a Package, model: &'a mut Model, scoring: Scoring) -> Result<Self> {
        let encoder = Encoder::open(package, set.max_length)?;
        let budget = budget(model);
        Ok(Self { set, package, model, scoring, encoder, budget, truncated: Truncated::default() })
    }

    /// What was cut so far.
    pub fn truncated(&self) -> Truncated {
        self.truncated
    }

    /// How likely each continuation of each item is, or each window of each document, in order. `progress` gets the number
    /// of items done.
    ///
    /// # Errors
    /// An item that is not scored by log-likelihoods or does not fit the model, a failed run.
    pub fn likelihoods(&mut self, progress: &mut dyn FnMut(usize) -> Result<()>) -> Result<Vec<Vec<Likelihood>>> {
        let mut found = Vec::with_capacity(self.set.items.len());
        for slice in self.slices() {
            let mut requests = Requests::default();
            for item in &self.set.items[slice.clone()] {
                let asked = match &item.ask {
                    Ask::Choice { pairs, .. } => {
                        let pairs: Vec<(&str, &str)> = pairs.iter().map(|(a, b)| (&**a, b.as_str())).collect();
                        self.score(item, &pairs, &mut requests)
                    }
                    Ask::Continuation { context, continuation } => {
                        self.score(item, &[(context, continuation)], &mut requests)
                    }
                    Ask::Perplexity { text, .. } => self.read(text, &mut requests),
                    Ask::Generation { .. } | Ask::Code { .. } => Err(Error::new("it asks for a text")),
                };
                asked.with_context(|| self.in_item(item))?;
            }
            let all = requests.groups.iter().map(|group| group.continuations.len()).sum::<usize>().max(1);
            let mut scorer = Scorer::new(self.model, self.scoring, self.budget);
            let likelihoods =
                scorer.score(&requests.groups, &mut |done| progress(slice.start + slice.len() * done / all))?;
            let of_item = |places: Vec<(usize, usize)>| {
                places.into_iter().map(|(group, place)| likelihoods[group][place]).collect()
            };
            found.extend(requests.places.into_iter().map(of_item));
        }
        Ok(found)
    }

    /// What the model writes for each item: the most likely token each time, to the first stop, which is still there.
    /// `visit` gets item and text as they come.
    ///
    /// # Errors
    /// An item that asks for no text or does not fit the model, a failed run, what `visit` refuses.
    pub fn texts(&mut self, visit: &mut dyn FnMut(usize, &str) -> Result<()>) -> Result<()> {
        let set = self.set;
        for slice in self.slices() {
            let prompts: Vec<Prompt> = set.items[slice.clone()]
                .iter()
                .map(|item| self.written_after(item).with_context(|| self.in_item(item)))
                .collect::<Result<Vec<_>>>()?
                .into_iter()
                .map(|(prompt, cut)| {
                    self.truncated.requests += u64::from(cut);
                    self.truncated.items += u64::from(cut);
                    prompt
                })
                .collect();
            let model = &*self.model;
            let size = |prompt: &Prompt| {
                let tokens = prompt.tokens.len();
                Size { tokens, more: set.max_tokens, tail: positions(model, tokens, 1) }
            };
            let sizes: Vec<Size> = prompts.iter().map(size).collect();
            let budget = self.budget.of_way(self.scoring);
            let encoder = &self.encoder;
            for batch in batches(self.model, &sizes, budget) {
                let rows: Vec<Prompt> = batch.iter().map(|&index| prompts[index].clone()).collect();
                let mut written: Vec<Vec<u32>> = vec![Vec::new(); rows.len()];
                generate(self.model, &rows, set.max_tokens, &Sampling::GREEDY, |row, token| {
                    written[row].push(token);
                    let text = encoder.decode(&written[row])?;
                    Ok(if set.stops.cut(&text).is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
                })?;
                for (&index, tokens) in batch.iter().zip(&written) {
                    visit(slice.start + index, &encoder.decode(tokens)?)?;
                }
            }
        }
        Ok(())
    }

    /// All items at once, or a few at a time where they have images.
    fn slices(&self) -> Vec<Range<usize>> {
        let count = self.set.items.len();
        let images = self.set.items.iter().any(|item| !item.images.is_empty());
        let step = if images { WITH_IMAGES } else { count.max(1) };
        (0..count).step_by(step).map(|start| start..count.min(start + step)).collect()
    }

    /// Adds the continuations of an item, each behind its context; those with the same context form a group.
    fn score(&mut self, item: &Item, pairs: &[(&str, &str)], requests: &mut Requests) -> Result<()> {
        let images = self.images(item)?;
        let first = requests.groups.len();
        let mut contexts: Vec<Vec<u32>> = Vec::new();
        let mut places = Vec::with_capacity(pairs.len());
        let mut cut = 0;
        for &(context, continuation) in pairs {
            let request = self.encoder.pair(context, continuation)?;
            cut += u64::from(request.truncated);
            self.whole(&images, !request.truncated)?;
            let place = match contexts.iter().position(|known| *known == request.context) {
                Some(place) => place,
                None => {
                    let prompt = self.prompt(&request.context, &images)?;
                    requests.groups.push(Group { prompt, continuations: Vec::new() });
                    contexts.push(request.context);
                    contexts.len() - 1
                }
            };
            let Group { prompt, continuations } = &mut requests.groups[first + place];
            self.whole(&images, prompt.tokens.len() + request.continuation.len() <= self.encoder.max_length() + 1)?;
            places.push((first + place, continuations.len()));
            continuations.push(request.continuation);
        }
        requests.places.push(places);
        self.truncated.requests += cut;
        self.truncated.items += cut.min(1);
        Ok(())
    }

    /// Adds the windows of a document.
    fn read(&self, text: &str, requests: &mut Requests) -> Result<()> {
        let windows = self.encoder.windows(text)?;
        let first = requests.groups.len();
        requests.places.push((first..first + windows.len()).map(|group| (group, 0)).collect());
        requests.groups.extend(
            windows.into_iter().map(|request| Group {
                prompt: Prompt::text(request.context),
                continuations: vec![request.continuation],
            }),
        );
        Ok(())
    }

    /// The prompt that an item's text follows, and whether it was cut.
    fn written_after(&self, item: &Item) -> Result<(Prompt, bool)> {
        let (Ask::Generation { context, .. } | Ask::Code { context, .. }) = &item.ask else {
            return Err(Error::new("it asks for no text"));
        };
        let images = self.images(item)?;
        let (tokens, cut) = self.encoder.prompt(context, self.set.max_tokens)?;
        self.whole(&images, !cut)?;
        let prompt = self.prompt(&tokens, &images)?;
        self.whole(&images, prompt.tokens.len() + self.set.max_tokens <= self.encoder.max_length())?;
        Ok((prompt, cut))
    }

    /// Refuses to cut a prompt with images, whose tokens would go with what is cut. They count only once they are in
    /// their places, so that the encoder alone cannot tell.
    fn whole(&self, images: &[Patches], fits: bool) -> Result<()> {
        if fits || images.is_empty() {
            return Ok(());
        }
        let most = self.encoder.max_length();
        Err(Error::new(format!("with its images it has more than the {most} tokens that fit, and those are not cut"))
            .hint("make the images smaller, or leave the item out"))
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
        let open = |path: &PathBuf| {
            let picture = vision::open(path, limit)?;
            vision::preprocess(&picture, &spec).with_context(|| format!("cannot use the image `{}`", path.display()))
        };
        item.images.iter().map(open).collect()
    }

    fn in_item(&self, item: &Item) -> String {
        format!("the item `{}` of the task `{}` cannot be asked", item.id, self.set.name)
    }
}

/// Bounds of batches for what memory is left beside the loaded model.
pub(super) fn budget(model: &Model) -> Budget {
    let usable = probe::usable_memory_bytes().unwrap_or(u64::MAX);
    Budget::within(usable, model.manifest().shape.hidden_size)
}
