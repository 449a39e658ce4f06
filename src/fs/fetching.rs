//! What is got from the server for whoever waits for it: listings and contents, each once for all who want it at a time.
//!
//! Programs wait as long as the server makes progress, and `--read-timeout` longer: a server that is started anew within
//! that time costs them nothing but the time. Who gives up, or is killed, leaves what is under way to the others; when
//! the last one goes, it ends.

use std::collections::HashMap;
use std::fs::File;
use std::future::Future;
use std::hash::Hash;
use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::future::{Shared, WeakShared};
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};

use super::layers::shown;
use super::{Fs, FsError, LISTINGS_AT_ONCE, STAGED_AGAIN_WITHIN};
use crate::hash::ContentHash;
use crate::namespace::{Content, Ino, ROOT};
use crate::path::RepoPath;
use crate::store::disk::is_full;
use crate::store::spool::{self, Found};
use crate::sync::Mutex;
use crate::workspace::progress::Progress;
use crate::workspace::{CommitId, EntryKind, Listing, Object, Revision, Source, Take, WorkspaceError};

/// The longest pause before a server that did not answer is asked again; the first is a tenth of it.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The longest content that is asked for by its hash, where its place has another by now: it is in memory meanwhile.
const BY_HASH_BYTES: u64 = 16 << 20;

type Work<T> = Pin<Box<dyn Future<Output = Result<T, FsError>> + Send>>;

/// Who waits for something from the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Who {
    /// A program, which would meet an error: as long as there is hope.
    Program,
    /// The daemon, for staging or ahead of need: it asks again later.
    Staging,
}

/// Things that are being got, by what they are.
pub(super) struct Flights<K, T>(Mutex<HashMap<K, WeakShared<Work<T>>>>);

impl<K, T> Default for Flights<K, T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Hash + Eq, T: Clone> Flights<K, T> {
    /// Whether none is under way.
    pub fn are_over(&self) -> bool {
        let flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        flights.values().all(|flight| flight.upgrade().is_none_or(|work| work.peek().is_some()))
    }

    /// What is under way, or what `begin` begins where nothing is. It goes on as long as somebody waits for it.
    fn join(&self, key: K, begin: impl FnOnce(Arc<Progress>) -> Work<T>) -> Shared<Work<T>> {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // One that has ended is over, for whomever it still answers.
        flights.retain(|_, flight| flight.upgrade().is_some_and(|work| work.peek().is_none()));
        if let Some(work) = flights.get(&key).and_then(WeakShared::upgrade) {
            return work;
        }
        let work = begin(Arc::new(Progress::default())).shared();
        if let Some(weak) = work.downgrade() {
            flights.insert(key, weak);
        }
        work
    }
}

