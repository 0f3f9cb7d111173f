//! The maintenance thread keeps out of the way. Alone in its process, to tell its thread apart.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

use std::fs;
use std::time::{Duration, Instant};

use refrain::{Durability, Once, Options};

/// How often the store's thread went to sleep so far.
fn sleeps() -> u64 {
    loop {
        if let Some(sleeps) = try_sleeps() {
            return sleeps;
        }
        // It has begun, and has no name yet.
        std::thread::yield_now();
    }
}

fn try_sleeps() -> Option<u64> {
    for thread in fs::read_dir("/proc/self/task").unwrap() {
        let path = thread.unwrap().path();
        if fs::read_to_string(path.join("comm")).unwrap().trim() == "refrain" {
            let status = fs::read_to_string(path.join("status")).unwrap();
            let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches"));
            return Some(line.unwrap().split_whitespace().nth(1).unwrap().parse().unwrap());
        }
    }
    None
}

#[test]
fn changes_do_not_wake_the_thread_one_by_one() {
    let directory = tempfile::tempdir().unwrap();
    let on_disk = |name: &str, durability: Durability| {
        Options::new(directory.path().join(name)).durability(durability)
    };
    // With what is not durable yet there is always something to do at the next tick.
    for (options, count) in [
        (Options::in_memory(), 300_000_u32),
        (on_disk("buffered", Durability::Buffered), 300_000),
        (on_disk("sync", Durability::Sync), 2_000),
    ] {
        let store = options.open().unwrap();
        let orders = store.namespace("orders").unwrap();
        let before = sleeps();
        let start = Instant::now();
        for key in 0..count {
            assert!(matches!(orders.once(key.to_le_bytes(), None).unwrap(), Once::First(_)));
        }
        // It looks around every 5 ms, and sleeps once more when there is nothing to do; its locks may
        // be held by others a few times, and the disk may let it wait.
        let ticks = start.elapsed().as_millis() as u64 / 5 + 1;
        let slept = sleeps() - before;
        println!("{slept} times in {ticks} ticks");
        assert!(slept <= 3 * ticks + 200, "{slept} times in {ticks} ticks");
    }
    a_change_after_a_quiet_time_is_looked_after(&on_disk("quiet", Durability::Buffered));
}

/// Part of the test above, which has the only store that is open then.
fn a_change_after_a_quiet_time_is_looked_after(options: &Options) {
    let store = options.clone().open().unwrap();
    let orders = store.namespace("orders").unwrap();
    for key in ["first", "second"] {
        // It has gone to sleep with nothing left to do.
        let mut slept = sleeps();
        loop {
            std::thread::sleep(Duration::from_millis(1500));
            let again = sleeps();
            if std::mem::replace(&mut slept, again) == again {
                break;
            }
        }
        let rounds = store.stats().rounds;
        assert!(matches!(orders.once(key, None).unwrap(), Once::First(_)));
        // Made durable after a second of idleness.
        let start = Instant::now();
        while store.stats().rounds == rounds {
            assert!(start.elapsed() < Duration::from_secs(120), "nobody looks after {key}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
