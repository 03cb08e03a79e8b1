//! From texts to token ids, as lm-evaluation-harness makes them, so that log-likelihoods compare.

use tokenizers::Tokenizer;

use crate::error::{Error, Result};
use crate::package::{Package, SpecialTexts};

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
    /// The model's context in tokens, up to which `max_length` could be raised.
    context: usize,
}

impl Encoder {
    /// For a package. `max_length` is the longest input in tokens, the model's context where it is `None`.
    ///
    /// The prefix is what the tokenizer itself puts before a text, else the first or last token of a text that its
    /// settings name, as in the harness. The manifest's `bos` counts last: checkpoints name one that their tokenizer never
    /// uses.
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
            .hint("lower or drop `max_length` in the matrix's task"));
        }
        let tokens = &package.manifest.tokens;
        let own = ids(&tokenizer, "", true)?.first().copied();
        let named = SpecialTexts::read(&package.root)?;
        let named = [named.bos, named.eos].into_iter().flatten().find_map(|text| tokenizer.token_to_id(&text));
        let prefix = own.or(named).or_else(|| tokens.eos.first().copied()).or(tokens.bos).ok_or_else(|| {
            Error::unsupported(format!(
                "the package `{}` names no token that starts or ends a text",
                package.root.display()
            ))
        })?;
        Ok(Self { context, ..Self::new(tokenizer, prefix, max_length)? })
    }

    /// With that prefix and that longest input, in tokens, which is the model's context.
    ///
    /// # Errors
    /// A length of 0.
    pub fn new(mut tokenizer: Tokenizer, prefix: u32, max_length: usize) -> Result<Self> {
        if max_length == 0 {
            return Err(Error::new("the longest input has 0 tokens").hint("raise `max_length` in the matrix's task"));
        }
        // A tokenizer's file may say that texts are cut or filled up, which is for training.
        let failed = |error| Error::new("cannot set up the tokenizer").because(error);
        tokenizer.with_truncation(None).map_err(failed)?;
        tokenizer.with_padding(None);
        let prefix_text = tokenizer.id_to_token(prefix);
        Ok(Self { tokenizer, prefix, prefix_text, max_length, context: max_length })
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
            let length = continuation.len();
            let (bound, raise) = self.bound(length);
            return Err(Error::new(format!("a continuation has {length} tokens, and {bound}"))
                .hint(format!("leave the item out{raise}")));
        }
        let excess = (context.len() + continuation.len()).saturating_sub(self.max_length + 1);
        context.drain(..excess);
        Ok(Request { context, continuation, truncated: excess > 0 })
    }

    /// What keeps so many tokens out, and what else helps: no `max_length` goes beyond the model's context.
    fn bound(&self, tokens: usize) -> (String, &'static str) {
        if tokens > self.context || self.max_length == self.context {
            (format!("the model's context is {}", self.context), "")
        } else {
            (format!("the task's `max_length` is {}", self.max_length), ", or raise `max_length` in the matrix's task")
        }
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
            let (bound, raise) = self.bound(max_new + 1);
            return Err(Error::new(format!("an answer may have {max_new} tokens behind its prompt, and {bound}"))
                .hint(format!("lower `max_tokens` in the matrix's task or in the description{raise}")));
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
mod tests;
