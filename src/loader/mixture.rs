//! The routed experts of one layer: who is chosen, and the sum of what they say.

use std::ops::Range;

use super::guess;
use super::kernels::{self, Share};
use super::pager::{Lease, RecordId};
use super::store::Bytes;
use crate::error::Result;
use crate::package::shards::{NBits, ShardIndex, What};
use crate::runtime::custom::{Experts, Parallel, Routing};

/// Experts are computed in the order in which they arrive, and their outputs kept apart until all are there; tokens go
/// in parts of which that takes no more than this many bytes.
const KEPT_APART: usize = 64 << 20;

/// A mixture.
pub(super) struct Mixture {
    /// By number.
    ids: Vec<RecordId>,
    /// Shapes of each: scales may be stored in two bytes for some and in four for others.
    shapes: Vec<(NBits, NBits)>,
    routing: Routing,
    /// The mixture that comes next: its name, and its experts by number.
    next: Option<(String, Vec<RecordId>)>,
    bytes: Bytes,
}

/// A token's use of an expert.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Use {
    expert: usize,
    token: usize,
    weight: f32,
}

/// What experts said, until all have.
struct Said {
    /// Those of one arrival stand together, each `[uses, hidden]`.
    outputs: Vec<Vec<f32>>,
    /// Of each expert that is asked: which arrival, and where in it.
    places: Vec<(usize, Range<usize>)>,
}

impl Mixture {
    /// Experts that are alike, which the caller has checked.
    pub fn new(
        index: &ShardIndex,
        ids: Vec<RecordId>,
        next: Option<(String, Vec<RecordId>)>,
        routing: Routing,
        bytes: Bytes,
    ) -> Self {
        let shapes = ids.iter().filter_map(|id| match &index.records[*id].what {
            What::Expert { gate_up, down, .. } => Some((*gate_up, *down)),
            _ => None,
        });
        Self { shapes: shapes.collect(), ids, routing, next, bytes }
    }

    fn hidden(&self) -> usize {
        self.shapes[0].1.rows
    }

    fn mix_part(&self, uses: &[Use], x: &[f32], out: &mut [f32], parallel: &dyn Parallel) -> Result<()> {
        let groups: Vec<&[Use]> = uses.chunk_by(|a, b| a.expert == b.expert).collect();
        let ids: Vec<RecordId> = groups.iter().map(|group| self.ids[group[0].expert]).collect();
        let mut said = Said { outputs: Vec::new(), places: vec![(0, 0..0); groups.len()] };
        let mut request = self.bytes.pager()?.request(&ids);
        loop {
            let arrived = request.arrived()?;
            if arrived.is_empty() {
                break;
            }
            if request.is_done() {
                // The disk has nothing more to do for this layer.
                self.guess(x, parallel)?;
            }
            self.say(&groups, &arrived, x, &mut said, parallel);
        }
        // Sums are taken in the order of the experts' numbers, whatever the order of arrival: the result must not
        // depend on what happened to be in memory.
        out.fill(0.0);
        for (group, (arrival, range)) in groups.iter().zip(&said.places) {
            self.add(group, &said.outputs[*arrival][range.clone()], out);
        }
        Ok(())
    }

    /// Has experts of the next mixture read that its router is likely to choose.
    fn guess(&self, x: &[f32], parallel: &dyn Parallel) -> Result<()> {
        let (Some(guessing), Some((mixture, ids))) = (self.bytes.guessing(), &self.next) else { return Ok(()) };
        if x.len() > guess::TOKENS * self.hidden() {
            return Ok(());
        }
        if let Some(likely) = guessing.likely(mixture, x, parallel) {
            let likely: Vec<RecordId> = likely.into_iter().filter_map(|expert| ids.get(expert).copied()).collect();
            self.bytes.pager()?.guess(&likely);
        }
        Ok(())
    }

    /// What experts say to the tokens that use them, each `[uses, hidden]`.
    fn say(&self, groups: &[&[Use]], arrived: &[(usize, Lease)], x: &[f32], said: &mut Said, parallel: &dyn Parallel) {
        let shape = |place: usize| self.shapes[groups[place][0].expert];
        // Most often all are of one shape; scales of one expert may need four bytes where those of others need two.
        let mut left: Vec<&(usize, Lease)> = arrived.iter().collect();
        while let Some((first, _)) = left.first() {
            let (gate_up, down) = shape(*first);
            let (alike, others): (Vec<_>, Vec<_>) =
                left.iter().partition(|(place, _)| shape(*place) == (gate_up, down));
            left = others;
            let rows: Vec<Vec<usize>> =
                alike.iter().map(|(place, _)| groups[*place].iter().map(|one| one.token).collect()).collect();
            let shares: Vec<Share<'_>> =
                alike.iter().zip(&rows).map(|((_, lease), rows)| Share { record: lease, rows }).collect();
            let mut outputs = vec![0.0; rows.iter().map(Vec::len).sum::<usize>() * self.hidden()];
            kernels::experts(&gate_up, &down, &shares, x, &mut outputs, parallel);
            let mut start = 0;
            for ((place, _), rows) in alike.iter().zip(&rows) {
                let end = start + rows.len() * self.hidden();
                said.places[*place] = (said.outputs.len(), start..end);
                start = end;
            }
            said.outputs.push(outputs);
        }
    }

