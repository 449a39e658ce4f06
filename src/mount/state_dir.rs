//! Where a mount keeps what the server does not have yet: one directory a mount, locked by one daemon.
//!
//! ```text
//! <root>/                        0700, ours
//!   README
//!   <name>-<hash of server, repository, workspace, subdirectory>/
//!     README  meta.json  lock  log  log.1 ...  control.sock      ... and what spool and journal keep
//!   <such a name> -> /elsewhere/<such a name>         a mount with another root, so that `status` finds it
//! ```

mod meta;
mod own;
mod owned;
#[cfg(test)]
mod tests;

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

pub use meta::Formats;
pub use own::Own;

use super::mountinfo;
use crate::fs::{BaseAccess, Shown};
use crate::hash::{ContentHash, HashKind};
use crate::path::{PathError, RepoPath};
use crate::store::disk::Disk;
use crate::workspace::which::KnownRepository;
use crate::workspace::{CommitId, ServerInfo};

const META: &str = "meta.json";
const LOCK: &str = "lock";
const LOG: &str = "log";
const README: &str = "README";
const SOCKET: &str = "control.sock";

/// How often the logs are emptied for a record of the mount that finds no room.
const ROOM_ATTEMPTS: u32 = 3;

/// How long a lock may be held by somebody who only looks, or by a daemon that is just ending.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);

/// The README of each directory.
const README_TEXT: &str = "\
This directory belongs to oxenfs. Do not delete it: it holds data not yet on the server.

What waits here is shown by `oxenfs status` and sent by mounting again; meta.json says what and where.
It may be removed when nothing of it is mounted, nothing is owed to the server, and nothing is staged without being
committed: what is staged may be lost on the server, and be here alone. `oxenfs status` tells.
";

/// What a state directory is for. Server, repository, workspace, subdirectory and revision name it; the others may change
/// from mount to mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Scheme, host and port.
    pub server: String,
    /// `NAMESPACE/NAME`.
    pub repo: String,
    /// The workspace's name.
    pub workspace: String,
    /// The directory of the repository that is mounted; empty is all of it.
    pub subdir: String,
    /// The branch that a commit goes to.
    pub branch: String,
    /// The branch or commit that is shown, read-only, in place of a workspace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Where it is, or was last, mounted; names need not be UTF-8.
    #[serde(with = "owned::any_path")]
    pub mountpoint: PathBuf,
}

/// `meta.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// What the directory is for.
    #[serde(flatten)]
    pub identity: Identity,
    /// The last daemon's process id; the lock tells whether it lives.
    pub pid: u32,
    /// The version of oxenfs that wrote this.
    pub version: String,
    /// As whose the last mount showed what the base has; not in what early versions wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<BaseAccess>,
    /// What tells this directory from all others; in none that stages in a workspace which others may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own: Option<Own>,
    /// What tells the repository from another of the same name; not in what early versions wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<KnownRepository>,
    /// What the server was when a mount last met it; not in what early versions wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_info: Option<ServerInfo>,
    /// The commit that was seen to have nothing where the mount's root is, if the last mount began on such a one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub empty_base: Option<CommitId>,
    /// The formats of what the directory holds; not in what early versions wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub formats: Option<Formats>,
    /// Fields that are not known here; they go back to the disk.
    #[serde(flatten)]
    pub rest: serde_json::Map<String, serde_json::Value>,
}

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another daemon has it.
    #[error("it is in use by process {pid}, mounted at {}", .mountpoint.display())]
    Locked {
        /// The state directory.
        path: PathBuf,
        /// The holder; 0 when it did not say.
        pid: u32,
        /// The holder's mount point.
        mountpoint: PathBuf,
    },
    /// Somebody else's directory.
    #[error("the state directory {} belongs to user {owner}, not to user {us}", .path.display())]
    NotOurs {
        /// The directory.
        path: PathBuf,
        /// Its owner's id.
        owner: u32,
        /// Our id.
        us: u32,
    },
    /// A directory with other things in it that others can read; its mode is not ours to change.
    #[error("others can enter the state directory {}, and it holds more than oxenfs put there", .path.display())]
    Exposed {
        /// The directory.
        path: PathBuf,
    },
    /// Data that the server lacks would lie on a filesystem that may vanish with it.
    #[error("the state directory {} is on a FUSE filesystem", .path.display())]
    OnFuse {
        /// The directory.
        path: PathBuf,
    },
    /// The mount would cover it.
    #[error("the state directory {} and the mount point lie inside each other", .path.display())]
    InsideMount {
        /// The directory.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Made by a newer oxenfs.
    #[error("the state directory {} was written by a newer oxenfs: {what}", .path.display())]
    Newer {
        /// The directory.
        path: PathBuf,
        /// What of it this one does not know.
        what: String,
    },
    /// A `meta.json` that no oxenfs wrote.
    #[error("{} is damaged: {reason}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        reason: String,
    },
}

