//! Bugs we had, each with its story.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use refrain::testing::{Crash, Fault, FileSystem, HeapFs, SimClock, SimDisk, seal_meta};
use refrain::{
    Claim, ClaimError, ClaimOptions, Commit, CompleteOptions, Durability, Lookup, Namespace,
    NamespaceError, OnOrphan, OpenError, Options, Policy, Store, StoreError,
};
use support::checksum::{crc32, mask, place};
use support::disk::{HookFs, poke, read};

const SECOND: Duration = Duration::from_secs(1);

fn options(fs: impl FileSystem + 'static, durability: Durability) -> Options {
    let options = Options::new("unused").file_system(fs).durability(durability).shards(1);
    options.segment_bytes(256 << 10).manual_maintenance(true)
}

fn complete(namespace: &Namespace, key: &str, body: &[u8]) {
    namespace.claim(key, None).unwrap().acquired().unwrap().complete(body).unwrap();
}

fn is_completed(namespace: &Namespace, key: &str) -> bool {
    matches!(namespace.lookup(key).unwrap(), Lookup::Completed(_))
}

fn broken() -> io::Error {
    io::Error::other("the disk is broken")
}

const WRITES: [&str; 7] = ["write", "fill", "create", "remove", "rename", "sync", "sync_dir"];

/// `close` gave the directory lock back while maintenance was at work or could still begin, and
/// while a namespace was being made: it then wrote to, or removed, files of the next owner.
#[test]
fn nothing_is_written_once_the_lock_is_given_back() {
    let (heap, clock) = (HeapFs::new(), SimClock::new());
    let is_free = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&is_free);
    let fs = HookFs::new(heap.clone(), move |operation, name| {
        if operation == "unlock" {
            seen.store(true, Ordering::SeqCst);
        }
        let is_late = seen.load(Ordering::SeqCst) && WRITES.contains(&operation);
        assert!(!is_late, "{operation} {name} in a directory that was given back");
        Ok(())
    });
    let old = options(fs, Durability::Sync).clock(clock.clone()).open().unwrap();
    let orders = old.namespace("orders").unwrap();
    complete(&orders, "a", b"outcome");
    old.close().unwrap();
    assert!(is_free.load(Ordering::SeqCst));
    // Somebody else is in there now. What the thread, or the holder of a clone, may still do:
    let next = options(heap, Durability::Sync).clock(clock.clone()).open().unwrap();
    clock.advance(10 * SECOND);
    for _ in 0..3 {
        old.maintain(Duration::MAX);
    }
    assert!(matches!(old.flush(), Err(StoreError::Closed)));
    assert!(old.namespace("new").is_err() && old.define("new", &Policy::default()).is_err());
    assert!(orders.claim("b", None).is_err());
    assert!(is_completed(&next.namespace("orders").unwrap(), "a"));
}

#[test]
fn the_thread_is_at_rest_before_the_lock_is_given_back() {
    for round in 0..20 {
        let is_free = Arc::new(AtomicBool::new(false));
        let late = Arc::new(Mutex::new(vec![]));
        let (seen, told) = (Arc::clone(&is_free), Arc::clone(&late));
        let fs = HookFs::new(HeapFs::new(), move |operation, name| {
            if operation == "unlock" {
                seen.store(true, Ordering::SeqCst);
            }
            if WRITES.contains(&operation) {
                // As slow as a disk.
                std::thread::sleep(Duration::from_millis(1));
                if seen.load(Ordering::SeqCst) {
                    told.lock().unwrap().push(format!("{operation} {name}"));
                }
            }
            Ok(())
        });
        let store = Options::new("unused").file_system(fs).open().unwrap();
        let orders = store.namespace("orders").unwrap();
        for key in 0..round % 5 {
            complete(&orders, &key.to_string(), b"outcome");
        }
        store.close().unwrap();
        assert!(is_free.load(Ordering::SeqCst));
        assert_eq!(*late.lock().unwrap(), Vec::<String>::new());
    }
}

