//! Push planning, local Nix store access, transfers. Reports events, never prints.
