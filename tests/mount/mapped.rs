//! What programs store through shared mappings: a barrier has all of it, whichever way the bytes go and whoever mounts.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::dataset::noise;
use crate::mounted::TestMount;
use crate::passthrough::{Page, assert_committed};

/// By requests alone, and as this user has it.
const WAYS: [&[&str]; 2] = [&["--settle", "3600", "--passthrough", "never"], &["--settle", "3600"]];

fn open(path: &Path) -> File {
    File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

/// A new file of one page, mapped, and its descriptor.
fn mapped(path: &Path) -> (Page, File) {
    let file = open(path);
    file.set_len(Page::BYTES as u64).unwrap();
    (Page::of(&file), file)
}

/// What a file of one page holds, and what is stored there.
struct Expected(Vec<u8>);

impl Expected {
    fn new() -> Self {
        Self(vec![0; Page::BYTES])
    }

    fn store(&mut self, page: &Page, at: usize, text: &str) {
        page.store(at, text.as_bytes());
        self.0[at..at + text.len()].copy_from_slice(text.as_bytes());
    }
}

#[test]
fn sync_and_commit_have_what_was_stored_through_a_mapping() {
    for way in WAYS {
        let test = TestMount::with(crate::server::url(), way);
        let (page, file) = mapped(&test.at("mapped"));
        let mut expected = Expected::new();
        let mut kept = Some(file);
        for round in 0..4 {
            expected.store(&page, round * 100, "synced");
            test.sync();
            assert!(test.staged_content("mapped").unwrap() == expected.0, "{way:?}, round {round}");
            expected.store(&page, round * 100 + 50, "committed");
            test.commit();
            assert_committed(&test, "mapped", &expected.0);
            if round == 1 {
                // The mapping alone is left.
                kept = None;
            }
        }
        drop((kept, page));
        // A file of the branch, which nobody has written to here.
        test.unmount_commit();
        test.forget();
        test.mount(way).ok();
        let file = open(&test.at("mapped"));
        let page = Page::of(&file);
        expected.store(&page, 1000, "of the branch");
        test.commit();
        assert_committed(&test, "mapped", &expected.0);
        drop((page, file));
        test.unmount_and_compare();
    }
}

#[test]
fn a_barrier_has_what_five_mappings_of_one_file_hold_and_asks_for_nothing_else() {
    for way in WAYS {
        let test = TestMount::with(crate::server::url(), way);
        let (first, file) = mapped(&test.at("mapped"));
        let (beside, other) = mapped(&test.at("beside"));
        let mut expected = Expected::new();
        let others: Vec<Page> = (0..4).map(|_| Page::of(&open(&test.at("mapped")))).collect();
        for (at, page) in others.iter().chain([&first]).enumerate() {
            expected.store(page, at * 300, &format!("mapping {at}"));
        }
        beside.store(0, b"not asked for");
        let path = test.at("mapped");
        test.oxenfs(["sync", path.to_str().unwrap()]).ok();
        assert!(test.staged_content("mapped").unwrap() == expected.0, "{way:?}");
        assert!(!test.staged_paths().contains(&"beside".to_owned()), "{way:?}");
        drop((first, others, file, beside, other));
        test.unmount_and_compare();
    }
}

#[test]
fn an_unmount_that_a_mapping_keeps_from_ending_has_staged_what_was_stored() {
    for way in WAYS {
        let test = TestMount::with(crate::server::url(), way);
        let (page, file) = mapped(&test.at("mapped"));
        drop(file);
        let mut expected = Expected::new();
        expected.store(&page, 0, "before the unmount");
        let said = test.oxenfs(["unmount", test.dir.to_str().unwrap()]);
        assert!(said.exit != 0 && said.err.contains("it is in use"), "{said:#?}");
        assert!(test.staged_content("mapped").unwrap() == expected.0, "{way:?}");
        expected.store(&page, 2000, "after it");
        drop(page);
        test.unmount_commit();
        assert_committed(&test, "mapped", &expected.0);
    }
}

#[test]
fn pages_that_cannot_be_written_back_fail_the_barrier_by_name() {
    let test = TestMount::with(crate::server::url(), &["--settle", "3600", "--spool-limit", "1M"]);
    let content = noise(1, 600_000);
    fs::write(test.at("mapped"), &content).unwrap();
    test.commit();
    let file = open(&test.at("mapped"));
    let page = Page::of(&file);
    // What is left of the limit has no room for the file's bytes, which are the branch's as yet.
    fs::write(test.at("filler"), noise(2, 700_000)).unwrap();
    page.store(0, b"lost");
    let said =
        test.oxenfs(["commit", test.dir.to_str().unwrap(), "-m", "m", "--author", "A", "--email", "a@example.org"]);
    assert_eq!(said.exit, 3, "the filler is owed: {said:#?}");
    for part in ["mapped: what a program stored", "no space left in the spool", "hint: "] {
        assert!(said.err.contains(part), "{said:#?}");
    }
    assert_eq!(test.committed_file("filler"), None, "nothing of it is committed");
    // It is told once: what is there can be committed, and makes room.
    test.commit();
    assert_committed(&test, "mapped", &content);
    page.store(0, b"kept");
    test.commit();
    assert_committed(&test, "mapped", &[b"kept", &content[4..]].concat());
    drop((page, file));
    test.unmount_and_compare();
}

/// A program that maps a file and stores to it when it is told to.
struct Program {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Program {
    fn start(test: &TestMount, path: &str, length: usize) -> Self {
        const SCRIPT: &str = "
import mmap, os, sys
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o644)
os.ftruncate(file, int(sys.argv[2]))
mapped = mmap.mmap(file, 0)
os.close(file)
print('mapped', flush=True)
for line in sys.stdin:
    at, text = line.split()
    mapped[int(at):int(at) + len(text)] = text.encode()
    print('stored', flush=True)
";
        let mut command = Command::new("python3");
        command.args(["-c", SCRIPT]).arg(test.at(path)).arg(length.to_string());
        test.as_its_user(&mut command);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        let mut program = Self { child, said };
        program.hears("mapped");
        program
    }

    #[track_caller]
    fn hears(&mut self, word: &str) {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        assert_eq!(line.trim_end(), word);
    }

    #[track_caller]
    fn store(&mut self, at: usize, text: &str) {
        writeln!(self.child.stdin.as_ref().unwrap(), "{at} {text}").unwrap();
        self.hears("stored");
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    #[track_caller]
    fn end(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}

#[test]
fn another_users_barriers_have_it_too_also_of_a_program_that_is_stopped() {
    const BYTES: usize = 1 << 20;
    let test = TestMount::unprivileged(crate::server::url(), &["--settle", "3600"]);
    assert!(test.status()["passthrough"].as_str().unwrap().starts_with("off: "), "{:#}", test.status());
    let mut program = Program::start(&test, "mapped", BYTES);
    let mut expected = vec![0; BYTES];
    for round in 0..3 {
        for page in 0..BYTES / Page::BYTES {
            let (at, text) = (page * Page::BYTES + round * 20, format!("r{round}p{page}"));
            program.store(at, &text);
            expected[at..at + text.len()].copy_from_slice(text.as_bytes());
        }
        if round == 1 {
            program.signal(Signal::STOP);
        }
        if round == 0 {
            test.sync();
            assert!(test.staged_content("mapped").unwrap() == expected, "synced");
        } else {
            test.commit();
            assert_committed(&test, "mapped", &expected);
        }
        program.signal(Signal::CONT);
    }
    program.end();
    test.unmount_commit();
    assert_committed(&test, "mapped", &expected);
}

#[test]
fn who_writes_and_stores_at_once_has_all_of_it_in_the_barrier() {
    for way in WAYS {
        let test = TestMount::with(crate::server::url(), way);
        let (page, file) = mapped(&test.at("mapped"));
        let mut expected = Expected::new();
        for round in 0..3 {
            expected.store(&page, round * 200, "stored");
            file.write_all_at(b"written", round as u64 * 200 + 100).unwrap();
            expected.0[round * 200 + 100..][..7].copy_from_slice(b"written");
            test.commit();
            assert_committed(&test, "mapped", &expected.0);
            assert_eq!(page.load(0, Page::BYTES), expected.0);
        }
        drop((page, file));
        test.unmount_and_compare();
    }
}
