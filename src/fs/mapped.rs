//! What programs store through a shared mapping of a file whose bytes go by requests: the kernel alone has it, until it
//! writes it back in its own time. A barrier has it written back first.
//!
//! Nothing tells of a mapping. But one that can be stored to needs a descriptor open for reading *and* writing, and the
//! kernel does not release that before the last mapping of it is gone: the files with such a handle are all that may have
//! one. To invalidate a file has the kernel write back its dirty pages and wait for the answers
//! (`fuse_reverse_inval_inode` and `fuse_launder_folio` in fs/fuse of Linux). It drops the clean pages as well, which are
//! read again.
//!
//! A page that could not be written back is dropped all the same, and only the daemon knows: the failure is kept until a
//! barrier has told somebody.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;

use super::{Fs, FsError, State};
use crate::namespace::{Content, Generation, Ino};
use crate::path::RepoPath;

/// Has the kernel write back what it has of a file, and waits for that.
pub(super) type WriteBack = dyn Fn(Ino) + Send + Sync;

/// Why what programs stored through mappings is not all here.
#[derive(Debug, thiserror::Error)]
pub enum Unflushed {
    /// A write of it failed, after which the kernel dropped it.
    #[error("{path}: what a program stored through a mapping of it is lost: {why}{}", more(*.others))]
    Lost {
        /// One of the files.
        path: String,
        /// The failure of its first write that failed.
        why: String,
        /// How many others lost something.
        others: usize,
    },
    /// The kernel has had no answer for so long.
    #[error("{path}: what programs stored through mappings of it was not written back within {} s", patience.as_secs())]
    Stuck {
        /// The file.
        path: String,
        /// How long nothing of it arrived.
        patience: Duration,
    },
    /// Nobody can ask the kernel.
    #[error("what programs stored through mappings cannot be written back: {0}")]
    NoThread(#[source] io::Error),
}

fn more(others: usize) -> String {
    match others {
        0 => String::new(),
        1 => ", and of 1 other file".to_owned(),
        others => format!(", and of {others} other files"),
    }
}

impl Fs {
    /// Sets how the kernel is told to write back a file. To be called once, when the mount is served.
    pub fn write_back_by(&self, write_back: impl Fn(Ino) + Send + Sync + 'static) {
        // A second one would be told the same.
        let _ = self.write_back.set(Arc::new(write_back));
    }

    /// Returns when all that programs had stored through mappings of the files at `chosen` paths has arrived. To be called
    /// before a barrier collects what is due: a file is not due before its writes come.
    ///
    /// # Errors
    /// When something of it was lost, now or since the last barrier, which is told once; or when nothing of a file arrives
    /// for `patience`.
    ///
    /// # Cancel safety
    /// The files are written back, or not.
    pub async fn flush_mapped(
        &self,
        chosen: impl Fn(&RepoPath) -> bool + Send,
        patience: Duration,
    ) -> Result<(), Unflushed> {
        let mapped = self.lock().may_be_mapped(&chosen);
        if let Some(write_back) = self.write_back.get().filter(|_| !mapped.is_empty()) {
            self.have_written_back(write_back.clone(), &mapped, patience).await?;
        }
        match self.begin().take_lost(&chosen) {
            Some(lost) => Err(lost),
            None => Ok(()),
        }
    }

    async fn have_written_back(
        &self,
        write_back: Arc<WriteBack>,
        files: &[(Ino, String)],
        patience: Duration,
    ) -> Result<(), Unflushed> {
        let inos: Vec<Ino> = files.iter().map(|(ino, _)| *ino).collect();
        let at = Arc::new(AtomicUsize::new(0));
        let (tell, mut done) = oneshot::channel::<()>();
        let begun = at.clone();
        // A thread of its own: it serves no request, as the kernel's writes do, and if it is stuck nobody waits for it.
        let work = move || {
            for (number, ino) in inos.into_iter().enumerate() {
                if tell.is_closed() {
                    return;
                }
                begun.store(number, Ordering::Release);
                write_back(ino);
            }
            let _ = tell.send(());
        };
        std::thread::Builder::new().name("write-back".into()).spawn(work).map_err(Unflushed::NoThread)?;
        let reached = || {
            let number = at.load(Ordering::Acquire);
            (number, files.get(number).and_then(|(ino, _)| self.lock().generation(*ino)))
        };
        let mut before = reached();
        // As long as it goes on it may take its time: the kernel sends page by page.
        while tokio::time::timeout(patience, &mut done).await.is_err() {
            let now = reached();
            if now == before {
                let path = files.get(now.0).map(|(_, path)| path.clone()).unwrap_or_default();
                return Err(Unflushed::Stuck { path, patience });
            }
            before = now;
        }
        Ok(())
    }

    /// Takes note of how a write of mapped pages ended: the kernel, which dropped what could not be written, tells nobody
    /// who waits for a barrier.
    pub fn wrote_mapped(&self, ino: Ino, length: usize, result: &Result<usize, FsError>) {
        let why = match result {
            Ok(written) if *written >= length => return,
            Ok(_) => "the local disk took only a part".to_owned(),
            Err(error) => error.to_string(),
        };
        let mut state = self.begin();
        tracing::error!(path = state.tree.display_path(ino), why, "what was stored through a mapping is lost");
        state.backing.lose_pages(ino, why);
    }
}

impl State {
    /// The files at `chosen` paths that programs may have stored to through mappings, by requests; with a path to name
    /// each by.
    fn may_be_mapped(&self, chosen: &impl Fn(&RepoPath) -> bool) -> Vec<(Ino, String)> {
        let mut files = BTreeMap::new();
        for ino in self.handles.read_and_written().filter(|ino| !self.handles.is_lent(*ino)) {
            let empty = self.content(ino).is_none_or(|(_, size)| size == 0);
            if !empty && self.tree.paths_of(ino).any(|path| chosen(&path)) {
                files.entry(ino).or_insert_with(|| self.tree.display_path(ino));
            }
        }
        files.into_iter().collect()
    }

