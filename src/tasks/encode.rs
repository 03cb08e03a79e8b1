//! From texts to token ids, as lm-evaluation-harness makes them, so that log-likelihoods compare.

use tokenizers::Tokenizer;

use crate::error::{Error, Result};
use crate::package::Package;

/// A context and the tokens whose log-likelihood is asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// What the model reads first; never empty.
    pub context: Vec<u32>,
    /// The tokens that are scored; never empty. The last one is only predicted, never read.
    pub continuation: Vec<u32>,
    /// Whether the context was cut from the left.
    pub truncated: bool,
}

impl Request {
    /// What the model reads: all tokens but the last. The last `continuation.len()` predictions are scored.
    pub fn input(&self) -> Vec<u32> {
        let read = &self.continuation[..self.continuation.len() - 1];
        [self.context.as_slice(), read].concat()
    }
}

/// A tokenizer with what stands before an empty context and how much fits.
#[derive(Debug)]
pub struct Encoder {
    tokenizer: Tokenizer,
    prefix: u32,
    /// The prefix as text: a text that starts with it gets no further special tokens.
    prefix_text: Option<String>,
    max_length: usize,
}

impl Encoder {
    /// For a package. `max_length` is the longest input in tokens, the model's context where it is `None`.
    ///
    /// The prefix is what the tokenizer itself puts before a text, else the first token that ends generation. The
    /// manifest's `bos` does not count: checkpoints name one that their tokenizer never uses.
    ///
    /// # Errors
    /// A package without tokenizer, or without a token for the prefix; a length beyond the model's context.
    pub fn open(package: &Package, max_length: Option<usize>) -> Result<Self> {
        let tokenizer = package.tokenizer()?;
        let context = package.manifest.shape.context_length as usize;
        let max_length = max_length.unwrap_or(context);
        if max_length > context {
            return Err(Error::unsupported(format!(
                "the task's longest input is {max_length} tokens, the model's context {context}"
            ))
            .hint("lower the task's `max_length`"));
        }
        let tokens = &package.manifest.tokens;
        let own = ids(&tokenizer, "", true)?.first().copied();
        let prefix = own.or_else(|| tokens.eos.first().copied()).or(tokens.bos).ok_or_else(|| {
            Error::unsupported(format!(
                "the package `{}` names no token that starts or ends a text",
                package.root.display()
            ))
        })?;
        Self::new(tokenizer, prefix, max_length)
    }

    /// With that prefix and that longest input, in tokens.
    ///
    /// # Errors
    /// A length of 0.
    pub fn new(mut tokenizer: Tokenizer, prefix: u32, max_length: usize) -> Result<Self> {
        if max_length == 0 {
            return Err(Error::new("the longest input has 0 tokens").hint("raise the task's `max_length`"));
        }
        // A tokenizer's file may say that texts are cut or filled up, which is for training.
        let failed = |error| Error::new("cannot set up the tokenizer").because(error);
        tokenizer.with_truncation(None).map_err(failed)?;
        tokenizer.with_padding(None);
        let prefix_text = tokenizer.id_to_token(prefix);
        Ok(Self { tokenizer, prefix, prefix_text, max_length })
    }

    /// What stands before an empty context.
    pub fn prefix(&self) -> u32 {
        self.prefix
    }

    /// The longest input, in tokens.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// A continuation behind a context: [`Encoder::split`], then [`Encoder::fit`].
    ///
    /// # Errors
    /// As those.
    pub fn pair(&self, context: &str, continuation: &str) -> Result<Request> {
        let (context, continuation) = self.split(context, continuation)?;
        self.fit(context, continuation)
    }

    /// The ids of a context and of its continuation.
    ///
    /// White space at the end of the context belongs to the continuation, whose first token often begins with it. Both
    /// are tokenized as one text; the continuation is what stands behind as many tokens as the context has alone.
    ///
    /// # Errors
    /// A continuation without tokens of its own.
    pub fn split(&self, context: &str, continuation: &str) -> Result<(Vec<u32>, Vec<u32>)> {
        let kept = context.trim_end_matches(is_space);
        let whole = format!("{context}{continuation}");
        let (context, continuation) = match kept {
            "" => self.behind_nothing(&whole)?,
            kept => {
                let context = self.ids(kept)?;
                let rest = self.ids(&whole)?.split_off_at(context.len());
                (context, rest)
            }
        };
        if continuation.is_empty() || context.is_empty() {
            return Err(Error::new("a continuation has no tokens of its own")
                .hint("its text is empty, or one token covers the context's end and all of it"));
        }
        Ok((context, continuation))
    }

