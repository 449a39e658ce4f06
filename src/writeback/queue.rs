//! The write-back queue: which paths may differ from what the workspace holds, and when each is due. It knows when,
//! never what. No clock of its own, no I/O.

use std::cmp::Reverse;
use std::collections::hash_map::RandomState;
use std::collections::{BTreeSet, BinaryHeap, HashMap, HashSet};
use std::hash::BuildHasher;
use std::num::{NonZeroU32, NonZeroU64};
use std::time::{Duration, Instant};

use hashbrown::HashTable;

use crate::count;
use crate::namespace::Ino;
use crate::path::RepoPath;
use crate::report::Progress;
use crate::sync;
use crate::table::Table;

/// A path that is changed again and again is staged after this many quiet periods all the same, once nobody has it
/// open for writing.
const MAX_QUIET_PERIODS: u32 = 10;

/// A barrier follows an inode to so many names: one that is renamed without pause is waited for at the last of them.
const NAMES_FOLLOWED: u32 = 16;

/// Turns that are out of date are not looked for among fewer.
const SPARE_TURNS: usize = 64;

/// Room for this many times as many as there are is given back in part.
const SPARE_ROOM: usize = 4;

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
pub(crate) struct Tick(NonZeroU64);

impl Tick {
    fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// One path that may differ. There may be millions: what few of them have is apart.
#[derive(Debug)]
pub(crate) struct Pending {
    /// Grows with every change; tells a confirmation of an older state from one of this.
    pub seq: u64,
    /// Since when the path has owed something.
    pub since: Tick,
    /// When it may be staged, if it is `scheduled`; else when its quiet period ends.
    due: Tick,
    rare: Option<Box<Rare>>,
    /// The content's length, if `waited_by` is a barrier.
    waited_bytes: u64,
    /// A barrier that wants just this state; others are with what is rare.
    waited_by: Option<NonZeroU32>,
    pub phase: Phase,
    /// Has its turn when it is due: it is [`Phase::Waiting`], and not parked.
    scheduled: bool,
    /// A barrier wants the state of now, even of a file that is open for writing.
    pub forced: bool,
    /// To be sent in a request of its own: one it shared was refused as a whole.
    pub alone: bool,
}

/// Of a path that failed, or that several wait for.
#[derive(Debug, Default)]
struct Rare {
    attempts: u32,
    error: Option<String>,
    /// Has no turn until something happens.
    parked: Option<Parked>,
    waits: Vec<Wait>,
}

/// What a path waits for that was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parked {
    /// Somebody who acts.
    Person,
    /// Somebody who names it: the server has another version, and nothing else lets one replace the other.
    Conflict,
    /// Somebody who decides between two versions: a record says which. To ask for it to be staged is not to decide.
    HeldBack,
    /// A commit, which makes way for it first.
    Commit,
    /// Somebody who writes it again, or names it: it was held back on purpose, and nobody waits for it.
    Held,
}

/// Somebody waits for a path.
#[derive(Debug, Clone, Copy)]
struct Wait {
    barrier: NonZeroU32,
    /// The state that it waits for.
    seq: u64,
    /// The content's length.
    bytes: u64,
}

impl Barrier {
    /// It does not wait for this any more, and never did as far as its progress goes.
    fn uncount(&mut self, wait: &Wait) {
        count::take(&mut self.remaining, 1, "queue.barriers");
        count::take(&mut self.progress.files_total, 1, "queue.progress");
        // Lengths may be what a server made up: their sum need not fit.
        self.progress.bytes_total = self.progress.bytes_total.saturating_sub(wait.bytes);
    }

    /// Whether it goes along with one more rename of an inode.
    fn follows(&mut self, ino: Ino) -> bool {
        let names = self.followed.entry(ino).or_default();
        *names += 1;
        *names <= NAMES_FOLLOWED
    }
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

    /// Whether it waits for somebody to act.
    pub fn is_parked(&self) -> bool {
        self.parked().is_some()
    }

    /// What it waits for, if it has no turn.
    pub fn parked(&self) -> Option<Parked> {
        self.rare.as_ref()?.parked
    }

    /// Whether it stays as it is until somebody acts, here or elsewhere.
    pub fn waits_for_somebody(&self) -> bool {
        matches!(self.parked(), Some(Parked::Person | Parked::Conflict | Parked::HeldBack | Parked::Held))
    }

    /// Whether it is held back on purpose.
    pub fn is_held(&self) -> bool {
        self.parked() == Some(Parked::Held)
    }

    fn failed(&mut self, error: String, parked: Option<Parked>) {
        let rare = self.rare.get_or_insert_default();
        rare.attempts += 1;
        (rare.error, rare.parked) = (Some(error), parked);
    }

    /// Whether it waits for somebody who names it, or who decides.
    pub fn is_in_conflict(&self) -> bool {
        matches!(self.parked(), Some(Parked::Conflict | Parked::HeldBack))
    }

    /// It has changed: the failures of before tell nothing about it. A conflict remains one.
    fn forgive(&mut self) {
        if !self.is_in_conflict()
            && let Some(rare) = &mut self.rare
        {
            (rare.attempts, rare.error, rare.parked) = (0, None, None);
        }
        self.tidy();
    }

