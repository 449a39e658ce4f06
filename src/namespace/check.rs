//! What is true of the tree between any two operations.

use std::collections::HashSet;

use super::{Body, Content, Namespace, ROOT, SpoolId};

impl Namespace {
    /// Tells `broken` of every invariant of the tree that does not hold, by its name in docs/INVARIANTS.md. Looks at every
    /// inode: for tests.
    pub fn check(&self, broken: &mut impl FnMut(&'static str, String)) {
        let mut spools: HashSet<SpoolId> = HashSet::new();
        // A file may have very many, and they are not looked through for each of its names.
        let links = self.iter().flat_map(|(ino, inode)| inode.links.iter().map(move |(dir, name)| (ino, *dir, name)));
        let links: HashSet<_> = links.collect();
        let mut ignored = 0;
        for (ino, inode) in self.iter() {
            for (parent, name) in inode.links.iter() {
                if self.child(*parent, name) != Some(ino) {
                    broken("tree.links", format!("{ino:?} has a link {name} in {parent:?}, which has no such entry"));
                }
                if inode.recorded && self.get(*parent).is_some_and(|parent| !parent.recorded) {
                    broken("tree.recorded", format!("{ino:?} is on record, and {parent:?} around it is not"));
                }
            }
            if inode.is_dir() && inode.links.len() > usize::from(ino != ROOT) {
                broken("tree.one-parent", format!("the directory {ino:?} has {} names", inode.links.len()));
            }
            if let Some(xattrs) = &inode.xattrs {
                let (names, values) = (xattrs.keys().map(|name| name.len()), xattrs.values().map(|value| value.len()));
                let (is, counts) = ((names.sum(), values.sum()), (xattrs.names_bytes(), xattrs.values_bytes()));
                if is != counts {
                    broken(
                        "tree.xattrs",
                        format!("{ino:?} has names and values of {is:?} bytes, and counts {counts:?}"),
                    );
                }
            }
            match &inode.body {
                Body::Dir(dir) => {
                    let (mut subdirs, mut files) = (0, 0);
                    for (name, child) in dir.children.iter() {
                        let Some(found) = self.get(*child) else {
                            broken("tree.links", format!("{name} in {ino:?} names {child:?}, which is gone"));
                            continue;
                        };
                        if !links.contains(&(*child, ino, name)) {
                            broken("tree.links", format!("{name} in {ino:?} names {child:?}, which has no such link"));
                        }
                        let counted = found.counted(name);
                        let travels = if dir.ignored.contains(name) { 0 } else { counted.1 };
                        (subdirs, files) = (subdirs + counted.0, files + travels);
                    }
                    ignored += dir.ignored.len();
                    for name in &dir.ignored {
                        let is_file = |child: &super::Ino| self.content(*child).is_some();
                        if !dir.children.get(name).is_some_and(is_file) {
                            broken("tree.ignored", format!("{name} in {ino:?} is ignored, and is no file"));
                        }
                    }
                    if (subdirs, files) != (dir.subdirs, dir.files) {
                        let counts = (dir.subdirs, dir.files);
                        broken("tree.counts", format!("{ino:?} has {:?} and counts {counts:?}", (subdirs, files)));
                    }
                    if !dir.based && !dir.listed {
                        broken("tree.listed", format!("{ino:?} has no base and waits for a listing of it"));
                    }
                }
                Body::File { content: Content::Local { spool, .. }, .. } => {
                    if !spools.insert(*spool) {
                        broken("tree.own-spool-file", format!("{ino:?} shares {spool:?} with another file"));
                    }
                }
                Body::File { .. } | Body::Symlink(_) | Body::Special { .. } => {}
            }
        }
        if ignored != self.ignored {
            broken("tree.ignored", format!("{ignored} names are ignored, and {} are counted", self.ignored));
        }
        self.check_reach(broken);
    }

    /// Every linked inode is below the root, and no directory is below itself.
    fn check_reach(&self, broken: &mut impl FnMut(&'static str, String)) {
        let mut reached = HashSet::from([ROOT]);
        let mut todo = vec![ROOT];
        while let Some(at) = todo.pop() {
            for child in self.dir(at).into_iter().flat_map(|dir| dir.children.values()) {
                if reached.insert(*child) && self.dir(*child).is_some() {
                    todo.push(*child);
                }
            }
        }
        for (ino, inode) in self.iter() {
            let above = inode.links.iter().all(|(parent, _)| self.get(*parent).is_some());
            if above && !inode.links.is_empty() && !reached.contains(&ino) && !self.is_in_removed(ino) {
                broken("tree.reach", format!("{ino:?} has a name and is not below the root"));
            }
        }
    }

    /// Whether an inode is below a directory that was removed, and that a program has open yet.
    fn is_in_removed(&self, ino: super::Ino) -> bool {
        let mut at = ino;
        // No path is longer than there are inodes: more steps are a circle.
        for _ in 0..self.len() {
            match self.get(at).and_then(|inode| inode.links.first()) {
                Some((parent, _)) => at = *parent,
                None => return at != ROOT,
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::{Attrs, Dir, Generation, Ino, Links, Timestamp};
    use crate::path::{Name, RepoPath};

    fn broken(tree: &Namespace) -> Vec<&'static str> {
        let mut found = Vec::new();
        tree.check(&mut |name, _| found.push(name));
        found
    }

    fn add(tree: &mut Namespace, parent: Ino, name: &str, body: Body) -> Ino {
        let time = Timestamp(0, 0);
        let attrs = Attrs { mode: 0o755, uid: 0, gid: 0, atime: time, mtime: time, ctime: time };
        let ino = tree.fresh_ino();
        tree.insert(ino, attrs, body, true);
        tree.link(parent, Name::new(name.as_bytes()).unwrap(), ino);
        ino
    }

    #[test]
    fn each_way_to_break_the_tree_is_told_by_its_name() {
        let time = Timestamp(0, 0);
        let attrs = Attrs { mode: 0o755, uid: 0, gid: 0, atime: time, mtime: time, ctime: time };
        let dir = || Body::Dir(Box::new(Dir { listed: true, ..Dir::default() }));
        let file = |spool| {
            let content = Content::Local { spool: SpoolId(spool), generation: Generation::UNSEEN, hash: None };
            Body::File { content, size: 0 }
        };
        type Break = fn(&mut Namespace, Ino, Ino);
        let ways: [(&str, Break); 9] = [
            ("tree.counts", |tree, dir, _| tree.dir_mut(dir).unwrap().files += 1),
            ("tree.ignored", |tree, dir, _| {
                tree.dir_mut(dir).unwrap().ignored.insert(Name::new(b"gone").unwrap());
            }),
            ("tree.xattrs", |tree, _, file| {
                tree.set_xattr(file, b"user.a", Some(b"1"));
                tree.get_mut(file).unwrap().xattrs.as_mut().unwrap().names_bytes += 1;
            }),
            ("tree.links", |tree, _, file| tree.get_mut(file).unwrap().links = Links::None),
            ("tree.listed", |tree, dir, _| tree.dir_mut(dir).unwrap().listed = false),
            ("tree.recorded", |tree, dir, _| tree.get_mut(dir).unwrap().recorded = false),
            ("tree.one-parent", |tree, dir, _| tree.link(ROOT, Name::new(b"other").unwrap(), dir)),
            ("tree.own-spool-file", |tree, dir, file| {
                let body = tree.get(file).unwrap().body.clone();
                add(tree, dir, "twin", body);
            }),
            ("tree.reach", |tree, dir, _| {
                let below = Ino(tree.next_ino().0 - 1);
                assert!(tree.dir(below).is_some() && tree.dir(dir).is_some());
                tree.unlink(ROOT, &Name::new(b"dir").unwrap(), false);
                tree.link(below, Name::new(b"dir").unwrap(), dir);
            }),
        ];
        for (name, break_it) in ways {
            let mut tree = Namespace::new(RepoPath::root(), attrs);
            let top = add(&mut tree, ROOT, "dir", dir());
            let leaf = add(&mut tree, top, "file", file(1));
            add(&mut tree, top, "below", dir());
            assert_eq!(broken(&tree), [""; 0]);
            break_it(&mut tree, top, leaf);
            assert!(broken(&tree).contains(&name), "{name}: {:?}", broken(&tree));
        }
    }
}
