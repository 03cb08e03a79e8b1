//! Requests, and that they are the harness's.

use proptest::prelude::*;
use tokenizers::processors::template::TemplateProcessing;

use super::*;

const END: u32 = 1023;

fn tokenizer() -> Tokenizer {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/models/qwen3-tiny/tokenizer.json");
    Tokenizer::from_file(path).unwrap()
}

fn encoder(max_length: usize) -> Encoder {
    Encoder::new(tokenizer(), END, max_length).unwrap()
}

/// One whose tokenizer puts `<|endoftext|>` before every text.
fn with_bos() -> Encoder {
    let mut tokenizer = tokenizer();
    let processor = TemplateProcessing::builder()
        .try_single("<|endoftext|> $A")
        .unwrap()
        .special_tokens(vec![("<|endoftext|>", 1021)])
        .build()
        .unwrap();
    tokenizer.with_post_processor(Some(processor));
    Encoder::new(tokenizer, 1021, 64).unwrap()
}

fn text(encoder: &Encoder, tokens: &[u32]) -> String {
    encoder.tokenizer.decode(tokens, false).unwrap()
}

#[test]
fn space_at_the_contexts_end_goes_to_the_continuation() {
    let encoder = encoder(64);
    let pair = encoder.pair("16 + 9 = \n", "25").unwrap();
    assert_eq!(text(&encoder, &pair.context), "16 + 9 =");
    assert_eq!(text(&encoder, &pair.continuation), " \n25");
    assert_eq!(pair, encoder.pair("16 + 9 =", " \n25").unwrap());
    assert_eq!(pair.input().len(), pair.context.len() + pair.continuation.len() - 1);
    // As Python has it, white space that is not ASCII and ASCII's separators count.
    for space in ["\u{a0}", "\u{2003}", "\u{1f}"] {
        let (context, _) = encoder.split(&format!("a{space}"), "b").unwrap();
        assert_eq!(text(&encoder, &context), "a", "{space:?}");
    }
}

#[test]
fn an_empty_context_is_the_prefix() {
    let encoder = encoder(64);
    assert_eq!(encoder.pair("", "25").unwrap().context, [END]);
    assert_eq!(text(&encoder, &encoder.pair(" ", "25").unwrap().continuation), " 25");
    // A text that brings the prefix along does not get a second one.
    assert_eq!(encoder.pair("", "<|im_end|>25").unwrap(), encoder.pair("", "25").unwrap());
    assert!(encoder.pair("", "").is_err());
    assert!(encoder.pair("25", "").unwrap_err().to_string().contains("no tokens of its own"));
    assert_eq!(encoder.prompt("", 8).unwrap(), (vec![END], false));
}

#[test]
fn special_tokens_of_the_tokenizer_stand_once() {
    let encoder = with_bos();
    let pair = encoder.pair("16 + 9 =", " 25").unwrap();
    assert_eq!(pair.context[0], 1021);
    assert_eq!(text(&encoder, &pair.continuation), " 25");
    assert_eq!(encoder.pair("<|endoftext|>16 + 9 =", " 25").unwrap(), pair);
    assert_eq!(encoder.prompt("<|endoftext|>16", 8).unwrap(), encoder.prompt("16", 8).unwrap());
    assert_eq!(encoder.pair("", " 25").unwrap().context, [1021]);
    assert!(!encoder.pair("", " 25").unwrap().continuation.contains(&1021));
}

#[test]
fn what_a_tokenizers_file_says_of_lengths_does_not_count() {
    let mut tokenizer = tokenizer();
    let truncation = tokenizers::TruncationParams { max_length: 2, ..Default::default() };
    tokenizer.with_truncation(Some(truncation)).unwrap();
    tokenizer.with_padding(Some(tokenizers::PaddingParams::default()));
    let cut = Encoder::new(tokenizer, END, 64).unwrap();
    assert_eq!(cut.pair("16 + 9 =", " 25").unwrap(), encoder(64).pair("16 + 9 =", " 25").unwrap());
}

