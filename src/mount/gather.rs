//! What many workers staged, each in a workspace of its own, as one commit of a branch: all of it, or nothing.
//!
//! What is staged is read from each workspace and put together; what collides, with another worker's or with what the
//! branch has become, is named before anything is staged. Then it is staged once more, by hash, in a workspace that is made
//! for it on the branch's head; that is compared, committed and read back. The workers' workspaces stay as they are, unless
//! they are to be deleted; then only after the commit was found whole, and where nothing more was staged meanwhile.

mod plan;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};

use crate::hash::ContentHash;
use crate::oxen::{Claim, OxenWorkspace, Repository};
use crate::path::RepoPath;
use crate::workspace::{
    ChangeKind, CommitId, CommitRequest, EntryKind, Object, Outcome, Over, Put, Revision, Source, Upload,
    UploadProgress, Workspace, WorkspaceError,
};
pub use plan::{Collision, OnCollision, OnConflict};
use plan::{Wanted, Work, combine};

/// Requests about single files at once.
const AT_ONCE: usize = 8;
/// Files in one request by hash.
const BATCH: usize = 500;
/// Files up to this many bytes go in one request, larger ones in parts.
const SMALL: u64 = 8 << 20;

/// What is to be gathered.
#[derive(Debug)]
pub struct Gathering<'a> {
    /// The commit to be made.
    pub request: &'a CommitRequest,
    /// The workers' workspaces, in the order in which they win or lose.
    pub from: &'a [String],
    /// The workspace that it is staged in: one that nobody has.
    pub into: &'a str,
    /// What becomes of a path of which two workers made two things.
    pub on_collision: OnCollision,
    /// What becomes of a path that the branch changed too.
    pub on_conflict: OnConflict,
    /// Whether the workers' workspaces go, but for those that are in use, with the reason.
    pub delete: Option<&'a BTreeMap<String, String>>,
}

/// What was gathered.
#[derive(Debug, Default)]
pub struct Gathered {
    /// The commit; `None`: the branch has all of it.
    pub commit: Option<CommitId>,
    /// How many changes each workspace had.
    pub changes: Vec<(String, u64)>,
    /// Files that were added or changed.
    pub put: u64,
    /// Files that were removed.
    pub removed: u64,
    /// Bytes that travelled, where the server cannot stage by hash.
    pub sent_bytes: u64,
    /// Workspaces that were deleted.
    pub deleted: Vec<String>,
    /// Those that were to be deleted and are there, and why.
    pub kept: Vec<(String, String)>,
}

