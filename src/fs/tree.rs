//! The inode tree as the filesystem changes it: what is changed for good is remembered, until it is put on record.
//! Everybody may look at all of it; what changes it is here, and says whether the record will know.

use std::ops::Deref;
use std::sync::Arc;

use crate::count;
use crate::hash::ContentHash;
use crate::namespace::{
    Attrs, Body, Content, Dir, Generation, Ino, Inode, Namespace, Order, ROOT, SpoolId, Timestamp, View,
};
use crate::path::{Name, RepoPath};
use crate::store::journal::Change;
use crate::workspace::{CommitId, Revision, Source};

/// Which bytes a file had at a moment. Who gives the lock away, for work on the disk or a request, asks with it afterwards
/// whether the file has them [still](Tree::still).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token {
    ino: Ino,
    bytes: Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bytes {
    Spool(SpoolId, Generation),
    Server(ContentHash),
}

impl Token {
    /// A file with the bytes that a spool file has in one generation.
    pub fn of_spool(ino: Ino, spool: SpoolId, generation: Generation) -> Self {
        Self { ino, bytes: Bytes::Spool(spool, generation) }
    }

    /// A file with content that the server has.
    pub fn of_server(ino: Ino, hash: ContentHash) -> Self {
        Self { ino, bytes: Bytes::Server(hash) }
    }

    /// Which file.
    pub fn ino(self) -> Ino {
        self.ino
    }

    /// Its spool file, if it had one.
    pub fn spool(self) -> Option<SpoolId> {
        match self.bytes {
            Bytes::Spool(spool, _) => Some(spool),
            Bytes::Server(_) => None,
        }
    }

    /// Its hash, if the server had it.
    pub fn on_server(self) -> Option<ContentHash> {
        match self.bytes {
            Bytes::Spool(..) => None,
            Bytes::Server(hash) => Some(hash),
        }
    }
}

/// Room for so many changed inodes is kept from one transaction for the next.
const ROOM_KEPT: usize = 64;

/// The tree, the commit below it, and what of it is to go on record.
pub(super) struct Tree {
    names: Namespace,
    /// The commit under the workspace.
    base: CommitId,
    last_generation: u64,
    /// Inodes that were changed and are to be put on record; some more than once.
    changed: Vec<Ino>,
}

impl Deref for Tree {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.names
    }
}

impl Tree {
    pub fn new(names: Namespace) -> Self {
        Self { names, base: CommitId("".into()), last_generation: 0, changed: Vec::new() }
    }

    /// The commit under the workspace.
    pub fn base(&self) -> &CommitId {
        &self.base
    }

    /// Which bytes a file has now.
    pub fn token(&self, ino: Ino) -> Option<Token> {
        Some(match self.names.content(ino)?.0 {
            Content::Local { spool, generation, .. } => Token::of_spool(ino, *spool, *generation),
            Content::Remote { hash, .. } => Token::of_server(ino, *hash),
        })
    }

    /// Whether a file has the same bytes in the same place: nothing was written in between.
    pub fn still(&self, token: Token) -> bool {
        self.token(token.ino) == Some(token)
    }

    /// Whether a file has the same spool file, whatever was written to it in between.
    pub fn still_in(&self, token: Token) -> bool {
        token.spool().is_some() && self.token(token.ino).and_then(Token::spool) == token.spool()
    }

    /// A generation that no content has.
    pub fn fresh_generation(&mut self) -> Generation {
        self.last_generation += 1;
        Generation::nth(self.last_generation)
    }
}

/// What goes on record.
impl Tree {
    /// An inode to be changed: it goes on record as it is when the transaction ends.
    pub fn edit(&mut self, ino: Ino) -> Option<&mut Inode> {
        let inode = self.names.get_mut(ino)?;
        if self.changed.last() != Some(&ino) {
            self.changed.push(ino);
        }
        Some(inode)
    }

    /// An inode to be brought to what the base has by now: it goes on record as [`edit`](Self::edit) has it if it is there
    /// already; else the base tells.
    pub fn amend(&mut self, ino: Ino) -> Option<&mut Inode> {
        match self.names.get(ino)?.recorded {
            true => self.edit(ino),
            false => self.names.get_mut(ino),
        }
    }

    /// The inodes that were changed since this was last asked, each once, in the order of their numbers.
    pub fn take_changed(&mut self) -> Vec<Ino> {
        let mut changed = std::mem::take(&mut self.changed);
        changed.sort_unstable();
        changed.dedup();
        changed
    }

    /// Gives back what [`take_changed`](Self::take_changed) gave, for the next: not every transaction takes new memory.
    pub fn return_room(&mut self, mut changed: Vec<Ino>) {
        changed.clear();
        changed.shrink_to(ROOM_KEPT);
        self.changed = changed;
    }

