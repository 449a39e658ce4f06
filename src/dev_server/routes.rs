//! Which method and path each dialect has, and what every request passes through.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, any, delete, get, post, put};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::answers::{Answer, Refusal, success};
use super::repository::Repository;
use super::{App, Dialect, faults, reading, repositories, staging, uploads};
use crate::path::{RepoPath, names_oxens_own};

/// The oldest official client that servers of these releases talk to.
const MIN_CLIENT: (u32, u32, u32) = (0, 36, 0);

/// The longest body that is gathered in memory: lists of paths, and chunks, which clients send by 10 MiB. Contents are
/// streamed, and may be of any length.
const GATHERED_BYTES: usize = 64 << 20;

/// The header that names the server's version on every answer.
const VERSION_HEADER: HeaderName = HeaderName::from_static("oxen-version");

/// What a client calls its request.
const REQUEST_ID_HEADER: HeaderName = HeaderName::from_static("x-oxen-request-id");

/// Path parameters that name a repository.
#[derive(Debug, Deserialize)]
pub(super) struct Repo {
    namespace: String,
    repo: String,
}

impl Repo {
    /// The repository named.
    pub(super) fn find(&self, app: &App) -> Result<Arc<Repository>, Refusal> {
        Repository::find(app, &self.namespace, &self.repo)
    }

    /// Namespace and name.
    pub(super) fn names(&self) -> (&str, &str) {
        (&self.namespace, &self.repo)
    }
}

/// All routes of the app's dialect.
pub(super) fn router(app: Arc<App>) -> Router {
    let dialect = app.dialect;
    let mut below = Router::new()
        .route("/branches", get(repositories::branches).post(repositories::create_branch))
        .route("/branches/{*branch}", get(repositories::branch).delete(repositories::delete_branch))
        .route("/commits/{commit}", get(repositories::commit))
        .route("/dir/{*resource}", get(reading::dir))
        .route("/meta/{*resource}", get(reading::meta))
        .route("/file/{*resource}", get(reading::file))
        .route("/chunk/{*resource}", get(reading::chunk))
        .route("/versions", any(reading::many_versions))
        .route("/versions/{hash}/metadata", get(reading::version))
        .route("/workspaces/{workspace}", get(staging::workspace).delete(staging::delete_workspace))
        .route("/workspaces/{workspace}/changes", get(staging::changes).delete(staging::unstage_many))
        .route("/workspaces/{workspace}/changes/{*path}", get(staging::changes_under).delete(staging::unstage))
        .route("/workspaces/{workspace}/files", delete(staging::remove))
        .route("/workspaces/{workspace}/files/", post(staging::add))
        .route("/workspaces/{workspace}/files/{*path}", one_file().post(staging::add))
        .route("/workspaces/{workspace}/merge/{*branch}", get(staging::mergeability).post(staging::merge));
    let workspaces = get(staging::workspaces);
    below = match dialect {
        Dialect::Documented => below
            .route("/workspaces", workspaces)
            .route("/workspaces/get_or_create", put(staging::workspace_or_new))
            .route("/workspaces/{workspace}/files/batch", post(staging::add_by_hash))
            .route("/workspaces/{workspace}/files/batch/", post(staging::add_by_hash))
            .route("/workspaces/{workspace}/files/batch/{*dir}", one_file().post(staging::add_by_hash)),
        Dialect::V0_50 | Dialect::V0_58 | Dialect::V0_65 => below
            .route("/workspaces", workspaces.put(staging::workspace_or_new).post(staging::workspace_or_new))
            .route("/compare/entries/{*range}", get(reading::compare_entries))
            .route("/commits/history/{*resource}", get(reading::history))
            .route("/versions/{hash}/create", post(uploads::create))
            .route("/versions/{hash}/chunks", put(uploads::chunk))
            .route("/versions/{hash}/complete", post(uploads::complete)),
    };
    below = match dialect {
        Dialect::V0_50 => below
            .route("/workspaces/{workspace}/versions/", post(staging::add_by_hash))
            .route("/workspaces/{workspace}/versions/{*dir}", post(staging::add_by_hash)),
        Dialect::V0_65 => below
            .route("/prune", post(reading::prune))
            .route("/versions/uploads", post(uploads::begin))
            .route("/versions/uploads/{upload}/parts/{part}", put(uploads::part)),
        Dialect::Documented | Dialect::V0_58 => below,
    };
    let api = Router::new()
        .route("/api/min_version", get(min_version))
        .route("/api/health", get(health))
        .route("/api/repos", post(repositories::create))
        .route("/api/repos/{namespace}/{repo}", get(repositories::show).delete(repositories::delete))
        .nest("/api/repos/{namespace}/{repo}", below)
        .layer(middleware::from_fn(refuse_official_clients))
        // The version answers any client, so that an outdated one learns why it is refused elsewhere.
        .route("/api/version", get(version))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), demand_token))
        .fallback(missing)
        .method_not_allowed_fallback(missing)
        .layer(middleware::from_fn_with_state(Arc::clone(&app), faults::intercept))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), name_version))
        .layer(middleware::from_fn(log_request));
    // What a test asks of the server itself is no request of the protocol: no fault meets it, but the token does.
    let own = Router::new()
        .route("/_faults", post(faults::arm).delete(faults::disarm))
        .route("/_traffic", get(faults::traffic).delete(faults::forget_traffic))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), demand_token));
    own.merge(api).layer(DefaultBodyLimit::max(GATHERED_BYTES)).with_state(app)
}

