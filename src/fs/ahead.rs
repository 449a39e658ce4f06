//! Small files that a program is about to read: one that opens those of a directory one after another, in an order that
//! it can be known by, gets the next ones ahead of need, many a request.
//!
//! Which orders there are is known from the names: as they are sorted, as their numbers count, and as they are listed;
//! each forwards or backwards. How much is fetched ahead follows how much was read so, so that a guess that turns out
//! wrong costs a small part of what the right ones were worth; who opens them in no order gets nothing ahead.
//!
//! Who comes to a file that is on its way waits for it, and asks for it himself when it does not come soon.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering as Memory};
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use lru::LruCache;
use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::fetching::Who;
use super::{Fs, FsError, State};
use crate::hash::ContentHash;
use crate::namespace::{Content, Ino, Order};
use crate::path::Name;
use crate::sync::{Mutex, MutexGuard};
use crate::workspace::{Object, Take};

/// A longer file is worth a request of its own.
const SMALL_BYTES: u64 = 1 << 20;
/// Content and number of the files of one request.
const BATCH_BYTES: u64 = 8 << 20;
const FEWEST: usize = 8;
const MOST: usize = 512;
/// Of what was read in order, so much is fetched ahead: an eighth.
const SHARE: usize = 8;
/// How far from the last one the next may be: several programs, or threads, share the work.
const NEAR: i64 = 8;
/// Files that must have come in order before any is fetched ahead, and as many as count at most.
const IN_ORDER: i32 = 2;
const SURE: i32 = 4;
/// Directories that are watched at a time, and the largest that is.
const WATCHED: usize = 16;
const LARGEST: usize = 200_000;
/// Files that are looked at for one request: what is here already is passed over.
const LOOKED_AT: usize = 4096;
/// Opens that are remembered until the orders of a directory are known.
const REMEMBERED: usize = 64;
/// How long a file that is on its way is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// Requests at once where each is for one file.
const FILES_AT_ONCE: usize = 8;

/// Which directories are being read, and which files are on their way.
pub(super) struct Ahead {
    walks: Mutex<LruCache<Ino, Walk>>,
    flying: Mutex<HashSet<ContentHash>>,
    landed: Notify,
    runtime: OnceLock<Handle>,
    fetched: AtomicU64,
}

impl Default for Ahead {
    fn default() -> Self {
        Self {
            walks: Mutex::new(LruCache::new(NonZeroUsize::new(WATCHED).unwrap_or(NonZeroUsize::MIN))),
            flying: Mutex::default(),
            landed: Notify::new(),
            runtime: OnceLock::new(),
            fetched: AtomicU64::new(0),
        }
    }
}

impl Ahead {
    fn walks(&self) -> MutexGuard<'_, LruCache<Ino, Walk>> {
        self.walks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flying(&self) -> MutexGuard<'_, HashSet<ContentHash>> {
        self.flying.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many files were fetched before anybody asked for them.
    pub fn fetched(&self) -> u64 {
        self.fetched.load(Memory::Relaxed)
    }

    /// Waits until content is not on its way any more, or for as long as it is worth; whether it was.
    pub async fn wait_for(&self, hash: ContentHash) -> bool {
        if !self.flying().contains(&hash) {
            return false;
        }
        let landed = async {
            loop {
                let landed = self.landed.notified();
                tokio::pin!(landed);
                // Before the look: what lands in between is not missed.
                landed.as_mut().enable();
                if !self.flying().contains(&hash) {
                    return;
                }
                landed.await;
            }
        };
        let _ = tokio::time::timeout(PATIENCE, landed).await;
        true
    }

    fn land<'a>(&self, hashes: impl IntoIterator<Item = &'a ContentHash>) {
        {
            let mut flying = self.flying();
            hashes.into_iter().for_each(|hash| _ = flying.remove(hash));
        }
        self.landed.notify_waiters();
    }
}

/// Files that are on their way until this is dropped.
struct OnTheirWay<'a>(&'a Ahead, Vec<ContentHash>);

impl Drop for OnTheirWay<'_> {
    fn drop(&mut self) {
        self.0.land(&self.1);
    }
}

/// How a directory's files are opened.
#[derive(Default)]
struct Walk {
    /// Opened before the orders were known.
    opened: Vec<Ino>,
    /// Somebody is finding out what orders there are.
    building: bool,
    orders: Vec<Track>,
    /// How many were opened in order.
    in_order: usize,
}

