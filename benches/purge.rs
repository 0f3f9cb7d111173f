//! Do claims wait while a large window expires?
//!
//! One thread claims and completes fresh keys at a fixed rate, `REFRAIN_LOAD` percent (15) of what
//! it can do for a moment, and each claim is timed twice: the call alone, and from when it was to
//! start, so that a stall counts for everybody who would have called meanwhile. Time in which the
//! thread was ready to run and the machine had no core for it, or the host of a virtual machine none for the
//! core ("steal", in hundredths of a second), since a moment before the stall, counts for nobody: the load stands
//! still. Not so what the store's own thread ran meanwhile. The figures without this are told, too. The
//! maintenance thread runs as it always does, in `Buffered` mode. In each of `REFRAIN_ROUNDS` rounds:
//!
//! - `no store`: the same rate of claims that are made of waiting alone: what the machine does;
//! - `full`: a window of `REFRAIN_ENTRIES` completed keys, none of which is due;
//! - `expiring`: the clock jumps past the end of the window, and all its keys go;
//! - `empty`: they are gone;
//! - `syncing`: the same, while another thread flushes all the time, as expiry does now and then.
//!
//! The store's clock is the real one, but for the jump: what the store measures and does by time is
//! as it would be.
#![allow(missing_docs, reason = "a program")]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use refrain::testing::Clock;
use refrain::{Durability, Lease, Namespace, Options, Policy, Store, StoreStats};

use common::{BODY, key, median, number};

const WINDOW: Duration = Duration::from_secs(3600);
const SEGMENT_BYTES: u64 = 4 << 20;
/// Keys of the segment that is being filled when the clock jumps: it takes newer ones, and stays.
const KEYS_LEFT_MAX: u64 = SEGMENT_BYTES / 256;
/// Who is so late asks why.
const STALL_NS: u64 = 20_000;
/// So often the thread looks at what it has lost, while nothing is due.
const LOOK_AGAIN_NS: u64 = 1_000_000;
/// With less between two claims there is no time to.
const LOOK_NS: u64 = 2_000;
/// Claims between two looks at whether a phase is over.
const LOOK_EVERY: u64 = 4096;

/// The real clock, which can be moved on.
#[derive(Clone, Debug)]
struct JumpClock {
    start: Instant,
    jumped_ns: Arc<AtomicU64>,
}

impl Clock for JumpClock {
    fn wall_ns(&self) -> u64 {
        1_767_225_600_000_000_000 + self.monotonic_ns()
    }

    fn monotonic_ns(&self) -> u64 {
        nanoseconds(self.start) + self.jumped_ns.load(Ordering::Relaxed)
    }

    fn coarse_ns(&self) -> u64 {
        self.monotonic_ns()
    }

    fn coarse_resolution_ns(&self) -> u64 {
        0
    }
}

fn nanoseconds(since: Instant) -> u64 {
    since.elapsed().as_nanos() as u64
}

/// Counts of times, to 1/64 of each.
#[derive(Clone)]
struct Histogram {
    counts: Vec<u64>,
    max: u64,
}

impl Histogram {
    fn new() -> Self {
        Self { counts: vec![0; 64 * 64], max: 0 }
    }

    fn add(&mut self, ns: u64) {
        let shift = (ns | 64).ilog2() - 6;
        self.counts[(u64::from(shift) * 64 + (ns >> shift)) as usize] += 1;
        self.max = self.max.max(ns);
    }

    fn at(&self, share: f64) -> u64 {
        let total: u64 = self.counts.iter().sum();
        let mut left = (total as f64 * share) as u64;
        for (index, count) in self.counts.iter().enumerate() {
            if *count > left {
                let shift = (index / 64).saturating_sub(1);
                return ((index - shift * 64) as u64) << shift;
            }
            left -= count;
        }
        self.max
    }

    /// p50, p99, p99.9 and the longest, in microseconds.
    fn summary(&self) -> [f64; 4] {
        [self.at(0.5), self.at(0.99), self.at(0.999), self.max].map(|ns| ns as f64 / 1e3)
    }
}

/// What this thread has lost to others that wanted its core, and its core to other machines. What the
/// store's own thread did meanwhile is the store's doing, and not lost.
struct Losses {
    /// On other systems than Linux nothing is known.
    schedstat: Option<File>,
    maintenance: Option<File>,
    stat: Option<File>,
    before: Seen,
    looked_at: u64,
}

/// Nanoseconds since ever.
#[derive(Clone, Copy, Default)]
struct Seen {
    /// That the thread has waited for a core.
    waited: u64,
    /// That the store's thread has run.
    maintained: u64,
    /// That the core on which the thread is was ready and did not run.
    core: usize,
    stolen: u64,
}

