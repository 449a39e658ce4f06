//! Tokens that this process has read, so that none reaches a line or a message, by whatever way it came.

use std::borrow::Cow;
use std::sync::{PoisonError, RwLock};

/// Tokens that are remembered: one that was renewed often is valid no more.
const REMEMBERED: usize = 16;
/// The shortest that is taken for a token: a word of common texts is none.
const SHORTEST: usize = 6;
/// What stands where one was.
const HIDDEN: &str = "(token)";

/// Each as it is, and as texts quote it.
static KNOWN: RwLock<Vec<[String; 3]>> = RwLock::new(Vec::new());

/// Lets `token` appear in no text that [`hide`] has seen, from now on.
pub fn conceal(token: &str) {
    if token.len() < SHORTEST {
        return;
    }
    let mut known = KNOWN.write().unwrap_or_else(PoisonError::into_inner);
    if let Some(at) = known.iter().position(|[plain, ..]| plain == token) {
        known[at..].rotate_left(1);
        return;
    }
    let debug = format!("{token:?}");
    let quoted = debug[1..debug.len() - 1].to_owned();
    let encoded = percent_encoding::utf8_percent_encode(token, percent_encoding::NON_ALPHANUMERIC).to_string();
    if known.len() == REMEMBERED {
        known.remove(0);
    }
    known.push([token.to_owned(), quoted, encoded]);
}

/// `text` with `(token)` in place of every token known.
pub fn hide(text: &str) -> Cow<'_, str> {
    let known = KNOWN.read().unwrap_or_else(PoisonError::into_inner);
    let mut shown = Cow::Borrowed(text);
    // The longest first: where one token begins another, the rest of that would stay.
    let mut forms: Vec<&String> = known.iter().flatten().filter(|form| text.contains(form.as_str())).collect();
    forms.sort_by_key(|form| std::cmp::Reverse(form.len()));
    for form in forms {
        if shown.contains(form.as_str()) {
            shown = Cow::Owned(shown.replace(form.as_str(), HIDDEN));
        }
    }
    shown
}

/// [`hide`] for a text that was cut at its end: the beginning of a token there is hidden as well, however short.
pub fn hide_cut(text: &str) -> Cow<'_, str> {
    let known = KNOWN.read().unwrap_or_else(PoisonError::into_inner);
    let begun = |form: &String| {
        (1..form.len()).rev().filter(|end| form.is_char_boundary(*end)).find(|end| text.ends_with(&form[..*end]))
    };
    let longest = known.iter().flatten().filter_map(begun).max();
    drop(known);
    match longest {
        None => hide(text),
        Some(begun) => Cow::Owned(hide(&text[..text.len() - begun]).into_owned() + HIDDEN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_hidden_however_a_text_quotes_it() {
        conceal("to\"ken/of 5 parts");
        assert_eq!(hide("no \"to\"ken/of 5 parts\" here"), "no \"(token)\" here");
        assert_eq!(hide(&format!("{:?}", "x to\"ken/of 5 parts")), "\"x (token)\"");
        assert_eq!(hide("http://h/?t=to%22ken%2Fof%205%20parts&x"), "http://h/?t=(token)&x");
        assert!(matches!(hide("nothing of it"), Cow::Borrowed(_)));
        conceal("to\"ken");
        assert_eq!(hide("no to\"ken/of 5 parts, no to\"ken/ either"), "no (token), no (token)/ either");
        assert_eq!(hide_cut("it is to\"ke"), "it is (token)");
        assert_eq!(hide_cut("it is to\"ken/of"), "it is (token)");
        assert_eq!(hide_cut("to\"ken/of 5 parts, to%22k"), "(token), (token)");
        assert_eq!(hide_cut("nothing of i"), "nothing of i");
        for word in ["", "in", "token"] {
            conceal(word);
            assert_eq!(hide("no token in it"), "no token in it");
        }
    }
}
