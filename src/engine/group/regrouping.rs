//! Sequences that run go on in other groups: some join, some have ended, some wait.

use super::Group;
use crate::engine::model::Model;
use crate::error::Result;

/// Where a sequence was: a group and a row in it.
pub(in crate::engine) type Place = (usize, usize);

impl Group {
    /// New groups of the sequences of others, which are used up: each is a list of where its rows were. Caches are
    /// copied a layer at a time, so that only one layer's are there twice.
    ///
    /// # Errors
    /// Memory that cannot be had.
    pub fn regroup(model: &Model, mut from: Vec<Self>, capacity: usize, into: &[Vec<Place>]) -> Result<Vec<Self>> {
        let mut made =
            into.iter().map(|rows| Self::new(model, rows.len(), capacity, None)).collect::<Result<Vec<_>>>()?;
        for layer in 0..model.ports.cache.len() {
            for (group, rows) in made.iter_mut().zip(into) {
                for (row, place) in rows.iter().enumerate() {
                    group.take_row(layer, row, &from[place.0], place.1);
                }
            }
            for group in &mut from {
                let id = group.cache[layer].front;
                group.bindings.release(id);
            }
        }
        for (group, rows) in made.iter_mut().zip(into) {
            group.columns = rows.iter().map(|(source, row)| from[*source].inputs.lengths()[*row]).max().unwrap_or(0);
            group.inputs.go_on(rows.iter().map(|(source, row)| from[*source].inputs.progress(*row)));
        }
        Ok(made)
    }

    /// Copies what a row of another group has in a layer's cache.
    fn take_row(&mut self, layer: usize, row: usize, from: &Self, source: usize) {
        let (theirs, ours) = (&from.cache[layer], &self.cache[layer]);
        let column = ours.width * ours.past.dtype.size();
        let filled = from.inputs.lengths()[source] * column;
        let all = from.bindings.read::<u8>(theirs.front, from.batch * theirs.heads * from.capacity * column);
        let own = self.batch * ours.heads * self.capacity * column;
        let (heads, id) = (ours.heads, ours.front);
        let into = self.bindings.write::<u8>(id, own);
        for head in 0..heads {
            let at = (source * heads + head) * from.capacity * column;
            let to = (row * heads + head) * self.capacity * column;
            into[to..to + filled].copy_from_slice(&all[at..at + filled]);
        }
    }
}
