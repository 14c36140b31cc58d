//! One bound on the memory that clients make the server buffer: messages and bodies, from their
//! first byte until nobody needs them, and answers until they are written.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use engine::{Error, ErrorKind, Result};
use http::{Extensions, HeaderMap, HeaderName, HeaderValue};
use prometheus_client::metrics::counter::Counter;
use proto::Payload;
use tokio::sync::Semaphore;

use crate::support::codes::NO_BUFFERS;

mod limit;

pub(crate) use limit::{default_bytes, memory_limit};

/// What this part of the bound is kept for: requests that are small, so that health checks are
/// answered while large ones have taken the rest.
const RESERVED_SHARE: usize = 8;

/// A request up to this size is small.
const SMALL_BYTES: usize = 64 << 10;

/// What this part of the bound is kept for: the calls of connections that have no other one open,
/// so that many small calls of a few clients refuse none of the rest.
const LONE_SHARE: usize = 16;

/// The most that such a call, or its message, takes of that.
const LONE_BYTES: usize = 8 << 10;

/// Answers, and pieces once they are handed on, are not followed below this size: that costs more
/// than they do.
pub(crate) const FOLLOWED_BYTES: usize = 2048;

/// What an open call takes besides its message: its task, its place in HTTP/2, its answer's head.
const CALL_BYTES: usize = 4 << 10;

/// How often a call's headers are there: in HTTP/2, as the call's own, and in what is made of them.
const HEADER_COPIES: usize = 3;

/// When a client that was refused may try again.
const AGAIN: Duration = Duration::from_secs(1);

/// Whether a call's connection had no other open one when it began; in the extensions of a request.
#[derive(Clone, Copy)]
pub(crate) struct IsLone(pub bool);

impl IsLone {
    /// Returns whether that is known of a request.
    pub(crate) fn of(extensions: &Extensions) -> bool {
        extensions.get::<Self>().is_some_and(|is_lone| is_lone.0)
    }
}

/// The memory of all doors.
pub(crate) struct Buffers {
    max_bytes: usize,
    held_bytes: AtomicUsize,
    refusals: Counter,
    /// How many messages and bodies are decompressed at once.
    decompressing: Arc<Semaphore>,
}

impl Buffers {
    /// Buffers at most so many bytes, and counts the requests that are refused.
    pub(crate) fn new(max_bytes: usize, refusals: Counter) -> Arc<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Arc::new(Self {
            max_bytes,
            held_bytes: AtomicUsize::new(0),
            refusals,
            decompressing: Arc::new(Semaphore::new((cores / 2).max(1))),
        })
    }

    /// Begins to hold for a call; `is_lone` says that its connection has no other one.
    pub(crate) fn hold_for(self: &Arc<Self>, is_lone: bool) -> Held {
        Held { buffers: self.clone(), bytes: 0, is_lone }
    }

    /// Returns how many bytes are held.
    pub(crate) fn held_bytes(&self) -> usize {
        self.held_bytes.load(Ordering::Relaxed)
    }

    /// Returns the places for decompression.
    pub(crate) fn decompressing(&self) -> Arc<Semaphore> {
        self.decompressing.clone()
    }

    /// Holds for the large pieces of a call's answer, as long as anybody has one of them.
    ///
    /// Errors: as [`Held::grow`].
    pub(crate) fn answer(self: &Arc<Self>, payload: Payload, is_lone: bool) -> Result<Payload> {
        let bytes = payload.segments().map(Bytes::len).filter(|&bytes| bytes >= FOLLOWED_BYTES);
        match bytes.sum() {
            0 => Ok(payload),
            bytes => {
                let mut held = self.hold_for(is_lone);
                held.grow(bytes)?;
                Ok(held.follow(payload))
            }
        }
    }

    /// Holds for a call that begins, with these headers, until it ends.
    ///
    /// Errors: as [`Held::grow`].
    pub(crate) fn open(self: &Arc<Self>, headers: &HeaderMap, is_lone: bool) -> Result<Held> {
        let length = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len();
        let mut held = self.hold_for(is_lone);
        held.grow(CALL_BYTES + HEADER_COPIES * headers.iter().map(length).sum::<usize>())?;
        Ok(held)
    }

    fn refusal(&self) -> Error {
        self.refusals.inc();
        let text = format!(
            "requests under way and answers that are not read yet fill the memory for buffers, \
             which --max-buffered-mib bounds to {} MiB",
            self.max_bytes >> 20
        );
        Error::new(ErrorKind::Overloaded, text).with_code(NO_BUFFERS).with_retry_after(AGAIN)
    }
}

