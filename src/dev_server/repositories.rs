//! Repositories and branches.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRequest, Path, Request, State};
use axum::http::header;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::answers::{Answer, Refusal, nothing, success};
use super::multipart::{Multipart, MultipartError, boundary};
use super::repository::{Author, Repository};
use super::routes::{Repo, from_json, on_disk, staged_path};
use super::versions::{Arriving, Content};
use super::{App, Dialect};
use crate::path::RepoPath;

/// The branch of a repository's first commit.
pub(super) const FIRST_BRANCH: &str = "main";

/// The longest text field of a form. Only the repository's description can be long at all.
const FIELD_BYTES: usize = 1 << 20;

/// A repository to be made.
#[derive(Deserialize)]
struct NewRepository {
    namespace: String,
    name: String,
    #[serde(default)]
    files: Option<Vec<NewFile>>,
}

#[derive(Deserialize)]
struct NewFile {
    path: String,
    contents: NewContents,
    user: User,
}

/// Released servers take a string; the published description has an object.
#[derive(Deserialize)]
#[serde(untagged)]
enum NewContents {
    Plain(String),
    Documented(DocumentedContents),
}

#[derive(Deserialize)]
enum DocumentedContents {
    Text(String),
    Binary(Vec<u8>),
}

#[derive(Deserialize)]
struct User {
    name: String,
    email: String,
}

/// `POST /api/repos`, with JSON or a form.
pub(super) async fn create(State(app): State<Arc<App>>, request: Request) -> Answer {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if kind == "application/json" {
        let body = Bytes::from_request(request, &()).await.map_err(Refusal::bad_body)?;
        return create_from_json(app, &body).await;
    }
    if kind.starts_with("multipart/form-data") {
        let boundary = boundary(request.headers()).map_err(refused)?;
        return create_from_form(app, &boundary, request.into_body()).await;
    }
    Err(Refusal::bad_request("Unsupported Content-Type"))
}

async fn create_from_json(app: Arc<App>, body: &[u8]) -> Answer {
    let invalid = || Refusal::bad_request("Invalid JSON");
    let new: NewRepository = serde_json::from_slice(body).map_err(|_| invalid())?;
    let mut user = None;
    let mut files = Vec::new();
    for file in new.files.into_iter().flatten() {
        let bytes = match (file.contents, app.dialect) {
            (
                NewContents::Plain(text) | NewContents::Documented(DocumentedContents::Text(text)),
                Dialect::Documented,
            ) => text.into_bytes(),
            (NewContents::Documented(DocumentedContents::Binary(bytes)), Dialect::Documented) => bytes,
            (NewContents::Plain(text), _) => text.into_bytes(),
            (NewContents::Documented(_), _) => return Err(invalid()),
        };
        files.push((staged_path("", &file.path)?, bytes));
        user = user.or(Some(file.user));
    }
    on_disk(move || {
        let repository = Repository::create(&app, &new.namespace, &new.name)?;
        let files = files.into_iter().map(|(path, bytes)| Ok((path, repository.versions.keep_bytes(&bytes)?)));
        let files = files.collect::<std::io::Result<Vec<_>>>()?;
        created(&repository, user.as_ref(), &files)
    })
    .await
}

/// The repository's fields come first, then the user's, then the files.
async fn create_from_form(app: Arc<App>, boundary: &str, body: Body) -> Answer {
    let mut form = Multipart::new(body.into_data_stream(), boundary);
    let mut repository = None;
    let mut fields: BTreeMap<String, String> = BTreeMap::new();
    let mut files: Vec<(RepoPath, Content)> = Vec::new();
    while let Some(head) = form.next_part().await.map_err(refused)? {
        match head.name.as_deref() {
            Some("new_repo") => {
                let text = text_field(&mut form).await?;
                let new: NewRepository =
                    serde_json::from_str(&text).map_err(|_| Refusal::bad_request("Invalid JSON"))?;
                let app = Arc::clone(&app);
                repository = Some(on_disk(move || Repository::create(&app, &new.namespace, &new.name)).await?);
            }
            Some("file" | "file[]") => {
                let repository = repository.as_ref().ok_or_else(|| Refusal::bad_request("new_repo comes first"))?;
                let name = head.filename.ok_or_else(|| Refusal::bad_request("Missing filename"))?;
                // The name becomes a single component.
                let path = staged_path("", &name.replace('/', ""))?;
                let mut content = Arriving::new(&repository.versions);
                while let Some(bytes) = form.chunk().await.map_err(refused)? {
                    content.push(&bytes).await?;
                }
                files.push((path, content.finish().await?));
            }
            Some(name) => {
                let text = text_field(&mut form).await?;
                fields.insert(name.to_owned(), text);
            }
            None => {}
        }
    }
    let repository = repository.ok_or_else(|| Refusal::bad_request("Missing new_repo"))?;
    let user = fields.remove("name").zip(fields.remove("email")).map(|(name, email)| User { name, email });
    if user.is_none() && !files.is_empty() {
        return Err(Refusal::bad_request("Missing name or email"));
    }
    on_disk(move || created(&repository, user.as_ref(), &files)).await
}

