//! Tokens leave: rows of the embedding and of the head, the tokenizer's entries, and every id in graph and manifest.

use std::collections::{BTreeSet, HashMap};

use serde_json::{Map, Value};

use super::head::{Head, set_dim};
use super::rows::{take_columns, take_rows};
use super::stream::embeddings;
use super::tokenizer::Tokenizer;
use crate::error::{Context, Error, Result};
use crate::package::edition::Edition;
use crate::package::onnx::{AttributeProto, data_type};
use crate::package::{Dim, Graph, KEPT_TOKENS, KeptTokens, Package, PortRole};

/// The number of tokens becomes a multiple of this, which kernels want, by the first ones that would have left.
const MULTIPLE: usize = 8;
/// What other tools read of a tokenizer, besides its file.
const CONFIG: &str = "tokenizer_config.json";

/// The tokens that stay, and the tokenizer that knows them.
#[derive(Debug)]
pub struct Vocabulary {
    /// Their old ids, which ascend.
    pub kept: Vec<u32>,
    tokenizer: Value,
}

impl Vocabulary {
    /// The tokens of texts, and those without which a tokenizer or a chat cannot be.
    ///
    /// # Errors
    /// Texts without tokens, a tokenizer of another kind (`unsupported`).
    pub fn of_texts(package: &Package, texts: &[String]) -> Result<Self> {
        let tokenizer = package.tokenizer()?;
        let name = package.manifest.tokenizer.as_deref().unwrap_or_default();
        let path = package.root.join(name);
        let failed = || format!("cannot read the tokenizer `{}`", path.display());
        let json = std::fs::read(&path).with_context(failed)?;
        let parsed = Tokenizer::parse(serde_json::from_slice(&json).with_context(failed)?)?;

        let mut used = BTreeSet::new();
        for text in texts {
            let encoding = tokenizer.encode_fast(text.as_str(), true);
            let encoding = encoding.map_err(|error| Error::new("cannot tokenize a text").because(error))?;
            used.extend(encoding.get_ids());
        }
        let size = package.manifest.shape.vocab_size;
        let (mut kept, always) = parsed.closure(&used);
        if used.is_empty() {
            return Err(Error::unsupported(format!(
                "trimming the vocabulary to a text without tokens would remove every word: of {size} tokens at most {} \
                 can go, and {always} bytes and special tokens stay",
                size.saturating_sub(always as u64)
            ))
            .hint("name a text that looks like what the model is to read and write"));
        }
        let tokens = &package.manifest.tokens;
        kept.extend(tokens.bos.into_iter().chain(tokens.pad).chain(tokens.eos.iter().copied()));
        if let Some(image) = &package.manifest.image {
            kept.extend([image.image_token, image.vision_start, image.vision_end]);
        }
        if let Some(last) = kept.last().filter(|last| u64::from(**last) >= size) {
            return Err(Error::new(format!("the tokenizer has the token {last}, the model only {size}"))
                .hint("the tokenizer and the model do not belong together"));
        }
        let room = kept.len().next_multiple_of(MULTIPLE).min(size as usize) - kept.len();
        let first: Vec<u32> = (0..size as u32).filter(|id| !kept.contains(id)).take(room).collect();
        kept.extend(first);
        let kept: Vec<u32> = kept.into_iter().collect();
        let tokenizer = parsed.with(&kept)?;
        Ok(Self { kept, tokenizer })
    }
}

