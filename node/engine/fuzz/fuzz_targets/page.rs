//! Any bytes as an index page: an error or a page, never a panic. The checksum is put right first, so that what is behind it is reached.
#![no_main]

use denizen_engine::check_pages;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut page = bytes.to_vec();
    if page.len() >= 16 {
        page[..4].copy_from_slice(b"DZpg");
        page[8..16].fill(0);
        let crc = crc_of(&page);
        page[8..16].copy_from_slice(&crc.to_le_bytes());
    }
    let _ = check_pages(Some(0), |number| (number < 4).then(|| page.clone()));
});

/// CRC-64/NVME, bit by bit: slow, and not the code under test.
fn crc_of(bytes: &[u8]) -> u64 {
    let mut crc = !0_u64;
    for byte in bytes {
        crc ^= u64::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x9A6C_9329_AC4B_C9B5 } else { crc >> 1 };
        }
    }
    !crc
}
