//! Content that a server takes for the base's, answers 200 to, and does not stage.
//!
//! Released servers compare what is to be staged with the base's file by length and by the times at which the two were
//! stored, and read neither where both agree: whatever was staged there before stays (0.53.4 and 0.65.2, read:
//! `is_modified_from_node`; 0.65.2, tried: of 400 files of one length that exchanged their contents 2 kept their old
//! ones). Two cases are known. Contents that were stored together have the same time, to the nanosecond or to the 4 ms
//! of a kernel's clock. And a server tries once for each repository how exact its disk's times are; two requests that
//! do so at the same time disturb each other, and from then on times within two seconds are the same.
//!
//! So where the base has other content of the same length, nothing is left staged before, and the server is asked
//! afterwards whether something is; where something must be left, what is staged afterwards is read. What it overlooked
//! is sent in chunks: assembling them stores the content anew, with a time of its own. That time may be within the two
//! seconds still; the caller's next attempt is later. Where a server knows no chunks, nothing stores content anew that it
//! has, however often it is sent: such a file is refused, and staged when a commit has taken away what it is taken for.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::atomic::Ordering;

use futures_util::stream::{self, StreamExt};

use super::OxenWorkspace;
use super::dialect::LargeRoute;
use super::staging::{QUESTIONS, Unwatched};
use crate::path::RepoPath;
use crate::workspace::{ChangeKind, Outcome, Over, Put, Upload, UploadProgress, WorkspaceError};

/// How many paths are looked up in a listing of all changes, rather than asked for one by one; and how many entries of a
/// listing take as long as a question (0.65.2, tried: 2,000 entries 0.11 s, a question 4 ms).
const LEAST_LISTED: usize = 16;
const LISTED_PER_QUESTION: usize = 50;

/// What is known of some puts' places before they are sent.
struct Ground {
    /// Places of puts that cannot go, as what is staged there stays, and why.
    failed: Vec<(usize, WorkspaceError)>,
    /// Where it stays, and no request can change that: only reading tells whether a put has replaced it.
    covered: HashSet<RepoPath>,
}

impl Ground {
    fn sendable<'a>(&self, puts: &'a [Put]) -> Cow<'a, [Put]> {
        if self.failed.is_empty() {
            return Cow::Borrowed(puts);
        }
        let places: HashSet<usize> = self.failed.iter().map(|(at, _)| *at).collect();
        puts.iter().enumerate().filter(|(at, _)| !places.contains(at)).map(|(_, put)| put.clone()).collect()
    }

    /// One outcome for each put, from those of the ones that went.
    fn complete(&mut self, mut outcomes: Vec<Outcome>) -> Vec<Outcome> {
        for (at, error) in self.failed.drain(..) {
            outcomes.insert(at.min(outcomes.len()), Outcome::Failed(error));
        }
        outcomes
    }
}

impl OxenWorkspace {
    pub(super) async fn stage_known(&self, puts: &[Put]) -> Result<Vec<Outcome>, WorkspaceError> {
        let mut ground = self.uncover(puts).await?;
        let outcomes = self.stage_hashes(&ground.sendable(puts)).await?;
        let mut outcomes = ground.complete(outcomes);
        for at in self.check(puts, &ground, &mut outcomes).await {
            outcomes[at] = match self.dialect.large {
                LargeRoute::Multipart => Outcome::Failed(WorkspaceError::Overlooked),
                LargeRoute::Parts | LargeRoute::Chunks => Outcome::NeedsBytes,
            };
        }
        Ok(outcomes)
    }

    pub(super) async fn send_files(&self, puts: &[Put]) -> Result<Vec<Outcome>, WorkspaceError> {
        let mut ground = self.uncover(puts).await?;
        let outcomes = self.send_batch(&ground.sendable(puts)).await?;
        let mut outcomes = ground.complete(outcomes);
        for at in self.check(puts, &ground, &mut outcomes).await {
            outcomes[at] = self.send_anew(&puts[at], &ground, &Unwatched).await;
        }
        Ok(outcomes)
    }

    pub(super) async fn send_file(
        &self,
        put: &Put,
        resume: Option<Upload>,
        progress: &dyn UploadProgress,
    ) -> Result<Outcome, WorkspaceError> {
        let puts = std::slice::from_ref(put);
        let mut ground = self.uncover(puts).await?;
        if let Some((_, error)) = ground.failed.pop() {
            return Ok(Outcome::Failed(error));
        }
        let mut outcome = [self.send_one(put, resume, progress).await?];
        let overlooked = self.check(puts, &ground, &mut outcome).await;
        let [outcome] = outcome;
        match overlooked.is_empty() {
            true => Ok(outcome),
            false => Ok(self.send_anew(put, &ground, progress).await),
        }
    }

    /// Unstages what would stand if content were overlooked: another content of this length, or a removal.
    async fn uncover(&self, puts: &[Put]) -> Result<Ground, WorkspaceError> {
        let covered = puts.iter().enumerate().filter(|(_, put)| put.over == Over::SameLength { staged: true });
        let (places, covered): (Vec<usize>, Vec<RepoPath>) = covered.map(|(at, put)| (at, put.path.clone())).unzip();
        let mut ground = Ground { failed: Vec::new(), covered: HashSet::new() };
        if covered.is_empty() {
            return Ok(ground);
        }
        let outcomes = self.drop_changes(&covered).await?;
        for ((at, path), outcome) in places.into_iter().zip(covered).zip(outcomes) {
            match outcome {
                Outcome::Failed(WorkspaceError::Unsupported { .. }) => {
                    ground.covered.insert(path);
                }
                Outcome::Failed(error) => ground.failed.push((at, error)),
                Outcome::Done { .. } | Outcome::NeedsBytes => {}
            }
        }
        Ok(ground)
    }

