//! The local files behind inodes, beside what the tree says of them: which of them may change without a request, which
//! the engine is reading, what each counts for, and where else on the server bytes are read.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::set_mtime;
use crate::count;
use crate::hash::ContentHash;
use crate::namespace::{Body, Content, Ino, Namespace, SpoolId, Timestamp};
use crate::path::RepoPath;
use crate::store::spool;

/// How soon a file that was closed is asked after again when somebody still seems to have it: the kernel lets go of it
/// an instant after it has told of the close. Doubled up to the last, for those who have it mapped.
const ASK_FIRST: Duration = Duration::from_millis(20);
const ASK_LAST: Duration = Duration::from_secs(30);

/// What tells that a file was changed: two are equal when it was not.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    pub size: u64,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    /// What it takes of the disk, in bytes. It changes without a change of the file, as the filesystem writes it back.
    pub room: u64,
}

impl PartialEq for Seen {
    fn eq(&self, other: &Self) -> bool {
        (self.size, self.mtime, self.ctime) == (other.size, other.mtime, other.ctime)
    }
}

impl Seen {
    pub fn of(file: &File) -> io::Result<Self> {
        let found = file.metadata()?;
        let time = |secs, nanos: i64| Timestamp(secs, u32::try_from(nanos).unwrap_or(0));
        Ok(Self {
            size: found.len(),
            mtime: time(found.mtime(), found.mtime_nsec()),
            ctime: time(found.ctime(), found.ctime_nsec()),
            room: spool::room_of(&found),
        })
    }
}

/// A file that may be changed without a request.
struct Live {
    /// Read-only: it must not count as a writer itself.
    file: Arc<File>,
    seen: Seen,
    /// When it is asked after next, once nobody has it open, and how long after that.
    next: Option<Instant>,
    wait: Duration,
    copied: Option<Fixed>,
}

/// A copy that has all of its original, as that was then.
#[derive(Debug, Clone, Copy)]
struct Fixed {
    copy: SpoolId,
    seen: Seen,
    /// What was staged, once it is.
    staged: Option<ContentHash>,
}

/// What a look at a live file shows.
pub(super) enum Look {
    /// It was changed: what it showed before and shows now.
    Changed(Seen, Seen),
    /// It takes more or less room than before, and has the same bytes.
    Resized(Seen),
}

/// A spool file that the engine is reading.
struct Hold {
    count: u32,
    /// How many of these are a commit's: a writer gets a copy at once, as the commit may take long.
    by_cut: u32,
    cancel: CancellationToken,
    /// No file has this content any more: remove it when the last hold ends.
    orphan: bool,
    /// Bytes that it counts for until then, where no file does.
    counted: u64,
}

/// The end of the last hold of a spool file.
pub(super) struct Unheld {
    /// No file has this content any more: it is to be removed.
    pub orphan: bool,
    /// Bytes that it counted for.
    pub counted: u64,
}

/// What is known of the local files behind inodes.
#[derive(Default)]
pub(super) struct Backing {
    /// Files that may change without a request.
    live: HashMap<Ino, Live>,
    /// Those that nobody has open, by when they are asked after.
    lingering: BTreeSet<(Instant, Ino)>,
    held: HashMap<SpoolId, Hold>,
    /// Files whose bytes are read at a path of the workspace that is not theirs any more, by that path. Some entries
    /// may be out of date.
    moved_from: HashMap<RepoPath, Vec<Ino>>,
    /// Files of the spool that may take more or less room than their length says, each with what is counted for it.
    uneven: HashMap<Ino, u64>,
    /// Those of which somebody was told that their holes are sent.
    told_of_holes: HashSet<Ino>,
    /// Files of which mapped pages could not be written, and why, until somebody is told.
    lost: HashMap<Ino, String>,
    /// Files of the spool that nobody may have looked at since the mount; `None` once all have been.
    unseen: Option<Vec<Ino>>,
}

/// Files that may change without a request.
impl Backing {
    /// Whether a file may change without a request.
    pub fn is_live(&self, ino: Ino) -> bool {
        self.live.contains_key(&ino)
    }

    /// All that may.
    pub fn live(&self) -> impl Iterator<Item = Ino> {
        self.live.keys().copied()
    }

    /// From now on a file may change without a request. `file` is read-only. `false`: it could before.
    pub fn enliven(&mut self, ino: Ino, file: &Arc<File>) -> bool {
        if self.is_live(ino) {
            self.ask_no_more(ino);
            return false;
        }
        if let Ok(seen) = Seen::of(file) {
            self.live.insert(ino, Live { file: file.clone(), seen, next: None, wait: ASK_FIRST, copied: None });
        }
        true
    }

