//! Listings of directories of commits, as the server told them: what a commit has in a directory never changes, so the
//! server need not be asked again (docs/FORMAT.md).
//!
//! Each is a file by itself, named by what it is a listing of, with a checksum over all of it. Nothing is flushed: one
//! that a power loss tore, or anything else altered, does not have its checksum, counts as absent, and goes.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::SystemTime;

use lru::LruCache;
use serde::{Deserialize, Serialize};

use super::disk::{Act, Disk};
use crate::hash::{ContentHash, wide_checksum};
use crate::path::RepoPath;
use crate::workspace::{CommitId, Entry, EntryKind, Listing, Object};

/// Room that all of them take at most: a million files or so, and beside a cache of gigabytes it is nothing.
const LIMIT_BYTES: u64 = 64 << 20;
/// More entries than this in one directory are listed again: so are few datasets, and it would put all others out.
const MOST_ENTRIES: usize = 200_000;
/// The longest one, and the most that waits in memory to be written.
const LONGEST_BYTES: usize = 16 << 20;
/// What a file takes of the disk is counted in these.
const DISK_BLOCK_BYTES: u64 = 4096;
/// The directory within the cache's.
const LISTINGS: &str = "listings";
/// The format of one.
const FORMAT: u32 = 1;
/// What an entry begins with.
const DIR: u8 = 0;
const XXH3_FILE: u8 = 1;
const SHA256_FILE: u8 = 2;

/// All that are kept.
pub struct Listings {
    disk: Disk,
    dir: PathBuf,
    /// Where they are until they are whole; emptied when a cache is opened.
    beginnings: PathBuf,
    limit: u64,
    known: Mutex<Known>,
    /// Set once all that earlier mounts left is known.
    learned: AtomicBool,
    waiting: Mutex<Waiting>,
    /// Locked by whoever writes those that wait.
    writing: Mutex<()>,
    begun: AtomicU64,
}

/// The name of one: XXH3-128 of commit, NUL and path.
type Key = u128;

struct Known {
    /// By what they take of the disk. Least recently used first out.
    files: LruCache<Key, u64>,
    used: u64,
}

impl Known {
    fn put(&mut self, key: Key, room: u64) {
        self.used += room;
        if let Some(before) = self.files.put(key, room) {
            self.used -= before;
        }
    }

    fn remove(&mut self, key: Key) {
        self.used -= self.files.pop(&key).unwrap_or(0);
    }
}

/// Those that are not written yet.
#[derive(Default)]
struct Waiting {
    files: VecDeque<(Key, Vec<u8>)>,
    bytes: usize,
}

/// The first line of one.
#[derive(Serialize, Deserialize)]
struct Header {
    oxenfs_listing: u32,
    commit: String,
    path: String,
    entries: usize,
}

