//! What bounds refrain: the device, and what threads gain that share nothing; and refrain with many
//! commits in flight, which no other contestant can have.

use std::collections::VecDeque;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use refrain::{
    Claim, ClaimError, ClaimOptions, Commit, CompleteError, CompleteOptions, Completion,
    Fingerprint,
};

use super::{Order, tell};
use crate::contestants::refrain::Refrain;
use crate::keys::{Bodies, fingerprint, key};
use crate::store::{Result, Store};
use crate::workloads::hash_only;

const PAGE: usize = 4096;
const FILE_BYTES: usize = 64 << 20;

/// One positioned write of a page and one `fdatasync` at a time, on a file that was written before.
pub fn fdatasync(order: &Order) -> Result<()> {
    let length = Duration::from_secs_f64(order.number("seconds")?);
    let file = tempfile::tempfile_in(&order.directory)?;
    let page = [7; PAGE];
    for at in (0..FILE_BYTES).step_by(PAGE) {
        file.write_all_at(&page, at as u64)?;
    }
    file.sync_all()?;
    let (mut syncs, start) = (0, Instant::now());
    while start.elapsed() < length {
        file.write_all_at(&page, (syncs * PAGE % FILE_BYTES) as u64)?;
        file.sync_data()?;
        syncs += 1;
    }
    tell("pairs", syncs as f64 / start.elapsed().as_secs_f64());
    Ok(())
}

/// Hashes of a key a second, on threads that share nothing.
pub fn hash(order: &Order) -> Result<()> {
    let length = Duration::from_secs_f64(order.number("seconds")?);
    let timed = hash_only(order.count("threads")?, length)?;
    tell("ops", timed.ops as f64 / timed.seconds);
    Ok(())
}

enum Waiting {
    Claim(Commit<Claim, ClaimError>),
    Completion(Commit<Completion, CompleteError>),
}

/// Claim+complete a second with so many commits in flight, evenly from the threads.
pub fn in_flight(order: &Order) -> Result<()> {
    let length = Duration::from_secs_f64(order.number("seconds")?);
    let (threads, commits) = (order.count("threads")?, order.count("commits")?);
    let store = Refrain::open(&order.setup("pairs")?)?;
    let start = Instant::now();
    let run = |thread: usize| -> Result<usize> {
        let (bodies, namespace) = (Bodies::new(), &store.namespace);
        let (mut next, mut pairs) = ((thread as u64) << 32, 0);
        let mut claim = || {
            next += 1;
            let key = key(next);
            let digest = Fingerprint::from_digest(fingerprint(&key));
            Waiting::Claim(namespace.claim_async(key, &ClaimOptions::new().fingerprint(digest)))
        };
        let mut waiting: VecDeque<_> = (0..commits / threads).map(|_| claim()).collect();
        while let Some(oldest) = waiting.pop_front() {
            match oldest {
                Waiting::Claim(commit) => {
                    let lease = commit.wait()?.acquired().ok_or("a fresh key was not granted")?;
                    let options = CompleteOptions::body(bodies.nth(pairs));
                    waiting.push_back(Waiting::Completion(lease.complete_async(&options)));
                }
                Waiting::Completion(commit) => {
                    commit.wait()?;
                    pairs += 1;
                    if start.elapsed() < length {
                        waiting.push_back(claim());
                    }
                }
            }
        }
        Ok(pairs)
    };
    let pairs = std::thread::scope(|scope| {
        let run = &run;
        let all: Vec<_> = (0..threads).map(|index| scope.spawn(move || run(index))).collect();
        let mut pairs = 0;
        for thread in all {
            pairs += thread.join().map_err(|_| "a thread panicked")??;
        }
        Result::Ok(pairs)
    })?;
    tell("pairs", pairs as f64 / start.elapsed().as_secs_f64());
    store.close()
}
