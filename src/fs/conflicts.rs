//! Paths that were changed here and by others: what is on record about each, how one is decided, and files that others
//! changed while programs have them open, which wait for the close.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use super::merge::Side;
use super::ops::Followed;
use super::rebase::LOOKS;
use super::recovery::Listings;
use super::staging::into_plain;
use super::{Fs, FsError, Need, Op, State, base_attrs, now, unlisted_dir};
use crate::hash::ContentHash;
use crate::namespace::{Body, Content, Dir, Ino, ROOT, Resolved};
use crate::path::{NAME_MAX, Name, RepoPath};
use crate::report;
use crate::store::journal::Change;
use crate::workspace::{CommitId, Entry, EntryKind, Object, Revision, Source};
use crate::writeback::index::{Account, Conflict, Staged, Theirs};

/// What of a name is not taken for its extension.
const LONGEST_EXTENSION: usize = 32;
/// What the name of a version that was put beside another has in it.
const MARK: &str = " (oxenfs ";

/// How a conflict is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// What is here is staged over what the branch has.
    Ours,
    /// What the branch has shows here.
    Theirs,
    /// The branch's version keeps the name, and what is here gets another beside it.
    KeepBoth,
}

/// A version of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// What both sides began with; without a conflict, what the branch has.
    Base,
    /// What the branch has.
    Theirs,
}

/// A file that others changed while programs have it open: it stays as it was until they have closed it.
#[derive(Debug, Clone)]
pub(super) struct Deferred {
    ino: Ino,
    /// What it is still, and the commit that has that.
    base: Object,
    commit: CommitId,
    /// What it becomes, and of when that is.
    theirs: Theirs,
    modified_secs: i64,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Waiting(BTreeMap<RepoPath, Deferred>);

impl State {
    /// Notes a conflict, and holds the path back.
    pub(super) fn hold_conflict(&mut self, path: &RepoPath, conflict: Conflict) {
        if self.writeback.conflict(path) != Some(&conflict) {
            tracing::warn!(%path, theirs = ?conflict.theirs, "changed here and by others");
            self.apply(Change::Conflict { path: path.clone(), conflict: Some(conflict) });
        }
        self.writeback.owe(path, Duration::ZERO);
    }

    /// Whether a file has no name any more, and nobody has it open: what is written to it would go with it.
    pub(super) fn is_gone(&self, ino: Ino) -> bool {
        self.tree.get(ino).is_some_and(|inode| inode.links.is_empty()) && !self.handles.is_open(ino)
    }

    /// A path is in conflict no longer, and due if anything is owed for it.
    pub(super) fn end_conflict(&mut self, path: &RepoPath) {
        if self.writeback.conflict(path).is_some() {
            self.apply(Change::Conflict { path: path.clone(), conflict: None });
            self.writeback.let_go(path);
            // What was removed below it waited for that.
            self.writeback.let_in();
        }
    }

    /// What was removed on both sides is in conflict no longer.
    pub(super) fn end_agreed_conflict(&mut self, path: &RepoPath) {
        let gone = self.writeback.conflict(path).is_some_and(|conflict| conflict.theirs == Theirs::Gone);
        if gone && matches!(self.tree.resolve(path), Resolved::Absent) {
            self.end_conflict(path);
        }
    }

    /// What is here at a path in conflict.
    fn ours(&self, path: &RepoPath) -> Side {
        match self.tree.resolve(path) {
            Resolved::Inode(ino) if self.tree.dir(ino).is_some() => Side::Dir,
            Resolved::Inode(ino) if self.content(ino).is_some() => Side::Written,
            _ => Side::Gone,
        }
    }

