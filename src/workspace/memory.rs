//! A workspace in memory, for tests: the server's traps included, and with a lever for faults.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::FutureExt;

use super::{
    ByHash, Change, ChangeKind, CommitId, CommitRequest, Committed, Entry, EntryKind, Fut, Object, Outcome, Put,
    Revision, ServerInfo, Source, Upload, UploadProgress, Workspace, WorkspaceError,
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
}

/// A tree: path to content.
pub type Tree = BTreeMap<RepoPath, Bytes>;

/// Called with a request's name when it arrives, before its effect, and when its answer leaves.
pub type Witness = Arc<dyn Fn(&'static str) + Send + Sync>;

/// The double.
pub struct Memory {
    info: ServerInfo,
    part_bytes: u64,
    state: Mutex<State>,
    fault: Mutex<Box<dyn FnMut(&'static str) -> Fault + Send>>,
    witness: Mutex<Option<Witness>>,
}

#[derive(Clone)]
struct State {
    commits: HashMap<String, Tree>,
    base: String,
    staged: BTreeMap<RepoPath, Option<Bytes>>,
    store: HashMap<ContentHash, Bytes>,
    /// Parts received, by upload and number.
    uploads: HashMap<String, BTreeMap<u32, Bytes>>,
    sent_bytes: u64,
}

impl Memory {
    /// An empty repository.
    pub fn new(by_hash: ByHash) -> Self {
        let info = ServerInfo { version: "memory".into(), dialect: "memory", hash_kind: HashKind::Xxh3, by_hash };
        let state = State {
            commits: HashMap::from([("c0".to_owned(), Tree::new())]),
            base: "c0".to_owned(),
            staged: BTreeMap::new(),
            store: HashMap::new(),
            uploads: HashMap::new(),
            sent_bytes: 0,
        };
        Self::with(info, state)
    }

    fn with(info: ServerInfo, state: State) -> Self {
        let fault: Box<dyn FnMut(&'static str) -> Fault + Send> = Box::new(|_| Fault::None);
        let (fault, witness) = (Mutex::new(fault), Mutex::default());
        Self { info, part_bytes: PART_BYTES, state: Mutex::new(state), fault, witness }
    }

    /// Another server that holds what this one holds now.
    pub fn fork(&self) -> Self {
        let state = self.lock().clone();
        Self::with(self.info.clone(), state)
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
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the base by a commit of `tree`.
    pub fn set_base(&self, tree: Tree) {
        let mut state = self.lock();
        for content in tree.values() {
            state.store.insert(ContentHash::of(HashKind::Xxh3, content), content.clone());
        }
        let id = format!("c{}", state.commits.len());
        state.commits.insert(id.clone(), tree);
        state.base = id;
    }

    /// Stages a change as another client would.
    pub fn stage_foreign(&self, path: RepoPath, content: Option<Bytes>) {
        let mut state = self.lock();
        if let Some(content) = &content {
            state.store.insert(ContentHash::of(HashKind::Xxh3, content), content.clone());
        }
        state.staged.insert(path, content);
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

    /// The base commit's tree.
    pub fn base_tree(&self) -> Tree {
        let state = self.lock();
        state.commits.get(&state.base).cloned().unwrap_or_default()
    }

    fn request<'a, T: Send + 'a>(
        &'a self,
        name: &'static str,
        serve: impl FnOnce(&mut State) -> Result<T, WorkspaceError> + Send + 'a,
    ) -> Fut<'a, T> {
        async move {
            // As over a network: others run meanwhile.
            tokio::task::yield_now().await;
            self.tell(name);
            let lost = || WorkspaceError::Unreachable { server: "memory".into(), cause: "scripted".into() };
            let fault = (*self.fault.lock().unwrap_or_else(PoisonError::into_inner))(name);
            let answer = match fault {
                Fault::Lost => Err(lost()),
                Fault::None => serve(&mut self.lock()),
                Fault::AnswerLost => serve(&mut self.lock()).and_then(|_| Err(lost())),
            };
            self.tell(name);
            answer
        }
        .boxed()
    }
}

impl State {
    fn base(&self) -> &Tree {
        static EMPTY: Tree = Tree::new();
        self.commits.get(&self.base).unwrap_or(&EMPTY)
    }

    fn view(&self) -> Tree {
        let mut view = self.base().clone();
        for (path, content) in &self.staged {
            match content {
                Some(content) => view.insert(path.clone(), content.clone()),
                None => view.remove(path),
            };
        }
        view
    }

    fn put(&mut self, path: &RepoPath, content: Bytes) {
        let base = self.base().get(path).cloned();
        // The trap: base content over a staged change is answered as if it were staged, and ignored.
        if base.as_ref() == Some(&content) {
            return;
        }
        self.staged.insert(path.clone(), Some(content));
    }

    fn take(&mut self, put: &Put) -> Outcome {
        let Some(file) = &put.file else { return Outcome::NeedsBytes };
        let mut content = vec![0; put.object.size as usize];
        if let Err(error) = file.read_exact_at(&mut content, 0) {
            return Outcome::Failed(error.into());
        }
        if ContentHash::of(HashKind::Xxh3, &content) != put.object.hash {
            let detail = format!("{} changed while it was sent", put.path);
            return Outcome::Failed(WorkspaceError::Protocol { detail });
        }
        let content = Bytes::from(content);
        self.sent_bytes += put.object.size;
        self.store.insert(put.object.hash, content.clone());
        self.put(&put.path, content);
        Outcome::Done { sent_bytes: put.object.size }
    }

    fn content(&self, source: &Source) -> Result<Bytes, WorkspaceError> {
        let found = match &source.revision {
            Revision::Commit(id) => self.commits.get(&*id.0).and_then(|tree| tree.get(&source.path)).cloned(),
            Revision::Workspace => self.view().remove(&source.path),
        };
        found.ok_or_else(|| WorkspaceError::NotFound { what: source.path.to_string() })
    }
}

fn object(content: &Bytes) -> Object {
    Object { hash: ContentHash::of(HashKind::Xxh3, content), size: content.len() as u64 }
}

impl Workspace for Memory {
    fn info(&self) -> &ServerInfo {
        &self.info
    }

    fn base(&self) -> Fut<'_, CommitId> {
        self.request("base", |state| Ok(CommitId(state.base.as_str().into())))
    }

    fn list<'a>(&'a self, commit: &'a CommitId, dir: &'a RepoPath) -> Fut<'a, Vec<Entry>> {
        self.request("list", move |state| {
            let mut entries = BTreeMap::new();
            for (path, content) in state.commits.get(&*commit.0).into_iter().flatten() {
                let Some(below) = path.below(dir) else { continue };
                let Some(name) = below.components().next().map(str::to_owned) else { continue };
                let kind = if name == below.as_str() { EntryKind::File(object(content)) } else { EntryKind::Dir };
                entries.insert(name.clone(), Entry { name, kind, modified_secs: 1_700_000_000 });
            }
            Ok(entries.into_values().collect())
        })
    }

    fn changes(&self) -> Fut<'_, Vec<Change>> {
        self.request("changes", |state| {
            let change = |(path, content): (&RepoPath, &Option<Bytes>)| {
                let kind = match (content, state.base().contains_key(path)) {
                    (None, _) => ChangeKind::Removed,
                    (Some(_), true) => ChangeKind::Modified,
                    (Some(_), false) => ChangeKind::Added,
                };
                Change { path: path.clone(), kind }
            };
            Ok(state.staged.iter().map(change).collect())
        })
    }

    fn staged_object<'a>(&'a self, change: &'a Change) -> Fut<'a, Object> {
        self.request("staged_object", move |state| match state.staged.get(&change.path) {
            Some(Some(content)) => Ok(object(content)),
            _ => Err(WorkspaceError::NotFound { what: change.path.to_string() }),
        })
    }

    fn fetch<'a>(&'a self, source: &'a Source, into: &'a File) -> Fut<'a, u64> {
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

    fn stage_by_hash<'a>(&'a self, puts: &'a [Put]) -> Fut<'a, Vec<Outcome>> {
        self.request("stage_by_hash", move |state| {
            let by_hash = self.info.by_hash != ByHash::Never;
            let stage = |put: &Put| match state.store.get(&put.object.hash).cloned().filter(|_| by_hash) {
                Some(content) => {
                    state.put(&put.path, content);
                    Outcome::Done { sent_bytes: 0 }
                }
                None => Outcome::NeedsBytes,
            };
            Ok(puts.iter().map(stage).collect())
        })
    }

    fn send_small<'a>(&'a self, puts: &'a [Put]) -> Fut<'a, Vec<Outcome>> {
        self.request("send_small", move |state| Ok(puts.iter().map(|put| state.take(put)).collect()))
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
                        let id = format!("u{}", state.uploads.len());
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
            let id = &upload.id;
            self.request("complete_upload", move |state| {
                // A completed upload is known on: completing it again does no harm.
                let whole: Bytes =
                    state.uploads.get(id).into_iter().flatten().flat_map(|(_, part)| part.clone()).collect();
                if ContentHash::of(HashKind::Xxh3, &whole) != put.object.hash {
                    state.uploads.remove(id);
                    let detail = format!("the parts of {} are not its content", put.path);
                    return Ok(Outcome::Failed(WorkspaceError::Protocol { detail }));
                }
                state.store.insert(put.object.hash, whole.clone());
                state.put(&put.path, whole);
                Ok(Outcome::Done { sent_bytes })
            })
            .await
        }
        .boxed()
    }

    fn remove<'a>(&'a self, paths: &'a [RepoPath]) -> Fut<'a, Vec<Outcome>> {
        self.request("remove", move |state| {
            for path in paths {
                // A directory goes with all below it. The trap: so does the directory of a file that is only staged.
                let known = state.base().keys().any(|file| file.is_in(path));
                let around = if known { Some(path.clone()) } else { path.parent().filter(|dir| !dir.is_root()) };
                let Some(path) = &around else { continue };
                let gone: Vec<RepoPath> = state.base().keys().filter(|file| file.is_in(path)).cloned().collect();
                state.staged.retain(|file, _| !file.is_in(path));
                state.staged.extend(gone.into_iter().map(|file| (file, None)));
            }
            Ok(paths.iter().map(|_| Outcome::Done { sent_bytes: 0 }).collect())
        })
    }

    fn unstage<'a>(&'a self, paths: &'a [RepoPath]) -> Fut<'a, Vec<Outcome>> {
        self.request("unstage", move |state| {
            for path in paths {
                state.staged.remove(path);
            }
            Ok(paths.iter().map(|_| Outcome::Done { sent_bytes: 0 }).collect())
        })
    }

    fn rename<'a>(&'a self, from: &'a RepoPath, to: &'a RepoPath) -> Fut<'a, ()> {
        self.request("rename", move |state| {
            let source = Source { revision: Revision::Workspace, path: from.clone() };
            let content = state.content(&source)?;
            if state.base().contains_key(from) {
                state.staged.insert(from.clone(), None);
            } else {
                state.staged.remove(from);
            }
            state.put(to, content);
            Ok(())
        })
    }

    fn conflicts<'a>(&'a self, _branch: &'a str) -> Fut<'a, Vec<RepoPath>> {
        self.request("conflicts", |_| Ok(Vec::new()))
    }

    fn commit<'a>(&'a self, _request: &'a CommitRequest) -> Fut<'a, Committed> {
        self.request("commit", |state| {
            let tree = state.view();
            let parent = CommitId(state.base.as_str().into());
            let id = format!("c{}", state.commits.len());
            state.commits.insert(id.clone(), tree);
            state.base = id.clone();
            state.staged.clear();
            Ok(Committed { id: CommitId(id.into()), parents: vec![parent] })
        })
    }
}
