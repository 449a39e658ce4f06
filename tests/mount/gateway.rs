//! A way to a real server on which requests are cut off, held up, answered by somebody else, or arrive late.
//!
//! It understands just enough HTTP to tell requests apart: each comes with its length, and gets a connection of its own
//! to the server, so that the answer is what follows until the end.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// What happens to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The connection is reset when its head has come; the server hears nothing.
    CutBefore,
    /// The server gets half of its body, and both connections are reset.
    CutInBody,
    /// The server does what it says, and the answer is lost.
    CutAfter,
    /// The server does what it says, and half of the answer arrives.
    CutInAnswer,
    /// It arrives later.
    Delay(Duration),
    /// Its body goes on in pieces of 64 KiB, each after this pause.
    Throttle(Duration),
    /// It does not arrive; this is the answer.
    Answer(u16, &'static str, &'static str),
    /// It does not arrive; the answer is no HTTP.
    Garbage,
    /// It arrives when it is [released](Gateway::release), whether the client is still there or not.
    Hold,
}

impl Fault {
    /// Every kind of which the end comes by itself.
    pub fn all() -> Vec<Self> {
        vec![
            Self::CutBefore,
            Self::CutInBody,
            Self::CutAfter,
            Self::CutInAnswer,
            Self::Delay(Duration::from_millis(700)),
            Self::Throttle(Duration::from_millis(5)),
            Self::Answer(429, "Retry-After: 1\r\n", "slow down"),
            Self::Answer(502, "", "<html>Bad Gateway</html>"),
            Self::Answer(503, "Retry-After: 1\r\n", "{}"),
            Self::Answer(200, "Content-Type: application/json\r\n", "<html>a captive portal</html>"),
            Self::Garbage,
        ]
    }
}

/// What passed.
#[derive(Debug, Clone)]
pub struct Passed {
    pub method: String,
    pub path: String,
    /// Length of the request's body.
    pub bytes: u64,
    pub fault: Option<Fault>,
    /// The server's answer, if the client was sent all of it.
    pub told: Option<u16>,
    /// When the request came, in milliseconds since the gateway was made.
    pub at_ms: u128,
}

type Rule = Box<dyn FnMut(&str, &str) -> Option<Fault> + Send>;

struct Shared {
    server: String,
    started: std::time::Instant,
    rule: Mutex<Rule>,
    log: Mutex<Vec<Passed>>,
    /// How many requests are held, and how many were let go and had their answer.
    held: Mutex<(usize, usize)>,
    moved: Condvar,
    holds: AtomicBool,
}

pub struct Gateway {
    port: u16,
    shared: Arc<Shared>,
}

impl Gateway {
    /// In front of `server`, until the test process ends.
    pub fn new(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            server: server.strip_prefix("http://").unwrap().to_owned(),
            started: std::time::Instant::now(),
            rule: Mutex::new(Box::new(|_, _| None)),
            log: Mutex::default(),
            held: Mutex::default(),
            moved: Condvar::new(),
            holds: AtomicBool::new(true),
        });
        let accepting = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = accepting.clone();
                // A connection that breaks is what this is for.
                std::thread::spawn(move || drop(shared.serve(client)));
            }
        });
        Self { port, shared }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Asked for every request from now on, with its method and its path.
    pub fn rule(&self, rule: impl FnMut(&str, &str) -> Option<Fault> + Send + 'static) {
        *self.shared.rule.lock().unwrap() = Box::new(rule);
    }

    /// Lets everything pass.
    pub fn calm(&self) {
        self.rule(|_, _| None);
    }

    pub fn log(&self) -> Vec<Passed> {
        self.shared.log.lock().unwrap().clone()
    }

    /// Waits until `count` requests are held.
    #[track_caller]
    pub fn wait_held(&self, count: usize) {
        self.wait(|(held, _)| *held >= count);
    }

    /// Lets go of what is held, and returns when the server has answered all of it.
    #[track_caller]
    pub fn release(&self) {
        let count = self.shared.held.lock().unwrap().0;
        self.shared.holds.store(false, Ordering::SeqCst);
        self.shared.moved.notify_all();
        self.wait(|(_, answered)| *answered >= count);
    }

    #[track_caller]
    fn wait(&self, done: impl Fn(&(usize, usize)) -> bool) {
        let held = self.shared.held.lock().unwrap();
        let patience = Duration::from_secs(60);
        let (_held, late) = self.shared.moved.wait_timeout_while(held, patience, |held| !done(held)).unwrap();
        assert!(!late.timed_out(), "waited in vain for the requests that are held");
    }
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// Ends a connection with a reset.
fn reset(stream: &TcpStream) {
    let _ = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
}

/// A head up to and with its empty line, and what was read of the body.
pub fn read_head(stream: &mut TcpStream) -> io::Result<Option<(String, Vec<u8>)>> {
    let mut read = Vec::new();
    let mut buffer = [0; 16 << 10];
    loop {
        if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            let body = read.split_off(end + 4);
            return Ok(Some((String::from_utf8(read).map_err(|_| broken("a head"))?, body)));
        }
        match stream.read(&mut buffer)? {
            0 if read.is_empty() => return Ok(None),
            0 => return Err(broken("half a head")),
            length => read.extend_from_slice(&buffer[..length]),
        }
    }
}

pub fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

