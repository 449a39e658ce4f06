//! The one function that makes text of others safe to show.

use std::borrow::Cow;
use std::fmt::Write;

/// `text` without characters that a terminal obeys, that end a line, or that turn the order of what follows: names and
/// messages come from servers and other users. Such a character becomes what Rust would write for it, `\n` or `\u{1b}`.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.chars().any(commands) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for char in text.chars() {
        if commands(char) {
            // Into a string: cannot fail.
            let _ = write!(shown, "{}", char.escape_default());
        } else {
            shown.push(char);
        }
    }
    Cow::Owned(shown)
}

/// Control characters (C0, DEL, C1), line and paragraph separators, and those that change the direction of writing.
fn commands(char: char) -> bool {
    char.is_control()
        || matches!(char, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_is_left() {
        assert_eq!(printable("a\x1b[2Jb"), "a\\u{1b}[2Jb");
        assert_eq!(printable("one\ntwo\r\tthree"), "one\\ntwo\\r\\tthree");
        assert_eq!(printable("\u{9b}31m\u{7f}\0"), "\\u{9b}31m\\u{7f}\\u{0}");
        assert_eq!(printable("gpj.\u{202e}exe\u{2066}\u{200f}\u{61c}"), "gpj.\\u{202e}exe\\u{2066}\\u{200f}\\u{61c}");
        assert_eq!(printable("a\u{2028}b\u{85}c"), "a\\u{2028}b\\u{85}c");
        for number in (0..=0x10_ffff).filter_map(char::from_u32).filter(|char| char.is_control()) {
            let shown = printable(&number.to_string()).into_owned();
            assert!(shown.chars().all(|char| char.is_ascii_graphic()), "{number:?}: {shown:?}");
        }
    }

    #[test]
    fn words_of_any_language_stay_as_they_are() {
        for text in ["", "Größe", "ファイル.csv", "שלום", "👩‍🔬", "e\u{301}"] {
            assert!(matches!(printable(text), Cow::Borrowed(same) if same == text), "{text}");
        }
    }
}
