//! Faults of a real machine: file systems that fill up or turn read-only, limits of the process,
//! processes that race or stand still.
//!
//! What needs root and a loop device says loudly that it was skipped where they are not. A full file
//! system is tried at every seventeenth page, at every one with `REFRAIN_STRIDE=1`.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]
#![cfg(not(miri))]

mod support;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use refrain::{
    Body, Claim, ClaimError, ClaimOptions, CompleteError, CompleteOptions, Durability, Lease,
    Lookup, Namespace, NamespaceError, OpenError, Options, Policy, Store, StoreError,
};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use support::{Random, seed};

fn options(path: &Path) -> Options {
    Options::new(path).segment_bytes(256 << 10)
}

/// Runs the ignored test of that name in a process of its own, on `path`.
fn child(name: &str, path: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--ignored", "--nocapture"]).env("REFRAIN_CHILD", path);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

fn path_of_child() -> PathBuf {
    std::env::var("REFRAIN_CHILD").unwrap().into()
}

/// A small ext4 of its own, unmounted at the end.
struct Loop {
    _directory: tempfile::TempDir,
    image: PathBuf,
    mount: PathBuf,
}

impl Loop {
    /// `None`, said loudly, without the rights or the tools.
    fn new(what: &str, megabytes: u64) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let (image, mount) = (directory.path().join("image"), directory.path().join("mount"));
        fs::create_dir(&mount).unwrap();
        File::create(&image).unwrap().set_len(megabytes << 20).unwrap();
        let is_made = Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&image).status();
        let is_mounted = is_made.is_ok_and(|status| status.success())
            && Command::new("mount")
                .args(["-o", "loop"])
                .args([&image, &mount])
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success());
        if !is_mounted {
            println!("!!!! SKIPPED: {what} (it needs root, mkfs.ext4 and a loop device)");
            return None;
        }
        Some(Self { _directory: directory, image, mount })
    }

    /// Ends the file system as a power cut would: what was not synced is gone, and from now on it
    /// fails.
    #[allow(unsafe_code, reason = "the file system has no other call for it")]
    fn shut_down(&self) {
        /// `EXT4_IOC_SHUTDOWN`, and to throw away what the journal holds in memory.
        const SHUTDOWN: rustix::ioctl::Opcode = 0x8004_587d;
        const NO_FLUSH: u32 = 2;
        let root = File::open(&self.mount).unwrap();
        // SAFETY: the call of that number reads a `u32`.
        let call = unsafe { rustix::ioctl::Setter::<SHUTDOWN, u32>::new(NO_FLUSH) };
        // SAFETY: the call touches no memory but what it reads.
        unsafe { rustix::ioctl::ioctl(&root, call) }.unwrap();
    }

    /// Mounts it anew. Nobody uses it.
    fn mount_again(&self) {
        assert!(Command::new("umount").arg(&self.mount).status().unwrap().success());
        let mut command = Command::new("mount");
        command.args(["-o", "loop"]).args([&self.image, &self.mount]);
        assert!(command.status().unwrap().success());
    }

    fn remount(&self, how: &str) {
        let option = format!("remount,{how}");
        let status = Command::new("mount").args(["-o", &option]).arg(&self.mount).status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // Should it be busy, it goes with the machine.
        drop(Command::new("umount").arg("--lazy").arg(&self.mount).status());
    }
}

/// Claims until the store is full, ends every claim, and gives what was completed.
fn fill_and_end(store: &Store, most: u32) -> Vec<String> {
    let orders = match store.namespace("orders") {
        Ok(orders) => orders,
        // A new name takes a page, too.
        Err(NamespaceError::Store(StoreError::Io(cause))) => {
            assert_eq!(cause.io().kind(), ErrorKind::StorageFull, "{cause}");
            return vec![];
        }
        Err(error) => panic!("{error}"),
    };
    let mut leases: Vec<Lease> = vec![];
    for number in 0..most {
        match orders.claim(format!("{number}"), None) {
            Ok(Claim::Acquired(lease)) => leases.push(lease),
            Ok(other) => panic!("{other:?}"),
            Err(ClaimError::Full { .. }) => break,
            Err(error) => panic!("{error}"),
        }
    }
    leases
        .into_iter()
        .map(|lease| {
            let key = String::from_utf8(lease.key().to_vec()).unwrap();
            // A body for which there is no room is left out.
            lease.complete(vec![b'x'; 3000]).unwrap();
            key
        })
        .collect()
}

