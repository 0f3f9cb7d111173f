//! Scopes: the same key in two of them is two keys, through every call, and they stay so on the disk.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use refrain::testing::{HeapFs, SimClock};
use refrain::{
    Body, Claim, ClaimError, ClaimOptions, CompleteOptions, Durability, Fingerprint, KEY_BYTES_MAX,
    KeyState, LeaseError, Lookup, Lost, Namespace, NamespaceError, Once, Options, Policy,
    Resolution, SCOPE_BYTES_MAX, Store, StoreError,
};
use support::Random;
use support::disk::{HookFs, find_last, poke, read};
use support::task::Task;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

fn options(fs: &HeapFs, clock: &SimClock) -> Options {
    let options = Options::new("unused").file_system(fs.clone()).clock(clock.clone());
    options.segment_bytes(256 << 10).manual_maintenance(true)
}

fn policy() -> Policy {
    Policy::default().lease(SECOND).replay_ttl(HOUR).dedupe_ttl(HOUR)
}

fn open(fs: &HeapFs, clock: &SimClock) -> (Store, Namespace) {
    let store = options(fs, clock).open().unwrap();
    let space = store.define("space", &policy()).unwrap();
    (store, space)
}

/// Which required features the slots of the meta file name.
fn features(fs: &HeapFs) -> Vec<u8> {
    read(fs, "META").chunks(4096).map(|slot| slot[20]).collect()
}

/// Whatever is done to the key of one scope, the same key of another, and of none, is what it was.
#[test]
fn no_call_reaches_from_one_scope_to_another() {
    let clock = SimClock::new();
    let (store, space) = open(&HeapFs::new(), &clock);
    let [one, two] = ["one", "two"].map(|scope| space.scoped(scope).unwrap());
    assert_eq!((one.scope(), space.scope()), (Some(&b"one"[..]), None));
    let ask = |payload: &[u8]| ClaimOptions::new().fingerprint(Fingerprint::of(payload));
    for (round, victim) in [&two, &space].into_iter().enumerate() {
        let key = format!("key-{round}");
        let held = victim.claim_with(&key, &ask(b"its own")).unwrap().acquired().unwrap();
        let mut waits = Task::new(victim.claim_or_wait(&key, &ClaimOptions::new(), HOUR)).begun();
        let mut lost = Task::new(held.lost()).begun();
        let Lookup::InProgress(it) = victim.lookup(&key).unwrap() else { panic!() };
        let mut watches = Task::new(victim.wait(&key, &it, HOUR)).begun();
        let before = victim.lookup(&key).unwrap();

        let mut lease = one.claim_with(&key, &ask(b"another")).unwrap().acquired().unwrap();
        assert_eq!((lease.attempt(), lease.key()), (1, key.as_bytes()));
        lease.renew().unwrap();
        // A token opens nothing elsewhere.
        let token = held.token();
        assert!(matches!(one.renew(&key, token), Err(LeaseError::Fenced { .. })));
        assert!(one.complete(&key, token, "").is_err() && one.release(&key, token).is_err());
        let aliases = one.claim_batch(&[(&key, ClaimOptions::new()), (&key, ClaimOptions::new())]);
        assert!(aliases.iter().all(|it| matches!(it, Ok(Claim::InProgress(_)))));
        lease.complete("outcome of one").unwrap();
        assert!(matches!(one.once(&key, None).unwrap(), Once::Seen(_)));
        assert_eq!(one.forget(&key, "", "").unwrap(), Some(KeyState::Completed));
        let lease = one.claim(&key, None).unwrap().acquired().unwrap();
        let parked = lease.token();
        lease.park().unwrap();
        one.resolve(&key, parked, &Resolution::NotDone, "a test", "nobody").unwrap();
        one.claim(&key, None).unwrap().acquired().unwrap().release().unwrap();
        assert_eq!(one.lookup(&key).unwrap(), Lookup::Absent);

        assert_eq!(victim.lookup(&key).unwrap(), before);
        assert!(held.is_current().unwrap());
        assert!(waits.poll().is_pending() && lost.poll().is_pending());
        assert!(watches.poll().is_pending());
        assert_eq!((waits.woken(), lost.woken(), watches.woken()), (0, 0, 0));
        held.complete("outcome of the victim").unwrap();
        assert!(matches!(waits.ready(), Ok(Claim::Completed(_))));
        assert!(matches!(watches.ready(), Ok(true)) && matches!(lost.ready(), Lost::Ended));
        let outcome = victim.claim(&key, None).unwrap().completed().unwrap();
        assert_eq!(outcome.body(), Body::Bytes(b"outcome of the victim"));
        assert_eq!(one.lookup(&key).unwrap(), Lookup::Absent);
    }
    store.check_invariants().unwrap();
}

