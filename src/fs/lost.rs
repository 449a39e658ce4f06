//! Files that no record names: nothing is deleted before a person says so.
//!
//! They lie in `lost+found` of the state directory. A spool file that a crash left without a name goes there under the name
//! `stray-...`, is the first to make way when room is short, and goes after two weeks. What a repair salvages has a name that
//! tells what it was; it shows in the mount's `lost+found`, read-only, and is not staged until somebody moves it out.

use std::collections::{HashMap, HashSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::{Fs, FsError, State, base_attrs, unlisted_dir};
use crate::namespace::{Body, Content, Ino, ROOT, SpoolId, Timestamp};
use crate::path::Name;
use crate::store::disk::Disk;
use crate::store::spool::{Spool, room_of};

/// The directory's name, here and in the mount.
pub const LOST: &str = "lost+found";
/// Begins the name of what goes by itself.
const STRAY: &str = "stray-";
/// How long a stray is kept.
const KEPT: Duration = Duration::from_secs(14 * 24 * 3600);

/// What tells a file from all others.
type Identity = (u64, u64);
/// Spool files that no record names and that have a name in `lost+found`.
pub(super) type Named = HashMap<Identity, SpoolId>;

fn identity(file: &Metadata) -> Identity {
    (file.dev(), file.ino())
}

/// The directory in a state directory.
pub struct LostFound {
    disk: Disk,
    dir: PathBuf,
}

impl LostFound {
    /// Of the state directory `state`.
    pub fn new(disk: &Disk, state: &Path) -> Self {
        Self { disk: disk.clone(), dir: state.join(LOST) }
    }

    /// What lies in it, by name; nothing when it is not there.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn entries(&self) -> io::Result<Vec<(PathBuf, Metadata)>> {
        let mut found = Vec::new();
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_file() {
                found.push((entry.path(), metadata));
            }
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(found)
    }

    /// Gives a spool file a second name here; one that it has already will do. Takes no room for its bytes.
    ///
    /// # Errors
    /// The filesystem's.
    pub fn link(&self, from: &Path, name: &str) -> io::Result<()> {
        self.disk.make_dirs(&self.dir)?;
        let known = identity(&fs::metadata(from)?);
        if self.entries()?.iter().any(|(_, metadata)| identity(metadata) == known) {
            return Ok(());
        }
        self.disk.link(from, &self.free(name))
    }

    /// Makes the names survive a power loss.
    ///
    /// # Errors
    /// The filesystem's.
    pub fn flush(&self) -> io::Result<()> {
        if self.dir.is_dir() { self.disk.flush_dir(&self.dir) } else { Ok(()) }
    }

    fn free(&self, name: &str) -> PathBuf {
        let mut names = (0..).map(|n| if n == 0 { name.to_owned() } else { format!("{name}.{n}") });
        let free = names.find(|name| fs::symlink_metadata(self.dir.join(name)).is_err());
        self.dir.join(free.unwrap_or_else(|| name.to_owned()))
    }

    /// Of spool files that no record names, those that have a name here, and the others.
    ///
    /// # Errors
    /// When this directory cannot be read.
    pub(super) fn partition(&self, spool: &Spool, strays: Vec<SpoolId>) -> io::Result<(Named, Vec<SpoolId>)> {
        let known: HashSet<Identity> = self.entries()?.iter().map(|(_, file)| identity(file)).collect();
        if known.is_empty() {
            return Ok((Named::new(), strays));
        }
        let (mut named, mut others) = (Named::new(), Vec::new());
        for id in strays {
            match fs::symlink_metadata(spool.path_of(id)).map(|file| identity(&file)) {
                Ok(file) if known.contains(&file) && !named.contains_key(&file) => drop(named.insert(file, id)),
                _ => others.push(id),
            }
        }
        Ok((named, others))
    }

    /// Moves a spool file here that no record names.
    fn put_aside(&self, spool: &Spool, id: SpoolId) -> io::Result<()> {
        let from = spool.path_of(id);
        match fs::symlink_metadata(&from) {
            Ok(_) => {
                self.disk.make_dirs(&self.dir)?;
                self.disk.rename(&from, &self.free(&format!("{STRAY}{:x}", id.0)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn strays(&self) -> Vec<(PathBuf, Metadata)> {
        let is_stray =
            |path: &Path| path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(STRAY));
        let mut strays = self.entries().unwrap_or_default();
        strays.retain(|(path, _)| is_stray(path));
        // A rename sets the time of change: since then it lies here.
        strays.sort_by_key(|(_, file)| (file.ctime(), file.ctime_nsec()));
        strays
    }

    /// Removes strays, the oldest first, until `bytes` are free that were not; whether there were any.
    pub fn make_way(&self, bytes: u64) -> bool {
        let mut freed = 0;
        for (path, file) in self.strays() {
            if freed >= bytes {
                break;
            }
            tracing::info!(path = %path.display(), "room is short: a file that no record names makes way");
            if self.disk.remove(&path).is_ok() {
                freed += room_of(&file).max(1);
            }
        }
        freed > 0
    }

    /// Removes strays that have lain here for long enough.
    pub fn expire(&self, now: SystemTime) {
        let oldest = now.checked_sub(KEPT).and_then(|then| then.duration_since(SystemTime::UNIX_EPOCH).ok());
        let Some(oldest) = oldest.map(|since| since.as_secs() as i64) else { return };
        for (path, _) in self.strays().into_iter().take_while(|(_, file)| file.ctime() < oldest) {
            tracing::info!(path = %path.display(), "a file that no record names has lain here for two weeks");
            let _ = self.disk.remove(&path);
        }
    }
}

impl Fs {
    /// Moves spool files that a crash left without a name out of the way, up to `most`, each with a pause after it.
    pub(super) fn put_strays_aside(&self, most: usize, pause: Duration) {
        for _ in 0..most {
            let Some(id) = self.strays().pop() else { return };
            if let Err(error) = self.lost.put_aside(&self.spool, id) {
                // The next mount finds it again.
                tracing::warn!(%error, spool = id.0, "a file that no record names stays in the spool");
            }
            if !pause.is_zero() {
                std::thread::sleep(pause);
            }
        }
    }

    /// Lets go of strays that have lain aside for long enough; looked at once an hour.
    pub(super) fn expire_strays(&self) {
        const LOOKED_AT_EVERY: Duration = Duration::from_secs(3600);
        let mut next = self.expiry.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let now = std::time::Instant::now();
        if next.is_none_or(|next| next <= now) {
            *next = Some(now + LOOKED_AT_EVERY);
            self.lost.expire(SystemTime::now());
            self.expire_kept();
        }
    }

    fn strays(&self) -> crate::sync::MutexGuard<'_, Vec<SpoolId>> {
        self.strays.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Takes away what was salvaged and has been moved out or removed since, once that is on stable storage.
    pub(super) fn forget_salvaged(&self) -> Result<(), FsError> {
        let done: Vec<PathBuf> = {
            let mut state = self.begin();
            let State { tree, salvaged, .. } = &mut *state;
            salvaged.0.extract_if(|ino, _| !tree.is_lost(*ino)).map(|(_, path)| path).collect()
        };
        if done.is_empty() {
            return Ok(());
        }
        self.journal.sync(self.journal.append(&[]))?;
        for path in done {
            if let Err(error) = self.spool.disk().remove(&path) {
                tracing::warn!(%error, path = %path.display(), "what was moved out of lost+found keeps a name there");
            }
        }
        Ok(())
    }
}

impl State {
    /// Shows what a repair salvaged, in a directory of its own that is not on record.
    ///
    /// # Errors
    /// The filesystem's.
    pub(super) fn show_salvaged(
        &mut self,
        lost: &LostFound,
        spool: &Spool,
        named: &mut Named,
        options: &super::Options,
    ) -> io::Result<()> {
        let strays: HashSet<PathBuf> = lost.strays().into_iter().map(|(path, _)| path).collect();
        let mut salvaged = lost.entries()?;
        salvaged.retain(|(path, _)| !strays.contains(path));
        // A name that is left here of what was moved out is taken away now.
        if salvaged.iter().any(|(_, file)| file.nlink() > 1) {
            let used = self.spool_identities(spool);
            salvaged.retain(|(path, file)| !used.contains(&identity(file)) || lost.disk.remove(path).is_err());
        }
        let Ok(name) = Name::new(LOST.as_bytes()) else { return Ok(()) };
        if salvaged.is_empty() || self.tree.child(ROOT, &name).is_some() {
            return Ok(());
        }
        let dir = self.tree.show(ROOT, name, base_attrs(options, true, super::now()), unlisted_dir());
        self.tree.set_lost(dir);
        for (path, file) in salvaged {
            let name = path.file_name().and_then(|name| Name::from_os(name).ok());
            let Some(name) = name else { continue };
            // By the number that it has already: a full disk may have no room for another name.
            let id = match named.remove(&identity(&file)) {
                Some(id) => id,
                None => spool.link_in(&path)?,
            };
            let content = Content::Local { spool: id, generation: self.tree.fresh_generation(), hash: None };
            let time = file.modified().map_or_else(|_| super::now(), Timestamp::from);
            let body = Body::File { content, size: file.len() };
            let ino = self.tree.show(dir, name, base_attrs(options, false, time), body);
            let counted = self.note_room(ino, room_of(&file));
            spool.charge(counted);
            self.salvaged.0.insert(ino, path);
        }
        Ok(())
    }

    /// Refuses changes of what was salvaged, while it lies where a repair shows it.
    pub(super) fn check_open_to_change(&self, ino: Ino) -> super::Op<()> {
        match self.tree.lost() == Some(ino) || self.tree.is_lost(ino) {
            true => Err(FsError::ReadOnly.into()),
            false => Ok(()),
        }
    }

    fn spool_identities(&self, spool: &Spool) -> HashSet<Identity> {
        let files = self.tree.iter().filter_map(|(_, inode)| match &inode.body {
            Body::File { content: Content::Local { spool, .. }, .. } => Some(*spool),
            _ => None,
        });
        files.filter_map(|id| fs::metadata(spool.path_of(id)).ok()).map(|file| identity(&file)).collect()
    }
}

/// Files shown in `lost+found`, with the names that they have in the state directory.
#[derive(Default)]
pub(super) struct SalvagedFiles(HashMap<Ino, PathBuf>);