/// What is done to one file of a workspace, named in the URL.
fn one_file() -> MethodRouter<Arc<App>> {
    get(reading::workspace_file).patch(staging::rename).delete(staging::unstage)
}

async fn missing() -> Refusal {
    Refusal::not_found()
}

async fn version(State(app): State<Arc<App>>) -> Answer {
    success("resource_found", json!({"oxen_version": app.dialect.version()}))
}

async fn min_version(State(app): State<Arc<App>>) -> Answer {
    let (major, minor, patch) = MIN_CLIENT;
    let version = format!("{major}.{minor}.{patch}");
    success("resource_found", json!({"oxen_version": app.dialect.version(), "version": version}))
}

async fn health(State(app): State<Arc<App>>) -> Answer {
    let dir = app.data.clone();
    let disk = on_disk(move || Ok(rustix::fs::statvfs(&dir).map_err(std::io::Error::from)?)).await?;
    let gb = |blocks: u64| (blocks * disk.f_frsize) as f64 / 1e9;
    let used = disk.f_blocks.saturating_sub(disk.f_bfree);
    let usage = json!({
        "total_gb": gb(disk.f_blocks),
        "used_gb": gb(used),
        "free_gb": gb(disk.f_bavail),
        "percent_used": used as f64 / disk.f_blocks.max(1) as f64,
    });
    success("resource_found", json!({"oxen_version": app.dialect.version(), "disk_usage": usage}))
}

/// Puts the server's version on every answer, whoever gives it.
async fn name_version(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    response.headers_mut().insert(VERSION_HEADER, HeaderValue::from_static(app.dialect.version()));
    response
}

/// Logs the request under the id that the client gave it, and gives that back, as released servers do (0.65.2, tried).
async fn log_request(request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let id = request.headers().get(REQUEST_ID_HEADER).cloned();
    let started = std::time::Instant::now();
    let mut response = next.run(request).await;
    let (status, took) = (response.status().as_u16(), started.elapsed());
    let shown = id.as_ref().map(|id| String::from_utf8_lossy(id.as_bytes()));
    tracing::debug!(request = shown.as_deref(), %method, path, status, ?took, "answered");
    if let Some(id) = id {
        response.headers_mut().insert(REQUEST_ID_HEADER, id);
    }
    response
}

/// 401 without the token, when there is one.
async fn demand_token(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let sent = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    match &app.token {
        Some(token) if sent.and_then(|sent| sent.strip_prefix("Bearer ")) != Some(token) => {
            Refusal::unauthorized().into_response()
        }
        _ => next.run(request).await,
    }
}

