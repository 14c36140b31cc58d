//! ZMTP 3.1 without security, the caller's side: what ZeroMQ speaks over TCP.
//!
//! Our own because it is little: a greeting, a handshake, framed messages, pings. Of the sockets there
//! are it can be SUB and DEALER. See <https://rfc.zeromq.org/spec/37/>. Peers of version 3.0 know no
//! pings; of those the system's own questions find who is gone.

use std::io::{Error, ErrorKind, Result};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{Instant, sleep_until};

use crate::tcp::keep_alive;

/// The largest message in bytes, all its parts together.
const MAX_MESSAGE_BYTES: u64 = 256 << 20;

/// Most parts of a message.
const MAX_PARTS: usize = 16;

/// The length of a greeting.
const GREETING_BYTES: usize = 64;

/// Flags of a frame.
const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// The time between two pings, and so how long a peer that answers them may say nothing.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// After what silence of ours the peer may give us up, in tenths of a second, as a ping tells it.
const PING_TTL: u16 = 300;

/// The longest context of a ping that is answered, in bytes.
const MAX_CONTEXT_BYTES: usize = 16;

/// What the caller is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Socket {
    Sub,
    Dealer,
}

/// A connection whose handshake is done.
#[derive(Debug)]
pub(super) struct Connection {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    /// Whether the peer answers pings.
    has_pings: bool,
    /// When it is asked next whether it is there, if nothing comes.
    ping: Instant,
    ping_interval: Duration,
}

/// A frame.
type Frame = (u8, Vec<u8>);

impl Connection {
    /// Connects to `HOST:PORT`.
    ///
    /// Errors: nobody there, or somebody who speaks otherwise.
    pub(super) async fn open(address: &str, socket: Socket) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        keep_alive(&stream)?;
        let (reader, writer) = stream.into_split();
        let (ping, ping_interval) = (Instant::now() + PING_INTERVAL, PING_INTERVAL);
        let reader = BufReader::new(reader);
        let mut connection = Self { reader, writer, has_pings: false, ping, ping_interval };
        connection.greet().await?;
        let kind: &[u8] = match socket {
            Socket::Sub => b"SUB",
            Socket::Dealer => b"DEALER",
        };
        let mut ready = b"\x05READY\x0BSocket-Type".to_vec();
        ready.extend_from_slice(&(kind.len() as u32).to_be_bytes());
        ready.extend_from_slice(kind);
        connection.frame(COMMAND, &ready).await?;
        let heard = AtomicBool::new(false);
        let (flags, body) = read_frame(&mut connection.reader, MAX_MESSAGE_BYTES, &heard).await?;
        if flags & COMMAND == 0 || !body.starts_with(b"\x05READY") {
            return Err(strange("the handshake failed"));
        }
        Ok(connection)
    }

    async fn greet(&mut self) -> Result<()> {
        let mut greeting = [0; GREETING_BYTES];
        greeting[..10].copy_from_slice(&[0xFF, 0, 0, 0, 0, 0, 0, 0, 1, 0x7F]);
        greeting[10..12].copy_from_slice(&[3, 1]);
        greeting[12..16].copy_from_slice(b"NULL");
        self.writer.write_all(&greeting).await?;
        let mut theirs = [0; GREETING_BYTES];
        self.reader.read_exact(&mut theirs).await?;
        if theirs[0] != 0xFF || theirs[9] != 0x7F || theirs[10] < 3 {
            return Err(strange("it does not speak ZMTP 3"));
        }
        self.has_pings = (theirs[10], theirs[11]) >= (3, 1);
        match &theirs[12..17] {
            b"NULL\0" => Ok(()),
            _ => Err(strange("it wants a secured connection")),
        }
    }

    /// Asks for all messages whose first part begins with a text.
    pub(super) async fn subscribe(&mut self, topic: &str) -> Result<()> {
        match self.has_pings {
            true => self.frame(COMMAND, &[b"\x09SUBSCRIBE", topic.as_bytes()].concat()).await,
            // In version 3.0 it is a message.
            false => self.frame(0, &[&[1], topic.as_bytes()].concat()).await,
        }
    }

    /// Sends a message.
    pub(super) async fn send(&mut self, parts: &[&[u8]]) -> Result<()> {
        for (place, part) in parts.iter().enumerate() {
            let more = if place + 1 < parts.len() { MORE } else { 0 };
            self.frame(more, part).await?;
        }
        Ok(())
    }

    /// Waits for the next message. A future that is dropped may lose a part of one.
    ///
    /// Errors: a peer that answers no pings, and says nothing else, among those of the connection.
    pub(super) async fn receive(&mut self) -> Result<Vec<Vec<u8>>> {
        let (mut parts, mut left) = (Vec::new(), MAX_MESSAGE_BYTES);
        loop {
            let (flags, body) = self.next_frame(left).await?;
            if flags & COMMAND != 0 {
                self.obey(&body).await?;
                continue;
            }
            left -= body.len() as u64;
            parts.push(body);
            if flags & MORE == 0 {
                return Ok(parts);
            }
            if parts.len() == MAX_PARTS {
                return Err(strange("a message has too many parts"));
            }
        }
    }

    /// Waits for the next frame and pings meanwhile; whatever comes is a sign of life.
    async fn next_frame(&mut self, most: u64) -> Result<Frame> {
        let Self { reader, writer, has_pings, ping, ping_interval } = self;
        let heard = AtomicBool::new(true);
        let mut reading = pin!(read_frame(reader, most, &heard));
        loop {
            tokio::select! {
                frame = &mut reading => return frame,
                () = sleep_until(*ping), if *has_pings => {
                    if !heard.swap(false, Relaxed) {
                        return Err(Error::new(ErrorKind::TimedOut, "the engine is silent"));
                    }
                    *ping = Instant::now() + *ping_interval;
                    let body = [&b"\x04PING"[..], &PING_TTL.to_be_bytes()].concat();
                    send_frame(writer, COMMAND, &body).await?;
                }
            }
        }
    }

    /// Does what a command asks for.
    async fn obey(&mut self, command: &[u8]) -> Result<()> {
        // Two bytes of a ping are how long the peer waits for us: what comes of us is answers.
        let Some(context) = command.strip_prefix(b"\x04PING").and_then(|ping| ping.get(2..)) else {
            return Ok(());
        };
        let context = &context[..context.len().min(MAX_CONTEXT_BYTES)];
        self.frame(COMMAND, &[b"\x04PONG", context].concat()).await
    }

    async fn frame(&mut self, flags: u8, body: &[u8]) -> Result<()> {
        send_frame(&mut self.writer, flags, body).await
    }
}

