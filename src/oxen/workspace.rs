//! [`Workspace`] over HTTP.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::stream::{self, StreamExt};
use reqwest::Method;
use reqwest::header::CONTENT_TYPE;

use super::dialect::{Dialect, Staging};
use super::http::{self, Http, json_bytes, segment};
use super::multipart::Form;
use super::repository::Server;
use super::retry::{self, Attempts};
use super::upload::{Begun, Parts};
use super::{repo_path, wire};
use crate::config::RepoId;
use crate::hash::{HashKind, Hasher};
use crate::path::RepoPath;
use crate::workspace::{
    Change, ChangeKind, CommitId, CommitRequest, Committed, Entry, EntryKind, Fut, Object, Outcome, Put, Revision,
    ServerInfo, Source, Upload, UploadProgress, Workspace, WorkspaceError,
};

/// Entries a page: an entry is about 1 KB of JSON, so a page is some 10 MB; 20,000 came in 0.13 s.
const PAGE_ENTRIES: u64 = 10_000;
/// Questions by hash at once, where each is a request: 8 and 16 were equally fast (1,646 and 1,684 files/s).
const QUESTIONS_AT_ONCE: usize = 8;
/// Parts window that is assumed on a resume: below what 0.65.2 grants (102).
const RESUME_WINDOW: u32 = 32;
/// Bytes asked for in one ranged read: the server holds them in memory.
const RANGE_BYTES: u64 = 4 << 20;
/// Where a ranged read must be cut out of a whole file, the longest prefix that is thrown away.
const SKIP_BYTES: u64 = 1 << 30;

/// A workspace on a server.
pub struct OxenWorkspace {
    http: Http,
    server: Server,
    repo_id: RepoId,
    /// `/api/repos/NAMESPACE/NAME`.
    repo: String,
    /// Name, which is the id as well, and the branch: to find it again in the documented dialect.
    name: String,
    branch: String,
    id: String,
    dialect: Dialect,
    info: ServerInfo,
}

impl OxenWorkspace {
    /// Finds or makes the workspace, and finds out what the server can do.
    ///
    /// # Errors
    /// The server's.
    pub async fn open(
        server: &Server,
        version: &str,
        repo_id: &RepoId,
        name: &str,
        branch: &str,
    ) -> Result<Self, WorkspaceError> {
        let repo = repo_path(repo_id);
        let (mut found, documented) = server.get_or_create_workspace(repo_id, name, branch).await?;
        // A workspace keeps the commit it was made on. With nothing staged there is no reason to: it is made anew, on
        // what the branch has become.
        let head = server.branch(repo_id, branch).await?;
        if head.is_some_and(|head| head != found.commit)
            && !documented
            && !has_changes(server, &repo, &found.id).await?
        {
            server.delete_workspace(repo_id, &found.id).await?;
            found = server.get_or_create_workspace(repo_id, name, branch).await?.0;
        }
        let uploads = !documented && server.has_route(&format!("{repo}/versions/uploads"), "{}").await?;
        let by_list = format!("{repo}/workspaces/{}/versions/", segment(&found.id));
        let versions = !documented && !uploads && server.has_route(&by_list, "[]").await?;
        let default = if documented { HashKind::Sha256 } else { HashKind::Xxh3 };
        let dialect = Dialect::new(version, documented, uploads, versions, default);
        let info = ServerInfo {
            version: version.to_owned(),
            dialect: dialect.name,
            hash_kind: default,
            by_hash: dialect.by_hash(),
        };
        let mut workspace = Self {
            http: server.http.clone(),
            server: server.clone(),
            repo_id: repo_id.clone(),
            repo,
            name: name.to_owned(),
            branch: branch.to_owned(),
            id: found.id,
            dialect,
            info,
        };
        if let Some(kind) = workspace.listed_hash_kind(&found.commit).await? {
            workspace.dialect.hash_kind = kind;
            workspace.info.hash_kind = kind;
        }
        Ok(workspace)
    }