/// Bytes move over the boundary between scope and key, and into keys without a scope: never one key.
#[test]
fn scope_and_key_are_not_one_text() {
    let (store, space) = open(&HeapFs::new(), &SimClock::new());
    let is_new = |space: &Namespace, key: &[u8]| {
        assert!(matches!(space.once(key, None).unwrap(), Once::First(_)), "{key:?}");
        assert!(matches!(space.once(key, None).unwrap(), Once::Seen(_)));
    };
    let text = b"\x04acmeorder";
    is_new(&space, text);
    is_new(&space, b"order");
    for end in 1..text.len() {
        is_new(&space.scoped(&text[..end]).unwrap(), &text[end..]);
    }
    is_new(&space.scoped("acme").unwrap(), b"order");
    // As a record of the last one has it.
    is_new(&space.scoped([4]).unwrap(), b"acmeorder2");
    for byte in 0..=255 {
        is_new(&space.scoped([byte]).unwrap(), b"order");
        is_new(&space.scoped([byte]).unwrap(), &[byte]);
    }
    store.check_invariants().unwrap();
}

/// The longest scope and the longest key, and the shortest, by every call that takes a key.
#[test]
fn every_call_serves_a_scope() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let (store, space) = open(&fs, &clock);
    for (scope, key) in [
        (vec![0], vec![0]),
        (vec![255; SCOPE_BYTES_MAX], vec![255; KEY_BYTES_MAX]),
        (vec![1; 20], vec![2; 300]),
    ] {
        let space = space.scoped(&scope).unwrap();
        let lease = space.claim(&key, None).unwrap().acquired().unwrap();
        assert_eq!((lease.key(), lease.namespace().scope()), (&key[..], Some(&scope[..])));
        let of_lease = lease.namespace();
        assert!(matches!(of_lease.clone().lookup(&key).unwrap(), Lookup::InProgress(_)));
        space.renew(&key, lease.token()).unwrap();
        space.renew_for(&key, lease.token(), SECOND).unwrap();
        let mut renewing = Task::new(lease.renewer().run()).begun();
        let mut ended = Task::new(lease.ended()).begun();
        space.release(&key, lease.token()).unwrap();
        assert!(matches!(renewing.ready(), LeaseError::Forgotten { .. }));
        ended.ready();
        let lease = space.claim_async(&key, &ClaimOptions::new()).wait().unwrap();
        let token = lease.acquired().unwrap().token();
        space.park_async(&key, token).wait().unwrap();
        let done = Resolution::Completed(CompleteOptions::body(b"body"));
        space.resolve_async(&key, token, &done, "a test", "nobody").wait().unwrap();
        let shown = space.lookup_with(&key, |it| match it {
            Lookup::Completed(outcome) => outcome.body() == Body::Bytes(b"body"),
            _ => false,
        });
        assert!(shown.unwrap());
        assert!(space.claim_or_wait(&key, &ClaimOptions::new(), SECOND).wait().is_ok());
        assert!(space.forget_async(&key, "", "").wait().unwrap().is_some());
        let asked = [(&key, ClaimOptions::new())];
        let Ok(Claim::Acquired(lease)) = space.claim_batch(&asked).remove(0) else { panic!() };
        let complete = [(&key, lease.token(), CompleteOptions::body(b"again"))];
        space.complete_batch(&complete).remove(0).unwrap();
        assert!(matches!(space.once_batch(&asked).remove(0), Ok(Once::Seen(_))));
        assert!(matches!(space.lookup_batch(&[&key]).remove(0), Ok(Lookup::Completed(_))));
        assert!(matches!(space.once_async(&key, &ClaimOptions::new()).wait(), Ok(Once::Seen(_))));
        let long = [&key[..], &[0; KEY_BYTES_MAX]].concat();
        for (bad, len) in [(&b""[..], 0), (&long, long.len())] {
            match space.claim(bad, None) {
                Err(ClaimError::Store(StoreError::KeyLength { len: told })) => {
                    assert_eq!(told, len)
                }
                other => panic!("{other:?}"),
            }
            assert!(matches!(space.lookup(bad), Err(StoreError::KeyLength { .. })));
        }
    }
    for scope in [vec![], vec![1; SCOPE_BYTES_MAX + 1]] {
        let refused = space.scoped(&scope).unwrap_err();
        assert!(matches!(refused, NamespaceError::ScopeLength { len } if len == scope.len()));
    }
    let nested = space.scoped("a").unwrap().scoped("b");
    assert!(matches!(nested, Err(NamespaceError::ScopeWithinScope)));
    store.check_invariants().unwrap();
    drop(space);
    store.close().unwrap();
    let (store, space) = open(&fs, &clock);
    let scoped = space.scoped([255; SCOPE_BYTES_MAX]).unwrap();
    assert!(matches!(scoped.lookup([255; KEY_BYTES_MAX]).unwrap(), Lookup::Completed(_)));
    store.check_invariants().unwrap();
}

