//! `oxenfs branches` and `oxenfs workspaces`, with what deletes workspaces.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;

use super::args::{DeleteWorkspaceArgs, LookArgs, PruneWorkspacesArgs, WorkspacesArgs, WorkspacesCommand};
use super::asking;
use super::done;
use super::failure::{Doing, Failure, quoted};
use super::find::Finder;
use super::output::{count, data, json, note, printable, seconds, without_credentials};
use super::repo::place;
use super::seams::{self, Place};
use crate::config::{Environment, default_workspace};
use crate::mount::{Repository, StagedCounts, WorkspaceInfo};
use crate::workspace::WorkspaceError;

/// How many are asked for what takes a request each.
const ASKED: usize = 20;

/// A branch, as `--json` has it.
#[derive(Debug, Serialize)]
struct Branch {
    name: String,
    /// The commit it stands on.
    commit: String,
    /// When that was made, in RFC 3339; `null` where it was not asked for or nobody tells.
    modified: Option<String>,
}

/// A workspace, as `--json` has it.
#[derive(Debug, Serialize)]
struct Workspace {
    name: String,
    /// The commit it stands on.
    commit: String,
    /// When it was made, in RFC 3339; `null` where nobody tells.
    created: Option<String>,
    /// What is staged in it; `null` where it was not asked for or nobody tells.
    staged: Option<StagedCounts>,
    /// Whether it is this user's on this machine.
    own: bool,
    /// Where it is mounted on this machine.
    mounted: Vec<String>,
    /// Seconds since it was made or committed last.
    #[serde(skip)]
    rests_secs: Option<u64>,
}

/// Who asks, and what of the repository is mounted here.
pub(super) struct Here<'a> {
    environment: &'a Environment,
    /// Mount points of mounts that live, by workspace.
    mounted: Vec<(String, PathBuf)>,
    /// Workspaces that state directories here stage in.
    known: Vec<String>,
}

impl<'a> Here<'a> {
    pub fn new(place: &Place, state_dir: Option<&Path>, environment: &'a Environment) -> Result<Self, Failure> {
        let finder = Finder::new(state_dir, environment)?;
        let (server, repo) = (place.server.to_string(), place.repo.to_string());
        let same = finder.all().iter().filter(|known| {
            let identity = &known.meta.identity;
            identity.revision.is_none() && (&identity.server, &identity.repo) == (&server, &repo)
        });
        let (mut mounted, mut known) = (Vec::new(), Vec::new());
        for one in same {
            let workspace = one.meta.workspace();
            if one.holder().is_some() {
                mounted.push((workspace.clone(), one.meta.identity.mountpoint.clone()));
            }
            // One that was named may be anybody's.
            if one.meta.own.is_some() {
                known.push(workspace);
            }
        }
        Ok(Self { environment, mounted, known })
    }

    /// Whether a workspace is this user's on this machine: a state directory stages in it, or it is called as one would
    /// be that starts from one of `branches`.
    fn owns(&self, name: &str, branches: &[String]) -> bool {
        let is_id = |rest: &str| rest.len() == 8 && rest.bytes().all(|byte| byte.is_ascii_hexdigit());
        self.known.iter().any(|known| known == name)
            || branches.iter().any(|branch| {
                let stem = default_workspace(&self.environment.user, &self.environment.host, branch);
                let rest = name.strip_prefix(stem.as_str());
                rest.is_some_and(|rest| rest.is_empty() || rest.strip_prefix('-').is_some_and(is_id))
            })
    }

    pub fn mounts_of(&self, name: &str) -> Vec<String> {
        let mounts = self.mounted.iter().filter(|(workspace, _)| workspace == name);
        mounts.map(|(_, dir)| dir.display().to_string()).collect()
    }
}

fn seconds_since(secs: Option<i64>) -> Option<u64> {
    let then = u64::try_from(secs?).ok()?;
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
    Some(now.saturating_sub(then))
}

fn age(secs: Option<u64>) -> String {
    secs.map_or_else(|| "?".to_owned(), seconds)
}

