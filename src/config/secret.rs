//! A value that is never printed.

use std::fmt;

/// A token. `Debug` shows that there is one, not which.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a token. From here on the log hides it.
    pub fn new(token: impl Into<String>) -> Self {
        let token = token.into();
        crate::log::conceal(&token);
        Self(token)
    }

    /// The token itself: for a request's header and nothing else.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}
