//! One file of the simulated disk: what the process sees, and what a power cut leaves of it.

use std::collections::BTreeMap;
use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;

use super::super::region::HeapRegion;
use super::memory::Memory;

pub(super) const PAGE: usize = 4096;
const SECTOR: usize = 512;

pub(super) type Page = Arc<[u8; PAGE]>;

/// What a power cut makes of a page or an entry that was not synced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    Old,
    New,
    /// Each page by itself.
    Pages,
    /// Each sector by itself.
    Sectors,
}

#[derive(Clone)]
pub(super) struct Inode {
    pub(super) len: u64,
    pub(super) synced_len: u64,
    pub(super) cache: Cache,
    /// What the file is, or was last, mapped to.
    pub(super) memory: Option<Memory>,
    pub(super) disk: BTreeMap<u64, Page>,
    /// Pages changed since their last sync, with the versions that were written back since.
    pub(super) dirty: BTreeMap<u64, Vec<Page>>,
}

/// A file as the process sees it. Pages that are not there are zeros.
#[derive(Clone)]
pub(super) enum Cache {
    Pages(BTreeMap<u64, Page>),
    /// Mapped by the process that runs: it is the memory.
    Mapped,
}

/// SplitMix64.
#[derive(Clone)]
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }
}

pub(super) fn zeros() -> Page {
    Arc::new([0; PAGE])
}

impl Inode {
    pub(super) fn new() -> Self {
        Self {
            len: 0,
            synced_len: 0,
            cache: Cache::Pages(BTreeMap::new()),
            memory: None,
            disk: BTreeMap::new(),
            dirty: BTreeMap::new(),
        }
    }

