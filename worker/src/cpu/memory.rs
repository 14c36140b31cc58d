//! Memory in large pages, for what is read over and over: weights and the KV cache.
//!
//! Small pages cost a third to a half of the bandwidth, and a system gives large ones only where
//! they are asked for. Many matrices are smaller than a page, so they share chunks: a piece has
//! its own part of a chunk, which lives as long as any piece of it.
//!
//! What a pass writes and reads once is in small pages, but begins at a line of the cache: the
//! kernels write 16 numbers at a time, which are then one line and not parts of two.
#![expect(unsafe_code, reason = "pieces of one mapping are lent out as disjoint slices")]

use std::io;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::MmapMut;

/// The size of a large page.
const PAGE_BYTES: usize = 2 << 20;

/// Bytes of a chunk that pieces share; a larger piece has a chunk of its own.
const CHUNK_BYTES: usize = 64 << 20;

/// Where pieces begin: a line of the cache, and the width of the widest load.
const ALIGNMENT: usize = 64;

/// Numbers of which every pattern of bits is one.
pub(crate) trait Plain: Copy + Send + Sync + sealed::Sealed {}

mod sealed {
    pub(crate) trait Sealed {}
}

impl sealed::Sealed for u8 {}
impl Plain for u8 {}
impl sealed::Sealed for u16 {}
impl Plain for u16 {}

/// A piece of memory in large pages, where there are such; zeros at first, and taken from the
/// system when it is first written.
#[derive(Debug)]
pub(crate) struct Pages<T: Plain> {
    chunk: Arc<Chunk>,
    /// Bytes of the chunk that are this piece's alone.
    range: Range<usize>,
    numbers: PhantomData<T>,
}

/// A mapping that pieces share.
#[derive(Debug)]
struct Chunk {
    start: *mut u8,
    /// Keeps the memory mapped.
    _map: MmapMut,
}

// SAFETY: a chunk has no access of its own; its pieces have, each to its own part.
unsafe impl Send for Chunk {}
// SAFETY: as above.
unsafe impl Sync for Chunk {}

/// The chunk that is being given out, and the bytes of it that are left.
static CURRENT: Mutex<Option<(Arc<Chunk>, Range<usize>)>> = Mutex::new(None);

impl<T: Plain> Pages<T> {
    /// Takes memory for `length` numbers.
    ///
    /// Errors: the system has none.
    pub(crate) fn take(length: usize) -> io::Result<Self> {
        let bytes = length
            .checked_mul(size_of::<T>())
            .and_then(|bytes| bytes.checked_next_multiple_of(ALIGNMENT))
            .filter(|bytes| isize::try_from(*bytes).is_ok())
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let end = length * size_of::<T>();
        let piece = |chunk: Arc<Chunk>, start: usize| Self {
            chunk,
            range: start..start + end,
            numbers: PhantomData,
        };
        if bytes > CHUNK_BYTES / 4 {
            return Ok(piece(Arc::new(Chunk::map(bytes)?), 0));
        }
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        let (chunk, left) = match current.take() {
            Some((chunk, left)) if left.len() >= bytes => (chunk, left),
            _ => (Arc::new(Chunk::map(CHUNK_BYTES)?), 0..CHUNK_BYTES),
        };
        *current = Some((chunk.clone(), left.start + bytes..left.end));
        Ok(piece(chunk, left.start))
    }
}

impl Chunk {
    /// Maps memory that begins at the border of a large page.
    fn map(bytes: usize) -> io::Result<Self> {
        let whole = bytes.checked_add(PAGE_BYTES).ok_or(io::ErrorKind::OutOfMemory)?;
        let mut map = MmapMut::map_anon(whole)?;
        // Where there are no large pages, so be it.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let skipped = map.as_ptr().align_offset(PAGE_BYTES).min(PAGE_BYTES);
        Ok(Self { start: map[skipped..].as_mut_ptr(), _map: map })
    }
}

impl<T: Plain> Deref for Pages<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the range lies in the chunk, is aligned for any `Plain`, holds valid numbers
        // whatever its bits, and belongs to this piece alone.
        unsafe {
            let start = self.chunk.start.add(self.range.start).cast::<T>();
            std::slice::from_raw_parts(start, self.range.len() / size_of::<T>())
        }
    }
}

