//! The category `optimization_impact`: what its two arms measure, and what shows that a technique acted.

use Better::{Higher, Lower};

use super::{Better, Fact, FactKind, Series};
use crate::cell::Category;

/// Series of both arms, which have no columns in `summary.csv` of their own: `impact.csv` holds the arms apart.
pub const IMPACT_SERIES: &[Series] = &[
    series(
        "impact_ttft_seconds",
        "s",
        Lower,
        "Median over the sequences of a run of the time from the run's start to the sequence's first token.",
    ),
    series(
        "impact_decode_tokens_per_second",
        "tokens/s",
        Higher,
        "Tokens after the first ÷ seconds of the steps that made them, over all sequences that ran together.",
    ),
    series(
        "impact_tokens_per_second",
        "tokens/s",
        Higher,
        "Generated tokens of all sequences ÷ seconds from the run's start to its last token.",
    ),
    series("impact_load_seconds", "s", Lower, "Opening and loading of the model; one value a process."),
    series(
        "impact_peak_anon_bytes",
        "bytes",
        Lower,
        "The most anonymous memory of the process, loading included; one value a process.",
    ),
    series(
        "impact_peak_rss_bytes",
        "bytes",
        Lower,
        "The most resident memory of the process, mapped files included; one value a process.",
    ),
    series(
        "impact_read_bytes",
        "bytes",
        Lower,
        "Bytes that a run read from disk, by the kernel's count; what the page cache gave is not among them.",
    ),
];

const fn series(name: &'static str, unit: &'static str, better: Better, description: &'static str) -> Series {
    Series { name, unit, category: Some(Category::OptimizationImpact), better, description, percentiles: false }
}

/// What fidelity and evidence say, in the order of their columns.
pub(super) const FACTS: &[Fact] = &[
    fact(
        "impact_baseline_knobs",
        FactKind::Text,
        "What the optimized arm is compared with, where it is not simply the cell without the technique: knobs that only the baseline turns.",
    ),
    fact("impact_knobs", FactKind::Text, "Knobs that the technique turned, with their values."),
    fact("impact_baseline_package_hash", FactKind::Text, "SHA-256 of the manifest of the baseline's package."),
    fact(
        "impact_compared_tokens",
        FactKind::Integer,
        "Positions at which the optimized arm's logits were held against the baseline's, over the same tokens.",
    ),
    fact("impact_identical", FactKind::Bool, "Whether all of those logits are the same bits."),
    fact("impact_top1_agreement_share", FactKind::Score, "Share of those positions with the same likeliest token."),
    fact(
        "impact_kl_divergence_mean",
        FactKind::Score,
        "Mean over those positions of KL(baseline ‖ optimized) in nats; over the tokens that both have, where the vocabulary was trimmed.",
    ),
    fact("impact_kl_divergence_max", FactKind::Score, "The largest of them."),
    fact("impact_max_logit_difference", FactKind::Score, "Largest difference of a logit."),
    fact(
        "impact_greedy_identical_share",
        FactKind::Score,
        "Share of sequences whose greedy tokens are the baseline's.",
    ),
];

pub(super) const fn fact(name: &'static str, kind: FactKind, description: &'static str) -> Fact {
    Fact { name, kind, category: Some(Category::OptimizationImpact), description }
}
