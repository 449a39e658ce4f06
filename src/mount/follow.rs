//! What a command is told while it waits for the daemon.

use std::io;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::unix::OwnedWriteHalf;

use super::Daemon;
use crate::control::words::count;
use crate::control::{Event, Failure};
use crate::fs::{Unflushed, Waiting};
use crate::log;
use crate::path::RepoPath;
use crate::report::Progress;

/// How often progress is told while something moves, and while nothing does.
pub(super) const TELL_EVERY: Duration = Duration::from_millis(200);
/// How long nothing may arrive of what programs stored through mappings before a barrier gives up: a page may have to
/// wait for a copy of its whole file.
pub(super) const WRITE_BACK_PATIENCE: Duration = Duration::from_secs(30);

/// How many differences an event has: a few hundred kilobytes.
pub(super) const DIFFERENCES_AT_A_TIME: usize = 1000;

/// Where events go.
pub(super) struct Listener {
    pub(super) stream: OwnedWriteHalf,
}

impl Listener {
    pub(super) async fn tell(&mut self, event: &Event) -> io::Result<()> {
        let mut line = serde_json::to_string(event)?;
        line.push('\n');
        // The command may have no token, or another: it could not know what to hide.
        self.stream.write_all(log::hide(&line).as_bytes()).await
    }

    /// The same for what the user's own files hold, which goes as it is.
    pub(super) async fn tell_data(&mut self, event: &Event) -> io::Result<()> {
        let mut line = serde_json::to_string(event)?;
        line.push('\n');
        self.stream.write_all(line.as_bytes()).await
    }
}

/// Tells how far a barrier is until it is reached.
pub(super) async fn follow(daemon: &Daemon, waiting: &Waiting, listener: &mut Listener) -> io::Result<Progress> {
    let mut stalled = None;
    loop {
        let (mut progress, over) = waiting.progress();
        let why = daemon.meter.stalled().filter(|_| !over);
        if why != stalled {
            listener.tell(&Event::Stalled { why: why.clone() }).await?;
            stalled = why;
        }
        listener.tell(&Event::Progress(progress)).await?;
        if over {
            if let Err(error) = waiting.settled().await {
                tracing::error!(%error, "staged, but not on record");
                progress.files_failed = progress.files_failed.max(1);
            }
            return Ok(progress);
        }
        let _ = tokio::time::timeout(TELL_EVERY, waiting.reached()).await;
    }
}

/// Before a barrier: what programs stored through mappings comes here first, and what is ignored goes by the patterns that
/// are there now. The failure where it does not.
pub(super) async fn flush_mapped(daemon: &Daemon, chosen: impl Fn(&RepoPath) -> bool + Send + Sync) -> Option<Failure> {
    let flushed = daemon.fs.flush_mapped(&chosen, WRITE_BACK_PATIENCE).await;
    let heeded = daemon.fs.heed_patterns(&chosen).await;
    let status = format!("oxenfs status {}", log::quoted(&daemon.mountpoint));
    let error = match (flushed, heeded) {
        (Err(error), _) => error,
        (Ok(_), Err(error)) => {
            let message = format!("what is ignored, and stays here, cannot be flushed to this disk: {error}");
            return Some(Failure { message, hint: Some(status), owed: !daemon.fs.is_drained() });
        }
        (Ok(_), Ok(())) => return None,
    };
    let (hint, owed) = match &error {
        // What is lost is not owed.
        Unflushed::Lost { .. } => {
            ("mend that, have the program store it again, and repeat the command".to_owned(), !daemon.fs.is_drained())
        }
        Unflushed::Stuck { .. } => (format!("repeat the command when this says that nothing is amiss: {status}"), true),
        Unflushed::NoThread(_) => ("repeat the command".to_owned(), true),
    };
    Some(Failure { message: error.to_string(), hint: Some(hint), owed })
}

/// The failure of a barrier that some paths did not reach.
pub(super) fn unstaged(daemon: &Daemon, progress: &Progress) -> Option<Failure> {
    if progress.files_failed == 0 {
        return None;
    }
    let first = daemon.fs.report().2.into_iter().find(|error| error.parked);
    let example = first.map(|error| format!(", the first is {}: {}", error.path, error.error)).unwrap_or_default();
    Some(Failure {
        message: format!("{} could not be staged{example}", count(progress.files_failed, "file")),
        hint: Some(format!("oxenfs status {}", log::quoted(&daemon.mountpoint))),
        owed: true,
    })
}