/// Why nothing was committed, or what is wrong with what was.
#[derive(Debug, thiserror::Error)]
pub enum GatherError {
    /// The server's.
    #[error(transparent)]
    Server(#[from] WorkspaceError),
    /// There is no such workspace.
    #[error("there is no workspace {0}")]
    NoWorkspace(String),
    /// There is no such branch.
    #[error("there is no branch {0}")]
    NoBranch(String),
    /// Two workers made two things of one path, or a file where another has a directory.
    #[error("{} made different things of the same paths: {}", workers(.0), shown(.0))]
    Collide(Vec<Collision>),
    /// The branch has changed the same paths since the workers' commits.
    #[error("changed here and on {branch}: {}", listed(.paths))]
    Conflict {
        /// The branch.
        branch: String,
        /// The paths.
        paths: Vec<RepoPath>,
    },
    /// A file and a directory change places, which a server does not do in one commit.
    #[error("a directory and a file change places: {}", listed(.0))]
    Places(Vec<RepoPath>),
    /// Somebody staged meanwhile.
    #[error("something was staged in workspace {0} meanwhile")]
    Moving(String),
    /// Not all of it was staged.
    #[error("staged otherwise than asked for: {}", listed(.0))]
    Unstaged(Vec<RepoPath>),
    /// The commit was made and lacks something.
    #[error("commit {commit} was made and is not what was gathered: {}", listed(.paths))]
    Incomplete {
        /// The commit.
        commit: CommitId,
        /// Where it differs.
        paths: Vec<RepoPath>,
    },
    /// This disk's, where bytes go by way of it.
    #[error("temporary file: {0}")]
    Disk(std::io::Error),
}

/// How many paths an error names.
const SHOWN: usize = 10;

fn listed(paths: &[RepoPath]) -> String {
    let shown: Vec<&str> = paths.iter().take(SHOWN).map(RepoPath::as_str).collect();
    more(shown.join(", "), paths.len())
}

fn shown(collisions: &[Collision]) -> String {
    let shown: Vec<String> = collisions.iter().take(SHOWN).map(ToString::to_string).collect();
    more(shown.join(", "), collisions.len())
}

fn more(shown: String, all: usize) -> String {
    match all.saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

fn workers(collisions: &[Collision]) -> String {
    let names: BTreeSet<&str> = collisions.iter().flat_map(|one| [one.first.as_str(), one.last.as_str()]).collect();
    names.into_iter().collect::<Vec<_>>().join(" and ")
}

/// Makes one commit of what is staged in all of these workspaces. Says beforehand, through `say`, what takes its time.
///
/// # Errors
/// Nothing is committed then, but for [`GatherError::Incomplete`]. The workers' workspaces are as they were.
pub async fn gather(
    repository: &Repository,
    wish: &Gathering<'_>,
    say: &mut dyn FnMut(String),
) -> Result<Gathered, GatherError> {
    let mut sources = Vec::with_capacity(wish.from.len());
    for name in wish.from {
        // To open one that is not there would make it.
        if repository.workspace(name).await?.is_none() {
            return Err(GatherError::NoWorkspace(name.clone()));
        }
        let workspace = repository.open_workspace(name, &wish.request.branch, Claim::Shared).await?;
        let base = workspace.base().await?;
        let work = staged_in(&workspace, name, say).await?;
        sources.push(Worker { name: name.clone(), workspace, base, work });
    }
    let mut gathered = Gathered {
        changes: sources.iter().map(|worker| (worker.name.clone(), worker.work.len() as u64)).collect(),
        ..Gathered::default()
    };
    let named: Vec<(&str, &Work)> = sources.iter().map(|worker| (worker.name.as_str(), &worker.work)).collect();
    let all = combine(&named, wish.on_collision).map_err(GatherError::Collide)?;
    let branch = repository.branch(&wish.request.branch).await?;
    let head = branch.ok_or_else(|| GatherError::NoBranch(wish.request.branch.clone()))?;
    let head = CommitId(head.commit_id.as_str().into());

    let Some(first) = sources.first() else { return Ok(gathered) };
    let mut commits = Commits { workspace: &first.workspace, known: HashMap::new() };
    let (mut puts, mut removed, mut over) = (BTreeMap::new(), BTreeSet::new(), HashMap::new());
    let (mut conflicts, mut places) = (Vec::new(), Vec::new());
    for (path, (wanted, worker)) in all {
        let before = commits.at(&sources[worker].base, &path).await?;
        let now = commits.at(&head, &path).await?;
        let is_there = match wanted {
            Wanted::File(object) => now == Some(EntryKind::File(object)),
            Wanted::Gone => !matches!(now, Some(EntryKind::File(_))),
        };
        if is_there {
            continue;
        }
        if before != now {
            match wish.on_conflict {
                OnConflict::Fail => conflicts.push(path.clone()),
                OnConflict::Theirs => continue,
                OnConflict::Ours => {}
            }
        }
        if let Wanted::File(object) = wanted {
            if now == Some(EntryKind::Dir) || commits.is_in_file(&head, &path).await? {
                places.push(path);
                continue;
            }
            if let Some(EntryKind::File(there)) = now
                && there.size == object.size
            {
                over.insert(path.clone(), Over::SameLength { staged: false });
            }
            puts.insert(path, (object, worker));
        } else {
            removed.insert(path);
        }
    }
    if !conflicts.is_empty() {
        return Err(GatherError::Conflict { branch: wish.request.branch.clone(), paths: conflicts });
    }
    if !places.is_empty() {
        return Err(GatherError::Places(places));
    }
    if !(puts.is_empty() && removed.is_empty()) {
        let removals = topmost(&mut commits, &head, &removed, &puts).await?;
        let change = Changed { puts, removed, over, removals };
        let made = commit(repository, wish, &sources, &change, &head, &mut gathered, say).await;
        // It holds nothing but copies.
        let gone = repository.delete_workspace(wish.into).await;
        let commit = made?;
        if let Err(error) = gone {
            gathered.kept.push((wish.into.to_owned(), error.to_string()));
        }
        (gathered.put, gathered.removed) = (change.puts.len() as u64, change.removed.len() as u64);
        gathered.commit = Some(commit);
    }
    if let Some(in_use) = wish.delete {
        for worker in &sources {
            match delete(repository, worker, in_use.get(&worker.name), say).await {
                Ok(()) => gathered.deleted.push(worker.name.clone()),
                Err(why) => gathered.kept.push((worker.name.clone(), why)),
            }
        }
    }
    Ok(gathered)
}

/// One worker's workspace.
struct Worker {
    name: String,
    workspace: OxenWorkspace,
    /// The commit it stands on.
    base: CommitId,
    /// What was staged in it when it was read.
    work: Work,
}

/// What the commit changes on the branch's head.
struct Changed {
    /// The content, and which worker has it.
    puts: BTreeMap<RepoPath, (Object, usize)>,
    /// Files that go.
    removed: BTreeSet<RepoPath>,
    /// Where the head has other content of the same length.
    over: HashMap<RepoPath, Over>,
    /// What is asked to be removed for that: files, and directories of which nothing is left.
    removals: Vec<RepoPath>,
}

/// Everything that is staged in a workspace.
async fn staged_in(workspace: &OxenWorkspace, name: &str, say: &mut dyn FnMut(String)) -> Result<Work, WorkspaceError> {
    let changes = workspace.changes().await?;
    let modified = changes.iter().filter(|change| change.kind == ChangeKind::Modified).count();
    if modified > 0 {
        say(format!("{modified} changed files of workspace {name} are read, to know what they hold"));
    }
    let asked = changes.iter().map(|change| async move {
        let wanted = match change.kind {
            ChangeKind::Removed => Wanted::Gone,
            ChangeKind::Added | ChangeKind::Modified => Wanted::File(workspace.staged_object(change).await?),
        };
        Ok::<_, WorkspaceError>((change.path.clone(), wanted))
    });
    stream::iter(asked.collect::<Vec<_>>()).buffer_unordered(AT_ONCE).try_collect().await
}

/// What commits have, a listing a directory.
struct Commits<'a> {
    workspace: &'a OxenWorkspace,
    known: HashMap<(CommitId, RepoPath), HashMap<String, EntryKind>>,
}

impl Commits<'_> {
    async fn entries(
        &mut self,
        commit: &CommitId,
        dir: &RepoPath,
    ) -> Result<&HashMap<String, EntryKind>, WorkspaceError> {
        let key = (commit.clone(), dir.clone());
        if !self.known.contains_key(&key) {
            let entries = self.workspace.list(commit, dir).await?;
            let named = entries.into_iter().map(|entry| (entry.name, entry.kind)).collect();
            self.known.insert(key.clone(), named);
        }
        Ok(&self.known[&key])
    }

