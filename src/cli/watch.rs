//! `oxenfs status --watch`: on a terminal drawn over what was there, with the rate of the last minute; elsewhere said
//! anew when something has changed.

use std::collections::{HashMap, VecDeque};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::failure::Failure;
use super::output::{bytes, verbatim};
use crate::control::Status;
use crate::log::printable_lines;

/// Looks that a curve shows: a minute of them.
const SHOWN: usize = 60;
/// From nothing to the most that is shown.
const HEIGHTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// What was seen up to now.
pub struct Watch {
    terminal: bool,
    last: String,
    rates: HashMap<PathBuf, Rates>,
}

/// Bytes a second of one mount, the latest last.
#[derive(Debug, Default)]
struct Rates {
    before: Option<(Instant, u64)>,
    seen: VecDeque<u64>,
}

impl Watch {
    /// Nothing was seen yet.
    pub fn new() -> Self {
        Self { terminal: std::io::stdout().is_terminal(), last: String::new(), rates: HashMap::new() }
    }

    /// The rate at which a mount sends, and how it was in the last minute; `None` where nobody sees it move.
    pub fn rate(&mut self, state: &Path, status: &Status) -> Option<String> {
        if !self.terminal {
            return None;
        }
        let rates = self.rates.entry(state.to_owned()).or_default();
        rates.note(Instant::now(), status.sent_bytes);
        let now = *rates.seen.back()?;
        Some(format!("{}/s  {}", bytes(now), curve(rates.seen.iter().copied())))
    }

    /// Shows it.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn show(&mut self, text: &str) -> Result<(), Failure> {
        let text = printable_lines(text);
        if self.terminal {
            return verbatim(&frame(&text, size()));
        }
        if text != self.last {
            self.last = text.clone().into_owned();
            verbatim(&text)?;
        }
        Ok(())
    }
}

impl Rates {
    fn note(&mut self, now: Instant, sent_bytes: u64) {
        if let Some((then, before)) = self.before {
            let secs = now.duration_since(then).as_secs_f64().max(0.001);
            // A daemon that was started anew counts from nothing.
            self.seen.push_back((sent_bytes.saturating_sub(before) as f64 / secs) as u64);
        }
        self.before = Some((now, sent_bytes));
        while self.seen.len() > SHOWN {
            self.seen.pop_front();
        }
    }
}

/// One sign for each number, the greatest the highest.
fn curve(numbers: impl Iterator<Item = u64> + Clone) -> String {
    let most = numbers.clone().max().unwrap_or(0).max(1);
    numbers.map(|number| HEIGHTS[(number as f64 / most as f64 * 7.0).round() as usize % HEIGHTS.len()]).collect()
}

/// The commands for a terminal of so many columns and lines: each line over what was there, and nothing below. What does
/// not fit is left out, so that nothing scrolls.
fn frame(text: &str, (columns, lines): (usize, usize)) -> String {
    let fitting = text.lines().take(lines.saturating_sub(1).max(1));
    let shown: Vec<String> =
        fitting.map(|line| format!("{}\x1b[K", line.chars().take(columns.max(1)).collect::<String>())).collect();
    format!("\x1b[H{}\x1b[K\x1b[J", shown.join("\n"))
}

/// Columns and lines of the terminal.
fn size() -> (usize, usize) {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: fills one `winsize`, which lives here.
    let told = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) };
    match (told, size.ws_col, size.ws_row) {
        (0, columns @ 1.., lines @ 1..) => (columns.into(), lines.into()),
        _ => (80, 24),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_curve_is_as_high_as_its_greatest_number() {
        assert_eq!(curve([0, 1, 2, 4, 8].into_iter()), "▁▂▃▅█");
        assert_eq!(curve([0, 0].into_iter()), "▁▁");
        assert_eq!(curve([].into_iter()), "");
    }

    #[test]
    fn a_frame_fits_the_terminal_and_leaves_nothing_of_the_one_before() {
        assert_eq!(frame("abc\nd\ne\nf", (2, 4)), "\x1b[Hab\x1b[K\nd\x1b[K\ne\x1b[K\x1b[K\x1b[J");
    }

    #[test]
    fn rates_are_of_the_last_minute() {
        let (mut rates, begin) = (Rates::default(), Instant::now());
        for second in 0..100_u64 {
            rates.note(begin + Duration::from_secs(second), second * 1000);
        }
        assert_eq!((rates.seen.len(), rates.seen.iter().all(|rate| *rate == 1000)), (SHOWN, true));
        // A new daemon.
        rates.note(begin + Duration::from_secs(100), 5);
        assert_eq!(rates.seen.back(), Some(&0));
    }
}
