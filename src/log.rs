//! The log: one line an event, to the file of a state directory or to standard error.
//!
//! Events become lines on the thread that they happen on, and are written by a thread of the log's own: a disk or a
//! terminal that hangs holds nobody up. What does not fit into the queue meanwhile is counted, and told later.
//!
//! Every line is safe to look at: tokens are replaced ([`conceal`]), and so is every character that a terminal obeys
//! or that ends a line ([`printable`]). A call that is made again and again is heard at most twenty times a
//! minute at the levels that are on by default; the others are counted.
//!
//! Levels: `error`, what was lost or cannot go on by itself; `warn`, what somebody may have to look at; `info`, what
//! changes for the whole mount; `debug`, requests and single files; `trace`, all else.

mod file;
mod filter;
mod line;
mod panics;
mod printable;
mod secrets;
mod sink;
mod storm;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tracing::{Event, Subscriber};
use tracing_subscriber::Registry;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::reload;

pub use file::open_private;
pub use filter::{Filter, FilterError};
pub use printable::{printable, printable_json, printable_lines, quoted};
pub use secrets::{conceal, hide, hide_cut};
pub use storm::{Said, Trouble};

use file::RotatingFile;
use sink::{Output, Sink};

/// A log of this length is set aside: the log and the older ones stay under 40 MiB.
pub const FILE_BYTES: u64 = 10 << 20;
/// How many older logs are kept: `log.1` is the latest.
pub const OLDER_FILES: u32 = 3;
/// How long the end of a process waits for its last lines to be written.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// The file of a daemon, with those that were set aside beside it. Its standard output and error go there too.
    File(PathBuf),
    /// Standard error: with times, or, where that is the journal of systemd, with priorities.
    StandardError,
}

/// What a running process can still change about its log.
struct Running {
    reload: reload::Handle<Targets, Registry>,
    filter: Mutex<Filter>,
}

static RUNNING: OnceLock<Running> = OnceLock::new();

/// Writes the last lines when it is dropped.
#[derive(Debug)]
#[must_use = "the last lines are written when it is dropped"]
pub struct Log {
    sink: Arc<Sink>,
}

impl Drop for Log {
    fn drop(&mut self) {
        self.sink.close(LAST_WORDS);
    }
}

/// Begins to log what `filter` lets through, panics of any thread too. For a process's first call; to be called after
/// a fork, because it starts a thread. A file that cannot be opened keeps nobody from working: it is tried again with
/// every line.
pub fn install(filter: &Filter, destination: Destination) -> Log {
    let (output, plain) = match destination {
        Destination::File(path) => (Output::File(RotatingFile::new(path, FILE_BYTES, OLDER_FILES).with_stdio()), false),
        Destination::StandardError => (Output::StandardError, is_journal(std::env::var("JOURNAL_STREAM").ok())),
    };
    let sink = Sink::start(output, plain);
    let (targets, reload) = reload::Layer::new(filter.targets());
    let subscriber = tracing_subscriber::registry().with(targets).with(Lines { sink: sink.clone() });
    // A second subscriber of one process is refused, and the first goes on.
    if tracing::subscriber::set_global_default(subscriber).is_ok() {
        let _ = RUNNING.set(Running { reload, filter: Mutex::new(filter.clone()) });
        panics::log_to(sink.clone());
    }
    Log { sink }
}

/// What is logged now; `None` in a process without a log.
pub fn filter() -> Option<Filter> {
    let running = RUNNING.get()?;
    Some(running.filter.lock().unwrap_or_else(PoisonError::into_inner).clone())
}

/// Logs what `filter` lets through from now on. Says whether there is a log.
pub fn set_filter(filter: Filter) -> bool {
    let Some(running) = RUNNING.get() else { return false };
    let mut current = running.filter.lock().unwrap_or_else(PoisonError::into_inner);
    if running.reload.reload(filter.targets()).is_err() {
        return false;
    }
    *current = filter;
    true
}

/// Whether standard error is the stream of systemd's journal that `named` (`$JOURNAL_STREAM`, "device:inode") tells of.
/// Both are compared: a child may have inherited the variable and not the stream.
fn is_journal(named: Option<String>) -> bool {
    let named = named.and_then(|named| {
        let (device, inode) = named.split_once(':')?;
        Some((device.parse::<u64>().ok()?, inode.parse::<u64>().ok()?))
    });
    let stat = rustix::fs::fstat(rustix::stdio::stderr());
    named.is_some_and(|named| stat.is_ok_and(|stat| (stat.st_dev, stat.st_ino) == named))
}

/// Makes lines of events.
struct Lines {
    sink: Arc<Sink>,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        self.sink.event(*metadata.level(), metadata.callsite(), || line::body(event));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_stream_that_systemd_named_is_its_journal() {
        let stat = rustix::fs::fstat(rustix::stdio::stderr()).unwrap();
        assert!(is_journal(Some(format!("{}:{}", stat.st_dev, stat.st_ino))));
        for other in ["", "8", "8:", "x:y", "18446744073709551615:1"] {
            assert!(!is_journal(Some(other.into())), "{other}");
        }
        assert!(!is_journal(Some(format!("{}:{}", stat.st_dev, stat.st_ino + 1))));
        assert!(!is_journal(None));
    }
}