/// What a user should know about a root that can be used all the same.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Warning {
    /// A restart of the machine loses what the server lacks.
    #[error("the state directory {} is in memory: a restart of this machine loses what is not staged yet", .0.display())]
    InMemory(PathBuf),
    /// Locks and flushes are as good as that server's.
    #[error("the state directory {} is on a network filesystem: a crash may lose what is not staged yet", .0.display())]
    OnNetwork(PathBuf),
    /// Little space.
    #[error("only {} MiB are free for the state directory {}", .free_bytes >> 20, .path.display())]
    LittleSpace {
        /// The root.
        path: PathBuf,
        /// What is free.
        free_bytes: u64,
    },
}

/// Free space under which [`Warning::LittleSpace`] is given.
const LITTLE_SPACE_BYTES: u64 = 1 << 30;

/// Attaches what was tried to an error of the system.
fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    move |source| StateError::Io { action, path, source }
}

/// Makes `root` if it is not there and checks that data is safe in it: ours, closed to others, on a disk, and not
/// covered by `mountpoint`. Returns its real path.
///
/// # Errors
/// When it is not.
pub fn prepare_root(root: &Path, mountpoint: &Path) -> Result<(PathBuf, Vec<Warning>), StateError> {
    // Before anything is made: a root inside the mount point would make that non-empty.
    refuse_nested(&resolve_existing(root), mountpoint)?;
    Disk::default().make_dirs(root).map_err(io_error("create", root))?;
    let root = root.canonicalize().map_err(io_error("resolve", root))?;
    refuse_nested(&root, mountpoint)?;
    check_owner(&root)?;
    let mode = std::fs::metadata(&root).map_err(io_error("read", &root))?.mode();
    if mode & 0o077 != 0 {
        let mut names = std::fs::read_dir(&root).map_err(io_error("read", &root))?;
        if !root.join(README).exists() && names.next().is_some() {
            return Err(StateError::Exposed { path: root });
        }
        std::fs::set_permissions(&root, PermissionsExt::from_mode(0o700))
            .map_err(io_error("close to others", &root))?;
    }
    write_readme(&root)?;
    let warnings = check_filesystem(&root)?;
    Ok((root, warnings))
}

/// `path` with the symbolic links of the part that exists resolved.
pub fn resolve_existing(path: &Path) -> PathBuf {
    let mut missing = Vec::new();
    let mut here = path;
    loop {
        if let Ok(real) = here.canonicalize() {
            return missing.iter().rev().fold(real, |real, name| real.join(name));
        }
        match (here.parent(), here.file_name()) {
            (Some(parent), Some(name)) => {
                missing.push(name);
                here = parent;
            }
            _ => return path.to_owned(),
        }
    }
}

fn refuse_nested(root: &Path, mountpoint: &Path) -> Result<(), StateError> {
    if root.starts_with(mountpoint) || mountpoint.starts_with(root) {
        return Err(StateError::InsideMount { path: root.to_owned() });
    }
    Ok(())
}

fn check_owner(path: &Path) -> Result<(), StateError> {
    let owner = std::fs::symlink_metadata(path).map_err(io_error("read", path))?.uid();
    let us = rustix::process::geteuid().as_raw();
    if owner != us {
        return Err(StateError::NotOurs { path: path.to_owned(), owner, us });
    }
    Ok(())
}

/// What a state root, or where it would be made, is on. Changes nothing.
///
/// # Errors
/// [`StateError::OnFuse`], [`StateError::NotOurs`], or when it cannot be examined.
pub fn examine_root(root: &Path) -> Result<RootFacts, StateError> {
    let root = resolve_existing(root);
    let there = root.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"));
    if there == root {
        check_owner(there)?;
    }
    let warnings = check_filesystem(there)?;
    let facts = rustix::fs::statfs(there).map_err(|errno| io_error("read", there)(errno.into()))?;
    let free_bytes = facts.f_bavail.saturating_mul(facts.f_bsize as u64);
    let shares_blocks = crate::store::spool::shares_blocks(there);
    Ok(RootFacts { path: root, warnings, free_bytes, shares_blocks })
}