    fn add(&self, uses: &[Use], said: &[f32], out: &mut [f32]) {
        let hidden = self.hidden();
        for (one, row) in uses.iter().zip(said.chunks_exact(hidden)) {
            for (sum, value) in out[one.token * hidden..][..hidden].iter_mut().zip(row) {
                *sum = one.weight.mul_add(*value, *sum);
            }
        }
    }
}

impl Experts for Mixture {
    fn shape(&self) -> (usize, usize) {
        (self.hidden(), self.ids.len())
    }

    fn mix(
        &self,
        x: &[f32],
        scores: &[f32],
        mixing: Option<&[f32]>,
        out: &mut [f32],
        parallel: &dyn Parallel,
    ) -> Result<()> {
        let (hidden, experts) = self.shape();
        let part = (KEPT_APART / (self.routing.k * hidden * size_of::<f32>())).max(1);
        let mixing = |number: usize| mixing.map(|mixing| &mixing[number * part * experts..]);
        let parts = x.chunks(part * hidden).zip(scores.chunks(part * experts)).zip(out.chunks_mut(part * hidden));
        for (number, ((x, scores), out)) in parts.enumerate() {
            let uses = route(scores, mixing(number), experts, self.routing);
            self.mix_part(&uses, x, out, parallel)?;
        }
        Ok(())
    }
}

/// Who uses whom, by expert and then by token. The `k` highest scores of a token choose (of equal ones the later
/// expert, as ONNX Runtime's kernel does), and weigh by softmax over the chosen, unless `mixing` has weights.
fn route(scores: &[f32], mixing: Option<&[f32]>, experts: usize, routing: Routing) -> Vec<Use> {
    let mut uses = Vec::with_capacity(scores.len() / experts * routing.k);
    let mut order: Vec<usize> = Vec::with_capacity(experts);
    for (token, scores) in scores.chunks_exact(experts).enumerate() {
        order.clear();
        order.extend(0..experts);
        let by_score = |a: &usize, b: &usize| scores[*b].total_cmp(&scores[*a]).then(b.cmp(a));
        if routing.k < experts {
            order.select_nth_unstable_by(routing.k - 1, by_score);
            order.truncate(routing.k);
        }
        let given = mixing.map(|mixing| &mixing[token * experts..][..experts]);
        let highest = order.iter().map(|expert| scores[*expert]).fold(f32::NEG_INFINITY, f32::max);
        let raw = |expert: usize| given.map_or_else(|| (scores[expert] - highest).exp(), |given| given[expert]);
        order.sort_unstable();
        let total: f32 = order.iter().map(|expert| raw(*expert)).sum();
        let divide = given.is_none() || routing.normalize;
        let scale = if divide && total != 0.0 { total.recip() } else { 1.0 };
        uses.extend(order.iter().map(|&expert| Use { expert, token, weight: raw(expert) * scale }));
    }
    uses.sort_by_key(|one| (one.expert, one.token));
    uses
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(uses: &[Use]) -> Vec<(usize, usize)> {
        uses.iter().map(|one| (one.expert, one.token)).collect()
    }

    #[test]
    fn the_highest_scores_choose_and_softmax_weighs() {
        let routing = Routing { k: 2, normalize: true };
        let uses = route(&[0.0, 2.0, 1.0, -5.0, 3.0, 3.0, 3.0, 0.0], None, 4, routing);
        // Of three equal scores the later two.
        assert_eq!(chosen(&uses), [(1, 0), (1, 1), (2, 0), (2, 1)]);
        let weight = |expert, token| uses.iter().find(|one| (one.expert, one.token) == (expert, token)).unwrap().weight;
        assert!((weight(1, 0) - 1.0 / (1.0 + (-1f32).exp())).abs() < 1e-6);
        assert!((weight(1, 0) + weight(2, 0) - 1.0).abs() < 1e-6);
        assert!((weight(1, 1) - 0.5).abs() < 1e-6);
    }

    #[test]
    fn mixing_weights_are_taken_as_they_are() {
        let routing = Routing { k: 2, normalize: false };
        let uses = route(&[0.1, 0.9, 0.5], Some(&[9.0, 0.25, 0.5]), 3, routing);
        assert_eq!(chosen(&uses), [(1, 0), (2, 0)]);
        assert_eq!((uses[0].weight, uses[1].weight), (0.25, 0.5));
        let uses = route(&[0.1, 0.9, 0.5], Some(&[9.0, 0.25, 0.5]), 3, Routing { k: 2, normalize: true });
        assert!((uses[0].weight - 1.0 / 3.0).abs() < 1e-6);
    }

    #[test]
    fn all_experts_may_be_chosen() {
        let uses = route(&[1.0, 2.0], None, 2, Routing { k: 2, normalize: true });
        assert_eq!(chosen(&uses), [(0, 0), (1, 0)]);
    }
}
