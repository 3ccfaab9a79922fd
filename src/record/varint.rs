//! Zigzag variable-length integers, as protocol buffers and Kafka's records write them.

/// The most bytes that an `i64` takes.
pub(super) const MAX_VARLONG_LEN: usize = 10;
/// The most bytes that an `i32` takes.
pub(super) const MAX_VARINT_LEN: usize = 5;

/// Appends `value`.
pub(super) fn put(out: &mut Vec<u8>, value: i64) {
    let mut rest = zigzag(value);
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// How many bytes [`put`] takes for `value`.
pub(super) const fn len(value: i64) -> usize {
    let bits = 64 - zigzag(value).leading_zeros() as usize;
    if bits == 0 { 1 } else { bits.div_ceil(7) }
}

/// Reads an `i64` off the front of `input`. `None` where the input ends first or the number does not end in time.
pub(super) fn take_long(input: &mut &[u8]) -> Option<i64> {
    let mut zigzagged = 0u64;
    for (i, &byte) in input.iter().take(MAX_VARLONG_LEN).enumerate() {
        zigzagged |= u64::from(byte & 0x7f).checked_shl(7 * i as u32)?;
        if byte < 0x80 {
            *input = &input[i + 1..];
            return Some((zigzagged >> 1) as i64 ^ -((zigzagged & 1) as i64));
        }
    }
    None
}

/// Reads an `i32`; `None` also where the number does not fit one.
pub(super) fn take_int(input: &mut &[u8]) -> Option<i32> {
    let mut rest = *input;
    let value = i32::try_from(take_long(&mut rest)?).ok()?;
    if input.len() - rest.len() > MAX_VARINT_LEN {
        return None;
    }
    *input = rest;
    Some(value)
}

const fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        for (value, bytes) in [
            (0i64, &[0x00][..]),
            (-1, &[0x01]),
            (1, &[0x02]),
            (63, &[0x7e]),
            (-64, &[0x7f]),
            (64, &[0x80, 0x01]),
            (i64::from(i32::MAX), &[0xfe, 0xff, 0xff, 0xff, 0x0f]),
            (
                i64::MIN,
                &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
            ),
        ] {
            let mut out = Vec::new();
            put(&mut out, value);
            assert_eq!(out, bytes, "{value}");
            assert_eq!(len(value), bytes.len(), "{value}");
            assert_eq!(take_long(&mut &out[..]), Some(value));
        }
    }

    #[test]
    fn a_number_must_end() {
        assert_eq!(take_long(&mut &[][..]), None);
        assert_eq!(take_long(&mut &[0x80][..]), None);
        assert_eq!(take_long(&mut &[0x80; 11][..]), None);
        let mut too_big = Vec::new();
        put(&mut too_big, i64::from(i32::MAX) + 1);
        assert_eq!(take_int(&mut &too_big[..]), None);
    }

    proptest::proptest! {
        #[test]
        fn numbers_come_back(value: i64) {
            let mut out = Vec::new();
            put(&mut out, value);
            proptest::prop_assert_eq!(len(value), out.len());
            let mut rest = &out[..];
            proptest::prop_assert_eq!(take_long(&mut rest), Some(value));
            proptest::prop_assert!(rest.is_empty());
        }
    }
}