    /// Where a file that was removed here went, as far as its content tells.
    fn renamed_to(&self, base: Option<Object>) -> Option<RepoPath> {
        let base = base.filter(|base| base.size > 0)?;
        let has_it = |path: &RepoPath| match self.tree.resolve(path) {
            Resolved::Inode(ino) => match self.content(ino)?.0 {
                Content::Remote { hash, .. } | Content::Local { hash: Some(hash), .. } => {
                    (*hash == base.hash).then_some(())
                }
                Content::Local { hash: None, .. } => None,
            },
            Resolved::Absent | Resolved::AsBase => None,
        };
        let added = self.writeback.ledger().iter().filter(|(_, account)| account.base.is_none());
        added.map(|(path, _)| path).find(|path| has_it(path).is_some()).cloned()
    }

    /// A conflict in words, and where the file went that is not there any more.
    pub(super) fn told_conflict(&self, path: &RepoPath, conflict: &Conflict) -> report::Conflict {
        let ours = self.ours(path);
        let renamed_to = if ours == Side::Gone { self.renamed_to(conflict.base) } else { None };
        let what = match (conflict.base, conflict.theirs, ours) {
            (_, Theirs::Dir, Side::Gone) => "was removed here and is a directory with changes on the branch".to_owned(),
            (_, Theirs::Dir, Side::Dir) => {
                "was made again here and is a directory with changes on the branch".to_owned()
            }
            (_, Theirs::Dir, _) => "is a file here and a directory on the branch".to_owned(),
            (_, Theirs::File(_), Side::Dir) => {
                "is a directory here, with changes in it, and a file on the branch".to_owned()
            }
            (_, _, Side::Gone) => match &renamed_to {
                Some(to) => format!("was renamed to {to} here and changed on the branch"),
                None => "was removed here and changed on the branch".to_owned(),
            },
            (_, Theirs::Gone, _) => "was changed here and removed on the branch".to_owned(),
            (None, ..) => "was added here and on the branch".to_owned(),
            (Some(_), ..) => "was changed here and on the branch".to_owned(),
        };
        let renamed_to = renamed_to.map(|path| path.as_str().to_owned());
        report::Conflict { path: path.as_str().to_owned(), what, renamed_to }
    }

    /// All conflicts, in tree order, up to `most`.
    pub(super) fn told_conflicts(&self, most: usize) -> Vec<report::Conflict> {
        self.writeback.conflicts().take(most).map(|(path, conflict)| self.told_conflict(path, conflict)).collect()
    }
}

/// What waits for a close.
impl State {
    /// Puts off what others did to a file until programs have closed it. A removal waits for those alone who write to it.
    pub(super) fn defer(
        &mut self,
        dir: Ino,
        name: &Name,
        child: Ino,
        theirs: Theirs,
        modified_secs: i64,
        from: &CommitId,
    ) -> bool {
        let waits = match theirs {
            Theirs::File(_) => self.handles.is_open(child),
            Theirs::Gone | Theirs::Dir => self.handles.is_written(child),
        };
        let (Ok(path), Some((Content::Remote { hash, .. }, size))) =
            (self.tree.path_in(dir, name), self.content(child))
        else {
            return false;
        };
        if !waits {
            self.waiting.0.remove(&path);
            return false;
        }
        let base = Object { hash: *hash, size };
        let deferred = Deferred { ino: child, base, commit: from.clone(), theirs, modified_secs };
        self.pin_in(dir, name, child, from);
        let known = self.waiting.0.entry(path).or_insert(deferred);
        (known.theirs, known.modified_secs) = (theirs, modified_secs);
        true
    }

    /// The commit has what the file is.
    pub(super) fn forget_deferred(&mut self, dir: Ino, name: &Name) {
        if !self.waiting.0.is_empty()
            && let Ok(path) = self.tree.path_in(dir, name)
        {
            self.waiting.0.remove(&path);
        }
    }

