//! Forgetting every key of a namespace, or of one scope of it.
//!
//! Shard by shard: under the lock it is noted where records lie, which reads none of them; then they are read, and their keys
//! noted, under a pin that is older than what was noted; and then each key is forgotten as by a call of its own.

use super::namespaces::{Key, NamespaceState};
use super::operator::{Audit, Forgetting, Forgot};
use super::{Answered, Engine};
use crate::error::{ForgetError, StoreError};
use crate::format::record_ref::RecordRef;
use crate::sys::pin::Pin;
use crate::types::{KeyHash, NamespaceId};

/// Keys, and why others are not among them.
type KeysFound = (Vec<(NamespaceId, KeyHash, Box<[u8]>)>, Option<StoreError>);

/// Which keys: of a namespace, and there of those that have this in front; with anything in front, of a scope.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Belonging<'a> {
    pub(crate) namespace: NamespaceId,
    pub(crate) prefix: &'a [u8],
}

impl Belonging<'_> {
    pub(super) fn holds(&self, record: RecordRef<'_>) -> bool {
        self.namespace == record.namespace().unscoped()
            && (self.prefix.is_empty() || record.namespace().is_scoped())
            && record.key().starts_with(self.prefix)
    }
}

impl Engine {
    /// Forgets all keys of a namespace, or of those with this in front; says how many.
    pub(crate) fn forget_all(
        &self,
        namespace: &NamespaceState,
        prefix: &[u8],
        reason: &str,
        actor: &str,
    ) -> Answered<u64, ForgetError> {
        let audit = match self.audit(reason, actor) {
            Ok(audit) => audit,
            Err(error) => return Err(error).into(),
        };
        let result = self.try_forget_all(namespace, prefix, &audit);
        // One round for all of them. Also when it failed, and some are forgotten, and when there is nothing: what is not
        // there may have been ended by somebody whose round is under way (R19).
        let Answered { result: ended, settle } = self.changed::<_, ForgetError>((), None);
        Answered { result: ended.and(result), settle }
    }

    /// What is refused before anything is done.
    fn audit(&self, reason: &str, actor: &str) -> Result<Audit, ForgetError> {
        let audit = Audit::new(reason, actor)?;
        self.check_open()?;
        self.wal.poison.check_before()?;
        Ok(audit)
    }

    fn try_forget_all(
        &self,
        namespace: &NamespaceState,
        prefix: &[u8],
        audit: &Audit,
    ) -> Result<u64, ForgetError> {
        let of = Belonging { namespace: namespace.id, prefix };
        let (mut forgotten, mut unreadable) = (0, None);
        for index in 0..self.shards.len() {
            let (keys, error) = self.keys_of(index, of)?;
            unreadable = unreadable.or(error);
            for (number, hash, bytes) in keys {
                let key = Key { namespace, number, bytes: &bytes, hash };
                let forgot = self.try_forget(&key, audit, Forgetting::Known)?;
                forgotten += u64::from(matches!(forgot, Forgot::Key(_)));
            }
        }
        unreadable.map_or(Ok(forgotten), |error| Err(error.into()))
    }

    /// The keys of a shard, as its records have them; and what could not be read.
    fn keys_of(&self, index: usize, of: Belonging<'_>) -> Result<KeysFound, StoreError> {
        let pin = Pin::new();
        let mut locations = Vec::new();
        let shard = self.lock(&self.shards[index])?;
        let noted = shard.table.for_each(|_, slot| {
            locations.push(slot.location());
            Ok::<_, std::convert::Infallible>(())
        });
        let Ok(()) = noted;
        drop(shard);
        let (mut keys, mut unreadable) = (Vec::new(), None);
        for location in locations {
            match self.wal.segments.record(location, &pin) {
                Ok(record) if of.holds(record) => {
                    keys.push((record.namespace(), record.key_hash(), record.key().into()));
                }
                Ok(_) => {}
                Err(error) => unreadable = unreadable.or(Some(error)),
            }
        }
        Ok((keys, unreadable))
    }
}
