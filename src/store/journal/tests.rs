use std::fs;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Condvar, Mutex};

use rustix::io::Errno;

use super::*;
use crate::namespace::Ino;
use crate::path::Name;
use crate::store::disk::Act;
use crate::store::journal::Damage;
use crate::store::journal::recover::zeros_from;

fn link(n: u64) -> Change {
    Change::Link { parent: Ino(1), name: Name::new(format!("f{n}\n\u{fc}").as_bytes()).unwrap(), ino: Ino(n) }
}

fn replayed(dir: &Path) -> Vec<Change> {
    let mut seen = Vec::new();
    Journal::open(dir, |change| seen.push(change)).unwrap();
    seen
}

#[test]
fn what_was_committed_is_replayed_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path(), |_| panic!("a new journal is empty")).unwrap();
    let raw = Change::Unlink { parent: Ino(1), name: Name::new(b"\xff").unwrap(), hide: true };
    for n in 0..100 {
        let ticket = journal.append(&[link(n), raw.clone()]);
        journal.commit(ticket).unwrap();
    }
    drop(journal);
    let expected: Vec<_> = (0..100).flat_map(|n| [link(n), raw.clone()]).collect();
    assert_eq!(replayed(dir.path()), expected);
}

/// The place of the damage for which a log is refused; it is not changed then.
fn damage(disk: &Disk, dir: &Path) -> Damage {
    let files = || -> Vec<(PathBuf, Vec<u8>)> {
        let mut paths: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
    };
    let before = files();
    match Journal::open_on(disk, dir, |_| ()).err() {
        Some(JournalError::Damaged(damage)) => {
            assert!(files() == before, "a log that is refused is not changed");
            *damage
        }
        other => panic!("not refused as damaged: {other:?}"),
    }
}

/// A log of single changes, each in a frame; and where its frames begin and end.
fn written(dir: &Path, count: u64) -> Vec<usize> {
    let journal = Journal::open(dir, |_| ()).unwrap();
    (0..count).for_each(|n| journal.commit(journal.append(&[link(n)])).unwrap());
    drop(journal);
    let bytes = fs::read(segment_path(dir, 1)).unwrap();
    let ends = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    ends.collect()
}

#[test]
fn every_cut_leaves_whole_frames_and_the_log_goes_on_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path(), |_| ()).unwrap();
    for n in 0..3 {
        journal.commit(journal.append(&[link(n), link(n + 10)])).unwrap();
    }
    drop(journal);
    let path = segment_path(dir.path(), 1);
    let whole = fs::read(&path).unwrap();
    let header = whole.iter().position(|b| *b == b'\n').unwrap() + 1;
    let end = zeros_from(&whole);
    for cut in header..end {
        // As a write leaves it that was cut short: nothing was acknowledged, or known to the mark.
        fs::remove_file(dir.path().join("mark")).unwrap();
        let zeros = vec![0; cut % 2 * 100];
        fs::write(&path, [&whole[..cut], &zeros].concat()).unwrap();
        let seen = replayed(dir.path());
        assert_eq!(seen.len() % 2, 0, "half a frame after a cut at {cut}");
        let journal = Journal::open(dir.path(), |_| ()).unwrap();
        let ticket = journal.append(&[link(77)]);
        journal.commit(ticket).unwrap();
        drop(journal);
        assert_eq!(replayed(dir.path()).len(), seen.len() + 1, "cut at {cut}");
    }
}

#[test]
fn every_flipped_bit_is_refused_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let ends = written(dir.path(), 5);
    let path = segment_path(dir.path(), 1);
    let mut whole = fs::read(&path).unwrap();
    whole.truncate(zeros_from(&whole) + 100);
    for at in 0..zeros_from(&whole) {
        for bit in [at % 8, (at + 3) % 8] {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << bit;
            fs::write(&path, bytes).unwrap();
            let begins = ends.iter().copied().rfind(|end| *end <= at).unwrap_or(0);
            match Journal::open(dir.path(), |_| ()).err() {
                Some(JournalError::Damaged(damage)) => assert_eq!(damage.offset, begins as u64, "byte {at}"),
                // The header's format.
                Some(JournalError::Newer { .. }) if begins == 0 => {}
                other => panic!("byte {at}, bit {bit}: {other:?}"),
            }
        }
    }
    // Among the zeros as well.
    let mut bytes = whole.clone();
    bytes[whole.len() - 10] = 1;
    fs::write(&path, bytes).unwrap();
    assert_eq!(damage(&Disk::default(), dir.path()).offset, *ends.last().unwrap() as u64);
    fs::write(&path, whole).unwrap();
    assert_eq!(replayed(dir.path()).len(), 5);
}

