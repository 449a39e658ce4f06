//! The seam between oxenfs and whatever holds the workspace: one trait, its values and its errors.
//!
//! Implementations: `oxen::OxenWorkspace` over HTTP; in tests, a double in memory. No method keeps state that
//! the caller would need after a crash: what must survive is returned, and the caller writes it down.

pub mod deferred;
pub mod memory;
pub mod progress;
pub mod verify;
pub mod which;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::hash::{ContentHash, HashKind};
use crate::path::RepoPath;

/// What every method returns: a future that may be dropped at any time. Dropping one abandons its request; the effect
/// on the server is then unknown, and repeating the call is safe (but for [`Workspace::commit`]).
pub type Fut<'a, T> = Pin<Box<dyn Future<Output = Result<T, WorkspaceError>> + Send + 'a>>;

/// Takes in content that has arrived whole and whose hash nobody has checked. Called where it may wait for the disk.
pub type Take = Arc<dyn Fn(Object, Vec<u8>) + Send + Sync>;

/// A commit's id, as the server prints it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CommitId(pub Arc<str>);

impl std::fmt::Display for CommitId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A file's content: what it is, not where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Object {
    /// Hash of the whole content.
    pub hash: ContentHash,
    /// Length in bytes.
    pub size: u64,
}

/// Where bytes can be read from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Which tree.
    pub revision: Revision,
    /// The file's path in it.
    pub path: RepoPath,
}

/// A tree on the server.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Revision {
    /// A commit: immutable.
    Commit(CommitId),
    /// The workspace: its commit with the staged changes over it.
    Workspace,
}

/// One entry of a committed directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its last path component; not yet checked, a server may send anything.
    pub name: String,
    /// What it is.
    pub kind: EntryKind,
    /// When the commit that last touched it was made, in seconds since the epoch; 0 when the server does not say.
    pub modified_secs: i64,
}

/// The entries of a committed directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// Those that are what an entry should be.
    pub entries: Vec<Entry>,
    /// The others.
    pub flawed: Vec<Flawed>,
}

impl IntoIterator for Listing {
    type Item = Entry;
    type IntoIter = std::vec::IntoIter<Entry>;

    fn into_iter(self) -> Self::IntoIter {
        self.entries.into_iter()
    }
}

/// An entry that the server lists and that cannot be used: without a hash, say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flawed {
    /// Its name; `None` where there is none.
    pub name: Option<String>,
    /// What is wrong with it.
    pub why: String,
}

/// A file's content, or a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File(Object),
    /// A directory.
    Dir,
}

/// One staged change of the workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The file it is about.
    pub path: RepoPath,
    /// What is staged for it.
    pub kind: ChangeKind,
}

/// How a staged change differs from the base commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// The base has no such file.
    Added,
    /// The base has other content there.
    Modified,
    /// The base has it; the workspace does not.
    Removed,
}

/// Content to be staged at a path.
#[derive(Debug, Clone)]
pub struct Put {
    /// Where.
    pub path: RepoPath,
    /// What.
    pub object: Object,
    /// The bytes: a sealed file that nothing changes while this value lives. `None` when they are not here, as after
    /// a rename of remote content: then only asking by hash can stage it.
    pub file: Option<Arc<File>>,
    /// What it takes the place of.
    pub over: Over,
}

/// What the base has where content is to be staged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Over {
    /// Nothing, or content of another length.
    #[default]
    Other,
    /// Other content of the same length: a server may take the one for the other.
    SameLength {
        /// Something is staged there, or may be.
        staged: bool,
    },
}

/// What became of one [`Put`] or one path.
#[derive(Debug)]
pub enum Outcome {
    /// The server confirmed it for this path; `sent_bytes` of content travelled for it.
    Done {
        /// Content bytes sent, before compression.
        sent_bytes: u64,
    },
    /// The server does not hold this content: send the bytes.
    NeedsBytes,
    /// This one did not work; the others are not affected.
    Failed(WorkspaceError),
}

