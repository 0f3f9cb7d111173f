//! Requests as an API gets them: a key of several parts, and a fingerprint of the JSON that came with it, so that a retry that is
//! written in another way is the same request, and another payment under the same key is not.

use std::error::Error;

use refrain::{Claim, FingerprintRule, JsonFields, PartsKey, Policy, Store};

fn main() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let store = Store::open(directory.path())?;
    let policy = Policy::default().fingerprint(FingerprintRule::Enforce);
    let charges = store.define("charges", &policy)?;
    // When it was sent is no part of what is asked for.
    let fields = JsonFields::without(["/sent_at"])?;

    // The customer's number and the key he sent, which others may have sent too.
    let key = |customer: u32, sent: &str| PartsKey::of_version(1).int(customer).text(sent);
    let first = fields.fingerprint(br#"{"amount": 100, "currency": "EUR", "sent_at": "10:00"}"#)?;
    let lease = charges.claim(key(17, "a-1"), first)?.acquired().ok_or("a new key")?;
    // The bank dedupes by a key of its own, the same at each attempt.
    let at_the_bank = PartsKey::child_of(key(17, "a-1"), "bank");
    println!("the bank is asked under a key of {} bytes", at_the_bank.as_ref().len());
    lease.complete("receipt 1")?;

    let again = fields.fingerprint(br#"{"sent_at":"10:05","currency":"EUR","amount":1e2}"#)?;
    let retry = charges.claim(key(17, "a-1"), again)?;
    assert!(matches!(retry, Claim::Completed(_)), "{retry:?}");
    println!("the same request, written in another way, is replayed");

    let other = fields.fingerprint(br#"{"amount": 900, "currency": "EUR", "sent_at": "10:06"}"#)?;
    let mistake = charges.claim(key(17, "a-1"), other)?;
    assert!(matches!(mistake, Claim::Mismatch(_)), "{mistake:?}");
    println!("another amount under the same key is told apart");

    assert!(charges.claim(key(18, "a-1"), other)?.acquired().is_some());
    println!("another customer's key is another key");
    Ok(())
}
