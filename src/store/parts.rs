//! Large files of which some blocks are here: for each a sparse file of the content's whole length, and beside it a map
//! that has a checksum for each block that has come (docs/FORMAT.md).
//!
//! A block counts as here when its bytes have the checksum that the map has for it, which is looked at whenever it is
//! read from the disk: a file that was damaged, or lost its pages with the machine's power, or is older or newer than
//! the map, costs another request and is no wrong byte. So nothing is flushed, and neither of the two has to wait for the
//! other. Whether all of it is what it should be only the hash of the whole tells.
//!
//! Blocks that were read last are in memory too, and there alone where the disk has no room.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use lru::LruCache;
use rustix::fs::{FallocateFlags, fallocate};
use serde::{Deserialize, Serialize};

use super::disk::{Act, Disk, is_full};
use crate::count;
use crate::hash::{ContentHash, HashKind, checksum};

/// What is asked for and checked at a time. The last one of a file is shorter.
pub const BLOCK_BYTES: u64 = 128 << 10;
/// Blocks in memory, of all files: 32 MiB.
const REMEMBERED: usize = 256;
/// A map is written anew when so many blocks are not in it: 64 MiB.
const UNSAVED: usize = 512;
/// Blocks that make way at a time: 4 MiB.
const DROPPED_AT_ONCE: usize = 32;
/// The directory within the cache's.
const PARTS: &str = "parts";
/// What the name of a map ends with, and that of one that is being written.
const MAP: &str = "map";
const NEW: &str = "new";
/// The format of a map.
const FORMAT: u32 = 1;
/// Length of an entry of a map: the number of a block, and its checksum.
const ENTRY_BYTES: usize = 4 + 8;
/// More than all of a map that is no entry takes.
const HEADER_MOST_BYTES: u64 = 4096;

/// All files of which a part is here.
pub struct Parts {
    disk: Disk,
    dir: PathBuf,
    /// Least recently used first out.
    files: Mutex<LruCache<ContentHash, Entry>>,
    shared: Arc<Shared>,
    /// Whether the filesystem has holes.
    has_holes: OnceLock<bool>,
}

/// What all of them share.
struct Shared {
    /// Bytes of all blocks on the disk.
    used: AtomicU64,
    /// Blocks that were not what they were.
    damaged: AtomicU64,
    memory: Mutex<LruCache<(ContentHash, u32), Bytes>>,
}

impl Shared {
    fn memory(&self) -> MutexGuard<'_, LruCache<(ContentHash, u32), Bytes>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Entry {
    /// Somebody uses it, or did just now.
    Open(Arc<Sparse>),
    /// What it takes of the disk, in bytes.
    Closed(u64),
}

/// What the hash of a whole file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whole {
    /// It is what it should be.
    Right,
    /// Blocks were not any more what had come, and are gone.
    Damaged,
    /// What came is something else.
    Wrong,
}

impl Parts {
    /// Those in the cache at `cache`. Changes nothing on the disk.
    pub fn new(disk: &Disk, cache: &Path) -> Self {
        // A capacity of none would be a bug of this file's.
        let remembered = std::num::NonZeroUsize::new(REMEMBERED).unwrap_or(std::num::NonZeroUsize::MIN);
        let memory = Mutex::new(LruCache::new(remembered));
        Self {
            disk: disk.clone(),
            dir: cache.join(PARTS),
            files: Mutex::new(LruCache::unbounded()),
            shared: Arc::new(Shared { used: AtomicU64::new(0), damaged: AtomicU64::new(0), memory }),
            has_holes: OnceLock::new(),
        }
    }

