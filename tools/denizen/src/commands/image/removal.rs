//! `denizen image rm` and `prune`. What may go is the node's decision; here is only which image is meant.

use denizen_client::{ImageSummary, Node};
use serde_json::json;

use super::super::node;
use crate::{
    cli::{self, Everywhere},
    failure::Failure,
    terminal::Terminal,
    units,
};

/// Digits that an image may be named by: fewer are a slip rather than a name.
const FEWEST_DIGITS: usize = 4;

/// Whether this can be the beginning of an id that names an image.
pub(super) fn is_beginning(text: &str) -> bool {
    text.len() >= FEWEST_DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Digits of a whole id.
const ALL_DIGITS: usize = 64;

pub(super) fn rm(terminal: &Terminal, everywhere: &Everywhere, typed: &cli::ImageRm) -> Result<(), Failure> {
    let node = node(everywhere)?;
    for name in &typed.images {
        let image = meant(&node, name)?;
        node.remove_image(&image)?;
        if terminal.json {
            terminal.document(&json!({ "image": image, "removed": true }))?;
        } else {
            terminal.answer(format!("image {} is removed", units::short_id(&image)))?;
        }
    }
    Ok(())
}

/// A whole id stands for itself, so that a damaged image, which no list shows, can be named, too.
fn meant(node: &Node, name: &str) -> Result<String, Failure> {
    let name = name.to_ascii_lowercase();
    if name.len() == ALL_DIGITS { Ok(name) } else { the_one(&node.images()?, &name) }
}

fn the_one(images: &[ImageSummary], beginning: &str) -> Result<String, Failure> {
    if !is_beginning(beginning) {
        return Err(Failure::usage(format!("`{beginning}` does not name an image")).remedy(format!(
            "write an id, or its first digits, {FEWEST_DIGITS} at least; `denizen image ls` lists them"
        )));
    }
    let mut found = images.iter().filter(|image| image.image.starts_with(beginning));
    match (found.next(), found.next()) {
        (Some(image), None) => Ok(image.image.clone()),
        (None, _) => {
            Err(Failure::usage(format!("there is no image {beginning}"))
                .remedy("`denizen image ls` lists them"))
        }
        (Some(_), Some(_)) => Err(Failure::usage(format!("several images begin with {beginning}"))
            .remedy("write more of its digits")),
    }
}

pub(super) fn prune(terminal: &Terminal, everywhere: &Everywhere) -> Result<(), Failure> {
    let removed = node(everywhere)?.prune_images()?;
    let bytes = removed.iter().map(|image| image.bytes).sum::<u64>();
    if terminal.json {
        return terminal.document(&json!({ "removed": removed, "bytes": bytes }));
    }
    for image in &removed {
        terminal.answer(format!("image {} is removed", units::short_id(&image.image)))?;
    }
    let count = units::count(removed.len() as u64, "image", "images");
    terminal.say(format!("{count} removed, {} freed", units::bytes(bytes)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{ImageSummary, the_one};

    #[test]
    fn the_beginning_of_an_id_names_one_image_or_none() {
        let image = |id: &str| -> ImageSummary {
            serde_json::from_value(serde_json::json!({ "image": id })).unwrap()
        };
        let images = [image("abcd1"), image("abcd2"), image("ef01")];
        assert_eq!(the_one(&images, "abcd2").unwrap(), "abcd2");
        assert_eq!(the_one(&images, "ef01").unwrap(), "ef01");
        for (name, word) in
            [("abcd", "several"), ("0000", "no image"), ("abc", "4 at least"), ("../x", "4 at least")]
        {
            let text = the_one(&images, name).unwrap_err().to_text(crate::terminal::Paint::PLAIN);
            assert!(text.contains(word), "{name}: {text}");
        }
    }
}
