//! The gate of constraints: compiles them off the runtime, a few at a time.

use std::sync::Arc;
use std::time::Duration;

use engine::{Error, ErrorKind, Guided, Result, TokenId, Vocabulary};
use tokio::sync::{Semaphore, oneshot};

use crate::guided::{Compiler, Guide, Stop};

/// Constraints that are compiled at the same time; the processor belongs to the model.
const COMPILING: usize = 2;

/// The longest that a request waits for a place to compile its constraint.
const PLACE_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest that a constraint is compiled, which takes milliseconds if it is not made to take
/// long.
const COMPILE_TIMEOUT: Duration = Duration::from_secs(3);

/// The stack of a thread that follows a constraint, reserved and not taken: the parser goes down
/// as deep as terminals of a grammar refer to each other, which is bounded by its lines.
pub(super) const STACK_BYTES: usize = 64 << 20;

/// What constraints on a model's texts are compiled with, for as many engines as have its
/// vocabulary; clones are the same.
#[derive(Clone, Debug)]
pub struct Constraints(Option<Arc<Compiler>>);

impl Constraints {
    /// Makes what a vocabulary needs, which takes milliseconds; an empty one serves no constraints.
    /// `eos_tokens` are the model's.
    pub fn new(vocabulary: &Vocabulary, eos_tokens: &[TokenId]) -> Self {
        Self(Compiler::new(vocabulary, eos_tokens).map(Arc::new))
    }
}

/// Makes guides for the requests of one model.
#[derive(Debug)]
pub(super) struct Guides {
    constraints: Constraints,
    queue: Semaphore,
    places: Arc<Semaphore>,
}

impl Guides {
    /// Makes the gate; `max_waiting` requests may be before it.
    pub(super) fn new(constraints: Constraints, max_waiting: usize) -> Self {
        Self {
            constraints,
            queue: Semaphore::new(max_waiting.min(Semaphore::MAX_PERMITS)),
            places: Arc::new(Semaphore::new(COMPILING)),
        }
    }

    /// Compiles the constraint of a request and follows it along the output of an earlier attempt.
    ///
    /// Errors: invalid, if it cannot be kept or takes too long; overloaded, if too many wait.
    pub(super) async fn guide(&self, guided: Guided, drawn: Vec<TokenId>) -> Result<Guide> {
        let compiler = self.constraints.0.clone().ok_or_else(|| {
            let text = "constraints on the text are not served for this model's vocabulary";
            Error::new(ErrorKind::Unimplemented, text)
        })?;
        let _queued = self.queue.try_acquire().map_err(|_| {
            let text = "Exceeds maximum queue size of constraints to be compiled";
            Error::new(ErrorKind::Overloaded, text)
        })?;
        let place = tokio::time::timeout(PLACE_TIMEOUT, self.places.clone().acquire_owned());
        let place = place.await.map_err(|_| {
            let text = "other constraints are still being compiled";
            Error::new(ErrorKind::Overloaded, text)
        })?;
        let waiting = Waiting::default();
        let stop = waiting.0.clone();
        let compiled = async {
            let (answer, compiled) = oneshot::channel();
            // The place is given back by the work itself: it ends soon when nobody waits any more.
            let compile = move || {
                let _place = place;
                let follow = |mut guide: Guide| {
                    drawn.iter().try_for_each(|&token| guide.accept(token).map(drop))?;
                    Ok(guide)
                };
                let _ = answer.send(compiler.compile(&guided, &stop).and_then(follow));
            };
            std::thread::Builder::new()
                .name("constraint".into())
                .stack_size(STACK_BYTES)
                .spawn(compile)
                .map_err(failed)?;
            compiled.await.map_err(failed)?
        };
        match tokio::time::timeout(COMPILE_TIMEOUT, compiled).await {
            Ok(outcome) => {
                waiting.end();
                outcome
            }
            Err(_) => {
                let text = format!(
                    "the constraint took longer than {} seconds to compile",
                    COMPILE_TIMEOUT.as_secs()
                );
                Err(Error::invalid(text).with_code("invalid_constraint"))
            }
        }
    }
}

/// Who waits for a constraint: whether it left or its time is over, the work ends.
#[derive(Default)]
struct Waiting(Arc<Stop>);

impl Waiting {
    /// Lets the guide live on.
    fn end(mut self) {
        self.0 = Arc::default();
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.ask();
    }
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::internal("the constraint could not be compiled").with_source(error)
}
