//! Salvage of a damaged record: what is whole is put in order and on record again, and the files that no record names any
//! more come back under `lost+found`. Nothing is destroyed: damaged segments are set aside, bytes get a second name.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::lost::LostFound;
use super::recovery::{COMPACTION_FRAME, Foreign, Place, lost_record};
use super::{Shown, State, empty_tree};
use crate::namespace::{Body, BodyRecord, Content, Ino, ROOT, Resolved, SpoolId};
use crate::path::{NAME_MAX, Name, RepoPath};
use crate::store::disk::Disk;
use crate::store::journal::{self, Change, Damage, JournalError, Rewritten, Seen};
use crate::store::spool;
use crate::writeback::index::{Account, Staged};

/// What is known of a file that comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Label {
    /// What is left of the record does not name it: it was made where the damage is.
    New,
    /// The record has other content for the file that it was.
    Replaced,
    /// The record says that the file that it was is gone.
    Deleted,
    /// It lay in the place of a part of the record, and nothing in it is of one.
    Foreign,
}

impl Label {
    /// In a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Replaced => "replaced",
            Self::Deleted => "deleted",
            Self::Foreign => "foreign",
        }
    }
}

/// A file that comes back under `lost+found`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rescued {
    /// What it is called there.
    pub name: String,
    /// What is known of it.
    pub label: Label,
    /// Where it was, as far as is known.
    pub path: Option<String>,
    /// Its length.
    pub bytes: u64,
    /// Where it lies.
    at: PathBuf,
}

/// What a repair does, or did.
#[derive(Debug, Default)]
pub struct Repair {
    /// Every place that is damaged.
    pub damage: Vec<Damage>,
    /// Files that are on record, and whose bytes are here.
    pub files: u64,
    /// Changes that are on record and owed to the server.
    pub owed: u64,
    /// Frames' changes that contradict the rest and are left out.
    pub left_out: u64,
    /// Files that no record names any more.
    pub rescued: Vec<Rescued>,
    /// Files that are on record and whose bytes are gone.
    pub missing: Vec<String>,
}

/// Looks at what a state directory has that no daemon uses, and with `apply` repairs it. Until the new record takes the
/// place of the old one, by one rename, nothing is changed but that files get a second name; it may be ended and repeated.
///
/// # Errors
/// [`JournalError`]: a newer oxenfs wrote the record, or the disk does not let it.
pub fn repair(disk: &Disk, dir: &Path, shown: &Shown, apply: bool) -> Result<Repair, JournalError> {
    let place = Place::of(dir);
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| JournalError::Io { path, source }
    };
    let mut salvage = Salvage::new(shown, dir);
    let mut strict = State::empty(empty_tree(shown.root_path.clone(), &shown.options(dir)));
    let mut salvaged = journal::salvage(
        &place.journal,
        &place.mark,
        &mut |follows, change| salvage.take(follows, change),
        &mut |seen, change| strict.believe(seen, &change),
    )?;
    if let Err(what) = strict.check_whole() {
        salvaged.damage.push(Damage::new(&place.journal, 0, what));
    }
    drop(strict);
    if let Some(damage) = lost_record(&place).map_err(io(dir))? {
        salvaged.damage.push(damage);
    }
    salvaged.damage.append(&mut salvage.refused);
    let damage = salvaged.damage.clone();
    let mut repair = salvage.order(&place)?;
    repair.rescued.extend(salvaged.strangers.iter().filter_map(|at| foreign(at)));
    repair.damage = damage;
    if !apply || repair.damage.is_empty() {
        if repair.damage.is_empty() {
            repair.rescued.clear();
        }
        return Ok(repair);
    }
    let lost = LostFound::new(disk, dir);
    let link = |rescued: &Rescued| lost.link(&rescued.at, &rescued.name);
    for rescued in &repair.rescued {
        match link(rescued) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                journal::give_back_room(disk, &place.journal).and_then(|()| link(rescued)).map_err(io(dir))?;
            }
            done => done.map_err(io(dir))?,
        }
    }
    lost.flush().map_err(io(dir))?;
    let mut rewritten = journal::rewrite(disk, &place.journal, &place.mark, salvaged).map_err(io(&place.journal))?;
    salvage.state.put_all(&mut rewritten).and_then(|()| rewritten.complete()).map_err(io(&place.journal))?;
    Ok(repair)
}

/// What is put together from the frames that are whole.
struct Salvage {
    state: State,
    /// Which file a spool file was the content of.
    named: HashMap<SpoolId, Ino>,
    /// Where files were last.
    paths: HashMap<Ino, String>,
    /// Names of what is not known.
    dangling: HashSet<(Ino, Name)>,
    /// Files that lost a name, or are gone.
    unlinked: HashSet<Ino>,
    /// What cannot have been so.
    refused: Vec<Damage>,
    left_out: u64,
    journal: std::path::PathBuf,
    options: super::Options,
}

