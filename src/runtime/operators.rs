//! What ONNX Runtime says about an operator that it does not know, or not in the form that a graph has it.
//!
//! Its message lists every tensor of the node; people need the operator, the node and the cause.

/// An operator that a build of ONNX Runtime refuses.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal<'a> {
    /// The operator, e.g. `QMoE`.
    pub operator: &'a str,
    /// The node's name in the graph.
    pub node: &'a str,
    /// What is wrong with it, in ONNX Runtime's words.
    pub cause: &'a str,
}

impl<'a> Refusal<'a> {
    /// Finds one in a message, or `None` where the message is about something else.
    pub fn find(message: &'a str) -> Option<Self> {
        Self::of_schema(message).or_else(|| Self::of_registry(message)).or_else(|| Self::of_kernel(message))
    }

    /// `… In Node, ("NODE", OPERATOR, "DOMAIN", VERSION) : (…) -> (…) , Error CAUSE`
    fn of_schema(message: &'a str) -> Option<Self> {
        let (_, rest) = message.split_once("In Node, (\"")?;
        let (node, rest) = rest.split_once("\", ")?;
        let (operator, rest) = rest.split_once(", ")?;
        let (_, cause) = rest.split_once(" , Error ").or_else(|| rest.split_once("Error "))?;
        // Attributes and inputs that the build's schema does not know are of a newer one. Anything else that is wrong
        // with a node is wrong with the graph.
        let newer = ["Unrecognized attribute", "No Op registered", "input size"];
        newer.iter().find(|words| cause.contains(*words))?;
        Some(Self { operator, node, cause: cause.trim().trim_end_matches('.') })
    }

    /// `… DOMAIN:OPERATOR(VERSION) is not a registered function/op`
    fn of_registry(message: &'a str) -> Option<Self> {
        let (before, _) = message.split_once(") is not a registered function/op")?;
        let (name, _) = before.rsplit_once('(')?;
        let operator = name.rsplit([':', ' ']).next()?;
        Some(Self { operator, node: "", cause: "it is not registered in this build" })
    }

    /// `Could not find an implementation for OPERATOR(VERSION) node with name 'NODE'`
    fn of_kernel(message: &'a str) -> Option<Self> {
        let at = message.find("Could not find an implementation for ")?;
        let rest = &message[at..];
        let operator = rest.strip_prefix("Could not find an implementation for ")?.split(['(', ' ']).next()?;
        let node = rest.split_once("node with name '").map_or("", |(_, rest)| rest.split('\'').next().unwrap_or(""));
        Some(Self { operator, node, cause: "it has no kernel for this operator and these types" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_are_found_in_messages() {
        let message = "Load model from m.onnx failed:This is an invalid model. In Node, (\"/l/QMoE\", QMoE, \
                       \"com.microsoft\", -1) : (\"a\": tensor(float),) -> (\"b\",) , Error Unrecognized attribute: \
                       accuracy_level for operator QMoE";
        let found = Refusal::find(message).unwrap();
        assert_eq!((found.operator, found.node), ("QMoE", "/l/QMoE"));
        assert_eq!(found.cause, "Unrecognized attribute: accuracy_level for operator QMoE");
        let message = "Could not find an implementation for Attention(23) node with name '/a/Attention'";
        let found = Refusal::find(message).unwrap();
        assert_eq!((found.operator, found.node), ("Attention", "/a/Attention"));
        let message = "Fatal error: com.microsoft:QMoE(-1) is not a registered function/op";
        assert_eq!(Refusal::find(message).unwrap().operator, "QMoE");
        let broken = "In Node, (\"/l/Add\", Add, \"\", -1) : () -> () , Error Required attribute 'axis' is missing";
        assert_eq!(Refusal::find(broken), None);
        assert_eq!(Refusal::find("bad allocation"), None);
        assert_eq!(Refusal::find("In Node, (\""), None);
    }
}