#[test]
fn a_file_system_that_is_full_at_any_page_loses_nothing() {
    let Some(disk) = Loop::new("a full file system at every page", 8) else { return };
    let filler = disk.mount.join("filler");
    let whole = {
        let mut file = File::create(&filler).unwrap();
        let page = [1; 4096];
        let mut pages = 0_u64;
        while file.write_all(&page).is_ok() {
            pages += 1;
        }
        pages
    };
    let (mut refused, mut opened, mut completed) = (0, 0, 0);
    let stride = std::env::var("REFRAIN_STRIDE").ok().and_then(|text| text.parse().ok());
    let stride: usize = stride.unwrap_or(17);
    let first = Random::new(seed("full file system")).below(stride as u64);
    for free in (first..700.min(whole)).step_by(stride) {
        let file = File::options().write(true).open(&filler).unwrap();
        file.set_len((whole - free) * 4096).unwrap();
        let path = disk.mount.join("store");
        let durability = if free % 2 == 0 { Durability::Sync } else { Durability::Buffered };
        let open = || options(&path).durability(durability).open();
        match open() {
            Err(OpenError::Full { .. }) => refused += 1,
            Err(OpenError::Io(cause)) => {
                assert_eq!(cause.io().kind(), ErrorKind::StorageFull, "{free} pages: {cause}");
                refused += 1;
            }
            Err(error) => panic!("{free} pages: {error}"),
            Ok(store) => {
                opened += 1;
                let done = fill_and_end(&store, 40);
                store.close().unwrap();
                let store = open().unwrap();
                for key in &done {
                    let orders = store.namespace("orders").unwrap();
                    let Lookup::Completed(outcome) = orders.lookup(key).unwrap() else {
                        panic!("{free} pages: {key} is lost")
                    };
                    let is_whole = outcome.body() == Body::Bytes(&[b'x'; 3000]);
                    assert!(is_whole || outcome.body() == Body::TooLarge { len: 3000 });
                }
                completed += done.len();
            }
        }
        if path.exists() {
            fs::remove_dir_all(&path).unwrap();
        }
        // What was taken for the store is the filler's again.
        let grown = File::options().write(true).open(&filler).unwrap();
        let mut pages = whole - free;
        while grown.write_all_at(&[1; 4096], pages * 4096).is_ok() {
            pages += 1;
        }
    }
    println!("{refused} sizes refused, {opened} opened, {completed} claims completed");
    assert!(refused > 0 && opened > 0 && completed > 0);
}

#[test]
fn a_file_system_that_turns_read_only_is_an_error() {
    let Some(disk) = Loop::new("a read-only file system", 32) else { return };
    let path = disk.mount.join("store");
    let store = options(&path).open().unwrap();
    assert_eq!(fill_and_end(&store, 3).len(), 3);
    store.close().unwrap();
    drop(store);
    disk.remount("ro");
    let refused = options(&path).open().unwrap_err();
    assert!(matches!(refused, OpenError::Io(_)), "{refused}");
    disk.remount("rw");
    let orders = options(&path).open().unwrap().namespace("orders").unwrap();
    assert!(matches!(orders.lookup("0").unwrap(), Lookup::Completed(_)));
}

/// Claims and completes keys of its own until the store refuses. Gives what was acknowledged as
/// durable.
fn work_until_refused(store: &Store, name: &str, is_sync: bool, done: &AtomicU64) -> Vec<String> {
    let orders = store.namespace("orders").unwrap();
    let mut durable = vec![];
    for number in 0.. {
        let key = format!("{name}-{number}");
        let asks = is_sync || number % 16 == 0;
        let (claims, body) = (ClaimOptions::new(), CompleteOptions::body(b"outcome"));
        let claim = match asks {
            true => orders.claim_with(&key, &claims.sync()),
            false => orders.claim_with(&key, &claims),
        };
        let lease = match claim {
            Ok(claim) => claim.acquired().unwrap(),
            Err(error) => {
                println!("{name}: claim {number}: {error}");
                return durable;
            }
        };
        match lease.complete_with(&if asks { body.sync() } else { body }) {
            Ok(_) if asks => {
                durable.push(key);
                done.fetch_add(1, Ordering::Relaxed);
            }
            Ok(_) => {}
            Err(error) => {
                println!("{name}: complete {number}: {error}");
                return durable;
            }
        }
    }
    durable
}

