//! One file per command that ends by itself. `dev`, which does not, has a folder of its own.

mod data_port;
pub(crate) mod demo;
pub(crate) mod doctor;
pub(crate) mod image;
pub(crate) mod invoke;
pub(crate) mod load;
pub(crate) mod logs;
pub(crate) mod new;
pub(crate) mod processes;
pub(crate) mod state;
pub(crate) mod token;

use denizen_client::Node;

use crate::{cli::Everywhere, failure::Failure, place};

/// The node that a command talks to.
pub(crate) fn node(everywhere: &Everywhere) -> Result<Node, Failure> {
    Ok(Node::on_directory(&place::node_directory(everywhere.dir.as_deref())?)?)
}
