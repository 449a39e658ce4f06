//! Values that people are shown, and that several layers count, pass on and print: how far a drain is, how many files are
//! in which state, what differs, what cannot be stored or read.

use serde::{Deserialize, Serialize};

/// How far a drain is. Files and bytes count from the request on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Paths brought to their wanted state since the request.
    pub files_done: u64,
    /// Paths in all.
    pub files_total: u64,
    /// Content bytes of those done.
    pub bytes_done: u64,
    /// Content bytes in all.
    pub bytes_total: u64,
    /// Files that were given up for now with an error.
    pub files_failed: u64,
}

/// Numbers per state of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Open for writing, or not settled yet.
    pub dirty: Tally,
    /// Being hashed, or waiting for it.
    pub hashing: Tally,
    /// Hashed and waiting.
    pub queued: Tally,
    /// On its way.
    pub uploading: Tally,
    /// Confirmed by the server, not committed.
    pub staged: Tally,
    /// Of these, the ones whose bytes are not here any more: they are on the server alone.
    pub remote: Tally,
    /// Parked with an error.
    pub failed: Tally,
    /// Of these, the ones that others changed too: they wait for somebody.
    pub conflicts: Tally,
    /// Files that the server lacks as far as is known, and whose bytes are not here: it had them staged. Counted where they
    /// would be otherwise, too.
    pub absent: Tally,
    /// Changes that were unstaged on purpose, and wait to be written again; counted where they would be otherwise, too.
    pub held: Tally,
    /// Removals and moves that the server does not know of yet; no bytes.
    pub removals: Tally,
    /// Paths of which Oxen cannot store all, or anything: files, directories and others; bytes of files that stay.
    pub local: Tally,
    /// Of these, the ones whose content Oxen stores: their permissions, say, stay here.
    pub partly: Tally,
    /// Of the local ones, the names of files that patterns keep here.
    pub ignored: Tally,
}

impl Counts {
    /// Files and bytes that the server does not have yet; removals count as files.
    pub fn owed(&self) -> (u64, u64) {
        let open = [self.dirty, self.hashing, self.queued, self.uploading, self.failed, self.removals];
        let sum = |field: fn(&Tally) -> u64| open.iter().map(field).fold(0, u64::saturating_add);
        (sum(|tally| tally.files), sum(|tally| tally.bytes))
    }
}

/// Copies of what the server has, and what became of the wish for them since the daemon started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cached {
    /// What they take.
    pub bytes: u64,
    /// The most that they may take; 0 where no daemon runs.
    pub limit_bytes: u64,
    /// Times that content was wanted that was here.
    pub hits: u64,
    /// Times that it had to be fetched.
    pub misses: u64,
    /// Blocks of large files that were fetched.
    pub blocks_fetched: u64,
    /// Blocks that were not any more what had come, and were fetched again.
    pub blocks_damaged: u64,
    /// Files whose blocks together were not what the file should be: they were fetched anew, whole.
    pub wrong_files: u64,
    /// Small files that were fetched before anybody asked for them.
    pub files_ahead: u64,
}

/// A file whose holes are sent as zeros.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SparseFile {
    /// Its path, or one of them.
    pub path: String,
    /// Its length: what is sent and what the server stores.
    pub bytes: u64,
    /// What it takes of the disk here.
    pub allocated_bytes: u64,
}

/// Files and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// How many.
    pub files: u64,
    /// Their content's length.
    pub bytes: u64,
}

/// A file that could not be staged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FileError {
    /// Repository path.
    pub path: String,
    /// In words.
    pub error: String,
    /// How often it was tried.
    pub attempts: u32,
    /// Whether it waits for somebody (parked) or will be tried again by itself.
    pub parked: bool,
}

/// The pattern that keeps a file here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IgnoredBy {
    /// `.oxenignore`, or `--ignore`.
    pub source: String,
    /// Its line there, counted from 1; `None`: there are no lines.
    pub line: Option<u64>,
    /// As it is written.
    pub pattern: String,
}

impl std::fmt::Display for IgnoredBy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}, line {line}: {}", self.source, self.pattern),
            None => write!(f, "{}: {}", self.source, self.pattern),
        }
    }
}

/// A pattern that does not hold, or a file of them that cannot be read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BadPattern {
    /// `.oxenignore`, or `--ignore`.
    pub source: String,
    /// Its line there, counted from 1.
    pub line: Option<u64>,
    /// As it is written; empty where the file cannot be read.
    pub pattern: String,
    /// What is wrong, in words.
    pub error: String,
}

/// A path that was changed here and by others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// Repository path.
    pub path: String,
    /// What each side did, in words.
    pub what: String,
    /// Where the file is now that was removed here, where its content tells.
    #[serde(default)]
    pub renamed_to: Option<String>,
}

/// What the server has and programs cannot read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreadable {
    /// Repository path, as far as it is one.
    pub path: String,
    /// Why, in words.
    pub reason: String,
}

/// A path that the next commit would change, or that no commit can hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Repository path; of [`Kind::Local`], the path from the mount's root.
    pub path: String,
    /// How it differs from the base.
    pub kind: Kind,
    /// Where a renamed file was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Length of its content; of a removed file, of what it was.
    pub bytes: u64,
    /// Whether the server has it: it is in the workspace.
    pub staged: bool,
    /// Why it stays local.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What each side did, where others changed it too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conflict: Option<String>,
    /// Whether somebody else staged it in the same workspace.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub others: bool,
}

/// What others staged in a workspace that a commit is made of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenAlong {
    /// How many files.
    pub files: u64,
    /// The first of them.
    pub paths: Vec<String>,
}

impl TakenAlong {
    /// How many are named.
    const NAMED: usize = 20;

    /// Of these paths.
    pub fn of(paths: impl IntoIterator<Item = String>) -> Self {
        let (mut files, mut named) = (0, Vec::new());
        for path in paths {
            files += 1;
            if named.len() < Self::NAMED {
                named.push(path);
            }
        }
        Self { files, paths: named }
    }

    /// Whether there is nothing.
    pub fn is_none(&self) -> bool {
        self.files == 0
    }
}

/// How a path differs from the base.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The base has no such file.
    Added,
    /// The base has other content there.
    Modified,
    /// The base has it, and it is gone.
    Removed,
    /// The base has its content under another path, which is gone.
    Renamed,
    /// Oxen cannot store it.
    Local,
}

/// A path that stays local.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LocalPath {
    /// Path from the mount's root, lossily printed.
    pub path: String,
    /// Why.
    pub reason: String,
}
