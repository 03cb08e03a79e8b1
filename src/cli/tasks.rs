//! `ortbench tasks`: what task sets ask, without a model.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::cell::{TaskRef, TaskSource};
use crate::error::{Context, Error, Result};
use crate::package::{ChatTemplate, Package};
use crate::results::table::Table;
use crate::tasks::{Ask, Description, Item, TaskSet};

/// The options of `ortbench tasks`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The name of a ready description, or the file of one.
    task: Option<String>,
    /// The items' file: show how its first items are rendered.
    #[arg(long, value_name = "FILE", requires = "task")]
    data: Option<PathBuf>,
    /// The file that examples come from, where it is not the one that the description names.
    #[arg(long, value_name = "FILE", requires = "data")]
    examples: Option<PathBuf>,
    /// Items to show.
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Examples before each item, where it is not the description's count.
    #[arg(long, value_name = "COUNT")]
    fewshot: Option<u32>,
    /// Seed by which examples are drawn.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The model package whose chat template is used; without one, turns are marked by `<role>`.
    #[arg(long, value_name = "FOLDER")]
    package: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: Args) -> Result<ExitCode> {
    let text = match &args.task {
        None => list()?,
        Some(task) => match source(task) {
            TaskSource::Ready(name) if args.data.is_none() => {
                // An unknown name is refused with those that are known.
                Description::open(&TaskSource::Ready(name.clone()))?;
                Description::ready().find(|(ready, _)| *ready == name).map_or("", |(_, text)| *text).to_owned()
            }
            source => show(&args, source)?,
        },
    };
    write!(std::io::stdout().lock(), "{text}").context("cannot print")?;
    Ok(ExitCode::SUCCESS)
}

/// What a word on the command line means.
fn source(task: &str) -> TaskSource {
    let path = Path::new(task);
    let is_file = task.contains(['/', '\\']) || path.extension().is_some_and(|end| end == "yaml" || end == "yml");
    if is_file { TaskSource::File(path.to_owned()) } else { TaskSource::Ready(task.to_owned()) }
}

fn list() -> Result<String> {
    let mut table = Table::new(["name", "kind", "metric", "examples", ""].map(str::to_owned).to_vec());
    for (name, _) in Description::ready() {
        let description = Description::open(&TaskSource::Ready((*name).to_owned()))?;
        let examples = description.examples().to_string();
        let about = description.about.clone().unwrap_or_default();
        table.row(vec![description.name, description.kind.to_string(), description.metric.to_owned(), examples, about]);
    }
    Ok(table.to_string())
}

fn show(args: &Args, source: TaskSource) -> Result<String> {
    let description = Description::open(&source)?;
    if args.data.is_none() && description.data.is_none() {
        return Err(Error::new(format!("the description `{}` is valid and names no file of items", description.name))
            .hint("`--data FILE` names one whose first items are shown"));
    }
    let task = TaskRef {
        data: args.data.clone(),
        examples: args.examples.clone(),
        limit: Some(args.limit),
        fewshot: args.fewshot,
        ..TaskRef::new(&description.name, source)
    };
    let set = TaskSet::of(description, &task, args.seed, || match &args.package {
        Some(folder) => Package::open(folder)?.chat_template(),
        None => ChatTemplate::parse(TURNS.to_owned()),
    })?;
    let mut text = String::new();
    for item in &set.items {
        // Writing to a string cannot fail.
        let _ = write_item(&mut text, &set, item);
    }
    Ok(text)
}

/// Turns as they are marked without a model.
const TURNS: &str = "\
{% for message in messages %}<{{ message.role }}>
{% if message.content is string %}{{ message.content }}{% else %}
{% for part in message.content %}{{ part.text if part.type == 'text' else '<image>' }}{% endfor %}
{% endif %}

{% endfor %}
<assistant>
";

fn write_item(text: &mut String, set: &TaskSet, item: &Item) -> std::fmt::Result {
    writeln!(text, "item {}", item.id)?;
    for image in &item.images {
        writeln!(text, "  image {}", image.display())?;
    }
    match &item.ask {
        Ask::Choice { pairs, answer, .. } => {
            for (index, (context, continuation)) in pairs.iter().enumerate() {
                if index == 0 || *context != pairs[index - 1].0 {
                    write_text(text, context)?;
                }
                let mark = if index == *answer { '*' } else { ' ' };
                writeln!(text, "  {mark} {continuation:?}")?;
            }
        }
        Ask::Continuation { context, continuation } => {
            write_text(text, context)?;
            writeln!(text, "  * {continuation:?}")?;
        }
        Ask::Perplexity { text: scored, words, bytes } => {
            write_text(text, scored)?;
            writeln!(text, "  {words} words, {bytes} bytes")?;
        }
        Ask::Generation { context, answers } => {
            write_text(text, context)?;
            for answer in answers {
                writeln!(text, "  * {answer:?}")?;
                match set.compared(answer) {
                    Ok(compared) => writeln!(text, "    compared as: {compared}")?,
                    Err(error) => writeln!(text, "    {}", error.chain())?,
                }
            }
        }
        Ask::Code { context, .. } => {
            write_text(text, context)?;
            match set.program(item, "<completion>") {
                Ok(program) => {
                    writeln!(text, "  the program")?;
                    write_text(text, &program)?;
                }
                Err(error) => writeln!(text, "  {}", error.chain())?,
            }
        }
    }
    writeln!(text)
}

/// A text with a margin, so that its ends show.
fn write_text(text: &mut String, content: &str) -> std::fmt::Result {
    content.split('\n').try_for_each(|line| writeln!(text, "  |{line}"))
}
