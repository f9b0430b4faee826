//! The compressions that NARs and bodies come in: known by name, by suffix, else by magic; decoded
//! within a memory limit that is known before the first byte is decoded.
//!
//! Layer: format (pure).
//!
//! | compression | suffix | magic | memory of the decoder |
//! |---|---|---|---|
//! | none | `.nar` | a NAR's | – |
//! | xz | `.xz` | `fd 37 7a 58 5a 00` | dictionary of the first block, 8 to 127 MiB |
//! | lzma, the format before xz | `.lzma` | `5d`, a size of a dictionary, and no length | that dictionary, 8 to 128 MiB |
//! | zstd | `.zst` | `28 b5 2f fd` | window of the first frame, rounded up to a power of two, 8 to 128 MiB |
//! | bzip2 | `.bz2` | `BZh` | 5 MiB |
//! | gzip | `.gz` | `1f 8b` | 1 MiB |
//! | brotli | `.br` | – | window, up to 16 MiB, and 8 MiB |
//! | lz4 | `.lz4` | `04 22 4d 18` | 10 MiB |
//!
//! Invariants
//! - A later block or frame that needs more memory than the first announced is an error, not more
//!   memory.

use compression_codecs::zstd::params::DParameter;
use compression_codecs::{
    BrotliDecoder, BzDecoder, GzipDecoder, Lz4Decoder, LzmaDecoder, XzDecoder, ZstdDecoder,
};

use crate::stream_decoder::StreamDecoder;

const MIB: u64 = 1024 * 1024;

/// Largest window or dictionary of a decoder: that of `zstd --long` (27 bits), and twice that of
/// `xz -9`.
const WINDOW_BYTES_MAX: u64 = 128 * MIB;

/// Windows are charged with at least this, so that later frames may differ: it is what `xz -6` and
/// `zstd -19` use.
const WINDOW_BYTES_MIN: u64 = 8 * MIB;

/// Bytes at the beginning of a stream that are needed to know magic and memory: a stream header and
/// the longest block header of xz.
pub const COMPRESSED_HEAD_BYTES: usize = 12 + 1024;

/// The names for error messages, in the order in which Nix's manual has them.
pub const SUPPORTED_COMPRESSIONS: &str = "xz, zstd, bzip2, gzip, br, lz4, lzma or none";

/// How a NAR or a body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// xz.
    Xz,
    /// zstd.
    Zstd,
    /// bzip2.
    Bzip2,
    /// gzip.
    Gzip,
    /// brotli.
    Brotli,
    /// lz4.
    Lz4,
    /// The format before xz.
    Lzma,
}

/// A window or dictionary over the limit, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("decoding needs {0} bytes, which is more than allowed")]
pub struct WindowTooLarge(pub u64);

