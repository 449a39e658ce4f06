//! `oxenfs warm`.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use super::args::WarmArgs;
use super::failure::{Doing, Failure, quoted};
use super::find::{Finder, connect};
use super::interrupt;
use super::output::{bytes, count, note, printable, thousands};
use super::progress::Meter;
use super::vigil::{self, Vigil};
use crate::control::client::{ClientError, Next};
use crate::control::{Event, Request, Warm, Warmed};
use crate::mount::preflight;
use crate::mount::state_dir::Known;

/// How often Ctrl-C is looked at.
const TICK: Duration = Duration::from_millis(200);
/// Paths of one request, in bytes: a daemon takes a few times as much.
const REQUEST_BYTES: usize = 4 << 20;
/// The longest list.
const LIST_BYTES: u64 = 1 << 30;
/// Files that are named one by one.
const SHOWN: usize = 20;

/// `oxenfs warm`.
pub fn warm(args: WarmArgs, finder: &Finder) -> Result<u8, Failure> {
    let how = match (args.check, args.evict) {
        (true, _) => Warm::Check,
        (_, true) => Warm::Evict,
        _ => Warm::Fetch,
    };
    let what = match how {
        Warm::Fetch => "cannot fetch all into the cache",
        Warm::Check => "cannot look at all in the cache",
        Warm::Evict => "cannot remove all from the cache",
    };
    let mut paths = args.paths;
    if let Some(list) = &args.list {
        paths.extend(listed(list).doing(|| what)?);
    }
    let mounts = below_mounts(paths, finder).doing(|| what)?;
    interrupt::catch();
    let mut all_well = true;
    for (known, paths) in mounts.into_values() {
        let mut done = Warmed::default();
        for paths in portions(paths) {
            let stream = connect(known).doing(|| what)?.ok_or(ClientError::HungUp).doing(|| what)?;
            let some = ask(known, stream, paths, how).doing(|| what)?;
            done.files += some.files;
            done.bytes += some.bytes;
            done.changed_files += some.changed_files;
            done.changed_bytes += some.changed_bytes;
            done.failed_files += some.failed_files;
            done.failed.extend(some.failed);
        }
        for one in done.failed.iter().take(SHOWN) {
            note(format_args!("{}: {}", printable(&one.path), printable(&one.reason)));
        }
        all_well &= done.failed_files == 0;
        note(summary(&done, how, known));
    }
    match (all_well, how) {
        (true, _) => Ok(0),
        (false, Warm::Fetch) => Err(Failure::new("some files could not be fetched").hint("oxenfs status")),
        (false, Warm::Check) => Err(Failure::new("some files are not in the cache, or were altered there")
            .hint("fetch them: oxenfs warm without --check")),
        (false, Warm::Evict) => Err(Failure::new("some files stay in the cache")),
    }
    .map_err(|failure| failure.doing(what))
}

/// The lines of a list, from standard input where it is called `-`.
fn listed(list: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut text = Vec::new();
    let read = match list.as_os_str() == "-" {
        true => std::io::stdin().lock().take(LIST_BYTES).read_to_end(&mut text),
        false => std::fs::File::open(list).and_then(|file| file.take(LIST_BYTES).read_to_end(&mut text)),
    };
    read.map_err(|error| Failure::new(format_args!("cannot read {}: {error}", quoted(list))))?;
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    Ok(lines.map(|line| PathBuf::from(std::ffi::OsStr::from_bytes(line))).collect())
}

