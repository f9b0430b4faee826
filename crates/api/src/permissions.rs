//! What a token may do with a cache: seven permissions, one letter or two each in the token.

use std::fmt;

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One thing a token may allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Permission {
    /// `r`: read narinfos and NARs.
    Pull,
    /// `w`: upload.
    Push,
    /// `d`: remove paths.
    Delete,
    /// `cc`: create the cache.
    CreateCache,
    /// `cr`: change its settings.
    ConfigureCache,
    /// `cq`: change how long it keeps things.
    ConfigureCacheRetention,
    /// `cd`: destroy it.
    DestroyCache,
}

impl Permission {
    /// All of them, in the order in which Attic lists them.
    pub const ALL: [Self; 7] = [
        Self::Pull,
        Self::Push,
        Self::Delete,
        Self::CreateCache,
        Self::ConfigureCache,
        Self::ConfigureCacheRetention,
        Self::DestroyCache,
    ];

    /// Its key in a token.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Pull => "r",
            Self::Push => "w",
            Self::Delete => "d",
            Self::CreateCache => "cc",
            Self::ConfigureCache => "cr",
            Self::ConfigureCacheRetention => "cq",
            Self::DestroyCache => "cd",
        }
    }

    /// Its name for people, as in `make-token`'s options.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Delete => "delete",
            Self::CreateCache => "create-cache",
            Self::ConfigureCache => "configure-cache",
            Self::ConfigureCacheRetention => "configure-cache-retention",
            Self::DestroyCache => "destroy-cache",
        }
    }

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of [`Permission`]s. In JSON an object of the granted keys: `{"r":1,"w":1}`.
///
/// Reading accepts 0, 1, `true` and `false` as values, and ignores keys it does not know, as newer
/// tokens may have.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Permissions(u8);

impl Permissions {
    /// None of them.
    pub const NONE: Self = Self(0);
    /// All of them.
    pub const ALL: Self = Self(0x7f);

    /// With `permission` too.
    #[must_use]
    pub const fn with(self, permission: Permission) -> Self {
        Self(self.0 | permission.bit())
    }

    /// What either allows.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether `permission` is among them.
    pub const fn allows(self, permission: Permission) -> bool {
        self.0 & permission.bit() != 0
    }

    /// Whether there are none: then the caller must not learn whether the cache exists.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those in the set.
    pub fn iter(self) -> impl Iterator<Item = Permission> {
        Permission::ALL.into_iter().filter(move |permission| self.allows(*permission))
    }
}

impl FromIterator<Permission> for Permissions {
    fn from_iter<I: IntoIterator<Item = Permission>>(permissions: I) -> Self {
        permissions.into_iter().fold(Self::NONE, Self::with)
    }
}

impl fmt::Debug for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl Serialize for Permissions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for permission in self.iter() {
            map.serialize_entry(permission.key(), &1)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Permissions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Permissions;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of permissions, such as {\"r\":1}")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Permissions, A::Error> {
                let mut granted = Permissions::NONE;
                while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
                    match Permission::ALL.into_iter().find(|permission| permission.key() == key) {
                        Some(permission) => {
                            if map.next_value::<Flag>()?.0 {
                                granted = granted.with(permission);
                            }
                        }
                        None => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(granted)
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

/// 1 or 0, `true` or `false`.
pub(crate) struct Flag(pub(crate) bool);

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FlagVisitor;
        impl Visitor<'_> for FlagVisitor {
            type Value = Flag;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("0 or 1")
            }

            fn visit_bool<E: serde::de::Error>(self, flag: bool) -> Result<Flag, E> {
                Ok(Flag(flag))
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Flag, E> {
                match number {
                    0 => Ok(Flag(false)),
                    1 => Ok(Flag(true)),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Unsigned(number), &self)),
                }
            }
        }
        deserializer.deserialize_any(FlagVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_grants_its_own_permission_only() {
        for permission in Permission::ALL {
            let json = format!("{{\"{}\":1}}", permission.key());
            let read: Permissions = serde_json::from_str(&json).unwrap();
            assert_eq!(read.iter().collect::<Vec<_>>(), [permission]);
            assert_eq!(serde_json::to_string(&read).unwrap(), json);
        }
        assert_eq!(Permissions::ALL, Permission::ALL.into_iter().collect());
    }

    #[test]
    fn zero_and_false_grant_nothing_and_unknown_keys_are_ignored() {
        let read = |json| serde_json::from_str::<Permissions>(json).map_err(drop);
        assert_eq!(read(r#"{"r":0,"w":false}"#), Ok(Permissions::NONE));
        assert_eq!(
            read(r#"{"r":true,"zz":{"deep":[1]},"R":1}"#),
            Ok(Permissions::NONE.with(Permission::Pull))
        );
        for json in [r#"{"r":2}"#, r#"{"r":-1}"#, r#"{"r":"1"}"#, r#"{"r":null}"#, "[]", "1"] {
            assert_eq!(read(json), Err(()), "{json}");
        }
    }
}
