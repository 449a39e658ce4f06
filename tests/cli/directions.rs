//! Which module names which: the table under "Directions" in src/lib.rs is what holds, no more and no less. Read from the
//! syntax: every `use`, path, attribute and macro of `src`, tests among them. Links in comments are free.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::visit::{self, Visit};

/// Crates that are named in one place alone, and the modules whose place that is.
const CRATES: [(&str, &[&str]); 7] = [
    ("axum", &["dev_server", "metrics"]),
    ("clap", &["cli"]),
    ("clap_complete", &["cli"]),
    ("fuser", &["fuse"]),
    ("prometheus_client", &["metrics"]),
    ("reqwest", &["oxen"]),
    ("tracing_subscriber", &["log"]),
];

/// Modules that wait for nothing: no files, no runtime.
const NO_WAITING: [&str; 10] = [
    "calendar",
    "id",
    "namespace",
    "report",
    "table",
    "writeback::delays",
    "writeback::index",
    "writeback::lanes",
    "writeback::pace",
    "writeback::queue",
];

/// What those do not name.
const WAITING: [&str; 3] = ["std::fs", "std::net", "tokio"];

/// The only module that prints.
const PRINTS: &str = "cli";

/// Circles of modules within a folder that stand: a test server's parts, each of which answers requests about the others.
const CIRCLES: [&str; 1] =
    ["dev_server: answers faults reading repositories repository routes staging uploads workspace"];

/// A path that is named somewhere.
#[derive(Debug)]
struct Named {
    /// The module that names it, from the crate's root.
    by: Vec<String>,
    /// What: from the crate's root, if `ours`.
    what: Vec<String>,
    ours: bool,
    /// Whether it is named by a test.
    test: bool,
    /// File and line.
    place: String,
}

/// Reads one file and the modules that it declares.
struct Reader {
    file: PathBuf,
    /// Where the files of modules declared here lie.
    dir: PathBuf,
    module: Vec<String>,
    /// Within a module of tests.
    test: bool,
    found: Vec<Named>,
    files: BTreeSet<PathBuf>,
}

impl Reader {
    fn read(&mut self) {
        let text = std::fs::read_to_string(&self.file).unwrap_or_else(|error| panic!("{:?}: {error}", self.file));
        let parsed = syn::parse_file(&text).unwrap_or_else(|error| panic!("{:?}: {error}", self.file));
        self.files.insert(self.file.clone());
        self.visit_file(&parsed);
    }

    fn name(&mut self, segments: &[String], line: usize) {
        let (ours, mut what) = match segments[0].as_str() {
            "crate" => (true, Vec::new()),
            "self" | "super" => (true, self.module.clone()),
            _ => (false, vec![segments[0].clone()]),
        };
        let supers = segments.iter().take_while(|segment| *segment == "super" || *segment == "self");
        for _ in supers.filter(|segment| *segment == "super") {
            what.pop();
        }
        what.extend(segments[1..].iter().filter(|segment| *segment != "super" && *segment != "self").cloned());
        let place = format!("{}:{line}", self.file.display());
        self.found.push(Named { by: self.module.clone(), what, ours, test: self.test, place });
    }

