//! Damage of every kind to a small durable store: whatever the bytes, opening gives all of it, or
//! tells of a torn tail above the mark, or refuses with the file and the offset, without a write;
//! where an index was read in place of the records, the key that is damaged is an error when it is
//! asked for.
//! Checking gives the same answer as opening; and what is refused can be salvaged, after which no
//! key that was acknowledged is granted to anybody.
//!
//! `REFRAIN_STRIDE=1` flips every byte; by default every seventeenth, from a random one on.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Mutex;

use refrain::testing::{HeapFs, SimClock, SimDisk};
use refrain::{
    Claim, ClaimOptions, CompleteOptions, Durability, Lookup, OpenError, Options, Policy,
    RecoveryReport, SalvageError, Store, StoreError,
};
use support::{Random, seed};

const SECTOR: usize = 512;
const PAGE: usize = 4096;

fn options(disk: &SimDisk, clock: &SimClock) -> Options {
    Options::new("unused")
        .file_system(disk.mount())
        .clock(clock.clone())
        .durability(Durability::Sync)
        .shards(4)
        .manual_maintenance(true)
}

/// With every record read at opening.
fn in_full(disk: &SimDisk, clock: &SimClock) -> Options {
    options(disk, clock).verify_at_open(true)
}

/// A store on a disk that no process uses, and what is in it.
struct Image {
    name: &'static str,
    disk: SimDisk,
    clock: SimClock,
    /// What each key is, as it is told.
    keys: BTreeMap<String, String>,
    /// Keys that were acknowledged as durable.
    durable: BTreeSet<String>,
}

/// What became of a damaged image.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Became {
    Whole,
    Torn,
    Refused,
}

fn told(store: &Store, key: &str) -> String {
    told_of(store.namespace("orders").unwrap().lookup(key).unwrap())
}

fn told_of(lookup: Lookup) -> String {
    match lookup {
        Lookup::Completed(it) => format!("completed {} {:?}", it.token(), it.body()),
        Lookup::Parked(it) => format!("parked {}", it.token()),
        Lookup::Lapsed(it) => format!("lapsed {}", it.token()),
        other => format!("{other:?}"),
    }
}

impl Image {
    /// Closed in order, or stopped with a synced and an unsynced part in its last segment.
    fn new(is_closed: bool) -> Self {
        let (disk, clock) = (SimDisk::new(7), SimClock::new());
        let store = options(&disk, &clock).segment_bytes(256 << 10).open().unwrap();
        let orders = store.define("orders", &Policy::default()).unwrap();
        store.define("others", &Policy::default()).unwrap();
        let mut keys: Vec<String> = vec![];
        let mut durable = BTreeSet::new();
        for number in 0..12 {
            let key = format!("key-{number}");
            let lease = orders.claim(&key, None).unwrap().acquired().unwrap();
            match number % 4 {
                0 => drop(lease),
                1 => lease.park().unwrap(),
                _ => drop(lease.complete(vec![number; 40 * usize::from(number)]).unwrap()),
            }
            keys.push(key.clone());
            durable.insert(key);
        }
        store.flush().unwrap();
        if !is_closed {
            for number in 0..4 {
                let key = format!("late-{number}");
                let claim = orders.claim_with(&key, &ClaimOptions::new().buffered()).unwrap();
                let lease = claim.acquired().unwrap();
                lease.complete_with(&CompleteOptions::body(b"late").buffered()).unwrap();
                keys.push(key);
            }
        }
        drop(orders);
        if is_closed {
            store.close().unwrap();
        } else {
            store.abandon();
        }
        let name = if is_closed { "closed" } else { "killed" };
        let mut image = Self { name, disk, clock, keys: BTreeMap::new(), durable };
        let store = options(&image.copy(), &image.clock).open().unwrap();
        image.keys = keys.into_iter().map(|key| (key.clone(), told(&store, &key))).collect();
        image
    }

