//! From what a model wrote to whether it is right: cut at stop strings, extract, normalize, compare.
//!
//! Regular expressions are fancy-regex's: look-around and back-references as in Python. Not as in Python, `$` does not
//! match before a newline at the end; `\Z` does.

use fancy_regex::Regex;

use super::encode::is_space;
use crate::error::{Error, Result};

/// Texts at which an answer ends.
#[derive(Debug, Clone, PartialEq)]
pub struct Stops(Vec<String>);

impl Stops {
    /// Those; empty ones do not count.
    pub fn new(stops: &[String]) -> Self {
        Self(stops.iter().filter(|stop| !stop.is_empty()).cloned().collect())
    }

    /// Where a text that holds a stop ends, in bytes. `None`: it holds none yet and may go on.
    ///
    /// One stop after the other cuts what the ones before it left, as the harness does it; that is the earliest stop,
    /// but where two overlap the earlier one in the list.
    pub fn cut(&self, text: &str) -> Option<usize> {
        self.0.iter().fold(None, |end, stop| text[..end.unwrap_or(text.len())].find(stop.as_str()).or(end))
    }

    /// The text up to its stop.
    pub fn apply<'t>(&self, text: &'t str) -> &'t str {
        &text[..self.cut(text).unwrap_or(text.len())]
    }
}

/// What stands for an answer that no step found.
pub const INVALID: &str = "[invalid]";

/// How an answer is judged.
#[derive(Debug, Clone, Default)]
pub struct Judging {
    /// Pull the answer out of the text, in this order.
    pub steps: Vec<Step>,
    /// What does not count, in the text's answer and in the right ones.
    pub normalize: Normalize,
}

/// A step of extraction.
#[derive(Debug, Clone)]
pub enum Step {
    /// A match, its first group that is not empty where it has groups.
    Find(Regex, Take),
    /// Without these characters.
    Remove(String),
    /// In lower case.
    Lowercase,
}

/// Which match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Take {
    /// The first.
    First,
    /// The last.
    Last,
}

/// What does not count.
#[derive(Debug, Clone, Default)]
pub struct Normalize {
    /// Matches are removed.
    pub remove: Vec<Regex>,
    /// Case does not count.
    pub ignore_case: bool,
    /// ASCII punctuation does not count.
    pub ignore_punctuation: bool,
    /// White space at both ends does not count.
    pub strip: bool,
}

impl Judging {
    /// The answer in a text, as it counts, and whether it is one of the right ones.
    ///
    /// # Errors
    /// A regular expression that needs too many steps.
    pub fn judge(&self, text: &str, right: &[String]) -> Result<(String, bool)> {
        let Some(answer) = self.extract(text)? else { return Ok((INVALID.to_owned(), false)) };
        let found = self.normalize.apply(&answer)?;
        for right in right {
            if self.normalize.apply(right)? == found {
                return Ok((found, true));
            }
        }
        Ok((found, false))
    }

    /// What a right answer is compared as.
    ///
    /// # Errors
    /// A regular expression that needs too many steps.
    pub fn right(&self, answer: &str) -> Result<String> {
        self.normalize.apply(answer)
    }

    /// The answer in a text, if every step finds one.
    fn extract(&self, text: &str) -> Result<Option<String>> {
        let mut text = text.to_owned();
        for step in &self.steps {
            text = match step {
                Step::Find(regex, take) => match find(regex, *take, &text)? {
                    Some(found) => found.trim_matches(is_space).to_owned(),
                    None => return Ok(None),
                },
                Step::Remove(characters) => text.chars().filter(|c| !characters.contains(*c)).collect(),
                Step::Lowercase => text.to_lowercase(),
            };
        }
        Ok(Some(text))
    }
}

fn find<'t>(regex: &Regex, take: Take, text: &'t str) -> Result<Option<&'t str>> {
    let mut matches = regex.captures_iter(text);
    let found = match take {
        Take::First => matches.next(),
        Take::Last => {
            let mut last = None;
            for found in matches {
                let failed = found.is_err();
                last = Some(found);
                // An expression that gave up would do so again, for ever.
                if failed {
                    break;
                }
            }
            last
        }
    };
    let Some(captures) = found.transpose().map_err(|error| too_many_steps(regex, error))? else { return Ok(None) };
    match captures.len() {
        1 => return Ok(captures.get(0).map(|whole| whole.as_str())),
        // A sole group counts as it is, even where it took part in no match, as Python's `findall` gives it.
        2 => return Ok(Some(captures.get(1).map_or("", |group| group.as_str()))),
        _ => {}
    }
    Ok(captures.iter().skip(1).flatten().map(|group| group.as_str()).find(|group| !group.is_empty()))
}

