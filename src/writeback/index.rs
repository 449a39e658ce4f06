//! What base and workspace hold at each path that ever differed from the base, and the step that brings a path to
//! its wanted state. Pure.
//!
//! The server ignores base content that is put back over a staged change (tried on 0.65.2: HTTP 200, and the old
//! change still stands), so events cannot be replayed at it. Every step follows from three states instead: what the
//! base has, what is staged, what is wanted.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::count;
use crate::hash::ContentHash;
use crate::path::RepoPath;
use crate::table::Dense;
use crate::workspace::{CommitId, Object};

/// What the workspace has staged for a path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Staged {
    /// Nothing: the base shows.
    #[default]
    Nothing,
    /// This content.
    Put(Object),
    /// That the file is removed.
    Removed,
    /// Unknown: a request was sent and its answer is not on record.
    Doubt,
}

/// One path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    /// What the base commit has there.
    #[serde(default, rename = "b", skip_serializing_if = "Option::is_none")]
    pub base: Option<Object>,
    /// What is staged over it.
    #[serde(default, rename = "s")]
    pub staged: Staged,
    /// When a request about it last went without an answer, in seconds since the epoch: the server may carry it out yet,
    /// after others that it has answered.
    #[serde(default, rename = "l", skip_serializing_if = "Option::is_none")]
    pub late: Option<u64>,
    /// Somebody else staged it.
    #[serde(default, rename = "t", skip_serializing_if = "std::ops::Not::not")]
    pub theirs: bool,
    /// What was staged there before, since the base moved last: somebody else may have committed it meanwhile.
    #[serde(default, rename = "o", skip_serializing_if = "Option::is_none")]
    pub before: Option<Object>,
    /// It is not to be staged until it is written again.
    #[serde(default, rename = "h", skip_serializing_if = "std::ops::Not::not")]
    pub held: bool,
}

/// What others made of a path that was changed here too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Theirs {
    /// Nothing: they removed it.
    Gone,
    /// This content.
    File(Object),
    /// A directory.
    Dir,
}

impl Theirs {
    /// Their content, if it is a file.
    pub fn object(self) -> Option<Object> {
        match self {
            Self::File(object) => Some(object),
            Self::Gone | Self::Dir => None,
        }
    }
}

/// A path that was changed here and by others, until somebody decides. What it is here is in the tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conflict {
    /// The file that both began with, if there was one.
    #[serde(default, rename = "b", skip_serializing_if = "Option::is_none")]
    pub base: Option<Object>,
    /// The commit that has it.
    #[serde(rename = "c")]
    pub commit: CommitId,
    /// What the branch has.
    #[serde(rename = "t")]
    pub theirs: Theirs,
}

/// What brings a path to its wanted state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It is there already.
    Nothing,
    /// Drop what is staged: the base is what is wanted.
    Unstage,
    /// Stage a removal.
    Remove,
    /// Stage content.
    Put(Object),
}

impl Account {
    /// The step to `wanted` (`None`: no file).
    pub fn step(&self, wanted: Option<Object>) -> Step {
        if self.shown().is_some_and(|shown| is_same(shown, wanted)) {
            Step::Nothing
        } else if self.is_base(wanted) {
            Step::Unstage
        } else {
            wanted.map_or(Step::Remove, Step::Put)
        }
    }

    /// Whether `wanted` is just what the base has there.
    pub fn is_base(&self, wanted: Option<Object>) -> bool {
        is_same(wanted, self.base)
    }

    /// What the workspace shows there (`None` inside: no file); `None` while that is in doubt.
    pub fn shown(&self) -> Option<Option<Object>> {
        match self.staged {
            Staged::Nothing => Some(self.base),
            Staged::Put(object) => Some(Some(object)),
            Staged::Removed => Some(None),
            Staged::Doubt => None,
        }
    }

    /// Whether the workspace has, or may have, a file there.
    pub fn may_show(&self) -> bool {
        match self.staged {
            Staged::Nothing => self.base.is_some(),
            Staged::Put(_) | Staged::Doubt => true,
            Staged::Removed => false,
        }
    }

    /// Whether nothing is staged, and nothing more is to be expected.
    pub fn is_settled(&self) -> bool {
        self.staged == Staged::Nothing && self.late.is_none()
    }

