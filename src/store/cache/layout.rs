//! Where a cache has its files: a directory for each start of the machine, and one for what is being fetched.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::known::Key;
use crate::hash::ContentHash;

/// Where the cache keeps what it is still fetching.
pub(super) const FETCHING: &str = "fetching";
/// Starts the name of the directory for what was written since one start of the machine.
pub(super) const BOOT: &str = "boot-";

/// Where in a cache its files lie: a directory for each start of the machine.
pub fn boots_in(cache: &Path) -> Vec<PathBuf> {
    let ours = |entry: &fs::DirEntry| entry.file_name().to_str().is_some_and(|name| name.starts_with(BOOT));
    fs::read_dir(cache).into_iter().flatten().flatten().filter(ours).map(|entry| entry.path()).collect()
}

/// The name of content in such a directory.
pub fn name_of(hash: ContentHash) -> PathBuf {
    Key::of(hash).name()
}

/// What lies in a spool or a cache where oxenfs puts nothing of the kind, if anything does; it would be in the way.
///
/// # Errors
/// When they cannot be listed.
pub fn foreign_in(spool: &Path, cache: &Path) -> io::Result<Option<PathBuf>> {
    let odd = |dir: &Path, is_odd: fn(&fs::FileType) -> bool| -> io::Result<Option<PathBuf>> {
        let entries = match fs::read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            if is_odd(&entry.file_type()?) {
                return Ok(Some(entry.path()));
            }
        }
        Ok(None)
    };
    for (dir, is_odd) in [
        (spool.to_owned(), (|kind| !kind.is_dir()) as fn(&fs::FileType) -> bool),
        (cache.to_owned(), |kind| !kind.is_dir()),
        (cache.join(FETCHING), |kind| kind.is_dir()),
    ] {
        if let Some(found) = odd(&dir, is_odd)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}
