//! Segments die and are written again, ended at every step of the disk.
//!
//! A few short scripts of calls, jumps of the clock and maintenance, so chosen that claims, their
//! ends, completions, forgets and copies lie in segments that are recycled one after the other. Each
//! script is ended at every step of the simulated disk, by a kill and by power cuts; the opening
//! after it is ended on the way, too; then the store goes on, is maintained until everything in it
//! has had its time, and is ended once more. Every key is in exactly the state it must be in, each
//! time; also when the wall clock has been set back in between. `REFRAIN_CUTS` is the number of
//! power cuts at each step.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use refrain::testing::{Crash, SimClock, SimDisk, SimFs};
use refrain::{
    Claim as Claimed, CompleteOptions, Durability, FingerprintRule, Lease, OnOrphan, OpenError,
    Options, Store,
};
use support::calls::{Asked, Call, Face};
use support::model::{Ask, Bring, Entry, Key, Model, Rules};
use support::world::{SEGMENT_BYTES, ms_of, name};

/// A claim lives for two seconds and is forgotten after four, a body is kept for eight, a key for
/// twenty. A claim that nobody parks is its owner's, whether the store was opened again or not.
const RECLAIMS: Rules = Rules {
    lease: 2000,
    replay_ttl: 8000,
    dedupe_ttl: 20_000,
    late_grace: Some(2000),
    parks: false,
    on_orphan: OnOrphan::KeepLease,
    fingerprint: FingerprintRule::Ignore,
    fingerprint_required: false,
    refresh_below: None,
};
/// The same, but a claim is never forgotten.
const PARKS: Rules = Rules { parks: true, ..RECLAIMS };
/// The same, for a long time.
const LONG: Rules = Rules { replay_ttl: 500_000, dedupe_ttl: 500_000, ..PARKS };

const NAMESPACES: [Rules; 3] = [RECLAIMS, PARKS, LONG];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verb {
    Claim,
    Once,
    Renew,
    Complete,
    Release,
    Park,
    Resolve,
    Forget,
    Erase,
}

/// A key is a letter: `r` and `s` are of a namespace that reclaims, `p` and `q` of one that parks,
/// `l` and `m` of one that parks and keeps for long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Do(Verb, char),
    /// So many seconds pass, and maintenance looks around.
    Pass(u64),
    /// The process is killed, and another one opens the store.
    Reopen,
}

use Step::{Do, Pass, Reopen};
use Verb::{Claim, Complete, Erase, Forget, Once, Park, Release, Renew, Resolve};

const KEYS: [char; 6] = ['r', 's', 'p', 'q', 'l', 'm'];

