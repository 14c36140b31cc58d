//! Sequences: requests that belong together and are answered in order by one state.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tensor::Tensor;

/// The name that a client gives a sequence.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SequenceId {
    /// A number, never 0.
    Number(u64),
    /// A text, never empty.
    Text(String),
}

impl fmt::Display for SequenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// A request's place in its sequence.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// Which sequence.
    pub id: SequenceId,
    /// It is the first request.
    pub start: bool,
    /// It is the last request.
    pub end: bool,
    /// What the model keeps from request to request.
    pub state: SequenceState,
}

/// The tensors that a model keeps between the requests of one sequence.
///
/// ```
/// use engine::SequenceState;
/// use tensor::Tensor;
/// let state = SequenceState::default();
/// state.lock().push(Tensor::from_values("sum", vec![1], [7i64]));
/// assert_eq!(state.clone().lock().len(), 1);
/// ```
#[derive(Clone, Debug, Default)]
pub struct SequenceState(Arc<Mutex<Vec<Tensor>>>);

impl SequenceState {
    /// Gives access to the tensors. Requests of a sequence run one after the other, so nobody
    /// waits here.
    pub fn lock(&self) -> MutexGuard<'_, Vec<Tensor>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
