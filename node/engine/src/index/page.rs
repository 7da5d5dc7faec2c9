//! Pages as bytes, so that an index can be stored and fetched page by page.
//!
//! A page is at most 64 KiB and carries its own checksum. An inner page names its children by numbers that whoever stores the pages
//! gives out. Positions are encoded by segment number, not by slot, because slots mean nothing elsewhere. What is decoded is
//! untrusted: counts, lengths and the order of keys are checked.

use super::items::Items;
use super::keys::Keys;
use super::shared::Shared;
use super::tree::{Inner, Leaf, Node, Tree};
use super::{FANOUT, Item};
use crate::format::{Fields, MAX_KEY_LEN, checksum};
use crate::state::KeyInfo;

/// No page is longer than this many bytes.
pub const MAX_PAGE_LEN: usize = 64 << 10;

const MAGIC: u32 = u32::from_le_bytes(*b"DZpg");
const HEAD_LEN: usize = 16;
const CRC_AT: usize = 8;
const LEAF: u8 = 1;
const INNER: u8 = 2;
/// Bytes of an entry of a leaf, without its key.
const ENTRY_LEN: usize = 56;
/// The deepest tree that is decoded: with 12 children per page that is more keys than a process can have.
const MAX_DEPTH: usize = 16;

const _: () = assert!(
    HEAD_LEN + FANOUT * (ENTRY_LEN + MAX_KEY_LEN) <= MAX_PAGE_LEN,
    "a leaf full of the longest keys has to fit in a page: lower FANOUT or MAX_KEY_LEN"
);

/// Why a page cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PageError {
    /// It is not a page, or it was damaged.
    #[error("the page does not fit its checksum")]
    Damaged,
    /// Its checksum fits but what it says is impossible.
    #[error("the page is malformed")]
    Malformed,
    /// It points into a segment that is not there.
    #[error("the page points into segment {0}, which is missing")]
    MissingSegment(u64),
    /// The page itself is not there.
    #[error("page {0} is missing")]
    Missing(u64),
}

/// Encodes every page, children before parents. `emit` stores one and returns its number. Returns the root's number, or `None` for an
/// empty tree.
pub(crate) fn encode_tree(
    tree: &Tree,
    segment_of: &dyn Fn(u32) -> u64,
    emit: &mut dyn FnMut(&[u8]) -> u64,
) -> Option<u64> {
    tree.root.as_ref().map(|root| encode_node(root, segment_of, emit))
}

fn encode_node(node: &Node, segment_of: &dyn Fn(u32) -> u64, emit: &mut dyn FnMut(&[u8]) -> u64) -> u64 {
    let page = match node {
        Node::Leaf(leaf) => encode_leaf(leaf, segment_of),
        Node::Inner(inner) => {
            let children: Vec<u64> =
                inner.children.iter().map(|child| encode_node(child, segment_of, emit)).collect();
            encode_inner(inner, &children)
        }
    };
    emit(&page)
}

fn begin(kind: u8, count: usize) -> Vec<u8> {
    let mut page = Vec::with_capacity(4096);
    page.extend_from_slice(&MAGIC.to_le_bytes());
    page.extend_from_slice(&[kind, 0]);
    page.extend_from_slice(&u16::try_from(count).unwrap_or(u16::MAX).to_le_bytes());
    page.extend_from_slice(&[0; HEAD_LEN - CRC_AT]);
    page
}

fn finish(mut page: Vec<u8>) -> Vec<u8> {
    let crc = checksum(&page);
    page[CRC_AT..HEAD_LEN].copy_from_slice(&crc.to_le_bytes());
    page
}

fn encode_leaf(leaf: &Leaf, segment_of: &dyn Fn(u32) -> u64) -> Vec<u8> {
    let mut page = begin(LEAF, leaf.keys.len());
    for (at, item) in leaf.items.as_slice().iter().enumerate() {
        let key = leaf.keys.get(at);
        page.extend_from_slice(&u32::try_from(key.len()).unwrap_or(u32::MAX).to_le_bytes());
        page.extend_from_slice(&item.at.to_le_bytes());
        let segment = segment_of(item.slot);
        for number in [segment, item.len, item.version, item.fingerprint, item.time_ms, item.value_crc] {
            page.extend_from_slice(&number.to_le_bytes());
        }
        page.extend_from_slice(key);
    }
    finish(page)
}

