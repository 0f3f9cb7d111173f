//! Latency at a constant rate of arrivals, from an empty store to a full one.
//!
//! Each arrival claims a fresh key and completes it, and is timed from when it was due, not from
//! when the thread came to it: a stall is charged to all that waited for it. The longest latency of
//! a claim is told with the backlog that holds it: what the thread did from one wait for an arrival
//! to the next, the pair that made it late among it.
//!
//! What the kernel counts of the thread is read while nothing is due, so that no reading is older
//! than [`READING_AGE`] when a backlog begins, and again when one ends that was long. Arrivals
//! stand still meanwhile, some 15 us each time, or every reading would make a backlog of its own;
//! for how long in all is told. What is not exact: what was counted in the last milliseconds before
//! a backlog is taken for its own, so its time off the processor can exceed its length; and the
//! store's own counts are read at the end of long backlogs only, as refrain takes all its locks to
//! tell them: a wait for room that was no stall may be charged to a later backlog. A pair's time,
//! where backlogs are told, has in it what the thread does besides.
//!
//! For refrain every tenth key goes to a namespace that forgets after seconds, so that segments are
//! purged and used again all along. And it does what the peers do not: of the other keys a part is
//! forgotten one by one, a while after it was completed ([`Forgetting::forget_one`]), so that some
//! segments are no longer worth keeping and what is left in them is copied. That is done after a
//! pair, by the same thread: no claim and no pair is timed with it, but the next arrival waits for
//! it. The rate that is taken from the closed loop has it too.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use refrain::{FencingToken, Fingerprint, Policy};

use super::{Order, tell};
use crate::contestants::refrain::Refrain;
use crate::contestants::{Job, READY};
use crate::keys::{BODY, Bodies, Body, Key, fingerprint, key};
use crate::machine::{self, ThreadCounts};
use crate::store::{Answer, Hand, Result, Setup, StallCounts, Store};

/// A pair that takes longer than this is a stall, and a backlog is long.
const STALL: Duration = Duration::from_micros(100);
/// How old a reading of the counters may be when nothing is due.
const READING_AGE: Duration = Duration::from_millis(5);
/// Arrivals stand still for a reading no longer than this: if the thread loses the processor in the
/// middle of one, that is a stall like any other.
const READING_MAX: Duration = Duration::from_micros(50);
/// Pairs of the closed loop between two looks at the clock.
const LOOK_EVERY: usize = 64;
/// With so many arrivals refrain must have come to copy.
const FULL_SIZE: usize = 5_000_000;

pub struct Latency<'a>(pub &'a Order);

impl Job for Latency<'_> {
    fn run<S: Store>(&self) -> Result<()> {
        let order = self.0;
        machine::warm_heap(order.count("heap")?);
        machine::warm(order.count("warm")?)?;
        if order.store != "refrain" && order.store != READY {
            return run::<S>(order, |_, _| Ok(())).map(drop);
        }
        let counts = run::<Forgetting>(order, Forgetting::forget_one)?;
        let is_full_size = order.number("rate")? > 0.0 && order.count("n")? >= FULL_SIZE;
        match is_full_size && counts.copied == 0 {
            true => Err("nothing was copied: compaction was not at work".into()),
            false => Ok(()),
        }
    }
}

/// `besides` is what the thread does after the nth pair. Gives what the store has counted.
fn run<S: Store>(order: &Order, besides: impl Fn(&S, usize) -> Result<()>) -> Result<StallCounts> {
    let store = S::open(&order.setup("fill")?)?;
    let (n, rate) = (order.count("n")?, order.number("rate")?);
    if rate > 0.0 {
        at_rate(&store, n, rate, besides)?;
    } else {
        let length = Duration::from_secs_f64(order.number("seconds")?);
        closed_loop(&store, n, length, besides)?;
    }
    Ok(store.stall_counts())
}

/// One after the other, as fast as it goes: so many pairs, and for at least so long.
fn closed_loop<S: Store>(
    store: &S,
    n: usize,
    length: Duration,
    besides: impl Fn(&S, usize) -> Result<()>,
) -> Result<()> {
    let (mut hand, mut out, bodies) = (store.hand()?, [0; BODY], Bodies::new());
    let (mut nth, start) = (0, Instant::now());
    while nth < n || nth % LOOK_EVERY != 0 || start.elapsed() < length {
        let key = key(nth as u64);
        hand.pass(&key, fingerprint(&key), bodies.nth(nth), &mut out)?;
        besides(store, nth)?;
        nth += 1;
    }
    tell("closed loop", nth as f64 / start.elapsed().as_secs_f64());
    Ok(())
}

