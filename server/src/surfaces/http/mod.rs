//! What the HTTP surfaces share: bodies, and the guard in front of the routes.

mod guard;
pub(crate) mod receive;
pub(crate) mod survey;

pub(crate) use guard::{protect, refusing};
