//! Request bodies: read up to a limit, decompressed up to the same limit, within the memory for
//! buffers.

use std::error::Error as _;
use std::fmt;
use std::future::poll_fn;
use std::io::ErrorKind as IoErrorKind;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::extract::Request;
use bytes::{Bytes, BytesMut};
use engine::{Error, ErrorKind, Result, Tasks};
use http::{HeaderMap, header};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use proto::{MAX_TENSORS, Payload};
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::survey::Survey;
use crate::security::Grant;
use crate::serving::shared::Shared;
use crate::support::buffers::{Buffers, Held, IsLone};
use crate::support::codes::{STALLED, TOO_LARGE, UNKNOWN_ENCODING};
use crate::support::stall_timer::StallTimer;
use crate::support::unpack::{Encoding, Unpackable, unpack};

/// A piece below this size is copied together with others, and so many may come.
const SMALL_BYTES: usize = 2048;
const MAX_SMALL: usize = 65_536;

/// How deep JSON may be nested.
pub(crate) const MAX_DEPTH: usize = 100;

/// How many values a body may have that becomes a tree of them.
const MAX_VALUES: usize = 4 << 20;

/// What a door takes of a body.
#[derive(Clone)]
pub(crate) struct Intake {
    /// The largest body, compressed and decompressed.
    pub max_bytes: usize,
    /// The memory for it.
    pub buffers: Arc<Buffers>,
    /// Cancelled when the server shuts down and has less patience.
    pub accepting: Tasks,
}

impl Intake {
    /// Returns what a door takes of bodies of at most so many bytes.
    pub(crate) fn new(shared: &Shared, max_bytes: usize) -> Self {
        let (buffers, accepting) = (shared.buffers.clone(), shared.accepting.clone());
        Self { max_bytes, buffers, accepting }
    }
}

/// A request with its whole body.
pub(crate) struct Received {
    pub headers: HeaderMap,
    /// What the caller may do.
    pub grant: Grant,
    pub body: Bytes,
    /// Its connection had no other open request when it began.
    pub is_lone: bool,
    /// The memory for what it is decoded to.
    tree: Mutex<Held>,
}

impl Received {
    /// Sets memory aside for a tree of JSON values.
    ///
    /// Errors: nesting that is too deep; more values than a body may have, or than there is memory
    /// for.
    pub(crate) fn holds_tree(&self, survey: &Survey) -> Result<()> {
        check_depth(survey)?;
        if survey.values > MAX_VALUES {
            return Err(Error::invalid(format!(
                "the body has {} JSON values, more than {MAX_VALUES}",
                survey.values
            )));
        }
        self.holds(survey.tree_bytes())
    }

    /// Sets memory aside for what is made of the body.
    ///
    /// Errors: there is not as much.
    pub(crate) fn holds(&self, bytes: usize) -> Result<()> {
        self.tree.lock().unwrap_or_else(PoisonError::into_inner).grow(bytes)
    }

    /// Takes the memory of what the body was decoded to, for a call that outlives it.
    pub(crate) fn take_tree(&self) -> Option<Held> {
        let mut tree = self.tree.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = tree.bytes();
        (bytes > 0).then(|| tree.split(bytes))
    }
}

/// Reads a request's body.
///
/// Errors: a body over the limit, before or after decompression; one that finds no memory; an
/// unknown encoding; a body that its encoding does not decode; a client that left.
pub(crate) async fn receive(request: Request, intake: &Intake) -> Result<Received> {
    let (parts, body) = request.into_parts();
    let limit = intake.max_bytes;
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large(limit));
    }
    let named = parts.headers.get(header::CONTENT_ENCODING);
    let named = named.map(|value| value.to_str().unwrap_or("?").to_ascii_lowercase());
    let encoding = match named.as_deref() {
        None | Some("" | "identity") => None,
        Some("gzip" | "x-gzip") => Some(Encoding::Gzip),
        Some("deflate") => Some(Encoding::Deflate),
        Some(other) => {
            let text = format!("Content-Encoding `{other}` is not supported; gzip and deflate are");
            return Err(Error::new(ErrorKind::Unimplemented, text).with_code(UNKNOWN_ENCODING));
        }
    };
    let is_lone = IsLone::of(&parts.extensions);
    let mut held = intake.buffers.hold_for(is_lone);
    let body = collect(body, intake, &mut held).await?;
    let body = match encoding {
        None => joined(body, held)?,
        Some(encoding) => {
            let plain = unpack((encoding, body), limit, held).await;
            let plain = plain.map_err(|why| match why {
                Unpackable::TooLong => too_large(limit),
                Unpackable::Broken(error) => Error::invalid(format!(
                    "the body is not {}: {error}",
                    named.unwrap_or_default()
                )),
                Unpackable::Failed(error) => error,
            })?;
            joined(plain, intake.buffers.hold_for(is_lone))?
        }
    };
    let grant = Grant::of(&parts.extensions);
    let tree = Mutex::new(intake.buffers.hold_for(is_lone));
    Ok(Received { headers: parts.headers, grant, body, is_lone, tree })
}

