//! Salvage: what can still be read of a damaged store, copied record by record into a new one.
//!
//! Records keep their tokens, so the new store finds the state of each key as opening the old one
//! would have found it, had it nothing but these records. What is lost becomes gaps, and keys that
//! may have been in it are in doubt (`engine::gaps`). The new store says that it is not finished
//! until all of it is durable.

use std::collections::HashMap;
use std::time::Instant;

use super::survey::{Loss, Losses, Survey};
use super::{COPY_EPOCH_STEP, OpenRequest, lock, open};
use crate::answer::Gap;
use crate::checksum::crc32;
use crate::engine::Engine;
use crate::engine::gaps::split;
use crate::error::{OpenError, SalvageError, StoreError};
use crate::format::draft::Draft;
use crate::format::file::id_of_name;
use crate::format::flags::BodyState;
use crate::format::meta::{Meta, SLOTS};
use crate::format::names::{Entry, WHAT_BYTES_MAX};
use crate::format::record::{Kind, Record};
use crate::format::scope;
use crate::format::{LOCK_NAME, META_NAME};
use crate::hash::KeyHasher;
use crate::report::SalvageReport;
use crate::sys::FileSystem;
use crate::types::{Epoch, NamespaceId, Timestamp};
use crate::wal::class::Class;
use crate::wal::lane::RoomChange;

/// Losses beyond so many become one gap.
const GAPS_MAX: usize = 1000;

/// The body of a forget record in place of one that is lost: no actor, no reason.
const NOBODY: &[u8] = &[0];

/// Copies what can be read of `source` into the empty directory of `target`.
pub(crate) fn salvage(
    source: &OpenRequest,
    mut target: OpenRequest,
) -> Result<SalvageReport, SalvageError> {
    let start = Instant::now();
    // Nothing is made in a directory without a store, not even a lock.
    let names = list(&*source.fs)?;
    if !names.iter().any(|name| name == META_NAME || id_of_name(name).is_some()) {
        return Err(SalvageError::NoStore { path: source.fs.describe(META_NAME) });
    }
    let _lock = lock(&*source.fs)?;
    let mut survey = Survey::read(&*source.fs)?;
    check_empty(&*target.fs)?;
    if let Some(asked) = target.segment_bytes.filter(|asked| *asked != survey.segment_bytes) {
        return Err(OpenError::SegmentBytes { stored: survey.segment_bytes, asked }.into());
    }
    target.segment_bytes = Some(survey.segment_bytes);
    target.is_salvage = true;
    let mut report = SalvageReport { files: survey.files(), ..SalvageReport::default() };
    let (engine, _) = open(target)?;
    let mut copy = Copy {
        hashers: copy_names(&engine, &survey.entries)?,
        engine: &engine,
        report: &mut report,
        epoch: Epoch(0),
        at: Timestamp::default(),
        is_unnamed: false,
    };
    survey.visit(|record, is_whole| copy.add(record, is_whole))?;
    let Copy { epoch, at, is_unnamed, hashers, .. } = copy;
    // Each is there with scopes, and without.
    report.namespaces = hashers.len() / 2;
    report.segments = survey.segments;

    let Survey { meta, is_fallback, vouched, mut losses, entries, .. } = survey;
    if is_unnamed {
        losses.lose_unknown("names of namespaces are lost");
    }
    let stored = meta.as_ref().map_or(Epoch(0), |meta| meta.epoch);
    if meta.is_some() && epoch.max(vouched.epoch) > stored && !is_fallback {
        losses.lose_unknown("the meta file is older than the data");
    }
    let epoch = stored.max(epoch).max(vouched.epoch);
    let clock = meta.map_or(Timestamp::default(), |meta| meta.clock).max(vouched.clock).max(at);
    report.bytes_lost = losses.list.iter().map(|loss| loss.bytes).sum();
    let next = split(entries).gaps.iter().map(|gap| gap.id + 1).max().unwrap_or(0);
    let to = engine.timeline.now().max(clock);
    let gaps = gaps_of(std::mem::take(&mut losses.list), next, epoch, to);
    report.gaps = gaps.len();
    for gap in gaps {
        append_entry(&engine, &Entry::Gap(gap), 0)?;
    }
    let Losses { damage, .. } = losses;
    report.damage = damage;
    let raised = epoch.raised_by(COPY_EPOCH_STEP).ok_or(OpenError::EpochsExhausted)?;
    report.epoch = raised.0;
    finish(&engine, raised, clock)?;
    report.duration = start.elapsed();
    Ok(report)
}

