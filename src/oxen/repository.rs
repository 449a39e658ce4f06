//! Servers, repositories, branches and workspaces.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, RwLock};
use std::time::SystemTime;

use bytes::Bytes;
use reqwest::Method;
use serde::{Deserialize, Serialize};

use super::body::Segment;
use super::dialect::{Dialect, Routes};
use super::http::{Http, Request, path, segment, segments};
use super::multipart::{Form, PLAIN, quoted};
use super::retry::{Patience, retry};
use super::wire::{self, Branch, Commit, Each, WorkspaceInfo};
use super::{Endpoint, OxenWorkspace};
use crate::hash::HashKind;
use crate::path::RepoPath;
use crate::workspace::which::KnownRepository;
use crate::workspace::{CommitId, ServerInfo, WorkspaceError};

/// Whose a workspace is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// One state directory's: its name is nobody else's.
    Own,
    /// Anybody's who knows its name: others may stage in it at any moment.
    Shared,
}

/// Who makes a repository's first commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct User {
    /// Name.
    pub name: String,
    /// Address.
    pub email: String,
}

/// Where a repository's content is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Storage {
    /// On the server's disk, at a path of it or where it likes.
    Local(Option<String>),
    /// In an object store. A server without one answers with success and stores locally:
    /// [`RepositoryInfo::storage_kind`] tells.
    S3(S3Storage),
}

/// A place in an object store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct S3Storage {
    /// The bucket.
    pub bucket: String,
    /// What every key begins with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
}

/// A file of a repository's first commit.
#[derive(Debug, Clone)]
pub struct InitialFile {
    /// Where. In a form, which binary content needs, servers keep the last component.
    pub path: String,
    /// What.
    pub contents: Contents,
}

/// The content of an [`InitialFile`].
#[derive(Debug, Clone)]
pub enum Contents {
    /// Text.
    Text(String),
    /// Anything.
    Binary(Bytes),
}

/// A repository to be made.
#[derive(Debug, Clone, Default)]
pub struct NewRepository {
    /// What it is about.
    pub description: Option<String>,
    /// Whether everybody may read it.
    pub is_public: Option<bool>,
    /// The host in its address.
    pub host: Option<String>,
    /// The scheme in its address.
    pub scheme: Option<String>,
    /// The commit its history begins with.
    pub root_commit: Option<Commit>,
    /// Where its content is kept.
    pub storage: Option<Storage>,
    /// Who makes the first commit; needed for files.
    pub user: Option<User>,
    /// The first commit's files; none leave it empty.
    pub files: Vec<InitialFile>,
}

/// How many files are staged in a workspace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct StagedCounts {
    /// New ones.
    pub added: u64,
    /// With other content.
    pub modified: u64,
    /// Removed ones.
    pub removed: u64,
}

impl StagedCounts {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.added.saturating_add(self.modified).saturating_add(self.removed)
    }
}

/// A repository, as the server describes it.
#[derive(Debug, Clone, Deserialize)]
pub struct RepositoryInfo {
    /// User or organization.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// No commit yet.
    #[serde(default)]
    pub is_empty: bool,
    /// The oldest format that can read it.
    #[serde(default)]
    pub min_version: Option<String>,
    /// `local` or `s3`, where the server says.
    #[serde(default)]
    pub storage_kind: Option<String>,
    /// Bytes of its content.
    #[serde(default)]
    pub size: u64,
    /// Its identity, which survives a rename.
    #[serde(default)]
    pub repo_uuid: Option<String>,
}

#[derive(Deserialize)]
struct RepositoryAnswer {
    repository: RepositoryInfo,
}

/// `POST /api/repos`. Released servers take `contents` as a plain string and answer 400 to the documented
/// `{"Text": ...}` (0.65.2, tried).
#[derive(Serialize)]
struct RepositoryBody<'a> {
    namespace: &'a str,
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    is_public: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scheme: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    root_commit: Option<&'a Commit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    storage_opts: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a User>,
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<Vec<serde_json::Value>>,
}

