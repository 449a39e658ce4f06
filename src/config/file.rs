//! The configuration files: the user's goes before the machine's, and in each a repository's section before its
//! server's, and that before the defaults.
//!
//! All of a file is checked whenever it is read, also what is about other repositories: a mistake shows where it was
//! made, with its line, and not on the day when the section is first needed.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{Form, KEYS, Key, Scope};
use super::{ConfigError, Environment, MountInput, RepoId, ServerUrl};

/// A configuration file is some kilobytes; what is longer is none.
const LONGEST_BYTES: u64 = 1 << 20;

/// What the configuration files say.
#[derive(Debug, Clone, Default)]
pub struct Files(Vec<File>);

#[derive(Debug, Clone)]
struct File {
    path: PathBuf,
    values: Vec<Value>,
}

/// One setting of one section.
#[derive(Debug, Clone)]
struct Value {
    about: About,
    key: &'static Key,
    text: String,
    line: usize,
}

/// What a section is about.
#[derive(Debug, Clone, PartialEq, Eq)]
enum About {
    Repository(Option<ServerUrl>, RepoId),
    Server(ServerUrl),
    Everything,
}

/// A setting of a file, and where it stands.
#[derive(Debug, Clone, Copy)]
pub struct Found<'a> {
    /// Its value, as it may stand on the command line too.
    pub text: &'a str,
    /// The file.
    pub path: &'a Path,
    /// The line, from 1.
    pub line: usize,
    about: &'a About,
}

/// File, line and section.
impl fmt::Display for Found<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{} ", self.path.display(), self.line)?;
        match self.about {
            About::Everything => f.write_str("[defaults]"),
            About::Server(server) => write!(f, "[server.\"{server}\"]"),
            About::Repository(None, repo) => write!(f, "[repository.\"{repo}\"]"),
            About::Repository(Some(server), repo) => write!(f, "[repository.\"{server}/{repo}\"]"),
        }
    }
}

impl Files {
    /// Reads those that are there.
    ///
    /// # Errors
    /// [`ConfigError::InFile`] for what cannot be meant, [`ConfigError::Unreadable`].
    pub fn read(environment: &Environment) -> Result<Self, ConfigError> {
        let mut files = Vec::new();
        for path in &environment.config_files {
            if let Some(text) = text_of(path)? {
                let values = parse(&text, environment).map_err(|Wrong { at, problem }| ConfigError::InFile {
                    path: path.clone(),
                    line: line_of(&text, at),
                    problem,
                })?;
                files.push(File { path: path.clone(), values });
            }
        }
        Ok(Self(files))
    }

    /// The files that are there, in the order in which they count.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(|file| &*file.path)
    }

    /// What holds of a setting for a server and a repository.
    pub fn find(&self, key: &Key, server: Option<&ServerUrl>, repo: Option<&RepoId>) -> Option<Found<'_>> {
        self.0.iter().find_map(|file| {
            let of = |wanted: &dyn Fn(&About) -> bool| {
                file.values.iter().find(|value| value.key.name == key.name && wanted(&value.about))
            };
            let on_it = |about: &About| matches!(about, About::Repository(Some(on), id) if Some(on) == server && Some(id) == repo);
            let anywhere = |about: &About| matches!(about, About::Repository(None, id) if Some(id) == repo);
            let there = |about: &About| matches!(about, About::Server(on) if Some(on) == server);
            let value = of(&on_it).or_else(|| of(&anywhere)).or_else(|| of(&there));
            let value = value.or_else(|| of(&|about| *about == About::Everything))?;
            Some(Found { text: &value.text, path: &file.path, line: value.line, about: &value.about })
        })
    }

    /// [`find`](Self::find) by name.
    pub fn text(&self, name: &str, server: Option<&ServerUrl>, repo: Option<&RepoId>) -> Option<&str> {
        Some(self.find(Key::find(name)?, server, repo)?.text)
    }

    /// Fills in what was not said otherwise. The server is known by now.
    pub(super) fn apply(&self, input: &mut MountInput, server: &ServerUrl, repo: &RepoId) -> Result<(), ConfigError> {
        for key in &KEYS {
            if let Some(found) = self.find(key, Some(server), Some(repo)) {
                input.set(key, found.text)?;
            }
        }
        Ok(())
    }
}

