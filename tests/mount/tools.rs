//! What the tools of a working day do in the mount: version control, databases, archives, editors, compilers. Each also
//! in a plain directory, where the outcome can be compared.

use std::fs;
use std::path::Path;

use crate::dataset::{self, noise};
use crate::http::assert_same;
use crate::mounted::{TestMount, local_tree, python, run, shell};

/// Quick to settle: what a tool makes is being staged while it goes on.
fn quick() -> TestMount {
    TestMount::with(crate::server::url(), &["--settle", "0.05"])
}

#[test]
fn git_keeps_a_repository_of_500_files() {
    let test = quick();
    let git = |script: &str| {
        // Nobody's configuration, and no work left in the background.
        let shielded = "export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null GIT_AUTHOR_NAME=a \
                        GIT_AUTHOR_EMAIL=a@example.org GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.org";
        shell(&test.at("repo"), &format!("{shielded}; {script}"))
    };
    fs::create_dir(test.at("repo")).unwrap();
    git("git init -q -b main .; git config gc.auto 0; git config gc.autoDetach false");
    for at in 0..500 {
        let dir = test.at(format!("repo/dir {}", at % 17));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(format!("file {at}")), noise(at, 100 + 7 * at as usize)).unwrap();
    }
    git("git add -A; git commit -q -m one");
    git("git mv 'dir 3' moved; rm 'dir 4/file 4'; echo changed > 'dir 5/file 5'; git commit -q -a -m two");
    git("git checkout -q -b side HEAD~1; echo side > side; git add side; git commit -q -m three; git checkout -q main");
    git("git merge -q -m merge side; git gc -q --prune=now");
    assert_eq!(git("git status --porcelain"), "");
    git("git fsck --full --strict");
    assert_eq!(git("git log --oneline | wc -l").trim(), "4");
    // Again, by a kernel that remembers nothing of it.
    test.unmount();
    test.mount(&[]).ok();
    git("git fsck --full --strict; git status --porcelain | wc -l | grep -qx 0");
    test.unmount_and_compare();
}

/// A workload on a database: many small transactions, two connections, one that is rolled back.
const SQLITE: &str = r#"
import sqlite3
database = sqlite3.connect('data.db', timeout=60)
assert database.execute(f'pragma journal_mode={mode}').fetchone()[0] == mode
database.execute('create table if not exists t (id integer primary key, text)')
for at in range(60):
    with database:
        database.execute('insert into t (text) values (?)', (f'row {at} ' * (at % 50),))
reader = sqlite3.connect('data.db', timeout=60)
count = 'select count(*) from t'
assert reader.execute(count).fetchone() == database.execute(count).fetchone() != (0,)
try:
    with database:
        database.execute('delete from t')
        raise KeyError
except KeyError:
    pass
with database:
    database.execute('delete from t where id % 10 = 3')
    database.execute("insert into t (text) select text from t where id % 10 = 4")
assert reader.execute('pragma integrity_check').fetchone()[0] == 'ok'
if mode != 'wal':
    reader.close()
    database.execute('vacuum')
print(database.execute('select count(*), sum(length(text)) from t').fetchone())
"#;

#[test]
fn sqlite_keeps_its_promises_with_every_journal() {
    let test = quick();
    let plain = test.beside("plain");
    for mode in ["delete", "truncate", "persist", "wal"] {
        let answers = [&test.dir, &plain].map(|root| python(root, &format!("mode = '{mode}'\n{SQLITE}")));
        assert_eq!(answers[0], answers[1], "{mode}");
    }
    test.unmount();
    test.mount(&[]).ok();
    let check = "import sqlite3\nprint(sqlite3.connect('data.db').execute('pragma integrity_check').fetchone()[0])";
    assert_eq!(python(&test.dir, check).trim(), "ok");
    test.unmount_and_compare();
}