/// See [`examine_root`].
#[derive(Debug)]
pub struct RootFacts {
    /// Without symbolic links.
    pub path: PathBuf,
    /// What speaks against it.
    pub warnings: Vec<Warning>,
    /// Room for data that the server does not have yet.
    pub free_bytes: u64,
    /// Whether its filesystem copies files by sharing their blocks; `None` when that could not be tried.
    pub shares_blocks: Option<bool>,
}

fn check_filesystem(root: &Path) -> Result<Vec<Warning>, StateError> {
    // From linux/magic.h.
    const FUSE: u64 = 0x6573_5546;
    const TMPFS: u64 = 0x0102_1994;
    const RAMFS: u64 = 0x8584_58f6;
    const NFS: u64 = 0x6969;
    const SMB2: u64 = 0xfe53_4d42;
    const CIFS: u64 = 0xff53_4d42;
    let facts = rustix::fs::statfs(root).map_err(|errno| io_error("read", root)(errno.into()))?;
    let mut warnings = Vec::new();
    match facts.f_type as u64 & 0xffff_ffff {
        FUSE => return Err(StateError::OnFuse { path: root.to_owned() }),
        TMPFS | RAMFS => warnings.push(Warning::InMemory(root.to_owned())),
        NFS | SMB2 | CIFS => warnings.push(Warning::OnNetwork(root.to_owned())),
        _ => {}
    }
    let free_bytes = facts.f_bavail.saturating_mul(facts.f_bsize as u64);
    if free_bytes < LITTLE_SPACE_BYTES {
        warnings.push(Warning::LittleSpace { path: root.to_owned(), free_bytes });
    }
    Ok(warnings)
}

fn write_readme(dir: &Path) -> Result<(), StateError> {
    let path = dir.join(README);
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
        Ok(mut file) => file.write_all(README_TEXT.as_bytes()).map_err(io_error("write", &path)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(io_error("create", &path)(error)),
    }
}

impl Identity {
    /// The directory's name: what a person recognizes, then a hash of all that tells mounts apart.
    fn dir_name(&self) -> String {
        let mut named = vec![&*self.server, &self.repo, &self.workspace, &self.subdir];
        named.extend(self.revision.as_deref());
        let named = named.join("\0");
        let hash = ContentHash::of(HashKind::Sha256, named.as_bytes()).to_string();
        let slug: String = self
            .repo
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_') { c } else { '-' })
            .take(60)
            .collect();
        format!("{slug}-{}", &hash[..12])
    }
}

/// One mount's state directory, held by this process. The lock belongs to the open file: it passes to a forked child
/// and ends with the last process that has it.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    /// Locked: whoever removes the lock file removes no lock.
    dir: OwnedFd,
    /// Locked as well, for versions that lock this file alone.
    lock: File,
    meta: Meta,
    is_new: bool,
}

/// A state directory that is kept from daemons while it is repaired.
#[derive(Debug)]
pub struct HeldDir {
    _dir: OwnedFd,
    _lock: File,
}

/// Keeps daemons from a state directory, and changes nothing in it.
///
/// # Errors
/// [`StateError::Locked`] when one has it; when it is not ours, or none.
pub fn hold(path: &Path) -> Result<HeldDir, StateError> {
    let dir = owned::open_dir(path)?;
    owned::check_record(path)?;
    let lock = lock(path, &dir)?;
    Ok(HeldDir { _dir: dir, _lock: lock })
}

/// A state directory that may hold nothing of worth yet.
#[derive(Debug)]
pub struct Unused(Option<PathBuf>);

