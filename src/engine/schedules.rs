//! A policy that is altered while it is read, under every schedule (loom) or many (shuttle).

use std::sync::Arc;
use std::time::Duration;

use super::namespaces::SharedPolicy;
use crate::policy::{OnLeaseEnd, Policy};
use crate::sys::explored::{explore, thread};

#[test]
fn a_policy_is_read_whole() {
    let hour = Duration::from_secs(3600);
    let before = Policy::default();
    let after = before.lease(hour).on_lease_end(OnLeaseEnd::Park).replay_ttl(9 * hour);
    let after = after.dedupe_ttl(10 * hour);
    explore(move || {
        let shared = Arc::new(SharedPolicy::new(&before));
        let reader = Arc::clone(&shared);
        let reader = thread::spawn(move || reader.load());
        shared.store(&after);
        let read = reader.join().unwrap_or_else(|_| panic!("nothing was read"));
        assert!(read == before || read == after, "{read:?}");
        assert_eq!(shared.load(), after);
    });
}