    fn copy(&self) -> SimDisk {
        // A process that is gone, so that the copy can be tampered with.
        drop(self.disk.mount());
        self.disk.copy(Some(1))
    }

    /// Opens a damaged copy, and judges what became of it.
    fn judge(&self, disk: &SimDisk, what: &str) -> Became {
        drop(disk.mount());
        let by_index = self.judge_by_index(&disk.copy(Some(1)), what);
        let before = written(disk);
        let verified = options(disk, &self.clock).verify();
        assert_eq!(written(disk), before, "{what}: checking wrote");
        let opened = in_full(disk, &self.clock).open();
        assert!(by_index.is_some() || opened.is_err(), "{what}: refused for what is not damaged");
        match (&verified, &opened) {
            (Ok(found), Ok(store)) => assert_eq!(key(found), key(store.report()), "{what}"),
            (Err(one), Err(other)) => assert_eq!(one.to_string(), other.to_string(), "{what}"),
            (one, other) => panic!("{what}: checking {one:?}, opening {other:?}"),
        }
        match opened {
            Err(error) => {
                assert_eq!(written(disk), before, "{what}: a refused store was written to");
                match error {
                    OpenError::Corrupt { path, .. }
                    | OpenError::MissingFile { path }
                    | OpenError::UnsupportedFormat { path, .. } => {
                        assert!(path.file_name().is_some(), "{what}: which file?");
                    }
                    other => panic!("{what}: {other}"),
                }
                self.judge_salvaged(disk, what);
                assert_eq!(written(disk), before, "{what}: salvage wrote to its source");
                Became::Refused
            }
            Ok(store) => {
                let is_torn = !store.report().torn_tails.is_empty();
                for (key, was) in &self.keys {
                    let is = told(&store, key);
                    if is == *was {
                        continue;
                    }
                    let may_be_lost = is_torn && !self.durable.contains(key);
                    assert!(may_be_lost, "{what}: {key} was {was} and is {is}");
                }
                store.check_invariants().unwrap();
                // It is a store like any other.
                let orders = store.namespace("orders").unwrap();
                orders.claim("new", None).unwrap().acquired().unwrap().complete("new").unwrap();
                if is_torn { Became::Torn } else { Became::Whole }
            }
        }
    }

    /// Opens a damaged copy by its indexes. `None`: it is refused. A key that is told is told right,
    /// and what cannot be read is an error.
    fn judge_by_index(&self, disk: &SimDisk, what: &str) -> Option<()> {
        let store = options(disk, &self.clock).open().ok()?;
        let orders = store.namespace("orders").unwrap();
        for (key, was) in &self.keys {
            let may_be_lost = !store.report().torn_tails.is_empty() && !self.durable.contains(key);
            match orders.lookup(key) {
                Ok(lookup) => {
                    let is = told_of(lookup);
                    assert!(is == *was || may_be_lost, "{what}: {key} was {was} and is {is}");
                }
                Err(StoreError::Corrupt { .. }) => {
                    let claim = orders.claim(key, None);
                    assert!(claim.is_err(), "{what}: {key}: {claim:?}");
                }
                Err(error) => panic!("{what}: {key}: {error}"),
            }
        }
        Some(())
    }

