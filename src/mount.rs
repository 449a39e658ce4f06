//! A mount's life: connect, recover, serve, drain, unmount. The one place that wires concrete types together.
//!
//! The order makes every exit safe. Nothing is mounted before the server, the workspace and the record have been
//! found good; a drain comes before the unmount, while reads are still served; whatever is not staged when the daemon
//! ends stays on the journal, and the next mount goes on with it.

pub mod daemon;
pub mod mountinfo;
pub mod preflight;
pub mod state_dir;

mod branch;
pub mod commit;
mod follow;
pub mod gather;
mod import;
mod notify;
mod offline;
mod resolve;
mod restore;
pub mod send;
mod serve;
mod warm;

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::activity::{self, Activity};
use crate::config::{Address, FsyncPolicy, MountSettings};
use crate::control::{Measures, Status};
use crate::fs::{
    BaseAccess, Fs, FsError, KEPT_NODES, Limits, Neighbour, Of, Options, Outlook, Repair, Stale, Survey, Where,
};
use crate::fuse;
use crate::fuse::device::{MountOptions, attach, widen_read_ahead};
use crate::log::{Said, Trouble};
use crate::metrics;
use crate::oxen;
/// The server's side, for commands that need no mount.
pub use crate::oxen::{
    Commit, Contents, History, InitialFile, NewRepository, Repository, StagedCounts, User, WorkspaceInfo,
    create as create_repository, repository,
};
use crate::report::Difference;
use crate::stager::{Delays, Meter, Stager};
use crate::store::journal::JournalError;
use crate::sync::Mutex;
use crate::workspace::which::KnownRepository;
use crate::workspace::{CommitId, Workspace, WorkspaceError};
use commit::finish::Finished;
use daemon::{Notifier, Ready};
use notify::Manager;
use preflight::{How, Place, PreflightError, unmount};
use state_dir::{Identity, Known, StateDir, StateError};

/// How long a daemon that is told to end (SIGTERM) waits for a server that does not answer.
const TERM_STALL: Duration = Duration::from_secs(5);
/// How long a mount that is in use is tried to be unmounted, and how often.
const IN_USE_PATIENCE: Duration = Duration::from_secs(2);
const IN_USE_PAUSE: Duration = Duration::from_millis(20);
/// How often spool files that are done with are removed or moved to the cache: a flush of the record each time.
const TIDY_EVERY: Duration = Duration::from_secs(1);
/// How often it looks whether the server answers.
const STALL_CHECK: Duration = Duration::from_millis(200);
/// How soon it is looked whether a request came late, and how often in the end.
const FIRST_LOOK: Duration = Duration::from_secs(5);
const LAST_LOOK: Duration = Duration::from_secs(60);
/// How often it is looked whether others committed a workspace that is shared.
const OTHERS_LOOK: Duration = Duration::from_secs(5);
/// Conflicts that a status shows.
const SHOWN_CONFLICTS: usize = 100;
/// How long a mount that ends goes on listing what it committed.
const KEEP_PATIENCE: Duration = Duration::from_secs(1);
/// How often the journal's length is looked at.
const COMPACTION_CHECK: Duration = Duration::from_secs(60);

/// Why there is no mount, or why it ended.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The server or the way to it said no.
    #[error(transparent)]
    Server(#[from] WorkspaceError),
    /// The repository does not exist, and was not to be made.
    #[error("the repository {repo} does not exist on {server}")]
    NoRepository {
        /// `NAMESPACE/NAME`.
        repo: String,
        /// Scheme, host and port.
        server: String,
    },
    /// The repository has no such branch: it was deleted, say.
    #[error("{repo} has no branch {}", .identity.branch)]
    NoBranch {
        /// `NAMESPACE/NAME`.
        repo: String,
        /// What was to be mounted.
        identity: Box<Identity>,
        /// A branch that it has; `None`: it has none.
        other: Option<String>,
    },
    /// The record cannot be read or written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// Agreeing with the server on what is staged failed.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// The mount point will not do any more.
    #[error(transparent)]
    Place(#[from] PreflightError),
    /// What is measured cannot be served where it is to be.
    #[error("cannot serve what is measured at {address}: {source}")]
    Metrics {
        /// Where.
        address: Address,
        /// Why not.
        source: std::io::Error,
    },
    /// The kernel or the helper refused the mount.
    #[error("the mount was refused: {0}")]
    Attach(std::io::Error),
    /// Threads, signals or pipes could not be set up.
    #[error("{0}")]
    Setup(std::io::Error),
}

/// How a mount ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Paths that the server does not have yet; they are safe on this disk.
    pub owed: usize,
}

