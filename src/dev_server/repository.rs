//! One repository: branches, commits and workspaces, and where they are kept.
//!
//! ```text
//! repositories/{namespace}/{name}/
//!   state.json        branches, workspaces; replaced whole, so that a commit and what it does to its workspace are one
//!   commits/{id}.json
//!   trees/            directories by hash
//!   versions/         contents by hash
//!   chunks/{hash}/    parts of contents that are uploaded in chunks
//!   staged/{number}   logs of staged changes
//! ```

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::answers::{CommitView, Refusal, now, random_id};
use super::faults::OddCommit;
use super::repositories::FIRST_BRANCH;
use super::tree::{Change, DirNode, Node, Trees};
use super::versions::{Content, Versions, write_whole};
use super::workspace::{Base, Staged, Staging, collides};
use super::{App, Dialect};
use crate::hash::{ContentHash, HashKind};
use crate::path::RepoPath;

/// Who made the first commit of a repository that a workspace was asked for while it was empty.
const OXEN: Author = Author { name: "Oxen", email: "oxen@oxen.ai" };

/// The message of a repository's first commit.
const INITIAL_MESSAGE: &str = "Initial commit";

/// Whose name a commit carries.
#[derive(Debug, Clone, Copy)]
pub(super) struct Author<'a> {
    pub(super) name: &'a str,
    pub(super) email: &'a str,
}

/// A repository that requests work on.
#[derive(Debug)]
pub(super) struct Repository {
    pub(super) namespace: String,
    pub(super) name: String,
    /// Its contents.
    pub(super) versions: Versions,
    /// Its directories.
    pub(super) trees: Trees,
    dialect: Dialect,
    dir: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    record: Record,
    commits: HashMap<String, Commit>,
    /// By workspace id.
    staged: HashMap<String, Staging>,
}

/// `state.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    uuid: String,
    branches: BTreeMap<String, String>,
    workspaces: BTreeMap<String, WorkspaceRecord>,
    /// The number of the next log.
    next_log: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct WorkspaceRecord {
    name: Option<String>,
    commit: String,
    created_at: String,
    log: u64,
}

/// A commit and its tree.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Commit {
    #[serde(flatten)]
    pub(super) view: Arc<CommitView>,
    pub(super) root: DirNode,
}

/// A workspace as answers show it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct WorkspaceView {
    pub(super) id: String,
    pub(super) name: Option<String>,
    pub(super) commit: Arc<CommitView>,
    pub(super) created_at: String,
}

/// What the first component of a path to be read named.
pub(super) struct Revision {
    /// As it was named.
    pub(super) version: String,
    pub(super) commit: Commit,
    /// When it was a workspace: itself, and what is staged in it.
    pub(super) workspace: Option<(Arc<WorkspaceView>, BTreeMap<RepoPath, Staged>)>,
}

/// Whether a workspace can be committed.
pub(super) struct Mergeability {
    pub(super) conflicts: Vec<RepoPath>,
    /// What the branch has and the workspace has not seen, newest first, down to the workspace's own.
    pub(super) commits: Vec<Arc<CommitView>>,
}

impl Repository {
    /// The repository when it exists.
    pub(super) fn find(app: &App, namespace: &str, name: &str) -> Result<Arc<Self>, Refusal> {
        let key = (namespace.to_owned(), name.to_owned());
        let mut opened = app.opened();
        if let Some(repository) = opened.get(&key) {
            return Ok(Arc::clone(repository));
        }
        let dir = app.repository_dir(namespace, name);
        if !is_name(namespace) || !is_name(name) || !dir.join("state.json").exists() {
            return Err(Refusal::no_repository(namespace, name));
        }
        let repository = Arc::new(Self::open(app, namespace, name, dir)?);
        opened.insert(key, Arc::clone(&repository));
        Ok(repository)
    }

