//! Writing answers: as they are into a file, without control characters onto a terminal.

use std::io::{self, Write};

/// Dimmed, for what a model thinks; and back.
const DIM: [&str; 2] = ["\x1b[2m", "\x1b[0m"];

/// Where answers and remarks go.
pub(super) struct Screen {
    is_terminal: bool,
    is_dim: bool,
    /// Whether the answer's line is ended.
    is_at_start: bool,
}

impl Screen {
    /// Makes a screen over standard output, which may be a terminal.
    pub(super) fn new(is_terminal: bool) -> Self {
        Self { is_terminal, is_dim: false, is_at_start: true }
    }

    /// Writes a piece of an answer.
    pub(super) fn answer(&mut self, text: &str) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        if self.is_dim {
            self.is_dim = false;
            self.write(&format!("{}\n", DIM[1]))?;
        }
        self.text(text)
    }

    /// Writes a piece of what the model thinks, only onto a terminal.
    pub(super) fn reasoning(&mut self, text: &str) -> io::Result<()> {
        if text.is_empty() || !self.is_terminal {
            return Ok(());
        }
        if !self.is_dim {
            self.is_dim = true;
            self.write(DIM[0])?;
        }
        self.text(text)
    }

    /// Ends the answer's line.
    pub(super) fn end(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.is_dim) {
            self.write(DIM[1])?;
        }
        match std::mem::replace(&mut self.is_at_start, true) {
            true => Ok(()),
            false => self.write("\n"),
        }
    }

    /// Writes a line that is no part of an answer.
    pub(super) fn remark(&mut self, text: &str) -> io::Result<()> {
        writeln!(io::stderr(), "{text}")
    }

    fn text(&mut self, text: &str) -> io::Result<()> {
        self.is_at_start = text.ends_with('\n');
        match self.is_terminal {
            true => self.write(&harmless(text)),
            false => self.write(text),
        }
    }

    fn write(&self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }
}

/// Replaces control characters: a model's text must not steer a terminal.
fn harmless(text: &str) -> String {
    let is_bad = |c: char| c.is_control() && c != '\n' && c != '\t';
    text.chars().map(|c| if is_bad(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_control_character_but_lines_and_tabs_reaches_a_terminal() {
        assert_eq!(harmless("a\tb\nç"), "a\tb\nç");
        assert_eq!(harmless("\x1b[2J\r\u{9b}x\x07"), "\u{fffd}[2J\u{fffd}\u{fffd}x\u{fffd}");
    }
}