impl Listings {
    /// Those in the cache at `cache`, which has room for `limit` bytes, with `beginnings` for what is not whole yet. Changes
    /// nothing on the disk.
    pub fn new(disk: &Disk, cache: &Path, beginnings: &Path, limit: u64) -> Self {
        Self {
            disk: disk.clone(),
            dir: cache.join(LISTINGS),
            beginnings: beginnings.to_owned(),
            limit: limit.min(LIMIT_BYTES),
            known: Mutex::new(Known { files: LruCache::unbounded(), used: 0 }),
            learned: AtomicBool::new(false),
            waiting: Mutex::default(),
            writing: Mutex::default(),
            begun: AtomicU64::new(0),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, key: Key) -> PathBuf {
        self.dir.join(name(key))
    }

    /// Learns what earlier mounts left. Until it has run, those are found and not removed.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn learn(&self) -> io::Result<()> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            entries => Some(entries?),
        };
        let mut found = Vec::new();
        for entry in entries.into_iter().flatten() {
            let entry = entry?;
            // What is not called like one is none of ours.
            let Some(key) = entry.file_name().to_str().and_then(parse_name) else { continue };
            // One that was removed meanwhile is not there any more.
            let Ok(file) = entry.metadata() else { continue };
            match file.is_file() {
                true => found.push((file.modified().ok(), key, room_of(file.len()))),
                false => self.clear(key),
            }
        }
        found.sort_by_key(|(used, ..)| std::cmp::Reverse(*used));
        let mut known = self.known();
        for (_, key, room) in found {
            // What came or was used meanwhile is newer than all of these.
            if !known.files.contains(&key) {
                known.put(key, room);
                known.files.demote(&key);
            }
        }
        drop(known);
        self.learned.store(true, Ordering::Release);
        self.keep_within();
        Ok(())
    }

    /// Whether a listing may be here, as far as that is known without a look at the disk.
    pub fn may_have(&self, commit: &CommitId, dir: &RepoPath) -> bool {
        !self.learned.load(Ordering::Acquire) || self.known().files.contains(&key(commit, dir))
    }

    /// A listing, if it is here and what it was when it came.
    pub fn get(&self, commit: &CommitId, dir: &RepoPath) -> Option<Listing> {
        if !self.may_have(commit, dir) {
            return None;
        }
        let key = key(commit, dir);
        let mut open = OpenOptions::new();
        let file = match open.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(self.path(key)) {
            Ok(file) => file,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    self.clear(key);
                }
                self.known().remove(key);
                return None;
            }
        };
        let Some((listing, bytes)) = read(&file, commit, dir) else {
            tracing::warn!(%commit, %dir, "a listing that was kept is damaged; the server is asked again");
            self.clear(key);
            self.known().remove(key);
            return None;
        };
        // Without it, it goes earlier.
        let _ = file.set_modified(SystemTime::now());
        self.known().put(key, room_of(bytes.len() as u64));
        Some(listing)
    }

    /// Has a listing wait to be [written](Self::write), if it is one to be kept. One without entries is not: so is that of
    /// a directory that is not there, and a wrong answer of a gateway's would be believed for ever.
    pub fn offer(&self, commit: &CommitId, dir: &RepoPath, listing: &Listing) {
        let count = listing.entries.len();
        if self.limit == 0 || count == 0 || count > MOST_ENTRIES || !listing.flawed.is_empty() {
            return;
        }
        if let Some(bytes) = written(commit, dir, listing) {
            self.take(key(commit, dir), bytes);
        }
    }

    /// The same for one that another mount has kept.
    pub fn offer_foreign(&self, commit: &CommitId, dir: &RepoPath, Foreign(bytes): Foreign) {
        self.take(key(commit, dir), bytes);
    }

    fn take(&self, key: Key, bytes: Vec<u8>) {
        let mut waiting = self.waiting();
        let is_kept = bytes.len() <= LONGEST_BYTES && room_of(bytes.len() as u64) <= self.limit;
        // Where the disk is so slow, the server may as well be asked again.
        if is_kept && waiting.bytes + bytes.len() <= LONGEST_BYTES {
            waiting.bytes += bytes.len();
            waiting.files.push_back((key, bytes));
        }
    }

    /// Whether any waits to be written.
    pub fn is_waiting(&self) -> bool {
        !self.waiting().files.is_empty()
    }

    /// Writes those that wait, as long as the disk `has_room` for copies. One that cannot be written is not kept. Returns
    /// at once where somebody is at it.
    pub fn write(&self, has_room: impl Fn() -> bool) {
        match self.writing.try_lock() {
            Err(TryLockError::WouldBlock) => {}
            Ok(_writing) => self.write_all(has_room),
            Err(TryLockError::Poisoned(_writing)) => self.write_all(has_room),
        }
    }

    /// The same, and waits for whoever is at it.
    pub fn write_out(&self, has_room: impl Fn() -> bool) {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.write_all(has_room);
    }

    fn write_all(&self, has_room: impl Fn() -> bool) {
        loop {
            let next = {
                let mut waiting = self.waiting();
                let next = waiting.files.pop_front();
                waiting.bytes -= next.as_ref().map_or(0, |(_, bytes)| bytes.len());
                next
            };
            let Some((key, bytes)) = next else { return };
            if !has_room() {
                continue;
            }
            if let Err(error) = self.keep(key, &bytes) {
                tracing::debug!(%error, "a listing is not kept; the server is asked again");
            }
        }
    }

    fn keep(&self, key: Key, bytes: &[u8]) -> io::Result<()> {
        self.disk.make_dirs(&self.dir)?;
        let begun = self.beginnings.join(format!("listing-{}", self.begun.fetch_add(1, Ordering::Relaxed)));
        let mut open = OpenOptions::new();
        open.write(true).create(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let file = self.disk.act(Act::Create(&begun), || open.open(&begun))?;
        let path = self.path(key);
        let named = self.disk.write_at(&file, bytes, 0).and_then(|()| match self.disk.rename(&begun, &path) {
            // A directory is in its place.
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
                self.clear(key);
                self.disk.rename(&begun, &path)
            }
            done => done,
        });
        if named.is_err() {
            let _ = self.disk.remove(&begun);
        }
        named?;
        self.known().put(key, room_of(bytes.len() as u64));
        self.keep_within();
        Ok(())
    }

    /// Removes what is in the place of a listing, but a directory that has anything in it.
    fn clear(&self, key: Key) {
        let path = self.path(key);
        let removed = match fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir()) {
            true => self.disk.remove_dir(&path),
            false => self.disk.remove(&path),
        };
        if let Err(error) = removed
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::debug!(%error, path = %path.display(), "what is in the place of a listing stays");
        }
    }

    fn keep_within(&self) {
        while self.known().used > self.limit && self.make_way() {}
    }

    /// Removes the one that was least recently used; whether there was any.
    pub fn make_way(&self) -> bool {
        let key = {
            let mut known = self.known();
            let Some((key, room)) = known.files.pop_lru() else { return false };
            known.used -= room;
            key
        };
        self.clear(key);
        true
    }
}

/// A listing that another mount has kept, as it is on the disk.
pub struct Foreign(Vec<u8>);

impl Foreign {
    /// Where a cache keeps the listing of a directory of a commit.
    pub fn place(cache: &Path, commit: &CommitId, dir: &RepoPath) -> PathBuf {
        cache.join(LISTINGS).join(name(key(commit, dir)))
    }

