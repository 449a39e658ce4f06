//! What the engine tells a status: what was sent, how fast, and why nothing goes on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::pace::Pace;
use crate::activity::Activity;
use crate::log::{Said, Trouble};
use crate::workspace::WorkspaceError;

/// Why nothing goes on.
#[derive(Debug)]
pub(super) struct Stall {
    /// In words, with the request that told.
    pub shown: String,
    /// The same without it.
    pub reason: String,
    /// In one word.
    pub kind: &'static str,
}

impl From<&WorkspaceError> for Stall {
    fn from(error: &WorkspaceError) -> Self {
        Self { shown: error.to_string(), reason: error.reason(), kind: error.kind() }
    }
}

/// What the engine tells a status.
#[derive(Debug, Default)]
pub struct Meter {
    activity: Arc<Activity>,
    sent_bytes: AtomicU64,
    deduplicated_bytes: AtomicU64,
    stalled: Mutex<Option<Stall>>,
    trouble: Trouble,
    pace: Mutex<Pace>,
}

impl Meter {
    /// One that tells `activity` what goes on.
    pub fn new(activity: Arc<Activity>) -> Self {
        Self { activity, ..Self::default() }
    }

    /// Why nothing goes on, in one word, if nothing does.
    pub fn stalled_reason(&self) -> Option<&'static str> {
        let stalled = self.stalled.lock().unwrap_or_else(PoisonError::into_inner);
        stalled.as_ref().map(|stall| stall.kind)
    }

    /// Content bytes sent since the start.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    /// Content bytes staged without being sent.
    pub fn deduplicated_bytes(&self) -> u64 {
        self.deduplicated_bytes.load(Ordering::Relaxed)
    }

    /// Why nothing goes on, if nothing does.
    pub fn stalled(&self) -> Option<String> {
        let stalled = self.stalled.lock().unwrap_or_else(PoisonError::into_inner);
        stalled.as_ref().map(|stall| stall.shown.clone())
    }

    /// Tells those who follow it what goes on.
    pub(super) fn activity(&self) -> &Activity {
        &self.activity
    }

    /// Content was staged: so many bytes of it were sent, and so many were not.
    pub(super) fn staged(&self, sent_bytes: u64, saved_bytes: u64) {
        self.sent_bytes.fetch_add(sent_bytes, Ordering::Relaxed);
        self.deduplicated_bytes.fetch_add(saved_bytes, Ordering::Relaxed);
    }

    /// Nothing goes on for a while. What was shown stays as long as the reason is the same.
    pub(super) fn stall(&self, why: Stall, delay: Duration) {
        let shown = &why.shown;
        match self.trouble.met(&why.reason) {
            Some(Said::Begins) => tracing::warn!(why = shown, "staging pauses; it is tried again and again"),
            Some(Said::GoesOn(so_long)) => tracing::warn!(why = shown, ?so_long, "staging still pauses"),
            Some(_) => tracing::warn!(why = shown, "staging pauses for another reason"),
            None => tracing::debug!(why = shown, ?delay, "staging pauses again"),
        }
        let mut stalled = self.stalled.lock().unwrap_or_else(PoisonError::into_inner);
        if stalled.as_ref().is_none_or(|before| before.reason != why.reason) {
            self.activity.stalled(why.kind, &why.shown);
            *stalled = Some(why);
        }
    }

    /// Something has succeeded.
    pub(super) fn goes_on(&self) {
        let stalled = self.stalled.lock().unwrap_or_else(PoisonError::into_inner).take();
        if stalled.is_some() {
            self.activity.resumed();
        }
        if let Some(Said::Ends(after)) = self.trouble.over() {
            tracing::info!(?after, "staging goes on");
        }
    }

    /// How fast content goes to the server.
    pub(super) fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seconds until `owed_bytes`, which wait to be sent, are; `None` when no rate is known to tell that by.
    pub fn eta_secs(&self, owed_bytes: u64) -> Option<u64> {
        self.pace().left(owed_bytes, Instant::now()).map(|left| left.as_secs_f64().ceil() as u64)
    }
}