    /// The account once what is staged has become the base.
    pub fn rebased(self) -> Self {
        let base = match self.staged {
            Staged::Nothing | Staged::Doubt => return self,
            Staged::Put(object) => Some(object),
            Staged::Removed => None,
        };
        Self { base, staged: Staged::Nothing, theirs: false, before: None, ..self }
    }

    /// What is staged once `step` is confirmed.
    pub fn after(&self, step: Step) -> Staged {
        match step {
            Step::Nothing => self.staged,
            Step::Unstage => Staged::Nothing,
            Step::Remove => Staged::Removed,
            Step::Put(object) => Staged::Put(object),
        }
    }
}

fn is_same(one: Option<Object>, other: Option<Object>) -> bool {
    one.map(|object| object.hash) == other.map(|object| object.hash)
}

/// An account as it is kept: what nearly all of very many look like takes little, and no allocation.
#[derive(Debug)]
enum Slot {
    /// New here, and nothing staged.
    New,
    /// New here, and in doubt.
    Doubt,
    /// New here, and staged: the content's XXH3, and its length in the machine's byte order.
    Put([u8; 16], [u8; 8]),
    /// As the base has it, and nothing staged: as all are for a moment after a commit.
    Base([u8; 16], [u8; 8]),
    /// Anything else, and kept apart.
    Other,
}

impl Slot {
    fn of(account: &Account) -> Self {
        let xxh3 = |object: Object| match object.hash {
            ContentHash::Xxh3(hash) => Some((hash, object.size.to_ne_bytes())),
            ContentHash::Sha256(_) => None,
        };
        let slot = match *account {
            Account { late: Some(_), .. }
            | Account { theirs: true, .. }
            | Account { held: true, .. }
            | Account { before: Some(_), .. } => None,
            Account { base: None, staged: Staged::Nothing, .. } => Some(Self::New),
            Account { base: None, staged: Staged::Doubt, .. } => Some(Self::Doubt),
            Account { base: None, staged: Staged::Put(object), .. } => {
                xxh3(object).map(|(hash, size)| Self::Put(hash, size))
            }
            Account { base: Some(object), staged: Staged::Nothing, .. } => {
                xxh3(object).map(|(hash, size)| Self::Base(hash, size))
            }
            _ => None,
        };
        slot.unwrap_or(Self::Other)
    }

    /// Whether the base has a file there, and whether the workspace may show one; `other` is the account of an
    /// [`Other`](Self::Other).
    fn indexed(&self, other: Option<Account>) -> (bool, bool) {
        match self {
            Self::New => (false, false),
            Self::Doubt | Self::Put(..) => (false, true),
            Self::Base(..) => (true, true),
            Self::Other => other.map_or((false, false), |account| (account.base.is_some(), account.may_show())),
        }
    }
}

fn object(hash: [u8; 16], size: [u8; 8]) -> Object {
    Object { hash: ContentHash::Xxh3(hash), size: u64::from_ne_bytes(size) }
}

/// All paths that differ from the base, or did and have not been settled, or may be changed by a request of ours that is
/// still on its way.
///
/// Whole directories are asked after for each of very many paths, so the two answers to that have an index each: a scan of
/// the accounts below would make a rename or a removal of a directory quadratic.
#[derive(Debug, Default)]
pub struct Ledger {
    slots: Dense<RepoPath, Slot>,
    others: HashMap<RepoPath, Account>,
    /// Those of which the base has a file.
    based: Dense<RepoPath, ()>,
    /// Those where the workspace has a file, or may.
    shown: Dense<RepoPath, ()>,
    /// How many are late.
    late: usize,
}

impl Ledger {
    fn account(&self, path: &RepoPath, slot: &Slot) -> Account {
        match slot {
            Slot::New => Account::default(),
            Slot::Doubt => Account { staged: Staged::Doubt, ..Account::default() },
            Slot::Put(hash, size) => Account { staged: Staged::Put(object(*hash, *size)), ..Account::default() },
            Slot::Base(hash, size) => Account { base: Some(object(*hash, *size)), ..Account::default() },
            Slot::Other => self.others.get(path).copied().unwrap_or_default(),
        }
    }

    /// The account of a path; `None`: base, workspace and tree agree there.
    pub fn get(&self, path: &RepoPath) -> Option<Account> {
        self.slots.get(path).map(|slot| self.account(path, slot))
    }