    /// The listing in such a file, if it is whole. Changes nothing.
    pub fn open(file: &File, commit: &CommitId, dir: &RepoPath) -> Option<(Listing, Self)> {
        read(file, commit, dir).map(|(listing, bytes)| (listing, Self(bytes)))
    }
}

fn key(commit: &CommitId, dir: &RepoPath) -> Key {
    let text = [commit.0.as_bytes(), &[0], dir.as_str().as_bytes()].concat();
    wide_checksum(&text)
}

fn name(key: Key) -> String {
    format!("{key:032x}")
}

fn parse_name(text: &str) -> Option<Key> {
    u128::from_str_radix(text, 16).ok().filter(|key| name(*key) == text)
}

/// What a file of so many bytes takes of a disk.
fn room_of(bytes: u64) -> u64 {
    bytes.next_multiple_of(DISK_BLOCK_BYTES)
}

fn read(mut file: &File, commit: &CommitId, dir: &RepoPath) -> Option<(Listing, Vec<u8>)> {
    let found = file.metadata().ok()?;
    if !found.is_file() || found.size() > LONGEST_BYTES as u64 {
        return None;
    }
    let mut bytes = Vec::with_capacity(found.size() as usize);
    file.by_ref().take(LONGEST_BYTES as u64 + 1).read_to_end(&mut bytes).ok()?;
    Some((parse(&bytes, commit, dir)?, bytes))
}

/// A listing as it is on the disk; `None` where a name is too long for that.
fn written(commit: &CommitId, dir: &RepoPath, listing: &Listing) -> Option<Vec<u8>> {
    let entries = listing.entries.len();
    let header =
        Header { oxenfs_listing: FORMAT, commit: commit.0.to_string(), path: dir.as_str().to_owned(), entries };
    let mut bytes = serde_json::to_vec(&header).ok()?;
    bytes.push(b'\n');
    for Entry { name, kind, modified_secs } in &listing.entries {
        bytes.push(match kind {
            EntryKind::Dir => DIR,
            EntryKind::File(Object { hash: ContentHash::Xxh3(_), .. }) => XXH3_FILE,
            EntryKind::File(Object { hash: ContentHash::Sha256(_), .. }) => SHA256_FILE,
        });
        bytes.extend_from_slice(&u16::try_from(name.len()).ok()?.to_le_bytes());
        bytes.extend_from_slice(name.as_bytes());
        bytes.extend_from_slice(&modified_secs.to_le_bytes());
        if let EntryKind::File(Object { hash, size }) = kind {
            bytes.extend_from_slice(&size.to_le_bytes());
            match hash {
                ContentHash::Xxh3(hash) => bytes.extend_from_slice(hash),
                ContentHash::Sha256(hash) => bytes.extend_from_slice(hash),
            }
        }
    }
    let sum = wide_checksum(&bytes);
    bytes.extend_from_slice(&sum.to_be_bytes());
    Some(bytes)
}

/// The listing in these bytes, if they are whole and of this directory.
fn parse(bytes: &[u8], commit: &CommitId, dir: &RepoPath) -> Option<Listing> {
    let (content, sum) = bytes.split_last_chunk::<16>()?;
    if wide_checksum(content) != u128::from_be_bytes(*sum) {
        return None;
    }
    let end = content.iter().position(|byte| *byte == b'\n')?;
    let header: Header = serde_json::from_slice(content.get(..end)?).ok()?;
    let is_it = header.oxenfs_listing == FORMAT && *header.commit == *commit.0 && header.path == dir.as_str();
    if !is_it || header.entries > MOST_ENTRIES {
        return None;
    }
    let mut rest = content.get(end + 1..)?;
    let entries = (0..header.entries).map(|_| entry(&mut rest)).collect::<Option<Vec<_>>>()?;
    rest.is_empty().then_some(Listing { entries, flawed: Vec::new() })
}

/// Takes an entry from the front.
fn entry(rest: &mut &[u8]) -> Option<Entry> {
    let [kind] = chunk(rest)?;
    let length = usize::from(u16::from_le_bytes(chunk(rest)?));
    let (name, behind) = rest.split_at_checked(length)?;
    let name = std::str::from_utf8(name).ok()?.to_owned();
    *rest = behind;
    let modified_secs = i64::from_le_bytes(chunk(rest)?);
    if kind == DIR {
        return Some(Entry { name, kind: EntryKind::Dir, modified_secs });
    }
    let size = u64::from_le_bytes(chunk(rest)?);
    let hash = match kind {
        XXH3_FILE => ContentHash::Xxh3(chunk(rest)?),
        SHA256_FILE => ContentHash::Sha256(chunk(rest)?),
        _ => return None,
    };
    Some(Entry { name, kind: EntryKind::File(Object { hash, size }), modified_secs })
}

fn chunk<const LENGTH: usize>(rest: &mut &[u8]) -> Option<[u8; LENGTH]> {
    let (chunk, behind) = rest.split_first_chunk()?;
    *rest = behind;
    Some(*chunk)
}

#[cfg(test)]
mod tests;
