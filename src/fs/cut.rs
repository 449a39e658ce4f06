//! The cut of a commit: one map of paths to pinned content, made at one instant.
//!
//! A commit takes it in two steps. First it **gathers**: it fixes the content of files that programs have open for
//! writing, by copies where need be. Then, under one hold of the lock, it maps every pending path to what that path is to
//! hold: a closed file's present content, an open file's content from before, or nothing. Whatever a file in the commit
//! can refer to because it was closed earlier is therefore in the commit too.
//!
//! Nothing that happens to the tree later changes the map. The content in it is pinned: a writer who comes gets a copy of
//! his own, and what is only on the server is pinned once it comes into the spool. A path that is renamed, replaced or
//! removed keeps its place in the queue until the map's content is staged; then the queue brings it to what the tree holds.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use super::passthrough::{Seal, Urgency, Way};
use super::staging::{Fixable, InCut, RECHECK, Waiting};
use super::standing::Event;
use super::tree::Token;
use super::{Capture, Fs, FsError, Held, State, Want};
use crate::hash::ContentHash;
use crate::namespace::{Content, Ino, Resolved, SpoolId};
use crate::path::RepoPath;
use crate::sync;
use crate::writeback::queue::{Phase, Scope};

#[cfg(test)]
mod schedules;

/// How often a file is looked at again because a program writes to it just then, before it is copied instead.
const LOOKS: u32 = 5;

/// How far the cut of a commit is.
pub(super) enum Cut {
    /// The instant is yet to come.
    Gathering(Gathering),
    /// It is made.
    Made(Made),
}

/// What is fixed before the instant.
pub(super) struct Gathering {
    /// Every inode from this number on was made after the gathering began.
    first_new: Ino,
    /// Content of files that are or may be open for writing at the instant, by inode; each a [`Want::Sealed`].
    fixed: HashMap<Ino, Want>,
}

/// What the commit is to hold.
#[derive(Default)]
pub(super) struct Made {
    /// What is not staged yet, by path.
    wanted: HashMap<RepoPath, Capture>,
    /// Of `wanted`, the paths whose content was on the server alone, by inode. Some entries may be out of date.
    remote: HashMap<Ino, Vec<RepoPath>>,
    /// The directories around removed files in which the tree had nothing that travels, at the instant.
    vacant: HashSet<RepoPath>,
    /// Who waits for all of `wanted`.
    barrier: Option<NonZeroU32>,
    /// No commit: staging rests for a moment.
    is_pause: bool,
    /// Nobody waits for what is left of it: another is made.
    given_up: bool,
}

impl Made {
    /// What a path is to hold, until that is staged.
    pub fn get(&self, path: &RepoPath) -> Option<&Capture> {
        self.wanted.get(path)
    }

    /// Nobody waits for what is left of it any more. Who waited until now.
    pub fn give_up(&mut self) -> Option<NonZeroU32> {
        self.given_up = true;
        self.barrier
    }

    /// Whether nobody waits for what is left of it.
    pub fn is_given_up(&self) -> bool {
        self.given_up
    }

    /// The paths that are not staged yet.
    pub fn paths(&self) -> impl Iterator<Item = &RepoPath> {
        self.wanted.keys()
    }

    /// Whether nothing that travels was below a directory, which is around a path that the commit removes.
    pub fn is_vacant(&self, dir: &RepoPath) -> bool {
        self.vacant.contains(dir)
    }

    fn remote_paths(&self, ino: Ino, hash: ContentHash) -> impl Iterator<Item = &RepoPath> {
        let paths = self.remote.get(&ino).into_iter().flatten();
        paths.filter(move |path| self.wanted.get(*path).is_some_and(|capture| capture.want.is_remote(ino, hash)))
    }
}

impl State {
    /// Whether a commit is being staged: then nothing else is, as the commit would hold that too.
    pub(super) fn is_cut(&self) -> bool {
        self.made_cut().is_some() && !sync::mistaken("a capture looks at the cut once")
    }

    /// A commit, or a pause, begins. `false`: there is one.
    fn begin_cut(&mut self) -> bool {
        let first_new = self.tree.next_ino();
        self.writeback.begin_cut(Gathering { first_new, fixed: HashMap::new() })
    }

    /// Nothing is staged from now on. What is returned is to be dropped when the lock is free.
    fn rest(&mut self) -> Option<Cut> {
        self.writeback.make_cut(Made { is_pause: true, ..Made::default() })
    }

