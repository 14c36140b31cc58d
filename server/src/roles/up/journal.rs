//! What a process says: on the terminal behind its name, and in a file of its own.

use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crate::args::LogFormat;

/// The longest line that is kept in one piece.
const MAX_LINE_BYTES: u64 = 64 << 10;

/// The bytes after which a file is put aside, as `NAME.log.1`, and another one begun.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// What the line begins with by which a process says why it cannot start.
const REASONS: [&str; 2] = ["stator: ", "error: "];

/// The log of a process, through all its starts.
#[derive(Clone, Debug)]
pub(super) struct Journal {
    name: String,
    path: PathBuf,
    format: LogFormat,
    /// Why it could not start the last time, in its own words.
    reason: Arc<Mutex<Option<String>>>,
}

impl Journal {
    /// Begins the log of a process in a folder.
    ///
    /// Errors: a file that cannot be made.
    pub(super) fn open(folder: &Path, name: &str, format: LogFormat) -> std::io::Result<Self> {
        let path = folder.join(format!("{name}.log"));
        File::create(&path)?;
        Ok(Self { name: name.to_owned(), path, format, reason: Arc::default() })
    }

    /// Returns the file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns why the process could not start, as far as it was read.
    pub(super) fn reason(&self) -> Option<String> {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Writes down what comes from a process until its end, in the thread that is returned.
    ///
    /// Errors: a file or a thread that cannot be opened.
    pub(super) fn follow(&self, reader: PipeReader) -> std::io::Result<JoinHandle<()>> {
        let journal = self.clone();
        let mut file = File::options().append(true).open(&self.path)?;
        let written = file.metadata()?.len();
        let write = move || {
            let (mut reader, mut line, mut written) = (BufReader::new(reader), Vec::new(), written);
            while journal.line(&mut reader, &mut line) {
                // What cannot be written is no reason for the process to stop.
                let _ = file.write_all(&line);
                let _ = std::io::stderr().lock().write_all(&journal.shown(&line));
                journal.note(&line);
                written += line.len() as u64;
                if written > MAX_FILE_BYTES
                    && let Ok(next) = journal.turn()
                {
                    (file, written) = (next, 0);
                }
            }
        };
        thread::Builder::new().name(format!("log {}", self.name)).spawn(write)
    }

    fn note(&self, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        if let Some(reason) = REASONS.iter().find_map(|begin| text.strip_prefix(begin)) {
            let reason = Some(reason.trim_end().to_owned());
            *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = reason;
        }
    }

    /// Reads a line with its end; returns whether there was one.
    fn line(&self, reader: &mut impl BufRead, line: &mut Vec<u8>) -> bool {
        line.clear();
        let read = reader.take(MAX_LINE_BYTES).read_until(b'\n', line);
        if read.is_ok_and(|bytes| bytes > 0) && !line.ends_with(b"\n") {
            line.push(b'\n');
        }
        !line.is_empty()
    }

    /// Returns a line as the terminal shows it.
    fn shown(&self, line: &[u8]) -> Vec<u8> {
        match (self.format, line) {
            (LogFormat::Json, [b'{', rest @ ..]) => {
                [b"{\"replica\":\"", self.name.as_bytes(), b"\",", rest].concat()
            }
            _ => [self.name.as_bytes(), b" | ", line].concat(),
        }
    }

    /// Puts the file aside and begins another one.
    fn turn(&self) -> std::io::Result<File> {
        std::fs::rename(&self.path, self.path.with_extension("log.1"))?;
        File::create(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_tell_who_said_them() {
        let folder = tempfile::tempdir().unwrap();
        for (format, shown) in [
            (LogFormat::Text, "frontend | {\"a\":1}\nfrontend | b\n"),
            (LogFormat::Json, "{\"replica\":\"frontend\",\"a\":1}\nfrontend | b\n"),
        ] {
            let journal = Journal::open(folder.path(), "frontend", format).unwrap();
            let (mut reader, mut line, mut all) = (&b"{\"a\":1}\nb"[..], Vec::new(), Vec::new());
            while journal.line(&mut reader, &mut line) {
                all.extend(journal.shown(&line));
            }
            assert_eq!(String::from_utf8(all).unwrap(), shown);
        }
    }
}
