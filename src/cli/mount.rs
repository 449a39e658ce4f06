//! `oxenfs mount` and `mount.oxenfs`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::args::{HelperArgs, MountArgs, Unit};
use super::done;
use super::failure::{Doing, Failure, mount_command, quoted};
use super::find::{connect_now, owed, status_while};
use super::follow::Deadline;
use super::output::{changes_are, count, data, json, note, warn, without_credentials};
use super::vigil::{Vigil, await_answer};
use super::{seams, unit};
use crate::config::{ConfigError, Environment, MountInput, MountSettings};
use crate::control::Request;
use crate::control::client::Client;
use crate::log;
use crate::mount::daemon::{self, Fork, Notifier, Outcome, Ready};
use crate::mount::mountinfo;
use crate::mount::preflight::{self, Place, PreflightError};
use crate::mount::state_dir::{self, Identity, Known, StateDir, StateError};

/// How long a daemon that only drains may take to let go: it stops between two requests.
const TAKE_OVER_PATIENCE: Duration = Duration::from_secs(30);
/// How long one that does not answer may take: it is about to end, or hangs.
const SILENCE_PATIENCE: Duration = Duration::from_secs(10);
/// How often it is tried again.
const LOCK_CHECK: Duration = Duration::from_millis(50);

/// `oxenfs mount`.
pub fn mount(args: MountArgs, state_dir: Option<PathBuf>, environment: &Environment) -> Result<u8, Failure> {
    if let Some(kind) = args.print_unit {
        let what = format!("cannot print a unit for {}", without_credentials(&args.repo));
        return print_unit(kind, args, state_dir, environment).map_err(|failure| failure.doing(what));
    }
    let what = format!("cannot mount {}", without_credentials(&args.repo));
    let as_json = args.json;
    let input = input_of(args, state_dir).doing(|| &what)?;
    start(input, environment, if as_json { Way::Json } else { Way::Plain }).map_err(|failure| failure.doing(what))
}

fn input_of(args: MountArgs, state_dir: Option<PathBuf>) -> Result<MountInput, ConfigError> {
    let options = args.options.clone();
    let mut input = args.into_input(state_dir);
    for list in &options {
        input.apply_options(list, false)?;
    }
    Ok(input)
}

/// All of the settings are checked, so that the unit does not fail for one of them.
fn print_unit(
    kind: Unit,
    args: MountArgs,
    state_dir: Option<PathBuf>,
    environment: &Environment,
) -> Result<u8, Failure> {
    let kind = match kind {
        Unit::Auto if environment.uid == 0 => Unit::System,
        Unit::Auto => Unit::User,
        said => said,
    };
    let settings = MountSettings::new(input_of(args.clone(), state_dir.clone())?, environment)?;
    data(&unit::unit(kind, &args, state_dir.as_deref(), &settings)?)?;
    Ok(0)
}

/// `mount.oxenfs`, as `mount(8)` calls it.
pub fn helper(args: HelperArgs, environment: &Environment) -> Result<u8, Failure> {
    let mut input = MountInput { repo: args.repo, mountpoint: args.mountpoint, ..MountInput::default() };
    let what = format!("cannot mount {}", without_credentials(&input.repo));
    for list in &args.options {
        input.apply_options(list, args.sloppy).doing(|| &what)?;
    }
    let mountpoint = input.mountpoint.clone();
    start(input, environment, if args.fake { Way::Fake } else { Way::Plain }).map_err(|failure| {
        let mut failure = failure.doing(what);
        // Whoever mounts at boot writes on without looking, below the mount point where nothing is mounted.
        if let Some(hint) = failure.hint.as_mut().filter(|hint| hint.starts_with("oxenfs repair")) {
            let guard = format!(
                "; so that nothing is written below the mount point meanwhile: chattr +i {}",
                quoted(mountpoint)
            );
            hint.push_str(&guard);
        }
        failure
    })
}

/// How a mount is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// With words on standard error.
    Plain,
    /// With JSON on standard output.
    Json,
    /// Everything is checked, nothing is mounted.
    Fake,
}