/// Segments are sealed for their age after five seconds.
const SCRIPTS: [(&str, &[Step]); 9] = [
    (
        "claims and what ends them lie in one segment of claims after the other",
        &[
            Do(Claim, 'p'),
            Do(Claim, 'q'),
            Do(Claim, 'r'),
            Pass(6),
            Do(Release, 'p'),
            Do(Renew, 'q'),
            Pass(6),
            Do(Claim, 'p'),
            Do(Claim, 's'),
            Do(Park, 'q'),
            Pass(6),
            Do(Forget, 'p'),
            Do(Resolve, 'q'),
            Do(Once, 's'),
            Pass(1),
            Pass(6),
            Pass(1),
            Pass(20),
            Pass(1),
        ],
    ),
    (
        "a completion has had its time long before the claim that it ended",
        &[
            Do(Claim, 'p'),
            Do(Claim, 'q'),
            Do(Claim, 'l'),
            Do(Complete, 'p'),
            Do(Complete, 'l'),
            Pass(6),
            Pass(1),
            Do(Renew, 'q'),
            Pass(9),
            Pass(1),
            Do(Claim, 'p'),
            Do(Release, 'p'),
            Pass(10),
            Pass(1),
            Pass(6),
            Pass(1),
            Do(Complete, 'q'),
            Pass(30),
            Pass(1),
        ],
    ),
    (
        "what was completed is forgotten and claimed again",
        &[
            Do(Claim, 'l'),
            Do(Complete, 'l'),
            Do(Once, 'm'),
            Pass(6),
            Pass(1),
            Do(Forget, 'l'),
            Do(Claim, 'l'),
            Do(Forget, 'm'),
            Pass(6),
            Pass(1),
            Do(Release, 'l'),
            Do(Claim, 'm'),
            Do(Release, 'm'),
            Pass(6),
            Pass(1),
            Pass(30),
            Pass(1),
        ],
    ),
    (
        "a forget is all that its segment holds when the process ends",
        &[
            Do(Once, 'm'),
            Do(Claim, 'l'),
            Do(Complete, 'l'),
            Pass(6),
            Pass(1),
            Do(Forget, 'm'),
            Reopen,
            Do(Forget, 'l'),
            Reopen,
            Pass(6),
            Pass(1),
            Pass(6),
            Pass(1),
        ],
    ),
    (
        "a later process recycles what earlier ones have filled",
        &[
            Do(Claim, 'p'),
            Do(Claim, 'q'),
            Do(Claim, 'l'),
            Reopen,
            Do(Release, 'p'),
            Do(Complete, 'q'),
            Reopen,
            Do(Release, 'l'),
            Do(Claim, 'p'),
            Reopen,
            Do(Release, 'p'),
            Pass(6),
            Pass(1),
            Pass(20),
            Pass(1),
        ],
    ),
    (
        "segments are filled, emptied and filled again",
        &[
            Do(Claim, 'r'),
            Do(Complete, 'r'),
            Do(Claim, 'p'),
            Pass(25),
            Pass(1),
            Pass(5),
            Do(Claim, 'r'),
            Do(Complete, 'r'),
            Do(Complete, 'p'),
            Pass(25),
            Pass(1),
            Pass(5),
            Do(Claim, 'r'),
            Do(Forget, 'r'),
            Do(Once, 'p'),
            Pass(25),
            Pass(1),
        ],
    ),
    (
        "what was completed and claimed is erased, and claimed again",
        &[
            Do(Claim, 'l'),
            Do(Complete, 'l'),
            Do(Claim, 'p'),
            Do(Once, 'm'),
            Do(Erase, 'l'),
            Do(Claim, 'l'),
            Do(Renew, 'p'),
            Do(Erase, 'p'),
            Do(Complete, 'l'),
            Do(Claim, 'p'),
            Pass(6),
            Do(Erase, 'l'),
            Do(Forget, 'm'),
            Do(Erase, 'm'),
            Pass(1),
        ],
    ),
    (
        "what earlier processes have left is erased",
        &[
            Do(Once, 'm'),
            Do(Claim, 'l'),
            Do(Claim, 'p'),
            Do(Complete, 'l'),
            Do(Release, 'p'),
            Reopen,
            Do(Claim, 'p'),
            Do(Erase, 'l'),
            Do(Forget, 'm'),
            Reopen,
            Do(Erase, 'm'),
            Do(Park, 'p'),
            Do(Erase, 'p'),
            Do(Claim, 'l'),
            Pass(6),
            Pass(1),
        ],
    ),
    (
        "what is on its way out is erased",
        &[
            Do(Claim, 'p'),
            Do(Claim, 'r'),
            Do(Complete, 'r'),
            Do(Once, 'm'),
            Pass(6),
            Do(Release, 'p'),
            Do(Forget, 'r'),
            Do(Claim, 'r'),
            Pass(20),
            Do(Erase, 'r'),
            Do(Erase, 'p'),
            Pass(5),
            Do(Erase, 'm'),
            Pass(1),
        ],
    ),
];

fn key(letter: char) -> Key {
    let namespace = match letter {
        'r' | 's' => 0,
        'p' | 'q' => 1,
        _ => 2,
    };
    (namespace, letter.to_string().into_bytes().into())
}

fn call(verb: Verb, letter: char, model: &Model) -> Call {
    let key = key(letter);
    let token = model.state(&key).token().unwrap_or(1);
    let bring = Bring { body: Some([letter as u8; 100].into()), code: 200, ..Bring::default() };
    match verb {
        Claim => Call::Claim(key, Ask::default(), Asked::AsStore),
        Once => Call::Once(key, Ask::default(), Asked::AsStore),
        Renew => Call::Renew(key, token, None),
        Complete => Call::Complete(key, token, bring, Asked::AsStore),
        Release => Call::Release(key, token),
        Park => Call::Park(key, token),
        Resolve => Call::Resolve(key, token, Some(bring)),
        Forget => Call::Forget(key),
        Erase => Call::Erase(key),
    }
}