/// Keeps these tokens of the package; `tied` says whether embedding and head are the same weights.
///
/// # Errors
/// A graph that looks tokens up or makes logits in a way that is not known (`unsupported`, named).
pub fn trim(edition: &mut Edition, vocabulary: Vocabulary, tied: bool) -> Result<()> {
    let old = edition.manifest.shape.vocab_size;
    let kept = vocabulary.kept;
    if kept.len() as u64 == old {
        return Ok(());
    }
    let new_ids: HashMap<u32, u32> = kept.iter().zip(0..).map(|(&old, new)| (old, new)).collect();
    let rows: Vec<usize> = kept.iter().map(|&id| id as usize).collect();
    let decoder = edition.decoder()?.clone();
    cut_embedding(edition, &decoder, old, &rows)?;
    cut_head(edition, &decoder, old, &rows)?;
    renumber_ids(edition, &decoder, &new_ids)?;

    let size = kept.len() as u64;
    let logits = decoder.need(PortRole::Logits, "the logits")?;
    let axis = logits.dims.len().saturating_sub(1);
    set_dim(&mut edition.graph.output, &logits.name, axis, Dim::Size(size));
    for port in edition.decoder_mut()?.outputs.iter_mut().filter(|port| port.role == PortRole::Logits) {
        port.dims[axis] = Dim::Size(size);
    }
    let manifest = &mut edition.manifest;
    let gone = (old - size) * manifest.shape.hidden_size;
    let parameters = &mut manifest.parameters;
    // No token multiplies with an embedding of its own.
    parameters.total = parameters.total.saturating_sub(if tied { gone } else { 2 * gone });
    parameters.active_per_token = parameters.active_per_token.saturating_sub(gone);
    manifest.shape.vocab_size = size;
    let new = |id: u32| new_ids.get(&id).copied().unwrap_or(id);
    let tokens = &mut manifest.tokens;
    (tokens.bos, tokens.pad) = (tokens.bos.map(new), tokens.pad.map(new));
    tokens.eos.iter_mut().for_each(|id| *id = new(*id));
    if let Some(image) = &mut manifest.image {
        for id in [&mut image.image_token, &mut image.vision_start, &mut image.vision_end] {
            *id = new(*id);
        }
    }
    write_files(edition, vocabulary.tokenizer, KeptTokens { vocab_size: old, old_ids: kept }, &new_ids)
}

/// Rows of the table, or of the tables of codes and scales.
fn cut_embedding(edition: &mut Edition, decoder: &Graph, old: u64, rows: &[usize]) -> Result<()> {
    let ids = decoder.need(PortRole::InputIds, "the token ids")?.name;
    let mut tables = BTreeSet::new();
    for (_, node) in embeddings(&edition.graph, &ids) {
        for axis in ["axis", "gather_axis"] {
            if node.int(axis).unwrap_or(0) != 0 {
                return Err(unknown(&format!("`{}` looks tokens up along another axis than the first", node.name())));
            }
        }
        tables.extend(node.input.iter().filter(|name| **name != ids && !name.is_empty()).cloned());
    }
    if tables.is_empty() {
        return Err(unknown("no node looks tokens up in a table"));
    }
    tables.iter().try_for_each(|name| take_rows(edition, name, old, rows))
}

/// Rows, or columns, of the product that gives the logits, and the sizes that stand behind it.
fn cut_head(edition: &mut Edition, decoder: &Graph, old: u64, rows: &[usize]) -> Result<()> {
    let head = Head::find(&edition.graph, decoder)?;
    let node = edition.graph.node[head.product].clone();
    let given = |at: usize| node.input_at(at).map(str::to_owned);
    match (node.op_type(), head.dequantized) {
        ("MatMulNBits", _) => {
            if given(4).is_some() {
                return Err(unknown("the head's weights are in an order of groups"));
            }
            for name in [given(1), given(2), given(3), given(5)].into_iter().flatten() {
                take_rows(edition, &name, old, rows)?;
            }
            let attribute = &mut edition.graph.node[head.product].attribute;
            attribute.retain(|attribute| attribute.name() != "N");
            attribute.push(AttributeProto::of_int("N", rows.len() as i64));
        }
        ("MatMul", Some(place)) => {
            let dequantize = edition.graph.node[place].clone();
            if dequantize.int("axis") != Some(0) {
                return Err(unknown("the head's weights are quantized along the vocabulary"));
            }
            if !rows.len().is_multiple_of(2) {
                return Err(unknown("an odd number of tokens"));
            }
            for name in dequantize.input.iter().filter(|name| !name.is_empty()) {
                take_columns(edition, name, rows)?;
            }
        }
        ("MatMul", None) => take_columns(edition, &given(1).unwrap_or_default(), rows)?,
        ("Gemm", None) => {
            let weight = given(1).unwrap_or_default();
            match node.int("transB").unwrap_or(0) {
                0 => take_columns(edition, &weight, rows)?,
                _ => take_rows(edition, &weight, old, rows)?,
            }
            if let Some(bias) = given(2) {
                take_rows(edition, &bias, old, rows)?;
            }
        }
        (other, _) => return Err(unknown(&format!("the head is `{other}`"))),
    }
    for &place in &head.behind {
        cut_behind(edition, place, old, rows)?;
    }
    Ok(())
}

