//! What is ignored, in the tree: a file's name that a pattern matches is here, and for the server it is not. It has no path
//! that anything is owed for ([`Namespace::path_in`](crate::namespace::Namespace::path_in)), as a name that no server can
//! have, so nothing else has to know.
//!
//! A name is judged when it is made, and all names are when `.oxenignore` has become another. What comes of it is on record,
//! in the frame of what it follows from: after a crash nothing is concluded from what else is there, and what was ignored
//! stays so until it is judged again.
//!
//! What the base has is never ignored, nor what is in conflict, or staged by somebody else in the same workspace.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use super::ignored::{FILE, LONGEST_BYTES};
use super::rebase::Moved;
use super::staging::into_plain;
use super::tree::Token;
use super::{Fs, FsError, State, Version};
use crate::hash::ContentHash;
use crate::namespace::{Body, Content, Ino, ROOT, SpoolId};
use crate::path::{Name, RepoPath};
use crate::report::{BadPattern, Counts, IgnoredBy, Tally};
use crate::store::journal::Change;
use crate::workspace::{Revision, Source};
use crate::writeback::index::{Account, Staged};

/// How often, and how soon, it is looked again whether the file was closed.
const CLOSE_LOOKS: u32 = 4;
const CLOSE_LOOK: Duration = Duration::from_millis(50);

/// From how many files on the whole filesystem is flushed: a file by itself is about a millisecond, and of all that a
/// program leaves in a directory that is ignored there may be very many.
const FLUSHED_ONE_BY_ONE: usize = 64;

/// A directory's entry.
type Entry = (Ino, Name);

/// What `.oxenignore` is now.
enum Patterns {
    /// As it was when it was last read.
    AsKnown,
    /// Programs are writing it: what was read last holds.
    InWriting,
    /// Not there.
    Gone,
    /// A file with these bytes, and where they are.
    Is(Token, Where),
    /// Beside what is mounted, or in a directory that is not listed: the base tells.
    InBase,
}

enum Where {
    Spool,
    Cache(ContentHash),
}

/// What was read of it.
struct Text {
    hash: ContentHash,
    text: String,
}

impl State {
    /// The patterns are to be read anew, if they may be now.
    pub(super) fn patterns_changed(&self) -> bool {
        self.ignored.is_known() && !matches!(self.patterns(), Patterns::AsKnown | Patterns::InWriting)
    }

    fn patterns(&self) -> Patterns {
        let known = self.ignored.is_known();
        let root = Some(ROOT).filter(|_| self.tree.root_path().is_root()).and_then(|root| self.tree.dir(root));
        let found = match (root, Name::new(FILE.as_bytes())) {
            (Some(root), Ok(name)) => match root.children.get(&name) {
                None if !root.listed && !root.hidden.contains(&name) => Err(()),
                there => Ok(there.copied().filter(|ino| self.content(*ino).is_some())),
            },
            _ => Err(()),
        };
        let ino = match found {
            Err(()) if known && self.ignored.is_of(self.tree.base()) => return Patterns::AsKnown,
            Err(()) => return Patterns::InBase,
            Ok(None) if known && self.ignored.holds(None) => return Patterns::AsKnown,
            Ok(None) => return Patterns::Gone,
            Ok(Some(ino)) => ino,
        };
        let token = self.tree.token(ino);
        let being_written = self.handles.is_written(ino) || self.handles.is_changing(ino);
        match token {
            None => Patterns::AsKnown,
            _ if known && self.ignored.holds(token) => Patterns::AsKnown,
            _ if known && being_written => Patterns::InWriting,
            Some(token) => match token.on_server() {
                Some(hash) => Patterns::Is(token, Where::Cache(hash)),
                None => Patterns::Is(token, Where::Spool),
            },
        }
    }

    /// Whether a file's name is to be ignored that is not as the base has it.
    fn is_to_be_ignored(&self, path: &RepoPath) -> bool {
        let is_new = self.writeback.account(path).is_none_or(|account| account.base.is_none() && !account.theirs);
        is_new && self.writeback.conflict(path).is_none() && self.ignored.verdict(path).is_some()
    }

