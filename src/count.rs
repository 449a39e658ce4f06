//! Counts that are kept beside what they count: how many wait, hold, are open. One that is wrong is a bug elsewhere, and is
//! not to be hidden by stopping at nothing.

use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number that counts.
pub trait Count: Copy + Display + Default {
    /// Less by `some`, if it is so much.
    fn less(self, some: Self) -> Option<Self>;
}

macro_rules! counts {
    ($($number:ty)*) => {
        $(impl Count for $number {
            fn less(self, some: Self) -> Option<Self> {
                self.checked_sub(some)
            }
        })*
    };
}

counts!(u32 u64 usize);

/// Takes `some` of what is counted from its count. `invariant` is the name that docs/INVARIANTS.md has for what makes sure
/// that the count is so much.
///
/// # Panics
/// With debug assertions, when there are fewer. Without them the count is none from then on, and the log says so: what the
/// mount holds is worth more than the count.
pub fn take<T: Count>(count: &mut T, some: T, invariant: &'static str) {
    *count = left(*count, some, invariant);
}

/// [`take`] from a count that others change at the same time.
///
/// # Panics
/// As [`take`].
pub fn take_shared(count: &AtomicU64, some: u64, invariant: &'static str) {
    change_shared(count, some, 0, invariant);
}

/// Counts `after` where `before` was counted, beside others who change it.
///
/// # Panics
/// As [`take`].
pub fn change_shared(count: &AtomicU64, before: u64, after: u64, invariant: &'static str) {
    let mut found = count.load(Ordering::Relaxed);
    loop {
        let next = left(found, before, invariant).saturating_add(after);
        match count.compare_exchange_weak(found, next, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return,
            Err(now) => found = now,
        }
    }
}

fn left<T: Count>(count: T, some: T, invariant: &'static str) -> T {
    count.less(some).unwrap_or_else(|| {
        // A second panic would end the process, and hide the first.
        debug_assert!(std::thread::panicking(), "{invariant}: {some} go of {count}");
        tracing::error!(invariant, %count, taken = %some, "a count was wrong, and is set to none: please report this");
        T::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_goes_down_and_one_that_is_wrong_is_told_by_its_name() {
        let mut count = 3_u32;
        take(&mut count, 2, "handles.counts");
        assert_eq!(count, 1);
        let shared = AtomicU64::new(10);
        take_shared(&shared, 4, "backing.used");
        change_shared(&shared, 6, 9, "backing.used");
        assert_eq!(shared.load(Ordering::Relaxed), 9);
        let told = std::panic::catch_unwind(|| take(&mut 1_u64, 2, "queue.barriers")).unwrap_err();
        assert_eq!(told.downcast_ref::<String>().unwrap(), "queue.barriers: 2 go of 1");
        let told = std::panic::catch_unwind(|| take_shared(&AtomicU64::new(1), 2, "backing.used")).unwrap_err();
        assert_eq!(told.downcast_ref::<String>().unwrap(), "backing.used: 2 go of 1");
    }

    #[test]
    fn amid_a_panic_a_wrong_count_is_set_to_none() {
        struct Ends(u32);
        impl Drop for Ends {
            fn drop(&mut self) {
                take(&mut self.0, 2, "handles.counts");
                assert_eq!(self.0, 0);
            }
        }
        let told = std::panic::catch_unwind(|| {
            let _ends = Ends(1);
            panic!("the first one");
        });
        assert_eq!(told.unwrap_err().downcast_ref::<&str>(), Some(&"the first one"));
    }
}
