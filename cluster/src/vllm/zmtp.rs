//! ZMTP 3.0 without security, the caller's side: what ZeroMQ speaks over TCP.
//!
//! Our own because it is little: a greeting, a handshake, framed messages. Of the sockets there are
//! it can be SUB and DEALER. See <https://rfc.zeromq.org/spec/23/>.

use std::io::{Error, ErrorKind, Result};

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

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

/// What the caller is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Socket {
    Sub,
    Dealer,
}

/// A connection whose handshake is done.
#[derive(Debug)]
pub(super) struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// Connects to `HOST:PORT`.
    ///
    /// Errors: nobody there, or somebody who speaks otherwise.
    pub(super) async fn open(address: &str, socket: Socket) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let mut connection = Self { stream: BufReader::new(stream) };
        connection.greet().await?;
        let kind: &[u8] = match socket {
            Socket::Sub => b"SUB",
            Socket::Dealer => b"DEALER",
        };
        let mut ready = b"\x05READY\x0BSocket-Type".to_vec();
        ready.extend_from_slice(&(kind.len() as u32).to_be_bytes());
        ready.extend_from_slice(kind);
        connection.frame(COMMAND, &ready).await?;
        let (flags, body) = connection.read_frame(MAX_MESSAGE_BYTES).await?;
        if flags & COMMAND == 0 || !body.starts_with(b"\x05READY") {
            return Err(strange("the handshake failed"));
        }
        Ok(connection)
    }

    async fn greet(&mut self) -> Result<()> {
        let mut greeting = [0; GREETING_BYTES];
        greeting[..10].copy_from_slice(&[0xFF, 0, 0, 0, 0, 0, 0, 0, 1, 0x7F]);
        greeting[10] = 3;
        greeting[12..16].copy_from_slice(b"NULL");
        self.stream.write_all(&greeting).await?;
        let mut theirs = [0; GREETING_BYTES];
        self.stream.read_exact(&mut theirs).await?;
        if theirs[0] != 0xFF || theirs[9] != 0x7F || theirs[10] < 3 {
            return Err(strange("it does not speak ZMTP 3"));
        }
        match &theirs[12..17] {
            b"NULL\0" => Ok(()),
            _ => Err(strange("it wants a secured connection")),
        }
    }

    /// Asks for all messages whose first part begins with a text.
    pub(super) async fn subscribe(&mut self, topic: &str) -> Result<()> {
        self.frame(0, &[&[1], topic.as_bytes()].concat()).await
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
    pub(super) async fn receive(&mut self) -> Result<Vec<Vec<u8>>> {
        let (mut parts, mut left) = (Vec::new(), MAX_MESSAGE_BYTES);
        loop {
            let (flags, body) = self.read_frame(left).await?;
            if flags & COMMAND != 0 {
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

    async fn frame(&mut self, flags: u8, body: &[u8]) -> Result<()> {
        let mut frame = Vec::with_capacity(9 + body.len());
        match u8::try_from(body.len()) {
            Ok(length) => frame.extend_from_slice(&[flags, length]),
            Err(_) => {
                frame.push(flags | LONG);
                frame.extend_from_slice(&(body.len() as u64).to_be_bytes());
            }
        }
        frame.extend_from_slice(body);
        self.stream.write_all(&frame).await
    }

    async fn read_frame(&mut self, most: u64) -> Result<(u8, Vec<u8>)> {
        let flags = self.stream.read_u8().await?;
        let length = match flags & LONG {
            0 => u64::from(self.stream.read_u8().await?),
            _ => self.stream.read_u64().await?,
        };
        if length > most {
            return Err(strange(&format!("a message has more than {MAX_MESSAGE_BYTES} bytes")));
        }
        // Memory is taken as bytes come, whatever the length says.
        let mut body = Vec::new();
        (&mut self.stream).take(length).read_to_end(&mut body).await?;
        match body.len() as u64 == length {
            true => Ok((flags, body)),
            false => Err(ErrorKind::UnexpectedEof.into()),
        }
    }
}

fn strange(why: &str) -> Error {
    Error::new(ErrorKind::InvalidData, why)
}
