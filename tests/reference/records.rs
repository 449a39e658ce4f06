//! State directories as they lie on a disk: those of every format that there was, those of a newer oxenfs, those that are
//! damaged or forged. `tests/golden/` has one a format, as a daemon of that version left it when it was killed.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use oxenfs::fs::{Fs, Label, Limits, Need, OpenFlags, Options, RenameMode, Shown as Mounted, Stop, repair, survey};
use oxenfs::namespace::{Attrs, BodyRecord, Ino, InodeRecord, ROOT, SpoolId, Timestamp};
use oxenfs::path::{Name, RepoPath};
use oxenfs::store::disk::Disk;
use oxenfs::store::journal::{Change, CommitIntent, Journal, JournalError};
use oxenfs::workspace::memory::Memory;
use oxenfs::workspace::{ByHash, CommitId, Object, Workspace};

use crate::model::{Model, Path, Shown};
use crate::sweep::copy;
use crate::world::{Manner, Op, World, split, temporary_dir};

/// What the commit under the golden directories holds.
const BASE: [(&str, &str); 5] =
    [("base", "base content"), ("dir/a", "a"), ("dir/from", "moves"), ("dir/removed", "gone"), ("dir/sub/b", "b")];

fn golden(name: &str) -> Arc<tempfile::TempDir> {
    let dir = temporary_dir();
    copy(&FsPath::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name), dir.path());
    Arc::new(dir)
}

fn memory() -> Arc<Memory> {
    memory_with(ByHash::Single)
}

fn memory_with(by_hash: ByHash) -> Arc<Memory> {
    let memory = Arc::new(Memory::new(by_hash));
    let base = BASE.map(|(path, text)| (RepoPath::parse(path).unwrap(), text.into()));
    memory.set_base(base.into_iter().collect());
    memory
}

async fn opened(dir: &Arc<tempfile::TempDir>, memory: &Arc<Memory>) -> Result<World, JournalError> {
    World::try_recovered(dir.clone(), memory.clone(), Disk::default(), Model::default(), false, Manner::Plain).await
}

/// What the mount showed when the daemon was killed.
fn owed() -> BTreeMap<Path, Shown> {
    let path = |text: &str| text.split('/').map(str::to_owned).collect::<Path>();
    let file = |text: &str| Shown::File(text.as_bytes().to_vec());
    BTreeMap::from([
        (path("base"), file("replaced content")),
        (path("big"), Shown::File(vec![0; 40_000])),
        (path("dir"), Shown::Dir),
        (path("dir/a"), file("a")),
        (path("dir/to"), file("moves")),
        (path("empty"), Shown::Dir),
        (path("hard"), file("new content")),
        (path("moved"), Shown::Dir),
        (path("moved/b"), file("b")),
        (path("new"), file("new content")),
        (path("soft"), Shown::Symlink),
    ])
}

fn segments(dir: &FsPath) -> Vec<(PathBuf, String)> {
    let entries = std::fs::read_dir(dir.join("journal")).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = entries.filter(|path| path.is_file()).collect();
    found.sort();
    found
        .into_iter()
        .map(|path| (path.clone(), String::from_utf8_lossy(&std::fs::read(path).unwrap()).into()))
        .collect()
}

