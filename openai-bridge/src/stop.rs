//! Stop texts: found across token borders, held back while they may still come.
//!
//! The law: however the text is cut into pieces, the same text comes out and the same stop ends
//! it, namely the one that is complete first.

/// Looks for stop texts in a text that comes in pieces.
#[derive(Clone, Debug)]
pub(crate) struct StopMatcher {
    stops: Vec<String>,
    includes_stop: bool,
    /// The end of the text so far, which may begin a stop.
    held: String,
}

impl StopMatcher {
    /// Makes a matcher; `includes_stop` keeps the stop itself in the text.
    pub(crate) fn new(stops: Vec<String>, includes_stop: bool) -> Self {
        Self { stops, includes_stop, held: String::new() }
    }

    /// Returns whether there are no stops, so that every piece is safe.
    pub(crate) fn is_idle(&self) -> bool {
        self.stops.is_empty()
    }

    /// Adds a piece, moves what is safe to `out`, and returns which stop was found.
    pub(crate) fn push(&mut self, piece: &str, out: &mut String) -> Option<usize> {
        if self.stops.is_empty() {
            out.push_str(piece);
            return None;
        }
        self.held.push_str(piece);
        let found = self.stops.iter().enumerate().filter_map(|(index, stop)| {
            self.held.find(stop.as_str()).map(|start| (start + stop.len(), start, index))
        });
        if let Some((end, start, index)) = found.min() {
            out.push_str(&self.held[..if self.includes_stop { end } else { start }]);
            self.held.clear();
            return Some(index);
        }
        let safe = self.held.len() - self.longest_beginning();
        out.push_str(&self.held[..safe]);
        self.held.drain(..safe);
        None
    }

    /// Moves all that is held to `out`: the text is over, or stops do not count yet.
    pub(crate) fn flush(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
    }

    /// Returns the length of the longest end of the text that begins a stop.
    fn longest_beginning(&self) -> usize {
        let begins = |start: usize| {
            let end = &self.held[start..];
            self.stops.iter().any(|stop| stop.starts_with(end))
        };
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let earliest = self.held.len().saturating_sub(longest);
        (earliest..self.held.len())
            .filter(|&start| self.held.is_char_boundary(start))
            .find(|&start| begins(start))
            .map_or(0, |start| self.held.len() - start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[&str], pieces: &[&str], includes_stop: bool) -> (String, bool) {
        let stops = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut matcher = StopMatcher::new(stops, includes_stop);
        let mut out = String::new();
        for piece in pieces {
            if matcher.push(piece, &mut out).is_some() {
                return (out, true);
            }
        }
        matcher.flush(&mut out);
        (out, false)
    }

    #[test]
    fn stops_are_found_across_pieces() {
        let check = |stops: &[&str], pieces: &[&str], text: &str, stopped: bool| {
            assert_eq!(run(stops, pieces, false), (text.to_owned(), stopped), "{pieces:?}");
        };
        check(&["END"], &["a E", "N", "D b"], "a ", true);
        check(&["END"], &["a E", "N", "X"], "a ENX", false);
        check(&["END"], &["a EN"], "a EN", false);
        check(&["bcd", "c"], &["abcd"], "ab", true);
        check(&["\n\n"], &["x\n", "y\n", "\nz"], "x\ny", true);
        check(&["é!"], &["caf", "é", "! x"], "caf", true);
        check(&[], &["a", "b"], "ab", false);
        assert_eq!(run(&["END"], &["a E", "ND b"], true), ("a END".to_owned(), true));
    }

    proptest! {
        #[test]
        fn cuts_do_not_matter(
            text in "[abé]{0,24}",
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
            cuts in prop::collection::vec(0usize..40, 0..8),
            includes_stop: bool,
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let mut borders: Vec<usize> =
                cuts.into_iter().filter(|&cut| text.is_char_boundary(cut)).collect();
            borders.extend([0, text.len()]);
            borders.sort_unstable();
            let pieces: Vec<&str> = borders.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
            let whole = run(&stops, &[&text], includes_stop);
            prop_assert_eq!(run(&stops, &pieces, includes_stop), whole);
        }
    }
}