impl Salvage {
    fn new(shown: &Shown, dir: &Path) -> Self {
        let options = shown.options(dir);
        let state = State::empty(empty_tree(shown.root_path.clone(), &options));
        Self {
            options,
            state,
            named: HashMap::new(),
            paths: HashMap::new(),
            dangling: HashSet::new(),
            unlinked: HashSet::new(),
            refused: Vec::new(),
            left_out: 0,
            journal: dir.join("journal"),
        }
    }

    fn take(&mut self, follows: bool, change: Change) {
        match &change {
            Change::Inode { ino, record } => {
                if let BodyRecord::Spool(spool) = record.body {
                    self.named.insert(spool, *ino);
                }
            }
            Change::Link { parent, name, ino } => {
                let above = self.state.tree.display_path(*parent);
                let path = if above.is_empty() { name.to_string() } else { format!("{above}/{name}") };
                self.paths.insert(*ino, path);
                self.unlinked.remove(ino);
                match self.state.tree.get(*ino) {
                    Some(_) => self.dangling.remove(&(*parent, name.clone())),
                    None => self.dangling.insert((*parent, name.clone())),
                };
                // The frame that took its old name away may be among those that are lost.
                let other = self.state.tree.get(*ino).filter(|inode| inode.is_dir()).and_then(|inode| {
                    inode.links.first().filter(|(above, old)| (above, old) != (parent, name)).cloned()
                });
                if let Some((parent, name)) = other.filter(|_| !follows) {
                    self.state.tree.take_away(parent, &name, true);
                }
            }
            Change::Unlink { parent, name, .. } => {
                self.dangling.remove(&(*parent, name.clone()));
                self.unlinked.extend(self.state.tree.child(*parent, name));
            }
            _ => {}
        }
        if let Err(what) = self.state.believe(Seen { ordered: false }, &change) {
            self.left_out += 1;
            if follows && self.refused.is_empty() {
                self.refused.push(Damage::new(&self.journal, 0, what));
            }
        }
    }

    /// Puts in order what was taken in, and finds what is left over.
    fn order(&mut self, place: &Place) -> Result<Repair, JournalError> {
        let io = |source| JournalError::Io { path: place.spool.clone(), source };
        let mut repair = Repair { left_out: self.left_out, ..Repair::default() };
        let used = self.state.settle_salvaged();
        self.state.show_staged(&self.dangling, &self.options);
        let mut ids = match place.spool.is_dir() {
            true => spool::ids_in(&place.spool).map_err(io)?,
            false => Vec::new(),
        };
        let there: HashSet<SpoolId> = ids.iter().copied().collect();
        for (spool, ino) in &used {
            match there.contains(spool) {
                true => repair.files += 1,
                false => repair.missing.push(self.state.tree.display_path(*ino)),
            }
        }
        repair.missing.sort();
        let accounts: Vec<_> =
            self.state.writeback.ledger().iter().map(|(path, account)| (path.clone(), account)).collect();
        repair.owed = accounts.iter().filter(|(path, account)| self.state.owes(path, account)).count() as u64;
        ids.sort_unstable();
        for spool in ids.into_iter().filter(|id| !used.contains_key(id)) {
            let at = spool::path_in(&place.spool, spool);
            let Ok(file) = fs::symlink_metadata(&at) else { continue };
            if file.is_file() {
                repair.rescued.push(self.rescued(spool, at, file.len()));
            }
        }
        Ok(repair)
    }

    fn rescued(&self, spool: SpoolId, at: PathBuf, bytes: u64) -> Rescued {
        let ino = self.named.get(&spool);
        let path = ino.and_then(|ino| self.paths.get(ino)).cloned();
        let label = match ino {
            None => Label::New,
            Some(ino) if self.unlinked.contains(ino) => Label::Deleted,
            Some(ino) if self.state.content(*ino).is_some() => Label::Replaced,
            Some(_) => Label::New,
        };
        let mut name = format!("{}.{:x}", label.word(), spool.0);
        if let Some(base) = path.as_deref().and_then(|path| path.rsplit('/').next()) {
            name = format!("{name}.{base}");
            while name.len() > NAME_MAX - 8 {
                name.pop();
            }
        }
        Rescued { name, label, path, bytes, at }
    }
}

/// A file that lies where a part of the record should. Where two names were exchanged on the disk, a file's bytes do.
fn foreign(at: &Path) -> Option<Rescued> {
    let bytes = fs::symlink_metadata(at).ok().filter(fs::Metadata::is_file)?.len();
    let name = format!("{}.{}", Label::Foreign.word(), at.file_name()?.to_string_lossy());
    Some(Rescued { name, label: Label::Foreign, path: None, bytes, at: at.to_owned() })
}