    /// Nobody has a file open any more: what others did to it shows.
    pub(super) fn take_deferred(&mut self, ino: Ino, fs: &Fs) {
        if self.waiting.0.is_empty() || self.handles.is_open(ino) {
            return;
        }
        let of = self.waiting.0.iter().filter(|(_, deferred)| deferred.ino == ino);
        for path in of.map(|(path, _)| path.clone()).collect::<Vec<_>>() {
            let Some(deferred) = self.waiting.0.remove(&path) else { continue };
            let Some((dir, name)) = self.place_of(&path) else { continue };
            if self.tree.child(dir, &name) != Some(ino) {
                continue;
            }
            let kind = match deferred.theirs {
                Theirs::File(object) => EntryKind::File(object),
                Theirs::Dir => EntryKind::Dir,
                Theirs::Gone => {
                    self.take_clean(dir, &name, ino, &deferred.commit);
                    self.shift(dir);
                    continue;
                }
            };
            let entry = Entry { name: String::new(), kind, modified_secs: deferred.modified_secs };
            if self.bring_up(dir, &name, ino, &entry, None, &fs.options) {
                self.shift(dir);
            }
        }
    }

    /// A file that waits for its close is changed here: that makes a conflict of it. Says whether it waited.
    pub(super) fn clash_deferred(&mut self, path: &RepoPath) -> bool {
        let Some(Deferred { base, commit, theirs, .. }) = self.waiting.0.remove(path) else { return false };
        let account = Account { base: theirs.object(), ..Account::default() };
        self.apply(Change::Account { path: path.clone(), account: Some(account) });
        self.hold_conflict(path, Conflict { base: Some(base), commit, theirs });
        true
    }

    /// The directory that a path's entry is in, and the entry's name.
    pub(super) fn place_of(&self, path: &RepoPath) -> Option<(Ino, Name)> {
        let name = Name::new(path.file_name().as_bytes()).ok()?;
        match self.tree.resolve(&path.parent()?) {
            Resolved::Inode(dir) if self.tree.dir(dir).is_some() => Some((dir, name)),
            _ => None,
        }
    }
}

impl Fs {
    /// What is in conflict around `path`: what was removed there is decided with it, as nobody knows here what others have
    /// beside it.
    pub fn conflict_above(&self, path: &RepoPath) -> Option<RepoPath> {
        let state = self.lock();
        std::iter::successors(path.parent(), RepoPath::parent).find(|dir| state.writeback.conflict(dir).is_some())
    }

    /// The paths that were changed here and by others, in tree order.
    pub fn conflicts(&self) -> Vec<RepoPath> {
        self.lock().writeback.conflicts().map(|(path, _)| path.clone()).collect()
    }

    /// The same in words, up to `most`.
    pub fn told_conflicts(&self, most: usize) -> Vec<report::Conflict> {
        self.lock().told_conflicts(most)
    }

    /// What is on record about a path in conflict.
    pub fn conflict(&self, path: &RepoPath) -> Option<Conflict> {
        self.lock().writeback.conflict(path).cloned()
    }

    /// A version of a file that is not here, whole. `None`: there is no file in it.
    ///
    /// # Errors
    /// The server's.
    pub async fn version(&self, path: &RepoPath, version: Version) -> Result<Option<Arc<File>>, FsError> {
        let (conflict, base) = {
            let state = self.lock();
            (state.writeback.conflict(path).cloned(), state.tree.base().clone())
        };
        let (object, commit) = match (conflict, version) {
            (Some(conflict), Version::Base) => (conflict.base, conflict.commit),
            (Some(conflict), Version::Theirs) => (conflict.theirs.object(), base),
            (None, _) => (Listings::new(self, base.clone()).object(path).await?, base),
        };
        let Some(Object { hash, size }) = object else { return Ok(None) };
        let source = Source { revision: Revision::Commit(commit), path: path.clone() };
        self.fetch_checked(hash, size, Some(source)).await.map(Some)
    }

