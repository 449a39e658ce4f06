//! Extended attributes: those that programs set, which stay local, and those that tell where a file is on its way to
//! the server.

use super::{Fs, FsError, Op, State, now};
use crate::log::printable;
use crate::namespace::{Body, Content, Ino, Inode};
use crate::store::journal::Change;
use crate::writeback::index::Staged;
use crate::writeback::queue::Phase;

/// What `user.oxenfs.*` begins with: made by the mount, neither set nor listed, or a copy would carry it along.
const OURS: &[u8] = b"user.oxenfs.";
/// How much of a file's content is here.
const CACHED: &[u8] = b"user.oxenfs.cached";
/// The longest name, value and list of names that the kernel passes on, in bytes (`XATTR_NAME_MAX`, `XATTR_SIZE_MAX`,
/// `XATTR_LIST_MAX` in `linux/limits.h`).
const NAME_MAX: usize = 255;
const VALUE_MAX: usize = 1 << 16;
const LIST_MAX: usize = 1 << 16;
/// What all attributes of one file may take, in bytes: they are kept in memory. More than ext4 has room for without
/// its `ea_inode` feature (one block).
const TOTAL_MAX: usize = 1 << 20;

/// `setxattr`'s flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XattrMode {
    /// Made, or given another value.
    Set,
    /// `XATTR_CREATE`: it must be new.
    Create,
    /// `XATTR_REPLACE`: it must be there.
    Replace,
}

/// Who an attribute belongs to, by its name (`xattr(7)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// `user.*`: regular files and directories.
    User,
    /// `trusted.*`: the kernel lets only the system's administrator at it.
    Trusted,
    /// `user.oxenfs.*`.
    Ours,
}

/// # Errors
/// [`FsError::Unsupported`] for `security.*`, `system.*` and what nobody knows: as on a filesystem mounted without
/// access control lists. So an `ls -l` stops asking for them after the first file.
fn class(name: &[u8]) -> Result<Class, FsError> {
    if name.len() > NAME_MAX {
        return Err(FsError::Range);
    }
    match name {
        b"user." | b"trusted." => Err(FsError::Invalid),
        _ if name.starts_with(OURS) => Ok(Class::Ours),
        _ if name.starts_with(b"user.") => Ok(Class::User),
        _ if name.starts_with(b"trusted.") => Ok(Class::Trusted),
        _ => Err(FsError::Unsupported),
    }
}

/// Whether `user.*` may be there: anyone who may write to a device or follow a symlink could fill a disk else.
fn takes_user(inode: &Inode) -> bool {
    matches!(inode.body, Body::File { .. } | Body::Dir(_))
}

impl Fs {
    /// An attribute's value.
    ///
    /// # Errors
    /// [`FsError::NoData`] when it is not there; [`FsError::Unsupported`].
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Op<Vec<u8>> {
        // Before the lock: the kernel asks for `security.capability` when it first writes to a file.
        let class = class(name)?;
        if name == CACHED
            && let Some((here, size)) = self.cached_bytes(ino)
        {
            return Ok(match here {
                here if here == size => b"yes".to_vec(),
                0 => b"no".to_vec(),
                here => format!("{here} of {size} bytes").into_bytes(),
            });
        }
        let state = self.lock();
        let inode = state.tree.get(ino).ok_or(FsError::Stale)?;
        match class {
            Class::Ours => Ok(state.told(ino, &name[OURS.len()..]).ok_or(FsError::NoData)?),
            Class::User if !takes_user(inode) => Err(FsError::NoData.into()),
            Class::User | Class::Trusted => {
                let value = inode.xattrs.as_ref().and_then(|xattrs| xattrs.get(name));
                Ok(value.ok_or(FsError::NoData)?.to_vec())
            }
        }
    }

    /// The names of a file's attributes, each with a NUL behind it; `trusted.*` among them if the caller may see those.
    ///
    /// # Errors
    /// [`FsError::Stale`].
    pub fn listxattr(&self, ino: Ino, trusted: bool) -> Op<Vec<u8>> {
        let state = self.lock();
        let inode = state.tree.get(ino).ok_or(FsError::Stale)?;
        let mut list = Vec::new();
        for name in inode.xattrs.iter().flat_map(|xattrs| xattrs.keys()) {
            if trusted || !name.starts_with(b"trusted.") {
                list.extend_from_slice(name);
                list.push(0);
            }
        }
        Ok(list)
    }

