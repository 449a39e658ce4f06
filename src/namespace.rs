//! The inode tree in memory: names, attributes, what each file's content is. No I/O, no locks, no clock.
//!
//! Two layers show as one. The **base** layer is a commit's tree, listed a directory at a time; its inodes are
//! *transient*: forgotten at the end of the mount, listed again by the next. Whatever was changed here is *recorded*:
//! its inode is on the journal, and wins over the base entry of the same name. A base name that was removed or moved
//! away is *hidden*.

mod check;
mod order;

use std::collections::{BTreeMap, BTreeSet, HashMap, btree_map};
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::count;
use crate::hash::ContentHash;
pub use crate::id::{Generation, Ino, ROOT, SpoolId};
use crate::path::{Name, PathError, RepoPath};
use crate::table::{Dense, Table};
use crate::workspace::{Object, Revision, Source};
pub use order::{DOTS, Order};

/// Seconds and nanoseconds since the epoch, as the kernel counts them. Packed: every inode has three.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(C, packed(4))]
pub struct Timestamp(pub i64, pub u32);

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        match time.duration_since(UNIX_EPOCH) {
            Ok(since) => Self(since.as_secs() as i64, since.subsec_nanos()),
            // Nanoseconds count forward from the second before.
            Err(before) => {
                let before = before.duration();
                match before.subsec_nanos() {
                    0 => Self(-(before.as_secs() as i64), 0),
                    nanos => Self(-(before.as_secs() as i64) - 1, 1_000_000_000 - nanos),
                }
            }
        }
    }
}

impl From<Timestamp> for SystemTime {
    /// A time that no [`SystemTime`] can be becomes the epoch.
    fn from(Timestamp(secs, nanos): Timestamp) -> Self {
        let whole = Duration::from_secs(secs.unsigned_abs());
        let time = if secs < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
        time.and_then(|time| time.checked_add(Duration::from_nanos(nanos.into()))).unwrap_or(UNIX_EPOCH)
    }
}

/// What `stat` shows beside type, size and link count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attrs {
    /// Permission bits with set-id and sticky, `07777`.
    #[serde(rename = "m")]
    pub mode: u16,
    /// Owner.
    #[serde(rename = "u")]
    pub uid: u32,
    /// Group.
    #[serde(rename = "g")]
    pub gid: u32,
    /// Last access.
    #[serde(rename = "a")]
    pub atime: Timestamp,
    /// Last change of the content.
    #[serde(rename = "t")]
    pub mtime: Timestamp,
    /// Last change of anything.
    #[serde(rename = "c")]
    pub ctime: Timestamp,
}

/// Where a regular file's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// On the server; perhaps also in the cache, under its hash.
    Remote {
        /// Names the bytes.
        hash: ContentHash,
        /// Where they can be read; `None` is the file's own path in the workspace's view.
        origin: Option<Arc<Source>>,
    },
    /// In a spool file, which is the truth about size and modification time after a crash.
    Local {
        /// Which.
        spool: SpoolId,
        /// Of this daemon's life; not recorded.
        generation: Generation,
        /// Hash of this generation once known; not recorded, since a later write need not be on record.
        hash: Option<ContentHash>,
    },
}

impl Content {
    /// The path of the workspace where its bytes are, if that is noted.
    pub fn origin_in_workspace(&self) -> Option<&RepoPath> {
        match self {
            Self::Remote { origin: Some(origin), .. } if origin.revision == Revision::Workspace => Some(&origin.path),
            _ => None,
        }
    }
}

/// What a name stands for.
#[derive(Debug, Clone)]
pub enum Body {
    /// A regular file.
    File {
        /// Its bytes.
        content: Content,
        /// Their length.
        size: u64,
    },
    /// A directory; apart, since most are files.
    Dir(Box<Dir>),
    /// A symbolic link and its target; stays local.
    Symlink(Box<[u8]>),
    /// A FIFO, socket or device node; stays local.
    Special {
        /// `S_IFIFO`, `S_IFSOCK`, `S_IFCHR` or `S_IFBLK`.
        format: u32,
        /// Device number; 0 for the first two.
        rdev: u32,
    },
}