    fn files(&self) -> MutexGuard<'_, LruCache<ContentHash, Entry>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, hash: ContentHash) -> PathBuf {
        self.dir.join(hash.to_string())
    }

    /// Learns what earlier mounts left, and removes what is of no use.
    ///
    /// # Errors
    /// When it cannot be listed.
    pub fn learn(&self) -> io::Result<()> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        let (mut found, mut useless) = (Vec::new(), Vec::new());
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let hash = name.split('.').next().unwrap_or_default().parse::<ContentHash>().ok();
            // Who uses it sees to it.
            if hash.is_some_and(|hash| self.files().contains(&hash)) {
                continue;
            }
            let is_map = path.extension().is_some_and(|extension| extension == MAP);
            match hash.filter(|hash| name == hash.to_string()) {
                Some(hash) if map_of(&path).exists() => {
                    let metadata = fs::symlink_metadata(&path)?;
                    found.push((metadata.modified().ok(), hash, room_of(&metadata)));
                }
                None if is_map && path.with_extension("").exists() => {}
                _ => useless.push(path),
            }
        }
        found.sort_by_key(|(modified, ..)| std::cmp::Reverse(*modified));
        {
            let mut files = self.files();
            for (_, hash, room) in found {
                if !files.contains(&hash) {
                    files.put(hash, Entry::Closed(room));
                    files.demote(&hash);
                    self.shared.used.fetch_add(room, Ordering::Relaxed);
                }
            }
        }
        for path in useless {
            tracing::debug!(path = %path.display(), "a part of a file without its map, or the other way round, is removed");
            if let Err(error) = self.disk.remove(&path) {
                tracing::warn!(%error, path = %path.display(), "it could not be removed");
            }
        }
        Ok(())
    }

    /// Whether parts of files can be kept here: where there are no holes, a file of which a block is here takes as much
    /// room as all of it. A full disk does not tell: what comes is in memory alone then.
    fn has_holes(&self) -> bool {
        if let Some(has) = self.has_holes.get() {
            return *has;
        }
        let probe = self.dir.join(NEW);
        let tried = self.disk.make_dirs(&self.dir).and_then(|()| {
            let mut open = OpenOptions::new();
            open.read(true).write(true).create(true).truncate(true).mode(0o600);
            let file = self.disk.act(Act::Create(&probe), || open.open(&probe))?;
            self.disk.resize(&file, BLOCK_BYTES)?;
            self.disk.write_at(&file, &[1], BLOCK_BYTES - 1)?;
            Ok(room_of(&file.metadata()?) < BLOCK_BYTES)
        });
        let _ = self.disk.remove(&probe);
        let has = match tried {
            Ok(true) => true,
            Ok(false) => {
                tracing::info!("files are fetched whole: the cache's filesystem has no holes");
                false
            }
            Err(error) if is_full(&error) => {
                return true;
            }
            Err(error) => {
                tracing::warn!(%error, "files are fetched whole: no part of one can be kept");
                false
            }
        };
        *self.has_holes.get_or_init(|| has)
    }

    /// What is here of a file, of which there may be nothing yet. `None`: it is to be had whole or not at all.
    pub fn get(&self, hash: ContentHash, size: u64) -> Option<Arc<Sparse>> {
        let fits = size > 0 && size.div_ceil(BLOCK_BYTES) < u64::from(u32::MAX);
        if !fits || !self.has_holes() {
            return None;
        }
        let open = |files: &mut LruCache<ContentHash, Entry>| match files.get(&hash) {
            Some(Entry::Open(sparse)) => Some(sparse.clone()),
            _ => None,
        };
        let of_this_size = |sparse: Arc<Sparse>| Some(sparse).filter(|sparse| sparse.size == size);
        if let Some(sparse) = open(&mut self.files()) {
            return of_this_size(sparse);
        }
        let sparse = Arc::new(Sparse::open(&self.disk, self.path(hash), hash, size, self.shared.clone()));
        let mut files = self.files();
        // Somebody else may have opened it meanwhile.
        if let Some(sparse) = open(&mut files) {
            drop(files);
            return of_this_size(sparse);
        }
        self.shared.used.fetch_add(sparse.bytes(), Ordering::Relaxed);
        sparse.state().counts = true;
        if let Some(Entry::Closed(room)) = files.put(hash, Entry::Open(sparse.clone())) {
            count::take_shared(&self.shared.used, room, "cache.bytes");
        }
        Some(sparse)
    }

    /// How much of a file is here, in bytes.
    pub fn bytes_of(&self, hash: ContentHash) -> u64 {
        match self.files().peek(&hash) {
            Some(Entry::Open(sparse)) => sparse.bytes(),
            Some(Entry::Closed(room)) => *room,
            None => 0,
        }
    }

    /// Bytes of all blocks on the disk.
    pub fn used(&self) -> u64 {
        self.shared.used.load(Ordering::Relaxed)
    }

    /// How many blocks were not any more what had come, since this began.
    pub fn damaged(&self) -> u64 {
        self.shared.damaged.load(Ordering::Relaxed)
    }

    /// Writes the maps of what came, and closes what nobody uses. To be called now and then.
    pub fn tidy(&self) {
        let open: Vec<(ContentHash, Arc<Sparse>)> = {
            let files = self.files();
            let open = |(hash, entry): (&ContentHash, &Entry)| match entry {
                Entry::Open(sparse) => Some((*hash, sparse.clone())),
                Entry::Closed(_) => None,
            };
            files.iter().filter_map(open).collect()
        };
        for (hash, sparse) in open {
            if let Err(error) = sparse.save(&self.disk) {
                tracing::debug!(%error, %hash, "what came of a file is fetched again after a restart");
                continue;
            }
            let mut files = self.files();
            // The one here, and that in the list.
            if Arc::strong_count(&sparse) == 2
                && let Some(entry) = files.peek_mut(&hash)
            {
                match sparse.bytes() {
                    0 => _ = files.pop(&hash),
                    bytes => *entry = Entry::Closed(bytes),
                }
            }
        }
    }

    /// What is here of a file is of no use.
    pub fn remove(&self, hash: ContentHash) -> bool {
        let removed = self.files().pop(&hash);
        match removed {
            Some(Entry::Open(sparse)) => sparse.forget_all(),
            Some(Entry::Closed(room)) => count::take_shared(&self.shared.used, room, "cache.bytes"),
            None => return false,
        }
        let path = self.path(hash);
        for path in [map_of(&path), path] {
            if let Err(error) = self.disk.remove(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(%error, %hash, "a part of a file could not be removed");
            }
        }
        true
    }

    /// All of a file is here, and is what it should be: `take` gives the file another name. It is none of these any more.
    ///
    /// # Errors
    /// `take`'s.
    pub fn hand_over(&self, hash: ContentHash, take: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
        let path = self.path(hash);
        let taken = take(&path);
        // What could not be named is fetched again.
        self.remove(hash);
        taken
    }

    /// Removes a part that nobody uses, the least recently used first. Else, of one that somebody does `even` use, the
    /// blocks that came first. Whether there was any.
    pub fn make_way(&self, even: bool) -> bool {
        let (mut unused, mut used) = (None, None);
        for (hash, entry) in self.files().iter().rev() {
            match entry {
                Entry::Open(sparse) if Arc::strong_count(sparse) > 1 => {
                    if used.is_none() && sparse.may_make_way() {
                        used = Some(sparse.clone());
                    }
                }
                _ => {
                    unused = Some(*hash);
                    break;
                }
            }
        }
        match (unused, used) {
            (Some(hash), _) => self.remove(hash),
            (None, Some(sparse)) if even => sparse.drop_oldest(&self.disk) > 0,
            _ => false,
        }
    }
}

