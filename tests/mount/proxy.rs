//! Counts what passes between client and server, and keeps them apart when told to.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub struct Proxy {
    port: u16,
    sent: Arc<AtomicU64>,
    answered: Arc<AtomicU64>,
    cut: Arc<AtomicBool>,
}

impl Proxy {
    /// In front of `server`, until the test process ends.
    pub fn new(server: &str) -> Self {
        let server = server.strip_prefix("http://").unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sent, answered) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let cut = Arc::new(AtomicBool::new(false));
        let counters = (sent.clone(), answered.clone());
        let is_cut = cut.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { break };
                if is_cut.load(Ordering::Relaxed) {
                    continue;
                }
                let Ok(server) = TcpStream::connect(&server) else { continue };
                pass(client.try_clone().unwrap(), server.try_clone().unwrap(), counters.0.clone(), is_cut.clone());
                pass(server, client, counters.1.clone(), is_cut.clone());
            }
        });
        Self { port, sent, answered, cut }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Cuts every connection, at the latest when something is sent on it, or lets new ones pass again.
    pub fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::Relaxed);
    }

    /// Bytes in both directions.
    pub fn total(&self) -> u64 {
        self.sent() + self.answered.load(Ordering::Relaxed)
    }

    /// Bytes from client to server.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, counter: Arc<AtomicU64>, cut: Arc<AtomicBool>) {
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            if cut.load(Ordering::Relaxed) {
                let _ = from.shutdown(Shutdown::Both);
                break;
            }
            counter.fetch_add(length as u64, Ordering::Relaxed);
            if to.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    });
}
