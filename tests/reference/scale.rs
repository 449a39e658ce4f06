//! What costs as much for the last of very many as for the first. What is compared is processor time of the thread that
//! asks: the machine may be busy.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use oxenfs::fs::{Fs, Limits, Need, OpenFlags, Options};
use oxenfs::namespace::{Ino, ROOT};
use oxenfs::path::{Name, RepoPath};
use oxenfs::workspace::ByHash;
use oxenfs::workspace::memory::Memory;

use crate::world::{attrs, temporary_dir};

/// What one of many may cost, over one of a tenth as many. In the square of their number it would be ten.
const DEARER: f64 = 4.0;

/// An empty filesystem that nothing is staged from.
fn empty() -> (Arc<Fs>, tempfile::TempDir, tokio::runtime::Runtime) {
    let runtime = crate::world::runtime(1);
    let dir = temporary_dir();
    let options = Options { read_only: false, settle: Duration::from_secs(600), uid: 0, gid: 0, umask: 0o022 };
    let limits = Limits { spool: None, cache: 200 };
    let memory = Arc::new(Memory::new(ByHash::Never));
    let fs = {
        let _guard = runtime.enter();
        Fs::recover(dir.path(), RepoPath::root(), options, limits, memory).unwrap()
    };
    runtime.block_on(fs.run(Need::List(ROOT), |_| Ok(()))).unwrap();
    (fs, dir, runtime)
}

fn name(at: usize) -> Name {
    Name::new(format!("entry {at:06}").as_bytes()).unwrap()
}

/// Processor time of this thread that `work` on `count` takes for each, in seconds.
fn spent(count: usize, work: impl FnOnce()) -> f64 {
    let now = || {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the structure is the kernel's to fill.
        assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) }, 0);
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    };
    let before = now();
    work();
    (now() - before) / count as f64
}

/// Does `steps` on a tenth and then on all, and compares what each step costs for one.
fn assert_linear(all: usize, steps: &[&str], run: impl Fn(usize) -> Vec<f64>) {
    let (few, many) = (run(all / 10), run(all));
    for (step, (few, many)) in steps.iter().zip(few.iter().zip(&many)) {
        let told = [few, many].map(|each| each * 1e6);
        assert!(many < &(few * DEARER), "{step}: us for each of {}, and of {all}: {told:.2?}", all / 10);
    }
}

fn create(fs: &Fs, dir: Ino, at: usize) {
    let flags = OpenFlags { read: false, write: true, truncate: false, execute: false };
    let (stat, handle) = fs.create(dir, &name(at), attrs(), flags).unwrap();
    fs.release(handle);
    fs.forget(stat.ino, 1);
}

/// Reads a directory as the kernel does, some entries at a time, from where the last one said; calls `between` with how
/// many came. Returns all names.
fn list(fs: &Fs, dir: Ino, mut between: impl FnMut(usize)) -> Vec<Vec<u8>> {
    let handle = fs.opendir(dir).unwrap().handle;
    let (mut names, mut next) = (Vec::new(), 0);
    loop {
        let mut room = 100;
        let before = names.len();
        fs.readdir(handle, next, true, |entry| {
            if room == 0 {
                return true;
            }
            room -= 1;
            names.push(entry.name.to_vec());
            next = entry.next;
            false
        })
        .unwrap();
        if names.len() == before {
            break;
        }
        between(names.len());
    }
    fs.release(handle);
    names
}

#[test]
fn a_directory_of_100_000_entries_costs_no_more_an_entry_than_a_small_one() {
    assert_linear(100_000, &["make", "find", "list while it changes", "remove"], |count| {
        let (fs, _dir, _runtime) = empty();
        let made = fs.mkdir(ROOT, &Name::new(b"dir").unwrap(), attrs()).unwrap().ino;
        let all = |range: Range<usize>, work: &dyn Fn(usize)| spent(count, || range.for_each(work));
        let make = all(0..count, &|at| create(&fs, made, at));
        let find = all(0..count, &|at| {
            let found = fs.lookup(made, &name(at)).unwrap();
            fs.forget(found.ino, 1);
        });
        // Each time some came, one that came goes, one that did not come yet goes, and another is made.
        let (mut gone, mut names) = (HashSet::new(), Vec::new());
        let listed = spent(count, || {
            names = list(&fs, made, |seen| {
                let (behind, ahead) = (seen.saturating_sub(50), seen + 500);
                for at in [behind, ahead] {
                    if at < count && gone.insert(at) {
                        fs.unlink(made, &name(at)).unwrap();
                    }
                }
                create(&fs, made, count + seen);
            });
        });
        names.retain(|name| name != b"." && name != b"..");
        let distinct: HashSet<&Vec<u8>> = names.iter().collect();
        assert_eq!(distinct.len(), names.len(), "each at most once");
        let stayed =
            (0..count).filter(|at| !gone.contains(at)).filter(|at| !distinct.contains(&name(*at).as_bytes().to_vec()));
        assert_eq!(stayed.count(), 0, "what was there all the time comes");
        let remove = spent(count, || {
            for name in list(&fs, made, |_| ()) {
                if name != b"." && name != b".." {
                    fs.unlink(made, &Name::new(&name).unwrap()).unwrap();
                }
            }
        });
        fs.rmdir(ROOT, &Name::new(b"dir").unwrap()).unwrap();
        vec![make, find, listed, remove]
    });
}

#[test]
fn a_file_of_very_many_names_costs_no_more_a_name_than_one_of_few() {
    assert_linear(30_000, &["link", "unlink"], |count| {
        let (fs, _dir, _runtime) = empty();
        create(&fs, ROOT, count);
        let ino = fs.lookup(ROOT, &name(count)).unwrap().ino;
        let link = spent(count, || {
            for at in 0..count {
                fs.link(ino, ROOT, &name(at)).unwrap();
            }
        });
        assert_eq!(fs.getattr(ino).unwrap().nlink as usize, count + 1);
        fs.unlink(ROOT, &name(count)).unwrap();
        let unlink = spent(count, || (0..count).for_each(|at| fs.unlink(ROOT, &name(at)).unwrap()));
        assert_eq!(fs.getattr(ino).unwrap().nlink, 0);
        vec![link, unlink]
    });
}
