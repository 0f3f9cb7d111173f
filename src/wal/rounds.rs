//! Group commit by rounds.
//!
//! A writer publishes its record, takes a ticket for the next round to begin, and waits until that
//! round has ended. Whoever finds no leader leads: begins the round, syncs, ends it, wakes the
//! others. A batch is whatever was published while the round before was under way, and what those
//! publish next whom it woke: a leader lets them run before it begins, for as long as they come, or publish, as
//! who has several commits in flight does before it waits again.
//! Without that, writers fall into two halves that wait for one another's syncs. A lone writer pays
//! one sync and no thread switch.
//!
//! Invariants
//! - G1  A ticket is for a round that has not begun, so the round sees what was published before
//!   the ticket was taken. The mutex orders the two.
//! - G2  One round at a time. Pending tickets are for the round under way or the next one.
//! - G3  A round that fails, or whose leader panics, poisons the store and wakes everybody. Who
//!   poisons it elsewhere wakes the threads; maintenance wakes the futures.

use std::path::PathBuf;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::poison::Poison;
use crate::error::Failure;
use crate::sys::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sys::sync::{Mutex, MutexGuard, Unparker, parker, yield_now};
use crate::sys::wakers::wake_all;

/// The number of a round that has not begun when the ticket is taken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Ticket(u64);

impl Ticket {
    /// Whether its round has ended, when so many have.
    pub(crate) fn is_over(self, completed: u64) -> bool {
        completed >= self.0
    }
}

/// See the file's header.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    state: Mutex<State>,
    /// The last round that ended, for those who were woken: they need no lock to see it.
    completed: AtomicU64,
    /// Whether the last round that began was for many, for those who only want to know.
    is_shared: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// The last round that began.
    started: u64,
    /// The last round that ended.
    completed: u64,
    is_led: bool,
    /// No round begins any more; what there was to sync is synced, or the store is poisoned.
    is_over: bool,
    /// Threads that sleep until the rounds of even and of odd number (G2) have ended, so that a round's end wakes its
    /// own. Who is taken out is woken.
    threads: [Vec<(u64, Unparker)>; 2],
    /// How many were woken by the last round, its leader among them, or wait for the next one: so many
    /// may take part in it.
    expected: usize,
    /// Tickets taken for the next round so far, and those of the last one that began.
    tickets: u64,
    last_tickets: u64,
    futures: Vec<Sleeper>,
    next_sleeper: u64,
}

impl State {
    /// How many take part in the next round, if who asks leads it.
    fn joined(&self, parity: usize) -> usize {
        1 + self.threads[parity].len() + self.futures.len()
    }

    fn next_sleeper(&mut self) -> u64 {
        self.next_sleeper += 1;
        self.next_sleeper
    }
}

/// A leader lets others run so many times without another one coming, and so many times in all.
const GATHER_YIELDS: u32 = if cfg!(loom) { 1 } else { 8 };
const GATHER_YIELDS_ALL: u32 = if cfg!(loom) { 2 } else { 256 };

/// Tickets of a round that is for many.
const MANY: u64 = 4;

#[derive(Debug)]
struct Sleeper {
    ticket: Ticket,
    id: u64,
    waker: Waker,
}

/// What a leader does, and what wakes the thread that leads for futures.
pub(crate) trait Leader {
    /// Makes everything durable that was published before the call.
    fn sync(&self) -> Result<(), Arc<Failure>>;

    /// Somebody waits who cannot lead.
    fn wanted(&self);
}

impl Rounds {
    /// A ticket for the next round to begin.
    pub(crate) fn ticket(&self) -> Ticket {
        let mut state = self.state.lock();
        state.tickets += 1;
        Ticket(state.started + 1)
    }

    /// Waits until the ticket's round has ended, leading it if nobody does.
    pub(crate) fn wait(
        &self,
        ticket: Ticket,
        poison: &Poison,
        leader: &impl Leader,
    ) -> Result<(), Arc<Failure>> {
        // Two lists.
        let parity = (ticket.0 % 2) as usize;
        let mut state = self.state.lock();
        loop {
            if let Some(cause) = poison.cause() {
                return Err(Arc::clone(cause));
            }
            if state.completed >= ticket.0 || state.is_over {
                return Ok(());
            }
            if state.is_led {
                let id = Self::sleep(state, parity);
                // Acquire: what was synced comes before. Then it is in no list.
                let is_over = ticket.is_over(self.completed.load(Ordering::Acquire));
                if is_over && poison.cause().is_none() {
                    return Ok(());
                }
                state = self.awake(parity, id);
            } else {
                state.is_led = true;
                state = self.gather(state, parity);
                state.started += 1;
                state.last_tickets = std::mem::take(&mut state.tickets);
                self.is_shared.store(state.last_tickets >= MANY, Ordering::Relaxed);
                drop(state);
                self.lead(poison, leader);
                state = self.state.lock();
            }
        }
    }