#[test]
fn frames_that_were_flushed_or_written_before_are_missed_when_they_are_cut_off() {
    for flush in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path(), |_| ()).unwrap();
        (0..9).for_each(|n| journal.commit(journal.append(&[link(n)])).unwrap());
        match flush {
            true => journal.sync(journal.append(&[])).unwrap(),
            false => journal.note_written(),
        }
        drop(journal);
        let path = segment_path(dir.path(), 1);
        let whole = fs::read(&path).unwrap();
        let third = whole.iter().enumerate().filter(|(_, byte)| **byte == b'\n').nth(3).unwrap().0 + 1;
        for (cut, zeros) in [(third, 0), (third, 5000), (third + 20, 0), (third + 20, 100)] {
            fs::write(&path, [&whole[..cut], &vec![0; zeros]].concat()).unwrap();
            let found = damage(&Disk::default(), dir.path());
            assert_eq!(found.offset, third as u64, "{found}");
            let what = if flush { "frames 4 to 9 had been flushed" } else { "frames 4 to 9 had been written" };
            assert!(found.what.contains(what), "{found}");
        }
        if !flush {
            // In a later boot that is what a power loss leaves.
            fs::write(&path, &whole[..third]).unwrap();
            let mut seen = 0;
            drop(Journal::open_on(&Disk::restarted(1), dir.path(), |_| seen += 1).unwrap());
            assert_eq!(seen, 3);
        }
    }
}

#[test]
fn a_segment_that_is_missing_doubled_emptied_or_another_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = |segment| segment_path(dir.path(), segment);
    let journal = Journal::open(dir.path(), |_| ()).unwrap();
    journal.commit(journal.append(&[link(1)])).unwrap();
    journal.compaction().start_segment().unwrap();
    journal.commit(journal.append(&[link(2)])).unwrap();
    journal.note_written();
    drop(journal);
    let (first, second) = (fs::read(path(1)).unwrap(), fs::read(path(2)).unwrap());
    let reset = || {
        fs::write(path(1), &first).unwrap();
        fs::write(path(2), &second).unwrap();
        let _ = fs::remove_file(path(3));
    };
    let refused = |what: &str| {
        let found = damage(&Disk::default(), dir.path());
        assert!(found.what.contains(what), "{found}");
        reset();
    };
    fs::remove_file(path(1)).unwrap();
    refused("the segments before it are not there");
    fs::remove_file(path(2)).unwrap();
    refused("it is not there");
    fs::write(path(1), &second).unwrap();
    fs::write(path(2), &first).unwrap();
    refused("it is a copy of segment");
    fs::copy(path(1), path(3)).unwrap();
    refused("it is a copy of segment 1");
    fs::write(path(2), "").unwrap();
    refused("it is empty");
    fs::write(path(2), "once upon a time\n").unwrap();
    refused("its first line is not that of an oxenfs journal");
    let torn = first.iter().rposition(|byte| *byte == b'\n').unwrap() - 9;
    fs::write(path(1), &first[..torn]).unwrap();
    refused("");
    assert_eq!(replayed(dir.path()), [link(1), link(2)]);
}

#[test]
fn frames_doubled_swapped_or_left_out_do_not_follow() {
    let dir = tempfile::tempdir().unwrap();
    let ends = written(dir.path(), 5);
    let path = segment_path(dir.path(), 1);
    let whole = fs::read(&path).unwrap();
    let frame = |n: usize| whole[ends[n - 1]..ends[n]].to_vec();
    let head = || whole[..ends[1]].to_vec();
    for rest in [[frame(1), frame(2)].concat(), [frame(3), frame(2)].concat(), [frame(3), frame(4)].concat()] {
        fs::write(&path, [head(), rest].concat()).unwrap();
        assert_eq!(damage(&Disk::default(), dir.path()).offset, ends[1] as u64);
    }
}

