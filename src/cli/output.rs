//! Where words go: data to standard output, everything else to standard error; neither ever panics.

use std::io::{self, Write};

use serde::Serialize;

use super::failure::Failure;
use crate::config::OxenUrl;
pub use crate::control::words::{are, bytes, changes_are, count, takes_along, thousands};
pub use crate::log::printable;
use crate::log::{printable_json, printable_lines};
use crate::report::Counts;

/// Writes data to standard output, with a newline; what else a terminal would obey is escaped.
///
/// # Errors
/// [`Failure::nobody_reads`] when the reader is gone.
pub fn data(text: &str) -> Result<(), Failure> {
    verbatim(&printable_lines(text))
}

/// Writes JSON to standard output, on one line or on several.
///
/// # Errors
/// As [`data`].
pub fn json(value: &impl Serialize, pretty: bool) -> Result<(), Failure> {
    let text = if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
    verbatim(&printable_json(&text.map_err(Failure::new)?))
}

/// Writes text of our own to standard output, byte for byte, with a newline.
///
/// # Errors
/// As [`data`].
pub fn verbatim(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::nobody_reads()),
        Err(error) => Err(Failure::new(error).doing("cannot write to standard output")),
    }
}

/// Tells the user something, in one line.
pub fn note(text: impl std::fmt::Display) {
    // Nothing can be done, and nothing need be, when standard error is closed.
    let _ = writeln!(io::stderr(), "{}", printable(&text.to_string()));
}

/// Tells the user something that brings its own newlines. A value in it that may hold one is made [`printable`] before.
pub fn note_exact(text: impl std::fmt::Display) {
    let _ = write!(io::stderr(), "{}", printable_lines(&text.to_string()));
}

/// Warns the user.
pub fn warn(text: impl std::fmt::Display) {
    note(format_args!("warning: {text}"));
}

/// A REPO argument as it may be shown: what stands before an `@` in it could be a password.
pub fn without_credentials(repo: &str) -> String {
    // There it stands before a revision.
    if let Some(Ok(_)) = OxenUrl::parse(repo) {
        return printable(repo).into_owned();
    }
    match repo.rsplit_once('@') {
        Some((_, rest)) => format!("...@{}", printable(rest)),
        None => printable(repo).into_owned(),
    }
}

/// What of the changes that the server lacks is not on this disk, behind words that say the rest is.
pub fn all_but(counts: &Counts) -> String {
    match counts.absent.files {
        0 => String::new(),
        files => format!(", but for the bytes of {}, which the server alone had", count(files, "file")),
    }
}

/// `14 s`, `3 min 20 s`, `2 h 5 min`, `4 d 1 h`.
pub fn seconds(number: u64) -> String {
    match number {
        0..60 => format!("{number} s"),
        60..3600 => format!("{} min {} s", number / 60, number % 60),
        3600..86400 => format!("{} h {} min", number / 3600, number % 3600 / 60),
        _ => format!("{} d {} h", number / 86400, number % 86400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_for_people() {
        assert_eq!(seconds(200), "3 min 20 s");
        assert_eq!(seconds(7500), "2 h 5 min");
    }

    #[test]
    fn what_may_be_a_password_is_not_shown() {
        assert_eq!(without_credentials("http://u:p@h/ox/cats"), "...@h/ox/cats");
        assert_eq!(without_credentials("oxen://u:p@h:1/ox/cats"), "oxen://u:p@h:1/ox/cats");
        assert_eq!(without_credentials("oxen://p@h/ox/cats"), "...@h/ox/cats");
        assert_eq!(without_credentials("ox/cats"), "ox/cats");
    }
}
