//! An owner that is told when its lease is lost: first by a thread that renews it for as long as the work takes, then by an
//! operator who takes the key away from work that hangs.

use std::error::Error;
use std::thread;
use std::time::Duration;

use refrain::{Claim, ClaimOptions, LeaseError, Lost, Store};

const STEP: Duration = Duration::from_millis(500);
const LEASE: Duration = Duration::from_secs(2);

fn main() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let store = Store::open(directory.path())?;
    let reports = store.namespace("reports")?;

    // The lease is shorter than the work.
    let short = ClaimOptions::new().lease(LEASE);
    let lease = reports.claim_with("report-7", &short)?.acquired().ok_or("a new key")?;
    let renewer = lease.renewer().lease(LEASE).in_thread()?;
    for step in 1..=8 {
        if let Some(error) = renewer.lost() {
            return Err(error.into());
        }
        thread::sleep(STEP);
        let others = reports.claim("report-7", None)?;
        assert!(matches!(others, Claim::InProgress(_)), "step {step}: {others:?}");
    }
    println!("8 steps of {STEP:?} under a lease of {LEASE:?}: nobody else got the key");
    lease.complete("the report")?;
    let error = loop {
        match renewer.lost() {
            Some(error) => break error,
            None => thread::yield_now(),
        }
    };
    assert!(matches!(error, LeaseError::Completed), "{error:?}");

    // This one hangs, and somebody decides to let others try.
    let lease = reports.claim("report-8", None)?.acquired().ok_or("a new key")?;
    let lost = lease.lost();
    reports.forget("report-8", "hangs since noon", "operator 3")?;
    let told = lost.wait();
    assert!(matches!(told, Lost::Ended), "{told:?}");
    assert!(!lease.is_current()?);
    assert!(reports.claim("report-8", None)?.acquired().is_some());
    println!("The owner of report-8 was told that it is his no more: {told:?}");
    Ok(())
}
