//! Workspaces: what is staged in them, and committing it.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, Path, Query, State};
use axum::http::{HeaderMap, Uri};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::answers::{Answer, EntryView, Page, Refusal, nothing, partly, success};
use super::faults::{OddCommit, Omitted};
use super::multipart::{Head, Multipart, boundary};
use super::reading::Listing;
use super::repositories::refused;
use super::repository::{Author, Repository};
use super::routes::{Repo, from_json, on_disk, path_behind, staged_path};
use super::versions::{Arriving, Content, blocking, inflate};
use super::workspace::{Base, Staged, Staging, goes_back_to_base, is_table};
use super::{App, Dialect};
use crate::hash::ContentHash;
use crate::path::RepoPath;

/// The longest content of a gzip part, inflated (released servers' `OXEN_STREAM_SEGMENT_SIZE`).
const INFLATED_BYTES: u64 = 10 * 1024 * 1024;

/// `{workspace}`: an id or a name.
#[derive(Debug, Deserialize)]
pub(super) struct InWorkspace {
    workspace: String,
}

#[derive(Deserialize)]
struct NewWorkspace {
    branch_name: String,
    workspace_id: String,
    name: Option<String>,
}

/// `PUT workspaces`, documented as `PUT workspaces/get_or_create`.
pub(super) async fn workspace_or_new(State(app): State<Arc<App>>, Path(repo): Path<Repo>, body: Bytes) -> Answer {
    on_disk(move || {
        let repository = repo.find(&app)?;
        let new: NewWorkspace = from_json(&body)?;
        let (view, made) = repository.workspace_or_new(&new.workspace_id, new.name.as_deref(), &new.branch_name)?;
        let message = if made { "resource_created" } else { "resource_found" };
        success(message, json!({"workspace": view}))
    })
    .await
}

/// `GET workspaces`.
pub(super) async fn workspaces(
    State(app): State<Arc<App>>,
    Path(repo): Path<Repo>,
    Query(query): Query<BTreeMap<String, String>>,
) -> Answer {
    on_disk(move || {
        let mut views = repo.find(&app)?.workspaces()?;
        if let Some(name) = query.get("name") {
            views.retain(|view| view.name.as_ref() == Some(name));
        }
        // Released servers say `resource_created` of a list.
        success("resource_created", json!({"workspaces": views}))
    })
    .await
}

/// `GET workspaces/{id}`.
pub(super) async fn workspace(
    State(app): State<Arc<App>>,
    Path(repo): Path<Repo>,
    Path(InWorkspace { workspace }): Path<InWorkspace>,
) -> Answer {
    on_disk(move || {
        let view = repo.find(&app)?.workspace(&workspace)?;
        success("resource_found", json!({"workspace": view}))
    })
    .await
}

/// `DELETE workspaces/{id}`.
pub(super) async fn delete_workspace(
    State(app): State<Arc<App>>,
    Path(repo): Path<Repo>,
    Path(InWorkspace { workspace }): Path<InWorkspace>,
) -> Answer {
    on_disk(move || {
        let view = repo.find(&app)?.delete_workspace(&workspace)?;
        success("resource_created", json!({"workspace": view}))
    })
    .await
}

/// `GET workspaces/{id}/changes`.
pub(super) async fn changes(
    State(app): State<Arc<App>>,
    Path(repo): Path<Repo>,
    Path(InWorkspace { workspace }): Path<InWorkspace>,
    Query(listing): Query<Listing>,
) -> Answer {
    staged_in(app, repo, workspace, RepoPath::root(), listing).await
}

/// `GET workspaces/{id}/changes/{path}`.
pub(super) async fn changes_under(
    State(app): State<Arc<App>>,
    Path(repo): Path<Repo>,
    Path(InWorkspace { workspace }): Path<InWorkspace>,
    Query(listing): Query<Listing>,
    uri: Uri,
) -> Answer {
    staged_in(app, repo, workspace, path_behind(&uri, "/changes/")?, listing).await
}

