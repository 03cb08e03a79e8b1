//! A model's weights where a pack has them: which residency, under which budget.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use crate::cell::{ProviderKind, Residency};
use crate::engine::plan::Plan;
use crate::error::{Error, Result};
use crate::loader::pager::{Options, Pager, PagerFacts, ROUTED, Statistics};
use crate::loader::store::Store;
use crate::loader::{held, pack};
use crate::package::Package;
use crate::package::shards::{Form, Record, ShardIndex, What};
use crate::runtime::{custom, providers};

/// What a process allocates beside weights, caches and activations, on top of what shows after loading.
const ALLOWANCE: u64 = 96 << 20;

/// Tensors as wide as a layer's widest product that are alive at once, ONNX Runtime's rounding up of its arena included.
const WIDE_TENSORS: u64 = 4;

/// By how much what a process holds after loading differs from run to run: the least budget that is named works in the
/// next one too.
const MARGIN: u64 = 4 << 20;

/// What a session comes to hold beside activations, roughly.
const SESSION_BYTES: u64 = 1 << 20;

/// Tokens whose experts' outputs a mixture keeps at once, about.
const TOGETHER: u64 = 1024;

/// The weights of a pack.
#[derive(Debug)]
pub(super) struct Weights {
    store: Arc<Store>,
    residency: Residency,
    budget: Option<u64>,
    share: Option<f64>,
    read_ahead: bool,
    guess: u32,
    /// Tensors that segments take which other processes run after these.
    taken_later: BTreeSet<String>,
}

impl Weights {
    /// Those of the package, where it is a pack; of some of its segments only where others are run elsewhere.
    ///
    /// # Errors
    /// A damaged index; a residency for a package that is no pack; segments that there are not.
    pub fn of(package: &Package, plan: &Plan, segments: Option<&Range<usize>>) -> Result<Option<Self>> {
        let Some(index) = package.shards()? else {
            return match plan.residency {
                None => Ok(None),
                Some(residency) => Err(Error::new(format!(
                    "`{}` is no pack, so that its weights cannot be `{residency}`",
                    package.root.display()
                ))
                .hint("make one with `ortbench pack`, or leave `residency` out")),
            };
        };
        pack::check(&index)?;
        let residency = plan.residency.unwrap_or(Residency::Resident);
        if plan.guess > 0 && residency != Residency::Experts {
            return Err(Error::unsupported(format!("experts are not guessed where weights are `{residency}`"))
                .hint("take the residency `experts`, or leave `guess` out"));
        }
        check_share(plan, residency)?;
        let mut taken_later = BTreeSet::new();
        let index = match segments {
            None => index,
            Some(own) => {
                let count = index.segments.len();
                if own.is_empty() || own.end > count {
                    let message = format!("the pack has {count} segments, and not {} to {}", own.start, own.end);
                    return Err(Error::new(message));
                }
                taken_later.extend(index.segments[own.end..].iter().flat_map(|segment| segment.takes.iter().cloned()));
                index.stage(own.clone())
            }
        };
        let store = Arc::new(Store::new(&package.root, Arc::new(index)));
        let (budget, share) = (plan.budget, plan.weights_share);
        Ok(Some(Self { store, residency, budget, share, read_ahead: plan.read_ahead, guess: plan.guess, taken_later }))
    }

    /// Refuses a provider that could not run the pack's operators, which this program computes on the CPU: the row
    /// would bear the name of a provider that did next to nothing.
    ///
    /// # Errors
    /// A pack of operators on another provider.
    pub fn expect_form(&self, provider: ProviderKind) -> Result<()> {
        if self.index().form == Form::Inputs || provider == ProviderKind::Cpu {
            return Ok(());
        }
        let name = providers::of(provider).canonical_name();
        Err(Error::unsupported(format!("the pack's operators are this program's and run on the CPU, not on {name}"))
            .hint("pack the model with `--form inputs` for other providers"))
    }

    /// The pack's index.
    pub fn index(&self) -> &ShardIndex {
        self.store.index()
    }

    /// Tensors that segments take which other processes run after these.
    pub fn taken_later(&self) -> &BTreeSet<String> {
        &self.taken_later
    }

    /// Where they live.
    pub fn residency(&self) -> Residency {
        self.residency
    }

    /// What keeps them in memory.
    ///
    /// # Errors
    /// Weights that were not brought in: a bug.
    pub fn pager(&self) -> Result<&Arc<Pager>> {
        self.store.pager().ok_or_else(|| Error::new("the weights were not opened yet; this is a bug"))
    }

