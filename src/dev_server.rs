//! An embedded server that answers a filesystem the way Oxen servers do, over a local directory.
//!
//! For trying oxenfs without an Oxen server, and for tests: it speaks several releases' dialects, and faults can be
//! scripted into it ([`Faults`]). It keeps repositories, commits, content and staged changes on disk. What it
//! acknowledged survives the end of the process, however it ends; it does not sync, so a loss of power may undo the
//! last seconds.
//!
//! | module | owns |
//! |---|---|
//! | `routes` | which method and path each dialect has; what every request passes through |
//! | `repositories`, `reading`, `staging`, `uploads` | the endpoints, by subject |
//! | `answers` | the shapes of JSON bodies and of errors |
//! | `multipart` | form bodies, part by part as they arrive |
//! | `repository` | branches, commits and workspaces of one repository, and where they are kept |
//! | `workspace` | staged changes and what staging means |
//! | `tree` | immutable directories, by hash |
//! | `versions` | immutable file contents, by hash |
//! | [`faults`] | scripted faults, and counters of what was received |
//! | `wire` | connections that can be cut |

mod answers;
pub mod faults;
mod multipart;
mod reading;
mod repositories;
mod repository;
mod routes;
mod staging;
mod tree;
mod uploads;
mod versions;
mod wire;
mod workspace;

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::hash::HashKind;

pub use faults::{Action, Fault, Faults, Logged, Meanwhile, Traffic};

/// How long [`Server::start`] waits for the directory's lock: an earlier server that was just killed lets go of it
/// when the requests it was working on are through.
const LOCK_DEADLINE: Duration = Duration::from_secs(2);

/// How long [`Server::stop`] waits for requests under way before it cuts them off.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// What a server is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where it keeps its data; made when missing. One server at a time.
    pub data: PathBuf,
    /// Where it listens. Port 0 takes a free one, which [`Server::addr`] then tells.
    pub listen: SocketAddr,
    /// What it speaks.
    pub dialect: Dialect,
    /// When set, every request must carry it as bearer token.
    pub token: Option<String>,
}

/// Which servers' protocol is spoken. Releases differ in routes, in the content hash, and in how names of parts are
/// read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// The published API description: SHA-256, `workspaces/get_or_create`, `files/batch/{dir}`.
    Documented,
    /// Release 0.50: many files by hash in one request; one directory a multipart request.
    V0_50,
    /// Releases 0.54 to 0.63, as 0.58: nothing by hash.
    V0_58,
    /// Release 0.65: one file by hash a request; large files in parts.
    V0_65,
}

impl Dialect {
    /// What the server calls its version.
    pub fn version(self) -> &'static str {
        match self {
            // The version that the published description names.
            Self::Documented => "0.50.0",
            Self::V0_50 => "0.50.7",
            Self::V0_58 => "0.58.0",
            Self::V0_65 => "0.65.2",
        }
    }

    /// The function that names content.
    pub fn hash_kind(self) -> HashKind {
        match self {
            Self::Documented => HashKind::Sha256,
            Self::V0_50 | Self::V0_58 | Self::V0_65 => HashKind::Xxh3,
        }
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Documented => "documented",
            Self::V0_50 => "0.50",
            Self::V0_58 => "0.58",
            Self::V0_65 => "0.65",
        })
    }
}

/// The text names no dialect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown dialect {0:?}: it is one of documented, 0.50, 0.58, 0.65")]
pub struct UnknownDialect(String);

impl FromStr for Dialect {
    type Err = UnknownDialect;

    fn from_str(text: &str) -> Result<Self, UnknownDialect> {
        [Self::Documented, Self::V0_50, Self::V0_58, Self::V0_65]
            .into_iter()
            .find(|dialect| dialect.to_string() == text)
            .ok_or_else(|| UnknownDialect(text.to_owned()))
    }
}

/// A running server. Dropping it ends it as [`Server::kill`] does.
#[derive(Debug)]
pub struct Server {
    addr: SocketAddr,
    faults: Arc<Faults>,
    parts: Arc<uploads::Uploads>,
    /// Tells the accept loop to take no more connections.
    closing: CancellationToken,
    /// Cuts every connection.
    killed: CancellationToken,
    serving: JoinHandle<()>,
}