/// A repository on a server; it need not exist yet. Clones share one pool of connections.
#[derive(Clone)]
pub struct Repository {
    pub(super) http: Arc<Http>,
    namespace: String,
    name: String,
    compress: Option<bool>,
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Repository({}, {}/{})", self.http.server(), self.namespace, self.name)
    }
}

impl Repository {
    /// The way to a repository; no request is made.
    ///
    /// # Errors
    /// When the address is none, or the system's certificates cannot be read.
    pub fn connect(endpoint: &Endpoint) -> Result<Self, WorkspaceError> {
        let http = Http::new(endpoint)?;
        Ok(Self {
            http: Arc::new(http),
            namespace: endpoint.namespace.clone(),
            name: endpoint.repo.clone(),
            compress: endpoint.compress,
        })
    }

    /// This one is meant: nothing is asked of another of the same name, from the next request on.
    pub fn expect(&self, known: KnownRepository) {
        self.http.recognition().expect(known);
    }

    /// This one is meant, and was seen.
    pub(super) fn know(&self, known: KnownRepository) {
        self.http.recognition().know(known);
    }

    /// `rest` below the repository, already encoded.
    pub(super) fn url(&self, rest: &str) -> String {
        format!("api/repos/{}/{}/{rest}", segment(&self.namespace), segment(&self.name))
    }

    fn own_url(&self) -> String {
        format!("api/repos/{}/{}", segment(&self.namespace), segment(&self.name))
    }

    /// What is missing when the repository is.
    pub(super) fn what(&self) -> String {
        format!("repository {}/{}", self.namespace, self.name)
    }

    /// Costs a server nothing: one that does not answer this soon answers nothing.
    fn version_request(&self) -> Request {
        let request = Request::get("api/version".to_owned(), "an Oxen server at this address");
        request.patience(self.http.stall() / 3)
    }

    /// What the server calls its version; needs no repository.
    ///
    /// # Errors
    /// When there is no Oxen server.
    pub async fn server_version(&self) -> Result<String, WorkspaceError> {
        let request = self.version_request();
        let (header, answer) = retry(Patience::Several, async || {
            let answer = self.http.send(&request).await?;
            Ok((answer.version(), answer.json::<wire::VersionAnswer>().await?))
        })
        .await?;
        answer.oxen_version.or(header).ok_or_else(|| {
            let detail = format!("{} answers, but not as an Oxen server", self.http.server());
            WorkspaceError::Protocol { detail, request: None }
        })
    }

