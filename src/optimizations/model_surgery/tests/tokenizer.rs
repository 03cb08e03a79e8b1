use proptest::prelude::*;
use serde_json::json;

use super::*;

/// Bytes a to e and pairs of them.
fn tokenizer() -> Value {
    json!({
        "added_tokens": [{"id": 12, "content": "<|end|>", "special": true, "single_word": false, "lstrip": false,
                          "rstrip": false, "normalized": false}],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "<|end|>", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": {"<|end|>": {"id": "<|end|>", "ids": [12], "tokens": ["<|end|>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4, "ab": 5, "cd": 6, "abc": 7, "de": 8, "abcd": 9, "bc": 10,
                      "ea": 11},
            "merges": [["a", "b"], ["c", "d"], ["d", "e"], ["ab", "c"], ["ab", "cd"], ["b", "c"], ["e", "a"]],
        },
    })
}

fn encode(json: &Value, text: &str) -> Vec<u32> {
    let tokenizer: tokenizers::Tokenizer = serde_json::from_value(json.clone()).unwrap();
    tokenizer.encode(text, true).unwrap().get_ids().to_vec()
}

#[test]
fn what_is_between_stays_too() {
    let parsed = Tokenizer::parse(tokenizer()).unwrap();
    let (kept, always) = parsed.closure(&BTreeSet::from([9]));
    // abcd is joined from ab and cd.
    assert_eq!(kept, BTreeSet::from([0, 1, 2, 3, 4, 5, 6, 9, 12]));
    assert_eq!(always, 6);
    let kept: Vec<u32> = kept.into_iter().collect();
    let trimmed = parsed.with(&kept).unwrap();
    assert_eq!(trimmed["model"]["merges"], json!([["a", "b"], ["c", "d"], ["ab", "cd"]]));
    assert_eq!(trimmed["added_tokens"][0]["id"], 8);
    assert_eq!(encode(&trimmed, "abcd"), [7, 8]);
    // What is not kept is spelled.
    assert_eq!(encode(&trimmed, "ea"), [4, 0, 8]);
}

#[test]
fn other_tokenizers_are_refused() {
    let refused = |change: &dyn Fn(&mut Value)| {
        let mut json = tokenizer();
        change(&mut json);
        Tokenizer::parse(json).unwrap_err().chain()
    };
    let text = refused(&|json| json["model"]["type"] = "Unigram".into());
    assert!(text.contains("cannot be trimmed: its tokenizer's model is `Unigram`"), "{text}");
    assert!(refused(&|json| json["model"]["end_of_word_suffix"] = "</w>".into()).contains("end_of_word_suffix"));
    let text = refused(&|json| {
        json["pre_tokenizer"] = Value::Null;
        json["decoder"] = Value::Null;
    });
    assert!(text.contains("does not work on bytes"), "{text}");
    assert!(refused(&|json| json["model"]["merges"][0] = json!(["a"])).contains("is no pair"));
    let mut json = tokenizer();
    json["post_processor"]["type"] = "Other".into();
    assert!(Tokenizer::parse(json).unwrap().with(&[0, 12]).unwrap_err().chain().contains("postprocessor is `Other`"));
}

proptest! {
    /// Texts whose tokens were kept are split as before, each id by its new number.
    #[test]
    fn kept_texts_keep_their_tokens(texts in proptest::collection::vec("[a-e]{1,9}", 1..4)) {
        let json = tokenizer();
        let used: BTreeSet<u32> = texts.iter().flat_map(|text| encode(&json, text)).collect();
        let parsed = Tokenizer::parse(json.clone()).unwrap();
        let kept: Vec<u32> = parsed.closure(&used).0.into_iter().collect();
        let trimmed = parsed.with(&kept).unwrap();
        for text in &texts {
            let old: Vec<u32> = encode(&trimmed, text).into_iter().map(|id| kept[id as usize]).collect();
            prop_assert_eq!(old, encode(&json, text));
        }
    }
}
