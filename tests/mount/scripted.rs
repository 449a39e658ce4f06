//! An embedded server of one test's own: its faults are scripted, what it received is counted, and it can go away.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::http::{self, Tree};
use crate::mounted::wait_until;
use crate::server::free_port;

/// Where the token is, for a server that wants one.
const TOKEN: &str = "OXENFS_TEST_TOKEN";

pub struct Scripted {
    child: Option<Child>,
    data: tempfile::TempDir,
    port: u16,
    dialect: &'static str,
    token: Option<String>,
}

impl Scripted {
    pub fn new() -> Self {
        Self::with_token(None)
    }

    pub fn with_token(token: Option<&str>) -> Self {
        let data = tempfile::Builder::new().prefix("oxenfs-test-scripted").tempdir().unwrap();
        let mut server = Self { child: None, data, port: free_port(), dialect: "0.65", token: None };
        server.start(token);
        server
    }

    /// One that speaks another dialect.
    pub fn speaking(dialect: &'static str) -> Self {
        let data = tempfile::Builder::new().prefix("oxenfs-test-scripted").tempdir().unwrap();
        let mut server = Self { child: None, data, port: free_port(), dialect, token: None };
        server.start(None);
        server
    }

    /// Where this content is stored.
    pub fn stored(&self, content: &[u8]) -> PathBuf {
        let mut dirs = vec![self.data.path().to_owned()];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    dirs.push(path);
                } else if std::fs::metadata(&path).unwrap().len() == content.len() as u64
                    && std::fs::read(&path).unwrap() == content
                {
                    return path;
                }
            }
        }
        panic!("it is not stored");
    }

    /// All content has been stored at the same time, as happens to what comes together.
    pub fn store_together(&self) {
        let mut dirs = vec![self.data.path().to_owned()];
        while let Some(dir) = dirs.pop() {
            let is_content = dir.components().any(|part| part.as_os_str() == "versions");
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    dirs.push(path);
                } else if is_content {
                    let file = std::fs::File::options().write(true).open(path).unwrap();
                    file.set_modified(std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)).unwrap();
                }
            }
        }
    }

    /// Starts it, again if it was stopped: with the same address and the same data.
    pub fn start(&mut self, token: Option<&str>) {
        self.token = token.map(str::to_owned);
        let mut command = Command::new(env!("CARGO_BIN_EXE_oxenfs"));
        let listen = format!("127.0.0.1:{}", self.port);
        command.arg("dev-server").arg(self.data.path().join("data")).args(["--listen", &listen]);
        command.args(["--dialect", self.dialect]);
        if let Some(token) = token {
            command.args(["--token-env", TOKEN]).env(TOKEN, token);
        }
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("http://"), "the embedded server said {line:?}");
        self.child = Some(child);
    }

    /// Another server comes to its address, with nothing on it. What there was is kept.
    pub fn replace(&mut self) -> tempfile::TempDir {
        let empty = tempfile::Builder::new().prefix("oxenfs-test-scripted").tempdir().unwrap();
        self.put_back(empty)
    }

    /// The server with this data comes to its address.
    pub fn put_back(&mut self, data: tempfile::TempDir) -> tempfile::TempDir {
        self.stop();
        let before = std::mem::replace(&mut self.data, data);
        let token = self.token.take();
        self.start(token.as_deref());
        before
    }

    /// Ends it as a power cut would.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// One request; the answer's status and body.
    pub fn ask(&self, method: &str, path: &str, body: &Value) -> (u16, String) {
        self.ask_with(self.token.as_deref(), method, path, body)
    }

    /// The same, with another token or none.
    pub fn ask_with(&self, token: Option<&str>, method: &str, path: &str, body: &Value) -> (u16, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let length = body.len();
        let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nHost: h\r\n{token}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    /// Does `action` to the next `times` requests with this method whose path contains `path`.
    pub fn arm(&self, method: &str, path: &str, times: Option<u32>, action: Value) {
        let mut fault = json!({"path": path, "times": times, "action": action});
        if !method.is_empty() {
            fault["method"] = json!(method);
        }
        assert_eq!(self.ask("POST", "/_faults", &fault).0, 200);
    }

    pub fn disarm(&self) {
        assert_eq!(self.ask("DELETE", "/_faults", &Value::Null).0, 200);
    }

    /// What was answered: method, path, status.
    pub fn log(&self) -> Vec<(String, String, u64)> {
        let traffic: Value = serde_json::from_str(&self.ask("GET", "/_traffic", &Value::Null).1).unwrap();
        let log = traffic["log"].as_array().unwrap().iter();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        log.map(|one| (text(&one["method"]), text(&one["path"]), one["status"].as_u64().unwrap())).collect()
    }

    /// Waits until requests whose path contains `path` were answered with `status`.
    pub fn wait_answered(&self, path: &str, status: u64) {
        wait_until("such an answer", || self.log().iter().any(|(_, at, code)| at.contains(path) && *code == status));
    }

    pub fn committed(&self, repo: &str) -> Tree {
        http::committed_tree(&self.url(), repo)
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.stop();
    }
}
