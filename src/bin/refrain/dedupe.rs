//! The job: lines in, each first sight out.
//!
//! Batch by batch: claim every key, write out the lines whose claim was granted, make them as
//! durable as the store is, complete the claims. A line counts as seen once its claim is completed,
//! so a run that ends in between has written out what nobody remembers, never the other way round.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use refrain::{
    Claim, ClaimOptions, CompleteError, CompleteOptions, DEDUPE_TTL_MAX, Durability, FencingToken,
    Lease, Namespace, OnLeaseEnd, OnOrphan, Once, Options, Policy, Store,
};

use crate::exit::Failure;
use crate::input::{BATCH_LINES_MAX, Batch, InputRules, Source, read_all};
use crate::key;
use crate::output::{FileSink, Sink, tell};
use crate::summary::{Counts, SummaryForm};

/// Batches that are read ahead.
const AHEAD: usize = 8;

/// Bytes of lines at which batches are no longer joined.
const JOINED_BYTES_MAX: usize = 4 << 20;

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Job {
    pub sources: Vec<Source>,
    pub rules: InputRules,
    pub place: Place,
    pub namespace: String,
    pub ttl: Option<Duration>,
    pub duplicates: Option<PathBuf>,
    pub summary: SummaryForm,
}

/// Where keys are kept.
#[derive(Clone, Debug)]
pub enum Place {
    Memory,
    Directory(PathBuf, Durability),
}

/// Does the job, and tells what it did.
pub fn run(job: &Job) -> Result<(), Failure> {
    let start = Instant::now();
    let bytes: Option<u64> = {
        let sizes = job.sources.iter().map(Source::probe).collect::<Result<Vec<_>, _>>()?;
        sizes.into_iter().sum()
    };
    let store = open(&job.place)?;
    let namespace = namespace(&store, &job.namespace, job.ttl)?;
    let duplicates = job.duplicates.as_deref().map(FileSink::append).transpose()?;
    let mut pass = Pass::new(namespace, FileSink::stdout()?, duplicates);
    pass.is_synced = matches!(job.place, Place::Directory(_, Durability::Sync));
    pass.is_forgetful = matches!(job.place, Place::Memory);
    // The upper 24 bits of a token are the epoch it was given in.
    pass.first_token = FencingToken::from_raw(u64::from(store.report().epoch) << 40);
    let progress = progress(bytes);

    let (sender, batches) = sync_channel(AHEAD);
    let (sources, rules) = (job.sources.clone(), job.rules.clone());
    let spawned = std::thread::Builder::new()
        .name("refrain-input".to_owned())
        .spawn(move || read_all(&sources, &rules, &sender));
    let reader = spawned.map_err(|error| Failure::Input { place: "a thread".to_owned(), error })?;
    let mut joiner = Joiner::new(batches);
    loop {
        let batches = joiner.next();
        if batches.is_empty() {
            break;
        }
        pass.pass(&batches)?;
        progress.inc(batches.iter().map(|batch| batch.read).sum());
    }
    let read = match reader.join() {
        Ok(read) => read,
        Err(panicked) => std::panic::resume_unwind(panicked),
    };
    progress.finish_and_clear();
    let counts = pass.counts;
    drop(pass);
    store.close()?;
    read?;
    tell(&counts.tell(job.summary, start.elapsed()));
    Ok(())
}

fn open(place: &Place) -> Result<Store, Failure> {
    let options = match place {
        Place::Memory => Options::in_memory(),
        Place::Directory(path, durability) => Options::new(path).durability(*durability),
    };
    Ok(options.open()?)
}

/// The namespace, with this window if one is asked for. One that is new gets thirty years; one that
/// is there keeps its policy but for what the window implies.
fn namespace(store: &Store, name: &str, ttl: Option<Duration>) -> Result<Namespace, Failure> {
    let with_window = |policy: Policy, ttl: Duration| {
        let (lease, replay) = (policy.lease.min(ttl), policy.replay_ttl.min(ttl));
        policy.dedupe_ttl(ttl).lease(lease).replay_ttl(replay)
    };
    if !store.namespaces().iter().any(|known| known == name) {
        let ttl = ttl.unwrap_or(DEDUPE_TTL_MAX);
        return Ok(store.define(name, &with_window(Policy::default(), ttl))?);
    }
    let known = store.namespace(name)?;
    let stored = known.policy();
    // What a killed run has claimed and not written out must be up for the next run.
    let reclaims = stored.on_lease_end == OnLeaseEnd::Reclaim
        && matches!(stored.on_orphan, OnOrphan::AsLeaseEnd | OnOrphan::Reclaim);
    if !reclaims || stored.fingerprint_required {
        let why = "keeps or parks unfinished claims, or requires fingerprints";
        return Err(Failure::Refused(unfit(name, why)));
    }
    let Some(ttl) = ttl.filter(|ttl| *ttl != stored.dedupe_ttl) else { return Ok(known) };
    let altered = store.alter(name, &with_window(stored, ttl))?;
    tell(&format!(
        "refrain: the window of namespace {name:?} changes from {} to {}; what it holds keeps its own\n",
        humantime::format_duration(stored.dedupe_ttl),
        humantime::format_duration(altered.policy().dedupe_ttl),
    ));
    Ok(altered)
}