#[test]
fn close_waits_for_a_namespace_that_is_being_made() {
    let heap = HeapFs::new();
    let (is_set, reached) = (Arc::new(AtomicBool::new(false)), Arc::new(Barrier::new(2)));
    let (set, barrier) = (Arc::clone(&is_set), Arc::clone(&reached));
    let fs = HookFs::new(heap.clone(), move |operation, name| {
        if operation == "write" && name == "NAMES" && set.load(Ordering::SeqCst) {
            barrier.wait();
            // The other thread is about to close.
            std::thread::sleep(Duration::from_millis(30));
        }
        Ok(())
    });
    let store = options(fs, Durability::Sync).open().unwrap();
    store.namespace("orders").unwrap();
    is_set.store(true, Ordering::SeqCst);
    let made = std::thread::scope(|scope| {
        let made = scope.spawn(|| store.namespace("late").is_ok());
        reached.wait();
        store.close().unwrap();
        made.join().unwrap()
    });
    let names = options(heap, Durability::Sync).open().unwrap().namespaces();
    assert_eq!(names.contains(&"late".to_owned()), made, "{names:?}");
}

/// A process killed while a new data file got its headers left a file that every later open
/// refused to look at.
#[test]
fn a_file_that_has_not_all_its_headers_is_left_over_from_growth() {
    for headers in 0..5 {
        let heap = HeapFs::new();
        let left = Arc::new(AtomicU64::new(u64::MAX));
        let count = Arc::clone(&left);
        let fs = HookFs::new(heap.clone(), move |operation, name| {
            if count.load(Ordering::SeqCst) == 0 && WRITES.contains(&operation) {
                return Err(broken());
            }
            if operation == "write" && name == "data-00001" && count.load(Ordering::SeqCst) < 99 {
                count.fetch_sub(1, Ordering::SeqCst);
            }
            Ok(())
        });
        let store = options(fs, Durability::Buffered).open().unwrap();
        let orders = store.namespace("orders").unwrap();
        complete(&orders, "a", b"precious");
        left.store(headers + 1, Ordering::SeqCst);
        for key in 0..20 {
            if let Ok(Claim::Acquired(lease)) = orders.claim(format!("{key}"), None) {
                // The disk breaks on the way.
                drop(lease.complete(vec![1; 100_000]));
            }
        }
        assert_eq!(left.load(Ordering::SeqCst), 0);
        store.abandon();
        let store = options(heap, Durability::Buffered).open().unwrap();
        assert!(is_completed(&store.namespace("orders").unwrap(), "a"));
    }
}

/// A slot of the meta file was written while the other one was in the page cache only: a process
/// killed between write and sync, then another one, then a power cut, and both were torn.
#[test]
fn no_chain_of_stops_tears_both_meta_slots() {
    for seed in 0..60 {
        let disk = SimDisk::new(seed);
        let store = options(disk.mount(), Durability::Sync).open().unwrap();
        complete(&store.namespace("orders").unwrap(), "a", b"precious");
        store.abandon();
        for step in 0.. {
            let mut is_killed = false;
            let disk = disk.copy(Some(1000 * seed + step));
            for _ in 0..2 {
                let fs = disk.mount();
                disk.crash_after(step, Crash::Kill);
                drop(options(fs, Durability::Sync).open().map(Store::abandon));
                is_killed |= disk.crashed().is_some();
            }
            disk.crash(Crash::PowerCut);
            let store = options(disk.mount(), Durability::Sync).open();
            let store = store.unwrap_or_else(|error| panic!("seed {seed} step {step}: {error}"));
            assert!(is_completed(&store.namespace("orders").unwrap(), "a"));
            if !is_killed {
                // Whoever opens it comes to the end before.
                assert!(step > 40, "{step} steps");
                break;
            }
        }
    }
}

