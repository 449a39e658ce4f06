//! What a status shows.

use super::barriers::length_at;
use super::{Fs, Options, State, base_attrs};
use crate::namespace::{Attrs, Body, Inode, ROOT, Resolved, Timestamp};
use crate::report::{Counts, FileError, LocalPath, Tally};
use crate::writeback::index::Staged;
use crate::writeback::queue::{Phase, Tick};

/// Errors and local paths that a status shows.
const SHOWN_ERRORS: usize = 20;

const SHOWN_LOCAL: usize = 100;

impl Fs {
    /// Whether nothing is owed to the server.
    pub fn is_drained(&self) -> bool {
        self.lock().writeback.queue().len() == 0
    }

    /// Whether all that is owed waits for somebody to act.
    pub fn all_parked(&self) -> bool {
        self.lock().writeback.queue().iter().all(|(_, entry)| entry.is_parked())
    }

    /// How many paths are owed.
    pub fn owed(&self) -> usize {
        self.lock().writeback.queue().len()
    }

    /// How much of the files that go in parts the server has taken already, in bytes.
    pub fn uploaded_bytes(&self) -> u64 {
        let state = self.lock();
        let uploads = state.writeback.uploads().filter(|(path, _)| state.writeback.is_pending(path));
        let sent = uploads.map(|(path, upload)| {
            let parts = upload.state.parts.len() as u64;
            parts.saturating_mul(upload.state.part_bytes).min(length_at(&state.tree, path))
        });
        sent.fold(0, u64::saturating_add)
    }

    /// Numbers for a status: counts per state, age of the oldest change in seconds, errors, local paths.
    pub fn report(&self) -> (Counts, Option<u64>, Vec<FileError>, Vec<LocalPath>) {
        let state = self.lock();
        let mut counts = Counts::default();
        let mut errors = Vec::new();
        let mut oldest: Option<Tick> = None;
        let add = |tally: &mut Tally, bytes| {
            tally.files += 1;
            tally.bytes = tally.bytes.saturating_add(bytes);
        };
        for (path, entry) in state.writeback.queue().iter() {
            oldest = Some(oldest.map_or(entry.since, |oldest| oldest.min(entry.since)));
            let size = match state.tree.resolve(path) {
                Resolved::Inode(ino) => state.content(ino).map(|(_, size)| size),
                _ => None,
            };
            let tally = match (entry.is_parked(), size, entry.phase) {
                (true, ..) => &mut counts.failed,
                (_, None, _) => &mut counts.removals,
                (_, _, Phase::Waiting) => &mut counts.dirty,
                (_, _, Phase::Hashing) => &mut counts.hashing,
                (_, _, Phase::Ready) => &mut counts.queued,
                (_, _, Phase::Sending) => &mut counts.uploading,
            };
            add(tally, size.unwrap_or(0));
            if entry.is_in_conflict() {
                add(&mut counts.conflicts, size.unwrap_or(0));
            }
            if let Some(error) = entry.error() {
                errors.push((
                    entry.since,
                    FileError {
                        path: path.as_str().to_owned(),
                        error: error.to_owned(),
                        attempts: entry.attempts(),
                        parked: entry.is_parked(),
                    },
                ));
            }
        }
        let mut staged = Vec::new();
        for (path, account) in state.writeback.ledger().iter() {
            if let Staged::Put(object) = account.staged
                && !state.writeback.is_pending(path)
            {
                add(&mut counts.staged, object.size);
                staged.push(object);
            } else if account.staged == Staged::Removed && !state.writeback.is_pending(path) {
                add(&mut counts.staged, 0);
            }
        }
        errors.sort_by_key(|(since, _)| std::cmp::Reverse(*since));
        let errors = errors.into_iter().map(|(_, error)| error).take(SHOWN_ERRORS).collect();
        let local = state.local_paths(&self.options, &mut counts);
        let oldest = oldest.map(|oldest| state.writeback.queue().instant(oldest).elapsed().as_secs());
        drop(state);
        // What is empty is never lost.
        for object in staged.iter().filter(|object| object.size > 0 && self.cache.lacks(object.hash)) {
            add(&mut counts.remote, object.size);
        }
        (counts, oldest, errors, local)
    }
}

impl State {
    /// What never travels, and why: files as such, and what Oxen does not store of those that do. Times are left out: no
    /// file's travel. What is counted are paths, and the bytes of regular files that stay.
    pub(super) fn local_paths(&self, options: &Options, counts: &mut Counts) -> Vec<LocalPath> {
        let mut shown = Vec::new();
        for (ino, inode) in
            self.tree.iter().filter(|(ino, inode)| *ino != ROOT && (inode.recorded || self.tree.is_lost(*ino)))
        {
            let Some((parent, name)) = inode.links.first() else {
                continue;
            };
            let mut reasons = Vec::new();
            let mut stored = false;
            match &inode.body {
                Body::Symlink(_) => reasons.push("symbolic link".to_owned()),
                Body::Special { .. } => reasons.push("special file".to_owned()),
                Body::Dir(dir) => {
                    if dir.children.is_empty() && dir.listed && (dir.hidden.is_empty() || !dir.based) {
                        reasons.push("empty directory".to_owned());
                    }
                    stored = reasons.is_empty();
                    reasons.extend(inode.unstored(options));
                }
                Body::File { size, .. } => match self.tree.path_in(*parent, name) {
                    Err(error) => {
                        counts.local.bytes = counts.local.bytes.saturating_add(*size);
                        reasons.push(error.to_string());
                    }
                    Ok(_) => {
                        stored = true;
                        if inode.links.len() > 1 {
                            reasons.push("hard links, which become copies".to_owned());
                        }
                        reasons.extend(inode.unstored(options));
                    }
                },
            }
            if !reasons.is_empty() {
                counts.local.files += 1;
                counts.partly.files += u64::from(stored);
                if shown.len() < SHOWN_LOCAL {
                    shown.push(LocalPath { path: self.tree.display_path(ino), reason: reasons.join("; ") });
                }
            }
        }
        shown.sort_by(|a, b| a.path.cmp(&b.path));
        shown
    }
}

impl Inode {
    /// What a mount elsewhere would not show of a file or directory that travels.
    fn unstored(&self, options: &Options) -> Vec<String> {
        let Attrs { mode, uid, gid, .. } = self.attrs;
        let shown = base_attrs(options, self.is_dir(), Timestamp::default());
        let mut reasons = Vec::new();
        if mode != shown.mode {
            reasons.push(format!("permissions {mode:04o}"));
        }
        if (uid, gid) != (shown.uid, shown.gid) {
            reasons.push(format!("owner {uid}:{gid}"));
        }
        if self.xattrs.is_some() {
            reasons.push("extended attributes".to_owned());
        }
        reasons
    }
}
