//! Back to what a commit has: of a path, or of all below a directory. What is dropped by that is [kept](super::kept) before
//! anything changes, and can be brought back.
//!
//! A file is replaced by another inode, as by a rename over it: who has the old one open keeps that. Whether all of it can
//! be done is found out before any of it is.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use super::kept::{Item, Record, Was, Xattr};
use super::staging::into_plain;
use super::tree::Token;
use super::{Fs, FsError, Op, State, Stop, base_attrs, now, now_secs, set_mtime};
use crate::hash::ContentHash;
use crate::namespace::{Attrs, Body, Content, Ino, Resolved};
use crate::path::{Name, RepoPath};
use crate::report::{Difference, Kind};
use crate::store::disk::Act;
use crate::store::journal::Change;
use crate::store::spool::{copy_content, holes};
use crate::workspace::{CommitId, EntryKind, Object, Outcome, Revision, Source};
use crate::writeback::index::{Account, Staged};
use crate::writeback::queue::Parked;

/// Why a path is not staged that was unstaged on purpose.
pub(super) const HELD: &str =
    "was unstaged, and is held back until it is written again; `oxenfs sync` on it by name stages it";

/// How often it is begun anew because a program changed a file meanwhile.
const ATTEMPTS: u32 = 5;
/// How soon it is looked again whether a file was closed.
const CLOSE_LOOK: Duration = Duration::from_millis(50);
/// How soon it is looked again whether a request is under way.
const REQUEST_LOOK: Duration = Duration::from_millis(100);
/// Files of a revision that are compared at most.
const MOST_FILES: usize = 1_000_000;

/// What is restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// What the base has.
    Base,
    /// What this commit has.
    Commit(CommitId),
}

/// Why nothing was restored, and nothing changed.
#[derive(Debug, thiserror::Error)]
pub enum NotRestored {
    /// What a program writes there would go nowhere.
    #[error("{0} is open for writing")]
    Written(RepoPath),
    /// A file where a directory is needed, or a directory with what stays here.
    #[error("{other} is in the way of {path}")]
    InTheWay {
        /// What is to be restored.
        path: RepoPath,
        /// What is there.
        other: String,
    },
    /// Whatever was kept, another was there a moment later.
    #[error("programs go on changing what is there")]
    Busy,
    /// Both sides changed it, and nobody has decided.
    #[error("{0} is in conflict")]
    InConflict(RepoPath),
    /// It is not as the restore left it.
    #[error("{0} has changed since")]
    Changed(RepoPath),
    /// There is nothing to be brought back.
    #[error("nothing that a restore dropped is kept there")]
    NothingKept,
    /// What would be dropped cannot be kept.
    #[error("there is no room to keep what would be dropped")]
    NoRoom,
    /// What a commit holds is not changed under it.
    #[error("a commit is under way")]
    Committing,
    /// Too much to be compared.
    #[error("the revision has more than {MOST_FILES} files there")]
    TooMany,
    /// The server, the record or the disk said no.
    #[error(transparent)]
    Failed(FsError),
}

impl<E: Into<FsError>> From<E> for NotRestored {
    fn from(error: E) -> Self {
        match error.into() {
            FsError::NoSpace => Self::NoRoom,
            error => Self::Failed(error),
        }
    }
}

/// What is to be at a path.
#[derive(Debug, Clone)]
struct Wanted {
    object: Object,
    /// Where it can be read, if not at its own path of the base.
    source: Option<Source>,
}

/// One path, and what is to be there; `None`: nothing.
#[derive(Debug, Clone)]
struct Step {
    path: RepoPath,
    to: Option<Wanted>,
}

/// What a path has before it is restored.
struct Held {
    was: Was,
    /// The file there, if there is one.
    token: Option<Token>,
}

/// What a path of a transaction had, and gets.
enum New {
    Nothing,
    Wanted(Wanted),
    Spooled(super::Spooled, Attrs, Vec<Xattr>),
}

fn difference(path: &RepoPath, kind: Kind, bytes: u64) -> Difference {
    Difference {
        path: path.to_string(),
        kind,
        from: None,
        bytes,
        staged: false,
        reason: None,
        conflict: None,
        others: false,
    }
}

