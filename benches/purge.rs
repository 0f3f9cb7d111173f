//! Do claims wait while a large window expires?
//!
//! One thread claims and completes fresh keys at a fixed rate, `REFRAIN_LOAD` percent (15) of what
//! it can do for a moment, and each claim is timed twice: the call alone, and from when it was to
//! start, so that a stall counts for everybody who would have called meanwhile. Time in which the
//! thread was ready to run and the machine had no core for it, or the host of a virtual machine none for the
//! core ("steal", in hundredths of a second), since a moment before the stall, counts for nobody: the load stands
//! still. Not so what the store's own thread ran meanwhile. The figures without this are told, too. The
//! maintenance thread runs as it always does, in `Buffered` mode.
//!
//! In each of `REFRAIN_ROUNDS` rounds a window of `REFRAIN_ENTRIES` completed keys expires, in twenty parts:
//! before each the clock jumps by a minute and the load runs for as long as the part before took, with
//! nothing due (*quiet*), then the clock jumps by another minute and it runs on until the keys of the part are gone and their segments written anew (*expiring*).
//! So both are measured side by side, and what the machine does meets both: between two stretches of half a
//! minute, neither with expiry, p99.9 was seen to differ by more than two times. `no store` is the same rate
//! of claims that are made of waiting alone, as often; `syncing` the load while another thread flushes all
//! the time, at the end of a round.
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
/// Parts of a window, and the time between two of them, by the store's clock.
const PARTS: u64 = 20;
const APART: Duration = Duration::from_secs(120);
/// How long what was emptied waits for rounds: so long the load goes on.
const ROUNDS_TAKE: Duration = Duration::from_millis(1000);
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

/// What was measured of a load: from when each claim was to start, and the calls alone, each without what
/// was lost and as the clock says; and the time in which there was no core for it.
struct Times {
    waits: Histogram,
    calls: Histogram,
    raw_waits: Histogram,
    raw_calls: Histogram,
    lost_ns: u64,
    ns: u64,
}

impl Times {
    fn new() -> Self {
        let [waits, calls, raw_waits, raw_calls] = [(); 4].map(|()| Histogram::new());
        Self { waits, calls, raw_waits, raw_calls, lost_ns: 0, ns: 0 }
    }

    fn summary(&self) -> Summary {
        let of = [&self.waits, &self.calls, &self.raw_waits, &self.raw_calls];
        Summary { of: of.map(Histogram::summary), lost: self.lost_ns as f64 / self.ns as f64 }
    }
}

/// The same in microseconds, and the share that was lost.
struct Summary {
    of: [[f64; 4]; 4],
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

    fn load(&mut self, times: &mut Times, mut is_over: impl FnMut(&Store, Duration) -> bool) {
        let (first_key, store, space) = (self.next_key, &self.store, &self.space);
        let claim = |n| {
            let claim = space.claim(key(first_key + n), None).expect("room");
            claim.acquired().expect("a fresh key")
        };
        let complete = |lease: Lease| {
            lease.complete(BODY).expect("a live lease");
        };
        let over = |elapsed: Duration| is_over(store, elapsed);
        self.next_key += at_rate(times, self.gap_ns, claim, complete, over);
    }

    /// The same, without a store: half of the work is the claim, half the completion.
    fn load_nothing(&self, times: &mut Times, time: Duration) {
        let start = Instant::now();
        let spin = || wait_until(start, nanoseconds(start) + self.work_ns / 2);
        let complete = |_| {
            spin();
        };
        at_rate(times, self.gap_ns, |_| spin(), complete, |elapsed| elapsed >= time);
    }

