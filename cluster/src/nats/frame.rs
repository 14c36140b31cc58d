//! What the two ends of a stream of bytes say to each other in messages of NATS.
//!
//! The first byte is the kind, the next eight are the message's number in its direction, from 1 on
//! and big-endian, and the rest is content. A text greeting begins the stream.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The bytes in front of the content.
pub(super) const HEADER_BYTES: usize = 9;

/// The first word of a greeting: the protocol and its version.
const PROTOCOL: &str = "stator-stream/1";

/// The longest inbox, in bytes.
const MAX_INBOX_BYTES: usize = 256;

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// The next bytes.
    Data(Bytes),
    /// All that the receiver of data has given room for so far, in bytes of cost.
    Credit(u64),
    /// No more bytes come.
    Finish,
    /// The sender is still there.
    Beat,
}

impl Frame {
    /// Returns the message of this number.
    pub(super) fn encode(number: u64, kind: u8, content: &[&[u8]]) -> Bytes {
        let bytes: usize = content.iter().map(|part| part.len()).sum();
        let mut message = BytesMut::with_capacity(HEADER_BYTES + bytes);
        message.put_u8(kind);
        message.put_u64(number);
        content.iter().for_each(|part| message.put_slice(part));
        message.freeze()
    }

    /// Reads a message and its number. Errors: it is none of these.
    pub(super) fn decode(mut message: Bytes) -> io::Result<(u64, Self)> {
        if message.len() < HEADER_BYTES {
            let text = format!("a message of {} bytes, expected {HEADER_BYTES}", message.len());
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let (kind, number) = (message.get_u8(), message.get_u64());
        let frame = match kind {
            DATA => Self::Data(message),
            CREDIT if message.len() == 8 => Self::Credit(message.get_u64()),
            FINISH => Self::Finish,
            BEAT => Self::Beat,
            _ => {
                let text = format!("a message of kind {kind} with {} bytes", message.len());
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
        };
        Ok((number, frame))
    }
}

pub(super) const DATA: u8 = 0;
pub(super) const CREDIT: u8 = 1;
pub(super) const FINISH: u8 = 2;
pub(super) const BEAT: u8 = 3;

/// How a stream begins: the subject where its sender listens, and the room it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Greeting {
    pub(super) inbox: String,
    pub(super) window: u64,
}

impl Greeting {
    /// Returns the message.
    pub(super) fn encode(&self) -> Bytes {
        format!("{PROTOCOL} {} {}", self.inbox, self.window).into()
    }

    /// Reads a message. Errors: it is none, or a refusal, in its words.
    pub(super) fn decode(message: &[u8]) -> io::Result<Self> {
        let text = std::str::from_utf8(message).unwrap_or_default();
        let shown: String = text.chars().take(200).collect();
        if let Some(why) = shown.strip_prefix(REFUSED) {
            return Err(io::Error::new(io::ErrorKind::ConnectionRefused, why.to_owned()));
        }
        let mut words = text.split(' ');
        let greeting = match (words.next(), words.next(), words.next(), words.next()) {
            (Some(PROTOCOL), Some(inbox), Some(window), None) => window
                .parse()
                .ok()
                .filter(|_| is_inbox(inbox))
                .map(|window| Self { inbox: inbox.to_owned(), window }),
            _ => None,
        };
        greeting.ok_or_else(|| {
            let text = format!("expected `{PROTOCOL} INBOX WINDOW`, got {shown:?}");
            io::Error::new(io::ErrorKind::InvalidData, text)
        })
    }
}

/// What a refusal begins with.
const REFUSED: &str = "refused: ";

/// Returns the answer to a greeting that cannot be followed.
pub(super) fn refusal(why: &str) -> Bytes {
    format!("{REFUSED}{why}").into()
}

/// Returns whether somebody may be told to send there: one subject, without wildcards.
fn is_inbox(text: &str) -> bool {
    let is_token = |token: &str| {
        !token.is_empty()
            && token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
    };
    text.len() <= MAX_INBOX_BYTES && text.split('.').all(is_token) && !text.starts_with('$')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_come_out_as_they_went_in() {
        let cases = [
            (Frame::encode(1, DATA, &[b"ab", b"c"]), Frame::Data(Bytes::from_static(b"abc"))),
            (Frame::encode(2, CREDIT, &[&7_u64.to_be_bytes()]), Frame::Credit(7)),
            (Frame::encode(3, FINISH, &[]), Frame::Finish),
            (Frame::encode(4, BEAT, &[]), Frame::Beat),
        ];
        for (number, (message, frame)) in (1..).zip(cases) {
            assert_eq!(Frame::decode(message).unwrap(), (number, frame));
        }
        let greeting = Greeting { inbox: "_INBOX.a.b".into(), window: 9 };
        assert_eq!(Greeting::decode(&greeting.encode()).unwrap(), greeting);
    }

    #[test]
    fn what_is_no_greeting_is_refused() {
        let refused = Greeting::decode(&refusal("it is full")).unwrap_err();
        assert_eq!(
            (refused.kind(), refused.to_string().as_str()),
            (io::ErrorKind::ConnectionRefused, "it is full")
        );
        for wrong in [
            "",
            "stator-stream/2 a 1",
            "stator-stream/1 a",
            "stator-stream/1 a x",
            "stator-stream/1 a.> 1",
            "stator-stream/1 a..b 1",
            "stator-stream/1 * 1",
            "stator-stream/1 $SYS.x 1",
            "stator-stream/1 a 1 b",
        ] {
            assert!(Greeting::decode(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(message: Vec<u8>) {
            let _ = Frame::decode(message.clone().into());
            let _ = Greeting::decode(&message);
        }
    }
}