    /// Opens or replaces an account; `None` closes it.
    pub fn set(&mut self, path: RepoPath, account: Option<Account>) {
        let late = |account: Option<Account>| usize::from(account.is_some_and(|account| account.late.is_some()));
        // All that are late are kept apart.
        let before = self.others.remove(&path);
        self.late += late(account);
        count::take(&mut self.late, late(before), "index.late");
        let before = self.slots.get(&path).map(|slot| slot.indexed(before));
        let after = account.map(|account| (account.base.is_some(), account.may_show()));
        index(&mut self.based, &path, before.is_some_and(|(based, _)| based), after.is_some_and(|(based, _)| based));
        index(&mut self.shown, &path, before.is_some_and(|(_, shown)| shown), after.is_some_and(|(_, shown)| shown));
        let Some(account) = account else {
            self.slots.remove(&path);
            return;
        };
        let slot = Slot::of(&account);
        if matches!(slot, Slot::Other) {
            self.others.insert(path.clone(), account);
        }
        self.slots.insert(path, slot);
    }

    /// All accounts, in tree order.
    pub fn iter(&self) -> impl Iterator<Item = (&RepoPath, Account)> {
        self.slots.iter().map(|(path, slot)| (path, self.account(path, slot)))
    }

    /// The paths of `dir` and below it, in tree order, of which the base has a file.
    pub fn based_below<'a>(&'a self, dir: &'a RepoPath) -> impl Iterator<Item = &'a RepoPath> {
        below(&self.based, dir)
    }

    /// The paths of `dir` and below it, in tree order, where the workspace has a file, or [may](Account::may_show).
    pub fn shown_below<'a>(&'a self, dir: &'a RepoPath) -> impl Iterator<Item = &'a RepoPath> {
        below(&self.shown, dir)
    }

    /// Whether a request about some path may still come late.
    pub fn expects_latecomers(&self) -> bool {
        self.late > 0
    }

    /// Whether the removal of a directory around `path` may still come late.
    pub fn may_fall(&self, path: &RepoPath) -> bool {
        let mut around = std::iter::successors(path.parent(), RepoPath::parent);
        self.late > 0 && around.any(|dir| self.others.get(&dir).is_some_and(|account| account.late.is_some()))
    }

    /// How many accounts are open.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether tree, base and workspace agree everywhere.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Tells `broken` of every invariant that does not hold, by its name in docs/INVARIANTS.md. Looks at every account:
    /// for tests.
    pub fn check(&self, broken: &mut impl FnMut(&'static str, String)) {
        for (path, account) in self.iter() {
            let indexed = (self.based.get(path).is_some(), self.shown.get(path).is_some());
            if indexed != (account.base.is_some(), account.may_show()) {
                broken("index.below", format!("{path} is indexed as {indexed:?}: {account:?}"));
            }
        }
        for (path, ()) in self.based.iter().chain(self.shown.iter()) {
            if self.slots.get(path).is_none() {
                broken("index.below", format!("{path} is indexed and has no account"));
            }
        }
        for path in self.others.keys() {
            if !matches!(self.slots.get(path), Some(Slot::Other)) {
                broken("index.slots", format!("{path} has an account apart that its slot does not tell of"));
            }
        }
        let late = self.iter().filter(|(_, account)| account.late.is_some()).count();
        if late != self.late {
            broken("index.late", format!("{late} accounts are late, and {} are counted", self.late));
        }
    }

    /// Moves every account to a new base that holds just what was staged over the old one.
    pub fn rebase(&mut self) {
        for (path, slot) in self.slots.iter_mut() {
            match slot {
                Slot::New | Slot::Doubt | Slot::Base(..) => {}
                Slot::Put(hash, size) => *slot = Slot::Base(*hash, *size),
                Slot::Other => {
                    let Some(account) = self.others.get_mut(path) else { continue };
                    account.base = match account.staged {
                        Staged::Nothing | Staged::Doubt => continue,
                        Staged::Put(object) => Some(object),
                        Staged::Removed => None,
                    };
                    (account.staged, account.theirs, account.before) = (Staged::Nothing, false, None);
                    *slot = Slot::of(account);
                    if !matches!(slot, Slot::Other) {
                        self.others.remove(path);
                    }
                }
            }
        }
        let indexed = |wanted: fn((bool, bool)) -> bool| {
            let of = |path: &RepoPath, slot: &Slot| slot.indexed(self.others.get(path).copied());
            let paths = self.slots.iter().filter(|(path, slot)| wanted(of(path, slot)));
            paths.map(|(path, _)| (path.clone(), ())).collect()
        };
        (self.based, self.shown) = (indexed(|(based, _)| based), indexed(|(_, shown)| shown));
    }
}

/// Brings a path's place in an index from what it was to what it is.
fn index(index: &mut Dense<RepoPath, ()>, path: &RepoPath, before: bool, after: bool) {
    match (before, after) {
        (false, true) => drop(index.insert(path.clone(), ())),
        (true, false) => drop(index.remove(path)),
        _ => {}
    }
}

/// What an index has of `dir` and below it, in tree order.
fn below<'a>(index: &'a Dense<RepoPath, ()>, dir: &'a RepoPath) -> impl Iterator<Item = &'a RepoPath> {
    let paths = index.range(dir.clone()..).map(|(path, ())| path);
    paths.take_while(|path| path.is_in(dir)).inspect(|_| looked_at())
}

/// Of a test that counts: how many entries of an index this thread has looked at.
#[cfg(test)]
pub(crate) mod looks {
    use std::cell::Cell;

