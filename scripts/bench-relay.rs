//! The link of `scripts/bench`: `bench-relay TARGET MILLISECONDS BYTES_PER_SECOND` listens on a free port of 127.0.0.1,
//! prints it, and passes what comes on to TARGET (an address with a port) as over a link of that round trip and that
//! bandwidth: half of the time each way, and one limit in each direction for all connections. Prints, for each line that
//! it reads, how many bytes have passed there and back, and ends with its input. Compiled by the script with `rustc -O`.

use std::collections::VecDeque;
use std::io::{BufRead, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// What a connection has on its way at most: more than the link carries in a round trip, as a receive window has to be.
const WINDOW_BYTES: usize = 8 << 20;
/// What is taken at a time: at 1 Gbit/s half a millisecond.
const PIECE_BYTES: usize = 64 << 10;

/// One direction.
struct Way {
    bytes_per_second: f64,
    /// When all that was sent will have left.
    free: Mutex<Instant>,
    passed: AtomicU64,
}

impl Way {
    /// When these bytes have left, which begins when all before them have.
    fn send(&self, bytes: usize) -> Instant {
        let mut free = self.free.lock().unwrap();
        *free = (*free).max(Instant::now()) + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second);
        self.passed.fetch_add(bytes as u64, Ordering::Relaxed);
        *free
    }
}

/// What is on its way on one connection, with when it arrives; nothing is its end.
#[derive(Default)]
struct OnItsWay {
    pieces: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    /// Where it goes nobody takes it any more.
    is_over: bool,
}

type Line = (Mutex<OnItsWay>, Condvar);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [target, milliseconds, bytes_per_second] = &arguments[..] else {
        panic!("bench-relay TARGET MS BYTES_PER_SECOND")
    };
    let half = Duration::from_secs_f64(milliseconds.parse::<f64>().expect("milliseconds") / 2000.0);
    let rate: f64 = bytes_per_second.parse().expect("bytes a second");
    let way = || {
        let free = Mutex::new(Instant::now());
        Arc::new(Way { bytes_per_second: rate, free, passed: AtomicU64::new(0) })
    };
    let (there, back) = (way(), way());
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    println!("{}", listener.local_addr().expect("its address").port());
    let ways = (there.clone(), back.clone());
    let target = target.clone();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let (target, ways) = (target.clone(), ways.clone());
            thread::spawn(move || join(client, &target, ways, half));
        }
    });
    for line in std::io::stdin().lock().lines() {
        if line.is_err() {
            break;
        }
        println!("{} {}", there.passed.load(Ordering::Relaxed), back.passed.load(Ordering::Relaxed));
    }
}

fn join(client: TcpStream, target: &str, (there, back): (Arc<Way>, Arc<Way>), half: Duration) {
    // What a connection takes to come about.
    thread::sleep(2 * half);
    let Ok(server) = TcpStream::connect(target) else { return };
    for one in [&client, &server] {
        let _ = one.set_nodelay(true);
    }
    let Ok((client_too, server_too)) = client.try_clone().and_then(|one| Ok((one, server.try_clone()?))) else {
        return;
    };
    pass(client, server_too, there, half);
    pass(server, client_too, back, half);
}

/// Passes on what comes, in one direction.
fn pass(mut from: TcpStream, mut to: TcpStream, way: Arc<Way>, half: Duration) {
    let line: Arc<Line> = Arc::default();
    let (given, Ok(source)) = (line.clone(), from.try_clone()) else { return };
    thread::spawn(move || {
        loop {
            let mut piece = vec![0; PIECE_BYTES];
            let read = from.read(&mut piece).unwrap_or(0);
            piece.truncate(read);
            let due = way.send(read) + half;
            let (lock, told) = &*line;
            let mut waiting = lock.lock().unwrap();
            while waiting.bytes > WINDOW_BYTES && !waiting.is_over {
                waiting = told.wait(waiting).unwrap();
            }
            if waiting.is_over {
                return;
            }
            waiting.bytes += read;
            waiting.pieces.push_back((due, piece));
            told.notify_all();
            if read == 0 {
                return;
            }
        }
    });
    thread::spawn(move || {
        let (lock, told) = &*given;
        loop {
            let (due, piece) = {
                let mut waiting = lock.lock().unwrap();
                while waiting.pieces.is_empty() {
                    waiting = told.wait(waiting).unwrap();
                }
                waiting.pieces.pop_front().unwrap()
            };
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let is_end = piece.is_empty();
            let sent = if is_end { to.shutdown(Shutdown::Write) } else { to.write_all(&piece) };
            let mut waiting = lock.lock().unwrap();
            waiting.bytes -= piece.len();
            waiting.is_over = sent.is_err();
            told.notify_all();
            drop(waiting);
            if sent.is_err() {
                // Nobody wants any more, and whoever sends is to find that out.
                let _ = (to.shutdown(Shutdown::Both), source.shutdown(Shutdown::Both));
            }
            if sent.is_err() || is_end {
                return;
            }
        }
    });
}
