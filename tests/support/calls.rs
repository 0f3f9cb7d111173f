//! Calls as data: what is asked of a store, what it replies, and what the model says it must reply.

use std::time::Duration;

use refrain::{
    Body, BodyKept, Claim, ClaimError, ClaimOptions, CompleteError, EndCause, EraseError, Erased,
    FencingToken, ForgetError, InProgress, KeyState, LeaseError, Lookup, Namespace, Once, Outcome,
    Reference, Resolution, ResolveError, StoreError,
};

use super::model::{
    Ask, Bring, Bytes, Claimed, Done, Exit, Key, Model, State, Stored, Token, Verdict,
};
use super::world::{complete_options, ms_of};

/// What a caller sees of a key.
#[derive(Clone, PartialEq, Debug)]
pub enum Face {
    Absent,
    Held {
        token: Token,
        attempt: u16,
        at: u64,
        deadline: u64,
        until: Option<u64>,
        reference: Option<Reference>,
    },
    Lapsed {
        token: Token,
        attempt: u16,
        at: u64,
        cause: EndCause,
        until: Option<u64>,
        reference: Option<Reference>,
    },
    Parked {
        token: Token,
        attempt: u16,
        at: u64,
        cause: EndCause,
        reference: Option<Reference>,
    },
    Done {
        token: Token,
        first: Token,
        attempt: u16,
        at: u64,
        expires: u64,
        code: u16,
        body: FaceBody,
        reference: Option<Reference>,
    },
}

#[derive(Clone, PartialEq, Debug)]
pub enum FaceBody {
    Bytes(Bytes),
    None,
    TooLarge(usize),
    Expired,
}

impl Face {
    pub fn token(&self) -> Option<Token> {
        match self {
            Self::Absent => None,
            Self::Held { token, .. }
            | Self::Lapsed { token, .. }
            | Self::Parked { token, .. }
            | Self::Done { token, .. } => Some(*token),
        }
    }

    /// What the model shows at `now`.
    pub fn of_state(state: &State, now: u64) -> Self {
        match state {
            State::Absent => Self::Absent,
            State::Held(it) => Self::Held {
                token: it.token,
                attempt: it.attempt,
                at: it.at,
                deadline: it.deadline,
                until: it.forgotten_at,
                reference: it.reference,
            },
            State::Lapsed(it, cause) => Self::Lapsed {
                token: it.token,
                attempt: it.attempt,
                at: it.at,
                cause: *cause,
                until: it.forgotten_at,
                reference: it.reference,
            },
            State::Overdue(it) => Self::Parked {
                token: it.token,
                attempt: it.attempt,
                at: it.deadline,
                cause: EndCause::LeaseEnded,
                reference: it.reference,
            },
            State::Parked(it) => Self::Parked {
                token: it.token,
                attempt: it.attempt,
                at: it.at,
                cause: it.cause,
                reference: it.reference,
            },
            State::Done(it) => Self::of_done(it, now),
        }
    }

    fn of_done(it: &Done, now: u64) -> Self {
        let body = match &it.body {
            Stored::Kept(_) if now >= it.replay_until => FaceBody::Expired,
            Stored::Kept(body) => FaceBody::Bytes(body.clone()),
            Stored::None => FaceBody::None,
            Stored::TooLarge(body) => FaceBody::TooLarge(body.len()),
            Stored::NoReplay(_) => FaceBody::Expired,
        };
        Self::Done {
            token: it.token,
            first: it.first,
            attempt: it.attempt,
            at: it.at,
            expires: it.expires,
            code: it.code,
            body,
            reference: it.reference,
        }
    }

    pub fn of_lookup(lookup: &Lookup) -> Self {
        match lookup {
            Lookup::Absent => Self::Absent,
            Lookup::InProgress(it) => Self::of_in_progress(it),
            Lookup::Lapsed(it) => Self::Lapsed {
                token: it.token().get(),
                attempt: it.attempt(),
                at: ms_of(it.since().unwrap()),
                cause: it.cause(),
                until: it.guaranteed_until().map(ms_of),
                reference: it.reference(),
            },
            Lookup::Parked(it) => Self::of_parked(it),
            Lookup::Completed(it) => Self::of_outcome(it),
            other => panic!("an answer nobody knows: {other:?}"),
        }
    }