impl Compression {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::None, Self::Xz, Self::Zstd, Self::Bzip2, Self::Gzip, Self::Brotli, Self::Lz4, Self::Lzma];

    /// Its name in a narinfo and in `Content-Encoding`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
            Self::Gzip => "gzip",
            Self::Brotli => "br",
            Self::Lz4 => "lz4",
            Self::Lzma => "lzma",
        }
    }

    /// The one of this name in a narinfo.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|compression| compression.name() == name)
    }

    /// The one that a `Content-Encoding` names.
    pub fn from_content_encoding(value: &str) -> Option<Self> {
        match value.trim().to_ascii_lowercase().as_str() {
            "" | "identity" => Some(Self::None),
            "x-gzip" => Some(Self::Gzip),
            name => Self::from_name(name),
        }
    }

    /// How an upload of this name, that begins with these bytes, is compressed. Nix writes no
    /// suffix for gzip and lzma, so `.nar` alone promises nothing.
    pub fn of_upload(file_name: &str, head: &[u8]) -> Option<Self> {
        match file_name.rsplit_once('.').map(|(_, suffix)| suffix) {
            Some("xz") => Some(Self::Xz),
            Some("zst") => Some(Self::Zstd),
            Some("bz2") => Some(Self::Bzip2),
            Some("gz") => Some(Self::Gzip),
            Some("br") => Some(Self::Brotli),
            Some("lz4") => Some(Self::Lz4),
            Some("lzma") => Some(Self::Lzma),
            _ => Self::of_magic(head),
        }
    }

    fn of_magic(head: &[u8]) -> Option<Self> {
        const MAGICS: [(&[u8], Compression); 6] = [
            (b"\x0d\0\0\0\0\0\0\0nix-archive-1", Compression::None),
            (b"\xfd7zXZ\0", Compression::Xz),
            (b"\x28\xb5\x2f\xfd", Compression::Zstd),
            (b"BZh", Compression::Bzip2),
            (b"\x1f\x8b", Compression::Gzip),
            (b"\x04\x22\x4d\x18", Compression::Lz4),
        ];
        let known = MAGICS.into_iter().find(|(magic, _)| head.starts_with(magic));
        known.map(|(_, compression)| compression).or_else(|| {
            // The format has no magic: these are the properties that all encoders write by default,
            // and the length of a stream whose end is marked.
            let is_stream = head.get(5..13) == Some(&[0xff; 8]);
            (head.first() == Some(&0x5d) && is_stream).then_some(Self::Lzma)
        })
    }

    /// Memory that decoding a stream which begins with these bytes takes, in bytes.
    pub fn decoder_bytes(self, head: &[u8]) -> Result<u64, WindowTooLarge> {
        let window = match self {
            Self::None => return Ok(0),
            Self::Bzip2 => return Ok(5 * MIB),
            Self::Gzip => return Ok(MIB),
            Self::Lz4 => return Ok(10 * MIB),
            Self::Brotli => return brotli_window(head).map(|window| window + 8 * MIB),
            // A stream whose head cannot be read fails in the decoder, with a better message.
            Self::Xz => xz_dictionary(head).unwrap_or(WINDOW_BYTES_MIN),
            Self::Lzma => lzma_dictionary(head).unwrap_or(WINDOW_BYTES_MIN),
            Self::Zstd => zstd_window(head).unwrap_or(WINDOW_BYTES_MIN),
        };
        if window > WINDOW_BYTES_MAX {
            return Err(WindowTooLarge(window));
        }
        // zstd can only be told a power of two: a later frame may take all of it.
        let window = if self == Self::Zstd { window.next_power_of_two() } else { window };
        // One MiB for what a decoder needs beside its window.
        Ok(window.max(WINDOW_BYTES_MIN) + MIB)
    }

    /// A decoder that takes the memory that [`decoder_bytes`](Self::decoder_bytes) named.
    pub fn decoder(self, decoder_bytes: u64) -> StreamDecoder {
        match self {
            Self::None => StreamDecoder::plain(),
            Self::Xz => StreamDecoder::of(XzDecoder::with_memlimit(decoder_bytes), true),
            Self::Lzma => StreamDecoder::of(LzmaDecoder::with_memlimit(decoder_bytes), true),
            Self::Zstd => {
                let window_log = DParameter::window_log_max((decoder_bytes - MIB).ilog2());
                StreamDecoder::of(ZstdDecoder::new_with_params(&[window_log]), true)
            }
            Self::Bzip2 => StreamDecoder::of(BzDecoder::new(), true),
            Self::Gzip => StreamDecoder::of(GzipDecoder::new(), true),
            Self::Brotli => StreamDecoder::of(BrotliDecoder::new(), false),
            Self::Lz4 => StreamDecoder::of(Lz4Decoder::new(), true),
        }
    }
}

