//! Content by its hash, and small files.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use futures_util::stream::{self, StreamExt};
use reqwest::Method;

use super::OxenWorkspace;
use super::body::{Body, Segment, Trouble};
use super::dialect::{HashRoute, LargeRoute, PartNames};
use super::http::{Request, blocking, workspace_path};
use super::multipart::{self, Form};
use super::retry::{Patience, retry};
use super::wire;
use crate::path::RepoPath;
use crate::workspace::{Outcome, Put, WorkspaceError};

/// Questions in flight where each is about one file (0.65.2, tried: 1,646 files/s with 8, 1,684 with 16, 299 one at a
/// time).
pub(super) const QUESTIONS: usize = 16;
/// Requests in flight where a batch has to be taken apart (0.65.2, tried: 4 were the fastest).
const REQUESTS: usize = 4;

/// Done, and nothing travelled for it.
pub(super) const DONE: Outcome = Outcome::Done { sent_bytes: 0 };

/// What the server cannot hold, in [`WorkspaceError::Unsupported`].
const ODD_NAME: &str = "take a name with a line break, control character or such like";
pub(super) const BACKSLASH: &str = "take a name with a backslash, which it reads as a directory's end";
const PERCENT_DIR: &str = "take files in a directory with % and two hexadecimal digits in its name";

/// A request's share of a batch: what it is about, and the items' places in the batch.
struct Group<'a> {
    dir: Option<RepoPath>,
    items: Vec<(usize, &'a Put)>,
}

impl OxenWorkspace {
    // ---- by hash

    pub(super) async fn stage_hashes(&self, puts: &[Put]) -> Result<Vec<Outcome>, WorkspaceError> {
        match self.dialect.hash_route {
            HashRoute::None => Ok(puts.iter().map(|_| Outcome::NeedsBytes).collect()),
            HashRoute::Uploads => self.ask_each(puts).await,
            HashRoute::WorkspaceVersions => self.ask_all("versions/", puts).await,
            HashRoute::FilesBatch => self.ask_all("files/batch/", puts).await,
        }
    }

    async fn ask_each(&self, puts: &[Put]) -> Result<Vec<Outcome>, WorkspaceError> {
        // Once the server is gone, the rest is not asked: each would wait for its own deadline.
        let gone: Mutex<Option<WorkspaceError>> = Mutex::new(None);
        let ask = |put: &Put| {
            let (gone, put) = (&gone, put.clone());
            async move {
                if let Some(error) = &*gone.lock().unwrap_or_else(PoisonError::into_inner) {
                    return Outcome::Failed(error.clone());
                }
                match self.ask(&put).await {
                    Ok(outcome) => outcome,
                    Err(error) => {
                        if concerns_all(&error) {
                            *gone.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
                        }
                        Outcome::Failed(error)
                    }
                }
            }
        };
        let questions: Vec<_> = puts.iter().map(ask).collect();
        let outcomes: Vec<Outcome> = stream::iter(questions).buffered(QUESTIONS).collect().await;
        all_or_error(outcomes)
    }

    /// Asks for one file. A size of 0 is refused (0.65.2, tried), and so is nothing but the size 0: the number is not
    /// compared with what is stored. So the question for no bytes names one byte.
    async fn ask(&self, put: &Put) -> Result<Outcome, WorkspaceError> {
        if has_backslash(put) {
            return Err(WorkspaceError::Unsupported { what: BACKSLASH });
        }
        let begun = self.begin(put, put.object.size.max(1)).await?;
        Ok(if begun.file == "already_stored" { DONE } else { Outcome::NeedsBytes })
    }

    /// Asks for many files with one request; with one a directory where multipart names are one component (guess: 0.50
    /// takes paths here no better than there; 0.53.4 takes whole ones, read).
    async fn ask_all(&self, route: &str, puts: &[Put]) -> Result<Vec<Outcome>, WorkspaceError> {
        let mut outcomes: Vec<Option<Outcome>> = puts.iter().map(|_| None).collect();
        let mut by_dir: BTreeMap<RepoPath, Vec<(usize, &Put)>> = BTreeMap::new();
        for (at, put) in puts.iter().enumerate() {
            let parent = put.path.parent().unwrap_or_default();
            match self.dialect.part_names {
                _ if has_backslash(put) => outcomes[at] = Some(unsupported(BACKSLASH)),
                PartNames::Last if workspace_path(&parent).is_some() => {
                    by_dir.entry(parent).or_default().push((at, put))
                }
                _ => by_dir.entry(RepoPath::root()).or_default().push((at, put)),
            }
        }
        for (dir, items) in by_dir {
            for range in lists(items.len(), |at| items[at].1.path.as_str().len() + 80) {
                let share = &items[range];
                let asked =
                    self.ask_list(&format!("{route}{}", workspace_path(&dir).unwrap_or_default()), &dir, share).await;
                let asked =
                    asked.unwrap_or_else(|error| share.iter().map(|_| Outcome::Failed(error.clone())).collect());
                for ((at, _), outcome) in share.iter().zip(asked) {
                    outcomes[*at] = Some(outcome);
                }
            }
        }
        all_or_error(outcomes.into_iter().map(|outcome| outcome.unwrap_or(Outcome::NeedsBytes)).collect())
    }

