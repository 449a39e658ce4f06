//! The load of `scripts/bench`, without an interpreter's time in it: `bench-load WHAT ...` does one thing and prints
//! how many seconds it took. Compiled by the script with `rustc -O`.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let text: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |at: usize| text[at].parse::<u64>().expect("a number");
    // Memory that was never touched would be counted too.
    let mut block = vec![1u8; 1 << 20];
    fill(&mut block, 1);
    let path = PathBuf::from(text[1]);
    let began = Instant::now();
    match text[0] {
        "write" => write(&path, number(2), &block[..number(3) as usize]),
        "read" => read(&path, &mut block[..number(2) as usize]),
        "rand-write" => random(&path, number(2), |file, at| file.write_all_at(&block[..4096], at).unwrap()),
        "rand-read" => {
            let mut page = [0; 4096];
            random(&path, number(2), |file, at| file.read_exact_at(&mut page, at).unwrap());
        }
        "create" => create(&path, number(2), &block[..number(3) as usize], number(4)),
        "stat" => drop(tree(&path)),
        "readdir" => (0..number(2)).for_each(|_| assert!(fs::read_dir(&path).unwrap().count() > 0)),
        "close" => return close(&path, number(2), number(3), &block),
        // Datasets that no compression makes small.
        "dataset" => dataset(&path, number(2), args.get(4).map_or(500, |_| number(4)), |_| number(3)),
        "mixed" => dataset(&path, number(2), 500, mixed),
        what => panic!("unknown load {what}"),
    }
    println!("{:.6}", began.elapsed().as_secs_f64());
}

/// Pseudo-random bytes (xorshift64*).
fn fill(bytes: &mut [u8], seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for chunk in bytes.chunks_mut(8) {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let random = state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
        let length = chunk.len();
        chunk.copy_from_slice(&random[..length]);
    }
}

fn write(path: &Path, bytes: u64, block: &[u8]) {
    let mut file = File::create(path).unwrap();
    for _ in 0..bytes / block.len() as u64 {
        file.write_all(block).unwrap();
    }
}

fn read(path: &Path, block: &mut [u8]) {
    let mut file = File::open(path).unwrap();
    while file.read(block).unwrap() > 0 {}
}

fn random(path: &Path, count: u64, mut act: impl FnMut(&File, u64)) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let pages = file.metadata().unwrap().len() / 4096;
    let mut state = 88_172_645_463_325_252u64;
    for _ in 0..count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        act(&file, state % pages * 4096);
    }
}

/// `count` files in as many directories as there are writers.
fn create(path: &Path, count: u64, content: &[u8], writers: u64) {
    std::thread::scope(|scope| {
        for writer in 0..writers {
            scope.spawn(move || {
                let dir = path.join(format!("{writer}"));
                fs::create_dir_all(&dir).unwrap();
                for at in 0..count / writers {
                    File::create(dir.join(format!("file{at:06}"))).unwrap().write_all(content).unwrap();
                }
            });
        }
    });
}

/// Looks at everything below a directory.
fn tree(path: &Path) -> u64 {
    let mut seen = 0;
    for entry in fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        seen += 1;
        if entry.metadata().unwrap().is_dir() {
            seen += tree(&entry.path());
        }
    }
    seen
}

/// Writes a file, closes it and removes it, again and again; prints the seconds that the median close took, and the 99th
/// of a hundred (of fewer: the longest).
fn close(path: &Path, bytes: u64, times: u64, block: &[u8]) {
    let mut took: Vec<f64> = (0..times)
        .map(|_| {
            let mut file = File::create(path).unwrap();
            for _ in 0..bytes / block.len() as u64 {
                file.write_all(block).unwrap();
            }
            let began = Instant::now();
            drop(file);
            let took = began.elapsed().as_secs_f64();
            fs::remove_file(path).unwrap();
            took
        })
        .collect();
    took.sort_by(f64::total_cmp);
    println!("{:.6} {:.6}", took[took.len() / 2], took[(took.len() * 99).div_ceil(100) - 1]);
}

/// Lengths as datasets have them: most files small, most bytes in a few that are not. 210 KiB a file on average.
fn mixed(at: u64) -> u64 {
    let spread = at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    match at % 20 {
        0..14 => 1 << 10 | spread % (63 << 10),
        14..19 => 64 << 10 | spread % (448 << 10),
        _ => 1 << 20 | spread % (3 << 20),
    }
}

fn dataset(path: &Path, count: u64, in_one: u64, bytes: impl Fn(u64) -> u64) {
    let mut content = Vec::new();
    for at in 0..count {
        content.resize(bytes(at) as usize, 0);
        let dir = path.join(format!("dir{:03}", at / in_one));
        fs::create_dir_all(&dir).unwrap();
        fill(&mut content, at + 1);
        fs::write(dir.join(format!("file{at:06}.bin")), &content).unwrap();
    }
}