#[test]
fn frames_go_over_zeros_so_that_a_flush_finds_the_same_length() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path(), |_| ()).unwrap();
    let path = segment_path(dir.path(), 1);
    if !journal.lock().in_place || matches!(journal.lock().room, Room::Unknown) {
        return; // A filesystem where zeros ahead are of no use.
    }
    journal.commit(journal.append(&[link(0)])).unwrap();
    let length = fs::metadata(&path).unwrap().len();
    assert_eq!(length, ZEROED_BYTES);
    let mut count = 1;
    while journal.lock().bytes < length - 200 {
        journal.commit(journal.append(&[link(count)])).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), length);
        count += 1;
    }
    // Over the edge, and what was written a mebibyte ago is still there.
    for _ in 0..10 {
        journal.commit(journal.append(&[link(count)])).unwrap();
        count += 1;
    }
    assert_eq!(fs::metadata(&path).unwrap().len(), 2 * ZEROED_BYTES);
    drop(journal);
    assert_eq!(replayed(dir.path()), (0..count).map(link).collect::<Vec<_>>());
    // The room is kept over a restart, and what comes then goes over the same zeros.
    let journal = Journal::open(dir.path(), |_| ()).unwrap();
    journal.commit(journal.append(&[link(count)])).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 2 * ZEROED_BYTES);
    drop(journal);
    assert_eq!(replayed(dir.path()), (0..=count).map(link).collect::<Vec<_>>());
    assert!(!dir.path().join("journal.00000001.torn").exists(), "zeros are no torn tail");
}

#[test]
fn a_hole_behind_the_last_flush_is_what_a_power_loss_leaves_and_damage_in_the_boot_that_wrote_it() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path(), |_| ()).unwrap();
    let path = segment_path(dir.path(), 1);
    journal.sync(journal.append(&[link(1)])).unwrap();
    let flushed = zeros_from(&fs::read(&path).unwrap());
    journal.commit(journal.append(&[link(2)])).unwrap();
    let lost = zeros_from(&fs::read(&path).unwrap());
    journal.commit(journal.append(&[link(3)])).unwrap();
    drop(journal);
    let mut bytes = fs::read(&path).unwrap();
    bytes[flushed..lost].fill(0);
    fs::write(&path, &bytes).unwrap();
    assert_eq!(damage(&Disk::default(), dir.path()).offset, flushed as u64);
    // Not in front of the mark.
    let mut early = bytes.clone();
    early[flushed - 20..flushed].fill(0);
    fs::write(&path, early).unwrap();
    let restarted = Disk::restarted(1);
    assert!(damage(&restarted, dir.path()).what.contains("frame 1 had been flushed"));

    fs::write(&path, &bytes).unwrap();
    let mut seen = Vec::new();
    let journal = Journal::open_on(&restarted, dir.path(), |change| seen.push(change)).unwrap();
    assert_eq!(seen, [link(1)]);
    assert!(dir.path().join("journal.00000001.torn").exists(), "kept for whoever wants to know");
    // The third does not come back behind what is written now.
    journal.commit(journal.append(&[link(4)])).unwrap();
    drop(journal);
    let boot = Change::Boot { boot: "restart-1".into() };
    let mut seen = Vec::new();
    drop(Journal::open_on(&restarted, dir.path(), |change| seen.push(change)).unwrap());
    assert_eq!(seen, [link(1), boot, link(4)]);
    // What is behind the note of that boot shows that all before it had been flushed, also without the mark.
    let mut bytes = fs::read(&path).unwrap();
    bytes[flushed - 20..flushed].fill(0);
    fs::write(&path, bytes).unwrap();
    let mark = dir.path().join("mark");
    let before = fs::read(&mark).unwrap();
    fs::write(&mark, before.iter().map(|byte| byte ^ 1).collect::<Vec<u8>>()).unwrap();
    damage(&Disk::restarted(2), dir.path());
    fs::remove_file(&mark).unwrap();
    damage(&Disk::restarted(2), dir.path());
}