/// Memory that a request holds; it is given back with this.
pub(crate) struct Held {
    buffers: Arc<Buffers>,
    bytes: usize,
    is_lone: bool,
}

impl Held {
    /// Returns what it is a part of.
    pub(crate) fn buffers(&self) -> &Arc<Buffers> {
        &self.buffers
    }

    /// Begins to hold something else for the same call.
    pub(crate) fn beside(&self) -> Self {
        self.buffers.hold_for(self.is_lone)
    }

    /// Holds for the large pieces of an answer of the same call, as [`Buffers::answer`].
    ///
    /// Errors: as [`Held::grow`].
    pub(crate) fn answer(&self, payload: Payload) -> Result<Payload> {
        self.buffers.answer(payload, self.is_lone)
    }

    /// Holds more bytes.
    ///
    /// Errors: `Overloaded` with the code [`NO_BUFFERS`] when that is over the bound.
    pub(crate) fn grow(&mut self, bytes: usize) -> Result<()> {
        let buffers = &self.buffers;
        let max_bytes = buffers.max_bytes;
        let most = match self.bytes.saturating_add(bytes) {
            ..=LONE_BYTES if self.is_lone => max_bytes,
            ..=SMALL_BYTES => max_bytes - max_bytes / LONE_SHARE,
            _ => max_bytes - max_bytes / RESERVED_SHARE,
        };
        let grown = |held: usize| held.checked_add(bytes).filter(|&held| held <= most);
        let held = &buffers.held_bytes;
        match held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown) {
            Ok(_) => {
                self.bytes += bytes;
                Ok(())
            }
            Err(_) => Err(buffers.refusal()),
        }
    }

    /// Returns how many bytes it holds.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Holds so many bytes from now on, which may be more or less than before.
    ///
    /// Errors: as [`Held::grow`].
    pub(crate) fn fit(&mut self, bytes: usize) -> Result<()> {
        match self.bytes.checked_sub(bytes) {
            Some(less) => drop(self.split(less)),
            None => self.grow(bytes - self.bytes)?,
        }
        Ok(())
    }

    /// Takes over what another one holds.
    pub(crate) fn absorb(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }

    /// Parts with some of the bytes, at most all.
    pub(crate) fn split(&mut self, bytes: usize) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self { buffers: self.buffers.clone(), bytes, is_lone: self.is_lone }
    }

    /// Holds the memory for as long as anybody has a large piece of this payload.
    pub(crate) fn follow(self, payload: Payload) -> Payload {
        if payload.segments().all(|segment| segment.len() < FOLLOWED_BYTES) {
            return payload;
        }
        let held = Arc::new(self);
        let mut followed = Payload::default();
        for segment in payload.segments() {
            followed.push(match segment.len() < FOLLOWED_BYTES {
                true => segment.clone(),
                false => {
                    Bytes::from_owner(Followed { bytes: segment.clone(), _held: held.clone() })
                }
            });
        }
        followed
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.buffers.held_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

/// The memory for an answer over HTTP that was held before it was made; in its extensions.
#[derive(Clone)]
pub(crate) struct Foreseen(Arc<Held>);

impl Foreseen {
    /// Makes the extension.
    pub(crate) fn new(held: Held) -> Self {
        Self(Arc::new(held))
    }

    /// Takes the memory of an answer.
    pub(crate) fn take(extensions: &mut Extensions) -> Option<Held> {
        extensions.remove::<Self>().and_then(|foreseen| Arc::into_inner(foreseen.0))
    }
}

/// A piece that is handed on together with the memory of its request.
struct Followed {
    bytes: Bytes,
    _held: Arc<Held>,
}

impl AsRef<[u8]> for Followed {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_requests_leave_the_reserve_to_small_ones() {
        let refusals = Counter::default();
        let buffers = Buffers::new(8 << 20, refusals.clone());
        let mut large = buffers.hold_for(false);
        large.grow(7 << 20).unwrap();
        let refused = large.grow(1).unwrap_err();
        assert_eq!(refused.code(), Some(NO_BUFFERS));
        assert!(refused.message().contains("--max-buffered-mib bounds to 8 MiB"), "{refused}");
        let small: Vec<_> = (0..8)
            .map(|_| {
                let mut held = buffers.hold_for(false);
                held.grow(SMALL_BYTES).unwrap();
                held
            })
            .collect();
        assert!(buffers.hold_for(false).grow(1).is_err(), "all of it is held");
        let lone: Vec<_> = (0..64)
            .map(|_| {
                let mut held = buffers.hold_for(true);
                held.grow(LONE_BYTES).unwrap();
                assert!(held.grow(1).is_err(), "it is no larger than others");
                held
            })
            .collect();
        assert!(buffers.hold_for(true).grow(1).is_err(), "all of it is held");
        assert_eq!((buffers.held_bytes(), refusals.get()), (8 << 20, 67));
        drop((large, small, lone));
        assert_eq!(buffers.held_bytes(), 0);
    }

    #[test]
    fn memory_is_held_as_long_as_a_large_piece_is_there() {
        let buffers = Buffers::new(1 << 20, Counter::default());
        let mut held = buffers.hold_for(false);
        held.grow(10_000).unwrap();
        let mut payload = Payload::default();
        for length in [10, 4000, 5000] {
            payload.push(vec![7; length].into());
        }
        let followed = held.split(9010).follow(payload.clone());
        assert_eq!(followed.to_bytes(), payload.to_bytes());
        drop(held);
        assert_eq!(buffers.held_bytes(), 9010);
        let last = followed.segments().last().unwrap().slice(4990..);
        drop(followed);
        assert_eq!(buffers.held_bytes(), 9010);
        drop(last);
        assert_eq!(buffers.held_bytes(), 0);
        let mut tiny = buffers.hold_for(false);
        tiny.grow(10).unwrap();
        let mut payload = Payload::default();
        payload.push(Bytes::from_static(&[1; 10]));
        let _kept = tiny.follow(payload);
        assert_eq!(buffers.held_bytes(), 0, "tiny ones are not followed");
    }

    #[test]
    fn what_is_foreseen_for_an_answer_becomes_what_it_takes() {
        let buffers = Buffers::new(8 << 20, Counter::default());
        let mut held = buffers.hold_for(false);
        held.grow(4 << 20).unwrap();
        let mut extensions = Extensions::new();
        extensions.insert(Foreseen::new(held));
        assert_eq!(buffers.held_bytes(), 4 << 20);
        let mut held = Foreseen::take(&mut extensions).unwrap();
        assert!(Foreseen::take(&mut extensions).is_none(), "it is taken once");
        held.fit(1 << 20).unwrap();
        assert_eq!(buffers.held_bytes(), 1 << 20);
        held.fit(2 << 20).unwrap();
        assert_eq!((held.bytes(), buffers.held_bytes()), (2 << 20, 2 << 20));
        assert!(held.fit(8 << 20).is_err());
    }

    #[test]
    fn an_answer_is_held_until_its_last_large_piece_is_written() {
        let buffers = Buffers::new(8 << 20, Counter::default());
        let of = |lengths: &[usize]| -> Payload {
            lengths.iter().map(|&length| Bytes::from(vec![7; length])).collect()
        };
        let answer = buffers.answer(of(&[100, 1 << 20, 2 << 20]), false).unwrap();
        assert_eq!((answer.len(), buffers.held_bytes()), (100 + (3 << 20), 3 << 20));
        let refused = buffers.answer(of(&[5 << 20]), false).unwrap_err();
        assert_eq!(refused.code(), Some(NO_BUFFERS));
        let _small = buffers.answer(of(&[100]), false).unwrap();
        drop(answer);
        assert_eq!(buffers.held_bytes(), 0);
    }
}