    /// Which state of its bytes a file in the spool has.
    fn generation(&self, ino: Ino) -> Option<Generation> {
        match self.content(ino)?.0 {
            Content::Local { generation, .. } => Some(*generation),
            Content::Remote { .. } => None,
        }
    }

    /// What was lost of the files at `chosen` paths; it is forgotten with that.
    fn take_lost(&mut self, chosen: &impl Fn(&RepoPath) -> bool) -> Option<Unflushed> {
        let of: Vec<Ino> =
            self.backing.lost_pages().filter(|ino| self.tree.paths_of(*ino).any(|path| chosen(&path))).collect();
        let others = of.len().saturating_sub(1);
        let lost =
            of.into_iter().filter_map(|ino| Some((self.tree.display_path(ino), self.backing.take_lost_pages(ino)?)));
        let (path, why) = lost.collect::<Vec<_>>().into_iter().min()?;
        Some(Unflushed::Lost { path, why, others })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc};

    use super::*;
    use crate::fs::OpenFlags;
    use crate::fs::costs::{World, attrs, name_of, path_of};
    use crate::namespace::ROOT;

    const SOON: Duration = Duration::from_millis(50);
    /// For what is to succeed, on a busy machine too.
    const LONG: Duration = Duration::from_secs(60);

    /// A new file with some bytes, which stays open; and its handle.
    fn make(world: &World, name: &str, read: bool, bytes: &[u8]) -> (Ino, u64) {
        let flags = OpenFlags { read, write: true, truncate: false, execute: false };
        let (stat, handle) = world.fs.create(ROOT, &name_of(name), attrs(), flags).unwrap();
        if !bytes.is_empty() {
            assert_eq!(world.fs.write(handle, 0, bytes).unwrap(), bytes.len());
        }
        (stat.ino, handle)
    }

    fn flush(world: &World, path: &str) -> Result<(), Unflushed> {
        flush_within(world, path, LONG)
    }

    fn flush_within(world: &World, path: &str, patience: Duration) -> Result<(), Unflushed> {
        world.runtime.block_on(world.fs.flush_mapped(|at| at.is_in(&path_of(path)), patience))
    }

    #[test]
    fn files_that_may_be_stored_to_through_a_mapping_are_written_back_and_no_others() {
        let world = World::on(&[]);
        let asked = Arc::new(Mutex::new(Vec::new()));
        let told = asked.clone();
        world.fs.write_back_by(move |ino| told.lock().unwrap().push(ino));
        let (mapped, handle) = make(&world, "mapped", true, b"bytes");
        let reader = OpenFlags { read: true, write: false, truncate: false, execute: false };
        world.fs.open(mapped, reader).unwrap();
        make(&world, "written alone", false, b"bytes");
        make(&world, "empty", true, b"");
        let (closed, last) = make(&world, "closed", true, b"bytes");
        world.fs.release(last);
        world.fs.open(closed, reader).unwrap();
        let (removed, _) = make(&world, "removed", true, b"bytes");
        world.fs.unlink(ROOT, &name_of("removed")).unwrap();
        flush(&world, "elsewhere").unwrap();
        assert!(asked.lock().unwrap().is_empty());
        flush(&world, "").unwrap();
        assert_eq!(*asked.lock().unwrap(), [mapped], "not {removed:?}, whose bytes go nowhere");
        world.fs.release(handle);
        flush(&world, "").unwrap();
        assert_eq!(*asked.lock().unwrap(), [mapped], "a mapping would have kept it open");
    }

    #[test]
    fn a_file_of_which_nothing_arrives_is_named_and_keeps_nobody_waiting() {
        let world = World::on(&[]);
        let (answer, answered) = mpsc::channel::<()>();
        let (answered, over) = (Mutex::new(answered), Arc::new(Mutex::new(Vec::new())));
        let told = over.clone();
        world.fs.write_back_by(move |ino| {
            let _ = answered.lock().unwrap().recv();
            told.lock().unwrap().push(ino);
        });
        make(&world, "stuck", true, b"bytes");
        let error = flush_within(&world, "", SOON).unwrap_err();
        assert!(matches!(&error, Unflushed::Stuck { path, .. } if path == "stuck"), "{error}");
        // Others' barriers do not wait for it.
        flush(&world, "another").unwrap();
        drop(answer);
        flush(&world, "stuck").unwrap();
        assert!(!over.lock().unwrap().is_empty());
    }

    #[test]
    fn what_was_lost_is_told_once_to_whom_it_concerns() {
        let world = World::on(&[]);
        let [(one, _), (two, _), (gone, last)] = ["one", "two", "gone"].map(|name| make(&world, name, true, b"bytes"));
        for ino in [one, two, gone] {
            world.fs.wrote_mapped(ino, 4096, &Ok(4096));
            world.fs.wrote_mapped(ino, 4096, &Err(FsError::NoSpace));
            world.fs.wrote_mapped(ino, 4096, &Ok(17));
        }
        world.fs.unlink(ROOT, &name_of("gone")).unwrap();
        world.fs.release(last);
        flush(&world, "another").unwrap();
        let error = flush(&world, "").unwrap_err().to_string();
        assert!(error.starts_with("one: ") && error.contains("no space left"), "{error}");
        assert!(error.ends_with(", and of 1 other file"), "{error}");
        flush(&world, "").unwrap();
        world.fs.forget(gone, 1);
        assert!(world.fs.lock().backing.lost_pages().next().is_none());
    }
}
