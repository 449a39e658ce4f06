//! What is on record of a path that differs from the base, or did. [`crate::writeback::index`] has what follows from it.

use serde::{Deserialize, Serialize};

use crate::workspace::Object;

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
}
