//! A simulated disk under a process that can be killed and a machine that can lose power.
//!
//! Two images: the page cache, which the process reads and writes, and the disk. A page that was
//! changed since its last sync may be on the disk as it was then, as it is now, as any version in
//! between that was written back, or torn at 512 bytes: only a power cut decides. Directory entries
//! that were not synced may be there or not.
//!
//! ```text
//! process ----- write, store through a mapping -----> page cache
//!    |                                                 |     \  written back at random moments
//!    |  kill: what the process was doing is cut short  |      v
//!    |  power cut: the cache is gone as well           +-- sync --> disk
//! ```
//!
//! Every call is a *step*. A crash can be set for any step, and so can a failure: an error from any
//! call, a sync that fails and marks pages clean that never reached the disk, a disk that is full, a
//! write that is cut short. One seed makes one run; the same calls get the same answers.
//!
//! For one thread at a time: it copies mapped memory when it is called, and nobody may be storing
//! there meanwhile.

mod fs;
mod image;
mod memory;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;

use super::sync::Mutex;
use image::{Cache, Fate, Inode, Random, zeros};

pub use fs::SimFs;

/// How a process ends before its time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Crash {
    /// SIGKILL: the page cache survives.
    Kill,
    /// The machine stops: what was not synced is on the disk, or not, page by page.
    PowerCut,
}

/// A call that will fail.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Which calls: `read`, `write`, `fill`, `sync`, `map`, ...; empty is any.
    pub operation: &'static str,
    /// How many of them succeed before.
    pub after: u64,
    /// How many of them fail then.
    pub times: u64,
    /// With what.
    pub error: io::ErrorKind,
}

/// A disk, and the directory on it. Clones are the same disk.
#[derive(Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Clone)]
struct State {
    random: Random,
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    names: BTreeMap<String, u64>,
    synced_names: BTreeMap<String, u64>,
    /// Changes of names since the last sync of the directory, in order.
    renamed: Vec<NameChange>,
    /// Processes that have used the disk; only the last one still can.
    mounts: u64,
    is_locked: bool,
    boot: u64,
    room: u64,
    steps: u64,
    crash_at: Option<(u64, Crash)>,
    crashed: Option<Crash>,
    faults: Vec<Fault>,
    /// Chance in a thousand that a step writes a page back.
    write_back: u64,
    counts: BTreeMap<&'static str, u64>,
    /// The call during which the last crash came.
    crashed_in: &'static str,
}

#[derive(Clone, Debug)]
enum NameChange {
    Create(String, u64),
    Remove(String),
    /// Of this file: what else bore the first name before does not take the second.
    Rename(String, String, u64),
}

impl NameChange {
    fn apply(self, names: &mut BTreeMap<String, u64>) {
        match self {
            Self::Create(name, id) => drop(names.insert(name, id)),
            Self::Remove(name) => drop(names.remove(&name)),
            Self::Rename(from, to, id) => {
                if names.get(&from) == Some(&id) {
                    names.remove(&from);
                }
                names.insert(to, id);
            }
        }
    }
}

impl State {
    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// A call of the process that was mounted as `mount` begins.
    fn step(&mut self, mount: u64, operation: &'static str) -> io::Result<()> {
        if mount != self.mounts || self.crashed.is_some() {
            return Err(io::Error::other("the process is gone"));
        }
        self.steps += 1;
        self.count(operation);
        if self.random.below(1000) < self.write_back {
            self.write_a_page_back();
        }
        if let Some((_, crash)) = self.crash_at.filter(|(at, _)| *at <= self.steps) {
            self.crash(crash, operation);
            return Err(io::Error::other("the process is gone"));
        }
        for fault in &mut self.faults {
            if fault.times == 0 || !(fault.operation.is_empty() || fault.operation == operation) {
                continue;
            }
            if fault.after > 0 {
                fault.after -= 1;
                continue;
            }
            fault.times = fault.times.saturating_sub(u64::from(fault.times != u64::MAX));
            let error = fault.error;
            self.count(match operation {
                "read" => "read failed",
                "write" => "write failed",
                "fill" => "fill failed",
                "sync" => "sync failed",
                "sync_dir" => "sync_dir failed",
                "map" => "map failed",
                "lock" => "lock failed",
                "create" => "create failed",
                "open" => "open failed",
                "list" => "list failed",
                "remove" => "remove failed",
                "rename" => "rename failed",
                _ => "other call failed",
            });
            return Err(error.into());
        }
        Ok(())
    }

    fn write_a_page_back(&mut self) {
        let dirty: Vec<(u64, u64)> = self
            .inodes
            .iter()
            .flat_map(|(id, inode)| inode.dirty.keys().map(|page| (*id, *page)))
            .collect();
        if dirty.is_empty() {
            return;
        }
        let (id, page) = dirty[self.random.below(dirty.len() as u64) as usize];
        if let Some(inode) = self.inodes.get_mut(&id)
            && let Some(bytes) = inode.page(page)
            && let Some(versions) = inode.dirty.get_mut(&page)
        {
            versions.truncate(3);
            versions.push(bytes);
            self.count("page written back");
        }
    }

