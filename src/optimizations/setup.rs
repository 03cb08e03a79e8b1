//! The two arms of a comparison, and which knobs a technique turns.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::derive::Derivation;
use super::options::Options;
use crate::cell::{Arm, Backend, Cell, Flavour, Switched};
use crate::engine::Plan;
use crate::error::{Error, Result};
use crate::loader::pack::CodecChoice;
use crate::package::Manifest;

/// What a technique is applied to.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The cell.
    pub cell: &'a Cell,
    /// Its model's package.
    pub manifest: &'a Manifest,
}

impl Subject<'_> {
    /// True where the model has routed experts.
    pub fn has_experts(&self) -> bool {
        self.manifest.shape.experts.is_some()
    }

    /// True where the cell's package is a pack already.
    pub fn is_pack(&self) -> bool {
        self.manifest.pack.is_some()
    }
}

/// How a model is run: an arm of a comparison.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The package.
    pub package: PathBuf,
    /// Its flavour.
    pub flavour: Flavour,
    /// Packages that are derived from it, one after the other, in the order of their stages.
    pub steps: Vec<Arc<dyn Derivation>>,
    /// Runtime, provider and its options.
    pub backend: Backend,
    /// Everything that the engine may be told.
    pub plan: Plan,
    /// Whether the kernel may swap what exceeds the process's limit.
    pub swap: bool,
    /// How the shards of packs that are derived are compressed: a knob of its own, so that whoever wants a pack and whoever
    /// wants it compressed agree.
    pub codec: CodecChoice,
}

impl Setup {
    /// The cell without any optimization.
    pub fn plain(cell: &Cell) -> Self {
        Self {
            package: cell.model.package.clone(),
            flavour: cell.flavour,
            steps: Vec::new(),
            backend: cell.backend.clone(),
            plan: Plan::of(cell),
            swap: false,
            codec: CodecChoice::None,
        }
    }

    /// Adds a derivation.
    pub fn derive(&mut self, step: impl Derivation + 'static) {
        self.steps.push(Arc::new(step));
        self.steps.sort_by_key(|step| step.stage());
    }

    /// Every knob with its value in words.
    fn knobs(&self) -> BTreeMap<String, String> {
        let mut knobs = BTreeMap::from([
            (PACKAGE.to_owned(), self.package.display().to_string()),
            ("flavour".to_owned(), self.flavour.to_string()),
            ("swap".to_owned(), self.swap.to_string()),
            ("codec of shards".to_owned(), format!("{:?}", self.codec)),
        ]);
        for step in &self.steps {
            knobs.insert(step.stage().knob().to_owned(), step.describe());
        }
        knobs.extend(self.backend.options.iter().map(|(key, value)| (format!("provider option {key}"), value.clone())));
        knobs.extend(self.plan.knobs());
        knobs
    }

    /// Knobs that this setup has turned away from another's.
    fn turned(&self, from: &Self) -> BTreeMap<String, String> {
        let before = from.knobs();
        self.knobs().into_iter().filter(|(name, value)| before.get(name) != Some(value)).collect()
    }
}

/// Baseline and optimized.
#[derive(Debug, Clone)]
pub struct Arms {
    /// Without the techniques.
    pub baseline: Setup,
    /// With all of them.
    pub optimized: Setup,
}

impl Arms {
    /// One of them.
    pub fn into_arm(self, arm: Arm) -> Setup {
        match arm {
            Arm::Baseline => self.baseline,
            Arm::Optimized => self.optimized,
        }
    }

    /// What the technique turned, and what only the baseline turns, as `knob=value`.
    pub fn turned(&self, cell: &Cell) -> (String, String) {
        let plain = Setup::plain(cell);
        // Results travel, and places on this disk do not.
        let plain_package = cell.optimizations.as_ref().and_then(|plan| plan.plain.as_ref());
        let shown = |knob: &str, value: String| match plain_package {
            Some(plain) if knob == PACKAGE => plain.written.clone(),
            _ => value,
        };
        let words = |knobs: BTreeMap<String, String>| {
            let words: Vec<_> =
                knobs.into_iter().map(|(knob, value)| format!("{knob}={}", shown(&knob, value))).collect();
            words.join("; ")
        };
        (words(self.optimized.turned(&plain)), words(self.baseline.turned(&plain)))
    }