async fn send_frame(writer: &mut OwnedWriteHalf, flags: u8, body: &[u8]) -> Result<()> {
    let mut frame = Vec::with_capacity(9 + body.len());
    match u8::try_from(body.len()) {
        Ok(length) => frame.extend_from_slice(&[flags, length]),
        Err(_) => {
            frame.push(flags | LONG);
            frame.extend_from_slice(&(body.len() as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(body);
    writer.write_all(&frame).await
}

/// Reads a frame of at most so many bytes, and notes whenever something came.
async fn read_frame(
    reader: &mut (impl AsyncRead + Unpin),
    most: u64,
    heard: &AtomicBool,
) -> Result<Frame> {
    let flags = reader.read_u8().await?;
    let length = match flags & LONG {
        0 => u64::from(reader.read_u8().await?),
        _ => reader.read_u64().await?,
    };
    if length > most {
        return Err(strange(&format!("a message has more than {MAX_MESSAGE_BYTES} bytes")));
    }
    // Memory is taken as bytes come, whatever the length says.
    let (mut body, mut rest) = (Vec::new(), reader.take(length));
    while rest.read_buf(&mut body).await? > 0 {
        heard.store(true, Relaxed);
    }
    match body.len() as u64 == length {
        true => Ok((flags, body)),
        false => Err(ErrorKind::UnexpectedEof.into()),
    }
}

fn strange(why: &str) -> Error {
    Error::new(ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    use super::super::tests::welcome;
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// Connects to a peer of a minor version that answers pings, or does not.
    async fn heard(minor: u8, answers: bool) -> Result<Vec<Vec<u8>>> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        // An answer has to come within it, which takes a while on a busy machine.
        let ping_interval = Duration::from_millis(if answers { 3000 } else { 50 });
        let peer = async {
            let mut stream = welcome(&listener, minor, b"PUB").await;
            let (not_heard, mut pings) = (AtomicBool::new(false), 0);
            loop {
                let Ok((flags, body)) = read_frame(&mut stream, 1024, &not_heard).await else {
                    return;
                };
                if minor == 0 {
                    assert_eq!((flags, &body[..]), (0, &b"\x01kv"[..]), "what 3.0 knows");
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    stream.write_all(b"\x00\x02hi").await.unwrap();
                } else if body.starts_with(b"\x04PING") {
                    assert_eq!((flags, &body[5..]), (COMMAND, &PING_TTL.to_be_bytes()[..]));
                    pings += 1;
                    if answers {
                        stream.write_all(b"\x04\x05\x04PONG").await.unwrap();
                    }
                    if answers && pings == 2 {
                        stream.write_all(b"\x04\x0E\x04PING\x00\x10context").await.unwrap();
                    }
                } else if body == b"\x04PONGcontext" {
                    stream.write_all(b"\x00\x02hi").await.unwrap();
                } else {
                    assert_eq!((flags, &body[..]), (COMMAND, &b"\x09SUBSCRIBEkv"[..]));
                }
            }
        };
        let caller = async {
            let mut connection = Connection::open(&address, Socket::Sub).await?;
            connection.ping_interval = ping_interval;
            connection.ping = Instant::now();
            connection.subscribe("kv").await?;
            let first = connection.receive().await?;
            if answers && minor > 0 {
                let more = timeout(ping_interval * 3 / 2, connection.receive()).await;
                assert!(more.is_err(), "who answers pings may say nothing: {more:?}");
            }
            Ok(first)
        };
        tokio::select! {
            heard = caller => heard,
            () = peer => panic!("the caller went away"),
            () = tokio::time::sleep(LONG) => panic!("nothing in {LONG:?}"),
        }
    }

    #[tokio::test]
    async fn a_peer_that_answers_no_ping_is_gone() {
        assert_eq!(heard(1, true).await.unwrap(), [b"hi"]);
        assert_eq!(heard(1, false).await.unwrap_err().kind(), ErrorKind::TimedOut);
        assert_eq!(heard(0, false).await.unwrap(), [b"hi"], "it knows no pings");
    }
}