    thread_local!(pub(crate) static COUNT: Cell<u64> = const { Cell::new(0) });

    /// Those of `work`.
    pub(crate) fn of(work: impl FnOnce()) -> u64 {
        let before = COUNT.get();
        work();
        COUNT.get() - before
    }
}

/// One entry of an index is looked at.
fn looked_at() {
    #[cfg(test)]
    looks::COUNT.set(looks::COUNT.get() + 1);
}

#[cfg(test)]
mod tests {
    use super::{Account, Ledger, Slot, Staged, Step};
    use crate::hash::{ContentHash, HashKind};
    use crate::path::RepoPath;
    use crate::workspace::Object;
    use proptest::prelude::*;

    fn object(text: &str) -> Object {
        Object { hash: ContentHash::of(HashKind::Xxh3, text.as_bytes()), size: text.len() as u64 }
    }

    fn account(base: Option<&str>, staged: Staged) -> Account {
        Account { base: base.map(object), staged, ..Account::default() }
    }

    #[test]
    fn base_content_that_comes_back_is_unstaged_not_put() {
        let changed = account(Some("a"), Staged::Put(object("b")));
        assert_eq!(changed.step(Some(object("a"))), Step::Unstage);
        assert_eq!(account(Some("a"), Staged::Removed).step(Some(object("a"))), Step::Unstage);
        assert_eq!(account(None, Staged::Put(object("b"))).step(None), Step::Unstage);
    }

    #[test]
    fn doubt_is_never_taken_for_the_wanted_state() {
        assert_eq!(account(Some("a"), Staged::Doubt).step(Some(object("a"))), Step::Unstage);
        assert_eq!(account(None, Staged::Doubt).step(None), Step::Unstage);
        assert_eq!(account(None, Staged::Doubt).step(Some(object("b"))), Step::Put(object("b")));
        assert_eq!(account(Some("a"), Staged::Doubt).step(None), Step::Remove);
    }

    /// A server with the trap: base content put over a staged change is answered with 200 and ignored.
    fn serve(base: Option<Object>, staged: Staged, step: Step) -> Staged {
        match step {
            Step::Nothing => staged,
            Step::Unstage => Staged::Nothing,
            Step::Remove if base.is_none() => Staged::Nothing,
            Step::Remove => Staged::Removed,
            Step::Put(object) if base == Some(object) => staged,
            Step::Put(object) => Staged::Put(object),
        }
    }

    proptest! {
        #[test]
        fn every_sequence_of_wishes_ends_in_the_last_one(
            base in proptest::option::of("[abc]"),
            wishes in proptest::collection::vec((proptest::option::of("[abc]"), any::<bool>()), 1..8),
        ) {
            let base = base.as_deref().map(object);
            let mut server = Staged::Nothing;
            let mut ours = Account { base, ..Account::default() };
            for (wish, answer_lost) in wishes {
                let wish = wish.as_deref().map(object);
                let step = ours.step(wish);
                server = serve(base, server, step);
                if step != Step::Nothing {
                    ours.staged = if answer_lost { Staged::Doubt } else { ours.after(step) };
                }
                let step = ours.step(wish);
                server = serve(base, server, step);
                ours.staged = ours.after(step);
                let shown = match server {
                    Staged::Nothing => base,
                    Staged::Put(object) => Some(object),
                    Staged::Removed => None,
                    Staged::Doubt => unreachable!(),
                };
                prop_assert_eq!(shown, wish);
            }
        }
    }

