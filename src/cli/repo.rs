//! `oxenfs repo create`, and which repository a command means.

use std::path::{Path, PathBuf};

use super::args::CreateArgs;
use super::done;
use super::failure::{Doing, Failure, quoted};
use super::output::{data, json, warn, without_credentials};
use super::seams::{self, NewRepo, Place};
use super::sync::who;
use crate::config::{ConfigError, CreateRepo, CredentialSource, Environment, Files, OxenConfig, resolve};
use crate::path::RepoPath;

/// `oxenfs repo create`: prints the repository's URL.
pub fn create(args: CreateArgs, environment: &Environment) -> Result<u8, Failure> {
    let what = format!("cannot create {}", without_credentials(&args.repo));
    let as_json = args.json;
    let new = checked(args, environment).map_err(|failure| failure.doing(&what))?;
    let url = new.place.url();
    for warning in seams::create_repo(new).doing(|| what)? {
        warn(warning);
    }
    match as_json {
        true => json(&done::Created { url }, true)?,
        false => data(&url)?,
    }
    Ok(0)
}

fn checked(args: CreateArgs, environment: &Environment) -> Result<NewRepo, Failure> {
    let place = place(&args.repo, args.server.as_deref(), environment)?;
    let mut files: Vec<(String, PathBuf)> = Vec::new();
    for path in args.files {
        let name = initial_name(&path)?;
        if files.iter().any(|(other, _)| *other == name) {
            return Err(Failure::usage(format_args!("two files would both be called {name}"))
                .hint("create the repository with one of them, mount it, and copy the rest"));
        }
        files.push((name, path));
    }
    let author = match files.is_empty() {
        true => None,
        false => Some(who(&args.author, environment)?),
    };
    Ok(NewRepo {
        place,
        about: CreateRepo {
            description: args.description,
            public: args.public,
            storage: args.storage.as_deref().map(str::parse).transpose()?,
        },
        files,
        author,
    })
}

/// The name that a file gets in the first commit: its own last component; the server keeps no directories there.
fn initial_name(path: &Path) -> Result<String, Failure> {
    let metadata =
        std::fs::metadata(path).map_err(|error| Failure::new(format_args!("cannot read {}: {error}", quoted(path))))?;
    if !metadata.is_file() {
        return Err(Failure::new(format_args!("{} is not a regular file", quoted(path)))
            .hint("create the repository without it, mount it, and copy what it should hold"));
    }
    let name = path.file_name().and_then(|name| name.to_str());
    match name.filter(|name| RepoPath::parse(name).is_ok()) {
        Some(name) => Ok(name.to_owned()),
        None => Err(Failure::new(format_args!("Oxen cannot store the name of {}", quoted(path)))),
    }
}

/// The repository that a REPO argument means, and the way in.
///
/// # Errors
/// When the arguments or the configuration do not tell, or the token can be none.
pub fn place(repo: &str, server: Option<&str>, environment: &Environment) -> Result<Place, Failure> {
    let (oxen, files) = (OxenConfig::new(environment), Files::read(environment)?);
    let (server, repo) = resolve(repo, server, environment, &oxen, &files)?;
    let credentials = CredentialSource::configured(environment, &files, &server, &repo)?;
    check_credentials(&credentials)?;
    Ok(Place { server, repo, credentials })
}

/// A broken credentials file is an error now rather than a stalled queue later; one that is not ours to read may be
/// another's, and the server may want no token.
///
/// # Errors
/// When there is a token, and it can be none.
pub fn check_credentials(credentials: &CredentialSource) -> Result<(), Failure> {
    match credentials.try_read() {
        Ok(_) | Err(ConfigError::Unreadable { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