/// What a daemon is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Serving the mount.
    Mounted,
    /// A command is taking the mount away, and ends the daemon when it has told how that went.
    Unmounting,
    /// The mount is gone; what is left is being staged.
    Draining,
    /// To end now.
    Ending,
}

/// What the parts of a daemon share.
struct Daemon {
    fs: Arc<Fs>,
    meter: Arc<Meter>,
    activity: Arc<Activity>,
    server: String,
    repo: String,
    branch: String,
    workspace: String,
    /// What is shown in place of a workspace.
    revision: Option<String>,
    mountpoint: PathBuf,
    drain_timeout: Duration,
    phase: watch::Sender<Phase>,
    /// Imports under way.
    imports: AtomicUsize,
    /// Where the branch was when it was last looked at.
    outlook: Mutex<Outlook>,
}

impl Daemon {
    fn status(&self) -> Status {
        let (counts, oldest_unstaged_secs, errors, local) = self.fs.report();
        // What is open or just written is not sent yet, and may change.
        let tallies = [counts.hashing, counts.queued, counts.uploading];
        let waiting = tallies.iter().fold(0u64, |sum, tally| sum.saturating_add(tally.bytes));
        let waiting = waiting.saturating_sub(self.fs.uploaded_bytes());
        let phase = *self.phase.borrow();
        let stalled = self.meter.stalled();
        let info = self.fs.workspace().info();
        Status {
            mountpoint: matches!(phase, Phase::Mounted | Phase::Unmounting)
                .then(|| self.mountpoint.display().to_string()),
            server: self.server.clone(),
            repo: self.repo.clone(),
            branch: self.branch.clone(),
            workspace: self.workspace.clone(),
            revision: self.revision.clone(),
            phase: if phase == Phase::Mounted { "mounted" } else { "draining" }.to_owned(),
            pid: std::process::id(),
            server_version: info.version.clone(),
            dialect: info.dialect.to_string(),
            offline: self.fs.is_offline(),
            base: self.fs.base().to_string(),
            shared: self.fs.is_shared(),
            ahead: self.ahead(),
            counts,
            drain_timeout_secs: Some(self.drain_timeout.as_secs()),
            oldest_unstaged_secs,
            eta_secs: stalled.is_none().then(|| self.meter.eta_secs(waiting)).flatten(),
            sent_bytes: self.meter.sent_bytes(),
            deduplicated_bytes: self.meter.deduplicated_bytes(),
            disk: self.fs.trouble(),
            spool_bytes: self.fs.spool().used(),
            spool_limit_bytes: self.fs.spool().limit().unwrap_or(0),
            cache: self.fs.cached(),
            passthrough: self.fs.passthrough().to_string(),
            stalled,
            stalled_reason: self.meter.stalled_reason().map(str::to_owned),
            conflicts: self.fs.told_conflicts(SHOWN_CONFLICTS),
            errors,
            local,
            sparse: self.fs.sparse_files(),
            unreadable: self.fs.unreadable(),
            bad_patterns: self.fs.bad_patterns(),
        }
    }
}

impl Daemon {
    /// What is measured.
    fn measures(&self) -> Measures {
        let status = self.status();
        let counts = activity::Counts {
            cache_hits: status.cache.hits,
            cache_misses: status.cache.misses,
            cache_bytes: status.cache.bytes,
            cache_limit_bytes: status.cache.limit_bytes,
            ..self.activity.counts()
        };
        Measures { mountpoint: self.mountpoint.display().to_string(), answers: true, status, counts: Some(counts) }
    }
}

