//! What reaches the device for each durable record: bytes and flushes, in `Sync` mode.
//!
//! Threads claim and complete keys, each waiting for its round; once on a new store, whose segments
//! are filled for the first time, and once on the same store closed and opened again. Bytes are those
//! that the kernel wrote to block devices for this process (`/proc/self/io`), and, where the file
//! system's device is known, all that the device wrote and was flushed meanwhile, also for others
//! (`/sys/dev/block`). `device DIRECTORY [KEYS]`.
#![allow(missing_docs, reason = "a program")]

#[path = "../../../common/keys.rs"]
mod keys;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use refrain::{Durability, Options, Store};

use keys::{BODY, key};

/// What has been written so far.
#[derive(Clone, Copy, Default)]
struct Written {
    /// By this process, as the kernel accounts it.
    own_bytes: u64,
    device_bytes: u64,
    device_writes: u64,
    device_flushes: u64,
    rounds: u64,
}

impl Written {
    fn read(store: &Store, directory: &Path) -> Self {
        let io = fs::read_to_string("/proc/self/io").unwrap_or_default();
        let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
        let own_bytes = line.and_then(|bytes| bytes.parse().ok()).unwrap_or(0);
        let device = fs::metadata(directory).map_or(0, |it| it.dev());
        let (major, minor) = (device >> 8 & 0xfff, device & 0xff | device >> 12 & 0xfff00);
        let stat = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat"));
        let stat = stat.unwrap_or_default();
        let fields: Vec<u64> = stat.split_whitespace().filter_map(|it| it.parse().ok()).collect();
        let field = |at: usize| fields.get(at).copied().unwrap_or(0);
        Self {
            own_bytes,
            device_writes: field(4),
            device_bytes: field(6) * 512,
            device_flushes: field(15),
            rounds: store.stats().rounds,
        }
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let place = arguments.next().expect("a directory on the device");
    let keys: u64 = arguments.next().map_or(4096, |text| text.parse().expect("a number"));
    println!(
        "{:<10}{:>8}{:>10}{:>10}{:>12}{:>14}{:>14}{:>12}{:>12}",
        "store",
        "threads",
        "records",
        "a second",
        "rounds/rec",
        "own bytes/rec",
        "dev bytes/rec",
        "writes/rec",
        "flushes/rec"
    );
    let mut next = 0;
    for threads in [1, 16, 64] {
        let directory = tempfile::tempdir_in(&place).expect("a temporary directory");
        for kind in ["new", "reopened"] {
            let options = Options::new(directory.path()).durability(Durability::Sync);
            let store = options.open().expect("a store");
            measure(&store, directory.path(), kind, threads, keys, next);
            next += keys;
            store.close().expect("nothing is held");
        }
    }
}

/// Claims and completes `keys` keys on so many threads, and prints what that wrote.
fn measure(store: &Store, directory: &Path, kind: &str, threads: u64, keys: u64, first: u64) {
    let space = store.namespace("device").expect("a namespace");
    store.flush().expect("a disk");
    let (before, start) = (Written::read(store, directory), Instant::now());
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let space = &space;
            scope.spawn(move || {
                for n in (thread..keys).step_by(threads as usize) {
                    let claim = space.claim(key(first + n), None).expect("room");
                    claim.acquired().expect("a fresh key").complete(BODY).expect("a live lease");
                }
            });
        }
    });
    let (time, after) = (start.elapsed(), Written::read(store, directory));
    // A claim and a completion.
    let records = (2 * keys) as f64;
    let each = |of: fn(&Written) -> u64| (of(&after) - of(&before)) as f64 / records;
    println!(
        "{kind:<10}{threads:>8}{records:>10}{:>10.0}{:>12.3}{:>14.0}{:>14.0}{:>12.3}{:>12.3}",
        records / time.as_secs_f64(),
        each(|it| it.rounds),
        each(|it| it.own_bytes),
        each(|it| it.device_bytes),
        each(|it| it.device_writes),
        each(|it| it.device_flushes),
    );
}
