//! A dataset as awkward as real ones.

use std::path::Path;

/// Whether the large datasets are wanted.
pub fn full() -> bool {
    std::env::var_os("OXENFS_TEST_FULL").is_some_and(|value| value == "1")
}

/// `size` bytes that no compression makes small, and that are the same for the same `seed`.
pub fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; size];
    random.fill(&mut bytes);
    bytes
}

/// Names that some layer could take for something else.
const AWKWARD: [&str; 21] = [
    "with space",
    " leading and trailing ",
    "Größe",
    "猫の写真",
    "e\u{301}-decomposed",
    "🦬.txt",
    "100%",
    "%2F%41",
    "a#b",
    "what?",
    "a&b=c",
    "single'quote",
    "double\"quote",
    "-rf",
    "--",
    "semi;colon",
    "a+b",
    "~tilde",
    "{braces}[brackets]",
    ".hidden",
    "colon:at@star*",
];

/// Writes about `count` files below `root`, which must be empty: awkward names, empty files, deep directories, sizes
/// up to 2 MB.
pub fn write(root: &Path, count: usize) {
    let put = |path: &str, content: &[u8]| {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    };
    for (at, name) in AWKWARD.iter().enumerate() {
        put(name, format!("the file {name}").as_bytes());
        put(&format!("dir {name}/{name}"), &noise(at as u64, 100 * at));
    }
    let deep: Vec<String> = (1..=12).map(|level| format!("level {level}")).collect();
    for level in 1..=12 {
        put(&format!("{}/file {level}", deep[..level].join("/")), &noise(level as u64, 5000));
    }
    put("empty", b"");
    put("also/empty", b"");
    put(&"n".repeat(200), b"a long name");
    let mut random = fastrand::Rng::with_seed(7);
    for at in 0..count.saturating_sub(60) {
        let size = match at % 50 {
            0 => random.usize(1_000_000..=2_000_000),
            1..5 => random.usize(65_536..=300_000),
            5..20 => random.usize(1000..=20_000),
            20 => 0,
            _ => random.usize(1..=2000),
        };
        put(&format!("class{}/image {at:05}.bin", at % 7), &noise(1000 + at as u64, size));
    }
}
