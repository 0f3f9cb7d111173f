//! What ends a run early, and the exit code it ends with.

use std::io;

use refrain::{
    ClaimError, CloseError, CompleteError, NamespaceError, OpenError, PolicyProblem, StoreError,
};

/// The exit codes, for `--help` and docs/dedupe.md.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  all input was read and passed on
  1  a line without a key, under --strict
  2  the command line cannot be
  3  an input cannot be read, or has a line of more than 64 MiB
  4  an output cannot be written (its disk is full, say)
  5  whoever reads the output has closed it
  6  the store is locked by another process
  7  the store is full: its disk, or memory
  8  the store is refused: foreign, damaged, of another format, or not usable for this
  9  the store is poisoned: a sync failed, run again after the disk is mended

Whatever the code, a line that was not written out is not remembered as seen: run again.";

/// Why a run ends before its input does.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("{place}: the line has no key")]
    Keyless { place: String },
    #[error("{0}")]
    Usage(String),
    #[error("{place}: {error}")]
    Input { place: String, error: io::Error },
    #[error("{place}: {error}")]
    Output { place: String, error: io::Error },
    #[error("{place}: closed by its reader")]
    OutputClosed { place: String },
    #[error("{0}")]
    Locked(String),
    #[error("{0}")]
    Full(String),
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Poisoned(String),
}

impl Failure {
    /// The exit code of the process.
    pub fn code(&self) -> i32 {
        match self {
            Self::Keyless { .. } => 1,
            Self::Usage(_) => 2,
            Self::Input { .. } => 3,
            Self::Output { .. } => 4,
            Self::OutputClosed { .. } => 5,
            Self::Locked(_) => 6,
            Self::Full(_) => 7,
            Self::Refused(_) => 8,
            Self::Poisoned(_) => 9,
        }
    }

    pub fn output(place: &str, error: io::Error) -> Self {
        let place = place.to_owned();
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::OutputClosed { place }
        } else {
            Self::Output { place, error }
        }
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        let text = error.to_string();
        match error {
            OpenError::Locked { .. } => Self::Locked(text),
            OpenError::Full { .. } => Self::Full(text),
            OpenError::Io(cause) if is_full(cause.io()) => Self::Full(text),
            _ => Self::Refused(text),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let text = error.to_string();
        match error {
            error if error.is_poisoned() => Self::Poisoned(text),
            StoreError::Io(cause) if is_full(cause.io()) => Self::Full(text),
            _ => Self::Refused(text),
        }
    }
}

impl From<ClaimError> for Failure {
    fn from(error: ClaimError) -> Self {
        match error {
            ClaimError::Full { .. } => Self::Full(error.to_string()),
            ClaimError::Store(error) => error.into(),
            _ => Self::Refused(error.to_string()),
        }
    }
}

impl From<CompleteError> for Failure {
    fn from(error: CompleteError) -> Self {
        match error {
            CompleteError::Store(error) => error.into(),
            _ => Self::Refused(error.to_string()),
        }
    }
}

impl From<NamespaceError> for Failure {
    fn from(error: NamespaceError) -> Self {
        match error {
            NamespaceError::Store(error) => error.into(),
            NamespaceError::Policy(problems) => Self::Usage(usage(&problems)),
            NamespaceError::NameLength { .. } => Self::Usage(error.to_string()),
            _ => Self::Refused(error.to_string()),
        }
    }
}

impl From<CloseError> for Failure {
    fn from(error: CloseError) -> Self {
        match error {
            CloseError::Store(error) => error.into(),
            _ => Self::Refused(error.to_string()),
        }
    }
}

fn usage(problems: &[PolicyProblem]) -> String {
    let problems: Vec<_> = problems.iter().map(PolicyProblem::to_string).collect();
    format!("--ttl: {}", problems.join("; "))
}

fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}
