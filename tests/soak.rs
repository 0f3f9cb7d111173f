//! Simulated weeks: a store that forgets as fast as it learns takes no more memory and no more disk
//! after ten windows than after one, and answers exactly at every instant.
//!
//! The clock is moved by hand, a tick at a time; each tick brings keys, which are completed and then
//! forgotten by the clock. What each key is follows from its number, so the oracle remembers
//! everything and takes no memory. `REFRAIN_RECORDS` is the number of keys (default: some tens of
//! thousands; a soak is 20 million), `REFRAIN_LOAD` one load, from 0 on, `REFRAIN_SEED` repeats a run.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use std::time::Duration;

use refrain::testing::{Crash, SimClock, SimDisk};
use refrain::{
    Body, CompleteOptions, Durability, Lookup, Namespace, Options, Policy, Store, StoreStats,
};
use support::{Random, seed};

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;
const BODY_BYTES: usize = 200;
/// What a completion takes: header, extensions, key and body, padded.
const RECORD_BYTES: u64 = 64 + 24 + BODY_BYTES as u64;

/// What a claim takes, with its entry in the index.
const CLAIM_BYTES: u64 = 64 + 16 + 32;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// What is put on a store.
#[derive(Clone, Copy, Debug)]
struct Load {
    name: &'static str,
    /// How long each key is kept, in seconds; key n has the n-th, over and over.
    ttls: &'static [u64],
    /// Whether a call asks for it, or the policy does.
    by_call: bool,
    /// Of ten ticks, how many bring keys.
    busy_ticks: u64,
    windows: u64,
    tick: u64,
    /// The most bytes of records, as a multiple of those of live completions.
    bound: f64,
}

const LOADS: [Load; 4] = [
    Load {
        name: "a day, constant",
        ttls: &[DAY],
        by_call: false,
        busy_ticks: 10,
        windows: 12,
        tick: 600,
        bound: 1.25,
    },
    Load {
        name: "a day, in bursts",
        ttls: &[DAY],
        by_call: false,
        busy_ticks: 2,
        windows: 12,
        tick: 600,
        bound: 1.25,
    },
    Load {
        name: "a week, constant",
        ttls: &[7 * DAY],
        by_call: false,
        busy_ticks: 10,
        windows: 10,
        tick: 3600,
        bound: 1.25,
    },
    Load {
        name: "mixed, as calls ask",
        ttls: &[HOUR, 5 * HOUR, DAY, 11 * HOUR, 30 * HOUR],
        by_call: true,
        busy_ticks: 10,
        windows: 10,
        tick: 600,
        bound: 2.25,
    },
];

impl Load {
    fn ttl(&self, key: u64) -> u64 {
        self.ttls[key as usize % self.ttls.len()]
    }

    fn longest(&self) -> u64 {
        *self.ttls.iter().max().unwrap()
    }

    fn ticks(&self) -> u64 {
        (self.windows + 1) * self.longest() / self.tick
    }
}

/// A store under a load, and what has been done to it.
struct Soak {
    load: Load,
    clock: SimClock,
    disk: SimDisk,
    store: Option<Store>,
    random: Random,
    /// The first key of each tick, and when the tick was, in seconds since the start.
    ticks: Vec<(u64, u64)>,
    now: u64,
    next_key: u64,
    keys_each: u64,
    reopened: u64,
}

fn key(number: u64) -> String {
    format!("key-{number:012}")
}

fn body(number: u64) -> Vec<u8> {
    let mut body = number.to_le_bytes().to_vec();
    body.resize(BODY_BYTES, number as u8);
    body
}

impl Soak {
    fn new(load: Load, records: u64) -> Self {
        let busy = load.ticks() * load.busy_ticks / 10;
        let mut soak = Self {
            load,
            clock: SimClock::new(),
            disk: SimDisk::new(1),
            store: None,
            random: Random::new(seed("soak")),
            ticks: vec![],
            now: 0,
            next_key: 0,
            keys_each: records.div_ceil(busy),
            reopened: 0,
        };
        soak.open();
        soak
    }

