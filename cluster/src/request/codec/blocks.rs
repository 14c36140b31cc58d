//! Where KV blocks are and what they are made of, as messages.

use engine::{KvLayout, KvSource, Salt};
use proto::worker as wire;

pub(super) fn source_to(source: &KvSource) -> wire::KvSource {
    wire::KvSource {
        address: source.address.clone(),
        more_addresses: source.more_addresses.clone(),
        layout: Some(layout_to(source.layout)),
    }
}

pub(super) fn source_of(wire: wire::KvSource) -> KvSource {
    let layout = layout_of(wire.layout.unwrap_or_default());
    KvSource { address: wire.address, more_addresses: wire.more_addresses, layout }
}

pub(in crate::request) fn layout_to(layout: KvLayout) -> wire::KvLayout {
    wire::KvLayout {
        fingerprint: layout.fingerprint,
        salt: layout.salt.0,
        block_tokens: layout.block_tokens,
        block_bytes: layout.block_bytes,
    }
}

pub(in crate::request) fn layout_of(wire: wire::KvLayout) -> KvLayout {
    KvLayout {
        fingerprint: wire.fingerprint,
        salt: Salt(wire.salt),
        block_tokens: wire.block_tokens,
        block_bytes: wire.block_bytes,
    }
}