/// A directory's entries.
#[derive(Debug, Clone, Default)]
pub struct Dir {
    /// Those known.
    pub children: Dense<Name, Ino>,
    /// How many of them are directories.
    pub subdirs: u32,
    /// How many are regular files that travel: with names that the server can hold, and not ignored.
    pub files: u32,
    /// Those of the files that are ignored: they are here, and for the server they are not.
    pub ignored: BTreeSet<Name>,
    /// Base names that do not show. An entry of `children` wins over it.
    pub hidden: BTreeSet<Name>,
    /// Whether the base may have a directory at this path.
    pub based: bool,
    /// Whether the base's entries have been taken in; always true where not `based`.
    pub listed: bool,
    /// What is remembered of those who read it.
    pub view: View,
}

/// What is remembered of those who read a directory.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// The order in which it is read, while somebody does.
    pub order: Option<Box<Order>>,
    /// Whether entries came or went while it was read: the kernel may put together what was read before and after.
    pub mixed: bool,
    /// When it was last read from its beginning.
    pub read: Option<Instant>,
    /// Whether entries came or went without the kernel's doing, so that a listing that it kept may lack that.
    pub shifted: bool,
    /// How many changes had failed half-way when the kernel was last told what it may keep.
    pub doubts: u32,
}

impl View {
    /// An entry comes or goes.
    fn reorder(&mut self, change: impl FnOnce(&mut Order)) {
        if let Some(order) = &mut self.order {
            change(order);
            self.mixed = true;
        }
    }

    /// Nobody reads it any more. Returns what there may be much of.
    pub fn at_rest(&mut self) -> Option<Box<Order>> {
        self.mixed = false;
        self.order.take()
    }
}

/// Extended attributes: values by name. How long they are is kept: setting one among thousands takes no look at the
/// others.
#[derive(Debug, Clone, Default)]
pub struct Xattrs {
    values: BTreeMap<Box<[u8]>, Box<[u8]>>,
    names_bytes: usize,
    values_bytes: usize,
}

impl Xattrs {
    fn insert(&mut self, name: &[u8], value: &[u8]) {
        self.remove(name);
        self.names_bytes += name.len();
        self.values_bytes += value.len();
        self.values.insert(name.into(), value.into());
    }

    fn remove(&mut self, name: &[u8]) {
        if let Some(value) = self.values.remove(name) {
            count::take(&mut self.names_bytes, name.len(), "tree.xattrs");
            count::take(&mut self.values_bytes, value.len(), "tree.xattrs");
        }
    }

    /// Bytes of all names.
    pub fn names_bytes(&self) -> usize {
        self.names_bytes
    }

    /// Bytes of all values.
    pub fn values_bytes(&self) -> usize {
        self.values_bytes
    }
}

impl Deref for Xattrs {
    type Target = BTreeMap<Box<[u8]>, Box<[u8]>>;

    fn deref(&self) -> &Self::Target {
        &self.values
    }
}

/// One file, directory or other thing.
#[derive(Debug, Clone)]
pub struct Inode {
    /// What `stat` shows.
    pub attrs: Attrs,
    /// What it is.
    pub body: Body,
    /// Its extended attributes; most files have none.
    pub xattrs: Option<Box<Xattrs>>,
    /// The names it has: directory and entry. Directories have one, the root none.
    pub links: Links,
    /// How many times the kernel was told of it and has not forgotten.
    pub lookups: u64,
    /// Open handles.
    pub opens: u32,
    /// Whether it is on the journal.
    pub recorded: bool,
}

/// The names of an inode; nearly always one, which takes no allocation.
#[derive(Debug, Clone, Default)]
pub enum Links {
    /// None yet, or none any more.
    #[default]
    None,
    /// A single one.
    One((Ino, Name)),
    /// Hard links.
    Many(Box<Many>),
}

/// Several names of one inode.
#[derive(Debug, Clone)]
pub struct Many(Vec<(Ino, Name)>);

impl Links {
    fn push(&mut self, link: (Ino, Name)) {
        *self = match std::mem::take(self) {
            Self::None => Self::One(link),
            Self::One(first) => Self::Many(Box::new(Many(vec![first, link]))),
            Self::Many(mut links) => {
                links.0.push(link);
                Self::Many(links)
            }
        };
    }

