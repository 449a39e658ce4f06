//! One pooled HTTP client: addresses, credentials, deadlines, and every answer made a value or an error.

use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, LOCATION, RETRY_AFTER,
};
use reqwest::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Endpoint;
use super::body::Body;
use super::recognition::Recognition;
use super::retry::{Patience, attempt_number, retry};
use super::wire;
use crate::activity::Activity;
use crate::config::Secret;
use crate::path::RepoPath;
use crate::workspace::progress::{LEAST_BYTES_PER_SEC, received};
use crate::workspace::which::{KnownRepository, said_of_other};
use crate::workspace::{RequestId, WorkspaceError};

/// The token as it is now; asked again after the server refused one.
pub type Credentials = Arc<dyn Fn() -> Option<Secret> + Send + Sync>;

/// Servers log what it says, and give it back (oxen-server 0.65.2, tried).
const REQUEST_ID: &str = "x-oxen-request-id";
/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a server may be silent before it answers a small request that changes something.
pub(super) const SILENCE: Duration = Duration::from_secs(60);
/// How long it may be silent, or send less than [`LEAST_BYTES_PER_SEC`], when it is asked for something, before another
/// connection is tried.
const STALL: Duration = Duration::from_secs(30);
/// A question that got no answer in time may be one that takes the server long: the next time it is given more, up to
/// this many times as much.
const MOST_STALLS: u32 = 4;
/// The slowest link an upload is waited for on, in bytes a second.
const SLOWEST_BYTES_PER_SEC: u64 = 256 << 10;
/// Shorter than the 5 s after which actix, the server's framework, closes idle connections unless told otherwise: a
/// request on a connection that is just being closed is lost.
const IDLE: Duration = Duration::from_secs(4);
/// The longest answer that is held in memory, but for pages of listings.
const ANSWER_BYTES: usize = 16 << 20;
/// The status of an answer that is too long to be taken in: as that of a request to which it comes.
pub(super) const TOO_LONG: u16 = 413;
/// The longest refusal that is read: its first sentence is all that is shown.
const REFUSAL_BYTES: usize = 64 << 10;
/// Above this, parsing an answer would hold up the other tasks of a thread.
const PARSE_INLINE_BYTES: usize = 64 << 10;

/// What surely fits into a connection's buffers on the way.
const SOCKET_BYTES: u64 = 16 << 10;

/// All but the unreserved characters of RFC 3986, and `+`: `workspaces/{id}/files/{path}` does not decode `%2B`, and
/// nothing takes `+` for a space in a path (oxen-server 0.65.2, tried).
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'+');
/// The same, without the slash.
const ENCODED_PATH: &AsciiSet = &ENCODED.remove(b'/');

/// One component of a URL's path.
pub(super) fn segment(text: &str) -> String {
    utf8_percent_encode(text, ENCODED).to_string()
}

/// Several components: slashes stay.
pub(super) fn segments(text: &str) -> String {
    utf8_percent_encode(text, ENCODED_PATH).to_string()
}

/// The same for a path of the repository.
pub(super) fn path(path: &RepoPath) -> String {
    segments(path.as_str())
}

/// The same for `workspaces/{id}/files/{path}`, which does not decode `%25` but leaves a `%` alone that begins no
/// escape (0.53.4 and 0.65.2, tried). `None`: two hexadecimal digits follow one, and no request can name the path.
pub(super) fn workspace_path(path: &RepoPath) -> Option<String> {
    let escape = |after: &str| after.len() >= 2 && after.as_bytes()[..2].iter().all(u8::is_ascii_hexdigit);
    if path.as_str().split('%').skip(1).any(escape) {
        return None;
    }
    Some(segments(path.as_str()).replace("%25", "%"))
}

