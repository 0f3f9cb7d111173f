//! A few threads and futures that wait for rounds, under every schedule (loom) or many (shuttle).

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use super::poison::Poison;
use super::rounds::{Leader, RoundWait, Rounds};
use crate::error::Failure;
use crate::sys::explored::{explore, thread};
use crate::sys::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A disk that makes durable what was published, and may fail. What is published and durable orders
/// nothing: the rounds must.
#[derive(Default)]
struct Disk {
    published: AtomicU64,
    durable: AtomicU64,
    syncs: AtomicU64,
    wanted: AtomicBool,
    fails: bool,
}

impl Leader for Disk {
    fn sync(&self) -> Result<(), Arc<Failure>> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        if self.fails {
            return Err(Failure::new("sync", PathBuf::new(), io::Error::other("EIO")));
        }
        let published = self.published.load(Ordering::Relaxed);
        self.durable.store(published, Ordering::Relaxed);
        Ok(())
    }

    fn wanted(&self) {
        self.wanted.store(true, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct All {
    rounds: Rounds,
    poison: Poison,
    disk: Disk,
}

impl All {
    /// Publishes something and waits for it.
    fn publish(&self) -> Result<(), Arc<Failure>> {
        let mine = self.disk.published.fetch_add(1, Ordering::Relaxed) + 1;
        self.rounds.wait(self.rounds.ticket(), &self.poison, &self.disk)?;
        let durable = self.disk.durable.load(Ordering::Relaxed);
        assert!(durable >= mine, "{mine} is acknowledged and {durable} durable");
        Ok(())
    }
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn nobody_returns_before_what_he_published_is_durable() {
    explore(|| {
        let all = Arc::new(All::default());
        let other = Arc::clone(&all);
        let thread = thread::spawn(move || other.publish().is_ok());
        assert!(all.publish().is_ok());
        assert!(thread.join().is_ok_and(|it| it));
        let syncs = all.disk.syncs.load(Ordering::Relaxed);
        assert!((1..=2).contains(&syncs), "{syncs} syncs");
    });
}

#[test]
fn three_wait_and_each_is_woken() {
    explore(|| {
        let all = Arc::new(All::default());
        let others = [(); 2].map(|()| {
            let all = Arc::clone(&all);
            thread::spawn(move || all.publish().is_ok())
        });
        assert!(all.publish().is_ok());
        assert!(others.into_iter().all(|it| it.join().is_ok_and(|it| it)));
    });
}

#[test]
fn a_round_that_fails_fails_everybody() {
    explore(|| {
        let disk = Disk { fails: true, ..Disk::default() };
        let all = Arc::new(All { disk, ..All::default() });
        let other = Arc::clone(&all);
        let thread = thread::spawn(move || other.publish().is_err());
        assert!(all.publish().is_err());
        assert!(thread.join().is_ok_and(|it| it));
        assert_eq!(all.disk.syncs.load(Ordering::Relaxed), 1, "nothing is tried again");
    });
}

/// A future is woken by the round it waits for, or somebody is told that one must be led for it.
#[test]
fn a_future_is_not_forgotten() {
    explore(|| {
        let all = Arc::new(All::default());
        let woken = Arc::new(Woken(AtomicBool::new(false)));
        let other = Arc::clone(&all);
        let thread = thread::spawn(move || other.publish().is_ok());
        let mine = all.disk.published.fetch_add(1, Ordering::Relaxed) + 1;
        let mut wait = RoundWait::new(all.rounds.ticket());
        let waker = Waker::from(Arc::clone(&woken));
        let mut context = Context::from_waker(&waker);
        let first = wait.poll(&all.rounds, &all.poison, &all.disk, &mut context);
        assert!(thread.join().is_ok_and(|it| it));
        let is_woken = woken.0.load(Ordering::Relaxed);
        let is_told = all.disk.wanted.load(Ordering::Relaxed);
        match first {
            Poll::Ready(ended) => assert!(ended.is_ok()),
            Poll::Pending => assert!(is_woken || is_told, "the future waits for nobody"),
        }
        if first_is_over(&all, &mut wait, is_woken) {
            assert!(all.disk.durable.load(Ordering::Relaxed) >= mine);
        }
        wait.cancel(&all.rounds);
        assert_eq!(all.rounds.futures_ticket(), None);
    });
}

fn first_is_over(all: &All, wait: &mut RoundWait, is_woken: bool) -> bool {
    let mut context = Context::from_waker(Waker::noop());
    let polled = wait.poll(&all.rounds, &all.poison, &all.disk, &mut context);
    assert!(!is_woken || polled.is_ready(), "woken for nothing");
    polled.is_ready()
}

/// The end of all rounds waits for the one under way, and none begins after it.
#[test]
fn no_round_is_led_when_all_have_ended() {
    explore(|| {
        let all = Arc::new(All::default());
        let other = Arc::clone(&all);
        let thread = thread::spawn(move || {
            let ended = other.rounds.wait(other.rounds.ticket(), &other.poison, &other.disk);
            assert!(ended.is_ok());
        });
        all.rounds.end_all();
        let syncs = all.disk.syncs.load(Ordering::Relaxed);
        assert!(all.rounds.wait(all.rounds.ticket(), &all.poison, &all.disk).is_ok());
        assert_eq!(all.disk.syncs.load(Ordering::Relaxed), syncs, "a round after the end");
        assert!(thread.join().is_ok());
    });
}