fn encode_inner(inner: &Inner, children: &[u64]) -> Vec<u8> {
    let mut page = begin(INNER, children.len());
    children.iter().for_each(|child| page.extend_from_slice(&child.to_le_bytes()));
    for at in 0..inner.keys.len() {
        let key = inner.keys.get(at);
        page.extend_from_slice(&u32::try_from(key.len()).unwrap_or(u32::MAX).to_le_bytes());
        page.extend_from_slice(key);
    }
    finish(page)
}

/// Where decoded items point.
pub(crate) trait Places {
    /// The slot of a segment, if it is there and `end` lies inside it.
    fn slot(&self, segment: u64, end: u64) -> Option<u32>;
    /// A cell for one more version in that slot.
    fn cell(&mut self, slot: u32) -> u32;
}

/// Decodes an index from its root's number and lists its keys; `fetch` returns a stored page. For whoever keeps pages and wants to
/// know whether they are whole.
///
/// # Errors
/// [`PageError`].
pub fn check_pages(
    root: Option<u64>,
    mut fetch: impl FnMut(u64) -> Option<Vec<u8>>,
) -> Result<Vec<(Vec<u8>, KeyInfo)>, PageError> {
    struct Anywhere;
    impl Places for Anywhere {
        fn slot(&self, _: u64, _: u64) -> Option<u32> {
            Some(0)
        }
        fn cell(&mut self, _: u32) -> u32 {
            0
        }
    }
    let tree = decode_tree(root, &mut fetch, &mut Anywhere)?;
    let entries = tree.range(std::ops::Bound::Unbounded);
    Ok(entries.map(|(key, item)| (key.to_vec(), KeyInfo::of(item))).collect())
}

/// A decoded page.
enum Page {
    Leaf(Box<Leaf>),
    Inner(Box<Keys>, Vec<u64>),
}

/// Decodes a tree from its root's number; `fetch` returns a stored page.
pub(crate) fn decode_tree(
    root: Option<u64>,
    fetch: &mut dyn FnMut(u64) -> Option<Vec<u8>>,
    places: &mut dyn Places,
) -> Result<Tree, PageError> {
    let root = root.map(|root| decode_node(root, fetch, places, MAX_DEPTH)).transpose()?;
    Ok(Tree::from_root(root))
}

fn decode_node(
    number: u64,
    fetch: &mut dyn FnMut(u64) -> Option<Vec<u8>>,
    places: &mut dyn Places,
    depth: usize,
) -> Result<Node, PageError> {
    let depth = depth.checked_sub(1).ok_or(PageError::Malformed)?;
    let page = fetch(number).ok_or(PageError::Missing(number))?;
    Ok(match decode_page(&page, places)? {
        Page::Leaf(leaf) => Node::Leaf(Shared::new(*leaf)),
        Page::Inner(keys, numbers) => {
            let mut children = Vec::with_capacity(FANOUT);
            for number in numbers {
                children.push(decode_node(number, fetch, places, depth)?);
            }
            Node::Inner(Shared::new(Inner { keys: *keys, children }))
        }
    })
}

fn decode_page(page: &[u8], places: &mut dyn Places) -> Result<Page, PageError> {
    if page.len() < HEAD_LEN || page.len() > MAX_PAGE_LEN {
        return Err(PageError::Damaged);
    }
    let mut zeroed = page.to_vec();
    zeroed[CRC_AT..HEAD_LEN].fill(0);
    let mut head = Fields(page);
    let (magic, kind, flags, count, crc) = (head.u32(), head.u8(), head.u8(), head.u16(), head.u64());
    if magic != MAGIC || crc != checksum(&zeroed) {
        return Err(PageError::Damaged);
    }
    let count = usize::from(count);
    if flags != 0 || count == 0 || count > FANOUT {
        return Err(PageError::Malformed);
    }
    match kind {
        LEAF => decode_leaf(&page[HEAD_LEN..], count, places).map(|leaf| Page::Leaf(Box::new(leaf))),
        INNER => decode_inner(&page[HEAD_LEN..], count),
        _ => Err(PageError::Malformed),
    }
}

/// Takes a key whose length was read before, and checks that it is greater than the last one.
fn take_key(rest: &mut &[u8], len: u32, keys: &mut Keys) -> Result<(), PageError> {
    let len = len as usize;
    if len == 0 || len > MAX_KEY_LEN {
        return Err(PageError::Malformed);
    }
    let (key, behind) = rest.split_at_checked(len).ok_or(PageError::Malformed)?;
    let count = keys.len();
    if count > 0 && keys.get(count - 1) >= key {
        return Err(PageError::Malformed);
    }
    keys.insert(count, key);
    *rest = behind;
    Ok(())
}

