//! Columns of the series: their medians, and count, spread and interval.

use super::{Column, Group, Kind, Source};
use crate::metrics::Series;
use crate::results::Value;
use crate::stats::Summary;

/// A figure of a summary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Statistic {
    Median,
    Samples,
    Mean,
    Min,
    P90,
    P99,
    Mad,
    CiLow,
    CiHigh,
    Outliers,
}

impl Statistic {
    const SPREAD: [Self; 9] = [
        Self::Samples,
        Self::Mean,
        Self::Min,
        Self::P90,
        Self::P99,
        Self::Mad,
        Self::CiLow,
        Self::CiHigh,
        Self::Outliers,
    ];

    pub(super) fn of(self, summary: &Summary) -> Option<Value> {
        Some(match self {
            Self::Median => summary.median.into(),
            Self::Samples => summary.n.into(),
            Self::Mean => summary.mean.into(),
            Self::Min => summary.min.into(),
            Self::P90 => summary.p90?.into(),
            Self::P99 => summary.p99?.into(),
            Self::Mad => summary.mad.into(),
            Self::CiLow => summary.ci95?.low.into(),
            Self::CiHigh => summary.ci95?.high.into(),
            Self::Outliers => summary.outliers.into(),
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Median => "median",
            Self::Samples => "samples",
            Self::Mean => "mean",
            Self::Min => "min",
            Self::P90 => "p90",
            Self::P99 => "p99",
            Self::Mad => "mad",
            Self::CiLow => "ci95_low",
            Self::CiHigh => "ci95_high",
            Self::Outliers => "outliers",
        }
    }

    fn describe(self) -> &'static str {
        match self {
            Self::Median => "Median.",
            Self::Samples => "Number of samples.",
            Self::Mean => "Arithmetic mean.",
            Self::Min => "Smallest sample.",
            Self::P90 => "90th percentile; empty below 10 samples.",
            Self::P99 => "99th percentile; empty below 100 samples.",
            Self::Mad => "Median absolute deviation from the median, unscaled.",
            Self::CiLow => "Lower end of the median's 95 % bootstrap interval; empty below 5 samples.",
            Self::CiHigh => "Upper end of the median's 95 % bootstrap interval; empty below 5 samples.",
            Self::Outliers => "Samples with a modified z-score above 3.5; counted, not dropped.",
        }
    }

    fn is_count(self) -> bool {
        matches!(self, Self::Samples | Self::Outliers)
    }
}

/// The column of a series' median.
pub(super) fn median(series: &'static Series) -> Column {
    Column {
        group: Group::Medians,
        description: format!("Median. {}", series.description),
        ..column(series, Statistic::Median)
    }
}

/// The columns of a series' count, spread and interval.
pub(super) fn spread(series: &'static Series) -> impl Iterator<Item = Column> {
    let wanted =
        move |statistic: &Statistic| series.percentiles || !matches!(statistic, Statistic::P90 | Statistic::P99);
    Statistic::SPREAD.into_iter().filter(wanted).map(move |statistic| column(series, statistic))
}

fn column(series: &'static Series, statistic: Statistic) -> Column {
    let count = statistic.is_count();
    Column {
        name: name(series.name, statistic),
        unit: if count { "count" } else { series.unit },
        kind: if count { Kind::Integer } else { Kind::Float },
        group: Group::Spread,
        category: series.category,
        description: format!("`{}`: {}", series.name, statistic.describe()),
        source: Source::Series(series, statistic),
    }
}

/// `ttft_seconds` and `median` make `ttft_median_seconds`. A count has no unit of its own and keeps the series' whole
/// name, since two series (`prefill_seconds`, `prefill_tokens_per_second`) may differ in nothing else.
fn name(series: &str, statistic: Statistic) -> String {
    if statistic.is_count() {
        return format!("{series}_{}", statistic.name());
    }
    const UNITS: [&str; 10] = [
        "_tokens_per_second",
        "_per_second",
        "_joule_seconds",
        "_seconds",
        "_bytes",
        "_joules_per_token",
        "_tokens_per_joule",
        "_joules_per_run",
        "_runs_per_joule",
        "_watts",
    ];
    let (stem, unit) =
        UNITS.iter().find_map(|unit| series.strip_suffix(unit).map(|stem| (stem, *unit))).unwrap_or((series, ""));
    format!("{stem}_{}{unit}", statistic.name())
}
