//! Checksums as docs/FORMAT.md has them, in code of the tests' own.

/// CRC-32 (IEEE), bit by bit.
pub fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |mut crc, byte| {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 };
        }
        crc
    })
}

pub fn mix(x: u64) -> u64 {
    let mut x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

pub fn place(store_id: &[u8], a: u64, b: u64) -> u64 {
    let half = |at: usize| u64::from_le_bytes(store_id[at..at + 8].try_into().unwrap());
    let (low, high) = (half(0), half(8));
    mix(mix(mix(low) ^ high) ^ a).wrapping_add(mix(b ^ high))
}

pub fn mask(place: u64, offset: u32, len: u32) -> u32 {
    (mix(place ^ (u64::from(offset) << 32 | u64::from(len))) >> 32) as u32
}