    /// What time it is at the server; `None` when it does not say.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn server_time(&self) -> Result<Option<SystemTime>, WorkspaceError> {
        let request = self.version_request();
        Ok(self.http.send(&request).await?.date())
    }

    /// The repository; `None` when there is none.
    ///
    /// # Errors
    /// As the server answers.
    pub async fn get(&self) -> Result<Option<RepositoryInfo>, WorkspaceError> {
        let answer: Option<RepositoryAnswer> = self.http.find(&Request::get(self.own_url(), self.what())).await?;
        Ok(answer.map(|answer| answer.repository))
    }

    /// Makes the repository: as JSON where all its files are text, as a form where one is not.
    ///
    /// # Errors
    /// [`WorkspaceError::Conflict`] when there is one of that name.
    pub async fn create(&self, new: &NewRepository) -> Result<RepositoryInfo, WorkspaceError> {
        let in_form = new.files.iter().any(|file| matches!(file.contents, Contents::Binary(_)));
        let created = if in_form {
            self.create_by_form(new).await
        } else {
            match self.create_by_json(new, ContentsForm::Released).await {
                // Nothing was made; the documented form is the other one there is.
                Err(refused @ WorkspaceError::Refused { status: 400, .. }) if !new.files.is_empty() => {
                    let documented = self.create_by_json(new, ContentsForm::Documented).await;
                    documented.map_err(|error| match error {
                        WorkspaceError::Refused { status: 400, .. } => refused,
                        error => error,
                    })
                }
                result => result,
            }
        };
        let lost_answer = match created {
            Ok(()) => false,
            // Not repeated: a repository made by a request whose answer was lost would be a conflict.
            Err(WorkspaceError::Unreachable { .. } | WorkspaceError::TimedOut { .. }) => true,
            Err(error) => return Err(error),
        };
        match self.get().await? {
            Some(info) => Ok(info),
            None if lost_answer => {
                Err(WorkspaceError::Unconfirmed { what: format!("the creation of {}", self.what()) })
            }
            None => Err(WorkspaceError::NotFound { what: self.what(), request: None }),
        }
    }

    async fn create_by_json(&self, new: &NewRepository, form: ContentsForm) -> Result<(), WorkspaceError> {
        let user = new.user.as_ref();
        let files = new.files.iter().map(|file| {
            let contents = match (&file.contents, form) {
                (Contents::Text(text), ContentsForm::Released) => serde_json::json!(text),
                (Contents::Text(text), ContentsForm::Documented) => serde_json::json!({ "Text": text }),
                (Contents::Binary(bytes), _) => serde_json::json!({ "Binary": bytes.as_ref() }),
            };
            serde_json::json!({ "path": file.path, "contents": contents, "user": user })
        });
        let files: Vec<_> = files.collect();
        let body = RepositoryBody { files: (!files.is_empty()).then_some(files), ..self.body(new) };
        let request = Request::new(Method::POST, "api/repos".to_owned(), self.what()).json(&body)?;
        self.http.json::<wire::Anything>(&request).await.map(drop)
    }

    /// The user comes before the files, or they have no author (0.65.2, tried).
    async fn create_by_form(&self, new: &NewRepository) -> Result<(), WorkspaceError> {
        let json = serde_json::to_vec(&self.body(new)).map_err(|error| WorkspaceError::Protocol {
            detail: format!("cannot write a request: {error}"),
            request: None,
        })?;
        let mut form = Form::new();
        form.field("new_repo", &json);
        if let Some(user) = &new.user {
            form.field("name", user.name.as_bytes());
            form.field("email", user.email.as_bytes());
        }
        for file in &new.files {
            let Some(name) = quoted(&file.path) else {
                let message = format!("{:?} cannot be sent: a line break or control character is in it", file.path);
                return Err(WorkspaceError::Refused { status: 0, message, request: None });
            };
            let bytes = match &file.contents {
                Contents::Text(text) => Bytes::copy_from_slice(text.as_bytes()),
                Contents::Binary(bytes) => bytes.clone(),
            };
            form.file(&name, PLAIN, Segment::Bytes(bytes));
        }
        let (media_type, body) = form.finish();
        let request = Request::new(Method::POST, "api/repos".to_owned(), self.what()).body(media_type, body);
        self.http.json::<wire::Anything>(&request).await.map(drop)
    }

    fn body<'a>(&'a self, new: &'a NewRepository) -> RepositoryBody<'a> {
        let storage_opts = new.storage.as_ref().map(|storage| match storage {
            Storage::Local(None) => serde_json::json!({ "kind": "local" }),
            Storage::Local(Some(path)) => {
                serde_json::json!({ "kind": "local", "local_storage_opts": { "path": path } })
            }
            Storage::S3(s3) => serde_json::json!({ "kind": "s3", "s3_opts": s3 }),
        });
        RepositoryBody {
            namespace: &self.namespace,
            name: &self.name,
            description: new.description.as_deref(),
            is_public: new.is_public,
            host: new.host.as_deref(),
            scheme: new.scheme.as_deref(),
            root_commit: new.root_commit.as_ref(),
            storage_opts,
            user: new.user.as_ref(),
            files: None,
        }
    }

    /// All branches.
    ///
    /// # Errors
    /// As the server answers.
    pub async fn branches(&self) -> Result<Vec<Branch>, WorkspaceError> {
        let request = Request::get(self.url("branches"), self.what());
        let answer: wire::BranchesAnswer = self.http.json_with(Patience::Several, &request).await?;
        Ok(answer.branches)
    }

    /// A branch; `None` when there is none of that name, or no such repository.
    ///
    /// # Errors
    /// As the server answers.
    pub async fn branch(&self, name: &str) -> Result<Option<Branch>, WorkspaceError> {
        let request = Request::get(self.url(&format!("branches/{}", segments(name))), format!("branch {name}"));
        let answer: Option<wire::BranchAnswer> = self.http.find(&request).await?;
        Ok(answer.map(|answer| answer.branch))
    }

    /// Makes the branch `name` where `from` stands. One that is there already is returned as it is.
    ///
    /// # Errors
    /// [`WorkspaceError::NotFound`] without `from`.
    pub async fn create_branch(&self, name: &str, from: &str) -> Result<Branch, WorkspaceError> {
        if let Some(branch) = self.branch(name).await? {
            return Ok(branch);
        }
        let body = wire::NewBranch { new_name: name, from_name: from };
        let request = Request::new(Method::POST, self.url("branches"), format!("branch {from}")).json(&body)?;
        let answer: wire::BranchAnswer = self.http.json_with(Patience::Several, &request).await?;
        Ok(answer.branch)
    }

    /// Makes the branch `name`, which is not there, at `commit`.
    pub(super) async fn create_branch_at(&self, name: &str, commit: &CommitId) -> Result<(), WorkspaceError> {
        let body = wire::NewBranchAt { new_name: name, commit_id: &commit.0 };
        let request = Request::new(Method::POST, self.url("branches"), format!("commit {commit}")).json(&body)?;
        let answer: wire::BranchAnswer = self.http.json(&request).await?;
        match *answer.branch.commit_id == *commit.0 {
            true => Ok(()),
            false => Err(WorkspaceError::Unconfirmed { what: format!("branch {name}") }),
        }
    }

    /// Deletes a branch; says whether there was one.
    pub(super) async fn delete_branch(&self, name: &str) -> Result<bool, WorkspaceError> {
        let url = self.url(&format!("branches/{}", segments(name)));
        let request = Request::new(Method::DELETE, url, format!("branch {name}"));
        Ok(self.http.find::<wire::Anything>(&request).await?.is_some())
    }

    /// A commit; `None` when there is none of that id, or no such repository.
    ///
    /// # Errors
    /// As the server answers.
    pub async fn commit(&self, id: &str) -> Result<Option<Commit>, WorkspaceError> {
        let request = Request::get(self.url(&format!("commits/{}", segment(id))), format!("commit {id}"));
        let answer: Option<wire::CommitAnswer> = self.http.find(&request).await?;
        Ok(answer.map(|answer| answer.commit))
    }

    /// All workspaces.
    ///
    /// # Errors
    /// As the server answers.
    pub async fn workspaces(&self) -> Result<Vec<WorkspaceInfo>, WorkspaceError> {
        let request = Request::get(self.url("workspaces"), self.what());
        let answer: wire::WorkspacesAnswer = self.http.json_with(Patience::Several, &request).await?;
        Ok(answer.workspaces)
    }

    /// A workspace by name or id; `None` when there is none, or no such repository.
    ///
    /// # Errors
    /// As the server answers.
    pub async fn workspace(&self, name: &str) -> Result<Option<WorkspaceInfo>, WorkspaceError> {
        let answer: Option<wire::WorkspaceAnswer> = self.http.find(&self.workspace_request(Method::GET, name)).await?;
        Ok(answer.map(|answer| answer.workspace))
    }

    /// Deletes a workspace and what is staged in it; says whether there was one.
    ///
    /// # Errors
    /// As the server answers.
    pub async fn delete_workspace(&self, name: &str) -> Result<bool, WorkspaceError> {
        let request = self.workspace_request(Method::DELETE, name);
        Ok(self.http.find::<wire::Anything>(&request).await?.is_some())
    }

    fn workspace_request(&self, method: Method, name: &str) -> Request {
        Request::new(method, self.url(&format!("workspaces/{}", segment(name))), format!("workspace {name}"))
    }

    /// [`OxenWorkspace::open`] on this connection.
    ///
    /// # Errors
    /// As there.
    pub async fn open_workspace(
        &self,
        name: &str,
        branch: &str,
        claim: Claim,
    ) -> Result<OxenWorkspace, WorkspaceError> {
        let version = self.server_version().await?;
        let mut answer = self.get_or_create_workspace(name, name, branch).await?;
        // When it was found by name, the answer has the id that was sent, not its own (0.65.2, tried).
        let mut found = self.workspace(name).await?.unwrap_or(answer.workspace.clone());
        // A workspace keeps the commit it was made on. With nothing staged there is no reason to: it is made anew, on
        // what the branch has become. In one that others use, something may be staged just now.
        let head = self.branch(branch).await?;
        if claim == Claim::Own
            && answer.status_message != "resource_created"
            && head.is_some_and(|head| head.commit_id != found.commit.id)
            && !self.has_changes(&found.id).await?
        {
            self.delete_workspace(&found.id).await?;
            answer = self.get_or_create_workspace(name, name, branch).await?;
            found = answer.workspace.clone();
        }
        let dialect = Dialect::of(self.routes(&found.id).await?, &version);
        let hash_kind = match dialect.name {
            "documented" => self.hash_kind(&found.commit.commit_id()).await?.unwrap_or(HashKind::Sha256),
            _ => HashKind::Xxh3,
        };
        let base = found.commit.commit_id();
        let mut workspace = self.on(base, dialect, version, hash_kind);
        (workspace.id, workspace.name) = (RwLock::new(found.id.as_str().into()), name.to_owned());
        workspace.created = answer.status_message == "resource_created";
        workspace.shared = claim == Claim::Shared;
        Ok(workspace)
    }

    /// What the branch or commit called `revision` is now, to be read; a branch, where there are both. Sends nothing but
    /// requests that change nothing.
    ///
    /// # Errors
    /// [`WorkspaceError::NotFound`] when the repository has neither; else as the server answers.
    pub async fn open_revision(&self, revision: &str) -> Result<OxenWorkspace, WorkspaceError> {
        let version = self.server_version().await?;
        let named = CommitId(revision.into());
        let commit = match self.branch(revision).await? {
            Some(branch) => CommitId(branch.commit_id.into()),
            None => match self.commit(revision).await? {
                Some(commit) => commit.commit_id(),
                // The route for commits is not everywhere.
                None if self.has_commit(&named).await? => named,
                None => {
                    let what = format!("branch or commit {revision} of {}/{}", self.namespace, self.name);
                    return Err(WorkspaceError::NotFound { what, request: None });
                }
            },
        };
        // The routes are asked with requests that a server could take for more than questions. What reads needs none of
        // them, and each hash says which kind it is.
        let dialect = Dialect { name: READING, ..Dialect::of(Routes::default(), &version) };
        let hash_kind = self.hash_kind(&commit).await?.unwrap_or(HashKind::Xxh3);
        let mut workspace = self.on(commit.clone(), dialect, version, hash_kind);
        workspace.commit = Some(commit);
        Ok(workspace)
    }

    /// A workspace of no name on `base`.
    fn on(&self, base: CommitId, dialect: Dialect, version: String, hash_kind: HashKind) -> OxenWorkspace {
        let info =
            ServerInfo { version, dialect: dialect.name.into(), hash_kind, by_hash: dialect.hash_route.by_hash() };
        tracing::info!(server = self.http.server(), version = info.version, dialect = %info.dialect, "connected");
        OxenWorkspace {
            repo: self.clone(),
            commit: None,
            known_commits: Mutex::new(HashSet::from([base])),
            id: RwLock::new("".into()),
            name: String::new(),
            created: false,
            shared: false,
            dialect,
            info,
            compress: self.compress.unwrap_or(!self.http.is_loopback()),
            no_ranges: AtomicBool::new(false),
            listed_changes: AtomicUsize::new(0),
            in_parts: super::upload::InParts::default(),
            stored: super::stored::Questions::default(),
            no_compare: AtomicBool::new(false),
            no_archives: AtomicBool::new(false),
        }
    }

    /// The workspace called `name`, made with this id where there is none: one string for both, and either finds it.
    ///
    /// A deletion beside other requests may leave remains on the server's disk, which are found by nothing and keep their
    /// id taken (0.65.2: the error of the removal is logged alone, read). The workspace gets another id then, and is found
    /// by its name as before.
    pub(super) async fn get_or_create_workspace(
        &self,
        id: &str,
        name: &str,
        branch: &str,
    ) -> Result<wire::WorkspaceAnswer, WorkspaceError> {
        match self.get_or_create_with_id(id, name, branch).await {
            Err(WorkspaceError::Server { message, .. }) if message.contains("already exists") => {
                tracing::warn!(name, message, "remains of a workspace are in the way; it is made under another id");
                let other = format!("{id}-{:08x}", fastrand::u32(..));
                self.get_or_create_with_id(&other, name, branch).await
            }
            result => result,
        }
    }

    async fn get_or_create_with_id(
        &self,
        id: &str,
        name: &str,
        branch: &str,
    ) -> Result<wire::WorkspaceAnswer, WorkspaceError> {
        let body = wire::NewWorkspace { workspace_id: id, name, branch_name: branch };
        let mut refused = None;
        // Released and documented; a server has one of them, and answers the other 404 or 405.
        for route in ["workspaces", "workspaces/get_or_create"] {
            let request = Request::new(Method::PUT, self.url(route), self.what()).json(&body)?;
            match self.http.json_with(Patience::Several, &request).await {
                Err(error @ (WorkspaceError::NotFound { .. } | WorkspaceError::Refused { status: 405, .. })) => {
                    refused.get_or_insert(error);
                }
                Err(error @ WorkspaceError::Refused { status: 400, .. }) => {
                    // Of a branch that is not there, too.
                    let missing = self.branch(branch).await?.is_none();
                    return Err(match missing {
                        true => WorkspaceError::NotFound { what: format!("branch {branch}"), request: None },
                        false => error,
                    });
                }
                result => return result,
            }
        }
        if self.get().await?.is_some() && self.branch(branch).await?.is_none() {
            return Err(WorkspaceError::NotFound { what: format!("branch {branch}"), request: None });
        }
        Err(refused.unwrap_or_else(|| WorkspaceError::NotFound { what: self.what(), request: None }))
    }

    /// Which routes the server has: asked with requests that change nothing.
    async fn routes(&self, workspace: &str) -> Result<Routes, WorkspaceError> {
        let below = |rest: &str| self.url(&format!("workspaces/{}/{rest}", segment(workspace)));
        let nothing: [(); 0] = [];
        // 0.65.2 misses a field in `{}` and answers 400 (tried); where there is no such route, 404 or 405.
        let begin = Request::new(Method::POST, self.url("versions/uploads"), "").json(&Object {})?;
        if self.answers(&begin, &[400, 422]).await? {
            return Ok(Routes { uploads: true, ..Routes::default() });
        }
        let mut routes = Routes::default();
        // 200 to no files (read, 0.53.4), 404 from 0.54 on (tried, 0.65.2), 426 where the agent is not liked (read).
        let request = Request::new(Method::POST, below("versions/"), "").json(&nothing)?;
        routes.workspace_versions = self.answers(&request, &[]).await?;
        if !routes.workspace_versions {
            // Documented; released servers take it for a multipart add and answer 415 (tried, 0.65.2).
            let request = Request::new(Method::POST, below("files/batch/"), "").json(&nothing)?;
            routes.files_batch = self.answers(&request, &[]).await?;
        }
        // Does nothing and answers 200 (read, 0.53.4 and 0.65.2). The hash is that of no bytes.
        let create = self.url("versions/99aa06d3014798d86001c324468d497f/create");
        routes.chunks = self.answers(&Request::new(Method::POST, create, "").json(&Object {})?, &[]).await?;
        Ok(routes)
    }

    /// Whether the request succeeds or is refused with one of `statuses`; any other refusal says that there is no such
    /// route.
    async fn answers(&self, request: &Request, statuses: &[u16]) -> Result<bool, WorkspaceError> {
        match retry(Patience::Several, || self.http.send(request)).await {
            Ok(_) => Ok(true),
            Err(WorkspaceError::Refused { status, .. }) => Ok(statuses.contains(&status)),
            Err(WorkspaceError::NotFound { .. } | WorkspaceError::Conflict { .. }) => Ok(false),
            // Not implemented.
            Err(WorkspaceError::Server { status: 501, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// How much is staged in a workspace.
    ///
    /// # Errors
    /// As the server answers.
    pub async fn staged_counts(&self, workspace: &str) -> Result<StagedCounts, WorkspaceError> {
        let staged = self.first_changes(workspace).await?;
        let of = |list: wire::ChangesPage| list.total_entries.max(list.entries.len() as u64);
        Ok(StagedCounts {
            added: of(staged.added_files),
            modified: of(staged.modified_files),
            removed: of(staged.removed_files),
        })
    }

    async fn has_changes(&self, workspace: &str) -> Result<bool, WorkspaceError> {
        let staged = self.first_changes(workspace).await?;
        let lists = [staged.added_files, staged.modified_files, staged.removed_files];
        Ok(lists.iter().any(|list| list.total_entries > 0 || !list.entries.is_empty()))
    }

    async fn first_changes(&self, workspace: &str) -> Result<wire::Staged, WorkspaceError> {
        let url = self.url(&format!("workspaces/{}/changes?page=1&page_size=1", segment(workspace)));
        let request = Request::get(url, format!("workspace {workspace}"));
        Ok(self.http.json_with::<wire::ChangesAnswer>(Patience::Several, &request).await?.staged)
    }

    /// The function that made the hashes of a commit's files; `None` when none is found near the root.
    async fn hash_kind(&self, commit: &CommitId) -> Result<Option<HashKind>, WorkspaceError> {
        let mut dirs = VecDeque::from([RepoPath::root()]);
        // Files are seldom deep; a handful of listings is enough to look for one.
        for _ in 0..8 {
            let Some(dir) = dirs.pop_front() else { break };
            let place = format!("dir/{}/{}?page=1&page_size=20", segment(&commit.0), path(&dir));
            let page: Option<wire::DirPage> = self.http.find(&Request::get(self.url(&place), "")).await?;
            for entry in page.into_iter().flat_map(|page| page.entries).filter_map(Each::sound) {
                match (entry.is_dir, wire::hash(&entry.hash)) {
                    (false, Some(hash)) => return Ok(Some(hash.kind())),
                    (false, None) => {}
                    (true, _) => dirs.extend(RepoPath::parse(&entry.filename).map(|below| dir.concat(&below))),
                }
            }
        }
        Ok(None)
    }

    /// Whether `commit` exists: it is found as such, or by its root (the route for commits is not everywhere), or a
    /// branch stands on it (a root without files is 404).
    pub(super) async fn has_commit(&self, commit: &CommitId) -> Result<bool, WorkspaceError> {
        if self.commit(&commit.0).await?.is_some() {
            return Ok(true);
        }
        let root = Request::get(self.url(&format!("dir/{}?page=1&page_size=1", segment(&commit.0))), "");
        if self.http.find::<wire::Anything>(&root).await?.is_some() {
            return Ok(true);
        }
        Ok(self.branches().await?.iter().any(|branch| *branch.commit_id == *commit.0))
    }
}

/// The protocol, as far as reading needs one.
const READING: &str = "read-only";

/// How `contents` is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ContentsForm {
    Released,
    Documented,
}

/// `{}`.
#[derive(Serialize)]
struct Object {}
