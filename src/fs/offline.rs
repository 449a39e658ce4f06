//! A mount whose server was not there when it began: it serves what is on record and kept here, and what is written is
//! owed. Nothing is sent, and nothing of the record is taken for agreed, before the server was met.
//!
//! Whoever needs the server meanwhile is told at once that it is away: it may be so for days.

use std::sync::atomic::Ordering;

use super::staging::into_plain;
use super::{Fs, FsError, State};
use crate::namespace::ROOT;
use crate::path::RepoPath;
use crate::writeback::index::Account;

impl Fs {
    /// Begins without the server. To be called once, before anything is served; nothing is staged before
    /// [`meet_server`](Self::meet_server).
    ///
    /// # Errors
    /// The journal's.
    pub async fn begin_offline(&self) -> Result<(), FsError> {
        self.offline.store(true, Ordering::Release);
        into_plain(self.change(|state| {
            state.queue_recorded();
            Ok(())
        }))?;
        self.note_uncommitted();
        if let Err(error) = self.list(ROOT, super::fetching::Who::Staging).await {
            tracing::warn!(%error, "the listing of the root was not kept");
        }
        Ok(())
    }

    /// Whether the server was not met yet.
    pub fn is_offline(&self) -> bool {
        self.offline.load(Ordering::Acquire)
    }

    /// Whether the record was compared with the server since it was last repaired.
    pub fn is_compared(&self) -> bool {
        !self.journal.is_unverified()
    }

    /// Agrees with the server on what it has, as a mount does before it serves anything: to be called while nothing is
    /// staged, when the workspace was found. From then on the mount is as any other.
    ///
    /// # Errors
    /// The server's, or the journal's; it may be called again then.
    pub async fn meet_server(&self) -> Result<(), FsError> {
        self.reconcile().await?;
        self.drop_intent()?;
        self.flush().await?;
        self.offline.store(false, Ordering::Release);
        self.kernel_knows().await;
        self.progress.notify_waiters();
        self.wake.notify_one();
        Ok(())
    }
}

impl State {
    /// Queues what the record says is owed.
    fn queue_recorded(&mut self) {
        let accounts: Vec<(RepoPath, Account)> =
            self.writeback.ledger().iter().map(|(path, account)| (path.clone(), account)).collect();
        for (path, account) in accounts {
            self.queue_if_owed(&path, &account);
        }
    }
}
