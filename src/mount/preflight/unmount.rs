//! Taking a mount of ours away, and never anybody else's.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::mount::UnmountFlags;

use super::mountinfo;

/// How to unmount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Only when nobody uses it.
    Idle,
    /// From the tree at once; those who use it keep what they have open.
    Lazily,
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
    let mount = mountinfo::top(mountpoint).map_err(UnmountError::Failed)?;
    let mount = mount.ok_or(UnmountError::NotMounted)?;
    if !mount.is_ours() {
        return Err(UnmountError::Foreign { fs_type: mount.fs_type });
    }
    let flags = match how {
        How::Idle => UnmountFlags::NOFOLLOW,
        How::Lazily => UnmountFlags::NOFOLLOW | UnmountFlags::DETACH,
    };
    match rustix::mount::unmount(mountpoint, flags) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::BUSY) => Err(UnmountError::Busy { users: users_of(mountpoint) }),
        Err(rustix::io::Errno::PERM) => unmount_by_helper(mountpoint, how),
        Err(errno) => Err(UnmountError::Failed(errno.into())),
    }
}

/// The way for everybody but root: a helper that is allowed to unmount what its caller mounted.
fn unmount_by_helper(mountpoint: &Path, how: How) -> Result<(), UnmountError> {
    let mut command = Command::new("fusermount3");
    command.args(match how {
        How::Idle => &["-u", "--"][..],
        How::Lazily => &["-u", "-z", "--"],
    });
    let output =
        command.arg(mountpoint).env("LC_ALL", "C").stdin(Stdio::null()).output().map_err(|error| {
            match error.kind() {
                io::ErrorKind::NotFound => UnmountError::NoHelper,
                _ => UnmountError::Failed(error),
            }
        })?;
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