impl Losses {
    fn new() -> Self {
        let mut losses = Self {
            schedstat: File::open("/proc/thread-self/schedstat").ok(),
            maintenance: maintenance_schedstat(),
            stat: File::open("/proc/stat").ok(),
            before: Seen::default(),
            looked_at: 0,
        };
        losses.before = losses.see();
        losses
    }

    fn see(&self) -> Seen {
        let core = rustix::thread::sched_getcpu();
        let text = read(self.stat.as_ref());
        // The first line is of all cores.
        let line = text.lines().nth(1 + core).unwrap_or_default();
        let ticks = line.split(' ').nth(8).and_then(|number| number.parse().ok()).unwrap_or(0_u64);
        Seen {
            waited: number_of(self.schedstat.as_ref(), 1),
            maintained: number_of(self.maintenance.as_ref(), 0),
            core,
            stolen: ticks * 10_000_000,
        }
    }

    /// Begins anew: what was lost before was nobody's loss.
    fn forget(&mut self, now: u64) {
        (self.before, self.looked_at) = (self.see(), now);
    }

    /// What was lost since this was last asked or forgotten.
    fn take(&mut self, now: u64) -> u64 {
        let before = self.before;
        self.forget(now);
        let waited = self.before.waited - before.waited;
        let maintained = self.before.maintained - before.maintained;
        let is_same = self.before.core == before.core;
        let stolen = if is_same { self.before.stolen - before.stolen } else { 0 };
        waited.saturating_sub(maintained) + stolen
    }
}

fn read(file: Option<&File>) -> String {
    let mut text = [0; 2048];
    let len = file.and_then(|file| file.read_at(&mut text, 0).ok());
    String::from_utf8_lossy(&text[..len.unwrap_or(0)]).into_owned()
}

fn number_of(file: Option<&File>, nth: usize) -> u64 {
    read(file).split_whitespace().nth(nth).and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// The store's thread has a name.
fn maintenance_schedstat() -> Option<File> {
    let tasks = std::fs::read_dir("/proc/self/task").ok()?;
    let is_it = |path: &PathBuf| {
        std::fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == "refrain")
    };
    let path = tasks.filter_map(|task| Some(task.ok()?.path())).find(is_it)?;
    File::open(path.join("schedstat")).ok()
}

/// What was measured of a load, in microseconds: from when each claim was to start, and the calls
/// alone, each as the clock says and without what was lost; and the share of the time in which there
/// was no core for it.
#[derive(Clone, Copy)]
struct Times {
    waits: [f64; 4],
    calls: [f64; 4],
    raw_waits: [f64; 4],
    raw_calls: [f64; 4],
    lost: f64,
}

/// The load, and where it is put.
struct Bench {
    store: Store,
    space: Namespace,
    clock: JumpClock,
    next_key: u64,
    /// Between two claims; and what a claim and a completion take of it.
    gap_ns: u64,
    work_ns: u64,
}

impl Bench {
    fn claim_and_complete(&mut self) {
        let key = key(self.next_key);
        self.next_key += 1;
        let lease = self.space.claim(key, None).expect("room").acquired().expect("a fresh key");
        lease.complete(BODY).expect("a live lease");
    }

    fn load(&mut self, mut is_over: impl FnMut(&Store, Duration) -> bool) -> Times {
        let (first_key, store, space) = (self.next_key, &self.store, &self.space);
        let claim = |n| {
            let claim = space.claim(key(first_key + n), None).expect("room");
            claim.acquired().expect("a fresh key")
        };
        let complete = |lease: Lease| {
            lease.complete(BODY).expect("a live lease");
        };
        let over = |elapsed: Duration| is_over(store, elapsed);
        let (times, count) = at_rate(self.gap_ns, claim, complete, over);
        self.next_key += count;
        times
    }

    /// The same, without a store: half of the work is the claim, half the completion.
    fn load_nothing(&self, time: Duration) -> Times {
        let start = Instant::now();
        let spin = || wait_until(start, nanoseconds(start) + self.work_ns / 2);
        let complete = |_| {
            spin();
        };
        at_rate(self.gap_ns, |_| spin(), complete, |elapsed| elapsed >= time).0
    }

