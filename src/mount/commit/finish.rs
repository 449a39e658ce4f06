//! What comes after a commit was answered: it is compared with what was staged, repaired once where the server left
//! something out, its content is looked for, and only then the mount stands on it.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::fs::{Fs, FsError};
use crate::hash::ContentHash;
use crate::path::RepoPath;
use crate::store::journal::CommitIntent;
use crate::workspace::verify::{self, Costs, Deviation, Expected, StagedSet, Verdict};
use crate::workspace::{
    CommitId, CommitInfo, CommitRequest, EntryKind, Object, Outcome, Over, Put, Revision, Source, Upload,
    UploadProgress, Workspace, WorkspaceError,
};

/// The longest content that is sent in one request; what is longer goes in parts.
const SMALL_BYTES: u64 = 1 << 20;
/// How far behind a branch's head a commit of ours is looked for.
const BEHIND: usize = 256;
/// How many paths an error names.
const SHOWN: usize = 5;

/// What became of a commit.
#[derive(Debug)]
pub enum Finished {
    /// The branch has it, whole, and so is all its content; the mount stands on it. A repair is the last of them.
    Whole(CommitId),
    /// The branch has it, and the mount stands on it, but something is missing.
    Broken {
        /// What is missing, for people.
        what: String,
        /// Whether it is still here, and owed to the server again.
        owed: bool,
    },
}

/// Why a commit is not known to be whole.
#[derive(Debug, thiserror::Error)]
pub enum Unpublished {
    /// The server was not asked for it.
    #[error("{0}")]
    Unasked(FsError),
    /// The server did not answer that it was made.
    #[error("{0}")]
    Refused(WorkspaceError),
    /// It was made, and what it holds is not known.
    #[error("commit {commit} could not be looked at: {error}")]
    Unseen {
        /// Which.
        commit: CommitId,
        /// Why.
        error: FsError,
    },
}

/// Whether a commit may have been made, or may be made yet, that was answered like this.
pub fn may_be_made(error: &WorkspaceError) -> bool {
    error.is_transient() && !matches!(error, WorkspaceError::Unauthorized { .. } | WorkspaceError::Busy { .. })
}

/// A commit that the server answered.
pub struct Answered {
    /// What the branch stood on just before.
    head: CommitId,
    commit: CommitInfo,
}

/// Commits everything staged, which is `staged`, and stands on the new base once that was looked at.
///
/// # Errors
/// [`Unpublished`].
pub async fn publish(fs: &Fs, request: &CommitRequest, staged: &StagedSet) -> Result<Finished, Unpublished> {
    let answered = ask(fs, request).await?;
    let finished = look_at(fs, request, staged, &answered).await;
    finished.map_err(|error| Unpublished::Unseen { commit: answered.commit.id, error })
}

/// Has the server make the commit, which nobody has looked at then.
///
/// # Errors
/// [`Unpublished`].
pub async fn ask(fs: &Fs, request: &CommitRequest) -> Result<Answered, Unpublished> {
    let workspace = fs.workspace();
    let head = workspace.head(&request.branch).await.map_err(|error| Unpublished::Unasked(error.into()))?;
    // On stable storage before the server is asked, with the record of what was staged: it tells our own changes from
    // others', and a start after this one looks what became of the commit.
    let digest = verify::digest(&fs.staged_set());
    let intent = CommitIntent { head: head.clone(), request: request.clone(), digest };
    fs.note_intent(intent).await.map_err(Unpublished::Unasked)?;
    let committed = match workspace.commit(request).await {
        Ok(committed) => committed,
        Err(error) => {
            // Else the server may be at it yet: the intention stays on record.
            if !may_be_made(&error)
                && let Err(error) = fs.drop_intent()
            {
                tracing::warn!(%error, "a commit that was refused is looked for once more");
            }
            return Err(Unpublished::Refused(error));
        }
    };
    let commit = CommitInfo {
        id: committed.id,
        parents: committed.parents,
        author: request.author.clone(),
        email: request.email.clone(),
        message: request.message.clone(),
    };
    Ok(Answered { head, commit })
}

