//! What the durable contestants store for a key, as bytes.
//!
//! ```text
//! | state 1 | fingerprint 16 | expires 8 | token 8 | body |
//! ```

use crate::keys::{BODY, Body};
use crate::store::{Answer, Result, State};

pub const HEADER: usize = 33;
const HELD: u8 = 0;
const DONE: u8 = 1;
/// When every value expires: not during a run.
const EXPIRES: u64 = 1 << 40;

/// A buffer for one value.
pub struct Value {
    bytes: [u8; HEADER + BODY],
    len: usize,
}

impl Value {
    pub fn new() -> Self {
        Self { bytes: [0; HEADER + BODY], len: 0 }
    }

    pub fn held(&mut self, fingerprint: [u8; 16], token: u64) -> &[u8] {
        self.fill(HELD, fingerprint, token, &[])
    }

    pub fn done(&mut self, fingerprint: [u8; 16], token: u64, body: &Body) -> &[u8] {
        self.fill(DONE, fingerprint, token, body)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn fill(&mut self, state: u8, fingerprint: [u8; 16], token: u64, body: &[u8]) -> &[u8] {
        self.len = HEADER + body.len();
        self.bytes[0] = state;
        self.bytes[1..17].copy_from_slice(&fingerprint);
        self.bytes[17..25].copy_from_slice(&EXPIRES.to_le_bytes());
        self.bytes[25..HEADER].copy_from_slice(&token.to_le_bytes());
        self.bytes[HEADER..self.len].copy_from_slice(body);
        self.bytes()
    }
}

/// What a claim is answered from a value that is there.
pub fn answer(value: &[u8], fingerprint: [u8; 16], out: &mut Body) -> Result<Answer> {
    if value.get(1..17) != Some(&fingerprint) {
        return Ok(Answer::Mismatch);
    }
    match found(value, out)? {
        State::Completed => Ok(Answer::Completed),
        _ => Ok(Answer::InProgress),
    }
}

/// What a lookup learns from it.
pub fn found(value: &[u8], out: &mut Body) -> Result<State> {
    match (value.first(), value.get(HEADER..)) {
        (Some(&HELD), Some([])) => Ok(State::InProgress),
        (Some(&DONE), Some(body)) if body.len() == BODY => {
            out.copy_from_slice(body);
            Ok(State::Completed)
        }
        _ => Err("a value is not as it was stored".into()),
    }
}