    fn of_in_progress(it: &InProgress) -> Self {
        Self::Held {
            token: it.token().get(),
            attempt: it.attempt(),
            at: ms_of(it.since().unwrap()),
            deadline: ms_of(it.deadline().unwrap()),
            until: it.guaranteed_until().map(ms_of),
            reference: it.reference(),
        }
    }

    fn of_parked(it: &refrain::Parked) -> Self {
        Self::Parked {
            token: it.token().get(),
            attempt: it.attempt(),
            at: ms_of(it.since().unwrap()),
            cause: it.cause(),
            reference: it.reference(),
        }
    }

    fn of_outcome(it: &Outcome) -> Self {
        let body = match it.body() {
            Body::Bytes(bytes) => FaceBody::Bytes((*bytes).into()),
            Body::None => FaceBody::None,
            Body::TooLarge { len } => FaceBody::TooLarge(len as usize),
            Body::Expired => FaceBody::Expired,
            other => panic!("a body nobody knows: {other:?}"),
        };
        Self::Done {
            token: it.token().get(),
            first: it.first_token().get(),
            attempt: it.attempt(),
            at: ms_of(it.completed_at().unwrap()),
            expires: ms_of(it.guaranteed_until().unwrap()),
            code: it.code(),
            body,
            reference: it.reference(),
        }
    }
}

/// By a clock that moves by itself as long as nothing else happens.
const ERASED_WITHIN: Duration = Duration::from_millis(50);

/// How durable a call asks to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked {
    AsStore,
    Buffered,
    Sync,
}

/// A call on a key.
#[derive(Clone, Debug)]
pub enum Call {
    Claim(Key, Ask, Asked),
    Once(Key, Ask, Asked),
    Lookup(Key),
    Renew(Key, Token, Option<u64>),
    Complete(Key, Token, Bring, Asked),
    Release(Key, Token),
    Park(Key, Token),
    Resolve(Key, Token, Option<Bring>),
    Forget(Key),
    Erase(Key),
}

/// What a batch of one is answered.
fn only<T>(answers: Vec<T>) -> T {
    let [answer] = <[T; 1]>::try_from(answers).ok().expect("one was asked");
    answer
}

/// What is answered.
#[derive(Clone, PartialEq, Debug)]
pub enum Reply {
    Granted { token: Token, attempt: u16, previous: Option<(Token, EndCause)> },
    Resumed { token: Token, attempt: u16, previous: Option<(Token, EndCause)> },
    First { token: Token, attempt: u16, previous: Option<(Token, EndCause)> },
    Face(Face),
    Mismatch(Option<KeyState>),
    FingerprintRequired,
    Renewed { late_by: Option<u64> },
    Completed { token: Token, kept: BodyKept },
    Accepted,
    Forgot(Option<KeyState>),
    Erased { was_known: bool },
    Refused(Refused),
}

/// Why an exit is refused.
#[derive(Clone, PartialEq, Debug)]
pub enum Refused {
    Fenced(Token),
    Forgotten,
    Parked,
    Completed,
    AlreadyCompleted(Face),
    InProgress,
}

/// The call had no answer.
#[derive(Debug)]
pub enum Failed {
    /// There is no room; nothing was done.
    Full,
    /// Something else failed.
    Store(StoreError),
}

impl Reply {
    /// The new token that the reply gives out.
    pub fn issued(&self) -> Option<Token> {
        match self {
            Self::Granted { token, .. }
            | Self::Resumed { token, .. }
            | Self::First { token, .. } => Some(*token),
            Self::Completed { token, .. } => Some(*token),
            _ => None,
        }
    }

