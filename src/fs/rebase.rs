//! The base moves: by a commit of others that the workspace now stands on, or one of ours that took others' along.
//!
//! First it is found out what the new commit has in the directories that this mount knows, or has accounts in, as far as
//! they may differ: listings name each directory by a hash of all below it, so what did not change is not looked into.
//! Then, under one hold of the lock, each path that differs is judged ([`merge`](super::merge)), and what was not changed
//! here becomes what the new commit has. All of that is one frame of the record.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};

use super::layers::shown;
use super::merge::{Side, Verdict, judge};
use super::recovery::Listings;
use super::tree::Token;
use super::{Fs, FsError, LISTINGS_AT_ONCE, Options, State, base_attrs, now, unlisted_dir};
use crate::hash::ContentHash;
use crate::namespace::{Attrs, Body, Content, Ino, ROOT, Resolved, Timestamp};
use crate::path::{Name, RepoPath};
use crate::store::journal::Change;
use crate::workspace::{CommitId, Entry, EntryKind, Flawed, Listing, Object, Revision, Scope, Source, WorkspaceError};
use crate::writeback::index::{Account, Conflict, Staged, Theirs};

/// How often the new base is looked at because more of the tree became known meanwhile.
pub(super) const LOOKS: u32 = 5;

/// What a commit has where it may differ from the base, as far as this mount has to know.
pub(super) struct Moved {
    from: CommitId,
    to: CommitId,
    /// The directories that were looked at.
    known: HashSet<RepoPath>,
    /// Those of them that may differ, as the commit has them.
    dirs: BTreeMap<RepoPath, There>,
    /// It may be a commit of this workspace, made by whoever: what is staged in that is no change of others.
    pub(super) may_hold_staged: bool,
    /// Content of files here that was hashed for the sake of a comparison.
    hashed: HashMap<RepoPath, (Token, ContentHash)>,
}

/// A directory of the new commit. One that it does not have has no entries.
#[derive(Default)]
struct There {
    entries: BTreeMap<Name, Entry>,
    flawed: Vec<Flawed>,
}

impl There {
    fn of(Listing { entries, mut flawed }: Listing) -> Self {
        let mut named = BTreeMap::new();
        for entry in entries {
            match shown(&entry.name) {
                Some(name) => _ = named.entry(name).or_insert(entry),
                None => {
                    let why = "the server lists a name that no file can have here".into();
                    flawed.push(Flawed { name: Some(entry.name), why });
                }
            }
        }
        Self { entries: named, flawed }
    }

    fn has_dir(&self, path: &RepoPath) -> bool {
        let name = Name::new(path.file_name().as_bytes());
        name.is_ok_and(|name| self.entries.get(&name).is_some_and(|entry| entry.kind == EntryKind::Dir))
    }
}

impl Moved {
    /// What the commit has at a path; `None`: what the base before had.
    fn at(&self, path: &RepoPath) -> Option<Theirs> {
        let dir = self.dirs.get(&path.parent()?)?;
        let entry = Name::new(path.file_name().as_bytes()).ok().and_then(|name| dir.entries.get(&name));
        Some(entry.map_or(Theirs::Gone, |entry| match entry.kind {
            EntryKind::File(object) => Theirs::File(object),
            EntryKind::Dir => Theirs::Dir,
        }))
    }

    /// Whether the commit has anything at a path, as far as that is looked at.
    pub fn has(&self, path: &RepoPath) -> bool {
        matches!(self.at(path), Some(Theirs::File(_) | Theirs::Dir))
    }

    /// Whether the commit has files below a directory that nothing removed here: `removed` are those that something did.
    fn has_more_than(&self, dir: &RepoPath, removed: &BTreeSet<RepoPath>) -> bool {
        let Some(there) = self.dirs.get(dir) else { return !self.known.contains(dir) };
        there.entries.iter().any(|(name, entry)| match (dir.join(name), entry.kind) {
            (Ok(path), EntryKind::File(_)) => !removed.contains(&path),
            (Ok(path), EntryKind::Dir) => self.has_more_than(&path, removed),
            (Err(_), _) => true,
        })
    }
}

/// How what was changed here meets a commit of others.
#[derive(Debug, Default)]
pub struct Meets {
    /// The paths that both changed.
    pub conflicts: Vec<RepoPath>,
    /// A directory in which both removed something, and nothing may be left. Each side's removals leave something in it, or
    /// the same ones are there twice, so a server that merges them keeps the directory, empty (0.65.2, tried). What is to
    /// be removed can be told on the commit of others alone.
    pub empties: Option<RepoPath>,
}

/// What becomes of a path with an account.
#[derive(Debug, Clone)]
pub(super) struct Judged {
    verdict: Verdict,
    ours: Side,
    theirs: Theirs,
    /// The file that both sides began with.
    base: Option<Object>,
    /// The commit that has it.
    commit: CommitId,
    /// The account from now on.
    account: Account,
}