/// One order of a directory's files, and where in it a program is.
struct Track {
    files: Vec<Ino>,
    places: HashMap<Ino, i64>,
    last: Option<i64>,
    /// How surely it is this order, below zero backwards.
    sure: i32,
    /// The next one that was not fetched ahead.
    next: Option<i64>,
}

impl Track {
    fn new(files: Vec<Ino>) -> Self {
        let places = (0..).zip(&files).map(|(place, ino)| (*ino, place)).collect();
        Self { files, places, last: None, sure: 0, next: None }
    }

    /// A file is opened; whether it follows the one before.
    fn note(&mut self, ino: Ino) -> bool {
        let Some(place) = self.places.get(&ino).copied() else { return false };
        let step = self.last.map_or(i64::MAX, |last| place.saturating_sub(last));
        self.last = Some(place);
        match step {
            0 => return self.sure != 0,
            1..=NEAR => self.sure = (self.sure + 1).min(SURE),
            _ if (-NEAR..0).contains(&step) => self.sure = (self.sure - 1).max(-SURE),
            _ => {
                self.sure = 0;
                return false;
            }
        }
        true
    }

    /// The next files, if less than half of `window` is left of those that were fetched ahead. `take` is asked for each,
    /// until it wants no more.
    fn plan(&mut self, window: usize, mut take: impl FnMut(Ino) -> bool) {
        let Some(last) = self.last.filter(|_| self.sure.abs() >= IN_ORDER) else { return };
        let step = i64::from(self.sure.signum());
        // Behind the program, or so far ahead that it was another's.
        let ahead = |next: i64| (next - last) * step;
        let next = self.next.filter(|next| ahead(*next) > 0 && ahead(*next) <= (MOST * 2) as i64);
        let mut next = next.unwrap_or(last + step);
        if ahead(next) > (window / 2) as i64 {
            return;
        }
        for _ in 0..LOOKED_AT {
            let Some(ino) = usize::try_from(next).ok().and_then(|place| self.files.get(place)) else { break };
            if !take(*ino) {
                break;
            }
            next += step;
        }
        self.next = Some(next);
    }
}

impl Walk {
    /// A file is opened. Returns whether it is time to find out what orders there are.
    fn note(&mut self, ino: Ino) -> bool {
        if self.orders.is_empty() {
            if self.opened.last() != Some(&ino) && self.opened.len() < REMEMBERED {
                self.opened.push(ino);
            }
            return self.opened.len() > IN_ORDER as usize && !std::mem::replace(&mut self.building, true);
        }
        let mut follows = false;
        // Each is told of it.
        for order in &mut self.orders {
            follows |= order.note(ino);
        }
        self.in_order = if follows { self.in_order + 1 } else { 0 };
        false
    }

    fn begin(&mut self, orders: Vec<Track>) {
        self.orders = orders;
        for ino in std::mem::take(&mut self.opened) {
            self.note(ino);
        }
    }

    /// What is to be fetched ahead: what `wanted` says of a file, where it is worth it.
    fn plan<T>(&mut self, bytes: u64, mut wanted: impl FnMut(Ino) -> Option<(T, u64)>) -> Vec<T> {
        let window = (self.in_order / SHARE).clamp(FEWEST, MOST);
        let (mut some, mut left) = (Vec::new(), bytes);
        let Some(order) = self.orders.iter_mut().max_by_key(|order| order.sure.abs()) else { return some };
        order.plan(window, |ino| match wanted(ino) {
            None => true,
            Some((_, size)) if some.len() == window || size > left => false,
            Some((one, size)) => {
                left -= size;
                some.push(one);
                true
            }
        });
        some
    }
}

/// The orders that the files of a directory may be read in.
fn orders_of(mut files: Vec<(Name, Ino)>) -> Vec<Track> {
    let track = |files: &[(Name, Ino)]| Track::new(files.iter().map(|(_, ino)| *ino).collect());
    files.sort_unstable_by(|(one, _), (other, _)| one.as_bytes().cmp(other.as_bytes()));
    let sorted = track(&files);
    let listed = {
        let inos: HashMap<&Name, Ino> = files.iter().map(|(name, ino)| (name, *ino)).collect();
        let order = Order::of(files.iter().map(|(name, _)| name));
        Track::new(order.after(0).filter_map(|(_, name)| inos.get(name).copied()).collect())
    };
    files.sort_by(|(one, _), (other, _)| as_numbers_count(one.as_bytes(), other.as_bytes()));
    let counted = track(&files);
    match counted.files == sorted.files {
        true => vec![sorted, listed],
        false => vec![sorted, counted, listed],
    }
}

