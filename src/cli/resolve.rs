//! `oxenfs refresh`, `oxenfs resolve` and `oxenfs show`.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::args::{RefreshArgs, ResolveArgs, VersionArgs};
use super::failure::{Doing, Failure, quoted};
use super::find::{self, Finder};
use super::output::{are, count, data, json, note, printable};
use super::sync::inside;
use super::vigil::{self, Vigil};
use crate::control::client::ClientError;
use crate::control::{Choice, Event, Refreshed, Request, Resolved, Version};
use crate::mount::state_dir::Known;

/// `oxenfs refresh`.
pub fn refresh(args: RefreshArgs, finder: &Finder) -> Result<u8, Failure> {
    let failed = || format!("cannot refresh {}", quoted(&args.dir));
    let real = find::real(&args.dir).doing(failed)?;
    let (known, stream) = finder.running(&real).doing(failed)?;
    let refreshed = match ask(known, stream, &Request::Refresh).doing(failed)? {
        Event::Refreshed(refreshed) => refreshed,
        _ => return Err(Failure::from(ClientError::NotUnderstood).doing(failed())),
    };
    if args.json {
        json(&refreshed, false)?;
    } else {
        note(told(&refreshed, known));
    }
    Ok(0)
}

fn told(refreshed: &Refreshed, known: &Known) -> String {
    let dir = quoted(&known.meta.identity.mountpoint);
    let stands = match (refreshed.moved, &refreshed.stays) {
        (_, Some(why)) => format!("{dir} stays on {}: {why}", refreshed.base),
        (true, None) => format!("{dir} stands on {} now", refreshed.base),
        (false, None) => format!("{dir} stands on what the branch has already, {}", refreshed.base),
    };
    match refreshed.conflicts {
        0 => stands,
        conflicts => format!("{stands}; {} in conflict: oxenfs status {dir} names them", are(conflicts, "path")),
    }
}

/// `oxenfs resolve`: one request a mount, with all its paths.
pub fn resolve(args: ResolveArgs, finder: &Finder) -> Result<u8, Failure> {
    let choice = match (args.ours, args.theirs) {
        (true, _) => Choice::Ours,
        (_, true) => Choice::Theirs,
        _ => Choice::KeepBoth,
    };
    let what = "cannot resolve";
    let mut mounts: BTreeMap<PathBuf, Vec<String>> = BTreeMap::new();
    for path in &args.paths {
        let failed = || format!("{what} {}", quoted(path));
        let real = real_entry(path).doing(failed)?;
        let (known, _) = finder.running(&real).doing(failed)?;
        let root = &known.meta.identity.mountpoint;
        let below = inside(&real, root).doing(failed)?;
        mounts.entry(root.clone()).or_default().push(below);
    }
    let mut all = Vec::new();
    for (root, paths) in mounts {
        let failed = || format!("{what} conflicts of {}", quoted(&root));
        let (known, stream) = finder.running(&root).doing(failed)?;
        let Event::Resolved { resolved, left } =
            ask(known, stream, &Request::Resolve { paths, choice }).doing(failed)?
        else {
            return Err(Failure::from(ClientError::NotUnderstood).doing(failed()));
        };
        if !args.json {
            for Resolved { path, beside } in &resolved {
                let beside = beside.as_ref().map(|beside| format!(", beside it {}", printable(beside)));
                data(&format!("{}: {}{}", printable(path), word(choice), beside.unwrap_or_default()))?;
            }
            if left > 0 {
                note(format_args!("{} in conflict still: oxenfs status {}", are(left, "path"), quoted(&root)));
            }
        }
        all.extend(resolved);
    }
    if args.json {
        json(&all, true)?;
    } else {
        note(format_args!("{} decided", count(all.len() as u64, "conflict")));
    }
    Ok(0)
}

fn word(choice: Choice) -> &'static str {
    match choice {
        Choice::Ours => "what is here is staged",
        Choice::Theirs => "the branch's version",
        Choice::KeepBoth => "the branch's version",
    }
}

/// `oxenfs show`.
pub fn show(args: VersionArgs, finder: &Finder) -> Result<u8, Failure> {
    let failed = || format!("cannot show {}", quoted(&args.path));
    let version = match (args.theirs, args.base) {
        (true, _) => Version::Theirs,
        (_, true) => Version::Base,
        // That is in the tree.
        _ => return show_ours(&args.path).doing(failed),
    };
    let real = real_entry(&args.path).doing(failed)?;
    let (known, stream) = finder.running(&real).doing(failed)?;
    let path = inside(&real, &known.meta.identity.mountpoint).doing(failed)?;
    let mut vigil = Vigil::over(known, &stream);
    let mut client = vigil::asked(&vigil, stream, &Request::Show { path, version }).doing(failed)?;
    let mut out = io::stdout().lock();
    loop {
        match vigil::next(&mut client, &mut vigil).doing(failed)? {
            Event::Chunk { bytes } => written(out.write_all(&bytes)).doing(failed)?,
            Event::Done => {
                written(out.flush()).doing(failed)?;
                return Ok(0);
            }
            Event::Failed(failure) => return Err(Failure::from(failure).doing(failed())),
            _ => return Err(Failure::from(ClientError::NotUnderstood).doing(failed())),
        }
    }
}

fn show_ours(path: &Path) -> Result<u8, Failure> {
    let mut file = std::fs::File::open(path).map_err(Failure::new)?;
    let mut out = io::stdout().lock();
    written(io::copy(&mut file, &mut out).and_then(|_| out.flush()))?;
    Ok(0)
}

fn written(done: io::Result<()>) -> Result<(), Failure> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::nobody_reads()),
        done => done.map_err(Failure::new),
    }
}

/// A path whose last part need not be there, and is not followed: it may have been removed here.
///
/// # Errors
/// As [`find::real`].
pub fn real_entry(path: &Path) -> Result<PathBuf, Failure> {
    match (path.parent(), path.file_name()) {
        (Some(dir), Some(name)) => {
            let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
            Ok(find::real(dir)?.join(name))
        }
        _ => find::real(path),
    }
}

fn ask(known: &Known, stream: UnixStream, request: &Request) -> Result<Event, Failure> {
    let mut vigil = Vigil::over(known, &stream);
    let mut client = vigil::asked(&vigil, stream, request)?;
    match vigil::next(&mut client, &mut vigil)? {
        Event::Failed(failure) => Err(failure.into()),
        event => Ok(event),
    }
}
