//! Requests and answers: credentials, deadlines, and every answer turned into a value or a [`WorkspaceError`].

use std::error::Error as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Body, Client, Method, RequestBuilder, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::retry::{self, Attempts};
use super::wire;
use crate::config::{CredentialSource, Secret, ServerUrl};
use crate::path::RepoPath;
use crate::workspace::WorkspaceError;

/// Not the product's name: an agent that contains `oxen`, in any case, is taken for the official client, and its
/// version is refused with 426 (oxen-server 0.65.2, tried).
const USER_AGENT: &str = concat!("workspace-mount/", env!("CARGO_PKG_VERSION"));
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection on which nothing arrives for so long is broken.
const READ_TIMEOUT: Duration = Duration::from_secs(120);
/// The least time a request gets, and the slowest rate that is waited for beyond it.
const BASE_DEADLINE: Duration = Duration::from_secs(60);
const SLOWEST_BYTES_PER_SEC: u64 = 64 << 10;
/// How much of an error's body is read.
const ERROR_BODY_BYTES: usize = 64 << 10;
/// What stays as it is in a path segment: RFC 3986's unreserved characters.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A path segment, encoded.
pub(super) fn segment(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

/// A repository path, encoded by segments.
pub(super) fn path(path: &RepoPath) -> String {
    path.components().map(segment).collect::<Vec<_>>().join("/")
}

/// How long a request that carries `bytes` may take.
pub(super) fn deadline(bytes: u64) -> Duration {
    BASE_DEADLINE + Duration::from_secs(bytes / SLOWEST_BYTES_PER_SEC)
}

/// A server, and how to talk to it.
#[derive(Clone)]
pub(super) struct Http {
    client: Client,
    /// Scheme, host, port and path prefix, without a slash at the end.
    base: Arc<str>,
    credentials: CredentialSource,
    token: Arc<Mutex<Option<Secret>>>,
}

impl Http {
    pub(super) fn new(url: &ServerUrl, credentials: CredentialSource) -> Result<Self, WorkspaceError> {
        // Fails when another part of the process has installed one: just as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .user_agent(USER_AGENT)
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .redirect(reqwest::redirect::Policy::limited(3))
            .build()
            .map_err(|error| WorkspaceError::Protocol { detail: cause(&error) })?;
        let token = credentials.read();
        let base = url.to_string().trim_end_matches('/').into();
        Ok(Self { client, base, credentials, token: Arc::new(Mutex::new(token)) })
    }

    pub(super) fn server(&self) -> &str {
        &self.base
    }

    pub(super) fn request(&self, method: Method, path: &str, carries: u64) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.base)).timeout(deadline(carries))
    }

    /// A request with a body of known length that is streamed.
    pub(super) fn streamed(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        length: u64,
        body: Body,
    ) -> RequestBuilder {
        let request = self.request(method, path, length);
        request.header(CONTENT_TYPE, content_type).header(CONTENT_LENGTH, length).body(body)
    }

    fn with_token(&self, request: RequestBuilder) -> RequestBuilder {
        let token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        match &*token {
            Some(token) => request.bearer_auth(token.expose()),
            None => request,
        }
    }

    /// Sends once, and once more with a fresh token when the one at hand is refused.
    async fn send_once(
        &self,
        build: &impl Fn() -> Result<RequestBuilder, WorkspaceError>,
    ) -> Result<Response, WorkspaceError> {
        let mut renewed = false;
        loop {
            let answer = self.with_token(build()?).send().await.map_err(|error| self.failure(&error))?;
            if answer.status() == StatusCode::UNAUTHORIZED && !renewed {
                renewed = true;
                let fresh = self.credentials.read();
                let mut token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
                if fresh.as_ref().map(Secret::expose) != token.as_ref().map(Secret::expose) {
                    *token = fresh;
                    continue;
                }
            }
            return check(answer).await;
        }
    }

    /// Sends until it is answered, within `attempts`. `build` makes the request anew for each.
    pub(super) async fn send(
        &self,
        attempts: Attempts,
        build: impl Fn() -> Result<RequestBuilder, WorkspaceError>,
    ) -> Result<Response, WorkspaceError> {
        retry::within(attempts, || self.send_once(&build)).await
    }

    /// `GET`s a JSON value.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, WorkspaceError> {
        retry::within(Attempts::Patient, || async {
            let answer = self.send_once(&|| Ok(self.request(Method::GET, path, 0))).await?;
            self.json(answer).await
        })
        .await
    }

    /// The same; `None` for 404.
    pub(super) async fn find<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, WorkspaceError> {
        match self.get(path).await {
            Ok(found) => Ok(Some(found)),
            Err(WorkspaceError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends a JSON body, and reads a JSON answer.
    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        attempts: Attempts,
        method: Method,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<(StatusCode, T), WorkspaceError> {
        let body = bytes::Bytes::from(json_bytes(body)?);
        let answer = self.send(attempts, || {
            let request = self.request(method.clone(), path, body.len() as u64);
            // Exactly this: the server compares the whole value.
            Ok(request.header(CONTENT_TYPE, "application/json").body(body.clone()))
        });
        let answer = answer.await?;
        let status = answer.status();
        Ok((status, self.json(answer).await?))
    }

    /// An answer's JSON body.
    pub(super) async fn json<T: DeserializeOwned>(&self, answer: Response) -> Result<T, WorkspaceError> {
        let path = answer.url().path().to_owned();
        let body = answer.bytes().await.map_err(|error| self.failure(&error))?;
        serde_json::from_slice(&body).map_err(|error| WorkspaceError::Protocol {
            detail: format!("{path} is not answered as expected: {error}"),
        })
    }

    /// A request that got no answer, or whose answer broke off.
    pub(super) fn failure(&self, error: &reqwest::Error) -> WorkspaceError {
        if error.is_timeout() {
            return WorkspaceError::TimedOut { after: if error.is_connect() { CONNECT_TIMEOUT } else { READ_TIMEOUT } };
        }
        WorkspaceError::Unreachable { server: self.base.to_string(), cause: cause(error) }
    }
}

pub(super) fn json_bytes(body: &impl Serialize) -> Result<Vec<u8>, WorkspaceError> {
    serde_json::to_vec(body).map_err(|error| WorkspaceError::Protocol { detail: error.to_string() })
}

/// The deepest cause, which is the one that tells something: `Connection refused (os error 111)`.
fn cause(error: &reqwest::Error) -> String {
    let mut deepest: &dyn std::error::Error = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    let text = if error.source().is_some() { deepest.to_string() } else { error.to_string() };
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

/// An answer that is no error.
async fn check(answer: Response) -> Result<Response, WorkspaceError> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let retry_after = answer
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.trim().parse().ok())
        .map(Duration::from_secs);
    let path = answer.url().path().to_owned();
    let message = message(answer).await;
    let code = status.as_u16();
    Err(match code {
        401 => WorkspaceError::Unauthorized,
        403 => WorkspaceError::Forbidden { message },
        404 => WorkspaceError::NotFound { what: if message.is_empty() { path } else { message } },
        409 => WorkspaceError::Conflict { message },
        413 | 507 => WorkspaceError::NoSpace { message },
        429 => WorkspaceError::Busy { retry_after },
        503 if retry_after.is_some() => WorkspaceError::Busy { retry_after },
        500.. => WorkspaceError::Server { status: code, message },
        _ => WorkspaceError::Refused { status: code, message },
    })
}

/// The server's own words, from either shape of its errors, or the plain body.
async fn message(mut answer: Response) -> String {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = answer.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() > ERROR_BODY_BYTES {
            break;
        }
    }
    let plain = || String::from_utf8_lossy(&body).chars().take(200).collect::<String>();
    match serde_json::from_slice::<wire::ErrorBody>(&body) {
        Ok(error) => error.message().unwrap_or_else(plain),
        Err(_) => plain(),
    }
}