    fn inode(&mut self, id: u64) -> io::Result<&mut Inode> {
        self.inodes.get_mut(&id).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn crash(&mut self, crash: Crash, operation: &'static str) {
        self.crash_at = None;
        self.crashed = Some(crash);
        self.crashed_in = operation;
        self.is_locked = false;
        self.faults.clear();
        for inode in self.inodes.values_mut() {
            inode.detach();
        }
        match crash {
            Crash::Kill => {
                self.count("kill");
                self.drop_clean_pages();
            }
            Crash::PowerCut => self.cut(),
        }
    }

    /// Memory is short, now and then: pages that are clean are read again from the disk. That
    /// changes them only if a failed sync marked them clean.
    fn drop_clean_pages(&mut self) {
        if self.random.below(2) == 0 {
            return;
        }
        let mut is_changed = false;
        for inode in self.inodes.values_mut() {
            let Cache::Pages(pages) = &mut inode.cache else { continue };
            let clean: Vec<u64> =
                pages.keys().copied().filter(|page| !inode.dirty.contains_key(page)).collect();
            for page in clean {
                let disk = inode.disk.get(&page).cloned().unwrap_or_else(zeros);
                is_changed |= pages.insert(page, disk.clone()).is_some_and(|old| old != disk);
            }
        }
        if is_changed {
            self.count("unwritten page dropped");
        }
    }

    fn cut(&mut self) {
        self.count("power cut");
        self.boot += 1;
        let fates = [Fate::Old, Fate::New, Fate::Pages, Fate::Pages, Fate::Sectors, Fate::Sectors];
        let fate = fates[self.random.below(fates.len() as u64) as usize];
        let mut names = std::mem::take(&mut self.synced_names);
        for change in std::mem::take(&mut self.renamed) {
            let is_kept = match fate {
                Fate::Old => false,
                Fate::New => true,
                Fate::Pages | Fate::Sectors => self.random.below(2) == 0,
            };
            if !is_kept {
                self.count("entry lost");
                continue;
            }
            change.apply(&mut names);
        }
        self.inodes.retain(|id, _| names.values().any(|named| named == id));
        let random = &mut self.random;
        let (mut is_lossy, mut is_torn) = (false, false);
        for inode in self.inodes.values_mut() {
            let (lossy, torn) = inode.cut(random, fate);
            (is_lossy, is_torn) = (is_lossy | lossy, is_torn | torn);
        }
        names.retain(|_, id| self.inodes.contains_key(id));
        self.names = names.clone();
        self.synced_names = names;
        if is_lossy {
            self.count("power cut lost writes");
        }
        if is_torn {
            self.count("power cut tore a page");
        }
    }
}

impl SimDisk {
    /// An empty directory. The seed decides everything that is left to chance.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let state = State {
            random: Random(seed),
            inodes: BTreeMap::new(),
            next_inode: 1,
            names: BTreeMap::new(),
            synced_names: BTreeMap::new(),
            renamed: Vec::new(),
            mounts: 0,
            is_locked: false,
            boot: 1,
            room: u64::MAX,
            steps: 0,
            crash_at: None,
            crashed: None,
            faults: Vec::new(),
            write_back: 30,
            counts: BTreeMap::new(),
            crashed_in: "",
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// The file system for a new process. The one before is dead, if it was not: killed.
    #[must_use]
    pub fn mount(&self) -> SimFs {
        let mut state = self.state.lock();
        if state.crashed.is_none() && state.mounts > 0 {
            state.crash(Crash::Kill, "between calls");
        }
        state.crashed = None;
        state.faults.clear();
        state.mounts += 1;
        let mount = state.mounts;
        drop(state);
        SimFs::new(self.clone(), mount)
    }

    /// Ends the process, now.
    pub fn crash(&self, crash: Crash) {
        let mut state = self.state.lock();
        if state.crashed.is_none() {
            state.crash(crash, "between calls");
        } else if crash == Crash::PowerCut {
            state.cut();
        }
    }

    /// Ends the process at the step that comes `after` others.
    pub fn crash_after(&self, after: u64, crash: Crash) {
        let mut state = self.state.lock();
        state.crash_at = Some((state.steps + 1 + after, crash));
    }

    /// Takes back [`SimDisk::crash_after`].
    pub fn call_off_crash(&self) {
        self.state.lock().crash_at = None;
    }

    /// The crash that ended the process, if one did, and during which call.
    #[must_use]
    pub fn crashed(&self) -> Option<(Crash, &'static str)> {
        let state = self.state.lock();
        state.crashed.map(|crash| (crash, state.crashed_in))
    }

