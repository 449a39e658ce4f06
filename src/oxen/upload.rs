//! Large files: in parts that the server hashes as they come, in chunks that it assembles, or in one request.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::stream::{FuturesUnordered, StreamExt};
use reqwest::Method;

use super::OxenWorkspace;
use super::body::{Body, Segment};
use super::dialect::LargeRoute;
use super::http::Request;
use super::multipart::PLAIN;
use super::retry::{Patience, pause, retry};
use super::staging::{BACKSLASH, has_backslash};
use super::wire;
use crate::workspace::{Outcome, Put, Upload, UploadProgress, WorkspaceError};

/// Parts of one file in flight (0.65.2, tried, hashing included: one at a time 225 MB/s, two 298 to 303, four 274 to 280).
const PARTS: usize = 2;
/// Parts of all files together, as far as each has one. The server stores the parts of a file one after the other, those
/// of several at once: 4 files of 1 GiB took 0.83 (0.81 to 0.84) of the time with one part each in flight that they took
/// two files at a time, with two (0.65.2, 3 pairs).
const PARTS_OF_ALL: usize = 4;
/// What is taken for parts: as many as a file of 10 TB has in those of released servers. A server that asks for more is
/// sent the file in one request.
const MOST_PARTS: u64 = 1 << 20;
/// And how small they may be, in a file of more than one.
const LEAST_PART_BYTES: u64 = 64 << 10;
/// How often one call begins anew: the server may have been restarted, and the last answer may have been lost.
const ROUNDS: u32 = 3;
/// How often a part is held back by the server before the caller is told that it is busy.
const HELD_BACK: u32 = 8;

/// Why a round of parts ended.
enum Round {
    /// The server verified and staged the whole file.
    Completed,
    /// All parts are there, but no answer said so; or the server does not know the upload (any more).
    Over,
}

/// Files on their way in several parts.
#[derive(Debug, Default)]
pub(super) struct InParts(AtomicUsize);

impl InParts {
    /// Counts one more, until it is dropped.
    fn one_more(&self) -> OneMore<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        OneMore(self)
    }

    /// How many parts of each may be in flight.
    fn share(&self) -> usize {
        (PARTS_OF_ALL / self.0.load(Ordering::Relaxed).max(1)).clamp(1, PARTS)
    }
}

struct OneMore<'a>(&'a InParts);

impl Drop for OneMore<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl OxenWorkspace {
    pub(super) async fn send_one(
        &self,
        put: &Put,
        resume: Option<Upload>,
        progress: &dyn UploadProgress,
    ) -> Result<Outcome, WorkspaceError> {
        if has_backslash(put) {
            return Ok(Outcome::Failed(WorkspaceError::Unsupported { what: BACKSLASH }));
        }
        if put.file.is_none() && put.object.size > 0 {
            return self.stage_hashes(std::slice::from_ref(put)).await.map(|mut outcomes| outcomes.remove(0));
        }
        if put.object.size > 0 && self.dialect.large != LargeRoute::Multipart {
            let sent = self.send_in_pieces(put, resume, progress).await;
            let spoiled = matches!(
                &sent,
                Ok(Outcome::Failed(WorkspaceError::Refused { .. })) | Err(WorkspaceError::Server { status: 500, .. })
            );
            let is_chunked = self.dialect.large == LargeRoute::Chunks;
            let has_odd_parts = matches!(&sent, Err(WorkspaceError::Unsupported { .. }));
            if !(has_odd_parts || spoiled && is_chunked) {
                return sent;
            }
            // An earlier client may have left chunks under this hash that are not its bytes. They cannot be listed or
            // taken away, and are used instead of ours (read): so the file goes by a way that does not look at them.
            tracing::debug!(path = %put.path, has_odd_parts, "it is sent in one request, and not in pieces");
        }
        self.send_whole(put, progress).await
    }

    /// A file in one request.
    async fn send_whole(&self, put: &Put, progress: &dyn UploadProgress) -> Result<Outcome, WorkspaceError> {
        let mut outcomes = self.send_batch(std::slice::from_ref(put)).await?;
        let outcome = outcomes.pop().unwrap_or(Outcome::NeedsBytes);
        if let Outcome::Done { sent_bytes } = outcome {
            progress.sent(sent_bytes);
        }
        Ok(outcome)
    }

