//! What was measured: the versions of the contestants, as they were built in or are installed.

use std::process::Command;

/// Cargo writes it before it builds.
const LOCK: &str = include_str!("../Cargo.lock");

/// The contestants' crates, the engines inside them, and the allocator; and whether they are built
/// in.
const CRATES: &[(&str, bool)] = &[
    ("dashmap", true),
    ("papaya", true),
    ("scc", true),
    ("moka", true),
    ("quick_cache", true),
    ("fjall", true),
    ("redb", true),
    ("sled", true),
    ("mimalloc", true),
    ("rocksdb", cfg!(feature = "rocksdb")),
    ("librocksdb-sys", cfg!(feature = "rocksdb")),
    ("rusqlite", cfg!(feature = "sqlite")),
    ("libsqlite3-sys", cfg!(feature = "sqlite")),
    ("heed", cfg!(feature = "lmdb")),
    ("lmdb-master-sys", cfg!(feature = "lmdb")),
    ("redis", cfg!(feature = "redis")),
];

/// All of them in a line.
pub fn line() -> String {
    let mut all: Vec<_> = CRATES
        .iter()
        .filter(|(_, is_here)| *is_here)
        .filter_map(|(name, _)| Some(format!("{name} {}", of(name)?)))
        .collect();
    all.extend(redis_server());
    all.join(", ")
}

/// The version of a package in the lock file; of several the one that this program itself uses,
/// which its own list of dependencies then says behind the name.
fn of(name: &str) -> Option<&'static str> {
    let (_, own) = LOCK.split_once("\nname = \"peers\"\n")?;
    let (own, _) = own.split_once("\n[[package]]").unwrap_or((own, ""));
    let direct = own.split_once(&format!("\"{name} "));
    let any = || LOCK.split_once(&format!("\nname = \"{name}\"\nversion = \""));
    direct.or_else(any)?.1.split(['"', ' ']).next()
}

fn redis_server() -> Option<String> {
    if !cfg!(feature = "redis") {
        return None;
    }
    let output = Command::new("redis-server").arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.split_whitespace().find_map(|word| word.strip_prefix("v="))?;
    Some(format!("redis-server {version}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_is_found() {
        for (name, _) in CRATES {
            let version = of(name).unwrap();
            let package = format!("name = \"{name}\"\nversion = \"{version}\"");
            assert!(LOCK.contains(&package), "{package}");
        }
        assert!(line().starts_with("dashmap "), "{}", line());
    }
}
