//! An array that grows without moving what it holds.
//!
//! Elements lie in chunks: the first has `2^first_bits` elements, and each later doubling of the array
//! is four chunks of equal length, so that it is never much longer than it has to be. A reference to an element stays good while the array lives, so readers need no
//! lock, and growing never stalls them.

use std::sync::OnceLock;

/// See the file's header.
#[derive(Debug)]
pub(crate) struct Chunked<T> {
    first_bits: u32,
    chunks: [OnceLock<Box<[T]>>; CHUNKS],
}

/// The first one, and four for each doubling up to 2^32 elements.
const CHUNKS: usize = 1 + 4 * 32;

impl<T: Default> Chunked<T> {
    /// An empty array. Its chunks are made by [`Chunked::ensure`].
    pub(crate) fn new(first_bits: u32) -> Self {
        Self { first_bits, chunks: [const { OnceLock::new() }; CHUNKS] }
    }

    pub(crate) fn first_bits(&self) -> u32 {
        self.first_bits
    }

    /// Chunk, and place within it, of element `index`.
    #[inline]
    fn place(&self, index: u32) -> (usize, usize) {
        let doubling = (index >> self.first_bits).checked_ilog2().map_or(0, |log| log + 1);
        if doubling == 0 {
            return (0, index as usize);
        }
        let start = 1 << (self.first_bits + doubling - 1);
        let bits = self.chunk_bits(doubling);
        let within = index - start;
        let chunk = 1 + 4 * (doubling - 1) + (within >> bits);
        (chunk as usize, (within & ((1 << bits) - 1)) as usize)
    }

    /// How many elements each chunk of this doubling has, as a power of two.
    #[inline]
    fn chunk_bits(&self, doubling: u32) -> u32 {
        (self.first_bits + doubling - 1).saturating_sub(2)
    }

    /// The element, once its chunk was made.
    #[inline]
    pub(crate) fn get(&self, index: u32) -> Option<&T> {
        let (chunk, at) = self.place(index);
        self.chunks[chunk].get()?.get(at)
    }

    /// Makes the chunk that element `index` lies in, and gives the element.
    pub(crate) fn ensure(&self, index: u32) -> &T {
        let (chunk, at) = self.place(index);
        let chunk = self.chunks[chunk].get_or_init(|| {
            // A few chunks.
            let doubling = (chunk as u32).div_ceil(4);
            let bits = if doubling == 0 { self.first_bits } else { self.chunk_bits(doubling) };
            (0..1usize << bits).map(|_| T::default()).collect()
        });
        &chunk[at]
    }

    /// Elements that were made.
    pub(crate) fn len(&self) -> usize {
        self.chunks.iter().filter_map(OnceLock::get).map(|chunk| chunk.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::SeqCst;

    use super::*;

    #[test]
    fn places_cover_every_number_once() {
        let chunks = Chunked::<u8>::new(3);
        let mut places: Vec<_> = (0..200).map(|index| chunks.place(index)).collect();
        assert_eq!((places[0], places[7], places[8], places[9]), ((0, 0), (0, 7), (1, 0), (1, 1)));
        assert_eq!((places[16], places[31], places[32]), ((5, 0), (8, 3), (9, 0)));
        places.dedup();
        assert_eq!(places.len(), 200);
        for index in 0..200 {
            let chunks = Chunked::<u8>::new(index % 5);
            let element: *const u8 = chunks.ensure(index);
            assert!(std::ptr::eq(chunks.get(index).unwrap(), element));
        }
    }

    #[test]
    fn elements_stay_where_they_are() {
        let chunks = Chunked::<std::sync::atomic::AtomicU32>::new(1);
        assert!(chunks.get(0).is_none());
        let first = chunks.ensure(0);
        first.store(7, SeqCst);
        chunks.ensure(1000).store(8, SeqCst);
        assert!(std::ptr::eq(first, chunks.ensure(0)));
        let later = chunks.get(1000).map(|it| it.load(SeqCst));
        assert_eq!((first.load(SeqCst), later), (7, Some(8)));
        assert!(chunks.get(3).is_none());
        assert_eq!(chunks.len(), 2 + 512 / 4);
    }
}
