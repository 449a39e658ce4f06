//! The Oxen server over HTTP: [`Repository`] creates and looks things up, [`OxenWorkspace`] is the
//! [`Workspace`] that a mount works on.
//!
//! | module | owns |
//! |---|---|
//! | `connect` | from a mount's settings to its workspace |
//! | `http` | addresses, credentials, deadlines; answers as values and errors |
//! | `retry` | when a request is made again |
//! | `recognition` | whether the repository at the address is the one that is meant |
//! | `dialect` | what this server can do |
//! | `wire` | the protocol's JSON and the sources of its facts |
//! | `body`, `multipart` | request bodies streamed from files |
//! | `repository` | servers, repositories, branches, workspaces |
//! | `listing` | what is committed and what is staged |
//! | `content` | reading files |
//! | `archive` | many small contents in one answer |
//! | `staging` | content by hash, small files |
//! | `removal` | removals, unstaging, moves |
//! | `marks` | what a change that was taken back leaves, and names for a moment |
//! | `upload` | large files |
//! | `commit` | conflicts and commits |
//! | `history` | commits that exist, and where two of them differ |
//! | `log` | what was committed, newest first |
//! | `stored` | which contents the server has |

mod archive;
mod body;
mod commit;
mod connect;
mod content;
mod dialect;
mod history;
mod http;
mod listing;
mod log;
mod marks;
mod multipart;
mod names;
mod overlooked;
mod recognition;
mod removal;
mod repository;
mod retry;
mod staging;
mod stored;
mod upload;
mod wire;

use std::collections::HashSet;
use std::fs::File;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use futures_util::FutureExt;

pub use self::connect::{Connected, Opened, connect, create, reconnect, repository};
pub use self::http::Credentials;
pub use self::log::History;
pub use self::repository::{
    Claim, Contents, InitialFile, NewRepository, Repository, RepositoryInfo, S3Storage, StagedCounts, Storage, User,
};
pub use self::wire::{Branch, Commit, WorkspaceInfo};
use crate::activity::Activity;
pub use crate::config::Secret;
use crate::hash::ContentHash;
use crate::path::RepoPath;
use crate::workspace::{
    Change, CommitId, CommitInfo, CommitRequest, Committed, Differences, Fut, InHistory, Listing, Object, Outcome, Put,
    Reopened, Scope, ServerInfo, Source, Take, Upload, UploadProgress, Workspace, WorkspaceError, WorkspaceIdentity,
};

/// What this program calls itself. Servers take an agent with "oxen" in it, in any case, for their official client and
/// refuse its version with 426 (0.65.2, tried).
pub const USER_AGENT: &str = concat!("workspace-mount/", env!("CARGO_PKG_VERSION"));

/// A repository's address and how to be let in.
#[derive(Clone)]
pub struct Endpoint {
    /// `http://host:port` or `https://host`, with a path where a gateway has one.
    pub server: String,
    /// User or organization.
    pub namespace: String,
    /// The repository's name.
    pub repo: String,
    /// Must not contain "oxen".
    pub user_agent: String,
    /// Where the token comes from; asked again after a 401.
    pub credentials: Credentials,
    /// Whether small files that shrink are sent compressed; `None` leaves it to the address: not to this machine.
    pub compress: Option<bool>,
    /// How long the server may be silent, or send next to nothing, when it is asked for something, before another
    /// connection is tried; `None`: half a minute.
    pub stall: Option<Duration>,
    /// Only requests that change nothing are sent: GET, HEAD and QUERY. Any other fails here.
    pub read_only: bool,
    /// Where requests are counted.
    pub activity: Arc<Activity>,
}

impl Endpoint {
    /// Without credentials, under [`USER_AGENT`].
    pub fn new(server: impl Into<String>, namespace: impl Into<String>, repo: impl Into<String>) -> Self {
        Self {
            server: server.into(),
            namespace: namespace.into(),
            repo: repo.into(),
            user_agent: USER_AGENT.to_owned(),
            credentials: std::sync::Arc::new(|| None),
            compress: None,
            stall: None,
            read_only: false,
            activity: Arc::default(),
        }
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint")
            .field("server", &self.server)
            .field("namespace", &self.namespace)
            .field("repo", &self.repo)
            .finish_non_exhaustive()
    }
}

/// A workspace on a server, or a commit that is read as if it were one in which nothing is staged.
pub struct OxenWorkspace {
    repo: Repository,
    /// The commit that is read; `None`: there is a workspace.
    commit: Option<CommitId>,
    /// Another one once the workspace was made anew by somebody else under the same name.
    id: RwLock<Arc<str>>,
    name: String,
    created: bool,
    /// Others may use it.
    shared: bool,
    dialect: dialect::Dialect,
    info: ServerInfo,
    compress: bool,
    /// Commits that were seen to exist: a directory that is missing in one is empty.
    known_commits: Mutex<HashSet<CommitId>>,
    /// Set once the server turned out to have no route for ranges.
    no_ranges: AtomicBool,
    /// How many changes there were when all were listed last.
    listed_changes: AtomicUsize,
    in_parts: upload::InParts,
    stored: stored::Questions,
    /// Set once the server turned out to have no route that compares commits.
    no_compare: AtomicBool,
    /// Set once the server turned out not to give many contents at once.
    no_archives: AtomicBool,
}

impl OxenWorkspace {
    /// Opens the workspace called `name`, which is made to stand on `branch` where it does not exist, and finds out
    /// what the server can do. An empty repository gets a first commit on `branch`.
    ///
    /// # Errors
    /// [`WorkspaceError::NotFound`] without that repository or branch; else as the server answers.
    pub async fn open(endpoint: &Endpoint, name: &str, branch: &str) -> Result<Self, WorkspaceError> {
        Repository::connect(endpoint)?.open_workspace(name, branch, Claim::Own).await
    }

