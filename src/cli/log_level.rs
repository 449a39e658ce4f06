//! `oxenfs log-level`.

use std::os::unix::net::UnixStream;

use super::args::LogLevelArgs;
use super::done;
use super::failure::{Doing, Failure, quoted};
use super::find::{self, Finder};
use super::output::{data, json, note, printable};
use super::vigil::{self, Vigil};
use crate::config::ConfigError;
use crate::control::client::ClientError;
use crate::control::{Event, Request};
use crate::log::Filter;
use crate::mount::state_dir::Known;

/// `oxenfs log-level`: prints what is logged, or changes it until the mount ends.
pub fn log_level(args: LogLevelArgs, finder: &Finder) -> Result<u8, Failure> {
    let what = match args.level {
        None => format!("cannot show what {} logs", quoted(&args.dir)),
        Some(_) => format!("cannot change what {} logs", quoted(&args.dir)),
    };
    let level = args.level.as_deref().map(checked).transpose().doing(|| &what)?;
    let set = level.is_some();
    let (known, stream) = find::real(&args.dir).and_then(|dir| finder.running(&dir)).doing(|| &what)?;
    let now = ask(known, stream, level).doing(|| &what)?;
    if args.json {
        json(&done::Level { level: now }, false)?;
    } else if set {
        note(format_args!("{} logs {} from now on", quoted(&args.dir), now));
    } else {
        data(&printable(&now))?;
    }
    Ok(0)
}

fn checked(level: &str) -> Result<String, ConfigError> {
    let wrong = |_| ConfigError::Invalid { what: "LEVEL", value: level.to_owned(), expected: Filter::EXPECTED };
    level.parse::<Filter>().map(|filter| filter.to_string()).map_err(wrong)
}

fn ask(known: &Known, stream: UnixStream, level: Option<String>) -> Result<String, Failure> {
    let mut vigil = Vigil::over(known, &stream);
    let mut client = vigil::asked(&vigil, stream, &Request::LogLevel { level })?;
    match vigil::next(&mut client, &mut vigil)? {
        Event::LogLevel { level } => Ok(level),
        Event::Failed(failure) => Err(failure.into()),
        _ => Err(ClientError::NotUnderstood.into()),
    }
}
