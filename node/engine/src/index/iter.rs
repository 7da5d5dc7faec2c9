//! Going through a tree in order.

use std::ops::Bound;

use super::Item;
use super::tree::{Inner, Leaf, Node};

/// Entries of a tree in the order of their keys.
#[derive(Debug, Clone)]
pub(crate) struct Range<'a> {
    /// Inner pages on the way down, each with the child that is next.
    path: Vec<(&'a Inner, usize)>,
    leaf: Option<(&'a Leaf, usize)>,
}

impl<'a> Range<'a> {
    pub(super) fn new(root: Option<&'a Node>, from: Bound<&[u8]>) -> Range<'a> {
        let mut range = Range { path: Vec::new(), leaf: None };
        let Some(mut node) = root else { return range };
        loop {
            match node {
                Node::Inner(inner) => {
                    let at = match from {
                        Bound::Included(key) | Bound::Excluded(key) => inner.keys.rank(key),
                        Bound::Unbounded => 0,
                    };
                    range.path.push((inner, at + 1));
                    node = &inner.children[at];
                }
                Node::Leaf(leaf) => {
                    let at = match from {
                        Bound::Included(key) => leaf.keys.find(key).unwrap_or_else(|at| at),
                        Bound::Excluded(key) => leaf.keys.rank(key),
                        Bound::Unbounded => 0,
                    };
                    range.leaf = Some((leaf, at));
                    return range;
                }
            }
        }
    }

    fn next_leaf(&mut self) -> Option<&'a Leaf> {
        let mut node = loop {
            let (inner, next) = self.path.last_mut()?;
            if let Some(child) = inner.children.get(*next) {
                *next += 1;
                break child;
            }
            self.path.pop();
        };
        loop {
            match node {
                Node::Leaf(leaf) => return Some(leaf),
                Node::Inner(inner) => {
                    self.path.push((inner, 1));
                    node = inner.children.first()?;
                }
            }
        }
    }
}

impl<'a> Iterator for Range<'a> {
    type Item = (&'a [u8], &'a Item);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (leaf, at) = self.leaf.as_mut()?;
            if let Some(item) = leaf.items.as_slice().get(*at) {
                let key = leaf.keys.get(*at);
                *at += 1;
                return Some((key, item));
            }
            self.leaf = Some((self.next_leaf()?, 0));
        }
    }
}