impl Unused {
    /// Removes the directory if it was made for a mount that came to nothing: it is new, and no record was begun.
    /// What cannot be removed does no harm.
    pub fn remove(self) {
        let Some(path) = self.0 else { return };
        let ours = |name: &std::ffi::OsStr| [README, META, LOCK, LOG, SOCKET].iter().any(|own| name == *own);
        let names = |entry: io::Result<std::fs::DirEntry>| entry.map(|entry| entry.file_name());
        let entries: io::Result<Vec<_>> = std::fs::read_dir(&path).and_then(|entries| entries.map(names).collect());
        let Ok(entries) = entries else { return };
        if entries.iter().all(|name| ours(name)) {
            for name in entries {
                let _ = std::fs::remove_file(path.join(name));
            }
            let _ = std::fs::remove_dir(&path);
        }
    }
}

impl StateDir {
    /// Makes or reopens the directory for `identity` below `root` (a path from [`prepare_root`]) and locks it. Where
    /// [`announce`](Self::announce) left a link, the directory it leads to.
    ///
    /// # Errors
    /// [`StateError::Locked`] when another daemon has it.
    pub fn open(root: &Path, identity: &Identity) -> Result<Self, StateError> {
        let mut path = root.join(identity.dir_name());
        if path.is_symlink() {
            // Left by `announce`: this mount's state is elsewhere, and data may wait there.
            match path.canonicalize() {
                Ok(elsewhere) => path = elsewhere,
                Err(_) => std::fs::remove_file(&path).map_err(io_error("remove the link", &path))?,
            }
        }
        let is_new = !path.exists();
        Disk::default().make_dirs(&path).map_err(io_error("create", &path))?;
        let dir = owned::open_dir(&path)?;
        rustix::fs::fchmod(&dir, Mode::RWXU).map_err(|errno| io_error("close to others", &path)(errno.into()))?;
        let lock = lock(&path, &dir)?;
        // Before anything in it is touched. What is gone can be told anew; what is damaged is for a person to look at.
        let before = match read_meta(&path) {
            Ok(meta) => Some(meta),
            Err(StateError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        write_readme(&path)?;
        let formats = Some(Formats::default());
        let (identity, version) = (identity.clone(), String::new());
        let meta = match before {
            Some(before) => Meta { identity, pid: 0, version, formats, ..before },
            None => Meta {
                identity,
                pid: 0,
                version,
                access: None,
                own: None,
                repository: None,
                server_info: None,
                empty_base: None,
                formats,
                rest: serde_json::Map::new(),
            },
        };
        let mut state = Self { path, dir, lock, meta, is_new };
        state.claim()?;
        Ok(state)
    }

    /// Writes down that this process has the directory: to be called again after a fork, in the child.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn claim(&mut self) -> Result<(), StateError> {
        self.meta.pid = std::process::id();
        self.meta.version = env!("CARGO_PKG_VERSION").to_owned();
        let lock_path = self.path.join(LOCK);
        let written = self
            .lock
            .set_len(0)
            .and_then(|()| self.lock.rewind())
            .and_then(|()| writeln!(self.lock, "{}", self.meta.pid));
        written.map_err(io_error("write", &lock_path))?;
        self.write_meta()
    }

    /// Writes down as whose this mount shows what the base has, for who looks when it is gone.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn note_access(&mut self, access: BaseAccess) -> Result<(), StateError> {
        if self.meta.access.replace(access) == Some(access) { Ok(()) } else { self.write_meta() }
    }

    /// What is known of the repository that it is for.
    pub fn repository(&self) -> Option<&KnownRepository> {
        self.meta.repository.as_ref()
    }

