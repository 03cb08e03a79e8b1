//! What is refused, and how it is said. The snapshots are what users read.

use proptest::prelude::*;

use super::*;

fn told(error: &Error) -> String {
    match error.find_hint() {
        Some(hint) => format!("{}\nhint: {hint}", error.chain()),
        None => error.chain(),
    }
}

/// The messages of cases, one after the other; folders have no name of their own.
fn messages<'a>(cases: impl IntoIterator<Item = (&'a str, String)>) -> String {
    cases.into_iter().map(|(case, message)| format!("--- {case}\n{message}\n")).collect()
}

fn described(text: &str) -> String {
    told(&Description::parse("task.yaml", Some(Path::new("/tasks")), text).expect_err(text))
}

/// What is said of these items, `{folder}` for their folder.
fn refused(description: &str, items: impl AsRef<[u8]>, edit: impl FnOnce(&mut TaskRef)) -> String {
    let folder = write(description, "");
    fs::write(folder.path().join("items.jsonl"), items).unwrap();
    let mut task = task(folder.path());
    edit(&mut task);
    let error = TaskSet::load(&task, 7, no_template).expect_err("the items are wrong");
    told(&error).replace(&folder.path().display().to_string(), "{folder}")
}

#[test]
fn descriptions() {
    let with = |line: &str| format!("{CHOICE}{line}\n");
    let generation = "version: 1\nname: g\nkind: generation\ncontext: \"{{ q }}\"\nanswer: a\n";
    let code = "version: 1\nname: c\nkind: code\ncontext: \"{{ q }}\"\nprogram: \"{{ completion }}\"\n";
    let cases = [
        ("empty", described(" \n")),
        ("unknown key", described(&with("fewshots: 3"))),
        ("a key of the matrix", described(&with("max_length: 64"))),
        ("a key of its section", described(&with("run_code: true"))),
        ("examples as the matrix has them", described(&with("fewshot: 5"))),
        ("no truth value", described(&with("chat: 1"))),
        ("unknown key within", described(&with("fewshot: {size: 3}"))),
        ("missing kind", described("version: 1\nname: x\n")),
        ("unknown kind", described("version: 1\nname: x\nkind: choise\n")),
        (
            "another version, a bad name",
            described(&CHOICE.replace("version: 1", "version: 2").replace("capitals", "a/b")),
        ),
        ("keys of other kinds", described(&with("until: [x]\nprogram: x\ntext: x"))),
        ("missing keys", described("version: 1\nname: x\nkind: choice\n")),
        ("both forms", described(&with("contexts: x\ncontinuation: y"))),
        ("choices beside contexts", described(&with("contexts: x").replace("context:", "continuation:"))),
        ("keys of a continuation", described("version: 1\nname: x\nkind: continuation\nanswer: a\nmetric: acc_norm\n")),
        ("continuation alone", described(&with("continuation: y"))),
        ("a list for an expression", described(&CHOICE.replace("options", "[a, b]"))),
        ("braces around an expression", described(&CHOICE.replace("options", "\"{{ options }}\""))),
        ("a broken template", described(&CHOICE.replace("{{ q }}", "{{ q"))),
        ("an unknown filter", described(&CHOICE.replace("label", "label | nit"))),
        ("a broken expression", described(&CHOICE.replace("options", "options.[0]"))),
        ("unknown metric", described(&with("metric: acc_nrom"))),
        ("metric of another kind", described(&format!("{generation}metric: acc\n"))),
        ("a regular expression", described(&format!("{generation}extract: [{{regex: '(a'}}]\n"))),
        ("another one", described(&format!("{generation}normalize: {{remove: ['[z-a]']}}\n"))),
        (
            "steps",
            described(&format!(
                "{generation}extract: [{{regex: a, remove: b}}, {{take: last}}, {{regex: a, take: all}}]\n"
            )),
        ),
        ("an empty stop", described(&format!("{generation}until: ['x', '']\n"))),
        ("too few tokens", described(&format!("{generation}max_tokens: 0\n"))),
        ("limits", described(&format!("{code}seconds: 0\nmemory_mib: 0\nfile: ../x\ncommand: []\n"))),
        ("examples of code without answer", described(&format!("{code}fewshot: {{count: 1}}\n"))),
        ("examples with images", described(&with("images: a\nfewshot: {count: 1}"))),
        ("sampler", described(&with("fewshot: {sampler: radnom, count: 9999}"))),
    ];
    insta::assert_snapshot!(messages(cases));
}