/// How far a large upload got, in the form that survives a crash: written down by the caller, given back on resume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upload {
    /// The server's name for it; empty where the protocol has none.
    pub id: String,
    /// Length of every part but the last, in bytes.
    pub part_bytes: u64,
    /// Parts the server acknowledged, from 0, ascending.
    pub parts: Vec<u32>,
}

/// Receives a large upload's progress; called from the request's task, must not block.
pub trait UploadProgress: Send + Sync {
    /// The state to be written down for a resume.
    fn checkpoint(&self, upload: &Upload);
    /// `bytes` more were acknowledged.
    fn sent(&self, bytes: u64);
}

/// What staging by hash costs and takes on this server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ByHash {
    /// It cannot; bytes always travel.
    Never,
    /// One request for many files.
    Batch,
    /// One request a file.
    Single,
}

/// What is known of the server after connecting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerInfo {
    /// What the server says of itself, for example `0.65.2`.
    pub version: String,
    /// The protocol spoken with it, for example `0.65` or `documented`.
    pub dialect: Cow<'static, str>,
    /// The function that names content.
    pub hash_kind: HashKind,
    /// How content can be staged without its bytes.
    pub by_hash: ByHash,
}

/// A commit to be made of everything staged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommitRequest {
    /// The branch it goes to.
    pub branch: String,
    /// Its message.
    pub message: String,
    /// Its author's name.
    pub author: String,
    /// Its author's address.
    pub email: String,
}

/// A commit that was made.
#[derive(Debug, Clone)]
pub struct Committed {
    /// The new commit, which the workspace now stands on.
    pub id: CommitId,
    /// The commits it follows.
    pub parents: Vec<CommitId>,
}

/// What tells a workspace from another one of the same name. A commit moves a workspace and leaves the rest of this as
/// it was; a workspace that was deleted and made anew has another time of creation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkspaceIdentity {
    /// The server's id for it.
    pub id: Arc<str>,
    /// The commit it stands on.
    pub commit: CommitId,
    /// When it was made, as the server prints it. `None`: an old server, or a workspace from before it recorded this.
    pub created_at: Option<Arc<str>>,
}

impl WorkspaceIdentity {
    /// Whether `other` is this workspace, perhaps on another commit. Where the server does not record when workspaces
    /// are made, one that was made anew is taken for the old one: its staged changes tell then.
    pub fn is_same_as(&self, other: &Self) -> bool {
        (&self.id, &self.created_at) == (&other.id, &other.created_at)
    }
}

/// A workspace that was asked for again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reopened {
    /// What it is now.
    pub identity: WorkspaceIdentity,
    /// Whether this call made it. Nothing is staged in it then.
    pub made: bool,
}

/// A commit without its tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitInfo {
    /// Its id.
    pub id: CommitId,
    /// The commits it follows.
    pub parents: Vec<CommitId>,
    /// Its author's name.
    pub author: String,
    /// Its author's address.
    pub email: String,
    /// Its message.
    pub message: String,
}

/// Whether a branch has a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InHistory {
    /// It has.
    Yes,
    /// It has not: its history was looked through.
    No,
    /// The history is too long to be looked through, or the server does not show it.
    Unknown,
}

/// What two commits have at one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sides {
    /// What the old one has.
    pub old: Option<EntryKind>,
    /// What the new one has.
    pub new: Option<EntryKind>,
}

impl Sides {
    /// Whether both have a directory there.
    pub fn are_dirs(&self) -> bool {
        self.old == Some(EntryKind::Dir) && self.new == Some(EntryKind::Dir)
    }
}

/// The paths at which two commits differ. A directory that both have is among them where its own directory was
/// compared and something below it differs: commits name each directory by a hash of all that is in it.
pub type Differences = BTreeMap<RepoPath, Sides>;

/// How much of two commits is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope<'a> {
    /// The entries of these directories, without what is below them: two requests a directory.
    Directories(&'a [RepoPath]),
    /// Everything, in one request that costs the server a walk over both trees.
    Everything,
}