    async fn ask_list(
        &self,
        route: &str,
        dir: &RepoPath,
        items: &[(usize, &Put)],
    ) -> Result<Vec<Outcome>, WorkspaceError> {
        let below = |put: &Put| put.path.below(dir).unwrap_or_else(|| put.path.clone());
        let paths: Vec<RepoPath> = items.iter().map(|(_, put)| below(put)).collect();
        let files: Vec<_> = paths
            .iter()
            .zip(items)
            .map(|(path, (_, put))| wire::FileWithHash { path: path.as_str(), hash: put.object.hash.to_string() })
            .collect();
        let request = Request::new(Method::POST, self.url(route), self.what()).json(&files)?;
        let answer: wire::ErrorFilesAnswer = self.repo.http.json_with(Patience::Quick, &request).await?;
        // Whole or relative, as the release likes, or with the hash alone.
        let missing: HashSet<RepoPath> =
            answer.err_files.iter().filter_map(|file| wire::normalized(file.path.as_deref()?)).collect();
        let unnamed: HashSet<_> = answer
            .err_files
            .iter()
            .filter(|file| file.path.is_none())
            .filter_map(|file| wire::hash(&file.hash))
            .collect();
        let outcome = |(path, (_, put)): (&RepoPath, &(usize, &Put))| {
            let is_missing =
                missing.contains(path) || missing.contains(&put.path) || unnamed.contains(&put.object.hash);
            if is_missing { Outcome::NeedsBytes } else { DONE }
        };
        Ok(paths.iter().zip(items).map(outcome).collect())
    }

    // ---- small files

    pub(super) async fn send_batch(&self, puts: &[Put]) -> Result<Vec<Outcome>, WorkspaceError> {
        let (groups, odd) = self.groups(puts);
        let mut outcomes: Vec<Option<Outcome>> = puts.iter().map(|_| None).collect();
        let requests: Vec<_> = groups.iter().map(|group| self.send_group(group)).collect();
        let answers: Vec<_> = stream::iter(requests).buffered(REQUESTS).collect().await;
        for (group, answer) in groups.iter().zip(answers) {
            let sent = answer.unwrap_or_else(|error| {
                group.items.iter().map(|(at, _)| (*at, Outcome::Failed(error.clone()))).collect()
            });
            for (at, outcome) in sent {
                outcomes[at] = Some(outcome);
            }
        }
        for (at, why) in odd {
            let outcome = self.send_oddly_named(&puts[at], why).await;
            outcomes[at] = Some(outcome.unwrap_or_else(Outcome::Failed));
        }
        let outcomes = outcomes.into_iter().zip(puts).map(|(outcome, put)| {
            outcome.unwrap_or_else(|| Outcome::Failed(WorkspaceError::Unconfirmed { what: put.path.to_string() }))
        });
        all_or_error(outcomes.collect())
    }

