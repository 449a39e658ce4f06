//! Large files in parts: the protocol of 0.64 and later, which begins by asking for the hash, and that of the
//! releases before it.

use std::collections::BTreeSet;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use reqwest::{Body, Method};

use super::http::{Http, segment};
use super::multipart::file_stream;
use super::retry::Attempts;
use super::wire;
use crate::workspace::{Outcome, Put, Upload, UploadProgress, WorkspaceError};

/// Parts of one file on their way at once: two were the fastest against a server on the same two cores (298 to
/// 303 MB/s; one 225, four 274 to 280).
const PARTS_AT_ONCE: usize = 2;
/// Chunk length of the older protocol, in bytes. Fixed for ever: it counts the chunks of a hash and cannot list them,
/// so that another length would leave a hash that can never be completed.
const CHUNK_BYTES: u64 = 10 << 20;
/// How long a server that says when gets before a part is sent again, at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How often one part is sent before the upload is given back to the caller, who will resume it.
const PART_ATTEMPTS: u32 = 6;

/// The content type of parts and chunks.
const OCTETS: &str = "application/octet-stream";

/// What both protocols share.
pub(super) struct Parts<'a> {
    pub http: &'a Http,
    /// `/api/repos/NAMESPACE/NAME`.
    pub repo: &'a str,
    pub workspace: &'a str,
    pub put: &'a Put,
    pub progress: &'a dyn UploadProgress,
}

/// What the server said to the beginning of an upload.
pub(super) enum Begun {
    /// It has the content; it is staged.
    Stored,
    /// It wants the bytes.
    Wanted { upload: Upload, window: u32 },
}

