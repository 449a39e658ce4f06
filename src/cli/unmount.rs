//! `oxenfs unmount`.

use std::os::unix::net::UnixStream;
use std::path::Path;

use super::args::UnmountArgs;
use super::done;
use super::failure::{Doing, Failure, OWED, mount_command, quoted};
use super::find::{self, Finder, owed};
use super::follow::{Deadline, End, follow};
use super::output::{all_but, changes_are, count, data, json, note, printable, warn};
use super::seams;
use super::sync;
use crate::config::Environment;
use crate::control::{Request, Status};
use crate::mount::mountinfo;
use crate::mount::preflight::{self, How, UnmountError};
use crate::mount::state_dir::Known;
use crate::report::Counts;

/// `oxenfs unmount`: whatever is, or was, mounted at a directory is drained and taken away.
pub fn unmount(args: UnmountArgs, finder: &Finder, environment: &Environment) -> Result<u8, Failure> {
    let what = format!("cannot unmount {}", quoted(&args.dir));
    let deadline = Deadline::after(args.timeout);
    let dir = find::real(&args.dir).map_err(|failure| failure.doing(&what))?;
    let mut running = Vec::new();
    let mut stopped = Vec::new();
    for known in finder.at(&dir) {
        match find::running_by(known, deadline).doing(|| &what)? {
            Some(status) => running.push((known, status)),
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
        let request = if commit { Some(commit_request(&args, environment).doing(|| &what)?) } else { None };
        let done = one(&args, known, &status, request.as_ref(), deadline);
        exit = exit.max(done.map_err(|failure| failure.doing(&what))?);
    }
    Ok(exit)
}

fn commit_request(args: &UnmountArgs, environment: &Environment) -> Result<Request, Failure> {
    let (author, email) = sync::who(&args.author, environment)?;
    Ok(Request::Commit {
        branch: None,
        message: args.message.clone().unwrap_or_default(),
        author,
        email,
        on_conflict: None,
    })
}

fn one(
    args: &UnmountArgs,
    known: &Known,
    status: &Status,
    commit: Option<&Request>,
    deadline: Deadline,
) -> Result<u8, Failure> {
    let mut committed = None;
    if let Some(commit) = commit {
        // First all that is there is staged, whatever it is called by then; the cut that is committed comes after that.
        let staged = match follow(
            known,
            connected(known)?,
            &Request::Sync { paths: Vec::new(), before_commit: true },
            deadline,
        )? {
            End::Done(staged, _) | End::Committed(_, staged, ..) => staged,
            End::Refused(refusal) => return Err(refusal.into()),
            End::GaveUp(why) => return Err(gave_up(format_args!("{why}; nothing was committed"), &args.dir)),
        };
        committed = sync::commit_at(known, connected(known)?, commit, staged, deadline)
            .map_err(|failure| failure.doing(format_args!("cannot commit {}", quoted(&args.dir))))?
            .commit;
        if let Some(id) = committed.as_ref().filter(|_| !args.json) {
            data(&printable(id))?;
        }
    }
    if args.detach {
        return detach(args, known, status, committed);
    }
    match follow(known, connected(known)?, &Request::Unmount, deadline)? {
        End::Done(..) | End::Committed(..) if known.meta.identity.revision.is_some() => {
            tell(args, known, committed, &Counts::default())?;
            note(format_args!("unmounted {}", quoted(&args.dir)));
            Ok(0)
        }
        End::Done(..) | End::Committed(..) => {
            // The record of the daemon that just ended.
            let left = seams::offline_status(&known.path).unwrap_or_default().counts;
            let staged = match left.staged.files {
                0 => String::new(),
                files => format!(", {} staged and not committed", count(files, "change")),
            };
            let (held_files, held_bytes) = (left.held.files, left.held.bytes);
            if held_files > 0 {
                let held = changes_are(held_files, held_bytes);
                note(format_args!("unmounted {}; {held} held back, and on this disk alone{staged}", quoted(&args.dir)));
            } else {
                note(format_args!("unmounted {}; {}{staged}", quoted(&args.dir), is_there(&left)));
            }
            if left.remote.files > 0 {
                note(format_args!("{}: commit to keep them", super::status::on_the_server_alone(&left.remote)));
            }
            // A commit has told it.
            if left.ignored.files > 0 && !args.commit {
                let ignored = super::status::are_ignored(&left.ignored);
                match left.staged.files == 0 {
                    true => warn(format_args!("all that is new is ignored: {ignored}")),
                    false => note(format_args!("{ignored}: oxenfs status {} lists what stays", quoted(&args.dir))),
                }
            }
            if left.local.files > left.ignored.files {
                let stays = super::status::stays_here(&left);
                note(format_args!("{stays}: oxenfs status {} lists what stays", quoted(&args.dir)));
            }
            tell(args, known, committed, &left)?;
            Ok(if held_files > 0 { OWED } else { 0 })
        }
        End::Refused(refusal) => Err(refusal.into()),
        End::GaveUp(why) => Err(gave_up(why, &args.dir)),
    }
}

/// Says as JSON how it ended, if that is asked for.
fn tell(args: &UnmountArgs, known: &Known, commit: Option<String>, left: &Counts) -> Result<(), Failure> {
    if !args.json {
        return Ok(());
    }
    let (owed_files, owed_bytes) = left.owed();
    let unmounted = done::Unmounted {
        mountpoint: known.meta.identity.mountpoint.clone(),
        commit,
        owed_files,
        owed_bytes,
        staged_files: left.staged.files,
        remote_files: left.remote.files,
        local_files: left.local.files,
        ignored_files: left.ignored.files,
        ignored_bytes: left.ignored.bytes,
    };
    json(&unmounted, false)
}

/// What is true of a mount that owes nothing.
fn is_there(counts: &Counts) -> &'static str {
    let unstored = counts.local.files > counts.partly.files + counts.ignored.files;
    match (unstored, counts.ignored.files > 0) {
        (true, true) => "all that Oxen can store and that is not ignored is on the server",
        (true, false) => "all that Oxen can store is on the server",
        (false, true) => "all that is not ignored is on the server",
        (false, false) => "everything is on the server",
    }
}

