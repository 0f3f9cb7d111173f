//! Forty requests for one payment at the same moment: one is carried out, the others wait for what it says. Then an
//! owner that dies, and the one of those who waited who takes over.

use std::error::Error;
use std::thread;
use std::time::Duration;

use refrain::{Body, Claim, ClaimOptions, Namespace, Store};

const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let store = Store::open(directory.path())?;
    let payments = store.namespace("payments")?;

    let answers = ask_forty_times(&payments, "order-1 charge");
    let carried_out = answers.iter().filter(|(is_owner, _)| *is_owner).count();
    assert_eq!(carried_out, 1, "it was carried out once");
    assert!(answers.iter().all(|(_, receipt)| *receipt == answers[0].1), "all say the same");
    println!(
        "40 requests at once: carried out {carried_out} time, and all were told {:?}",
        answers[0].1
    );

    // This owner takes the key and is never heard of again.
    let short = ClaimOptions::new().lease(Duration::from_millis(200));
    let dead = payments.claim_with("order-2 charge", &short)?;
    drop(dead);
    let answers = ask_forty_times(&payments, "order-2 charge");
    let successors = answers.iter().filter(|(is_owner, _)| *is_owner).count();
    assert_eq!(successors, 1, "one took over");
    println!("The owner was gone: {successors} of 40 took over when its lease ended");
    assert_eq!(store.stats().waiters, 0);
    store.close()?;
    Ok(())
}

/// Whether each request carried it out, and the receipt it got.
fn ask_forty_times(payments: &Namespace, key: &str) -> Vec<(bool, String)> {
    thread::scope(|scope| {
        let requests: Vec<_> = (0..40).map(|_| scope.spawn(|| pay(payments, key))).collect();
        requests.into_iter().filter_map(|request| request.join().ok()).collect()
    })
}

fn pay(payments: &Namespace, key: &str) -> (bool, String) {
    let claim = payments.claim_or_wait(key, &ClaimOptions::new(), PATIENCE).wait();
    match claim.expect("a store with room") {
        Claim::Acquired(lease) => {
            // The side effect, which takes its time.
            thread::sleep(Duration::from_millis(50));
            let receipt = format!("paid, attempt {}", lease.attempt());
            lease.complete(&receipt).expect("the claim is held");
            (true, receipt)
        }
        Claim::Completed(outcome) => match outcome.body() {
            Body::Bytes(receipt) => (false, String::from_utf8_lossy(receipt).into_owned()),
            other => panic!("{other:?}"),
        },
        other => panic!("nobody waits for so long: {other:?}"),
    }
}
