//! What is measured, over HTTP: `/metrics` for Prometheus, `/healthz` and `/readyz` for whoever starts and stops it, and at
//! `/` a page for people, which asks for `/page.json`. Only to be read, and only by those who can reach the address.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::Semaphore;

use super::page::{self, Page};
use super::past::{EVERY, Hour};
use super::{CONTENT_TYPE, readiness, text};
use crate::config::Address;
use crate::control::Measures;

/// How long it may take to find out how a mount is: one that takes longer hangs. Prometheus gives up after 10 s.
const PATIENCE: Duration = Duration::from_secs(8);

/// How mounts are at this moment. May take long, and hang: it is called on a thread of its own.
pub type Look = Arc<dyn Fn() -> Vec<Measures> + Send + Sync>;

/// What all requests share.
#[derive(Clone)]
struct Shared {
    look: Look,
    /// One looks at a time, however many ask: a look that hangs takes one thread, and not one for each that asks.
    looking: Arc<Semaphore>,
    /// How long one may take, with waiting for its turn.
    patience: Duration,
    /// How it went, for the page.
    hour: Arc<Mutex<Hour>>,
    /// Only the owner of the mounts asks: names of files may be told.
    to_owner: bool,
}

impl Shared {
    fn new(look: Look, patience: Duration, to_owner: bool) -> Self {
        Self { look, looking: Arc::new(Semaphore::new(1)), patience, hour: Arc::default(), to_owner }
    }

    /// Notes for the page how it goes, until dropped.
    async fn remember(&self) {
        loop {
            if let Some(mounts) = look_now(self).await {
                self.hour.lock().unwrap_or_else(PoisonError::into_inner).note(Instant::now(), &mounts);
            }
            tokio::time::sleep(EVERY).await;
        }
    }
}

/// A place where it is listened. Dropped, a socket of the filesystem is gone.
#[derive(Debug)]
pub struct Listener {
    inner: Inner,
}

#[derive(Debug)]
enum Inner {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener, Named),
}

/// The name of a socket, taken away again.
#[derive(Debug)]
struct Named(PathBuf);

impl Drop for Named {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Listener {
    /// Listens from now on; a socket that nobody listens at any more is replaced.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`] when somebody listens there, or something else is there; the system's.
    pub fn bind(address: &Address) -> io::Result<Self> {
        let inner = match address {
            Address::Tcp(address) => {
                let listener = std::net::TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                Inner::Tcp(listener)
            }
            Address::Unix(path) => {
                clear(path)?;
                let listener = std::os::unix::net::UnixListener::bind(path)?;
                let named = Named(path.clone());
                std::fs::set_permissions(path, PermissionsExt::from_mode(0o600))?;
                listener.set_nonblocking(true)?;
                Inner::Unix(listener, named)
            }
        };
        Ok(Self { inner })
    }

    /// Where it listens: with the port that was chosen, where any would do.
    ///
    /// # Errors
    /// The system's.
    pub fn address(&self) -> io::Result<Address> {
        match &self.inner {
            Inner::Tcp(listener) => listener.local_addr().map(Address::Tcp),
            Inner::Unix(_, Named(path)) => Ok(Address::Unix(path.clone())),
        }
    }

    /// Answers until dropped.
    ///
    /// # Errors
    /// When it cannot listen any more.
    pub async fn serve(self, look: Look) -> io::Result<()> {
        let shared = Shared::new(look, PATIENCE, matches!(self.inner, Inner::Unix(..)));
        let router = Router::new()
            .route("/", get(people))
            .route("/page.json", get(page_data))
            .route("/metrics", get(metrics))
            .route("/healthz", get(healthz))
            .route("/readyz", get(readyz))
            .with_state(shared.clone());
        let served = async {
            match self.inner {
                Inner::Tcp(listener) => axum::serve(tokio::net::TcpListener::from_std(listener)?, router).await,
                Inner::Unix(listener, _named) => {
                    axum::serve(tokio::net::UnixListener::from_std(listener)?, router).await
                }
            }
        };
        tokio::select! {
            served = served => served,
            () = shared.remember() => Ok(()),
        }
    }
}

/// Takes away a socket that a process left which was killed.
fn clear(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(found) if !found.file_type().is_socket() => {
            Err(io::Error::new(io::ErrorKind::AddrInUse, "something else than a socket is there"))
        }
        Ok(_) => match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
            _ => Err(io::ErrorKind::AddrInUse.into()),
        },
    }
}