fn gave_up(why: impl std::fmt::Display, dir: &Path) -> Failure {
    Failure::owed(format_args!("{why}; the rest is safe on this disk, and staging goes on in the background"))
        .hint(format_args!("wait for it again with: oxenfs unmount {}", quoted(dir)))
}

fn detach(args: &UnmountArgs, known: &Known, before: &Status, commit: Option<String>) -> Result<u8, Failure> {
    match follow(known, connected(known)?, &Request::Detach, Deadline::after(None))? {
        End::Refused(refusal) if !refusal.owed => return Err(refusal.into()),
        End::GaveUp(why) => return Err(Failure::new(why)),
        _ => {}
    }
    // The journal knows better than the daemon did before: much may have been staged since.
    let after = seams::offline_status(&known.path).unwrap_or_else(|_| before.clone());
    tell(args, known, commit, &after.counts)?;
    let dir = quoted(&args.dir);
    match owed(&after) {
        (0, _) if known.meta.identity.revision.is_some() => {
            note(format_args!("unmounted {dir}"));
            Ok(0)
        }
        (0, _) => {
            note(format_args!("unmounted {dir}; {}", is_there(&after.counts)));
            Ok(0)
        }
        (files, content) => {
            let changes = changes_are(files, content);
            let queued = if after.counts.absent.files == 0 { "safely queued" } else { "queued" };
            let but = all_but(&after.counts);
            note(format_args!("unmounted {dir}; {changes} not on the server yet, and {queued} on this disk{but}"));
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
    let mut counts = Counts::default();
    for known in stopped {
        let status = seams::offline_status(&known.path)?;
        let (files, content) = owed(&status);
        if status.counts.local.files > status.counts.partly.files || status.counts.ignored.files > 0 {
            counts = status.counts;
        }
        if files > 0 {
            let changes = changes_are(files, content);
            let but = all_but(&status.counts);
            let cause = format!("no daemon runs, and {changes} not on the server yet, and safe on this disk{but}");
            let hint = format!("mount again to send them: {}", mount_command(known));
            return Err(Failure::owed(cause).hint(hint));
        }
    }
    if args.commit {
        return Err(Failure::new("it is not mounted, so nothing was committed")
            .hint("mount it again, then: oxenfs commit DIR -m TEXT"));
    }
    if let Some(known) = stopped.first() {
        tell(args, known, None, &counts)?;
    }
    if mount.is_none() {
        note(format_args!("{} is not mounted; {}", quoted(dir), is_there(&counts)));
    }
    Ok(0)
}