/// Makes one piece of a body, which `held` goes along with.
fn joined(body: Payload, mut held: Held) -> Result<Bytes> {
    if body.segments().count() > 1 {
        // The pieces are there until the copy is.
        held.grow(body.len())?;
    }
    let mut whole = Payload::default();
    whole.push(body.to_bytes());
    Ok(held.follow(whole).to_bytes())
}

/// Reads a body as long as it keeps coming; `held` grows with it.
async fn collect(mut body: Body, intake: &Intake, held: &mut Held) -> Result<Payload> {
    let (mut whole, mut small, mut small_count) = (Payload::default(), BytesMut::new(), 0);
    let (limit, mut length) = (intake.max_bytes, 0);
    let mut stall = StallTimer::default();
    loop {
        let next = tokio::select! {
            biased;
            next = body.frame() => next,
            slow = poll_fn(|cx| stall.poll_slow(&intake.accepting, cx)) => {
                return Err(Error::invalid(format!("the body {slow}")).with_code(STALLED));
            }
        };
        let frame = match next {
            None => {
                whole.push(small.freeze());
                return Ok(whole);
            }
            Some(frame) => frame.map_err(|error| {
                let text = format!("the body could not be read: {error}");
                let kind = if is_malformed(&error) {
                    ErrorKind::InvalidRequest
                } else {
                    ErrorKind::Cancelled
                };
                Error::new(kind, text)
            })?,
        };
        let Ok(data) = frame.into_data() else { continue };
        if data.len() > limit - length {
            return Err(too_large(limit));
        }
        length += data.len();
        stall.came(data.len());
        held.grow(data.len())?;
        // One of its own costs more than its bytes, and may keep all that was read with it.
        if data.len() < SMALL_BYTES {
            small_count += 1;
            small.extend_from_slice(&data);
            if small_count > MAX_SMALL {
                return Err(Error::invalid(format!(
                    "the body came in more than {MAX_SMALL} chunks below {SMALL_BYTES} bytes"
                )));
            }
        } else {
            whole.push(small.split().freeze());
            whole.push(data);
        }
    }
}

/// Returns whether a body came and is none, such as one whose chunks have no length. Otherwise the
/// client left.
fn is_malformed(error: &axum::Error) -> bool {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            return matches!(error.kind(), IoErrorKind::InvalidInput | IoErrorKind::InvalidData);
        }
        source = error.source();
    }
    false
}

fn too_large(limit: usize) -> Error {
    Error::invalid(format!(
        "the request's size exceeds the maximum allowed input size of {limit} bytes. Use \
         --http-max-input-size, an alias of --http-max-input-bytes, to increase the limit"
    ))
    .with_code(TOO_LARGE)
}

/// Reads a JSON body into a tree; an empty one is an empty object.
///
/// Errors: what is wrong with it, in Triton's words; more values than a body may have, or than
/// there is memory for.
pub(crate) fn json<T: DeserializeOwned>(received: &Received) -> Result<T> {
    let body = &received.body;
    let survey = Survey::of(body);
    received.holds_tree(&survey)?;
    let body = if body.trim_ascii().is_empty() { b"{}" } else { &body[..] };
    parsed(body)
}

/// Reads an object of tensors out of JSON text, a part of what was received.
///
/// Errors: text that is not JSON, something that is not such an object, nesting that is too deep;
/// more than there is memory for.
pub(crate) fn tensors<'de, T: Deserialize<'de>>(received: &Received, text: &'de [u8]) -> Result<T> {
    let survey = Survey::of(text);
    check_depth(&survey)?;
    received.holds(survey.tensor_bytes())?;
    parsed(text)
}

/// Checks how deep JSON is nested, in Triton's words.
fn check_depth(survey: &Survey) -> Result<()> {
    if survey.depth <= MAX_DEPTH {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "failed to parse the request JSON buffer: JSON nesting depth exceeds maximum allowed limit \
         ({MAX_DEPTH})"
    )))
}

fn parsed<'de, T: Deserialize<'de>>(text: &'de [u8]) -> Result<T> {
    let object: std::result::Result<Object<T>, _> = serde_json::from_slice(text);
    object.map(|object| object.0).map_err(|error| unreadable(&error))
}

/// A list of tensors, of which a request may have only so many.
pub(crate) struct Tensors<T>(pub Vec<T>);

impl<T> Default for Tensors<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Tensors<T> {
    fn deserialize<D: Deserializer<'de>>(json: D) -> std::result::Result<Self, D::Error> {
        json.deserialize_seq(TensorsVisitor(PhantomData))
    }
}

struct TensorsVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for TensorsVisitor<T> {
    type Value = Tensors<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {MAX_TENSORS} objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(
        self,
        mut list: A,
    ) -> std::result::Result<Tensors<T>, A::Error> {
        let mut all = Vec::new();
        while let Some(Object(one)) = list.next_element()? {
            if all.len() == MAX_TENSORS {
                return Err(A::Error::invalid_length(MAX_TENSORS + 1, &self));
            }
            all.push(one);
        }
        Ok(Tensors(all))
    }
}