/// 426 for agents that look like the official client of an earlier version, or of none.
async fn refuse_official_clients(request: Request, next: Next) -> Response {
    let agent = request.headers().get(header::USER_AGENT).and_then(|value| value.to_str().ok());
    if agent.is_some_and(is_outdated_client) {
        let (major, minor, patch) = MIN_CLIENT;
        return Refusal::update_required(&format!("{major}.{minor}.{patch}")).into_response();
    }
    next.run(request).await
}

/// Whoever has `oxen` in the name is taken for the official client, `Oxen/1.2.3 (...)`.
fn is_outdated_client(agent: &str) -> bool {
    if !agent.to_ascii_lowercase().contains("oxen") || agent.contains("Postman") {
        return false;
    }
    let version = agent.split('/').nth(1).and_then(|text| {
        let numbers = text.split(|letter: char| !letter.is_ascii_digit() && letter != '.').next()?;
        let mut numbers = numbers.split('.').map(|number| number.parse::<u32>().ok());
        Some((numbers.next()??, numbers.next()??, numbers.next()??))
    });
    version.is_none_or(|version| version < MIN_CLIENT)
}

/// Runs a handler's work on the repository on a thread that may block.
pub(super) async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work).await.map_err(Refusal::internal)?
}

/// A JSON body; servers do not mind its content type.
pub(super) fn from_json<T: DeserializeOwned>(body: &Bytes) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(Refusal::bad_body)
}

/// The path behind `workspaces/{id}/{what}/`, which released servers decode but for `%25`: a name with a percent sign
/// cannot be said here.
pub(super) fn path_behind(uri: &axum::http::Uri, what: &str) -> Result<RepoPath, Refusal> {
    let encoded = uri.path().split_once("/workspaces/").and_then(|(_, rest)| rest.split_once(what));
    let encoded = encoded.map_or("", |(_, path)| path).replace("%25", "%2525");
    let path = percent_decode_str(&encoded).decode_utf8().map_err(|_| Refusal::bad_request("path is not UTF-8"))?;
    staged_path("", &path)
}

/// The path at which a file named `name` in a request about `directory` is staged: blank components are passed over.
///
/// # Errors
/// 400 for a path that would leave the repository or is Oxen's own.
pub(super) fn staged_path(directory: &str, name: &str) -> Result<RepoPath, Refusal> {
    let refuse = |why: &str| {
        let whole = format!("Invalid staging path (directory {directory:?}, file {name:?})");
        Refusal::bad_request(format!("{whole}: {why}"))
    };
    if name.starts_with('/') {
        return Err(refuse("it is absolute"));
    }
    let whole = format!("{directory}/{name}");
    let mut parts = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => return Err(refuse("it has a `..` component")),
            _ if names_oxens_own(part) => return Err(refuse("it is inside a .oxen directory")),
            _ => parts.push(part),
        }
    }
    RepoPath::parse(&parts.join("/")).map_err(|error| refuse(&error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_with_oxen_in_their_name_need_a_version() {
        for refused in ["oxenfs/0.1.0", "Oxen/0.35.9 (linux)", "my-OXEN-tool", "oxen/x.y.z", "a oxen/0.36"] {
            assert!(is_outdated_client(refused), "{refused}");
        }
        for welcome in ["Oxen/0.36.0 (linux; tokio)", "oxen/1.0.0", "curl/8.0", "PostmanRuntime oxen", ""] {
            assert!(!is_outdated_client(welcome), "{welcome}");
        }
    }

    #[test]
    fn names_of_parts_are_normalized_or_refused() {
        let staged = |directory: &str, name: &str| staged_path(directory, name).ok().map(|path| path.to_string());
        assert_eq!(staged("", "a//b").as_deref(), Some("a/b"));
        assert_eq!(staged("d", "a/./b").as_deref(), Some("d/a/b"));
        assert_eq!(staged("./d/", "100%22").as_deref(), Some("d/100%22"));
        assert_eq!(staged("", "oxen~x/.oxenfs").as_deref(), Some("oxen~x/.oxenfs"));
        for bad in ["../x", "a/../b", "/etc/passwd", ".oxen/x", "a/.OXEN", "a/.oxen.", ".oxen:x", "OXEN~1/y"] {
            assert_eq!(staged("d", bad), None, "{bad}");
        }
        assert_eq!(staged("../d", "x"), None);
    }
}
