//! What two measurements of the same things have in common, and what not.

use std::fmt::Write as _;

/// Differences, all of them, so that a failure says what they have in common.
#[derive(Default)]
pub struct Differences {
    text: String,
    count: usize,
    /// The largest, in parts of what is allowed.
    worst: f64,
    compared: usize,
}

impl Differences {
    fn unequal(&mut self, what: &str, found: impl std::fmt::Debug, golden: impl std::fmt::Debug) {
        self.count += 1;
        if self.count <= 60 {
            let _ = writeln!(self.text, "{what}: {found:?}, the harness has {golden:?}");
        }
    }

    /// Counts what must be the same.
    pub fn equal<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, found: &T, golden: &T) {
        self.compared += 1;
        if found != golden {
            self.unequal(what, found, golden);
        }
    }

    /// Counts what must be within that much.
    pub fn near(&mut self, what: &str, found: f64, golden: f64, allowed: f64) {
        self.compared += 1;
        self.worst = self.worst.max((found - golden).abs() / allowed);
        if (found - golden).abs() > allowed || !found.is_finite() {
            self.unequal(what, found, golden);
        }
    }

    /// Says how far things were apart, and fails where one was beyond what is allowed.
    ///
    /// # Panics
    /// So it fails.
    pub fn assert_none(&self, what: &str) {
        eprintln!("{what}: {} comparisons, the farthest at {:.3} of what is allowed", self.compared, self.worst);
        assert!(self.count == 0, "{what}: {} of {} differ\n{}", self.count, self.compared, self.text);
    }
}
