//! Owners who resume what they hold.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use std::sync::{Barrier, Mutex};
use std::task::Poll;
use std::thread;
use std::time::Duration;

use refrain::testing::{Crash, HeapFs, SimClock, SimDisk};
use refrain::{
    Claim, ClaimError, ClaimOptions, CompleteError, CompleteOptions, Durability, EndCause,
    FencingToken, Fingerprint, Lease, LeaseError, Lost, Namespace, OnLeaseEnd, OnOrphan, Once,
    Options, OwnerId, Policy, Reference, Resolution, Store,
};
use support::task::Task;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const ME: OwnerId = OwnerId([1; 16]);
const OTHER: OwnerId = OwnerId([2; 16]);

fn policy() -> Policy {
    Policy::default().lease(10 * SECOND).on_orphan(OnOrphan::KeepLease)
}

fn open(fs: &HeapFs, clock: &SimClock) -> Store {
    Options::new("unused").file_system(fs.clone()).clock(clock.clone()).open().unwrap()
}

fn on_disk(disk: &SimDisk, clock: &SimClock, durability: Durability) -> Store {
    let options = Options::new("unused").file_system(disk.mount()).clock(clock.clone());
    let options = options.segment_bytes(256 << 10).durability(durability);
    options.manual_maintenance(true).open().unwrap()
}

fn of(owner: OwnerId) -> ClaimOptions {
    ClaimOptions::new().owner(owner)
}

fn claim(space: &Namespace, key: impl AsRef<[u8]>, owner: OwnerId) -> Claim {
    space.claim_with(key, &of(owner)).unwrap()
}

fn acquired(claim: Claim) -> Lease {
    match claim {
        Claim::Acquired(lease) => lease,
        other => panic!("{other:?}"),
    }
}

fn resumed(claim: Claim) -> Lease {
    match claim {
        Claim::Resumed(lease) => lease,
        other => panic!("{other:?}"),
    }
}

