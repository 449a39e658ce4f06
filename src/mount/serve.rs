//! The daemon's side of the control socket.

use std::collections::HashSet;
use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use super::follow::{DIFFERENCES_AT_A_TIME, Listener, TELL_EVERY, flush_mapped, follow, unstaged};
use super::import::{self, Peer};
use super::preflight::{How, UnmountError};
use super::{Daemon, Phase, commit, detach, resolve};
use crate::activity::Happening;
use crate::control::{Event, Failure, Request};
use crate::fs::{FsError, Stop};
use crate::log;
use crate::path::{Name, RepoPath};
use crate::report::Difference;
use crate::workspace::CommitRequest;

/// How long a command waits for what an earlier mount left to be looked at.
const LOAD_PATIENCE: Duration = Duration::from_secs(5);
/// The longest request: a list of paths.
const REQUEST_BYTES: u64 = 16 << 20;

/// How long `diff` waits to hear what others staged.
const OTHERS_PATIENCE: Duration = Duration::from_secs(5);

/// Accepts commands until aborted.
pub(super) fn listen(listener: UnixListener, daemon: Arc<Daemon>) -> io::Result<JoinHandle<()>> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    Ok(tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let daemon = daemon.clone();
                    tokio::spawn(async move {
                        if let Err(error) = answer(stream, &daemon).await {
                            tracing::debug!(%error, "a command hung up");
                        }
                    });
                }
                Err(error) => {
                    // Out of descriptors, most likely: others will close theirs.
                    tracing::warn!(%error, "a command could not connect");
                    tokio::time::sleep(TELL_EVERY).await;
                }
            }
        }
    }))
}

async fn answer(stream: UnixStream, daemon: &Arc<Daemon>) -> io::Result<()> {
    let peer = stream.peer_cred()?;
    let (reader, writer) = stream.into_split();
    let mut listener = Listener { stream: writer };
    let mut reader = BufReader::new(reader.take(REQUEST_BYTES));
    let mut line = String::new();
    reader.read_line(&mut line).await?;
    let request = match serde_json::from_str(&line) {
        Ok(request) => request,
        Err(error) => {
            let message = format!("the request is not understood: {error}");
            let hint = Some("use the same version of oxenfs for the command and the mount".to_owned());
            return listener.tell(&Event::Failed(Failure { message, hint, owed: false })).await;
        }
    };
    if ![0, rustix::process::geteuid().as_raw()].contains(&peer.uid()) {
        // Only its owner can enter the socket's directory; this is for the day when somebody opens it wider.
        let message = "the mount belongs to another user".to_owned();
        return listener.tell(&Event::Failed(Failure { message, hint: None, owed: false })).await;
    }
    if let Request::Import { into } = request {
        // The rest of the conversation carries open files, and nothing of it may be read by anyone else.
        if !reader.buffer().is_empty() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let Ok(stream) = reader.into_inner().into_inner().reunite(listener.stream) else {
            return Err(io::ErrorKind::Other.into());
        };
        let peer = Peer { uid: peer.uid(), gid: peer.gid() };
        return take_files(&into, stream, peer, daemon).await;
    }
    let ends = matches!(request, Request::Unmount | Request::Detach);
    let mut nothing = [0];
    let done = tokio::select! {
        done = carry_out(request, daemon, &mut listener) => done,
        // The command is gone: what it waited for goes on by itself, its wishes do not.
        _ = reader.read(&mut nothing) => Ok(()),
    };
    if ends && *daemon.phase.borrow() == Phase::Ending {
        // The kernel hangs up when this process is gone and writes no more: for that the command waits.
        std::mem::forget(listener);
    }
    done
}

