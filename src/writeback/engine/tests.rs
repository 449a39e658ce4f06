//! The engine on a source that a test scripts, and on the workspace in memory.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io::{Seek, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Engine;
use crate::hash::ContentHash;
use crate::namespace::{Generation, Ino, SpoolId};
use crate::path::RepoPath;
use crate::store::journal::PathUpload;
use crate::workspace::memory::{Fault, Memory};
use crate::workspace::{self, ByHash, Object, Revision};
use crate::writeback::index::{Account, Staged, Step};
use crate::writeback::queue::Phase;
use crate::writeback::{Asked, Back, Capture, Delays, Depends, Failed, Held, Keeper, Meter, Source, SourceError, Want};

/// Pauses that a test waits out without noticing.
const SHORT: Delays = Delays { first: Duration::from_millis(1), last: Duration::from_millis(4) };
/// Pauses that no test waits out.
const LONG: Delays = Delays { first: Duration::from_secs(3600), last: Duration::from_secs(3600) };
/// What takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the engine told the source.
#[derive(Debug, Clone, PartialEq)]
enum Told {
    Hashed(Ino, ContentHash),
    /// These go in one request.
    Intends(Vec<String>),
    Unanswered(Vec<String>),
    Answered(Vec<String>),
    Confirmed(String, Step),
    Failed(String, String, Failed),
    Back(String, Back),
    Hastened(String),
    Rescued(Ino),
    LookedForWorkspace,
    LetGo(SpoolId),
}

/// What is owed, and what was told.
#[derive(Default)]
struct Script {
    all: HashMap<RepoPath, Capture>,
    due: VecDeque<RepoPath>,
    later: Vec<(Instant, RepoPath)>,
    told: Vec<Told>,
    /// How often each has failed.
    attempts: HashMap<RepoPath, u32>,
    depends: HashMap<RepoPath, Depends>,
    emptied: BTreeSet<RepoPath>,
    contents: HashMap<ContentHash, Vec<u8>>,
    /// The record cannot be written.
    unwritable: bool,
    /// The workspace is missing, and made again when it is looked for.
    missing: bool,
    spools: u64,
}

struct Scripted {
    this: Weak<Self>,
    memory: Arc<Memory>,
    script: Mutex<Script>,
    wake: Notify,
    told: Notify,
    wanted_back: AtomicBool,
}

impl Scripted {
    fn new(by_hash: ByHash) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            this: this.clone(),
            memory: Arc::new(Memory::new(by_hash)),
            script: Mutex::default(),
            wake: Notify::new(),
            told: Notify::new(),
            wanted_back: AtomicBool::new(false),
        })
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap()
    }

    fn tell(&self, told: Told) {
        self.script().told.push(told);
        self.told.notify_waiters();
    }

    fn told(&self) -> Vec<Told> {
        self.script().told.clone()
    }

    /// Waits until it was told what `is` looks for; returns that.
    async fn until(&self, what: &str, is: impl Fn(&Told) -> bool) -> Told {
        let comes = async {
            loop {
                let next = self.told.notified();
                if let Some(found) = self.told().into_iter().find(|told| is(told)) {
                    return found;
                }
                next.await;
            }
        };
        let came = tokio::time::timeout(PATIENCE, comes).await;
        came.unwrap_or_else(|_| panic!("{what} does not come: {:#?}", self.told()))
    }

    async fn until_confirmed(&self, path: &str) {
        self.until(path, |told| matches!(told, Told::Confirmed(confirmed, _) if confirmed == path)).await;
    }

    /// The requests that were about to be sent, in order.
    fn intended(&self) -> Vec<Vec<String>> {
        let intends = |told| match told {
            Told::Intends(paths) => Some(paths),
            _ => None,
        };
        self.told().into_iter().filter_map(intends).collect()
    }

    fn owe(&self, path: &str, account: Account, want: Want) -> CancellationToken {
        let path = RepoPath::parse(path).unwrap();
        let mut script = self.script();
        let cancel = match &want {
            Want::Sealed { held, .. } => held.cancelled().clone(),
            _ => CancellationToken::new(),
        };
        script.due.push_back(path.clone());
        let seq = script.all.len() as u64;
        let capture = Capture { path: path.clone(), seq, account, want, alone: false, upload: None };
        script.all.insert(path, capture);
        drop(script);
        self.wake.notify_one();
        cancel
    }

    /// A new file with this content.
    fn write(&self, path: &str, content: &[u8]) -> CancellationToken {
        let spool = {
            let mut script = self.script();
            script.spools += 1;
            SpoolId(script.spools)
        };
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        let held = Held::new(self.this.clone(), spool, Some(Arc::new(file)), CancellationToken::new());
        let (ino, generation) = (Ino(spool.0), Generation::nth(1));
        let want = Want::Sealed { ino, generation, hash: None, size: content.len() as u64, held: Arc::new(held) };
        self.owe(path, Account::default(), want)
    }

    /// A file of the base is gone.
    fn remove(&self, path: &str) {
        self.owe(path, Account { base: Some(object(b"of the base")), ..Account::default() }, Want::Absent);
    }

    /// A file that was staged and is as the base has it.
    fn restore(&self, path: &str) {
        let account =
            Account { base: Some(object(b"of the base")), staged: Staged::Put(object(b"x")), ..Account::default() };
        self.owe(path, account, Want::AsBase);
    }

    fn start(self: &Arc<Self>, meter: &Arc<Meter>, delays: Delays) -> Running {
        let engine = Engine::new(self.clone(), self.memory.clone(), meter.clone(), delays);
        Running(tokio::spawn(engine.run()))
    }

    /// What the workspace shows.
    fn staged(&self) -> Vec<(String, Vec<u8>)> {
        self.memory.view().into_iter().map(|(path, content)| (path.to_string(), content.to_vec())).collect()
    }
}

