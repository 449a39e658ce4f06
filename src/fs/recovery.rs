//! From the record to a filesystem that serves: replay, then agree with the server on what it has.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::backing::Backing;
use super::belief::LeftBehind;
use super::fetching::Flights;
use super::handles::Handles;
use super::ignored::Ignored;
use super::kept::Kept;
use super::kernel::Kernel;
use super::lost::{LostFound, SalvagedFiles};
use super::staging::into_plain;
use super::tree::Tree;
use super::txn::Draft;
use super::unreadable::Unreadable;
use super::writeback::Writeback;
use super::{Fs, FsError, Options, State, base_attrs, empty_tree, now, unlisted_dir};
use crate::namespace::{Body, Content, Ino, Namespace, ROOT, Resolved, SpoolId};
use crate::path::{Name, RepoPath};
use crate::report::{self, Counts, LocalPath};
use crate::store::disk::Disk;
use crate::store::journal::{self, Change, Damage, Journal, JournalError};
use crate::store::spool::{Cache, Spool, foreign_in, ids_in};
use crate::sync::Mutex;
use crate::workspace::{CommitId, EntryKind, Object, Source, Workspace};
use crate::writeback::index::{Account, Staged};
use crate::writeback::queue::Parked;

/// Inodes put on record at a time while the journal is compacted: a fraction of a millisecond under the lock.
const COMPACTION_PORTION: usize = 1000;
/// Of a mount that shows nothing.
const NO_OPTIONS: Options = Options { read_only: true, settle: Duration::ZERO, uid: 0, gid: 0, umask: 0 };
/// Changes in a frame then: what a flipped bit costs.
pub(super) const COMPACTION_FRAME: usize = 50;
/// A journal segment below this length is not worth compacting.
const COMPACTION_MIN_BYTES: u64 = 64 << 20;

/// A change of the workspace that is not on our record, with what is needed to show it.
#[derive(Debug, Clone)]
pub struct Foreign {
    /// Which path.
    pub path: RepoPath,
    /// What the base has there.
    pub base: Option<Object>,
    /// What is staged; `None`: its removal.
    pub staged: Option<Object>,
}

/// Limits of the local disk use, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Of the spool; `None`: the disk's.
    pub spool: Option<u64>,
    /// Of the cache.
    pub cache: u64,
}

impl Fs {
    /// Opens the state in `dir`, or makes it: replays the journal. Files whose bytes are in the spool are looked at when
    /// they are first asked for, or by [`load`](Self::load).
    ///
    /// # Errors
    /// [`JournalError`], also for a spool or cache that cannot be opened.
    pub fn recover(
        dir: &Path,
        root_path: RepoPath,
        options: Options,
        limits: Limits,
        workspace: Arc<dyn Workspace>,
    ) -> Result<Arc<Self>, JournalError> {
        Self::recover_on(&Disk::default(), dir, root_path, options, limits, workspace)
    }

