//! What the commands need of other layers, in one place.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::failure::Failure;
use super::repo::NewRepo;
use crate::config::{CredentialSource, MountSettings, RepoId, ServerUrl};
use crate::control::Status;
use crate::mount::daemon::Notifier;
use crate::mount::state_dir::StateDir;
use crate::mount::{self, InitialFile, NewRepository, Server};
use crate::workspace::WorkspaceError;

/// Serves a mount until it is unmounted; tells `notifier` when it answers.
///
/// # Errors
/// Before that: why there is no mount. After it: why it ended, exit code 3 when changes are owed.
pub fn run(settings: &MountSettings, state: StateDir, notifier: &Notifier) -> Result<(), Failure> {
    let ended = mount::run(settings, state, notifier)?;
    if ended.owed == 0 {
        return Ok(());
    }
    let owed = if ended.owed == 1 { "1 change is".to_owned() } else { format!("{} changes are", ended.owed) };
    Err(Failure::owed(format_args!("{owed} not on the server yet, and safe on this disk"))
        .doing("the mount has ended")
        .hint("mount it again to go on"))
}

/// What a state directory owes the server while no daemon runs.
///
/// # Errors
/// When its journal cannot be read.
pub fn offline_status(dir: &Path) -> Result<Status, Failure> {
    Ok(mount::offline_status(dir)?)
}

/// A repository on a server, and the way in.
#[derive(Debug)]
pub struct Place {
    /// The server.
    pub server: ServerUrl,
    /// The repository.
    pub repo: RepoId,
    /// Its token.
    pub credentials: CredentialSource,
}

impl Place {
    /// The repository's URL, which every command takes as REPO.
    pub fn url(&self) -> String {
        format!("{}/{}", self.server, self.repo)
    }
}

/// A branch or a workspace, as listings show it.
#[derive(Debug, Serialize)]
pub struct Ref {
    /// Its name.
    pub name: String,
    /// The commit it stands on.
    pub commit: String,
}

/// Makes a repository; returns what the server did otherwise than asked.
///
/// # Errors
/// When the server cannot be reached or refuses.
pub fn create_repo(new: NewRepo) -> Result<Vec<String>, Failure> {
    let NewRepo { place, about, files, author } = new;
    let read = |(name, path): (String, PathBuf)| match std::fs::read(&path) {
        Ok(content) => Ok(InitialFile { name, content }),
        Err(error) => Err(Failure::new(format_args!("{}: {error}", path.display()))),
    };
    let files = files.into_iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let new =
        NewRepository { description: about.description, public: about.public, storage: about.storage, author, files };
    ask(&place, async |server| server.create_repository(&place.repo, &new).await)?;
    Ok(Vec::new())
}

/// The branches of a repository.
///
/// # Errors
/// When the server cannot be reached or refuses.
pub fn branches(place: Place) -> Result<Vec<Ref>, Failure> {
    let found = ask(&place, async |server| server.branches(&place.repo).await)?;
    Ok(found.into_iter().map(|(name, commit)| Ref { name, commit: commit.to_string() }).collect())
}

/// The workspaces of a repository.
///
/// # Errors
/// When the server cannot be reached or refuses.
pub fn workspaces(place: Place) -> Result<Vec<Ref>, Failure> {
    let found = ask(&place, async |server| server.workspaces(&place.repo).await)?;
    let named = found.into_iter().map(|found| (found.name.unwrap_or(found.id), found.commit));
    Ok(named.map(|(name, commit)| Ref { name, commit: commit.to_string() }).collect())
}

/// One conversation with a server, after its version was found to be one.
fn ask<T>(place: &Place, talk: impl AsyncFnOnce(&Server) -> Result<T, WorkspaceError>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::new)?;
    let done = runtime.block_on(async {
        let server = mount::server(&place.server, place.credentials.clone())?;
        server.version().await?;
        talk(&server).await
    });
    done.map_err(|error| match error {
        WorkspaceError::NotFound { .. } => Failure::new(format_args!("the repository {} does not exist", place.repo))
            .hint(format_args!("oxenfs repo create {}", place.url())),
        other => other.into(),
    })
}
