//! What a cell's optimizations come to, in a few columns; `impact.csv` has every figure.

use super::{Column, Group, Kind, Row, Source};
use crate::cell::Category;
use crate::results::{Value, impact};

pub(super) fn columns() -> Vec<Column> {
    vec![
        column(
            "impact_objective",
            Kind::Text,
            "The figure by which the optimization is judged (of several, the first's), named as in impact.csv.",
            |row| {
                row.outcome.impact.as_ref()?;
                Some(impact::objective(row.outcome)?.name().into())
            },
        ),
        column(
            "impact_pairs",
            Kind::Integer,
            "Pairs of processes, one without and one with the optimization.",
            |row| Some((impact::judged(row.outcome)?.pairs as u64).into()),
        ),
        column("impact_baseline", Kind::Float, "The objective without it: geometric mean over processes.", |row| {
            Some(Value::Float(impact::judged(row.outcome)?.baseline))
        }),
        column("impact_optimized", Kind::Float, "The objective with it.", |row| {
            Some(Value::Float(impact::judged(row.outcome)?.optimized))
        }),
        column(
            "impact_ratio",
            Kind::Float,
            "Geometric mean of the pairs' ratios of the objective, optimized ÷ baseline.",
            |row| Some(Value::Float(impact::judged(row.outcome)?.ratio.as_ref()?.value)),
        ),
        column(
            "impact_ci95_low_ratio",
            Kind::Float,
            "Lower end of the ratio's 95 % interval (Student's t of the pairs' logarithms); empty below 3 pairs.",
            |row| Some(Value::Float(impact::judged(row.outcome)?.ratio.as_ref()?.ci95?.low)),
        ),
        column("impact_ci95_high_ratio", Kind::Float, "Upper end of the ratio's 95 % interval.", |row| {
            Some(Value::Float(impact::judged(row.outcome)?.ratio.as_ref()?.ci95?.high))
        }),
        column(
            "impact_noise_ratio",
            Kind::Float,
            "By what factor two baseline processes that follow each other differ in the objective, as a median.",
            |row| impact::judged(row.outcome)?.noise.map(Value::Float),
        ),
        column(
            "impact_verdict",
            Kind::Text,
            "`helps` or `hurts` where the interval leaves out 1 and the ratio is farther from it than `impact_noise_ratio` and than 1 %; `no difference` otherwise; `undecided` below 3 pairs.",
            |row| Some(impact::judged(row.outcome)?.effect.name().into()),
        ),
        column(
            "impact_side_effects",
            Kind::Text,
            "Every other figure that is better or worse by the same rule, with its ratio; `none` where there is none.",
            |row| impact::side_effects(row.outcome).map(Value::Text),
        ),
    ]
}

fn column(name: &str, kind: Kind, description: &str, get: fn(&Row) -> Option<Value>) -> Column {
    Column {
        name: name.to_owned(),
        unit: if name.ends_with("_ratio") { "ratio" } else { "" },
        kind,
        group: Group::Derived,
        category: Some(Category::OptimizationImpact),
        description: description.to_owned(),
        source: Source::Row(get),
    }
}
