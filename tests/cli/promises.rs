//! The table of promises in the README names the test that proves each cell; every test it names is there and runs.

use std::collections::BTreeSet;
use std::path::Path;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The number of a `[n]` at the end of a cell.
fn proof(cell: &str) -> Option<u32> {
    cell.strip_suffix(']')?.rsplit_once('[')?.1.parse().ok()
}

/// Whether `file` has a test of that name that is not left out.
fn has_test(file: &str, name: &str) -> bool {
    let text = read(file);
    let Some(at) = text.find(&format!("fn {name}(")) else { return false };
    let attributes = text[..at].rsplit("\n\n").next().unwrap_or_default();
    attributes.contains("#[test]") && !attributes.contains("#[ignore")
}

#[test]
fn every_promise_names_a_test_that_is_there() {
    let readme = read("README.md");
    let table: Vec<Vec<&str>> = readme
        .lines()
        .skip_while(|line| !line.starts_with("| once this returns |"))
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    assert!(table.len() >= 6, "the table of promises is gone from the README");
    let mut used = BTreeSet::new();
    for row in &table {
        assert_eq!(row.len(), 4, "{row:?}");
        for cell in &row[1..] {
            match proof(cell) {
                Some(number) => drop(used.insert(number)),
                None => assert_eq!(*cell, "not promised", "{row:?}: no test is named for this"),
            }
        }
    }
    let mut proved = BTreeSet::new();
    let items = readme.split("\n- [").skip(1);
    for item in items.filter_map(|item| item.split("\n\n").next()) {
        let Some((number, rest)) = item.split_once("] ") else { continue };
        let Ok(number) = number.parse::<u32>() else { continue };
        let names: Vec<&str> = rest.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty() && names.len().is_multiple_of(2), "[{number}] {rest}");
        for pair in names.chunks(2) {
            assert!(has_test(pair[0], pair[1]), "[{number}]: {} has no test {}", pair[0], pair[1]);
        }
        proved.insert(number);
    }
    // And what the text promises.
    for mention in readme.replace("\n- [", "\n").replace("\n", " ").split(" [").skip(1) {
        if let Some(Ok(number)) = mention.split_once(']').map(|(number, _)| number.parse::<u32>()) {
            used.insert(number);
        }
    }
    assert_eq!(used, proved, "numbers in the table and the text, and the tests named for them");
}
