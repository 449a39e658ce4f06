//! What stays here because a pattern says so: the rules of `.oxenignore` and of `--ignore`, and what they say of a path.
//! Decisions alone, no I/O.
//!
//! Patterns are gitignore's: the last one that matches a path decides, `!` takes back, and nothing takes back what is below
//! a directory that is ignored. `--ignore` goes before the file.

use std::collections::HashMap;

use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};

use super::tree::Token;
use crate::hash::ContentHash;
use crate::namespace::Ino;
use crate::path::RepoPath;
use crate::report::{BadPattern, IgnoredBy};
use crate::workspace::CommitId;

/// The file of the repository's root that has the patterns. It travels itself, whatever they say.
pub(super) const FILE: &str = ".oxenignore";
/// What is called the source of a pattern of the command, or of the configuration.
pub(super) const OPTION: &str = "--ignore";
/// The longest file of patterns: some thousand lines are 100 KiB.
pub(super) const LONGEST_BYTES: u64 = 1 << 20;

/// Patterns of one source.
#[derive(Debug)]
struct Patterns {
    source: &'static str,
    matcher: Gitignore,
    /// On which line each stands, counted from 1; of several the last, which decides. Empty where there are no lines.
    lines: HashMap<String, u64>,
    bad: Vec<BadPattern>,
}

impl Patterns {
    fn of<'a>(source: &'static str, lines: impl Iterator<Item = &'a str>, numbered: bool) -> Self {
        let mut builder = GitignoreBuilder::new("");
        let (mut known, mut bad) = (HashMap::new(), Vec::new());
        for (line, number) in lines.zip(1u64..) {
            let number = numbered.then_some(number);
            match builder.add_line(None, line) {
                Ok(_) => known.extend(number.map(|number| (as_kept(line).to_owned(), number))),
                Err(error) => bad.push(BadPattern {
                    source: source.to_owned(),
                    line: number,
                    pattern: line.trim_end().to_owned(),
                    error: in_words(&error),
                }),
            }
        }
        let matcher = builder.build().unwrap_or_else(|error| {
            // Each by itself is good, and all together are too much.
            bad.push(BadPattern {
                source: source.to_owned(),
                line: None,
                pattern: "*".to_owned(),
                error: format!("none of the patterns holds: {}", in_words(&error)),
            });
            Gitignore::empty()
        });
        Self { source, matcher, lines: known, bad }
    }

    /// What they say of one path, its directories aside. `None`: nothing.
    fn judge(&self, path: &str, is_dir: bool) -> Option<Result<IgnoredBy, ()>> {
        match self.matcher.matched(path, is_dir) {
            Match::None => None,
            Match::Whitelist(_) => Some(Err(())),
            Match::Ignore(glob) => {
                let pattern = glob.original().to_owned();
                let line = self.lines.get(&pattern).copied();
                Some(Ok(IgnoredBy { source: self.source.to_owned(), line, pattern }))
            }
        }
    }
}

impl Default for Patterns {
    fn default() -> Self {
        Self { source: FILE, matcher: Gitignore::empty(), lines: HashMap::new(), bad: Vec::new() }
    }
}

/// A line as the matcher keeps it, to be found again.
fn as_kept(line: &str) -> &str {
    if line.ends_with("\\ ") { line } else { line.trim_end() }
}

fn in_words(error: &ignore::Error) -> String {
    match error {
        ignore::Error::Glob { err, .. } => err.clone(),
        ignore::Error::WithLineNumber { err, .. } | ignore::Error::WithPath { err, .. } => in_words(err),
        error => error.to_string(),
    }
}

/// What is ignored, and how far that is known.
#[derive(Default)]
pub(super) struct Ignored {
    option: Patterns,
    file: Patterns,
    /// What the file had when it was last read; `None`: there was none.
    read: Option<Token>,
    /// The hash of that: it may move to the server and be the same.
    hash: Option<ContentHash>,
    /// Whether it was read since the mount. Until then nobody judges, and what was ignored before is.
    known: bool,
    /// What could not be read, and is not tried again before it is another.
    given_up: Option<Token>,
    /// The commit that was below the tree then.
    base: Option<CommitId>,
    /// The server is asked for the file.
    asking: bool,
    /// What was ignored stays so: not all of the patterns are known.
    keeps: bool,
    /// Files that are ignored and whose bytes are on stable storage.
    flushed: HashMap<Ino, Token>,
}

