//! The **spool**: bytes that the server does not have yet. It is never thrown away.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::disk::{Act, Disk};
use super::holes::room_of;
use super::shards::{SHARDS, make_dir, shard_dir, with_parent};
use crate::count;
use crate::id::SpoolId;

/// Files whose bytes the server lacks.
pub struct Spool {
    disk: Disk,
    dir: PathBuf,
    next: AtomicU64,
    used: AtomicU64,
    limit: Option<u64>,
    /// Which directories have names that were not flushed, by number, and last the one that they lie in; locked while
    /// one is flushed, so that whoever finds it flushed is right, and many share one flush.
    unflushed: Vec<Mutex<bool>>,
    /// Files of which a flush failed. What of them is on stable storage nobody knows: the kernel tells of pages that it
    /// could not write once, and then takes them for written (`fsync(2)`, errors of `EIO` and `ENOSPC`).
    unsure: Mutex<HashSet<SpoolId>>,
}

impl Spool {
    /// Opens or makes the spool in `dir`; `limit` in bytes.
    ///
    /// # Errors
    /// When the directory cannot be made or read.
    pub fn open(dir: &Path, limit: Option<u64>) -> io::Result<Self> {
        Self::open_on(&Disk::default(), dir, limit)
    }

    /// [`open`](Self::open) by way of `disk`.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_on(disk: &Disk, dir: &Path, limit: Option<u64>) -> io::Result<Self> {
        disk.make_dirs(dir)?;
        // A killed daemon may have left names that were never flushed.
        let made: Vec<bool> = (0..SHARDS).map(|shard| shard_dir(dir, shard).is_dir()).collect();
        let own = made.iter().any(|made| *made);
        let unflushed = made.into_iter().chain([own]).map(Mutex::new).collect();
        let (next, used) = (AtomicU64::new(1), AtomicU64::new(0));
        let spool =
            Self { disk: disk.clone(), dir: dir.to_owned(), next, used, limit, unflushed, unsure: Mutex::default() };
        let highest = spool.ids()?.into_iter().map(|id| id.0).max().unwrap_or(0);
        spool.next.store(highest + 1, Ordering::Relaxed);
        Ok(spool)
    }

    fn ids(&self) -> io::Result<Vec<SpoolId>> {
        ids_in(&self.dir)
    }

    fn path(&self, id: SpoolId) -> PathBuf {
        path_in(&self.dir, id)
    }

    /// Opens a file of the spool in `dir` for reading.
    ///
    /// # Errors
    /// The filesystem's.
    pub fn file_in(dir: &Path, id: SpoolId) -> io::Result<File> {
        File::open(path_in(dir, id))
    }

    /// Length of a file of the spool in `dir`, in bytes; 0 when it is not there.
    pub fn length(dir: &Path, id: SpoolId) -> u64 {
        fs::metadata(path_in(dir, id)).map_or(0, |file| file.len())
    }

    /// What a file takes of the disk, in bytes; `None` when it is not there.
    pub fn room(&self, id: SpoolId) -> Option<u64> {
        fs::metadata(self.path(id)).ok().map(|file| room_of(&file))
    }

    /// Makes an empty file.
    ///
    /// # Errors
    /// The filesystem's.
    pub fn create(&self) -> io::Result<(SpoolId, File)> {
        self.create_for(true)
    }

    /// Makes an empty file that somebody else is going to write to.
    ///
    /// # Errors
    /// The filesystem's.
    pub fn create_to_read(&self) -> io::Result<(SpoolId, File)> {
        self.create_for(false)
    }

    fn create_for(&self, writing: bool) -> io::Result<(SpoolId, File)> {
        let id = SpoolId(self.next.fetch_add(1, Ordering::Relaxed));
        let path = self.path(id);
        let mut open = OpenOptions::new();
        // The standard library makes files for writing alone.
        open.read(true).write(writing).custom_flags(libc::O_CREAT | libc::O_EXCL).mode(0o600);
        let make = || self.disk.act(Act::Create(&path), || open.open(&path));
        let file = with_parent(&path, |parent| self.make_shard(parent), make)?;
        *self.unflushed(id.0 % SHARDS) = true;
        Ok((id, file))
    }

    /// Takes over the file at `from`, under a number that no other has. Its name is not flushed.
    pub(super) fn take_over(&self, from: &Path) -> io::Result<SpoolId> {
        let id = SpoolId(self.next.fetch_add(1, Ordering::Relaxed));
        let path = self.path(id);
        with_parent(&path, |parent| self.make_shard(parent), || self.disk.rename(from, &path))?;
        *self.unflushed(id.0 % SHARDS) = true;
        Ok(id)
    }

    /// Gives the file at `from` a number, which no other has, beside the name that it has.
    ///
    /// # Errors
    /// The filesystem's.
    pub fn link_in(&self, from: &Path) -> io::Result<SpoolId> {
        let id = SpoolId(self.next.fetch_add(1, Ordering::Relaxed));
        let path = self.path(id);
        with_parent(&path, |parent| self.make_shard(parent), || self.disk.link(from, &path))?;
        *self.unflushed(id.0 % SHARDS) = true;
        Ok(id)
    }

    /// Where a file is.
    pub fn path_of(&self, id: SpoolId) -> PathBuf {
        self.path(id)
    }

    /// Flushed with the first file that is: one flush for each new directory would hold the first files up.
    fn make_shard(&self, dir: &Path) -> io::Result<()> {
        let mut unflushed = self.unflushed(SHARDS);
        *unflushed = true;
        make_dir(&self.disk, dir)
    }

    /// Never gives `id` to a new file. To be told of every file on record: one that a power loss took must not come
    /// back with other bytes.
    pub fn pass_over(&self, id: SpoolId) {
        self.next.fetch_max(id.0 + 1, Ordering::Relaxed);
    }

    /// Opens a file for reading and writing; on a disk that has become read-only, for reading.
    ///
    /// # Errors
    /// The filesystem's.
    pub fn file(&self, id: SpoolId) -> io::Result<File> {
        let path = self.path(id);
        match OpenOptions::new().read(true).write(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => File::open(path),
            opened => opened,
        }
    }

    /// Opens a file for reading alone.
    ///
    /// # Errors
    /// The filesystem's.
    pub fn file_to_read(&self, id: SpoolId) -> io::Result<File> {
        Self::file_in(&self.dir, id)
    }

    /// Makes the file's name survive a power loss; its bytes are the caller's to flush.
    ///
    /// # Errors
    /// The filesystem's.
    pub fn sync_name(&self, id: SpoolId) -> io::Result<()> {
        self.flush_shard(id.0 % SHARDS)?;
        self.flush_shard(SHARDS)
    }

    /// Makes the names of all files survive a power loss.
    ///
    /// # Errors
    /// The filesystem's.
    pub fn sync_names(&self) -> io::Result<()> {
        (0..=SHARDS).try_for_each(|shard| self.flush_shard(shard))
    }

    fn flush_shard(&self, shard: u64) -> io::Result<()> {
        let mut unflushed = self.unflushed(shard);
        if *unflushed {
            match shard {
                SHARDS => self.disk.flush_dir(&self.dir)?,
                shard => self.disk.flush_dir(&shard_dir(&self.dir, shard))?,
            }
            *unflushed = false;
        }
        Ok(())
    }

    fn unflushed(&self, shard: u64) -> MutexGuard<'_, bool> {
        self.unflushed[shard as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a file's bytes and its name survive a power loss. Once that failed it fails until the file is
    /// [emptied](Self::emptied) or removed.
    ///
    /// # Errors
    /// The filesystem's.
    pub fn sync(&self, id: SpoolId, file: &File) -> io::Result<()> {
        if self.unsure().contains(&id) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.disk.flush(file).inspect_err(|_| {
            self.unsure().insert(id);
        })?;
        self.sync_name(id)
    }

    /// A file has none of its former bytes any more.
    pub fn emptied(&self, id: SpoolId) {
        self.unsure().remove(&id);
    }

    fn unsure(&self) -> MutexGuard<'_, HashSet<SpoolId>> {
        self.unsure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The way to the disk, for what is done to an open file.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Removes a file. One that is gone already is no error.
    pub fn remove(&self, id: SpoolId) {
        self.emptied(id);
        if let Err(error) = self.disk.remove(&self.path(id))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, spool = id.0, "a spool file could not be removed");
        }
    }

    /// Every file that is not in `keep`: what a crash left behind without a name.
    ///
    /// # Errors
    /// When the spool cannot be listed.
    pub fn strays(&self, keep: &HashSet<SpoolId>) -> io::Result<Vec<SpoolId>> {
        Ok(self.ids()?.into_iter().filter(|id| !keep.contains(id)).collect())
    }

    /// Counts `bytes` more as used.
    ///
    /// # Errors
    /// [`io::ErrorKind::StorageFull`] when that passes the limit; nothing is counted then.
    pub fn reserve(&self, bytes: u64) -> io::Result<()> {
        let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            let after = used.saturating_add(bytes);
            (bytes == 0 || self.limit.is_none_or(|limit| after <= limit)).then_some(after)
        });
        taken.map(|_| ()).map_err(|_| io::ErrorKind::StorageFull.into())
    }

    /// Counts `bytes` as used whatever the limit says: they are there already.
    pub fn charge(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts `after` where `before` was counted, whatever the limit says: it is there already.
    pub fn recount(&self, before: u64, after: u64) {
        if before != after {
            count::change_shared(&self.used, before, after, "backing.used");
        }
    }

    /// Counts `bytes` as free again.
    pub fn release(&self, bytes: u64) {
        count::take_shared(&self.used, bytes, "backing.used");
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// The limit in bytes, if there is one.
    pub fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// The directory, to ask the filesystem about.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// The numbers of the files of the spool in `dir`.
///
/// # Errors
/// When it cannot be listed.
pub fn ids_in(dir: &Path) -> io::Result<Vec<SpoolId>> {
    /// No spool file has such a number, nor does any count on from it.
    const NUMBERS_END: u64 = 1 << 62;
    let mut ids = Vec::new();
    for shard in fs::read_dir(dir)? {
        for entry in fs::read_dir(shard?.path())? {
            let name = entry?.file_name();
            let id = name.to_str().and_then(|name| u64::from_str_radix(name, 16).ok()).map(SpoolId);
            // Not what somebody else put there under another spelling of a number.
            ids.extend(id.filter(|id| id.0 < NUMBERS_END && path_in(dir, *id).file_name() == Some(&name)));
        }
    }
    Ok(ids)
}

/// Where a file of the spool in `dir` is.
pub fn path_in(dir: &Path, id: SpoolId) -> PathBuf {
    shard_dir(dir, id.0 % SHARDS).join(format!("{:x}", id.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails flushes, as a kernel does that lost pages: once.
    #[derive(Default)]
    struct FailsOnce(std::sync::atomic::AtomicBool);

    impl crate::store::disk::Witness for FailsOnce {
        fn around(&self, act: &Act<'_>, work: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
            if matches!(act, Act::Flush(_)) && self.0.swap(false, Ordering::SeqCst) {
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            work()
        }
    }

    #[test]
    fn what_a_flush_could_not_write_is_never_taken_for_flushed() {
        let (dir, failing) = (tempfile::tempdir().unwrap(), std::sync::Arc::new(FailsOnce::default()));
        let spool = Spool::open_on(&Disk::witnessed(failing.clone()), dir.path(), None).unwrap();
        let (id, file) = spool.create().unwrap();
        let (other, whole) = spool.create().unwrap();
        failing.0.store(true, Ordering::SeqCst);
        assert_eq!(spool.sync(id, &file).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        assert_eq!(spool.sync(id, &file).unwrap_err().raw_os_error(), Some(libc::EIO));
        spool.sync(other, &whole).unwrap();
        spool.emptied(id);
        spool.sync(id, &file).unwrap();
    }

    #[test]
    fn numbers_go_on_after_a_restart_and_strays_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path(), None).unwrap();
        let (kept, _) = spool.create().unwrap();
        let (orphan, _) = spool.create().unwrap();
        let spool = Spool::open(dir.path(), None).unwrap();
        let (next, _) = spool.create().unwrap();
        assert!(next > orphan);
        let mut strays = spool.strays(&HashSet::from([kept])).unwrap();
        strays.sort();
        assert_eq!(strays, [orphan, next]);
        // Somebody else's, by a name that is a number all the same.
        let odd = SpoolId(u64::MAX);
        fs::create_dir_all(spool.path_of(odd).parent().unwrap()).unwrap();
        fs::write(spool.path_of(odd), "x").unwrap();
        let spool = Spool::open(dir.path(), None).unwrap();
        assert_eq!(spool.create().unwrap().0, SpoolId(next.0 + 1));
        assert!(!spool.strays(&HashSet::new()).unwrap().contains(&odd) && spool.path_of(odd).exists());
    }

    #[test]
    fn the_number_of_a_lost_file_is_not_given_to_another() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path(), None).unwrap();
        spool.pass_over(SpoolId(7));
        assert_eq!(spool.create().unwrap().0, SpoolId(8));
        spool.pass_over(SpoolId(3));
        assert_eq!(spool.create().unwrap().0, SpoolId(9));
    }

    #[test]
    fn the_limit_is_met_before_the_write() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path(), Some(100)).unwrap();
        spool.reserve(90).unwrap();
        assert_eq!(spool.reserve(11).unwrap_err().kind(), io::ErrorKind::StorageFull);
        spool.release(50);
        spool.reserve(11).unwrap();
    }
}
