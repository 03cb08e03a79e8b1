//! The ready descriptions: a hand-written record of each public layout gives the item that it should.

use serde_json::{Value, json};

use super::*;

/// The items of records for a ready description.
fn render(name: &str, records: &[Value]) -> TaskSet {
    let folder = tempfile::tempdir().unwrap();
    let items: String = records.iter().map(|record| format!("{record}\n")).collect();
    fs::write(folder.path().join("items.jsonl"), items).unwrap();
    for image in ["a.png", "b.png"] {
        fs::write(folder.path().join(image), "").unwrap();
    }
    let task = TaskRef {
        description: TaskSource::Ready(name.to_owned()),
        data: Some(folder.path().join("items.jsonl")),
        fewshot: (records.len() == 1).then_some(0),
        ..task(folder.path())
    };
    let set = TaskSet::load(&task, 0, || ChatTemplate::parse(PARTS.to_owned()));
    set.unwrap_or_else(|error| panic!("{name}: {}", error.chain()))
}

const PARTS: &str =
    "{% for part in messages[0].content %}[{{ part.type }}]{{ part.text if 'text' in part }}{% endfor %}\n";

/// Context, continuations, and the right one, of one record.
fn choice(name: &str, record: Value) -> (String, Vec<String>, usize) {
    let set = render(name, &[record]);
    let (pairs, _, answer) = pairs(&set.items[0]);
    assert!(pairs.iter().all(|(context, _)| *context == pairs[0].0));
    (pairs[0].0.clone(), pairs.iter().map(|(_, continuation)| continuation.clone()).collect(), answer)
}

fn expect(name: &str, record: Value, context: &str, continuations: &[&str], answer: usize) {
    assert_eq!(
        choice(name, record),
        (context.to_owned(), continuations.iter().map(|c| (*c).to_owned()).collect(), answer)
    );
}

#[test]
fn every_ready_description_is_valid_and_named_as_its_file() {
    for (name, _) in Description::ready() {
        let description = Description::open(&TaskSource::Ready((*name).to_owned()))
            .unwrap_or_else(|error| panic!("{}", error.chain()));
        assert_eq!(description.name, *name);
        assert!(description.about.is_some() && description.data.is_none());
        assert!(include_str!("../../../docs/tasks.md").contains(&format!("`{name}`")), "docs/tasks.md lacks {name}");
    }
}

#[test]
fn arc() {
    let record = json!({
        "id": "Mercury_1", "question": "Which is a star?", "answerKey": "2",
        "choices": {"text": ["the Moon", "the Sun"], "label": ["1", "2"]},
    });
    for name in ["arc_easy", "arc_challenge"] {
        expect(name, record.clone(), "Question: Which is a star?\nAnswer:", &[" the Moon", " the Sun"], 1);
    }
    assert_eq!(render("arc_easy", &[record]).items[0].id, "Mercury_1");
}

#[test]
fn boolq() {
    let expected = ("A passage.\nQuestion: is it so?\nAnswer:", [" no", " yes"]);
    let own = json!({"question": "is it so", "passage": "A passage.", "answer": true});
    expect("boolq", own, expected.0, &expected.1, 1);
    let glue = json!({"question": "is it so", "passage": "A passage.", "idx": 3, "label": 0});
    expect("boolq", glue, expected.0, &expected.1, 0);
}

#[test]
fn hellaswag() {
    let record = json!({
        "ind": 24, "activity_label": "Roof shingle removal",
        "ctx_a": "A man is sitting on a roof. [header] Start [title] Look around [step] He", "ctx_b": "he DOES",
        "endings": [" is using [step] wrap  to wrap.", "is [title] done", "a", "b"], "label": "3",
    });
    let context = "Roof shingle removal: A man is sitting on a roof. Start. Look around He He does";
    expect("hellaswag", record, context, &[" is using wrap to wrap.", " is. done", " a", " b"], 3);
}