/// How the mounts are; `None` when it takes too long to find out.
async fn look_now(shared: &Shared) -> Option<Vec<Measures>> {
    let look = async {
        let turn = shared.looking.clone().acquire_owned().await.ok()?;
        let look = shared.look.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let seen = look();
            drop(turn);
            seen
        });
        looked.await.ok()
    };
    tokio::time::timeout(shared.patience, look).await.ok().flatten()
}

fn plain(status: StatusCode, text: &str) -> Response {
    // What a server said may be in it.
    let text = format!("{}\n", crate::log::hide(text));
    (status, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
}

/// The page, which is the same for all mounts.
async fn people() -> Response {
    // Nothing of what it shows is ever taken for a program, and no other page may show it as its own.
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                  frame-ancestors 'none'";
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, page::HTML).into_response()
}

/// What the page shows.
async fn page_data(State(shared): State<Shared>, headers: HeaderMap) -> Response {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if !page::is_of_this_machine(host) {
        return plain(StatusCode::FORBIDDEN, "ask for it by the machine's own name, or by its address");
    }
    let Some(mounts) = look_now(&shared).await else {
        return plain(StatusCode::SERVICE_UNAVAILABLE, "the mount does not answer");
    };
    let now = Instant::now();
    let page = Page::of(mounts, &shared.hour.lock().unwrap_or_else(PoisonError::into_inner), now, shared.to_owner);
    match serde_json::to_string(&page) {
        // What a server said may be in it.
        Ok(text) => {
            let headers = [(header::CACHE_CONTROL, "no-store"), (header::CONTENT_TYPE, "application/json")];
            (headers, crate::log::hide(&text).into_owned()).into_response()
        }
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

async fn metrics(State(shared): State<Shared>) -> Response {
    match look_now(&shared).await {
        Some(mounts) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text(mounts)).into_response(),
        None => plain(StatusCode::SERVICE_UNAVAILABLE, "the mount does not answer"),
    }
}

/// Whether the daemons work at all: one that does not will not by itself.
async fn healthz(State(shared): State<Shared>) -> Response {
    match look_now(&shared).await {
        Some(mounts) if mounts.iter().all(|mount| mount.answers) => plain(StatusCode::OK, "ok"),
        _ => plain(StatusCode::SERVICE_UNAVAILABLE, "a daemon does not answer"),
    }
}

/// Whether everything goes on: what does not may do so again by itself.
async fn readyz(State(shared): State<Shared>) -> Response {
    let Some(mounts) = look_now(&shared).await else {
        return plain(StatusCode::SERVICE_UNAVAILABLE, "the mount does not answer");
    };
    let not: Vec<String> = mounts
        .iter()
        .filter_map(|mount| readiness(mount).err().map(|why| format!("{}: {why}", mount.mountpoint)))
        .collect();
    match not.is_empty() {
        true => plain(StatusCode::OK, "ok"),
        false => plain(StatusCode::SERVICE_UNAVAILABLE, &not.join("\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_look_that_hangs_is_one_thread_and_who_asks_is_told() {
        let (release, hangs) = std::sync::mpsc::channel::<()>();
        let (hangs, looks) = (std::sync::Mutex::new(hangs), Arc::new(std::sync::atomic::AtomicUsize::new(0)));
        let counted = looks.clone();
        let look: Look = Arc::new(move || {
            counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let _ = hangs.lock().unwrap().recv();
            Vec::new()
        });
        let shared = Shared::new(look, Duration::from_millis(100), false);
        let (one, other) = tokio::join!(healthz(State(shared.clone())), readyz(State(shared.clone())));
        assert_eq!((one.status(), other.status()), (StatusCode::SERVICE_UNAVAILABLE, StatusCode::SERVICE_UNAVAILABLE));
        assert_eq!(looks.load(std::sync::atomic::Ordering::SeqCst), 1);
        drop(release);
    }

    #[test]
    fn a_socket_that_was_left_is_replaced_and_one_that_is_used_is_not() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("socket");
        let address = Address::Unix(path.clone());
        // As a killed process leaves it.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let listener = Listener::bind(&address).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Listener::bind(&address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        assert!(!path.exists());
        std::fs::write(&path, "mine").unwrap();
        assert_eq!(Listener::bind(&address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    }
}