/// A request that can be made any number of times.
#[derive(Debug, Clone)]
pub(super) struct Request {
    method: Method,
    /// Below the server's base, encoded.
    path: String,
    /// What is missing when the answer is 404.
    what: String,
    body: Option<(String, Body)>,
    /// What the server may take on top of the time that the body takes; `None`: as long as any.
    patience: Option<Duration>,
    /// The longest answer.
    limit: usize,
    /// A refusal whose body is what was asked for.
    answered_by: Option<StatusCode>,
}

impl Request {
    pub(super) fn new(method: Method, path: String, what: impl Into<String>) -> Self {
        Self { method, path, what: what.into(), body: None, patience: None, limit: ANSWER_BYTES, answered_by: None }
    }

    pub(super) fn get(path: String, what: impl Into<String>) -> Self {
        Self::new(Method::GET, path, what)
    }

    /// With `value` as JSON. The media type is exact: oxen-server 0.65.2 takes no other (tried).
    pub(super) fn json(mut self, value: &impl Serialize) -> Result<Self, WorkspaceError> {
        let json = serde_json::to_vec(value).map_err(|error| WorkspaceError::Protocol {
            detail: format!("cannot write a request: {error}"),
            request: None,
        })?;
        self.body = Some(("application/json".to_owned(), json.into()));
        Ok(self)
    }

    pub(super) fn body(mut self, media_type: impl Into<String>, body: Body) -> Self {
        self.body = Some((media_type.into(), body));
        self
    }

    /// For a request that takes the server longer than others.
    pub(super) fn patience(mut self, patience: Duration) -> Self {
        self.patience = Some(patience);
        self
    }

    /// For a request whose answer may be of this length.
    pub(super) fn answer_bytes(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    /// For a request to which a refusal with this status is an answer, to be read like a success.
    pub(super) fn answered_by(mut self, status: StatusCode) -> Self {
        self.answered_by = Some(status);
        self
    }

    /// Whether the server does the same whether it comes or not. `QUERY` asks with a body.
    fn changes_nothing(&self) -> bool {
        self.method.is_safe() || self.method.as_str() == "QUERY"
    }

    /// Whether a server may refuse it before it has taken the whole body.
    fn is_long(&self) -> bool {
        self.body.as_ref().is_some_and(|(_, body)| body.len() > SOCKET_BYTES)
    }

    /// A short request about the same repository, which meets the same guards.
    fn question(&self) -> Option<Self> {
        let end = self.path.match_indices('/').nth(3).map(|(end, _)| end)?;
        Some(Self::get(self.path[..end].to_owned(), self.what.clone()))
    }

    /// Its path without what is different for each repository, workspace and file.
    fn shape(&self) -> String {
        let path = self.path.split('?').next().unwrap_or_default();
        if !path.starts_with("api/repos/") {
            return path.to_owned();
        }
        let is_word =
            |part| matches!(part, "uploads" | "parts" | "files" | "changes" | "merge" | "create" | "complete");
        let parts = path.split('/').take(9).enumerate().map(|(at, part)| match at {
            0 | 1 | 4 => part,
            5.. if is_word(part) => part,
            _ => "*",
        });
        parts.collect::<Vec<_>>().join("/")
    }

    /// What it is about, in few words: the same for all repositories, workspaces and files.
    fn kind(&self) -> String {
        let path = self.path.split('?').next().unwrap_or_default();
        let mut parts = path.split('/').skip(1);
        let below = |first: &str, second: Option<&str>| match second {
            Some(second) => format!("{first}_{second}"),
            None => first.to_owned(),
        };
        match (parts.next(), parts.nth(2), parts.next()) {
            (Some("repos"), Some("workspaces"), None) => "workspaces".to_owned(),
            (Some("repos"), Some("workspaces"), Some(_)) => below("workspace", parts.next()),
            (Some("repos"), Some("versions"), Some("uploads")) => "versions_uploads".to_owned(),
            (Some("repos"), Some("versions"), Some(_)) => below("versions", parts.next()),
            (Some("repos"), Some(about), _) => about.to_owned(),
            (Some("repos"), None, _) => "repository".to_owned(),
            (about, ..) => about.unwrap_or_default().to_owned(),
        }
    }

    /// How long this attempt at it, counted from 1, may go without an answer.
    fn deadline(&self, stall: Duration, attempt: u32) -> Duration {
        let bytes = self.body.as_ref().map_or(0, |(_, body)| body.len());
        let asks = self.changes_nothing() && !self.is_long();
        let patience = self.patience.unwrap_or_else(|| match asks {
            true => stall * (1 << attempt.saturating_sub(1).min(8)).min(MOST_STALLS),
            false => SILENCE,
        });
        patience + Duration::from_secs(bytes / SLOWEST_BYTES_PER_SEC)
    }
}

/// A success whose body has not been read yet.
pub(super) struct Answer {
    pub status: StatusCode,
    response: reqwest::Response,
    what: String,
    server: Arc<str>,
    length: Option<u64>,
    read: u64,
    limit: usize,
    pace: Pace,
    id: RequestId,
}

/// How fast a body comes: so much in each stretch of waiting for it, or it has stalled.
struct Pace {
    stall: Duration,
    waited: Duration,
    got: u64,
}

impl Pace {
    fn new(stall: Duration) -> Self {
        Self { stall, waited: Duration::ZERO, got: 0 }
    }

