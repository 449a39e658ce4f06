//! Caches of other mounts by the same user on this machine: what one of them has need not come from the server. It is
//! copied, where the filesystem can by sharing its blocks, and compared with its hash before it is used: another's cache
//! may be damaged, or changing just now. Mounts that only read share the files themselves, by hard links: nobody writes to
//! those, and each of the mounts may have done with its own name at any moment.
//!
//! Of a large file that is nowhere whole, blocks are taken that another mount of the same repository has. They are as
//! much worth as those that the server sends: all of the file is compared in the end.
//!
//! A hash that is not cryptographic tells contents apart that nobody made to collide. So by such a one nothing is taken
//! from a repository of another owner: whoever can write to that could choose what is read here.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;

use super::Fs;
use crate::hash::{ContentHash, HashKind};
use crate::path::RepoPath;
use crate::store::listings;
use crate::store::parts::Foreign;
use crate::store::spool::{boots_in, name_of};
use crate::workspace::{CommitId, Listing, Object};

/// How often it is looked which other mounts there are, and which blocks they have of a file.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// For how long it is remembered what they have of a file for which nobody asks.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(15);
/// Large files of which it is remembered who has blocks, which takes 16 bytes a block.
const REMEMBERED: usize = 8;

/// Says where the caches are.
pub type Where = Box<dyn Fn() -> Vec<Neighbour> + Send + Sync>;

/// The cache of another mount.
#[derive(Debug, Clone)]
pub struct Neighbour {
    /// Its directory.
    pub cache: PathBuf,
    /// What it is of.
    pub of: Of,
    /// Its mount only reads, as do all that ever use this cache: nobody writes to its files.
    pub only_reads: bool,
}

/// How near the repository of another mount is to that of this one: what is nearer may be taken from in more cases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Of {
    /// Another owner's, or on another server.
    Others,
    /// The same owner's on the same server.
    Owner,
    /// The same.
    Repository,
}

/// The caches, as they were when they were last looked for.
pub(super) struct Neighbours {
    look: Where,
    seen: Mutex<Option<(Instant, Arc<[Seen]>)>>,
    parts: Mutex<LruCache<ContentHash, Lenders>>,
}

/// What others have of a large file, and when that was looked at.
type Lenders = (Instant, Arc<[Foreign]>);

struct Seen {
    neighbour: Neighbour,
    /// Directories in which content lies by its name.
    boots: Vec<PathBuf>,
}

/// A file that may have some content.
struct Candidate {
    file: File,
    only_reads: bool,
}

impl Neighbours {
    fn seen(&self) -> Arc<[Seen]> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match &*seen {
            Some((looked, caches)) if looked.elapsed() < LOOK_EVERY => caches.clone(),
            _ => {
                let with_boots = |neighbour: Neighbour| {
                    let boots = boots_in(&neighbour.cache);
                    Seen { neighbour, boots }
                };
                let caches: Arc<[Seen]> = (self.look)().into_iter().map(with_boots).collect();
                *seen = Some((Instant::now(), caches.clone()));
                caches
            }
        }
    }

    /// Files that may have this content.
    fn candidates(&self, hash: ContentHash, size: u64) -> Vec<Candidate> {
        let nearest = match hash.kind() {
            HashKind::Sha256 => Of::Others,
            HashKind::Xxh3 => Of::Owner,
        };
        let name = name_of(hash);
        let mut found = Vec::new();
        for seen in self.seen().iter().filter(|seen| seen.neighbour.of >= nearest) {
            let files = seen.boots.iter().filter_map(|boot| open_ours(&boot.join(&name), size));
            found.extend(files.map(|file| Candidate { file, only_reads: seen.neighbour.only_reads }));
        }
        found
    }

    fn parts(&self) -> MutexGuard<'_, LruCache<ContentHash, Lenders>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what nobody asked for lately: a file that its mount removed takes its room as long as it is open here.
    fn tidy(&self) {
        let mut parts = self.parts();
        let stale =
            |(hash, (looked, _)): (&ContentHash, &(Instant, _))| (looked.elapsed() > FORGOTTEN_AFTER).then_some(*hash);
        let stale: Vec<ContentHash> = parts.iter().filter_map(stale).collect();
        for hash in stale {
            parts.pop(&hash);
        }
    }

    /// What others have of a large file.
    fn parts_of(&self, hash: ContentHash, size: u64) -> Arc<[Foreign]> {
        let before = self.parts().get(&hash).cloned();
        if let Some((looked, parts)) = &before
            && looked.elapsed() < LOOK_EVERY
        {
            return parts.clone();
        }
        let mut known: Vec<Foreign> = before.iter().flat_map(|(_, parts)| parts.iter().cloned()).collect();
        let mut parts = Vec::new();
        for seen in self.seen().iter().filter(|seen| seen.neighbour.of == Of::Repository) {
            let (data, map) = Foreign::places(&seen.neighbour.cache, hash);
            let Some(map) = open_any_of_ours(&map) else { continue };
            // A map that did not change is not read again.
            match known.iter().position(|part| part.is_by(&map)) {
                Some(at) => parts.push(known.swap_remove(at)),
                None => parts.extend(open_ours(&data, size).and_then(|data| Foreign::open(data, map, hash, size))),
            }
        }
        let parts: Arc<[Foreign]> = parts.into();
        self.parts().put(hash, (Instant::now(), parts.clone()));
        parts
    }
}