/// The window in a zstd frame's header (RFC 8878, 3.1.1.1).
fn zstd_window(head: &[u8]) -> Option<u64> {
    let header = head.strip_prefix(b"\x28\xb5\x2f\xfd")?;
    let (&descriptor, rest) = header.split_first()?;
    let is_single_segment = descriptor & 0x20 != 0;
    if !is_single_segment {
        let window = *rest.first()?;
        let base = 1u64 << (10 + (window >> 3));
        return Some(base + base / 8 * u64::from(window & 7));
    }
    // The window is the content: its size stands after the dictionary's id.
    let dictionary_bytes = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let size_bytes = [1, 2, 4, 8][usize::from(descriptor >> 6)];
    let mut size = [0; 8];
    size[..size_bytes].copy_from_slice(rest.get(dictionary_bytes..dictionary_bytes + size_bytes)?);
    let size = u64::from_le_bytes(size);
    Some(if size_bytes == 2 { size + 256 } else { size })
}

/// The dictionary of LZMA2 in an xz file's first block header (xz file format 1.2.1, 3.1 and
/// 5.3.1).
fn xz_dictionary(head: &[u8]) -> Option<u64> {
    const STREAM_HEADER_BYTES: usize = 12;
    const LZMA2: u64 = 0x21;
    let header = head.get(STREAM_HEADER_BYTES..)?;
    let flags = *header.get(1)?;
    let mut rest = header.get(2..)?;
    for is_present in [flags & 0x40 != 0, flags & 0x80 != 0] {
        if is_present {
            varint(&mut rest)?;
        }
    }
    for _ in 0..=(flags & 3) {
        let filter = varint(&mut rest)?;
        let properties_bytes = usize::try_from(varint(&mut rest)?).ok()?;
        let (properties, after) = rest.split_at_checked(properties_bytes)?;
        rest = after;
        if filter == LZMA2 {
            let bits = u32::from(*properties.first()? & 0x3f);
            return Some(if bits >= 40 {
                u64::from(u32::MAX)
            } else {
                u64::from(2 | bits & 1) << (bits / 2 + 11)
            });
        }
    }
    None
}

/// The dictionary in the header of an lzma stream: four bytes behind the properties.
fn lzma_dictionary(head: &[u8]) -> Option<u64> {
    let size = head.get(1..5)?.first_chunk()?;
    Some(u64::from(u32::from_le_bytes(*size)))
}