    fn open(&mut self) {
        let store = Options::new("unused")
            .file_system(self.disk.mount())
            .clock(self.clock.clone())
            .durability(Durability::Buffered)
            .segment_bytes(256 << 10)
            .manual_maintenance(true)
            .shards(16)
            .open()
            .unwrap();
        let ttl = Duration::from_secs(self.load.longest());
        store.define("orders", &Policy::default().replay_ttl(ttl).dedupe_ttl(ttl)).unwrap();
        self.store = Some(store);
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn orders(&self) -> Namespace {
        self.store().namespace("orders").unwrap()
    }

    /// Brings a tick's keys.
    fn work(&mut self) {
        self.ticks.push((self.next_key, self.now));
        let tick = self.ticks.len() as u64;
        if tick % 10 >= self.load.busy_ticks {
            return;
        }
        let orders = self.orders();
        for number in self.next_key..self.next_key + self.keys_each {
            let lease = orders.claim(key(number), None).unwrap().acquired().unwrap();
            let body = body(number);
            let mut options = CompleteOptions::body(&body);
            if self.load.by_call {
                let ttl = Duration::from_secs(self.load.ttl(number));
                options = options.replay_ttl(ttl).dedupe_ttl(ttl);
            }
            lease.complete_with(&options).unwrap();
        }
        self.next_key += self.keys_each;
    }

    /// When a key was completed, in seconds since the start.
    fn completed_at(&self, number: u64) -> u64 {
        let tick = self.ticks.partition_point(|(first, _)| *first <= number) - 1;
        self.ticks[tick].1
    }

    /// Asks for some keys: any, and those whose time is about to end or has just ended.
    fn check(&mut self, asked: u64) {
        let orders = self.orders();
        let mut numbers: Vec<u64> =
            (0..asked).map(|_| self.random.below(self.next_key.max(1))).collect();
        for ttl in self.load.ttls {
            for around in [0, self.load.tick] {
                let at = (self.now + around).saturating_sub(*ttl);
                let tick = self.ticks.partition_point(|(_, time)| *time < at);
                if let Some((first, _)) = self.ticks.get(tick) {
                    numbers
                        .extend((0..8).map(|it| first + it * 5).filter(|it| *it < self.next_key));
                }
            }
        }
        for number in numbers {
            let ends = self.completed_at(number) + self.load.ttl(number);
            match orders.lookup(key(number)).unwrap() {
                Lookup::Completed(outcome) => {
                    assert!(self.now < ends, "key {number} was to be forgotten at {ends}");
                    assert_eq!(outcome.body(), Body::Bytes(&body(number)));
                }
                Lookup::Absent => {
                    assert!(self.now >= ends, "key {number} was to be kept until {ends}");
                }
                other => panic!("key {number}: {other:?}"),
            }
        }
    }

    /// Bytes of the records of live completions.
    fn live(&self) -> (u64, u64) {
        let mut keys = 0;
        for (index, (first, at)) in self.ticks.iter().enumerate().rev() {
            if self.now - at >= self.load.longest() {
                break;
            }
            let end = self.ticks.get(index + 1).map_or(self.next_key, |(first, _)| *first);
            let count = (end - first) / self.load.ttls.len() as u64;
            let live = self.load.ttls.iter().filter(|ttl| self.now - at < **ttl).count() as u64;
            keys += count * live;
        }
        (keys, keys * RECORD_BYTES)
    }

    /// Ends the process or the power, and opens what is left.
    fn end(&mut self, crash: Crash) {
        if crash == Crash::PowerCut {
            // What was not synced may be lost: nothing is asked of it here.
            self.store().flush().unwrap();
        }
        self.disk.crash(crash);
        self.store.take().unwrap().abandon();
        self.open();
        self.reopened += 1;
        self.store().check_invariants().unwrap();
    }
}

fn soak(load: Load, records: u64) {
    let mut soak = Soak::new(load, records);
    let (mut worst, mut table_max, mut disk_max) = ((0.0, 0), [0_u64; 2], [0_u64; 2]);
    let (ticks, window) = (load.ticks(), load.longest() / load.tick);
    let mut stats = StoreStats::default();
    for tick in 0..ticks {
        soak.work();
        soak.store().maintain(Duration::MAX);
        soak.check(50);
        // Ten times in a run, at no time that means anything.
        if tick % (ticks / 10) == ticks / 17 {
            let crash = if tick % 2 == 0 { Crash::Kill } else { Crash::PowerCut };
            soak.end(crash);
        }
        stats = soak.store().stats();
        let (keys, live) = soak.live();
        // A few segments of each stream are not full, and the claims of a tick come in an instant.
        let slack = 12 * (256 << 10) + soak.keys_each * CLAIM_BYTES;
        let allowed = (live as f64 * load.bound) as u64 + slack;
        assert!(stats.record_bytes <= allowed, "tick {tick}: {stats:?}, {live} live");
        // Two files: each is as long as all before it, and has 256 segments at most.
        let files = (2 * 256 * (256 << 10)).min(stats.disk_bytes / 4 * 3);
        assert!(stats.disk_bytes <= allowed * 3 / 2 + files, "tick {tick}: {stats:?}");
        let half = usize::from(tick > 2 * window);
        let after_first = tick > window;
        if after_first {
            table_max[half] = table_max[half].max(stats.table_bytes as u64);
            disk_max[half] = disk_max[half].max(stats.disk_bytes);
            let ratio = stats.record_bytes.saturating_sub(slack) as f64 / live.max(1) as f64;
            if ratio > worst.0 {
                worst = (ratio, tick);
            }
            assert!(
                (stats.entries as u64) < keys + keys / 4 + 10 * soak.keys_each + 1000,
                "tick {tick}: {stats:?} for {keys} keys"
            );
        }
        soak.clock.advance(Duration::from_secs(load.tick) - Duration::from_millis(1));
        // The last instant, and the next.
        soak.check(0);
        soak.clock.advance(Duration::from_millis(1));
        soak.now += load.tick;
        soak.check(0);
    }
    println!(
        "{}: {} keys, {ticks} ticks, reopened {} times; bytes of records at most {:.3} x the live \
         ones (tick {}); table {table_max:?}, disk {disk_max:?}; {stats:?}",
        load.name, soak.next_key, soak.reopened, worst.0, worst.1
    );
    // Flat: the second window and all later ones take what the first took.
    // A shard's table grows by a quarter of a doubling at a time.
    assert!(table_max[1] <= table_max[0] + table_max[0] / 8 + (32 << 10), "table {table_max:?}");
    let files = 16 * (256 << 10);
    assert!(disk_max[1] <= disk_max[0] + disk_max[0] / 4 + files, "disk {disk_max:?}");
    assert!(stats.purge_hold_keys_max <= 16);
}

#[test]
#[cfg_attr(miri, ignore = "long")]
fn a_window_that_moves_stays_as_large_as_it_is() {
    let records = number("REFRAIN_RECORDS", 60_000);
    // One of them, or all.
    let only = number("REFRAIN_LOAD", u64::MAX);
    for (index, load) in LOADS.into_iter().enumerate() {
        if only == u64::MAX || only == index as u64 {
            soak(load, records);
        }
    }
}
