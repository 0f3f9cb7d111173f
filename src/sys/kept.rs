//! What may outlive the store that it came from: bytes where they lie, and the hold on the directory without
//! which they might be written again.

use std::sync::Arc;

use super::DirectoryLock;
use super::extent::Extent;
use super::fork::ForkGuard;

/// The process's exclusive hold on a store's directory. While it exists no other process writes there.
#[derive(Debug)]
pub(crate) struct Hold {
    /// Not there once it is a child's, whose parent has the lock.
    lock: Option<Box<dyn DirectoryLock>>,
    fork: Arc<ForkGuard>,
}

impl Hold {
    pub(crate) fn new(lock: Box<dyn DirectoryLock>, fork: Arc<ForkGuard>) -> Arc<Self> {
        Arc::new(Self { lock: Some(lock), fork })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.fork.is_child() {
            // To unlock would be to unlock for the parent.
            std::mem::forget(self.lock.take());
        }
    }
}

/// Bytes of an extent, below what is filled of it, that stay what they are while this exists: the extent does,
/// so nobody fills its stretch again (E1), nor does another process, because the directory is held.
#[derive(Clone, Debug)]
pub(crate) struct KeptBytes {
    extent: Arc<Extent>,
    from: u32,
    to: u32,
    hold: Arc<Hold>,
}

impl KeptBytes {
    /// Bytes that were borrowed from this extent.
    pub(crate) fn new(extent: &Arc<Extent>, bytes: &[u8], hold: Arc<Hold>) -> Option<Self> {
        let (from, to) = extent.range_of(bytes)?;
        extent.bytes(from, to)?;
        Some(Self { extent: Arc::clone(extent), from, to, hold })
    }

    /// `None` in a forked child: the mapping is not there, and the bytes are not the child's.
    pub(crate) fn bytes(&self) -> Option<&[u8]> {
        if self.hold.fork.is_child() { None } else { self.extent.bytes(self.from, self.to) }
    }
}