    /// The function that the hashes in the server's listings come from; `None` while it has no file to show one.
    async fn listed_hash_kind(&self, base: &CommitId) -> Result<Option<HashKind>, WorkspaceError> {
        let mut todo = vec![RepoPath::root()];
        // A file is seldom deep; a handful of listings is enough to look for one.
        for _ in 0..8 {
            let Some(dir) = todo.pop() else { break };
            for entry in self.list_dir(base, &dir, 1, 50).await?.0 {
                match entry.kind {
                    EntryKind::File(object) => return Ok(Some(object.hash.kind())),
                    EntryKind::Dir => {
                        if let Ok(below) = RepoPath::parse(&entry.name) {
                            todo.push(dir.concat(&below));
                        }
                    }
                }
            }
        }
        Ok(None)
    }

    fn workspace_path(&self, rest: &str) -> String {
        format!("{}/workspaces/{}{rest}", self.repo, segment(&self.id))
    }

    /// One page of a directory, and how many pages there are.
    async fn list_dir(
        &self,
        commit: &CommitId,
        dir: &RepoPath,
        page: u64,
        entries: u64,
    ) -> Result<(Vec<Entry>, u64), WorkspaceError> {
        let commit = segment(&commit.0);
        let slash = if dir.is_root() { "" } else { "/" };
        let path = format!("{}/dir/{commit}{slash}{}?page={page}&page_size={entries}", self.repo, http::path(dir));
        match self.http.find::<wire::DirAnswer>(&path).await? {
            Some(answer) => {
                let entries = answer.entries.into_iter().filter_map(wire::EntryBody::entry).collect();
                Ok((entries, answer.total_pages))
            }
            // No such directory, and also the root of a commit without files; but a repository that is gone must not
            // look empty.
            None => match self.server.repository(&self.repo_id).await? {
                Some(_) => Ok((Vec::new(), 0)),
                None => Err(WorkspaceError::NotFound { what: format!("repository {}", self.repo_id) }),
            },
        }
    }

    /// Where a file is read from: a revision in the path, since that form takes every name.
    fn file_path(&self, source: &Source) -> String {
        let revision = match &source.revision {
            Revision::Commit(id) => segment(&id.0),
            Revision::Workspace => segment(&self.id),
        };
        format!("{}/file/{revision}/{}", self.repo, http::path(&source.path))
    }

    /// Hands a file's bytes to `take` as they come; returns how many there were. `take` says whether to go on.
    async fn stream(
        &self,
        path: &str,
        mut take: impl FnMut(u64, Bytes) -> Result<bool, WorkspaceError>,
    ) -> Result<u64, WorkspaceError> {
        // No deadline for the whole: a file may be any length. A connection that falls silent is given up.
        let answer = self.http.send(Attempts::Patient, || {
            Ok(self.http.request(Method::GET, path, 0).timeout(std::time::Duration::from_secs(30 * 24 * 3600)))
        });
        let mut answer = answer.await?;
        let announced = answer.content_length();
        let mut at = 0;
        loop {
            match answer.chunk().await {
                Ok(Some(chunk)) => {
                    let length = chunk.len() as u64;
                    if !take(at, chunk)? {
                        return Ok(at + length);
                    }
                    at += length;
                }
                Ok(None) => break,
                Err(error) => return Err(self.http.failure(&error)),
            }
        }
        match announced {
            Some(announced) if announced != at => {
                Err(WorkspaceError::Protocol { detail: format!("{path} broke off after {at} of {announced} bytes") })
            }
            _ => Ok(at),
        }
    }

    async fn fetch_into(&self, source: &Source, into: &File) -> Result<u64, WorkspaceError> {
        retry::within(Attempts::Patient, || async {
            self.stream(&self.file_path(source), |at, chunk| {
                into.write_all_at(&chunk, at)?;
                Ok(true)
            })
            .await
        })
        .await
    }

