//! ONNX Runtime's profile of a session: which nodes took how long.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use crate::error::{Context, Error, Result};
use crate::protocol::OperatorTime;

/// How the names of events end that are a node's own time.
const KERNEL: &str = "_kernel_time";

/// What a profile says of its last runs.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Profile {
    /// Runs that were looked at.
    pub runs: u64,
    /// Every node, the one that took longest first.
    pub nodes: Vec<OperatorTime>,
}

impl Profile {
    /// Reads a profile's file; of its runs the last ones count, `runs` at most.
    ///
    /// # Errors
    /// A file that cannot be read or is no profile, and one without a run.
    pub fn read(path: &Path, runs: usize) -> Result<Self> {
        let failed = || format!("cannot read ONNX Runtime's profile `{}`", path.display());
        let text = std::fs::read(path).with_context(failed)?;
        let events: Vec<Value> = serde_json::from_slice(&text).with_context(failed)?;
        Self::of(&events, runs).with_context(failed)
    }

    fn of(events: &[Value], runs: usize) -> Result<Self> {
        let number = |event: &Value, key: &str| event[key].as_f64().unwrap_or(0.0);
        let mut starts: Vec<f64> =
            events.iter().filter(|event| event["name"] == "model_run").map(|event| number(event, "ts")).collect();
        starts.sort_by(f64::total_cmp);
        let starts = &starts[starts.len().saturating_sub(runs)..];
        let first = *starts.first().ok_or_else(|| Error::new("it has no run"))?;
        let counted = starts.len() as f64;
        // By provider, operator and name.
        let mut places: HashMap<[&str; 3], usize> = HashMap::new();
        let mut nodes: Vec<OperatorTime> = Vec::new();
        for event in events.iter().filter(|event| event["cat"] == "Node" && number(event, "ts") >= first) {
            let Some(name) = event["name"].as_str().and_then(|name| name.strip_suffix(KERNEL)) else { continue };
            let text = |key: &str| event["args"][key].as_str().unwrap_or_default();
            let key = [text("provider"), text("op_name"), name];
            let place = *places.entry(key).or_insert_with(|| {
                let [provider, operator, node] = key.map(str::to_owned);
                nodes.push(OperatorTime { provider, operator, node, ..OperatorTime::default() });
                nodes.len() - 1
            });
            nodes[place].calls += 1;
            nodes[place].microseconds_per_run += number(event, "dur") / counted;
        }
        let total: f64 = nodes.iter().map(|node| node.microseconds_per_run).sum();
        for node in &mut nodes {
            node.share = if total > 0.0 { node.microseconds_per_run / total } else { 0.0 };
        }
        nodes.sort_by(|a, b| b.microseconds_per_run.total_cmp(&a.microseconds_per_run).then(a.node.cmp(&b.node)));
        Ok(Self { runs: starts.len() as u64, nodes })
    }

    /// Operators with their share of the time, the largest first: `MatMul 81 %, Relu 12 %`.
    pub fn summary(&self, count: usize) -> String {
        let mut operators: Vec<(&str, f64)> = Vec::new();
        for node in &self.nodes {
            match operators.iter_mut().find(|(name, _)| *name == node.operator) {
                Some((_, share)) => *share += node.share,
                None => operators.push((&node.operator, node.share)),
            }
        }
        operators.sort_by(|a, b| b.1.total_cmp(&a.1));
        let words = operators.iter().take(count).map(|(name, share)| format!("{name} {:.1} %", 100.0 * share));
        words.collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_last_runs_count() {
        let run = |ts: u64| json!({"cat": "Session", "name": "model_run", "ts": ts, "dur": 90});
        let node = |ts: u64, name: &str, operator: &str, dur: u64| {
            json!({"cat": "Node", "name": format!("{name}_kernel_time"), "ts": ts, "dur": dur,
                   "args": {"provider": "CPUExecutionProvider", "op_name": operator}})
        };
        let events = [
            json!({"cat": "Session", "name": "model_loading_uri", "ts": 1, "dur": 5}),
            // Events are written when they end, a run after its nodes.
            node(101, "a", "MatMul", 1000),
            run(100),
            node(201, "a", "MatMul", 60),
            node(270, "b", "Relu", 10),
            run(200),
            node(301, "a", "MatMul", 80),
            node(390, "b", "Relu", 10),
            node(391, "c", "Relu", 40),
            run(300),
        ];
        let profile = Profile::of(&events, 2).unwrap();
        let nodes: Vec<_> = profile.nodes.iter().map(|n| (n.node.as_str(), n.calls, n.microseconds_per_run)).collect();
        assert_eq!((profile.runs, nodes), (2, vec![("a", 2, 70.0), ("c", 1, 20.0), ("b", 2, 10.0)]));
        assert_eq!(profile.nodes[0].share, 0.7);
        assert_eq!(profile.summary(9), "MatMul 70.0 %, Relu 30.0 %");
        assert!(Profile::of(&[], 2).is_err());
    }
}
