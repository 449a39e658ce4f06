//! Reading files: whole into a local file, in ranges, or only for their hash.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::OxenWorkspace;
use super::http::{Answer, Request, blocking, path, segment};
use super::retry::{Patience, retry};
use super::wire;
use crate::hash::{ContentHash, Hasher};
use crate::path::RepoPath;
use crate::workspace::{EntryKind, Object, Revision, Source, WorkspaceError};

/// Bytes gathered before they are written or hashed on a thread that may block.
const GATHERED_BYTES: usize = 1 << 20;
/// And for how long: what has come is kept when the connection breaks, and whoever waits for the end of a body that is
/// longer than it should be is told soon.
const GATHERED_WITHIN: Duration = Duration::from_secs(1);

/// How much is read of content of which nobody says how long it is.
const UNANNOUNCED_BYTES: u64 = 1 << 30;

impl OxenWorkspace {
    /// A whole file's content, as a stream.
    ///
    /// Of a workspace, `workspaces/{id}/files/{path}` is the route that all servers have; it does not decode `%25`, so
    /// names with `%` are read through `file/` (0.65.2, tried).
    async fn open_file(&self, source: &Source) -> Result<Answer, WorkspaceError> {
        let at = path(&source.path);
        let url = match &source.revision {
            Revision::Commit(id) => self.repo.url(&format!("file/{}/{at}", segment(&id.0))),
            Revision::Workspace if source.path.as_str().contains('%') => {
                self.repo.url(&format!("file/{}/{at}", segment(&self.id())))
            }
            Revision::Workspace => self.url(&format!("files/{at}")),
        };
        self.repo.http.send(&Request::get(url, source.path.to_string())).await
    }

    pub(super) async fn fetch_into(&self, source: &Source, size: u64, into: &File) -> Result<u64, WorkspaceError> {
        let into = Arc::new(into.try_clone()?);
        // That there is more than there should be is not asked again: it would take as long.
        retry(Patience::Several, || self.fetch_once(source, size, &into)).await?
    }

    /// The outer error may not come again, the inner one does.
    async fn fetch_once(
        &self,
        source: &Source,
        size: u64,
        into: &Arc<File>,
    ) -> Result<Result<u64, WorkspaceError>, WorkspaceError> {
        let already = into.metadata()?.len();
        if let Revision::Commit(commit) = &source.revision
            && (1..size).contains(&already)
            && !self.no_ranges.load(Ordering::Relaxed)
        {
            match self.fetch_rest(&commit.0, &source.path, already..size, into).await {
                // The route is not there, or the file is shorter than it should be.
                Err(
                    WorkspaceError::NotFound { .. }
                    | WorkspaceError::Refused { .. }
                    | WorkspaceError::Server { status: 500, .. },
                ) => {}
                rest => return rest.map(Ok),
            }
        }
        let mut answer = self.open_file(source).await?;
        let too_long = |id| {
            let detail = format!("{} has more than the {size} bytes that it is listed with", source.path);
            WorkspaceError::Protocol { detail, request: Some(id) }
        };
        if answer.length().is_some_and(|length| length > size) {
            return Ok(Err(too_long(answer.id())));
        }
        let mut at = 0;
        while let Some(bytes) = gather(&mut answer).await? {
            let (file, offset, len) = (into.clone(), at, bytes.len() as u64);
            if len > size - at {
                return Ok(Err(too_long(answer.id())));
            }
            blocking(move || file.write_all_at(&bytes, offset)).await??;
            at += len;
        }
        // What an attempt before this one wrote may have been longer, if others staged something else meanwhile.
        let file = into.clone();
        blocking(move || if file.metadata()?.len() > at { file.set_len(at) } else { Ok(()) }).await??;
        Ok(Ok(at))
    }

