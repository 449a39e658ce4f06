//! `oxenfs unmount`.

use std::os::unix::net::UnixStream;
use std::path::Path;

use super::args::UnmountArgs;
use super::failure::{Doing, Failure, OWED, quoted};
use super::find::{self, Finder, mount_command, owed, status_of};
use super::follow::{End, follow};
use super::output::{bytes, count, note};
use super::seams;
use super::sync;
use crate::config::Environment;
use crate::control::{Request, Status};
use crate::mount::preflight::{self, How, UnmountError, mountinfo};
use crate::mount::state_dir::Known;

/// `oxenfs unmount`: whatever is, or was, mounted at a directory is drained and taken away.
pub fn unmount(args: UnmountArgs, finder: &Finder, environment: &Environment) -> Result<u8, Failure> {
    let what = format!("cannot unmount {}", quoted(&args.dir));
    let dir = find::real(&args.dir).map_err(|failure| failure.doing(&what))?;
    let mut running = Vec::new();
    let mut stopped = Vec::new();
    for known in finder.at(&dir) {
        match find::connect(known).doing(|| &what)? {
            Some(stream) => running.push((known, status_of(stream).doing(|| &what)?)),
            None => stopped.push(known),
        }
    }
    if running.is_empty() {
        return without_daemon(&args, &dir, &stopped, finder).map_err(|failure| failure.doing(what));
    }
    // One may be mounted; others may drain what was mounted here before.
    running.sort_by_key(|(_, status)| status.phase != "mounted");
    let mut exit = 0;
    for (at, (known, status)) in running.into_iter().enumerate() {
        let commit = at == 0 && args.commit;
        let done = one(&args, known, &status, commit, environment);
        exit = exit.max(done.map_err(|failure| failure.doing(&what))?);
    }
    Ok(exit)
}

fn one(
    args: &UnmountArgs,
    known: &Known,
    status: &Status,
    commit: bool,
    environment: &Environment,
) -> Result<u8, Failure> {
    if commit {
        // First all that is there is staged, whatever it is called by then; the cut that is committed comes after that.
        match follow(connected(known)?, &Request::Sync { paths: Vec::new(), before_commit: true }, args.timeout)? {
            End::Done | End::Committed(_) => {}
            End::Refused(refusal) => return Err(refusal.into()),
            End::GaveUp(why) => return Err(gave_up(format_args!("{why}; nothing was committed"), &args.dir)),
        }
        let message = args.message.clone().unwrap_or_default();
        sync::commit_at(known, connected(known)?, &args.author, message, None, environment)
            .map_err(|failure| failure.doing(format_args!("cannot commit {}", quoted(&args.dir))))?;
    }
    if args.detach {
        return detach(args, known, status);
    }
    match follow(connected(known)?, &Request::Unmount, args.timeout)? {
        End::Done | End::Committed(_) => {
            // The record of the daemon that just ended.
            let left = seams::offline_status(&known.path).unwrap_or_default().counts;
            let staged = match left.staged.files {
                0 => String::new(),
                files => format!(", {} staged and not committed", count(files, "change")),
            };
            note(format_args!("unmounted {}; everything is on the server{staged}", quoted(&args.dir)));
            if left.remote.files > 0 {
                note(format_args!("{}: commit to keep them", super::status::on_the_server_alone(&left.remote)));
            }
            if left.local.files > 0 {
                let paths = count(left.local.files, "path");
                note(format_args!(
                    "on this disk alone: {paths}, which Oxen cannot store in full; oxenfs status lists them"
                ));
            }
            Ok(0)
        }
        End::Refused(refusal) => Err(refusal.into()),
        End::GaveUp(why) => Err(gave_up(why, &args.dir)),
    }
}

fn gave_up(why: impl std::fmt::Display, dir: &Path) -> Failure {
    Failure::owed(format_args!("{why}; the rest is safe on this disk, and staging goes on in the background"))
        .hint(format_args!("wait for it again with: oxenfs unmount {}", quoted(dir)))
}

fn detach(args: &UnmountArgs, known: &Known, before: &Status) -> Result<u8, Failure> {
    match follow(connected(known)?, &Request::Detach, None)? {
        End::Refused(refusal) if !refusal.owed => return Err(refusal.into()),
        End::GaveUp(why) => return Err(Failure::new(why)),
        _ => {}
    }
    // The journal knows better than the daemon did before: much may have been staged since.
    let after = seams::offline_status(&known.path).unwrap_or_else(|_| before.clone());
    let dir = quoted(&args.dir);
    match owed(&after) {
        (0, _) => {
            note(format_args!("unmounted {dir}; everything is on the server"));
            Ok(0)
        }
        (files, content) => {
            let files = count(files, "change");
            note(format_args!(
                "unmounted {dir}; {files} ({}) are not on the server yet, and safely queued on this disk",
                bytes(content)
            ));
            note(format_args!("hint: mount again to send them: {}", mount_command(known)));
            Ok(OWED)
        }
    }
}

fn connected(known: &Known) -> Result<UnixStream, Failure> {
    find::connect(known)?.ok_or_else(|| crate::control::client::ClientError::HungUp.into())
}

fn without_daemon(args: &UnmountArgs, dir: &Path, stopped: &[&Known], finder: &Finder) -> Result<u8, Failure> {
    let mount = mountinfo::top(dir).map_err(Failure::new)?;
    match &mount {
        Some(mount) if !mount.is_ours() => {
            let fs_type = mount.fs_type.clone();
            return Err(UnmountError::Foreign { fs_type }.into());
        }
        Some(_) if preflight::is_stale(dir) => {
            preflight::unmount(dir, How::Lazily)?;
            note(format_args!("removed the broken mount at {}; its daemon had ended", quoted(dir)));
        }
        Some(_) => {
            let cause = format!("no state directory in {} belongs to it", quoted(finder.root()));
            return Err(Failure::new(cause).hint("name the one it was mounted with: --state-dir DIR"));
        }
        None if stopped.is_empty() => {
            return Err(Failure::new("it is not an oxenfs mount").hint("oxenfs status lists the mounts"));
        }
        None => {}
    }
    for known in stopped {
        let (files, content) = owed(&seams::offline_status(&known.path)?);
        if files > 0 {
            let cause = format!(
                "no daemon runs, and {} ({}) are not on the server yet; they are safe on this disk",
                count(files, "change"),
                bytes(content)
            );
            let hint = format!("mount again to send them: {}", mount_command(known));
            return Err(Failure::owed(cause).hint(hint));
        }
    }
    if args.commit {
        return Err(Failure::new("it is not mounted, so nothing was committed")
            .hint("mount it again, then: oxenfs commit DIR -m TEXT"));
    }
    if mount.is_none() {
        note(format_args!("{} is not mounted; everything is on the server", quoted(dir)));
    }
    Ok(0)
}