/// A number of the xz format: seven bits a byte, the lowest first, at most nine bytes.
fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..63).step_by(7) {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// The window in a brotli stream's first bits (RFC 7932, 9.1). What that RFC reserves is the "large
/// window" extension, with windows of up to 1 GiB, which our decoder would take.
fn brotli_window(head: &[u8]) -> Result<u64, WindowTooLarge> {
    const LARGE_WINDOW: u64 = 1 << 30;
    let first = head.first().copied().unwrap_or(0);
    let bits = match (first & 1, (first >> 1) & 7, (first >> 4) & 7) {
        (0, ..) => 16,
        (_, 0, 0) => 17,
        (_, 0, 1) => return Err(WindowTooLarge(LARGE_WINDOW)),
        (_, 0, n) => 8 + n,
        (_, n, _) => 17 + n,
    };
    Ok(1 << bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_and_magics_tell_the_compression() {
        let nar = b"\x0d\0\0\0\0\0\0\0nix-archive-1\0\0\0";
        for (name, head, compression) in [
            ("x.nar", nar.as_slice(), Some(Compression::None)),
            ("x.nar", b"\x1f\x8b\x08", Some(Compression::Gzip)),
            ("x.nar.xz", b"", Some(Compression::Xz)),
            ("x.nar.zst", b"", Some(Compression::Zstd)),
            ("x.nar.bz2", b"", Some(Compression::Bzip2)),
            ("x.nar.gz", b"", Some(Compression::Gzip)),
            ("x.nar.br", b"", Some(Compression::Brotli)),
            ("x.nar.lz4", b"", Some(Compression::Lz4)),
            ("x.nar.lzip", b"LZIP\x01", None),
            ("x.nar.zstd", b"\x28\xb5\x2f\xfd", Some(Compression::Zstd)),
            ("x", b"\xfd7zXZ\0", Some(Compression::Xz)),
            ("x.nar", b"BZh9", Some(Compression::Bzip2)),
            ("x.nar", b"\x04\x22\x4d\x18", Some(Compression::Lz4)),
            ("x.nar", b"\x5d\0\0\x80\0\xff\xff\xff\xff\xff\xff\xff\xff\0", Some(Compression::Lzma)),
            ("x.nar", b"\x5d\0\0\x80\0\x10\0\0\0\0\0\0\0\0", None),
            ("x.nar.lzma", b"", Some(Compression::Lzma)),
            ("x.nar", b"", None),
            ("x.nar", b"random", None),
        ] {
            assert_eq!(Compression::of_upload(name, head), compression, "{name} {head:?}");
        }
    }

    #[test]
    fn windows_are_read_before_they_are_decoded() {
        // A frame with a window of 128 MiB (descriptor 0, window byte 17 << 3), and one of twice
        // that.
        assert_eq!(Compression::Zstd.decoder_bytes(b"\x28\xb5\x2f\xfd\x00\x88"), Ok(129 * MIB));
        assert_eq!(
            Compression::Zstd.decoder_bytes(b"\x28\xb5\x2f\xfd\x00\x90"),
            Err(WindowTooLarge(256 * MIB))
        );
        // Single segment, content size of 8 bytes.
        let huge = [b"\x28\xb5\x2f\xfd\xe0".as_slice(), &(1u64 << 40).to_le_bytes()].concat();
        assert_eq!(Compression::Zstd.decoder_bytes(&huge), Err(WindowTooLarge(1 << 40)));
        let endless = [b"\x28\xb5\x2f\xfd\xe0".as_slice(), &u64::MAX.to_le_bytes()].concat();
        assert_eq!(Compression::Zstd.decoder_bytes(&endless), Err(WindowTooLarge(u64::MAX)));
        // A window of 9 MiB (exponent 13, mantissa 1): the decoder will allow the next power of
        // two, so that is charged.
        assert_eq!(Compression::Zstd.decoder_bytes(b"\x28\xb5\x2f\xfd\x00\x69"), Ok(17 * MIB));
        assert_eq!(Compression::Zstd.decoder_bytes(b"\x28\xb5\x2f\xfd\x20\x01"), Ok(9 * MIB));
        // Preset 6 has a dictionary of 8 MiB (bits 22), preset 9 one of 64 MiB (bits 28), 30 is 128
        // MiB, 40 is 4 GiB.
        let xz = |bits: u8| [b"\xfd7zXZ\0\0\0\0\0\0\0\x02\0\x21\x01".as_slice(), &[bits]].concat();
        assert_eq!(Compression::Xz.decoder_bytes(&xz(22)), Ok(9 * MIB));
        assert_eq!(Compression::Xz.decoder_bytes(&xz(28)), Ok(65 * MIB));
        assert_eq!(Compression::Xz.decoder_bytes(&xz(31)), Err(WindowTooLarge(192 * MIB)));
        assert_eq!(Compression::Xz.decoder_bytes(&xz(40)), Err(WindowTooLarge(u64::from(u32::MAX))));
        let lzma = |size: u32| [b"\x5d".as_slice(), &size.to_le_bytes(), &[0xff; 8]].concat();
        assert_eq!(Compression::Lzma.decoder_bytes(&lzma(1 << 16)), Ok(9 * MIB));
        assert_eq!(Compression::Lzma.decoder_bytes(&lzma(1 << 26)), Ok(65 * MIB));
        assert_eq!(
            Compression::Lzma.decoder_bytes(&lzma(u32::MAX)),
            Err(WindowTooLarge(u64::from(u32::MAX)))
        );
        assert_eq!(Compression::Brotli.decoder_bytes(b"\x11"), Err(WindowTooLarge(1 << 30)));
        assert_eq!(Compression::Brotli.decoder_bytes(b"\x0b"), Ok((1 << 22) + 8 * MIB));
        for compression in Compression::ALL {
            for end in 0..4 {
                assert!(compression.decoder_bytes(&b"\x28\xb5\x2f\xfd"[..end]).is_ok());
            }
        }
    }
}
