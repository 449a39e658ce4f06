//! Callers that are killed while they wait for the server.
//!
//! The kernel waits for the answer to a request that a daemon has read, whatever signal comes (`request_wait_answer` in
//! fs/fuse/dev.c of Linux), unless the daemon takes FUSE_INTERRUPT, which fuser 0.18 does not hand out: a program would
//! stay in state D as long as the server likes, SIGKILL or not. But a pending SIGKILL is seen from outside. The header of
//! a request names the thread that waits, and `/proc` tells of that thread: so one thread of this daemon looks, once a
//! second, at the callers of all requests that wait.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// How often it is looked, and for how long a request has waited before its caller is first looked at.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(1);

/// SIGKILL in a mask of `/proc/PID/status` (`proc_pid_status(5)`).
const SIGKILL_BIT: u64 = 1 << (libc::SIGKILL - 1);
/// `PF_EXITING` of `linux/sched.h`, among the flags of `/proc/PID/stat`.
const EXITING: u64 = 0x4;

/// The callers of the requests that wait. Dropping it ends its thread.
pub(super) struct Callers(Arc<Shared>);

struct Shared {
    waiting: Mutex<Waiting>,
    /// Somebody waits now, or it is over.
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    next: u64,
    callers: HashMap<u64, Caller>,
    over: bool,
}

struct Caller {
    thread: u32,
    since: Instant,
    killed: oneshot::Sender<()>,
}

impl Callers {
    /// Looks at the callers `every` so often, as long as there are any.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(super) fn watch(every: Duration) -> io::Result<Self> {
        let shared = Arc::new(Shared { waiting: Mutex::default(), changed: Condvar::new() });
        let watched = shared.clone();
        std::thread::Builder::new().name("callers".into()).spawn(move || watched.look(every))?;
        Ok(Self(shared))
    }

    /// What comes of `work`; `None` where `thread`, which waits for it, was killed before that. 0 is a thread that cannot
    /// be seen from here, in another container: nobody can tell of it.
    ///
    /// # Cancel safety
    /// As `work`, which is dropped when the thread is killed.
    pub(super) async fn unless_killed<T>(&self, thread: u32, work: impl Future<Output = T>) -> Option<T> {
        if thread == 0 {
            return Some(work.await);
        }
        let (killed, told) = oneshot::channel();
        let _waiting = self.0.wait(Caller { thread, since: Instant::now(), killed });
        tokio::select! {
            biased;
            done = work => Some(done),
            Ok(()) = told => None,
        }
    }
}

impl Drop for Callers {
    fn drop(&mut self) {
        self.0.lock().over = true;
        self.0.changed.notify_one();
    }
}

impl Shared {
    fn wait(&self, caller: Caller) -> Registered<'_> {
        let mut waiting = self.lock();
        let number = waiting.next;
        waiting.next += 1;
        waiting.callers.insert(number, caller);
        if waiting.callers.len() == 1 {
            self.changed.notify_one();
        }
        Registered { shared: self, number }
    }

    fn look(&self, every: Duration) {
        loop {
            let idle = |waiting: &mut Waiting| waiting.callers.is_empty() && !waiting.over;
            let waiting = self.changed.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner);
            let over = |waiting: &mut Waiting| !waiting.over;
            let pause = self.changed.wait_timeout_while(waiting, every, over);
            let (waiting, _) = pause.unwrap_or_else(PoisonError::into_inner);
            if waiting.over {
                return;
            }
            let due = waiting.callers.iter().filter(|(_, caller)| caller.since.elapsed() >= every);
            let due: Vec<(u64, u32)> = due.map(|(number, caller)| (*number, caller.thread)).collect();
            drop(waiting);
            // Not under the lock: each costs a few system calls.
            let mut seen = HashMap::new();
            for (number, thread) in due {
                if *seen.entry(thread).or_insert_with(|| is_killed(thread))
                    && let Some(caller) = self.lock().callers.remove(&number)
                {
                    // Whoever does not wait any more was answered.
                    let _ = caller.killed.send(());
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Registered<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.shared.lock().callers.remove(&self.number);
    }
}

/// Whether a thread was killed: SIGKILL waits for it (so does any signal that ends a process without a core dump: the
/// kernel makes it SIGKILL for each thread, `complete_signal` in kernel/signal.c of Linux), or it is on its way out
/// because of a signal, or gone.
fn is_killed(thread: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{thread}/status")) {
        Ok(status) => {
            let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            let mask = |name| field(name).and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or(0);
            (mask("SigPnd:") | mask("ShdPnd:")) & SIGKILL_BIT != 0
                || field("State:").is_some_and(|state| state.starts_with(['Z', 'X']))
                || is_dying(thread)
        }
        // `/proc` may be mounted so that it hides the processes of others (`hidepid`).
        Err(_) => i32::try_from(thread)
            .ok()
            .and_then(rustix::process::Pid::from_raw)
            .is_some_and(|thread| rustix::process::test_kill_process(thread) == Err(rustix::io::Errno::SRCH)),
    }
}

/// Whether a signal ended its process, which closes its files now.
fn is_dying(thread: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{thread}/stat")) else { return false };
    // After the name, which may hold anything; the first of these is field 3 of `proc_pid_stat(5)`.
    let fields: Vec<&str> = stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ').collect()).unwrap_or_default();
    let number = |field: usize| fields.get(field - 3).and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0);
    number(9) & EXITING != 0 && number(52) & 0x7f != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    const EVERY: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn whoever_is_gone_is_not_waited_for_and_others_are() {
        let callers = Callers::watch(EVERY).unwrap();
        let mut child = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap();
        let thread = child.id();
        let own = std::process::id();
        let (done, mut over) = oneshot::channel::<()>();
        let waits = callers.unless_killed(thread, std::future::pending::<()>());
        let kills = async {
            // The one that lives is looked at as often as the one that is killed.
            let lives = callers.unless_killed(own, &mut over);
            tokio::select! {
                _ = lives => panic!("a caller that lives was given up"),
                () = async {
                    child.kill().unwrap();
                    assert_eq!(waits.await, None);
                } => {}
            }
        };
        kills.await;
        child.wait().unwrap();
        assert_eq!(callers.unless_killed(thread, std::future::pending::<()>()).await, None, "it has been reaped");
        drop(done);
        assert!(callers.0.lock().callers.is_empty());
    }

    #[tokio::test]
    async fn who_cannot_be_seen_is_waited_for() {
        let callers = Callers::watch(EVERY).unwrap();
        let work = tokio::time::timeout(EVERY * 5, callers.unless_killed(0, std::future::pending::<()>()));
        assert!(work.await.is_err());
        assert_eq!(callers.unless_killed(1, async { 7 }).await, Some(7));
    }
}
