//! What is owed to the server: per path what base and workspace hold, what is pending and when it is due, how far
//! uploads came, and the cut of a commit.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use super::FsError;
use super::cut::{Cut, Gathering, Made};
use super::staging::{Capture, RECHECK};
use crate::count;
use crate::namespace::Ino;
use crate::path::RepoPath;
use crate::store::journal::{CommitIntent, PathUpload};
use crate::writeback::index::{Account, Conflict, Ledger};
use crate::writeback::queue::{Follower, Parked, Pending, Phase, Queue, Scope};

/// Why a path in conflict is not staged.
const HELD_BACK: &str = "was changed here and by others; `oxenfs resolve` decides: --ours, --theirs or --keep-both";
/// How soon a copy that could not be made is tried again.
const COPY_RETRY: Duration = Duration::from_secs(1);
/// Copies made at once.
const COPIES_AT_ONCE: usize = 2;

/// All that is owed, and what it is owed against.
#[derive(Default)]
pub(super) struct Writeback {
    ledger: Ledger,
    /// Paths that were changed here and by others.
    conflicts: BTreeMap<RepoPath, Conflict>,
    queue: Queue,
    uploads: HashMap<RepoPath, PathUpload>,
    /// A commit that was asked for, and of which it is not known what became.
    intent: Option<CommitIntent>,
    /// What a commit under way is to hold.
    cut: Option<Cut>,
    /// Paths whose content was fixed by a copy, and how many are being copied.
    copied: Vec<Capture>,
    copying: usize,
    /// Parked because something that is parked itself is in their way. Some may be so no longer.
    kept_out: HashSet<RepoPath>,
}

/// What is on record: changed by [`Change`](crate::store::journal::Change)s alone.
impl Writeback {
    /// What base and workspace have at each path that ever differed.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// What they have at a path; `None`: what the tree shows, and nothing is staged.
    pub fn account(&self, path: &RepoPath) -> Option<Account> {
        self.ledger.get(path)
    }

    /// Sets what they have at a path. For changes that are, or will be, on record.
    pub fn set_account(&mut self, path: RepoPath, account: Option<Account>) {
        self.ledger.set(path, account);
    }

    /// What others made of a path that was changed here too, until that is decided.
    pub fn conflict(&self, path: &RepoPath) -> Option<&Conflict> {
        self.conflicts.get(path)
    }

    /// All such paths, in tree order.
    pub fn conflicts(&self) -> impl Iterator<Item = (&RepoPath, &Conflict)> {
        self.conflicts.iter()
    }

    /// Notes or, with `None`, ends a conflict. As [`set_account`](Self::set_account).
    pub fn set_conflict(&mut self, path: &RepoPath, conflict: Option<&Conflict>) {
        match conflict {
            Some(conflict) => _ = self.conflicts.insert(path.clone(), conflict.clone()),
            None => _ = self.conflicts.remove(path),
        }
    }

    /// Whether anything below a directory, or it itself, is in conflict.
    pub fn is_in_conflict_below(&self, dir: &RepoPath) -> bool {
        self.conflicts.range(dir.clone()..).next().is_some_and(|(path, _)| path.is_in(dir))
    }

    /// What was staged is in the base.
    pub fn rebase(&mut self) {
        self.ledger.rebase();
    }

    /// How far the upload of a path is.
    pub fn upload(&self, path: &RepoPath) -> Option<&PathUpload> {
        self.uploads.get(path)
    }

    /// All uploads that were begun and are not over.
    pub fn uploads(&self) -> impl Iterator<Item = (&RepoPath, &PathUpload)> {
        self.uploads.iter()
    }

    /// Sets how far the upload of a path is; `None`: it is over. As [`set_account`](Self::set_account).
    pub fn set_upload(&mut self, path: &RepoPath, upload: Option<&PathUpload>) {
        match upload {
            Some(upload) => _ = self.uploads.insert(path.clone(), upload.clone()),
            None => _ = self.uploads.remove(path),
        }
    }

