//! Caches of other mounts of the same repository by the same user on this machine: what one of them has need not come
//! from the server. It is copied, where the filesystem can by sharing its blocks, and compared with its hash before it is
//! used: another's cache may be damaged, or changing just now.
//!
//! Of other repositories nothing is taken. A hash that is not cryptographic tells contents apart that nobody made to
//! collide, and whose server may be trusted with one repository is not thereby trusted with another.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Fs;
use crate::hash::ContentHash;
use crate::store::cache::{boots_in, name_of};
use crate::workspace::Object;

/// How often it is looked which other mounts there are.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Says where the caches are.
pub type Where = Box<dyn Fn() -> Vec<PathBuf> + Send + Sync>;

/// The caches, as they were when they were last looked for.
pub(super) struct Neighbours {
    look: Where,
    /// Directories in which content lies by its name.
    seen: Mutex<Option<(Instant, Arc<[PathBuf]>)>>,
}

impl Neighbours {
    fn dirs(&self) -> Arc<[PathBuf]> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match &*seen {
            Some((looked, dirs)) if looked.elapsed() < LOOK_EVERY => dirs.clone(),
            _ => {
                let dirs: Arc<[PathBuf]> = (self.look)().iter().flat_map(|cache| boots_in(cache)).collect();
                *seen = Some((Instant::now(), dirs.clone()));
                dirs
            }
        }
    }

    /// Files that may have this content.
    fn candidates(&self, hash: ContentHash, size: u64) -> Vec<File> {
        let us = rustix::process::geteuid().as_raw();
        let name = name_of(hash);
        let open = |dir: &PathBuf| {
            // Neither a link nor a pipe that somebody put there is followed, or waited for.
            let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
            let file = OpenOptions::new().read(true).custom_flags(flags).open(dir.join(&name)).ok()?;
            let found = file.metadata().ok()?;
            (found.is_file() && found.uid() == us && found.len() == size).then_some(file)
        };
        self.dirs().iter().filter_map(open).collect()
    }
}

impl Fs {
    /// Where caches of other mounts of the same repository are. To be called once, before anything is served.
    pub fn set_neighbours(&self, look: Where) {
        let _ = self.neighbours.set(Neighbours { look, seen: Mutex::default() });
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

    /// Content that another mount has, copied here. What cannot be copied is fetched.
    fn take_from_neighbours(&self, hash: ContentHash, size: u64) -> Option<Arc<File>> {
        let candidates = self.neighbours.get()?.candidates(hash, size);
        candidates.iter().find_map(|from| self.copy_lent(hash, size, from).ok().flatten())
    }
}