    /// Makes calls of the process that runs fail.
    pub fn fail(&self, fault: Fault) {
        self.state.lock().faults.push(fault);
    }

    /// Makes no more calls fail.
    pub fn heal(&self) {
        self.state.lock().faults.clear();
    }

    /// Lets zero-fills take `bytes` more.
    pub fn set_room(&self, bytes: u64) {
        self.state.lock().room = bytes;
    }

    /// Steps so far.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.state.lock().steps
    }

    /// How often a call, failure or loss occurred.
    #[must_use]
    pub fn count(&self, what: &str) -> u64 {
        self.state.lock().counts.get(what).copied().unwrap_or_default()
    }

    /// How often each call, failure and loss occurred.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.state.lock().counts.clone()
    }

    /// The names and lengths of all files, as the process sees them.
    #[must_use]
    pub fn files(&self) -> BTreeMap<String, u64> {
        let state = self.state.lock();
        let len = |inode| state.inodes.get(inode).map_or(0, |it| it.len);
        state.names.iter().map(|(name, inode)| (name.clone(), len(inode))).collect()
    }

    /// The bytes of a file of a disk that no process uses; empty when there is none.
    #[must_use]
    pub fn read(&self, name: &str) -> Vec<u8> {
        let state = self.state.lock();
        let inode = state.names.get(name).and_then(|inode| state.inodes.get(inode));
        let mut bytes = vec![0; inode.map_or(0, |inode| inode.len as usize)];
        if let Some(inode) = inode {
            inode.read(&mut bytes, 0).unwrap_or_default();
        }
        bytes
    }

    /// Changes a file behind everybody's back, on a disk that no process uses: makes it if need be,
    /// writes `bytes` at `offset`, and gives it the length `len` if one is named.
    pub fn tamper(&self, name: &str, offset: u64, bytes: &[u8], len: Option<u64>) {
        let mut state = self.state.lock();
        let state = &mut *state;
        let id = *state.names.entry(name.to_owned()).or_insert_with(|| {
            state.next_inode += 1;
            state.next_inode - 1
        });
        let inode = state.inodes.entry(id).or_insert_with(Inode::new);
        inode.write(bytes, offset);
        if let Some(len) = len {
            inode.cut_to(len);
        }
        inode.sync();
        state.synced_names = state.names.clone();
    }

    /// Renames a file, or removes it, on a disk that no process uses.
    pub fn displace(&self, name: &str, to: Option<&str>) {
        let mut state = self.state.lock();
        if let Some(inode) = state.names.remove(name)
            && let Some(to) = to
        {
            state.names.insert(to.to_owned(), inode);
        }
        state.synced_names = state.names.clone();
    }

    /// Another disk that holds what this one does, with the same fate before it unless `seed` gives
    /// it another. For a disk that no process uses.
    #[must_use]
    pub fn copy(&self, seed: Option<u64>) -> Self {
        let mut state = self.state.lock().clone();
        for inode in state.inodes.values_mut() {
            inode.detach();
            inode.memory = None;
        }
        if let Some(seed) = seed {
            state.random = Random(seed);
        }
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// What a power cut would decide about: pages and changes of names that are not synced.
    #[must_use]
    pub fn unsynced(&self) -> usize {
        let state = self.state.lock();
        let pages: usize = state.inodes.values().map(|inode| inode.dirty.len()).sum();
        pages + state.renamed.len()
    }

    /// A power cut after which, of all that [`SimDisk::unsynced`] counts, exactly that is on the disk
    /// for which `keeps` says so. Lengths that were not synced go with the last page.
    pub fn cut_keeping(&self, keeps: impl Fn(usize) -> bool) {
        let mut state = self.state.lock();
        let state = &mut *state;
        let mut number = 0;
        let mut next = || {
            number += 1;
            keeps(number - 1)
        };
        for inode in state.inodes.values_mut() {
            inode.detach();
            let mut is_kept = true;
            for page in std::mem::take(&mut inode.dirty).into_keys() {
                is_kept = next();
                if is_kept && let Some(bytes) = inode.page(page) {
                    inode.disk.insert(page, bytes);
                }
            }
            if is_kept {
                inode.synced_len = inode.len;
            }
        }
        state.crashed = Some(Crash::PowerCut);
        state.crash_at = None;
        state.is_locked = false;
        state.boot += 1;
        state.count("power cut");
        let mut names = std::mem::take(&mut state.synced_names);
        for change in std::mem::take(&mut state.renamed) {
            if next() {
                change.apply(&mut names);
            }
        }
        state.inodes.retain(|id, _| names.values().any(|named| named == id));
        for inode in state.inodes.values_mut() {
            inode.len = inode.synced_len;
            inode.cache = Cache::Pages(inode.disk.clone());
        }
        (state.names, state.synced_names) = (names.clone(), names);
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("SimDisk").field("steps", &state.steps).finish_non_exhaustive()
    }
}