/// After a failed sync in buffered mode and a kill, nobody had written down that the page cache was
/// not to be trusted: the next open served from it, and a power cut took what had been shown.
#[test]
fn what_is_found_after_a_kill_is_on_the_disk_whatever_the_mode_was() {
    for seed in 0..20 {
        let disk = SimDisk::new(seed);
        let store = options(disk.mount(), Durability::Buffered).open().unwrap();
        let orders = store.namespace("orders").unwrap();
        let claim = orders.claim_with("a", &ClaimOptions::new().sync()).unwrap();
        let token = claim.acquired().unwrap().token();
        let error = io::ErrorKind::Other;
        disk.fail(Fault { operation: "sync", after: 0, times: 1, error });
        let outcome = CompleteOptions::body(b"outcome").sync();
        assert!(orders.complete_with("a", token, &outcome).is_err());
        assert!(store.poisoned().is_some());
        store.abandon();
        let store = options(disk.mount(), Durability::Sync).open().unwrap();
        let orders = store.namespace("orders").unwrap();
        let shown = is_completed(&orders, "a");
        if shown {
            orders.complete_with("a", token, &outcome).unwrap();
        }
        store.abandon();
        disk.crash(Crash::PowerCut);
        let store = options(disk.mount(), Durability::Sync).open().unwrap();
        assert_eq!(is_completed(&store.namespace("orders").unwrap(), "a"), shown);
    }
}

/// A failed write poisoned the store and woke nobody who waited for a round.
#[test]
fn a_failed_write_ends_every_wait() {
    for round in 0..60 {
        let writes = AtomicU64::new(0);
        let fail_at = 60 + round * 7 % 150;
        let fs = HookFs::new(HeapFs::new(), move |operation, name| {
            let is_append = operation == "write" && name == "data-00000";
            if is_append && writes.fetch_add(1, Ordering::SeqCst) == fail_at {
                return Err(broken());
            }
            if operation == "sync" {
                std::thread::sleep(Duration::from_micros(30));
            }
            Ok(())
        });
        let store = options(fs, Durability::Sync).manual_maintenance(false).open().unwrap();
        std::thread::scope(|scope| {
            for thread in 0..6 {
                let orders = store.namespace("orders").unwrap();
                scope.spawn(move || {
                    let mut claims = 0_u32..;
                    let failed = claims.find_map(|key| {
                        orders.claim(format!("{thread}-{key}"), None).map(drop).err()
                    });
                    let Some(ClaimError::Store(error)) = failed else { panic!("{failed:?}") };
                    assert!(error.is_poisoned(), "{error}");
                });
            }
        });
    }
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn poll<T, E: From<StoreError>>(commit: &mut Commit<T, E>, waker: &Waker) -> Poll<Result<T, E>> {
    Pin::new(commit).poll(&mut Context::from_waker(waker))
}

#[test]
fn a_failed_write_wakes_futures() {
    let fails = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&fails);
    let fs = HookFs::new(HeapFs::new(), move |operation, name| {
        let is_append = operation == "write" && name.starts_with("data");
        if is_append && seen.load(Ordering::SeqCst) { Err(broken()) } else { Ok(()) }
    });
    let store = options(fs, Durability::Sync).open().unwrap();
    let orders = store.namespace("orders").unwrap();
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut commit = orders.claim_async("a", &ClaimOptions::new());
    assert!(poll(&mut commit, &waker).is_pending());
    fails.store(true, Ordering::SeqCst);
    assert!(orders.claim("b", None).is_err());
    store.maintain(Duration::MAX);
    assert_eq!(woken.0.load(Ordering::SeqCst), 1);
    assert!(matches!(poll(&mut commit, &waker), Poll::Ready(Err(_))));
}

/// Polling a commit with another waker dropped the old one under the lock of the rounds; the last
/// waker of a task drops the task, and with it perhaps another commit, which takes that lock.
#[test]
fn a_waker_that_is_replaced_may_drop_another_commit() {
    struct Task {
        _commit: Mutex<Commit<Claim, ClaimError>>,
    }
    impl Wake for Task {
        fn wake(self: Arc<Self>) {}
    }
    let store = options(HeapFs::new(), Durability::Sync).open().unwrap();
    let orders = store.namespace("orders").unwrap();
    let mut inner = orders.claim_async("inner", &ClaimOptions::new());
    assert!(poll(&mut inner, Waker::noop()).is_pending());
    let mut outer = orders.claim_async("outer", &ClaimOptions::new());
    let task = Waker::from(Arc::new(Task { _commit: Mutex::new(inner) }));
    assert!(poll(&mut outer, &task).is_pending());
    drop(task);
    // Did it take the lock twice, this would never return.
    assert!(poll(&mut outer, Waker::noop()).is_pending());
    store.maintain(Duration::MAX);
    assert!(pin!(outer).poll(&mut Context::from_waker(Waker::noop())).is_ready());
}

