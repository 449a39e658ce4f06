//! Directories that are listed before anybody asks for them.

use super::fetching::Who;
use super::{Fs, FsError, LISTINGS_AT_ONCE};
use crate::namespace::{Body, Ino};

/// Directories that are listed ahead before it is counted again how much is known.
const LISTED_BETWEEN_COUNTS: usize = 1000;

impl Fs {
    /// Lists the mount's root, as far as that needs no more patience than any request has.
    ///
    /// # Errors
    /// The server's.
    pub async fn list_root(&self) -> Result<(), FsError> {
        self.list(crate::namespace::ROOT, Who::Staging).await
    }

    /// Lists every known directory anew, after the base moved.
    ///
    /// # Errors
    /// The server's; what is not listed then is listed when it is needed.
    pub async fn relist(&self) -> Result<(), FsError> {
        use futures_util::{StreamExt, TryStreamExt, stream};
        let known: Vec<Ino> = {
            let state = self.lock();
            let unlisted = state.tree.iter().filter(|(_, inode)| matches!(&inode.body, Body::Dir(dir) if !dir.listed));
            unlisted.filter(|(_, inode)| inode.lookups > 0).map(|(ino, _)| ino).collect()
        };
        stream::iter(known)
            .map(|dir| self.list(dir, Who::Staging))
            .buffer_unordered(LISTINGS_AT_ONCE)
            .try_collect()
            .await
    }

    /// Lists directories of the base that nobody asked for yet, from the top down, until `most` files and directories are
    /// known or nothing is left: what is known can be changed while the server is away.
    ///
    /// # Errors
    /// The server's; what was listed stays.
    pub async fn list_ahead(&self, most: usize) -> Result<(), FsError> {
        use futures_util::{StreamExt, TryStreamExt, stream};
        let mut before = Vec::new();
        loop {
            let level: Vec<Ino> = {
                let state = self.lock();
                if state.tree.len() >= most {
                    return Ok(());
                }
                let dirs = state.tree.iter().filter(|(_, inode)| matches!(&inode.body, Body::Dir(dir) if !dir.listed));
                dirs.map(|(ino, _)| ino).take(LISTED_BETWEEN_COUNTS).collect()
            };
            // Those that are on their way out are never listed.
            if level.is_empty() || level == before {
                return Ok(());
            }
            before.clone_from(&level);
            let listings =
                stream::iter(level).map(|dir| self.list(dir, Who::Staging)).buffer_unordered(LISTINGS_AT_ONCE);
            // One that is gone meanwhile has nothing to list.
            let gone = |done| if matches!(done, Err(FsError::Stale | FsError::NotFound)) { Ok(()) } else { done };
            listings.map(gone).try_collect::<()>().await?;
        }
    }
}
