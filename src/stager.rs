//! The write-back queue's engine: takes due paths, hashes them, asks the server for their content, sends what it
//! lacks, and writes down what it confirmed.
//!
//! One task owns the plan; hashing and requests run beside it and report back. It keeps no state that matters: what
//! is due, what is wanted and what is confirmed live in [`Fs`] and on its journal, so it may be dropped at any moment.

mod pace;
mod plan;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};

use crate::activity::Activity;
use crate::count;
use crate::fs::{Capture, Frees, Fs, FsError, Held, Phase, Want, quarter_of_descriptors};
use crate::hash::ContentHash;
use crate::log::{Said, Trouble};
use crate::namespace::Ino;
use crate::path::RepoPath;
use crate::store::journal::PathUpload;
use crate::workspace::{ByHash, Outcome, Over, Put, Upload, UploadProgress, Workspace, WorkspaceError};
use crate::writeback::index::{Staged, Step};
use pace::Pace;
use plan::{Costs, Lane, lane};

/// Captures in hand at once: enough to fill every lane, and little memory. Each is an open file, so where few may be
/// open it is a quarter of those: writers and connections need some as well.
const IN_HAND: usize = 512;
const LEAST_IN_HAND: usize = 16;
/// Hashing tasks at once: each reads the page cache at several GB/s, so two keep two cores busy. And the files and bytes
/// of one: handing a small file to another thread costs more than hashing it.
const HASHING: usize = 2;
const HASHED_FILES: usize = 32;
const HASHED_BYTES: u64 = 1 << 20;
/// Requests at once that carry many small files, and the files and bytes of one. Measured on a server on the same two
/// cores, files of 16 KiB: 100 a request and 4 requests were the fastest (1,288 to 1,371 files/s; one file a request
/// 440/s, 600 a request 956/s).
const SMALL_REQUESTS: usize = 4;
const SMALL_FILES: usize = 100;
const SMALL_BYTES: u64 = 8 << 20;
/// Large files on their way at once; the backend decides how many parts of each are in flight.
const LARGE_REQUESTS: usize = 4;
/// Files of the middle size on their way at once: a question and at most one part each.
const MIDDLE_REQUESTS: usize = 8;
/// Paths in one request that stages by hash, removes or unstages.
const LIST_PATHS: usize = 1000;
/// Requests of that kind at once.
const LIST_REQUESTS: usize = 2;
/// The longest pause where the local disk is what fails: trying costs next to nothing, and its end is not announced.
const LOCAL_PAUSE: Duration = Duration::from_secs(2);
/// The longest pause that a server can ask for: its clock or its configuration may be off.
const LONGEST_ASKED: Duration = Duration::from_secs(10 * 60);
/// Delays between attempts: doubled from the first to the last, a random half of it taken off.
#[derive(Debug, Clone, Copy)]
pub struct Delays {
    /// After the first failure, and for what waits for another path.
    pub first: Duration,
    /// After many.
    pub last: Duration,
}

/// How many of the longest pauses are long: 2 minutes.
const LONG: u32 = 4;
/// How soon a path is looked at again that waits for one which has just become due.
const NEXT_TURN: Duration = Duration::from_millis(20);

impl Default for Delays {
    fn default() -> Self {
        Self { first: Duration::from_millis(200), last: Duration::from_secs(30) }
    }
}

impl Delays {
    /// For how long a server has to refuse a path in the same words before it is believed: proxies are configured, servers
    /// replaced and portals passed meanwhile, most often.
    fn long(&self) -> Duration {
        self.last * LONG
    }

    /// The pause after this many failures, from 0: a ceiling that doubles up to the last delay, less a random half; or
    /// what the server asked for, where that is longer.
    pub fn after(&self, failures: u32, asked: Option<Duration>) -> Duration {
        let ceiling = self.first.saturating_mul(1 << failures.min(16)).min(self.last);
        let jittered = ceiling.mul_f64(0.5 + fastrand::f64() / 2.0);
        asked.map_or(jittered, |asked| asked.min(LONGEST_ASKED).max(jittered))
    }
}

/// Why nothing goes on.
#[derive(Debug)]
struct Stall {
    /// In words, with the request that told.
    shown: String,
    /// The same without it.
    reason: String,
    /// In one word.
    kind: &'static str,
}

impl From<&WorkspaceError> for Stall {
    fn from(error: &WorkspaceError) -> Self {
        Self { shown: error.to_string(), reason: error.reason(), kind: error.kind() }
    }
}

/// What the engine tells a status.
#[derive(Debug, Default)]
pub struct Meter {
    activity: Arc<Activity>,
    sent_bytes: AtomicU64,
    deduplicated_bytes: AtomicU64,
    stalled: Mutex<Option<Stall>>,
    trouble: Trouble,
    pace: Mutex<Pace>,
}

impl Meter {
    /// One that tells `activity` what goes on.
    pub fn new(activity: Arc<Activity>) -> Self {
        Self { activity, ..Self::default() }
    }

