//! The engine: takes due paths, hashes them, asks the server for their content, sends what it lacks, and tells the
//! [`Source`] what it confirmed.
//!
//! One task owns the plan; hashing and requests run beside it and report back. It keeps no state that matters: what is
//! due, what is wanted and what is confirmed live in the source and on its record, so it may be dropped at any moment.

mod hand;
mod hashing;
mod outcomes;
mod requests;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};

use super::delays::Delays;
use super::index::Step;
use super::item::{Capture, Want};
use super::lanes::Costs;
use super::meter::Meter;
use super::queue::Phase;
use super::source::{Back, Source};
use crate::count;
use crate::hash::{ContentHash, HashKind};
use crate::namespace::Ino;
use crate::path::RepoPath;
use crate::store::disk::quarter_of_descriptors;
use crate::workspace::{ByHash, Workspace};
use hand::{ByKind, Done, Item, Kept, Kind};

/// Captures in hand at once: enough to fill every lane, and little memory. Each is an open file, so where few may be
/// open it is a quarter of those: writers and connections need some as well.
const IN_HAND: usize = 512;
const LEAST_IN_HAND: usize = 16;
/// How soon a path is looked at again that waits for one which has just become due.
const NEXT_TURN: Duration = Duration::from_millis(20);

/// What a server says of a path again and again.
struct Refusal {
    reason: String,
    since: Instant,
}

/// The engine of one mount.
pub struct Engine {
    source: Arc<dyn Source>,
    workspace: Arc<dyn Workspace>,
    meter: Arc<Meter>,
    by_hash: ByHash,
    hash_kind: HashKind,
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

impl Engine {
    /// An engine that has not started.
    pub fn new(source: Arc<dyn Source>, workspace: Arc<dyn Workspace>, meter: Arc<Meter>, delays: Delays) -> Self {
        let (by_hash, hash_kind) = (workspace.info().by_hash, workspace.info().hash_kind);
        Self {
            source,
            workspace,
            meter,
            by_hash,
            hash_kind,
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
        let source = self.source.clone();
        loop {
            let woken = source.wake().notified();
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
        let (captures, next) = self.source.take_due(self.most_in_hand.saturating_sub(self.in_hand));
        for capture in captures {
            self.in_hand += 1;
            match &capture.want {
                Want::Sealed { hash: None, .. } => {
                    self.source.set_phase(&capture.path, Phase::Hashing);
                    self.to_hash.push_back(capture);
                }
                _ => self.decide(capture, None, false),
            }
        }
        next
    }

    /// Decides the step for a path whose wanted content is known.
    fn decide(&mut self, capture: Capture, fetched: Option<Arc<File>>, asked: bool) {
        let wanted = match &capture.want {
            Want::AsBase => capture.account.base,
            want => want.object(),
        };
        // What the base has needs no staging: nothing is left out on the word of an old listing.
        let content = capture.want.object();
        if content.is_some() && capture.account.is_base(content) && !self.source.knows_base_of(&capture.path) {
            let source = self.source.clone();
            let list = async move {
                let listed = source.learn_base_of(&capture.path).await;
                Done::Listed(Box::new(capture), listed)
            };
            return self.running.push(list.boxed());
        }
        let mut step = capture.account.step(wanted);
        // Nothing of it is there: but it may have been what kept a directory in the commit.
        if step == Step::Nothing
            && wanted.is_none()
            && !self.source.emptied_dirs(&HashSet::from([&capture.path])).is_empty()
        {
            step = if capture.account.base.is_some() { Step::Remove } else { Step::Unstage };
        }
        self.source.set_phase(&capture.path, Phase::Ready);
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
        if self.source.some_are_wanted_back() {
            self.give_back();
        }
        self.start_hashing();
        if self.quiet_until.is_some_and(|until| Instant::now() < until) {
            return;
        }
        self.quiet_until = None;
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

    fn put_back(&mut self, path: &RepoPath) {
        self.put_back_for(path, self.delays.first);
    }

    fn put_back_for(&mut self, path: &RepoPath, delay: Duration) {
        count::take(&mut self.in_hand, 1, "staging.in-hand");
        self.source.put_back(path, Back::After(delay));
        self.look_again(Instant::now() + delay);
    }

    /// The path comes when others have been staged; those come now if somebody waits for it.
    fn wait_its_turn(&mut self, path: &RepoPath) {
        let sooner = self.source.hasten_before(path);
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
}

fn most_in_hand() -> usize {
    quarter_of_descriptors().clamp(LEAST_IN_HAND, IN_HAND)
}
