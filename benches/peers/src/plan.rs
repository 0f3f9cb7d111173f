//! Which contestants are measured at what, and how often: the sections of a run.
//!
//! Every section has five repeats. One of `latency` is eight fills of ten million keys at a given rate,
//! some seven minutes. Peers that are opened again at ten million keys are so in one repeat: filling
//! them takes a quarter of an hour. What is left out is said where it would be.

use crate::contestants::{CONTESTANTS, Contestant, present};
use crate::driver::{Driver, Task};
use crate::store::{Mode, Result};

/// The sections by name, in the order in which they run.
pub const SECTIONS: &[&str] =
    &["memory", "large", "durable", "sync", "hot", "footprint", "reopen", "latency"];

/// How much is done.
#[derive(Clone)]
pub struct Scale {
    pub n: usize,
    pub large: usize,
    /// Of the sections in memory, of the others, and of those that take longest.
    pub repeats: usize,
    pub repeats_slow: usize,
    pub repeats_long: usize,
    /// Repeats in which peers are opened again at the large size: filling them takes minutes.
    pub repeats_refilled: usize,
    /// The longest that a durable contestant claims, or completes.
    pub cap: f64,
    /// How long pairs are made for.
    pub seconds: f64,
    pub reads: usize,
    /// Arrivals of the latency run.
    pub arrivals: usize,
    /// Pairs, and seconds, of the closed loop that its rate is taken from: no less than either, and
    /// than there are arrivals.
    pub calibration: usize,
    pub calibration_seconds: f64,
    /// The rate that is the same for every run of the harness.
    pub common_rate: f64,
    /// Of those in memory, only these peers, where it isn't empty.
    pub only: Vec<String>,
}

impl Scale {
    pub const FULL: Self = Self {
        n: 1_000_000,
        large: 10_000_000,
        repeats: 5,
        repeats_slow: 5,
        repeats_long: 5,
        repeats_refilled: 1,
        cap: 2.0,
        seconds: 1.5,
        reads: 1_000_000,
        arrivals: 10_000_000,
        calibration: 10_000_000,
        calibration_seconds: 10.0,
        common_rate: 150_000.0,
        only: vec![],
    };

    pub const QUICK: Self = Self {
        n: 100_000,
        large: 300_000,
        repeats: 3,
        repeats_slow: 2,
        repeats_long: 1,
        repeats_refilled: 1,
        cap: 0.5,
        seconds: 0.3,
        reads: 200_000,
        arrivals: 300_000,
        calibration: 300_000,
        calibration_seconds: 1.0,
        common_rate: 100_000.0,
        only: vec![],
    };

    /// The number of repeats of all sections.
    pub fn repeat(&mut self, repeats: usize) {
        (self.repeats, self.repeats_slow, self.repeats_long) = (repeats, repeats, repeats);
    }

    fn takes(&self, who: &Contestant) -> bool {
        who.is_refrain() || self.only.is_empty() || self.names(who)
    }

    fn names(&self, who: &Contestant) -> bool {
        self.only.iter().any(|it| it == plain_name(who))
    }
}

/// The name without what says that its room was made beforehand.
fn plain_name(who: &Contestant) -> &str {
    who.name.strip_suffix(" ready").unwrap_or(who.name)
}

/// Heap to touch beforehand, for a fill that takes no page faults: more than a map needs for a key,
/// and more than refrain does, which keeps little of it in memory.
const HEAP_PER_KEY: usize = 450;
const HEAP_PER_KEY_IN_FILES: usize = 64;
/// Memory to touch and give back beforehand, for files that are filled: more than refrain's take,
/// which is 490 to 630 bytes a key.
const WARM_PER_KEY: usize = 700;
const WARM_MIN: usize = 256 << 20;

/// The maps that the aims are set against. Of those in memory only these are measured at the large
/// size, with and without their room made: moka takes half a minute and more for a fill there, and
/// quick_cache is behind dashmap at everything at the small one. `--only` lets them in.
const MAPS: &[&str] = &["dashmap", "papaya", "scc", "sharded map"];

/// The peers that are opened again at the large size: those that read what they kept. LMDB, redb
/// and SQLite only open a file, in milliseconds, and redb, SQLite and Redis would take too long to
/// fill.
const REFILLED: &[&str] = &["rocksdb", "fjall", "sled"];

/// Those in memory that latency is measured of: the plainest map, and the one that expires.
const LATENCY: &[&str] = &["dashmap", "moka"];