    /// It is gone, or cannot change unseen any more.
    pub fn subdue(&mut self, ino: Ino) {
        self.ask_no_more(ino);
        self.live.remove(&ino);
    }

    /// What a live file shows that it did not show the last time.
    pub fn look(&mut self, ino: Ino) -> Option<Look> {
        let live = self.live.get_mut(&ino)?;
        let now = Seen::of(&live.file).ok()?;
        let before = std::mem::replace(&mut live.seen, now);
        match now == before {
            false => Some(Look::Changed(before, now)),
            true => (now.room != before.room).then_some(Look::Resized(now)),
        }
    }

    /// Gives a live file a time, in one step with taking note of it. `false`: it is not live.
    pub fn stamp(&mut self, ino: Ino, mtime: Timestamp) -> io::Result<bool> {
        let Some(live) = self.live.get_mut(&ino) else { return Ok(false) };
        set_mtime(&live.file, mtime)?;
        live.seen = Seen::of(&live.file)?;
        Ok(true)
    }

    /// What a live file showed the last time.
    pub fn seen(&self, ino: Ino) -> Option<Seen> {
        self.live.get(&ino).map(|live| live.seen)
    }

    /// The local file of a live one, for reading.
    pub fn live_file(&self, ino: Ino) -> Option<&Arc<File>> {
        self.live.get(&ino).map(|live| &live.file)
    }

    /// A live file that nobody has open is to be asked after, later each time.
    pub fn linger(&mut self, ino: Ino) {
        self.ask_no_more(ino);
        let Some(live) = self.live.get_mut(&ino) else { return };
        let at = Instant::now() + live.wait;
        live.next = Some(at);
        live.wait = (live.wait * 2).min(ASK_LAST);
        self.lingering.insert((at, ino));
    }

    /// A live file is not to be asked after for now.
    pub fn ask_no_more(&mut self, ino: Ino) {
        if let Some(at) = self.live.get_mut(&ino).and_then(|live| live.next.take()) {
            self.lingering.remove(&(at, ino));
        }
    }

    /// When the next file is to be asked after.
    pub fn next_question(&self) -> Option<Instant> {
        self.lingering.first().map(|(at, _)| *at)
    }

    /// A file that is to be asked after by now; not again, unless it is to [linger](Self::linger).
    pub fn take_question(&mut self, now: Instant) -> Option<Ino> {
        let (_, ino) = self.lingering.first().copied().filter(|(at, _)| *at <= now)?;
        self.ask_no_more(ino);
        Some(ino)
    }

    /// How many files are to be asked after: each is open here.
    pub fn lingering(&self) -> usize {
        self.lingering.len()
    }

    /// A copy was made of a live file, whose content then it has if the file was `seen` to stay the same.
    pub fn was_copied(&mut self, ino: Ino, copy: SpoolId, seen: Option<Seen>) {
        if let Some(live) = self.live.get_mut(&ino) {
            live.copied = seen.map(|seen| Fixed { copy, seen, staged: None });
        }
    }

    /// A copy was staged.
    pub fn copy_is_staged(&mut self, ino: Ino, copy: SpoolId, hash: ContentHash) {
        if let Some(fixed) = self.live.get_mut(&ino).and_then(|live| live.copied.as_mut())
            && fixed.copy == copy
        {
            fixed.staged = Some(hash);
        }
    }

    /// The hash of what a live file holds, if that is staged and nothing was done to it since.
    pub fn staged_live(&self, ino: Ino) -> Option<ContentHash> {
        let live = self.live.get(&ino)?;
        live.copied.filter(|fixed| fixed.seen == live.seen)?.staged
    }
}

/// Spool files that do not change as long as somebody reads them.
impl Backing {
    /// Holds a spool file until it is [let go of](Self::let_go). Who waits for it cancels what this returns.
    pub fn hold(&mut self, spool: SpoolId, by_cut: bool) -> CancellationToken {
        let hold = self.held.entry(spool).or_insert_with(|| Hold {
            count: 0,
            by_cut: 0,
            cancel: CancellationToken::new(),
            orphan: false,
            counted: 0,
        });
        hold.count += 1;
        hold.by_cut += u32::from(by_cut);
        hold.cancel.clone()
    }

    /// One hold ends. Returns what is left to do if it was the last.
    pub fn let_go(&mut self, spool: SpoolId, by_cut: bool) -> Option<Unheld> {
        let hold = self.held.get_mut(&spool)?;
        count::take(&mut hold.count, 1, "backing.holds");
        count::take(&mut hold.by_cut, u32::from(by_cut), "backing.holds");
        if hold.count > 0 {
            return None;
        }
        let Hold { orphan, counted, .. } = self.held.remove(&spool)?;
        Some(Unheld { orphan, counted })
    }