    /// The same, where the server takes pieces and the file has some.
    pub(super) async fn send_in_pieces(
        &self,
        put: &Put,
        resume: Option<Upload>,
        progress: &dyn UploadProgress,
    ) -> Result<Outcome, WorkspaceError> {
        let result = match self.dialect.large {
            LargeRoute::Parts => self.send_parts(put, resume, progress).await,
            LargeRoute::Chunks | LargeRoute::Multipart => self.send_chunks(put, resume, progress).await,
        };
        match result {
            Ok(sent_bytes) => Ok(Outcome::Done { sent_bytes }),
            // The file's own: its bytes here, or their hash there.
            Err(error @ (WorkspaceError::Io(_) | WorkspaceError::Refused { .. })) => Ok(Outcome::Failed(error)),
            Err(error) => Err(error),
        }
    }

    // ---- parts

    /// Begins an upload; content that the server has is staged by that.
    pub(super) async fn begin(&self, put: &Put, size: u64) -> Result<wire::BegunUpload, WorkspaceError> {
        let body = wire::BeginUpload {
            hash: put.object.hash.to_string(),
            size,
            destination: wire::Destination { workspace_id: &self.id(), path: put.path.as_str() },
        };
        let request = Request::new(Method::POST, self.repo.url("versions/uploads"), self.what()).json(&body)?;
        self.repo.http.json_with(Patience::Quick, &request).await
    }

    /// Sends what is missing; returns how much that was.
    async fn send_parts(
        &self,
        put: &Put,
        resume: Option<Upload>,
        progress: &dyn UploadProgress,
    ) -> Result<u64, WorkspaceError> {
        let mut sent_bytes = 0;
        let size = put.object.size;
        let mut resume = resume.filter(|upload| !upload.id.is_empty() && has_sensible_parts(size, upload.part_bytes));
        for _ in 0..ROUNDS {
            let resumed = resume.is_some();
            let (upload, window) = match resume.take() {
                // A guess that holds for what released servers take: the smallest window there is.
                Some(upload) => (upload, PARTS as u64),
                None => {
                    let begun = self.begin(put, put.object.size).await?;
                    if begun.file == "already_stored" {
                        return Ok(sent_bytes);
                    }
                    let parts = put.object.size.checked_div(begun.part_size).unwrap_or(0);
                    let parts = parts + u64::from(put.object.size.checked_rem(begun.part_size).unwrap_or(0) > 0);
                    if begun.upload_id.is_empty() || parts == 0 || parts != begun.num_parts {
                        let detail = format!(
                            "{} parts of {} bytes for the {} bytes of {}",
                            begun.num_parts, begun.part_size, put.object.size, put.path
                        );
                        return Err(WorkspaceError::Protocol { detail, request: None });
                    }
                    if !has_sensible_parts(size, begun.part_size) {
                        return Err(WorkspaceError::Unsupported { what: "take a file in parts of a sensible length" });
                    }
                    let upload = Upload { id: begun.upload_id, part_bytes: begun.part_size, parts: Vec::new() };
                    progress.checkpoint(&upload);
                    (upload, begun.part_window.max(1))
                }
            };
            match self.send_round(put, upload, window, progress, &mut sent_bytes).await {
                Ok(Round::Completed) => return Ok(sent_bytes),
                // Beginning again answers `already_stored` where the file is there (0.65.2, tried).
                Ok(Round::Over) => {}
                // A part that is there from before need not be ours, and is not taken twice.
                Err(WorkspaceError::Refused { .. }) if resumed => {
                    tracing::debug!(path = %put.path, "what was sent of it before is not its own; it is sent again");
                }
                Err(error) => return Err(error),
            }
        }
        Err(WorkspaceError::Unconfirmed { what: put.path.to_string() })
    }

