//! The queue with its barriers in many schedules. See [`crate::sync::schedules`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shuttle::thread;

use super::costs::path_of;
use crate::namespace::Ino;
use crate::path::RepoPath;
use crate::sync::schedules::{check, finds};
use crate::sync::{self, Condvar, Mutex};
use crate::writeback::queue::{Parked, Phase, Queue, Scope};

type Threads = Vec<Box<dyn FnOnce() + Send>>;

fn together(threads: Threads) {
    let running: Vec<_> = threads.into_iter().map(thread::spawn).collect();
    running.into_iter().for_each(|thread| thread.join().unwrap());
}

/// A queue as the filesystem has it: under one lock, with an engine that sleeps until it is told of something that is due,
/// and others who wait for barriers.
#[derive(Default)]
struct Shared {
    state: Mutex<Owed>,
    /// Told to the engine; one who is told while it is awake need not sleep next.
    wake: (Mutex<bool>, Condvar),
    /// A path was staged, given up or withdrawn.
    progress: Condvar,
}

#[derive(Default)]
struct Owed {
    queue: Queue,
    /// The newest state of each path, and the one that was staged.
    newest: BTreeMap<RepoPath, u64>,
    staged: BTreeMap<RepoPath, u64>,
    /// Nothing is changed any more.
    ended: bool,
}

impl Owed {
    fn touch(&mut self, path: &RepoPath) {
        self.queue.touch(path, Duration::ZERO);
        self.newest.insert(path.clone(), self.queue.get(path).unwrap().seq);
    }
}

impl Shared {
    /// As `Fs::change` has it: tells those who wait what concerns them.
    fn change<T>(&self, change: impl FnOnce(&mut Owed) -> T) -> T {
        let mut state = sync::lock(&self.state);
        let out = change(&mut state);
        let mut broken = Vec::new();
        state.queue.check(&mut |name, what| broken.push(format!("{name}: {what}")));
        assert_eq!(broken, [""; 0]);
        let (news, withdrawn) = (state.queue.has_news(), state.queue.has_withdrawn());
        drop(state);
        if news {
            self.wake_engine();
        }
        if withdrawn {
            self.progress.notify_all();
        }
        out
    }

    fn wake_engine(&self) {
        *sync::lock(&self.wake.0) = true;
        self.wake.1.notify_all();
    }

    fn stage(&self) {
        let mut refusals = 1;
        loop {
            let (due, next, ended) = self.change(|state| {
                let due: Vec<(RepoPath, u64)> = state
                    .queue
                    .take_due(Instant::now(), 2)
                    .into_iter()
                    .map(|path| (path.clone(), state.queue.get(&path).unwrap().seq))
                    .collect();
                (due, state.queue.next_due(), state.ended && state.queue.len() == 0)
            });
            for (path, seq) in &due {
                self.change(|state| state.queue.set_phase(path, Phase::Sending));
                self.change(|state| match std::mem::take(&mut refusals) {
                    0 => {
                        state.staged.insert(path.clone(), *seq);
                        state.queue.done(path, *seq);
                    }
                    _ => state.queue.retry(path, Duration::ZERO, Some("refused".into())),
                });
                self.progress.notify_all();
            }
            if ended {
                return;
            }
            // One that is due by now has no news.
            if due.is_empty() && next.is_none_or(|at| at > Instant::now()) {
                let mut told = sync::lock(&self.wake.0);
                while !*told {
                    told = told.wait(&self.wake.1);
                }
                *told = false;
            }
        }
    }
}

/// Two change paths that an engine stages, one renames a file, one parks what another takes up again, and one waits for all
/// of it; who waits is told when nothing is left to wait for.
fn queue() {
    let shared = Arc::new(Shared::default());
    shared.change(|state| ["a", "b", "given up"].iter().for_each(|path| state.touch(&path_of(path))));
    let engine = shared.clone();
    let engine = thread::spawn(move || engine.stage());
    let mut threads: Threads = Vec::new();
    let writer = shared.clone();
    threads.push(Box::new(move || {
        for path in ["a", "b", "b"] {
            writer.change(|state| state.touch(&path_of(path)));
        }
    }));
    let renamer = shared.clone();
    threads.push(Box::new(move || {
        renamer.change(|state| {
            let (from, to) = (path_of("b"), path_of("c"));
            let followers = state.queue.leave(&from, Ino(5));
            // As the filesystem has it: what the engine has in hand is not taken from it.
            if state.queue.is_active(&from) {
                state.touch(&from);
            } else {
                state.queue.remove(&from);
                state.newest.remove(&from);
                state.staged.remove(&from);
            }
            state.touch(&to);
            state.queue.join(&followers, &to, 1, false);
        });
    }));
    let parker = shared.clone();
    threads.push(Box::new(move || {
        let path = path_of("given up");
        parker.change(|state| {
            if state.queue.get(&path).is_some_and(|entry| entry.phase == Phase::Waiting) {
                state.queue.park(&path, "refused".into(), Parked::Person);
            }
        });
        parker.progress.notify_all();
        parker.change(|state| state.touch(&path));
    }));
    for scope in [Scope::Waited, Scope::Fixed] {
        let waiter = shared.clone();
        threads.push(Box::new(move || {
            let (id, wanted) = waiter.change(|state| {
                let paths: Vec<RepoPath> = state.queue.iter().map(|(path, _)| path.clone()).collect();
                (state.queue.barrier(&paths, scope, Ino(9), |_| 1), paths)
            });
            let mut state = sync::lock(&waiter.state);
            while !state.queue.barrier_progress(id).1 {
                state = state.wait(&waiter.progress);
            }
            let (progress, _) = state.queue.barrier_progress(id);
            assert!(progress.files_done + progress.files_failed == progress.files_total, "{progress:?} of {wanted:?}");
            state.queue.drop_barrier(id);
        }));
    }
    together(threads);
    shared.change(|state| state.ended = true);
    shared.wake_engine();
    engine.join().unwrap();
    let state = sync::lock(&shared.state);
    assert_eq!(state.staged, state.newest, "what was staged last, and what was written last");
}

#[test]
fn schedules_of_the_queue_lose_no_change_and_end_every_wait() {
    check(queue);
}

#[test]
fn schedules_find_a_confirmation_that_counts_for_what_came_after_it() {
    finds("a confirmation counts for what came after it", queue);
}