/// The encoding is in the files of every store that has scopes: these bytes, and a feature without which
/// nobody opens them. A store without scopes has neither.
#[test]
fn what_lies_on_the_disk_never_changes() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let (store, space) = open(&fs, &clock);
    assert!(matches!(space.once("\u{4}acmeorder-17", None).unwrap(), Once::First(_)));
    let scoped = space.scoped("acme").unwrap();
    assert_eq!(scoped.lookup("order-17").unwrap(), Lookup::Absent);
    assert_eq!(features(&fs), [0, 0], "nothing was written yet");
    assert!(matches!(scoped.once("order-17", None).unwrap(), Once::First(_)));
    assert_eq!(features(&fs), [4, 4], "each slot says so before the record does");
    let data = read(&fs, "data-00000");
    let at = find_last(&data, b"\x04acmeorder-17") as usize;
    // The header is 64 bytes long; its key's length, and its namespace.
    let header = &data[at - 64..at];
    assert_eq!((&header[10..12], &header[32..36]), (&[13, 0][..], &[1, 0, 0, 0x80][..]));
    store.abandon();
    for _ in 0..2 {
        let (store, space) = open(&fs, &clock);
        assert_eq!(features(&fs), [4, 4]);
        let scoped = space.scoped("acme").unwrap();
        assert!(matches!(scoped.lookup("order-17").unwrap(), Lookup::Completed(_)));
        assert_eq!(space.lookup("order-17").unwrap(), Lookup::Absent);
        drop((space, scoped));
        store.close().unwrap();
    }
    // Either slot alone is enough.
    for slot in 0..2 {
        let copy = fs.copy().unwrap();
        poke(&copy, "META", slot * 4096 + 100, &[0x55; 8]);
        let (store, space) = open(&copy, &clock);
        let scoped = space.scoped("acme").unwrap();
        assert!(matches!(scoped.lookup("order-17").unwrap(), Lookup::Completed(_)));
        store.abandon();
        assert!(features(&copy).contains(&4));
    }
    let (other, space) = open(&HeapFs::new(), &clock);
    assert!(matches!(space.once("order-17", None).unwrap(), Once::First(_)));
    drop(space);
    other.close().unwrap();
}

/// Keys of many scopes, against a plain map, over kills, closes and recycled segments.
#[test]
fn scopes_survive_what_keys_survive() {
    let mut random = Random::new(support::seed("scopes_survive_what_keys_survive"));
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let mut known = std::collections::BTreeMap::new();
    let scopes = ["", "a", "ab", "customer-17", "\u{1}"];
    for round in 0..6 {
        let how = [Durability::Sync, Durability::Buffered][round % 2];
        let store = options(&fs, &clock).durability(how).shards(1 << round).open().unwrap();
        let space = store.define("space", &policy()).unwrap();
        let of = |scope: &str| match scope {
            "" => space.clone(),
            scope => space.scoped(scope).unwrap(),
        };
        for (at, key) in &known {
            let (scope, number): &(usize, u64) = at;
            let found = of(scopes[*scope]).lookup(number.to_le_bytes()).unwrap();
            assert!(matches!(found, Lookup::Completed(it) if it.token() == *key));
        }
        for _ in 0..3000 {
            let scope = random.below(scopes.len() as u64) as usize;
            let number = random.below(2000);
            let space = of(scopes[scope]);
            match space.claim(number.to_le_bytes(), None).unwrap() {
                Claim::Acquired(lease) => {
                    let token = lease.token();
                    assert!(known.insert((scope, number), token).is_none());
                    lease.complete(number.to_le_bytes()).unwrap();
                }
                Claim::Completed(it) => assert_eq!(known[&(scope, number)], it.token()),
                other => panic!("{other:?}"),
            }
        }
        store.check_invariants().unwrap();
        drop(space);
        match round % 3 {
            0 => store.abandon(),
            1 => store.close().unwrap(),
            _ => {
                // All of it expires, and what held it is used again.
                for _ in 0..12 {
                    clock.advance(HOUR / 4);
                    store.maintain(Duration::MAX);
                }
                let space = store.namespace("space").unwrap();
                assert_eq!(space.stats().calls.expired, known.len() as u64);
                assert_eq!(store.stats().entries, 0);
                known.clear();
                store.abandon();
            }
        }
    }
}

