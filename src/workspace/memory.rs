//! A workspace in memory, for tests: the server's traps included, and with a lever for faults.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;

use super::{
    ByHash, Change, ChangeKind, CommitId, CommitInfo, CommitRequest, Committed, Differences, Entry, EntryKind, Fut,
    InHistory, Listing, Object, Outcome, Put, Reopened, Revision, Scope, ServerInfo, Sides, Source, Take, Upload,
    UploadProgress, Workspace, WorkspaceError, WorkspaceIdentity,
};
use crate::hash::{ContentHash, HashKind};
use crate::path::RepoPath;

/// Length of an upload's parts: small, so that small files have several.
const PART_BYTES: u64 = 32 << 10;

/// What a fault does to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is answered.
    None,
    /// It never arrives.
    Lost,
    /// It has its effect, and the answer is lost.
    AnswerLost,
    /// It is given up, and has its effect after some more requests.
    Late,
    /// It is refused with this status, by the server or by what is before it.
    Refused(u16),
}

/// What a request does to the workspace.
#[derive(Debug, Clone)]
enum Effect {
    /// Stages content where it is in the store.
    ByHash(Vec<(RepoPath, ContentHash)>),
    /// Stages content.
    Put(Vec<(RepoPath, Bytes)>),
    /// Puts an upload's parts together, which must have this hash, and stages them.
    Complete { upload: String, path: RepoPath, hash: ContentHash, sent_bytes: u64 },
    /// Stages removals.
    Remove(Vec<RepoPath>),
    /// Drops what is staged.
    Unstage(Vec<RepoPath>),
}

/// After how many more requests a late one has its effect, at most.
const LATEST: u32 = 60;

/// How long an unsteady way takes at most.
const LONGEST_WAY: Duration = Duration::from_millis(5);

/// A tree: path to content.
pub type Tree = BTreeMap<RepoPath, Bytes>;

/// What a commit does besides what it should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommitFault {
    /// Its answer names this commit.
    Names(String),
    /// It leaves out the changes at and below this path.
    LeavesOut(RepoPath),
    /// It drops this path of the commit before, with all below.
    Drops(RepoPath),
}

