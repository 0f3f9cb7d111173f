//! refrain itself: in memory, buffered (from an empty directory, or with its room ready), or synced a
//! call. It reads its clock, keeps its timers and checks what it stored; leases are an hour, so that
//! none ends while a fill goes on.

use std::time::Duration;

use refrain::{
    Body as Stored, Claim, ClaimOptions, CompleteOptions, Durability, FencingToken, Fingerprint,
    Lookup, Namespace, Options, Policy,
};

use crate::keys::{BODY, Bodies, Body, Key, fingerprint};
use crate::store::{Answer, Hand, Mode, Result, Setup, StallCounts, State, Store};
use crate::workloads::BATCH;

const HOUR: Duration = Duration::from_secs(3600);
/// What a key of the run takes in files, its claim too: room that is made ready.
const ROOM_PER_KEY: u64 = 700;
const ROOM_STEP: u64 = 64 << 20;

pub struct Refrain {
    pub store: refrain::Store,
    pub namespace: Namespace,
}

impl Store for Refrain {
    type Hand<'a> = RefrainHand;
    const BATCHES: bool = true;

    fn open(setup: &Setup) -> Result<Self> {
        let mut file = Options::new(&setup.directory);
        if setup.is_ready {
            let room = setup.room() as u64 * ROOM_PER_KEY;
            file = file.headroom_bytes(room.next_multiple_of(ROOM_STEP));
        }
        let store = match setup.mode {
            Mode::Memory => Options::in_memory(),
            Mode::Kill => file.durability(Durability::Buffered),
            Mode::Power => file.durability(Durability::Sync),
        };
        let store = store.open()?;
        let namespace = store.define("peers", &Policy::default().lease(HOUR))?;
        Ok(Self { store, namespace })
    }

    /// With a clone of the namespace, as its documentation tells threads that claim to do.
    fn hand(&self) -> Result<RefrainHand> {
        Ok(RefrainHand { namespace: self.namespace.clone() })
    }

    fn settle(&self) -> Result<()> {
        Ok(self.store.flush()?)
    }

    fn close(self) -> Result<()> {
        Ok(self.store.close()?)
    }

    fn stall_counts(&self) -> StallCounts {
        let stats = self.store.stats();
        StallCounts {
            room_waits: stats.room_waits,
            purged: stats.purged,
            copied: stats.copied,
            recycled: stats.recycled,
            purge_hold_ns: stats.purge_hold_max.as_nanos() as u64,
        }
    }
}

pub struct RefrainHand {
    namespace: Namespace,
}

impl Hand for RefrainHand {
    fn claim(&mut self, key: &Key, fingerprint: [u8; 16], out: &mut Body) -> Result<Answer> {
        let claim = self.namespace.claim(key, Fingerprint::from_digest(fingerprint))?;
        answer(&claim, out)
    }

    fn complete(&mut self, key: &Key, token: u64, body: &Body) -> Result<()> {
        self.namespace.complete(key, FencingToken::from_raw(token), body)?;
        Ok(())
    }

    fn lookup(&mut self, key: &Key, out: &mut Body) -> Result<State> {
        match self.namespace.lookup(key)? {
            Lookup::Absent => Ok(State::Absent),
            Lookup::Completed(outcome) => {
                copy(outcome.body(), out)?;
                Ok(State::Completed)
            }
            _ => Ok(State::InProgress),
        }
    }

    fn pass(
        &mut self,
        key: &Key,
        fingerprint: [u8; 16],
        body: &Body,
        out: &mut Body,
    ) -> Result<Answer> {
        let claim = self.namespace.claim(key, Fingerprint::from_digest(fingerprint))?;
        let answer = answer(&claim, out)?;
        if let Claim::Acquired(lease) = claim {
            lease.complete(body)?;
        }
        Ok(answer)
    }

    fn load(&mut self, keys: &[Key], bodies: &Bodies, first: usize) -> Result<()> {
        for (key, nth) in keys.iter().zip(first..) {
            let options = ClaimOptions::new()
                .fingerprint(Fingerprint::from_digest(crate::keys::fingerprint(key)));
            match self.namespace.claim_with(key, &options.buffered())? {
                Claim::Acquired(lease) => {
                    lease.complete_with(&CompleteOptions::body(bodies.nth(nth)).buffered())?;
                }
                Claim::Completed(_) => {}
                other => return Err(format!("loading: {other:?}").into()),
            }
        }
        Ok(())
    }

    fn claim_batch(
        &mut self,
        keys: &[Key],
        out: &mut Body,
        mut each: impl FnMut(Answer, &Body),
    ) -> Result<()> {
        let options =
            |key: &Key| ClaimOptions::new().fingerprint(Fingerprint::from_digest(fingerprint(key)));
        let claims: [_; BATCH] = std::array::from_fn(|nth| (&keys[nth], options(&keys[nth])));
        for claim in self.namespace.claim_batch(&claims) {
            each(answer(&claim?, out)?, out);
        }
        Ok(())
    }

    fn complete_batch(
        &mut self,
        keys: &[Key],
        tokens: &[u64],
        bodies: &Bodies,
        first: usize,
    ) -> Result<()> {
        let completions: [_; BATCH] = std::array::from_fn(|nth| {
            let options = CompleteOptions::body(bodies.nth(first + nth));
            (&keys[nth], FencingToken::from_raw(tokens[nth]), options)
        });
        for completion in self.namespace.complete_batch(&completions) {
            completion?;
        }
        Ok(())
    }

    fn lookup_batch(&mut self, keys: &[Key]) -> Result<usize> {
        let mut known = 0;
        for lookup in self.namespace.lookup_batch(keys) {
            known += usize::from(!matches!(lookup?, Lookup::Absent));
        }
        Ok(known)
    }
}

fn answer(claim: &Claim, out: &mut Body) -> Result<Answer> {
    Ok(match claim {
        Claim::Acquired(lease) => Answer::Acquired(lease.token().get()),
        Claim::Completed(outcome) => {
            copy(outcome.body(), out)?;
            Answer::Completed
        }
        Claim::InProgress(_) => Answer::InProgress,
        Claim::Mismatch(_) => Answer::Mismatch,
        other => return Err(format!("a claim was answered {other:?}").into()),
    })
}

fn copy(body: Stored<'_>, out: &mut Body) -> Result<()> {
    match body {
        Stored::Bytes(bytes) if bytes.len() == BODY => out.copy_from_slice(bytes),
        other => return Err(format!("the body is {other:?}").into()),
    }
    Ok(())
}
