//! What became of what ran beside the plan: answers are reconciled path by path, and what failed is tried again, sent
//! alone, or given up.

use std::time::{Duration, Instant};

use futures_util::FutureExt;

use super::hand::{Dirs, Done, Item, Kept, Kind};
use super::{Engine, Refusal};
use crate::count;
use crate::path::RepoPath;
use crate::workspace::{Outcome, WorkspaceError};
use crate::writeback::index::Step;
use crate::writeback::item::{Capture, Want};
use crate::writeback::meter::Stall;
use crate::writeback::source::{Back, Failed, SourceError};

/// The longest pause where the local disk is what fails: trying costs next to nothing, and its end is not announced.
const LOCAL_PAUSE: Duration = Duration::from_secs(2);

impl Engine {
    /// Nothing is sent without a record of it: a crash could leave the server in a state that nobody knows of.
    pub(super) fn unrecorded(&mut self, items: Vec<Item>, error: &SourceError) {
        let why = |error: String| format!("the record on the local disk cannot be written: {error}");
        let why = Stall { shown: why(error.to_string()), reason: why(error.reason()), kind: "local_disk" };
        self.pause(items, why, self.delays.after(self.failures, None).min(LOCAL_PAUSE));
    }

    /// Takes in what ran beside the plan and has ended.
    pub(super) fn finish(&mut self, done: Done) {
        match done {
            Done::Unrecorded { kind, items, dirs, error } => {
                self.no_longer_threatened(&dirs);
                self.request_over(kind, &dirs.all);
                self.unrecorded(items, &error);
            }
            Done::Hashed(hashed) => {
                count::take(&mut self.hashing, 1, "staging.hashing");
                for (capture, result) in hashed {
                    self.hashed(capture, result);
                }
            }
            Done::Rescued(ino, rescued) => {
                self.rescuing.remove(&ino);
                self.unrescued.remove(&ino);
                if let Err(error) = rescued {
                    // Other bytes are there, which are not ours to remove.
                    let is_taken = matches!(&error, SourceError::Remote(WorkspaceError::Conflict { .. }));
                    let gone = matches!(&error, SourceError::Remote(error) if !error.is_transient());
                    if gone && !is_taken {
                        tracing::warn!(%error, ino = ino.0, "bytes that were only on the server are gone");
                        self.lost.insert(ino);
                    } else {
                        tracing::debug!(%error, ino = ino.0, "bytes that are only on the server were not fetched yet");
                        self.unrescued.insert(ino, Kept { why: error.to_string(), passes: !is_taken });
                    }
                }
            }
            Done::Judged(item, error, answers) => {
                self.drop_item(&item);
                if answers {
                    self.refusals.remove(&item.capture.path);
                    // It is not the server that is stalled.
                    self.meter.goes_on();
                    let long = self.delays.long().as_secs();
                    let error = format!("{error}; the server said so for {long} s, and answers otherwise");
                    self.fail(&item.capture, &error, Failed::Parked);
                } else {
                    self.fail(&item.capture, &error, self.again(&item.capture, None));
                }
            }
            Done::Fetched(capture, Ok(file)) => self.decide(*capture, Some(file), true),
            // Captured anew, with the account as it is now.
            Done::Listed(capture, Ok(())) => self.put_back(&capture.path),
            Done::Fetched(capture, Err(error)) | Done::Listed(capture, Err(error)) => {
                count::take(&mut self.in_hand, 1, "staging.in-hand");
                let transient = !matches!(&error, SourceError::Remote(error) if !error.is_transient());
                let then = if transient { self.again(&capture, None) } else { Failed::Parked };
                self.fail(&capture, &error.to_string(), then);
            }
            Done::Request { kind, items, dirs, unanswered, at_once, took, result } => {
                if unanswered {
                    let paths: Vec<&RepoPath> = items.iter().map(|item| &item.capture.path).chain(&dirs.all).collect();
                    if let Err(error) = self.source.went_unanswered(&paths) {
                        tracing::error!(%error, "a request went unanswered, and that is not on record");
                    }
                } else {
                    self.no_longer_threatened(&dirs);
                }
                // Those that began after it count, and those that ended a moment ago.
                let at_once = at_once.max(self.requests[kind]);
                self.learn(kind, &items, &result, at_once, took);
                self.request_over(kind, &dirs.all);
                self.answered(items, result);
            }
        }
    }