#[test]
fn openbookqa_and_piqa() {
    let record = json!({
        "id": "7-980", "question_stem": "The sun is", "choices": {"text": ["hot", "cold"], "label": ["A", "B"]},
        "answerKey": " A",
    });
    expect("openbookqa", record, "The sun is", &[" hot", " cold"], 0);
    let record = json!({"goal": "How to eat?", "sol1": "With a spoon.", "sol2": "With a saw.", "label": 0});
    expect("piqa", record, "Question: How to eat?\nAnswer:", &[" With a spoon.", " With a saw."], 0);
}

#[test]
fn winogrande() {
    let record = json!({
        "sentence": "The trophy did not fit, because the _ was too big. ", "option1": "trophy", "option2": "case",
        "answer": "1",
    });
    let set = render("winogrande", &[record]);
    let (pairs, _, answer) = pairs(&set.items[0]);
    let pair = |name: &str| (format!("The trophy did not fit, because the {name}"), " was too big.".to_owned());
    assert_eq!((pairs, answer), (vec![pair("trophy"), pair("case")], 0));
}

#[test]
fn mmlu() {
    let record = json!({
        "question": " What is 2 + 2? ", "subject": "abstract_algebra", "choices": ["3", "4", "5", "6"], "answer": 1,
    });
    let context = "The following are multiple choice questions (with answers) about abstract algebra.\n\n\
                   What is 2 + 2?\nA. 3\nB. 4\nC. 5\nD. 6\nAnswer:";
    expect("mmlu", record, context, &[" A", " B", " C", " D"], 1);
}

#[test]
fn truthfulqa_mc1() {
    let record = json!({
        "question": "What if?", "mc1_targets": {"choices": ["Nothing.", "Everything."], "labels": [1, 0]},
        "mc2_targets": {"choices": [], "labels": []},
    });
    expect("truthfulqa_mc1", record, "Q: What if?\nA:", &[" Nothing.", " Everything."], 0);
}

#[test]
fn lambada_openai() {
    let set = render("lambada_openai", &[json!({"text": "She said  that it was a \"yes\""})]);
    let ask = Ask::Continuation { context: "She said  that it was a".to_owned(), continuation: " \"yes\"".to_owned() };
    assert_eq!(set.items[0].ask, ask);
}

#[test]
fn wikitext() {
    let page = " \n = Robert <unk> = \n \n Robert 's brothers ' plays ( 2 @.@ 5 hours , N in all ) cost 1 @,@ 000 @-@ \
                1 @,@ 200 ; \" no \" : [ one ] { two } 20 ° C . Why ? Yes ! \n = = Life = = \n ' quoted ' = = = Deep \
                = = = end . \n";
    let set = render("wikitext", &[json!({"page": page})]);
    // The text and the counts are the harness's for the same page.
    let text = "\n= Robert <unk> =\n\nRobert's brothers' plays (2.5 hours, 1 in all) cost 1,000-1,200; \"no\": [one] \
                {two} 20°C. Why? Yes!\n== Life ==\n'quoted' === Deep === end.\n";
    assert_eq!(set.items[0].ask, Ask::Perplexity { text: text.to_owned(), words: 65, bytes: 210 });
}

#[test]
fn gsm8k() {
    let record = |number: usize| {
        let answer = format!("Count them.\n#### 1,{number:03}");
        json!({"question": format!("How many are {number}?"), "answer": answer})
    };
    let records: Vec<_> = (0..7).map(record).collect();
    let set = render("gsm8k", &records);
    assert_eq!((set.fewshot, set.max_tokens), (5, 256));
    let prompt = context(&set.items[0]);
    assert!(prompt.starts_with("Question: How many are 1?\nAnswer: Count them.\n#### 1,001\n\nQuestion: "), "{prompt}");
    assert!(prompt.ends_with("#### 1,005\n\nQuestion: How many are 0?\nAnswer:"), "{prompt}");
    let mut scores = Scores::new(&set);
    assert_eq!(scores.generation(2, " So.\n#### 1002.\n\nQuestion: x").unwrap().right, Some(true));
    assert_eq!(scores.generation(3, " So it is 1003.").unwrap().right, Some(false));
}

