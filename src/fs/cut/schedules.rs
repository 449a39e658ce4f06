//! A commit beside an engine and programs that rename, in many schedules, over the whole filesystem. See
//! [`crate::sync::schedules`].

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use shuttle::thread;

use super::{Gathering, Guard};
use crate::fs::costs::{attrs, name_of};
use crate::fs::fetching::Who;
use crate::fs::{Fs, Limits, OpenFlags, Options, RenameMode};
use crate::hash::{ContentHash, HashKind};
use crate::namespace::ROOT;
use crate::path::RepoPath;
use crate::sync::schedules::{check, dir, finds};
use crate::sync::{self, Condvar, Mutex};
use crate::workspace::ByHash;
use crate::workspace::memory::Memory;
use crate::writeback::index::Step;
use crate::writeback::{Back, Capture, Depends, Source, Want};

/// Which content is where.
type Names = BTreeMap<String, ContentHash>;

struct World {
    fs: Arc<Fs>,
    /// What the server would commit.
    staged: Mutex<BTreeMap<RepoPath, ContentHash>>,
    /// What the tree held after each operation.
    held: Mutex<Vec<Names>>,
    /// How often anybody did anything, and whether the programs are done.
    moves: Mutex<(usize, bool)>,
    moved: Condvar,
    _dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let dir = dir();
        let options = Options { read_only: false, settle: Duration::ZERO, uid: 0, gid: 0, umask: 0o022 };
        let limits = Limits { spool: None, cache: 0 };
        let memory = Arc::new(Memory::new(ByHash::Single));
        let fs = Fs::recover(dir.path(), RepoPath::root(), options, limits, memory).unwrap();
        // No other thread is there yet.
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(fs.reconcile()).unwrap();
        runtime.block_on(fs.list(ROOT, Who::Staging)).unwrap();
        let (staged, held) = (Mutex::default(), Mutex::new(vec![Names::new()]));
        Self { fs, staged, held, moves: Mutex::default(), moved: Condvar::new(), _dir: dir }
    }

    /// Writes a file and closes it.
    fn write(&self, name: &str, content: &str) {
        let flags = OpenFlags { read: false, write: true, truncate: false, execute: false };
        let (stat, handle) = self.fs.create(ROOT, &name_of(name), attrs(), flags).unwrap();
        self.fs.write(handle, 0, content.as_bytes()).unwrap();
        self.fs.release(handle);
        // As the kernel does: what nobody has a name or a handle of is gone once another replaces it.
        self.fs.forget(stat.ino, 1);
        sync::lock(&self.held).last_mut().unwrap().insert(name.to_owned(), hash_of(content));
    }

    /// Renames a file; `held` names what the tree has from then on. Who looks at the same time may be told before or after.
    fn rename(&self, from: &str, to: &str) {
        let next = {
            let mut names = sync::lock(&self.held).last().unwrap().clone();
            let content = names.remove(from).unwrap();
            names.insert(to.to_owned(), content);
            names
        };
        sync::lock(&self.held).push(next);
        self.fs.rename(ROOT, &name_of(from), ROOT, &name_of(to), RenameMode::Replace).unwrap();
        self.tell(false);
    }
    /// Tells those who wait that something was done.
    fn tell(&self, ended: bool) {
        let mut moves = sync::lock(&self.moves);
        *moves = (moves.0 + 1, moves.1 || ended);
        self.moved.notify_all();
    }

    /// Waits until `look` finds something, looking again when anything was done. It is told whether the programs are done.
    fn wait<T>(&self, mut look: impl FnMut(bool) -> Option<T>) -> T {
        loop {
            let (before, ended) = *sync::lock(&self.moves);
            if let Some(found) = look(ended) {
                return found;
            }
            let mut moves = sync::lock(&self.moves);
            while moves.0 == before {
                moves = moves.wait(&self.moved);
            }
        }
    }

    /// As the engine has it, one request after the other.
    fn stage(&self) {
        loop {
            let due = self.wait(|ended| match self.fs.take_due(8).0 {
                due if due.is_empty() && !(ended && self.fs.is_drained()) => None,
                due => Some(due),
            });
            if due.is_empty() {
                return;
            }
            for capture in due {
                self.stage_one(capture);
                self.tell(false);
            }
        }
    }

    fn stage_one(&self, mut capture: Capture) {
        if let Want::Sealed { ino, generation, hash: hash @ None, held, .. } = &mut capture.want {
            let file = held.file().expect("what is due has its bytes");
            let (found, _) = ContentHash::of_file(HashKind::Xxh3, file, || true).unwrap();
            self.fs.hashed(*ino, *generation, found);
            *hash = Some(found);
        }
        let wanted = match &capture.want {
            Want::AsBase => capture.account.base,
            want => want.object(),
        };
        let (path, step) = (capture.path.clone(), capture.account.step(wanted));
        if step != Step::Nothing {
            if self.fs.depends_on(&path, step, &HashSet::new()) != Depends::Nothing {
                self.fs.hasten_before(&path);
                drop(capture);
                return self.fs.put_back(&path, Back::After(Duration::ZERO));
            }
            Source::intend(&*self.fs, &[&path], &BTreeSet::new()).unwrap();
            let mut staged = sync::lock(&self.staged);
            match step {
                Step::Put(object) => _ = staged.insert(path, object.hash),
                _ => _ = staged.remove(&path),
            }
        }
        self.fs.confirm(&[(capture, step)]).unwrap();
    }

    /// Commits what is owed; what that holds.
    fn commit(&self) -> Names {
        let guard = Guard(self.fs.clone());
        {
            let mut state = self.fs.begin();
            let first_new = state.tree.next_ino();
            assert!(state.writeback.begin_cut(Gathering { first_new, fixed: HashMap::new() }), "one at a time");
            state.stir(&|_| true, &self.fs);
        }
        let waiting = self.fs.make_cut().expect("nothing is open");
        self.tell(false);
        self.wait(|_| waiting.progress().1.then_some(()));
        let staged = sync::lock(&self.staged);
        let names = staged.iter().map(|(path, hash)| (path.to_string(), *hash)).collect();
        drop(staged);
        drop(guard);
        self.tell(false);
        names
    }
}

fn hash_of(content: &str) -> ContentHash {
    ContentHash::of(HashKind::Xxh3, content.as_bytes())
}

/// Two renames, one over a file that is owed, beside two commits.
fn renames() {
    let world = Arc::new(World::new());
    ["a", "t", "u"].iter().for_each(|name| world.write(name, name));
    let engine = world.clone();
    let engine = thread::spawn(move || engine.stage());
    let programs = world.clone();
    let programs = thread::spawn(move || {
        programs.rename("t", "a");
        programs.rename("u", "t");
    });
    let commits = world.clone();
    let commits = thread::spawn(move || [commits.commit(), commits.commit()]);
    let commits = commits.join().unwrap();
    programs.join().unwrap();
    world.tell(true);
    engine.join().unwrap();
    let held = sync::lock(&world.held).clone();
    for commit in &commits {
        assert!(held.contains(commit), "a commit holds {commit:?}, which the tree never held: {held:?}");
    }
    let staged: Names = sync::lock(&world.staged).iter().map(|(path, hash)| (path.to_string(), *hash)).collect();
    assert_eq!(Some(&staged), held.last(), "what is staged in the end");
}

#[test]
fn schedules_of_a_commit_hold_what_the_tree_held_at_one_instant() {
    check(renames);
}

#[test]
fn schedules_find_a_capture_that_looks_at_the_cut_once() {
    finds("a capture looks at the cut once", renames);
}