async fn staged_in(app: Arc<App>, repo: Repo, workspace: String, dir: RepoPath, listing: Listing) -> Answer {
    if listing.page_size == Some(0) {
        return Err(Refusal::bad_request("page_size must be at least 1"));
    }
    on_disk(move || {
        let repository = repo.find(&app)?;
        let mut lists: [Vec<RepoPath>; 3] = Default::default();
        let left = repository.staging(&workspace, |staging, _| {
            for (path, staged) in staging.under(&dir) {
                let list = match staged {
                    Staged::Added(_) => 0,
                    Staged::Modified(_) => 1,
                    Staged::Removed => 2,
                };
                lists[list].push(path.clone());
            }
            Ok(staging.left_dirs().into_iter().filter(|left| left.is_in(&dir)).collect::<Vec<_>>())
        })?;
        if app.dialect != Dialect::Documented {
            // Released servers list in an order that changes from one request to the next, so that pages overlap.
            lists.iter_mut().for_each(|list| fastrand::shuffle(list));
        }
        let mut staged = Map::new();
        staged.insert("added_dirs".to_owned(), dirs_of(&lists, &left));
        for (name, paths) in ["added_files", "modified_files", "removed_files"].into_iter().zip(&lists) {
            let page = Page::new(listing.page, listing.page_size, paths.len());
            // Neither hash nor size is told here.
            let view = |path: &RepoPath| EntryView::file(path.as_str().to_owned(), String::new(), 0);
            let entries: Vec<_> = page.of(paths).iter().map(view).collect();
            let mut fields = page.fields();
            fields.insert("entries".to_owned(), json!(entries));
            staged.insert(name.to_owned(), fields.into());
        }
        success("resource_found", json!({"staged": staged}))
    })
    .await
}

/// How many files are staged in each directory, grouped by the directory's first component. Those that are marked and
/// hold nothing that is staged are there with none (0.53.4, 0.58.0 and 0.65.2, read: `status_from_dir_entries`).
fn dirs_of([added, modified, removed]: &[Vec<RepoPath>; 3], left: &[RepoPath]) -> Value {
    let mut counts: BTreeMap<(RepoPath, &str), u64> = left.iter().map(|dir| ((dir.clone(), "Added"), 0)).collect();
    for (paths, status) in [(added, "Added"), (modified, "Added"), (removed, "Removed")] {
        for path in paths {
            *counts.entry((path.parent().unwrap_or_default(), status)).or_default() += 1;
        }
    }
    let total: u64 = counts.values().sum();
    let mut grouped: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for ((dir, status), count) in counts {
        let first = dir.components().next().unwrap_or_default().to_owned();
        let view = json!({"path": dir.as_str(), "num_files_staged": count, "total_files": 0, "status": status});
        grouped.entry(first).or_default().push(view);
    }
    json!({"num_files_staged": total, "total_files": 0, "paths": grouped})
}

/// How unstaging one path went.
enum Unstaged {
    Done,
    NothingStaged,
    /// A table that the base does not have: it is not unstaged, but can be removed.
    NewTable,
}

/// Drops what is staged at a path. Released servers take tables for something else: instead of being unstaged, a table
/// that the base has is silently left as it is, or as the base has it, and one that it does not have is refused; a
/// directory of such a name too.
fn unstage_one(dialect: Dialect, staging: &mut Staging, base: &Base<'_>, path: &RepoPath) -> Result<Unstaged, Refusal> {
    if is_table(dialect, path) {
        if base.file(path)?.is_none() {
            return Ok(Unstaged::NewTable);
        }
        if goes_back_to_base(path) {
            staging.index(path)?;
        }
        return Ok(Unstaged::Done);
    }
    let found = staging.unstage(path)?;
    Ok(if found { Unstaged::Done } else { Unstaged::NothingStaged })
}

/// `DELETE workspaces/{id}/changes/{path}`: 404 when nothing is staged there.
pub(super) async fn unstage(
    State(app): State<Arc<App>>,
    Path(repo): Path<Repo>,
    Path(InWorkspace { workspace }): Path<InWorkspace>,
    uri: Uri,
) -> Answer {
    let what = if uri.path().contains("/changes/") { "/changes/" } else { "/files/" };
    let path = path_behind(&uri, what)?;
    on_disk(move || {
        let repository = repo.find(&app)?;
        let unstaged =
            repository.staging(&workspace, |staging, base| unstage_one(app.dialect, staging, base, &path))?;
        match unstaged {
            Unstaged::Done => success("resource_deleted", nothing()),
            Unstaged::NothingStaged => Err(Refusal::not_found()),
            Unstaged::NewTable => Err(Refusal::no_path(path)),
        }
    })
    .await
}

/// `DELETE workspaces/{id}/changes` with a list of paths; those with nothing staged are passed over.
pub(super) async fn unstage_many(
    State(app): State<Arc<App>>,
    Path(repo): Path<Repo>,
    Path(InWorkspace { workspace }): Path<InWorkspace>,
    body: Bytes,
) -> Answer {
    on_disk(move || {
        let repository = repo.find(&app)?;
        let paths: Vec<String> = from_json(&body)?;
        let refused = repository.staging(&workspace, |staging, base| {
            let mut refused = Vec::new();
            for text in paths {
                let path = RepoPath::parse(&text).ok().filter(|path| staging.is_staged(path));
                let Some(path) = path else {
                    continue;
                };
                if let Unstaged::NewTable = unstage_one(app.dialect, staging, base, &path)? {
                    refused.push(text);
                }
            }
            Ok(refused)
        })?;
        if refused.is_empty() { success("resource_deleted", nothing()) } else { partly(json!({"paths": refused})) }
    })
    .await
}

