//! Questions before something is done that is not undone by itself.

use std::io::{self, BufRead, IsTerminal};

use super::failure::{FAILED, Failure};
use super::output::note;

/// Whether it may be done: `yes` was said on the command line, or is now.
///
/// # Errors
/// Exit code 2 where nobody can be asked.
pub fn may(yes: bool, question: &str) -> Result<bool, Failure> {
    if yes {
        return Ok(true);
    }
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(Failure::usage("nothing is done without being told so").hint("repeat the command with --yes"));
    }
    note(format_args!("{question} [y/N]"));
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).map_err(Failure::new)?;
    Ok(matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// The exit code of who said no.
pub fn declined() -> u8 {
    note("nothing was done");
    FAILED
}
