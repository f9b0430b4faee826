//! Nix's own formats, without I/O: store paths, hashes, nix-base32, narinfo, signatures, NAR reader, writer and listing.