fn list(fs: &dyn FileSystem) -> Result<Vec<String>, OpenError> {
    let path = || fs.describe(META_NAME);
    fs.list().map_err(|error| OpenError::io("list the directory of", path(), error))
}

fn check_empty(fs: &dyn FileSystem) -> Result<(), SalvageError> {
    match list(fs)?.into_iter().find(|name| name != LOCK_NAME) {
        Some(name) => Err(SalvageError::NotEmpty { path: fs.describe(&name) }),
        None => Ok(()),
    }
}

/// Enters all names, and gives what hashes keys of each namespace in the new store.
fn copy_names(
    engine: &Engine,
    entries: &[Entry],
) -> Result<HashMap<NamespaceId, KeyHasher>, SalvageError> {
    let secret = engine.wal.meta.read(|meta| meta.secret.clone());
    let mut hashers = HashMap::new();
    for entry in entries {
        let mut namespace = 0;
        if let Entry::Namespace(entry) = entry {
            namespace = entry.namespace.0;
            let hasher = secret.hasher(entry.namespace);
            hashers.insert(entry.namespace.scoped(), hasher.clone());
            hashers.insert(entry.namespace, hasher);
        }
        append_entry(engine, entry, namespace)?;
    }
    Ok(hashers)
}

fn append_entry(engine: &Engine, entry: &Entry, namespace: u32) -> Result<(), SalvageError> {
    let count = |meta: &mut Meta| meta.namespaces = meta.namespaces.max(namespace);
    if engine.wal.append_entry(entry, count)? {
        Ok(())
    } else {
        Err(StoreError::Io(crate::engine::no_room()).into())
    }
}

/// The copying of records.
struct Copy<'a> {
    engine: &'a Engine,
    report: &'a mut SalvageReport,
    hashers: HashMap<NamespaceId, KeyHasher>,
    /// The highest epoch of any token.
    epoch: Epoch,
    /// The latest time in any record.
    at: Timestamp,
    /// Whether records were left out.
    is_unnamed: bool,
}

impl Copy<'_> {
    fn add(&mut self, record: &Record<'_>, is_whole: bool) -> Result<(), SalvageError> {
        self.epoch = self.epoch.max(record.token.epoch());
        self.at = self.at.max(record.at);
        let Some(hasher) = self.hashers.get(&record.namespace) else {
            self.report.records_unnamed += 1;
            self.is_unnamed = true;
            return Ok(());
        };
        if scope::split(record.namespace, record.key).is_none() {
            self.report.records_unnamed += 1;
            self.is_unnamed = true;
            return Ok(());
        }
        if record.namespace.is_scoped() {
            self.engine.begin_scopes()?;
        }
        let mut copy = Record { key_hash: hasher.hash(record.key), ..*record };
        if !is_whole {
            self.report.bodies_lost += 1;
            if record.kind == Kind::Forget {
                (copy.body, copy.body_len, copy.body_crc) = (NOBODY, 1, crc32(NOBODY));
            } else {
                (copy.body, copy.body_crc) = (&[], 0);
                copy.flags = copy.flags.with_body(BodyState::ReplayOver);
            }
        }
        self.append(&Draft::new(&copy), class_of(&copy))?;
        self.report.records += 1;
        Ok(())
    }

    fn append(&self, draft: &Draft<'_>, class: Class) -> Result<(), SalvageError> {
        // What claims keep reserved is worked out when the store is opened.
        let change = RoomChange { release: 0, reserve: 0, is_exit: false };
        // All in one lane: they come in the order in which they are to be destroyed (R3).
        loop {
            let growths = self.engine.wal.growths();
            if self.engine.append_after(draft, class, change, Some(0))?.is_some() {
                return Ok(());
            }
            if let Some(cause) = self.engine.make_room(growths)? {
                return Err(OpenError::Full { cause }.into());
            }
        }
    }
}

