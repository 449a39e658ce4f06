//! The write-back queue: which paths may differ from what the workspace holds, and when each is due. It knows when,
//! never what. No clock of its own, no I/O.

use std::collections::{BTreeSet, HashMap};
use std::num::NonZeroU64;
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

/// A moment: nanoseconds since the queue was made, and one. Half of what an [`Instant`] takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tick(NonZeroU64);

impl Tick {
    fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// One path that may differ. There may be millions: what few of them have is apart.
#[derive(Debug)]
pub(super) struct Pending {
    /// Grows with every change; tells a confirmation of an older state from one of this.
    pub seq: u64,
    /// Since when the path has owed something.
    pub since: Tick,
    /// When it may be staged; `None` while it is not [`Phase::Waiting`], or parked.
    due: Option<Tick>,
    /// When its quiet period ends.
    rested: Tick,
    rare: Option<Box<Rare>>,
    pub phase: Phase,
    /// Waits for somebody to act.
    pub parked: bool,
    /// A barrier wants the state of now, even of a file that is open for writing.
    pub forced: bool,
    /// To be sent in a request of its own: one it shared was refused as a whole.
    pub alone: bool,
}

/// Of a path that failed, or that somebody waits for.
#[derive(Debug, Default)]
struct Rare {
    attempts: u32,
    error: Option<String>,
    /// Each with the state that it waits for and the content's length.
    barriers: Vec<(u64, u64, u64)>,
}

impl Pending {
    /// How often staging it has failed in a row.
    pub fn attempts(&self) -> u32 {
        self.rare.as_ref().map_or(0, |rare| rare.attempts)
    }

    /// Why, the last time.
    pub fn error(&self) -> Option<&str> {
        self.rare.as_ref()?.error.as_deref()
    }

    fn failed(&mut self, error: String) {
        let rare = self.rare.get_or_insert_default();
        rare.attempts += 1;
        rare.error = Some(error);
    }

    fn forgive(&mut self) {
        self.parked = false;
        if let Some(rare) = &mut self.rare {
            (rare.attempts, rare.error) = (0, None);
        }
        self.tidy();
    }

    /// Takes out the barriers that `reached` tells.
    fn take_barriers(&mut self, reached: impl Fn(&(u64, u64, u64)) -> bool) -> Vec<(u64, u64, u64)> {
        let taken = self.rare.as_mut().map(|rare| rare.barriers.extract_if(.., |barrier| reached(barrier)).collect());
        self.tidy();
        taken.unwrap_or_default()
    }

    fn has_barriers(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| !rare.barriers.is_empty())
    }

    fn tidy(&mut self) {
        if self.rare.as_ref().is_some_and(|rare| rare.attempts == 0 && rare.error.is_none() && rare.barriers.is_empty())
        {
            self.rare = None;
        }
    }
}

/// A count of paths that somebody waits for.
#[derive(Debug, Default)]
struct Barrier {
    remaining: u64,
    progress: Progress,
}

#[derive(Debug)]
pub(super) struct Queue {
    began: Instant,
    /// Boxed, since a hash table is half empty at times and there twice when it grows.
    entries: HashMap<RepoPath, Box<Pending>>,
    due: BTreeSet<(Tick, u64, RepoPath)>,
    barriers: HashMap<u64, Barrier>,
    seq: u64,
    next_barrier: u64,
    /// What [`next_due`](Self::next_due) was when it was last asked or told; nothing: never.
    told: Option<Tick>,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            entries: HashMap::new(),
            due: BTreeSet::new(),
            barriers: HashMap::new(),
            seq: 0,
            next_barrier: 0,
            told: None,
        }
    }
}

