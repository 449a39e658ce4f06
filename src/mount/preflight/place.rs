//! The directory to be mounted on, from the first look at it to the mount: it may be renamed or replaced meanwhile, by
//! whoever may write to the one it lies in.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};

use super::{PreflightError, io_at};
use crate::mount::mountinfo;

/// How long another mount may take between its last look and the mount, and how often that is looked at.
const CLAIM_PATIENCE: Duration = Duration::from_secs(2);
const CLAIM_CHECK: Duration = Duration::from_millis(5);

/// A directory that was found fit to be mounted on, held open. What stands at its path later is another's.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    dir: OwnedFd,
}

/// While it lives no other oxenfs mounts there.
#[derive(Debug)]
#[must_use = "others may mount there when it is dropped"]
pub struct Claim(#[expect(dead_code, reason = "its lock ends when it is dropped")] OwnedFd);

impl Place {
    /// Holds the directory at `path`, which has no symbolic links.
    pub(super) fn open(path: PathBuf) -> Result<Self, PreflightError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(dir) => dir,
            // A link is none either: with O_PATH the kernel says so.
            Err(rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => {
                return Err(PreflightError::NotADirectory(path));
            }
            Err(errno) => return Err(io_at(&path)(errno.into())),
        };
        let place = Self { path, dir };
        place.check_path()?;
        Ok(place)
    }

    /// Where it was found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path to this very directory, whatever became of its name.
    pub fn through(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.dir.as_raw_fd()))
    }

    /// Where it is now.
    ///
    /// # Errors
    /// When `/proc` is not there.
    pub fn now_at(&self) -> io::Result<PathBuf> {
        std::fs::read_link(self.through())
    }

    /// Whether it is still where it was found.
    pub(super) fn check_path(&self) -> Result<(), PreflightError> {
        match self.now_at().map_err(io_at(&self.path))? {
            there if there == self.path => Ok(()),
            _ => Err(PreflightError::Moved(self.path.clone())),
        }
    }

    /// Whether it is empty.
    pub(super) fn is_empty(&self) -> Result<bool, PreflightError> {
        Ok(std::fs::read_dir(self.through()).map_err(io_at(&self.path))?.next().is_none())
    }

    /// Looks for the last time, and keeps other mounts of ours away until the claim is dropped: of two that come at
    /// once, the second finds the first.
    ///
    /// # Errors
    /// When the directory is not where it was any more, is mounted on, or is no longer empty.
    pub fn claim(&self) -> Result<Claim, PreflightError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(&self.dir, c".", flags, Mode::empty())
            .map_err(|errno| io_at(&self.path)(errno.into()))?;
        let deadline = Instant::now() + CLAIM_PATIENCE;
        loop {
            match rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(CLAIM_CHECK),
                // No mount of ours takes so long: anybody who may read the directory can hold a lock on it, and is not to
                // keep others from mounting. Nor is a filesystem without locks.
                Err(error) => {
                    tracing::warn!(%error, "mounting without a lock on the mount point");
                    break;
                }
            }
        }
        self.check_path()?;
        match mountinfo::top(&self.path).map_err(io_at(&self.path))? {
            Some(mount) if mount.is_ours() => return Err(PreflightError::AlreadyMounted(self.path.clone())),
            Some(mount) => {
                return Err(PreflightError::ForeignMount { path: self.path.clone(), fs_type: mount.fs_type });
            }
            None if self.is_empty()? => {}
            None => return Err(PreflightError::NotEmpty(self.path.clone())),
        }
        Ok(Claim(dir))
    }
}

impl AsFd for Place {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_was_replaced_or_moved_is_not_mounted_on() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        let (mnt, other) = (root.join("mnt"), root.join("other"));
        std::fs::create_dir(&mnt).unwrap();
        std::fs::create_dir(&other).unwrap();
        let place = Place::open(mnt.clone()).unwrap();
        drop(place.claim().unwrap());
        std::fs::rename(&mnt, root.join("moved")).unwrap();
        std::os::unix::fs::symlink(&other, &mnt).unwrap();
        assert!(matches!(place.claim(), Err(PreflightError::Moved(path)) if path == mnt));
        assert!(matches!(Place::open(mnt.clone()), Err(PreflightError::NotADirectory(_))));
        assert!(matches!(Place::open(mnt.join("x")), Err(PreflightError::Io { .. })));
        std::fs::create_dir(other.join("x")).unwrap();
        // By a link above it.
        assert!(matches!(Place::open(mnt.join("x")), Err(PreflightError::Moved(_))));
        std::fs::remove_file(&mnt).unwrap();
        std::fs::rename(root.join("moved"), &mnt).unwrap();
        std::fs::write(mnt.join("file"), "").unwrap();
        assert!(matches!(place.claim(), Err(PreflightError::NotEmpty(_))));
    }

    #[test]
    fn one_at_a_time_looks_for_the_last_time() {
        let temp = tempfile::tempdir().unwrap();
        let place = Place::open(temp.path().canonicalize().unwrap()).unwrap();
        let first = place.claim().unwrap();
        let (told, ended) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let second = place.claim().unwrap();
                told.send(()).unwrap();
                drop(second);
            });
            assert!(ended.recv_timeout(Duration::from_millis(50)).is_err());
            drop(first);
            ended.recv_timeout(Duration::from_secs(5)).unwrap();
        });
    }

    #[test]
    fn whoever_locks_the_directory_keeps_nobody_from_mounting() {
        let temp = tempfile::tempdir().unwrap();
        let place = Place::open(temp.path().canonicalize().unwrap()).unwrap();
        let neighbour = std::fs::File::open(temp.path()).unwrap();
        rustix::fs::flock(&neighbour, FlockOperation::LockShared).unwrap();
        let begun = Instant::now();
        drop(place.claim().unwrap());
        assert!(begun.elapsed() < CLAIM_PATIENCE * 2);
    }
}