#[test]
fn a_program_is_compiled_where_its_sources_are() {
    let test = quick();
    let sources = test.at("sources");
    fs::create_dir(&sources).unwrap();
    let mut header = String::new();
    let mut sum = String::new();
    for at in 0..12 {
        fs::write(
            sources.join(format!("part{at}.c")),
            format!("#include \"parts.h\"\nint part{at}(void) {{ return {at}; }}\n"),
        )
        .unwrap();
        header += &format!("int part{at}(void);\n");
        sum += &format!(" + part{at}()");
    }
    fs::write(sources.join("parts.h"), header).unwrap();
    let main = format!("#include <stdio.h>\n#include \"parts.h\"\nint main(void) {{ printf(\"%d\\n\", 0{sum}); }}\n");
    fs::write(sources.join("main.c"), main).unwrap();
    fs::write(
        sources.join("Makefile"),
        "objects = $(patsubst %.c,%.o,$(wildcard *.c))\nprogram: $(objects)\n\tgcc -o $@ $^\n%.o: %.c parts.h\n\tgcc -O1 -g \
         -c -o $@ $<\nlib.a: $(objects)\n\tar rcs $@ $^\nclean:\n\trm -f *.o program lib.a\n",
    )
    .unwrap();
    assert!(shell(&sources, "make -j4 program lib.a").contains("-o program"));
    assert_eq!(shell(&sources, "./program"), "66\n");
    // Times are true: nothing is made again, but what a change asks for.
    assert!(shell(&sources, "make").contains("up to date"));
    shell(&sources, "sed -i 's/return 7/return 107/' part7.c");
    let made = shell(&sources, "make");
    assert!(made.contains("part7.o") && !made.contains("part6.c"), "{made}");
    assert_eq!(shell(&sources, "./program"), "166\n");
    test.unmount_and_compare();
}

/// A program that is running cannot be written to, here as anywhere.
#[test]
fn a_running_program_is_busy() {
    let test = quick();
    fs::copy("/bin/sleep", test.at("sleep")).unwrap();
    let mut running = std::process::Command::new(test.at("sleep")).arg("60").spawn().unwrap();
    let write = fs::OpenOptions::new().write(true).open(test.at("sleep"));
    running.kill().unwrap();
    running.wait().unwrap();
    assert_eq!(write.unwrap_err().kind(), std::io::ErrorKind::ExecutableFileBusy);
    test.unmount_and_compare();
}

#[test]
fn archives_unpack_to_what_was_packed() {
    let test = quick();
    let source = test.beside("source");
    dataset::write(&source, 80);
    let archives = test.beside("archives");
    for (pack, unpack) in [
        ("tar -C \"$1\" -czf a.tar.gz .", "tar -xzf \"$1/a.tar.gz\""),
        ("(cd \"$1\" && zip -q -r - .) > a.zip", "unzip -q -o \"$1/a.zip\""),
    ] {
        let with = |dir: &Path, script: &str, other: &Path| {
            let script = format!("set -eu; cd \"$0\"; {script}");
            run("sh", ["-c".as_ref(), script.as_ref(), dir.as_os_str(), other.as_os_str()])
        };
        with(&archives, pack, &source);
        // Twice: the second time over what is there, and being uploaded.
        with(&test.dir, unpack, &archives);
        with(&test.dir, unpack, &archives);
        assert_same(&local_tree(&test.dir), &local_tree(&source));
        // And packed again from the mount.
        with(&archives, &pack.replace("a.", "b."), &test.dir);
    }
    test.unmount_and_compare();
}

#[test]
fn rsync_moves_nothing_the_second_time_and_only_what_changed_the_third() {
    let test = quick();
    let source = test.beside("source");
    dataset::write(&source, 120);
    shell(&source, "ln -s nowhere link; ln 'level 1/file 1' hard; mkfifo fifo; chmod 751 empty; mkdir -m 700 dir");
    let (from, to) = (format!("{}/", source.display()), test.dir.to_str().unwrap().to_owned());
    let rsync = |more: &[&str]| {
        let options = [&["-aH", "--itemize-changes", "--delete"], more, &[&from, &to]].concat();
        run("rsync", options)
    };
    assert!(rsync(&[]).lines().count() > 120);
    assert_eq!(rsync(&[]), "");
    assert_eq!(rsync(&["--checksum"]), "");
    shell(&source, "echo more >> empty; rm hard; mv 'level 1/level 2' moved");
    assert!(rsync(&[]).contains("*deleting"));
    assert_eq!(rsync(&[]), "");
    assert_eq!(rsync(&["--checksum", "--inplace", "--no-whole-file"]), "");
    shell(&source, "printf x | dd of=empty conv=notrunc bs=1 seek=2 status=none; touch -d 2001-02-03 empty");
    assert_eq!(rsync(&["--checksum", "--inplace", "--no-whole-file"]).lines().count(), 1);
    test.unmount_and_compare();
}

