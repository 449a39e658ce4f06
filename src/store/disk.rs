//! What the record and the spool do to the local filesystem, each act in one place, so that a test can stand between
//! them and the disk: end the world at any act, or take back what was never flushed.
//!
//! Without a witness an act costs one comparison.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD};

use crate::sync;

/// One change of the local filesystem, or one flush.
#[derive(Debug, Clone, Copy)]
pub enum Act<'a> {
    /// A directory is made.
    MakeDir(&'a Path),
    /// An empty file is made.
    Create(&'a Path),
    /// A name is changed; what stood at the second goes.
    Rename(&'a Path, &'a Path),
    /// A file that has the first name is given the second as well.
    Link(&'a Path, &'a Path),
    /// A file is removed.
    Remove(&'a Path),
    /// An empty directory is removed; nothing happens to one that is not empty.
    RemoveDir(&'a Path),
    /// Bytes are written, by whatever call.
    Write(&'a File),
    /// A file is given another length.
    Resize(&'a File),
    /// A file's bytes are flushed to stable storage.
    Flush(&'a File),
    /// A directory's entries are flushed to stable storage.
    FlushDir(&'a Path),
}

/// Stands between an act and the disk.
pub trait Witness: Send + Sync {
    /// Calls `work` once, or returns an error in its place. Acts do not nest.
    ///
    /// # Errors
    /// `work`'s, or one that the witness makes up.
    fn around(&self, act: &Act<'_>, work: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()>;
}

/// The way to the local filesystem.
#[derive(Clone)]
pub struct Disk {
    witness: Option<Arc<dyn Witness>>,
    boot: Arc<str>,
}

impl Default for Disk {
    fn default() -> Self {
        // Where the kernel does not tell, any file may be from before a power loss, and is checked.
        let id = fs::read_to_string("/proc/sys/kernel/random/boot_id");
        let id = id.unwrap_or_else(|_| format!("unknown-{:016x}", fastrand::u64(..)));
        Self { witness: None, boot: id.trim().into() }
    }
}

impl Disk {
    /// With somebody who stands in between.
    pub fn witnessed(witness: Arc<dyn Witness>) -> Self {
        Self { witness: Some(witness), ..Self::default() }
    }

    /// As it is after the machine was started for the `nth` time since.
    pub fn restarted(nth: u32) -> Self {
        Self { witness: None, boot: format!("restart-{nth}").into() }
    }

    /// Names the time since the machine was started: what was written since then is as it was written, flushed or not.
    pub fn boot(&self) -> &str {
        &self.boot
    }

    /// Does `work`, which is `act`.
    ///
    /// # Errors
    /// `work`'s.
    pub fn act<T>(&self, act: Act<'_>, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        sync::may_wait(&act);
        let Some(witness) = &self.witness else { return work() };
        let (mut work, mut out) = (Some(work), None);
        witness.around(&act, &mut || {
            out = work.take().map(|work| work()).transpose()?;
            Ok(())
        })?;
        out.ok_or_else(|| io::Error::other("the witness did not let the act happen"))
    }

    /// Makes a directory with all above it that are missing, for the owner alone, and flushes each into the one above.
    ///
    /// # Errors
    /// The filesystem's.
    pub fn make_dirs(&self, dir: &Path) -> io::Result<()> {
        if dir.is_dir() {
            return Ok(());
        }
        let above = dir.parent().filter(|above| !above.as_os_str().is_empty());
        if let Some(above) = above {
            self.make_dirs(above)?;
        }
        match self.act(Act::MakeDir(dir), || fs::DirBuilder::new().mode(0o700).create(dir)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        above.map_or(Ok(()), |above| self.flush_dir(above))
    }

    /// Renames.
    ///
    /// # Errors
    /// The filesystem's.
    pub fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.act(Act::Rename(from, to), || fs::rename(from, to))
    }

    /// Gives a file a second name, which nothing may have.
    ///
    /// # Errors
    /// The filesystem's.
    pub fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.act(Act::Link(from, to), || fs::hard_link(from, to))
    }

    /// The same for a file that is open, of which `from` is the descriptor's place in `/proc`.
    ///
    /// # Errors
    /// The filesystem's.
    pub fn link_open(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.act(Act::Link(from, to), || Ok(rustix::fs::linkat(CWD, from, CWD, to, AtFlags::SYMLINK_FOLLOW)?))
    }

    /// Removes a file.
    ///
    /// # Errors
    /// The filesystem's.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        self.act(Act::Remove(path), || fs::remove_file(path))
    }

    /// Removes a directory, if nothing is in it.
    ///
    /// # Errors
    /// The filesystem's; [`io::ErrorKind::DirectoryNotEmpty`] among them.
    pub fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        self.act(Act::RemoveDir(dir), || fs::remove_dir(dir))
    }

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// The filesystem's.
    pub fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.act(Act::Write(file), || file.write_all_at(bytes, offset))
    }

    /// Gives a file another length.
    ///
    /// # Errors
    /// The filesystem's.
    pub fn resize(&self, file: &File, length: u64) -> io::Result<()> {
        self.act(Act::Resize(file), || file.set_len(length))
    }

    /// Flushes a file's bytes and length.
    ///
    /// # Errors
    /// The filesystem's.
    pub fn flush(&self, file: &File) -> io::Result<()> {
        self.act(Act::Flush(file), || file.sync_data())
    }

    /// Flushes a directory's entries.
    ///
    /// # Errors
    /// The filesystem's.
    pub fn flush_dir(&self, dir: &Path) -> io::Result<()> {
        self.act(Act::FlushDir(dir), || File::open(dir)?.sync_all())
    }
}

/// Whether a disk or a quota is full.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Notes(Mutex<Vec<String>>);

    impl Witness for Notes {
        fn around(&self, act: &Act<'_>, work: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
            let mut notes = self.0.lock().unwrap();
            if notes.len() == 4 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let named = match act {
                Act::MakeDir(path) | Act::FlushDir(path) => path.file_name().unwrap().to_str().unwrap(),
                _ => "",
            };
            notes.push(format!("{} {named}", format!("{act:?}").split('(').next().unwrap()));
            work()
        }
    }

    #[test]
    fn a_new_directory_is_flushed_into_the_one_above_and_a_witness_can_refuse() {
        let temp = tempfile::tempdir().unwrap();
        let top = temp.path().file_name().unwrap().to_str().unwrap();
        let notes = Arc::new(Notes::default());
        let disk = Disk::witnessed(notes.clone());
        disk.make_dirs(&temp.path().join("a/b")).unwrap();
        let expected = ["MakeDir a".to_owned(), format!("FlushDir {top}"), "MakeDir b".into(), "FlushDir a".into()];
        assert_eq!(*notes.0.lock().unwrap(), expected);
        let refused = disk.remove(&temp.path().join("a"));
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