    /// [`recover`](Self::recover) by way of `disk`.
    ///
    /// # Errors
    /// As [`recover`](Self::recover).
    pub fn recover_on(
        disk: &Disk,
        dir: &Path,
        root_path: RepoPath,
        options: Options,
        limits: Limits,
        workspace: Arc<dyn Workspace>,
    ) -> Result<Arc<Self>, JournalError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| JournalError::Io { path, source }
        };
        let place = Place::of(dir);
        // Before anything is touched.
        refuse_odd(&place)?;
        let mut state = State::empty(empty_tree(root_path, &options));
        state.left_behind = LeftBehind::among(there(&place.spool).map_err(io(&place.spool))?);
        let opened =
            Journal::open_marked(disk, &place.journal, &place.mark, &mut |seen, change| state.believe(seen, &change));
        let journal = opened.map_err(|error| state.with_owed(error, &place))?;
        state.check_whole().map_err(|what| state.with_owed(Damage::new(&place.journal, 0, what).into(), &place))?;
        let spool_dir = place.spool;
        let spool = Spool::open_on(disk, &spool_dir, limits.spool).map_err(io(&spool_dir))?;
        let cache_dir = dir.join("cache");
        let cache = Cache::open_on(disk, &cache_dir, limits.cache).map_err(io(&cache_dir))?;
        let keep = state.recover(&spool);
        // What was dropped is, once and for all.
        journal.append(&state.take_frame());
        let mut strays = spool.strays(&keep).map_err(io(&spool_dir))?;
        // The server may have lost it since, as long as it is not committed.
        let left_behind = std::mem::take(&mut state.left_behind);
        strays.retain(|id| !left_behind.content_of(*id).is_some_and(|hash| cache.take_unchecked(&spool, *id, hash)));
        drop(left_behind);
        let lost = LostFound::new(disk, dir);
        // What a repair gave a second name in lost+found, and the names that an earlier mount showed it by.
        let (mut named, strays) = lost.partition(&spool, strays).map_err(io(dir))?;
        state.show_salvaged(&lost, &spool, &mut named, &options).map_err(io(dir))?;
        let kept = Kept::open(disk, dir).map_err(io(dir))?;
        kept.batches().iter().for_each(|batch| spool.lend_room(batch.id, batch.counted));
        let fs = Arc::new_cyclic(|this| Self {
            this: this.clone(),
            options,
            hash_kind: workspace.info().hash_kind,
            workspace,
            journal,
            spool,
            cache,
            state: Mutex::new(state),
            wake: Notify::new(),
            progress: Notify::new(),
            unheld: Notify::new(),
            wanted_back: AtomicBool::new(false),
            watcher: Mutex::new(None),
            write_back: OnceLock::new(),
            leaving: Mutex::new(named.into_values().collect()),
            strays: Mutex::new(strays),
            lost,
            kept,
            expiry: Mutex::default(),
            unnamed: Mutex::default(),
            fetching: Flights::default(),
            blocks: super::blocks::Blocks::default(),
            ahead: super::ahead::Ahead::default(),
            neighbours: OnceLock::new(),
            read_timeout: OnceLock::new(),
            listing: Flights::default(),
            eviction: super::eviction::Eviction::default(),
            learning: tokio::sync::Semaphore::new(super::LISTINGS_AT_ONCE),
            presence: tokio::sync::Mutex::default(),
            remade: AtomicU64::new(0),
            shared: AtomicBool::new(false),
            offline: AtomicBool::new(false),
            is_root_empty: AtomicBool::new(false),
            branch: OnceLock::new(),
            lender: OnceLock::new(),
            passthrough: OnceLock::new(),
            worthwhile: OnceLock::new(),
            loaded: tokio::sync::OnceCell::new(),
        });
        if fs.journal.is_outdated() {
            match fs.compact(true) {
                // Goes on as it is, and is tried again.
                Err(FsError::NoSpace) => tracing::warn!("no room to bring the record to this version's format"),
                done => done.map_err(|error| JournalError::Io {
                    path: dir.join("journal"),
                    source: std::io::Error::other(error),
                })?,
            }
        }
        Ok(fs)
    }

    /// Compares the record with the server: notices a base that moved, answers that were lost, and what others
    /// staged. To be called once, before anything is served or staged.
    ///
    /// # Errors
    /// The server's, or the journal's.
    pub async fn reconcile(&self) -> Result<(), FsError> {
        self.meet_workspace().await?;
        let after_repair = match self.journal.is_unverified() {
            true => self.verify_repaired().await?,
            false => Vec::new(),
        };
        self.agree(true, false).await?;
        into_plain(self.change(|state| {
            for (path, what) in after_repair {
                if state.writeback.is_pending(&path) && state.writeback.conflict(&path).is_none() {
                    let error = format!(
                        "{what}; `oxenfs sync` on it by name stages yours over that, and to have the other, move yours \
                         elsewhere, `oxenfs unmount --detach` and mount again"
                    );
                    state.writeback.park(&path, error, Parked::Conflict);
                }
            }
            Ok(())
        }))?;
        self.wake.notify_one();
        Ok(())
    }

    /// To be called when what was staged for these paths was dropped. If somebody else had committed it before, it is in
    /// the base now and shows: they are owed again, over that base. Whether the workspace stands on another commit than the
    /// tree.
    ///
    /// # Errors
    /// The server's, or the journal's.
    pub async fn note_others_commit(&self, paths: &[RepoPath]) -> Result<bool, FsError> {
        let commit = self.workspace.base().await?;
        if commit == self.base() {
            return Ok(false);
        }
        let mut listings = Listings::new(self, commit);
        let mut found = Vec::with_capacity(paths.len());
        for path in paths {
            found.push(listings.object(path).await?);
        }
        into_plain(self.change(|state| {
            for (path, base) in paths.iter().zip(found) {
                let account = state.writeback.account(path).unwrap_or_default();
                // What else is there by now others put there by themselves.
                let is_ours = |base: Object| account.staged == Staged::Put(base) || account.before == Some(base);
                if account.base != base && base.is_some_and(is_ours) {
                    state.apply(Change::Account { path: path.clone(), account: Some(Account { base, ..account }) });
                    state.writeback.owe(path, Duration::ZERO);
                }
            }
            Ok(())
        }))?;
        self.follow_others(&listings.commit);
        Ok(true)
    }

    /// Writes the present state to a new journal segment and drops the old ones, when that is worth it. Goes on
    /// beside everything else.
    ///
    /// # Errors
    /// The journal's; the old segments stay then. It takes none of the room that is kept back for removals.
    pub fn compact(&self, always: bool) -> Result<(), FsError> {
        let wanted = always || self.journal.is_outdated() || self.journal.is_worth_compacting(COMPACTION_MIN_BYTES);
        if !wanted {
            return Ok(());
        }
        let compaction = self.journal.compaction();
        self.journal_room()?;
        compaction.start_segment()?;
        // What was appended since is in it, and in the state as it is now.
        let (inodes, paths) = {
            let state = self.lock();
            let inodes: Vec<Ino> = state.tree.iter().filter(|(_, i)| i.recorded).map(|(ino, _)| ino).collect();
            let paths: Vec<RepoPath> = state.writeback.ledger().iter().map(|(path, _)| path.clone()).collect();
            let intent = Change::Intent { intent: state.writeback.intent().cloned() };
            self.journal.append(&[Change::Base { commit: state.tree.base().clone() }, intent]);
            (inodes, paths)
        };
        // First all inodes, then all names, so that no name is replayed before what it stands for.
        for portion in inodes.chunks(COMPACTION_PORTION) {
            self.append_state(|state| {
                let records = portion.iter().filter_map(|ino| Some((*ino, state.tree.record(*ino)?)));
                let mut changes: Vec<Change> = records.map(|(ino, record)| Change::Inode { ino, record }).collect();
                for ino in portion {
                    let xattrs = state.tree.get(*ino).and_then(|inode| inode.xattrs.as_ref());
                    changes.extend(xattrs.iter().flat_map(|xattrs| xattrs.iter()).map(|(name, value)| Change::Xattr {
                        ino: *ino,
                        name: name.clone(),
                        value: value.clone(),
                    }));
                }
                changes
            })?;
        }
        for portion in inodes.chunks(COMPACTION_PORTION) {
            self.append_state(|state| {
                let mut changes = Vec::new();
                for ino in portion {
                    let Some(inode) = state.tree.get(*ino) else { continue };
                    if let Body::Dir(dir) = &inode.body {
                        let hidden = dir.hidden.iter().cloned();
                        changes.extend(hidden.map(|name| Change::Hide { parent: *ino, name }));
                    }
                    for (parent, name) in inode.links.iter().cloned() {
                        let ignored = state.tree.is_ignored(parent, &name);
                        let ignored = ignored.then(|| Change::Ignore { parent, name: name.clone() });
                        changes.push(Change::Link { parent, name, ino: *ino });
                        changes.extend(ignored);
                    }
                }
                changes
            })?;
        }
        for portion in paths.chunks(COMPACTION_PORTION) {
            self.append_state(|state| {
                let mut changes = Vec::new();
                for path in portion {
                    changes.push(Change::Account { path: path.clone(), account: state.writeback.account(path) });
                    if let Some(conflict) = state.writeback.conflict(path) {
                        changes.push(Change::Conflict { path: path.clone(), conflict: Some(conflict.clone()) });
                    }
                    if let Some(upload) = state.writeback.upload(path) {
                        changes.push(Change::Upload { path: path.clone(), upload: Some(upload.clone()) });
                    }
                }
                changes
            })?;
        }
        compaction.complete()?;
        Ok(())
    }

    fn journal_room(&self) -> Result<(), FsError> {
        if self.journal.has_room() { Ok(()) } else { Err(FsError::NoSpace) }
    }

    fn append_state(&self, changes: impl FnOnce(&State) -> Vec<Change>) -> Result<(), FsError> {
        self.journal_room()?;
        let ticket = {
            let state = self.lock();
            let changes = changes(&state);
            let mut ticket = self.journal.append(&[]);
            for frame in changes.chunks(COMPACTION_FRAME) {
                ticket = self.journal.append(frame);
            }
            ticket
        };
        Ok(self.journal.commit(ticket)?)
    }
}

