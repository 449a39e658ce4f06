//! How far it is: a bar on a terminal, lines elsewhere, at most one a second, and a last one.

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output::{bytes, count, note, seconds, thousands};
use crate::report::Progress;

/// Rates are of this last stretch: long enough to be calm, short enough to follow the network.
const WINDOW: Duration = Duration::from_secs(10);

/// Between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// Shows progress.
pub struct Meter {
    bar: Option<ProgressBar>,
    began: Instant,
    last_line: Instant,
    last: Progress,
    samples: VecDeque<(Instant, Progress)>,
    stalled: bool,
    /// What becomes of the files.
    deed: &'static str,
}

impl Meter {
    /// For standard error; `deed` is what is done to the files, in the past tense.
    pub fn new(deed: &'static str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:24} {percent:>3}% {msg}");
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        let now = Instant::now();
        let (last, samples) = (Progress::default(), VecDeque::new());
        Self { bar, began: now, last_line: now, last, samples, stalled: false, deed }
    }

    /// The last that was heard.
    pub fn last(&self) -> Progress {
        self.last
    }

    /// Takes in an event.
    pub fn update(&mut self, progress: Progress) {
        let now = Instant::now();
        self.last = progress;
        self.samples.push_back((now, progress));
        while self.samples.len() > 2 && now - self.samples[0].0 > WINDOW {
            self.samples.pop_front();
        }
        if let Some(bar) = &self.bar {
            // Bytes say more than files, where there are any.
            let (total, done) = match progress.bytes_total {
                0 => (progress.files_total, progress.files_done),
                total => (total, progress.bytes_done),
            };
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(line(&progress, self.pace(now)));
        } else if !self.stalled && now - self.last_line >= LINE_EVERY && progress.files_done < progress.files_total {
            self.last_line = now;
            note(line(&progress, self.pace(now)));
        }
    }

    /// Says why nothing moves, and when it does again.
    pub fn stalled(&mut self, why: Option<String>) {
        let waiting = why.is_some();
        let text = match why {
            Some(why) => format!("waiting: {}; nothing is lost, and Ctrl-C leaves it safely queued", why),
            None if self.stalled => "going on".to_owned(),
            None => return,
        };
        self.stalled = waiting;
        match &self.bar {
            Some(bar) => bar.suspend(|| note(text)),
            None => note(text),
        }
    }

    /// Lets `say` write without the bar in the way.
    pub fn aside(&self, say: impl FnOnce()) {
        match &self.bar {
            Some(bar) => bar.suspend(say),
            None => say(),
        }
    }

    /// Takes the bar away and says in one line what was done.
    pub fn finish(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if self.last.files_done > 0 {
            note(summary(&self.last, self.deed, self.began.elapsed()));
        }
    }

    /// Takes the bar away without a word.
    pub fn clear(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// Files and bytes a second over the window.
    fn pace(&self, now: Instant) -> (f64, f64) {
        let Some((then, first)) = self.samples.front() else {
            return (0.0, 0.0);
        };
        let elapsed = (now - *then).as_secs_f64().max(0.001);
        let files = self.last.files_done.saturating_sub(first.files_done);
        let bytes = self.last.bytes_done.saturating_sub(first.bytes_done);
        (files as f64 / elapsed, bytes as f64 / elapsed)
    }
}

fn line(progress: &Progress, (files_rate, bytes_rate): (f64, f64)) -> String {
    let mut text = format!(
        "{} of {}, {} of {}",
        thousands(progress.files_done),
        count(progress.files_total, "file"),
        bytes(progress.bytes_done),
        bytes(progress.bytes_total),
    );
    if bytes_rate >= 1.0 {
        text += &format!(", {}/s", bytes(bytes_rate as u64));
    }
    let files_left = progress.files_total.saturating_sub(progress.files_done) as f64;
    let bytes_left = progress.bytes_total.saturating_sub(progress.bytes_done) as f64;
    // Many small files are slow by their number, few large ones by their size: the later of both.
    let by_files = (files_rate > 0.0).then(|| files_left / files_rate);
    let by_bytes = (bytes_rate > 0.0).then(|| bytes_left / bytes_rate);
    if let Some(left) = [by_files, by_bytes].into_iter().flatten().reduce(f64::max) {
        text += &format!(", {} left", seconds(left.ceil() as u64));
    }
    if progress.files_failed > 0 {
        text += &format!(", {} failed", thousands(progress.files_failed));
    }
    text
}

fn summary(progress: &Progress, deed: &str, elapsed: Duration) -> String {
    let rate = progress.bytes_done as f64 / elapsed.as_secs_f64().max(0.001);
    format!(
        "{}, {} {deed} in {} ({}/s)",
        count(progress.files_done, "file"),
        bytes(progress.bytes_done),
        match elapsed.as_secs() {
            0..10 => format!("{:.1} s", elapsed.as_secs_f64()),
            whole => seconds(whole),
        },
        bytes(rate as u64),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_files_bytes_rate_and_time_left() {
        let progress = Progress {
            files_done: 3200,
            files_total: 12000,
            bytes_done: 310 << 20,
            bytes_total: 1200 << 20,
            files_failed: 2,
        };
        assert_eq!(
            line(&progress, (400.0, 85e6)),
            "3,200 of 12,000 files, 310.0 MiB of 1.2 GiB, 81.1 MiB/s, 22 s left, 2 failed"
        );
        assert_eq!(line(&progress, (0.0, 0.0)), "3,200 of 12,000 files, 310.0 MiB of 1.2 GiB, 2 failed");
        assert_eq!(
            summary(&progress, "staged", Duration::from_millis(2500)),
            "3,200 files, 310.0 MiB staged in 2.5 s (124.0 MiB/s)"
        );
    }
}
