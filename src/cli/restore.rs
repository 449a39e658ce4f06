//! `oxenfs restore`, also called `oxenfs discard`.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::args::RestoreArgs;
use super::asking;
use super::done;
use super::failure::{Doing, Failure, quoted};
use super::find::{self, Finder};
use super::output::{bytes, count, json, note, printable, thousands};
use super::sync::inside;
use super::vigil::{self, Vigil};
use crate::control::client::ClientError;
use crate::control::{Event, Request};
use crate::mount::state_dir::Known;
use crate::report::{Difference, Kind};

/// Files that are named one by one.
const SHOWN: usize = 20;

/// `oxenfs restore`.
pub fn restore(args: RestoreArgs, finder: &Finder) -> Result<u8, Failure> {
    let mut mounts: BTreeMap<PathBuf, Vec<String>> = BTreeMap::new();
    for path in &args.paths {
        let failed = || format!("cannot restore {}", quoted(path));
        let real = find::real(path).doing(failed)?;
        let (known, _) = finder.running(&real).doing(failed)?;
        let root = &known.meta.identity.mountpoint;
        let below = inside(&real, root).doing(failed)?;
        mounts.entry(root.clone()).or_default().push(below);
    }
    if mounts.is_empty() {
        let failed = || "cannot bring back what was dropped".to_owned();
        let (known, _) = finder.running(&find::real(Path::new(".")).doing(failed)?).doing(failed)?;
        mounts.insert(known.meta.identity.mountpoint.clone(), Vec::new());
    }
    // All is looked at before any of it is done.
    let mut all = Vec::new();
    for (root, paths) in &mounts {
        let found = ask(finder, root, paths, &args, false)?;
        show(&found, &args);
        all.extend(found);
    }
    if all.is_empty() {
        note("nothing to restore");
    } else {
        let changes = count(all.len() as u64, "change");
        let question = match (args.undo, args.staged) {
            (true, _) => format!("bring back {}?", count(all.len() as u64, "file")),
            (_, true) => format!("unstage {changes}?"),
            _ => format!("drop {changes}?"),
        };
        if !asking::may(args.yes, &question).doing(|| "cannot restore")? {
            return Ok(asking::declined());
        }
    }
    let mut restored = Vec::new();
    if !all.is_empty() {
        for (root, paths) in &mounts {
            restored.extend(ask(finder, root, paths, &args, true)?);
        }
        note(summary(&restored, &args));
    }
    if args.json {
        json(&done::Restored { restored, undo: args.undo }, true)?;
    }
    Ok(0)
}

/// What a restore would change in a mount, or has changed.
fn ask(
    finder: &Finder,
    root: &Path,
    paths: &[String],
    args: &RestoreArgs,
    apply: bool,
) -> Result<Vec<Difference>, Failure> {
    let failed = || format!("cannot restore in {}", quoted(root));
    let (known, stream) = finder.running(root).doing(failed)?;
    let (paths, source) = (paths.to_vec(), args.source.clone());
    let request = Request::Restore { paths, source, staged: args.staged, undo: args.undo, apply };
    listen(known, stream, &request).doing(failed)
}

fn listen(known: &Known, stream: UnixStream, request: &Request) -> Result<Vec<Difference>, Failure> {
    let mut vigil = Vigil::over(known, &stream);
    let mut client = vigil::asked(&vigil, stream, request)?;
    let mut found = Vec::new();
    loop {
        match vigil::next(&mut client, &mut vigil)? {
            Event::Differences { changes } => found.extend(changes),
            Event::Done => return Ok(found),
            Event::Failed(failure) => return Err(failure.into()),
            _ => return Err(ClientError::NotUnderstood.into()),
        }
    }
}

fn deed(kind: Kind, undo: bool) -> &'static str {
    match (kind, undo) {
        (Kind::Added, false) | (Kind::Removed, true) => "remove",
        (Kind::Removed, false) | (Kind::Added, true) => "bring back",
        (Kind::Modified | Kind::Renamed | Kind::Local, _) => "put back",
    }
}

/// What would be done, on standard error: data on standard output is what was.
fn show(found: &[Difference], args: &RestoreArgs) {
    for difference in found.iter().take(SHOWN) {
        let size = bytes(difference.bytes);
        let deed = if args.staged { "unstage" } else { deed(difference.kind, args.undo) };
        note(format_args!("{deed:<10} {size:>10}  {}", printable(&difference.path)));
    }
    if found.len() > SHOWN {
        note(format_args!("and {} more", thousands((found.len() - SHOWN) as u64)));
    }
}

fn summary(done: &[Difference], args: &RestoreArgs) -> String {
    let files = count(done.len() as u64, "file");
    match (args.undo, args.staged) {
        (true, _) => format!("{files} as before the restore"),
        (_, true) => format!("{files} unstaged, and held back: each is staged again once it is written"),
        _ => format!(
            "{files} restored; what was dropped is kept until the next commit, for a week at most: oxenfs restore --undo"
        ),
    }
}
