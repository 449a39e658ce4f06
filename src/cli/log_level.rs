//! `oxenfs log-level`.

use std::time::Duration;

use super::args::LogLevelArgs;
use super::failure::{Doing, Failure, quoted};
use super::find::{self, Finder};
use super::output::{data, note, printable};
use crate::config::ConfigError;
use crate::control::client::{Client, ClientError, Next};
use crate::control::{Event, Request};
use crate::log::Filter;

/// How long a daemon may take: it answers from memory.
const PATIENCE: Duration = Duration::from_secs(10);

/// `oxenfs log-level`: prints what is logged, or changes it until the mount ends.
pub fn log_level(args: LogLevelArgs, finder: &Finder) -> Result<u8, Failure> {
    let what = match args.level {
        None => format!("cannot show what {} logs", quoted(&args.dir)),
        Some(_) => format!("cannot change what {} logs", quoted(&args.dir)),
    };
    let level = args.level.as_deref().map(checked).transpose().doing(|| &what)?;
    let set = level.is_some();
    let (_, stream) = find::real(&args.dir).and_then(|dir| finder.running(&dir)).doing(|| &what)?;
    let now = ask(stream, level).doing(|| &what)?;
    if set {
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

fn ask(stream: std::os::unix::net::UnixStream, level: Option<String>) -> Result<String, Failure> {
    let mut client = Client::ask(stream, &Request::LogLevel { level })?;
    match client.next(PATIENCE)? {
        Next::Event(Event::LogLevel { level }) => Ok(level),
        Next::Event(Event::Failed(failure)) => Err(failure.into()),
        Next::Event(_) => Err(ClientError::NotUnderstood.into()),
        Next::Nothing => {
            Err(Failure::new(format_args!("the mount's daemon did not answer within {} s", PATIENCE.as_secs())))
        }
    }
}
