//! What JSON text will take in memory, told before it is parsed: two bytes of it may become more
//! than a hundred.

use super::receive::MAX_DEPTH;

/// A value in a list that has grown to twice of what it holds.
const VALUE_BYTES: usize = 2 * size_of::<serde_json::Value>();

/// What a member of an object takes more: its key, its hash, its place in the index.
const MEMBER_BYTES: usize = 128;

/// The least that an object with members takes besides.
const OBJECT_BYTES: usize = 384;

/// The least that a text takes besides its length.
const TEXT_BYTES: usize = 32;

/// An element of a tensor: eight bytes in a list that has grown to twice of what it holds.
const ELEMENT_BYTES: usize = 16;

/// What is in JSON text, at least up to where it is nested too deep.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Survey {
    /// How deep objects and arrays are nested.
    pub depth: usize,
    /// An upper bound of the values.
    pub values: usize,
    members: usize,
    objects: usize,
    texts: usize,
    length: usize,
}

impl Survey {
    /// Looks at text, which need not be JSON.
    pub(crate) fn of(text: &[u8]) -> Self {
        let mut survey = Self { values: 1, length: text.len(), ..Self::default() };
        let mut depth = 0usize;
        let mut bytes = text.iter();
        while let Some(byte) = bytes.next() {
            match byte {
                b',' => survey.values += 1,
                b':' => survey.members += 1,
                b'{' | b'[' => {
                    depth += 1;
                    survey.values += 1;
                    survey.objects += usize::from(*byte == b'{');
                    survey.depth = survey.depth.max(depth);
                    if depth > MAX_DEPTH {
                        break;
                    }
                }
                b'}' | b']' => depth = depth.saturating_sub(1),
                b'"' => {
                    survey.texts += 1;
                    while let Some(inside) = bytes.next() {
                        match inside {
                            b'"' => break,
                            b'\\' => drop(bytes.next()),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        survey
    }

    /// Returns what a tree of the values takes at most.
    pub(crate) fn tree_bytes(&self) -> usize {
        self.length + VALUE_BYTES * self.values + self.rest_bytes()
    }

    /// Returns what the tensors of an inference request take at most, whose elements become no
    /// values of a tree.
    pub(crate) fn tensor_bytes(&self) -> usize {
        self.length + ELEMENT_BYTES * self.values + VALUE_BYTES * self.members + self.rest_bytes()
    }

    fn rest_bytes(&self) -> usize {
        MEMBER_BYTES * self.members + OBJECT_BYTES * self.objects + TEXT_BYTES * self.texts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_a_text_is_counted_once_and_texts_are_not_looked_into() {
        let text = br#"{"a,:{[": [1, 2, "\"", {}], "b": {"c": "\\\\"}}"#;
        let survey = Survey::of(text);
        assert_eq!((survey.depth, survey.members, survey.objects, survey.texts), (3, 3, 3, 5));
        // One too many for each list or object, which may be empty.
        assert_eq!(survey.values, 9);
        assert_eq!(Survey::of(&b"[".repeat(1000)).depth, MAX_DEPTH + 1);
    }

    #[test]
    fn small_texts_count_as_what_they_become() {
        assert!(Survey::of(&b"0,".repeat(1000)).tree_bytes() > 1000 * VALUE_BYTES);
        assert!(Survey::of(&br#"{"":0},"#.repeat(1000)).tree_bytes() > 600_000);
        assert!(Survey::of(&b"0,".repeat(1000)).tensor_bytes() < 20_000);
    }
}
