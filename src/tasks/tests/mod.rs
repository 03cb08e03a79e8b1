//! Whole task sets, from description and items to figures. `bad_input` has what is refused, `layouts` the ready ones.

mod bad_input;
mod harness;
mod layouts;
mod scores;

use std::fs;
use std::path::Path;

use super::*;
use crate::cell::{TaskRef, TaskSource};
use crate::error::{Error, Result};
use crate::package::ChatTemplate;

/// A task whose description and items stand in a folder as `task.yaml` and `items.jsonl`.
pub fn task(folder: &Path) -> TaskRef {
    TaskRef::new("demo", TaskSource::File(folder.join("task.yaml")))
}

pub fn write(description: &str, items: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("task.yaml"), description).unwrap();
    fs::write(folder.path().join("items.jsonl"), items).unwrap();
    folder
}

pub fn no_template() -> Result<ChatTemplate> {
    Err(Error::new("no chat was asked for"))
}

pub fn load(description: &str, items: &str) -> Result<TaskSet> {
    load_with(description, items, |_| {})
}

pub fn load_with(description: &str, items: &str, edit: impl FnOnce(&mut TaskRef)) -> Result<TaskSet> {
    let folder = write(description, items);
    let mut task = task(folder.path());
    edit(&mut task);
    TaskSet::load(&task, 7, || ChatTemplate::parse(CHAT.to_owned()))
}

pub const CHAT: &str =
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}</>{% endfor %}<assistant>\n";

pub const CHOICE: &str = "\
version: 1
name: capitals
kind: choice
data: items.jsonl
context: \"Q: {{ q }}\\nA:\"
choices: options
answer: label
";

