//! Files spread over directories, so that none grows past some thousands.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::disk::{Act, Disk};

/// How many directories.
pub(super) const SHARDS: u64 = 256;

/// Where one of them is.
pub(super) fn shard_dir(dir: &Path, shard: u64) -> PathBuf {
    dir.join(format!("{shard:02x}"))
}

/// Makes the directory of `path` with `make` when `work` finds that it is not there.
pub(super) fn with_parent<T>(
    path: &Path,
    make: impl FnOnce(&Path) -> io::Result<()>,
    work: impl Fn() -> io::Result<T>,
) -> io::Result<T> {
    match (work(), path.parent()) {
        // Another thread may have made it meanwhile, which is no reason to fail.
        (Err(error), Some(parent)) if error.kind() == io::ErrorKind::NotFound => {
            make(parent)?;
            work()
        }
        (done, _) => done,
    }
}

/// Makes a directory that may have been made meanwhile, and does not flush it.
pub(super) fn make_dir(disk: &Disk, dir: &Path) -> io::Result<()> {
    match disk.act(Act::MakeDir(dir), || fs::DirBuilder::new().mode(0o700).create(dir)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}
