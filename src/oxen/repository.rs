//! What belongs to a server and its repositories, not to one workspace.

use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use serde::Serialize;
use serde_json::json;

use super::http::{Http, json_bytes, segment};
use super::multipart::Form;
use super::retry::Attempts;
use super::{repo_path, wire};
use crate::config::{CredentialSource, RepoId, ServerUrl, Storage};
use crate::workspace::{CommitId, WorkspaceError};

/// A server.
#[derive(Clone)]
pub struct Server {
    pub(super) http: Http,
}

/// A repository to be made.
#[derive(Debug, Clone, Default)]
pub struct NewRepository {
    /// In words.
    pub description: Option<String>,
    /// Everybody may read it.
    pub public: bool,
    /// Where its content is kept; `None` is the server's choice.
    pub storage: Option<Storage>,
    /// Name and address of the author of the initial commit; needed with `files`.
    pub author: Option<(String, String)>,
    /// Files of the initial commit.
    pub files: Vec<InitialFile>,
}

/// A file of an initial commit.
#[derive(Debug, Clone)]
pub struct InitialFile {
    /// Its name; the server keeps one component.
    pub name: String,
    /// Its bytes.
    pub content: Vec<u8>,
}

/// What a server says of a repository.
#[derive(Debug, Clone)]
pub struct RepositoryInfo {
    /// `NAMESPACE/NAME` as the server has it.
    pub repo: String,
    /// No commit yet.
    pub is_empty: bool,
    /// `local` or `s3`, where the server says.
    pub storage: Option<String>,
}

/// A workspace of a repository.
#[derive(Debug, Clone, Serialize)]
pub struct WorkspaceInfo {
    /// Its id.
    pub id: String,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// The commit it stands on.
    pub commit: CommitId,
}

impl From<wire::Repository> for RepositoryInfo {
    fn from(found: wire::Repository) -> Self {
        Self {
            repo: format!("{}/{}", found.namespace, found.name),
            is_empty: found.is_empty.unwrap_or(found.latest_commit.is_none()),
            storage: found.storage_kind,
        }
    }
}

impl Server {
    pub(super) fn new(url: &ServerUrl, credentials: CredentialSource) -> Result<Self, WorkspaceError> {
        Ok(Self { http: Http::new(url, credentials)? })
    }

    /// The server's version.
    ///
    /// # Errors
    /// [`WorkspaceError::Protocol`] when something else answers there.
    pub async fn version(&self) -> Result<String, WorkspaceError> {
        match self.http.get::<wire::VersionAnswer>("/api/version").await {
            Ok(answer) => Ok(answer.oxen_version),
            Err(WorkspaceError::NotFound { .. } | WorkspaceError::Protocol { .. }) => {
                Err(WorkspaceError::Protocol { detail: format!("{} is not an Oxen server", self.http.server()) })
            }
            Err(error) => Err(error),
        }
    }

    /// What the server says of a repository; `None`: it has none of that name, or does not show it.
    ///
    /// # Errors
    /// The server's.
    pub async fn repository(&self, repo: &RepoId) -> Result<Option<RepositoryInfo>, WorkspaceError> {
        let found: Option<wire::RepositoryAnswer> = self.http.find(&repo_path(repo)).await?;
        Ok(found.map(|answer| answer.repository.into()))
    }

    /// Makes a repository, with an initial commit where it has files.
    ///
    /// # Errors
    /// [`WorkspaceError::Conflict`] when it exists already; [`WorkspaceError::Refused`] for a bad name, or when the
    /// server keeps its content elsewhere than asked.
    pub async fn create_repository(
        &self,
        repo: &RepoId,
        new: &NewRepository,
    ) -> Result<RepositoryInfo, WorkspaceError> {
        let mut body = json!({ "namespace": repo.namespace, "name": repo.name, "is_public": new.public });
        if let Some(description) = &new.description {
            body["description"] = json!(description);
        }
        match &new.storage {
            None => {}
            Some(Storage::Local) => body["storage_opts"] = json!({ "kind": "local" }),
            Some(Storage::S3 { bucket, prefix }) => {
                body["storage_opts"] = json!({ "kind": "s3", "s3_opts": { "bucket": bucket, "prefix": prefix } });
            }
        }
        let made: wire::RepositoryAnswer = match &new.author {
            Some((name, email)) if !new.files.is_empty() => {
                let form = || {
                    let mut form = Form::new();
                    form.field("new_repo", &body.to_string());
                    // Before the files: the server takes the author from what it has read.
                    form.field("name", name);
                    form.field("email", email);
                    new.files.iter().for_each(|file| form.bytes("file[]", &file.name, file.content.clone()));
                    form.finish()
                };
                let answer = self.http.send(Attempts::Once, || {
                    let (content_type, length, body) = form();
                    Ok(self.http.streamed(Method::POST, "/api/repos", &content_type, length, body))
                });
                self.http.json(answer.await?).await?
            }
            _ => {
                if let Some((name, email)) = &new.author {
                    body["user"] = json!({ "name": name, "email": email });
                }
                self.http.call(Attempts::Once, Method::POST, "/api/repos", &body).await?.1
            }
        };
        let made = RepositoryInfo::from(made.repository);
        // A server without S3 answers 200 and keeps the content on its own disk (tried on 0.65.2).
        let wanted = new.storage.as_ref().map(|storage| if *storage == Storage::Local { "local" } else { "s3" });
        match (wanted, made.storage.as_deref()) {
            (Some(wanted), Some(got)) if wanted != got => Err(WorkspaceError::Refused {
                status: 200,
                message: format!("{} was made, but keeps its content in {got}, not {wanted}", made.repo),
            }),
            _ => Ok(made),
        }
    }