    /// Decides a conflict. `label` names who decides and when: the version that is put beside another has it in its name.
    /// Returns that version's path.
    ///
    /// # Errors
    /// [`FsError::NotFound`] when there is none; [`FsError::Busy`] where it becomes another all the time; the server's, or the
    /// local disk's: nothing is decided then.
    pub async fn resolve(&self, path: &RepoPath, choice: Choice, label: &str) -> Result<Option<RepoPath>, FsError> {
        for _ in 1..LOOKS {
            match self.try_resolve(path, choice, label).await {
                // The base moved meanwhile.
                Err(FsError::Busy) => {}
                resolved => return resolved,
            }
        }
        self.try_resolve(path, choice, label).await
    }

    async fn try_resolve(&self, path: &RepoPath, choice: Choice, label: &str) -> Result<Option<RepoPath>, FsError> {
        let (conflict, ours, ino) = {
            let state = self.lock();
            let conflict = state.writeback.conflict(path).cloned().ok_or(FsError::NotFound)?;
            let ino = match state.tree.resolve(path) {
                Resolved::Inode(ino) => Some(ino),
                Resolved::Absent | Resolved::AsBase => None,
            };
            (conflict, state.ours(path), ino)
        };
        // With one version alone there is nothing to be put beside it.
        let choice = match (choice, ours, conflict.theirs) {
            (Choice::KeepBoth, Side::Gone, _) => Choice::Theirs,
            (Choice::KeepBoth, _, Theirs::Gone) => Choice::Ours,
            (choice, ..) => choice,
        };
        let there = match conflict.theirs {
            Theirs::Dir => self.files_below(&self.base(), path).await?,
            Theirs::File(_) | Theirs::Gone => Vec::new(),
        };
        let mark = match (choice, ino) {
            (Choice::KeepBoth, Some(ino)) => {
                self.satisfy(Need::ListAll(ino)).await.or_else(|error| match error {
                    // It is no directory.
                    FsError::Stale | FsError::NotDir => Ok(()),
                    error => Err(error),
                })?;
                Some(self.content_mark(ino, path).await?)
            }
            _ => None,
        };
        let decided = self.change(|state| {
            if state.writeback.conflict(path) != Some(&conflict) {
                return Err(FsError::Busy.into());
            }
            state.decide(path, choice, &there, mark.as_deref().map(|mark| (label, mark)), self)
        });
        let aside = into_plain(decided)?;
        self.note_uncommitted();
        self.flush().await?;
        self.kernel_knows().await;
        self.wake.notify_one();
        Ok(aside)
    }

    /// Six digits that tell one content from others.
    async fn content_mark(&self, ino: Ino, path: &RepoPath) -> Result<String, FsError> {
        let (known, token) = {
            let state = self.lock();
            match state.content(ino) {
                Some((Content::Remote { hash, .. } | Content::Local { hash: Some(hash), .. }, _)) => {
                    (Some(*hash), None)
                }
                Some(_) => (None, state.tree.token(ino)),
                None => (Some(ContentHash::of(self.hash_kind, path.as_str().as_bytes())), None),
            }
        };
        let hash = match (known, token) {
            (Some(hash), _) => hash,
            (None, token) => {
                let hashed = self.blocking(move |fs| {
                    fs.look_at(ino)?;
                    let token = fs.lock().tree.token(ino).or(token).ok_or(FsError::Stale)?;
                    let file = fs.spool_file(token)?.ok_or(FsError::Busy)?;
                    Ok(ContentHash::of_file(fs.hash_kind, &file, || true)?.0)
                });
                hashed.await?
            }
        };
        Ok(format!("{hash:0>32}").chars().take(6).collect())
    }

