//! The codec of the two inference methods: requests are envelopes, answers may come encoded.
//!
//! A hand-written encoder knows the few fields of an answer and beats the general one. Through
//! this codec payload segments are copied once, into the frame buffer; a server that writes its
//! frames itself hands them on as they are.

use std::marker::PhantomData;

use bytes::{Buf, BufMut};
use prost::Message;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use crate::{Envelope, Malformed, Payload};

/// A response as it goes to the wire.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply<M> {
    /// A message, still to be encoded.
    Message(M),
    /// The encoding of such a message.
    Encoded(Payload),
}

impl<M: Message> Reply<M> {
    /// Returns the encoded message.
    pub fn into_payload(self) -> Payload {
        match self {
            Self::Encoded(payload) => payload,
            Self::Message(message) => message.encode_to_vec().into(),
        }
    }
}

/// Decodes envelopes and encodes answers `Reply<M>`.
#[derive(Clone, Debug)]
pub(crate) struct InferCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for InferCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<M> Codec for InferCodec<Reply<M>, Envelope>
where
    M: Message + Send + 'static,
{
    type Encode = Reply<M>;
    type Decode = Envelope;
    type Encoder = ReplyEncoder<M>;
    type Decoder = EnvelopeDecoder;

    fn encoder(&mut self) -> Self::Encoder {
        ReplyEncoder(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        EnvelopeDecoder
    }
}

pub(crate) struct EnvelopeDecoder;

impl Decoder for EnvelopeDecoder {
    type Item = Envelope;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Envelope>, Status> {
        let message = buffer.copy_to_bytes(buffer.remaining());
        let envelope = Envelope::decode(Payload::from(message));
        envelope.map(Some).map_err(|error| match error {
            Malformed::TooMany => Status::invalid_argument(error.to_string()),
            Malformed::Undecodable(_) => Status::internal(error.to_string()),
        })
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
                encoded.segments().for_each(|segment| buffer.put_slice(segment));
                Ok(())
            }
        }
    }
}