    /// What the cut of a commit says of a path, with what is known of the path by now.
    pub(super) fn in_cut(&self, path: &RepoPath) -> InCut {
        let Some(made) = self.made_cut() else { return InCut::NoCut };
        let Some(capture) = made.get(path) else { return InCut::Lacks };
        InCut::Holds(Box::new(Capture {
            account: self.writeback.account(path).unwrap_or_default(),
            upload: self.writeback.upload(path).cloned(),
            alone: self.writeback.pending(path).is_some_and(|entry| entry.alone),
            ..capture.clone()
        }))
    }

    /// The cut, once it is made.
    pub(super) fn made_cut(&self) -> Option<&Made> {
        self.writeback.made()
    }

    /// Whether the cut of a commit holds something for a path that is not staged yet.
    pub(super) fn is_in_cut(&self, path: &RepoPath) -> bool {
        self.made_cut().is_some_and(|made| made.wanted.contains_key(path))
    }

    /// Whether a commit waits for content of a file that is on the server.
    pub(super) fn awaits(&self, ino: Ino, hash: ContentHash) -> bool {
        self.made_cut().is_some_and(|made| made.remote_paths(ino, hash).next().is_some())
    }

    /// Pins a file's bytes that came into the spool, for the paths of a commit that want just these: where they were on
    /// the server, something else may be staged before their turn comes.
    pub(super) fn pin_for_cut(&mut self, fs: &Fs, ino: Ino) {
        if let Some((Content::Local { spool, generation, hash: Some(hash) }, size)) = self.content(ino) {
            let (spool, generation, hash) = (*spool, *generation, *hash);
            self.pin_remote(
                fs,
                (ino, hash),
                |held| Want::Sealed { ino, generation, hash: Some(hash), size, held },
                spool,
            );
        }
    }

    /// [`pin_for_cut`](Self::pin_for_cut) where the file's own bytes may change from now on: by a copy, which goes when
    /// it is done with; of this length, and with this much counted for it. Says whether there was anything to pin.
    pub(super) fn pin_copy_for_cut(
        &mut self,
        fs: &Fs,
        ino: Ino,
        hash: ContentHash,
        copy: SpoolId,
        (size, counted): (u64, u64),
    ) -> bool {
        // No generation of the file's.
        let generation = self.tree.fresh_generation();
        self.pin_remote(fs, (ino, hash), |held| Want::Sealed { ino, generation, hash: Some(hash), size, held }, copy);
        self.backing.leave_to_holders(copy, counted)
    }

    fn pin_remote(
        &mut self,
        fs: &Fs,
        (ino, hash): (Ino, ContentHash),
        want: impl Fn(Arc<Held>) -> Want,
        spool: SpoolId,
    ) {
        let Some(made) = self.made_cut() else { return };
        let paths: Vec<RepoPath> = made.remote_paths(ino, hash).cloned().collect();
        for path in paths {
            let held = self.hold_for_cut(fs, spool);
            if let Some(made) = self.writeback.made_mut()
                && let Some(capture) = made.wanted.get_mut(&path)
            {
                capture.want = want(held);
            }
        }
    }

    /// Before a closed file is opened for writing, or cut by name, while a commit gathers: the commit gets its content of
    /// now, unless it is closed again at the instant.
    pub(super) fn keep_closed_for_cut(&mut self, fs: &Fs, ino: Ino) {
        let Some(gathering) = self.writeback.gathering() else { return };
        if self.handles.is_busy(ino) || gathering.fixed.contains_key(&ino) || self.backing.is_live(ino) {
            return;
        }
        let Some((Content::Local { spool, generation, hash }, size)) = self.content(ino) else { return };
        let (spool, generation, hash) = (*spool, *generation, *hash);
        if self.unseen_spool(ino).is_some() || self.handles.way(ino) == Some(Way::Past) {
            return;
        }
        let held = self.step(ino, Event::Held, |state| state.hold_for_cut(fs, spool));
        if let Some(gathering) = self.writeback.gathering_mut() {
            gathering.fixed.insert(ino, Want::Sealed { ino, generation, hash, size, held });
        }
    }

    /// Takes a confirmed path out of the cut; a confirmation of an older state leaves it there. The caller drops what is
    /// returned when the lock is free.
    pub(super) fn take_from_cut(&mut self, confirmed: &Capture) -> Option<Capture> {
        let made = self.writeback.made_mut()?;
        let same = made.get(&confirmed.path).is_some_and(|capture| capture.seq == confirmed.seq);
        if same { made.wanted.remove(&confirmed.path) } else { None }
    }

    /// Takes a path out of the cut that is not to be staged any more. The caller drops what is returned when the lock is
    /// free.
    pub(super) fn leave_out_of_cut(&mut self, path: &RepoPath) -> Option<Capture> {
        self.writeback.made_mut()?.wanted.remove(path)
    }