    /// Why nothing goes on, in one word, if nothing does.
    pub fn stalled_reason(&self) -> Option<&'static str> {
        let stalled = self.stalled.lock().unwrap_or_else(PoisonError::into_inner);
        stalled.as_ref().map(|stall| stall.kind)
    }

    /// Content bytes sent since the start.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    /// Content bytes staged without being sent.
    pub fn deduplicated_bytes(&self) -> u64 {
        self.deduplicated_bytes.load(Ordering::Relaxed)
    }

    /// Why nothing goes on, if nothing does.
    pub fn stalled(&self) -> Option<String> {
        let stalled = self.stalled.lock().unwrap_or_else(PoisonError::into_inner);
        stalled.as_ref().map(|stall| stall.shown.clone())
    }

    /// Nothing goes on before the server was found.
    pub fn wait_for_server(&self, why: &WorkspaceError, delay: Duration) {
        self.stall(why.into(), delay);
    }

    /// It was found.
    pub fn found_server(&self) {
        self.goes_on();
    }

    /// Nothing goes on for a while. What was shown stays as long as the reason is the same.
    fn stall(&self, why: Stall, delay: Duration) {
        let shown = &why.shown;
        match self.trouble.met(&why.reason) {
            Some(Said::Begins) => tracing::warn!(why = shown, "staging pauses; it is tried again and again"),
            Some(Said::GoesOn(so_long)) => tracing::warn!(why = shown, ?so_long, "staging still pauses"),
            Some(_) => tracing::warn!(why = shown, "staging pauses for another reason"),
            None => tracing::debug!(why = shown, ?delay, "staging pauses again"),
        }
        let mut stalled = self.stalled.lock().unwrap_or_else(PoisonError::into_inner);
        if stalled.as_ref().is_none_or(|before| before.reason != why.reason) {
            self.activity.stalled(why.kind, &why.shown);
            *stalled = Some(why);
        }
    }

    fn goes_on(&self) {
        let stalled = self.stalled.lock().unwrap_or_else(PoisonError::into_inner).take();
        if stalled.is_some() {
            self.activity.resumed();
        }
        if let Some(Said::Ends(after)) = self.trouble.over() {
            tracing::info!(?after, "staging goes on");
        }
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seconds until `owed_bytes`, which wait to be sent, are; `None` when no rate is known to tell that by.
    pub fn eta_secs(&self, owed_bytes: u64) -> Option<u64> {
        self.pace().left(owed_bytes, Instant::now()).map(|left| left.as_secs_f64().ceil() as u64)
    }
}

/// Something that ran beside the plan has ended.
enum Done {
    Hashed(Vec<(Capture, std::io::Result<(ContentHash, u64)>)>),
    Fetched(Box<Capture>, Result<Arc<std::fs::File>, FsError>),
    Listed(Box<Capture>, Result<(), FsError>),
    Rescued(Ino, Result<(), FsError>),
    Followed(Result<(), FsError>),
    /// An item that was refused for long, and whether the server answers what else it is asked.
    Judged(Box<Item>, String, bool),
    Unrecorded {
        kind: Kind,
        items: Vec<Item>,
        dirs: Dirs,
        error: FsError,
    },
    Request {
        kind: Kind,
        items: Vec<Item>,
        dirs: Dirs,
        /// It, or one that went at the same time, was sent at least once and never answered.
        unanswered: bool,
        /// How many of its kind went at the same time, with it.
        at_once: usize,
        took: Duration,
        result: Result<Vec<Outcome>, WorkspaceError>,
    },
}

/// What a server says of a path again and again.
struct Refusal {
    reason: String,
    since: Instant,
}

/// The directories that a request removes whole.
#[derive(Debug, Default)]
struct Dirs {
    all: BTreeSet<RepoPath>,
    /// Those that are watched only as long as it is under way.
    threatened: Vec<RepoPath>,
}

/// What a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Unstage,
    Remove,
    Ask,
    Small,
    Middle,
    Large,
}

impl Kind {
    const ALL: [Self; 6] = [Self::Unstage, Self::Remove, Self::Ask, Self::Small, Self::Middle, Self::Large];

    /// How many may go at once.
    fn limit(self) -> usize {
        match self {
            Self::Small => SMALL_REQUESTS,
            Self::Middle => MIDDLE_REQUESTS,
            Self::Large => LARGE_REQUESTS,
            Self::Unstage | Self::Remove => 1,
            Self::Ask => LIST_REQUESTS,
        }
    }

    /// Whether this many items and bytes are all that a request takes.
    fn is_full(self, items: usize, bytes: u64) -> bool {
        match self {
            Self::Small => items >= SMALL_FILES || bytes >= SMALL_BYTES,
            Self::Middle | Self::Large => items >= 1,
            Self::Unstage | Self::Remove | Self::Ask => items >= LIST_PATHS,
        }
    }
}

/// One of each kind.
#[derive(Debug, Default)]
struct ByKind<T>([T; Kind::ALL.len()]);

impl<T> std::ops::Index<Kind> for ByKind<T> {
    type Output = T;

    fn index(&self, kind: Kind) -> &T {
        &self.0[kind as usize]
    }
}

impl<T> std::ops::IndexMut<Kind> for ByKind<T> {
    fn index_mut(&mut self, kind: Kind) -> &mut T {
        &mut self.0[kind as usize]
    }
}

/// A path in hand, and the step decided for it.
#[derive(Debug)]
struct Item {
    capture: Capture,
    step: Step,
    /// The server was asked by hash and does not have it.
    asked: bool,
    /// It is small, and asked for before it is sent.
    worth_asking: bool,
    /// Downloaded bytes of content that the server was thought to have.
    fetched: Option<Arc<std::fs::File>>,
    /// Its content is marked as being sent.
    marked: bool,
}

/// Whether a path's turn has come.
enum Turn {
    Now,
    Later,
    /// Not as long as this is so.
    Kept(Kept),
    /// Not before somebody has acted about this path, which is in its way.
    KeptOut(RepoPath),
}

/// Why a path keeps what it has.
struct Kept {
    why: String,
    /// Nobody need do anything about it.
    passes: bool,
}

