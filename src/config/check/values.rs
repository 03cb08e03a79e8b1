//! Values of axes, and rules that name some of them.

use serde_yaml::{Location, Spanned};

use super::Checker;
use crate::cell::{Category, ImageSize};
use crate::config::axes::{Axes, Axis, Values};
use crate::config::file::{AxesEntry, AxisEntry};
use crate::yaml::suggest;

impl Checker<'_> {
    pub(in crate::config) fn rule(&mut self, entry: &AxesEntry, at: Location, name: &str) -> Axes {
        let axes = self.axes(entry, name);
        if axes.names_nothing() {
            self.problem(at, format!("a rule of `{name}` names no axis"));
        }
        axes
    }

    pub(in crate::config) fn axes(&mut self, entry: &AxesEntry, owner: &str) -> Axes {
        if let (Some(reason), true) = (&entry.reason, owner != "exclude") {
            self.problem(reason.referenced, "only a rule of `exclude` has a `reason`");
        }
        let mut axes = Axes::default();
        if let Some(written) = &entry.dimensions {
            let chooses = !["matrix", "include"].contains(&owner);
            axes.set(Axis::Dimensions, self.dimensions(written, chooses));
            axes.stands_at(Axis::Dimensions, written.referenced);
        }
        if let Some(written) = &entry.optimizations {
            axes.set(Axis::Optimizations, self.optimizations(written));
            axes.stands_at(Axis::Optimizations, written.referenced);
        }
        for axis in Axis::ALL {
            let Some(written) = entry.on(axis) else { continue };
            let values = match axis.values() {
                Values::Models => self.choices(written, axis.name(), &self.models.clone()),
                Values::Backends => self.choices(written, axis.name(), &self.backends.clone()),
                Values::Words(words) => self.choices(written, axis.name(), words),
                Values::Counts(max) => self.counts(written, axis.name(), max),
                Values::CountsOr(word, max) => self.counts_or(written, axis.name(), word, max),
                Values::Images => self.images(written, axis.name()),
                Values::Budgets | Values::Limits => self.amounts(written, axis),
                Values::Dimensions | Values::Optimizations => continue,
            };
            axes.set(axis, values);
            axes.stands_at(axis, written.referenced);
        }
        axes
    }

    /// An axis of words: their indices among the known ones.
    pub(super) fn choices(&mut self, axis: &Spanned<AxisEntry>, name: &str, known: &[impl AsRef<str>]) -> Vec<u32> {
        let words: Vec<_> = known.iter().map(AsRef::as_ref).collect();
        self.distinct(axis, name, |text| match words.iter().position(|word| *word == text) {
            Some(index) => Ok(index as u32),
            None => Err(format!("unknown {name} `{text}`{}", suggest(text, &words))),
        })
    }

    /// An axis of counts from 1 up.
    pub(super) fn counts(&mut self, axis: &Spanned<AxisEntry>, name: &str, max: u32) -> Vec<u32> {
        self.distinct(axis, name, |text| match text.parse() {
            Ok(count) if (1..=max).contains(&count) => Ok(count),
            _ => Err(format!("`{name}` is `{text}`, not a whole number from 1 to {max}")),
        })
    }

    /// An axis of image sizes, packed.
    pub(super) fn images(&mut self, axis: &Spanned<AxisEntry>, name: &str) -> Vec<u32> {
        self.distinct(axis, name, |text| match text {
            "none" => Ok(ImageSize::pack(None)),
            size => size.parse().map(|size| ImageSize::pack(Some(size))),
        })
    }

    pub(super) fn categories(&mut self, axis: &Spanned<AxisEntry>) -> Vec<Category> {
        if !self.has_accuracy && !self.expects {
            self.needs_accuracy(axis);
        }
        let indices = self.choices(axis, "categories", Category::NAMES);
        let categories: Vec<_> = indices.into_iter().map(|index| Category::ALL[index as usize]).collect();
        if categories.contains(&Category::OptimizationImpact) && !self.names_optimizations {
            let message = "`optimization_impact` measures what `matrix: optimizations` switches on, and the file has no \
                           such axis; add it (`all`, or names: `ortbench optimizations` lists them)";
            self.problem(axis.referenced, message);
        }
        categories
    }

    /// The categories of a file that names none. What accuracy means, only its section can say; power, which takes its
    /// time and a meter that few machines have, is asked for by its own, optimizations by their axis, and profiling by
    /// those who want it.
    pub(super) fn default_categories(&self, has_power: bool) -> Vec<Category> {
        let by_default = |category: &Category| match category {
            Category::Accuracy => self.has_accuracy || self.expects,
            Category::Power => has_power,
            Category::OptimizationImpact => self.names_optimizations,
            Category::Operators => false,
            Category::Speed | Category::Throughput | Category::Memory => true,
        };
        Category::ALL.iter().copied().filter(by_default).collect()
    }

    /// An axis whose values are read one by one; one that stands there twice is a mistake.
    pub(in crate::config) fn distinct(
        &mut self,
        axis: &Spanned<AxisEntry>,
        name: &str,
        read: impl Fn(&str) -> Result<u32, String>,
    ) -> Vec<u32> {
        let mut values = Vec::new();
        for (text, at) in self.values(axis, name) {
            match read(&text) {
                Ok(value) if values.contains(&value) => {
                    self.problem(at, format!("`{text}` stands twice on the axis `{name}`"));
                }
                Ok(value) => values.push(value),
                Err(problem) => self.problem(at, problem),
            }
        }
        values
    }

    /// The values of an axis and their places; an empty list is a mistake.
    pub(super) fn values(&mut self, axis: &Spanned<AxisEntry>, name: &str) -> Vec<(String, Location)> {
        match &axis.value {
            AxisEntry::One(value) => vec![(value.clone(), axis.referenced)],
            AxisEntry::Many(values) => {
                if values.is_empty() {
                    self.problem(axis.referenced, format!("the axis `{name}` is empty"));
                }
                values.iter().map(|value| (value.value.clone(), value.referenced)).collect()
            }
        }
    }
}
