//! `umount.fuse.oxenfs`, as `umount(8)` calls it for a mount of type `fuse.oxenfs`, and with that `systemctl stop` and a
//! shutdown: waits for the drain, not for long, and unmounts whatever becomes of that.
//!
//! What is another's, by the name of any FUSE mount, `umount -i` unmounts. It unmounts by the system call itself, or by `fusermount3`, which calls `umount -i`: none of them calls a helper again.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::args::UmountArgs;
use super::failure::{Failure, mount_command, quoted};
use super::find::{self, Finder, connect_now, owed, status_by};
use super::follow::{Deadline, End, Patience, follow_while_it_goes_on};
use super::output::{all_but, changes_are, note};
use super::repo::place;
use super::seams;
use crate::config::{DEFAULT_DRAIN_TIMEOUT, Environment};
use crate::control::{Request, Status};
use crate::mount::mountinfo;
use crate::mount::preflight::{self, How, UnmountError};
use crate::mount::state_dir::Known;

/// The names by which `umount(8)` looks for it in `/sbin`: the mount's type, as systemd's `umount -c` reads it from the
/// kernel's table; and what `umount DIR` asks `statfs(2)` for, which knows no subtype (util-linux 2.38, tried).
pub const NAMES: [&str; 2] = ["umount.fuse.oxenfs", ANY_FUSE];

/// Called by this, it may be about any FUSE mount.
const ANY_FUSE: &str = "umount.fuse";

/// Exit codes of `umount(8)`: interrupted by the user, and not unmounted.
const INTERRUPTED: u8 = 8;
const NOT_UNMOUNTED: u8 = 32;

/// How long a server is waited for that does not answer: as long as the daemon says so; or as long as nothing of what is
/// sent arrives, and then the time in which it has to say what it is.
const STALL_PATIENCE: Duration = Duration::from_secs(5);
const QUIET_PATIENCE: Duration = Duration::from_secs(3);
const LOOK_PATIENCE: Duration = Duration::from_secs(2);
/// How long a daemon may take to say how it is.
const STATUS_PATIENCE: Duration = Duration::from_secs(5);
/// How long those who use the mount are waited for: a process that is just being started, say.
const IN_USE_PATIENCE: Duration = Duration::from_secs(1);
const IN_USE_CHECK: Duration = Duration::from_millis(20);

/// `umount.fuse.oxenfs`, or what else it was `called`.
pub fn helper(called: &str, args: UmountArgs, environment: &Environment) -> Result<u8, Failure> {
    if called == ANY_FUSE && args.namespace.is_none() && !is_ours(&args.dir) {
        return Err(Failure { exit: NOT_UNMOUNTED, ..Failure::new(without_helper(&args)) });
    }
    let what = format!("cannot unmount {}", quoted(&args.dir));
    unmount(&args, environment).map_err(|failure| {
        let exit = if failure.exit == INTERRUPTED { INTERRUPTED } else { NOT_UNMOUNTED };
        Failure { exit, ..failure }.doing(what)
    })
}

/// Whether a mount of ours is there.
fn is_ours(dir: &Path) -> bool {
    find::real(dir).is_ok_and(|dir| mountinfo::top(&dir).is_ok_and(|mount| mount.is_some_and(|mount| mount.is_ours())))
}

/// Has `umount(8)` do what it would have done without a helper; returns where that cannot be run.
fn without_helper(args: &UmountArgs) -> io::Error {
    let options =
        [(args.lazy, "-l"), (args.force, "-f"), (args.no_mtab, "-n"), (args.read_only, "-r"), (args.verbose, "-v")];
    let given = options.into_iter().filter(|(given, _)| *given).map(|(_, option)| option);
    Command::new("umount").arg("-i").args(given).arg("--").arg(&args.dir).exec()
}

fn unmount(args: &UmountArgs, environment: &Environment) -> Result<u8, Failure> {
    if let Some(namespace) = &args.namespace {
        enter(namespace).map_err(Failure::new)?;
    }
    let dir = find::real(&args.dir)?;
    match mountinfo::top(&dir).map_err(Failure::new)? {
        None => return Err(UnmountError::NotMounted.into()),
        Some(mount) if !mount.is_ours() => return Err(UnmountError::Foreign { fs_type: mount.fs_type }.into()),
        Some(_) => {}
    }
    let at_once = match (args.lazy, args.force) {
        (true, _) => Some(How::Lazily),
        (false, true) => Some(How::Forced),
        (false, false) => None,
    };
    if let Some(how) = at_once {
        preflight::unmount_in_time(&dir, how)?;
        return Ok(0);
    }
    check_idle(&dir)?;
    // Where nothing can be found out, it is unmounted all the same.
    let finder = Finder::new(None, environment).inspect_err(|failure| note(failure.to_string().trim_end())).ok();
    let known = finder.iter().flat_map(|finder| finder.at(&dir)).find(|known| known.holder().is_some());
    let (why, silent) = match known.map(|known| drain(known, environment)) {
        Some(Drained::Unmounted) => return Ok(0),
        Some(Drained::Interrupted) => {
            let cause = "interrupted; it is still mounted, and what is left is sent in the background";
            return Err(Failure { exit: INTERRUPTED, ..Failure::new(cause) });
        }
        Some(Drained::Not(failure)) => (Some(failure), false),
        Some(Drained::Silent(failure)) => (Some(failure), true),
        None => (None, false),
    };
    match preflight::unmount_in_time(&dir, How::Idle) {
        // Those who use it wait for the daemon in the middle of opening something.
        Err(UnmountError::Busy { .. }) if silent => preflight::unmount_in_time(&dir, How::Lazily)?,
        Ok(()) | Err(UnmountError::NotMounted) => {}
        Err(error) => return Err(error.into()),
    }
    // Of a daemon that is gone, the last one that was mounted here.
    let last = finder.iter().flat_map(|finder| finder.at(&dir)).next();
    if let Some(known) = known.or(last) {
        tell(&dir, known, why.as_ref());
    }
    Ok(0)
}