    /// A commit that was asked for, and of which it is not known what became.
    pub fn intent(&self) -> Option<&CommitIntent> {
        self.intent.as_ref()
    }

    /// Sets which that is. As [`set_account`](Self::set_account).
    pub fn set_intent(&mut self, intent: Option<&CommitIntent>) {
        self.intent = intent.cloned();
    }
}

/// What is pending.
impl Writeback {
    /// All that is, to be looked at.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// A path that is; `None`: nothing is owed for it.
    pub fn pending(&self, path: &RepoPath) -> Option<&Pending> {
        self.queue.get(path)
    }

    /// Whether anything is owed for a path.
    pub fn is_pending(&self, path: &RepoPath) -> bool {
        self.queue.get(path).is_some()
    }

    /// Something is owed for a path, which has an account: it is due when it has rested for `settle`.
    pub fn owe(&mut self, path: &RepoPath, settle: Duration) {
        self.queue.touch(path, settle);
        let held = || self.queue.get(path).and_then(Pending::parked) == Some(Parked::HeldBack);
        // A conflict holds it back, whatever becomes of it here.
        if self.conflicts.contains_key(path) && !held() {
            self.queue.park(path, HELD_BACK.to_owned(), Parked::HeldBack);
        }
    }

    /// Nothing is owed for a path any more.
    pub fn owe_no_more(&mut self, path: &RepoPath) {
        self.queue.remove(path);
    }

    /// A path was staged as of `seq`.
    pub fn done(&mut self, path: &RepoPath, seq: u64) {
        self.queue.done(path, seq);
    }

    /// A path is tried again after `delay`.
    pub fn retry(&mut self, path: &RepoPath, delay: Duration, error: Option<String>) {
        self.queue.retry(path, delay, error);
    }

    /// The next request that carries a path carries nothing else. It is due now.
    pub fn retry_alone(&mut self, path: &RepoPath) {
        self.queue.set_alone(path);
        self.queue.retry(path, Duration::ZERO, None);
    }

    /// A path is given up until it changes or somebody asks for it; its bytes stay.
    pub fn park(&mut self, path: &RepoPath, error: String, parked: Parked) {
        self.queue.park(path, error, parked);
    }

    /// Nothing holds a path back any more: it is due now.
    pub fn let_go(&mut self, path: &RepoPath) {
        self.queue.unpark(path);
    }

    /// The same because of another that waits for somebody: it is [let in](Self::let_in) when anything is staged.
    pub fn keep_out(&mut self, path: &RepoPath, error: String) {
        self.queue.park(path, error, Parked::Person);
        self.kept_out.insert(path.clone());
    }

    /// What was kept out by something is looked at again.
    pub fn let_in(&mut self) {
        for path in std::mem::take(&mut self.kept_out) {
            if self.queue.get(&path).is_some_and(Pending::waits_for_somebody) {
                self.queue.touch(&path, Duration::ZERO);
            }
        }
    }

    /// A path that somebody waits for cannot be staged before this one. Says whether it comes sooner by that.
    pub fn hasten(&mut self, path: &RepoPath) -> bool {
        self.queue.hasten(path)
    }

    /// Shows in which phase a path is.
    pub fn set_phase(&mut self, path: &RepoPath, phase: Phase) {
        self.queue.set_phase(path, phase);
    }

    /// Up to `limit` paths that are due, oldest first; they count as in hand from now on. While a commit waits, only what
    /// is part of it: not through all that is due, as writers go on meanwhile, and what they write is not looked at.
    pub fn take_due(&mut self, now: Instant, limit: usize) -> Vec<RepoPath> {
        match &self.cut {
            Some(Cut::Made(made)) => self.queue.take_of(made.paths(), now, limit),
            _ => self.queue.take_due(now, limit),
        }
    }