/// Base listings, each asked for once.
pub(super) struct Listings<'a> {
    fs: &'a Fs,
    commit: CommitId,
    known: HashMap<RepoPath, HashMap<String, Object>>,
}

impl<'a> Listings<'a> {
    pub fn new(fs: &'a Fs, commit: CommitId) -> Self {
        Self { fs, commit, known: HashMap::new() }
    }

    /// What the commit has there, if that is a file.
    pub async fn object(&mut self, path: &RepoPath) -> Result<Option<Object>, FsError> {
        let Some(dir) = path.parent() else { return Ok(None) };
        if !self.known.contains_key(&dir) {
            let entries = self.fs.listing_of(&self.commit, &dir).await?;
            let files = entries.into_iter().filter_map(|entry| match entry.kind {
                EntryKind::File(object) => Some((entry.name, object)),
                EntryKind::Dir => None,
            });
            self.known.insert(dir.clone(), files.collect());
        }
        Ok(self.known.get(&dir).and_then(|files| files.get(path.file_name())).copied())
    }
}

/// Where a state directory keeps what.
pub(super) struct Place {
    /// The record.
    pub journal: PathBuf,
    /// Its mark: beside it, so that it is missed when it is gone.
    pub mark: PathBuf,
    /// The spool.
    pub spool: PathBuf,
    /// The cache.
    pub cache: PathBuf,
}