#[test]
fn humaneval() {
    let record = json!({
        "task_id": "HumanEval/0", "prompt": "def f(x):\n    \"\"\"Twice x.\"\"\"\n",
        "canonical_solution": "    return 2 * x\n",
        "test": "def check(candidate):\n    assert candidate(2) == 4\n", "entry_point": "f",
    });
    let set = render("humaneval", &[record]);
    assert_eq!((set.items[0].id.as_str(), set.max_tokens), ("HumanEval/0", 1024));
    let program = set.program(&set.items[0], "    return 2 * x\n\nprint(f(1))").unwrap();
    assert_eq!(
        program,
        "def f(x):\n    \"\"\"Twice x.\"\"\"\n    return 2 * x\n\ndef check(candidate):\n    \
         assert candidate(2) == 4\n\ncheck(f)\n"
    );
}

#[test]
fn mbpp() {
    let record = |id: usize, text: &str| {
        let mut record = json!({
            "task_id": id, "code": format!("def f{id}(): pass"), "test_list": ["assert a", "assert b", "assert c"],
            "test_setup_code": "", "challenge_test_list": [],
        });
        record[text] = "Write f.".into();
        record
    };
    let set = render("mbpp", &[record(11, "text"), record(12, "text"), record(13, "prompt"), record(14, "prompt")]);
    let head = "You are an expert Python programmer, and here is your task: Write f. Your code should pass these \
                tests:\n\nassert a\nassert b\nassert c\n[BEGIN]\n";
    let prompt = context(&set.items[3]);
    assert!(prompt.starts_with(&format!("{head}def f11(): pass\n[DONE]\n\n{head}")), "{prompt}");
    assert!(prompt.ends_with(head));
    let program = set.program(&set.items[3], "def f14(): pass\n[DONE]\nmore").unwrap();
    assert_eq!(program, "def f14(): pass\n\nassert a\nassert b\nassert c\n");
    assert_eq!(set.items[3].id, "14");
}

#[test]
fn images() {
    let record = json!({
        "id": "validation_Art_1", "question": "What is in <image 1>?", "options": ["a cat", "a dog"], "answer": "B",
        "image_1": "a.png", "image_2": "b.png", "image_3": null,
    });
    let set = render("mmmu", &[record]);
    let context = "[image][image][text]What is in <image 1>?\n\n(A) a cat\n(B) a dog\n\n\
                   Answer with the letter of the right choice.";
    assert_eq!(pairs(&set.items[0]).0[1], (context.to_owned(), "B".to_owned()));
    assert_eq!((set.items[0].images.len(), pairs(&set.items[0]).2), (2, 1));
    let record = json!({"id": "x", "image": "a.png", "question": "Red?", "choices": ["no", "yes"], "answer": "yes"});
    expect("image_choice", record, "[image][text]Red?", &["no", "yes"], 1);
}

#[test]
fn the_miniatures_tasks_are_read() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let text = "version: 1\nname: x\nkind: choice\ncontext: \"{{ context }}\"\nchoices: choices\nanswer: answer\n\
                delimiter: \"\"\n";
    let description = Description::parse("x", None, text).unwrap();
    let data = root.join("qwen3-tiny/tasks/arithmetic.jsonl");
    let task = TaskRef { data: Some(data), ..task(&root) };
    let set = TaskSet::of(description, &task, 0, no_template).unwrap();
    assert_eq!(set.items.len(), 182);
    let (pairs, choices, answer) = pairs(&set.items[0]);
    assert_eq!((pairs[1].0.as_str(), pairs[1].1.as_str(), choices.len(), answer), ("16 + 9 =", " 25\n", 4, 1));
}