    /// Which files go into which request, and which into none, with the reason.
    fn groups<'a>(&self, puts: &'a [Put]) -> (Vec<Group<'a>>, Vec<(usize, &'static str)>) {
        let mut by_dir: BTreeMap<Option<RepoPath>, Vec<(usize, &'a Put)>> = BTreeMap::new();
        let mut odd = Vec::new();
        for (at, put) in puts.iter().enumerate() {
            let parent = put.path.parent().unwrap_or_default();
            match self.dialect.part_names {
                _ if has_backslash(put) => odd.push((at, BACKSLASH)),
                _ if multipart::quoted(put.path.as_str()).is_none() => odd.push((at, ODD_NAME)),
                PartNames::Relative => by_dir.entry(None).or_default().push((at, put)),
                PartNames::Last if workspace_path(&parent).is_none() => odd.push((at, PERCENT_DIR)),
                PartNames::Last => by_dir.entry(Some(parent)).or_default().push((at, put)),
            }
        }
        (by_dir.into_iter().map(|(dir, items)| Group { dir, items }).collect(), odd)
    }

    /// One request, and one outcome for each of its items.
    async fn send_group(&self, group: &Group<'_>) -> Result<Vec<(usize, Outcome)>, WorkspaceError> {
        let mut outcomes = Vec::with_capacity(group.items.len());
        let mut left = Vec::with_capacity(group.items.len());
        for (at, put) in &group.items {
            if put.file.is_none() && put.object.size > 0 {
                outcomes.push((*at, Outcome::NeedsBytes));
            } else {
                left.push((*at, *put));
            }
        }
        while !left.is_empty() {
            let (media_type, body) = match self.form(group.dir.is_some(), &left).await? {
                Ok(form) => form,
                Err(Trouble { item, error }) => {
                    let (at, _) = left.remove(item);
                    outcomes.push((at, Outcome::Failed(error.into())));
                    continue;
                }
            };
            let dir = group.dir.as_ref().and_then(workspace_path).unwrap_or_default();
            let request = Request::new(Method::POST, self.url(&format!("files/{dir}")), self.what())
                .body(media_type, body.clone());
            let answer = retry(Patience::Quick, || async {
                let result = self.repo.http.json::<wire::PathsAnswer>(&request).await;
                // A file that cannot be read fails the request; it is no use to repeat it.
                match (result, body.take_trouble()) {
                    (Err(_), Some(trouble)) => Ok(Err(trouble)),
                    (result, _) => Ok(Ok(result?)),
                }
            })
            .await?;
            match answer {
                Err(Trouble { item, error }) => {
                    let (at, _) = left.remove(item);
                    outcomes.push((at, Outcome::Failed(error.into())));
                }
                Ok(answer) => {
                    let echoed = Echoed::new(group.dir.as_ref(), &answer.paths);
                    outcomes.extend(left.drain(..).map(|(at, put)| (at, echoed.outcome(put))));
                }
            }
        }
        Ok(outcomes)
    }

    /// The form that adds these files. The inner error names one that cannot be read.
    async fn form(
        &self,
        last_component: bool,
        items: &[(usize, &Put)],
    ) -> Result<Result<(String, Body), Trouble>, WorkspaceError> {
        let mut form = Form::new();
        for (item, (_, put)) in items.iter().enumerate() {
            let name = if last_component { put.path.file_name() } else { put.path.as_str() };
            let Some(name) = multipart::quoted(name) else {
                return Err(WorkspaceError::Unsupported { what: ODD_NAME });
            };
            let Some(file) = put.file.as_ref().filter(|_| put.object.size > 0) else {
                form.file(&name, multipart::PLAIN, Segment::Bytes(bytes::Bytes::new()));
                continue;
            };
            if self.compress {
                let (file, size) = (file.clone(), put.object.size);
                match blocking(move || multipart::compressed(&file, size)).await? {
                    Ok(None) => {}
                    Ok(Some(gzipped)) => {
                        form.file(&name, multipart::GZIP, Segment::Bytes(gzipped));
                        continue;
                    }
                    Err(error) => return Ok(Err(Trouble { item, error })),
                }
            }
            let content = Segment::File { file: file.clone(), offset: 0, len: put.object.size, item };
            form.file(&name, multipart::PLAIN, content);
        }
        Ok(Ok(form.finish()))
    }

    /// A file whose name no form or URL can hold: by the protocols that name it in JSON.
    async fn send_oddly_named(&self, put: &Put, why: &'static str) -> Result<Outcome, WorkspaceError> {
        if has_backslash(put) {
            return Err(WorkspaceError::Unsupported { what: why });
        }
        if put.file.is_none() && put.object.size > 0 {
            return Ok(Outcome::NeedsBytes);
        }
        if put.object.size == 0 {
            // Nothing can be sent in parts; the store may have no bytes already.
            return match self.dialect.hash_route {
                HashRoute::None => Err(WorkspaceError::Unsupported { what: why }),
                _ => match self.stage_hashes(std::slice::from_ref(put)).await?.pop() {
                    Some(Outcome::NeedsBytes) | None => Err(WorkspaceError::Unsupported { what: why }),
                    Some(outcome) => Ok(outcome),
                },
            };
        }
        match self.dialect.large {
            LargeRoute::Parts | LargeRoute::Chunks => self.send_in_pieces(put, None, &Unwatched).await,
            LargeRoute::Multipart => Err(WorkspaceError::Unsupported { what: why }),
        }
    }
}

/// The paths that an answer confirms.
struct Echoed<'a> {
    dir: Option<&'a RepoPath>,
    paths: HashSet<RepoPath>,
}