impl<T: Plain> DerefMut for Pages<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as for reading, and this piece is borrowed for writing.
        unsafe {
            let start = self.chunk.start.add(self.range.start).cast::<T>();
            std::slice::from_raw_parts_mut(start, self.range.len() / size_of::<T>())
        }
    }
}

/// Numbers that begin at a line of the cache; the memory is kept between uses.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    numbers: Vec<f32>,
    start: usize,
    length: usize,
}

impl Lines {
    /// Makes room for so many numbers, of any content, and returns them.
    pub(crate) fn resize(&mut self, length: usize) -> &mut [f32] {
        const NUMBERS: usize = ALIGNMENT / size_of::<f32>();
        if self.start + length > self.numbers.len() {
            // Not made longer: that would copy what nobody needs.
            self.numbers = vec![0.0; length + NUMBERS];
            self.start = self.numbers.as_ptr().align_offset(ALIGNMENT).min(NUMBERS);
        }
        self.length = length;
        self
    }

    /// Keeps the first numbers alone.
    pub(crate) fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }
}

impl Deref for Lines {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.numbers[self.start..][..self.length]
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.numbers[self.start..][..self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_begin_at_a_line_and_stay_when_there_are_fewer() {
        let mut lines = Lines::default();
        assert!(lines.is_empty());
        for length in [1, 33, 7, 4096, 5000] {
            let numbers = lines.resize(length);
            assert_eq!(numbers.len(), length);
            assert!(numbers.as_ptr().addr().is_multiple_of(ALIGNMENT));
            numbers.fill(length as f32);
            lines.truncate(5);
            assert_eq!(lines.len(), length.min(5));
            assert!(lines.iter().all(|&number| number == length as f32));
        }
    }

    #[test]
    fn pieces_are_zeros_of_their_own_also_when_others_are_gone() {
        let mut pieces: Vec<Pages<u16>> = Vec::new();
        for (index, length) in [1, 33, 0, 4096, 20 << 20, 7, 31 << 19].into_iter().enumerate() {
            let mut piece = Pages::<u16>::take(length).unwrap();
            assert_eq!(piece.len(), length);
            assert!(piece.as_ptr().addr().is_multiple_of(ALIGNMENT));
            assert!(piece.iter().step_by(511).all(|&number| number == 0));
            piece.fill(index as u16 + 1);
            pieces.push(piece);
        }
        pieces.remove(1);
        for piece in &pieces {
            assert!(piece.iter().all(|&number| number == piece[0] && number != 0));
        }
    }

    #[test]
    fn memory_begins_at_a_large_page_and_asks_for_such() {
        // One piece with a chunk of its own, and one that shares a chunk.
        let (large, small) = (Pages::<u16>::take(20 << 20).unwrap(), Pages::<u8>::take(1).unwrap());
        for (piece, chunk) in [("large", &large.chunk), ("small", &small.chunk)] {
            let start = chunk.start.addr();
            assert!(start.is_multiple_of(PAGE_BYTES), "{piece}: {start:x}");
            if cfg!(target_os = "linux") && has_large_pages() {
                let flags = flags_at(start);
                let asks = flags.split_whitespace().any(|flag| flag == "hg");
                assert!(asks, "{piece}: the mapping has `{flags}`");
            }
        }
        assert!(large.as_ptr().addr().is_multiple_of(PAGE_BYTES));
    }

    /// Returns whether the kernel knows large pages at all, and tells where it does not.
    fn has_large_pages() -> bool {
        let is_known = std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists();
        if !is_known {
            eprintln!("SKIPPED: this kernel has no transparent huge pages");
        }
        is_known
    }

    /// Returns the flags of the mapping that holds an address, as the kernel tells them.
    fn flags_at(address: usize) -> String {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = smaps.lines();
        let holds = |line: &str| {
            let range = line.split_whitespace().next().and_then(|range| range.split_once('-'));
            let ends = range.map(|(start, end)| {
                [start, end].map(|end| usize::from_str_radix(end, 16).unwrap_or_default())
            });
            ends.is_some_and(|[start, end]| (start..end).contains(&address))
        };
        lines.find(|line| holds(line)).expect("the address is mapped");
        let flags = lines.find_map(|line| line.strip_prefix("VmFlags:"));
        flags.expect("a mapping has flags").to_owned()
    }

    #[test]
    fn a_size_that_nobody_has_is_an_error() {
        assert!(Pages::<u16>::take(usize::MAX).is_err());
        assert!(Pages::<u8>::take(isize::MAX as usize).is_err());
    }
}