async fn carry_out(request: Request, daemon: &Arc<Daemon>, listener: &mut Listener) -> io::Result<()> {
    if !matches!(request, Request::Ping | Request::Events | Request::Detach | Request::LogLevel { .. }) {
        // All others tell bytes. What takes longer to be looked at is counted as a file alone.
        let _ = tokio::time::timeout(LOAD_PATIENCE, daemon.fs.load()).await;
    }
    if let Some(revision) = &daemon.revision {
        match request {
            // Nothing is owed, ever, and nobody asks the server.
            Request::Sync { .. } => return listener.tell(&Event::Done).await,
            Request::Refresh => {
                let message = format!("it shows {revision} as it was when it was mounted");
                let hint = Some("mount it again to see what it has become".to_owned());
                return listener.tell(&Event::Failed(Failure { message, hint, owed: false })).await;
            }
            Request::Commit { .. } | Request::Restore { .. } => {
                let message = format!("it shows {revision}, read-only: there is nothing to commit");
                let hint = Some("to change a branch, mount it without --read-only and --revision".to_owned());
                return listener.tell(&Event::Failed(Failure { message, hint, owed: false })).await;
            }
            _ => {}
        }
    }
    if daemon.fs.is_offline() && is_of_server(&request) {
        return listener.tell(&Event::Failed(offline(daemon))).await;
    }
    match request {
        Request::Ping => {
            // What a daemon that hangs would wait for.
            let fs = daemon.fs.clone();
            tokio::task::spawn_blocking(move || fs.owed()).await?;
            listener.tell(&Event::Done).await
        }
        Request::Status => listener.tell(&Event::Status(Box::new(daemon.status()))).await,
        Request::Measures => listener.tell(&Event::Measures(Box::new(daemon.measures()))).await,
        Request::Events => events(daemon, listener).await,
        Request::LogLevel { level } => listener.tell(&log_level(level.as_deref())).await,
        Request::Diff => {
            let fs = daemon.fs.clone();
            let mut differences = tokio::task::spawn_blocking(move || fs.differences()).await?;
            differences.extend(others(daemon).await);
            for some in differences.chunks(DIFFERENCES_AT_A_TIME) {
                listener.tell(&Event::Differences { changes: some.to_vec() }).await?;
            }
            listener.tell(&Event::Done).await
        }
        // Taken care of before: it needs the socket for itself.
        Request::Import { .. } => Ok(()),
        Request::Sync { paths, before_commit } => {
            let done = sync(&paths, before_commit, daemon, listener).await?;
            listener.tell(&done).await
        }
        Request::Restore { paths, source, staged, undo, apply } => {
            let wanted = super::restore::Wanted { paths: &paths, source: source.as_deref(), staged, undo };
            let done = super::restore::restore(&wanted, apply, daemon, listener).await?;
            listener.tell(&done).await
        }
        Request::Warm { paths, how } => {
            let done = super::warm::warm(&paths, how, daemon, listener).await?;
            listener.tell(&done).await
        }
        Request::Unmount => {
            let done = drain_and_unmount(daemon, listener).await?;
            let over = done == Event::Done;
            let told = listener.tell(&done).await;
            if over {
                daemon.phase.send_replace(Phase::Ending);
            }
            told
        }
        Request::Detach => {
            // Gone from the tree of files before the command is told so.
            let mut taking = Taking::new(daemon);
            let mounted = taking.otherwise.replace(Phase::Ending) == Some(Phase::Mounted);
            if mounted {
                detach(&daemon.mountpoint, How::Lazily).await;
                tracing::info!("unmounted; what is left is sent by the next mount");
            }
            let told = listener.tell(&Event::Done).await;
            drop(taking);
            told
        }
        Request::Refresh => {
            let done = resolve::refresh(daemon).await;
            listener.tell(&done).await
        }
        Request::CheckIgnore { paths } => {
            let done = check_ignore(daemon, &paths).await;
            listener.tell(&done).await
        }
        Request::Resolve { paths, choice } => {
            let done = resolve::resolve(daemon, &paths, choice).await;
            listener.tell(&done).await
        }
        Request::Show { path, version } => {
            let done = resolve::show(daemon, &path, version, listener).await?;
            listener.tell(&done).await
        }
        Request::Commit { branch, message, author, email, on_conflict } => {
            let branch = branch.unwrap_or_else(|| daemon.branch.clone());
            let request = CommitRequest { branch, message, author, email };
            let base = daemon.fs.base();
            let last_kept = daemon.fs.last_kept();
            let done = match commit::commit(daemon, &request, on_conflict, listener).await? {
                Ok(id) => {
                    if let Some(id) = &id {
                        daemon.fs.forget_kept(last_kept).await;
                        tracing::info!(%id, branch = request.branch, %base, "committed");
                        daemon.activity.committed(id, &request.branch);
                    }
                    let ignored = daemon.fs.ignored();
                    if ignored.files > 0 {
                        listener.tell(&Event::Ignores(ignored)).await?;
                    }
                    Event::Committed { id: id.map(|id| id.to_string()) }
                }
                Err(failure) => {
                    tracing::warn!(branch = request.branch, error = failure.message, "not committed");
                    daemon.activity.not_committed();
                    Event::Failed(failure)
                }
            };
            listener.tell(&done).await
        }
    }
}