impl Fs {
    /// Asks until an answer comes, or until nothing has come for as long as programs wait. What has failed otherwise fails.
    pub(super) async fn patiently<T, F>(
        &self,
        who: Who,
        progress: &Arc<Progress>,
        path: &RepoPath,
        mut ask: impl FnMut() -> (u64, F),
    ) -> Result<T, FsError>
    where
        F: Future<Output = Result<T, FsError>>,
    {
        let Some(limit) = self.read_timeout.get().copied().filter(|_| who == Who::Program) else {
            let (already, asked) = ask();
            return progress.attempt(already, asked).await;
        };
        let stalled = async || match limit {
            Some(limit) => progress.stalled(limit).await,
            None => std::future::pending().await,
        };
        let mut pause = LONGEST_PAUSE / 10;
        let mut last = None;
        loop {
            let (already, asked) = ask();
            let error = tokio::select! {
                biased;
                asked = progress.attempt(already, asked) => match asked {
                    Err(FsError::Remote(error)) if error.is_outage() && !self.is_offline() => error,
                    asked => return asked,
                },
                () = stalled() => WorkspaceError::TimedOut { after: limit.unwrap_or_default(), request: None },
            };
            let wait = pause.mul_f64(0.5 + fastrand::f64() / 2.0).max(error.retry_after().unwrap_or_default());
            if limit.is_some_and(|limit| progress.idle() + wait >= limit) {
                let error = last.filter(|_| matches!(error, WorkspaceError::TimedOut { .. })).unwrap_or(error);
                return Err(error.into());
            }
            tracing::debug!(%path, %error, ?wait, "a program waits for it, and the server is asked again");
            last = Some(error);
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// A program read what is at `path`, or could not.
    pub(super) fn note_read<T>(&self, path: Option<RepoPath>, read: &Result<T, FsError>) {
        match (path, read) {
            (Some(path), Ok(_)) => self.begin().unreadable.forget(&path),
            (Some(path), Err(FsError::Remote(error))) => {
                let reason = error.reason();
                tracing::warn!(%path, reason, "a program cannot read it");
                self.begin().unreadable.note(path, reason);
            }
            _ => {}
        }
    }

    /// For how long programs wait for a server from which nothing comes; `None`: for ever. Until this is called, they do
    /// not wait for one that is away.
    pub fn wait_for_server(&self, limit: Option<Duration>) {
        let _ = self.read_timeout.set(limit);
    }

    /// Lists a directory.
    pub(super) async fn list(&self, dir: Ino, who: Who) -> Result<(), FsError> {
        let Some(fs) = self.this.upgrade() else { return Err(FsError::Stale) };
        let list = |progress| async move { fs.list_now(dir, who, &progress).await }.boxed();
        let listed = self.listing.join((dir, who), list).await;
        if who == Who::Program {
            let path = self.lock().tree.dir_path(dir).ok();
            self.note_read(path, &listed);
        }
        listed
    }

    async fn list_now(&self, dir: Ino, who: Who, progress: &Arc<Progress>) -> Result<(), FsError> {
        let (base, path) = {
            let state = self.lock();
            match state.tree.dir(dir) {
                None => return Err(FsError::Stale),
                Some(here) if here.listed => return Ok(()),
                Some(_) => {}
            }
            match state.tree.dir_path(dir) {
                Ok(path) => (state.tree.base().clone(), path),
                Err(_) => return Err(FsError::Stale),
            }
        };
        let listing = match self.kept_listing(&base, &path).await {
            Some(kept) => kept,
            None => {
                let ask = || (0, async { Ok(self.ask_listing(&base, &path).await?) });
                self.patiently(who, progress, &path, ask).await?
            }
        };
        if dir == ROOT {
            let is_empty = listing.entries.is_empty() && listing.flawed.is_empty();
            self.is_root_empty.store(is_empty, Ordering::Release);
        }
        self.absorb(dir, &base, &path, listing);
        Ok(())
    }

    /// The entries of a directory of a commit. The server is asked once: what it told is kept.
    pub(super) async fn listing_of(&self, commit: &CommitId, dir: &RepoPath) -> Result<Listing, WorkspaceError> {
        match self.kept_listing(commit, dir).await {
            Some(kept) => Ok(kept),
            None => self.ask_listing(commit, dir).await,
        }
    }

    /// A listing that was kept here, or by another mount of the repository.
    async fn kept_listing(&self, commit: &CommitId, dir: &RepoPath) -> Option<Listing> {
        if !self.cache.listings().may_have(commit, dir) && self.neighbours.get().is_none() {
            return None;
        }
        let (commit, dir) = (commit.clone(), dir.clone());
        let found = self.blocking(move |fs| {
            let here = fs.cache.listings().get(&commit, &dir);
            Ok(here.or_else(|| fs.listing_of_neighbours(&commit, &dir)))
        });
        let kept = found.await.ok().flatten()?;
        self.workspace.was_listed(&kept);
        Some(kept)
    }

    /// Asks the server for a listing, and keeps what it tells.
    pub(super) async fn ask_listing(&self, commit: &CommitId, dir: &RepoPath) -> Result<Listing, WorkspaceError> {
        let listing = self.workspace.list(commit, dir).await?;
        // What the server may mend is asked for again.
        if listing.entries.iter().all(|entry| shown(&entry.name).is_some()) {
            self.cache.listings().offer(commit, dir, &listing);
        }
        if self.cache.listings().is_waiting()
            && let Some(fs) = self.this.upgrade()
        {
            // Nobody waits for that.
            drop(tokio::task::spawn_blocking(move || fs.cache.write_listings()));
        }
        Ok(listing)
    }

    pub(super) async fn list_all(&self, dir: Ino) -> Result<(), FsError> {
        loop {
            let unlisted: Vec<Ino> = {
                let state = self.lock();
                let below = state.tree.walk(dir).into_iter().map(|(.., child)| child);
                below.chain([dir]).filter(|ino| state.tree.dir(*ino).is_some_and(|dir| !dir.listed)).collect()
            };
            if unlisted.is_empty() {
                return Ok(());
            }
            let listings =
                stream::iter(unlisted).map(|ino| self.list(ino, Who::Program)).buffer_unordered(LISTINGS_AT_ONCE);
            listings.try_collect::<()>().await?;
        }
    }

    /// A file's remote content as a local file, downloaded if need be. `None` when its bytes are in the spool.
    pub(super) async fn fetch(&self, ino: Ino, checked: bool) -> Result<Option<(ContentHash, Arc<File>)>, FsError> {
        let (mut tried, mut waited, mut listed) = (None, false, false);
        loop {
            let (hash, size, source) = {
                let state = self.lock();
                match state.content(ino) {
                    None => return Err(FsError::Stale),
                    Some((Content::Local { .. }, _)) => return Ok(None),
                    Some((Content::Remote { hash, .. }, size)) => (*hash, size, state.source(ino)),
                }
            };
            let fetched = match checked {
                true => self.checked(hash, || self.download(hash, size, source.clone(), Who::Program)).await,
                false => self.download(hash, size, source.clone(), Who::Program).await,
            };
            let is_other = matches!(&fetched, Err(FsError::Remote(WorkspaceError::Protocol { .. })));
            let is_elsewhere = matches!(
                &fetched,
                Err(FsError::Remote(
                    WorkspaceError::NotFound { .. } | WorkspaceError::Conflict { .. } | WorkspaceError::Protocol { .. }
                ))
            );
            match fetched {
                // What was renamed here is staged under its new name meanwhile, and gone from the old one.
                Err(_) if is_elsewhere && tried.as_ref() != Some(&source) => tried = Some(source),
                // It was listed with another length, or hash, than it has.
                Err(_) if is_other && !listed && self.is_listed_otherwise(ino, hash).await => listed = true,
                Err(_) if is_elsewhere && !waited && self.is_staged_again(ino).await => (tried, waited) = (None, true),
                fetched => {
                    let path = self.lock().tree.paths_of(ino).next();
                    self.note_read(path, &fetched);
                    return fetched.map(|file| Some((hash, file)));
                }
            }
        }
    }

    /// The server's answers contradict each other: asks again how long the content is that a file is listed with. Whether
    /// that is another length than before; it is the file's from now on.
    async fn is_listed_otherwise(&self, ino: Ino, hash: ContentHash) -> bool {
        let (base, path) = {
            let state = self.lock();
            let Some(Source { path, .. }) = state.source(ino) else { return false };
            (state.tree.base().clone(), path)
        };
        let Some(dir) = path.parent() else { return false };
        // What was kept says what it said before.
        let listing = match self.ask_listing(&base, &dir).await {
            Ok(listing) => listing,
            Err(error) => {
                tracing::debug!(%path, %error, "its length cannot be asked for again");
                return false;
            }
        };
        let mut objects = listing.entries.into_iter().filter_map(|entry| match entry.kind {
            EntryKind::File(object) if entry.name == path.file_name() => Some(object),
            _ => None,
        });
        let Some(now) = objects.find(|object| object.hash == hash) else { return false };
        self.change(|state| Ok(state.correct_size(ino, now))).unwrap_or(false)
    }

    /// What was staged may have gone with the workspace, or a request that came late may have put something else in its place.
    /// Then it is staged again, which this waits for; whether it was. What waits for somebody is not: to read it is not to act.
    async fn is_staged_again(&self, ino: Ino) -> bool {
        let looked = async {
            self.find_workspace().await?;
            self.audit_between_commits().await
        };
        if let Err(error) = looked.await {
            tracing::debug!(%error, "it is not known whether the workspace is still there");
            return false;
        }
        let (owed, is_staged): (Vec<RepoPath>, bool) = {
            let state = self.lock();
            let on_its_way = |path: &RepoPath| state.writeback.pending(path).is_some_and(|entry| !entry.is_parked());
            let is_staged = state.source(ino).is_some_and(|source| source.revision == Revision::Workspace);
            (state.tree.paths_of(ino).filter(on_its_way).collect(), is_staged)
        };
        if owed.is_empty() {
            // Or was, since it was read.
            return is_staged;
        }
        let Some(waiting) = self.barrier_on(owed) else { return false };
        tokio::time::timeout(STAGED_AGAIN_WITHIN, waiting.reached()).await.is_ok()
    }

    /// Content that the server has, as a local file, for who is not a program that waits for it.
    ///
    /// # Errors
    /// When it cannot be downloaded, or what arrives does not have the hash.
    pub(crate) async fn fetch_content(
        &self,
        hash: ContentHash,
        size: u64,
        source: Option<Source>,
    ) -> Result<Arc<File>, FsError> {
        self.download(hash, size, source, Who::Staging).await
    }

    /// [`fetch_content`](Self::fetch_content) for who passes all of it on, to the server or to a file of its own: its bytes
    /// are looked at first. A copy here that was altered is fetched again.
    ///
    /// # Errors
    /// As [`fetch_content`](Self::fetch_content).
    pub(crate) async fn fetch_checked(
        &self,
        hash: ContentHash,
        size: u64,
        source: Option<Source>,
    ) -> Result<Arc<File>, FsError> {
        self.checked(hash, || self.fetch_content(hash, size, source.clone())).await
    }

    async fn checked<F>(&self, hash: ContentHash, get: impl Fn() -> F) -> Result<Arc<File>, FsError>
    where
        F: Future<Output = Result<Arc<File>, FsError>>,
    {
        let file = get().await?;
        let looked_at = file.clone();
        let check = move |fs: &Fs| match ContentHash::of_file(hash.kind(), &looked_at, || true)?.0 == hash {
            true => Ok(true),
            false => {
                fs.cache.distrust(hash);
                Ok(false)
            }
        };
        if self.blocking(check).await? { Ok(file) } else { get().await }
    }

    /// The one download of a content that is under way.
    pub(super) fn download(
        &self,
        hash: ContentHash,
        size: u64,
        source: Option<Source>,
        who: Who,
    ) -> impl Future<Output = Result<Arc<File>, FsError>> + use<> {
        let fs = self.this.upgrade();
        self.fetching.join((hash, who), |progress| {
            async move {
                let fs = fs.ok_or(FsError::Stale)?;
                fs.get_content(hash, size, source, who, &progress).await
            }
            .boxed()
        })
    }

    async fn get_content(
        &self,
        hash: ContentHash,
        size: u64,
        source: Option<Source>,
        who: Who,
        progress: &Arc<Progress>,
    ) -> Result<Arc<File>, FsError> {
        let here = |file: Arc<File>| {
            self.cache.was_wanted(true);
            Ok(file)
        };
        // Others may be bringing it along with more of its kind.
        self.ahead.wait_for(hash).await;
        match self.cache.find(hash) {
            Found::Here(file) => return here(Arc::new(file)),
            // Costs no request, and works without the server.
            Found::Lent(_, from) => {
                if let Some(file) = self.blocking(move |fs| fs.copy_lent(hash, size, &from)).await? {
                    return here(file);
                }
            }
            Found::Nowhere => {
                if let Some(file) = self.blocking(move |fs| Ok(fs.find_without_server(hash, size))).await? {
                    return here(file);
                }
            }
        }
        let source = source.ok_or(FsError::Stale)?;
        self.cache.was_wanted(false);
        if let Some(file) = self.complete_blocks(hash, size, &source, who).await? {
            return Ok(file);
        }
        self.make_room(size);
        let mut aside = false;
        let (fetched, length) = loop {
            let fetched = match self.cache.begin_somewhere(size, aside) {
                Err(error) if is_full(&error) => return Err(FsError::NoSpace),
                begun => begun?,
            };
            let length = self.patiently(who, progress, &source.path, || {
                let already = fetched.file.metadata().map_or(0, |file| file.len());
                let fetch = async { Ok(self.workspace.fetch(&source, size, &fetched.file).await?) };
                (already, fetch)
            });
            match length.await {
                // Others took the room meanwhile.
                Err(FsError::Remote(WorkspaceError::Io(error))) if is_full(&error) && !fetched.is_aside() => {
                    aside = true;
                }
                Err(FsError::Remote(error @ WorkspaceError::NotFound { .. })) => {
                    return self.fetch_by_hash(Object { hash, size }).await.ok_or(error.into());
                }
                length => break (fetched, length?),
            }
        };
        let kept = self.blocking(move |fs| Ok(fs.keep_fetched(fetched, hash, (length, size))?)).await?;
        match kept {
            Ok(file) => Ok(file),
            Err(found) => {
                let what = format!("{} has content {found} of {length} bytes, not {hash} of {size}", source.path);
                let error = self.why_not(&source, hash, what).await;
                let is_elsewhere = matches!(error, WorkspaceError::NotFound { .. } | WorkspaceError::Conflict { .. });
                // Nor is it staged there again, where its file has another name by now.
                let is_replaced = source.revision == Revision::Workspace && self.may_have_come_late(&source.path);
                let by_hash =
                    if is_elsewhere || is_replaced { self.fetch_by_hash(Object { hash, size }).await } else { None };
                by_hash.ok_or(error.into())
            }
        }
    }

    /// Content that is at its place no more, by its hash, where the server gives that: what was staged, say, and went with a
    /// workspace that somebody else emptied.
    async fn fetch_by_hash(&self, object: Object) -> Option<Arc<File>> {
        if object.size == 0 || object.size > BY_HASH_BYTES {
            return None;
        }
        let fs = self.this.upgrade()?;
        let take: Take = Arc::new(move |object, bytes| {
            if let Err(error) = fs.keep_bytes(object, &bytes) {
                tracing::debug!(%error, "what came by its hash cannot be kept");
            }
        });
        if let Err(error) = self.workspace.fetch_small(&[object], &take).await {
            tracing::debug!(%error, "the server gives no content by its hash");
        }
        let found = self.blocking(move |fs| Ok(fs.cache.file(object.hash))).await;
        found.ok().flatten().map(Arc::new)
    }

    /// Takes in a file that was fetched, which has the `length` it should have or not, if its content is what it should
    /// be; else says what it is.
    pub(super) fn keep_fetched(
        &self,
        fetched: spool::Fetching,
        hash: ContentHash,
        (length, size): (u64, u64),
    ) -> io::Result<Result<Arc<File>, ContentHash>> {
        let (found, _) = ContentHash::of_file(hash.kind(), &fetched.file, || true)?;
        if found != hash || length != size {
            return Ok(Err(found));
        }
        let file = fetched.file.clone();
        // What is to be borrowed has its name.
        self.cache.keep(fetched, hash, self.is_worthwhile(size));
        Ok(Ok(file))
    }
}