    /// When the next path is due. While a commit waits, the paths that are not part of it are not due, however long ago
    /// they were.
    pub fn next_due(&mut self) -> Option<Instant> {
        let due = self.queue.next_due()?;
        Some(if self.made().is_some() { due.max(Instant::now() + RECHECK) } else { due })
    }

    /// Whether a path is due before all that the stager knows of; says so once.
    pub fn has_news(&mut self) -> bool {
        self.queue.has_news()
    }

    /// Whether a path that somebody waited for is owed no more; says so once.
    pub fn has_withdrawn(&mut self) -> bool {
        self.queue.has_withdrawn()
    }
}

/// Who waits for what is pending.
impl Writeback {
    /// Makes those of `paths` that are pending due now, and counts them until they are done or parked. `bytes` tells a
    /// path's content length; inodes from `first_new` on are made after it.
    pub fn barrier(
        &mut self,
        paths: &[RepoPath],
        scope: Scope,
        first_new: Ino,
        bytes: impl Fn(&RepoPath) -> u64,
    ) -> NonZeroU32 {
        self.queue.barrier(paths, scope, first_new, bytes)
    }

    /// Nobody waits for this barrier any more.
    pub fn drop_barrier(&mut self, id: NonZeroU32) {
        self.queue.drop_barrier(id);
    }

    /// A file is about to be known by another name: takes out those who follow it from `path`, until they
    /// [join](Self::join) its new one.
    pub fn leave(&mut self, path: &RepoPath, ino: Ino) -> Vec<Follower> {
        self.queue.leave(path, ino)
    }

    /// A file is about to be replaced by another at `path`: takes out those who wait for it.
    pub fn leave_replaced(&mut self, path: &RepoPath) -> Vec<Follower> {
        self.queue.leave_replaced(path)
    }

    /// Those who followed a file wait for `path`, of `bytes`, if it is pending.
    pub fn join(&mut self, followers: &[Follower], path: &RepoPath, bytes: u64, replaced: bool) {
        self.queue.join(followers, path, bytes, replaced);
    }
}

/// Copies of files that may change meanwhile.
impl Writeback {
    /// A path's content is to be fixed by a copy. `false`: enough are being made, and it is tried again soon.
    pub fn begin_copy(&mut self, path: &RepoPath) -> bool {
        let begun = self.copying < COPIES_AT_ONCE;
        if begun {
            self.copying += 1;
            self.queue.set_phase(path, Phase::Hashing);
        } else {
            self.queue.retry(path, RECHECK, None);
        }
        begun
    }

    /// What became of that. `None`: it has other content by now.
    pub fn end_copy(&mut self, path: &RepoPath, copied: Result<Option<Capture>, FsError>) {
        count::take(&mut self.copying, 1, "backing.copying");
        match copied {
            Ok(Some(capture)) => self.copied.push(capture),
            Ok(None) => self.queue.retry(path, Duration::ZERO, None),
            Err(error) => {
                let error = format!("a copy of its bytes waits: {error}");
                self.queue.retry(path, COPY_RETRY, Some(error));
            }
        }
    }

    /// The paths whose content was fixed so.
    pub fn take_copied(&mut self) -> Vec<Capture> {
        std::mem::take(&mut self.copied)
    }
}

/// The cut of a commit.
impl Writeback {
    /// A commit begins to gather. `false`: one is under way.
    pub fn begin_cut(&mut self, gathering: Gathering) -> bool {
        let free = self.cut.is_none();
        if free {
            self.cut = Some(Cut::Gathering(gathering));
        }
        free
    }

    /// The instant. Returns what was gathered, to be dropped when the lock is free.
    pub fn make_cut(&mut self, made: Made) -> Option<Cut> {
        self.cut.replace(Cut::Made(made))
    }