    fn remove(&mut self, parent: Ino, name: &Name) {
        let same = |link: &(Ino, Name)| link.0 == parent && link.1 == *name;
        match self {
            Self::One(link) if same(link) => *self = Self::None,
            Self::None | Self::One(_) => {}
            Self::Many(links) => {
                // Where many names go they mostly go in the order that they came in: the first one looked at is it.
                if let Some(at) = links.0.iter().position(same) {
                    links.0.remove(at);
                }
                if let [_] = links.0.as_slice() {
                    *self = links.0.pop().map_or(Self::None, Self::One);
                }
            }
        }
    }
}

impl Deref for Links {
    type Target = [(Ino, Name)];

    fn deref(&self) -> &Self::Target {
        match self {
            Self::None => &[],
            Self::One(link) => std::slice::from_ref(link),
            Self::Many(links) => &links.0,
        }
    }
}

impl Inode {
    /// `stat`'s link count.
    pub fn nlink(&self) -> u32 {
        match &self.body {
            Body::Dir(dir) => 2 + dir.subdirs,
            _ => self.links.len() as u32,
        }
    }

    /// What it adds to [`Dir::subdirs`] and [`Dir::files`] under `name`.
    fn counted(&self, name: &Name) -> (u32, u32) {
        match self.body {
            Body::Dir(_) => (1, 0),
            Body::File { .. } => (0, u32::from(name.storable().is_ok())),
            Body::Symlink(_) | Body::Special { .. } => (0, 0),
        }
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        matches!(self.body, Body::Dir(_))
    }

    /// Length of the content, of a symlink's target, or 0.
    pub fn size(&self) -> u64 {
        match &self.body {
            Body::File { size, .. } => *size,
            Body::Symlink(target) => target.len() as u64,
            Body::Dir(_) | Body::Special { .. } => 0,
        }
    }
}

/// An inode as the journal holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct InodeRecord {
    /// What `stat` shows.
    pub attrs: Attrs,
    /// What it is.
    pub body: BodyRecord,
}

/// [`Body`] as the journal holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum BodyRecord {
    /// A regular file whose bytes the server has.
    #[serde(rename = "remote")]
    Remote {
        /// What.
        object: Object,
        /// Where, if not at its own path.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        origin: Option<Arc<Source>>,
    },
    /// A regular file whose bytes are in the spool.
    #[serde(rename = "spool")]
    Spool(SpoolId),
    /// A directory; whether the base may have it.
    #[serde(rename = "dir")]
    Dir {
        /// See [`Dir::based`].
        based: bool,
    },
    /// A symbolic link's target.
    #[serde(rename = "symlink", with = "crate::path::bytes_as_text")]
    Symlink(Box<[u8]>),
    /// See [`Body::Special`].
    #[serde(rename = "special")]
    Special {
        /// File format bits.
        format: u32,
        /// Device number.
        rdev: u32,
    },
}

/// The tree.
#[derive(Debug)]
pub struct Namespace {
    inodes: Table<Inode>,
    next: u64,
    /// What the mount's root is in the repository.
    root_path: RepoPath,
    /// The directory of what a repair salvaged, of which nothing travels.
    lost: Option<Ino>,
    /// How many names are ignored.
    ignored: usize,
}

impl Namespace {
    /// A tree with nothing but an unlisted root, which shows `root_path` of the base.
    pub fn new(root_path: RepoPath, attrs: Attrs) -> Self {
        let root = Inode {
            attrs,
            body: Body::Dir(Box::new(Dir { based: true, ..Dir::default() })),
            xattrs: None,
            links: Links::None,
            lookups: 1,
            opens: 0,
            recorded: true,
        };
        let mut inodes = Table::default();
        inodes.insert(ROOT.0, root);
        Self { inodes, next: ROOT.0 + 1, root_path, lost: None, ignored: 0 }
    }

    /// What the mount's root is in the repository.
    pub fn root_path(&self) -> &RepoPath {
        &self.root_path
    }

    /// Makes a directory the one of which nothing travels.
    pub fn set_lost(&mut self, dir: Ino) {
        self.lost = Some(dir);
    }

    /// The directory of what a repair salvaged, if there is any.
    pub fn lost(&self) -> Option<Ino> {
        self.lost
    }

    /// Whether something lies in that directory.
    pub fn is_lost(&self, ino: Ino) -> bool {
        let above =
            |lost| self.get(ino).and_then(|inode| inode.links.first()).is_some_and(|(parent, _)| *parent == lost);
        self.lost.is_some_and(above)
    }

    /// A number that no inode has had.
    pub fn fresh_ino(&mut self) -> Ino {
        self.next += 1;
        Ino(self.next - 1)
    }

