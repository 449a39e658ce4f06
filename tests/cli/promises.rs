//! The table of promises in docs/SEMANTICS.md names the test that proves each cell; every test it names is there and runs.

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
    let page = read("docs/SEMANTICS.md");
    let table: Vec<Vec<&str>> = page
        .lines()
        .skip_while(|line| !line.starts_with("| once this returns |"))
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    assert!(table.len() >= 6, "the table of promises is gone from docs/SEMANTICS.md");
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
    let items = page.split("\n- [").skip(1);
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
    for mention in page.replace("\n- [", "\n").replace("\n", " ").split(" [").skip(1) {
        if let Some(Ok(number)) = mention.split_once(']').map(|(number, _)| number.parse::<u32>()) {
            used.insert(number);
        }
    }
    assert_eq!(used, proved, "numbers in the table and the text, and the tests named for them");
}

/// The places that a document's links lead to, in it or beside it; addresses elsewhere are left out.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let ends = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    ends.map(|(target, _)| target).filter(|target| !target.contains("://"))
}

/// What a heading is called in a link: lower case, spaces as hyphens, no other signs.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    kept.chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

#[test]
fn every_link_of_the_documents_leads_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let mut seen = 0;
    for page in docs.chain([root.join("README.md"), root.join("tests/README.md")]) {
        let text = std::fs::read_to_string(&page).unwrap();
        for link in links(&text) {
            let (file, part) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { page.clone() } else { page.with_file_name("").join(file) };
            assert!(target.exists(), "{}: {link} leads nowhere", page.display());
            if !part.is_empty() {
                let target = std::fs::read_to_string(&target).unwrap();
                let mut headings =
                    target.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#'));
                assert!(headings.any(|heading| anchor(heading) == part), "{}: {link}: no such heading", page.display());
            }
            seen += 1;
        }
    }
    assert!(seen > 20, "{seen} links were found");
}

/// Every name of the form `group.of-words` in quotes, in `text`.
fn names(text: &str, quote: char) -> BTreeSet<&str> {
    let groups =
        ["conflict", "tree", "index", "queue", "handles", "record", "backing", "cache", "staging", "owed", "file"];
    let word = |word: &str| !word.is_empty() && word.chars().all(|char| char.is_ascii_lowercase() || char == '-');
    let is_name = |text: &&str| text.split_once('.').is_some_and(|(group, name)| groups.contains(&group) && word(name));
    text.split(quote).filter(is_name).collect()
}

#[test]
fn every_invariant_has_its_line_and_is_checked() {
    fn sources(dir: &Path, into: &mut String) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => sources(&path, into),
                false => into.push_str(&std::fs::read_to_string(&path).unwrap()),
            }
        }
    }
    let mut source = String::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut source);
    let page = read("docs/INVARIANTS.md");
    let listed: BTreeSet<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .flat_map(|line| {
            let cell = line.split(" | ").next().unwrap_or_default();
            cell.split(['`', ',', ' ']).filter(|name| name.contains('.')).collect::<Vec<_>>()
        })
        .collect();
    assert!(listed.len() > 20, "the table is gone from docs/INVARIANTS.md: {listed:?}");
    assert_eq!(names(&source, '"'), listed, "names in src, and in docs/INVARIANTS.md");
}
