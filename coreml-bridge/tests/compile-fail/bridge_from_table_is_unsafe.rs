//! Whoever brings a table vouches for it.

use coreml_bridge::Bridge;

fn main() {
    let _ = Bridge::from_table(std::ptr::null());
}
