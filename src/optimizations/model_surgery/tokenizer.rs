//! A tokenizer with fewer tokens, which splits the texts that they were taken from as before.
//!
//! Byte-pair encoding joins neighbours in the order of its merges until none fits. What it joined on the way to a token
//! lies within the token, so that a token stays reachable if the tokens in between and their merges stay; and since it
//! takes the earliest merge that fits, taking others away changes nothing where they were never taken.

use std::collections::{BTreeSet, HashMap};

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// A tokenizer file of byte-pair encoding.
#[derive(Debug)]
pub struct Tokenizer {
    json: Value,
    ids: HashMap<String, u32>,
    /// By the two parts: the place among the merges.
    ranks: HashMap<(String, String), usize>,
}

impl Tokenizer {
    /// Reads `tokenizer.json`.
    ///
    /// # Errors
    /// Another model than byte-pair encoding over bytes (`unsupported`, named).
    pub fn parse(json: Value) -> Result<Self> {
        let unknown = |what: String| {
            Error::unsupported(format!("the vocabulary cannot be trimmed: {what}"))
                .hint("trimming knows byte-pair encoding over bytes, as GPT-2 and Qwen have it")
        };
        let model = &json["model"];
        let kind = model["type"].as_str().unwrap_or("no type");
        if kind != "BPE" {
            return Err(unknown(format!("its tokenizer's model is `{kind}`")));
        }
        for key in ["continuing_subword_prefix", "end_of_word_suffix"] {
            if model[key].as_str().is_some_and(|text| !text.is_empty()) {
                return Err(unknown(format!("its tokenizer has a `{key}`")));
            }
        }
        let over_bytes = ["pre_tokenizer", "decoder"].iter().any(|part| has_type(&json[*part], "ByteLevel"));
        if !over_bytes {
            return Err(unknown("its tokenizer does not work on bytes".to_owned()));
        }
        let vocabulary = model["vocab"].as_object().ok_or_else(|| unknown("it has no `vocab`".to_owned()))?;
        let ids = vocabulary.iter().filter_map(|(text, id)| Some((text.clone(), u32::try_from(id.as_u64()?).ok()?)));
        let ids: HashMap<String, u32> = ids.collect();
        let merges = model["merges"].as_array().ok_or_else(|| unknown("it has no `merges`".to_owned()))?;
        let mut ranks = HashMap::with_capacity(merges.len());
        for (rank, merge) in merges.iter().enumerate() {
            let pair = pair(merge).ok_or_else(|| unknown(format!("its merge {merge} is no pair")))?;
            ranks.entry(pair).or_insert(rank);
        }
        Ok(Self { json, ids, ranks })
    }

    /// Tokens that must stay for these to be made: they themselves, what they are joined from, single bytes, and special
    /// ones. The second number is how many of them stay whatever is asked for.
    pub fn closure(&self, used: &BTreeSet<u32>) -> (BTreeSet<u32>, usize) {
        let mut kept: BTreeSet<u32> = self.added().collect();
        kept.extend(self.ids.iter().filter(|(text, _)| text.chars().nth(1).is_none()).map(|(_, &id)| id));
        let always = kept.len();
        let texts: HashMap<u32, &str> = self.ids.iter().map(|(text, &id)| (id, text.as_str())).collect();
        for id in used {
            kept.insert(*id);
            if let Some(text) = texts.get(id) {
                self.joined_from(text, &mut kept);
            }
        }
        (kept, always)
    }

    /// Ids of tokens that were added to the vocabulary, special ones among them.
    fn added(&self) -> impl Iterator<Item = u32> {
        let added = self.json["added_tokens"].as_array().into_iter().flatten();
        added.filter_map(|token| u32::try_from(token["id"].as_u64()?).ok())
    }

    /// Adds the tokens that stand in between when single bytes become this one.
    fn joined_from(&self, token: &str, kept: &mut BTreeSet<u32>) {
        let mut parts: Vec<String> = token.chars().map(String::from).collect();
        loop {
            let pairs = parts.windows(2).enumerate();
            let ranked =
                pairs.filter_map(|(at, pair)| Some((*self.ranks.get(&(pair[0].clone(), pair[1].clone()))?, at)));
            let Some((_, at)) = ranked.min() else { return };
            let right = parts.remove(at + 1);
            parts[at].push_str(&right);
            kept.extend(self.ids.get(&parts[at]));
        }
    }

