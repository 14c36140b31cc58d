//! Finds markers in a text that comes a character at a time.
//!
//! What may still become a marker is held back, and nothing more: the longest end of the text that
//! begins one.

/// Looks for any of a few markers.
#[derive(Clone, Debug)]
pub(super) struct Matcher {
    markers: Vec<&'static str>,
    held: String,
}

impl Matcher {
    /// Makes a matcher; no marker may lie inside another, so that the first one found is the one.
    pub(super) fn new(markers: impl IntoIterator<Item = &'static str>) -> Self {
        let markers: Vec<&'static str> = markers.into_iter().collect();
        let is_inside = |marker: &&str| {
            markers.iter().filter(|other| *other != marker).any(|other| other.contains(marker))
        };
        debug_assert!(!markers.iter().any(is_inside), "{markers:?}");
        Self { markers, held: String::new() }
    }

    /// Returns whether nothing is held back.
    pub(super) fn is_idle(&self) -> bool {
        self.held.is_empty()
    }

    /// Returns whether a character is no part of a marker, so that it need not be pushed.
    pub(super) fn is_text(&self, c: char) -> bool {
        self.held.is_empty() && !self.markers.iter().any(|marker| marker.starts_with(c))
    }

    /// Takes a character; moves what is no marker to `text`, returns the marker that is complete.
    pub(super) fn push(&mut self, c: char, text: &mut String) -> Option<&'static str> {
        self.held.push(c);
        loop {
            let held = self.held.as_str();
            let begun = self.markers.iter().find(|marker| marker.starts_with(held));
            match begun {
                Some(marker) if marker.len() == held.len() => {
                    self.held.clear();
                    return Some(marker);
                }
                Some(_) => return None,
                None => text.push(self.held.remove(0)),
            }
            if self.held.is_empty() {
                return None;
            }
        }
    }

    /// Returns a matcher without a marker; what is held back stays so.
    pub(super) fn without(&self, marker: &str) -> Self {
        let markers = self.markers.iter().copied().filter(|other| *other != marker).collect();
        Self { markers, held: self.held.clone() }
    }

    /// Takes what is held back: it is no marker after all.
    pub(super) fn take_held(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(markers: &[&'static str], text: &str) -> (Vec<String>, String) {
        let mut matcher = Matcher::new(markers.iter().copied());
        let (mut parts, mut open) = (Vec::new(), String::new());
        for c in text.chars() {
            if let Some(marker) = matcher.push(c, &mut open) {
                parts.extend([std::mem::take(&mut open), marker.to_uppercase()]);
            }
        }
        parts.push(open);
        (parts, matcher.take_held())
    }

    #[test]
    fn markers_are_found_and_only_their_beginnings_held() {
        let check = |markers: &[&'static str], text, parts: &[&str], held| {
            let (found, rest) = run(markers, text);
            assert_eq!((found, rest.as_str()), (parts.iter().map(|p| (*p).into()).collect(), held));
        };
        check(&["<a>", "</a>"], "x<a>y</a>z", &["x", "<A>", "y", "</A>", "z"], "");
        check(&["<a>"], "<<a>", &["<", "<A>", ""], "");
        check(&["<a>"], "x<a", &["x"], "<a");
        check(&["<a>"], "x<ab", &["x<ab"], "");
        check(&["aab"], "aaab", &["a", "AAB", ""], "");
        check(&["é▷"], "éé▷", &["é", "É▷", ""], "");
        check(&["abc", "d"], "abd", &["ab", "D", ""], "");
        check(&[], "any", &["any"], "");
    }

    #[test]
    fn an_empty_text_holds_nothing() {
        assert!(Matcher::new(["<a>"]).is_idle());
    }
}
