//! The clock that times everything.

use std::sync::OnceLock;
use std::time::Instant;

/// The smallest step seen between two readings of the monotonic clock, in seconds; measured once a process.
///
/// Two readings in a row may be equal, so the steps that differ count. On Linux the clock has nanoseconds and the
/// step is the cost of reading it.
pub fn resolution_seconds() -> f64 {
    static RESOLUTION: OnceLock<f64> = OnceLock::new();
    *RESOLUTION.get_or_init(|| {
        let mut smallest = f64::INFINITY;
        let mut seen = 0;
        while seen < 1000 {
            let (first, second) = (Instant::now(), Instant::now());
            if second > first {
                smallest = smallest.min((second - first).as_secs_f64());
                seen += 1;
            }
        }
        smallest
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn has_a_plausible_resolution() {
        let resolution = super::resolution_seconds();
        assert!(resolution > 0.0 && resolution < 1e-3, "{resolution}");
    }
}