    /// The first of the directories around `path` that is none; what is at `path` without one.
    async fn walk(&mut self, commit: &CommitId, path: &RepoPath) -> Result<(Option<EntryKind>, bool), WorkspaceError> {
        let mut above: Vec<RepoPath> = std::iter::successors(path.parent(), RepoPath::parent).collect();
        above.reverse();
        above.push(path.clone());
        for pair in above.windows(2) {
            let found = self.entries(commit, &pair[0]).await?.get(pair[1].file_name()).copied();
            match found {
                found if pair[1] == *path => return Ok((found, false)),
                Some(EntryKind::Dir) => {}
                other => return Ok((None, other.is_some())),
            }
        }
        Ok((None, false))
    }

    async fn at(&mut self, commit: &CommitId, path: &RepoPath) -> Result<Option<EntryKind>, WorkspaceError> {
        Ok(self.walk(commit, path).await?.0)
    }

    /// Whether the commit has a file where a directory around `path` would have to be.
    async fn is_in_file(&mut self, commit: &CommitId, path: &RepoPath) -> Result<bool, WorkspaceError> {
        Ok(self.walk(commit, path).await?.1)
    }
}

/// What to remove so that no directory is left empty: a server keeps one whose files were removed one by one.
async fn topmost(
    commits: &mut Commits<'_>,
    head: &CommitId,
    removed: &BTreeSet<RepoPath>,
    puts: &BTreeMap<RepoPath, (Object, usize)>,
) -> Result<Vec<RepoPath>, WorkspaceError> {
    let mut dirs: BTreeSet<RepoPath> = BTreeSet::new();
    for path in removed {
        dirs.extend(std::iter::successors(path.parent(), RepoPath::parent).filter(|dir| !dir.is_root()));
    }
    for path in puts.keys() {
        for dir in std::iter::successors(path.parent(), RepoPath::parent) {
            dirs.remove(&dir);
        }
    }
    let mut emptied: BTreeSet<RepoPath> = BTreeSet::new();
    // A directory comes after those around it.
    for dir in dirs.iter().rev() {
        let entries = commits.entries(head, dir).await?;
        let goes = |(name, kind): (&String, &EntryKind)| {
            let path = RepoPath::parse(&format!("{dir}/{name}"));
            path.is_ok_and(|path| match kind {
                EntryKind::File(_) => removed.contains(&path),
                EntryKind::Dir => emptied.contains(&path),
            })
        };
        if entries.iter().all(goes) {
            emptied.insert(dir.clone());
        }
    }
    let goes_with =
        |path: &RepoPath| std::iter::successors(path.parent(), RepoPath::parent).any(|dir| emptied.contains(&dir));
    Ok(removed.iter().chain(&emptied).filter(|path| !goes_with(path)).cloned().collect())
}

