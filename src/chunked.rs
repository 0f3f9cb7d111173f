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

/// Where an element lies, in every array whose first chunk is as long: its chunk, and its place there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Spot {
    chunk: u32,
    at: u32,
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

    /// Where element `index` lies.
    #[inline]
    pub(crate) fn spot(&self, index: u32) -> Spot {
        let Some(log) = index.checked_ilog2().filter(|log| *log >= self.first_bits) else {
            return Spot { chunk: 0, at: index };
        };
        let bits = Self::chunk_bits(log);
        // Counted from the chunk that this doubling, which begins at a power of two, would have at zero.
        let chunk = 1 + 4 * (log - self.first_bits) + (index >> bits) - (1 << (log - bits));
        Spot { chunk, at: index & ((1 << bits) - 1) }
    }

    /// How many elements, as a power of two, each chunk of the doubling has that begins with element `2^log`.
    #[inline]
    fn chunk_bits(log: u32) -> u32 {
        log.saturating_sub(2)
    }

    /// The element, once its chunk was made.
    #[inline]
    pub(crate) fn get(&self, index: u32) -> Option<&T> {
        self.at(self.spot(index))
    }

    /// The same, by its spot.
    #[inline]
    pub(crate) fn at(&self, Spot { chunk, at }: Spot) -> Option<&T> {
        self.chunks.get(chunk as usize)?.get()?.get(at as usize)
    }

    /// Makes the chunk that element `index` lies in, and gives the element.
    pub(crate) fn ensure(&self, index: u32) -> &T {
        let Spot { chunk, at } = self.spot(index);
        let chunk = self.chunks[chunk as usize].get_or_init(|| {
            let bits = match chunk.checked_sub(1) {
                None => self.first_bits,
                Some(later) => Self::chunk_bits(self.first_bits + later / 4),
            };
            (0..1usize << bits).map(|_| T::default()).collect()
        });
        &chunk[at as usize]
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
    fn spots_cover_every_number_once() {
        let chunks = Chunked::<u8>::new(3);
        let mut spots: Vec<_> = (0..200).map(|index| chunks.spot(index)).collect();
        let spot = |chunk, at| Spot { chunk, at };
        assert_eq!((spots[0], spots[7], spots[8]), (spot(0, 0), spot(0, 7), spot(1, 0)));
        assert_eq!((spots[9], spots[16], spots[31]), (spot(1, 1), spot(5, 0), spot(8, 3)));
        assert_eq!(spots[32], spot(9, 0));
        spots.dedup();
        assert_eq!(spots.len(), 200);
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
