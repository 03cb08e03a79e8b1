//! A surgery from beginning to end: look, cut, count.

use std::collections::BTreeSet;
use std::path::Path;

use super::account::{self, Account};
use super::calibrate::{self, Calibration};
use super::spec::Spec;
use super::vocabulary::{self, Vocabulary};
use super::window::Windows;
use super::{experts, genai, head, layers};
use crate::error::Result;
use crate::optimizations::{Evidence, Workshop};
use crate::package::Package;
use crate::package::edition::Edition;
use crate::protocol::FactValue;

/// What was done.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What was measured first.
    pub calibration: Calibration,
    /// Layers before.
    pub layers: usize,
    /// Layers that left, by their old numbers.
    pub dropped: Vec<usize>,
    /// Experts of a layer before and after.
    pub experts: Option<(u64, u64)>,
    /// The part of all choices during the calibration that fell on experts that stay.
    pub kept_choices: Option<f64>,
    /// Tokens before and after.
    pub tokens: (u64, u64),
    /// Whether the head got its choice of positions now.
    pub selects_logits: bool,
    /// Weights before and after.
    pub parameters: (u64, u64),
    /// Bytes of all files before and after.
    pub bytes: (u64, u64),
}

/// Operates on a package; the result is in a folder that does not exist yet.
///
/// # Errors
/// What [`Spec::check`] refuses, a graph that an operation does not know (`unsupported`, named), a full disk.
pub fn operate(package: &Package, spec: &Spec, folder: &Path, workshop: &Workshop) -> Result<(Package, Outcome)> {
    let before = &package.manifest;
    spec.check(before)?;
    let (drop, keep) = (spec.layers(before)?, spec.experts(before)?);
    let mut edition = Edition::of(package)?;
    let mut outcome = Outcome {
        calibration: Calibration::default(),
        layers: before.shape.layers as usize,
        dropped: Vec::new(),
        experts: before.shape.experts.map(|experts| (experts, experts)),
        kept_choices: None,
        tokens: (before.shape.vocab_size, before.shape.vocab_size),
        selects_logits: false,
        parameters: (before.parameters.total, before.parameters.total),
        bytes: (package.bytes(), package.bytes()),
    };
    // What cannot be done is said before anything is measured.
    let trimmed = match &spec.vocabulary {
        Some(texts) => Some(Vocabulary::of_texts(package, &texts.texts)?),
        None => None,
    };
    let account = Account::of(&edition)?;
    if drop > 0 || keep.is_some() {
        let tokens = spec.calibration_tokens as usize;
        let windows = match &spec.calibration {
            Some(texts) => Windows::of_texts(package, &texts.texts, tokens, &texts.source)?,
            None => Windows::random(package, tokens),
        };
        let routers = if keep.is_some() { experts::routers(&edition)? } else { Vec::new() };
        outcome.calibration = calibrate::measure(&edition, &windows, &routers, workshop)?;
    }
    edition.graph.value_info.clear();
    if spec.last_logits {
        outcome.selects_logits = head::select_positions(&mut edition)?;
    }
    if let Some(keep) = keep {
        let uses = &outcome.calibration.uses;
        let kept = experts::most_used(uses, keep);
        let all: u64 = uses.values().flatten().sum();
        let stay: u64 = kept.iter().map(|(layer, rows)| rows.iter().map(|&row| uses[layer][row]).sum::<u64>()).sum();
        outcome.kept_choices = (all > 0).then(|| stay as f64 / all as f64);
        outcome.experts = outcome.experts.map(|(experts, _)| (experts, keep as u64));
        experts::keep(&mut edition, &kept)?;
    }
    if let Some(vocabulary) = trimmed {
        outcome.tokens.1 = vocabulary.kept.len() as u64;
        vocabulary::trim(&mut edition, vocabulary, account::ties(before, account))?;
    }
    // Last: weights are renamed.
    let dropped = least_important(&outcome.calibration.importance, drop, spec.protect_ends);
    layers::drop(&mut edition, &dropped)?;
    outcome.dropped = dropped.into_iter().collect();
    edition.remove_dead()?;
    account::enter(&mut edition, account)?;
    genai::keep(&mut edition)?;
    if let Some(options) = edition.manifest.exporter.options.as_object_mut() {
        options.insert("surgery".to_owned(), spec.describe().into());
    }
    let package = edition.write(folder)?;
    outcome.parameters.1 = package.manifest.parameters.total;
    outcome.bytes.1 = package.bytes();
    Ok((package, outcome))
}

/// The layers that change the stream least, of equal ones the later.
fn least_important(importance: &[f64], count: usize, protect_ends: bool) -> BTreeSet<usize> {
    let ends = usize::from(protect_ends);
    let mut order: Vec<usize> = (ends..importance.len().saturating_sub(ends)).collect();
    order.sort_by(|&a, &b| importance[a].total_cmp(&importance[b]).then(b.cmp(&a)));
    order.into_iter().take(count).collect()
}

impl Outcome {
    /// As the results have it.
    pub fn evidence(&self) -> Evidence {
        let joined = |numbers: &[usize]| numbers.iter().map(usize::to_string).collect::<Vec<_>>().join(" ");
        let mut evidence = Evidence::new();
        let mut fact = |name: &str, value: FactValue| {
            evidence.insert(name.to_owned(), value);
        };
        fact("surgery_layers_dropped", (self.dropped.len() as u64).into());
        fact("surgery_dropped_layers", joined(&self.dropped).into());
        let importance: Vec<_> = self.calibration.importance.iter().map(|value| format!("{value:.4}")).collect();
        fact("surgery_layer_importance", importance.join(" ").into());
        fact("surgery_calibration", self.calibration.source.clone().into());
        fact("surgery_calibration_tokens", self.calibration.tokens.into());
        if let Some((before, kept)) = self.experts {
            fact("surgery_experts_before", before.into());
            fact("surgery_experts_kept", kept.into());
        }
        if let Some(share) = self.kept_choices {
            fact("surgery_kept_choices_share", share.into());
        }
        fact("surgery_tokens_before", self.tokens.0.into());
        fact("surgery_tokens_kept", self.tokens.1.into());
        fact("surgery_logits_selected", self.selects_logits.into());
        fact("surgery_parameters_before", self.parameters.0.into());
        fact("surgery_parameters_after", self.parameters.1.into());
        fact("surgery_bytes_before", self.bytes.0.into());
        fact("surgery_bytes_after", self.bytes.1.into());
        evidence
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_important_layers_leave() {
        let importance = [0.01, 0.3, 0.1, 0.1, 0.2, 0.0];
        let chosen = |count, protected| least_important(&importance, count, protected).into_iter().collect::<Vec<_>>();
        assert_eq!(chosen(1, true), [3]);
        assert_eq!(chosen(3, true), [2, 3, 4]);
        assert_eq!(chosen(3, false), [0, 3, 5]);
        assert!(chosen(0, true).is_empty());
    }
}
