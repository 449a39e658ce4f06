//! The locks of unit tests: the checker's where they are made within one of its schedules, else the standard library's.

use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use std::sync::{LockResult, PoisonError};

shuttle::thread_local! {
    /// How many locks without waiting a thread of the schedule holds: all of them run on one thread of the machine.
    static HELD: Cell<u32> = Cell::new(0);
}

/// Whether whoever calls is a thread of a schedule.
fn in_schedule() -> bool {
    shuttle::current::try_get_current_task().is_some()
}

/// As the function beside it has it, for a thread of a schedule.
pub(super) fn held(change: i32) -> Option<u32> {
    if !in_schedule() {
        return None;
    }
    let changed = HELD.try_with(|held| {
        held.set(held.get().saturating_add_signed(change));
        held.get()
    });
    // Gone at the end of the thread.
    Some(changed.unwrap_or(0))
}

/// As [`std::sync::Mutex`].
#[derive(Debug)]
pub enum Mutex<T> {
    /// The standard library's.
    Real(std::sync::Mutex<T>),
    /// The checker's.
    Scheduled(shuttle::sync::Mutex<T>),
}

/// As [`std::sync::MutexGuard`].
pub enum MutexGuard<'a, T> {
    /// Of the standard library's.
    Real(std::sync::MutexGuard<'a, T>),
    /// Of the checker's.
    Scheduled(shuttle::sync::MutexGuard<'a, T>),
}

/// As [`std::sync::Condvar`].
#[derive(Debug)]
pub enum Condvar {
    /// The standard library's.
    Real(std::sync::Condvar),
    /// The checker's.
    Scheduled(shuttle::sync::Condvar),
}

impl<T> Mutex<T> {
    /// As the standard library's.
    pub fn new(value: T) -> Self {
        match in_schedule() {
            true => Self::Scheduled(shuttle::sync::Mutex::new(value)),
            false => Self::Real(std::sync::Mutex::new(value)),
        }
    }

    /// As the standard library's.
    ///
    /// # Errors
    /// After a panic of another holder.
    pub fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        match self {
            Self::Real(mutex) => wrap(mutex.lock(), MutexGuard::Real),
            Self::Scheduled(mutex) => wrap(mutex.lock(), MutexGuard::Scheduled),
        }
    }
}

impl<T: Default> Default for Mutex<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl Default for Condvar {
    fn default() -> Self {
        Self::new()
    }
}

impl Condvar {
    /// As the standard library's.
    pub fn new() -> Self {
        match in_schedule() {
            true => Self::Scheduled(shuttle::sync::Condvar::new()),
            false => Self::Real(std::sync::Condvar::new()),
        }
    }

    /// As the standard library's.
    ///
    /// # Errors
    /// After a panic of another holder.
    ///
    /// # Panics
    /// With a lock that was not made where this was.
    pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
        match (self, guard) {
            (Self::Real(condition), MutexGuard::Real(guard)) => wrap(condition.wait(guard), MutexGuard::Real),
            (Self::Scheduled(condition), MutexGuard::Scheduled(guard)) => {
                wrap(condition.wait(guard), MutexGuard::Scheduled)
            }
            _ => panic!("a lock of a schedule, and a condition of none, or the other way round"),
        }
    }

    /// As the standard library's.
    pub fn notify_all(&self) {
        match self {
            Self::Real(condition) => condition.notify_all(),
            Self::Scheduled(condition) => condition.notify_all(),
        }
    }
}

fn wrap<G, W>(result: LockResult<G>, wrap: impl Fn(G) -> W) -> LockResult<W> {
    match result {
        Ok(guard) => Ok(wrap(guard)),
        Err(poisoned) => Err(PoisonError::new(wrap(poisoned.into_inner()))),
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        match self {
            Self::Real(guard) => guard,
            Self::Scheduled(guard) => guard,
        }
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        match self {
            Self::Real(guard) => guard,
            Self::Scheduled(guard) => guard,
        }
    }
}
