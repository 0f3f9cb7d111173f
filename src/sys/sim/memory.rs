//! The memory that stands for a mapped file, and what is known of what it holds.
//!
//! To map a file again costs what has changed since: a process that died leaves its memory to the
//! next one, page by page as it was, and a disk that is gone leaves it to another. That rests on
//! what the simulation rests on anyway: every store is told ([`Memory::stored`]), those of a dead
//! process too. Now and then all of it is compared.
#![allow(unsafe_code, reason = "reads and fills the memory that stands for mapped files")]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::super::Region;
use super::super::region::{HeapRegion, copy_in, copy_out};
use super::image::{PAGE, Page, zeros};

/// How many regions a thread keeps for others to come, and how often all of one is looked at.
const POOLED: usize = 8;
const LOOKED_AT: u64 = 256;

thread_local! {
    static POOL: RefCell<Vec<(Arc<HeapRegion>, Holds)>> = const { RefCell::new(Vec::new()) };
    static FILLED: Cell<u64> = const { Cell::new(0) };
}

/// By page: what it holds, or `None` where it was stored to since somebody looked. The others are zeros.
type Holds = BTreeMap<u64, Option<Page>>;

#[derive(Clone)]
pub(super) struct Memory {
    heap: Arc<HeapRegion>,
    holds: Holds,
}

impl Drop for Memory {
    fn drop(&mut self) {
        if Arc::get_mut(&mut self.heap).is_none() {
            return;
        }
        let mut holds = std::mem::take(&mut self.holds);
        holds.values_mut().for_each(|page| *page = None);
        let pool = |pool: &RefCell<Vec<_>>| {
            let mut pool = pool.borrow_mut();
            if pool.len() < POOLED {
                pool.push((Arc::clone(&self.heap), holds));
            }
        };
        // A thread that ends keeps nothing.
        POOL.try_with(pool).unwrap_or_default();
    }
}

impl Memory {
    /// Memory of `len` bytes that holds these pages: the one that was mapped `before`, if nobody uses
    /// it any more.
    pub(super) fn holding(
        before: Option<Self>,
        len: usize,
        pages: &BTreeMap<u64, Page>,
    ) -> io::Result<Self> {
        let before = before.and_then(|mut memory| {
            let is_free = memory.heap.len() == len && Arc::get_mut(&mut memory.heap).is_some();
            is_free.then_some(memory)
        });
        let mut memory = match before {
            Some(memory) => memory,
            None => Self::new(len)?,
        };
        memory.fill(pages);
        let filled = FILLED.get();
        FILLED.set(filled + 1);
        if filled.is_multiple_of(LOOKED_AT) {
            memory.check();
        }
        Ok(memory)
    }

    fn new(len: usize) -> io::Result<Self> {
        let pooled = POOL.with_borrow_mut(|pool| {
            let at = pool.iter().position(|(heap, _)| heap.len() == len)?;
            Some(pool.swap_remove(at))
        });
        let (heap, holds) = match pooled {
            Some(pooled) => pooled,
            None => (Arc::new(HeapRegion::new(len)?), BTreeMap::new()),
        };
        Ok(Self { heap, holds })
    }

    fn fill(&mut self, pages: &BTreeMap<u64, Page>) {
        let heap = &self.heap;
        self.holds.retain(|page, _| {
            let is_kept = pages.contains_key(page);
            if !is_kept {
                put(heap, *page, &zeros());
            }
            is_kept
        });
        for (page, bytes) in pages {
            let held = self.holds.entry(*page).or_default();
            if held.as_ref().is_none_or(|held| !Arc::ptr_eq(held, bytes)) {
                put(heap, *page, bytes);
                // Of a page that ends behind the memory, the rest is nobody's.
                *held = (len_in(heap, *page) == PAGE).then(|| Arc::clone(bytes));
            }
        }
    }

    /// Whether each page holds what is known of it.
    fn check(&self) {
        let mut bytes = vec![0; self.heap.len()];
        // SAFETY: nobody else uses the memory before it is mapped.
        unsafe { copy_out(self.heap.as_ref(), 0, &mut bytes) };
        for page in 0..bytes.len().div_ceil(PAGE) as u64 {
            let bytes = &bytes[page as usize * PAGE..][..len_in(&self.heap, page)];
            let is_so = match self.holds.get(&page) {
                None => bytes.iter().all(|byte| *byte == 0),
                Some(Some(held)) => bytes == &held[..],
                Some(None) => true,
            };
            assert!(is_so, "page {page} was stored to, and nobody told");
        }
    }

    pub(super) fn heap(&self) -> &Arc<HeapRegion> {
        &self.heap
    }

    /// The pages that are not zeros.
    pub(super) fn touched(&self) -> Vec<u64> {
        self.holds.keys().copied().collect()
    }

    /// A copy of the page; `None` is zeros.
    pub(super) fn page(&mut self, page: u64) -> Option<Page> {
        let held = self.holds.get_mut(&page)?;
        let copied = held.take().unwrap_or_else(|| {
            let mut bytes = [0; PAGE];
            let len = len_in(&self.heap, page);
            // SAFETY: one thread at a time uses the disk and the memory it maps (see `sim`).
            unsafe { copy_out(self.heap.as_ref(), page as usize * PAGE, &mut bytes[..len]) };
            Arc::new(bytes)
        });
        *held = Some(Arc::clone(&copied));
        Some(copied)
    }

    /// Reads; behind the memory are zeros.
    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) {
        let start = (offset as usize).min(self.heap.len());
        let (there, behind) = buffer.split_at_mut(buffer.len().min(self.heap.len() - start));
        // SAFETY: as for pages.
        unsafe { copy_out(self.heap.as_ref(), start, there) };
        behind.fill(0);
    }

    /// Writes bytes within one page.
    pub(super) fn write(&mut self, bytes: &[u8], offset: u64) {
        // SAFETY: as for pages; the writer of a positioned write owns the range.
        unsafe { copy_in(self.heap.as_ref(), offset as usize, bytes) };
        self.holds.insert(offset / PAGE as u64, None);
    }

    /// The page was stored to.
    pub(super) fn stored(&mut self, page: u64) {
        self.holds.insert(page, None);
    }
}

/// How much of the page lies in the memory.
fn len_in(heap: &HeapRegion, page: u64) -> usize {
    PAGE.min(heap.len().saturating_sub(page as usize * PAGE))
}

fn put(heap: &HeapRegion, page: u64, bytes: &[u8; PAGE]) {
    // SAFETY: nobody else uses the memory before it is mapped.
    unsafe { copy_in(heap, page as usize * PAGE, &bytes[..len_in(heap, page)]) }
}