    fn wait(&mut self, barrier: NonZeroU32, bytes: u64) {
        self.set_apart();
        (self.waited_by, self.waited_bytes) = (Some(barrier), bytes);
    }

    /// Somebody waits for its state of now.
    fn force(&mut self) {
        if let Some(rare) = &mut self.rare {
            rare.parked = None;
        }
        self.forced = true;
    }

    /// Before the state changes, or another waits for it.
    fn set_apart(&mut self) {
        if let Some(barrier) = self.waited_by.take() {
            let wait = Wait { barrier, seq: self.seq, bytes: self.waited_bytes };
            self.rare.get_or_insert_default().waits.push(wait);
        }
    }

    /// Takes out those who wait, if `reached` tells so.
    fn take_waits(&mut self, reached: impl Fn(&Wait) -> bool) -> Vec<Wait> {
        let own = self.waited_by.map(|barrier| Wait { barrier, seq: self.seq, bytes: self.waited_bytes });
        let own = own.filter(|wait| reached(wait));
        if own.is_some() {
            self.waited_by = None;
        }
        let taken = self.rare.as_mut().map(|rare| rare.waits.extract_if(.., |wait| reached(wait)).collect::<Vec<_>>());
        self.tidy();
        taken.into_iter().flatten().chain(own).collect()
    }

    /// A barrier that waits for it waits for its state of now.
    fn wait_for_now(&mut self, barrier: NonZeroU32) {
        let seq = self.seq;
        let waits = self.rare.iter_mut().flat_map(|rare| &mut rare.waits);
        waits.filter(|wait| wait.barrier == barrier).for_each(|wait| wait.seq = seq);
    }

    /// Waits for any state from `seq` on.
    fn wait_since(&mut self, barrier: NonZeroU32, seq: u64, bytes: u64) {
        self.rare.get_or_insert_default().waits.push(Wait { barrier, seq, bytes });
    }

    /// The barriers that wait for it.
    fn waiting(&self) -> impl Iterator<Item = NonZeroU32> {
        let apart = self.rare.iter().flat_map(|rare| rare.waits.iter().map(|wait| wait.barrier));
        apart.chain(self.waited_by)
    }

    fn is_waited_for(&self) -> bool {
        self.waited_by.is_some() || self.rare.as_ref().is_some_and(|rare| !rare.waits.is_empty())
    }

    fn tidy(&mut self) {
        if self.rare.as_ref().is_some_and(|rare| rare.attempts == 0 && rare.error.is_none() && rare.waits.is_empty()) {
            self.rare = None;
        }
    }
}

/// A count of paths that somebody waits for.
#[derive(Debug)]
struct Barrier {
    remaining: u64,
    progress: Progress,
    scope: Scope,
    /// Inodes from this number on were made after the barrier.
    first_new: Ino,
    /// How often each inode was followed to another name.
    followed: HashMap<Ino, u32>,
}

/// Which renamed files a barrier follows to their new names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Scope {
    /// None: it waits for what its paths were.
    Fixed,
    /// Those that it waits for.
    Waited,
    /// Those that it waits for, and those of these directories and below: what of them is staged already will be under
    /// another name.
    Below(HashSet<RepoPath>),
}

/// Somebody's wait for a file that is between two names.
#[derive(Debug)]
pub(crate) struct Follower {
    barrier: NonZeroU32,
    /// The state that it waited for; `None`: its old name was staged.
    seq: Option<u64>,
}

/// They come and go together, mostly.
type Entries = Table<(RepoPath, Pending), 64>;

/// A path in the queue has a number, in the order in which they came: there may be millions, and it is all that is kept
/// to find them by, and to have them in turn.
#[derive(Debug)]
pub(crate) struct Queue {
    began: Instant,
    entries: Entries,
    numbers: Numbers,
    /// What is due when, the next one on top; what is not its number's time is out of date.
    turns: BinaryHeap<Reverse<(Tick, u32)>>,
    /// How many are up to date.
    scheduled: usize,
    barriers: HashMap<NonZeroU32, Barrier>,
    /// See [`has_withdrawn`](Self::has_withdrawn).
    withdrawn: bool,
    seq: u64,
    next_number: u32,
    last_barrier: u32,
    /// What [`next_due`](Self::next_due) was when it was last asked or told; nothing: never.
    told: Option<Tick>,
}

/// The numbers, by path.
#[derive(Debug, Default)]
struct Numbers {
    table: HashTable<u32>,
    hasher: RandomState,
}

impl Numbers {
    fn get(&self, path: &RepoPath, entries: &Entries) -> Option<u32> {
        let is = |number: &u32| entries.get((*number).into()).is_some_and(|(other, _)| other == path);
        self.table.find(self.hasher.hash_one(path), is).copied()
    }

    /// Gives `path`, which has none, a number that it has in `entries` already.
    fn insert(&mut self, path: &RepoPath, number: u32, entries: &Entries) {
        let rehash = |number: &u32| entries.get((*number).into()).map_or(0, |(path, _)| self.hasher.hash_one(path));
        self.table.insert_unique(self.hasher.hash_one(path), number, rehash);
    }

    fn remove(&mut self, path: &RepoPath, number: u32) {
        if let Ok(found) = self.table.find_entry(self.hasher.hash_one(path), |other| *other == number) {
            found.remove();
        }
    }

