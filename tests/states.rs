//! The state table: docs/STATES.md against the store, cell by cell.
//!
//! Each cell of the table is a state of a key and a call on it; the test brings a key into the
//! state, makes the call, and compares the answer and the state after it with what the document
//! says. `REFRAIN_PRINT=1` prints the table as the store has it.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

use std::time::{Duration, SystemTime};

use refrain::testing::{FileSystem, HeapFs, SimClock};
use refrain::{
    Claim, ClaimError, ClaimOptions, CompleteError, CompleteOptions, EndCause, EraseError,
    FencingToken, Fingerprint, LeaseError, Lookup, Namespace, OnLeaseEnd, OnOrphan, Once, Options,
    OwnerId, Policy, Quota, Resolution, ResolveError, Store,
};

const KEY: &str = "key";
const OWNER: OwnerId = OwnerId([9; 16]);
const LEASE: Duration = Duration::from_secs(10);

const STATES: [&str; 9] = [
    "absent",
    "claimed",
    "lapsed",
    "orphaned",
    "overdue",
    "parked",
    "parked orphan",
    "completed",
    "in doubt",
];

const CALLS: [&str; 28] = [
    "claim",
    "claim or wait, time over",
    "claim, same owner",
    "claim, other fingerprint",
    "claim, quota used up",
    "claim, sent before the window",
    "once",
    "once, quota used up",
    "once, other fingerprint",
    "lookup",
    "renew",
    "complete",
    "complete, other outcome",
    "release",
    "park",
    "resolve done",
    "resolve not done",
    "forget",
    "forget all",
    "erase",
    "renew, other token",
    "complete, other token",
    "release, other token",
    "park, other token",
    "resolve done, other token",
    "resolve not done, other token",
    "lease ends",
    "process dies",
];

fn fingerprint() -> Fingerprint {
    Fingerprint::of(b"payload")
}

/// A key in some state.
struct Scene {
    fs: HeapFs,
    clock: SimClock,
    store: Option<Store>,
    policy: Policy,
    token: FencingToken,
}

impl Scene {
    fn open(&mut self) {
        let options = Options::new("unused").file_system(self.fs.clone());
        let store = options.clock(self.clock.clone()).segment_bytes(256 << 10).open().unwrap();
        store.define("space", &self.policy).unwrap();
        self.store = Some(store);
    }

    fn reopen(&mut self) {
        self.store.take().unwrap().abandon();
        self.open();
    }

    /// What names the key's namespace is lost; the store is salvaged.
    fn lose_the_names(&mut self) {
        self.store.take().unwrap().abandon();
        self.fs.remove("NAMES").unwrap();
        let new = HeapFs::new();
        let options = |fs: &HeapFs| Options::new("unused").file_system(fs.clone());
        let source = options(&self.fs).clock(self.clock.clone());
        let report = source.salvage(options(&new).clock(self.clock.clone())).unwrap();
        assert!(report.gaps > 0);
        self.fs = new;
        self.open();
    }

    fn space(&self) -> Namespace {
        self.store.as_ref().unwrap().namespace("space").unwrap()
    }

    fn claim(&mut self) {
        // Who asks as nobody is told the same as of a claim without an owner.
        let options = ClaimOptions::new().fingerprint(fingerprint()).owner(OWNER);
        let claimed = self.space().claim_with(KEY, &options).unwrap();
        self.token = claimed.acquired().unwrap().token();
    }

    fn in_state(state: &str) -> Self {
        let policy = Policy::default().lease(LEASE).dedupe_ttl(Duration::from_secs(3600));
        let policy = policy.replay_ttl(Duration::from_secs(3600));
        let policy = match state {
            "overdue" => policy.on_lease_end(OnLeaseEnd::Park),
            "parked orphan" => policy.on_orphan(OnOrphan::Park),
            _ => policy,
        };
        let mut scene = Self {
            fs: HeapFs::new(),
            clock: SimClock::new(),
            store: None,
            policy,
            token: FencingToken::from_raw(0),
        };
        scene.open();
        if state == "absent" {
            return scene;
        }
        scene.claim();
        match state {
            "claimed" => {}
            "in doubt" => scene.lose_the_names(),
            "lapsed" | "overdue" => scene.clock.advance(LEASE),
            "orphaned" | "parked orphan" => scene.reopen(),
            "parked" => scene.space().park(KEY, scene.token).unwrap(),
            "completed" => drop(scene.space().complete(KEY, scene.token, "outcome").unwrap()),
            other => panic!("{other}"),
        }
        assert_eq!(scene.state(), state);
        scene
    }

