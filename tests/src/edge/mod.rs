//! The edge under test: published layouts in a folder, the real Worker in the real workerd, and the
//! attacks that every host of the layout has to stand.

mod attacks;
mod host;
mod layout;
mod workerd;

pub use attacks::{Attacked, attack};
pub use host::Host;
pub use layout::Published;
pub use workerd::{Script, Workerd, WorkerdOptions};
