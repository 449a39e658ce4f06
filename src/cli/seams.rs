//! What the commands need of other layers, in one place.

use std::path::Path;

use serde::Serialize;

use super::failure::Failure;
use super::repo::NewRepo;
use crate::config::{CredentialSource, MountSettings, RepoId, ServerUrl};
use crate::control::Status;
use crate::mount::daemon::Notifier;
use crate::mount::state_dir::StateDir;

/// Serves a mount until it is unmounted; tells `notifier` when it answers.
///
/// # Errors
/// Before that: why there is no mount. After it: why it ended, exit code 3 when changes are owed.
pub fn run(settings: &MountSettings, state: StateDir, notifier: &Notifier) -> Result<(), Failure> {
    let _ = (settings, state, notifier);
    Err(Failure::new("mounting is not part of this build"))
}

/// What a state directory owes the server while no daemon runs.
///
/// # Errors
/// When its journal cannot be read.
pub fn offline_status(dir: &Path) -> Result<Status, Failure> {
    let _ = dir;
    Ok(Status::default())
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
    let _ = new;
    Err(Failure::new("not part of this build"))
}

/// The branches of a repository.
///
/// # Errors
/// When the server cannot be reached or refuses.
pub fn branches(place: Place) -> Result<Vec<Ref>, Failure> {
    let _ = place;
    Err(Failure::new("not part of this build"))
}

/// The workspaces of a repository.
///
/// # Errors
/// When the server cannot be reached or refuses.
pub fn workspaces(place: Place) -> Result<Vec<Ref>, Failure> {
    let _ = place;
    Err(Failure::new("not part of this build"))
}