    /// Writes down what tells the repository from another of the same name.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn note_repository(&mut self, known: KnownRepository) -> Result<(), StateError> {
        if known.is_nothing() || self.meta.repository.as_ref() == Some(&known) {
            return Ok(());
        }
        self.meta.repository = Some(known);
        self.write_meta()
    }

    /// What the server was when a mount of this last met it; `None` where none did.
    pub fn server_info(&self) -> Option<&ServerInfo> {
        self.meta.server_info.as_ref()
    }

    /// Whether this commit was seen to have nothing where the mount's root is.
    pub fn is_empty_base(&self, commit: &CommitId) -> bool {
        self.meta.empty_base.as_ref() == Some(commit)
    }

    /// Writes down the commit that the mount begins on, if that has nothing where its root is.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn note_empty_base(&mut self, empty: Option<CommitId>) -> Result<(), StateError> {
        if self.meta.empty_base == empty {
            return Ok(());
        }
        self.meta.empty_base = empty;
        self.write_meta()
    }

    /// Writes down what the server is, for a mount that does not reach it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn note_server(&mut self, info: &ServerInfo) -> Result<(), StateError> {
        if self.meta.server_info.as_ref() == Some(info) {
            return Ok(());
        }
        self.meta.server_info = Some(info.clone());
        self.write_meta()
    }

    /// Whether it was given a workspace of its own.
    pub fn has_own_workspace(&self) -> bool {
        self.meta.own.is_some()
    }

    /// The name of the workspace that this directory has for itself. A copy of a state directory, as of a machine that
    /// is cloned, is another one from the first time on that it is mounted, and stages as another.
    ///
    /// One of before there were such names has the name that all of a user's had, as long as it is in `use`: until
    /// nothing of it is owed or staged. In that workspace others may stage, too, so the answer says whose it is.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub fn own_workspace(&mut self, in_use: impl FnOnce(&Path) -> bool) -> Result<Option<String>, StateError> {
        let here = own::here(&self.dir).map_err(io_error("look at", &self.path))?;
        let own = match self.meta.own.take() {
            Some(own) if own.place == here => own,
            Some(_) => Own::new(here),
            None if !self.is_new && in_use(&self.path) => return Ok(None),
            None => Own::new(here),
        };
        let name = own.workspace(&self.meta.identity.workspace);
        self.meta.own = Some(own);
        self.write_meta()?;
        Ok(Some(name))
    }

    fn write_meta(&self) -> Result<(), StateError> {
        let path = self.path.join(META);
        let text = meta::to_text(&self.meta)
            .map_err(|error| StateError::Damaged { path: path.clone(), reason: error.to_string() })?;
        let mut written = replace(&path, &text);
        // On a full disk the logs make way for what no mount can do without; a line that comes meanwhile may take it.
        for _ in 0..ROOM_ATTEMPTS {
            if !written.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::StorageFull) {
                break;
            }
            self.empty_logs();
            written = replace(&path, &text);
        }
        written.map_err(io_error("write", &path))
    }

    /// Gives the room of the log and of its older parts back. What cannot be given back stays.
    fn empty_logs(&self) {
        let logs = std::fs::read_dir(&self.path).into_iter().flatten().flatten();
        let is_log = |name: &OsStr| name.to_str().is_some_and(|name| name == LOG || name.starts_with("log."));
        for log in logs.filter(|entry| is_log(&entry.file_name())) {
            let emptied = OpenOptions::new()
                .write(true)
                .custom_flags(libc::O_NOFOLLOW)
                .open(log.path())
                .and_then(|log| log.set_len(0).and_then(|()| log.sync_all()));
            if let Err(error) = emptied {
                tracing::debug!(%error, "a log keeps its room");
            }
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is to be removed when this mount comes to nothing.
    pub fn unused(&self) -> Unused {
        Unused(self.is_new.then(|| self.path.clone()))
    }

    /// What it is for.
    pub fn identity(&self) -> &Identity {
        &self.meta.identity
    }

    /// Where the daemon's log is.
    pub fn log_path(&self) -> PathBuf {
        self.path.join(LOG)
    }

    /// The log, to be appended to.
    ///
    /// # Errors
    /// When it cannot be made, or something else has its name: a pipe, say, or a link to another's file.
    pub fn open_log(&self) -> Result<File, StateError> {
        let path = self.log_path();
        crate::log::open_private(&path).map_err(io_error("open", &path))
    }

    /// Listens on the control socket. What lies at its place is from a daemon that is gone: we hold the lock.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn bind_control(&self) -> Result<UnixListener, StateError> {
        let path = self.path.join(SOCKET);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error("replace", &path)(error)),
            _ => {}
        }
        UnixListener::bind(through(&self.dir)).map_err(io_error("listen on", &path))
    }

    /// Leaves a link to this directory in `default_root`, where `status` and `unmount` look when nobody tells them
    /// about another root.
    ///
    /// # Errors
    /// When the root cannot be used or the link cannot be made; the mount works all the same.
    pub fn announce(&self, default_root: &Path) -> Result<(), StateError> {
        let (root, _) = prepare_root(default_root, &self.meta.identity.mountpoint)?;
        let name = self.meta.identity.dir_name();
        let path = ContentHash::of(HashKind::Sha256, self.path.as_os_str().as_encoded_bytes()).to_string();
        // What has the first name holds state of the same mount, and may hold data: it keeps it.
        for name in [&name, &format!("{name}-{}", &path[..8])] {
            let link = root.join(name);
            match link.canonicalize() {
                Ok(known) if known == self.path => return Ok(()),
                Ok(_) => {}
                Err(_) => {
                    let _ = std::fs::remove_file(&link);
                    return std::os::unix::fs::symlink(&self.path, &link).map_err(io_error("create the link", &link));
                }
            }
        }
        Ok(())
    }
}

