//! What a call takes that no noise can touch: allocations, page faults and system calls of the
//! calling thread, in `Buffered` mode, on segments that were made ready. docs/COUNTS.md has the rest.
//!
//! Between two batches of calls the test does what the maintenance thread does; that thread may
//! allocate and call the kernel as it likes, whoever calls may not.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

use std::fs;
use std::mem::MaybeUninit;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use allocation_counter::measure;
use refrain::{Body, Claim, Durability, Lookup, Namespace, Once, Options, Store};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};

/// Keys of a window; `REFRAIN_ENTRIES` for more.
const KEYS: u64 = 100_000;
/// Keys between two looks of maintenance.
const BATCH: u64 = 2048;

const BODY: [u8; 128] = [0x5a; 128];

fn key(n: u64) -> [u8; 36] {
    let mut key = [b'-'; 36];
    let spread = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    key[..8].copy_from_slice(&n.to_le_bytes());
    key[20..28].copy_from_slice(&spread.to_le_bytes());
    key
}

/// Page faults of this thread that needed no disk.
fn faults() -> u64 {
    let stat = fs::read_to_string("/proc/thread-self/stat").unwrap();
    let behind_name = stat.rsplit_once(") ").unwrap().1;
    behind_name.split(' ').nth(7).unwrap().parse().unwrap()
}

fn open(directory: &std::path::Path) -> (Store, Namespace) {
    let options = Options::new(directory).durability(Durability::Buffered);
    let store = options.manual_maintenance(true).open().unwrap();
    let space = store.namespace("counts").unwrap();
    (store, space)
}

fn claim_and_complete(space: &Namespace, n: u64) {
    let lease = space.claim(key(n), None).unwrap().acquired().unwrap();
    lease.complete(BODY).unwrap();
}

/// What the maintenance thread does until there is nothing left that cannot wait.
fn maintain(store: &Store) {
    store.maintain(Duration::MAX);
}

/// Lets the table have room for a window of keys, as the one before has left it: what a table
/// allocates when it grows is no part of a call on a store that has its size.
fn make_room(store: &Store, space: &Namespace, keys: u64) {
    for first in (0..keys).step_by(BATCH as usize) {
        (first..first + BATCH).for_each(|n| claim_and_complete(space, n));
        maintain(store);
    }
    for first in (0..keys).step_by(BATCH as usize) {
        for n in first..first + BATCH {
            space.forget(key(n), "", "").unwrap();
        }
        maintain(store);
    }
}

/// Counts of many calls of one kind.
#[derive(Clone, Copy, Default, Debug)]
struct Counts {
    calls: u64,
    allocations: u64,
    faults: u64,
    /// Batches in which there was any fault.
    faulty: u64,
    batches: u64,
}

impl Counts {
    /// Counts a batch of calls, one for each number.
    fn add(&mut self, numbers: std::ops::Range<u64>, mut call: impl FnMut(u64)) {
        self.calls += numbers.end - numbers.start;
        let before = faults();
        let info = measure(|| numbers.for_each(&mut call));
        let faults = faults() - before;
        self.allocations += info.count_total;
        self.faults += faults;
        self.faulty += u64::from(faults > 0);
        self.batches += 1;
    }
}

fn print(name: &str, counts: Counts) {
    println!(
        "{name:<24}{:>9} calls {:>7} allocations {:>6} page faults in {} of {} batches",
        counts.calls, counts.allocations, counts.faults, counts.faulty, counts.batches
    );
}

/// No call allocates, but for the body that a duplicate is given. No call takes a page fault, but for
/// what the kernel or the allocator takes back in between.
#[test]
fn calls_allocate_nothing_and_fault_on_nothing() {
    for (name, counts) in counted(tempfile::tempdir().unwrap().path()) {
        print(name, counts);
        // What the kernel writes back on its own faults again, a page at a time.
        let is_faultless = counts.faulty * 10 <= counts.batches;
        assert!(is_faultless || !can_make_ready(), "{name}: {counts:?}");
        assert!(counts.allocations <= allowed(name, &counts), "{name}: {counts:?}");
    }
}