    fn no_longer_threatened(&self, dirs: &Dirs) {
        if !dirs.threatened.is_empty()
            && let Err(error) = self.source.was_answered(&dirs.threatened)
        {
            tracing::warn!(%error, "directories are watched for longer than they need be");
        }
    }

    /// What a request that was answered tells of the way to the server.
    fn learn(
        &mut self,
        kind: Kind,
        items: &[Item],
        result: &Result<Vec<Outcome>, WorkspaceError>,
        at_once: usize,
        took: Duration,
    ) {
        let Ok(outcomes) = result else { return };
        let sent_bytes = outcomes.iter().map(|outcome| match outcome {
            Outcome::Done { sent_bytes } => *sent_bytes,
            _ => 0,
        });
        match (kind, items, outcomes.as_slice()) {
            (Kind::Small, ..) => {
                let sent_bytes = sent_bytes.sum();
                self.costs.was_sent(items.len(), sent_bytes, took, at_once);
                self.meter.pace().sent(sent_bytes, Instant::now());
            }
            (Kind::Middle, [item], [Outcome::Done { sent_bytes }]) if item.capture.upload.is_none() => {
                self.costs.was_asked(*sent_bytes == 0, took, at_once);
            }
            _ => {}
        }
    }

    /// Steps were taken, or there was nothing to do: they are told to the source.
    pub(super) fn confirm(&mut self, items: Vec<Item>) {
        for item in &items {
            self.drop_item(item);
            self.refusals.remove(&item.capture.path);
        }
        let steps: Vec<(Capture, Step)> = items.into_iter().map(|item| (item.capture, item.step)).collect();
        if let Err(error) = self.source.confirm(&steps) {
            tracing::error!(%error, "confirmed, but not on record; staged again after the next mount");
        }
        for (capture, step) in &steps {
            match step {
                Step::Put(object) => self.meter.activity().staged(&capture.path, object.size, object.hash),
                Step::Remove | Step::Unstage => self.meter.activity().unstaged(&capture.path),
                Step::Nothing => {}
            }
        }
    }

    /// A path cannot be staged.
    pub(super) fn fail(&self, capture: &Capture, error: &str, then: Failed) {
        self.meter.activity().failed(&capture.path, error, matches!(then, Failed::Again(_)));
        self.source.fail(capture, error, then);
    }

    /// It is tried again, the later the more often it has failed; not before the server asks for it.
    pub(super) fn again(&self, capture: &Capture, asked: Option<Duration>) -> Failed {
        Failed::Again(self.delays.after(self.source.attempts(&capture.path), asked))
    }

    fn answered(&mut self, items: Vec<Item>, result: Result<Vec<Outcome>, WorkspaceError>) {
        let outcomes = match result {
            Ok(outcomes) => outcomes,
            Err(error) => return self.refused(items, &error),
        };
        self.failures = 0;
        self.meter.goes_on();
        let mut confirmed = Vec::new();
        let mut outcomes = outcomes.into_iter();
        for item in items {
            match outcomes.next() {
                Some(Outcome::Done { sent_bytes }) => {
                    let saved_bytes = match item.step {
                        Step::Put(object) => object.size.saturating_sub(sent_bytes),
                        Step::Nothing | Step::Unstage | Step::Remove => 0,
                    };
                    self.meter.staged(sent_bytes, saved_bytes);
                    confirmed.push(item);
                }
                Some(Outcome::NeedsBytes) => self.needs_bytes(item),
                Some(Outcome::Failed(error)) => self.item_failed(item, &error),
                None => {
                    let what = item.capture.path.to_string();
                    self.item_failed(item, &WorkspaceError::Unconfirmed { what });
                }
            }
        }
        if !confirmed.is_empty() {
            self.confirm(confirmed);
        }
    }