fn face(store: &Store, key: &Key) -> Face {
    let namespace = store.namespace(&name(key.0)).unwrap();
    Face::of_lookup(&namespace.lookup(&key.1).unwrap())
}

/// A disk, a clock, and what is known of the keys.
struct Run {
    disk: SimDisk,
    clock: SimClock,
    model: Model,
    /// The states of each key, the oldest that may survive first.
    histories: BTreeMap<Key, Vec<Option<Entry>>>,
    in_flight: Option<(Call, Model)>,
}

impl Run {
    /// A store with its namespaces, closed.
    fn new(wall: SystemTime) -> Self {
        let (disk, clock) = (SimDisk::new(1), SimClock::at(wall));
        let mut model = Model::new(ms_of(clock.wall()), SEGMENT_BYTES as usize / 2);
        let keys = KEYS.map(|letter| (key(letter), vec![None]));
        for (number, rules) in NAMESPACES.into_iter().enumerate() {
            model.namespaces.insert(number, (rules, false));
        }
        let histories = BTreeMap::from(keys);
        let run = Self { disk, clock, model, histories, in_flight: None };
        let store = run.open();
        for (number, rules) in NAMESPACES.into_iter().enumerate() {
            store.define(&name(number), &rules.to_policy()).unwrap();
        }
        store.close().unwrap();
        run
    }

    /// The same, on another disk and with another clock.
    fn copy(&self, seed: Option<u64>) -> Self {
        Self {
            disk: self.disk.copy(seed),
            clock: SimClock::at(self.clock.wall()),
            model: self.model.clone(),
            histories: self.histories.clone(),
            in_flight: self.in_flight.clone(),
        }
    }

    fn try_open(&self) -> Result<Store, OpenError> {
        self.open_on(self.disk.mount())
    }

    fn open_on(&self, fs: SimFs) -> Result<Store, OpenError> {
        self.options(fs).open()
    }

    fn options(&self, fs: SimFs) -> Options {
        Options::new("unused")
            .file_system(fs)
            .clock(self.clock.clone())
            .durability(Durability::Sync)
            .shards(1)
            .shared_by_chance(1)
            .segment_bytes(SEGMENT_BYTES)
            .manual_maintenance(true)
    }

    fn open(&self) -> Store {
        self.try_open().unwrap_or_else(|error| panic!("{error}"))
    }

    /// Seconds pass, and maintenance looks around.
    fn pass(&mut self, store: &Store, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
        self.model.now += 1000 * seconds;
        store.maintain(Duration::MAX);
    }

    /// Goes through the script up to `steps` steps of the disk, then the process is killed. Whether
    /// it came to the end of the script before.
    fn play(&mut self, script: &[Step], steps: u64) -> bool {
        let fs = self.disk.mount();
        self.disk.crash_after(steps, Crash::Kill);
        let Ok(mut store) = self.open_on(fs) else { return false };
        self.model.open += 1;
        for step in script {
            match *step {
                Pass(seconds) => self.pass(&store, seconds),
                Reopen => {
                    // Keeps what is still to come.
                    let left = steps.saturating_sub(self.disk.steps());
                    store.abandon();
                    let fs = self.disk.mount();
                    self.disk.crash_after(left, Crash::Kill);
                    let Ok(next) = self.open_on(fs) else { return false };
                    store = next;
                    self.model.reopen(self.model.now);
                    self.adopt_all();
                }
                Do(verb, letter) => self.ask(&store, &call(verb, letter, &self.model)),
            }
            if self.disk.crashed().is_some() {
                store.abandon();
                return false;
            }
            self.compare(&store);
        }
        store.abandon();
        true
    }

    fn ask(&mut self, store: &Store, call: &Call) {
        let before = self.model.clone();
        let begun = self.clock.wall();
        let got = call.run(&store.namespace(&name(call.key().0)).unwrap());
        // To erase something takes time.
        let took = self.clock.wall().duration_since(begun).unwrap().as_millis() as u64;
        if self.disk.crashed().is_some() {
            self.in_flight = Some((call.clone(), before));
            return;
        }
        let reply = got.unwrap_or_else(|failed| panic!("{call:?}: {failed:?}"));
        assert_eq!(call.apply(&mut self.model, reply.issued(), false), reply, "{call:?}");
        let history = self.histories.get_mut(call.key()).unwrap();
        let entry = self.model.entry(call.key());
        if history.last().unwrap() != &entry {
            history.push(entry);
        }
        if !matches!(call, Call::Renew(..) | Call::Lookup(_)) {
            // It was acknowledged as durable, and so is what came before it.
            self.histories.values_mut().for_each(|it| drop(it.drain(..it.len() - 1)));
        }
        self.model.now += took;
    }

