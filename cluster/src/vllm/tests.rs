//! Engines that are started again, against a publisher that is a part of ZeroMQ.

use std::time::Duration;

use engine::{KvEvent, KvEventReader, KvEvents, KvNews, Tasks};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::{Config, follow};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(20);

/// Takes a caller in, as a socket of a kind and a minor version of ZMTP.
pub(super) async fn welcome(listener: &TcpListener, minor: u8, kind: &[u8]) -> TcpStream {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut greeting = [0; 64];
    greeting[..12].copy_from_slice(&[0xFF, 0, 0, 0, 0, 0, 0, 0, 1, 0x7F, 3, minor]);
    greeting[12..16].copy_from_slice(b"NULL");
    stream.write_all(&greeting).await.unwrap();
    stream.read_exact(&mut greeting).await.unwrap();
    assert_eq!(greeting[10..12], [3, 1]);
    read_frame(&mut stream).await;
    let mut ready = b"\x05READY\x0BSocket-Type".to_vec();
    ready.extend_from_slice(&(kind.len() as u32).to_be_bytes());
    ready.extend_from_slice(kind);
    stream.write_all(&[&[4, ready.len() as u8], &ready[..]].concat()).await.unwrap();
    stream
}

async fn read_frame(stream: &mut TcpStream) -> Vec<u8> {
    let _flags = stream.read_u8().await.unwrap();
    let mut body = vec![0; stream.read_u8().await.unwrap().into()];
    stream.read_exact(&mut body).await.unwrap();
    body
}

/// Writes a message of three parts.
fn message(number: u64, batch: &[u8]) -> Vec<u8> {
    [&[1, 0, 1, 8], &number.to_be_bytes()[..], &[0, batch.len() as u8], batch].concat()
}

/// A batch that stores one block of four tokens.
fn batch(token: u8) -> Vec<u8> {
    let stored = [&[0x96, 0xAB], &b"BlockStored"[..], &[0x91, token, 0xC0]].concat();
    [&[0x92, 0xC0, 0x91], &stored[..], &[0x94, token, 2, 3, 4, 4, 0xC0]].concat()
}

/// An engine's publisher, and where it repeats its messages.
struct Ports {
    events: TcpListener,
    replay: TcpListener,
}

impl Ports {
    async fn open() -> Self {
        let open = || async { TcpListener::bind("127.0.0.1:0").await.unwrap() };
        Self { events: open().await, replay: open().await }
    }

    /// Publishes messages to the next subscriber, who sees those from `first` on, and repeats all of
    /// them, until the future is dropped.
    async fn publish(&self, first: usize, tokens: &[u8]) {
        let all: Vec<_> = tokens.iter().enumerate().map(|(n, token)| (n, batch(*token))).collect();
        let publishing = async {
            let mut stream = welcome(&self.events, 1, b"PUB").await;
            assert_eq!(read_frame(&mut stream).await, b"\x09SUBSCRIBE");
            for (number, batch) in &all[first..] {
                stream.write_all(&message(*number as u64, batch)).await.unwrap();
            }
            std::future::pending::<()>().await;
        };
        let repeating = async {
            loop {
                let mut stream = welcome(&self.replay, 1, b"ROUTER").await;
                assert_eq!(read_frame(&mut stream).await, b"");
                let asked = read_frame(&mut stream).await;
                let asked = u64::from_be_bytes(asked.try_into().unwrap());
                for (number, batch) in all.iter().filter(|(n, _)| *n as u64 >= asked) {
                    stream.write_all(&message(*number as u64, batch)).await.unwrap();
                }
                stream.write_all(&message(u64::MAX, b"")).await.unwrap();
                let _ = stream.read_u8().await;
            }
        };
        tokio::join!(publishing, repeating);
    }
}

/// Returns what comes: `s` for a block that is stored, `c` for all that are gone.
async fn hear(reader: &mut KvEventReader, count: usize) -> String {
    let mut heard = String::new();
    while heard.len() < count {
        heard.push(match timeout(LONG, reader.next()).await {
            Ok(Some(KvNews::Event(KvEvent::Stored { .. }))) => 's',
            Ok(Some(KvNews::Event(KvEvent::Cleared))) => 'c',
            other => panic!("behind {heard}: {other:?}"),
        });
    }
    let more = timeout(Duration::from_millis(200), reader.next()).await;
    assert!(more.is_err(), "behind {heard}: {more:?}");
    heard
}

/// Follows an engine, and then what is at its place after a connection was lost. Each publishes
/// blocks of these tokens, of which the ones behind `first` are seen.
async fn restarted(
    has_replay: bool,
    (before, expected): (&[u8], &str),
    (first, after, then): (usize, &[u8], &str),
) {
    let (ports, tasks) = (Ports::open().await, Tasks::new());
    let address = |listener: &TcpListener| listener.local_addr().unwrap().to_string();
    let config = Config {
        address: address(&ports.events),
        replay: has_replay.then(|| address(&ports.replay)),
        topic: String::new(),
    };
    let events = KvEvents::new(1024);
    let mut reader = events.subscribe();
    tasks.spawn("following", follow(config, events));
    for (first, tokens, expected) in [(0, before, expected), (first, after, then)] {
        tokio::select! {
            () = ports.publish(first, tokens) => {}
            heard = hear(&mut reader, expected.len()) => assert_eq!(heard, expected, "{tokens:?}"),
        }
    }
    tasks.cancel();
}

#[tokio::test]
async fn an_engine_that_counts_from_0_again_is_another_one() {
    for has_replay in [true, false] {
        restarted(has_replay, (&[1, 2], "ss"), (0, &[3, 4], "css")).await;
    }
}

#[tokio::test]
async fn an_engine_that_went_on_where_the_other_one_was_is_found_out() {
    restarted(true, (&[1, 2], "ss"), (2, &[3, 4, 5], "csss")).await;
    restarted(true, (&[1, 2], "ss"), (3, &[3, 4, 5, 6], "cssss")).await;
    // Without its old messages nobody knows.
    restarted(false, (&[1, 2], "ss"), (2, &[3, 4, 5], "cs")).await;
}

#[tokio::test]
async fn the_same_engine_is_followed_further() {
    restarted(true, (&[1, 2], "ss"), (2, &[1, 2, 3], "s")).await;
    restarted(true, (&[1, 2], "ss"), (4, &[1, 2, 3, 4, 5], "sss")).await;
}