/// A file of this user's. Neither a link nor a pipe that somebody put there is followed, or waited for.
fn open_any_of_ours(path: &Path) -> Option<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    let found = file.metadata().ok()?;
    (found.is_file() && found.uid() == rustix::process::geteuid().as_raw()).then_some(file)
}

fn open_ours(path: &Path, size: u64) -> Option<File> {
    open_any_of_ours(path).filter(|file| file.metadata().is_ok_and(|found| found.len() == size))
}

impl Fs {
    /// Where caches of other mounts are. To be called once, before anything is served.
    pub fn set_neighbours(&self, look: Where) {
        let remembered = std::num::NonZeroUsize::new(REMEMBERED).unwrap_or(std::num::NonZeroUsize::MIN);
        let parts = Mutex::new(LruCache::new(remembered));
        let _ = self.neighbours.set(Neighbours { look, seen: Mutex::default(), parts });
    }

    /// Content that is not known to be here, and need not come from the server: it is from before the machine was last
    /// started, another mount has it, or there is none of it.
    pub(super) fn find_without_server(&self, hash: ContentHash, size: u64) -> Option<Arc<File>> {
        if let Some(file) = self.cache.check(hash) {
            return Some(Arc::new(file));
        }
        if size == 0 && self.keep_bytes(Object { hash, size }, &[]).is_ok_and(|kept| kept) {
            return self.cache.file(hash).map(Arc::new);
        }
        self.take_from_neighbours(hash, size)
    }

    /// Content that another mount has, linked or copied here. What cannot be is fetched.
    fn take_from_neighbours(&self, hash: ContentHash, size: u64) -> Option<Arc<File>> {
        let candidates = self.neighbours.get()?.candidates(hash, size);
        candidates.iter().find_map(|from| {
            let linked = match self.options.read_only && from.only_reads {
                true => self.link_shared(hash, size, &from.file),
                false => None,
            };
            linked.or_else(|| self.copy_lent(hash, size, &from.file).ok().flatten())
        })
    }

    /// A file to which nobody writes, by another name, if it has this content.
    fn link_shared(&self, hash: ContentHash, size: u64, from: &File) -> Option<Arc<File>> {
        // What is on another filesystem, or was removed just now, is copied.
        let linked = self.cache.begin_with(from).ok()?;
        self.keep_fetched(linked, hash, (size, size)).ok()?.ok()
    }

    /// What a commit has in a directory, where another mount of the repository was told so. It is kept here too.
    pub(super) fn listing_of_neighbours(&self, commit: &CommitId, dir: &RepoPath) -> Option<Listing> {
        let seen = self.neighbours.get()?.seen();
        let mut same = seen.iter().filter(|seen| seen.neighbour.of == Of::Repository);
        let (listing, file) = same.find_map(|seen| {
            let file = open_any_of_ours(&listings::Foreign::place(&seen.neighbour.cache, commit, dir))?;
            listings::Foreign::open(&file, commit, dir)
        })?;
        self.cache.listings().offer_foreign(commit, dir, file);
        self.cache.write_listings();
        Some(listing)
    }

    /// Closes what nobody needs of other mounts.
    pub(super) fn tidy_neighbours(&self) {
        if let Some(neighbours) = self.neighbours.get() {
            neighbours.tidy();
        }
    }

    /// Whether it was looked just now who has blocks of a large file, and nobody had. Does not look at the disk.
    pub(super) fn is_nowhere_else(&self, hash: ContentHash) -> bool {
        self.neighbours.get().is_none_or(|neighbours| {
            let none = |(looked, parts): &Lenders| looked.elapsed() < LOOK_EVERY && parts.is_empty();
            neighbours.parts().peek(&hash).is_some_and(none)
        })
    }

    /// What other mounts have of a large file.
    pub(super) fn parts_of_neighbours(&self, hash: ContentHash, size: u64) -> Arc<[Foreign]> {
        self.neighbours.get().map_or_else(|| Vec::new().into(), |neighbours| neighbours.parts_of(hash, size))
    }
}