/// Serves a mount until it is unmounted or told to end; tells `notifier` when it answers.
///
/// # Errors
/// Why there is no mount; nothing is mounted then.
pub fn run(settings: &MountSettings, place: Place, state: StateDir, notifier: &Notifier) -> Result<Ended, MountError> {
    raise_open_files();
    tune_allocator();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("oxenfs")
        .enable_all()
        .build()
        .map_err(MountError::Setup)?;
    let state = Arc::new(tokio::sync::Mutex::new(state));
    let ended = runtime.block_on(serve_mount(settings, place, &state, notifier));
    // Whatever still runs is abandoned: all that matters is on record.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

/// Large tables are mapped and unmapped as they grow and go; and what is free at a heap's end goes back.
#[cfg(target_env = "gnu")]
const MAPPED_BYTES: libc::c_int = 4 << 20;

/// Keeps what is not needed any more from staying in memory.
///
/// All threads share two heaps of the C library's. By itself it makes up to eight for each core, and what threads that
/// hash and send free in theirs no other uses: after 50,000 files were staged, the daemon had 82 MB with heaps of their
/// own and 53 MB so, at the same speed. And by itself it raises what is mapped, and what stays free at a heap's end, to
/// the largest that was ever freed, up to 32 and 64 MiB: with limits of 4 MiB the daemon had 152 MB after 300,000 files,
/// and 175 MB without.
#[cfg(target_env = "gnu")]
fn tune_allocator() {
    // SAFETY: sets numbers that the allocator reads when a thread first allocates, or frees.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, MAPPED_BYTES);
    }
}

#[cfg(not(target_env = "gnu"))]
fn tune_allocator() {}

/// Every file that is open on the mount is open here too, so as many as may be.
fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays");
    }
}

async fn serve_mount(
    settings: &MountSettings,
    place: Place,
    held: &Arc<tokio::sync::Mutex<StateDir>>,
    notifier: &Notifier,
) -> Result<Ended, MountError> {
    let mut state = held.lock().await;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        process = std::process::id(),
        server = %settings.server,
        repo = %settings.repo,
        branch = settings.branch,
        workspace = settings.workspace,
        revision = settings.revision,
        state = %state.path().display(),
        "starting"
    );
    // Before anything is mounted: who watches it from outside is to find it there, or the command says why not.
    let metrics = match &settings.metrics {
        Some(address) => Some(listen_for_watchers(address)?),
        None => None,
    };
    let activity = Arc::<Activity>::default();
    let Recovered { fs, created, absent } = recover_as_it_is(settings, &mut state, activity.clone()).await?;
    if !settings.is_read_only() {
        // Before anything is staged.
        fs.ignore_also(&settings.ignore);
        match fs.judge().await {
            Err(FsError::Remote(error)) if absent.is_some() && offline::is_away(&error) => {
                tracing::warn!(%error, "what is ignored is not known before the server is back");
            }
            judged => judged?,
        }
    }
    let meter = Arc::new(Meter::new(activity.clone()));
    let (phase, mut phases) = watch::channel(Phase::Mounted);
    let mut draining = phases.clone();
    let daemon = Arc::new(Daemon {
        fs: fs.clone(),
        meter: meter.clone(),
        activity,
        server: settings.server.to_string(),
        repo: settings.repo.to_string(),
        branch: settings.branch.clone(),
        workspace: settings.workspace.clone(),
        revision: settings.revision.clone(),
        mountpoint: settings.mountpoint.clone(),
        drain_timeout: settings.drain_timeout,
        phase,
        imports: AtomicUsize::new(0),
        outlook: Mutex::default(),
    });
    let (resumed, began_on) = (fs.owed() as u64, fs.base());
    let mut signals = Signals::new().map_err(MountError::Setup)?;
    let listener = state.bind_control()?;
    drop(state);
    if let Some(absent) = &absent {
        absent.tell(&daemon);
    }
    let control = serve::listen(listener, daemon.clone()).map_err(MountError::Setup)?;
    let watched = metrics.map(|listener| tokio::spawn(let_watch(listener, daemon.clone())));
    let served = start_serving(settings, &place, &fs, daemon.clone())?;
    drop(place);
    let info = fs.workspace().info().clone();
    let warnings: Vec<String> = absent.iter().map(offline::Absent::warning).collect();
    let offline = absent.is_some();
    let work = tokio::spawn(work_with_server(settings.clone(), daemon.clone(), absent, held.clone()));
    let housekeeping = tokio::spawn(keep_house(fs.clone()));
    let left = fs.clone();
    let loading = tokio::spawn(async move { left.load().await });
    let ready =
        Ready { server_version: info.version, dialect: info.dialect.into_owned(), created, offline, resumed, warnings };
    if let Err(error) = notifier.ready(ready) {
        tracing::warn!(%error, "nobody waits for the mount any more");
    }
    tracing::info!(mountpoint = %settings.mountpoint.display(), base = %fs.base(), resumed, "mounted");
    let manager = Manager::of_process(settings.foreground);
    manager.ready(&daemon);
    let told = daemon.clone();
    let telling = tokio::spawn(async move { manager.follow(&told).await });

    tokio::select! {
        () = phase_is(&mut phases, Phase::Ending) => {}
        () = served.ended() => {
            // Unmounted from outside: go on staging; `status`, `unmount` and the next mount find this daemon.
            if *daemon.phase.borrow() == Phase::Mounted {
                tracing::info!("unmounted; staging what is left");
                daemon.phase.send_replace(Phase::Draining);
            }
            let left = async {
                loop {
                    phase_is(&mut draining, Phase::Draining).await;
                    drained(&fs).await;
                    // A command that follows the drain ends the daemon itself.
                    if *draining.borrow() == Phase::Draining {
                        break;
                    }
                }
            };
            tokio::select! {
                () = left => {}
                () = phase_is(&mut phases, Phase::Ending) => {}
                () = signals.terminate() => {}
            }
        }
        () = signals.terminate() => {
            tracing::info!(bound = ?settings.drain_timeout, "told to end: staging what is left, then unmounting");
            tokio::select! {
                () = drained(&fs) => {}
                () = stalled_for(&daemon.meter, TERM_STALL) => {}
                () = tokio::time::sleep(settings.drain_timeout) => {}
                () = manager.drain(&daemon) => {}
            }
        }
    }
    if *daemon.phase.borrow() != Phase::Draining && !served.is_over() {
        detach(&settings.mountpoint, How::Lazily).await;
        let _ = tokio::time::timeout(Duration::from_secs(2), served.ended()).await;
        tracing::info!("unmounted");
    }
    telling.abort();
    if fs.base() != began_on && !fs.is_offline() && daemon.meter.stalled().is_none() {
        // For a mount that does not reach the server. What took longer is listed when that is there.
        let _ = tokio::time::timeout(KEEP_PATIENCE, fs.keep_listings()).await;
    }
    work.abort();
    housekeeping.abort();
    loading.abort();
    let tidied = fs.clone();
    let _ = tokio::task::spawn_blocking(move || tidy(&tidied)).await;
    control.abort();
    if let Some(watched) = watched {
        watched.abort();
        let _ = watched.await;
    }
    let owed = fs.owed();
    tracing::info!(owed, "ended");
    Ok(Ended { owed })
}