/// Puts a frame of the first format behind those of a segment of it.
fn unchained(bodies: &[&str]) -> Vec<u8> {
    let mut bytes = b"{\"oxenfs_journal\":1}\n".to_vec();
    for body in bodies {
        bytes.extend(format::checksum(body.as_bytes()));
        bytes.extend(format!(" {body}\n").bytes());
    }
    bytes
}

#[test]
fn what_a_newer_oxenfs_wrote_is_refused_and_its_optional_fields_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = segment_path(dir.path(), 1);
    let known = r#"[{"k":"hide","p":1,"n":"a"}]"#;
    for (unknown, what) in [
        (r#"[{"k":"teleport","i":7}]"#, "a change of the kind \"teleport\""),
        (r#"[{"k":"drop","i":7,"!when":1}]"#, "the field \"!when\""),
        (
            r#"[{"k":"inode","i":7,"at":{"m":0,"u":0,"g":0,"a":[0,0],"t":[0,0],"c":[0,0]},"b":{"hologram":1}}]"#,
            "\"inode\"",
        ),
    ] {
        let bytes = unchained(&[known, unknown, known]);
        fs::write(&path, &bytes).unwrap();
        match Journal::open(dir.path(), |_| ()).err() {
            Some(JournalError::Unknown { offset, what: found, .. }) => {
                assert_eq!(offset, unchained(&[known]).len() as u64);
                assert!(found.contains(what), "{found}");
            }
            other => panic!("{other:?}"),
        }
        assert!(fs::read(&path).unwrap() == bytes, "refused, and changed");
    }
    let account = |more: &str| format!(r#"[{{"k":"account","p":"f","a":{{"s":"nothing"{more}}},"z":[1]}}]"#);
    let inode =
        r#"[{"k":"inode","i":7,"at":{"m":0,"u":0,"g":0,"a":[0,0],"t":[0,0],"c":[0,0],"born":5},"b":{"spool":1}}]"#;
    let intent = r#"[{"k":"intent","t":{"h":"c1","d":"0","r":{"branch":"main","message":"m","author":"a","email":"e","signed":"by"},"since":9}}]"#;
    let hash = "0123456789abcdef0123456789abcdef";
    let remote = format!(
        r#"[{{"k":"inode","i":8,"at":{{"m":0,"u":0,"g":0,"a":[0,0],"t":[0,0],"c":[0,0]}},"b":{{"remote":{{"object":{{"hash":"{hash}","size":3,"kind":"x"}},"near":1}}}}}}]"#
    );
    let upload = format!(
        r#"[{{"k":"upload","p":"f","u":{{"h":"{hash}","s":{{"id":"1","part_bytes":5,"parts":[],"via":"relay"}}}}}}]"#
    );
    let written = unchained(&[inode, &account(r#","why":"x""#), intent, &remote, &upload]);
    fs::write(&path, written).unwrap();
    let mut seen = Vec::new();
    let journal = Journal::open(dir.path(), |change| seen.push(change)).unwrap();
    assert_eq!(seen.len(), 5);
    assert!(journal.is_outdated());
    let compaction = journal.compaction();
    compaction.start_segment().unwrap();
    journal.append(&seen);
    compaction.complete().unwrap();
    assert!(!journal.is_outdated());
    drop(journal);
    for _ in 0..2 {
        let text = fs::read(segment_path(dir.path(), 2)).unwrap();
        let text = String::from_utf8_lossy(&text);
        for kept in [
            r#""born":5"#,
            r#""why":"x""#,
            r#""z":[1]"#,
            r#""signed":"by""#,
            r#""since":9"#,
            r#""kind":"x""#,
            r#""near":1"#,
            r#""via":"relay""#,
        ] {
            assert!(text.contains(kept), "{kept} is not in {text}");
        }
        assert_eq!(replayed(dir.path())[..5], seen);
    }
}

#[test]
fn a_segment_that_needs_a_feature_which_is_not_known_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let header = Header { needs: vec!["holograms".into()], ..Chain::START.header(1, "b") };
    fs::write(segment_path(dir.path(), 1), header.line().unwrap()).unwrap();
    let refused = Journal::open(dir.path(), |_| ()).err().unwrap().to_string();
    assert!(refused.ends_with("it has the feature \"holograms\", which this one does not know"), "{refused}");
}

/// What 4860914 does to know which segments count, and what it makes of a first line.
fn first_reader(dir: &Path) -> Result<(), String> {
    #[derive(serde::Deserialize)]
    struct Header {
        oxenfs_journal: u32,
    }
    for segment in segments(dir).unwrap().into_iter().rev() {
        let bytes = fs::read(segment_path(dir, segment)).unwrap();
        let line = bytes.split_inclusive(|byte| *byte == b'\n').next().unwrap_or_default();
        let header: Header = serde_json::from_slice(line).map_err(|_| "not an oxenfs journal")?;
        if header.oxenfs_journal > 1 {
            return Err(format!("format {}", header.oxenfs_journal));
        }
    }
    Ok(())
}

#[test]
fn the_first_reader_refuses_a_log_as_soon_as_it_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(segment_path(dir.path(), 1), unchained(&[r#"[{"k":"hide","p":1,"n":"a"}]"#])).unwrap();
    first_reader(dir.path()).unwrap();
    let journal = Journal::open(dir.path(), |_| ()).unwrap();
    let compaction = journal.compaction();
    compaction.start_segment().unwrap();
    // Killed here, or later.
    assert_eq!(first_reader(dir.path()).unwrap_err(), "format 2");
    drop(compaction);
    drop(journal);
    let journal = Journal::open(dir.path(), |_| ()).unwrap();
    assert!(journal.is_outdated(), "the old segment counts still");
    let compaction = journal.compaction();
    compaction.start_segment().unwrap();
    compaction.complete().unwrap();
    assert_eq!(first_reader(dir.path()).unwrap_err(), "format 2");
}

#[test]
fn a_newer_format_is_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(segment_path(dir.path(), 1), "{\"oxenfs_journal\":99}\n").unwrap();
    let error = Journal::open(dir.path(), |_| ()).err().unwrap();
    assert!(matches!(error, JournalError::Newer { found: 99, .. }), "{error}");
}

#[test]
fn an_unfinished_compaction_keeps_the_old_segments_and_a_finished_one_drops_them() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path(), |_| ()).unwrap();
    journal.append(&[link(1)]);
    journal.compaction().start_segment().unwrap();
    journal.commit(journal.append(&[link(2)])).unwrap();
    drop(journal);
    assert_eq!(replayed(dir.path()), [link(1), link(2)]);
    let journal = Journal::open(dir.path(), |_| ()).unwrap();
    let compaction = journal.compaction();
    compaction.start_segment().unwrap();
    journal.append(&[link(3)]);
    compaction.complete().unwrap();
    drop(journal);
    assert_eq!(replayed(dir.path()), [link(3), Change::Complete]);
    assert_eq!(segments(dir.path()).unwrap().len(), 1);
}

/// A disk that takes no writes, or no flushes, while it is told so.
#[derive(Default)]
struct Failing {
    writes: std::sync::atomic::AtomicBool,
    flushes: std::sync::atomic::AtomicBool,
}

impl Failing {
    fn writes(&self, fail: bool) {
        self.writes.store(fail, Relaxed);
    }

    fn flushes(&self, fail: bool) {
        self.flushes.store(fail, Relaxed);
    }

    fn journal(dir: &Path) -> (std::sync::Arc<Self>, Journal) {
        let failing = std::sync::Arc::new(Self::default());
        let journal = Journal::open_on(&Disk::witnessed(failing.clone()), dir, |_| ()).unwrap();
        (failing, journal)
    }
}

impl crate::store::disk::Witness for Failing {
    fn around(&self, act: &Act<'_>, work: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        match act {
            Act::Write(file) if self.writes.load(Relaxed) => {
                // Half of what is to be written arrives.
                let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(*file));
                let end = |bytes: &[u8]| zeros_from(bytes);
                let before = end(&fs::read(&path)?);
                work()?;
                let after = fs::read(path)?;
                let half = before + (end(&after) - before) / 2;
                file.write_all_at(&vec![0; after.len() - half], half as u64)?;
                Err(Errno::NOSPC.into())
            }
            Act::Flush(_) if self.flushes.load(Relaxed) => Err(Errno::IO.into()),
            _ => work(),
        }
    }
}

#[test]
fn a_failed_write_acknowledges_nothing_and_the_next_one_makes_up_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, journal) = Failing::journal(dir.path());
    journal.commit(journal.append(&[link(1)])).unwrap();
    disk.writes(true);
    let refused = journal.append(&[link(2)]);
    for _ in 0..3 {
        assert_eq!(journal.commit(refused).unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
    assert!(!journal.has_room());
    assert_eq!(journal.ready().unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(journal.trouble().unwrap().kind(), io::ErrorKind::StorageFull);
    // As a kill would leave it there.
    let mut seen = Vec::new();
    Journal::read(dir.path(), |change| seen.push(change)).unwrap();
    assert_eq!(seen, [link(1)]);
    disk.writes(false);
    journal.commit(journal.append(&[link(3)])).unwrap();
    assert!(journal.trouble().is_none() && journal.has_room());
    drop(journal);
    assert_eq!(replayed(dir.path()), [link(1), link(2), link(3)]);
}

#[test]
fn after_a_failed_flush_nothing_counts_as_flushed_until_the_state_is_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, journal) = Failing::journal(dir.path());
    disk.flushes(true);
    let ticket = journal.append(&[link(1)]);
    assert_eq!(journal.sync(ticket).unwrap_err().raw_os_error(), Some(libc::EIO));
    disk.flushes(false);
    // The kernel would call the second flush a success, and the bytes need not be there.
    assert_eq!(journal.sync(ticket).unwrap_err().raw_os_error(), Some(libc::EIO));
    journal.commit(journal.append(&[link(2)])).unwrap();
    assert!(journal.must_be_rewritten());
    let compaction = journal.compaction();
    compaction.start_segment().unwrap();
    let portion = journal.append(&[link(1), link(2)]);
    assert!(journal.sync(portion).is_err(), "the new segment is not whole yet");
    compaction.complete().unwrap();
    assert!(!journal.must_be_rewritten());
    journal.sync(journal.append(&[link(3)])).unwrap();
    drop(journal);
    assert_eq!(replayed(dir.path()), [link(1), link(2), Change::Complete, link(3)]);
}