    /// What the model has is what was found.
    fn adopt_all(&mut self) {
        for (key, history) in &mut self.histories {
            *history = vec![self.model.entry(key)];
        }
    }

    /// Every key is what the model says.
    fn compare(&self, store: &Store) {
        for key in self.histories.keys() {
            let expected = Face::of_state(&self.model.state(key), self.model.now);
            assert_eq!(face(store, key), expected, "{key:?}");
        }
        store.check_invariants().unwrap();
    }

    /// Opens the store after an end, finds every key in a state in which it may be, and goes on from
    /// there.
    fn recover(&mut self, is_lossy: bool) -> Store {
        let store = self.open();
        let behind = store.report().clock_behind.as_millis() as u64;
        self.model.now = ms_of(self.clock.wall()) + behind;
        self.model.open += 1;
        let in_flight = self.in_flight.take();
        for (key, history) in self.histories.clone() {
            let seen = face(&store, &key);
            let mut candidates = history.clone();
            if !is_lossy {
                candidates.drain(..candidates.len() - 1);
            }
            if let Some((call, before)) = in_flight.as_ref().filter(|(call, _)| *call.key() == key)
            {
                let mut after = before.clone();
                let token = seen.token().filter(|token| !after.knows(*token));
                call.apply(&mut after, token, false);
                candidates.push(after.entry(&key));
            }
            let is_it = candidates.into_iter().rev().any(|entry| {
                self.model.set_entry(&key, entry);
                self.model.reopen_entry(&key, self.model.now);
                Face::of_state(&self.model.state(&key), self.model.now) == seen
            });
            assert!(is_it, "{key:?} is {seen:?}, {in_flight:?}, {history:#?}");
        }
        self.adopt_all();
        store.check_invariants().unwrap();
        store
    }

    /// What comes after an end: an opening that is ended after `steps` steps, another one, then all
    /// that maintenance finds to do, ended on the way.
    fn go_on(mut self, is_lossy: bool, back: u64, steps: u64) {
        self.clock = SimClock::at(self.clock.wall() - Duration::from_secs(back));
        let crash = if steps.is_multiple_of(2) { Crash::Kill } else { Crash::PowerCut };
        let fs = self.disk.mount();
        self.disk.crash_after(steps % 50, crash);
        drop(self.open_on(fs).map(Store::abandon));
        self.disk.call_off_crash();
        // What was only in the page cache may be gone with the power.
        let mut store = self.recover(is_lossy || crash == Crash::PowerCut);
        self.disk.crash_after(steps * 7 % 60, crash);
        for seconds in [6, 1, 6, 1, 20, 1, 600, 1] {
            self.pass(&store, seconds);
            if self.disk.crashed().is_some() {
                store.abandon();
                store = self.recover(false);
            }
            self.compare(&store);
        }
        store.abandon();
        self.disk.call_off_crash();
        self.disk.crash(Crash::PowerCut);
        let store = self.recover(false);
        store.close().unwrap();
        self.recover(false).close().unwrap();
    }
}

/// Ends a script at every step, in several ways. Gives the number of steps and the segments that
/// were recycled when it came to its end.
fn end_everywhere(base: &Run, script: &[Step], cuts: u64) -> u64 {
    for steps in 0.. {
        let mut run = base.copy(Some(steps));
        let has_ended = run.play(script, steps);
        // A kill; then power cuts; and both again with the wall clock set back.
        run.copy(None).go_on(false, 0, steps);
        run.copy(None).go_on(false, 30, steps + 1);
        for cut in 0..cuts {
            let run = run.copy(Some(1000 * steps + cut));
            run.disk.crash(Crash::PowerCut);
            run.go_on(true, 30 * (cut % 2), 13 * steps + cut);
        }
        if has_ended {
            return steps;
        }
    }
    unreachable!("every script comes to its end")
}

