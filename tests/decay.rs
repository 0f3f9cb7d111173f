//! Stores of several files and openings, with one damage or two at once: bytes, sectors, pages,
//! segments and files zeroed, flipped, cut, gone, swapped, or as they were at an earlier time. After
//! opening, or salvage where opening refuses, no acknowledged key is granted as new.
//!
//! `REFRAIN_CASES` is the number of damaged stores, `REFRAIN_SEED` the first of them.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::IoSlice;
use std::time::Duration;

use refrain::testing::{FileSystem, HeapFs, Pages, SimClock};
use refrain::{Claim, ClaimError, Durability, Options, Policy, SalvageError, Store, StoreError};
use support::disk::snapshot;
use support::{Random, seed};

type Files = BTreeMap<String, Vec<u8>>;

const SECTOR: usize = 512;
const PAGE: usize = 4096;
const SEGMENT: usize = 256 << 10;
/// Where the segments of a data file begin.
const START: usize = 8 * PAGE;

/// What became of a key before the store was damaged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Completed,
    Parked,
    Held,
    Released,
}

/// A store, and what it was like at earlier times.
struct World {
    files: Files,
    /// As it was before each opening and each end.
    earlier: Vec<Files>,
    keys: Vec<(String, Fate)>,
    clock: SimClock,
}

fn options(fs: &HeapFs, clock: &SimClock) -> Options {
    let options = Options::new("unused").file_system(fs.clone()).clock(clock.clone());
    options.durability(Durability::Sync).shards(2).manual_maintenance(true)
}

fn mounted(files: &Files) -> HeapFs {
    let fs = HeapFs::new();
    for (name, bytes) in files {
        let file = fs.create_new(name).unwrap();
        if !bytes.is_empty() {
            if name.starts_with("data-") {
                // Memory of its own, as files have that are mapped.
                file.zero_fill(0, bytes.len() as u64, Pages::Small).unwrap();
                drop(file.map().unwrap());
            }
            file.write_at(&[IoSlice::new(bytes)], 0).unwrap();
        }
    }
    fs
}

impl World {
    fn new(openings: usize, last_closes: bool, keys_each: usize, body: usize) -> Self {
        let (clock, fs) = (SimClock::new(), HeapFs::new());
        let (mut earlier, mut keys) = (vec![], vec![]);
        for opening in 0..openings {
            let store = options(&fs, &clock).segment_bytes(SEGMENT as u64).open().unwrap();
            let orders = store.define("orders", &Policy::default()).unwrap();
            for number in 0..keys_each {
                let key = format!("key-{opening}-{number}");
                let lease = orders.claim(&key, None).unwrap().acquired().unwrap();
                let fate = match number % 8 {
                    3 => lease.park().map(|()| Fate::Parked).unwrap(),
                    5 => {
                        drop(lease);
                        Fate::Held
                    }
                    6 => lease.release().map(|()| Fate::Released).unwrap(),
                    _ => lease.complete(vec![7; body]).map(|_| Fate::Completed).unwrap(),
                };
                keys.push((key, fate));
                clock.advance(Duration::from_millis(20));
                if number % 16 == 9 {
                    store.maintain(Duration::MAX);
                }
            }
            store.flush().unwrap();
            drop(orders);
            let is_last = opening + 1 == openings;
            // What the last opening has at its end is what is damaged.
            if !is_last {
                earlier.push(snapshot(&fs));
            }
            if if is_last { last_closes } else { opening % 2 == 0 } {
                store.close().unwrap();
            } else {
                store.abandon();
            }
            earlier.push(snapshot(&fs));
        }
        let files = earlier.pop().unwrap();
        Self { files, earlier, keys, clock }
    }

    /// What is wrong with a damaged store, and what was done with it.
    fn judge(&self, files: &Files) -> (&'static str, Option<String>) {
        match options(&mounted(files), &self.clock).open() {
            Ok(store) => ("opened", self.judge_store(&store, false)),
            Err(_) => {
                let target = HeapFs::new();
                let source = options(&mounted(files), &self.clock);
                match source.salvage(options(&target, &self.clock)) {
                    Err(SalvageError::NoStore { .. }) => ("no store", None),
                    Err(error) => ("refused", Some(error.to_string())),
                    Ok(report) => {
                        let store = options(&target, &self.clock).open().unwrap();
                        store.check_invariants().unwrap();
                        let what = if report.gaps > 0 { "gaps" } else { "whole" };
                        (what, self.judge_store(&store, true))
                    }
                }
            }
        }
    }