    /// Loads while another thread flushes all the time.
    fn load_syncing(&mut self, times: &mut Times, time: Duration) {
        let (store, is_over) = (self.store.clone(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    store.flush().expect("a disk");
                }
            });
            self.load(times, |_, elapsed| elapsed >= time);
            is_over.store(true, Ordering::Relaxed);
        });
    }

    fn jump(&self, by: Duration) {
        self.clock.jumped_ns.fetch_add(by.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Jumps to a time of the store's monotonic clock that has not come yet.
    fn jump_to(&self, time: Duration) {
        self.jump(time.saturating_sub(Duration::from_nanos(self.clock.monotonic_ns())));
    }

    /// Fills a window, part by part; gives the ends of the parts.
    fn fill(&mut self, entries: u64) -> Vec<Duration> {
        let fill = |_| {
            (0..entries / PARTS).for_each(|_| self.claim_and_complete());
            let end = Duration::from_nanos(self.clock.monotonic_ns()) + WINDOW;
            self.jump(APART);
            end
        };
        (0..PARTS).map(fill).collect()
    }

    /// Loads, with and without expiry by turns, until the whole window is gone. Gives how many keys went,
    /// and in how much time.
    fn expire(&mut self, ends: &[Duration], entries: u64, all: &mut [Times]) -> (u64, Duration) {
        // To before the first part's end.
        self.jump_to(ends[0] - APART);
        self.settle();
        let before = self.store.stats().purged;
        let (mut time, mut taken) = (Duration::from_secs(1), Duration::ZERO);
        for (part, end) in (1..).zip(ends) {
            self.load_nothing(&mut all[NOTHING], time / 4);
            // A jump of its own: a store whose clock jumps has something to sync and to seal.
            self.jump_to(*end - APART / 2);
            self.load(&mut all[QUIET], |_, elapsed| elapsed >= time);
            // The segment that is filled from one part to the next goes with the next.
            let due = (entries / PARTS * part).saturating_sub(KEYS_LEFT_MAX);
            self.jump_to(*end + Duration::from_secs(2));
            let mut gone = None;
            let start = Instant::now();
            self.load(&mut all[EXPIRING], |store, elapsed| {
                let stats = store.stats();
                if stats.purged - before >= due {
                    gone.get_or_insert(elapsed);
                }
                assert!(elapsed < Duration::from_secs(300), "expiry does not end: {stats:?}");
                gone.is_some_and(|gone| elapsed >= gone + ROUNDS_TAKE)
            });
            time = start.elapsed();
            taken += gone.unwrap_or_default();
        }
        (self.store.stats().purged - before, taken)
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

/// Claims and completes at a fixed rate; gives how often.
fn at_rate<T>(
    times: &mut Times,
    gap_ns: u64,
    mut claim: impl FnMut(u64) -> T,
    mut complete: impl FnMut(T),
    mut is_over: impl FnMut(Duration) -> bool,
) -> u64 {
    let (mut losses, mut behind_raw) = (Losses::new(), 0);
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
        times.raw_waits.add(wait + behind_raw);
        times.raw_calls.add(call);
        if wait > STALL_NS && ended - losses.looked_at > STALL_NS {
            let lost = losses.take(ended).min(wait);
            times.lost_ns += lost;
            intended += lost;
            behind_raw += lost;
            // Before the call, or in it.
            let lost_in_call = if call > STALL_NS { lost.min(call) } else { 0 };
            call -= lost_in_call;
            wait = wait.saturating_sub(lost).max(call);
        }
        times.waits.add(wait);
        times.calls.add(call);
        complete(claimed);
        intended += gap_ns;
        count += 1;
        if count % LOOK_EVERY == 0 && is_over(start.elapsed()) {
            times.ns += nanoseconds(start);
            return count;
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

const PHASES: [&str; 4] = ["no store", "quiet", "expiring", "syncing"];
const NOTHING: usize = 0;
const QUIET: usize = 1;
const EXPIRING: usize = 2;
const SYNCING: usize = 3;

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

    // The first round is not counted: it makes the data files, and tells the rate.
    let (mut results, mut rates) = ([const { Vec::new() }; PHASES.len()], Vec::new());
    for round in 0..=rounds {
        let ends = bench.fill(entries);
        if round == 0 {
            let start = Instant::now();
            (0..500_000).for_each(|_| bench.claim_and_complete());
            bench.work_ns = nanoseconds(start) / 500_000;
            bench.gap_ns = bench.work_ns * 100 / number("REFRAIN_LOAD", 15).max(1);
            println!("{entries} keys a window, {:.0} claims a second", 1e9 / bench.gap_ns as f64);
        }
        let mut times = PHASES.map(|_| Times::new());
        let waits_before = bench.store.stats().room_waits;
        let (purged, taken) = bench.expire(&ends, entries, &mut times);
        bench.load_syncing(&mut times[SYNCING], Duration::from_secs(5));
        let stats = bench.settle();
        // For the next window to begin with no key. Nobody is in the middle of anything: times that
        // the store measures across the jump would mean nothing.
        bench.jump(2 * WINDOW);
        bench.settle();
        let rate = purged as f64 / taken.as_secs_f64() / 1e6;
        let times = times.map(|times| times.summary());
        let [quiet, expiring] = [QUIET, EXPIRING].map(|phase| times[phase].of);
        println!(
            "round {round}: {purged} keys gone in {:.1} s, {rate:.2} million a second; p99.9 of the \
             call {:.1} -> {:.1} us, from the intended start {:.0} -> {:.0} us, longest {:.0} -> \
             {:.0} us; {} calls waited for room; {} MiB of anonymous memory, {} MiB of table",
            taken.as_secs_f64(),
            quiet[1][2],
            expiring[1][2],
            quiet[0][2],
            expiring[0][2],
            quiet[0][3],
            expiring[0][3],
            stats.room_waits - waits_before,
            anonymous_bytes() >> 20,
            stats.table_bytes >> 20,
        );
        if round > 0 {
            results.iter_mut().zip(times).for_each(|(all, times)| all.push(times));
            rates.push(rate);
        }
    }
    print(&results, &bench.store.stats(), median(&mut rates));
}

fn print(results: &[Vec<Summary>], stats: &StoreStats, purge_rate: f64) {
    let middle = |phase: usize, of: &dyn Fn(&Summary) -> f64| {
        median(&mut results[phase].iter().map(of).collect::<Vec<_>>())
    };
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
            let times = [0, 1, 2, 3].map(|at| middle(phase, &|it| it.of[kind][at]));
            let lost = middle(phase, &|it| it.lost * 100.0);
            println!(
                "{name:<12}{}  no core {lost:.1} %",
                times.map(|it| format!("{it:>12.1}")).concat()
            );
        }
        // Within a round the machine is the same for both.
        let ratio = |at: usize| {
            let ratios = results[EXPIRING].iter().zip(&results[QUIET]);
            let ratios = ratios.map(|(expiring, quiet)| expiring.of[kind][at] / quiet.of[kind][at]);
            let mut ratios: Vec<f64> = ratios.collect();
            let middle = median(&mut ratios);
            format!("{middle:.2} ({:.2} to {:.2})", ratios[0], ratios[ratios.len() - 1])
        };
        println!("expiring / quiet, round by round: p99.9 {}, longest {}", ratio(2), ratio(3));
    }
    // How long a lock was held means nothing when the clock has jumped meanwhile.
    println!(
        "\n{purge_rate:.2} million keys purged a second; a lock was held for at most {} keys; {} records \
         copied",
        stats.purge_hold_keys_max, stats.copied,
    );
}
