//! What comes out of compressed payloads, and what does not.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use futures_util::poll;
use prometheus_client::metrics::counter::Counter;

use super::*;
use crate::support::buffers::Buffers;
use crate::support::codes::NO_BUFFERS;

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

const ALL: [Encoding; 3] = [Encoding::Gzip, Encoding::Deflate, Encoding::Zstd];

fn packed(encoding: Encoding, plain: &[u8]) -> Vec<u8> {
    match encoding {
        Encoding::Gzip => {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(plain).unwrap();
            encoder.finish().unwrap()
        }
        Encoding::Deflate => {
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(plain).unwrap();
            encoder.finish().unwrap()
        }
        Encoding::Zstd => zstd::encode_all(plain, 1).unwrap(),
    }
}

/// A payload of pieces of some length.
fn cut(bytes: &[u8], length: usize) -> Payload {
    let mut payload = Payload::default();
    bytes.chunks(length).for_each(|piece| payload.push(Bytes::copy_from_slice(piece)));
    payload
}

async fn unpacked(
    buffers: &Arc<Buffers>,
    (encoding, packed): (Encoding, Payload),
    max_bytes: usize,
) -> Result<Payload, Unpackable> {
    let mut held = buffers.hold_for(false);
    held.grow(packed.len())?;
    unpack((encoding, packed), max_bytes, held).await
}

#[tokio::test]
async fn everything_up_to_the_limit_comes_back_as_it_was() {
    let buffers = Buffers::new(64 << 20, Counter::default());
    for encoding in ALL {
        for length in [0, 1, 4095, 4096, 4097, 12_288, 600_000, 1 << 20] {
            let plain: Vec<u8> =
                (0..length as u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
            let packed = packed(encoding, &plain);
            for cuts in [1, 7, packed.len().max(1)] {
                let payload = cut(&packed, cuts);
                let back = unpacked(&buffers, (encoding, payload.clone()), length).await.unwrap();
                assert!(back.to_bytes() == plain, "{encoding:?} {length} {cuts}");
                if length > 0 {
                    let over = unpacked(&buffers, (encoding, payload), length - 1).await;
                    assert!(matches!(over, Err(Unpackable::TooLong)), "{encoding:?} {length}");
                }
            }
        }
        assert_eq!(buffers.held_bytes(), 0);
    }
    let two = [packed(Encoding::Gzip, b"one "), packed(Encoding::Gzip, b"two")].concat();
    let back = unpacked(&buffers, (Encoding::Gzip, cut(&two, 5)), 100).await.unwrap();
    assert_eq!(back.to_bytes(), "one two");
}

#[tokio::test]
async fn what_is_cut_off_or_of_another_encoding_is_refused() {
    let buffers = Buffers::new(64 << 20, Counter::default());
    for encoding in ALL {
        let whole = packed(encoding, &[3; 10_000]);
        for broken in [&whole[..whole.len() - 1], &whole[..3], b"no such thing at all"] {
            let outcome = unpacked(&buffers, (encoding, cut(broken, 4)), 1 << 20).await;
            assert!(matches!(outcome, Err(Unpackable::Broken(_))), "{encoding:?} {outcome:?}");
        }
    }
    // A window of 128 MiB.
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(27).unwrap();
    encoder.write_all(&[1; 100]).unwrap();
    let wide = encoder.finish().unwrap();
    let outcome = unpacked(&buffers, (Encoding::Zstd, cut(&wide, 50)), 1 << 20).await;
    assert!(matches!(outcome, Err(Unpackable::Broken(_))), "{outcome:?}");
}

#[tokio::test]
async fn a_bomb_takes_no_more_memory_than_there_is() {
    let buffers = Buffers::new(4 << 20, Counter::default());
    for encoding in ALL {
        let bomb = packed(encoding, &vec![0; 64 << 20]);
        let outcome = unpacked(&buffers, (encoding, cut(&bomb, 16 << 10)), 1 << 30).await;
        let Err(Unpackable::Failed(error)) = outcome else { panic!("{outcome:?}") };
        assert_eq!(error.code(), Some(NO_BUFFERS));
        assert_eq!(buffers.held_bytes(), 0);
    }
}

#[tokio::test]
async fn nobody_waits_and_it_ends() {
    let buffers = Buffers::new(1 << 40, Counter::default());
    let bomb = packed(Encoding::Deflate, &vec![0; 256 << 20]);
    // Nothing but the end of the work gives the memory back, long before all of it is there.
    let unpacking = unpacked(&buffers, (Encoding::Deflate, cut(&bomb, 16 << 10)), 1 << 30);
    let mut unpacking = Box::pin(unpacking);
    assert!(poll!(unpacking.as_mut()).is_pending());
    let begun = Instant::now();
    while buffers.held_bytes() <= bomb.len() {
        assert!(begun.elapsed() < LONG, "it does not begin");
        tokio::task::yield_now().await;
    }
    drop(unpacking);
    // At most one piece follows, however far it came by then.
    let most = buffers.held_bytes() + LARGEST_PIECE;
    while buffers.held_bytes() > 0 {
        assert!(buffers.held_bytes() <= most, "it went on");
        assert!(begun.elapsed() < LONG, "the memory stays");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
