//! What the loader's pager did while a pack was measured: bytes from the disk, waiting, hits.

use std::ops::AddAssign;

use crate::engine::{Decoder, Model};
use crate::error::Result;
use crate::loader::pager::Statistics;
use crate::loader::spill::Traffic;
use crate::protocol::Reporter;

/// What was counted up to some moment.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reading {
    pager: Option<Statistics>,
    traffic: Option<Traffic>,
}

impl Reading {
    /// Now.
    pub fn now(model: &Model, decoder: &Decoder) -> Self {
        Self { pager: model.pager_statistics(), traffic: decoder.traffic() }
    }
}

/// Adds up stretches of prefill and of decode.
#[derive(Debug, Default)]
pub struct Meter {
    decode: Counters,
    tokens: u64,
    seconds: f64,
    prefill_bytes: u64,
    prefills: u64,
    last: Reading,
    peak_bytes: u64,
}

/// What of a reading only grows.
#[derive(Debug, Default, Clone, Copy)]
struct Counters {
    bytes_read: u64,
    read_nanos: u64,
    wait_nanos: u64,
    experts_wanted: u64,
    experts_hit: u64,
    guessed: u64,
    guessed_right: u64,
    evictions: u64,
    spilled: u64,
    spill_read: u64,
}

impl Counters {
    fn between(before: &Reading, after: &Reading) -> Self {
        let (was, is) = (before.pager.unwrap_or_default(), after.pager.unwrap_or_default());
        let (gone, goes) = (before.traffic.unwrap_or_default(), after.traffic.unwrap_or_default());
        let grown = |of: fn(&Statistics) -> u64| of(&is).saturating_sub(of(&was));
        Self {
            spilled: goes.written.saturating_sub(gone.written),
            spill_read: goes.read.saturating_sub(gone.read),
            bytes_read: grown(|s| s.bytes_read),
            read_nanos: grown(|s| s.read_nanos),
            wait_nanos: grown(|s| s.wait_nanos),
            experts_wanted: grown(|s| s.experts_wanted),
            experts_hit: grown(|s| s.experts_hit),
            guessed: grown(|s| s.guessed),
            guessed_right: grown(|s| s.guessed_right),
            evictions: grown(|s| s.evictions),
        }
    }
}

impl AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.bytes_read += other.bytes_read;
        self.read_nanos += other.read_nanos;
        self.wait_nanos += other.wait_nanos;
        self.experts_wanted += other.experts_wanted;
        self.experts_hit += other.experts_hit;
        self.guessed += other.guessed;
        self.guessed_right += other.guessed_right;
        self.evictions += other.evictions;
        self.spilled += other.spilled;
        self.spill_read += other.spill_read;
    }
}

impl Meter {
    /// Counts a prefill between two readings.
    pub fn prefilled(&mut self, before: &Reading, after: &Reading) {
        self.prefill_bytes += Counters::between(before, after).bytes_read;
        self.prefills += 1;
        self.holds(after);
    }

    /// Counts decode steps between two readings: `tokens` of all sequences in `seconds`.
    pub fn decoded(&mut self, before: &Reading, after: &Reading, tokens: u64, seconds: f64) {
        self.decode += Counters::between(before, after);
        self.tokens += tokens;
        self.seconds += seconds;
        self.holds(after);
    }

    fn holds(&mut self, now: &Reading) {
        self.last = *now;
        self.peak_bytes = self.peak_bytes.max(now.pager.map_or(0, |pager| pager.peak_bytes));
    }

