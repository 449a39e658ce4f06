//! The order in which a directory is read.

use std::collections::BTreeMap;
use std::ops::Bound;

use xxhash_rust::xxh3::xxh3_64;

use crate::path::Name;

/// Places for `.` and `..`, before all others.
pub const DOTS: u64 = 2;
/// How many names that hash alike find a place. A directory of a million names has a pair of them with a probability of
/// 1 in 70,000.
const ALIKE: u64 = 1 << 8;

/// Names by their places. A place comes from the name alone, as in ext4's hashed directories, so it stays the same
/// whatever else comes and goes, and it is the same when all is put in order anew.
#[derive(Debug, Clone)]
pub struct Order(BTreeMap<u64, Name>);

impl Order {
    /// Puts names in order.
    pub fn of<'a>(names: impl Iterator<Item = &'a Name>) -> Self {
        let mut sorted: Vec<(u64, &Name)> = names.map(|name| (home(name), name)).collect();
        sorted.sort_unstable();
        let mut last = 0;
        let placed = sorted.into_iter().map(|(place, name)| {
            last = place.max(last + 1);
            (last, name.clone())
        });
        Self(placed.collect())
    }

    /// Gives a name its place.
    pub fn insert(&mut self, name: &Name) {
        let home = home(name);
        if self.place(name).is_none()
            && let Some(place) = (home..home + ALIKE).find(|place| !self.0.contains_key(place))
        {
            self.0.insert(place, name.clone());
        }
    }

    /// Takes a name out.
    pub fn remove(&mut self, name: &Name) {
        if let Some(place) = self.place(name) {
            self.0.remove(&place);
        }
    }

    /// The names behind a place, with theirs.
    pub fn after(&self, place: u64) -> impl Iterator<Item = (u64, &Name)> {
        self.0.range((Bound::Excluded(place), Bound::Unbounded)).map(|(place, name)| (*place, name))
    }

    fn place(&self, name: &Name) -> Option<u64> {
        let home = home(name);
        self.0.range(home..home + ALIKE).find(|(_, other)| *other == name).map(|(place, _)| *place)
    }
}

/// The first place that a name may have: positive as an `off_t`, and behind the dots.
fn home(name: &Name) -> u64 {
    let hash = xxh3_64(name.as_bytes()) & (i64::MAX as u64);
    (hash / ALIKE).max(1) * ALIKE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: u32) -> Name {
        Name::new(format!("image_{number:07}.jpg").as_bytes()).unwrap()
    }

    fn all(order: &Order) -> Vec<(u64, Name)> {
        order.after(0).map(|(place, name)| (place, name.clone())).collect()
    }

    #[test]
    fn places_are_of_names_alone_and_fit_an_off_t() {
        let names: Vec<Name> = (0..10_000).map(name).collect();
        let (whole, some) = (all(&Order::of(names.iter())), all(&Order::of(names.iter().step_by(7))));
        assert_eq!(whole.len(), names.len());
        assert!(whole.iter().all(|(place, _)| *place > DOTS && i64::try_from(*place).is_ok()));
        assert!(some.iter().all(|entry| whole.contains(entry)));
        // One by one, and over what is there.
        let mut order = Order::of([].into_iter());
        names.iter().rev().chain(&names).for_each(|name| order.insert(name));
        assert_eq!(all(&order), whole);
        names.iter().enumerate().filter(|(at, _)| at % 7 != 0).for_each(|(_, name)| order.remove(name));
        assert_eq!(all(&order), some);
        let third = some[2].0;
        assert!(order.after(third).map(|(_, name)| name).eq(some[3..].iter().map(|(_, name)| name)));
    }
}
