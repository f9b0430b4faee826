//! `nix-cache-info`: what a binary cache says of itself.
//!
//! Reading follows Nix, which refuses nothing here: white space around a value, lines without a
//! colon and unknown keys have no meaning, and a value that is no number counts as none.

use std::fmt;

/// What a `nix-cache-info` says. A key that is missing leaves the choice to the reader.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheInfo {
    /// The folder of the store whose paths the cache has. Nix uses no cache of another folder.
    pub store_dir: Option<String>,
    /// Whether the cache answers many look-ups at once quickly.
    pub want_mass_query: Option<bool>,
    /// Nix asks the caches in the order of these numbers, the lowest first.
    pub priority: Option<i32>,
}

impl CacheInfo {
    /// Reads the file. What stands last counts, as in Nix.
    pub fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let mut info = Self::default();
        for (name, value) in text.split('\n').filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            match name {
                "StoreDir" => info.store_dir = Some(value.to_owned()),
                "WantMassQuery" => info.want_mass_query = Some(value == "1"),
                "Priority" => info.priority = value.parse().ok().or(info.priority),
                _ => {}
            }
        }
        info
    }

    /// Whether the file has none of Nix's keys. Then it is most likely another program's answer.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The file, in the order in which Attic writes it.
impl fmt::Display for CacheInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(wants) = self.want_mass_query {
            writeln!(f, "WantMassQuery: {}", u8::from(wants))?;
        }
        if let Some(store_dir) = &self.store_dir {
            writeln!(f, "StoreDir: {store_dir}")?;
        }
        if let Some(priority) = self.priority {
            writeln!(f, "Priority: {priority}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(store_dir: &str, want_mass_query: bool, priority: i32) -> CacheInfo {
        CacheInfo {
            store_dir: Some(store_dir.to_owned()),
            want_mass_query: Some(want_mass_query),
            priority: Some(priority),
        }
    }

    #[test]
    fn the_cache_info_of_nixs_manual_is_read_and_written_back() {
        let read = CacheInfo::parse(b"StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n");
        assert_eq!(read, info("/nix/store", true, 30));
        assert_eq!(read.to_string(), "WantMassQuery: 1\nStoreDir: /nix/store\nPriority: 30\n");
        assert_eq!(CacheInfo::parse(read.to_string().as_bytes()), read);
    }

    #[test]
    fn white_space_unknown_keys_and_other_lines_of_a_cache_info_mean_nothing() {
        let text =
            b"\nno colon\nStoreDir:/gnu/store\t\r\nFuture: x: y\n \xff\nWantMassQuery:  0 \nPriority:\t-7";
        assert_eq!(CacheInfo::parse(text), info("/gnu/store", false, -7));
        for (text, expected) in [
            ("WantMassQuery: true\n", Some(false)),
            ("WantMassQuery: 1 \n", Some(true)),
            ("WantMassQuery:\n", Some(false)),
            ("wantmassquery: 1\n", None),
            (" WantMassQuery: 1\n", None),
        ] {
            assert_eq!(CacheInfo::parse(text.as_bytes()).want_mass_query, expected, "{text:?}");
        }
        for text in ["Priority: high\n", "Priority: 99999999999\n", "Priority:\n"] {
            assert_eq!(CacheInfo::parse(text.as_bytes()).priority, None, "{text:?}");
        }
    }

    #[test]
    fn every_key_of_a_cache_info_may_be_missing() {
        for text in ["", "<html>\n<p>Sign in: here</p>\n", "StoreDir\n"] {
            let read = CacheInfo::parse(text.as_bytes());
            assert!(read.is_empty(), "{text:?}");
            assert_eq!(read.to_string(), "");
        }
        let read = CacheInfo::parse(b"Priority: 40\n");
        assert!(!read.is_empty() && read.store_dir.is_none());
        assert_eq!(read.to_string(), "Priority: 40\n");
    }
}
