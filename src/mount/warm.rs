//! `oxenfs warm`: content is brought into the cache before anybody reads it, looked at there, or removed.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::Daemon;
use super::follow::Listener;
use crate::control::words::bytes;
use crate::control::{Event, Failure, Warm, Warmed};
use crate::fs::{Contents, FsError, NotWarmed, Stop, Warming};
use crate::log;
use crate::path::{Name, RepoPath};
use crate::report::{Progress, Unreadable};

/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// Does what is asked for with what is at and below `paths`; returns the last event.
pub(super) async fn warm(paths: &[String], how: Warm, daemon: &Daemon, listener: &mut Listener) -> io::Result<Event> {
    let mut contents = Contents::default();
    for path in paths {
        if let Err(error) = gather(path, daemon, &mut contents).await {
            let hint = matches!(error, FsError::NotFound | FsError::NotDir | FsError::Stale);
            let shown = if path.is_empty() { "the mount" } else { path.as_str() };
            let message = format!("{shown}: {error}");
            let hint = hint.then(|| "name files and directories that are there".to_owned());
            return Ok(Event::Failed(Failure { message, hint, owed: false }));
        }
    }
    let (files_total, bytes_total) = contents.totals();
    let warming = Arc::new(Warming::default());
    let work = async {
        match how {
            Warm::Fetch => daemon.fs.warm(&contents, &warming).await,
            Warm::Check => Ok(daemon.fs.check_warm(&contents, &warming).await?),
            Warm::Evict => Ok(daemon.fs.chill(&contents, &warming).await?),
        }
    };
    tokio::pin!(work);
    let done = loop {
        tokio::select! {
            done = &mut work => break done,
            () = tokio::time::sleep(TELL_EVERY) => {
                let (files_done, bytes_done) = warming.done();
                let files_failed = warming.failed().0;
                let progress = Progress { files_done, files_total, bytes_done, bytes_total, files_failed };
                listener.tell(&Event::Progress(progress)).await?;
            }
        }
    };
    if let Err(error) = done {
        return Ok(Event::Failed(failure(&error, daemon)));
    }
    let (changed_files, changed_bytes) = warming.changed();
    let (failed_files, failed) = warming.failed();
    let failed = failed.into_iter().map(|(path, reason)| Unreadable { path, reason }).collect();
    tracing::info!(?how, files_total, bytes_total, changed_files, failed_files, "warmed");
    Ok(Event::Warmed(Warmed {
        files: files_total,
        bytes: bytes_total,
        changed_files,
        changed_bytes,
        failed_files,
        failed,
    }))
}

async fn gather(path: &str, daemon: &Daemon, contents: &mut Contents) -> Result<(), FsError> {
    let path = RepoPath::parse(path).map_err(|_| FsError::NotFound)?;
    let names: Result<Vec<Name>, _> = path.components().map(|part| Name::new(part.as_bytes())).collect();
    let names = names.map_err(|_| FsError::NotFound)?;
    let fs = &daemon.fs;
    let ino = match fs.find(&names) {
        Err(Stop::Need(need)) => fs.run(need, |fs| fs.find(&names)).await?,
        Err(Stop::Error(error)) => return Err(error),
        Ok(ino) => ino,
    };
    fs.gather_contents(ino, contents).await
}

fn failure(error: &NotWarmed, daemon: &Daemon) -> Failure {
    let dir = log::quoted(&daemon.mountpoint);
    let (message, hint) = match error {
        NotWarmed::TooMuch { bytes: all, limit } => (
            format!("it is {}, and the cache holds {}", bytes(*all), bytes(*limit)),
            Some(format!("name less, or mount with a larger one: --cache-limit {}", bytes(*all).replace(' ', ""))),
        ),
        NotWarmed::Failed(FsError::NoSpace) => (
            "the disk of the cache is full; what was fetched stays".to_owned(),
            Some(format!(
                "make room there, and repeat the command: it goes on. What is staged is safe: oxenfs status {dir}"
            )),
        ),
        NotWarmed::Failed(error) => {
            (format!("{error}; what was fetched stays"), Some("repeat the command: it goes on".to_owned()))
        }
    };
    Failure { message, hint, owed: false }
}