    fn name_use(&mut self, tree: &syn::UseTree, above: &[String]) {
        let with = |last: &syn::Ident| [above, &[last.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.name_use(&path.tree, &with(&path.ident)),
            syn::UseTree::Name(name) => self.name(&with(&name.ident), name.ident.span().start().line),
            syn::UseTree::Rename(name) => self.name(&with(&name.ident), name.ident.span().start().line),
            syn::UseTree::Glob(glob) => self.name(above, glob.star_token.spans[0].start().line),
            syn::UseTree::Group(group) => group.items.iter().for_each(|item| self.name_use(item, above)),
        }
    }

    /// Names the paths among tokens whose meaning a macro knows.
    fn name_tokens(&mut self, tokens: TokenStream) {
        let mut tokens = tokens.into_iter().peekable();
        let mut after_colons = false;
        while let Some(token) = tokens.next() {
            match token {
                TokenTree::Group(group) => self.name_tokens(group.stream()),
                TokenTree::Ident(first) => {
                    let line = first.span().start().line;
                    let mut segments = vec![first.to_string()];
                    let mut rest = None;
                    while is_colon(tokens.peek()) {
                        tokens.next();
                        if !is_colon(tokens.peek()) {
                            break;
                        }
                        tokens.next();
                        match tokens.peek() {
                            Some(TokenTree::Ident(next)) => segments.push(next.to_string()),
                            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                                rest = Some(group.stream());
                            }
                            _ => break,
                        }
                        tokens.next();
                    }
                    if let Some(rest) = rest {
                        let group = TokenTree::Group(proc_macro2::Group::new(Delimiter::Brace, rest));
                        if let Ok(tree) = syn::parse2::<syn::UseTree>(group.into()) {
                            self.name_use(&tree, &segments);
                        }
                    } else if segments.len() > 1 && !after_colons {
                        self.name(&segments, line);
                    }
                    after_colons = false;
                }
                TokenTree::Literal(literal) => self.name_literal(&literal),
                TokenTree::Punct(punct) => after_colons = punct.as_char() == ':',
            }
        }
    }

    /// A path in a string, as `serde(with = "…")` has it.
    fn name_literal(&mut self, literal: &proc_macro2::Literal) {
        let text = literal.to_string();
        let text = text.trim_matches('"');
        if text.contains("::")
            && let Ok(path) = syn::parse_str::<syn::Path>(text)
        {
            let segments: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
            self.name(&segments, literal.span().start().line);
        }
    }
}

fn is_colon(token: Option<&TokenTree>) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == ':')
}

/// The file that `#[path = "…"]` names.
fn path_of(attributes: &[syn::Attribute]) -> Option<String> {
    attributes.iter().find_map(|attribute| match &attribute.meta {
        syn::Meta::NameValue(pair) if pair.path.is_ident("path") => match &pair.value {
            syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) => Some(text.value()),
            _ => None,
        },
        _ => None,
    })
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let name = item.ident.to_string();
        self.module.push(name.clone());
        let test = self.test;
        self.test |= item.attrs.iter().any(|attribute| {
            attribute.path().is_ident("cfg")
                && attribute.parse_args::<syn::Path>().is_ok_and(|condition| condition.is_ident("test"))
        });
        let dir = self.dir.clone();
        if item.content.is_some() {
            self.dir.push(&name);
            visit::visit_item_mod(self, item);
        } else {
            let (file, below) = match path_of(&item.attrs) {
                Some(path) => (self.file.parent().unwrap().join(&path), self.file.parent().unwrap().to_owned()),
                None => (self.dir.join(format!("{name}.rs")), self.dir.join(&name)),
            };
            let file = std::mem::replace(&mut self.file, file);
            self.dir = below;
            self.read();
            self.file = file;
        }
        self.dir = dir;
        self.test = test;
        self.module.pop();
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.name_use(&item.tree, &[]);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if segments.len() > 1 {
            self.name(&segments, path.segments[0].ident.span().start().line);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        let name = &call.path.segments.last().unwrap().ident;
        if ["print", "println", "eprint", "eprintln", "dbg"].iter().any(|prints| name == prints) {
            self.name(&["print".to_owned()], name.span().start().line);
        }
        self.visit_path(&call.path);
        self.name_tokens(call.tokens.clone());
    }

    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        match &attribute.meta {
            // Documentation links whatever it explains.
            syn::Meta::NameValue(_) => {}
            syn::Meta::List(list) => {
                self.visit_path(&list.path);
                self.name_tokens(list.tokens.clone());
            }
            syn::Meta::Path(path) => self.visit_path(path),
        }
    }
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Everything that is named in a file and in what it declares.
fn read(file: PathBuf, dir: PathBuf) -> Reader {
    let mut reader = Reader { file, dir, module: Vec::new(), test: false, found: Vec::new(), files: BTreeSet::new() };
    reader.read();
    reader
}

fn crate_read() -> &'static Reader {
    static READ: LazyLock<Reader> = LazyLock::new(|| read(src().join("lib.rs"), src()));
    &READ
}