    /// The file with these tokens alone, which are numbered in their order.
    ///
    /// # Errors
    /// A postprocessor that names tokens in a way that is not known (`unsupported`, named).
    pub fn with(mut self, kept: &[u32]) -> Result<Value> {
        let new: HashMap<u32, u32> = kept.iter().zip(0..).map(|(&old, new)| (old, new)).collect();
        let mut tokens: Vec<(&String, u32)> =
            self.ids.iter().filter_map(|(text, id)| Some((text, *new.get(id)?))).collect();
        tokens.sort_by_key(|(_, id)| *id);
        let vocabulary: Map<String, Value> = tokens.into_iter().map(|(text, id)| (text.clone(), id.into())).collect();
        let stays = |merge: &Value| {
            pair(merge).is_some_and(|(left, right)| {
                let whole = format!("{left}{right}");
                [left, right, whole].iter().all(|text| vocabulary.contains_key(text))
            })
        };
        let model = &mut self.json["model"];
        if let Some(merges) = model["merges"].as_array_mut() {
            merges.retain(stays);
        }
        model["vocab"] = Value::Object(vocabulary);
        for token in self.json["added_tokens"].as_array_mut().into_iter().flatten() {
            renumber(&mut token["id"], &new)?;
        }
        if let Some(id) = self.json.pointer_mut("/padding/pad_id") {
            renumber(id, &new)?;
        }
        postprocessor(&mut self.json["post_processor"], &new)?;
        Ok(self.json)
    }
}

/// The two parts of a merge, written as a list or with a space between them.
fn pair(merge: &Value) -> Option<(String, String)> {
    match merge {
        Value::String(text) => text.split_once(' ').map(|(left, right)| (left.to_owned(), right.to_owned())),
        Value::Array(parts) => match parts.as_slice() {
            [Value::String(left), Value::String(right)] => Some((left.clone(), right.clone())),
            _ => None,
        },
        _ => None,
    }
}

/// Whether a part of a tokenizer is of a type, or holds a part of it.
fn has_type(part: &Value, wanted: &str) -> bool {
    match part {
        Value::Object(fields) => {
            fields.get("type").and_then(Value::as_str) == Some(wanted)
                || fields.values().any(|value| has_type(value, wanted))
        }
        Value::Array(parts) => parts.iter().any(|part| has_type(part, wanted)),
        _ => false,
    }
}

/// Gives a number in the file, which is a token's id, its new value.
fn renumber(id: &mut Value, new: &HashMap<u32, u32>) -> Result<()> {
    let old = id.as_u64().and_then(|old| u32::try_from(old).ok());
    let found = old.and_then(|old| new.get(&old)).copied();
    let found =
        found.ok_or_else(|| Error::new(format!("the tokenizer names the token {id}, which it does not have")))?;
    *id = found.into();
    Ok(())
}

fn postprocessor(part: &mut Value, new: &HashMap<u32, u32>) -> Result<()> {
    let kind = part["type"].as_str().unwrap_or_default().to_owned();
    match kind.as_str() {
        "" | "ByteLevel" => Ok(()),
        "Sequence" => {
            let parts = part["processors"].as_array_mut().into_iter().flatten();
            parts.into_iter().try_for_each(|part| postprocessor(part, new))
        }
        "TemplateProcessing" => {
            let tokens = part["special_tokens"].as_object_mut().into_iter().flatten();
            for (_, token) in tokens {
                for id in token["ids"].as_array_mut().into_iter().flatten() {
                    renumber(id, new)?;
                }
            }
            Ok(())
        }
        "BertProcessing" | "RobertaProcessing" => {
            for key in ["sep", "cls"] {
                if let Some(id) = part.get_mut(key).and_then(|pair| pair.get_mut(1)) {
                    renumber(id, new)?;
                }
            }
            Ok(())
        }
        other => Err(Error::unsupported(format!("the vocabulary cannot be trimmed: its postprocessor is `{other}`"))),
    }
}

#[cfg(test)]
#[path = "tests/tokenizer.rs"]
mod tests;