pub fn run(driver: &mut Driver, section: &str, scale: &Scale) -> Result<()> {
    match section {
        "memory" => speed(driver, "memory", scale.n, scale.repeats, scale, |_| true),
        "large" => speed(driver, "memory", scale.large, scale.repeats_slow, scale, |who| {
            who.is_refrain() || MAPS.contains(&plain_name(who)) || scale.names(who)
        }),
        "durable" => durable(driver, scale),
        "sync" => sync(driver, scale),
        "hot" => hot(driver, scale),
        "footprint" => footprint(driver, scale),
        "reopen" => reopen(driver, scale),
        "latency" => return latency(driver, scale),
        other => return Err(format!("no section is called {other}").into()),
    }
    Ok(())
}

/// Those in memory, and refrain's buffered store.
fn in_memory_and_buffered() -> Vec<&'static Contestant> {
    let buffered = present(Mode::Kill).into_iter().filter(|it| it.is_refrain());
    present(Mode::Memory).into_iter().chain(buffered).collect()
}

/// The same, and again those that are opened with their room made: the buffered store, and maps.
fn with_ready() -> Vec<&'static Contestant> {
    let ready = CONTESTANTS.iter().filter(|it| it.is_ready());
    in_memory_and_buffered().into_iter().chain(ready).collect()
}

fn heap(who: &Contestant, n: usize) -> f64 {
    let each = if who.mode == Mode::Memory { HEAP_PER_KEY } else { HEAP_PER_KEY_IN_FILES };
    (n * each) as f64
}

fn speed_task(section: &'static str, who: &Contestant, n: usize, scale: &Scale) -> Task {
    let warm = (n * WARM_PER_KEY).max(WARM_MIN);
    Task::new(section, "speed", who)
        .size(n, 1)
        .with("reads", scale.reads as f64)
        // Of each thread.
        .with("zipf", (2 * scale.reads) as f64)
        .with("warm", warm as f64)
}

fn speed(
    driver: &mut Driver,
    section: &'static str,
    n: usize,
    repeats: usize,
    scale: &Scale,
    is_in: impl Fn(&Contestant) -> bool,
) {
    let all = with_ready();
    // The fill in batches is one more: not at a size where it would take minutes.
    let batches = f64::from(u8::from(n <= scale.n));
    let mut tasks = vec![];
    for threads in [1, 2] {
        for who in all.iter().filter(|who| is_in(who) && scale.takes(who)) {
            let task = speed_task(section, who, n, scale).size(n, threads);
            let task = task.with("heap", heap(who, n)).with("cap", 0.0);
            tasks.push(task.with("batches", batches));
        }
    }
    driver.interleave(&tasks, repeats);
}

/// Not at the large size: only refrain, LMDB and RocksDB could claim ten million keys in the time
/// that a run has; the others would be loaded, and their W1 and W2 be those of a smaller store.
fn durable(driver: &mut Driver, scale: &Scale) {
    let mut tasks = vec![];
    for threads in [1, 2] {
        for who in present(Mode::Kill) {
            let task = speed_task("durable", who, scale.n, scale).size(scale.n, threads);
            tasks.push(task.with("heap", 0.0).with("cap", scale.cap).with("batches", 0.0));
        }
    }
    driver.interleave(&tasks, scale.repeats_slow);
}

fn sync(driver: &mut Driver, scale: &Scale) {
    let Some(refrain) = present(Mode::Power).into_iter().find(|it| it.is_refrain()) else {
        return;
    };
    let named = |job: &'static str, threads| {
        let task = Task { store: job.to_owned(), ..Task::new("sync", job, refrain) };
        task.size(1, threads).with("seconds", scale.seconds)
    };
    let mut tasks = vec![named("fdatasync", 1)];
    tasks.push(named("in flight", 2).with("commits", 64.0));
    for threads in [1, 2, 16, 64] {
        for who in present(Mode::Power) {
            let task = Task::new("sync", "pairs", who).size(1, threads);
            tasks.push(task.with("seconds", scale.seconds));
        }
    }
    driver.interleave(&tasks, scale.repeats_slow);
}