/// The engine of one mount.
pub struct Stager {
    fs: Arc<Fs>,
    workspace: Arc<dyn Workspace>,
    meter: Arc<Meter>,
    by_hash: ByHash,
    running: FuturesUnordered<BoxFuture<'static, Done>>,
    /// Requests under way.
    requests: ByKind<usize>,
    costs: Costs,
    hashing: usize,
    in_hand: usize,
    most_in_hand: usize,
    to_hash: VecDeque<Capture>,
    /// What waits for a request, in order.
    ready: ByKind<VecDeque<Item>>,
    /// Content on its way: the same content again waits, and is then staged by hash.
    sending: HashSet<ContentHash>,
    /// Directories that the removals under way take along.
    removing: Vec<BTreeSet<RepoPath>>,
    /// Files whose bytes are being fetched before the server loses them, and those where that is in vain.
    rescuing: HashSet<Ino>,
    /// Whether the tree is about to follow a workspace that was made again.
    following: bool,
    lost: HashSet<Ino>,
    /// Why the last attempt at a file's bytes failed, until somebody is told.
    unrescued: HashMap<Ino, Kept>,
    /// What was refused, and may yet pass.
    refusals: HashMap<RepoPath, Refusal>,
    /// When to look at the queue again, whatever was due when it was looked at.
    look_again_at: Option<Instant>,
    /// Nothing is sent before this, after a request that told nothing.
    quiet_until: Option<Instant>,
    failures: u32,
    delays: Delays,
}

impl Stager {
    /// An engine that has not started.
    pub fn new(fs: Arc<Fs>, meter: Arc<Meter>, delays: Delays) -> Self {
        let workspace = fs.workspace().clone();
        let by_hash = workspace.info().by_hash;
        Self {
            fs,
            workspace,
            meter,
            by_hash,
            running: FuturesUnordered::new(),
            requests: ByKind::default(),
            costs: Costs::default(),
            hashing: 0,
            in_hand: 0,
            most_in_hand: most_in_hand(),
            to_hash: VecDeque::new(),
            ready: ByKind::default(),
            sending: HashSet::new(),
            removing: Vec::new(),
            rescuing: HashSet::new(),
            following: false,
            lost: HashSet::new(),
            unrescued: HashMap::new(),
            refusals: HashMap::new(),
            look_again_at: None,
            quiet_until: None,
            failures: 0,
            delays,
        }
    }

