//! Nor may another thread borrow it.

use coreml_bridge::CoreMlHandle;

fn to_another_thread(model: &CoreMlHandle) {
    std::thread::scope(|scope| {
        scope.spawn(|| model.description().inputs.len());
    });
}

fn main() {}
