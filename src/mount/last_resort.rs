//! A process that is aborted, out of memory say, takes its mount along: everybody who enters a mount without a daemon
//! gets errors until a person removes it.
//!
//! All that the signal's handler needs is made beforehand: it may neither allocate nor take a lock (`signal-safety(7)`).

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};

use super::preflight::helper;

/// What is to be unmounted, and the command for who may not by himself.
struct Mounted {
    at: CString,
    helper: Option<(CString, [CString; 4])>,
}

static MOUNTED: AtomicPtr<Mounted> = AtomicPtr::new(null_mut());

/// From now on an abort unmounts what is at `mountpoint`, a mount of this process.
pub(super) fn arm(mountpoint: &Path) {
    let text = |bytes: &[u8]| CString::new(bytes).ok();
    let Some(at) = text(mountpoint.as_os_str().as_bytes()) else { return };
    let words = || Some([text(b"fusermount3")?, text(b"-uz")?, text(b"--")?, at.clone()]);
    let helper = helper().and_then(|path| Some((text(path.as_os_str().as_bytes())?, words()?)));
    // Never freed: the handler may be at it on any thread.
    MOUNTED.store(Box::into_raw(Box::new(Mounted { at, helper })), Ordering::Release);
    // SAFETY: a zeroed sigaction is valid, and the handler is a function of the right type that keeps to what handlers
    // may do.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = unmount as extern "C" fn(libc::c_int) as libc::sighandler_t;
        action.sa_flags = libc::SA_RESETHAND;
        libc::sigaction(libc::SIGABRT, &raw const action, null_mut());
    }
}

/// The mount is gone: what is at its place later is another's.
pub(super) fn disarm() {
    MOUNTED.store(null_mut(), Ordering::Release);
}

extern "C" fn unmount(_: libc::c_int) {
    let mounted = MOUNTED.swap(null_mut(), Ordering::AcqRel);
    // SAFETY: what was stored is never freed. umount2, fork, execv, waitpid and _exit are async-signal-safe; the texts end
    // in NUL and outlive the calls.
    unsafe {
        let Some(mounted) = mounted.as_ref() else { return };
        if libc::umount2(mounted.at.as_ptr(), libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) == 0 {
            return;
        }
        let Some((program, [name, option, end, at])) = &mounted.helper else { return };
        match libc::fork() {
            -1 => {}
            0 => {
                let words = [name.as_ptr(), option.as_ptr(), end.as_ptr(), at.as_ptr(), std::ptr::null()];
                libc::execv(program.as_ptr(), words.as_ptr());
                libc::_exit(127);
            }
            child => {
                libc::waitpid(child, null_mut(), 0);
            }
        }
    }
    // Returning, the process is aborted: the handler was for one time.
}
