use proptest::prelude::*;

use super::*;
use crate::hash::{ContentHash, HashKind};
use crate::workspace::memory::{CommitFault, Memory, Tree};
use crate::workspace::{ByHash, CommitRequest, Sides, Workspace};

fn path(text: &str) -> RepoPath {
    RepoPath::parse(text).unwrap()
}

fn object(content: &str) -> Object {
    Object { hash: ContentHash::of(HashKind::Xxh3, content.as_bytes()), size: content.len() as u64 }
}

fn file(content: &str) -> Option<EntryKind> {
    Some(EntryKind::File(object(content)))
}

const DIR: Option<EntryKind> = Some(EntryKind::Dir);

fn judged(staged: &[(&str, Expected)], differences: &[(&str, Option<EntryKind>, Option<EntryKind>)]) -> Judgement {
    let staged = staged.iter().map(|(at, expected)| (path(at), *expected)).collect();
    let differences = differences.iter().map(|(at, old, new)| (path(at), Sides { old: *old, new: *new })).collect();
    judge(&staged, &Known { differences, ..Known::default() })
}

fn deviations(judgement: &Judgement) -> Vec<(&str, Expected, Option<EntryKind>)> {
    let deviations = judgement.verdict.deviations.iter();
    deviations.map(|deviation| (deviation.path.as_str(), deviation.expected, deviation.found)).collect()
}

#[test]
fn what_is_staged_is_in_a_whole_commit_and_nothing_else() {
    let put = Expected::File(object("1"));
    let whole = [
        (vec![("a", put)], vec![("a", None, file("1"))]),
        (vec![("a", put)], vec![("a", file("0"), file("1"))]),
        (vec![("a", Expected::Gone)], vec![("a", file("0"), None)]),
        (vec![("a", Expected::SomeFile)], vec![("a", None, file("9"))]),
        // Directories come and go with what is in them.
        (vec![("d/a", put)], vec![("d", None, DIR), ("d/a", None, file("1"))]),
        (vec![("d/a", Expected::Gone)], vec![("d", DIR, None), ("d/a", file("0"), None)]),
        (vec![("d/a", Expected::Gone), ("d", put)], vec![("d", DIR, file("1")), ("d/a", file("0"), None)]),
        (vec![("f", Expected::Gone), ("f/a", put)], vec![("f", file("0"), DIR), ("f/a", None, file("1"))]),
        (vec![("f/a", put)], vec![("f", file("0"), DIR), ("f/a", None, file("1"))]),
    ];
    for (staged, differences) in whole {
        let judgement = judged(&staged, &differences);
        assert_eq!(judgement.verdict, Verdict::default(), "{staged:?} {differences:?}");
        assert!(judgement.unseen.is_empty() && judgement.unlisted.is_empty());
    }
}

#[test]
fn what_is_lost_or_wrong_deviates() {
    let put = Expected::File(object("1"));
    let keep = Expected::File(object("0"));
    let table = [
        ("other content", vec![("a", put)], vec![("a", None, file("2"))], vec![("a", put, file("2"))]),
        (
            "still the old",
            vec![("a", Expected::Gone)],
            vec![("a", file("0"), file("1"))],
            vec![("a", Expected::Gone, file("1"))],
        ),
        ("beside", vec![("a", put)], vec![("a", None, file("1")), ("b", file("0"), None)], vec![("b", keep, None)]),
        (
            "a directory beside, with what was in it",
            vec![("a", put)],
            vec![("a", None, file("1")), ("d", DIR, None), ("d/b", file("0"), None)],
            vec![("d/b", keep, None)],
        ),
        (
            "its own directory",
            vec![("d/a", put)],
            vec![("d", DIR, None), ("d/b", file("0"), None), ("d/a", file("9"), None)],
            vec![("d/a", put, None), ("d/b", keep, None)],
        ),
        (
            "a directory that became a file by itself",
            vec![("a", put)],
            vec![("a", None, file("1")), ("d", DIR, file("2"))],
            vec![("d", Expected::Dir, file("2"))],
        ),
        ("a file that became a directory", vec![("a", put)], vec![("a", file("0"), DIR)], vec![("a", put, DIR)]),
        (
            "only the removal below was staged",
            vec![("f/a", Expected::Gone)],
            vec![("f", file("0"), DIR), ("f/a", None, None)],
            vec![("f", keep, DIR)],
        ),
    ];
    for (what, staged, differences, expected) in table {
        assert_eq!(deviations(&judged(&staged, &differences)), expected, "{what}");
    }
}

#[test]
fn what_others_staged_at_the_same_time_is_no_loss() {
    let put = Expected::File(object("1"));
    let differences = [("a", None, file("1")), ("b", None, file("2")), ("c", file("0"), file("3"))];
    let judgement = judged(&[("a", put)], &differences);
    assert!(judgement.verdict.is_whole());
    let there = |name: &str, expected, found| Deviation { path: path(name), expected, found };
    let before = Expected::File(object("0"));
    assert_eq!(judgement.verdict.extra, [there("b", Expected::Gone, file("2")), there("c", before, file("3"))]);
}

#[test]
fn what_is_not_known_is_asked_for() {
    let put = Expected::File(object("1"));
    let staged = StagedSet::from([(path("same"), put), (path("d/gone"), Expected::Gone)]);
    let differences = Differences::from([(path("e"), Sides { old: DIR, new: None })]);
    let known = Known { differences, listed: Some(touched(&staged)), ..Known::default() };
    let judgement = judge(&staged, &known);
    assert_eq!(judgement.unseen, [path("d/gone"), path("same")]);
    assert_eq!(judgement.unlisted, [path("e")]);
}