#[test]
fn what_was_acknowledged_survives_the_end_of_its_segment() {
    let cuts = std::env::var("REFRAIN_CUTS").ok().and_then(|text| text.parse().ok()).unwrap_or(4);
    let base = Run::new(SimClock::new().wall());
    std::thread::scope(|scope| {
        for (what, script) in SCRIPTS {
            let base = &base;
            scope.spawn(move || {
                let run = std::panic::AssertUnwindSafe(|| end_everywhere(base, script, cuts));
                match std::panic::catch_unwind(run) {
                    Ok(steps) => println!("{what}: ended at each of {steps} steps"),
                    Err(panic) => {
                        println!("failed: {what}");
                        std::panic::resume_unwind(panic);
                    }
                }
            });
        }
    });
}

/// A completion that is durable is forgotten and claimed again, without a sync; the power goes and
/// takes the forget, not the claim. When the claim has been given back and its segment is gone, the
/// completion must not be back.
#[test]
fn a_forget_that_the_power_took_is_written_again() {
    let mut seen = 0;
    for subset in 0..64_u64 {
        let mut run = Run::new(SimClock::new().wall());
        let options = run.options(run.disk.mount()).durability(Durability::Buffered);
        let store = options.open().unwrap();
        let long = store.namespace(&name(2)).unwrap();
        long.claim("l", None).unwrap().acquired().unwrap().complete(b"outcome").unwrap();
        // For its segment to be worth keeping.
        for number in 0..50 {
            let lease = long.claim(format!("other-{number}"), None).unwrap().acquired().unwrap();
            lease.complete(b"outcome").unwrap();
        }
        run.pass(&store, 6);
        store.flush().unwrap();
        long.forget("l", "a test", "a test").unwrap();
        let token = long.claim("l", None).unwrap().acquired().unwrap().token();
        drop(long);
        store.abandon();
        run.disk.cut_keeping(|unit| subset >> (unit % 6) & 1 == 1);
        let store = run.open();
        let long = store.namespace(&name(2)).unwrap();
        if long.release("l", token).is_err() {
            continue;
        }
        seen += 1;
        // A segment of claims that nothing waits for is sealed after half a minute.
        for _ in 0..6 {
            run.pass(&store, 20);
        }
        assert!(store.stats().recycled > 1, "subset {subset}");
        drop(long);
        store.abandon();
        assert_eq!(face(&run.open(), &key('l')), Face::Absent, "subset {subset}");
    }
    assert!(seen > 0, "the claim was never there");
}

/// The same on a disk that is full: there is no room for the forget when the store is opened. It is
/// opened all the same, and nothing goes before the forget is there.
#[test]
fn a_forget_that_finds_no_room_is_written_when_there_is_some() {
    forget_without_room(|lease| lease.release().unwrap());
    // This one needs no room for a copy, and is over long before what it won against.
    forget_without_room(|lease| {
        let time = Duration::from_secs(15);
        let options = CompleteOptions::body(b"another").replay_ttl(time).dedupe_ttl(time);
        lease.complete_with(&options).unwrap();
    });
}

fn forget_without_room(end: impl FnOnce(Lease)) {
    let mut base = Run::new(SimClock::new().wall());
    let options = |run: &Run| run.options(run.disk.mount()).durability(Durability::Buffered);
    let store = options(&base).open().unwrap();
    let long = store.namespace(&name(2)).unwrap();
    let filler = "f".repeat(SEGMENT_BYTES as usize / 3);
    long.claim("l", None).unwrap().acquired().unwrap().complete(b"outcome").unwrap();
    // For its segment to be worth keeping.
    for number in 0..50 {
        let lease = long.claim(format!("other-{number}"), None).unwrap().acquired().unwrap();
        lease.complete(b"outcome").unwrap();
    }
    // Without this one, there would be nothing in the segment of the one that is lost.
    long.forget("other-0", "a test", "a test").unwrap();
    base.pass(&store, 6);
    store.flush().unwrap();
    long.forget("l", "a test", "a test").unwrap();
    end(long.claim("l", None).unwrap().acquired().unwrap());
    base.disk.set_room(0);
    // One completion after the other, until all room is taken, for twenty seconds.
    let short = store.namespace(&name(0)).unwrap();
    let full = (0..).find(|number| {
        let lease = short.claim(format!("filler-{number}"), None).ok().and_then(Claimed::acquired);
        lease.is_none_or(|lease| lease.complete(&filler).is_err())
    });
    let once = (0..).find(|number| short.once(format!("once-{number:04000}"), None).is_err());
    println!("full after {full:?} and {once:?} keys");
    drop((long, short));
    store.abandon();
    let mut owed = 0;
    for dropped in 0..base.disk.unsynced() {
        let mut run = base.copy(None);
        run.disk.cut_keeping(|unit| unit != dropped);
        let record_bytes = |run: &Run, room| {
            run.disk.set_room(room);
            let store = run.open();
            (store.stats().record_bytes, store)
        };
        let (with_room, store) = record_bytes(&run.copy(None), u64::MAX);
        store.abandon();
        let (without, store) = record_bytes(&run, 0);
        if without == with_room {
            store.abandon();
            continue;
        }
        owed += 1;
        for _ in 0..6 {
            run.pass(&store, 20);
        }
        assert_eq!(store.stats().recycled, 0, "without page {dropped}");
        store.abandon();
        let store = run.open();
        assert_eq!(face(&store, &key('l')), Face::Absent, "without page {dropped}, full");
        run.disk.set_room(u64::MAX);
        for _ in 0..6 {
            run.pass(&store, 20);
        }
        assert!(store.stats().recycled > 0, "without page {dropped}");
        store.abandon();
        let store = run.open();
        assert_eq!(face(&store, &key('l')), Face::Absent, "without page {dropped}");
    }
    assert!(owed > 0, "the forget was never lost");
}

