//! What a daemon does: counts since it started, for whoever watches it, and events for whoever follows it.
//!
//! Both are by-products. Nothing waits for a reader of events; one that is too slow is told how many it missed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::{self, error::RecvError};

/// Upper ends of the classes that the durations of requests fall into, in seconds; the last class has none. From an
/// answer of a server beside this process to one that is about to be given up.
pub const DURATION_BOUNDS_SECS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 60.0];
/// Kinds of requests are a dozen; what came on top of this many would be a mistake, and is counted together.
const MOST_KINDS: usize = 100;
/// Events that a reader may be behind: some megabytes at most.
const EVENTS_KEPT: usize = 8192;

/// What happened, and when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// In UTC, to the millisecond, as RFC 3339 has it.
    pub time: String,
    /// What.
    #[serde(flatten)]
    pub what: Happening,
}

/// What can happen, as `oxenfs events` prints it. Paths are of the repository.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Happening {
    /// From here on all is told: the first line.
    Following {
        /// Where it is mounted.
        mountpoint: String,
        /// Changes that the server lacks at this moment.
        owed_files: u64,
        /// Why nothing goes on at this moment, if nothing does.
        stalled: Option<String>,
        /// Whether that is because the server was away when it was mounted, and was not found since.
        offline: bool,
    },
    /// The server confirmed content.
    Staged {
        /// Its path.
        path: String,
        /// Its length.
        bytes: u64,
        /// Its hash.
        hash: String,
    },
    /// The server confirmed that a file is to be gone, or has what the branch has again.
    Unstaged {
        /// Its path.
        path: String,
    },
    /// A file could not be staged.
    Failed {
        /// Its path.
        path: String,
        /// Why.
        error: String,
        /// Whether it is tried again by itself; else it waits for somebody.
        again: bool,
    },
    /// A commit found a file changed here and on its branch; it was not made.
    Conflict {
        /// The file.
        path: String,
        /// The branch.
        branch: String,
    },
    /// A commit was made, and is whole.
    Committed {
        /// Its id.
        id: String,
        /// The branch.
        branch: String,
    },
    /// The branch was seen on a commit that the mount does not stand on.
    BranchAhead {
        /// The branch.
        branch: String,
        /// The commit.
        head: String,
        /// How many commits that are; `None`: it is not known.
        commits: Option<u64>,
    },
    /// What others committed was taken in.
    Refreshed {
        /// The commit that the mount stands on from now on.
        base: String,
        /// How many paths are in conflict.
        conflicts: u64,
    },
    /// Nothing goes on until something outside changes.
    Stalled {
        /// In one word, see [`STALLS`].
        reason: String,
        /// In words.
        error: String,
    },
    /// It goes on.
    Resumed,
    /// The reader was too slow; so many are missing here.
    Missed {
        /// How many.
        events: u64,
    },
    /// The daemon has ended: the last line.
    Ended,
}

impl Happening {
    /// With the time that it is.
    pub fn now(self) -> Event {
        let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let time = format!("{}.{:03}Z", crate::calendar::utc(since.as_secs()), since.subsec_millis());
        Event { time, what: self }
    }
}

/// Why nothing goes on, in one word each: the server cannot be reached, does not answer, asks for patience, fails,
/// refuses the token, denies access, lacks repository or workspace, has something there that excludes it, has no room,
/// refuses otherwise, or says what is no answer; another repository is there; and the local disk fails.
pub const STALLS: [&str; 13] = [
    "unreachable",
    "timed_out",
    "busy",
    "server_error",
    "unauthorized",
    "forbidden",
    "not_found",
    "conflict",
    "no_space",
    "refused",
    "protocol",
    "another_repository",
    "local_disk",
];

/// Requests of one kind.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Requests {
    /// What they are about.
    pub kind: String,
    /// The HTTP method.
    pub method: String,
    /// How many ended how: `ok`, or as [`STALLS`] has it.
    pub outcomes: BTreeMap<String, u64>,
    /// How long all of them took.
    pub seconds: f64,
    /// How many fell into each class of [`DURATION_BOUNDS_SECS`], and beyond.
    pub classes: [u64; DURATION_BOUNDS_SECS.len() + 1],
}

