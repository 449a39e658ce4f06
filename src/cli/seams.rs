//! What the commands need of other layers, in one place.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::failure::{Failure, quoted};
use super::output::are;
use crate::config::{CreateRepo, CredentialSource, MountSettings, RepoId, ServerUrl};
use crate::control::Status;
use crate::fs::Repair;
use crate::mount::daemon::Notifier;
use crate::mount::preflight::Place as MountPlace;
use crate::mount::state_dir::StateDir;
use crate::mount::{self, Contents, InitialFile, NewRepository, Repository, User};
use crate::report::Difference;
use crate::workspace::WorkspaceError;

/// How long a server may take to say what it is.
const LOOK_PATIENCE: Duration = Duration::from_secs(10);

/// A repository to be made, checked.
#[derive(Debug)]
pub struct NewRepo {
    /// Where, under which name.
    pub place: Place,
    /// What it is to be.
    pub about: CreateRepo,
    /// Files for its first commit, under the names that they get.
    pub files: Vec<(String, PathBuf)>,
    /// Name and address of who commits them; `None` without files.
    pub author: Option<(String, String)>,
}

/// Serves a mount until it is unmounted; tells `notifier` when it answers.
///
/// # Errors
/// Before that: why there is no mount. After it: why it ended, exit code 3 when changes are owed.
pub fn run(settings: &MountSettings, place: MountPlace, state: StateDir, notifier: &Notifier) -> Result<(), Failure> {
    let ended = mount::run(settings, place, state, notifier)?;
    if ended.owed == 0 {
        return Ok(());
    }
    Err(Failure::owed(format_args!(
        "{} not on the server yet, and safe on this disk",
        are(ended.owed as u64, "change")
    ))
    .doing("the mount has ended")
    .hint("mount it again to go on"))
}

/// Sends what a state directory owes, for so long at most; how it stands then.
///
/// # Errors
/// When its record or the server cannot be used.
pub fn send(settings: &MountSettings, state: StateDir, bound: Option<Duration>) -> Result<Status, Failure> {
    Ok(mount::send::run(settings, state, bound)?)
}

/// What a state directory owes the server while no daemon runs.
///
/// # Errors
/// When its journal cannot be read.
pub fn offline_status(dir: &Path) -> Result<Status, Failure> {
    Ok(mount::offline_status(dir)?)
}

/// What the next commit of a state directory would change, while no daemon runs.
///
/// # Errors
/// When its journal cannot be read.
pub fn offline_differences(dir: &Path) -> Result<Vec<Difference>, Failure> {
    Ok(mount::offline_differences(dir)?)
}

/// What can be salvaged of a state directory, and what is wrong with its `meta.json`; does it if told to `apply`.
///
/// # Errors
/// When a daemon has the directory, a newer oxenfs wrote it, or the disk does not let it.
pub fn repair(dir: &Path, apply: bool) -> Result<(Repair, Option<String>), Failure> {
    Ok(mount::repair(dir, apply)?)
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

/// Makes a repository; returns what the server did otherwise than asked.
///
/// # Errors
/// When the server cannot be reached or refuses.
pub fn create_repo(new: NewRepo) -> Result<Vec<String>, Failure> {
    let NewRepo { place, about, files, author } = new;
    let read = |(path, source): (String, PathBuf)| match std::fs::read(&source) {
        Ok(content) => {
            let contents = match String::from_utf8(content) {
                Ok(text) => Contents::Text(text),
                Err(other) => Contents::Binary(other.into_bytes().into()),
            };
            Ok(InitialFile { path, contents })
        }
        Err(error) => Err(Failure::new(format_args!("{}: {error}", source.display()))),
    };
    let files = files.into_iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let user = author.map(|(name, email)| User { name, email });
    let new = NewRepository { user, files, ..NewRepository::from(&about) };
    ask(&place, async |repository| mount::create_repository(repository, new).await)?;
    Ok(Vec::new())
}

/// A server's version, and what time it is there, if it says so.
///
/// # Errors
/// When it cannot be reached or is none.
pub fn look_at_server(place: &Place) -> Result<(String, Option<SystemTime>), Failure> {
    look_within(place, LOOK_PATIENCE).unwrap_or_else(|| {
        let cause = format!("{} did not answer within {} s", place.server, LOOK_PATIENCE.as_secs());
        Err(Failure::new(cause)
            .hint(format_args!("try it: curl -m 10 {}", quoted(format!("{}/api/health", place.server)))))
    })
}

/// Whether a server says anything at all in this time.
pub fn answers_within(place: &Place, patience: Duration) -> bool {
    look_within(place, patience).is_some()
}

type Look = Result<(String, Option<SystemTime>), Failure>;

/// `None` when it took too long.
fn look_within(place: &Place, patience: Duration) -> Option<Look> {
    let look =
        async |repository: &Repository| Ok((repository.server_version().await?, repository.server_time().await?));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::new);
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(failure) => return Some(Err(failure)),
    };
    let looked = runtime.block_on(async { tokio::time::timeout(patience, talk(place, look)).await });
    // A name that is being looked up is not waited for.
    runtime.shutdown_background();
    looked.ok()
}

/// How long a command waits for a server that is silent when it is asked for something, the first time.
const STALL: Duration = Duration::from_secs(15);

/// One conversation with a server, after its version was found to be one.
///
/// # Errors
/// When the server cannot be reached or refuses.
pub fn ask<T>(
    place: &Place,
    conversation: impl AsyncFnOnce(&Repository) -> Result<T, WorkspaceError>,
) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::new)?;
    runtime.block_on(talk(place, conversation))
}

async fn talk<T>(
    place: &Place,
    conversation: impl AsyncFnOnce(&Repository) -> Result<T, WorkspaceError>,
) -> Result<T, Failure> {
    let done = async {
        let repository =
            mount::repository(&place.server, &place.repo, place.credentials.clone(), Some(STALL), Arc::default())?;
        repository.server_version().await?;
        conversation(&repository).await
    };
    done.await.map_err(|error| match error {
        WorkspaceError::NotFound { .. } => Failure::new(format_args!("the repository {} does not exist", place.repo))
            .hint(format_args!("oxenfs repo create {}", place.url())),
        other => other.into(),
    })
}

/// Deletes a workspace with what is staged in it; one that is not there is no failure.
///
/// # Errors
/// The server's.
pub fn delete_workspace(place: Place, name: &str) -> Result<(), Failure> {
    ask(&place, async |repository| repository.delete_workspace(name).await.map(|_| ()))
}