/// What is to be done when the base moves.
#[derive(Default)]
pub(super) struct Plan {
    judged: BTreeMap<RepoPath, Judged>,
    /// Directories in which something is only here, where the commit has a file.
    over: BTreeMap<RepoPath, Object>,
    /// Files of the commit that are removed here, for as long as nobody decides otherwise.
    removed: BTreeSet<RepoPath>,
    /// Directories that were listed before.
    listed: Vec<(Ino, RepoPath)>,
    /// Accounts that did not exist when the commit was looked at.
    unknown: bool,
}

impl Plan {
    /// Whether the tree became more than what the commit was looked at for.
    pub fn is_outdated(&self) -> bool {
        self.unknown
    }

    /// A path stays what it is here, and has this account.
    pub fn keep(&mut self, path: &RepoPath, account: Account) {
        let (ours, theirs) = (Side::Written, account.base.map_or(Theirs::Gone, Theirs::File));
        let kept = Judged {
            verdict: Verdict::KeepOurs,
            ours,
            theirs,
            base: account.base,
            commit: CommitId("".into()),
            account,
        };
        self.judged.insert(path.clone(), kept);
    }

    /// The paths that both sides changed.
    pub fn conflicts(&self) -> impl Iterator<Item = &RepoPath> {
        let judged = self.judged.iter().filter(|(_, judged)| judged.verdict == Verdict::Conflict);
        judged.map(|(path, _)| path).chain(self.over.keys())
    }

    /// Whether what is here at a path makes way for what the commit has, or has not.
    fn takes(&self, path: &RepoPath) -> bool {
        self.judged.get(path).is_some_and(|judged| judged.verdict == Verdict::TakeTheirs)
    }

    /// Whether both sides changed a path.
    fn is_conflict(&self, path: &RepoPath) -> bool {
        self.judged.get(path).is_some_and(|judged| judged.verdict == Verdict::Conflict)
    }

    /// Whether a path stays what it is here.
    fn keeps(&self, path: &RepoPath) -> bool {
        let own = self.judged.get(path).is_some_and(|judged| judged.verdict != Verdict::TakeTheirs);
        own || self.over.contains_key(path)
    }
}

impl Fs {
    /// Finds out what `to` has where it may differ from the base.
    ///
    /// # Errors
    /// The server's.
    pub(super) async fn look_at_commit(&self, to: &CommitId) -> Result<Moved, FsError> {
        self.look_at_commit_for(to, &[]).await
    }