#[test]
fn directories_above_all_that_is_staged_are_touched() {
    let staged = ["a/b/c/x", "a/y", "z"].map(|at| (path(at), Expected::Gone)).into();
    let dirs: Vec<String> = touched(&staged).iter().map(|dir| dir.as_str().to_owned()).collect();
    assert_eq!(dirs, ["", "a", "a/b", "a/b/c"]);
}

#[test]
fn the_parent_is_what_the_branch_stood_on() {
    let id = |text: &str| CommitId(text.into());
    let commit = |parents: &[&str]| CommitInfo {
        id: id("new"),
        parents: parents.iter().map(|parent| id(parent)).collect(),
        author: String::new(),
        email: String::new(),
        message: String::new(),
    };
    for (parents, head, expected) in [
        (&["head"][..], "head", Some("head")),
        (&["moved"], "head", Some("moved")),
        (&["base", "head"], "head", Some("head")),
        (&["moved", "base"], "head", Some("moved")),
        (&[], "head", None),
    ] {
        assert_eq!(parent_of(&commit(parents), &id(head)).map(|found| &*found.0), expected, "{parents:?}");
    }
}

#[test]
fn a_digest_tells_staged_sets_apart() {
    let of = |entries: &[(&str, Expected)]| digest(&entries.iter().map(|(at, what)| (path(at), *what)).collect());
    let (one, two) = (Expected::File(object("1")), Expected::File(object("2")));
    let sets: [&[(&str, Expected)]; 6] =
        [&[], &[("a", one)], &[("a", two)], &[("a", Expected::Gone)], &[("b", one)], &[("a", one), ("b", one)]];
    let digests: BTreeSet<String> = sets.iter().map(|set| of(set)).collect();
    assert_eq!(digests.len(), sets.len());
    assert!(digests.iter().all(|digest| digest.len() == 64));
    assert_eq!(of(&[("b", one), ("a", one)]), of(&[("a", one), ("b", one)]));
}

// ---- with a server

fn request() -> CommitRequest {
    CommitRequest { branch: "main".into(), message: "m".into(), author: "a".into(), email: "e".into() }
}

/// Commits `staged` on a server that holds `base`, with `faults`, while others have committed `theirs`; returns the
/// verdict by each way, and where the commit really is not what it should be.
async fn committed(
    base: &Tree,
    theirs: &Tree,
    staged: &BTreeMap<RepoPath, Option<String>>,
    faults: Vec<CommitFault>,
) -> ([Verdict; 2], BTreeSet<RepoPath>) {
    let memory = Memory::new(ByHash::Single);
    memory.set_base(base.clone());
    let mut expected = theirs.clone();
    let mut set = StagedSet::new();
    for (at, content) in staged {
        memory.stage_foreign(at.clone(), content.clone().map(Into::into));
        match content {
            Some(content) => expected.insert(at.clone(), content.clone().into()),
            None => expected.remove(at),
        };
        set.insert(at.clone(), content.as_ref().map_or(Expected::Gone, |content| Expected::File(object(content))));
    }
    memory.commit_foreign(theirs.clone());
    let head = memory.head("main").await.unwrap();
    memory.fault_commit(faults);
    let answered = memory.commit(&request()).await.unwrap();
    let commit = memory.commit_info(&answered.id).await.unwrap().unwrap();
    let parent = parent_of(&commit, &head).unwrap();
    let dirs = Costs { everything: usize::MAX, changed_dirs: 0 };
    let everything = Costs { everything: 0, changed_dirs: usize::MAX };
    let mut verdicts = [Verdict::default(), Verdict::default()];
    for (verdict, costs) in verdicts.iter_mut().zip([dirs, everything]) {
        *verdict = examine(&memory, &set, parent, &answered.id, costs).await.unwrap();
    }
    let found = memory.head_tree();
    let paths = found.keys().chain(expected.keys());
    (verdicts, paths.filter(|at| found.get(*at) != expected.get(*at)).cloned().collect())
}

/// No name is both a file and a directory: how servers mix these is for the table above.
const FILES: [&str; 8] = ["a", "b", "d/a", "d/b", "d/e/a", "d/e/b", "f/g/a", "h/a"];

fn trees() -> impl Strategy<Value = BTreeMap<RepoPath, Option<String>>> {
    let content = proptest::option::weighted(0.7, "[012]");
    proptest::collection::btree_map(proptest::sample::select(&FILES[..]), content, 0..8)
        .prop_map(|files| files.into_iter().map(|(at, content)| (path(at), content)).collect())
}

fn files(tree: BTreeMap<RepoPath, Option<String>>) -> Tree {
    tree.into_iter().filter_map(|(at, content)| Some((at, content?.into()))).collect()
}

fn fault() -> impl Strategy<Value = CommitFault> {
    let at = proptest::sample::select(&["a", "d", "d/a", "d/e", "d/e/b", "f", "h/a"][..]);
    (at, any::<bool>()).prop_map(|(at, drops)| match drops {
        true => CommitFault::Drops(path(at)),
        false => CommitFault::LeavesOut(path(at)),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    /// Both ways find what a server loses, also where nothing was touched, and nothing else.
    #[test]
    fn what_a_server_loses_is_found(
        base in trees(), theirs in trees(), staged in trees(), faults in proptest::collection::vec(fault(), 0..3),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (base, theirs) = (files(base), files(theirs));
        let ([by_dir, by_everything], lost) = runtime.block_on(committed(&base, &theirs, &staged, faults));
        let found = |verdict: &Verdict| -> BTreeSet<RepoPath> {
            verdict.deviations.iter().map(|deviation| deviation.path.clone()).collect()
        };
        prop_assert_eq!(&found(&by_everything), &lost);
        prop_assert_eq!(&found(&by_dir), &lost);
        prop_assert!(by_dir.extra.is_empty() && by_everything.extra.is_empty());
    }
}
