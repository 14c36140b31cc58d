//! Bytes in segments: a large tensor as it lies in HTTP/2 frames, never copied together.

use bytes::Bytes;

/// A run of bytes that may lie in several shared segments.
///
/// ```
/// use proto::Payload;
/// let payload: Payload = [&b"ab"[..], b"", b"c"].map(bytes::Bytes::from_static).into_iter().collect();
/// assert_eq!(payload.len(), 3);
/// assert_eq!(payload.to_bytes(), "abc");
/// ```
#[derive(Clone, Debug, Default)]
pub struct Payload {
    first: Bytes,
    rest: Vec<Bytes>,
}

impl Payload {
    /// Returns the length in bytes.
    pub fn len(&self) -> usize {
        self.first.len() + self.rest.iter().map(Bytes::len).sum::<usize>()
    }

    /// Returns whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.first.is_empty()
    }

    /// Returns the segments in order; none of them is empty, but the only one may be.
    pub fn segments(&self) -> impl Iterator<Item = &Bytes> {
        std::iter::once(&self.first).chain(&self.rest)
    }

    /// Returns the bytes in one piece: shared if they are, copied together if not.
    pub fn to_bytes(&self) -> Bytes {
        match self.rest.is_empty() {
            true => self.first.clone(),
            false => {
                let mut whole = Vec::with_capacity(self.len());
                self.segments().for_each(|segment| whole.extend_from_slice(segment));
                whole.into()
            }
        }
    }

    /// Appends a segment.
    pub fn push(&mut self, segment: Bytes) {
        match (segment.is_empty(), self.first.is_empty()) {
            (true, _) => {}
            (false, true) => self.first = segment,
            (false, false) => self.rest.push(segment),
        }
    }
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Self {
        Self { first: bytes, rest: Vec::new() }
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl FromIterator<Bytes> for Payload {
    fn from_iter<I: IntoIterator<Item = Bytes>>(segments: I) -> Self {
        let mut payload = Self::default();
        segments.into_iter().for_each(|segment| payload.push(segment));
        payload
    }
}

/// Equal bytes are equal, however they are cut.
impl PartialEq for Payload {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.to_bytes() == other.to_bytes()
    }
}
