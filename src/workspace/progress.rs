//! Whether anything comes from the server, for whoever waits for it.
//!
//! What is waited for may take hours, and then it is not to be given up, or never come. So who waits looks at what
//! arrives: an implementation of [`Workspace`](super::Workspace) tells [`received`] of the bytes of every answer.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What must arrive for each second that is waited for more of an answer. A server, or a way to it, that is slower than
/// that is taken for one from which nothing comes.
pub const LEAST_BYTES_PER_SEC: u64 = 1 << 10;
/// So much more than ever before is progress: what [`LEAST_BYTES_PER_SEC`] makes in half a minute.
const STEP_BYTES: u64 = 30 * LEAST_BYTES_PER_SEC;

tokio::task_local! {
    static WATCHED: Arc<Progress>;
}

/// `bytes` of an answer have come, for whom the current task works.
pub fn received(bytes: u64) {
    let _ = WATCHED.try_with(|progress| progress.note(bytes));
}

/// What comes of one thing that is waited for, in one attempt after the other. An attempt that gets no further than one
/// before it is no progress.
#[derive(Debug)]
pub struct Progress(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Bytes of this attempt.
    got: u64,
    /// What the attempt that got furthest was last credited with.
    best: u64,
    /// When that was.
    at: Instant,
}

impl Default for Progress {
    fn default() -> Self {
        Self(Mutex::new(State { got: 0, best: 0, at: Instant::now() }))
    }
}

impl Progress {
    /// Another attempt, which has `already` bytes from those before it.
    pub async fn attempt<T>(self: &Arc<Self>, already: u64, work: impl Future<Output = T>) -> T {
        self.state().got = already;
        WATCHED.scope(self.clone(), work).await
    }

    /// For how long nothing more has come.
    pub fn idle(&self) -> Duration {
        self.state().at.elapsed()
    }

    /// Completes when nothing more has come for `limit`.
    pub async fn stalled(&self, limit: Duration) {
        loop {
            let left = limit.saturating_sub(self.idle());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    }

    fn note(&self, bytes: u64) {
        let mut state = self.state();
        state.got = state.got.saturating_add(bytes);
        if state.got >= state.best.saturating_add(STEP_BYTES) {
            (state.best, state.at) = (state.got, Instant::now());
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_what_gets_further_than_ever_is_progress() {
        let progress = Arc::new(Progress::default());
        for (already, bytes, counts) in [
            (0, STEP_BYTES - 1, false),
            (0, STEP_BYTES, true),
            (0, STEP_BYTES, false),
            (0, STEP_BYTES * 2 - 1, false),
            (STEP_BYTES, STEP_BYTES - 1, false),
            (STEP_BYTES, STEP_BYTES, true),
        ] {
            let before = progress.state().at;
            progress.attempt(already, async { received(bytes) }).await;
            assert_eq!(progress.state().at > before, counts, "{bytes} bytes after {already}");
        }
        // Nobody waits for these.
        received(1 << 20);
        progress.stalled(Duration::from_millis(1)).await;
        assert!(progress.idle() >= Duration::from_millis(1));
    }
}
