//! Which repository it is: by more than its address and its name, which another server may have.

use serde::{Deserialize, Serialize};

use super::CommitId;

/// What is known of a repository.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownRepository {
    /// What its server calls its identity; `None`: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// A commit that it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<CommitId>,
    /// Fields that are not known here; they go back to the disk.
    #[serde(flatten)]
    pub rest: serde_json::Map<String, serde_json::Value>,
}

impl KnownRepository {
    /// One with just this commit; nothing is known of one that has no commit yet.
    pub fn with_commit(commit: CommitId) -> Self {
        Self { commit: Some(commit).filter(|commit| !commit.0.is_empty()), ..Self::default() }
    }

    /// Whether nothing tells it from any other.
    pub fn is_nothing(&self) -> bool {
        self.uuid.is_none() && self.commit.is_none()
    }

    /// Whether its server calls it by this identity.
    pub fn is_called(&self, uuid: Option<&str>) -> bool {
        uuid.is_some() && self.uuid.as_deref() == uuid
    }

    /// In words.
    pub fn said(&self) -> String {
        match (&self.uuid, &self.commit) {
            (Some(uuid), Some(commit)) => format!("that one has the id {uuid} and commit {commit}"),
            (Some(uuid), None) => format!("that one has the id {uuid}"),
            (None, Some(commit)) => format!("that one has commit {commit}"),
            (None, None) => "nothing is known of that one".to_owned(),
        }
    }
}

/// What there is in its place, in words.
pub fn said_of_other(uuid: Option<&str>) -> String {
    match uuid {
        Some(uuid) => format!("this one has the id {uuid}, and no such commit"),
        None => "this one has no such commit".to_owned(),
    }
}