/// What a file takes of the disk, in bytes.
fn room_of(file: &fs::Metadata) -> u64 {
    file.blocks().saturating_mul(512)
}

fn map_of(path: &Path) -> PathBuf {
    path.with_extension(MAP)
}

/// What is here of one file.
pub struct Sparse {
    disk: Disk,
    path: PathBuf,
    hash: ContentHash,
    size: u64,
    /// Made with the first block.
    file: Mutex<Option<Arc<File>>>,
    state: Mutex<State>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct State {
    /// The checksum of each block that is on the disk.
    sums: HashMap<u32, u64>,
    /// Those blocks as they came, and some that are gone since.
    order: VecDeque<u32>,
    /// How many are not in the map.
    unsaved: usize,
    /// Whether its bytes are among those of all.
    counts: bool,
    /// Somebody wants all of it: none makes way.
    pins: u32,
    /// Nothing comes any more: it has another name, or was removed.
    gone: bool,
}

impl State {
    fn is_pinned(&self) -> bool {
        self.pins > 0 || self.gone
    }
}

/// That no block of a file makes way, as long as this lives.
pub struct Pin(Arc<Sparse>);

impl Drop for Pin {
    fn drop(&mut self) {
        self.0.state().pins -= 1;
    }
}

/// The first line of a map.
#[derive(Serialize, Deserialize)]
struct Header {
    oxenfs_blocks: u32,
    hash: String,
    size: u64,
    block: u64,
    blocks: u64,
}

impl Sparse {
    fn open(disk: &Disk, path: PathBuf, hash: ContentHash, size: u64, shared: Arc<Shared>) -> Self {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NOFOLLOW);
        let file = options.open(&path).ok().filter(|file| file.metadata().is_ok_and(|found| found.len() == size));
        let sums = file.as_ref().and_then(|_| {
            let bytes = fs::read(map_of(&path)).ok()?;
            let sums = parse(&bytes, hash, size);
            if sums.is_none() {
                tracing::warn!(%hash, "the map of a file's blocks is damaged; they are fetched again");
            }
            sums
        });
        let file = file.filter(|_| sums.is_some()).map(Arc::new);
        let sums: HashMap<u32, u64> = sums.unwrap_or_default().into_iter().collect();
        let mut order: Vec<u32> = sums.keys().copied().collect();
        order.sort_unstable();
        let state = State { sums, order: order.into(), ..State::default() };
        Self { disk: disk.clone(), path, hash, size, file: Mutex::new(file), state: Mutex::new(state), shared }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file's length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How many blocks it has.
    pub fn blocks(&self) -> u32 {
        self.size.div_ceil(BLOCK_BYTES) as u32
    }

    /// The bytes of some blocks.
    pub fn range(&self, blocks: &Range<u32>) -> Range<u64> {
        let at = |block: u32| (u64::from(block) * BLOCK_BYTES).min(self.size);
        at(blocks.start)..at(blocks.end)
    }

