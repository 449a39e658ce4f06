//! Content that is brought here before anybody reads it: many small files a request where the server can do that, and
//! several requests at once.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use tokio::sync::Semaphore;

use super::fetching::Who;
use super::{Fs, FsError, Op, State};
use crate::hash::ContentHash;
use crate::namespace::{Content, Ino, ROOT};
use crate::path::{Name, RepoPath};
use crate::workspace::progress::Progress;
use crate::workspace::{Object, Source, Take, WorkspaceError};

/// Up to this length files come many a request: a larger one is worth its own, and is not held in memory.
const SMALL_BYTES: u64 = 1 << 20;
/// Content and number of the files of one request: enough that a way of 20 ms is worth it, few enough that what comes
/// shows soon.
const BATCH_BYTES: u64 = 8 << 20;
const BATCH_FILES: usize = 512;
/// Requests at once: for many files each, and for one.
const BATCHES_AT_ONCE: usize = 4;
const FILES_AT_ONCE: usize = 8;
/// Files that are looked for on the disk before others get a turn.
const LOOKED_FOR: usize = 256;
/// Files of a directory that are gathered under one hold of the lock.
const GATHERED: usize = 10_000;
/// Failures that are told one by one.
const TOLD: usize = 100;

type Work = BoxFuture<'static, Result<(), FsError>>;

/// Content of the server's, and the files that have it.
#[derive(Debug, Clone)]
pub struct Cold {
    hash: ContentHash,
    size: u64,
    /// One of the files.
    ino: Ino,
    /// How many there are.
    files: u64,
}

/// What is at and below some paths.
#[derive(Debug, Default)]
pub struct Contents {
    /// What can be fetched, each once.
    cold: Vec<Cold>,
    /// Where in it each is.
    known: HashMap<ContentHash, usize>,
    /// Files whose bytes the server lacks, or that were written here, and their bytes.
    local: (u64, u64),
}

impl Contents {
    /// Files and bytes in all.
    pub fn totals(&self) -> (u64, u64) {
        // A server may list any lengths.
        let sum = |(files, bytes): (u64, u64), cold: &Cold| (files + cold.files, bytes.saturating_add(cold.bytes()));
        self.cold.iter().fold(self.local, sum)
    }

    fn add(&mut self, state: &State, ino: Ino) {
        match state.content(ino) {
            None => {}
            Some((Content::Local { .. }, size)) => self.local = (self.local.0 + 1, self.local.1.saturating_add(size)),
            Some((Content::Remote { hash, .. }, size)) => match self.known.get(hash) {
                Some(at) => self.cold[*at].files += 1,
                None => {
                    self.known.insert(*hash, self.cold.len());
                    self.cold.push(Cold { hash: *hash, size, ino, files: 1 });
                }
            },
        }
    }
}

/// How far it is; shared with who tells it.
#[derive(Debug, Default)]
pub struct Warming {
    files: AtomicU64,
    bytes: AtomicU64,
    fetched_files: AtomicU64,
    fetched_bytes: AtomicU64,
    failed_files: AtomicU64,
    failed: Mutex<Vec<(String, String)>>,
}

