//! The daemon's control socket: one JSON value a line, a request from the command, then events until one says it is
//! the last. The socket lies in the mount's state directory, which only its owner can enter.

pub mod client;
pub mod passing;
pub mod words;

use serde::{Deserialize, Serialize};

use crate::activity;
use crate::path::Name;
use crate::report::{
    BadPattern, Cached, Conflict, Counts, Difference, FileError, IgnoredBy, LocalPath, Progress, SparseFile,
    TakenAlong, Tally, Unreadable,
};

/// What a command asks of a running daemon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Request {
    /// Whether the daemon can work at all: [`Event::Done`] at once.
    Ping,
    /// One [`Event::Status`].
    Status,
    /// One [`Event::Measures`].
    Measures,
    /// All that happens from now on, as [`Event::Happened`], until the command hangs up or the daemon ends.
    Events,
    /// What is logged: one [`Event::LogLevel`].
    LogLevel {
        /// What is to be logged from now on; `None` leaves it.
        level: Option<String>,
    },
    /// What the next commit would change: [`Event::Differences`], as often as it takes, then [`Event::Done`].
    Diff,
    /// Stage what was written up to now: all of it, or what lies at these paths (repository paths, relative to the
    /// mount's root; a directory means all below it). [`Event::Progress`] until [`Event::Done`].
    Sync {
        /// Empty means everything.
        paths: Vec<String>,
        /// A commit comes next: what goes with that alone is no failure.
        #[serde(default)]
        before_commit: bool,
    },
    /// Drain, then unmount and end the daemon. [`Event::Progress`], then [`Event::Done`] just before it ends.
    /// Hanging up before that leaves the mount as it is, and the rest queued.
    Unmount,
    /// Unmount at once and end the daemon; the rest stays on record for the next mount.
    Detach,
    /// Take files in. [`Event::Importing`], and then the command sends [`Import`]s, each answered by one
    /// [`Event::Imported`] in any order; [`Event::Done`] follows [`Import::End`]. Hanging up before that stops it.
    Import {
        /// The directory that everything goes into, from the mount's root.
        into: Vec<Name>,
    },
    /// Put paths back to what the base or another commit has: [`Event::Differences`] that go, as often as it takes, then
    /// [`Event::Done`].
    Restore {
        /// Paths from the mount's root; a directory means all below it, the empty path all.
        paths: Vec<String>,
        /// The branch or commit; `None` is the base.
        #[serde(default)]
        source: Option<String>,
        /// They are unstaged, and held back, instead.
        #[serde(default)]
        staged: bool,
        /// What a restore dropped comes back instead; without paths, what the last one dropped.
        #[serde(default)]
        undo: bool,
        /// Do it, and not only tell.
        apply: bool,
    },
    /// Bring content into the cache, look at it there, or remove it. [`Event::Progress`] until [`Event::Warmed`]. Hanging
    /// up stops it; what came stays.
    Warm {
        /// Paths from the mount's root; a directory means all below it, the empty path all.
        paths: Vec<String>,
        /// What is done.
        how: Warm,
    },
    /// Freeze what was written up to now, stage it, commit it. [`Event::Progress`], then [`Event::Committed`].
    Commit {
        /// The branch; `None` is the mount's own.
        branch: Option<String>,
        /// Message.
        message: String,
        /// Author's name.
        author: String,
        /// Author's address.
        email: String,
        /// How conflicts are decided; `None`: the commit fails.
        #[serde(default)]
        on_conflict: Option<Choice>,
    },
    /// Take in what the branch has become. [`Event::Refreshed`].
    Refresh,
    /// Whether paths are ignored: [`Event::Ignored`].
    CheckIgnore {
        /// Paths from the mount's root, which need not be there; one that ends with `/` is a directory.
        paths: Vec<String>,
    },
    /// Decide conflicts: [`Event::Resolved`].
    Resolve {
        /// Repository paths, relative to the mount's root; a directory means all below it, the empty path all.
        paths: Vec<String>,
        /// How.
        choice: Choice,
    },
    /// A version of a file that is not in the tree: [`Event::Chunk`], as often as it takes, then [`Event::Done`].
    Show {
        /// A repository path, relative to the mount's root.
        path: String,
        /// Which.
        version: Version,
    },
}

/// How a conflict is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Choice {
    /// What is here goes over what the branch has.
    Ours,
    /// What the branch has shows here.
    Theirs,
    /// The branch's version keeps the name, and what is here lies beside it.
    KeepBoth,
}

/// A version of a file that others changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Version {
    /// What both sides began with.
    Base,
    /// What the branch has.
    Theirs,
}