impl Place {
    pub fn of(dir: &Path) -> Self {
        let below = |name: &str| dir.join(name);
        Self { journal: below("journal"), mark: below("journal.mark"), spool: below("spool"), cache: below("cache") }
    }
}

/// The files of a spool, if there is one yet.
fn there(spool: &Path) -> std::io::Result<Vec<SpoolId>> {
    if spool.is_dir() { ids_in(spool) } else { Ok(Vec::new()) }
}

/// Refuses a directory in which something lies that is not ours, or of which the record is gone.
fn refuse_odd(place: &Place) -> Result<(), JournalError> {
    let io = |source| JournalError::Io { path: place.spool.clone(), source };
    if let Some(path) = foreign_in(&place.spool, &place.cache).map_err(io)? {
        return Err(JournalError::Stray { path });
    }
    match lost_record(place).map_err(io)? {
        Some(damage) => Err(State::empty(empty_tree(RepoPath::root(), &NO_OPTIONS)).with_owed(damage.into(), place)),
        None => Ok(()),
    }
}

/// Whether there is no record though the spool has files, which are never made before it.
pub(super) fn lost_record(place: &Place) -> std::io::Result<Option<Damage>> {
    if journal::has_segments(&place.journal)? || !place.spool.is_dir() || ids_in(&place.spool)?.is_empty() {
        return Ok(None);
    }
    Ok(Some(Damage::new(&place.journal, 0, "it has no record, though the spool has files")))
}

