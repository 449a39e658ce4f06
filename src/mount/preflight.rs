//! What is checked before anything is mounted, each failure with the act that mends it; and unmounting.

mod place;
mod probe;
mod unmount;

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

pub use place::{Claim, Place};
pub use probe::{Behind, behind};
pub use unmount::{How, UnmountError, User, unmount, unmount_in_time, users_of};

use super::mountinfo::{self, FS_NAME};
use super::state_dir::{self, StateError};
use crate::config::{ConfigError, MountSettings};
use crate::fuse::device::may_mount;

/// The source that the kernel's table shows for a mount of `repo` on `server`.
pub fn fs_source(settings: &MountSettings) -> String {
    format!("{FS_NAME}:{}/{}", settings.server, settings.repo)
}

/// Why nothing can be mounted.
#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    /// No such directory.
    #[error("{} does not exist", .0.display())]
    Missing(PathBuf),
    /// Something else.
    #[error("{} is not a directory", .0.display())]
    NotADirectory(PathBuf),
    /// A mount would hide what is in it.
    #[error("{} is not empty", .0.display())]
    NotEmpty(PathBuf),
    /// Somebody put something else in its place, or is about to.
    #[error("{} was moved or replaced while it was looked at", .0.display())]
    Moved(PathBuf),
    /// A mount of ours is there.
    #[error("oxenfs is already mounted at {}", .0.display())]
    AlreadyMounted(PathBuf),
    /// Another mount is there.
    #[error("{} is already a mount point, of type {fs_type}", .path.display())]
    ForeignMount {
        /// The directory.
        path: PathBuf,
        /// What is mounted there.
        fs_type: String,
    },
    /// A mount that it lies in does not answer.
    #[error("a mount that {} lies in does not answer", .0.display())]
    Unanswered(PathBuf),
    /// A mount whose process is gone, and not one of ours.
    #[error("{} holds a broken mount of type {fs_type}", .path.display())]
    ForeignStale {
        /// The directory.
        path: PathBuf,
        /// What was mounted there.
        fs_type: String,
    },
    /// A mount of ours whose daemon is gone, and that could not be taken away.
    #[error("cannot remove the broken mount at {}: {source}", .path.display())]
    Stale {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: UnmountError,
    },
    /// The directory is not ours to write, which `fusermount3` demands.
    #[error("you may not write to {}", .0.display())]
    NotWritable(PathBuf),
    /// The kernel has no FUSE, or the container was not given it.
    #[error("/dev/fuse does not exist")]
    NoDevice,
    /// The device is there and cannot be opened.
    #[error("/dev/fuse cannot be opened: {0}")]
    DeviceRefused(io::Error),
    /// Root in a container that was not given the right to mount.
    #[error("this process has no right to mount (CAP_SYS_ADMIN)")]
    NoRight,
    /// Not root, and no helper.
    #[error("fusermount3 is not installed")]
    NoHelper,
    /// `--allow-other` needs the administrator's consent.
    #[error("/etc/fuse.conf does not allow --allow-other")]
    OthersNotAllowed,
    /// A limit of memory that no daemon can live with.
    #[error("this process may take {} MiB of memory alone ({option}), and the daemon takes {} MiB", .has >> 20, .least >> 20)]
    LittleMemory {
        /// What set it.
        option: &'static str,
        /// What it is.
        has: u64,
        /// What it has to be.
        least: u64,
    },
    /// A limit on the length of files that leaves no room for the record of changes.
    #[error("this process may write files of {} MiB alone (ulimit -f), and the record of changes takes {} MiB", .has >> 20, .least >> 20)]
    ShortFiles {
        /// What it is.
        has: u64,
        /// What it has to be.
        least: u64,
    },
    /// The place for data that the server lacks.
    #[error(transparent)]
    State(#[from] StateError),
    /// The directory cannot be examined.
    #[error("cannot examine {}: {source}", .path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Where a mount may begin, and what the user should know.
#[derive(Debug)]
pub struct Checked {
    /// The mount point; its path has no symbolic links.
    pub place: Place,
    /// The state root without symbolic links.
    pub state_root: PathBuf,
    /// What to tell the user.
    pub warnings: Vec<Warning>,
}

/// What does not prevent a mount.
#[derive(Debug, thiserror::Error)]
pub enum Warning {
    /// About the place for data that the server lacks.
    #[error(transparent)]
    State(state_dir::Warning),
    /// A mount of ours was there whose daemon had died.
    #[error("removed the broken mount that an oxenfs which ended left at {}", .0.display())]
    RemovedStale(PathBuf),
    /// Longer files fail.
    #[error("files longer than {} MiB cannot be written: ulimit -f", .0 >> 20)]
    LimitedFiles(u64),
    /// A token may be there and cannot be looked at: the server may want none.
    #[error("{0}; going on without a token")]
    NoToken(ConfigError),
    /// The token can be read on the way.
    #[error("the token travels unencrypted to {0}")]
    TokenExposed(String),
}

/// Checks everything that can be checked without the server. The one thing it changes is to take away a mount of ours
/// at the mount point whose daemon is gone; and it makes the state root.
///
/// # Errors
/// The first check that fails.
pub fn check(settings: &MountSettings) -> Result<Checked, PreflightError> {
    let mut warnings = Vec::new();
    check_device()?;
    check_limits(&mut warnings)?;
    let place = check_mountpoint(&settings.mountpoint, &mut warnings)?;
    if !may_mount() {
        check_helper()?;
        if rustix::fs::access(place.through(), rustix::fs::Access::WRITE_OK).is_err() {
            return Err(PreflightError::NotWritable(place.path().to_owned()));
        }
        if settings.access.allow_other && !others_allowed() {
            return Err(PreflightError::OthersNotAllowed);
        }
    }
    let (state_root, about_state) = state_dir::prepare_root(&settings.state_root, place.path())?;
    warnings.extend(about_state.into_iter().map(Warning::State));
    match settings.credentials.try_read() {
        Ok(Some(_)) if settings.server.is_exposed() => {
            warnings.push(Warning::TokenExposed(settings.server.to_string()));
        }
        Err(error) => warnings.push(Warning::NoToken(error)),
        Ok(_) => {}
    }
    Ok(Checked { place, state_root, warnings })
}

/// `path` without symbolic links, also when a mount there is broken: its own name is then taken as it is.
///
/// # Errors
/// When it, or the directory it is in, cannot be found; [`io::ErrorKind::TimedOut`] when a mount that lies in its way does
/// not answer.
pub fn resolve(path: &Path) -> io::Result<PathBuf> {
    let error = match probe::real_path(path) {
        Ok(real) => return Ok(real),
        Err(error) => error,
    };
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::TimedOut) => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            Ok(probe::real_path(parent)?.join(name))
        }
        _ => Err(error),
    }
}