    /// A text behind the prefix, which is not doubled.
    fn behind_nothing(&self, text: &str) -> Result<(Vec<u32>, Vec<u32>)> {
        let mut tokens = ids(&self.tokenizer, text, false)?;
        if tokens.first() == Some(&self.prefix) {
            tokens.remove(0);
        }
        Ok((vec![self.prefix], tokens))
    }

    /// Cuts the context from the left so that all but the last token fit.
    ///
    /// # Errors
    /// A continuation that does not fit.
    pub fn fit(&self, mut context: Vec<u32>, continuation: Vec<u32>) -> Result<Request> {
        if continuation.len() > self.max_length {
            let (length, most) = (continuation.len(), self.max_length);
            return Err(Error::new(format!("a continuation has {length} tokens, and {most} fit"))
                .hint("leave the item out, or raise `max_length`"));
        }
        let excess = (context.len() + continuation.len()).saturating_sub(self.max_length + 1);
        context.drain(..excess);
        Ok(Request { context, continuation, truncated: excess > 0 })
    }

    /// A text as windows that together score each of its tokens once.
    ///
    /// The first window begins with the prefix, a later one with the last token of the one before it. The last window
    /// reaches back as far as fits: its tokens are scored with more context. A text without tokens has no windows.
    ///
    /// # Errors
    /// A text that cannot be tokenized.
    pub fn windows(&self, text: &str) -> Result<Vec<Request>> {
        let mut tokens = vec![self.prefix];
        tokens.extend(self.ids(text)?);
        Ok(windows(&tokens, self.max_length))
    }

    /// A prompt that leaves room for `max_new` tokens, and whether it was cut from the left.
    ///
    /// # Errors
    /// No room for a prompt.
    pub fn prompt(&self, context: &str, max_new: usize) -> Result<(Vec<u32>, bool)> {
        let Some(room) = self.max_length.checked_sub(max_new).filter(|room| *room > 0) else {
            let most = self.max_length;
            return Err(Error::new(format!("an answer may have {max_new} tokens, and {most} fit, prompt included"))
                .hint("lower the description's `max_tokens`, or raise `max_length`"));
        };
        let mut tokens = match context {
            "" => vec![self.prefix],
            context => self.ids(context)?,
        };
        let excess = tokens.len().saturating_sub(room);
        tokens.drain(..excess);
        Ok((tokens, excess > 0))
    }

    /// The text of generated tokens, without special tokens.
    ///
    /// # Errors
    /// Ids that the tokenizer does not know how to join.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.tokenizer.decode(tokens, true).map_err(|error| Error::new("cannot decode the answer").because(error))
    }

    /// A text's ids, with the special tokens that the tokenizer adds, which a rendered chat may have already.
    fn ids(&self, text: &str) -> Result<Vec<u32>> {
        let has_them = self.prefix_text.as_ref().is_some_and(|prefix| text.starts_with(prefix.as_str()));
        ids(&self.tokenizer, text, !has_them)
    }
}

/// The harness's rolling windows over a prefix and a text.
fn windows(tokens: &[u32], max_length: usize) -> Vec<Request> {
    let mut windows = Vec::new();
    let mut scored = 1;
    while scored < tokens.len() {
        let end = tokens.len().min(scored + max_length);
        let start = (end - 1).saturating_sub(max_length).min(scored - 1);
        windows.push(Request {
            context: tokens[start..scored].to_vec(),
            continuation: tokens[scored..end].to_vec(),
            truncated: false,
        });
        scored = end;
    }
    windows
}

fn ids(tokenizer: &Tokenizer, text: &str, special: bool) -> Result<Vec<u32>> {
    let encoding =
        tokenizer.encode_fast(text, special).map_err(|error| Error::new("cannot tokenize a text").because(error))?;
    Ok(encoding.get_ids().to_vec())
}

/// White space as Python has it: Unicode's, and four separators of ASCII.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

trait SplitOffAt {
    fn split_off_at(self, at: usize) -> Vec<u32>;
}

impl SplitOffAt for Vec<u32> {
    /// What stands from there on; nothing where the vector is shorter.
    fn split_off_at(mut self, at: usize) -> Vec<u32> {
        self.drain(..at.min(self.len()));
        self
    }
}

#[cfg(test)]
mod tests {
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
        assert!(encoder.prompt("16", 16).unwrap_err().find_hint().unwrap().contains("max_tokens"));
        assert!(Encoder::new(tokenizer(), END, 0).is_err());
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
}
