//! The **cache**: complete copies of content that the server has, named by it, and bounded by eviction.
//!
//! Confirmed content moves here from the spool by a rename, so what was just written stays readable without a
//! download. Nothing in the cache is flushed: what is from before the machine was last started may have lost its bytes,
//! and is checked against its hash before it is used.
//!
//! A file of the cache may be [lent](Cache::lend) to one inode, whose programs then use it in place of requests. It keeps
//! its name meanwhile, so a crash loses nothing, but nobody else is given it: a program may come that writes to it, and
//! then it [departs](Cache::depart) to the spool.

mod known;
mod layout;
mod seal;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet, hash_map};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::StatVfs;

use super::disk::{Act, Disk};
use super::holes::counted_of;
use super::shards::{make_dir, with_parent};
use super::spool::Spool;
use crate::hash::ContentHash;
use crate::id::{Ino, SpoolId};
use known::{Class, Key, KnownFiles};
use layout::{BOOT, FETCHING};
use seal::{is_sealed, seal};

pub use layout::{boots_in, foreign_in, name_of};

/// Room on the disk that the cache does not take, however much it may hold: this much, or this share of a small disk;
/// and this many files.
const LEAST_FREE_BYTES: u64 = 256 << 20;
const LEAST_FREE_SHARE: u64 = 16;
const LEAST_FREE_FILES: u64 = 128;
/// Up to this length nobody looks whether a file has holes.
const SMALL_BYTES: u64 = 256 << 10;
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
        (known.bytes(), self.limit)
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

    /// Whether the content is here, but for what must be [checked](Self::check). Counts as a use.
    pub fn holds(&self, hash: ContentHash) -> bool {
        !matches!(self.find(hash), Found::Nowhere)
    }

    /// Whether the content is here and has its hash. Reads all of it; what was altered is had no use of any more.
    pub fn verify(&self, hash: ContentHash) -> bool {
        let file = match self.find(hash) {
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
        let mut removed = false;
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
    /// [given back](Self::give_back).
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when somebody has it, [`io::ErrorKind::ResourceBusy`] when it is lent or has another
    /// name as well; the filesystem's.
    pub fn lend(&self, hash: ContentHash, to: Ino, alone: impl Fn(&File) -> bool) -> io::Result<Arc<File>> {
        let _naming = self.naming();
        let file = Arc::new(File::open(self.path(hash))?);
        let found = file.metadata()?;
        if !is_sealed(hash, &file) {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        // By another name a backup may have it.
        if found.nlink() != 1 {
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
        if !alone(&file) {
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
        if let Err(error) = self.disk.rename(&spool.path_of(id), &self.path(hash)) {
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

    /// Takes in a fetched file whose hash has been checked. It gets its name when it is [settled](Self::settle), or
    /// `at_once`.
    pub fn keep(&self, mut fetched: Fetching, hash: ContentHash, at_once: bool) {
        let size = fetched.file.metadata().map_or(0, |file| file.len());
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
        self.announce(hash, Place { path: spool.path_of(id), spool: Some(id), size })
    }

    /// Takes over a spool file that an earlier daemon left, and that has this content unless something became of it since:
    /// it is checked before its first use. Whether it went; what is here already needs no other.
    pub fn take_unchecked(&self, spool: &Spool, id: SpoolId, hash: ContentHash) -> bool {
        let (from, to) = (spool.path_of(id), self.path(hash));
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

    /// Removes the least recently used files over the limit, first those that are committed. Never the newest of these,
    /// which its reader is about to open.
    pub fn evict(&self) {
        while self.evict_one(|known| known.over(self.limit)) {}
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
        let mut removed = false;
        while lacking() && self.evict_one(KnownFiles::first) {
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

/// How much of a disk copies leave free, in bytes.
fn least_free(disk: &StatVfs) -> u64 {
    LEAST_FREE_BYTES.min(disk.f_blocks.saturating_mul(disk.f_frsize) / LEAST_FREE_SHARE)
}

/// Whether a disk has less than `bytes` free, or hardly room for another file.
fn is_lacking(disk: &StatVfs, bytes: u64) -> bool {
    let few_files = disk.f_files > 0 && disk.f_favail < LEAST_FREE_FILES;
    few_files || disk.f_bavail.saturating_mul(disk.f_frsize) < bytes
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
    path: Option<PathBuf>,
    /// Where the bytes go.
    pub file: Arc<File>,
}

impl Drop for Fetching {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = self.disk.remove(path);
        }
    }
}
