//! What is read of bodies, however they are cut, compressed and broken.

use std::convert::Infallible;
use std::io::Write;

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use futures_util::{FutureExt, StreamExt, stream};
use http_body_util::{BodyExt, StreamBody};
use prometheus_client::metrics::counter::Counter;
use prost::Message as _;
use proto::inference::model_infer_request::InferInputTensor;
use proto::inference::{InferTensorContents, ModelInferRequest};
use tokio::time::{Duration, Instant};
use tonic::Code;

use super::*;

type Pieces = StreamBody<stream::BoxStream<'static, Result<Frame<Bytes>, Infallible>>>;

fn rules(max_bytes: usize) -> Rules {
    let buffers = Buffers::new(64 << 20, Counter::default());
    let accepting = Tasks::new();
    Rules {
        max_bytes,
        encoding: None,
        is_unary: false,
        is_lone: false,
        cost: Some(Cost::INFER),
        buffers,
        accepting,
    }
}

fn prefixed(flag: u8, message: &[u8]) -> Vec<u8> {
    let mut bytes = vec![flag];
    bytes.put_u32(message.len() as u32);
    bytes.extend(message);
    bytes
}

fn framed(lengths: &[usize]) -> Vec<u8> {
    let one = |(index, &length)| prefixed(0, &vec![index as u8; length]);
    lengths.iter().enumerate().flat_map(one).collect()
}

/// A body of pieces of some length, which then ends.
fn cut(bytes: &[u8], length: usize) -> Pieces {
    let pieces: Vec<_> = bytes.chunks(length).map(Bytes::copy_from_slice).collect();
    StreamBody::new(stream::iter(pieces).map(|data| Ok(Frame::data(data))).boxed())
}

/// A body of some bytes after which nothing comes.
fn hanging(bytes: &[u8]) -> Pieces {
    let first = stream::iter([Ok(Frame::data(Bytes::copy_from_slice(bytes)))]);
    StreamBody::new(first.chain(stream::pending()).boxed())
}

async fn all(body: Pieces, rules: Rules) -> Result<Vec<Bytes>, Status> {
    let messages: Vec<_> = Messages::new(body, rules).collect().await;
    messages.into_iter().map(|message| message.map(|message| message.to_bytes())).collect()
}

#[tokio::test]
async fn messages_are_the_same_however_they_are_cut() {
    let lengths = [0, 3, 5000, 1, 0, 2048, 9];
    let bytes = framed(&lengths);
    for length in [1, 2, 4, 5, 6, 7, 100, 2047, 2048, 4096, bytes.len()] {
        let rules = rules(5000);
        let found = all(cut(&bytes, length), rules.clone()).await.unwrap();
        assert_eq!(found.iter().map(Bytes::len).collect::<Vec<_>>(), lengths, "cut at {length}");
        let is_own = |(index, bytes): (usize, &Bytes)| bytes.iter().all(|b| *b == index as u8);
        assert!(found.iter().enumerate().all(is_own), "cut at {length}");
        let whole = Whole::new(cut(&bytes, length), rules.clone()).collect().await.unwrap();
        assert_eq!(whole.to_bytes(), bytes, "cut at {length}");
        drop(found);
        assert_eq!(rules.buffers.held_bytes(), 0, "cut at {length}");
    }
}

#[tokio::test]
async fn compressed_messages_come_plain() {
    let plain = vec![7; 100_000];
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&plain).unwrap();
    let mut deflate = ZlibEncoder::new(Vec::new(), Compression::fast());
    deflate.write_all(&plain).unwrap();
    let packed = [
        ("gzip", gzip.finish().unwrap()),
        ("deflate", deflate.finish().unwrap()),
        ("zstd", zstd::encode_all(&plain[..], 1).unwrap()),
    ];
    for (name, packed) in packed {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-encoding", name.parse().unwrap());
        let rules = Rules { encoding: encoding(&headers).unwrap(), ..rules(100_000) };
        let bytes = [prefixed(1, &packed), prefixed(0, b"as it is"), prefixed(1, &packed)].concat();
        let found = all(cut(&bytes, 100), rules.clone()).await.unwrap();
        assert!(found == [plain.clone().into(), Bytes::from("as it is"), plain.clone().into()]);
        let whole = Whole::new(cut(&bytes, 100), rules.clone()).collect().await.unwrap();
        let expected = [prefixed(0, &plain), prefixed(0, b"as it is"), prefixed(0, &plain)];
        assert!(whole.to_bytes() == expected.concat());
        let bounded = Rules { max_bytes: 99_999, ..rules };
        let error = all(cut(&bytes, 100), bounded).await.unwrap_err();
        assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
        assert!(error.message().contains("more after decompression"), "{error}");
    }
    let unknown = HeaderMap::from_iter([("grpc-encoding".parse().unwrap(), "br".parse().unwrap())]);
    let error = encoding(&unknown).unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
    assert_eq!(error.metadata().get("grpc-accept-encoding").unwrap(), ACCEPTED);
}