    /// The arms of a cell; of one that switches nothing on, both are the cell itself.
    ///
    /// # Errors
    /// A technique that cannot be applied (`unsupported`, named). A contradiction is a mistake of input: two that turn one
    /// knob to different values, or one that turns a knob which the cell's own axes have set.
    pub fn of(cell: &Cell, manifest: &Manifest) -> Result<Self> {
        let plain = Setup::plain(cell);
        let mut arms = Self { baseline: plain.clone(), optimized: plain.clone() };
        let Some(plan) = &cell.optimizations else { return Ok(arms) };
        let subject = Subject { cell, manifest };
        let untouched = Setup { plan: Plan::with_threads(cell.threads), ..plain.clone() };
        let set_by_axes = plain.turned(&untouched);
        let mut turned: BTreeMap<String, (String, String)> = BTreeMap::new();
        let mut baseline: BTreeMap<String, (String, String)> = BTreeMap::new();
        for switched in &plan.switched {
            let (technique, options) = known(switched)?;
            let name = switched.technique;
            let named = |error: Error| {
                let kind = error.root_kind();
                Error::new(format!("`{name}` cannot be applied")).because(error).kind(kind)
            };
            technique.check(&subject, &options).map_err(named)?;
            let mut alone = plain.clone();
            technique.apply(&mut alone, &subject, &options).map_err(named)?;
            for (knob, value) in alone.turned(&plain) {
                if set_by_axes.contains_key(&knob) && !FREE.contains(&knob.as_str()) {
                    return Err(Error::new(format!("`{name}` and an axis of the cell both set the {knob}"))
                        .hint("leave the axis out, or the technique"));
                }
                agree(&mut turned, knob, value, name.name())?;
            }
            let mut compared = plain.clone();
            technique.baseline(&mut compared, &subject, &options).map_err(named)?;
            for (knob, value) in compared.turned(&plain) {
                agree(&mut baseline, knob, value, name.name())?;
            }
            technique.apply(&mut arms.optimized, &subject, &options).map_err(named)?;
            technique.baseline(&mut arms.baseline, &subject, &options).map_err(named)?;
        }
        finish(&mut arms.baseline);
        finish(&mut arms.optimized);
        Ok(arms)
    }
}

/// The knob of the package itself.
const PACKAGE: &str = "package";

/// Knobs that say how large the work is, and that techniques do not contradict.
const FREE: &[&str] = &["sequences", "tokens"];

/// The technique and its options.
///
/// # Errors
/// Options that it does not have.
pub fn known(switched: &Switched) -> Result<(&'static dyn super::Optimization, Options)> {
    let technique = super::of(switched.technique);
    let options = Options::of(technique.options(), switched).map_err(Error::new)?;
    Ok((technique, options))
}

/// Takes down who turns a knob; two techniques may turn it to the same value.
fn agree(turned: &mut BTreeMap<String, (String, String)>, knob: String, value: String, technique: &str) -> Result<()> {
    match turned.get(&knob) {
        Some((other, before)) if *before != value => Err(Error::new(format!(
            "`{other}` and `{technique}` exclude each other: both set the {knob}, one to `{before}`, the other to `{value}`"
        ))
        .hint("switch one of them on at a time")),
        _ => {
            turned.insert(knob, (technique.to_owned(), value));
            Ok(())
        }
    }
}

/// Two techniques may ask for the same derivation, and one for the codec of another one's.
fn finish(setup: &mut Setup) {
    setup.steps.dedup_by(|a, b| a.describe() == b.describe());
    for step in &mut setup.steps {
        if let Some(compressed) = step.with_codec(setup.codec) {
            *step = compressed;
        }
    }
}
