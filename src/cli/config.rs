//! `oxenfs config show`.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::args::ShowArgs;
use super::failure::{Doing, Failure};
use super::output::{data, json, note, printable, without_credentials};
use crate::config::{
    CredentialSource, Environment, Files, KEYS, Key, OxenConfig, RepoId, ServerUrl, default_workspace, resolve,
};

/// A setting, as it is shown.
#[derive(Debug, Serialize)]
struct Shown {
    key: &'static str,
    /// `None` where there is none.
    value: Option<String>,
    from: From,
}

/// Where a value is from.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "place", rename_all = "kebab-case")]
enum From {
    CommandLine,
    Environment {
        variable: &'static str,
    },
    File {
        path: PathBuf,
        line: usize,
        /// The same, and the section.
        #[serde(skip)]
        shown: String,
    },
    OxenConfiguration,
    BuiltIn,
}

impl std::fmt::Display for From {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::CommandLine => f.write_str("command line"),
            Self::Environment { variable } => write!(f, "environment: {variable}"),
            Self::File { shown, .. } => f.write_str(shown),
            Self::OxenConfiguration => f.write_str("the Oxen configuration"),
            Self::BuiltIn => f.write_str("built in"),
        }
    }
}

/// All that is shown.
#[derive(Debug, Serialize)]
struct Settings {
    /// Those that are there, in the order in which they count.
    files: Vec<PathBuf>,
    settings: Vec<Shown>,
}

/// For what the settings hold.
struct Target {
    server: Option<(ServerUrl, From)>,
    repo: Option<RepoId>,
}

/// `oxenfs config show`: exit code 1 when a file says what cannot be meant.
pub fn show(args: ShowArgs, state_dir: Option<&Path>, environment: &Environment) -> Result<u8, Failure> {
    let failed = || match &args.repo {
        Some(repo) => format!("cannot show the settings for {}", without_credentials(repo)),
        None => "cannot show the settings".to_owned(),
    };
    let files = Files::read(environment).doing(failed)?;
    let target = target(&args, environment, &files).doing(failed)?;
    let mut settings = Vec::new();
    for key in &KEYS {
        settings.push(setting(key, &target, state_dir, environment, &files).doing(failed)?);
    }
    if args.json {
        json(&Settings { files: files.paths().map(Path::to_owned).collect(), settings }, true)?;
        return Ok(0);
    }
    let text = |shown: &Shown| shown.value.as_deref().map_or("-".to_owned(), |value| printable(value).into_owned());
    let width = settings.iter().map(|shown| text(shown).chars().count()).max().unwrap_or(0);
    let lines: Vec<_> = settings
        .iter()
        .map(|shown| format!("{:<13} {:width$}  {}", shown.key, text(shown), printable(&shown.from.to_string())))
        .collect();
    data(&lines.join("\n"))?;
    if files.paths().next().is_none() {
        let places: Vec<_> = environment.config_files.iter().map(|path| path.display().to_string()).collect();
        note(format_args!("no configuration file is there; one may be at {}", places.join(" or ")));
    }
    Ok(0)
}

fn target(args: &ShowArgs, environment: &Environment, files: &Files) -> Result<Target, Failure> {
    let oxen = OxenConfig::new(environment);
    let repo = args.repo.as_deref();
    let from = |repo: Option<&RepoId>| match (&args.server, environment.server.is_some(), Key::find("server")) {
        (Some(_), ..) => From::CommandLine,
        (None, true, _) => From::Environment { variable: "OXEN_SERVER" },
        (None, false, key) => match key.and_then(|key| files.find(key, None, repo)) {
            Some(found) => file(found),
            None => From::OxenConfiguration,
        },
    };
    let Some(named) = repo else {
        // Any name will do: what is sought is the server.
        return match resolve("any/repository", args.server.as_deref(), environment, &oxen, files) {
            Ok((server, _)) => Ok(Target { server: Some((server, from(None))), repo: None }),
            Err(crate::config::ConfigError::NoServer) => Ok(Target { server: None, repo: None }),
            Err(error) => Err(error.into()),
        };
    };
    match resolve(named, args.server.as_deref(), environment, &oxen, files) {
        Ok((server, repo)) => {
            let from = if named.contains("://") { From::CommandLine } else { from(Some(&repo)) };
            Ok(Target { server: Some((server, from)), repo: Some(repo) })
        }
        Err(crate::config::ConfigError::NoServer) => Ok(Target { server: None, repo: Some(named.parse()?) }),
        Err(error) => Err(error.into()),
    }
}

fn file(found: crate::config::Found<'_>) -> From {
    From::File { path: found.path.to_owned(), line: found.line, shown: found.to_string() }
}

fn setting(
    key: &'static Key,
    target: &Target,
    state_dir: Option<&Path>,
    environment: &Environment,
    files: &Files,
) -> Result<Shown, Failure> {
    let (server, repo) = (target.server.as_ref().map(|(server, _)| server), target.repo.as_ref());
    let shown = |value: Option<String>, from| Ok(Shown { key: key.name, value, from });
    match key.name {
        "server" => {
            return match &target.server {
                None => shown(None, From::BuiltIn),
                Some((server, from)) => shown(Some(server.to_string()), from.clone()),
            };
        }
        "token-file" if environment.api_key.is_some() => {
            return shown(Some("(the token itself)".into()), From::Environment { variable: "OXEN_API_KEY" });
        }
        "state-dir" if state_dir.is_some() && !environment.settings.contains_key("state-dir") => {
            return shown(state_dir.map(|dir| dir.display().to_string()), From::CommandLine);
        }
        _ => {}
    }
    if let Some(text) = key.in_environment(environment) {
        (key.check)(key.variable, text).or_else(|error| if key.name == "token-file" { Ok(()) } else { Err(error) })?;
        return shown(Some(text.to_owned()), From::Environment { variable: key.variable });
    }
    if let Some(found) = files.find(key, server, repo) {
        return shown(Some(found.text.to_owned()), file(found));
    }
    let branch = || files.text("branch", server, repo).unwrap_or("main");
    match key.name {
        "token-file" => {
            let stored = server.and_then(|server| CredentialSource::new(environment, server, None, None).ok()?.read());
            shown(stored.map(|_| "(the token itself)".into()), From::OxenConfiguration)
        }
        "state-dir" => shown(environment.state_root().ok().map(|dir| dir.display().to_string()), From::BuiltIn),
        "workspace" => {
            let name = repo.map(|_| default_workspace(&environment.user, &environment.host, branch()));
            shown(name, From::BuiltIn)
        }
        _ => shown(key.default.map(str::to_owned), From::BuiltIn),
    }
}
