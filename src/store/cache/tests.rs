use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use super::*;
use crate::hash::HashKind;

fn content(file: &mut File) -> String {
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    text
}

fn fetched(cache: &Cache, text: &str) -> ContentHash {
    let hash = ContentHash::of(HashKind::Xxh3, text.as_bytes());
    let fetching = cache.begin().unwrap();
    fetching.file.write_all_at(text.as_bytes(), 0).unwrap();
    cache.keep(fetching, hash, false);
    cache.settle(cache.arrived(|_| true));
    hash
}

#[test]
fn the_least_recently_used_leaves_first_and_the_newest_never() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), 10).unwrap();
    let (a, b) = (fetched(&cache, "aaaa"), fetched(&cache, "bbbb"));
    assert_eq!(content(&mut cache.file(a).unwrap()), "aaaa");
    let c = fetched(&cache, "cccc");
    assert!(cache.file(b).is_none());
    assert!(cache.file(a).is_some() && cache.file(c).is_some());
    let big = fetched(&cache, &"x".repeat(50));
    assert!(cache.file(big).is_some());
}

#[test]
fn staged_content_goes_last() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), 10).unwrap();
    cache.learn().unwrap();
    let hash = |text: &str| ContentHash::of(HashKind::Xxh3, text.as_bytes());
    cache.note_staged(hash("aaaa"));
    let a = fetched(&cache, "aaaa");
    let b = fetched(&cache, "bbbb");
    cache.note_staged(b);
    // Committed content comes and goes beside it, and the newest stays for its reader.
    let (c, d) = (fetched(&cache, "cccc"), fetched(&cache, "dddd"));
    let has = |hash| cache.file(hash).is_some();
    assert!(has(a) && has(b) && !has(c) && has(d));
    assert_eq!([a, b, c, d].map(|hash| cache.lacks(hash)), [false, false, true, false]);
    assert_eq!(Cache::lacking_in(dir.path(), [a, c].into_iter()), HashSet::from([c]));
    // Staged content keeps to the limit too.
    cache.note_staged(hash("eeee"));
    fetched(&cache, "eeee");
    assert!(cache.lacks(a) && !cache.lacks(b), "the first of them was used before the other");
    // Once committed, it is like any other.
    cache.note_all_staged([hash("eeee")].into_iter());
    fetched(&cache, "ffff");
    assert!(cache.lacks(b) && cache.lacks(d) && !cache.lacks(hash("eeee")));
    // What is known for staged before all that is here is known.
    let again = Cache::open(dir.path(), 10).unwrap();
    assert!(!again.lacks(c), "nobody has looked yet");
    again.note_all_staged([hash("eeee")].into_iter());
    again.learn().unwrap();
    fetched(&again, "gggg");
    assert!(!again.lacks(hash("eeee")) && again.lacks(hash("ffff")));
}

#[test]
fn what_came_last_stays_for_its_reader_whatever_is_older_and_committed() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), 1).unwrap();
    cache.learn().unwrap();
    let committed = fetched(&cache, "committed");
    let staged = ContentHash::of(HashKind::Xxh3, b"staged");
    cache.note_staged(staged);
    fetched(&cache, "staged");
    assert!(!cache.lacks(staged) && cache.lacks(committed));
}

#[test]
fn confirmed_bytes_move_from_the_spool_to_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(&dir.path().join("spool"), None).unwrap();
    let cache = Cache::open(&dir.path().join("cache"), 100).unwrap();
    let (id, file) = spool.create().unwrap();
    file.write_all_at(b"hello", 0).unwrap();
    let hash = ContentHash::of(HashKind::Xxh3, b"hello");
    assert!(cache.adopt(&spool, id, hash, 5));
    assert_eq!(content(&mut cache.file(hash).unwrap()), "hello", "readable before it is flushed");
    cache.settle(cache.arrived(|_| true));
    assert!(spool.file(id).is_err());
    assert_eq!(content(&mut cache.file(hash).unwrap()), "hello");
    let again = Cache::open(&dir.path().join("cache"), 2).unwrap();
    again.learn().unwrap();
    assert!(again.file(hash).is_some(), "the newest stays");
}

#[test]
fn what_is_lent_is_nobody_elses_and_keeps_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), 10).unwrap();
    let hash = fetched(&cache, "lent");
    let refused = cache.lend(hash, Ino(2), |_| false);
    assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    assert!(cache.file(hash).is_some(), "it was not lent");
    let lent = cache.lend(hash, Ino(2), |_| true).unwrap();
    assert_eq!(content(&mut lent.try_clone().unwrap()), "lent");
    assert!(cache.file(hash).is_none());
    assert!(matches!(cache.find(hash), Found::Lent(Ino(2), _)));
    assert_eq!(cache.lend(hash, Ino(3), |_| true).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
    // Neither evicted, nor replaced by another copy; that one may be had.
    fetched(&cache, &"x".repeat(50));
    fetched(&cache, &"y".repeat(50));
    assert_eq!(fetched(&cache, "lent"), hash);
    assert_eq!(identity(&fs::metadata(cache.path(hash)).unwrap()), identity(&lent.metadata().unwrap()));
    let other = cache.file(hash).unwrap();
    assert_ne!(identity(&other.metadata().unwrap()), identity(&lent.metadata().unwrap()));
    assert_eq!(cache.give_back(hash), None);
    cache.settle(cache.arrived(|_| true));
    assert_eq!(content(&mut cache.file(hash).unwrap()), "lent");
    // A daemon that is killed while it has lent leaves it where it is.
    assert!(cache.lend(hash, Ino(2), |_| true).is_ok());
    assert!(Cache::open(dir.path(), 10).unwrap().file(hash).is_some());
}