fn folder_of(task: &TaskRef) -> std::path::PathBuf {
    let TaskSource::File(description) = &task.description else { panic!("{task:?}") };
    description.parent().unwrap().to_owned()
}

#[test]
fn items() {
    let item = |options: &str, label: &str| format!("{{\"q\": \"?\", \"options\": {options}, \"label\": {label}}}\n");
    let plain = |items: &str| refused(CHOICE, items, |_| {});
    let good = ITEMS.lines().next().unwrap().to_owned() + "\n";
    let images = format!("{CHOICE}images: picture\n");
    let cases = [
        ("malformed", plain(&format!("{good}\n{{\"q\": \"?\", \"options\": [\"a\" \"b\"]}}\n"))),
        ("no object", plain(&format!("{good}\"text\"\n"))),
        ("empty file", plain("\n\n")),
        ("not UTF-8", refused(CHOICE, [good.as_bytes(), b"{\"q\": \"\xe9\"}"].concat(), |_| {})),
        ("UTF-16", refused(CHOICE, b"\xff\xfe{\0}\0", |_| {})),
        ("gzip", refused(CHOICE, b"\x1f\x8b\x08\0", |_| {})),
        ("Parquet", refused(CHOICE, b"PAR1\x15\x04", |_| {})),
        ("zip", refused(CHOICE, b"PK\x03\x04\x14", |_| {})),
        ("a folder", refused(CHOICE, "", |task| task.data = Some(folder_of(task)))),
        ("missing field in a template", plain(&format!("{good}{{\"options\": [\"a\", \"b\"], \"label\": 0}}\n"))),
        ("missing field in an expression", plain("{\"q\": \"?\", \"label\": 0}\n")),
        ("no list", plain(&item("\"ab\"", "0"))),
        ("no texts", plain(&item("[\"a\", {\"b\": 1}]", "0"))),
        ("no choices", plain(&item("[]", "0"))),
        ("one choice", plain(&item("[\"a\"]", "0"))),
        ("an empty choice", plain(&item("[\"a\", \"\"]", "0"))),
        ("an index out of range", plain(&item("[\"a\", \"b\"]", "2"))),
        ("a negative index", plain(&item("[\"a\", \"b\"]", "-1"))),
        ("no answer", plain(&item("[\"a\", \"b\"]", "\"\""))),
        (
            "no number for an answer",
            refused(&CHOICE.replace("label", "label | int"), item("[\"a\", \"b\"]", "\"\""), |_| {}),
        ),
        ("null for an answer", plain(&item("[\"a\", \"b\"]", "null"))),
        ("null for choices", plain(&item("null", "0"))),
        ("null among choices", plain(&item("[\"a\", null]", "0"))),
        ("another negative index", plain(&item("[\"a\", \"b\"]", "-2"))),
        ("another text", plain(&item("[\"a\", \"b\"]", "\"c\""))),
        ("a truth value", plain(&item("[\"a\", \"b\"]", "true"))),
        ("no integer", plain(&item("[\"a\", \"b\"]", "0.5"))),
        ("an empty continuation", refused(CONTINUATION, "{\"start\": \"a\", \"last\": \"\"}", |_| {})),
        ("one id twice", plain(&format!("{0}\n{0}", good.trim_end().replace('}', ", \"id\": \"x\"}\n")))),
        ("an id that is none", plain(&good.replace('}', ", \"id\": null}"))),
        ("missing image", refused(&images, good.replace('}', ", \"picture\": \"a.png\"}"), |_| {})),
        ("an image that is none", refused(&images, good.replace('}', ", \"picture\": {\"bytes\": \"\"}}"), |_| {})),
        ("missing file", refused(CHOICE, "", |task| task.data = Some("/nowhere/items.jsonl".into()))),
        ("no file", refused(&CHOICE.replace("data: items.jsonl\n", ""), "", |_| {})),
        (
            "missing description",
            refused(CHOICE, "", |task| task.description = TaskSource::File("/nowhere.yaml".into())),
        ),
        ("unknown description", refused(CHOICE, "", |task| task.description = TaskSource::Ready("arc_eazy".into()))),
        ("too few records for examples", refused(CHOICE, ITEMS, |task| task.fewshot = Some(5))),
        (
            "a bad example",
            refused(CHOICE, good.clone() + &item("[\"a\", \"b\"]", "7"), |task| {
                task.fewshot = Some(1);
                task.limit = Some(1);
            }),
        ),
        ("no chat template", refused(CHOICE, &good, |task| task.chat = Some(true))),
    ];
    insta::assert_snapshot!(messages(cases));
}