    /// A word for the count of what was seen.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Granted { attempt: 1, .. } => "granted",
            Self::Granted { .. } => "taken over",
            Self::Resumed { .. } => "resumed",
            Self::First { attempt: 1, .. } => "marked",
            Self::First { .. } => "marked over",
            Self::Face(Face::Absent) => "absent",
            Self::Face(Face::Held { .. }) => "held",
            Self::Face(Face::Lapsed { .. }) => "lapsed",
            Self::Face(Face::Parked { .. }) => "parked",
            Self::Face(Face::Done { .. }) => "completed",
            Self::Mismatch(_) => "mismatch",
            Self::FingerprintRequired => "fingerprint required",
            Self::Renewed { late_by: None } => "renewed",
            Self::Renewed { .. } => "renewed late",
            Self::Completed { kept: BodyKept::NoRoom, .. } => "done without room",
            Self::Completed { .. } => "done",
            Self::Accepted => "accepted",
            Self::Forgot(_) => "forgotten by hand",
            Self::Erased { was_known: true } => "erased",
            Self::Erased { was_known: false } => "nothing to erase",
            Self::Refused(Refused::Fenced(_)) => "fenced",
            Self::Refused(Refused::Forgotten) => "forgotten",
            Self::Refused(Refused::Parked) => "refused parked",
            Self::Refused(Refused::Completed) => "refused completed",
            Self::Refused(Refused::AlreadyCompleted(_)) => "already completed",
            Self::Refused(Refused::InProgress) => "refused in progress",
        }
    }
}