    /// Stages for ever; ends only by being dropped.
    pub async fn run(mut self) {
        let fs = self.fs.clone();
        loop {
            let woken = fs.wake.notified();
            self.look_again_at = None;
            let next_due = self.take();
            self.start();
            let next_due = next_due.into_iter().chain(self.look_again_at).min();
            let sending = [Kind::Small, Kind::Middle, Kind::Large].iter().any(|kind| self.requests[*kind] > 0);
            self.meter.pace().set_busy(sending, Instant::now());
            let quiet = self.quiet_until.filter(|_| !self.ready.0.iter().all(VecDeque::is_empty));
            let timer = [next_due.filter(|_| self.in_hand < self.most_in_hand), quiet].into_iter().flatten().min();
            let timer = async {
                match timer {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(done) = self.running.next(), if !self.running.is_empty() => {
                    self.finish(done);
                    // What has ended beside it, before all that waits is looked through.
                    while let Some(Some(done)) = self.running.next().now_or_never() {
                        self.finish(done);
                    }
                }
                () = woken => {}
                () = timer => {}
            }
        }
    }

    /// Takes due paths in hand; returns when the next will be due.
    fn take(&mut self) -> Option<Instant> {
        let (captures, next) = self.fs.due(self.most_in_hand.saturating_sub(self.in_hand));
        for capture in captures {
            self.in_hand += 1;
            match &capture.want {
                Want::Sealed { hash: None, .. } => {
                    self.fs.set_phase(&capture.path, Phase::Hashing);
                    self.to_hash.push_back(capture);
                }
                _ => self.decide(capture, None, false),
            }
        }
        next
    }

    /// Decides the step for a path whose wanted content is known.
    fn decide(&mut self, capture: Capture, fetched: Option<Arc<std::fs::File>>, asked: bool) {
        let wanted = match &capture.want {
            Want::AsBase => capture.account.base,
            want => want.object(),
        };
        // What the base has needs no staging: nothing is left out on the word of an old listing.
        let content = capture.want.object();
        let by_base = content.is_some() && capture.account.is_base(content);
        let unknown_base = by_base && !self.fs.knows_base_of(&capture.path);
        // Nor is a directory left empty, of which nobody knows that the removed file was its last.
        let is_removal = wanted.is_none() && capture.account.base.is_some();
        if unknown_base || is_removal && !self.fs.knows_above(&capture.path) {
            let fs = self.fs.clone();
            let list = async move {
                let path = &capture.path;
                let listed = if is_removal { fs.learn_above(path).await } else { fs.learn_base_of(path).await };
                Done::Listed(Box::new(capture), listed)
            };
            return self.running.push(list.boxed());
        }
        let mut step = capture.account.step(wanted);
        // Nothing of it is there: but it may have been what kept a directory in the commit.
        if step == Step::Nothing
            && wanted.is_none()
            && !self.fs.emptied_dirs(&HashSet::from([&capture.path])).is_empty()
        {
            step = if capture.account.base.is_some() { Step::Remove } else { Step::Unstage };
        }
        self.fs.set_phase(&capture.path, Phase::Ready);
        let worth_asking = match step {
            Step::Put(object) if self.by_hash == ByHash::Single => self.costs.worth_asking(object.size),
            _ => false,
        };
        let item = Item { capture, step, asked, worth_asking, fetched, marked: false };
        if step == Step::Nothing {
            self.confirm(vec![item]);
        } else {
            self.queue(item);
        }
    }

    fn queue(&mut self, item: Item) {
        let kind = self.kind(&item);
        self.ready[kind].push_back(item);
    }

    /// Lets go of what waits here and what writers wait for: its turn may be far off, or the server away.
    fn give_back(&mut self) {
        let (mut back, left): (VecDeque<Capture>, _) =
            std::mem::take(&mut self.to_hash).into_iter().partition(Capture::is_wanted_back);
        self.to_hash = left;
        for waiting in &mut self.ready.0 {
            let (wanted, left): (VecDeque<Item>, _) =
                std::mem::take(waiting).into_iter().partition(|item| item.capture.is_wanted_back());
            *waiting = left;
            back.extend(wanted.into_iter().map(|item| item.capture));
        }
        for capture in back {
            self.put_back(&capture.path);
        }
    }

    /// Starts all hashing and requests that may run now.
    fn start(&mut self) {
        if self.fs.some_are_wanted_back() {
            self.give_back();
        }
        while self.hashing < HASHING && !self.to_hash.is_empty() {
            let (mut captures, mut bytes) = (Vec::new(), 0u64);
            while let Some(next) = self.to_hash.front() {
                bytes = bytes.saturating_add(next.want.size());
                // A long one goes alone: whoever writes to another would wait for it.
                if !captures.is_empty() && (captures.len() == HASHED_FILES || bytes > HASHED_BYTES) {
                    break;
                }
                captures.extend(self.to_hash.pop_front());
            }
            self.hashing += 1;
            self.running.push(hash(captures, self.fs.hash_kind()).boxed());
        }
        if self.quiet_until.is_some_and(|until| Instant::now() < until) {
            return;
        }
        self.quiet_until = None;
        if self.fs.is_elsewhere() {
            return self.follow();
        }
        let mut kinds = Kind::ALL;
        // Of the two that exclude each other, the one that waits for longer.
        let waits_since = |kind| self.ready[kind].front().map_or(u64::MAX, |item: &Item| item.capture.seq);
        if waits_since(Kind::Remove) < waits_since(Kind::Unstage) {
            kinds.swap(Kind::Unstage as usize, Kind::Remove as usize);
        }
        for kind in kinds {
            self.start_requests(kind);
        }
    }

    /// The workspace stands elsewhere: the tree follows before anything is sent.
    fn follow(&mut self) {
        let delay = self.delays.after(self.failures, None);
        if !self.following {
            self.following = true;
            let fs = self.fs.clone();
            let follow = async move {
                let followed = fs.follow_workspace().await;
                if followed.is_err() {
                    tokio::time::sleep(delay).await;
                }
                Done::Followed(followed)
            };
            self.running.push(follow.boxed());
        }
        let items: Vec<Item> = self.ready.0.iter_mut().flat_map(|waiting| waiting.drain(..)).collect();
        for item in items {
            self.drop_item(&item);
            self.fs.put_back(&item.capture.path, delay);
        }
    }

    /// Whether one more request of a kind may go.
    fn has_room(&self, kind: Kind) -> bool {
        // Removals go one request after the other: the last one to empty a directory must see that it is.
        let other_goes = match kind {
            Kind::Unstage => self.requests[Kind::Remove] > 0,
            Kind::Remove => self.requests[Kind::Unstage] > 0,
            _ => false,
        };
        !other_goes && self.requests[kind] < kind.limit()
    }

    /// Sends what waits for a request of a kind, as far as there is room.
    fn start_requests(&mut self, kind: Kind) {
        let (mut batch, mut bytes) = (Vec::<Item>::new(), 0u64);
        let mut later = Vec::new();
        while self.has_room(kind)
            && let Some(mut item) = self.ready[kind].pop_front()
        {
            if item.capture.alone && !batch.is_empty() {
                self.ready[kind].push_front(item);
                self.send(kind, std::mem::take(&mut batch));
                bytes = 0;
                continue;
            }
            if let Step::Put(object) = item.step
                && self.sending.contains(&object.hash)
            {
                // When its turn comes the server has the content, most likely.
                item.asked = false;
                later.push(item);
                continue;
            }
            match self.turn(&item) {
                Turn::Now => {}
                // Not kept in hand: what it waits for must find room there.
                Turn::Later => {
                    self.wait_its_turn(&item.capture.path);
                    continue;
                }
                Turn::KeptOut(other) => {
                    count::take(&mut self.in_hand, 1, "staging.in-hand");
                    self.fs.step_kept_out(&item.capture, &other);
                    // Where it has changed since, it has its turn again, of which nobody was told.
                    self.look_again(Instant::now());
                    continue;
                }
                Turn::Kept(Kept { why, passes }) => {
                    count::take(&mut self.in_hand, 1, "staging.in-hand");
                    let delay = passes.then(|| self.delays.after(self.fs.attempts(&item.capture.path), None));
                    self.step_failed(&item.capture, &why, delay);
                    self.look_again(Instant::now());
                    continue;
                }
            }
            if let Step::Put(object) = item.step {
                bytes = bytes.saturating_add(object.size);
                if kind != Kind::Ask {
                    self.sending.insert(object.hash);
                    item.marked = true;
                }
            }
            let alone = item.capture.alone;
            batch.push(item);
            if alone || kind.is_full(batch.len(), bytes) {
                self.send(kind, std::mem::take(&mut batch));
                bytes = 0;
            }
        }
        if !batch.is_empty() {
            self.send(kind, batch);
        }
        // In front again, unless it is asked for now.
        for item in later.into_iter().rev() {
            let kind = self.kind(&item);
            self.ready[kind].push_front(item);
        }
    }

    fn kind(&self, item: &Item) -> Kind {
        match item.step {
            Step::Nothing | Step::Unstage => Kind::Unstage,
            Step::Remove => Kind::Remove,
            Step::Put(object) => {
                let here = item.fetched.is_some() || matches!(item.capture.want, Want::Sealed { .. });
                match lane(self.by_hash, object.size, here, item.asked, item.worth_asking) {
                    Lane::Ask => Kind::Ask,
                    Lane::Small => Kind::Small,
                    Lane::Middle => Kind::Middle,
                    Lane::Large => Kind::Large,
                }
            }
        }
    }

    /// Whether the path's turn has come: a server takes a file and a file below it alike, and keeps one of them; and
    /// what only the server has must not go before it is staged under its new name.
    fn turn(&mut self, item: &Item) -> Turn {
        let path = &item.capture.path;
        if matches!(item.step, Step::Remove | Step::Unstage)
            && let Some(undecided) = self.fs.conflict_above(path)
        {
            return Turn::KeptOut(undecided);
        }
        match self.fs.frees(path, item.step) {
            Frees::Now => {}
            Frees::Later => return Turn::Later,
            Frees::Once(stranded) => {
                let stranded: Vec<Ino> = stranded.into_iter().filter(|ino| !self.lost.contains(ino)).collect();
                if let Some(Kept { why, passes }) = stranded.iter().find_map(|ino| self.unrescued.remove(ino)) {
                    let why = format!("a file that was renamed away from here has its bytes here yet: {why}");
                    return Turn::Kept(Kept { why, passes });
                }
                for ino in &stranded {
                    if self.rescuing.insert(*ino) {
                        let (fs, ino) = (self.fs.clone(), *ino);
                        self.running.push(async move { Done::Rescued(ino, fs.rescue(ino).await) }.boxed());
                    }
                }
                if !stranded.is_empty() {
                    return Turn::Later;
                }
            }
        }
        let is_clear = || self.fs.clear_for_put(path) && !self.removing.iter().flatten().any(|dir| path.is_in(dir));
        match item.step {
            Step::Put(_) if !is_clear() => self.fs.kept_out_by(path).map_or(Turn::Later, Turn::KeptOut),
            _ => Turn::Now,
        }
    }

    fn send(&mut self, kind: Kind, items: Vec<Item>) {
        let paths = || items.iter().map(|item| &item.capture.path);
        let mut dirs = Dirs::default();
        if matches!(kind, Kind::Remove | Kind::Unstage) {
            dirs.all = self.fs.emptied_dirs(&paths().collect());
        }
        match self.fs.intend(paths(), dirs.all.iter()) {
            Ok(threatened) => dirs.threatened = threatened,
            Err(error) => return self.unrecorded(items, &error),
        }
        for item in &items {
            self.fs.set_phase(&item.capture.path, Phase::Sending);
        }
        self.requests[kind] += 1;
        if matches!(kind, Kind::Remove | Kind::Unstage) {
            self.removing.push(dirs.all.clone());
        }
        let (fs, workspace, meter) = (self.fs.clone(), self.workspace.clone(), self.meter.clone());
        let at_once = self.requests[kind];
        self.running.push(request(kind, items, dirs, at_once, fs, workspace, meter).boxed());
    }

    /// Nothing is sent without a record of it: a crash could leave the server in a state that nobody knows of.
    fn unrecorded(&mut self, items: Vec<Item>, error: &FsError) {
        let why = |error: String| format!("the record on the local disk cannot be written: {error}");
        let why = Stall { shown: why(error.to_string()), reason: why(error.reason()), kind: "local_disk" };
        self.pause(items, why, self.delays.after(self.failures, None).min(LOCAL_PAUSE));
    }

    fn finish(&mut self, done: Done) {
        match done {
            Done::Unrecorded { kind, items, dirs, error } => {
                self.no_longer_threatened(&dirs);
                self.request_over(kind, &dirs.all);
                self.unrecorded(items, &error);
            }
            Done::Hashed(hashed) => {
                count::take(&mut self.hashing, 1, "staging.hashing");
                for (capture, result) in hashed {
                    self.hashed(capture, result);
                }
            }
            Done::Rescued(ino, rescued) => {
                self.rescuing.remove(&ino);
                self.unrescued.remove(&ino);
                if let Err(error) = rescued {
                    // Other bytes are there, which are not ours to remove.
                    let is_taken = matches!(&error, FsError::Remote(WorkspaceError::Conflict { .. }));
                    let gone = matches!(&error, FsError::Remote(error) if !error.is_transient());
                    if gone && !is_taken {
                        tracing::warn!(%error, ino = ino.0, "bytes that were only on the server are gone");
                        self.lost.insert(ino);
                    } else {
                        tracing::debug!(%error, ino = ino.0, "bytes that are only on the server were not fetched yet");
                        self.unrescued.insert(ino, Kept { why: error.to_string(), passes: !is_taken });
                    }
                }
            }
            Done::Judged(item, error, answers) => {
                self.drop_item(&item);
                let attempts = self.fs.attempts(&item.capture.path);
                if answers {
                    self.refusals.remove(&item.capture.path);
                    // It is not the server that is stalled.
                    self.meter.goes_on();
                    let long = self.delays.long().as_secs();
                    let error = format!("{error}; the server said so for {long} s, and answers otherwise");
                    self.step_failed(&item.capture, &error, None);
                } else {
                    self.step_failed(&item.capture, &error, Some(self.delays.after(attempts, None)));
                }
            }
            Done::Followed(followed) => {
                self.following = false;
                match followed {
                    Ok(()) => {
                        self.failures = 0;
                        self.meter.goes_on();
                    }
                    // The commit does it.
                    Err(FsError::Exists) => {}
                    Err(error) => {
                        let why = match &error {
                            FsError::Remote(error) => error.into(),
                            error => Stall { shown: error.to_string(), reason: error.reason(), kind: "local_disk" },
                        };
                        self.meter.stall(why, self.delays.after(self.failures, None));
                        self.failures += 1;
                        tracing::warn!(%error, "the workspace stands on another commit, which is not taken in yet");
                    }
                }
            }
            Done::Fetched(capture, Ok(file)) => self.decide(*capture, Some(file), true),
            // Captured anew, with the account as it is now.
            Done::Listed(capture, Ok(())) => self.put_back(&capture.path),
            Done::Fetched(capture, Err(error)) | Done::Listed(capture, Err(error)) => {
                count::take(&mut self.in_hand, 1, "staging.in-hand");
                let transient = !matches!(&error, FsError::Remote(error) if !error.is_transient());
                let delay = transient.then(|| self.delays.after(self.fs.attempts(&capture.path), None));
                self.step_failed(&capture, &error.to_string(), delay);
            }
            Done::Request { kind, items, dirs, unanswered, at_once, took, result } => {
                let paths = items.iter().map(|item| &item.capture.path);
                if !unanswered {
                    self.no_longer_threatened(&dirs);
                } else if let Err(error) = self.fs.went_unanswered(paths.chain(&dirs.all)) {
                    tracing::error!(%error, "a request went unanswered, and that is not on record");
                }
                // Those that began after it count, and those that ended a moment ago.
                let at_once = at_once.max(self.requests[kind]);
                self.learn(kind, &items, &result, at_once, took);
                self.request_over(kind, &dirs.all);
                self.answered(items, result);
            }
        }
    }

    fn no_longer_threatened(&self, dirs: &Dirs) {
        if !dirs.threatened.is_empty()
            && let Err(error) = self.fs.was_answered(&dirs.threatened)
        {
            tracing::warn!(%error, "directories are watched for longer than they need be");
        }
    }

    /// What a request that was answered tells of the way to the server.
    fn learn(
        &mut self,
        kind: Kind,
        items: &[Item],
        result: &Result<Vec<Outcome>, WorkspaceError>,
        at_once: usize,
        took: Duration,
    ) {
        let Ok(outcomes) = result else { return };
        let sent_bytes = outcomes.iter().map(|outcome| match outcome {
            Outcome::Done { sent_bytes } => *sent_bytes,
            _ => 0,
        });
        match (kind, items, outcomes.as_slice()) {
            (Kind::Small, ..) => {
                let sent_bytes = sent_bytes.sum();
                self.costs.was_sent(items.len(), sent_bytes, took, at_once);
                self.meter.pace().sent(sent_bytes, Instant::now());
            }
            (Kind::Middle, [item], [Outcome::Done { sent_bytes }]) if item.capture.upload.is_none() => {
                self.costs.was_asked(*sent_bytes == 0, took, at_once);
            }
            _ => {}
        }
    }

    fn request_over(&mut self, kind: Kind, dirs: &BTreeSet<RepoPath>) {
        if matches!(kind, Kind::Remove | Kind::Unstage)
            && let Some(over) = self.removing.iter().position(|other| other == dirs)
        {
            self.removing.swap_remove(over);
        }
        count::take(&mut self.requests[kind], 1, "staging.requests");
    }

    fn hashed(&mut self, capture: Capture, result: std::io::Result<(ContentHash, u64)>) {
        let Want::Sealed { ino, generation, size, ref held, .. } = capture.want else {
            return;
        };
        match result {
            Ok((found, length)) if length == size => {
                self.fs.hashed(ino, generation, found);
                let held = held.clone();
                let want = Want::Sealed { ino, generation, hash: Some(found), size, held };
                self.decide(Capture { want, ..capture }, None, false);
            }
            // A writer wants the file, or it is longer or shorter than when it was captured: look again.
            Ok(_) => self.put_back(&capture.path),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => self.put_back(&capture.path),
            Err(error) => {
                count::take(&mut self.in_hand, 1, "staging.in-hand");
                self.step_failed(&capture, &format!("cannot read the spooled bytes: {error}"), None);
            }
        }
    }

    fn put_back(&mut self, path: &RepoPath) {
        self.put_back_for(path, self.delays.first);
    }

    fn put_back_for(&mut self, path: &RepoPath, delay: Duration) {
        count::take(&mut self.in_hand, 1, "staging.in-hand");
        self.fs.put_back(path, delay);
        self.look_again(Instant::now() + delay);
    }

    /// The path comes when others have been staged; those come now if somebody waits for it.
    fn wait_its_turn(&mut self, path: &RepoPath) {
        let sooner = self.fs.hasten_before(path);
        self.put_back_for(path, if sooner { NEXT_TURN.min(self.delays.first) } else { self.delays.first });
        if sooner {
            self.look_again(Instant::now());
        }
    }

    /// Something is due by then that was not when it was last asked what is.
    fn look_again(&mut self, at: Instant) {
        self.look_again_at = Some(self.look_again_at.map_or(at, |before| before.min(at)));
    }

    /// The item is no longer in hand.
    fn drop_item(&mut self, item: &Item) {
        count::take(&mut self.in_hand, 1, "staging.in-hand");
        self.unmark(item);
    }

    fn unmark(&mut self, item: &Item) {
        if let Step::Put(object) = item.step
            && item.marked
        {
            self.sending.remove(&object.hash);
        }
    }

    fn confirm(&mut self, items: Vec<Item>) {
        for item in &items {
            self.drop_item(item);
            self.refusals.remove(&item.capture.path);
        }
        let steps: Vec<(Capture, Step)> = items.into_iter().map(|item| (item.capture, item.step)).collect();
        if let Err(error) = self.fs.confirmed(&steps) {
            tracing::error!(%error, "confirmed, but not on record; staged again after the next mount");
        }
        for (capture, step) in &steps {
            match step {
                Step::Put(object) => self.meter.activity.staged(&capture.path, object.size, object.hash),
                Step::Remove | Step::Unstage => self.meter.activity.unstaged(&capture.path),
                Step::Nothing => {}
            }
        }
    }

    /// A path cannot be staged; it is tried again after `delay`, or waits for somebody.
    fn step_failed(&self, capture: &Capture, error: &str, delay: Option<Duration>) {
        self.meter.activity.failed(&capture.path, error, delay.is_some());
        self.fs.step_failed(capture, error, delay);
    }

    fn answered(&mut self, items: Vec<Item>, result: Result<Vec<Outcome>, WorkspaceError>) {
        let outcomes = match result {
            Ok(outcomes) => outcomes,
            Err(error) => return self.refused(items, &error),
        };
        self.failures = 0;
        self.meter.goes_on();
        let mut confirmed = Vec::new();
        let mut outcomes = outcomes.into_iter();
        for item in items {
            match outcomes.next() {
                Some(Outcome::Done { sent_bytes }) => {
                    self.meter.sent_bytes.fetch_add(sent_bytes, Ordering::Relaxed);
                    if let Step::Put(object) = item.step {
                        let saved = object.size.saturating_sub(sent_bytes);
                        self.meter.deduplicated_bytes.fetch_add(saved, Ordering::Relaxed);
                    }
                    confirmed.push(item);
                }
                Some(Outcome::NeedsBytes) => self.needs_bytes(item),
                Some(Outcome::Failed(error)) => self.item_failed(item, &error),
                None => {
                    let what = item.capture.path.to_string();
                    self.item_failed(item, &WorkspaceError::Unconfirmed { what });
                }
            }
        }
        if !confirmed.is_empty() {
            self.confirm(confirmed);
        }
    }

    fn needs_bytes(&mut self, item: Item) {
        self.unmark(&item);
        match &item.capture.want {
            Want::Remote { object, source, .. } if item.fetched.is_none() => {
                let (fs, object, source, capture) = (self.fs.clone(), *object, source.clone(), item.capture);
                let fetch = async move {
                    let fetched = fs.fetch_checked(object.hash, object.size, source).await;
                    Done::Fetched(Box::new(capture), fetched)
                };
                self.running.push(fetch.boxed());
            }
            _ => self.queue(Item { asked: true, marked: false, ..item }),
        }
    }

    fn item_failed(&mut self, item: Item, error: &WorkspaceError) {
        self.drop_item(&item);
        let path = &item.capture.path;
        if item.capture.is_wanted_back() {
            // A writer wanted the file; what it writes is staged instead.
            self.fs.put_back(path, self.delays.first);
            return;
        }
        if let WorkspaceError::Overlooked = error {
            self.fs.step_waits_for_commit(&item.capture, &error.to_string());
            return;
        }
        if error.may_pass() && self.is_refused_for_long(path, error) {
            self.in_hand += 1;
            let (fs, error) = (self.fs.clone(), error.to_string());
            // At a gate, nothing is answered: then it is not about this file.
            let judge = async move { Done::Judged(Box::new(item), error, fs.find_workspace().await.is_ok()) };
            return self.running.push(judge.boxed());
        }
        let attempts = self.fs.attempts(path);
        let passes = error.is_transient() || error.may_pass();
        let delay = passes.then(|| self.delays.after(attempts, error.retry_after()));
        self.step_failed(&item.capture, &error.to_string(), delay);
    }

    /// Whether the server has said the same about a path for as long as anything may take that passes.
    fn is_refused_for_long(&mut self, path: &RepoPath, error: &WorkspaceError) -> bool {
        let (now, reason) = (Instant::now(), error.reason());
        let refusal =
            self.refusals.entry(path.clone()).or_insert_with(|| Refusal { reason: reason.clone(), since: now });
        if refusal.reason != reason {
            *refusal = Refusal { reason, since: now };
        }
        refusal.since.elapsed() >= self.delays.long()
    }

    /// A request that told nothing about its items. Where the cause lies in the server or the way to it, everything
    /// waits; where it may lie in one item, each is sent alone.
    fn refused(&mut self, items: Vec<Item>, error: &WorkspaceError) {
        if let [item] = items.as_slice()
            && item.capture.is_wanted_back()
        {
            for item in items {
                self.drop_item(&item);
                self.fs.put_back(&item.capture.path, self.delays.first);
            }
            return;
        }
        let everywhere = error.is_transient()
            || matches!(
                error,
                WorkspaceError::NotFound { .. } | WorkspaceError::Forbidden { .. } | WorkspaceError::NoSpace { .. }
            );
        if everywhere {
            let delay = self.delays.after(self.failures, error.retry_after());
            return self.pause(items, error.into(), delay);
        }
        let alone = items.len() == 1;
        if error.may_pass() {
            // It may be about one of them, or a gate on the way: for a while nothing else is sent, less often each time
            // until something succeeds.
            let delay = self.delays.after(self.failures, None);
            self.failures += 1;
            self.quiet_until = Some(Instant::now() + delay);
            self.meter.stall(error.into(), delay);
        }
        for item in items {
            if alone {
                self.item_failed(item, error);
            } else {
                self.drop_item(&item);
                self.fs.put_back_alone(&item.capture.path);
            }
        }
    }

    /// Nothing can be sent just now, whatever it is.
    fn pause(&mut self, items: Vec<Item>, why: Stall, delay: Duration) {
        self.failures += 1;
        self.quiet_until = Some(Instant::now() + delay);
        self.meter.stall(why, delay);
        for item in items {
            self.drop_item(&item);
            self.fs.put_back(&item.capture.path, delay);
        }
        self.fs.progress.notify_waiters();
    }
}

fn most_in_hand() -> usize {
    quarter_of_descriptors().clamp(LEAST_IN_HAND, IN_HAND)
}

async fn hash(captures: Vec<Capture>, kind: crate::hash::HashKind) -> Done {
    let held: Vec<_> = captures.iter().map(|capture| capture.held().cloned()).collect();
    let hashed = tokio::task::spawn_blocking(move || {
        let mut buffer = Vec::new();
        let hash = |held: Option<Arc<Held>>| {
            let held = held.ok_or(std::io::ErrorKind::InvalidInput)?;
            let file = held.file().ok_or(std::io::ErrorKind::InvalidInput)?;
            ContentHash::of_file_through(kind, file, &mut buffer, || !held.cancelled().is_cancelled())
        };
        held.into_iter().map(hash).collect::<Vec<_>>()
    });
    let results = match hashed.await {
        Ok(results) => results,
        Err(error) => captures.iter().map(|_| Err(std::io::Error::other(error.to_string()))).collect(),
    };
    Done::Hashed(captures.into_iter().zip(results).collect())
}

async fn request(
    kind: Kind,
    items: Vec<Item>,
    dirs: Dirs,
    at_once: usize,
    fs: Arc<Fs>,
    workspace: Arc<dyn Workspace>,
    meter: Arc<Meter>,
) -> Done {
    let paths = || items.iter().map(|item| item.capture.path.clone()).collect::<Vec<_>>();
    let puts = || items.iter().filter_map(put).collect::<Vec<_>>();
    // Many requests share one flush.
    if let Err(error) = fs.flush().await {
        return Done::Unrecorded { kind, items, dirs, error };
    }
    let (unanswered, begun) = (workspace.unanswered(), Instant::now());
    let result = match kind {
        Kind::Unstage => match workspace.unstage(&paths()).await {
            Ok(done) => match fs.note_others_commit(&paths()).await {
                Ok(false) if !dirs.all.is_empty() => {
                    let dirs: Vec<RepoPath> = dirs.all.iter().cloned().collect();
                    workspace.remove(&dirs).await.map(|_| done)
                }
                Ok(_) => Ok(done),
                Err(FsError::Remote(error)) => Err(error),
                Err(error) => return Done::Unrecorded { kind, items, dirs, error },
            },
            failed => failed,
        },
        Kind::Remove => {
            // The files first: their outcomes come in this order.
            let all: Vec<RepoPath> = paths().into_iter().chain(dirs.all.iter().cloned()).collect();
            workspace.remove(&all).await
        }
        Kind::Ask => workspace.stage_by_hash(&puts()).await,
        Kind::Small => workspace.send_small(&puts()).await,
        Kind::Middle | Kind::Large => match (items.first(), puts().into_iter().next()) {
            (Some(item), Some(put)) => send_large(item, &put, &fs, &*workspace, &meter).await.map(|done| vec![done]),
            _ => Ok(Vec::new()),
        },
    };
    let result = look_for_workspace(&fs, result).await;
    // What a writer wanted back was dropped in the middle.
    let dropped = items.iter().any(|item| item.capture.is_wanted_back());
    let unanswered = dropped || workspace.unanswered() != unanswered;
    Done::Request { kind, items, dirs, unanswered, at_once, took: begun.elapsed(), result }
}

/// Where something was not found it may be the workspace: then it is made again, all that was staged in it is owed again,
/// and the request told nothing.
async fn look_for_workspace(
    fs: &Fs,
    result: Result<Vec<Outcome>, WorkspaceError>,
) -> Result<Vec<Outcome>, WorkspaceError> {
    let is_missing = |error: &WorkspaceError| matches!(error, WorkspaceError::NotFound { .. });
    let missing = match &result {
        Err(error) => is_missing(error),
        Ok(outcomes) => outcomes.iter().any(|outcome| matches!(outcome, Outcome::Failed(error) if is_missing(error))),
    };
    if !missing {
        return result;
    }
    match fs.find_workspace().await {
        Ok(true) => {
            Err(WorkspaceError::Unconfirmed { what: "what it staged: the workspace was made again".to_owned() })
        }
        Ok(false) => result,
        Err(error) => {
            tracing::debug!(%error, "it is not known whether the workspace is still there");
            result
        }
    }
}

async fn send_large(
    item: &Item,
    put: &Put,
    fs: &Fs,
    workspace: &dyn Workspace,
    meter: &Meter,
) -> Result<Outcome, WorkspaceError> {
    let resume = item.capture.upload.as_ref().filter(|upload| upload.hash == put.object.hash);
    let progress = Recorder { fs, meter, path: &put.path, hash: put.object.hash };
    let sending = workspace.send_large(put, resume.map(|upload| upload.state.clone()), &progress);
    match &item.capture.want {
        Want::Sealed { held, .. } => tokio::select! {
            done = sending => done,
            () = held.cancelled().cancelled() => Err(WorkspaceError::Unconfirmed { what: put.path.to_string() }),
        },
        _ => sending.await,
    }
}

/// What the backend needs of an item; `None` where its step is no put.
fn put(item: &Item) -> Option<Put> {
    let Step::Put(object) = item.step else { return None };
    let file = match &item.capture.want {
        Want::Sealed { held, .. } => held.file().cloned(),
        _ => item.fetched.clone(),
    };
    let account = &item.capture.account;
    let over = match account.base {
        Some(base) if base.size == object.size => Over::SameLength { staged: account.staged != Staged::Nothing },
        _ => Over::Other,
    };
    Some(Put { path: item.capture.path.clone(), object, file, over })
}

/// Writes a large upload's progress down.
struct Recorder<'a> {
    fs: &'a Fs,
    meter: &'a Meter,
    path: &'a RepoPath,
    hash: ContentHash,
}