#[tokio::test]
async fn what_is_wrong_with_a_message_is_said() {
    let gzip = Rules { encoding: Some(Encoding::Gzip), ..rules(1 << 20) };
    let unary = Rules { is_unary: true, ..rules(1 << 20) };
    let table = [
        (
            cut(&[0, 0xff, 0xff, 0xff, 0xff], 5),
            rules(1 << 20),
            Code::ResourceExhausted,
            "4294967295",
        ),
        (hanging(&[0, 0, 0x20, 0, 0]), rules(1 << 20), Code::ResourceExhausted, "2097152"),
        (cut(&prefixed(1, b"xy"), 3), rules(1 << 20), Code::Internal, "names no compression"),
        (cut(&prefixed(2, b"xy"), 3), gzip.clone(), Code::Internal, "begins with 2"),
        (cut(&prefixed(1, b"xy"), 3), gzip, Code::Internal, "could not be decompressed"),
        (cut(&prefixed(0, b"xy")[..6], 3), rules(1 << 20), Code::Internal, "inside a message"),
        (cut(&framed(&[3, 3]), 100), unary, Code::Unimplemented, "second message"),
    ];
    for (body, rules, code, text) in table {
        let error = all(body, rules.clone()).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.message().contains(text), "{error}");
        assert_eq!(rules.buffers.held_bytes(), 0);
    }
}

#[tokio::test]
async fn memory_is_held_for_what_came_and_not_for_what_is_promised() {
    let rules = Rules { buffers: Buffers::new(1 << 20, Counter::default()), ..rules(1 << 30) };
    let mut promised = Whole::new(hanging(&[0, 0x3f, 0xff, 0xff, 0xff, 1, 2, 3]), rules.clone());
    assert!(promised.frame().now_or_never().is_none(), "tonic gets no prefix without its message");
    assert_eq!(rules.buffers.held_bytes(), 8);
    let large = all(cut(&framed(&[2 << 20]), 16 << 10), rules.clone()).await.unwrap_err();
    assert_eq!(large.code(), Code::ResourceExhausted);
    assert!(large.message().contains("--max-buffered-mib"), "{large}");
    drop(promised);
    assert_eq!(rules.buffers.held_bytes(), 0);
    let message = all(cut(&framed(&[100_000]), 16 << 10), rules.clone()).await.unwrap();
    drop(message);
    assert_eq!(rules.buffers.held_bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_stops_coming_is_given_up() {
    let unary = Rules { is_unary: true, ..rules(100) };
    for (bytes, rules) in
        [(&b"\0\0"[..], rules(100)), (b"\0\0\0\0\x05abc", rules(100)), (b"", unary)]
    {
        let started = Instant::now();
        let error = all(hanging(bytes), rules).await.unwrap_err();
        assert_eq!(error.message(), "the request stopped coming: nothing for 30 seconds");
        assert_eq!(started.elapsed().as_secs(), 30);
    }
    // A slow one comes, one of single bytes does not, and a stream may rest between two.
    let slow = |length| {
        let pieces: Vec<_> = framed(&[3, 4]).chunks(length).map(Bytes::copy_from_slice).collect();
        let pieces = stream::iter(pieces).then(|piece| async move {
            tokio::time::sleep(Duration::from_secs(29)).await;
            Ok(Frame::data(piece))
        });
        StreamBody::new(pieces.boxed())
    };
    assert_eq!(all(slow(4), rules(100)).await.unwrap().len(), 2);
    let dripping = all(slow(1), rules(100)).await.unwrap_err();
    let text = "the request comes too slowly: fewer than 4096 bytes in 30 seconds";
    assert_eq!(dripping.message(), text);
    let mut resting = Messages::new(hanging(&framed(&[3])), rules(100));
    assert!(resting.next().await.unwrap().is_ok());
    let hour = tokio::time::timeout(Duration::from_secs(3600), resting.next());
    assert!(hour.await.is_err(), "the stream goes on");
}

#[test]
fn a_flood_of_tiny_frames_costs_few_segments() {
    let mut received = Received::default();
    framed(&[100_000]).chunks(1).for_each(|piece| received.push(Bytes::copy_from_slice(piece)));
    let message = received.message(100_000).unwrap().unwrap();
    assert!(message.segments().count() <= 3);
}

#[tokio::test]
async fn memory_is_held_for_what_a_message_becomes() {
    let contents =
        InferTensorContents { bytes_contents: vec![Bytes::new(); 100_000], ..Default::default() };
    let input = InferInputTensor { contents: Some(contents), ..Default::default() };
    let message = ModelInferRequest { inputs: vec![input], ..Default::default() }.encode_to_vec();
    let bytes = prefixed(0, &message);
    let large = rules(1 << 20);
    let mut requests = Requests::new(cut(&bytes, 5000), large.clone());
    let (envelope, held) = requests.next().await.unwrap().unwrap();
    assert_eq!(envelope.message.inputs[0].contents.as_ref().unwrap().bytes_contents.len(), 100_000);
    assert!(held.unwrap().bytes() > 100_000 * size_of::<Bytes>());
    let whole = Whole::new(cut(&bytes, 5000), large.clone());
    let costs = whole.costs();
    whole.collect().await.unwrap();
    assert!(costs.next().unwrap().bytes() > 100_000 * size_of::<Bytes>());
    drop((envelope, requests));
    assert_eq!(large.buffers.held_bytes(), 0);

    let small = Rules { buffers: Buffers::new(4 << 20, Counter::default()), ..large };
    let mut requests = Requests::new(cut(&bytes, 5000), small.clone());
    let refused = [
        requests.next().await.unwrap().err().unwrap(),
        Whole::new(cut(&bytes, 5000), small.clone()).collect().await.err().unwrap(),
    ];
    for error in refused {
        assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
        assert!(error.message().contains("--max-buffered-mib"), "{error}");
    }
    assert!(requests.next().await.is_none());
    assert_eq!(small.buffers.held_bytes(), 0);
}
