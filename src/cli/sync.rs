//! `oxenfs sync` and `oxenfs commit`.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::args::{AuthorArgs, CommitArgs, OnConflict, SyncArgs};
use super::done;
use super::failure::{Doing, Failure, quoted};
use super::find::{self, Finder};
use super::follow::{Deadline, End, follow};
use super::output::{data, json, note, printable, warn};
use super::status::are_ignored;
use crate::config::{Author, Environment, OxenConfig, checked_branch};
use crate::control::{Choice, Request};
use crate::mount::state_dir::Known;
use crate::report::Tally;

/// `oxenfs sync`: one request a mount, with all its paths.
pub fn sync(args: SyncArgs, finder: &Finder) -> Result<u8, Failure> {
    let deadline = Deadline::after(args.timeout);
    let mut mounts: BTreeMap<PathBuf, Vec<String>> = BTreeMap::new();
    for path in &args.paths {
        let failed = || format!("cannot sync {}", quoted(path));
        let real = find::real(path).doing(failed)?;
        let (known, _) = finder.running_by(&real, deadline).doing(failed)?;
        let root = &known.meta.identity.mountpoint;
        let below = inside(&real, root).doing(failed)?;
        mounts.entry(root.clone()).or_default().push(below);
    }
    let mut synced = done::Synced::default();
    for (root, mut paths) in mounts {
        let failed = || format!("cannot sync {}", quoted(&root));
        if paths.iter().any(String::is_empty) {
            paths.clear(); // the root itself: everything
        }
        let (known, stream) = finder.running_by(&root, deadline).doing(failed)?;
        let named = !paths.is_empty();
        let (staged, ignored) = wait(known, stream, paths, deadline).doing(failed)?;
        // Who waits for all of a mount is told by the commit.
        if named && ignored.files > 0 {
            note(format_args!("{}: oxenfs check-ignore -v tells of a path by which pattern", are_ignored(&ignored)));
        }
        synced.staged_files += staged;
        synced.ignored_files += ignored.files;
        synced.ignored_bytes = synced.ignored_bytes.saturating_add(ignored.bytes);
    }
    if args.json {
        json(&synced, false)?;
    }
    Ok(0)
}

/// `path`, which lies at or below `root`, as the daemon names it.
///
/// # Errors
/// When no server can have it.
pub fn inside(path: &Path, root: &Path) -> Result<String, Failure> {
    let below = path.strip_prefix(root).map_err(Failure::new)?;
    match below.to_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(Failure::new("its name is not UTF-8, which is all that Oxen can store: it stays on this disk")),
    }
}

/// How many files were staged for it, and what of those paths is ignored.
fn wait(known: &Known, stream: UnixStream, paths: Vec<String>, deadline: Deadline) -> Result<(u64, Tally), Failure> {
    match follow(known, stream, &Request::Sync { paths, before_commit: false }, deadline)? {
        End::Done(staged, ignored) | End::Committed(_, staged, _, ignored) => Ok((staged, ignored)),
        End::Refused(refusal) => Err(refusal.into()),
        End::GaveUp(why) => Err(Failure::owed(format_args!(
            "{why}; the rest is safe on this disk, and staging goes on in the background"
        ))
        .hint(format_args!("wait for it again with: oxenfs sync {}", quoted(&known.meta.identity.mountpoint)))),
    }
}

/// `oxenfs commit`.
pub fn commit(args: CommitArgs, finder: &Finder, environment: &Environment) -> Result<u8, Failure> {
    let failed = || format!("cannot commit {}", quoted(&args.dir));
    let branch = args.branch.as_deref().map(checked_branch).transpose().doing(failed)?;
    let real = find::real(&args.dir).doing(failed)?;
    let deadline = Deadline::after(args.timeout);
    let (known, stream) = finder.running_by(&real, deadline).doing(failed)?;
    let (author, email) = who(&args.author, environment).doing(failed)?;
    let on_conflict = match args.on_conflict {
        OnConflict::Fail => None,
        OnConflict::Ours => Some(Choice::Ours),
        OnConflict::Theirs => Some(Choice::Theirs),
        OnConflict::KeepBoth => Some(Choice::KeepBoth),
    };
    let request = Request::Commit { branch, message: args.message, author, email, on_conflict };
    let committed = commit_at(known, stream, &request, 0, deadline).doing(failed)?;
    if args.json {
        json(&committed, false)?;
    } else if let Some(id) = &committed.commit {
        data(&printable(id))?;
    }
    Ok(0)
}

/// Commits a mount; says on standard error when there was nothing to commit. So many files as `staged` were staged for it just before.
///
/// # Errors
/// When the daemon refuses, or the deadline passes.
pub fn commit_at(
    known: &Known,
    stream: UnixStream,
    request: &Request,
    staged: u64,
    deadline: Deadline,
) -> Result<done::Committed, Failure> {
    let dir = quoted(&known.meta.identity.mountpoint);
    match follow(known, stream, request, deadline)? {
        End::Committed(Some(id), more, others, ignored) => {
            if ignored.files > 0 {
                note(format_args!("{}: oxenfs status {dir} lists what stays", are_ignored(&ignored)));
            }
            let (ignored_files, ignored_bytes) = (ignored.files, ignored.bytes);
            let staged_files = staged + more;
            Ok(done::Committed { commit: Some(id), staged_files, ignored_files, ignored_bytes, others })
        }
        End::Done(more, ignored) | End::Committed(None, more, _, ignored) => nothing(&dir, staged + more, ignored),
        End::Refused(refusal) => Err(refusal.into()),
        End::GaveUp(why) => Err(Failure::owed(format_args!(
            "{why}; nothing was lost, staging goes on in the background, and the commit may or may not have been made"
        ))
        .hint(format_args!(
            "oxenfs status {dir} shows whether anything is left to commit; the next commit looks for this one"
        ))),
    }
}

/// There was nothing to commit, after so many files were staged for it.
fn nothing(dir: &str, staged_files: u64, ignored: Tally) -> Result<done::Committed, Failure> {
    // After a line that says how many were staged.
    let why = if staged_files > 0 { ": what was staged is what the last commit holds" } else { "" };
    note(format_args!("nothing to commit in {dir}{why}"));
    if ignored.files > 0 {
        warn(format_args!("all that is new is ignored: {}", are_ignored(&ignored)));
    }
    let (ignored_files, ignored_bytes) = (ignored.files, ignored.bytes);
    Ok(done::Committed { staged_files, ignored_files, ignored_bytes, ..done::Committed::default() })
}

/// Name and address of who commits: the command's, else the Oxen configuration's.
///
/// # Errors
/// When one of them is nowhere to be found.
pub fn who(args: &AuthorArgs, environment: &Environment) -> Result<(String, String), Failure> {
    let known = if args.author.is_some() && args.email.is_some() {
        Author::default()
    } else {
        OxenConfig::new(environment).author()?
    };
    match (args.author.clone().or(known.name), args.email.clone().or(known.email)) {
        (Some(name), Some(email)) => Ok((name, email)),
        _ => Err(Failure::new("it is not known who commits")
            .hint("oxen config --name NAME --email ADDRESS, or give --author and --email")),
    }
}
