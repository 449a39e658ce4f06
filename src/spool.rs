//! Bytes on the local disk: the **spool** holds what the server does not have yet and is never thrown away; the
//! **cache** holds complete copies of what it has, named by content, and is bounded by eviction.
//!
//! Confirmed content moves from the one to the other by a rename, so what was just written stays readable without a
//! download.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;

use crate::hash::ContentHash;
use crate::namespace::SpoolId;

/// Directories that files are spread over, so that none grows past some thousands.
const SHARDS: u64 = 256;
/// Where the cache keeps what it is still fetching.
const FETCHING: &str = "fetching";

/// Files whose bytes the server lacks.
pub struct Spool {
    dir: PathBuf,
    next: AtomicU64,
    used: AtomicU64,
    limit: Option<u64>,
}

impl Spool {
    /// Opens or makes the spool in `dir`; `limit` in bytes.
    ///
    /// # Errors
    /// When the directory cannot be made or read.
    pub fn open(dir: &Path, limit: Option<u64>) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let spool = Self { dir: dir.to_owned(), next: AtomicU64::new(1), used: AtomicU64::new(0), limit };
        let highest = spool.ids()?.into_iter().map(|id| id.0).max().unwrap_or(0);
        spool.next.store(highest + 1, Ordering::Relaxed);
        Ok(spool)
    }

    fn ids(&self) -> io::Result<Vec<SpoolId>> {
        let mut ids = Vec::new();
        for shard in fs::read_dir(&self.dir)? {
            for entry in fs::read_dir(shard?.path())? {
                if let Some(id) = entry?.file_name().to_str().and_then(|name| u64::from_str_radix(name, 16).ok()) {
                    ids.push(SpoolId(id));
                }
            }
        }
        Ok(ids)
    }

    fn path(&self, id: SpoolId) -> PathBuf {
        self.dir.join(format!("{:02x}/{:x}", id.0 % SHARDS, id.0))
    }

    /// Makes an empty file.
    ///
    /// # Errors
    /// The filesystem's.
    pub fn create(&self) -> io::Result<(SpoolId, File)> {
        let id = SpoolId(self.next.fetch_add(1, Ordering::Relaxed));
        let path = self.path(id);
        let mut open = OpenOptions::new();
        open.read(true).write(true).create_new(true).mode(0o600);
        let file = with_parent(&path, || open.open(&path))?;
        Ok((id, file))
    }

    /// Opens a file for reading and writing.
    ///
    /// # Errors
    /// The filesystem's.
    pub fn file(&self, id: SpoolId) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(self.path(id))
    }

    /// Makes the file's name survive a power loss; its bytes are the caller's to flush.
    ///
    /// # Errors
    /// The filesystem's.
    pub fn sync_name(&self, id: SpoolId) -> io::Result<()> {
        File::open(self.dir.join(format!("{:02x}", id.0 % SHARDS)))?.sync_all()
    }

    /// Removes a file. One that is gone already is no error.
    pub fn remove(&self, id: SpoolId) {
        if let Err(error) = fs::remove_file(self.path(id))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, spool = id.0, "a spool file could not be removed");
        }
    }

    /// Removes every file that is not in `keep`: what a crash left behind without a name.
    ///
    /// # Errors
    /// When the spool cannot be listed.
    pub fn sweep(&self, keep: &HashSet<SpoolId>) -> io::Result<()> {
        for id in self.ids()? {
            if !keep.contains(&id) {
                self.remove(id);
            }
        }
        Ok(())
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

    /// Counts `bytes` as free again.
    pub fn release(&self, bytes: u64) {
        let _ = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| Some(used.saturating_sub(bytes)));
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

/// Complete copies of content that the server has. Reads never change them.
pub struct Cache {
    dir: PathBuf,
    limit: u64,
    /// Bytes in all, and the length of each, least recently used first out.
    known: Mutex<(u64, LruCache<ContentHash, u64>)>,
    temporary: AtomicU64,
}

impl Cache {
    /// Opens or makes the cache in `dir`, bounded to about `limit` bytes.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn open(dir: &Path, limit: u64) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let fetching = dir.join(FETCHING);
        if fetching.exists() {
            fs::remove_dir_all(&fetching)?;
        }
        fs::create_dir(&fetching)?;
        let known = Mutex::new((0, LruCache::unbounded()));
        Ok(Self { dir: dir.to_owned(), limit, known, temporary: AtomicU64::new(0) })
    }

    /// Learns what earlier mounts left, oldest access first. Until it has run, those files serve reads but are not
    /// evicted; it takes time in their number, so it belongs in the background.
    ///
    /// # Errors
    /// When the cache cannot be listed.
    pub fn learn(&self) -> io::Result<()> {
        let mut found = Vec::new();
        for shard in fs::read_dir(&self.dir)? {
            let shard = shard?;
            if shard.file_name() == FETCHING {
                continue;
            }
            for entry in fs::read_dir(shard.path())? {
                let entry = entry?;
                let (Ok(metadata), Some(hash)) =
                    (entry.metadata(), entry.file_name().to_str().and_then(|name| name.parse().ok()))
                else {
                    continue;
                };
                found.push((metadata.accessed().ok(), hash, metadata.len()));
            }
        }
        found.sort_by_key(|(accessed, ..)| std::cmp::Reverse(*accessed));
        let mut known = self.lock();
        for (_, hash, size) in found {
            if !known.1.contains(&hash) {
                known.1.put(hash, size);
                known.1.demote(&hash);
                known.0 += size;
            }
        }
        drop(known);
        self.evict();
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, (u64, LruCache<ContentHash, u64>)> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, hash: ContentHash) -> PathBuf {
        let shard = match hash {
            ContentHash::Xxh3(bytes) => bytes[15],
            ContentHash::Sha256(bytes) => bytes[31],
        };
        self.dir.join(format!("{shard:02x}/{hash}"))
    }

    /// The content, if it is here.
    pub fn file(&self, hash: ContentHash) -> Option<File> {
        let file = File::open(self.path(hash)).ok()?;
        self.lock().1.promote(&hash);
        Some(file)
    }

    /// A new file to fetch into; gone when dropped unless it is [kept](Self::keep).
    ///
    /// # Errors
    /// The filesystem's.
    pub fn begin(&self) -> io::Result<Fetching> {
        let number = self.temporary.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(format!("{FETCHING}/{number}"));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Fetching { path: Some(path), file: Arc::new(file) })
    }

    /// Takes in a fetched file whose hash has been checked.
    ///
    /// # Errors
    /// The filesystem's.
    pub fn keep(&self, mut fetched: Fetching, hash: ContentHash) -> io::Result<()> {
        let size = fetched.file.metadata()?.len();
        if let Some(path) = fetched.path.take() {
            let to = self.path(hash);
            with_parent(&to, || fs::rename(&path, &to))?;
        }
        self.note(hash, size);
        Ok(())
    }

    /// Takes over a spool file whose content the server confirmed.
    ///
    /// # Errors
    /// The filesystem's; the spool file is still there then.
    pub fn adopt(&self, spool: &Spool, id: SpoolId, hash: ContentHash) -> io::Result<()> {
        let from = spool.path(id);
        let size = fs::metadata(&from)?.len();
        let to = self.path(hash);
        with_parent(&to, || fs::rename(&from, &to))?;
        self.note(hash, size);
        Ok(())
    }

    fn note(&self, hash: ContentHash, size: u64) {
        let mut known = self.lock();
        let before = known.1.put(hash, size).unwrap_or(0);
        known.0 = (known.0 + size).saturating_sub(before);
        drop(known);
        self.evict();
    }

    /// Removes the least recently used files over the limit; never the newest, which its reader is about to open.
    fn evict(&self) {
        loop {
            let mut known = self.lock();
            if known.0 <= self.limit || known.1.len() < 2 {
                return;
            }
            let Some((hash, size)) = known.1.pop_lru() else { return };
            known.0 = known.0.saturating_sub(size);
            drop(known);
            if let Err(error) = fs::remove_file(self.path(hash))
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(%error, %hash, "a cached file could not be removed");
            }
        }
    }
}