    /// Sends the parts that `upload` lacks, a few at a time, none further than `window` ahead of the first missing.
    async fn send_round(
        &self,
        put: &Put,
        mut upload: Upload,
        window: u64,
        progress: &dyn UploadProgress,
        sent_bytes: &mut u64,
    ) -> Result<Round, WorkspaceError> {
        let count = part_count(put.object.size, upload.part_bytes)?;
        // One of a single part takes nothing from the others.
        let _counted = (count > 1).then(|| self.in_parts.one_more());
        let acknowledged: BTreeSet<u32> = upload.parts.iter().copied().filter(|part| *part < count).collect();
        let mut missing: BTreeSet<u32> = (0..count).filter(|part| !acknowledged.contains(part)).collect();
        let mut waiting: BTreeSet<u32> = missing.clone();
        let mut in_flight = FuturesUnordered::new();
        let mut completed = false;
        loop {
            while in_flight.len() < self.in_parts.share()
                && let (Some(first), Some(next)) = (missing.first().copied(), waiting.first().copied())
                && u64::from(next - first) < window
            {
                waiting.remove(&next);
                in_flight.push(self.send_part(put, &upload.id, upload.part_bytes, next));
            }
            let Some(result) = in_flight.next().await else { break };
            let Some((part, len, last)) = result? else { return Ok(Round::Over) };
            *sent_bytes += len;
            completed |= last;
            missing.remove(&part);
            if let Err(at) = upload.parts.binary_search(&part) {
                upload.parts.insert(at, part);
            }
            progress.checkpoint(&upload);
            progress.sent(len);
        }
        Ok(if completed { Round::Completed } else { Round::Over })
    }