/// Fills in what the command does not say.
///
/// # Errors
/// The first value that will not do, under the name of its variable.
pub(super) fn apply_environment(input: &mut MountInput, environment: &Environment) -> Result<(), ConfigError> {
    for key in &KEYS {
        // The server is looked for with the others, and so is the token.
        if matches!(key.name, "server" | "token-file") {
            continue;
        }
        if let Some(text) = key.in_environment(environment)
            && !input.says(key)
        {
            (key.check)(key.variable, text)?;
            input.set(key, text)?;
        }
    }
    Ok(())
}

fn text_of(path: &Path) -> Result<Option<String>, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable { path: path.to_owned(), source };
    match std::fs::metadata(path) {
        Ok(found) if found.len() > LONGEST_BYTES || !found.is_file() => {
            return Err(unreadable(io::Error::other("it is no configuration file")));
        }
        Ok(_) => {}
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(unreadable(error)),
    }
    std::fs::read_to_string(path).map(Some).map_err(unreadable)
}

/// What is wrong, and at which byte.
struct Wrong {
    at: usize,
    problem: String,
}

fn wrong(at: usize, problem: impl Into<String>) -> Wrong {
    Wrong { at, problem: problem.into() }
}

/// From 1.
fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count() + 1
}

fn parse(text: &str, environment: &Environment) -> Result<Vec<Value>, Wrong> {
    let document = DeTable::parse(text)
        .map_err(|error| wrong(error.span().map_or(0, |span| span.start), format!("no TOML: {}", error.message())))?;
    let mut values = Vec::new();
    let mut take = |about: &About, table: &DeTable<'_>| section(about, table, text, environment, &mut values);
    for (name, value) in document.get_ref() {
        let at = name.span().start;
        let Some(here) = value.get_ref().as_table() else {
            return Err(wrong(at, format!("{:?} is in no section; put it under [defaults]", name.get_ref())));
        };
        match &**name.get_ref() {
            "defaults" => take(&About::Everything, here)?,
            "server" => {
                for (server, table, at) in subsections("server", here)? {
                    let server = ServerUrl::parse("server", server).map_err(|error| wrong(at, error.to_string()))?;
                    take(&About::Server(server), table)?;
                }
            }
            "repository" => {
                for (repo, table, at) in subsections("repository", here)? {
                    take(&repository(repo).map_err(|error| wrong(at, error.to_string()))?, table)?;
                }
            }
            other => {
                let sections = "[defaults], [server.\"URL\"] and [repository.\"NAMESPACE/NAME\"]";
                return Err(wrong(at, format!("there is no section [{other}]; there are {sections}")));
            }
        }
    }
    Ok(values)
}

/// The tables below `[server]` or `[repository]`, with their names.
fn subsections<'a>(kind: &str, table: &'a DeTable<'_>) -> Result<Vec<(&'a str, &'a DeTable<'a>, usize)>, Wrong> {
    let each = |(name, value): (&'a Spanned<std::borrow::Cow<'_, str>>, &'a Spanned<DeValue<'_>>)| {
        let at = name.span().start;
        match value.get_ref().as_table() {
            Some(below) => Ok((&**name.get_ref(), below, at)),
            None => Err(wrong(at, format!("[{kind}] has a section for each, such as [{kind}.{:?}]", example(kind)))),
        }
    };
    table.iter().map(each).collect()
}

fn example(kind: &str) -> &'static str {
    if kind == "server" { "https://hub.oxen.ai" } else { "ox/cats" }
}

