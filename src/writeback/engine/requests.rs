//! Requests: which paths go together, when their turn has come, and how each kind is carried out.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt;

use super::Engine;
use super::hand::{Dirs, Done, Item, Kept, Kind};
use crate::count;
use crate::hash::ContentHash;
use crate::path::RepoPath;
use crate::store::journal::PathUpload;
use crate::workspace::{Outcome, Over, Put, Upload, UploadProgress, Workspace, WorkspaceError};
use crate::writeback::index::{Staged, Step};
use crate::writeback::item::Want;
use crate::writeback::lanes::{Lane, lane};
use crate::writeback::meter::Meter;
use crate::writeback::queue::Phase;
use crate::writeback::source::{Depends, Failed, Source, SourceError};

/// Whether a path's turn has come.
enum Turn {
    Now,
    Later,
    /// Not as long as this is so.
    Kept(Kept),
    /// Not before somebody has acted about this path, which is in its way.
    KeptOut(RepoPath),
}

impl Engine {
    /// Whether one more request of a kind may go.
    fn has_room(&self, kind: Kind) -> bool {
        // Removals go one request after the other: the last one to empty a directory must see that it is.
        let other_goes = match kind {
            Kind::Unstage => self.requests[Kind::Remove] > 0,
            Kind::Remove => self.requests[Kind::Unstage] > 0,
            _ => false,
        };
        !other_goes && self.requests[kind] < kind.limit()
    }

    /// Sends what waits for a request of a kind, as far as there is room.
    pub(super) fn start_requests(&mut self, kind: Kind) {
        let (mut batch, mut bytes) = (Vec::<Item>::new(), 0u64);
        let mut later = Vec::new();
        while self.has_room(kind)
            && let Some(mut item) = self.ready[kind].pop_front()
        {
            if item.capture.alone && !batch.is_empty() {
                self.ready[kind].push_front(item);
                self.send(kind, std::mem::take(&mut batch));
                bytes = 0;
                continue;
            }
            if let Step::Put(object) = item.step
                && self.sending.contains(&object.hash)
            {
                // When its turn comes the server has the content, most likely.
                item.asked = false;
                later.push(item);
                continue;
            }
            match self.turn(&item) {
                Turn::Now => {}
                // Not kept in hand: what it waits for must find room there.
                Turn::Later => {
                    self.wait_its_turn(&item.capture.path);
                    continue;
                }
                Turn::KeptOut(other) => {
                    count::take(&mut self.in_hand, 1, "staging.in-hand");
                    let error = format!(
                        "cannot be staged beside {other}, which the server has and which waits for somebody itself"
                    );
                    self.source.fail(&item.capture, &error, Failed::KeptOut);
                    continue;
                }
                Turn::Kept(Kept { why, passes }) => {
                    count::take(&mut self.in_hand, 1, "staging.in-hand");
                    let then = if passes { self.again(&item.capture, None) } else { Failed::Parked };
                    self.fail(&item.capture, &why, then);
                    continue;
                }
            }
            if let Step::Put(object) = item.step {
                bytes = bytes.saturating_add(object.size);
                if kind != Kind::Ask {
                    self.sending.insert(object.hash);
                    item.marked = true;
                }
            }
            let alone = item.capture.alone;
            batch.push(item);
            if alone || kind.is_full(batch.len(), bytes) {
                self.send(kind, std::mem::take(&mut batch));
                bytes = 0;
            }
        }
        if !batch.is_empty() {
            self.send(kind, batch);
        }
        // In front again, unless it is asked for now.
        for item in later.into_iter().rev() {
            let kind = self.kind(&item);
            self.ready[kind].push_front(item);
        }
    }

    /// Which kind of request takes an item.
    pub(super) fn kind(&self, item: &Item) -> Kind {
        match item.step {
            Step::Nothing | Step::Unstage => Kind::Unstage,
            Step::Remove => Kind::Remove,
            Step::Put(object) => {
                let here = item.fetched.is_some() || matches!(item.capture.want, Want::Sealed { .. });
                match lane(self.by_hash, object.size, here, item.asked, item.worth_asking) {
                    Lane::Ask => Kind::Ask,
                    Lane::Small => Kind::Small,
                    Lane::Middle => Kind::Middle,
                    Lane::Large => Kind::Large,
                }
            }
        }
    }

