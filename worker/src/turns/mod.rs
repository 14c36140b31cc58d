//! Whose turn it is on compute threads that models have in common.
//!
//! Models take turns, forward pass by forward pass, in the order in which they came. Who draws from
//! one therefore waits for the passes of all. So each tells how long its own take without prompts,
//! and what prompts may add to these is shared out among the models that have some.

mod prefill_cost;

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub(crate) use prefill_cost::PrefillCost;

/// The turns on some threads; those of a clone are the same ones.
#[derive(Clone, Debug, Default)]
pub struct PassScheduler(Arc<Shared>);

/// A model's place among those on the same threads.
#[derive(Debug)]
pub struct Client {
    turns: PassScheduler,
    number: u64,
}

/// A forward pass: as long as this lives no other one begins on these threads.
#[derive(Debug)]
pub struct PassGuard<'a> {
    shared: &'a Shared,
    since: Instant,
    /// What the pass had taken before it let others by.
    before: Duration,
}

/// What a model wants of the threads.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Demand {
    /// Seconds of a pass without prompts, 0 if not known yet; none: no sequence draws.
    pub drawing: Option<f64>,
    /// Whether there are prompts to compute.
    pub has_prompts: bool,
}

/// What the other models want.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Others {
    /// Whether sequences draw from one of them.
    pub are_drawing: bool,
    /// Seconds of a pass without prompts of each of those, together.
    pub plain: f64,
    /// How many of them have prompts.
    pub with_prompts: u32,
}

#[derive(Debug, Default)]
struct Shared {
    line: Mutex<Queue>,
    next: Condvar,
}

/// Who waits for a forward pass, and for what.
#[derive(Debug, Default)]
struct Queue {
    /// Passes that were asked for.
    asked: u64,
    /// Passes that are over.
    over: u64,
    /// Models that ever took a seat.
    seated: u64,
    /// What each model wants, by the number of its seat.
    demands: BTreeMap<u64, Demand>,
}

impl PassScheduler {
    /// Gives a model a seat, which it has as long as that lives.
    pub fn join(&self) -> Client {
        let mut line = self.0.lock();
        line.seated += 1;
        let number = line.seated;
        line.demands.insert(number, Demand::default());
        Client { turns: self.clone(), number }
    }

    /// Returns how many passes were asked for, and what all want, in the order in which they came.
    #[cfg(test)]
    pub(crate) fn state(&self) -> (u64, Vec<Demand>) {
        let line = self.0.lock();
        (line.asked, line.demands.values().copied().collect())
    }
}

impl Client {
    /// Tells what the model wants from now on.
    pub fn tell(&self, demand: Demand) {
        self.turns.0.lock().demands.insert(self.number, demand);
    }

    /// Returns what the others want.
    pub fn others(&self) -> Others {
        let line = self.turns.0.lock();
        let others = line.demands.iter().filter(|(number, _)| **number != self.number);
        others.fold(Others::default(), |sum, (_, demand)| Others {
            are_drawing: sum.are_drawing || demand.drawing.is_some(),
            plain: sum.plain + demand.drawing.unwrap_or_default(),
            with_prompts: sum.with_prompts + u32::from(demand.has_prompts),
        })
    }

    /// Waits for the passes that were asked for before, and begins one.
    pub fn begin(&self) -> PassGuard<'_> {
        let shared = &*self.turns.0;
        shared.begin();
        PassGuard { shared, since: Instant::now(), before: Duration::ZERO }
    }
}

impl Others {
    /// Returns the seconds that a model's prompts may add to a pass whose time without them is
    /// `plain`, if all passes together may take `stretch` times as long as without prompts.
    pub fn allowance(&self, plain: f64, stretch: f64) -> f64 {
        (plain + self.plain) * (stretch - 1.0) / f64::from(1 + self.with_prompts)
    }
}

