//! What is on record of a path that differs from the base, or did, and of one in conflict. [`crate::writeback::index`]
//! has what follows from it.

use serde::{Deserialize, Serialize};

use crate::workspace::{CommitId, Object};

/// What the workspace has staged for a path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Staged {
    /// Nothing: the base shows.
    #[default]
    Nothing,
    /// This content.
    Put(Object),
    /// That the file is removed.
    Removed,
    /// Unknown: a request was sent and its answer is not on record.
    Doubt,
}

/// One path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    /// What the base commit has there.
    #[serde(default, rename = "b", skip_serializing_if = "Option::is_none")]
    pub base: Option<Object>,
    /// What is staged over it.
    #[serde(default, rename = "s")]
    pub staged: Staged,
    /// When a request about it last went without an answer, in seconds since the epoch: the server may carry it out yet,
    /// after others that it has answered.
    #[serde(default, rename = "l", skip_serializing_if = "Option::is_none")]
    pub late: Option<u64>,
    /// Somebody else staged it.
    #[serde(default, rename = "t", skip_serializing_if = "std::ops::Not::not")]
    pub theirs: bool,
    /// It is not to be staged until it is written again.
    #[serde(default, rename = "h", skip_serializing_if = "std::ops::Not::not")]
    pub held: bool,
}

/// What others made of a path that was changed here too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Theirs {
    /// Nothing: they removed it.
    Gone,
    /// This content.
    File(Object),
    /// A directory.
    Dir,
}

impl Theirs {
    /// Their content, if it is a file.
    pub fn object(self) -> Option<Object> {
        match self {
            Self::File(object) => Some(object),
            Self::Gone | Self::Dir => None,
        }
    }
}

/// A path that was changed here and by others, until somebody decides. What it is here is in the tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conflict {
    /// The file that both began with, if there was one.
    #[serde(default, rename = "b", skip_serializing_if = "Option::is_none")]
    pub base: Option<Object>,
    /// The commit that has it.
    #[serde(rename = "c")]
    pub commit: CommitId,
    /// What the branch has.
    #[serde(rename = "t")]
    pub theirs: Theirs,
}
