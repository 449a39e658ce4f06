//! A commit: make a cut of what was written, stage it, look for conflicts, commit, look whether the commit is whole, stand on it.

pub mod finish;

use std::io;

use super::follow::{Listener, flush_mapped, follow, unstaged};
use super::{Daemon, resolve as conflicts};
use crate::control::{Choice, Event, Failure};
use crate::fs::{CommitCut, FsError, Meets, Stays};
use crate::log;
use crate::path::RepoPath;
use crate::report::TakenAlong;
use crate::workspace::verify::{Expected, StagedSet};
use crate::workspace::{CommitId, CommitRequest, Outcome, WorkspaceError};
use finish::{Finished, Unpublished};

/// How many conflicting paths an error names.
const SHOWN_CONFLICTS: usize = 5;
/// How often a commit is begun anew because the base moved.
const ROUNDS: u32 = 5;
/// How often what is staged is staged again because the server does not list it.
const STAGINGS: u32 = 5;
const NEXT_HINT: &str = "the next commit, or the next mount, looks for it and tells";
const REMOUNT_HINT: &str = "oxenfs diff names what it would hold; unmount and mount again, which compares that with the branch, and repeat the command";
const CONFLICT_HINT: &str =
    "mount the branch in a fresh workspace (--workspace NAME), copy your versions there, commit that";

/// Commits what was written up to now; writers go on, and what they write waits for the next commit. `None`: there
/// was nothing to commit. Where others changed the same paths it fails, or decides as `on_conflict` says. The outer error
/// is that of the connection to the command.
pub(super) async fn commit(
    daemon: &Daemon,
    request: &CommitRequest,
    on_conflict: Option<Choice>,
    listener: &mut Listener,
) -> io::Result<Result<Option<CommitId>, Failure>> {
    let mut stays = None;
    for _ in 0..ROUNDS {
        if let Err(failure) = decide(daemon, on_conflict).await {
            return Ok(Err(failure));
        }
        match try_commit(daemon, request, stays, listener).await? {
            Ok(Round::Over(id)) => return Ok(Ok(id)),
            Ok(Round::Again) => {}
            Ok(Round::Stays(why)) => stays = Some(why),
            // Found while it was staged.
            Err(failure) => match (conflicts::unresolved(daemon), on_conflict) {
                (Some(unresolved), None) => return Ok(Err(unresolved)),
                (Some(_), Some(_)) => {}
                (None, _) => return Ok(Err(failure)),
            },
        }
    }
    let message = format!("others committed the same paths {ROUNDS} times meanwhile");
    Ok(Err(failed(daemon, message, Some("repeat the command"))))
}

/// Fails where something is in conflict, or decides all of it.
async fn decide(daemon: &Daemon, on_conflict: Option<Choice>) -> Result<(), Failure> {
    match (conflicts::unresolved(daemon), on_conflict) {
        (None, _) => Ok(()),
        (Some(unresolved), None) => Err(unresolved),
        (Some(_), Some(choice)) => conflicts::resolve_all(daemon, choice).await,
    }
}

/// What became of an attempt.
enum Round {
    /// It is over.
    Over(Option<CommitId>),
    /// The base moved: what is staged is staged anew, unless there are conflicts.
    Again,
    /// The base could not move, which is not needed but would be better.
    Stays(Stays),
}