    /// The number that the next [fresh](Self::fresh_ino) inode will have.
    pub fn next_ino(&self) -> Ino {
        Ino(self.next)
    }

    /// How many inodes there are.
    pub fn len(&self) -> usize {
        self.inodes.len()
    }

    /// Never: there is always a root.
    pub fn is_empty(&self) -> bool {
        self.inodes.is_empty()
    }

    /// The inode of that number.
    pub fn get(&self, ino: Ino) -> Option<&Inode> {
        self.inodes.get(ino.0)
    }

    /// The same, to change what is not structure.
    pub fn get_mut(&mut self, ino: Ino) -> Option<&mut Inode> {
        self.inodes.get_mut(ino.0)
    }

    /// The content of a regular file, and its length in bytes.
    pub fn content(&self, ino: Ino) -> Option<(&Content, u64)> {
        match &self.get(ino)?.body {
            Body::File { content, size } => Some((content, *size)),
            _ => None,
        }
    }

    /// The directory of that number.
    pub fn dir(&self, ino: Ino) -> Option<&Dir> {
        match &self.get(ino)?.body {
            Body::Dir(dir) => Some(dir),
            _ => None,
        }
    }

    /// The same, to change.
    pub fn dir_mut(&mut self, ino: Ino) -> Option<&mut Dir> {
        match &mut self.get_mut(ino)?.body {
            Body::Dir(dir) => Some(dir),
            _ => None,
        }
    }

    /// The entry `name` of a directory, as far as is known.
    pub fn child(&self, parent: Ino, name: &Name) -> Option<Ino> {
        self.dir(parent)?.children.get(name).copied()
    }

