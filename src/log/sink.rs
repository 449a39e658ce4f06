//! The queue of lines, and the thread that writes them.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::ThreadId;
use std::time::{Duration, Instant, SystemTime};

use tracing::Level;
use tracing::callsite::Identifier;

use super::file::RotatingFile;
use super::line;
use super::storm::Bursts;

/// Lines that wait to be written; those that come while it is full are counted and left out.
const QUEUE_BYTES: usize = 1 << 20;
/// What is written at once.
const CHUNK_BYTES: usize = 64 << 10;

/// Where lines are written.
#[derive(Debug)]
pub(super) enum Output {
    /// A file that is set aside when it is long.
    File(RotatingFile),
    /// Standard error.
    StandardError,
}

impl Output {
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        match self {
            Self::File(file) => file.write(lines),
            Self::StandardError => io::stderr().write_all(lines),
        }
    }
}

/// The queue.
#[derive(Debug)]
pub(super) struct Sink {
    state: Mutex<State>,
    changed: Condvar,
    plain: bool,
    writer: OnceLock<ThreadId>,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<String>,
    bytes: usize,
    bursts: Bursts,
    /// Lines that nobody could take or write.
    lost: u64,
    /// The thread has taken lines that it has not written yet.
    writing: bool,
    closed: bool,
}

impl State {
    fn push(&mut self, line: String) {
        if self.bytes + line.len() > QUEUE_BYTES {
            self.lost += 1;
            return;
        }
        self.bytes += line.len();
        self.lines.push_back(line);
    }
}