    /// The same, also around paths of which the tree knows nothing.
    async fn look_at_commit_for(&self, to: &CommitId, paths: &[RepoPath]) -> Result<Moved, FsError> {
        let (from, mut known) = {
            let state = self.lock();
            (state.tree.base().clone(), state.known_dirs())
        };
        known.extend(paths.iter().flat_map(|path| std::iter::successors(path.parent(), RepoPath::parent)));
        let (dirs, hashed) = (BTreeMap::new(), HashMap::new());
        let mut moved = Moved { from, to: to.clone(), known, dirs, may_hold_staged: true, hashed };
        if moved.from == *to {
            return Ok(moved);
        }
        // Directories that both commits have, and those of which nothing is known but what the new one lists.
        let (mut both, mut fresh) = (vec![RepoPath::root()], BTreeSet::new());
        if moved.from.0.is_empty() {
            fresh.extend(both.drain(..));
        }
        while !(both.is_empty() && fresh.is_empty()) {
            let compared = match both.is_empty() {
                true => Ok(Default::default()),
                false => self.workspace.compare(&moved.from, to, Scope::Directories(&both)).await,
            };
            let differences = match compared {
                Ok(differences) => differences,
                // The old commit is there no longer: all that is known may differ.
                Err(WorkspaceError::NotFound { .. }) => {
                    fresh.extend(both.drain(..));
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            both.clear();
            let (mut next_fresh, mut changed) = (BTreeSet::new(), fresh.clone());
            for (path, sides) in &differences {
                changed.extend(path.parent());
                match (sides.old, sides.new) {
                    (Some(EntryKind::Dir), Some(EntryKind::Dir)) if moved.known.contains(path) => {
                        both.push(path.clone());
                    }
                    (Some(EntryKind::Dir), Some(EntryKind::File(_)) | None) => moved.lose(path),
                    (_, Some(EntryKind::Dir)) if moved.known.contains(path) => _ = next_fresh.insert(path.clone()),
                    _ => {}
                }
            }
            let listed = changed.into_iter().map(|dir| async move {
                let listing = self.listing_of(to, &dir).await?;
                Ok::<_, WorkspaceError>((dir, There::of(listing)))
            });
            let listed: Vec<(RepoPath, There)> =
                stream::iter(listed).buffer_unordered(LISTINGS_AT_ONCE).try_collect().await?;
            for (dir, there) in listed {
                if fresh.contains(&dir) {
                    let below: Vec<RepoPath> =
                        moved.known.iter().filter(|known| known.parent().as_ref() == Some(&dir)).cloned().collect();
                    for path in below {
                        match there.has_dir(&path) {
                            true => _ = next_fresh.insert(path),
                            false => moved.lose(&path),
                        }
                    }
                }
                moved.dirs.insert(dir, there);
            }
            fresh = next_fresh;
        }
        self.hash_for(&mut moved).await?;
        Ok(moved)
    }

    /// Hashes files here that may have just the content which the commit has.
    async fn hash_for(&self, moved: &mut Moved) -> Result<(), FsError> {
        let alike: Vec<(RepoPath, Ino, u64)> = {
            let state = self.lock();
            let unhashed = state.writeback.ledger().iter().filter_map(|(path, account)| {
                let theirs = moved.at(path)?.object()?;
                let Resolved::Inode(ino) = state.tree.resolve(path) else { return None };
                let unhashed = matches!(state.content(ino), Some((Content::Local { hash: None, .. }, _)));
                let differs = account.base.is_none_or(|base| base.hash != theirs.hash);
                (unhashed && differs && !state.is_being_written(ino)).then(|| (path.clone(), ino, theirs.size))
            });
            unhashed.collect()
        };
        for (path, ino, size) in alike {
            let hashed = self.blocking(move |fs| {
                fs.look_at(ino)?;
                let token = {
                    let state = fs.lock();
                    state.content(ino).filter(|(_, length)| *length == size).and_then(|_| state.tree.token(ino))
                };
                let Some(token) = token else { return Ok(None) };
                let Some(file) = fs.spool_file(token)? else { return Ok(None) };
                let (hash, _) = ContentHash::of_file(fs.hash_kind, &file, || true)?;
                Ok(Some((token, hash)))
            });
            // What cannot be read is no better known.
            if let Ok(Some(found)) = hashed.await {
                moved.hashed.insert(path, found);
            }
        }
        Ok(())
    }

    /// The paths that were changed here and, since the base, by others who committed `head`, or what is in conflict
    /// already; and those of `along`, which somebody else staged in the same workspace, that `head` changed too.
    ///
    /// # Errors
    /// The server's.
    pub async fn conflicts_with(&self, head: &CommitId, along: &[RepoPath]) -> Result<Vec<RepoPath>, FsError> {
        Ok(self.meets(head, along).await?.conflicts)
    }

    /// How what was changed here meets what others committed since the base: [`Fs::conflicts_with`], and more.
    ///
    /// # Errors
    /// The server's.
    pub async fn meets(&self, head: &CommitId, along: &[RepoPath]) -> Result<Meets, FsError> {
        let base = self.base();
        if *head == base {
            return Ok(Meets::default());
        }
        let mut moved = self.look_at_commit_for(head, along).await?;
        // Not while the workspace stands on the base.
        moved.may_hold_staged = false;
        let mut listings = Listings::new(self, base);
        let mut found = Vec::new();
        for path in along {
            // A file where this has a directory to be, or the reverse, and a file that is another one by now.
            let above = std::iter::successors(path.parent(), RepoPath::parent);
            let is_in_file = above.into_iter().any(|dir| matches!(moved.at(&dir), Some(Theirs::File(_))));
            let changed = match moved.at(path) {
                Some(Theirs::Dir) => true,
                Some(theirs) => theirs.object() != listings.object(path).await?,
                None => false,
            };
            if is_in_file || changed {
                found.push(path.clone());
            }
        }
        let state = self.lock();
        let plan = state.plan(&moved, |_, account| account);
        found.extend(plan.conflicts().cloned());
        found.sort();
        found.dedup();
        Ok(Meets { conflicts: found, empties: state.empties_with(&moved) })
    }
}

impl Moved {
    /// A directory that the commit does not have, with all that is known below it.
    fn lose(&mut self, dir: &RepoPath) {
        let below: Vec<RepoPath> = self.known.iter().filter(|known| known.is_in(dir)).cloned().collect();
        self.dirs.extend(below.into_iter().map(|dir| (dir, There::default())));
    }
}

impl State {
    /// A directory in which something is removed here, and that others changed so that nothing may be left in it.
    fn empties_with(&self, moved: &Moved) -> Option<RepoPath> {
        let staged = self.writeback.ledger().iter();
        let removed: BTreeSet<RepoPath> =
            staged.filter(|(_, account)| account.staged == Staged::Removed).map(|(path, _)| path.clone()).collect();
        let above = removed.iter().flat_map(|path| std::iter::successors(path.parent(), RepoPath::parent));
        let dirs: BTreeSet<RepoPath> = above.filter(|dir| !dir.is_root() && moved.dirs.contains_key(dir)).collect();
        dirs.into_iter().find(|dir| !moved.has_more_than(dir, &removed))
    }

    /// The directories that a move of the base has to be looked at in: those of the tree of which anything is known, and
    /// those around accounts.
    fn known_dirs(&self) -> HashSet<RepoPath> {
        let mut known = HashSet::from([RepoPath::root()]);
        let mut add = |dir: RepoPath| {
            let mut at = Some(dir);
            while let Some(dir) = at
                && known.insert(dir.clone())
            {
                at = dir.parent();
            }
        };
        for (ino, inode) in self.tree.iter() {
            if let Body::Dir(dir) = &inode.body
                && (dir.listed || ino == ROOT || !dir.children.is_empty() || !dir.hidden.is_empty())
                && let Ok(path) = self.tree.dir_path(ino)
            {
                add(path);
            }
        }
        self.writeback.ledger().iter().filter_map(|(path, _)| path.parent()).for_each(add);
        known
    }

    /// Whether a program may be changing a file this instant, or later without another request.
    pub(super) fn is_being_written(&self, ino: Ino) -> bool {
        self.handles.is_written(ino) || self.handles.is_changing(ino) || self.backing.is_live(ino)
    }

    /// What is here at a path.
    fn side(&self, path: &RepoPath, base: Option<Object>, hashed: Option<&(Token, ContentHash)>) -> Side {
        let ino = match self.tree.resolve(path) {
            Resolved::Absent => return Side::Gone,
            Resolved::AsBase => return base.map_or(Side::Gone, |base| Side::File(base.hash)),
            Resolved::Inode(ino) => ino,
        };
        match self.content(ino) {
            None if self.tree.dir(ino).is_some() => Side::Dir,
            // A link, say, which does not travel.
            None => Side::Gone,
            Some((Content::Remote { hash, .. }, _)) => Side::File(*hash),
            Some((Content::Local { .. }, _)) if self.is_being_written(ino) => Side::Written,
            Some((Content::Local { hash: Some(hash), .. }, _)) => Side::File(*hash),
            Some((Content::Local { hash: None, .. }, _)) => match hashed {
                Some((token, hash)) if self.tree.still(*token) => Side::File(*hash),
                _ => Side::Written,
            },
        }
    }

    /// Judges every path with an account. `now` is its account as the workspace has it from now on, before the base has
    /// moved for it.
    pub(super) fn plan(&self, moved: &Moved, now: impl Fn(&RepoPath, Account) -> Account) -> Plan {
        let mut plan = Plan::default();
        for (ino, inode) in self.tree.iter() {
            if let Body::Dir(dir) = &inode.body
                && dir.listed
                && let Ok(path) = self.tree.dir_path(ino)
            {
                plan.listed.push((ino, path));
            }
        }
        for (path, there) in &moved.dirs {
            let Resolved::Inode(dir) = self.tree.resolve(path) else { continue };
            for (name, entry) in &there.entries {
                let (EntryKind::File(object), Some(child)) = (entry.kind, self.tree.child(dir, name)) else { continue };
                if self.tree.dir(child).is_some()
                    && self.has_own_below(child)
                    && let Ok(path) = path.join(name)
                {
                    plan.over.insert(path, object);
                }
            }
        }
        for (path, before) in self.writeback.ledger().iter() {
            let account = now(path, before);
            plan.unknown |= moved.from != moved.to && path.parent().is_none_or(|dir| !moved.known.contains(&dir));
            let Some(theirs) = moved.at(path) else {
                if account.base.is_some() && self.tree.resolve(path) == Resolved::Absent {
                    plan.removed.insert(path.clone());
                }
                continue;
            };
            let (base, commit) = match self.writeback.conflict(path) {
                Some(conflict) => (conflict.base, conflict.commit.clone()),
                None if !moved.may_hold_staged => (account.base, moved.from.clone()),
                // Somebody committed what this mount had staged.
                None => match before.staged {
                    Staged::Put(object) if theirs == Theirs::File(object) => (Some(object), moved.to.clone()),
                    Staged::Removed if theirs == Theirs::Gone => (None, moved.to.clone()),
                    _ if before.before.is_some_and(|object| theirs == Theirs::File(object)) => {
                        (before.before, moved.to.clone())
                    }
                    _ => (account.base, moved.from.clone()),
                },
            };
            let ours = match self.side(path, base, moved.hashed.get(path)) {
                // With nothing in it that is only here, a directory is no change.
                Side::Dir if !self.is_dir_with_own(path) => Side::Gone,
                ours => ours,
            };
            let mut verdict = judge(base.map(|base| base.hash), theirs.into(), ours);
            // As to what is below, nobody has decided by removing the file in its place.
            let of_dir = |conflict: &Conflict| conflict.theirs == Theirs::Dir && theirs == Theirs::Dir;
            if verdict == Verdict::Settled && self.writeback.conflict(path).is_some_and(of_dir) {
                verdict = Verdict::Conflict;
            }
            let account = Account { base: theirs.object(), before: None, ..account };
            plan.judged.insert(path.clone(), Judged { verdict, ours, theirs, base, commit, account });
        }
        let of_file = |(path, judged): (&RepoPath, &Judged)| {
            let stays = matches!(judged.verdict, Verdict::KeepOurs | Verdict::Conflict);
            (stays && !judged.ours.is_file() && judged.theirs.object().is_some()).then(|| path.clone())
        };
        let removed: Vec<RepoPath> = plan.judged.iter().filter_map(of_file).collect();
        plan.removed.extend(removed);
        // A file that took the place of a whole directory of the base: others changed nothing that it did not remove.
        let replaces = |(path, judged): (&RepoPath, &Judged)| {
            let over_dir = judged.theirs == Theirs::Dir && judged.ours.is_file() && judged.base.is_none();
            // What others had in it before is not all removed.
            let undecided = self.writeback.conflict(path).is_some_and(|conflict| conflict.theirs == Theirs::Dir);
            let was_dir = self.writeback.ledger().based_below(path).any(|below| below != path);
            let mut below = plan.judged.range(path.clone()..).skip(1).take_while(|(below, _)| below.is_in(path));
            let all_agree = was_dir && !below.any(|(_, below)| below.verdict == Verdict::Conflict);
            (over_dir && !undecided && all_agree && !moved.has_more_than(path, &plan.removed)).then(|| path.clone())
        };
        let replacing: Vec<RepoPath> = plan.judged.iter().filter_map(replaces).collect();
        for path in replacing {
            if let Some(judged) = plan.judged.get_mut(&path) {
                judged.verdict = Verdict::KeepOurs;
            }
        }
        plan.gather_conflicts();
        plan
    }

    pub(super) fn is_dir_with_own(&self, path: &RepoPath) -> bool {
        matches!(self.tree.resolve(path), Resolved::Inode(dir) if self.tree.dir(dir).is_some() && self.has_own_below(dir))
    }

    /// Whether anything at or below a directory is here alone, or being written.
    pub(super) fn has_own_below(&self, dir: Ino) -> bool {
        self.tree.walk(dir).into_iter().any(|(parent, name, child)| {
            match self.tree.get(child).map(|inode| &inode.body) {
                Some(Body::Dir(_)) => false,
                Some(Body::File { content, .. }) => {
                    let local = matches!(content, Content::Local { .. }) || self.handles.is_written(child);
                    // An account may be open only because a request about it may still come late.
                    let is_own = |path: &RepoPath| match self.writeback.account(path) {
                        Some(Account { staged: Staged::Nothing, base, .. }) => !self.agrees(path, base),
                        account => account.is_some(),
                    };
                    local || self.tree.path_in(parent, &name).map_or(true, |path| is_own(&path))
                }
                _ => true,
            }
        })
    }
}

impl Plan {
    /// Of a directory that only one side has, one conflict names all that is in it.
    fn gather_conflicts(&mut self) {
        let Self { judged, over, removed, .. } = self;
        let tops: BTreeSet<RepoPath> = {
            let dirs =
                judged.iter().filter(|(_, judged)| judged.verdict == Verdict::Conflict && judged.theirs == Theirs::Dir);
            dirs.map(|(path, _)| path.clone()).chain(over.keys().cloned()).collect()
        };
        for (path, below) in judged.iter_mut() {
            let mut above = std::iter::successors(path.parent(), RepoPath::parent);
            if below.verdict == Verdict::Conflict && above.any(|dir| tops.contains(&dir)) {
                below.verdict = Verdict::KeepOurs;
            }
        }
        // Within one that is within another.
        over.retain(|path, _| !std::iter::successors(path.parent(), RepoPath::parent).any(|dir| tops.contains(&dir)));
        for path in over.keys() {
            judged.remove(path);
        }
        removed.retain(|path| !over.contains_key(path));
    }
}

/// What was done when the base moved.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Whether it did.
    pub moved: bool,
    /// Paths that are in conflict by now.
    pub conflicts: usize,
}

impl State {
    /// Brings accounts, queue and tree to the new base, which the tree stands on already.
    pub(super) fn carry_out(&mut self, plan: &Plan, moved: &Moved, options: &Options) {
        for (path, judged) in &plan.judged {
            self.settle_account(path, judged);
        }
        for (path, object) in &plan.over {
            let account = self.writeback.account(path).unwrap_or_default();
            let account = Account { base: Some(*object), ..account };
            self.apply(Change::Account { path: path.clone(), account: Some(account) });
            let known = self.writeback.conflict(path);
            let (base, commit) = known.map_or((None, moved.from.clone()), |known| (known.base, known.commit.clone()));
            self.hold_conflict(path, Conflict { base, commit, theirs: Theirs::File(*object) });
        }
        // First what the commit has no directories for: a file may be in the place of one.
        let is_gone = |path: &&RepoPath| !path.is_root() && moved.at(path).is_some_and(|theirs| theirs != Theirs::Dir);
        let gone: Vec<&RepoPath> = moved.dirs.keys().rev().filter(is_gone).collect();
        for path in gone.iter().copied().chain(moved.dirs.keys()) {
            if let Resolved::Inode(dir) = self.tree.resolve(path)
                && self.tree.dir(dir).is_some()
            {
                self.merge_dir(dir, path, plan, moved, options);
            }
        }
        if moved.from != moved.to {
            for path in &plan.removed {
                self.keep_hidden(path, moved);
            }
        }
        for (ino, path) in &plan.listed {
            if moved.known.contains(path) && !moved.dirs.contains_key(path) && self.tree.dir(*ino).is_some() {
                self.tree.set_listed(*ino);
            }
        }
        gone.into_iter().for_each(|path| self.drop_empty(path));
        let judged: Vec<&RepoPath> = plan.judged.keys().collect();
        for path in judged {
            self.close_settled(path);
        }
    }

