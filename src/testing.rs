//! What this project's own tests and fuzz targets reach beyond the public calls. Not part of the
//! crate's promises but for [`SimClock`].

pub use crate::sys::clock::SimClock;
#[doc(hidden)]
pub use crate::sys::heap::HeapFs;
#[doc(hidden)]
pub use crate::sys::real::RealFs;
#[doc(hidden)]
pub use crate::sys::{Clock, DirectoryLock, File, FileSystem, Region};
