//! What is done to a whole directory looks at each account a few times, however many there are: counted, not timed.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;

use super::recovery::{Shown, recorded};
use super::{Fs, Limits, Need, OpenFlags, Options, RenameMode, State};
use crate::namespace::{Attrs, Ino, ROOT, Timestamp};
use crate::path::{Name, RepoPath};
use crate::workspace::ByHash;
use crate::workspace::memory::Memory;
use crate::writeback::index::looks;
use crate::writeback::queue::Phase;

const FILES: usize = 1000;
/// Looks at one account.
const FEW: u64 = 4;
/// Paths that are asked after at a time.
const AT_ONCE: usize = 20;

pub(super) struct World {
    pub(super) fs: Arc<Fs>,
    pub(super) runtime: tokio::runtime::Runtime,
    dir: tempfile::TempDir,
}

impl World {
    /// On a base of these files; nothing is staged from it.
    pub(super) fn on(base: &[&str]) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let options = Options { read_only: false, settle: Duration::from_secs(600), uid: 0, gid: 0, umask: 0o022 };
        let memory = Memory::new(ByHash::Single);
        let tree: BTreeMap<_, _> = base.iter().map(|path| (path_of(path), Bytes::from_static(b"base"))).collect();
        memory.set_base(tree.into_iter().collect());
        let limits = Limits { spool: None, cache: 0 };
        let fs = Fs::recover(dir.path(), RepoPath::root(), options, limits, Arc::new(memory)).unwrap();
        runtime.block_on(fs.reconcile()).unwrap();
        runtime.block_on(fs.satisfy(Need::ListAll(ROOT))).unwrap();
        Self { fs, runtime, dir }
    }

    /// What is on record by now.
    pub(super) fn recorded(&self) -> State {
        let shown = Shown { root_path: RepoPath::root(), access: None };
        recorded(self.dir.path(), &shown).unwrap().0
    }

    /// A directory of new files in another.
    fn dir_of_files(&self, parent: Ino, name: &str) -> Ino {
        let dir = self.fs.mkdir(parent, &name_of(name), attrs()).unwrap().ino;
        for at in 0..FILES {
            let flags = OpenFlags { read: false, write: true, truncate: false, execute: false };
            let (_, handle) = self.fs.create(dir, &name_of(&file(at)), attrs(), flags).unwrap();
            self.fs.release(handle);
        }
        dir
    }
}

fn file(at: usize) -> String {
    format!("file {at:06}")
}

pub(super) fn name_of(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

pub(super) fn path_of(text: &str) -> RepoPath {
    RepoPath::parse(text).unwrap()
}

pub(super) fn attrs() -> Attrs {
    let zero = Timestamp(0, 0);
    Attrs { mode: 0o755, uid: 0, gid: 0, atime: zero, mtime: zero, ctime: zero }
}

/// `work` on so many looks at few for each.
fn assert_few_looks(what: &str, work: impl FnOnce()) {
    let looks = looks::of(work);
    assert!(looks <= FEW * FILES as u64, "{what}: {looks} looks at the accounts of {FILES} files");
}

#[test]
fn renaming_a_directory_of_new_files_looks_at_few_accounts_for_each() {
    let world = World::on(&[]);
    world.dir_of_files(ROOT, "incomplete");
    assert_few_looks("rename", || {
        world.fs.rename(ROOT, &name_of("incomplete"), ROOT, &name_of("whole"), RenameMode::Replace).unwrap();
    });
    assert_eq!(world.fs.owed(), FILES, "the new names alone");
}

#[test]
fn renaming_them_out_of_an_emptied_directory_of_the_base_keeps_what_it_owes() {
    let world = World::on(&["dir/base"]);
    let dir = world.fs.lookup(ROOT, &name_of("dir")).unwrap().ino;
    world.fs.unlink(dir, &name_of("base")).unwrap();
    world.dir_of_files(dir, "new");
    assert_few_looks("rename", || {
        world.fs.rename(dir, &name_of("new"), ROOT, &name_of("new"), RenameMode::Replace).unwrap();
    });
    assert_eq!(world.fs.owed(), 1 + 2 * FILES, "whichever old name comes last has the directory removed");
}

#[test]
fn removing_a_staged_directory_looks_at_few_accounts_for_each_file() {
    let world = World::on(&[]);
    let dir = world.dir_of_files(ROOT, "dir");
    let paths: Vec<RepoPath> = (0..FILES).map(|at| path_of(&format!("dir/{}", file(at)))).collect();
    world.fs.intend(paths.iter(), std::iter::empty()).unwrap();
    (0..FILES).for_each(|at| world.fs.unlink(dir, &name_of(&file(at))).unwrap());
    assert_few_looks("its removal, some files at a time", || {
        for some in paths.chunks(AT_ONCE) {
            assert!(world.fs.emptied_dirs(&some.iter().collect::<HashSet<_>>()).is_empty(), "the base has none of it");
            world.fs.unstaged(some).unwrap();
        }
    });
    let all = paths.iter().collect::<HashSet<_>>();
    assert_few_looks("its removal as a whole", || assert!(world.fs.emptied_dirs(&all).is_empty()));
}

#[test]
fn what_is_sent_while_staging_comes_to_a_pause_takes_an_emptied_directory_along() {
    let world = World::on(&["dir/sub/base", "dir/other"]);
    let dir = world.fs.lookup(ROOT, &name_of("dir")).unwrap().ino;
    let sub = world.fs.lookup(dir, &name_of("sub")).unwrap().ino;
    world.fs.unlink(sub, &name_of("base")).unwrap();
    let removed = path_of("dir/sub/base");
    let emptied = || world.fs.emptied_dirs(&HashSet::from([&removed]));
    let expected = BTreeSet::from([path_of("dir/sub")]);
    assert_eq!(emptied(), expected);
    let _entered = world.runtime.enter();
    let mut pause = pin!(world.fs.pause());
    // Decided before, and on its way.
    world.fs.set_phase(&removed, Phase::Ready);
    assert!(pause.as_mut().now_or_never().is_none());
    assert_eq!(emptied(), expected);
}