    /// Every file of a commit below a directory.
    pub(crate) async fn files_below(
        &self,
        commit: &CommitId,
        dir: &RepoPath,
    ) -> Result<Vec<(RepoPath, Object)>, FsError> {
        let (mut found, mut left) = (Vec::new(), vec![dir.clone()]);
        while let Some(dir) = left.pop() {
            for entry in self.listing_of(commit, &dir).await? {
                let Ok(path) = RepoPath::parse(&entry.name).map(|name| dir.concat(&name)) else { continue };
                match entry.kind {
                    EntryKind::File(object) => found.push((path, object)),
                    EntryKind::Dir => left.push(path),
                }
            }
        }
        Ok(found)
    }
}

impl State {
    fn decide(
        &mut self,
        path: &RepoPath,
        choice: Choice,
        there: &[(RepoPath, Object)],
        aside: Option<(&str, &str)>,
        fs: &Fs,
    ) -> Op<Option<RepoPath>> {
        let conflict = self.writeback.conflict(path).cloned().ok_or(FsError::NotFound)?;
        if choice == Choice::Ours {
            self.end_conflict(path);
            for (below, object) in there {
                let account = self.writeback.account(below).unwrap_or_default();
                let account = Account { base: Some(*object), ..account };
                self.apply(Change::Account { path: below.clone(), account: Some(account) });
                self.owe_again(below);
            }
            return Ok(None);
        }
        let Some((dir, name)) = self.place_for(path, conflict.theirs, fs)? else {
            // Nothing here and nothing there.
            self.end_conflict(path);
            self.settle_with_theirs(path, conflict.theirs);
            return Ok(None);
        };
        // What was written in a directory of that name is over what others have there.
        for (below, object) in there {
            if let Some(account) = self.writeback.account(below) {
                let account = Account { base: Some(*object), ..account };
                self.apply(Change::Account { path: below.clone(), account: Some(account) });
            }
        }
        let ours = self.tree.child(dir, &name);
        let mut beside = None;
        if let (Some(ours), Some((label, mark))) = (ours, aside)
            && let Some(free) = self.name_beside(dir, &name, ours, label, mark)?
        {
            beside = Some(path.parent().unwrap_or_default().join(&free).map_err(|_| FsError::Invalid)?);
            self.end_conflict(path);
            self.transplant((dir, &name), ours, (dir, &free), Followed::new(), fs);
        } else if let Some(ours) = ours {
            self.end_conflict(path);
            self.give_up(dir, &name, ours, fs);
        } else {
            self.end_conflict(path);
        }
        self.show_theirs(dir, &name, path, conflict.theirs, fs);
        Ok(beside)
    }

    /// Where a path's entry is to show. Directories around it that are not here are made, with nothing else in them: what
    /// the base has in those was removed here. `None`: nothing is to show, and they are not here.
    fn place_for(&mut self, path: &RepoPath, theirs: Theirs, fs: &Fs) -> Op<Option<(Ino, Name)>> {
        let below = path.below(self.tree.root_path()).ok_or(FsError::Stale)?;
        let names: Result<Vec<Name>, _> = below.components().map(|part| Name::new(part.as_bytes())).collect();
        let mut names = names.map_err(|_| FsError::Stale)?;
        let last = names.pop().ok_or(FsError::Stale)?;
        let (mut at, mut there) = (ROOT, 0);
        for name in &names {
            match self.tree.child(at, name) {
                Some(child) if self.tree.dir(child).is_some() => (at, there) = (child, there + 1),
                // Something else is in the way.
                Some(_) => return Err(FsError::NotDir.into()),
                None => break,
            }
        }
        if theirs == Theirs::Gone && there < names.len() {
            return Ok(None);
        }
        for name in names.into_iter().skip(there) {
            let removed = self.tree.dir(at).is_some_and(|dir| dir.listed || dir.hidden.contains(&name));
            let body = match removed {
                true => Body::Dir(Box::new(Dir { listed: true, ..Dir::default() })),
                false => unlisted_dir(),
            };
            self.materialize(at);
            let dir = self.add(base_attrs(&fs.options, true, now()), body);
            self.kernel.name_changed(at, name.clone());
            self.apply(Change::Link { parent: at, name, ino: dir });
            self.shift(at);
            at = dir;
        }
        Ok(Some((at, last)))
    }

