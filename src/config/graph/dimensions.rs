//! The axis `dimensions`: mappings of sizes, and what of them each graph takes.

use serde_yaml::{Location, Spanned};

use super::super::check::{Checker, Model};
use super::super::file::{AxesEntry, DimensionsEntry, Named};
use super::{GraphModel, MAX_DIMENSION};
use crate::cell::Dimensions;
use crate::yaml::suggest;

/// Every mapping that a cell may have. Values of the axis are places among them; the first is empty.
#[derive(Debug, Default)]
pub struct Known(Vec<Dimensions>);

impl Known {
    /// The mapping at that place.
    pub fn get(&self, place: u32) -> &Dimensions {
        &self.0[place as usize]
    }

    /// The place of a mapping, which is added where it is new.
    fn place(&mut self, dimensions: Dimensions) -> u32 {
        let found = self.0.iter().position(|known| *known == dimensions);
        found.unwrap_or_else(|| {
            self.0.push(dimensions);
            self.0.len() - 1
        }) as u32
    }

    /// The place of what a graph with these free dimensions takes of a mapping.
    pub fn taken(&self, place: u32, free: &[&str]) -> u32 {
        let taken = take(self.get(place), free);
        let found = self.0.iter().position(|known| *known == taken);
        found.expect("every part of a mapping was added when the file was checked") as u32
    }

    /// Places of the mappings that have all these sizes.
    fn with(&self, part: &Dimensions) -> Vec<u32> {
        let has = |known: &Dimensions| part.0.iter().all(|(name, size)| known.0.get(name) == Some(size));
        (0..self.0.len() as u32).filter(|place| has(self.get(*place))).collect()
    }
}

fn take(dimensions: &Dimensions, free: &[&str]) -> Dimensions {
    let taken = dimensions.0.iter().filter(|(name, _)| free.contains(&name.as_str()));
    Dimensions(taken.map(|(name, size)| (name.clone(), *size)).collect())
}

impl Checker<'_> {
    /// Notes every mapping that cells may have: those of the matrix and of `include`, and what each graph takes of them.
    pub(in super::super) fn collect_dimensions<'e>(
        &mut self,
        entries: impl Iterator<Item = &'e AxesEntry>,
        models: &[Model],
    ) {
        let free: Vec<Vec<&str>> = models.iter().filter_map(|model| Some(model.graph.as_ref()?.free())).collect();
        self.free = models
            .iter()
            .filter_map(|model| model.graph.as_ref())
            .flat_map(GraphModel::names)
            .map(str::to_owned)
            .collect();
        self.free.sort_unstable();
        self.free.dedup();
        self.dimensions.place(Dimensions::default());
        for entry in entries {
            let Some(written) = &entry.dimensions else { continue };
            for (mapping, _) in mappings(written) {
                let dimensions = plain(mapping);
                self.dimensions.place(dimensions.clone());
                for free in &free {
                    self.dimensions.place(take(&dimensions, free));
                }
            }
        }
    }

    /// The axis as places. In a rule that chooses among cells, a mapping stands for all that have its sizes.
    pub(in super::super) fn dimensions(&mut self, written: &Spanned<DimensionsEntry>, chooses: bool) -> Vec<u32> {
        let mut places: Vec<u32> = Vec::new();
        let mut seen: Vec<Dimensions> = Vec::new();
        if matches!(&written.value, DimensionsEntry::Many(values) if values.is_empty()) {
            self.problem(written.referenced, "the axis `dimensions` is empty");
        }
        for (mapping, at) in mappings(written) {
            self.sizes(mapping);
            let dimensions = plain(mapping);
            if seen.contains(&dimensions) {
                self.problem(at, format!("`{{{dimensions}}}` stands twice on the axis `dimensions`"));
            } else if chooses {
                let with = self.dimensions.with(&dimensions);
                if with.is_empty() {
                    self.problem(at, format!("no cell has the dimensions `{dimensions}`"));
                }
                places.extend(with.into_iter().filter(|place| !places.contains(place)).collect::<Vec<_>>());
            } else {
                places.push(self.dimensions.place(dimensions.clone()));
            }
            seen.push(dimensions);
        }
        places
    }

    fn sizes(&mut self, mapping: &Named<i128>) {
        let free = self.free.clone();
        let names: Vec<&str> = free.iter().map(String::as_str).collect();
        for (name, size) in &mapping.0 {
            if !(0..=i128::from(MAX_DIMENSION)).contains(&size.value) {
                let message = format!("`{}` is {}, not from 0 to {MAX_DIMENSION}", name.value, size.value);
                self.problem(size.referenced, message);
            }
            if !names.is_empty() && !names.contains(&name.value.as_str()) {
                let message = format!(
                    "no graph has a free dimension `{}` among its inputs{}",
                    name.value,
                    suggest(&name.value, &names)
                );
                self.problem(name.referenced, message);
            }
        }
    }
}

fn mappings(written: &Spanned<DimensionsEntry>) -> Vec<(&Named<i128>, Location)> {
    match &written.value {
        DimensionsEntry::One(mapping) => vec![(mapping, written.referenced)],
        DimensionsEntry::Many(values) => values.iter().map(|value| (&value.value, value.referenced)).collect(),
    }
}

fn plain(mapping: &Named<i128>) -> Dimensions {
    let size = |size: i128| u64::try_from(size).unwrap_or(0);
    Dimensions(mapping.0.iter().map(|(name, value)| (name.value.clone(), size(value.value))).collect())
}
