//! Ctrl-C while waiting: noticed, so that the command can say what becomes of the rest.

use std::sync::atomic::{AtomicBool, Ordering};

static SEEN: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_: libc::c_int) {
    SEEN.store(true, Ordering::Relaxed);
}

/// From now on SIGINT and SIGTERM only make [`seen`] true, and end a blocking read; a second one ends the command.
pub fn catch() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: a zeroed sigaction is valid; the handler only stores to an atomic, which is async-signal-safe.
        // Without SA_RESTART a read returns EINTR.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = note as extern "C" fn(libc::c_int) as libc::sighandler_t;
            action.sa_flags = libc::SA_RESETHAND;
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
    }
}

/// Whether one came since [`catch`].
pub fn seen() -> bool {
    SEEN.load(Ordering::Relaxed)
}