#[test]
fn a_directory_of_every_format_opens_with_what_it_owes_and_is_brought_to_the_newest() {
    crate::world::runtime(2).block_on(async {
        for name in ["format-1", "format-2", "unknown-field"] {
            let (dir, memory) = (golden(name), memory());
            for _ in 0..2 {
                let mut world = opened(&dir, &memory).await.unwrap_or_else(|error| panic!("{name}: {error}"));
                assert_eq!(world.shown().await, owed(), "{name}");
                let found = segments(dir.path());
                let newest = found.iter().all(|(_, text)| text.starts_with("{\"oxenfs_journal\":2,"));
                assert!(newest, "{name}: {:?}", found.iter().map(|(path, _)| path).collect::<Vec<_>>());
                world.keep(&Op::Compact).await;
                if name == "unknown-field" {
                    let (_, text) = segments(dir.path()).pop().unwrap();
                    assert!(text.contains(r#""reviewed":true"#) && text.contains(r#""by":"a newer oxenfs""#), "{text}");
                }
                world.killed().await;
            }
            let world = opened(&dir, &memory).await.unwrap();
            assert_eq!(world.stage_all().await, 0, "{name}: {:?}", world.report());
            let files = owed().into_iter().filter_map(|(path, shown)| match shown {
                Shown::File(content) => Some((path.join("/"), content)),
                _ => None,
            });
            assert_eq!(world.view(), files.collect(), "{name}");
        }
    });
}

#[test]
fn a_kind_that_a_newer_oxenfs_wrote_is_refused_and_nothing_is_changed() {
    crate::world::runtime(1).block_on(async {
        let dir = golden("unknown-kind");
        let before = segments(dir.path());
        match opened(&dir, &memory()).await.err() {
            Some(error @ JournalError::Unknown { .. }) => {
                let told = error.to_string();
                assert!(told.contains("newer oxenfs") && told.contains("a change of the kind \"hologram\""), "{told}");
            }
            other => panic!("{other:?}"),
        }
        assert!(segments(dir.path()) == before && !dir.path().join("lost+found").exists());
        let shown = Mounted { root_path: RepoPath::root(), access: None };
        assert!(matches!(repair(&Disk::default(), dir.path(), &shown, true), Err(JournalError::Unknown { .. })));
        assert!(segments(dir.path()) == before);
    });
}

fn attrs() -> Attrs {
    let zero = Timestamp(0, 0);
    Attrs { mode: 0o644, uid: 0, gid: 0, atime: zero, mtime: zero, ctime: zero }
}

fn inode(ino: u64, body: BodyRecord) -> Change {
    Change::Inode { ino: Ino(ino), record: InodeRecord { attrs: attrs(), body } }
}

fn dir(ino: u64) -> Change {
    inode(ino, BodyRecord::Dir { based: false })
}

fn link(parent: u64, name: &str, ino: u64) -> Change {
    Change::Link { parent: Ino(parent), name: Name::new(name.as_bytes()).unwrap(), ino: Ino(ino) }
}

fn start(dir: &FsPath) -> Result<Arc<Fs>, JournalError> {
    start_with(dir, &memory())
}

/// A filesystem of which nothing is staged.
fn start_with(dir: &FsPath, memory: &Arc<Memory>) -> Result<Arc<Fs>, JournalError> {
    let options = Options { read_only: false, settle: Duration::from_secs(3600), uid: 0, gid: 0, umask: 0o022 };
    Fs::recover(dir, RepoPath::root(), options, Limits { spool: None, cache: 1 << 20 }, memory.clone())
}

#[test]
fn what_cannot_have_been_is_not_believed_though_its_checksum_is_right() {
    let root = ROOT.0;
    let spool = |ino, id| inode(ino, BodyRecord::Spool(SpoolId(id)));
    let hash = oxenfs::hash::ContentHash::of(oxenfs::hash::HashKind::Xxh3, b"");
    let remote = |size| BodyRecord::Remote { object: Object { hash, size }, origin: None };
    let ignore = |name: &str| Change::Ignore { parent: ROOT, name: Name::new(name.as_bytes()).unwrap() };
    let forged: [(&str, Vec<Change>); 14] = [
        ("lies within itself", vec![dir(2), link(2, "self", 2)]),
        ("lies within itself", vec![dir(2), dir(3), link(2, "a", 3), link(3, "b", 2)]),
        ("has two names", vec![dir(2), dir(3), link(root, "a", 2), link(root, "b", 3), link(3, "c", 2)]),
        ("the root has a name", vec![dir(2), link(root, "a", 2), link(2, "up", root)]),
        ("leads nowhere", vec![link(root, "a", 77)]),
        ("leads nowhere", vec![spool(2, 1), link(77, "a", 2)]),
        ("stands for no file", vec![ignore("a")]),
        ("stands for no file", vec![dir(2), link(root, "a", 2), ignore("a")]),
        ("is no directory", vec![spool(2, 1), spool(3, 2), link(root, "a", 2), link(2, "b", 3)]),
        ("is longer than any can be", vec![inode(2, remote(u64::MAX))]),
        ("no inode can have the number", vec![dir(u64::MAX)]),
        ("no spool file can have the number", vec![spool(2, u64::MAX)]),
        ("a directory and something else", vec![dir(2), link(root, "a", 2), spool(2, 1)]),
        ("is the content of inodes 2 and 3", vec![spool(2, 1), spool(3, 1), link(root, "a", 2), link(root, "b", 3)]),
    ];
    for (why, changes) in forged {
        let temp = temporary_dir();
        let journal = temp.path().join("journal");
        let mut log = Journal::open(&journal, |_| ()).unwrap();
        log.commit(log.append(&changes)).unwrap();
        log = {
            drop(log);
            Journal::open(&journal, |_| ()).unwrap()
        };
        drop(log);
        std::fs::rename(journal.join("mark"), temp.path().join("journal.mark")).unwrap();
        let shown = Mounted { root_path: RepoPath::root(), access: None };
        for refused in [start(temp.path()).err(), survey(temp.path(), &shown, 1).err()] {
            match refused {
                Some(JournalError::Damaged(damage)) => assert!(damage.what.contains(why), "{changes:?}: {damage}"),
                other => panic!("{changes:?}: {other:?}"),
            }
        }
        // And what is left of it without that can be had.
        repair(&Disk::default(), temp.path(), &shown, true).unwrap();
        survey(temp.path(), &shown, 1).unwrap_or_else(|error| panic!("{changes:?}: {error}"));
    }
}

/// Nothing else of the record tells: neither what a compaction writes anew, nor what a repair puts together.
#[test]
fn what_is_ignored_stays_so_through_compactions_and_repairs() {
    let temp = temporary_dir();
    let write = OpenFlags { read: true, write: true, truncate: false, execute: false };
    let runtime = crate::world::runtime(1);
    let begin = || {
        let fs = start(temp.path()).unwrap();
        runtime.block_on(fs.reconcile()).unwrap();
        runtime.block_on(fs.satisfy(Need::List(ROOT))).unwrap();
        fs
    };
    let fs = begin();
    fs.ignore_also(&["kept".to_owned()]);
    runtime.block_on(fs.judge()).unwrap();
    for name in ["kept", "free"] {
        let (_, handle) = fs.create(ROOT, &Name::new(name.as_bytes()).unwrap(), attrs(), write).unwrap();
        fs.write(handle, 0, b"12").unwrap();
        fs.release(handle);
    }
    let tally = |fs: &Fs| (fs.ignored().files, fs.owed());
    assert_eq!(tally(&fs), (1, 1));
    fs.compact(true).unwrap();
    drop(fs);
    // Without the patterns, and nobody judges.
    assert_eq!(tally(&begin()), (1, 1));
    let (journal, mark) = (temp.path().join("journal"), temp.path().join("journal.mark"));
    let log = Journal::open_marked(&Disk::default(), &journal, &mark, &mut |_, _| Ok(())).unwrap();
    log.commit(log.append(&[link(ROOT.0, "gone", 77)])).unwrap();
    drop(log);
    let shown = Mounted { root_path: RepoPath::root(), access: None };
    assert!(matches!(start(temp.path()).err(), Some(JournalError::Damaged(_))));
    repair(&Disk::default(), temp.path(), &shown, true).unwrap();
    assert_eq!(tally(&begin()), (1, 1));
}

/// A daemon that is killed while programs have removed files open, again and again: none of them is in the way of a later
/// mount, and no two files ever have one number, as far as the record can tell.
#[test]
fn files_that_were_removed_and_open_at_a_kill_are_in_no_mounts_way() {
    let temp = temporary_dir();
    let write = OpenFlags { read: true, write: true, truncate: false, execute: false };
    let runtime = crate::world::runtime(1);
    for round in 0..4 {
        let fs = start(temp.path()).unwrap_or_else(|error| panic!("round {round}: {error}"));
        runtime.block_on(fs.reconcile()).unwrap();
        runtime.block_on(fs.satisfy(Need::List(ROOT))).unwrap();
        for (what, removed) in [("kept", false), ("removed", true)] {
            let name = Name::new(format!("{what}{round}").as_bytes()).unwrap();
            fs.create(ROOT, &name, attrs(), write).unwrap();
            if removed {
                fs.unlink(ROOT, &name).unwrap();
            }
        }
        drop(fs);
        // Their bytes go aside here: the spool does not tell of their numbers any more.
        start(temp.path()).unwrap().tidy_all().unwrap();
    }
    let mut named = Vec::new();
    Journal::read_marked(&temp.path().join("journal"), &temp.path().join("journal.mark"), &mut |_, change| {
        if let Change::Inode { ino, record: InodeRecord { body: BodyRecord::Spool(spool), .. } } = change {
            named.push((spool, ino));
        }
        Ok(())
    })
    .unwrap();
    named.sort_unstable();
    named.dedup();
    assert_eq!(named.len(), 8, "{named:?}");
    assert!(named.windows(2).all(|pair| pair[0].0 != pair[1].0), "a number was used twice: {named:?}");
    start(temp.path()).unwrap();
}

/// Records of daemons before this one have such files twice.
#[test]
fn a_removed_file_that_has_the_number_of_another_is_no_damage() {
    let temp = temporary_dir();
    let journal = temp.path().join("journal");
    let spool = |ino| inode(ino, BodyRecord::Spool(SpoolId(1)));
    let log = Journal::open(&journal, |_| ()).unwrap();
    let name = Name::new(b"a").unwrap();
    let removed = Change::Unlink { parent: ROOT, name, hide: false };
    log.commit(log.append(&[spool(2), link(ROOT.0, "a", 2), removed])).unwrap();
    log.commit(log.append(&[spool(3), link(ROOT.0, "b", 3)])).unwrap();
    drop(log);
    std::fs::rename(journal.join("mark"), temp.path().join("journal.mark")).unwrap();
    let bytes = temp.path().join("spool/01/1");
    std::fs::create_dir_all(bytes.parent().unwrap()).unwrap();
    std::fs::write(&bytes, "b's").unwrap();
    drop(start(temp.path()).unwrap());
    assert_eq!(std::fs::read(&bytes).unwrap(), b"b's");
    start(temp.path()).unwrap();
}

#[test]
fn what_lies_where_oxenfs_keeps_its_files_is_named() {
    let foreign: [(&str, bool); 3] = [("spool/notes.txt", false), ("cache/fetching/photos", true), ("cache/x", false)];
    for (path, is_dir) in foreign {
        let temp = temporary_dir();
        drop(start(temp.path()).unwrap());
        let path = temp.path().join(path);
        match is_dir {
            true => std::fs::create_dir_all(&path).unwrap(),
            false => std::fs::write(&path, "x").unwrap(),
        }
        match start(temp.path()).err() {
            Some(JournalError::Stray { path: named }) => assert_eq!(named, path),
            other => panic!("{other:?}"),
        }
        assert!(path.exists());
    }
}

#[test]
fn a_record_that_is_gone_is_missed() {
    for gone in ["journal", "journal and mark", "journal.00000001", "all but the spool"] {
        let dir = golden("format-2");
        let below = |name: &str| dir.path().join(name);
        match gone {
            "journal" => std::fs::remove_dir_all(below("journal")).unwrap(),
            "journal.00000001" => std::fs::remove_file(below("journal/journal.00000001")).unwrap(),
            _ => {
                std::fs::remove_dir_all(below("journal")).unwrap();
                std::fs::remove_file(below("journal.mark")).unwrap();
                // No record: what an earlier crash left.
                std::fs::create_dir(below("journal")).unwrap();
                std::fs::write(below("journal/journal.00000001.torn"), "x").unwrap();
            }
        }
        if gone == "all but the spool" {
            std::fs::remove_dir_all(below("cache")).unwrap();
            std::fs::remove_file(below("meta.json")).unwrap();
        }
        match start(dir.path()).err() {
            Some(JournalError::Damaged(damage)) => {
                assert!(
                    damage.owed.as_ref().unwrap().contains("files here that it may lack: 3, 40027 bytes"),
                    "{damage}"
                );
            }
            other => panic!("{gone}: {other:?}"),
        }
        let shown = Mounted { root_path: RepoPath::root(), access: None };
        let repaired = repair(&Disk::default(), dir.path(), &shown, true).unwrap();
        assert_eq!(repaired.rescued.len(), 3, "{gone}: {repaired:?}");
        drop(start(dir.path()).unwrap());
    }
}

#[test]
fn a_file_that_changed_places_with_the_record_comes_back() {
    let dir = golden("format-2");
    let segment = dir.path().join("journal/journal.00000001");
    let spool = std::fs::read_dir(dir.path().join("spool")).unwrap();
    let files =
        spool.flat_map(|part| std::fs::read_dir(part.unwrap().path()).unwrap()).map(|file| file.unwrap().path());
    let spooled = files.max_by_key(|path| std::fs::metadata(path).unwrap().len()).unwrap();
    let bytes = std::fs::read(&spooled).unwrap();
    let aside = dir.path().join("aside");
    for (from, to) in [(&segment, &aside), (&spooled, &segment), (&aside, &spooled)] {
        std::fs::rename(from, to).unwrap();
    }
    assert!(matches!(start(dir.path()).err(), Some(JournalError::Damaged(_))));
    let shown = Mounted { root_path: RepoPath::root(), access: None };
    for apply in [false, true] {
        let found = repair(&Disk::default(), dir.path(), &shown, apply).unwrap();
        let foreign = found.rescued.iter().find(|file| file.label == Label::Foreign).unwrap();
        assert_eq!((&*foreign.name, foreign.bytes), ("foreign.journal.00000001", bytes.len() as u64));
    }
    assert_eq!(std::fs::read(dir.path().join("lost+found/foreign.journal.00000001")).unwrap(), bytes);
    drop(start(dir.path()).unwrap());
}

#[test]
fn a_file_that_no_record_names_is_set_aside_and_goes_after_two_weeks_or_when_room_is_short() {
    let temp = temporary_dir();
    drop(start(temp.path()).unwrap());
    std::fs::create_dir_all(temp.path().join("spool/07")).unwrap();
    std::fs::write(temp.path().join("spool/07/7"), "precious").unwrap();
    let fs = start(temp.path()).unwrap();
    fs.tidy_all().unwrap();
    let aside = temp.path().join("lost+found/stray-7");
    assert_eq!(std::fs::read_to_string(&aside).unwrap(), "precious");
    assert!(!temp.path().join("spool/07/7").exists());
    let since = std::fs::metadata(&aside).unwrap().ctime() as u64;
    let lost = oxenfs::fs::LostFound::new(&Disk::default(), temp.path());
    let at = |days: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(since + days * 24 * 3600);
    lost.expire(at(13));
    assert!(aside.exists());
    lost.expire(at(15));
    assert!(!aside.exists());
    std::fs::write(&aside, "again").unwrap();
    std::fs::write(temp.path().join("lost+found/new.9.cat.jpg"), "salvaged").unwrap();
    assert!(lost.make_way(1));
    assert!(!aside.exists(), "makes way");
    assert!(!lost.make_way(1) && temp.path().join("lost+found/new.9.cat.jpg").exists(), "not what was salvaged");
}

#[test]
fn an_open_commit_intention_survives_a_repair() {
    let temp = temporary_dir();
    let (journal, mark) = (temp.path().join("journal"), temp.path().join("journal.mark"));
    let intent = CommitIntent {
        head: CommitId("c1".into()),
        request: crate::world::commit_request(),
        digest: "of what was staged".into(),
    };
    let mut nothing = |_, _| Ok(());
    let log = Journal::open_marked(&Disk::default(), &journal, &mark, &mut nothing).unwrap();
    let frames = [
        vec![dir(2), link(ROOT.0, "d", 2)],
        vec![Change::Intent { intent: Some(intent.clone()) }],
        vec![dir(3), link(ROOT.0, "e", 3)],
    ];
    for frame in &frames {
        log.sync(log.append(frame)).unwrap();
    }
    drop(log);
    // In the frame before, and in the one behind it.
    let segment = journal.join("journal.00000001");
    let whole = std::fs::read(&segment).unwrap();
    for name in [r#""n":"d""#, r#""n":"e""#] {
        let mut bytes = whole.clone();
        let at = bytes.windows(name.len()).position(|part| part == name.as_bytes()).unwrap();
        bytes[at + 5] ^= 1;
        let hurt = temporary_dir();
        copy(temp.path(), hurt.path());
        std::fs::write(hurt.path().join("journal/journal.00000001"), &bytes).unwrap();
        assert!(matches!(start(hurt.path()), Err(JournalError::Damaged(_))));
        let shown = Mounted { root_path: RepoPath::root(), access: None };
        repair(&Disk::default(), hurt.path(), &shown, true).unwrap();
        for _ in 0..2 {
            let fs = start(hurt.path()).unwrap();
            assert_eq!(fs.intent().as_ref(), Some(&intent), "{name}");
            fs.compact(true).unwrap();
        }
    }
}

/// The record ends with the rename of a staged file to a name that got newer content later. Its old name is to be removed,
/// for which its bytes are got from the server first: that makes the conflict no smaller.
#[test]
fn a_conflict_after_a_repair_waits_until_somebody_names_it() {
    crate::world::runtime(2).block_on(async {
        let (dir, memory) = (Arc::new(temporary_dir()), memory());
        let mut world = opened(&dir, &memory).await.unwrap();
        world.model = crate::world::model_of(&BASE);
        let write = |path: &str, text: &str| Op::Replace { path: split(path), text: text.into() };
        let rename = |from: &str, to: &str| Op::Rename { from: split(from), to: split(to), mode: 0 };
        for op in [write("old", "older"), Op::Drain, rename("old", "renamed"), Op::Drain] {
            world.step(&op).await;
        }
        for op in [write("renamed", "newer"), write("old", "older"), Op::Drain] {
            world.step(&op).await;
        }
        world.killed().await;
        let segment = dir.path().join("journal/journal.00000001");
        let record = std::fs::read(&segment).unwrap();
        let name = br#""n":"renamed""#;
        let at = record.windows(name.len()).position(|part| part == name).unwrap();
        let end = at + record[at..].iter().position(|byte| *byte == b'\n').unwrap();
        std::fs::write(&segment, &record[..=end]).unwrap();
        let shown = Mounted { root_path: RepoPath::root(), access: None };
        repair(&Disk::default(), dir.path(), &shown, true).unwrap();
        let path = |text: &str| RepoPath::parse(text).unwrap();
        let staged =
            |name: &str| memory.view().get(&path(name)).map(|content| String::from_utf8_lossy(content).into_owned());
        let named = |name: &str| std::collections::BTreeSet::from([name.to_owned()]);
        for mount in 0..2 {
            let world = opened(&dir, &memory).await.unwrap();
            world.settle().await;
            assert_eq!(staged("old"), None, "what makes the bytes be got is done, at mount {mount}");
            assert_eq!((staged("renamed").as_deref(), world.errors()), (Some("newer"), named("renamed")));
            // Nor by a wait for all, or by what a program does to it.
            assert_eq!(world.stage_all().await, 1);
            world.real(&Op::Write { path: split("renamed"), at: 0, text: "O".into() }).await.unwrap();
            assert_eq!(world.stage_all().await, 1);
            assert_eq!(world.fs().cut().await.unwrap().waiting.reached().await.files_failed, 1);
            assert_eq!((staged("renamed").as_deref(), world.errors()), (Some("newer"), named("renamed")));
            world.killed().await;
        }
        // To keep one's own.
        let (ours, theirs) = (Arc::new(temporary_dir()), Arc::new(memory.fork()));
        copy(dir.path(), ours.path());
        let world = opened(&ours, &theirs).await.unwrap();
        let named = world.fs().barrier_below([path("renamed")].into()).unwrap().reached().await;
        assert_eq!(named.files_failed, 0);
        assert_eq!(theirs.view().get(&path("renamed")).map(|content| content.to_vec()), Some(b"Older".to_vec()));
        world.killed().await;
        // To keep both: the other shows at the next mount.
        let world = opened(&dir, &memory).await.unwrap();
        world.real(&rename("renamed", "mine")).await.unwrap();
        world.settle().await;
        assert_eq!((staged("renamed").as_deref(), staged("mine").as_deref()), (Some("newer"), Some("Older")));
        world.killed().await;
        let world = opened(&dir, &memory).await.unwrap();
        assert_eq!(world.stage_all().await, 0);
        let file = |text: &str| Some(Shown::File(text.as_bytes().to_vec()));
        let shown = world.shown().await;
        assert_eq!(shown.get(&split("renamed")).cloned(), file("newer"));
        assert_eq!(shown.get(&split("mine")).cloned(), file("Older"));
        assert_eq!(world.errors(), std::collections::BTreeSet::new());
    });
}

/// A file was renamed to a name that somebody else took, and its old name is to be removed: for that its bytes are got from
/// the server, and the conflict stays what it is. Nor is it ended by who reads it.
#[test]
fn a_conflict_with_somebody_else_is_not_let_go_by_getting_the_bytes() {
    crate::world::runtime(2).block_on(async {
        let (dir, memory) = (Arc::new(temporary_dir()), memory());
        let mut world = opened(&dir, &memory).await.unwrap();
        world.model = crate::world::model_of(&BASE);
        world.step(&Op::Replace { path: split("old"), text: "ours".into() }).await;
        world.step(&Op::Drain).await;
        world.killed().await;
        // By a daemon that is killed before it stages anything.
        let fs = start_with(dir.path(), &memory).unwrap();
        fs.reconcile().await.unwrap();
        let name = |text: &str| Name::new(text.as_bytes()).unwrap();
        let renamed = |fs: &Fs| fs.rename(ROOT, &name("old"), ROOT, &name("renamed"), RenameMode::Replace);
        match renamed(&fs) {
            Err(Stop::Need(need)) => fs.run(need, renamed).await.unwrap(),
            done => done.unwrap(),
        }
        drop(fs);
        let path = |text: &str| RepoPath::parse(text).unwrap();
        memory.stage_foreign(path("renamed"), Some("theirs".into()));
        let world = opened(&dir, &memory).await.unwrap();
        world.settle().await;
        assert_eq!(world.shown().await[&split("renamed")], Shown::File(b"ours".to_vec()));
        world.settle().await;
        let staged = memory.view();
        assert_eq!(staged.get(&path("renamed")).map(|content| &**content), Some(&b"theirs"[..]));
        assert_eq!(world.errors(), std::collections::BTreeSet::from(["renamed".to_owned()]));
        assert_eq!(staged.get(&path("old")), None, "what makes the bytes be got is done");
    });
}

/// A directory came where a file is staged, and the repaired record may be wrong about that: it stays, with all that is in it.
#[test]
fn a_directory_is_not_replaced_by_what_a_repair_finds_on_the_server() {
    crate::world::runtime(2).block_on(async {
        for is_staged in [true, false] {
            let (dir, memory) = (Arc::new(temporary_dir()), memory());
            let mut world = opened(&dir, &memory).await.unwrap();
            world.model = crate::world::model_of(&BASE);
            for path in ["other", "n"] {
                world.step(&Op::Replace { path: split(path), text: path.into() }).await;
                world.step(&Op::Drain).await;
            }
            world.killed().await;
            // By a daemon that is killed before it stages anything.
            let fs = start_with(dir.path(), &memory).unwrap();
            fs.reconcile().await.unwrap();
            let name = |text: &str| Name::new(text.as_bytes()).unwrap();
            fs.unlink(ROOT, &name("n")).unwrap();
            let made = fs.mkdir(ROOT, &name("n"), crate::world::attrs()).unwrap();
            fs.symlink(made.ino, &name("link"), b"target", crate::world::attrs()).unwrap();
            drop(fs);
            let path = RepoPath::parse("n").unwrap();
            if !is_staged {
                memory.unstage(std::slice::from_ref(&path)).await.unwrap();
            }
            let segment = dir.path().join("journal/journal.00000001");
            let mut record = std::fs::read(&segment).unwrap();
            let name = br#""n":"other""#;
            let at = record.windows(name.len()).position(|part| part == name).unwrap();
            record[at + 5] ^= 1;
            repair_cut(dir.path(), &record);
            for _ in 0..2 {
                let world = opened(&dir, &memory).await.unwrap();
                assert_eq!(world.stage_all().await, u64::from(is_staged), "{:?}", world.report());
                let shown = world.shown().await;
                assert_eq!(shown.get(&split("n")), Some(&Shown::Dir), "{is_staged}");
                assert_eq!(shown.get(&split("n/link")), Some(&Shown::Symlink), "{is_staged}");
                assert_eq!(memory.view().contains_key(&path), is_staged);
                assert_eq!(world.errors().contains("n"), is_staged);
                world.killed().await;
            }
        }
    });
}

/// Cuts the record in `dir` off where it ends with `frames`, the bytes that it had at some earlier moment, and repairs it.
fn repair_cut(dir: &FsPath, frames: &[u8]) {
    let end = frames.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    std::fs::write(dir.join("journal/journal.00000001"), &frames[..end]).unwrap();
    let shown = Mounted { root_path: RepoPath::root(), access: None };
    assert!(!repair(&Disk::default(), dir, &shown, true).unwrap().damage.is_empty());
}

/// The record ends where a directory was and the server has a file by now, or the reverse. Nobody waits for what can only be
/// staged when that is decided.
#[test]
fn what_a_conflict_keeps_out_is_named_and_goes_when_that_is_decided() {
    let write = |path: &str, text: &str| Op::Replace { path: split(path), text: text.into() };
    let gone = |path: &str| Op::Unlink(split(path));
    let dir = || Op::Mkdir(split("n"));
    let below = (vec![dir(), write("n/x", "ours")], vec![gone("n/x"), Op::Rmdir(split("n")), write("n", "theirs")]);
    let above = (vec![write("n", "ours")], vec![gone("n"), dir(), write("n/x", "theirs")]);
    crate::world::runtime(2).block_on(async {
        for ((before, after), ours, theirs) in [(below, "n/x", "n"), (above, "n", "n/x")] {
            let (dir, memory) = (Arc::new(temporary_dir()), memory());
            let mut world = opened(&dir, &memory).await.unwrap();
            world.model = crate::world::model_of(&BASE);
            for op in before.iter().chain([&Op::Drain]) {
                world.step(op).await;
            }
            let earlier = std::fs::read(dir.path().join("journal/journal.00000001")).unwrap();
            for op in after.iter().chain([&Op::Drain]) {
                world.step(op).await;
            }
            world.killed().await;
            repair_cut(dir.path(), &earlier);
            let world = opened(&dir, &memory).await.unwrap();
            let staged = |name: &str| {
                let view = memory.view();
                view.get(&RepoPath::parse(name).unwrap()).map(|content| String::from_utf8_lossy(content).into_owned())
            };
            let named = std::collections::BTreeSet::from([ours.to_owned(), theirs.to_owned()]);
            for _ in 0..2 {
                assert_eq!(world.stage_all().await, 2, "{ours}: {:?}", world.report());
                assert_eq!(world.errors(), named);
                assert_eq!((staged(theirs).as_deref(), staged(ours)), (Some("theirs"), None));
            }
            assert_eq!(world.fs().cut().await.unwrap().waiting.reached().await.files_failed, 2);
            let waiting = world.fs().barrier_below([RepoPath::parse(theirs).unwrap()].into()).unwrap();
            assert_eq!(waiting.reached().await.files_failed, 0, "{ours}: {:?}", world.report());
            world.settle().await;
            assert_eq!((staged(ours).as_deref(), staged(theirs)), (Some("ours"), None));
            assert_eq!(world.errors(), std::collections::BTreeSet::new());
        }
    });
}

/// After the record ends its old name, where its bytes are read, got other content: the server says so, and nobody waits for
/// what does not come.
#[test]
fn bytes_that_the_server_has_no_more_are_given_up() {
    crate::world::runtime(2).block_on(async {
        let (dir, memory) = (Arc::new(temporary_dir()), memory_with(ByHash::Never));
        let mut world = opened(&dir, &memory).await.unwrap();
        world.model = crate::world::model_of(&BASE);
        let write = |path: &str, text: &str| Op::Replace { path: split(path), text: text.into() };
        for op in [write("old", &"long".repeat(1000)), Op::Drain, write("other", "x"), Op::Drain] {
            world.step(&op).await;
        }
        world.killed().await;
        let fs = start_with(dir.path(), &memory).unwrap();
        fs.reconcile().await.unwrap();
        let name = |text: &str| Name::new(text.as_bytes()).unwrap();
        let renamed = |fs: &Fs| fs.rename(ROOT, &name("old"), ROOT, &name("renamed"), RenameMode::Replace);
        match renamed(&fs) {
            Err(Stop::Need(need)) => fs.run(need, renamed).await.unwrap(),
            done => done.unwrap(),
        }
        drop(fs);
        let old = RepoPath::parse("old").unwrap();
        memory.stage_foreign(old.clone(), Some("theirs".into()));
        // Or it would be had by its hash.
        memory.lose("long".repeat(1000).as_bytes());
        std::fs::remove_dir_all(dir.path().join("cache")).unwrap();
        let world = opened(&dir, &memory).await.unwrap().with_patience(Duration::ZERO);
        for _ in 0..2 {
            assert_eq!(world.stage_all().await, 2, "{:?}", world.report());
            // Nor do the other's bytes go.
            assert_eq!(memory.view().get(&old).map(|content| &**content), Some(&b"theirs"[..]));
        }
        let begun = std::time::Instant::now();
        assert_eq!(world.shown().await.get(&split("renamed")), Some(&Shown::Unreadable));
        assert!(begun.elapsed() < crate::course::SLOW, "{:?}", begun.elapsed());
        assert_eq!(world.errors(), std::collections::BTreeSet::from(["old".to_owned(), "renamed".to_owned()]));
    });
}

/// Its bytes are nowhere any more, and it cannot be staged: that is said at once, however often it is read.
#[test]
fn a_read_does_not_wait_for_what_a_conflict_keeps_out() {
    crate::world::runtime(2).block_on(async {
        let (dir, memory) = (Arc::new(temporary_dir()), memory());
        let mut world = opened(&dir, &memory).await.unwrap();
        world.model = crate::world::model_of(&BASE);
        let write = |path: &str, text: &str| Op::Replace { path: split(path), text: text.into() };
        let long = "long".repeat(1000);
        for op in [Op::Mkdir(split("n")), write("n/x", &long), Op::Drain] {
            world.step(&op).await;
        }
        let earlier = std::fs::read(dir.path().join("journal/journal.00000001")).unwrap();
        for op in [Op::Unlink(split("n/x")), Op::Rmdir(split("n")), write("n", "theirs"), Op::Drain] {
            world.step(&op).await;
        }
        world.killed().await;
        repair_cut(dir.path(), &earlier);
        let _ = std::fs::remove_dir_all(dir.path().join("cache"));
        memory.prune();
        let world = opened(&dir, &memory).await.unwrap().with_patience(Duration::ZERO);
        for _ in 0..5 {
            let begun = std::time::Instant::now();
            assert_eq!(world.shown().await.get(&split("n/x")), Some(&Shown::Unreadable));
            assert!(begun.elapsed() < crate::course::SLOW, "{:?}", begun.elapsed());
        }
        assert_eq!(
            memory.view().get(&RepoPath::parse("n").unwrap()).map(|content| content.to_vec()),
            Some(b"theirs".to_vec())
        );
    });
}

/// The frame is lost that hid what the base has, and the one that tells that its removal is staged is not.
#[test]
fn a_removal_that_is_staged_stays_removed_after_a_repair_that_lost_it() {
    crate::world::runtime(2).block_on(async {
        let (dir, memory) = (Arc::new(temporary_dir()), memory());
        let mut world = opened(&dir, &memory).await.unwrap();
        world.model = crate::world::model_of(&BASE);
        world.step(&Op::Unlink(split("dir/removed"))).await;
        world.step(&Op::Drain).await;
        world.killed().await;
        let segment = dir.path().join("journal/journal.00000001");
        let mut record = std::fs::read(&segment).unwrap();
        let name = br#""n":"removed""#;
        let at = record.windows(name.len()).position(|part| part == name).unwrap();
        record[at + 5] ^= 1;
        std::fs::write(&segment, &record).unwrap();
        let shown = Mounted { root_path: RepoPath::root(), access: None };
        assert!(!repair(&Disk::default(), dir.path(), &shown, true).unwrap().damage.is_empty());
        let world = opened(&dir, &memory).await.unwrap();
        assert_eq!(world.stage_all().await, 0);
        assert_eq!(world.shown().await.get(&split("dir/removed")), None);
        assert!(!memory.view().contains_key(&RepoPath::parse("dir/removed").unwrap()));
        let broken = world.broken();
        assert!(broken.is_empty(), "{broken:?}");
    });
}

#[test]
fn after_a_repair_an_older_record_replaces_nothing_that_is_staged() {
    crate::world::runtime(2).block_on(async {
        let (dir, memory) = (Arc::new(temporary_dir()), memory());
        let mut world = opened(&dir, &memory).await.unwrap();
        world.model = crate::world::model_of(&BASE);
        let write = |path: &str, text: &str| Op::Replace { path: split(path), text: text.into() };
        for op in [write("again", "first"), write("moved", "stays"), write("over", "was there"), Op::Drain] {
            world.step(&op).await;
        }
        let segment = dir.path().join("journal/journal.00000001");
        let earlier = std::fs::read(&segment).unwrap();
        let rename = |from: &str, to: &str| Op::Rename { from: split(from), to: split(to), mode: 0 };
        let later = [write("again", "second"), rename("over", "dir/new name"), write("over", "and over"), Op::Drain];
        for op in later.iter().chain([&rename("moved", "dir/moved"), &Op::Drain]) {
            world.step(op).await;
        }
        world.killed().await;
        // All that came later is cut off, and the mark tells of it.
        std::fs::write(&segment, &earlier[..earlier.iter().rposition(|byte| *byte != 0).unwrap() + 1]).unwrap();
        assert!(matches!(opened(&dir, &memory).await.err(), Some(JournalError::Damaged(_))));
        let shown = Mounted { root_path: RepoPath::root(), access: None };
        repair(&Disk::default(), dir.path(), &shown, true).unwrap();
        let staged = memory.view();
        for mount in 0..3 {
            let world = opened(&dir, &memory).await.unwrap();
            let shown = world.shown().await;
            let file = |path: &str, text: &str| {
                let expected = Some(Shown::File(text.as_bytes().to_vec()));
                assert_eq!(shown.get(&split(path)).cloned(), expected, "{path}, at mount {mount}");
            };
            file("again", "second");
            file("over", "and over");
            file("dir/new name", "was there");
            file("dir/moved", "stays");
            world.stage_all().await;
            let now = memory.view();
            assert!(staged.iter().all(|(path, content)| now.get(path) == Some(content)), "at mount {mount}");
            world.killed().await;
        }
    });
}
