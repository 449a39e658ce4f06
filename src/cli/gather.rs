//! `oxenfs gather`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;

use super::args::{self, GatherArgs};
use super::done::{self, Kept, Worker};
use super::failure::{Doing, Failure, quoted};
use super::output::{count, data, json, note, printable, without_credentials};
use super::repo::place;
use super::seams;
use super::sync::who;
use super::workspaces::Here;
use crate::config::{Environment, checked_branch, default_workspace};
use crate::mount::Repository;
use crate::mount::gather::{GatherError, Gathered, Gathering, OnCollision, OnConflict, gather as gather_all};
use crate::workspace::CommitRequest;

impl From<GatherError> for Failure {
    fn from(error: GatherError) -> Self {
        let hint = match &error {
            GatherError::Server(_) => None,
            GatherError::NoWorkspace(_) => Some("oxenfs workspaces REPO lists them".to_owned()),
            GatherError::NoBranch(_) => Some("oxenfs branches REPO lists them".to_owned()),
            GatherError::Collide(collisions) if collisions.iter().any(|one| one.places) => Some(
                "mount one of the workspaces, move the file or the directory away, and repeat the command".to_owned(),
            ),
            GatherError::Collide(_) => {
                Some("--on-collision first or last says whose is taken; the order is that of --from".to_owned())
            }
            GatherError::Conflict { .. } => {
                Some("--on-conflict ours takes the workers', theirs the branch's".to_owned())
            }
            GatherError::Places(_) => {
                Some("commit the removal first: oxenfs mount REPO DIR --workspace NAME, oxenfs commit DIR".to_owned())
            }
            GatherError::Moving(_) | GatherError::Unstaged(_) => {
                Some("nothing was committed; repeat the command when nobody stages any more".to_owned())
            }
            GatherError::Incomplete { .. } => Some("the workspaces have all of it; repeat the command".to_owned()),
            GatherError::Disk(_) => Some("TMPDIR names another place".to_owned()),
        };
        match (error, hint) {
            (GatherError::Server(error), _) => error.into(),
            (error, Some(hint)) => Self::new(error).hint(hint),
            (error, None) => Self::new(error),
        }
    }
}

/// The workspaces that are named, each once, in their order.
fn named(args: &GatherArgs) -> Result<Vec<String>, Failure> {
    let mut names = args.from.clone();
    if let Some(file) = &args.list {
        let mut text = String::new();
        let read = match file.as_os_str() == "-" {
            true => std::io::stdin().lock().read_to_string(&mut text).map(drop),
            false => std::fs::read_to_string(file).map(|read| text = read),
        };
        read.map_err(|error| Failure::new(format_args!("{}: {error}", quoted(file))))?;
        names.extend(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned));
    }
    let mut seen = BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    match names.is_empty() {
        true => Err(Failure::usage("no workspace is named").hint("--from NAME, or a line each in the file of --list")),
        false => Ok(names),
    }
}

/// `oxenfs gather`.
pub fn gather(args: GatherArgs, state_dir: Option<&Path>, environment: &Environment) -> Result<u8, Failure> {
    let failed = || format!("cannot gather workspaces of {}", without_credentials(&args.repo));
    let branch = checked_branch(&args.branch).doing(failed)?;
    let place = place(&args.repo, args.server.as_deref(), environment).doing(failed)?;
    let from = named(&args).doing(failed)?;
    let (author, email) = who(&args.author, environment).doing(failed)?;
    let here = Here::new(&place, state_dir, environment).doing(failed)?;
    let in_use: BTreeMap<String, String> = from
        .iter()
        .filter_map(|name| Some((name.clone(), format!("it is mounted at {}", here.mounts_of(name).first()?))))
        .collect();
    let request = CommitRequest { branch: branch.clone(), message: args.message.clone(), author, email };
    let stem = default_workspace(&environment.user, &environment.host, &branch);
    let wish = Gathering {
        request: &request,
        from: &from,
        into: &format!("{stem}-{:08x}", fastrand::u32(..)),
        on_collision: match args.on_collision {
            args::OnCollision::Fail => OnCollision::Fail,
            args::OnCollision::First => OnCollision::First,
            args::OnCollision::Last => OnCollision::Last,
        },
        on_conflict: match args.on_conflict {
            args::OnBranchConflict::Fail => OnConflict::Fail,
            args::OnBranchConflict::Ours => OnConflict::Ours,
            args::OnBranchConflict::Theirs => OnConflict::Theirs,
        },
        delete: args.delete_workspaces.then_some(&in_use),
    };
    let gathered = seams::ask(&place, async |repository: &Repository| {
        Ok(gather_all(repository, &wish, &mut |said| note(said)).await)
    });
    let gathered = gathered.doing(failed)?.map_err(Failure::from).doing(failed)?;
    tell(gathered, branch, args.json)?;
    Ok(0)
}

fn tell(gathered: Gathered, branch: String, as_json: bool) -> Result<(), Failure> {
    for (name, why) in &gathered.kept {
        note(format_args!("workspace {} is there: {why}", printable(name)));
    }
    if as_json {
        let workspaces = gathered.changes.into_iter().map(|(name, changes)| Worker { name, changes });
        let kept = gathered.kept.into_iter().map(|(name, why)| Kept { name, why });
        let said = done::Gathered {
            commit: gathered.commit.map(|commit| commit.to_string()),
            branch,
            workspaces: workspaces.collect(),
            put_files: gathered.put,
            removed_files: gathered.removed,
            sent_bytes: gathered.sent_bytes,
            deleted: gathered.deleted,
            kept: kept.collect(),
        };
        return json(&said, false);
    }
    for name in &gathered.deleted {
        note(format_args!("deleted workspace {}", printable(name)));
    }
    match &gathered.commit {
        Some(commit) => {
            let of = count(gathered.changes.len() as u64, "workspace");
            note(format_args!("{} and {} of {of}", count(gathered.put, "file"), count(gathered.removed, "removal")));
            data(&printable(&commit.to_string()))
        }
        None => {
            note(format_args!("nothing to commit: {} has all of it", printable(&branch)));
            Ok(())
        }
    }
}