impl UploadProgress for Recorder<'_> {
    fn checkpoint(&self, upload: &Upload) {
        self.fs.note_upload(self.path, Some(PathUpload { hash: self.hash, state: upload.clone() }));
    }

    fn sent(&self, bytes: u64) {
        self.meter.pace().sent(bytes, Instant::now());
        self.fs.progress.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit_and_no_two_are_alike() {
        let delays = Delays::default();
        for failures in 0..100 {
            let ceiling = delays.first.saturating_mul(1 << failures.min(16)).min(delays.last);
            let pauses: HashSet<Duration> = (0..50).map(|_| delays.after(failures, None)).collect();
            assert!(pauses.iter().all(|pause| (ceiling / 2..=ceiling).contains(pause)), "{failures}: {pauses:?}");
            assert!(pauses.len() > 40, "{failures}: {pauses:?}");
        }
        assert!(delays.after(99, None) >= delays.last / 2);
    }

    #[test]
    fn what_the_server_asks_for_is_waited_within_reason() {
        let delays = Delays::default();
        let asked = |secs| delays.after(0, Some(Duration::from_secs(secs)));
        assert_eq!(asked(45), Duration::from_secs(45));
        assert_eq!(asked(86_400), LONGEST_ASKED);
        assert!(delays.after(20, Some(Duration::from_secs(1))) >= delays.last / 2);
    }
}