fn rust_files(dir: &Path, into: &mut BTreeSet<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.insert(path);
        }
    }
}

/// The table in src/lib.rs: each module, in its order, and what it may name.
fn table() -> Vec<(String, BTreeSet<String>)> {
    let text = std::fs::read_to_string(src().join("lib.rs")).unwrap();
    let lines = text.lines().skip_while(|line| *line != "//! # Directions").skip_while(|line| *line != "//! ```text");
    let lines = lines.skip(1).take_while(|line| *line != "//! ```");
    let mut table: Vec<(String, BTreeSet<String>)> = Vec::new();
    for line in lines {
        let line = line.trim_start_matches("//!").trim();
        let (module, names) = line.split_once('▸').unwrap_or_else(|| panic!("no ▸ in {line:?}"));
        let names = names.split_whitespace().map(str::to_owned).collect();
        match module.trim() {
            // What does not fit on a line goes on in the next one.
            "" => table.last_mut().unwrap().1.extend::<BTreeSet<String>>(names),
            module => table.push((module.to_owned(), names)),
        }
    }
    assert!(table.len() > 10, "the table of directions is gone from src/lib.rs");
    table
}

/// What breaks the table, in words.
fn against(table: &[(String, BTreeSet<String>)], named: &[Named]) -> Vec<String> {
    let mut wrong = Vec::new();
    let at: BTreeMap<&str, usize> = table.iter().enumerate().map(|(at, (module, _))| (module.as_str(), at)).collect();
    let mut unused: BTreeSet<(&str, &str)> = BTreeSet::new();
    for (module, names) in table {
        for name in names {
            unused.insert((module, name));
            match at.get(name.as_str()) {
                None => wrong.push(format!("{module} may name {name}, which has no line")),
                Some(below) if *below <= at[module.as_str()] => {
                    wrong.push(format!("{module} may name {name}, which has its line above: that makes a circle"));
                }
                Some(_) => {}
            }
        }
    }
    for Named { by, what, ours, place, .. } in named {
        let (Some(by), Some(what), true) = (by.first(), what.first(), *ours) else { continue };
        if by == what {
            continue;
        }
        let Some((module, names)) = at.get(by.as_str()).map(|at| &table[*at]) else {
            wrong.push(format!("{place}: {by} has no line"));
            continue;
        };
        if !names.contains(what) {
            wrong.push(format!("{place}: {module} names {what}"));
        }
        unused.remove(&(module, what));
    }
    wrong.extend(unused.into_iter().map(|(module, name)| format!("{module} may name {name}, and does not")));
    wrong
}

#[test]
fn each_module_names_what_its_line_in_lib_rs_has_and_no_other() {
    let table = table();
    let reader = crate_read();
    let mut files = BTreeSet::new();
    rust_files(&src(), &mut files);
    files.remove(&src().join("main.rs"));
    assert_eq!(reader.files, files, "each file of src belongs to a module");
    let wrong = against(&table, &reader.found);
    assert!(wrong.is_empty(), "not as src/lib.rs has it:\n{}", wrong.join("\n"));
    let main = read(src().join("main.rs"), src());
    let named: BTreeSet<&str> =
        main.found.iter().filter(|named| named.what[0] == "oxenfs").map(|named| named.what[1].as_str()).collect();
    assert_eq!(named, BTreeSet::from(["cli"]), "what main.rs names");
}

