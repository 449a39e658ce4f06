//! Bytes: read and written through the daemon.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::fs::{Fs, FsError, Need, Op, State, now};
use crate::namespace::{Content, Ino};

impl Fs {
    /// Bytes of an open file; shorter at its end.
    ///
    /// # Errors
    /// [`FsError::BadHandle`]; the server's when the bytes must be fetched.
    pub fn read(&self, handle: u64, offset: u64, length: usize) -> Op<Vec<u8>> {
        let (file, size) = {
            let mut state = self.begin();
            let ino = state.handles.reader(handle)?;
            state.look(ino, self);
            let (_, size) = state.content(ino).ok_or(FsError::Stale)?;
            (self.attached(&state, ino)?, size)
        };
        let length = length.min(usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX));
        let mut bytes = vec![0; length];
        let mut filled = 0;
        while filled < length {
            match file.read_at(&mut bytes[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }

    /// The local file behind an open one.
    pub(in crate::fs) fn attached(&self, state: &State, ino: Ino) -> Op<Arc<File>> {
        match state.handles.local(ino) {
            Some(file) => Ok(file.clone()),
            None => Err(crate::fs::Stop::Need(Need::Fetch(ino))),
        }
    }

    /// Writes to an open file, and returns how many bytes: fewer where the disk fails on the way. They are in the spool
    /// file, in the kernel, when this returns.
    ///
    /// # Errors
    /// [`FsError::NoSpace`] when the spool's limit or the disk is reached.
    pub fn write(&self, handle: u64, offset: u64, data: &[u8]) -> Op<usize> {
        let end = offset.checked_add(data.len() as u64).ok_or(FsError::Invalid)?;
        let (ino, file, shaped, reserved) = {
            let mut state = self.begin();
            let ino = state.handles.writer(handle)?;
            state.look(ino, self);
            let (content, size) = state.content(ino).ok_or(FsError::Stale)?;
            match content {
                Content::Remote { .. } => return Err(crate::fs::Stop::Need(Need::Own(ino))),
                Content::Local { spool, .. } if state.backing.is_held(*spool) => {
                    return Err(crate::fs::Stop::Need(Need::Own(ino)));
                }
                Content::Local { .. } => {}
            }
            let file = state.writable(ino, self)?;
            let uneven = state.backing.is_uneven(ino);
            let reserved = self.reserve_range(&file, size, uneven, offset, end)?;
            state.handles.begin_writing(ino);
            (ino, file, uneven || offset > size, reserved)
        };
        let (written, failed) = self.put(&file, data, offset);
        let end = if failed.is_some() { offset + written as u64 } else { end };
        self.change(|state| {
            state.handles.end_writing(ino);
            self.spool.release(reserved);
            // What a failed write left counts: it may be in the middle of what was there.
            if written > 0 || failed.is_none() {
                match shaped || state.backing.is_uneven(ino) {
                    true => state.reshaped(ino, |size| size.max(end), &file, self),
                    false => state.wrote(ino, |size| size.max(end), self),
                }
            }
            Ok(())
        })?;
        match failed {
            Some(error) if written == 0 => Err(error.into()),
            _ => Ok(written),
        }
    }
}

impl State {
    /// The content changed: a new generation, new times, and the paths are owed again.
    pub(in crate::fs) fn wrote(&mut self, ino: Ino, length: impl FnOnce(u64) -> u64, fs: &Fs) {
        if self.tree.get(ino).is_none() {
            return;
        }
        if let Some((before, after)) = self.tree.wrote(ino, now(), length)
            && !self.backing.is_uneven(ino)
        {
            fs.spool.recount(before, after);
        }
        self.saw(ino, fs);
        self.changed(ino, fs);
    }

    /// The paths of a file are owed again: once, until its writers have closed it.
    pub(in crate::fs) fn changed(&mut self, ino: Ino, fs: &Fs) {
        if self.handles.note_change(ino) {
            self.touch_file(ino, fs.options.settle);
        }
    }

    /// The local file of an open one, to be changed.
    pub(in crate::fs) fn writable(&self, ino: Ino, fs: &Fs) -> Op<Arc<File>> {
        match (self.handles.local(ino), self.content(ino)) {
            // What is lent is open for reading alone, or it would count as a writer. Few come this way.
            (Some(_), Some((Content::Local { spool, .. }, _))) if self.handles.is_lent(ino) => {
                Ok(Arc::new(fs.spool.file(*spool)?))
            }
            (Some(file), _) => Ok(file.clone()),
            _ => Err(FsError::BadHandle.into()),
        }
    }
}

pub(in crate::fs) fn need_bytes(ino: Ino, size: u64) -> crate::fs::Stop {
    crate::fs::Stop::Need(if size == 0 { Need::Empty(ino) } else { Need::Own(ino) })
}