    /// All inodes, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (Ino, &Inode)> {
        self.inodes.iter().map(|(number, inode)| (Ino(number), inode))
    }

    /// Adds an inode without names.
    pub fn insert(&mut self, ino: Ino, attrs: Attrs, body: Body, recorded: bool) {
        self.next = self.next.max(ino.0 + 1);
        let inode = Inode { attrs, body, xattrs: None, links: Links::None, lookups: 0, opens: 0, recorded };
        self.inodes.insert(ino.0, inode);
    }

    /// Sets what the journal knows of an inode; makes it when it is new. A spool file's size comes from
    /// the spool: the caller sets it.
    pub fn apply_record(&mut self, ino: Ino, record: &InodeRecord) {
        let body = |old: Option<&Body>| match &record.body {
            BodyRecord::Remote { object, origin } => {
                Body::File { content: Content::Remote { hash: object.hash, origin: origin.clone() }, size: object.size }
            }
            BodyRecord::Spool(spool) => match old {
                Some(Body::File { content: Content::Local { spool: same, generation, hash }, size })
                    if same == spool =>
                {
                    let content = Content::Local { spool: *spool, generation: *generation, hash: *hash };
                    Body::File { content, size: *size }
                }
                _ => {
                    let content = Content::Local { spool: *spool, generation: Generation::UNSEEN, hash: None };
                    Body::File { content, size: 0 }
                }
            },
            BodyRecord::Dir { based } => match old {
                Some(Body::Dir(dir)) => Body::Dir(Box::new(Dir { based: *based, ..(**dir).clone() })),
                _ => Body::Dir(Box::new(Dir { based: *based, listed: !*based, ..Dir::default() })),
            },
            BodyRecord::Symlink(target) => Body::Symlink(target.clone()),
            BodyRecord::Special { format, rdev } => Body::Special { format: *format, rdev: *rdev },
        };
        match self.inodes.get_mut(ino.0) {
            Some(inode) => {
                inode.attrs = record.attrs;
                inode.recorded = true;
                match (&record.body, &mut inode.body) {
                    // A directory's entries are never copied.
                    (BodyRecord::Dir { based }, Body::Dir(dir)) => {
                        dir.based = *based;
                        dir.listed |= !based;
                    }
                    (_, old) => *old = body(Some(&*old)),
                }
            }
            None => self.insert(ino, record.attrs, body(None), true),
        }
    }

    /// Sets an extended attribute; `None` takes it away.
    pub fn set_xattr(&mut self, ino: Ino, name: &[u8], value: Option<&[u8]>) {
        let Some(inode) = self.get_mut(ino) else { return };
        match value {
            Some(value) => {
                inode.xattrs.get_or_insert_default().insert(name, value);
            }
            None => {
                if let Some(xattrs) = &mut inode.xattrs {
                    xattrs.remove(name);
                    if xattrs.is_empty() {
                        inode.xattrs = None;
                    }
                }
            }
        }
    }

    /// What the journal should know of an inode, beside its names and extended attributes.
    pub fn record(&self, ino: Ino) -> Option<InodeRecord> {
        let inode = self.get(ino)?;
        let body = match &inode.body {
            Body::File { content: Content::Remote { hash, origin }, size } => {
                BodyRecord::Remote { object: Object { hash: *hash, size: *size }, origin: origin.clone() }
            }
            Body::File { content: Content::Local { spool, .. }, .. } => BodyRecord::Spool(*spool),
            Body::Dir(dir) => BodyRecord::Dir { based: dir.based },
            Body::Symlink(target) => BodyRecord::Symlink(target.clone()),
            Body::Special { format, rdev } => BodyRecord::Special { format: *format, rdev: *rdev },
        };
        Some(InodeRecord { attrs: inode.attrs, body })
    }

    /// Gives `ino` the name `name` in `parent`. A name that stood there before loses its inode.
    pub fn link(&mut self, parent: Ino, name: Name, ino: Ino) {
        if self.child(parent, &name) == Some(ino) {
            return;
        }
        self.unlink(parent, &name, false);
        let Some(kind) = self.get(ino).map(|inode| inode.counted(&name)) else {
            return;
        };
        let Some(dir) = self.dir_mut(parent) else { return };
        dir.children.insert(name.clone(), ino);
        dir.view.reorder(|order| order.insert(&name));
        dir.subdirs += kind.0;
        dir.files += kind.1;
        if let Some(inode) = self.get_mut(ino) {
            inode.links.push((parent, name));
        }
    }

    /// Takes a name away, and hides the base's entry of that name if `hide`. Returns the inode it stood for, which
    /// stays, even without names, until [`drop_inode`](Self::drop_inode).
    pub fn unlink(&mut self, parent: Ino, name: &Name, hide: bool) -> Option<Ino> {
        let dir = self.dir_mut(parent)?;
        if hide {
            dir.hidden.insert(name.clone());
        }
        let ino = dir.children.remove(name)?;
        dir.view.reorder(|order| order.remove(name));
        let inode = self.inodes.get_mut(ino.0)?;
        inode.links.remove(parent, name);
        let kind = inode.counted(name);
        // It is not counted among those that travel.
        let ignored = self.set_ignored(parent, name, false);
        if let Some(dir) = self.dir_mut(parent) {
            count::take(&mut dir.subdirs, kind.0, "tree.counts");
            count::take(&mut dir.files, if ignored { 0 } else { kind.1 }, "tree.counts");
        }
        Some(ino)
    }

    /// A file's name does not travel from now on, or does again. Says whether that is new.
    pub fn set_ignored(&mut self, parent: Ino, name: &Name, ignored: bool) -> bool {
        let child = self.child(parent, name).and_then(|child| self.get(child));
        // None where the name is just being taken away.
        let files = child.map_or(0, |inode| inode.counted(name).1);
        let Some(dir) = self.dir_mut(parent) else { return false };
        match ignored {
            true if files > 0 && dir.ignored.insert(name.clone()) => {
                count::take(&mut dir.files, files, "tree.counts");
                self.ignored += 1;
                true
            }
            false if dir.ignored.remove(name) => {
                dir.files += files;
                count::take(&mut self.ignored, 1, "tree.counts");
                true
            }
            _ => false,
        }
    }

    /// Whether a name is [ignored](Dir::ignored).
    pub fn is_ignored(&self, parent: Ino, name: &Name) -> bool {
        self.ignored > 0 && self.dir(parent).is_some_and(|dir| dir.ignored.contains(name))
    }

    /// All names that are ignored.
    pub fn all_ignored(&self) -> impl Iterator<Item = (Ino, &Name)> {
        let dirs = self.iter().take(if self.ignored > 0 { usize::MAX } else { 0 });
        dirs.filter_map(|(ino, inode)| match &inode.body {
            Body::Dir(dir) => Some((ino, dir)),
            _ => None,
        })
        .flat_map(|(ino, dir)| dir.ignored.iter().map(move |name| (ino, name)))
    }

    /// Whether any name is ignored.
    pub fn ignores_any(&self) -> bool {
        self.ignored > 0
    }

    /// Forgets an inode without names.
    pub fn drop_inode(&mut self, ino: Ino) {
        if ino != ROOT && self.get(ino).is_some_and(|inode| inode.links.is_empty()) {
            self.inodes.remove(ino.0);
        }
    }

    /// Whether nothing holds the inode any more: no name, no handle, not the kernel.
    pub fn is_dead(&self, ino: Ino) -> bool {
        ino != ROOT
            && self.get(ino).is_some_and(|inode| inode.links.is_empty() && inode.opens == 0 && inode.lookups == 0)
    }

    /// The repository path of a directory's entry that may travel.
    ///
    /// # Errors
    /// When a name on the way is none that the server can hold, and [`PathError::Ignored`].
    pub fn path_in(&self, parent: Ino, name: &Name) -> Result<RepoPath, PathError> {
        if self.is_ignored(parent, name) {
            return Err(PathError::Ignored);
        }
        self.path_below(vec![name], parent)
    }

    /// The same, also of one that is ignored.
    ///
    /// # Errors
    /// When a name on the way is none that the server can hold.
    pub fn path_at(&self, parent: Ino, name: &Name) -> Result<RepoPath, PathError> {
        self.path_below(vec![name], parent)
    }

    /// The repository path of a directory.
    ///
    /// # Errors
    /// As [`path_in`](Self::path_in); [`PathError::Invalid`] when it has been removed.
    pub fn dir_path(&self, dir: Ino) -> Result<RepoPath, PathError> {
        self.path_below(Vec::new(), dir)
    }

    /// The path of what `names`, the last one first, lead to from `dir`.
    fn path_below<'a>(&'a self, mut names: Vec<&'a Name>, dir: Ino) -> Result<RepoPath, PathError> {
        let mut at = dir;
        while at != ROOT {
            if self.lost == Some(at) {
                return Err(PathError::Salvaged);
            }
            let (parent, name) = self.get(at).and_then(|inode| inode.links.first()).ok_or(PathError::Invalid)?;
            names.push(name);
            at = *parent;
        }
        self.root_path.descend(&names)
    }

    /// Every repository path of a file; names that the server cannot hold, or that are ignored, are left out.
    pub fn file_paths(&self, ino: Ino) -> Vec<RepoPath> {
        self.paths_of(ino).collect()
    }

    /// The same one by one: a file may have many thousands.
    pub fn paths_of(&self, ino: Ino) -> impl Iterator<Item = RepoPath> {
        let links = self.get(ino).map(|inode| &*inode.links).unwrap_or_default();
        links.iter().filter_map(|(parent, name)| self.path_in(*parent, name).ok())
    }

    /// A path of any inode from the mount's root, lossily printed, for people.
    pub fn display_path(&self, ino: Ino) -> String {
        let mut names = Vec::new();
        let mut at = ino;
        while let Some((parent, name)) = self.get(at).and_then(|inode| inode.links.first()) {
            names.push(name.to_string());
            at = *parent;
        }
        names.reverse();
        names.join("/")
    }

    /// What stands at a repository path, as far as it travels: nothing where what is there is ignored.
    pub fn resolve(&self, path: &RepoPath) -> Resolved {
        if !path.is_in(&self.root_path) {
            return Resolved::AsBase;
        }
        let mut at = ROOT;
        for part in path.components().skip(self.root_path.components().count()).map(str::as_bytes) {
            let Some(dir) = self.dir(at) else {
                return Resolved::Absent;
            };
            match dir.children.get(part) {
                Some(_) if self.ignored > 0 && dir.ignored.contains(part) => return Resolved::Absent,
                Some(child) => at = *child,
                None if dir.listed || dir.hidden.contains(part) => return Resolved::Absent,
                None => return Resolved::AsBase,
            }
        }
        Resolved::Inode(at)
    }

    /// Whether `ino` is `dir` or lies below it.
    pub fn is_below(&self, mut ino: Ino, dir: Ino) -> bool {
        loop {
            if ino == dir {
                return true;
            }
            match self.get(ino).and_then(|inode| inode.links.first()) {
                Some((parent, _)) => ino = *parent,
                None => return false,
            }
        }
    }

    /// Whether `ino` is a directory of which nothing travels: no regular file is below it, but for names that the server
    /// cannot hold or that are ignored. `known` remembers what was found, for further questions about the same tree.
    pub fn is_vacant(&self, ino: Ino, known: &mut HashMap<Ino, bool>) -> bool {
        // The directories on the way down, each with those of its entries that are still to be looked at: mostly the first
        // one tells.
        let mut path: Vec<(Ino, btree_map::Values<'_, Name, Ino>)> = Vec::new();
        let mut next = Some(ino);
        loop {
            if let Some(at) = next.take() {
                match (known.get(&at), self.dir(at)) {
                    (Some(true), _) => {}
                    (None, Some(_)) if self.lost == Some(at) => drop(known.insert(at, true)),
                    (Some(false), _) | (None, None) => break,
                    (None, Some(dir)) if !dir.listed || dir.files > 0 => break,
                    (None, Some(dir)) if dir.subdirs == 0 => drop(known.insert(at, true)),
                    (None, Some(dir)) => path.push((at, dir.children.values())),
                }
            }
            match path.last_mut() {
                None => return true,
                Some((at, left)) => match left.find(|child| self.dir(**child).is_some()) {
                    None => {
                        known.insert(*at, true);
                        path.pop();
                    }
                    child => next = child.copied(),
                },
            }
        }
        for (at, _) in path {
            known.insert(at, false);
        }
        known.insert(ino, false);
        false
    }

    /// Every name below a directory, parents before children.
    pub fn walk(&self, dir: Ino) -> Vec<(Ino, Name, Ino)> {
        let mut found = Vec::new();
        let mut todo = vec![dir];
        while let Some(at) = todo.pop() {
            for (name, child) in self.dir(at).into_iter().flat_map(|dir| dir.children.iter()) {
                found.push((at, name.clone(), *child));
                if self.dir(*child).is_some() {
                    todo.push(*child);
                }
            }
        }
        found
    }

    /// The first directory below `dir`, itself included, whose base entries have not been taken in.
    pub fn first_unlisted(&self, dir: Ino) -> Option<Ino> {
        let mut todo = vec![dir];
        while let Some(at) = todo.pop() {
            let here = self.dir(at)?;
            if !here.listed {
                return Some(at);
            }
            todo.extend(here.children.values().filter(|child| self.dir(**child).is_some()));
        }
        None
    }
}

