//! From a description as written to what it means: every value typed, every template parsed, all mistakes together.

use std::path::Path;

use fancy_regex::Regex;
use minijinja::{ErrorKind, UndefinedBehavior};
use serde_yaml::Spanned;

use super::answer::{Judging, Normalize, Step, Take};
use super::description::{Description, Fewshot, Form, Inputs, ProgramRun};
use super::written::{FewshotEntry, FewshotOrCount, NormalizeEntry, StepEntry, Written};
use super::{Kind, template};
use crate::yaml::{self, Problem, suggest};

/// The file format's version.
const VERSION: u32 = 1;

/// Figures that may stand for a task, the default first.
const CHOICE_METRICS: &[&str] = &["acc", "acc_norm", "acc_bytes"];
const CONTINUATION_METRICS: &[&str] = &["acc", "perplexity"];
const PERPLEXITY_METRICS: &[&str] = &["word_perplexity", "byte_perplexity", "bits_per_byte"];

/// Checks a description's text.
pub(super) fn check(folder: Option<&Path>, text: &str) -> Result<Description, Vec<Problem>> {
    if text.trim().is_empty() {
        return Err(vec![Problem::whole("it is empty; it needs at least `version`, `name` and `kind`")]);
    }
    let written: Written = yaml::read(text).map_err(|problem| vec![of_the_matrix(problem)])?;
    let mut checker = Checker { folder, problems: Vec::new(), environment: template::environment() };
    checker.environment.set_undefined_behavior(UndefinedBehavior::Chainable);
    let description = checker.file(&written, text);
    match description {
        Some(description) if checker.problems.is_empty() => Ok(description),
        _ => Err(checker.problems),
    }
}

/// A key that is unknown here because it is the matrix's.
fn of_the_matrix(mut problem: Problem) -> Problem {
    for key in ["max_length", "limit", "examples", "seed", "run_code"] {
        if problem.message.starts_with(&format!("unknown key `{key}`")) {
            let whose = if ["seed", "run_code"].contains(&key) { "`accuracy` in" } else { "the task in" };
            problem.message = format!("`{key}` belongs to {whose} the matrix");
        }
    }
    problem
}

struct Checker<'a> {
    folder: Option<&'a Path>,
    problems: Vec<Problem>,
    environment: minijinja::Environment<'static>,
}