    /// A new one without commits.
    pub(super) fn create(app: &App, namespace: &str, name: &str) -> Result<Arc<Self>, Refusal> {
        for (what, text) in [("namespace", namespace), ("repository name", name)] {
            if !is_name(text) {
                let message = format!("Invalid {what} '{text}'. Must match [a-zA-Z0-9][a-zA-Z0-9_.-]+");
                return Err(Refusal::bad_body(message));
            }
        }
        let mut opened = app.opened();
        let dir = app.repository_dir(namespace, name);
        if dir.join("state.json").exists() {
            return Err(Refusal::repository_exists());
        }
        for part in ["commits", "staged"] {
            fs::create_dir_all(dir.join(part))?;
        }
        let record = Record { uuid: random_id(), branches: BTreeMap::new(), workspaces: BTreeMap::new(), next_log: 0 };
        write_whole(&dir.join("state.json"), &json(&record)?)?;
        let repository = Arc::new(Self::open(app, namespace, name, dir)?);
        opened.insert((namespace.to_owned(), name.to_owned()), Arc::clone(&repository));
        Ok(repository)
    }

    /// Removes a repository with everything in it.
    pub(super) fn delete(app: &App, namespace: &str, name: &str) -> Result<(), Refusal> {
        let repository = Self::find(app, namespace, name)?;
        app.opened().remove(&(namespace.to_owned(), name.to_owned()));
        fs::remove_dir_all(&repository.dir)?;
        Ok(())
    }

