//! When a request is made again, and after how long.

use std::future::Future;
use std::time::Duration;

use crate::workspace::WorkspaceError;

/// How often a server may let a request wait in vain before it is given up.
const SILENCES: u32 = 2;
/// The longest wait before the second attempt; doubled for each further one.
const FIRST: Duration = Duration::from_millis(100);
/// The longest wait that nobody asked for.
const LAST: Duration = Duration::from_secs(5);
/// The longest wait that a server can ask for: its clock or its configuration may be off.
const LONGEST_ASKED: Duration = Duration::from_secs(60);

/// How patient a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// Four attempts, with the pauses the server asks for: what a user waits for, and nobody else repeats.
    Several,
    /// Two quick attempts: what the write-back queue repeats for ever, with pauses of its own.
    Quick,
}

impl Patience {
    fn attempts(self) -> u32 {
        match self {
            Self::Several => 4,
            Self::Quick => 2,
        }
    }

    /// Whether it goes on after `error` ended attempt number `attempt`, from 1.
    fn goes_on(self, attempt: u32, error: &WorkspaceError) -> bool {
        let pause_is_for_the_caller = self == Self::Quick && matches!(error, WorkspaceError::Busy { .. });
        // A fresh token was tried already where there was one.
        let refused = matches!(error, WorkspaceError::Unauthorized { .. });
        attempt < self.attempts() && error.is_transient() && !refused && !pause_is_for_the_caller
    }
}

tokio::task_local! {
    /// Which attempt this task is at.
    static ATTEMPT: u32;
}

/// Which attempt at a request is being made, from 1.
pub(super) fn attempt_number() -> u32 {
    ATTEMPT.try_with(|attempt| *attempt).unwrap_or(1)
}

/// Runs `request` until it succeeds, fails for good, or `patience` ends.
///
/// # Cancel safety
/// Dropping it drops the request under way; no other is made.
pub(super) async fn retry<T, F>(patience: Patience, mut request: impl FnMut() -> F) -> Result<T, WorkspaceError>
where
    F: Future<Output = Result<T, WorkspaceError>>,
{
    let (mut attempt, mut silences) = (1, 0);
    loop {
        match ATTEMPT.scope(attempt, request()).await {
            // Each took its time.
            Err(error @ WorkspaceError::TimedOut { .. }) if silences + 1 == SILENCES => return Err(error),
            Err(error) if patience.goes_on(attempt, &error) => {
                let pause = pause(attempt, &error);
                tracing::debug!(attempt, ?pause, %error, "repeating a request");
                silences += u32::from(matches!(error, WorkspaceError::TimedOut { .. }));
                tokio::time::sleep(pause).await;
                attempt += 1;
            }
            result => return result,
        }
    }
}

/// How long to wait after attempt number `attempt`, from 1: full jitter under a doubling ceiling, or what the server
/// asked for where that is longer.
pub(super) fn pause(attempt: u32, error: &WorkspaceError) -> Duration {
    let ceiling = FIRST.saturating_mul(1 << (attempt.saturating_sub(1)).min(16)).min(LAST);
    let jittered = ceiling.mul_f64(fastrand::f64());
    match error.retry_after() {
        Some(asked) => jittered.max(asked.min(LONGEST_ASKED)),
        None => jittered,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn broken() -> WorkspaceError {
        WorkspaceError::Server { status: 500, message: "broken".into(), request: None }
    }

    async fn attempts(patience: Patience, error: fn() -> WorkspaceError) -> u32 {
        let count = Cell::new(0);
        let result: Result<(), _> = retry(patience, || {
            count.set(count.get() + 1);
            async { Err(error()) }
        })
        .await;
        assert!(result.is_err());
        count.get()
    }

    #[tokio::test]
    async fn transient_failures_are_repeated_and_others_are_not() {
        assert_eq!(attempts(Patience::Several, broken).await, 4);
        assert_eq!(attempts(Patience::Quick, broken).await, 2);
        assert_eq!(
            attempts(Patience::Several, || WorkspaceError::NotFound { what: "x".into(), request: None }).await,
            1
        );
        assert_eq!(attempts(Patience::Several, || WorkspaceError::Unauthorized { request: None }).await, 1);
    }

    #[tokio::test]
    async fn a_silent_server_is_asked_twice() {
        let silent = || WorkspaceError::TimedOut { after: Duration::ZERO, request: None };
        assert_eq!(attempts(Patience::Several, silent).await, 2);
        assert_eq!(attempts(Patience::Quick, silent).await, 2);
    }

    #[test]
    fn a_busy_server_is_left_to_the_queue_or_waited_for() {
        let busy = WorkspaceError::Busy { retry_after: Some(Duration::from_secs(7)), request: None };
        assert!(!Patience::Quick.goes_on(1, &busy));
        assert!(Patience::Several.goes_on(1, &busy));
        assert_eq!(pause(1, &busy), Duration::from_secs(7));
    }

    #[test]
    fn pauses_are_bounded_whatever_the_server_asks_for() {
        for attempt in 1..40 {
            assert!(pause(attempt, &broken()) <= LAST);
        }
        let busy = WorkspaceError::Busy { retry_after: Some(Duration::from_secs(86_400)), request: None };
        assert_eq!(pause(1, &busy), LONGEST_ASKED);
    }
}