    /// Salvages a damaged copy. No key that was acknowledged is granted to anybody, and what is
    /// shown of it is what was stored.
    fn judge_salvaged(&self, disk: &SimDisk, what: &str) {
        let target = HeapFs::new();
        let new = || Options::new("new").file_system(target.clone()).clock(self.clock.clone());
        let report = match options(disk, &self.clock).salvage(new().shards(1)) {
            Ok(report) => report,
            Err(SalvageError::NoStore { .. }) => return,
            Err(SalvageError::Open(OpenError::UnsupportedFormat { .. })) => return,
            Err(error) => panic!("{what}: salvage: {error}"),
        };
        let store = new().shards(2).manual_maintenance(true).open();
        let store = store.unwrap_or_else(|error| panic!("{what}: salvaged: {error}"));
        store.check_invariants().unwrap();
        assert_eq!(store.gaps().len(), report.gaps, "{what}");
        assert!(!report.damage.is_empty(), "{what}: it was refused for something");
        let orders = store.namespace("orders").unwrap();
        let mut is_whole = true;
        for (key, was) in self.keys.iter().filter(|(key, _)| self.durable.contains(*key)) {
            let is = told(&store, key);
            let is_lost_body = was.starts_with("completed")
                && is.split(' ').take(2).eq(was.split(' ').take(2))
                && is.ends_with(" Expired");
            let is_doubt = is.starts_with("InDoubt");
            is_whole &= is == *was;
            assert!(is == *was || is_lost_body || is_doubt, "{what}: {key} was {was} and is {is}");
            let claim = orders.claim(key, None).unwrap();
            // An orphan may be taken over, if nothing is missing that could have ended it.
            let may_take_over = was.starts_with("lapsed") && is == *was;
            if let Claim::Acquired(lease) = claim {
                assert!(may_take_over && lease.attempt() == 2, "{what}: {key} was granted");
            }
        }
        // With nothing lost, new keys are new; else everything is in doubt.
        match orders.claim("new", None).unwrap() {
            Claim::Acquired(lease) => {
                assert!(report.gaps == 0, "{what}: {report:?}");
                assert!(is_whole || report.bodies_lost > 0, "{what}: {report:?}");
                lease.complete("new").unwrap();
            }
            Claim::InDoubt(_) => assert!(report.gaps > 0, "{what}"),
            other => panic!("{what}: {other:?}"),
        }
    }

    /// Where the files hold anything.
    fn written_pages(&self) -> Vec<(String, Range<usize>)> {
        let mut pages = vec![];
        for name in self.disk.files().into_keys() {
            let bytes = self.disk.read(&name);
            for (number, page) in bytes.chunks(PAGE).enumerate() {
                if page.iter().any(|byte| *byte != 0) {
                    let start = number * PAGE;
                    pages.push((name.clone(), start..start + page.len()));
                }
            }
        }
        pages
    }
}

/// What a report says of the store, but for how and when it was made.
fn key(report: &RecoveryReport) -> String {
    let RecoveryReport { records, bytes, completed, orphaned, parked, torn_tails, .. } = report;
    format!("{records} {bytes} {completed} {orphaned} {parked} {torn_tails:?}")
}

/// How often the disk was written to.
fn written(disk: &SimDisk) -> u64 {
    let counts = disk.counts();
    let writes = ["write", "store", "fill", "create", "remove", "rename", "sync", "sync_dir"];
    writes.iter().map(|name| counts.get(name).copied().unwrap_or(0)).sum()
}

/// Judges many damages on two threads; how often each thing became of them.
fn judge_all<T: Sync>(
    image: &Image,
    damages: &[T],
    damage: impl Fn(&SimDisk, &T) -> String + Sync,
) -> BTreeMap<Became, u64> {
    let counts = Mutex::new(BTreeMap::new());
    let copies: Vec<SimDisk> = (0..2).map(|_| image.copy()).collect();
    std::thread::scope(|scope| {
        for (thread, copy) in copies.iter().enumerate() {
            let (damage, counts) = (&damage, &counts);
            scope.spawn(move || {
                let mut own = BTreeMap::new();
                for it in damages.iter().skip(thread).step_by(2) {
                    let disk = copy.copy(Some(1));
                    let what = format!("{}: {}", image.name, damage(&disk, it));
                    *own.entry(image.judge(&disk, &what)).or_insert(0) += 1;
                }
                let mut counts = counts.lock().unwrap();
                for (became, count) in own {
                    *counts.entry(became).or_insert(0) += count;
                }
            });
        }
    });
    counts.into_inner().unwrap()
}