    /// Whether a commit that gathers has fixed a file's content.
    fn is_gathered(&self, ino: Ino) -> bool {
        self.writeback.gathering().is_some_and(|gathering| gathering.fixed.contains_key(&ino))
    }

    /// What a pending path is to hold, as of this instant. `None`: nothing is fixed for it, as it was made since the
    /// gathering began and was never closed. The error is an inode whose content has to be fixed first.
    fn want_of(&mut self, fs: &Fs, path: &RepoPath) -> Result<Option<Want>, Ino> {
        let ino = match self.tree.resolve(path) {
            Resolved::Absent => return Ok(Some(Want::Absent)),
            Resolved::AsBase => return Ok(Some(Want::AsBase)),
            Resolved::Inode(ino) => ino,
        };
        match self.fixable(fs, ino, Urgency::Barrier) {
            Fixable::NoFile => Ok(Some(Want::Absent)),
            Fixable::Remote { object, source } => Ok(Some(Want::Remote { ino, object, source })),
            Fixable::Local { spool, generation, hash, size, how: Seal::InPlace, writing: false, written: false } => {
                let held = self.step(ino, Event::Held, |state| state.hold_for_cut(fs, spool));
                Ok(Some(Want::Sealed { ino, generation, hash, size, held }))
            }
            Fixable::Unseen => Err(ino),
            Fixable::Local { .. } => {
                let Some(gathering) = self.writeback.gathering() else { return Err(ino) };
                match gathering.fixed.get(&ino) {
                    Some(fixed) => Ok(Some(fixed.clone())),
                    None if ino >= gathering.first_new => Ok(None),
                    None => Err(ino),
                }
            }
        }
    }

    /// What a commit holds, if it is made now, and what has to be done first. Where there is any, what was collected is to be
    /// dropped, when the lock is free.
    fn collect(&mut self, fs: &Fs) -> (Made, Lacking) {
        self.stir(&|_| true, fs);
        let paths: Vec<(RepoPath, u64, bool)> = self
            .writeback
            .queue()
            .iter()
            .filter(|(_, entry)| !entry.is_held())
            .map(|(path, entry)| (path.clone(), entry.seq, entry.alone))
            .collect();
        let (mut made, mut lacking) = (Made::default(), Lacking::default());
        let mut known = HashMap::new();
        for (path, mut seq, alone) in paths {
            let want = match self.want_of(fs, &path) {
                Ok(Some(want)) => want,
                Ok(None) => continue,
                Err(ino) => {
                    lacking.unfixed.push(ino);
                    continue;
                }
            };
            let account = self.writeback.account(&path).unwrap_or_default();
            match &want {
                Want::Absent if account.base.is_some() && self.unlisted_above(&path, &mut known).is_some() => {
                    lacking.unlisted.push(path);
                    continue;
                }
                Want::Absent => {
                    let above = std::iter::successors(path.parent(), RepoPath::parent).take_while(|dir| !dir.is_root());
                    for dir in above {
                        if made.vacant.contains(&dir) || !self.is_vacant(&dir, &mut known) {
                            break;
                        }
                        made.vacant.insert(dir);
                    }
                }
                Want::Remote { ino, .. } => made.remote.entry(*ino).or_default().push(path.clone()),
                // A copy that was made of it before may be in the stager's hands: its confirmation is not this one's.
                Want::Sealed { ino, .. } if self.is_gathered(*ino) && self.writeback.queue().is_active(&path) => {
                    self.writeback.owe(&path, Duration::ZERO);
                    seq = self.writeback.pending(&path).map_or(seq, |entry| entry.seq);
                }
                Want::AsBase | Want::Sealed { .. } => {}
            }
            made.wanted.insert(path.clone(), Capture { path, seq, account, want, alone, upload: None });
        }
        (made, lacking)
    }
}

/// What a commit is to hold; writers go on meanwhile, and what they write waits for the next one. Only this is staged
/// until it is dropped.
pub struct CommitCut {
    _guard: Guard,
    /// The barrier that tells when all of it is staged.
    pub waiting: Waiting,
}

/// Ends the cut when dropped.
struct Guard(Arc<Fs>);

impl Drop for Guard {
    fn drop(&mut self) {
        // Captures hold spool files, and letting go of them takes the lock.
        let cut = self.0.begin().writeback.end_cut();
        drop(cut);
        self.0.wake.notify_one();
    }
}

/// While this lives, nothing is staged.
pub struct Paused {
    _guard: Guard,
}