    /// Takes away what is here, with all below it, in favour of what the branch has.
    fn give_up(&mut self, dir: Ino, name: &Name, ours: Ino, fs: &Fs) {
        let mut all = vec![(dir, name.clone(), ours)];
        all.extend(self.tree.walk(ours));
        for (parent, name, child) in all.into_iter().rev() {
            self.kernel.name_changed(parent, name.clone());
            self.uproot(parent, &name, child, fs);
            self.bury(child);
        }
    }

    /// Shows what the branch has at a path where the tree has nothing any more.
    fn show_theirs(&mut self, dir: Ino, name: &Name, path: &RepoPath, theirs: Theirs, fs: &Fs) {
        if self.tree.dir(dir).is_some_and(|dir| dir.hidden.contains(name)) {
            self.apply(Change::Unhide { parent: dir, name: name.clone() });
        }
        self.settle_with_theirs(path, theirs);
        let body = match theirs {
            Theirs::File(Object { hash, size }) => {
                Some(Body::File { content: Content::Remote { hash, origin: None }, size })
            }
            Theirs::Dir => Some(unlisted_dir()),
            Theirs::Gone => None,
        };
        if let Some(body) = body {
            let attrs = base_attrs(&fs.options, theirs == Theirs::Dir, now());
            self.show_of_base(dir, name, attrs, body);
        }
        if theirs == Theirs::Dir {
            self.show_all_below(path, fs);
        }
        self.kernel.name_changed(dir, name.clone());
        self.shift(dir);
    }

    /// What others had staged at a path is staged no longer: what the base has shows again, where nothing was changed here.
    pub(super) fn take_back_of_others(&mut self, path: &RepoPath, fs: &Fs) -> Op<()> {
        let Some(account) = self.writeback.account(path).filter(|account| account.theirs) else { return Ok(()) };
        if self.writeback.is_pending(path) {
            return Ok(());
        }
        let base = account.base.map_or(Theirs::Gone, Theirs::File);
        // What others removed made way for a directory with something of ours.
        if self.is_dir_with_own(path) {
            return Err(FsError::NotEmpty.into());
        }
        let place = self.place_for(path, base, fs)?;
        let account = Account { staged: Staged::Nothing, theirs: false, ..account };
        self.apply(Change::Account { path: path.clone(), account: Some(account) });
        let Some((dir, name)) = place else {
            self.settle_with_theirs(path, base);
            return Ok(());
        };
        if let Some(here) = self.tree.child(dir, &name) {
            self.give_up(dir, &name, here, fs);
        }
        self.show_theirs(dir, &name, path, base, fs);
        Ok(())
    }

    /// What the tree shows of the base at a path makes way for what others staged there. `false`: something of ours is in
    /// the way.
    pub(super) fn clear_for_import(&mut self, path: &RepoPath) -> bool {
        let Some((dir, name)) = self.place_of(path) else { return true };
        let Some(here) = self.tree.child(dir, &name) else { return true };
        if self.has_own_below(here) || self.tree.is_ignored(dir, &name) {
            return false;
        }
        let base = self.tree.base().clone();
        for (parent, name, below) in self.tree.walk(here).into_iter().rev() {
            self.take_clean(parent, &name, below, &base);
        }
        self.take_clean(dir, &name, here, &base);
        self.shift(dir);
        true
    }

    /// What is staged or owed at a path makes way for what the branch has.
    fn settle_with_theirs(&mut self, path: &RepoPath, theirs: Theirs) {
        let account = self.writeback.account(path).unwrap_or_default();
        let account = Account { base: theirs.object(), ..account };
        // A request that is under way may stage something yet.
        let under_way = self.writeback.queue().is_active(path) || self.is_in_cut(path);
        if account.is_settled() && !under_way {
            self.writeback.owe_no_more(path);
            self.apply(Change::Account { path: path.clone(), account: None });
        } else {
            self.apply(Change::Account { path: path.clone(), account: Some(account) });
            self.owe_again(path);
        }
    }

