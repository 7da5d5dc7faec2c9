//! Which node runs a process. Pure: no clock, no I/O, no randomness but the seed.
//!
//! A node fits if it takes processes at all and has room for the whole limit of each resource. Whether limits reserve anything is the
//! node's to say: what it calls free is believed, and nothing is overcommitted here. Among the nodes that fit, the least
//! cost wins. The cost is the node's load, plus what it costs to bring the image and the state there, in the
//! same unit. Nodes that cost about the same are told apart by the seed, so that many decisions from one
//! stale view do not all pick the same node. The order in which nodes are listed never matters.

use std::collections::BTreeMap;

use denizen_image::ByteSize;
use serde::{Deserialize, Serialize};

/// What the absence of the image on a node is worth, in permille of load.
const FETCH_IMAGE_PERMILLE: u32 = 150;
/// What the absence of the process's state on a node is worth, in permille of load.
const FETCH_STATE_PERMILLE: u32 = 400;
/// Costs that differ by less are taken for equal: a view of load is no more exact than this.
const TIE_PERMILLE: u32 = 50;

/// What a process asks of its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Need {
    /// `limits.memory` of its image.
    pub memory: ByteSize,
    /// `limits.state` of its image.
    pub state: ByteSize,
}

impl Default for Need {
    /// Nothing but a sandbox.
    fn default() -> Self {
        Self { memory: ByteSize::new(0), state: ByteSize::new(0) }
    }
}

/// A node, as it was last heard of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView {
    /// Its name, unique among the nodes.
    pub name: String,
    /// Whether it takes new processes; not while it drains.
    pub open: bool,
    /// Memory that no sandbox's limit lays claim to; `u64::MAX` bytes where limits are ceilings and reserve nothing.
    pub memory_free: ByteSize,
    /// Disk for state that no process's limit lays claim to; `u64::MAX` bytes likewise.
    pub state_free: ByteSize,
    /// How many more sandboxes it takes.
    pub sandboxes_free: u64,
    /// How busy its cores are, in permille; over 1000 where work queues up.
    pub load_permille: u32,
    /// Whether the image is there.
    pub has_image: bool,
    /// Whether the process's state is there, from an earlier run.
    pub has_state: bool,
}

/// The first thing that a node lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lack {
    /// It takes no new processes.
    Closed,
    /// Memory.
    Memory {
        /// How much it has.
        free: ByteSize,
    },
    /// Disk for state.
    State {
        /// How much it has.
        free: ByteSize,
    },
    /// Room for one more sandbox.
    Sandboxes,
}

/// Why no node was chosen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There are none.
    #[error("there is no node; start one")]
    NoNodes,
    /// None fits.
    #[error("no node has room for the process: {}; add a node, or lower the image's limits", lacks_text(.need, .lacks))]
    NoneFits {
        /// What was asked for.
        need: Need,
        /// What each node lacks, by its name.
        lacks: BTreeMap<String, Lack>,
    },
}

fn lacks_text(need: &Need, lacks: &BTreeMap<String, Lack>) -> String {
    let text = |(name, lack): (&String, &Lack)| match lack {
        Lack::Closed => format!("{name} takes no new processes"),
        Lack::Memory { free } => format!("{name} has {free} of the {} of memory", need.memory),
        Lack::State { free } => format!("{name} has {free} of the {} of disk for state", need.state),
        Lack::Sandboxes => format!("{name} runs as many sandboxes as it may"),
    };
    lacks.iter().map(text).collect::<Vec<_>>().join(", ")
}

/// Chooses the node for a process. The same arguments give the same node.
///
/// # Errors
/// [`Refusal`] where none fits; it says what each node lacks.
pub fn place<'n>(need: &Need, nodes: &'n [NodeView], seed: u64) -> Result<&'n NodeView, Refusal> {
    if nodes.is_empty() {
        return Err(Refusal::NoNodes);
    }
    let fitting = || nodes.iter().filter(|node| lack(need, node).is_none());
    let Some(least) = fitting().map(cost).min() else {
        let lacks = nodes.iter().filter_map(|node| Some((node.name.clone(), lack(need, node)?))).collect();
        return Err(Refusal::NoneFits { need: *need, lacks });
    };
    let equals = fitting().filter(|node| cost(node) - least < TIE_PERMILLE);
    equals.min_by_key(|node| (mix(seed, &node.name), &node.name)).ok_or(Refusal::NoNodes)
}

fn lack(need: &Need, node: &NodeView) -> Option<Lack> {
    let lacks = [
        (!node.open, Lack::Closed),
        (node.memory_free < need.memory, Lack::Memory { free: node.memory_free }),
        (node.state_free < need.state, Lack::State { free: node.state_free }),
        (node.sandboxes_free == 0, Lack::Sandboxes),
    ];
    lacks.into_iter().find(|(lacking, _)| *lacking).map(|(_, lack)| lack)
}