/// Looks at what [`ask`] had made of `staged`, and stands on it.
///
/// # Errors
/// The server's: what became of the commit is found out by the next command. Or the journal's.
pub async fn look_at(
    fs: &Fs,
    request: &CommitRequest,
    staged: &StagedSet,
    answered: &Answered,
) -> Result<Finished, FsError> {
    finish(fs, request, staged, &answered.head, &answered.commit).await
}

/// Compares a commit that was answered with what was `staged`, and stands on it. `head` is what the branch stood on just
/// before.
///
/// # Errors
/// The server's: what became of the commit is found out by the next command. Or the journal's.
async fn finish(
    fs: &Fs,
    request: &CommitRequest,
    staged: &StagedSet,
    head: &CommitId,
    commit: &CommitInfo,
) -> Result<Finished, FsError> {
    let workspace = fs.workspace().as_ref();
    let base = fs.base();
    let parent = verify::parent_of(commit, head).unwrap_or(&base).clone();
    let mut verdict = verify::examine(workspace, staged, &parent, &commit.id, Costs::default()).await?;
    // Carried out after all that is staged was looked at for the last time: nobody wants it.
    let late = verdict.extra.extract_if(.., |extra| fs.may_have_come_late(&extra.path)).collect::<Vec<_>>();
    if !late.is_empty() {
        verdict.deviations.extend(late);
        verdict.deviations.sort_by(|one, other| one.path.cmp(&other.path));
    }
    // Others' commits may have been merged in: then the new base is more than the old one with our changes.
    // And another client may have staged in this workspace, before or after all that is staged was listed.
    let others: HashSet<RepoPath> = fs.staged_by_others(staged).into_iter().collect();
    let mut alone = commit.parents == [base.clone()] && verdict.extra.is_empty() && others.is_empty();
    // What they staged there last is theirs to know, and who has a mount looks for it himself.
    for deviation in verdict.deviations.extract_if(.., |deviation| others.contains(&deviation.path)) {
        tracing::warn!(path = %deviation.path, commit = %commit.id, "others staged this when the commit was asked for, and it is not in it");
    }
    for Deviation { path, .. } in &verdict.extra {
        tracing::warn!(%path, commit = %commit.id, "another client staged this in the same workspace just before the commit");
    }
    let mut last = commit.id.clone();
    if !verdict.is_whole() {
        log(&commit.id, &verdict);
        match repair(fs, request, &parent, &commit.id, &verdict.deviations).await {
            Ok(Some((repaired, left))) => {
                alone &= left.extra.is_empty();
                verdict = left;
                last = repaired;
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, commit = %commit.id, "the commit could not be repaired"),
        }
    }
    let lost = replace_lost(fs, staged, &last).await?;
    let owed = fs.rebased_but(last.clone(), alone, &parent, &verdict.deviations).await?;
    if !alone {
        relist(fs);
    }
    if verdict.is_whole() && lost.is_empty() {
        return Ok(Finished::Whole(last));
    }
    if !verdict.is_whole() {
        let owed = owed == verdict.deviations.len();
        let paths: Vec<&RepoPath> = verdict.deviations.iter().map(|deviation| &deviation.path).collect();
        let what = format!("the server left {} out of commit {last}: {}", count(paths.len()), names(&paths));
        return Ok(Finished::Broken { what, owed });
    }
    let paths: Vec<&RepoPath> = lost.iter().collect();
    let what = format!(
        "commit {last} lists {}, but the server lost their content, and it is not here either: {}",
        count(paths.len()),
        names(&paths)
    );
    Ok(Finished::Broken { what, owed: false })
}

/// Looks on the branch for a commit that was asked for and whose answer did not come, or was not looked at to the end.
/// `None`: the branch has none.
///
/// # Errors
/// The server's.
async fn find(
    workspace: &dyn Workspace,
    request: &CommitRequest,
    head: &CommitId,
) -> Result<Option<CommitInfo>, WorkspaceError> {
    let mut id = workspace.head(&request.branch).await?;
    let mut repair = None;
    for _ in 0..BEHIND {
        if id == *head {
            break;
        }
        let Some(commit) = workspace.commit_info(&id).await? else { break };
        let is_ours = (&commit.author, &commit.email) == (&request.author, &request.email);
        if is_ours && commit.message == request.message {
            return Ok(Some(CommitInfo { id: repair.unwrap_or(id), ..commit }));
        }
        if is_ours && repair.is_none() && commit.message.starts_with(&repaired(&request.message)) {
            repair = Some(id);
        }
        let Some(parent) = commit.parents.into_iter().next() else { break };
        id = parent;
    }
    Ok(None)
}

