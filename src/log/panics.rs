//! Panics in the log: what was said, where, on which thread, and how it came to that.

use std::backtrace::Backtrace;
use std::panic::PanicHookInfo;
use std::sync::Arc;
use std::time::Duration;

use tracing::Level;

use super::line;
use super::sink::Sink;

/// How long a thread that panicked waits for its words to be written: the process may end upon it.
const PATIENCE: Duration = Duration::from_secs(1);
/// More frames than any stack of ours has.
const FRAMES: usize = 400;

/// Lets panics of all threads go to `sink`, in place of standard error.
pub(super) fn log_to(sink: Arc<Sink>) {
    let otherwise = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if sink.is_writer() {
            // Nobody would write it.
            return otherwise(panic);
        }
        // Not through `tracing`: the thread may be in the middle of an event.
        for line in told(panic, &Backtrace::force_capture().to_string()) {
            sink.push(Level::ERROR, &line);
        }
        sink.flush(PATIENCE);
    }));
}

/// A line for what was said, and one for each line of the backtrace.
fn told(panic: &PanicHookInfo<'_>, backtrace: &str) -> Vec<String> {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("without a name");
    let place = panic.location().map(|place| format!(" at {place}")).unwrap_or_default();
    let payload = panic.payload();
    let message =
        payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let message = message.unwrap_or("(no text)");
    let first = line::said("oxenfs::panic", &format!("thread {name} panicked{place}: {message}"), "");
    let frames = backtrace.lines().take(FRAMES).map(|frame| line::said("oxenfs::panic", frame, ""));
    std::iter::once(first).chain(frames).collect()
}
