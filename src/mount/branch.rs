//! The branch goes on while the mount is idle: it is looked where it is, told, and taken in by who asked for that.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::{Daemon, Phase, resolve};
use crate::config::Refresh;
use crate::control::Ahead;
use crate::control::words::count;
use crate::fs::{FsError, Outlook};

/// How much longer than at first the pause between two looks becomes while nothing changes, or the server does not answer.
const SLOWEST: f64 = 5.0;

impl Daemon {
    /// Where the branch is, if that is not where the mount stands.
    pub(super) fn ahead(&self) -> Option<Ahead> {
        let outlook = self.outlook.lock().unwrap_or_else(PoisonError::into_inner);
        let (head, commits) = outlook.ahead().filter(|_| *outlook.base() == self.fs.base())?;
        Some(Ahead { head: head.to_string(), commits })
    }
}

/// Looks where the branch is, again and again, until aborted.
pub(super) async fn watch(daemon: Arc<Daemon>, refresh: Refresh) {
    let (every, moves) = match refresh {
        Refresh::Never => return,
        Refresh::Look(every) => (every, false),
        Refresh::Move(every) => (every, true),
    };
    let mut outlook = Outlook::default();
    let mut slower = 1.0;
    loop {
        // Not all mounts of a cluster at once.
        let pause = every.mul_f64(slower * (0.9 + fastrand::f64() / 5.0));
        tokio::time::sleep(pause.max(Duration::from_millis(1))).await;
        if *daemon.phase.borrow() != Phase::Mounted {
            continue;
        }
        slower = match daemon.fs.look_at_branch(&mut outlook).await {
            Ok(true) => {
                told(&daemon, &outlook);
                1.0
            }
            Ok(false) if moves => 1.0,
            Ok(false) => SLOWEST.min(slower * 1.5),
            Err(error) => {
                tracing::debug!(%error, "cannot look where the branch is");
                SLOWEST.min(slower * 2.0)
            }
        };
        *daemon.outlook.lock().unwrap_or_else(PoisonError::into_inner) = outlook.clone();
        if moves && outlook.ahead().is_some() && !daemon.fs.is_shared() {
            take_in(&daemon).await;
        }
    }
}

/// Says that the branch is somewhere else than at the last look.
fn told(daemon: &Daemon, outlook: &Outlook) {
    let Some((head, commits)) = outlook.ahead() else { return };
    let branch = &daemon.branch;
    let way = if daemon.fs.is_shared() { "the next commit of the workspace" } else { "oxenfs refresh" };
    match commits {
        Some(commits) => {
            tracing::info!(%head, branch, "the branch is {} ahead; {way} takes them in", count(commits, "commit"));
        }
        None => tracing::info!(%head, branch, "the branch has gone on; {way} takes that in"),
    }
    daemon.activity.ahead(branch, head, commits);
}

/// Takes in what the branch has become, if nothing is in the way now.
async fn take_in(daemon: &Daemon) {
    match daemon.fs.follow_branch_if_idle().await {
        Ok(Some(followed)) => {
            if let Some(why) = followed.stays.map(resolve::stays) {
                tracing::debug!(why, "the mount stays where it is");
            }
            if followed.taken.moved {
                resolve::told(daemon, &followed);
            }
        }
        Ok(None) => tracing::debug!("a file is open or being sent; the mount stays where it is"),
        Err(FsError::Exists) => tracing::debug!("a commit is under way; the mount stays where it is"),
        Err(error) => tracing::warn!(%error, "what others committed is not taken in yet"),
    }
}
