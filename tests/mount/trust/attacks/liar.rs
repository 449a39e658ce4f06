//! A server that lies: it stands before an honest one, and changes what that answers.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use super::victim::TOKEN;
use crate::gateway::{header, read_head};

/// How a server lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    Sizes,
    Hashes,
    Names,
    Redirects,
    WrongKinds,
    DeepJson,
    Parts,
    LyingSuccess,
    EchoedToken,
    LongError,
    OddStatus,
    OddHeaders,
    CutBodies,
    GzipBombs,
    LongerBodies,
    EndlessBodies,
    EndlessListings,
    Trickle,
    Silence,
}

impl Lie {
    pub const ALL: [Self; 19] = [
        Self::Sizes,
        Self::Hashes,
        Self::Names,
        Self::Redirects,
        Self::WrongKinds,
        Self::DeepJson,
        Self::Parts,
        Self::LyingSuccess,
        Self::EchoedToken,
        Self::LongError,
        Self::OddStatus,
        Self::OddHeaders,
        Self::CutBodies,
        Self::GzipBombs,
        Self::LongerBodies,
        Self::EndlessBodies,
        Self::EndlessListings,
        Self::Trickle,
        Self::Silence,
    ];
}

/// Text that a terminal, a path or a log must not be given as it is.
const NASTY: [&str; 8] = [
    "\u{1b}]0;owned\u{7}",
    "\u{1b}[2J\u{1b}[H",
    "\u{202e}gpj.exe",
    "\u{9b}31m",
    "a\u{0}b",
    "line\nbreak\r",
    "\u{2066}isolated",
    "%s%n${jndi:ldap://x}",
];

struct Shared {
    honest: String,
    number: u64,
    lie: Lie,
    lying: AtomicBool,
    rng: Mutex<fastrand::Rng>,
    /// What came to the other host.
    elsewhere: Mutex<Vec<String>>,
    other: String,
}

pub struct Liar {
    port: u16,
    shared: Arc<Shared>,
}

fn listen(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = Arc::new(serve);
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let serve = serve.clone();
            std::thread::spawn(move || serve(client));
        }
    });
    port
}

impl Liar {
    pub fn new(honest: &str, number: u64, lie: Lie, seed: u64) -> Self {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let hears = heard.clone();
        let other = listen(move |mut client| {
            let Ok(Some((head, _))) = read_head(&mut client) else { return };
            hears.lock().unwrap().push(head);
            let _ =
                client.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}");
        });
        let shared = Arc::new(Shared {
            honest: honest.trim_start_matches("http://").to_owned(),
            number,
            lie,
            lying: AtomicBool::new(false),
            rng: Mutex::new(fastrand::Rng::with_seed(seed)),
            elsewhere: Mutex::default(),
            other: format!("http://127.0.0.1:{other}"),
        });
        let serving = shared.clone();
        let port = listen(move |client| {
            // One that breaks is what this is for.
            let _ = serving.serve(client);
            serving.elsewhere.lock().unwrap().append(&mut heard.lock().unwrap());
        });
        Self { port, shared }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn lie(&self, lying: bool) {
        self.shared.lying.store(lying, Ordering::SeqCst);
    }

    /// What a host that this one named was told.
    pub fn elsewhere(&self) -> Vec<String> {
        self.shared.elsewhere.lock().unwrap().clone()
    }
}