/// Maintenance kept the gate open while it led a round, which ends with wakers: one that closed the
/// store waited for itself.
#[test]
fn a_waker_may_close_the_store() {
    struct Closes(Mutex<Option<Store>>);
    impl Wake for Closes {
        fn wake(self: Arc<Self>) {
            let Some(store) = self.0.lock().unwrap().take() else { return };
            store.close().unwrap();
        }
    }
    let store = options(HeapFs::new(), Durability::Sync).open().unwrap();
    let orders = store.namespace("orders").unwrap();
    let token = orders.claim("a", None).unwrap().acquired().unwrap().token();
    let mut commit = orders.complete_async("a", token, &CompleteOptions::body(b"outcome"));
    let waker = Waker::from(Arc::new(Closes(Mutex::new(Some(store.clone())))));
    assert!(poll(&mut commit, &waker).is_pending());
    store.maintain(Duration::MAX);
    assert!(matches!(poll(&mut commit, &waker), Poll::Ready(Ok(_))));
    assert!(matches!(orders.lookup("a"), Err(StoreError::Closed)));
}

/// A claim that is to be parked when its owner dies was forgotten when the machine was down for
/// longer than lease and grace: judged by the time of the opening.
#[test]
fn an_orphan_is_parked_however_long_the_machine_was_down() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let open = || options(fs.clone(), Durability::Sync).clock(clock.clone()).open().unwrap();
    let store = open();
    let orders = store.define("orders", &Policy::default().on_orphan(OnOrphan::Park)).unwrap();
    drop(orders.claim("a", None).unwrap().acquired().unwrap());
    drop(orders);
    store.abandon();
    clock.advance(3600 * SECOND);
    let claim = open().namespace("orders").unwrap().claim("a", None).unwrap();
    assert!(matches!(claim, Claim::Parked(_)), "{claim:?}");
}

/// The opening that parks orphans was cut short behind the first of its writes that told its time,
/// and the next opening judged the others by that time: forgotten.
#[test]
fn orphans_are_parked_however_often_the_opening_is_cut_short() {
    let keys = ["a", "b", "c", "d"];
    for seed in 0..4 {
        let (disk, clock) = (SimDisk::new(seed), SimClock::new());
        let open = |fs| options(fs, Durability::Sync).clock(clock.clone()).open();
        let store = open(disk.mount()).unwrap();
        let policy = Policy::default().on_orphan(OnOrphan::Park);
        let orders = store.define("orders", &policy).unwrap();
        for key in keys {
            drop(orders.claim(key, None).unwrap().acquired().unwrap());
        }
        drop(orders);
        store.abandon();
        clock.advance(3600 * SECOND);
        for step in 0..60 {
            let disk = disk.copy(Some(seed * 1000 + step));
            let fs = disk.mount();
            disk.crash_after(step, Crash::PowerCut);
            drop(open(fs).map(Store::abandon));
            let orders = open(disk.mount()).unwrap().namespace("orders").unwrap();
            for key in keys {
                let found = orders.lookup(key).unwrap();
                assert!(
                    matches!(found, Lookup::Parked(_)),
                    "step {step} of seed {seed}: {found:?}"
                );
            }
        }
    }
}

