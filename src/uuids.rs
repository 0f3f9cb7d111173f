//! UUIDs as keys.

use uuid::Uuid;

use crate::claim::Claim;
use crate::error::ClaimError;
use crate::namespace::Namespace;
use crate::request::ClaimOptions;
use crate::types::Fingerprint;

impl Namespace {
    /// [`Namespace::claim`] of a UUID, as its sixteen bytes: however it was spelled, it is one key. One of version 7 also says
    /// when the request was first sent, see [`ClaimOptions::first_sent_of`], which does so for every other call.
    ///
    /// ```
    /// use refrain::{Claim, Store};
    /// use uuid::Uuid;
    ///
    /// # let directory = tempfile::tempdir()?;
    /// # let store = Store::open(directory.path())?;
    /// # let orders = store.namespace("orders")?;
    /// // Made years ago: had it been carried out then, nobody would know any more.
    /// let stale = Uuid::parse_str("017f22e2-79b0-7cc3-98c4-dc0c0c07398f")?;
    /// assert!(matches!(orders.claim_uuid(stale, None)?, Claim::OutsideWindow(_)));
    /// let fresh = Uuid::parse_str("urn:uuid:67e55044-10b1-426f-9247-bb680e5fe0c8")?;
    /// let lease = orders.claim_uuid(fresh, None)?.acquired().expect("a new key");
    /// assert_eq!(lease.key(), fresh.as_bytes());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Namespace::claim`].
    pub fn claim_uuid(
        &self,
        key: Uuid,
        fingerprint: impl Into<Option<Fingerprint>>,
    ) -> Result<Claim, ClaimError> {
        self.claim_with(key, &ClaimOptions::of(fingerprint.into()).first_sent_of(key))
    }
}