async fn try_commit(
    daemon: &Daemon,
    request: &CommitRequest,
    stays: Option<Stays>,
    listener: &mut Listener,
) -> io::Result<Result<Round, Failure>> {
    let StagedCut { mut cut, mut staged, waiting } = match stage_cut(daemon, listener).await? {
        Ok(staged) => staged,
        Err(failure) => return Ok(Err(failure)),
    };
    // The base may have moved before the cut.
    if let Some(unresolved) = conflicts::unresolved(daemon) {
        return Ok(Err(unresolved));
    }
    // With the cut made, nothing else is staged: what a commit of before became can be found out.
    let before = match resume(daemon, request).await {
        Ok(before) => before,
        Err(failure) => return Ok(Err(failure)),
    };
    if before.is_some() {
        staged = match daemon.fs.audit_for_commit().await {
            Ok(staged) => staged.unwrap_or_default(),
            Err(error) => return Ok(Err(failed_by(daemon, &error))),
        };
    }
    match daemon.fs.stands_on_base().await {
        Ok(true) => {}
        // Somebody else committed or moved this workspace.
        Ok(false) => {
            drop(cut);
            return Ok(follow_branch(daemon).await.map(|_| Round::Again));
        }
        Err(error) => return Ok(Err(failed_by(daemon, &error))),
    }
    let is_own_branch = request.branch == daemon.branch;
    if daemon.fs.staged_paths().is_empty() && waiting.is_empty() {
        drop(cut);
        if is_own_branch && before.is_none() {
            // From now on it stands on what the branch has become.
            if let Err(failure) = follow_branch(daemon).await {
                tracing::warn!(error = failure.message, "nothing to commit, and the branch could not be followed");
            }
            if let Some(unresolved) = conflicts::unresolved(daemon) {
                return Ok(Err(unresolved));
            }
        }
        return Ok(Ok(Round::Over(before)));
    }
    if is_own_branch {
        let along = daemon.fs.staged_by_others(&staged);
        let met = match others_changes(daemon, &request.branch, &along).await {
            Ok(met) => met,
            Err(failure) => return Ok(Err(failure)),
        };
        let mut conflicts = met.conflicts;
        // A server finds more of them than there are: a directory that was removed here and changed there, though no file of
        // it was changed by both. On the branch's head it finds none.
        if conflicts.is_empty() {
            conflicts = match servers_conflicts(daemon, &request.branch).await {
                Ok(conflicts) => conflicts,
                Err(failure) => return Ok(Err(failure)),
            };
        }
        // Where it cannot move, an empty directory is better than no commit.
        if !conflicts.is_empty() || (met.empties.is_some() && stays.is_none()) {
            if let Some(dir) = &met.empties {
                tracing::info!(%dir, "others removed something here too: the base moves first");
            }
            drop(cut);
            return Ok(match follow_branch(daemon).await {
                Ok(None) => Ok(Round::Again),
                // What is in conflict there is decided by whoever uses it.
                Ok(Some(_)) if !conflicts.is_empty() => Err(in_conflict(daemon, &conflicts, &request.branch)),
                Ok(Some(why)) => Ok(Round::Stays(why)),
                Err(failure) => Err(failure),
            });
        }
    } else {
        match servers_conflicts(daemon, &request.branch).await {
            Ok(conflicts) if conflicts.is_empty() => {}
            Ok(conflicts) => return Ok(Err(in_conflict(daemon, &conflicts, &request.branch))),
            Err(failure) => return Ok(Err(failure)),
        }
    }
    let way = Way { over_dirs: daemon.fs.files_over_directories(), waiting };
    if !way.is_clear() {
        let first = CommitRequest { message: format!("{} ({})", request.message, way.said()), ..request.clone() };
        if let Err(failure) = make_way(daemon, &way, &first).await {
            return Ok(Err(failure));
        }
        drop(cut);
        let rest = match stage_cut(daemon, listener).await? {
            Ok(rest) => rest,
            Err(failure) => return Ok(Err(failure)),
        };
        if let Some(path) = rest.waiting.first() {
            let message = format!("{path} could not be staged, though a commit made way for it");
            return Ok(Err(failed(daemon, message, None)));
        }
        (cut, staged) = (rest.cut, rest.staged);
    }
    let others = TakenAlong::of(daemon.fs.staged_by_others(&staged).iter().map(ToString::to_string));
    if !others.is_none() {
        listener.tell(&Event::TakesAlong(others)).await?;
    }
    let committed = publish(daemon, request, &staged).await;
    drop(cut);
    Ok(committed.map(|id| Round::Over(Some(id))))
}

/// What others changed on the branch of what was changed here too, or goes `along` with it. A server may miss that, or drop
/// one side of it: where one turned a file into a directory, say (0.65.2, tried).
async fn others_changes(daemon: &Daemon, branch: &str, along: &[RepoPath]) -> Result<Meets, Failure> {
    let failed = |error: FsError| failed_by(daemon, &error);
    let head = daemon.fs.workspace().head(branch).await.map_err(|error| failed(error.into()))?;
    daemon.fs.meets(&head, along).await.map_err(failed)
}

/// Has the mount stand on what the branch has become: what both sides changed is in conflict then. Says why not, where its
/// workspace stays.
async fn follow_branch(daemon: &Daemon) -> Result<Option<Stays>, Failure> {
    let followed = daemon.fs.follow_branch().await.map_err(|error| failed_by(daemon, &error))?;
    conflicts::tell_conflicts(daemon);
    Ok(followed.stays)
}

