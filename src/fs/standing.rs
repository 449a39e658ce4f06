//! Where a file stands: what its bytes are, how the kernel reaches them, and whether they may change without a request.
//! Which of these go together, and what leads from one to another. Decisions alone, no I/O.
//!
//! With debug assertions, as in tests, every step is held against the table; [`Fs::check`](super::Fs::check) looks at all
//! files.

use super::State;
use super::passthrough::Way;
use crate::namespace::{Content, Generation, Ino};

/// What the bytes of a file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileState {
    /// The server's.
    Clean,
    /// The same, and they are read in the file that the cache has of them, which is nobody else's meanwhile.
    Pinned,
    /// The same, and that file is about to become the inode's own.
    Leaving,
    /// An earlier daemon's, in the spool, and nobody has looked at them yet.
    NotLoaded,
    /// The file's own, in the spool.
    Dirty,
    /// The same, and they do not change, as somebody reads them for the server.
    InWriteback,
}

/// How the kernel reaches the bytes of a file (`enum fuse_iomode` in fs/fuse/iomode.c of Linux has the same).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IoMode {
    /// Nobody has it open.
    Closed,
    /// By requests, with its page cache or without.
    Requests,
    /// In a local file.
    Passthrough,
}

/// Where a file stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standing {
    pub state: FileState,
    pub mode: IoMode,
    /// Whether it may change without a request.
    pub live: bool,
}

/// What happens to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// Somebody opens it.
    Opened,
    /// Somebody closes it.
    Closed,
    /// A spool file, with a copy of its bytes or empty, takes the place of what it had.
    Installed,
    /// The cache's file that it is read in becomes its own.
    Promoted,
    /// Its bytes are to be read for the server.
    Held,
    /// The server has them, and they are the server's from now on.
    Confirmed,
    /// The last who could change it without a request is gone.
    Rested,
}

impl Standing {
    /// Whether it can be so between any two operations.
    pub fn is_coherent(self) -> bool {
        use FileState::{Clean, Dirty, InWriteback, Leaving, NotLoaded, Pinned};
        match (self.state, self.mode) {
            // Only what has a spool file of its own can change there, and what is read for the server must not.
            (Clean | Pinned | Leaving | NotLoaded | InWriteback, _) if self.live => false,
            // Whoever opens it looks at it first.
            (NotLoaded, mode) => mode == IoMode::Closed,
            // The kernel reads the cache's file.
            (Pinned | Leaving, mode) => mode == IoMode::Passthrough,
            // What goes past the daemon goes to a file of its own, which then is not read for the server.
            (Clean | InWriteback, mode) => mode != IoMode::Passthrough,
            (Dirty, _) => true,
        }
    }

    /// Whether `event` may lead from here to `next`.
    pub fn may_become(self, event: Event, next: Self) -> bool {
        use FileState::{Clean, Dirty, InWriteback, Leaving, Pinned};
        let same_state = next.state == self.state;
        let same = |state| next == Self { state, ..self };
        match event {
            // All who have it open go the same way. Who goes past the daemon pins what is clean, or may change what is not.
            Event::Opened => {
                let way = next.mode != IoMode::Closed && (self.mode == IoMode::Closed || next.mode == self.mode);
                let pinned = (self.state, next.state, self.mode) == (Clean, Pinned, IoMode::Closed);
                way && (same_state || pinned) && (next.live || !self.live)
            }
            // Somebody else may have it open yet, and go on as before. What was pinned is given back at the last close, as
            // is what was about to leave. Nobody can change it any more, or only where it is mapped; and what is at rest
            // and staged may be clean by that.
            Event::Closed => match next.mode {
                IoMode::Closed => {
                    let back = matches!(self.state, Pinned | Leaving) && next.state == Clean;
                    let rested = self.live && !next.live && next.state == Clean;
                    (same_state || back || rested) && (self.live || !next.live)
                }
                mode => mode == self.mode && same_state && (self.live || !next.live),
            },
            // Of a file that may change meanwhile, or is reached past the daemon, no copy can take the place.
            Event::Installed => self.mode != IoMode::Passthrough && !self.live && same(Dirty),
            Event::Promoted => self.state == Leaving && next == Self { state: Dirty, ..self },
            Event::Held => matches!(self.state, Dirty | InWriteback) && !self.live && same(InWriteback),
            Event::Confirmed => matches!(self.state, Dirty | InWriteback) && !self.live && same(Clean),
            // It is owed, or what the server has, and then nobody has it open who reaches it past the daemon.
            Event::Rested => {
                let clean = (self.state, next.state) == (Dirty, Clean) && self.mode != IoMode::Passthrough;
                !next.live && next.mode == self.mode && (same_state || clean)
            }
        }
    }
}

