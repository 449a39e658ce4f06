//! Lines with open files beside them, over a Unix socket (`unix(7)`, `SCM_RIGHTS`): what one process may read, another
//! reads for it.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// Most files beside one line. The kernel takes 253 (`SCM_MAX_FD`); both sides hold the files of several lines at a
/// time, and processes are given 1024 as a rule.
pub const FILES_MAX: usize = 32;
/// The longest line: some thousand names.
const LINE_LIMIT_BYTES: usize = 16 << 20;

/// Sends `line`, which ends with its newline, with open files.
///
/// # Errors
/// The socket's; [`io::ErrorKind::InvalidInput`] for more than [`FILES_MAX`] files.
pub fn send(stream: &mut UnixStream, line: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
    if files.is_empty() {
        return stream.write_all(line);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    // The buffer alone would let one more pass: it is rounded up.
    if files.len() > FILES_MAX || !beside.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let sent = loop {
        match sendmsg(&*stream, &[IoSlice::new(line)], &mut beside, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            sent => break sent?,
        }
    };
    stream.write_all(&line[sent..])
}

/// The end that takes such lines.
pub struct Receiver {
    stream: UnixStream,
    /// Bytes that are not a whole line yet.
    partial: Vec<u8>,
    /// The files of each line that has some and has not been asked for them yet. They may be here before the line is: the
    /// socket joins what was sent without files to what follows it.
    files: VecDeque<Vec<OwnedFd>>,
}

impl Receiver {
    /// Nothing may have been read ahead from `stream`: files that came with it would be lost.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, partial: Vec::new(), files: VecDeque::new() }
    }

    /// The next line, without its newline; `None` at the end. Its files have arrived when this returns.
    ///
    /// # Errors
    /// The socket's; [`io::ErrorKind::InvalidData`] for a line that does not end.
    pub fn line(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut searched = 0;
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.partial[searched..]) {
                let mut line: Vec<u8> = self.partial.drain(..=searched + end).collect();
                line.pop();
                return Ok(Some(line));
            }
            searched = self.partial.len();
            if searched > LINE_LIMIT_BYTES {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if self.receive()? == 0 {
                return Ok(None);
            }
        }
    }

    /// The files of the oldest line that came with some and has not been asked. Out of descriptors, the kernel drops
    /// files: then there are fewer than were sent.
    pub fn files(&mut self) -> Vec<OwnedFd> {
        self.files.pop_front().unwrap_or_default()
    }

    fn receive(&mut self) -> io::Result<usize> {
        let mut bytes = [0; 64 << 10];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
        let mut beside = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            match recvmsg(&self.stream, &mut [IoSliceMut::new(&mut bytes)], &mut beside, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => {}
                received => break received?,
            }
        };
        let mut files = Vec::new();
        for message in beside.drain() {
            if let RecvAncillaryMessage::ScmRights(some) = message {
                files.extend(some);
            }
        }
        let lost = received.flags.contains(ReturnFlags::CTRUNC);
        if lost {
            tracing::warn!("files that a command passed were lost: this process has too many open");
        }
        // Those of one line, and of one alone: what came with files ends what is received at a time (`unix(7)`), and
        // their line has its place even if all were lost.
        if lost || !files.is_empty() {
            self.files.push_back(files);
        }
        self.partial.extend_from_slice(&bytes[..received.bytes]);
        Ok(received.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn files_arrive_with_their_lines_however_the_socket_cuts_them() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let names = ["a", "b", "c"];
        for name in names {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        let files: Vec<File> = names.iter().map(|name| File::open(dir.path().join(name)).unwrap()).collect();
        let long = [&b"x".repeat(300_000)[..], b"\n"].concat();
        let sender = std::thread::spawn(move || {
            send(&mut ours, b"one\n", &[files[0].as_fd()]).unwrap();
            send(&mut ours, b"none\n", &[]).unwrap();
            send(&mut ours, &long, &[files[1].as_fd(), files[2].as_fd()]).unwrap();
        });
        let mut receiver = Receiver::new(theirs);
        assert_eq!(receiver.line().unwrap().unwrap(), b"one");
        assert_eq!(read(&mut receiver), ["a"]);
        assert_eq!(receiver.line().unwrap().unwrap(), b"none");
        assert_eq!(receiver.line().unwrap().unwrap().len(), 300_000);
        assert_eq!(read(&mut receiver), ["b", "c"]);
        sender.join().unwrap();
        assert!(receiver.line().unwrap().is_none() && receiver.files().is_empty());
    }

    fn read(receiver: &mut Receiver) -> Vec<String> {
        let text = |file: OwnedFd| std::io::read_to_string(File::from(file)).unwrap();
        receiver.files().into_iter().map(text).collect()
    }

    #[test]
    fn a_line_without_files_takes_none_of_those_that_come_with_the_next() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), "a").unwrap();
        for _ in 0..2 {
            let file = File::open(dir.path().join("a")).unwrap();
            send(&mut ours, b"none\n", &[]).unwrap();
            send(&mut ours, b"one\n", &[file.as_fd()]).unwrap();
        }
        drop(ours);
        let mut receiver = Receiver::new(theirs);
        for _ in 0..2 {
            assert_eq!(receiver.line().unwrap().unwrap(), b"none");
            assert_eq!(receiver.line().unwrap().unwrap(), b"one");
            assert_eq!(read(&mut receiver), ["a"]);
        }
        assert!(receiver.line().unwrap().is_none() && receiver.files().is_empty());
    }

    #[test]
    fn too_many_files_are_refused() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let many = vec![theirs.as_fd(); FILES_MAX + 1];
        assert_eq!(send(&mut ours, b"\n", &many).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