#[test]
fn crates_that_belong_to_one_module_are_named_there_alone() {
    let mut wrong = Vec::new();
    for Named { by, what, ours, place, .. } in &crate_read().found {
        let (module, what_is) = (by.join("::"), what.join("::"));
        let within = |place: &str| module == place || module.starts_with(&format!("{place}::"));
        let named = |name: &str| !*ours && (what_is == name || what_is.starts_with(&format!("{name}::")));
        let place_of = |(name, places): &(&str, &[&str])| named(name) && !places.iter().any(|place| within(place));
        if CRATES.iter().any(place_of) || named("print") && !within(PRINTS) {
            wrong.push(format!("{place}: {module} names {what_is}"));
        }
        if NO_WAITING.iter().any(|place| within(place)) && WAITING.iter().any(|waits| named(waits)) {
            wrong.push(format!("{place}: {module} names {what_is}, and is to wait for nothing"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Every set of modules in one folder each of which leads to all others, tests aside.
fn circles(named: &[Named]) -> BTreeSet<String> {
    let mut edges: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    let modules: BTreeSet<&[String]> = named.iter().map(|named| named.by.as_slice()).collect();
    for Named { by, what, .. } in named.iter().filter(|named| named.ours && !named.test) {
        let common = by.iter().zip(what).take_while(|(one, other)| one == other).count();
        if let (Some(from), Some(to)) = (by.get(common), what.get(common))
            && modules.contains(&what[..=common])
        {
            edges.entry((by[..common].join("::"), from.clone())).or_default().insert(to.clone());
        }
    }
    let reach = |folder: &str, from: &str| {
        let (mut reached, mut todo) = (BTreeSet::new(), vec![from.to_owned()]);
        while let Some(at) = todo.pop() {
            for next in edges.get(&(folder.to_owned(), at)).into_iter().flatten() {
                if reached.insert(next.clone()) {
                    todo.push(next.clone());
                }
            }
        }
        reached
    };
    let mut found = BTreeSet::new();
    for (folder, module) in edges.keys() {
        let reached = reach(folder, module);
        if reached.contains(module) {
            let circle: Vec<String> =
                reached.iter().filter(|other| reach(folder, other).contains(module)).cloned().collect();
            found.insert(format!("{folder}: {}", circle.join(" ")));
        }
    }
    found
}

#[test]
fn no_modules_of_a_folder_name_each_other_in_a_circle() {
    let found = circles(&crate_read().found);
    let accepted: BTreeSet<String> = CIRCLES.iter().map(|circle| (*circle).to_owned()).collect();
    assert_eq!(found, accepted, "circles, and those that are accepted");
}

#[test]
fn a_direction_is_seen_however_it_is_written() {
    let ways = [
        ("use", "use crate::low::Value;"),
        ("a group", "use crate::{own::A, low::{self, B as C}};"),
        ("a glob", "use crate::low::*;"),
        ("a path", "fn f() -> crate::low::Value { todo!() }"),
        ("an expression", "fn f() { let _ = crate::low::value(); }"),
        ("super", "mod inner { fn f(_: super::super::low::Value) {} }"),
        ("a macro", "fn f() { assert_eq!(1, [crate::low::VALUE][0]); }"),
        ("the body of a macro", "macro_rules! m { () => { $crate::low::value() } }"),
        ("a use in a macro", "wrap! { use crate::{low::Value}; }"),
        ("serde", "struct S { #[serde(with = \"crate::low::text\")] a: u8 }"),
        ("a visibility's neighbour", "pub(crate) static A: &crate::low::Value = &0;"),
    ];
    for (what, text) in ways {
        let parsed = syn::parse_file(text).unwrap();
        let (file, dir) = (PathBuf::from(what), PathBuf::new());
        let mut reader =
            Reader { file, dir, module: vec!["high".into()], test: false, found: Vec::new(), files: BTreeSet::new() };
        reader.visit_file(&parsed);
        let line = |module: &str, names: &[&str]| {
            (module.to_owned(), names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>())
        };
        let with_own = if what == "a group" { &["low", "own"][..] } else { &["low"] };
        let allowed = [line("high", with_own), line("own", &[]), line("low", &[])];
        assert_eq!(against(&allowed, &reader.found), [""; 0], "{what}");
        let forbidden = [line("high", &with_own[1..]), line("own", &[]), line("low", &[])];
        let wrong = against(&forbidden, &reader.found);
        assert!(wrong.iter().any(|wrong| wrong.ends_with("high names low")), "{what}: {wrong:?}");
        let turned = [line("low", &[]), line("own", &[]), line("high", with_own)];
        assert!(against(&turned, &reader.found).iter().any(|wrong| wrong.contains("circle")), "{what}");
    }
}