    /// Sets an attribute.
    ///
    /// # Errors
    /// [`FsError::Exists`], [`FsError::NoData`] by `mode`; [`FsError::NotPermitted`]; [`FsError::NoSpace`] when the
    /// file has too many.
    pub fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], mode: XattrMode) -> Op<()> {
        let class = class(name)?;
        if value.len() > VALUE_MAX {
            return Err(FsError::TooBig.into());
        }
        self.admit()?;
        self.lock().check_open_to_change(ino)?;
        self.change(|state| {
            let inode = state.tree.get(ino).ok_or(FsError::Stale)?;
            if class == Class::Ours || (class == Class::User && !takes_user(inode)) {
                return Err(FsError::NotPermitted.into());
            }
            let xattrs = inode.xattrs.as_deref();
            let old = xattrs.and_then(|xattrs| xattrs.get(name)).map(|value| name.len() + value.len());
            let (count, names_bytes, values_bytes) =
                xattrs.map_or((0, 0, 0), |xattrs| (xattrs.len(), xattrs.names_bytes(), xattrs.values_bytes()));
            // In a list each name has a NUL behind it.
            let list = names_bytes + count + if old.is_some() { 0 } else { name.len() + 1 };
            let total = names_bytes + values_bytes + name.len() + value.len() - old.unwrap_or(0);
            match (mode, old.is_some()) {
                (XattrMode::Create, true) => return Err(FsError::Exists.into()),
                (XattrMode::Replace, false) => return Err(FsError::NoData.into()),
                _ => {}
            }
            if list > LIST_MAX || total > TOTAL_MAX {
                return Err(FsError::NoSpace.into());
            }
            state.materialize(ino);
            state.apply(Change::Xattr { ino, name: name.into(), value: value.into() });
            state.stamp_change(ino);
            Ok(())
        })
    }

    /// Takes an attribute away.
    ///
    /// # Errors
    /// [`FsError::NoData`] when it is not there; [`FsError::NotPermitted`].
    pub fn removexattr(&self, ino: Ino, name: &[u8]) -> Op<()> {
        let class = class(name)?;
        self.writable_mount()?;
        self.lock().check_open_to_change(ino)?;
        self.change(|state| {
            let inode = state.tree.get(ino).ok_or(FsError::Stale)?;
            if class == Class::Ours || (class == Class::User && !takes_user(inode)) {
                return Err(FsError::NotPermitted.into());
            }
            if !inode.xattrs.as_ref().is_some_and(|xattrs| xattrs.contains_key(name)) {
                return Err(FsError::NoData.into());
            }
            state.apply(Change::DropXattr { ino, name: name.into() });
            state.stamp_change(ino);
            Ok(())
        })
    }
}

impl State {
    /// Notes that something about an inode changed, and puts it on record.
    fn stamp_change(&mut self, ino: Ino) {
        if let Some(inode) = self.tree.edit(ino) {
            inode.attrs.ctime = now();
        }
    }

    /// What `user.oxenfs.*` tells of a regular file; of one with several names what is worst. `None`: nothing of that
    /// name, or nothing to tell.
    fn told(&self, ino: Ino, name: &[u8]) -> Option<Vec<u8>> {
        let (content, _) = self.content(ino)?;
        let paths = self.tree.file_paths(ino);
        let entries = || paths.iter().filter_map(|path| self.writeback.pending(path));
        match name {
            b"state" if paths.is_empty() => Some(b"local".to_vec()),
            b"state" => {
                let here = matches!(content, Content::Local { .. });
                let state = paths.iter().map(|path| match self.writeback.pending(path) {
                    Some(entry) if entry.is_parked() => (6, "failed"),
                    Some(entry) => match entry.phase {
                        Phase::Waiting => (5, "dirty"),
                        Phase::Hashing => (4, "hashing"),
                        Phase::Ready => (3, "queued"),
                        Phase::Sending => (2, "uploading"),
                    },
                    None if here => (5, "dirty"),
                    None => match self.writeback.account(path).map(|account| account.staged) {
                        Some(Staged::Put(_) | Staged::Doubt) => (1, "staged"),
                        Some(Staged::Nothing | Staged::Removed) | None => (0, "clean"),
                    },
                });
                Some(state.max()?.1.as_bytes().to_vec())
            }
            b"hash" => match content {
                Content::Remote { hash, .. } => Some(hash.to_string().into_bytes()),
                Content::Local { hash, .. } => hash.map(|hash| hash.to_string().into_bytes()),
            },
            b"error" if paths.is_empty() => {
                let links = self.tree.get(ino)?.links.iter();
                let why = links.map(|(dir, name)| self.why_ignored(*dir, name)).next().flatten()?;
                Some(printable(&why).as_bytes().to_vec())
            }
            b"error" => entries().find_map(|entry| entry.error()).map(|error| printable(error).as_bytes().to_vec()),
            // Where the server has it, that was told already.
            b"cached" => Some(b"yes".to_vec()),
            b"attempts" => Some(entries().map(|entry| entry.attempts()).max().unwrap_or(0).to_string().into_bytes()),
            _ => None,
        }
    }
}
