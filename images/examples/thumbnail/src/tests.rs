//! Real picture files, in the process in memory that the SDK brings.
//!
//! `harbour.png` and `harbour.jpg` are one drawn scene, 320 by 200 pixels; `turned.jpg` is the same as a
//! camera held upright stores it: 320 by 200 with the EXIF orientation "turn right".

use denizen::FailKind;
use denizen::testing::{Answer, Process, process};
use image::{DynamicImage, GenericImageView, ImageFormat, Rgb, RgbImage};
use std::io::Cursor;

const PNG: &[u8] = include_bytes!("../tests/harbour.png");
const JPEG: &[u8] = include_bytes!("../tests/harbour.jpg");
const TURNED: &[u8] = include_bytes!("../tests/turned.jpg");

fn picture(answer: &Answer) -> DynamicImage {
    assert_eq!(answer.content_type, "image/png");
    image::load_from_memory_with_format(&answer.body, ImageFormat::Png).unwrap()
}

fn thumbnail(album: &mut Process, file: &[u8]) -> DynamicImage {
    picture(&album.call("thumbnail", file).unwrap())
}

fn encoded(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    picture.write_to(&mut file, format).unwrap();
    file.into_inner()
}

/// Whether a pixel is about this colour.
fn is_near(picture: &DynamicImage, (x, y): (u32, u32), wanted: [u8; 3]) -> bool {
    let found = picture.get_pixel(x, y).0;
    wanted.iter().zip(found).all(|(wanted, found)| wanted.abs_diff(found) < 40)
}

const SKY: [u8; 3] = [150, 190, 230];
const SEA: [u8; 3] = [20, 70, 110];

#[test]
fn png_and_jpeg_become_small_png() {
    for file in [PNG, JPEG] {
        let small = thumbnail(&mut process!(), file);
        assert_eq!(small.dimensions(), (256, 160));
        assert!(is_near(&small, (20, 10), SKY) && is_near(&small, (20, 150), SEA));
    }
}

#[test]
fn each_process_has_its_size_and_remembers() {
    let mut album = process!();
    album.call("resize_to", r#"{"max_edge":64}"#).unwrap();
    let first = album.call("thumbnail", JPEG).unwrap();
    assert_eq!(picture(&first).dimensions(), (64, 40));
    assert_eq!(album.call("thumbnail", JPEG).unwrap().body, first.body);
    assert_eq!(
        album.call("gallery", "").unwrap().text(),
        r#"{"max_edge":64,"made":1,"reused":1,"last":[64,40]}"#
    );
    assert_eq!(
        process!().call("gallery", "").unwrap().text(),
        r#"{"max_edge":256,"made":0,"reused":0,"last":null}"#
    );
    for refused in [r#"{"max_edge":0}"#, r#"{"max_edge":4096}"#] {
        assert_eq!(album.call("resize_to", refused).unwrap_err().kind, FailKind::BadInput);
    }
}

#[test]
fn a_camera_that_was_held_upright_is_believed() {
    let small = thumbnail(&mut process!(), TURNED);
    assert_eq!(small.dimensions(), (160, 256));
    // What was the left edge is now on top: sky on the right, sea on the left.
    assert!(is_near(&small, (150, 20), SKY) && is_near(&small, (10, 20), SEA));
}

#[test]
fn a_small_picture_keeps_its_size_and_its_transparency() {
    let clear = DynamicImage::new_rgba8(10, 7);
    let small = thumbnail(&mut process!(), &encoded(&clear, ImageFormat::Png));
    assert_eq!((small.dimensions(), small.get_pixel(0, 0).0), ((10, 7), [0, 0, 0, 0]));
}

#[test]
fn old_pictures_make_room_for_new_ones() {
    let mut album = process!();
    for shade in 0..40 {
        let one = RgbImage::from_pixel(8, 8, Rgb([shade, 0, 0]));
        thumbnail(&mut album, &encoded(&one.into(), ImageFormat::Png));
    }
    assert_eq!(album.keys().len(), super::KEPT + 1);
}

#[test]
fn what_is_no_picture_is_the_callers_fault_and_changes_nothing() {
    let mut album = process!();
    let mut broken = PNG.to_vec();
    let middle = broken.len() / 2;
    broken[middle] ^= 0xff;
    let gif = b"GIF89a\x01\x00\x01\x00\x00\x00\x00;";
    for file in [&b""[..], b"hello", gif, &PNG[..PNG.len() / 2], &JPEG[..100], &broken] {
        let failure = album.call("thumbnail", file).unwrap_err();
        assert_eq!(failure.kind, FailKind::BadInput, "{}", failure.message);
    }
    assert_eq!(album.keys(), [""; 0]);
}

#[test]
fn a_picture_that_would_fill_the_memory_is_refused_before_it_does() {
    for (file, why) in [(claiming(20_000, 10), "dimensions"), (claiming(16_000, 16_000), "memory")] {
        let failure = process!().call("thumbnail", file).unwrap_err();
        assert_eq!(failure.kind, FailKind::BadInput);
        assert!(failure.message.to_lowercase().contains("limit"), "{why}: {}", failure.message);
    }
}

/// A PNG file that says that it has this size.
fn claiming(width: u32, height: u32) -> Vec<u8> {
    let mut file = encoded(&DynamicImage::new_rgb8(4, 4), ImageFormat::Png);
    // Signature (8), length and kind of the first chunk (8), then width and height; the checksum follows 13
    // bytes of content.
    file[16..20].copy_from_slice(&width.to_be_bytes());
    file[20..24].copy_from_slice(&height.to_be_bytes());
    let checksum = crc32(&file[12..29]);
    file[29..33].copy_from_slice(&checksum.to_be_bytes());
    file
}

/// The checksum of PNG chunks (RFC 2083, appendix 15).
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}