impl Sink {
    /// A queue whose lines are written to `output`. Without a thread, which a process may be refused, lines are lost.
    pub(super) fn start(output: Output, plain: bool) -> Arc<Self> {
        let sink = Arc::new(Self { state: Mutex::default(), changed: Condvar::new(), plain, writer: OnceLock::new() });
        let writer = sink.clone();
        if let Ok(thread) = std::thread::Builder::new().name("log".into()).spawn(move || writer.write_all(output)) {
            let _ = sink.writer.set(thread.thread().id());
        } else {
            sink.state().closed = true;
        }
        sink
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An event. The levels that are on by default are kept from becoming a storm; who asks for more wants all of it.
    pub(super) fn event(&self, level: Level, call: Identifier, body: impl FnOnce() -> String) {
        let body = body();
        if level > Level::INFO {
            return self.push(level, &body);
        }
        let heard = self.state().bursts.take(call, level, body, Instant::now());
        match heard {
            Some(body) => self.push(level, &body),
            // The thread is to tell the count when it is due.
            None => self.changed.notify_all(),
        }
    }

    /// A line.
    pub(super) fn push(&self, level: Level, body: &str) {
        let line = line::whole(level, body, SystemTime::now(), self.plain);
        let mut state = self.state();
        if !state.closed {
            state.push(line);
            self.changed.notify_all();
        }
    }

    /// Whether this thread is the one that writes.
    pub(super) fn is_writer(&self) -> bool {
        self.writer.get() == Some(&std::thread::current().id())
    }

    /// Waits until what is queued was written, at most `patience`.
    pub(super) fn flush(&self, patience: Duration) {
        let busy = |state: &mut State| !state.closed && (state.writing || !state.lines.is_empty());
        drop(self.changed.wait_timeout_while(self.state(), patience, busy));
    }

    /// Writes what is queued, and takes no more.
    pub(super) fn close(&self, patience: Duration) {
        let mut state = self.state();
        for (level, body) in state.bursts.counts(None) {
            let line = line::whole(level, &body, SystemTime::now(), self.plain);
            state.push(line);
        }
        self.changed.notify_all();
        drop(state);
        self.flush(patience);
        self.state().closed = true;
        self.changed.notify_all();
    }

    /// The thread: writes until the queue is closed.
    fn write_all(&self, mut output: Output) {
        let mut cause = "the queue was full".to_owned();
        while let Some((lines, lost)) = self.next() {
            let mut failed = 0;
            let told = (lost > 0).then(|| {
                let body = line::said("oxenfs::log", &format!("{lost} lines were left out: {cause}"), "");
                line::whole(Level::WARN, &body, SystemTime::now(), self.plain)
            });
            for (at, chunk) in chunks(told.iter().chain(&lines)).into_iter().enumerate() {
                if let Err(error) = output.write(chunk.text.as_bytes()) {
                    cause = error.to_string();
                    // The line about those that were lost before is not one of them, but those are lost still.
                    failed += chunk.lines - u64::from(at == 0 && told.is_some());
                    failed += if at == 0 { lost } else { 0 };
                } else if failed == 0 {
                    "the queue was full".clone_into(&mut cause);
                }
            }
            let mut state = self.state();
            state.lost += failed;
            state.writing = false;
            self.changed.notify_all();
        }
    }

    /// What is to be written next, and how many lines were lost before; `None` at the end.
    fn next(&self) -> Option<(Vec<String>, u64)> {
        let mut state = self.state();
        loop {
            for (level, body) in state.bursts.counts(Some(Instant::now())) {
                let line = line::whole(level, &body, SystemTime::now(), self.plain);
                state.push(line);
            }
            if !state.lines.is_empty() {
                state.writing = true;
                state.bytes = 0;
                let lost = std::mem::take(&mut state.lost);
                return Some((state.lines.drain(..).collect(), lost));
            }
            if state.closed {
                return None;
            }
            state = match state.bursts.due() {
                Some(due) => {
                    let left = due.saturating_duration_since(Instant::now());
                    self.changed.wait_timeout(state, left).map_or_else(|error| error.into_inner().0, |woken| woken.0)
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

struct Chunk {
    text: String,
    lines: u64,
}

/// Lines together, so that many take few writes.
fn chunks<'a>(lines: impl Iterator<Item = &'a String>) -> Vec<Chunk> {
    let mut chunks: Vec<Chunk> = Vec::new();
    for line in lines {
        match chunks.last_mut() {
            Some(chunk) if chunk.text.len() + line.len() <= CHUNK_BYTES => {
                chunk.text.push_str(line);
                chunk.lines += 1;
            }
            _ => chunks.push(Chunk { text: line.clone(), lines: 1 }),
        }
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(sink: &Sink, path: &std::path::Path) -> String {
        sink.flush(Duration::from_secs(20));
        std::fs::read_to_string(path).unwrap_or_default()
    }

    #[test]
    fn lines_come_out_in_order_and_lost_ones_are_counted_when_writing_goes_well_again() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("dir/log");
        let sink = Sink::start(Output::File(RotatingFile::new(path.clone(), 1 << 20, 1)), true);
        sink.push(Level::INFO, "a: one");
        sink.flush(Duration::from_secs(20));
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        // It is looked again when a while has passed: with which line that is, is not for this test to say.
        let deadline = Instant::now() + Duration::from_secs(20);
        while !path.exists() && Instant::now() < deadline {
            sink.push(Level::INFO, "a: two");
            sink.flush(Duration::from_secs(20));
        }
        sink.push(Level::ERROR, "a: three");
        let text = written(&sink, &path);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("<4>oxenfs::log: ") && lines[0].contains(" lines were left out: "), "{text}");
        assert!(!text.contains("a: one"), "{text}");
        assert_eq!(lines.last(), Some(&"<3>a: three"));
        sink.close(Duration::from_secs(20));
        sink.push(Level::ERROR, "a: four");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }

    #[test]
    fn a_panic_is_in_the_log_with_its_backtrace() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("log");
        let sink = Sink::start(Output::File(RotatingFile::new(path.clone(), 1 << 20, 1)), true);
        super::super::panics::log_to(sink.clone());
        let died =
            std::thread::Builder::new().name("doomed".into()).spawn(|| panic!("out of\n\u{1b}[31mluck")).unwrap();
        died.join().unwrap_err();
        let _ = std::panic::take_hook();
        let text = written(&sink, &path);
        let first = "<3>oxenfs::panic: thread doomed panicked at src/log/sink.rs:";
        assert!(
            text.lines().any(|line| line.starts_with(first) && line.ends_with(": out of\\n\\u{1b}[31mluck")),
            "{text}"
        );
        let frame = |line: &str| line.starts_with("<3>oxenfs::panic: ") && line.contains("a_panic_is_in_the_log");
        assert!(text.lines().any(frame), "{text}");
    }
}
