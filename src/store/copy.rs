//! Copies of files: by sharing blocks where the filesystem can, and with their holes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use super::holes::{may_have, next_data};

/// Whether the filesystem of `dir` copies files by sharing their blocks (`ioctl_ficlone(2)`); `None` when no file can be
/// made there to try it.
pub fn shares_blocks(dir: &Path) -> Option<bool> {
    let nameless = || {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_TMPFILE).open(dir).ok()
    };
    let (from, to) = (nameless()?, nameless()?);
    from.write_all_at(&[0; 4096], 0).ok()?;
    Some(rustix::fs::ioctl_ficlone(&to, &from).is_ok())
}

/// Copies a whole file over an empty one: shares its blocks where the filesystem can, else copies what is not hole.
///
/// # Errors
/// The filesystem's.
pub fn copy_content(from: &File, to: &File) -> io::Result<u64> {
    let size = from.metadata()?.len();
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(size);
    }
    let mut at = 0;
    while at < size {
        let Some((begin, end)) = next_data(from, at, size) else { break };
        at = begin + copy_range(from, begin, to, begin, end - begin)?;
        if at < end {
            // Cut short meanwhile.
            return Ok(at);
        }
    }
    // A hole at the end.
    if to.metadata()?.len() < size {
        to.set_len(size)?;
    }
    Ok(size)
}