impl<'a> Echoed<'a> {
    fn new(dir: Option<&'a RepoPath>, paths: &[String]) -> Self {
        Self { dir, paths: paths.iter().filter_map(|path| wire::normalized(path)).collect() }
    }

    fn outcome(&self, put: &Put) -> Outcome {
        // Where a request is about one directory, the path below it says as much (guess: 0.50 was not tried).
        let below = self.dir.and_then(|dir| put.path.below(dir));
        if self.paths.contains(&put.path) || below.is_some_and(|below| self.paths.contains(&below)) {
            Outcome::Done { sent_bytes: put.object.size }
        } else {
            Outcome::Failed(WorkspaceError::Unconfirmed { what: put.path.to_string() })
        }
    }
}

/// Whether the server would put it somewhere else: it takes a backslash for a slash, at the latest when it commits
/// (0.65.2, tried).
pub(super) fn has_backslash(put: &Put) -> bool {
    put.path.as_str().contains('\\')
}

fn unsupported(what: &'static str) -> Outcome {
    Outcome::Failed(WorkspaceError::Unsupported { what })
}

/// For uploads whose progress nobody watches.
pub(super) struct Unwatched;

impl crate::workspace::UploadProgress for Unwatched {
    fn checkpoint(&self, _: &crate::workspace::Upload) {}
    fn sent(&self, _: u64) {}
}

/// Whether the next item would meet the same.
fn concerns_all(error: &WorkspaceError) -> bool {
    matches!(
        error,
        WorkspaceError::Unreachable { .. }
            | WorkspaceError::TimedOut { .. }
            | WorkspaceError::Busy { .. }
            | WorkspaceError::Unauthorized { .. }
            | WorkspaceError::Forbidden { .. }
            | WorkspaceError::NotFound { .. }
    )
}

/// The outcomes; the first error where every item failed for what concerns them all, so that nothing is known.
pub(super) fn all_or_error(mut outcomes: Vec<Outcome>) -> Result<Vec<Outcome>, WorkspaceError> {
    let nothing_known = !outcomes.is_empty()
        && outcomes.iter().all(|outcome| matches!(outcome, Outcome::Failed(error) if !is_about_one(error)));
    if nothing_known && let Outcome::Failed(error) = outcomes.swap_remove(0) {
        return Err(error);
    }
    Ok(outcomes)
}

/// Whether an error is one item's own: its name, its bytes, its confirmation.
fn is_about_one(error: &WorkspaceError) -> bool {
    use WorkspaceError::{Io, Overlooked, Unconfirmed, Unsupported};
    matches!(error, Unsupported { .. } | Overlooked | Io(_) | Unconfirmed { .. })
}

/// Cuts `len` items into lists of at most [`wire::LIST_BYTES`] of JSON. `weight` is an item's text; escapes can double
/// it, and quotes and commas come on top.
pub(super) fn lists(len: usize, weight: impl Fn(usize) -> usize) -> Vec<Range<usize>> {
    let mut lists = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for at in 0..len {
        let item = weight(at) * 2 + 32;
        if at > start && bytes + item > wire::LIST_BYTES {
            lists.push(start..at);
            (start, bytes) = (at, 0);
        }
        bytes += item;
    }
    if start < len {
        lists.push(start..len);
    }
    lists
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_cut_before_they_are_too_long() {
        assert!(lists(0, |_| 1).is_empty());
        assert_eq!(lists(3, |_| 1), vec![0..3]);
        let cut = lists(10_000, |_| 200);
        assert!(cut.len() > 1);
        assert_eq!((cut[0].start, cut[cut.len() - 1].end), (0, 10_000));
        assert!(cut.windows(2).all(|pair| pair[0].end == pair[1].start));
        assert!(cut.iter().all(|range| range.len() * 432 <= wire::LIST_BYTES));
    }

    #[test]
    fn one_enormous_item_still_goes() {
        assert_eq!(lists(2, |_| wire::LIST_BYTES), vec![0..1, 1..2]);
    }

    #[test]
    fn an_error_of_all_items_is_the_batchs() {
        let gone = || Outcome::Failed(WorkspaceError::NotFound { what: "workspace w".into(), request: None });
        assert!(matches!(all_or_error(vec![gone(), gone()]), Err(WorkspaceError::NotFound { .. })));
        assert!(all_or_error(vec![gone(), DONE]).is_ok());
        assert!(all_or_error(vec![]).is_ok());
        let own = || Outcome::Failed(WorkspaceError::Unconfirmed { what: "a".into() });
        assert!(all_or_error(vec![own()]).is_ok());
    }
}
