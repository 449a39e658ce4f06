//! From a mount's settings to its workspace.

use std::sync::Arc;
use std::time::Duration;

use super::{Claim, Endpoint, NewRepository, Repository, RepositoryInfo, S3Storage, Storage};
use crate::activity::Activity;
use crate::config::{self, CredentialSource, MountSettings, RepoId, ServerUrl};
use crate::workspace::which::KnownRepository;
use crate::workspace::{CommitId, Workspace, WorkspaceError};

/// The longest silence before another connection is tried, and the share of what programs wait in all.
const LONGEST_STALL: Duration = Duration::from_secs(30);
const STALLS: u32 = 4;

/// The way to a repository; `stall` and `activity` as [`Endpoint`] has them.
///
/// # Errors
/// When the client cannot be set up.
pub fn repository(
    server: &ServerUrl,
    repo: &RepoId,
    credentials: CredentialSource,
    stall: Option<Duration>,
    activity: Arc<Activity>,
) -> Result<Repository, WorkspaceError> {
    Repository::connect(&Endpoint { stall, activity, ..endpoint(server, repo, credentials) })
}

fn endpoint(server: &ServerUrl, repo: &RepoId, credentials: CredentialSource) -> Endpoint {
    Endpoint {
        credentials: Arc::new(move || credentials.read()),
        ..Endpoint::new(server.to_string(), &*repo.namespace, &*repo.name)
    }
}

/// What became of a mount's way to its server.
pub enum Opened {
    /// It is there.
    Connected(Connected),
    /// There is no such repository, and none was to be made.
    NoRepository,
    /// The repository has no such branch, but these.
    NoBranch(Vec<String>),
}

/// A mount's server.
pub struct Connected {
    /// The workspace, or the revision that is shown in place of one.
    pub workspace: Arc<dyn Workspace>,
    /// The repository was made.
    pub created: bool,
    /// What tells the repository from others.
    pub repository: KnownRepository,
}

/// A mount's way to its repository.
fn way(settings: &MountSettings, activity: Arc<Activity>) -> Result<Repository, WorkspaceError> {
    let stall = settings.read_timeout.map(|limit| (limit / STALLS).min(LONGEST_STALL));
    let endpoint = endpoint(&settings.server, &settings.repo, settings.credentials.clone());
    let read_only = settings.is_read_only();
    Repository::connect(&Endpoint { stall, read_only, activity, ..endpoint })
}

/// Connects a mount: the repository, made if `settings` say so and it is absent, and its workspace, or the revision that
/// is shown in place of one. Where a repository is `known`, nothing is asked of another, now or later.
///
/// # Errors
/// [`WorkspaceError::Another`]; the server's.
pub async fn connect(
    settings: &MountSettings,
    known: KnownRepository,
    activity: Arc<Activity>,
) -> Result<Opened, WorkspaceError> {
    let repository = way(settings, activity)?;
    repository.server_version().await?;
    if let Some(revision) = &settings.revision {
        return show(&repository, revision, known).await;
    }
    let rest = known.rest.clone();
    repository.expect(known.clone());
    let mut created = false;
    let found = match (repository.get().await?, &settings.create) {
        (Some(found), _) => found,
        (None, None) => return Ok(Opened::NoRepository),
        (None, Some(wanted)) => {
            if !known.is_nothing() {
                tracing::warn!(?known, "the repository is gone; it is made anew, as was asked for");
                repository.expect(KnownRepository::default());
            }
            match create(&repository, wanted.into()).await {
                Ok(made) => {
                    created = true;
                    made
                }
                // Somebody else made it in that moment.
                Err(error @ WorkspaceError::Conflict { .. }) => repository.get().await?.ok_or(error)?,
                Err(error) => return Err(error),
            }
        }
    };
    if !found.is_empty && !created && repository.branch(&settings.branch).await?.is_none() {
        let branches = repository.branches().await?;
        return Ok(Opened::NoBranch(branches.into_iter().map(|branch| branch.name).collect()));
    }
    let claim = if settings.own_workspace { Claim::Own } else { Claim::Shared };
    let workspace = repository.open_workspace(&settings.workspace, &settings.branch, claim).await?;
    let commit = workspace.base().await?;
    let known = KnownRepository { uuid: found.repo_uuid, rest, ..KnownRepository::with_commit(commit) };
    repository.know(known.clone());
    Ok(Opened::Connected(Connected { workspace: Arc::new(workspace), created, repository: known }))
}

async fn show(repository: &Repository, revision: &str, known: KnownRepository) -> Result<Opened, WorkspaceError> {
    if repository.get().await?.is_none() {
        return Ok(Opened::NoRepository);
    }
    let workspace = Arc::new(repository.open_revision(revision).await?);
    Ok(Opened::Connected(Connected { workspace, created: false, repository: known }))
}

/// Connects a mount that has begun without its server, and shows `base`. A repository is not made: one that is gone took
/// what it had along. What shows a revision goes on showing that commit, whatever the branch has become.
///
/// # Errors
/// [`WorkspaceError::Another`]; the server's.
pub async fn reconnect(
    settings: &MountSettings,
    known: KnownRepository,
    base: CommitId,
    activity: Arc<Activity>,
) -> Result<Opened, WorkspaceError> {
    if !settings.is_read_only() {
        let settings = MountSettings { create: None, ..settings.clone() };
        return connect(&settings, known, activity).await;
    }
    let repository = way(settings, activity)?;
    repository.server_version().await?;
    let meant = if known.is_nothing() { KnownRepository::with_commit(base.clone()) } else { known.clone() };
    repository.expect(meant);
    show(&repository, &base.0, known).await
}

/// Makes a repository, and sees that its content is kept where it should be.
///
/// # Errors
/// [`WorkspaceError::Conflict`] when it exists already; [`WorkspaceError::Refused`] for a bad name, or when the server
/// keeps its content elsewhere than asked: one without S3 answers with success and uses its own disk (0.65.2, tried).
pub async fn create(repository: &Repository, new: NewRepository) -> Result<RepositoryInfo, WorkspaceError> {
    let made = repository.create(&new).await?;
    let wanted = new.storage.as_ref().map(|storage| if matches!(storage, Storage::S3(_)) { "s3" } else { "local" });
    match (wanted, made.storage_kind.as_deref()) {
        (Some(wanted), Some(got)) if wanted != got => Err(WorkspaceError::Refused {
            status: 200,
            message: format!("{}/{} was made, but keeps its content in {got}, not {wanted}", made.namespace, made.name),
            request: None,
        }),
        _ => Ok(made),
    }
}

impl From<&config::CreateRepo> for NewRepository {
    fn from(wanted: &config::CreateRepo) -> Self {
        Self {
            description: wanted.description.clone(),
            is_public: Some(wanted.public),
            storage: wanted.storage.as_ref().map(|storage| match storage {
                config::Storage::Local => Storage::Local(None),
                config::Storage::S3 { bucket, prefix } => {
                    let prefix = (!prefix.is_empty()).then(|| prefix.clone());
                    Storage::S3(S3Storage { bucket: bucket.clone(), prefix })
                }
            }),
            ..Self::default()
        }
    }
}