fn at_rate<S: Store>(
    store: &S,
    n: usize,
    rate: f64,
    besides: impl Fn(&S, usize) -> Result<()>,
) -> Result<()> {
    let (bodies, mut hand, mut out) = (Bodies::new(), store.hand()?, [0; BODY]);
    let histogram = || Histogram::<u64>::new_with_bounds(10, 600_000_000_000, 3);
    let (mut claims, mut pairs) = (histogram()?, histogram()?);
    let nanos = |length: Duration| (length.as_nanos() as u64).max(10);
    let mut thread = Thread::new(store, rate);
    for nth in 0..n {
        let key = key(nth as u64);
        let Arrival { due, begun } = thread.wait(nth);
        let answer = hand.claim(&key, fingerprint(&key), &mut out)?;
        let claimed = Instant::now();
        let Answer::Acquired(token) = answer else {
            return Err(format!("a fresh key was answered {answer:?}").into());
        };
        hand.complete(&key, token, bodies.nth(nth))?;
        let done = Instant::now();
        claims.record(nanos(claimed - due))?;
        pairs.record(nanos(done - due))?;
        besides(store, nth)?;
        thread.note(begun, claimed - due);
    }
    tell("rate due", rate);
    tell("rate reached", n as f64 / thread.end().as_secs_f64());
    for (name, histogram) in [("claim", &claims), ("pair", &pairs)] {
        for percentile in [50.0, 90.0, 99.0, 99.9, 99.99] {
            let value = histogram.value_at_percentile(percentile);
            tell(&format!("{name} p{percentile}"), value as f64 / 1e3);
        }
        tell(&format!("{name} max"), histogram.max() as f64 / 1e3);
    }
    tell("stalls", f64::from(thread.stalls));
    tell("stood still", thread.stood_still().as_secs_f64() * 1e6);
    thread.worst.tell();
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

/// What has not happened is not told.
fn tell_count(metric: &str, count: u64) {
    if count > 0 {
        tell(metric, count as f64);
    }
}

/// What the thread did from one wait for an arrival to the next.
#[derive(Clone, Copy)]
struct Backlog {
    /// When its first arrival was due.
    begun: Instant,
    at: Duration,
    length: Duration,
    arrivals: u64,
    /// In pairs, and what is done besides them; in those that were stalls; and in the longest.
    busy: Duration,
    stalled: Duration,
    longest_stall: Duration,
    /// The longest of a claim, from when it was due.
    latency: Duration,
    counts: ThreadCounts,
    room_waits: u64,
}

impl Backlog {
    fn new(begun: Instant) -> Self {
        let none = Duration::ZERO;
        Self {
            begun,
            at: none,
            length: none,
            arrivals: 0,
            busy: none,
            stalled: none,
            longest_stall: none,
            latency: none,
            counts: ThreadCounts::default(),
            room_waits: 0,
        }
    }

    fn tell(&self) {
        let micros = |length: Duration| length.as_secs_f64() * 1e6;
        tell("backlog at", self.at.as_secs_f64());
        tell("backlog length", micros(self.length));
        tell("backlog arrivals", self.arrivals as f64);
        tell("backlog service", micros(self.busy) / self.arrivals.max(1) as f64);
        tell("backlog stalled", micros(self.stalled));
        tell("backlog longest stall", micros(self.longest_stall));
        tell("backlog off the processor", self.counts.waiting_ns as f64 / 1e3);
        tell_count("backlog faults", self.counts.faults);
        tell_count("backlog major faults", self.counts.major_faults);
        tell_count("backlog blocked", self.counts.blocked);
        tell_count("backlog room_waits", self.room_waits);
    }
}

/// When an arrival was due, and when the thread began with it or could have.
struct Arrival {
    due: Instant,
    begun: Instant,
}

/// The thread that arrivals come to: when they are due, and what became of it meanwhile.
struct Thread<'a, S> {
    store: &'a S,
    rate: f64,
    began: Instant,
    /// When the first arrival would have been due, had arrivals never stood still.
    start: Instant,
    /// When the thread had done what it had to do.
    free: Instant,
    files: machine::ThreadFiles,
    counts: ThreadCounts,
    read: Instant,
    room_waits: u64,
    backlog: Backlog,
    worst: Backlog,
    stalls: u32,
}

impl<'a, S: Store> Thread<'a, S> {
    fn new(store: &'a S, rate: f64) -> Self {
        let files = machine::ThreadFiles::open();
        let (counts, room_waits) = (files.read(), store.stall_counts().room_waits);
        let now = Instant::now();
        let (backlog, worst) = (Backlog::new(now), Backlog::new(now));
        Self {
            store,
            rate,
            began: now,
            start: now,
            free: now,
            files,
            counts,
            read: now,
            room_waits,
            backlog,
            worst,
            stalls: 0,
        }
    }