#[test]
fn kinds_without_examples_or_chats() {
    let perplexity = "version: 1\nname: p\nkind: perplexity\ndata: items.jsonl\ntext: \"{{ t }}\"\n";
    let refused = |edit: fn(&mut TaskRef)| refused(perplexity, "{\"t\": \"x\"}\n", edit);
    assert!(
        refused(|task| task.fewshot = Some(1))
            .starts_with("the task `demo` is of kind `perplexity`, which has no examples")
    );
    assert!(
        refused(|task| task.chat = Some(true))
            .starts_with("the task `demo` is of kind `perplexity`, which has no chats")
    );
}

#[test]
fn answers_that_are_none() {
    let generation = "version: 1\nname: g\nkind: generation\ndata: items.jsonl\ncontext: \"{{ q }}\"\nanswer: a\n";
    let refused = |items: &str| refused(generation, items, |_| {});
    assert!(refused("{\"q\": \"?\", \"a\": []}").contains("`answer` is an empty list"));
    assert!(refused("{\"q\": \"?\", \"a\": {}}").contains("`answer` is `{}`, not a list of texts"));
    let code = "version: 1\nname: c\nkind: code\ndata: items.jsonl\ncontext: x\nprogram: \"{{ tset }}\"\n";
    let set = load(code, "{\"test\": \"\"}\n").unwrap();
    let error = set.program(&set.items[0], "").unwrap_err();
    assert_eq!(
        error.chain(),
        "cannot write the program of the item `line-1`: the template `program` names `tset`, which the record lacks"
    );
}

#[test]
fn a_template_without_images_is_named() {
    let folder = write(&format!("{CHOICE}images: picture\nchat: true\n"), "");
    fs::write(folder.path().join("a.png"), "one").unwrap();
    let item = ITEMS.lines().next().unwrap().replace('}', ", \"picture\": \"a.png\"}");
    fs::write(folder.path().join("items.jsonl"), item).unwrap();
    let load = |template: &str| TaskSet::load(&task(folder.path()), 0, || ChatTemplate::parse(template.to_owned()));
    let error = load("{% for message in messages %}{{ '<' + message.content + '>' }}{% endfor %}").unwrap_err();
    assert!(error.chain().contains("the model's chat template takes no images: the chat template refuses"));
    assert!(error.find_hint().unwrap().contains("`when: {model: …}`"));
    assert_eq!(error.root_kind(), crate::error::Kind::Unsupported);
    // One that refuses everything says so itself.
    let error = load("{{ raise_exception('never again') }}").unwrap_err();
    assert!(!error.chain().contains("images") && error.chain().ends_with("refuses these messages: never again"));
    assert!(load(CHAT).is_ok());
}

#[test]
fn long_values_are_cut_in_messages() {
    let text = "é".repeat(500);
    let message = refused(CHOICE, format!("{{\"q\": \"\", \"options\": \"{text}\", \"label\": 0}}"), |_| {});
    assert!(message.contains("…`, not a list") && message.len() < 400, "{message}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_description_panics(text in "(version|name|kind|context|fewshot|until|[ :\\-\\[\\]{}\"%a-z0-9\n]){0,40}") {
        let _ = Description::parse("x", None, &text);
    }

    #[test]
    fn no_edit_of_a_description_panics(at in 0..200_usize, with in "\\PC{0,3}") {
        let mut text: Vec<char> = CHOICE.chars().collect();
        let at = at.min(text.len());
        text.splice(at..at, with.chars());
        let _ = Description::parse("x", None, &text.into_iter().collect::<String>());
    }

    #[test]
    fn no_record_panics(options in ".{0,12}", label in ".{0,6}") {
        let _ = load(CHOICE, &format!("{{\"q\": 1, \"options\": {options}, \"label\": {label}}}\n"));
    }
}