/// `2` before `10`.
fn as_numbers_count(one: &[u8], other: &[u8]) -> Ordering {
    let (mut one, mut other) = (one, other);
    loop {
        match (one.first(), other.first()) {
            (Some(a), Some(b)) if a.is_ascii_digit() && b.is_ascii_digit() => {
                let ((a, rest), (b, other_rest)) = (number(one), number(other));
                match a.len().cmp(&b.len()).then_with(|| a.cmp(b)) {
                    Ordering::Equal => (one, other) = (rest, other_rest),
                    different => return different,
                }
            }
            (Some(a), Some(b)) if a == b => (one, other) = (&one[1..], &other[1..]),
            (a, b) => return a.cmp(&b),
        }
    }
}

/// The digits that a text begins with, without leading zeros, and what is behind them.
fn number(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    let zeros = digits.iter().position(|digit| *digit != b'0').unwrap_or(digits.len());
    (&digits[zeros..], rest)
}

impl State {
    /// A small file that the server has.
    fn small(&self, ino: Ino) -> Option<Object> {
        match self.content(ino)? {
            (Content::Remote { hash, .. }, size) if (1..=SMALL_BYTES).contains(&size) => {
                Some(Object { hash: *hash, size })
            }
            _ => None,
        }
    }
}

impl Fs {
    /// A program opens a file that the server has; `missed` when it is not here. To be called from any thread.
    pub(super) fn note_open(&self, ino: Ino, missed: bool) {
        let (batch, build) = {
            let state = self.lock();
            if state.small(ino).is_none() {
                return;
            }
            let Some(dir) = state.tree.get(ino).and_then(|inode| inode.links.first()).map(|(dir, _)| *dir) else {
                return;
            };
            let mut walks = self.ahead.walks();
            // A program that finds all that it reads needs nothing ahead.
            if !missed && !walks.contains(&dir) {
                return;
            }
            let walk = walks.get_or_insert_mut(dir, Walk::default);
            if walk.note(ino) {
                (Vec::new(), Some(dir))
            } else {
                let bytes = BATCH_BYTES.min(self.cache.limit() / 8);
                let flying = self.ahead.flying();
                let wanted = |ino| {
                    let object = state.small(ino)?;
                    let absent = self.cache.lacks(object.hash) && !flying.contains(&object.hash);
                    absent.then_some(((ino, object), object.size))
                };
                (walk.plan(bytes, wanted), None)
            }
        };
        let (Some(fs), Some(runtime)) = (self.this.upgrade(), self.ahead.runtime.get()) else { return };
        if let Some(dir) = build {
            runtime.spawn_blocking(move || fs.learn_orders(dir));
        }
        self.fetch_soon(batch);
    }

    fn fetch_soon(&self, batch: Vec<(Ino, Object)>) {
        if let (false, Some(fs), Some(runtime)) = (batch.is_empty(), self.this.upgrade(), self.ahead.runtime.get()) {
            self.ahead.flying().extend(batch.iter().map(|(_, object)| object.hash));
            runtime.spawn(async move { fs.fetch_ahead(batch).await }.boxed());
        }
    }

    /// A file is fetched because a program opens it.
    pub(super) fn note_miss(&self, ino: Ino) {
        if self.ahead.runtime.get().is_none()
            && let Ok(runtime) = Handle::try_current()
        {
            let _ = self.ahead.runtime.set(runtime);
        }
        self.note_open(ino, true);
    }

    fn learn_orders(&self, dir: Ino) {
        let files: Vec<(Name, Ino)> = {
            let state = self.lock();
            let children = state.tree.dir(dir).map(|here| &here.children);
            match children.filter(|children| children.len() <= LARGEST) {
                Some(children) => children.iter().map(|(name, ino)| (name.clone(), *ino)).collect(),
                None => return,
            }
        };
        let orders = orders_of(files);
        if let Some(walk) = self.ahead.walks().get_mut(&dir) {
            walk.begin(orders);
        }
    }

