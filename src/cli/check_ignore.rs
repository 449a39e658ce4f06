//! `oxenfs check-ignore`.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use super::args::CheckIgnoreArgs;
use super::done;
use super::failure::{Doing, FAILED, Failure, quoted};
use super::find::Finder;
use super::output::{data, json, printable};
use super::resolve::real_entry;
use super::sync::inside;
use super::vigil::{self, Vigil};
use crate::control::client::ClientError;
use crate::control::{Event, Request};
use crate::mount::state_dir::Known;
use crate::report::IgnoredBy;

/// `oxenfs check-ignore`: one request a mount, with all its paths.
pub fn check_ignore(args: CheckIgnoreArgs, finder: &Finder) -> Result<u8, Failure> {
    // By mount, the paths as the daemon names them, and which of the arguments each is.
    let mut mounts: BTreeMap<PathBuf, Vec<(usize, String)>> = BTreeMap::new();
    for (at, path) in args.paths.iter().enumerate() {
        let failed = || format!("cannot check {}", quoted(path));
        let real = real_entry(path).doing(failed)?;
        let (known, _) = finder.running(&real).doing(failed)?;
        let root = &known.meta.identity.mountpoint;
        let mut below = inside(&real, root).doing(failed)?;
        if path.as_os_str().as_bytes().ends_with(b"/") {
            below.push('/');
        }
        mounts.entry(root.clone()).or_default().push((at, below));
    }
    let mut found: Vec<Option<IgnoredBy>> = vec![None; args.paths.len()];
    for (root, paths) in mounts {
        let failed = || format!("cannot check paths of {}", quoted(&root));
        let (known, stream) = finder.running(&root).doing(failed)?;
        let (places, paths): (Vec<usize>, Vec<String>) = paths.into_iter().unzip();
        for (place, why) in places.into_iter().zip(ask(known, stream, paths).doing(failed)?) {
            found[place] = why;
        }
    }
    let any = found.iter().any(Option::is_some);
    let checked = args.paths.iter().zip(found);
    if args.json {
        let checked = checked.map(|(path, by)| done::Checked { path: path.to_string_lossy().into_owned(), by });
        json(&checked.collect::<Vec<_>>(), true)?;
    } else {
        for (path, why) in checked.filter_map(|(path, why)| Some((path, why?))) {
            let path = path.to_string_lossy();
            let path = printable(&path);
            match args.verbose {
                true => {
                    let line = why.line.map(|line| line.to_string()).unwrap_or_default();
                    data(&format!("{}:{line}:{}  {path}", printable(&why.source), printable(&why.pattern)))?;
                }
                false => data(&path)?,
            }
        }
    }
    Ok(if any { 0 } else { FAILED })
}

fn ask(known: &Known, stream: UnixStream, paths: Vec<String>) -> Result<Vec<Option<IgnoredBy>>, Failure> {
    let mut vigil = Vigil::over(known, &stream);
    let mut client = vigil::asked(&vigil, stream, &Request::CheckIgnore { paths })?;
    match vigil::next(&mut client, &mut vigil)? {
        Event::Ignored { by } => Ok(by),
        Event::Failed(failure) => Err(failure.into()),
        _ => Err(ClientError::NotUnderstood.into()),
    }
}
