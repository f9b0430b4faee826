//! nix-base32: Nix's own base 32, with its own alphabet and with the digits in reverse order.
//!
//! The encoder reads the bytes as one little-endian number and writes the most significant digit
//! first. The *last* character therefore holds the first five bits. A text is valid only if
//! encoding its bytes gives the same text: its length must be one that a whole number of bytes
//! encodes to, and the unused top bits must be zero.

use crate::error::{Error, Result};

/// The digits: `0-9a-z` without `e`, `o`, `u` and `t`.
pub const ALPHABET: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";

/// Marks bytes that are not digits in [`DIGITS`].
const NO_DIGIT: u8 = 0xff;

/// Value of each digit.
const DIGITS: [u8; 256] = {
    let mut digits = [NO_DIGIT; 256];
    let mut value = 0u8;
    while value < 32 {
        digits[ALPHABET[value as usize] as usize] = value;
        value += 1;
    }
    digits
};

/// Whether a byte is a digit of nix-base32. Upper-case letters are not.
pub const fn is_char(byte: u8) -> bool {
    DIGITS[byte as usize] != NO_DIGIT
}

/// Number of characters that `bytes` bytes encode to: 20 bytes to 32, 32 bytes to 52.
pub const fn encoded_len(bytes: usize) -> usize {
    (bytes * 8).div_ceil(5)
}

/// Encodes any number of bytes.
pub fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(encoded_len(bytes.len()));
    for index in (0..encoded_len(bytes.len())).rev() {
        let (byte, shift) = (index * 5 / 8, index * 5 % 8);
        let low = u16::from(bytes[byte]);
        let high = bytes.get(byte + 1).map_or(0, |&next| u16::from(next) << 8);
        let digit = ((low | high) >> shift) & 0x1f;
        text.push(char::from(ALPHABET[usize::from(digit)]));
    }
    text
}

/// Decodes a text of any length.
pub fn decode(text: &str) -> Result<Vec<u8>> {
    let mut bytes = vec![0; text.len() * 5 / 8];
    decode_into(text, &mut bytes)?;
    Ok(bytes)
}

/// Decodes a text that must hold exactly `N` bytes, without allocating.
pub fn decode_array<const N: usize>(text: &str) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    decode_into(text, &mut bytes)?;
    Ok(bytes)
}

/// Decodes into zeroed `bytes`. The length of the text must match their number.
fn decode_into(text: &str, bytes: &mut [u8]) -> Result<()> {
    if text.len() != encoded_len(bytes.len()) {
        return Err(Error::nix32(text));
    }
    for (index, &char) in text.as_bytes().iter().rev().enumerate() {
        let digit = DIGITS[usize::from(char)];
        if digit == NO_DIGIT {
            return Err(Error::nix32(text));
        }
        let (byte, shift) = (index * 5 / 8, index * 5 % 8);
        let [low, high] = (u16::from(digit) << shift).to_le_bytes();
        bytes[byte] |= low;
        match bytes.get_mut(byte + 1) {
            Some(next) => *next |= high,
            None if high != 0 => return Err(Error::nix32(text)),
            None => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nix_and_we_encode_alike() {
        let vectors =
            include_str!("../tests/data/hash-vectors.txt").lines().filter(|line| !line.starts_with('#'));
        let mut count = 0;
        for line in vectors {
            let fields: Vec<&str> = line.split(' ').collect();
            let bytes = hex::decode(fields[1]).unwrap();
            assert_eq!(encode(&bytes), fields[2]);
            assert_eq!(decode(fields[2]).unwrap(), bytes);
            count += 1;
        }
        assert_eq!(count, 16, "four messages by four algorithms");
    }

    #[test]
    fn letters_outside_the_alphabet_are_refused() {
        for letter in ["e", "o", "u", "t", "A", "-", " ", "é"] {
            assert!(decode(&format!("0{letter}")).is_err(), "{letter}");
        }
    }

    #[test]
    fn lengths_no_bytes_encode_to_are_refused() {
        for len in [1, 3, 6, 9, 11, 14] {
            assert!(decode(&"0".repeat(len)).is_err(), "{len}");
        }
    }

    #[test]
    fn stray_bits_are_refused() {
        assert_eq!(decode("7z").unwrap(), [255]);
        assert!(decode("8z").is_err());
        assert!(decode_array::<1>("zz").is_err());
    }

    #[test]
    fn an_array_of_another_size_is_refused() {
        assert!(decode_array::<2>("7z").is_err());
        assert!(decode_array::<0>("7z").is_err());
    }

    proptest! {
        #[test]
        fn decode_undoes_encode(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let text = encode(&bytes);
            prop_assert!(text.bytes().all(is_char));
            prop_assert_eq!(decode(&text).unwrap(), bytes);
        }

        #[test]
        fn what_decodes_is_canonical(text in "[0-9a-df-np-z]{0,60}") {
            if let Ok(bytes) = decode(&text) {
                prop_assert_eq!(encode(&bytes), text);
            }
        }
    }
}