    /// Whether any were.
    pub fn has_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Makes a change that is, or will be, on record. Those of other things are none of the tree's.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Inode { ino, record } => self.names.apply_record(*ino, record),
            Change::Xattr { ino, name, value } => self.names.set_xattr(*ino, name, Some(value)),
            Change::DropXattr { ino, name } => self.names.set_xattr(*ino, name, None),
            Change::Link { parent, name, ino } => self.names.link(*parent, name.clone(), *ino),
            Change::Unlink { parent, name, hide } => _ = self.names.unlink(*parent, name, *hide),
            Change::Hide { parent, name } => {
                if let Some(dir) = self.names.dir_mut(*parent) {
                    dir.hidden.insert(name.clone());
                }
            }
            Change::Unhide { parent, name } => {
                if let Some(dir) = self.names.dir_mut(*parent) {
                    dir.hidden.remove(name);
                }
            }
            Change::Ignore { parent, name } => _ = self.names.set_ignored(*parent, name, true),
            Change::Unignore { parent, name } => _ = self.names.set_ignored(*parent, name, false),
            Change::Drop { ino } => self.names.drop_inode(*ino),
            _ => {}
        }
    }

    /// Adds an inode without a name. The caller puts it on record before its name.
    pub fn add(&mut self, attrs: Attrs, body: Body) -> Ino {
        let ino = self.names.fresh_ino();
        self.names.insert(ino, attrs, body, true);
        ino
    }
}

/// What the base has.
impl Tree {
    /// The base is `commit`, and may differ anywhere: every listing is taken in again when it is needed.
    pub fn move_base(&mut self, commit: &CommitId) {
        self.base = commit.clone();
        for ino in self.all_but_lost() {
            if let Some(dir) = self.names.dir_mut(ino) {
                (dir.based, dir.listed) = (true, false);
            }
        }
    }

    /// What was staged has become `commit`, which is the base from now on. Unless it did so `alone`, the base may have
    /// changed elsewhere too. Nothing is hidden any more.
    pub fn rebase(&mut self, commit: &CommitId, alone: bool) {
        self.base = commit.clone();
        for ino in self.all_but_lost() {
            match self.names.get_mut(ino).map(|inode| &mut inode.body) {
                Some(Body::File { content: Content::Remote { origin: Some(origin), .. }, .. })
                    if origin.revision == Revision::Workspace =>
                {
                    let source = Source { revision: Revision::Commit(commit.clone()), path: origin.path.clone() };
                    *origin = Arc::new(source);
                }
                Some(Body::Dir(dir)) => {
                    dir.based = true;
                    dir.listed &= alone;
                    dir.hidden.clear();
                }
                _ => {}
            }
        }
    }

    fn all_but_lost(&self) -> Vec<Ino> {
        let lost = self.names.lost();
        self.names.iter().map(|(ino, _)| ino).filter(|ino| Some(*ino) != lost).collect()
    }

    /// Makes sure that a base file at `path`, which the tree does not have there, does not show through: not either when
    /// what stands in the place of a directory above it goes.
    pub fn hide(&mut self, path: &RepoPath) {
        let Some(below) = path.below(self.names.root_path()) else {
            return;
        };
        let mut at = ROOT;
        let mut parts = below.components().peekable();
        while let Some(part) = parts.next() {
            let Ok(name) = Name::new(part.as_bytes()) else { return };
            match self.names.child(at, &name) {
                Some(child) if self.names.dir(child).is_some() => at = child,
                // Its own account tells what the base has there.
                Some(_) if parts.peek().is_none() => return,
                _ => {
                    if let Some(dir) = self.names.dir_mut(at) {
                        dir.hidden.insert(name);
                    }
                    return;
                }
            }
        }
    }

    /// Shows an entry that the record need not know.
    pub fn show(&mut self, dir: Ino, name: Name, attrs: Attrs, body: Body) -> Ino {
        let ino = self.names.fresh_ino();
        self.names.insert(ino, attrs, body, false);
        self.names.link(dir, name, ino);
        ino
    }

    /// Takes an entry away that the record does not have, or that a repair leaves out; `hide`: and what the base has there.
    pub fn take_away(&mut self, parent: Ino, name: &Name, hide: bool) {
        self.names.unlink(parent, name, hide);
    }

    /// Forgets an inode that the record does not have, or that a repair leaves out.
    pub fn forget_inode(&mut self, ino: Ino) {
        self.names.drop_inode(ino);
    }

    /// A directory's entries in the base are all taken in.
    pub fn set_listed(&mut self, dir: Ino) {
        if let Some(dir) = self.names.dir_mut(dir) {
            dir.listed = true;
        }
    }

    /// Not all of a directory's entries in the base are here any more: they are listed when they are needed.
    pub fn set_unlisted(&mut self, dir: Ino) {
        if let Some(dir) = self.names.dir_mut(dir) {
            dir.listed = false;
        }
    }

