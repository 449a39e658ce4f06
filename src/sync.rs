//! Locks under which there is memory work alone. With debug assertions, as in tests, waiting for the disk under one is a
//! panic that names what was waited for.
//!
//! The locks are the standard library's. In unit tests a lock that is made within a [schedule](schedules) is the
//! checker's, which decides who goes on at each of them.

#[cfg(test)]
mod scheduled;
#[cfg(test)]
pub(crate) mod schedules;

use std::ops::{Deref, DerefMut};
use std::sync::PoisonError;
#[cfg(not(test))]
pub use std::sync::{Condvar, Mutex, MutexGuard};

#[cfg(test)]
pub use scheduled::{Condvar, Mutex, MutexGuard};

#[cfg(debug_assertions)]
thread_local! {
    /// How many such locks this thread holds.
    static HELD: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

/// Changes how many such locks this thread holds, and says how many there are then.
#[cfg(debug_assertions)]
fn held(change: i32) -> u32 {
    #[cfg(test)]
    if let Some(held) = scheduled::held(change) {
        return held;
    }
    HELD.set(HELD.get().saturating_add_signed(change));
    HELD.get()
}

/// A lock that is held.
pub struct Locked<'a, T> {
    guard: MutexGuard<'a, T>,
    _counted: Counted,
}

struct Counted;

impl Counted {
    fn new() -> Self {
        #[cfg(debug_assertions)]
        held(1);
        Self
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        #[cfg(debug_assertions)]
        held(-1);
    }
}

/// Takes a lock. After a panic of another holder too: what is guarded is as it was then, and going on with that is better
/// than losing the mount.
pub fn lock<T>(mutex: &Mutex<T>) -> Locked<'_, T> {
    Locked { guard: mutex.lock().unwrap_or_else(PoisonError::into_inner), _counted: Counted::new() }
}

impl<T> Locked<'_, T> {
    /// Lets go of the lock until `condition` is notified, and takes it again.
    pub fn wait(self, condition: &Condvar) -> Self {
        let Self { guard, _counted } = self;
        let guard = condition.wait(guard).unwrap_or_else(PoisonError::into_inner);
        Self { guard, _counted }
    }
}

impl<T> Deref for Locked<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for Locked<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

/// To be called before this thread waits for the disk.
///
/// # Panics
/// With debug assertions, when it holds a [lock](Locked).
pub fn may_wait(what: &dyn std::fmt::Debug) {
    #[cfg(debug_assertions)]
    assert!(held(0) == 0 || std::thread::panicking(), "{what:?} under a lock that does not wait for the disk");
    let _ = what;
}

/// Whether a unit test has this mistake made on purpose, to see that it is found.
#[cfg(not(test))]
pub(crate) const fn mistaken(_mistake: &str) -> bool {
    false
}

#[cfg(test)]
pub(crate) use schedules::mistaken;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_for_the_disk_under_a_lock_is_told() {
        let mutex = Mutex::new(1);
        may_wait(&"a flush");
        let held = lock(&mutex);
        let told = std::thread::spawn(|| may_wait(&"a flush of another thread")).join();
        assert!(told.is_ok() && *held == 1);
        let told = std::panic::catch_unwind(|| may_wait(&"a flush")).unwrap_err();
        let told = told.downcast_ref::<String>().unwrap();
        assert_eq!(told, "\"a flush\" under a lock that does not wait for the disk");
        drop(held);
        may_wait(&"a flush");
    }
}
