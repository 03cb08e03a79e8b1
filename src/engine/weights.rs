//! A model's weights where a pack has them: which residency, under which budget.

use std::sync::Arc;

use crate::cell::{ProviderKind, Residency};
use crate::engine::plan::Plan;
use crate::error::{Error, Result};
use crate::loader::pager::{Options, Pager, Statistics};
use crate::loader::store::Store;
use crate::loader::{held, pack};
use crate::package::Package;
use crate::package::shards::{Form, ShardIndex};
use crate::runtime::{custom, providers};

/// What a run allocates beside weights and caches, on top of what shows after loading: activations and ONNX Runtime's
/// arena. An allowance; [`Weights::keep_within_budget`] corrects it by what is measured.
const ALLOWANCE: u64 = 96 << 20;

/// The weights of a pack.
#[derive(Debug)]
pub(super) struct Weights {
    store: Arc<Store>,
    residency: Residency,
    budget: Option<u64>,
}

impl Weights {
    /// Those of the package, where it is a pack.
    ///
    /// # Errors
    /// A damaged index; a residency for a package that is no pack.
    pub fn of(package: &Package, plan: &Plan) -> Result<Option<Self>> {
        if package.shards()?.is_none() {
            return match plan.residency {
                None => Ok(None),
                Some(residency) => Err(Error::new(format!(
                    "`{}` is no pack, so that its weights cannot be `{residency}`",
                    package.root.display()
                ))
                .hint("make one with `ortbench pack`, or leave `residency` out")),
            };
        }
        let index = pack::open(&package.root)?;
        let residency = plan.residency.unwrap_or(Residency::Resident);
        let store = Arc::new(Store::new(&package.root, Arc::new(index)));
        Ok(Some(Self { store, residency, budget: plan.budget }))
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

    /// Opens the shards. Of the budget, what the process holds by now and `reserve` (caches) are not for weights.
    ///
    /// # Errors
    /// A budget too small (the least that would work is named), shards that are missing or damaged.
    pub fn bring_in(&self, reserve: u64) -> Result<()> {
        let other = held::resident_bytes()? + reserve + ALLOWANCE;
        let options = Options {
            capacity: self.budget.map(|budget| budget.saturating_sub(other)),
            ..Options::new(self.residency)
        };
        if let Some(budget) = self.budget {
            let least = Pager::least_capacity(self.index(), self.residency, options.reads.depth) + other;
            if budget < least {
                return Err(Error::new(format!(
                    "a memory budget of {} is too small: the least that works here is {}",
                    crate::units::bytes(budget),
                    crate::units::bytes(least)
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