    fn open(app: &App, namespace: &str, name: &str, dir: PathBuf) -> io::Result<Self> {
        let record: Record = serde_json::from_slice(&fs::read(dir.join("state.json"))?)?;
        let mut commits = HashMap::new();
        for entry in fs::read_dir(dir.join("commits"))? {
            let path = entry?.path();
            // A commit that was being written when the process ended never came about.
            if path.extension().is_some_and(|extension| extension == "json") {
                let commit: Commit = serde_json::from_slice(&fs::read(path)?)?;
                commits.insert(commit.view.id.clone(), commit);
            }
        }
        let mut staged = HashMap::new();
        for (id, workspace) in &record.workspaces {
            staged.insert(id.clone(), Staging::open(&log_path(&dir, workspace.log))?);
        }
        Ok(Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            versions: Versions::new(dir.join("versions"), app.unfinished(), app.dialect.hash_kind()),
            trees: Trees::new(dir.join("trees")),
            dialect: app.dialect,
            dir,
            state: Mutex::new(State { record, commits, staged }),
        })
    }

    /// Changes are written down before they are made in memory, and making them there does not panic.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes `record` down, then makes it the state.
    fn save(&self, state: &mut State, record: Record) -> io::Result<()> {
        write_whole(&self.dir.join("state.json"), &json(&record)?)?;
        state.record = record;
        Ok(())
    }

    /// Its identifier.
    pub(super) fn uuid(&self) -> String {
        self.state().record.uuid.clone()
    }

    /// Where chunks of content with this hash are gathered.
    pub(super) fn chunks_dir(&self, hash: &ContentHash) -> PathBuf {
        self.dir.join("chunks").join(hash.to_string())
    }

    /// All branches, as name and commit id.
    pub(super) fn branches(&self) -> BTreeMap<String, String> {
        self.state().record.branches.clone()
    }

    /// The commit a branch stands on.
    pub(super) fn head(&self, branch: &str) -> Result<Commit, Refusal> {
        self.state().head(branch).cloned()
    }

    /// The branch's commit id; makes the branch from another where it is new, and says so.
    pub(super) fn create_branch(&self, new: &str, from: &str) -> Result<(String, bool), Refusal> {
        let mut state = self.state();
        if let Some(id) = state.record.branches.get(new) {
            return Ok((id.clone(), false));
        }
        let id = state.record.branches.get(from).cloned().ok_or_else(Refusal::not_found)?;
        let mut record = state.record.clone();
        record.branches.insert(new.to_owned(), id.clone());
        self.save(&mut state, record)?;
        Ok((id, true))
    }

    /// Makes a branch at a commit. Released servers answer 500 where the one is there, or the other is not.
    pub(super) fn create_branch_at(&self, new: &str, commit: &str) -> Result<(), Refusal> {
        let mut state = self.state();
        if state.record.branches.contains_key(new) {
            return Err(Refusal::internal(format!("Branch already exists: {new}")));
        }
        if !state.commits.contains_key(commit) {
            return Err(Refusal::internal(format!("Could not find commit: {commit}")));
        }
        let mut record = state.record.clone();
        record.branches.insert(new.to_owned(), commit.to_owned());
        Ok(self.save(&mut state, record)?)
    }

    /// Deletes a branch, and returns the commit it stood on; workspaces stay where they are.
    pub(super) fn delete_branch(&self, branch: &str) -> Result<String, Refusal> {
        let mut state = self.state();
        if branch == FIRST_BRANCH {
            return Err(Refusal::internal(format!("Err: Cannot delete current checked out branch '{branch}'")));
        }
        let mut record = state.record.clone();
        let commit = record.branches.remove(branch).ok_or_else(Refusal::not_found)?;
        self.save(&mut state, record)?;
        Ok(commit)
    }

    /// Commits `files` as the repository's first commit on `branch`.
    pub(super) fn begin(
        &self,
        branch: &str,
        author: Author<'_>,
        files: &[(RepoPath, Content)],
    ) -> Result<Commit, Refusal> {
        let mut state = self.state();
        let files = files.iter();
        let changes = files.map(|(path, content)| (committed_path(path), Change::Put(*content))).collect();
        let commit = self.write_commit(None, author, INITIAL_MESSAGE, &changes)?;
        let mut record = state.record.clone();
        record.branches.insert(branch.to_owned(), commit.view.id.clone());
        self.save(&mut state, record)?;
        state.commits.insert(commit.view.id.clone(), commit.clone());
        Ok(commit)
    }

    /// The workspace with this name, or without a name, this id; made on the branch's commit where it is new. Says
    /// whether it was made.
    pub(super) fn workspace_or_new(
        &self,
        id: &str,
        name: Option<&str>,
        branch: &str,
    ) -> Result<(WorkspaceView, bool), Refusal> {
        let empty = self.state().commits.is_empty();
        if empty {
            self.begin(branch, OXEN, &[])?;
        }
        let mut state = self.state();
        let head = state.record.branches.get(branch).cloned().ok_or_else(|| {
            let hint = "For non-empty repositories, create the branch first.";
            Refusal::bad_body(format!("Branch not found: {branch}. {hint}"))
        })?;
        if let Ok(there) = state.workspace_id(name.unwrap_or(id)) {
            let mut view = state.workspace_view(&there)?;
            // Released servers answer with the id that was sent, whatever the workspace's own is.
            view.id = id.to_owned();
            return Ok((view, false));
        }
        if state.record.workspaces.contains_key(id) {
            return Err(Refusal::internal(format!("Workspace {id} already exists")));
        }
        let mut record = state.record.clone();
        let log = record.next_log;
        record.next_log += 1;
        let workspace = WorkspaceRecord { name: name.map(str::to_owned), commit: head, created_at: now(), log };
        record.workspaces.insert(id.to_owned(), workspace);
        let staging = Staging::open(&log_path(&self.dir, log))?;
        self.save(&mut state, record)?;
        state.staged.insert(id.to_owned(), staging);
        Ok((state.workspace_view(id)?, true))
    }

    /// All workspaces.
    pub(super) fn workspaces(&self) -> Result<Vec<WorkspaceView>, Refusal> {
        let state = self.state();
        state.record.workspaces.keys().map(|id| state.workspace_view(id)).collect()
    }

    /// The workspace with this id or name.
    pub(super) fn workspace(&self, id: &str) -> Result<WorkspaceView, Refusal> {
        let state = self.state();
        state.workspace_view(&state.workspace_id(id)?)
    }

    /// Removes a workspace with what is staged in it.
    pub(super) fn delete_workspace(&self, id: &str) -> Result<WorkspaceView, Refusal> {
        let mut state = self.state();
        let id = state.workspace_id(id)?;
        let view = state.workspace_view(&id)?;
        let mut record = state.record.clone();
        let removed = record.workspaces.remove(&id);
        self.save(&mut state, record)?;
        state.staged.remove(&id);
        if let Some(workspace) = removed {
            self.drop_log(workspace.log);
        }
        Ok(view)
    }

    /// Does something to what is staged in a workspace, knowing its base.
    pub(super) fn staging<T>(
        &self,
        id: &str,
        work: impl FnOnce(&mut Staging, &Base<'_>) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let mut state = self.state();
        let id = state.workspace_id(id)?;
        let root = state.base(&id)?.root.clone();
        let base = Base { trees: &self.trees, root: &root };
        let staging = state.staged.get_mut(&id).ok_or_else(|| Refusal::no_workspace(&id))?;
        work(staging, &base)
    }

    /// The revision that the start of `resource` names, and the path behind it: a workspace, a commit, or the longest
    /// branch name that fits.
    pub(super) fn resolve(&self, resource: &str) -> Result<(Revision, RepoPath), Refusal> {
        let state = self.state();
        let missing = || Refusal::no_path(resource);
        let ends = resource.match_indices('/').map(|(at, _)| at).chain([resource.len()]);
        for end in ends.collect::<Vec<_>>().into_iter().rev() {
            let version = &resource[..end];
            let path = RepoPath::parse(&resource[end..]).map_err(|_| missing());
            let found = if let Ok(commit) = state.head(version) {
                (commit.clone(), None)
            } else if let Some(commit) = state.commits.get(version) {
                (commit.clone(), None)
            } else if let Ok(id) = state.workspace_id(version) {
                let staged = state.staged.get(&id).map(|staging| staging.files().clone());
                let view = Arc::new(state.workspace_view(&id)?);
                (state.base(&id)?.clone(), Some((view, staged.unwrap_or_default())))
            } else {
                continue;
            };
            let revision = Revision { version: version.to_owned(), commit: found.0, workspace: found.1 };
            return Ok((revision, path?));
        }
        Err(missing())
    }

    /// The commits from `commit` back, newest first; with a path that is not the root, those that changed what is there.
    pub(super) fn history(&self, commit: &Commit, path: &RepoPath) -> Result<Vec<Arc<CommitView>>, Refusal> {
        let parent = |commit: &Commit| {
            let id = commit.view.parent_ids.first()?;
            self.state().commits.get(id).cloned()
        };
        let line = std::iter::successors(Some(commit.clone()), parent);
        if path.is_root() {
            return Ok(line.map(|commit| commit.view).collect());
        }
        let (mut found, mut newer) = (Vec::new(), None::<(Commit, Node)>);
        for commit in line {
            let node = self.trees.find(&commit.root, path)?;
            if let Some((newer, was)) = newer.take()
                && node.as_ref() != Some(&was)
            {
                found.push(newer.view);
            }
            let Some(node) = node else { break };
            newer = Some((commit, node));
        }
        found.extend(newer.map(|(first, _)| first.view));
        if found.is_empty() {
            return Err(Refusal::no_path(path));
        }
        Ok(found)
    }

    /// The commit with this id, when it is one of this repository.
    pub(super) fn commit_view(&self, id: &str) -> Option<Arc<CommitView>> {
        self.state().commits.get(id).map(|commit| Arc::clone(&commit.view))
    }

    /// Whether the workspace could be committed to `branch`.
    pub(super) fn mergeability(&self, id: &str, branch: &str) -> Result<Mergeability, Refusal> {
        let state = self.state();
        let id = state.workspace_id(id)?;
        let base = state.base(&id)?;
        let mut commits = Vec::new();
        let mut next = Some(state.head(branch)?);
        while let Some(commit) = next {
            commits.push(Arc::clone(&commit.view));
            let seen = commit.view.id == base.view.id;
            let parent = commit.view.parent_ids.first().filter(|_| !seen);
            next = parent.and_then(|id| state.commits.get(id));
        }
        Ok(Mergeability { conflicts: self.conflicts(&state, &id, branch)?, commits })
    }

    /// Removes all content that no commit refers to; says how many contents there were.
    pub(super) fn prune(&self) -> Result<u64, Refusal> {
        // Nothing is committed meanwhile.
        let state = self.state();
        let mut kept = HashSet::new();
        for commit in state.commits.values() {
            for (_, file) in self.trees.files(&RepoPath::root(), &Node::Dir(commit.root.clone()))? {
                kept.insert(file.content.hash);
            }
        }
        Ok(self.versions.retain(&kept)?)
    }

    /// Commits everything staged to `branch`, but for what `odd` does to it. A workspace with a name then stands on the
    /// new commit; one without is gone.
    pub(super) fn merge(
        &self,
        id: &str,
        branch: &str,
        author: Author<'_>,
        message: &str,
        odd: &OddCommit,
    ) -> Result<Arc<CommitView>, Refusal> {
        let mut state = self.state();
        let id = state.workspace_id(id)?;
        if !state.record.branches.contains_key(branch) {
            return Err(Refusal::not_found());
        }
        if !self.conflicts(&state, &id, branch)?.is_empty() {
            let head = &state.head(branch)?.view.id;
            return Err(Refusal::behind(&id, branch, &state.base(&id)?.view.id, head));
        }
        let staging = state.staged.get(&id).ok_or_else(|| Refusal::no_workspace(&id))?;
        let head = Base { trees: &self.trees, root: &state.head(branch)?.root };
        let Some(changes) = staging.changes(self.dialect, &head)? else {
            return Err(Refusal::no_changes());
        };
        let mut changes = changes.into_iter().map(|(path, change)| (committed_path(&path), change)).collect();
        odd.apply(&mut changes);
        let commit = self.write_commit(Some(state.head(branch)?), author, message, &changes)?;
        let mut record = state.record.clone();
        record.branches.insert(branch.to_owned(), commit.view.id.clone());
        let log = record.next_log;
        record.next_log += 1;
        let old = match record.workspaces.get_mut(&id) {
            Some(workspace) if workspace.name.is_some() => {
                workspace.commit = commit.view.id.clone();
                let staging = Staging::open(&log_path(&self.dir, log))?;
                Some((std::mem::replace(&mut workspace.log, log), Some(staging)))
            }
            _ => record.workspaces.remove(&id).map(|workspace| (workspace.log, None)),
        };
        self.save(&mut state, record)?;
        state.commits.insert(commit.view.id.clone(), commit.clone());
        if let Some((log, staging)) = old {
            match staging {
                Some(staging) => state.staged.insert(id, staging),
                None => state.staged.remove(&id),
            };
            self.drop_log(log);
        }
        Ok(commit.view)
    }

    /// Staged paths that the branch changed too since the workspace's base.
    fn conflicts(&self, state: &State, id: &str, branch: &str) -> Result<Vec<RepoPath>, Refusal> {
        let (base, head) = (state.base(id)?, state.head(branch)?);
        let mut conflicts = Vec::new();
        if base.view.id == head.view.id {
            return Ok(conflicts);
        }
        let hash_in = |commit: &Commit, path: &RepoPath| -> io::Result<Option<ContentHash>> {
            Ok(match self.trees.find(&commit.root, path)? {
                Some(Node::File(file)) => Some(file.content.hash),
                _ => None,
            })
        };
        let staging = state.staged.get(id).ok_or_else(|| Refusal::no_workspace(id))?;
        for (path, staged) in staging.files() {
            if collides(self.dialect, staged, hash_in(base, path)?, hash_in(head, path)?) {
                conflicts.push(path.clone());
            }
        }
        if self.dialect == Dialect::V0_65 {
            // A removed directory takes along whatever the branch did in it.
            for path in staging.removed_dirs() {
                let (before, after) = (self.trees.find(&base.root, path)?, self.trees.find(&head.root, path)?);
                if after.is_some() && after != before {
                    conflicts.push(path.clone());
                }
            }
        }
        Ok(conflicts)
    }

    /// Writes a commit and its tree; no branch stands on it yet.
    fn write_commit(
        &self,
        parent: Option<&Commit>,
        author: Author<'_>,
        message: &str,
        changes: &BTreeMap<RepoPath, Change>,
    ) -> io::Result<Commit> {
        // The tree names the commit that changed it, so the id cannot depend on the tree: parents, author, message and
        // time are what makes it, and chance in case the clock stands still.
        let mut view = CommitView {
            id: String::new(),
            parent_ids: parent.map(|parent| parent.view.id.clone()).into_iter().collect(),
            message: message.to_owned(),
            author: author.name.to_owned(),
            email: author.email.to_owned(),
            timestamp: now(),
        };
        let seed = [json(&view)?, fastrand::u64(..).to_le_bytes().to_vec()].concat();
        view.id = ContentHash::of(HashKind::Xxh3, &seed).to_string();
        let root = self.trees.apply(parent.map(|parent| &parent.root), changes, &view.id)?;
        let commit = Commit { root, view: Arc::new(view) };
        let path = self.dir.join("commits").join(format!("{}.json", commit.view.id));
        write_whole(&path, &json(&commit)?)?;
        Ok(commit)
    }

    /// A log that nothing names any more is only so many bytes when it cannot be removed.
    fn drop_log(&self, log: u64) {
        if let Err(error) = fs::remove_file(log_path(&self.dir, log)) {
            tracing::warn!(%error, "cannot remove a log of staged changes");
        }
    }
}