/// The names file's entry of the directory could be lost while the meta file's was there.
#[test]
fn a_creation_cut_short_at_any_step_is_begun_again() {
    for seed in 0..40 {
        for step in 0..30 {
            let disk = SimDisk::new(seed);
            let fs = disk.mount();
            disk.crash_after(step, Crash::PowerCut);
            drop(options(fs, Durability::Sync).open().map(Store::abandon));
            let store = options(disk.mount(), Durability::Sync).open();
            let store = store.unwrap_or_else(|error| panic!("seed {seed} step {step}: {error}"));
            complete(&store.namespace("orders").unwrap(), "a", b"outcome");
        }
    }
}

/// A process killed behind the renaming of the meta file, or behind the creation of the names file,
/// left an entry that was not synced, and the next one built on it.
#[test]
fn a_creation_killed_and_then_cut_short_is_begun_again() {
    let steps = (0..16).flat_map(|killed| (0..45).map(move |cut| (killed, cut)));
    for ((killed, cut), seed) in steps.flat_map(|steps| (0..4).map(move |seed| (steps, seed))) {
        let disk = SimDisk::new(seed * 10_000 + killed * 100 + cut);
        for (step, crash) in [(killed, Crash::Kill), (cut, Crash::PowerCut)] {
            let fs = disk.mount();
            disk.crash_after(step, crash);
            drop(options(fs, Durability::Sync).open().map(Store::abandon));
        }
        let store = options(disk.mount(), Durability::Sync).open();
        let store = store.unwrap_or_else(|error| panic!("{killed} {cut} {seed}: {error}"));
        complete(&store.namespace("orders").unwrap(), "a", b"outcome");
    }
}

/// An `alter` that had failed lay behind the end of the names, and took effect many openings later,
/// when one slot of the meta file went bad.
#[test]
fn an_alter_that_failed_does_not_come_back() {
    let heap = HeapFs::new();
    let fails = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&fails);
    let fs = HookFs::new(heap.clone(), move |operation, name| {
        let is_meta = operation == "write" && name == "META";
        if is_meta && seen.load(Ordering::SeqCst) { Err(broken()) } else { Ok(()) }
    });
    let store = options(fs, Durability::Sync).open().unwrap();
    let policy = Policy::default().lease(SECOND);
    store.define("orders", &policy).unwrap();
    fails.store(true, Ordering::SeqCst);
    assert!(store.alter("orders", &Policy::default().lease(7 * SECOND)).is_err());
    store.abandon();
    let found = |store: &Store| store.namespace("orders").unwrap().policy();
    let store = options(heap.clone(), Durability::Sync).open().unwrap();
    assert_eq!(found(&store), policy);
    store.close().unwrap();
    for slot in 0..2 {
        let copy = heap.copy().unwrap();
        poke(&copy, "META", slot * 4096 + 300, &[0x55]);
        let store = options(copy, Durability::Sync).open().unwrap();
        assert!(store.report().meta_fallback);
        assert_eq!(found(&store), policy);
    }
}

/// The same, when it was the names file that refused, after it had taken all of the entry: the
/// call said that nothing was done.
#[test]
fn an_alter_that_the_names_file_refused_does_not_come_back() {
    for seed in 0..400 {
        let disk = SimDisk::new(seed);
        let store = options(disk.mount(), Durability::Sync).open().unwrap();
        let policy = Policy::default().lease(SECOND);
        store.define("orders", &policy).unwrap();
        let error = io::ErrorKind::Other;
        disk.fail(Fault { operation: "write", after: 0, times: 1, error });
        let other = Policy::default().lease(7 * SECOND);
        let refused = store.alter("orders", &other).unwrap_err();
        assert!(matches!(refused, NamespaceError::Store(StoreError::Io(_))), "{refused}");
        // A later write of the meta file is torn.
        disk.crash_after(seed % 8, Crash::PowerCut);
        drop(store.close());
        store.abandon();
        disk.crash(Crash::PowerCut);
        let store = options(disk.mount(), Durability::Sync).open().unwrap();
        assert_eq!(store.namespace("orders").unwrap().policy(), policy, "seed {seed}");
    }
}

/// Runs the test of that name, which is ignored otherwise, in a process of its own, on `path`.
fn child(name: &str, path: &std::path::Path) -> std::process::ExitStatus {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--ignored", "--nocapture"]).env("REFRAIN_CHILD", path);
    // What it prints may go to a file that is longer than the child may write.
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    command.status().unwrap()
}