    fn needs_bytes(&mut self, item: Item) {
        self.unmark(&item);
        match &item.capture.want {
            Want::Remote { object, source, .. } if item.fetched.is_none() => {
                let (source, object, from, capture) = (self.source.clone(), *object, source.clone(), item.capture);
                let fetch = async move {
                    let fetched = source.fetch(object, from).await;
                    Done::Fetched(Box::new(capture), fetched)
                };
                self.running.push(fetch.boxed());
            }
            _ => self.queue(Item { asked: true, marked: false, ..item }),
        }
    }

    fn item_failed(&mut self, item: Item, error: &WorkspaceError) {
        self.drop_item(&item);
        let path = &item.capture.path;
        if item.capture.is_wanted_back() {
            // A writer wanted the file; what it writes is staged instead.
            self.source.put_back(path, Back::After(self.delays.first));
            return;
        }
        if let WorkspaceError::Overlooked = error {
            self.source.fail(&item.capture, &error.to_string(), Failed::UntilCommit);
            return;
        }
        if error.may_pass() && self.is_refused_for_long(path, error) {
            self.in_hand += 1;
            let (source, error) = (self.source.clone(), error.to_string());
            // At a gate, nothing is answered: then it is not about this file.
            let judge = async move { Done::Judged(Box::new(item), error, source.find_workspace().await.is_ok()) };
            return self.running.push(judge.boxed());
        }
        let passes = error.is_transient() || error.may_pass();
        let then = if passes { self.again(&item.capture, error.retry_after()) } else { Failed::Parked };
        self.fail(&item.capture, &error.to_string(), then);
    }

    /// Whether the server has said the same about a path for as long as anything may take that passes.
    fn is_refused_for_long(&mut self, path: &RepoPath, error: &WorkspaceError) -> bool {
        let (now, reason) = (Instant::now(), error.reason());
        let refusal =
            self.refusals.entry(path.clone()).or_insert_with(|| Refusal { reason: reason.clone(), since: now });
        if refusal.reason != reason {
            *refusal = Refusal { reason, since: now };
        }
        refusal.since.elapsed() >= self.delays.long()
    }

    /// A request that told nothing about its items. Where the cause lies in the server or the way to it, everything
    /// waits; where it may lie in one item, each is sent alone.
    fn refused(&mut self, items: Vec<Item>, error: &WorkspaceError) {
        if let [item] = items.as_slice()
            && item.capture.is_wanted_back()
        {
            for item in items {
                self.drop_item(&item);
                self.source.put_back(&item.capture.path, Back::After(self.delays.first));
            }
            return;
        }
        let everywhere = error.is_transient()
            || matches!(
                error,
                WorkspaceError::NotFound { .. } | WorkspaceError::Forbidden { .. } | WorkspaceError::NoSpace { .. }
            );
        if everywhere {
            let delay = self.delays.after(self.failures, error.retry_after());
            return self.pause(items, error.into(), delay);
        }
        let alone = items.len() == 1;
        if error.may_pass() {
            // It may be about one of them, or a gate on the way: for a while nothing else is sent, less often each time
            // until something succeeds.
            let delay = self.delays.after(self.failures, None);
            self.failures += 1;
            self.quiet_until = Some(Instant::now() + delay);
            self.meter.stall(error.into(), delay);
        }
        for item in items {
            if alone {
                self.item_failed(item, error);
            } else {
                self.drop_item(&item);
                self.source.put_back(&item.capture.path, Back::Alone);
            }
        }
    }

    /// Nothing can be sent just now, whatever it is.
    fn pause(&mut self, items: Vec<Item>, why: Stall, delay: Duration) {
        self.failures += 1;
        self.quiet_until = Some(Instant::now() + delay);
        self.meter.stall(why, delay);
        for item in items {
            self.drop_item(&item);
            self.source.put_back(&item.capture.path, Back::After(delay));
        }
        self.source.tell_progress();
    }
}
