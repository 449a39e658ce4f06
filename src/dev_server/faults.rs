//! Scripted faults, and counters of what was received, so that a test can bring about what a network or a server does
//! on a bad day, and can show what travelled.
//!
//! Armed through [`Server::faults`](super::Server::faults), or over HTTP on the embedded server alone: `POST /_faults`
//! with a [`Fault`] as JSON or a list of them, `DELETE /_faults` to disarm all; `GET /_traffic` for the counters,
//! `DELETE /_traffic` to begin them anew.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt};
use http_body_util::BodyExt;
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};

use super::App;
use super::answers::Refusal;
use super::repository::Repository;
use super::routes::on_disk;
use super::tree::Change;
use super::uploads::drain;
use super::wire::Connection;
use crate::path::RepoPath;

/// How many requests the log keeps. Tests look at the last few; a server that runs for days must not grow.
const LOG_LENGTH: usize = 10_000;

/// What is done to which requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Only requests with this method; any when absent.
    #[serde(default)]
    pub method: Option<String>,
    /// Only requests whose path and query, as sent, contain this.
    #[serde(default)]
    pub path: String,
    /// The first of the matching requests it is done to, counted from 1.
    #[serde(default = "first")]
    pub nth: u32,
    /// To how many requests it is done in all; every one from `nth` on when absent.
    #[serde(default)]
    pub times: Option<u32>,
    /// What is done.
    pub action: Action,
}

/// What is done to a request. Several faults that match one request all act on it, but only the first that answers
/// for the server or drops the connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// Waits before anything is done.
    Latency {
        /// Milliseconds.
        ms: u64,
    },
    /// Answers for the server; the request has no effect.
    Status {
        /// The HTTP status.
        code: u16,
        /// Seconds for `Retry-After`; no such header when absent.
        #[serde(default)]
        retry_after: Option<u64>,
        /// The body; a plausible error object when absent.
        #[serde(default)]
        body: Option<String>,
    },
    /// Drops the connection; the request has no effect.
    DropBefore,
    /// Drops the connection when the request has had its effect; the answer is never sent.
    DropAfter,
    /// A multipart add succeeds but for files whose path contains this: not staged, not named in the answer.
    OmitPaths {
        /// Part of a path; everything is left out when empty.
        containing: String,
    },
    /// A commit is made, and its answer names another id.
    NameCommit {
        /// Any text.
        id: String,
    },
    /// A commit leaves out what is staged at and below this path.
    LeaveOut {
        /// A file or directory.
        path: RepoPath,
    },
    /// A commit drops what its parent has at this path, with all below, and what is staged there.
    DropFromCommit {
        /// A file or directory.
        path: RepoPath,
    },
    /// Another client does something just before the request is served.
    Meanwhile(Meanwhile),
    /// Sends only the start of the answer's body, then drops the connection.
    Truncate {
        /// Bytes of the body that get through.
        bytes: u64,
    },
    /// Lets the bodies of request and answer through at this speed.
    Throttle {
        /// Bytes a second, at least 1.
        bytes_per_second: u64,
    },
    /// Sends the answer's body byte by byte.
    Drip {
        /// Milliseconds before each byte.
        ms: u64,
    },
    /// Sends the headers of the answer and nothing of its body.
    Hang,
    /// Sends zeros behind the answer's body, without end, and does not say how long it is.
    Endless,
}

/// What another client does, to the workspace that the request's path names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Meanwhile {
    /// Deletes it with all that is staged in it.
    DeleteWorkspace,
    /// Deletes it and makes it anew under the same name.
    RemakeWorkspace {
        /// On which branch.
        branch: String,
    },
    /// Removes all content that no commit refers to.
    Prune,
}

fn first() -> u32 {
    1
}

impl Fault {
    /// Does `action` to every request with this method (any when empty) whose path contains `path`.
    pub fn new(method: &str, path: &str, action: Action) -> Self {
        Self {
            method: (!method.is_empty()).then(|| method.to_owned()),
            path: path.to_owned(),
            nth: first(),
            times: None,
            action,
        }
    }

    /// Begins with the `nth` matching request, counted from 1.
    #[must_use]
    pub fn nth(mut self, nth: u32) -> Self {
        self.nth = nth;
        self
    }

    /// Acts on at most this many requests.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }
}

/// The faults armed on one server, and its counters.
#[derive(Debug, Default)]
pub struct Faults {
    armed: Mutex<Vec<Armed>>,
    traffic: Arc<Traffic>,
}

