//! What the commands that do something say of it as JSON: `--json`. docs/output.schema.json has the forms.

use std::path::PathBuf;

use serde::Serialize;

use crate::report::{Difference, IgnoredBy, TakenAlong};

/// `oxenfs mount --json`.
#[derive(Debug, Serialize)]
pub struct Mounted {
    /// Where.
    pub mountpoint: PathBuf,
    /// `NAMESPACE/NAME`.
    pub repo: String,
    /// Scheme, host and port.
    pub server: String,
    /// The branch that commits go to.
    pub branch: String,
    /// The workspace; empty where a revision is shown.
    pub workspace: String,
    /// The branch or commit that is shown, read-only, in place of a workspace.
    pub revision: Option<String>,
    /// What the server says of itself.
    pub server_version: String,
    /// The protocol spoken with it.
    pub dialect: String,
    /// The repository was made.
    pub created: bool,
    /// The server is away: what it was is from an earlier mount.
    pub offline: bool,
    /// Changes of an earlier mount that are being sent now.
    pub resumed: u64,
}

/// `oxenfs sync --json`.
#[derive(Debug, Default, Serialize)]
pub struct Synced {
    /// Files that were staged for it.
    pub staged_files: u64,
    /// Those at and below the paths that patterns keep here.
    pub ignored_files: u64,
    /// Their length.
    pub ignored_bytes: u64,
}

/// `oxenfs run --json`.
#[derive(Debug, Serialize)]
pub struct Ran {
    /// The exit code.
    pub exit: u8,
    /// The command's own; 128 and the signal where one ended it.
    pub command_exit: u8,
    /// Where the mount was: `mount`, a mount namespace; `user`, with a user namespace; `host`, where others see it.
    pub namespace: &'static str,
    /// Where it was mounted.
    pub mountpoint: PathBuf,
    /// Where it is staged; `null`: it was discarded.
    pub workspace: Option<String>,
    /// The commit that was made.
    pub commit: Option<String>,
    /// What is staged and not committed.
    pub staged_files: u64,
    /// Changes that the server lacks.
    pub owed_files: u64,
    /// Their content.
    pub owed_bytes: u64,
    /// The state directories that are kept; `null`: nothing is in them that is nowhere else.
    pub state: Option<PathBuf>,
}

/// `oxenfs send --json`, for each state directory.
#[derive(Debug, Serialize)]
pub struct Sent {
    /// The state directory.
    pub state: PathBuf,
    /// `NAMESPACE/NAME`.
    pub repo: String,
    /// Where it is staged.
    pub workspace: String,
    /// The branch that a commit would go to.
    pub branch: String,
    /// Changes that the server lacked before, and has now.
    pub sent_files: u64,
    /// Changes that it lacks yet. The exit code is 3 if there are any.
    pub owed_files: u64,
    /// Their content.
    pub owed_bytes: u64,
    /// What is staged and not committed.
    pub staged_files: u64,
}

/// `oxenfs check-ignore --json`, for each path.
#[derive(Debug, Serialize)]
pub struct Checked {
    /// As it was given.
    pub path: String,
    /// The pattern that keeps it here; `null`: none does.
    pub by: Option<IgnoredBy>,
}

/// `oxenfs commit --json`.
#[derive(Debug, Default, Serialize)]
pub struct Committed {
    /// The commit's id; `null` when there was nothing to commit.
    pub commit: Option<String>,
    /// Files that were staged for it.
    pub staged_files: u64,
    /// Files that patterns keep here: they are on this disk alone.
    pub ignored_files: u64,
    /// Their content.
    pub ignored_bytes: u64,
    /// What it holds that others staged.
    #[serde(skip_serializing_if = "TakenAlong::is_none")]
    pub others: TakenAlong,
}

/// `oxenfs unmount --json`.
#[derive(Debug, Default, Serialize)]
pub struct Unmounted {
    /// From where.
    pub mountpoint: PathBuf,
    /// The commit that was made; `null` without `--commit`, and where there was nothing to commit.
    pub commit: Option<String>,
    /// Changes that the server lacks; they are safe here. The exit code is 3 if there are any.
    pub owed_files: u64,
    /// Their content.
    pub owed_bytes: u64,
    /// What is staged and not committed.
    pub staged_files: u64,
    /// Of these, what is on the server alone.
    pub remote_files: u64,
    /// Paths of which Oxen cannot store all, or anything, or that are ignored.
    pub local_files: u64,
    /// Of these, files that patterns keep here: they are on this disk alone.
    pub ignored_files: u64,
    /// Their content.
    pub ignored_bytes: u64,
}

/// `oxenfs import --json`.
#[derive(Debug, Serialize)]
pub struct Imported {
    /// Files and links that are there now, each whole.
    pub files: u64,
    /// Files and links that were found.
    pub found: u64,
    /// What could not be imported; standard error names each. The exit code is 1 if there is any.
    pub refused: u64,
}

/// `oxenfs repo create --json`.
#[derive(Debug, Serialize)]
pub struct Created {
    /// The repository's URL.
    pub url: String,
}

/// `oxenfs restore --json`.
#[derive(Debug, Serialize)]
pub struct Restored {
    /// What changed.
    pub restored: Vec<Difference>,
    /// Whether that was an undo.
    pub undo: bool,
}

/// `oxenfs workspaces delete --json` and `oxenfs workspaces prune --json`.
#[derive(Debug, Serialize)]
pub struct Deleted {
    /// The workspaces that were deleted.
    pub deleted: Vec<String>,
}

/// `oxenfs log-level --json`.
#[derive(Debug, Serialize)]
pub struct Level {
    /// What is logged from now on, as `--log` takes it.
    pub level: String,
}

/// `oxenfs gather --json`.
#[derive(Debug, Serialize)]
pub struct Gathered {
    /// The commit; `null`: the branch has all of it.
    pub commit: Option<String>,
    /// Where it is.
    pub branch: String,
    /// The workspaces, and how many changes each had.
    pub workspaces: Vec<Worker>,
    /// Files that were added or changed.
    pub put_files: u64,
    /// Files that were removed.
    pub removed_files: u64,
    /// Bytes of content that travelled.
    pub sent_bytes: u64,
    /// Workspaces that were deleted.
    pub deleted: Vec<String>,
    /// Those that were to be and are there.
    pub kept: Vec<Kept>,
}

/// A workspace that was gathered.
#[derive(Debug, Serialize)]
pub struct Worker {
    /// Its name.
    pub name: String,
    /// What was staged in it.
    pub changes: u64,
}

/// A workspace that was not deleted.
#[derive(Debug, Serialize)]
pub struct Kept {
    /// Its name.
    pub name: String,
    /// Why.
    pub why: String,
}