#[test]
fn what_departs_goes_to_the_spool_or_returns() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(&dir.path().join("spool"), None).unwrap();
    let cache = Cache::open(&dir.path().join("cache"), 100).unwrap();
    let hash = fetched(&cache, "lent");
    assert!(cache.depart(&spool, hash).is_err(), "it is not lent");
    let lent = cache.lend(hash, Ino(2), |_| true).unwrap();
    let id = cache.depart(&spool, hash).unwrap();
    assert!(matches!(cache.find(hash), Found::Lent(..)));
    cache.return_from(&spool, hash);
    assert!(spool.file(id).is_err());
    assert_eq!(cache.give_back(hash), None);
    assert!(cache.file(hash).is_some());
    drop(lent);
    // Once it is the spool's, content of that name is fetched anew.
    let lent = cache.lend(hash, Ino(2), |_| true).unwrap();
    let id = cache.depart(&spool, hash).unwrap();
    cache.part_with(hash);
    assert!(matches!(cache.find(hash), Found::Nowhere));
    assert_eq!(identity(&lent.metadata().unwrap()), identity(&spool.file(id).unwrap().metadata().unwrap()));
    assert_eq!(fetched(&cache, "lent"), hash);
    // What a person put in its place is not what programs have.
    let lent = cache.lend(hash, Ino(2), |_| true).unwrap();
    fs::remove_file(cache.path(hash)).unwrap();
    fs::write(cache.path(hash), "another").unwrap();
    assert_eq!(cache.depart(&spool, hash).unwrap_err().raw_os_error(), Some(libc::ESTALE));
    assert_eq!(content(&mut lent.try_clone().unwrap()), "lent");
}

#[test]
fn what_a_restart_of_the_machine_left_is_checked_before_it_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), 1000).unwrap();
    let (whole, torn) = (fetched(&cache, "whole"), fetched(&cache, "torn away"));
    let path = cache.path(torn);
    OpenOptions::new().write(true).open(path).unwrap().set_len(4).unwrap();
    let cache = Cache::open_on(&Disk::restarted(1), dir.path(), 1000).unwrap();
    assert!(cache.file(whole).is_none(), "not unchecked");
    assert!(cache.check(torn).is_none() && cache.file(torn).is_none());
    assert!(cache.check(whole).is_some());
    assert_eq!(content(&mut cache.file(whole).unwrap()), "whole");
}

#[test]
fn a_cached_file_that_was_altered_is_not_served() {
    use std::os::unix::fs::FileExt;
    let temp = tempfile::tempdir().unwrap();
    let cache = Cache::open(temp.path(), 1 << 20).unwrap();
    let content = b"what the server has";
    let hash = ContentHash::of(crate::hash::HashKind::Xxh3, content);
    let put = || {
        let fetched = cache.begin().unwrap();
        fetched.file.write_all_at(content, 0).unwrap();
        cache.keep(fetched, hash, true);
        cache.path(hash)
    };
    let path = put();
    assert!(cache.file(hash).is_some());
    assert!(cache.lend(hash, Ino(1), |_| true).is_ok());
    cache.give_back(hash);
    let alter = |change: &dyn Fn(&File)| change(&OpenOptions::new().write(true).open(&path).unwrap());
    let alterations: [&dyn Fn(&File); 3] =
        [&|file| file.write_all_at(b"x", 3).unwrap(), &|file| file.set_len(5).unwrap(), &|file| {
            file.write_all_at(b"more", content.len() as u64).unwrap()
        }];
    for alteration in alterations {
        put();
        alter(alteration);
        assert!(cache.file(hash).is_none());
        assert!(cache.lend(hash, Ino(1), |_| true).is_err());
        assert!(cache.check(hash).is_none() && !path.exists(), "gone, to be fetched again");
    }
    // Written over with what it was, it is as good as before once that was looked at.
    put();
    alter(&|file| file.write_all_at(content, 0).unwrap());
    assert!(cache.file(hash).is_none());
    assert!(cache.check(hash).is_some());
    assert!(cache.file(hash).is_some());
    // What a seal does not tell, whoever passes the bytes on sees.
    cache.distrust(hash);
    assert!(cache.file(hash).is_none() && !path.exists());
}