/// `POST workspaces/{id}/files/{dir}`: content as a form. Answers with the paths that were staged; a part whose content
/// cannot be used is left out, the others go on. A name that cannot be used refuses the whole request.
pub(super) async fn add(
    State(app): State<Arc<App>>,
    Path(repo): Path<Repo>,
    Path(InWorkspace { workspace }): Path<InWorkspace>,
    Path(parameters): Path<BTreeMap<String, String>>,
    Extension(omitted): Extension<Omitted>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let directory = parameters.get("path").cloned().unwrap_or_default();
    let boundary = boundary(&headers).map_err(refused)?;
    let (finding, id) = (Arc::clone(&app), workspace.clone());
    let repository = on_disk(move || {
        let repository = repo.find(&finding)?;
        repository.workspace(&id)?;
        Ok(repository)
    })
    .await?;
    let mut form = Multipart::new(body.into_data_stream(), &boundary);
    let mut received: Vec<(RepoPath, Content)> = Vec::new();
    while let Some(head) = form.next_part().await.map_err(refused)? {
        if !matches!(head.name.as_deref(), Some("file" | "file[]")) {
            continue;
        }
        let path = part_path(app.dialect, &directory, &head)?;
        let content = receive(&mut form, &repository, head.gzip).await?;
        if let Some(content) = content.filter(|_| !omitted.contains(path.as_str())) {
            received.push((path, content));
        }
    }
    on_disk(move || {
        repository.staging(&workspace, |staging, base| Ok(staging.put(base, &repository.versions, &received)?))?;
        let paths: Vec<_> = received.iter().map(|(path, _)| path.as_str()).collect();
        success("resource_created", json!({"paths": paths}))
    })
    .await
}

/// Where a part is staged.
fn part_path(dialect: Dialect, directory: &str, head: &Head) -> Result<RepoPath, Refusal> {
    let name = head.filename.as_deref();
    let name = name.ok_or_else(|| Refusal::bad_request("Missing filename in multipart request"))?;
    let name = match dialect {
        // These keep only the last component.
        Dialect::Documented | Dialect::V0_50 => name.rsplit('/').next().unwrap_or(name),
        Dialect::V0_58 | Dialect::V0_65 => name,
    };
    let path = staged_path(directory, name)?;
    if path.is_root() {
        return Err(Refusal::bad_request("empty path"));
    }
    Ok(path)
}

/// Keeps the content of the form's current part; `None` when it cannot be inflated.
async fn receive<S, E>(
    form: &mut Multipart<S>,
    repository: &Arc<Repository>,
    gzip: bool,
) -> Result<Option<Content>, Refusal>
where
    S: futures_util::Stream<Item = Result<Bytes, E>> + Unpin,
    E: std::fmt::Display,
{
    if !gzip {
        let mut content = Arriving::new(&repository.versions);
        while let Some(bytes) = form.chunk().await.map_err(refused)? {
            content.push(&bytes).await?;
        }
        return Ok(Some(content.finish().await?));
    }
    let mut deflated = Vec::new();
    while let Some(bytes) = form.chunk().await.map_err(refused)? {
        // What is longer deflated than it may be inflated is hopeless, and not worth the memory.
        if deflated.len() as u64 <= INFLATED_BYTES {
            deflated.extend_from_slice(&bytes);
        }
    }
    let versions = repository.versions.clone();
    let kept = blocking(move || match inflate(&deflated, INFLATED_BYTES) {
        Some(bytes) => versions.keep_bytes(&bytes).map(Some),
        None => Ok(None),
    });
    Ok(kept.await?)
}

#[derive(Deserialize)]
struct ByHash {
    hash: String,
    path: String,
}