/// `path` from the root, its links followed as far as no process behind a mount has to be asked: the rest is taken as it
/// is written.
///
/// # Errors
/// When the working directory or the kernel's table of mounts cannot be read.
pub fn resolve_up_to_mounts(path: &Path) -> io::Result<PathBuf> {
    const LINKS: usize = 40;
    let mounts = mountinfo::all()?;
    let of_process =
        |path: &Path| mounts.iter().any(|mount| mount.is_of_process() && path.starts_with(&mount.mountpoint));
    let mut rest: VecDeque<OsString> =
        std::path::absolute(path)?.components().map(|part| part.as_os_str().into()).collect();
    let (mut real, mut links) = (PathBuf::from("/"), 0);
    while let Some(part) = rest.pop_front() {
        if part == ".." {
            real.pop();
            continue;
        }
        let next = real.join(&part);
        if of_process(&next) || links == LINKS {
            real = next;
            continue;
        }
        match std::fs::read_link(&next) {
            Ok(target) => {
                links += 1;
                if target.is_absolute() {
                    real = PathBuf::from("/");
                }
                for part in target.components().rev() {
                    rest.push_front(part.as_os_str().into());
                }
            }
            Err(_) => real = next,
        }
    }
    Ok(real)
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> PreflightError + use<> {
    let path = path.to_owned();
    move |source| PreflightError::Io { path, source }
}

fn check_mountpoint(path: &Path, warnings: &mut Vec<Warning>) -> Result<Place, PreflightError> {
    let mountpoint = match resolve(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(PreflightError::Missing(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            return Err(PreflightError::Unanswered(path.to_owned()));
        }
        other => other.map_err(io_at(path))?,
    };
    // Mounts can lie on each other; each broken one of ours is taken away.
    while let Some(mount) = mountinfo::top(&mountpoint).map_err(io_at(&mountpoint))? {
        let stale = is_stale(&mountpoint);
        match (mount.is_ours(), stale) {
            (true, false) => return Err(PreflightError::AlreadyMounted(mountpoint)),
            (true, true) => {
                unmount(&mountpoint, How::Lazily)
                    .map_err(|source| PreflightError::Stale { path: mountpoint.clone(), source })?;
                warnings.push(Warning::RemovedStale(mountpoint.clone()));
            }
            (false, true) => {
                return Err(PreflightError::ForeignStale { path: mountpoint, fs_type: mount.fs_type });
            }
            (false, false) => {
                return Err(PreflightError::ForeignMount { path: mountpoint, fs_type: mount.fs_type });
            }
        }
    }
    let place = Place::open(mountpoint)?;
    match place.is_empty()? {
        true => Ok(place),
        false => Err(PreflightError::NotEmpty(place.path().to_owned())),
    }
}

/// Whether the process behind the FUSE mount at `path` is gone: the kernel then answers everything with ENOTCONN
/// ("Transport endpoint is not connected"). Of one that is stopped it is known that it is there.
pub fn is_stale(path: &Path) -> bool {
    behind(path) == Behind::Gone
}

/// Whether this process can mount: the device, and the right to or a helper.
///
/// # Errors
/// What is missing.
pub fn check_mounting() -> Result<(), PreflightError> {
    check_device()?;
    if may_mount() { Ok(()) } else { check_helper() }
}

fn check_device() -> Result<(), PreflightError> {
    let opened = std::fs::File::options().read(true).write(true).open("/dev/fuse");
    match opened {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(PreflightError::NoDevice),
        // ENODEV and ENXIO: the node is there, the kernel's part is not loaded.
        Err(error) if matches!(error.raw_os_error(), Some(6 | 19)) => return Err(PreflightError::NoDevice),
        Err(error) => return Err(PreflightError::DeviceRefused(error)),
    }
    if rustix::process::geteuid().is_root() && !has_right() {
        return Err(PreflightError::NoRight);
    }
    Ok(())
}

/// Whether this process has CAP_SYS_ADMIN; `true` when the kernel does not say.
fn has_right() -> bool {
    const CAP_SYS_ADMIN: u32 = 21; // linux/capability.h
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    effective.is_none_or(|set| set >> CAP_SYS_ADMIN & 1 == 1)
}

fn check_helper() -> Result<(), PreflightError> {
    helper().map(|_| ()).ok_or(PreflightError::NoHelper)
}

/// The helper that mounts and unmounts for users.
pub(super) fn helper() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let runs = |file: &PathBuf| {
        std::fs::metadata(file).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    std::env::split_paths(&path).map(|dir| dir.join("fusermount3")).find(runs)
}

/// What of memory a daemon takes at least, at twice what one with two processors was seen to take: addresses, of which
/// threads reserve more than they use, and what is its own.
const LEAST_ADDRESSES: u64 = 512 << 20;
const LEAST_DATA: u64 = 192 << 20;
/// How long a file of the record of changes may become.
const LEAST_FILE: u64 = 64 << 20;

/// Refuses limits (`ulimit -v`, `-d`, `-f`) under which a daemon would be aborted in the middle of its work. What this process
/// may raise is raised.
fn check_limits(warnings: &mut Vec<Warning>) -> Result<(), PreflightError> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let limits = [(Resource::As, "ulimit -v", LEAST_ADDRESSES), (Resource::Data, "ulimit -d", LEAST_DATA)];
    for (resource, option, least) in limits {
        let mut limit = getrlimit(resource);
        limit.current = limit.maximum;
        // What it is now decides.
        let _ = setrlimit(resource, limit);
        if let Some(has) = getrlimit(resource).current.filter(|has| *has < least) {
            return Err(PreflightError::LittleMemory { option, has, least });
        }
    }
    let mut longest = getrlimit(Resource::Fsize);
    longest.current = longest.maximum;
    let _ = setrlimit(Resource::Fsize, longest);
    match getrlimit(Resource::Fsize).current {
        Some(has) if has < LEAST_FILE => Err(PreflightError::ShortFiles { has, least: LEAST_FILE }),
        Some(has) => {
            warnings.push(Warning::LimitedFiles(has));
            Ok(())
        }
        None => Ok(()),
    }
}

/// Whether the administrator lets users open their mounts to others (`mount.fuse3(8)`).
fn others_allowed() -> bool {
    let text = std::fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    text.lines().any(|line| line.trim() == "user_allow_other")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(path: &Path) -> Result<PathBuf, PreflightError> {
        check_mountpoint(path, &mut Vec::new()).map(|place| place.path().to_owned())
    }

    #[test]
    fn a_mount_point_is_an_empty_directory_that_nothing_is_mounted_on() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        assert!(matches!(checked(&root.join("no/such")), Err(PreflightError::Missing(_))));
        assert!(matches!(checked(Path::new("/proc")), Err(PreflightError::ForeignMount { .. })));
        std::fs::write(root.join("file"), "").unwrap();
        assert!(matches!(checked(&root.join("file")), Err(PreflightError::NotADirectory(_))));
        assert!(matches!(checked(&root), Err(PreflightError::NotEmpty(_))));
        std::fs::create_dir(root.join("dir")).unwrap();
        std::os::unix::fs::symlink("dir", root.join("link")).unwrap();
        assert_eq!(checked(&root.join("link")).unwrap(), root.join("dir"));
    }
}