    /// The blocks that some bytes are in.
    pub fn blocks_of(&self, bytes: &Range<u64>) -> Range<u32> {
        let end = bytes.end.min(self.size);
        let start = bytes.start.min(end);
        let last = if start == end { start / BLOCK_BYTES } else { end.div_ceil(BLOCK_BYTES) };
        (start / BLOCK_BYTES) as u32..last as u32
    }

    fn length(&self, block: u32) -> u64 {
        let range = self.range(&(block..block + 1));
        range.end - range.start
    }

    /// Bytes of what is on the disk.
    pub fn bytes(&self) -> u64 {
        let state = self.state();
        self.bytes_in(&state)
    }

    fn bytes_in(&self, state: &State) -> u64 {
        let last = self.blocks() - 1;
        let all = state.sums.len() as u64 * BLOCK_BYTES;
        let short = if state.sums.contains_key(&last) { BLOCK_BYTES - self.length(last) } else { 0 };
        all - short
    }

    /// Whether nothing that comes is kept on the disk any more: it was removed, or has another name.
    pub fn is_gone(&self) -> bool {
        self.state().gone
    }

    /// Whether all of it is on the disk.
    pub fn is_complete(&self) -> bool {
        self.state().sums.len() == self.blocks() as usize
    }

    /// None of its blocks makes way as long as what is returned lives.
    pub fn pin(self: &Arc<Self>) -> Pin {
        self.state().pins += 1;
        Pin(self.clone())
    }

    /// Those of some blocks that are neither on the disk nor in memory.
    pub fn absent(&self, blocks: Range<u32>) -> Vec<u32> {
        let (state, memory) = (self.state(), self.shared.memory());
        blocks.filter(|block| !state.sums.contains_key(block) && !memory.contains(&(self.hash, *block))).collect()
    }

    /// Those of some blocks that are not on the disk.
    pub fn absent_on_disk(&self, blocks: Range<u32>) -> Vec<u32> {
        let state = self.state();
        blocks.filter(|block| !state.sums.contains_key(block)).collect()
    }

    /// Bytes from `offset` on; `None` when one of the blocks that they are in is not here, or is not any more what came.
    pub fn read(&self, offset: u64, length: usize) -> Option<Vec<u8>> {
        let end = offset.saturating_add(length as u64).min(self.size);
        let mut bytes = Vec::with_capacity(end.saturating_sub(offset) as usize);
        for block in self.blocks_of(&(offset..end)) {
            let content = self.block(block)?;
            let at = self.range(&(block..block + 1));
            let from = offset.saturating_sub(at.start) as usize;
            let to = (end.min(at.end) - at.start) as usize;
            bytes.extend_from_slice(content.get(from..to)?);
        }
        Some(bytes)
    }

    fn block(&self, block: u32) -> Option<Bytes> {
        if let Some(bytes) = self.shared.memory().get(&(self.hash, block)) {
            return Some(bytes.clone());
        }
        let sum = self.state().sums.get(&block).copied()?;
        let bytes = self.load(block).filter(|bytes| checksum(bytes) == sum);
        let Some(bytes) = bytes else {
            self.forget(block, sum);
            return None;
        };
        let bytes = Bytes::from(bytes);
        self.shared.memory().put((self.hash, block), bytes.clone());
        Some(bytes)
    }

    fn load(&self, block: u32) -> Option<Vec<u8>> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let range = self.range(&(block..block + 1));
        let mut bytes = vec![0; (range.end - range.start) as usize];
        file.read_exact_at(&mut bytes, range.start).ok()?;
        Some(bytes)
    }

    /// What is on the disk is not what came, unless it came again meanwhile.
    fn forget(&self, block: u32, sum: u64) {
        let mut state = self.state();
        if state.sums.get(&block) == Some(&sum) {
            let before = self.bytes_in(&state);
            state.sums.remove(&block);
            state.unsaved += 1;
            self.recount(&state, before);
            self.shared.damaged.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(hash = %self.hash, block, "a block of a file is not what it was; it is fetched again");
        }
    }

    fn recount(&self, state: &State, before: u64) {
        if state.counts {
            count::change_shared(&self.shared.used, before, self.bytes_in(state), "cache.bytes");
        }
    }