/// A workspace and the repository around it.
pub trait Workspace: Send + Sync + 'static {
    /// What connecting found out.
    fn info(&self) -> &ServerInfo;

    /// How many requests that change something were sent since the start and went without an answer: given up, cut off,
    /// or answered by a gateway that had none. The server may carry out each of them at any later time.
    fn unanswered(&self) -> u64;

    /// The commit the workspace stands on now; asks the server.
    fn base(&self) -> Fut<'_, CommitId>;

    /// The workspace as it is now; `None` when there is none any more.
    fn identity(&self) -> Fut<'_, Option<WorkspaceIdentity>>;

    /// The workspace as it is now, made on `base` where there is none any more, or on what `branch` has become where the
    /// server cannot do that: by the request that opening one makes, so two clients that do it at once get the same.
    /// Later requests go to what is found, also where another client made it under another id.
    fn reopen<'a>(&'a self, branch: &'a str, base: &'a CommitId) -> Fut<'a, Reopened>;

    /// Replaces the workspace by one of the same name on what `branch` has become, with nothing staged in it. `None`: others
    /// may use it, and it stays. The caller keeps what was staged.
    fn renew<'a>(&'a self, branch: &'a str) -> Fut<'a, Option<WorkspaceIdentity>>;

    /// The commit that `branch` stands on.
    fn head<'a>(&'a self, branch: &'a str) -> Fut<'a, CommitId>;

    /// A commit's parents, author and message; `None` when the repository has no such commit.
    fn commit_info<'a>(&'a self, commit: &'a CommitId) -> Fut<'a, Option<CommitInfo>>;

    /// Whether `branch` has `commit`, looked for from its head down to `since`, which itself counts as not looked at:
    /// a commit made after `since` was the head is above it.
    fn in_history<'a>(
        &'a self,
        branch: &'a str,
        commit: &'a CommitId,
        since: Option<&'a CommitId>,
    ) -> Fut<'a, InHistory>;

    /// Where two commits differ within `scope`.
    ///
    /// # Errors
    /// [`WorkspaceError::Unsupported`] for [`Scope::Everything`] on a server that cannot compare; as
    /// [`list`](Workspace::list) else.
    fn compare<'a>(&'a self, old: &'a CommitId, new: &'a CommitId, scope: Scope<'a>) -> Fut<'a, Differences>;

    /// Which of these contents the server does not have, whatever its commits and workspaces refer to; no content
    /// travels. `None`: this server cannot tell.
    fn missing<'a>(&'a self, hashes: &'a [ContentHash]) -> Fut<'a, Option<Vec<ContentHash>>>;

    /// The entries of a directory of `commit`, unordered; empty when it is not there (a directory without committed
    /// files does not exist on the server).
    fn list<'a>(&'a self, commit: &'a CommitId, dir: &'a RepoPath) -> Fut<'a, Listing>;

    /// What [`list`](Workspace::list) answered once, to this or an earlier client of the same repository, and was kept.
    fn was_listed(&self, _listing: &Listing) {}

    /// All staged changes, unordered.
    fn changes(&self) -> Fut<'_, Vec<Change>>;

    /// What is staged at a path that [`changes`](Workspace::changes) calls added or modified. Reads the whole staged
    /// file where the server's metadata cannot be taken at its word.
    fn staged_object<'a>(&'a self, change: &'a Change) -> Fut<'a, Object>;

    /// Copies a whole file of at most `size` bytes into `into`, and returns its length. What `into` holds already is from an
    /// earlier attempt to fetch the same; it may be gone on with. The caller checks the hash.
    ///
    /// # Errors
    /// [`WorkspaceError::Protocol`] as soon as it turns out that there are more bytes.
    fn fetch<'a>(&'a self, source: &'a Source, size: u64, into: &'a File) -> Fut<'a, u64>;

    /// `range` of a file, in bytes from its start; shorter where the file ends earlier.
    fn read<'a>(&'a self, source: &'a Source, range: Range<u64>) -> Fut<'a, bytes::Bytes>;

    /// Whether [`read_part`](Workspace::read_part) may give parts of such a file, as far as is known without asking.
    fn gives_parts(&self, source: &Source) -> bool;

    /// `range` of a file, in bytes from its start, all of it: for who knows how long the file is. No more than that is
    /// asked for, nor than the server has to hold in memory at a time, so it is one request or few. `None`: the server
    /// gives no parts of it, or not there; it is to be [fetched](Workspace::fetch) whole.
    fn read_part<'a>(&'a self, source: &'a Source, range: Range<u64>) -> Fut<'a, Option<bytes::Bytes>>;

    /// Small contents, as many as are wanted in one answer, each handed to `take` once it is there, in any order; all are
    /// in memory one after the other. Returns those that the server does not have; `None`: this server cannot do it, and
    /// what was not taken yet is [fetched](Workspace::fetch) one by one.
    ///
    /// # Errors
    /// What was taken until then is whole.
    fn fetch_small<'a>(&'a self, wanted: &'a [Object], take: &'a Take) -> Fut<'a, Option<Vec<ContentHash>>>;

    /// Stages content that the server already holds. One outcome per item, in order: [`Outcome::NeedsBytes`] where it
    /// does not hold it (always, under [`ByHash::Never`]). No content travels.
    ///
    /// # Errors
    /// Only when nothing is known about any item.
    fn stage_by_hash<'a>(&'a self, puts: &'a [Put]) -> Fut<'a, Vec<Outcome>>;

    /// Sends small files in one request, streamed from disk. One outcome per item, in order; done only where the
    /// answer names the path.
    ///
    /// # Errors
    /// Only when nothing is known about any item.
    fn send_small<'a>(&'a self, puts: &'a [Put]) -> Fut<'a, Vec<Outcome>>;

    /// Sends one file in parts, several at once, after asking by hash where the protocol begins that way; goes on
    /// with `resume` where the server still knows it, else begins anew. Empty files go through
    /// [`send_small`](Workspace::send_small).
    fn send_large<'a>(
        &'a self,
        put: &'a Put,
        resume: Option<Upload>,
        progress: &'a dyn UploadProgress,
    ) -> Fut<'a, Outcome>;

    /// Stages the removal of files and directories of the base, the latter with all below; what is only staged there is
    /// unstaged.
    fn remove<'a>(&'a self, paths: &'a [RepoPath]) -> Fut<'a, Vec<Outcome>>;

    /// Drops what is staged for these files, so that the base shows again, also below a directory whose removal is
    /// staged. A path with nothing staged counts as done.
    fn unstage<'a>(&'a self, paths: &'a [RepoPath]) -> Fut<'a, Vec<Outcome>>;

    /// Moves one staged or committed file on the server. Fails where `to` exists in the base.
    fn rename<'a>(&'a self, from: &'a RepoPath, to: &'a RepoPath) -> Fut<'a, ()>;

    /// Paths that were changed both here and on `branch` since the base; empty when a commit can go through.
    fn conflicts<'a>(&'a self, branch: &'a str) -> Fut<'a, Vec<RepoPath>>;

    /// Commits everything staged. Never repeated blindly: after a lost answer the branch's head tells whether it
    /// happened. The commit that is returned was found in the branch, above what its head was before.
    ///
    /// # Errors
    /// [`WorkspaceError::Protocol`] when the server names a commit that the branch does not have.
    fn commit<'a>(&'a self, request: &'a CommitRequest) -> Fut<'a, Committed>;
}