/// The failure of a commit that would undo what others committed, in a workspace that stays where it is.
fn in_conflict(daemon: &Daemon, conflicts: &[RepoPath], branch: &str) -> Failure {
    for path in conflicts {
        daemon.activity.conflict(path, branch);
    }
    let shown: Vec<String> = conflicts.iter().take(SHOWN_CONFLICTS).map(ToString::to_string).collect();
    let more = conflicts.len().saturating_sub(SHOWN_CONFLICTS);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let message = format!("{} changed here and on {branch}: {}{more}", many(conflicts.len()), shown.join(", "));
    failed(daemon, message, Some(CONFLICT_HINT))
}

/// The failure of a commit that the server, the record or the disk said no to.
fn failed_by(daemon: &Daemon, error: &FsError) -> Failure {
    let dir = log::quoted(&daemon.mountpoint);
    let hint = match error {
        FsError::Remote(WorkspaceError::NotFound { .. }) => {
            let (repo, server) = (log::quoted(&daemon.repo), log::quoted(&daemon.server));
            format!(
                "look what is there: oxenfs branches {repo} --server {server}; to commit to another branch: oxenfs commit {dir} --branch NAME -m TEXT"
            )
        }
        FsError::Remote(WorkspaceError::Another { .. }) => {
            "once the repository of before is back there, repeat the command; what waits here is kept".to_owned()
        }
        FsError::Remote(WorkspaceError::Unauthorized { .. } | WorkspaceError::Forbidden { .. }) => {
            "use a token that may write there, and repeat the command".to_owned()
        }
        FsError::Remote(error) if error.is_transient() => {
            "nothing is lost: repeat the command when the server answers".to_owned()
        }
        _ => format!("oxenfs status {dir} shows how it is; nothing is lost"),
    };
    failed(daemon, error.to_string(), Some(&hint))
}

fn failed(daemon: &Daemon, message: String, hint: Option<&str>) -> Failure {
    Failure { message, hint: hint.map(str::to_owned), owed: !daemon.fs.is_drained() }
}

/// A cut of which all is staged that can be.
struct StagedCut {
    cut: CommitCut,
    /// What is staged, as the server lists it.
    staged: StagedSet,
    /// What can be staged once a commit has made way for it.
    waiting: Vec<RepoPath>,
}

/// Makes a cut and stages it.
async fn stage_cut(daemon: &Daemon, listener: &mut Listener) -> io::Result<Result<StagedCut, Failure>> {
    for _ in 0..STAGINGS {
        if let Some(failure) = flush_mapped(daemon, |_| true).await {
            return Ok(Err(failure));
        }
        let cut = match daemon.fs.cut().await {
            Ok(cut) => cut,
            Err(FsError::Exists) => {
                let hint = Some("repeat the command when it is done");
                return Ok(Err(failed(daemon, "another commit is under way".into(), hint)));
            }
            Err(error) => return Ok(Err(failed_by(daemon, &error))),
        };
        let progress = follow(daemon, &cut.waiting, listener).await?;
        let waiting = match (unstaged(daemon, &progress), daemon.fs.waits_for_commit_alone()) {
            (None, _) => Vec::new(),
            (Some(_), Some(waiting)) if !waiting.is_empty() => waiting,
            (Some(failure), _) => return Ok(Err(failure)),
        };
        match daemon.fs.audit_for_commit().await {
            Ok(Some(staged)) => return Ok(Ok(StagedCut { cut, staged, waiting })),
            Ok(None) => {}
            Err(error) => return Ok(Err(failed_by(daemon, &error))),
        }
    }
    let hint = "somebody else empties this workspace, or the server loses what is staged: use a workspace of your own, --workspace NAME";
    let message = format!("what was staged was gone from the workspace {STAGINGS} times over");
    Ok(Err(failed(daemon, message, Some(hint))))
}

/// Ends a commit that was asked for before, and of which it is not known what became. Returns it where it is what is asked
/// for now.
async fn resume(daemon: &Daemon, request: &CommitRequest) -> Result<Option<CommitId>, Failure> {
    match finish::resume(&daemon.fs).await {
        Ok(None) => Ok(None),
        Ok(Some((earlier, Finished::Whole(id)))) => Ok((earlier == *request).then_some(id)),
        Ok(Some((_, Finished::Broken { what, owed }))) => Err(Failure { message: what, hint: None, owed }),
        Err(error) => Err(failed_by(daemon, &error)),
    }
}

/// What the server finds that others changed on a branch too.
async fn servers_conflicts(daemon: &Daemon, branch: &str) -> Result<Vec<RepoPath>, Failure> {
    daemon.fs.workspace().conflicts(branch).await.map_err(|error| failed_by(daemon, &error.into()))
}