    /// How long the next piece may be waited for.
    fn left(&self) -> Duration {
        self.stall.saturating_sub(self.waited)
    }

    /// A piece has come. The time between two pieces that nobody waited for them does not count.
    fn note(&mut self, waited: Duration, bytes: usize) {
        self.waited += waited;
        self.got += bytes as u64;
        if self.got as f64 >= LEAST_BYTES_PER_SEC as f64 * self.stall.as_secs_f64() {
            *self = Self::new(self.stall);
        }
    }
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answer").field("status", &self.status).field("what", &self.what).finish_non_exhaustive()
    }
}

impl Answer {
    /// What the server calls its version in every answer.
    pub(super) fn version(&self) -> Option<String> {
        Some(self.response.headers().get("oxen-version")?.to_str().ok()?.to_owned())
    }

    /// What time it was at the server when it answered.
    pub(super) fn date(&self) -> Option<SystemTime> {
        httpdate::parse_http_date(self.response.headers().get("date")?.to_str().ok()?).ok()
    }

    /// How long its body is, where the server says so.
    pub(super) fn length(&self) -> Option<u64> {
        self.length
    }

    /// The request that it answers.
    pub(super) fn id(&self) -> RequestId {
        self.id
    }

    /// The next piece of the body.
    ///
    /// # Errors
    /// [`WorkspaceError::Protocol`] when the body ends early, [`WorkspaceError::TimedOut`] when nothing comes, or too
    /// little.
    pub(super) async fn piece(&mut self) -> Result<Option<Bytes>, WorkspaceError> {
        let began = Instant::now();
        match tokio::time::timeout(self.pace.left(), self.response.chunk()).await {
            Err(_) => Err(WorkspaceError::TimedOut { after: self.pace.stall, request: Some(self.id) }),
            Ok(Err(error)) => Err(self.broke_off(&deepest(&error))),
            Ok(Ok(Some(piece))) => {
                self.read += piece.len() as u64;
                self.pace.note(began.elapsed(), piece.len());
                received(piece.len() as u64);
                Ok(Some(piece))
            }
            Ok(Ok(None)) => match self.length {
                Some(length) if length != self.read => Err(self.broke_off("the connection was closed")),
                _ => Ok(None),
            },
        }
    }

    fn too_long(&self) -> WorkspaceError {
        let message = format!("the answer for {} is longer than {} bytes", self.what, self.limit);
        WorkspaceError::Refused { status: TOO_LONG, message, request: Some(self.id) }
    }

