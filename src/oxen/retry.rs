//! The one loop that repeats requests. What may be repeated is decided by [`WorkspaceError::is_transient`] alone.

use std::future::Future;
use std::time::Duration;

use crate::workspace::WorkspaceError;

/// Full jitter below this, doubled with every attempt, up to the last.
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LAST_DELAY: Duration = Duration::from_secs(5);
/// A server that asks for more patience than this gets its answer as an error.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60);

/// How often a request is sent at most.
#[derive(Debug, Clone, Copy)]
pub(super) enum Attempts {
    /// Once: it must not be repeated blindly.
    Once,
    /// Twice: the caller repeats it for ever anyway.
    Quick,
    /// Four times: somebody waits for the answer.
    Patient,
}

/// Repeats `attempt` while its error may pass.
pub(super) async fn within<T, F>(attempts: Attempts, mut attempt: impl FnMut() -> F) -> Result<T, WorkspaceError>
where
    F: Future<Output = Result<T, WorkspaceError>>,
{
    let most = match attempts {
        Attempts::Once => 1,
        Attempts::Quick => 2,
        Attempts::Patient => 4,
    };
    let mut ceiling = FIRST_DELAY;
    for _ in 1..most {
        match attempt().await {
            // Waiting does not renew a token, and a dead name does not come back within a second.
            Err(error @ WorkspaceError::Unauthorized) => return Err(error),
            Err(error) if error.is_transient() => {
                let asked = error.retry_after().unwrap_or_default();
                if asked > LONGEST_RETRY_AFTER {
                    return Err(error);
                }
                tokio::time::sleep(asked.max(ceiling.mul_f64(fastrand::f64()))).await;
                ceiling = (ceiling * 2).min(LAST_DELAY);
            }
            done => return done,
        }
    }
    attempt().await
}