/// What the message of a repair begins with.
fn repaired(message: &str) -> String {
    format!("{message} (repair: ")
}

/// Ends a commit that an earlier command or daemon asked for, where what was staged then is what is on record now.
/// `None`: there is none, or it was not made as far as can be told.
///
/// # Errors
/// The server's: what became of the commit is found out by the next command. Or the journal's.
pub async fn resume(fs: &Fs) -> Result<Option<(CommitRequest, Finished)>, FsError> {
    let Some(intent) = fs.intent() else { return Ok(None) };
    let staged = fs.staged_set();
    if verify::digest(&staged) != intent.digest {
        return Ok(None);
    }
    let Some(commit) = find(fs.workspace().as_ref(), &intent.request, &intent.head).await? else { return Ok(None) };
    // Another mount may have made one that looks alike. This workspace stands on what was committed from it.
    if fs.workspace().base().await? != commit.id {
        return Ok(None);
    }
    tracing::info!(commit = %commit.id, "a commit of before was made; it is looked at now");
    let finished = finish(fs, &intent.request, &staged, &intent.head, &commit).await?;
    Ok(Some((intent.request, finished)))
}

fn log(commit: &CommitId, verdict: &Verdict) {
    for Deviation { path, expected, found } in &verdict.deviations {
        tracing::error!(%commit, %path, ?expected, ?found, "the commit is not what was staged");
    }
}

/// Makes one more commit of what the server left out of `commit`, if that is still what the branch stands on. Returns
/// it, and what is missing still.
async fn repair(
    fs: &Fs,
    request: &CommitRequest,
    parent: &CommitId,
    commit: &CommitId,
    deviations: &[Deviation],
) -> Result<Option<(CommitId, Verdict)>, FsError> {
    let workspace = fs.workspace().as_ref();
    if workspace.head(&request.branch).await? != *commit || workspace.base().await? != *commit {
        return Ok(None);
    }
    // What another client staged since is not ours to commit; a daemon that was killed amid this has staged some of it.
    let missing: HashSet<&RepoPath> = deviations.iter().map(|deviation| &deviation.path).collect();
    if workspace.changes().await?.iter().any(|change| !missing.contains(&change.path)) {
        return Ok(None);
    }
    let mut staged = StagedSet::new();
    let (mut puts, mut removals) = (Vec::new(), Vec::new());
    for Deviation { path, expected, found } in deviations {
        match expected {
            Expected::File(object) => {
                if *found == Some(EntryKind::Dir) && !fs.is_shared() {
                    // By requests that came late: nobody else stages here. It goes first, as of two kinds a server keeps one.
                    for (below, _) in fs.files_below(commit, path).await? {
                        staged.insert(below.clone(), Expected::Gone);
                        removals.push(below);
                    }
                }
                let over = match file_of(*found) {
                    Some(found) if found.size == object.size => Over::SameLength { staged: false },
                    _ => Over::Other,
                };
                puts.push(Put { path: path.clone(), object: *object, file: None, over });
            }
            Expected::Gone => removals.push(path.clone()),
            // Content that only somebody else knows, or a directory whose files are deviations of their own.
            Expected::SomeFile | Expected::Dir => continue,
        }
        staged.insert(path.clone(), *expected);
    }
    if staged.is_empty() {
        return Ok(None);
    }
    if !removals.is_empty() {
        workspace.remove(&removals).await?;
    }
    let outcomes = workspace.stage_by_hash(&puts).await?;
    for (put, outcome) in puts.iter().zip(outcomes) {
        match outcome {
            Outcome::Done { .. } => {}
            Outcome::NeedsBytes => {
                let revision = Revision::Commit(parent.clone());
                send(fs, put.clone(), Some(Source { revision, path: put.path.clone() })).await?;
            }
            Outcome::Failed(error) => return Err(error.into()),
        }
    }
    let message = format!("{}{} that the server left out)", repaired(&request.message), paths(staged.len()));
    let request = CommitRequest { message, ..request.clone() };
    let made = workspace.commit(&request).await?;
    let verdict = verify::examine(workspace, &staged, commit, &made.id, Costs::default()).await?;
    if !verdict.is_whole() {
        log(&made.id, &verdict);
    }
    Ok(Some((made.id, verdict)))
}