impl Queue {
    fn tick(&self, at: Instant) -> Tick {
        let nanos = at.saturating_duration_since(self.began).as_nanos();
        Tick(NonZeroU64::MIN.saturating_add(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    fn now(&self) -> Tick {
        self.tick(Instant::now())
    }

    /// The moment, as others know it.
    pub fn instant(&self, Tick(tick): Tick) -> Instant {
        self.began + Duration::from_nanos(tick.get() - 1)
    }

    /// Notes a change of a path; it is due when it has rested for `settle`.
    pub fn touch(&mut self, path: &RepoPath, settle: Duration) {
        self.seq += 1;
        let (now, seq) = (self.now(), self.seq);
        let entry = self.entries.entry(path.clone()).or_insert_with(|| {
            Box::new(Pending {
                seq,
                since: now,
                due: None,
                rested: now,
                rare: None,
                phase: Phase::Waiting,
                parked: false,
                forced: false,
                alone: false,
            })
        });
        if let Some(due) = entry.due.take() {
            self.due.remove(&(due, entry.seq, path.clone()));
        }
        entry.seq = seq;
        entry.forgive();
        entry.rested = now.after(settle).min(entry.since.after(settle * MAX_QUIET_PERIODS)).max(now);
        if entry.phase == Phase::Waiting {
            let due = if entry.forced { now } else { entry.rested };
            self.set_due(path, Some(due));
        }
    }

    fn set_due(&mut self, path: &RepoPath, due: Option<Tick>) {
        // One copy of the path for both, whoever asks with another.
        let Some(path) = self.entries.get_key_value(path).map(|(path, _)| path.clone()) else {
            return;
        };
        let Some(entry) = self.entries.get_mut(&path) else {
            return;
        };
        let old = std::mem::replace(&mut entry.due, due);
        let seq = entry.seq;
        match (old, due) {
            (Some(old), None) => drop(self.due.remove(&(old, seq, path))),
            (Some(old), Some(due)) => {
                self.due.remove(&(old, seq, path.clone()));
                self.due.insert((due, seq, path));
            }
            (None, Some(due)) => drop(self.due.insert((due, seq, path))),
            (None, None) => {}
        }
    }

    pub fn get(&self, path: &RepoPath) -> Option<&Pending> {
        self.entries.get(path).map(Box::as_ref)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&RepoPath, &Pending)> {
        self.entries.iter().map(|(path, entry)| (path, entry.as_ref()))
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the stager has the path in hand.
    pub fn is_active(&self, path: &RepoPath) -> bool {
        self.entries.get(path).is_some_and(|entry| entry.phase != Phase::Waiting)
    }

    /// When the next path is due.
    pub fn next_due(&mut self) -> Option<Instant> {
        self.told = self.due.first().map(|(due, ..)| *due);
        self.told.map(|due| self.instant(due))
    }

    /// Whether a path is due before all that whoever asks for [`next_due`](Self::next_due) knows of; says so once.
    pub fn has_news(&mut self) -> bool {
        let due = self.due.first().map(|(due, ..)| *due);
        let news = due.is_some_and(|due| self.told.is_none_or(|told| due < told));
        if news {
            self.told = due;
        }
        news
    }

    /// Up to `limit` paths that are due, oldest first; they count as in hand from now on.
    pub fn take_due(&mut self, now: Instant, limit: usize) -> Vec<RepoPath> {
        let now = self.tick(now);
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
        let now = self.tick(now);
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
        for (barrier, _, bytes) in entry.take_barriers(|(_, wanted, _)| *wanted <= seq) {
            count_done(&mut self.barriers, barrier, bytes);
        }
        if entry.seq == seq {
            self.remove(path);
        } else {
            entry.phase = Phase::Waiting;
            entry.forced = entry.has_barriers();
            entry.alone = false;
            let rested = entry.rested;
            let due = if entry.forced { self.now() } else { rested };
            self.set_due(path, Some(due));
        }
    }

    /// Nothing is owed for the path any more.
    pub fn remove(&mut self, path: &RepoPath) {
        self.set_due(path, None);
        let Some(mut entry) = self.entries.remove(path) else { return };
        for (barrier, _, bytes) in entry.take_barriers(|_| true) {
            count_done(&mut self.barriers, barrier, bytes);
        }
    }

    /// Tries the path again after `delay`.
    pub fn retry(&mut self, path: &RepoPath, delay: Duration, error: Option<String>) {
        let Some(entry) = self.entries.get_mut(path) else {
            return;
        };
        entry.phase = Phase::Waiting;
        if let Some(error) = error {
            entry.failed(error);
        }
        self.set_due(path, Some(self.now().after(delay)));
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
        entry.failed(error);
        entry.parked = true;
        entry.forced = false;
        for (barrier, ..) in entry.take_barriers(|_| true) {
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
        let now = self.now();
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
            let barriers = &mut entry.rare.get_or_insert_default().barriers;
            // Mostly the only one.
            barriers.reserve_exact(1);
            barriers.push((id, entry.seq, size));
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
            entry.take_barriers(|(barrier, ..)| *barrier == id);
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
    fn a_pending_path_takes_few_bytes_until_it_fails() {
        assert!(size_of::<Pending>() <= 48);
        let mut queue = Queue::default();
        queue.touch(&path("a"), NOW);
        let barrier = queue.barrier(|_| true, |_| 0);
        queue.retry(&path("a"), NOW, Some("refused".into()));
        let entry = queue.get(&path("a")).unwrap();
        assert_eq!((entry.attempts(), entry.error()), (1, Some("refused")));
        queue.touch(&path("a"), NOW);
        let entry = queue.get(&path("a")).unwrap();
        assert_eq!((entry.attempts(), entry.error(), entry.has_barriers()), (0, None, true));
        queue.drop_barrier(barrier);
        assert!(queue.get(&path("a")).unwrap().rare.is_none());
    }

    #[test]
    fn only_a_path_that_is_due_before_all_others_is_news_and_only_once() {
        let mut queue = Queue::default();
        assert!(!queue.has_news());
        queue.touch(&path("a"), Duration::from_secs(60));
        assert!(queue.has_news() && !queue.has_news());
        queue.touch(&path("b"), Duration::from_secs(3600));
        assert!(!queue.has_news());
        queue.touch(&path("c"), NOW);
        assert!(queue.has_news());
        take(&mut queue);
        assert!(queue.next_due().is_some());
        queue.touch(&path("d"), Duration::from_secs(30));
        assert!(queue.has_news());
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
        let since = queue.instant(queue.get(&path("a")).unwrap().since);
        queue.touch(&path("a"), Duration::from_secs(3600));
        assert!(queue.next_due().unwrap() <= since + Duration::from_secs(3600 * 10));
        // As if time had passed.
        queue.began -= Duration::from_secs(20);
        queue.touch(&path("a"), Duration::from_secs(2));
        assert!(queue.next_due().unwrap() <= Instant::now());
    }
}