/// Whether a request is about what the server has now, and cannot wait for it.
fn is_of_server(request: &Request) -> bool {
    matches!(request, Request::Refresh | Request::Commit { .. } | Request::Sync { before_commit: true, .. })
}

/// Why such a request is not carried out.
fn offline(daemon: &Daemon) -> Failure {
    let why = daemon.meter.stalled().map(|why| format!(": {why}")).unwrap_or_default();
    let status = format!("oxenfs status {}", log::quoted(&daemon.mountpoint));
    Failure {
        message: format!("it is offline{why}"),
        hint: Some(format!("what was written is kept; repeat the command once this says that it is not: {status}")),
        owed: !daemon.fs.is_drained(),
    }
}

/// Which pattern keeps each of the paths here. A name that no server can have is here for another reason.
async fn check_ignore(daemon: &Daemon, paths: &[String]) -> Event {
    let mut by = Vec::with_capacity(paths.len());
    for path in paths {
        let Ok(below) = RepoPath::parse(path) else {
            by.push(None);
            continue;
        };
        let whole = daemon.fs.root_path().concat(&below);
        match daemon.fs.why_ignored(&whole, path.ends_with('/')).await {
            Ok(why) => by.push(why),
            Err(error) => {
                let message = format!("{path}: {error}");
                return Event::Failed(Failure { message, hint: None, owed: false });
            }
        }
    }
    Event::Ignored { by }
}

/// What others staged in a workspace that is shared, as far as the server tells soon enough.
async fn others(daemon: &Daemon) -> Vec<Difference> {
    if !daemon.fs.is_shared() {
        return Vec::new();
    }
    match tokio::time::timeout(OTHERS_PATIENCE, daemon.fs.changes_of_others()).await {
        Ok(Ok(changes)) => changes,
        Ok(Err(error)) => {
            tracing::debug!(%error, "it is not known what others staged");
            Vec::new()
        }
        Err(_) => Vec::new(),
    }
}

/// Tells what happens until the command hangs up or the daemon ends.
async fn events(daemon: &Daemon, listener: &mut Listener) -> io::Result<()> {
    // First followed, then told how it is: what happens in between is told twice rather than not at all.
    let mut following = daemon.activity.follow();
    let begin = Happening::Following {
        mountpoint: daemon.mountpoint.display().to_string(),
        owed_files: daemon.fs.owed() as u64,
        stalled: daemon.meter.stalled(),
        offline: daemon.fs.is_offline(),
    };
    listener.tell(&Event::Happened { what: begin.now() }).await?;
    while let Some(event) = following.next().await {
        listener.tell(&Event::Happened { what: (*event).clone() }).await?;
    }
    Ok(())
}

/// Changes what is logged, if that is asked for; says what is.
fn log_level(level: Option<&str>) -> Event {
    let failed = |message: String| Event::Failed(Failure { message, hint: None, owed: false });
    if let Some(level) = level {
        let filter: log::Filter = match level.parse() {
            Ok(filter) => filter,
            Err(error) => return failed(format!("the level {error}")),
        };
        let shown = filter.to_string();
        if log::set_filter(filter) {
            tracing::info!(level = shown, "logging changes");
        }
    }
    match log::filter() {
        Some(filter) => Event::LogLevel { level: filter.to_string() },
        None => failed("the mount has no log".to_owned()),
    }
}