#[test]
fn a_large_state_is_compacted_only_when_the_log_has_grown_past_twice_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path(), |_| {}).unwrap();
    let write = |count| (0..count).for_each(|_| drop(journal.commit(journal.append(&[link(1)]))));
    write(10);
    assert!(journal.is_worth_compacting(100) && !journal.is_worth_compacting(1 << 20));
    let compaction = journal.compaction();
    compaction.start_segment().unwrap();
    write(10);
    compaction.complete().unwrap();
    assert!(!journal.is_worth_compacting(100));
    write(20);
    assert!(journal.is_worth_compacting(100));
}

#[test]
fn many_syncs_share_one_flush_and_hold_up_no_commit() {
    const THREADS: u32 = 16;

    /// Lets the first flush of a frame go on when all frames are written.
    #[derive(Default)]
    struct Slow {
        written: Mutex<u32>,
        moved: Condvar,
        flushes: std::sync::atomic::AtomicU32,
    }

    impl crate::store::disk::Witness for Slow {
        fn around(&self, act: &Act<'_>, work: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
            if matches!(act, Act::Flush(_)) {
                self.flushes.fetch_add(1, Relaxed);
                let written = self.written.lock().unwrap();
                drop(self.moved.wait_while(written, |written| *written < THREADS).unwrap());
            }
            work()
        }
    }

    let dir = tempfile::tempdir().unwrap();
    drop(Journal::open(dir.path(), |_| ()).unwrap());
    let slow = std::sync::Arc::new(Slow { written: Mutex::new(THREADS), ..Slow::default() });
    let journal = Journal::open_on(&Disk::witnessed(slow.clone()), dir.path(), |_| ()).unwrap();
    *slow.written.lock().unwrap() = 0;
    slow.flushes.store(0, Relaxed);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (journal, slow) = (&journal, &slow);
            scope.spawn(move || {
                let ticket = journal.append(&[link(u64::from(thread))]);
                // Would hang if it waited for the flush that is under way.
                journal.commit(ticket).unwrap();
                *slow.written.lock().unwrap() += 1;
                slow.moved.notify_all();
                journal.sync(ticket).unwrap();
            });
        }
    });
    let flushes = slow.flushes.load(Relaxed);
    assert!(flushes <= 2, "{flushes} flushes for {THREADS} threads");
    drop(journal);
    assert_eq!(replayed(dir.path()).len(), THREADS as usize);
}