/// What is done with content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Warm {
    /// What is not in the cache is fetched.
    Fetch,
    /// It is read, and nothing fetched.
    Check,
    /// It is removed from the cache.
    Evict,
}

/// What the daemon answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The state of the mount.
    Status(Box<Status>),
    /// What is measured of the mount.
    Measures(Box<Measures>),
    /// Something happened.
    Happened {
        /// What.
        what: activity::Event,
    },
    /// What is logged now.
    LogLevel {
        /// As `--log` takes it.
        level: String,
    },
    /// Some of what the next commit would change.
    Differences {
        /// In tree order.
        changes: Vec<Difference>,
    },
    /// Something moved, or a second passed.
    Progress(Progress),
    /// Nothing moves until something outside changes, the server comes back say; `None`: it goes on.
    Stalled {
        /// Why, in words.
        why: Option<String>,
    },
    /// An import may begin.
    Importing,
    /// Content bytes that an import has copied up to now.
    Copied {
        /// Of all files, also of those that are not complete.
        bytes: u64,
    },
    /// The items of an [`Import::Batch`] are there, but for these.
    Imported {
        /// Which.
        batch: u64,
        /// Length of its files that are there.
        bytes: u64,
        /// What could not be done.
        refused: Vec<Refused>,
    },
    /// What [`Request::Warm`] found and did.
    Warmed(Warmed),
    /// The commit that is about to be made holds what others staged, too.
    TakesAlong(TakenAlong),
    /// Files that patterns keep here, and that no commit holds.
    Ignores(Tally),
    /// The request was carried out.
    Done,
    /// The commit was made.
    Committed {
        /// Its id; `None` when there was nothing to commit.
        id: Option<String>,
    },
    /// What the branch has become was taken in, as far as it could be.
    Refreshed(Refreshed),
    /// Which pattern keeps each of the paths here, in their order.
    Ignored {
        /// `None`: none does.
        by: Vec<Option<IgnoredBy>>,
    },
    /// Conflicts were decided.
    Resolved {
        /// Which.
        resolved: Vec<Resolved>,
        /// How many are left in the mount.
        left: u64,
    },
    /// Some bytes of a file, in order.
    Chunk {
        /// Them.
        #[serde(with = "crate::path::bytes_as_text")]
        bytes: Box<[u8]>,
    },
    /// The request was not carried out.
    Failed(Failure),
}

/// What came of [`Request::Refresh`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Refreshed {
    /// The commit that the mount stands on.
    pub base: String,
    /// Whether that is another than before.
    pub moved: bool,
    /// Why it is not what the branch has become, where it is not.
    pub stays: Option<String>,
    /// How many paths are in conflict.
    pub conflicts: u64,
}

/// A conflict that was decided.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resolved {
    /// Repository path.
    pub path: String,
    /// Where the version is now that was here.
    pub beside: Option<String>,
}

/// What an import consists of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Import {
    /// Some of it: directories before what lies in them. The files' content comes beside the line, see [`passing`], in
    /// the order of the items.
    Batch {
        /// Which; told again when it is done.
        batch: u64,
        /// What.
        items: Vec<Item>,
    },
    /// That was all.
    End,
}

/// One thing to be made. Directories are numbered by the command; 0 is the one that everything goes into.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Item {
    /// A directory, which may be there already.
    Dir {
        /// Its number.
        id: usize,
        /// The number of the one it lies in.
        into: usize,
        /// Its name.
        name: Name,
        /// Permission bits, if it is new.
        mode: u16,
    },
    /// A regular file; its modes and times are those of the open file beside the line.
    File {
        /// The number of the directory it lies in.
        into: usize,
        /// Its name.
        name: Name,
    },
    /// A symbolic link.
    Link {
        /// The number of the directory it lies in.
        into: usize,
        /// Its name.
        name: Name,
        /// What it says.
        #[serde(with = "crate::path::bytes_as_text")]
        target: Box<[u8]>,
        /// When it was made: seconds and nanoseconds.
        mtime: (i64, u32),
    },
    /// All that lies in a directory is there: its time is this, if this import made it.
    Dated {
        /// Its number.
        id: usize,
        /// Seconds and nanoseconds.
        mtime: (i64, u32),
    },
}

/// An item that was not made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Refused {
    /// Which of the batch's items.
    pub item: usize,
    /// Why.
    pub why: Refusal,
    /// The same in words.
    pub error: String,
}

/// What a refusal means for the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// Nothing.
    Alone,
    /// The directory it lies in was refused before.
    Above,
    /// There is no room: the rest will find none either.
    NoSpace,
    /// The import was stopped.
    Stopped,
}