impl Fs {
    /// Begins to gather, once staging does not rest for somebody else: a move of the base is soon over.
    ///
    /// # Errors
    /// [`FsError::Exists`] while a commit is under way.
    async fn begin_in_turn<T>(&self, begun: impl Fn(&mut State) -> T) -> Result<T, FsError> {
        loop {
            let moved = self.progress.notified();
            {
                let mut state = self.begin();
                if state.begin_cut() {
                    return Ok(begun(&mut state));
                }
                if !state.made_cut().is_some_and(|made| made.is_pause) {
                    return Err(FsError::Exists);
                }
            }
            let _ = tokio::time::timeout(RECHECK, moved).await;
        }
    }

    /// [`pause`](Self::pause), after anybody else's.
    ///
    /// # Errors
    /// [`FsError::Exists`] while a commit is under way.
    pub(super) async fn pause_in_turn(&self) -> Result<Paused, FsError> {
        let Some(fs) = self.this.upgrade() else { return Err(FsError::Stale) };
        let gathered = self.begin_in_turn(State::rest).await?;
        drop(gathered);
        self.at_rest(Paused { _guard: Guard(fs) }).await
    }

    /// Has nothing staged from now on, and returns when no request is under way any more.
    ///
    /// # Errors
    /// [`FsError::Exists`] while a commit is under way, or somebody else's pause.
    pub async fn pause(&self) -> Result<Paused, FsError> {
        let Some(fs) = self.this.upgrade() else { return Err(FsError::Stale) };
        let gathered = {
            let mut state = self.begin();
            if !state.begin_cut() {
                return Err(FsError::Exists);
            }
            state.rest()
        };
        drop(gathered);
        self.at_rest(Paused { _guard: Guard(fs) }).await
    }

    /// Returns when no request is under way any more.
    async fn at_rest(&self, paused: Paused) -> Result<Paused, FsError> {
        loop {
            let moved = self.progress.notified();
            let in_hand =
                |state: &State| state.writeback.queue().iter().any(|(_, entry)| entry.phase != Phase::Waiting);
            if !in_hand(&self.lock()) {
                return Ok(paused);
            }
            // What is put back for later tells nobody.
            let _ = tokio::time::timeout(RECHECK, moved).await;
        }
    }

    /// Makes the cut of a commit: fixes what every pending path is to hold. Waits for a move of the base that is under way.
    ///
    /// # Errors
    /// [`FsError::Exists`] when a commit is under way already; the local filesystem's when the content of an open file
    /// cannot be copied.
    pub async fn cut(&self) -> Result<CommitCut, FsError> {
        self.judge_now();
        let Some(fs) = self.this.upgrade() else {
            return Err(FsError::Stale);
        };
        let gathers = |state: &mut State| {
            state.stir(&|_| true, self);
            (state.open_for_writing(), state.writeback.queue().len())
        };
        let (open, pending) = self.begin_in_turn(gathers).await?;
        let guard = Guard(fs.clone());
        tracing::debug!(pending, open = open.len(), "a commit gathers what is open for writing");
        for ino in open {
            self.fix(ino).await?;
        }
        loop {
            let waiting = match self.make_cut() {
                Ok(waiting) => waiting,
                Err(lacking) => {
                    for ino in lacking.unfixed {
                        self.fix(ino).await?;
                    }
                    for path in lacking.unlisted {
                        self.learn_above(&path).await?;
                    }
                    continue;
                }
            };
            self.wake.notify_one();
            return Ok(CommitCut { _guard: guard, waiting });
        }
    }

    /// The instant. The error has what is to be done before.
    fn make_cut(&self) -> Result<Waiting, Lacking> {
        let fs = self.this.upgrade();
        let mut state = self.begin();
        // Spool files are let go of when the lock is free.
        let (made, lacking) = state.collect(self);
        let (done, _left) = match fs.filter(|_| lacking.is_nothing()) {
            Some(fs) => {
                let paths: Vec<RepoPath> = made.paths().cloned().collect();
                let old = state.writeback.make_cut(made);
                let waiting = state.barrier(fs, &paths, Scope::Fixed);
                if let Some(made) = state.writeback.made_mut() {
                    made.barrier = Some(waiting.id);
                }
                // None of it is sent: the commit finds the workspace elsewhere, and follows.
                if state.elsewhere {
                    state.writeback.give_up_cut();
                }
                state.owe_what_came_since(self, old.as_ref());
                (Ok(waiting), old)
            }
            None => (Err(lacking), Some(Cut::Made(made))),
        };
        drop(state);
        done
    }

