//! `oxenfs sync` and `oxenfs commit`.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::args::{AuthorArgs, CommitArgs, SyncArgs};
use super::failure::{Doing, Failure, quoted};
use super::find::{self, Finder};
use super::follow::{End, follow};
use super::output::{data, note, printable};
use crate::config::{Author, Environment, OxenConfig, checked_branch};
use crate::control::Request;
use crate::mount::state_dir::Known;

/// `oxenfs sync`: one request a mount, with all its paths.
pub fn sync(args: SyncArgs, finder: &Finder) -> Result<u8, Failure> {
    let mut mounts: BTreeMap<PathBuf, Vec<String>> = BTreeMap::new();
    for path in &args.paths {
        let failed = || format!("cannot sync {}", quoted(path));
        let real = find::real(path).doing(failed)?;
        let (known, _) = finder.running(&real).doing(failed)?;
        let root = &known.meta.identity.mountpoint;
        let below = inside(&real, root).doing(failed)?;
        mounts.entry(root.clone()).or_default().push(below);
    }
    let deadline = args.timeout.map(|timeout| Instant::now() + timeout);
    for (root, mut paths) in mounts {
        let failed = || format!("cannot sync {}", quoted(&root));
        if paths.iter().any(String::is_empty) {
            paths.clear(); // the root itself: everything
        }
        let (_, stream) = finder.running(&root).doing(failed)?;
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        wait(stream, paths, left, &root).doing(failed)?;
    }
    Ok(0)
}

/// `path`, which lies at or below `root`, as the daemon names it.
fn inside(path: &Path, root: &Path) -> Result<String, Failure> {
    let below = path.strip_prefix(root).map_err(Failure::new)?;
    match below.to_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(Failure::new("its name is not UTF-8, which is all that Oxen can store: it stays on this disk")),
    }
}

fn wait(stream: UnixStream, paths: Vec<String>, timeout: Option<Duration>, root: &Path) -> Result<(), Failure> {
    match follow(stream, &Request::Sync { paths, before_commit: false }, timeout)? {
        End::Done | End::Committed(_) => Ok(()),
        End::Refused(refusal) => Err(refusal.into()),
        End::GaveUp(why) => Err(Failure::owed(format_args!(
            "{why}; the rest is safe on this disk, and staging goes on in the background"
        ))
        .hint(format_args!("wait for it again with: oxenfs sync {}", quoted(root)))),
    }
}

/// `oxenfs commit`.
pub fn commit(args: CommitArgs, finder: &Finder, environment: &Environment) -> Result<u8, Failure> {
    let failed = || format!("cannot commit {}", quoted(&args.dir));
    let branch = args.branch.as_deref().map(checked_branch).transpose().doing(failed)?;
    let real = find::real(&args.dir).doing(failed)?;
    let (known, stream) = finder.running(&real).doing(failed)?;
    commit_at(known, stream, &args.author, args.message, branch, environment).doing(failed)?;
    Ok(0)
}

/// Commits a mount and prints the commit's id.
///
/// # Errors
/// When it is not known who commits, and when the daemon refuses.
pub fn commit_at(
    known: &Known,
    stream: UnixStream,
    author: &AuthorArgs,
    message: String,
    branch: Option<String>,
    environment: &Environment,
) -> Result<(), Failure> {
    let (author, email) = who(author, environment)?;
    let request = Request::Commit { branch, message, author, email };
    let dir = quoted(&known.meta.identity.mountpoint);
    match follow(stream, &request, None)? {
        End::Committed(Some(id)) => data(&printable(&id)),
        End::Committed(None) | End::Done => {
            note(format_args!("nothing to commit in {dir}"));
            Ok(())
        }
        End::Refused(refusal) => Err(refusal.into()),
        End::GaveUp(why) => Err(Failure::owed(format_args!(
            "{why}; nothing was lost, staging goes on in the background, and the commit may or may not have been made"
        ))
        .hint(format_args!("oxenfs status {dir} shows whether anything is left to commit"))),
    }
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