    /// Removes a repository and all it holds.
    ///
    /// # Errors
    /// The server's.
    pub async fn delete_repository(&self, repo: &RepoId) -> Result<(), WorkspaceError> {
        let path = repo_path(repo);
        self.http.send(Attempts::Once, || Ok(self.http.request(Method::DELETE, &path, 0))).await.map(|_| ())
    }

    /// The head of a branch; `None`: there is no such branch.
    ///
    /// # Errors
    /// The server's.
    pub async fn branch(&self, repo: &RepoId, branch: &str) -> Result<Option<CommitId>, WorkspaceError> {
        let path = format!("{}/branches/{}", repo_path(repo), segment(branch));
        let found: Option<wire::BranchAnswer> = self.http.find(&path).await?;
        Ok(found.map(|answer| CommitId(answer.branch.commit_id.into())))
    }

    /// All branches and their heads.
    ///
    /// # Errors
    /// The server's.
    pub async fn branches(&self, repo: &RepoId) -> Result<Vec<(String, CommitId)>, WorkspaceError> {
        let answer: wire::BranchesAnswer = self.http.get(&format!("{}/branches", repo_path(repo))).await?;
        Ok(answer.branches.into_iter().map(|branch| (branch.name, CommitId(branch.commit_id.into()))).collect())
    }

    /// Makes a branch where another stands.
    ///
    /// # Errors
    /// The server's.
    pub async fn create_branch(&self, repo: &RepoId, new: &str, from: &str) -> Result<CommitId, WorkspaceError> {
        let path = format!("{}/branches", repo_path(repo));
        let body = json!({ "new_name": new, "from_name": from });
        let (_, answer) = self.http.call::<wire::BranchAnswer>(Attempts::Patient, Method::POST, &path, &body).await?;
        Ok(CommitId(answer.branch.commit_id.into()))
    }

    /// All workspaces.
    ///
    /// # Errors
    /// The server's.
    pub async fn workspaces(&self, repo: &RepoId) -> Result<Vec<WorkspaceInfo>, WorkspaceError> {
        let answer: wire::WorkspacesAnswer = self.http.get(&format!("{}/workspaces", repo_path(repo))).await?;
        Ok(answer.workspaces.into_iter().map(workspace_info).collect())
    }

    /// A workspace by id or name; `None`: there is none.
    ///
    /// # Errors
    /// The server's.
    pub async fn workspace(&self, repo: &RepoId, name: &str) -> Result<Option<WorkspaceInfo>, WorkspaceError> {
        let path = format!("{}/workspaces/{}", repo_path(repo), segment(name));
        let found: Option<wire::WorkspaceAnswer> = self.http.find(&path).await?;
        Ok(found.map(|answer| workspace_info(answer.workspace)))
    }

    /// Drops a workspace and what is staged in it.
    ///
    /// # Errors
    /// The server's.
    pub async fn delete_workspace(&self, repo: &RepoId, name: &str) -> Result<(), WorkspaceError> {
        let path = format!("{}/workspaces/{}", repo_path(repo), segment(name));
        self.http.send(Attempts::Patient, || Ok(self.http.request(Method::DELETE, &path, 0))).await.map(|_| ())
    }

    /// Finds or makes a workspace of this name, which is its id as well. Says whether the documented path answered.
    pub(super) async fn get_or_create_workspace(
        &self,
        repo: &RepoId,
        name: &str,
        branch: &str,
    ) -> Result<(WorkspaceInfo, bool), WorkspaceError> {
        let body = wire::NewWorkspace { workspace_id: name, name, branch_name: branch };
        let put = |documented: bool| {
            let path = format!("{}/workspaces{}", repo_path(repo), if documented { "/get_or_create" } else { "" });
            let (http, body) = (self.http.clone(), json_bytes(&body));
            async move {
                let body = body?;
                let answer = http.send(Attempts::Patient, || {
                    let request = http.request(Method::PUT, &path, 0);
                    Ok(request.header(CONTENT_TYPE, "application/json").body(body.clone()))
                });
                http.json::<wire::WorkspaceAnswer>(answer.await?).await
            }
        };
        let (answer, documented) = match put(false).await {
            // No such route (405 where another method has it), or the route's own 404; the second request tells.
            Err(error @ (WorkspaceError::NotFound { .. } | WorkspaceError::Refused { status: 405, .. })) => {
                match put(true).await {
                    Ok(answer) => (answer, true),
                    Err(_) => return Err(error),
                }
            }
            done => (done?, false),
        };
        let found = workspace_info(answer.workspace);
        if documented {
            return Ok((found, true));
        }
        // Found by name, the answer repeats the id that was sent, not the true one.
        let found = self.workspace(repo, name).await?.unwrap_or(found);
        Ok((found, false))
    }

    /// Whether a route is there: a body that it cannot take is refused, not unknown.
    pub(super) async fn has_route(&self, path: &str, body: &'static str) -> Result<bool, WorkspaceError> {
        let answer = self.http.send(Attempts::Patient, || {
            let request = self.http.request(Method::POST, path, 0);
            Ok(request.header(CONTENT_TYPE, "application/json").body(body))
        });
        match answer.await {
            Ok(_) => Ok(true),
            Err(WorkspaceError::NotFound { .. } | WorkspaceError::Refused { status: 405 | 415 | 426, .. }) => Ok(false),
            Err(WorkspaceError::Refused { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }
}

fn workspace_info(found: wire::WorkspaceBody) -> WorkspaceInfo {
    WorkspaceInfo { id: found.id, name: found.name, commit: CommitId(found.commit.id.into()) }
}