#[derive(Debug)]
struct Armed {
    fault: Fault,
    /// Matching requests so far.
    seen: u32,
    /// Requests it acted on so far.
    fired: u32,
}

impl Faults {
    /// Adds a fault; those armed before stay.
    pub fn arm(&self, fault: Fault) {
        self.armed().push(Armed { fault, seen: 0, fired: 0 });
    }

    /// Disarms all.
    pub fn clear(&self) {
        self.armed().clear();
    }

    /// How many requests the armed faults have acted on.
    pub fn fired(&self) -> u32 {
        self.armed().iter().map(|armed| armed.fired).sum()
    }

    /// What was received.
    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// What is to be done to this request; counts it as seen.
    fn meet(&self, method: &str, path: &str) -> Vec<Action> {
        let mut actions = Vec::new();
        for armed in self.armed().iter_mut() {
            let fault = &armed.fault;
            let applies = fault.method.as_ref().is_none_or(|wanted| wanted.eq_ignore_ascii_case(method))
                && path.contains(&fault.path);
            if !applies {
                continue;
            }
            armed.seen += 1;
            if armed.seen >= fault.nth && fault.times.is_none_or(|times| armed.fired < times) {
                armed.fired += 1;
                actions.push(fault.action.clone());
            }
        }
        actions
    }

    /// A test that panicked while arming leaves the list as usable as before.
    fn armed(&self) -> MutexGuard<'_, Vec<Armed>> {
        self.armed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a server received, counted.
#[derive(Debug, Default)]
pub struct Traffic {
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    /// By method and route, as `POST workspaces/{workspace}/files/{*path}`.
    routes: BTreeMap<String, RouteCount>,
    log: VecDeque<Logged>,
}

#[derive(Debug, Default, Clone, Copy, Serialize)]
struct RouteCount {
    requests: u64,
    body_bytes: u64,
}

/// One request that was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Logged {
    /// Its method.
    pub method: String,
    /// Its path and query, as sent.
    pub path: String,
    /// The answer's status.
    pub status: u16,
}

impl Traffic {
    /// Requests received whose method and route contain `route`. A route is a method and a path with its parameters
    /// named, as `PUT versions/uploads/{upload}/parts/{part}`; below a repository it begins behind the repository.
    pub fn requests(&self, route: &str) -> u64 {
        self.sum(route, |count| count.requests)
    }

    /// Bytes of request bodies received on those routes, headers and framing of chunks not counted. What an aborted
    /// request got across counts too.
    pub fn bytes_received(&self, route: &str) -> u64 {
        self.sum(route, |count| count.body_bytes)
    }

    /// The last requests that were answered, oldest first.
    pub fn log(&self) -> Vec<Logged> {
        self.counts().log.iter().cloned().collect()
    }

    /// Begins anew from nothing.
    pub fn clear(&self) {
        *self.counts() = Counts::default();
    }

    fn sum(&self, route: &str, of: impl Fn(&RouteCount) -> u64) -> u64 {
        let counts = self.counts();
        let matching = counts.routes.iter().filter(|(name, _)| name.contains(route));
        matching.map(|(_, count)| of(count)).sum()
    }

    fn count(&self, route: &str, requests: u64, body_bytes: u64) {
        let mut counts = self.counts();
        if !counts.routes.contains_key(route) {
            counts.routes.insert(route.to_owned(), RouteCount::default());
        }
        if let Some(count) = counts.routes.get_mut(route) {
            count.requests += requests;
            count.body_bytes += body_bytes;
        }
    }

    fn log_answer(&self, logged: Logged) {
        let mut counts = self.counts();
        if counts.log.len() == LOG_LENGTH {
            counts.log.pop_front();
        }
        counts.log.push_back(logged);
    }

