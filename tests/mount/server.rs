//! The server of this test process.

use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

use crate::http;

struct TestServer {
    child: Child,
    data: tempfile::TempDir,
}

static OWN: Mutex<Option<TestServer>> = Mutex::new(None);
static URL: OnceLock<Result<String, String>> = OnceLock::new();

/// Scheme, host and port of the server to test against; started with the first call.
pub fn url() -> &'static str {
    note();
    let url = URL.get_or_init(|| match std::env::var("OXENFS_TEST_SERVER_URL") {
        Ok(url) if !url.is_empty() => Ok(url.trim_end_matches('/').to_owned()),
        _ => start(),
    });
    match url {
        Ok(url) => url,
        Err(why) => panic!("{why}"),
    }
}

/// Which tests ask for this server, in the file at `OXENFS_TEST_ASKED`, one a line: the others bring their own, and are the
/// same whichever this is. A test's thread has its name, unless one runs after the other: they are all `main` then. What a
/// test does in threads of its own it asks for itself first.
fn note() {
    let Some(file) = std::env::var_os("OXENFS_TEST_ASKED") else { return };
    let thread = std::thread::current();
    let Some(name) = thread.name() else { return };
    let line = format!("{name}\n");
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(file).unwrap();
    std::io::Write::write_all(&mut file, line.as_bytes()).unwrap();
}

/// A port of this host that nobody listens on.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn start() -> Result<String, String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/oxen-server");
    let found = Command::new(script).arg("path").output().map_err(|error| error.to_string())?;
    if !found.status.success() {
        return Err("there is no server to test against: run scripts/oxen-server install, or set \
                    OXENFS_TEST_SERVER_URL"
            .into());
    }
    let binary = String::from_utf8(found.stdout).unwrap().trim().to_owned();
    let data = tempfile::Builder::new().prefix("oxenfs-test-server").tempdir().unwrap();
    let port = free_port();
    let log = std::fs::File::create(data.path().join("log")).unwrap();
    let mut command = Command::new(binary);
    command
        .args(["start", "-i", "127.0.0.1", "-p", &port.to_string()])
        .env("SYNC_DIR", data.path().join("sync"))
        .env("HOME", data.path())
        .env("RUST_LOG", "warn")
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log);
    // SAFETY: prctl is async-signal-safe and takes only numbers here.
    unsafe {
        command.pre_exec(|| {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0 {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        });
    }
    // The death signal is about the thread that forks, and a test's thread ends with the test.
    let (tell, started) = mpsc::channel();
    std::thread::spawn(move || {
        let _ = tell.send(command.spawn());
        loop {
            std::thread::park();
        }
    });
    let child = started.recv().unwrap().map_err(|error| format!("cannot start the server: {error}"))?;
    *OWN.lock().unwrap() = Some(TestServer { child, data });
    // SAFETY: `stop` is a function of the type that atexit wants, and does not unwind.
    unsafe { libc::atexit(stop) };

    let deadline = Instant::now() + Duration::from_secs(60);
    let url = format!("http://127.0.0.1:{port}");
    loop {
        let answers = TcpStream::connect(("127.0.0.1", port)).is_ok()
            && http::get(&url, "/api/health").is_ok_and(|(status, _)| status == 200);
        if answers {
            return Ok(url);
        }
        if Instant::now() > deadline {
            return Err("the server did not answer within a minute".into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

extern "C" fn stop() {
    let own = OWN.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    if let Some(TestServer { mut child, data }) = own {
        let _ = child.kill();
        let _ = child.wait();
        drop(data);
    }
}