/// `oxenfs branches`.
pub fn branches(args: LookArgs, environment: &Environment) -> Result<u8, Failure> {
    let failed = || format!("cannot list the branches of {}", without_credentials(&args.repo));
    let place = place(&args.repo, args.server.as_deref(), environment).doing(failed)?;
    let found = seams::ask(&place, async |repository: &Repository| {
        let mut found = Vec::new();
        for (at, branch) in repository.branches().await?.into_iter().enumerate() {
            let commit = match at < ASKED {
                // Who cannot tell has no such route.
                true => repository.commit(&branch.commit_id).await.unwrap_or_default(),
                false => None,
            };
            found.push((branch, commit));
        }
        Ok(found)
    });
    let rows: Vec<(Branch, String)> = found
        .doing(failed)?
        .into_iter()
        .map(|(branch, commit)| {
            let ago = age(seconds_since(commit.as_ref().and_then(|commit| commit.made_secs())));
            let modified = commit.map(|commit| commit.timestamp).filter(|time| !time.is_empty());
            (Branch { name: branch.name, commit: branch.commit_id, modified }, ago)
        })
        .collect();
    if args.json {
        json(&rows.iter().map(|(branch, _)| branch).collect::<Vec<_>>(), true)?;
        return Ok(0);
    }
    let width = width(rows.iter().map(|(branch, _)| &branch.name));
    for (branch, ago) in &rows {
        data(&format!("{:width$}  {}  {ago}", printable(&branch.name), printable(&branch.commit)))?;
    }
    if rows.is_empty() {
        note("no branches");
    }
    Ok(0)
}

fn width<'a>(names: impl Iterator<Item = &'a String>) -> usize {
    names.map(|name| printable(name).chars().count()).max().unwrap_or(0)
}

/// `oxenfs workspaces ...`.
pub fn workspaces(args: WorkspacesArgs, state_dir: Option<&Path>, environment: &Environment) -> Result<u8, Failure> {
    match (args.command, args.look) {
        (Some(WorkspacesCommand::Delete(args)), _) => delete(&args, state_dir, environment),
        (Some(WorkspacesCommand::Prune(args)), _) => prune(&args, state_dir, environment),
        (None, Some(look)) => list(&look, state_dir, environment),
        (None, None) => Err(Failure::usage("the repository is missing").hint("oxenfs workspaces NAMESPACE/NAME")),
    }
}

/// All workspaces, this user's own first; of those that `wanted` likes, up to `asked`, with what is staged.
async fn look_at(
    repository: &Repository,
    here: &Here<'_>,
    asked: usize,
    wanted: impl Fn(&Workspace) -> bool,
) -> Result<Vec<Workspace>, WorkspaceError> {
    let branches: Vec<String> = repository.branches().await?.into_iter().map(|branch| branch.name).collect();
    let mut found: Vec<(WorkspaceInfo, Workspace)> = Vec::new();
    for info in repository.workspaces().await? {
        let name = info.name.clone().unwrap_or_else(|| info.id.clone());
        let workspace = Workspace {
            commit: info.commit.id.clone(),
            created: info.created_at.clone(),
            staged: None,
            own: here.owns(&name, &branches),
            mounted: here.mounts_of(&name),
            rests_secs: seconds_since(info.touched_secs()),
            name,
        };
        found.push((info, workspace));
    }
    found.sort_by_key(|(_, workspace)| !workspace.own);
    let mut left = asked;
    for (info, workspace) in &mut found {
        if left > 0 && wanted(workspace) {
            left -= 1;
            workspace.staged = repository.staged_counts(&info.id).await.ok();
        }
    }
    Ok(found.into_iter().map(|(_, workspace)| workspace).collect())
}

fn staged_said(staged: Option<&StagedCounts>) -> String {
    match staged {
        None => "?".to_owned(),
        Some(staged) if staged.total() == 0 => "nothing staged".to_owned(),
        Some(staged) => format!("{} staged", count(staged.total(), "change")),
    }
}

fn show(found: &[Workspace]) -> Result<(), Failure> {
    let width = width(found.iter().map(|workspace| &workspace.name));
    for one in found {
        let mounted: Vec<String> = one.mounted.iter().map(|dir| format!("  at {}", quoted(dir))).collect();
        data(&format!(
            "{:width$}  {}  {}  {}{}",
            printable(&one.name),
            printable(&one.commit),
            age(one.rests_secs),
            staged_said(one.staged.as_ref()),
            mounted.concat()
        ))?;
    }
    Ok(())
}

fn list(args: &LookArgs, state_dir: Option<&Path>, environment: &Environment) -> Result<u8, Failure> {
    let failed = || format!("cannot list the workspaces of {}", without_credentials(&args.repo));
    let place = place(&args.repo, args.server.as_deref(), environment).doing(failed)?;
    let here = Here::new(&place, state_dir, environment).doing(failed)?;
    let found = seams::ask(&place, async |repository: &Repository| look_at(repository, &here, ASKED, |_| true).await);
    let found = found.doing(failed)?;
    match args.json {
        true => json(&found, true)?,
        false => show(&found)?,
    }
    if found.is_empty() && !args.json {
        note("no workspaces");
    }
    Ok(0)
}

