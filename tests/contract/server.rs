//! The servers under test, and a fresh repository on one of them for each test.

use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use oxenfs::dev_server::{Dialect, Options, Server};
use serde_json::{Value, json};

/// What [`Target`] calls itself. Real servers take an agent with `oxen` in it for their official client and check its
/// version.
const USER_AGENT: &str = "contract-suite/1";

/// How long the real server may take until it answers: it does in about a second, on a busy machine in several.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// The files of the repository's first commit, as path and content.
pub const BASE_FILES: [(&str, &str); 4] =
    [("README.md", "base\n"), ("data/a.txt", "alpha\n"), ("data/b.txt", "beta\n"), ("data/sub/c.txt", "gamma\n")];

/// A repository of its own on a server: branch `main`, one commit with [`BASE_FILES`].
pub struct Target {
    /// `http://host:port`.
    pub base_url: String,
    /// What the server speaks.
    pub dialect: Dialect,
    /// The repository's namespace.
    pub namespace: String,
    /// The repository's name.
    pub repo: String,
    /// Sends requests under [`USER_AGENT`].
    pub http: reqwest::Client,
    embedded: Option<(Server, tempfile::TempDir)>,
}

impl Target {
    /// A server of this test's own, in this process.
    pub async fn embedded(dialect: Dialect) -> Self {
        let data = tempfile::tempdir().expect("a temporary directory");
        let server = Server::start(options(data.path(), dialect)).await.expect("the embedded server starts");
        let url = server.url();
        let mut target = Self::with_repository(url, dialect).await;
        target.embedded = Some((server, data));
        target
    }

    /// The real server that all tests of this process share.
    pub async fn real() -> Self {
        static URL: OnceLock<String> = OnceLock::new();
        let url = tokio::task::spawn_blocking(|| real_server_url(&URL, None)).await.expect("the real server starts");
        Self::with_repository(url, Dialect::V0_65).await
    }

    /// The same of the last release that stages by hash through JSON.
    pub async fn older() -> Self {
        static URL: OnceLock<String> = OnceLock::new();
        let url = tokio::task::spawn_blocking(|| real_server_url(&URL, Some("0.53.4")));
        Self::with_repository(url.await.expect("the real server starts"), Dialect::V0_50).await
    }

    async fn with_repository(base_url: String, dialect: Dialect) -> Self {
        /// Makes names unique within a process; the server's data is new in each.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let target = Self {
            base_url,
            dialect,
            namespace: "contract".to_owned(),
            repo: format!("repo-{}", NEXT.fetch_add(1, Ordering::Relaxed)),
            http: client(),
            embedded: None,
        };
        let user = json!({"name": "Base", "email": "base@example.com"});
        let files = BASE_FILES.map(|(path, contents)| json!({"path": path, "contents": contents, "user": user}));
        let new = json!({"namespace": target.namespace, "name": target.repo, "files": files});
        let answer = answered(target.http.post(format!("{}/api/repos", target.base_url)).json(&new)).await;
        let status = answer.status();
        let body = answer.text().await.unwrap_or_default();
        assert!(status.is_success(), "creating the repository: {status} {body}");
        target
    }

    /// The embedded server; `None` when the target is a real one.
    pub fn server(&self) -> Option<&Server> {
        self.embedded.as_ref().map(|(server, _)| server)
    }

    /// Ends the embedded server as `kill -9` would and starts it again on the same data; its URL changes.
    pub async fn restart(&mut self) {
        let (server, data) = self.embedded.take().expect("only an embedded server is restarted");
        server.kill();
        drop(server);
        let server = Server::start(options(data.path(), self.dialect)).await.expect("the embedded server starts again");
        self.base_url = server.url();
        self.embedded = Some((server, data));
    }

    /// Where the server keeps its data, on this machine.
    fn data(&self) -> PathBuf {
        self.embedded.as_ref().map_or_else(real_server_data, |(_, data)| data.path().to_owned())
    }

    /// The server has stored the content `hash` at the same time as the content `like`, as happens to what comes
    /// together.
    pub fn store_together(&self, like: &str, hash: &str) {
        let like = std::fs::metadata(stored(&self.data(), like)).and_then(|file| file.modified()).expect("its time");
        let file = std::fs::File::options().write(true).open(stored(&self.data(), hash)).expect("the stored file");
        file.set_modified(like).expect("its time is set");
    }

    /// `below` under the repository, already percent-encoded where it has to be.
    pub fn url(&self, below: &str) -> String {
        format!("{}/api/repos/{}/{}/{below}", self.base_url, self.namespace, self.repo)
    }

    /// The commit that `branch` stands on.
    pub async fn head(&self, branch: &str) -> String {
        let answer = self.get_json(&format!("branches/{branch}")).await;
        text(&answer["branch"]["commit_id"])
    }

    /// GETs `below`, which must succeed with JSON.
    pub async fn get_json(&self, below: &str) -> Value {
        let answer = answered(self.http.get(self.url(below))).await;
        let status = answer.status();
        let body = answer.text().await.expect("a whole answer");
        assert!(status.is_success(), "GET {below}: {status} {body}");
        serde_json::from_str(&body).expect("JSON")
    }
}