/// An engine that ends with the test.
struct Running(tokio::task::JoinHandle<()>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn object(content: &[u8]) -> Object {
    Object { hash: ContentHash::of(crate::hash::HashKind::Xxh3, content), size: content.len() as u64 }
}

fn names<'a>(paths: impl IntoIterator<Item = &'a RepoPath>) -> Vec<String> {
    paths.into_iter().map(RepoPath::to_string).collect()
}

impl Keeper for Scripted {
    fn let_go(&self, spool: SpoolId, _by_cut: bool) {
        self.tell(Told::LetGo(spool));
    }
}

impl Source for Scripted {
    fn wake(&self) -> &Notify {
        &self.wake
    }

    fn tell_progress(&self) {}

    fn take_due(&self, limit: usize) -> (Vec<Capture>, Option<Instant>) {
        let mut script = self.script();
        let now = Instant::now();
        let (due, later): (Vec<_>, Vec<_>) = script.later.drain(..).partition(|(at, _)| *at <= now);
        script.later = later;
        script.due.extend(due.into_iter().map(|(_, path)| path));
        let count = script.due.len().min(limit);
        let paths: Vec<RepoPath> = script.due.drain(..count).collect();
        let captures = paths.iter().filter_map(|path| script.all.get(path).cloned()).collect();
        let next = script.later.iter().map(|(at, _)| *at).min();
        (captures, next)
    }

    fn attempts(&self, path: &RepoPath) -> u32 {
        self.script().attempts.get(path).copied().unwrap_or_default()
    }

    fn some_are_wanted_back(&self) -> bool {
        self.wanted_back.swap(false, Ordering::AcqRel)
    }

    fn set_phase(&self, _path: &RepoPath, _phase: Phase) {}

    fn hashed(&self, ino: Ino, _generation: Generation, found: ContentHash) {
        self.tell(Told::Hashed(ino, found));
    }

    fn knows_base_of(&self, _path: &RepoPath) -> bool {
        true
    }

    fn learn_base_of<'a>(&'a self, _path: &'a RepoPath) -> Asked<'a, ()> {
        async { Ok(()) }.boxed()
    }

    fn emptied_dirs(&self, _files: &HashSet<&RepoPath>) -> BTreeSet<RepoPath> {
        self.script().emptied.clone()
    }

    fn depends_on(&self, path: &RepoPath, _step: Step, lost: &HashSet<Ino>) -> Depends {
        match self.script().depends.get(path).cloned() {
            Some(Depends::Bytes(files)) if files.iter().all(|file| lost.contains(file)) => Depends::Nothing,
            depends => depends.unwrap_or(Depends::Nothing),
        }
    }

    fn hasten_before(&self, path: &RepoPath) -> bool {
        self.tell(Told::Hastened(path.to_string()));
        true
    }

