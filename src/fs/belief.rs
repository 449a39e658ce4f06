//! What is on record is checked before it is believed: a right checksum says that the bytes are those that were written, and
//! not by whom.

use std::collections::HashMap;

use super::State;
use crate::hash::ContentHash;
use crate::namespace::{Attrs, Body, BodyRecord, Content, Ino, InodeRecord, ROOT, SpoolId};
use crate::store::journal::{Change, Seen};
use crate::workspace::Object;

/// The last number that an inode or a spool file may have: counting on from there never ends.
const LAST_NUMBER: u64 = 1 << 62;
/// The longest a file can be (`loff_t`).
const LONGEST_FILE: u64 = i64::MAX as u64;
/// The longest target of a symbolic link (`PATH_MAX`), name and value of an extended attribute (`linux/limits.h`).
const LONGEST_TARGET: usize = 4096;
const LONGEST_ATTRIBUTE: (usize, usize) = (255, 65536);

/// Spool files of an earlier daemon whose content the server had confirmed, and that it had not moved to the cache when it
/// was killed.
pub(super) struct LeftBehind {
    /// The spool's files, in order.
    there: Vec<SpoolId>,
    confirmed: HashMap<SpoolId, ContentHash>,
    /// The highest number of a spool file that the record names, or named before a later frame: what it stood for must
    /// not become another file's bytes, in a record of which the end is lost.
    last_spool: SpoolId,
}

impl Default for LeftBehind {
    fn default() -> Self {
        Self::among(Vec::new())
    }
}

impl LeftBehind {
    /// Of these files of the spool, which are to be told as the record is replayed.
    pub fn among(mut there: Vec<SpoolId>) -> Self {
        there.sort_unstable();
        Self { there, confirmed: HashMap::new(), last_spool: SpoolId(0) }
    }

    fn note(&mut self, spool: SpoolId, hash: ContentHash) {
        if self.there.binary_search(&spool).is_ok() {
            self.confirmed.insert(spool, hash);
        }
    }

    /// The highest number of a spool file that was named.
    pub fn last_spool(&self) -> SpoolId {
        self.last_spool
    }

    /// What is in a file, if it is one of them.
    pub fn content_of(&self, spool: SpoolId) -> Option<ContentHash> {
        self.confirmed.get(&spool).copied()
    }
}

impl State {
    /// Replays a change, if it can have happened.
    ///
    /// # Errors
    /// Why not, in words.
    pub(super) fn believe(&mut self, seen: Seen, change: &Change) -> Result<(), String> {
        self.check(seen, change)?;
        match change {
            Change::Inode { record: InodeRecord { body: BodyRecord::Spool(spool), .. }, .. } => {
                self.left_behind.last_spool = self.left_behind.last_spool.max(*spool);
            }
            Change::Inode { ino, record: InodeRecord { body: BodyRecord::Remote { object, .. }, .. } } => {
                if let Some((Content::Local { spool, .. }, _)) = self.content(*ino) {
                    let spool = *spool;
                    self.left_behind.note(spool, object.hash);
                }
            }
            _ => {}
        }
        self.replay(change);
        Ok(())
    }

    fn check(&self, seen: Seen, change: &Change) -> Result<(), String> {
        match change {
            Change::Inode { ino, record } => self.check_inode(*ino, &record.attrs, &record.body),
            Change::Link { parent, ino, .. } => self.check_link(seen, *parent, *ino),
            Change::Ignore { parent, name } if seen.ordered => {
                match self.tree.child(*parent, name).and_then(|ino| self.content(ino)) {
                    Some(_) => Ok(()),
                    None => Err(format!("a name in directory {} is ignored, and stands for no file", parent.0)),
                }
            }
            Change::Xattr { name, value, .. }
                if name.is_empty() || name.len() > LONGEST_ATTRIBUTE.0 || value.len() > LONGEST_ATTRIBUTE.1 =>
            {
                Err("an extended attribute is longer than any can be".into())
            }
            Change::Account { account: Some(account), .. } => {
                let staged = match account.staged {
                    crate::writeback::index::Staged::Put(object) => Some(object),
                    _ => None,
                };
                account.base.iter().chain(&staged).try_for_each(check_object)
            }
            Change::Conflict { conflict: Some(conflict), .. } => {
                conflict.base.iter().chain(&conflict.theirs.object()).try_for_each(check_object)
            }
            _ => Ok(()),
        }
    }