/// What became of the drain.
enum Drained {
    /// All is on the server, and nothing mounted any more.
    Unmounted,
    /// By the user.
    Interrupted,
    /// Not all of it is on the server.
    Not(Failure),
    /// The daemon does not answer.
    Silent(Failure),
}

/// Waits until all is on the server, for as long as the mount was told to.
fn drain(known: &Known, environment: &Environment) -> Drained {
    let look = || silent_server(known, environment);
    let patience = Patience { stalled: STALL_PATIENCE, quiet: QUIET_PATIENCE, look: &look };
    let followed = connect_now(known).and_then(|stream| {
        let Some(stream) = stream else { return Err(Failure::new("its daemon has ended")) };
        let status = status_by(known, stream, Deadline::after(Some(STATUS_PATIENCE)))?;
        let timeout = status.drain_timeout_secs.map_or(DEFAULT_DRAIN_TIMEOUT, Duration::from_secs);
        let Some(stream) = connect_now(known)? else { return Err(Failure::new("its daemon has ended")) };
        let deadline = Deadline::after(Some(timeout));
        follow_while_it_goes_on(known, stream, &Request::Unmount, deadline, Some(&patience))
    });
    match followed {
        Ok(End::Done(..) | End::Committed(..)) => Drained::Unmounted,
        Ok(End::GaveUp(why)) if why.is_interrupted() => Drained::Interrupted,
        Ok(End::GaveUp(why)) => Drained::Not(Failure::new(why)),
        Ok(End::Refused(refusal)) => Drained::Not(refusal.into()),
        Err(failure) => Drained::Silent(failure),
    }
}

/// That the server of a mount does not say what it is, if that is so.
fn silent_server(known: &Known, environment: &Environment) -> Option<String> {
    let identity = &known.meta.identity;
    let place = place(&identity.repo, Some(&identity.server), environment).ok()?;
    // A refusal is an answer; nothing here hangs on what it says.
    let answers = seams::answers_within(&place, LOOK_PATIENCE);
    (!answers).then(|| format!("{} does not answer", identity.server))
}

/// Refuses a mount that somebody uses before anything is waited for.
fn check_idle(dir: &Path) -> Result<(), Failure> {
    let deadline = Instant::now() + IN_USE_PATIENCE;
    loop {
        let users = preflight::users_of(dir);
        if users.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(UnmountError::Busy { users }.into());
        }
        std::thread::sleep(IN_USE_CHECK);
    }
}

/// Says what the server does not have yet, and what becomes of that.
fn tell(dir: &Path, known: &Known, why: Option<&Failure>) {
    let running = connect_now(known).ok().flatten();
    let running = running.and_then(|stream| status_by(known, stream, Deadline::after(Some(STATUS_PATIENCE))).ok());
    let goes_on = running.as_ref().map(|status: &Status| status.pid);
    let Some(status) = running.or_else(|| seams::offline_status(&known.path).ok()) else { return };
    let (files, content) = owed(&status);
    if files == 0 {
        return;
    }
    let changes = changes_are(files, content);
    let cause = why.map_or_else(String::new, |why| format!(" ({})", why.cause));
    let but = all_but(&status.counts);
    note(format_args!("unmounted {}; {changes} not on the server yet, and safe on this disk{but}{cause}", quoted(dir)));
    match (goes_on, why.and_then(|why| why.hint.as_ref())) {
        (Some(pid), _) => note(format_args!("process {pid} goes on sending; oxenfs status shows how far it is")),
        (None, Some(hint)) => note(format_args!("hint: {hint}")),
        (None, None) => note(format_args!("hint: mount again to send them: {}", mount_command(known))),
    }
}

/// Goes to a mount namespace, named by a process or a file.
fn enter(namespace: &Path) -> io::Result<()> {
    let is_process = namespace.to_str().is_some_and(|text| text.parse::<u32>().is_ok());
    let path = if is_process { Path::new("/proc").join(namespace).join("ns/mnt") } else { PathBuf::from(namespace) };
    let file = std::fs::File::open(path)?;
    // SAFETY: this process has one thread, which an open file names the namespace of.
    match unsafe { libc::setns(std::os::fd::AsRawFd::as_raw_fd(&file), libc::CLONE_NEWNS) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