/// Where nothing is written back, because there is no disk, no call takes a page fault at all.
#[test]
fn nothing_faults_where_the_kernel_writes_nothing_back() {
    let memory = std::path::Path::new("/dev/shm");
    let Ok(directory) = tempfile::tempdir_in(memory) else {
        println!("SKIPPED: no files in memory at {}", memory.display());
        return;
    };
    for (name, counts) in counted(directory.path()) {
        print(name, counts);
        // Bodies that are given out are memory that the allocator may have to ask for.
        assert!(counts.faults == 0 || name == COMPLETED || !can_make_ready(), "{name}: {counts:?}");
        assert!(counts.allocations <= allowed(name, &counts), "{name}: {counts:?}");
    }
}

const COMPLETED: &str = "claim, completed";

fn allowed(name: &str, counts: &Counts) -> u64 {
    // The copy of the body.
    if name == COMPLETED { counts.calls } else { 0 }
}

/// All calls, on a window of keys in a store there.
fn counted(directory: &std::path::Path) -> [(&'static str, Counts); 9] {
    let keys = std::env::var("REFRAIN_ENTRIES").map_or(KEYS, |text| text.parse().unwrap());
    let keys = keys.next_multiple_of(BATCH);
    let (store, space) = open(directory);
    make_room(&store, &space, keys);

    // Its pages are the test's, not the calls'.
    let mut leases = Vec::with_capacity(BATCH as usize);
    leases.spare_capacity_mut().fill_with(MaybeUninit::zeroed);
    let [mut claim, mut in_progress, mut complete, mut duplicate] = [Counts::default(); 4];
    let [mut missing, mut found, mut once, mut release] = [Counts::default(); 4];
    let mut scoped = Counts::default();
    for first in (0..keys).step_by(BATCH as usize) {
        let batch = first..first + BATCH;
        missing.add(batch.clone(), |n| {
            assert!(matches!(space.lookup(key(n)).unwrap(), Lookup::Absent));
        });
        claim.add(batch.clone(), |n| {
            leases.push(space.claim(key(n), None).unwrap().acquired().unwrap());
        });
        in_progress.add(batch.clone(), |n| {
            assert!(matches!(space.claim(key(n), None).unwrap(), Claim::InProgress(_)));
        });
        found.add(batch.clone(), |n| {
            assert!(matches!(space.lookup(key(n)).unwrap(), Lookup::InProgress(_)));
        });
        maintain(&store);
        let mut ending = leases.drain(..);
        complete.add(batch.clone(), |_| {
            ending.next().unwrap().complete(BODY).unwrap();
        });
        drop(ending);
        duplicate.add(batch.clone(), |n| {
            let outcome = space.claim(key(n), None).unwrap().completed().unwrap();
            assert_eq!(outcome.body(), Body::Bytes(&BODY));
        });
        maintain(&store);
    }
    // Room again, and the calls that leave nothing behind.
    for n in 0..keys {
        space.forget(key(n), "", "").unwrap();
        if n % BATCH == 0 {
            maintain(&store);
        }
    }
    for first in (0..keys / 4).step_by(BATCH as usize) {
        let batch = first..first + BATCH;
        for n in batch.clone() {
            leases.push(space.claim(key(n), None).unwrap().acquired().unwrap());
        }
        maintain(&store);
        let mut ending = leases.drain(..);
        release.add(batch.clone(), |_| ending.next().unwrap().release().unwrap());
        drop(ending);
        // Each in a scope of its own, which takes a handle of its own.
        let claim = |n: u64| {
            let scope = space.scoped(n.to_le_bytes()).unwrap();
            scope.claim(key(n), None).unwrap()
        };
        leases.extend(batch.clone().map(|n| claim(n).acquired().unwrap()));
        scoped.add(batch.clone(), |n| assert!(matches!(claim(n), Claim::InProgress(_))));
        leases.drain(..).for_each(|lease| lease.release().unwrap());
        maintain(&store);
        once.add(batch, |n| assert!(matches!(space.once(key(n), None).unwrap(), Once::First(_))));
        maintain(&store);
    }

    [
        ("lookup, missing", missing),
        ("lookup, in progress", found),
        ("claim, in progress", in_progress),
        (COMPLETED, duplicate),
        ("claim, fresh", claim),
        ("complete", complete),
        ("once, fresh", once),
        ("release", release),
        ("claim, in progress, scoped", scoped),
    ]
}

/// Whether page faults can be taken ahead here.
fn can_make_ready() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map(|it| it.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(5), Some(14))
}

