//! Which records stand before an item as examples.

use std::collections::HashMap;
use std::path::Path;

use rand::SeedableRng;
use rand::seq::index;
use rand_chacha::ChaCha8Rng;

use super::records::{self, Record};
use crate::error::{Error, Result};

/// Where examples come from.
#[derive(Debug)]
pub struct Examples<'r> {
    /// Their file's records.
    pub records: &'r [Record],
    /// Places of the records that are alike, by what they have in common; all in one pool unless asked otherwise.
    pub pools: HashMap<String, Vec<usize>>,
    /// That file.
    pub path: &'r Path,
    /// Examples of an item.
    pub count: usize,
    /// Whether the items are from the same file, so that an item could be its own example.
    pub own: bool,
    /// The seed, where they are drawn; else the first ones are taken.
    pub seed: Option<u64>,
}

impl<'r> Examples<'r> {
    /// The examples of an item that has this in common with them. A draw depends on the seed and on the item's number
    /// in the file alone.
    ///
    /// # Errors
    /// Fewer records than examples.
    pub fn of(&self, item: &Record, likeness: &str) -> Result<Vec<&'r Record>> {
        let pool = self.pools.get(likeness).map_or(&[][..], Vec::as_slice);
        let others = |record: &&Record| !self.own || record.fields != item.fields;
        let chosen: Vec<_> = match self.seed {
            None => pool.iter().map(|&place| &self.records[place]).filter(others).take(self.count).collect(),
            Some(seed) => {
                let mut random = ChaCha8Rng::seed_from_u64(seed);
                random.set_stream(item.number);
                // Some more than needed: the item itself and its copies are left out.
                let order = index::sample(&mut random, pool.len(), pool.len().min(2 * self.count + 2));
                let drawn = order.into_iter().map(|index| &self.records[pool[index]]);
                drawn.filter(others).take(self.count).collect()
            }
        };
        if chosen.len() < self.count {
            let (count, path, unit) = (self.count, self.path.display(), records::unit(self.path));
            let other = if self.own { " other" } else { "" };
            let alike = if likeness.is_empty() { String::new() } else { format!(" of `{likeness}`") };
            return Err(Error::new(format!(
                "{unit} {} needs {count} examples, and `{path}` has {}{other} records{alike}",
                item.number,
                chosen.len()
            ))
            .hint("lower `fewshot`, or name a file with more records by `examples: FILE` in the matrix"));
        }
        Ok(chosen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(values: &[u32]) -> Vec<Record> {
        let record = |(index, value): (usize, &u32)| Record {
            number: index as u64 + 1,
            fields: serde_json::json!({"value": value}).as_object().unwrap().clone(),
        };
        values.iter().enumerate().map(record).collect()
    }

    fn one_pool(records: &[Record]) -> HashMap<String, Vec<usize>> {
        [(String::new(), (0..records.len()).collect())].into()
    }

    fn numbers(examples: &Examples, item: &Record) -> Vec<u64> {
        examples.of(item, "").unwrap().iter().map(|record| record.number).collect()
    }

    #[test]
    fn the_first_ones_but_never_the_item_or_its_copy() {
        let records = records(&[5, 6, 7, 8, 5]);
        let (path, pools) = (Path::new("x.jsonl"), one_pool(&records));
        let mut examples = Examples { records: &records, pools, path, count: 2, own: true, seed: None };
        assert_eq!(numbers(&examples, &records[0]), [2, 3]);
        assert_eq!(numbers(&examples, &records[4]), [2, 3]);
        assert_eq!(numbers(&examples, &records[3]), [1, 2]);
        examples.own = false;
        assert_eq!(numbers(&examples, &records[0]), [1, 2]);
        let too_many = Examples { count: 5, own: true, ..examples };
        assert_eq!(
            too_many.of(&records[1], "").unwrap_err().to_string(),
            "line 2 needs 5 examples, and `x.jsonl` has 4 other records"
        );
    }

    #[test]
    fn draws_depend_on_seed_and_item_alone() {
        let records = records(&(0..50).collect::<Vec<_>>());
        let drawn = |seed: u64, item: usize| {
            let (path, pools) = (Path::new("x"), one_pool(&records));
            let examples = Examples { records: &records, pools, path, count: 4, own: true, seed: Some(seed) };
            numbers(&examples, &records[item])
        };
        assert_eq!(drawn(1, 3), drawn(1, 3));
        assert_ne!(drawn(1, 3), drawn(2, 3));
        assert_ne!(drawn(1, 3), drawn(1, 4));
        for item in 0..50 {
            let mut examples = drawn(7, item);
            assert!(!examples.contains(&(item as u64 + 1)));
            examples.sort_unstable();
            examples.dedup();
            assert_eq!(examples.len(), 4);
        }
    }
}