    /// Sleeps until somebody takes the thread out of the list and wakes it, or wakes it for an earlier sleep. Gives its
    /// number in the list.
    fn sleep(mut state: MutexGuard<'_, State>, parity: usize) -> u64 {
        let (id, parker) = (state.next_sleeper(), parker());
        state.threads[parity].push((id, parker.unparker().clone()));
        drop(state);
        parker.park();
        id
    }

    /// The lock, with the thread out of the list whatever woke it.
    fn awake(&self, parity: usize, id: u64) -> MutexGuard<'_, State> {
        let mut state = self.state.lock();
        state.threads[parity].retain(|(other, _)| *other != id);
        state
    }

    /// Wakes all threads that wait, to meet the poison (G3).
    pub(crate) fn wake_threads(&self) {
        // Whoever is about to wait has looked for the poison under this lock.
        let threads = std::mem::take(&mut self.state.lock().threads);
        wake(threads.into_iter().flatten());
    }

    /// Wakes all futures. For a store that is poisoned or over; called with no lock held.
    pub(crate) fn wake_futures(&self) {
        let sleepers = std::mem::take(&mut self.state.lock().futures);
        wake_all(sleepers.into_iter().map(|sleeper| sleeper.waker));
    }

    /// Waits for the round under way, and lets none begin any more: everything is durable, or the
    /// store is poisoned, and the files are about to be given up.
    pub(crate) fn end_all(&self) {
        let mut state = self.state.lock();
        state.is_over = true;
        while state.is_led {
            let parity = (state.started % 2) as usize;
            let id = Self::sleep(state, parity);
            state = self.awake(parity, id);
        }
        drop(state);
        self.wake_threads();
        self.wake_futures();
    }

    /// Lets those run who may take part in the round that is about to begin, while more and more do, or publish
    /// on the way to it: no more than they had in the last round.
    fn gather<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        parity: usize,
    ) -> MutexGuard<'a, State> {
        let (mut joined, mut tickets) = (state.joined(parity), state.tickets);
        let most = state.last_tickets;
        let (mut idle, mut yields) = (0, 0);
        while joined < state.expected && idle < GATHER_YIELDS && yields < GATHER_YIELDS_ALL {
            drop(state);
            yield_now();
            state = self.state.lock();
            let publishes = state.tickets > tickets && state.tickets <= most;
            let has_come = state.joined(parity) > joined;
            idle = if has_come || publishes { 0 } else { idle + 1 };
            yields += 1;
            // The most that there were: who comes and goes is nobody new.
            (joined, tickets) = (joined.max(state.joined(parity)), state.tickets);
        }
        state
    }

    /// Leads the round that was just begun, to its end, good or bad.
    fn lead(&self, poison: &Poison, leader: &impl Leader) {
        let mut end = EndRound { rounds: self, poison, leader, result: None };
        end.result = Some(leader.sync());
    }

    /// Ends the round, and says whether futures wait for the next one that no thread will lead.
    fn end(&self, poison: &Poison, result: Result<(), Arc<Failure>>) -> bool {
        let mut state = self.state.lock();
        state.is_led = false;
        let parity = (state.started % 2) as usize;
        let expected = state.joined(0) + state.threads[1].len();
        state.expected = expected;
        let woken: Vec<Waker> = match result {
            Ok(()) => {
                state.completed = state.started;
                self.completed.store(state.completed, Ordering::Release);
                let done = Ticket(state.completed);
                let ended = state.futures.extract_if(.., |sleeper| sleeper.ticket <= done);
                ended.map(|sleeper| sleeper.waker).collect()
            }
            Err(cause) => {
                poison.set(cause);
                state.futures.drain(..).map(|sleeper| sleeper.waker).collect()
            }
        };
        let is_end = poison.cause().is_some() || state.is_over;
        let mut threads = std::mem::take(&mut state.threads[parity]);
        let next = &mut state.threads[1 - parity];
        let is_led_next = !next.is_empty();
        // Whoever waits for the end of all rounds may have come before this one had its number. Else one of those
        // who wait for the next round leads it.
        let leaders = if is_end { next.len() } else { next.len().min(1) };
        threads.extend(next.drain(..leaders));
        let is_stranded = !state.futures.is_empty() && !is_led_next;
        drop(state);
        wake(threads);
        // Wakers are foreign code: called with no lock held.
        wake_all(woken);
        is_stranded
    }

    /// The ticket that the futures need, when any wait.
    pub(crate) fn futures_ticket(&self) -> Option<Ticket> {
        self.state.lock().futures.iter().map(|sleeper| sleeper.ticket).max()
    }

    /// Whether the last round that began was for many. A hint.
    #[inline]
    pub(crate) fn is_shared(&self) -> bool {
        self.is_shared.load(Ordering::Relaxed)
    }

    /// How many rounds have ended.
    pub(crate) fn completed(&self) -> u64 {
        self.state.lock().completed
    }
}