    async fn read_range(&self, source: &Source, range: Range<u64>) -> Result<Bytes, WorkspaceError> {
        let length = range.end.saturating_sub(range.start).min(RANGE_BYTES);
        if length == 0 {
            return Ok(Bytes::new());
        }
        if let Revision::Commit(commit) = &source.revision {
            let commit = segment(&commit.0);
            // Past the end the server fails with 500, so its own word on the size is needed.
            let meta = format!("{}/meta/{commit}/{}", self.repo, http::path(&source.path));
            let size = self.http.get::<wire::MetaAnswer>(&meta).await?.entry.size;
            let length = length.min(size.saturating_sub(range.start));
            if length == 0 {
                return Ok(Bytes::new());
            }
            let chunk = format!(
                "{}/chunk/{commit}/{}?chunk_start={}&chunk_size={length}",
                self.repo,
                http::path(&source.path),
                range.start
            );
            let answer =
                self.http.send(Attempts::Patient, || Ok(self.http.request(Method::GET, &chunk, length))).await?;
            let bytes = answer.bytes().await.map_err(|error| self.http.failure(&error))?;
            return if bytes.len() as u64 == length {
                Ok(bytes)
            } else {
                Err(WorkspaceError::Protocol {
                    detail: format!("{} of {length} bytes of {}", bytes.len(), source.path),
                })
            };
        }
        // Staged content can only be streamed from its start.
        if range.start > SKIP_BYTES {
            return Err(WorkspaceError::Unsupported { what: "read the middle of a large staged file" });
        }
        let mut found = Vec::new();
        self.stream(&self.file_path(source), |at, chunk| {
            let end = at + chunk.len() as u64;
            if end > range.start {
                let skip = range.start.saturating_sub(at) as usize;
                found.extend_from_slice(&chunk[skip..]);
            }
            Ok((found.len() as u64) < length)
        })
        .await?;
        found.truncate(length as usize);
        Ok(found.into())
    }

    async fn staged_files(&self) -> Result<Vec<Change>, WorkspaceError> {
        let mut changes: BTreeMap<RepoPath, ChangeKind> = BTreeMap::new();
        for page in 1.. {
            let path = self.workspace_path(&format!("/changes?page={page}&page_size={PAGE_ENTRIES}"));
            let staged = self.http.get::<wire::ChangesAnswer>(&path).await?.staged;
            let lists = [
                (staged.added_files, ChangeKind::Added),
                (staged.modified_files, ChangeKind::Modified),
                (staged.removed_files, ChangeKind::Removed),
            ];
            let mut more = false;
            for (list, kind) in lists {
                more |= list.total_entries > page * PAGE_ENTRIES && !list.entries.is_empty();
                for entry in list.entries {
                    match RepoPath::parse(&entry.filename) {
                        Ok(path) => {
                            changes.insert(path, kind);
                        }
                        Err(error) => {
                            tracing::warn!(path = ?entry.filename, %error, "a staged path cannot be shown");
                        }
                    }
                }
            }
            if !more {
                break;
            }
        }
        Ok(changes.into_iter().map(|(path, kind)| Change { path, kind }).collect())
    }

    /// Metadata is right for added files alone: modified ones show the base's (0.65.2, tried).
    async fn object_of(&self, change: &Change) -> Result<Object, WorkspaceError> {
        if change.kind == ChangeKind::Added {
            let path = format!("{}/meta/{}/{}", self.repo, segment(&self.id), http::path(&change.path));
            if let Some(meta) = self.http.find::<wire::MetaAnswer>(&path).await?
                && let Some(object) = meta.entry.object()
            {
                return Ok(object);
            }
        }
        let source = Source { revision: Revision::Workspace, path: change.path.clone() };
        let mut hasher = Hasher::new(self.dialect.hash_kind);
        let size = self
            .stream(&self.file_path(&source), |_, chunk| {
                hasher.update(&chunk);
                Ok(true)
            })
            .await?;
        Ok(Object { hash: hasher.finish(), size })
    }