    /// Loads while another thread flushes all the time.
    fn load_syncing(&mut self, time: Duration) -> Times {
        let (store, is_over) = (self.store.clone(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    store.flush().expect("a disk");
                }
            });
            let times = self.load(|_, elapsed| elapsed >= time);
            is_over.store(true, Ordering::Relaxed);
            times
        })
    }

    fn jump(&self) {
        self.clock.jumped_ns.fetch_add(2 * WINDOW.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Jumps past the window's end and loads until its keys are gone and its segments recycled.
    /// Gives the time until the keys were gone, and how many they were.
    fn load_expiring(&mut self) -> (Times, Duration, u64) {
        let before = self.store.stats();
        let keys = (before.entries as u64).saturating_sub(KEYS_LEFT_MAX);
        // Those that are being filled stay, too.
        let segments = (before.wal_bytes / SEGMENT_BYTES).saturating_sub(3);
        self.jump();
        let mut gone = None;
        let times = self.load(|store, elapsed| {
            let stats = store.stats();
            let purged = stats.purged - before.purged;
            if purged >= keys {
                gone.get_or_insert((elapsed, purged));
            }
            assert!(elapsed < Duration::from_secs(300), "expiry does not end: {stats:?}");
            gone.is_some() && stats.recycled - before.recycled >= segments
        });
        let (after, keys) = gone.expect("all are gone");
        (times, after, keys)
    }

    /// Waits until the maintenance thread has nothing more to do, and nothing is left to sync.
    fn settle(&self) -> StoreStats {
        self.store.flush().expect("a disk");
        let mut last = self.store.stats();
        loop {
            std::thread::sleep(Duration::from_millis(1500));
            let stats = self.store.stats();
            if (stats.recycled, stats.purged) == (last.recycled, last.purged) {
                return stats;
            }
            last = stats;
        }
    }
}

/// Claims and completes at a fixed rate; gives the times, and how many there were.
fn at_rate<T>(
    gap_ns: u64,
    mut claim: impl FnMut(u64) -> T,
    mut complete: impl FnMut(T),
    mut is_over: impl FnMut(Duration) -> bool,
) -> (Times, u64) {
    let (mut waits, mut calls) = (Histogram::new(), Histogram::new());
    let (mut raw_waits, mut raw_calls) = (Histogram::new(), Histogram::new());
    let (mut losses, mut lost_ns, mut behind_raw) = (Losses::new(), 0, 0);
    let (start, mut intended, mut count) = (Instant::now(), 0, 0);
    loop {
        let now = nanoseconds(start);
        if now < intended {
            // What was late is made up for, whatever the reason was.
            behind_raw = 0;
            if now - losses.looked_at > LOOK_AGAIN_NS && gap_ns > LOOK_NS {
                // The look is taken out of the time of the next claim, and not counted.
                losses.forget(now);
                intended = intended.max(nanoseconds(start));
            }
        }
        let begun = wait_until(start, intended);
        let claimed = claim(count);
        let ended = nanoseconds(start);
        let (mut wait, mut call) = (ended - intended, ended - begun);
        raw_waits.add(wait + behind_raw);
        raw_calls.add(call);
        if wait > STALL_NS && ended - losses.looked_at > STALL_NS {
            let lost = losses.take(ended).min(wait);
            lost_ns += lost;
            intended += lost;
            behind_raw += lost;
            // Before the call, or in it.
            let lost_in_call = if call > STALL_NS { lost.min(call) } else { 0 };
            call -= lost_in_call;
            wait = wait.saturating_sub(lost).max(call);
        }
        waits.add(wait);
        calls.add(call);
        complete(claimed);
        intended += gap_ns;
        count += 1;
        if count % LOOK_EVERY == 0 && is_over(start.elapsed()) {
            let lost = lost_ns as f64 / nanoseconds(start) as f64;
            let times = Times {
                waits: waits.summary(),
                calls: calls.summary(),
                raw_waits: raw_waits.summary(),
                raw_calls: raw_calls.summary(),
                lost,
            };
            return (times, count);
        }
    }
}

/// Gives the time at which the wait ended.
fn wait_until(start: Instant, ns: u64) -> u64 {
    loop {
        let now = nanoseconds(start);
        if now >= ns {
            return now;
        }
        std::hint::spin_loop();
    }
}

/// What the process has of memory that is not of files, by the kernel's count.
fn anonymous_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

const PHASES: [&str; 5] = ["no store", "full", "expiring", "empty", "syncing"];
const FULL: usize = 1;
const EXPIRING: usize = 2;

fn main() {
    let (entries, rounds) = (number("REFRAIN_ENTRIES", 1_000_000), number("REFRAIN_ROUNDS", 5));
    let directory = tempfile::tempdir().expect("a temporary directory");
    let clock = JumpClock { start: Instant::now(), jumped_ns: Arc::default() };
    let store = Options::new(directory.path())
        .durability(Durability::Buffered)
        .segment_bytes(SEGMENT_BYTES)
        .clock(clock.clone())
        .open()
        .expect("a new store");
    let policy = Policy::default().replay_ttl(WINDOW).dedupe_ttl(WINDOW);
    let space = store.define("bench", &policy).expect("a namespace");
    let mut bench = Bench { store, space, clock, next_key: 0, gap_ns: 0, work_ns: 0 };

    // The first round is not counted: it makes the data files, and tells the rate and how long the
    // others are to be.
    let mut time = Duration::from_secs(1);
    let mut results = [const { Vec::new() }; PHASES.len()];
    let mut purge_rates = Vec::new();
    for round in 0..=rounds {
        (0..entries).for_each(|_| bench.claim_and_complete());
        bench.settle();
        if round == 0 {
            let start = Instant::now();
            (0..500_000).for_each(|_| bench.claim_and_complete());
            bench.work_ns = nanoseconds(start) / 500_000;
            bench.gap_ns = bench.work_ns * 100 / number("REFRAIN_LOAD", 15).max(1);
            println!("{entries} keys a window, {:.0} claims a second", 1e9 / bench.gap_ns as f64);
        }
        let nothing = bench.load_nothing(time);
        let waits_before = bench.store.stats().room_waits;
        let full = bench.load(|_, elapsed| elapsed >= time);
        let waits_full = bench.store.stats().room_waits;
        bench.settle();
        let start = Instant::now();
        let (expiring, gone_after, purged) = bench.load_expiring();
        let expired = start.elapsed();
        let waits_expiring = bench.store.stats().room_waits;
        bench.settle();
        let empty = bench.load(|_, elapsed| elapsed >= time);
        let syncing = bench.load_syncing(time);
        // For the next window to begin with no key. Nobody is in the middle of anything: times that
        // the store measures across the jump would mean nothing.
        bench.settle();
        bench.jump();
        bench.settle();
        time = if round == 0 { expired } else { time };
        let rate = purged as f64 / gone_after.as_secs_f64() / 1e6;
        println!(
            "round {round}: {purged} keys gone after {:.2} s, {rate:.2} million a second, recycled \
             after {:.2} s; p99.9 {:.0} -> {:.0} us, longest {:.0} -> {:.0} us; {} -> {} calls \
             waited for room; {} MiB of anonymous memory, {} MiB of table",
            gone_after.as_secs_f64(),
            expired.as_secs_f64(),
            full.waits[2],
            expiring.waits[2],
            full.waits[3],
            expiring.waits[3],
            waits_full - waits_before,
            waits_expiring - waits_full,
            anonymous_bytes() >> 20,
            bench.store.stats().table_bytes >> 20,
        );
        if round > 0 {
            let times = [nothing, full, expiring, empty, syncing];
            results.iter_mut().zip(times).for_each(|(all, times)| all.push(times));
            purge_rates.push(rate);
        }
    }
    print(&results, bench.store.stats(), median(&mut purge_rates));
}

fn print(results: &[Vec<Times>], stats: StoreStats, purge_rate: f64) {
    let middle = |phase: usize, of: &dyn Fn(&Times) -> f64| {
        median(&mut results[phase].iter().map(of).collect::<Vec<_>>())
    };
    let of = |kind: usize| move |it: &Times| [it.waits, it.calls, it.raw_waits, it.raw_calls][kind];
    let titles = [
        "from the intended start",
        "the call alone",
        "from the intended start, by the clock",
        "the call alone, by the clock",
    ];
    for (kind, title) in titles.into_iter().enumerate() {
        println!("\nclaim, {title}: us, medians over {} rounds", results[0].len());
        println!("{:<12}{:>12}{:>12}{:>12}{:>12}", "", "p50", "p99", "p99.9", "longest");
        for (phase, name) in PHASES.iter().enumerate() {
            let times = [0, 1, 2, 3].map(|at| middle(phase, &|it| of(kind)(it)[at]));
            let lost = middle(phase, &|it| it.lost * 100.0);
            println!(
                "{name:<12}{}  no core {lost:.1} %",
                times.map(|it| format!("{it:>12.1}")).concat()
            );
        }
        // Within a round the machine is the same for both.
        let ratio = |at: usize| {
            let ratios = results[EXPIRING].iter().zip(&results[FULL]);
            let ratios = ratios.map(|(expiring, full)| of(kind)(expiring)[at] / of(kind)(full)[at]);
            let mut ratios: Vec<f64> = ratios.collect();
            let middle = median(&mut ratios);
            format!("{middle:.2} ({:.2} to {:.2})", ratios[0], ratios[ratios.len() - 1])
        };
        println!("expiring / full, round by round: p99.9 {}, longest {}", ratio(2), ratio(3));
    }
    println!(
        "\n{purge_rate:.2} million keys purged a second; a lock was held for at most {} keys and \
         {:.1} us; {} records copied",
        stats.purge_hold_keys_max,
        stats.purge_hold_max.as_secs_f64() * 1e6,
        stats.copied,
    );
}
