//! Which sequences compute how many tokens in the next forward pass, and who makes room.
//!
//! First one token of every sequence that decodes, then chunks of prompts, the most urgent first;
//! these are small while sequences draw, from this model or from another one on the same threads.
//! Who needs a block when none is left takes it from the least urgent sequence, of these the
//! youngest; a prompt that is itself the least urgent waits instead. So the most urgent sequence
//! gets on in every pass, and therefore everyone in the end.

use super::scheduler::Scheduler;
use crate::Error;
use crate::turns::Demand;

/// Tokens of prompts that are scored in one step; each costs a row of logits.
const SCORED_TOKENS: usize = 64;

/// Tokens of a pass that has guesses in it.
const DRAFTED_BATCH: usize = 16;

/// What a sequence does that finds no room and is the least urgent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cramped {
    /// It keeps its blocks until there are more.
    Waits,
    /// It gives its blocks back.
    Leaves,
}

impl Scheduler {
    /// Plans the next forward pass.
    ///
    /// Errors: the device failed to copy a block.
    pub(super) fn plan(&mut self) -> Result<(), Error> {
        let most = self.limits.batch_tokens.min(self.config.batch_tokens);
        for sequence in &mut self.running {
            sequence.planned = 0;
            sequence.drop_guess();
        }
        if std::mem::take(&mut self.is_crowded) {
            // Those that were left out longest come first.
            self.running.sort_by_key(|sequence| sequence.served);
        }
        let mut prompts: Vec<usize> = Vec::new();
        for (index, sequence) in self.running.iter().enumerate() {
            if !sequence.is_decoding() {
                prompts.push(index);
            }
        }
        // Where both want a place, prompts get one token at least.
        let reserved = usize::from(!prompts.is_empty() && most > 1);
        let decoding = self.plan_decoding(most - reserved)?;
        let drawing =
            (decoding > 0).then(|| self.prefill_budget.plain(decoding).unwrap_or_default());
        self.seat.tell(Demand { drawing, has_prompts: !prompts.is_empty() });
        let mut may_guess = true;
        if !prompts.is_empty() {
            let mut budget = most - decoding;
            let others = self.seat.others();
            if decoding > 0 || others.are_drawing {
                let most = self.config.mixed_prompt_tokens;
                budget = budget.min(self.prefill_budget.prompt_tokens(decoding, others, most));
            }
            prompts.sort_by_key(|&index| self.running[index].urgency);
            // Beside tokens of prompts a guess costs as much as these, and a pass that is to show how
            // long it takes without them must not have others instead.
            may_guess = !self.plan_prompts(&prompts, budget)? && budget > 0;
        }
        if self.config.draft_tokens > 0 && may_guess {
            self.plan_drafts(most.min(DRAFTED_BATCH))?;
        }
        Ok(())
    }

    /// Adds guesses to the tokens of decoding sequences as long as the pass stays small: then
    /// more tokens cost little, since reading the weights is most of its time.
    fn plan_drafts(&mut self, most: usize) -> Result<(), Error> {
        let planned: usize = self.running.iter().map(|sequence| sequence.planned).sum();
        let mut budget = most.saturating_sub(planned);
        for index in 0..self.running.len() {
            let sequence = &mut self.running[index];
            if budget == 0 || sequence.planned == 0 || !sequence.is_decoding() {
                continue;
            }
            let guessed = sequence.guess(self.config.draft_tokens.min(budget));
            if guessed > 0 {
                let planned = self.reserve(index, 1 + guessed, Cramped::Waits)?;
                budget -= planned - 1;
                self.totals.drafted_tokens += planned as u64 - 1;
            }
        }
        Ok(())
    }

    /// Plans a token of each decoding sequence, in their order.
    fn plan_decoding(&mut self, most: usize) -> Result<usize, Error> {
        let mut planned = 0;
        for index in 0..self.running.len() {
            if !self.running[index].is_decoding() {
                continue;
            }
            if planned == most {
                self.is_crowded = true;
                break;
            }
            planned += self.reserve(index, 1, Cramped::Leaves)?;
        }
        Ok(planned)
    }