#[test]
fn threads_share_writes_and_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path(), |_| ()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let journal = &journal;
            scope.spawn(move || {
                for n in 0..200 {
                    let ticket = journal.append(&[link(thread * 1000 + n)]);
                    if n % 50 == 0 { journal.sync(ticket).unwrap() } else { journal.commit(ticket).unwrap() }
                }
            });
        }
    });
    drop(journal);
    assert_eq!(replayed(dir.path()).len(), 800);
}

#[test]
fn numbers_that_none_can_have_are_damage_and_nobody_counts_on_from_them() {
    let salvaged = |dir: &Path| super::salvage::salvage(dir, &dir.join("mark"), &mut |_, _| (), &mut |_, _| Ok(()));
    let at_start = || Header { boot: "boot".into(), ..Chain::START.header(1, "boot") };
    for header in [Header { first: 0, ..at_start() }, Header { first: u64::MAX, ..at_start() }] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(segment_path(dir.path(), 1), header.line().unwrap()).unwrap();
        assert!(damage(&Disk::default(), dir.path()).what.contains("numbers that none can have"));
        assert!(!salvaged(dir.path()).unwrap().damage.is_empty());
    }
    let dir = tempfile::tempdir().unwrap();
    let mut segment = at_start().line().unwrap();
    let mut body = Vec::new();
    format::encode_body(&[link(7)], &mut Kept::default(), &mut body);
    format::frame(&body, Some((u64::MAX, &format::NO_SUM)), &mut segment);
    fs::write(segment_path(dir.path(), 1), segment).unwrap();
    damage(&Disk::default(), dir.path());
    let found = salvaged(dir.path()).unwrap();
    let mark = dir.path().join("mark");
    let disk = Disk::default();
    super::salvage::rewrite(&disk, dir.path(), &mark, found).unwrap().complete().unwrap();
    assert_eq!(replayed(dir.path()), [Change::Complete]);
    // A mark and a name of this kind tell nothing.
    let forged = Mark { segment: u64::MAX, flushed: u64::MAX, written: u64::MAX, boot: String::new() };
    mark::make(&Disk::default(), &mark, &forged).unwrap();
    fs::write(segment_path(dir.path(), u64::MAX), "x").unwrap();
    assert_eq!(replayed(dir.path()), [Change::Complete]);
    assert_eq!(fs::read(segment_path(dir.path(), u64::MAX)).unwrap(), b"x");
}

#[test]
fn a_torn_tail_is_kept_beside_those_of_earlier_crashes() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), 1);
    let path = segment_path(dir.path(), 1);
    for kept in 1..3 {
        let bytes = fs::read(&path).unwrap();
        let end = zeros_from(&bytes);
        let last = bytes[..end - 1].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
        fs::write(&path, &bytes[..end - kept * 3]).unwrap();
        let torn = bytes[last..end - kept * 3].to_vec();
        assert_eq!(replayed(dir.path()), []);
        let aside = if kept == 1 { "journal.00000001.torn" } else { "journal.00000001.torn.1" };
        assert_eq!(fs::read(dir.path().join(aside)).unwrap(), torn);
        fs::write(&path, &bytes).unwrap();
        let _ = fs::remove_file(dir.path().join("mark"));
    }
    assert!(dir.path().join("journal.00000001.torn").exists());
}