    pub(super) async fn read_range(&self, source: &Source, range: Range<u64>) -> Result<Bytes, WorkspaceError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        if let Revision::Commit(id) = &source.revision
            && !self.no_ranges.load(Ordering::Relaxed)
        {
            match self.read_chunks(&id.0, &source.path, range.clone()).await {
                // The file is not there, or the route is not.
                Err(WorkspaceError::NotFound { .. } | WorkspaceError::Refused { .. }) => {
                    let bytes = retry(Patience::Several, || self.read_stream(source, range.clone())).await?;
                    self.no_ranges.store(true, Ordering::Relaxed);
                    return Ok(bytes);
                }
                result => return result,
            }
        }
        retry(Patience::Several, || self.read_stream(source, range.clone())).await
    }

    pub(super) fn may_give_parts(&self, source: &Source) -> bool {
        matches!(source.revision, Revision::Commit(_)) && !self.no_ranges.load(Ordering::Relaxed)
    }

    pub(super) async fn read_part_of(
        &self,
        source: &Source,
        range: Range<u64>,
    ) -> Result<Option<Bytes>, WorkspaceError> {
        let (Revision::Commit(commit), true) = (&source.revision, self.may_give_parts(source)) else {
            return Ok(None);
        };
        // One answer is handed on as it came.
        let (mut parts, mut again) = (Vec::new(), false);
        let mut start = range.start;
        while start < range.end {
            let len = (range.end - start).min(wire::RANGE_BYTES);
            match self.read_chunk(&commit.0, &source.path, start, len).await {
                Ok(part) if part.len() as u64 == len => parts.push(part),
                Err(WorkspaceError::NotFound { .. } | WorkspaceError::Refused { .. })
                | Err(WorkspaceError::Server { status: 501, .. }) => {
                    // The file is not there, or the route is not.
                    if self.meta(&commit.0, &source.path).await?.is_some() {
                        tracing::info!("the server gives no parts of files; they are fetched whole");
                        self.no_ranges.store(true, Ordering::Relaxed);
                    }
                    return Ok(None);
                }
                // A range that passes the end is answered 500 (0.65.2, tried), and so is much else.
                Err(error @ WorkspaceError::Server { status: 500, .. }) => {
                    if !self.is_so_long(&commit.0, &source.path, range.end).await? {
                        return Ok(None);
                    }
                    if again {
                        return Err(error);
                    }
                    again = true;
                    continue;
                }
                // It is not as long as it should be, which whoever fetches all of it finds out.
                Ok(_) => return Ok(None),
                Err(error) => return Err(error),
            }
            start += len;
        }
        if let [part] = &*parts {
            return Ok(Some(part.clone()));
        }
        Ok(Some(parts.concat().into()))
    }

    /// Whether a committed file has so many bytes, by what the server says of it.
    async fn is_so_long(&self, commit: &str, at: &RepoPath, bytes: u64) -> Result<bool, WorkspaceError> {
        let kind = self.meta(commit, at).await?.map(|meta| meta.kind);
        Ok(matches!(kind, Some(EntryKind::File(object)) if object.size >= bytes))
    }

    /// Through `chunk/`, which serves committed content only (0.65.2, tried).
    async fn read_chunks(&self, commit: &str, at: &RepoPath, range: Range<u64>) -> Result<Bytes, WorkspaceError> {
        let mut end = range.end;
        let mut clamped = false;
        let mut bytes = BytesMut::new();
        let mut start = range.start;
        while start < end {
            let len = (end - start).min(wire::RANGE_BYTES);
            match self.read_chunk(commit, at, start, len).await {
                Ok(chunk) if chunk.len() as u64 == len => {
                    bytes.extend_from_slice(&chunk);
                    start += len;
                }
                // A range that passes the end is answered 500 (0.65.2, tried); another server may answer less.
                Ok(_)
                | Err(WorkspaceError::Server { status: 500, .. } | WorkspaceError::Refused { status: 416, .. })
                    if !clamped =>
                {
                    clamped = true;
                    let Some(meta) = self.meta(commit, at).await? else {
                        return Err(WorkspaceError::NotFound { what: at.to_string(), request: None });
                    };
                    let EntryKind::File(object) = meta.kind else {
                        return Err(WorkspaceError::NotFound { what: format!("a file at {at}"), request: None });
                    };
                    end = end.min(object.size);
                }
                Ok(chunk) => {
                    let detail = format!("{at} gave {} of {len} bytes at {start}", chunk.len());
                    return Err(WorkspaceError::Protocol { detail, request: None });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(bytes.freeze())
    }

    async fn read_chunk(&self, commit: &str, at: &RepoPath, start: u64, len: u64) -> Result<Bytes, WorkspaceError> {
        let beyond =
            || WorkspaceError::Server { status: 500, message: format!("cannot read {at} at {start}"), request: None };
        let read = || async {
            match self.read_chunk_once(commit, at, start, len).await {
                // Not repeated: most likely the range passes the end.
                Err(WorkspaceError::Server { status: 500, .. }) => Ok(None),
                result => result.map(Some),
            }
        };
        retry(Patience::Several, read).await?.ok_or_else(beyond)
    }

    async fn read_chunk_once(
        &self,
        commit: &str,
        at: &RepoPath,
        start: u64,
        len: u64,
    ) -> Result<Bytes, WorkspaceError> {
        let place = format!("chunk/{}/{}?chunk_start={start}&chunk_size={len}", segment(commit), path(at));
        let mut answer = self.repo.http.send(&Request::get(self.repo.url(&place), at.to_string())).await?;
        let mut bytes = BytesMut::new();
        while let Some(piece) = answer.piece().await? {
            if (bytes.len() + piece.len()) as u64 > len {
                let detail = format!("{at} gave more than the {len} bytes asked for");
                return Err(WorkspaceError::Protocol { detail, request: Some(answer.id()) });
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes.freeze())
    }

    /// The rest of a file of which an earlier attempt got the beginning; returns the length of all.
    async fn fetch_rest(
        &self,
        commit: &str,
        at: &RepoPath,
        rest: Range<u64>,
        into: &Arc<File>,
    ) -> Result<u64, WorkspaceError> {
        let mut start = rest.start;
        while start < rest.end {
            let len = (rest.end - start).min(wire::RANGE_BYTES);
            let bytes = self.read_chunk_once(commit, at, start, len).await?;
            if bytes.is_empty() {
                break;
            }
            let (file, offset, got) = (into.clone(), start, bytes.len() as u64);
            blocking(move || file.write_all_at(&bytes, offset)).await??;
            start += got;
        }
        Ok(start)
    }

    /// From the start of the whole file, which is all there is for staged content.
    async fn read_stream(&self, source: &Source, range: Range<u64>) -> Result<Bytes, WorkspaceError> {
        let mut answer = self.open_file(source).await?;
        let mut bytes = BytesMut::new();
        let mut at = 0;
        while at < range.end
            && let Some(piece) = answer.piece().await?
        {
            let from = range.start.saturating_sub(at).min(piece.len() as u64) as usize;
            let to = (range.end - at).min(piece.len() as u64) as usize;
            bytes.extend_from_slice(&piece[from..to.max(from)]);
            at += piece.len() as u64;
        }
        Ok(bytes.freeze())
    }

    /// What is staged at a path, found out by reading it.
    pub(super) async fn hash_staged(&self, at: &RepoPath) -> Result<Object, WorkspaceError> {
        let source = Source { revision: Revision::Workspace, path: at.clone() };
        retry(Patience::Several, || async {
            let mut answer = self.open_file(&source).await?;
            let limit = answer.length().unwrap_or(UNANNOUNCED_BYTES);
            let mut hasher = Hasher::new(self.info.hash_kind);
            let mut size = 0;
            while let Some(bytes) = gather(&mut answer).await? {
                size += bytes.len() as u64;
                if size > limit {
                    let detail = format!("{at} goes on after {limit} bytes");
                    return Err(WorkspaceError::Protocol { detail, request: Some(answer.id()) });
                }
                hasher = blocking(move || {
                    hasher.update(&bytes);
                    hasher
                })
                .await?;
            }
            let hash: ContentHash = hasher.finish();
            Ok(Object { hash, size })
        })
        .await
    }
}

/// The next mebibyte or so; `None` at the end.
async fn gather(answer: &mut Answer) -> Result<Option<Bytes>, WorkspaceError> {
    let Some(first) = answer.piece().await? else { return Ok(None) };
    if first.len() >= GATHERED_BYTES {
        return Ok(Some(first));
    }
    let began = std::time::Instant::now();
    let mut bytes = BytesMut::from(first);
    while bytes.len() < GATHERED_BYTES
        && began.elapsed() < GATHERED_WITHIN
        && let Some(piece) = answer.piece().await?
    {
        bytes.extend_from_slice(&piece);
    }
    Ok(Some(bytes.freeze()))
}