    /// What operators ask.
    pub fn operators(&self) -> Arc<dyn custom::Weights> {
        Arc::clone(&self.store) as Arc<dyn custom::Weights>
    }

    /// Bytes that activations take while this many tokens go through a layer together: an estimate, which
    /// [`Weights::keep_within_budget`] corrects by what is measured.
    fn activations(&self, tokens: u64) -> u64 {
        let floats = |record: &Record| match &record.what {
            What::Matrix { shape } if record.layer.is_some() => tokens * WIDE_TENSORS * shape.rows as u64,
            // What each of a token's experts says, twice while it is gathered, and what it says it from.
            What::Expert { gate_up, down, .. } => {
                tokens.min(TOGETHER) * (ROUTED * (2 * down.rows + gate_up.rows / 2)) as u64
            }
            _ => 0,
        };
        let most = |expert: bool| {
            let of_kind = |record: &&Record| matches!(record.what, What::Expert { .. }) == expert;
            self.index().records.iter().filter(of_kind).map(floats).max().unwrap_or(0)
        };
        (most(false) + most(true)) * size_of::<f32>() as u64
    }

    /// Opens the shards. Of the budget, what the process holds by now, `reserve` (caches) and the activations of `tokens`
    /// that go through a layer together are not for weights.
    ///
    /// # Errors
    /// A budget too small (the least that would work is named), shards that are missing or damaged.
    pub fn bring_in(&self, reserve: u64, tokens: u64, sessions: u64) -> Result<()> {
        if self.guess > 0 {
            self.store.guess(self.guess)?;
        }
        let other = held::resident_bytes()? + reserve + ALLOWANCE + sessions * SESSION_BYTES + self.activations(tokens);
        let mut options = Options {
            capacity: self.budget.map(|budget| budget.saturating_sub(other)),
            ahead: self.read_ahead,
            ..Options::new(self.residency)
        };
        let least = Pager::least_capacity(self.index(), self.residency, options.reads.depth);
        if let Some(share) = self.share {
            let bytes = share * Pager::whole_capacity(self.index()) as f64;
            options.capacity = Some(least.max(bytes as u64));
        }
        if let Some(budget) = self.budget {
            let least = least + other;
            if budget < least {
                return Err(Error::new(format!(
                    "a memory budget of {} is too small: the least that works here is {}MiB",
                    crate::units::bytes(budget),
                    (least + MARGIN).div_ceil(1 << 20)
                ))
                .hint("a shorter context, a smaller batch or smaller layers need less"));
            }
        }
        self.store.open(&options)
    }

    /// What the loader did since it was opened.
    pub fn statistics(&self) -> Option<Statistics> {
        self.store.pager().map(|pager| pager.statistics())
    }

    /// How the loader works here, once it was opened.
    pub fn facts(&self) -> Option<PagerFacts> {
        self.store.pager().map(|pager| pager.facts())
    }

    /// Shrinks what the loader holds by what the process holds beyond its budget.
    ///
    /// # Errors
    /// A budget that even the least set of records exceeds.
    pub fn keep_within_budget(&self) -> Result<()> {
        let (Some(budget), Some(pager)) = (self.budget, self.store.pager()) else { return Ok(()) };
        if self.residency == Residency::Mapped || self.residency == Residency::Resident {
            return Ok(());
        }
        let held = held::resident_bytes()?;
        if held <= budget {
            return Ok(());
        }
        let records = pager.statistics().held_bytes;
        pager.set_capacity(records.saturating_sub(held - budget))
    }
}

/// A share of the weights in memory is of a residency that leaves some of them on disk, and not of a budget.
fn check_share(plan: &Plan, residency: Residency) -> Result<()> {
    let Some(share) = plan.weights_share else { return Ok(()) };
    if !(share > 0.0 && share <= 1.0) {
        return Err(Error::new(format!("a share of {share} of the weights is not above 0 and at most 1")));
    }
    if !matches!(residency, Residency::Stream | Residency::Experts) {
        return Err(Error::new(format!("weights that are `{residency}` have no share of them in memory"))
            .hint("take the residency `stream` or `experts`"));
    }
    if plan.budget.is_some() {
        return Err(Error::new("a memory budget and a share of the weights both say how much is in memory")
            .hint("leave one of them out"));
    }
    Ok(())
}