impl Ignored {
    /// These patterns hold beside the file's.
    pub fn set_option(&mut self, globs: &[String]) {
        self.option = Patterns::of(OPTION, globs.iter().map(String::as_str), false);
    }

    /// Why a file stays here, if it does for the patterns' sake.
    pub fn verdict(&self, path: &RepoPath) -> Option<IgnoredBy> {
        self.verdict_of(path, false)
    }

    /// The same of a path that may be a directory.
    pub fn verdict_of(&self, path: &RepoPath, is_dir: bool) -> Option<IgnoredBy> {
        let text = path.as_str();
        if text == FILE || self.has_no_patterns() {
            return None;
        }
        let above = text.match_indices('/').map(|(at, _)| (&text[..at], true));
        // The first directory from the top decides for all below it.
        above.chain([(text, is_dir)]).find_map(|(path, is_dir)| {
            let judged = self.option.judge(path, is_dir).or_else(|| self.file.judge(path, is_dir));
            judged.and_then(Result::ok)
        })
    }

    /// Whether nothing is ignored, whatever it is called.
    pub fn has_no_patterns(&self) -> bool {
        self.option.matcher.is_empty() && self.file.matcher.is_empty()
    }

    /// Whether there may be anything to judge by.
    pub fn is_known(&self) -> bool {
        self.known
    }

    /// Whether the file's patterns hold that are there now, as far as that can be helped.
    pub fn holds(&self, now: Option<Token>) -> bool {
        self.read == now || (now.is_some() && self.given_up == now)
    }

    /// Whether that was on this commit.
    pub fn is_of(&self, base: &CommitId) -> bool {
        self.base.as_ref() == Some(base)
    }

    /// On which commit the file is read now.
    pub fn set_base(&mut self, base: CommitId) {
        self.base = Some(base);
    }

    /// What was ignored stays so, whatever the patterns are.
    pub fn keep(&mut self) {
        self.keeps = true;
    }

    /// Whether it does.
    pub fn keeps(&self) -> bool {
        self.keeps
    }

    /// The server is about to be asked. `false`: it is being asked already.
    pub fn begin_asking(&mut self) -> bool {
        !std::mem::replace(&mut self.asking, true)
    }

    /// The server was asked.
    pub fn end_asking(&mut self) {
        self.asking = false;
    }

    /// Whether content is what was read last.
    pub fn is_same(&self, hash: ContentHash) -> bool {
        self.hash == Some(hash)
    }

    /// The file has what it had, in another place.
    pub fn moved(&mut self, now: Option<Token>) {
        (self.read, self.given_up) = (now, None);
    }

    /// The file was read: `text` has its patterns, `None` that it is not there.
    pub fn set_file(&mut self, now: Option<Token>, hash: Option<ContentHash>, text: Option<&str>) {
        let text = text.unwrap_or_default();
        let lines = text.strip_prefix('\u{feff}').unwrap_or(text).lines();
        self.file = Patterns::of(FILE, lines, true);
        (self.read, self.hash, self.known, self.given_up) = (now, hash, true, None);
    }

    /// The file cannot be read. What held before holds on.
    pub fn give_up(&mut self, now: Option<Token>, error: String) {
        let bad = BadPattern { source: FILE.to_owned(), line: None, pattern: String::new(), error };
        self.file.bad.retain(|bad| !bad.pattern.is_empty());
        self.file.bad.push(bad);
        (self.known, self.given_up) = (true, now);
    }

    /// These are on stable storage; of others only what they have `still` matters.
    pub fn are_flushed(&mut self, files: &[Token], still: impl Fn(Token) -> bool) {
        self.flushed.extend(files.iter().map(|token| (token.ino(), *token)));
        self.flushed.retain(|_, token| still(*token));
    }