    /// Plans chunks of prompts, given the places of those that have some left; returns whether there
    /// are any.
    fn plan_prompts(&mut self, prompts: &[usize], mut budget: usize) -> Result<bool, Error> {
        let (size, all) = (self.limits.block_size, budget);
        let mut scored = SCORED_TOKENS;
        for (rank, &index) in prompts.iter().enumerate() {
            if budget == 0 {
                break;
            }
            if self.running[index].is_preempted {
                continue;
            }
            if self.attach(index)? {
                self.is_fetching = true;
                continue;
            }
            if self.is_being_computed(&prompts[..rank], index) {
                continue;
            }
            let sequence = &self.running[index];
            let mut wanted = sequence.left().min(budget).min(sequence.until_handed(size));
            if sequence.scores_prompt() {
                wanted = wanted.min(scored);
            }
            if wanted < sequence.left() {
                // Whole blocks can be found by others, and the next chunk begins with one.
                let start = sequence.computed();
                let whole = (start + wanted) / size * size;
                wanted = if whole > start { whole - start } else { wanted };
            }
            if wanted == 0 {
                continue; // What is scored in a pass is used up: this one needs no room yet.
            }
            let planned = self.reserve(index, wanted, Cramped::Waits)?;
            if self.running[index].scores_prompt() {
                scored -= planned;
            }
            budget -= planned;
        }
        Ok(budget < all)
    }

    /// Returns whether one of `others` is about to compute what the sequence would compute next:
    /// then it finds that in a later pass.
    fn is_being_computed(&self, others: &[usize], index: usize) -> bool {
        let size = self.limits.block_size;
        let next = self.running[index].next_block(size).filter(|_| !others.is_empty());
        let is_promised = |next| {
            let mut others = others.iter().map(|&other| &self.running[other]);
            others.any(|other| !other.is_preempted && other.promises(next, size))
        };
        next.is_some_and(is_promised)
    }

    /// Makes room for the next tokens of a sequence, at most `wanted`, and returns how many are
    /// planned now: none if it has to wait, left the batch, or ended for want of memory.
    fn reserve(&mut self, index: usize, wanted: usize, cramped: Cramped) -> Result<usize, Error> {
        loop {
            let sequence = &mut self.running[index];
            if sequence.is_preempted {
                return Ok(0);
            }
            let start = sequence.computed();
            let room = sequence.table.room(&self.pool, start).min(wanted);
            if room > 0 {
                sequence.planned = room;
                let copy = sequence.table.grow(&mut self.pool, start, start + room);
                self.spill()?;
                if let Ok(Some(copy)) = copy {
                    self.runner.copy_block(copy.from, copy.to)?;
                }
                return Ok(room);
            }
            let has_blocks = |&other: &usize| {
                let other = &self.running[other];
                !other.is_preempted && !other.is_over && !other.table.blocks().is_empty()
            };
            let holders = (0..self.running.len()).filter(has_blocks);
            let victim = holders.clone().max_by_key(|&other| self.running[other].urgency);
            let is_alone = holders.into_iter().all(|other| other == index);
            match victim {
                Some(victim) if victim != index && self.is_before(index, victim) => {
                    self.preempt(victim);
                }
                _ if is_alone => {
                    self.running[index].exhaust(&mut self.pool);
                    return Ok(0);
                }
                _ if cramped == Cramped::Waits => return Ok(0),
                _ => {
                    self.preempt(index);
                    return Ok(0);
                }
            }
        }
    }

    /// Returns whether one sequence is more urgent than the other.
    fn is_before(&self, one: usize, other: usize) -> bool {
        self.running[one].urgency < self.running[other].urgency
    }

    /// Takes the blocks of a sequence, which leaves the batch before the next pass.
    fn preempt(&mut self, index: usize) {
        let sequence = &mut self.running[index];
        sequence.preempt(&mut self.pool);
        self.totals.preemptions += 1;
        if sequence.tokens().len() > self.pool.total() * self.limits.block_size {
            // It could never come back: not even alone.
            sequence.exhaust(&mut self.pool);
        }
    }
}
