//! Inodes by number. Numbers are given out in sequence, so a few neighbours share an allocation: next to nothing is spent
//! on finding them, and nothing is ever moved when their number grows, as in one large hash table.

use std::collections::HashMap;

use super::{Ino, Inode};

/// Inodes in one allocation: few, so that one that outlives its neighbours does not hold much for nothing.
const PAGE: usize = 8;

#[derive(Debug, Default)]
pub(super) struct Table {
    pages: HashMap<u64, Box<Page>>,
    len: usize,
}

#[derive(Debug, Default)]
struct Page {
    slots: [Option<Inode>; PAGE],
    used: usize,
}

fn place(ino: Ino) -> (u64, usize) {
    (ino.0 / PAGE as u64, (ino.0 % PAGE as u64) as usize)
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn get(&self, ino: Ino) -> Option<&Inode> {
        let (page, slot) = place(ino);
        self.pages.get(&page)?.slots[slot].as_ref()
    }

    pub(super) fn get_mut(&mut self, ino: Ino) -> Option<&mut Inode> {
        let (page, slot) = place(ino);
        self.pages.get_mut(&page)?.slots[slot].as_mut()
    }

    pub(super) fn insert(&mut self, ino: Ino, inode: Inode) {
        let (page, slot) = place(ino);
        let page = self.pages.entry(page).or_default();
        if page.slots[slot].replace(inode).is_none() {
            page.used += 1;
            self.len += 1;
        }
    }

    pub(super) fn remove(&mut self, ino: Ino) {
        let (number, slot) = place(ino);
        let Some(page) = self.pages.get_mut(&number) else { return };
        if page.slots[slot].take().is_some() {
            page.used -= 1;
            self.len -= 1;
            if page.used == 0 {
                self.pages.remove(&number);
            }
        }
    }

    /// All of them, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Ino, &Inode)> {
        self.pages.iter().flat_map(|(number, page)| {
            let slots = page.slots.iter().enumerate();
            slots.filter_map(move |(slot, inode)| Some((Ino(number * PAGE as u64 + slot as u64), inode.as_ref()?)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Attrs, Body, Links, Timestamp};
    use super::*;

    fn inode(mode: u16) -> Inode {
        let zero = Timestamp(0, 0);
        Inode {
            attrs: Attrs { mode, uid: 0, gid: 0, atime: zero, mtime: zero, ctime: zero },
            body: Body::Symlink(Box::default()),
            xattrs: None,
            links: Links::None,
            lookups: 0,
            opens: 0,
            recorded: false,
        }
    }

    #[test]
    fn inodes_are_found_by_number_until_they_are_removed() {
        let mut table = Table::default();
        let numbers = [1, 7, 8, 9, 1 << 40];
        for (mode, number) in (0..).zip(numbers) {
            table.insert(Ino(number), inode(mode));
        }
        table.insert(Ino(8), inode(100));
        assert_eq!(table.len(), numbers.len());
        assert_eq!(table.get(Ino(8)).unwrap().attrs.mode, 100);
        table.get_mut(Ino(9)).unwrap().attrs.mode = 200;
        let mut found: Vec<u64> = table.iter().map(|(ino, _)| ino.0).collect();
        found.sort_unstable();
        assert_eq!(found, numbers);
        for number in numbers {
            table.remove(Ino(number));
            table.remove(Ino(number));
            assert!(table.get(Ino(number)).is_none());
        }
        assert_eq!((table.len(), table.pages.len()), (0, 0));
    }
}
