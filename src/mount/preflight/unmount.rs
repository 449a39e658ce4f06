//! Taking a mount of ours away, and never anybody else's.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;

use super::probe;
use crate::mount::mountinfo;

/// How long the helper may take, and how often it is looked at.
const HELPER_PATIENCE: Duration = Duration::from_secs(10);
const HELPER_CHECK: Duration = Duration::from_millis(5);

/// How to unmount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Only when nobody uses it.
    Idle,
    /// From the tree at once; those who use it keep what they have open.
    Lazily,
    /// Also when its daemon does not answer: what waits for that fails.
    Forced,
}

/// Why a directory was not unmounted.
#[derive(Debug, thiserror::Error)]
pub enum UnmountError {
    /// Nothing is mounted there.
    #[error("nothing is mounted there")]
    NotMounted,
    /// Something else is mounted there.
    #[error("what is mounted there is {fs_type}, not oxenfs")]
    Foreign {
        /// Its type.
        fs_type: String,
    },
    /// Somebody has a file open on it or works in it.
    #[error("it is in use{}", describe(.users))]
    Busy {
        /// Those that could be found out: other users' processes are hidden from us.
        users: Vec<User>,
    },
    /// `fusermount3` is needed and not installed.
    #[error("fusermount3 is not installed")]
    NoHelper,
    /// It did not work for another reason.
    #[error("{0}")]
    Failed(io::Error),
}

/// A process that uses a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its id.
    pub pid: u32,
    /// Its command's name.
    pub command: String,
}

fn describe(users: &[User]) -> String {
    if users.is_empty() {
        return String::new();
    }
    let named: Vec<String> = users.iter().take(5).map(|user| format!("{} ({})", user.command, user.pid)).collect();
    let more = if users.len() > 5 { ", ..." } else { "" };
    format!(" by {}{more}", named.join(", "))
}

/// Unmounts `mountpoint`, a path without symbolic links, if what is on top there is ours. Does not touch the mount
/// itself before: its daemon may be gone.
///
/// # Errors
/// [`UnmountError::Busy`] under [`How::Idle`] when somebody uses it.
pub fn unmount(mountpoint: &Path, how: How) -> Result<(), UnmountError> {
    check_ours(mountpoint)?;
    by_kernel(rustix::mount::unmount(mountpoint, how.flags()).map_err(io::Error::from), mountpoint, how)
}

/// [`unmount`] for a command, which waits for no daemon: one that does not answer has the mount taken from it.
///
/// # Errors
/// As [`unmount`].
pub fn unmount_in_time(mountpoint: &Path, how: How) -> Result<(), UnmountError> {
    check_ours(mountpoint)?;
    let before = ours_at(mountpoint)?;
    let mut done = by_kernel(probe::unmount(mountpoint, how.flags()), mountpoint, how);
    for last in [false, true] {
        let timed_out = |error: &io::Error| error.kind() == io::ErrorKind::TimedOut;
        if !matches!(&done, Err(UnmountError::Failed(error)) if timed_out(error)) {
            return done;
        }
        // It was taken from the tree before what waits for its daemon began.
        if ours_at(mountpoint)? < before {
            return Ok(());
        }
        if !last {
            let lazily = How::Lazily;
            done = by_kernel(probe::unmount(mountpoint, lazily.flags()), mountpoint, lazily);
        }
    }
    done
}

impl How {
    fn flags(self) -> UnmountFlags {
        UnmountFlags::NOFOLLOW
            | match self {
                Self::Idle => UnmountFlags::empty(),
                Self::Lazily => UnmountFlags::DETACH,
                Self::Forced => UnmountFlags::FORCE,
            }
    }
}

/// How many mounts of ours lie on each other at `mountpoint`.
fn ours_at(mountpoint: &Path) -> Result<usize, UnmountError> {
    let mounts = mountinfo::all().map_err(UnmountError::Failed)?;
    Ok(mounts.iter().filter(|mount| mount.mountpoint == mountpoint && mount.is_ours()).count())
}