/// A bar on a terminal, unless lines go to that terminal too.
fn progress(bytes: Option<u64>) -> ProgressBar {
    if std::io::stdout().is_terminal() || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match bytes {
        Some(bytes) => (
            ProgressBar::new(bytes),
            "{bar:32} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left",
        ),
        None => (ProgressBar::new_spinner(), "{spinner} {bytes}, {bytes_per_sec}"),
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Takes batches, and joins what is there already, so that a busy input is synced less often.
struct Joiner {
    batches: Receiver<Batch>,
    /// The one that did not fit.
    held: Option<Batch>,
}

impl Joiner {
    fn new(batches: Receiver<Batch>) -> Self {
        Self { batches, held: None }
    }

    /// Waits for a batch; no more than [`BATCH_LINES_MAX`] lines with those that join it. Empty:
    /// there are no more.
    fn next(&mut self) -> Vec<Batch> {
        let Some(first) = self.held.take().or_else(|| self.batches.recv().ok()) else {
            return Vec::new();
        };
        let (mut lines, mut bytes) = (first.len(), first.bytes());
        let mut joined = vec![first];
        while bytes < JOINED_BYTES_MAX {
            let Ok(next) = self.batches.try_recv() else { break };
            lines += next.len();
            bytes += next.bytes();
            if lines > BATCH_LINES_MAX {
                self.held = Some(next);
                break;
            }
            joined.push(next);
        }
        joined
    }
}

/// The lines of a run, on their way through a namespace.
struct Pass<S> {
    namespace: Namespace,
    out: S,
    duplicates: Option<S>,
    /// What is written out is made to survive power loss before it counts as seen.
    is_synced: bool,
    /// Nothing outlives the run: a line is marked as seen at once.
    is_forgetful: bool,
    /// The tokens of this run are no lower.
    first_token: FencingToken,
    counts: Counts,
    /// Written before the first line that is.
    header: Option<Vec<u8>>,
    /// Of the batches at hand: granted claims, lines to write out, lines to put aside.
    leases: Vec<Lease>,
    lines: Vec<u8>,
    aside: Vec<u8>,
}

impl<S: Sink> Pass<S> {
    fn new(namespace: Namespace, out: S, duplicates: Option<S>) -> Self {
        Self {
            namespace,
            out,
            duplicates,
            is_synced: false,
            is_forgetful: false,
            first_token: FencingToken::from_raw(0),
            counts: Counts::default(),
            header: None,
            leases: Vec::new(),
            lines: Vec::new(),
            aside: Vec::new(),
        }
    }

    fn pass(&mut self, batches: &[Batch]) -> Result<(), Failure> {
        // Whatever stops the claims, what was claimed is finished.
        let claimed = batches.iter().try_for_each(|batch| self.claim(batch));
        let finished = self.write().and_then(|()| self.complete());
        claimed.and(finished)
    }

    fn claim(&mut self, batch: &Batch) -> Result<(), Failure> {
        if let Some(header) = &batch.header {
            self.header = Some(header.clone());
        }
        let mut room = key::digest_room();
        for (line, key) in batch.lines() {
            let Some(key) = key else {
                self.counts.unkeyed += 1;
                self.lines.extend_from_slice(line);
                continue;
            };
            let key = key::stored(key, &mut room);
            let is_first = if self.is_forgetful { self.mark(key)? } else { self.take(key)? };
            if is_first {
                self.counts.first += 1;
                self.lines.extend_from_slice(line);
            } else {
                self.counts.duplicates += 1;
                if self.duplicates.is_some() {
                    self.aside.extend_from_slice(line);
                }
            }
        }
        Ok(())
    }

    /// Claims a key, to complete it when its line is written out. Whether it is new.
    fn take(&mut self, key: &[u8]) -> Result<bool, Failure> {
        // Nobody waits for a claim: until its line is written out it may be lost.
        match self.namespace.claim_with(key, &ClaimOptions::new().buffered())? {
            Claim::Acquired(lease) => {
                self.leases.push(lease);
                Ok(true)
            }
            // Claimed by an earlier process under rules that the namespace had then.
            Claim::InProgress(other) if other.token() < self.first_token => {
                Err(Failure::Refused(self.unfit("holds an unfinished claim")))
            }
            // In progress: an earlier line of these batches.
            Claim::Completed(_) | Claim::InProgress(_) => Ok(false),
            _ => Err(Failure::Refused(self.unfit("holds a parked key"))),
        }
    }

    /// Marks a key as seen. Whether it is new.
    fn mark(&self, key: &[u8]) -> Result<bool, Failure> {
        Ok(matches!(self.namespace.once(key, None)?, Once::First(_)))
    }

    fn write(&mut self) -> Result<(), Failure> {
        if !self.lines.is_empty() {
            if let Some(header) = self.header.take() {
                self.out.write(&header)?;
            }
            self.out.write(&self.lines)?;
            if self.is_synced {
                self.out.sync()?;
            }
            self.lines.clear();
        }
        if let Some(duplicates) = &mut self.duplicates
            && !self.aside.is_empty()
        {
            duplicates.write(&self.aside)?;
            if self.is_synced {
                duplicates.sync()?;
            }
            self.aside.clear();
        }
        Ok(())
    }

    fn complete(&mut self) -> Result<(), Failure> {
        let options = CompleteOptions::new();
        let commits: Vec<_> = self
            .leases
            .iter()
            .map(|lease| self.namespace.complete_async(lease.key(), lease.token(), &options))
            .collect();
        for (lease, commit) in self.leases.iter().zip(commits) {
            match commit.wait() {
                Ok(_) => {}
                // The output stood still for so long that the claim was forgotten, or taken over.
                // The line is written all the same.
                Err(CompleteError::Forgotten { .. } | CompleteError::Fenced { .. }) => {
                    self.mark(lease.key())?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.leases.clear();
        Ok(())
    }

    fn unfit(&self, why: &str) -> String {
        unfit(self.namespace.name(), why)
    }
}

fn unfit(name: &str, why: &str) -> String {
    format!("namespace {name:?} {why}: take another --namespace")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is the report")]

    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, Mutex};

    use refrain::Lookup;
    use refrain::testing::{HeapFs, SimClock};

    use super::*;
    use crate::disk::HookFs;
    use crate::key::KeyRule;

    /// Calls back before it takes lines.
    struct Watched<'a> {
        lines: &'a Mutex<Vec<u8>>,
        before: &'a dyn Fn() -> Result<(), Failure>,
    }

    impl Sink for Watched<'_> {
        fn write(&mut self, lines: &[u8]) -> Result<(), Failure> {
            (self.before)()?;
            self.lines.lock().unwrap().extend_from_slice(lines);
            Ok(())
        }

        fn sync(&mut self) -> Result<(), Failure> {
            Ok(())
        }
    }

    /// The text, cut into batches.
    fn batches(text: &str) -> Vec<Batch> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("input");
        std::fs::write(&path, text).unwrap();
        let rules = InputRules {
            key: KeyRule::Whole,
            delimiter: b',',
            has_header: false,
            is_strict: false,
        };
        let (sender, batches) = sync_channel(1000);
        read_all(&[Source::File(path)], &rules, &sender).unwrap();
        drop(sender);
        batches.iter().collect()
    }

    fn options(fs: impl refrain::testing::FileSystem + 'static) -> Options {
        let options = Options::new("unused").file_system(fs).segment_bytes(256 << 10);
        options.manual_maintenance(true)
    }

    #[test]
    fn joined_batches_stay_within_the_limit_and_in_order() {
        let text: String = (0..100_000).map(|n| format!("{n}\n")).collect();
        let (sender, receiver) = sync_channel(1000);
        for batch in batches(&text) {
            sender.send(batch).unwrap();
        }
        drop(sender);
        let mut joiner = Joiner::new(receiver);
        let mut seen = String::new();
        let mut groups = 0;
        loop {
            let group = joiner.next();
            if group.is_empty() {
                break;
            }
            assert!(group.iter().map(Batch::len).sum::<usize>() <= BATCH_LINES_MAX);
            for (line, _) in group.iter().flat_map(Batch::lines) {
                seen.push_str(std::str::from_utf8(line).unwrap());
            }
            groups += 1;
        }
        assert!(seen == text && groups >= 100_000 / BATCH_LINES_MAX);
    }

    #[test]
    fn a_line_is_claimed_while_it_is_written_and_completed_after() {
        let store = Store::in_memory().unwrap();
        let namespace = namespace(&store, "dedupe", None).unwrap();
        let lines = Mutex::new(vec![]);
        let before = || {
            assert!(matches!(namespace.lookup("a").unwrap(), Lookup::InProgress(_)));
            Ok(())
        };
        let out = Watched { lines: &lines, before: &before };
        let mut pass = Pass::new(namespace.clone(), out, None);
        pass.pass(&batches("a\na\n")).unwrap();
        assert!(matches!(namespace.lookup("a").unwrap(), Lookup::Completed(_)));
        assert_eq!(*lines.lock().unwrap(), b"a\n");
    }

    #[test]
    fn an_output_that_fails_leaves_its_lines_unseen() {
        let store = Store::in_memory().unwrap();
        let namespace = namespace(&store, "dedupe", None).unwrap();
        let lines = Mutex::new(vec![]);
        let fails = || Err(Failure::OutputClosed { place: String::new() });
        let out = Watched { lines: &lines, before: &fails };
        let mut pass = Pass::new(namespace.clone(), out, None);
        assert_eq!(pass.pass(&batches("a\n")).unwrap_err().code(), 5);
        assert!(!matches!(namespace.lookup("a").unwrap(), Lookup::Completed(_)));
    }

    #[test]
    fn an_output_that_stands_still_past_every_lease_changes_nothing() {
        let clock = SimClock::new();
        let store = Options::in_memory().clock(clock.clone()).open().unwrap();
        let namespace = namespace(&store, "dedupe", None).unwrap();
        let lines = Mutex::new(vec![]);
        let before = || {
            clock.advance(Duration::from_secs(86_400));
            Ok(())
        };
        let out = Watched { lines: &lines, before: &before };
        let mut pass = Pass::new(namespace.clone(), out, None);
        for _ in 0..2 {
            pass.pass(&batches("a\nb\na\n")).unwrap();
        }
        assert_eq!(*lines.lock().unwrap(), b"a\nb\n");
        assert!(matches!(namespace.lookup("a").unwrap(), Lookup::Completed(_)));
    }

    #[test]
    fn a_store_that_fills_on_the_way_keeps_what_was_written() {
        let fs = HeapFs::new();
        let store = options(fs.clone()).open().unwrap();
        let namespace = namespace(&store, "dedupe", None).unwrap();
        fs.set_room(0);
        let lines = Mutex::new(vec![]);
        let before = || Ok(());
        let text: String = (0..20_000).map(|n| format!("{n:0>200}\n")).collect();
        let all = batches(&text);
        let out = Watched { lines: &lines, before: &before };
        let mut pass = Pass::new(namespace, out, None);
        let ended = all.iter().try_for_each(|batch| pass.pass(std::slice::from_ref(batch)));
        assert_eq!(ended.unwrap_err().code(), 7);
        drop(pass);
        let kept = lines.lock().unwrap().len();
        assert!(kept > 0 && lines.lock().unwrap()[..] == text.as_bytes()[..kept]);
        // With room again, the next run goes on behind it.
        store.abandon();
        fs.set_room(u64::MAX);
        let store = options(fs).open().unwrap();
        let namespace = super::namespace(&store, "dedupe", None).unwrap();
        let out = Watched { lines: &lines, before: &before };
        let mut pass = Pass::new(namespace, out, None);
        for batch in &all {
            pass.pass(std::slice::from_ref(batch)).unwrap();
        }
        assert!(*lines.lock().unwrap() == text.as_bytes(), "every line once, in order");
    }

    #[test]
    fn a_failed_sync_ends_the_run_as_poisoned() {
        let fails = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&fails);
        let fs = HookFs::new(HeapFs::new(), move |operation, _| {
            if operation == "sync" && seen.load(Ordering::Relaxed) {
                return Err(std::io::Error::other("the disk is gone"));
            }
            Ok(())
        });
        let store = options(fs).open().unwrap();
        let namespace = namespace(&store, "dedupe", None).unwrap();
        let lines = Mutex::new(vec![]);
        let before = || Ok(());
        let out = Watched { lines: &lines, before: &before };
        let mut pass = Pass::new(namespace, out, None);
        pass.pass(&batches("a\n")).unwrap();
        fails.store(true, Ordering::Relaxed);
        assert_eq!(pass.pass(&batches("b\n")).unwrap_err().code(), 9);
        assert_eq!(pass.pass(&batches("c\n")).unwrap_err().code(), 9);
    }
}
