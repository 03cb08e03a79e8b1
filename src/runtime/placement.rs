//! Which provider runs which node: a fallback is never silent.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char};

use ort::AsPointer;

use super::ort_error;
use crate::error::Result;

/// Nodes by provider and operator.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placement {
    /// Provider → operator → count, in the graph as partitioned among the providers.
    pub nodes: BTreeMap<String, BTreeMap<String, u64>>,
}

impl Placement {
    /// Reads it from a session that was made with `session.record_ep_graph_assignment_info`.
    pub(super) fn read(session: &ort::session::Session) -> Result<Self> {
        let api = ort::api();
        let failed = |error| ort_error("cannot read which provider runs which node", error);
        let check = |status| {
            // SAFETY: the status comes from the call right before and is handed over once.
            unsafe { ort::Error::<()>::result_from_status(status) }.map_err(failed)
        };
        let mut placement = Self::default();
        // SAFETY: every out-pointer is valid; the arrays and strings belong to the session, which outlives this
        // function, and are only read.
        unsafe {
            let (mut subgraphs, mut count) = (std::ptr::null(), 0);
            check((api.Session_GetEpGraphAssignmentInfo)(session.ptr(), &mut subgraphs, &mut count))?;
            for i in 0..count {
                let subgraph = *subgraphs.add(i);
                let mut name: *const c_char = std::ptr::null();
                check((api.EpAssignedSubgraph_GetEpName)(subgraph, &mut name))?;
                let operators = placement.nodes.entry(CStr::from_ptr(name).to_string_lossy().into_owned()).or_default();
                let (mut nodes, mut node_count) = (std::ptr::null(), 0);
                check((api.EpAssignedSubgraph_GetNodes)(subgraph, &mut nodes, &mut node_count))?;
                for j in 0..node_count {
                    let mut operator: *const c_char = std::ptr::null();
                    check((api.EpAssignedNode_GetOperatorType)(*nodes.add(j), &mut operator))?;
                    *operators.entry(CStr::from_ptr(operator).to_string_lossy().into_owned()).or_default() += 1;
                }
            }
        }
        Ok(placement)
    }

    /// Adds another graph's nodes.
    pub fn add(&mut self, other: &Self) {
        for (provider, operators) in &other.nodes {
            let sums = self.nodes.entry(provider.clone()).or_default();
            for (operator, count) in operators {
                *sums.entry(operator.clone()).or_default() += count;
            }
        }
    }

    /// Nodes that the provider runs.
    pub fn on(&self, provider: &str) -> u64 {
        self.nodes.get(provider).map_or(0, |operators| operators.values().sum())
    }

    /// Nodes that any other provider runs.
    pub fn elsewhere(&self, provider: &str) -> u64 {
        self.nodes.iter().filter(|(name, _)| *name != provider).flat_map(|(_, operators)| operators.values()).sum()
    }

    /// One line: the named provider's count, then the others' with their operators, the most frequent first.
    pub fn describe(&self, provider: &str) -> String {
        let mut parts = vec![format!("{provider} {}", self.on(provider))];
        for (name, operators) in self.nodes.iter().filter(|(name, _)| *name != provider) {
            let mut operators: Vec<_> = operators.iter().collect();
            operators.sort_by_key(|(operator, count)| (std::cmp::Reverse(**count), (*operator).clone()));
            let list: Vec<_> = operators.iter().map(|(operator, count)| format!("{operator} {count}")).collect();
            parts.push(format!("{name} {} ({})", self.on(name), list.join("; ")));
        }
        parts.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_fell_back() {
        let operators = |list: &[(&str, u64)]| list.iter().map(|(n, c)| ((*n).to_owned(), *c)).collect();
        let placement = Placement {
            nodes: [
                ("OpenVINOExecutionProvider".to_owned(), operators(&[("MatMul", 10), ("Add", 2)])),
                ("CPUExecutionProvider".to_owned(), operators(&[("Cast", 1), ("Gather", 3)])),
            ]
            .into(),
        };
        assert_eq!(placement.on("OpenVINOExecutionProvider"), 12);
        assert_eq!(placement.elsewhere("OpenVINOExecutionProvider"), 4);
        assert_eq!(
            placement.describe("OpenVINOExecutionProvider"),
            "OpenVINOExecutionProvider 12, CPUExecutionProvider 4 (Gather 3; Cast 1)"
        );
    }
}