    /// After a million that came at once, room for a million is not needed for ever.
    fn shrink(&mut self, entries: &Entries) {
        if self.table.len() < self.table.capacity() / SPARE_ROOM {
            let rehash = |number: &u32| entries.get((*number).into()).map_or(0, |(path, _)| self.hasher.hash_one(path));
            self.table.shrink_to(self.table.len() * 2, rehash);
        }
    }
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            entries: Table::default(),
            numbers: Numbers::default(),
            turns: BinaryHeap::new(),
            scheduled: 0,
            barriers: HashMap::new(),
            withdrawn: false,
            seq: 0,
            next_number: 0,
            last_barrier: 0,
            told: None,
        }
    }
}

impl Queue {
    fn tick(&self, at: Instant) -> Tick {
        let nanos = at.saturating_duration_since(self.began).as_nanos();
        Tick(NonZeroU64::MIN.saturating_add(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    /// Whether a path has waited for as long as one waits at most.
    pub fn is_overdue(&self, pending: &Pending, settle: Duration) -> bool {
        self.now() >= pending.since.after(settle * MAX_QUIET_PERIODS)
    }

    fn now(&self) -> Tick {
        self.tick(Instant::now())
    }

    /// The moment, as others know it.
    pub fn instant(&self, Tick(tick): Tick) -> Instant {
        self.began + Duration::from_nanos(tick.get() - 1)
    }

    fn number(&self, path: &RepoPath) -> Option<u32> {
        self.numbers.get(path, &self.entries)
    }

    fn entry(&mut self, number: u32) -> Option<&mut Pending> {
        self.entries.get_mut(number.into()).map(|(_, entry)| entry)
    }

    /// An entry, and its number.
    fn find(&mut self, path: &RepoPath) -> Option<(u32, &mut Pending)> {
        let number = self.number(path)?;
        Some((number, self.entry(number)?))
    }

    fn add(&mut self, path: &RepoPath, entry: Pending) -> u32 {
        // One that is still there from four thousand million paths ago keeps its number.
        while self.entries.get(self.next_number.into()).is_some() {
            self.next_number = self.next_number.wrapping_add(1);
        }
        let number = self.next_number;
        self.next_number = number.wrapping_add(1);
        self.entries.insert(number.into(), (path.clone(), entry));
        self.numbers.insert(path, number, &self.entries);
        number
    }

    /// Notes a change of a path; it is due when it has rested for `settle`.
    pub fn touch(&mut self, path: &RepoPath, settle: Duration) {
        self.seq += 1;
        let (now, seq) = (self.now(), self.seq);
        let number = self.number(path).unwrap_or_else(|| {
            let entry = Pending {
                seq,
                since: now,
                due: now,
                rare: None,
                waited_bytes: 0,
                waited_by: None,
                phase: Phase::Waiting,
                scheduled: false,
                forced: false,
                alone: false,
            };
            self.add(path, entry)
        });
        let Some(entry) = self.entry(number) else { return };
        entry.set_apart();
        entry.seq = seq;
        entry.forgive();
        let rested = now.after(settle).min(entry.since.after(settle * MAX_QUIET_PERIODS)).max(now);
        let due = if entry.forced && entry.phase == Phase::Waiting { now } else { rested };
        match entry.phase {
            Phase::Waiting if !entry.is_parked() => self.schedule(number, due),
            _ => entry.due = due,
        }
    }

    fn schedule(&mut self, number: u32, due: Tick) {
        let Some(entry) = self.entry(number) else { return };
        let before = std::mem::replace(&mut entry.due, due);
        let scheduled = std::mem::replace(&mut entry.scheduled, true);
        if scheduled && before == due {
            return;
        }
        self.scheduled += usize::from(!scheduled);
        self.turns.push(Reverse((due, number)));
        // At most as many are out of date as are not: what is changed again and again takes no more room.
        if self.turns.len() / 2 > self.scheduled.max(SPARE_TURNS) {
            let entries = &self.entries;
            self.turns.retain(|Reverse(turn)| is_current(entries, *turn));
        }
    }

    fn unschedule(&mut self, number: u32) {
        if let Some(entry) = self.entry(number) {
            let scheduled = std::mem::replace(&mut entry.scheduled, false);
            count::take(&mut self.scheduled, usize::from(scheduled), "queue.scheduled");
        }
        // After a million that came at once, room for a million is not needed for ever.
        if self.turns.len() < self.turns.capacity() / SPARE_ROOM {
            self.turns.shrink_to(self.turns.len() * 2);
        }
    }

    /// The next turn.
    fn next_turn(&mut self) -> Option<(Tick, u32)> {
        while let Some(Reverse(turn)) = self.turns.peek().copied() {
            if is_current(&self.entries, turn) {
                return Some(turn);
            }
            self.turns.pop();
        }
        None
    }

    pub fn get(&self, path: &RepoPath) -> Option<&Pending> {
        self.entries.get(self.number(path)?.into()).map(|(_, entry)| entry)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&RepoPath, &Pending)> {
        self.entries.iter().map(|(_, (path, entry))| (path, entry))
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the stager has the path in hand.
    pub fn is_active(&self, path: &RepoPath) -> bool {
        self.get(path).is_some_and(|entry| entry.phase != Phase::Waiting)
    }

    /// When the next path is due.
    pub fn next_due(&mut self) -> Option<Instant> {
        self.told = self.next_turn().map(|(due, _)| due);
        self.told.map(|due| self.instant(due))
    }

    /// Whether a path is due before all that whoever asks for [`next_due`](Self::next_due) knows of; says so once.
    pub fn has_news(&mut self) -> bool {
        let due = self.next_turn().map(|(due, _)| due);
        let news = due.is_some_and(|due| self.told.is_none_or(|told| due < told));
        if news {
            self.told = due;
        }
        news
    }

    /// Whether a path that somebody waited for was [removed](Self::remove); says so once. Nobody else tells him.
    pub fn has_withdrawn(&mut self) -> bool {
        std::mem::take(&mut self.withdrawn)
    }

    /// Up to `limit` paths that are due, oldest first; they count as in hand from now on.
    pub fn take_due(&mut self, now: Instant, limit: usize) -> Vec<RepoPath> {
        let now = self.tick(now);
        let mut taken = Vec::new();
        while taken.len() < limit
            && let Some((_, number)) = self.next_turn().filter(|(due, _)| *due <= now)
        {
            taken.extend(self.take(number));
        }
        taken
    }

    /// Up to `limit` of `paths` that are due.
    pub fn take_of<'a>(
        &mut self,
        paths: impl Iterator<Item = &'a RepoPath>,
        now: Instant,
        limit: usize,
    ) -> Vec<RepoPath> {
        let now = self.tick(now);
        let due = paths.filter_map(|path| {
            let number = self.number(path)?;
            let (_, entry) = self.entries.get(number.into())?;
            (entry.scheduled && entry.due <= now).then_some(number)
        });
        let chosen: Vec<u32> = if limit == 0 { Vec::new() } else { due.take(limit).collect() };
        chosen.into_iter().filter_map(|number| self.take(number)).collect()
    }

    fn take(&mut self, number: u32) -> Option<RepoPath> {
        self.unschedule(number);
        let (path, entry) = self.entries.get_mut(number.into())?;
        entry.phase = Phase::Ready;
        Some(path.clone())
    }

    pub fn set_phase(&mut self, path: &RepoPath, phase: Phase) {
        if let Some((_, entry)) = self.find(path) {
            entry.phase = phase;
        }
    }

    /// The state of `seq` has reached the workspace. A path that changed since stays due.
    pub fn done(&mut self, path: &RepoPath, seq: u64) {
        let now = self.now();
        let Some((number, entry)) = self.find(path) else {
            return;
        };
        let reached = entry.take_waits(|wait| wait.seq <= seq);
        let changed = entry.seq != seq && !sync::mistaken("a confirmation counts for what came after it");
        if changed {
            entry.phase = Phase::Waiting;
            entry.forced = entry.is_waited_for();
            entry.alone = false;
        }
        let due = if entry.forced { now } else { entry.due };
        self.count_done(reached);
        if changed {
            self.schedule(number, due);
        } else {
            self.remove(path);
        }
    }

    /// Nothing is owed for the path any more.
    pub fn remove(&mut self, path: &RepoPath) {
        let Some(number) = self.number(path) else { return };
        self.unschedule(number);
        self.numbers.remove(path, number);
        let Some((_, mut entry)) = self.entries.remove(number.into()) else { return };
        self.numbers.shrink(&self.entries);
        let waits = entry.take_waits(|_| true);
        self.withdrawn |= !waits.is_empty();
        self.count_done(waits);
    }

    fn count_done(&mut self, reached: Vec<Wait>) {
        for wait in reached {
            if let Some(barrier) = self.barriers.get_mut(&wait.barrier) {
                count::take(&mut barrier.remaining, 1, "queue.barriers");
                barrier.progress.files_done += 1;
                barrier.progress.bytes_done = barrier.progress.bytes_done.saturating_add(wait.bytes);
            }
        }
    }

    /// Tries the path again after `delay`.
    pub fn retry(&mut self, path: &RepoPath, delay: Duration, error: Option<String>) {
        let due = self.now().after(delay);
        let Some((number, entry)) = self.find(path) else {
            return;
        };
        entry.phase = Phase::Waiting;
        if let Some(error) = error {
            entry.failed(error, None);
        }
        self.schedule(number, due);
    }

    /// A path that somebody waits for cannot be staged before this one: it is due now, unless it waits for somebody to act,
    /// or failed and has its delay. Says whether it was not due yet.
    pub fn hasten(&mut self, path: &RepoPath) -> bool {
        let now = self.now();
        let Some((number, entry)) = self.find(path) else { return false };
        if entry.forced || entry.is_parked() {
            return false;
        }
        entry.forced = true;
        let comes_sooner = entry.phase == Phase::Waiting && entry.attempts() == 0 && entry.due > now;
        if comes_sooner {
            self.schedule(number, now);
        }
        comes_sooner
    }

    /// The next request that carries the path carries nothing else.
    pub fn set_alone(&mut self, path: &RepoPath) {
        if let Some((_, entry)) = self.find(path) {
            entry.alone = true;
        }
    }

    /// Gives the path up until it changes or somebody asks for it; its bytes stay.
    pub fn park(&mut self, path: &RepoPath, error: String, parked: Parked) {
        let Some((number, entry)) = self.find(path) else {
            return;
        };
        entry.phase = Phase::Waiting;
        entry.failed(error, Some(parked));
        entry.forced = false;
        for wait in entry.take_waits(|_| true) {
            if let Some(barrier) = self.barriers.get_mut(&wait.barrier) {
                count::take(&mut barrier.remaining, 1, "queue.barriers");
                barrier.progress.files_failed += 1;
            }
        }
        self.unschedule(number);
    }

    /// A path is parked no longer: it is due now.
    pub fn unpark(&mut self, path: &RepoPath) {
        let now = self.now();
        let Some((number, entry)) = self.find(path).filter(|(_, entry)| entry.is_parked()) else { return };
        if let Some(rare) = &mut entry.rare {
            (rare.attempts, rare.error, rare.parked) = (0, None, None);
        }
        entry.tidy();
        self.schedule(number, now);
    }

    /// Makes every one of these paths that is pending due now, parked ones too, and counts them until they are done or
    /// parked. What waits for somebody who names it counts as failed, unless the `scope` names it. `bytes` tells a path's
    /// content length; inodes from `first_new` on are made after it.
    pub fn barrier(
        &mut self,
        paths: &[RepoPath],
        scope: Scope,
        first_new: Ino,
        bytes: impl Fn(&RepoPath) -> u64,
    ) -> NonZeroU32 {
        // A number that one of four thousand million ago has yet would be passed over.
        let id = loop {
            self.last_barrier = self.last_barrier.wrapping_add(1);
            if let Some(id) = NonZeroU32::new(self.last_barrier).filter(|id| !self.barriers.contains_key(id)) {
                break id;
            }
        };
        let now = self.now();
        let (progress, followed) = (Progress::default(), HashMap::new());
        let mut barrier = Barrier { remaining: 0, progress, scope, first_new, followed };
        // Where nearly all get a new turn, the old ones need not be there beside them.
        let anew = paths.len() >= self.scheduled / 2;
        if anew {
            self.turns = BinaryHeap::new();
        }
        for path in paths {
            let Some((number, entry)) = self.find(path) else {
                continue;
            };
            let named = matches!(&barrier.scope, Scope::Below(named) if named.contains(path));
            if entry.is_held() && !named {
                continue;
            }
            let size = bytes(path);
            barrier.progress.files_total += 1;
            barrier.progress.bytes_total = barrier.progress.bytes_total.saturating_add(size);
            if entry.is_in_conflict() && !(named && entry.parked() == Some(Parked::Conflict)) {
                barrier.progress.files_failed += 1;
                continue;
            }
            barrier.remaining += 1;
            entry.wait(id, size);
            entry.force();
            if entry.phase != Phase::Waiting {
                continue;
            }
            if anew {
                entry.due = now;
                let scheduled = std::mem::replace(&mut entry.scheduled, true);
                self.scheduled += usize::from(!scheduled);
            } else {
                self.schedule(number, now);
            }
        }
        if anew {
            let mut turns = Vec::with_capacity(self.scheduled);
            let scheduled = self.entries.iter().filter(|(_, (_, entry))| entry.scheduled);
            // Numbers were u32 when they were given.
            turns.extend(scheduled.map(|(number, (_, entry))| Reverse((entry.due, number as u32))));
            self.turns = turns.into();
        }
        self.barriers.insert(id, barrier);
        id
    }

    /// Whether any barrier follows what is renamed.
    pub fn has_followers(&self) -> bool {
        self.barriers.values().any(|barrier| barrier.scope != Scope::Fixed)
    }

    /// A file is about to be known by another name: takes out those who follow it from `path`. They wait for nothing
    /// until they [join](Self::join) its new one.
    pub fn leave(&mut self, path: &RepoPath, ino: Ino) -> Vec<Follower> {
        let mut followers = self.take_followers(path, Some(ino));
        for (id, barrier) in &mut self.barriers {
            if ino < barrier.first_new
                && !followers.iter().any(|follower| follower.barrier == *id)
                && matches!(&barrier.scope, Scope::Below(dirs) if path.is_in_any(dirs))
                && barrier.follows(ino)
            {
                followers.push(Follower { barrier: *id, seq: None });
            }
        }
        followers
    }

    /// A file is about to be replaced by another at `path`: takes out those who wait for it. They wait for what comes to
    /// be there, once they [join](Self::join).
    pub fn leave_replaced(&mut self, path: &RepoPath) -> Vec<Follower> {
        self.take_followers(path, None)
    }

    /// Takes out the waits for `path` of barriers that follow; as far as they follow `ino`, if there is one.
    fn take_followers(&mut self, path: &RepoPath, ino: Option<Ino>) -> Vec<Follower> {
        let Some(number) = self.number(path) else { return Vec::new() };
        let Self { entries, barriers, .. } = self;
        let Some((_, entry)) = entries.get_mut(number.into()) else { return Vec::new() };
        let mut ids: Vec<NonZeroU32> = Vec::new();
        for id in entry.waiting() {
            let Some(barrier) = barriers.get_mut(&id) else { continue };
            if !ids.contains(&id) && barrier.scope != Scope::Fixed && ino.is_none_or(|ino| barrier.follows(ino)) {
                ids.push(id);
            }
        }
        let waits = entry.take_waits(|wait| ids.contains(&wait.barrier));
        for wait in &waits {
            if let Some(barrier) = barriers.get_mut(&wait.barrier) {
                barrier.uncount(wait);
            }
        }
        // Where they do not join again there is nothing to wait for.
        self.withdrawn |= !waits.is_empty();
        waits.into_iter().map(|wait| Follower { barrier: wait.barrier, seq: Some(wait.seq) }).collect()
    }

    /// Those who followed a file wait for `path`, of `bytes`, if it is pending: for its state of now, or for any since
    /// the one that they waited for, if it is `replaced` there.
    pub fn join(&mut self, followers: &[Follower], path: &RepoPath, bytes: u64, replaced: bool) {
        let now = self.now();
        let Some(number) = self.number(path).filter(|_| !followers.is_empty()) else { return };
        let Self { entries, barriers, .. } = self;
        let Some((_, entry)) = entries.get_mut(number.into()) else { return };
        for follower in followers {
            let Some(barrier) = barriers.get_mut(&follower.barrier) else { continue };
            if entry.is_held() {
                continue;
            }
            let wants = follower.seq.filter(|_| replaced);
            if entry.waiting().any(|id| id == follower.barrier) {
                // For what was to be there before, such as no file, and that may be on its way.
                if wants.is_none() {
                    entry.wait_for_now(follower.barrier);
                    entry.force();
                }
                continue;
            }
            barrier.progress.files_total += 1;
            barrier.progress.bytes_total = barrier.progress.bytes_total.saturating_add(bytes);
            if entry.is_in_conflict() {
                barrier.progress.files_failed += 1;
                continue;
            }
            barrier.remaining += 1;
            match wants {
                Some(seq) => entry.wait_since(follower.barrier, seq, bytes),
                None => entry.wait(follower.barrier, bytes),
            }
            entry.force();
        }
        if entry.forced && entry.phase == Phase::Waiting {
            self.schedule(number, now);
        }
    }

    /// How far a barrier is, and whether it is reached.
    pub fn barrier_progress(&self, id: NonZeroU32) -> (Progress, bool) {
        self.barriers.get(&id).map_or((Progress::default(), true), |barrier| (barrier.progress, barrier.remaining == 0))
    }

    /// Tells `broken` of every invariant that does not hold, by its name in docs/INVARIANTS.md. Looks at every entry: for
    /// tests.
    pub fn check(&self, broken: &mut impl FnMut(&'static str, String)) {
        let mut waits: HashMap<NonZeroU32, u64> = HashMap::new();
        let turns: BTreeSet<(Tick, u32)> = self.turns.iter().map(|Reverse(turn)| *turn).collect();
        let mut scheduled = 0;
        for (number, (path, entry)) in self.entries.iter() {
            if self.number(path).map(u64::from) != Some(number) {
                broken("queue.numbers", format!("{path} is not found by its path"));
            }
            if entry.scheduled {
                scheduled += 1;
                // Numbers were u32 when they were given.
                if !turns.contains(&(entry.due, number as u32)) {
                    broken("queue.turns", format!("{path} has no turn"));
                }
            }
            if entry.scheduled != (entry.phase == Phase::Waiting && !entry.is_parked()) {
                broken("queue.turns", format!("{path} is {:?} and scheduled: {}", entry.phase, entry.scheduled));
            }
            for barrier in entry.waiting() {
                *waits.entry(barrier).or_default() += 1;
            }
            if entry.is_parked() && entry.is_waited_for() {
                broken("queue.parked", format!("{path} waits for somebody to act, and a barrier for it"));
            }
        }
        if scheduled != self.scheduled {
            broken("queue.scheduled", format!("{scheduled} are scheduled, and {} are counted", self.scheduled));
        }
        if self.numbers.table.len() != self.entries.len() {
            let counts = (self.numbers.table.len(), self.entries.len());
            broken("queue.numbers", format!("numbers and entries: {counts:?}"));
        }
        for (id, barrier) in &self.barriers {
            let found = waits.get(id).copied().unwrap_or_default();
            if found != barrier.remaining {
                broken(
                    "queue.barriers",
                    format!("{found} paths are waited for, and {} are counted", barrier.remaining),
                );
            }
            let Progress { files_total, files_done, files_failed, .. } = barrier.progress;
            if files_total != files_done + files_failed + barrier.remaining {
                let progress = barrier.progress;
                broken("queue.progress", format!("{} remain of {progress:?}", barrier.remaining));
            }
        }
        for id in waits.keys().filter(|id| !self.barriers.contains_key(id)) {
            broken("queue.barriers", format!("a path waits for barrier {id}, which is gone"));
        }
    }

    /// Nobody waits for this barrier any more.
    pub fn drop_barrier(&mut self, id: NonZeroU32) {
        self.give_up(id);
        self.barriers.remove(&id);
    }

    /// A barrier waits for nothing more: it is reached.
    pub fn give_up(&mut self, id: NonZeroU32) {
        let Self { entries, barriers, .. } = self;
        // One that is reached is in no entry any more: it is not looked for in all that is pending.
        let Some(barrier) = barriers.get_mut(&id).filter(|barrier| barrier.remaining > 0) else { return };
        for (_, entry) in entries.values_mut() {
            for wait in entry.take_waits(|wait| wait.barrier == id) {
                barrier.uncount(&wait);
            }
        }
    }
}

/// Whether a turn is its path's own.
fn is_current(entries: &Entries, (due, number): (Tick, u32)) -> bool {
    entries.get(number.into()).is_some_and(|(_, entry)| entry.scheduled && entry.due == due)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, prop_assert_eq, proptest};

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
        let barrier = queue.barrier(&[path("a"), path("not pending")], Scope::Waited, Ino(1), |_| 7);
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
        assert!(size_of::<Option<(RepoPath, Pending)>>() <= 56);
        let mut queue = Queue::default();
        queue.touch(&path("a"), NOW);
        let barrier = queue.barrier(&[path("a")], Scope::Waited, Ino(1), |_| 0);
        assert!(queue.get(&path("a")).unwrap().rare.is_none());
        queue.retry(&path("a"), NOW, Some("refused".into()));
        let entry = queue.get(&path("a")).unwrap();
        assert_eq!((entry.attempts(), entry.error()), (1, Some("refused")));
        queue.touch(&path("a"), NOW);
        let entry = queue.get(&path("a")).unwrap();
        assert_eq!((entry.attempts(), entry.error(), entry.is_waited_for()), (0, None, true));
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
        let barrier = queue.barrier(&[path("a")], Scope::Waited, Ino(1), |_| 0);
        assert_eq!(take(&mut queue).len(), 1);
        queue.touch(&path("a"), NOW);
        assert!(take(&mut queue).is_empty(), "in hand");
        queue.done(&path("a"), seq);
        assert!(queue.barrier_progress(barrier).1);
        assert_eq!(take(&mut queue), [path("a")]);
    }

    #[test]
    fn a_conflict_is_taken_up_again_by_nobody_but_who_names_it() {
        let mut queue = Queue::default();
        queue.touch(&path("d/a"), NOW);
        queue.park(&path("d/a"), "the server has another".into(), Parked::Conflict);
        queue.touch(&path("d/a"), NOW);
        let below = |dir: &str| Scope::Below(HashSet::from([RepoPath::parse(dir).unwrap()]));
        for scope in [Scope::Fixed, Scope::Waited, below(""), below("d")] {
            let barrier = queue.barrier(&[path("d/a")], scope, Ino(1), |_| 7);
            let (progress, reached) = queue.barrier_progress(barrier);
            assert!(reached && (progress.files_total, progress.files_failed) == (1, 1));
        }
        queue.touch(&path("old"), NOW);
        let following = queue.barrier(&[path("old")], Scope::Waited, Ino(9), |_| 7);
        let followers = queue.leave(&path("old"), Ino(1));
        queue.join(&followers, &path("d/a"), 7, false);
        assert_eq!(queue.barrier_progress(following).0.files_failed, 1);
        queue.remove(&path("old"));
        assert!(take(&mut queue).is_empty() && queue.get(&path("d/a")).unwrap().error().is_some());
        let barrier = queue.barrier(&[path("d/a")], below("d/a"), Ino(1), |_| 7);
        assert!(!queue.barrier_progress(barrier).1);
        assert_eq!(take(&mut queue), [path("d/a")]);
    }

    #[test]
    fn a_parked_path_ends_the_wait_and_a_change_takes_it_up_again() {
        let mut queue = Queue::default();
        queue.touch(&path("a"), NOW);
        let barrier = queue.barrier(&[path("a")], Scope::Waited, Ino(1), |_| 0);
        take(&mut queue);
        queue.park(&path("a"), "refused".into(), Parked::Person);
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

    #[test]
    fn who_waits_for_a_file_waits_for_it_under_its_new_name() {
        let mut queue = Queue::default();
        queue.touch(&path("old"), NOW);
        let following = queue.barrier(&[path("old")], Scope::Waited, Ino(9), |_| 7);
        let fixed = queue.barrier(&[path("old")], Scope::Fixed, Ino(9), |_| 7);
        let seq = queue.get(&path("old")).unwrap().seq;
        let followers = queue.leave(&path("old"), Ino(5));
        queue.touch(&path("new"), Duration::from_secs(3600));
        queue.join(&followers, &path("new"), 7, false);
        queue.done(&path("old"), seq);
        assert!(queue.barrier_progress(fixed).1, "it is staged as it was");
        let (progress, reached) = queue.barrier_progress(following);
        assert!(!reached && progress.files_total == 1 && progress.bytes_total == 7);
        assert_eq!(take(&mut queue), [path("new")], "it is due now");
        queue.done(&path("new"), queue.get(&path("new")).unwrap().seq);
        assert!(queue.barrier_progress(following).1);
    }

    #[test]
    fn who_waits_for_a_file_that_is_replaced_waits_for_any_of_its_newer_content() {
        let mut queue = Queue::default();
        queue.touch(&path("a"), NOW);
        let barrier = queue.barrier(&[path("a")], Scope::Waited, Ino(9), |_| 1);
        let followers = queue.leave_replaced(&path("a"));
        queue.remove(&path("a"));
        queue.touch(&path("a"), NOW);
        queue.join(&followers, &path("a"), 2, true);
        let seq = queue.get(&path("a")).unwrap().seq;
        queue.touch(&path("a"), NOW);
        assert!(!queue.barrier_progress(barrier).1);
        queue.done(&path("a"), seq);
        assert!(queue.barrier_progress(barrier).1, "also while it is replaced again and again");
    }

    #[test]
    fn a_file_that_is_renamed_without_pause_is_followed_for_a_while() {
        let mut queue = Queue::default();
        let staged_before = queue.barrier(&[], Scope::Below(HashSet::from([RepoPath::root()])), Ino(9), |_| 1);
        let name = |nth: u32| path(&format!("name {nth}"));
        assert!(queue.leave(&name(0), Ino(9)).is_empty(), "made after the barrier");
        for nth in 0..2 * NAMES_FOLLOWED {
            let followers = queue.leave(&name(nth), Ino(5));
            queue.remove(&name(nth));
            queue.touch(&name(nth + 1), NOW);
            queue.join(&followers, &name(nth + 1), 1, false);
            assert_eq!(queue.barrier_progress(staged_before).1, nth >= NAMES_FOLLOWED, "{nth}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_done_each_path_that_waits_has_its_turn(
            acts in proptest::collection::vec((0u8..7, 0usize..6, 0u64..3), 1..300),
        ) {
            let paths = ["a", "b", "c", "d", "e", "f"].map(path);
            let mut queue = Queue::default();
            let mut barriers = Vec::new();
            for (act, at, wait) in acts {
                let (path, wait) = (&paths[at], Duration::from_secs(wait));
                let seq = queue.get(path).map_or(0, |entry| entry.seq);
                let act = if queue.is_active(path) { act } else { act % 2 };
                match act {
                    0 => queue.touch(path, wait),
                    1 => drop(queue.take_due(Instant::now() + wait, at + 1)),
                    2 => queue.done(path, seq - wait.as_secs().min(seq)),
                    3 => queue.retry(path, wait, (at > 2).then(|| "refused".into())),
                    4 => {
                        let parked = if wait.as_secs() < 2 { Parked::Person } else { Parked::Conflict };
                        queue.park(path, "refused".into(), parked);
                    }
                    5 if at % 2 == 0 => {
                        let scope = if wait.is_zero() { Scope::Fixed } else { Scope::Below(HashSet::from([paths[at].clone()])) };
                        barriers.push((queue.barrier(&paths[..at], scope, Ino(3), |_| 1), at));
                    }
                    5 => {
                        let followers = queue.leave(path, Ino(at as u64));
                        queue.join(&followers, &paths[(at + 1) % paths.len()], 1, false);
                    }
                    6 if at % 2 == 0 => {
                        let followers = queue.leave_replaced(path);
                        queue.join(&followers, path, 1, true);
                    }
                    _ => queue.remove(path),
                }
                let waiting = |entry: &Pending| entry.phase == Phase::Waiting && !entry.is_parked();
                prop_assert!(queue.iter().all(|(_, entry)| entry.scheduled == waiting(entry)));
                let due = queue.iter().filter(|(_, entry)| entry.scheduled).map(|(_, entry)| entry.due).min();
                prop_assert_eq!(queue.next_due(), due.map(|due| queue.instant(due)));
                prop_assert_eq!(queue.scheduled, queue.iter().filter(|(_, entry)| entry.scheduled).count());
                prop_assert!(queue.turns.len() <= 2 * queue.scheduled.max(SPARE_TURNS) + 2);
                for (path, entry) in queue.iter() {
                    prop_assert_eq!(queue.get(path).map(|found| found.seq), Some(entry.seq));
                }
            }
            paths.iter().for_each(|path| queue.remove(path));
            prop_assert!(queue.len() == 0 && queue.next_due().is_none());
            for (barrier, _) in barriers {
                prop_assert!(queue.barrier_progress(barrier).1, "nothing is left to wait for");
            }
        }
    }

    #[test]
    fn a_count_or_a_turn_that_is_wrong_is_told() {
        let broken = |queue: &Queue| {
            let mut found = Vec::new();
            queue.check(&mut |name, _| found.push(name));
            found
        };
        let path = RepoPath::parse("a").unwrap();
        let fill = || {
            let mut queue = Queue::default();
            queue.touch(&path, Duration::from_secs(1));
            let id = queue.barrier(std::slice::from_ref(&path), Scope::Fixed, Ino(9), |_| 1);
            assert_eq!(broken(&queue), [""; 0]);
            (queue, id)
        };
        let (mut queue, _) = fill();
        queue.scheduled += 1;
        assert_eq!(broken(&queue), ["queue.scheduled"]);
        let (mut queue, _) = fill();
        queue.turns.clear();
        assert_eq!(broken(&queue), ["queue.turns"]);
        let (mut queue, id) = fill();
        queue.give_up(id);
        assert_eq!(broken(&queue), [""; 0]);
        assert_eq!(queue.barrier_progress(id), (Progress::default(), true));
        let (mut queue, id) = fill();
        queue.barriers.get_mut(&id).unwrap().remaining += 1;
        assert_eq!(broken(&queue), ["queue.barriers", "queue.progress"]);
        let (mut queue, id) = fill();
        queue.barriers.remove(&id);
        assert_eq!(broken(&queue), ["queue.barriers"]);
    }
}