/// Wakes threads that were taken out of the list; with no lock held, or each would sleep for it at once.
fn wake(threads: impl IntoIterator<Item = (u64, Unparker)>) {
    threads.into_iter().for_each(|(_, thread)| thread.unpark());
}

/// Ends the round also when the leader panics (G3).
struct EndRound<'a, L: Leader> {
    rounds: &'a Rounds,
    poison: &'a Poison,
    leader: &'a L,
    result: Option<Result<(), Arc<Failure>>>,
}

impl<L: Leader> Drop for EndRound<'_, L> {
    fn drop(&mut self) {
        let result = self.result.take().unwrap_or_else(|| {
            let panicked = std::io::Error::other("the thread that led the round panicked");
            Err(Failure::new("sync", PathBuf::new(), panicked))
        });
        let has_failed = result.is_err();
        let is_stranded = self.rounds.end(self.poison, result);
        // Behind the poison: whoever looks must find it, and tell those who wait for something else.
        if is_stranded || has_failed {
            self.leader.wanted();
        }
    }
}

/// A wait that does not block: a future for a ticket. Dropping it cancels nothing but the wait.
#[derive(Debug)]
pub(crate) struct RoundWait {
    ticket: Ticket,
    sleeper: Option<u64>,
}

impl RoundWait {
    pub(crate) fn new(ticket: Ticket) -> Self {
        Self { ticket, sleeper: None }
    }

    pub(crate) fn poll(
        &mut self,
        rounds: &Rounds,
        poison: &Poison,
        leader: &impl Leader,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), Arc<Failure>>> {
        // Foreign code: called with no lock held.
        let waker = context.waker().clone();
        let mut state = rounds.state.lock();
        if let Some(cause) = poison.cause() {
            return Poll::Ready(Err(Arc::clone(cause)));
        }
        if state.completed >= self.ticket.0 || state.is_over {
            return Poll::Ready(Ok(()));
        }
        let known = self.sleeper.and_then(|id| state.futures.iter_mut().find(|it| it.id == id));
        let replaced = if let Some(sleeper) = known {
            Some(std::mem::replace(&mut sleeper.waker, waker))
        } else {
            let id = state.next_sleeper();
            state.futures.push(Sleeper { ticket: self.ticket, id, waker });
            self.sleeper = Some(id);
            None
        };
        let is_led = state.is_led;
        drop(state);
        // The last waker of a task drops the task, and with it perhaps another wait.
        drop(replaced);
        if !is_led {
            leader.wanted();
        }
        Poll::Pending
    }