    /// Sends one part: its number, its length, and whether it completed the file. `None` when the server does not know
    /// the upload: it never began, was given up, or is complete (0.65.2, tried; read: given up after 60 s of silence).
    async fn send_part(
        &self,
        put: &Put,
        upload: &str,
        part_bytes: u64,
        part: u32,
    ) -> Result<Option<(u32, u64, bool)>, WorkspaceError> {
        let (body, len) = stretch(put, u64::from(part) * part_bytes, part_bytes)?;
        let place = format!("versions/uploads/{}/parts/{}", super::http::segment(upload), part + 1);
        let what = format!("upload of {}", put.path);
        let request = Request::new(Method::PUT, self.repo.url(&place), what).body(PLAIN, body.clone());
        let mut held_back = 0;
        loop {
            match self.send_stretch::<wire::PartAnswer>(&request, &body).await {
                Ok(answer) => return Ok(Some((part, len, answer.completed))),
                Err(WorkspaceError::NotFound { .. }) => return Ok(None),
                Err(error @ WorkspaceError::Busy { .. }) if held_back < HELD_BACK => {
                    held_back += 1;
                    tokio::time::sleep(pause(held_back, &error)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends a stretch of a file; a file that cannot be read is an error of its own.
    async fn send_stretch<T>(&self, request: &Request, body: &Body) -> Result<T, WorkspaceError>
    where
        T: serde::de::DeserializeOwned + Send + 'static,
    {
        retry(Patience::Quick, || async {
            let result = self.repo.http.json::<T>(request).await;
            match (result, body.take_trouble()) {
                (Err(_), Some(trouble)) => Err(trouble.error.into()),
                (result, _) => result,
            }
        })
        .await
    }

    // ---- chunks

    async fn send_chunk(&self, put: &Put, chunk: u32) -> Result<(u32, u64), WorkspaceError> {
        let offset = u64::from(chunk) * wire::CHUNK_BYTES;
        let (body, len) = stretch(put, offset, wire::CHUNK_BYTES)?;
        let url = self.repo.url(&format!("versions/{}/chunks?offset={offset}", put.object.hash));
        let request = Request::new(Method::PUT, url, format!("upload of {}", put.path)).body(PLAIN, body.clone());
        self.send_stretch::<wire::Anything>(&request, &body).await.map(|_| (chunk, len))
    }

    /// For servers before 0.64 (read). The file is immutable: a chunk that changed would spoil its hash for good.
    pub(super) async fn send_chunks(
        &self,
        put: &Put,
        resume: Option<Upload>,
        progress: &dyn UploadProgress,
    ) -> Result<u64, WorkspaceError> {
        let hash = put.object.hash.to_string();
        let what = format!("upload of {}", put.path);
        let url = |rest: &str| self.repo.url(&format!("versions/{hash}/{rest}"));
        let create = Request::new(Method::POST, url("create"), what.as_str()).json(&Nothing {})?;
        self.repo.http.json_with::<wire::Anything>(Patience::Quick, &create).await?;

        let count = part_count(put.object.size, wire::CHUNK_BYTES)?;
        let fresh = || Upload { id: String::new(), part_bytes: wire::CHUNK_BYTES, parts: Vec::new() };
        let mut upload = resume.filter(|upload| upload.part_bytes == wire::CHUNK_BYTES).unwrap_or_else(fresh);
        let mut sent_bytes = 0;
        let _counted = (count > 1).then(|| self.in_parts.one_more());
        loop {
            let resumed = !upload.parts.is_empty();
            let missing: Vec<u32> = (0..count).filter(|part| upload.parts.binary_search(part).is_err()).collect();
            let chunks: Vec<_> = missing.into_iter().map(|chunk| self.send_chunk(put, chunk)).collect();
            let mut chunks = futures_util::stream::iter(chunks).buffer_unordered(self.in_parts.share());
            while let Some(result) = chunks.next().await {
                let (chunk, len) = result?;
                sent_bytes += len;
                if let Err(at) = upload.parts.binary_search(&chunk) {
                    upload.parts.insert(at, chunk);
                }
                progress.checkpoint(&upload);
                progress.sent(len);
            }
            let parent = put.path.parent().filter(|parent| !parent.is_root());
            let body = wire::CompleteUpload {
                files: [wire::CompletedFile {
                    hash: hash.clone(),
                    file_name: put.path.file_name(),
                    dst_dir: parent.as_ref().map(|parent| parent.as_str()),
                    num_chunks: u64::from(count),
                }],
                workspace_id: &self.id(),
            };
            let complete = Request::new(Method::POST, url("complete"), what.as_str()).json(&body)?;
            match self.repo.http.json_with::<wire::Anything>(Patience::Quick, &complete).await {
                Ok(_) => return Ok(sent_bytes),
                // The chunks on record are not there any more: assembled by a request whose answer was lost, or gone.
                Err(WorkspaceError::Refused { status: 400, .. }) if resumed => upload = fresh(),
                Err(error) => return Err(error),
            }
        }
    }
}

/// `{}`.
#[derive(serde::Serialize)]
struct Nothing {}

/// The stretch of a file from `offset`, of at most `len` bytes, and its length.
fn stretch(put: &Put, offset: u64, len: u64) -> Result<(Body, u64), WorkspaceError> {
    let len = put.object.size.saturating_sub(offset).min(len);
    let file = put.file.clone().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    Ok((Body::new(vec![Segment::File { file, offset, len, item: 0 }]), len))
}

/// Whether a file of `size` bytes can go in parts of so many: each is counted in memory, and costs a request.
fn has_sensible_parts(size: u64, part_bytes: u64) -> bool {
    part_bytes >= size || part_bytes >= LEAST_PART_BYTES && size.div_ceil(part_bytes) <= MOST_PARTS
}

/// How many stretches of `part_bytes` a file has.
fn part_count(size: u64, part_bytes: u64) -> Result<u32, WorkspaceError> {
    let count = size.div_ceil(part_bytes.max(1));
    u32::try_from(count)
        .map_err(|_| WorkspaceError::Protocol { detail: format!("{size} bytes in {count} parts"), request: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_does_not_make_a_file_any_number_of_parts() {
        let table =
            [(30 << 20, 1, false), (30 << 20, 1 << 16, true), (30 << 20, 1 << 60, true), (1 << 40, 10 << 20, true)];
        for (size, part_bytes, sensible) in
            table.into_iter().chain([(1 << 50, 1 << 20, false), (5, 5, true), (5, 0, false)])
        {
            assert_eq!(has_sensible_parts(size, part_bytes), sensible, "{size} in parts of {part_bytes}");
        }
    }

    #[test]
    fn files_that_go_in_parts_share_what_may_be_in_flight() {
        let in_parts = InParts::default();
        let mut counted = Vec::new();
        let shares: Vec<usize> = (0..6)
            .map(|_| {
                counted.push(in_parts.one_more());
                in_parts.share()
            })
            .collect();
        assert_eq!(shares, [2, 2, 1, 1, 1, 1]);
        counted.truncate(1);
        assert_eq!(in_parts.share(), 2);
    }
}