/// Many files by hash, below a directory: `POST workspaces/{id}/versions/{dir}`, documented as
/// `POST workspaces/{id}/files/batch/{dir}`.
pub(super) async fn add_by_hash(
    State(app): State<Arc<App>>,
    Path(repo): Path<Repo>,
    Path(InWorkspace { workspace }): Path<InWorkspace>,
    Path(parameters): Path<BTreeMap<String, String>>,
    body: Bytes,
) -> Answer {
    let directory = parameters.get("dir").cloned().unwrap_or_default();
    on_disk(move || {
        let repository = repo.find(&app)?;
        repository.workspace(&workspace)?;
        let files: Vec<ByHash> = from_json(&body)?;
        let mut found = Vec::new();
        let mut missing = Vec::new();
        for ByHash { hash, path } in files {
            let content = hash.parse::<ContentHash>().ok().and_then(|hash| repository.versions.find(&hash));
            match (content, staged_path(&directory, &path)) {
                (Some(content), Ok(at)) => found.push((at, content)),
                (None, _) => missing.push(json!({"hash": hash, "path": path, "error": "version not found"})),
                (_, Err(_)) => missing.push(json!({"hash": hash, "path": path, "error": "invalid path"})),
            }
        }
        repository.staging(&workspace, |staging, base| Ok(staging.put(base, &repository.versions, &found)?))?;
        success("resource_created", json!({"err_files": missing}))
    })
    .await
}

/// `DELETE workspaces/{id}/files` with a list of files and directories: 206 with those that were not there.
pub(super) async fn remove(
    State(app): State<Arc<App>>,
    Path(repo): Path<Repo>,
    Path(InWorkspace { workspace }): Path<InWorkspace>,
    body: Bytes,
) -> Answer {
    on_disk(move || {
        let repository = repo.find(&app)?;
        let paths: Vec<String> = from_json(&body)?;
        let missing = repository.staging(&workspace, |staging, base| {
            let mut missing = Vec::new();
            for text in &paths {
                let found = match RepoPath::parse(text) {
                    Ok(path) => staging.remove(base, app.dialect, &path)?,
                    Err(_) => false,
                };
                if !found {
                    missing.push(text.clone());
                }
            }
            Ok(missing)
        })?;
        if missing.is_empty() {
            success("resource_deleted", json!({"paths": paths}))
        } else {
            partly(json!({"paths": missing}))
        }
    })
    .await
}

#[derive(Deserialize)]
struct Rename {
    new_path: String,
}

/// `PATCH workspaces/{id}/files/{path}`.
pub(super) async fn rename(
    State(app): State<Arc<App>>,
    Path(repo): Path<Repo>,
    Path(InWorkspace { workspace }): Path<InWorkspace>,
    uri: Uri,
    body: Bytes,
) -> Answer {
    let from = path_behind(&uri, "/files/")?;
    on_disk(move || {
        let repository = repo.find(&app)?;
        let Rename { new_path } = from_json(&body)?;
        if new_path.is_empty() {
            return Err(Refusal::bad_request("new_path cannot be empty"));
        }
        let to = staged_path("", &new_path)?;
        repository.staging(&workspace, |staging, base| staging.rename(base, app.dialect, &from, &to))?;
        success("resource_updated", nothing())
    })
    .await
}

/// `{branch}` behind `merge/`.
fn branch_of(parameters: &BTreeMap<String, String>) -> String {
    parameters.get("branch").cloned().unwrap_or_default()
}

/// `GET workspaces/{id}/merge/{branch}`.
pub(super) async fn mergeability(
    State(app): State<Arc<App>>,
    Path(repo): Path<Repo>,
    Path(InWorkspace { workspace }): Path<InWorkspace>,
    Path(parameters): Path<BTreeMap<String, String>>,
) -> Answer {
    on_disk(move || {
        let found = repo.find(&app)?.mergeability(&workspace, &branch_of(&parameters))?;
        let conflicts: Vec<_> = found.conflicts.iter().map(|path| json!({"path": path})).collect();
        let body = json!({
            "is_mergeable": conflicts.is_empty(),
            "conflicts": conflicts,
            "commits": found.commits,
        });
        success("resource_found", body)
    })
    .await
}

#[derive(Deserialize)]
struct NewCommit {
    message: String,
    author: String,
    email: String,
}

/// `POST workspaces/{id}/merge/{branch}`.
pub(super) async fn merge(
    State(app): State<Arc<App>>,
    Path(repo): Path<Repo>,
    Path(InWorkspace { workspace }): Path<InWorkspace>,
    Path(parameters): Path<BTreeMap<String, String>>,
    Extension(odd): Extension<OddCommit>,
    body: Bytes,
) -> Answer {
    on_disk(move || {
        let repository = repo.find(&app)?;
        let new: NewCommit = from_json(&body)?;
        let author = Author { name: &new.author, email: &new.email };
        let commit = repository.merge(&workspace, &branch_of(&parameters), author, &new.message, &odd)?;
        let mut answer = json!({"commit": commit});
        if let Some(id) = &odd.names {
            answer["commit"]["id"] = id.as_str().into();
        }
        success("resource_created", answer)
    })
    .await
}
