//! Locks and atomics of an explorer of schedules, with the calls of the real ones.
//!
//! Nothing of it is compiled without `--cfg loom` or `--cfg shuttle`, see `scripts/explore.sh`.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::PoisonError;
use std::time::Duration;

#[cfg(loom)]
use ::loom as explorer;
#[cfg(all(shuttle, not(loom)))]
use ::shuttle as explorer;

pub(crate) use explorer::hint::spin_loop;
pub(crate) use explorer::sync::RwLockReadGuard;
pub(crate) use explorer::sync::atomic;
#[cfg(test)]
pub(crate) use explorer::thread;
pub(crate) use explorer::thread::yield_now;

/// Runs `body` under every schedule with few preemptions (loom: `LOOM_MAX_PREEMPTIONS`, else 3), or under
/// random ones (shuttle: `REFRAIN_SCHEDULES`, else 10,000, half of them by probabilities of few changes).
#[cfg(test)]
pub(crate) fn explore(body: impl Fn() + Send + Sync + 'static) {
    #[cfg(loom)]
    {
        let mut builder = explorer::model::Builder::new();
        builder.preemption_bound = builder.preemption_bound.or(Some(3));
        builder.check(body);
    }
    #[cfg(all(shuttle, not(loom)))]
    {
        let schedules = std::env::var("REFRAIN_SCHEDULES").ok().and_then(|it| it.parse().ok());
        let half = schedules.unwrap_or(10_000_usize).div_ceil(2);
        let body = std::sync::Arc::new(body);
        let again = std::sync::Arc::clone(&body);
        explorer::check_random(move || body(), half);
        explorer::check_pct(move || again(), half, 3);
    }
}

/// Time does not pass under an explorer: others run.
pub(crate) fn sleep(_time: Duration) {
    yield_now();
}

#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(explorer::sync::Mutex<T>);

/// Empty only while a condition variable has what it holds.
pub(crate) struct MutexGuard<'a, T>(Option<explorer::sync::MutexGuard<'a, T>>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(explorer::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard(Some(self.0.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.0.try_lock().ok().map(|guard| MutexGuard(Some(guard)))
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        match &self.0 {
            Some(guard) => guard,
            None => unreachable!("nobody has the guard meanwhile"),
        }
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        match &mut self.0 {
            Some(guard) => guard,
            None => unreachable!("nobody has the guard meanwhile"),
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Condvar(explorer::sync::Condvar);

impl Condvar {
    pub(crate) fn new() -> Self {
        Self(explorer::sync::Condvar::new())
    }

    pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        if let Some(held) = guard.0.take() {
            guard.0 = Some(self.0.wait(held).unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// As [`sleep`]: somebody has to wake the thread.
    pub(crate) fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, _time: Duration) -> bool {
        self.wait(guard);
        false
    }

    pub(crate) fn notify_one(&self) {
        self.0.notify_one();
    }
}

explorer::thread_local! {
    static PARKER: std::rc::Rc<Parker> = std::rc::Rc::default();
}

/// What a thread sleeps on until it is woken, or has been.
pub(crate) fn parker() -> std::rc::Rc<Parker> {
    PARKER.with(std::rc::Rc::clone)
}

#[derive(Debug, Default)]
pub(crate) struct Parker(Unparker);

#[derive(Clone, Debug, Default)]
pub(crate) struct Unparker(std::sync::Arc<(Mutex<bool>, Condvar)>);

impl Parker {
    pub(crate) fn unparker(&self) -> &Unparker {
        &self.0
    }

    pub(crate) fn park(&self) {
        let (is_woken, woken) = &*self.0.0;
        let mut is_woken = is_woken.lock();
        while !std::mem::take(&mut *is_woken) {
            woken.wait(&mut is_woken);
        }
    }

    /// As [`sleep`]: somebody has to wake the thread.
    pub(crate) fn park_timeout(&self, _time: Duration) {
        self.park();
    }
}

impl Unparker {
    pub(crate) fn unpark(&self) {
        let (is_woken, woken) = &*self.0;
        *is_woken.lock() = true;
        woken.notify_one();
    }
}

#[derive(Debug, Default)]
pub(crate) struct RwLock<T>(explorer::sync::RwLock<T>);

impl<T> RwLock<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(explorer::sync::RwLock::new(value))
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> explorer::sync::RwLockWriteGuard<'_, T> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