#[test]
fn every_flipped_byte_is_noticed_or_does_not_matter() {
    let mut random = Random::new(seed("corruption"));
    let stride = std::env::var("REFRAIN_STRIDE").ok().and_then(|text| text.parse().ok());
    let stride: usize = stride.unwrap_or(17);
    for is_closed in [true, false] {
        let image = Image::new(is_closed);
        let first = random.below(stride as u64) as usize;
        let places: Vec<(String, usize, u8)> = image
            .written_pages()
            .into_iter()
            .flat_map(|(name, page)| page.map(move |at| (name.clone(), at)))
            .skip(first)
            .step_by(stride)
            .map(|(name, at)| (name, at, 1 << random.below(8)))
            .collect();
        let counts = judge_all(&image, &places, |disk, (name, at, bit)| {
            let byte = disk.read(name)[*at];
            disk.tamper(name, *at as u64, &[byte ^ bit], None);
            format!("bit {bit:#x} of {name} at {at}")
        });
        println!("{}: {} bytes flipped: {counts:?}", image.name, places.len());
        assert!(counts[&Became::Refused] > 0 && counts[&Became::Whole] > 0);
        assert!(is_closed || counts[&Became::Torn] > 0);
    }
}

#[test]
fn sectors_and_pages_that_are_zeroed_copied_or_swapped_are_noticed() {
    for is_closed in [true, false] {
        let image = Image::new(is_closed);
        for size in [SECTOR, PAGE] {
            let places: Vec<(String, usize)> = image
                .written_pages()
                .into_iter()
                .flat_map(|(name, page)| {
                    page.step_by(size).map(move |at| (name.clone(), at)).collect::<Vec<_>>()
                })
                .collect();
            let read = |disk: &SimDisk, (name, at): &(String, usize)| {
                let bytes = disk.read(name);
                bytes[*at..bytes.len().min(at + size)].to_vec()
            };
            let zeroed = judge_all(&image, &places, |disk, place| {
                let len = read(disk, place).len();
                disk.tamper(&place.0, place.1 as u64, &vec![0; len], None);
                format!("{size} bytes of {place:?} zeroed")
            });
            // Each one over each of some others: written to the wrong place, or twice.
            let pairs: Vec<_> = places
                .iter()
                .enumerate()
                .flat_map(|(number, from)| {
                    let others = places.iter().cycle().skip(number + 1).step_by(13).take(6);
                    others.map(move |to| (from.clone(), to.clone()))
                })
                .filter(|(from, to)| from != to)
                .collect();
            let copied = judge_all(&image, &pairs, |disk, (from, to)| {
                let bytes = read(disk, from);
                let len = bytes.len().min(read(disk, to).len());
                disk.tamper(&to.0, to.1 as u64, &bytes[..len], None);
                format!("{size} bytes of {from:?} over {to:?}")
            });
            let swapped = judge_all(&image, &pairs, |disk, (one, other)| {
                let (a, b) = (read(disk, one), read(disk, other));
                let len = a.len().min(b.len());
                disk.tamper(&one.0, one.1 as u64, &b[..len], None);
                disk.tamper(&other.0, other.1 as u64, &a[..len], None);
                format!("{size} bytes of {one:?} and {other:?} swapped")
            });
            println!(
                "{}: units of {size}: zeroed {zeroed:?}, copied {copied:?}, swapped {swapped:?}",
                image.name
            );
        }
    }
}