/// A file being fetched.
pub struct Fetching {
    path: Option<PathBuf>,
    /// Where the bytes go.
    pub file: Arc<File>,
}

impl Drop for Fetching {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

/// Makes the directory of `path` when `work` finds that it is not there.
fn with_parent<T>(path: &Path, work: impl Fn() -> io::Result<T>) -> io::Result<T> {
    match (work(), path.parent()) {
        (Err(error), Some(parent)) if error.kind() == io::ErrorKind::NotFound && !parent.exists() => {
            fs::create_dir_all(parent)?;
            work()
        }
        (done, _) => done,
    }
}

/// Copies a whole file: shares its blocks where the filesystem can, else copies in the kernel.
///
/// # Errors
/// The filesystem's.
pub fn copy_content(from: &File, to: &File) -> io::Result<u64> {
    let size = from.metadata()?.len();
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(size);
    }
    let (mut at, mut out) = (0, 0);
    while at < size {
        let length = (size - at).min(1 << 30) as usize;
        match rustix::fs::copy_file_range(from, Some(&mut at), to, Some(&mut out), length) {
            Ok(0) => break,
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => {}
            Err(
                rustix::io::Errno::XDEV
                | rustix::io::Errno::OPNOTSUPP
                | rustix::io::Errno::NOSYS
                | rustix::io::Errno::INVAL,
            ) => {
                let mut buffer = vec![0; 1 << 20];
                loop {
                    let read = from.read_at(&mut buffer, at)?;
                    if read == 0 {
                        return Ok(at);
                    }
                    to.write_all_at(&buffer[..read], at)?;
                    at += read as u64;
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::HashKind;
    use std::io::Read;

    fn content(file: &mut File) -> String {
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        text
    }

    fn fetched(cache: &Cache, text: &str) -> ContentHash {
        let hash = ContentHash::of(HashKind::Xxh3, text.as_bytes());
        let fetching = cache.begin().unwrap();
        fetching.file.write_all_at(text.as_bytes(), 0).unwrap();
        cache.keep(fetching, hash).unwrap();
        hash
    }

    #[test]
    fn numbers_go_on_after_a_restart_and_orphans_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path(), None).unwrap();
        let (kept, _) = spool.create().unwrap();
        let (orphan, _) = spool.create().unwrap();
        let spool = Spool::open(dir.path(), None).unwrap();
        let (next, _) = spool.create().unwrap();
        assert!(next > orphan);
        spool.sweep(&HashSet::from([kept])).unwrap();
        assert!(spool.file(kept).is_ok());
        assert!(spool.file(orphan).is_err());
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

    #[test]
    fn the_least_recently_used_leaves_first_and_the_newest_never() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), 10).unwrap();
        let (a, b) = (fetched(&cache, "aaaa"), fetched(&cache, "bbbb"));
        assert_eq!(content(&mut cache.file(a).unwrap()), "aaaa");
        let c = fetched(&cache, "cccc");
        assert!(cache.file(b).is_none());
        assert!(cache.file(a).is_some() && cache.file(c).is_some());
        let big = fetched(&cache, &"x".repeat(50));
        assert!(cache.file(big).is_some());
    }

    #[test]
    fn confirmed_bytes_move_from_the_spool_to_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(&dir.path().join("spool"), None).unwrap();
        let cache = Cache::open(&dir.path().join("cache"), 100).unwrap();
        let (id, file) = spool.create().unwrap();
        file.write_all_at(b"hello", 0).unwrap();
        let hash = ContentHash::of(HashKind::Xxh3, b"hello");
        cache.adopt(&spool, id, hash).unwrap();
        assert!(spool.file(id).is_err());
        assert_eq!(content(&mut cache.file(hash).unwrap()), "hello");
        let again = Cache::open(&dir.path().join("cache"), 2).unwrap();
        again.learn().unwrap();
        assert!(again.file(hash).is_some(), "the newest stays");
    }

    #[test]
    fn a_copy_has_the_bytes() {
        let (from, mut to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.write_all_at(b"some bytes", 0).unwrap();
        assert_eq!(copy_content(&from, &to).unwrap(), 10);
        assert_eq!(content(&mut to), "some bytes");
    }
}