fn holder(claim: Claim) -> FencingToken {
    match claim {
        Claim::InProgress(it) => it.token(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_owner_resumes_what_he_holds_and_his_old_handle_is_fenced() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = open(&fs, &clock);
    let space = store.define("space", &policy()).unwrap();
    let reference = Reference([5; 16]);
    let first = space.claim_with("key", &of(ME).reference(reference)).unwrap();
    let mut old = acquired(first);
    let mut lost = Task::new(old.lost()).begun();
    assert!(lost.poll().is_pending());
    clock.advance(4 * SECOND);
    let new = resumed(claim(&space, "key", ME));
    assert!(new.token() > old.token());
    assert_eq!((new.attempt(), new.previous()), (1, None));
    // A lease of its own, from now on.
    assert_eq!(new.lease_left(), 10 * SECOND);
    assert_eq!(new.deadline(), Some(clock.wall() + 10 * SECOND));
    // Everybody else is told of it as of any claim.
    for other in [of(OTHER), ClaimOptions::new()] {
        match space.claim_with("key", &other).unwrap() {
            Claim::InProgress(it) => {
                assert_eq!((it.token(), it.attempt()), (new.token(), 1));
                assert_eq!(it.reference(), Some(reference));
            }
            other => panic!("{other:?}"),
        }
    }
    let current = new.token();
    assert!(matches!(lost.poll(), Poll::Ready(Lost::Fenced { current: it }) if it == current));
    assert!(!old.is_current().unwrap());
    let is_fenced = |error: LeaseError| matches!(error, LeaseError::Fenced { current: it, .. } if it == current);
    assert!(is_fenced(old.renew().unwrap_err()));
    assert!(is_fenced(space.release("key", old.token()).unwrap_err()));
    assert!(is_fenced(space.park("key", old.token()).unwrap_err()));
    let first_token = old.token();
    let refused = old.complete("by the old one").unwrap_err();
    assert!(matches!(refused, CompleteError::Fenced { current: it, .. } if it == current));
    new.complete("by the new one").unwrap();
    match claim(&space, "key", ME) {
        Claim::Completed(outcome) => {
            assert_eq!((outcome.token(), outcome.first_token()), (current, first_token));
            assert_eq!((outcome.attempt(), outcome.reference()), (1, Some(reference)));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(store.stats().leases, 0);
    assert_eq!(store.stats().reserved_bytes, 0);
}

#[test]
fn only_the_holder_resumes_and_only_what_is_held() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = open(&fs, &clock);
    let space = store.define("space", &policy()).unwrap();
    // A claim of nobody is nobody's to resume.
    let nobody = space.claim("nobody's", None).unwrap().acquired().unwrap();
    assert_eq!(holder(claim(&space, "nobody's", ME)), nobody.token());
    assert_eq!(holder(space.claim("nobody's", None).unwrap()), nobody.token());
    // Another payload is another payload.
    let asks = |payload: &[u8]| of(ME).fingerprint(Fingerprint::of(payload));
    let lease = acquired(space.claim_with("payload", &asks(b"one")).unwrap());
    let other = space.claim_with("payload", &asks(b"two")).unwrap();
    assert!(matches!(other, Claim::Mismatch(_)));
    assert!(lease.is_current().unwrap());
    // A mark goes on with nothing.
    assert!(matches!(space.once_with("payload", &of(ME)).unwrap(), Once::InProgress(_)));
    // What is over is taken over, as by anybody; and then it is the other's.
    let mine = acquired(claim(&space, "over", ME));
    clock.advance(10 * SECOND);
    let his = acquired(claim(&space, "over", OTHER));
    assert_eq!(his.attempt(), 2);
    assert_eq!(his.previous().unwrap().token(), mine.token());
    assert_eq!(holder(claim(&space, "over", ME)), his.token());
    let again = resumed(claim(&space, "over", OTHER));
    assert_eq!((again.attempt(), again.previous()), (2, his.previous()));
    assert_eq!(again.previous().unwrap().cause(), EndCause::LeaseEnded);
    clock.advance(10 * SECOND);
    let back = acquired(claim(&space, "over", OTHER));
    assert_eq!((back.attempt(), back.previous().unwrap().token()), (3, again.token()));
    // Taken over by nobody, it is nobody's.
    clock.advance(10 * SECOND);
    let plain = acquired(space.claim("over", None).unwrap());
    assert_eq!(holder(claim(&space, "over", OTHER)), plain.token());
    // What waits for somebody's word waits for it.
    let parks = policy().on_lease_end(OnLeaseEnd::Park);
    let space = store.define("parks", &parks).unwrap();
    let lease = acquired(claim(&space, "overdue", ME));
    clock.advance(10 * SECOND);
    assert!(matches!(claim(&space, "overdue", ME), Claim::Parked(_)));
    lease.complete("late").unwrap();
    let lease = acquired(claim(&space, "parked", ME));
    let token = lease.token();
    lease.park().unwrap();
    assert!(matches!(claim(&space, "parked", ME), Claim::Parked(_)));
    space.resolve("parked", token, &Resolution::NotDone, "a test", "nobody").unwrap();
    assert_eq!(acquired(claim(&space, "parked", ME)).attempt(), 1);
}

/// Whoever is started again after a crash goes on where he was, by his name alone.
#[test]
fn an_owner_is_known_across_opens_renewals_and_copies() {
    let (disk, clock) = (SimDisk::new(1), SimClock::new());
    let store = on_disk(&disk, &clock, Durability::Sync);
    let space = store.define("space", &policy().lease(HOUR)).unwrap();
    let noise = store.define("noise", &Policy::default().lease(SECOND)).unwrap();
    let first = acquired(claim(&space, "renewed", ME));
    space.renew("renewed", first.token()).unwrap();
    let plain = acquired(claim(&space, "plain", ME));
    // Until their segments have gone, and they were copied.
    for number in 0..2000_u32 {
        let key = [&[7; 1000], &number.to_le_bytes()[..]].concat();
        drop(noise.claim(key, None).unwrap().acquired().unwrap().release_async());
    }
    for _ in 0..20 {
        clock.advance(2 * SECOND);
        store.maintain(Duration::MAX);
    }
    assert!(store.stats().copied > 0, "{:?}", store.stats());
    let mut last = [first.token(), plain.token()];
    disk.crash(Crash::PowerCut);
    store.abandon();
    for round in 0..3 {
        let store = on_disk(&disk, &clock, Durability::Sync);
        let space = store.namespace("space").unwrap();
        for (key, last) in ["renewed", "plain"].into_iter().zip(&mut last) {
            assert_eq!(holder(claim(&space, key, OTHER)), *last);
            let lease = resumed(claim(&space, key, ME));
            assert!(lease.token() > *last);
            assert_eq!(lease.attempt(), 1);
            // The process that had it is gone, and so is its token.
            let stale = space.complete(key, *last, "stale").unwrap_err();
            assert!(matches!(stale, CompleteError::Fenced { .. }));
            *last = lease.token();
        }
        if round == 0 {
            disk.crash(Crash::Kill);
            store.abandon();
        } else {
            store.abandon();
        }
    }
    // Where orphans are given to whoever comes, he is told that he comes as another attempt.
    let store = on_disk(&disk, &clock, Durability::Sync);
    let reclaims = store.define("reclaims", &policy().on_orphan(OnOrphan::Reclaim)).unwrap();
    let lease = acquired(claim(&reclaims, "key", ME));
    let token = lease.token();
    drop(lease);
    drop(reclaims);
    store.abandon();
    let store = on_disk(&disk, &clock, Durability::Sync);
    let space = store.namespace("reclaims").unwrap();
    let lease = acquired(claim(&space, "key", ME));
    let previous = lease.previous().unwrap();
    assert_eq!((lease.attempt(), previous.token()), (2, token));
    assert_eq!(previous.cause(), EndCause::Orphaned);
}

/// The process ends at each step of a resumption: one of both tokens is the key's, and if the new one was told, the new one.
#[test]
fn wherever_the_process_ends_the_key_has_one_owner() {
    for crash in [Crash::Kill, Crash::PowerCut] {
        let mut ended = 0;
        for steps in 0.. {
            let (disk, clock) = (SimDisk::new(steps), SimClock::new());
            let store = on_disk(&disk, &clock, Durability::Sync);
            let space = store.define("space", &policy()).unwrap();
            let old = acquired(claim(&space, "key", ME)).token();
            disk.crash_after(steps, crash);
            let answer = space.claim_with("key", &of(ME));
            let was_ended = disk.crashed().is_some();
            let told = answer.ok().filter(|_| !was_ended).map(|it| resumed(it).token());
            if !was_ended {
                disk.call_off_crash();
                disk.crash(crash);
            }
            drop(space);
            store.abandon();
            let store = on_disk(&disk, &clock, Durability::Sync);
            let space = store.namespace("space").unwrap();
            let found = holder(space.claim("key", None).unwrap());
            assert!(told.is_none_or(|told| found == told), "{crash:?} at {steps}");
            assert!(told.is_some() || found >= old);
            let lease = resumed(claim(&space, "key", ME));
            for stale in [Some(old), told, Some(found)].into_iter().flatten() {
                assert!(space.complete("key", stale, "stale").is_err());
            }
            lease.complete("done").unwrap();
            store.abandon();
            ended += u64::from(was_ended);
            if !was_ended {
                break;
            }
        }
        assert!(ended > 1, "{crash:?}: {ended}");
    }
}

/// Many of one name ask at once: each is granted in turn, and only the last one's token is any good.
#[test]
fn of_many_of_one_name_the_last_one_holds_the_key() {
    for durability in [Durability::Sync, Durability::Buffered] {
        let (disk, clock) = (SimDisk::new(1), SimClock::new());
        let store = on_disk(&disk, &clock, durability);
        let space = store.define("space", &policy().lease(HOUR)).unwrap();
        for round in 0..50 {
            let key = format!("{round}");
            let tokens = Mutex::new(Vec::new());
            let together = Barrier::new(6);
            let acquisitions = Mutex::new(0);
            thread::scope(|scope| {
                for number in 0..6 {
                    let (key, tokens, together, acquisitions, space) =
                        (&key, &tokens, &together, &acquisitions, space.clone());
                    scope.spawn(move || {
                        together.wait();
                        // Two of them are another owner, and nobody.
                        let options = match number {
                            0 => of(OTHER),
                            1 => ClaimOptions::new(),
                            _ => of(ME),
                        };
                        match space.claim_with(key, &options).unwrap() {
                            Claim::Acquired(lease) => {
                                *acquisitions.lock().unwrap() += 1;
                                tokens.lock().unwrap().push(lease.token());
                            }
                            Claim::Resumed(lease) => {
                                assert!(number > 1);
                                tokens.lock().unwrap().push(lease.token());
                            }
                            Claim::InProgress(_) => {}
                            other => panic!("{other:?}"),
                        }
                    });
                }
            });
            let mut tokens = tokens.into_inner().unwrap();
            assert_eq!(acquisitions.into_inner().unwrap(), 1);
            tokens.sort();
            let last = tokens.pop().unwrap();
            assert_eq!(holder(space.claim(&key, None).unwrap()), last);
            assert!(tokens.iter().all(|token| space.renew(&key, *token).is_err()));
            assert!(tokens.iter().all(|token| space.complete(&key, *token, "no").is_err()));
            space.complete(&key, last, "done").unwrap();
        }
        assert_eq!(store.stats().leases, 0);
        assert_eq!(store.stats().reserved_bytes, 0);
        store.check_invariants().unwrap();
        store.abandon();
    }
}

#[test]
fn a_batch_does_not_take_a_key_from_itself() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = open(&fs, &clock);
    let space = store.define("space", &policy()).unwrap();
    let held = acquired(claim(&space, "held", ME));
    let asks =
        [("new", of(ME)), ("held", of(ME)), ("new", of(ME)), ("held", of(OTHER)), ("held", of(ME))];
    let mut answers = space.claim_batch(&asks).into_iter().map(Result::unwrap);
    let new = acquired(answers.next().unwrap());
    let again = resumed(answers.next().unwrap());
    let aliases = answers.map(|answer| match answer {
        Claim::InProgress(it) => (it.token(), it.alias_of()),
        other => panic!("{other:?}"),
    });
    let (new_token, held_token) = (new.token(), again.token());
    let expected = [(new_token, Some(0)), (held_token, Some(1)), (held_token, Some(1))];
    assert_eq!(aliases.collect::<Vec<_>>(), expected);
    assert!(new.is_current().unwrap() && again.is_current().unwrap());
    assert!(!held.is_current().unwrap());
}

/// Whoever waits for the key goes on waiting, for whoever holds it now; whoever waited for that claim is told.
#[test]
fn who_waits_for_the_key_waits_for_its_new_holder() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = open(&fs, &clock);
    let space = store.define("space", &policy()).unwrap();
    let old = acquired(claim(&space, "key", ME));
    let mut heir = Task::new(space.claim_or_wait("key", &ClaimOptions::new(), HOUR)).begun();
    let Claim::InProgress(seen) = space.claim("key", None).unwrap() else { panic!() };
    let mut watcher = Task::new(space.wait("key", &seen, HOUR)).begun();
    assert!(heir.poll().is_pending() && watcher.poll().is_pending());
    // By a call that waits, too: it is his, so there is nothing to wait for.
    let waits = space.claim_or_wait("key", &of(ME), HOUR).wait().unwrap();
    let new = resumed(waits);
    assert!(matches!(watcher.poll(), Poll::Ready(Ok(true))));
    assert!(heir.poll().is_pending());
    clock.advance(9 * SECOND);
    assert!(heir.poll().is_pending());
    drop(old);
    new.complete("done").unwrap();
    assert!(matches!(heir.poll(), Poll::Ready(Ok(Claim::Completed(_)))));
}

/// W3: on a full disk each claim is renewed once, and ended in whichever way, with whatever it has.
#[test]
fn owned_claims_are_ended_on_a_full_disk() {
    for way in 0..4_u8 {
        let (fs, clock) = (HeapFs::new(), SimClock::new());
        let options = Options::new("unused").file_system(fs.clone()).clock(clock.clone());
        let options = options.segment_bytes(256 << 10).shards(4).lanes(1);
        let store = options.manual_maintenance(true).open().unwrap();
        let space = store.define("space", &policy().lease(SECOND).late_grace(HOUR)).unwrap();
        let all = |owner| {
            let options = of(owner).fingerprint(Fingerprint::of(b"payload"));
            options.reference(Reference([3; 16]))
        };
        // One that took over, so that its records have all there is.
        let key =
            |number: u32| [&number.to_le_bytes()[..], &[7; 16][..number as usize % 16]].concat();
        for number in 0..50 {
            drop(acquired(space.claim_with(key(number), &all(OTHER)).unwrap()));
        }
        clock.advance(SECOND);
        fs.set_room(0);
        let mut held = Vec::new();
        for number in 0.. {
            let long = all(ME).lease(HOUR);
            match space.claim_with(key(number), &long) {
                Ok(claim) => held.push((number, acquired(claim).token())),
                Err(ClaimError::Full { .. }) => break,
                Err(other) => panic!("{other}"),
            }
        }
        assert!(held.len() > 500, "{}", held.len());
        // What cannot be resumed for want of room is still held.
        for (number, token) in &mut held {
            match space.claim_with(key(*number), &all(ME)) {
                Ok(claim) => *token = resumed(claim).token(),
                Err(ClaimError::Full { .. }) => {}
                Err(other) => panic!("{other}"),
            }
        }
        // Who parks takes the room of a renewal for what ends it then.
        for (number, token) in held.iter().filter(|_| way < 2) {
            space.renew(key(*number), *token).unwrap();
        }
        let body = vec![7; 200_000];
        let done = CompleteOptions::body(&body).reference(Reference([4; 16]));
        for (number, token) in held {
            let key = key(number);
            match (way, number % 2) {
                (0, _) => assert!(space.complete_with(&key, token, &done).is_ok()),
                (1, _) => space.release(&key, token).unwrap(),
                (2, _) | (3, 0) => {
                    space.park(&key, token).unwrap();
                    let done = Resolution::Completed(done);
                    space.resolve(&key, token, &done, "a test", "nobody").unwrap();
                }
                _ => assert!(space.complete_with(&key, token, &done).is_ok()),
            }
        }
        assert_eq!(store.stats().reserved_bytes, 0, "way {way}");
        store.check_invariants().unwrap();
    }
}

/// Nobody is shown who holds a key: whoever knows the name can take it.
#[test]
fn an_owner_is_not_shown() {
    let options = of(OwnerId(*b"a secret of mine"));
    let shown = format!("{options:?} {:?}", OwnerId([77; 16]));
    assert!(!shown.contains("77") && !shown.contains("secret") && !shown.contains("97"), "{shown}");
}