/// Files and their content after [`Request::Warm`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Warmed {
    /// Files in all, those whose bytes are in the spool too.
    pub files: u64,
    /// Their length.
    pub bytes: u64,
    /// Contents that were fetched or removed: several files may have the same.
    pub changed_files: u64,
    /// Their length.
    pub changed_bytes: u64,
    /// Files that could not be fetched, are not in the cache, or stay there.
    pub failed_files: u64,
    /// The first of them.
    pub failed: Vec<Unreadable>,
}

/// An error in the three parts that a person needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// What could not be done, and why.
    pub message: String,
    /// The command or act that mends it.
    pub hint: Option<String>,
    /// Whether changes are still owed to the server (exit code 3).
    pub owed: bool,
}

/// One mount, as `oxenfs status --json` prints it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Where it is mounted; `None` while a daemon only drains, or when none runs.
    pub mountpoint: Option<String>,
    /// Scheme, host and port.
    pub server: String,
    /// `NAMESPACE/NAME`.
    pub repo: String,
    /// The branch that a commit goes to; empty where a revision is shown that was not called a branch.
    pub branch: String,
    /// The workspace's name; empty where a revision is shown.
    pub workspace: String,
    /// The branch or commit that is shown, read-only, in place of a workspace, as it was when it was mounted: as `base`.
    pub revision: Option<String>,
    /// `mounted`, `draining` or `stopped`; `unresponsive` where a daemon runs and does not answer.
    pub phase: String,
    /// The daemon's process id; 0 when none runs.
    pub pid: u32,
    /// Server version.
    pub server_version: String,
    /// Protocol dialect.
    pub dialect: String,
    /// The server was away when it was mounted, and was not found since: what is told of it is from an earlier mount.
    pub offline: bool,
    /// The commit under the workspace.
    pub base: String,
    /// Others may use the workspace, which moves by its commit alone.
    pub shared: bool,
    /// Files and bytes per state.
    pub counts: Counts,
    /// How long a plain `umount` waits for the rest; `None` where no daemon runs.
    pub drain_timeout_secs: Option<u64>,
    /// Seconds since the oldest change that is not staged yet; `None` when all is.
    pub oldest_unstaged_secs: Option<u64>,
    /// Estimated seconds until all that waits to be sent is, at the rate of late; `None` while that is not known.
    pub eta_secs: Option<u64>,
    /// Content bytes sent since the daemon started.
    pub sent_bytes: u64,
    /// Content bytes staged by hash alone since the daemon started.
    pub deduplicated_bytes: u64,
    /// What is wrong with the local disk, if anything is: it is full, say.
    pub disk: Option<String>,
    /// Bytes in the spool.
    pub spool_bytes: u64,
    /// The spool's limit in bytes; 0 is none but the disk's.
    pub spool_limit_bytes: u64,
    /// Copies of what the server has.
    pub cache: Cached,
    /// `on` where reads and writes go past the daemon, straight to the local disk; else `off` and why. Empty when no
    /// daemon runs.
    pub passthrough: String,
    /// Why staging is paused: the server cannot be reached, say. `None` while it works.
    pub stalled: Option<String>,
    /// The same in one word, one of [`activity::STALLS`].
    pub stalled_reason: Option<String>,
    /// Where the branch is, if that is not where the mount stands. `None` also where nobody looks.
    pub ahead: Option<Ahead>,
    /// Paths that were changed here and by others, until somebody decides, at most 100.
    pub conflicts: Vec<Conflict>,
    /// The last errors, newest first, at most 20.
    pub errors: Vec<FileError>,
    /// Paths that never travel, with the reason, at most 100.
    pub local: Vec<LocalPath>,
    /// Files to send that are for the most part holes, which the server gets as zeros: the largest, at most 20.
    pub sparse: Vec<SparseFile>,
    /// What the server has and programs could not read when they last tried, at most 100.
    pub unreadable: Vec<Unreadable>,
    /// Patterns of `.oxenignore` that do not hold.
    pub bad_patterns: Vec<BadPattern>,
}

/// A branch that has gone on without the mount.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ahead {
    /// The commit that it is on.
    pub head: String,
    /// How many commits it has that the mount does not stand on; `None`: more than are counted, or the mount's own commit
    /// is not in its history.
    pub commits: Option<u64>,
}

/// What is measured of a mount.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Measures {
    /// Where it is, or was last, mounted.
    pub mountpoint: String,
    /// Whether its daemon answers.
    pub answers: bool,
    /// How it is.
    pub status: Status,
    /// What its daemon has done; `None` where none answers.
    pub counts: Option<activity::Counts>,
}