    /// Takes in whole blocks from `first` on, on the disk if they are to be kept, and in memory.
    ///
    /// # Errors
    /// The filesystem's: they are in memory alone then.
    pub fn put(&self, first: u32, bytes: &Bytes, keep: bool) -> io::Result<()> {
        let pieces = || {
            (first..).zip((0..bytes.len()).step_by(BLOCK_BYTES as usize)).map(|(block, at)| {
                let end = bytes.len().min(at + BLOCK_BYTES as usize);
                (block, bytes.slice(at..end))
            })
        };
        {
            let mut memory = self.shared.memory();
            for (block, piece) in pieces() {
                // A copy: the whole answer would stay in memory as long as a piece of it does.
                memory.put((self.hash, block), Bytes::copy_from_slice(&piece));
            }
        }
        if !keep || self.state().gone {
            return Ok(());
        }
        let sums: Vec<(u32, u64)> = pieces().map(|(block, piece)| (block, checksum(&piece))).collect();
        let file = self.file_to_write()?;
        self.disk.write_at(&file, bytes, self.range(&(first..first + 1)).start)?;
        let mut state = self.state();
        if state.gone {
            return Ok(());
        }
        let before = self.bytes_in(&state);
        for (block, sum) in sums {
            if state.sums.insert(block, sum).is_none() {
                state.order.push_back(block);
            }
            state.unsaved += 1;
        }
        self.recount(&state, before);
        let save = state.unsaved >= UNSAVED;
        drop(state);
        if save { self.save(&self.disk) } else { Ok(()) }
    }

    fn file_to_write(&self) -> io::Result<Arc<File>> {
        let mut here = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &*here {
            return Ok(file.clone());
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        // A map that was left is of another file.
        match self.disk.remove(&map_of(&self.path)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = Arc::new(self.disk.act(Act::Create(&self.path), || options.open(&self.path))?);
        self.disk.resize(&file, self.size)?;
        *here = Some(file.clone());
        Ok(file)
    }

    /// Writes the map, if it lacks anything.
    fn save(&self, disk: &Disk) -> io::Result<()> {
        let (sums, unsaved) = {
            let state = self.state();
            if state.unsaved == 0 || state.gone {
                return Ok(());
            }
            (state.sums.clone(), state.unsaved)
        };
        let new = self.path.with_extension(NEW);
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let file = disk.act(Act::Create(&new), || options.open(&new))?;
        disk.write_at(&file, &written(self.hash, self.size, sums)?, 0)?;
        disk.rename(&new, &map_of(&self.path))?;
        let mut state = self.state();
        state.unsaved = state.unsaved.saturating_sub(unsaved);
        if state.gone {
            drop(state);
            let _ = disk.remove(&map_of(&self.path));
        }
        Ok(())
    }

    fn may_make_way(&self) -> bool {
        let state = self.state();
        !state.is_pinned() && !state.sums.is_empty()
    }

    /// Removes the blocks that came first; returns how many bytes.
    fn drop_oldest(&self, disk: &Disk) -> u64 {
        let mut dropped = Vec::new();
        let freed = {
            let mut state = self.state();
            if state.is_pinned() {
                return 0;
            }
            let before = self.bytes_in(&state);
            while dropped.len() < DROPPED_AT_ONCE
                && let Some(block) = state.order.pop_front()
            {
                if state.sums.remove(&block).is_some() {
                    dropped.push(block);
                    state.unsaved += 1;
                }
            }
            self.recount(&state, before);
            before - self.bytes_in(&state)
        };
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(file) = file else { return freed };
        for block in dropped {
            let range = self.range(&(block..block + 1));
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let punched =
                disk.act(Act::Write(&file), || Ok(fallocate(&file, punch, range.start, range.end - range.start)?));
            if let Err(error) = punched {
                tracing::debug!(%error, "a block keeps its room until its file goes");
            }
        }
        freed
    }

    fn forget_all(&self) {
        let mut state = self.state();
        let before = self.bytes_in(&state);
        state.sums.clear();
        state.order.clear();
        state.gone = true;
        self.recount(&state, before);
        drop(state);
        let mut memory = self.shared.memory();
        let ours: Vec<(ContentHash, u32)> =
            memory.iter().map(|(key, _)| *key).filter(|(hash, _)| *hash == self.hash).collect();
        for key in ours {
            memory.pop(&key);
        }
    }

    /// Compares all of it, which must be on the disk, with its hash. Reads it.
    ///
    /// # Errors
    /// The filesystem's.
    pub fn check(&self) -> io::Result<Whole> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let file = file.ok_or(io::ErrorKind::NotFound)?;
        let (found, length) = ContentHash::of_file(self.hash.kind(), &file, || true)?;
        if found == self.hash && length == self.size {
            return Ok(Whole::Right);
        }
        let sums: Vec<(u32, u64)> = self.state().sums.iter().map(|(block, sum)| (*block, *sum)).collect();
        let mut damaged = false;
        for (block, sum) in sums {
            if self.load(block).is_none_or(|bytes| checksum(&bytes) != sum) {
                self.forget(block, sum);
                damaged = true;
            }
        }
        Ok(if damaged { Whole::Damaged } else { Whole::Wrong })
    }
}

/// What another mount has of a file, of which its map tells: it may be older than the file, or of a daemon that was killed,
/// so that a block counts when it has its checksum. Changes nothing.
#[derive(Clone)]
pub struct Foreign {
    data: Arc<File>,
    /// By the blocks' numbers.
    sums: Arc<[(u32, u64)]>,
    size: u64,
    /// What tells its map from the next one.
    map: (u64, u64, i64, i64),
}

impl Foreign {
    /// Where a cache keeps what is here of a file, and its map.
    pub fn places(cache: &Path, hash: ContentHash) -> (PathBuf, PathBuf) {
        let data = cache.join(PARTS).join(hash.to_string());
        let map = map_of(&data);
        (data, map)
    }

