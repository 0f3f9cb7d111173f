//! What an operator does to the keys of a namespace by hand.

use crate::answer::{Completion, KeyState, Orphan};
use crate::commit::Commit;
use crate::error::{ForgetError, ResolveError, StoreError};
use crate::namespace::Namespace;
use crate::request::Resolution;
use crate::types::FencingToken;

impl Namespace {
    /// Decides a claim that nobody holds: parked, orphaned, or its lease over. Takes a new token,
    /// so that whoever still holds the old one is fenced off. Gives the receipt of a completion.
    ///
    /// # Errors
    ///
    /// [`ResolveError::InProgress`] while a lease runs; [`ResolveError::Fenced`] when the key has
    /// another token.
    pub fn resolve(
        &self,
        key: impl AsRef<[u8]>,
        token: FencingToken,
        resolution: &Resolution<'_>,
    ) -> Result<Option<Completion>, ResolveError> {
        let request = resolution.to_request();
        let handle = &self.space.handle;
        handle.answer(self.with_key(key.as_ref(), |key| handle.resolve(key, token, &request)))
    }

    /// [`Namespace::resolve`] without waiting.
    pub fn resolve_async(
        &self,
        key: impl AsRef<[u8]>,
        token: FencingToken,
        resolution: &Resolution<'_>,
    ) -> Commit<Option<Completion>, ResolveError> {
        let request = resolution.to_request();
        self.commit(
            self.with_key(key.as_ref(), |key| self.space.handle.resolve(key, token, &request)),
        )
    }

    /// Removes a key on purpose, whatever its state, and says what it was; `None` when there was
    /// nothing. Its owner, if it has one, is told `Forgotten`. Reason and actor, up to 255 bytes
    /// each, are written to the WAL with it. A key that was in doubt ([`crate::Gap`]) is new.
    ///
    /// # Errors
    ///
    /// [`ForgetError::Full`] when there is no room to write it down.
    pub fn forget(
        &self,
        key: impl AsRef<[u8]>,
        reason: &str,
        actor: &str,
    ) -> Result<Option<KeyState>, ForgetError> {
        let handle = &self.space.handle;
        handle.answer(self.with_key(key.as_ref(), |key| handle.forget(key, reason, actor, None)))
    }

    /// [`Namespace::forget`] without waiting.
    pub fn forget_async(
        &self,
        key: impl AsRef<[u8]>,
        reason: &str,
        actor: &str,
    ) -> Commit<Option<KeyState>, ForgetError> {
        self.commit(
            self.with_key(key.as_ref(), |key| self.space.handle.forget(key, reason, actor, None)),
        )
    }

    /// Forgets every key of this namespace, those of all its scopes among them, or of this scope alone, as [`Namespace::forget`] does for
    /// each; says how many there were. Keys that are claimed while this runs may stay. Keys that are in doubt stay so.
    ///
    /// Reads every record of the store, one shard after the other, and writes one for each key that it forgets. Segments are not used again while
    /// the records of a shard are read, and closing waits for that. When it fails it has forgotten some of the keys, or all that could be
    /// read, and a process that ends meanwhile has: call it again.
    ///
    /// # Errors
    ///
    /// As [`Namespace::forget`]; [`StoreError::Corrupt`] when all that could be read was forgotten, and a record could not be.
    pub fn forget_all(&self, reason: &str, actor: &str) -> Result<u64, ForgetError> {
        let handle = &self.space.handle;
        handle.answer(handle.forget_all(&self.space.state, &self.prefix, reason, actor))
    }

    /// [`crate::Store::orphans`] of this namespace, those of all its scopes among them; or of this scope alone.
    ///
    /// # Errors
    ///
    /// What any call can fail with.
    pub fn orphans(&self) -> Result<Vec<Orphan>, StoreError> {
        self.space.handle.orphans(Some(self.space.state.id), &self.prefix)
    }
}
