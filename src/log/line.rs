//! One event as one line.

use std::borrow::Cow;
use std::fmt::{Debug, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::{Event, Level};

use super::{hide, printable};

/// A longer line is cut: the longest path takes 4 KiB.
const LINE_BYTES: usize = 16 << 10;

/// `TARGET: MESSAGE KEY=VALUE ...`, safe to show.
pub(super) fn body(event: &Event<'_>) -> String {
    let mut fields = Fields::default();
    event.record(&mut fields);
    said(event.metadata().target(), &fields.message, &fields.rest)
}

/// The same of words that were no event.
pub(super) fn said(target: &str, message: &str, rest: &str) -> String {
    let mut body = format!("{target}: {}{rest}", safe(message));
    if body.len() > LINE_BYTES {
        let end = (0..=LINE_BYTES).rev().find(|at| body.is_char_boundary(*at)).unwrap_or(0);
        body.truncate(end);
        body.push_str("...");
    }
    body
}

/// The whole line: with the time, or, where `plain`, with the priority that systemd's journal takes.
pub(super) fn whole(level: Level, body: &str, at: SystemTime, plain: bool) -> String {
    if plain {
        let priority = match level {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        return format!("<{priority}>{body}\n");
    }
    format!("{} {level:>5} {body}\n", timestamp(at))
}

fn safe(text: &str) -> Cow<'_, str> {
    match hide(text) {
        Cow::Borrowed(text) => printable(text),
        Cow::Owned(text) => Cow::Owned(printable(&text).into_owned()),
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    /// The others, each with a space before it.
    rest: String,
}

impl Fields {
    fn add(&mut self, name: &str, value: &str) {
        if name == "message" {
            value.clone_into(&mut self.message);
            return;
        }
        let value = safe(value);
        let wants_quotes = value.is_empty() || value.contains([' ', '"', '=']);
        // Into a string: cannot fail.
        let _ = if wants_quotes && !is_quoted(&value) {
            write!(self.rest, " {name}=\"{}\"", value.replace('"', "\\\""))
        } else {
            write!(self.rest, " {name}={value}")
        };
    }
}

/// Whether it is one quoted text, as `Debug` writes strings.
fn is_quoted(value: &str) -> bool {
    let Some(inner) = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else { return false };
    let mut escaped = false;
    for char in inner.chars() {
        if char == '"' && !escaped {
            return false;
        }
        escaped = char == '\\' && !escaped;
    }
    !escaped
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field.name(), value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.add(field.name(), &format!("{value:?}"));
    }
}

/// UTC, to the millisecond: `2026-11-29T20:06:24.123Z`.
fn timestamp(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}.{:03}Z", crate::calendar::utc(since.as_secs()), since.subsec_millis())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_are_those_of_utc() {
        let at = |secs: u64, millis| timestamp(UNIX_EPOCH + Duration::from_millis(secs * 1000 + millis));
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(951_782_399, 999), "2000-02-28T23:59:59.999Z");
        assert_eq!(at(951_782_400, 7), "2000-02-29T00:00:00.007Z");
        assert_eq!(at(1_795_982_784, 123), "2026-11-29T20:06:24.123Z");
        assert_eq!(timestamp(UNIX_EPOCH - Duration::from_secs(1)), "1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn a_line_says_when_how_grave_where_and_what() {
        let body = said("oxenfs::writeback", "staging\npauses", " why=away");
        assert_eq!(
            whole(Level::WARN, &body, UNIX_EPOCH, false),
            "1970-01-01T00:00:00.000Z  WARN oxenfs::writeback: staging\\npauses why=away\n"
        );
        for (level, begin) in [(Level::ERROR, "<3>"), (Level::WARN, "<4>"), (Level::INFO, "<6>"), (Level::TRACE, "<7>")]
        {
            assert_eq!(whole(level, "oxenfs: said", UNIX_EPOCH, true), format!("{begin}oxenfs: said\n"));
        }
    }

    #[test]
    fn values_are_told_apart_and_made_safe() {
        let mut fields = Fields::default();
        fields.add("message", "not staged");
        fields.add("path", "a b\u{1b}[31m\u{202e}.txt");
        fields.add("error", "said \"no\"");
        fields.add("shown", "\"a b\"");
        fields.add("forged", "\"a\" error=\"b\"");
        fields.add("empty", "");
        fields.add("count", "3");
        assert_eq!(fields.message, "not staged");
        assert_eq!(
            fields.rest,
            " path=\"a b\\u{1b}[31m\\u{202e}.txt\" error=\"said \\\"no\\\"\" shown=\"a b\" \
             forged=\"\\\"a\\\" error=\\\"b\\\"\" empty=\"\" count=3"
        );
    }

    #[test]
    fn a_line_has_an_end() {
        let body = said("oxenfs", &"é".repeat(LINE_BYTES), "");
        assert!(body.len() <= LINE_BYTES + 3 && body.ends_with("é..."));
    }
}