/// One attempt at a request, as the server's log and ours name it: 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestId(u128);

impl RequestId {
    /// Another than any before.
    pub fn random() -> Self {
        Self(fastrand::u128(..))
    }
}

impl std::fmt::Display for RequestId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// What an error says of its request, behind everything else.
struct OfRequest<'a>(&'a Option<RequestId>);

impl std::fmt::Display for OfRequest<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.map_or(Ok(()), |request| write!(f, " (request {request})"))
    }
}

/// Why the server or the way to it said no. Where one request was refused, its id stands at the end of the text.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WorkspaceError {
    /// No connection, or it broke before an answer came.
    #[error("cannot reach {server}: {cause}{}", OfRequest(.request))]
    Unreachable {
        /// Scheme, host and port.
        server: String,
        /// The last link of the error chain, in words.
        cause: String,
        /// The request, where it was one.
        request: Option<RequestId>,
    },
    /// No answer in time.
    #[error("no answer within {} s{}", .after.as_secs_f32(), OfRequest(.request))]
    TimedOut {
        /// The deadline that passed.
        after: Duration,
        /// The request, where it was one.
        request: Option<RequestId>,
    },
    /// 429, or 503 with `Retry-After`.
    #[error("the server is busy{}", OfRequest(.request))]
    Busy {
        /// What `Retry-After` asked for.
        retry_after: Option<Duration>,
        /// The request, where it was one.
        request: Option<RequestId>,
    },
    /// 5xx.
    #[error("the server failed: {status} {message}{}", OfRequest(.request))]
    Server {
        /// HTTP status.
        status: u16,
        /// Its own words.
        message: String,
        /// The request, where it was one.
        request: Option<RequestId>,
    },
    /// 401: no token, or one that is not accepted.
    #[error("the server does not accept the credentials{}", OfRequest(.request))]
    Unauthorized {
        /// The request, where it was one.
        request: Option<RequestId>,
    },
    /// 403.
    #[error("access denied: {message}{}", OfRequest(.request))]
    Forbidden {
        /// Its own words.
        message: String,
        /// The request, where it was one.
        request: Option<RequestId>,
    },
    /// 404 for the repository, the branch, the workspace or the file that the request named.
    #[error("not found: {what}{}", OfRequest(.request))]
    NotFound {
        /// What was looked for.
        what: String,
        /// The request, where it was one.
        request: Option<RequestId>,
    },
    /// 409: something is there that excludes it, or the branch moved on.
    #[error("conflict: {message}{}", OfRequest(.request))]
    Conflict {
        /// Its own words.
        message: String,
        /// The request, where it was one.
        request: Option<RequestId>,
    },
    /// 413 or 507: too large, or the server's storage is used up.
    #[error("the server has no room: {message}{}", OfRequest(.request))]
    NoSpace {
        /// Its own words.
        message: String,
        /// The request, where it was one.
        request: Option<RequestId>,
    },
    /// Any other 4xx: repeating it will not help.
    #[error("the server refused: {status} {message}{}", OfRequest(.request))]
    Refused {
        /// HTTP status.
        status: u16,
        /// Its own words.
        message: String,
        /// The request, where it was one.
        request: Option<RequestId>,
    },
    /// A 200 whose body does not confirm the effect. Repeating is safe.
    #[error("the server did not confirm {what}")]
    Unconfirmed {
        /// The path or request.
        what: String,
    },
    /// An answer that is no answer: bad JSON, a short body, content that does not have its hash.
    #[error("unexpected answer: {detail}{}", OfRequest(.request))]
    Protocol {
        /// What was wrong.
        detail: String,
        /// The request, where it was one.
        request: Option<RequestId>,
    },
    /// This dialect cannot do it.
    #[error("this server cannot {what}")]
    Unsupported {
        /// The operation.
        what: &'static str,
    },
    /// The server takes the content for what the branch has at that path, and has no way to store it anew: it can be
    /// staged once the branch has nothing there.
    #[error(
        "this server cannot tell it from what the branch has there, which is as long and was stored at the same time; \
         the next commit brings it, in two steps"
    )]
    Overlooked,
    /// The repository of this name at this address is not the one that is known. Nothing is asked of it.
    #[error("{server} has another repository {repo} than before: {known}, {found}")]
    Another {
        /// Scheme, host and port.
        server: String,
        /// `NAMESPACE/NAME`.
        repo: String,
        /// What is known of the one that is meant.
        known: String,
        /// What is there.
        found: String,
    },
    /// A local file could not be read or written.
    #[error("local file: {0}")]
    Io(#[source] Arc<std::io::Error>),
}