impl PassGuard<'_> {
    /// Lets those go first who wait, if sequences draw from any model, and if the pass has taken as
    /// long as theirs do: for passes that take long and that nobody draws from.
    pub fn let_by(&mut self) {
        let line = self.shared.lock();
        let is_waited_for = line.asked > line.over + 1;
        let drawing = line.demands.values().filter_map(|demand| demand.drawing);
        let theirs = drawing.reduce(|sum, plain| sum + plain);
        drop(line);
        let is_long = theirs.is_some_and(|theirs| self.since.elapsed().as_secs_f64() >= theirs);
        if is_waited_for && is_long {
            self.before = self.time();
            self.shared.end();
            self.shared.begin();
            self.since = Instant::now();
        }
    }

    /// Returns what the pass has taken so far, without the time in which it waited.
    pub fn time(&self) -> Duration {
        self.before + self.since.elapsed()
    }
}

impl Shared {
    fn begin(&self) {
        let mut line = self.lock();
        let own = line.asked;
        line.asked += 1;
        while line.over != own {
            line = self.next.wait(line).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn end(&self) {
        self.lock().over += 1;
        self.next.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for PassGuard<'_> {
    fn drop(&mut self) {
        self.shared.end();
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.turns.0.lock().demands.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWING: Demand = Demand { drawing: Some(0.01), has_prompts: false };

    /// Waits until so many passes were asked for.
    fn asked(turns: &PassScheduler, passes: u64) {
        while turns.state().0 < passes {
            std::thread::yield_now();
        }
    }

    #[test]
    fn passes_take_turns_in_their_order() {
        let turns = PassScheduler::default();
        let done = Mutex::new(Vec::new());
        let seat = turns.join();
        let first = seat.begin();
        std::thread::scope(|scope| {
            for model in 0..3u64 {
                let (seat, done) = (turns.join(), &done);
                scope.spawn(move || {
                    for _ in 0..2 {
                        let _turn = seat.begin();
                        done.lock().unwrap().push(model);
                    }
                });
                asked(&turns, model + 2);
            }
            // Nobody comes before the first one is over, and then each before any comes again.
            assert!(done.lock().unwrap().is_empty());
            drop(first);
        });
        let done = done.lock().unwrap();
        assert_eq!((&done[..3], done.len()), (&[0, 1, 2][..], 6));
    }

    #[test]
    fn a_long_pass_lets_by_who_is_drawn_from() {
        let drawing = |seconds| Demand { drawing: Some(seconds), has_prompts: false };
        for demand in [drawing(0.0), drawing(1000.0), Demand::default()] {
            let turns = PassScheduler::default();
            let (seat, other) = (turns.join(), turns.join());
            other.tell(demand);
            let done = Mutex::new(Vec::new());
            let mut long = seat.begin();
            long.let_by();
            assert_eq!(turns.state().0, 1, "nobody waits yet");
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let _turn = other.begin();
                    done.lock().unwrap().push("short");
                });
                asked(&turns, 2);
                long.let_by();
                done.lock().unwrap().push("long");
                drop(long);
            });
            let expected = match demand.drawing {
                Some(0.0) => ["short", "long"],
                _ => ["long", "short"],
            };
            assert_eq!(*done.lock().unwrap(), expected);
        }
    }

    #[test]
    fn what_prompts_may_add_is_shared_by_those_who_have_some() {
        let turns = PassScheduler::default();
        let seats = [turns.join(), turns.join(), turns.join()];
        assert_eq!(seats[0].others(), Others::default());
        seats[0].tell(DRAWING);
        seats[1].tell(Demand { drawing: Some(0.02), has_prompts: true });
        seats[2].tell(Demand { drawing: None, has_prompts: true });
        let others = seats[2].others();
        assert_eq!(others, Others { are_drawing: true, plain: 0.03, with_prompts: 1 });
        // Passes without prompts take 40 ms in all, and may take three times that.
        assert!((others.allowance(0.01, 3.0) - 0.04).abs() < 1e-9);
        assert!((seats[1].others().allowance(0.03, 3.0) - 0.04).abs() < 1e-9);
        let [first, second, third] = seats;
        drop((first, second));
        assert_eq!(third.others(), Others::default(), "who has left wants nothing");
    }
}