/// Stages all of it, looks whether it is, commits, and looks whether that is whole.
async fn commit(
    repository: &Repository,
    wish: &Gathering<'_>,
    sources: &[Worker],
    change: &Changed,
    head: &CommitId,
    gathered: &mut Gathered,
    say: &mut dyn FnMut(String),
) -> Result<CommitId, GatherError> {
    let workspace = repository.open_workspace(wish.into, &wish.request.branch, Claim::Own).await?;
    if !workspace.is_new() || workspace.base().await? != *head {
        return Err(GatherError::Moving(wish.into.to_owned()));
    }
    let lacking = stage(&workspace, change).await?;
    if !lacking.is_empty() {
        say(format!("the server cannot take {} files by hash: their bytes travel", lacking.len()));
        gathered.sent_bytes = send(&workspace, sources, change, &lacking).await?;
    }
    done(workspace.remove(&change.removals).await?)?;
    let staged: BTreeMap<RepoPath, ChangeKind> =
        workspace.changes().await?.into_iter().map(|change| (change.path, change.kind)).collect();
    let is_right = |path: &RepoPath| match staged.get(path) {
        Some(ChangeKind::Removed) => change.removed.contains(path),
        Some(ChangeKind::Added | ChangeKind::Modified) => change.puts.contains_key(path),
        None => false,
    };
    let all: BTreeSet<&RepoPath> = change.puts.keys().chain(&change.removed).chain(staged.keys()).collect();
    let wrong: Vec<RepoPath> = all.into_iter().filter(|path| !is_right(path)).cloned().collect();
    if !wrong.is_empty() {
        return Err(GatherError::Unstaged(wrong));
    }
    for worker in sources {
        let now: BTreeMap<RepoPath, ChangeKind> =
            worker.workspace.changes().await?.into_iter().map(|change| (change.path, change.kind)).collect();
        let same = now.len() == worker.work.len()
            && now.iter().all(|(path, kind)| {
                let removed = *kind == ChangeKind::Removed;
                worker.work.get(path).is_some_and(|wanted| (*wanted == Wanted::Gone) == removed)
            });
        if !same {
            return Err(GatherError::Moving(worker.name.clone()));
        }
    }
    let conflicts = workspace.conflicts(&wish.request.branch).await?;
    if !conflicts.is_empty() {
        return Err(GatherError::Conflict { branch: wish.request.branch.clone(), paths: conflicts });
    }
    let made = workspace.commit(wish.request).await?.id;
    let mut commits = Commits { workspace: &workspace, known: HashMap::new() };
    let mut wrong = Vec::new();
    for (path, (object, _)) in &change.puts {
        if commits.at(&made, path).await? != Some(EntryKind::File(*object)) {
            wrong.push(path.clone());
        }
    }
    for path in &change.removed {
        if commits.at(&made, path).await?.is_some() {
            wrong.push(path.clone());
        }
    }
    match wrong.is_empty() {
        true => Ok(made),
        false => Err(GatherError::Incomplete { commit: made, paths: wrong }),
    }
}