/// Ends the process at the first system call of this thread from now on.
fn forbid_system_calls() -> bool {
    let arch = TargetArch::try_from(std::env::consts::ARCH).unwrap();
    let (all, none) = (SeccompAction::KillProcess, SeccompAction::Allow);
    let filter = SeccompFilter::new(std::collections::BTreeMap::new(), all, none, arch).unwrap();
    apply_filter(&BpfProgram::try_from(filter).unwrap()).is_ok()
}

const CHILD: &str = "REFRAIN_COUNTS_CHILD";
/// How a child ends where no system call can be forbidden.
const CANNOT: i32 = 77;
/// How a child ends that did its work.
const DONE: i32 = 33;
const CALLS: u64 = 4000;

/// The allocator gets its memory from the kernel in steps, and gives it back when what is free is the
/// last thing it has: this leaves this thread room for copies of bodies, and something behind it.
fn warm_allocator() -> Box<[u8]> {
    let room: Vec<Vec<u8>> = (0..64).map(|_| Vec::with_capacity(32 << 10)).collect();
    let last = vec![1; 1 << 10].into_boxed_slice();
    drop(room);
    last
}

/// What the child does while system calls are forbidden.
fn forbidden(what: &str, space: &Namespace, store: &Store) {
    match what {
        "calls" => {
            for n in 0..CALLS {
                assert!(matches!(space.lookup(key(n)), Ok(Lookup::Absent)));
                let lease = space.claim(key(n), None).unwrap().acquired().unwrap();
                assert!(matches!(space.claim(key(n), None), Ok(Claim::InProgress(_))));
                lease.complete(BODY).unwrap();
                assert!(matches!(space.claim(key(n), None), Ok(Claim::Completed(_))));
            }
        }
        // To show that one would be noticed.
        "flush" => store.flush().unwrap(),
        _ => panic!("{what} is not known"),
    }
}

/// Not a test of its own: what `calls_make_no_system_call` starts.
#[test]
#[ignore = "started by another test"]
fn child() {
    let what = std::env::var(CHILD).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (store, space) = open(directory.path());
    make_room(&store, &space, CALLS.next_multiple_of(BATCH));
    maintain(&store);
    static IS_DONE: AtomicBool = AtomicBool::new(false);
    std::thread::spawn(move || {
        // What a thread needs to pin is made at its first call.
        claim_and_complete(&space, u64::MAX);
        let _kept = warm_allocator();
        if !forbid_system_calls() {
            std::process::exit(CANNOT);
        }
        forbidden(&what, &space, &store);
        IS_DONE.store(true, Ordering::Release);
        // Ending would be one.
        loop {
            std::hint::spin_loop();
        }
    });
    while !IS_DONE.load(Ordering::Acquire) {
        std::thread::sleep(Duration::from_millis(1));
    }
    // Nobody else cleans up: the thread above keeps the store.
    drop(directory);
    std::process::exit(DONE);
}

fn run_child(what: &str) -> std::process::ExitStatus {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--test-threads=1"])
        .env(CHILD, what)
        .stdout(Stdio::null())
        .status()
        .unwrap()
}

/// Whoever claims and completes calls the kernel for nothing. A process that may not is not ended.
#[test]
fn calls_make_no_system_call() {
    use std::os::unix::process::ExitStatusExt;
    let status = run_child("calls");
    if status.code() == Some(CANNOT) {
        eprintln!("!!!! SKIPPED: system calls cannot be forbidden here");
        return;
    }
    assert_eq!(status.code(), Some(DONE), "{status:?}: a system call, or a failed call");
    let status = run_child("flush");
    let noticed = status.signal() == Some(rustix::process::Signal::SYS.as_raw());
    assert!(noticed, "{status:?}: a flush calls the kernel");
}