    /// Asks for many files with one request a directory; `NeedsBytes` for those that the answer calls missing.
    async fn stage_listed(&self, puts: &[Put]) -> Result<Vec<Outcome>, WorkspaceError> {
        let mut outcomes: Vec<Option<Outcome>> = puts.iter().map(|_| None).collect();
        let mut by_dir: BTreeMap<RepoPath, Vec<usize>> = BTreeMap::new();
        // From 0.51 on the path in the body may have directories. There it takes every name, where the directory in
        // the address does not take a percent sign (0.53.4, tried).
        let from_root = self.dialect.staging == Staging::Versions && self.dialect.nested_filenames;
        for (index, put) in puts.iter().enumerate() {
            let dir = if from_root { None } else { put.path.parent() };
            by_dir.entry(dir.unwrap_or_default()).or_default().push(index);
        }
        for (dir, indexes) in by_dir {
            let files: Vec<wire::FileWithHash<'_>> = indexes
                .iter()
                .map(|index| {
                    let put = &puts[*index];
                    let path = if from_root { put.path.as_str() } else { put.path.file_name() };
                    wire::FileWithHash { hash: put.object.hash.to_string(), path }
                })
                .collect();
            let rest = match self.dialect.staging {
                Staging::FilesBatch => format!("/files/batch/{}", http::path(&dir)),
                _ => format!("/versions/{}", http::path(&dir)),
            };
            let path = self.workspace_path(&rest);
            let (_, answer): (_, wire::ErrorFilesAnswer) =
                self.http.call(Attempts::Quick, Method::POST, &path, &files).await?;
            let missing: HashSet<String> = answer
                .err_files
                .into_iter()
                // With a path, whole or relative as the release likes, or with the hash alone.
                .map(|file| file.path.unwrap_or(file.hash))
                .collect();
            for index in indexes {
                let put = &puts[index];
                let hash = put.object.hash.to_string();
                let names = [put.path.as_str(), put.path.file_name(), &hash];
                let refused = names.iter().any(|name| missing.contains(*name));
                outcomes[index] = Some(if refused { Outcome::NeedsBytes } else { Outcome::Done { sent_bytes: 0 } });
            }
        }
        Ok(outcomes.into_iter().map(|outcome| outcome.unwrap_or(Outcome::NeedsBytes)).collect())
    }