impl Call {
    pub fn key(&self) -> &Key {
        match self {
            Self::Claim(key, ..)
            | Self::Once(key, ..)
            | Self::Lookup(key)
            | Self::Renew(key, ..)
            | Self::Complete(key, ..)
            | Self::Release(key, ..)
            | Self::Park(key, ..)
            | Self::Resolve(key, ..)
            | Self::Forget(key)
            | Self::Erase(key) => key,
        }
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::Claim(..) => "claim",
            Self::Once(..) => "once",
            Self::Lookup(..) => "lookup",
            Self::Renew(..) => "renew",
            Self::Complete(..) => "complete",
            Self::Release(..) => "release",
            Self::Park(..) => "park",
            Self::Resolve(..) => "resolve",
            Self::Forget(..) => "forget",
            Self::Erase(..) => "erase",
        }
    }

    pub fn asked(&self) -> Asked {
        match self {
            Self::Claim(.., asked) | Self::Once(.., asked) | Self::Complete(.., asked) => *asked,
            _ => Asked::AsStore,
        }
    }

    /// Asks the store.
    pub fn run(&self, namespace: &Namespace) -> Result<Reply, Failed> {
        self.run_as(namespace, false)
    }

    /// Asks the store, by the call for several keys where there is one.
    pub fn run_as(&self, namespace: &Namespace, in_batch: bool) -> Result<Reply, Failed> {
        match self {
            Self::Claim((_, key), ask, asked) => {
                let mut options = claim_options(ask, *asked);
                if let Some(it) = ask.lease {
                    options = options.lease(Duration::from_millis(it));
                }
                claimed(match in_batch {
                    true => only(namespace.claim_batch(&[(key, options)])),
                    false => namespace.claim_with(key, &options),
                })
            }
            Self::Once((_, key), ask, asked) => {
                let mut options = claim_options(ask, *asked);
                if let Some(it) = ask.dedupe_ttl {
                    options = options.dedupe_ttl(Duration::from_millis(it));
                }
                marked(match in_batch {
                    true => only(namespace.once_batch(&[(key, options)])),
                    false => namespace.once_with(key, &options),
                })
            }
            Self::Lookup((_, key)) => {
                let lookup = match in_batch {
                    true => only(namespace.lookup_batch(&[key])),
                    false => namespace.lookup(key),
                };
                let lookup = lookup.map_err(Failed::Store)?;
                Ok(Reply::Face(Face::of_lookup(&lookup)))
            }
            Self::Renew((_, key), token, lease) => {
                let token = FencingToken::from_raw(*token);
                let renewed = match lease {
                    None => namespace.renew(key, token),
                    Some(lease) => namespace.renew_for(key, token, Duration::from_millis(*lease)),
                };
                let late = |it: refrain::Renewed| it.late_by().map(|it| it.as_millis() as u64);
                lease_reply(renewed.map(|it| Reply::Renewed { late_by: late(it) }))
            }
            Self::Complete((_, key), token, bring, asked) => {
                let options = match asked {
                    Asked::AsStore => complete_options(bring),
                    Asked::Buffered => complete_options(bring).buffered(),
                    Asked::Sync => complete_options(bring).sync(),
                };
                let token = FencingToken::from_raw(*token);
                completed(match in_batch {
                    true => only(namespace.complete_batch(&[(key, token, options)])),
                    false => namespace.complete_with(key, token, &options),
                })
            }
            Self::Release((_, key), token) => {
                let token = FencingToken::from_raw(*token);
                lease_reply(namespace.release(key, token).map(|()| Reply::Accepted))
            }
            Self::Park((_, key), token) => {
                let token = FencingToken::from_raw(*token);
                lease_reply(namespace.park(key, token).map(|()| Reply::Accepted))
            }
            Self::Resolve((_, key), token, bring) => {
                let resolution = match bring {
                    Some(bring) => Resolution::Completed(complete_options(bring)),
                    None => Resolution::NotDone,
                };
                resolved(namespace.resolve(
                    key,
                    FencingToken::from_raw(*token),
                    &resolution,
                    "a test",
                    "nobody",
                ))
            }
            Self::Forget((_, key)) => match namespace.forget(key, "a test", "the simulation") {
                Ok(state) => Ok(Reply::Forgot(state)),
                Err(ForgetError::Full { .. }) => Err(Failed::Full),
                Err(ForgetError::Store(error)) => Err(Failed::Store(error)),
                Err(other) => panic!("{other}"),
            },
            Self::Erase((_, key)) => {
                let erased = namespace.erase(key, "a test", "the simulation", ERASED_WITHIN);
                match erased {
                    Ok(Erased { keys, .. }) | Err(EraseError::TimedOut { keys, .. }) => {
                        Ok(Reply::Erased { was_known: keys == 1 })
                    }
                    Err(EraseError::Forget(ForgetError::Full { .. })) => Err(Failed::Full),
                    Err(
                        EraseError::Forget(ForgetError::Store(error)) | EraseError::Store(error),
                    ) => Err(Failed::Store(error)),
                    Err(other) => panic!("{other}"),
                }
            }
        }
    }

    /// What the model replies, and does. `token` is given out if a new one is; `no_room` says that
    /// the disk had none for a body, or for a longer window.
    pub fn apply(&self, model: &mut Model, token: Option<Token>, no_room: bool) -> Reply {
        let fresh = token.unwrap_or(Token::MAX);
        let with_room = |bring: &Bring| Bring { no_room, ..bring.clone() };
        match self {
            Self::Claim(key, ask, _) => match model.judge(key, ask) {
                Verdict::Granted { attempt, previous } => {
                    model.claim(key, ask, fresh);
                    let previous = previous.map(|(token, _, cause)| (token, cause));
                    Reply::Granted { token: fresh, attempt, previous }
                }
                Verdict::Own(Claimed { attempt, previous, .. }) => {
                    model.claim(key, ask, fresh);
                    let previous = previous.map(|(token, _, cause)| (token, cause));
                    Reply::Resumed { token: fresh, attempt, previous }
                }
                Verdict::Done(_) if !no_room => {
                    let state = model.hit(key);
                    Reply::Face(Face::of_state(&state, model.now))
                }
                other => verdict(other, model.now),
            },
            Self::Once(key, ask, _) => match model.judge(key, ask) {
                Verdict::Granted { attempt, previous } => {
                    model.once(key, ask, fresh);
                    let previous = previous.map(|(token, _, cause)| (token, cause));
                    Reply::First { token: fresh, attempt, previous }
                }
                Verdict::Done(_) if !no_room => {
                    let state = model.hit(key);
                    Reply::Face(Face::of_state(&state, model.now))
                }
                other => verdict(other, model.now),
            },
            Self::Lookup(key) => Reply::Face(Face::of_state(&model.state(key), model.now)),
            Self::Renew(key, token, lease) => match model.renew(key, *token, *lease) {
                Ok(late_by) => Reply::Renewed { late_by },
                Err(exit) => Reply::Refused(refused(exit, model.now)),
            },
            Self::Complete(key, token, bring, _) => {
                match model.complete(key, *token, &with_room(bring)) {
                    Ok(kept) => Reply::Completed { token: *token, kept },
                    Err(exit) => Reply::Refused(refused(exit, model.now)),
                }
            }
            Self::Release(key, token) => exit_reply(model.release(key, *token), model.now),
            Self::Park(key, token) => exit_reply(model.park(key, *token), model.now),
            Self::Resolve(key, token, bring) => match (model.resolvable(key, *token), bring) {
                (Exit::Accepted, Some(bring)) => {
                    let kept = model.resolve_done(key, &with_room(bring), fresh);
                    Reply::Completed { token: fresh, kept }
                }
                (Exit::Accepted, None) => {
                    model.resolve_not_done(key);
                    Reply::Accepted
                }
                (exit, _) => Reply::Refused(refused(exit, model.now)),
            },
            Self::Forget(key) => Reply::Forgot(model.forget(key)),
            Self::Erase(key) => Reply::Erased { was_known: model.forget(key).is_some() },
        }
    }
}