pub const ITEMS: &str = "\
{\"q\": \"France?\", \"options\": [\"Paris\", \"Rome\"], \"label\": 0}
{\"q\": \"Italy?\", \"options\": [\"Paris\", \"Rome\"], \"label\": \"Rome\"}
{\"q\": \"Spain?\", \"options\": [\"Lima\", \"Madrid\", \"Oslo\"], \"label\": 1, \"id\": \"es\"}
";

fn pairs(item: &Item) -> (Vec<(String, String)>, &[String], usize) {
    match &item.ask {
        Ask::Choice { pairs, choices, answer } => {
            let pairs = pairs.iter().map(|(context, continuation)| (context.to_string(), continuation.clone()));
            (pairs.collect(), choices, *answer)
        }
        other => panic!("{other:?}"),
    }
}

/// The one context of an item.
fn context(item: &Item) -> &str {
    match &item.ask {
        Ask::Choice { pairs, .. } => &pairs[0].0,
        Ask::Continuation { context, .. } | Ask::Generation { context, .. } | Ask::Code { context, .. } => context,
        Ask::Perplexity { text, .. } => text,
    }
}

#[test]
fn choices_with_index_and_text_as_answers() {
    let set = load(CHOICE, ITEMS).unwrap();
    let ids: Vec<_> = set.items.iter().map(|item| item.id.as_str()).collect();
    assert_eq!(ids, ["line-1", "line-2", "es"]);
    let (first, choices, answer) = pairs(&set.items[0]);
    assert_eq!(first[1], ("Q: France?\nA:".to_owned(), " Rome".to_owned()));
    assert_eq!((choices[0].as_str(), answer), ("Paris", 0));
    assert_eq!((pairs(&set.items[1]).2, pairs(&set.items[2]).0.len()), (1, 3));
    assert_eq!((set.metric, set.fewshot, set.chat), ("acc", 0, false));
    let Ask::Choice { pairs, .. } = &set.items[2].ask else { panic!("no choice") };
    assert!(Arc::ptr_eq(&pairs[0].0, &pairs[2].0), "the context is held once");
}

#[test]
fn contexts_with_one_continuation() {
    let description = "version: 1\nname: w\nkind: choice\ndata: items.jsonl\ncontexts: '[before ~ a, before ~ b]'\n\
                       continuation: \"{{ after }}\"\nanswer: gold | int - 1\n";
    let item = "{\"before\": \"The \", \"a\": \"cat\", \"b\": \"dog\", \"after\": \"barks.\", \"gold\": \"2\"}\n";
    let set = load(description, item).unwrap();
    let (pairs, choices, answer) = pairs(&set.items[0]);
    assert_eq!(pairs[1], ("The dog".to_owned(), " barks.".to_owned()));
    assert_eq!((choices[0].as_str(), answer), ("The cat", 1));
    let mut scores = Scores::new(&set);
    scores.choice(0, &[-2.0, -1.0]).unwrap();
    let scored = scores.finish().unwrap();
    assert_eq!(scored.figures.keys().collect::<Vec<_>>(), ["acc"]);

    let examples = load_with(description, &item.repeat(2).replacen("barks", "runs", 1), |t| t.fewshot = Some(1));
    let first = examples.unwrap();
    assert_eq!(context(&first.items[0]), "The dog barks.\n\nThe cat");
}

#[test]
fn limits_and_examples() {
    let set = load_with(CHOICE, &format!("{ITEMS}nonsense\n"), |task| {
        task.limit = Some(2);
        task.fewshot = Some(2);
    });
    let set = set.unwrap();
    assert_eq!(set.items.len(), 2);
    assert_eq!(context(&set.items[1]), "Q: France?\nA: Paris\n\nQ: Spain?\nA: Madrid\n\nQ: Italy?\nA:");
    // Nothing behind what is needed is read: the fourth line is no JSON.
    assert!(load(CHOICE, &format!("{ITEMS}nonsense\n")).is_err());
}

#[test]
fn examples_from_a_file_of_their_own_and_a_preamble() {
    let description = format!(
        "{CHOICE}preamble: \"On {{{{ q }}}}:\\n\"\ndelimiter: \"\"\n\
         fewshot: {{count: 1, data: more.jsonl, separator: \"\\n\"}}\n"
    );
    let folder = write(&description, ITEMS);
    fs::write(folder.path().join("more.jsonl"), "{\"q\": \"Peru?\", \"options\": [\"Lima\", \"X\"], \"label\": 0}")
        .unwrap();
    let set = TaskSet::load(&task(folder.path()), 0, no_template).unwrap();
    assert_eq!(context(&set.items[0]), "On France?:\nQ: Peru?\nA:Lima\nQ: France?\nA:");
    assert_eq!(pairs(&set.items[0]).0[0].1, "Paris");
    // The matrix may name another file.
    fs::write(folder.path().join("its.jsonl"), "{\"q\": \"Chad?\", \"options\": [\"X\", \"Y\"], \"label\": 1}")
        .unwrap();
    let mut task = task(folder.path());
    task.examples = Some(folder.path().join("its.jsonl"));
    let its = TaskSet::load(&task, 0, no_template).unwrap();
    assert_eq!(context(&its.items[0]), "On France?:\nQ: Chad?\nA:Y\nQ: France?\nA:");
    assert_ne!(its.hash, set.hash);
    task.fewshot = Some(0);
    let error = TaskSet::load(&task, 0, no_template).unwrap_err();
    assert!(error.to_string().starts_with("the task `demo` takes no examples, and `"), "{error}");
}

#[test]
fn examples_are_like_their_item() {
    let description = format!("{CHOICE}fewshot: {{count: 1, like: region}}\n");
    let regions = ["a", "b", "a", "b"].iter().enumerate();
    let items: String = regions
        .map(|(n, at)| format!("{{\"q\": \"{n}\", \"options\": [\"x\", \"y\"], \"label\": 0, \"region\": \"{at}\"}}\n"))
        .collect();
    let set = load_with(&description, &items, |task| task.limit = Some(2)).unwrap();
    let first = |n: usize| context(&set.items[n]).lines().next().unwrap().to_owned();
    assert_eq!([first(0), first(1)], ["Q: 2", "Q: 3"]);
    let lone = items.replacen("\"b\"", "\"c\"", 1);
    let error = load(&description, &lone).unwrap_err().to_string();
    assert!(
        error.starts_with("line 2 needs 1 examples, and `") && error.ends_with("0 other records of `c`"),
        "{error}"
    );
    let error = load(&description, ITEMS).unwrap_err().chain();
    assert!(error.contains("the expression `like` names `region`"), "{error}");
}

#[test]
fn drawn_examples_do_not_depend_on_the_limit() {
    let description = format!("{CHOICE}fewshot: {{count: 2, sampler: random}}\n");
    let items: String =
        (0..30).map(|n| format!("{{\"q\": \"{n}\", \"options\": [\"a\", \"b\"], \"label\": 0}}\n")).collect();
    let whole = load(&description, &items).unwrap();
    let part = load_with(&description, &items, |task| task.limit = Some(3)).unwrap();
    assert_eq!(whole.items[..3], part.items);
    assert_ne!(context(&whole.items[0]).replace("Q: 0", ""), context(&whole.items[1]).replace("Q: 1", ""));
    assert_ne!(whole.hash, part.hash);
}

#[test]
fn examples_in_a_chat_are_turns_or_stand_in_the_items_turn() {
    let description = format!("{CHOICE}chat: true\nsystem: Be brief.\npreamble: Capitals.\n");
    let set = load_with(&description, ITEMS, |task| task.fewshot = Some(1)).unwrap();
    let system = "<system>Be brief.\n\nCapitals.</>";
    let turns = "<user>Q: France?\nA:</><assistant>Paris</><user>Q: Italy?\nA:</><assistant>";
    assert_eq!(context(&set.items[1]), format!("{system}{turns}"));
    // The answer begins the assistant's turn without delimiter.
    assert_eq!(pairs(&set.items[1]).0[0].1, "Paris");
    let one = format!("{description}fewshot: {{count: 1, turns: false}}\n");
    let turn = "<user>Q: France?\nA: Paris\n\nQ: Italy?\nA:</><assistant>";
    assert_eq!(context(&load(&one, ITEMS).unwrap().items[1]), format!("{system}{turn}"));
    let plain = load_with(&description, ITEMS, |task| task.chat = Some(false)).unwrap();
    assert_eq!(context(&plain.items[0]), "Capitals.Q: France?\nA:");
}

#[test]
fn chats_with_examples_are_those_of_the_harness() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let golden = fs::read_to_string(root.join("tests/data/harness/golden.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_str(&golden).unwrap();
    let template = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n\
                    {% endfor %}<|im_start|>assistant\n\n";
    for (name, turns) in [("chat-2-shot", true), ("chat-2-shot-in-one-turn", false)] {
        let case = golden["cases"].as_array().unwrap().iter().find(|case| case["name"] == name).unwrap();
        let expected: Vec<(String, String)> = serde_json::from_value(case["first_requests"].clone()).unwrap();
        let text = format!(
            "version: 1\nname: x\nkind: choice\ncontext: \"{{{{ context }}}}\"\nchoices: choices\nanswer: answer\n\
             fewshot: {{count: 2, separator: \"\\n\", turns: {turns}}}\nchat: true\n"
        );
        let description = Description::parse("x", None, &text).unwrap();
        let task = TaskRef { data: Some(root.join("tests/data/harness/chat.jsonl")), ..task(root) };
        let set = TaskSet::of(description, &task, 0, || ChatTemplate::parse(template.to_owned())).unwrap();
        assert_eq!(pairs(&set.items[0]).0, expected, "{name}");
    }
}

pub const CONTINUATION: &str = "\
version: 1
name: last
kind: continuation
data: items.jsonl
context: \"{{ start }}\"
continuation: \"{{ last }}\"
";

#[test]
fn a_continuation_stands_behind_its_context_and_in_examples() {
    let items = "{\"start\": \"one two\", \"last\": \"three\"}\n{\"start\": \"a b\", \"last\": \"c\"}\n";
    let set = load_with(CONTINUATION, items, |task| task.fewshot = Some(1)).unwrap();
    let ask = |context: &str, continuation: &str| Ask::Continuation {
        context: context.to_owned(),
        continuation: continuation.to_owned(),
    };
    assert_eq!((&set.items[1].ask, set.metric), (&ask("one two three\n\na b", " c"), "acc"));
    let chat = load_with(CONTINUATION, items, |task| task.chat = Some(true)).unwrap();
    assert_eq!(chat.items[0].ask, ask("<user>one two</><assistant>", "three"));
}

#[test]
fn perplexity_counts_the_original() {
    let description = "version: 1\nname: p\nkind: perplexity\ndata: items.jsonl\ntext: \"{{ page.strip() }}\"\n\
                       original: \"{{ page }}\"\n";
    let set = load(description, "{\"page\": \" zwei Wörter \"}\n").unwrap();
    let ask = Ask::Perplexity { text: "zwei Wörter".to_owned(), words: 4, bytes: 14 };
    assert_eq!((&set.items[0].ask, set.metric), (&ask, "word_perplexity"));
}

#[test]
fn programs_are_made_of_record_and_completion() {
    let description = "version: 1\nname: c\nkind: code\ndata: items.jsonl\ncontext: \"{{ prompt }}\"\nid: task\n\
                       program: \"{{ prompt }}{{ completion }}\\n{{ test }}\\n\"\nuntil: [\"\\ndef\"]\n";
    let set = load(description, "{\"prompt\": \"def f():\\n\", \"test\": \"f()\", \"task\": \"t/0\"}\n").unwrap();
    let program = set.program(&set.items[0], "    return '<b>'\ndef g(): pass").unwrap();
    assert_eq!(program, "def f():\n    return '<b>'\nf()\n");
    let run = set.run.unwrap();
    assert_eq!((run.file.as_str(), run.seconds, run.memory_mib), ("main.py", 10.0, 512));
    assert_eq!(run.command, ["python3", "-I", "main.py"]);
    assert_eq!(set.items[0].id, "t/0");
}

#[test]
fn images_are_found_beside_the_items() {
    let description = format!("{CHOICE}images: '[picture, other]'\n");
    let item = ITEMS.lines().next().unwrap().replace('}', ", \"picture\": \"a.png\", \"other\": null}");
    let folder = write(&description, &item);
    fs::write(folder.path().join("a.png"), "one").unwrap();
    let set = TaskSet::load(&task(folder.path()), 0, no_template).unwrap();
    assert_eq!(set.items[0].images, [folder.path().join("a.png")]);
    // The picture's content is part of what is asked.
    fs::write(folder.path().join("a.png"), "two").unwrap();
    assert_ne!(TaskSet::load(&task(folder.path()), 0, no_template).unwrap().hash, set.hash);
}

#[test]
fn equal_hashes_ask_the_same() {
    let hash = |edit: fn(&mut TaskRef)| load_with(CHOICE, ITEMS, edit).unwrap().hash;
    let plain = hash(|_| {});
    assert_eq!(plain, hash(|_| {}), "folders do not count");
    assert_eq!(plain.len(), 16);
    assert_ne!(plain, hash(|task| task.limit = Some(2)));
    assert_ne!(plain, hash(|task| task.fewshot = Some(1)));
    assert_ne!(plain, hash(|task| task.chat = Some(true)));
    assert_ne!(plain, hash(|task| task.max_length = Some(100)));
}

#[test]
fn the_matrix_bounds_answers() {
    let generation = "version: 1\nname: g\nkind: generation\ndata: items.jsonl\ncontext: \"{{ q }}\"\nanswer: label\n";
    let load = |tokens: Option<u32>| load_with(generation, ITEMS, |task| task.max_tokens = tokens).unwrap();
    let [default, same, shorter] = [None, Some(256), Some(16)].map(load);
    assert_eq!([default.max_tokens, same.max_tokens, shorter.max_tokens], [256, 256, 16]);
    assert_eq!(default.hash, same.hash);
    assert_ne!(default.hash, shorter.hash, "an answer that is cut is another one");
}

#[test]
fn an_array_is_read_as_well() {
    let folder = write(CHOICE, "");
    let array = format!("[{}]", ITEMS.trim_end().replace('\n', ",\n"));
    fs::write(folder.path().join("items.json"), array).unwrap();
    let mut task = task(folder.path());
    task.data = Some(folder.path().join("items.json"));
    let ids: Vec<_> = TaskSet::load(&task, 0, no_template).unwrap().items.into_iter().map(|item| item.id).collect();
    assert_eq!(ids, ["record-1", "record-2", "es"]);
}
