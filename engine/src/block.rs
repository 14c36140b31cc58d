//! The names of KV blocks: hashes that everyone who sees the same tokens computes alike.
//!
//! A prefix is found again by the chained hash of its last block, here as in a router that wants
//! to know which worker holds it. The hashes are XXH3 of 64 bits; whoever acts on an equal hash
//! compares the tokens as well, or bears being wrong once in a long while.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::TokenId;

/// What else than tokens decides on the content of a block, such as an adapter.
///
/// ```
/// use engine::Salt;
/// assert_eq!(Salt::default(), Salt::of(""));
/// assert_ne!(Salt::of("adapter-1"), Salt::of("adapter-2"));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Salt(pub u64);

impl Salt {
    /// Returns the salt of a variant of the model; the model itself has no name.
    pub fn of(name: &str) -> Self {
        if name.is_empty() { Self::default() } else { Self(xxh3_64(name.as_bytes())) }
    }
}

/// The hash of the tokens of one block, wherever it stands: XXH3 of the tokens as little-endian
/// 32-bit numbers, with the salt as seed.
///
/// ```
/// use engine::{BlockHash, Salt};
/// let salt = Salt::default();
/// assert_eq!(BlockHash::of(&[1, 2, 3, 4], salt), BlockHash::of(&[1, 2, 3, 4], salt));
/// assert_ne!(BlockHash::of(&[1, 2, 3, 4], salt), BlockHash::of(&[1, 2, 3, 5], salt));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockHash(pub u64);

/// Tokens that are hashed without memory from the heap.
const SHORT: usize = 64;

impl BlockHash {
    /// Returns the hash of a block's tokens.
    pub fn of(tokens: &[TokenId], salt: Salt) -> Self {
        let mut short = [0; SHORT * size_of::<TokenId>()];
        let mut long = Vec::new();
        let bytes = match tokens.len() {
            ..=SHORT => &mut short[..size_of_val(tokens)],
            _ => {
                long.resize(size_of_val(tokens), 0);
                &mut long[..]
            }
        };
        for (bytes, token) in bytes.chunks_exact_mut(size_of::<TokenId>()).zip(tokens) {
            bytes.copy_from_slice(&token.to_le_bytes());
        }
        Self(xxh3_64_with_seed(bytes, salt.0))
    }
}

/// The hash of a block and of all in front of it: the name of a prefix. That of a first block is
/// its [`BlockHash`]; later ones are XXH3 of the name before and the block's own hash, both
/// little-endian.
///
/// ```
/// use engine::{BlockHash, Salt, SequenceHash, prefix_hashes};
/// let tokens: Vec<u32> = (0..10).collect();
/// let salt = Salt::default();
/// let names: Vec<SequenceHash> = prefix_hashes(&tokens, 4, salt).collect();
/// let first = SequenceHash::new(None, BlockHash::of(&tokens[..4], salt));
/// let second = SequenceHash::new(Some(first), BlockHash::of(&tokens[4..8], salt));
/// assert_eq!(names, [first, second]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceHash(pub u64);

impl SequenceHash {
    /// Returns the name of the prefix that ends with `block` and has `parent` in front of it.
    pub fn new(parent: Option<Self>, block: BlockHash) -> Self {
        let Some(parent) = parent else {
            return Self(block.0);
        };
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&parent.0.to_le_bytes());
        bytes[8..].copy_from_slice(&block.0.to_le_bytes());
        Self(xxh3_64(&bytes))
    }
}

/// Returns the names of the prefixes of whole blocks of some tokens, the shortest first.
pub fn prefix_hashes(
    tokens: &[TokenId],
    block_tokens: usize,
    salt: Salt,
) -> impl Iterator<Item = SequenceHash> {
    let mut parent = None;
    tokens.chunks_exact(block_tokens.max(1)).map(move |block| {
        let hash = SequenceHash::new(parent, BlockHash::of(block, salt));
        parent = Some(hash);
        hash
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_what_others_compute_from_the_description() {
        let bytes: Vec<u8> = [7u32, 70_000].iter().flat_map(|t| t.to_le_bytes()).collect();
        let block = BlockHash::of(&[7, 70_000], Salt(3));
        assert_eq!(block.0, xxh3_64_with_seed(&bytes, 3));
        let long: Vec<u32> = (0..100).collect();
        let bytes: Vec<u8> = long.iter().flat_map(|t| t.to_le_bytes()).collect();
        assert_eq!(BlockHash::of(&long, Salt(0)).0, xxh3_64(&bytes));
        // Fixed for good: others keep what they computed.
        assert_eq!(BlockHash::of(&[1, 2, 3, 4], Salt::default()).0, GOLDEN.0);
        let names: Vec<_> = prefix_hashes(&[1, 2, 3, 4, 5, 6, 7, 8], 4, Salt::of("a")).collect();
        assert_eq!(names[1].0, GOLDEN.1);
    }

    /// As the reference library has them.
    const GOLDEN: (u64, u64) = (8_052_976_908_588_476_977, 10_453_248_570_609_189_300);

    #[test]
    fn a_name_depends_on_all_that_is_in_front_and_on_the_salt() {
        let tokens: Vec<u32> = (0..48).collect();
        let name = |tokens: &[u32], salt| prefix_hashes(tokens, 16, salt).last();
        let whole = name(&tokens, Salt(0));
        for place in 0..48 {
            let mut other = tokens.clone();
            other[place] += 1;
            assert_ne!(name(&other, Salt(0)), whole, "token {place}");
        }
        assert_ne!(name(&tokens, Salt(1)), whole);
        assert_eq!(name(&tokens[..15], Salt(0)), None);
    }
}
