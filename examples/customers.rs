//! Many customers in one namespace: each has keys of its own, none can crowd out the others' completions, and what
//! the store says of itself shows who is refused what, before anybody complains.

use std::error::Error;
use std::time::Duration;

use refrain::{Claim, ClaimError, Policy, Quota, Serving, Store};
#[cfg(feature = "rate-limit")]
use refrain::{Rate, Rates};

const MINUTE: Duration = Duration::from_secs(60);

fn main() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let store = Store::open(directory.path())?;
    let orders = store.define("orders", &Policy::default())?;
    store.limit("orders", &Quota::default().keys(1000).in_flight(100))?;

    // The same key, from two customers: two orders.
    let (acme, zenith) = (orders.scoped("acme")?, orders.scoped("zenith")?);
    for customer in [&acme, &zenith] {
        let lease = customer.claim("order-1", None)?.acquired().ok_or("a new key")?;
        lease.complete("shipped")?;
    }
    acme.forget("order-1", "sent by mistake", "operator 3")?;
    assert!(matches!(zenith.claim("order-1", None)?, Claim::Completed(_)));

    // One of them floods the namespace with claims that it never ends.
    let mut refused = 0;
    let mut held = Vec::new();
    for number in 0..150 {
        match acme.claim(format!("flood-{number}"), None) {
            Ok(Claim::Acquired(lease)) => held.push(lease),
            Ok(other) => return Err(format!("{other:?}").into()),
            Err(ClaimError::QuotaExceeded(exceeded)) => {
                refused += 1;
                assert_eq!(exceeded.limit, 100);
            }
            Err(error) => return Err(error.into()),
        }
    }
    // What was granted can be completed, and who retries is answered.
    assert!(matches!(zenith.claim("order-1", None)?, Claim::Completed(_)));
    held.pop().ok_or("granted before")?.complete("done")?;

    let stats = orders.stats();
    let usage = stats.usage.ok_or("it has a quota")?;
    println!("{} keys, {} in flight, {} bytes", usage.keys, usage.in_flight, usage.bytes);
    println!(
        "{} granted, {} of them with a warning, {} refused, {} duplicates",
        stats.calls.granted,
        stats.calls.granted_near_quota,
        stats.calls.refused_quota,
        stats.calls.duplicates()
    );
    assert_eq!((usage.keys, usage.in_flight, refused), (101, 99, 50));
    assert_eq!((stats.calls.refused_quota, stats.calls.duplicates()), (50, 2));
    assert!(stats.calls.granted_near_quota > 0);

    #[cfg(feature = "rate-limit")]
    rates(&store)?;

    // Who leaves is forgotten, and nobody else.
    assert_eq!(acme.forget_all("the customer left", "operator 3")?, 100);
    assert!(matches!(zenith.claim("order-1", None)?, Claim::Completed(_)));
    // Who wants to be erased is off the disk, too. That somebody was is known, and why.
    let erased = acme.erase_all("the customer asked for it", "operator 3", MINUTE)?;
    println!("{} segments held something of it", erased.segments);
    assert_eq!(store.erasures().last().map(|it| it.reason()), Some("the customer asked for it"));

    let health = store.health();
    assert!(matches!(health.serving, Serving::All) && health.gaps.is_empty());
    println!("last sync {:?} ago, {} bytes ready", health.sync_age, health.ready_bytes);
    Ok(())
}

/// With the feature `rate-limit`: each customer may send so many new requests a minute; retries are free.
#[cfg(feature = "rate-limit")]
fn rates(store: &Store) -> Result<(), Box<dyn Error>> {
    let payments = store.define("payments", &Policy::default())?;
    let rate = Rate::per_minute(5.try_into()?);
    store.limit_rates("payments", &Rates::default().new_keys_each_scope(rate))?;
    let [acme, zenith] = ["acme", "zenith"].map(|customer| payments.scoped(customer));
    let (acme, zenith) = (acme?, zenith?);
    for number in 1..=5 {
        let lease = acme.claim(format!("payment-{number}"), None)?.acquired().ok_or("a new key")?;
        lease.complete("paid")?;
    }
    let Err(ClaimError::RateExceeded(exceeded)) = acme.claim("payment-6", None) else {
        return Err("the sixth in a minute".into());
    };
    println!("{exceeded}");
    assert!(matches!(acme.claim("payment-5", None)?, Claim::Completed(_)));
    assert!(zenith.claim("payment-1", None)?.acquired().is_some());
    Ok(())
}