    /// Shows what the branch has below a directory and was removed here.
    fn show_all_below(&mut self, dir: &RepoPath, fs: &Fs) {
        let below: Vec<RepoPath> =
            self.writeback.ledger().based_below(dir).filter(|path| *path != dir).cloned().collect();
        for path in below {
            let Some(object) = self.writeback.account(&path).and_then(|account| account.base) else { continue };
            self.end_conflict(&path);
            self.show_file(&path, object, None, &fs.options);
            self.settle_with_theirs(&path, Theirs::File(object));
        }
    }

    /// A name beside `name` for the version that makes way; `None`: the same content lies there under such a name.
    fn name_beside(&self, dir: Ino, name: &Name, ours: Ino, label: &str, mark: &str) -> Op<Option<Name>> {
        let hash = |ino: Ino| match self.content(ino).map(|(content, _)| content) {
            Some(Content::Remote { hash, .. } | Content::Local { hash: Some(hash), .. }) => Some(*hash),
            _ => None,
        };
        let text = String::from_utf8_lossy(name.as_bytes());
        for number in 1.. {
            let counted = if number == 1 { String::new() } else { format!(" {number}") };
            let free = Name::new(beside(&text, &format!("{label} {mark}{counted}")).as_bytes());
            let free = free.map_err(|_| FsError::NameTooLong)?;
            match self.entry(dir, &free)? {
                None => return Ok(Some(free)),
                Some(there) if hash(there).is_some() && hash(there) == hash(ours) => return Ok(None),
                Some(_) => {}
            }
        }
        Ok(None)
    }
}

/// `name` with who and what in it, before its extension; of a name that has such a mark already, another mark.
fn beside(name: &str, mark: &str) -> String {
    let dot = name.rfind('.').filter(|dot| *dot > 0 && name.len() - dot <= LONGEST_EXTENSION);
    let (stem, extension) = name.split_at(dot.unwrap_or(name.len()));
    let stem = match stem.find(MARK) {
        Some(at) if stem.ends_with(')') => &stem[..at],
        _ => stem,
    };
    let mark = format!("{MARK}{mark})");
    let mut room = NAME_MAX.saturating_sub(mark.len() + extension.len()).min(stem.len());
    while !stem.is_char_boundary(room) {
        room -= 1;
    }
    format!("{}{mark}{extension}", &stem[..room])
}

#[cfg(test)]
mod tests {
    use super::beside;
    use crate::path::NAME_MAX;

    #[test]
    fn a_version_beside_another_has_a_name_that_fits() {
        let mark = "ann@lab 2026-11-30 1a2b3c";
        assert_eq!(beside("labels.csv", mark), "labels (oxenfs ann@lab 2026-11-30 1a2b3c).csv");
        assert_eq!(beside("Makefile", mark), "Makefile (oxenfs ann@lab 2026-11-30 1a2b3c)");
        assert_eq!(beside(".hidden", mark), ".hidden (oxenfs ann@lab 2026-11-30 1a2b3c)");
        // Never the copy of a copy.
        let other = "bob@lab 2026-12-01 ffffff";
        assert_eq!(beside(&beside("labels.csv", mark), other), beside("labels.csv", other));
        // Cut at a character.
        for name in ["\u{e9}".repeat(127) + "x", format!("{}.json", "\u{20ac}".repeat(83)), "x".repeat(255)] {
            let found = beside(&name, mark);
            assert!(found.len() <= NAME_MAX && found.len() > NAME_MAX - 4, "{} bytes", found.len());
            assert!(found.contains(mark));
        }
        let odd = beside(&format!("a.{}", "y".repeat(200)), mark);
        assert!(odd.len() <= NAME_MAX && odd.ends_with("1a2b3c)"), "{odd}");
    }
}