    fn state(&self) -> &'static str {
        match self.space().lookup(KEY).unwrap() {
            Lookup::Absent => "absent",
            Lookup::InProgress(_) => "claimed",
            Lookup::Lapsed(it) if it.cause() == EndCause::LeaseEnded => "lapsed",
            Lookup::Lapsed(_) => "orphaned",
            Lookup::Parked(it) => match it.cause() {
                EndCause::LeaseEnded => "overdue",
                EndCause::Parked => "parked",
                _ => "parked orphan",
            },
            Lookup::Completed(_) => "completed",
            Lookup::InDoubt(_) => "in doubt",
            other => panic!("{other:?}"),
        }
    }

    /// Makes the call, and says what it was answered.
    fn call(&mut self, call: &str) -> String {
        let space = self.space();
        let other = FencingToken::from_raw(1);
        let token = if call.ends_with("other token") { other } else { self.token };
        let print = match call.ends_with("other fingerprint") {
            true => Fingerprint::of(b"another payload"),
            false => fingerprint(),
        };
        let options = ClaimOptions::new().fingerprint(print);
        let options = if call.ends_with("same owner") { options.owner(OWNER) } else { options };
        let done = CompleteOptions::body(b"outcome");
        if call.ends_with("quota used up") {
            self.store.as_ref().unwrap().limit("space", &Quota::default().keys(0)).unwrap();
        }
        let long_ago = ClaimOptions::new().fingerprint(print).first_sent(SystemTime::UNIX_EPOCH);
        match call.split(',').next().unwrap() {
            name @ ("claim" | "claim or wait") => match match name {
                "claim or wait" => space.claim_or_wait(KEY, &options, Duration::ZERO).wait(),
                _ if call.ends_with("the window") => space.claim_with(KEY, &long_ago),
                _ => space.claim_with(KEY, &options),
            } {
                Ok(Claim::Resumed(it)) => format!("Resumed, attempt {}", it.attempt()),
                Ok(Claim::Acquired(it)) => format!("Acquired, attempt {}", it.attempt()),
                Ok(Claim::Completed(_)) => "Completed".to_owned(),
                Ok(Claim::InProgress(_)) => "InProgress".to_owned(),
                Ok(Claim::Mismatch(it)) => format!("Mismatch, {}", it.state()),
                Ok(Claim::Parked(_)) => "Parked".to_owned(),
                Ok(Claim::InDoubt(_)) => "InDoubt".to_owned(),
                Ok(Claim::OutsideWindow(_)) => "OutsideWindow".to_owned(),
                Err(ClaimError::Full { .. }) => "full".to_owned(),
                Err(ClaimError::QuotaExceeded(_)) => "`QuotaExceeded`".to_owned(),
                other => panic!("{other:?}"),
            },
            "once" => match match space.once(KEY, print) {
                Err(ClaimError::QuotaExceeded(_)) => return "`QuotaExceeded`".to_owned(),
                answer => answer.unwrap(),
            } {
                Once::First(it) => format!("First, attempt {}", it.attempt()),
                Once::Seen(_) => "Seen".to_owned(),
                Once::InProgress(_) => "InProgress".to_owned(),
                Once::Mismatch(it) => format!("Mismatch, {}", it.state()),
                Once::Parked(_) => "Parked".to_owned(),
                Once::InDoubt(_) => "InDoubt".to_owned(),
                other => panic!("{other:?}"),
            },
            "lookup" => {
                let told = name_of(&space.lookup(KEY).unwrap());
                let shown = space.lookup_with(KEY, |lookup| name_of(&lookup)).unwrap();
                assert_eq!(told, shown, "without a copy");
                told.to_owned()
            }
            "renew" => match space.renew(KEY, token) {
                Ok(it) if it.late_by().is_some() => "Ok, late".to_owned(),
                other => lease_answer(other.map(drop)),
            },
            "release" => lease_answer(space.release(KEY, token)),
            "park" => lease_answer(space.park(KEY, token)),
            "complete" => {
                let body = if call.ends_with("other outcome") { "different" } else { "outcome" };
                match space.complete(KEY, token, body) {
                    Ok(_) => "Ok".to_owned(),
                    Err(CompleteError::Fenced { .. }) => "`Fenced`".to_owned(),
                    Err(CompleteError::Forgotten { .. }) => "`Forgotten`".to_owned(),
                    Err(CompleteError::AlreadyCompleted(_)) => "`AlreadyCompleted`".to_owned(),
                    Err(CompleteError::Parked) => "`Parked`".to_owned(),
                    Err(other) => panic!("{other}"),
                }
            }
            "resolve done" => resolve_answer(
                space
                    .resolve(KEY, token, &Resolution::Completed(done), "a test", "nobody")
                    .map(drop),
            ),
            "resolve not done" => resolve_answer(
                space.resolve(KEY, token, &Resolution::NotDone, "a test", "nobody").map(drop),
            ),
            "forget" => match space.forget(KEY, "a test", "nobody").unwrap() {
                Some(state) => format!("was {state}"),
                None => "was nothing".to_owned(),
            },
            "forget all" => space.forget_all("a test", "nobody").unwrap().to_string(),
            "erase" => match space.erase(KEY, "a test", "nobody", Duration::from_secs(60)) {
                Ok(erased) => erased.keys.to_string(),
                Err(EraseError::InDoubt(_)) => "`InDoubt`".to_owned(),
                Err(other) => panic!("{other}"),
            },
            "lease ends" => {
                self.clock.advance(LEASE);
                String::new()
            }
            "process dies" => {
                self.reopen();
                String::new()
            }
            other => panic!("{other}"),
        }
    }
}