#[test]
fn a_file_system_that_dies_under_an_open_store_loses_nothing_durable() {
    let Some(disk) = Loop::new("a file system that dies", 96) else { return };
    let path = disk.mount.join("store");
    let cycles = std::env::var("REFRAIN_CYCLES").ok().and_then(|text| text.parse().ok());
    let cycles: u64 = cycles.unwrap_or(9);
    let mut random = Random::new(seed("faults: a file system that dies"));
    let mut durable: Vec<String> = vec![];
    let mut epoch = 0;
    for cycle in 0..cycles {
        let modes = [
            Durability::Buffered,
            Durability::Sync,
            Durability::Interval(Duration::from_millis(5)),
        ];
        let mode = modes[cycle as usize % modes.len()];
        let store = options(&path).durability(mode).open().unwrap();
        assert!(store.report().epoch > epoch, "tokens would repeat");
        epoch = store.report().epoch;
        let orders = store.namespace("orders").unwrap();
        for key in &durable {
            let outcome = orders.claim(key, None).unwrap().completed();
            assert_eq!(
                outcome.unwrap_or_else(|| panic!("{key} is lost")).body(),
                Body::Bytes(b"outcome")
            );
        }
        let (before, done, goal) = (durable.len(), AtomicU64::new(0), random.below(60));
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..2)
                .map(|worker| {
                    let (store, name, done) = (&store, format!("{cycle}-{worker}"), &done);
                    scope.spawn(move || {
                        work_until_refused(store, &name, mode == Durability::Sync, done)
                    })
                })
                .collect();
            while done.load(Ordering::Relaxed) < goal
                && !workers.iter().all(std::thread::ScopedJoinHandle::is_finished)
            {
                std::thread::sleep(Duration::from_micros(100));
            }
            disk.shut_down();
            for worker in workers {
                durable.extend(worker.join().unwrap());
            }
        });
        // What was durable can still be read; nothing is acknowledged as durable any more.
        for key in &durable[before..] {
            assert!(matches!(orders.lookup(key).unwrap(), Lookup::Completed(_)), "{key}");
        }
        assert!(orders.claim_with("new", &ClaimOptions::new().sync()).is_err());
        assert!(store.close().is_err());
        drop((orders, store));
        disk.mount_again();
    }
    println!("{cycles} cycles, {} durable keys", durable.len());
    assert!(durable.len() > 20);
}

#[test]
fn a_store_that_cannot_be_written_to_is_checked_and_salvaged() {
    let Some(disk) = Loop::new("a store that cannot be written to", 32) else { return };
    let source = disk.mount.join("store");
    let store = options(&source).open().unwrap();
    let orders = store.namespace("orders").unwrap();
    orders.claim("done", None).unwrap().acquired().unwrap().complete("outcome").unwrap();
    drop(orders);
    store.close().unwrap();
    drop(store);
    for has_lock in [true, false] {
        if !has_lock {
            std::fs::remove_file(source.join("LOCK")).unwrap();
        }
        disk.remount("ro");
        assert!(Store::open(&source).is_err());
        assert_eq!(Store::verify(&source).unwrap().completed, 1);
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("new");
        assert_eq!(Store::salvage(&source, &target).unwrap().gaps, 0);
        let store = options(&target).open().unwrap();
        let orders = store.namespace("orders").unwrap();
        assert!(orders.claim("done", None).unwrap().completed().is_some());
        disk.remount("rw");
        assert_eq!(source.join("LOCK").exists(), has_lock);
    }
}

#[test]
fn limits_of_the_process_are_errors_and_lose_nothing() {
    for name in ["child_without_descriptors", "child_without_address_space"] {
        let directory = tempfile::tempdir().unwrap();
        let mut child = child(name, directory.path());
        let mut told = String::new();
        child.stdout.take().unwrap().read_to_string(&mut told).unwrap();
        assert!(child.wait().unwrap().success(), "{name}: {told}");
        let store = options(directory.path()).open().unwrap();
        let orders = store.namespace("orders").unwrap();
        assert!(matches!(orders.lookup("0").unwrap(), Lookup::Completed(_)), "{name}");
    }
}

