//! `oxenfs log`.

use std::fmt::Write;
use std::path::Path;

use serde::Serialize;

use super::args::LogArgs;
use super::failure::{Doing, Failure, quoted};
use super::find::Finder;
use super::output::{count, data, json, note, printable, without_credentials};
use super::repo;
use super::resolve::real_entry;
use super::seams::{Place, ask};
use super::sync::inside;
use crate::config::{Environment, Files, OxenUrl};
use crate::mount::{self, Repository};
use crate::path::RepoPath;

/// A commit, as `--json` has it.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    commit: &'a str,
    parents: &'a [String],
    author: &'a str,
    email: &'a str,
    /// When it was made, in RFC 3339; `null` where the server does not tell.
    time: Option<&'a str>,
    message: &'a str,
}

impl<'a> Shown<'a> {
    fn of(commit: &'a mount::Commit) -> Self {
        Self {
            commit: &commit.id,
            parents: &commit.parent_ids,
            author: &commit.author,
            email: &commit.email,
            time: Some(commit.timestamp.as_str()).filter(|time| !time.is_empty()),
            message: &commit.message,
        }
    }
}

/// Whose history is meant.
struct Asked {
    place: Place,
    revision: String,
    path: RepoPath,
}

/// `oxenfs log`. Asks the server: of a mount too, with a daemon or without.
pub fn log(args: LogArgs, finder: &Finder, environment: &Environment) -> Result<u8, Failure> {
    let failed = || format!("cannot show the history of {}", named(&args.target));
    let asked = asked(&args, finder, environment).doing(failed)?;
    let most = usize::try_from(args.number).unwrap_or(usize::MAX);
    let found = ask(&asked.place, async |repository: &Repository| {
        // One more, to know whether there is.
        repository.history(&asked.revision, &asked.path, most.saturating_add(1)).await
    });
    let mut commits = match found.doing(failed)? {
        mount::History::Commits(commits) => commits,
        nothing => return Err(why(&asked, &nothing).doing(failed())),
    };
    let more = commits.len() > most;
    commits.truncate(most);
    let shown: Vec<Shown<'_>> = commits.iter().map(Shown::of).collect();
    if args.json {
        json(&shown, true)?;
    } else if shown.is_empty() {
        note("no commits");
    } else {
        data(lines(&shown).trim_end())?;
    }
    if more {
        note(format_args!("{} shown; -n N shows more", count(most as u64, "commit")));
    }
    Ok(0)
}

/// What was asked for, as it may be shown.
fn named(target: &Path) -> String {
    match target.to_str() {
        Some(text) if text.contains('@') || text.contains("://") => without_credentials(text),
        _ => quoted(target),
    }
}

fn asked(args: &LogArgs, finder: &Finder, environment: &Environment) -> Result<Asked, Failure> {
    let target = args.target.to_str();
    let is_url = target.is_some_and(|text| text.contains("://"));
    if !is_url {
        let real = real_entry(&args.target)?;
        if let Some(known) = finder.above(&real) {
            let identity = &known.meta.identity;
            if args.server.is_some() {
                return Err(Failure::usage("--server goes with a repository; a mount knows its own"));
            }
            let below = inside(&real, &identity.mountpoint)?;
            let subdir = RepoPath::parse(&identity.subdir).map_err(Failure::new)?;
            let shown = identity.revision.as_ref().unwrap_or(&identity.branch);
            return Ok(Asked {
                place: repo::place(&identity.repo, Some(&identity.server), environment)?,
                revision: args.branch.as_ref().unwrap_or(shown).clone(),
                path: subdir.concat(&RepoPath::parse(&below).map_err(Failure::new)?),
            });
        }
    }
    let text = match target {
        Some(text) if is_url || !(text.starts_with(['/', '.']) || args.target.exists()) => text,
        _ => {
            let failure = Failure::new("no oxenfs mount is there");
            return Err(failure.hint("oxenfs status lists the mounts; a repository is NAMESPACE/NAME or a URL"));
        }
    };
    let (mut revision, mut path) = (None, RepoPath::root());
    if let Some(url) = OxenUrl::parse(text) {
        let url = url?;
        if let (Some(one), Some(other)) = (&url.revision, &args.branch)
            && one != other
        {
            return Err(Failure::usage("REPO names a revision, and --branch another"));
        }
        (revision, path) = (url.revision, RepoPath::parse(&url.path).map_err(Failure::new)?);
    }
    let place = repo::place(text, args.server.as_deref(), environment)?;
    // As a mount of it would have it.
    let configured = || match environment.settings.get("branch") {
        Some(branch) => Ok(Some(branch.clone())),
        None => Files::read(environment)
            .map(|files| files.text("branch", Some(&place.server), Some(&place.repo)).map(str::to_owned)),
    };
    let revision = match args.branch.clone().or(revision) {
        Some(named) => named,
        None => configured()?.unwrap_or_else(|| "main".to_owned()),
    };
    Ok(Asked { place, revision, path })
}

/// Why there is no history.
fn why(asked: &Asked, nothing: &mount::History) -> Failure {
    let (revision, path) = (quoted(&asked.revision), quoted(asked.path.as_str()));
    match nothing {
        mount::History::NoRevision => {
            Failure::new(format_args!("{} has no branch and no commit {revision}", asked.place.repo))
                .hint(format_args!("oxenfs branches {}", asked.place.url()))
        }
        mount::History::NoPath => Failure::new(format_args!("{revision} has no {path}"))
            .hint("what is not committed has no history; what was removed has one in the commit that still had it: --branch COMMIT"),
        _ => Failure::new(format_args!("{} does not tell what was committed", asked.place.server)),
    }
}

/// As the Oxen command line and others show it.
fn lines(commits: &[Shown<'_>]) -> String {
    let mut text = String::new();
    for commit in commits {
        let _ = writeln!(text, "commit {}", printable(commit.commit));
        if commit.parents.len() > 1 {
            let parents: Vec<_> = commit.parents.iter().map(|parent| printable(parent)).collect();
            let _ = writeln!(text, "Merge:  {}", parents.join(" "));
        }
        let _ = writeln!(text, "Author: {} <{}>", printable(commit.author), printable(commit.email));
        if let Some(time) = commit.time {
            let _ = writeln!(text, "Date:   {}", printable(time));
        }
        text.push('\n');
        for line in commit.message.trim_end().lines() {
            let _ = writeln!(text, "    {}", printable(line));
        }
        text.push('\n');
    }
    text
}