/// What a state directory does not say of itself: what was mounted from it, and how.
#[derive(Debug, Clone)]
pub struct Shown {
    /// What the mount's root is in the repository.
    pub root_path: RepoPath,
    /// As whose it shows the base; `None`: as the directory's owner's, without a umask of its own.
    pub access: Option<BaseAccess>,
}

impl Shown {
    pub(super) fn options(&self, dir: &Path) -> Options {
        let own = || {
            let (uid, gid) = std::fs::metadata(dir).map_or((0, 0), |dir| (dir.uid(), dir.gid()));
            BaseAccess { uid, gid, umask: 0o022 }
        };
        let BaseAccess { uid, gid, umask } = self.access.unwrap_or_else(own);
        Options { read_only: true, settle: Duration::ZERO, uid, gid, umask }
    }
}

/// As whose the base shows, which knows no owners.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseAccess {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bits taken from the modes.
    pub umask: u16,
}

/// What a state directory that no daemon uses has.
#[derive(Debug)]
pub struct Survey {
    /// Files and bytes per state.
    pub counts: Counts,
    /// What stays local.
    pub local: Vec<LocalPath>,
    /// The commit under the workspace.
    pub base: CommitId,
    /// What was changed here and by others.
    pub conflicts: Vec<report::Conflict>,
}

/// What a state directory that no daemon uses owes the server: counts, what stays local, and the base. Changes nothing.
///
/// # Errors
/// [`JournalError`].
pub fn survey(dir: &Path, shown: &Shown, most_conflicts: usize) -> Result<Survey, JournalError> {
    let (state, options) = recorded(dir, shown)?;
    let mut counts = Counts::default();
    let (mut staged, mut waiting) = (Vec::new(), Vec::new());
    for (path, account) in state.writeback.ledger().iter() {
        let (found, size) = match state.tree.resolve(path) {
            Resolved::AsBase => (account.base.is_some(), 0),
            Resolved::Absent => (false, 0),
            Resolved::Inode(ino) => match state.content(ino) {
                Some((Content::Local { spool, .. }, _)) => (true, Spool::length(&dir.join("spool"), *spool)),
                Some((_, size)) => (true, size),
                None => (false, 0),
            },
        };
        let owes = state.owes(path, &account);
        if let (false, Staged::Put(object)) = (owes, account.staged)
            && object.size > 0
        {
            staged.push(object);
        }
        if state.writeback.conflict(path).is_some() {
            counts.conflicts.files += 1;
            counts.conflicts.bytes = counts.conflicts.bytes.saturating_add(size);
        }
        if owes && account.held {
            counts.held.files += 1;
            counts.held.bytes = counts.held.bytes.saturating_add(size);
        }
        let owes = owes || state.writeback.conflict(path).is_some();
        if owes {
            waiting.extend(state.only_staged(path, &account).filter(|object| object.size > 0));
        }
        let tally = match (owes, found, account.staged) {
            (true, true, _) => &mut counts.dirty,
            (true, false, _) => &mut counts.removals,
            (false, _, Staged::Put(_) | Staged::Removed) => &mut counts.staged,
            (false, ..) => continue,
        };
        tally.files += 1;
        tally.bytes = tally.bytes.saturating_add(size);
    }
    let hashes = staged.iter().chain(&waiting).map(|object| object.hash);
    let lacking = Cache::lacking_in(&dir.join("cache"), hashes);
    for (objects, tally) in [(&staged, &mut counts.remote), (&waiting, &mut counts.absent)] {
        for object in objects.iter().filter(|object| lacking.contains(&object.hash)) {
            tally.files += 1;
            tally.bytes = tally.bytes.saturating_add(object.size);
        }
    }
    let spool = dir.join("spool");
    let local = state.local_paths(&options, &mut counts, |id, _| Spool::length(&spool, id));
    let conflicts = state.told_conflicts(most_conflicts);
    Ok(Survey { counts, local, base: state.tree.base().clone(), conflicts })
}