    /// What the cut lacks is owed by now, and what it holds may not be staged before that: nobody waits for the rest of it.
    /// A commit sees so when it [looks at what is staged](crate::fs::Fs::audit_for_commit), and makes another cut.
    pub fn give_up_cut(&mut self) {
        if let Some(barrier) = self.made_mut().and_then(Made::give_up) {
            self.queue.give_up(barrier);
        }
    }

    /// The commit is over. The caller drops what this returns when the lock is free.
    pub fn end_cut(&mut self) -> Option<Cut> {
        self.cut.take()
    }

    /// Whether a commit is under way.
    pub fn is_cutting(&self) -> bool {
        self.cut.is_some()
    }

    /// What is fixed before the instant.
    pub fn gathering(&self) -> Option<&Gathering> {
        match &self.cut {
            Some(Cut::Gathering(gathering)) => Some(gathering),
            _ => None,
        }
    }

    /// The same, to fix more.
    pub fn gathering_mut(&mut self) -> Option<&mut Gathering> {
        match &mut self.cut {
            Some(Cut::Gathering(gathering)) => Some(gathering),
            _ => None,
        }
    }

    /// What the commit is to hold, once it is made.
    pub fn made(&self) -> Option<&Made> {
        match &self.cut {
            Some(Cut::Made(made)) => Some(made),
            _ => None,
        }
    }

    /// The same, to take out what is staged.
    pub fn made_mut(&mut self) -> Option<&mut Made> {
        match &mut self.cut {
            Some(Cut::Made(made)) => Some(made),
            _ => None,
        }
    }

    /// Tells `broken` of every invariant that does not hold, by its name in docs/INVARIANTS.md: for tests.
    pub fn check(&self, broken: &mut impl FnMut(&'static str, String)) {
        self.ledger.check(broken);
        self.queue.check(broken);
        for (path, _) in self.queue.iter() {
            if self.ledger.get(path).is_none() {
                broken("owed.account", format!("{path} is pending, and what the base has there is forgotten"));
            }
        }
        for (path, conflict) in &self.conflicts {
            if self.queue.get(path).and_then(Pending::parked) != Some(Parked::HeldBack) {
                broken("conflict.held", format!("{path} is in conflict, and nothing holds it back"));
            }
            let base = self.ledger.get(path).map(|account| account.base);
            if base != Some(conflict.theirs.object()) {
                broken("conflict.theirs", format!("{path} is in conflict with {:?}: {base:?}", conflict.theirs));
            }
        }
        for (path, entry) in self.queue.iter() {
            if entry.parked() == Some(Parked::HeldBack) && !self.conflicts.contains_key(path) {
                broken("conflict.held", format!("{path} is held back without a conflict"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_owed_without_an_account_is_told() {
        let mut writeback = Writeback::default();
        let path = RepoPath::parse("a").unwrap();
        let broken = |writeback: &Writeback| {
            let mut found = Vec::new();
            writeback.check(&mut |name, _| found.push(name));
            found
        };
        writeback.set_account(path.clone(), Some(Account::default()));
        writeback.owe(&path, Duration::ZERO);
        assert_eq!(broken(&writeback), [""; 0]);
        writeback.set_account(path, None);
        assert_eq!(broken(&writeback), ["owed.account"]);
    }

    #[test]
    fn so_many_copies_are_made_at_once_and_the_others_wait() {
        let mut writeback = Writeback::default();
        let paths = ["a", "b", "c"].map(|path| RepoPath::parse(path).unwrap());
        for path in &paths {
            writeback.owe(path, Duration::ZERO);
        }
        assert_eq!(writeback.take_due(Instant::now(), 9).len(), 3);
        assert_eq!(paths.each_ref().map(|path| writeback.begin_copy(path)), [true, true, false]);
        assert!(writeback.take_due(Instant::now() + RECHECK, 9).contains(&paths[2]));
        writeback.end_copy(&paths[0], Ok(None));
        assert!(writeback.begin_copy(&paths[2]) && writeback.take_copied().is_empty());
    }
}