/// The answer to a request. One that did not arrive in the time that the server had for it (408, seen of a busy machine)
/// is sent again, as any client does.
pub async fn answered(request: reqwest::RequestBuilder) -> reqwest::Response {
    for _ in 0..5 {
        let request = request.try_clone().expect("a body in memory");
        let answer = request.send().await.expect("the server answers");
        if answer.status() != reqwest::StatusCode::REQUEST_TIMEOUT {
            return answer;
        }
    }
    panic!("the server has no time for the request: {request:?}");
}

/// A JSON string's value.
pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("a string, not {value}")).to_owned()
}

fn options(data: &Path, dialect: Dialect) -> Options {
    Options { data: data.to_owned(), listen: SocketAddr::from(([127, 0, 0, 1], 0)), dialect, token: None }
}

fn client() -> reqwest::Client {
    // reqwest comes without a TLS provider, and builds no client before one is installed. Twice is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().user_agent(USER_AGENT).no_proxy().build().expect("a client")
}

/// The URL of the real server of that version; the first caller starts it.
fn real_server_url(url: &OnceLock<String>, version: Option<&'static str>) -> String {
    url.get_or_init(|| {
        let (ready, started) = std::sync::mpsc::channel();
        // The kernel ends the server when the thread that started it ends, so that no way of ending this process
        // leaves a server behind. This thread never ends by itself.
        std::thread::spawn(move || {
            let _ = ready.send(start_real_server(version));
            loop {
                std::thread::park();
            }
        });
        started.recv().expect("the real server starts")
    })
    .clone()
}

/// Starts the real server on a free port with its data in a directory of this process's own.
fn start_real_server(version: Option<&str>) -> String {
    let binary = real_server_path(version);
    let data = real_server_data();
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port();
    let mut command = Command::new(&binary);
    command
        .args(["start", "-i", "127.0.0.1", "-p", &port.to_string()])
        .env("SYNC_DIR", &data)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // SAFETY: prctl is async-signal-safe, and nothing else happens between fork and exec.
    unsafe {
        command.pre_exec(|| {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).map_err(Into::into)
        });
    }
    #[expect(clippy::zombie_processes, reason = "it runs until this process ends, and is then reaped by init")]
    let mut child = command.spawn().expect("the real server's binary runs");
    let deadline = Instant::now() + START_DEADLINE;
    while !answers(port) {
        if let Ok(Some(status)) = child.try_wait() {
            panic!("{} ended at once: {status}", binary.display());
        }
        assert!(Instant::now() < deadline, "the real server does not answer");
        std::thread::sleep(Duration::from_millis(20));
    }
    format!("http://127.0.0.1:{port}")
}

/// `None`: the version that the script is pinned to.
fn real_server_path(version: Option<&str>) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/oxen-server");
    let mut command = Command::new(&script);
    command.arg("path").envs(version.map(|version| ("OXEN_SERVER_VERSION", version)));
    let printed = command.output().expect("scripts/oxen-server runs");
    assert!(printed.status.success(), "the real server is not installed: run scripts/oxen-server install");
    PathBuf::from(String::from_utf8_lossy(&printed.stdout).trim())
}

/// A fresh directory for the real server. Nothing runs when a test process ends, so each one clears away what processes
/// that are gone left behind.
fn real_server_data() -> PathBuf {
    let all = Path::new(env!("CARGO_TARGET_TMPDIR")).join("real-server");
    std::fs::create_dir_all(&all).expect("a directory for the real server's data");
    for entry in std::fs::read_dir(&all).expect("that directory").flatten() {
        if !Path::new("/proc").join(entry.file_name()).exists() {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    let own = all.join(std::process::id().to_string());
    std::fs::create_dir_all(&own).expect("a directory for the real server's data");
    own
}

/// The file below `dir` that holds the content `hash`: servers spread these over directories by the hash's first digits.
fn stored(dir: &Path, hash: &str) -> PathBuf {
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        // Other tests' files come and go.
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                dirs.push(path);
            } else if path.to_string_lossy().replace('/', "").contains(hash) {
                return path;
            }
        }
    }
    panic!("{hash} is not stored below {}", dir.display())
}

/// Whether something answers HTTP on `port`.
fn answers(port: u16) -> bool {
    use std::io::Write;
    let Ok(mut stream) = std::net::TcpStream::connect(("127.0.0.1", port)) else {
        return false;
    };
    let request = "GET /api/version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let mut start = [0; 12];
    stream.write_all(request.as_bytes()).is_ok() && stream.read_exact(&mut start).is_ok() && &start == b"HTTP/1.1 200"
}