    /// What a change that was made, and is going on record, means for what is ignored.
    pub(super) fn judge_change(&mut self, change: &Change) -> Vec<Change> {
        match change {
            Change::Link { parent, name, ino } => self.judge_link(*parent, name, *ino),
            _ if !self.tree.ignores_any() => Vec::new(),
            Change::Account { path, .. } => self.heed_base(path).into_iter().collect(),
            Change::Rebase { .. } => {
                let ignored: Vec<RepoPath> = self.ignored_paths().map(|(path, _)| path).collect();
                ignored.iter().filter_map(|path| self.heed_base(path)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// A name was made, or moved with all below it: judges it by its path. Where it came from says nothing about where it is.
    fn judge_link(&self, parent: Ino, name: &Name, ino: Ino) -> Vec<Change> {
        // What no pattern is known for stays what it was.
        if !self.ignored.is_known() || (self.ignored.has_no_patterns() && !self.tree.ignores_any()) {
            return Vec::new();
        }
        let names = match self.tree.dir(ino) {
            Some(_) => self.tree.walk(ino),
            None => vec![(parent, name.clone(), ino)],
        };
        let files = names.into_iter().filter(|(.., child)| self.content(*child).is_some());
        let judged = files.filter_map(|(parent, name, _)| {
            let should = self.tree.path_at(parent, &name).is_ok_and(|path| self.is_to_be_ignored(&path));
            match (self.tree.is_ignored(parent, &name), should) {
                (false, true) => Some(Change::Ignore { parent, name }),
                (true, false) => Some(Change::Unignore { parent, name }),
                _ => None,
            }
        });
        judged.collect()
    }

    /// What is known of a path's base has changed: what the base has is not ignored.
    fn heed_base(&mut self, path: &RepoPath) -> Option<Change> {
        self.writeback.account(path).filter(|account| account.base.is_some())?;
        let (parent, name) = self.place_of(path)?;
        self.tree.is_ignored(parent, &name).then(|| {
            self.writeback.owe(path, Duration::ZERO);
            Change::Unignore { parent, name }
        })
    }

    /// What was found staged here, and is ignored, is read where it is staged until its bytes are here, and then unstaged.
    pub(super) fn unstage_ignored(&mut self, path: &RepoPath) {
        let Some((parent, name)) = self.place_of(path).filter(|(parent, name)| self.tree.is_ignored(*parent, name))
        else {
            return;
        };
        let Some(ino) = self.tree.child(parent, &name) else { return };
        if let Some((Content::Remote { hash, origin: None }, size)) = self.content(ino) {
            let origin = Some(Arc::new(Source { revision: Revision::Workspace, path: path.clone() }));
            let content = Content::Remote { hash: *hash, origin };
            self.set_content(ino, content, size);
        }
        self.touch([path], Duration::ZERO);
    }

    /// The base has moved, and what it has no more may have been written anew: as a new file it stays here if a pattern says so.
    pub(super) fn judge_vanished(&mut self) {
        if self.ignored.has_no_patterns() || !self.ignored.is_known() {
            return;
        }
        let is_new = |account: &Account| account.base.is_none() && account.staged == Staged::Nothing;
        let new =
            self.writeback.ledger().iter().filter(|(path, account)| is_new(account) && self.is_to_be_ignored(path));
        let found: Vec<(RepoPath, Entry)> = new
            .filter_map(|(path, _)| {
                let (parent, name) = self.place_of(path)?;
                let is_file = self.tree.child(parent, &name).is_some_and(|ino| self.content(ino).is_some());
                (is_file && !self.tree.is_ignored(parent, &name)).then(|| (path.clone(), (parent, name)))
            })
            .collect();
        for (path, entry) in found {
            self.ignore(&path, &entry, Duration::ZERO);
        }
    }

    /// All that is ignored.
    fn ignored_paths(&self) -> impl Iterator<Item = (RepoPath, Entry)> {
        let names = self.tree.all_ignored();
        names.filter_map(|(parent, name)| Some((self.tree.path_at(parent, name).ok()?, (parent, name.clone()))))
    }

    /// What the commit has that the base is to become is not ignored: it was added on both sides. Says whether there is any.
    pub(super) fn free_taken(&mut self, moved: &Moved) -> bool {
        let taken: Vec<(RepoPath, Entry)> = self.ignored_paths().filter(|(path, _)| moved.has(path)).collect();
        let any = !taken.is_empty();
        taken.into_iter().for_each(|(path, entry)| self.free(&path, &entry, Duration::ZERO));
        any
    }

    /// A name travels from now on.
    fn free(&mut self, path: &RepoPath, (parent, name): &Entry, settle: Duration) {
        if self.tree.is_ignored(*parent, name) {
            self.apply(Change::Unignore { parent: *parent, name: name.clone() });
            self.open_account(path, None);
            self.writeback.owe(path, settle);
        }
    }

    /// A name stays here from now on: what is staged of it is not to be.
    fn ignore(&mut self, path: &RepoPath, (parent, name): &Entry, settle: Duration) {
        if let Some(ino) = self.tree.child(*parent, name) {
            self.pin_source(ino);
        }
        self.apply(Change::Ignore { parent: *parent, name: name.clone() });
        if self.writeback.account(path).is_some() {
            self.touch([path], settle);
        }
    }

    /// Every name of a file that is on record, and that a server can have.
    fn recorded_names(&self) -> impl Iterator<Item = (RepoPath, Entry)> {
        let files = self.tree.iter().filter(|(_, inode)| inode.recorded && matches!(inode.body, Body::File { .. }));
        let names = files.flat_map(|(_, inode)| inode.links.iter());
        names.filter_map(|entry| Some((self.tree.path_at(entry.0, &entry.1).ok()?, entry.clone())))
    }

    /// Judges every name again.
    fn judge_all(&mut self, settle: Duration) {
        let wrong: Vec<(RepoPath, Entry, bool)> = self
            .recorded_names()
            .filter_map(|(path, entry)| {
                let is = self.tree.is_ignored(entry.0, &entry.1);
                // What has no account is as the base has it.
                let should = (is || self.writeback.account(&path).is_some()) && self.is_to_be_ignored(&path);
                (is != should).then_some((path, entry, should))
            })
            .filter(|(.., should)| *should || !self.ignored.keeps())
            .collect();
        if !wrong.is_empty() {
            let ignored = wrong.iter().filter(|(.., should)| *should).count();
            tracing::info!(ignored, free = wrong.len() - ignored, "by other patterns");
        }
        for (path, entry, should) in wrong {
            match should {
                true => self.ignore(&path, &entry, settle),
                false => self.free(&path, &entry, settle),
            }
        }
    }

    /// Why a name stays here, if it is for the sake of a pattern.
    pub(super) fn why_ignored(&self, parent: Ino, name: &Name) -> Option<String> {
        if !self.tree.is_ignored(parent, name) {
            return None;
        }
        let why = self.tree.path_at(parent, name).ok().and_then(|path| self.ignored.verdict(&path));
        Some(match why {
            Some(why) => format!("ignored by {why}"),
            None => "ignored when it was mounted last".to_owned(),
        })
    }

    /// Which of the files of the spool that are ignored, below the `chosen` paths, are not known to be on stable storage.
    fn unflushed_ignored(&self, chosen: impl Fn(&RepoPath) -> bool) -> Vec<Token> {
        let names = self.ignored_paths().filter(|(path, _)| chosen(path));
        let tokens = names.filter_map(|(_, (parent, name))| {
            let ino = self.tree.child(parent, &name)?;
            let token = self.tree.token(ino).filter(|token| token.on_server().is_none())?;
            (self.is_being_written(ino) || !self.ignored.is_flushed(token)).then_some(token)
        });
        tokens.collect()
    }

    /// Tells `broken` of what is ignored and may not be.
    pub(super) fn check_ignored(&self, broken: &mut impl FnMut(&'static str, String)) {
        for (path, _) in self.ignored_paths() {
            if let Some(account) = self.writeback.account(&path).filter(|account| account.base.is_some()) {
                broken("owed.ignored", format!("{path} is ignored, and the base has it: {account:?}"));
            }
        }
    }
}

impl Fs {
    /// What is ignored beside what `.oxenignore` says. To be called before anything is judged.
    pub fn ignore_also(&self, globs: &[String]) {
        self.begin().ignored.set_option(globs);
    }

    /// What was ignored stays so, whatever the patterns are: not all of them are known. As [`ignore_also`](Self::ignore_also).
    pub fn free_nothing(&self) {
        self.begin().ignored.keep();
    }

    /// Reads `.oxenignore`, and judges by it what was judged otherwise by an earlier mount. To be called before anything is
    /// served or staged; until then what was ignored stays so.
    ///
    /// # Errors
    /// The server's, when it does not answer. What cannot be had for another reason is told by [`bad_patterns`](Self::bad_patterns),
    /// and none of its patterns holds.
    pub async fn judge(&self) -> Result<(), FsError> {
        loop {
            let patterns = self.lock().patterns();
            let (token, read) = match patterns {
                Patterns::AsKnown | Patterns::InWriting => return Ok(()),
                Patterns::Gone => (None, Ok(None)),
                Patterns::InBase => (None, self.read_in_base().await),
                Patterns::Is(token, Where::Spool) => {
                    (Some(token), self.blocking(move |fs| fs.read_in_spool(token)).await)
                }
                Patterns::Is(token, Where::Cache(hash)) => (Some(token), self.read_fetched(token, hash).await),
            };
            let read = match read {
                Err(FsError::Remote(error)) if error.is_outage() => return Err(error.into()),
                read => read,
            };
            if self.take_patterns(token, read)? {
                return Ok(());
            }
        }
    }

    /// The same when the file has become another, as far as that takes no wait for the server: what does goes on beside. Until
    /// then `false`: what is new might be ignored, so that nothing is staged.
    pub(super) fn judge_now(&self) -> bool {
        loop {
            let (patterns, known) = {
                let state = self.lock();
                // What a commit is made of does not change under it.
                let known = !state.ignored.is_known() || state.writeback.is_cutting();
                (state.patterns(), known)
            };
            if known {
                return true;
            }
            let (token, read) = match patterns {
                Patterns::AsKnown | Patterns::InWriting => return true,
                Patterns::InBase => {
                    self.judge_beside();
                    return false;
                }
                Patterns::Gone => (None, Ok(None)),
                Patterns::Is(token, Where::Spool) => (Some(token), self.read_in_spool(token)),
                Patterns::Is(token, Where::Cache(hash)) => {
                    let mut state = self.begin();
                    if state.ignored.is_same(hash) {
                        state.ignored.moved(Some(token));
                        return true;
                    }
                    drop(state);
                    match self.cache.file(hash) {
                        Some(file) => (Some(token), self.read_text(file).map(Some)),
                        None => {
                            self.judge_beside();
                            return false;
                        }
                    }
                }
            };
            if self.take_patterns(token, read).unwrap_or(true) {
                return true;
            }
        }
    }

    /// Before somebody waits for what is new: the patterns that a program has written count. That it has closed the file is
    /// told a moment after the close has returned. What of the `chosen` paths is ignored by then is on stable storage when this
    /// returns: no server will have it.
    ///
    /// # Errors
    /// The local filesystem's.
    pub async fn heed_patterns(&self, chosen: impl Fn(&RepoPath) -> bool) -> Result<(), FsError> {
        for _ in 0..CLOSE_LOOKS {
            if !matches!(self.lock().patterns(), Patterns::InWriting) {
                break;
            }
            tokio::time::sleep(CLOSE_LOOK).await;
        }
        // Where they are on the server alone, this waits for them.
        if !self.judge_now()
            && let Err(error) = self.judge().await
        {
            tracing::warn!(%error, "nothing is staged before .oxenignore is read");
        }
        let (any, unflushed) = {
            let state = self.lock();
            (state.tree.ignores_any(), state.unflushed_ignored(chosen))
        };
        match any {
            true => self.blocking(move |fs| fs.flush_ignored(&unflushed)).await,
            false => Ok(()),
        }
    }

    fn flush_ignored(&self, unflushed: &[Token]) -> Result<(), FsError> {
        if unflushed.len() > FLUSHED_ONE_BY_ONE {
            let spools: Vec<SpoolId> = {
                let state = self.lock();
                unflushed.iter().filter_map(|token| Some(state.spooled(token.ino())?.0)).collect()
            };
            self.spool.sync_all(spools)?;
        } else {
            unflushed.iter().try_for_each(|token| self.flush_bytes(*token))?;
        }
        {
            let mut state = self.begin();
            let state = &mut *state;
            state.ignored.are_flushed(unflushed, |token| state.tree.still(token));
        }
        Ok(self.journal.sync(self.journal.append(&[]))?)
    }

    /// Has a file's bytes survive a power loss, if it has them still.
    pub(super) fn flush_bytes(&self, token: Token) -> Result<(), FsError> {
        let found = {
            let state = self.lock();
            let spooled = state.spooled(token.ino());
            spooled.filter(|_| state.tree.still(token))
        };
        let Some((spool, open)) = found else { return Ok(()) };
        let file = match open {
            Some(file) => file,
            None => match self.spool.file(spool) {
                Ok(file) => Arc::new(file),
                Err(_) if !self.lock().tree.still(token) => return Ok(()),
                Err(error) => return Err(error.into()),
            },
        };
        Ok(self.spool.sync(spool, &file)?)
    }

    fn judge_beside(&self) {
        let (Some(fs), Ok(runtime)) = (self.this.upgrade(), tokio::runtime::Handle::try_current()) else { return };
        if !self.begin().ignored.begin_asking() {
            return;
        }
        runtime.spawn(async move {
            let judged = fs.judge().await;
            fs.begin().ignored.end_asking();
            match judged {
                Ok(()) => fs.wake.notify_one(),
                Err(error) => tracing::warn!(%error, "nothing is staged before .oxenignore is read"),
            }
        });
    }

    /// `None`: it is another by now.
    fn read_in_spool(&self, token: Token) -> Result<Option<Text>, FsError> {
        match self.spool_file_to_read(token)? {
            Some(file) => self.read_text(file).map(Some),
            None => Ok(None),
        }
    }

    async fn read_fetched(&self, token: Token, hash: ContentHash) -> Result<Option<Text>, FsError> {
        if let Some(file) = self.cache.file(hash) {
            return self.read_text(file).map(Some);
        }
        match self.fetch(token.ino(), false).await? {
            Some((found, file)) if found == hash => {
                let file = file.try_clone()?;
                self.read_text(file).map(Some)
            }
            _ => Ok(None),
        }
    }

    async fn read_in_base(&self) -> Result<Option<Text>, FsError> {
        let path = RepoPath::parse(FILE).unwrap_or_default();
        match self.version(&path, Version::Theirs).await? {
            Some(file) => {
                let file = file.try_clone()?;
                self.read_text(file).map(Some)
            }
            None => Ok(None),
        }
    }

    fn read_text(&self, file: File) -> Result<Text, FsError> {
        let size = file.metadata()?.len();
        if size > LONGEST_BYTES {
            let error = format!("it has more than {LONGEST_BYTES} bytes");
            return Err(std::io::Error::other(error).into());
        }
        let mut bytes = vec![0; size as usize];
        let mut read = 0;
        while read < bytes.len() {
            match file.read_at(&mut bytes[read..], read as u64)? {
                0 => break,
                more => read += more,
            }
        }
        bytes.truncate(read);
        let hash = ContentHash::of(self.hash_kind, &bytes);
        Ok(Text { hash, text: String::from_utf8_lossy(&bytes).into_owned() })
    }

    /// Judges by what was read, if the file has that still. `false`: it is another by now.
    fn take_patterns(&self, token: Option<Token>, read: Result<Option<Text>, FsError>) -> Result<bool, FsError> {
        let settle = self.options.settle;
        let taken = into_plain(self.change(|state| {
            let now = match state.patterns() {
                Patterns::Is(token, _) => Some(token),
                Patterns::AsKnown | Patterns::InWriting => return Ok(true),
                Patterns::Gone | Patterns::InBase => None,
            };
            if now != token {
                return Ok(false);
            }
            let base = state.tree.base().clone();
            state.ignored.set_base(base);
            match read {
                Ok(Some(read)) if state.ignored.is_known() && state.ignored.is_same(read.hash) => {
                    state.ignored.moved(token);
                    return Ok(true);
                }
                Ok(Some(read)) => state.ignored.set_file(token, Some(read.hash), Some(&read.text)),
                Ok(None) if token.is_some() => return Ok(false),
                Ok(None) => state.ignored.set_file(None, None, None),
                Err(error) => {
                    tracing::error!(%error, ".oxenignore cannot be read: what held before holds on");
                    state.ignored.give_up(token, format!("it cannot be read: {error}"));
                    return Ok(true);
                }
            }
            for bad in state.ignored.bad() {
                tracing::warn!(
                    source = bad.source,
                    line = bad.line,
                    pattern = bad.pattern,
                    error = bad.error,
                    "a pattern does not hold"
                );
            }
            state.judge_all(settle);
            Ok(true)
        }))?;
        self.wake.notify_one();
        Ok(taken)
    }

    /// How much is ignored.
    pub fn ignored(&self) -> Tally {
        let mut counts = Counts::default();
        self.lock().tell_ignored(&mut counts, &|_, size| size, &mut Vec::new());
        counts.ignored
    }

    /// The same at and below the `chosen` paths.
    pub fn ignored_among(&self, chosen: impl Fn(&RepoPath) -> bool) -> Tally {
        let state = self.lock();
        let mut tally = Tally::default();
        for (_, (parent, name)) in state.ignored_paths().filter(|(path, _)| chosen(path)) {
            let Some(ino) = state.tree.child(parent, &name) else { continue };
            tally.files += 1;
            tally.bytes = tally.bytes.saturating_add(state.local_bytes(ino, &|_, size| size));
        }
        tally
    }

    /// The patterns that do not hold.
    pub fn bad_patterns(&self) -> Vec<BadPattern> {
        self.lock().ignored.bad().cloned().collect()
    }

    /// Why a path stays here, or would, if it does for the sake of a pattern; `is_dir`: it is to be a directory where there
    /// is nothing.
    ///
    /// # Errors
    /// The server's, where it has to be asked whether the base has it.
    pub async fn why_ignored(&self, path: &RepoPath, is_dir: bool) -> Result<Option<IgnoredBy>, FsError> {
        self.judge_now();
        let judge = |state: &State| match state.place_of(path) {
            Some((parent, name)) => match state.tree.child(parent, &name) {
                Some(ino) if state.tree.dir(ino).is_some() => (true, state.ignored.verdict_of(path, true)),
                Some(ino) if state.content(ino).is_some() => {
                    let ignored = state.tree.is_ignored(parent, &name);
                    (true, state.ignored.verdict(path).filter(|_| ignored))
                }
                Some(_) => (true, state.ignored.verdict(path)),
                None => {
                    let based = state.writeback.account(path).is_some_and(|account| account.base.is_some());
                    (
                        state.tree.dir(parent).is_some_and(|dir| dir.listed),
                        state.ignored.verdict_of(path, is_dir).filter(|_| !based),
                    )
                }
            },
            None => (false, state.ignored.verdict_of(path, is_dir)),
        };
        let (sure, why) = judge(&self.lock());
        if sure || why.is_none() {
            return Ok(why);
        }
        self.find_at(path).await?;
        Ok(judge(&self.lock()).1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::fs::costs::{World, attrs, name_of, path_of};
    use crate::fs::{OpenFlags, RenameMode, Stop};

    fn world(base: &[&str]) -> World {
        let world = World::on(base);
        world.runtime.block_on(world.fs.judge()).unwrap();
        world
    }

    fn write(world: &World, dir: Ino, name: &str, text: &str) -> Ino {
        let fs = &world.fs;
        let flags = OpenFlags { read: false, write: true, truncate: true, execute: false };
        let (ino, handle) = match fs.create(dir, &name_of(name), attrs(), flags) {
            Ok((stat, handle)) => (stat.ino, handle),
            Err(_) => {
                let ino = fs.lookup(dir, &name_of(name)).unwrap().ino;
                let handle = loop {
                    match fs.open(ino, flags) {
                        Ok(handle) => break handle,
                        Err(Stop::Need(need)) => world.runtime.block_on(fs.satisfy(need)).unwrap(),
                        Err(Stop::Error(error)) => panic!("{error}"),
                    }
                };
                (ino, handle)
            }
        };
        fs.write(handle, 0, text.as_bytes()).unwrap();
        fs.release(handle);
        assert!(fs.judge_now());
        assert_eq!(fs.check(), [""; 0]);
        ino
    }

    fn rename(world: &World, from: (Ino, &str), to: (Ino, &str)) {
        world.fs.rename(from.0, &name_of(from.1), to.0, &name_of(to.1), RenameMode::Replace).unwrap();
        assert!(world.fs.judge_now());
        assert_eq!(world.fs.check(), [""; 0]);
    }

    fn owed(world: &World) -> Vec<String> {
        let state = world.fs.lock();
        let mut owed: Vec<String> = state.writeback.queue().iter().map(|(path, _)| path.to_string()).collect();
        owed.sort();
        owed
    }

    fn ignored(state: &State) -> Vec<String> {
        let paths: BTreeSet<String> = state.ignored_paths().map(|(path, _)| path.to_string()).collect();
        paths.into_iter().collect()
    }

    #[test]
    fn what_matches_is_owed_no_more_and_what_is_free_again_is() {
        let world = world(&[]);
        write(&world, ROOT, "a.tmp", "a");
        assert_eq!(owed(&world), ["a.tmp"]);
        write(&world, ROOT, FILE, "*.tmp\n[z-a]\n");
        write(&world, ROOT, "b.tmp", "b");
        write(&world, ROOT, "c.txt", "c");
        assert_eq!(owed(&world), [FILE, "c.txt"]);
        assert_eq!(ignored(&world.fs.lock()), ["a.tmp", "b.tmp"]);
        assert_eq!(ignored(&world.recorded()), ["a.tmp", "b.tmp"], "nobody judges, and they stay so");
        assert_eq!(world.fs.bad_patterns().iter().map(|bad| bad.line).collect::<Vec<_>>(), [Some(2)]);
        let (counts, _, _, local) = world.fs.report();
        assert_eq!((counts.ignored.files, counts.ignored.bytes), (2, 2));
        let reasons = local.iter().map(|local| local.reason.as_str());
        let told: Vec<_> = reasons.filter(|reason| reason.starts_with("ignored")).collect();
        assert_eq!(told, ["ignored by .oxenignore, line 1: *.tmp"; 2]);
        // By a rename over it, and by its removal.
        write(&world, ROOT, "rules", "*.txt\n");
        rename(&world, (ROOT, "rules"), (ROOT, FILE));
        assert_eq!(ignored(&world.fs.lock()), ["c.txt"]);
        assert_eq!(owed(&world), [FILE, "a.tmp", "b.tmp"]);
        world.fs.unlink(ROOT, &name_of(FILE)).unwrap();
        assert!(world.fs.judge_now());
        assert_eq!(owed(&world), ["a.tmp", "b.tmp", "c.txt"]);
        assert_eq!((world.fs.check(), ignored(&world.fs.lock())), (Vec::new(), Vec::new()));
    }

    #[test]
    fn a_rename_is_judged_by_the_new_name_and_a_link_by_each() {
        let world = world(&[]);
        write(&world, ROOT, FILE, "*.tmp\nscratch/\n");
        write(&world, ROOT, "a.tmp", "a");
        rename(&world, (ROOT, "a.tmp"), (ROOT, "a.txt"));
        assert_eq!(owed(&world), [FILE, "a.txt"]);
        rename(&world, (ROOT, "a.txt"), (ROOT, "b.tmp"));
        assert_eq!(owed(&world), [FILE]);
        let file = write(&world, ROOT, "c.txt", "c");
        world.fs.link(file, ROOT, &name_of("c.tmp")).unwrap();
        assert_eq!(
            (owed(&world), ignored(&world.fs.lock())),
            (vec![FILE.to_owned(), "c.txt".into()], vec!["b.tmp".to_owned(), "c.tmp".into()])
        );
        // A whole directory.
        let dir = world.fs.mkdir(ROOT, &name_of("data"), attrs()).unwrap().ino;
        write(&world, dir, "x", "x");
        write(&world, dir, "y.tmp", "y");
        rename(&world, (ROOT, "data"), (ROOT, "scratch"));
        assert_eq!(owed(&world), [FILE, "c.txt"]);
        rename(&world, (ROOT, "scratch"), (ROOT, "data"));
        assert_eq!(owed(&world), [FILE, "c.txt", "data/x"]);
        world.fs.unlink(dir, &name_of("y.tmp")).unwrap();
        assert_eq!((world.fs.check(), world.fs.bad_patterns()), (Vec::new(), Vec::new()));
    }

    #[test]
    fn what_is_ignored_though_the_base_has_it_is_told() {
        let world = world(&["a.tmp"]);
        write(&world, ROOT, "a.tmp", "changed");
        world.fs.begin().apply(Change::Ignore { parent: ROOT, name: name_of("a.tmp") });
        let broken = world.fs.check();
        assert!(broken.iter().any(|what| what.starts_with("owed.ignored: a.tmp")), "{broken:?}");
    }

    #[test]
    fn what_the_base_has_is_not_ignored() {
        let world = world(&["a.tmp", "d/b.tmp"]);
        write(&world, ROOT, FILE, "*.tmp\n");
        write(&world, ROOT, "a.tmp", "changed");
        assert_eq!(owed(&world), [FILE, "a.tmp"]);
        // Replaced by a file that was.
        write(&world, ROOT, "new.tmp", "new");
        rename(&world, (ROOT, "new.tmp"), (ROOT, "a.tmp"));
        assert_eq!((owed(&world), ignored(&world.fs.lock())), (vec![FILE.to_owned(), "a.tmp".into()], Vec::new()));
        let d = world.fs.lookup(ROOT, &name_of("d")).unwrap().ino;
        rename(&world, (d, "b.tmp"), (ROOT, "moved.tmp"));
        assert_eq!(owed(&world), [FILE, "a.tmp", "d/b.tmp"]);
        assert_eq!(ignored(&world.recorded()), ["moved.tmp"]);
        let why = |path: &str, is_dir| {
            let why = world.runtime.block_on(world.fs.why_ignored(&path_of(path), is_dir)).unwrap();
            why.map(|why| why.to_string())
        };
        assert_eq!(why("a.tmp", false), None);
        assert_eq!(why("moved.tmp", false).as_deref(), Some(".oxenignore, line 1: *.tmp"));
        assert_eq!(why("none.tmp", true).as_deref(), Some(".oxenignore, line 1: *.tmp"));
        assert_eq!(why("d/b.tmp", false), None, "the base has it, though it is gone here");
    }
}