/// Where a record belongs: by how long it was to be kept.
fn class_of(record: &Record<'_>) -> Class {
    let is_kept = match record.kind {
        Kind::Complete => true,
        Kind::Forget => record.expires < Timestamp::MAX,
        Kind::Claim | Kind::Renew | Kind::Release | Kind::Park => false,
    };
    if is_kept { Class::geometric(record.due().since(record.at)) } else { Class::Claims }
}

/// The gaps that stand for `losses`, numbered from `next` on.
fn gaps_of(mut losses: Vec<Loss>, next: u32, epoch: Epoch, to: Timestamp) -> Vec<Gap> {
    if losses.len() > GAPS_MAX {
        let rest = losses.split_off(GAPS_MAX - 1);
        losses.push(Loss {
            from: rest.iter().map(|loss| loss.from).min().unwrap_or_default(),
            until: rest.iter().map(|loss| loss.until).max().unwrap_or(Timestamp::MAX),
            bytes: rest.iter().map(|loss| loss.bytes).sum(),
            what: format!("{} more places", rest.len()),
        });
    }
    let gap = |(id, loss): (u32, Loss)| {
        let Loss { from, until, bytes, what } = loss;
        let end = (0..=what.len().min(WHAT_BYTES_MAX)).rfind(|end| what.is_char_boundary(*end));
        let end = end.unwrap_or(0);
        Gap { id, epoch, from, to, until, bytes, what: what[..end].into(), acceptance: None }
    };
    (next..).zip(losses).map(gap).collect()
}

/// Makes all of it durable, and says that the store is finished and was closed in order. Its clock
/// is that of the source: time in which nobody could act has not passed.
fn finish(engine: &Engine, epoch: Epoch, clock: Timestamp) -> Result<(), SalvageError> {
    engine.wal.abandon_growth();
    engine.wal.seal_all()?;
    // The first round makes it durable, the second says so (R10).
    for _ in 0..2 {
        engine.wal.sync_round(|| clock).map_err(OpenError::Io)?;
    }
    let stable = engine.wal.stable_generation();
    // In both slots: one that goes bad must not take the store with it.
    for _ in 0..SLOTS {
        let finished = engine.wal.meta.update(|meta| {
            meta.epoch = epoch;
            meta.clock = clock;
            meta.stable_generation = stable;
            meta.clean = true;
            meta.unfinished = false;
        });
        finished.map_err(OpenError::Io)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_losses_become_one_gap_that_covers_them() {
        let loss = |number: u64| Loss {
            from: Timestamp::from_ms(1000 + number),
            until: Timestamp::from_ms(5000 + number),
            bytes: 16,
            what: "ü".repeat(300),
        };
        let gaps = gaps_of((0..3000).map(loss).collect(), 7, Epoch(1), Timestamp::from_ms(9000));
        assert_eq!(gaps.len(), GAPS_MAX);
        assert_eq!((gaps[0].id, gaps[GAPS_MAX - 1].id), (7, 7 + GAPS_MAX as u32 - 1));
        let rest = &gaps[GAPS_MAX - 1];
        assert_eq!((rest.from.ms(), rest.until.ms()), (1999, 7999));
        assert_eq!(rest.bytes, 16 * 2001);
        assert!(gaps.iter().all(|gap| gap.what.len() <= WHAT_BYTES_MAX));
        assert_eq!(gaps.iter().map(|gap| gap.bytes).sum::<u64>(), 16 * 3000);
    }
}
