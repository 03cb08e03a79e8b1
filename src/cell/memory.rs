//! What memory a cell may use, and how a matrix file says so.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Residency;

/// How a cell keeps its weights, and what memory it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemoryPlan {
    /// Where the weights of a pack live; `None` for an ordinary package, whose weights are ONNX Runtime's affair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub residency: Option<Residency>,
    /// What the process may hold in all, by the loader's own account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_bytes: Option<u64>,
    /// What the kernel lets the process hold, page cache included, without swap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_bytes: Option<u64>,
    /// Sequences of a batch that go through a part of a pack together, before the next part's weights are read; `None`
    /// where the graph runs in one piece.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro_batch: Option<u32>,
    /// Whether key/value caches wait on disk while other parts of a pack run.
    #[serde(default, skip_serializing_if = "is_false")]
    pub offload: bool,
    /// Experts of the next layer that are read on a guess, before its router spoke.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub guess: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde asks for")]
fn is_false(value: &bool) -> bool {
    !value
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde asks for")]
fn is_zero(value: &u32) -> bool {
    *value == 0
}

impl MemoryPlan {
    /// True where nothing is said of memory.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether all weights that a step reads are in memory while it runs, if the machine has room for them.
    #[must_use]
    pub fn holds_all_weights(self) -> bool {
        matches!(self.residency, None | Some(Residency::Resident)) && self.limit_bytes.is_none()
    }
}

/// An amount of memory on an axis of a matrix file: `none`, `4GiB`, `50%` (of the package's weights) or `budget` (as
/// much as the budget).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryAmount {
    /// No bound.
    None,
    /// That many KiB, fewer than 2³¹.
    Kibibytes(u32),
    /// That many hundredths of a percent of the package's weights, fewer than 2³¹.
    Hundredths(u32),
    /// The same as the budget.
    Budget,
}

/// Units of an amount and their KiB.
const UNITS: [(&str, f64); 4] =
    [("KiB", 1.0), ("MiB", 1024.0), ("GiB", 1024.0 * 1024.0), ("TiB", 1024.0 * 1024.0 * 1024.0)];

/// Amounts and shares are numbers below this one, so that they fit on an axis.
const TOP: u32 = 1 << 31;

/// More than the weights ten times over is a slip of the hand.
const MAX_PERCENT: f64 = 1000.0;

impl MemoryAmount {
    /// A number that stands for the amount.
    #[must_use]
    pub fn pack(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Kibibytes(count) => count,
            Self::Hundredths(count) => TOP | count,
            Self::Budget => u32::MAX,
        }
    }

    /// The amount behind [`MemoryAmount::pack`]'s number.
    #[must_use]
    pub fn unpack(packed: u32) -> Self {
        match packed {
            0 => Self::None,
            u32::MAX => Self::Budget,
            count if count < TOP => Self::Kibibytes(count),
            count => Self::Hundredths(count & !TOP),
        }
    }

    /// The bytes; `weights` are those of the package, `budget` is the cell's.
    #[must_use]
    pub fn bytes(self, weights: u64, budget: Option<u64>) -> Option<u64> {
        match self {
            Self::None => None,
            Self::Kibibytes(count) => Some(u64::from(count) << 10),
            Self::Hundredths(count) => {
                Some(u64::try_from(u128::from(weights) * u128::from(count) / 10_000).unwrap_or(u64::MAX))
            }
            Self::Budget => budget,
        }
    }
}

impl FromStr for MemoryAmount {
    type Err = String;

    /// A fraction of a KiB, or of a hundredth of a percent, is dropped.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("`{text}` is no amount of memory: {why}");
        match text {
            "none" => return Ok(Self::None),
            "budget" => return Ok(Self::Budget),
            _ => {}
        }
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = (&text[..end], text[end..].trim_start());
        let number: f64 = number.parse().map_err(|_| wrong("write it as `4GiB`, `512MiB` or `none`"))?;
        if unit == "%" {
            let count = (number * 100.0).round();
            return match (1.0..=MAX_PERCENT * 100.0).contains(&count) {
                true => Ok(Self::Hundredths(count as u32)),
                false => Err(wrong("a share is from 0.01% to 1000%")),
            };
        }
        let Some((_, kibibytes)) = UNITS.into_iter().find(|(name, _)| *name == unit) else {
            return Err(wrong("its unit is KiB, MiB, GiB or TiB, as in `4GiB`"));
        };
        let count = (number * kibibytes).floor();
        match (1.0..f64::from(TOP)).contains(&count) {
            true => Ok(Self::Kibibytes(count as u32)),
            false => Err(wrong("it is from 1KiB to less than 2TiB")),
        }
    }
}

impl fmt::Display for MemoryAmount {
    /// The largest unit of which it is a whole number, so that equal amounts are spelled alike.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.pad("none"),
            Self::Budget => f.pad("budget"),
            Self::Hundredths(count) => f.pad(&format!("{}%", f64::from(*count) / 100.0)),
            Self::Kibibytes(count) => {
                let whole = |(_, kibibytes): &&(&str, f64)| f64::from(*count) % kibibytes == 0.0;
                let (name, kibibytes) = UNITS.iter().rev().find(whole).unwrap_or(&UNITS[0]);
                f.pad(&format!("{}{name}", f64::from(*count) / kibibytes))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn amount(text: &str) -> MemoryAmount {
        text.parse().unwrap()
    }

    #[test]
    fn sizes_and_shares() {
        let bytes = |text: &str| amount(text).bytes(1000, Some(77));
        assert_eq!(bytes("4GiB"), Some(4 << 30));
        assert_eq!(bytes("1.5GiB"), Some(3 << 29));
        assert_eq!(bytes("1 TiB"), Some(1 << 40));
        assert_eq!(bytes("50%"), Some(500));
        assert_eq!(bytes("12.5%"), Some(125));
        assert_eq!((bytes("none"), bytes("budget")), (None, Some(77)));
        assert_eq!(amount("1536MiB"), amount("1.5GiB"));
        assert_eq!(amount("1.5GiB").to_string(), "1536MiB");
        assert_eq!(amount("0.07%").to_string(), "0.07%");
    }

    #[test]
    fn what_is_no_amount() {
        for text in ["", "4", "4GB", "GiB", "-1GiB", "1e3MiB", "0GiB", "0.5KiB", "2TiB", "0%", "2000%", "1.2.3GiB", "."]
        {
            let error = text.parse::<MemoryAmount>().unwrap_err();
            assert!(error.contains(&format!("`{text}` is no amount of memory")), "{error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(kibibytes in 1_u32..TOP, hundredths in 1_u32..=100_000) {
            for amount in [MemoryAmount::Kibibytes(kibibytes), MemoryAmount::Hundredths(hundredths)] {
                prop_assert_eq!(amount.to_string().parse(), Ok(amount));
                prop_assert_eq!(MemoryAmount::unpack(amount.pack()), amount);
            }
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,12}", digits in "[0-9.]{0,30}", unit in "(|%|KiB|MiB|GiB|TiB)") {
            let _ = text.parse::<MemoryAmount>();
            let _ = format!("{digits}{unit}").parse::<MemoryAmount>();
        }

        #[test]
        fn a_share_is_of_the_weights(weights in 0_u64..1 << 50, hundredths in 1_u32..=10_000) {
            let bytes = MemoryAmount::Hundredths(hundredths).bytes(weights, None).unwrap();
            prop_assert!(bytes <= weights);
        }
    }
}