    /// What its map tells of `data`; `None` when that is damaged, or of another file.
    pub fn open(data: File, map: File, hash: ContentHash, size: u64) -> Option<Self> {
        let found = map.metadata().ok()?;
        let mut bytes = Vec::new();
        // It cannot be longer than one of all blocks.
        let longest = HEADER_MOST_BYTES + size.div_ceil(BLOCK_BYTES) * ENTRY_BYTES as u64;
        (&map).take(longest).read_to_end(&mut bytes).ok()?;
        let mut sums = parse(&bytes, hash, size)?;
        sums.sort_unstable();
        Some(Self { data: Arc::new(data), sums: sums.into(), size, map: version_of(&found) })
    }

    /// Whether this is what that map tells.
    pub fn is_by(&self, map: &File) -> bool {
        map.metadata().is_ok_and(|found| version_of(&found) == self.map)
    }

    /// A block, if it is there and what had come.
    pub fn block(&self, block: u32) -> Option<Vec<u8>> {
        let known = self.sums.binary_search_by_key(&block, |(block, _)| *block).ok()?;
        let (_, sum) = self.sums.get(known)?;
        let at = u64::from(block) * BLOCK_BYTES;
        let mut bytes = vec![0; self.size.checked_sub(at)?.min(BLOCK_BYTES) as usize];
        self.data.read_exact_at(&mut bytes, at).ok()?;
        (checksum(&bytes) == *sum).then_some(bytes)
    }
}

fn version_of(file: &fs::Metadata) -> (u64, u64, i64, i64) {
    (file.dev(), file.ino(), file.ctime(), file.ctime_nsec())
}

/// A map as it is on the disk.
fn written(hash: ContentHash, size: u64, sums: HashMap<u32, u64>) -> io::Result<Vec<u8>> {
    let blocks = sums.len() as u64;
    let header = Header { oxenfs_blocks: FORMAT, hash: hash.to_string(), size, block: BLOCK_BYTES, blocks };
    let mut bytes = serde_json::to_vec(&header)?;
    bytes.push(b'\n');
    let mut sums: Vec<(u32, u64)> = sums.into_iter().collect();
    sums.sort_unstable();
    for (block, sum) in sums {
        bytes.extend_from_slice(&block.to_le_bytes());
        bytes.extend_from_slice(&sum.to_le_bytes());
    }
    let seal = ContentHash::of(HashKind::Xxh3, &bytes);
    let ContentHash::Xxh3(seal) = seal else { return Err(io::ErrorKind::Other.into()) };
    bytes.extend_from_slice(&seal);
    Ok(bytes)
}

/// The blocks of a map, if it is whole and one of this file.
fn parse(bytes: &[u8], hash: ContentHash, size: u64) -> Option<Vec<(u32, u64)>> {
    let (content, seal) = bytes.split_last_chunk::<16>()?;
    if ContentHash::of(HashKind::Xxh3, content) != ContentHash::Xxh3(*seal) {
        return None;
    }
    let end = content.iter().position(|byte| *byte == b'\n')?;
    let header: Header = serde_json::from_slice(&content[..end]).ok()?;
    let entries = content[end + 1..].chunks_exact(ENTRY_BYTES);
    let is_ours = header.oxenfs_blocks == FORMAT
        && header.hash.parse() == Ok(hash)
        && (header.size, header.block) == (size, BLOCK_BYTES)
        && entries.remainder().is_empty()
        && entries.len() as u64 == header.blocks;
    if !is_ours {
        return None;
    }
    let entry = |entry: &[u8]| {
        let (block, sum) = entry.split_first_chunk::<4>()?;
        let block = u32::from_le_bytes(*block);
        let is_there = u64::from(block) * BLOCK_BYTES < size;
        is_there.then_some((block, u64::from_le_bytes(sum.try_into().ok()?)))
    };
    entries.map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 5 * BLOCK_BYTES + 100;

    fn content() -> Vec<u8> {
        (0..SIZE).map(|at| ((at * 2_654_435_761) >> 13) as u8).collect()
    }

    fn parts(dir: &Path) -> (Parts, ContentHash) {
        (Parts::new(&Disk::default(), dir), ContentHash::of(HashKind::Xxh3, &content()))
    }

    fn put(sparse: &Sparse, blocks: Range<u32>) {
        let range = sparse.range(&blocks);
        let bytes = Bytes::copy_from_slice(&content()[range.start as usize..range.end as usize]);
        sparse.put(blocks.start, &bytes, true).unwrap();
    }

    #[test]
    fn blocks_are_there_after_a_restart_and_the_others_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let (first, hash) = parts(dir.path());
        let sparse = first.get(hash, SIZE).unwrap();
        assert_eq!(sparse.absent(0..6), [0, 1, 2, 3, 4, 5]);
        put(&sparse, 1..3);
        put(&sparse, 5..6);
        assert_eq!(first.used(), 2 * BLOCK_BYTES + 100);
        let read = |sparse: &Sparse, at: u64, length: usize| sparse.read(at, length);
        assert_eq!(read(&sparse, BLOCK_BYTES + 7, 200_000).unwrap(), content()[BLOCK_BYTES as usize + 7..][..200_000]);
        assert_eq!(read(&sparse, SIZE - 50, 1000).unwrap(), content()[SIZE as usize - 50..]);
        assert!(read(&sparse, BLOCK_BYTES - 1, 2).is_none());
        drop(sparse);
        first.tidy();
        let (second, _) = parts(dir.path());
        second.learn().unwrap();
        assert!(second.used() > 2 * BLOCK_BYTES && second.bytes_of(hash) == second.used());
        let sparse = second.get(hash, SIZE).unwrap();
        assert_eq!((sparse.absent(0..6), second.used()), (vec![0, 3, 4], 2 * BLOCK_BYTES + 100));
        assert_eq!(read(&sparse, 2 * BLOCK_BYTES, 10).unwrap(), content()[2 * BLOCK_BYTES as usize..][..10]);
        assert!(second.get(hash, SIZE + 1).is_none(), "of another length it is another file");
        put(&sparse, 3..5);
        put(&sparse, 0..1);
        assert!(sparse.is_complete() && sparse.check().unwrap() == Whole::Right);
        second.hand_over(hash, |path| fs::rename(path, dir.path().join("whole"))).unwrap();
        assert_eq!((second.used(), fs::read(dir.path().join("whole")).unwrap()), (0, content()));
        assert_eq!(fs::read_dir(dir.path().join(PARTS)).unwrap().count(), 0);
    }

