//! Bytes at rest: holes, chunks, frames, packs, recipes and the splicer. Pure.