    /// Reports what was counted. A figure that has no denominator is left out.
    ///
    /// # Errors
    /// A parent that no longer listens.
    pub fn report(&self, report: &Reporter) -> Result<()> {
        let counted = &self.decode;
        let (tokens, seconds) = (self.tokens as f64, |nanos: u64| nanos as f64 * 1e-9);
        let of_pager = [
            ("bytes_read_per_token", counted.bytes_read as f64, tokens),
            ("disk_read_bytes_per_second", counted.bytes_read as f64, seconds(counted.read_nanos)),
            ("disk_busy_share", seconds(counted.read_nanos), self.seconds),
            ("wait_share", seconds(counted.wait_nanos), self.seconds),
            ("expert_hit_rate", counted.experts_hit as f64, counted.experts_wanted as f64),
            ("guess_precision", counted.guessed_right as f64, counted.guessed as f64),
            ("evictions_per_token", counted.evictions as f64, tokens),
        ];
        let of_spill = [
            ("spilled_bytes_per_token", counted.spilled as f64, tokens),
            ("spill_read_bytes_per_token", counted.spill_read as f64, tokens),
        ];
        let of_pager = of_pager.into_iter().filter(|_| self.last.pager.is_some());
        let of_spill = of_spill.into_iter().filter(|_| self.last.traffic.is_some());
        for (name, numerator, denominator) in of_pager.chain(of_spill) {
            if denominator > 0.0 {
                report.fact(name, numerator / denominator)?;
            }
        }
        let Some(pager) = self.last.pager else { return Ok(()) };
        if let Some(bytes) = self.prefill_bytes.checked_div(self.prefills) {
            report.fact("prefill_read_bytes", bytes)?;
        }
        report.fact("held_bytes", pager.held_bytes)?;
        report.fact("held_peak_bytes", self.peak_bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::metrics::find_fact;
    use crate::protocol::{FactValue, Message};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// The facts that were reported, all of which the tables know.
    fn facts(work: impl FnOnce(&Reporter)) -> BTreeMap<String, f64> {
        let lines = Lines::default();
        work(&Reporter::new(lines.clone()));
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let fact = |line: &str| match serde_json::from_str(line).unwrap() {
            Message::Fact { name, value } => {
                assert!(find_fact(&name).is_some(), "{name}");
                match value {
                    FactValue::Integer(value) => (name, value as f64),
                    FactValue::Float(value) => (name, value),
                    other => panic!("{name} is {other:?}"),
                }
            }
            other => panic!("{other:?}"),
        };
        text.lines().map(fact).collect()
    }

    const BEFORE: Statistics = Statistics {
        bytes_read: 1_000,
        reads: 1,
        read_nanos: 500,
        wait_nanos: 100,
        experts_wanted: 10,
        experts_hit: 10,
        guessed: 0,
        guessed_right: 0,
        evictions: 3,
        held_bytes: 700,
        peak_bytes: 900,
    };

    fn of(pager: &Statistics) -> Reading {
        Reading { pager: Some(*pager), traffic: None }
    }

    fn decode(before: &Statistics, after: &Statistics, tokens: u64, seconds: f64) -> Meter {
        let mut meter = Meter::default();
        meter.decoded(&of(before), &of(after), tokens, seconds);
        meter
    }

    #[test]
    fn figures_are_of_the_time_between() {
        let after = Statistics {
            bytes_read: 5_000_001_000,
            read_nanos: 4_000_000_500,
            wait_nanos: 2_000_000_100,
            experts_wanted: 50,
            experts_hit: 40,
            guessed: 8,
            guessed_right: 6,
            evictions: 13,
            held_bytes: 800,
            peak_bytes: 950,
            ..BEFORE
        };
        let facts = facts(|to| decode(&BEFORE, &after, 10, 8.0).report(to).unwrap());
        let expected = [
            ("bytes_read_per_token", 5e8),
            ("disk_busy_share", 0.5),
            ("disk_read_bytes_per_second", 1.25e9),
            ("evictions_per_token", 1.0),
            ("expert_hit_rate", 0.75),
            ("guess_precision", 0.75),
            ("held_bytes", 800.0),
            ("held_peak_bytes", 950.0),
            ("wait_share", 0.25),
        ];
        assert_eq!(facts.len(), expected.len(), "{facts:?}");
        for (name, value) in expected {
            assert!((facts[name] - value).abs() <= 1e-12 * value, "{name}: {}", facts[name]);
        }
    }

    #[test]
    fn what_did_not_happen_has_no_share() {
        let facts = facts(|to| decode(&BEFORE, &BEFORE, 4, 1.0).report(to).unwrap());
        for name in ["disk_read_bytes_per_second", "expert_hit_rate", "guess_precision", "prefill_read_bytes"] {
            assert!(!facts.contains_key(name), "{name}");
        }
        assert_eq!((facts["bytes_read_per_token"], facts["wait_share"]), (0.0, 0.0));
        // One generated token has no decode step.
        let facts = self::facts(|to| decode(&BEFORE, &BEFORE, 0, 0.0).report(to).unwrap());
        assert_eq!(facts.keys().collect::<Vec<_>>(), ["held_bytes", "held_peak_bytes"]);
    }

    #[test]
    fn stretches_add_up_and_prefill_is_apart() {
        let read = |bytes_read: u64| of(&Statistics { bytes_read, ..BEFORE });
        let mut meter = Meter::default();
        for start in [0, 10_000] {
            meter.prefilled(&read(start), &read(start + 6_000));
            meter.decoded(&read(start + 6_000), &read(start + 10_000), 4, 0.5);
        }
        let facts = facts(|to| meter.report(to).unwrap());
        assert_eq!((facts["prefill_read_bytes"], facts["bytes_read_per_token"]), (6_000.0, 1_000.0));
    }

    #[test]
    fn caches_that_wait_on_disk_have_traffic() {
        let at =
            |written, read| Reading { traffic: Some(Traffic { written, read, ..Traffic::default() }), ..of(&BEFORE) };
        let mut meter = Meter::default();
        meter.prefilled(&at(0, 0), &at(9_000, 1_000));
        meter.decoded(&at(9_000, 1_000), &at(9_800, 5_000), 8, 1.0);
        let facts = facts(|to| meter.report(to).unwrap());
        assert_eq!((facts["spilled_bytes_per_token"], facts["spill_read_bytes_per_token"]), (100.0, 500.0));
    }

    #[test]
    fn without_a_loader_there_is_nothing_to_say() {
        let mut meter = Meter::default();
        meter.prefilled(&Reading::default(), &Reading::default());
        meter.decoded(&Reading::default(), &Reading::default(), 8, 1.0);
        assert!(facts(|to| meter.report(to).unwrap()).is_empty());
    }
}
