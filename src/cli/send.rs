//! `oxenfs send`.

use std::path::PathBuf;

use super::args::SendArgs;
use super::done;
use super::failure::{Doing, Failure, quoted};
use super::find::{self, Finder};
use super::follow::{Deadline, End, follow};
use super::output::{are, changes_are, count, json, note, printable};
use super::{repo, seams};
use crate::config::{self, Environment, MountInput, MountSettings};
use crate::control::{Request, Status};
use crate::log;
use crate::mount::state_dir::{Known, StateDir};

/// What is logged where nobody says.
const WARNINGS: &str = "warn";
/// Paths that are named with what keeps them.
const SHOWN: usize = 20;

/// `oxenfs send`: one state directory after the other. The exit code is 3 where anything is owed in the end, also where a
/// server could not be reached: what is owed is safe.
pub fn send(args: SendArgs, finder: &Finder, environment: &Environment) -> Result<u8, Failure> {
    let deadline = Deadline::after(args.timeout);
    let what = "cannot send what is owed";
    let chosen = chosen(&args.states, finder).doing(|| what)?;
    // A line on standard error for what goes wrong; more where it is asked for.
    let filter = match (&args.log, &environment.log) {
        (None, None) => WARNINGS.parse().unwrap_or_default(),
        (said, _) => config::log_filter(said.as_deref(), environment).doing(|| what)?,
    };
    let _log = log::install(&filter, log::Destination::StandardError);
    let mut sent = Vec::new();
    let mut failed = Vec::new();
    for known in chosen {
        match send_one(known, &args, deadline, environment) {
            Ok(one) => sent.push(one),
            Err(failure) => failed.push((known, failure)),
        }
    }
    let owed: u64 = sent.iter().map(|one| one.owed_files).sum();
    if args.json {
        json(&sent, true)?;
    } else if sent.is_empty() && failed.is_empty() {
        note("no mount that has ended owes anything");
    }
    // The last is the command's own failure, so that each is told once.
    let last = failed.pop();
    for (known, failure) in &failed {
        note(format_args!("{}: {}", quoted(&known.path), failure.cause));
    }
    match (last, owed) {
        (Some((known, mut failure)), _) => {
            failure.exit = super::failure::OWED;
            Err(failure.doing(format_args!("cannot send what {} owes", quoted(&known.path))))
        }
        (None, 0) => Ok(0),
        (None, owed) => {
            Err(Failure::owed(format_args!("{} not on the server yet, and safe on this disk", are(owed, "change")))
                .hint("repeat the command, or mount again: oxenfs status says how"))
        }
    }
}

/// The state directories that are meant: those that are named, else each without a mount that owes anything.
fn chosen<'a>(states: &[PathBuf], finder: &'a Finder) -> Result<Vec<&'a Known>, Failure> {
    let writable = |known: &&Known| known.meta.identity.revision.is_none();
    if states.is_empty() {
        // What cannot be read is tried, which says why.
        let owes = |known: &&Known| match known.holder() {
            Some(_) => is_draining(known),
            None => seams::offline_status(&known.path).map_or(true, |status| find::owed(&status).0 > 0),
        };
        return Ok(finder.all().iter().filter(writable).filter(owes).collect());
    }
    let named = |state: &PathBuf| {
        let real = find::real(state)?;
        let found = finder.all().iter().filter(writable).find(|known| known.path == real);
        match found.or_else(|| finder.above(&real).filter(writable)) {
            Some(known) => Ok(known),
            None => Err(Failure::new(format_args!("{} is no state directory, and no mount was there", quoted(state)))
                .hint("oxenfs status lists them; one elsewhere: oxenfs --state-dir DIR send")),
        }
    };
    states.iter().map(named).collect()
}

/// Whether its daemon has no mount any more, and sends what is left.
fn is_draining(known: &Known) -> bool {
    find::running_by(known, Deadline::after(None))
        .is_ok_and(|status| status.is_some_and(|status| status.phase == "draining"))
}

fn send_one(
    known: &Known,
    args: &SendArgs,
    deadline: Deadline,
    environment: &Environment,
) -> Result<done::Sent, Failure> {
    if let Some(stream) = find::connect_by(known, deadline)? {
        return wait(known, stream, deadline);
    }
    let before = seams::offline_status(&known.path)?;
    let (files, content) = find::owed(&before);
    if files == 0 {
        return Ok(sent(known, 0, &before));
    }
    note(format_args!("{} not on the server yet in {}", changes_are(files, content), quoted(&known.path)));
    let mut settings = settings(known, args, environment)?;
    let identity = &known.meta.identity;
    let mut state = StateDir::open(&settings.state_root, identity)?;
    if state.path() != known.path {
        return Err(Failure::new(format_args!("it is a copy of {}", quoted(state.path())))
            .hint("mount it, which gives it a name of its own: oxenfs --state-dir DIR mount ..."));
    }
    super::mount::stage_apart(&mut settings, &mut state)?;
    let status = seams::send(&settings, state, deadline.left())?;
    for error in status.errors.iter().take(SHOWN) {
        note(format_args!("{}: {}", printable(&error.path), printable(&error.error)));
    }
    let one = sent(known, files, &status);
    note(format_args!(
        "{} of {} sent; {} staged in {} and not committed",
        one.sent_files,
        count(files, "change"),
        are(one.staged_files, "file"),
        printable(&settings.workspace)
    ));
    Ok(one)
}

/// A daemon sends it by itself: it is waited for.
fn wait(known: &Known, stream: std::os::unix::net::UnixStream, deadline: Deadline) -> Result<done::Sent, Failure> {
    let before = find::running_by(known, deadline)?.map_or(0, |status| find::owed(&status).0);
    match follow(known, stream, &Request::Sync { paths: Vec::new(), before_commit: false }, deadline) {
        Ok(End::Refused(refusal)) => return Err(refusal.into()),
        Ok(End::GaveUp(why)) => return Err(Failure::owed(why)),
        // One that only drains ends when it is done, also amid this.
        Ok(End::Done(..) | End::Committed(..)) | Err(_) => {}
    }
    let status = match find::running_by(known, deadline)? {
        Some(status) => status,
        None => seams::offline_status(&known.path)?,
    };
    Ok(sent(known, before, &status))
}

fn sent(known: &Known, before: u64, status: &Status) -> done::Sent {
    let (owed_files, owed_bytes) = find::owed(status);
    let identity = &known.meta.identity;
    done::Sent {
        state: known.path.clone(),
        repo: identity.repo.clone(),
        workspace: known.meta.workspace(),
        branch: identity.branch.clone(),
        sent_files: before.saturating_sub(owed_files),
        owed_files,
        owed_bytes,
        staged_files: status.counts.staged.files,
    }
}

/// As `oxenfs mount` would have them, for the same state directory.
fn settings(known: &Known, args: &SendArgs, environment: &Environment) -> Result<MountSettings, Failure> {
    let identity = &known.meta.identity;
    let input = MountInput {
        repo: identity.repo.clone(),
        mountpoint: identity.mountpoint.clone(),
        server: Some(identity.server.clone()),
        branch: Some(identity.branch.clone()),
        workspace: Some(identity.workspace.clone()),
        subdir: Some(identity.subdir.clone()),
        state_dir: known.path.parent().map(PathBuf::from),
        token_file: args.token_file.clone(),
        ..MountInput::default()
    };
    let settings = MountSettings::new(input, environment)?;
    repo::check_credentials(&settings.credentials)?;
    Ok(settings)
}