    fn broke_off(&self, cause: &str) -> WorkspaceError {
        let of = self.length.map(|length| format!(" of {length}")).unwrap_or_default();
        let detail = format!("{} ended after {}{of} bytes: {cause}", self.what, self.read);
        WorkspaceError::Protocol { detail, request: Some(self.id) }
    }

    /// The whole body.
    async fn bytes(mut self) -> Result<Bytes, WorkspaceError> {
        if self.length.is_some_and(|length| length > self.limit as u64) {
            return Err(self.too_long());
        }
        let mut whole = BytesMut::with_capacity(self.length.unwrap_or(0) as usize);
        while let Some(piece) = self.piece().await? {
            if whole.len() + piece.len() > self.limit {
                return Err(self.too_long());
            }
            whole.extend_from_slice(&piece);
        }
        Ok(whole.freeze())
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// [`WorkspaceError::Protocol`] when it is something else; [`WorkspaceError::Unreachable`] when it broke off: to
    /// whoever changed something, that is a lost answer.
    pub(super) async fn json<T: DeserializeOwned + Send + 'static>(self) -> Result<T, WorkspaceError> {
        let (what, server, request) = (self.what.clone(), self.server.clone(), Some(self.id));
        let bytes = self.bytes().await.map_err(|error| match error {
            WorkspaceError::Protocol { detail, .. } => {
                WorkspaceError::Unreachable { server: server.to_string(), cause: detail, request }
            }
            error => error,
        })?;
        let small = bytes.len() <= PARSE_INLINE_BYTES;
        let parse = move || {
            serde_json::from_slice(&bytes).map_err(|error| {
                let detail = format!("the answer for {what} is not what was asked for: {error}");
                WorkspaceError::Protocol { detail, request }
            })
        };
        if small { parse() } else { blocking(parse).await? }
    }
}

/// Runs what would hold up other tasks on a thread of its own.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, WorkspaceError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| WorkspaceError::from(std::io::Error::other(error)))
}

/// A server and the way to it.
pub(super) struct Http {
    client: reqwest::Client,
    /// Scheme, authority and path prefix, without a final slash.
    base: String,
    /// Scheme and authority, for messages.
    server: Arc<str>,
    credentials: Credentials,
    /// The token last read; `None` before the first request.
    token: Mutex<Option<Option<Secret>>>,
    loopback: bool,
    stall: Duration,
    read_only: bool,
    unanswered: AtomicU64,
    recognition: Recognition,
    activity: Arc<Activity>,
}

impl Http {
    /// A client for the server of `endpoint`; no request is made.
    ///
    /// # Errors
    /// [`WorkspaceError::Refused`] when that is no HTTP address, [`WorkspaceError::Unreachable`] when the system's
    /// certificates cannot be read.
    pub(super) fn new(endpoint: &Endpoint) -> Result<Self, WorkspaceError> {
        let base = endpoint.server.as_str();
        let invalid =
            |why: &str| WorkspaceError::Refused { status: 0, message: format!("{base}: {why}"), request: None };
        let url = reqwest::Url::parse(base).map_err(|error| invalid(&error.to_string()))?;
        let (scheme, Some(host)) = (url.scheme(), url.host_str()) else {
            return Err(invalid("no host"));
        };
        if !matches!(scheme, "http" | "https") {
            return Err(invalid("neither http nor https"));
        }
        let loopback = is_loopback(host);
        let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
        let server: Arc<str> = format!("{scheme}://{host}{port}").into();
        let base = format!("{server}{}", url.path().trim_end_matches('/'));

        // reqwest comes without a provider here. A second installation fails, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .user_agent(&endpoint.user_agent)
            .connect_timeout(CONNECT)
            .pool_idle_timeout(IDLE)
            .tcp_keepalive(Duration::from_secs(30))
            // A redirect would turn a POST into a GET.
            .redirect(reqwest::redirect::Policy::none())
            .referer(false);
        if scheme == "http" {
            // No certificate is looked at, so none needs to be installed either.
            builder = builder.tls_certs_only([]);
        }
        if loopback {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|error| WorkspaceError::Unreachable {
            server: server.to_string(),
            cause: deepest(&error),
            request: None,
        })?;
        Ok(Self {
            client,
            base,
            server,
            credentials: endpoint.credentials.clone(),
            token: Mutex::new(None),
            loopback,
            stall: endpoint.stall.unwrap_or(STALL),
            read_only: endpoint.read_only,
            unanswered: AtomicU64::new(0),
            recognition: Recognition::default(),
            activity: endpoint.activity.clone(),
        })
    }

