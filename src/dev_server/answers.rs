//! The shapes of JSON bodies and of errors, as released servers print them.

use std::io;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::repository::WorkspaceView;

/// An answer other than the one asked for: a status and a body that says why.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    body: Value,
    retry_after_secs: Option<u64>,
}

impl Refusal {
    /// The shape `{"error": {"type", "title", "detail"}}`.
    fn detailed(status: StatusCode, kind: &str, title: &str, detail: String) -> Self {
        let message = match status {
            StatusCode::BAD_REQUEST | StatusCode::UNSUPPORTED_MEDIA_TYPE => "bad_request",
            StatusCode::NOT_FOUND => "resource_not_found",
            StatusCode::CONFLICT => "conflict",
            StatusCode::TOO_MANY_REQUESTS => "too_many_requests",
            StatusCode::INTERNAL_SERVER_ERROR => "internal_server_error",
            _ => kind,
        };
        Self {
            status,
            body: json!({
                "error": {"type": kind, "title": title, "detail": detail},
                "status": "error",
                "status_message": message,
            }),
            retry_after_secs: None,
        }
    }

    /// The shape `{"status_message", "status_description"}`; without a description the message is all there is.
    fn described(status: StatusCode, message: &str, description: Option<String>) -> Self {
        let mut body = json!({"status": "error", "status_message": message});
        if let Some(description) = description {
            body["status_description"] = description.into();
        }
        Self { status, body, retry_after_secs: None }
    }

    /// 404 of a route, or of something that has no better words.
    pub(super) fn not_found() -> Self {
        Self::described(StatusCode::NOT_FOUND, "resource_not_found", None)
    }

    /// 404 of a repository.
    pub(super) fn no_repository(namespace: &str, name: &str) -> Self {
        let description = format!("Repository '{namespace}/{name}' not found");
        Self::described(StatusCode::NOT_FOUND, "resource_not_found", Some(description))
    }

    /// 404 of a workspace.
    pub(super) fn no_workspace(id: &str) -> Self {
        let description = format!("Workspace not found: {id}");
        Self::described(StatusCode::NOT_FOUND, "resource_not_found", Some(description))
    }

    /// 404 of an upload in parts.
    pub(super) fn no_upload(id: &str) -> Self {
        let description = format!("Version upload {id} not found");
        Self::described(StatusCode::NOT_FOUND, "resource_not_found", Some(description))
    }

    /// 404 of a branch.
    pub(super) fn no_branch(name: &str) -> Self {
        let detail = format!("Could not find branch: Branch '{name}' not found");
        Self::detailed(StatusCode::NOT_FOUND, "resource_not_found", "Branch does not exist", detail)
    }

    /// 404 of a file or directory.
    pub(super) fn no_path(path: impl std::fmt::Display) -> Self {
        let detail = format!("Could not find path: {path}");
        Self::detailed(StatusCode::NOT_FOUND, "resource_not_found", "Path does not exist", detail)
    }

    /// 404 of a list of contents of which some are not there.
    pub(super) fn versions_missing(hashes: &[String]) -> Self {
        let detail =
            format!("Server is missing {} content blob(s). Missing hashes: {}", hashes.len(), hashes.join(", "));
        let title = "Version blobs missing on server";
        let mut refusal = Self::detailed(StatusCode::NOT_FOUND, "version_blobs_missing", title, detail);
        refusal.body["error"]["missing_hashes"] = json!(hashes);
        refusal
    }

    /// 400 of a handler.
    pub(super) fn bad_request(detail: impl Into<String>) -> Self {
        Self::detailed(StatusCode::BAD_REQUEST, "bad_request", "Bad Request", detail.into())
    }

    /// 400 of a body whose JSON is not what it should be; its reader's words are the message.
    pub(super) fn bad_body(message: impl std::fmt::Display) -> Self {
        Self::described(StatusCode::BAD_REQUEST, &message.to_string(), None)
    }

    /// 400 of an upload.
    pub(super) fn bad_upload(reason: impl std::fmt::Display) -> Self {
        let description = format!("Version upload refused: {reason}");
        Self::described(StatusCode::BAD_REQUEST, "bad_request", Some(description))
    }

    /// 400 of a move to where it came from or below.
    pub(super) fn move_into_itself(path: impl std::fmt::Display) -> Self {
        let detail = format!("{path} cannot be moved to itself or to a path inside it.");
        Self::detailed(StatusCode::BAD_REQUEST, "move_into_itself", "Cannot move a path into itself", detail)
    }

    /// 401.
    pub(super) fn unauthorized() -> Self {
        Self::described(StatusCode::UNAUTHORIZED, "unauthorized", Some("missing or unknown access token".to_owned()))
    }

    /// 409 of a repository's name.
    pub(super) fn repository_exists() -> Self {
        Self::described(StatusCode::CONFLICT, "Repo already exists.", None)
    }