/// Writes a file so that a crash leaves the old or the new one.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

/// Takes the lock, patiently: a `status` that looks, or a daemon that ends, holds it for a moment.
fn lock(dir: &Path, opened: &OwnedFd) -> Result<File, StateError> {
    let path = dir.join(LOCK);
    let deadline = std::time::Instant::now() + LOCK_PATIENCE;
    take_lock(dir, opened, deadline, || Known::pid_in(dir))?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(owned::PLAIN)
        .open(&path)
        .and_then(|file| owned::regular(&file).map(|()| file))
        .map_err(io_error("open", &path))?;
    take_lock(dir, &file, deadline, || holder_of(&file))?;
    Ok(file)
}

fn take_lock(
    dir: &Path,
    what: impl std::os::fd::AsFd,
    deadline: std::time::Instant,
    holder: impl Fn() -> u32,
) -> Result<(), StateError> {
    loop {
        match rustix::fs::flock(&what, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) if std::time::Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mountpoint = read_meta(dir).map(|meta| meta.identity.mountpoint).unwrap_or_default();
                return Err(StateError::Locked { path: dir.to_owned(), pid: holder(), mountpoint });
            }
            Err(errno) => return Err(io_error("lock", dir)(errno.into())),
        }
    }
}

/// The process id in a lock file; 0 when there is none.
fn holder_of(lock: &File) -> u32 {
    let mut text = String::new();
    // A process id has at most seven digits.
    let _ = lock.take(16).read_to_string(&mut text);
    text.trim().parse().unwrap_or(0)
}

fn read_meta(dir: &Path) -> Result<Meta, StateError> {
    let path = dir.join(META);
    let text = owned::read_meta_text(&path).map_err(io_error("read", &path))?;
    let meta = meta::from_text(&text).map_err(|reason| StateError::Damaged { path, reason })?;
    match meta.formats.as_ref().and_then(Formats::unknown) {
        Some(what) => Err(StateError::Newer { path: dir.to_owned(), what }),
        None => Ok(meta),
    }
}

/// How what is on record in a state directory was mounted, as far as can be read of a `meta.json` that may be damaged or
/// gone; and whether it is damaged.
pub fn shown_as_far_as_known(dir: &Path) -> (Shown, Option<StateError>) {
    match shown(dir) {
        Ok(shown) => (shown, None),
        Err(error) => {
            let text = owned::read_meta_text(&dir.join(META)).unwrap_or_default();
            let value: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
            let subdir = value.get("subdir").and_then(serde_json::Value::as_str).unwrap_or_default();
            let root_path = RepoPath::parse(subdir).unwrap_or_else(|_| RepoPath::root());
            let gone = matches!(&error, StateError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound);
            (Shown { root_path, access: None }, (!gone).then_some(error))
        }
    }
}

/// Sets a damaged `meta.json` aside, under a name that nothing has: the next mount writes another.
///
/// # Errors
/// The filesystem's.
pub fn set_meta_aside(dir: &Path) -> Result<PathBuf, StateError> {
    let from = dir.join(META);
    let names =
        (0..).map(|n| dir.join(format!("{META}.damaged{}", if n == 0 { String::new() } else { format!(".{n}") })));
    let to = names.into_iter().find(|to| std::fs::symlink_metadata(to).is_err()).unwrap_or_else(|| from.clone());
    std::fs::rename(&from, &to).map_err(io_error("set aside", &from))?;
    Ok(to)
}

/// How what is on record in a state directory was mounted.
///
/// # Errors
/// When it does not say, or the record is not ours, or is no record.
pub fn shown(dir: &Path) -> Result<Shown, StateError> {
    owned::check_record(dir)?;
    let Meta { identity, access, .. } = read_meta(dir)?;
    let damaged = |error: PathError| StateError::Damaged { path: dir.join(META), reason: error.to_string() };
    Ok(Shown { root_path: RepoPath::parse(&identity.subdir).map_err(damaged)?, access })
}

