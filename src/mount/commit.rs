//! A commit: make a cut of what was written, stage it, look for conflicts, commit, look whether the commit is whole, stand on it.

pub(super) mod finish;

use std::io;

use super::Daemon;
use super::serve::{Listener, flush_mapped, follow, unstaged};
use crate::control::Failure;
use crate::fs::{CommitCut, FsError};
use crate::journal::CommitIntent;
use crate::path::RepoPath;
use crate::workspace::verify::{self, StagedSet};
use crate::workspace::{CommitId, CommitInfo, CommitRequest, WorkspaceError};
use finish::Finished;

/// How many conflicting paths an error names.
const SHOWN_CONFLICTS: usize = 5;
/// How often what is staged is staged again because the server does not list it.
const STAGINGS: u32 = 5;
const NEXT_HINT: &str = "the next commit, or the next mount, looks for it and tells";
const CONFLICT_HINT: &str =
    "mount the branch in a fresh workspace (--workspace NAME), copy your versions there, commit that";

/// Commits what was written up to now; writers go on, and what they write waits for the next commit. `None`: there
/// was nothing to commit. The outer error is that of the connection to the command.
pub(super) async fn commit(
    daemon: &Daemon,
    request: &CommitRequest,
    listener: &mut Listener,
) -> io::Result<Result<Option<CommitId>, Failure>> {
    let (mut cut, mut staged) = match stage_cut(daemon, listener).await? {
        Ok(staged) => staged,
        Err(failure) => return Ok(Err(failure)),
    };
    // With the cut made, nothing else is staged: what a commit of before became can be found out.
    let before = match resume(daemon, request).await {
        Ok(before) => before,
        Err(failure) => return Ok(Err(failure)),
    };
    if before.is_some() {
        staged = match daemon.fs.audit_for_commit().await {
            Ok(staged) => staged.unwrap_or_default(),
            Err(error) => return Ok(Err(failed(daemon, error.to_string(), None))),
        };
    }
    match daemon.fs.stands_on_base().await {
        Ok(true) => {}
        Ok(false) => {
            let message = "somebody else committed or moved this workspace".to_owned();
            let hint =
                "unmount and mount again, which looks for conflicts; or use a workspace of your own: --workspace";
            return Ok(Err(failed(daemon, message, Some(hint))));
        }
        Err(error) => return Ok(Err(failed(daemon, error.to_string(), None))),
    }
    if daemon.fs.staged_paths().is_empty() {
        return Ok(Ok(before));
    }
    if let Err(failure) = without_conflicts(daemon, request).await {
        return Ok(Err(failure));
    }
    let over = daemon.fs.files_over_directories();
    if !over.is_empty() {
        // No server takes both in one commit: first one in which the directories go, then one with the files.
        let first = CommitRequest { message: format!("{} (directories make way)", request.message), ..request.clone() };
        if let Err(failure) = make_way(daemon, &over, &first).await {
            return Ok(Err(failure));
        }
        drop(cut);
        (cut, staged) = match stage_cut(daemon, listener).await? {
            Ok(staged) => staged,
            Err(failure) => return Ok(Err(failure)),
        };
    }
    let committed = publish(daemon, request, &staged).await;
    drop(cut);
    Ok(committed.map(Some))
}

fn failed(daemon: &Daemon, message: String, hint: Option<&str>) -> Failure {
    Failure { message, hint: hint.map(str::to_owned), owed: !daemon.fs.is_drained() }
}

/// Makes a cut and stages it; returns what is staged then, as the server lists it.
async fn stage_cut(daemon: &Daemon, listener: &mut Listener) -> io::Result<Result<(CommitCut, StagedSet), Failure>> {
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
            Err(error) => return Ok(Err(failed(daemon, error.to_string(), None))),
        };
        let progress = follow(daemon, &cut.waiting, listener).await?;
        if let Some(failure) = unstaged(daemon, &progress) {
            return Ok(Err(failure));
        }
        match daemon.fs.audit_for_commit().await {
            Ok(Some(staged)) => return Ok(Ok((cut, staged))),
            Ok(None) => {}
            Err(error) => return Ok(Err(failed(daemon, error.to_string(), None))),
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
        Err(error) => Err(failed(daemon, error.to_string(), None)),
    }
}