    fn settle_account(&mut self, path: &RepoPath, judged: &Judged) {
        let Judged { verdict, ours, theirs, base, ref commit, account } = *judged;
        if self.writeback.account(path) != Some(account) {
            self.apply(Change::Account { path: path.clone(), account: Some(account) });
        }
        if verdict == Verdict::Conflict {
            self.hold_conflict(path, Conflict { base, commit: commit.clone(), theirs });
            return;
        }
        self.end_conflict(path);
        let local = matches!(self.tree.resolve(path),
            Resolved::Inode(ino) if matches!(self.content(ino), Some((Content::Local { .. }, _))));
        match verdict {
            Verdict::Settled | Verdict::TakeTheirs if account.staged != Staged::Nothing => {
                let account = Account { staged: Staged::Doubt, ..account };
                self.apply(Change::Account { path: path.clone(), account: Some(account) });
                self.owe_again(path);
            }
            // What is here is to be found to be the same, and then it is the cache's.
            Verdict::Settled if local && ours.is_file() => self.owe_again(path),
            Verdict::Settled | Verdict::TakeTheirs => self.writeback.owe_no_more(path),
            Verdict::KeepOurs | Verdict::Conflict => {}
        }
    }

    /// Something is owed for a path, if it was not before. A request that is under way was made for what was wanted before,
    /// and so is one for what is in a commit's cut: its answer does not settle the path.
    pub(super) fn owe_again(&mut self, path: &RepoPath) {
        if !self.writeback.is_pending(path) || self.writeback.queue().is_active(path) || self.is_in_cut(path) {
            self.writeback.owe(path, std::time::Duration::ZERO);
        }
    }

