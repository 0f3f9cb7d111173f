//! What an operator does to the keys of a namespace by hand.

use std::time::Duration;

use crate::answer::{Completion, KeyState, Orphan};
use crate::commit::Commit;
use crate::erasure::Erased;
use crate::error::{EraseError, ForgetError, ResolveError, StoreError};
use crate::namespace::Namespace;
use crate::request::Resolution;
use crate::types::FencingToken;

impl Namespace {
    /// Decides a claim that nobody holds: parked, orphaned, or its lease over. Takes a new token,
    /// so that whoever still holds the old one is fenced off. Gives the receipt of a completion. Reason and actor, up to
    /// 255 bytes each, are written to the WAL with it, and stay there as long as what they are about does: a claim that was not done is soon new.
    ///
    /// # Errors
    ///
    /// [`ResolveError::InProgress`] while a lease runs; [`ResolveError::Fenced`] when the key has
    /// another token; [`ResolveError::TextLength`]. On a full disk, where there is no room but what was
    /// reserved for the end of the claim, reason and actor are left out.
    pub fn resolve(
        &self,
        key: impl AsRef<[u8]>,
        token: FencingToken,
        resolution: &Resolution<'_>,
        reason: &str,
        actor: &str,
    ) -> Result<Option<Completion>, ResolveError> {
        let request = resolution.to_request();
        let handle = &self.space.handle;
        handle.answer(
            self.with_key(key.as_ref(), |key| handle.resolve(key, token, &request, reason, actor)),
        )
    }

    /// [`Namespace::resolve`] without waiting.
    pub fn resolve_async(
        &self,
        key: impl AsRef<[u8]>,
        token: FencingToken,
        resolution: &Resolution<'_>,
        reason: &str,
        actor: &str,
    ) -> Commit<Option<Completion>, ResolveError> {
        let request = resolution.to_request();
        let handle = &self.space.handle;
        self.commit(
            self.with_key(key.as_ref(), |key| handle.resolve(key, token, &request, reason, actor)),
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

    /// Forgets a key as [`Namespace::forget`] does, and takes what the store has of it off the disk: its bytes, its outcomes, what was
    /// superseded or has expired, whoever wrote it in this store. When this returns no file of the directory has any of it, whatever
    /// happens, but of what was claimed again meanwhile; and [`crate::Store::erasures`] has reason and actor, but not the key.
    ///
    /// Segments that hold any of it are written over, each when what it holds of other keys is copied and durable, so this takes
    /// as long as that does, and longer while somebody keeps a large outcome ([`crate::Outcome::detached`]) in any segment that is on its way out. The caller does the work,
    /// beside the store's thread; of several callers one at a time. A process that ends meanwhile has forgotten the key: call again.
    ///
    /// It cannot reach what is not in the store's files any more: copies of the directory, and blocks that the file system or the
    /// device has of earlier contents, of files that the store has given up among them. Nor memory of this process, nor resources of a [`crate::FenceGuard`]
    /// that are named like the key. Each call seals what is being filled: of many keys a scope is erased with less ([`Namespace::erase_all`]).
    ///
    /// # Errors
    ///
    /// [`EraseError::TimedOut`] when it takes longer than `timeout`; [`EraseError::InDoubt`] in a salvaged store; as
    /// [`Namespace::forget`]; [`StoreError::Corrupt`] when a record that may be of the key cannot be read.
    pub fn erase(
        &self,
        key: impl AsRef<[u8]>,
        reason: &str,
        actor: &str,
        timeout: Duration,
    ) -> Result<Erased, EraseError> {
        let handle = &self.space.handle;
        self.with_key(key.as_ref(), |key| handle.erase(key, reason, actor, timeout))
    }

    /// The same for every key of this namespace, those of all its scopes among them, or of this scope alone, as
    /// [`Namespace::forget_all`] has it.
    ///
    /// # Errors
    ///
    /// As [`Namespace::erase`] and [`Namespace::forget_all`].
    pub fn erase_all(
        &self,
        reason: &str,
        actor: &str,
        timeout: Duration,
    ) -> Result<Erased, EraseError> {
        let space = &self.space;
        space.handle.erase_all(&space.state, &self.prefix, reason, actor, timeout)
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