/// How vim, emacs, nano, gedit and their kin save: each as the calls they make.
const SAVES: &str = r#"
def write(name, text, sync=True):
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(fd, text.encode())
    if sync:
        os.fsync(fd)
    os.close(fd)

def vim(name, text):        # backupcopy=no: the old one becomes the backup, the new one is made
    os.close(os.open('4913', os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o100644))
    os.chown('4913', os.getuid(), os.getgid())
    os.unlink('4913')
    os.rename(name, name + '~')
    write(name, text)
    os.chmod(name, 0o644)
    os.unlink(name + '~')

def in_place(name, text):   # nano, vim with backupcopy=yes: copy, then write over
    write(name + '~', open(name).read())
    write(name, text)
    os.unlink(name + '~')

def atomic(name, text):     # gedit, VS Code's atomic save, most libraries
    temporary = '.goutputstream-' + name
    write(temporary, text)
    os.chmod(temporary, os.stat(name).st_mode & 0o7777)
    os.rename(temporary, name)
    fd = os.open('.', os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    os.close(fd)

def linked(name, text):     # emacs: a lock that is a link, the backup a hard link
    os.symlink('me@host.1:2', '.#' + name)
    if os.path.exists(name + '~'):
        os.unlink(name + '~')
    os.link(name, name + '~')
    write('#' + name + '#', text)
    os.rename('#' + name + '#', name)
    os.unlink('.#' + name)

for at in range(30):
    for save in (vim, in_place, atomic, linked):
        name = save.__name__ + '.txt'
        if not os.path.exists(name):
            write(name, 'new\n')
        save(name, f'{save.__name__} {at}\n' * (at + 1))
        assert open(name).read() == f'{save.__name__} {at}\n' * (at + 1)
"#;

#[test]
fn every_editor_saves_thirty_times() {
    let test = quick();
    let plain = test.beside("plain");
    for root in [&test.dir, &plain] {
        python(root, SAVES);
        shell(root, "for i in 1 2 3 4 5; do sed -i -e \"s/$/ $i/\" vim.txt; sed -i.bak -e 1d atomic.txt; done");
    }
    assert_same(&local_tree(&test.dir), &local_tree(&plain));
    test.unmount_and_compare();
}

/// What numpy, h5py, zarr and pyarrow do to files, as the calls they make: `numpy.memmap` in its modes; an HDF5 file
/// under its lock, with a superblock that is written again when data was appended, and cut at its end; a zarr store
/// with a temporary file renamed for each chunk; a Parquet file that is read from its footer; a table that is appended to.
const FORMATS: &str = r#"
import fcntl, json, mmap, random, struct, uuid
random.seed(7)

# numpy.memmap, 'w+': a file of its final length by one byte at its end, filled out of order, flushed now and then.
rows, width = 300, 1000
with open('array.npy', 'w+b') as f:
    f.seek(rows * width - 1)
    f.write(b'\0')
    f.flush()
    with mmap.mmap(f.fileno(), rows * width) as m:
        order = list(range(rows))
        random.shuffle(order)
        for at, row in enumerate(order):
            m[row * width:(row + 1) * width] = bytes([row % 251]) * width
            if at % 100 == 0:
                m.flush()
with open('array.npy', 'r+b') as f, mmap.mmap(f.fileno(), 0) as m:  # 'r+', and 'c', which changes nothing
    m[5 * width:5 * width + 4] = b'five'
    with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY) as copy:
        copy[0:4] = b'copy'
        assert m[0:4] == b'\0' * 4

# HDF5: opened exclusively, data behind data, then the superblock; a reader has to wait; later some of it goes.
def superblock(fd, end):
    os.pwrite(fd, b'\x89HDF\r\n\x1a\n' + struct.pack('<QQ', end, 2), 0)
