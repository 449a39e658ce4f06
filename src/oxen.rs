//! The Oxen server over HTTP: one pooled client, one place for errors and retries, and the dialects of its releases.
//!
//! [`connect`] finds out what the server speaks, finds or makes repository and workspace, and returns them as a
//! [`Workspace`]. What each request looks like on the wire stands in [`wire`]; which ones a server has in [`dialect`].

mod dialect;
mod http;
mod multipart;
mod repository;
mod retry;
mod upload;
mod wire;
mod workspace;

use std::sync::Arc;

use crate::config::{CredentialSource, MountSettings, RepoId, ServerUrl};
use crate::workspace::{Workspace, WorkspaceError};

pub use repository::{InitialFile, NewRepository, RepositoryInfo, Server, WorkspaceInfo};
pub use workspace::OxenWorkspace;

/// Connects a mount: the repository, made if `settings` say so and it is absent, and its workspace. `None`: there is
/// no such repository and none was to be made. The flag says whether it was made.
///
/// # Errors
/// The server's.
pub async fn connect(settings: &MountSettings) -> Result<Option<(Arc<dyn Workspace>, bool)>, WorkspaceError> {
    let server = Server::new(&settings.server, settings.credentials.clone())?;
    let (workspace, created) = match open(&server, settings).await? {
        Some(opened) => opened,
        None => return Ok(None),
    };
    Ok(Some((Arc::new(workspace), created)))
}

async fn open(server: &Server, settings: &MountSettings) -> Result<Option<(OxenWorkspace, bool)>, WorkspaceError> {
    let version = server.version().await?;
    let mut created = false;
    let info = match (server.repository(&settings.repo).await?, &settings.create) {
        (Some(info), _) => info,
        (None, None) => return Ok(None),
        (None, Some(wanted)) => {
            let new = NewRepository {
                description: wanted.description.clone(),
                public: wanted.public,
                storage: wanted.storage.clone(),
                ..NewRepository::default()
            };
            created = true;
            server.create_repository(&settings.repo, &new).await?
        }
    };
    if !info.is_empty && server.branch(&settings.repo, &settings.branch).await?.is_none() {
        return Err(WorkspaceError::NotFound { what: format!("branch {} of {}", settings.branch, settings.repo) });
    }
    let opened = OxenWorkspace::open(server, &version, &settings.repo, &settings.workspace, &settings.branch).await?;
    Ok(Some((opened, created)))
}

/// For commands that need a server and no mount.
///
/// # Errors
/// When the client cannot be set up.
pub fn server(url: &ServerUrl, credentials: CredentialSource) -> Result<Server, WorkspaceError> {
    Server::new(url, credentials)
}

/// The path under `/api/repos` of a repository.
fn repo_path(repo: &RepoId) -> String {
    format!("/api/repos/{}/{}", http::segment(&repo.namespace), http::segment(&repo.name))
}