fn done(outcomes: Vec<Outcome>) -> Result<(), WorkspaceError> {
    outcomes.into_iter().try_for_each(|outcome| match outcome {
        Outcome::Done { .. } => Ok(()),
        Outcome::NeedsBytes => Err(WorkspaceError::Overlooked),
        Outcome::Failed(error) => Err(error),
    })
}

/// Stages by hash; returns what the server wants the bytes of.
async fn stage(workspace: &OxenWorkspace, change: &Changed) -> Result<Vec<RepoPath>, WorkspaceError> {
    let puts: Vec<Put> = change.puts.keys().map(|path| put(change, path, None)).collect();
    let mut lacking = Vec::new();
    for batch in puts.chunks(BATCH) {
        for (put, outcome) in batch.iter().zip(workspace.stage_by_hash(batch).await?) {
            match outcome {
                Outcome::Done { .. } => {}
                Outcome::NeedsBytes => lacking.push(put.path.clone()),
                Outcome::Failed(error) => return Err(error),
            }
        }
    }
    Ok(lacking)
}

fn put(change: &Changed, path: &RepoPath, file: Option<Arc<File>>) -> Put {
    let over = change.over.get(path).copied().unwrap_or_default();
    Put { path: path.clone(), object: change.puts[path].0, file, over }
}

/// Nobody watches.
struct Unwatched;

impl UploadProgress for Unwatched {
    fn checkpoint(&self, _: &Upload) {}

    fn sent(&self, _: u64) {}
}

/// Brings the bytes here, looks whether they are the right ones, and sends them. Returns how many travelled.
async fn send(
    workspace: &OxenWorkspace,
    sources: &[Worker],
    change: &Changed,
    lacking: &[RepoPath],
) -> Result<u64, GatherError> {
    let mut sent = 0;
    for path in lacking {
        let (object, worker) = change.puts[path];
        let file = unnamed().map_err(GatherError::Disk)?;
        let source = Source { revision: Revision::Workspace, path: path.clone() };
        sources[worker].workspace.fetch(&source, object.size, &file).await?;
        let (hash, size) = ContentHash::of_file(object.hash.kind(), &file, || true).map_err(GatherError::Disk)?;
        if (hash, size) != (object.hash, object.size) {
            return Err(GatherError::Moving(sources[worker].name.clone()));
        }
        let put = put(change, path, Some(Arc::new(file)));
        if size <= SMALL {
            done(workspace.send_small(std::slice::from_ref(&put)).await?)?;
        } else {
            done(vec![workspace.send_large(&put, None, &Unwatched).await?])?;
        }
        sent += size;
    }
    Ok(sent)
}

/// A file that is gone with its last descriptor.
fn unnamed() -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE).open(std::env::temp_dir())
}

/// Deletes a worker's workspace if all that is staged in it was gathered. Says why not.
async fn delete(
    repository: &Repository,
    worker: &Worker,
    in_use: Option<&String>,
    say: &mut dyn FnMut(String),
) -> Result<(), String> {
    if let Some(why) = in_use {
        return Err(why.clone());
    }
    match staged_in(&worker.workspace, &worker.name, say).await {
        Ok(now) if now == worker.work => {}
        Ok(_) => return Err("something was staged in it meanwhile".to_owned()),
        Err(error) => return Err(error.to_string()),
    }
    repository.delete_workspace(&worker.name).await.map(|_| ()).map_err(|error| error.to_string())
}