    fn judge_store(&self, store: &Store, is_salvaged: bool) -> Option<String> {
        let orders = store.namespace("orders").unwrap();
        let mut wrong = String::new();
        for (key, fate) in &self.keys {
            let claim = match orders.claim(key, None) {
                // Its record is damaged, and was not read before.
                Err(ClaimError::Store(StoreError::Corrupt { .. })) if !is_salvaged => continue,
                claim => claim.unwrap(),
            };
            let is_right = match claim {
                Claim::Acquired(lease) => match fate {
                    Fate::Held => lease.attempt() > 1,
                    fate => *fate == Fate::Released,
                },
                Claim::Completed(_) => *fate == Fate::Completed,
                Claim::Parked(_) => *fate == Fate::Parked,
                Claim::InDoubt(_) => is_salvaged,
                _ => false,
            };
            if !is_right && wrong.len() < 200 {
                write!(wrong, "{key} ({fate:?}) is {:?}; ", orders.lookup(key).unwrap()).unwrap();
            }
        }
        (!wrong.is_empty()).then_some(wrong)
    }

    /// Does something bad, and says what. Only the first of several puts something back to an earlier
    /// time: the meta file and a data file that go back together are what the store once was.
    fn damage(&self, random: &mut Random, files: &mut Files, is_first: bool) -> String {
        let names: Vec<String> = files.keys().filter(|name| *name != "LOCK").cloned().collect();
        let below = |random: &mut Random, end: usize| random.below(end.max(1) as u64) as usize;
        let name = names[below(random, names.len())].clone();
        let earlier = &self.earlier[below(random, self.earlier.len())];
        let size = [SECTOR, PAGE, PAGE, SEGMENT][below(random, 4)];
        let len = files[&name].len();
        let first = if size == SEGMENT { START } else { 0 };
        let is_written =
            |at: &usize| files[&name][*at..len.min(at + size)].iter().any(|it| *it != 0);
        let units: Vec<usize> = (first..len).step_by(size).filter(is_written).collect();
        let at = units.get(below(random, units.len())).copied().unwrap_or(0);
        let unit = at..len.min(at + size);
        let bytes = files.get_mut(&name).unwrap();
        let hows: &[u64] =
            if is_first { &[0, 1, 2, 3, 4, 5, 6, 7, 8] } else { &[0, 1, 2, 4, 5, 7, 8] };
        match hows[below(random, hows.len())] {
            0 | 1 => {
                bytes[unit.clone()].fill(0);
                format!("{name}: {unit:?} zeroed")
            }
            2 => {
                let at = unit.start + below(random, unit.len());
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
                format!("{name}: a bit at {at}")
            }
            3 => {
                if let Some(old) = earlier.get(&name).and_then(|old| old.get(unit.clone())) {
                    bytes[unit.clone()].copy_from_slice(old);
                }
                format!("{name}: {unit:?} of an earlier time")
            }
            4 => {
                let to = (START + below(random, len / SEGMENT + 1) * SEGMENT).min(len);
                bytes.truncate(to);
                format!("{name}: cut to {to} of {len}")
            }
            5 => {
                files.remove(&name);
                format!("{name}: gone")
            }
            6 => {
                match earlier.get(&name) {
                    Some(old) => drop(files.insert(name.clone(), old.clone())),
                    None => drop(files.remove(&name)),
                }
                format!("{name}: of an earlier time")
            }
            7 => {
                let other = names[below(random, names.len())].clone();
                let (one, two) = (files[&name].clone(), files[&other].clone());
                files.insert(name.clone(), two);
                if random.chance(50) {
                    files.insert(other.clone(), one);
                }
                format!("{name}: {other}")
            }
            _ => {
                let at = below(random, len);
                bytes.truncate(at);
                format!("{name}: cut to {at} of {len}")
            }
        }
    }
}

#[test]
fn no_key_is_granted_whatever_has_decayed() {
    let cases = std::env::var("REFRAIN_CASES").ok().and_then(|text| text.parse().ok());
    let cases: u64 = cases.unwrap_or(600);
    let first = seed("decay");
    let worlds = [
        World::new(4, true, 40, 12_000),
        World::new(4, false, 40, 40_000),
        World::new(3, true, 24, 200),
        World::new(2, false, 100, 9_000),
    ];
    assert!(worlds[1].files.keys().filter(|name| name.starts_with("data-")).count() > 2);
    let mut counts = BTreeMap::<&str, u64>::new();
    for number in 0..cases {
        let seed = first.wrapping_add(number);
        let mut random = Random::new(seed);
        let world = &worlds[seed as usize % worlds.len()];
        let mut files = world.files.clone();
        let times = 1 + seed / worlds.len() as u64 % 2;
        let what: Vec<String> =
            (0..times).map(|it| world.damage(&mut random, &mut files, it == 0)).collect();
        let (became, wrong) = world.judge(&files);
        *counts.entry(became).or_default() += 1;
        if let Some(wrong) = wrong {
            panic!("REFRAIN_SEED={seed} REFRAIN_CASES=1 ({became}): {what:?}: {wrong}");
        }
    }
    println!("{counts:?}");
    assert!(
        cases < 100 || ["opened", "gaps"].iter().all(|what| counts.contains_key(what)),
        "{counts:?}"
    );
}