#[test]
fn prompts_leave_room() {
    let encoder = encoder(16);
    let (all, cut) = encoder.prompt("16 + 9", 1).unwrap();
    assert_eq!((text(&encoder, &all).as_str(), cut), ("16 + 9", false));
    let (tail, cut) = encoder.prompt("16 + 9 = 25\n16 + 9 =", 13).unwrap();
    assert!(cut && tail.len() == 3);
    assert!("16 + 9 = 25\n16 + 9 =".ends_with(&text(&encoder, &tail)));
    assert!(Encoder::new(tokenizer(), END, 0).is_err());
}

#[test]
fn what_does_not_fit_is_said_with_what_bounds_it() {
    let told = |error: Error| format!("{error}; {}", error.find_hint().unwrap());
    let whole = encoder(16);
    assert_eq!(
        told(whole.prompt("16", 16).unwrap_err()),
        "an answer may have 16 tokens behind its prompt, and the model's context is 16; lower `max_tokens` in the \
         matrix's task or in the description"
    );
    assert_eq!(
        told(whole.fit(vec![1], vec![2; 17]).unwrap_err()),
        "a continuation has 17 tokens, and the model's context is 16; leave the item out"
    );
    let bounded = Encoder { max_length: 8, ..encoder(16) };
    assert_eq!(
        told(bounded.fit(vec![1], vec![2; 9]).unwrap_err()),
        "a continuation has 9 tokens, and the task's `max_length` is 8; leave the item out, or raise `max_length` in \
         the matrix's task"
    );
    assert!(bounded.fit(vec![1], vec![2; 17]).unwrap_err().to_string().ends_with("the model's context is 16"));
}

/// What lm-evaluation-harness 0.4.13 makes of these texts with this tokenizer (`_encode_pair`). In the last one the
/// whole text has fewer tokens than its context alone.
#[test]
fn pairs_as_the_harness_has_them() {
    let cases: &[(&str, &str, &[u32], &[u32])] = &[
        ("16 + 9 =", " 25\n", &[16, 21, 220, 10, 220, 24, 220, 28], &[220, 17, 20, 198]),
        ("16 + 9 = ", "25", &[16, 21, 220, 10, 220, 24, 220, 28], &[220, 17, 20]),
        ("Q: x\n\nA:", " The licence", &[48, 25, 220, 87, 312, 32, 25], &[631, 272, 320, 368]),
        (
            "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
            "yes",
            &[1022, 451, 198, 71, 72, 1023, 198, 1022, 453],
            &[198, 88, 300],
        ),
        ("lic", "ence terms", &[75, 285], &[368, 541]),
        ("a\u{a0}\u{2003}", "b", &[64], &[126, 254, 158, 222, 225, 65]),
        ("\u{e9}", "\u{301}x", &[127, 102], &[136, 223, 87]),
        ("(", "))", &[7], &[8, 8]),
        ("the Softw", "are is", &[83, 263, 382, 78, 455, 86], &[]),
    ];
    for (context, continuation, first, rest) in cases {
        match encoder(64).split(context, continuation) {
            Ok(found) => assert_eq!(found, (first.to_vec(), rest.to_vec()), "{context:?} {continuation:?}"),
            Err(_) => assert!(rest.is_empty(), "{context:?} {continuation:?}"),
        }
    }
}

/// Tokens of context and of continuation in each window, for that many tokens and that longest input, as
/// `get_rolling_token_windows` has them.
#[test]
fn windows_have_the_harness_sizes() {
    type Sizes<'a> = &'a [(usize, usize)];
    let cases: &[(u32, usize, Sizes)] = &[
        (5, 8, &[(1, 5)]),
        (8, 8, &[(1, 8)]),
        (9, 8, &[(1, 8), (8, 1)]),
        (20, 8, &[(1, 8), (1, 8), (5, 4)]),
        (24, 8, &[(1, 8), (1, 8), (1, 8)]),
        (
            100,
            7,
            &[
                (1, 7),
                (1, 7),
                (1, 7),
                (1, 7),
                (1, 7),
                (1, 7),
                (1, 7),
                (1, 7),
                (1, 7),
                (1, 7),
                (1, 7),
                (1, 7),
                (1, 7),
                (1, 7),
                (6, 2),
            ],
        ),
        (3, 1, &[(1, 1), (1, 1), (1, 1)]),
    ];
    for (length, max_length, sizes) in cases {
        let windows = windows(&(0..=*length).collect::<Vec<_>>(), *max_length);
        let found: Vec<_> = windows.iter().map(|w| (w.context.len(), w.continuation.len())).collect();
        assert_eq!(found, sizes.to_vec(), "{length} {max_length}");
    }
}