impl State {
    /// Where a file stands; `None`: it is no regular file.
    pub(super) fn standing(&self, ino: Ino) -> Option<Standing> {
        let state = match (self.tree.content(ino)?.0, self.handles.borrowed(ino)) {
            // Its content may be another than what is read: somebody else's commit changed it.
            (Content::Remote { .. }, Some(borrowed)) if borrowed.is_leaving() => FileState::Leaving,
            (Content::Remote { .. }, Some(_)) => FileState::Pinned,
            (Content::Remote { .. }, None) => FileState::Clean,
            (Content::Local { generation: Generation::UNSEEN, .. }, _) => FileState::NotLoaded,
            (Content::Local { spool, .. }, _) if self.backing.is_held(*spool) => FileState::InWriteback,
            (Content::Local { .. }, _) => FileState::Dirty,
        };
        let mode = match self.handles.way(ino) {
            None => IoMode::Closed,
            Some(Way::Requests) => IoMode::Requests,
            Some(Way::Past) => IoMode::Passthrough,
        };
        Some(Standing { state, mode, live: self.backing.is_live(ino) })
    }

    /// Does what `event` stands for, which the table has to allow.
    pub(super) fn step<T>(&mut self, ino: Ino, event: Event, work: impl FnOnce(&mut Self) -> T) -> T {
        if !cfg!(debug_assertions) {
            return work(self);
        }
        let before = self.standing(ino);
        let done = work(self);
        if let (Some(before), Some(now)) = (before, self.standing(ino)) {
            assert!(before.may_become(event, now), "{event:?} of {ino:?}: from {before:?} to {now:?}");
        }
        done
    }

    /// Tells `broken` of every file that stands as none can.
    pub(super) fn check_standing(&self, broken: &mut impl FnMut(&'static str, String)) {
        for (ino, _) in self.tree.iter() {
            if let Some(standing) = self.standing(ino)
                && !standing.is_coherent()
            {
                broken("file.standing", format!("{ino:?} is {standing:?}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use FileState::{Clean, Dirty, InWriteback, Leaving, NotLoaded, Pinned};
    use IoMode::{Closed, Passthrough, Requests};

    const EVENTS: [Event; 7] =
        [Event::Opened, Event::Closed, Event::Installed, Event::Promoted, Event::Held, Event::Confirmed, Event::Rested];

    fn all() -> Vec<Standing> {
        let states = [Clean, Pinned, Leaving, NotLoaded, Dirty, InWriteback];
        let modes = states.into_iter().flat_map(|state| [Closed, Requests, Passthrough].map(|mode| (state, mode)));
        modes.flat_map(|(state, mode)| [false, true].map(|live| Standing { state, mode, live })).collect()
    }

    fn coherent() -> Vec<Standing> {
        all().into_iter().filter(|standing| standing.is_coherent()).collect()
    }

    #[test]
    fn what_goes_together() {
        let named = |(state, mode, live)| Standing { state, mode, live };
        let expected = [
            (Clean, Closed, false),
            (Clean, Requests, false),
            (Pinned, Passthrough, false),
            (Leaving, Passthrough, false),
            (NotLoaded, Closed, false),
            (Dirty, Closed, false),
            (Dirty, Closed, true),
            (Dirty, Requests, false),
            (Dirty, Requests, true),
            (Dirty, Passthrough, false),
            (Dirty, Passthrough, true),
            (InWriteback, Closed, false),
            (InWriteback, Requests, false),
        ];
        assert_eq!(coherent(), expected.map(named));
    }

    #[test]
    fn what_is_read_for_the_server_is_never_reached_past_the_daemon() {
        for (before, next) in coherent().into_iter().flat_map(|before| coherent().into_iter().map(move |n| (before, n)))
        {
            for event in EVENTS.into_iter().filter(|event| before.may_become(*event, next)) {
                let why = format!("{before:?} {event:?} {next:?}");
                // The kernel's rule: all who have an inode open go the same way, to the same file.
                assert!(before.mode == Closed || next.mode == Closed || next.mode == before.mode, "{why}");
                assert!(!(before.mode == Passthrough && next.mode == Passthrough && next.state == Clean), "{why}");
                // Nothing but a promotion puts what is read in the cache's file under a writer.
                assert!(before.state != Pinned || matches!(next.state, Pinned | Clean), "{why}");
                // What is only here is given up to nobody but the server.
                let given_up = before.state == Dirty && next.state == Clean;
                assert!(!given_up || matches!(event, Event::Confirmed | Event::Rested) || before.live, "{why}");
                assert!(event != Event::Held || !next.live && next.mode != Passthrough, "{why}");
            }
        }
    }

    #[test]
    fn every_state_is_left_by_something_and_a_closed_file_by_an_open() {
        for before in coherent().into_iter().filter(|before| before.state != NotLoaded) {
            let leads = |event| coherent().into_iter().any(|next| next != before && before.may_become(event, next));
            assert!(EVENTS.into_iter().any(leads), "{before:?}");
            assert!(before.mode != Closed || leads(Event::Opened), "{before:?}");
            assert!(before.mode == Closed || leads(Event::Closed), "{before:?}");
        }
    }
}