/// The control socket's address, short however long the directory's path is: a socket address has 107 bytes.
fn through(dir: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()))
}

/// Connects to the daemon that has the state directory `dir`. Does not wait: where so many wait already that the daemon
/// did not accept, it does not answer.
///
/// # Errors
/// [`io::ErrorKind::NotFound`] or [`io::ErrorKind::ConnectionRefused`] when none runs, [`io::ErrorKind::WouldBlock`] when
/// it accepts nobody.
pub fn connect_control(dir: &Path) -> io::Result<UnixStream> {
    let dir = owned::open_dir(dir).map_err(|error| match error {
        StateError::Io { source, .. } => source,
        other => io::Error::new(io::ErrorKind::PermissionDenied, other),
    })?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(through(&dir))?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    owned::check_peer(&stream)?;
    Ok(stream)
}

/// A state directory as others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The directory.
    pub path: PathBuf,
    /// Its `meta.json`.
    pub meta: Meta,
}

impl Meta {
    /// The workspace that it stages in, or did last.
    pub fn workspace(&self) -> String {
        let stem = &self.identity.workspace;
        self.own.as_ref().map_or_else(|| stem.clone(), |own| own.workspace(stem))
    }
}

impl Known {
    /// The process that holds the lock; `None` when none does.
    pub fn holder(&self) -> Option<u32> {
        // Closing the file gives the lock back.
        let is_held = |file: &File| rustix::fs::flock(file, FlockOperation::NonBlockingLockShared).is_err();
        if File::open(&self.path).is_ok_and(|dir| is_held(&dir)) {
            return Some(Self::pid_in(&self.path));
        }
        let file = owned::open_plain(&self.path.join(LOCK)).ok()?;
        is_held(&file).then(|| holder_of(&file))
    }

    /// The process that a lock file names, else the one that `meta.json` names; 0 when neither does.
    fn pid_in(dir: &Path) -> u32 {
        let named = owned::open_plain(&dir.join(LOCK)).map_or(0, |file| holder_of(&file));
        if named != 0 { named } else { read_meta(dir).map_or(0, |meta| meta.pid) }
    }
}

/// All state directories of a root, in the order of their mount points.
#[derive(Debug, Default)]
pub struct Listing {
    /// Those that can be read.
    pub known: Vec<Known>,
    /// Those that cannot, or that are not ours, with the reason: they may hold data.
    pub unreadable: Vec<(PathBuf, StateError)>,
    /// Links to nowhere, and directories of which somebody removed all that counts.
    pub gone: Vec<PathBuf>,
}

impl StateDir {
    /// The state directories below `root`; none when there is no such root. Links to directories elsewhere count.
    ///
    /// # Errors
    /// When the root is there and cannot be read.
    pub fn list(root: &Path) -> Result<Listing, StateError> {
        let entries = match std::fs::read_dir(root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Listing::default()),
            Err(error) => return Err(io_error("read", root)(error)),
        };
        let mut listing = Listing::default();
        for entry in entries {
            let named = entry.map_err(io_error("read", root))?.path();
            let path = match named.canonicalize() {
                Ok(path) => path,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    listing.gone.push(named);
                    continue;
                }
                Err(_) => continue,
            };
            if !path.is_dir() {
                continue;
            }
            match owned::open_dir(&path).and_then(|_| read_meta(&path)) {
                Ok(meta) => listing.known.push(Known { path, meta }),
                Err(StateError::Io { source, .. })
                    if source.kind() == io::ErrorKind::NotFound && owned::is_empty(&path) =>
                {
                    listing.gone.push(path);
                }
                Err(error) => listing.unreadable.push((path, error)),
            }
        }
        listing.known.sort_by(|a, b| {
            let key = |known: &Known| (known.meta.identity.mountpoint.clone(), known.path.clone());
            key(a).cmp(&key(b))
        });
        listing.known.dedup_by(|a, b| a.path == b.path);
        Ok(listing)
    }
}

/// Whether a mount of ours is at `mountpoint` now, from the kernel's table.
pub fn is_mounted(mountpoint: &Path) -> bool {
    mountinfo::top(mountpoint).is_ok_and(|mount| mount.is_some_and(|mount| mount.is_ours()))
}
