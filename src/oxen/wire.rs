//! The JSON of the protocol, as `oxen-server` 0.65.2 was seen to send it on 2026-11-21, unless another source is named.
//! Fields that are not used are not named; fields that a release may lack have defaults.

use serde::{Deserialize, Serialize};

use crate::workspace::{CommitId, Committed, Entry, EntryKind, Object};

/// Two shapes of errors, and neither field is certain.
#[derive(Deserialize)]
pub(super) struct ErrorBody {
    #[serde(default)]
    error: Option<ErrorDetail>,
    #[serde(default)]
    status_description: Option<String>,
    #[serde(default)]
    status_message: Option<String>,
}

#[derive(Deserialize)]
struct ErrorDetail {
    #[serde(default)]
    title: Option<String>,
    #[serde(default)]
    detail: Option<String>,
}

impl ErrorBody {
    pub(super) fn message(self) -> Option<String> {
        let detail = self.error.and_then(|error| error.detail.filter(|detail| !detail.is_empty()).or(error.title));
        detail.or(self.status_description).or(self.status_message)
    }
}

#[derive(Deserialize)]
pub(super) struct VersionAnswer {
    pub oxen_version: String,
}

#[derive(Deserialize)]
pub(super) struct RepositoryAnswer {
    pub repository: Repository,
}

#[derive(Debug, Deserialize)]
pub(super) struct Repository {
    pub namespace: String,
    pub name: String,
    #[serde(default)]
    pub is_empty: Option<bool>,
    #[serde(default)]
    pub latest_commit: Option<Commit>,
    #[serde(default)]
    pub storage_kind: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Commit {
    pub id: String,
    #[serde(default)]
    pub parent_ids: Vec<String>,
    #[serde(default)]
    pub message: String,
    #[serde(default)]
    pub author: String,
    #[serde(default)]
    pub timestamp: Option<String>,
}

impl From<Commit> for Committed {
    fn from(commit: Commit) -> Self {
        let parents = commit.parent_ids.into_iter().map(|id| CommitId(id.into())).collect();
        Self { id: CommitId(commit.id.into()), parents }
    }
}

#[derive(Deserialize)]
pub(super) struct BranchAnswer {
    pub branch: Branch,
}

#[derive(Deserialize)]
pub(super) struct BranchesAnswer {
    pub branches: Vec<Branch>,
}

#[derive(Deserialize)]
pub(super) struct Branch {
    pub name: String,
    pub commit_id: String,
}

#[derive(Serialize)]
pub(super) struct NewWorkspace<'a> {
    pub workspace_id: &'a str,
    pub name: &'a str,
    pub branch_name: &'a str,
}

#[derive(Deserialize)]
pub(super) struct WorkspaceAnswer {
    pub workspace: WorkspaceBody,
}

#[derive(Deserialize)]
pub(super) struct WorkspacesAnswer {
    pub workspaces: Vec<WorkspaceBody>,
}

#[derive(Deserialize)]
pub(super) struct WorkspaceBody {
    pub id: String,
    #[serde(default)]
    pub name: Option<String>,
    pub commit: Commit,
}

#[derive(Deserialize)]
pub(super) struct CommitAnswer {
    pub commit: Commit,
}

#[derive(Deserialize)]
pub(super) struct DirAnswer {
    pub entries: Vec<EntryBody>,
    #[serde(default)]
    pub total_pages: u64,
}

#[derive(Deserialize)]
pub(super) struct MetaAnswer {
    pub entry: EntryBody,
}

#[derive(Deserialize)]
pub(super) struct EntryBody {
    pub filename: String,
    #[serde(default)]
    pub hash: String,
    #[serde(default)]
    pub is_dir: bool,
    #[serde(default)]
    pub size: u64,
    #[serde(default)]
    pub latest_commit: Option<Commit>,
}

impl EntryBody {
    /// `None` for a file whose hash is none.
    pub(super) fn object(&self) -> Option<Object> {
        Some(Object { hash: self.hash.parse().ok()?, size: self.size })
    }

    pub(super) fn entry(self) -> Option<Entry> {
        let kind = if self.is_dir { EntryKind::Dir } else { EntryKind::File(self.object()?) };
        let time = self.latest_commit.and_then(|commit| humantime::parse_rfc3339_weak(&commit.timestamp?).ok());
        let modified_secs = time
            .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok())
            .map_or(0, |since| since.as_secs() as i64);
        Some(Entry { name: self.filename, kind, modified_secs })
    }
}