/// The kernel sends SIGXFSZ for a write behind the limit, also when it makes the file no longer.
#[test]
#[cfg_attr(miri, ignore = "needs processes")]
fn a_lower_file_size_limit_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let store = Options::new(directory.path()).segment_bytes(256 << 10).open().unwrap();
    complete(&store.namespace("orders").unwrap(), "a", b"outcome");
    store.close().unwrap();
    assert!(child("child_with_a_limit", directory.path()).success());
}

#[test]
#[ignore = "run by its parent"]
fn child_with_a_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let path = std::env::var("REFRAIN_CHILD").unwrap();
    let maximum = getrlimit(Resource::Fsize).maximum;
    setrlimit(Resource::Fsize, Rlimit { current: Some(30 << 10), maximum }).unwrap();
    let Err(OpenError::Io(cause)) = Options::new(&path).open() else { panic!("it was opened") };
    assert_eq!(cause.io().kind(), io::ErrorKind::FileTooLarge, "{cause}");
}

/// A copy had holes where the original had zeros; a store through the mapping to a hole on a full
/// disk is a SIGBUS.
#[test]
#[cfg_attr(miri, ignore = "needs real files")]
fn a_copy_with_holes_gets_its_blocks_when_it_is_opened() {
    use std::os::unix::fs::{FileExt, MetadataExt};
    let directory = tempfile::tempdir().unwrap();
    let (original, copy) = (directory.path().join("original"), directory.path().join("copy"));
    let open = |path| Options::new(path).segment_bytes(256 << 10).open().unwrap();
    let store = open(&original);
    complete(&store.namespace("orders").unwrap(), "a", b"outcome");
    store.close().unwrap();
    std::fs::create_dir(&copy).unwrap();
    for entry in std::fs::read_dir(&original).unwrap() {
        let entry = entry.unwrap();
        let bytes = std::fs::read(entry.path()).unwrap();
        let file = std::fs::File::create(copy.join(entry.file_name())).unwrap();
        file.set_len(bytes.len() as u64).unwrap();
        for (number, page) in bytes.chunks(4096).enumerate() {
            if page.iter().any(|byte| *byte != 0) {
                file.write_all_at(page, number as u64 * 4096).unwrap();
            }
        }
    }
    let store = open(&copy);
    assert!(is_completed(&store.namespace("orders").unwrap(), "a"));
    assert!(store.report().copied);
    for entry in std::fs::read_dir(&copy).unwrap() {
        let metadata = entry.unwrap().metadata().unwrap();
        assert!(metadata.blocks() * 512 >= metadata.len(), "it has no holes any more");
    }
}

/// Gives 64 bytes of header the checksum that goes with their role.
fn seal_header(head: &mut [u8], store_id: &[u8], role: u64) {
    let crc = crc32(&head[..60]) ^ mask(place(store_id, role, 0), 0, 64);
    head[60..64].copy_from_slice(&crc.to_le_bytes());
}

/// A store whose only data file claims that its segments begin with number `first`.
fn store_beginning_with(first: u32) -> HeapFs {
    let fs = HeapFs::new();
    options(fs.clone(), Durability::Sync).open().unwrap().close().unwrap();
    let data = read(&fs, "data-00000");
    let id = data[16..32].to_vec();
    let put = |at: usize, field: usize, value: u32, role: u64| {
        let mut head = data[at..at + 64].to_vec();
        head[field..field + 4].copy_from_slice(&value.to_le_bytes());
        seal_header(&mut head, &id, role);
        poke(&fs, "data-00000", at as u64, &head);
    };
    put(0, 32, first, 1);
    for index in 0..4 {
        put(32_768 + (index as usize) * (256 << 10), 24, first.wrapping_add(index), 4);
    }
    fs
}