/// `NAMESPACE/NAME`, on any server or on one.
fn repository(text: &str) -> Result<About, ConfigError> {
    match text.rsplitn(3, '/').collect::<Vec<_>>()[..] {
        [name, namespace, server] => {
            let server = ServerUrl::parse("repository", server)?;
            Ok(About::Repository(Some(server), format!("{namespace}/{name}").parse()?))
        }
        _ => Ok(About::Repository(None, text.parse()?)),
    }
}

fn section(
    about: &About,
    table: &DeTable<'_>,
    text: &str,
    environment: &Environment,
    values: &mut Vec<Value>,
) -> Result<(), Wrong> {
    let begin = values.len();
    for (name, value) in table {
        let at = name.span().start;
        let name = &**name.get_ref();
        let may = |key: &&Key| match (key.scope, about) {
            (Scope::OneServer, about) => matches!(about, About::Server(_) | About::Repository(Some(_), _)),
            (Scope::Anywhere, _) | (_, About::Repository(..)) => true,
            (Scope::NotServer, about) => !matches!(about, About::Server(_)),
            (Scope::Repository, _) => false,
        };
        let Some(key) = Key::find(name) else {
            let hint = match name {
                "token" | "api-key" | "auth_token" => {
                    "; a token does not stand here: put it into a file of its own and name that with token-file".into()
                }
                _ => {
                    let known: Vec<_> = KEYS.iter().filter(may).map(|key| key.name).collect();
                    format!("; there are {}", known.join(", "))
                }
            };
            return Err(wrong(at, format!("there is no setting {name:?}{hint}")));
        };
        if !may(&key) {
            let why = match key.scope {
                Scope::Repository => "stands only in a repository's section",
                Scope::OneServer => {
                    "stands only for one server, in [server.\"URL\"] or [repository.\"URL/NAMESPACE/NAME\"]: others \
                     are not to be shown the token"
                }
                Scope::NotServer | Scope::Anywhere => "is nothing for a server",
            };
            return Err(wrong(at, format!("{} {why}", key.name)));
        }
        if values[begin..].iter().any(|value| value.key.name == key.name) {
            return Err(wrong(at, format!("{} is said twice", key.name)));
        }
        let said = written(key, value.get_ref()).ok_or_else(|| {
            let form = match key.form {
                Form::Text => "a string, in quotes",
                Form::Number => "a number, or a string in quotes",
                Form::Switch => "true or false, without quotes",
                Form::Lines => "a list of strings, such as [\"*.tmp\", \"scratch/\"]",
            };
            wrong(value.span().start, format!("{} is to be {form}", key.name))
        })?;
        (key.check)(key.name, &said).map_err(|error| wrong(value.span().start, error.to_string()))?;
        let is_place = matches!(key.name, "token-file" | "state-dir");
        let said = if is_place { at_home(&said, environment) } else { said };
        values.push(Value { about: about.clone(), key, text: said, line: line_of(text, at) });
    }
    Ok(())
}

/// The value as it would stand on the command line.
fn written(key: &Key, value: &DeValue<'_>) -> Option<String> {
    match (key.form, value) {
        (Form::Text | Form::Number | Form::Lines, DeValue::String(text)) => Some(text.trim().to_owned()),
        (Form::Lines, DeValue::Array(lines)) => {
            let lines: Option<Vec<&str>> = lines.iter().map(|line| line.get_ref().as_str()).collect();
            lines.filter(|lines| lines.iter().all(|line| !line.contains('\n'))).map(|lines| lines.join("\n"))
        }
        (Form::Number, DeValue::Integer(number)) if number.radix() == 10 => Some(number.as_str().to_owned()),
        (Form::Number, DeValue::Float(number)) => Some(number.as_str().to_owned()),
        (Form::Switch, DeValue::Boolean(on)) => Some(on.to_string()),
        _ => None,
    }
}

/// With `~` for the home directory.
fn at_home(text: &str, environment: &Environment) -> String {
    match (text.strip_prefix("~/"), &environment.home) {
        (Some(below), Some(home)) => home.join(below).to_string_lossy().into_owned(),
        _ => text.to_owned(),
    }
}