#[derive(Deserialize)]
pub(super) struct ChangesAnswer {
    pub staged: StagedBody,
}

#[derive(Deserialize)]
pub(super) struct StagedBody {
    #[serde(default)]
    pub added_files: StagedFiles,
    #[serde(default)]
    pub modified_files: StagedFiles,
    /// Before it had a list of its own, removals stood among the modified; see `status`.
    #[serde(default)]
    pub removed_files: StagedFiles,
}

#[derive(Default, Deserialize)]
pub(super) struct StagedFiles {
    #[serde(default)]
    pub entries: Vec<StagedEntry>,
    #[serde(default)]
    pub total_entries: u64,
}

#[derive(Deserialize)]
pub(super) struct StagedEntry {
    pub filename: String,
}

/// The answer to a multipart add, and to a removal of which some paths were not found.
#[derive(Deserialize)]
pub(super) struct PathsAnswer {
    #[serde(default)]
    pub paths: Vec<String>,
}

#[derive(Serialize)]
pub(super) struct FileWithHash<'a> {
    pub hash: String,
    pub path: &'a str,
}

/// A list of what could not be staged; the field is `err_files` in the documentation and in 0.50.
#[derive(Deserialize)]
pub(super) struct ErrorFilesAnswer {
    #[serde(default)]
    pub err_files: Vec<ErrorFile>,
}

#[derive(Deserialize)]
pub(super) struct ErrorFile {
    #[serde(default)]
    pub path: Option<String>,
    #[serde(default)]
    pub hash: String,
}

#[derive(Serialize)]
pub(super) struct BeginUpload<'a> {
    pub hash: String,
    pub size: u64,
    pub destination: Destination<'a>,
}

#[derive(Serialize)]
pub(super) struct Destination<'a> {
    pub workspace_id: &'a str,
    pub path: &'a str,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "file", rename_all = "snake_case")]
pub(super) enum BegunUpload {
    AlreadyStored,
    AwaitingParts { upload_id: String, part_size: u64, num_parts: u32, part_window: u32 },
}

#[derive(Deserialize)]
pub(super) struct PartAnswer {
    pub completed: bool,
}

#[derive(Serialize)]
pub(super) struct CompleteUpload<'a> {
    pub files: [CompletedFile<'a>; 1],
    pub workspace_id: &'a str,
}

#[derive(Serialize)]
pub(super) struct CompletedFile<'a> {
    pub hash: String,
    pub file_name: &'a str,
    pub dst_dir: &'a str,
    pub num_chunks: u32,
}

#[derive(Deserialize)]
pub(super) struct MergeableAnswer {
    #[serde(default)]
    pub conflicts: Vec<ConflictBody>,
}

#[derive(Deserialize)]
pub(super) struct ConflictBody {
    pub path: String,
}

#[derive(Serialize)]
pub(super) struct NewCommit<'a> {
    pub author: &'a str,
    pub email: &'a str,
    pub message: &'a str,
}

#[derive(Serialize)]
pub(super) struct NewPath<'a> {
    pub new_path: &'a str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_shapes_of_errors_give_their_words() {
        let message = |text| serde_json::from_str::<ErrorBody>(text).unwrap().message();
        let first = r#"{"status":"error","status_message":"resource_not_found","status_description":"Repository 'ox/none' not found"}"#;
        assert_eq!(message(first).unwrap(), "Repository 'ox/none' not found");
        let second = r#"{"error":{"detail":"Could not find path: nope","title":"Resource not found","type":"x"},"status":"error"}"#;
        assert_eq!(message(second).unwrap(), "Could not find path: nope");
        assert_eq!(message("{}"), None);
    }

    #[test]
    fn an_entry_without_a_hash_is_left_out_and_its_time_is_read() {
        let entry = |text| serde_json::from_str::<EntryBody>(text).unwrap().entry();
        assert_eq!(entry(r#"{"filename":"a","hash":"","size":3}"#), None);
        let found = entry(
            r#"{"filename":"a","hash":"1f","size":3,"latest_commit":{"id":"c","timestamp":"2026-11-21T09:09:33.837877607Z"}}"#,
        );
        assert_eq!(found.unwrap().modified_secs, 1_795_252_173);
    }
}