fn start(input: MountInput, environment: &Environment, way: Way) -> Result<u8, Failure> {
    let mut settings = MountSettings::new(input, environment)?;
    super::repo::check_credentials(&settings.credentials)?;
    let checked = preflight::check(&settings).map_err(|error| refused(error, &settings, environment))?;
    for warning in &checked.warnings {
        warn(warning);
    }
    let place = checked.place;
    settings.mountpoint = place.path().to_owned();
    settings.state_root = checked.state_root;
    if way == Way::Fake {
        return Ok(0);
    }
    let identity = Identity {
        server: settings.server.to_string(),
        repo: settings.repo.to_string(),
        workspace: settings.workspace.clone(),
        subdir: settings.subdir.as_str().to_owned(),
        branch: settings.branch.clone(),
        revision: settings.revision.clone(),
        mountpoint: settings.mountpoint.clone(),
    };
    if settings.is_read_only() {
        warn_of_unsent(&identity, &settings.state_root);
    }
    let mut state = open_state(&settings.state_root, &identity)?;
    stage_apart(&mut settings, &mut state)?;
    let unused = state.unused();
    let said = format!("mounted {} at {}", settings.repo, quoted(&settings.mountpoint));
    if settings.foreground {
        let _log = log::install(&settings.log, log::Destination::StandardError);
        announce(&state, environment);
        let ended = seams::run(&settings, place, state, &Notifier::foreground(move |ready| welcome(&ready, &said)));
        return ended.map(|()| 0).inspect_err(|_| unused.remove());
    }
    let log = state.log_path();
    drop(state.open_log()?); // makes it, closed to others
    match daemon::daemonize(&log).map_err(|error| Failure::new(format_args!("cannot start a daemon: {error}")))? {
        Fork::Parent(outcome) => {
            match &outcome {
                Outcome::Ready(_) => announce(&state, environment),
                Outcome::Failed(_) => unused.remove(),
                // Its log is there.
                Outcome::Died { .. } => {}
            }
            let as_json = way == Way::Json;
            let ready = report(outcome, if as_json { None } else { Some(&said) })?;
            if as_json {
                json(&mounted(&settings, ready), false)?;
            }
            Ok(0)
        }
        Fork::Child(notifier) => Ok(serve(settings, place, state, &notifier)),
    }
}

/// One that has a workspace of its own stages there, also where user or machine are called otherwise by now.
///
/// # Errors
/// When that cannot be written down.
pub fn stage_apart(settings: &mut MountSettings, state: &mut StateDir) -> Result<(), Failure> {
    settings.own_workspace |= state.has_own_workspace();
    if settings.own_workspace && !settings.is_read_only() {
        match state.own_workspace(is_in_use)? {
            Some(name) => settings.workspace = name,
            None => settings.own_workspace = false,
        }
    }
    Ok(())
}

/// Whether a state directory holds what the server lacks, or what is staged and not committed; also where nobody can tell.
fn is_in_use(path: &Path) -> bool {
    seams::offline_status(path).map_or(true, |status| owed(&status).0 > 0 || status.counts.staged.files > 0)
}

/// The daemon's whole life; its failures reach the command while that waits, and the log afterwards.
fn serve(settings: MountSettings, place: Place, mut state: StateDir, notifier: &Notifier) -> u8 {
    let _log = log::install(&settings.log, log::Destination::File(state.log_path()));
    let what = format!("cannot mount {}", settings.repo);
    let served = state.claim().map_err(Failure::from).and_then(|()| seams::run(&settings, place, state, notifier));
    let Err(failure) = served else { return 0 };
    let exit = failure.exit;
    if notifier.is_waited_for() {
        tracing::error!(cause = %failure.cause, hint = failure.hint.as_deref(), "there is no mount");
        // When nobody waits any more there is nobody to tell.
        let _ = notifier.failed(failure.doing(what).into());
    } else if exit == super::failure::OWED {
        tracing::warn!(cause = %failure.cause, hint = failure.hint.as_deref(), "the mount ended");
    } else {
        tracing::error!(cause = %failure.cause, hint = failure.hint.as_deref(), "the mount ended");
    }
    exit
}

fn mounted(settings: &MountSettings, ready: Ready) -> done::Mounted {
    done::Mounted {
        mountpoint: settings.mountpoint.clone(),
        repo: settings.repo.to_string(),
        server: settings.server.to_string(),
        branch: settings.branch.clone(),
        workspace: settings.workspace.clone(),
        revision: settings.revision.clone(),
        server_version: ready.server_version,
        dialect: ready.dialect,
        created: ready.created,
        offline: ready.offline,
        resumed: ready.resumed,
    }
}

/// Says how it went; in words if there are any to `said`.
fn report(outcome: Outcome, said: Option<&str>) -> Result<Ready, Failure> {
    match outcome {
        Outcome::Ready(ready) => {
            if let Some(said) = said {
                welcome(&ready, said);
            }
            Ok(ready)
        }
        Outcome::Failed(report) => Err(report.into()),
        Outcome::Died { how, log_tail, log } => {
            for line in &log_tail {
                note(format_args!("  {line}"));
            }
            let cause = format!("the daemon ended without a word ({how})");
            Err(Failure::new(cause).hint(format_args!("its log is {}", quoted(&log))))
        }
    }
}