    fn due(&self, nth: usize) -> Instant {
        self.start + Duration::from_secs_f64(nth as f64 / self.rate)
    }

    /// Waits for the nth arrival, if it is not due yet.
    fn wait(&mut self, nth: usize) -> Arrival {
        let (mut due, mut now) = (self.due(nth), Instant::now());
        if now < due {
            self.end_backlog();
            if now - self.read > READING_AGE {
                self.read();
            }
            due = self.due(nth);
            while now < due {
                std::hint::spin_loop();
                now = Instant::now();
            }
            self.free = due;
            self.backlog = Backlog::new(due);
        }
        // It may have been off the processor since it was free.
        let begun = if now - self.free > STALL { self.free } else { now };
        Arrival { due, begun }
    }

    /// An arrival is done with.
    fn note(&mut self, begun: Instant, latency: Duration) {
        self.free = Instant::now();
        let (length, backlog) = (self.free - begun, &mut self.backlog);
        backlog.arrivals += 1;
        backlog.busy += length;
        backlog.latency = backlog.latency.max(latency);
        if length > STALL {
            self.stalls += 1;
            backlog.stalled += length;
            backlog.longest_stall = backlog.longest_stall.max(length);
        }
    }

    /// Keeps what the backlog was if it holds the longest latency so far.
    fn end_backlog(&mut self) {
        let length = self.free - self.backlog.begun;
        let is_worst = self.backlog.latency > self.worst.latency;
        if length <= STALL && !is_worst {
            return;
        }
        let (counts, room_waits) = (self.counts, self.room_waits);
        self.read();
        self.read_own();
        if is_worst {
            self.worst = Backlog {
                at: self.backlog.begun - self.began,
                length,
                counts: self.counts.since(counts),
                room_waits: self.room_waits - room_waits,
                ..self.backlog
            };
        }
    }

    /// Reads the counters of the thread, while arrivals stand still.
    fn read(&mut self) {
        let begun = Instant::now();
        self.counts = self.files.read();
        self.read = Instant::now();
        self.start += (self.read - begun).min(READING_MAX);
    }

    /// The store's own, which may wait for locks that no claim would have waited for.
    fn read_own(&mut self) {
        let begun = Instant::now();
        self.room_waits = self.store.stall_counts().room_waits;
        self.start += begun.elapsed().min(READING_MAX);
    }

    /// How long arrivals stood still in all.
    fn stood_still(&self) -> Duration {
        self.start - self.began
    }

    /// Ends the last backlog; gives how long arrivals have come, without the time they stood still.
    fn end(&mut self) -> Duration {
        let length = self.free - self.start;
        self.end_backlog();
        length
    }
}

/// Of so many keys one after the other, the first ones are forgotten while as many more arrive:
/// more than two segments of completions, so that some are left nearly empty, wherever they begin.
const STRETCH: usize = 200_000;
/// One call in so many arrivals, but for those that are spared. A fifth of all keys goes this way.
const FORGET_EVERY: usize = 4;
/// The keys that go to the second namespace, and those that are left of what is forgotten: by the
/// last digit of their number.
const BRIEF: u64 = 9;
const SPARED: u64 = 4;

/// refrain with a second namespace, which forgets soon; and with keys that are forgotten.
struct Forgetting {
    refrain: Refrain,
    brief: refrain::Namespace,
}

impl Forgetting {
    /// Forgets, after the nth pair, one key of the stretch before, or spares it.
    fn forget_one(&self, nth: usize) -> Result<()> {
        let (stretch, at) = (nth / STRETCH, nth % STRETCH);
        if stretch == 0 || at % FORGET_EVERY != 0 {
            return Ok(());
        }
        let number = ((stretch - 1) * STRETCH + at / FORGET_EVERY) as u64;
        if [BRIEF, SPARED].contains(&(number % 10)) {
            return Ok(());
        }
        match self.refrain.namespace.forget(key(number), "a stretch is over", "peers")? {
            Some(_) => Ok(()),
            None => Err("a completed key was gone before it was forgotten".into()),
        }
    }
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
        // Counted when it is claimed: the number of a key is one less.
        match (self.nth - 1) % 10 == BRIEF {
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

    fn lookup(&mut self, key: &Key, out: &mut Body) -> Result<bool> {
        self.store.refrain.hand()?.lookup(key, out)
    }
}