/// The state that is on record in a directory, and how a mount of it shows the base.
///
/// # Errors
/// When its journal cannot be read.
pub(super) fn recorded(dir: &Path, shown: &Shown) -> Result<(State, Options), JournalError> {
    let options = shown.options(dir);
    let mut state = State::empty(empty_tree(shown.root_path.clone(), &options));
    let place = Place::of(dir);
    refuse_odd(&place)?;
    let read = Journal::read_marked(&place.journal, &place.mark, &mut |seen, change| state.believe(seen, &change));
    read.map_err(|error| state.with_owed(error, &place))?;
    state.check_whole().map_err(|what| state.with_owed(Damage::new(&place.journal, 0, what).into(), &place))?;
    Ok((state, options))
}

impl State {
    /// Adds to a damage what is known to be owed by what was replayed until then.
    fn with_owed(&self, error: JournalError, place: &Place) -> JournalError {
        let JournalError::Damaged(mut damage) = error else { return error };
        let accounts: Vec<(RepoPath, Account)> =
            self.writeback.ledger().iter().map(|(path, account)| (path.clone(), account)).collect();
        let owed = accounts.iter().filter(|(path, account)| self.owes(path, account)).count();
        let (files, bytes) = weigh(&place.spool);
        damage.owed = Some(format!(
            "known to be owed to the server: {owed} change{} before that place; files here that it may lack: {files}, {bytes} bytes",
            if owed == 1 { "" } else { "s" }
        ));
        JournalError::Damaged(damage)
    }

    /// Nothing known but the root.
    pub(super) fn empty(tree: Namespace) -> Self {
        Self {
            tree: Tree::new(tree),
            writeback: Writeback::default(),
            backing: Backing::default(),
            handles: Handles::default(),
            kernel: Kernel::default(),
            draft: Draft::default(),
            left_behind: LeftBehind::default(),
            ignored: Ignored::default(),
            salvaged: SalvagedFiles::default(),
            unreadable: Unreadable::default(),
            waiting: Default::default(),
            elsewhere: false,
            #[cfg(debug_assertions)]
            unchecked: 0,
        }
    }

    /// Whether the workspace has something else at a path than the tree wants there.
    pub(super) fn owes(&self, path: &RepoPath, account: &Account) -> bool {
        let shown = account.shown();
        match self.tree.resolve(path) {
            // Wanted is what the base has, whatever is staged.
            Resolved::AsBase => shown != Some(account.base),
            _ => !shown.is_some_and(|shown| self.agrees(path, shown)),
        }
    }

