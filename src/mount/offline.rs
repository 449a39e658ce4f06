//! A mount that begins while its server is away, from the state of one before: it serves what is here, and looks for the
//! server until it finds it. Then it does what any mount does before it serves: is it the same repository, is the workspace
//! there, what has become of the base. Only after that anything is sent.

use std::sync::Arc;

use super::state_dir::{Identity, StateDir};
use super::{Daemon, MountError, Recovered, connected_to, end_commit, open};
use crate::activity::Activity;
use crate::config::MountSettings;
use crate::fs::FsError;
use crate::oxen;
use crate::stager::Delays;
use crate::workspace::deferred::Deferred;
use crate::workspace::which::KnownRepository;
use crate::workspace::{Workspace, WorkspaceError};

/// Whether an error says that the server is away, and not that it refuses.
pub(super) fn is_away(error: &WorkspaceError) -> bool {
    matches!(
        error,
        WorkspaceError::Unreachable { .. }
            | WorkspaceError::TimedOut { .. }
            | WorkspaceError::Busy { .. }
            | WorkspaceError::Server { .. }
    )
}

/// What it takes to find the server again.
pub(super) struct Absent {
    settings: MountSettings,
    identity: Identity,
    known: KnownRepository,
    workspace: Arc<Deferred>,
    /// Why the server was not found.
    why: WorkspaceError,
}

/// Replays the record of a mount before, for one that does not reach its server because of `why`. `None`: there was none
/// that met the server, or it is not known to be as the server has it.
///
/// # Errors
/// The record's.
pub(super) async fn recover(
    settings: &MountSettings,
    state: &mut StateDir,
    known: KnownRepository,
    why: &WorkspaceError,
) -> Result<Option<Recovered>, MountError> {
    let Some(info) = state.server_info().cloned() else { return Ok(None) };
    let workspace = Arc::new(Deferred::new(info.clone(), why.clone()));
    let fs = open(settings, state, workspace.clone())?;
    if fs.base().0.is_empty() || !fs.is_compared() {
        return Ok(None);
    }
    fs.begin_offline(state.is_empty_base(&fs.base())).await?;
    if fs.spool().limit().is_some() {
        fs.load().await;
    }
    tracing::warn!(error = %why, base = %fs.base(), "the server is away; going on with what is here");
    let identity = state.identity().clone();
    let absent = Absent { settings: settings.clone(), identity, known, workspace, why: why.clone() };
    Ok(Some(Recovered { fs, created: false, absent: Some(absent) }))
}

impl Absent {
    /// What the user is to know.
    pub fn warning(&self) -> String {
        format!(
            "{}; it is mounted offline: what was read here before can be read, what is written waits here and is sent when \
             the server is back",
            self.why.reason()
        )
    }

    /// Has the status say why nothing is sent.
    pub fn tell(&self, daemon: &Daemon) {
        daemon.meter.wait_for_server(&self.why, Delays::default().first);
    }

    /// Looks for the server until it is there and both agree. Not to be sent anything before.
    pub async fn find(self, daemon: &Daemon, state: &tokio::sync::Mutex<StateDir>) {
        let mut failures = 0;
        let mut asked = self.why.retry_after();
        loop {
            let delay = Delays::default().after(failures, asked);
            tokio::time::sleep(delay).await;
            failures += 1;
            let Err(error) = self.look(daemon, state).await else { break };
            let why = reason(error);
            asked = why.retry_after();
            daemon.meter.wait_for_server(&why, delay);
            self.workspace.take(shown(&self.settings, why));
        }
        tracing::info!(base = %daemon.fs.base(), owed = daemon.fs.owed(), "the server is back");
        daemon.meter.found_server();
    }

    async fn look(&self, daemon: &Daemon, state: &tokio::sync::Mutex<StateDir>) -> Result<(), MountError> {
        let fs = &daemon.fs;
        let activity: Arc<Activity> = daemon.activity.clone();
        let opened = oxen::reconnect(&self.settings, self.known.clone(), fs.base(), activity).await?;
        let oxen::Connected { workspace, repository, .. } = connected_to(&self.settings, &self.identity, opened)?;
        let info = workspace.info().clone();
        if info.hash_kind != self.workspace.info().hash_kind {
            let detail = "the server names content otherwise than before".to_owned();
            return Err(WorkspaceError::Protocol { detail, request: None }.into());
        }
        // Nothing is sent yet; a look that somebody asks for waits until this one is over.
        let _paused = fs.pause().await?;
        self.workspace.put(workspace);
        end_commit(fs).await?;
        fs.meet_server().await?;
        self.workspace.stays();
        let mut state = state.lock().await;
        let noted = state.note_repository(repository).and_then(|()| state.note_server(&info));
        if let Err(error) = noted {
            tracing::warn!(%error, "what the server is could not be written down");
        }
        Ok(())
    }
}

/// Why the server is not there, as a status tells it.
fn reason(error: MountError) -> WorkspaceError {
    match error {
        MountError::Server(error) | MountError::Fs(FsError::Remote(error)) => error,
        error @ (MountError::NoRepository { .. } | MountError::NoBranch { .. }) => {
            WorkspaceError::NotFound { what: error.to_string(), request: None }
        }
        error => WorkspaceError::Io(Arc::new(std::io::Error::other(error))),
    }
}

/// What programs meet meanwhile: that the server does not have something, or denies it, is not known of what they ask for.
fn shown(settings: &MountSettings, why: WorkspaceError) -> WorkspaceError {
    match is_away(&why) {
        true => why,
        false => {
            WorkspaceError::Unreachable { server: settings.server.to_string(), cause: why.reason(), request: None }
        }
    }
}
