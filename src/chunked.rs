//! An array that grows without moving what it holds.
//!
//! Elements lie in chunks that double: chunk 0 has `2^first_bits` elements, each later one as many
//! as all before it. A reference to an element stays good while the array lives, so readers need no
//! lock, and growing never stalls them.

use std::sync::OnceLock;

/// See the file's header.
#[derive(Debug)]
pub(crate) struct Chunked<T> {
    first_bits: u32,
    chunks: [OnceLock<Box<[T]>>; 32],
}

impl<T: Default> Chunked<T> {
    /// An empty array. Its chunks are made by [`Chunked::ensure`].
    pub(crate) fn new(first_bits: u32) -> Self {
        Self { first_bits, chunks: [const { OnceLock::new() }; 32] }
    }

    pub(crate) fn first_bits(&self) -> u32 {
        self.first_bits
    }

    /// Chunk, and place within it, of element `index`.
    #[inline]
    fn place(&self, index: u32) -> (usize, usize) {
        let chunk = (index >> self.first_bits).checked_ilog2().map_or(0, |log| log + 1);
        let start = if chunk == 0 { 0 } else { 1 << (self.first_bits + chunk - 1) };
        (chunk as usize, (index - start) as usize)
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
            // 32 chunks.
            let bits = self.first_bits + (chunk as u32).saturating_sub(1);
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
        assert_eq!((places[0], places[7], places[8], places[16]), ((0, 0), (0, 7), (1, 0), (2, 0)));
        assert_eq!(places[31], (2, 15));
        places.dedup();
        assert_eq!(places.len(), 200);
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
        assert_eq!(chunks.len(), 2 + 512);
    }
}