    fn rescue(&self, ino: Ino) -> Asked<'_, ()> {
        async move {
            self.script()
                .depends
                .retain(|_, depends| !matches!(depends, Depends::Bytes(files) if files.contains(&ino)));
            self.tell(Told::Rescued(ino));
            Ok(())
        }
        .boxed()
    }

    fn fetch(&self, object: Object, _source: Option<workspace::Source>) -> Asked<'_, Arc<File>> {
        async move {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&self.script().contents[&object.hash]).unwrap();
            file.rewind().unwrap();
            Ok(Arc::new(file))
        }
        .boxed()
    }

    fn intend(&self, paths: &[&RepoPath], dirs: &BTreeSet<RepoPath>) -> Result<Vec<RepoPath>, SourceError> {
        if self.script().unwritable {
            return Err(SourceError::Local("the disk is full".to_owned()));
        }
        self.tell(Told::Intends(names(paths.iter().copied())));
        Ok(dirs.iter().cloned().collect())
    }

    fn flush(&self) -> Asked<'_, ()> {
        async { Ok(()) }.boxed()
    }

    fn went_unanswered(&self, paths: &[&RepoPath]) -> Result<(), SourceError> {
        self.tell(Told::Unanswered(names(paths.iter().copied())));
        Ok(())
    }

    fn was_answered(&self, dirs: &[RepoPath]) -> Result<(), SourceError> {
        self.tell(Told::Answered(names(dirs)));
        Ok(())
    }

    fn checkpoint(&self, path: &RepoPath, upload: PathUpload) {
        if let Some(capture) = self.script().all.get_mut(path) {
            capture.upload = Some(upload);
        }
    }

    fn find_workspace(&self) -> Asked<'_, bool> {
        async {
            self.tell(Told::LookedForWorkspace);
            Ok(std::mem::take(&mut self.script().missing))
        }
        .boxed()
    }

    fn note_others_commit<'a>(&'a self, _paths: &'a [RepoPath]) -> Asked<'a, bool> {
        async { Ok(false) }.boxed()
    }

    fn confirm(&self, steps: &[(Capture, Step)]) -> Result<(), SourceError> {
        for (capture, step) in steps {
            self.script().all.remove(&capture.path);
            self.tell(Told::Confirmed(capture.path.to_string(), *step));
        }
        Ok(())
    }

    fn fail(&self, capture: &Capture, error: &str, then: Failed) {
        {
            let mut script = self.script();
            *script.attempts.entry(capture.path.clone()).or_default() += 1;
            if let Failed::Again(delay) = then {
                script.later.push((Instant::now() + delay, capture.path.clone()));
            }
        }
        self.tell(Told::Failed(capture.path.to_string(), error.to_owned(), then));
    }

    fn put_back(&self, path: &RepoPath, back: Back) {
        {
            let mut script = self.script();
            match back {
                Back::After(delay) => script.later.push((Instant::now() + delay, path.clone())),
                Back::Alone => {
                    if let Some(capture) = script.all.get_mut(path) {
                        capture.alone = true;
                    }
                    script.due.push_back(path.clone());
                    self.wake.notify_one();
                }
            }
        }
        self.tell(Told::Back(path.to_string(), back));
    }
}

#[tokio::test]
async fn small_files_that_are_due_go_in_one_request_in_the_order_in_which_they_are() {
    let source = Scripted::new(ByHash::Never);
    for name in ["c", "a", "b"] {
        source.write(name, name.as_bytes());
    }
    let meter = Arc::<Meter>::default();
    let _engine = source.start(&meter, LONG);
    source.until_confirmed("b").await;
    assert_eq!(source.intended(), [["c", "a", "b"]]);
    let shown: Vec<(String, Vec<u8>)> = ["a", "b", "c"].map(|name| (name.to_owned(), name.into())).into();
    assert_eq!(source.staged(), shown);
    assert_eq!((meter.sent_bytes(), meter.deduplicated_bytes()), (3, 0));
}

