//! The tree itself: search, insertion, removal, copying what is shared.

use super::items::Items;
use super::iter::Range;
use super::keys::Keys;
use super::shared::{Blocks, Page, Shared};
use super::{FANOUT, Item};

/// Below this a page is joined with a neighbour, if the two fit.
const SPARSE: usize = FANOUT / 4;
/// Two pages are joined if this is enough for both, so that the next insertion does not split them again.
const JOINED: usize = FANOUT * 3 / 4;

#[derive(Debug, Clone)]
pub(super) struct Leaf {
    pub(super) keys: Keys,
    pub(super) items: Items<Item>,
}

/// An inner page. `keys[n]` is at most every key below `children[n + 1]` and greater than every key below `children[n]`.
#[derive(Debug, Clone)]
pub(super) struct Inner {
    pub(super) keys: Keys,
    pub(super) children: Vec<Node>,
}

#[derive(Debug, Clone)]
pub(super) enum Node {
    Leaf(Shared<Leaf>),
    Inner(Shared<Inner>),
}

/// Leaves are nearly all of an index, and inner pages stay in the cache.
static LEAVES: Blocks = Blocks::new();

impl Page for Leaf {
    fn blocks() -> Option<&'static Blocks> {
        Some(&LEAVES)
    }
}

impl Page for Inner {
    fn blocks() -> Option<&'static Blocks> {
        None
    }
}

/// An ordered map from keys to items. Cloning it is a snapshot.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tree {
    pub(super) root: Option<Node>,
    len: u64,
}

/// A page that was cut in two: the first key of the second, and the second.
type Split = Option<(Vec<u8>, Node)>;

impl Tree {
    pub(super) fn from_root(root: Option<Node>) -> Tree {
        let len = root.as_ref().map_or(0, Node::count);
        Tree { root, len }
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&Item> {
        let mut node = self.root.as_ref()?;
        loop {
            match node {
                Node::Inner(inner) => node = &inner.children[inner.keys.rank(key)],
                Node::Leaf(leaf) => return leaf.keys.find_exact(key).map(|at| &leaf.items.as_slice()[at]),
            }
        }
    }

    /// Sets an item; returns the one that it replaces.
    pub(crate) fn insert(&mut self, key: &[u8], item: Item) -> Option<Item> {
        let Some(root) = &mut self.root else {
            let mut leaf = Leaf { keys: Keys::new(), items: Items::new() };
            leaf.keys.insert(0, key);
            leaf.items.insert(0, item);
            self.root = Some(Node::Leaf(Shared::new(leaf)));
            self.len = 1;
            return None;
        };
        let (old, split) = root.insert(key, item);
        if let Some((first, right)) = split {
            let mut keys = Keys::new();
            keys.insert(0, &first);
            let left = root.clone();
            let mut children = Vec::with_capacity(FANOUT);
            children.extend([left, right]);
            *root = Node::Inner(Shared::new(Inner { keys, children }));
        }
        self.len += u64::from(old.is_none());
        old
    }

    /// Removes an item and returns it.
    pub(crate) fn remove(&mut self, key: &[u8]) -> Option<Item> {
        // Looked for first, so that nothing is copied in vain.
        self.get(key)?;
        let root = self.root.as_mut()?;
        let removed = root.remove(key);
        self.len -= u64::from(removed.is_some());
        match root {
            Node::Leaf(leaf) if leaf.keys.len() == 0 => self.root = None,
            Node::Inner(inner) if inner.children.len() == 1 => {
                let only = inner.children[0].clone();
                self.root = Some(only);
            }
            _ => {}
        }
        removed
    }

    /// Entries from `from` on, in order.
    pub(crate) fn range(&self, from: std::ops::Bound<&[u8]>) -> Range<'_> {
        Range::new(self.root.as_ref(), from)
    }

    /// Bytes of memory that the pages take, about.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.root.as_ref().map_or(0, Node::heap_bytes)
    }
}

impl Node {
    fn insert(&mut self, key: &[u8], item: Item) -> (Option<Item>, Split) {
        match self {
            Node::Leaf(leaf) => leaf.make_mut().insert(key, item),
            Node::Inner(inner) => inner.make_mut().insert(key, item),
        }
    }

    fn remove(&mut self, key: &[u8]) -> Option<Item> {
        match self {
            Node::Leaf(leaf) => {
                let leaf = leaf.make_mut();
                let at = leaf.keys.find(key).ok()?;
                leaf.keys.remove(at);
                Some(leaf.items.remove(at))
            }
            Node::Inner(inner) => {
                let inner = inner.make_mut();
                let at = inner.keys.rank(key);
                let removed = inner.children[at].remove(key);
                inner.join_if_sparse(at);
                removed
            }
        }
    }