fn claim_options(ask: &Ask, asked: Asked) -> ClaimOptions {
    let mut options = ClaimOptions::new();
    if let Some(it) = ask.fingerprint {
        options = options.fingerprint(it);
    }
    if let Some(it) = ask.reference {
        options = options.reference(it);
    }
    if let Some(it) = ask.owner {
        options = options.owner(it);
    }
    match asked {
        Asked::AsStore => options,
        Asked::Buffered => options.buffered(),
        Asked::Sync => options.sync(),
    }
}

fn previous(it: Option<refrain::Previous>) -> Option<(Token, EndCause)> {
    it.map(|it| (it.token().get(), it.cause()))
}

fn claimed(result: Result<Claim, ClaimError>) -> Result<Reply, Failed> {
    Ok(match result {
        Ok(Claim::Acquired(lease)) => Reply::Granted {
            token: lease.token().get(),
            attempt: lease.attempt(),
            previous: previous(lease.previous()),
        },
        Ok(Claim::Resumed(lease)) => Reply::Resumed {
            token: lease.token().get(),
            attempt: lease.attempt(),
            previous: previous(lease.previous()),
        },
        Ok(Claim::Completed(it)) => Reply::Face(Face::of_outcome(&it)),
        Ok(Claim::InProgress(it)) => Reply::Face(Face::of_in_progress(&it)),
        Ok(Claim::Parked(it)) => Reply::Face(Face::of_parked(&it)),
        Ok(Claim::Mismatch(it)) => Reply::Mismatch(Some(it.state())),
        Ok(other) => panic!("an answer nobody knows: {other:?}"),
        Err(error) => return claim_error(error),
    })
}

fn marked(result: Result<Once, ClaimError>) -> Result<Reply, Failed> {
    Ok(match result {
        Ok(Once::First(it)) => Reply::First {
            token: it.token().get(),
            attempt: it.attempt(),
            previous: previous(it.previous()),
        },
        Ok(Once::Seen(it)) => Reply::Face(Face::of_outcome(&it)),
        Ok(Once::InProgress(it)) => Reply::Face(Face::of_in_progress(&it)),
        Ok(Once::Parked(it)) => Reply::Face(Face::of_parked(&it)),
        Ok(Once::Mismatch(it)) => Reply::Mismatch(Some(it.state())),
        Ok(other) => panic!("an answer nobody knows: {other:?}"),
        Err(error) => return claim_error(error),
    })
}

fn claim_error(error: ClaimError) -> Result<Reply, Failed> {
    match error {
        ClaimError::FingerprintRequired => Ok(Reply::FingerprintRequired),
        ClaimError::Full { .. } => Err(Failed::Full),
        ClaimError::Store(error) => Err(Failed::Store(error)),
        other => panic!("{other}"),
    }
}