async fn without_conflicts(daemon: &Daemon, request: &CommitRequest) -> Result<(), Failure> {
    match daemon.fs.workspace().conflicts(&request.branch).await {
        Ok(conflicts) if conflicts.is_empty() => Ok(()),
        Ok(conflicts) => {
            let shown: Vec<String> = conflicts.iter().take(SHOWN_CONFLICTS).map(ToString::to_string).collect();
            let more = conflicts.len().saturating_sub(SHOWN_CONFLICTS);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let message =
                format!("{} changed here and on {}: {}{more}", many(conflicts.len()), request.branch, shown.join(", "));
            Err(failed(daemon, message, Some(CONFLICT_HINT)))
        }
        Err(error) => Err(failed(daemon, error.to_string(), None)),
    }
}

/// Takes the files back that stand where the base has directories, and commits the removal of those.
async fn make_way(daemon: &Daemon, over: &[RepoPath], request: &CommitRequest) -> Result<(), Failure> {
    let failed = |message: String| failed(daemon, message, None);
    let workspace = daemon.fs.workspace();
    daemon.fs.rescue_all(over).await.map_err(|error| failed(error.to_string()))?;
    daemon.fs.intend(over.iter(), std::iter::empty()).map_err(|error| failed(error.to_string()))?;
    daemon.fs.flush().await.map_err(|error| failed(error.to_string()))?;
    let unanswered = workspace.unanswered();
    let done = match workspace.unstage(over).await {
        Ok(_) => workspace.remove(over).await.map(|_| ()),
        Err(error) => Err(error),
    };
    if workspace.unanswered() != unanswered {
        daemon.fs.went_unanswered(over.iter()).map_err(|error| failed(error.to_string()))?;
    }
    daemon.fs.unstaged(over).map_err(|error| failed(error.to_string()))?;
    done.map_err(|error| failed(error.to_string()))?;
    let staged = daemon.fs.list_staged().await.map_err(|error| failed(error.to_string()))?;
    publish(daemon, request, &staged).await.map(|_| ())
}

/// Commits everything staged, which is `staged`, and stands on the new base once it was found whole.
async fn publish(daemon: &Daemon, request: &CommitRequest, staged: &StagedSet) -> Result<CommitId, Failure> {
    let fs = &daemon.fs;
    let workspace = fs.workspace();
    let head = workspace.head(&request.branch).await.map_err(|error| failed(daemon, error.to_string(), None))?;
    // On stable storage before the server is asked, with the record of what was staged: it tells our own changes from
    // others', and a start after this one looks what became of the commit.
    let digest = verify::digest(&fs.staged_set());
    let intent = CommitIntent { head: head.clone(), request: request.clone(), digest };
    if let Err(error) = fs.note_intent(intent).await {
        return Err(Failure { message: error.to_string(), hint: None, owed: true });
    }
    let committed = match workspace.commit(request).await {
        Ok(committed) => committed,
        Err(error) => return Err(not_committed(daemon, &error)),
    };
    let commit = CommitInfo {
        id: committed.id,
        parents: committed.parents,
        author: request.author.clone(),
        email: request.email.clone(),
        message: request.message.clone(),
    };
    match finish::finish(fs, request, staged, &head, &commit).await {
        Ok(Finished::Whole(id)) => Ok(id),
        Ok(Finished::Broken { what, owed }) => Err(Failure { message: what, hint: None, owed }),
        Err(error) => {
            let message = format!("commit {} was made, but could not be looked at: {error}", commit.id);
            Err(Failure { message, hint: Some(NEXT_HINT.to_owned()), owed: true })
        }
    }
}

/// The failure of a commit that was not answered with success.
fn not_committed(daemon: &Daemon, error: &WorkspaceError) -> Failure {
    if error.is_transient() && !matches!(error, WorkspaceError::Unauthorized { .. } | WorkspaceError::Busy { .. }) {
        // The server may be at it yet: the intention stays on record.
        let message = format!("{error}; the commit may have been made");
        return Failure { message, hint: Some(NEXT_HINT.to_owned()), owed: true };
    }
    if let Err(error) = daemon.fs.drop_intent() {
        tracing::warn!(%error, "a commit that was refused is looked for once more");
    }
    let hint = matches!(error, WorkspaceError::Conflict { .. }).then_some(CONFLICT_HINT);
    failed(daemon, error.to_string(), hint)
}

fn many(files: usize) -> String {
    if files == 1 { "1 file was".to_owned() } else { format!("{files} files were") }
}