    /// Entries of a leaf, children of an inner page.
    fn width(&self) -> usize {
        match self {
            Node::Leaf(leaf) => leaf.keys.len(),
            Node::Inner(inner) => inner.children.len(),
        }
    }

    fn count(&self) -> u64 {
        match self {
            Node::Leaf(leaf) => leaf.keys.len() as u64,
            Node::Inner(inner) => inner.children.iter().map(Node::count).sum(),
        }
    }

    fn heap_bytes(&self) -> usize {
        match self {
            Node::Leaf(leaf) => size_of::<Leaf>() + leaf.keys.heap_bytes(),
            Node::Inner(inner) => {
                size_of::<Inner>()
                    + inner.keys.heap_bytes()
                    + inner.children.capacity() * size_of::<Node>()
                    + inner.children.iter().map(Node::heap_bytes).sum::<usize>()
            }
        }
    }
}

/// Where to cut a full page: in the middle, but keys that arrive in order leave full pages behind.
fn cut(inserted_at: usize) -> usize {
    if inserted_at == FANOUT { FANOUT - 2 } else { FANOUT / 2 }
}

impl Leaf {
    fn insert(&mut self, key: &[u8], item: Item) -> (Option<Item>, Split) {
        let at = match self.keys.find(key) {
            Ok(at) => return (Some(std::mem::replace(self.items.get_mut(at), item)), None),
            Err(at) => at,
        };
        if self.keys.len() < FANOUT {
            self.put(at, key, item);
            return (None, None);
        }
        let cut = cut(at);
        let mut right = Leaf { keys: self.keys.split_off(cut), items: self.items.split_off(cut) };
        if at <= cut {
            self.put(at, key, item);
        } else {
            right.put(at - cut, key, item);
        }
        (None, Some((right.keys.get(0).to_vec(), Node::Leaf(Shared::new(right)))))
    }

    fn put(&mut self, at: usize, key: &[u8], item: Item) {
        self.keys.insert(at, key);
        self.items.insert(at, item);
    }

    fn join(&mut self, right: &Leaf) {
        self.keys.append(&right.keys);
        self.items.append(right.items.as_slice());
    }
}

impl Inner {
    fn insert(&mut self, key: &[u8], item: Item) -> (Option<Item>, Split) {
        let at = self.keys.rank(key);
        let (old, split) = self.children[at].insert(key, item);
        let Some((first, right)) = split else { return (old, None) };
        self.keys.insert(at, &first);
        self.children.insert(at + 1, right);
        if self.children.len() < FANOUT {
            return (old, None);
        }
        let cut = if at + 2 == FANOUT { FANOUT - 2 } else { FANOUT / 2 };
        let children = self.children.split_off(cut);
        let mut keys = self.keys.split_off(cut - 1);
        let first = keys.get(0).to_vec();
        keys.remove(0);
        let mut wide = Vec::with_capacity(FANOUT);
        wide.extend(children);
        (old, Some((first, Node::Inner(Shared::new(Inner { keys, children: wide })))))
    }

    /// Joins the child with a neighbour if it has become small, and drops it if it is empty.
    fn join_if_sparse(&mut self, at: usize) {
        let width = self.children[at].width();
        if width >= SPARSE {
            return;
        }
        if width == 0 {
            self.children.remove(at);
            if self.keys.len() > 0 {
                self.keys.remove(at.saturating_sub(1));
            }
            return;
        }
        let left = if at + 1 < self.children.len() { at } else { at.saturating_sub(1) };
        if left + 1 >= self.children.len()
            || self.children[left].width() + self.children[left + 1].width() > JOINED
        {
            return;
        }
        let right = self.children.remove(left + 1);
        match (&mut self.children[left], &right) {
            (Node::Leaf(into), Node::Leaf(right)) => into.make_mut().join(right),
            (Node::Inner(into), Node::Inner(right)) => {
                let into = into.make_mut();
                let middle = self.keys.get(left).to_vec();
                into.keys.insert(into.keys.len(), &middle);
                into.keys.append(&right.keys);
                into.children.extend(right.children.iter().cloned());
            }
            // Pages of one level are of one kind.
            _ => unreachable!("a leaf beside an inner page"),
        }
        self.keys.remove(left);
    }
}