    /// Whether the server is on this machine.
    pub(super) fn is_loopback(&self) -> bool {
        self.loopback
    }

    /// How long it may be silent when it is asked for something, before another connection is tried.
    pub(super) fn stall(&self) -> Duration {
        self.stall
    }

    /// Scheme and authority.
    pub(super) fn server(&self) -> &str {
        &self.server
    }

    /// Which repository is meant.
    pub(super) fn recognition(&self) -> &Recognition {
        &self.recognition
    }

    /// How many requests that change something may have arrived and were not answered by the server.
    pub(super) fn unanswered(&self) -> u64 {
        self.unanswered.load(Ordering::Relaxed)
    }

    fn goes_unanswered(&self, request: &Request) {
        if !request.changes_nothing() {
            self.unanswered.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Makes the request once; twice when a token was refused and there is another one.
    ///
    /// # Errors
    /// As the answer says; anything but 2xx is an error. [`WorkspaceError::Refused`] without a status where only reading is
    /// allowed and the request may change something: it is not sent.
    pub(super) async fn send(&self, request: &Request) -> Result<Answer, WorkspaceError> {
        if self.read_only && !request.changes_nothing() {
            let message = format!("a read-only mount sends no {}", request.method);
            return Err(WorkspaceError::Refused { status: 0, message, request: None });
        }
        if self.recognition.in_doubt(!request.changes_nothing()).is_some() {
            self.recognize(request).await?;
        }
        self.send_unseen(request).await
    }

    /// Looks whether the repository that a request is about is the one that is meant.
    ///
    /// # Errors
    /// [`WorkspaceError::Another`]; as [`send`](Self::send) when nobody tells.
    async fn recognize(&self, request: &Request) -> Result<(), WorkspaceError> {
        let _turn = self.recognition.turn().await;
        let Some(known) = self.recognition.in_doubt(!request.changes_nothing()) else { return Ok(()) };
        let Some(question) = request.question() else { return Ok(()) };
        let answer = match self.send_unseen(&question).await {
            Ok(answer) => answer.json::<wire::RepositoryAnswer>().await?,
            // So is what the request is about.
            Err(WorkspaceError::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let uuid = answer.repository.repo_uuid;
        if !known.is_called(uuid.as_deref()) {
            let is_same = match &known.commit {
                Some(commit) => self.has_commit(&question.path, &commit.0).await?,
                None => known.uuid.is_none() || uuid.is_none(),
            };
            if !is_same {
                return Err(self.another(&question.path, &known, uuid.as_deref()));
            }
            if known.uuid.is_some() && uuid.is_some() {
                tracing::warn!(
                    ?known,
                    ?uuid,
                    "the repository has another id, and the commit that is known: taken for the same"
                );
            }
        }
        self.recognition.recognized();
        Ok(())
    }

    /// The failure of one who finds another repository in the place of `known`.
    fn another(&self, repository: &str, known: &KnownRepository, uuid: Option<&str>) -> WorkspaceError {
        let mut names =
            repository.rsplit('/').map(|name| percent_encoding::percent_decode_str(name).decode_utf8_lossy());
        let (name, namespace) = (names.next().unwrap_or_default(), names.next().unwrap_or_default());
        let repo = format!("{namespace}/{name}");
        WorkspaceError::Another {
            server: self.server.to_string(),
            repo,
            known: known.said(),
            found: said_of_other(uuid),
        }
    }

    /// Whether the repository at this path has a commit: it is found as such, or by its root, or a branch stands on it, as
    /// the route for commits is not everywhere, and a root without files is 404.
    async fn has_commit(&self, repository: &str, commit: &str) -> Result<bool, WorkspaceError> {
        for place in ["commits/", "dir/"] {
            let place = format!("{repository}/{place}{}", segment(commit));
            match self.send_unseen(&Request::get(place, "")).await {
                Ok(_) => return Ok(true),
                Err(WorkspaceError::NotFound { .. } | WorkspaceError::Refused { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let branches = self.send_unseen(&Request::get(format!("{repository}/branches"), "")).await?;
        let branches = branches.json::<wire::BranchesAnswer>().await?.branches;
        Ok(branches.iter().any(|branch| branch.commit_id == commit))
    }

    /// [`send`](Self::send), whichever repository it is.
    async fn send_unseen(&self, request: &Request) -> Result<Answer, WorkspaceError> {
        let token = self.token();
        let mut result = self.attempt(request, token.as_ref()).await;
        if matches!(result, Err(WorkspaceError::Unreachable { .. }))
            && request.is_long()
            && let Some(question) = request.question()
            && let Err(error @ (WorkspaceError::Unauthorized { .. } | WorkspaceError::Forbidden { .. })) =
                self.attempt(&question, token.as_ref()).await
        {
            // Refused before the body was read: with the connection closed on it, the answer is mostly lost.
            result = Err(error);
        }
        match result {
            Err(refused @ WorkspaceError::Unauthorized { .. }) => {
                let fresh = (self.credentials)();
                *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(fresh.clone());
                if fresh.is_none() || fresh == token {
                    return Err(refused);
                }
                self.attempt(request, fresh.as_ref()).await
            }
            result => result,
        }
    }

    /// The same, and the answer's JSON.
    pub(super) async fn json<T>(&self, request: &Request) -> Result<T, WorkspaceError>
    where
        T: DeserializeOwned + Send + 'static,
    {
        self.send(request).await?.json().await
    }

    /// The same, repeated as `patience` allows.
    pub(super) async fn json_with<T>(&self, patience: Patience, request: &Request) -> Result<T, WorkspaceError>
    where
        T: DeserializeOwned + Send + 'static,
    {
        retry(patience, || self.json(request)).await
    }

    /// [`json_with`](Self::json_with) all patience; `None` where the answer is 404.
    pub(super) async fn find<T>(&self, request: &Request) -> Result<Option<T>, WorkspaceError>
    where
        T: DeserializeOwned + Send + 'static,
    {
        match self.json_with(Patience::Several, request).await {
            Ok(value) => Ok(Some(value)),
            Err(WorkspaceError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn token(&self) -> Option<Secret> {
        let mut token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        token.get_or_insert_with(|| (self.credentials)()).clone()
    }

    /// Sends the request, under an id of its own that the server logs and gives back; says in the log how it went.
    async fn attempt(&self, request: &Request, token: Option<&Secret>) -> Result<Answer, WorkspaceError> {
        let (id, method, shape) = (RequestId::random(), &request.method, request.shape());
        let attempt = attempt_number();
        tracing::trace!(request = %id, %method, path = request.path, "sending a request");
        let started = Instant::now();
        let result = self.exchange(request, id, token).await;
        let took = started.elapsed();
        let outcome = result.as_ref().map_or_else(WorkspaceError::kind, |_| "ok");
        self.activity.request(&request.kind(), method.as_str(), outcome, took, attempt);
        match &result {
            Ok(answer) => {
                let status = answer.status.as_u16();
                tracing::debug!(request = %id, %method, path = shape, status, ?took, attempt, "a request was answered");
            }
            Err(error) => {
                let error = error.reason();
                tracing::debug!(request = %id, %method, path = shape, ?took, attempt, error, "a request failed");
            }
        }
        result
    }

    async fn exchange(
        &self,
        request: &Request,
        id: RequestId,
        token: Option<&Secret>,
    ) -> Result<Answer, WorkspaceError> {
        let deadline = request.deadline(self.stall, attempt_number());
        let mut builder = self.client.request(request.method.clone(), format!("{}/{}", self.base, request.path));
        builder = builder.header(REQUEST_ID, id.to_string());
        if let Some(token) = token {
            let Ok(mut value) = reqwest::header::HeaderValue::from_str(&format!("Bearer {}", token.expose())) else {
                // Not sent.
                return Err(WorkspaceError::Unauthorized { request: None });
            };
            value.set_sensitive(true);
            builder = builder.header(AUTHORIZATION, value);
        }
        if let Some((media_type, body)) = &request.body {
            // With the length set, the stream is not sent in chunks.
            builder = builder.header(CONTENT_TYPE, media_type).header(CONTENT_LENGTH, body.len()).body(body.open());
        }
        let response = match tokio::time::timeout(deadline, builder.send()).await {
            Err(_) => {
                self.recognition.doubt();
                self.goes_unanswered(request);
                return Err(WorkspaceError::TimedOut { after: deadline, request: Some(id) });
            }
            Ok(Err(error)) => {
                self.recognition.doubt();
                if !error.is_connect() {
                    self.goes_unanswered(request);
                }
                let (server, cause) = (self.server.to_string(), deepest(&error));
                return Err(WorkspaceError::Unreachable { server, cause, request: Some(id) });
            }
            Ok(Ok(response)) => response,
        };
        let status = response.status();
        self.recognition.heard();
        if matches!(status, StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT) {
            self.recognition.doubt();
            self.goes_unanswered(request);
        }
        if !status.is_success() && request.answered_by != Some(status) {
            return Err(refusal(request, id, response, token).await);
        }
        if let Some(encoding) = response.headers().get(CONTENT_ENCODING).filter(|encoding| *encoding != "identity") {
            let detail = format!("{} came encoded as {encoding:?}, which was not asked for", request.what);
            return Err(WorkspaceError::Protocol { detail, request: Some(id) });
        }
        let length = content_length(response.headers());
        Ok(Answer {
            status,
            response,
            what: request.what.clone(),
            server: self.server.clone(),
            length,
            read: 0,
            limit: request.limit,
            pace: Pace::new(self.stall),
            id,
        })
    }
}

/// What an answer other than 2xx means.
async fn refusal(
    request: &Request,
    id: RequestId,
    mut response: reqwest::Response,
    token: Option<&Secret>,
) -> WorkspaceError {
    let status = response.status();
    let retry_after = retry_after(response.headers());
    let target = response.headers().get(LOCATION).and_then(|url| url.to_str().ok()).map(place);
    let target = target.map(|target| crate::log::hide(&target).into_owned());
    let mut body = Vec::new();
    let read = async {
        while body.len() <= REFUSAL_BYTES
            && let Ok(Some(piece)) = response.chunk().await
        {
            body.extend_from_slice(&piece);
        }
    };
    // What has come by then is enough to tell.
    let _ = tokio::time::timeout(CONNECT, read).await;
    let cut = body.len() > REFUSAL_BYTES;
    body.truncate(REFUSAL_BYTES);
    let message = wire::refusal_message(&body, cut, token)
        .unwrap_or_else(|| status.canonical_reason().unwrap_or("no reason given").to_owned());
    classify(status, retry_after, message, &request.what, target.as_deref(), id)
}

/// Where a redirect leads, without what may be a credential: a user, a query.
fn place(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) =
                rest.split_once('/').map_or((rest, None), |(authority, path)| (authority, Some(path)));
            let host = authority.rsplit('@').next().unwrap_or_default();
            format!("{scheme}://{host}{}{}", if path.is_some() { "/" } else { "" }, path.unwrap_or_default())
        }
        None => url.to_owned(),
    }
}

/// The error for a status other than 2xx.
fn classify(
    status: StatusCode,
    retry_after: Option<Duration>,
    message: String,
    what: &str,
    target: Option<&str>,
    id: RequestId,
) -> WorkspaceError {
    let request = Some(id);
    match status.as_u16() {
        300..=399 => {
            let message = format!("the server sends on to {}", target.unwrap_or("another address"));
            WorkspaceError::Refused { status: status.as_u16(), message, request }
        }
        401 => WorkspaceError::Unauthorized { request },
        403 => WorkspaceError::Forbidden { message, request },
        404 => WorkspaceError::NotFound { what: what.to_owned(), request },
        408 => WorkspaceError::Server { status: 408, message, request },
        409 => WorkspaceError::Conflict { message, request },
        413 | 507 => WorkspaceError::NoSpace { message, request },
        429 => WorkspaceError::Busy { retry_after, request },
        503 if retry_after.is_some() => WorkspaceError::Busy { retry_after, request },
        500.. => WorkspaceError::Server { status: status.as_u16(), message, request },
        _ => WorkspaceError::Refused { status: status.as_u16(), message, request },
    }
}

/// The last link of the error chain, which names the cause; the ones before say where it was met.
fn deepest(error: &dyn Error) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Seconds; a date is what no Oxen server sends, and counts as a second.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
    Some(Duration::from_secs(text.trim().parse().unwrap_or(1)))
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    address == "localhost" || address.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_of_a_path_names_no_repository_and_no_file() {
        for (path, shape) in [
            ("api/version", "api/version"),
            ("api/repos/ox/cats", "api/repos/*/*"),
            ("api/repos/ox/cats/dir/c0ffee/a/b/c/d/e/f?page=1", "api/repos/*/*/dir/*/*/*/*"),
            ("api/repos/ox/cats/workspaces/w/changes?page=1", "api/repos/*/*/workspaces/*/changes"),
            ("api/repos/ox/cats/workspaces/w/files/a/b.txt", "api/repos/*/*/workspaces/*/files/*/*"),
            ("api/repos/ox/cats/versions/uploads/u/parts/3", "api/repos/*/*/versions/uploads/*/parts/*"),
        ] {
            assert_eq!(Request::get(path.into(), "it").shape(), shape);
        }
    }

    #[test]
    fn the_kind_of_a_request_names_no_repository_and_no_file() {
        for (path, kind) in [
            ("api/version", "version"),
            ("api/repos", "repository"),
            ("api/repos/ox/cats", "repository"),
            ("api/repos/ox/cats/branches/main", "branches"),
            ("api/repos/ox/cats/dir/c0ffee/files/parts?page=1", "dir"),
            ("api/repos/ox/cats/workspaces", "workspaces"),
            ("api/repos/ox/cats/workspaces/w", "workspace"),
            ("api/repos/ox/cats/workspaces/w/changes?page=1", "workspace_changes"),
            ("api/repos/ox/cats/workspaces/w/files/a/b.txt", "workspace_files"),
            ("api/repos/ox/cats/versions", "versions"),
            ("api/repos/ox/cats/versions/uploads/u/parts/3", "versions_uploads"),
            ("api/repos/ox/cats/versions/99aa/metadata", "versions_metadata"),
        ] {
            assert_eq!(Request::get(path.into(), "it").kind(), kind, "{path}");
        }
    }

    #[test]
    fn where_a_redirect_leads_is_shown_without_what_may_be_a_credential() {
        for (url, shown) in [
            ("https://u:p@host:8/login?token=x#y", "https://host:8/login"),
            ("https://host", "https://host"),
            ("/login?token=x", "/login"),
            ("http://u:p@host/a@b", "http://host/a@b"),
        ] {
            assert_eq!(place(url), shown);
        }
    }
}