#[tokio::test]
async fn each_size_goes_its_own_way_and_content_that_is_on_its_way_is_not_sent_twice() {
    let source = Scripted::new(ByHash::Single);
    let (middle, large) = (vec![1; 100 << 10], vec![2; 11 << 20]);
    source.write("small", b"small");
    source.write("middle", &middle);
    source.write("large", &large);
    source.write("small too", b"small too");
    // Hashed after the others, so that these are on their way by then.
    source.write("large again", &large);
    let meter = Arc::<Meter>::default();
    let _engine = source.start(&meter, SHORT);
    source.until_confirmed("large again").await;
    source.until_confirmed("small too").await;
    let intended = source.intended();
    assert!(intended.contains(&vec!["middle".to_owned()]) && intended.contains(&vec!["large".to_owned()]));
    assert!(intended.contains(&vec!["small".to_owned(), "small too".to_owned()]), "{intended:?}");
    let place = |path: &str| source.told().iter().position(|told| *told == Told::Intends(vec![path.to_owned()]));
    let confirmed =
        |path: &str| source.told().iter().position(|told| matches!(told, Told::Confirmed(other, _) if other == path));
    assert!(place("large again") > confirmed("large"), "{:?}", source.told());
    assert_eq!(meter.deduplicated_bytes(), large.len() as u64);
    assert_eq!(source.memory.sent_bytes(), (large.len() + middle.len() + "smallsmall too".len()) as u64);
}

#[tokio::test]
async fn of_what_is_dropped_and_what_is_removed_the_first_that_is_owed_goes_first_and_never_both_at_once() {
    for first in ["dropped", "removed"] {
        let source = Scripted::new(ByHash::Never);
        let under_way = Arc::new(Mutex::new((HashSet::new(), Vec::new())));
        let seen = under_way.clone();
        source.memory.set_witness(Arc::new(move |name| {
            let (under_way, order) = &mut *seen.lock().unwrap();
            if !under_way.remove(name) {
                assert!(under_way.is_empty(), "{name} beside {under_way:?}");
                under_way.insert(name);
                order.push(name);
            }
        }));
        match first {
            "dropped" => {
                source.restore("dropped");
                source.remove("removed");
            }
            _ => {
                source.remove("removed");
                source.restore("dropped");
            }
        }
        let _engine = source.start(&Arc::default(), LONG);
        source.until_confirmed("dropped").await;
        source.until_confirmed("removed").await;
        let last = if first == "dropped" { "removed" } else { "dropped" };
        assert_eq!(source.intended(), [[first], [last]]);
        assert_eq!(under_way.lock().unwrap().1.len(), 2);
    }
}

#[tokio::test]
async fn a_request_that_is_refused_whole_is_sent_file_by_file_and_the_one_that_is_to_blame_is_parked() {
    let source = Scripted::new(ByHash::Never);
    for name in ["a", "bad", "c"] {
        source.write(name, name.as_bytes());
    }
    // The server understood it, and will not do it: as long as that is in it.
    let script = Arc::downgrade(&source);
    source.memory.set_fault(move |_| {
        let intended = script.upgrade().unwrap().intended();
        let is_in = intended.last().is_some_and(|paths| paths.contains(&"bad".to_owned()));
        if is_in { Fault::Refused(422) } else { Fault::None }
    });
    let _engine = source.start(&Arc::default(), LONG);
    source.until("the end of it", |told| matches!(told, Told::Failed(path, ..) if path == "bad")).await;
    source.until_confirmed("a").await;
    source.until_confirmed("c").await;
    let told = source.told();
    let failed: Vec<&Told> = told.iter().filter(|told| matches!(told, Told::Failed(..))).collect();
    let [Told::Failed(path, error, Failed::Parked)] = failed.as_slice() else { panic!("{failed:?}") };
    assert!(path == "bad" && error.contains("422"), "{path}: {error}");
    for name in ["a", "bad", "c"] {
        assert!(told.contains(&Told::Back(name.to_owned(), Back::Alone)), "{told:?}");
        assert!(told.contains(&Told::Intends(vec![name.to_owned()])), "{told:?}");
    }
}

#[tokio::test]
async fn a_request_without_an_answer_is_watched_and_all_waits_until_the_server_answers_again() {
    let source = Scripted::new(ByHash::Never);
    source.write("a", b"a");
    source.write("b", b"b");
    let answers = Arc::new(AtomicBool::new(false));
    let open = answers.clone();
    source.memory.set_fault(move |_| if open.load(Ordering::Acquire) { Fault::None } else { Fault::AnswerLost });
    let meter = Arc::<Meter>::default();
    let _engine = source.start(&meter, SHORT);
    source.until("the news of it", |told| matches!(told, Told::Unanswered(_))).await;
    source.until("the second attempt", |told| matches!(told, Told::Back(path, Back::After(_)) if path == "b")).await;
    assert_eq!(meter.stalled_reason(), Some("unreachable"));
    let told = source.told();
    assert!(told.contains(&Told::Unanswered(vec!["a".to_owned(), "b".to_owned()])), "{told:?}");
    assert!(!told.iter().any(|told| matches!(told, Told::Failed(..) | Told::Confirmed(..))), "{told:?}");
    answers.store(true, Ordering::Release);
    source.until_confirmed("a").await;
    source.until_confirmed("b").await;
    assert_eq!((meter.stalled_reason(), meter.stalled()), (None, None));
}