    fn parts<'a>(&'a self, put: &'a Put, progress: &'a dyn UploadProgress) -> Parts<'a> {
        Parts { http: &self.http, repo: &self.repo, workspace: &self.id, put, progress }
    }

    async fn question(&self, put: &Put) -> Result<Outcome, WorkspaceError> {
        // The server has no upload of nothing (0.65.2: 400, no parts).
        if put.object.size == 0 {
            return Ok(Outcome::NeedsBytes);
        }
        Ok(match self.parts(put, &Quiet).begin().await? {
            Begun::Stored => Outcome::Done { sent_bytes: 0 },
            Begun::Wanted { .. } => Outcome::NeedsBytes,
        })
    }

    /// Asks for files one by one, several at once.
    async fn stage_singly(&self, puts: &[Put]) -> Result<Vec<Outcome>, WorkspaceError> {
        let questions: Vec<_> = puts.iter().map(|put| self.question(put).boxed()).collect();
        let answers: Vec<Result<Outcome, WorkspaceError>> =
            stream::iter(questions).buffered(QUESTIONS_AT_ONCE).collect().await;
        if answers.iter().all(Result::is_err) {
            // All alike: most likely the server or the way to it.
            return answers.into_iter().collect();
        }
        Ok(answers.into_iter().map(|answer| answer.unwrap_or_else(Outcome::Failed)).collect())
    }

    /// Multipart adds: one request, or one a directory where the server keeps only a filename's last component.
    async fn add(&self, puts: &[Put]) -> Result<Vec<Outcome>, WorkspaceError> {
        let mut outcomes: Vec<Option<Outcome>> = puts.iter().map(|_| None).collect();
        let mut requests: BTreeMap<RepoPath, Vec<usize>> = BTreeMap::new();
        for (index, put) in puts.iter().enumerate() {
            if put.path.as_str().contains(['\n', '\r']) {
                let message = "a multipart file name cannot hold a line break".to_owned();
                outcomes[index] = Some(Outcome::Failed(WorkspaceError::Refused { status: 400, message }));
                continue;
            }
            let dir = if self.dialect.nested_filenames { None } else { put.path.parent() };
            requests.entry(dir.unwrap_or_default()).or_default().push(index);
        }
        let many = requests.len() > 1;
        for (dir, indexes) in requests {
            match self.add_to(&dir, puts, &indexes).await {
                Ok(staged) => {
                    for index in indexes {
                        let put = &puts[index];
                        outcomes[index] = Some(if staged.contains(&put.path) {
                            Outcome::Done { sent_bytes: put.object.size }
                        } else {
                            Outcome::Failed(WorkspaceError::Unconfirmed { what: put.path.to_string() })
                        });
                    }
                }
                // Of several requests the others still count.
                Err(error) if many && !error.is_transient() => {
                    let message = error.to_string();
                    for index in indexes {
                        let message = message.clone();
                        outcomes[index] = Some(Outcome::Failed(WorkspaceError::Refused { status: 400, message }));
                    }
                }
                Err(error) => return Err(error),
            }
        }
        let missing = || Outcome::Failed(WorkspaceError::Unconfirmed { what: "the request".into() });
        Ok(outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(missing)).collect())
    }

    /// One multipart add; the paths that the server says it staged.
    async fn add_to(
        &self,
        dir: &RepoPath,
        puts: &[Put],
        indexes: &[usize],
    ) -> Result<HashSet<RepoPath>, WorkspaceError> {
        let path = self.workspace_path(&format!("/files/{}", http::path(dir)));
        let answer = self.http.send(Attempts::Quick, || {
            let mut form = Form::new();
            for index in indexes {
                let put = &puts[*index];
                let file =
                    put.file.clone().ok_or(WorkspaceError::Unsupported { what: "send bytes that are not here" })?;
                let name = put.path.below(dir).unwrap_or_else(|| put.path.clone());
                form.file("file[]", name.as_str(), file, put.object.size);
            }
            let (content_type, length, body) = form.finish();
            Ok(self.http.streamed(Method::POST, &path, &content_type, length, body))
        });
        let answer: wire::PathsAnswer = self.http.json(answer.await?).await?;
        let staged: HashSet<RepoPath> = answer.paths.iter().filter_map(|path| RepoPath::parse(path).ok()).collect();
        // 0.50 names them relative to the directory.
        let below = staged.iter().map(|path| dir.concat(path)).collect::<Vec<_>>();
        Ok(staged.into_iter().chain(below).collect())
    }

    /// A `DELETE` with a list of paths; those that the answer says were not found.
    async fn delete(&self, what: &str, paths: &[RepoPath]) -> Result<Vec<String>, WorkspaceError> {
        let list: Vec<&str> = paths.iter().map(RepoPath::as_str).collect();
        let body = Bytes::from(json_bytes(&list)?);
        let path = self.workspace_path(what);
        let answer = self.http.send(Attempts::Quick, || {
            let request = self.http.request(Method::DELETE, &path, body.len() as u64);
            Ok(request.header(CONTENT_TYPE, "application/json").body(body.clone()))
        });
        let answer = answer.await?;
        let partial = answer.status().as_u16() == 206;
        let body: wire::PathsAnswer = self.http.json(answer).await?;
        Ok(if partial { body.paths } else { Vec::new() })
    }

    /// Whether anything is staged for a path.
    async fn is_staged(&self, path: &RepoPath) -> Result<bool, WorkspaceError> {
        let changes = self.workspace_path(&format!("/changes/{}?page=1&page_size={PAGE_ENTRIES}", http::path(path)));
        let Some(answer) = self.http.find::<wire::ChangesAnswer>(&changes).await? else { return Ok(false) };
        let lists = [answer.staged.added_files, answer.staged.modified_files, answer.staged.removed_files];
        Ok(lists.iter().flat_map(|list| &list.entries).any(|entry| entry.filename == path.as_str()))
    }

    /// Files of a commit at some paths.
    async fn objects_at(
        &self,
        commit: &CommitId,
        paths: &[RepoPath],
    ) -> Result<HashMap<RepoPath, Object>, WorkspaceError> {
        let dirs: HashSet<RepoPath> = paths.iter().filter_map(RepoPath::parent).collect();
        let mut found = HashMap::new();
        for dir in dirs {
            for entry in self.list(commit, &dir).await? {
                if let (EntryKind::File(object), Ok(name)) = (entry.kind, RepoPath::parse(&entry.name)) {
                    found.insert(dir.concat(&name), object);
                }
            }
        }
        Ok(found)
    }

    /// Our own three-way check beside the server's, which in releases before 0.65 misses files that both sides added
    /// or that one side removed.
    async fn collisions(&self, branch: &str) -> Result<Vec<RepoPath>, WorkspaceError> {
        let path = self.workspace_path(&format!("/merge/{}", segment(branch)));
        let mut conflicts: Vec<RepoPath> = match self.http.get::<wire::MergeableAnswer>(&path).await {
            Ok(answer) => answer.conflicts.iter().filter_map(|conflict| RepoPath::parse(&conflict.path).ok()).collect(),
            // Not in every dialect; the check below is enough.
            Err(WorkspaceError::NotFound { .. } | WorkspaceError::Refused { .. }) => Vec::new(),
            Err(error) => return Err(error),
        };
        let base = self.base().await?;
        let Some(head) = self.server.branch(&self.repo_id, branch).await? else { return Ok(conflicts) };
        if head == base {
            return Ok(conflicts);
        }
        let staged: Vec<RepoPath> = self.staged_files().await?.into_iter().map(|change| change.path).collect();
        let (ours, theirs) = (self.objects_at(&base, &staged).await?, self.objects_at(&head, &staged).await?);
        let changed = |path: &RepoPath| ours.get(path).map(|o| o.hash) != theirs.get(path).map(|o| o.hash);
        conflicts.extend(staged.into_iter().filter(changed));
        conflicts.sort();
        conflicts.dedup();
        Ok(conflicts)
    }

    async fn commit_staged(&self, request: &CommitRequest) -> Result<Committed, WorkspaceError> {
        let before = self.server.branch(&self.repo_id, &request.branch).await?;
        let body = wire::NewCommit { author: &request.author, email: &request.email, message: &request.message };
        let path = self.workspace_path(&format!("/merge/{}", segment(&request.branch)));
        let answered: Result<(_, wire::CommitAnswer), _> =
            self.http.call(Attempts::Once, Method::POST, &path, &body).await;
        match answered {
            Ok((_, answer)) => Ok(answer.commit.into()),
            // Nobody knows whether it happened; the branch does.
            Err(error) if error.is_transient() => match self.find_commit(request, before).await? {
                Some(committed) => Ok(committed),
                None => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    /// The commit of `request`, if the branch's head is it: made since `before`, by its author, with its message, and
    /// the workspace has nothing staged any more.
    async fn find_commit(
        &self,
        request: &CommitRequest,
        before: Option<CommitId>,
    ) -> Result<Option<Committed>, WorkspaceError> {
        let head = self.server.branch(&self.repo_id, &request.branch).await?;
        let Some(head) = head.filter(|head| Some(head) != before.as_ref()) else { return Ok(None) };
        let path = format!("{}/commits/{}", self.repo, segment(&head.0));
        let Some(found) = self.http.find::<wire::CommitAnswer>(&path).await? else { return Ok(None) };
        let same = found.commit.message == request.message && found.commit.author == request.author;
        if !same || !self.staged_files().await?.is_empty() {
            return Ok(None);
        }
        Ok(Some(found.commit.into()))
    }
}

/// Whether anything is staged in a workspace.
async fn has_changes(server: &Server, repo: &str, id: &str) -> Result<bool, WorkspaceError> {
    let path = format!("{repo}/workspaces/{}/changes?page=1&page_size=1", segment(id));
    let staged = server.http.get::<wire::ChangesAnswer>(&path).await?.staged;
    let lists = [staged.added_files, staged.modified_files, staged.removed_files];
    Ok(lists.iter().any(|list| list.total_entries > 0 || !list.entries.is_empty()))
}

/// For questions that send nothing.
struct Quiet;

impl UploadProgress for Quiet {
    fn checkpoint(&self, _upload: &Upload) {}
    fn sent(&self, _bytes: u64) {}
}

fn all_done(paths: &[RepoPath]) -> Vec<Outcome> {
    paths.iter().map(|_| Outcome::Done { sent_bytes: 0 }).collect()
}

impl Workspace for OxenWorkspace {
    fn info(&self) -> &ServerInfo {
        &self.info
    }

    fn base(&self) -> Fut<'_, CommitId> {
        async {
            if self.dialect.documented {
                let found = self.server.get_or_create_workspace(&self.repo_id, &self.name, &self.branch).await?;
                return Ok(found.0.commit);
            }
            match self.server.workspace(&self.repo_id, &self.id).await? {
                Some(found) => Ok(found.commit),
                None => Err(WorkspaceError::NotFound { what: format!("workspace {}", self.name) }),
            }
        }
        .boxed()
    }

    fn list<'a>(&'a self, commit: &'a CommitId, dir: &'a RepoPath) -> Fut<'a, Vec<Entry>> {
        async move {
            let mut entries = Vec::new();
            for page in 1.. {
                let (found, pages) = self.list_dir(commit, dir, page, PAGE_ENTRIES).await?;
                entries.extend(found);
                if page >= pages {
                    break;
                }
            }
            Ok(entries)
        }
        .boxed()
    }

    fn changes(&self) -> Fut<'_, Vec<Change>> {
        self.staged_files().boxed()
    }

    fn staged_object<'a>(&'a self, change: &'a Change) -> Fut<'a, Object> {
        self.object_of(change).boxed()
    }

    fn fetch<'a>(&'a self, source: &'a Source, into: &'a File) -> Fut<'a, u64> {
        self.fetch_into(source, into).boxed()
    }

    fn read<'a>(&'a self, source: &'a Source, range: Range<u64>) -> Fut<'a, Bytes> {
        self.read_range(source, range).boxed()
    }

    fn stage_by_hash<'a>(&'a self, puts: &'a [Put]) -> Fut<'a, Vec<Outcome>> {
        async move {
            match self.dialect.staging {
                Staging::None => Ok(puts.iter().map(|_| Outcome::NeedsBytes).collect()),
                Staging::Uploads => self.stage_singly(puts).await,
                Staging::Versions | Staging::FilesBatch => self.stage_listed(puts).await,
            }
        }
        .boxed()
    }

    fn send_small<'a>(&'a self, puts: &'a [Put]) -> Fut<'a, Vec<Outcome>> {
        self.add(puts).boxed()
    }

    fn send_large<'a>(
        &'a self,
        put: &'a Put,
        resume: Option<Upload>,
        progress: &'a dyn UploadProgress,
    ) -> Fut<'a, Outcome> {
        async move {
            let file: Arc<File> =
                put.file.clone().ok_or(WorkspaceError::Unsupported { what: "send bytes that are not here" })?;
            let parts = self.parts(put, progress);
            match self.dialect.staging {
                Staging::Uploads => {
                    if let Some(upload) = resume.filter(|upload| !upload.id.is_empty() && upload.part_bytes > 0) {
                        match parts.send(upload, RESUME_WINDOW, &file).await {
                            // Completed with its answer lost, or the server was restarted: beginning tells.
                            Err(WorkspaceError::NotFound { .. }) => {}
                            done => return done,
                        }
                    }
                    match parts.begin().await? {
                        Begun::Stored => Ok(Outcome::Done { sent_bytes: 0 }),
                        Begun::Wanted { upload, window } => parts.send(upload, window, &file).await,
                    }
                }
                Staging::Versions | Staging::None => parts.send_chunks(resume, &file).await,
                Staging::FilesBatch => {
                    let outcome = self.add(std::slice::from_ref(put)).await?.pop();
                    Ok(outcome.unwrap_or(Outcome::NeedsBytes))
                }
            }
        }
        .boxed()
    }

    fn remove<'a>(&'a self, paths: &'a [RepoPath]) -> Fut<'a, Vec<Outcome>> {
        async move {
            match self.delete("/files", paths).await {
                // What was not found is as absent as was wanted; the others are done.
                Ok(_) => Ok(all_done(paths)),
                Err(WorkspaceError::NotFound { .. }) if self.base().await.is_ok() => Ok(all_done(paths)),
                Err(error) => Err(error),
            }
        }
        .boxed()
    }

    fn unstage<'a>(&'a self, paths: &'a [RepoPath]) -> Fut<'a, Vec<Outcome>> {
        async move {
            // A directory that was made for a staged file stays staged when the file is unstaged, and would be an empty
            // one in the commit. And the removal of a directory stays staged when a file below it is unstaged, and takes the file along at the
            // commit; unstaging the directory's path drops that entry and no other (0.65.2, tried).
            let mut all: BTreeSet<RepoPath> = paths.iter().cloned().collect();
            if self.dialect.staging == Staging::Uploads {
                for path in paths {
                    let dirs = std::iter::successors(path.parent(), RepoPath::parent);
                    all.extend(dirs.take_while(|dir| !dir.is_root()));
                }
            }
            let all: Vec<RepoPath> = all.into_iter().collect();
            match self.delete("/changes", &all).await {
                Ok(_) => Ok(all_done(paths)),
                // One of them had nothing staged: by themselves, then.
                Err(WorkspaceError::NotFound { .. }) if paths.len() > 1 => {
                    let mut outcomes = Vec::new();
                    for path in paths {
                        outcomes.extend(self.unstage(std::slice::from_ref(path)).await?);
                    }
                    Ok(outcomes)
                }
                Err(WorkspaceError::NotFound { what }) => match paths.first() {
                    Some(path) if !self.is_staged(path).await? && self.base().await.is_ok() => Ok(all_done(paths)),
                    _ => Err(WorkspaceError::NotFound { what }),
                },
                Err(error) => Err(error),
            }
        }
        .boxed()
    }

    fn rename<'a>(&'a self, from: &'a RepoPath, to: &'a RepoPath) -> Fut<'a, ()> {
        async move {
            if from.as_str().contains('%') {
                return Err(WorkspaceError::Unsupported { what: "move a file with a percent sign in its name" });
            }
            let path = self.workspace_path(&format!("/files/{}", http::path(from)));
            let body = wire::NewPath { new_path: to.as_str() };
            let _: (_, serde_json::Value) = self.http.call(Attempts::Once, Method::PATCH, &path, &body).await?;
            Ok(())
        }
        .boxed()
    }

    fn conflicts<'a>(&'a self, branch: &'a str) -> Fut<'a, Vec<RepoPath>> {
        self.collisions(branch).boxed()
    }

    fn commit<'a>(&'a self, request: &'a CommitRequest) -> Fut<'a, Committed> {
        self.commit_staged(request).boxed()
    }
}
