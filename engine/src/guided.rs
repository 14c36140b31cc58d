//! What a continuation has to look like: a constraint that the engine keeps token by token.

/// A constraint on the text of a continuation.
///
/// An engine that cannot keep one refuses the request; it never ignores it.
///
/// ```
/// use engine::{Constraint, Guided};
/// let guided = Guided::new(Constraint::Regex("[0-9]{4}".into()));
/// assert!(guided.after.is_none());
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Guided {
    /// What the text has to match, from its first character to its last.
    pub constraint: Constraint,
    /// The constraint begins only behind the first place of this text, such as `</think>`; the
    /// text before it is free.
    pub after: Option<String>,
}

/// A language that a text can be held to.
#[derive(Clone, Debug, PartialEq)]
pub enum Constraint {
    /// Any JSON object.
    JsonObject,
    /// JSON that is valid under this JSON Schema, itself JSON text.
    JsonSchema(String),
    /// A regular expression, in the syntax of the Rust crate `regex`.
    Regex(String),
    /// A context-free grammar, in the Lark dialect of llguidance.
    Grammar(String),
    /// One of these texts.
    Choice(Vec<String>),
}

impl Guided {
    /// Makes a constraint on the whole text.
    pub fn new(constraint: Constraint) -> Self {
        Self { constraint, after: None }
    }
}