#[tokio::test]
async fn of_a_request_that_is_answered_in_part_what_the_answer_does_not_tell_of_is_sent_again() {
    let source = Scripted::new(ByHash::Never);
    source.write("a", b"a");
    source.write("b", b"b");
    let mut answered = 0;
    source.memory.set_fault(move |_| {
        answered += 1;
        if answered == 1 { Fault::Partly } else { Fault::None }
    });
    let _engine = source.start(&Arc::default(), SHORT);
    source.until_confirmed("b").await;
    let told = source.told();
    let about = |path: &str| -> Vec<&Told> {
        let is = |told: &&Told| matches!(told, Told::Confirmed(p, _) | Told::Failed(p, ..) if p == path);
        told.iter().filter(is).collect()
    };
    assert!(matches!(about("a").as_slice(), [Told::Confirmed(..)]), "{told:?}");
    let [Told::Failed(_, error, Failed::Again(_)), Told::Confirmed(..)] = about("b")[..] else { panic!("{told:?}") };
    assert_eq!(error, "the server did not confirm b");
    assert_eq!(source.intended(), [vec!["a", "b"], vec!["b"]]);
}

#[tokio::test]
async fn what_a_writer_wants_back_is_put_back_while_it_waits_for_the_server() {
    let source = Scripted::new(ByHash::Never);
    source.write("first", b"first");
    source.memory.set_fault(|_| Fault::Lost);
    let meter = Arc::<Meter>::default();
    let _engine = source.start(&meter, LONG);
    source.until("the outage", |told| matches!(told, Told::Back(path, _) if path == "first")).await;
    let cancel = source.write("wanted", b"wanted");
    source.write("other", b"other");
    source.until("its hash", |told| matches!(told, Told::Hashed(Ino(3), _))).await;
    cancel.cancel();
    source.wanted_back.store(true, Ordering::Release);
    source.wake.notify_one();
    let back = source.until("it", |told| matches!(told, Told::Back(path, _) if path == "wanted")).await;
    assert_eq!(back, Told::Back("wanted".to_owned(), Back::After(LONG.first)));
    let told = source.told();
    assert!(!told.iter().any(|told| matches!(told, Told::Back(path, _) if path == "other")), "{told:?}");
    assert_eq!(source.intended(), [["first"]], "nothing is sent in an outage");
}

#[tokio::test]
async fn nothing_is_sent_that_is_not_on_record_before() {
    let source = Scripted::new(ByHash::Never);
    source.script().unwritable = true;
    source.write("a", b"a");
    let requests = Arc::new(Mutex::new(0));
    let seen = requests.clone();
    source.memory.set_witness(Arc::new(move |_| *seen.lock().unwrap() += 1));
    let meter = Arc::<Meter>::default();
    let _engine = source.start(&meter, SHORT);
    source.until("the refusal", |told| matches!(told, Told::Back(..))).await;
    assert_eq!((*requests.lock().unwrap(), meter.stalled_reason()), (0, Some("local_disk")));
    source.script().unwritable = false;
    source.until_confirmed("a").await;
    assert_eq!(meter.stalled_reason(), None);
}