/// Asks the server for all content that a commit added, and sends what it lost while it was only staged. Returns the paths
/// whose content is nowhere.
async fn replace_lost(fs: &Fs, staged: &StagedSet, commit: &CommitId) -> Result<Vec<RepoPath>, FsError> {
    let mut by_hash: HashMap<ContentHash, (RepoPath, Object)> = HashMap::new();
    for (path, expected) in staged {
        if let Expected::File(object) = expected {
            by_hash.entry(object.hash).or_insert_with(|| (path.clone(), *object));
        }
    }
    let hashes: Vec<ContentHash> = by_hash.keys().copied().collect();
    let workspace = fs.workspace();
    let Some(missing) = workspace.missing(&hashes).await? else {
        tracing::debug!("this server cannot tell which content it has");
        return Ok(Vec::new());
    };
    let mut nowhere: BTreeMap<ContentHash, FsError> = BTreeMap::new();
    for hash in missing {
        let Some((path, object)) = by_hash.get(&hash) else { continue };
        tracing::warn!(%path, %commit, "the server lost this content while it was staged; it is sent again");
        let put = Put { path: path.clone(), object: *object, file: None, over: Over::Other };
        if let Err(error) = send(fs, put, None).await {
            tracing::error!(%path, %commit, %error, "the server lost this content, and it could not be sent again");
            nowhere.insert(hash, error);
        }
    }
    let is_lost =
        |expected: &Expected| matches!(expected, Expected::File(object) if nowhere.contains_key(&object.hash));
    Ok(staged.iter().filter(|(_, expected)| is_lost(expected)).map(|(path, _)| path.clone()).collect())
}

/// Sends content to be staged at a path, from the cache or from `source`.
async fn send(fs: &Fs, put: Put, source: Option<Source>) -> Result<(), FsError> {
    let file = fs.fetch_content(put.object.hash, put.object.size, source).await?;
    let put = Put { file: Some(file), ..put };
    let outcome = if put.object.size <= SMALL_BYTES {
        fs.workspace().send_small(std::slice::from_ref(&put)).await?.pop()
    } else {
        Some(fs.workspace().send_large(&put, None, &Unwatched).await?)
    };
    match outcome {
        Some(Outcome::Done { .. }) => Ok(()),
        Some(Outcome::Failed(error)) => Err(error.into()),
        Some(Outcome::NeedsBytes) | None => Err(WorkspaceError::Unconfirmed { what: put.path.to_string() }.into()),
    }
}

struct Unwatched;

impl UploadProgress for Unwatched {
    fn checkpoint(&self, _: &Upload) {}
    fn sent(&self, _: u64) {}
}

fn relist(fs: &Fs) {
    let Some(fs) = fs.shared() else { return };
    tokio::spawn(async move {
        if let Err(error) = fs.relist().await {
            tracing::warn!(%error, "the new base could not be listed yet");
        }
    });
}

fn file_of(kind: Option<EntryKind>) -> Option<Object> {
    match kind {
        Some(EntryKind::File(object)) => Some(object),
        Some(EntryKind::Dir) | None => None,
    }
}

fn names(paths: &[&RepoPath]) -> String {
    let shown: Vec<String> = paths.iter().take(SHOWN).map(|path| path.to_string()).collect();
    let more = paths.len().saturating_sub(SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", shown.join(", "))
}

fn count(files: usize) -> String {
    if files == 1 { "1 file".to_owned() } else { format!("{files} files") }
}

fn paths(paths: usize) -> String {
    if paths == 1 { "1 path".to_owned() } else { format!("{paths} paths") }
}