fn welcome(ready: &Ready, said: &str) {
    for warning in &ready.warnings {
        warn(warning);
    }
    let made = if ready.created { ", a new repository" } else { "" };
    match ready.offline {
        true => note(format_args!("{said} (offline)")),
        false => note(format_args!("{said} (server {}{made})", ready.server_version)),
    }
    if ready.offline && ready.resumed > 0 {
        let changes = count(ready.resumed, "change");
        let wait = if ready.resumed == 1 { "waits" } else { "wait" };
        note(format_args!("{changes} of an earlier mount {wait} for the server"));
    } else if ready.resumed > 0 {
        let changes = count(ready.resumed, "change");
        let are = if ready.resumed == 1 { "is" } else { "are" };
        note(format_args!("{changes} of an earlier mount {are} being sent"));
    }
}

/// Warns where changes wait here that a mount of a revision does not show, as its users may expect.
fn warn_of_unsent(identity: &Identity, root: &Path) {
    let same = |known: &Known| {
        let other = &known.meta.identity;
        other.revision.is_none() && (&other.server, &other.repo) == (&identity.server, &identity.repo)
    };
    let Ok(listing) = StateDir::list(root) else { return };
    for known in listing.known.iter().filter(|known| same(known) && known.holder().is_none()) {
        let Ok(status) = seams::offline_status(&known.path) else { continue };
        let (files, content) = owed(&status);
        if files > 0 {
            let changes = changes_are(files, content);
            warn(format_args!("{changes} not on the server yet, and this does not show them"));
            note(format_args!("hint: to send them: {}", mount_command(known)));
        }
    }
}

/// Opens the state directory. Where a daemon without a mount still drains it, that daemon is asked to stop: what it
/// did not send is on record, and the new one goes on.
fn open_state(root: &Path, identity: &Identity) -> Result<StateDir, Failure> {
    let began = Instant::now();
    let (locked, status) = loop {
        let locked = match StateDir::open(root, identity) {
            Ok(state) => return Ok(state),
            Err(error @ StateError::Locked { .. }) => error,
            Err(error) => return Err(error.into()),
        };
        let StateError::Locked { path, pid, mountpoint } = &locked else {
            return Err(locked.into());
        };
        let vigil = || Vigil::new(path, mountpoint, Some(*pid), "and repeat the command".into());
        let connected = state_dir::connect_control(path).map_err(Failure::new);
        match connected.and_then(|stream| status_while(vigil(), stream, Deadline::after(None))) {
            Ok(status) => break (locked, status),
            Err(failure) => {
                let stopped = vigil().reason();
                if stopped.is_some() || began.elapsed() >= SILENCE_PATIENCE {
                    return Err(stopped.unwrap_or(failure).about(&locked));
                }
            }
        }
        std::thread::sleep(LOCK_CHECK);
    };
    let StateError::Locked { path, mountpoint, .. } = &locked else {
        return Err(locked.into());
    };
    // A mount that was taken away a moment ago is gone before its daemon notices.
    let gone = mountinfo::top(mountpoint).is_ok_and(|top| top.is_none_or(|mount| !mount.is_ours()));
    if status.phase != "draining" && !gone {
        return Err(locked.into());
    }
    // It may have ended meanwhile; then nobody has to be asked.
    let asked = state_dir::connect_control(path).map_err(Failure::new);
    let _asked = asked.and_then(|stream| Ok(Client::ask(stream, &Request::Detach)?));
    let began = Instant::now();
    loop {
        match StateDir::open(root, identity) {
            Err(StateError::Locked { .. }) if began.elapsed() < TAKE_OVER_PATIENCE => {}
            other => return Ok(other?),
        }
    }
}

/// The failure of a check; of a mount point whose daemon does not answer, with the way out.
fn refused(error: PreflightError, settings: &MountSettings, environment: &Environment) -> Failure {
    if let PreflightError::AlreadyMounted(mountpoint) = &error {
        let roots = [Some(settings.state_root.clone()), environment.state_root().ok()];
        let known =
            roots.into_iter().flatten().filter_map(|root| StateDir::list(&root).ok()).flat_map(|list| list.known);
        let there = known.filter(|known| known.meta.identity.mountpoint == *mountpoint && known.holder().is_some());
        for known in there {
            let answers =
                connect_now(&known).and_then(|stream| stream.map_or(Ok(()), |stream| await_answer(&known, stream)));
            if let Err(silence) = answers {
                return silence.about(&error);
            }
        }
    }
    error.into()
}

/// Makes sure that `status` and `unmount` find the mount without being told its state root.
fn announce(state: &StateDir, environment: &Environment) {
    let Ok(default_root) = environment.state_root() else {
        return;
    };
    if state.path().parent().is_some_and(|root| root == state_dir::resolve_existing(&default_root)) {
        return;
    }
    if let Err(error) = state.announce(&default_root) {
        let root = state.path().parent().unwrap_or(state.path());
        warn(format_args!("other commands need --state-dir {}: {error}", quoted(root)));
    }
}