/// While one lives, the mount is not taken away.
struct Importing<'a>(&'a Daemon);

impl<'a> Importing<'a> {
    /// `None` when the mount is being taken away.
    fn new(daemon: &'a Daemon) -> Option<Self> {
        // First counted, then looked: whoever takes the mount away does it the other way round.
        daemon.imports.fetch_add(1, Ordering::SeqCst);
        let importing = Self(daemon);
        (*daemon.phase.borrow() == Phase::Mounted).then_some(importing)
    }
}

impl Drop for Importing<'_> {
    fn drop(&mut self) {
        self.0.imports.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn take_files(into: &[Name], stream: UnixStream, peer: Peer, daemon: &Arc<Daemon>) -> io::Result<()> {
    let (reader, writer) = stream.into_split();
    let mut listener = Listener { stream: writer };
    let fs = &daemon.fs;
    let found = match fs.find_dir(into) {
        Err(Stop::Need(need)) => fs.run(need, |fs| fs.find_dir(into)).await,
        Err(Stop::Error(error)) => Err(error),
        Ok(found) => Ok(found),
    };
    let into = match found {
        Ok(into) => into,
        Err(error) => {
            let hint =
                matches!(error, FsError::NotFound | FsError::Stale).then(|| "name a directory that is there".into());
            return listener.tell(&Event::Failed(Failure { message: error.to_string(), hint, owed: false })).await;
        }
    };
    let Some(_importing) = Importing::new(daemon) else {
        let message = "it is just being unmounted".to_owned();
        return listener.tell(&Event::Failed(Failure { message, hint: None, owed: false })).await;
    };
    let Ok(stream) = reader.reunite(listener.stream) else { return Err(io::ErrorKind::Other.into()) };
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    let last = stream.try_clone()?;
    let (fs, runtime) = (daemon.fs.clone(), tokio::runtime::Handle::current());
    let ended = tokio::task::spawn_blocking(move || import::take(stream, &fs, runtime, peer, into)).await?;
    // What the command says is there, everybody sees.
    daemon.fs.kernel_knows().await;
    // One that hung up is told as well: it waits to know that nothing changes any more.
    let _ = ended.inspect_err(|error| tracing::info!(%error, "an import ended early"));
    last.set_nonblocking(true)?;
    let (_reader, stream) = UnixStream::from_std(last)?.into_split();
    Listener { stream }.tell(&Event::Done).await
}

async fn sync(paths: &[String], before_commit: bool, daemon: &Daemon, listener: &mut Listener) -> io::Result<Event> {
    let mut wanted = HashSet::new();
    for path in paths {
        match RepoPath::parse(path) {
            Ok(path) => drop(wanted.insert(daemon.fs.root_path().concat(&path))),
            Err(error) => {
                let message = format!("{path}: {error}: it stays local");
                return Ok(Event::Failed(Failure { message, hint: None, owed: false }));
            }
        }
    }
    if wanted.is_empty() {
        wanted.insert(RepoPath::root());
    }
    if let Some(failure) = flush_mapped(daemon, |path| path.is_in_any(&wanted)).await {
        return Ok(Event::Failed(failure));
    }
    // Where it does not answer, the barrier waits for it.
    if let Err(error) = daemon.fs.look_at_workspace().await {
        tracing::debug!(%error, "it is not known whether the workspace is still there");
    }
    loop {
        let remade = daemon.fs.times_remade();
        let Some(waiting) = daemon.fs.barrier_below(wanted.clone()) else { break };
        let progress = follow(daemon, &waiting, listener).await?;
        match unstaged(daemon, &progress) {
            Some(failure) if !(before_commit && goes_with_commit(daemon)) => return Ok(Event::Failed(failure)),
            // What went with the workspace is waited for too.
            _ if daemon.fs.times_remade() != remade => {}
            _ => break,
        }
    }
    let ignored = daemon.fs.ignored_among(|path| path.is_in_any(&wanted));
    if ignored.files > 0 && !before_commit {
        listener.tell(&Event::Ignores(ignored)).await?;
    }
    Ok(Event::Done)
}

/// Whether all that is owed and has failed goes with the next commit.
fn goes_with_commit(daemon: &Daemon) -> bool {
    daemon.fs.waits_for_commit_alone().is_some_and(|paths| !paths.is_empty())
}

/// While this lives, the daemon ends only by the command that holds it. Dropped early, as when the command hangs up,
/// it leaves the daemon in the phase that fits then.
struct Taking<'a> {
    daemon: &'a Daemon,
    otherwise: Option<Phase>,
}