    /// Closes the account of a path where nothing is staged or owed, and the tree shows what the base has.
    pub(super) fn close_settled(&mut self, path: &RepoPath) {
        let Some(account) = self.writeback.account(path) else { return };
        if account.is_settled() && !self.writeback.is_pending(path) && self.agrees(path, account.base) {
            self.apply(Change::Account { path: path.clone(), account: None });
        }
    }

    /// Brings a directory's entries to what the commit has, where nothing was changed here.
    fn merge_dir(&mut self, dir: Ino, path: &RepoPath, plan: &Plan, moved: &Moved, options: &Options) {
        let Some(there) = moved.dirs.get(path) else { return };
        let mut changed = false;
        for (name, entry) in &there.entries {
            let Ok(at) = path.join(name) else { continue };
            changed |= match self.tree.child(dir, name) {
                Some(_) if plan.keeps(&at) => false,
                // Written with what the base had.
                Some(child) if plan.takes(&at) && matches!(self.content(child), Some((Content::Local { .. }, _))) => {
                    self.replace_clean(dir, name, child, entry, Some(&moved.from), options);
                    true
                }
                Some(child) => self.bring_up(dir, name, child, entry, Some(&moved.from), options),
                None => self.show_entry(dir, name, &at, entry, plan, moved, options),
            };
        }
        let Some(here) = self.tree.dir(dir) else { return };
        let gone = here.children.iter();
        let gone = gone.filter(|(name, _)| !there.entries.contains_key(*name) && !here.ignored.contains(*name));
        let gone: Vec<(Name, Ino)> = gone.map(|(name, ino)| (name.clone(), *ino)).collect();
        let shown = here.hidden.iter().filter(|name| !there.entries.contains_key(*name));
        let shown: Vec<Name> = shown.cloned().collect();
        for name in shown {
            self.apply(Change::Unhide { parent: dir, name });
        }
        for (name, child) in gone {
            let clean = path.join(&name).is_ok_and(|at| !plan.keeps(&at));
            let remote = matches!(self.content(child), Some((Content::Remote { .. }, _)));
            let taken = path.join(&name).is_ok_and(|at| plan.takes(&at)) && self.content(child).is_some();
            if clean && (remote || taken) && !self.defer(dir, &name, child, Theirs::Gone, 0, &moved.from) {
                self.take_clean(dir, &name, child, &moved.from);
                changed = true;
            }
        }
        self.unreadable.note_flawed(dir, path, there.flawed.clone());
        self.tree.set_listed(dir);
        if changed {
            self.shift(dir);
        }
    }