#[test]
fn files_that_are_cut_grown_missing_renamed_or_foreign_are_noticed() {
    for is_closed in [true, false] {
        let image = Image::new(is_closed);
        let other = Image::new(is_closed);
        let mut counts = BTreeMap::new();
        let mut judge = |disk: &SimDisk, what: String| {
            *counts.entry(image.judge(disk, &what)).or_insert(0) += 1;
        };
        let files = image.disk.files();
        for (name, len) in files.iter().filter(|(name, _)| *name != "LOCK") {
            let lengths = [0, 1, 100, 511, 512, 4095, 4096, len / 2, len - 1, len + 1, len + 4096];
            for new in lengths.into_iter().filter(|new| new != len) {
                let disk = image.copy();
                disk.tamper(name, 0, &[], Some(new));
                judge(&disk, format!("{name} has {new} bytes, not {len}"));
            }
            let disk = image.copy();
            disk.displace(name, None);
            judge(&disk, format!("{name} is missing"));
            let disk = image.copy();
            disk.displace(name, Some("data-00009"));
            judge(&disk, format!("{name} is called data-00009"));
            let disk = image.copy();
            disk.displace(name, None);
            disk.tamper(name, 0, &other.disk.read(name), None);
            judge(&disk, format!("{name} is another store's"));
            let disk = image.copy();
            disk.displace(name, None);
            disk.tamper(name, 0, b"this is no file of a store\n", None);
            judge(&disk, format!("{name} is text"));
        }
        println!("{}: files: {counts:?}", image.name);
        assert!(counts[&Became::Refused] > 20);
    }
}

#[test]
fn a_file_of_an_earlier_time_is_noticed() {
    let (disk, clock) = (SimDisk::new(3), SimClock::new());
    let open = |disk: &SimDisk| options(disk, &clock).segment_bytes(256 << 10).open();
    let mut versions: Vec<SimDisk> = vec![];
    for number in 0..4 {
        let store = open(&disk).unwrap();
        let orders = store.namespace("orders").unwrap();
        for key in 0..3 {
            let key = format!("{number}-{key}");
            orders.claim(&key, None).unwrap().acquired().unwrap().complete(key.as_bytes()).unwrap();
        }
        drop(orders);
        store.close().unwrap();
        drop(disk.mount());
        versions.push(disk.copy(Some(1)));
    }
    let newest = versions.last().unwrap();
    let mut refused = 0;
    for (in_full, (age, old)) in [false, true]
        .into_iter()
        .flat_map(|in_full| versions.iter().rev().enumerate().skip(1).map(move |it| (in_full, it)))
    {
        for name in newest.files().into_keys().filter(|name| name != "LOCK") {
            let mixed = newest.copy(Some(1));
            if mixed.read(&name) == old.read(&name) {
                continue;
            }
            mixed.tamper(&name, 0, &old.read(&name), None);
            // Everything, or a refusal: never an older state.
            match options(&mixed, &clock).verify_at_open(in_full).open() {
                Err(OpenError::Corrupt { .. }) => refused += 1,
                Err(error) => panic!("{name} of {age} openings ago: {error}"),
                Ok(store) => {
                    let orders = store.namespace("orders").unwrap();
                    for number in 0..4 {
                        let found = orders.lookup(format!("{number}-0")).unwrap();
                        assert!(
                            matches!(found, Lookup::Completed(_)),
                            "{name} of {age} openings ago: {number}-0 is {found:?}"
                        );
                    }
                }
            }
        }
    }
    println!("{refused} files of an earlier time were refused");
    assert!(refused > 0);
}

#[test]
fn checking_a_store_says_what_opening_would_and_changes_nothing() {
    let image = Image::new(false);
    let disk = image.copy();
    let found = options(&disk, &image.clock).verify().unwrap();
    assert!(!found.clean && found.records > 0 && found.completed > 0);
    let again = options(&disk, &image.clock).verify().unwrap();
    assert_eq!((key(&found), found.epoch), (key(&again), again.epoch));
    let store = options(&disk, &image.clock).open().unwrap();
    assert_eq!(key(store.report()), key(&found));
    assert!(store.report().epoch > found.epoch);
    // Somebody has it open; and there is nothing where no store is.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    assert!(Store::verify(&path).is_err() && !path.exists());
    let missing = Store::verify(directory.path());
    assert!(matches!(missing, Err(OpenError::MissingFile { .. })), "{missing:?}");
    assert!(std::fs::read_dir(directory.path()).unwrap().next().is_none());
    let store = Store::open(&path).unwrap();
    assert!(matches!(Store::verify(&path), Err(OpenError::Locked { .. })));
    drop(store);
    assert!(Store::verify(&path).unwrap().clean);
}
