//! The gaps of a salvaged store: which keys are in doubt.
//!
//! A key that is free as far as the store knows is in doubt while a gap lasts: the record that says
//! otherwise may be one that was lost. What was written since the salvage is known in full, so a
//! key whose newest record has a later epoch than the gap is in no doubt; such records keep their
//! entries, releases and forgets too, until the gap is over.

use super::Engine;
use crate::answer::{Acceptance, Gap};
use crate::error::{GapError, StoreError};
use crate::format::names::{Entry, ErasureEntry, NamespaceEntry, Raise};
use crate::policy::Quota;
use crate::sys::sync::RwLock;
use crate::sys::sync::atomic::{AtomicU64, Ordering};
use crate::types::{AUDIT_BYTES_MAX, Epoch, NamespaceId, Timestamp};

/// See the file's header.
#[derive(Debug)]
pub(crate) struct Gaps {
    list: RwLock<Vec<Gap>>,
    /// When the last one is over, in milliseconds; 0 when there is none.
    end_ms: AtomicU64,
}

impl Gaps {
    pub(crate) fn new(list: Vec<Gap>) -> Self {
        let end_ms = AtomicU64::new(end_ms(&list));
        Self { list: RwLock::new(list), end_ms }
    }

    /// Whether there is any gap, over or not.
    #[inline]
    pub(crate) fn exist(&self) -> bool {
        self.end_ms.load(Ordering::Relaxed) != 0
    }

    /// Whether any gap lasts. `now` is a time that has surely come.
    #[inline]
    pub(crate) fn last(&self, now: Timestamp) -> bool {
        // Relaxed: an acceptance and a claim that overlap may come in either order.
        now.ms() < self.end_ms.load(Ordering::Relaxed)
    }

    /// The gap that leaves a free key in doubt. `newest` is the epoch of the newest record of the
    /// key, `first_sent` when the caller says that the request was made.
    pub(crate) fn covering(
        &self,
        now: Timestamp,
        newest: Option<Epoch>,
        first_sent: Option<Timestamp>,
    ) -> Option<Gap> {
        if !self.last(now) {
            return None;
        }
        let covers = |gap: &&Gap| {
            gap.acceptance.is_none()
                && now < gap.until
                && newest.is_none_or(|epoch| epoch <= gap.epoch)
                // A record from before the gap's end shows that the key was in use by then.
                && (newest.is_some() || first_sent.is_none_or(|sent| sent <= gap.to))
        };
        self.list.read().iter().filter(covers).max_by_key(|gap| gap.until).cloned()
    }

    pub(crate) fn list(&self) -> Vec<Gap> {
        self.list.read().clone()
    }

    fn find(&self, id: u32) -> Option<Gap> {
        self.list.read().iter().find(|gap| gap.id == id).cloned()
    }

    fn accept(&self, id: u32, acceptance: Acceptance) {
        let mut list = self.list.write();
        if let Some(gap) = list.iter_mut().find(|gap| gap.id == id) {
            gap.acceptance = Some(acceptance);
        }
        self.end_ms.store(end_ms(&list), Ordering::Relaxed);
    }
}

fn end_ms(list: &[Gap]) -> u64 {
    let open = list.iter().filter(|gap| gap.acceptance.is_none());
    open.map(|gap| gap.until.ms()).max().unwrap_or(0)
}

/// The entries of the names file, apart.
#[derive(Debug, Default)]
pub(crate) struct Split {
    pub(crate) namespaces: Vec<NamespaceEntry>,
    pub(crate) raises: Vec<Raise>,
    pub(crate) quotas: Vec<(NamespaceId, Quota)>,
    pub(crate) erasures: Vec<ErasureEntry>,
    pub(crate) gaps: Vec<Gap>,
}

pub(crate) fn split(entries: Vec<Entry>) -> Split {
    let Split { mut namespaces, mut raises, mut quotas, mut erasures, mut gaps } = Split::default();
    for entry in entries {
        match entry {
            Entry::Namespace(entry) => namespaces.push(entry),
            Entry::Raise(raise) => raises.push(raise),
            Entry::Quota(namespace, quota) => quotas.push((namespace, quota)),
            Entry::Erasure(erasure) => erasures.push(erasure),
            Entry::Gap(gap) => gaps.push(gap),
            Entry::Acceptance(id, acceptance) => {
                if let Some(gap) = gaps.iter_mut().find(|gap| gap.id == id) {
                    gap.acceptance.get_or_insert(acceptance);
                }
            }
        }
    }
    Split { namespaces, raises, quotas, erasures, gaps }
}

impl Engine {
    /// Gaps that leave keys in doubt now.
    pub(crate) fn lasting_gaps(&self) -> Vec<Gap> {
        let now = self.timeline.now();
        let mut gaps = self.gaps.list();
        gaps.retain(|gap| gap.acceptance.is_none() && now < gap.until);
        gaps
    }

    /// Ends a gap on somebody's word. That it did survives power loss when this returns.
    pub(crate) fn accept_gap(&self, id: u32, reason: &str, actor: &str) -> Result<(), GapError> {
        let longest = reason.len().max(actor.len());
        if longest > AUDIT_BYTES_MAX {
            return Err(GapError::TextLength { len: longest });
        }
        self.check_open()?;
        let _changing = self.namespaces.changing();
        let gap = self.gaps.find(id).ok_or(GapError::UnknownGap)?;
        if gap.acceptance.is_some() {
            return Ok(());
        }
        let _passage = self.wal.pass()?;
        self.wal.poison.check_before()?;
        let (actor, reason) = (actor.to_owned(), reason.to_owned());
        let acceptance = Acceptance { at: self.timeline.now(), actor, reason };
        let entry = Entry::Acceptance(id, acceptance.clone());
        if !self.wal.append_entry(&entry, |_| ())? {
            return Err(StoreError::Io(super::no_room()).into());
        }
        self.gaps.accept(id, acceptance);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn gap(id: u32, until: u64) -> Gap {
        Gap {
            id,
            epoch: Epoch(5),
            from: Timestamp::default(),
            to: Timestamp::from_ms(100),
            until: Timestamp::from_ms(until),
            bytes: 16,
            what: Arc::from("a file"),
            acceptance: None,
        }
    }

    #[test]
    fn a_gap_covers_what_may_have_been_in_it_and_nothing_else() {
        let at = Timestamp::from_ms;
        let gaps = Gaps::new(vec![gap(0, 1000), gap(1, 2000)]);
        let covered = |now, newest, sent| gaps.covering(at(now), newest, sent).map(|gap| gap.id);
        assert_eq!(covered(500, None, None), Some(1));
        assert_eq!(covered(500, Some(Epoch(5)), None), Some(1));
        assert_eq!(covered(500, Some(Epoch(6)), None), None);
        assert_eq!(covered(500, None, Some(at(100))), Some(1));
        assert_eq!(covered(500, None, Some(at(101))), None);
        assert_eq!(covered(500, Some(Epoch(5)), Some(at(101))), Some(1));
        assert_eq!(covered(1999, None, None), Some(1));
        assert_eq!(covered(2000, None, None), None);
        let word = Acceptance { at: at(600), actor: String::new(), reason: String::new() };
        gaps.accept(1, word.clone());
        assert_eq!(covered(600, None, None), Some(0));
        assert!(!gaps.last(at(1000)));
        gaps.accept(0, word);
        assert_eq!(covered(600, None, None), None);
        assert!(!gaps.last(at(0)) && Gaps::new(vec![]).list().is_empty());
    }
}
