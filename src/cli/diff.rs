//! `oxenfs diff`.

use std::fmt::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::args::DiffArgs;
use super::failure::{Doing, Failure, quoted};
use super::find::{self, Finder, connect};
use super::output::{bytes, count, data, json, note, printable, takes_along, thousands};
use super::seams;
use super::vigil::{self, Vigil};
use crate::control::client::ClientError;
use crate::control::{Event, Request};
use crate::mount::state_dir::Known;
use crate::report::{Difference, Kind, TakenAlong};

/// `oxenfs diff`. Works without a daemon too.
pub fn diff(args: DiffArgs, finder: &Finder) -> Result<u8, Failure> {
    let failed = || format!("cannot show what differs in {}", quoted(&args.dir));
    let real = find::real(&args.dir).doing(failed)?;
    let Some(known) = finder.above(&real) else {
        let failure = Failure::new("no oxenfs mount is there").hint("oxenfs status lists the mounts");
        return Err(failure.doing(failed()));
    };
    let mut found = match connect(known).doing(failed)? {
        Some(stream) => ask(known, stream).doing(failed)?,
        None => seams::offline_differences(&known.path).doing(failed)?,
    };
    let below = real.strip_prefix(&known.meta.identity.mountpoint).unwrap_or(Path::new(""));
    found.retain(|difference| is_below(difference, known, below));
    if args.json {
        json(&found, true)?;
    } else if !found.is_empty() {
        data(lines(&found).trim_end())?;
    }
    note(summary(&found));
    Ok(0)
}

fn ask(known: &Known, stream: UnixStream) -> Result<Vec<Difference>, Failure> {
    let mut vigil = Vigil::over(known, &stream);
    let mut client = vigil::asked(&vigil, stream, &Request::Diff)?;
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

/// Whether a difference lies at or below a path of the mount; a rename counts at both of its ends.
fn is_below(difference: &Difference, known: &Known, below: &Path) -> bool {
    let root = match difference.kind {
        Kind::Local => Path::new(""),
        _ => Path::new(&known.meta.identity.subdir),
    };
    let dir = root.join(below);
    [Some(&difference.path), difference.from.as_ref()]
        .into_iter()
        .flatten()
        .any(|path| Path::new(path).starts_with(&dir))
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Added => "added",
        Kind::Modified => "modified",
        Kind::Removed => "removed",
        Kind::Renamed => "renamed",
        Kind::Local => "local",
    }
}

/// One line each: what, where it is, how large, which path.
fn lines(found: &[Difference]) -> String {
    let mut text = String::new();
    for difference in found {
        let path = printable(&difference.path);
        let place = match difference.kind {
            Kind::Local => "",
            _ if difference.others => "others'",
            _ if difference.staged => "staged",
            _ => "to send",
        };
        let size = match difference.kind {
            Kind::Local => String::new(),
            _ => bytes(difference.bytes),
        };
        let _ = write!(text, "{:<9} {place:<8} {size:>10}  ", word(difference.kind));
        let _ = match (&difference.from, &difference.reason) {
            (Some(from), _) => writeln!(text, "{} -> {path}", printable(from)),
            (_, Some(reason)) => writeln!(text, "{path} ({})", printable(reason)),
            _ => writeln!(text, "{path}"),
        };
        if let Some(conflict) = &difference.conflict {
            let _ = writeln!(text, "{:<9} {path} {}", "conflict", printable(conflict));
        }
    }
    text
}

fn summary(found: &[Difference]) -> String {
    let of =
        |kind: Kind| found.iter().filter(|difference| difference.kind == kind && !difference.others).count() as u64;
    let kinds = [Kind::Added, Kind::Modified, Kind::Removed, Kind::Renamed];
    let parts: Vec<String> = kinds
        .into_iter()
        .filter(|kind| of(*kind) > 0)
        .map(|kind| format!("{} {}", thousands(of(kind)), word(kind)))
        .collect();
    let mut text = if parts.is_empty() { "nothing to commit".to_owned() } else { parts.join(", ") };
    let to_send = found.iter().filter(|difference| difference.kind != Kind::Local && !difference.staged).count() as u64;
    if to_send > 0 {
        let _ = write!(text, "; {} to send", count(to_send, "change"));
    }
    let others = found.iter().filter(|difference| difference.others).map(|difference| difference.path.clone());
    let others = TakenAlong::of(others);
    if !others.is_none() {
        let _ = write!(text, "; {}", takes_along(&others));
    }
    if of(Kind::Local) > 0 {
        let _ = write!(text, "; {} of which Oxen cannot store all", count(of(Kind::Local), "path"));
    }
    text
}