    fn check_inode(&self, ino: Ino, attrs: &Attrs, body: &BodyRecord) -> Result<(), String> {
        if !(ROOT.0..LAST_NUMBER).contains(&ino.0) {
            return Err(format!("no inode can have the number {}", ino.0));
        }
        let [atime, mtime, ctime] = [attrs.atime, attrs.mtime, attrs.ctime];
        if attrs.mode > 0o7777 || [atime, mtime, ctime].iter().any(|time| { time.1 } >= 1_000_000_000) {
            return Err(format!("inode {} has a mode or times that none can have", ino.0));
        }
        match body {
            BodyRecord::Remote { object, .. } => check_object(object)?,
            BodyRecord::Spool(spool) if spool.0 >= LAST_NUMBER => {
                return Err(format!("no spool file can have the number {}", spool.0));
            }
            BodyRecord::Symlink(target) if target.is_empty() || target.len() > LONGEST_TARGET => {
                return Err(format!("the symbolic link {} has a target that none can have", ino.0));
            }
            BodyRecord::Special { format, .. }
                if ![libc::S_IFIFO, libc::S_IFSOCK, libc::S_IFCHR, libc::S_IFBLK].contains(format) =>
            {
                return Err(format!("inode {} is of no kind that there is", ino.0));
            }
            _ => {}
        }
        let is_dir = matches!(body, BodyRecord::Dir { .. });
        match self.tree.get(ino) {
            Some(inode) if inode.is_dir() != is_dir => {
                Err(format!("inode {} is a directory and something else", ino.0))
            }
            _ => Ok(()),
        }
    }

    fn check_link(&self, seen: Seen, parent: Ino, ino: Ino) -> Result<(), String> {
        let (above, inode) = (self.tree.get(parent), self.tree.get(ino));
        match (above, inode) {
            (Some(above), _) if !above.is_dir() => Err(format!("inode {} is no directory and has entries", parent.0)),
            (None, _) | (_, None) if seen.ordered => {
                Err(format!("a name of inode {} in directory {} leads nowhere", ino.0, parent.0))
            }
            (_, Some(inode)) if inode.is_dir() => match inode.links.first() {
                _ if ino == ROOT => Err("the root has a name".into()),
                // Of several names the tree follows one: a cycle could hide behind the others.
                Some((other, _)) if *other != parent => Err(format!("directory {} has two names", ino.0)),
                _ if self.tree.is_below(parent, ino) => Err(format!("directory {} lies within itself", ino.0)),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// What only shows when all has been replayed.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub(super) fn check_whole(&self) -> Result<(), String> {
        let mut spooled: HashMap<SpoolId, Ino> = HashMap::new();
        for (ino, inode) in self.tree.iter() {
            match &inode.body {
                // Removed while a program had it open, when the daemon was killed: nobody has it any more. A daemon before
                // may have used its number again.
                _ if inode.links.is_empty() => {}
                Body::File { content: Content::Local { spool, .. }, .. } => {
                    if let Some(other) = spooled.insert(*spool, ino) {
                        let (ino, other) = (ino.0.max(other.0), ino.0.min(other.0));
                        return Err(format!("spool file {:x} is the content of inodes {other} and {ino}", spool.0));
                    }
                }
                Body::Dir(_) if inode.links.len() > 1 => return Err(format!("directory {} has two names", ino.0)),
                _ => {}
            }
        }
        Ok(())
    }
}

fn check_object(object: &Object) -> Result<(), String> {
    match object.size > LONGEST_FILE {
        true => Err(format!("a file of {} bytes is longer than any can be", object.size)),
        false => Ok(()),
    }
}