    #[test]
    fn a_map_is_as_the_page_on_formats_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let (parts, hash) = parts(dir.path());
        let sparse = parts.get(hash, SIZE).unwrap();
        put(&sparse, 5..6);
        put(&sparse, 1..2);
        parts.tidy();
        let object = format!(r#"{{"oxenfs_blocks":1,"hash":"{hash}","size":{SIZE},"block":131072,"blocks":2}}"#);
        let mut expected = [object.as_bytes(), b"\n"].concat();
        for block in [1_u32, 5] {
            let range = sparse.range(&(block..block + 1));
            let bytes = &content()[range.start as usize..range.end as usize];
            expected.extend(block.to_le_bytes());
            expected.extend(xxhash_rust::xxh3::xxh3_64(bytes).to_le_bytes());
        }
        expected.extend(xxhash_rust::xxh3::xxh3_128(&expected).to_be_bytes());
        assert_eq!(fs::read(map_of(&parts.path(hash))).unwrap(), expected);
    }

    #[test]
    fn no_damage_of_file_or_map_shows_as_a_wrong_byte() {
        let mut random = fastrand::Rng::with_seed(22);
        let dir = tempfile::tempdir().unwrap();
        let (kept, hash) = parts(dir.path());
        let sparse = kept.get(hash, SIZE).unwrap();
        put(&sparse, 0..4);
        drop(sparse);
        kept.tidy();
        let (data, map) = (kept.path(hash), map_of(&kept.path(hash)));
        let (whole, mapped) = (fs::read(&data).unwrap(), fs::read(&map).unwrap());
        let (mut lost, mut kept_some) = (0, 0);
        for _ in 0..300 {
            fs::write(&data, &whole).unwrap();
            fs::write(&map, &mapped).unwrap();
            let (path, original) = if random.bool() { (&data, &whole) } else { (&map, &mapped) };
            let mut bytes = original.clone();
            match random.u8(..4) {
                0 => bytes.truncate(random.usize(..bytes.len())),
                1 => bytes.iter_mut().skip(random.usize(..original.len())).take(5000).for_each(|byte| *byte = 0),
                2 => bytes.extend([7; 100]),
                _ => {
                    let at = random.usize(..bytes.len());
                    bytes[at] ^= 1 << random.u8(..8);
                }
            }
            fs::write(path, bytes).unwrap();
            let (parts, _) = parts(dir.path());
            parts.learn().unwrap();
            let sparse = parts.get(hash, SIZE).unwrap();
            for block in 0..6 {
                let range = sparse.range(&(block..block + 1));
                match sparse.read(range.start, BLOCK_BYTES as usize) {
                    Some(bytes) => {
                        kept_some += 1;
                        assert!(bytes == content()[range.start as usize..range.end as usize], "block {block}");
                    }
                    None => lost += u32::from(block < 4),
                }
            }
            put(&sparse, 0..6);
            assert_eq!(sparse.check().unwrap(), Whole::Right);
        }
        assert!(lost > 100 && kept_some > 100, "{lost} {kept_some}");
    }

