use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::Arc;
use std::sync::atomic::AtomicI32;
use std::time::Duration;

use super::*;
use crate::hash::HashKind;
use crate::store::disk::Witness;

fn commit(id: &str) -> CommitId {
    CommitId(id.into())
}

fn path(text: &str) -> RepoPath {
    RepoPath::parse(text).unwrap()
}

fn on(disk: &Disk, dir: &Path, limit: u64) -> Listings {
    fs::create_dir_all(dir.join("fetching")).unwrap();
    Listings::new(disk, dir, &dir.join("fetching"), limit)
}

fn open(dir: &Path) -> Listings {
    on(&Disk::default(), dir, u64::MAX)
}

fn keep(listings: &Listings, id: &str, dir: &str, listing: &Listing) {
    listings.offer(&commit(id), &path(dir), listing);
    listings.write_out(|| true);
}

fn get(listings: &Listings, id: &str, dir: &str) -> Option<Listing> {
    listings.get(&commit(id), &path(dir))
}

fn file(name: &str, kind: HashKind, size: u64) -> Entry {
    let object = Object { hash: ContentHash::of(kind, name.as_bytes()), size };
    Entry { name: name.into(), kind: EntryKind::File(object), modified_secs: 1_700_000_000 }
}

fn dir(name: &str) -> Entry {
    Entry { name: name.into(), kind: EntryKind::Dir, modified_secs: i64::MIN }
}

fn of(entries: Vec<Entry>) -> Listing {
    Listing { entries, flawed: Vec::new() }
}

fn odd() -> Listing {
    of(vec![
        file("a", HashKind::Xxh3, 0),
        file("t\u{fc} %#?&\"'\n\\", HashKind::Sha256, u64::MAX),
        file(&"x".repeat(255), HashKind::Xxh3, 7),
        dir("{}"),
        dir("\u{1f402}"),
        dir(""),
        file("..", HashKind::Xxh3, 1),
    ])
}