    /// Whether the path's turn has come: a server takes a file and a file below it alike, and keeps one of them; and
    /// what only the server has must not go before it is staged under its new name.
    fn turn(&mut self, item: &Item) -> Turn {
        let path = &item.capture.path;
        match self.source.depends_on(path, item.step, &self.lost) {
            Depends::Nothing => {}
            Depends::Turns => return Turn::Later,
            Depends::Somebody(other) => return Turn::KeptOut(other),
            Depends::Bytes(stranded) => {
                if let Some(Kept { why, passes }) = stranded.iter().find_map(|ino| self.unrescued.remove(ino)) {
                    let why = format!("a file that was renamed away from here has its bytes here yet: {why}");
                    return Turn::Kept(Kept { why, passes });
                }
                for ino in stranded {
                    if self.rescuing.insert(ino) {
                        let source = self.source.clone();
                        self.running.push(async move { Done::Rescued(ino, source.rescue(ino).await) }.boxed());
                    }
                }
                return Turn::Later;
            }
        }
        let is_removed = || self.removing.iter().flatten().any(|dir| path.is_in(dir));
        match item.step {
            Step::Put(_) if is_removed() => Turn::Later,
            _ => Turn::Now,
        }
    }

    fn send(&mut self, kind: Kind, items: Vec<Item>) {
        let paths: Vec<&RepoPath> = items.iter().map(|item| &item.capture.path).collect();
        let mut dirs = Dirs::default();
        if matches!(kind, Kind::Remove | Kind::Unstage) {
            dirs.all = self.source.emptied_dirs(&paths.iter().copied().collect());
        }
        match self.source.intend(&paths, &dirs.all) {
            Ok(threatened) => dirs.threatened = threatened,
            Err(error) => return self.unrecorded(items, &error),
        }
        for item in &items {
            self.source.set_phase(&item.capture.path, Phase::Sending);
        }
        self.requests[kind] += 1;
        if matches!(kind, Kind::Remove | Kind::Unstage) {
            self.removing.push(dirs.all.clone());
        }
        let (source, workspace, meter) = (self.source.clone(), self.workspace.clone(), self.meter.clone());
        let at_once = self.requests[kind];
        self.running.push(request(kind, items, dirs, at_once, source, workspace, meter).boxed());
    }

    /// A request has ended, whatever became of it.
    pub(super) fn request_over(&mut self, kind: Kind, dirs: &BTreeSet<RepoPath>) {
        if matches!(kind, Kind::Remove | Kind::Unstage)
            && let Some(over) = self.removing.iter().position(|other| other == dirs)
        {
            self.removing.swap_remove(over);
        }
        count::take(&mut self.requests[kind], 1, "staging.requests");
    }
}