    /// Which of these were overlooked. Where that cannot be told, the outcome is the error.
    async fn check(&self, puts: &[Put], ground: &Ground, outcomes: &mut [Outcome]) -> Vec<usize> {
        let doubtful = puts.iter().zip(&*outcomes).enumerate().filter(|(_, (put, outcome))| {
            matches!(put.over, Over::SameLength { .. }) && matches!(outcome, Outcome::Done { .. })
        });
        let doubtful = doubtful.map(|(at, (put, _))| (at, put));
        let (covered, free): (Vec<_>, Vec<_>) = doubtful.partition(|(_, put)| ground.covered.contains(&put.path));
        let mut answers = self.have_staged(&free.iter().map(|(_, put)| &put.path).collect::<Vec<_>>()).await;
        for (_, put) in &covered {
            answers.push(self.has_this_staged(put).await);
        }
        let mut overlooked = Vec::new();
        for ((at, put), answer) in free.into_iter().chain(covered).zip(answers) {
            match answer {
                Ok(true) => {}
                Ok(false) => {
                    tracing::debug!(path = %put.path, "the server took it for what the base has; it is sent anew");
                    overlooked.push(at);
                }
                Err(error) => outcomes[at] = Outcome::Failed(error),
            }
        }
        overlooked
    }

    /// For each path whether content is staged there: by one listing of all changes, or by a question for each path,
    /// whichever is likely to be cheaper. Servers that are not released ones need not say of a path that it is changed.
    async fn have_staged(&self, paths: &[&RepoPath]) -> Vec<Result<bool, WorkspaceError>> {
        if paths.is_empty() {
            return Vec::new();
        }
        let listed = self.listed_changes.load(Ordering::Relaxed);
        let few = paths.len() < LEAST_LISTED || listed > paths.len().saturating_mul(LISTED_PER_QUESTION);
        if few && self.dialect.large != LargeRoute::Multipart {
            let questions: Vec<_> = paths.iter().map(|path| self.has_staged(path)).collect();
            return stream::iter(questions).buffered(QUESTIONS).collect().await;
        }
        match self.staged_changes().await {
            Ok(changes) => {
                self.listed_changes.store(changes.len(), Ordering::Relaxed);
                let staged = changes.iter().filter(|change| change.kind != ChangeKind::Removed);
                let staged: HashSet<&RepoPath> = staged.map(|change| &change.path).collect();
                paths.iter().map(|path| Ok(staged.contains(path))).collect()
            }
            Err(error) => paths.iter().map(|_| Err(error.clone())).collect(),
        }
    }

    async fn has_staged(&self, path: &RepoPath) -> Result<bool, WorkspaceError> {
        Ok(self.meta(&self.id(), path).await?.is_some_and(|meta| meta.put))
    }

    /// Whether this very content is what the workspace has at its path. Reads it.
    async fn has_this_staged(&self, put: &Put) -> Result<bool, WorkspaceError> {
        match self.hash_staged(&put.path).await {
            Ok(found) => Ok(found == put.object),
            Err(WorkspaceError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Has the content stored anew, which stages it. An error is this file's own: others may go on.
    async fn send_anew(&self, put: &Put, ground: &Ground, progress: &dyn UploadProgress) -> Outcome {
        if put.file.is_none() {
            return Outcome::NeedsBytes;
        }
        let sent = async {
            let unconfirmed = || WorkspaceError::Unconfirmed { what: put.path.to_string() };
            if self.dialect.large == LargeRoute::Multipart {
                return Err(WorkspaceError::Overlooked);
            }
            let sent_bytes = self.send_chunks(put, None, progress).await?;
            let staged = match ground.covered.contains(&put.path) {
                true => self.has_this_staged(put).await?,
                false => self.has_staged(&put.path).await?,
            };
            if staged { Ok(Outcome::Done { sent_bytes }) } else { Err(unconfirmed()) }
        };
        sent.await.unwrap_or_else(Outcome::Failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::{ContentHash, HashKind};
    use crate::workspace::Object;

    #[test]
    fn puts_that_cannot_go_keep_their_places_among_the_outcomes() {
        let object = Object { hash: ContentHash::of(HashKind::Xxh3, b"x"), size: 1 };
        let path = |name: &str| RepoPath::parse(name).unwrap();
        let puts = ["a", "b", "c", "d"].map(|name| Put { path: path(name), object, file: None, over: Over::Other });
        let unconfirmed = |what: &str| WorkspaceError::Unconfirmed { what: what.into() };
        let failed = vec![(0, unconfirmed("a")), (3, unconfirmed("d"))];
        let mut ground = Ground { failed, covered: HashSet::new() };
        let went = ground.sendable(&puts);
        assert_eq!(went.iter().map(|put| put.path.as_str()).collect::<Vec<_>>(), ["b", "c"]);
        let outcomes = ground.complete(vec![Outcome::NeedsBytes, Outcome::Done { sent_bytes: 1 }]);
        let kinds = outcomes.iter().map(|outcome| match outcome {
            Outcome::Failed(WorkspaceError::Unconfirmed { what }) => what.clone(),
            other => format!("{other:?}"),
        });
        assert_eq!(kinds.collect::<Vec<_>>(), ["a", "NeedsBytes", "Done { sent_bytes: 1 }", "d"]);
    }
}