#[tokio::test]
async fn a_step_waits_for_what_it_depends_on() {
    let source = Scripted::new(ByHash::Never);
    let path = |path: &str| RepoPath::parse(path).unwrap();
    source.script().depends = HashMap::from([
        (path("turns"), Depends::Turns),
        (path("bytes"), Depends::Bytes(vec![Ino(70), Ino(71)])),
        (path("somebody"), Depends::Somebody(path("there"))),
    ]);
    for name in ["turns", "somebody", "bytes"] {
        source.write(name, name.as_bytes());
    }
    let _engine = source.start(&Arc::default(), SHORT);
    source.until_confirmed("bytes").await;
    let told = source.told();
    for ino in [Ino(70), Ino(71)] {
        assert_eq!(told.iter().filter(|told| **told == Told::Rescued(ino)).count(), 1, "{told:?}");
    }
    let [Told::Failed(kept_out, error, Failed::KeptOut)] =
        told.iter().filter(|told| matches!(told, Told::Failed(..))).collect::<Vec<_>>()[..]
    else {
        panic!("{told:?}")
    };
    assert!(kept_out == "somebody" && error.contains("there"), "{error}");
    assert!(told.contains(&Told::Hastened("turns".to_owned())), "{told:?}");
    assert_eq!(source.intended(), [["bytes"]]);
    source.script().depends.remove(&path("turns"));
    source.until_confirmed("turns").await;
}

#[tokio::test]
async fn what_the_server_is_thought_to_have_is_staged_by_its_hash_and_fetched_and_sent_where_it_has_it_not() {
    let source = Scripted::new(ByHash::Batch);
    let (known, gone) = (b"known".as_slice(), b"gone".as_slice());
    source.memory.set_base([(RepoPath::parse("old").unwrap(), known.into())].into());
    source.script().contents.insert(object(gone).hash, gone.to_vec());
    for (at, content) in [(1, known), (2, gone)] {
        let from = workspace::Source { revision: Revision::Workspace, path: RepoPath::parse("old").unwrap() };
        let want = Want::Remote { ino: Ino(at), object: object(content), source: Some(from) };
        source.owe(&format!("new{at}"), Account::default(), want);
    }
    let meter = Arc::<Meter>::default();
    let _engine = source.start(&meter, SHORT);
    source.until_confirmed("new1").await;
    source.until_confirmed("new2").await;
    assert_eq!(source.intended(), [vec!["new1", "new2"], vec!["new2"]]);
    assert_eq!((meter.sent_bytes(), meter.deduplicated_bytes()), (gone.len() as u64, known.len() as u64));
}

#[tokio::test]
async fn an_answer_of_a_workspace_that_was_made_again_meanwhile_confirms_nothing() {
    let source = Scripted::new(ByHash::Never);
    source.write("a", b"a");
    source.script().missing = true;
    source.memory.delete_workspace();
    let memory = source.memory.clone();
    let _engine = source.start(&Arc::default(), SHORT);
    source.until("the look", |told| *told == Told::LookedForWorkspace).await;
    let back = source.until("it", |told| matches!(told, Told::Back(path, Back::After(_)) if path == "a")).await;
    assert!(!source.told().iter().any(|told| matches!(told, Told::Confirmed(..) | Told::Failed(..))), "{back:?}");
    workspace::Workspace::reopen(&*memory, "main", &workspace::CommitId("c0".into())).await.unwrap();
    source.until_confirmed("a").await;
}

#[tokio::test]
async fn directories_that_a_removal_takes_along_are_put_into_it_by_nobody_meanwhile() {
    let source = Scripted::new(ByHash::Never);
    source.script().emptied = [RepoPath::parse("dir").unwrap()].into();
    source.remove("dir/last");
    let meanwhile = Arc::downgrade(&source);
    let mut began = false;
    source.memory.set_fault(move |name| {
        let source = meanwhile.upgrade().unwrap();
        if name == "remove" && !std::mem::replace(&mut began, true) {
            source.write("dir/new", b"new");
            source.write("beside", b"beside");
            return Fault::Lost;
        }
        Fault::None
    });
    let _engine = source.start(&Arc::default(), SHORT);
    source.until_confirmed("dir/last").await;
    source.script().emptied.clear();
    source.until_confirmed("dir/new").await;
    source.until_confirmed("beside").await;
    let told = source.told();
    // Lost once: from then on the directory is watched. Answered the second time, and watched no more.
    assert!(told.contains(&Told::Unanswered(vec!["dir/last".to_owned(), "dir".to_owned()])), "{told:?}");
    assert!(told.contains(&Told::Answered(vec!["dir".to_owned()])), "{told:?}");
    let removed = told.iter().position(|told| matches!(told, Told::Confirmed(path, _) if path == "dir/last"));
    let put =
        told.iter().position(|told| matches!(told, Told::Intends(paths) if paths.contains(&"dir/new".to_owned())));
    assert!(removed.is_some() && put > removed || source.staged().iter().any(|(path, _)| path == "dir/new"));
}
