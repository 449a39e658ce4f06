//! Direct I/O (`O_DIRECT`), beside programs that read the same file through the kernel's cache.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::mounted::TestMount;

/// As much as xfstests generic/451 writes at once.
const FILE_BYTES: usize = 655_360;

/// Memory that direct I/O takes: it begins at a page.
struct Aligned(*mut u8, Layout);

impl Aligned {
    fn filled(byte: u8, len: usize) -> Self {
        let layout = Layout::from_size_align(len, 4096).unwrap();
        // SAFETY: the layout has a size above 0.
        let memory = Self(unsafe { alloc_zeroed(layout) }, layout);
        assert!(!memory.0.is_null());
        // SAFETY: of that length, and nobody else's.
        unsafe { std::slice::from_raw_parts_mut(memory.0, len) }.fill(byte);
        memory
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: of that length, and changed by `read` alone.
        unsafe { std::slice::from_raw_parts(self.0, self.1.size()) }
    }

    fn read(&mut self, file: &File) -> usize {
        // SAFETY: of that length, and nobody else's.
        file.read_at(unsafe { std::slice::from_raw_parts_mut(self.0, self.1.size()) }, 0).unwrap()
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.0, self.1) };
    }
}

/// `struct iocb` of `linux/aio_abi.h`.
#[repr(C)]
#[derive(Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    descriptor: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event_descriptor: u32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Default)]
struct Event {
    data: u64,
    iocb: u64,
    result: i64,
    result2: i64,
}

const IOCB_CMD_PWRITE: u16 = 1;

/// A queue of requests that the kernel carries out beside the program (`io_submit(2)`), as databases use it.
struct Aio(libc::c_ulong);

impl Aio {
    fn new() -> Self {
        let mut context: libc::c_ulong = 0;
        // SAFETY: the call writes a number.
        let made = unsafe { libc::syscall(libc::SYS_io_setup, 8, &raw mut context) };
        assert_eq!(made, 0, "{}", io::Error::last_os_error());
        Self(context)
    }

    /// Writes at the beginning of a file, and returns when it is done.
    fn write(&self, file: &File, content: &Aligned) {
        let mut request = Iocb {
            opcode: IOCB_CMD_PWRITE,
            descriptor: file.as_raw_fd().cast_unsigned(),
            buffer: content.0 as u64,
            bytes: content.1.size() as u64,
            ..Iocb::default()
        };
        let mut requests = [&raw mut request];
        let mut event = Event::default();
        // SAFETY: the request and its bytes outlive the wait for its end.
        let (submitted, ended) = unsafe {
            let submitted = libc::syscall(libc::SYS_io_submit, self.0, 1, requests.as_mut_ptr());
            let null = std::ptr::null::<libc::timespec>();
            (submitted, libc::syscall(libc::SYS_io_getevents, self.0, 1, 1, &raw mut event, null))
        };
        assert_eq!((submitted, ended), (1, 1), "{}", io::Error::last_os_error());
        assert_eq!(event.result, content.1.size() as i64);
    }
}

impl Drop for Aio {
    fn drop(&mut self) {
        // SAFETY: nothing is under way.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.0) };
    }
}

fn open_direct(path: &Path) -> File {
    File::options().read(true).write(true).create(true).truncate(false).custom_flags(libc::O_DIRECT).open(path).unwrap()
}

/// What xfstests generic/451 does, some hundred times: a file is written anew by AIO with `O_DIRECT` while others read
/// it, and then read.
fn writes_beside_readers(test: &TestMount) {
    let path = test.at("cycle");
    fs::write(&path, [0; FILE_BYTES]).unwrap();
    let patterns = [Aligned::filled(0x55, FILE_BYTES), Aligned::filled(0xaa, FILE_BYTES)];
    let (aio, ended) = (Aio::new(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    assert_eq!(fs::read(&path).unwrap().len(), FILE_BYTES);
                }
            });
        }
        let _ends = Ends(&ended);
        let mut direct = Aligned::filled(0, FILE_BYTES);
        for round in 0..300 {
            let pattern = &patterns[round % 2];
            aio.write(&open_direct(&path), pattern);
            let stale =
                fs::read(&path).unwrap().iter().zip(pattern.bytes()).filter(|(read, wrote)| read != wrote).count();
            assert_eq!(stale, 0, "of {FILE_BYTES} bytes are stale in a buffered read after write {round}");
            assert_eq!(direct.read(&open_direct(&path)), FILE_BYTES);
            assert!(direct.bytes() == pattern.bytes(), "a direct read is stale after write {round}");
        }
    });
}

/// Ends the readers, also of a test that fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn what_was_written_by_aio_with_o_direct_is_what_buffered_readers_see() {
    for options in [&["-o", "passthrough=never", "--settle", "3600"][..], &["--settle", "3600"], &["--settle", "0.1"]] {
        let test = TestMount::with(crate::server::url(), options);
        writes_beside_readers(&test);
        test.unmount_and_compare();
    }
}
