//! Which contestants are measured at what, and how often: the sections of a run.

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
    /// Of the sections in memory, and of the others.
    pub repeats: usize,
    pub repeats_slow: usize,
    /// The longest that a durable contestant claims, or completes.
    pub cap: f64,
    /// How long pairs are made for.
    pub seconds: f64,
    pub reads: usize,
    /// Arrivals of the latency run, and those of the closed loop that its rate is taken from.
    pub arrivals: usize,
    pub calibration: usize,
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
        cap: 2.0,
        seconds: 1.5,
        reads: 1_000_000,
        arrivals: 10_000_000,
        calibration: 2_000_000,
        common_rate: 150_000.0,
        only: vec![],
    };

    pub const QUICK: Self = Self {
        n: 100_000,
        large: 300_000,
        repeats: 3,
        repeats_slow: 2,
        cap: 0.5,
        seconds: 0.3,
        reads: 200_000,
        arrivals: 300_000,
        calibration: 200_000,
        common_rate: 100_000.0,
        only: vec![],
    };

    fn takes(&self, who: &Contestant) -> bool {
        who.is_refrain() || self.only.is_empty() || self.only.iter().any(|it| it == who.name)
    }
}

/// Heap to touch beforehand, for a fill that takes no page faults: more than a map needs for a key,
/// and more than refrain does, which keeps little of it in memory.
const HEAP_PER_KEY: usize = 450;
const HEAP_PER_KEY_IN_FILES: usize = 64;
/// Memory to touch and give back beforehand, for files that are filled.
const WARM_PER_KEY: usize = 500;
const WARM_MIN: usize = 256 << 20;

/// The maps that the aims are set against.
const MAPS: &[&str] = &["dashmap", "papaya", "scc", "sharded map"];

pub fn run(driver: &mut Driver, section: &str, scale: &Scale) -> Result<()> {
    match section {
        "memory" => speed(driver, "memory", scale.n, scale.repeats, scale, |_| true),
        "large" => speed(driver, "memory", scale.large, scale.repeats_slow, scale, |who| {
            who.is_refrain() || MAPS.contains(&who.name)
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

/// The same, and the buffered store again with its room ready.
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
    driver.interleave(&tasks, 1);
}

fn reopen(driver: &mut Driver, scale: &Scale) {
    let task = |who: &Contestant, section, n: usize, is_killed: bool| {
        let task = Task::new(section, "reopen", who).size(n, 1);
        let task = task.with("killed", f64::from(u8::from(is_killed)));
        let cap = if n > scale.n { 600.0 } else { scale.cap * 6.0 };
        task.with("cap", cap).with("warm", WARM_MIN as f64)
    };
    for repeat in driver.first_repeat..driver.first_repeat + scale.repeats_slow {
        for (section, is_killed) in [("reopen killed", true), ("reopen closed", false)] {
            for who in present(Mode::Kill) {
                // Without a durable transaction it keeps nothing, which is no time to compare.
                if who.name != "redb" || !is_killed {
                    driver.reopen(&task(who, section, scale.n, is_killed), repeat);
                }
                if who.is_refrain() {
                    driver.reopen(&task(who, section, scale.large, is_killed), repeat);
                }
            }
        }
    }
}

fn latency(driver: &mut Driver, scale: &Scale) -> Result<()> {
    let task = |who: &Contestant, section, n: usize, rate: f64| {
        let warm = (n * WARM_PER_KEY).max(WARM_MIN) as f64;
        let task = Task::new(section, "latency", who).size(n, 1).with("rate", rate);
        let heap = if who.mode == Mode::Memory { heap(who, n) } else { 0.0 };
        task.with("warm", warm).with("heap", heap)
    };
    let all = with_ready();
    let chosen = |who: &&&Contestant| match who.mode {
        Mode::Kill => true,
        _ => ["dashmap", "moka"].contains(&who.name),
    };
    let chosen: Vec<_> = all.iter().filter(chosen).collect();
    let refrain = all.iter().find(|it| it.is_refrain() && it.mode == Mode::Kill);
    let refrain = refrain.ok_or("refrain is not among its own contestants")?;
    let mut rates = vec![];
    for _ in 0..3 {
        rates.push(driver.ask(&task(refrain, "closed loop", scale.calibration, 0.0))?);
    }
    rates.sort_by(f64::total_cmp);
    let load = (0.7 * rates[1] / 1000.0).round() * 1000.0;
    for (section, rate) in [("latency 70 %", load), ("latency common", scale.common_rate)] {
        let tasks: Vec<_> =
            chosen.iter().map(|who| task(who, section, scale.arrivals, rate)).collect();
        driver.interleave(&tasks, 1);
    }
    Ok(())
}
