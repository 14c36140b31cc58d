//! Decompression of what clients send: off the runtime, in pieces, within a limit and within the
//! memory for buffers.
//!
//! A few compressed bytes may stand for gigabytes, so that no more is decompressed than may be
//! kept, and nothing once nobody waits for it.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use engine::Error;
use flate2::read::{MultiGzDecoder, ZlibDecoder};
use proto::Payload;
use tokio::sync::oneshot;

use crate::support::buffers::Held;

/// The first piece, in bytes; each is twice the one before.
const FIRST_PIECE: usize = 4 << 10;

/// The largest piece.
const LARGEST_PIECE: usize = 256 << 10;

/// How far back a zstd stream may point, as a power of two: the 8 MiB that every decoder of
/// RFC 8878 should take.
const ZSTD_WINDOW_LOG: u32 = 23;

/// How a message or a body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// RFC 1952, of one member or several.
    Gzip,
    /// RFC 1950.
    Deflate,
    /// RFC 8878.
    Zstd,
}

/// Why something could not be decompressed.
#[derive(Debug)]
pub(crate) enum Unpackable {
    /// It is longer than the limit.
    TooLong,
    /// It is not of its encoding.
    Broken(io::Error),
    /// There is no memory for it, or the server failed.
    Failed(Error),
}

impl From<Error> for Unpackable {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Decompresses a payload into one of at most `max_bytes`; `held` is the memory of the compressed
/// one.
pub(crate) async fn unpack(
    (encoding, packed): (Encoding, Payload),
    max_bytes: usize,
    held: Held,
) -> Result<Payload, Unpackable> {
    let failed = |source| Error::internal("decompression failed").with_source(source);
    let place = held.buffers().decompressing().acquire_owned().await.map_err(failed)?;
    let (answer, outcome) = oneshot::channel();
    // The place is given back by the work itself: it goes on for a piece when nobody waits.
    tokio::task::spawn_blocking(move || {
        let plain = pieces((encoding, packed), max_bytes, held, || answer.is_closed());
        drop(place);
        let _ = answer.send(plain);
    });
    outcome.await.map_err(|gone| Error::internal("decompression failed").with_source(gone))?
}

fn pieces(
    (encoding, packed): (Encoding, Payload),
    max_bytes: usize,
    held: Held,
    is_abandoned: impl Fn() -> bool,
) -> Result<Payload, Unpackable> {
    let mut decoder = decoder(encoding, packed).map_err(Unpackable::Broken)?;
    let (mut plain, mut plain_held) = (Payload::default(), held.beside());
    let mut size = FIRST_PIECE;
    loop {
        if is_abandoned() {
            return Err(Error::new(engine::ErrorKind::Cancelled, "nobody waits for it").into());
        }
        // One byte over the limit tells that there is more.
        let length = size.min((max_bytes - plain.len()).saturating_add(1));
        plain_held.grow(length)?;
        let mut piece = vec![0; length];
        let filled = fill(&mut decoder, &mut piece).map_err(Unpackable::Broken)?;
        piece.truncate(filled);
        plain.push(Bytes::from(piece));
        if plain.len() > max_bytes {
            return Err(Unpackable::TooLong);
        }
        if filled < length {
            return Ok(plain_held.follow(plain));
        }
        size = (2 * size).min(LARGEST_PIECE);
    }
}

fn decoder(encoding: Encoding, packed: Payload) -> io::Result<Box<dyn Read>> {
    let segments = packed.segments().cloned().collect::<Vec<_>>();
    let packed = Segments { segments: segments.into_iter(), current: Bytes::new() };
    Ok(match encoding {
        Encoding::Gzip => Box::new(MultiGzDecoder::new(packed)),
        Encoding::Deflate => Box::new(ZlibDecoder::new(packed)),
        Encoding::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::new(packed)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Box::new(decoder)
        }
    })
}

/// Reads until a piece is full or the end comes; returns how much it got.
fn fill(from: &mut impl Read, piece: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < piece.len() {
        match from.read(&mut piece[filled..]) {
            Ok(0) => break,
            Ok(length) => filled += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// The segments of a payload, one after the other; each is freed once it is read.
struct Segments {
    segments: std::vec::IntoIter<Bytes>,
    current: Bytes,
}

impl Read for Segments {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.segments.next() {
                Some(next) => self.current = next,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

#[cfg(test)]
mod tests;
