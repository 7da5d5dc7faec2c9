//! From a file that somebody sent to a small picture, within bounds: a file of a few kilobytes can claim to
//! be a picture of gigabytes.

use denizen::prelude::*;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};
use std::io::Cursor;

/// The longest edge of a picture that is decoded, in pixels.
const LONGEST_EDGE: u32 = 16_384;

/// The most memory that decoding may take: 32 megapixels of four bytes, and some to work in.
const DECODING_BYTES: u64 = 160 << 20;

/// A picture as a PNG file.
pub(crate) struct Small {
    pub(crate) png: Vec<u8>,
    pub(crate) width: u32,
    pub(crate) height: u32,
}

/// The picture in `file`, upright, with its longer edge at most `max_edge` pixels.
pub(crate) fn shrink(file: &[u8], max_edge: u32) -> Result<Small> {
    let whole =
        decode(file).map_err(|error| bad_input(format_args!("this picture cannot be read: {error}")))?;
    let small = if whole.width().max(whole.height()) > max_edge {
        whole.thumbnail(max_edge, max_edge)
    } else {
        whole
    };
    // A PNG of sixteen bits per channel, or of floats, would be no small file.
    let small = if small.color().has_alpha() {
        small.into_rgba8().into()
    } else {
        DynamicImage::from(small.into_rgb8())
    };
    let mut png = Cursor::new(Vec::new());
    small.write_to(&mut png, ImageFormat::Png)?;
    Ok(Small { png: png.into_inner(), width: small.width(), height: small.height() })
}

fn decode(file: &[u8]) -> image::ImageResult<DynamicImage> {
    let mut limits = Limits::default();
    limits.max_image_width = Some(LONGEST_EDGE);
    limits.max_image_height = Some(LONGEST_EDGE);
    limits.max_alloc = Some(DECODING_BYTES);

    let mut reader = ImageReader::new(Cursor::new(file)).with_guessed_format()?;
    reader.limits(limits.clone());
    let mut decoder = reader.into_decoder()?;
    // The decoder knows the limits for what it takes itself; the pixels are ours.
    limits.reserve(decoder.total_bytes())?;
    decoder.set_limits(limits)?;
    // How a camera was held.
    let orientation = decoder.orientation()?;
    let mut picture = DynamicImage::from_decoder(decoder)?;
    picture.apply_orientation(orientation);
    Ok(picture)
}