impl Fs {
    /// What restoring these paths, and all below them, would change; does it if told to `apply`. Of the changes, what was
    /// added would go, what was removed would come back, what was modified would be as `target` has it. What others
    /// staged in a workspace that is shared stays.
    ///
    /// # Errors
    /// [`NotRestored`]: nothing has changed.
    pub async fn restore(
        &self,
        dirs: &HashSet<RepoPath>,
        target: &Target,
        apply: bool,
    ) -> Result<Vec<Difference>, NotRestored> {
        into_plain(self.writable_mount())?;
        for attempt in 1..=ATTEMPTS {
            let (steps, changes) = match target {
                Target::Commit(commit) if *commit != self.base() => self.plan_commit(dirs, commit).await?,
                Target::Base | Target::Commit(_) => self.plan_base(dirs).await?,
            };
            self.are_decided(steps.iter().map(|step| &step.path))?;
            if steps.is_empty() || !apply {
                return Ok(changes);
            }
            let (batch, held) = match self.keep_dropped(&steps).await {
                // A close is told a moment after it has returned.
                Err(NotRestored::Written(_)) if attempt < ATTEMPTS => {
                    tokio::time::sleep(CLOSE_LOOK).await;
                    continue;
                }
                kept => kept?,
            };
            match into_plain(self.apply_steps(&steps, &held)) {
                Ok(Ok(())) => {
                    self.wake.notify_one();
                    self.kernel_knows().await;
                    tracing::info!(paths = steps.len(), "restored; what was dropped is kept");
                    return Ok(changes);
                }
                // A program was faster.
                Ok(Err(NotRestored::Changed(_))) => self.forget_batches(vec![batch]).await,
                Ok(Err(error)) => {
                    self.forget_batches(vec![batch]).await;
                    return Err(error);
                }
                Err(error) => {
                    self.forget_batches(vec![batch]).await;
                    return Err(error.into());
                }
            }
        }
        Err(NotRestored::Busy)
    }

