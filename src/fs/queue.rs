//! The write-back queue: which paths may differ from what the workspace holds, and when each is due. It knows when,
//! never what. No clock of its own, no I/O.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crate::control::Progress;
use crate::path::RepoPath;

/// A path that is changed again and again is staged after this many quiet periods all the same, once nobody has it
/// open for writing.
const MAX_QUIET_PERIODS: u32 = 10;

/// Where a pending path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// For its quiet period, its turn, or the end of a delay.
    Waiting,
    /// Its content is being hashed.
    Hashing,
    /// Hashed; waiting for a request.
    Ready,
    /// A request is under way.
    Sending,
}

/// One path that may differ.
#[derive(Debug)]
pub(super) struct Pending {
    /// Grows with every change; tells a confirmation of an older state from one of this.
    pub seq: u64,
    /// Since when the path has owed something.
    pub since: Instant,
    /// When it may be staged; `None` while it is not [`Phase::Waiting`], or parked.
    due: Option<Instant>,
    /// When its quiet period ends.
    rested: Instant,
    pub phase: Phase,
    /// How often staging it has failed in a row.
    pub attempts: u32,
    pub error: Option<String>,
    /// Waits for somebody to act.
    pub parked: bool,
    /// A barrier wants the state of now, even of a file that is open for writing.
    pub forced: bool,
    /// To be sent in a request of its own: one it shared was refused as a whole.
    pub alone: bool,
    barriers: Vec<(u64, u64, u64)>,
}

/// A count of paths that somebody waits for.
#[derive(Debug, Default)]
struct Barrier {
    remaining: u64,
    progress: Progress,
}

impl Pending {
    /// Whether it has waited for as long as a path waits at most.
    pub fn is_overdue(&self, settle: Duration) -> bool {
        self.since.elapsed() >= settle * MAX_QUIET_PERIODS
    }
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    entries: HashMap<RepoPath, Pending>,
    due: BTreeSet<(Instant, u64, RepoPath)>,
    barriers: HashMap<u64, Barrier>,
    seq: u64,
    next_barrier: u64,
}

impl Queue {
    /// Notes a change of a path; it is due when it has rested for `settle`.
    pub fn touch(&mut self, path: &RepoPath, settle: Duration) {
        self.seq += 1;
        let (now, seq) = (Instant::now(), self.seq);
        let entry = self.entries.entry(path.clone()).or_insert_with(|| Pending {
            seq,
            since: now,
            due: None,
            rested: now,
            phase: Phase::Waiting,
            attempts: 0,
            error: None,
            parked: false,
            forced: false,
            alone: false,
            barriers: Vec::new(),
        });
        if let Some(due) = entry.due.take() {
            self.due.remove(&(due, entry.seq, path.clone()));
        }
        entry.seq = seq;
        (entry.parked, entry.error, entry.attempts) = (false, None, 0);
        entry.rested = (now + settle).min(entry.since + settle * MAX_QUIET_PERIODS).max(now);
        if entry.phase == Phase::Waiting {
            let due = if entry.forced { now } else { entry.rested };
            self.set_due(path, Some(due));
        }
    }

    fn set_due(&mut self, path: &RepoPath, due: Option<Instant>) {
        let Some(entry) = self.entries.get_mut(path) else {
            return;
        };
        if let Some(old) = entry.due.take() {
            self.due.remove(&(old, entry.seq, path.clone()));
        }
        entry.due = due;
        if let Some(due) = due {
            self.due.insert((due, entry.seq, path.clone()));
        }
    }

    pub fn get(&self, path: &RepoPath) -> Option<&Pending> {
        self.entries.get(path)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&RepoPath, &Pending)> {
        self.entries.iter()
    }

    /// Whether the stager has the path in hand.
    pub fn is_active(&self, path: &RepoPath) -> bool {
        self.entries.get(path).is_some_and(|entry| entry.phase != Phase::Waiting)
    }

