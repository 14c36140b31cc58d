//! The names of settings of Dynamo and of Triton, and what each of them is here.
//!
//! One table a server holds them: `dynamo.rs`, `variables.rs` and `triton.rs`. The command line, the
//! environment and the guides in `docs/guides/` read nothing else.

mod apply;
mod dynamo;
mod triton;
mod variables;

pub use apply::Note;
pub(super) use apply::{Environment, Origins, read_flags, read_variables};

/// A name of another server's setting, and what it is here.
#[derive(Debug)]
struct Name {
    /// The flag there, without dashes; empty: it has none.
    flag: &'static str,
    /// The variable there; empty: it has none.
    variable: &'static str,
    takes: Takes,
    means: Means,
    /// What the guide says of one of ours; the sentence of a note or a refusal otherwise.
    says: &'static str,
}

/// What stands behind a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Takes {
    /// Nothing; `--no-` in front switches it off.
    Nothing,
    /// `true` or `false`, in one of their spellings.
    Bool,
    /// A value.
    Value,
}

/// What a name is here.
#[derive(Debug)]
enum Means {
    /// One of our settings.
    Ours(&'static str, Reading),
    /// Nothing to set: these values hold here anyway, and others are refused.
    Only(&'static [&'static str]),
    /// Nothing to set, whatever the value.
    Any,
}

/// How a value becomes one of ours.
#[derive(Debug)]
enum Reading {
    /// As it is.
    Same,
    /// Number by number: seconds there are milliseconds here.
    Times(u32),
    /// From a list; `None` is what holds here anyway.
    Choice(&'static [(&'static str, Option<&'static str>)]),
    /// As it is, and `None` is nothing to set.
    Unless(&'static str),
    /// Our switch is on when theirs is.
    On,
    /// Our switch is on when theirs is off.
    Off,
    /// The new path of a route.
    Route(&'static str),
    /// The kind of discovery, whose address is in other variables.
    Discovery,
    /// What carries calls or events; the servers of NATS are in another variable.
    Plane,
}

const ON: Means = Means::Only(&["true"]);
const OFF: Means = Means::Only(&["false"]);
const NEVER: Means = Means::Only(&[]);

/// Makes a row of a flag and its variable that take a value.
const fn value(
    flag: &'static str,
    variable: &'static str,
    means: Means,
    says: &'static str,
) -> Name {
    Name { flag, variable, takes: Takes::Value, means, says }
}

/// Makes a row of a switch, which `--no-` in front turns off, and its variable.
const fn switch(
    flag: &'static str,
    variable: &'static str,
    means: Means,
    says: &'static str,
) -> Name {
    Name { flag, variable, takes: Takes::Nothing, means, says }
}

/// Makes a row of a flag that takes `true` or `false`, or of a variable that does.
const fn truth(
    flag: &'static str,
    variable: &'static str,
    means: Means,
    says: &'static str,
) -> Name {
    Name { flag, variable, takes: Takes::Bool, means, says }
}

/// Makes a row of one of ours with the same values.
const fn same(flag: &'static str, variable: &'static str, ours: &'static str) -> Name {
    value(flag, variable, Means::Ours(ours, Reading::Same), "")
}

/// Returns all rows.
fn all() -> impl Iterator<Item = &'static Name> {
    let tables = [dynamo::NAMES, dynamo::ROUTER, variables::NAMES, triton::NAMES, triton::REST];
    tables.into_iter().flatten()
}

#[cfg(test)]
mod guides;
#[cfg(test)]
mod tests;