/// All that a mount asks the server for by itself, until aborted: once the server was found, where it is `absent`.
async fn work_with_server(
    settings: MountSettings,
    daemon: Arc<Daemon>,
    absent: Option<offline::Absent>,
    state: Arc<tokio::sync::Mutex<StateDir>>,
) {
    if let Some(absent) = absent {
        absent.find(&daemon, &state).await;
    }
    let fs = &daemon.fs;
    // Those that are left end with it.
    let mut work = JoinSet::new();
    work.spawn(list_ahead(fs.clone()));
    if !settings.is_read_only() {
        work.spawn(Stager::new(fs.clone(), daemon.meter.clone(), Delays::default()).run());
        work.spawn(branch::watch(daemon.clone(), settings.refresh));
        work.spawn(look_out(fs.clone()));
        work.spawn(look_at_others(fs.clone()));
    }
    while let Some(ended) = work.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a part of the daemon broke");
        }
    }
}

/// What a state directory holds, compared with the server.
struct Recovered {
    fs: Arc<Fs>,
    /// The repository was made.
    created: bool,
    /// The server is away, and nothing was compared yet.
    absent: Option<offline::Absent>,
}

/// Connects, replays the record and compares it with the server: before anything is served or staged. Where the server is
/// away and a mount before met it, this is left for later.
async fn recover_as_it_is(
    settings: &MountSettings,
    state: &mut StateDir,
    activity: Arc<Activity>,
) -> Result<Recovered, MountError> {
    let known = known_repository(state);
    match connect(settings, state.identity(), known.clone(), activity).await {
        Ok(connected) => compare(settings, state, connected).await,
        Err(MountError::Server(why)) if offline::is_away(&why) => {
            let recovered = offline::recover(settings, state, known, &why).await?;
            recovered.ok_or(MountError::Server(why))
        }
        Err(error) => Err(error),
    }
}