    /// 409 of a commit onto changes it does not know.
    pub(super) fn behind(workspace: &str, branch: &str, base: &str, head: &str) -> Self {
        let detail = format!("This workspace '{workspace}' is behind on branch '{branch}' commit {base} < {head}");
        Self::detailed(StatusCode::CONFLICT, "conflict", "Workspace is behind", detail)
    }

    /// 409 of a move onto something staged.
    pub(super) fn destination_staged(path: impl std::fmt::Display) -> Self {
        let detail = format!("{path} already has a staged entry. Unstage it first, or choose another destination.");
        Self::detailed(StatusCode::CONFLICT, "destination_already_staged", "Destination already staged", detail)
    }

    /// 409 of a move below a file.
    pub(super) fn not_a_directory(path: impl std::fmt::Display) -> Self {
        let detail = format!("{path} is a file, so nothing can be placed beneath it.");
        Self::detailed(StatusCode::CONFLICT, "not_a_directory", "Not a directory", detail)
    }

    /// 409 of a move of what is staged for removal.
    pub(super) fn staged_for_removal(path: impl std::fmt::Display) -> Self {
        let detail = format!("Unstage the removal of '{path}' before editing or moving it");
        Self::detailed(StatusCode::CONFLICT, "conflict", "Path is staged for removal", detail)
    }

    /// 415.
    pub(super) fn not_multipart(detail: impl std::fmt::Display) -> Self {
        Self::detailed(StatusCode::UNSUPPORTED_MEDIA_TYPE, "bad_request", "Bad Request", detail.to_string())
    }

    /// 422 of a commit without changes.
    pub(super) fn no_changes() -> Self {
        Self::described(StatusCode::UNPROCESSABLE_ENTITY, "NoChanges", None)
    }

    /// 426 of the official client below `version`.
    pub(super) fn update_required(version: &str) -> Self {
        let detail = format!("Oxen CLI out of date. Pushing to OxenHub requires version >= {version}.");
        Self::detailed(StatusCode::UPGRADE_REQUIRED, "update_required", "Update Required", detail)
    }

    /// 429 of a part that comes too early.
    pub(super) fn part_deferred(detail: String) -> Self {
        let refusal =
            Self::detailed(StatusCode::TOO_MANY_REQUESTS, "upload_part_deferred", "Part cannot be stored yet", detail);
        Self { retry_after_secs: Some(1), ..refusal }
    }

    /// 500, with the error where released servers put it.
    pub(super) fn internal(title: impl std::fmt::Display) -> Self {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Self {
            body: json!({
                "error": {"type": "internal_server_error", "title": title.to_string()},
                "status": "error",
                "status_message": "internal_server_error",
            }),
            ..Self::described(status, "internal_server_error", None)
        }
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        tracing::error!(%error, "a request failed on the embedded server's own disk");
        Self::internal(error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body)).into_response();
        if let Some(seconds) = self.retry_after_secs {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// What handlers return.
pub(super) type Answer = Result<Response, Refusal>;

/// 200 with the fields of `body` beside the status.
pub(super) fn success(message: &'static str, body: impl Serialize) -> Answer {
    answer(StatusCode::OK, "success", message, body)
}

/// 206: some of what was asked for was not found; the rest is done.
pub(super) fn partly(body: impl Serialize) -> Answer {
    answer(StatusCode::PARTIAL_CONTENT, "error", "resource_not_found", body)
}

fn answer(status: StatusCode, word: &'static str, message: &'static str, body: impl Serialize) -> Answer {
    #[derive(Serialize)]
    struct Whole<B> {
        status: &'static str,
        status_message: &'static str,
        #[serde(flatten)]
        body: B,
    }
    let whole = Whole { status: word, status_message: message, body };
    Ok((status, Json(whole)).into_response())
}

/// No fields beside the status.
pub(super) fn nothing() -> Map<String, Value> {
    Map::new()
}

/// A commit as answers show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CommitView {
    pub(super) id: String,
    pub(super) parent_ids: Vec<String>,
    pub(super) message: String,
    pub(super) author: String,
    pub(super) email: String,
    pub(super) timestamp: String,
}

/// How a path differs from the base of the workspace it is looked at in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) enum Status {
    Added,
    Modified,
    Removed,
}

/// One file or directory as listings and `meta` show it.
#[derive(Debug, Serialize)]
pub(super) struct EntryView {
    pub(super) filename: String,
    /// Empty where servers do not tell it.
    pub(super) hash: String,
    pub(super) is_dir: bool,
    pub(super) latest_commit: Option<Arc<CommitView>>,
    pub(super) resource: Option<ResourceView>,
    pub(super) size: u64,
    pub(super) data_type: &'static str,
    pub(super) mime_type: &'static str,
    pub(super) extension: String,
    pub(super) metadata: Option<Value>,
    pub(super) is_queryable: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) changes: Option<ChangesView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) children: Option<Vec<EntryView>>,
}