    /// Shows an entry of the commit of which the tree has nothing; or hides it, where it was removed here.
    #[expect(clippy::too_many_arguments, reason = "one entry of one directory")]
    fn show_entry(
        &mut self,
        dir: Ino,
        name: &Name,
        path: &RepoPath,
        entry: &Entry,
        plan: &Plan,
        moved: &Moved,
        options: &Options,
    ) -> bool {
        let removed_below =
            || plan.removed.range(path.clone()..).take_while(|below| below.is_in(path)).next().is_some();
        let (hide, removed_below) = match entry.kind {
            EntryKind::File(_) => (plan.removed.contains(path), false),
            EntryKind::Dir if plan.is_conflict(path) => (true, false),
            EntryKind::Dir if removed_below() => (!moved.has_more_than(path, &plan.removed), true),
            EntryKind::Dir => (false, false),
        };
        let hidden = self.tree.dir(dir).is_some_and(|dir| dir.hidden.contains(name));
        match (hide, hidden) {
            (true, true) => return false,
            (true, false) => {
                self.materialize(dir);
                self.apply(Change::Hide { parent: dir, name: name.clone() });
                return false;
            }
            (false, true) => self.apply(Change::Unhide { parent: dir, name: name.clone() }),
            (false, false) => {}
        }
        self.kernel.name_changed(dir, name.clone());
        let body = body_of(entry);
        let attrs = base_attrs(options, entry.kind == EntryKind::Dir, Timestamp(entry.modified_secs, 0));
        let ino = self.show_of_base(dir, name, attrs, body);
        if removed_below {
            // What is removed in it is on record.
            self.materialize(ino);
        }
        true
    }