/// What a lookup found, whatever shows the outcome.
fn name_of<O>(lookup: &Lookup<O>) -> &'static str {
    match lookup {
        Lookup::Absent => "Absent",
        Lookup::InProgress(_) => "InProgress",
        Lookup::Lapsed(_) => "Lapsed",
        Lookup::Parked(_) => "Parked",
        Lookup::InDoubt(_) => "InDoubt",
        Lookup::Completed(_) => "Completed",
        _ => panic!("a state that has no name here"),
    }
}

fn lease_answer(answer: Result<(), LeaseError>) -> String {
    match answer {
        Ok(()) => "Ok".to_owned(),
        Err(LeaseError::Fenced { .. }) => "`Fenced`".to_owned(),
        Err(LeaseError::Forgotten { .. }) => "`Forgotten`".to_owned(),
        Err(LeaseError::Completed) => "`Completed`".to_owned(),
        Err(LeaseError::Parked) => "`Parked`".to_owned(),
        Err(other) => panic!("{other}"),
    }
}

fn resolve_answer(answer: Result<(), ResolveError>) -> String {
    match answer {
        Ok(()) => "Ok".to_owned(),
        Err(ResolveError::Fenced { .. }) => "`Fenced`".to_owned(),
        Err(ResolveError::Forgotten) => "`Forgotten`".to_owned(),
        Err(ResolveError::InProgress) => "`InProgress`".to_owned(),
        Err(ResolveError::AlreadyCompleted(_)) => "`AlreadyCompleted`".to_owned(),
        Err(other) => panic!("{other}"),
    }
}

/// What the store does: the answer, and the state after it when it is another one.
fn cell(state: &str, call: &str) -> String {
    let mut scene = Scene::in_state(state);
    let answer = scene.call(call);
    let after = scene.state();
    match (answer.is_empty(), after == state) {
        (true, true) => "-".to_owned(),
        (true, false) => format!("-> {after}"),
        (false, true) => answer,
        (false, false) => format!("{answer} -> {after}"),
    }
}

fn rows() -> Vec<Vec<String>> {
    let mut rows = vec![];
    for call in CALLS {
        let mut row = vec![call.to_owned()];
        row.extend(STATES.iter().map(|state| cell(state, call)));
        rows.push(row);
    }
    rows
}

#[test]
fn every_cell_of_the_document_is_what_the_store_does() {
    let document = include_str!("../docs/STATES.md");
    let table: Vec<Vec<String>> = document
        .lines()
        .filter(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(|it| it.trim().to_owned()).collect())
        .filter(|cells: &Vec<String>| cells.len() == STATES.len() + 1)
        .collect();
    let rows = rows();
    if std::env::var_os("REFRAIN_PRINT").is_some() {
        println!("| call | {} |\n|{}", STATES.join(" | "), "---|".repeat(STATES.len() + 1));
        for row in &rows {
            println!("| {} |", row.join(" | "));
        }
    }
    let heads: Vec<_> = table[0][1..].iter().map(String::as_str).collect();
    assert_eq!(heads, STATES);
    assert!(table[1].iter().all(|cell| cell.chars().all(|it| it == '-')));
    assert_eq!(table.len() - 2, rows.len(), "the document has a row for each call");
    for (written, found) in table[2..].iter().zip(&rows) {
        assert_eq!(written, found);
    }
}