impl<'a> Taking<'a> {
    fn new(daemon: &'a Daemon) -> Self {
        let otherwise = Some(daemon.phase.send_replace(Phase::Unmounting));
        Self { daemon, otherwise }
    }
}

impl Drop for Taking<'_> {
    fn drop(&mut self) {
        if let Some(phase) = self.otherwise {
            self.daemon.phase.send_replace(phase);
        }
    }
}

/// Stages everything; the failure of what could not be.
async fn drain(daemon: &Daemon, listener: &mut Listener) -> io::Result<Option<Failure>> {
    loop {
        if let Some(failure) = flush_mapped(daemon, |_| true).await {
            return Ok(Some(failure));
        }
        let Some(waiting) = daemon.fs.barrier() else { return Ok(None) };
        let progress = follow(daemon, &waiting, listener).await?;
        if let Some(failure) = unstaged(daemon, &progress) {
            return Ok(Some(failure));
        }
        match daemon.fs.audit().await {
            Ok(true) => {}
            // What was confirmed since the others were is to be on stable storage too.
            Ok(false) if daemon.fs.is_drained() => {
                let flushed = daemon.fs.flush().await;
                return Ok(flushed.err().map(|error| Failure { message: error.to_string(), hint: None, owed: false }));
            }
            Ok(false) => {}
            Err(error) => return Ok(Some(Failure { message: error.to_string(), hint: None, owed: true })),
        }
    }
}

/// Drains while the mount still serves, unmounts, and drains what was written in between. After [`Event::Done`] the
/// caller ends the daemon.
async fn drain_and_unmount(daemon: &Arc<Daemon>, listener: &mut Listener) -> io::Result<Event> {
    if *daemon.phase.borrow() == Phase::Unmounting {
        let message = "another command is unmounting it".to_owned();
        return Ok(Event::Failed(Failure { message, hint: None, owed: !daemon.fs.is_drained() }));
    }
    let mounted = *daemon.phase.borrow() == Phase::Mounted;
    if mounted && let Some(failure) = drain_once(daemon, listener).await? {
        return Ok(Event::Failed(failure));
    }
    let mut taking = Taking::new(daemon);
    if mounted && daemon.imports.load(Ordering::SeqCst) > 0 {
        let message = "an import into it is under way".to_owned();
        let hint = Some("repeat the command when that has ended".to_owned());
        return Ok(Event::Failed(Failure { message, hint, owed: !daemon.fs.is_drained() }));
    }
    if mounted {
        if let Some(error) = detach(&daemon.mountpoint, How::Idle).await {
            let busy = matches!(error, UnmountError::Busy { .. });
            let hint = busy.then(|| "close what is open there, leave the directory, and repeat the command".to_owned());
            let message = error.to_string();
            return Ok(Event::Failed(Failure { message, hint, owed: !daemon.fs.is_drained() }));
        }
        taking.otherwise = Some(Phase::Draining);
        tracing::info!("unmounted");
    }
    if let Some(failure) = drain(daemon, listener).await? {
        return Ok(Event::Failed(failure));
    }
    taking.otherwise = None;
    Ok(Event::Done)
}

/// Stages what was written up to now; writers may go on.
async fn drain_once(daemon: &Daemon, listener: &mut Listener) -> io::Result<Option<Failure>> {
    if let Some(failure) = flush_mapped(daemon, |_| true).await {
        return Ok(Some(failure));
    }
    let Some(waiting) = daemon.fs.barrier() else { return Ok(None) };
    let progress = follow(daemon, &waiting, listener).await?;
    Ok(unstaged(daemon, &progress))
}
