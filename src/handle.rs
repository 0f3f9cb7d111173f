//! What all handles of an open store share: while one of them lives, the store is open.

use std::fmt;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam_utils::CachePadded;

use crate::engine::Engine;
use crate::engine::namespaces::NamespaceState;
use crate::engine::recovery::{self, OpenRequest};
use crate::error::OpenError;
use crate::report::RecoveryReport;
use crate::sys::sync::Mutex;

/// The engine and its maintenance thread.
pub(crate) struct Handle {
    engine: Arc<Engine>,
    thread: Mutex<Option<JoinHandle<()>>>,
    report: RecoveryReport,
}

impl Handle {
    /// Opens a store, and starts its thread if it is to have one. `place` is for messages.
    pub(crate) fn start(
        request: OpenRequest,
        has_thread: bool,
        place: PathBuf,
    ) -> Result<Arc<Self>, OpenError> {
        let (engine, report) = recovery::open(request)?;
        let engine = Arc::new(engine);
        let handle = Arc::new(Self { engine, thread: Mutex::new(None), report });
        if has_thread {
            let engine = Arc::clone(&handle.engine);
            let thread = thread::Builder::new()
                .name("refrain".to_owned())
                .spawn(move || engine.run_background());
            // Should this fail, the store is closed again by its drop.
            let thread =
                thread.map_err(|error| OpenError::io("start the thread for", place, error))?;
            *handle.thread.lock() = Some(thread);
        }
        Ok(handle)
    }

    pub(crate) fn report(&self) -> &RecoveryReport {
        &self.report
    }

    /// Ends the thread, and waits for it.
    pub(crate) fn stop_thread(&self) {
        // In a forked child there is no thread, and its locks may be held for ever.
        if self.engine.is_child() {
            return;
        }
        self.engine.background.stop();
        let Some(thread) = self.thread.lock().take() else { return };
        // A waker may drop the last handle on the thread itself, which ends by itself then.
        let is_self = thread.thread().id() == thread::current().id();
        if !is_self {
            // A panic of the thread has poisoned the store.
            thread.join().unwrap_or_default();
        }
    }
}

impl Deref for Handle {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        &self.engine
    }
}

/// A namespace of an open store, as its handles and leases hold it. On lines of its own: each lease is
/// counted beside it.
pub(crate) type SharedSpace = Arc<CachePadded<Space>>;

/// See [`SharedSpace`].
#[derive(Debug)]
pub(crate) struct Space {
    pub(crate) handle: Arc<Handle>,
    pub(crate) state: Arc<NamespaceState>,
}

impl Space {
    pub(crate) fn share(handle: Arc<Handle>, state: Arc<NamespaceState>) -> SharedSpace {
        Arc::new(CachePadded::new(Self { handle, state }))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop_thread();
        self.engine.end_silently();
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}