    /// What is in conflict is decided first, which says which of the versions is to be dropped.
    fn are_decided<'a>(&self, mut paths: impl Iterator<Item = &'a RepoPath>) -> Result<(), NotRestored> {
        let state = self.lock();
        let undecided = paths.find(|path| state.writeback.conflict(path).is_some());
        undecided.map_or(Ok(()), |path| Err(NotRestored::InConflict(path.clone())))
    }

    /// Brings back what restores dropped at these paths and below them, of each path the last; without any, what the last
    /// restore dropped.
    ///
    /// # Errors
    /// [`NotRestored`]: nothing has changed.
    pub async fn undo_restore(&self, dirs: &HashSet<RepoPath>, apply: bool) -> Result<Vec<Difference>, NotRestored> {
        into_plain(self.writable_mount())?;
        let mut found: Vec<(u64, Item)> = Vec::new();
        let mut seen = HashSet::new();
        for batch in self.kept.batches().into_iter().rev() {
            let record = self.blocking(move |fs| Ok(fs.kept.read(batch.id)?)).await?;
            let items = record.items.into_iter().filter(|item| dirs.is_empty() || item.path.is_in_any(dirs));
            found.extend(items.filter(|item| seen.insert(item.path.clone())).map(|item| (batch.id, item)));
            if dirs.is_empty() {
                break;
            }
        }
        if found.is_empty() {
            return Err(NotRestored::NothingKept);
        }
        found.sort_by(|a, b| a.1.path.cmp(&b.1.path));
        let changes = found.iter().map(|(_, item)| match (&item.was, item.now) {
            (Was::Nothing, now) => difference(&item.path, Kind::Removed, now.map_or(0, |object| object.size)),
            (Was::File { size, .. }, None) => difference(&item.path, Kind::Added, *size),
            (Was::File { size, .. }, Some(_)) => difference(&item.path, Kind::Modified, *size),
            (Was::Committed { object, .. }, None) => difference(&item.path, Kind::Added, object.size),
            (Was::Committed { object, .. }, Some(_)) => difference(&item.path, Kind::Modified, object.size),
        });
        let changes: Vec<Difference> = changes.collect();
        self.are_decided(found.iter().map(|(_, item)| &item.path))?;
        for (_, item) in &found {
            self.is_as_left(item).await?;
        }
        if !apply {
            return Ok(changes);
        }
        let batches: HashSet<u64> = found.iter().map(|(id, _)| *id).collect();
        // What they count for is the new files' now; and they must not make way for these.
        let batches: Vec<_> = self.kept.batches().into_iter().filter(|batch| batches.contains(&batch.id)).collect();
        let (ended, gone): (Vec<_>, Vec<_>) = batches.into_iter().partition(|batch| self.spool.end_loan(batch.id));
        let done = match gone.is_empty() {
            true => self.bring_back(&found).await,
            false => Err(NotRestored::NothingKept),
        };
        for batch in ended {
            let undone = done.is_ok().then(|| found.iter().map(|(id, item)| (*id, &item.path)).collect());
            self.settle_batch(batch.id, batch.counted, undone.unwrap_or_default()).await;
        }
        done?;
        self.wake.notify_one();
        self.kernel_knows().await;
        Ok(changes)
    }

    /// These paths of a batch are there again; it is kept for the others, if there are any.
    async fn settle_batch(&self, id: u64, counted: u64, undone: HashSet<(u64, &RepoPath)>) {
        let undone: HashSet<RepoPath> =
            undone.into_iter().filter(|(of, _)| *of == id).map(|(_, path)| path.clone()).collect();
        let settled = self.blocking(move |fs| {
            let mut record = fs.kept.read(id)?;
            record.items.retain(|item| !undone.contains(&item.path));
            if record.items.is_empty() {
                fs.kept.remove(id);
                return Ok(());
            }
            fs.spool.lend_room(id, counted);
            if !undone.is_empty() {
                fs.kept.rewrite(id, &record)?;
            }
            Ok(())
        });
        if let Err(error) = settled.await {
            tracing::warn!(%error, id, "what a restore kept and is back is kept as well");
        }
    }

    // ---- what is unstaged

    /// What unstaging these paths, and all below them, would change; does it if told to `apply`. Each stays as it is here,
    /// and is not staged again until it is written, or named to a barrier.
    ///
    /// # Errors
    /// [`NotRestored`]: nothing has changed, or what was staged is staged again.
    pub async fn unstage(&self, dirs: &HashSet<RepoPath>, apply: bool) -> Result<Vec<Difference>, NotRestored> {
        into_plain(self.writable_mount())?;
        let (_, mut changes) = self.plan_base(dirs).await?;
        let mut paths = Vec::new();
        {
            let state = self.lock();
            changes.retain(|change| {
                let Ok(path) = RepoPath::parse(&change.path) else { return false };
                let staged = state.writeback.account(&path).is_some_and(|account| account.staged != Staged::Nothing);
                if staged {
                    paths.push(path);
                }
                staged
            });
        }
        self.are_decided(paths.iter())?;
        if paths.is_empty() || !apply {
            return Ok(changes);
        }
        self.hold_back(&paths).await?;
        if let Err(error) = self.unstage_held(&paths).await {
            into_plain(self.change(|state| {
                for path in &paths {
                    state.hold_no_more(path);
                    state.writeback.owe(path, Duration::ZERO);
                }
                Ok(())
            }))?;
            self.wake.notify_one();
            return Err(error);
        }
        Ok(changes)
    }

    /// None of these paths has its turn any more. Waits for requests about them that are under way.
    async fn hold_back(&self, paths: &[RepoPath]) -> Result<(), NotRestored> {
        loop {
            let progress = self.progress.notified();
            let held = into_plain(self.change(|state| {
                if state.writeback.is_cutting() {
                    return Ok(Err(NotRestored::Committing));
                }
                if paths.iter().any(|path| state.writeback.queue().is_active(path)) {
                    return Ok(Ok(false));
                }
                for path in paths {
                    let account = Account { held: true, ..state.writeback.account(path).unwrap_or_default() };
                    state.apply(Change::Account { path: path.clone(), account: Some(account) });
                    if !state.writeback.is_pending(path) {
                        state.writeback.owe(path, Duration::ZERO);
                    }
                    state.writeback.park(path, HELD.to_owned(), Parked::Held);
                }
                Ok(Ok(true))
            }))?;
            if held? {
                return Ok(());
            }
            let _ = tokio::time::timeout(REQUEST_LOOK, progress).await;
        }
    }

    async fn unstage_held(&self, paths: &[RepoPath]) -> Result<(), NotRestored> {
        self.rescue_all(paths).await?;
        self.intend(paths.iter(), std::iter::empty())?;
        self.flush().await?;
        let unanswered = self.workspace.unanswered();
        let done = self.workspace.unstage(paths).await;
        if self.workspace.unanswered() != unanswered {
            self.went_unanswered(paths.iter())?;
        }
        for outcome in done? {
            if let Outcome::Failed(error) = outcome {
                return Err(error.into());
            }
        }
        into_plain(self.change(|state| {
            for path in paths {
                let account = state.writeback.account(path).unwrap_or_default();
                let account = Account { staged: Staged::Nothing, theirs: false, ..account };
                state.apply(Change::Account { path: path.clone(), account: Some(account) });
                // Unless it was written meanwhile.
                if account.held {
                    state.writeback.park(path, HELD.to_owned(), Parked::Held);
                }
            }
            Ok(())
        }))?;
        self.note_uncommitted();
        Ok(self.flush().await?)
    }

    // ---- what is kept

    /// The number of what was kept last; 0: nothing.
    pub fn last_kept(&self) -> u64 {
        self.kept.batches().last().map_or(0, |batch| batch.id)
    }

    /// A commit was made: what restores had dropped before, up to this number, goes.
    pub async fn forget_kept(&self, last: u64) {
        let before = self.kept.batches().into_iter().map(|batch| batch.id).filter(|id| *id <= last);
        self.forget_batches(before.collect()).await;
    }

    async fn forget_batches(&self, ids: Vec<u64>) {
        let forgotten = self.blocking(move |fs| {
            ids.into_iter().for_each(|id| fs.forget_batch(id));
            Ok(())
        });
        if let Err(error) = forgotten.await {
            tracing::warn!(%error, "what a restore had dropped is kept for longer");
        }
    }

    fn forget_batch(&self, id: u64) {
        self.spool.end_loan(id);
        self.kept.remove(id);
    }

    /// Removes what made way for a writer. To be called now and then, where it may wait for the disk.
    pub(super) fn clear_kept(&self) {
        for id in self.spool.to_go() {
            tracing::warn!(id, "room is short: what a restore had dropped is kept no longer");
            self.kept.remove(id);
        }
    }

    /// The disk is full: the oldest that is kept goes. Whether there was any.
    pub(super) fn give_up_kept(&self) -> bool {
        let any = self.spool.give_oldest();
        self.clear_kept();
        any
    }

    pub(super) fn expire_kept(&self) {
        for batch in self.kept.expired() {
            tracing::info!(id = batch.id, "what a restore had dropped was kept for a week");
            self.forget_batch(batch.id);
        }
    }

    // ---- what is to be done

    async fn plan_base(&self, dirs: &HashSet<RepoPath>) -> Result<(Vec<Step>, Vec<Difference>), NotRestored> {
        let found = self.blocking(|fs| Ok(fs.differences())).await?;
        let mut changes = Vec::new();
        for difference in found.into_iter().filter(|difference| difference.kind != Kind::Local && !difference.others) {
            // Of a rename, either end by itself.
            let Difference { path, kind, from, bytes, staged, .. } = difference;
            let one = |path, kind| Difference {
                path,
                kind,
                from: None,
                bytes,
                staged,
                reason: None,
                conflict: None,
                others: false,
            };
            match kind {
                Kind::Renamed => {
                    changes.push(one(path, Kind::Added));
                    changes.extend(from.map(|from| one(from, Kind::Removed)));
                }
                kind => changes.push(one(path, kind)),
            }
        }
        let (mut steps, mut shown) = (Vec::new(), Vec::new());
        for change in changes {
            let Ok(path) = RepoPath::parse(&change.path) else { continue };
            if !path.is_in_any(dirs) {
                continue;
            }
            if !self.knows_base_of(&path) {
                self.learn_base_of(&path).await?;
            }
            let base = self.lock().writeback.account(&path).and_then(|account| account.base);
            steps.push(Step { path, to: base.map(|object| Wanted { object, source: None }) });
            shown.push(change);
        }
        shown.sort_by(|a, b| a.path.cmp(&b.path));
        Ok((steps, shown))
    }

    async fn plan_commit(
        &self,
        dirs: &HashSet<RepoPath>,
        commit: &CommitId,
    ) -> Result<(Vec<Step>, Vec<Difference>), NotRestored> {
        let mut there: HashMap<RepoPath, Object> = HashMap::new();
        let mut here: HashSet<RepoPath> = HashSet::new();
        for dir in dirs {
            self.files_of(commit, dir, &mut there).await?;
            if let Some(ino) = self.find_at(dir).await? {
                self.list_all(ino).await?;
                let state = self.lock();
                match state.content(ino) {
                    Some(_) => drop(here.insert(dir.clone())),
                    None if state.tree.dir(ino).is_some() => {
                        let below = state.tree.walk(ino);
                        let files = below.iter().filter(|(.., child)| state.content(*child).is_some());
                        here.extend(files.filter_map(|(parent, name, _)| state.tree.path_in(*parent, name).ok()));
                    }
                    None => {}
                }
            }
            // So that what the base has at each path of it is known.
            for path in there.keys() {
                self.find_at(path).await?;
            }
        }
        let mut paths: Vec<&RepoPath> =
            there.keys().chain(here.iter().filter(|path| !there.contains_key(path))).collect();
        paths.sort();
        let state = self.lock();
        let (mut steps, mut changes) = (Vec::new(), Vec::new());
        for path in paths {
            if state.writeback.account(path).is_some_and(|account| account.theirs) {
                continue;
            }
            let (is_here, size, hash) = match state.tree.resolve(path) {
                Resolved::Inode(ino) => match state.content(ino) {
                    Some((Content::Remote { hash, .. }, size)) => (true, size, Some(*hash)),
                    Some((Content::Local { hash, .. }, size)) => (true, size, *hash),
                    None => (false, 0, None),
                },
                Resolved::Absent | Resolved::AsBase => (false, 0, None),
            };
            match (is_here, there.get(path)) {
                (true, Some(object)) if hash == Some(object.hash) => continue,
                (true, Some(_)) => changes.push(difference(path, Kind::Modified, size)),
                (true, None) => changes.push(difference(path, Kind::Added, size)),
                (false, Some(object)) => changes.push(difference(path, Kind::Removed, object.size)),
                (false, None) => continue,
            }
            let wanted = |object: &Object| {
                let source = Source { revision: Revision::Commit(commit.clone()), path: path.clone() };
                Wanted { object: *object, source: Some(source) }
            };
            steps.push(Step { path: path.clone(), to: there.get(path).map(wanted) });
        }
        drop(state);
        Ok((steps, changes))
    }

    /// What is at a path, as far as that can be told by listing directories.
    pub(super) async fn find_at(&self, path: &RepoPath) -> Result<Option<Ino>, FsError> {
        let Some(below) = path.below(&self.root_path()) else { return Ok(None) };
        let names: Result<Vec<Name>, _> = below.components().map(|part| Name::new(part.as_bytes())).collect();
        let Ok(names) = names else { return Ok(None) };
        let found = match self.find(&names) {
            Err(Stop::Need(need)) => self.run(need, |fs| fs.find(&names)).await,
            Err(Stop::Error(error)) => Err(error),
            Ok(found) => Ok(found),
        };
        match found {
            Ok(found) => Ok(Some(found)),
            Err(FsError::NotFound | FsError::NotDir) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Adds the files that a commit has at `path` and below it.
    async fn files_of(
        &self,
        commit: &CommitId,
        path: &RepoPath,
        found: &mut HashMap<RepoPath, Object>,
    ) -> Result<(), NotRestored> {
        let mut todo = Vec::new();
        match path.parent() {
            None => todo.push(path.clone()),
            Some(parent) => {
                let listing = self.listing_of(commit, &parent).await?;
                for entry in listing.into_iter().filter(|entry| entry.name == path.file_name()) {
                    match entry.kind {
                        EntryKind::File(object) => drop(found.insert(path.clone(), object)),
                        EntryKind::Dir => todo.push(path.clone()),
                    }
                }
            }
        }
        while let Some(dir) = todo.pop() {
            for entry in self.listing_of(commit, &dir).await? {
                let Ok(name) = Name::new(entry.name.as_bytes()) else { continue };
                let Ok(path) = dir.join(&name) else { continue };
                match entry.kind {
                    EntryKind::File(object) => drop(found.insert(path, object)),
                    EntryKind::Dir => todo.push(path),
                }
            }
            if found.len() > MOST_FILES {
                return Err(NotRestored::TooMany);
            }
        }
        Ok(())
    }

    // ---- keeping

    /// Keeps what is at the paths of these steps, on stable storage.
    async fn keep_dropped(&self, steps: &[Step]) -> Result<(u64, Vec<Held>), NotRestored> {
        let id = self.blocking(|fs| Ok(fs.kept.begin()?)).await?;
        let mut counted = 0;
        let kept = self.keep_all(id, steps, &mut counted).await;
        let (held, items) = match kept {
            Ok(held) => {
                let items = steps.iter().zip(&held).map(|(step, held)| Item {
                    path: step.path.clone(),
                    was: held.was.clone(),
                    now: step.to.as_ref().map(|to| to.object),
                });
                let items = items.collect();
                (held, items)
            }
            Err(error) => {
                self.spool.release(counted);
                self.forget_batches(vec![id]).await;
                return Err(error);
            }
        };
        let record = Record { made: now_secs(), counted, items };
        let finished = self.blocking(move |fs| Ok(fs.kept.finish(id, &record)?)).await;
        self.spool.release(counted);
        match finished {
            Ok(()) => {
                self.spool.lend_room(id, counted);
                Ok((id, held))
            }
            Err(error) => {
                self.forget_batches(vec![id]).await;
                Err(error.into())
            }
        }
    }

    async fn keep_all(&self, id: u64, steps: &[Step], counted: &mut u64) -> Result<Vec<Held>, NotRestored> {
        let mut all = Vec::with_capacity(steps.len());
        for (number, Step { path, .. }) in steps.iter().enumerate() {
            let look = |fs: &Fs| fs.lock().look_to_keep(path);
            let looked = match look(self) {
                Err(Stop::Need(need)) => self.run(need, look).await,
                Err(Stop::Error(error)) => Err(error),
                Ok(looked) => Ok(looked),
            };
            let looked = match looked? {
                Looked::Nothing => {
                    all.push(Held { was: Was::Nothing, token: None });
                    continue;
                }
                Looked::Written => return Err(NotRestored::Written(path.clone())),
                Looked::Committed { object, source, token } => {
                    all.push(Held { was: Was::Committed { object, source }, token: Some(token) });
                    continue;
                }
                Looked::File(looked) => looked,
            };
            let (token, attrs, xattrs) = *looked;
            let from: Arc<File> = match self.fetch(token.ino(), false).await? {
                Some((_, file)) => file,
                None => match self.blocking(move |fs| Ok(fs.spool_file_to_read(token)?)).await? {
                    Some(file) => Arc::new(file),
                    None => return Err(NotRestored::Changed(path.clone())),
                },
            };
            let file = number as u64;
            let (size, taken) = self.blocking(move |fs| fs.keep_copy(id, file, &from, attrs)).await?;
            *counted += taken;
            all.push(Held { was: Was::File { file, size, attrs, xattrs }, token: Some(token) });
        }
        Ok(all)
    }

    /// Copies bytes to where they are kept. Returns how many, and what is counted for them.
    fn keep_copy(&self, id: u64, file: u64, from: &File, attrs: Attrs) -> Result<(u64, u64), FsError> {
        let counted = holes::counted_of(&from.metadata()?);
        self.spool.reserve(counted)?;
        self.make_room(counted);
        let copied = || {
            let to = self.kept.create(id, file)?;
            let size = self.spool.disk().act(Act::Write(&to), || copy_content(from, &to))?;
            set_mtime(&to, attrs.mtime)?;
            self.spool.disk().flush(&to)?;
            Ok::<_, std::io::Error>(size)
        };
        match copied() {
            Ok(size) => Ok((size, counted)),
            Err(error) => {
                self.spool.release(counted);
                Err(error.into())
            }
        }
    }

    // ---- doing

    fn apply_steps(&self, steps: &[Step], held: &[Held]) -> Op<Result<(), NotRestored>> {
        self.change(|state| {
            for (step, held) in steps.iter().zip(held) {
                let there = match state.tree.resolve(&step.path) {
                    Resolved::Inode(ino) if state.content(ino).is_some() => Some(ino),
                    _ => None,
                };
                let same = match (held.token, there) {
                    (Some(token), Some(ino)) => token.ino() == ino && state.tree.still(token),
                    (None, None) => true,
                    _ => false,
                };
                if !same {
                    return Ok(Err(NotRestored::Changed(step.path.clone())));
                }
                if there.is_some_and(|ino| state.handles.is_written(ino)) {
                    return Ok(Err(NotRestored::Written(step.path.clone())));
                }
            }
            let gets: Vec<(RepoPath, bool)> = steps.iter().map(|step| (step.path.clone(), step.to.is_some())).collect();
            if let Some((path, other)) = state.in_the_way_of(&gets) {
                return Ok(Err(NotRestored::InTheWay { path, other }));
            }
            let news = steps.iter().map(|step| {
                let new = step.to.clone().map_or(New::Nothing, New::Wanted);
                (step.path.clone(), new)
            });
            state.replace_all(news.collect(), self);
            Ok(Ok(()))
        })
    }

    /// Whether a path is as the restore left it.
    async fn is_as_left(&self, item: &Item) -> Result<(), NotRestored> {
        self.find_at(&item.path).await?;
        match self.lock().shows(&item.path, item.now.map(|object| object.hash)) {
            true => Ok(()),
            false => Err(NotRestored::Changed(item.path.clone())),
        }
    }

    async fn bring_back(&self, found: &[(u64, Item)]) -> Result<(), NotRestored> {
        let mut news = Vec::with_capacity(found.len());
        for (id, item) in found {
            let new = match &item.was {
                Was::Nothing => New::Nothing,
                Was::Committed { object, source } => {
                    New::Wanted(Wanted { object: *object, source: Some(source.clone()) })
                }
                Was::File { file, attrs, xattrs, .. } => {
                    let path = self.kept.file(*id, *file);
                    let spooled = self
                        .blocking(move |fs| {
                            let from = File::open(path)?;
                            Ok(fs.spool_in(&from, &mut Vec::new(), |_| Ok(()))?.0)
                        })
                        .await?;
                    New::Spooled(spooled, *attrs, xattrs.clone())
                }
            };
            news.push((item.path.clone(), new));
        }
        let items: Vec<&Item> = found.iter().map(|(_, item)| item).collect();
        let gets: Vec<(RepoPath, bool)> =
            news.iter().map(|(path, new)| (path.clone(), !matches!(new, New::Nothing))).collect();
        // What is not put to use goes from the disk when it is dropped: not under the lock.
        let mut news = Some(news);
        into_plain(self.change(|state| {
            for item in &items {
                if !state.shows(&item.path, item.now.map(|object| object.hash)) {
                    return Ok(Err(NotRestored::Changed(item.path.clone())));
                }
            }
            if let Some((path, other)) = state.in_the_way_of(&gets) {
                return Ok(Err(NotRestored::InTheWay { path, other }));
            }
            state.replace_all(news.take().unwrap_or_default(), self);
            Ok(Ok(()))
        }))?
    }
}

/// What is at a path that is to be restored.
enum Looked {
    /// No file.
    Nothing,
    /// A file that a program has open for writing.
    Written,
    /// What the base has there.
    Committed { object: Object, source: Source, token: Token },
    /// Another file.
    File(Box<(Token, Attrs, Vec<Xattr>)>),
}

impl State {
    /// A path is changed, and has its turn again.
    pub(super) fn hold_no_more(&mut self, path: &RepoPath) {
        if let Some(account) = self.writeback.account(path).filter(|account| account.held) {
            let account = Account { held: false, ..account };
            self.apply(Change::Account { path: path.clone(), account: Some(account) });
        }
    }

    fn look_to_keep(&self, path: &RepoPath) -> Op<Looked> {
        let Resolved::Inode(ino) = self.tree.resolve(path) else { return Ok(Looked::Nothing) };
        if self.content(ino).is_none() {
            return Ok(Looked::Nothing);
        }
        self.need_seen(ino)?;
        if self.handles.is_written(ino) {
            return Ok(Looked::Written);
        }
        let (Some(token), Some(inode)) = (self.tree.token(ino), self.tree.get(ino)) else {
            return Ok(Looked::Nothing);
        };
        if let Some((Content::Remote { hash, origin: None }, size)) = self.content(ino) {
            let base = self.writeback.account(path).map(|account| account.base);
            // Without an account it is as the base has it.
            if base.is_none_or(|base| base.is_some_and(|base| base.hash == *hash)) {
                let source = Source { revision: Revision::Commit(self.tree.base().clone()), path: path.clone() };
                return Ok(Looked::Committed { object: Object { hash: *hash, size }, source, token });
            }
        }
        let xattrs = inode.xattrs.as_ref();
        let xattrs = xattrs.iter().flat_map(|xattrs| xattrs.iter());
        let xattrs = xattrs.map(|(name, value)| Xattr { name: name.clone(), value: value.clone() }).collect();
        Ok(Looked::File(Box::new((token, inode.attrs, xattrs))))
    }

    /// Whether there is just this content at a path; `None`: no file.
    fn shows(&self, path: &RepoPath, content: Option<ContentHash>) -> bool {
        let there = match self.tree.resolve(path) {
            Resolved::Absent | Resolved::AsBase => None,
            Resolved::Inode(ino) => match self.content(ino) {
                Some((Content::Remote { hash, .. }, _)) => Some(Some(*hash)),
                Some((Content::Local { hash, .. }, _)) => Some(*hash),
                None => return false,
            },
        };
        there == content.map(Some)
    }

    /// What keeps a file from being at one of these paths, `true` of which are to have one: a file above it that stays, or a
    /// directory in its place with something that stays.
    fn in_the_way_of(&self, gets: &[(RepoPath, bool)]) -> Option<(RepoPath, String)> {
        let going: HashSet<&RepoPath> = gets.iter().map(|(path, _)| path).collect();
        for (path, _) in gets.iter().filter(|(_, gets)| *gets) {
            let mut above: Vec<RepoPath> = std::iter::successors(path.parent(), RepoPath::parent).collect();
            above.reverse();
            for dir in above.iter().filter(|dir| !dir.is_root()) {
                match self.tree.resolve(dir) {
                    Resolved::Inode(ino) if self.tree.dir(ino).is_none() => {
                        let goes = self.content(ino).is_some() && going.contains(dir);
                        if !goes {
                            return Some((path.clone(), dir.to_string()));
                        }
                    }
                    _ => {}
                }
            }
            if self.place_of(path).is_some_and(|(dir, name)| self.tree.is_ignored(dir, &name)) {
                return Some((path.clone(), "what is ignored there and stays on this disk".to_owned()));
            }
            let Resolved::Inode(ino) = self.tree.resolve(path) else { continue };
            if self.content(ino).is_some() {
                continue;
            }
            if self.tree.dir(ino).is_none() {
                return Some((path.clone(), "what is there and stays on this disk".to_owned()));
            }
            for (parent, name, child) in self.tree.walk(ino) {
                let goes = match self.content(child) {
                    Some(_) => self.tree.path_in(parent, &name).is_ok_and(|path| going.contains(&path)),
                    None => self.tree.dir(child).is_some(),
                };
                if !goes {
                    return Some((path.clone(), self.tree.display_path(child)));
                }
            }
        }
        None
    }

    /// Takes away the files at these paths, and puts the new ones there. That it can be done was found out before.
    fn replace_all(&mut self, news: Vec<(RepoPath, New)>, fs: &Fs) {
        let mut before: HashMap<RepoPath, (Attrs, Vec<Xattr>)> = HashMap::new();
        for (path, _) in &news {
            let Some((parent, name)) = self.place_of(path) else { continue };
            let Some(ino) = self.tree.child(parent, &name).filter(|ino| self.content(*ino).is_some()) else { continue };
            if let Some(inode) = self.tree.get(ino) {
                let xattrs = inode.xattrs.as_ref();
                let xattrs = xattrs.iter().flat_map(|xattrs| xattrs.iter());
                let xattrs = xattrs.map(|(name, value)| Xattr { name: name.clone(), value: value.clone() }).collect();
                before.insert(path.clone(), (inode.attrs, xattrs));
            }
            self.take_out(parent, &name, ino, fs);
        }
        for (path, new) in &news {
            match new {
                New::Nothing => self.remove_emptied(path, fs),
                New::Wanted(_) | New::Spooled(..) => self.remove_dir_at(path, fs),
            }
        }
        for (path, new) in news {
            self.put_at(&path, new, before.remove(&path), fs);
        }
    }

    fn take_out(&mut self, parent: Ino, name: &Name, ino: Ino, fs: &Fs) {
        self.uproot(parent, name, ino, fs);
        self.bury(ino);
        self.kernel.name_changed(parent, name.clone());
        self.shift(parent);
    }

    /// Removes the directories around a file that is gone, as far as they hold nothing and no base has them.
    fn remove_emptied(&mut self, path: &RepoPath, fs: &Fs) {
        let mut above = path.parent();
        while let Some(dir) = above.filter(|dir| !dir.is_root() && dir != self.tree.root_path()) {
            let Some((parent, name)) = self.place_of(&dir) else { break };
            let Some(ino) = self.tree.child(parent, &name) else { break };
            let is_left = self.tree.dir(ino).is_some_and(|dir| dir.children.is_empty() && dir.listed && !dir.based);
            if !is_left {
                break;
            }
            self.take_out(parent, &name, ino, fs);
            above = dir.parent();
        }
    }

    /// Removes a directory that holds nothing but directories, where a file is to be.
    fn remove_dir_at(&mut self, path: &RepoPath, fs: &Fs) {
        let Some((parent, name)) = self.place_of(path) else { return };
        let Some(ino) = self.tree.child(parent, &name).filter(|ino| self.tree.dir(*ino).is_some()) else { return };
        let mut dirs = self.tree.walk(ino);
        dirs.reverse();
        dirs.push((parent, name, ino));
        for (parent, name, dir) in dirs {
            if self.tree.dir(dir).is_some_and(|dir| dir.children.is_empty()) {
                self.take_out(parent, &name, dir, fs);
            }
        }
    }

    fn put_at(&mut self, path: &RepoPath, new: New, before: Option<(Attrs, Vec<Xattr>)>, fs: &Fs) {
        let options = &fs.options;
        let time = now();
        let (content, size, room, attrs, xattrs) = match new {
            New::Nothing => {
                self.owe_anew(path);
                return;
            }
            New::Wanted(Wanted { object, source }) => {
                let base = self.writeback.account(path).and_then(|account| account.base);
                // Where the base has it, it is read there.
                let source = source.filter(|_| base.is_none_or(|base| base.hash != object.hash));
                let content = Content::Remote { hash: object.hash, origin: source.map(Arc::new) };
                // Modes, owners and attributes stay with the path.
                let (attrs, xattrs) = before.unwrap_or_else(|| (base_attrs(options, false, time), Vec::new()));
                (content, object.size, None, Attrs { mtime: time, atime: time, ..attrs }, xattrs)
            }
            New::Spooled(mut spooled, attrs, xattrs) => {
                let size = spooled.size();
                let Some((spool, room)) = spooled.take() else { return };
                let content = Content::Local { spool, generation: self.tree.fresh_generation(), hash: None };
                (content, size, Some(room), attrs, xattrs)
            }
        };
        let bare = self.missing_dirs(path);
        let Some((parent, name)) = self.dir_for(path, options) else { return };
        for dir in bare {
            if let Resolved::Inode(dir) = self.tree.resolve(&dir) {
                self.detach_from_base(dir);
            }
        }
        self.stamp_dir(parent, time);
        let ino = self.add(Attrs { ctime: time, ..attrs }, Body::File { content: content.clone(), size });
        self.note_content(ino, &content);
        if let Some(room) = room {
            self.note_room(ino, room);
        }
        self.apply(Change::Link { parent, name: name.clone(), ino });
        for Xattr { name, value } in xattrs {
            self.apply(Change::Xattr { ino, name, value });
        }
        self.open_account(path, None);
        self.kernel.name_changed(parent, name);
        self.shift(parent);
        self.owe_anew(path);
    }

    /// The directories around a path that are not there, where it is known that the base has none of them either.
    fn missing_dirs(&self, path: &RepoPath) -> Vec<RepoPath> {
        let above = std::iter::successors(path.parent(), RepoPath::parent);
        let missing: Vec<RepoPath> = above.take_while(|dir| self.tree.resolve(dir) == Resolved::Absent).collect();
        let based = missing.last().is_none_or(|top| {
            let is_unknown = self.place_of(top).is_none_or(|(parent, name)| {
                // What the base has below one that is hidden has accounts.
                let is_there = self.tree.child(parent, &name).is_some();
                is_there || self.tree.dir(parent).is_none_or(|dir| !dir.listed)
            });
            is_unknown || self.writeback.ledger().based_below(top).next().is_some()
        });
        if based { Vec::new() } else { missing }
    }

    /// Something is owed at a path, whatever it waited for: a person has decided.
    fn owe_anew(&mut self, path: &RepoPath) {
        if self.writeback.account(path).is_none() {
            return;
        }
        if !self.writeback.queue().is_active(path) {
            self.writeback.owe_no_more(path);
        }
        self.writeback.owe(path, Duration::ZERO);
    }
}