fn check_ours(mountpoint: &Path) -> Result<(), UnmountError> {
    let mount = mountinfo::top(mountpoint).map_err(UnmountError::Failed)?;
    let mount = mount.ok_or(UnmountError::NotMounted)?;
    if mount.is_ours() { Ok(()) } else { Err(UnmountError::Foreign { fs_type: mount.fs_type }) }
}

/// What the kernel's answer means; where it lets root alone unmount, the helper does.
fn by_kernel(answer: io::Result<()>, mountpoint: &Path, how: How) -> Result<(), UnmountError> {
    match answer.map_err(|error| (error.raw_os_error(), error)) {
        Ok(()) => Ok(()),
        Err((Some(libc::EBUSY), _)) => Err(UnmountError::Busy { users: users_of(mountpoint) }),
        Err((Some(libc::EPERM), _)) => unmount_by_helper(mountpoint, how),
        Err((_, error)) => Err(UnmountError::Failed(error)),
    }
}

/// The way for everybody but root: a helper that is allowed to unmount what its caller mounted.
fn unmount_by_helper(mountpoint: &Path, how: How) -> Result<(), UnmountError> {
    let mut command = Command::new("fusermount3");
    command.args(match how {
        How::Idle | How::Forced => &["-u", "--"][..],
        How::Lazily => &["-u", "-z", "--"],
    });
    command.arg(mountpoint).env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => UnmountError::NoHelper,
        _ => UnmountError::Failed(error),
    })?;
    let deadline = Instant::now() + HELPER_PATIENCE;
    while child.try_wait().map_err(UnmountError::Failed)?.is_none() {
        if Instant::now() >= deadline {
            // It may not be possible to end it: then it is left behind.
            let _ = child.kill();
            return Err(UnmountError::Failed(io::Error::from_raw_os_error(libc::ETIMEDOUT)));
        }
        std::thread::sleep(HELPER_CHECK);
    }
    // It has ended, and says a line at most.
    let output = child.wait_with_output().map_err(UnmountError::Failed)?;
    if output.status.success() {
        return Ok(());
    }
    // The helper has one exit code for everything; EBUSY is told by asking who is there.
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    let users = users_of(mountpoint);
    if said.ends_with("Device or resource busy") || !users.is_empty() {
        return Err(UnmountError::Busy { users });
    }
    Err(UnmountError::Failed(io::Error::other(said)))
}

/// Processes with a file, directory or program of `mountpoint` in use, found by their links in `/proc` alone: asking
/// the mount itself could block.
pub fn users_of(mountpoint: &Path) -> Vec<User> {
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let uses = |link: PathBuf| std::fs::read_link(link).is_ok_and(|target| target.starts_with(mountpoint));
    let mut users = Vec::new();
    for process in processes.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let dir = process.path();
        let open = std::fs::read_dir(dir.join("fd")).into_iter().flatten().flatten();
        if ["cwd", "root", "exe"].iter().any(|link| uses(dir.join(link))) || open.map(|fd| fd.path()).any(uses) {
            let command = std::fs::read_to_string(dir.join("comm")).unwrap_or_default();
            let command = command.trim().to_owned();
            users.push(User { pid, command });
        }
    }
    users
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_no_mount_of_ours_is_left_alone() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().canonicalize().unwrap();
        assert!(matches!(unmount(&path, How::Lazily), Err(UnmountError::NotMounted)));
        let foreign = unmount(Path::new("/proc"), How::Lazily);
        assert!(matches!(foreign, Err(UnmountError::Foreign { .. })), "{foreign:?}");
    }

    #[test]
    fn those_who_use_a_directory_are_found() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().canonicalize().unwrap();
        assert!(users_of(&path).is_empty());
        let _open = std::fs::File::create(path.join("f")).unwrap();
        let users = users_of(&path);
        assert_eq!(users[0].pid, std::process::id());
    }
}
