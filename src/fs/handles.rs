//! Open files and directories: who has what open, for what, and which local file those share who have one file open.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;

use super::FsError;
use super::borrowed::Borrowed;
use super::live::Loan;
use super::ops::OpenFlags;
use super::passthrough::{Reach, Way};
use crate::count;
use crate::hash::ContentHash;
use crate::namespace::{Ino, Namespace};

/// What a handle is open for.
enum Handle {
    File { ino: Ino, flags: OpenFlags },
    Dir { ino: Ino },
}

/// What the open handles of one file share.
#[derive(Default)]
struct OpenFile {
    /// For reading alone where it is lent to the kernel.
    file: Option<Arc<File>>,
    /// That the kernel uses it in place of requests.
    loan: Option<Arc<Loan>>,
    /// That it is the cache's.
    borrowed: Option<Borrowed>,
    writers: u32,
    handles: u32,
    /// Changes between leaving and retaking the lock.
    writing: u32,
    /// Those of them that are no plain writes: amid one, what a reader sees is neither the old nor the new content.
    reshaping: u32,
    /// Changed since it was last put in the queue.
    modified: bool,
    /// The kernel caches nothing of it.
    uncached: bool,
}

/// All handles, and what is open by them.
#[derive(Default)]
pub(super) struct Handles {
    handles: HashMap<u64, Handle>,
    /// Also of what a change by name is under way for, without a handle.
    open: HashMap<Ino, OpenFile>,
    last: u64,
}

/// A handle that was closed.
pub(super) struct Closed {
    pub ino: Ino,
    pub read: bool,
    pub write: bool,
}

/// What the close of a file leaves to do.
#[derive(Default)]
pub(super) struct Left {
    /// The kernel may have kept what it was to cache nothing of.
    pub stale: bool,
    /// The last writer is gone, and the file was changed: its paths are owed.
    pub settled: bool,
    /// The local file that the last writer wrote to by requests.
    pub written: Option<Arc<File>>,
    /// What nobody has open any more. The file closes when this is dropped: outside the lock.
    pub last: Option<LastClose>,
}

/// That nobody has a file open any more.
pub(super) struct LastClose {
    _file: Option<Arc<File>>,
    _loan: Option<Arc<Loan>>,
    /// What was borrowed for it.
    pub borrowed: Option<Borrowed>,
}

