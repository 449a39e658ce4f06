//! A mount namespace of this process and its children, in which a mount is that nobody else sees, and that goes with them.
//!
//! As root `unshare(CLONE_NEWNS)` does; else a user namespace comes with it, in which this process keeps its user and group
//! (`user_namespaces(7)`), and only it and the daemon have the right to mount, as an ambient capability
//! (`capabilities(7)`): the command is as it would be without.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::{
    CapabilitySet, UnshareFlags, capabilities, clear_ambient_capability_set, configure_capability_in_ambient_set,
    set_capabilities, unshare_unsafe,
};

/// Where the mount is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespace {
    /// In a mount namespace of its own.
    Mount,
    /// In one that has a user namespace of its own.
    User,
    /// In that of everybody.
    Host,
}

impl Namespace {
    /// In a word, for programs.
    pub fn said(self) -> &'static str {
        match self {
            Self::Mount => "mount",
            Self::User => "user",
            Self::Host => "host",
        }
    }
}

/// Moves this process into a mount namespace of its own, where that can be done. It must have one thread.
pub fn enter() -> Namespace {
    let (wanted, enter): (_, fn() -> io::Result<()>) = match rustix::process::geteuid().is_root() {
        true => (Namespace::Mount, by_root),
        false => (Namespace::User, by_user),
    };
    // What works half-way cannot be undone, so it is tried by a child first.
    match tried(enter) && enter().is_ok() {
        true => wanted,
        false => Namespace::Host,
    }
}

fn tried(enter: fn() -> io::Result<()>) -> bool {
    // SAFETY: there is one thread, so the child may do what this process may.
    match unsafe { libc::fork() } {
        0 => {
            let exit = i32::from(enter().is_err());
            // SAFETY: ends the child, without what this process does at its end.
            unsafe { libc::_exit(exit) }
        }
        child if child > 0 => {
            let mut status = 0;
            // SAFETY: `status` is there for the answer.
            let waited = unsafe { libc::waitpid(child, &mut status, 0) };
            waited == child && libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
        }
        _ => false,
    }
}

fn by_root() -> io::Result<()> {
    // SAFETY: one thread, which shares no files by that.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
    ours_alone()
}

fn by_user() -> io::Result<()> {
    let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    // SAFETY: as above.
    unsafe { unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS) }?;
    // Without it nobody may map a group.
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("{group} {group} 1"))?;
    let mut sets = capabilities(None)?;
    sets.inheritable |= CapabilitySet::SYS_ADMIN;
    set_capabilities(None, sets)?;
    configure_capability_in_ambient_set(CapabilitySet::SYS_ADMIN, true)?;
    ours_alone()
}

/// What is mounted elsewhere from now on shows here, and not the other way round.
fn ours_alone() -> io::Result<()> {
    Ok(mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?)
}

/// The command has no right that it would not have otherwise.
pub fn without_rights(command: &mut Command) {
    // SAFETY: a system call.
    unsafe {
        command.pre_exec(|| clear_ambient_capability_set().map_err(io::Error::from));
    }
}