    /// Whether somebody reads a spool file.
    pub fn is_held(&self, spool: SpoolId) -> bool {
        self.held.contains_key(&spool)
    }

    /// Whether a commit pins a spool file.
    pub fn is_pinned_by_cut(&self, spool: SpoolId) -> bool {
        self.held.get(&spool).is_some_and(|hold| hold.by_cut > 0)
    }

    /// By which those who hold a spool file are asked to let go of it; `None`: nobody does.
    pub fn holders(&self, spool: SpoolId) -> Option<CancellationToken> {
        self.held.get(&spool).map(|hold| hold.cancel.clone())
    }

    /// A spool file that is held is nobody's but its holders', and counts for so much as long as they are there.
    /// `false`: it is not held.
    pub fn leave_to_holders(&mut self, spool: SpoolId, counted: u64) -> bool {
        let hold = self.held.get_mut(&spool);
        hold.map(|hold| (hold.orphan, hold.counted) = (true, counted)).is_some()
    }

    /// Lets go of a file's spool file: removed by the caller, now or when the engine lets go of it. The bytes counted
    /// for it are free.
    pub fn abandon(&mut self, spool: SpoolId) -> Option<SpoolId> {
        match self.held.get_mut(&spool) {
            Some(hold) => {
                hold.orphan = true;
                None
            }
            None => Some(spool),
        }
    }
}

/// What files count for.
impl Backing {
    /// Whether a file may take more or less room than its length says.
    pub fn is_uneven(&self, ino: Ino) -> bool {
        self.uneven.contains_key(&ino)
    }

    /// All that may.
    pub fn uneven(&self) -> impl Iterator<Item = Ino> {
        self.uneven.keys().copied()
    }

    /// What is counted for a file, where that is not its length, in bytes.
    pub fn counted(&self, ino: Ino) -> Option<u64> {
        self.uneven.get(&ino).copied()
    }

    /// So much is counted for a file, whatever its length; `None`: its length is.
    pub fn set_counted(&mut self, ino: Ino, counted: Option<u64>) {
        match counted {
            Some(counted) => _ = self.uneven.insert(ino, counted),
            None => _ = self.uneven.remove(&ino),
        }
    }

    /// Somebody is told that a file's holes are sent. `false`: they were before.
    pub fn tell_of_holes(&mut self, ino: Ino) -> bool {
        self.told_of_holes.insert(ino)
    }
}

/// Bytes that are somewhere else, gone, or yet to be looked at.
impl Backing {
    /// A file's bytes are read at a path of the workspace that is not its own.
    pub fn reads_at(&mut self, path: &RepoPath, ino: Ino) {
        let readers = self.moved_from.entry(path.clone()).or_default();
        if !readers.contains(&ino) {
            readers.push(ino);
        }
    }

    /// Those that may read at a path of the workspace that is not their own. Some may do so no longer.
    pub fn readers_at(&self, path: &RepoPath) -> impl Iterator<Item = Ino> {
        self.moved_from.get(path).into_iter().flatten().copied()
    }

    /// Forgets those that read at a path no longer.
    pub fn keep_readers(&mut self, path: &RepoPath, reads: impl Fn(Ino) -> bool) {
        if let Some(readers) = self.moved_from.get_mut(path) {
            readers.retain(|ino| reads(*ino));
            if readers.is_empty() {
                self.moved_from.remove(path);
            }
        }
    }

    /// Mapped pages of a file could not be written. The first reason is kept.
    pub fn lose_pages(&mut self, ino: Ino, why: String) {
        self.lost.entry(ino).or_insert(why);
    }

    /// The files that lost some.
    pub fn lost_pages(&self) -> impl Iterator<Item = Ino> {
        self.lost.keys().copied()
    }

    /// Why a file lost some; it is forgotten with that.
    pub fn take_lost_pages(&mut self, ino: Ino) -> Option<String> {
        self.lost.remove(&ino)
    }

    /// These files of the spool were left by an earlier daemon: each is looked at.
    pub fn are_unseen(&mut self, files: Vec<Ino>) {
        self.unseen = Some(files);
    }

    /// The files that nobody may have looked at since the mount; `None` once all have been.
    pub fn unseen(&self) -> Option<&[Ino]> {
        self.unseen.as_deref()
    }

    /// All were looked at.
    pub fn all_are_seen(&mut self) {
        self.unseen = None;
    }