impl State {
    fn head(&self, branch: &str) -> Result<&Commit, Refusal> {
        let id = self.record.branches.get(branch).ok_or_else(|| Refusal::no_branch(branch))?;
        self.commits.get(id).ok_or_else(|| Refusal::no_branch(branch))
    }

    /// The id of the workspace with this id or name.
    fn workspace_id(&self, id: &str) -> Result<String, Refusal> {
        if self.record.workspaces.contains_key(id) {
            return Ok(id.to_owned());
        }
        let mut named = self.record.workspaces.iter();
        let found = named.find(|(_, workspace)| workspace.name.as_deref() == Some(id));
        found.map(|(id, _)| id.clone()).ok_or_else(|| Refusal::no_workspace(id))
    }

    /// The commit a workspace stands on.
    fn base(&self, id: &str) -> Result<&Commit, Refusal> {
        let workspace = self.record.workspaces.get(id).ok_or_else(|| Refusal::no_workspace(id))?;
        self.commits.get(&workspace.commit).ok_or_else(|| Refusal::no_workspace(id))
    }

    fn workspace_view(&self, id: &str) -> Result<WorkspaceView, Refusal> {
        let workspace = self.record.workspaces.get(id).ok_or_else(|| Refusal::no_workspace(id))?;
        Ok(WorkspaceView {
            id: id.to_owned(),
            name: workspace.name.clone(),
            commit: Arc::clone(&self.base(id)?.view),
            created_at: workspace.created_at.clone(),
        })
    }
}