    /// Fixes the content that a file has now, for the commit that gathers. Does nothing where that needs no fixing.
    async fn fix(&self, ino: Ino) -> Result<(), FsError> {
        let mut looks = 0;
        loop {
            let fixing = self.begin().fixing(self, ino, looks >= LOOKS);
            match fixing {
                Fixing::Nothing => return Ok(()),
                Fixing::Look => self.blocking(move |fs| Ok(fs.look_at(ino)?)).await?,
                Fixing::Wait => tokio::time::sleep(RECHECK).await,
                Fixing::Copy(of) => {
                    if self.blocking(move |fs| fs.fix_by_copy(of)).await? {
                        return Ok(());
                    }
                }
            }
            looks += 1;
        }
    }

    /// Fixes a file's content by a copy. `false`: it has another spool file by now.
    fn fix_by_copy(&self, of: Token) -> Result<bool, FsError> {
        let ino = of.ino();
        {
            let mut state = self.begin();
            state.look(ino, self);
            if !state.tree.still_in(of) {
                return Ok(false);
            }
            state.handles.fix(ino);
        }
        let Some(copied) = self.copy_live(of)? else { return Ok(false) };
        let mut state = self.begin();
        let want = state.hold_copy(self, ino, copied, true);
        // One that came too late is let go of when the lock is free.
        let _late = state.fixed(ino, want);
        drop(state);
        Ok(true)
    }
}

/// What a cut lacks to be made.
#[derive(Debug, Default)]
struct Lacking {
    /// The inodes whose content is not fixed.
    unfixed: Vec<Ino>,
    /// Removed files of the base around which a directory was never listed: whether they were its last, nobody knows.
    unlisted: Vec<RepoPath>,
}

impl Lacking {
    fn is_nothing(&self) -> bool {
        self.unfixed.is_empty() && self.unlisted.is_empty()
    }
}

/// What the content of a file lacks to be fixed.
enum Fixing {
    /// Nothing, or there is none.
    Nothing,
    /// A look at the spool file that an earlier daemon left.
    Look,
    /// A change of it ends soon.
    Wait,
    /// A copy of its spool file.
    Copy(Token),
}

impl State {
    /// What the content of a file lacks to be fixed for the commit that gathers; fixes it where that takes no wait.
    /// `at_once`: writes to it have been waited for in vain.
    fn fixing(&mut self, fs: &Fs, ino: Ino, at_once: bool) -> Fixing {
        let Some(gathering) = self.writeback.gathering() else { return Fixing::Nothing };
        if gathering.fixed.contains_key(&ino) {
            return Fixing::Nothing;
        }
        match self.fixable(fs, ino, Urgency::Barrier) {
            Fixable::NoFile | Fixable::Remote { .. } => Fixing::Nothing,
            Fixable::Unseen => Fixing::Look,
            Fixable::Local { spool, generation, hash, size, how: Seal::InPlace, writing: false, .. } => {
                self.handles.fix(ino);
                let held = self.step(ino, Event::Held, |state| state.hold_for_cut(fs, spool));
                // Nothing was fixed before.
                let _none = self.fixed(ino, Want::Sealed { ino, generation, hash, size, held });
                Fixing::Nothing
            }
            Fixable::Local { spool, generation, how, writing, .. } => {
                let waits = self.handles.is_reshaped(ino) || writing && how == Seal::InPlace && !at_once;
                if waits { Fixing::Wait } else { Fixing::Copy(Token::of_spool(ino, spool, generation)) }
            }
        }
    }

    /// At the instant: what was written to a file since its content was fixed is for the next, and is owed beside what the
    /// commit has of it. A program that has it open since then may close it much later.
    fn owe_what_came_since(&mut self, fs: &Fs, gathered: Option<&Cut>) {
        let Some(Cut::Gathering(gathering)) = gathered else { return };
        for ino in gathering.fixed.keys() {
            if self.handles.is_modified(*ino) {
                self.touch_file(*ino, fs.options.settle);
            }
        }
    }

    /// Keeps fixed content for the instant; returns it where no commit gathers any more.
    fn fixed(&mut self, ino: Ino, want: Want) -> Option<Want> {
        match self.writeback.gathering_mut() {
            Some(gathering) => gathering.fixed.insert(ino, want),
            None => Some(want),
        }
    }

    /// The files of the spool that programs may be writing to, and of which a pending path is a name.
    fn open_for_writing(&self) -> Vec<Ino> {
        let all: HashSet<Ino> = self.handles.written().chain(self.backing.live()).collect();
        let pending = |ino: &Ino| self.tree.file_paths(*ino).iter().any(|path| self.writeback.is_pending(path));
        let local = |ino: &Ino| matches!(self.content(*ino), Some((Content::Local { .. }, _)));
        all.into_iter().filter(|ino| local(ino) && pending(ino)).collect()
    }
}
