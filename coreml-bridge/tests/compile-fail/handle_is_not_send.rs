//! A model stays on the thread that loaded it.

use coreml_bridge::CoreMlHandle;

fn to_another_thread(model: CoreMlHandle) {
    std::thread::spawn(move || model.description().inputs.len());
}

fn main() {}