impl Handles {
    fn fresh(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Opens a directory.
    pub fn open_dir(&mut self, ino: Ino) -> u64 {
        let handle = self.fresh();
        self.handles.insert(handle, Handle::Dir { ino });
        handle
    }

    /// Opens a file; the local file behind it is [attached](Self::attach) before or after. The first decides whether the
    /// kernel caches it, where that `may_be_uncached`.
    pub fn open_file(&mut self, ino: Ino, flags: OpenFlags, may_be_uncached: bool) -> u64 {
        let handle = self.fresh();
        self.handles.insert(handle, Handle::File { ino, flags });
        let open = self.open.entry(ino).or_default();
        if open.handles == 0 {
            open.uncached = may_be_uncached && open.loan.is_none() && flags.write && !flags.read;
        }
        open.handles += 1;
        open.writers += u32::from(flags.write);
        handle
    }

    /// Takes a handle out. Of a file's, [`leave`](Self::leave) is to follow.
    pub fn close(&mut self, handle: u64) -> Option<Closed> {
        Some(match self.handles.remove(&handle)? {
            Handle::File { ino, flags } => Closed { ino, read: flags.read, write: flags.write },
            Handle::Dir { ino } => Closed { ino, read: false, write: false },
        })
    }

    /// Somebody who had a file open has it so no longer. `unseen`: it was changed past the daemon, which need not show.
    pub fn leave(&mut self, closed: &Closed, unseen: bool) -> Left {
        let Some(open) = self.open.get_mut(&closed.ino) else { return Left::default() };
        count::take(&mut open.handles, 1, "handles.counts");
        count::take(&mut open.writers, u32::from(closed.write), "handles.counts");
        let last_writer = closed.write && open.writers == 0;
        // What is mapped or spliced is cached all the same. Linux up to 6.18 drops what a write makes out of date
        // before the write alone, so a page may have come back meanwhile.
        let stale = open.uncached && closed.read;
        let settled = last_writer && (open.modified || unseen);
        if settled {
            open.modified = false;
        }
        let written = (last_writer && open.loan.is_none()).then(|| open.file.clone()).flatten();
        let last = if open.handles == 0 { self.last_close(closed.ino) } else { None };
        Left { stale, settled, written, last }
    }

    fn last_close(&mut self, ino: Ino) -> Option<LastClose> {
        let OpenFile { file, loan, borrowed, writing, reshaping, .. } = self.open.remove(&ino)?;
        // A change by name may be under way, and ends by itself.
        if writing > 0 {
            self.open.insert(ino, OpenFile { writing, reshaping, ..OpenFile::default() });
        }
        Some(LastClose { _file: file, _loan: loan, borrowed })
    }

    /// The file that a handle is of.
    ///
    /// # Errors
    /// [`FsError::BadHandle`] also for a directory's.
    pub fn file(&self, handle: u64) -> Result<Ino, FsError> {
        self.file_if(handle, |_| true)
    }

    /// The file that a handle reads.
    ///
    /// # Errors
    /// [`FsError::BadHandle`] for any that is not open for that.
    pub fn reader(&self, handle: u64) -> Result<Ino, FsError> {
        self.file_if(handle, |flags| flags.read)
    }

    /// The file that a handle writes.
    ///
    /// # Errors
    /// [`FsError::BadHandle`] for any that is not open for that.
    pub fn writer(&self, handle: u64) -> Result<Ino, FsError> {
        self.file_if(handle, |flags| flags.write)
    }

    fn file_if(&self, handle: u64, is: impl Fn(&OpenFlags) -> bool) -> Result<Ino, FsError> {
        match self.handles.get(&handle) {
            Some(Handle::File { ino, flags }) if is(flags) => Ok(*ino),
            _ => Err(FsError::BadHandle),
        }
    }

    /// The directory that a handle is of.
    ///
    /// # Errors
    /// [`FsError::BadHandle`].
    pub fn dir(&self, handle: u64) -> Result<Ino, FsError> {
        match self.handles.get(&handle) {
            Some(Handle::Dir { ino }) => Ok(*ino),
            _ => Err(FsError::BadHandle),
        }
    }

    /// The files that somebody has open for reading and writing: those that may be mapped, and stored to by that.
    pub fn read_and_written(&self) -> impl Iterator<Item = Ino> {
        self.handles.values().filter_map(|handle| match handle {
            Handle::File { ino, flags } if flags.read && flags.write => Some(*ino),
            _ => None,
        })
    }

    /// Whether a program runs from a file.
    pub fn is_executed(&self, ino: Ino) -> bool {
        let runs = |handle: &Handle| matches!(handle, Handle::File { ino: at, flags } if *at == ino && flags.execute);
        self.handles.values().any(runs)
    }

    /// Whether anybody has any file open, or changes one by its name. What is mapped is open: the kernel keeps it so.
    pub fn are_any_open(&self) -> bool {
        self.open.values().any(|open| open.handles > 0 || open.writing > 0)
    }

    /// Whether somebody has a file open.
    pub fn is_open(&self, ino: Ino) -> bool {
        self.open.get(&ino).is_some_and(|open| open.handles > 0)
    }

    /// Whether somebody has a file open for writing.
    pub fn is_written(&self, ino: Ino) -> bool {
        self.open.get(&ino).is_some_and(|open| open.writers > 0)
    }

    /// The files that somebody has open for writing.
    pub fn written(&self) -> impl Iterator<Item = Ino> {
        self.open.iter().filter(|(_, open)| open.writers > 0).map(|(ino, _)| *ino)
    }

    /// Whether a file is being changed this instant, outside the lock.
    pub fn is_changing(&self, ino: Ino) -> bool {
        self.open.get(&ino).is_some_and(|open| open.writing > 0)
    }

    /// Whether it is so by more than a plain write.
    pub fn is_reshaped(&self, ino: Ino) -> bool {
        self.open.get(&ino).is_some_and(|open| open.reshaping > 0)
    }

    /// Whether somebody changes a file, or has it open to do so.
    pub fn is_busy(&self, ino: Ino) -> bool {
        self.open.get(&ino).is_some_and(|open| open.writers > 0 || open.writing > 0)
    }

    /// Whether an open file was changed since it was last put in the queue.
    pub fn is_modified(&self, ino: Ino) -> bool {
        self.open.get(&ino).is_some_and(|open| open.modified)
    }

    /// How those go who have a file open; `None`: nobody has.
    pub fn way(&self, ino: Ino) -> Option<Way> {
        let open = self.open.get(&ino).filter(|open| open.handles > 0)?;
        Some(if open.loan.is_some() { Way::Past } else { Way::Requests })
    }

    /// How the kernel is to reach the bytes of an open file.
    pub fn reach(&self, ino: Ino) -> Reach {
        match self.open.get(&ino) {
            Some(OpenFile { loan: Some(loan), .. }) => Reach::Past(loan.number()),
            Some(OpenFile { uncached: true, .. }) => Reach::Uncached,
            _ => Reach::Cached,
        }
    }

    /// The local file behind an open one, if it is attached. Of what is [lent](Self::is_lent), for reading alone.
    pub fn local(&self, ino: Ino) -> Option<&Arc<File>> {
        self.open.get(&ino)?.file.as_ref()
    }

    /// Whether the kernel uses the local file in place of requests.
    pub fn is_lent(&self, ino: Ino) -> bool {
        self.open.get(&ino).is_some_and(|open| open.loan.is_some())
    }

    /// What those who have a file open have borrowed of the cache.
    pub fn borrowed(&self, ino: Ino) -> Option<Borrowed> {
        self.open.get(&ino)?.borrowed
    }

    /// Puts a local file behind one that is about to be opened, or is.
    pub fn attach(&mut self, ino: Ino, file: Arc<File>, loan: Option<Arc<Loan>>, borrowed: Option<Borrowed>) {
        let open = self.open.entry(ino).or_default();
        (open.file, open.loan, open.borrowed) = (Some(file), loan, borrowed);
    }

    /// The same for a file that is reached by requests, unless another is there already.
    pub fn attach_first(&mut self, ino: Ino, file: Arc<File>) {
        self.open.entry(ino).or_default().file.get_or_insert(file);
    }

    /// An open file has other content from now on, in this local file.
    pub fn replace(&mut self, ino: Ino, file: Arc<File>) {
        if let Some(open) = self.open.get_mut(&ino) {
            open.file = Some(file);
        }
    }

    /// What was borrowed is about to become the file's own, or not after all. `false`: it is not borrowed any more.
    pub fn set_leaving(&mut self, ino: Ino, hash: ContentHash, leaving: bool) -> bool {
        match self.open.get_mut(&ino).and_then(|open| open.borrowed.as_mut()) {
            Some(borrowed) if borrowed.hash == hash => {
                borrowed.set_leaving(leaving);
                true
            }
            _ => false,
        }
    }

    /// What was borrowed is the file's own.
    pub fn owns_borrowed(&mut self, ino: Ino) {
        if let Some(open) = self.open.get_mut(&ino) {
            open.borrowed = None;
        }
    }

    /// A plain write to an open file begins.
    pub fn begin_writing(&mut self, ino: Ino) {
        self.open.entry(ino).or_default().writing += 1;
    }

    /// A change that is more than a plain write begins, perhaps by name.
    pub fn begin_reshaping(&mut self, ino: Ino) {
        let open = self.open.entry(ino).or_default();
        open.writing += 1;
        open.reshaping += 1;
    }

    /// A change that is more than a plain write is over.
    pub fn end_reshaping(&mut self, ino: Ino) {
        if let Some(open) = self.open.get_mut(&ino) {
            count::take(&mut open.reshaping, 1, "handles.changes");
        }
        self.end_writing(ino);
    }

    /// A change is over.
    pub fn end_writing(&mut self, ino: Ino) {
        if let Some(open) = self.open.get_mut(&ino) {
            count::take(&mut open.writing, 1, "handles.changes");
            if open.handles == 0 && open.writing == 0 {
                self.open.remove(&ino);
            }
        }
    }

    /// A file was changed. Says whether its paths are to be owed for that: of an open one once, until it was
    /// [fixed](Self::fix) or its writers have closed it.
    pub fn note_change(&mut self, ino: Ino) -> bool {
        match self.open.get_mut(&ino) {
            Some(open) if open.writers > 0 => !std::mem::replace(&mut open.modified, true),
            _ => true,
        }
    }

    /// A file's content of now is being fixed: what is written from here on is a change.
    pub fn fix(&mut self, ino: Ino) {
        if let Some(open) = self.open.get_mut(&ino) {
            open.modified = false;
        }
    }

    /// Tells `broken` of every invariant that does not hold, by its name in docs/INVARIANTS.md. Looks at every handle
    /// and inode: for tests.
    pub fn check(&self, tree: &Namespace, broken: &mut impl FnMut(&'static str, String)) {
        let (mut files, mut opens): (HashMap<Ino, (u32, u32)>, HashMap<Ino, u32>) = Default::default();
        for handle in self.handles.values() {
            let (Handle::File { ino, .. } | Handle::Dir { ino }) = handle;
            *opens.entry(*ino).or_default() += 1;
            if let Handle::File { ino, flags } = handle {
                let (handles, writers) = files.entry(*ino).or_default();
                (*handles, *writers) = (*handles + 1, *writers + u32::from(flags.write));
            }
        }
        for (ino, open) in &self.open {
            let counted = (open.handles, open.writers);
            let is = files.get(ino).copied().unwrap_or_default();
            if counted != is {
                broken("handles.counts", format!("{ino:?} has {is:?} handles and writers, and counts {counted:?}"));
            }
            if open.reshaping > open.writing {
                broken("handles.changes", format!("{ino:?}: {} of {} changes", open.reshaping, open.writing));
            }
        }
        for ino in files.keys().filter(|ino| !self.open.contains_key(ino)) {
            broken("handles.counts", format!("{ino:?} is open and nothing is known of that"));
        }
        for (ino, inode) in tree.iter() {
            let is = opens.get(&ino).copied().unwrap_or_default();
            if inode.opens != is {
                broken("handles.opens", format!("{ino:?} has {is} handles, and counts {}", inode.opens));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INO: Ino = Ino(7);
    const BOTH: OpenFlags = OpenFlags { read: true, write: true, truncate: false, execute: false };
    const READ: OpenFlags = OpenFlags { write: false, ..BOTH };

    fn broken(handles: &Handles) -> Vec<&'static str> {
        let mut found = Vec::new();
        let tree = Namespace::new(crate::path::RepoPath::root(), crate::fs::costs::attrs());
        handles.check(&tree, &mut |name, _| found.push(name));
        found
    }

    #[test]
    fn the_last_writer_settles_what_was_changed_once() {
        let mut handles = Handles::default();
        let [first, second, reader] = [BOTH, BOTH, READ].map(|flags| handles.open_file(INO, flags, true));
        assert!(handles.note_change(INO) && !handles.note_change(INO), "owed once while it is open");
        handles.fix(INO);
        assert!(handles.note_change(INO), "and again since its content was fixed");
        let mut left = |handle: u64, unseen| {
            let closed = handles.close(handle).unwrap();
            handles.leave(&closed, unseen)
        };
        assert!(!left(first, false).settled);
        let last = left(second, false);
        assert!(last.settled && last.last.is_none());
        assert!(left(reader, true).last.is_some(), "nobody has it any more");
        assert!(!handles.is_open(INO) && handles.close(reader).is_none());
        assert_eq!(broken(&handles), [""; 0]);
    }

    #[test]
    fn a_change_by_name_outlives_the_last_handle() {
        let mut handles = Handles::default();
        let handle = handles.open_file(INO, BOTH, false);
        handles.begin_reshaping(INO);
        let closed = handles.close(handle).unwrap();
        assert!(handles.leave(&closed, false).last.is_some());
        assert!(handles.is_reshaped(INO) && !handles.is_open(INO));
        handles.end_reshaping(INO);
        assert!(!handles.is_changing(INO) && handles.open.is_empty());
    }

    #[test]
    fn a_handle_is_good_for_what_it_was_opened_for() {
        let mut handles = Handles::default();
        let (file, dir) = (handles.open_file(INO, READ, false), handles.open_dir(Ino(8)));
        assert!(handles.reader(file).is_ok() && handles.file(file).is_ok() && handles.dir(dir).is_ok());
        for bad in [handles.writer(file), handles.file(dir), handles.dir(file), handles.reader(99)] {
            assert!(matches!(bad, Err(FsError::BadHandle)));
        }
    }

    #[test]
    fn a_count_that_is_wrong_is_told() {
        let fill = || {
            let mut handles = Handles::default();
            handles.open_file(INO, BOTH, false);
            handles
        };
        let mut handles = fill();
        handles.open.get_mut(&INO).unwrap().writers = 0;
        assert_eq!(broken(&handles), ["handles.counts"]);
        let mut handles = fill();
        handles.open.get_mut(&INO).unwrap().reshaping = 1;
        assert_eq!(broken(&handles), ["handles.changes"]);
        let mut handles = fill();
        handles.open.clear();
        assert_eq!(broken(&handles), ["handles.counts"]);
    }
}