fn cost(node: &NodeView) -> u32 {
    let image = if node.has_image { 0 } else { FETCH_IMAGE_PERMILLE };
    let state = if node.has_state { 0 } else { FETCH_STATE_PERMILLE };
    node.load_permille.saturating_add(image + state)
}

/// A number that looks random and depends on the seed and the name only: FNV-1a over the name, then the
/// finisher of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014). Not
/// the standard hasher, which may change.
fn mix(seed: u64, name: &str) -> u64 {
    let hash = name.bytes().fold(seed ^ 0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEED: Need = Need { memory: ByteSize::mib(256), state: ByteSize::mib(1024) };

    fn node(name: &str) -> NodeView {
        NodeView {
            name: name.to_owned(),
            open: true,
            memory_free: ByteSize::mib(1024),
            state_free: ByteSize::mib(10_240),
            sandboxes_free: 10,
            load_permille: 100,
            has_image: false,
            has_state: false,
        }
    }

    fn chosen(nodes: &[NodeView], seed: u64) -> &str {
        &place(&NEED, nodes, seed).unwrap().name
    }

    #[test]
    fn the_same_seed_decides_the_same_in_any_order() {
        let nodes: Vec<NodeView> = ["a", "b", "c", "d"].map(node).into();
        let turned: Vec<NodeView> = nodes.iter().rev().cloned().collect();
        for seed in 0..200 {
            assert_eq!(chosen(&nodes, seed), chosen(&nodes, seed));
            assert_eq!(chosen(&nodes, seed), chosen(&turned, seed));
        }
    }

    /// Another release must not decide otherwise on a replayed seed without someone noticing.
    #[test]
    fn decisions_are_pinned() {
        let nodes: Vec<NodeView> = ["a", "b", "c", "d"].map(node).into();
        let decisions: String = (0..24).map(|seed| chosen(&nodes, seed)).collect();
        assert_eq!(decisions, PINNED);
    }

    const PINNED: &str = "aacbdddcdbddbcaabccabdda";

    #[test]
    fn equals_share_the_work() {
        let nodes: Vec<NodeView> = ["a", "b", "c", "d"].map(node).into();
        for name in ["a", "b", "c", "d"] {
            let times = (0..4000).filter(|seed| chosen(&nodes, *seed) == name).count();
            assert!((800..1200).contains(&times), "{name} was chosen {times} times of 4000");
        }
    }

    #[test]
    fn the_less_loaded_node_wins_beyond_the_noise() {
        let nodes =
            [NodeView { load_permille: 100, ..node("a") }, NodeView { load_permille: 150, ..node("b") }];
        assert!((0..100).all(|seed| chosen(&nodes, seed) == "a"));
        let nodes =
            [NodeView { load_permille: 101, ..node("a") }, NodeView { load_permille: 150, ..node("b") }];
        assert!((0..100).any(|seed| chosen(&nodes, seed) == "b"));
    }

    #[test]
    fn what_is_there_already_is_worth_some_load_and_not_all() {
        let with_state =
            |load_permille| [node("a"), NodeView { has_state: true, load_permille, ..node("b") }];
        assert_eq!(chosen(&with_state(400), 0), "b");
        assert_eq!(chosen(&with_state(600), 0), "a");
        let with_image =
            |load_permille| [node("a"), NodeView { has_image: true, load_permille, ..node("b") }];
        assert_eq!(chosen(&with_image(200), 0), "b");
        assert_eq!(chosen(&with_image(400), 0), "a");
    }

    #[test]
    fn a_node_that_lacks_anything_is_never_chosen() {
        let full = [
            NodeView { open: false, has_state: true, ..node("closed") },
            NodeView { memory_free: ByteSize::mib(255), has_state: true, ..node("memory") },
            NodeView { state_free: ByteSize::mib(1), has_state: true, ..node("state") },
            NodeView { sandboxes_free: 0, has_state: true, ..node("sandboxes") },
        ];
        let mut nodes = full.to_vec();
        nodes.push(NodeView { load_permille: u32::MAX, ..node("busy") });
        assert!((0..50).all(|seed| chosen(&nodes, seed) == "busy"));

        let refusal = place(&NEED, &full, 0).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "no node has room for the process: closed takes no new processes, memory has 255MiB of the 256MiB of memory, \
             sandboxes runs as many sandboxes as it may, state has 1MiB of the 1GiB of disk for state; add a node, or lower the \
             image's limits"
        );
        let Refusal::NoneFits { lacks, .. } = refusal else { panic!("{refusal}") };
        assert_eq!(lacks["memory"], Lack::Memory { free: ByteSize::mib(255) });
        assert_eq!(place(&NEED, &[], 0), Err(Refusal::NoNodes));
    }

    #[test]
    fn an_exact_fit_fits() {
        let exact =
            NodeView { memory_free: NEED.memory, state_free: NEED.state, sandboxes_free: 1, ..node("a") };
        assert_eq!(chosen(&[exact], 9), "a");
    }
}