    /// An inode is gone: nothing is known of it any more.
    pub fn forget(&mut self, ino: Ino) {
        self.subdue(ino);
        self.uneven.remove(&ino);
        self.told_of_holes.remove(&ino);
        self.lost.remove(&ino);
    }

    /// Tells `broken` of every invariant that does not hold, by its name in docs/INVARIANTS.md: what is known of local
    /// files is known of files that are there. Looks at every inode: for tests.
    pub fn check(&self, tree: &Namespace, broken: &mut impl FnMut(&'static str, String)) {
        for (ino, inode) in tree.iter() {
            if let Body::File { content, .. } = &inode.body
                && let Some(path) = content.origin_in_workspace()
                && !self.readers_at(path).any(|reader| reader == ino)
            {
                broken("backing.moved-from", format!("{ino:?} is read at {path}, which does not know"));
            }
        }
        for (id, hold) in &self.held {
            if hold.count == 0 || hold.by_cut > hold.count {
                broken("backing.holds", format!("{id:?} has {} holds, {} of a commit", hold.count, hold.by_cut));
            }
        }
        for (ino, live) in &self.live {
            if !matches!(tree.content(*ino), Some((Content::Local { .. }, _))) {
                broken("backing.live", format!("{ino:?} may change unseen and has no spool file"));
            }
            if live.next.is_some_and(|at| !self.lingering.contains(&(at, *ino))) {
                broken("backing.lingering", format!("{ino:?} is to be asked after, and has no turn"));
            }
        }
        for (at, ino) in &self.lingering {
            if self.live.get(ino).and_then(|live| live.next) != Some(*at) {
                broken("backing.lingering", format!("{ino:?} has a turn, and is not to be asked after"));
            }
        }
        for ino in self.uneven.keys() {
            if tree.content(*ino).is_none() {
                broken("backing.uneven", format!("{ino:?} is no file"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPOOL: SpoolId = SpoolId(3);
    const INO: Ino = Ino(7);

    #[test]
    fn a_spool_file_goes_when_the_last_who_hold_it_let_go_of_it() {
        let mut backing = Backing::default();
        assert_eq!(backing.abandon(SPOOL), Some(SPOOL), "nobody reads it");
        backing.hold(SPOOL, false);
        backing.hold(SPOOL, true);
        assert_eq!(backing.abandon(SPOOL), None);
        assert!(backing.is_pinned_by_cut(SPOOL) && backing.let_go(SPOOL, true).is_none());
        assert!(!backing.is_pinned_by_cut(SPOOL) && backing.is_held(SPOOL));
        let unheld = backing.let_go(SPOOL, false).unwrap();
        assert!(unheld.orphan && unheld.counted == 0 && !backing.is_held(SPOOL));
    }

    #[test]
    fn a_live_file_is_asked_after_later_each_time_and_no_more_when_it_is_gone() {
        let (file, mut backing) = (Arc::new(tempfile::tempfile().unwrap()), Backing::default());
        assert!(backing.enliven(INO, &file) && !backing.enliven(INO, &file));
        backing.linger(INO);
        let first = backing.next_question().unwrap();
        assert!(backing.take_question(first - ASK_FIRST).is_none());
        assert_eq!(backing.take_question(first), Some(INO));
        backing.linger(INO);
        assert!(backing.next_question().unwrap() > first + ASK_FIRST && backing.lingering() == 1);
        backing.forget(INO);
        assert!(backing.next_question().is_none() && !backing.is_live(INO));
    }

    #[test]
    fn what_is_known_of_no_file_is_told() {
        let tree = Namespace::new(RepoPath::root(), crate::fs::costs::attrs());
        let broken = |backing: &Backing| {
            let mut found = Vec::new();
            backing.check(&tree, &mut |name, _| found.push(name));
            found
        };
        let mut backing = Backing::default();
        assert_eq!(broken(&backing), [""; 0]);
        backing.set_counted(INO, Some(1));
        assert_eq!(broken(&backing), ["backing.uneven"]);
        backing.set_counted(INO, None);
        backing.hold(SPOOL, false);
        backing.held.get_mut(&SPOOL).unwrap().by_cut = 2;
        assert_eq!(broken(&backing), ["backing.holds"]);
        backing.held.clear();
        backing.enliven(INO, &Arc::new(tempfile::tempfile().unwrap()));
        assert_eq!(broken(&backing), ["backing.live"]);
        backing.linger(INO);
        backing.lingering.clear();
        assert_eq!(broken(&backing), ["backing.live", "backing.lingering"]);
    }
}
