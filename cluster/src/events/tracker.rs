//! Minds the numbers of KV events: what may be applied, what was missed, when to ask anew.
//!
//! It does no IO and knows no time. Invariant: the events and snapshots that it hands out, applied
//! in that order, give what the worker had at [`Tracker::position`].

use std::collections::BTreeMap;

use engine::{KvEvent, KvSnapshot};

use super::Position;

/// The most events that are kept while a snapshot is asked for; of more the oldest go, and another
/// snapshot is asked for if that had them not.
const MAX_WAITING: usize = 4096;

/// What to do about what was heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Nothing,
    /// Apply the event.
    Apply(KvEvent),
    /// Ask for a snapshot.
    Ask,
}

/// What to do about a snapshot: replace everything by it, then apply the events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caught {
    /// What came since.
    pub events: Vec<KvEvent>,
    /// There is a gap behind these already: ask again.
    pub is_behind: bool,
}

/// The numbers of one model of one worker.
#[derive(Debug, Default)]
pub struct Tracker {
    position: Position,
    /// Some: a snapshot is wanted, and these came meanwhile.
    waiting: Option<BTreeMap<Position, KvEvent>>,
    /// Whether more was lost while it was: the snapshot may be older than that.
    is_lost_again: bool,
    /// What was said to be the last event and was not here then.
    ahead: Option<Position>,
}

impl Tracker {
    /// Returns the place of the last event that counts.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Returns whether a snapshot is wanted.
    pub fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// Takes an event.
    pub fn take(&mut self, position: Position, event: KvEvent) -> Step {
        if position <= self.position {
            return Step::Nothing;
        }
        if self.waiting.is_none() && position == self.position.next() {
            self.position = position;
            return Step::Apply(event);
        }
        let step = self.ask();
        if let Some(waiting) = &mut self.waiting {
            waiting.insert(position, event);
            if waiting.len() > MAX_WAITING {
                waiting.pop_first();
            }
        }
        step
    }

    /// Hears what the last event is. One that is not here yet may be on its way, so it counts as
    /// lost when it is not here by the next time, or by the next one behind a snapshot.
    pub fn head(&mut self, head: Position) -> Step {
        if self.waiting.is_some() {
            self.ahead = self.ahead.max(Some(head));
            return Step::Nothing;
        }
        if self.ahead.take().is_some_and(|ahead| ahead > self.position) {
            return self.ask();
        }
        self.ahead = (head > self.position).then_some(head);
        Step::Nothing
    }

    /// Hears that events were lost. What is lost while a snapshot is wanted may be missing in that,
    /// so that another one is asked for behind it.
    pub fn lost(&mut self) -> Step {
        self.is_lost_again = self.waiting.is_some();
        self.ask()
    }

    fn ask(&mut self) -> Step {
        match self.waiting {
            Some(_) => Step::Nothing,
            None => {
                self.waiting = Some(BTreeMap::new());
                Step::Ask
            }
        }
    }

    /// Takes a snapshot; none: it is older than what is here already.
    pub fn catch_up(&mut self, snapshot: &KvSnapshot) -> Option<Caught> {
        let held = Position::of(snapshot);
        if held < self.position {
            return None;
        }
        self.position = held;
        let mut waiting = self.waiting.take().unwrap_or_default().split_off(&held.next());
        let mut events = Vec::new();
        while let Some(event) = waiting.remove(&self.position.next()) {
            self.position = self.position.next();
            events.push(event);
        }
        self.ahead = self.ahead.filter(|ahead| *ahead > self.position);
        let is_behind = std::mem::take(&mut self.is_lost_again) || !waiting.is_empty();
        if is_behind {
            self.waiting = Some(waiting);
        }
        Some(Caught { events, is_behind })
    }
}

#[cfg(test)]
mod tests {
    use engine::SequenceHash;

    use super::*;

    fn at(sequence: u64) -> Position {
        Position { epoch: 1, sequence }
    }

    fn event(number: u64) -> KvEvent {
        KvEvent::Removed { blocks: vec![SequenceHash(number)] }
    }

