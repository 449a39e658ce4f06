//! From the path that a user typed to the mount that it means, and to the daemon of that mount.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::failure::{Failure, mount_command, quoted};
use super::follow::Deadline;
use super::output::warn;
use super::vigil::{self, Vigil};
use crate::config::Environment;
use crate::control::client::Next;
use crate::control::{Event, Request, Status};
use crate::mount::preflight;
use crate::mount::state_dir::{self, Known, StateDir, StateError};

/// How long a daemon may take to say how it is: it answers from memory.
const STATUS_PATIENCE: Duration = Duration::from_secs(10);
/// How long one may take to begin to listen, or to end when it listens no more, and how often that is looked at.
const CHANGE_PATIENCE: Duration = Duration::from_secs(5);
const CHANGE_CHECK: Duration = Duration::from_millis(20);
/// How often one that says nothing is looked at.
const TICK: Duration = Duration::from_millis(200);

/// Looks mounts up by their state directories.
pub struct Finder {
    root: PathBuf,
    known: Vec<Known>,
    gone: Vec<PathBuf>,
}

impl Finder {
    /// Reads what is in the state root; warns of what cannot be read.
    ///
    /// # Errors
    /// When there can be no root, or it cannot be read.
    pub fn new(state_dir: Option<&Path>, environment: &Environment) -> Result<Self, Failure> {
        let root = match state_dir {
            Some(dir) => state_dir::resolve_existing(dir),
            None => environment.state_root()?,
        };
        let listing = StateDir::list(&root)?;
        for (path, error) in &listing.unreadable {
            match error {
                StateError::NotOurs { .. } => warn(format_args!("{error}: nothing in it is believed")),
                _ => warn(format_args!("{error}; what {} holds is kept", quoted(path))),
            }
        }
        Ok(Self { root, known: listing.known, gone: listing.gone })
    }

    /// Where it looks.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What is left of state directories that were removed.
    pub fn gone(&self) -> &[PathBuf] {
        &self.gone
    }

    /// All state directories.
    pub fn all(&self) -> &[Known] {
        &self.known
    }

    /// Those that are, or were last, mounted at exactly `dir`.
    pub fn at(&self, dir: &Path) -> Vec<&Known> {
        self.known.iter().filter(|known| known.meta.identity.mountpoint == dir).collect()
    }

    /// The mount that `path`, without symbolic links, lies in: the deepest mount point above it, there the one that
    /// has a daemon.
    pub fn above(&self, path: &Path) -> Option<&Known> {
        let mount_of = |known: &&Known| path.starts_with(&known.meta.identity.mountpoint);
        self.known.iter().filter(mount_of).max_by_key(|known| {
            let depth = known.meta.identity.mountpoint.components().count();
            (depth, known.holder().is_some())
        })
    }

    /// The mount above `path` and its daemon.
    ///
    /// # Errors
    /// When there is none, or it has no daemon.
    pub fn running(&self, path: &Path) -> Result<(&Known, UnixStream), Failure> {
        self.running_by(path, Deadline::after(None))
    }

    /// [`running`](Self::running), without waiting past a deadline.
    ///
    /// # Errors
    /// As [`running`](Self::running).
    pub fn running_by(&self, path: &Path, deadline: Deadline) -> Result<(&Known, UnixStream), Failure> {
        let Some(known) = self.above(path) else {
            return Err(Failure::new("no oxenfs mount is there").hint("oxenfs status lists the mounts"));
        };
        match connect_by(known, deadline)? {
            Some(stream) => Ok((known, stream)),
            None => Err(Failure::new("its daemon does not run; what was written is safe on this disk")
                .hint(format_args!("mount it again: {}", mount_command(known)))),
        }
    }
}

/// `path` from the root and without symbolic links, as far as it exists: neither a broken mount nor a removed
/// directory keeps it from being found.
pub fn real(path: &Path) -> Result<PathBuf, Failure> {
    match preflight::resolve(path) {
        Ok(real) => Ok(real),
        // The daemon of the mount is then asked by another way, and its failure says what to do.
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            preflight::resolve_up_to_mounts(path).map_err(Failure::new)
        }
        Err(_) => {
            let absolute = std::path::absolute(path).map_err(Failure::new)?;
            Ok(state_dir::resolve_existing(&absolute))
        }
    }
}

/// A connection to the daemon; `None` when none runs. Waits for one that is just starting or ending.
///
/// # Errors
/// When one runs and cannot be reached.
pub fn connect(known: &Known) -> Result<Option<UnixStream>, Failure> {
    connect_within(known, CHANGE_PATIENCE)
}