async fn text_field<S, E>(form: &mut Multipart<S>) -> Result<String, Refusal>
where
    S: futures_util::Stream<Item = Result<Bytes, E>> + Unpin,
    E: std::fmt::Display,
{
    let mut text = Vec::new();
    while let Some(bytes) = form.chunk().await.map_err(refused)? {
        if text.len() + bytes.len() > FIELD_BYTES {
            return Err(Refusal::bad_request("field too long"));
        }
        text.extend_from_slice(&bytes);
    }
    String::from_utf8(text).map_err(|_| Refusal::bad_request("field is not UTF-8"))
}

/// Commits the first files, if there are any, and answers for the new repository.
fn created(repository: &Repository, user: Option<&User>, files: &[(RepoPath, Content)]) -> Answer {
    let latest = match user {
        Some(User { name, email }) if !files.is_empty() => {
            Some(repository.begin(FIRST_BRANCH, Author { name, email }, files)?.view)
        }
        _ => None,
    };
    let mut view = describe(repository);
    view["latest_commit"] = json!(latest);
    // Released servers say `resource_found` of what they just made.
    success("resource_found", json!({"repository": view}))
}

fn describe(repository: &Repository) -> Value {
    json!({
        "namespace": repository.namespace,
        "name": repository.name,
        "min_version": "0.36.0",
        "storage_kind": "local",
        "repo_uuid": repository.uuid(),
    })
}

/// What a form that cannot be read is answered with.
pub(super) fn refused(error: MultipartError) -> Refusal {
    match error {
        MultipartError::NotMultipart => Refusal::not_multipart(error),
        _ => Refusal::bad_request(error.to_string()),
    }
}

/// `GET` a repository.
pub(super) async fn show(State(app): State<Arc<App>>, Path(repo): Path<Repo>) -> Answer {
    on_disk(move || {
        let repository = repo.find(&app)?;
        let branches = repository.branches();
        let mut view = describe(&repository);
        let bytes = repository.head(FIRST_BRANCH).map_or(0, |commit| commit.root.bytes);
        view["is_empty"] = branches.is_empty().into();
        view["branch_count"] = branches.len().into();
        view["size"] = bytes.into();
        success("resource_found", json!({"repository": view}))
    })
    .await
}

/// `DELETE` a repository.
pub(super) async fn delete(State(app): State<Arc<App>>, Path(repo): Path<Repo>) -> Answer {
    on_disk(move || {
        let (namespace, name) = repo.names();
        Repository::delete(&app, namespace, name)?;
        success("resource_deleted", nothing())
    })
    .await
}

/// `GET branches`.
pub(super) async fn branches(State(app): State<Arc<App>>, Path(repo): Path<Repo>) -> Answer {
    on_disk(move || {
        let branches = repo.find(&app)?.branches();
        let branches: Vec<_> = branches.iter().map(|(name, id)| json!({"name": name, "commit_id": id})).collect();
        success("resource_found", json!({"branches": branches}))
    })
    .await
}

/// `GET branches/{name}`.
pub(super) async fn branch(
    State(app): State<Arc<App>>,
    Path(repo): Path<Repo>,
    Path(parameters): Path<BTreeMap<String, String>>,
) -> Answer {
    let name = parameters.get("branch").cloned().unwrap_or_default();
    on_disk(move || {
        let head = repo.find(&app)?.head(&name)?;
        success("resource_found", json!({"branch": {"name": name, "commit_id": head.view.id}}))
    })
    .await
}

/// `GET commits/{id}`.
pub(super) async fn commit(
    State(app): State<Arc<App>>,
    Path(repo): Path<Repo>,
    Path(parameters): Path<BTreeMap<String, String>>,
) -> Answer {
    let id = parameters.get("commit").cloned().unwrap_or_default();
    on_disk(move || {
        let commit = repo.find(&app)?.commit_view(&id).ok_or_else(Refusal::not_found)?;
        success("resource_found", json!({"commit": *commit}))
    })
    .await
}

#[derive(Deserialize)]
#[serde(untagged)]
enum NewBranch {
    From { new_name: String, from_name: String },
    At { new_name: String, commit_id: String },
}

/// `POST branches`.
pub(super) async fn create_branch(State(app): State<Arc<App>>, Path(repo): Path<Repo>, body: Bytes) -> Answer {
    on_disk(move || {
        let repository = repo.find(&app)?;
        let (new_name, (id, new)) = match from_json(&body)? {
            NewBranch::From { new_name, from_name } => {
                let made = repository.create_branch(&new_name, &from_name)?;
                (new_name, made)
            }
            NewBranch::At { new_name, commit_id } => {
                repository.create_branch_at(&new_name, &commit_id)?;
                (new_name, (commit_id, true))
            }
        };
        let message = if new { "resource_created" } else { "resource_found" };
        success(message, json!({"branch": {"name": new_name, "commit_id": id}}))
    })
    .await
}

/// `DELETE branches/{name}`.
pub(super) async fn delete_branch(
    State(app): State<Arc<App>>,
    Path(repo): Path<Repo>,
    Path(parameters): Path<BTreeMap<String, String>>,
) -> Answer {
    let name = parameters.get("branch").cloned().unwrap_or_default();
    on_disk(move || {
        let commit = repo.find(&app)?.delete_branch(&name)?;
        success("resource_deleted", json!({"branch": {"name": name, "commit_id": commit}}))
    })
    .await
}
