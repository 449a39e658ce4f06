//! Bytes on the local disk: the **spool** holds what the server does not have yet and is never thrown away; the
//! **cache** holds complete copies of what it has, named by content, and is bounded by eviction.
//!
//! Confirmed content moves from the one to the other by a rename, so what was just written stays readable without a
//! download. Nothing in the cache is flushed: what is from before the machine was last started may have lost its bytes,
//! and is checked against its hash before it is used.
//!
//! A file of the cache may be [lent](Cache::lend) to one inode, whose programs then use it in place of requests. It keeps
//! its name meanwhile, so a crash loses nothing, but nobody else is given it: a program may come that writes to it, and
//! then it [departs](Cache::depart) to the spool.

use std::collections::{HashMap, HashSet, hash_map};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;
use rustix::fs::StatVfs;

use crate::count;
use crate::hash::ContentHash;
use crate::id::{Ino, SpoolId};
use crate::store::disk::{Act, Disk, is_full};
use crate::store::listings::Listings;
use crate::store::parts::Parts;

mod aside;
pub mod holes;
mod spares;

use aside::Aside;
use holes::{counted_of, may_have, next_data};
pub use holes::{room, room_of};

/// Directories that files are spread over, so that none grows past some thousands.
const SHARDS: u64 = 256;
/// Where the cache keeps what it is still fetching.
const FETCHING: &str = "fetching";
/// Room on the disk that the cache does not take, however much it may hold: this much, or this share of a small disk;
/// and this many files.
const LEAST_FREE_BYTES: u64 = 256 << 20;
const LEAST_FREE_SHARE: u64 = 16;
const LEAST_FREE_FILES: u64 = 128;
/// Starts the name of the directory for what was written since one start of the machine.
const BOOT: &str = "boot-";

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
    /// What counts as used and may go.
    spares: spares::Spares,
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
        let spool = Self {
            disk: disk.clone(),
            dir: dir.to_owned(),
            next,
            used,
            limit,
            unflushed,
            unsure: Mutex::default(),
            spares: spares::Spares::default(),
        };
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
    fn take_over(&self, from: &Path) -> io::Result<SpoolId> {
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

    /// Makes these files and their names survive a power loss, with all else on their filesystem.
    ///
    /// # Errors
    /// As [`sync`](Self::sync).
    pub fn sync_all(&self, files: impl IntoIterator<Item = SpoolId>) -> io::Result<()> {
        {
            let unsure = self.unsure();
            if files.into_iter().any(|id| unsure.contains(&id)) {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
        }
        Ok(rustix::fs::syncfs(File::open(&self.dir)?)?)
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
        match self.reserve_free(bytes) {
            Err(_) if self.take_spares(bytes) => self.reserve_free(bytes),
            reserved => reserved,
        }
    }

    /// Has spare bytes make way for `bytes`, if all of them are enough.
    fn take_spares(&self, bytes: u64) -> bool {
        let Some(limit) = self.limit else { return false };
        let lacking = self.used().saturating_add(bytes).saturating_sub(limit);
        let freed = self.spares.take(lacking);
        self.release(freed);
        freed > 0
    }

    /// Whether anything may be put into it.
    pub fn is_full(&self) -> bool {
        let full = || self.limit.is_some_and(|limit| self.used() >= limit);
        full() && (!self.take_spares(1) || full())
    }

    /// Counts `bytes` that are there as used, for something that may go where room is short; `id` is the caller's.
    pub fn lend_room(&self, id: u64, bytes: u64) {
        self.charge(bytes);
        self.spares.add(id, bytes);
    }

    /// It goes, or is to stay: it counts no more. `false`: room was short, and it goes.
    pub fn end_loan(&self, id: u64) -> bool {
        let bytes = self.spares.withdraw(id);
        self.release(bytes.unwrap_or(0));
        bytes.is_some()
    }

    /// The oldest of what may go is to go; whether there was any.
    pub fn give_oldest(&self) -> bool {
        let bytes = self.spares.take_oldest();
        self.release(bytes.unwrap_or(0));
        bytes.is_some()
    }

    /// What is to go because room was short, by the numbers that it was given; each is told once.
    pub fn to_go(&self) -> Vec<u64> {
        self.spares.take_taken()
    }

    /// Bytes in use by what may go.
    pub fn spare(&self) -> u64 {
        self.spares.bytes()
    }

    fn reserve_free(&self, bytes: u64) -> io::Result<()> {
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

/// Complete copies of content that the server has. Reads never change them.
pub struct Cache {
    disk: Disk,
    dir: PathBuf,
    /// What was written since the machine was started, and what is older.
    current: PathBuf,
    older: Vec<PathBuf>,
    limit: u64,
    known: Mutex<KnownFiles>,
    /// Set once all that earlier mounts left is known.
    learned: AtomicBool,
    /// What does not have its name yet, and where it is meanwhile.
    arriving: Mutex<HashMap<ContentHash, Place>>,
    /// What is lent. Its bytes are not among those that are known: it is not evicted.
    lent: Mutex<HashMap<Key, Lent>>,
    /// Locked by whoever gives a name, takes one away, or lends what has one: what is lent keeps the name that it has.
    naming: Mutex<()>,
    /// Files of which a part is here.
    parts: Parts,
    /// What commits have in their directories.
    listings: Listings,
    /// What the disk had no room for.
    aside: Aside,
    temporary: AtomicU64,
    /// How often content was wanted that is here, and how often such that is not.
    hits: AtomicU64,
    misses: AtomicU64,
}

impl Cache {
    /// Opens or makes the cache in `dir`, bounded to about `limit` bytes.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn open(dir: &Path, limit: u64) -> io::Result<Self> {
        Self::open_on(&Disk::default(), dir, limit)
    }

    /// [`open`](Self::open) by way of `disk`.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_on(disk: &Disk, dir: &Path, limit: u64) -> io::Result<Self> {
        disk.make_dirs(dir)?;
        let fetching = dir.join(FETCHING);
        disk.make_dirs(&fetching)?;
        for left in fs::read_dir(&fetching)? {
            disk.remove(&left?.path())?;
        }
        let current = dir.join(format!("{BOOT}{}", disk.boot()));
        let mut older = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(BOOT));
            if ours && entry.path() != current {
                older.push(entry.path());
            }
        }
        let known = Mutex::new(KnownFiles::new());
        Ok(Self {
            disk: disk.clone(),
            dir: dir.to_owned(),
            current,
            older,
            limit,
            known,
            learned: AtomicBool::new(false),
            arriving: Mutex::default(),
            lent: Mutex::default(),
            naming: Mutex::default(),
            parts: Parts::new(disk, dir),
            listings: Listings::new(disk, dir, &fetching, limit),
            aside: Aside::default(),
            temporary: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        })
    }

    /// Learns what earlier mounts left, oldest access first. Until it has run, those files serve reads but are not
    /// evicted; it takes time in their number, so it belongs in the background.
    ///
    /// # Errors
    /// When the cache cannot be listed.
    pub fn learn(&self) -> io::Result<()> {
        let mut found = Vec::new();
        let mut shards = Vec::new();
        for dir in self.older.iter().chain([&self.current]).filter(|dir| dir.is_dir()) {
            // Gone if nothing is left in it.
            if self.disk.remove_dir(dir).is_err() {
                shards.extend(fs::read_dir(dir)?.flatten().map(|shard| shard.path()));
            }
        }
        for shard in shards {
            if self.disk.remove_dir(&shard).is_ok() {
                continue;
            }
            for entry in fs::read_dir(shard)? {
                let entry = entry?;
                let (Ok(metadata), Some(key)) = (entry.metadata(), entry.file_name().to_str().and_then(Key::parse))
                else {
                    continue;
                };
                found.push((metadata.accessed().ok(), key, counted_of(&metadata)));
            }
        }
        found.sort_by_key(|(accessed, ..)| std::cmp::Reverse(*accessed));
        let mut known = self.lock();
        for (_, key, size) in found {
            known.put_oldest(key, size);
        }
        drop(known);
        self.parts.learn()?;
        self.listings.learn()?;
        self.learned.store(true, Ordering::Release);
        self.evict();
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, KnownFiles> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn make_shard(&self, dir: &Path) -> io::Result<()> {
        self.disk.make_dirs(&self.current)?;
        make_dir(&self.disk, dir)
    }

    fn path(&self, hash: ContentHash) -> PathBuf {
        self.current.join(Key::of(hash).name())
    }

    /// Content was wanted, and it was here or had to be fetched.
    pub fn was_wanted(&self, here: bool) {
        let counter = if here { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// How often content was wanted that was here, and that had to be fetched.
    pub fn hits_and_misses(&self) -> (u64, u64) {
        (self.hits.load(Ordering::Relaxed), self.misses.load(Ordering::Relaxed))
    }

    /// Bytes of what is known to be here, and their limit. What is lent is not among them.
    pub fn used_and_limit(&self) -> (u64, u64) {
        let known = self.lock();
        (known.committed_bytes + known.staged_bytes + self.parts.used(), self.limit)
    }

    /// Files of which a part is here.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// What commits have in their directories.
    pub fn listings(&self) -> &Listings {
        &self.listings
    }

    /// Writes the listings that wait, unless the disk has too little room; returns at once where somebody is at it.
    pub fn write_listings(&self) {
        self.listings.write(|| self.has_some_free());
    }

    /// The same, and waits for whoever is at it.
    pub fn write_out_listings(&self) {
        self.listings.write_out(|| self.has_some_free());
    }

    /// All of a file that was here in part has come, and has its hash: it is content like any other from now on.
    ///
    /// # Errors
    /// As [`name`](Self::name) has them: it is fetched again.
    pub fn take_part(&self, hash: ContentHash, size: u64) -> io::Result<()> {
        self.parts.hand_over(hash, |path| {
            self.name(hash, path)?;
            // At no moment is it neither here in part nor whole.
            self.know(hash, self.counted(hash, size));
            Ok(())
        })?;
        self.evict();
        Ok(())
    }

    /// Whether the content is here, checked or not. Does not count as a use.
    pub fn has_some(&self, hash: ContentHash) -> bool {
        let known = self.lock().has(&Key::of(hash));
        known || self.arriving().contains_key(&hash) || self.lent().contains_key(&Key::of(hash))
    }

    /// The content, if it is here from before the machine was last started and its bytes are still its own: it is used
    /// as any other from then on. Reads it all.
    pub fn check(&self, hash: ContentHash) -> Option<File> {
        for dir in self.older.iter().chain([&self.current]) {
            let from = dir.join(Key::of(hash).name());
            let Ok(file) = File::open(&from) else { continue };
            let whole = ContentHash::of_file(hash.kind(), &file, || true).is_ok_and(|(found, _)| found == hash);
            if whole && self.name(hash, &from).is_ok() {
                return Some(file);
            }
            if self.lent().contains_key(&Key::of(hash)) {
                return None;
            }
            tracing::debug!(%hash, "a cached file is not what it was; it is fetched again");
            let _ = self.disk.remove(&from);
        }
        None
    }

    /// The content, if it is here, need not be [checked](Self::check) and is not lent.
    pub fn file(&self, hash: ContentHash) -> Option<File> {
        match self.find(hash) {
            Found::Here(file) => Some(file),
            Found::Lent(..) | Found::Nowhere => None,
        }
    }

    /// Whether the content is here to stay, but for what must be [checked](Self::check). Counts as a use.
    pub fn holds(&self, hash: ContentHash) -> bool {
        !matches!(self.find_on_disk(hash), Found::Nowhere)
    }

    /// Whether the content is here and has its hash. Reads all of it; what was altered is had no use of any more.
    pub fn verify(&self, hash: ContentHash) -> bool {
        let file = match self.find_on_disk(hash) {
            Found::Nowhere => return self.check(hash).is_some(),
            Found::Lent(_, file) => file,
            Found::Here(file) => Arc::new(file),
        };
        let whole = ContentHash::of_file(hash.kind(), &file, || true).is_ok_and(|(found, _)| found == hash);
        if !whole {
            self.distrust(hash);
        }
        whole
    }

    /// Removes content, on somebody's wish; whether it was here.
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] where it is lent, has no name yet, or is staged and not committed: the server may
    /// lose that. The filesystem's.
    pub fn give_up(&self, hash: ContentHash) -> io::Result<bool> {
        let key = Key::of(hash);
        let _naming = self.naming();
        let is_kept = self.lent().contains_key(&key) || self.arriving().contains_key(&hash);
        if is_kept || self.lock().is_uncommitted(&key) {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        self.unknow(hash);
        let mut removed = self.parts.remove(hash);
        for dir in self.older.iter().chain([&self.current]) {
            match self.disk.remove(&dir.join(key.name())) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                done => removed |= done.is_ok(),
            }
        }
        Ok(removed)
    }

    /// Most bytes that it holds.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Where the content is, but for what must be [checked](Self::check).
    pub fn find(&self, hash: ContentHash) -> Found {
        match self.find_on_disk(hash) {
            Found::Nowhere => self.aside.find(hash).map_or(Found::Nowhere, Found::Here),
            found => found,
        }
    }

    fn find_on_disk(&self, hash: ContentHash) -> Found {
        let arriving = self.arriving().get(&hash).map(|place| place.path.clone());
        // It may be renamed just now, and is found under its name then; and be lent the next instant.
        if let Some(file) = arriving.and_then(|path| File::open(path).ok())
            && !self.is_lent(hash, &file)
        {
            return Found::Here(file);
        }
        let lent = || self.lent().get(&Key::of(hash)).map(|lent| Found::Lent(lent.to, lent.file.clone()));
        if let Some(lent) = lent() {
            return lent;
        }
        match File::open(self.path(hash)) {
            Ok(file) if !self.is_lent(hash, &file) && is_sealed(hash, &file) => {
                self.lock().promote(&Key::of(hash));
                Found::Here(file)
            }
            _ => lent().unwrap_or(Found::Nowhere),
        }
    }

    /// Whether the content is here only for as long as somebody reads it, as the disk has no room.
    pub fn is_aside(&self, hash: ContentHash) -> bool {
        self.aside.has(hash) && !self.holds(hash)
    }

    /// Whether an open file is the one that is lent. Asked after it was opened: who lends it finds that out if it was
    /// before, and here it shows if it was after.
    fn is_lent(&self, hash: ContentHash, file: &File) -> bool {
        self.lent()
            .get(&Key::of(hash))
            .is_some_and(|lent| file.metadata().map_or(true, |file| identity(&file) == lent.identity))
    }

    fn lent(&self) -> MutexGuard<'_, HashMap<Key, Lent>> {
        self.lent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn naming(&self) -> MutexGuard<'_, ()> {
        self.naming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lends content that has its name to one inode, for reading, if it is nobody else's: `alone` tells of an open file
    /// whether no other descriptor or mapping of it is anywhere. Nobody else gets it until it is
    /// [given back](Self::give_back). Where it is never written to, others may have it by names of their own.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when somebody has it, [`io::ErrorKind::ResourceBusy`] when it is lent or has another
    /// name as well; the filesystem's.
    pub fn lend(
        &self,
        hash: ContentHash,
        to: Ino,
        then: Lending,
        alone: impl Fn(&File) -> bool,
    ) -> io::Result<Arc<File>> {
        let _naming = self.naming();
        let file = Arc::new(File::open(self.path(hash))?);
        let found = file.metadata()?;
        if !is_sealed(hash, &file) {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        // By another name a backup may have it.
        if then == Lending::MayBeWritten && found.nlink() != 1 {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        match self.lent().entry(Key::of(hash)) {
            hash_map::Entry::Occupied(_) => return Err(io::ErrorKind::ResourceBusy.into()),
            hash_map::Entry::Vacant(entry) => {
                let (file, size) = (file.clone(), counted_of(&found));
                entry.insert(Lent { to, file, identity: identity(&found), size, spool: None });
            }
        }
        // From here on whoever opens it finds that it is lent.
        if then == Lending::MayBeWritten && !alone(&file) {
            self.lent().remove(&Key::of(hash));
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.unknow(hash);
        Ok(file)
    }

    /// To which inode content is lent.
    pub fn lent_to(&self, hash: ContentHash) -> Option<Ino> {
        self.lent().get(&Key::of(hash)).map(|lent| lent.to)
    }

    /// What was lent is anybody's again, and nobody has written to it. Changes nothing on the disk. Returns the spool file
    /// that it is, if it could not go back to where it was.
    pub fn give_back(&self, hash: ContentHash) -> Option<SpoolId> {
        let Lent { size, spool, .. } = self.lent().remove(&Key::of(hash))?;
        if spool.is_none() {
            self.know(hash, size);
        }
        spool
    }

    /// Moves what is lent to the spool, where it may become an inode's own. It stays lent until it is
    /// [let go of](Self::part_with), or has [returned](Self::return_from).
    ///
    /// # Errors
    /// The filesystem's.
    pub fn depart(&self, spool: &Spool, hash: ContentHash) -> io::Result<SpoolId> {
        let _naming = self.naming();
        let (identity, left) = match self.lent().get(&Key::of(hash)) {
            Some(lent) => (lent.identity, lent.spool),
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        if let Some(left) = left {
            return Ok(left);
        }
        let path = self.path(hash);
        // What programs use is what the record is going to name, whatever a person did to the directory.
        if !fs::metadata(&path).is_ok_and(|found| self::identity(&found) == identity) {
            return Err(io::Error::from_raw_os_error(libc::ESTALE));
        }
        let id = spool.take_over(&path)?;
        if let Some(lent) = self.lent().get_mut(&Key::of(hash)) {
            lent.spool = Some(id);
        }
        Ok(id)
    }

    /// Moves back what had departed and did not change.
    pub fn return_from(&self, spool: &Spool, hash: ContentHash) {
        let _naming = self.naming();
        let Some(id) = self.lent().get(&Key::of(hash)).and_then(|lent| lent.spool) else { return };
        if let Err(error) = self.disk.rename(&spool.path(id), &self.path(hash)) {
            tracing::warn!(%error, %hash, "what the server has could not move back to the cache");
            return;
        }
        if let Some(lent) = self.lent().get_mut(&Key::of(hash)) {
            lent.spool = None;
            if let Err(error) = seal(hash, &lent.file) {
                tracing::debug!(%error, %hash, "a cached file is to be checked before it is used");
            }
        }
    }

    /// Has no use of a file whose bytes are not its content's: it is fetched again.
    pub fn distrust(&self, hash: ContentHash) {
        let _naming = self.naming();
        if self.lent().contains_key(&Key::of(hash)) {
            return;
        }
        tracing::warn!(%hash, "a cached file is not what it was; it is fetched again");
        self.unknow(hash);
        self.aside.drop(hash);
        if let Some(place) = self.arriving().remove(&hash) {
            let _ = self.disk.remove(&place.path);
        }
        let _ = self.disk.remove(&self.path(hash));
    }

    /// What has departed is the cache's no more.
    pub fn part_with(&self, hash: ContentHash) {
        self.lent().remove(&Key::of(hash));
        self.unknow(hash);
    }

    fn arriving(&self) -> MutexGuard<'_, HashMap<ContentHash, Place>> {
        self.arriving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in `path`, to be named soon; whether it is wanted: the same content may be on its way
    /// already.
    fn announce(&self, hash: ContentHash, place: Place) -> bool {
        match self.arriving().entry(hash) {
            hash_map::Entry::Occupied(_) => false,
            hash_map::Entry::Vacant(vacant) => {
                vacant.insert(place);
                true
            }
        }
    }

    /// What waits to be [settled](Self::settle); of what lies in the spool, the files that may `leave` it. What is lent
    /// has the name meanwhile.
    pub fn arrived(&self, leave: impl Fn(SpoolId) -> bool) -> Arrived {
        let (lent, arriving) = (self.lent(), self.arriving());
        let ready = arriving
            .iter()
            .filter(|(hash, place)| place.spool.is_none_or(&leave) && !lent.contains_key(&Key::of(**hash)));
        Arrived(ready.map(|(hash, place)| (*hash, place.path.clone(), place.size)).collect())
    }

    /// Gives what had arrived its name. What cannot be named is removed: it is only a copy.
    pub fn settle(&self, Arrived(arrived): Arrived) {
        for (hash, from, size) in arrived {
            let named = self.name(hash, &from);
            if named.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy) {
                continue;
            }
            self.arriving().remove(&hash);
            match named {
                Ok(()) => self.note(hash, self.counted(hash, size)),
                Err(error) => {
                    tracing::warn!(%error, %hash, "what the server has could not move to the cache");
                    let _ = self.disk.remove(&from);
                }
            }
        }
    }

    /// Gives a file the name of its content, which a power loss may take: then it is fetched again.
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] while that is lent; the filesystem's.
    fn name(&self, hash: ContentHash, from: &Path) -> io::Result<()> {
        let _naming = self.naming();
        if self.lent().contains_key(&Key::of(hash)) {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        let to = self.path(hash);
        // Before it has the name. One that cannot be sealed is checked whenever it is used.
        if let Err(error) = File::open(from).and_then(|file| seal(hash, &file)) {
            tracing::debug!(%error, %hash, "a cached file is to be checked before it is used");
        }
        with_parent(&to, |parent| self.make_shard(parent), || self.disk.rename(from, &to))
    }

    /// A new file to fetch into; gone when dropped unless it is [kept](Self::keep).
    ///
    /// # Errors
    /// The filesystem's.
    pub fn begin(&self) -> io::Result<Fetching> {
        let number = self.temporary.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(format!("{FETCHING}/{number}"));
        let mut open = OpenOptions::new();
        open.read(true).write(true).create_new(true).mode(0o600);
        let file = self.disk.act(Act::Create(&path), || open.open(&path))?;
        Ok(Fetching { disk: self.disk.clone(), path: Some(path), file: Arc::new(file) })
    }

    /// The same for content of so many bytes; one in memory where the disk has no room for it, or `aside` says so.
    ///
    /// # Errors
    /// [`io::ErrorKind::StorageFull`] for content that is too long for that; the filesystem's.
    pub fn begin_somewhere(&self, size: u64, aside: bool) -> io::Result<Fetching> {
        if !aside && self.has_room(size) {
            match self.begin() {
                Err(error) if is_full(&error) => {}
                begun => return begun,
            }
        }
        if size > aside::MOST_BYTES {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(Fetching { disk: self.disk.clone(), path: None, file: Arc::new(Aside::make()?) })
    }

    /// A file that is somewhere else already, and to which nobody writes, as one that was fetched.
    ///
    /// # Errors
    /// The filesystem's: it is on another, or has no name any more.
    pub fn begin_with(&self, file: &File) -> io::Result<Fetching> {
        let number = self.temporary.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(format!("{FETCHING}/{number}"));
        let from = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        self.disk.link_open(&from, &path)?;
        Ok(Fetching { disk: self.disk.clone(), path: Some(path.clone()), file: Arc::new(File::open(path)?) })
    }

    /// Takes in a fetched file whose hash has been checked. It gets its name when it is [settled](Self::settle), or
    /// `at_once`.
    pub fn keep(&self, mut fetched: Fetching, hash: ContentHash, at_once: bool) {
        let size = fetched.file.metadata().map_or(0, |file| file.len());
        if fetched.is_aside() {
            self.aside.keep(hash, fetched.file.clone(), size);
            return;
        }
        let place = |path: &PathBuf| Place { path: path.clone(), spool: None, size };
        if fetched.path.as_ref().is_some_and(|path| self.announce(hash, place(path)))
            && let Some(path) = fetched.path.take()
            && at_once
        {
            self.settle(Arrived(vec![(hash, path, size)]));
        }
    }

    /// Takes over a spool file of `size` bytes whose content the server confirmed; whether it is wanted. It stays where it
    /// is until it is [settled](Self::settle), before which the record must have been flushed.
    pub fn adopt(&self, spool: &Spool, id: SpoolId, hash: ContentHash, size: u64) -> bool {
        self.announce(hash, Place { path: spool.path(id), spool: Some(id), size })
    }

    /// Takes over a spool file that an earlier daemon left, and that has this content unless something became of it since:
    /// it is checked before its first use. Whether it went; what is here already needs no other.
    pub fn take_unchecked(&self, spool: &Spool, id: SpoolId, hash: ContentHash) -> bool {
        let (from, to) = (spool.path(id), self.path(hash));
        let Ok(found) = fs::symlink_metadata(&from) else { return false };
        if to.exists() || !found.is_file() {
            return false;
        }
        let took = with_parent(&to, |parent| self.make_shard(parent), || self.disk.rename(&from, &to));
        if took.is_ok() {
            self.note(hash, counted_of(&found));
            self.note_staged(hash);
        }
        took.is_ok()
    }

    /// What counts for the limit of a named file of this length: holes do not.
    fn counted(&self, hash: ContentHash, size: u64) -> u64 {
        // A look at each small one would cost more than its holes.
        let named = (size > SMALL_BYTES).then(|| fs::metadata(self.path(hash)).ok()).flatten();
        named.map_or(size, |file| counted_of(&file))
    }

    fn note(&self, hash: ContentHash, size: u64) {
        self.know(hash, size);
        self.evict();
    }

    fn know(&self, hash: ContentHash, size: u64) {
        self.lock().put(Key::of(hash), size);
    }

    fn unknow(&self, hash: ContentHash) {
        self.lock().remove(&Key::of(hash));
    }

    /// This content is staged and not committed: as long as the limit lets, it stays when others go.
    pub fn note_staged(&self, hash: ContentHash) {
        self.lock().note_staged(Key::of(hash));
    }

    /// Only this content is staged and not committed.
    pub fn note_all_staged(&self, hashes: impl Iterator<Item = ContentHash>) {
        self.lock().note_all_staged(hashes.map(Key::of).collect());
    }

    /// Whether content is not here, as far as all that is here is known.
    pub fn lacks(&self, hash: ContentHash) -> bool {
        self.learned.load(Ordering::Acquire)
            && !self.arriving().contains_key(&hash)
            && !self.lent().contains_key(&Key::of(hash))
            && !self.lock().has(&Key::of(hash))
    }

    /// Which of these contents a cache that no daemon has open does not hold: a look at the names alone.
    pub fn lacking_in(dir: &Path, hashes: impl Iterator<Item = ContentHash>) -> HashSet<ContentHash> {
        let boots = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
        let boots: Vec<PathBuf> = boots.collect();
        hashes.filter(|hash| !boots.iter().any(|boot| boot.join(Key::of(*hash).name()).exists())).collect()
    }

    /// Removes the least recently used files over the limit, first parts of such that nobody reads, then those that are
    /// committed; never the newest of these, which its reader is about to open. At last, blocks of what somebody reads.
    pub fn evict(&self) {
        loop {
            let left = self.limit.saturating_sub(self.parts.used());
            let whole = |known: &KnownFiles| known.over(left);
            let is_over = self.used_and_limit().0 > self.limit;
            if !is_over || !(self.parts.make_way(false) || self.evict_one(whole) || self.parts.make_way(true)) {
                return;
            }
        }
    }

    /// Removes the file that `choice` names, and says whether there was one.
    fn evict_one(&self, choice: impl Fn(&KnownFiles) -> Option<Class>) -> bool {
        let mut known = self.lock();
        let Some(key) = choice(&known).and_then(|class| known.pop(class)) else { return false };
        drop(known);
        let _naming = self.naming();
        // Known again when it is given back.
        if self.lent().contains_key(&key) {
            return true;
        }
        for dir in self.older.iter().chain([&self.current]) {
            if let Err(error) = self.disk.remove(&dir.join(key.name()))
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(%error, name = %key.name().display(), "a cached file could not be removed");
            }
        }
        true
    }

    /// Removes the least recently used files until the disk has `bytes` free, or nothing is left to remove; whether it
    /// removed any. What is only a copy makes way for what is not.
    pub fn make_room(&self, bytes: u64) -> bool {
        let lacking = || rustix::fs::statvfs(&self.dir).is_ok_and(|disk| is_lacking(&disk, bytes));
        let committed = |known: &KnownFiles| known.first().filter(|class| *class == Class::Committed);
        let mut removed = false;
        while lacking()
            && (self.parts.make_way(false)
                || self.evict_one(committed)
                || self.listings.make_way()
                || self.evict_one(KnownFiles::first))
        {
            removed = true;
        }
        removed
    }

    /// Whether the disk has `bytes` free.
    pub fn has_room(&self, bytes: u64) -> bool {
        rustix::fs::statvfs(&self.dir).map_or(true, |disk| disk.f_bavail.saturating_mul(disk.f_frsize) >= bytes)
    }

    /// [Makes room](Self::make_room), so that a writer does not meet a full disk because of copies.
    pub fn keep_some_free(&self) {
        if let Ok(disk) = rustix::fs::statvfs(&self.dir) {
            self.make_room(least_free(&disk));
        }
    }

    /// Whether the disk has as much room as copies leave free.
    pub fn has_some_free(&self) -> bool {
        rustix::fs::statvfs(&self.dir).is_ok_and(|disk| !is_lacking(&disk, least_free(&disk)))
    }
}

/// Where in a cache its files lie: a directory for each start of the machine.
pub fn boots_in(cache: &Path) -> Vec<PathBuf> {
    let ours = |entry: &fs::DirEntry| entry.file_name().to_str().is_some_and(|name| name.starts_with(BOOT));
    fs::read_dir(cache).into_iter().flatten().flatten().filter(ours).map(|entry| entry.path()).collect()
}

/// The name of content in such a directory.
pub fn name_of(hash: ContentHash) -> PathBuf {
    Key::of(hash).name()
}

/// Which of the files of a cache go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Copies of what a commit has.
    Committed,
    /// Of what is staged alone: whoever deletes the workspace, or prunes, takes it from the server.
    Staged,
}

/// The files that a cache has, by name and length, least recently used first out.
struct KnownFiles {
    committed: LruCache<Key, u64>,
    staged: LruCache<Key, u64>,
    /// Bytes of each.
    committed_bytes: u64,
    staged_bytes: u64,
    /// What is staged and not committed, here or not.
    uncommitted: HashSet<Key>,
    /// What came or was used last: its reader is about to open it.
    newest: Option<Key>,
}

impl KnownFiles {
    fn new() -> Self {
        Self {
            committed: LruCache::unbounded(),
            staged: LruCache::unbounded(),
            committed_bytes: 0,
            staged_bytes: 0,
            uncommitted: HashSet::new(),
            newest: None,
        }
    }

    fn class(&mut self, class: Class) -> (&mut LruCache<Key, u64>, &mut u64) {
        match class {
            Class::Committed => (&mut self.committed, &mut self.committed_bytes),
            Class::Staged => (&mut self.staged, &mut self.staged_bytes),
        }
    }

    fn class_of(&self, key: &Key) -> Class {
        if self.uncommitted.contains(key) { Class::Staged } else { Class::Committed }
    }

    fn is_uncommitted(&self, key: &Key) -> bool {
        self.uncommitted.contains(key)
    }

    fn has(&self, key: &Key) -> bool {
        self.committed.contains(key) || self.staged.contains(key)
    }

    fn put(&mut self, key: Key, size: u64) {
        self.remove(&key);
        let (files, bytes) = self.class(self.class_of(&key));
        files.put(key, size);
        *bytes += size;
        self.newest = Some(key);
    }

    /// [`put`](Self::put) of a file that was used before all others, if it is new.
    fn put_oldest(&mut self, key: Key, size: u64) {
        if !self.has(&key) {
            let (class, newest) = (self.class_of(&key), self.newest);
            self.put(key, size);
            self.class(class).0.demote(&key);
            self.newest = newest.or(Some(key));
        }
    }

    fn promote(&mut self, key: &Key) {
        self.committed.promote(key);
        self.staged.promote(key);
        self.newest = Some(*key);
    }

    fn remove(&mut self, key: &Key) -> Option<u64> {
        for class in [Class::Committed, Class::Staged] {
            let (files, bytes) = self.class(class);
            if let Some(size) = files.pop(key) {
                count::take(bytes, size, "cache.bytes");
                return Some(size);
            }
        }
        None
    }

    fn pop(&mut self, class: Class) -> Option<Key> {
        let (files, bytes) = self.class(class);
        let (key, size) = files.pop_lru()?;
        count::take(bytes, size, "cache.bytes");
        Some(key)
    }

    fn note_staged(&mut self, key: Key) {
        let newest = self.newest;
        if self.uncommitted.insert(key)
            && let Some(size) = self.remove(&key)
        {
            self.put(key, size);
        }
        self.newest = newest;
    }

    /// What was committed is newer than what is: it goes last of those.
    fn note_all_staged(&mut self, uncommitted: HashSet<Key>) {
        self.uncommitted = uncommitted;
        let mut moved = Vec::new();
        for (key, _) in self.committed.iter().filter(|(key, _)| self.uncommitted.contains(*key)) {
            moved.push(*key);
        }
        for (key, _) in self.staged.iter().rev().filter(|(key, _)| !self.uncommitted.contains(*key)) {
            moved.push(*key);
        }
        let newest = self.newest;
        for key in moved {
            if let Some(size) = self.remove(&key) {
                self.put(key, size);
            }
        }
        self.newest = newest;
    }

    /// What goes first.
    fn first(&self) -> Option<Class> {
        let class = if self.committed.is_empty() { Class::Staged } else { Class::Committed };
        (!self.committed.is_empty() || !self.staged.is_empty()).then_some(class)
    }

    /// What goes because there is more than `limit`: never the newest, which its reader is about to open. What is staged
    /// keeps its place beside that, within the limit.
    fn over(&self, limit: u64) -> Option<Class> {
        let goes = |files: &LruCache<Key, u64>| files.peek_lru().is_some_and(|(key, _)| self.newest != Some(*key));
        if self.committed_bytes + self.staged_bytes <= limit {
            None
        } else if goes(&self.committed) {
            Some(Class::Committed)
        } else {
            (self.staged_bytes > limit && goes(&self.staged)).then_some(Class::Staged)
        }
    }
}

/// The modification time that a cached file of this content and length has as long as nobody writes to it: it follows
/// from both, so it need not be noted anywhere.
fn seal_of(hash: ContentHash, size: u64) -> (i64, u32) {
    // Over sixty years from 1972 on, before 2038: every filesystem can note them.
    const YEARS_60: u64 = 60 * 365 * 24 * 3600;
    const YEARS_2: i64 = 2 * 365 * 24 * 3600;
    let key = u128::from_be_bytes(Key::of(hash).0);
    let (high, low) = ((key >> 64) as u64 ^ size, key as u64 ^ size.rotate_left(32));
    // In whole microseconds: not every filesystem notes less.
    (YEARS_2 + (high % YEARS_60) as i64, (low % 1_000_000) as u32 * 1000)
}

fn seal(hash: ContentHash, file: &File) -> io::Result<()> {
    let (secs, nanos) = seal_of(hash, file.metadata()?.len());
    let times = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        last_modification: rustix::fs::Timespec { tv_sec: secs, tv_nsec: nanos.into() },
    };
    Ok(rustix::fs::futimens(file, &times)?)
}

/// Whether nobody wrote to a cached file, or cut it, since it was sealed.
fn is_sealed(hash: ContentHash, file: &File) -> bool {
    file.metadata().is_ok_and(|found| {
        let (secs, nanos) = seal_of(hash, found.len());
        // Some filesystems note seconds alone.
        found.mtime() == secs && [0, i64::from(nanos)].contains(&found.mtime_nsec())
    })
}

/// How much of a disk copies leave free, in bytes.
fn least_free(disk: &StatVfs) -> u64 {
    LEAST_FREE_BYTES.min(disk.f_blocks.saturating_mul(disk.f_frsize) / LEAST_FREE_SHARE)
}

/// Whether a disk has less than `bytes` free, or hardly room for another file.
fn is_lacking(disk: &StatVfs, bytes: u64) -> bool {
    let few_files = disk.f_files > 0 && disk.f_favail < LEAST_FREE_FILES;
    few_files || disk.f_bavail.saturating_mul(disk.f_frsize) < bytes
}

/// What content is called in the cache: 128 bits of its hash, which is all of an XXH3. There may be millions of them in
/// memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key([u8; 16]);

impl Key {
    fn of(hash: ContentHash) -> Self {
        match hash {
            ContentHash::Xxh3(bytes) => Self(bytes),
            ContentHash::Sha256(bytes) => Self(*bytes.first_chunk().unwrap_or(&[0; 16])),
        }
    }

    fn name(self) -> PathBuf {
        format!("{:02x}/{:x}", self.0[15], u128::from_be_bytes(self.0)).into()
    }

    fn parse(name: &str) -> Option<Self> {
        u128::from_str_radix(name, 16).ok().map(|number| Self(number.to_be_bytes()))
    }
}

/// Where content is until it has its name in the cache.
struct Place {
    path: PathBuf,
    /// The spool file it is, if it is one.
    spool: Option<SpoolId>,
    /// In bytes.
    size: u64,
}

/// A file that nobody but one inode is given.
struct Lent {
    to: Ino,
    file: Arc<File>,
    identity: (u64, u64),
    size: u64,
    /// The spool file it is, once it has departed.
    spool: Option<SpoolId>,
}

/// What may become of a file of the cache that is lent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lending {
    /// It becomes its borrower's own when somebody comes who writes.
    MayBeWritten,
    /// It is only read: the mount takes no changes.
    IsRead,
}

/// Where content is in the cache.
pub enum Found {
    /// Anybody may have it.
    Here(File),
    /// It is lent to an inode, and may be written to by its programs at any time.
    Lent(Ino, Arc<File>),
    /// Not here.
    Nowhere,
}

/// What tells a file from all others.
fn identity(file: &fs::Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

/// Content that has arrived by some moment.
pub struct Arrived(Vec<(ContentHash, PathBuf, u64)>);

impl Arrived {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A file being fetched.
pub struct Fetching {
    disk: Disk,
    /// `None`: it is in memory.
    path: Option<PathBuf>,
    /// Where the bytes go.
    pub file: Arc<File>,
}

impl Fetching {
    /// Whether it is in memory, as the disk has no room for it.
    pub fn is_aside(&self) -> bool {
        self.path.is_none()
    }
}

impl Drop for Fetching {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = self.disk.remove(path);
        }
    }
}

fn shard_dir(dir: &Path, shard: u64) -> PathBuf {
    dir.join(format!("{shard:02x}"))
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

/// Where a file of the spool in `dir` is.
pub fn path_in(dir: &Path, id: SpoolId) -> PathBuf {
    shard_dir(dir, id.0 % SHARDS).join(format!("{:x}", id.0))
}

/// Makes the directory of `path` with `make` when `work` finds that it is not there.
fn with_parent<T>(
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
fn make_dir(disk: &Disk, dir: &Path) -> io::Result<()> {
    match disk.act(Act::MakeDir(dir), || fs::DirBuilder::new().mode(0o700).create(dir)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Whether the filesystem of `dir` copies files by sharing their blocks (`ioctl_ficlone(2)`); `None` when no file can be
/// made there to try it.
pub fn shares_blocks(dir: &Path) -> Option<bool> {
    let nameless = || {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_TMPFILE).open(dir).ok()
    };
    let (from, to) = (nameless()?, nameless()?);
    from.write_all_at(&[0; 4096], 0).ok()?;
    Some(rustix::fs::ioctl_ficlone(&to, &from).is_ok())
}

/// Copies a whole file over an empty one: shares its blocks where the filesystem can, else copies what is not hole.
///
/// # Errors
/// The filesystem's.
pub fn copy_content(from: &File, to: &File) -> io::Result<u64> {
    let size = from.metadata()?.len();
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(size);
    }
    let mut at = 0;
    while at < size {
        let Some((begin, end)) = next_data(from, at, size) else { break };
        at = begin + copy_range(from, begin, to, begin, end - begin)?;
        if at < end {
            // Cut short meanwhile.
            return Ok(at);
        }
    }
    // A hole at the end.
    if to.metadata()?.len() < size {
        to.set_len(size)?;
    }
    Ok(size)
}

/// Copies a range, in the kernel where it can; less where the file ends.
///
/// # Errors
/// The filesystem's.
pub fn copy_range(from: &File, from_offset: u64, to: &File, to_offset: u64, length: u64) -> io::Result<u64> {
    let (mut at, mut out) = (from_offset, to_offset);
    let end = from_offset.saturating_add(length);
    while at < end {
        let length = (end - at).min(1 << 30) as usize;
        match rustix::fs::copy_file_range(from, Some(&mut at), to, Some(&mut out), length) {
            Ok(0) => break,
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => {}
            Err(error) if cannot_copy(error) => {
                let mut buffer = vec![0; (end - at).min(1 << 20) as usize];
                while at < end {
                    let room = (end - at).min(buffer.len() as u64) as usize;
                    let read = from.read_at(&mut buffer[..room], at)?;
                    if read == 0 {
                        break;
                    }
                    to.write_all_at(&buffer[..read], out)?;
                    (at, out) = (at + read as u64, out + read as u64);
                }
                break;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(at - from_offset)
}

/// A file of at most this size is copied with reads and writes, which costs less than setting up a copy in the kernel.
const SMALL_BYTES: u64 = 256 << 10;
/// Copied between two looks at whether to go on.
const STRETCH_BYTES: u64 = 16 << 20;

/// Copies a file that may change meanwhile, up to the end that it has then, and keeps its holes. Before each stretch
/// `go_on` is told how much is copied, and how long the copy is going to be at least. Returns the copy's length.
///
/// # Errors
/// The filesystem's, and `go_on`'s.
pub fn copy_growing(
    from: &File,
    to: &File,
    buffer: &mut Vec<u8>,
    mut go_on: impl FnMut(u64, u64) -> io::Result<()>,
) -> io::Result<u64> {
    let found = from.metadata()?;
    let mut size = found.len();
    go_on(0, size)?;
    if size > 0 && rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(to.metadata()?.len());
    }
    let mut at = 0;
    if size > SMALL_BYTES {
        let holes = may_have(&found);
        while at < size {
            let end = match holes.then(|| next_data(from, at, size)) {
                Some(None) => break,
                Some(Some((data, hole))) => {
                    at = data;
                    hole
                }
                None => size,
            };
            let stretch = (end - at).min(STRETCH_BYTES);
            go_on(at, at + stretch)?;
            let (mut source, mut target) = (at, at);
            match rustix::fs::copy_file_range(from, Some(&mut source), to, Some(&mut target), stretch as usize) {
                // Shorter than it was.
                Ok(0) => {
                    size = at;
                    break;
                }
                Ok(copied) => at += copied as u64,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) if cannot_copy(error) => break,
                Err(error) => return Err(error.into()),
            }
        }
        // Without an error on the way, all there is left to find is what was added meanwhile; with one, all of it.
        if at >= size || holes && next_data(from, at, size).is_none() {
            to.set_len(size)?;
            at = size;
        }
    }
    buffer.resize(SMALL_BYTES as usize, 0);
    loop {
        let read = match from.read_at(buffer, at) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        if read == 0 {
            return Ok(at);
        }
        go_on(at, (at + read as u64).max(size))?;
        to.write_all_at(&buffer[..read], at)?;
        at += read as u64;
        // A file that still has the length it had is at its end; one of the kernel's own says 0 and has more.
        if at == size && size > 0 && read < buffer.len() && from.metadata()?.len() == size {
            return Ok(at);
        }
    }
}

/// Whether the kernel copies nothing between these two files (`copy_file_range(2)`), and somebody else has to.
fn cannot_copy(error: rustix::io::Errno) -> bool {
    use rustix::io::Errno;
    matches!(error, Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::HashKind;
    use std::io::Read;
    use std::sync::atomic::AtomicBool;

    fn content(file: &mut File) -> String {
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        text
    }

    fn fetched(cache: &Cache, text: &str) -> ContentHash {
        let hash = ContentHash::of(HashKind::Xxh3, text.as_bytes());
        let fetching = cache.begin().unwrap();
        fetching.file.write_all_at(text.as_bytes(), 0).unwrap();
        cache.keep(fetching, hash, false);
        cache.settle(cache.arrived(|_| true));
        hash
    }

    /// Fails flushes, as a kernel does that lost pages: once.
    #[derive(Default)]
    struct FailsOnce(AtomicBool);

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
    fn a_copy_has_the_bytes_the_holes_and_what_was_added_meanwhile() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(dir.path().join(name)).unwrap()
        };
        for size in [0, 1, SMALL_BYTES - 1, SMALL_BYTES, SMALL_BYTES + 1, 3 << 20] {
            let (from, to) = (file("from"), file("to"));
            let content: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            from.write_all_at(&content, 0).unwrap();
            let mut told = 0;
            let length = copy_growing(&from, &to, &mut Vec::new(), |_, upto| {
                told = told.max(upto);
                Ok(())
            });
            assert_eq!((length.unwrap(), told), (size, size));
            assert!(fs::read(dir.path().join("to")).unwrap() == content, "{size}");
        }
        let (from, to) = (file("sparse"), file("to"));
        from.write_all_at(b"begins", 0).unwrap();
        from.write_all_at(b"ends", 40 << 20).unwrap();
        from.set_len(64 << 20).unwrap();
        let mut added = false;
        let length = copy_growing(&from, &to, &mut Vec::new(), |_, _| {
            if !std::mem::replace(&mut added, true) {
                from.write_all_at(b"more", 64 << 20)?;
            }
            Ok(())
        });
        assert_eq!(length.unwrap(), (64 << 20) + 4);
        assert!(to.metadata().unwrap().blocks() < 1000, "the holes were filled");
        assert!(fs::read(dir.path().join("sparse")).unwrap() == fs::read(dir.path().join("to")).unwrap());
        let stopped = copy_growing(&from, &to, &mut Vec::new(), |_, _| Err(io::ErrorKind::Interrupted.into()));
        assert_eq!(stopped.unwrap_err().kind(), io::ErrorKind::Interrupted);
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
    fn staged_content_goes_last() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), 10).unwrap();
        cache.learn().unwrap();
        let hash = |text: &str| ContentHash::of(HashKind::Xxh3, text.as_bytes());
        cache.note_staged(hash("aaaa"));
        let a = fetched(&cache, "aaaa");
        let b = fetched(&cache, "bbbb");
        cache.note_staged(b);
        // Committed content comes and goes beside it, and the newest stays for its reader.
        let (c, d) = (fetched(&cache, "cccc"), fetched(&cache, "dddd"));
        let has = |hash| cache.file(hash).is_some();
        assert!(has(a) && has(b) && !has(c) && has(d));
        assert_eq!([a, b, c, d].map(|hash| cache.lacks(hash)), [false, false, true, false]);
        assert_eq!(Cache::lacking_in(dir.path(), [a, c].into_iter()), HashSet::from([c]));
        // Staged content keeps to the limit too.
        cache.note_staged(hash("eeee"));
        fetched(&cache, "eeee");
        assert!(cache.lacks(a) && !cache.lacks(b), "the first of them was used before the other");
        // Once committed, it is like any other.
        cache.note_all_staged([hash("eeee")].into_iter());
        fetched(&cache, "ffff");
        assert!(cache.lacks(b) && cache.lacks(d) && !cache.lacks(hash("eeee")));
        // What is known for staged before all that is here is known.
        let again = Cache::open(dir.path(), 10).unwrap();
        assert!(!again.lacks(c), "nobody has looked yet");
        again.note_all_staged([hash("eeee")].into_iter());
        again.learn().unwrap();
        fetched(&again, "gggg");
        assert!(!again.lacks(hash("eeee")) && again.lacks(hash("ffff")));
    }

    #[test]
    fn what_came_last_stays_for_its_reader_whatever_is_older_and_committed() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), 1).unwrap();
        cache.learn().unwrap();
        let committed = fetched(&cache, "committed");
        let staged = ContentHash::of(HashKind::Xxh3, b"staged");
        cache.note_staged(staged);
        fetched(&cache, "staged");
        assert!(!cache.lacks(staged) && cache.lacks(committed));
    }

    #[test]
    fn confirmed_bytes_move_from_the_spool_to_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(&dir.path().join("spool"), None).unwrap();
        let cache = Cache::open(&dir.path().join("cache"), 100).unwrap();
        let (id, file) = spool.create().unwrap();
        file.write_all_at(b"hello", 0).unwrap();
        let hash = ContentHash::of(HashKind::Xxh3, b"hello");
        assert!(cache.adopt(&spool, id, hash, 5));
        assert_eq!(content(&mut cache.file(hash).unwrap()), "hello", "readable before it is flushed");
        cache.settle(cache.arrived(|_| true));
        assert!(spool.file(id).is_err());
        assert_eq!(content(&mut cache.file(hash).unwrap()), "hello");
        let again = Cache::open(&dir.path().join("cache"), 2).unwrap();
        again.learn().unwrap();
        assert!(again.file(hash).is_some(), "the newest stays");
    }

    #[test]
    fn what_is_lent_is_nobody_elses_and_keeps_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), 10).unwrap();
        let hash = fetched(&cache, "lent");
        let refused = cache.lend(hash, Ino(2), Lending::MayBeWritten, |_| false);
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(cache.file(hash).is_some(), "it was not lent");
        let lent = cache.lend(hash, Ino(2), Lending::MayBeWritten, |_| true).unwrap();
        assert_eq!(content(&mut lent.try_clone().unwrap()), "lent");
        assert!(cache.file(hash).is_none());
        assert!(matches!(cache.find(hash), Found::Lent(Ino(2), _)));
        assert_eq!(
            cache.lend(hash, Ino(3), Lending::MayBeWritten, |_| true).unwrap_err().kind(),
            io::ErrorKind::ResourceBusy
        );
        // Neither evicted, nor replaced by another copy; that one may be had.
        fetched(&cache, &"x".repeat(50));
        fetched(&cache, &"y".repeat(50));
        assert_eq!(fetched(&cache, "lent"), hash);
        assert_eq!(identity(&fs::metadata(cache.path(hash)).unwrap()), identity(&lent.metadata().unwrap()));
        let other = cache.file(hash).unwrap();
        assert_ne!(identity(&other.metadata().unwrap()), identity(&lent.metadata().unwrap()));
        assert_eq!(cache.give_back(hash), None);
        cache.settle(cache.arrived(|_| true));
        assert_eq!(content(&mut cache.file(hash).unwrap()), "lent");
        // A daemon that is killed while it has lent leaves it where it is.
        assert!(cache.lend(hash, Ino(2), Lending::MayBeWritten, |_| true).is_ok());
        assert!(Cache::open(dir.path(), 10).unwrap().file(hash).is_some());
    }

    #[test]
    fn what_departs_goes_to_the_spool_or_returns() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(&dir.path().join("spool"), None).unwrap();
        let cache = Cache::open(&dir.path().join("cache"), 100).unwrap();
        let hash = fetched(&cache, "lent");
        assert!(cache.depart(&spool, hash).is_err(), "it is not lent");
        let lent = cache.lend(hash, Ino(2), Lending::MayBeWritten, |_| true).unwrap();
        let id = cache.depart(&spool, hash).unwrap();
        assert!(matches!(cache.find(hash), Found::Lent(..)));
        cache.return_from(&spool, hash);
        assert!(spool.file(id).is_err());
        assert_eq!(cache.give_back(hash), None);
        assert!(cache.file(hash).is_some());
        drop(lent);
        // Once it is the spool's, content of that name is fetched anew.
        let lent = cache.lend(hash, Ino(2), Lending::MayBeWritten, |_| true).unwrap();
        let id = cache.depart(&spool, hash).unwrap();
        cache.part_with(hash);
        assert!(matches!(cache.find(hash), Found::Nowhere));
        assert_eq!(identity(&lent.metadata().unwrap()), identity(&spool.file(id).unwrap().metadata().unwrap()));
        assert_eq!(fetched(&cache, "lent"), hash);
        // What a person put in its place is not what programs have.
        let lent = cache.lend(hash, Ino(2), Lending::MayBeWritten, |_| true).unwrap();
        fs::remove_file(cache.path(hash)).unwrap();
        fs::write(cache.path(hash), "another").unwrap();
        assert_eq!(cache.depart(&spool, hash).unwrap_err().raw_os_error(), Some(libc::ESTALE));
        assert_eq!(content(&mut lent.try_clone().unwrap()), "lent");
    }

    #[test]
    fn what_a_restart_of_the_machine_left_is_checked_before_it_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), 1000).unwrap();
        let (whole, torn) = (fetched(&cache, "whole"), fetched(&cache, "torn away"));
        let path = cache.path(torn);
        OpenOptions::new().write(true).open(path).unwrap().set_len(4).unwrap();
        let cache = Cache::open_on(&Disk::restarted(1), dir.path(), 1000).unwrap();
        assert!(cache.file(whole).is_none(), "not unchecked");
        assert!(cache.check(torn).is_none() && cache.file(torn).is_none());
        assert!(cache.check(whole).is_some());
        assert_eq!(content(&mut cache.file(whole).unwrap()), "whole");
    }

    #[test]
    fn a_copy_has_the_bytes_and_the_holes() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.write_all_at(b"begin", 0).unwrap();
        from.write_all_at(b"middle", 8 << 20).unwrap();
        from.set_len(16 << 20).unwrap();
        assert_eq!(copy_content(&from, &to).unwrap(), 16 << 20);
        let read = |at| {
            let mut bytes = [9; 6];
            to.read_exact_at(&mut bytes, at).unwrap();
            bytes
        };
        assert_eq!((read(0), read(8 << 20), read((16 << 20) - 6)), (*b"begin\0", *b"middle", [0; 6]));
        assert_eq!(copy_range(&from, (8 << 20) + 3, &to, 6, 3).unwrap(), 3);
        assert_eq!(copy_range(&from, (16 << 20) - 2, &to, 9, 30).unwrap(), 2);
        let mut bytes = [9; 12];
        to.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"begin\0dle\0\0\0");
    }

    #[test]
    fn a_copy_has_the_bytes() {
        let (from, mut to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.write_all_at(b"some bytes", 0).unwrap();
        assert_eq!(copy_content(&from, &to).unwrap(), 10);
        assert_eq!(content(&mut to), "some bytes");
    }

    #[test]
    fn a_cached_file_that_was_altered_is_not_served() {
        use std::os::unix::fs::FileExt;
        let temp = tempfile::tempdir().unwrap();
        let cache = Cache::open(temp.path(), 1 << 20).unwrap();
        let content = b"what the server has";
        let hash = ContentHash::of(crate::hash::HashKind::Xxh3, content);
        let put = || {
            let fetched = cache.begin().unwrap();
            fetched.file.write_all_at(content, 0).unwrap();
            cache.keep(fetched, hash, true);
            cache.path(hash)
        };
        let path = put();
        assert!(cache.file(hash).is_some());
        assert!(cache.lend(hash, Ino(1), Lending::MayBeWritten, |_| true).is_ok());
        cache.give_back(hash);
        let alter = |change: &dyn Fn(&File)| change(&OpenOptions::new().write(true).open(&path).unwrap());
        let alterations: [&dyn Fn(&File); 3] =
            [&|file| file.write_all_at(b"x", 3).unwrap(), &|file| file.set_len(5).unwrap(), &|file| {
                file.write_all_at(b"more", content.len() as u64).unwrap()
            }];
        for alteration in alterations {
            put();
            alter(alteration);
            assert!(cache.file(hash).is_none());
            assert!(cache.lend(hash, Ino(1), Lending::MayBeWritten, |_| true).is_err());
            assert!(cache.check(hash).is_none() && !path.exists(), "gone, to be fetched again");
        }
        // Written over with what it was, it is as good as before once that was looked at.
        put();
        alter(&|file| file.write_all_at(content, 0).unwrap());
        assert!(cache.file(hash).is_none());
        assert!(cache.check(hash).is_some());
        assert!(cache.file(hash).is_some());
        // What a seal does not tell, whoever passes the bytes on sees.
        cache.distrust(hash);
        assert!(cache.file(hash).is_none() && !path.exists());
    }
}
