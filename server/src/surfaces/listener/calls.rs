//! The calls of a connection: how many are open, which of them wait for their client, and when
//! something of them came or went last. A connection keeps its place by its calls, never by pings.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use engine::Tasks;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

use crate::support::buffers::Held;

/// Written bytes that count as use of a connection. A reader of an answer soon takes as many, and
/// the answers to pings are far fewer.
const USE_BYTES: u64 = 4096;

/// Pieces of an answer from this size on keep their call open until they are written.
const LARGE_BYTES: usize = 16 << 10;

/// A stream that has nothing to do until its client asks for something.
const IDLE: u32 = 1;
/// An answer whose last piece the connection has taken and not asked to be followed.
const HANDED: u32 = 2;
/// A large piece that is not written yet; each counts.
const UNWRITTEN: u32 = 4;

/// What is known of a connection.
pub(super) struct Shared {
    opened: Instant,
    /// When a connection was used last, in milliseconds after `opened`.
    heard_ms: AtomicU64,
    /// Bytes written since the connection was used last.
    written: AtomicU64,
    open: AtomicUsize,
    /// Open calls that wait for their client.
    waiting: AtomicUsize,
    has_called: AtomicBool,
    /// Cancelled when others wait for the place.
    pub gives_way: CancellationToken,
    /// Cancelled when open calls are answered by an error, since the server ends.
    ending: Tasks,
}

/// Begins the calls of a connection.
pub(crate) struct Caller(pub(super) Arc<Shared>);

/// One open call of a connection; the call ends with the last copy of this.
#[derive(Clone)]
pub(crate) struct Call(Arc<Open>);

struct Open {
    shared: Arc<Shared>,
    /// No other call was open when it began.
    is_lone: bool,
    waits: AtomicU32,
    /// The memory of the call and of its answer.
    held: Mutex<Option<Held>>,
}

impl Shared {
    /// Begins to follow a connection.
    pub(super) fn new(ending: Tasks) -> Self {
        Self {
            opened: Instant::now(),
            heard_ms: AtomicU64::new(0),
            written: AtomicU64::new(0),
            open: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            has_called: AtomicBool::new(false),
            gives_way: CancellationToken::new(),
            ending,
        }
    }

    /// Returns when something of a call came or went last, or the connection was opened.
    pub(super) fn heard(&self) -> Instant {
        self.opened + Duration::from_millis(self.heard_ms.load(Relaxed))
    }

    pub(super) fn hear(&self) {
        self.heard_ms.store(self.opened.elapsed().as_millis() as u64, Relaxed);
        self.written.store(0, Relaxed);
    }

    /// Counts bytes that were written.
    pub(super) fn wrote(&self, length: usize) {
        let is_in_use = self.open.load(Relaxed) > 0;
        if is_in_use && self.written.fetch_add(length as u64, Relaxed) >= USE_BYTES {
            self.hear();
        }
    }

    /// Returns whether a call has ever come.
    pub(super) fn has_called(&self) -> bool {
        self.has_called.load(Relaxed)
    }

    /// Returns whether a call is open.
    pub(super) fn is_open(&self) -> bool {
        self.open.load(Relaxed) > 0
    }

    /// Returns whether the server works on a call: others wait for their client.
    pub(super) fn is_working(&self) -> bool {
        self.open.load(Relaxed) > self.waiting.load(Relaxed)
    }
}

impl Caller {
    /// Begins a call.
    pub(crate) fn begin(&self) -> Call {
        let shared = self.0.clone();
        let is_lone = shared.open.fetch_add(1, Relaxed) == 0;
        shared.has_called.store(true, Relaxed);
        shared.hear();
        Call(Arc::new(Open { shared, is_lone, waits: AtomicU32::new(0), held: Mutex::default() }))
    }
}

impl Call {
    /// Says whether the call has nothing to do until its client asks for something.
    pub(crate) fn set_idle(&self, is_idle: bool) {
        self.0.set(IDLE, is_idle);
    }

    /// Returns whether its connection had no other open call when it began.
    pub(crate) fn is_lone(&self) -> bool {
        self.0.is_lone
    }

