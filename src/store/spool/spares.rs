//! Bytes that count as used and may go: whoever finds no room below the limit takes them, the oldest first. What they were
//! is removed afterwards, by who owns it.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::PoisonError;

/// What may go, and what is to go.
#[derive(Debug, Default)]
pub(super) struct Spares(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// What it is, as its owner numbers it, and how many bytes count for it.
    waiting: VecDeque<(u64, u64)>,
    taken: Vec<u64>,
}

impl Spares {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes in all.
    pub fn bytes(&self) -> u64 {
        self.lock().waiting.iter().fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
    }

    pub fn add(&self, id: u64, bytes: u64) {
        self.lock().waiting.push_back((id, bytes));
    }

    /// Takes one back; `None`: it is to go, or was never here.
    pub fn withdraw(&self, id: u64) -> Option<u64> {
        let mut inner = self.lock();
        let at = inner.waiting.iter().position(|(waiting, _)| *waiting == id)?;
        inner.waiting.remove(at).map(|(_, bytes)| bytes)
    }

    /// Takes as many as make up `lacking` bytes; nothing, where all of them do not. Returns their bytes.
    pub fn take(&self, lacking: u64) -> u64 {
        let mut inner = self.lock();
        let all = inner.waiting.iter().fold(0u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
        if all < lacking {
            return 0;
        }
        let mut freed = 0u64;
        while freed < lacking {
            let Some((id, bytes)) = inner.waiting.pop_front() else { break };
            freed = freed.saturating_add(bytes);
            inner.taken.push(id);
        }
        freed
    }

    /// Takes the oldest.
    pub fn take_oldest(&self) -> Option<u64> {
        let mut inner = self.lock();
        let (id, bytes) = inner.waiting.pop_front()?;
        inner.taken.push(id);
        Some(bytes)
    }

    /// What is to go, told once.
    pub fn take_taken(&self) -> Vec<u64> {
        std::mem::take(&mut self.lock().taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_first_and_none_in_vain() {
        let spares = Spares::default();
        [(1, 10), (2, 20), (3, 5)].into_iter().for_each(|(id, bytes)| spares.add(id, bytes));
        assert_eq!(spares.bytes(), 35);
        assert_eq!(spares.take(36), 0);
        assert!(spares.take_taken().is_empty());
        assert_eq!(spares.take(11), 30);
        assert_eq!(spares.take_taken(), [1, 2]);
        assert_eq!(spares.withdraw(2), None);
        assert_eq!(spares.withdraw(3), Some(5));
        assert_eq!(spares.bytes(), 0);
    }
}
