//! Which records leave for which, and the account of the shares.

use super::{Guess, Phase, State, Urgency};
use crate::loader::pager::RecordId;
use crate::loader::pager::plan::{Plan, Share, slot};

impl State {
    pub(super) fn unrank(&mut self, id: RecordId) {
        if let Some(rank) = self.ranks[id].take() {
            self.evictable.remove(&(rank, id));
        }
    }

    /// Puts an expert among those that may leave, or takes it away from them.
    pub(super) fn rank(&mut self, id: RecordId) {
        if self.is_expert(id) {
            self.unrank(id);
            if self.may_leave(id) {
                let rank = match self.entries[id].guess {
                    Guess::No => self.policy.rank(id),
                    Guess::Open => u64::MAX,
                    Guess::Wrong => 0,
                };
                self.ranks[id] = Some(rank);
                self.evictable.insert((rank, id));
            }
        }
    }

    fn may_leave(&self, id: RecordId) -> bool {
        let entry = &self.entries[id];
        entry.phase == Phase::Ready && entry.leases == 0 && entry.wanted.is_empty() && !self.plan.pinned[id]
    }

    /// The number of dense records until one is used, the one used last being the farthest.
    pub(super) fn distance(&self, order: usize) -> usize {
        let count = self.dense.len();
        (order + count - self.at - 1) % count + 1
    }

    /// Whether a record of the segment that is being computed stays for the next sequence.
    fn stays(&self, id: RecordId) -> bool {
        let segment = self.entries[id].segment;
        let current = self.dense.get(self.at).is_some_and(|at| self.entries[*at].segment == segment);
        current && (self.repeats.contains(&true) || self.fits.get(segment).is_some_and(|fits| *fits))
    }

    /// The dense record whose next use is farthest, if it may leave for this urgency.
    fn dense_victim(&self, urgency: Urgency) -> Option<RecordId> {
        let farthest =
            || self.streamed.range(..=self.at).rev().chain(self.streamed.range(self.at + 1..).rev()).copied();
        let free = |order: &usize| self.may_leave(self.dense[*order]);
        let passing = |order: &usize| free(order) && !self.stays(self.dense[*order]);
        let victim = match urgency {
            Urgency::Wanted(_) => farthest().find(passing).or_else(|| farthest().find(free)),
            Urgency::Ahead(distance) => farthest().find(passing).filter(|order| self.distance(*order) > distance),
            Urgency::Guess => None,
        };
        victim.map(|order| self.dense[order])
    }

    fn victim(&self, share: Share, urgency: Urgency, bytes: u64) -> Option<RecordId> {
        let free = match share {
            Share::Pinned => None,
            Share::Dense => self.dense_victim(urgency),
            Share::Experts => {
                // A guess pushes out neither another one whose layer is still to come nor what was named with it.
                let guess = matches!(urgency, Urgency::Guess);
                let may = |(rank, id): &&(u64, RecordId)| !guess || (*rank < u64::MAX && !self.likely.contains(id));
                let free = || self.evictable.iter().filter(may);
                // One of the same size leaves a place that fits; the first few ranks are as good as the first one.
                let same = |(_, id): &&(u64, RecordId)| slot(&self.index.records[*id]) == bytes;
                // Where groups of sequences ask for a layer one after the other, its experts stay for the next group;
                // wrong guesses, of rank 0, leave wherever they are.
                let elsewhere =
                    |(rank, id): &&(u64, RecordId)| *rank == 0 || Some(self.entries[*id].layer) != self.repeated_layer;
                let passing = || free().filter(elsewhere);
                let found = passing().take(8).find(same).or_else(|| passing().next()).or_else(|| free().next());
                found.map(|(_, id)| *id)
            }
        };
        // Whoever asked first goes first: what later ones wait for, and have not taken, may have to be read again.
        let Urgency::Wanted(ticket) = urgency else { return free };
        if free.is_some() || self.waiting.last_key_value().is_none_or(|(last, _)| *last <= ticket) {
            return free;
        }
        (0..self.entries.len()).find(|id| {
            let entry = &self.entries[*id];
            let later = entry.wanted.iter().all(|other| *other > ticket);
            entry.phase == Phase::Ready && entry.leases == 0 && entry.share == share && later
        })
    }

    pub(super) fn evict(&mut self, id: RecordId) {
        self.statistics.evictions += 1;
        self.drop_place(id);
        let tickets = self.entries[id].wanted.clone();
        let queue = usize::from(self.is_expert(id));
        self.wanted[queue].extend(tickets.into_iter().map(|ticket| (ticket, id)));
    }

    /// Frees what a record holds.
    pub(super) fn drop_place(&mut self, id: RecordId) {
        self.unrank(id);
        self.drop_staging(id);
        let entry = &mut self.entries[id];
        debug_assert_eq!(entry.leases, 0, "a leased record was dropped");
        entry.phase = Phase::Absent;
        entry.guess = Guess::No;
        let order = entry.order;
        if let Some(place) = entry.place.take() {
            self.used[entry.share as usize] -= place.bytes as u64;
            self.arena.give(place);
            if !self.is_expert(id) {
                self.streamed.remove(&order);
            }
        }
    }

    pub(super) fn drop_staging(&mut self, id: RecordId) {
        if let Some((place, share)) = self.entries[id].staging.take() {
            self.used[share as usize] -= place.bytes as u64;
            self.arena.give(place);
        }
    }

    /// Lets records leave until a share has room.
    pub(super) fn make_room(&mut self, share: Share, bytes: u64, slot: u64, urgency: Urgency) -> bool {
        while self.used[share as usize] + bytes > self.plan.limit(share) {
            let Some(victim) = self.victim(share, urgency, slot) else { return false };
            self.evict(victim);
        }
        true
    }

    /// Lets records leave whose share has become smaller.
    pub(super) fn settle(&mut self) {
        for share in [Share::Dense, Share::Experts] {
            self.make_room(share, 0, 0, Urgency::Wanted(u64::MAX));
        }
    }

    /// Shares the capacity anew.
    pub fn set_plan(&mut self, plan: Plan) {
        self.plan = plan;
        for id in 0..self.entries.len() {
            let share = self.share(id);
            let entry = &mut self.entries[id];
            if let Some(place) = entry.place
                && entry.share != share
            {
                self.used[entry.share as usize] -= place.bytes as u64;
                self.used[share as usize] += place.bytes as u64;
                entry.share = share;
            }
            self.note_streamed(id);
            self.rank(id);
        }
        self.measure_segments();
        self.settle();
        self.arena.set_limit(self.plan.total() as usize);
        self.moves += 1;
    }

    pub(super) fn note_streamed(&mut self, id: RecordId) {
        if !self.is_expert(id) {
            let order = self.entries[id].order;
            if self.entries[id].place.is_some() && !self.plan.pinned[id] {
                self.streamed.insert(order);
            } else {
                self.streamed.remove(&order);
            }
        }
    }
}