    /// Shows an entry that the base has. The base tells the next mount of it, but where something is noted about its path,
    /// which wins over a listing, or where nothing of the base shows through.
    pub(super) fn show_of_base(&mut self, dir: Ino, name: &Name, attrs: Attrs, body: Body) -> Ino {
        // A directory that was made again where the base's was removed hides that: the next mount would hide this by it.
        if self.tree.dir(dir).is_some_and(|dir| dir.hidden.contains(name)) {
            self.apply(Change::Unhide { parent: dir, name: name.clone() });
        }
        let ino = self.tree.show(dir, name.clone(), attrs, body);
        let noted = || self.tree.path_in(dir, name).is_ok_and(|path| self.writeback.account(&path).is_some());
        if self.tree.dir(dir).is_some_and(|dir| !dir.based) || noted() {
            self.materialize(ino);
        }
        ino
    }

    /// A file that the base has and that is removed here stays so, also where the move of the base looked at nothing: no
    /// directory is from now on without what the base has in it.
    fn keep_hidden(&mut self, path: &RepoPath, moved: &Moved) {
        let Some(below) = path.below(self.tree.root_path()) else { return };
        let mut at = ROOT;
        for part in below.components() {
            let Ok(name) = Name::new(part.as_bytes()) else { return };
            if let Some(child) = self.tree.child(at, &name) {
                at = child;
                continue;
            }
            let is_known = self.tree.dir(at).is_none_or(|dir| dir.hidden.contains(&name));
            if !is_known && self.tree.dir_path(at).is_ok_and(|dir| !moved.dirs.contains_key(&dir)) {
                self.materialize(at);
                self.apply(Change::Hide { parent: at, name });
            }
            return;
        }
    }

