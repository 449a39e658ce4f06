//! Keeps processors from falling asleep while programs wait for one answer after the other.
//!
//! A request wakes this daemon, and the answer wakes the program. On most machines that takes a few microseconds. In a
//! virtual machine whose kernel does not poll before it halts (`guest_halt_poll_ns` 0 of the module haltpoll), each
//! takes 30 to 60, and a small file takes ten of them. Linux lets root ask for better (`/dev/cpu_dma_latency`, PM QoS,
//! Documentation/power/pm_qos_interface.rst): as long as the number 0 stands there, processors with nothing to do look
//! for work instead of halting. It stands there only while requests come thick and fast. Measured on such a machine
//! with two processors: a file of 16 KiB was created in 121 µs instead of 242, and `cp -r` took half as long.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// So many requests in so short a time are a program that waits for them, and not a look now and then.
const THICK: u32 = 16;
const FAST: Duration = Duration::from_millis(10);
/// It is over when none has come for this long.
const LULL: Duration = Duration::from_millis(10);

/// What stands there while nobody asks: any latency will do (`PM_QOS_CPU_LATENCY_DEFAULT_VALUE`, 2000 s).
const ANY: i32 = 2_000_000_000;
const NONE: i32 = 0;

/// More than this many are not kept awake unasked: the wish goes to all of them.
const FEW_PROCESSORS: usize = 8;

/// The wish, and when it stands.
pub(super) struct Awake {
    wish: File,
    began: Instant,
    /// When the present count began, in nanoseconds, and the count.
    since: AtomicU64,
    count: AtomicU32,
    /// Of the last request.
    last: AtomicU64,
    /// Changed under `saying` alone.
    wished: AtomicBool,
    saying: Mutex<()>,
    watcher: std::thread::Thread,
}

impl Awake {
    /// Starts to watch requests. `None` where it is not `wanted`, or nobody said so and nothing is to be gained, or the
    /// kernel does not take the wish.
    pub(super) fn start(wanted: Option<bool>) -> Option<Arc<Self>> {
        if !wanted.unwrap_or_else(|| sleeps_deep(Path::new("/sys")) && processors() <= FEW_PROCESSORS) {
            return None;
        }
        // Until something is written, no wish stands there; once it is closed, none does any more.
        let wish = OpenOptions::new().write(true).open("/dev/cpu_dma_latency");
        let wish = wish.inspect_err(|error| tracing::info!(%error, "processors fall asleep between requests")).ok()?;
        Self::with(wish).inspect_err(|error| tracing::warn!(%error, "processors fall asleep between requests")).ok()
    }

    fn with(wish: File) -> io::Result<Arc<Self>> {
        let (send, receive) = std::sync::mpsc::channel::<std::sync::Weak<Self>>();
        let watcher = std::thread::Builder::new().name("awake".into()).spawn(move || {
            let Ok(awake) = receive.recv() else { return };
            while let Some(awake) = awake.upgrade() {
                awake.watch();
            }
        })?;
        let awake = Arc::new(Self {
            wish,
            began: Instant::now(),
            since: AtomicU64::new(0),
            count: AtomicU32::new(0),
            last: AtomicU64::new(0),
            wished: AtomicBool::new(false),
            saying: Mutex::default(),
            watcher: watcher.thread().clone(),
        });
        // The thread waits for it.
        let _ = send.send(Arc::downgrade(&awake));
        Ok(awake)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// A request has come.
    pub(super) fn request(&self) {
        let now = self.now();
        self.last.store(now, Ordering::Relaxed);
        if self.wished.load(Ordering::Relaxed) {
            return;
        }
        if now.saturating_sub(self.since.load(Ordering::Relaxed)) > FAST.as_nanos() as u64 {
            self.since.store(now, Ordering::Relaxed);
            self.count.store(0, Ordering::Relaxed);
        }
        // Two threads that count at a time may miss one; another one comes.
        if self.count.fetch_add(1, Ordering::Relaxed) + 1 >= THICK {
            self.say(NONE);
            self.watcher.unpark();
        }
    }

    /// Takes the wish back in a lull, if it stands; else waits until it does.
    fn watch(&self) {
        if !self.wished.load(Ordering::Relaxed) {
            // Not for ever: the mount may be over.
            return std::thread::park_timeout(Duration::from_secs(1));
        }
        std::thread::sleep(LULL);
        let quiet = self.now().saturating_sub(self.last.load(Ordering::Relaxed));
        if quiet >= LULL.as_nanos() as u64 {
            self.count.store(0, Ordering::Relaxed);
            self.say(ANY);
        }
    }

    fn say(&self, microseconds: i32) {
        let _alone = self.saying.lock().unwrap_or_else(PoisonError::into_inner);
        if self.wished.swap(microseconds == NONE, Ordering::Relaxed) == (microseconds == NONE) {
            return;
        }
        if let Err(error) = (&self.wish).write_all(&microseconds.to_ne_bytes()) {
            tracing::debug!(%error, "the kernel does not take the wish for processors that stay awake");
        }
    }
}

/// Whether this is a virtual machine whose idle processors halt at once.
fn sleeps_deep(sys: &Path) -> bool {
    let read = |path: &str| std::fs::read_to_string(sys.join(path)).unwrap_or_default();
    read("devices/system/cpu/cpuidle/current_driver").trim() == "haltpoll"
        && read("module/haltpoll/parameters/guest_halt_poll_ns").trim() == "0"
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(usize::MAX, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(file: &Path) -> Vec<i32> {
        let bytes = std::fs::read(file).unwrap();
        bytes.chunks(4).map(|word| i32::from_ne_bytes(word.try_into().unwrap())).collect()
    }

    #[test]
    fn the_wish_stands_while_requests_come_thick_and_fast_and_no_longer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wish");
        let awake = Awake::with(File::create(&path).unwrap()).unwrap();
        (1..THICK).for_each(|_| awake.request());
        assert!(said(&path).is_empty(), "a few are no reason");
        // As many as it takes, should this thread be held up in between.
        while said(&path).is_empty() {
            awake.request();
        }
        // The lull comes by itself, and may have come before this thread looked.
        while said(&path).last() != Some(&ANY) {
            std::thread::yield_now();
        }
        assert!(said(&path).chunks(2).all(|turn| turn == [NONE, ANY]), "{:?}", said(&path));
    }

    #[test]
    fn only_where_idle_processors_halt_at_once_is_it_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert!(!sleeps_deep(dir.path()));
        put("devices/system/cpu/cpuidle/current_driver", "haltpoll\n");
        put("module/haltpoll/parameters/guest_halt_poll_ns", "200000\n");
        assert!(!sleeps_deep(dir.path()));
        put("module/haltpoll/parameters/guest_halt_poll_ns", "0\n");
        assert!(sleeps_deep(dir.path()));
        put("devices/system/cpu/cpuidle/current_driver", "intel_idle\n");
        assert!(!sleeps_deep(dir.path()));
    }
}
