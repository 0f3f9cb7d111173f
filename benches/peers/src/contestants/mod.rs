//! The contestants: one module each, and the list of them.
//!
//! A new one needs a module, a line in [`CONTESTANTS`] and one in [`run`].

mod dashmap;
mod fjall;
#[cfg(feature = "lmdb")]
mod lmdb;
mod locks;
mod map;
mod moka;
mod papaya;
mod quick_cache;
mod redb;
#[cfg(feature = "redis")]
mod redis;
pub mod refrain;
#[cfg(feature = "rocksdb")]
mod rocksdb;
mod scc;
mod sharded;
mod sled;
#[cfg(feature = "sqlite")]
mod sqlite;
mod value;

use map::MapStore;

use crate::store::{Mode, Result, Store};

/// What the tables say of a contestant.
pub struct Contestant {
    pub name: &'static str,
    pub mode: Mode,
    /// What a call that has returned survives.
    pub survives: &'static str,
    /// Whether it was built in, and what it needs is installed.
    is_here: fn() -> bool,
}

impl Contestant {
    const fn new(name: &'static str, mode: Mode, survives: &'static str) -> Self {
        Self { name, mode, survives, is_here: || true }
    }

    const fn if_here(mut self, is_here: fn() -> bool) -> Self {
        self.is_here = is_here;
        self
    }

    pub fn is_refrain(&self) -> bool {
        self.name.starts_with("refrain")
    }

    /// Whether it is another one again, opened with room for the keys of the run.
    pub fn is_ready(&self) -> bool {
        is_ready(self.name)
    }
}

/// refrain's buffered store again, with its room ready. Beside the maps only.
pub const READY: &str = "refrain ready";

/// Ends the names of those that are opened with room for the keys of the run; without it, the name
/// is that of the same contestant growing from empty.
const READY_END: &str = " ready";

/// Whether the contestant of this name is opened with room for the keys of the run.
pub fn is_ready(name: &str) -> bool {
    name.ends_with(READY_END)
}

const NOTHING: &str = "nothing";
const KILL: &str = "kill";
const POWER: &str = "power loss";
/// It writes out by `sync_file_range`, which flushes no cache of the disk.
const WEAK: &str = "power loss, if the disk has no cache";

const fn with_rocksdb() -> bool {
    cfg!(feature = "rocksdb")
}

const fn with_sqlite() -> bool {
    cfg!(feature = "sqlite")
}

const fn with_lmdb() -> bool {
    cfg!(feature = "lmdb")
}

#[cfg(feature = "redis")]
fn with_redis() -> bool {
    redis::Redis::is_installed()
}

#[cfg(not(feature = "redis"))]
const fn with_redis() -> bool {
    false
}

/// Everybody. The name and the mode identify a contestant.
pub const CONTESTANTS: &[Contestant] = &[
    Contestant::new("refrain", Mode::Memory, NOTHING),
    Contestant::new("dashmap", Mode::Memory, NOTHING),
    Contestant::new("papaya", Mode::Memory, NOTHING),
    Contestant::new("scc", Mode::Memory, NOTHING),
    Contestant::new("sharded map", Mode::Memory, NOTHING),
    Contestant::new("moka", Mode::Memory, NOTHING),
    Contestant::new("quick_cache", Mode::Memory, NOTHING),
    Contestant::new("refrain", Mode::Kill, KILL),
    Contestant::new(READY, Mode::Kill, KILL),
    Contestant::new("rocksdb", Mode::Kill, KILL).if_here(with_rocksdb),
    Contestant::new("fjall", Mode::Kill, KILL),
    Contestant::new("redb", Mode::Kill, "nothing since the last durable transaction"),
    Contestant::new("lmdb", Mode::Kill, KILL).if_here(with_lmdb),
    Contestant::new("sled", Mode::Kill, "kill, but for the last 500 ms"),
    Contestant::new("sqlite", Mode::Kill, KILL).if_here(with_sqlite),
    Contestant::new("redis", Mode::Kill, KILL).if_here(with_redis),
    Contestant::new("refrain", Mode::Power, POWER),
    Contestant::new("rocksdb", Mode::Power, POWER).if_here(with_rocksdb),
    Contestant::new("fjall", Mode::Power, POWER),
    Contestant::new("redb", Mode::Power, POWER),
    Contestant::new("lmdb", Mode::Power, POWER).if_here(with_lmdb),
    Contestant::new("sled", Mode::Power, WEAK),
    Contestant::new("sqlite", Mode::Power, POWER).if_here(with_sqlite),
    Contestant::new("redis", Mode::Power, POWER).if_here(with_redis),
    // The maps with room, after refrain with room.
    Contestant::new("dashmap ready", Mode::Memory, NOTHING),
    Contestant::new("papaya ready", Mode::Memory, NOTHING),
    Contestant::new("scc ready", Mode::Memory, NOTHING),
    Contestant::new("sharded map ready", Mode::Memory, NOTHING),
];