/// [`connect`], without waiting past a deadline.
///
/// # Errors
/// As [`connect`].
pub fn connect_by(known: &Known, deadline: Deadline) -> Result<Option<UnixStream>, Failure> {
    connect_within(known, deadline.or_sooner(CHANGE_PATIENCE))
}

/// [`connect`], without waiting.
///
/// # Errors
/// As [`connect`]; also when one is just starting or ending.
pub fn connect_now(known: &Known) -> Result<Option<UnixStream>, Failure> {
    connect_within(known, Duration::ZERO)
}

fn connect_within(known: &Known, patience: Duration) -> Result<Option<UnixStream>, Failure> {
    let deadline = Instant::now() + patience;
    let identity = &known.meta.identity;
    let mut vigil = Vigil::new(&known.path, &identity.mountpoint, known.holder(), mount_command(known));
    loop {
        match state_dir::connect_control(&known.path) {
            Ok(stream) => return Ok(Some(stream)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                let Some(pid) = known.holder() else { return Ok(None) };
                if Instant::now() >= deadline {
                    return Err(Failure::new(format_args!("process {pid} is just starting it, or just ending"))
                        .hint("repeat the command in a moment"));
                }
            }
            // It accepts nobody: more wait than there is room for.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => vigil.check()?,
            Err(error) => return Err(Failure::new(format_args!("its daemon cannot be reached: {error}"))),
        }
        std::thread::sleep(CHANGE_CHECK);
    }
}

/// How a mount's daemon is; `None` when none runs, also when it ends just now: a command may follow right after a kill.
///
/// # Errors
/// When one runs and does not answer.
pub fn running_by(known: &Known, deadline: Deadline) -> Result<Option<Status>, Failure> {
    let Some(stream) = connect_by(known, deadline)? else { return Ok(None) };
    status_by(known, stream, deadline).map(Some).or_else(|failure| match connect_by(known, deadline) {
        Ok(None) => Ok(None),
        _ => Err(failure),
    })
}

/// Asks a daemon how it is.
///
/// # Errors
/// When it does not answer.
pub fn status_of(known: &Known, stream: UnixStream) -> Result<Status, Failure> {
    status_by(known, stream, Deadline::after(None))
}

/// [`status_of`], without waiting past a deadline.
///
/// # Errors
/// As [`status_of`].
pub fn status_by(known: &Known, stream: UnixStream, deadline: Deadline) -> Result<Status, Failure> {
    let vigil = Vigil::over(known, &stream);
    status_while(vigil, stream, deadline)
}

/// [`status_by`], for a daemon that is watched.
///
/// # Errors
/// As [`status_of`].
pub fn status_while(mut vigil: Vigil, stream: UnixStream, deadline: Deadline) -> Result<Status, Failure> {
    let began = Instant::now();
    let patience = deadline.or_sooner(STATUS_PATIENCE);
    let mut client = vigil::asked(&vigil, stream, &Request::Status)?;
    loop {
        match client.next(patience.saturating_sub(began.elapsed()).min(TICK))? {
            Next::Event(Event::Status(status)) => return Ok(*status),
            Next::Event(Event::Failed(failure)) => return Err(failure.into()),
            Next::Event(_) => return Err(crate::control::client::ClientError::NotUnderstood.into()),
            Next::Nothing if began.elapsed() >= patience => {
                let within = patience.as_secs_f64().ceil();
                let silent = || Failure::new(format_args!("the mount's daemon did not answer within {within} s"));
                return Err(vigil.reason().unwrap_or_else(silent));
            }
            Next::Nothing => vigil.check()?,
        }
    }
}

/// Files and bytes that the server does not have yet; removals count as files.
pub fn owed(status: &Status) -> (u64, u64) {
    status.counts.owed()
}

/// Looks at all mounts at once, a few at a time: one that does not answer takes seconds.
pub fn at_once<'a, T: Send>(mounts: &[&'a Known], look: impl Fn(&'a Known) -> T + Sync) -> Vec<T> {
    const AT_A_TIME: usize = 16;
    let mut seen = Vec::with_capacity(mounts.len());
    for some in mounts.chunks(AT_A_TIME) {
        std::thread::scope(|scope| {
            let look = &look;
            let spawn = |known: &&'a Known| {
                let known = *known;
                std::thread::Builder::new().spawn_scoped(scope, move || look(known))
            };
            let looking: Vec<_> = some.iter().map(spawn).collect();
            for (looking, known) in looking.into_iter().zip(some) {
                seen.push(match looking {
                    Ok(looking) => looking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                    // There is no thread to be had.
                    Err(_) => look(known),
                });
            }
        });
    }
    seen
}
