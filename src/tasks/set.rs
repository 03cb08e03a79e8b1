//! A task set: all items, rendered.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::description::{Description, Form, ProgramRun, Settings};
use super::fewshot::Examples;
use super::records::{self, Record};
use super::render::Renderer;
use super::template::{self, Template};
use super::{Ask, Item, Kind, Stops};
use crate::cell::TaskRef;
use crate::digest;
use crate::error::{Context, Error, Result};
use crate::package::ChatTemplate;

/// A task set.
#[derive(Debug, Clone)]
pub struct TaskSet {
    /// The name in results.
    pub name: String,
    /// What its items ask.
    pub kind: Kind,
    /// The items.
    pub items: Vec<Item>,
    /// Examples before each.
    pub fewshot: usize,
    /// Whether prompts went through the chat template.
    pub chat: bool,
    /// Longest sequence in tokens; `None` is the model's context.
    pub max_length: Option<usize>,
    /// Where generated answers end.
    pub stops: Stops,
    /// Longest generated answer in tokens.
    pub max_tokens: usize,
    /// The figure that stands for the task.
    pub metric: &'static str,
    /// How programs are run; of the kind `code`.
    pub run: Option<ProgramRun>,
    /// First 16 digits of the SHA-256 over description, items, images and settings: equal ones ask the same.
    pub hash: String,
    pub(super) description: Description,
}

impl TaskSet {
    /// Reads and renders a task's items. `seed` draws examples; `template` is asked for only where prompts become
    /// chats.
    ///
    /// # Errors
    /// Descriptions, files and records that are wrong, with file and line; two items with one id; too few examples.
    pub fn load(task: &TaskRef, seed: u64, template: impl FnOnce() -> Result<ChatTemplate>) -> Result<Self> {
        Self::of(Description::open(&task.description)?, task, seed, template)
    }

    /// As [`TaskSet::load`], with the description at hand.
    ///
    /// # Errors
    /// As [`TaskSet::load`].
    pub fn of(
        description: Description,
        task: &TaskRef,
        seed: u64,
        template: impl FnOnce() -> Result<ChatTemplate>,
    ) -> Result<Self> {
        let settings = description.settings(task)?;
        let chat = settings.chat.then(template).transpose()?;
        let path = &settings.data;
        let limit = task.limit.map(|limit| limit as usize);

        let fewshot = &description.fewshot;
        let other = settings.examples.as_ref().filter(|other| *other != path && settings.fewshot > 0);
        // The items' own file gives examples too, and must be read far enough.
        let needed = match (limit, settings.fewshot, other) {
            (Some(limit), 0, _) | (Some(limit), _, Some(_)) => Some(limit),
            (Some(limit), count, None) if !fewshot.whole_file() => Some(limit.max(count + 1)),
            _ => None,
        };
        let records = records::read(path, needed)?;
        let others = match other {
            Some(other) => records::read(other, (!fewshot.whole_file()).then_some(settings.fewshot))
                .with_context(|| format!("the task `{}` has no examples", task.name))?,
            None => Vec::new(),
        };
        let environment = template::environment();
        let folder = std::path::absolute(path).with_context(|| format!("cannot find `{}`", path.display()))?;
        let folder = folder.parent().unwrap_or(Path::new("/"));
        let renderer = Renderer::new(&environment, &description, folder, records::unit(path), chat.as_ref())?;
        let at = |path: &Path, record: &Record| {
            format!("`{}`, {} {}, does not fit the task", path.display(), records::unit(path), record.number)
        };
        let mut examples = Examples {
            records: if other.is_some() { &others } else { &records },
            pools: HashMap::new(),
            path: other.unwrap_or(path),
            count: settings.fewshot,
            own: other.is_none(),
            seed: fewshot.random.then_some(seed),
        };
        if settings.fewshot > 0 {
            for (place, record) in examples.records.iter().enumerate() {
                let likeness = renderer.likeness(record).with_context(|| at(examples.path, record))?;
                examples.pools.entry(likeness).or_default().push(place);
            }
        }
        let mut items = Vec::new();
        let mut seen: HashMap<String, u64> = HashMap::new();
        for record in records.iter().take(limit.unwrap_or(usize::MAX)) {
            let mut before = Vec::with_capacity(settings.fewshot);
            let likeness = match settings.fewshot {
                0 => String::new(),
                _ => renderer.likeness(record).with_context(|| at(path, record))?,
            };
            for example in examples.of(record, &likeness)? {
                before.push(renderer.example(example).with_context(|| at(examples.path, example))?);
            }
            let item = renderer.item(record, &before).with_context(|| at(path, record))?;
            if let Some(first) = seen.insert(item.id.clone(), record.number) {
                let (unit, number) = (records::unit(path), record.number);
                return Err(Error::new(format!(
                    "`{}`: the items of {unit} {first} and {unit} {number} both have the id `{}`",
                    path.display(),
                    item.id
                ))
                .hint("ids tell items apart in results; `id` in the description may name another field"));
            }
            items.push(item);
        }

        let max_length = task.max_length.map(|length| length as usize);
        let max_tokens = settings.max_tokens;
        let hash = hash(&description, &items, &settings, max_length)?;
        Ok(Self {
            name: task.name.clone(),
            kind: description.kind,
            items,
            fewshot: settings.fewshot,
            chat: settings.chat,
            max_length,
            stops: Stops::new(&description.until),
            max_tokens,
            metric: description.metric,
            run: description.run.clone(),
            hash,
            description,
        })
    }

    /// What a right answer of the kind `generation` is compared as.
    ///
    /// # Errors
    /// A regular expression that needs too many steps.
    pub fn compared(&self, answer: &str) -> Result<String> {
        self.description.judging.right(answer)
    }

    /// The file that is run for an item of the kind `code` and what the model wrote, which is cut at its stop.
    ///
    /// # Errors
    /// An item of another kind; a template that names a field which the record lacks.
    pub fn program(&self, item: &Item, completion: &str) -> Result<String> {
        let (Form::Code { program, .. }, Ask::Code { record, .. }) = (&self.description.form, &item.ask) else {
            return Err(Error::new(format!("the item `{}` asks for no program", item.id)));
        };
        let mut fields = record.as_object().cloned().unwrap_or_default();
        fields.insert("completion".to_owned(), self.stops.apply(completion).into());
        let environment = template::environment();
        let template = Template::compile(&environment, "program", program).context("`program` does not parse")?;
        let text = template.render(&minijinja::Value::from_serialize(&fields));
        text.with_context(|| format!("cannot write the program of the item `{}`", item.id))
    }
}

/// First digits of the SHA-256 over everything that decides what is asked. Images count by their contents, paths do
/// not count.
fn hash(description: &Description, items: &[Item], settings: &Settings, max_length: Option<usize>) -> Result<String> {
    let mut digests: HashMap<&PathBuf, String> = HashMap::new();
    let mut text = serde_json::json!([description.source, settings.fewshot, settings.chat, max_length]).to_string();
    if settings.max_tokens != description.max_tokens {
        text.push_str(&format!("\nmax_tokens {}", settings.max_tokens));
    }
    for item in items {
        for image in &item.images {
            if !digests.contains_key(image) {
                let digest = digest::sha256_file(image);
                digests.insert(image, digest.with_context(|| format!("cannot read `{}`", image.display()))?);
            }
        }
        let images: Vec<_> = item.images.iter().map(|image| &digests[image]).collect();
        let ask = serde_json::to_string(&(&item.id, images, &item.ask)).context("an item is no JSON")?;
        text = digest::sha256(format!("{text}\n{ask}"));
    }
    Ok(digest::sha256(text)[..16].to_owned())
}
