//! What a test has been at, for who tells that it does not end, or was slow.

use std::cmp::Reverse;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use oxenfs::fs::{Fs, Need};

use crate::world::STUCK;

/// What takes longer waits for something that does not come, most likely.
pub const SLOW: Duration = Duration::from_secs(10);

/// The steps of a test, of which somebody else may tell at any time.
#[derive(Clone, Default)]
pub struct Course(Arc<Mutex<Steps>>);

#[derive(Default)]
struct Steps {
    steps: Vec<Step>,
    fs: Weak<Fs>,
}

#[derive(Clone)]
struct Step {
    begun: Instant,
    what: String,
    /// What the filesystem needed for it so far, and how often.
    needs: Vec<(Need, u32)>,
}

/// Waits for what has to end; tells where it was if it does not.
pub async fn in_time_at<T>(what: &str, course: &Course, ending: impl Future<Output = T>) -> T {
    // There yet when it is told: what is owed is of interest.
    let mut ending = std::pin::pin!(ending);
    let ended = tokio::time::timeout(STUCK, &mut ending).await;
    ended.unwrap_or_else(|_| panic!("{what} has not ended in {STUCK:?}:\n{}", course.told()))
}

impl Course {
    /// So many of the longest, and the last, are told.
    const TOLD: usize = 12;

    /// Another step begins.
    pub fn step(&self, what: impl Into<String>) {
        let Steps { steps, fs } = &mut *self.0.lock().unwrap();
        // What was owed then, if that may tell why.
        if let (Some(last), Some(fs)) = (steps.last_mut(), fs.upgrade())
            && last.begun.elapsed() > SLOW
        {
            last.what += &format!(", with {:?}", fs.report());
        }
        steps.push(Step { begun: Instant::now(), what: what.into(), needs: Vec::new() });
    }

    /// Of this filesystem it is told what is owed.
    pub fn on(&self, fs: &Arc<Fs>) {
        self.0.lock().unwrap().fs = Arc::downgrade(fs);
    }

    /// The step stopped for this.
    pub fn needs(&self, need: Need) {
        if let Some(Step { needs, .. }) = self.0.lock().unwrap().steps.last_mut() {
            match needs.iter_mut().find(|(known, _)| *known == need) {
                Some((_, times)) => *times += 1,
                None => needs.push((need, 1)),
            }
        }
    }

    /// The steps that took longest, the last one, and what is owed now.
    pub fn told(&self) -> String {
        let (steps, fs) = {
            let Steps { steps, fs } = &*self.0.lock().unwrap();
            (steps.clone(), fs.upgrade())
        };
        let ends = steps.iter().skip(1).map(|step| step.begun).chain([Instant::now()]);
        let mut took: Vec<(Duration, &Step)> = ends.zip(&steps).map(|(end, step)| (end - step.begun, step)).collect();
        let last = took.pop();
        took.sort_by_key(|(took, _)| Reverse(*took));
        took.truncate(Self::TOLD);
        let line = |(took, step): (Duration, &Step)| format!("{took:?}: {}, needs {:?}", step.what, step.needs);
        let lines: Vec<String> = took.into_iter().chain(last).map(line).collect();
        let report = fs.map(|fs| format!("{:?}\nbroken: {:?}", fs.report(), fs.check()));
        format!("{}\n{}", lines.join("\n"), report.unwrap_or_default())
    }
}