    /// Drops what has no name, notes whose bytes are to be looked at, and says which spool files are in use.
    fn recover(&mut self, spool: &Spool) -> HashSet<SpoolId> {
        let nameless: Vec<Ino> = self
            .tree
            .iter()
            .filter(|(ino, inode)| *ino != ROOT && inode.links.is_empty())
            .map(|(ino, _)| ino)
            .collect();
        for ino in nameless {
            self.apply(Change::Drop { ino });
        }
        let local: Vec<(Ino, SpoolId)> = self
            .tree
            .iter()
            .filter_map(|(ino, inode)| match &inode.body {
                Body::File { content: Content::Local { spool, .. }, .. } => Some((ino, *spool)),
                _ => None,
            })
            .collect();
        let pinned = self.tree.iter().filter_map(|(ino, inode)| match &inode.body {
            Body::File { content, .. } => Some((ino, content.origin_in_workspace()?.clone())),
            _ => None,
        });
        for (ino, path) in pinned.collect::<Vec<_>>() {
            self.backing.reads_at(&path, ino);
        }
        let keep = local.iter().map(|(_, id)| *id).collect();
        spool.pass_over(self.left_behind.last_spool());
        // What is in conflict waits from the beginning.
        let held: Vec<RepoPath> = self.writeback.conflicts().map(|(path, _)| path.clone()).collect();
        held.iter().for_each(|path| self.writeback.owe(path, Duration::ZERO));
        self.backing.are_unseen(local.into_iter().map(|(ino, _)| ino).collect());
        keep
    }

    /// Shows a change that is not on record; `theirs`: somebody else staged it.
    pub(super) fn import(&mut self, change: &Foreign, theirs: bool, options: &Options) {
        let staged = change.staged.map_or(Staged::Removed, Staged::Put);
        let account = Account { base: change.base, staged, theirs, ..Account::default() };
        self.apply(Change::Account { path: change.path.clone(), account: Some(account) });
        self.show(&change.path, change.staged, true, options);
        if !theirs {
            self.unstage_ignored(&change.path);
        }
    }

    /// Shows what the server has at a path, or that it has nothing there; then the base's entry is hidden if told to `hide`.
    pub(super) fn show(&mut self, path: &RepoPath, object: Option<Object>, hide: bool, options: &Options) {
        match object {
            Some(object) => self.show_file(path, object, None, options),
            None => {
                if let Some((at, last)) = self.dir_for(path, options)
                    && !self.tree.is_ignored(at, &last)
                {
                    self.apply(Change::Unlink { parent: at, name: last, hide });
                }
            }
        }
    }

    /// Has the tree show a file that the server has, where it shows nothing; its bytes are there, or at `origin`.
    pub(super) fn show_file(
        &mut self,
        path: &RepoPath,
        object: Object,
        origin: Option<Arc<Source>>,
        options: &Options,
    ) {
        let Some((at, last)) = self.dir_for(path, options) else { return };
        // What is here alone is not replaced.
        if self.tree.is_ignored(at, &last) {
            return;
        }
        let content = Content::Remote { hash: object.hash, origin };
        let ino = self.add(base_attrs(options, false, now()), Body::File { content, size: object.size });
        self.apply(Change::Link { parent: at, name: last, ino });
    }

    /// The directory around a path, on record with all above it, and the path's name there. `None`: there is a file in the
    /// way, or it lies beside the mount.
    pub(super) fn dir_for(&mut self, path: &RepoPath, options: &Options) -> Option<(Ino, Name)> {
        let below = path.below(self.tree.root_path())?;
        let mut parts: Vec<Name> = below.components().filter_map(|part| Name::new(part.as_bytes()).ok()).collect();
        let last = parts.pop()?;
        let mut at = ROOT;
        for name in parts {
            at = match self.tree.child(at, &name) {
                Some(child) if self.tree.dir(child).is_some() => child,
                Some(_) => return None,
                None => {
                    self.materialize(at);
                    let ino = self.add(base_attrs(options, true, now()), unlisted_dir());
                    self.apply(Change::Link { parent: at, name, ino });
                    ino
                }
            };
        }
        self.materialize(at);
        Some((at, last))
    }
}

/// How many files lie in a spool, and how many bytes they have.
pub(super) fn weigh(spool: &Path) -> (u64, u64) {
    let ids = crate::store::spool::ids_in(spool).unwrap_or_default();
    let bytes = ids.iter().map(|id| Spool::length(spool, *id)).sum();
    (ids.len() as u64, bytes)
}
