//! `oxenfs refresh`, `resolve` and `show`: what others committed is taken in, what both sides changed is decided.

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use super::Daemon;
use super::follow::{Listener, flush_mapped};
use crate::calendar;
use crate::control::words::count;
use crate::control::{self, Event, Failure, Refreshed, Resolved};
use crate::fs::{Choice, Followed, FsError, Stays, Version};
use crate::log;
use crate::path::RepoPath;

/// Bytes of an event: a small part of what a command may be sent in one.
const CHUNK_BYTES: u64 = 256 << 10;

/// How the fs names a choice.
pub(super) fn choice_of(choice: control::Choice) -> Choice {
    match choice {
        control::Choice::Ours => Choice::Ours,
        control::Choice::Theirs => Choice::Theirs,
        control::Choice::KeepBoth => Choice::KeepBoth,
    }
}

/// Takes in what the branch has become.
pub(super) async fn refresh(daemon: &Daemon) -> Event {
    if let Some(failure) = flush_mapped(daemon, |_| true).await {
        return Event::Failed(failure);
    }
    match daemon.fs.follow_branch().await {
        Ok(followed) => {
            let base = daemon.fs.base().to_string();
            let stays = followed.stays.map(|why| stays(why).to_owned());
            told(daemon, &followed);
            let conflicts = followed.taken.conflicts as u64;
            Event::Refreshed(Refreshed { base, moved: followed.taken.moved, stays, conflicts })
        }
        Err(FsError::Exists) => {
            let hint = Some("repeat the command when it is done".to_owned());
            Event::Failed(Failure { message: "a commit is under way".to_owned(), hint, owed: false })
        }
        Err(error) => Event::Failed(Failure { message: error.to_string(), hint: None, owed: false }),
    }
}

/// Why a mount stays where it is.
pub(super) fn stays(why: Stays) -> &'static str {
    match why {
        Stays::Shared => "others may use its workspace, which moves by its commit alone",
        Stays::Foreign => "somebody else staged something in its workspace",
    }
}

/// Tells what was taken in.
pub(super) fn told(daemon: &Daemon, followed: &Followed) {
    let (base, conflicts) = (daemon.fs.base().to_string(), followed.taken.conflicts);
    if followed.taken.moved {
        tracing::info!(base, conflicts, "refreshed");
        daemon.activity.refreshed(&base, conflicts as u64);
    }
    tell_conflicts(daemon);
}

/// Tells who follows the mount's events what is in conflict.
pub(super) fn tell_conflicts(daemon: &Daemon) {
    for path in daemon.fs.conflicts() {
        daemon.activity.conflict(path, &daemon.branch);
    }
}

/// The paths of the mount that a command named, as the repository has them.
fn repo_path(daemon: &Daemon, path: &str) -> Result<RepoPath, Failure> {
    let parsed = RepoPath::parse(path).map_err(|error| {
        let message = format!("{path}: {error}: it stays local");
        Failure { message, hint: None, owed: false }
    })?;
    Ok(daemon.fs.root_path().concat(&parsed))
}

/// Decides the conflicts at and below some paths.
pub(super) async fn resolve(daemon: &Daemon, paths: &[String], choice: control::Choice) -> Event {
    let mut wanted = Vec::new();
    for path in paths {
        let path = match repo_path(daemon, path) {
            Ok(path) => path,
            Err(failure) => return Event::Failed(failure),
        };
        let below: Vec<RepoPath> = daemon.fs.conflicts().into_iter().filter(|one| one.is_in(&path)).collect();
        if below.is_empty() {
            let message = format!("nothing is in conflict at {}", if path.is_root() { "it" } else { path.as_str() });
            let hint = Some(format!("oxenfs status {}", log::quoted(&daemon.mountpoint)));
            return Event::Failed(Failure { message, hint, owed: false });
        }
        wanted.extend(below.into_iter().filter(|path| !wanted.contains(path)).collect::<Vec<_>>());
    }
    let mut resolved = Vec::new();
    for path in wanted {
        match one(daemon, &path, choice).await {
            Ok(one) => resolved.push(one),
            Err(failure) => return Event::Failed(failure),
        }
    }
    let left = daemon.fs.conflicts().len() as u64;
    Event::Resolved { resolved, left }
}

/// Decides all conflicts of the mount.
pub(super) async fn resolve_all(daemon: &Daemon, choice: control::Choice) -> Result<(), Failure> {
    for path in daemon.fs.conflicts() {
        one(daemon, &path, choice).await?;
    }
    Ok(())
}

