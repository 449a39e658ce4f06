//! Whether the repository at the address is the one that is meant. Another server may have come there, with a repository
//! of the same name, while nobody was asked: so it is looked at again after each outage, and after a silence before
//! anything is changed.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::workspace::which::KnownRepository;

/// After a silence as long as this no connection is left, and another server may have come.
const SILENCE: Duration = Duration::from_secs(4);

/// What is known of the repository, and whether it is in doubt.
#[derive(Debug, Default)]
pub(super) struct Recognition {
    state: Mutex<State>,
    /// Held by who looks.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    known: KnownRepository,
    doubtful: bool,
    /// When the server last answered.
    heard: Option<Instant>,
}

impl Recognition {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One looks at a time: who waited finds it done, mostly.
    pub async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// From now on this one is meant; whether it is there is yet to be seen.
    pub fn expect(&self, known: KnownRepository) {
        let mut state = self.lock();
        (state.known, state.doubtful) = (known, true);
    }

    /// From now on this one is meant, and it is there.
    pub fn know(&self, known: KnownRepository) {
        let mut state = self.lock();
        (state.known, state.doubtful) = (known, false);
    }

    /// What to look for before the next request, which `changes` something or does not.
    pub fn in_doubt(&self, changes: bool) -> Option<KnownRepository> {
        let state = self.lock();
        let silent = changes && state.heard.is_none_or(|heard| heard.elapsed() >= SILENCE);
        ((state.doubtful || silent) && !state.known.is_nothing()).then(|| state.known.clone())
    }

    /// There was no answer: who answers next may be another.
    pub fn doubt(&self) {
        self.lock().doubtful = true;
    }

    /// The server has answered.
    pub fn heard(&self) {
        self.lock().heard = Some(Instant::now());
    }

    /// It is the one that is meant.
    pub fn recognized(&self) {
        self.lock().doubtful = false;
    }
}
