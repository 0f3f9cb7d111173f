//! The one door to locks and condition variables, so that a schedule explorer can stand in for
//! them.

pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard};