fn lease_reply(result: Result<Reply, LeaseError>) -> Result<Reply, Failed> {
    match result {
        Ok(reply) => Ok(reply),
        Err(LeaseError::Fenced { current, .. }) => {
            Ok(Reply::Refused(Refused::Fenced(current.get())))
        }
        Err(LeaseError::Forgotten { .. }) => Ok(Reply::Refused(Refused::Forgotten)),
        Err(LeaseError::Parked) => Ok(Reply::Refused(Refused::Parked)),
        Err(LeaseError::Completed) => Ok(Reply::Refused(Refused::Completed)),
        Err(LeaseError::Full { .. }) => Err(Failed::Full),
        Err(LeaseError::Store(error)) => Err(Failed::Store(error)),
        Err(other) => panic!("{other}"),
    }
}

fn completed(result: Result<refrain::Completion, CompleteError>) -> Result<Reply, Failed> {
    match result {
        Ok(it) => Ok(Reply::Completed { token: it.token().get(), kept: it.body() }),
        Err(CompleteError::Fenced { current, .. }) => {
            Ok(Reply::Refused(Refused::Fenced(current.get())))
        }
        Err(CompleteError::Forgotten { .. }) => Ok(Reply::Refused(Refused::Forgotten)),
        Err(CompleteError::Parked) => Ok(Reply::Refused(Refused::Parked)),
        Err(CompleteError::AlreadyCompleted(it)) => {
            Ok(Reply::Refused(Refused::AlreadyCompleted(Face::of_outcome(&it))))
        }
        Err(CompleteError::Store(error)) => Err(Failed::Store(error)),
        Err(other) => panic!("{other}"),
    }
}

fn resolved(result: Result<Option<refrain::Completion>, ResolveError>) -> Result<Reply, Failed> {
    match result {
        Ok(Some(it)) => Ok(Reply::Completed { token: it.token().get(), kept: it.body() }),
        Ok(None) => Ok(Reply::Accepted),
        Err(ResolveError::InProgress) => Ok(Reply::Refused(Refused::InProgress)),
        Err(ResolveError::Fenced { current, .. }) => {
            Ok(Reply::Refused(Refused::Fenced(current.get())))
        }
        Err(ResolveError::Forgotten) => Ok(Reply::Refused(Refused::Forgotten)),
        Err(ResolveError::AlreadyCompleted(it)) => {
            Ok(Reply::Refused(Refused::AlreadyCompleted(Face::of_outcome(&it))))
        }
        Err(ResolveError::Store(error)) => Err(Failed::Store(error)),
        Err(other) => panic!("{other}"),
    }
}

fn verdict(verdict: Verdict, now: u64) -> Reply {
    match verdict {
        Verdict::Granted { .. } => unreachable!("taken before"),
        Verdict::Done(done) => Reply::Face(Face::of_done(&done, now)),
        Verdict::Held(held) | Verdict::Own(held) => {
            Reply::Face(Face::of_state(&State::Held(held), now))
        }
        Verdict::Parked(state) => Reply::Face(Face::of_state(&state, now)),
        Verdict::Mismatch(state) => Reply::Mismatch(state.key_state()),
        Verdict::FingerprintRequired => Reply::FingerprintRequired,
    }
}

fn exit_reply(exit: Exit, now: u64) -> Reply {
    match exit {
        Exit::Accepted => Reply::Accepted,
        other => Reply::Refused(refused(other, now)),
    }
}

fn refused(exit: Exit, now: u64) -> Refused {
    match exit {
        Exit::Accepted => unreachable!("taken before"),
        Exit::Fenced(token) => Refused::Fenced(token),
        Exit::Forgotten => Refused::Forgotten,
        Exit::Parked => Refused::Parked,
        Exit::Completed => Refused::Completed,
        Exit::AlreadyCompleted(done) => Refused::AlreadyCompleted(Face::of_done(&done, now)),
        Exit::InProgress => Refused::InProgress,
    }
}