fd = os.open('data.h5', os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
try:
    fcntl.flock(os.open('data.h5', os.O_RDONLY), fcntl.LOCK_SH | fcntl.LOCK_NB)
    raise SystemExit('two have the file')
except BlockingIOError:
    pass
end = 2048
for at in range(200):
    block = bytes([at]) * random.randrange(1, 5000)
    os.pwrite(fd, block, end)
    end += len(block)
    if at % 20 == 19:
        superblock(fd, end)
        os.fsync(fd)
    if at % 50 == 49:  # a chunk is written over, another is given back
        os.pwrite(fd, b'again' * 100, 2048 + at)
        end -= 100
os.ftruncate(fd, end + 4096)
os.ftruncate(fd, end)
superblock(fd, end)
fcntl.flock(fd, fcntl.LOCK_UN)
os.close(fd)
fd = os.open('data.h5', os.O_RDONLY)
fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
assert struct.unpack('<Q', os.pread(fd, 8, 8))[0] == os.fstat(fd).st_size == end
os.close(fd)

# zarr: each chunk by a temporary file of its own name, then renamed; some are written again or removed.
def put(path, content):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f'{path}.{uuid.UUID(int=random.getrandbits(128)).hex}.partial'
    with open(temporary, 'wb') as f:
        f.write(content)
    os.replace(temporary, path)
put('store.zarr/.zgroup', b'{"zarr_format": 2}')
put('store.zarr/x/.zarray', json.dumps({'shape': [400], 'chunks': [10]}).encode())
for turn in range(3):
    for chunk in range(40):
        if (chunk + turn) % 3 == 0:
            put(f'store.zarr/x/{chunk // 10}.{chunk % 10}', bytes([chunk, turn]) * 700)
os.remove('store.zarr/x/0.0')
put('store.zarr/.zmetadata', json.dumps(sorted(os.listdir('store.zarr/x'))).encode())
assert not [name for name in os.listdir('store.zarr/x') if name.endswith('.partial')]

# Parquet: row groups one after the other, the footer with its length last; read from there, and mapped.
groups = []
with open('table.parquet', 'wb') as f:
    f.write(b'PAR1')
    for group in range(12):
        groups.append((f.tell(), 3000 + group))
        f.write(bytes([group]) * (3000 + group))
    footer = json.dumps(groups).encode()
    f.write(footer + struct.pack('<I', len(footer)) + b'PAR1')
with open('table.parquet', 'rb') as f:
    f.seek(-8, os.SEEK_END)
    length, magic = struct.unpack('<I4s', f.read(8))
    assert magic == b'PAR1'
    f.seek(-8 - length, os.SEEK_END)
    with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as m:
        for group, (at, size) in enumerate(json.loads(f.read(length))):
            assert m[at:at + size] == bytes([group]) * size

# A table that several append to, and one that is rewritten beside itself.
writers = []
for writer in range(4):
    pid = os.fork()
    if pid == 0:
        fd = os.open('rows.csv', os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        for at in range(100):
            os.write(fd, f'{writer},{at:03}\n'.encode())
        os._exit(0)
    writers.append(pid)
assert all(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0 for pid in writers)
rows = sorted(open('rows.csv'))
assert len(set(rows)) == 400 and {len(row) for row in rows} == {6}
with open('rows.csv.new', 'w') as f:
    f.writelines(rows)
os.replace('rows.csv.new', 'rows.csv')
"#;

#[test]
fn arrays_tables_and_their_stores_are_written_as_their_libraries_do() {
    let test = quick();
    let plain = test.beside("plain");
    for root in [&test.dir, &plain] {
        python(root, FORMATS);
    }
    assert_same(&local_tree(&test.dir), &local_tree(&plain));
    test.sync();
    // Over what is staged, and by a kernel that remembers nothing of it.
    test.unmount();
    test.mount(&["--settle", "0.05"]).ok();
    for root in [&test.dir, &plain] {
        shell(root, "rm rows.csv");
        python(root, FORMATS);
    }
    assert_same(&local_tree(&test.dir), &local_tree(&plain));
    test.unmount_and_compare();
}
