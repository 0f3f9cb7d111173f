//! Where lines go: standard output, and the file for duplicates.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::OFlags;

use crate::exit::Failure;

/// Tells whoever runs the command. That nobody listens is no reason to fail.
pub fn tell(text: &str) {
    io::stderr().write_all(text.as_bytes()).unwrap_or_default();
}

/// Takes lines, and says when they are where they should be.
pub trait Sink {
    /// Writes all of `lines`, each of which ends with a newline.
    fn write(&mut self, lines: &[u8]) -> Result<(), Failure>;
    /// Makes what was written survive power loss, if that is for this sink to do.
    fn sync(&mut self) -> Result<(), Failure>;
}

/// A file or a pipe, written without a buffer of its own.
#[derive(Debug)]
pub struct FileSink {
    name: String,
    file: File,
    /// Pipes and terminals have nothing to sync.
    is_regular: bool,
    /// The file ends with the beginning of a line, as a run that was killed in the midst of a
    /// write leaves it: the next line starts a line of its own.
    is_torn: bool,
}

impl FileSink {
    /// Standard output.
    pub fn stdout() -> Result<Self, Failure> {
        let name = "standard output".to_owned();
        let owned = io::stdout().as_fd().try_clone_to_owned();
        let file = File::from(owned.map_err(|error| Failure::output(&name, error))?);
        Self::new(name, file, Path::new("/proc/self/fd/1"))
    }

    /// The file at `path`, appended to.
    pub fn append(path: &Path) -> Result<Self, Failure> {
        let name = path.display().to_string();
        let opened = OpenOptions::new().append(true).create(true).open(path);
        let file = opened.map_err(|error| Failure::output(&name, error))?;
        Self::new(name, file, path)
    }

    fn new(name: String, file: File, path: &Path) -> Result<Self, Failure> {
        let metadata = file.metadata().map_err(|error| Failure::output(&name, error))?;
        let is_regular = metadata.is_file();
        // A file that cannot be looked at is written as it is.
        let is_torn = is_regular && ends_within_a_line(&file, path).unwrap_or(false);
        Ok(Self { name, file, is_regular, is_torn })
    }

    fn try_write(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.is_torn {
            self.file.write_all(b"\n")?;
            self.is_torn = false;
        }
        self.file.write_all(lines)
    }
}

/// Whether what is written next goes behind bytes without a newline.
fn ends_within_a_line(mut file: &File, path: &Path) -> io::Result<bool> {
    let len = file.metadata()?.len();
    let appends = rustix::fs::fcntl_getfl(file)?.contains(OFlags::APPEND);
    if len == 0 || !(appends || file.stream_position()? == len) {
        return Ok(false);
    }
    let mut last = [0];
    File::open(path)?.read_exact_at(&mut last, len - 1)?;
    Ok(last != *b"\n")
}

impl Sink for FileSink {
    fn write(&mut self, lines: &[u8]) -> Result<(), Failure> {
        self.try_write(lines).map_err(|error| Failure::output(&self.name, error))
    }

    fn sync(&mut self) -> Result<(), Failure> {
        if !self.is_regular {
            return Ok(());
        }
        self.file.sync_data().map_err(|error| Failure::output(&self.name, error))
    }
}
