//! Small pictures of PNG and JPEG files.
//!
//! Each process has a size of its own, and keeps the last pictures that it made under the hash of what it was
//! sent: the same file again costs a look-up.

mod picture;

use denizen::prelude::*;
use sha2::{Digest, Sha256};

/// How many pictures a process keeps.
const KEPT: usize = 32;

/// The longer edge of a thumbnail, in pixels, where nobody asked for another.
const MAX_EDGE: u32 = 256;

/// What a process remembers beside the pictures themselves, which lie under `picture/HASH/EDGE`.
#[state]
struct Gallery {
    /// The longer edge of a thumbnail, in pixels.
    max_edge: u32,
    made: u64,
    reused: u64,
    last: Option<Size>,
    /// The keys of the pictures, oldest first.
    kept: Vec<String>,
}

#[payload]
#[derive(Clone, Copy)]
struct Size {
    width: u32,
    height: u32,
}

impl Default for Gallery {
    fn default() -> Gallery {
        Gallery { max_edge: MAX_EDGE, made: 0, reused: 0, last: None, kept: Vec::new() }
    }
}

#[derive(Deserialize, Serialize)]
struct MaxEdge {
    max_edge: u32,
}

#[derive(Serialize)]
struct Seen {
    max_edge: u32,
    made: u64,
    reused: u64,
    /// Width and height of the last thumbnail.
    last: Option<[u32; 2]>,
}

/// Makes a thumbnail: a PNG or JPEG file in, a PNG out whose longer edge is at most `max_edge`. A smaller
/// picture keeps its size.
#[function]
fn thumbnail(cx: &mut Context, file: &[u8]) -> Result<Reply> {
    let max_edge = cx.get::<Gallery>("gallery")?.map_or(MAX_EDGE, |gallery| gallery.max_edge.to_native());
    let key = format!("picture/{}/{max_edge}", hex(&Sha256::digest(file)));
    if let Some(png) = cx.get_bytes(&key)? {
        // One number of the record changes: in place, without making a `Gallery` of it.
        cx.update::<Gallery, _>("gallery", |gallery| {
            munge!(let ArchivedGallery { mut reused, .. } = gallery);
            *reused += 1;
        })?;
        return Ok(Reply::new("image/png", png));
    }
    let small = picture::shrink(file, max_edge)?;
    cx.put_bytes(&key, &small.png)?;
    let mut gallery = cx.edit_or_default::<Gallery>("gallery")?;
    gallery.made += 1;
    gallery.last = Some(Size { width: small.width, height: small.height });
    gallery.kept.push(key);
    if gallery.kept.len() > KEPT {
        cx.delete(gallery.kept.remove(0))?;
    }
    println!("{} bytes to {}x{}", file.len(), small.width, small.height);
    Ok(Reply::new("image/png", small.png))
}

/// Sets the longer edge of this process's thumbnails: 1 to 2048 pixels.
#[function]
fn resize_to(cx: &mut Context, Json(wanted): Json<MaxEdge>) -> Result<Json<MaxEdge>> {
    if !(1..=2048).contains(&wanted.max_edge) {
        return Err(bad_input("max_edge is 1 to 2048 pixels"));
    }
    cx.edit_or_default::<Gallery>("gallery")?.max_edge = wanted.max_edge;
    Ok(Json(wanted))
}

/// What this process has made so far.
#[function]
fn gallery(cx: &Context) -> Result<Json<Seen>> {
    let Some(gallery) = cx.get::<Gallery>("gallery")? else {
        return Ok(Json(Seen { max_edge: MAX_EDGE, made: 0, reused: 0, last: None }));
    };
    let last = gallery.last.as_ref().map(|size| [size.width.to_native(), size.height.to_native()]);
    let (made, reused) = (gallery.made.to_native(), gallery.reused.to_native());
    Ok(Json(Seen { max_edge: gallery.max_edge.to_native(), made, reused, last }))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

denizen::export!(thumbnail, resize_to, gallery);

#[cfg(test)]
mod tests;