impl Shared {
    fn serve(&self, mut client: TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        let Some((head, body)) = read_head(&mut client)? else { return Ok(()) };
        let mut words = head.split(' ');
        let (method, path) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
        let length = match header(&head, "content-length") {
            Some(length) => length.parse().map_err(|_| broken("a length"))?,
            None if header(&head, "transfer-encoding").is_some() => return Err(broken("a body without a length")),
            None => 0,
        };
        let fault = (*self.rule.lock().unwrap())(&method, &path);
        let at_ms = self.started.elapsed().as_millis();
        let passed = Passed { method, path, bytes: length, fault: fault.clone(), told: None, at_ms };
        let at = {
            let mut log = self.log.lock().unwrap();
            log.push(passed);
            log.len() - 1
        };
        let told = match &fault {
            Some(Fault::CutBefore) => {
                reset(&client);
                return Ok(());
            }
            Some(Fault::Answer(status, headers, text)) => {
                drain(&mut client, length - body.len() as u64)?;
                write!(
                    client,
                    "HTTP/1.1 {status} X\r\n{headers}Connection: close\r\nContent-Length: {}\r\n\r\n{text}",
                    text.len()
                )?;
                return Ok(());
            }
            Some(Fault::Garbage) => {
                drain(&mut client, length - body.len() as u64)?;
                return client.write_all(b"\0\x01 this is not HTTP \xff\r\n\r\n");
            }
            Some(Fault::Hold) => return self.hold(&head, body, length, client),
            Some(Fault::Delay(time)) => {
                std::thread::sleep(*time);
                self.pass(&head, &body, length, &mut client, fault.as_ref())?
            }
            fault => self.pass(&head, &body, length, &mut client, fault.as_ref())?,
        };
        self.log.lock().unwrap()[at].told = told;
        Ok(())
    }

    /// The server's connection, with the request's head sent on it.
    fn connect(&self, head: &str) -> io::Result<TcpStream> {
        let mut server = TcpStream::connect(&self.server)?;
        server.set_nodelay(true)?;
        let kept = head.trim_end().lines().filter(|line| !line.to_lowercase().starts_with("connection:"));
        let lines: Vec<&str> = kept.collect();
        write!(server, "{}\r\nConnection: close\r\n\r\n", lines.join("\r\n"))?;
        Ok(server)
    }

    /// Passes a request on, and its answer back; the answer's status if all of it went back.
    fn pass(
        &self,
        head: &str,
        body: &[u8],
        length: u64,
        client: &mut TcpStream,
        fault: Option<&Fault>,
    ) -> io::Result<Option<u16>> {
        let mut server = self.connect(head)?;
        let (share, pause) = match fault {
            Some(Fault::CutInBody) => (length / 2, None),
            Some(Fault::Throttle(pause)) => (length, Some(*pause)),
            _ => (length, None),
        };
        let first = body.len().min(share as usize);
        server.write_all(&body[..first])?;
        let mut left = share - first as u64;
        let mut buffer = vec![0; 64 << 10];
        while left > 0 {
            let room = buffer.len().min(left as usize);
            match client.read(&mut buffer[..room])? {
                0 => {
                    reset(&server);
                    return Ok(None);
                }
                read => {
                    pause.into_iter().for_each(std::thread::sleep);
                    // A server that refuses a request closes before it has read all of it, and has answered.
                    if server.write_all(&buffer[..read]).is_err() {
                        break;
                    }
                    left -= read as u64;
                }
            }
        }
        if fault == Some(&Fault::CutInBody) {
            reset(&server);
            reset(client);
            return Ok(None);
        }
        let Some((answer, rest)) = read_head(&mut server)? else { return Ok(None) };
        let whole = header(&answer, "content-length").and_then(|length| length.parse::<usize>().ok());
        match fault {
            Some(Fault::CutAfter) => {
                io::copy(&mut server, &mut io::sink())?;
                reset(client);
                return Ok(None);
            }
            Some(Fault::CutInAnswer) => {
                let mut all = rest;
                server.read_to_end(&mut all)?;
                client.write_all(answer.as_bytes())?;
                client.write_all(&all[..all.len() / 2])?;
                return Ok(None);
            }
            _ => {}
        }
        let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
        client.write_all(answer.as_bytes())?;
        client.write_all(&rest)?;
        let copied = io::copy(&mut server, client)?;
        let complete = whole.is_none_or(|whole| whole as u64 == rest.len() as u64 + copied);
        Ok(status.filter(|_| complete))
    }

    /// Takes the whole request in, and sends it when it is released; nobody may be there for the answer any more.
    fn hold(&self, head: &str, mut body: Vec<u8>, length: u64, mut client: TcpStream) -> io::Result<()> {
        let more = length - body.len() as u64;
        (&mut client).take(more).read_to_end(&mut body)?;
        let mut held = self.held.lock().unwrap();
        held.0 += 1;
        self.moved.notify_all();
        let held = self.moved.wait_while(held, |_| self.holds.load(Ordering::SeqCst)).unwrap();
        drop(held);
        let mut server = self.connect(head)?;
        server.write_all(&body)?;
        let mut answer = Vec::new();
        let read = server.read_to_end(&mut answer);
        self.held.lock().unwrap().1 += 1;
        self.moved.notify_all();
        read?;
        client.write_all(&answer)
    }
}

fn drain(client: &mut TcpStream, length: u64) -> io::Result<()> {
    io::copy(&mut client.take(length), &mut io::sink()).map(drop)
}
