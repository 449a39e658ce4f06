//! Sending what a state directory owes without a mount: for hosts and jobs that have ended, and machines without FUSE.
//!
//! It goes on where the last daemon stopped, as a mount would: the record is replayed and compared with the server, what is
//! owed is staged, and what went unanswered is looked at. Meanwhile it answers on the control socket as a daemon whose
//! mount was taken away: `status` shows it, and a mount of the same takes it over.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use tokio::sync::watch;

use super::state_dir::StateDir;
use super::{
    Daemon, Delays, Meter, MountError, Phase, Recovered, Signals, Stager, drained, look_out, phase_is,
    raise_open_files, recover, serve, tidy, tune_allocator,
};
use crate::activity::Activity;
use crate::config::MountSettings;
use crate::control::Status;
use crate::sync::Mutex;

/// Sends what is owed, for `bound` at most, and returns how it stands then. SIGTERM and SIGINT end it early, and so does a
/// mount that takes over; what was not sent stays on record.
///
/// # Errors
/// When the record or the server cannot be used; nothing is sent then.
pub fn run(settings: &MountSettings, mut state: StateDir, bound: Option<Duration>) -> Result<Status, MountError> {
    raise_open_files();
    tune_allocator();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("oxenfs")
        .enable_all()
        .build()
        .map_err(MountError::Setup)?;
    let sent = runtime.block_on(send(settings, &mut state, bound));
    // Whatever still runs is abandoned: all that matters is on record.
    runtime.shutdown_timeout(Duration::from_secs(1));
    sent
}

async fn send(settings: &MountSettings, state: &mut StateDir, bound: Option<Duration>) -> Result<Status, MountError> {
    let mut signals = Signals::new().map_err(MountError::Setup)?;
    let activity = Arc::<Activity>::default();
    let until = bound.and_then(|bound| tokio::time::Instant::now().checked_add(bound));
    let bounded = async || match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    };
    let recovered = tokio::select! {
        recovered = recover(settings, state, activity.clone()) => Some(recovered?),
        () = signals.terminate() => None,
        () = bounded() => None,
    };
    let Some(Recovered { fs, .. }) = recovered else {
        return super::offline_status(state.path());
    };
    // What the mount was told to ignore is not known here: of what it kept, nothing is sent.
    fs.free_nothing();
    fs.judge().await?;
    tracing::info!(owed = fs.owed(), state = %state.path().display(), "sending what an earlier mount left");
    let meter = Arc::new(Meter::new(activity.clone()));
    let (phase, mut phases) = watch::channel(Phase::Draining);
    let daemon = Arc::new(Daemon {
        fs: fs.clone(),
        meter: meter.clone(),
        activity,
        server: settings.server.to_string(),
        repo: settings.repo.to_string(),
        branch: settings.branch.clone(),
        workspace: settings.workspace.clone(),
        revision: None,
        mountpoint: settings.mountpoint.clone(),
        drain_timeout: settings.drain_timeout,
        phase,
        imports: AtomicUsize::new(0),
        outlook: Mutex::default(),
    });
    let control = serve::listen(state.bind_control()?, daemon.clone()).map_err(MountError::Setup)?;
    let stager = tokio::spawn(Stager::new(fs.clone(), meter, Delays::default()).run());
    let lookout = tokio::spawn(look_out(fs.clone()));
    tokio::select! {
        () = drained(&fs) => {}
        () = phase_is(&mut phases, Phase::Ending) => {}
        () = signals.terminate() => {}
        () = bounded() => {}
    }
    stager.abort();
    lookout.abort();
    // They hold files of the spool.
    let _ = (stager.await, lookout.await);
    let tidied = fs.clone();
    let _ = tokio::task::spawn_blocking(move || tidy(&tidied)).await;
    let status = daemon.status();
    control.abort();
    tracing::info!(owed = fs.owed(), "sent");
    Ok(status)
}
