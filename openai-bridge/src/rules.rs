//! What all texts of a server keep to, as its operator says.

use crate::tools::DEFAULT_MAX_CALLS;

/// What all texts of a server keep to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TextRules {
    /// Whether messages may spell out control tokens, which end turns and begin others.
    pub has_special_content: bool,
    /// Most calls of an answer whose calls are held to a form, at least 1.
    pub max_tool_calls: u32,
    /// Whether the prompt stands in front of the one response to a tensor request that does not
    /// say what it wants.
    pub has_echo: bool,
}

impl Default for TextRules {
    fn default() -> Self {
        Self { has_special_content: false, max_tool_calls: DEFAULT_MAX_CALLS, has_echo: false }
    }
}