fn hot(driver: &mut Driver, scale: &Scale) {
    let refrain = in_memory_and_buffered().into_iter().filter(|it| it.is_refrain());
    let mut tasks = vec![];
    for who in refrain {
        for threads in [1, 2] {
            let task = Task::new("hot", "hot", who).size(1, threads);
            tasks.push(task.with("seconds", scale.seconds / 2.0));
        }
        if who.mode == Mode::Memory {
            for threads in [1, 2] {
                let task = Task::new("hot", "hash", who).size(1, threads);
                let task = Task { store: "hash".to_owned(), ..task };
                tasks.push(task.with("seconds", scale.seconds / 2.0));
            }
        }
    }
    driver.interleave(&tasks, scale.repeats);
}

fn footprint(driver: &mut Driver, scale: &Scale) {
    let task = |who: &Contestant, n: usize| {
        let warm = (n * WARM_PER_KEY).max(WARM_MIN);
        let task = Task::new("footprint", "footprint", who).size(n, 1).purging();
        let is_loaded = who.mode == Mode::Kill && !who.is_refrain();
        task.with("warm", warm as f64).with("load", f64::from(u8::from(is_loaded)))
    };
    let mut tasks = vec![];
    for who in present(Mode::Memory).into_iter().chain(present(Mode::Kill)) {
        tasks.push(task(who, scale.n));
    }
    for who in in_memory_and_buffered() {
        if who.is_refrain() || who.name == "dashmap" {
            tasks.push(task(who, scale.large));
        }
    }
    driver.interleave(&tasks, scale.repeats_long);
}

fn reopen(driver: &mut Driver, scale: &Scale) {
    let task = |who: &Contestant, section, n: usize, is_killed: bool| {
        let task = Task::new(section, "reopen", who).size(n, 1);
        let task = task.with("killed", f64::from(u8::from(is_killed)));
        // Who is killed is killed with all keys acknowledged if it takes these minutes. Who closes
        // is loaded when its time is over; refrain is not, whose fill is no slower.
        let has_minutes = n > scale.n && (is_killed || who.is_refrain());
        let cap = if has_minutes { 600.0 } else { scale.cap * 6.0 };
        task.with("cap", cap).with("warm", WARM_MIN as f64)
    };
    let mut tasks = vec![];
    for (section, is_killed) in [("reopen killed", true), ("reopen closed", false)] {
        for who in present(Mode::Kill) {
            // Without a durable transaction it keeps nothing, which is no time to compare.
            if who.name != "redb" || !is_killed {
                tasks.push(task(who, section, scale.n, is_killed));
            }
            if who.is_refrain() {
                tasks.push(task(who, section, scale.large, is_killed));
            } else if REFILLED.contains(&who.name) {
                let task = task(who, section, scale.large, is_killed);
                tasks.push(task.at_most(scale.repeats_refilled));
            }
        }
    }
    driver.interleave(&tasks, scale.repeats_slow);
}

/// Of every mode of refrain the buffered one, and two that are in memory.
fn latency(driver: &mut Driver, scale: &Scale) -> Result<()> {
    let task = |who: &Contestant, section, n: usize, rate: f64| {
        let warm = (n * WARM_PER_KEY).max(WARM_MIN) as f64;
        let task = Task::new(section, "latency", who).size(n, 1).with("rate", rate);
        task.with("warm", warm).with("heap", heap(who, n))
    };
    let all = with_ready();
    let is_chosen = |who: &&&Contestant| who.mode == Mode::Kill || LATENCY.contains(&who.name);
    let chosen: Vec<_> = all.iter().filter(is_chosen).collect();
    let refrain = all.iter().find(|it| it.is_refrain() && it.mode == Mode::Kill);
    let refrain = refrain.ok_or("refrain is not among its own contestants")?;
    // The work that is measured, and as much of it.
    let calibration = scale.calibration.max(scale.arrivals);
    let closed_loop = task(refrain, "closed loop", calibration, 0.0);
    let closed_loop = closed_loop.with("seconds", scale.calibration_seconds);
    let (first, mut rates) = (driver.first_repeat, vec![]);
    for repeat in first..first + 3 {
        rates.extend(driver.ask(&closed_loop, repeat));
    }
    rates.sort_by(f64::total_cmp);
    // If none of them told one, that has been noted, and the common rate is left.
    let load = rates.get(rates.len() / 2).map(|rate| (0.7 * rate / 1000.0).round() * 1000.0);
    let load = load.map(|rate| ("latency 70 %", rate));
    let mut tasks = vec![];
    for (section, rate) in load.into_iter().chain([("latency common", scale.common_rate)]) {
        tasks.extend(chosen.iter().map(|who| task(who, section, scale.arrivals, rate)));
    }
    driver.interleave(&tasks, scale.repeats_long);
    Ok(())
}