    /// Its id on the server.
    pub fn id(&self) -> Arc<str> {
        self.id.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether opening made it.
    pub fn is_new(&self) -> bool {
        self.created
    }

    /// The repository it is in.
    pub fn repository(&self) -> &Repository {
        &self.repo
    }

    /// A path below this workspace's own.
    fn url(&self, rest: &str) -> String {
        self.repo.url(&format!("workspaces/{}/{rest}", http::segment(&self.id())))
    }

    /// What is missing when a request to the workspace as such is answered 404.
    fn what(&self) -> String {
        format!("workspace {}", self.name)
    }
}

impl Workspace for OxenWorkspace {
    fn info(&self) -> &ServerInfo {
        &self.info
    }

    fn unanswered(&self) -> u64 {
        self.repo.http.unanswered()
    }

    fn base(&self) -> Fut<'_, CommitId> {
        async {
            match &self.commit {
                Some(commit) => Ok(commit.clone()),
                None => Ok(self.standing().await?.commit_id()),
            }
        }
        .boxed()
    }

    fn identity(&self) -> Fut<'_, Option<WorkspaceIdentity>> {
        async {
            match &self.commit {
                // There is nothing that others could take away.
                Some(commit) => Ok(Some(WorkspaceIdentity { id: self.id(), commit: commit.clone(), created_at: None })),
                None => self.identity_now().await,
            }
        }
        .boxed()
    }

    fn reopen<'a>(&'a self, branch: &'a str, base: &'a CommitId) -> Fut<'a, Reopened> {
        self.open_again(branch, base).boxed()
    }

    fn renew<'a>(&'a self, branch: &'a str) -> Fut<'a, Option<WorkspaceIdentity>> {
        self.open_anew(branch).boxed()
    }

    fn head<'a>(&'a self, branch: &'a str) -> Fut<'a, CommitId> {
        self.head_of(branch).boxed()
    }

    fn commit_info<'a>(&'a self, commit: &'a CommitId) -> Fut<'a, Option<CommitInfo>> {
        self.look_up(commit).boxed()
    }

    fn in_history<'a>(
        &'a self,
        branch: &'a str,
        commit: &'a CommitId,
        since: Option<&'a CommitId>,
    ) -> Fut<'a, InHistory> {
        self.look_in_history(branch, commit, since).boxed()
    }

    fn compare<'a>(&'a self, old: &'a CommitId, new: &'a CommitId, scope: Scope<'a>) -> Fut<'a, Differences> {
        self.compare_commits(old, new, scope).boxed()
    }

    fn missing<'a>(&'a self, hashes: &'a [ContentHash]) -> Fut<'a, Option<Vec<ContentHash>>> {
        self.not_stored(hashes).boxed()
    }

    fn list<'a>(&'a self, commit: &'a CommitId, dir: &'a RepoPath) -> Fut<'a, Listing> {
        self.list_commit(commit, dir).boxed()
    }

    fn was_listed(&self, listing: &Listing) {
        self.note_committed(&listing.entries);
    }

    fn changes(&self) -> Fut<'_, Vec<Change>> {
        async {
            match &self.commit {
                Some(_) => Ok(Vec::new()),
                None => self.staged_changes().await,
            }
        }
        .boxed()
    }

    fn staged_object<'a>(&'a self, change: &'a Change) -> Fut<'a, Object> {
        self.what_is_staged(change).boxed()
    }

    fn fetch<'a>(&'a self, source: &'a Source, size: u64, into: &'a File) -> Fut<'a, u64> {
        self.fetch_into(source, size, into).boxed()
    }

    fn read<'a>(&'a self, source: &'a Source, range: Range<u64>) -> Fut<'a, bytes::Bytes> {
        self.read_range(source, range).boxed()
    }

    fn gives_parts(&self, source: &Source) -> bool {
        self.may_give_parts(source)
    }

    fn read_part<'a>(&'a self, source: &'a Source, range: Range<u64>) -> Fut<'a, Option<bytes::Bytes>> {
        self.read_part_of(source, range).boxed()
    }

    fn fetch_small<'a>(&'a self, wanted: &'a [Object], take: &'a Take) -> Fut<'a, Option<Vec<ContentHash>>> {
        self.fetch_archive(wanted, take).boxed()
    }

    fn stage_by_hash<'a>(&'a self, puts: &'a [Put]) -> Fut<'a, Vec<Outcome>> {
        self.stage_known(puts).boxed()
    }

    fn send_small<'a>(&'a self, puts: &'a [Put]) -> Fut<'a, Vec<Outcome>> {
        self.send_files(puts).boxed()
    }

    fn send_large<'a>(
        &'a self,
        put: &'a Put,
        resume: Option<Upload>,
        progress: &'a dyn UploadProgress,
    ) -> Fut<'a, Outcome> {
        self.send_file(put, resume, progress).boxed()
    }

    fn remove<'a>(&'a self, paths: &'a [RepoPath]) -> Fut<'a, Vec<Outcome>> {
        self.remove_files(paths).boxed()
    }

    fn unstage<'a>(&'a self, paths: &'a [RepoPath]) -> Fut<'a, Vec<Outcome>> {
        self.drop_changes(paths).boxed()
    }

    fn rename<'a>(&'a self, from: &'a RepoPath, to: &'a RepoPath) -> Fut<'a, ()> {
        self.move_file(from, to).boxed()
    }

    fn conflicts<'a>(&'a self, branch: &'a str) -> Fut<'a, Vec<RepoPath>> {
        self.find_conflicts(branch).boxed()
    }

    fn commit<'a>(&'a self, request: &'a CommitRequest) -> Fut<'a, Committed> {
        self.commit_staged(request).boxed()
    }
}