#[test]
fn windows_as_the_harness_has_them() {
    let windows = windows(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 4);
    let shapes: Vec<_> = windows.iter().map(|w| (w.context.clone(), w.continuation.clone())).collect();
    assert_eq!(shapes, [(vec![0], vec![1, 2, 3, 4]), (vec![4], vec![5, 6, 7, 8]), (vec![6, 7, 8], vec![9, 10])]);
    assert!(encoder(4).windows("").unwrap().is_empty());
    assert_eq!(encoder(64).windows("16 + 9").unwrap()[0].context, [END]);
}

proptest! {
    #[test]
    fn windows_score_every_token_once(length in 1..60_usize, max_length in 1..20_usize) {
        let tokens: Vec<u32> = (0..length as u32).collect();
        let windows = windows(&tokens, max_length);
        let scored: Vec<u32> = windows.iter().flat_map(|window| window.continuation.clone()).collect();
        prop_assert_eq!(&scored, &tokens[1..]);
        for window in &windows {
            let input = window.input();
            prop_assert!(input.len() <= max_length);
            // The context stands directly before what is scored.
            let first = window.continuation[0] as usize;
            prop_assert_eq!(&window.context[..], &tokens[first - window.context.len()..first]);
            let full = input.len() == max_length || windows.len() == 1;
            prop_assert!(full, "a window of {} of {max_length}", input.len());
        }
    }

    #[test]
    fn pairs_are_the_whole_text(context in "[a-z0-9 \n]{0,40}", word in "[a-z0-9]{1,8}", max_length in 1..40_usize) {
        let encoder = encoder(max_length);
        let continuation = format!(" {word}");
        let (first, rest) = encoder.split(&context, &continuation).unwrap();
        let whole = ids(&encoder.tokenizer, &format!("{context}{continuation}"), false).unwrap();
        prop_assert_eq!(&whole[whole.len() - rest.len()..], &rest[..]);
        if rest.len() > max_length {
            prop_assert!(encoder.fit(first, rest).is_err());
        } else {
            let fitted = encoder.fit(first.clone(), rest.clone()).unwrap();
            prop_assert_eq!(&fitted.continuation, &rest);
            prop_assert!(first.ends_with(&fitted.context) && !fitted.context.is_empty());
            prop_assert!(fitted.input().len() <= max_length);
            prop_assert_eq!(fitted.truncated, first.len() + rest.len() > max_length + 1);
        }
    }

    #[test]
    fn no_text_makes_the_encoder_panic(context in ".{0,20}", continuation in ".{0,20}") {
        let encoder = encoder(8);
        let _ = encoder.pair(&context, &continuation);
        let _ = encoder.windows(&continuation);
        let _ = encoder.prompt(&context, 2);
    }
}

/// What the harness makes of tokens 1, 2, 3, …; only numbers count.
#[test]
fn windows_are_the_harnesss() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/harness/functions.json");
    let all: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let rows = all["windows"].as_array().unwrap();
    assert!(rows.len() >= 13);
    for row in rows {
        let number = |key: &str| row[key].as_u64().unwrap();
        let tokens: Vec<u32> = (0..=number("tokens") as u32).collect();
        let list = |value: &serde_json::Value| serde_json::from_value::<Vec<u32>>(value.clone()).unwrap();
        let golden = row["windows"].as_array().unwrap().iter();
        let golden: Vec<_> = golden.map(|window| (list(&window["context"]), list(&window["scored"]))).collect();
        let ours: Vec<_> = windows(&tokens, number("max_length") as usize)
            .into_iter()
            .map(|window| (window.context, window.continuation))
            .collect();
        assert_eq!(ours, golden, "{row}");
    }
}