    /// When the next path is due.
    pub fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(due, ..)| *due)
    }

    /// Up to `limit` paths that are due, oldest first; they count as in hand from now on.
    pub fn take_due(&mut self, now: Instant, limit: usize) -> Vec<RepoPath> {
        let due = self.due.iter().take_while(|(due, ..)| *due <= now);
        let chosen: Vec<_> = due.take(limit).map(|(.., path)| path.clone()).collect();
        self.take(chosen)
    }

    /// Up to `limit` of `paths` that are due.
    pub fn take_of<'a>(
        &mut self,
        paths: impl Iterator<Item = &'a RepoPath>,
        now: Instant,
        limit: usize,
    ) -> Vec<RepoPath> {
        let due =
            paths.filter(|path| self.entries.get(*path).is_some_and(|entry| entry.due.is_some_and(|due| due <= now)));
        let chosen = if limit == 0 { Vec::new() } else { due.take(limit).cloned().collect() };
        self.take(chosen)
    }

    fn take(&mut self, chosen: Vec<RepoPath>) -> Vec<RepoPath> {
        for path in &chosen {
            self.set_due(path, None);
            self.set_phase(path, Phase::Ready);
        }
        chosen
    }

    pub fn set_phase(&mut self, path: &RepoPath, phase: Phase) {
        if let Some(entry) = self.entries.get_mut(path) {
            entry.phase = phase;
        }
    }

    /// The state of `seq` has reached the workspace. A path that changed since stays due.
    pub fn done(&mut self, path: &RepoPath, seq: u64) {
        let Some(entry) = self.entries.get_mut(path) else {
            return;
        };
        for (barrier, _, bytes) in entry.barriers.extract_if(.., |(_, wanted, _)| *wanted <= seq) {
            count_done(&mut self.barriers, barrier, bytes);
        }
        if entry.seq == seq {
            self.remove(path);
        } else {
            entry.phase = Phase::Waiting;
            entry.forced = !entry.barriers.is_empty();
            entry.alone = false;
            let due = if entry.forced { Instant::now() } else { entry.rested };
            self.set_due(path, Some(due));
        }
    }

    /// Nothing is owed for the path any more.
    pub fn remove(&mut self, path: &RepoPath) {
        self.set_due(path, None);
        let Some(entry) = self.entries.remove(path) else { return };
        for (barrier, _, bytes) in entry.barriers {
            count_done(&mut self.barriers, barrier, bytes);
        }
    }

    /// Tries the path again after `delay`.
    pub fn retry(&mut self, path: &RepoPath, delay: Duration, error: Option<String>) {
        let Some(entry) = self.entries.get_mut(path) else {
            return;
        };
        entry.phase = Phase::Waiting;
        if error.is_some() {
            entry.attempts += 1;
            entry.error = error;
        }
        self.set_due(path, Some(Instant::now() + delay));
    }

    /// The next request that carries the path carries nothing else.
    pub fn set_alone(&mut self, path: &RepoPath) {
        if let Some(entry) = self.entries.get_mut(path) {
            entry.alone = true;
        }
    }

    /// Gives the path up until it changes or somebody asks for it; its bytes stay.
    pub fn park(&mut self, path: &RepoPath, error: String) {
        let Some(entry) = self.entries.get_mut(path) else {
            return;
        };
        entry.phase = Phase::Waiting;
        entry.attempts += 1;
        entry.error = Some(error);
        entry.parked = true;
        entry.forced = false;
        for (barrier, ..) in entry.barriers.drain(..) {
            if let Some(barrier) = self.barriers.get_mut(&barrier) {
                barrier.remaining -= 1;
                barrier.progress.files_failed += 1;
            }
        }
        self.set_due(path, None);
    }

    /// Makes every path of `chosen` due now, parked ones too, and counts them until they are done or parked.
    /// `bytes` tells a path's content length.
    pub fn barrier(&mut self, chosen: impl Fn(&RepoPath) -> bool, bytes: impl Fn(&RepoPath) -> u64) -> u64 {
        let id = self.next_barrier;
        self.next_barrier += 1;
        let now = Instant::now();
        let paths: Vec<RepoPath> = self.entries.keys().filter(|path| chosen(path)).cloned().collect();
        let mut barrier = Barrier::default();
        for path in paths {
            let size = bytes(&path);
            barrier.remaining += 1;
            barrier.progress.files_total += 1;
            barrier.progress.bytes_total += size;
            let Some(entry) = self.entries.get_mut(&path) else {
                continue;
            };
            entry.barriers.push((id, entry.seq, size));
            entry.parked = false;
            entry.forced = true;
            if entry.phase == Phase::Waiting {
                self.set_due(&path, Some(now));
            }
        }
        self.barriers.insert(id, barrier);
        id
    }

    /// How far a barrier is, and whether it is reached.
    pub fn barrier_progress(&self, id: u64) -> (Progress, bool) {
        self.barriers.get(&id).map_or((Progress::default(), true), |barrier| (barrier.progress, barrier.remaining == 0))
    }

    /// Nobody waits for this barrier any more.
    pub fn drop_barrier(&mut self, id: u64) {
        self.barriers.remove(&id);
        for entry in self.entries.values_mut() {
            entry.barriers.retain(|(barrier, ..)| *barrier != id);
        }
    }
}