impl Checker<'_> {
    fn problem<T>(&mut self, value: &Spanned<T>, message: impl Into<String>) {
        self.problems.push(Problem::at(value.referenced, message));
    }

    fn whole(&mut self, message: impl Into<String>) {
        self.problems.push(Problem::whole(message));
    }

    fn file(&mut self, file: &Written, text: &str) -> Option<Description> {
        if file.version.value != VERSION {
            self.problem(&file.version, format!("the version is {}, this program reads {VERSION}", file.version.value));
        }
        self.name(&file.name);
        let Ok(kind) = file.kind.value.parse::<Kind>() else {
            let near = suggest(&file.kind.value, Kind::NAMES);
            self.problem(&file.kind, format!("unknown kind `{}`{near}", file.kind.value));
            return None;
        };
        for (place, key, kinds) in file.keys_of_kinds() {
            if !kinds.contains(&kind) {
                let kinds: Vec<_> = kinds.iter().map(|kind| format!("`{kind}`")).collect();
                let message = format!("`{key}` belongs to the kind {}, and this is `{kind}`", kinds.join(" or "));
                self.problems.push(Problem::at(place, message));
            }
        }
        let form = self.form(file, kind);
        let metric = self.metric(file, kind);
        let description = Description {
            name: file.name.value.clone(),
            about: file.description.clone(),
            kind,
            data: file.data.as_ref().map(|data| self.path(&data.value)),
            metric,
            form: form?,
            id: self.expression(&file.id),
            images: self.expression(&file.images),
            delimiter: file.delimiter.as_ref().map_or_else(|| " ".to_owned(), |text| text.value.clone()),
            preamble: self.template(&file.preamble),
            fewshot: self.fewshot(file.fewshot.as_ref()),
            chat: file.chat.as_ref().is_some_and(|chat| chat.value),
            system: self.template(&file.system),
            until: self.until(file.until.as_ref()),
            max_tokens: self.count(&file.max_tokens, "max_tokens", 256, 1 << 20) as usize,
            judging: self.judging(file),
            run: (kind == Kind::Code).then(|| self.run(file)),
            source: text.to_owned(),
        };
        if kind == Kind::Code && description.fewshot.count > 0 && file.answer.is_none() {
            self.whole("examples need `answer`: a template of the program that stands in an example");
        }
        if description.images.is_some() && description.fewshot.count > 0 {
            self.whole("items with `images` cannot have examples (`fewshot`)");
        }
        Some(description)
    }

    fn form(&mut self, file: &Written, kind: Kind) -> Option<Form> {
        let context = self.template(&file.context);
        match kind {
            Kind::Choice => {
                let answer = self.expression(&file.answer);
                let (contexts, continuation) = (self.expression(&file.contexts), self.template(&file.continuation));
                let choices = self.expression(&file.choices);
                let inputs = match (&file.contexts, &file.context) {
                    (Some(both), Some(_)) => {
                        self.problem(
                            both,
                            "either `context` with `choices` or `contexts` with `continuation`, not both",
                        );
                        None
                    }
                    (Some(_), None) => {
                        if let Some(choices) = &file.choices {
                            self.problem(
                                choices,
                                "`choices` belongs to `context`; `contexts` are the choices themselves",
                            );
                        }
                        let continuation = self.needed("continuation", "`contexts`", &file.continuation, continuation);
                        contexts
                            .zip(continuation)
                            .map(|(contexts, continuation)| Inputs::Contexts { contexts, continuation })
                    }
                    (None, _) => {
                        if let Some(continuation) = &file.continuation {
                            self.problem(continuation, "`continuation` belongs to `contexts`, which is missing");
                        }
                        let context = self.needed("context", "the kind `choice`", &file.context, context);
                        let choices = self.needed("choices", "the kind `choice`", &file.choices, choices);
                        context.zip(choices).map(|(context, choices)| Inputs::Continuations { context, choices })
                    }
                };
                let answer = self.needed("answer", "the kind `choice`", &file.answer, answer);
                Some(Form::Choice { inputs: inputs?, answer: answer? })
            }
            Kind::Continuation => {
                let continuation = self.template(&file.continuation);
                let by = "the kind `continuation`";
                let context = self.needed("context", by, &file.context, context);
                let continuation = self.needed("continuation", by, &file.continuation, continuation);
                Some(Form::Continuation { context: context?, continuation: continuation? })
            }
            Kind::Perplexity => {
                let text = self.template(&file.text);
                let original = self.template(&file.original);
                let text = self.needed("text", "the kind `perplexity`", &file.text, text)?;
                Some(Form::Perplexity { text, original })
            }
            Kind::Generation => {
                let answer = self.expression(&file.answer);
                let context = self.needed("context", "the kind `generation`", &file.context, context);
                let answer = self.needed("answer", "the kind `generation`", &file.answer, answer);
                Some(Form::Generation { context: context?, answer: answer? })
            }
            Kind::Code => {
                let answer = self.template(&file.answer);
                let program = self.template(&file.program);
                let context = self.needed("context", "the kind `code`", &file.context, context);
                let program = self.needed("program", "the kind `code`", &file.program, program);
                Some(Form::Code { context: context?, program: program?, answer })
            }
        }
    }

    /// The value of a key that its company needs; silent where the value is there and is wrong.
    fn needed(
        &mut self,
        key: &str,
        by: &str,
        written: &Option<Spanned<String>>,
        value: Option<String>,
    ) -> Option<String> {
        if written.is_none() {
            self.whole(format!("the key `{key}` is missing, which {by} needs"));
        }
        value
    }

    fn metric(&mut self, file: &Written, kind: Kind) -> &'static str {
        let known = match kind {
            // Log-likelihoods of one continuation after several contexts have nothing to be divided by.
            Kind::Choice if file.contexts.is_some() => &CHOICE_METRICS[..1],
            Kind::Choice => CHOICE_METRICS,
            Kind::Continuation => CONTINUATION_METRICS,
            Kind::Perplexity => PERPLEXITY_METRICS,
            // A key of other kinds, which is said already.
            Kind::Generation => return "exact_match",
            Kind::Code => return "pass_at_1",
        };
        let Some(written) = &file.metric else { return known[0] };
        known.iter().find(|metric| **metric == written.value).copied().unwrap_or_else(|| {
            self.problem(written, format!("unknown metric `{}`{}", written.value, suggest(&written.value, known)));
            known[0]
        })
    }

    fn fewshot(&mut self, written: Option<&Spanned<FewshotOrCount>>) -> Fewshot {
        let default = FewshotEntry::default();
        let entry = match written.map(|written| (written, &written.value)) {
            Some((_, FewshotOrCount::Entry(entry))) => entry,
            Some((written, FewshotOrCount::Count(count))) => {
                self.problem(written, format!("`fewshot` is `{{count: {count}}}` here"));
                &default
            }
            None => &default,
        };
        let samplers = ["first", "random"];
        if let Some(sampler) = entry.sampler.as_ref().filter(|sampler| !samplers.contains(&sampler.value.as_str())) {
            let message = format!("unknown sampler `{}`{}", sampler.value, suggest(&sampler.value, &samplers));
            self.problem(sampler, message);
        }
        let count = entry.count.as_ref().map_or(0, |count| count.value);
        if let Some(written) = entry.count.as_ref().filter(|_| count > 1000) {
            self.problem(written, format!("`count` is {count}, not from 0 to 1000"));
        }
        Fewshot {
            count: count as usize,
            data: entry.data.as_ref().map(|data| self.path(&data.value)),
            separator: entry.separator.as_ref().map_or_else(|| "\n\n".to_owned(), |text| text.value.clone()),
            random: entry.sampler.as_ref().is_some_and(|sampler| sampler.value == "random"),
            turns: entry.turns.unwrap_or(true),
            like: self.expression(&entry.like),
        }
    }

    fn until(&mut self, written: Option<&Spanned<Vec<String>>>) -> Vec<String> {
        let Some(written) = written else { return vec!["\n\n".to_owned()] };
        if written.value.iter().any(String::is_empty) {
            self.problem(written, "a text of `until` is empty, at which every answer would end");
        }
        written.value.clone()
    }

    fn judging(&mut self, file: &Written) -> Judging {
        let steps = file.extract.iter().flat_map(|steps| &steps.value).filter_map(|step| self.step(step)).collect();
        let default = NormalizeEntry::default();
        let entry = file.normalize.as_ref().map_or(&default, |entry| &entry.value);
        let normalize = Normalize {
            remove: entry.remove.iter().filter_map(|pattern| self.regex(pattern)).collect(),
            ignore_case: entry.ignore_case.unwrap_or(false),
            ignore_punctuation: entry.ignore_punctuation.unwrap_or(false),
            strip: entry.strip.unwrap_or(true),
        };
        Judging { steps, normalize }
    }

    fn step(&mut self, step: &Spanned<StepEntry>) -> Option<Step> {
        let entry = &step.value;
        if let (Some(take), None) = (&entry.take, &entry.regex) {
            self.problem(take, "`take` belongs to a step with `regex`");
        }
        match (&entry.regex, &entry.remove, &entry.lowercase) {
            (Some(pattern), None, None) => {
                let words = ["first", "last"];
                let take = entry.take.as_ref().map_or("first", |take| take.value.as_str());
                if let Some(written) = entry.take.as_ref().filter(|_| !words.contains(&take)) {
                    self.problem(written, format!("unknown word `{take}`{}", suggest(take, &words)));
                }
                let take = if take == "last" { Take::Last } else { Take::First };
                self.regex(pattern).map(|regex| Step::Find(regex, take))
            }
            (None, Some(characters), None) => Some(Step::Remove(characters.value.clone())),
            (None, None, Some(lowercase)) => {
                if !lowercase.value {
                    self.problem(lowercase, "leave the step out instead of `lowercase: false`");
                }
                Some(Step::Lowercase)
            }
            _ => {
                self.problem(step, "a step of `extract` is exactly one of `regex`, `remove` and `lowercase`");
                None
            }
        }
    }

    fn run(&mut self, file: &Written) -> ProgramRun {
        let name = file.file.as_ref().map_or("main.py", |name| name.value.as_str());
        if let Some(written) =
            file.file.as_ref().filter(|_| name.is_empty() || name.contains('/') || name.starts_with('.'))
        {
            self.problem(written, format!("`file` is `{name}`, not the name of a file"));
        }
        let command = match &file.command {
            Some(command) => command.value.clone(),
            None => ["python3", "-I", name].map(str::to_owned).to_vec(),
        };
        if let Some(written) = file.command.as_ref().filter(|_| command.is_empty()) {
            self.problem(written, "`command` is empty");
        }
        let seconds = file.seconds.as_ref().map_or(10.0, |seconds| seconds.value);
        if let Some(written) = file.seconds.as_ref().filter(|_| !(0.1..=3600.0).contains(&seconds)) {
            self.problem(written, format!("`seconds` is {seconds}, not from 0.1 to 3600"));
        }
        let memory_mib = self.count(&file.memory_mib, "memory_mib", 512, 1 << 20);
        ProgramRun { file: name.to_owned(), command, seconds, memory_mib }
    }

    fn template(&mut self, written: &Option<Spanned<String>>) -> Option<String> {
        let written = written.as_ref()?;
        let tried = self.environment.template_from_str(&written.value).and_then(|template| template.render(()));
        self.parsed(written, "template", tried.err())
    }

    fn expression(&mut self, written: &Option<Spanned<String>>) -> Option<String> {
        let written = written.as_ref()?;
        if written.value.trim_start().starts_with("{{") {
            self.problem(written, "an expression stands without `{{` and `}}`");
            return None;
        }
        let tried = self.environment.compile_expression(&written.value).and_then(|expression| expression.eval(()));
        self.parsed(written, "expression", tried.err())
    }

    /// The text, unless trying it showed a mistake of its own. Names of filters come to light only when they are used;
    /// that the record is empty on which it was tried does not matter.
    fn parsed(&mut self, written: &Spanned<String>, what: &str, error: Option<minijinja::Error>) -> Option<String> {
        let Some(error) = error else { return Some(written.value.clone()) };
        let detail = error.detail().unwrap_or("its syntax is wrong");
        let message = match error.kind() {
            ErrorKind::SyntaxError => format!("the {what} does not parse: {detail}"),
            ErrorKind::UnknownFilter | ErrorKind::UnknownTest | ErrorKind::UnknownFunction => {
                format!("in the {what}, {detail}")
            }
            _ => return Some(written.value.clone()),
        };
        self.problem(written, message);
        None
    }

    fn regex(&mut self, written: &Spanned<String>) -> Option<Regex> {
        match Regex::new(&written.value) {
            Ok(regex) => Some(regex),
            Err(error) => {
                // The innermost error knows best; one that draws a picture has its words in the last line.
                let mut innermost: &dyn std::error::Error = &error;
                while let Some(source) = innermost.source() {
                    innermost = source;
                }
                let text = innermost.to_string();
                let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
                self.problem(written, format!("the regular expression `{}` is wrong: {reason}", written.value));
                None
            }
        }
    }

    fn count(&mut self, value: &Option<Spanned<u32>>, name: &str, default: u32, max: u32) -> u32 {
        let Some(value) = value else { return default };
        if !(1..=max).contains(&value.value) {
            self.problem(value, format!("`{name}` is {}, not from 1 to {max}", value.value));
        }
        value.value
    }

    fn name(&mut self, name: &Spanned<String>) {
        let text = &name.value;
        let valid = (1..=64).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        if !valid {
            let message = format!(
                "the task's name is `{text}`; it may hold up to 64 letters, digits, `.`, `_` and `-`, a letter or \
                 digit first"
            );
            self.problem(name, message);
        }
    }

    fn path(&self, text: &str) -> std::path::PathBuf {
        let folder = self.folder.unwrap_or(Path::new(""));
        match (text.strip_prefix("~/"), std::env::var_os("HOME")) {
            (Some(rest), Some(home)) => Path::new(&home).join(rest),
            _ => folder.join(text),
        }
    }
}
