//! Which contents the server has, asked by hash; no content travels.

use std::collections::HashSet;
use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::{StreamExt, TryStreamExt};
use reqwest::{Method, StatusCode};

use super::OxenWorkspace;
use super::http::Request;
use super::retry::{Patience, retry};
use super::wire;
use crate::hash::{ContentHash, HashKind};
use crate::workspace::WorkspaceError;

/// Hashes of one request: about 200 KB, gzipped.
const BATCH: usize = 10_000;
/// Hashes asked for at once, where each takes a request.
const AT_ONCE: usize = 8;
/// The hash of no content, as far as anybody knows. A whole one: the server's handler panics on a very short one
/// (0.65.2, tried).
const IMPOSSIBLE: ContentHash = ContentHash::Xxh3([0xff; 16]);

/// How this server is asked, as far as that was found out.
#[derive(Debug, Default)]
pub(super) struct Questions {
    known: Mutex<Known>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Known {
    /// `QUERY versions` does not say what is missing.
    no_query: bool,
    /// `GET versions/{hash}/metadata` found something: where it finds nothing, there is nothing.
    metadata: bool,
    /// A content that a commit has.
    committed: Option<ContentHash>,
}

impl Questions {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A commit has this content, so the server does.
    pub(super) fn is_committed(&self, hash: ContentHash) {
        self.known().committed.get_or_insert(hash);
    }
}

impl OxenWorkspace {
    pub(super) async fn not_stored(&self, hashes: &[ContentHash]) -> Result<Option<Vec<ContentHash>>, WorkspaceError> {
        let asked: HashSet<ContentHash> = hashes.iter().copied().collect();
        if asked.is_empty() {
            return Ok(Some(Vec::new()));
        }
        let asked: Vec<ContentHash> = asked.into_iter().collect();
        if self.info.hash_kind == HashKind::Xxh3 && !self.stored.known().no_query {
            if let Some(missing) = self.query_missing(&asked).await? {
                return Ok(Some(missing));
            }
            self.stored.known().no_query = true;
        }
        self.look_for_each(&asked).await
    }

    /// By `QUERY versions`, which answers 404 with a list when any content is missing (0.65.2, tried). One that surely is
    /// goes along, so that no content ever comes. `None`: this server answers something else.
    async fn query_missing(&self, asked: &[ContentHash]) -> Result<Option<Vec<ContentHash>>, WorkspaceError> {
        let query = Method::from_bytes(b"QUERY").map_err(|error| WorkspaceError::from(std::io::Error::other(error)))?;
        let mut missing = Vec::new();
        for batch in asked.chunks(BATCH) {
            let mut body = GzEncoder::new(Vec::new(), Compression::fast());
            // First: an older server, which sends one content after the other, ends there.
            writeln!(body, "{IMPOSSIBLE}")?;
            for hash in batch {
                writeln!(body, "{hash}")?;
            }
            let request = Request::new(query.clone(), self.repo.url("versions"), self.repo.what())
                .body("application/gzip", body.finish()?.into())
                .answered_by(StatusCode::NOT_FOUND);
            let answer = match retry(Patience::Several, || self.repo.http.send(&request)).await {
                Ok(answer) if answer.status == StatusCode::NOT_FOUND => answer,
                // Content: it is not read.
                Ok(_) => return Ok(None),
                Err(WorkspaceError::Refused { .. } | WorkspaceError::Server { .. }) => return Ok(None),
                Err(error) => return Err(error),
            };
            let error = match answer.json::<wire::MissingAnswer>().await {
                Ok(answer) => answer.error,
                // A page of a gateway's, or of a server that has no such route.
                Err(WorkspaceError::Protocol { .. }) => return Ok(None),
                Err(error) => return Err(error),
            };
            let named: HashSet<ContentHash> = error.missing_hashes.iter().filter_map(|text| wire::hash(text)).collect();
            if error.kind != "version_blobs_missing" || !named.contains(&IMPOSSIBLE) {
                return Ok(None);
            }
            missing.extend(batch.iter().filter(|hash| named.contains(hash)));
        }
        Ok(Some(missing))
    }

    /// By `GET versions/{hash}/metadata`, which 0.37 and later have (read). A server without it answers the same 404 as for
    /// content that it lacks: so long as it found nothing ever, it is asked for content that it must have.
    async fn look_for_each(&self, asked: &[ContentHash]) -> Result<Option<Vec<ContentHash>>, WorkspaceError> {
        let answers = asked.iter().copied().map(|hash| self.is_stored(hash));
        let answers: Vec<bool> = futures_util::stream::iter(answers).buffered(AT_ONCE).try_collect().await?;
        let missing = asked.iter().zip(answers).filter(|(_, there)| !there);
        let missing: Vec<ContentHash> = missing.map(|(hash, _)| *hash).collect();
        let known = *self.stored.known();
        if missing.is_empty() || known.metadata {
            return Ok(Some(missing));
        }
        match known.committed {
            Some(hash) if self.is_stored(hash).await? => Ok(Some(missing)),
            _ => Ok(None),
        }
    }

    async fn is_stored(&self, hash: ContentHash) -> Result<bool, WorkspaceError> {
        let request = Request::get(self.repo.url(&format!("versions/{hash}/metadata")), format!("content {hash}"));
        let there = self.repo.http.find::<wire::Anything>(&request).await?.is_some();
        if there {
            self.stored.known().metadata = true;
        }
        Ok(there)
    }
}
