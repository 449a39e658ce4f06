//! A workspace whose server is yet to be found: until then every request fails as it did when it was last looked for.
//!
//! Who looks for it [puts](Deferred::put) what was found in its place and makes sure that it is what is meant; then it
//! [stays](Deferred::stays), or is [taken away](Deferred::take) again.

use std::fs::File;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use super::{
    Change, CommitId, CommitInfo, CommitRequest, Committed, Differences, Fut, InHistory, Listing, Object, Outcome, Put,
    Reopened, Scope, ServerInfo, Source, Take, Upload, UploadProgress, Workspace, WorkspaceError, WorkspaceIdentity,
};
use crate::hash::ContentHash;
use crate::path::RepoPath;

/// A workspace that may not be there yet.
pub struct Deferred {
    /// What the server was when it was last there.
    recorded: ServerInfo,
    /// What it is, once that is sure.
    found: OnceLock<ServerInfo>,
    at: RwLock<Result<Arc<dyn Workspace>, WorkspaceError>>,
    /// Requests without an answer, by those that were taken away.
    unanswered: AtomicU64,
}

impl Deferred {
    /// One that is not there for this reason.
    pub fn new(recorded: ServerInfo, why: WorkspaceError) -> Self {
        Self { recorded, found: OnceLock::new(), at: RwLock::new(Err(why)), unanswered: AtomicU64::new(0) }
    }

    fn at(&self) -> Result<Arc<dyn Workspace>, WorkspaceError> {
        self.at.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, at: Result<Arc<dyn Workspace>, WorkspaceError>) {
        let before = std::mem::replace(&mut *self.at.write().unwrap_or_else(PoisonError::into_inner), at);
        if let Ok(before) = before {
            self.unanswered.fetch_add(before.unanswered(), Ordering::AcqRel);
        }
    }

    /// This one is asked from now on.
    pub fn put(&self, workspace: Arc<dyn Workspace>) {
        self.set(Ok(workspace));
    }

    /// Nobody is asked any more, for this reason.
    pub fn take(&self, why: WorkspaceError) {
        self.set(Err(why));
    }

    /// The one that was put here is what is meant.
    pub fn stays(&self) {
        if let Ok(workspace) = self.at() {
            let _ = self.found.set(workspace.info().clone());
        }
    }
}

/// The same request of the workspace that is there.
macro_rules! asked {
    ($self:ident.$method:ident($($argument:expr),*)) => {
        Box::pin(async move { $self.at()?.$method($($argument),*).await })
    };
}

impl Workspace for Deferred {
    fn info(&self) -> &ServerInfo {
        self.found.get().unwrap_or(&self.recorded)
    }

    fn unanswered(&self) -> u64 {
        let now = self.at().map_or(0, |workspace| workspace.unanswered());
        self.unanswered.load(Ordering::Acquire) + now
    }

    fn base(&self) -> Fut<'_, CommitId> {
        asked!(self.base())
    }

    fn identity(&self) -> Fut<'_, Option<WorkspaceIdentity>> {
        asked!(self.identity())
    }

    fn reopen<'a>(&'a self, branch: &'a str, base: &'a CommitId) -> Fut<'a, Reopened> {
        asked!(self.reopen(branch, base))
    }

    fn renew<'a>(&'a self, branch: &'a str) -> Fut<'a, Option<WorkspaceIdentity>> {
        asked!(self.renew(branch))
    }

    fn head<'a>(&'a self, branch: &'a str) -> Fut<'a, CommitId> {
        asked!(self.head(branch))
    }

    fn commit_info<'a>(&'a self, commit: &'a CommitId) -> Fut<'a, Option<CommitInfo>> {
        asked!(self.commit_info(commit))
    }

    fn in_history<'a>(
        &'a self,
        branch: &'a str,
        commit: &'a CommitId,
        since: Option<&'a CommitId>,
    ) -> Fut<'a, InHistory> {
        asked!(self.in_history(branch, commit, since))
    }

    fn compare<'a>(&'a self, old: &'a CommitId, new: &'a CommitId, scope: Scope<'a>) -> Fut<'a, Differences> {
        asked!(self.compare(old, new, scope))
    }

    fn missing<'a>(&'a self, hashes: &'a [ContentHash]) -> Fut<'a, Option<Vec<ContentHash>>> {
        asked!(self.missing(hashes))
    }

    fn list<'a>(&'a self, commit: &'a CommitId, dir: &'a RepoPath) -> Fut<'a, Listing> {
        asked!(self.list(commit, dir))
    }

    fn was_listed(&self, listing: &Listing) {
        if let Ok(workspace) = self.at() {
            workspace.was_listed(listing);
        }
    }

    fn changes(&self) -> Fut<'_, Vec<Change>> {
        asked!(self.changes())
    }

    fn staged_object<'a>(&'a self, change: &'a Change) -> Fut<'a, Object> {
        asked!(self.staged_object(change))
    }

    fn fetch<'a>(&'a self, source: &'a Source, size: u64, into: &'a File) -> Fut<'a, u64> {
        asked!(self.fetch(source, size, into))
    }

    fn read<'a>(&'a self, source: &'a Source, range: Range<u64>) -> Fut<'a, bytes::Bytes> {
        asked!(self.read(source, range))
    }

    fn gives_parts(&self, source: &Source) -> bool {
        self.at().is_ok_and(|workspace| workspace.gives_parts(source))
    }

    fn read_part<'a>(&'a self, source: &'a Source, range: Range<u64>) -> Fut<'a, Option<bytes::Bytes>> {
        asked!(self.read_part(source, range))
    }

    fn fetch_small<'a>(&'a self, wanted: &'a [Object], take: &'a Take) -> Fut<'a, Option<Vec<ContentHash>>> {
        asked!(self.fetch_small(wanted, take))
    }

    fn stage_by_hash<'a>(&'a self, puts: &'a [Put]) -> Fut<'a, Vec<Outcome>> {
        asked!(self.stage_by_hash(puts))
    }

    fn send_small<'a>(&'a self, puts: &'a [Put]) -> Fut<'a, Vec<Outcome>> {
        asked!(self.send_small(puts))
    }

    fn send_large<'a>(
        &'a self,
        put: &'a Put,
        resume: Option<Upload>,
        progress: &'a dyn UploadProgress,
    ) -> Fut<'a, Outcome> {
        asked!(self.send_large(put, resume, progress))
    }

    fn remove<'a>(&'a self, paths: &'a [RepoPath]) -> Fut<'a, Vec<Outcome>> {
        asked!(self.remove(paths))
    }

    fn unstage<'a>(&'a self, paths: &'a [RepoPath]) -> Fut<'a, Vec<Outcome>> {
        asked!(self.unstage(paths))
    }

    fn rename<'a>(&'a self, from: &'a RepoPath, to: &'a RepoPath) -> Fut<'a, ()> {
        asked!(self.rename(from, to))
    }

    fn conflicts<'a>(&'a self, branch: &'a str) -> Fut<'a, Vec<RepoPath>> {
        asked!(self.conflicts(branch))
    }

    fn commit<'a>(&'a self, request: &'a CommitRequest) -> Fut<'a, Committed> {
        asked!(self.commit(request))
    }
}
