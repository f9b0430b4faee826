//! What the contract promises, as code.
