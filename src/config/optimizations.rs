//! The axis `optimizations`: techniques by name, what they are told, and which of them stand together.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_yaml::{Location, Spanned};

use super::axes::Axis;
use super::check::Checker;
use crate::cell::{Switched, Technique};
use crate::optimizations;
use crate::yaml::suggest;

/// The word for every technique, each by itself.
const ALL: &str = "all";
/// The word for none.
const NONE: &str = "none";
/// What joins techniques that stand together.
const JOINS: char = '+';

/// `optimizations`: one value or a list of them.
#[derive(Debug)]
pub enum OptimizationsEntry {
    One(ValueEntry),
    Many(Vec<Spanned<ValueEntry>>),
}

/// A value of the axis.
#[derive(Debug)]
pub enum ValueEntry {
    /// `none`, `all`, a technique, or several joined by `+`.
    Word(String),
    /// Techniques with their options.
    Told(Vec<(Spanned<String>, Told)>),
}

/// What a technique is told.
type Told = Option<BTreeMap<String, String>>;

impl OptimizationsEntry {
    fn values(&self, at: Location) -> Vec<(&ValueEntry, Location)> {
        match self {
            Self::One(value) => vec![(value, at)],
            Self::Many(values) => values.iter().map(|value| (&value.value, value.referenced)).collect(),
        }
    }
}

/// Every value that the file has. Values of the axis are places among them; the first switches nothing on.
#[derive(Debug)]
pub struct Known(Vec<Vec<Switched>>);

impl Default for Known {
    fn default() -> Self {
        Self(vec![Vec::new()])
    }
}

impl Known {
    /// What is switched on at that place.
    pub fn get(&self, place: u32) -> &[Switched] {
        &self.0[place as usize]
    }

    fn place(&mut self, switched: Vec<Switched>) -> u32 {
        let found = self.0.iter().position(|known| *known == switched);
        found.unwrap_or_else(|| {
            self.0.push(switched);
            self.0.len() - 1
        }) as u32
    }
}

impl Checker<'_> {
    /// The axis as places.
    pub(super) fn optimizations(&mut self, written: &Spanned<OptimizationsEntry>) -> Vec<u32> {
        let name = Axis::Optimizations.name();
        let values = written.value.values(written.referenced);
        if values.is_empty() {
            self.problem(written.referenced, format!("the axis `{name}` is empty"));
        }
        let mut places: Vec<u32> = Vec::new();
        for (value, at) in values {
            for switched in self.value(value, at) {
                let shown = Switched::together(&switched);
                let place = self.optimizations.place(switched);
                if places.contains(&place) {
                    self.problem(at, format!("`{shown}` stands twice on the axis `{name}`"));
                } else {
                    places.push(place);
                }
            }
        }
        places
    }

    /// The combinations that a value stands for.
    fn value(&mut self, value: &ValueEntry, at: Location) -> Vec<Vec<Switched>> {
        let plain = |technique| Switched { technique, options: BTreeMap::new() };
        let mut switched: Vec<Switched> = match value {
            ValueEntry::Word(word) if word == NONE => return vec![Vec::new()],
            ValueEntry::Word(word) if word == ALL => {
                return Technique::ALL.iter().map(|technique| vec![plain(*technique)]).collect();
            }
            ValueEntry::Word(word) => {
                let names = word.split(JOINS).map(str::trim);
                names.filter_map(|name| self.technique(name, at)).map(plain).collect()
            }
            ValueEntry::Told(told) => {
                if told.is_empty() {
                    self.problem(at, "a value of `optimizations` names no technique; for none of them, write `none`");
                }
                let mut switched = Vec::new();
                for (name, options) in told {
                    let Some(technique) = self.technique(&name.value, name.referenced) else { continue };
                    let mut one = Switched { technique, options: options.clone().unwrap_or_default() };
                    if let Err(message) = optimizations::check_options(&mut one) {
                        self.problem(name.referenced, message);
                    }
                    switched.push(one);
                }
                switched
            }
        };
        switched.sort_by_key(|one| one.technique);
        if let Some(pair) = switched.windows(2).find(|pair| pair[0].technique == pair[1].technique) {
            self.problem(at, format!("`{}` stands twice in one value of `optimizations`", pair[0].technique));
        }
        if switched.is_empty() { Vec::new() } else { vec![switched] }
    }

    fn technique(&mut self, name: &str, at: Location) -> Option<Technique> {
        let parsed = name.parse().ok();
        if parsed.is_none() {
            let known: Vec<&str> = [NONE, ALL].iter().chain(Technique::NAMES).copied().collect();
            self.problem(at, format!("unknown optimization `{name}`{}", suggest(name, &known)));
        }
        parsed
    }
}

impl<'de> Deserialize<'de> for ValueEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ValueVisitor;

        impl<'de> Visitor<'de> for ValueVisitor {
            type Value = ValueEntry;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str(
                    "the name of an optimization, or names with their options as `{tensor_compression: {cache: int8}}`",
                )
            }
            fn visit_str<E: de::Error>(self, value: &str) -> Result<ValueEntry, E> {
                Ok(ValueEntry::Word(value.to_owned()))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ValueEntry, A::Error> {
                let mut told = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    told.push(entry);
                }
                Ok(ValueEntry::Told(told))
            }
        }

        deserializer.deserialize_any(ValueVisitor)
    }
}

impl<'de> Deserialize<'de> for OptimizationsEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AxisVisitor;

        impl<'de> Visitor<'de> for AxisVisitor {
            type Value = OptimizationsEntry;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("optimizations: `none`, `all`, a name, names with options, or a list of such")
            }
            fn visit_str<E: de::Error>(self, value: &str) -> Result<OptimizationsEntry, E> {
                Ok(OptimizationsEntry::One(ValueEntry::Word(value.to_owned())))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<OptimizationsEntry, A::Error> {
                ValueEntry::deserialize(de::value::MapAccessDeserializer::new(map)).map(OptimizationsEntry::One)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<OptimizationsEntry, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = list.next_element()? {
                    values.push(value);
                }
                Ok(OptimizationsEntry::Many(values))
            }
        }

        deserializer.deserialize_any(AxisVisitor)
    }
}