/// Called with a request's name when it arrives, before its effect, and when its answer leaves.
pub type Witness = Arc<dyn Fn(&'static str) + Send + Sync>;

/// The double.
pub struct Memory {
    info: ServerInfo,
    part_bytes: u64,
    state: Arc<Mutex<State>>,
    /// Which of the repository's workspaces it is for.
    workspace: usize,
    unanswered: AtomicU64,
    fault: Mutex<Box<dyn FnMut(&'static str) -> Fault + Send>>,
    commit_faults: Mutex<VecDeque<Vec<CommitFault>>>,
    witness: Mutex<Option<Witness>>,
}

#[derive(Clone)]
struct State {
    commits: HashMap<String, Tree>,
    infos: HashMap<String, CommitInfo>,
    /// The commit that the branch stands on.
    head: String,
    /// Contents that were removed though something refers to them.
    pruned: HashSet<ContentHash>,
    store: HashMap<ContentHash, Bytes>,
    incarnations: u64,
    /// Parts received, by upload and number.
    uploads: HashMap<String, BTreeMap<u32, Bytes>>,
    /// Uploads begun since the start: none gets the name of one that is over.
    uploads_begun: u64,
    sent_bytes: u64,
    arrivals: u64,
    /// Late requests that have had their effect.
    come: u64,
    /// Those to come are held back.
    held: bool,
    /// The way there and back takes a while, each time another.
    unsteady: bool,
    /// The workspace that a request is about, and its number.
    own: Stage,
    own_number: usize,
    /// All others, by number.
    others: HashMap<usize, Stage>,
}

/// A workspace.
#[derive(Clone)]
struct Stage {
    /// The commit that it stands on.
    base: String,
    /// Which of all workspaces there were it is; `None` when it was deleted.
    incarnation: Option<u64>,
    /// Others may use it.
    shared: bool,
    /// Where it is made again it stands on what the branch has become.
    follows: bool,
    staged: BTreeMap<RepoPath, Option<Bytes>>,
    /// Requests that have come and had no effect yet, by number.
    arrived: BTreeMap<u64, Effect>,
    /// Requests that nobody waits for any more, and how many others are served before.
    late: Vec<(u32, Effect)>,
}

impl Stage {
    fn on(base: String, incarnation: u64) -> Self {
        let (staged, arrived, late) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        Self { base, incarnation: Some(incarnation), shared: false, follows: false, staged, arrived, late }
    }
}

impl Memory {
    /// An empty repository.
    pub fn new(by_hash: ByHash) -> Self {
        let info =
            ServerInfo { version: "memory".into(), dialect: "memory".into(), hash_kind: HashKind::Xxh3, by_hash };
        let state = State {
            commits: HashMap::from([("c0".to_owned(), Tree::new())]),
            infos: HashMap::from([("c0".to_owned(), commit_info("c0", &[], "Initial commit"))]),
            head: "c0".to_owned(),
            pruned: HashSet::new(),
            store: HashMap::new(),
            incarnations: 1,
            uploads: HashMap::new(),
            uploads_begun: 0,
            sent_bytes: 0,
            arrivals: 0,
            come: 0,
            held: false,
            unsteady: false,
            own: Stage::on("c0".to_owned(), 1),
            own_number: 0,
            others: HashMap::new(),
        };
        Self::with(info, Arc::new(Mutex::new(state)), 0)
    }

    /// Another workspace of the same repository, on what the branch has become.
    pub fn beside(&self) -> Self {
        let mut state = self.lock();
        state.incarnations += 1;
        let (stage, number) = (Stage::on(state.head.clone(), state.incarnations), state.others.len() + 1);
        state.others.insert(number, stage);
        drop(state);
        Self::with(self.info.clone(), self.state.clone(), number)
    }

    fn with(info: ServerInfo, state: Arc<Mutex<State>>, workspace: usize) -> Self {
        let fault: Box<dyn FnMut(&'static str) -> Fault + Send> = Box::new(|_| Fault::None);
        let (unanswered, fault, witness) = (AtomicU64::new(0), Mutex::new(fault), Mutex::default());
        let commit_faults = Mutex::default();
        Self { info, part_bytes: PART_BYTES, state, workspace, unanswered, fault, commit_faults, witness }
    }

    /// Another server that holds what this one holds now, and whose client is gone: what is on its way comes late.
    pub fn fork(&self) -> Self {
        let mut state = self.lock().clone();
        let arrived = std::mem::take(&mut state.own.arrived).into_values();
        arrived.for_each(|effect| self.give_up(&mut state, effect));
        Self::with(self.info.clone(), Arc::new(Mutex::new(state)), self.workspace)
    }

    /// Nobody waits for a request any more: it comes late. Not where bytes always travel: what it takes away is to be had
    /// from the cache alone then, which tests keep small.
    fn give_up(&self, state: &mut State, effect: Effect) {
        if self.info.by_hash != ByHash::Never {
            let left = if state.held { u32::MAX } else { fastrand::u32(0..LATEST) };
            state.own.late.push((left, effect));
        }
    }

    /// Carries out the late requests now that would come soon, and puts the others off: none comes before quite a few
    /// other requests.
    pub fn part_late(&self) {
        let mut state = self.lock();
        let late = std::mem::take(&mut state.own.late);
        let (soon, later): (Vec<_>, Vec<_>) = late.into_iter().partition(|(left, _)| *left < LATEST / 2);
        soon.into_iter().for_each(|(_, effect)| state.come_late(effect));
        state.own.late = later.into_iter().map(|(left, effect)| (left + LATEST, effect)).collect();
    }

    /// From now on the way there and back takes up to some milliseconds, at random, for all workspaces: what overtakes what
    /// differs from run to run.
    pub fn set_unsteady(&self) {
        self.lock().unsteady = true;
    }

    async fn travel(&self) {
        tokio::task::yield_now().await;
        if !self.lock().unsteady {
            return;
        }
        match fastrand::u8(..4) {
            0 => tokio::time::sleep(LONGEST_WAY.mul_f64(fastrand::f64())).await,
            1 => {
                for _ in 0..fastrand::u8(..20) {
                    tokio::task::yield_now().await;
                }
            }
            _ => {}
        }
    }

    /// From now on late requests come when [`end_late`](Self::end_late) says so, and not before.
    pub fn hold_late(&self) {
        self.lock().held = true;
    }

    /// Carries out all late requests; returns how many have come since the start.
    pub fn end_late(&self) -> u64 {
        let mut state = self.lock();
        let late = std::mem::take(&mut state.own.late);
        late.into_iter().for_each(|(_, effect)| state.come_late(effect));
        state.come
    }

    /// How many requests have come late since the start.
    pub fn come_late(&self) -> u64 {
        self.lock().come
    }

    /// Tells `witness` of every request.
    pub fn set_witness(&self, witness: Witness) {
        *self.witness.lock().unwrap_or_else(PoisonError::into_inner) = Some(witness);
    }

    fn tell(&self, name: &'static str) {
        let witness = self.witness.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(witness) = witness {
            witness(name);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let other = state.own_number;
        if other != self.workspace
            && let Some(own) = state.others.remove(&self.workspace)
        {
            let before = std::mem::replace(&mut state.own, own);
            state.others.insert(other, before);
            state.own_number = self.workspace;
        }
        state
    }

    /// Replaces the base by a commit of `tree`, which the branch stands on too.
    pub fn set_base(&self, tree: Tree) {
        let mut state = self.lock();
        tree.values().for_each(|content| state.keep(content.clone()));
        state.own.base = state.make_commit(tree, "set");
    }

    /// Commits `tree` to the branch as another client does, from a workspace of its own.
    pub fn commit_foreign(&self, tree: Tree) -> CommitId {
        let mut state = self.lock();
        tree.values().for_each(|content| state.keep(content.clone()));
        CommitId(state.make_commit(tree, "theirs").into())
    }

    /// Moves the workspace to what the branch has become, with what is staged in it; no released server does that, but
    /// whoever deletes a workspace and stages in it anew.
    pub fn move_workspace(&self) {
        let mut state = self.lock();
        state.own.base = state.head.clone();
    }

    /// Others may use the workspace from now on.
    pub fn share_workspace(&self) {
        self.lock().own.shared = true;
    }

    /// Whether others may use the workspace.
    pub fn is_shared(&self) -> bool {
        self.lock().own.shared
    }

    /// Drops what somebody else staged at a path, as he may.
    pub fn unstage_foreign(&self, path: &RepoPath) {
        self.lock().own.staged.remove(path);
    }

    /// Deletes the workspace with all that is staged in it, as another client may.
    pub fn delete_workspace(&self) {
        let mut state = self.lock();
        state.own.staged.clear();
        state.own.incarnation = None;
    }

    /// Makes it anew on what the branch has become, with nothing staged in it, as another client may that deleted it.
    pub fn remake_workspace(&self) {
        let mut state = self.lock();
        state.own.staged.clear();
        state.incarnations += 1;
        state.own.incarnation = Some(state.incarnations);
        state.own.base = state.head.clone();
    }

    /// Where it is made again it stands on what the branch has become from now on: so do servers that make none on a commit.
    pub fn remake_on_head(&self) {
        self.lock().own.follows = true;
    }

    /// Drops all that is staged, as another client may.
    pub fn empty_workspace(&self) {
        self.lock().own.staged.clear();
    }

    /// Removes all content that no commit refers to, as an operator's clean-up does.
    pub fn prune(&self) {
        let mut state = self.lock();
        let committed: HashSet<ContentHash> =
            state.commits.values().flat_map(Tree::values).map(|content| object(content).hash).collect();
        let gone: Vec<ContentHash> = state.store.keys().filter(|hash| !committed.contains(hash)).copied().collect();
        state.store.retain(|hash, _| committed.contains(hash));
        state.pruned.extend(gone);
    }

    /// Has what is staged and in no commit in the workspace alone from now on, as servers may that keep it there: nothing
    /// of it can be staged by its hash.
    pub fn keep_in_workspace(&self) {
        let mut state = self.lock();
        let committed: HashSet<ContentHash> =
            state.commits.values().flat_map(Tree::values).map(|content| object(content).hash).collect();
        state.store.retain(|hash, _| committed.contains(hash));
    }

    /// The server has some content nowhere but where it is staged or committed.
    pub fn lose(&self, content: &[u8]) {
        self.lock().store.remove(&ContentHash::of(HashKind::Xxh3, content));
    }

    /// What the next commit does besides; those set before come first.
    pub fn fault_commit(&self, faults: Vec<CommitFault>) {
        self.commit_faults.lock().unwrap_or_else(PoisonError::into_inner).push_back(faults);
    }

    /// No request and no commit goes wrong any more.
    pub fn forget_faults(&self) {
        self.set_fault(|_| Fault::None);
        self.commit_faults.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Stages a change as another client would.
    pub fn stage_foreign(&self, path: RepoPath, content: Option<Bytes>) {
        let mut state = self.lock();
        if let Some(content) = &content {
            state.keep(content.clone());
        }
        state.own.staged.insert(path, content);
    }

    /// Asked before every request, with the method's name.
    pub fn set_fault(&self, fault: impl FnMut(&'static str) -> Fault + Send + 'static) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(fault);
    }

    /// Content bytes that were sent here.
    pub fn sent_bytes(&self) -> u64 {
        self.lock().sent_bytes
    }

    /// The base with the staged changes over it.
    pub fn view(&self) -> Tree {
        let state = self.lock();
        state.view()
    }

    /// The tree of the branch's head.
    pub fn head_tree(&self) -> Tree {
        let state = self.lock();
        state.commits.get(&state.head).cloned().unwrap_or_default()
    }

    /// A commit's tree.
    pub fn tree_of(&self, commit: &CommitId) -> Tree {
        self.lock().commits.get(&*commit.0).cloned().unwrap_or_default()
    }

    /// The base commit's tree.
    pub fn base_tree(&self) -> Tree {
        let state = self.lock();
        state.commits.get(&state.own.base).cloned().unwrap_or_default()
    }

    /// A request that changes the workspace.
    fn effect(&self, name: &'static str, effect: Effect) -> Fut<'_, Vec<Outcome>> {
        async move {
            self.travel().await;
            let underway = {
                let mut state = self.lock();
                state.arrivals += 1;
                let number = state.arrivals;
                state.own.arrived.insert(number, effect);
                Underway { memory: self, number }
            };
            self.tell(name);
            self.travel().await;
            let fault = (*self.fault.lock().unwrap_or_else(PoisonError::into_inner))(name);
            let answer = {
                let mut state = self.lock();
                state.serve_late();
                let effect = state.own.arrived.remove(&underway.number);
                match (fault, effect) {
                    (Fault::None, Some(_)) if state.own.incarnation.is_none() => Err(no_workspace()),
                    (Fault::None, Some(effect)) => Ok(state.carry_out(effect)),
                    (Fault::AnswerLost, Some(effect)) => {
                        state.carry_out(effect);
                        Err(lost())
                    }
                    (Fault::Late, Some(effect)) => {
                        self.give_up(&mut state, effect);
                        Err(lost())
                    }
                    (Fault::Refused(status), _) => Err(refused(status)),
                    (..) => Err(lost()),
                }
            };
            if answer.is_err() && !matches!(fault, Fault::Refused(_)) {
                self.unanswered.fetch_add(1, Ordering::Relaxed);
            }
            self.tell(name);
            self.travel().await;
            answer
        }
        .boxed()
    }

    fn request<'a, T: Send + 'a>(
        &'a self,
        name: &'static str,
        serve: impl FnOnce(&mut State) -> Result<T, WorkspaceError> + Send + 'a,
    ) -> Fut<'a, T> {
        async move {
            // As over a network: others run meanwhile.
            self.travel().await;
            self.tell(name);
            let fault = (*self.fault.lock().unwrap_or_else(PoisonError::into_inner))(name);
            self.lock().serve_late();
            let answer = match fault {
                Fault::Lost | Fault::Late => Err(lost()),
                Fault::Refused(status) => Err(refused(status)),
                Fault::None => serve(&mut self.lock()),
                Fault::AnswerLost => serve(&mut self.lock()).and_then(|_| Err(lost())),
            };
            self.tell(name);
            self.travel().await;
            answer
        }
        .boxed()
    }
}

/// A request that has come. Given up by its client, it is a late one.
struct Underway<'a> {
    memory: &'a Memory,
    number: u64,
}

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        let mut state = self.memory.lock();
        if let Some(effect) = state.own.arrived.remove(&self.number) {
            self.memory.give_up(&mut state, effect);
        }
    }
}

fn no_workspace() -> WorkspaceError {
    WorkspaceError::NotFound { what: "workspace memory".into(), request: None }
}

fn commit_info(id: &str, parents: &[&str], message: &str) -> CommitInfo {
    CommitInfo {
        id: CommitId(id.into()),
        parents: parents.iter().map(|parent| CommitId((*parent).into())).collect(),
        author: "Somebody".to_owned(),
        email: "somebody@example.com".to_owned(),
        message: message.to_owned(),
    }
}

/// What is staged at a path comes into a tree. A file that something is staged below makes way for it, and so does a directory
/// for a file: released servers keep one of the two.
fn bring(tree: &mut Tree, path: &RepoPath, content: Option<&Bytes>) {
    let Some(content) = content else {
        tree.remove(path);
        return;
    };
    std::iter::successors(path.parent(), RepoPath::parent).for_each(|above| _ = tree.remove(&above));
    tree.retain(|other, _| other == path || !other.is_in(path));
    tree.insert(path.clone(), content.clone());
}

fn refused(status: u16) -> WorkspaceError {
    WorkspaceError::Refused { status, message: "no".to_owned(), request: None }
}

fn lost() -> WorkspaceError {
    WorkspaceError::Unreachable { server: "memory".into(), cause: "scripted".into(), request: None }
}

impl State {
    /// One request more has been served: late ones may be due.
    fn serve_late(&mut self) {
        let late = std::mem::take(&mut self.own.late);
        for (left, effect) in late {
            match left.checked_sub(1) {
                Some(left) => self.own.late.push((left, effect)),
                None => self.come_late(effect),
            }
        }
    }

    fn come_late(&mut self, effect: Effect) {
        self.come += 1;
        self.carry_out(effect);
    }

    /// Content is in the store, whatever was removed before.
    fn keep(&mut self, content: Bytes) {
        let hash = object(&content).hash;
        self.pruned.remove(&hash);
        self.store.insert(hash, content);
    }

    /// Puts a commit of `tree` on the branch.
    fn make_commit(&mut self, tree: Tree, message: &str) -> String {
        let id = format!("c{}", self.commits.len());
        self.infos.insert(id.clone(), commit_info(&id, &[&self.head], message));
        self.commits.insert(id.clone(), tree);
        self.head.clone_from(&id);
        id
    }

    fn identity(&self) -> Option<WorkspaceIdentity> {
        let made = self.own.incarnation?;
        Some(WorkspaceIdentity {
            id: "memory".into(),
            commit: CommitId(self.own.base.as_str().into()),
            created_at: Some(format!("2026-11-29T00:00:{made:02}Z").into()),
        })
    }

    /// Commits what is staged over the branch's head.
    fn commit(&mut self, request: &CommitRequest, faults: Vec<CommitFault>) -> Result<Committed, WorkspaceError> {
        if self.own.incarnation.is_none() {
            return Err(no_workspace());
        }
        let mut tree = self.commits.get(&self.head).cloned().unwrap_or_default();
        let left_out = |path: &RepoPath| {
            faults.iter().any(|fault| matches!(fault, CommitFault::LeavesOut(out) if path.is_in(out)))
        };
        for (path, content) in self.own.staged.iter().filter(|(path, _)| !left_out(path)) {
            bring(&mut tree, path, content.as_ref());
        }
        for fault in &faults {
            if let CommitFault::Drops(dropped) = fault {
                tree.retain(|path, _| !path.is_in(dropped));
            }
        }
        let parent = CommitId(self.head.as_str().into());
        let mut id = self.make_commit(tree, &request.message);
        if let Some(info) = self.infos.get_mut(&id) {
            info.author.clone_from(&request.author);
            info.email.clone_from(&request.email);
        }
        self.own.base.clone_from(&id);
        self.own.staged.clear();
        for fault in faults {
            if let CommitFault::Names(named) = fault {
                id = named;
            }
        }
        Ok(Committed { id: CommitId(id.into()), parents: vec![parent] })
    }

    /// What a commit has in a directory, by name.
    fn entries(&self, commit: &CommitId, dir: &RepoPath) -> BTreeMap<String, EntryKind> {
        let mut entries = BTreeMap::new();
        for (path, content) in self.commits.get(&*commit.0).into_iter().flatten() {
            let Some(below) = path.below(dir) else { continue };
            let Some(name) = below.components().next().map(str::to_owned) else { continue };
            let kind = if name == below.as_str() { EntryKind::File(object(content)) } else { EntryKind::Dir };
            entries.insert(name, kind);
        }
        entries
    }

    /// All that a commit has below a directory.
    fn below<'a>(&'a self, commit: &CommitId, dir: &'a RepoPath) -> Vec<(&'a RepoPath, &'a Bytes)> {
        let files = self.commits.get(&*commit.0).into_iter().flatten();
        files.filter(|(path, _)| path.is_in(dir)).collect()
    }

    /// Every directory of a commit, the root too.
    fn directories(&self, commit: &CommitId) -> HashSet<RepoPath> {
        let files = self.commits.get(&*commit.0).into_iter().flatten();
        let above = files.flat_map(|(path, _)| std::iter::successors(path.parent(), RepoPath::parent));
        above.chain([RepoPath::root()]).collect()
    }

    fn differences(&self, old: &CommitId, new: &CommitId, dirs: &[RepoPath]) -> Differences {
        let mut differences = Differences::new();
        for dir in dirs {
            let (before, after) = (self.entries(old, dir), self.entries(new, dir));
            for name in before.keys().chain(after.keys()) {
                let sides = Sides { old: before.get(name).copied(), new: after.get(name).copied() };
                let Ok(path) = RepoPath::parse(name).map(|name| dir.concat(&name)) else { continue };
                let are_dirs = sides.old == Some(EntryKind::Dir) && sides.new == Some(EntryKind::Dir);
                if sides.old != sides.new || are_dirs && self.below(old, &path) != self.below(new, &path) {
                    differences.insert(path, sides);
                }
            }
        }
        differences
    }

    /// Does what a request says; one outcome for each of its paths.
    fn carry_out(&mut self, effect: Effect) -> Vec<Outcome> {
        if self.own.incarnation.is_none() {
            return Vec::new();
        }
        let done = |sent_bytes| Outcome::Done { sent_bytes };
        match effect {
            Effect::ByHash(puts) => {
                let stage = |(path, hash): (RepoPath, ContentHash)| match self.store.get(&hash).cloned() {
                    Some(content) => {
                        self.put(&path, content);
                        done(0)
                    }
                    None => Outcome::NeedsBytes,
                };
                puts.into_iter().map(stage).collect()
            }
            Effect::Put(puts) => {
                let stage = |(path, content): (RepoPath, Bytes)| {
                    self.sent_bytes += content.len() as u64;
                    self.keep(content.clone());
                    self.put(&path, content.clone());
                    done(content.len() as u64)
                };
                puts.into_iter().map(stage).collect()
            }
            Effect::Complete { upload, path, hash, sent_bytes } => {
                // A completed upload is known on: completing it again does no harm.
                let whole: Bytes =
                    self.uploads.get(&upload).into_iter().flatten().flat_map(|(_, part)| part.clone()).collect();
                if object(&whole).hash != hash {
                    self.uploads.remove(&upload);
                    let detail = format!("the parts of {path} are not its content");
                    return vec![Outcome::Failed(WorkspaceError::Protocol { detail, request: None })];
                }
                self.keep(whole.clone());
                self.put(&path, whole);
                vec![done(sent_bytes)]
            }
            Effect::Remove(paths) => {
                for path in &paths {
                    // What is staged below a file of the base stays, as with releases from 0.64 on.
                    if self.base().contains_key(path) {
                        self.own.staged.insert(path.clone(), None);
                        continue;
                    }
                    // A directory goes with all below it; what is only staged is unstaged.
                    let gone: Vec<RepoPath> = self.base().keys().filter(|file| file.is_in(path)).cloned().collect();
                    self.own.staged.retain(|file, _| !file.is_in(path));
                    self.own.staged.extend(gone.into_iter().map(|file| (file, None)));
                }
                paths.iter().map(|_| done(0)).collect()
            }
            Effect::Unstage(paths) => {
                paths.iter().for_each(|path| drop(self.own.staged.remove(path)));
                paths.iter().map(|_| done(0)).collect()
            }
        }
    }

    fn base(&self) -> &Tree {
        static EMPTY: Tree = Tree::new();
        self.commits.get(&self.own.base).unwrap_or(&EMPTY)
    }

    fn view(&self) -> Tree {
        let mut view = self.base().clone();
        for (path, content) in &self.own.staged {
            bring(&mut view, path, content.as_ref());
        }
        view
    }

    fn put(&mut self, path: &RepoPath, content: Bytes) {
        let base = self.base().get(path).cloned();
        // The trap: base content over a staged change is answered as if it were staged, and ignored.
        if base.as_ref() == Some(&content) {
            return;
        }
        self.own.staged.insert(path.clone(), Some(content));
    }

    fn content(&self, source: &Source) -> Result<Bytes, WorkspaceError> {
        let found = match &source.revision {
            Revision::Commit(id) => self.commits.get(&*id.0).and_then(|tree| tree.get(&source.path)).cloned(),
            Revision::Workspace => self.view().remove(&source.path),
        };
        let found = found.ok_or_else(|| WorkspaceError::NotFound { what: source.path.to_string(), request: None })?;
        if !self.pruned.is_empty() && self.pruned.contains(&object(&found).hash) {
            return Err(WorkspaceError::Server {
                status: 500,
                message: "No such file or directory".to_owned(),
                request: None,
            });
        }
        Ok(found)
    }
}

/// The bytes of a small file, as they travel.
fn bytes_of(put: &Put) -> Result<Bytes, Outcome> {
    let Some(file) = &put.file else { return Err(Outcome::NeedsBytes) };
    let mut content = vec![0; put.object.size as usize];
    file.read_exact_at(&mut content, 0).map_err(|error| Outcome::Failed(error.into()))?;
    if ContentHash::of(HashKind::Xxh3, &content) != put.object.hash {
        let detail = format!("{} changed while it was sent", put.path);
        return Err(Outcome::Failed(WorkspaceError::Protocol { detail, request: None }));
    }
    Ok(content.into())
}

fn object(content: &Bytes) -> Object {
    Object { hash: ContentHash::of(HashKind::Xxh3, content), size: content.len() as u64 }
}

impl Workspace for Memory {
    fn info(&self) -> &ServerInfo {
        &self.info
    }

    fn unanswered(&self) -> u64 {
        self.unanswered.load(Ordering::Relaxed)
    }

    fn base(&self) -> Fut<'_, CommitId> {
        self.request("base", |state| state.identity().map(|identity| identity.commit).ok_or_else(no_workspace))
    }

    fn identity(&self) -> Fut<'_, Option<WorkspaceIdentity>> {
        self.request("identity", |state| Ok(state.identity()))
    }

    fn reopen<'a>(&'a self, _branch: &'a str, base: &'a CommitId) -> Fut<'a, Reopened> {
        self.request("reopen", move |state| {
            let made = state.own.incarnation.is_none();
            if made {
                state.incarnations += 1;
                state.own.incarnation = Some(state.incarnations);
                let is_known = state.commits.contains_key(&*base.0) && !state.own.follows;
                state.own.base = if is_known { base.0.to_string() } else { state.head.clone() };
            }
            Ok(Reopened { identity: state.identity().ok_or_else(no_workspace)?, made })
        })
    }

    fn renew<'a>(&'a self, _branch: &'a str) -> Fut<'a, Option<WorkspaceIdentity>> {
        self.request("renew", |state| {
            if state.own.shared {
                return Ok(None);
            }
            state.own.staged.clear();
            state.incarnations += 1;
            state.own.incarnation = Some(state.incarnations);
            state.own.base.clone_from(&state.head);
            Ok(state.identity())
        })
    }

    fn head<'a>(&'a self, _branch: &'a str) -> Fut<'a, CommitId> {
        self.request("head", |state| Ok(CommitId(state.head.as_str().into())))
    }

    fn commit_info<'a>(&'a self, commit: &'a CommitId) -> Fut<'a, Option<CommitInfo>> {
        self.request("commit_info", move |state| Ok(state.infos.get(&*commit.0).cloned()))
    }

    fn in_history<'a>(
        &'a self,
        _branch: &'a str,
        commit: &'a CommitId,
        since: Option<&'a CommitId>,
    ) -> Fut<'a, InHistory> {
        self.request("in_history", move |state| {
            let mut next = Some(CommitId(state.head.as_str().into()));
            while let Some(id) = next.filter(|id| Some(id) != since) {
                if id == *commit {
                    return Ok(InHistory::Yes);
                }
                next = state.infos.get(&*id.0).and_then(|info| info.parents.first()).cloned();
            }
            Ok(InHistory::No)
        })
    }

    fn compare<'a>(&'a self, old: &'a CommitId, new: &'a CommitId, scope: Scope<'a>) -> Fut<'a, Differences> {
        self.request("compare", move |state| match scope {
            Scope::Directories(dirs) => Ok(state.differences(old, new, dirs)),
            Scope::Everything => {
                let dirs: HashSet<RepoPath> = &state.directories(old) | &state.directories(new);
                let mut differences = state.differences(old, new, &dirs.into_iter().collect::<Vec<_>>());
                differences.retain(|_, sides| sides.old != sides.new);
                Ok(differences)
            }
        })
    }

    fn missing<'a>(&'a self, hashes: &'a [ContentHash]) -> Fut<'a, Option<Vec<ContentHash>>> {
        self.request("missing", move |state| {
            let missing: HashSet<ContentHash> =
                hashes.iter().filter(|hash| !state.store.contains_key(*hash)).copied().collect();
            Ok(Some(missing.into_iter().collect()))
        })
    }

    fn list<'a>(&'a self, commit: &'a CommitId, dir: &'a RepoPath) -> Fut<'a, Listing> {
        self.request("list", move |state| {
            let entry = |(name, kind)| Entry { name, kind, modified_secs: 1_700_000_000 };
            let entries = state.entries(commit, dir).into_iter().map(entry).collect();
            Ok(Listing { entries, flawed: Vec::new() })
        })
    }

    fn changes(&self) -> Fut<'_, Vec<Change>> {
        self.request("changes", |state| {
            if state.own.incarnation.is_none() {
                return Err(no_workspace());
            }
            let change = |(path, content): (&RepoPath, &Option<Bytes>)| {
                let kind = match (content, state.base().contains_key(path)) {
                    (None, _) => ChangeKind::Removed,
                    (Some(_), true) => ChangeKind::Modified,
                    (Some(_), false) => ChangeKind::Added,
                };
                Change { path: path.clone(), kind }
            };
            Ok(state.own.staged.iter().map(change).collect())
        })
    }

    fn staged_object<'a>(&'a self, change: &'a Change) -> Fut<'a, Object> {
        self.request("staged_object", move |state| match state.own.staged.get(&change.path) {
            Some(Some(content)) => Ok(object(content)),
            _ => Err(WorkspaceError::NotFound { what: change.path.to_string(), request: None }),
        })
    }

    fn fetch<'a>(&'a self, source: &'a Source, _size: u64, into: &'a File) -> Fut<'a, u64> {
        self.request("fetch", move |state| {
            let content = state.content(source)?;
            into.write_all_at(&content, 0)?;
            Ok(content.len() as u64)
        })
    }

    fn read<'a>(&'a self, source: &'a Source, range: Range<u64>) -> Fut<'a, Bytes> {
        self.request("read", move |state| {
            let content = state.content(source)?;
            let end = (range.end as usize).min(content.len());
            Ok(content.slice((range.start as usize).min(end)..end))
        })
    }

    fn gives_parts(&self, source: &Source) -> bool {
        matches!(source.revision, Revision::Commit(_))
    }

    fn read_part<'a>(&'a self, source: &'a Source, range: Range<u64>) -> Fut<'a, Option<Bytes>> {
        self.request("read_part", move |state| {
            let content = state.content(source)?;
            let (start, end) = (range.start as usize, range.end as usize);
            let is_there = end <= content.len() && matches!(source.revision, Revision::Commit(_));
            Ok(is_there.then(|| content.slice(start..end)))
        })
    }

    fn fetch_small<'a>(&'a self, wanted: &'a [Object], take: &'a Take) -> Fut<'a, Option<Vec<ContentHash>>> {
        async move {
            let found: Vec<Option<Bytes>> = self
                .request("fetch_small", |state| {
                    Ok(wanted.iter().map(|object| state.store.get(&object.hash).cloned()).collect())
                })
                .await?;
            // The caller keeps what it takes on its disk, whose witness may copy this server: not while it is locked.
            let mut missing = Vec::new();
            for (object, content) in wanted.iter().zip(found) {
                match content {
                    Some(content) => take(*object, content.to_vec()),
                    None => missing.push(object.hash),
                }
            }
            Ok(Some(missing))
        }
        .boxed()
    }

    fn stage_by_hash<'a>(&'a self, puts: &'a [Put]) -> Fut<'a, Vec<Outcome>> {
        if self.info.by_hash == ByHash::Never {
            return self.request("stage_by_hash", |_| Ok(puts.iter().map(|_| Outcome::NeedsBytes).collect()));
        }
        let puts = puts.iter().map(|put| (put.path.clone(), put.object.hash)).collect();
        self.effect("stage_by_hash", Effect::ByHash(puts))
    }

    fn send_small<'a>(&'a self, puts: &'a [Put]) -> Fut<'a, Vec<Outcome>> {
        async move {
            let read: Vec<Result<Bytes, Outcome>> = puts.iter().map(bytes_of).collect();
            let sent =
                read.iter().zip(puts).filter_map(|(read, put)| Some((put.path.clone(), read.as_ref().ok()?.clone())));
            let mut outcomes = self.effect("send_small", Effect::Put(sent.collect())).await?.into_iter();
            let mut outcome = |read: Result<Bytes, Outcome>| match read {
                Ok(_) => outcomes.next().unwrap_or(Outcome::NeedsBytes),
                Err(outcome) => outcome,
            };
            Ok(read.into_iter().map(&mut outcome).collect())
        }
        .boxed()
    }

    fn send_large<'a>(
        &'a self,
        put: &'a Put,
        resume: Option<Upload>,
        progress: &'a dyn UploadProgress,
    ) -> Fut<'a, Outcome> {
        async move {
            if self.info.by_hash == ByHash::Single {
                let asked = self.stage_by_hash(std::slice::from_ref(put)).await?.pop();
                if let Some(done @ Outcome::Done { .. }) = asked {
                    return Ok(done);
                }
            }
            let Some(file) = &put.file else { return Ok(Outcome::NeedsBytes) };
            let known = |upload: &Upload| self.lock().uploads.contains_key(&upload.id);
            let mut upload = match resume.filter(known) {
                Some(upload) => upload,
                None => {
                    self.request("begin_upload", |state| {
                        let id = format!("u{}", state.uploads_begun);
                        state.uploads_begun += 1;
                        state.uploads.insert(id.clone(), BTreeMap::new());
                        Ok(Upload { id, part_bytes: self.part_bytes, parts: Vec::new() })
                    })
                    .await?
                }
            };
            progress.checkpoint(&upload);
            let mut sent_bytes = 0;
            for part in 0..u32::try_from(put.object.size.div_ceil(upload.part_bytes)).unwrap_or(u32::MAX) {
                if upload.parts.contains(&part) {
                    continue;
                }
                let at = u64::from(part) * upload.part_bytes;
                let mut bytes = vec![0; upload.part_bytes.min(put.object.size - at) as usize];
                file.read_exact_at(&mut bytes, at)?;
                let length = bytes.len() as u64;
                let id = &upload.id;
                self.request("send_part", move |state| {
                    state.sent_bytes += length;
                    state.uploads.entry(id.clone()).or_default().insert(part, bytes.into());
                    Ok(())
                })
                .await?;
                sent_bytes += length;
                upload.parts.push(part);
                progress.checkpoint(&upload);
                progress.sent(length);
            }
            let (upload, path, hash) = (upload.id, put.path.clone(), put.object.hash);
            let complete = Effect::Complete { upload, path, hash, sent_bytes };
            let completed = self.effect("complete_upload", complete).await?.pop();
            Ok(completed.unwrap_or(Outcome::NeedsBytes))
        }
        .boxed()
    }

    fn remove<'a>(&'a self, paths: &'a [RepoPath]) -> Fut<'a, Vec<Outcome>> {
        self.effect("remove", Effect::Remove(paths.to_vec()))
    }

    fn unstage<'a>(&'a self, paths: &'a [RepoPath]) -> Fut<'a, Vec<Outcome>> {
        self.effect("unstage", Effect::Unstage(paths.to_vec()))
    }

    fn rename<'a>(&'a self, from: &'a RepoPath, to: &'a RepoPath) -> Fut<'a, ()> {
        self.request("rename", move |state| {
            let source = Source { revision: Revision::Workspace, path: from.clone() };
            let content = state.content(&source)?;
            if state.base().contains_key(from) {
                state.own.staged.insert(from.clone(), None);
            } else {
                state.own.staged.remove(from);
            }
            state.put(to, content);
            Ok(())
        })
    }

    fn conflicts<'a>(&'a self, _branch: &'a str) -> Fut<'a, Vec<RepoPath>> {
        self.request("conflicts", |_| Ok(Vec::new()))
    }

    fn commit<'a>(&'a self, request: &'a CommitRequest) -> Fut<'a, Committed> {
        self.request("commit", |state| {
            let faults = self.commit_faults.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let committed = state.commit(request, faults.unwrap_or_default())?;
            if !state.infos.contains_key(&*committed.id.0) {
                let detail = format!("the server says that it made commit {}, which it does not have", committed.id);
                return Err(WorkspaceError::Protocol { detail, request: None });
            }
            Ok(committed)
        })
    }
}