/// What no server takes in one commit: first one is made in which the old goes, then one with the new.
struct Way {
    /// Files that are staged where the base has directories.
    over_dirs: Vec<RepoPath>,
    /// Files that the server takes for what the base has there.
    waiting: Vec<RepoPath>,
}

impl Way {
    fn is_clear(&self) -> bool {
        self.over_dirs.is_empty() && self.waiting.is_empty()
    }

    fn said(&self) -> &'static str {
        match (self.over_dirs.is_empty(), self.waiting.is_empty()) {
            (_, true) => "directories make way",
            (true, false) => "files make way",
            (false, false) => "files and directories make way",
        }
    }
}

/// Takes the files back that stand where the base has something else, and commits the removal of that.
async fn make_way(daemon: &Daemon, way: &Way, request: &CommitRequest) -> Result<(), Failure> {
    let failed = |message: String| failed(daemon, message, None);
    let workspace = daemon.fs.workspace();
    daemon.fs.set_aside(&way.waiting);
    let paths: Vec<RepoPath> = way.over_dirs.iter().chain(&way.waiting).cloned().collect();
    daemon.fs.rescue_all(&paths).await.map_err(|error| failed(error.to_string()))?;
    daemon.fs.intend(paths.iter(), std::iter::empty()).map_err(|error| failed(error.to_string()))?;
    daemon.fs.flush().await.map_err(|error| failed(error.to_string()))?;
    let unanswered = workspace.unanswered();
    let done = match workspace.unstage(&paths).await {
        Ok(_) => workspace.remove(&paths).await,
        Err(error) => Err(error),
    };
    if workspace.unanswered() != unanswered {
        daemon.fs.went_unanswered(paths.iter()).map_err(|error| failed(error.to_string()))?;
    }
    daemon.fs.unstaged(&way.over_dirs).map_err(|error| failed(error.to_string()))?;
    for (path, outcome) in paths.iter().zip(done.map_err(|error| failed(error.to_string()))?) {
        if let Outcome::Failed(error) = outcome {
            return Err(failed(format!("cannot make way for {path}: {error}")));
        }
    }
    let staged = daemon.fs.list_staged().await.map_err(|error| failed(error.to_string()))?;
    // The mount would stand on a commit that it does not know otherwise.
    if let Some(path) = way.waiting.iter().find(|path| staged.get(path) != Some(&Expected::Gone)) {
        return Err(failed(format!("cannot make way for {path}: its removal is not staged")));
    }
    daemon.fs.made_way(&way.waiting).map_err(|error| failed(error.to_string()))?;
    publish(daemon, request, &staged).await.map(|_| ())
}

/// Commits everything staged, which is `staged`, and stands on the new base once it was found whole.
async fn publish(daemon: &Daemon, request: &CommitRequest, staged: &StagedSet) -> Result<CommitId, Failure> {
    match finish::publish(&daemon.fs, request, staged).await {
        Ok(Finished::Whole(id)) => Ok(id),
        Ok(Finished::Broken { what, owed }) => Err(Failure { message: what, hint: None, owed }),
        Err(Unpublished::Unasked(FsError::Remote(error))) => Err(failed_by(daemon, &error.into())),
        Err(Unpublished::Unasked(error)) => Err(Failure { message: error.to_string(), hint: None, owed: true }),
        Err(Unpublished::Refused(error)) => Err(not_committed(daemon, &error)),
        Err(Unpublished::Unseen { commit, error }) => {
            let message = format!("commit {commit} was made, but could not be looked at: {error}");
            Err(Failure { message, hint: Some(NEXT_HINT.to_owned()), owed: true })
        }
    }
}

/// The failure of a commit that was not answered with success.
fn not_committed(daemon: &Daemon, error: &WorkspaceError) -> Failure {
    if finish::may_be_made(error) {
        let message = format!("{error}; the commit may have been made");
        return Failure { message, hint: Some(NEXT_HINT.to_owned()), owed: true };
    }
    let hint = match error {
        WorkspaceError::Conflict { .. } => Some(CONFLICT_HINT),
        // The server found no difference where the record has some.
        WorkspaceError::Refused { status: 422, .. } => Some(REMOUNT_HINT),
        _ => None,
    };
    match hint {
        Some(_) => failed(daemon, error.to_string(), hint),
        None => failed_by(daemon, &error.clone().into()),
    }
}

fn many(files: usize) -> String {
    if files == 1 { "1 file was".to_owned() } else { format!("{files} files were") }
}
