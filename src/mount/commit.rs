//! A commit: freeze what was written, stage it, look for conflicts, commit, stand on the new base.

use std::io;

use super::Daemon;
use super::serve::{Listener, flush_mapped, follow, unstaged};
use crate::control::Failure;
use crate::fs::FsError;
use crate::path::RepoPath;
use crate::workspace::{CommitId, CommitRequest, WorkspaceError};

/// How many conflicting paths an error names.
const SHOWN_CONFLICTS: usize = 5;
const CONFLICT_HINT: &str =
    "mount the branch in a fresh workspace (--workspace NAME), copy your versions there, commit that";

/// Commits what was written up to now; writers go on, and what they write waits for the next commit. `None`: there
/// was nothing to commit. The outer error is that of the connection to the command.
pub(super) async fn commit(
    daemon: &Daemon,
    request: &CommitRequest,
    listener: &mut Listener,
) -> io::Result<Result<Option<CommitId>, Failure>> {
    let failed = |message: String, hint: Option<&str>| Failure {
        message,
        hint: hint.map(str::to_owned),
        owed: !daemon.fs.is_drained(),
    };
    let frozen = loop {
        if let Some(failure) = flush_mapped(daemon, |_| true).await {
            return Ok(Err(failure));
        }
        let frozen = match daemon.fs.cut().await {
            Ok(frozen) => frozen,
            Err(FsError::Exists) => {
                return Ok(Err(failed(
                    "another commit is under way".into(),
                    Some("repeat the command when it is done"),
                )));
            }
            Err(error) => return Ok(Err(failed(error.to_string(), None))),
        };
        let progress = follow(daemon, &frozen.waiting, listener).await?;
        if let Some(failure) = unstaged(daemon, &progress) {
            return Ok(Err(failure));
        }
        match daemon.fs.audit().await {
            Ok(false) => break frozen,
            Ok(true) => {}
            Err(error) => return Ok(Err(failed(error.to_string(), None))),
        }
    };
    match daemon.fs.workspace().base().await {
        Ok(base) if base == daemon.fs.base() => {}
        Ok(_) => {
            let message = "somebody else committed or moved this workspace".to_owned();
            let hint =
                "unmount and mount again, which looks for conflicts; or use a workspace of your own: --workspace";
            return Ok(Err(failed(message, Some(hint))));
        }
        Err(error) => return Ok(Err(failed(error.to_string(), None))),
    }
    if daemon.fs.staged_paths().is_empty() {
        return Ok(Ok(None));
    }
    let workspace = daemon.fs.workspace();
    match workspace.conflicts(&request.branch).await {
        Ok(conflicts) if conflicts.is_empty() => {}
        Ok(conflicts) => {
            let shown: Vec<String> = conflicts.iter().take(SHOWN_CONFLICTS).map(ToString::to_string).collect();
            let more = conflicts.len().saturating_sub(SHOWN_CONFLICTS);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let message =
                format!("{} changed here and on {}: {}{more}", many(conflicts.len()), request.branch, shown.join(", "));
            return Ok(Err(failed(message, Some(CONFLICT_HINT))));
        }
        Err(error) => return Ok(Err(failed(error.to_string(), None))),
    }
    let over = daemon.fs.files_over_directories();
    if !over.is_empty() {
        // No server takes both in one commit: first one in which the directories go, then one with the files.
        let first = CommitRequest { message: format!("{} (directories make way)", request.message), ..request.clone() };
        if let Err(failure) = make_way(daemon, &over, &first).await {
            return Ok(Err(failure));
        }
        drop(frozen);
        let again = match daemon.fs.cut().await {
            Ok(again) => again,
            Err(error) => return Ok(Err(failed(error.to_string(), None))),
        };
        let progress = follow(daemon, &again.waiting, listener).await?;
        if let Some(failure) = unstaged(daemon, &progress) {
            return Ok(Err(failure));
        }
        return Ok(publish(daemon, request).await.map(Some));
    }
    let committed = publish(daemon, request).await;
    drop(frozen);
    Ok(committed.map(Some))
}

/// Takes the files back that stand where the base has directories, and commits the removal of those.
async fn make_way(daemon: &Daemon, over: &[RepoPath], request: &CommitRequest) -> Result<(), Failure> {
    let failed = |message: String| Failure { message, hint: None, owed: !daemon.fs.is_drained() };
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
    publish(daemon, request).await.map(|_| ())
}

/// Commits everything staged, and stands on the new base.
async fn publish(daemon: &Daemon, request: &CommitRequest) -> Result<CommitId, Failure> {
    let base = daemon.fs.base();
    // Once it is committed, the record of what was staged tells our own changes from others'.
    if let Err(error) = daemon.fs.flush().await {
        return Err(Failure { message: error.to_string(), hint: None, owed: true });
    }
    let committed = match daemon.fs.workspace().commit(request).await {
        Ok(committed) => committed,
        Err(error) => {
            let hint = matches!(error, WorkspaceError::Conflict { .. }).then(|| CONFLICT_HINT.to_owned());
            return Err(Failure { message: error.to_string(), hint, owed: !daemon.fs.is_drained() });
        }
    };
    // Others' commits may have been merged in: then the new base is more than the old one with our changes.
    let alone = committed.parents == [base];
    if let Err(error) = daemon.fs.rebased(committed.id.clone(), alone).await {
        tracing::error!(%error, "committed, but not on record; the next mount finds out");
    }
    if !alone {
        let fs = daemon.fs.clone();
        tokio::spawn(async move {
            if let Err(error) = fs.relist().await {
                tracing::warn!(%error, "the new base could not be listed yet");
            }
        });
    }
    Ok(committed.id)
}

fn many(files: usize) -> String {
    if files == 1 { "1 file was".to_owned() } else { format!("{files} files were") }
}