    /// Whether this is.
    pub fn is_flushed(&self, file: Token) -> bool {
        self.flushed.get(&file.ino()) == Some(&file)
    }

    /// The patterns that do not hold.
    pub fn bad(&self) -> impl Iterator<Item = &BadPattern> {
        self.option.bad.iter().chain(&self.file.bad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(globs: &[&str], file: &str) -> Ignored {
        let mut ignored = Ignored::default();
        ignored.set_option(&globs.iter().map(|glob| (*glob).to_owned()).collect::<Vec<_>>());
        ignored.set_file(None, None, Some(file));
        ignored
    }

    fn why(ignored: &Ignored, path: &str) -> Option<String> {
        ignored.verdict(&RepoPath::parse(path).unwrap()).map(|why| why.to_string())
    }

    fn is_ignored(ignored: &Ignored, path: &str) -> bool {
        why(ignored, path).is_some()
    }

    #[test]
    fn the_last_pattern_that_matches_decides_and_is_told_with_its_line() {
        let ignored = rules(&[], "# temporary\n*.tmp\n\n!keep.tmp\n/top.txt\r\ndocs/*.pdf\n*.tmp  \n!kept.tmp\n");
        assert_eq!(why(&ignored, "a/b.tmp").as_deref(), Some(".oxenignore, line 7: *.tmp"));
        assert_eq!(why(&ignored, "keep.tmp").as_deref(), Some(".oxenignore, line 7: *.tmp"), "the last one");
        assert_eq!(why(&ignored, "a/kept.tmp"), None);
        assert_eq!(why(&ignored, "top.txt").as_deref(), Some(".oxenignore, line 5: /top.txt"));
        assert!(!is_ignored(&ignored, "a/top.txt") && !is_ignored(&ignored, "a.txt"));
        assert!(is_ignored(&ignored, "docs/a.pdf") && !is_ignored(&ignored, "docs/a/b.pdf"));
    }

    #[test]
    fn all_below_a_directory_that_matches_is_ignored_and_nothing_takes_that_back() {
        let ignored = rules(&[], "scratch/\n!scratch/kept.txt\n**/cache/**\nlogs/*\n!logs/kept.txt\n");
        assert_eq!(why(&ignored, "scratch/kept.txt").as_deref(), Some(".oxenignore, line 1: scratch/"));
        assert!(is_ignored(&ignored, "a/scratch/b/c"));
        assert!(!is_ignored(&ignored, "scratch"), "a file of that name is no directory");
        assert!(ignored.verdict_of(&RepoPath::parse("scratch").unwrap(), true).is_some());
        assert!(is_ignored(&ignored, "a/cache/b"));
        assert!(is_ignored(&ignored, "logs/a") && !is_ignored(&ignored, "logs/kept.txt"), "of what is in it, one");
    }

    #[test]
    fn options_go_before_the_file_and_the_file_itself_always_travels() {
        let ignored = rules(&["*.bin", "!a.log"], "*.log\n!b.bin\n*\n");
        assert_eq!(why(&ignored, "b.bin").as_deref(), Some("--ignore: *.bin"));
        assert_eq!(why(&ignored, "a.log"), None);
        assert!(is_ignored(&ignored, "other"));
        assert!(!is_ignored(&ignored, FILE) && is_ignored(&ignored, "below/.oxenignore"));
    }

    #[test]
    fn a_pattern_that_is_none_is_told_and_the_others_hold() {
        let ignored = rules(&[], "\u{feff}*.tmp\n[z-a]\n{a,b\n*.log\n");
        assert!(is_ignored(&ignored, "a.tmp") && is_ignored(&ignored, "a.log") && !is_ignored(&ignored, "a.txt"));
        let bad: Vec<_> = ignored.bad().map(|bad| (bad.line, bad.pattern.as_str())).collect();
        assert_eq!(bad, [(Some(2), "[z-a]"), (Some(3), "{a,b")]);
        assert!(ignored.bad().all(|bad| !bad.error.is_empty()));
    }
}