fn delete(args: &DeleteWorkspaceArgs, state_dir: Option<&Path>, environment: &Environment) -> Result<u8, Failure> {
    let failed = || format!("cannot delete workspace {} of {}", quoted(&args.name), without_credentials(&args.repo));
    let place = place(&args.repo, args.server.as_deref(), environment).doing(failed)?;
    let here = Here::new(&place, state_dir, environment).doing(failed)?;
    let look = || {
        let found = seams::ask(&place, async |repository: &Repository| {
            look_at(repository, &here, 1, |workspace| workspace.name == args.name).await
        })?;
        let found = found.into_iter().find(|workspace| workspace.name == args.name);
        let found = found.ok_or_else(|| {
            let hint = format!("oxenfs workspaces {} lists them", quoted(&args.repo));
            Failure::new("there is none of that name").hint(hint)
        })?;
        refuse(&found, args.force, &args.repo).map(|()| found)
    };
    let found = look().doing(failed)?;
    let staged = staged_said(found.staged.as_ref());
    let question = format!("delete workspace {} of {}, with {staged}?", found.name, place.repo);
    if !asking::may(args.yes, &question).doing(failed)? {
        return Ok(asking::declined());
    }
    // Something may have been staged while the question was on the screen.
    look().doing(failed)?;
    seams::ask(&place, async |repository: &Repository| repository.delete_workspace(&args.name).await).doing(failed)?;
    tell_deleted(std::slice::from_ref(&args.name), args.json)
}

/// Refuses what would take away what somebody here needs.
fn refuse(workspace: &Workspace, force: bool, repo: &str) -> Result<(), Failure> {
    if let Some(dir) = workspace.mounted.first() {
        let failure = Failure::new(format_args!("the mount at {} uses it", quoted(dir)));
        return Err(failure.hint(format_args!("oxenfs unmount {}, and repeat the command", quoted(dir))));
    }
    if force {
        return Ok(());
    }
    match &workspace.staged {
        Some(staged) if staged.total() == 0 => Ok(()),
        Some(_) => {
            let what = staged_said(workspace.staged.as_ref());
            let hint = format!(
                "commit it: oxenfs mount {} DIR --workspace {}, oxenfs commit DIR; --force deletes it all the same",
                quoted(repo),
                quoted(&workspace.name)
            );
            Err(Failure::new(format_args!("{what} in it, and not committed")).hint(hint))
        }
        None => {
            Err(Failure::new("the server does not tell what is staged in it").hint("--force deletes it all the same"))
        }
    }
}

fn prune(args: &PruneWorkspacesArgs, state_dir: Option<&Path>, environment: &Environment) -> Result<u8, Failure> {
    let failed = || format!("cannot delete workspaces of {}", without_credentials(&args.repo));
    let place = place(&args.repo, args.server.as_deref(), environment).doing(failed)?;
    let here = Here::new(&place, state_dir, environment).doing(failed)?;
    let older = args.older.as_secs();
    let is_old = |workspace: &Workspace| {
        let rests = workspace.rests_secs.is_some_and(|secs| secs >= older);
        workspace.own && workspace.mounted.is_empty() && rests
    };
    let look = || {
        let mut found =
            seams::ask(&place, async |repository: &Repository| look_at(repository, &here, usize::MAX, is_old).await)?;
        found.retain(|one| is_old(one) && one.staged.as_ref().is_some_and(|staged| staged.total() == 0));
        Ok::<_, Failure>(found)
    };
    let found = look().doing(failed)?;
    if found.is_empty() {
        note("none of yours is empty and as old as that");
        return if args.json { tell_deleted(&[], true) } else { Ok(0) };
    }
    if !args.json {
        show(&found)?;
    }
    let question = format!("delete {}?", count(found.len() as u64, "workspace"));
    if !asking::may(args.yes, &question).doing(failed)? {
        return Ok(asking::declined());
    }
    // What was staged in while the question was on the screen stays.
    let names: Vec<String> = found.into_iter().map(|workspace| workspace.name).collect();
    let mut left = look().doing(failed)?;
    left.retain(|workspace| names.contains(&workspace.name));
    let mut deleted = Vec::new();
    for workspace in left {
        let name = &workspace.name;
        seams::ask(&place, async |repository: &Repository| repository.delete_workspace(name).await).doing(failed)?;
        deleted.push(workspace.name);
    }
    tell_deleted(&deleted, args.json)
}

fn tell_deleted(names: &[String], as_json: bool) -> Result<u8, Failure> {
    if as_json {
        json(&done::Deleted { deleted: names.to_vec() }, false)?;
    } else {
        for name in names {
            note(format_args!("deleted workspace {}", printable(name)));
        }
    }
    Ok(0)
}
