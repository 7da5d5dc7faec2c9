//! Which layers of isolation this node has.

use serde::{Deserialize, Serialize};

use crate::cgroup::{Controller, Parents};

/// The layers of a spawner's sandboxes: found by doing, not by asking.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IsolationReport {
    /// Every layer, active ones too.
    pub layers: Vec<Layer>,
}

impl IsolationReport {
    /// The layers that are missing.
    pub fn missing(&self) -> impl Iterator<Item = &Layer> {
        self.layers.iter().filter(|layer| !layer.active)
    }
}

/// One layer of isolation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// `namespaces`, `seccomp`, `uid-per-sandbox`, `memory-cgroup`, `cpu-cgroup` or `pids-cgroup`.
    pub name: String,
    /// In force for every sandbox.
    pub active: bool,
    /// What is not protected while it is missing; empty when active.
    pub consequence: String,
    /// What to do about it; empty when active.
    pub remedy: String,
}

/// A layer that is there, or what follows when it is not.
fn layer(name: &str, missing: Option<(&str, String)>) -> Layer {
    let active = missing.is_none();
    let (consequence, remedy) = missing.unwrap_or_default();
    Layer { name: name.into(), active, consequence: consequence.into(), remedy }
}

/// Puts the report together from what the spawner's trial and the control groups showed.
pub(crate) fn report(own_uids: bool, seccomp: bool, parents: &Parents) -> IsolationReport {
    let uids = (!own_uids).then(|| {
        let consequence =
            "sandboxes share one user id; namespaces and system-call filters alone keep them apart";
        (consequence, "Run the node as root (or with CAP_SETUID over 0x70000000 to 0x70003fff)".to_owned())
    });
    let filters = (!seccomp).then(|| {
        let consequence = "tenant code may make any system call";
        (consequence, "Use a kernel with CONFIG_SECCOMP_FILTER".to_owned())
    });
    let mut layers = vec![
        // Without namespaces there is no spawner, and so no report.
        layer("namespaces", None),
        layer("seccomp", filters),
        layer("uid-per-sandbox", uids),
    ];
    layers.extend(Controller::ALL.map(|controller| group_layer(controller, parents)));
    IsolationReport { layers }
}

/// What follows when sandboxes are in no group of a controller.
pub(crate) fn consequence_without(controller: Controller) -> &'static str {
    match controller {
        Controller::Memory => {
            "a tenant's own memory is limited, but not what the kernel holds for it (files, requests in a ring); it can drain the machine"
        }
        Controller::Cpu => {
            "a busy function can slow every other one down; `cpu` under [limits] has no effect"
        }
        Controller::Pids => "threads are limited by rlimit alone",
    }
}

fn group_layer(controller: Controller, parents: &Parents) -> Layer {
    let name = format!("{}-cgroup", controller.name());
    let why = parents.missing.iter().find(|(missing, _)| *missing == controller).map(|(_, why)| why);
    let missing = why.map(|why| {
        let remedy = format!("Run the node as root, or as a systemd service with Delegate=yes ({why})");
        (consequence_without(controller), remedy)
    });
    layer(&name, missing)
}
