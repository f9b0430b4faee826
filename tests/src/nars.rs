//! NARs written word by word, good and bad, and the store paths that tests give them.

use dormer_nix::NarHash;

/// One word of a NAR: its length, its bytes, zeros up to a multiple of eight.
pub fn word(bytes: &[u8]) -> Vec<u8> {
    let mut out = (bytes.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(bytes);
    out.resize(out.len().next_multiple_of(8), 0);
    out
}

/// Several words.
pub fn words<const N: usize>(all: [&[u8]; N]) -> Vec<u8> {
    all.iter().flat_map(|bytes| word(bytes)).collect()
}

/// The NAR of one file.
pub fn file(contents: &[u8]) -> Vec<u8> {
    words([b"nix-archive-1", b"(", b"type", b"regular", b"contents", contents, b")"])
}

/// A directory of empty files, in the order given, so that it may be a bad one.
pub fn directory(names: &[&[u8]]) -> Vec<u8> {
    let mut nar = words([b"nix-archive-1", b"(", b"type", b"directory"]);
    for name in names {
        nar.extend(words([b"entry", b"(", b"name", name, b"node"]));
        nar.extend(words([b"(", b"type", b"regular", b"contents", b"", b")", b")"]));
    }
    nar.extend(word(b")"));
    nar
}

/// A store path hash that belongs to this NAR alone, as far as tests care.
pub fn path_hash(nar: &[u8]) -> String {
    NarHash::digest(nar).to_nix32()[..32].to_owned()
}

/// `nar_hash` as Attic's client writes it.
pub fn nar_hash_hex(nar: &[u8]) -> String {
    format!("sha256:{}", NarHash::digest(nar).to_hex())
}

/// The metadata that Attic's client sends with a NAR, as it sends it.
pub fn attic_info(cache: &str, nar: &[u8], name: &str) -> String {
    let (hash, nar_hash, size) = (path_hash(nar), nar_hash_hex(nar), nar.len());
    format!(
        r#"{{"cache":"{cache}","store_path_hash":"{hash}","store_path":"/nix/store/{hash}-{name}","references":[],"system":"x86_64-linux","deriver":null,"sigs":[],"ca":null,"nar_hash":"{nar_hash}","nar_size":{size}}}"#
    )
}

#[cfg(test)]
mod tests {
    use dormer_nix::nar::{Node, encode_tree};

    use super::*;

    #[test]
    fn what_is_written_here_is_what_the_writer_writes() {
        for contents in [&b""[..], b"x", b"eight by", b"nine byte"] {
            assert_eq!(file(contents), encode_tree(&Node::file(contents)));
        }
        let names: [&[u8]; 3] = [b"a", b"b", b"c"];
        assert_eq!(
            directory(&names),
            encode_tree(&Node::directory(names.map(|name| (name, Node::file("")))))
        );
    }
}