    /// An entry that was not changed here becomes what the base has. What a program has open waits for its close, where it
    /// is known which commit it is `from`. Says whether the directory has another entry by that.
    pub(super) fn bring_up(
        &mut self,
        dir: Ino,
        name: &Name,
        child: Ino,
        entry: &Entry,
        from: Option<&CommitId>,
        options: &Options,
    ) -> bool {
        let theirs = match entry.kind {
            EntryKind::File(object) => Theirs::File(object),
            EntryKind::Dir => Theirs::Dir,
        };
        let content = self.content(child).map(|(content, size)| (content.clone(), size));
        match (theirs, content) {
            (Theirs::File(object), Some((Content::Remote { hash, .. }, size))) => {
                if (hash, size) == (object.hash, object.size) {
                    self.forget_deferred(dir, name);
                    return false;
                }
                if hash != object.hash
                    && from.is_some_and(|from| self.defer(dir, name, child, theirs, entry.modified_secs, from))
                {
                    return false;
                }
                // Each name of a file is judged by itself.
                if self.tree.get(child).is_some_and(|inode| inode.links.len() > 1) {
                    self.replace_clean(dir, name, child, entry, from, options);
                    return true;
                }
                let content = Content::Remote { hash: object.hash, origin: None };
                self.note_content(child, &content);
                if let Some(inode) = self.tree.amend(child) {
                    inode.body = Body::File { content, size: object.size };
                    if hash != object.hash {
                        let time = now();
                        let listed = Timestamp(entry.modified_secs, 0);
                        // Whoever compares times is to see that it is another.
                        let told = entry.modified_secs > 0 && listed != inode.attrs.mtime;
                        (inode.attrs.mtime, inode.attrs.ctime) = (if told { listed } else { time }, time);
                    }
                }
                self.kernel.content_changed(child);
                false
            }
            (Theirs::Dir, Some((Content::Remote { .. }, _))) => {
                if from.is_some_and(|from| self.defer(dir, name, child, theirs, entry.modified_secs, from)) {
                    return false;
                }
                self.replace_clean(dir, name, child, entry, from, options);
                true
            }
            (Theirs::File(_), None) if self.tree.dir(child).is_some() && !self.has_own_below(child) => {
                for (parent, name, below) in self.tree.walk(child).into_iter().rev() {
                    self.take_away_clean(parent, &name, below, from);
                }
                self.replace_clean(dir, name, child, entry, from, options);
                true
            }
            _ => false,
        }
    }

    fn replace_clean(
        &mut self,
        dir: Ino,
        name: &Name,
        child: Ino,
        entry: &Entry,
        from: Option<&CommitId>,
        options: &Options,
    ) {
        self.take_away_clean(dir, name, child, from);
        let attrs = base_attrs(options, entry.kind == EntryKind::Dir, Timestamp(entry.modified_secs, 0));
        self.show_of_base(dir, name, attrs, body_of(entry));
    }

    fn take_away_clean(&mut self, dir: Ino, name: &Name, child: Ino, from: Option<&CommitId>) {
        match from {
            Some(from) => self.take_clean(dir, name, child, from),
            None => {
                let base = self.tree.base().clone();
                self.take_clean(dir, name, child, &base);
            }
        }
    }

    /// Takes an entry away that was not changed here. Who has it open keeps what it was, in the commit `from`.
    pub(super) fn take_clean(&mut self, dir: Ino, name: &Name, child: Ino, from: &CommitId) {
        self.pin_in(dir, name, child, from);
        self.kernel.name_changed(dir, name.clone());
        if self.tree.get(child).is_some_and(|inode| inode.recorded) {
            self.apply(Change::Unlink { parent: dir, name: name.clone(), hide: false });
        } else {
            self.tree.take_away(dir, name, false);
        }
        self.bury(child);
    }

    /// Notes in which commit the content of an open file can be read.
    pub(super) fn pin_in(&mut self, dir: Ino, name: &Name, child: Ino, from: &CommitId) {
        if !self.handles.is_open(child) {
            return;
        }
        if let (Some((Content::Remote { hash, origin: None }, size)), Ok(path)) =
            (self.content(child), self.tree.path_in(dir, name))
        {
            let source = Source { revision: Revision::Commit(from.clone()), path };
            let content = Content::Remote { hash: *hash, origin: Some(Arc::new(source)) };
            if let Some(inode) = self.tree.amend(child) {
                inode.body = Body::File { content, size };
            }
        }
    }

    /// Takes a directory away that no base has any more, if there is nothing in it and nobody here made it.
    fn drop_empty(&mut self, path: &RepoPath) {
        let Resolved::Inode(ino) = self.tree.resolve(path) else { return };
        let empty = self.tree.dir(ino).is_some_and(|dir| dir.children.is_empty());
        let Some(inode) = self.tree.get(ino).filter(|inode| empty && !inode.recorded) else { return };
        if let Some((parent, name)) = inode.links.first().cloned() {
            self.kernel.name_changed(parent, name.clone());
            self.tree.take_away(parent, &name, false);
            self.bury(ino);
            self.shift(parent);
        }
    }
}

fn body_of(entry: &Entry) -> Body {
    match entry.kind {
        EntryKind::File(object) => {
            Body::File { content: Content::Remote { hash: object.hash, origin: None }, size: object.size }
        }
        EntryKind::Dir => unlisted_dir(),
    }
}
