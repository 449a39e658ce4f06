//! A mount whose server was not there when it began: it serves what is on record and kept here, and what is written is
//! owed. Nothing is sent, and nothing of the record is taken for agreed, before the server was met.
//!
//! Whoever needs the server meanwhile is told at once that it is away: it may be so for days.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use futures_util::{StreamExt, TryStreamExt, stream};

use super::fetching::Who;
use super::staging::into_plain;
use super::{Fs, FsError, LISTINGS_AT_ONCE, State};
use crate::namespace::{Ino, ROOT};
use crate::path::RepoPath;
use crate::workspace::Listing;
use crate::writeback::index::Account;

/// Directories whose listings are got for a mount to come: that is a second's work for a server nearby.
const KEPT_AHEAD: usize = 1000;

impl Fs {
    /// Begins without the server. To be called once, before anything is served; nothing is staged before
    /// [`meet_server`](Self::meet_server). `is_empty`: the base was seen to have nothing at the mount's root, of which no
    /// listing is kept.
    ///
    /// # Errors
    /// The journal's.
    pub async fn begin_offline(&self, is_empty: bool) -> Result<(), FsError> {
        self.offline.store(true, Ordering::Release);
        into_plain(self.change(|state| {
            state.queue_recorded();
            Ok(())
        }))?;
        self.note_uncommitted();
        if is_empty {
            self.absorb(ROOT, &self.base(), &self.root_path(), Listing::default());
        } else if let Err(error) = self.list(ROOT, Who::Staging).await {
            tracing::warn!(%error, "the listing of the root was not kept");
        }
        Ok(())
    }

    /// Whether the server was not met yet.
    pub fn is_offline(&self) -> bool {
        self.offline.load(Ordering::Acquire)
    }

    /// Whether the base was seen to have nothing at the mount's root.
    pub fn is_base_empty(&self) -> bool {
        self.is_root_empty.load(Ordering::Acquire)
    }

    /// Has the listings of the base kept, of the directories that are known here: a commit of our own brings a base of
    /// which no directory was ever listed.
    ///
    /// # Errors
    /// The server's; what came until then is kept.
    pub async fn keep_listings(&self) -> Result<(), FsError> {
        let base = self.base();
        let listings = self.cache.listings();
        let lacking = self.lock().upper_dirs(KEPT_AHEAD).into_iter().filter(|dir| !listings.may_have(&base, dir));
        let lacking: Vec<RepoPath> = lacking.collect();
        let base = &base;
        let asked = stream::iter(&lacking).map(|dir| self.ask_listing(base, dir)).buffer_unordered(LISTINGS_AT_ONCE);
        let asked = asked.try_for_each(|_| std::future::ready(Ok(()))).await;
        self.blocking(|fs| {
            fs.cache.write_out_listings();
            Ok(())
        })
        .await?;
        Ok(asked?)
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
        if !self.options.read_only {
            self.judge().await?;
        }
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
    /// The directories from the root down, as many as that.
    fn upper_dirs(&self, most: usize) -> Vec<RepoPath> {
        let mut found = Vec::new();
        let mut next: VecDeque<Ino> = VecDeque::from([ROOT]);
        while let Some(ino) = next.pop_front()
            && found.len() < most
        {
            let Some(dir) = self.tree.dir(ino) else { continue };
            found.extend(self.tree.dir_path(ino).ok());
            next.extend(dir.children.values().filter(|child| self.tree.dir(**child).is_some()));
        }
        found
    }

    /// Queues what the record says is owed.
    fn queue_recorded(&mut self) {
        let accounts: Vec<(RepoPath, Account)> =
            self.writeback.ledger().iter().map(|(path, account)| (path.clone(), account)).collect();
        for (path, account) in accounts {
            self.queue_if_owed(&path, &account);
        }
    }
}