impl Warming {
    /// Files and bytes that are done with: here, or given up.
    pub fn done(&self) -> (u64, u64) {
        (self.files.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    /// Files and bytes that this brought here, or removed.
    pub fn changed(&self) -> (u64, u64) {
        (self.fetched_files.load(Ordering::Relaxed), self.fetched_bytes.load(Ordering::Relaxed))
    }

    /// How many files are not as they should be, and the first of them with the reason.
    pub fn failed(&self) -> (u64, Vec<(String, String)>) {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (self.failed_files.load(Ordering::Relaxed), failed)
    }

    fn add(&self, files: u64, bytes: u64) {
        self.files.fetch_add(files, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn is_here(&self, cold: &Cold) {
        self.add(cold.files, cold.bytes());
    }

    fn has_changed(&self, cold: &Cold) {
        self.fetched_files.fetch_add(1, Ordering::Relaxed);
        self.fetched_bytes.fetch_add(cold.size, Ordering::Relaxed);
        self.is_here(cold);
    }

    fn is_not(&self, cold: &Cold, path: impl FnOnce() -> String, why: impl FnOnce() -> String) {
        self.failed_files.fetch_add(cold.files, Ordering::Relaxed);
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if failed.len() < TOLD {
            failed.push((path(), why()));
        }
        drop(failed);
        self.is_here(cold);
    }
}

/// Why content is not brought here.
#[derive(Debug, thiserror::Error)]
pub enum NotWarmed {
    /// The first would have to go before the last has come.
    #[error("{bytes} bytes do not fit into a cache of {limit}")]
    TooMuch {
        /// All of it.
        bytes: u64,
        /// The cache's limit.
        limit: u64,
    },
    /// What ends all of it: the server is away, or the disk is full.
    #[error(transparent)]
    Failed(#[from] FsError),
}

impl Fs {
    /// What is at a path, from the mount's root. A symbolic link is not followed.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::NotDir`].
    pub fn find(&self, names: &[Name]) -> Op<Ino> {
        let state = self.lock();
        let mut at = ROOT;
        for name in names {
            at = state.entry(at, name)?.ok_or(FsError::NotFound)?;
        }
        Ok(at)
    }

    /// Adds what is at and below `ino`, for which directories that nobody has seen are listed.
    ///
    /// # Errors
    /// The server's.
    pub async fn gather_contents(&self, ino: Ino, contents: &mut Contents) -> Result<(), FsError> {
        self.list_all(ino).await?;
        let mut dirs = vec![ino];
        while let Some(dir) = dirs.pop() {
            let children: Vec<Ino> = {
                let state = self.lock();
                match state.tree.dir(dir) {
                    Some(here) if state.tree.lost() != Some(dir) => here.children.values().copied().collect(),
                    Some(_) => continue,
                    None => vec![dir],
                }
            };
            for some in children.chunks(GATHERED) {
                let state = self.lock();
                for child in some {
                    match state.tree.dir(*child) {
                        Some(_) => dirs.push(*child),
                        None => contents.add(&state, *child),
                    }
                }
            }
        }
        Ok(())
    }

    /// Has all of it in the cache, whole: what is not is fetched. What came stays, however this ends.
    ///
    /// # Errors
    /// [`NotWarmed`]; what fails for one file alone is told in `warming`.
    pub async fn warm(&self, contents: &Contents, warming: &Arc<Warming>) -> Result<(), NotWarmed> {
        let bytes = contents.cold.iter().fold(0_u64, |sum, cold| sum.saturating_add(cold.size));
        let limit = self.cache().limit();
        if bytes > limit {
            return Err(NotWarmed::TooMuch { bytes, limit });
        }
        warming.add(contents.local.0, contents.local.1);
        let (mut large, mut batches, mut batch, mut in_batch) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for some in contents.cold.chunks(LOOKED_FOR) {
            for cold in self.absent(some, warming).await? {
                if cold.size > SMALL_BYTES {
                    large.push(cold);
                    continue;
                }
                if batch.len() == BATCH_FILES || in_batch + cold.size > BATCH_BYTES {
                    batches.push(std::mem::take(&mut batch));
                    in_batch = 0;
                }
                in_batch += cold.size;
                batch.push(cold);
            }
        }
        batches.push(batch);
        let fs = self.this.upgrade().ok_or(FsError::Stale)?;
        let turns = Arc::new(Semaphore::new(FILES_AT_ONCE));
        let large = {
            let (fs, turns, warming) = (fs.clone(), turns.clone(), warming.clone());
            let fetch = move |cold| fs.clone().warm_one(cold, turns.clone(), warming.clone());
            stream::iter(large.into_iter().map(fetch)).buffer_unordered(FILES_AT_ONCE).try_collect::<()>()
        };
        let small = {
            let warming = warming.clone();
            let fetch = move |batch| fs.clone().warm_batch(batch, turns.clone(), warming.clone());
            stream::iter(batches.into_iter().map(fetch)).buffer_unordered(BATCHES_AT_ONCE).try_collect::<()>()
        };
        tokio::try_join!(small, large)?;
        Ok(())
    }

    /// Those that are not here; the others are done.
    async fn absent(&self, some: &[Cold], warming: &Arc<Warming>) -> Result<Vec<Cold>, FsError> {
        let (some, warming) = (some.to_vec(), warming.clone());
        let look = move |fs: &Fs| {
            let holds =
                |cold: &Cold| fs.cache.holds(cold.hash) || fs.find_without_server(cold.hash, cold.size).is_some();
            let (here, absent): (Vec<Cold>, Vec<Cold>) = some.into_iter().partition(holds);
            here.iter().for_each(|cold| warming.is_here(cold));
            Ok(absent)
        };
        self.blocking(look).await
    }

    /// Fetches small files with one request, and one by one what does not come so.
    fn warm_batch(self: Arc<Self>, batch: Vec<Cold>, turns: Arc<Semaphore>, warming: Arc<Warming>) -> Work {
        let fetch = async move {
            let Some(first) = batch.first() else { return Ok(()) };
            let path = self.path_of(first.ino);
            let left: HashMap<ContentHash, Cold> = batch.into_iter().map(|cold| (cold.hash, cold)).collect();
            let left = Arc::new(Mutex::new(left));
            let full = Arc::new(AtomicBool::new(false));
            let take: Take = {
                let (fs, left, full, warming) = (self.clone(), left.clone(), full.clone(), warming.clone());
                Arc::new(move |object, bytes| match fs.keep_bytes(object, &bytes) {
                    Ok(true) => {
                        if let Some(cold) = locked(&left).remove(&object.hash) {
                            warming.has_changed(&cold);
                        }
                    }
                    // What is wrong with it, the request for it alone tells.
                    Ok(false) => {}
                    Err(_) => full.store(true, Ordering::Relaxed),
                })
            };
            let progress = Arc::new(Progress::default());
            let fetched = self.patiently(Who::Program, &progress, &path, || {
                // Of what came in an attempt before, nothing is asked again.
                let still: Vec<Object> = locked(&left).values().map(Cold::object).collect();
                let (take, workspace) = (take.clone(), self.workspace.clone());
                (0, async move { Ok(workspace.fetch_small(&still, &take).await?) }.boxed())
            });
            match fetched.await {
                Err(FsError::Remote(error)) if error.is_outage() => return Err(error.into()),
                Err(error) => tracing::debug!(%error, "files are fetched one by one that did not come together"),
                Ok(_) => {}
            }
            if full.load(Ordering::Relaxed) {
                return Err(FsError::NoSpace);
            }
            let rest: Vec<Cold> = locked(&left).drain().map(|(_, cold)| cold).collect();
            let fetch = move |cold| self.clone().warm_one(cold, turns.clone(), warming.clone());
            stream::iter(rest.into_iter().map(fetch)).buffer_unordered(FILES_AT_ONCE).try_collect::<()>().await
        };
        fetch.boxed()
    }

    fn warm_one(self: Arc<Self>, cold: Cold, turns: Arc<Semaphore>, warming: Arc<Warming>) -> Work {
        let fetch = async move {
            let _turn = turns.acquire().await;
            let source: Option<Source> = {
                let state = self.lock();
                // It may be another's content by now, or the file gone.
                match state.content(cold.ino) {
                    Some((Content::Remote { hash, .. }, _)) if *hash == cold.hash => state.source(cold.ino),
                    _ => None,
                }
            };
            let Some(source) = source else {
                warming.is_here(&cold);
                return Ok(());
            };
            match self.download(cold.hash, cold.size, Some(source.clone()), Who::Program).await {
                // It is not to be read now, but kept.
                Ok(_) if self.cache.is_aside(cold.hash) => return Err(FsError::NoSpace),
                Ok(_) => warming.has_changed(&cold),
                Err(FsError::Remote(error)) if error.is_outage() || matches!(error, WorkspaceError::Io(_)) => {
                    return Err(error.into());
                }
                Err(FsError::Remote(error)) => warming.is_not(&cold, || source.path.to_string(), || error.reason()),
                Err(error) => return Err(error),
            }
            Ok(())
        };
        fetch.boxed()
    }

    /// Takes in content that is in memory, if it is what it should be.
    ///
    /// # Errors
    /// The local filesystem's.
    pub(super) fn keep_bytes(&self, object: Object, bytes: &[u8]) -> Result<bool, FsError> {
        let Object { hash, size } = object;
        if bytes.len() as u64 != size || ContentHash::of(hash.kind(), bytes) != hash {
            return Ok(false);
        }
        self.make_room(size);
        if !self.cache.has_room(size) {
            return Err(FsError::NoSpace);
        }
        let fetched = self.cache.begin()?;
        self.spool.disk().write_at(&fetched.file, bytes, 0)?;
        self.cache.keep(fetched, hash, true);
        Ok(true)
    }

    /// Reads all of it that is in the cache; what is not there, or not what it was, is told as failed.
    ///
    /// # Errors
    /// None but that of a daemon that ends.
    pub async fn check_warm(&self, contents: &Contents, warming: &Arc<Warming>) -> Result<(), FsError> {
        warming.add(contents.local.0, contents.local.1);
        for some in contents.cold.chunks(LOOKED_FOR) {
            let (some, warming) = (some.to_vec(), warming.clone());
            let look = move |fs: &Fs| {
                for cold in &some {
                    match fs.cache.verify(cold.hash) {
                        true => warming.is_here(cold),
                        false => {
                            warming.is_not(cold, || fs.path_of(cold.ino).to_string(), || "is not in the cache".into());
                        }
                    }
                }
                Ok(())
            };
            self.blocking(look).await?;
        }
        Ok(())
    }

    /// Removes all of it from the cache, but for what is in use or staged and not committed.
    ///
    /// # Errors
    /// None but that of a daemon that ends.
    pub async fn chill(&self, contents: &Contents, warming: &Arc<Warming>) -> Result<(), FsError> {
        warming.add(contents.local.0, contents.local.1);
        for some in contents.cold.chunks(LOOKED_FOR) {
            let (some, warming) = (some.to_vec(), warming.clone());
            let remove = move |fs: &Fs| {
                // What was just fetched has no name yet.
                fs.cache.settle(fs.cache.arrived(|_| false));
                for cold in &some {
                    match fs.cache.give_up(cold.hash) {
                        Ok(true) => warming.has_changed(cold),
                        Ok(false) => warming.is_here(cold),
                        Err(error) => {
                            let why = || match error.kind() {
                                io::ErrorKind::ResourceBusy => "is in use, or staged and not committed".to_owned(),
                                _ => error.to_string(),
                            };
                            warming.is_not(cold, || fs.path_of(cold.ino).to_string(), why);
                        }
                    }
                }
                Ok(())
            };
            self.blocking(remove).await?;
        }
        Ok(())
    }

    /// One of a file's paths, for people.
    fn path_of(&self, ino: Ino) -> RepoPath {
        self.lock().tree.paths_of(ino).next().unwrap_or_else(RepoPath::root)
    }
}

fn locked(left: &Mutex<HashMap<ContentHash, Cold>>) -> MutexGuard<'_, HashMap<ContentHash, Cold>> {
    left.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cold {
    /// Length of all its files.
    fn bytes(&self) -> u64 {
        self.size.saturating_mul(self.files)
    }

    fn object(&self) -> Object {
        Object { hash: self.hash, size: self.size }
    }
}