    async fn fetch_ahead(self: Arc<Self>, batch: Vec<(Ino, Object)>) {
        let way = OnTheirWay(&self.ahead, batch.iter().map(|(_, object)| object.hash).collect());
        // Another mount may have them, or an earlier start of the machine.
        let looked_for = batch.clone();
        let absent = self.blocking(move |fs| {
            let absent = |(_, object): &(Ino, Object)| {
                !fs.cache.holds(object.hash) && fs.find_without_server(object.hash, object.size).is_none()
            };
            Ok(looked_for.into_iter().filter(absent).collect::<Vec<_>>())
        });
        let Ok(absent) = absent.await else { return };
        let wanted: Vec<Object> = absent.iter().map(|(_, object)| *object).collect();
        let take: Take = {
            let fs = self.clone();
            Arc::new(move |object, bytes| {
                // What is wrong with it, the request for it alone tells.
                if fs.keep_bytes(object, &bytes).is_ok_and(|kept| kept) {
                    fs.ahead.fetched.fetch_add(1, Memory::Relaxed);
                }
                fs.ahead.land([&object.hash]);
            })
        };
        if wanted.is_empty() {
            return;
        }
        match self.workspace.fetch_small(&wanted, &take).await {
            Ok(Some(_)) => {}
            Err(error) => tracing::debug!(%error, "files that are read next do not come ahead"),
            Ok(None) => {
                // Who comes to one joins the request for it.
                drop(way);
                let fetch = |(ino, object): (Ino, Object)| self.clone().fetch_one_ahead(ino, object);
                let all = stream::iter(absent).map(fetch).buffer_unordered(FILES_AT_ONCE).try_collect::<()>();
                if let Err(error) = all.await {
                    tracing::debug!(%error, "files that are read next do not come ahead");
                }
            }
        }
    }

    async fn fetch_one_ahead(self: Arc<Self>, ino: Ino, object: Object) -> Result<(), FsError> {
        let source = {
            let state = self.lock();
            if state.small(ino) != Some(object) {
                return Ok(());
            }
            state.source(ino)
        };
        self.download(object.hash, object.size, source, Who::Program).await?;
        self.ahead.fetched.fetch_add(1, Memory::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: u64, name: impl Fn(u64) -> String) -> Vec<(Name, Ino)> {
        (0..count).map(|at| (Name::new(name(at).as_bytes()).unwrap(), Ino(at + 2))).collect()
    }

    /// Opens files in this order; returns how many requests there were, for how many files, of which how many were not
    /// opened afterwards.
    fn read(files: &[(Name, Ino)], order: &[Ino]) -> (usize, usize, usize) {
        let mut walk = Walk::default();
        let mut here = HashSet::new();
        let (mut requests, mut ahead) = (0, 0);
        for ino in order {
            if here.insert(*ino) {
                requests += 1;
            }
            if walk.note(*ino) {
                walk.begin(orders_of(files.to_vec()));
            }
            let batch = walk.plan(BATCH_BYTES, |ino| (!here.contains(&ino)).then_some((ino, 16 << 10)));
            requests += usize::from(!batch.is_empty());
            ahead += batch.len();
            here.extend(batch);
        }
        (requests, ahead, here.len() - order.iter().collect::<HashSet<_>>().len())
    }

    #[test]
    fn files_read_in_an_order_come_ahead_many_a_request() {
        for files in [names(300, |at| format!("{at}.png")), names(300, |at| format!("image {at:05}"))] {
            for track in orders_of(files.clone()) {
                let backwards: Vec<Ino> = track.files.iter().rev().copied().collect();
                for order in [track.files, backwards] {
                    let (requests, ahead, unread) = read(&files, &order);
                    assert!(requests < 50 && ahead > 280 && unread == 0, "{requests} {ahead} {unread}");
                }
            }
        }
        // Four threads that take turns, not quite.
        let files = names(300, |at| format!("{at:05}"));
        let mut order: Vec<Ino> = files.iter().map(|(_, ino)| *ino).collect();
        let mut random = fastrand::Rng::with_seed(7);
        order.chunks_mut(4).for_each(|four| random.shuffle(four));
        let (requests, ..) = read(&files, &order);
        assert!(requests < 100, "{requests}");
    }

    #[test]
    fn who_reads_in_no_order_or_stops_gets_little_in_vain() {
        let files = names(1000, |at| format!("{at:05}"));
        let mut order: Vec<Ino> = files.iter().map(|(_, ino)| *ino).collect();
        for read_on in [40, 200, 800] {
            let (.., unread) = read(&files, &order[..read_on]);
            assert!(unread <= FEWEST * 2 || unread * 4 <= read_on, "{unread} of {read_on}");
        }
        fastrand::Rng::with_seed(3).shuffle(&mut order);
        let (_, ahead, unread) = read(&files, &order[..100]);
        assert!(ahead <= 16 && unread <= 16, "{ahead} {unread}");
    }

    #[test]
    fn numbers_count_in_names() {
        let mut names = ["b10", "b9", "b010", "a", "b9a", "", "b"];
        names.sort_by(|one, other| as_numbers_count(one.as_bytes(), other.as_bytes()));
        assert_eq!(names, ["", "a", "b", "b9", "b9a", "b10", "b010"]);
    }
}
