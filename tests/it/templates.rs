//! Chat templates against transformers: `tests/data/chat-templates/make_golden.py` rendered the same cases.

use std::collections::BTreeSet;
use std::time::{Duration, UNIX_EPOCH};

use ortbench::package::ChatTemplate;
use serde_json::Value;

use crate::real::{json, root};

const FOLDER: &str = "tests/data/chat-templates";

#[test]
fn every_case_reads_as_transformers_renders_it() {
    let golden = json(&format!("{FOLDER}/golden.json"));
    let now = UNIX_EPOCH + Duration::from_secs(golden["now_seconds"].as_u64().expect("seconds"));
    let cases = golden["cases"].as_array().expect("a list");
    let mut templates = BTreeSet::new();
    let mut wrong = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        let name = case["template"].as_str().expect("a name");
        templates.insert(name);
        let text = std::fs::read_to_string(root().join(FOLDER).join(format!("{name}.jinja"))).expect("a template");
        let template = ChatTemplate::parse(text).unwrap_or_else(|error| panic!("{name}: {}", error.chain())).at(now);
        let mut context = case["more"].clone();
        let prompted = context["add_generation_prompt"] == true;
        for token in ["bos_token", "eos_token"] {
            context[token] = golden[token].clone();
        }
        context["messages"] = case["messages"].clone();
        let (expected, found) = match (&case["rendered"], template.render_with(&context, prompted)) {
            (Value::String(rendered), Ok(found)) => (rendered.clone(), found),
            (Value::String(rendered), Err(error)) => (rendered.clone(), format!("error: {}", error.chain())),
            (_, Ok(found)) => (case["error"].to_string(), found),
            (_, Err(error)) => {
                let message = case["error"].as_str().expect("a message");
                (format!("the chat template refuses these messages: {message}"), error.chain())
            }
        };
        if expected != found {
            wrong.push(format!("case {number}, {name}:\n--- transformers\n{expected}\n--- here\n{found}\n"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(cases.len() >= 25 && templates.len() >= 8);
}

/// Snippets that read otherwise here, or are refused by one side only: the list in `src/package/chat/jinja.rs`.
#[rustfmt::skip]
const OTHERWISE: &[&str] = &[
    "{{ '%s-%02d' % ('a', 3) }}", "{{ 'n: %s' % 3 }}", "{{ (1, 2) }}", "{{ [(1,2)] }}", "{{ m.items() }}",
    "{{ m.items() | list }}", "{{ m | items | list }}",
    "{% macro f() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1, k=2) }}", "{{ m.get('a').real }}",
    "{{ 'x'.join(l) }}", "{{ [m] | groupby('a') | list }}", "{{ none | list }}", "{% for i in none %}{% endfor %}",
    "{{ 0 and 1 }}", "{{ 5 // -2 }}", "{{ 2 ** -1 }}", "{{ 1 / 0 }}", "{{ namespace(a=1) | tojson }}",
    "{{ range(3) | tojson }}", "{{ 'a b' | wordcount }}", "{{ 'abcdef' | truncate(3) }}",
    "{{ 'hello' | center(9) }}|", "{{ 'a b' | urlencode }}", "{{ l | pprint }}", "{{ x is callable }}",
    "{{ 'a\tb'.expandtabs(4) }}", "{{ 'a'.zfill(3) }}", "{{ 'a'.ljust(3) }}|", "{{ 'a'.center(3) }}|",
    "{{ 'aXb'.swapcase() }}", "{{ 'ab'.startswith('b', 1) }}", "{{ m.copy() }}", "{{ 'a'.encode() }}",
    "{{ cycler('a','b').next() }}", "{% set j = joiner(',') %}{{ j() }}{{ j() }}", "{{ lipsum is defined }}",
    "{{ l[0], 2 }}", "{{ [1, 2] | sum(start=3) }}", "{{ l | random in l }}", "{{ none < 1 }}", "{{ 'a' < 1 }}",
    "{{ x is sameas y }}", "{{ +1 }}{{ -1 }}", "{{ m | attr('a') }}", "{{ m | xmlattr }}",
    "{{ 12345 | filesizeformat }}", "{{ l[1.0] }}", "{{ '\u{1f}a'.strip() == 'a' }}",
];

#[test]
fn every_snippet_but_the_known_ones_reads_as_transformers_renders_it() {
    let golden = json(&format!("{FOLDER}/golden.json"));
    let snippets = golden["snippets"].as_array().expect("a list");
    let mut otherwise = Vec::new();
    for each in snippets {
        let snippet = each["snippet"].as_str().expect("a text");
        let template = ChatTemplate::parse(snippet.to_owned());
        let found = template.and_then(|template| template.render_with(&golden["snippet_values"], false));
        if each["rendered"].as_str() != found.as_deref().ok() {
            otherwise.push(snippet);
        }
    }
    assert_eq!(otherwise, OTHERWISE);
    assert!(snippets.len() > 200);
}