impl Parts<'_> {
    /// Asks by hash; begins an upload where the content is not there.
    pub(super) async fn begin(&self) -> Result<Begun, WorkspaceError> {
        let body = wire::BeginUpload {
            hash: self.put.object.hash.to_string(),
            size: self.put.object.size,
            destination: wire::Destination { workspace_id: self.workspace, path: self.put.path.as_str() },
        };
        let path = format!("{}/versions/uploads", self.repo);
        let (_, begun) = self.http.call(Attempts::Quick, Method::POST, &path, &body).await?;
        Ok(match begun {
            wire::BegunUpload::AlreadyStored => Begun::Stored,
            wire::BegunUpload::AwaitingParts { upload_id, part_size, num_parts, part_window } => {
                let size = self.put.object.size;
                if part_size == 0 || u64::from(num_parts) != size.div_ceil(part_size) {
                    let detail = format!("{size} bytes were to be sent in {num_parts} parts of {part_size}");
                    return Err(WorkspaceError::Protocol { detail });
                }
                let upload = Upload { id: upload_id, part_bytes: part_size, parts: Vec::new() };
                Begun::Wanted { upload, window: part_window.max(1) }
            }
        })
    }

    /// Sends what is missing of an upload, from 0.64 on. `NotFound`: the server no longer knows it.
    pub(super) async fn send(
        &self,
        mut upload: Upload,
        window: u32,
        file: &Arc<File>,
    ) -> Result<Outcome, WorkspaceError> {
        let size = self.put.object.size;
        let count = u32::try_from(size.div_ceil(upload.part_bytes)).map_err(|_| WorkspaceError::NoSpace {
            message: format!("{} needs more parts than can be counted", self.put.path),
        })?;
        let done: BTreeSet<u32> = upload.parts.iter().copied().collect();
        let mut missing: std::collections::VecDeque<u32> = (0..count).filter(|part| !done.contains(part)).collect();
        if missing.is_empty() {
            // All were acknowledged and the completing answer was lost: beginning again tells what became of it.
            return Err(WorkspaceError::NotFound { what: format!("upload {}", upload.id) });
        }
        let mut flying = FuturesUnordered::new();
        let mut in_flight = BTreeSet::new();
        let mut sent_bytes = 0;
        loop {
            while flying.len() < PARTS_AT_ONCE
                && let Some(&part) = missing.front()
                && in_flight.first().is_none_or(|first| part < first + window)
            {
                missing.pop_front();
                in_flight.insert(part);
                flying.push(self.part(&upload.id, part, upload.part_bytes, file));
            }
            let Some(answer) = flying.next().await else {
                return Err(WorkspaceError::Unconfirmed { what: self.put.path.to_string() });
            };
            let (part, bytes, completed) = answer?;
            in_flight.remove(&part);
            sent_bytes += bytes;
            self.progress.sent(bytes);
            if completed {
                return Ok(Outcome::Done { sent_bytes });
            }
            upload.parts.push(part);
            upload.parts.sort_unstable();
            self.progress.checkpoint(&upload);
        }
    }

    /// One part, sent again as the server asks.
    async fn part(
        &self,
        id: &str,
        part: u32,
        part_bytes: u64,
        file: &Arc<File>,
    ) -> Result<(u32, u64, bool), WorkspaceError> {
        let from = u64::from(part) * part_bytes;
        let bytes = part_bytes.min(self.put.object.size - from);
        let path = format!("{}/versions/uploads/{}/parts/{}", self.repo, segment(id), part + 1);
        let mut attempt = 0;
        loop {
            let answer = self.http.send(Attempts::Quick, || {
                let body = Body::wrap_stream(file_stream(file.clone(), from, bytes));
                Ok(self.http.streamed(Method::PUT, &path, OCTETS, bytes, body))
            });
            match answer.await {
                Ok(answer) => {
                    let answer: wire::PartAnswer = self.http.json(answer).await?;
                    return Ok((part, bytes, answer.completed));
                }
                // Outside the window, or the repository is held for maintenance.
                Err(WorkspaceError::Busy { retry_after }) if attempt < PART_ATTEMPTS => {
                    attempt += 1;
                    tokio::time::sleep(retry_after.unwrap_or(Duration::from_millis(500)).min(LONGEST_PAUSE)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends by the protocol before 0.64: create, chunks at their offsets, complete. A chunk that the server has is
    /// not written again, so only an unchanging file may be sent, and a resume may repeat any chunk.
    pub(super) async fn send_chunks(
        &self,
        resume: Option<Upload>,
        file: &Arc<File>,
    ) -> Result<Outcome, WorkspaceError> {
        let hash = self.put.object.hash.to_string();
        let versions = format!("{}/versions/{hash}", self.repo);
        let size = self.put.object.size;
        let count = size.div_ceil(CHUNK_BYTES) as u32;
        let mut upload = match resume {
            Some(upload) if upload.id.is_empty() && upload.part_bytes == CHUNK_BYTES => upload,
            _ => {
                let create = format!("{versions}/create");
                let _: (_, serde_json::Value) =
                    self.http.call(Attempts::Quick, Method::POST, &create, &serde_json::json!({})).await?;
                Upload { id: String::new(), part_bytes: CHUNK_BYTES, parts: Vec::new() }
            }
        };
        let done: BTreeSet<u32> = upload.parts.iter().copied().collect();
        let mut sent_bytes = 0;
        let missing: Vec<u32> = (0..count).filter(|chunk| !done.contains(chunk)).collect();
        let mut chunks = futures_util::stream::iter(missing)
            .map(|chunk| {
                let from = u64::from(chunk) * CHUNK_BYTES;
                let bytes = CHUNK_BYTES.min(size - from);
                let path = format!("{versions}/chunks?offset={from}");
                async move {
                    self.http
                        .send(Attempts::Quick, || {
                            let body = Body::wrap_stream(file_stream(file.clone(), from, bytes));
                            Ok(self.http.streamed(Method::PUT, &path, OCTETS, bytes, body))
                        })
                        .await
                        .map(|_| (chunk, bytes))
                }
            })
            .buffer_unordered(PARTS_AT_ONCE);
        while let Some(sent) = chunks.next().await {
            let (chunk, bytes) = sent?;
            sent_bytes += bytes;
            upload.parts.push(chunk);
            upload.parts.sort_unstable();
            self.progress.sent(bytes);
            self.progress.checkpoint(&upload);
        }
        let dir = self.put.path.parent().unwrap_or_default();
        let body = wire::CompleteUpload {
            files: [wire::CompletedFile {
                hash,
                file_name: self.put.path.file_name(),
                dst_dir: dir.as_str(),
                num_chunks: count,
            }],
            workspace_id: self.workspace,
        };
        let complete = format!("{versions}/complete");
        let done: Result<(_, serde_json::Value), _> =
            self.http.call(Attempts::Quick, Method::POST, &complete, &body).await;
        match done {
            Ok(_) => Ok(Outcome::Done { sent_bytes }),
            // Its count of chunks differs: another client sends the same content, or a chunk came late.
            Err(WorkspaceError::Refused { status: 400, .. }) => {
                Err(WorkspaceError::Unconfirmed { what: self.put.path.to_string() })
            }
            Err(error) => Err(error),
        }
    }
}