/// An answer of the honest server.
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Shared {
    fn draw<T>(&self, draw: impl FnOnce(&mut fastrand::Rng) -> T) -> T {
        draw(&mut self.rng.lock().unwrap())
    }

    fn is_lying(&self) -> bool {
        self.lying.load(Ordering::SeqCst)
    }

    fn serve(&self, mut client: TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        loop {
            let Some((head, mut body)) = read_head(&mut client)? else { return Ok(()) };
            let length = header(&head, "content-length").and_then(|length| length.parse().ok()).unwrap_or(0u64);
            let more = length.saturating_sub(body.len() as u64);
            (&mut client).take(more).read_to_end(&mut body)?;
            // Not each answer is one, so that something goes on.
            if !self.is_lying() || self.draw(|rng| rng.u8(..10)) < 3 {
                let Answer { status, head, body } = self.ask(&head, &body)?;
                answer(&mut client, status, &content_type(&head), &body)?;
            } else if !self.lies(&mut client, &head, &body)? {
                return Ok(());
            }
        }
    }

    /// What the honest server says.
    fn ask(&self, head: &str, body: &[u8]) -> io::Result<Answer> {
        let mut server = TcpStream::connect(&self.honest)?;
        let mut lines = head.trim_end().lines();
        // By the old protocol an answer comes as it is, to its end.
        let first = lines.next().unwrap_or_default().replace("HTTP/1.1", "HTTP/1.0");
        let kept = lines.filter(|line| !line.to_lowercase().starts_with("connection:"));
        let head = std::iter::once(first.as_str()).chain(kept).collect::<Vec<_>>().join("\r\n");
        write!(server, "{head}\r\nConnection: close\r\n\r\n")?;
        server.write_all(body)?;
        let (head, mut body) = read_head(&mut server)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        server.read_to_end(&mut body)?;
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(500);
        Ok(Answer { status, head, body })
    }

    /// Answers with a lie; whether the connection can go on.
    fn lies(&self, client: &mut TcpStream, head: &str, body: &[u8]) -> io::Result<bool> {
        let mut words = head.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let nasty = self.draw(|rng| NASTY[rng.usize(..NASTY.len())]);
        const JSON: &str = "Content-Type: application/json\r\n";
        match self.lie {
            Lie::Redirects => {
                let code = self.draw(|rng| [301, 302, 303, 307, 308][rng.usize(..5)]);
                let to = format!("{}{path}", self.other);
                answer(client, code, &format!("{JSON}Location: {to}\r\n"), b"{}").map(|()| true)
            }
            Lie::EchoedToken => {
                let code = self.draw(|rng| [400, 401, 403, 404, 409, 422, 500, 503][rng.usize(..8)]);
                let pad = "x".repeat(self.draw(|rng| rng.usize(..400)));
                let text = format!("{pad} Authorization: Bearer {TOKEN} {TOKEN}{nasty}");
                let said = match self.draw(|rng| rng.bool()) {
                    true => json!({"status": "error", "status_message": text, "status_description": text}).to_string(),
                    false => json!({"error": {"type": TOKEN, "title": text, "detail": text}}).to_string(),
                };
                answer(client, code, JSON, said.as_bytes()).map(|()| true)
            }
            Lie::LongError => {
                write!(client, "HTTP/1.1 500 X\r\n{JSON}Content-Length: {}\r\n\r\n", 1u64 << 40)?;
                let piece = vec![b'e'; 1 << 20];
                (0..2048).try_for_each(|_| client.write_all(&piece)).map(|()| false)
            }
            Lie::OddStatus => {
                let code =
                    self.draw(|rng| [100, 102, 199, 204, 205, 206, 226, 300, 304, 418, 451, 599, 999][rng.usize(..13)]);
                answer(client, code, JSON, b"{\"status\":\"success\"}").map(|()| false)
            }
            Lie::OddHeaders => {
                let headers = match self.draw(|rng| rng.u8(..4)) {
                    0 => format!("oxen-version: {}\r\n", "9".repeat(60_000)),
                    1 => "Content-Length: 5\r\nContent-Length: 7\r\n".to_owned(),
                    2 => "Retry-After: 99999999999999999999\r\nx-oxen-request-id: \u{9b}31m\r\n".to_owned(),
                    _ => (0..3000).map(|number| format!("x-{number}: y\r\n")).collect(),
                };
                write!(client, "HTTP/1.1 200 OK\r\n{JSON}{headers}\r\n{{}}").map(|()| false)
            }
            Lie::Silence => {
                // Until the other end has had enough.
                let _ = client.set_read_timeout(Some(Duration::from_secs(600)));
                client.read(&mut [0; 1]).map(|_| false)
            }
            _ => {
                let told = self.ask(head, body)?;
                self.change(client, told, (method, path), nasty)
            }
        }
    }

    /// Answers what the honest server said, but for a lie.
    fn change(
        &self,
        client: &mut TcpStream,
        told: Answer,
        (method, path): (&str, &str),
        nasty: &str,
    ) -> io::Result<bool> {
        let Answer { status, head, body } = told;
        let kind = content_type(&head);
        let parsed = serde_json::from_slice::<Value>(&body).ok();
        let content = parsed.is_none() || path.contains("/file/") || path.contains("/chunk/");
        match self.lie {
            Lie::CutBodies => {
                write!(client, "HTTP/1.1 {status} X\r\n{kind}Content-Length: {}\r\n\r\n", body.len())?;
                client.write_all(&body[..body.len() / 2]).map(|()| false)
            }
            Lie::GzipBombs => {
                let bomb = gzip_bomb();
                answer(client, status, &format!("{kind}Content-Encoding: gzip\r\n"), &bomb).map(|()| true)
            }
            Lie::LongerBodies if content => {
                let longer = [body.as_slice(), &[7; 4096]].concat();
                answer(client, status, &kind, &longer).map(|()| true)
            }
            Lie::EndlessBodies if content || method == "GET" => {
                write!(client, "HTTP/1.1 {status} X\r\n{kind}Transfer-Encoding: chunked\r\n\r\n")?;
                let piece = vec![b' '; 1 << 20];
                // A terabyte is as good as no end.
                for _ in 0..1 << 20 {
                    write!(client, "100000\r\n")?;
                    client.write_all(&piece)?;
                    write!(client, "\r\n")?;
                }
                Ok(false)
            }
            Lie::Trickle => {
                write!(client, "HTTP/1.1 {status} X\r\n{kind}Content-Length: {}\r\n\r\n", body.len())?;
                for byte in body {
                    client.write_all(&[byte])?;
                    std::thread::sleep(Duration::from_secs(1));
                }
                Ok(false)
            }
            Lie::DeepJson => {
                let depth = self.draw(|rng| rng.usize(1000..2_000_000));
                answer(client, status, &kind, &vec![b'['; depth]).map(|()| true)
            }
            Lie::WrongKinds if parsed.is_some() => {
                let texts =
                    ["[]", "{}", "null", "17", "\"text\"", "[{}]", "{\"status\":[]}", "tru", "", "{\"entries\":{}}"];
                let text = match self.draw(|rng| rng.usize(..texts.len() + 1)) {
                    at if at < texts.len() => texts[at].to_owned(),
                    _ => {
                        let mut value = parsed.unwrap_or_default();
                        self.confuse(&mut value);
                        value.to_string()
                    }
                };
                answer(client, status, &kind, text.as_bytes()).map(|()| true)
            }
            _ => {
                let Some(mut value) = parsed else { return answer(client, status, &kind, &body).map(|()| true) };
                self.falsify(&mut value, nasty);
                answer(client, status, &kind, value.to_string().as_bytes()).map(|()| true)
            }
        }
    }

    /// Changes values to other kinds of values.
    fn confuse(&self, value: &mut Value) {
        match value {
            Value::Object(members) => members.values_mut().for_each(|member| self.confuse(member)),
            Value::Array(elements) => elements.iter_mut().for_each(|element| self.confuse(element)),
            _ => {}
        }
        if self.draw(|rng| rng.u8(..8)) == 0 {
            *value = self.draw(|rng| {
                [json!(null), json!([]), json!({}), json!(-1), json!(1e300), json!(""), json!(true)][rng.usize(..7)]
                    .clone()
            });
        }
    }

    fn falsify(&self, value: &mut Value, nasty: &str) {
        match value {
            Value::Array(elements) => elements.iter_mut().for_each(|element| self.falsify(element, nasty)),
            Value::Object(members) => {
                for (name, member) in members.iter_mut() {
                    self.falsify(member, nasty);
                    if let Some(lie) = self.lie_about(name, nasty) {
                        *member = lie;
                    }
                }
            }
            _ => {}
        }
    }

    /// What a member of this name says instead, if it lies about that.
    fn lie_about(&self, name: &str, nasty: &str) -> Option<Value> {
        let number = || {
            self.draw(|rng| {
                [json!(0), json!(1), json!(u64::MAX), json!(i64::MAX), json!(-5), json!(1u64 << 40)][rng.usize(..6)]
                    .clone()
            })
        };
        let hash = || {
            self.draw(|rng| {
                [json!(format!("{:032x}", rng.u128(..))), json!("1"), json!(""), json!("z".repeat(500))][rng.usize(..4)]
                    .clone()
            })
        };
        match (self.lie, name) {
            (Lie::Sizes, "size" | "total_entries" | "page_size" | "num_bytes") => Some(number()),
            (Lie::Hashes, "hash" | "id" | "commit_id") => Some(hash()),
            (Lie::Names, "filename" | "name" | "path" | "resource" | "oxen_version" | "branch") => {
                Some(json!(self.bad_name(nasty)))
            }
            (Lie::Parts, "part_size" | "num_parts" | "part_window") => Some(number()),
            (Lie::Parts, "file") => Some(json!("awaiting_parts")),
            (Lie::LyingSuccess, "file") => Some(json!("already_stored")),
            (Lie::LyingSuccess, "completed") => Some(json!(true)),
            (Lie::LyingSuccess, "paths" | "err_files" | "conflicts") => Some(json!([])),
            (Lie::LyingSuccess, "is_mergeable") => Some(json!(true)),
            (Lie::LyingSuccess, "commit_id" | "latest_commit") => Some(hash()),
            (Lie::EndlessListings, "total_pages") => Some(json!(1u64 << 63)),
            (Lie::EndlessListings, "total_entries") => Some(json!(u64::MAX)),
            _ => None,
        }
    }

    fn bad_name(&self, nasty: &str) -> String {
        let mark = format!("escaped-{}", self.number);
        self.draw(|rng| match rng.u8(..9) {
            0 => format!("../{mark}"),
            1 => format!("../../{mark}"),
            2 => format!("/tmp/{mark}"),
            3 => "..".to_owned(),
            4 => format!("a/../../{mark}"),
            5 => "n".repeat(5000),
            6 => format!(".oxen/{mark}"),
            _ => format!("{nasty}{mark}"),
        })
    }
}

fn content_type(head: &str) -> String {
    header(head, "content-type").map(|kind| format!("Content-Type: {kind}\r\n")).unwrap_or_default()
}

fn answer(client: &mut TcpStream, status: u16, headers: &str, body: &[u8]) -> io::Result<()> {
    write!(client, "HTTP/1.1 {status} X\r\n{headers}Content-Length: {}\r\n\r\n", body.len())?;
    client.write_all(body)
}

/// A gibibyte of zeros, compressed once.
fn gzip_bomb() -> Vec<u8> {
    use std::sync::OnceLock;
    static BOMB: OnceLock<Vec<u8>> = OnceLock::new();
    let made = || crate::mounted::run_for_bytes("sh", ["-c", "head -c 1073741824 /dev/zero | gzip -1"]);
    BOMB.get_or_init(made).clone()
}
