//! What the text of a setting means, wherever it stands: on the command line, in `-o`, the environment or a file.

use std::time::Duration;

use ignore::gitignore::GitignoreBuilder;

use super::{Address, ConfigError, FsyncPolicy, Refresh, units};

/// The error of a value; `what` names the setting as the user wrote it.
fn invalid(what: &'static str, text: &str, expected: &'static str) -> ConfigError {
    ConfigError::Invalid { what, value: text.to_owned(), expected }
}

/// What `fsync` waits for.
pub(super) fn fsync(what: &'static str, text: &str) -> Result<FsyncPolicy, ConfigError> {
    match text {
        "local" => Ok(FsyncPolicy::Local),
        "staged" => Ok(FsyncPolicy::Staged),
        _ => Err(invalid(what, text, "local or staged")),
    }
}

/// Whether reads and writes may go past the daemon.
pub(super) fn passthrough(what: &'static str, text: &str) -> Result<bool, ConfigError> {
    match text {
        "auto" => Ok(true),
        "never" => Ok(false),
        _ => Err(invalid(what, text, "auto or never")),
    }
}

/// Whether processors are kept awake; `None` leaves it to the machine.
pub(super) fn keep_awake(what: &'static str, text: &str) -> Result<Option<bool>, ConfigError> {
    match text {
        "auto" => Ok(None),
        "always" => Ok(Some(true)),
        "never" => Ok(Some(false)),
        _ => Err(invalid(what, text, "auto, always or never")),
    }
}

/// What is done about commits of others.
pub(super) fn refresh(what: &'static str, text: &str) -> Result<Refresh, ConfigError> {
    let (look, text_of_time) = match text.strip_prefix("look:") {
        Some(time) => (true, time),
        None => (false, text),
    };
    match (units::parse_duration(text_of_time), look) {
        (Some(time), false) if time.is_zero() => Ok(Refresh::Never),
        (Some(time), false) => Ok(Refresh::Move(time)),
        (Some(time), true) if !time.is_zero() => Ok(Refresh::Look(time)),
        _ => Err(invalid(what, text, "0, a time such as 300 or 10m, or look: and a time")),
    }
}

/// A size.
pub(super) fn bytes(what: &'static str, text: &str) -> Result<u64, ConfigError> {
    units::parse_bytes(text).ok_or_else(|| invalid(what, text, "a size such as 512MiB or 10G"))
}

/// A time.
pub(super) fn time(what: &'static str, text: &str) -> Result<Duration, ConfigError> {
    units::parse_duration(text).ok_or_else(|| invalid(what, text, "a time such as 0.5 or 2s"))
}

/// A user or group.
pub(super) fn id(what: &'static str, text: &str) -> Result<u32, ConfigError> {
    text.parse().map_err(|_| invalid(what, text, "a number"))
}

/// Permission bits that are taken away.
pub(super) fn umask(what: &'static str, text: &str) -> Result<u32, ConfigError> {
    match u32::from_str_radix(text, 8) {
        Ok(mask) if mask <= 0o777 => Ok(mask),
        _ => Err(invalid(what, text, "an octal number from 0 to 777")),
    }
}

/// Where what is measured is served.
pub(super) fn address(what: &'static str, text: &str) -> Result<Address, ConfigError> {
    text.parse().map_err(|()| invalid(what, text, Address::EXPECTED))
}

/// Patterns of a file such as `.gitignore`, one a line.
pub(super) fn patterns(what: &'static str, text: &str) -> Result<Vec<String>, ConfigError> {
    let checked = |line: &str| match GitignoreBuilder::new("").add_line(None, line) {
        Ok(_) => Ok(line.to_owned()),
        Err(_) => Err(invalid(what, line, "a pattern as of .gitignore")),
    };
    text.lines().filter(|line| !line.trim().is_empty()).map(checked).collect()
}

/// Yes or no.
pub(super) fn switch(what: &'static str, text: &str) -> Result<bool, ConfigError> {
    match text {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(invalid(what, text, "true or false")),
    }
}

/// A file or directory, from the root: the daemon's working directory is not the command's.
pub(super) fn place(what: &'static str, text: &str) -> Result<(), ConfigError> {
    match text.starts_with('/') || text.starts_with("~/") {
        true => Ok(()),
        // What is written there by mistake may be a token.
        false => Err(invalid(what, "...", "a path that begins with / or ~/")),
    }
}