/// Claims and completes; where the store cannot grow, claims are refused and nothing else is.
fn work_until_full(orders: &Namespace, numbers: Range<u32>) {
    let mut full = 0;
    for number in numbers {
        match orders.claim(format!("{number}"), None) {
            Ok(Claim::Acquired(lease)) => drop(lease.complete(vec![1; 2000]).unwrap()),
            Ok(other) => panic!("{other:?}"),
            Err(ClaimError::Full { .. }) => full += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(full > 0, "it never had to grow");
}

fn limit(resource: Resource, current: u64) -> Rlimit {
    let before = getrlimit(resource);
    setrlimit(resource, Rlimit { current: Some(current), maximum: before.maximum }).unwrap();
    before
}

#[test]
#[ignore = "run by its parent"]
fn child_without_descriptors() {
    let path = path_of_child();
    let store = options(&path).open().unwrap();
    let orders = store.namespace("orders").unwrap();
    // No file can be opened any more: the store works until it has to grow.
    let before = limit(Resource::Nofile, 3);
    work_until_full(&orders, 0..2000);
    let refused = options(&path.join("other")).open().unwrap_err();
    assert!(matches!(refused, OpenError::Io(_)), "{refused}");
    setrlimit(Resource::Nofile, before).unwrap();
    orders.claim("after", None).unwrap().acquired().unwrap().complete("done").unwrap();
    store.close().unwrap();
}

#[test]
#[ignore = "run by its parent"]
fn child_without_address_space() {
    let store = options(&path_of_child()).open().unwrap();
    let orders = store.namespace("orders").unwrap();
    orders.claim("0", None).unwrap().acquired().unwrap().complete("done").unwrap();
    // Nothing large can be mapped any more.
    let status = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = status.split(' ').next().unwrap().parse().unwrap();
    let before = limit(Resource::As, pages * 4096 + (2 << 20));
    work_until_full(&orders, 1..3000);
    setrlimit(Resource::As, before).unwrap();
    orders.claim("after", None).unwrap().acquired().unwrap().complete("done").unwrap();
    store.close().unwrap();
}

#[test]
fn of_processes_that_race_to_open_one_wins() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let (mut won, mut locked) = (0, 0);
    for _ in 0..10 {
        let mut children: Vec<Child> = (0..4).map(|_| child("child_that_opens", &path)).collect();
        // Whoever has it keeps it until its input ends.
        let told: Vec<String> = children
            .iter_mut()
            .map(|child| {
                let lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
                // Where tests run one at a time, the name of the test comes first.
                let told = lines
                    .map(Result::unwrap)
                    .find_map(|line| line.find("opened: ").map(|at| line[at..].to_owned()));
                told.unwrap()
            })
            .collect();
        won += told.iter().filter(|line| *line == "opened: true").count();
        locked += told.iter().filter(|line| *line == "opened: false").count();
        assert_eq!(told.iter().filter(|line| *line == "opened: true").count(), 1, "{told:?}");
        for mut child in children {
            drop(child.stdin.take());
            assert!(child.wait().unwrap().success());
        }
    }
    println!("{won} won, {locked} were locked out");
}

#[test]
#[ignore = "run by its parent"]
fn child_that_opens() {
    let opened = options(&path_of_child()).open();
    let is_locked = matches!(opened, Err(OpenError::Locked { .. }));
    assert!(opened.is_ok() || is_locked, "{opened:?}");
    println!("opened: {}", opened.is_ok());
    std::io::stdin().read_to_end(&mut vec![]).unwrap();
}

#[test]
fn an_owner_that_was_stopped_past_its_lease_is_fenced() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = child("child_that_stands_still", directory.path());
    let pid = Pid::from_child(&child);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut wait_for = |text: &str| while !lines.next().unwrap().unwrap().ends_with(text) {};
    wait_for("claimed");
    kill_process(pid, Signal::STOP).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    kill_process(pid, Signal::CONT).unwrap();
    child.stdin.take().unwrap().write_all(b"go on\n").unwrap();
    wait_for("fenced");
    assert!(child.wait().unwrap().success());
}

#[test]
#[ignore = "run by its parent"]
fn child_that_stands_still() {
    let store = options(&path_of_child()).open().unwrap();
    let policy = Policy::default().lease(Duration::from_millis(150));
    let orders = store.define("orders", &policy).unwrap();
    let old = orders.claim("a", None).unwrap().acquired().unwrap();
    println!("claimed");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    let new = orders.claim("a", None).unwrap().acquired().unwrap();
    assert_eq!((new.attempt(), new.token() > old.token()), (2, true));
    let refused = old.complete("late").unwrap_err();
    assert!(matches!(refused, CompleteError::Fenced { .. }), "{refused}");
    new.complete("in time").unwrap();
    let outcome = orders.claim("a", None).unwrap().completed().unwrap();
    assert_eq!(outcome.body(), Body::Bytes(b"in time"));
    println!("fenced");
}