/// Connects, replays the record and compares it with the server: before anything is served or staged.
async fn recover(
    settings: &MountSettings,
    state: &mut StateDir,
    activity: Arc<Activity>,
) -> Result<Recovered, MountError> {
    let connected = connect(settings, state.identity(), known_repository(state), activity).await?;
    compare(settings, state, connected).await
}

/// Replays the record.
fn open(settings: &MountSettings, state: &mut StateDir, workspace: Arc<dyn Workspace>) -> Result<Arc<Fs>, MountError> {
    let options = Options {
        read_only: settings.is_read_only(),
        settle: settings.settle,
        uid: settings.access.uid,
        gid: settings.access.gid,
        umask: (settings.access.umask & 0o777) as u16,
    };
    let limits = Limits {
        spool: (settings.spool_limit_bytes > 0).then_some(settings.spool_limit_bytes),
        cache: settings.cache_limit_bytes,
    };
    state.note_access(BaseAccess { uid: options.uid, gid: options.gid, umask: options.umask })?;
    let fs = Fs::recover(state.path(), settings.subdir.clone(), options, limits, workspace)?;
    fs.set_branch(&settings.branch);
    if !settings.own_workspace && !settings.is_read_only() {
        fs.share();
    }
    fs.set_neighbours(neighbours(settings, state.path().to_owned()));
    fs.wait_for_server(settings.read_timeout);
    Ok(fs)
}

async fn compare(
    settings: &MountSettings,
    state: &mut StateDir,
    connected: oxen::Connected,
) -> Result<Recovered, MountError> {
    let oxen::Connected { workspace, created, repository } = connected;
    state.note_repository(repository)?;
    state.note_server(workspace.info())?;
    let fs = open(settings, state, workspace)?;
    end_commit(&fs).await?;
    // What a commit moved without this record's knowing, the comparison finds out path by path.
    fs.reconcile().await?;
    fs.drop_intent()?;
    // So that new files can be made at the root even if the server goes away at once.
    fs.list_root().await?;
    state.note_empty_base(fs.is_base_empty().then(|| fs.base()))?;
    if fs.spool().limit().is_some() {
        // One that does not count what is there already is none.
        fs.load().await;
    }
    Ok(Recovered { fs, created, absent: None })
}

/// Ends what a daemon of before asked for and did not see the end of.
async fn end_commit(fs: &Fs) -> Result<(), MountError> {
    match commit::finish::resume(fs).await {
        Ok(Some((_, Finished::Broken { what, .. }))) => tracing::error!(what, "a commit of before is not whole"),
        Ok(Some((_, Finished::Whole(id)))) => tracing::info!(%id, "a commit of before was made, and is whole"),
        Ok(None) => {}
        // Once the record is compared with the base, nobody can tell any more.
        Err(FsError::Remote(error)) if error.is_transient() => return Err(MountError::Server(error)),
        Err(error) => tracing::warn!(%error, "it could not be looked at what became of a commit of before"),
    }
    Ok(())
}

fn listen_for_watchers(address: &Address) -> Result<metrics::serve::Listener, MountError> {
    let refused = |source| MountError::Metrics { address: address.clone(), source };
    let listener = metrics::serve::Listener::bind(address).map_err(refused)?;
    tracing::info!(address = %listener.address().map_err(refused)?, "serving what is measured");
    Ok(listener)
}

/// Serves what is measured until aborted.
async fn let_watch(listener: metrics::serve::Listener, daemon: Arc<Daemon>) {
    if let Err(error) = listener.serve(Arc::new(move || vec![daemon.measures()])).await {
        tracing::error!(%error, "what is measured cannot be served any more");
    }
}

