//! Owners that are paused past their lease, and a ledger that is told by their tokens: what wakes too late is refused
//! where it would have its effect, after a restart of the ledger, too.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::thread;
use std::time::Duration;

use refrain::{Claim, ClaimOptions, FenceError, FenceGuard, FencingToken, Lease, Store};

const LEASE: Duration = Duration::from_millis(200);

/// A sink of our own, with a store of its own: a service that books what it is sent.
struct Ledger {
    guard: FenceGuard,
    balances: BTreeMap<String, i64>,
}

impl Ledger {
    fn open(directory: &Path) -> Result<Self, Box<dyn Error>> {
        let store = Store::open(directory)?;
        // Longer than any request can be under way.
        let guard = store.fence_guard("ledger", Duration::from_secs(24 * 3600))?;
        Ok(Self { guard, balances: BTreeMap::new() })
    }

    /// One at a time: nobody is admitted between the guard's word and the booking.
    fn book(&mut self, account: &str, balance: i64, token: FencingToken) -> Result<(), FenceError> {
        self.guard.admit(account, token)?;
        self.balances.insert(account.to_owned(), balance);
        Ok(())
    }
}

fn claim(store: &Store, account: &str) -> Result<Lease, Box<dyn Error>> {
    let jobs = store.namespace("jobs")?;
    loop {
        match jobs.claim_with(account, &ClaimOptions::new().lease(LEASE))? {
            Claim::Acquired(lease) => return Ok(lease),
            Claim::InProgress(other) => thread::sleep(other.lease_left()),
            other => return Err(format!("{other:?}").into()),
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let (jobs, books) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let store = Store::open(jobs.path())?;
    let mut ledger = Ledger::open(books.path())?;
    let mut refused = 0;
    for round in 0..5 {
        // This owner works out a balance, and stands still before he sends it.
        let paused = claim(&store, "alice")?;
        let stale = 100 * round;
        // His lease ends, and the next one does the work.
        let next = claim(&store, "alice")?;
        assert!(next.attempt() > 1 && next.token() > paused.token());
        ledger.book("alice", stale + 50, next.token())?;
        if round == 3 {
            drop(ledger);
            ledger = Ledger::open(books.path())?;
            ledger.book("alice", stale + 50, next.token())?;
        }
        // Now the first one wakes, and sends what he has.
        match ledger.book("alice", stale, paused.token()) {
            Err(FenceError::Stale { shown, newest }) => {
                println!("round {round}: token {shown} was refused, because {newest} was there");
                refused += 1;
            }
            other => return Err(format!("a paused owner was heard: {other:?}").into()),
        }
        assert_eq!(ledger.balances.get("alice"), Some(&(stale + 50)));
        next.release()?;
    }
    assert_eq!(refused, 5);
    println!("5 owners woke too late, and none of them changed the ledger");
    Ok(())
}