async fn one(daemon: &Daemon, path: &RepoPath, choice: control::Choice) -> Result<Resolved, Failure> {
    match daemon.fs.resolve(path, choice_of(choice), &label()).await {
        Ok(beside) => {
            let beside = beside.map(|beside| beside.as_str().to_owned());
            tracing::info!(%path, ?choice, beside, "a conflict was decided");
            Ok(Resolved { path: path.as_str().to_owned(), beside })
        }
        // Decided meanwhile.
        Err(FsError::NotFound) => Ok(Resolved { path: path.as_str().to_owned(), beside: None }),
        Err(FsError::NotDir) => {
            let message = format!("{path} cannot be resolved: a file is here where its directory is on the branch");
            let hint = Some("give that file another name and repeat the command, or decide with --ours".to_owned());
            Err(Failure { message, hint, owed: false })
        }
        Err(error) => {
            let hint = Some("repeat the command; both versions are kept".to_owned());
            Err(Failure { message: format!("{path} cannot be resolved: {error}"), hint, owed: false })
        }
    }
}

/// The failure of a commit for the sake of what is in conflict.
pub(super) fn unresolved(daemon: &Daemon) -> Option<Failure> {
    const SHOWN: usize = 5;
    let conflicts = daemon.fs.conflicts().len();
    if conflicts == 0 {
        return None;
    }
    let shown = daemon.fs.told_conflicts(SHOWN);
    let named: Vec<String> = shown.iter().map(|one| format!("{} {}", one.path, one.what)).collect();
    let more = conflicts.saturating_sub(shown.len());
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let message = format!("{} in conflict, and nothing was committed: {}{more}", is_in(conflicts), named.join("; "));
    let dir = log::quoted(&daemon.mountpoint);
    let hint = format!(
        "oxenfs resolve {dir}/PATH --ours, --theirs or --keep-both; oxenfs show {dir}/PATH --theirs prints the \
         branch's version; or commit with --on-conflict"
    );
    // Not for the server's sake: what is owed waits for a person.
    Some(Failure { message, hint: Some(hint), owed: false })
}

fn is_in(conflicts: usize) -> String {
    let paths = count(conflicts as u64, "path");
    if conflicts == 1 { format!("{paths} is") } else { format!("{paths} are") }
}

/// Who decides, and when, as names of files have it.
fn label() -> String {
    let system = rustix::system::uname();
    let host = system.nodename().to_string_lossy();
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME"));
    let user = user.unwrap_or_else(|_| rustix::process::geteuid().as_raw().to_string());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let date = calendar::utc(now);
    // As they stand in a file's name.
    let safe = |text: &str| {
        text.chars().filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).take(24).collect::<String>()
    };
    format!("{}@{} {}", safe(&user), safe(host.split('.').next().unwrap_or_default()), &date[..10])
}

/// Sends a version of a file.
pub(super) async fn show(
    daemon: &Daemon,
    path: &str,
    version: control::Version,
    listener: &mut Listener,
) -> io::Result<Event> {
    let path = match repo_path(daemon, path) {
        Ok(path) => path,
        Err(failure) => return Ok(Event::Failed(failure)),
    };
    let version = match version {
        control::Version::Base => Version::Base,
        control::Version::Theirs => Version::Theirs,
    };
    let failed = |message: String| Event::Failed(Failure { message, hint: None, owed: false });
    let file = match daemon.fs.version(&path, version).await {
        Ok(Some(file)) => file,
        Ok(None) => return Ok(failed(format!("there is no file {path} in that version"))),
        Err(error) => return Ok(failed(error.to_string())),
    };
    let mut at = 0;
    loop {
        let file = file.clone();
        let read = move || {
            use std::os::unix::fs::FileExt;
            let mut bytes = vec![0; CHUNK_BYTES as usize];
            let read = file.read_at(&mut bytes, at)?;
            bytes.truncate(read);
            Ok::<_, io::Error>(bytes)
        };
        let bytes = match tokio::task::spawn_blocking(read).await? {
            Ok(bytes) => bytes,
            Err(error) => return Ok(failed(error.to_string())),
        };
        if bytes.is_empty() {
            return Ok(Event::Done);
        }
        at += bytes.len() as u64;
        listener.tell_data(&Event::Chunk { bytes: bytes.into() }).await?;
    }
}