/// Counts since the daemon started.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// When it started: seconds since 1970.
    pub started_secs: u64,
    /// Requests to the server.
    pub requests: Vec<Requests>,
    /// Requests that were made again because an earlier attempt failed.
    pub retries: u64,
    /// Files whose content the server confirmed.
    pub staged_files: u64,
    /// Their content's length.
    pub staged_bytes: u64,
    /// Removals, and files taken back to what the branch has, that the server confirmed.
    pub unstaged_files: u64,
    /// Attempts to stage a file that failed for a reason of the file's own.
    pub failures: u64,
    /// Times that nothing went on.
    pub stalls: u64,
    /// Commits made.
    pub commits: u64,
    /// Commits asked for and not made.
    pub failed_commits: u64,
    /// Files that a commit found changed here and on the branch.
    pub conflicts: u64,
    /// When the last commit was made: seconds since 1970; `None`: none was.
    pub last_commit_secs: Option<u64>,
    /// Times that content was wanted which the cache had.
    pub cache_hits: u64,
    /// Times that content was wanted which had to be fetched.
    pub cache_misses: u64,
    /// Bytes of copies of what the server has.
    pub cache_bytes: u64,
    /// Their limit.
    pub cache_limit_bytes: u64,
}

/// Where parts of a daemon tell what they do.
#[derive(Debug)]
pub struct Activity {
    started_secs: u64,
    requests: Mutex<BTreeMap<(String, String), Requests>>,
    retries: AtomicU64,
    staged_files: AtomicU64,
    staged_bytes: AtomicU64,
    unstaged_files: AtomicU64,
    failures: AtomicU64,
    stalls: AtomicU64,
    commits: AtomicU64,
    failed_commits: AtomicU64,
    conflicts: AtomicU64,
    last_commit_secs: AtomicU64,
    events: broadcast::Sender<Arc<Event>>,
}

impl Default for Activity {
    fn default() -> Self {
        Self {
            started_secs: now_secs(),
            requests: Mutex::default(),
            retries: AtomicU64::new(0),
            staged_files: AtomicU64::new(0),
            staged_bytes: AtomicU64::new(0),
            unstaged_files: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            stalls: AtomicU64::new(0),
            commits: AtomicU64::new(0),
            failed_commits: AtomicU64::new(0),
            conflicts: AtomicU64::new(0),
            last_commit_secs: AtomicU64::new(0),
            events: broadcast::Sender::new(EVENTS_KEPT),
        }
    }
}

fn now_secs() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs()
}

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

impl Activity {
    /// A request ended; `outcome` is `ok` or one of [`STALLS`], `attempt` counts from 1.
    pub fn request(&self, kind: &str, method: &str, outcome: &str, took: Duration, attempt: u32) {
        if attempt > 1 {
            count(&self.retries, 1);
        }
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let known = (kind.to_owned(), method.to_owned());
        let key = match requests.contains_key(&known) || requests.len() < MOST_KINDS {
            true => known,
            false => ("other".to_owned(), method.to_owned()),
        };
        let of = requests.entry(key).or_insert_with_key(|(kind, method)| Requests {
            kind: kind.clone(),
            method: method.clone(),
            ..Requests::default()
        });
        *of.outcomes.entry(outcome.to_owned()).or_default() += 1;
        let seconds = took.as_secs_f64();
        of.seconds += seconds;
        let class = DURATION_BOUNDS_SECS.iter().position(|bound| seconds <= *bound);
        of.classes[class.unwrap_or(DURATION_BOUNDS_SECS.len())] += 1;
    }

    /// The server confirmed content at a path.
    pub fn staged(&self, path: impl ToString, bytes: u64, hash: impl ToString) {
        count(&self.staged_files, 1);
        count(&self.staged_bytes, bytes);
        self.tell(|| Happening::Staged { path: path.to_string(), bytes, hash: hash.to_string() });
    }

    /// The server confirmed that a path is gone, or as on the branch.
    pub fn unstaged(&self, path: impl ToString) {
        count(&self.unstaged_files, 1);
        self.tell(|| Happening::Unstaged { path: path.to_string() });
    }

    /// A path could not be staged.
    pub fn failed(&self, path: impl ToString, error: &str, again: bool) {
        count(&self.failures, 1);
        self.tell(|| Happening::Failed { path: path.to_string(), error: error.to_owned(), again });
    }

    /// Nothing goes on from now on.
    pub fn stalled(&self, reason: &str, error: &str) {
        count(&self.stalls, 1);
        self.tell(|| Happening::Stalled { reason: reason.to_owned(), error: error.to_owned() });
    }

    /// It goes on again.
    pub fn resumed(&self) {
        self.tell(|| Happening::Resumed);
    }

    /// A commit was made.
    pub fn committed(&self, id: impl ToString, branch: &str) {
        count(&self.commits, 1);
        self.last_commit_secs.store(now_secs(), Ordering::Relaxed);
        self.tell(|| Happening::Committed { id: id.to_string(), branch: branch.to_owned() });
    }

    /// A commit was asked for and not made.
    pub fn not_committed(&self) {
        count(&self.failed_commits, 1);
    }

    /// A commit found a path changed here and on its branch.
    pub fn conflict(&self, path: impl ToString, branch: &str) {
        count(&self.conflicts, 1);
        self.tell(|| Happening::Conflict { path: path.to_string(), branch: branch.to_owned() });
    }

