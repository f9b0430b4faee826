//! Wire types, route names, error codes, tokens and permissions. Pure.