/// The answer of [`Namespace::resolve`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolved {
    /// An inode known here.
    Inode(Ino),
    /// Nothing.
    Absent,
    /// Not listed yet and not changed here: whatever the base has.
    AsBase,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attrs() -> Attrs {
        let zero = Timestamp(0, 0);
        Attrs { mode: 0o755, uid: 0, gid: 0, atime: zero, mtime: zero, ctime: zero }
    }

    fn name(text: &str) -> Name {
        Name::new(text.as_bytes()).unwrap()
    }

    fn dir(tree: &mut Namespace, parent: Ino, text: &str) -> Ino {
        let ino = tree.fresh_ino();
        tree.insert(ino, attrs(), Body::Dir(Box::new(Dir { listed: true, ..Dir::default() })), false);
        tree.link(parent, name(text), ino);
        ino
    }

    fn file(tree: &mut Namespace, parent: Ino, text: &str) -> Ino {
        let ino = tree.fresh_ino();
        let content = Content::Local { spool: SpoolId(ino.0), generation: Generation::UNSEEN, hash: None };
        tree.insert(ino, attrs(), Body::File { content, size: 0 }, false);
        tree.link(parent, name(text), ino);
        ino
    }

    fn tree() -> Namespace {
        Namespace::new(RepoPath::parse("data").unwrap(), attrs())
    }

    #[test]
    fn how_long_attributes_are_is_known_without_a_look_at_each() {
        let mut xattrs = Xattrs::default();
        for (name, value) in [("user.a", "first"), ("user.b", ""), ("user.a", "other value"), ("user.c", "x")] {
            xattrs.insert(name.as_bytes(), value.as_bytes());
        }
        xattrs.remove(b"user.c");
        xattrs.remove(b"user.c");
        assert_eq!((xattrs.len(), xattrs.names_bytes(), xattrs.values_bytes()), (2, 12, 11));
        assert_eq!(xattrs.get("user.a".as_bytes()).map(AsRef::as_ref), Some(b"other value".as_slice()));
    }

    #[test]
    fn times_before_the_epoch_count_nanoseconds_forward() {
        for time in [Timestamp(-2, 500_000_000), Timestamp(-1, 0), Timestamp(-1, 1), Timestamp(0, 7), Timestamp(9, 0)] {
            assert_eq!(Timestamp::from(SystemTime::from(time)), time);
        }
        let before = UNIX_EPOCH.checked_sub(Duration::from_millis(1500)).unwrap();
        assert_eq!(Timestamp::from(before), Timestamp(-2, 500_000_000));
    }

    #[test]
    fn an_inode_takes_at_most_the_bytes_that_a_million_of_them_may() {
        assert!(size_of::<Inode>() <= 160, "{}", size_of::<Inode>());
    }

    #[test]
    fn a_file_with_two_names_has_two_paths_and_two_links() {
        let mut tree = tree();
        let sub = dir(&mut tree, ROOT, "sub");
        let ino = file(&mut tree, ROOT, "a");
        tree.link(sub, name("b"), ino);
        assert_eq!(tree.get(ino).unwrap().nlink(), 2);
        let paths: Vec<_> = tree.file_paths(ino).iter().map(|p| p.as_str().to_owned()).collect();
        assert_eq!(paths, ["data/a", "data/sub/b"]);
        tree.unlink(ROOT, &name("a"), false);
        assert_eq!(tree.get(ino).unwrap().nlink(), 1);
    }

    #[test]
    fn link_counts_of_directories_follow_their_subdirectories() {
        let mut tree = tree();
        let a = dir(&mut tree, ROOT, "a");
        dir(&mut tree, a, "b");
        assert_eq!(tree.get(a).unwrap().nlink(), 3);
        tree.unlink(a, &name("b"), false);
        assert_eq!(tree.get(a).unwrap().nlink(), 2);
    }

    #[test]
    fn a_directory_is_vacant_when_nothing_below_it_travels() {
        let mut tree = tree();
        let top = dir(&mut tree, ROOT, "top");
        let (a, b) = (dir(&mut tree, top, "a"), dir(&mut tree, top, "b"));
        let deep = dir(&mut tree, a, "deep");
        assert!(tree.is_vacant(top, &mut HashMap::new()));
        let link = tree.fresh_ino();
        tree.insert(link, attrs(), Body::Symlink((*b"file").into()), false);
        tree.link(b, name("link"), link);
        let odd = file(&mut tree, b, "back\\slash");
        assert!(tree.is_vacant(top, &mut HashMap::new()), "neither link nor odd name travels");
        tree.unlink(b, &name("back\\slash"), false);
        tree.drop_inode(odd);
        let at = file(&mut tree, deep, "file");
        let mut known = HashMap::new();
        let found = [deep, a, b, top, at].map(|ino| tree.is_vacant(ino, &mut known));
        assert_eq!(found, [false, false, true, false, false]);
        tree.unlink(deep, &name("file"), true);
        tree.dir_mut(b).unwrap().listed = false;
        assert!(!tree.is_vacant(top, &mut HashMap::new()), "nobody knows what is in b");
        assert!(tree.is_vacant(a, &mut HashMap::new()));
    }

    #[test]
    fn an_unlisted_directory_shows_the_base_but_for_what_changed() {
        let mut tree = tree();
        let path = |text: &str| RepoPath::parse(text).unwrap();
        assert_eq!(tree.resolve(&path("data/x")), Resolved::AsBase);
        assert_eq!(tree.resolve(&path("elsewhere")), Resolved::AsBase);
        tree.unlink(ROOT, &name("x"), true);
        assert_eq!(tree.resolve(&path("data/x/below")), Resolved::Absent);
        let ino = file(&mut tree, ROOT, "y");
        assert_eq!(tree.resolve(&path("data/y")), Resolved::Inode(ino));
        assert_eq!(tree.resolve(&path("data/y/below")), Resolved::Absent);
    }

    #[test]
    fn an_inode_lives_until_name_handle_and_kernel_let_go() {
        let mut tree = tree();
        let ino = file(&mut tree, ROOT, "a");
        tree.get_mut(ino).unwrap().lookups = 1;
        tree.unlink(ROOT, &name("a"), false);
        assert!(!tree.is_dead(ino));
        tree.get_mut(ino).unwrap().lookups = 0;
        assert!(tree.is_dead(ino));
        tree.drop_inode(ino);
        assert!(tree.get(ino).is_none());
    }
}