fn count_done(barriers: &mut HashMap<u64, Barrier>, id: u64, bytes: u64) {
    if let Some(barrier) = barriers.get_mut(&id) {
        barrier.remaining -= 1;
        barrier.progress.files_done += 1;
        barrier.progress.bytes_done += bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;

    fn path(text: &str) -> RepoPath {
        RepoPath::parse(text).unwrap()
    }

    fn take(queue: &mut Queue) -> Vec<RepoPath> {
        queue.take_due(Instant::now(), 100)
    }

    #[test]
    fn a_path_is_due_after_its_quiet_period_or_at_once_for_a_barrier() {
        let mut queue = Queue::default();
        queue.touch(&path("a"), Duration::from_secs(3600));
        assert!(take(&mut queue).is_empty());
        let barrier = queue.barrier(|_| true, |_| 7);
        assert_eq!(take(&mut queue), [path("a")]);
        assert!(!queue.barrier_progress(barrier).1);
        let seq = queue.get(&path("a")).unwrap().seq;
        queue.done(&path("a"), seq);
        let (progress, reached) = queue.barrier_progress(barrier);
        assert!(reached);
        assert_eq!((progress.files_done, progress.bytes_done), (1, 7));
    }

    #[test]
    fn a_change_during_staging_makes_the_path_due_again_but_reaches_the_older_barrier() {
        let mut queue = Queue::default();
        queue.touch(&path("a"), NOW);
        let seq = queue.get(&path("a")).unwrap().seq;
        let barrier = queue.barrier(|_| true, |_| 0);
        assert_eq!(take(&mut queue).len(), 1);
        queue.touch(&path("a"), NOW);
        assert!(take(&mut queue).is_empty(), "in hand");
        queue.done(&path("a"), seq);
        assert!(queue.barrier_progress(barrier).1);
        assert_eq!(take(&mut queue), [path("a")]);
    }

    #[test]
    fn a_parked_path_ends_the_wait_and_a_change_takes_it_up_again() {
        let mut queue = Queue::default();
        queue.touch(&path("a"), NOW);
        let barrier = queue.barrier(|_| true, |_| 0);
        take(&mut queue);
        queue.park(&path("a"), "refused".into());
        let (progress, reached) = queue.barrier_progress(barrier);
        assert!(reached && progress.files_failed == 1);
        assert!(take(&mut queue).is_empty());
        queue.touch(&path("a"), NOW);
        assert_eq!(take(&mut queue), [path("a")]);
    }

    #[test]
    fn a_path_that_never_rests_is_due_after_ten_periods() {
        let mut queue = Queue::default();
        queue.touch(&path("a"), Duration::from_secs(1));
        let since = queue.get(&path("a")).unwrap().since;
        queue.touch(&path("a"), Duration::from_secs(3600));
        assert!(queue.next_due().unwrap() <= since + Duration::from_secs(3600 * 10));
        queue.entries.get_mut(&path("a")).unwrap().since -= Duration::from_secs(20);
        queue.touch(&path("a"), Duration::from_secs(2));
        assert!(queue.next_due().unwrap() <= Instant::now());
    }
}