/// Where an entry was found.
#[derive(Debug, Serialize)]
pub(super) struct ResourceView {
    pub(super) workspace: Option<Arc<WorkspaceView>>,
    pub(super) path: String,
    pub(super) version: String,
    pub(super) resource: String,
}

/// The `changes` of an entry.
#[derive(Debug, Serialize)]
pub(super) struct ChangesView {
    pub(super) status: Status,
}

impl EntryView {
    /// A file named `filename`, with everything else that its name tells.
    pub(super) fn file(filename: String, hash: String, size: u64) -> Self {
        let name = filename.rsplit('/').next().unwrap_or_default();
        let extension = match name.rsplit_once('.') {
            Some((stem, extension)) if !stem.is_empty() => extension.to_owned(),
            _ => String::new(),
        };
        let (data_type, mime_type) = kind_of(&extension);
        Self {
            filename,
            hash,
            is_dir: false,
            latest_commit: None,
            resource: None,
            size,
            data_type,
            mime_type,
            extension,
            metadata: None,
            is_queryable: None,
            changes: None,
            children: None,
        }
    }

    /// A directory.
    pub(super) fn dir(filename: String, hash: String, size: u64) -> Self {
        Self {
            is_dir: true,
            data_type: "dir",
            mime_type: "inode/directory",
            extension: String::new(),
            ..Self::file(filename, hash, size)
        }
    }
}

/// Data type and MIME type by extension. Released servers look at the content too; clients use neither.
pub(super) fn kind_of(extension: &str) -> (&'static str, &'static str) {
    match extension.to_ascii_lowercase().as_str() {
        "txt" => ("text", "text/plain"),
        "md" => ("text", "text/markdown"),
        "json" => ("text", "application/json"),
        "csv" | "tsv" => ("tabular", "text/plain"),
        "jsonl" | "parquet" | "arrow" => ("tabular", "application/octet-stream"),
        "jpg" | "jpeg" => ("image", "image/jpeg"),
        "png" => ("image", "image/png"),
        "mp4" => ("video", "video/mp4"),
        "mp3" => ("audio", "audio/mpeg"),
        "wav" => ("audio", "audio/wav"),
        _ => ("binary", "application/octet-stream"),
    }
}

/// One page of `total` things: which of them, and the numbers that describe it.
pub(super) struct Page {
    number: usize,
    size: usize,
    total: usize,
}

impl Page {
    /// Pages count from 1 and hold 100 unless asked otherwise.
    pub(super) fn new(number: Option<usize>, size: Option<usize>, total: usize) -> Self {
        Self { number: number.unwrap_or(1).max(1), size: size.unwrap_or(100), total }
    }

    /// The things on this page.
    pub(super) fn of<'a, T>(&self, things: &'a [T]) -> &'a [T] {
        let start = (self.number - 1).saturating_mul(self.size).min(things.len());
        let end = start.saturating_add(self.size).min(things.len());
        &things[start..end]
    }

    /// The fields that describe it.
    pub(super) fn fields(&self) -> Map<String, Value> {
        let pages = self.total.checked_div(self.size).map_or(usize::MAX, |_| self.total.div_ceil(self.size));
        let fields = [
            ("page_size", self.size),
            ("page_number", self.number),
            ("total_pages", pages),
            ("total_entries", self.total),
        ];
        fields.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect()
    }
}

/// Now, as RFC 3339 in UTC with nanoseconds.
pub(super) fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    timestamp(since.as_secs(), since.subsec_nanos())
}

fn timestamp(secs: u64, nanos: u32) -> String {
    format!("{}.{nanos:09}Z", crate::calendar::utc(secs))
}

/// A random identifier in the form of a UUID.
pub(super) fn random_id() -> String {
    let bits = fastrand::u128(..);
    let hex = format!("{bits:032x}");
    format!("{}-{}-4{}-a{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_calendar_dates() {
        assert_eq!(timestamp(0, 0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(timestamp(951_782_400, 5), "2000-02-29T00:00:00.000000005Z");
        assert_eq!(timestamp(1_795_253_258, 112_522_734), "2026-11-21T09:27:38.112522734Z");
    }

    #[test]
    fn pages_past_the_end_are_empty() {
        let things: Vec<_> = (0..5).collect();
        let page = |number, size| Page::new(Some(number), Some(size), things.len());
        assert_eq!(page(2, 2).of(&things), [2, 3]);
        assert_eq!(page(3, 2).of(&things), [4]);
        assert!(page(4, 2).of(&things).is_empty());
        assert!(page(1, 0).of(&things).is_empty());
        assert_eq!(page(3, 2).fields()["total_pages"], 3);
    }
}
