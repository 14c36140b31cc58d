//! KV blocks between workers: one asks, the other copies.
//!
//! The asker's HTTP/2 window is what paces the copies: each piece is read from the engine when the one
//! before has gone out, so a pull holds two pieces at most.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use engine::{Error, KvLayout, KvStore, Result, TokenId};
use futures_util::{Stream, stream};
use proto::{Payload, worker as wire};

use super::super::answer::Reader;
use super::super::call::{Call, Tried};
use super::super::client::RemoteWorker;
use super::super::codec::{Lane, MAX_CONTROL_BYTES, layout_of, layout_to, message};
use super::super::outbox::Outbox;
use super::PULL;

/// The largest block that fits into a message, in bytes.
pub const MAX_BLOCK_BYTES: u64 = MAX_CONTROL_BYTES as u64 - HEAD_BYTES;

/// What a message with a block has beside that: the field's tag, and a length of up to 4 bytes.
const HEAD_BYTES: u64 = 5;

/// The blocks that are asked for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The tokens that they hold, from the first one of the sequence on.
    pub tokens: Arc<[TokenId]>,
    /// How many of the first blocks are not wanted.
    pub first: usize,
    /// What the asker's own blocks are made of.
    pub layout: KvLayout,
}

impl RemoteWorker {
    /// Asks for copies of a model's KV blocks. They come in order until the next one is not there,
    /// and no faster than they are taken.
    ///
    /// Errors, of the call or of the stream: NOT_FOUND, UNIMPLEMENTED for a model without blocks,
    /// INVALID_REQUEST with the code `kv_layout` for blocks of another kind, OVERLOADED,
    /// UNAVAILABLE, DEADLINE_EXCEEDED after `until`.
    pub async fn pull(
        &self,
        model: &str,
        wanted: Wanted,
        until: Instant,
    ) -> Result<impl Stream<Item = Result<Bytes>> + Send + Unpin + use<>> {
        let mut outbox = self.outbox(Lane::Tokens);
        outbox.message(&wire::PullBlocksRequest {
            model: model.to_owned(),
            tokens: wanted.tokens.to_vec(),
            first: u32::try_from(wanted.first).unwrap_or(u32::MAX),
            layout: Some(layout_to(wanted.layout)),
        })?;
        self.open((PULL, Lane::Files), outbox, Some(until), Contents).await
    }
}

/// Reads the contents of blocks.
struct Contents;

impl Reader for Contents {
    type Item = Bytes;

    fn read(&mut self, payload: Payload) -> Result<Option<Bytes>> {
        let wire::KvBlock { content } = message(&payload)?;
        Ok(Some(content))
    }
}

/// Answers `PullBlocks`. A worker that drains does so too: what it computed is still wanted.
pub(in crate::request) async fn pull(call: &mut Call) -> Tried<()> {
    // Its tokens are needed to the end of the pull, so they count until then.
    let (request, _held) = call.asked_of_tokens::<wire::PullBlocksRequest>().await?;
    let _open = call.shared.enter_late();
    let served = call.shared.served(&request.model)?;
    let store = served.blocks.clone().ok_or_else(|| {
        let text = format!("model `{}` has no KV blocks for others", request.model);
        Error::new(engine::ErrorKind::Unimplemented, text)
    })?;
    let (asked, own) = (layout_of(request.layout.unwrap_or_default()), store.layout());
    if asked != own {
        let text = format!("KV blocks of `{}`: expected {own:?}, got {asked:?}", request.model);
        return Err(Error::invalid(text).with_code("kv_layout").into());
    }
    let (tokens, first) = (Arc::<[TokenId]>::from(request.tokens), request.first as usize);
    // What cannot be read at all is a refusal.
    let blocks = call.attend(store.read(&tokens, first)).await??;
    let next = first + blocks.len();
    let pulling = Pulling { store, tokens, next, blocks: blocks.into_iter() };
    let contents = Box::pin(stream::unfold(pulling, |mut pulling| async move {
        pulling.next().await.transpose().map(|block| (block, pulling))
    }));
    let encode = |content: Bytes, outbox: &mut Outbox| {
        let content = Payload::from(content);
        outbox.message_with(&wire::KvBlock::default(), std::iter::once(&content))
    };
    call.pump(contents, Lane::Files, encode).await?.finish(|_| Ok(()));
    Ok(())
}

/// A pull under way.
struct Pulling {
    store: Arc<dyn KvStore>,
    tokens: Arc<[TokenId]>,
    /// The first block of the next piece.
    next: usize,
    /// What is left of this one.
    blocks: std::vec::IntoIter<Bytes>,
}

impl Pulling {
    /// Returns the next block; none: it is not there.
    async fn next(&mut self) -> Result<Option<Bytes>> {
        if self.blocks.len() == 0 {
            let blocks = self.store.read(&self.tokens, self.next).await?;
            self.next += blocks.len();
            self.blocks = blocks.into_iter();
        }
        Ok(self.blocks.next())
    }
}