    #[test]
    fn what_was_damaged_here_is_told_from_what_the_server_sent_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let (parts, hash) = parts(dir.path());
        let sparse = parts.get(hash, SIZE).unwrap();
        put(&sparse, 0..6);
        let file = OpenOptions::new().write(true).open(parts.path(hash)).unwrap();
        file.write_all_at(b"other", 3 * BLOCK_BYTES + 9).unwrap();
        assert_eq!(sparse.check().unwrap(), Whole::Damaged);
        assert!(!sparse.is_complete() && parts.damaged() == 1);
        sparse.put(3, &Bytes::from(vec![1; BLOCK_BYTES as usize]), true).unwrap();
        assert!(sparse.is_complete() && sparse.check().unwrap() == Whole::Wrong);
        assert!(parts.remove(hash) && parts.used() == 0);
        assert_eq!(sparse.absent(0..6).len(), 6);
        // Nothing comes back to what is gone.
        put(&sparse, 0..1);
        parts.tidy();
        assert_eq!((parts.used(), fs::read_dir(dir.path().join(PARTS)).unwrap().count()), (0, 0));
    }

    #[test]
    fn what_nobody_uses_makes_way_first_and_what_is_wanted_whole_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let (parts, hash) = parts(dir.path());
        let other = ContentHash::of(HashKind::Xxh3, b"other");
        let used = parts.get(hash, SIZE).unwrap();
        put(&used, 0..6);
        put(&parts.get(other, SIZE).unwrap(), 0..2);
        parts.tidy();
        assert!(parts.make_way(false) && parts.bytes_of(other) == 0);
        assert!(!parts.make_way(false) && parts.used() == SIZE);
        let pin = used.pin();
        assert!(!parts.make_way(true));
        drop(pin);
        assert!(parts.make_way(true) && parts.used() == 0);
        assert!(fs::metadata(parts.path(hash)).unwrap().blocks() < 100, "its room is free");
        // Those in memory are to be had still, and no others.
        assert!(used.read(0, 10).is_some() && used.absent(0..6).is_empty());
        assert!(!parts.make_way(true));
    }

    #[test]
    fn a_full_disk_leaves_what_came_in_memory() {
        struct Full;
        impl crate::store::disk::Witness for Full {
            fn around(&self, act: &Act<'_>, work: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
                match act {
                    Act::Write(file) if file.metadata()?.len() > BLOCK_BYTES => Err(io::ErrorKind::StorageFull.into()),
                    _ => work(),
                }
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let parts = Parts::new(&Disk::witnessed(Arc::new(Full)), dir.path());
        let hash = ContentHash::of(HashKind::Xxh3, &content());
        let sparse = parts.get(hash, SIZE).unwrap();
        let bytes = Bytes::copy_from_slice(&content()[..BLOCK_BYTES as usize]);
        assert_eq!(sparse.put(0, &bytes, true).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(sparse.read(5, 10).unwrap(), content()[5..15]);
        assert_eq!((parts.used(), sparse.absent(0..2)), (0, vec![1]));
    }

    #[test]
    fn a_disk_that_is_full_from_the_first_on_is_no_reason_to_fetch_files_whole() {
        #[derive(Default)]
        struct Full(std::sync::atomic::AtomicBool);
        impl crate::store::disk::Witness for Full {
            fn around(&self, _: &Act<'_>, work: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
                match self.0.load(Ordering::Relaxed) {
                    true => Err(io::ErrorKind::StorageFull.into()),
                    false => work(),
                }
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let full = Arc::new(Full(true.into()));
        let parts = Parts::new(&Disk::witnessed(full.clone()), dir.path());
        let hash = ContentHash::of(HashKind::Xxh3, &content());
        let bytes = Bytes::copy_from_slice(&content()[..BLOCK_BYTES as usize]);
        let sparse = parts.get(hash, SIZE).unwrap();
        assert_eq!(sparse.put(0, &bytes, true).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(sparse.read(5, 10).unwrap(), content()[5..15]);
        full.0.store(false, Ordering::Relaxed);
        let sparse = parts.get(hash, SIZE).unwrap();
        sparse.put(0, &bytes, true).unwrap();
        assert_eq!(parts.used(), BLOCK_BYTES);
    }
}