    /// Holds memory until the call is over and its answer written, but for a last small piece.
    pub(crate) fn keep(&self, held: Held) {
        let mut kept = self.0.held.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *kept {
            None => *kept = Some(held),
            Some(kept) => kept.absorb(held),
        }
    }

    /// Returns what is cancelled when the call is to be answered by an error, since the server ends.
    pub(crate) fn ending(&self) -> &Tasks {
        &self.0.shared.ending
    }
}

impl Open {
    fn set(&self, bit: u32, is_set: bool) {
        if (self.waits.load(Relaxed) & bit != 0) == is_set {
            return;
        }
        let before = match is_set {
            true => self.waits.fetch_or(bit, Relaxed),
            false => self.waits.fetch_and(!bit, Relaxed),
        };
        let after = if is_set { before | bit } else { before & !bit };
        self.changed(before, after);
    }

    fn changed(&self, before: u32, after: u32) {
        match (before, after) {
            (0, 1..) => self.shared.waiting.fetch_add(1, Relaxed),
            (1.., 0) => self.shared.waiting.fetch_sub(1, Relaxed),
            _ => 0,
        };
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.changed(self.waits.load(Relaxed), 0);
        self.shared.open.fetch_sub(1, Relaxed);
        self.shared.hear();
    }
}

/// A large piece of an answer, until it is written.
struct Unwritten {
    bytes: Bytes,
    call: Call,
}

impl Unwritten {
    fn hold(bytes: Bytes, call: &Call) -> Bytes {
        let before = call.0.waits.fetch_add(UNWRITTEN, Relaxed);
        call.0.changed(before, before + UNWRITTEN);
        Bytes::from_owner(Self { bytes, call: call.clone() })
    }
}

impl AsRef<[u8]> for Unwritten {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Unwritten {
    fn drop(&mut self) {
        let before = self.call.0.waits.fetch_sub(UNWRITTEN, Relaxed);
        self.call.0.changed(before, before - UNWRITTEN);
        self.call.0.shared.hear();
    }
}

/// Frames that are there at once, of which one says that the connection is in use. Reading the
/// clock for each would cost more than a small frame does.
const FRAMES: u32 = 16;

/// When a body said last that its connection is in use.
#[derive(Default)]
struct Heard {
    /// Nothing was there when it was asked last.
    has_waited: bool,
    /// Frames since then.
    frames: u32,
}

impl Heard {
    /// Says that the connection is in use, when a frame came that was waited for, or many did.
    fn polled(&mut self, is_ready: bool, shared: &Shared) {
        if !is_ready {
            self.has_waited = true;
            return;
        }
        self.frames += 1;
        if std::mem::take(&mut self.has_waited) || self.frames >= FRAMES {
            self.frames = 0;
            shared.hear();
        }
    }
}

/// The body of a request, which is use of its connection as it comes.
pub(crate) struct Asked<B> {
    body: B,
    call: Call,
    heard: Heard,
}

impl<B> Asked<B> {
    /// Follows the body of a call's request.
    pub(crate) fn new(body: B, call: Call) -> Self {
        Self { body, call, heard: Heard::default() }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Asked<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        let Self { heard, call, .. } = &mut *self;
        heard.polled(frame.is_ready(), &call.0.shared);
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of an answer. Its call is open until it is written, but for a last small piece.
pub(crate) struct Answered<B> {
    body: B,
    call: Call,
    heard: Heard,
}

impl<B> Answered<B> {
    /// Follows the body of a call's answer.
    pub(crate) fn new(body: B, call: Call) -> Self {
        Self { body, call, heard: Heard::default() }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Answered<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        self.call.0.set(HANDED, false);
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        let Self { heard, call, .. } = &mut *self;
        heard.polled(frame.is_ready(), &call.0.shared);
        let frame = ready!(frame);
        self.call.0.set(HANDED, true);
        Poll::Ready(frame.map(|frame| {
            Ok(frame?.map_data(|data| match data.len() < LARGE_BYTES {
                true => data,
                false => Unwritten::hold(data, &self.call),
            }))
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
