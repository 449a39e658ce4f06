//! What is logged: a level for all, and levels for single modules.

use std::fmt;
use std::str::FromStr;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;

/// The level unless somebody asks for another.
const DEFAULT: &str = "info";

/// A checked list of levels, `info` or `warn,oxenfs::oxen=debug`. Its text always begins with the level for all; more
/// than `info` of libraries is let through where they are named, as in `debug,hyper_util=debug`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    level: LevelFilter,
    targets: Vec<(String, LevelFilter)>,
}

impl Default for Filter {
    fn default() -> Self {
        Self { level: LevelFilter::INFO, targets: Vec::new() }
    }
}

/// A text that says no levels.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not {expected}", expected = Filter::EXPECTED)]
pub struct FilterError(String);

impl Filter {
    /// What a text must be to be taken.
    pub const EXPECTED: &'static str = "error, warn, info, debug, trace, or a list such as warn,oxenfs::oxen=debug";

    pub(super) fn targets(&self) -> Targets {
        let others = self.level.min(LevelFilter::INFO);
        let all = Targets::new().with_default(others).with_target("oxenfs", self.level);
        all.with_targets(self.targets.clone())
    }
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        let wrong = || FilterError(text.to_owned());
        let mut level = None;
        let mut targets = Vec::new();
        for part in text.split(',').map(str::trim) {
            match part.split_once('=') {
                // Of a module alone, `tracing` would take all: a level with a typing error would be a module.
                None if level.is_none() => level = Some(one_level(part).ok_or_else(wrong)?),
                Some((target, of_it)) if is_target(target) => {
                    targets.push((target.to_owned(), one_level(of_it).ok_or_else(wrong)?));
                }
                _ => return Err(wrong()),
            }
        }
        Ok(Self { level: level.or_else(|| one_level(DEFAULT)).ok_or_else(wrong)?, targets })
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.level)?;
        self.targets.iter().try_for_each(|(target, level)| write!(f, ",{target}={level}"))
    }
}

fn one_level(word: &str) -> Option<LevelFilter> {
    // Numbers, which the library takes as well, say nothing to people.
    if word.is_empty() || !word.chars().all(|char| char.is_ascii_alphabetic()) {
        return None;
    }
    word.parse().ok()
}

fn is_target(text: &str) -> bool {
    let is_name = |name: &str| {
        !name.is_empty() && name.chars().all(|char| char.is_ascii_alphanumeric() || matches!(char, '_' | '-'))
    };
    text.split("::").all(is_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_lists_are_taken_and_shown_whole() {
        for (text, shown) in [
            ("info", "info"),
            ("TRACE", "trace"),
            (" warn , oxenfs::oxen=debug", "warn,oxenfs::oxen=debug"),
            ("oxenfs::writeback=debug", "info,oxenfs::writeback=debug"),
            ("oxenfs::writeback=off,error", "error,oxenfs::writeback=off"),
        ] {
            let filter: Filter = text.parse().unwrap();
            assert_eq!(filter.to_string(), shown);
            assert_eq!(filter.to_string().parse(), Ok(filter));
        }
        assert_eq!(Filter::default().to_string(), DEFAULT);
    }

    #[test]
    fn what_says_no_level_is_refused() {
        for wrong in
            ["", "loud", "5", "info,", "info,debug", "=debug", "a=", "a=3", "a b=info", "[request]=debug", "oxenfs"]
        {
            let error = wrong.parse::<Filter>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{wrong:?} is not error, warn, info")), "{error}");
        }
    }

    #[test]
    fn a_list_lets_through_what_it_says() {
        let targets = "warn,oxenfs::oxen=debug".parse::<Filter>().unwrap().targets();
        assert!(targets.would_enable("oxenfs::oxen::http", &tracing::Level::DEBUG));
        assert!(!targets.would_enable("oxenfs::oxen::http", &tracing::Level::TRACE));
        assert!(!targets.would_enable("oxenfs::writeback", &tracing::Level::INFO));
        assert!(targets.would_enable("oxenfs::writeback", &tracing::Level::WARN));
        let targets = "trace,hyper_util=debug".parse::<Filter>().unwrap().targets();
        assert!(targets.would_enable("oxenfs::oxen::http", &tracing::Level::TRACE));
        assert!(targets.would_enable("hyper_util::client", &tracing::Level::DEBUG));
        assert!(targets.would_enable("another", &tracing::Level::INFO));
        assert!(!targets.would_enable("another", &tracing::Level::DEBUG));
    }
}