/// Copies a range, in the kernel where it can; less where the file ends.
///
/// # Errors
/// The filesystem's.
pub fn copy_range(from: &File, from_offset: u64, to: &File, to_offset: u64, length: u64) -> io::Result<u64> {
    let (mut at, mut out) = (from_offset, to_offset);
    let end = from_offset.saturating_add(length);
    while at < end {
        let length = (end - at).min(1 << 30) as usize;
        match rustix::fs::copy_file_range(from, Some(&mut at), to, Some(&mut out), length) {
            Ok(0) => break,
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => {}
            Err(error) if cannot_copy(error) => {
                let mut buffer = vec![0; (end - at).min(1 << 20) as usize];
                while at < end {
                    let room = (end - at).min(buffer.len() as u64) as usize;
                    let read = from.read_at(&mut buffer[..room], at)?;
                    if read == 0 {
                        break;
                    }
                    to.write_all_at(&buffer[..read], out)?;
                    (at, out) = (at + read as u64, out + read as u64);
                }
                break;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(at - from_offset)
}

/// A file of at most this size is copied with reads and writes, which costs less than setting up a copy in the kernel.
const SMALL_BYTES: u64 = 256 << 10;
/// Copied between two looks at whether to go on.
const STRETCH_BYTES: u64 = 16 << 20;

/// Copies a file that may change meanwhile, up to the end that it has then, and keeps its holes. Before each stretch
/// `go_on` is told how much is copied, and how long the copy is going to be at least. Returns the copy's length.
///
/// # Errors
/// The filesystem's, and `go_on`'s.
pub fn copy_growing(
    from: &File,
    to: &File,
    buffer: &mut Vec<u8>,
    mut go_on: impl FnMut(u64, u64) -> io::Result<()>,
) -> io::Result<u64> {
    let found = from.metadata()?;
    let mut size = found.len();
    go_on(0, size)?;
    if size > 0 && rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(to.metadata()?.len());
    }
    let mut at = 0;
    if size > SMALL_BYTES {
        let holes = may_have(&found);
        while at < size {
            let end = match holes.then(|| next_data(from, at, size)) {
                Some(None) => break,
                Some(Some((data, hole))) => {
                    at = data;
                    hole
                }
                None => size,
            };
            let stretch = (end - at).min(STRETCH_BYTES);
            go_on(at, at + stretch)?;
            let (mut source, mut target) = (at, at);
            match rustix::fs::copy_file_range(from, Some(&mut source), to, Some(&mut target), stretch as usize) {
                // Shorter than it was.
                Ok(0) => {
                    size = at;
                    break;
                }
                Ok(copied) => at += copied as u64,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) if cannot_copy(error) => break,
                Err(error) => return Err(error.into()),
            }
        }
        // Without an error on the way, all there is left to find is what was added meanwhile; with one, all of it.
        if at >= size || holes && next_data(from, at, size).is_none() {
            to.set_len(size)?;
            at = size;
        }
    }
    buffer.resize(SMALL_BYTES as usize, 0);
    loop {
        let read = match from.read_at(buffer, at) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        if read == 0 {
            return Ok(at);
        }
        go_on(at, (at + read as u64).max(size))?;
        to.write_all_at(&buffer[..read], at)?;
        at += read as u64;
        // A file that still has the length it had is at its end; one of the kernel's own says 0 and has more.
        if at == size && size > 0 && read < buffer.len() && from.metadata()?.len() == size {
            return Ok(at);
        }
    }
}

/// Whether the kernel copies nothing between these two files (`copy_file_range(2)`), and somebody else has to.
fn cannot_copy(error: rustix::io::Errno) -> bool {
    use rustix::io::Errno;
    matches!(error, Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;

    fn content(file: &mut File) -> String {
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn a_copy_has_the_bytes_the_holes_and_what_was_added_meanwhile() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(dir.path().join(name)).unwrap()
        };
        for size in [0, 1, SMALL_BYTES - 1, SMALL_BYTES, SMALL_BYTES + 1, 3 << 20] {
            let (from, to) = (file("from"), file("to"));
            let content: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            from.write_all_at(&content, 0).unwrap();
            let mut told = 0;
            let length = copy_growing(&from, &to, &mut Vec::new(), |_, upto| {
                told = told.max(upto);
                Ok(())
            });
            assert_eq!((length.unwrap(), told), (size, size));
            assert!(fs::read(dir.path().join("to")).unwrap() == content, "{size}");
        }
        let (from, to) = (file("sparse"), file("to"));
        from.write_all_at(b"begins", 0).unwrap();
        from.write_all_at(b"ends", 40 << 20).unwrap();
        from.set_len(64 << 20).unwrap();
        let mut added = false;
        let length = copy_growing(&from, &to, &mut Vec::new(), |_, _| {
            if !std::mem::replace(&mut added, true) {
                from.write_all_at(b"more", 64 << 20)?;
            }
            Ok(())
        });
        assert_eq!(length.unwrap(), (64 << 20) + 4);
        assert!(to.metadata().unwrap().blocks() < 1000, "the holes were filled");
        assert!(fs::read(dir.path().join("sparse")).unwrap() == fs::read(dir.path().join("to")).unwrap());
        let stopped = copy_growing(&from, &to, &mut Vec::new(), |_, _| Err(io::ErrorKind::Interrupted.into()));
        assert_eq!(stopped.unwrap_err().kind(), io::ErrorKind::Interrupted);
    }

    #[test]
    fn a_copy_has_the_bytes_and_the_holes() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.write_all_at(b"begin", 0).unwrap();
        from.write_all_at(b"middle", 8 << 20).unwrap();
        from.set_len(16 << 20).unwrap();
        assert_eq!(copy_content(&from, &to).unwrap(), 16 << 20);
        let read = |at| {
            let mut bytes = [9; 6];
            to.read_exact_at(&mut bytes, at).unwrap();
            bytes
        };
        assert_eq!((read(0), read(8 << 20), read((16 << 20) - 6)), (*b"begin\0", *b"middle", [0; 6]));
        assert_eq!(copy_range(&from, (8 << 20) + 3, &to, 6, 3).unwrap(), 3);
        assert_eq!(copy_range(&from, (16 << 20) - 2, &to, 9, 30).unwrap(), 2);
        let mut bytes = [9; 12];
        to.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"begin\0dle\0\0\0");
    }

    #[test]
    fn a_copy_has_the_bytes() {
        let (from, mut to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.write_all_at(b"some bytes", 0).unwrap();
        assert_eq!(copy_content(&from, &to).unwrap(), 10);
        assert_eq!(content(&mut to), "some bytes");
    }
}