/// Nothing is written any more: the meta file has learnt the time for the last time, and everything
/// is proven. When what there is has had its time, nothing but a mark tells that it has come, and it
/// must be on the disk before the next header (R9): the power goes, and the wall clock is set back.
#[test]
fn an_idle_store_destroys_nothing_before_its_time_is_durable() {
    let base = Run::new(SimClock::new().wall());
    let mut cuts = 0;
    for steps in 0.. {
        let mut run = base.copy(Some(steps));
        let store = run.open();
        run.model.open += 1;
        for (verb, letter) in [(Claim, 'l'), (Complete, 'l'), (Once, 'm')] {
            run.ask(&store, &call(verb, letter, &run.model));
        }
        // Segments are sealed for their age after an eighth of 500 seconds.
        for _ in 0..15 {
            run.pass(&store, 6);
        }
        let written = |disk: &SimDisk| ["write", "sync"].map(|call| disk.counts()[call]);
        let (before, recycled) = (written(&run.disk), store.stats().recycled);
        run.pass(&store, 300);
        assert_eq!(written(&run.disk), before, "the store is not idle");
        let idle_since = run.clock.wall();
        run.disk.crash_after(steps, Crash::Kill);
        run.pass(&store, 120);
        let has_ended = run.disk.crashed().is_none();
        assert!(!has_ended || store.stats().recycled > recycled, "nothing was destroyed");
        store.abandon();
        run.clock = SimClock::at(idle_since);
        for subset in 0..1 << run.disk.unsynced().min(6) {
            let mut run = run.copy(None);
            run.disk.cut_keeping(|unit| subset >> (unit % 6) & 1 == 1);
            // Back, if its time has not come by what the disk has; or gone, if it has.
            run.recover(false).abandon();
            cuts += 1;
        }
        if has_ended {
            assert!(steps > 3 && cuts > 2 * steps, "{steps} steps, {cuts} power cuts");
            return;
        }
    }
}

/// The scripts are about what they say: in each one segments are recycled.
#[test]
fn every_script_recycles() {
    for (what, script) in SCRIPTS {
        let mut run = Run::new(SimClock::new().wall());
        let (mut recycled, mut copied) = (0, 0);
        let mut store = run.open();
        run.model.open += 1;
        for step in script {
            match *step {
                Pass(seconds) => run.pass(&store, seconds),
                Do(verb, letter) => run.ask(&store, &call(verb, letter, &run.model)),
                Reopen => {
                    store.abandon();
                    store = run.recover(false);
                }
            }
            let stats = store.stats();
            (recycled, copied) = (stats.recycled.max(recycled), stats.copied.max(copied));
        }
        println!("{what}: {recycled} recycled, {copied} copied");
        // When all has had its time, room is reserved for what is left, as a new process sees it.
        for seconds in [30, 1, 600, 1, 30, 1] {
            run.pass(&store, seconds);
        }
        let reserved = store.stats().reserved_bytes;
        store.abandon();
        assert_eq!(run.recover(false).stats().reserved_bytes, reserved, "{what}");
        assert!(recycled > 0, "{what}: {recycled} recycled");
    }
}