    #[test]
    fn an_account_is_given_back_as_it_was_taken_in() {
        assert!(size_of::<Slot>() <= 25);
        let mut ledger = Ledger::default();
        let path = RepoPath::parse("a").unwrap();
        let sha = Object { hash: ContentHash::of(HashKind::Sha256, b"c"), size: 1 };
        let all = [Staged::Nothing, Staged::Doubt, Staged::Removed, Staged::Put(object("b")), Staged::Put(sha)];
        for account in all.into_iter().flat_map(|staged| [account(None, staged), account(Some("a"), staged)]) {
            ledger.set(path.clone(), Some(account));
            assert_eq!(ledger.get(&path), Some(account));
            assert_eq!(ledger.iter().map(|(_, account)| account).collect::<Vec<_>>(), [account]);
        }
    }

    proptest! {
        #[test]
        fn what_lies_below_a_directory_is_what_a_look_at_all_accounts_finds(
            acts in proptest::collection::vec((0usize..6, proptest::option::of((any::<bool>(), 0u8..4, any::<bool>()))), 1..60),
        ) {
            let paths = ["d", "d/a", "d/b/c", "d/b", "d-e", "e"].map(|path| RepoPath::parse(path).unwrap());
            let mut ledger = Ledger::default();
            for (at, act) in acts {
                match act {
                    Some((base, 3, _)) if base => ledger.rebase(),
                    act => ledger.set(paths[at].clone(), act.map(|(base, staged, late)| Account {
                        base: base.then(|| object("a")),
                        staged: match staged {
                            0 => Staged::Nothing,
                            1 => Staged::Put(object("b")),
                            2 => Staged::Removed,
                            _ => Staged::Doubt,
                        },
                        late: late.then_some(1),
                        theirs: false,
                        held: false,
                        before: None,
                    })),
                }
                for dir in paths.iter().chain([&RepoPath::root()]) {
                    let all = |wanted: fn(&Account) -> bool| {
                        let found = ledger.iter().filter(move |(path, account)| path.is_in(dir) && wanted(account));
                        found.map(|(path, _)| path.clone()).collect::<Vec<_>>()
                    };
                    let (based, shown) = (ledger.based_below(dir).cloned(), ledger.shown_below(dir).cloned());
                    prop_assert_eq!(based.collect::<Vec<_>>(), all(|account| account.base.is_some()));
                    prop_assert_eq!(shown.collect::<Vec<_>>(), all(Account::may_show));
                }
            }
        }
    }

    #[test]
    fn a_commit_makes_the_staged_state_the_base() {
        let mut ledger = Ledger::default();
        let path = |text: &str| RepoPath::parse(text).unwrap();
        ledger.set(path("put"), Some(account(Some("a"), Staged::Put(object("b")))));
        ledger.set(path("gone"), Some(account(Some("a"), Staged::Removed)));
        ledger.set(path("later"), Some(account(Some("a"), Staged::Nothing)));
        ledger.rebase();
        assert_eq!(ledger.get(&path("put")).unwrap().base, Some(object("b")));
        assert_eq!(ledger.get(&path("gone")).unwrap().base, None);
        assert_eq!(ledger.get(&path("later")).unwrap().base, Some(object("a")));
    }

    #[test]
    fn an_index_that_does_not_agree_with_the_accounts_is_told() {
        let broken = |ledger: &Ledger| {
            let mut found = Vec::new();
            ledger.check(&mut |name, _| found.push(name));
            found
        };
        let path = RepoPath::parse("a").unwrap();
        let fill = || {
            let mut ledger = Ledger::default();
            ledger.set(path.clone(), Some(Account { late: Some(1), ..Account::default() }));
            assert_eq!(broken(&ledger), [""; 0]);
            ledger
        };
        let mut ledger = fill();
        ledger.based.insert(path.clone(), ());
        assert_eq!(broken(&ledger), ["index.below"]);
        let mut ledger = fill();
        ledger.late = 0;
        assert_eq!(broken(&ledger), ["index.late"]);
        let mut ledger = fill();
        ledger.slots.insert(path.clone(), Slot::New);
        assert!(broken(&ledger).contains(&"index.slots"));
    }
}