impl Server {
    /// Opens the data directory and begins to listen; requests are served by the current runtime from then on.
    ///
    /// # Errors
    /// The address cannot be bound, the directory cannot be used, or another server uses it; the text says which.
    pub async fn start(options: Options) -> io::Result<Self> {
        let Options { data, listen, dialect, token } = options;
        let listener =
            TcpListener::bind(listen).await.map_err(|error| told(&error, format!("cannot listen on {listen}")))?;
        let addr = listener.local_addr()?;
        let closing = CancellationToken::new();
        let killed = CancellationToken::new();
        let faults = Arc::new(Faults::default());
        let parts = Arc::new(uploads::Uploads::default());
        let (for_app, uploads) = (Arc::clone(&faults), Arc::clone(&parts));
        let app = tokio::task::spawn_blocking(move || App::open(data, dialect, token, for_app, uploads)).await??;
        let service = routes::router(Arc::new(app)).into_make_service_with_connect_info::<wire::Connection>();
        let listener = wire::Listener::new(listener, killed.clone());
        let (closed, cut) = (closing.clone(), killed.clone());
        let serving = tokio::spawn(async move {
            let served = axum::serve(listener, service).with_graceful_shutdown(closed.cancelled_owned());
            tokio::select! {
                result = served => {
                    if let Err(error) = result {
                        tracing::error!(%error, "the embedded server stopped");
                    }
                }
                () = cut.cancelled() => {}
            }
        });
        Ok(Self { addr, faults, parts, closing, killed, serving })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `http://host:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The faults to be injected, and what was received.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// What was received.
    pub fn traffic(&self) -> &Traffic {
        self.faults.traffic()
    }

    /// Sets the length of parts and how many may be under way for uploads begun from now on, so that tests of large
    /// files need no large files. Real servers say 10 MiB and 102.
    pub fn set_parts(&self, part_bytes: u64, window: u64) {
        self.parts.set_parts(part_bytes, window);
    }

    /// Takes no more requests, and returns when those under way are answered, at most a few seconds later.
    pub async fn stop(mut self) {
        self.closing.cancel();
        if tokio::time::timeout(STOP_DEADLINE, &mut self.serving).await.is_err() {
            self.killed.cancel();
        }
    }

    /// Drops every connection at once, whatever is under way, as the end of the process would.
    pub fn kill(&self) {
        self.killed.cancel();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What every request shares.
struct App {
    dialect: Dialect,
    token: Option<String>,
    data: PathBuf,
    faults: Arc<Faults>,
    uploads: Arc<uploads::Uploads>,
    /// Repositories opened so far, by namespace and name.
    open: Mutex<HashMap<(String, String), Arc<repository::Repository>>>,
    /// Held while requests may change anything in `data`.
    _lock: File,
}

impl App {
    /// Takes the data directory's lock and clears away what an earlier server left half done.
    fn open(
        data: PathBuf,
        dialect: Dialect,
        token: Option<String>,
        faults: Arc<Faults>,
        uploads: Arc<uploads::Uploads>,
    ) -> io::Result<Self> {
        let context = |what: &str| format!("cannot {what} {}", data.display());
        fs::create_dir_all(&data).map_err(|error| told(&error, context("use the data directory")))?;
        let lock =
            File::create(data.join("lock")).map_err(|error| told(&error, context("write to the data directory")))?;
        let deadline = Instant::now() + LOCK_DEADLINE;
        while rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
            if Instant::now() > deadline {
                return Err(io::Error::new(
                    io::ErrorKind::ResourceBusy,
                    format!("another server uses {}", data.display()),
                ));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let app = Self { dialect, token, data, faults, uploads, open: Mutex::default(), _lock: lock };
        app.check_dialect()?;
        let unfinished = app.unfinished();
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished)?;
        }
        fs::create_dir_all(unfinished)?;
        Ok(app)
    }

    /// Refuses data that was written under another hash function: none of its content could be found.
    fn check_dialect(&self) -> io::Result<()> {
        let file = self.data.join("hash");
        let mine = format!("{:?}", self.dialect.hash_kind());
        match fs::read_to_string(&file) {
            Ok(there) if there == mine => Ok(()),
            Ok(there) => Err(io::Error::other(format!(
                "{} was written by a dialect with {there} hashes; {} has {mine}: use another directory",
                self.data.display(),
                self.dialect
            ))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => fs::write(file, mine),
            Err(error) => Err(error),
        }
    }

    /// Where content is while it arrives; emptied at every start.
    fn unfinished(&self) -> PathBuf {
        self.data.join("unfinished")
    }

    /// Where a repository is or would be.
    fn repository_dir(&self, namespace: &str, name: &str) -> PathBuf {
        self.data.join("repositories").join(namespace).join(name)
    }

    /// The repositories opened so far. Poisoning is no concern: the map is only ever added to or taken from.
    fn opened(&self) -> std::sync::MutexGuard<'_, HashMap<(String, String), Arc<repository::Repository>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `error` with what was being done, keeping its kind.
fn told(error: &io::Error, doing: String) -> io::Error {
    io::Error::new(error.kind(), format!("{doing}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dialects_are_read_as_they_are_printed() {
        for text in ["documented", "0.50", "0.58", "0.65"] {
            assert_eq!(text.parse::<Dialect>().map(|dialect| dialect.to_string()), Ok(text.to_owned()));
        }
        assert!("0.65.2".parse::<Dialect>().is_err());
    }

    #[tokio::test]
    async fn two_servers_do_not_share_a_directory() {
        let data = tempfile::tempdir().unwrap();
        let options = || Options {
            data: data.path().to_owned(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            dialect: Dialect::V0_65,
            token: None,
        };
        let first = Server::start(options()).await.unwrap();
        let error = Server::start(options()).await.unwrap_err();
        assert!(error.to_string().starts_with("another server uses"), "{error}");
        first.kill();
        drop(first);
        Server::start(options()).await.unwrap();
    }
}