    /// Takes the waker back.
    pub(crate) fn cancel(&mut self, rounds: &Rounds) {
        if let Some(id) = self.sleeper.take() {
            let mut state = rounds.state.lock();
            let waker = state.futures.extract_if(.., |sleeper| sleeper.id == id).next();
            drop(state);
            drop(waker);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::thread;

    use super::*;

    /// A disk that makes everything published durable, and counts.
    #[derive(Default)]
    struct Disk {
        published: AtomicU64,
        durable: AtomicU64,
        syncs: AtomicU64,
        wanted: AtomicU64,
        fails: AtomicBool,
        panics: AtomicBool,
    }

    impl Leader for Disk {
        fn sync(&self) -> Result<(), Arc<Failure>> {
            self.syncs.fetch_add(1, Ordering::SeqCst);
            let seen = self.published.load(Ordering::SeqCst);
            thread::yield_now();
            assert!(!self.panics.load(Ordering::SeqCst), "asked to panic");
            if self.fails.load(Ordering::SeqCst) {
                return Err(Failure::new("sync", PathBuf::new(), std::io::Error::other("EIO")));
            }
            self.durable.fetch_max(seen, Ordering::SeqCst);
            Ok(())
        }

        fn wanted(&self) {
            self.wanted.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn nobody_returns_before_what_he_published_is_durable() {
        let (rounds, poison, disk) = (Rounds::default(), Poison::default(), Disk::default());
        let (threads, each) = (8, if cfg!(miri) { 5 } else { 500 });
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    for _ in 0..each {
                        let mine = disk.published.fetch_add(1, Ordering::SeqCst) + 1;
                        let ticket = rounds.ticket();
                        rounds.wait(ticket, &poison, &disk).unwrap();
                        assert!(disk.durable.load(Ordering::SeqCst) >= mine);
                    }
                });
            }
        });
        assert!(disk.syncs.load(Ordering::SeqCst) <= threads * each);
    }

    #[test]
    fn a_failed_round_fails_everybody_from_then_on() {
        let (rounds, poison, disk) = (Rounds::default(), Poison::default(), Disk::default());
        disk.fails.store(true, Ordering::SeqCst);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| rounds.wait(rounds.ticket(), &poison, &disk).unwrap_err());
            }
        });
        disk.fails.store(false, Ordering::SeqCst);
        assert!(rounds.wait(rounds.ticket(), &poison, &disk).is_err());
        assert_eq!(disk.syncs.load(Ordering::SeqCst), 1, "nothing is retried");
    }

    #[test]
    fn a_leader_that_panics_leaves_nobody_waiting() {
        let (rounds, poison, disk) = (Rounds::default(), Poison::default(), Disk::default());
        disk.panics.store(true, Ordering::SeqCst);
        thread::scope(|scope| {
            let waiters: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| rounds.wait(rounds.ticket(), &poison, &disk)))
                .collect();
            let ends = waiters.into_iter().map(|waiter| waiter.join());
            assert_eq!(ends.filter(|end| matches!(end, Ok(Err(_)))).count(), 3);
        });
        assert!(poison.cause().is_some());
    }

    #[test]
    fn who_publishes_and_never_waits_holds_nobody_up() {
        let (rounds, poison, disk) = (Rounds::default(), Poison::default(), Disk::default());
        // Far more than fit into the time slices of so few rounds.
        let most = if cfg!(miri) { 1_000 } else { 500_000_000_u64 };
        let (is_over, published) = (AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::SeqCst) && published.load(Ordering::SeqCst) < most {
                    rounds.ticket();
                    published.fetch_add(1, Ordering::SeqCst);
                }
            });
            for _ in 0..if cfg!(miri) { 2 } else { 20 } {
                // Somebody is expected who does not come.
                rounds.state.lock().expected = 2;
                rounds.wait(rounds.ticket(), &poison, &disk).unwrap();
            }
            is_over.store(true, Ordering::SeqCst);
        });
        assert!(published.load(Ordering::SeqCst) < most, "the leader waited as long as it went on");
    }

    #[test]
    fn futures_are_woken_by_the_round_they_wait_for() {
        let (rounds, poison, disk) = (Rounds::default(), Poison::default(), Disk::default());
        let mut context = Context::from_waker(Waker::noop());
        let mut wait = RoundWait::new(rounds.ticket());
        assert!(wait.poll(&rounds, &poison, &disk, &mut context).is_pending());
        assert!(wait.poll(&rounds, &poison, &disk, &mut context).is_pending());
        assert_eq!(disk.wanted.load(Ordering::SeqCst), 2, "somebody must lead for a future");
        assert_eq!(rounds.futures_ticket(), Some(wait.ticket));
        rounds.wait(wait.ticket, &poison, &disk).unwrap();
        assert_eq!(rounds.futures_ticket(), None);
        assert!(matches!(wait.poll(&rounds, &poison, &disk, &mut context), Poll::Ready(Ok(()))));
    }

    #[test]
    fn a_dropped_wait_leaves_nothing_behind() {
        let (rounds, poison, disk) = (Rounds::default(), Poison::default(), Disk::default());
        let mut context = Context::from_waker(Waker::noop());
        let mut wait = RoundWait::new(rounds.ticket());
        assert!(wait.poll(&rounds, &poison, &disk, &mut context).is_pending());
        wait.cancel(&rounds);
        assert_eq!(rounds.futures_ticket(), None);
    }
}
