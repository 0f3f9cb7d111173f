//! Latency at a constant rate of arrivals, from an empty store to a full one.
//!
//! Each arrival claims a fresh key and completes it, and is timed from when it was due, not from
//! when the thread came to it: a stall is charged to all that waited for it. The thread asks the
//! kernel after each stall what has happened to it, and before, while it waits for the next
//! arrival; the longest latency is told with the stall that began it. For refrain every
//! tenth key goes to a namespace that forgets after seconds, so that segments are purged and used
//! again all along; the others forget nothing.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use refrain::{FencingToken, Fingerprint, Policy};

use super::{Order, tell};
use crate::contestants::refrain::Refrain;
use crate::contestants::{Job, READY};
use crate::keys::{BODY, Bodies, Body, Key, fingerprint, key};
use crate::machine::{self, ThreadCounts};
use crate::store::{Answer, Hand, Result, Setup, StallCounts, State, Store};

/// What takes longer than this is a stall, and looked into.
const STALL: Duration = Duration::from_micros(100);
/// How old a reading of the counters may be when nothing is due.
const READING_AGE: Duration = Duration::from_millis(2);
/// How long nothing must be due to take one: it takes time itself.
const READING_ROOM: Duration = Duration::from_micros(60);

pub struct Latency<'a>(pub &'a Order);

impl Job for Latency<'_> {
    fn run<S: Store>(&self) -> Result<()> {
        let order = self.0;
        machine::warm_heap(order.count("heap")?);
        machine::warm(order.count("warm")?)?;
        if order.store == "refrain" || order.store == READY {
            return run::<Forgetting>(order);
        }
        run::<S>(order)
    }
}

fn run<S: Store>(order: &Order) -> Result<()> {
    let store = S::open(&order.setup("fill")?)?;
    let (n, rate) = (order.count("n")?, order.number("rate")?);
    if rate > 0.0 {
        return at_rate(&store, n, rate);
    }
    // One after the other, as fast as it goes.
    let (mut hand, mut out, bodies, start) =
        (store.hand()?, [0; BODY], Bodies::new(), Instant::now());
    for nth in 0..n {
        let key = key(nth as u64);
        hand.pass(&key, fingerprint(&key), bodies.nth(nth), &mut out)?;
    }
    tell("closed loop", n as f64 / start.elapsed().as_secs_f64());
    Ok(())
}

/// What the thread has seen of a stall.
#[derive(Clone, Copy, Default)]
struct Stall {
    length: Duration,
    at: f64,
    counts: ThreadCounts,
    store: StallCounts,
}

fn at_rate<S: Store>(store: &S, n: usize, rate: f64) -> Result<()> {
    let (bodies, mut hand, mut out) = (Bodies::new(), store.hand()?, [0; BODY]);
    let histogram = || Histogram::<u64>::new_with_bounds(10, 600_000_000_000, 3);
    let (mut claims, mut pairs) = (histogram()?, histogram()?);
    let (mut counts, mut stalls) = ((ThreadCounts::now(), store.stall_counts()), 0u32);
    let (mut worst_here, mut worst, mut longest) = (Stall::default(), Stall::default(), 0);
    let start = Instant::now();
    let mut read = start;
    let mut free = start;
    for nth in 0..n {
        let key = key(nth as u64);
        let due = start + Duration::from_secs_f64(nth as f64 / rate);
        let mut now = Instant::now();
        if now < due {
            // What was late is made up for.
            worst_here = Stall::default();
            if due - now > READING_ROOM && now - read > READING_AGE {
                (counts, read) = ((ThreadCounts::now(), store.stall_counts()), Instant::now());
            }
            free = Instant::now();
            while Instant::now() < due {
                std::hint::spin_loop();
            }
            now = Instant::now();
            free = free.max(due);
        }
        // From when the thread could have begun: it may have been off the processor since.
        let begun = if now - free > STALL { free } else { now };
        let answer = hand.claim(&key, fingerprint(&key), &mut out)?;
        let claimed = Instant::now();
        let Answer::Acquired(token) = answer else {
            return Err(format!("a fresh key was answered {answer:?}").into());
        };
        hand.complete(&key, token, bodies.nth(nth))?;
        let done = Instant::now();
        free = done;
        let nanos = |length: Duration| length.as_nanos() as u64;
        claims.record(nanos(claimed - due).max(10))?;
        pairs.record(nanos(done - due).max(10))?;
        if done - begun > STALL {
            stalls += 1;
            let (thread, own) = (ThreadCounts::now(), store.stall_counts());
            let stall = Stall {
                length: done - begun,
                at: (begun - start).as_secs_f64(),
                counts: thread.since(counts.0),
                store: StallCounts { room_waits: own.room_waits - counts.1.room_waits, ..own },
            };
            (counts, read) = ((thread, own), Instant::now());
            free = read;
            if stall.length > worst_here.length {
                worst_here = stall;
            }
        }
        if nanos(claimed - due) > longest {
            (longest, worst) = (nanos(claimed - due), worst_here);
        }
    }
    let elapsed = start.elapsed().as_secs_f64();
    tell("rate reached", n as f64 / elapsed);
    for (name, histogram) in [("claim", &claims), ("pair", &pairs)] {
        for percentile in [50.0, 90.0, 99.0, 99.9, 99.99] {
            let value = histogram.value_at_percentile(percentile);
            tell(&format!("{name} p{percentile}"), value as f64 / 1e3);
        }
        tell(&format!("{name} max"), histogram.max() as f64 / 1e3);
    }
    tell("stalls", f64::from(stalls));
    tell_worst(&worst);
    let own = store.stall_counts();
    for (name, value) in [
        ("room_waits", own.room_waits),
        ("purged", own.purged),
        ("copied", own.copied),
        ("recycled", own.recycled),
        ("purge_hold_us", own.purge_hold_ns / 1000),
    ] {
        tell_count(name, value);
    }
    Ok(())
}

