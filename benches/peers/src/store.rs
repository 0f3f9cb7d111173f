//! What a contestant must be able to do, and what it is told when it is opened.

use std::error::Error;
use std::path::PathBuf;

use crate::keys::{Bodies, Body, Key};

/// Whatever a contestant fails with.
pub type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// What must survive once a call has returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Nothing.
    Memory,
    /// As much as the contestant keeps without a sync a call.
    Kill,
    /// Everything, through a loss of power.
    Power,
}

impl Mode {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Kill => "kill",
            Self::Power => "power",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        [Self::Memory, Self::Kill, Self::Power].into_iter().find(|mode| mode.name() == name)
    }
}

/// How a contestant is opened.
#[derive(Clone, Debug)]
pub struct Setup {
    pub mode: Mode,
    /// An empty directory, or one that the same contestant left behind.
    pub directory: PathBuf,
    /// The keys it will hold at most.
    pub keys: usize,
    /// Whether to make room for them before.
    pub is_ready: bool,
}

impl Setup {
    /// The keys to make room for: none, for a store that is to grow from empty.
    pub fn room(&self) -> usize {
        if self.is_ready { self.keys } else { 0 }
    }
}

/// What a claim is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The key is the caller's, under this token.
    Acquired(u64),
    InProgress,
    /// The body has been copied out.
    Completed,
    Mismatch,
}

/// What a contestant knows of a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    Absent,
    /// Claimed, and not completed.
    InProgress,
    /// The body has been copied out.
    Completed,
}

/// A contestant.
pub trait Store: Sync + Sized {
    /// What each thread has for itself: a connection, buffers.
    type Hand<'a>: Hand
    where
        Self: 'a;

    /// Whether its hands take several keys in one call.
    const BATCHES: bool = false;

    /// Opens it, and makes it if it is not there.
    fn open(setup: &Setup) -> Result<Self>;

    fn hand(&self) -> Result<Self::Hand<'_>>;

    /// Does what the contestant has put off.
    fn settle(&self) -> Result<()> {
        Ok(())
    }

    /// Ends it as its users are told to.
    fn close(self) -> Result<()> {
        Ok(())
    }

    /// What it counts that a stall could come from.
    fn stall_counts(&self) -> StallCounts {
        StallCounts::default()
    }

    /// The process that holds its memory, if that is another.
    fn process(&self) -> Option<u32> {
        None
    }
}

/// What a contestant's own numbers say of stalls, and of work in the background.
#[derive(Clone, Copy, Default, Debug)]
pub struct StallCounts {
    /// Calls that had to wait for room.
    pub room_waits: u64,
    pub purged: u64,
    pub copied: u64,
    pub recycled: u64,
    /// The longest that a lock was held to purge.
    pub purge_hold_ns: u64,
}

/// A thread's way to a contestant.
pub trait Hand {
    /// Claims a key; when it is completed, compares the fingerprint and copies the body out.
    fn claim(&mut self, key: &Key, fingerprint: [u8; 16], out: &mut Body) -> Result<Answer>;

    /// Completes a claim, which must still hold its token.
    fn complete(&mut self, key: &Key, token: u64, body: &Body) -> Result<()>;

    /// What is known of the key, copying the body out when it is completed.
    fn lookup(&mut self, key: &Key, out: &mut Body) -> Result<State>;

    /// Claims, and completes what was acquired.
    fn pass(
        &mut self,
        key: &Key,
        fingerprint: [u8; 16],
        body: &Body,
        out: &mut Body,
    ) -> Result<Answer> {
        let answer = self.claim(key, fingerprint, out)?;
        if let Answer::Acquired(token) = answer {
            self.complete(key, token, body)?;
        }
        Ok(answer)
    }

    /// Stores completed keys by the fastest way there is, with bodies from the nth on; some may be
    /// there already.
    fn load(&mut self, keys: &[Key], bodies: &Bodies, first: usize) -> Result<()> {
        let mut out = [0; crate::keys::BODY];
        for (key, nth) in keys.iter().zip(first..) {
            self.pass(key, crate::keys::fingerprint(key), bodies.nth(nth), &mut out)?;
        }
        Ok(())
    }

    /// Claims several keys in one call; gives each answer and, of what is completed, its body.
    fn claim_batch(&mut self, _: &[Key], _: &mut Body, _: impl FnMut(Answer, &Body)) -> Result<()> {
        Err("it has no batches".into())
    }

    /// Completes several claims in one call, with bodies from the nth on.
    fn complete_batch(&mut self, _: &[Key], _: &[u64], _: &Bodies, _: usize) -> Result<()> {
        Err("it has no batches".into())
    }

    /// How many of several keys are known, asked in one call.
    fn lookup_batch(&mut self, _: &[Key]) -> Result<usize> {
        Err("it has no batches".into())
    }
}
