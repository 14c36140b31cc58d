//! The codec of the two inference methods: answers may come encoded already.
//!
//! A hand-written encoder knows the few fields of an answer and beats the general one; the
//! payload segments it hands over are copied once, into the frame buffer.

use std::marker::PhantomData;

use bytes::{BufMut, Bytes};
use prost::Message;
use tonic::Status;
use tonic::codec::{Codec, EncodeBuf, Encoder};
use tonic_prost::ProstDecoder;

/// A response as it goes to the wire.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply<M> {
    /// A message, still to be encoded.
    Message(M),
    /// The encoding of such a message.
    Encoded(Encoded),
}

/// An encoded message: its bytes are `head` and then each segment of `tail`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Encoded {
    /// The whole of a small message, or what comes before the first large payload.
    pub head: Bytes,
    /// Large payloads, shared, and what lies between them.
    pub tail: Vec<Bytes>,
}

impl Encoded {
    /// Returns the length of the message in bytes.
    pub fn len(&self) -> usize {
        self.head.len() + self.tail.iter().map(Bytes::len).sum::<usize>()
    }

    /// Returns whether the message has no bytes, as one with only default fields.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the message in one piece.
    pub fn to_bytes(&self) -> Bytes {
        if self.tail.is_empty() {
            return self.head.clone();
        }
        let mut whole = Vec::with_capacity(self.len());
        whole.extend_from_slice(&self.head);
        self.tail.iter().for_each(|segment| whole.extend_from_slice(segment));
        whole.into()
    }
}

/// Decodes requests `U` and encodes answers `Reply<M>`.
#[derive(Clone, Debug)]
pub(crate) struct ReplyCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for ReplyCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<M, U> Codec for ReplyCodec<Reply<M>, U>
where
    M: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = Reply<M>;
    type Decode = U;
    type Encoder = ReplyEncoder<M>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ReplyEncoder(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::default()
    }
}

pub(crate) struct ReplyEncoder<M>(PhantomData<M>);

impl<M: Message> Encoder for ReplyEncoder<M> {
    type Item = Reply<M>;
    type Error = Status;

    fn encode(&mut self, reply: Reply<M>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        match reply {
            Reply::Message(message) => message.encode(buffer).map_err(|error| {
                Status::internal(format!("the answer cannot be encoded: {error}"))
            }),
            Reply::Encoded(encoded) => {
                buffer.reserve(encoded.len());
                buffer.put_slice(&encoded.head);
                encoded.tail.iter().for_each(|segment| buffer.put_slice(segment));
                Ok(())
            }
        }
    }
}
