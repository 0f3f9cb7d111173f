//! What is asked of the machine: warm memory, and what the kernel counts about this process.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use memmap2::{Advice, MmapMut};

const PAGE: usize = 4096;

/// Touches and gives back anonymous memory, so that free pages of a guest are backed by its host
/// when the timed part starts.
pub fn warm(bytes: usize) -> io::Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    let mut map = MmapMut::map_anon(bytes)?;
    // Where the kernel has no huge pages, small ones are as good.
    map.advise(Advice::HugePage).unwrap_or_default();
    touch(&mut map);
    Ok(())
}

/// Touches and gives back memory of this process's heap, which keeps it when it is told never to
/// purge (`MIMALLOC_PURGE_DELAY=-1`): a fill then takes no page faults.
pub fn warm_heap(bytes: usize) {
    const BLOCK: usize = 1 << 20;
    let blocks = (0..bytes / BLOCK).map(|_| {
        let mut block = vec![0; BLOCK];
        touch(&mut block);
        block
    });
    drop(std::hint::black_box(blocks.collect::<Vec<Vec<u8>>>()));
}

fn touch(bytes: &mut [u8]) {
    for page in bytes.chunks_mut(PAGE) {
        page[0] = 1;
    }
    std::hint::black_box(bytes);
}

/// Memory of this process that is resident, in bytes.
#[derive(Clone, Copy, Default, Debug)]
pub struct Resident {
    pub anonymous: u64,
    pub total: u64,
}

impl Resident {
    pub fn of(process: &str) -> io::Result<Self> {
        let text = fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
        let field = |name| 1024 * field(&text, name);
        Ok(Self { anonymous: field("Anonymous:"), total: field("Rss:") })
    }

    pub fn now() -> io::Result<Self> {
        Self::of("self")
    }
}

/// The number behind a name at the start of a line.
fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let word = line.and_then(|rest| rest.split_whitespace().next());
    word.and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// What has happened to this thread so far.
#[derive(Clone, Copy, Default, Debug)]
pub struct ThreadCounts {
    /// Runnable, but another thread had the processor.
    pub waiting_ns: u64,
    pub faults: u64,
    pub major_faults: u64,
    /// Gave up the processor: to wait for a lock, or for the disk.
    pub blocked: u64,
}

impl ThreadCounts {
    pub fn since(self, earlier: Self) -> Self {
        Self {
            waiting_ns: self.waiting_ns - earlier.waiting_ns,
            faults: self.faults - earlier.faults,
            major_faults: self.major_faults - earlier.major_faults,
            blocked: self.blocked - earlier.blocked,
        }
    }
}

/// The files in which the kernel tells what has happened to the thread that opened them. Kept open:
/// a reading takes some 15 us, half of what it takes with opening them.
pub struct ThreadFiles {
    schedule: Option<File>,
    stat: Option<File>,
    status: Option<File>,
}

impl ThreadFiles {
    /// Of a file that is not there, nothing is counted.
    pub fn open() -> Self {
        let open = |name| File::open(format!("/proc/thread-self/{name}")).ok();
        Self { schedule: open("schedstat"), stat: open("stat"), status: open("status") }
    }

    pub fn read(&self) -> ThreadCounts {
        let (mut schedule, mut stat, mut status) = ([0; 128], [0; 1024], [0; PAGE]);
        let schedule = read_text(self.schedule.as_ref(), &mut schedule);
        let stat = read_text(self.stat.as_ref(), &mut stat);
        let status = read_text(self.status.as_ref(), &mut status);
        // The name of the thread, in parentheses, may have spaces; the state comes after it.
        let stat = stat.rsplit(')').next().unwrap_or_default();
        let word = |text: &str, at| {
            let word = text.split_whitespace().nth(at);
            word.and_then(|word| word.parse().ok()).unwrap_or(0)
        };
        ThreadCounts {
            waiting_ns: word(schedule, 1),
            faults: word(stat, 7),
            major_faults: word(stat, 9),
            blocked: field(status, "voluntary_ctxt_switches:"),
        }
    }
}

/// The text of a file from its beginning, as far as there is room.
fn read_text<'a>(file: Option<&File>, room: &'a mut [u8]) -> &'a str {
    let len = file.and_then(|file| file.read_at(room, 0).ok()).unwrap_or(0);
    std::str::from_utf8(&room[..len]).unwrap_or_default()
}

/// Bytes that a directory takes on disk, as blocks allocated.
pub fn disk_bytes(path: &Path) -> io::Result<u64> {
    let meta = fs::symlink_metadata(path)?;
    if !meta.is_dir() {
        return Ok(meta.blocks() * 512);
    }
    let mut bytes = 0;
    for entry in fs::read_dir(path)? {
        bytes += disk_bytes(&entry?.path())?;
    }
    Ok(bytes)
}

/// The machine in a line: processor, how many, memory.
pub fn description() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let named = cpus.lines().find_map(|line| line.strip_prefix("model name"));
    let model = named.and_then(|rest| rest.split(": ").nth(1)).unwrap_or("unknown processor");
    let gib = field(&read("/proc/meminfo"), "MemTotal:") >> 20;
    let kernel = read("/proc/sys/kernel/osrelease");
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{count} x {model}, {gib} GiB, Linux {}", kernel.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touched_memory_is_resident_until_it_is_given_back() {
        let before = Resident::now().unwrap().anonymous;
        let mut map = MmapMut::map_anon(64 << 20).unwrap();
        touch(&mut map);
        let grown = Resident::now().unwrap().anonymous - before;
        assert!(grown >= 64 << 20, "{grown}");
    }

    #[test]
    fn the_thread_is_counted() {
        let files = ThreadFiles::open();
        let before = files.read();
        let mut map = MmapMut::map_anon(1 << 20).unwrap();
        touch(&mut map);
        std::thread::sleep(std::time::Duration::from_millis(1));
        let counts = files.read().since(before);
        assert!(counts.faults > 0 && counts.blocked > 0, "{counts:?}");
    }
}