/// A bias, or the shape that the logits get.
fn cut_behind(edition: &mut Edition, place: usize, old: u64, rows: &[usize]) -> Result<()> {
    let node = edition.graph.node[place].clone();
    let Some(second) = node.input_at(1).map(str::to_owned) else { return Ok(()) };
    if node.op_type() == "Add" {
        return take_rows(edition, &second, old, rows);
    }
    // A shape: a constant, or one that is put together.
    let made = edition.graph.node.iter().position(|node| node.makes().any(|name| name == second));
    let places = match made {
        Some(concat) if edition.graph.node[concat].op_type() == "Concat" => {
            (0..edition.graph.node[concat].input.len()).map(|at| (concat, at)).collect()
        }
        Some(_) => return Err(unknown(&format!("`{}` makes the shape of the logits", node.name()))),
        None => vec![(place, 1)],
    };
    for (place, at) in places {
        let name = edition.graph.node[place].input[at].clone();
        let Some(mut sizes) = integers(edition, &name)? else { continue };
        if let Some(size) = sizes.last_mut().filter(|size| **size == old as i64) {
            *size = rows.len() as i64;
            edition.graph.node[place].input[at] = constant(edition, &name, &sizes);
        }
    }
    Ok(())
}

/// Ids that stand in the graph, as that of an image's place does.
fn renumber_ids(edition: &mut Edition, decoder: &Graph, new_ids: &HashMap<u32, u32>) -> Result<()> {
    let ids = decoder.need(PortRole::InputIds, "the token ids")?.name;
    let tables: BTreeSet<usize> = embeddings(&edition.graph, &ids).map(|(place, _)| place).collect();
    for place in 0..edition.graph.node.len() {
        let node = edition.graph.node[place].clone();
        if !node.input.contains(&ids) || tables.contains(&place) || node.op_type() == "Shape" {
            continue;
        }
        let refused = || unknown(&format!("`{}` ({}) reads token ids", node.name(), node.op_type()));
        let at = usize::from(node.input_at(0) == Some(ids.as_str()));
        let compared = node.input_at(at).filter(|_| node.op_type() == "Equal").ok_or_else(refused)?;
        let mut values = integers(edition, compared)?.ok_or_else(refused)?;
        for value in &mut values {
            let new = u32::try_from(*value).ok().and_then(|old| new_ids.get(&old));
            *value = i64::from(*new.ok_or_else(refused)?);
        }
        edition.graph.node[place].input[at] = constant(edition, compared, &values);
    }
    Ok(())
}

/// The values of an integer constant.
fn integers(edition: &Edition, name: &str) -> Result<Option<Vec<i64>>> {
    if edition.source().tensor(name).is_none_or(|stored| stored.data_type != data_type::INT64) {
        return Ok(None);
    }
    let bytes = edition.source().read_all(name)?;
    Ok(Some(bytes.as_chunks::<8>().0.iter().map(|eight| i64::from_le_bytes(*eight)).collect()))
}

/// A new constant in the shape of another, which may be others' too; its name.
fn constant(edition: &mut Edition, like: &str, values: &[i64]) -> String {
    let name = format!("{like}/trimmed");
    let dims = edition.source().tensor(like).map(|stored| stored.dims.clone()).unwrap_or_default();
    edition.set(&name, data_type::INT64, &dims, values.iter().flat_map(|value| value.to_le_bytes()).collect());
    name
}

fn write_files(edition: &mut Edition, tokenizer: Value, kept: KeptTokens, new_ids: &HashMap<u32, u32>) -> Result<()> {
    let bytes = |value: &Value| {
        let mut bytes = serde_json::to_vec_pretty(value).context("cannot express a tokenizer")?;
        bytes.push(b'\n');
        Ok::<_, Error>(bytes)
    };
    let name = edition.manifest.tokenizer.clone().unwrap_or_default();
    edition.files.insert(name, bytes(&tokenizer)?);
    let kept = serde_json::to_value(kept).context("cannot express the kept tokens")?;
    edition.files.insert(KEPT_TOKENS.to_owned(), bytes(&kept)?);
    let Ok(config) = std::fs::read(edition.package().root.join(CONFIG)) else { return Ok(()) };
    let mut config: Value = serde_json::from_slice(&config).with_context(|| format!("cannot read `{CONFIG}`"))?;
    if let Some(added) = config.get_mut("added_tokens_decoder").and_then(Value::as_object_mut) {
        let renumbered = std::mem::take(added).into_iter().filter_map(|(id, token)| {
            let new = new_ids.get(&id.parse().ok()?)?;
            Some((new.to_string(), token))
        });
        *added = renumbered.collect::<Map<_, _>>();
        edition.files.insert(CONFIG.to_owned(), bytes(&config)?);
    }
    Ok(())
}

fn unknown(what: &str) -> Error {
    Error::unsupported(format!("the vocabulary cannot be trimmed: {what}"))
        .hint("surgery knows how this program's exporter embeds tokens and makes logits")
}