impl Normalize {
    /// What counts of a text.
    fn apply(&self, text: &str) -> Result<String> {
        let strip = |text: &str| if self.strip { text.trim_matches(is_space).to_owned() } else { text.to_owned() };
        let mut text = strip(text);
        for regex in &self.remove {
            text = regex.try_replacen(&text, 0, "").map_err(|error| too_many_steps(regex, error))?.into_owned();
        }
        if self.ignore_case {
            text = text.to_lowercase();
        }
        if self.ignore_punctuation {
            text.retain(|c| !c.is_ascii_punctuation());
        }
        Ok(strip(&text))
    }
}

fn too_many_steps(regex: &Regex, error: fancy_regex::Error) -> Error {
    Error::new(format!("the regular expression `{}` cannot be applied to an answer", regex.as_str()))
        .because(error)
        .hint("nested repetitions are slow; write the expression without them")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regex(pattern: &str) -> Regex {
        Regex::new(pattern).unwrap()
    }

    #[test]
    fn an_answer_ends_at_its_stop() {
        let stops = |stops: &[&str]| Stops::new(&stops.iter().map(|stop| (*stop).to_owned()).collect::<Vec<_>>());
        assert_eq!(stops(&["\n\n", "Q:"]).cut("A\nQ: \n\n"), Some(2));
        assert_eq!(stops(&["\n\n", ""]).cut("A\nB"), None);
        assert_eq!(stops(&["\n"]).apply(" 25\n16"), " 25");
        assert_eq!(stops(&["é"]).apply("caffè é"), "caffè ");
        // The list's order decides where stops overlap.
        assert_eq!((stops(&["bc", "ab"]).cut("abc"), stops(&["ab", "bc"]).cut("abc")), (Some(1), Some(0)));
    }

    #[test]
    fn the_answer_of_a_word_problem() {
        let strict = Judging {
            steps: vec![Step::Find(regex(r"#### (\-?[0-9\.\,]+)"), Take::First)],
            normalize: Normalize {
                remove: [",", r"\$", "(?s).*#### ", r"\.$"].map(regex).to_vec(),
                ignore_case: true,
                strip: true,
                ..Normalize::default()
            },
        };
        let right = ["9 + 9 = 18\n#### 1,018".to_owned()];
        assert_eq!(strict.judge("so it is\n#### 1018.", &right).unwrap(), ("1018".to_owned(), true));
        assert_eq!(strict.judge("it is 1018", &right).unwrap(), (INVALID.to_owned(), false));
        let loose = Judging { steps: vec![Step::Find(regex(r"(-?[$0-9.,]{2,})|(-?[0-9]+)"), Take::Last)], ..strict };
        assert_eq!(loose.judge("from 3 to $1,018", &right).unwrap(), ("1018".to_owned(), true));
        assert_eq!(loose.judge("from $1,018 to 3", &right).unwrap(), ("3".to_owned(), false));
    }

    #[test]
    fn what_does_not_count() {
        let judge = |normalize: Normalize, text: &str, right: &str| {
            Judging { steps: Vec::new(), normalize }.judge(text, &[right.to_owned()]).unwrap().1
        };
        assert!(!judge(Normalize::default(), " 25", "25"));
        assert!(judge(Normalize { strip: true, ..Normalize::default() }, "\u{a0}25\n", "25"));
        assert!(!judge(Normalize { strip: true, ..Normalize::default() }, "Paris", "paris"));
        assert!(judge(Normalize { ignore_case: true, ..Normalize::default() }, "PARIS", "Paris"));
        assert!(judge(Normalize { ignore_punctuation: true, ..Normalize::default() }, "St. John's", "St Johns"));
    }

    #[test]
    fn other_steps_and_several_right_answers() {
        let steps = vec![Step::Remove(",$".to_owned()), Step::Lowercase];
        let judging = Judging { steps, normalize: Normalize::default() };
        assert_eq!(judging.judge("$1,000 USD", &["x".into(), "1000 usd".into()]).unwrap(), ("1000 usd".into(), true));
    }

    #[test]
    fn where_expressions_differ_from_pythons() {
        // Python's `$` and its `\Z`: the one matches before a last newline as well, the other at the very end alone.
        assert!(!regex("a$").is_match("a\n").unwrap());
        assert!(regex(r"a\Z").is_match("a\n").unwrap());
        assert!(!regex(r"a\z").is_match("a\n").unwrap());
        assert!(regex(r"(?P<n>a)(?=b)(?<!c)b(?P=n)").is_match("aba").unwrap());
    }

    #[test]
    fn an_expression_that_explodes_is_an_error() {
        let judging =
            Judging { steps: vec![Step::Find(regex(r"(?=(a+)+\1b)c"), Take::Last)], normalize: Normalize::default() };
        let error = judging.judge(&"a".repeat(60), &[]).unwrap_err();
        assert!(
            error.chain().starts_with(r"the regular expression `(?=(a+)+\1b)c` cannot be applied"),
            "{}",
            error.chain()
        );
    }
}