/// `[a-zA-Z0-9][a-zA-Z0-9_.-]+`.
fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric())
        && text.len() > 1
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// Where a staged path ends up in the commit. Released servers take a backslash for a separator when they look for the
/// directory, and keep it in the name: such a file lands where nobody finds it.
fn committed_path(path: &RepoPath) -> RepoPath {
    if !path.as_str().contains('\\') {
        return path.clone();
    }
    let split = path.as_str().replace('\\', "/");
    let dirs = split.rsplit_once('/').map_or("", |(dirs, _)| dirs);
    let dirs: Vec<_> = dirs.split('/').filter(|dir| !dir.is_empty()).collect();
    let dir = RepoPath::parse(&dirs.join("/")).unwrap_or_default();
    RepoPath::parse(path.file_name()).map_or(dir.clone(), |name| dir.concat(&name))
}

fn log_path(dir: &std::path::Path, log: u64) -> PathBuf {
    dir.join("staged").join(log.to_string())
}

fn json(value: &impl Serialize) -> io::Result<Vec<u8>> {
    Ok(serde_json::to_vec(value)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backslashes_misplace_a_file_at_its_commit() {
        for (staged, committed) in [("a/b", "a/b"), (r"back\slash", r"back/back\slash"), (r"a\b/c", "a/b/c")] {
            let staged = RepoPath::parse(staged).unwrap();
            assert_eq!(committed_path(&staged).as_str(), committed);
        }
    }

    #[test]
    fn names_that_would_leave_the_data_directory_are_none() {
        for good in ["ab", "my-repo_1.2", "0x"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "a", "..", ".a", "-a", "a/b", "a b", "ä1"] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