    /// The page as the process sees it; `None` is zeros.
    pub(super) fn page(&mut self, page: u64) -> Option<Page> {
        match (&self.cache, &mut self.memory) {
            (Cache::Pages(pages), _) => pages.get(&page).cloned(),
            (Cache::Mapped, Some(memory)) => memory.page(page),
            (Cache::Mapped, None) => None,
        }
    }

    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= self.len);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        let pages = match &self.cache {
            Cache::Pages(pages) => Some(pages),
            Cache::Mapped => None,
        };
        if let (None, Some(memory)) = (pages, &self.memory) {
            memory.read(buffer, offset);
            return Ok(());
        }
        let mut at = offset;
        while at < end {
            let (page, within) = (at / PAGE as u64, (at % PAGE as u64) as usize);
            let len = (PAGE - within).min((end - at) as usize);
            let to = &mut buffer[(at - offset) as usize..][..len];
            match pages.and_then(|pages| pages.get(&page)) {
                Some(bytes) => to.copy_from_slice(&bytes[within..within + len]),
                None => to.fill(0),
            }
            at += len as u64;
        }
        Ok(())
    }

    pub(super) fn write(&mut self, bytes: &[u8], offset: u64) {
        let end = offset + bytes.len() as u64;
        let mut at = offset;
        while at < end {
            let (page, within) = (at / PAGE as u64, (at % PAGE as u64) as usize);
            let len = (PAGE - within).min((end - at) as usize);
            let from = &bytes[(at - offset) as usize..][..len];
            match (&mut self.cache, &mut self.memory) {
                (Cache::Pages(pages), _) => {
                    let page = pages.entry(page).or_insert_with(zeros);
                    Arc::make_mut(page)[within..within + len].copy_from_slice(from);
                }
                (Cache::Mapped, Some(memory)) => memory.write(from, at),
                (Cache::Mapped, None) => {}
            }
            self.dirty.entry(page).or_default();
            at += len as u64;
        }
        self.len = self.len.max(end);
    }

    /// Ends, or goes on with zeros, at `len`. For a file that is not mapped.
    pub(super) fn cut_to(&mut self, len: u64) {
        if let Cache::Pages(pages) = &mut self.cache {
            pages.retain(|page, _| *page * (PAGE as u64) < len);
            let within = (len % PAGE as u64) as usize;
            if let Some(page) = pages.get_mut(&(len / PAGE as u64)) {
                Arc::make_mut(page)[within..].fill(0);
            }
            self.disk = pages.clone();
        }
        self.len = len;
    }

    /// Moves what is mapped out of the memory that the process may go on storing to.
    pub(super) fn detach(&mut self) {
        if let (Cache::Mapped, Some(memory)) = (&self.cache, &mut self.memory) {
            let pages = memory.touched().into_iter();
            let pages = pages.filter_map(|page| Some((page, memory.page(page)?)));
            self.cache = Cache::Pages(pages.collect());
        }
    }

    /// Maps the file; where to.
    pub(super) fn map(&mut self) -> io::Result<Arc<HeapRegion>> {
        if let Cache::Pages(pages) = &self.cache {
            let len = usize::try_from(self.len).map_err(|_| io::ErrorKind::OutOfMemory)?;
            self.memory = Some(Memory::holding(self.memory.take(), len, pages)?);
            self.cache = Cache::Mapped;
        }
        let memory = self.memory.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        Ok(Arc::clone(memory.heap()))
    }

    /// Somebody, who may be dead, has stored to a region that stands, or stood, for the file.
    pub(super) fn stored(&mut self, heap: &Arc<HeapRegion>, pages: RangeInclusive<u64>) {
        if let Some(memory) = self.memory.as_mut().filter(|it| Arc::ptr_eq(it.heap(), heap)) {
            pages.for_each(|page| memory.stored(page));
        }
    }

    pub(super) fn sync(&mut self) {
        for page in std::mem::take(&mut self.dirty).into_keys() {
            if let Some(bytes) = self.page(page) {
                self.disk.insert(page, bytes);
            }
        }
        self.synced_len = self.len;
    }

    /// The power is gone. Says whether anything was lost or torn.
    pub(super) fn cut(&mut self, random: &mut Random, fate: Fate) -> (bool, bool) {
        let (mut is_lossy, mut is_torn) = (false, false);
        for (page, versions) in std::mem::take(&mut self.dirty) {
            let old = self.disk.get(&page).cloned().unwrap_or_else(zeros);
            let new = self.page(page).unwrap_or_else(zeros);
            let mut choices = vec![old.clone()];
            choices.extend(versions);
            choices.push(new.clone());
            let any = |random: &mut Random| random.below(choices.len() as u64) as usize;
            let kept = match fate {
                Fate::Old => choices[0].clone(),
                Fate::New => new.clone(),
                Fate::Pages => choices[any(random)].clone(),
                Fate::Sectors => {
                    let mut mixed = zeros();
                    let bytes = Arc::make_mut(&mut mixed);
                    for sector in (0..PAGE).step_by(SECTOR) {
                        let from = &choices[any(random)];
                        bytes[sector..sector + SECTOR]
                            .copy_from_slice(&from[sector..sector + SECTOR]);
                    }
                    mixed
                }
            };
            is_lossy |= kept != new;
            is_torn |= choices.iter().all(|choice| *choice != kept);
            self.disk.insert(page, kept);
        }
        if self.len != self.synced_len {
            self.len = match (fate, random.below(3)) {
                (Fate::New, _) => self.len,
                (Fate::Old, _) | (_, 0) => self.synced_len,
                (_, 1) => self.len,
                _ => {
                    let (low, high) =
                        (self.len.min(self.synced_len), self.len.max(self.synced_len));
                    let pages = (high - low) / PAGE as u64;
                    low + random.below(pages + 1) * PAGE as u64
                }
            };
            self.synced_len = self.len;
        }
        let pages = self.len.div_ceil(PAGE as u64);
        self.disk.retain(|page, _| *page < pages);
        self.cache = Cache::Pages(self.disk.clone());
        (is_lossy, is_torn)
    }
}