/// Those of a mode that can take part, each once: growing from empty.
pub fn present(mode: Mode) -> Vec<&'static Contestant> {
    let is_in = |it: &&Contestant| it.mode == mode && !it.is_ready() && (it.is_here)();
    CONTESTANTS.iter().filter(is_in).collect()
}

/// A job that is done with one contestant, whichever it is.
pub trait Job {
    fn run<S: Store>(&self) -> Result<()>;
}

/// Does a job with the contestant of this name.
pub fn run(name: &str, job: &impl Job) -> Result<()> {
    match name.strip_suffix(READY_END).unwrap_or(name) {
        "refrain" => job.run::<refrain::Refrain>(),
        "dashmap" => job.run::<MapStore<dashmap::Dash>>(),
        "papaya" => job.run::<MapStore<papaya::Papaya>>(),
        "scc" => job.run::<MapStore<scc::Scc>>(),
        "sharded map" => job.run::<MapStore<sharded::Sharded>>(),
        "moka" => job.run::<MapStore<moka::Moka>>(),
        "quick_cache" => job.run::<MapStore<quick_cache::Quick>>(),
        "fjall" => job.run::<fjall::Fjall>(),
        "redb" => job.run::<redb::Redb>(),
        "sled" => job.run::<sled::Sled>(),
        #[cfg(feature = "rocksdb")]
        "rocksdb" => job.run::<rocksdb::Rocks>(),
        #[cfg(feature = "lmdb")]
        "lmdb" => job.run::<lmdb::Lmdb>(),
        #[cfg(feature = "sqlite")]
        "sqlite" => job.run::<sqlite::Sqlite>(),
        #[cfg(feature = "redis")]
        "redis" => job.run::<redis::Redis>(),
        other => Err(format!("no contestant is called {other}").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{BODY, Bodies, fingerprint, key, sequence};
    use crate::store::{Answer, Hand, Setup, State};

    /// A key goes through its states, and others are loaded.
    struct States<'a>(&'a Contestant);

    impl Job for States<'_> {
        fn run<S: Store>(&self) -> Result<()> {
            let directory = tempfile::tempdir()?;
            let (mode, is_ready) = (self.0.mode, self.0.is_ready());
            let directory_path = directory.path().to_owned();
            let store = S::open(&Setup { mode, directory: directory_path, keys: 1000, is_ready })?;
            let (mut hand, bodies) = (store.hand()?, Bodies::new());
            let (key, mut out) = (key(0), [0; BODY]);
            let (print, name) = (fingerprint(&key), self.0.name);

            assert_eq!(hand.lookup(&key, &mut out)?, State::Absent, "{name}");
            let Answer::Acquired(token) = hand.claim(&key, print, &mut out)? else {
                panic!("{name} did not acquire");
            };
            assert_eq!(hand.lookup(&key, &mut out)?, State::InProgress, "{name}");
            assert_eq!(hand.claim(&key, print, &mut out)?, Answer::InProgress, "{name}");
            hand.complete(&key, token, bodies.nth(0))?;
            assert_eq!(hand.claim(&key, [9; 16], &mut out)?, Answer::Mismatch, "{name}");
            assert_eq!(hand.claim(&key, print, &mut out)?, Answer::Completed, "{name}");
            assert_eq!(out, *bodies.nth(0), "{name}");

            hand.load(&sequence(1, 999), &bodies, 1)?;
            store.settle()?;
            for nth in 0..1000 {
                out = [0; BODY];
                let state = hand.lookup(&crate::keys::key(nth as u64), &mut out)?;
                assert_eq!(state, State::Completed, "{name}: {nth}");
                assert_eq!(out, *bodies.nth(nth), "{name}: {nth}");
            }
            drop(hand);
            store.close()
        }
    }

    #[test]
    fn everybody_tells_absent_claimed_and_completed_apart() {
        for contestant in CONTESTANTS.iter().filter(|it| (it.is_here)()) {
            run(contestant.name, &States(contestant)).unwrap();
        }
    }

    #[test]
    fn those_with_room_are_others_again_and_take_part_only_when_asked_for() {
        let ready: Vec<_> = CONTESTANTS.iter().filter(|it| it.is_ready()).collect();
        assert_eq!(ready.first().unwrap().name, READY);
        for contestant in ready {
            let grows = contestant.name.strip_suffix(READY_END).unwrap();
            assert!(CONTESTANTS.iter().any(|it| it.name == grows && it.mode == contestant.mode));
            assert!(present(contestant.mode).iter().all(|it| it.name != contestant.name));
        }
    }
}
