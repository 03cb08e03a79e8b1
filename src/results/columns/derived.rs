//! Utilisation: how near a figure is to what the machine can do at most.
//!
//! MBU = bytes that a step must read ÷ time per output token ÷ measured memory bandwidth. MFU = floating-point
//! operations ÷ time ÷ measured rate at the cell's precision, forward pass only. Both are relative to ceilings of the
//! processor, so they are empty for providers that compute elsewhere.
//!
//! What streams from a disk is held against the disk: bytes that a token read ÷ measured bandwidth of the disk is the
//! least time that the token could take.

use super::{Column, Group, Kind, Row, Source};
use crate::cell::{Category, Precision};
use crate::protocol::FactValue;
use crate::results::validate::weights_in_host_memory;
use crate::results::{Outcome, Value};

pub(super) fn columns() -> Vec<Column> {
    vec![
        column(
            "decode_mbu_ratio",
            "Model-bandwidth utilisation of decode: `decode_bytes_per_step` ÷ `tpot_median_seconds` ÷ `ceiling_memory_bandwidth_bytes_per_second`. Above 1 the weights came from the processor's caches.",
            |row| decode_mbu(row.outcome).map(Value::Float),
        ),
        column(
            "decode_mfu_ratio",
            "Model-FLOP utilisation of decode: `decode_flops_per_step` ÷ `tpot_median_seconds` ÷ the FLOP ceiling of the cell's precision.",
            |row| decode_mfu(row.outcome).map(Value::Float),
        ),
        column(
            "prefill_mfu_ratio",
            "Model-FLOP utilisation of prefill: `prefill_flops` ÷ `prefill_median_seconds` ÷ the FLOP ceiling of the cell's precision.",
            |row| prefill_mfu(row.outcome).map(Value::Float),
        ),
        Column {
            unit: "s/token",
            ..column(
                "disk_bound_seconds_per_token",
                "The least time that the disk allows a token of all sequences: `bytes_read_per_token` ÷ `disk_bandwidth_bytes_per_second`.",
                |row| disk_bound(row.outcome).map(Value::Float),
            )
        },
        Column {
            unit: "",
            ..column(
                "disk_bound_share",
                "`disk_bound_seconds_per_token` ÷ (`tpot_median_seconds` ÷ `batch`): 1 where decode is as fast as the disk. Above 1 records came from the page cache.",
                |row| disk_bound_share(row.outcome).map(Value::Float),
            )
        },
    ]
}

/// A larger part of outliers than this is worth a word. Of normally distributed samples one in two thousand is one.
const MANY_OUTLIERS: f64 = 0.1;

/// What the figures themselves tell about the row.
pub fn remarks(outcome: &Outcome) -> Vec<String> {
    let mut remarks = Vec::new();
    if let Some(nodes) = outcome.number("fallback_nodes").filter(|nodes| *nodes > 0.0) {
        let placement = match outcome.facts.get("node_placement") {
            Some(FactValue::Text(placement)) => format!(": {placement}"),
            _ => String::new(),
        };
        remarks
            .push(format!("{nodes} nodes ran on another provider than {}{placement}", outcome.cell.backend.provider));
    }
    for name in ["ttft_seconds", "tpot_seconds", "batch_seconds", "latency_seconds"] {
        if let Some(summary) = outcome.summaries.get(name)
            && summary.outliers as f64 > MANY_OUTLIERS * summary.n as f64
        {
            let (outliers, n) = (summary.outliers, summary.n);
            remarks.push(format!("{outliers} of {n} samples of {name} are outliers: the machine was not quiet"));
        }
    }
    if decode_mbu(outcome).is_some_and(|mbu| mbu > 1.0) {
        remarks.push("decode_mbu_ratio is above 1: the weights fit the processor's caches".to_owned());
    }
    for (name, value) in [("decode_mfu_ratio", decode_mfu(outcome)), ("prefill_mfu_ratio", prefill_mfu(outcome))] {
        if value.is_some_and(|mfu| mfu > 1.0) {
            remarks.push(format!("{name} is above 1: the machine was less quiet when the ceiling was measured"));
        }
    }
    if disk_bound_share(outcome).is_some_and(|share| share > 1.0) {
        remarks.push("disk_bound_share is above 1: records came from the page cache, not from the disk".to_owned());
    }
    remarks
}

fn decode_mbu(outcome: &Outcome) -> Option<f64> {
    let bytes = outcome.number("decode_bytes_per_step")?;
    Some(bytes / median(outcome, "tpot_seconds")? / ceiling(outcome, "ceiling_memory_bandwidth_bytes_per_second")?)
}

fn decode_mfu(outcome: &Outcome) -> Option<f64> {
    Some(outcome.number("decode_flops_per_step")? / median(outcome, "tpot_seconds")? / flops_ceiling(outcome)?)
}

fn prefill_mfu(outcome: &Outcome) -> Option<f64> {
    Some(outcome.number("prefill_flops")? / median(outcome, "prefill_seconds")? / flops_ceiling(outcome)?)
}

fn disk_bound(outcome: &Outcome) -> Option<f64> {
    let bandwidth = outcome.number("disk_bandwidth_bytes_per_second").filter(|bandwidth| *bandwidth > 0.0)?;
    Some(outcome.number("bytes_read_per_token")? / bandwidth)
}

fn disk_bound_share(outcome: &Outcome) -> Option<f64> {
    let step = median(outcome, "tpot_seconds").filter(|seconds| *seconds > 0.0)?;
    Some(disk_bound(outcome)? * f64::from(outcome.cell.workload.batch) / step)
}

fn flops_ceiling(outcome: &Outcome) -> Option<f64> {
    let name = match outcome.cell.precision {
        Precision::Fp32 => "ceiling_fp32_flops_per_second",
        Precision::Fp16 => "ceiling_fp16_flops_per_second",
        Precision::Int8 => "ceiling_int8_flops_per_second",
        Precision::Int4 => "ceiling_int4_flops_per_second",
    };
    ceiling(outcome, name)
}

fn ceiling(outcome: &Outcome, name: &str) -> Option<f64> {
    if !weights_in_host_memory(&outcome.cell) {
        return None;
    }
    outcome.ceilings.get(name).copied().filter(|value| *value > 0.0)
}

fn median(outcome: &Outcome, series: &str) -> Option<f64> {
    outcome.summaries.get(series).map(|summary| summary.median)
}

fn column(name: &str, description: &str, get: fn(&Row) -> Option<Value>) -> Column {
    Column {
        name: name.to_owned(),
        unit: "ratio",
        kind: Kind::Float,
        group: Group::Derived,
        category: Some(Category::Speed),
        description: description.to_owned(),
        source: Source::Row(get),
    }
}