/// A value that is written as an object; an array of its members is not one.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(json: D) -> std::result::Result<Self, D::Error> {
        json.deserialize_map(ObjectVisitor(PhantomData))
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> std::result::Result<Object<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Object)
    }
}

/// Makes the error for JSON that cannot be read, or is not what it should be.
fn unreadable(error: &serde_json::Error) -> Error {
    Error::invalid(match error.classify() {
        serde_json::error::Category::Data => format!("Unable to parse 'request': {error}"),
        _ => format!("failed to parse the request JSON buffer: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use std::io;

    use futures_util::{StreamExt, stream};
    use prometheus_client::metrics::counter::Counter;

    use super::*;
    use crate::support::codes::NO_BUFFERS;
    use crate::support::status::http_of;

    async fn received(body: Body, max_buffered: usize) -> Result<Received> {
        let buffers = Buffers::new(max_buffered, Counter::default());
        let intake = Intake { max_bytes: 40_960, buffers, accepting: Tasks::new() };
        let outcome = receive(Request::new(body), &intake).await;
        outcome
            .map(|received| Received { body: Bytes::copy_from_slice(&received.body), ..received })
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stops_coming_is_a_timeout() {
        let first = stream::iter([Ok::<_, io::Error>(Bytes::from_static(b"{"))]);
        let stalled = Body::from_stream(first.chain(stream::pending()));
        let error = received(stalled, 1 << 20).await.err().unwrap();
        assert_eq!(http_of(&error), 408);
        assert!(error.message().contains("nothing for 30 seconds"), "{error}");
    }

    #[tokio::test]
    async fn what_comes_is_bounded_by_the_limit_and_by_the_memory() {
        let pieces = |count: usize| {
            let pieces = (0..count).map(|_| Ok::<_, io::Error>(Bytes::from(vec![7; 4096])));
            Body::from_stream(stream::iter(pieces))
        };
        assert_eq!(received(pieces(10), 1 << 20).await.unwrap().body, vec![7; 40_960]);
        assert_eq!(received(pieces(11), 1 << 20).await.err().unwrap().code(), Some(TOO_LARGE));
        assert_eq!(received(pieces(10), 36_864).await.err().unwrap().code(), Some(NO_BUFFERS));
        // The pieces and the whole of them are there at once for a moment.
        assert_eq!(received(pieces(10), 77_824).await.err().unwrap().code(), Some(NO_BUFFERS));
    }

    #[tokio::test]
    async fn a_flood_of_tiny_chunks_is_one_piece_or_refused() {
        let pieces = |count: usize| {
            let pieces = (0..count).map(|_| Ok::<_, io::Error>(Bytes::from_static(b"7")));
            Body::from_stream(stream::iter(pieces))
        };
        let buffers = Buffers::new(1 << 20, Counter::default());
        let mut held = buffers.hold_for(false);
        let intake = Intake { max_bytes: 1 << 20, buffers, accepting: Tasks::new() };
        let whole = collect(pieces(MAX_SMALL), &intake, &mut held).await.unwrap();
        assert_eq!((whole.segments().count(), whole.len()), (1, MAX_SMALL));
        let error = collect(pieces(MAX_SMALL + 1), &intake, &mut held).await.unwrap_err();
        assert_eq!(http_of(&error), 400);
        assert!(error.message().contains("more than 65536 chunks"), "{error}");
    }

    #[tokio::test]
    async fn what_json_becomes_is_held_before_it_is_parsed() {
        type Tree = std::collections::HashMap<String, serde_json::Value>;
        let text = |values: usize| format!(r#"{{"a":[{}0]}}"#, "0,".repeat(values)).into_bytes();
        let ask = async |values: usize, max_buffered: usize| {
            let buffers = Buffers::new(max_buffered, Counter::default());
            let intake =
                Intake { max_bytes: 64 << 20, buffers: buffers.clone(), accepting: Tasks::new() };
            let received = receive(Request::new(Body::from(text(values))), &intake).await?;
            let before = buffers.held_bytes();
            json::<Tree>(&received).map(|tree| {
                let held = buffers.held_bytes() - before;
                drop((tree, received.take_tree()));
                assert_eq!(buffers.held_bytes(), before);
                held
            })
        };
        assert!(ask(10_000, 64 << 20).await.unwrap() > 10_000 * size_of::<serde_json::Value>());
        let refused = ask(10_000, 1 << 20).await.unwrap_err();
        assert_eq!(refused.code(), Some(NO_BUFFERS));
        let many = ask(MAX_VALUES, 1 << 40).await.unwrap_err();
        assert_eq!(http_of(&many), 400);
        assert!(many.message().contains("JSON values, more than 4194304"), "{many}");
    }
}