    /// Counting cannot panic half way.
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Paths that a multipart add is to leave out, handed to its handler with the request.
#[derive(Debug, Clone, Default)]
pub(super) struct Omitted(Vec<String>);

impl Omitted {
    /// Whether the file at `path` is to be lost.
    pub(super) fn contains(&self, path: &str) -> bool {
        self.0.iter().any(|part| path.contains(part.as_str()))
    }
}

/// What is done to a commit besides what it says, handed to its handler with the request.
#[derive(Debug, Clone, Default)]
pub(super) struct OddCommit {
    /// What the answer calls the commit.
    pub(super) names: Option<String>,
    left_out: Vec<RepoPath>,
    dropped: Vec<RepoPath>,
}

impl OddCommit {
    /// Makes of a commit's changes what the fault says.
    pub(super) fn apply(&self, changes: &mut BTreeMap<RepoPath, Change>) {
        let touched = |path: &RepoPath| self.left_out.iter().chain(&self.dropped).any(|odd| path.is_in(odd));
        changes.retain(|path, _| !touched(path));
        for path in &self.dropped {
            // One of the two takes effect: that of its kind.
            changes.insert(path.clone(), Change::Drop);
        }
    }
}

/// Does what another client does to the workspace that a path names.
fn meanwhile(app: &App, path: &str, what: &Meanwhile) -> Result<(), Refusal> {
    let names: Vec<String> =
        path.split(['/', '?']).map(|name| percent_decode_str(name).decode_utf8_lossy().into_owned()).collect();
    let [_, _, _, namespace, repo, rest @ ..] = &names[..] else { return Err(Refusal::not_found()) };
    let repository = Repository::find(app, namespace, repo)?;
    let workspace = match rest {
        [workspaces, id, ..] if workspaces == "workspaces" => Ok(id),
        _ => Err(Refusal::not_found()),
    };
    match what {
        Meanwhile::DeleteWorkspace => repository.delete_workspace(workspace?).map(drop),
        Meanwhile::RemakeWorkspace { branch } => {
            let gone = repository.delete_workspace(workspace?)?;
            repository.workspace_or_new(&gone.id, gone.name.as_deref(), branch).map(drop)
        }
        Meanwhile::Prune => repository.prune().map(drop),
    }
}

/// Counts each request and does to it what is armed.
pub(super) async fn intercept(
    State(app): State<Arc<App>>,
    ConnectInfo(connection): ConnectInfo<Connection>,
    mut request: Request,
    next: Next,
) -> Response {
    let method = request.method().as_str().to_owned();
    let path = request.uri().path_and_query().map_or("/", |whole| whole.as_str()).to_owned();
    let route = format!("{method} {}", route_of(&request));
    let actions = app.faults.meet(&method, &path);
    app.faults.traffic.count(&route, 1, 0);
    request = counted(request, &route, &app.faults.traffic);

    let mut drop_after = false;
    let mut mangle = Mangle::default();
    let mut throttle = None;
    let mut omitted = Omitted::default();
    let mut odd = OddCommit::default();
    for action in actions {
        match action {
            Action::NameCommit { id } => odd.names = Some(id),
            Action::LeaveOut { path } => odd.left_out.push(path),
            Action::DropFromCommit { path } => odd.dropped.push(path),
            Action::Meanwhile(what) => {
                let (app, path) = (Arc::clone(&app), path.clone());
                if let Err(refusal) = on_disk(move || meanwhile(&app, &path, &what)).await {
                    tracing::warn!(?refusal, "a scripted client could not do its work");
                }
            }
            Action::Latency { ms } => tokio::time::sleep(Duration::from_millis(ms)).await,
            Action::Status { code, retry_after, body } => {
                app.faults.traffic.log_answer(Logged { method, path, status: code });
                // Unread, the rest of the body would break the connection before the client sees the answer.
                drain(request.into_body()).await;
                return scripted(code, retry_after, body);
            }
            Action::DropBefore => return cut(&connection),
            Action::DropAfter => drop_after = true,
            Action::OmitPaths { containing } => omitted.0.push(containing),
            Action::Truncate { bytes } => mangle.truncate = Some(bytes),
            Action::Drip { ms } => mangle.drip = Some(Duration::from_millis(ms)),
            Action::Hang => mangle.hang = true,
            Action::Endless => mangle.endless = true,
            Action::Throttle { bytes_per_second } => throttle = Some(bytes_per_second.max(1)),
        }
    }
    request.extensions_mut().insert(omitted);
    request.extensions_mut().insert(odd);
    if let Some(bytes_per_second) = throttle {
        request = request.map(|body| Body::from_stream(throttled(body.into_data_stream(), bytes_per_second)));
    }
    let response = tokio::select! {
        response = next.run(request) => response,
        // Nobody is left to be answered, and a killed server does nothing more.
        () = connection.was_cut() => return cut(&connection),
    };
    app.faults.traffic.log_answer(Logged { method, path, status: response.status().as_u16() });
    if drop_after {
        return cut(&connection);
    }
    mangle.throttle = throttle;
    if mangle == Mangle::default() { response } else { mangled(response, mangle) }
}

/// What is done to the body of an answer.
#[derive(Debug, Default, PartialEq, Eq)]
struct Mangle {
    truncate: Option<u64>,
    /// Bytes a second.
    throttle: Option<u64>,
    /// The pause before each byte.
    drip: Option<Duration>,
    hang: bool,
    endless: bool,
}

/// The request's route, without what all routes of repositories have in common.
fn route_of(request: &Request) -> String {
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let route = route.unwrap_or_else(|| request.uri().path());
    route.strip_prefix("/api/repos/{namespace}/{repo}/").unwrap_or(route).to_owned()
}

/// The request with its body counted as it is read.
fn counted(request: Request, route: &str, traffic: &Arc<Traffic>) -> Request {
    let (route, traffic) = (route.to_owned(), Arc::clone(traffic));
    request.map(|body| {
        Body::new(body.map_frame(move |frame| {
            if let Some(data) = frame.data_ref() {
                traffic.count(&route, 0, data.len() as u64);
            }
            frame
        }))
    })
}

/// Ends the connection. What is returned here is never sent.
fn cut(connection: &Connection) -> Response {
    connection.cut();
    Response::new(Body::empty())
}

fn scripted(code: u16, retry_after: Option<u64>, body: Option<String>) -> Response {
    let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = body.unwrap_or_else(|| {
        r#"{"status":"error","status_message":"scripted","status_description":"scripted fault"}"#.to_owned()
    });
    let mut response = (status, [(header::CONTENT_TYPE, "application/json")], body).into_response();
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// The response with another body. Its length stays announced, where it has an end.
fn mangled(response: Response, mangle: Mangle) -> Response {
    use axum::body::HttpBody;
    let (mut parts, body) = response.into_parts();
    if let Some(length) = body.size_hint().exact() {
        parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    let mut stream = StreamExt::boxed(body.into_data_stream());
    if mangle.endless {
        parts.headers.remove(header::CONTENT_LENGTH);
        let zeros = futures_util::stream::repeat(()).map(|()| Ok(Bytes::from_static(&[0; 1 << 16])));
        stream = stream.chain(zeros).boxed();
    }
    if let Some(bytes) = mangle.truncate {
        stream = truncated(stream, bytes).boxed();
    }
    if let Some(bytes_per_second) = mangle.throttle {
        stream = throttled(stream, bytes_per_second).boxed();
    }
    if let Some(pause) = mangle.drip {
        stream = dripping(stream, pause).boxed();
    }
    if mangle.hang {
        stream = futures_util::stream::pending().boxed();
    }
    Response::from_parts(parts, Body::from_stream(stream))
}

/// The first `bytes` of a body, then an error, at which the connection is dropped.
fn truncated<S>(stream: S, bytes: u64) -> impl Stream<Item = Result<Bytes, axum::Error>>
where
    S: Stream<Item = Result<Bytes, axum::Error>> + Unpin,
{
    futures_util::stream::unfold((stream, Some(bytes)), |(mut stream, left)| async move {
        let left = left?;
        if left == 0 {
            // What is before the error goes out first: hyper flushes when a body has to be waited for.
            tokio::task::yield_now().await;
            let error = axum::Error::new(std::io::Error::other("scripted truncation"));
            return Some((Err(error), (stream, None)));
        }
        match stream.next().await? {
            Ok(mut chunk) => {
                chunk.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                let left = left - chunk.len() as u64;
                Some((Ok(chunk), (stream, Some(left))))
            }
            Err(error) => Some((Err(error), (stream, None))),
        }
    })
}

/// A body at `bytes_per_second`: each chunk is followed by the pause it costs.
fn throttled<S, E>(stream: S, bytes_per_second: u64) -> impl Stream<Item = Result<Bytes, E>> + Send
where
    S: Stream<Item = Result<Bytes, E>> + Send,
    E: Send,
{
    stream.then(move |chunk| async move {
        if let Ok(chunk) = &chunk {
            let micros = (chunk.len() as u64).saturating_mul(1_000_000) / bytes_per_second;
            tokio::time::sleep(Duration::from_micros(micros)).await;
        }
        chunk
    })
}

/// A body byte by byte, with a pause before each.
fn dripping<S, E>(stream: S, pause: Duration) -> impl Stream<Item = Result<Bytes, E>> + Send
where
    S: Stream<Item = Result<Bytes, E>> + Send,
    E: Send + 'static,
{
    let bytes = stream.flat_map(|chunk| match chunk {
        Ok(chunk) => {
            let bytes = (0..chunk.len()).map(move |at| Ok(chunk.slice(at..=at)));
            futures_util::stream::iter(bytes).left_stream()
        }
        Err(error) => futures_util::stream::iter([Err(error)]).right_stream(),
    });
    bytes.then(move |byte| async move {
        tokio::time::sleep(pause).await;
        byte
    })
}

/// One fault or several.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Script {
    One(Fault),
    Many(Vec<Fault>),
}

/// `POST /_faults`.
pub(super) async fn arm(
    State(app): State<Arc<App>>,
    axum::Json(script): axum::Json<Script>,
) -> axum::Json<serde_json::Value> {
    let faults = match script {
        Script::One(fault) => vec![fault],
        Script::Many(faults) => faults,
    };
    let armed = faults.len();
    faults.into_iter().for_each(|fault| app.faults.arm(fault));
    axum::Json(serde_json::json!({"status": "success", "armed": armed}))
}

/// `DELETE /_faults`.
pub(super) async fn disarm(State(app): State<Arc<App>>) -> axum::Json<serde_json::Value> {
    app.faults.clear();
    axum::Json(serde_json::json!({"status": "success"}))
}

/// `GET /_traffic`.
pub(super) async fn traffic(State(app): State<Arc<App>>) -> axum::Json<serde_json::Value> {
    let routes = app.faults.traffic.counts().routes.clone();
    axum::Json(serde_json::json!({"status": "success", "routes": routes, "log": app.faults.traffic.log()}))
}

/// `DELETE /_traffic`.
pub(super) async fn forget_traffic(State(app): State<Arc<App>>) -> axum::Json<serde_json::Value> {
    app.faults.traffic.clear();
    axum::Json(serde_json::json!({"status": "success"}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_acts_from_its_nth_match_as_often_as_it_says() {
        let faults = Faults::default();
        let action = Action::DropBefore;
        faults.arm(Fault::new("POST", "/files/", action.clone()).nth(2).times(2));
        let met = || faults.meet("POST", "/api/x/files/").len();
        assert_eq!([met(), met(), met(), met()], [0, 1, 1, 0]);
        assert!(faults.meet("GET", "/api/x/files/").is_empty());
        assert!(faults.meet("POST", "/api/x/changes").is_empty());
        assert_eq!(faults.fired(), 2);
        faults.clear();
        faults.arm(Fault::new("", "", action));
        assert_eq!(faults.meet("GET", "/anything").len(), 1);
    }

    #[test]
    fn faults_are_read_from_json_with_defaults() {
        let script = r#"{"path": "/files", "action": {"status": {"code": 503, "retry_after": 2}}}"#;
        let fault: Fault = serde_json::from_str(script).unwrap();
        assert_eq!((fault.nth, fault.times, fault.method), (1, None, None));
        assert!(matches!(fault.action, Action::Status { code: 503, retry_after: Some(2), .. }));
        let drop: Fault = serde_json::from_str(r#"{"action": "drop_after"}"#).unwrap();
        assert_eq!(drop.action, Action::DropAfter);
        assert!(serde_json::from_str::<Fault>(r#"{"action": "drop_after", "tiems": 1}"#).is_err());
    }

    #[tokio::test]
    async fn a_truncated_body_ends_in_an_error() {
        let chunks = ["hello ", "wor", "ld"].map(|chunk| Ok(Bytes::from(chunk)));
        let sent: Vec<_> = truncated(futures_util::stream::iter(chunks), 7).collect().await;
        assert_eq!(sent.len(), 3);
        assert_eq!(sent[0].as_deref().ok(), Some(&b"hello "[..]));
        assert_eq!(sent[1].as_deref().ok(), Some(&b"w"[..]));
        assert!(sent[2].is_err());
    }

    #[test]
    fn traffic_is_summed_over_matching_routes() {
        let traffic = Traffic::default();
        traffic.count("POST workspaces/{workspace}/files/{*path}", 1, 0);
        traffic.count("POST workspaces/{workspace}/files/{*path}", 0, 10);
        traffic.count("POST versions/uploads", 1, 5);
        assert_eq!((traffic.requests("POST"), traffic.bytes_received("POST")), (2, 15));
        assert_eq!(traffic.bytes_received("/files/"), 10);
        traffic.clear();
        assert_eq!(traffic.requests(""), 0);
    }
}