/// The stall that the longest latency began with, in microseconds and counts.
fn tell_worst(worst: &Stall) {
    tell("worst stall", worst.length.as_secs_f64() * 1e6);
    tell("worst at", worst.at);
    tell("worst off the processor", worst.counts.waiting_ns as f64 / 1e3);
    tell_count("worst faults", worst.counts.faults);
    tell_count("worst major faults", worst.counts.major_faults);
    tell_count("worst blocked", worst.counts.blocked);
    tell_count("worst room_waits", worst.store.room_waits);
}

/// What has not happened is not told.
fn tell_count(metric: &str, count: u64) {
    if count > 0 {
        tell(metric, count as f64);
    }
}

/// refrain with a second namespace, which forgets soon.
struct Forgetting {
    refrain: Refrain,
    brief: refrain::Namespace,
}

impl Store for Forgetting {
    type Hand<'a> = ForgettingHand<'a>;

    fn open(setup: &Setup) -> Result<Self> {
        let refrain = Refrain::open(setup)?;
        let window = Duration::from_secs(4);
        let policy = Policy::default().lease(window).replay_ttl(window).dedupe_ttl(window);
        let brief = refrain.store.define("brief", &policy)?;
        Ok(Self { refrain, brief })
    }

    fn hand(&self) -> Result<ForgettingHand<'_>> {
        Ok(ForgettingHand { store: self, nth: 0 })
    }

    fn stall_counts(&self) -> StallCounts {
        self.refrain.stall_counts()
    }
}

struct ForgettingHand<'a> {
    store: &'a Forgetting,
    nth: u64,
}

impl ForgettingHand<'_> {
    fn namespace(&self) -> &refrain::Namespace {
        match self.nth.is_multiple_of(10) {
            true => &self.store.brief,
            false => &self.store.refrain.namespace,
        }
    }
}

impl Hand for ForgettingHand<'_> {
    fn claim(&mut self, key: &Key, fingerprint: [u8; 16], _: &mut Body) -> Result<Answer> {
        self.nth += 1;
        let claim = self.namespace().claim(key, Fingerprint::from_digest(fingerprint))?;
        match claim.acquired() {
            Some(lease) => Ok(Answer::Acquired(lease.token().get())),
            None => Ok(Answer::InProgress),
        }
    }

    fn complete(&mut self, key: &Key, token: u64, body: &Body) -> Result<()> {
        self.namespace().complete(key, FencingToken::from_raw(token), body)?;
        Ok(())
    }

    fn lookup(&mut self, key: &Key, out: &mut Body) -> Result<State> {
        self.store.refrain.hand()?.lookup(key, out)
    }
}