    /// The branch has gone on.
    pub fn ahead(&self, branch: &str, head: impl ToString, commits: Option<u64>) {
        self.tell(|| Happening::BranchAhead { branch: branch.to_owned(), head: head.to_string(), commits });
    }

    /// What others committed was taken in.
    pub fn refreshed(&self, base: &str, conflicts: u64) {
        self.tell(|| Happening::Refreshed { base: base.to_owned(), conflicts });
    }

    /// Counts up to now; those of the cache are the cache's to tell.
    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        Counts {
            started_secs: self.started_secs,
            requests: requests.values().cloned().collect(),
            retries: read(&self.retries),
            staged_files: read(&self.staged_files),
            staged_bytes: read(&self.staged_bytes),
            unstaged_files: read(&self.unstaged_files),
            failures: read(&self.failures),
            stalls: read(&self.stalls),
            commits: read(&self.commits),
            failed_commits: read(&self.failed_commits),
            conflicts: read(&self.conflicts),
            last_commit_secs: Some(read(&self.last_commit_secs)).filter(|secs| *secs > 0),
            ..Counts::default()
        }
    }

    /// All that happens from now on.
    pub fn follow(&self) -> Following {
        Following(self.events.subscribe())
    }

    /// Nothing is put together where nobody listens.
    fn tell(&self, what: impl FnOnce() -> Happening) {
        if self.events.receiver_count() > 0 {
            // The last reader may have gone just now.
            let _ = self.events.send(Arc::new(what().now()));
        }
    }
}

/// A reader of events.
pub struct Following(broadcast::Receiver<Arc<Event>>);

impl Following {
    /// The next one; `None` when there will be no more.
    ///
    /// # Cancel safety
    /// None is lost.
    pub async fn next(&mut self) -> Option<Arc<Event>> {
        match self.0.recv().await {
            Ok(event) => Some(event),
            Err(RecvError::Lagged(events)) => Some(Arc::new(Happening::Missed { events }.now())),
            Err(RecvError::Closed) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_kind_outcome_and_duration() {
        let activity = Activity::default();
        let millis = Duration::from_millis;
        for (outcome, took, attempt) in [("ok", 3, 1), ("unreachable", 40, 1), ("ok", 40, 2), ("ok", 90_000, 1)] {
            activity.request("workspace_files", "POST", outcome, millis(took), attempt);
        }
        activity.request("version", "GET", "ok", millis(1), 1);
        let counts = activity.counts();
        assert_eq!((counts.retries, counts.requests.len()), (1, 2));
        let of = &counts.requests[1];
        assert_eq!((of.kind.as_str(), of.method.as_str()), ("workspace_files", "POST"));
        assert_eq!((of.outcomes["ok"], of.outcomes["unreachable"]), (3, 1));
        assert_eq!((of.classes[0], of.classes[3], of.classes[12]), (1, 2, 1));
        assert!((of.seconds - 90.083).abs() < 1e-9, "{}", of.seconds);
    }

    #[test]
    fn kinds_of_requests_are_bounded() {
        let activity = Activity::default();
        for at in 0..10 * MOST_KINDS {
            activity.request(&format!("kind{at}"), "GET", "ok", Duration::ZERO, 1);
        }
        let requests = activity.counts().requests;
        assert_eq!(requests.len(), MOST_KINDS + 1);
        assert_eq!(requests.iter().map(|of| of.outcomes["ok"]).sum::<u64>(), 10 * MOST_KINDS as u64);
    }

    #[tokio::test]
    async fn a_reader_that_is_too_slow_is_told_how_many_it_missed() {
        let activity = Activity::default();
        let mut following = activity.follow();
        for at in 0..EVENTS_KEPT + 3 {
            activity.unstaged(at);
        }
        activity.committed("c0ffee", "main");
        let event = following.next().await.unwrap();
        assert_eq!(event.what, Happening::Missed { events: 4 });
        assert_eq!(following.next().await.unwrap().what, Happening::Unstaged { path: "4".into() });
        drop(activity);
        let mut last = None;
        while let Some(event) = following.next().await {
            last = Some(event.what.clone());
        }
        assert_eq!(last, Some(Happening::Committed { id: "c0ffee".into(), branch: "main".into() }));
    }

    #[test]
    fn an_event_is_one_flat_object() {
        let event = Event { time: "2026-11-30T06:00:00.000Z".into(), what: Happening::Resumed };
        let line = serde_json::to_string(&event).unwrap();
        assert_eq!(line, r#"{"time":"2026-11-30T06:00:00.000Z","event":"resumed"}"#);
        assert_eq!(serde_json::from_str::<Event>(&line).unwrap(), event);
    }
}