/// Each mount that is meant, with the paths on it as its daemon names them. No mount is asked anything: with many paths
/// that would take as many requests.
fn below_mounts(paths: Vec<PathBuf>, finder: &Finder) -> Result<BTreeMap<PathBuf, (&Known, Vec<String>)>, Failure> {
    let here = preflight::resolve_up_to_mounts(Path::new(".")).map_err(Failure::new)?;
    let mut mounts: BTreeMap<PathBuf, (&Known, Vec<String>)> = BTreeMap::new();
    for path in paths {
        let plain = plain(&here.join(&path));
        let (known, real) = match finder.above(&plain) {
            Some(known) => (known, plain),
            None => {
                let real = preflight::resolve_up_to_mounts(&path).map_err(Failure::new)?;
                let Some(known) = finder.above(&real) else {
                    let failure = Failure::new(format_args!("no oxenfs mount is at {}", quoted(&path)));
                    return Err(failure.hint("oxenfs status lists the mounts"));
                };
                (known, real)
            }
        };
        let root = &known.meta.identity.mountpoint;
        let below = real.strip_prefix(root).map_err(Failure::new)?;
        let Some(below) = below.to_str() else {
            let cause = format!("the name of {} is not UTF-8: no server has it", quoted(&path));
            return Err(Failure::new(cause));
        };
        mounts.entry(root.clone()).or_insert_with(|| (known, Vec::new())).1.push(below.to_owned());
    }
    Ok(mounts)
}

/// A path from the root without `.` and `..`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => drop(plain.pop()),
            part => plain.push(part),
        }
    }
    plain
}

/// Cut into what fits in a request. The whole mount makes all else needless.
fn portions(paths: Vec<String>) -> Vec<Vec<String>> {
    if paths.iter().any(String::is_empty) {
        return vec![vec![String::new()]];
    }
    let (mut portions, mut length) = (vec![Vec::new()], 0);
    for path in paths {
        if length + path.len() > REQUEST_BYTES {
            portions.push(Vec::new());
            length = 0;
        }
        length += path.len();
        if let Some(last) = portions.last_mut() {
            last.push(path);
        }
    }
    portions
}

fn ask(known: &Known, stream: UnixStream, paths: Vec<String>, how: Warm) -> Result<Warmed, Failure> {
    let mut vigil = Vigil::over(known, &stream);
    let mut client = vigil::asked(&vigil, stream, &Request::Warm { paths, how })?;
    let mut meter = Meter::new("");
    let outcome = loop {
        if interrupt::seen() {
            break Err(Failure::new("interrupted").hint("repeat the command: it goes on"));
        }
        match client.next(TICK) {
            Ok(Next::Nothing) => {
                if let Err(failure) = vigil.check() {
                    break Err(failure);
                }
            }
            Ok(Next::Event(event)) => {
                vigil.heard();
                match event {
                    Event::Progress(progress) => meter.update(progress),
                    Event::Warmed(done) => break Ok(done),
                    Event::Failed(refusal) => break Err(refusal.into()),
                    _ => break Err(ClientError::NotUnderstood.into()),
                }
            }
            Err(error) => break Err(error.into()),
        }
    };
    meter.clear();
    outcome
}

fn summary(done: &Warmed, how: Warm, known: &Known) -> String {
    let dir = quoted(&known.meta.identity.mountpoint);
    let all = format!("{}, {}", count(done.files, "file"), bytes(done.bytes));
    let failed = match done.failed_files {
        0 => String::new(),
        files => format!(", but for {}", thousands(files)),
    };
    match how {
        Warm::Fetch => {
            let fetched = format!("{}, {} fetched", thousands(done.changed_files), bytes(done.changed_bytes));
            format!("{dir}: {all} are here{failed} ({fetched})")
        }
        Warm::Check => format!("{dir}: {all} are here, whole{failed}"),
        Warm::Evict => {
            format!(
                "{dir}: removed {}, {} from the cache",
                count(done.changed_files, "file"),
                bytes(done.changed_bytes)
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_is_asked_for_in_portions() {
        let paths = |number: usize| (0..number).map(|at| format!("{at:0>1000}")).collect::<Vec<_>>();
        assert_eq!(portions(paths(3)), [paths(3)]);
        let many = portions(paths(10_000));
        assert_eq!(many.len(), 3);
        assert_eq!(many.concat(), paths(10_000));
        assert_eq!(portions(vec!["a".into(), String::new()]), [[""]]);
    }

    #[test]
    fn a_path_is_read_without_asking_anybody() {
        assert_eq!(plain(Path::new("/a/./b/../c//d/")), Path::new("/a/c/d"));
        assert_eq!(plain(Path::new("/../a")), Path::new("/a"));
    }
}