/// Headers with right checksums and segment numbers near 2^32 made `open` panic, or take memory for
/// all the segments before them.
#[test]
fn segment_numbers_that_cannot_be_are_refused() {
    let opens = |first| options(store_beginning_with(first), Durability::Sync).open().map(drop);
    opens(0).unwrap();
    for first in [u32::MAX, u32::MAX - 1, u32::MAX - 3, 1 << 31, 1 << 22] {
        let refused = opens(first).unwrap_err();
        assert!(matches!(refused, OpenError::Corrupt { .. }), "{first}: {refused}");
    }
}

/// Counters near 2^64 under right checksums made sums overflow.
#[test]
fn counters_that_no_store_comes_to_are_damage() {
    let fs = HeapFs::new();
    options(fs.clone(), Durability::Sync).open().unwrap().close().unwrap();
    let meta = read(&fs, "META");
    // Sequence, length of the names, generations.
    for field in [64, 104, 112, 120] {
        for both in [false, true] {
            let copy = fs.copy().unwrap();
            let mut bytes = meta.clone();
            for slot in bytes.chunks_exact_mut(4096).skip(usize::from(!both)) {
                slot[field..field + 8].fill(0xff);
                seal_meta(slot);
            }
            poke(&copy, "META", 0, &bytes);
            match options(copy, Durability::Sync).open() {
                Ok(store) => assert!(!both && store.report().meta_fallback, "field {field}"),
                Err(OpenError::Corrupt { .. }) => assert!(both, "field {field}"),
                Err(other) => panic!("{other}"),
            }
        }
    }
    // The last that can be read: it was opened, and what it wrote could not be read.
    for field in [64, 112] {
        for last in [1_u64 << 62, (1 << 62) + 1, 1 << 63] {
            let copy = fs.copy().unwrap();
            let mut bytes = meta.clone();
            for slot in bytes.chunks_exact_mut(4096) {
                slot[field..field + 8].copy_from_slice(&last.to_le_bytes());
                seal_meta(slot);
            }
            poke(&copy, "META", 0, &bytes);
            for _ in 0..2 {
                match options(copy.clone(), Durability::Sync).open() {
                    Ok(store) => {
                        complete(&store.namespace("orders").unwrap(), "a", b"outcome");
                        store.close().unwrap();
                    }
                    Err(OpenError::Corrupt { what, .. }) => assert!(what.contains("used up")),
                    Err(other) => panic!("field {field} at {last}: {other}"),
                }
            }
        }
    }
}

/// After a clean close empty segments kept their generation, and the data file as it was then passed
/// for the one that the next opening had filled: its keys were new.
#[test]
fn a_data_file_of_the_last_clean_close_is_noticed() {
    let fs = HeapFs::new();
    options(fs.clone(), Durability::Sync).open().unwrap().close().unwrap();
    let old = support::disk::read(&fs, "data-00000");
    let store = options(fs.clone(), Durability::Sync).open().unwrap();
    complete(&store.namespace("orders").unwrap(), "paid", b"receipt");
    store.flush().unwrap();
    store.abandon();
    support::disk::poke(&fs, "data-00000", 0, &old);
    let refused = options(fs, Durability::Sync).open();
    assert!(matches!(refused, Err(OpenError::Corrupt { .. })), "{refused:?}");
}

/// In memory nothing is ever made durable; `flush` and `close` led a round all the same, whose mark has no room
/// for as many segments as such a store may have, and the store was poisoned.
#[test]
fn a_store_in_memory_of_many_segments_is_flushed_and_closed() {
    static BODY: [u8; 100_000] = [7; 100_000];
    // A mark lists 504.
    const SEGMENTS: u64 = 600;
    let store = Options::in_memory().segment_bytes(256 << 10).manual_maintenance(true);
    let store = store.open().unwrap();
    let namespace = store.namespace("orders").unwrap();
    let keys = SEGMENTS * (256 << 10) / BODY.len() as u64;
    for key in 0..keys {
        complete(&namespace, &key.to_string(), &BODY);
    }
    store.flush().unwrap();
    complete(&namespace, "later", b"outcome");
    for key in [0, keys - 1] {
        assert!(is_completed(&namespace, &key.to_string()));
    }
    store.close().unwrap();
}
