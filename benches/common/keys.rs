//! The keys and bodies of the benches.

/// Bytes of an outcome.
pub const BODY: [u8; 128] = [0x5a; 128];

/// A UUID-like key of 36 bytes, different for each number.
pub fn key(n: u64) -> [u8; 36] {
    let mut x = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut key = [b'-'; 36];
    for (at, byte) in key.iter_mut().enumerate() {
        if at % 16 == 0 {
            x = (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ n;
        }
        if ![8, 13, 18, 23].contains(&at) {
            *byte = b"0123456789abcdef"[(x >> (at % 16 * 4)) as usize & 15];
        }
    }
    key
}
