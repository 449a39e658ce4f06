//! `oxenfs restore`: paths go back to what a commit has, and what that dropped comes back.

use std::collections::HashSet;
use std::io;

use super::Daemon;
use super::follow::{DIFFERENCES_AT_A_TIME, Listener, flush_mapped};
use crate::control::{Event, Failure};
use crate::fs::{NotRestored, Target};
use crate::log;
use crate::path::RepoPath;
use crate::workspace::{CommitId, WorkspaceError};

/// What a command wants.
pub(super) struct Wanted<'a> {
    /// Paths from the mount's root.
    pub(super) paths: &'a [String],
    /// A branch or commit; `None`: the base.
    pub(super) source: Option<&'a str>,
    /// They are unstaged, and held back.
    pub(super) staged: bool,
    /// What a restore dropped comes back.
    pub(super) undo: bool,
}

/// Tells what is to change, and changes it if told to `apply`; returns the last event.
pub(super) async fn restore(
    wanted: &Wanted<'_>,
    apply: bool,
    daemon: &Daemon,
    listener: &mut Listener,
) -> io::Result<Event> {
    let mut dirs = HashSet::new();
    for path in wanted.paths {
        match RepoPath::parse(path) {
            Ok(path) => drop(dirs.insert(daemon.fs.root_path().concat(&path))),
            Err(error) => {
                let message = format!("{path}: {error}: it stays on this disk, and no commit has it");
                return Ok(Event::Failed(Failure { message, hint: None, owed: false }));
            }
        }
    }
    // What programs stored through mappings would come after the restore else.
    if let Some(failure) = flush_mapped(daemon, |path| path.is_in_any(&dirs)).await {
        return Ok(Event::Failed(failure));
    }
    let done = match (wanted.undo, wanted.source) {
        _ if wanted.staged => daemon.fs.unstage(&dirs, apply).await,
        (true, _) => daemon.fs.undo_restore(&dirs, apply).await,
        (false, None) => daemon.fs.restore(&dirs, &Target::Base, apply).await,
        (false, Some(revision)) => match find(revision, daemon).await {
            Ok(Some(commit)) => daemon.fs.restore(&dirs, &Target::Commit(commit), apply).await,
            Ok(None) => {
                let message = format!("{} has no branch and no commit {revision}", daemon.repo);
                let repo = log::quoted(&daemon.repo);
                let hint = Some(format!("oxenfs branches {repo} --server {}", log::quoted(&daemon.server)));
                return Ok(Event::Failed(Failure { message, hint, owed: false }));
            }
            Err(error) => Err(NotRestored::Failed(error.into())),
        },
    };
    match done {
        Ok(changes) => {
            for some in changes.chunks(DIFFERENCES_AT_A_TIME) {
                listener.tell(&Event::Differences { changes: some.to_vec() }).await?;
            }
            Ok(Event::Done)
        }
        Err(error) => Ok(Event::Failed(failure(&error, daemon))),
    }
}

/// The commit of this name, or that a branch of this name stands on.
async fn find(revision: &str, daemon: &Daemon) -> Result<Option<CommitId>, WorkspaceError> {
    let workspace = daemon.fs.workspace();
    match workspace.head(revision).await {
        Ok(head) => return Ok(Some(head)),
        Err(WorkspaceError::NotFound { .. }) => {}
        Err(error) => return Err(error),
    }
    let commit = CommitId(revision.into());
    Ok(workspace.commit_info(&commit).await?.map(|found| found.id))
}

fn failure(error: &NotRestored, daemon: &Daemon) -> Failure {
    let dir = log::quoted(&daemon.mountpoint);
    let hint = match error {
        NotRestored::Written(_) => Some("close it, and repeat the command".to_owned()),
        NotRestored::InTheWay { .. } => Some("name that as well, or move it elsewhere".to_owned()),
        NotRestored::InConflict(_) => {
            Some("decide it first: oxenfs resolve PATH --ours, --theirs or --keep-both".to_owned())
        }
        NotRestored::Changed(_) => Some(format!(
            "what was dropped stays kept: move what is there elsewhere, oxenfs restore it, and repeat the command; oxenfs diff {dir} shows it"
        )),
        NotRestored::NothingKept => Some(
            "what is dropped is kept until the next commit, for a week at most, and makes way where room is short"
                .to_owned(),
        ),
        NotRestored::NoRoom => {
            Some(format!("oxenfs sync {dir}, which frees what the server has then; or restore less at a time"))
        }
        NotRestored::Committing => Some("repeat the command when it is done".to_owned()),
        NotRestored::TooMany => Some("name less".to_owned()),
        NotRestored::Busy => Some("stop them, and repeat the command".to_owned()),
        NotRestored::Failed(_) => Some("nothing has changed; repeat the command".to_owned()),
    };
    Failure { message: error.to_string(), hint, owed: false }
}