impl State {
    /// Drops what has no name, has every file that is here owed, and says which spool file is whose content.
    fn settle_salvaged(&mut self) -> HashMap<SpoolId, Ino> {
        let mut used: HashMap<SpoolId, Ino> = HashMap::new();
        let mut inodes: Vec<Ino> = self.tree.iter().map(|(ino, _)| ino).collect();
        inodes.sort_unstable();
        for ino in inodes {
            let Some(inode) = self.tree.get(ino) else { continue };
            let spool = match &inode.body {
                Body::File { content: Content::Local { spool, .. }, .. } => Some(*spool),
                _ => None,
            };
            let doubled = spool.is_some_and(|spool| used.contains_key(&spool));
            if doubled {
                let links = inode.links.to_vec();
                for (parent, name) in links {
                    self.tree.take_away(parent, &name, false);
                }
            }
            // A directory is kept: without a name nobody sees it, and its entries would be left in the air.
            let nameless = self.tree.get(ino).is_some_and(|inode| inode.links.is_empty() && !inode.is_dir());
            if nameless {
                self.tree.forget_inode(ino);
            } else if let Some(spool) = spool.filter(|_| self.is_reached(ino)) {
                used.insert(spool, ino);
                for path in self.tree.file_paths(ino) {
                    if self.writeback.account(&path).is_none() {
                        self.writeback.set_account(path, Some(Account::default()));
                    }
                }
            }
        }
        used
    }

    /// Shows what is staged for a path of which the tree has nothing, and that nobody removed: the frame that made the
    /// file is among those that are lost, and the base's content would be staged over it.
    fn show_staged(&mut self, dangling: &HashSet<(Ino, Name)>, options: &super::Options) {
        let accounts: Vec<_> = self.writeback.ledger().iter().map(|(path, account)| (path.clone(), account)).collect();
        for (path, account) in accounts {
            if let Staged::Put(object) = account.staged
                && account.base.is_none_or(|base| base.hash != object.hash)
                && match self.tree.resolve(&path) {
                    Resolved::AsBase => true,
                    Resolved::Absent => self.is_dangling(&path, dangling),
                    Resolved::Inode(_) => false,
                }
            {
                self.import(&Foreign { path, base: account.base, staged: Some(object) }, false, options);
            }
        }
        // All of it is written down anew.
        self.take_frame();
    }

    /// Whether a path has a name, of something that is not known.
    fn is_dangling(&self, path: &RepoPath, dangling: &HashSet<(Ino, Name)>) -> bool {
        let dir = path.parent().map(|dir| self.tree.resolve(&dir));
        let name = Name::new(path.file_name().as_bytes());
        matches!((dir, name), (Some(Resolved::Inode(dir)), Ok(name)) if dangling.contains(&(dir, name.clone())))
    }

    /// Whether a way leads from the root to it.
    fn is_reached(&self, ino: Ino) -> bool {
        self.tree.is_below(ino, ROOT)
    }

    /// Writes the whole state down.
    fn put_all(&self, into: &mut Rewritten<'_>) -> io::Result<()> {
        into.append(&[Change::Base { commit: self.tree.base().clone() }])?;
        let mut portion = Vec::new();
        let mut put = |change: Change, into: &mut Rewritten<'_>, last: bool| -> io::Result<()> {
            portion.push(change);
            if portion.len() >= COMPACTION_FRAME || last {
                into.append(&portion)?;
                portion.clear();
            }
            Ok(())
        };
        let inodes: Vec<Ino> =
            self.tree.iter().map(|(ino, _)| ino).filter(|ino| *ino == ROOT || self.is_reached(*ino)).collect();
        for ino in &inodes {
            let Some(record) = self.tree.record(*ino) else { continue };
            put(Change::Inode { ino: *ino, record }, into, false)?;
            let xattrs = self.tree.get(*ino).and_then(|inode| inode.xattrs.as_ref());
            for (name, value) in xattrs.iter().flat_map(|xattrs| xattrs.iter()) {
                put(Change::Xattr { ino: *ino, name: name.clone(), value: value.clone() }, into, false)?;
            }
        }
        for ino in &inodes {
            let Some(inode) = self.tree.get(*ino) else { continue };
            if let Body::Dir(dir) = &inode.body {
                for name in &dir.hidden {
                    put(Change::Hide { parent: *ino, name: name.clone() }, into, false)?;
                }
            }
            for (parent, name) in inode.links.iter().filter(|(parent, _)| self.is_reached(*parent)) {
                put(Change::Link { parent: *parent, name: name.clone(), ino: *ino }, into, false)?;
                if self.tree.is_ignored(*parent, name) {
                    put(Change::Ignore { parent: *parent, name: name.clone() }, into, false)?;
                }
            }
        }
        for (path, account) in self.writeback.ledger().iter() {
            put(Change::Account { path: path.clone(), account: Some(account) }, into, false)?;
        }
        for (path, conflict) in self.writeback.conflicts() {
            put(Change::Conflict { path: path.clone(), conflict: Some(conflict.clone()) }, into, false)?;
        }
        for (path, upload) in self.writeback.uploads() {
            put(Change::Upload { path: path.clone(), upload: Some(upload.clone()) }, into, false)?;
        }
        put(Change::Intent { intent: self.writeback.intent().cloned() }, into, false)?;
        put(Change::Base { commit: self.tree.base().clone() }, into, true)
    }
}