#[test]
fn orphans_are_of_their_scope() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let (store, space) = open(&fs, &clock);
    for scope in ["one", "two"] {
        drop(space.scoped(scope).unwrap().claim("key", None).unwrap());
    }
    // It looks like one of the first scope, and is of none.
    drop(space.claim(b"\x03onekey", None).unwrap());
    store.abandon();
    let (store, space) = open(&fs, &clock);
    let told = |orphans: Vec<refrain::Orphan>| -> Vec<_> {
        let scope = |it: &refrain::Orphan| it.scope().map(|it| String::from_utf8_lossy(it).into());
        orphans.iter().map(|it| (scope(it), it.key().to_vec())).collect()
    };
    let of = |scope: Option<&str>, key: &[u8]| (scope.map(str::to_owned), key.to_vec());
    let all = [of(Some("one"), b"key"), of(Some("two"), b"key"), of(None, b"\x03onekey")];
    let sorted = |mut orphans: Vec<(Option<String>, Vec<u8>)>| {
        orphans.sort();
        orphans
    };
    assert_eq!(sorted(told(store.orphans().unwrap())), sorted(all.to_vec()));
    assert_eq!(sorted(told(space.orphans().unwrap())), sorted(all.to_vec()));
    let one = space.scoped("one").unwrap();
    assert_eq!(told(one.orphans().unwrap()), all[..1]);
    let orphan = one.orphans().unwrap().remove(0);
    one.resolve(orphan.key(), orphan.token(), &Resolution::NotDone, "a test", "nobody").unwrap();
    assert_eq!(one.orphans().unwrap().len(), 0);
    assert_eq!(space.orphans().unwrap().len(), 2);
}

/// A salvage takes scopes along, and says so in the new store.
#[test]
fn a_salvaged_store_has_its_scopes() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let (store, space) = open(&fs, &clock);
    let scoped = space.scoped("acme").unwrap();
    for key in ["key-1", "key-2"] {
        scoped.claim(key, None).unwrap().acquired().unwrap().complete("outcome").unwrap();
    }
    drop((space, scoped));
    store.close().unwrap();
    let at = find_last(&read(&fs, "data-00000"), b"key-1");
    poke(&fs, "data-00000", at, b"?");
    let target = HeapFs::new();
    let report = options(&fs, &clock).salvage(options(&target, &clock)).unwrap();
    assert_eq!((report.namespaces, report.records_unnamed), (1, 0));
    assert_eq!(features(&target), [4, 4]);
    let (store, space) = open(&target, &clock);
    let scoped = space.scoped("acme").unwrap();
    assert!(matches!(scoped.lookup("key-2").unwrap(), Lookup::Completed(_)));
    // The gap covers all keys alike.
    assert!(matches!(scoped.lookup("key-1").unwrap(), Lookup::InDoubt(_)));
    assert!(matches!(space.scoped("other").unwrap().lookup("key-2").unwrap(), Lookup::InDoubt(_)));
    let was = scoped.forget("key-1", "looked it up", "operator").unwrap();
    assert_eq!(was, Some(KeyState::Lapsed), "its claim is left");
    assert!(scoped.claim("key-1", None).unwrap().acquired().is_some());
    assert!(matches!(space.lookup("key-1").unwrap(), Lookup::InDoubt(_)));
    store.check_invariants().unwrap();
}

/// When the feature cannot be written down, nothing is: not even the record.
#[test]
fn a_scope_that_cannot_be_told_of_is_refused() {
    let fs = HeapFs::new();
    let fails = Arc::new(AtomicBool::new(false));
    let hook = {
        let fails = Arc::clone(&fails);
        move |operation: &'static str, name: &str| {
            let is_meta = operation == "sync" && name == "META";
            if is_meta && fails.load(Ordering::Relaxed) {
                return Err(std::io::Error::other("the disk is gone"));
            }
            Ok(())
        }
    };
    let options = Options::new("unused").file_system(HookFs::new(fs.clone(), hook));
    let options = options.clock(SimClock::new()).manual_maintenance(true);
    let store = options.durability(Durability::Buffered).open().unwrap();
    let space = store.namespace("space").unwrap();
    assert!(matches!(space.once("before", None).unwrap(), Once::First(_)));
    fails.store(true, Ordering::Relaxed);
    let refused = space.scoped("acme").unwrap().once("order-17", None).unwrap_err();
    assert!(matches!(&refused, ClaimError::Store(error) if error.is_poisoned()), "{refused:?}");
    let data = read(&fs, "data-00000");
    let is_there = data.windows(13).any(|bytes| bytes == b"\x04acmeorder-17");
    assert!(!is_there, "a record that nobody was told of");
    store.abandon();
}
