//! Guesses against what is wanted: step by step, without threads.

use super::*;
use crate::loader::pager::arena::Arena;
use crate::loader::pager::eviction;
use crate::loader::pager::plan::Plan;
use crate::loader::pager::state::{Phase, State};

/// Layer 0 has the experts 2 to 17, layer 1 those from 20 on.
struct Steps {
    state: State,
    slots: usize,
}

impl Steps {
    /// A pager's state with room for that many experts, all dense records read.
    fn new(pack: &Pack, slots: u64) -> Self {
        let options = options(Residency::Experts, None);
        let capacity = least(pack, Residency::Experts) + 6 * (32_768 + 8192);
        let mut plan = Plan::new(&pack.index, Residency::Experts, Some(capacity), &options.reads, CHUNK).unwrap();
        let slot = 20_480;
        plan.experts = slots * slot;
        let arena = Arena::new(2 * pack.total() as usize, plan.total() as usize, false).unwrap();
        let policy = eviction::policy(Eviction::Lfu, pack.index.records.len(), State::layers(&pack.index));
        let mut steps = Self { state: State::new(&pack.index, plan, arena, policy, (CHUNK, 2)), slots: slots as usize };
        steps.read();
        steps
    }

    /// Lets every read that may begin end at once.
    fn read(&mut self) {
        while let Some(chunk) = self.state.next_chunk() {
            if self.state.landed(&chunk, None) {
                self.state.finished(chunk.token, None);
            }
        }
    }

    /// Asks for experts, reads, and gives them back.
    fn request(&mut self, ids: &[RecordId]) {
        let ticket = self.state.next_ticket();
        self.state.requested(ids);
        for &id in ids {
            self.state.count(id);
            self.state.want(id, ticket);
        }
        self.read();
        for &id in ids {
            assert!(self.state.lease(id).is_some(), "{id} did not come");
            self.state.unwant(id, ticket);
        }
        for &id in ids {
            self.state.release(id);
        }
    }

    /// Fills the room with experts of the first layer, 2 being the one used least.
    fn fill(&mut self) {
        for _ in 0..3 {
            (3..2 + self.slots).for_each(|id| self.request(&[id]));
        }
        self.request(&[2]);
        assert_eq!(self.experts(), (2..2 + self.slots).collect::<Vec<_>>());
    }

    fn experts(&self) -> Vec<RecordId> {
        let ready = |id: &RecordId| self.state.entries[*id].phase == Phase::Ready && (2..36).contains(id);
        (2..36).filter(|id| ready(id) && *id != 18 && *id != 19).collect()
    }
}

#[test]
fn wrong_guesses_leave_first() {
    let pack = mixture();
    let mut steps = Steps::new(&pack, 8);
    steps.fill();
    steps.state.guess(&[20, 21]);
    steps.read();
    // The two used least made room, and the guesses did not for each other.
    assert_eq!(steps.experts(), [4, 5, 6, 7, 8, 9, 20, 21]);
    steps.request(&[21, 22]);
    assert_eq!(steps.experts(), [4, 5, 6, 7, 8, 9, 21, 22]);
    let statistics = steps.state.statistics;
    assert_eq!((statistics.guessed, statistics.guessed_right), (2, 1));
    // What was wrong once and is asked for later was no right guess.
    steps.state.guess(&[23]);
    steps.read();
    steps.request(&[22]);
    steps.request(&[23]);
    assert_eq!((steps.state.statistics.guessed, steps.state.statistics.guessed_right), (3, 1));
}

#[test]
fn a_guess_does_not_push_out_what_was_named_with_it() {
    let pack = mixture();
    let mut steps = Steps::new(&pack, 8);
    steps.fill();
    steps.request(&[20]);
    assert_eq!(steps.experts(), [3, 4, 5, 6, 7, 8, 9, 20]);
    // 20 was used least.
    steps.state.guess(&[20, 21]);
    steps.read();
    assert!(steps.experts().contains(&20) && steps.experts().contains(&21), "{:?}", steps.experts());
    assert_eq!(steps.state.statistics.guessed, 1);
}

#[test]
fn guesses_wait_for_what_is_wanted() {
    let pack = mixture();
    let mut steps = Steps::new(&pack, 8);
    let state = &mut steps.state;
    let ticket = state.next_ticket();
    state.requested(&[5]);
    state.want(5, ticket);
    state.guess(&[20, 21, 22]);
    // Three reads for the one that is wanted, two at once.
    let mut flying = [state.next_chunk().unwrap(), state.next_chunk().unwrap()];
    assert!(flying.iter().all(|chunk| chunk.token == 5) && state.next_chunk().is_none());
    assert!(!state.landed(&flying[0], None));
    flying[0] = state.next_chunk().unwrap();
    assert_eq!(flying[0].token, 5);
    assert!(!state.landed(&flying[1], None));
    assert!(state.next_chunk().is_none(), "a guess was read although the disk was busy");
    assert!(state.landed(&flying[0], None));
    state.finished(5, None);
    assert!(state.next_chunk().is_none(), "a guess was read although somebody still waits");
    state.lease(5).unwrap();
    state.unwant(5, ticket);
    // Half of the reads are left to what is wanted next.
    let guess = state.next_chunk().unwrap();
    assert!(guess.token == 20 && state.next_chunk().is_none());
    state.requested(&[25]);
    let ticket = state.next_ticket();
    state.want(25, ticket);
    assert_eq!(state.next_chunk().unwrap().token, 25);
    assert_eq!(state.statistics.guessed, 1, "guesses of a layer that was asked were begun");
}