impl From<std::io::Error> for WorkspaceError {
    fn from(error: std::io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

impl WorkspaceError {
    /// Whether the same request may succeed later without anybody changing it: the only retry policy there is.
    /// Expired credentials are transient: they are read again for every attempt.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::TimedOut { .. }
            | Self::Busy { .. }
            | Self::Server { .. }
            | Self::Unauthorized { .. }
            | Self::Unconfirmed { .. }
            | Self::Another { .. }
            | Self::Protocol { .. } => true,
            Self::Forbidden { .. }
            | Self::NotFound { .. }
            | Self::Conflict { .. }
            | Self::NoSpace { .. }
            | Self::Refused { .. }
            | Self::Unsupported { .. }
            | Self::Overlooked
            | Self::Io(_) => false,
        }
    }

    /// Whether it is a refusal that often has another cause than what was asked, and passes: a redirect or an answer of a
    /// portal or a proxy on the way, a server that is just being replaced by another version. 422 tells that the server
    /// understood the request and will not do it, and a refusal without a status is the client's own.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Refused { status, .. } => !matches!(status, 0 | 422),
            Self::Conflict { .. } => true,
            _ => false,
        }
    }

    /// Whether the server, or the way to it, is away or slow, and not at odds with what is asked for: whoever needs the
    /// answer waits.
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::TimedOut { .. } | Self::Busy { .. } | Self::Another { .. } => true,
            Self::Server { status, .. } => matches!(status, 408 | 502..=504),
            _ => false,
        }
    }

    /// The request that it is about, where it is about one.
    pub fn request(&self) -> Option<RequestId> {
        match self {
            Self::Unreachable { request, .. }
            | Self::TimedOut { request, .. }
            | Self::Busy { request, .. }
            | Self::Server { request, .. }
            | Self::Unauthorized { request }
            | Self::Forbidden { request, .. }
            | Self::NotFound { request, .. }
            | Self::Conflict { request, .. }
            | Self::NoSpace { request, .. }
            | Self::Refused { request, .. }
            | Self::Protocol { request, .. } => *request,
            Self::Unconfirmed { .. }
            | Self::Unsupported { .. }
            | Self::Overlooked
            | Self::Another { .. }
            | Self::Io(_) => None,
        }
    }

    /// The same without the request's id: two that differ in it alone are one and the same trouble.
    pub fn reason(&self) -> String {
        let mut text = self.to_string();
        // Each variant that has it has it at the end.
        let end = OfRequest(&self.request()).to_string().len();
        text.truncate(text.len() - end);
        text
    }

    /// What it is in one word, as measurements name it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "unreachable",
            Self::TimedOut { .. } => "timed_out",
            Self::Busy { .. } => "busy",
            Self::Server { .. } => "server_error",
            Self::Unauthorized { .. } => "unauthorized",
            Self::Forbidden { .. } => "forbidden",
            Self::NotFound { .. } => "not_found",
            Self::Conflict { .. } => "conflict",
            Self::NoSpace { .. } => "no_space",
            Self::Refused { .. } | Self::Unsupported { .. } => "refused",
            Self::Unconfirmed { .. } | Self::Protocol { .. } | Self::Overlooked => "protocol",
            Self::Another { .. } => "another_repository",
            Self::Io(_) => "local_disk",
        }
    }

    /// How long the server asked to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_two_requests_have_one_reason() {
        let errors = |request| {
            let message = || "no".to_owned();
            [
                WorkspaceError::Unreachable { server: "s".into(), cause: "c".into(), request },
                WorkspaceError::TimedOut { after: Duration::from_secs(3), request },
                WorkspaceError::Busy { retry_after: None, request },
                WorkspaceError::Server { status: 500, message: message(), request },
                WorkspaceError::Unauthorized { request },
                WorkspaceError::Forbidden { message: message(), request },
                WorkspaceError::NotFound { what: "w".into(), request },
                WorkspaceError::Conflict { message: message(), request },
                WorkspaceError::NoSpace { message: message(), request },
                WorkspaceError::Refused { status: 400, message: message(), request },
                WorkspaceError::Protocol { detail: "d".into(), request },
            ]
        };
        let (one, other) = (RequestId::random(), RequestId::random());
        for ((one_of, other_of), of_none) in errors(Some(one)).iter().zip(&errors(Some(other))).zip(&errors(None)) {
            assert_eq!(one_of.to_string(), format!("{of_none} (request {one})"));
            assert_ne!(one_of.to_string(), other_of.to_string());
            assert_eq!(one_of.reason(), other_of.reason());
            assert_eq!(one_of.reason(), of_none.to_string());
        }
        assert_eq!(RequestId(0x3f2a).to_string().len(), 32);
    }
}