fn decode_leaf(mut rest: &[u8], count: usize, places: &mut dyn Places) -> Result<Leaf, PageError> {
    let mut leaf = Leaf { keys: Keys::new(), items: Items::new() };
    for _ in 0..count {
        let (entry, behind) = rest.split_at_checked(ENTRY_LEN).ok_or(PageError::Malformed)?;
        rest = behind;
        let mut fields = Fields(entry);
        let (key_len, at) = (fields.u32(), fields.u32());
        let [segment, len, version, fingerprint, time_ms, value_crc] = std::array::from_fn(|_| fields.u64());
        take_key(&mut rest, key_len, &mut leaf.keys)?;
        let mut item =
            Item { slot: 0, at, cell: 0, unread: true, len, version, fingerprint, time_ms, value_crc };
        let end = item.offset().checked_add(len).ok_or(PageError::Malformed)?;
        item.slot = places.slot(segment, end).ok_or(PageError::MissingSegment(segment))?;
        item.cell = places.cell(item.slot);
        leaf.items.insert(leaf.keys.len() - 1, item);
    }
    if rest.is_empty() { Ok(leaf) } else { Err(PageError::Malformed) }
}

fn decode_inner(mut rest: &[u8], count: usize) -> Result<Page, PageError> {
    let (numbers, behind) = rest.split_at_checked(count * 8).ok_or(PageError::Malformed)?;
    rest = behind;
    let numbers = numbers.chunks_exact(8).map(|number| Fields(number).u64()).collect();
    let mut keys = Keys::new();
    for _ in 1..count {
        let (len, behind) = rest.split_at_checked(4).ok_or(PageError::Malformed)?;
        rest = behind;
        take_key(&mut rest, Fields(len).u32(), &mut keys)?;
    }
    if rest.is_empty() { Ok(Page::Inner(Box::new(keys), numbers)) } else { Err(PageError::Malformed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct AnyPlace;

    impl Places for AnyPlace {
        fn slot(&self, segment: u64, _: u64) -> Option<u32> {
            u32::try_from(segment).ok().filter(|slot| *slot < 4)
        }

        fn cell(&mut self, _: u32) -> u32 {
            0
        }
    }

    fn tree(keys: u32, key_len: usize) -> Tree {
        let mut tree = Tree::default();
        for n in 0..keys {
            let mut key = n.wrapping_mul(2_654_435_761).to_be_bytes().to_vec();
            key.resize(key_len.max(4), 7);
            tree.insert(&key, Item { slot: n % 4, at: n, len: u64::from(n), ..Item::default() });
        }
        tree
    }

    fn pages(tree: &Tree) -> (Option<u64>, Vec<Vec<u8>>) {
        let mut pages = Vec::new();
        let root = encode_tree(tree, &u64::from, &mut |page| {
            pages.push(page.to_vec());
            pages.len() as u64 - 1
        });
        (root, pages)
    }

    #[test]
    fn trees_come_back_from_their_pages() {
        for (keys, key_len) in [(0, 4), (1, 4), (48, MAX_KEY_LEN), (5000, 20)] {
            let tree = tree(keys, key_len);
            let (root, pages) = pages(&tree);
            assert!(pages.iter().all(|page| page.len() <= MAX_PAGE_LEN));
            let back = decode_tree(
                root,
                &mut |number| pages.get(usize::try_from(number).unwrap()).cloned(),
                &mut AnyPlace,
            )
            .unwrap();
            assert_eq!(back.len(), tree.len());
            let all = |tree: &Tree| -> Vec<(Vec<u8>, u32, u64)> {
                let range = tree.range(std::ops::Bound::Unbounded);
                range.map(|(key, item)| (key.to_vec(), item.at, item.len)).collect()
            };
            assert_eq!(all(&back), all(&tree));
        }
    }

    #[test]
    fn damaged_pages_are_refused() {
        let (_, pages) = pages(&tree(40, 20));
        for bit in 0..pages[0].len() * 8 {
            let mut page = pages[0].clone();
            page[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_page(&page, &mut AnyPlace).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_page_that_is_its_own_child_ends() {
        let mut page = begin(INNER, 1);
        page.extend_from_slice(&0_u64.to_le_bytes());
        let page = finish(page);
        let error = decode_tree(Some(0), &mut |_| Some(page.clone()), &mut AnyPlace).unwrap_err();
        assert_eq!(error, PageError::Malformed);
    }
}