/// Where caches of other mounts are, whose state directories lie beside `own`.
fn neighbours(settings: &MountSettings, own: PathBuf) -> Where {
    let (server, repo) = (settings.server.to_string(), settings.repo.to_string());
    let root = settings.state_root.clone();
    let owner = |repo: &str| repo.split_once('/').map(|(owner, _)| owner.to_owned());
    let ours = owner(&repo);
    Box::new(move || {
        let listing = StateDir::list(&root).unwrap_or_default();
        let others = listing.known.into_iter().filter(|known| known.path != own);
        let neighbour = |known: Known| {
            let identity = &known.meta.identity;
            let of = match identity.server == server {
                true if identity.repo == repo => Of::Repository,
                true if ours.is_some() && owner(&identity.repo) == ours => Of::Owner,
                _ => Of::Others,
            };
            Neighbour { cache: known.path.join("cache"), of, only_reads: identity.revision.is_some() }
        };
        others.map(neighbour).collect()
    })
}

/// What is known of the repository that a state directory is for. One of before has the commit that its record stands on;
/// what cannot be read is refused later, and tells nothing.
fn known_repository(state: &StateDir) -> KnownRepository {
    match state.repository() {
        Some(known) => known.clone(),
        None => match offline_status(state.path()) {
            Ok(status) => KnownRepository::with_commit(CommitId(status.base.into())),
            Err(_) => KnownRepository::default(),
        },
    }
}

/// Connects, and makes repository and workspace where they are wanted and absent. Says whether the repository was
/// made.
async fn connect(
    settings: &MountSettings,
    identity: &Identity,
    known: KnownRepository,
    activity: Arc<Activity>,
) -> Result<oxen::Connected, MountError> {
    connected_to(settings, identity, oxen::connect(settings, known, activity).await?)
}

/// The workspace that was opened, or why there is none.
fn connected_to(
    settings: &MountSettings,
    identity: &Identity,
    opened: oxen::Opened,
) -> Result<oxen::Connected, MountError> {
    match opened {
        oxen::Opened::Connected(connected) => Ok(connected),
        oxen::Opened::NoBranch(branches) => {
            let main = branches.iter().find(|branch| *branch == "main").or(branches.first());
            let (repo, other) = (settings.repo.to_string(), main.cloned());
            Err(MountError::NoBranch { repo, identity: Box::new(identity.clone()), other })
        }
        oxen::Opened::NoRepository => {
            Err(MountError::NoRepository { repo: settings.repo.to_string(), server: settings.server.to_string() })
        }
    }
}

/// The FUSE side of a mount.
struct Served {
    over: watch::Receiver<bool>,
}

impl Served {
    /// Whether the kernel has ended the connection.
    fn is_over(&self) -> bool {
        *self.over.borrow()
    }

    /// Completes when the kernel has ended the connection.
    async fn ended(&self) {
        let mut over = self.over.clone();
        let _ = over.wait_for(|over| *over).await;
    }
}

fn start_serving(
    settings: &MountSettings,
    place: &Place,
    fs: &Arc<Fs>,
    daemon: Arc<Daemon>,
) -> Result<Served, MountError> {
    let source = preflight::fs_source(settings);
    let (read_only, allow_other) = (settings.is_read_only(), settings.access.allow_other);
    let no_exec = settings.access.noexec;
    let device = mount_on(place, &MountOptions { source, read_only, allow_other, no_exec })?;
    let waits = fuse::Waits { close: settings.write_through, fsync: settings.fsync == FsyncPolicy::Staged };
    let no_passthrough = match (settings.passthrough, settings.write_through) {
        (false, _) => Some("--passthrough never"),
        (true, true) => Some("--write-through stages what was written at every close"),
        (true, false) => None,
    };
    let keep_awake = settings.keep_awake;
    let manner = fuse::Manner { waits, allow_other, no_passthrough, keep_awake };
    let (fs, runtime) = (fs.clone(), tokio::runtime::Handle::current());
    let (over, receiver) = watch::channel(false);
    let (started, start) = std::sync::mpsc::channel();
    std::thread::Builder::new()
        .name("fuse".into())
        .spawn(move || {
            let ready = |notifier: fuse::Notifier| {
                let notifier = Arc::new(notifier);
                let to_write_back = notifier.clone();
                daemon.fs.write_back_by(move |ino| to_write_back.tell(&Stale::Content(ino)));
                daemon.fs.watch_staleness(move |stale| notifier.tell(&stale));
                let _ = started.send(());
            };
            if let Err(error) = fuse::serve(device, fs, runtime, manner, ready) {
                tracing::error!(%error, "the connection to the kernel broke");
            }
            over.send_replace(true);
        })
        .map_err(MountError::Setup)?;
    // The handshake with the kernel; when it fails the sender is gone.
    if start.recv_timeout(Duration::from_secs(10)).is_err() {
        let _ = unmount(&settings.mountpoint, How::Lazily);
        return Err(MountError::Attach(std::io::Error::other("the kernel did not answer")));
    }
    widen_read_ahead(&settings.mountpoint);
    Ok(Served { over: receiver })
}

