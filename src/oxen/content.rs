//! Reading files: whole into a local file, in ranges, or only for their hash.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

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

    pub(super) async fn fetch_into(&self, source: &Source, into: &File) -> Result<u64, WorkspaceError> {
        let into = Arc::new(into.try_clone()?);
        retry(Patience::Several, || self.fetch_once(source, &into)).await
    }

    async fn fetch_once(&self, source: &Source, into: &Arc<File>) -> Result<u64, WorkspaceError> {
        let mut answer = self.open_file(source).await?;
        let mut at = 0;
        while let Some(bytes) = gather(&mut answer).await? {
            let (file, offset, len) = (into.clone(), at, bytes.len() as u64);
            blocking(move || file.write_all_at(&bytes, offset)).await??;
            at += len;
        }
        // What an attempt before this one wrote may have been longer, if others staged something else meanwhile.
        let file = into.clone();
        blocking(move || if file.metadata()?.len() > at { file.set_len(at) } else { Ok(()) }).await??;
        Ok(at)
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
        let place = format!("chunk/{}/{}?chunk_start={start}&chunk_size={len}", segment(commit), path(at));
        let request = Request::get(self.repo.url(&place), at.to_string());
        let read = || async {
            let mut answer = match self.repo.http.send(&request).await {
                // Not repeated: most likely the range passes the end.
                Err(WorkspaceError::Server { status: 500, .. }) => return Ok(None),
                result => result?,
            };
            let mut bytes = BytesMut::new();
            while let Some(piece) = answer.piece().await? {
                if (bytes.len() + piece.len()) as u64 > len {
                    let detail = format!("{at} gave more than the {len} bytes asked for");
                    return Err(WorkspaceError::Protocol { detail, request: Some(answer.id()) });
                }
                bytes.extend_from_slice(&piece);
            }
            Ok(Some(bytes.freeze()))
        };
        let beyond =
            || WorkspaceError::Server { status: 500, message: format!("cannot read {at} at {start}"), request: None };
        retry(Patience::Several, read).await?.ok_or_else(beyond)
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
            let mut hasher = Hasher::new(self.info.hash_kind);
            let mut size = 0;
            while let Some(bytes) = gather(&mut answer).await? {
                size += bytes.len() as u64;
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
    let mut bytes = BytesMut::from(first);
    while bytes.len() < GATHERED_BYTES
        && let Some(piece) = answer.piece().await?
    {
        bytes.extend_from_slice(&piece);
    }
    Ok(Some(bytes.freeze()))
}