async fn request(
    kind: Kind,
    items: Vec<Item>,
    dirs: Dirs,
    at_once: usize,
    source: Arc<dyn Source>,
    workspace: Arc<dyn Workspace>,
    meter: Arc<Meter>,
) -> Done {
    let paths = || items.iter().map(|item| item.capture.path.clone()).collect::<Vec<_>>();
    let puts = || items.iter().filter_map(put).collect::<Vec<_>>();
    // Many requests share one flush.
    if let Err(error) = source.flush().await {
        return Done::Unrecorded { kind, items, dirs, error };
    }
    let (unanswered, begun) = (workspace.unanswered(), Instant::now());
    let result = match kind {
        Kind::Unstage => match workspace.unstage(&paths()).await {
            Ok(done) => match source.note_others_commit(&paths()).await {
                Ok(false) if !dirs.all.is_empty() => {
                    let dirs: Vec<RepoPath> = dirs.all.iter().cloned().collect();
                    workspace.remove(&dirs).await.map(|_| done)
                }
                Ok(_) => Ok(done),
                Err(SourceError::Remote(error)) => Err(error),
                Err(error) => return Done::Unrecorded { kind, items, dirs, error },
            },
            failed => failed,
        },
        Kind::Remove => {
            // The files first: their outcomes come in this order.
            let all: Vec<RepoPath> = paths().into_iter().chain(dirs.all.iter().cloned()).collect();
            workspace.remove(&all).await
        }
        Kind::Ask => workspace.stage_by_hash(&puts()).await,
        Kind::Small => workspace.send_small(&puts()).await,
        Kind::Middle | Kind::Large => match (items.first(), puts().into_iter().next()) {
            (Some(item), Some(put)) => {
                send_large(item, &put, &*source, &*workspace, &meter).await.map(|done| vec![done])
            }
            _ => Ok(Vec::new()),
        },
    };
    let result = look_for_workspace(&*source, result).await;
    // What a writer wanted back was dropped in the middle.
    let dropped = items.iter().any(|item| item.capture.is_wanted_back());
    let unanswered = dropped || workspace.unanswered() != unanswered;
    Done::Request { kind, items, dirs, unanswered, at_once, took: begun.elapsed(), result }
}

/// Where something was not found it may be the workspace: then it is made again, all that was staged in it is owed again,
/// and the request told nothing.
async fn look_for_workspace(
    source: &dyn Source,
    result: Result<Vec<Outcome>, WorkspaceError>,
) -> Result<Vec<Outcome>, WorkspaceError> {
    let is_missing = |error: &WorkspaceError| matches!(error, WorkspaceError::NotFound { .. });
    let missing = match &result {
        Err(error) => is_missing(error),
        Ok(outcomes) => outcomes.iter().any(|outcome| matches!(outcome, Outcome::Failed(error) if is_missing(error))),
    };
    if !missing {
        return result;
    }
    match source.find_workspace().await {
        Ok(true) => {
            Err(WorkspaceError::Unconfirmed { what: "what it staged: the workspace was made again".to_owned() })
        }
        Ok(false) => result,
        Err(error) => {
            tracing::debug!(%error, "it is not known whether the workspace is still there");
            result
        }
    }
}

async fn send_large(
    item: &Item,
    put: &Put,
    source: &dyn Source,
    workspace: &dyn Workspace,
    meter: &Meter,
) -> Result<Outcome, WorkspaceError> {
    let resume = item.capture.upload.as_ref().filter(|upload| upload.hash == put.object.hash);
    let progress = Recorder { source, meter, path: &put.path, hash: put.object.hash };
    let sending = workspace.send_large(put, resume.map(|upload| upload.state.clone()), &progress);
    match &item.capture.want {
        Want::Sealed { held, .. } => tokio::select! {
            done = sending => done,
            () = held.cancelled().cancelled() => Err(WorkspaceError::Unconfirmed { what: put.path.to_string() }),
        },
        _ => sending.await,
    }
}

/// What the backend needs of an item; `None` where its step is no put.
fn put(item: &Item) -> Option<Put> {
    let Step::Put(object) = item.step else { return None };
    let file = match &item.capture.want {
        Want::Sealed { held, .. } => held.file().cloned(),
        _ => item.fetched.clone(),
    };
    let account = &item.capture.account;
    let over = match account.base {
        Some(base) if base.size == object.size => Over::SameLength { staged: account.staged != Staged::Nothing },
        _ => Over::Other,
    };
    Some(Put { path: item.capture.path.clone(), object, file, over })
}

/// Writes a large upload's progress down.
struct Recorder<'a> {
    source: &'a dyn Source,
    meter: &'a Meter,
    path: &'a RepoPath,
    hash: ContentHash,
}

impl UploadProgress for Recorder<'_> {
    fn checkpoint(&self, upload: &Upload) {
        self.source.checkpoint(self.path, PathUpload { hash: self.hash, state: upload.clone() });
    }

    fn sent(&self, bytes: u64) {
        self.meter.pace().sent(bytes, Instant::now());
        self.source.tell_progress();
    }
}