fn files_in(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// The only one that is kept in a cache.
fn only(dir: &Path) -> PathBuf {
    let files = files_in(&dir.join(LISTINGS));
    assert_eq!(files.len(), 1, "{files:?}");
    files[0].clone()
}

#[test]
fn a_listing_comes_back_as_it_was_in_its_own_place_alone() {
    let temp = tempfile::tempdir().unwrap();
    let listings = open(temp.path());
    keep(&listings, "c1", "d/e\u{e9}", &odd());
    assert_eq!(fs::metadata(only(temp.path())).unwrap().permissions().mode() & 0o777, 0o600);
    keep(&listings, "c1", "", &of(vec![dir("d")]));
    let again = open(temp.path());
    for learned in [false, true] {
        assert_eq!(get(&again, "c1", "d/e\u{e9}"), Some(odd()), "{learned}");
        assert_eq!(get(&again, "c1", ""), Some(of(vec![dir("d")])));
        for (id, at) in [("c2", ""), ("c1", "d"), ("c1", "d/e"), ("", "")] {
            assert_eq!(get(&again, id, at), None, "{id} {at}");
            assert!(!learned || !again.may_have(&commit(id), &path(at)));
        }
        again.learn().unwrap();
    }
    assert_eq!(again.known().used, 2 * DISK_BLOCK_BYTES);
    assert!(files_in(&temp.path().join("fetching")).is_empty());
}

#[test]
fn a_listing_is_as_the_page_on_formats_has_it() {
    let temp = tempfile::tempdir().unwrap();
    let object = |hash| EntryKind::File(Object { hash, size: 0x0102 });
    let listing = of(vec![
        Entry { name: "d".into(), kind: EntryKind::Dir, modified_secs: -1 },
        Entry { name: "\u{fc}".into(), kind: object(ContentHash::Xxh3([7; 16])), modified_secs: 3 },
        Entry { name: "s".into(), kind: object(ContentHash::Sha256([9; 32])), modified_secs: 0 },
    ]);
    let mut bytes = b"{\"oxenfs_listing\":1,\"commit\":\"c1\",\"path\":\"a/b\",\"entries\":3}\n".to_vec();
    bytes.extend(b"\x00\x01\x00d\xff\xff\xff\xff\xff\xff\xff\xff");
    bytes.extend(b"\x01\x02\x00\xc3\xbc\x03\0\0\0\0\0\0\0\x02\x01\0\0\0\0\0\0");
    bytes.extend([7; 16]);
    bytes.extend(b"\x02\x01\x00s\0\0\0\0\0\0\0\0\x02\x01\0\0\0\0\0\0");
    bytes.extend([9; 32]);
    bytes.extend(xxhash_rust::xxh3::xxh3_128(&bytes).to_be_bytes());
    let name = format!("{:032x}", xxhash_rust::xxh3::xxh3_128(b"c1\0a/b"));
    fs::create_dir(temp.path().join("listings")).unwrap();
    fs::write(temp.path().join("listings").join(&name), &bytes).unwrap();
    assert_eq!(get(&open(temp.path()), "c1", "a/b"), Some(listing.clone()));
    fs::remove_file(temp.path().join("listings").join(&name)).unwrap();
    keep(&open(temp.path()), "c1", "a/b", &listing);
    assert_eq!(fs::read(temp.path().join("listings").join(name)).unwrap(), bytes);
}

#[test]
fn what_is_no_good_or_too_much_is_not_kept() {
    let temp = tempfile::tempdir().unwrap();
    let listings = open(temp.path());
    let flawed = crate::workspace::Flawed { name: None, why: "it is 7".into() };
    keep(&listings, "c", "", &of(Vec::new()));
    keep(&listings, "c", "", &Listing { entries: vec![dir("d")], flawed: vec![flawed] });
    keep(&listings, "c", "", &of(vec![dir(&"x".repeat(1 << 16))]));
    keep(&listings, "c", "", &of(vec![dir("d"); MOST_ENTRIES + 1]));
    keep(&listings, "c", "", &of(vec![dir(&"x".repeat(1 << 12)); 5000]));
    assert!(files_in(&temp.path().join(LISTINGS)).is_empty());
    keep(&on(&Disk::default(), temp.path(), 0), "c", "", &odd());
    assert!(!temp.path().join(LISTINGS).exists());
}

#[test]
fn a_damaged_one_is_absent_and_goes() {
    let temp = tempfile::tempdir().unwrap();
    let listings = open(temp.path());
    let small = of(vec![file("a", HashKind::Xxh3, 3), dir("b")]);
    keep(&listings, "c", "d", &small);
    let at = only(temp.path());
    let whole = fs::read(&at).unwrap();
    let mut damaged: Vec<Vec<u8>> = (0..whole.len()).map(|length| whole[..length].to_vec()).collect();
    for byte in 0..whole.len() {
        for bit in [1, 0x20, 0xff] {
            let mut flipped = whole.clone();
            flipped[byte] ^= bit;
            damaged.push(flipped);
        }
    }
    damaged.push([&*whole, b"x"].concat());
    damaged.push([&*whole, &*whole].concat());
    damaged.push(vec![0; whole.len()]);
    for bytes in damaged {
        fs::write(&at, &bytes).unwrap();
        assert_eq!(get(&open(temp.path()), "c", "d"), None, "{bytes:?}");
        assert!(!at.exists());
    }
    fs::write(&at, &whole).unwrap();
    assert_eq!(get(&open(temp.path()), "c", "d"), Some(small));
}

#[test]
fn one_that_is_well_sealed_and_another_or_newer_is_absent() {
    let temp = tempfile::tempdir().unwrap();
    keep(&open(temp.path()), "c", "d", &odd());
    let at = only(temp.path());
    let sealed = |content: &[u8]| [content, &wide_checksum(content).to_be_bytes()].concat();
    let whole = fs::read(&at).unwrap();
    let content = &whole[..whole.len() - 16];
    let text = String::from_utf8_lossy(content).into_owned();
    let header = text.lines().next().unwrap();
    let changed = |from: &str, to: &str| {
        let header = header.replacen(from, to, 1);
        [header.as_bytes(), &content[content.iter().position(|byte| *byte == b'\n').unwrap()..]].concat()
    };
    for (from, to) in [
        ("\"oxenfs_listing\":1", "\"oxenfs_listing\":2"),
        ("\"c\"", "\"C\""),
        ("\"d\"", "\"e\""),
        ("\"entries\":7", "\"entries\":6"),
        ("\"entries\":7", "\"entries\":8"),
        ("\"entries\":7", "\"entries\":18446744073709551615"),
    ] {
        fs::write(&at, sealed(&changed(from, to))).unwrap();
        assert_eq!(get(&open(temp.path()), "c", "d"), None, "{to}");
        assert!(!at.exists());
    }
    fs::write(&at, sealed(content)).unwrap();
    assert_eq!(get(&open(temp.path()), "c", "d"), Some(odd()));
}

#[test]
fn what_is_in_the_place_of_one_is_absent_and_makes_way() {
    let temp = tempfile::tempdir().unwrap();
    let listings = open(temp.path());
    keep(&listings, "c", "d", &odd());
    let at = only(temp.path());
    let aside = temp.path().join("aside");
    let places: [(&str, &dyn Fn()); 3] = [
        ("a link", &|| symlink(&aside, &at).unwrap()),
        ("a directory", &|| fs::create_dir(&at).unwrap()),
        ("a pipe", &|| rustix::fs::mknodat(rustix::fs::CWD, &at, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap()),
    ];
    for (what, put) in places {
        fs::rename(&at, &aside).unwrap();
        put();
        assert_eq!(get(&open(temp.path()), "c", "d"), None, "{what}");
        assert!(fs::symlink_metadata(&at).is_err(), "{what}");
        put();
        let learned = open(temp.path());
        learned.learn().unwrap();
        assert!(fs::symlink_metadata(&at).is_err(), "{what}");
        let _ = fs::remove_file(&at);
        put();
        keep(&learned, "c", "d", &odd());
        assert_eq!(get(&learned, "c", "d"), Some(odd()), "{what}");
    }
    // What is not ours stays.
    fs::remove_file(&at).unwrap();
    fs::create_dir(&at).unwrap();
    fs::write(at.join("x"), "x").unwrap();
    fs::write(at.with_file_name("notes"), "x").unwrap();
    let learned = open(temp.path());
    learned.learn().unwrap();
    keep(&learned, "c", "d", &odd());
    assert_eq!(get(&learned, "c", "d"), None);
    assert_eq!(files_in(&temp.path().join(LISTINGS)).len(), 2);
}

#[test]
fn those_used_least_recently_go_first_also_after_a_restart() {
    let temp = tempfile::tempdir().unwrap();
    let limit = 3 * DISK_BLOCK_BYTES;
    let listings = on(&Disk::default(), temp.path(), limit);
    listings.learn().unwrap();
    let small = of(vec![dir("d")]);
    for name in ["a", "b", "c"] {
        keep(&listings, "c", name, &small);
        let at = listings.path(key(&commit("c"), &path(name)));
        let used = SystemTime::now() - Duration::from_secs(1000 - u64::from(name.as_bytes()[0]));
        File::open(at).unwrap().set_modified(used).unwrap();
    }
    assert!(get(&listings, "c", "a").is_some());
    keep(&listings, "c", "d", &small);
    let here = |listings: &Listings| -> Vec<&str> {
        ["a", "b", "c", "d", "e"].into_iter().filter(|name| listings.may_have(&commit("c"), &path(name))).collect()
    };
    assert_eq!(here(&listings), ["a", "c", "d"]);
    let again = on(&Disk::default(), temp.path(), limit);
    again.learn().unwrap();
    assert_eq!(here(&again), ["a", "c", "d"]);
    keep(&again, "c", "e", &small);
    assert_eq!(here(&again), ["a", "d", "e"]);
    assert_eq!(files_in(&temp.path().join(LISTINGS)).len(), 3);
    // A smaller limit, and whoever needs the room.
    let less = on(&Disk::default(), temp.path(), DISK_BLOCK_BYTES);
    less.learn().unwrap();
    assert_eq!(here(&less).len(), 1);
    assert!(less.make_way() && !less.make_way());
    assert!(files_in(&temp.path().join(LISTINGS)).is_empty());
}

#[test]
fn what_waits_is_bounded_and_not_written_where_room_is_short() {
    let temp = tempfile::tempdir().unwrap();
    let listings = open(temp.path());
    let large = of(vec![dir(&"x".repeat(1 << 12)); 1200]);
    for at in 0..10 {
        listings.offer(&commit("c"), &path(&at.to_string()), &large);
    }
    assert_eq!(listings.waiting().files.len(), 3);
    listings.write(|| false);
    assert!(!listings.is_waiting() && listings.waiting().bytes == 0);
    assert!(!temp.path().join(LISTINGS).exists());
}

/// Refuses every act from one on.
struct Full(AtomicI32);

impl Witness for Full {
    fn around(&self, act: &Act<'_>, work: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
        let is_full = self.0.fetch_sub(1, Ordering::Relaxed) <= 0;
        // What is removed needs no room.
        match is_full && !matches!(act, Act::Remove(_)) {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => work(),
        }
    }
}

#[test]
fn a_full_disk_keeps_nothing_and_leaves_nothing() {
    for works in 0..5 {
        let temp = tempfile::tempdir().unwrap();
        let full = Arc::new(Full(AtomicI32::new(works)));
        let listings = on(&Disk::witnessed(full.clone()), temp.path(), u64::MAX);
        keep(&listings, "c", "d", &odd());
        assert_eq!(get(&listings, "c", "d"), None, "{works}");
        assert!(files_in(&temp.path().join("fetching")).is_empty());
        assert!(files_in(&temp.path().join(LISTINGS)).is_empty());
        full.0.store(i32::MAX, Ordering::Relaxed);
        keep(&listings, "c", "d", &odd());
        assert_eq!(get(&listings, "c", "d"), Some(odd()));
    }
}
