//! The guard of a sink: who carries a side effect out asks it whether the token he was handed is still the newest.

use std::fmt;
use std::sync::Arc;

use crate::admission::{Admitted, FenceError};
use crate::commit::Commit;
use crate::engine::CallDurability;
use crate::handle::SharedSpace;
use crate::types::FencingToken;

/// Refuses what an owner does who has lost his claim, where it is done: a token that is older than the newest one that was
/// admitted for the same resource.
///
/// An owner can be paused past his lease, and wake when another one has done the work and gone. What keeps him from doing it again is his token: it is handed
/// on with each request, and whoever carries the request out, in this process or behind a network, admits it first.
/// The guard is the sink's: its store may be another one than that of the claims. Tokens are compared as they are, so all tokens of one
/// resource have to come from claims of one key of one store: those rise.
///
/// What is admitted is remembered for the guard's retention, from the last time that the newest token was admitted on (or half of that). An
/// owner who wakes later than that is not refused: choose it longer than anybody can be paused, or a request be under way.
///
/// Between being admitted and being carried out a newer request may come in between. A sink that can do several things to one resource at once
/// admits and carries out under a lock of its own.
///
/// ```
/// use std::time::Duration;
/// use refrain::{FenceError, Store};
///
/// # let directory = tempfile::tempdir()?;
/// # let store = Store::open(directory.path())?;
/// let claims = store.namespace("orders")?;
/// let guard = store.fence_guard("ledger", Duration::from_secs(24 * 3600))?;
/// let paused = claims.claim("order-7", None)?.acquired().expect("a new key");
/// guard.admit("order-7", paused.token())?;
/// // Somebody takes the work away from him, and gives it to the next one.
/// claims.forget("order-7", "hangs", "operator 3")?;
/// let next = claims.claim("order-7", None)?.acquired().expect("free again");
/// guard.admit("order-7", next.token())?;
/// // Then he wakes.
/// let refused = guard.admit("order-7", paused.token());
/// assert!(matches!(refused, Err(FenceError::Stale { newest, .. }) if newest == next.token()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct FenceGuard {
    space: SharedSpace,
    durability: Option<CallDurability>,
}

impl FenceGuard {
    pub(crate) fn new(space: SharedSpace) -> Self {
        Self { space, durability: None }
    }

    /// The same guard: whom it admits is told when that survives the end of the process. For a sink that forgets what it did
    /// in a power cut as well.
    #[must_use]
    pub fn buffered(mut self) -> Self {
        self.durability = Some(CallDurability::Buffered);
        self
    }

    /// The same guard: whom it admits is told when that survives power loss.
    #[must_use]
    pub fn sync(mut self) -> Self {
        self.durability = Some(CallDurability::Sync);
        self
    }

    /// Admits `token` for `resource`, unless a newer one was admitted before. The same one may be admitted again and again: it
    /// costs a write once in half of the retention. When it returns, every older one is refused, whatever crashes, as durably
    /// as was asked.
    ///
    /// # Errors
    ///
    /// [`FenceError::Stale`]: a newer claim has been here, so do nothing. [`FenceError::InDoubt`] in a store that was salvaged; and whenever it fails, nobody
    /// was admitted.
    pub fn admit(
        &self,
        resource: impl AsRef<[u8]>,
        token: FencingToken,
    ) -> Result<Admitted, FenceError> {
        let key = self.space.state.key(resource.as_ref());
        self.space.handle.answer(self.space.handle.admit_token(&key, token, self.durability))
    }

    /// [`FenceGuard::admit`] without waiting. Nobody is admitted before the commit says so.
    pub fn admit_async(
        &self,
        resource: impl AsRef<[u8]>,
        token: FencingToken,
    ) -> Commit<Admitted, FenceError> {
        let key = self.space.state.key(resource.as_ref());
        let answered = self.space.handle.admit_token(&key, token, self.durability);
        Commit::new(Arc::clone(&self.space.handle), answered)
    }

    /// The newest token that was admitted for `resource`, which may not be as durable yet as whoever admits it asked. `None`: none, or so long ago that it is forgotten.
    ///
    /// # Errors
    ///
    /// [`FenceError::InDoubt`] in a store that was salvaged, and what any call can fail with.
    pub fn newest(&self, resource: impl AsRef<[u8]>) -> Result<Option<FencingToken>, FenceError> {
        self.space.handle.newest_admitted(&self.space.state.key(resource.as_ref()))
    }
}

impl fmt::Debug for FenceGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FenceGuard").field("name", &self.space.state.name).finish_non_exhaustive()
    }
}