/// Mounts on the directory that was looked at, if it is still where it was; of several at once, one does.
fn mount_on(place: &Place, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let claim = place.claim()?;
    let device = attach(place.as_fd(), options).map_err(MountError::Attach)?;
    drop(claim);
    match place.now_at() {
        Ok(there) if there == place.path() => Ok(device),
        // Somebody moved it in that moment. It is the directory that was meant, but nobody would find the mount.
        moved => {
            if let Ok(there) = moved {
                let _ = unmount(&there, How::Lazily);
            }
            Err(PreflightError::Moved(place.path().to_owned()).into())
        }
    }
}

/// Unmounts, off the threads that serve it. What is in use is tried for a while: a process that is just being started has
/// the files of the one that starts it until it runs its own program.
async fn detach(mountpoint: &Path, how: How) -> Option<preflight::UnmountError> {
    let mountpoint = mountpoint.to_owned();
    let patient = move || {
        let began = Instant::now();
        loop {
            match unmount(&mountpoint, how) {
                Err(preflight::UnmountError::Busy { .. }) if began.elapsed() < IN_USE_PATIENCE => {
                    std::thread::sleep(IN_USE_PAUSE);
                }
                done => return done,
            }
        }
    };
    match tokio::task::spawn_blocking(patient).await {
        Ok(Ok(()) | Err(preflight::UnmountError::NotMounted)) => None,
        Ok(Err(error)) => Some(error),
        Err(error) => Some(preflight::UnmountError::Failed(std::io::Error::other(error))),
    }
}

