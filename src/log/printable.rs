//! What makes text of others safe to show: names and messages come from servers, disks and other users.

use std::borrow::Cow;
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `text` as one line without characters that a terminal obeys, that end a line, or that turn the order of what
/// follows. Such a character becomes what Rust would write for it, `\n` or `\u{1b}`.
pub fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, commands, |char, shown| write!(shown, "{}", char.escape_default()))
}

/// [`printable`] for text that has lines of its own: their ends stay.
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    let unwanted = |char| char != '\n' && commands(char);
    escaped(text, unwanted, |char, shown| write!(shown, "{}", char.escape_default()))
}

/// [`printable`] for JSON: the same characters, written as JSON writes them, so that it means what it meant. Outside of
/// strings JSON has none of them but the ends of its lines.
pub fn printable_json(json: &str) -> Cow<'_, str> {
    let unwanted = |char| char != '\n' && commands(char);
    let unit = |char, shown: &mut String| {
        char::encode_utf16(char, &mut [0; 2]).iter().try_for_each(|unit| write!(shown, "\\u{unit:04x}"))
    };
    escaped(json, unwanted, unit)
}

/// A path or another word as a shell takes it, safe to show: as it is, else in quotes, else, where it holds what is not
/// printable, as bash, zsh and ksh read such (`$'\x1b'`).
pub fn quoted(word: impl AsRef<Path>) -> String {
    let bytes = word.as_ref().as_os_str().as_bytes();
    let plain = |char: char| char.is_ascii_alphanumeric() || "/._-:+@%=,".contains(char);
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.is_empty() && text.chars().all(plain) => text.to_owned(),
        Ok(text) if !text.chars().any(commands) => format!("'{}'", text.replace('\'', "'\\''")),
        _ => by_numbers(bytes),
    }
}

fn by_numbers(bytes: &[u8]) -> String {
    let mut shown = "$'".to_owned();
    let raw = |shown: &mut String, bytes: &[u8]| {
        for byte in bytes {
            let _ = write!(shown, "\\x{byte:02x}");
        }
    };
    for chunk in bytes.utf8_chunks() {
        for char in chunk.valid().chars() {
            match char {
                '\n' => shown += "\\n",
                '\'' | '\\' => shown.extend(['\\', char]),
                _ if commands(char) => raw(&mut shown, char.encode_utf8(&mut [0; 4]).as_bytes()),
                _ => shown.push(char),
            }
        }
        raw(&mut shown, chunk.invalid());
    }
    shown.push('\'');
    shown
}

fn escaped(
    text: &str,
    unwanted: impl Fn(char) -> bool,
    write: impl Fn(char, &mut String) -> std::fmt::Result,
) -> Cow<'_, str> {
    if !text.chars().any(&unwanted) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for char in text.chars() {
        if unwanted(char) {
            // Into a string: cannot fail.
            let _ = write(char, &mut shown);
        } else {
            shown.push(char);
        }
    }
    Cow::Owned(shown)
}

/// Control characters (C0, DEL, C1), line and paragraph separators, those that change the direction of writing, and
/// those that change the shapes of what follows.
fn commands(char: char) -> bool {
    char.is_control()
        || matches!(char, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{206f}')
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
        assert_eq!(printable_lines("one\n\u{9b}two\r\n"), "one\n\\u{9b}two\\r\n");
        for char in (0..=0x10_ffff).filter_map(char::from_u32).filter(|char| commands(*char)) {
            let text = format!("a{char}b");
            for shown in [printable(&text), quoted(&text).into(), printable_json(&format!("\"{text}\""))] {
                assert!(!shown.chars().any(|char| commands(char) && char != '\n'), "{char:?}: {shown:?}");
            }
        }
    }

    #[test]
    fn words_of_any_language_stay_as_they_are() {
        for text in ["", "Größe", "ファイル.csv", "שלום", "👩‍🔬", "e\u{301}"] {
            assert!(matches!(printable(text), Cow::Borrowed(same) if same == text), "{text}");
            assert!(matches!(printable_json(text), Cow::Borrowed(same) if same == text), "{text}");
        }
    }

    #[test]
    fn json_means_the_same_when_it_is_safe_to_show() {
        let text = "\u{7f}\u{9b}31m \u{202e}\u{2028}\u{61c} ü \\u{9b} \\\u{9b} \n\t\x1b";
        let json = serde_json::to_string_pretty(&[text, "plain"]).unwrap();
        let shown = printable_json(&json);
        assert!(shown.contains(r"\u007f\u009b31m \u202e"), "{shown}");
        assert_eq!(serde_json::from_str::<Vec<String>>(&shown).unwrap(), [text, "plain"]);
    }

    #[test]
    fn paths_can_be_pasted() {
        assert_eq!(quoted("/mnt/cats"), "/mnt/cats");
        assert_eq!(quoted("it's"), "'it'\\''s'");
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted("$(reboot)"), "'$(reboot)'");
        assert_eq!(quoted("a'\\\x1b[2J\n\u{202e}ü"), "$'a\\'\\\\\\x1b[2J\\n\\xe2\\x80\\xaeü'");
        assert_eq!(quoted(std::ffi::OsStr::from_bytes(b"/m/\xff\xc3")), "$'/m/\\xff\\xc3'");
    }

    #[test]
    fn bash_reads_a_quoted_path_as_it_was() {
        let mut every: Vec<u8> = (1..=255).collect();
        every.extend("\u{202e}\u{9b}'\\x41\u{85}7".as_bytes());
        let script = format!("printf %s {}", quoted(std::ffi::OsStr::from_bytes(&every)));
        let output = std::process::Command::new("bash").args(["-c", &script]).output().unwrap();
        assert_eq!(output.stdout, every);
    }
}