    /// A directory at the root shows what a repair salvaged: no base has it, and it is made anew by every mount.
    pub fn set_lost(&mut self, dir: Ino) {
        if let Some(dir) = self.names.dir_mut(dir) {
            (dir.based, dir.listed) = (false, true);
        }
        self.names.set_lost(dir);
    }

    /// A directory is where no base has one: nothing of a base shows through.
    pub fn detach_from_base(&mut self, ino: Ino) {
        if self.names.dir(ino).is_some()
            && let Some(Inode { body: Body::Dir(dir), .. }) = self.edit(ino)
        {
            (dir.based, dir.listed) = (false, true);
            dir.hidden.clear();
        }
    }
}

/// What this mount alone has to know.
impl Tree {
    /// The kernel has got an inode's number once more.
    pub fn looked_up(&mut self, ino: Ino) {
        if let Some(inode) = self.names.get_mut(ino) {
            inode.lookups += 1;
        }
    }

    /// The kernel has forgotten an inode's number so often. Whether it has it no more.
    pub fn forgotten(&mut self, ino: Ino, times: u64) -> bool {
        let Some(inode) = self.names.get_mut(ino) else { return false };
        count::take(&mut inode.lookups, times, "handles.lookups");
        inode.lookups == 0
    }

    /// A handle of an inode was opened.
    pub fn opened(&mut self, ino: Ino) {
        if let Some(inode) = self.names.get_mut(ino) {
            inode.opens += 1;
        }
    }

    /// A handle of an inode was closed. Returns what was kept for those who read a directory, of which there may be much.
    pub fn closed(&mut self, ino: Ino) -> Option<Box<Order>> {
        let inode = self.names.get_mut(ino)?;
        count::take(&mut inode.opens, 1, "handles.opens");
        match (inode.opens, &mut inode.body) {
            (0, Body::Dir(dir)) => dir.view.at_rest(),
            _ => None,
        }
    }

    /// What is remembered of those who read a directory.
    pub fn view(&mut self, dir: Ino) -> Option<&mut View> {
        Some(&mut self.names.dir_mut(dir)?.view)
    }

    /// The order in which a directory is read; made when it is first asked for.
    pub fn order(&mut self, dir: Ino) -> Option<&Order> {
        let Dir { children, view, .. } = self.names.dir_mut(dir)?;
        Some(view.order.get_or_insert_with(|| Box::new(Order::of(children.keys()))))
    }

    /// A file's content was changed where it lies; its spool file has time and length, and the record need not. Returns its
    /// length before and after.
    pub fn wrote(&mut self, ino: Ino, time: Timestamp, length: impl FnOnce(u64) -> u64) -> Option<(u64, u64)> {
        self.renew(ino);
        let inode = self.names.get_mut(ino)?;
        (inode.attrs.mtime, inode.attrs.ctime) = (time, time);
        match &mut inode.body {
            Body::File { content: Content::Local { .. }, size } => {
                let before = std::mem::replace(size, length(*size));
                Some((before, *size))
            }
            _ => None,
        }
    }

    /// A file's content is, or may become, another where it lies: no hash is known of it.
    pub fn renew(&mut self, ino: Ino) {
        let generation = self.fresh_generation();
        if let Some((now, hash, _)) = self.local_mut(ino) {
            (*now, *hash) = (generation, None);
        }
    }

    /// What a file's spool file shows of times and length.
    pub fn saw(&mut self, ino: Ino, change: impl FnOnce(&mut Attrs)) {
        if let Some(inode) = self.names.get_mut(ino) {
            change(&mut inode.attrs);
        }
    }

    /// The length that a file has in the spool, in bytes.
    pub fn set_length(&mut self, ino: Ino, length: u64) {
        if let Some(Inode { body: Body::File { size, .. }, .. }) = self.names.get_mut(ino) {
            *size = length;
        }
    }

    /// A spool file that an earlier daemon left was looked at: its length is known, and it has a generation from now on.
    pub fn seen(&mut self, ino: Ino, spool: SpoolId, length: u64) {
        let generation = self.fresh_generation();
        if let Some(Inode { body: Body::File { content, size }, .. }) = self.names.get_mut(ino) {
            (*content, *size) = (Content::Local { spool, generation, hash: None }, length);
        }
    }

    /// The hash of a file's bytes, as long as they are of this generation.
    pub fn set_hash(&mut self, ino: Ino, of: Generation, found: Option<ContentHash>) {
        if let Some((now, hash, _)) = self.local_mut(ino)
            && *now == of
        {
            *hash = found;
        }
    }

    fn local_mut(&mut self, ino: Ino) -> Option<(&mut Generation, &mut Option<ContentHash>, &mut u64)> {
        match &mut self.names.get_mut(ino)?.body {
            Body::File { content: Content::Local { generation, hash, .. }, size } => Some((generation, hash, size)),
            _ => None,
        }
    }
}
