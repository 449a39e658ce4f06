//! The settings that a file, the environment and the command line all know, under one name each.

use super::{ConfigError, Environment, checked_branch, checked_workspace, values};
use crate::log::Filter;
use crate::path::RepoPath;

/// In which sections of a file a setting may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// In all.
    Anywhere,
    /// Not for a server: it names one.
    NotServer,
    /// Only for one server, or a repository on one: it is shown to that and to no other.
    OneServer,
    /// Only for a repository: two of them could not share it.
    Repository,
}

/// How a value is written in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A string.
    Text,
    /// A string or a decimal number.
    Number,
    /// `true` or `false`.
    Switch,
    /// A string, or a list of them, each on a line of its own.
    Lines,
}

/// A setting.
#[derive(Debug)]
pub struct Key {
    /// In files and in `-o`; with `--` before it on the command line.
    pub name: &'static str,
    /// The environment variable.
    pub variable: &'static str,
    /// How it is written in a file.
    pub form: Form,
    /// Where it may stand in a file.
    pub scope: Scope,
    /// What holds where nobody says anything; `None`: that depends, or nothing does.
    pub default: Option<&'static str>,
    /// Whether a value will do; the error names what is given first.
    pub check: fn(&'static str, &str) -> Result<(), ConfigError>,
}

const fn key(
    name: &'static str,
    variable: &'static str,
    form: Form,
    scope: Scope,
    default: Option<&'static str>,
    check: fn(&'static str, &str) -> Result<(), ConfigError>,
) -> Key {
    Key { name, variable, form, scope, default, check }
}

/// All of them, in the order in which they are shown.
pub static KEYS: [Key; 23] = [
    key("server", "OXEN_SERVER", Form::Text, Scope::NotServer, None, |what, text| {
        super::ServerUrl::parse(what, text).map(drop)
    }),
    key("token-file", "OXEN_API_KEY_FILE", Form::Text, Scope::OneServer, None, values::place),
    key("branch", "OXENFS_BRANCH", Form::Text, Scope::Anywhere, Some("main"), |what, text| {
        checked_branch(text).map(drop).map_err(|error| named(what, error))
    }),
    key("workspace", "OXENFS_WORKSPACE", Form::Text, Scope::Repository, None, |what, text| {
        checked_workspace(text).map(drop).map_err(|error| named(what, error))
    }),
    key("subdir", "OXENFS_SUBDIR", Form::Text, Scope::Repository, None, |what, text| match RepoPath::parse(text) {
        Ok(_) => Ok(()),
        Err(_) => Err(ConfigError::Invalid { what, value: text.to_owned(), expected: "a path inside the repository" }),
    }),
    key("read-only", "OXENFS_READ_ONLY", Form::Switch, Scope::Anywhere, Some("false"), switch),
    key("state-dir", "OXENFS_STATE_DIR", Form::Text, Scope::Anywhere, None, values::place),
    key("spool-limit", "OXENFS_SPOOL_LIMIT", Form::Number, Scope::Anywhere, Some("0"), size),
    key("cache-limit", "OXENFS_CACHE_LIMIT", Form::Number, Scope::Anywhere, Some("10G"), size),
    key("fsync", "OXENFS_FSYNC", Form::Text, Scope::Anywhere, Some("local"), |what, text| {
        values::fsync(what, text).map(drop)
    }),
    key("write-through", "OXENFS_WRITE_THROUGH", Form::Switch, Scope::Anywhere, Some("false"), switch),
    key("settle", "OXENFS_SETTLE", Form::Number, Scope::Anywhere, Some("1s"), time),
    key("drain-timeout", "OXENFS_DRAIN_TIMEOUT", Form::Number, Scope::Anywhere, Some("20s"), time),
    key("read-timeout", "OXENFS_READ_TIMEOUT", Form::Number, Scope::Anywhere, Some("120s"), time),
    key("refresh", "OXENFS_REFRESH", Form::Number, Scope::Anywhere, Some("look:60s"), |what, text| {
        values::refresh(what, text).map(drop)
    }),
    key("ignore", "OXENFS_IGNORE", Form::Lines, Scope::Anywhere, None, |what, text| {
        values::patterns(what, text).map(drop)
    }),
    key("passthrough", "OXENFS_PASSTHROUGH", Form::Text, Scope::Anywhere, Some("auto"), |what, text| {
        values::passthrough(what, text).map(drop)
    }),
    key("keep-awake", "OXENFS_KEEP_AWAKE", Form::Text, Scope::Anywhere, Some("auto"), |what, text| {
        values::keep_awake(what, text).map(drop)
    }),
    key("allow-other", "OXENFS_ALLOW_OTHER", Form::Switch, Scope::Anywhere, Some("false"), switch),
    key("noexec", "OXENFS_NOEXEC", Form::Switch, Scope::Anywhere, Some("false"), switch),
    key("umask", "OXENFS_UMASK", Form::Text, Scope::Anywhere, Some("022"), |what, text| {
        values::umask(what, text).map(drop)
    }),
    key("metrics", "OXENFS_METRICS", Form::Text, Scope::Repository, None, |what, text| {
        values::address(what, text).map(drop)
    }),
    key("log", "OXENFS_LOG", Form::Text, Scope::Anywhere, Some("info"), |what, text| match text.parse::<Filter>() {
        Ok(_) => Ok(()),
        Err(_) => Err(ConfigError::Invalid { what, value: text.to_owned(), expected: Filter::EXPECTED }),
    }),
];

fn switch(what: &'static str, text: &str) -> Result<(), ConfigError> {
    values::switch(what, text).map(drop)
}

fn size(what: &'static str, text: &str) -> Result<(), ConfigError> {
    values::bytes(what, text).map(drop)
}

fn time(what: &'static str, text: &str) -> Result<(), ConfigError> {
    values::time(what, text).map(drop)
}

/// The error of a value, about the place it was given at.
fn named(place: &'static str, error: ConfigError) -> ConfigError {
    match error {
        ConfigError::Invalid { value, expected, .. } => ConfigError::Invalid { what: place, value, expected },
        other => other,
    }
}

impl Key {
    /// The one of this name, which may have `_` for `-` as mount options may.
    pub fn find(name: &str) -> Option<&'static Self> {
        KEYS.iter().find(|key| key.name == name.replace('_', "-"))
    }

    /// What the environment says; not yet checked.
    pub fn in_environment<'a>(&self, environment: &'a Environment) -> Option<&'a str> {
        match self.name {
            "server" => environment.server.as_deref(),
            "log" => environment.log.as_deref(),
            name => environment.settings.get(name).map(String::as_str),
        }
    }
}