async fn phase_is(phases: &mut watch::Receiver<Phase>, wanted: Phase) {
    // The sender lives as long as the daemon.
    if phases.wait_for(|phase| *phase == wanted).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Completes when nothing has gone on for `patience`.
async fn stalled_for(meter: &Meter, patience: Duration) {
    let mut moving = Instant::now();
    while moving.elapsed() < patience {
        tokio::time::sleep(STALL_CHECK).await;
        if meter.stalled().is_none() {
            moving = Instant::now();
        }
    }
}

/// Completes when nothing is owed.
async fn drained(fs: &Arc<Fs>) {
    for pause in std::iter::once(Duration::ZERO).chain(std::iter::repeat(STALL_CHECK)) {
        // Only where what was staged is gone again.
        tokio::time::sleep(pause).await;
        if let Err(error) = fs.flush_mapped(|_| true, follow::WRITE_BACK_PATIENCE).await {
            tracing::error!(%error, "staging what is left without it");
        }
        if let Err(error) = fs.heed_patterns(|_| true).await {
            tracing::error!(%error, "what is ignored cannot be flushed");
        }
        let Some(waiting) = fs.barrier() else { return };
        let failed = waiting.reached().await.files_failed;
        match fs.audit().await {
            Ok(true) => continue,
            Ok(false) => {}
            // The next mount looks.
            Err(error) => tracing::warn!(%error, "cannot look whether a request came late"),
        }
        if fs.is_drained() || failed > 0 && fs.all_parked() {
            return;
        }
    }
}

/// Looks, less often with time, whether a request that went unanswered was carried out after others.
async fn look_out(fs: Arc<Fs>) {
    let mut pause = FIRST_LOOK;
    loop {
        tokio::time::sleep(pause).await;
        if !fs.expects_latecomers() {
            pause = FIRST_LOOK;
            continue;
        }
        if let Err(error) = fs.audit_between_commits().await {
            tracing::debug!(%error, "cannot look whether a request came late");
        }
        pause = (pause * 2).min(LAST_LOOK);
    }
}

/// Looks now and then whether others have committed what this mount staged in a workspace that it shares.
async fn look_at_others(fs: Arc<Fs>) {
    while fs.is_shared() {
        tokio::time::sleep(OTHERS_LOOK).await;
        if fs.staged_paths().is_empty() {
            continue;
        }
        if let Err(error) = fs.look_at_workspace().await {
            tracing::debug!(%error, "cannot look whether others committed");
        }
    }
}

/// Lists the base ahead, so that writing goes on everywhere if the server goes away.
async fn list_ahead(fs: Arc<Fs>) {
    while let Err(error) = fs.list_ahead(KEPT_NODES).await {
        tracing::debug!(%error, "listing ahead pauses");
        tokio::time::sleep(LAST_LOOK).await;
    }
}

/// Learns what the cache holds, and keeps the journal short.
async fn keep_house(fs: Arc<Fs>) {
    let work = |fs: &Arc<Fs>, work: fn(&Fs)| {
        let fs = fs.clone();
        tokio::task::spawn_blocking(move || work(&fs))
    };
    let _ = work(&fs, |fs| {
        if let Err(error) = fs.cache().learn() {
            tracing::warn!(%error, "the cache of earlier mounts cannot be listed");
        }
    })
    .await;
    let mut compaction = Instant::now() + COMPACTION_CHECK;
    let (disk, compacting) = (Trouble::default(), Arc::new(Trouble::default()));
    loop {
        tokio::time::sleep(TIDY_EVERY).await;
        let done = fs.clone();
        let done = tokio::task::spawn_blocking(move || done.heal().and_then(|()| done.tidy())).await;
        match done {
            // Not told every second: the log may be on the disk that is full.
            Ok(Err(error)) => match disk.met(&error.reason()) {
                Some(Said::GoesOn(so_long)) => tracing::warn!(%error, ?so_long, "the local disk still fails"),
                Some(_) => tracing::warn!(%error, "the local disk fails; it is tried again and again"),
                None => {}
            },
            Ok(Ok(())) => {
                if let Some(Said::Ends(after)) = disk.over() {
                    tracing::info!(?after, "the local disk works again");
                }
            }
            Err(error) => tracing::error!(%error, "housekeeping was cut short"),
        }
        if Instant::now() < compaction {
            continue;
        }
        compaction = Instant::now() + COMPACTION_CHECK;
        let (done, compacting) = (fs.clone(), compacting.clone());
        let _ = tokio::task::spawn_blocking(move || match done.compact(false) {
            Ok(_) => {
                if let Some(Said::Ends(after)) = compacting.over() {
                    tracing::info!(?after, "the journal can be compacted again");
                }
            }
            Err(error) => {
                if compacting.met(&error.to_string()).is_some() {
                    tracing::warn!(%error, "the journal could not be compacted");
                }
            }
        })
        .await;
    }
}

fn tidy(fs: &Fs) {
    if let Err(error) = fs.tidy_all() {
        tracing::warn!(%error, "spool files that are done with stay for now");
    }
}

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn terminate(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// What the next commit of a state directory without a daemon would change. Changes nothing.
///
/// # Errors
/// When its journal cannot be read.
pub fn offline_differences(dir: &Path) -> Result<Vec<Difference>, MountError> {
    Ok(crate::fs::recorded_differences(dir, &state_dir::shown(dir)?)?)
}

/// What a state directory without a daemon owes the server. Changes nothing.
///
/// # Errors
/// When its journal cannot be read.
pub fn offline_status(dir: &Path) -> Result<Status, MountError> {
    let Survey { counts, local, base, conflicts } = crate::fs::survey(dir, &state_dir::shown(dir)?, SHOWN_CONFLICTS)?;
    Ok(Status { phase: "stopped".to_owned(), base: base.to_string(), counts, conflicts, local, ..Status::default() })
}

/// What can be salvaged of a state directory without a daemon, and what is wrong with its `meta.json`; does it if told to
/// `apply`.
///
/// # Errors
/// When a daemon has it, a newer oxenfs wrote it, or the disk does not let it.
pub fn repair(dir: &Path, apply: bool) -> Result<(Repair, Option<String>), MountError> {
    let _held = state_dir::hold(dir)?;
    let (shown, wrong) = state_dir::shown_as_far_as_known(dir);
    if let Some(newer @ StateError::Newer { .. }) = wrong {
        return Err(newer.into());
    }
    let repair = crate::fs::repair(&crate::store::disk::Disk::default(), dir, &shown, apply)?;
    if wrong.is_some() && apply {
        state_dir::set_meta_aside(dir)?;
    }
    Ok((repair, wrong.map(|error| error.to_string())))
}