    fn snapshot(epoch: u64, sequence: u64) -> KvSnapshot {
        KvSnapshot { epoch, sequence, blocks: Vec::new() }
    }

    #[test]
    fn a_gap_waits_for_a_snapshot_and_goes_on_behind_it() {
        let mut tracker = Tracker::default();
        assert_eq!(tracker.take(at(4), event(4)), Step::Ask);
        assert_eq!(tracker.take(at(5), event(5)), Step::Nothing);
        let caught = tracker.catch_up(&snapshot(1, 4)).unwrap();
        assert_eq!(caught, Caught { events: vec![event(5)], is_behind: false });
        assert_eq!(tracker.take(at(6), event(6)), Step::Apply(event(6)));
        assert_eq!(tracker.take(at(6), event(6)), Step::Nothing);
        assert_eq!(tracker.take(at(9), event(9)), Step::Ask);
        assert_eq!(tracker.catch_up(&snapshot(1, 5)), None);
        let caught = tracker.catch_up(&snapshot(1, 7)).unwrap();
        assert!(caught.is_behind && tracker.is_waiting() && tracker.position() == at(7));
    }

    #[test]
    fn a_new_numbering_begins_with_a_snapshot() {
        let mut tracker = Tracker::default();
        tracker.catch_up(&snapshot(1, 3)).unwrap();
        let newer = Position { epoch: 2, sequence: 1 };
        assert_eq!(tracker.take(newer, event(1)), Step::Ask);
        assert_eq!(tracker.take(at(4), event(4)), Step::Nothing);
        let caught = tracker.catch_up(&snapshot(2, 0)).unwrap();
        assert_eq!(caught, Caught { events: vec![event(1)], is_behind: false });
        assert_eq!(tracker.take(at(5), event(5)), Step::Nothing);
    }

    #[test]
    fn what_was_announced_has_until_the_next_time() {
        let mut tracker = Tracker::default();
        tracker.catch_up(&snapshot(1, 3)).unwrap();
        assert_eq!(tracker.head(at(3)), Step::Nothing);
        assert_eq!(tracker.head(at(4)), Step::Nothing);
        assert_eq!(tracker.take(at(4), event(4)), Step::Apply(event(4)));
        assert_eq!(tracker.head(at(5)), Step::Nothing);
        assert_eq!(tracker.head(at(5)), Step::Ask);
        assert_eq!(tracker.head(at(5)), Step::Nothing);
    }

    #[test]
    fn what_is_lost_while_a_snapshot_is_on_its_way_is_asked_for_behind_it() {
        let mut tracker = Tracker::default();
        assert_eq!(tracker.lost(), Step::Ask);
        assert_eq!(tracker.lost(), Step::Nothing);
        let caught = tracker.catch_up(&snapshot(1, 3)).unwrap();
        assert!(caught.is_behind && tracker.is_waiting());
        let caught = tracker.catch_up(&snapshot(1, 5)).unwrap();
        assert!(!caught.is_behind && !tracker.is_waiting());
        // A head that was told meanwhile is minded at the next one.
        assert_eq!(tracker.lost(), Step::Ask);
        assert_eq!(tracker.head(at(7)), Step::Nothing);
        assert!(!tracker.catch_up(&snapshot(1, 6)).unwrap().is_behind);
        assert_eq!(tracker.head(at(7)), Step::Ask);
        assert!(!tracker.catch_up(&snapshot(1, 7)).unwrap().is_behind);
        assert_eq!(tracker.head(at(7)), Step::Nothing);
        assert_eq!(tracker.head(at(7)), Step::Nothing);
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut tracker = Tracker::default();
        let last = 2 * MAX_WAITING as u64;
        (2..=last).for_each(|number| drop(tracker.take(at(number), event(number))));
        let caught = tracker.catch_up(&snapshot(1, 1)).unwrap();
        assert!(caught.events.is_empty() && caught.is_behind);
        let caught = tracker.catch_up(&snapshot(1, last)).unwrap();
        assert!(!caught.is_behind && tracker.position() == at(last));
    }
}
