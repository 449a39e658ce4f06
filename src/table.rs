//! Very many things in little memory.
//!
//! A [`Table`] has them by numbers that are given out in sequence: a few neighbours share an allocation, so next to
//! nothing is spent on finding them, nothing is ever moved when there are more, as in one large hash table, and what is
//! not needed any more is free for others. A [`Dense`] has them in order, also where they came in order.

use std::collections::{BTreeMap, HashMap};
use std::ops::{Deref, DerefMut};

/// Things by number, `PAGE` of them in one allocation: few where one may outlive its neighbours for long, which holds
/// all of it; more where they come and go together.
#[derive(Debug)]
pub struct Table<T, const PAGE: usize = 8> {
    pages: HashMap<u64, Box<Page<T, PAGE>>>,
    len: usize,
}

#[derive(Debug)]
struct Page<T, const PAGE: usize> {
    slots: [Option<T>; PAGE],
    used: usize,
}

impl<T, const PAGE: usize> Default for Table<T, PAGE> {
    fn default() -> Self {
        Self { pages: HashMap::new(), len: 0 }
    }
}

impl<T, const PAGE: usize> Default for Page<T, PAGE> {
    fn default() -> Self {
        Self { slots: [const { None }; PAGE], used: 0 }
    }
}

impl<T, const PAGE: usize> Table<T, PAGE> {
    fn place(number: u64) -> (u64, usize) {
        (number / PAGE as u64, (number % PAGE as u64) as usize)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The one of a number.
    pub fn get(&self, number: u64) -> Option<&T> {
        let (page, slot) = Self::place(number);
        self.pages.get(&page)?.slots[slot].as_ref()
    }

    /// The same, to change it.
    pub fn get_mut(&mut self, number: u64) -> Option<&mut T> {
        let (page, slot) = Self::place(number);
        self.pages.get_mut(&page)?.slots[slot].as_mut()
    }

    /// Gives a number to one, in place of what had it.
    pub fn insert(&mut self, number: u64, thing: T) {
        let (page, slot) = Self::place(number);
        let page = self.pages.entry(page).or_default();
        if page.slots[slot].replace(thing).is_none() {
            page.used += 1;
            self.len += 1;
        }
    }

    /// Takes one out.
    pub fn remove(&mut self, number: u64) -> Option<T> {
        let (at, slot) = Self::place(number);
        let page = self.pages.get_mut(&at)?;
        let thing = page.slots[slot].take()?;
        page.used -= 1;
        self.len -= 1;
        if page.used == 0 {
            self.pages.remove(&at);
        }
        Some(thing)
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.pages.iter().flat_map(|(at, page)| {
            let slots = page.slots.iter().enumerate();
            slots.filter_map(move |(slot, thing)| Some((at * PAGE as u64 + slot as u64, thing.as_ref()?)))
        })
    }

    /// All of them in no order, to change them.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.pages.values_mut().flat_map(|page| page.slots.iter_mut().flatten())
    }
}

/// A B-tree whose nodes are filled up now and then. What comes in order leaves them little more than half full: each is
/// split in the middle when it is full, and its lower half is never met again. Filling all of them whenever there is twice
/// as much as the last time costs two more moves of each thing.
#[derive(Debug, Clone)]
pub struct Dense<K, V> {
    map: BTreeMap<K, V>,
    /// How many there were when the nodes were filled last, or there would be next to nothing to win.
    filled: usize,
}

impl<K, V> Default for Dense<K, V> {
    fn default() -> Self {
        Self { map: BTreeMap::new(), filled: Self::LEAST }
    }
}

impl<K, V> Dense<K, V> {
    /// Fewer than this are a few nodes.
    const LEAST: usize = 128;
}

impl<K: Ord, V> Dense<K, V> {
    /// Adds one, and returns what was in its place.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let replaced = self.map.insert(key, value);
        if self.map.len() >= self.filled * 2 {
            self.map = std::mem::take(&mut self.map).into_iter().collect();
            self.filled = self.map.len();
        }
        replaced
    }
}

/// As full as can be.
impl<K: Ord, V> FromIterator<(K, V)> for Dense<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(things: I) -> Self {
        let map: BTreeMap<K, V> = things.into_iter().collect();
        let filled = map.len().max(Self::LEAST);
        Self { map, filled }
    }
}

impl<K, V> Deref for Dense<K, V> {
    type Target = BTreeMap<K, V>;

    fn deref(&self) -> &Self::Target {
        &self.map
    }
}

impl<K, V> DerefMut for Dense<K, V> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_are_found_by_number_until_they_are_removed() {
        let mut table: Table<u64> = Table::default();
        let numbers = [1, 7, 8, 9, 1 << 40];
        for number in numbers {
            table.insert(number, number);
        }
        table.insert(8, 100);
        assert_eq!(table.len(), numbers.len());
        assert_eq!(table.get(8), Some(&100));
        *table.get_mut(9).unwrap() = 200;
        let mut found: Vec<u64> = table.iter().map(|(number, _)| number).collect();
        found.sort_unstable();
        assert_eq!(found, numbers);
        table.values_mut().for_each(|thing| *thing += 1);
        assert_eq!(table.get(9), Some(&201));
        for number in numbers {
            assert!(table.remove(number).is_some());
            assert!(table.remove(number).is_none() && table.get(number).is_none());
        }
        assert!(table.is_empty() && table.pages.is_empty());
    }

    #[test]
    fn a_dense_map_keeps_all_that_is_put_in_and_its_order() {
        let mut dense: Dense<u32, u32> = Dense::default();
        let mut plain = BTreeMap::new();
        // In order, against it, over what is there, and in none; across several fillings.
        let keys = (0..3000).chain((3000..6000).rev()).chain(0..500).chain((0..3000).map(|n| n * 7919 % 20_011));
        for (at, key) in keys.enumerate() {
            assert_eq!(dense.insert(key, at as u32), plain.insert(key, at as u32));
            if at % 3 == 0 {
                assert_eq!(dense.remove(&(key / 2)), plain.remove(&(key / 2)));
            }
        }
        assert!(dense.iter().eq(plain.iter()));
    }
}
