//! A state stays on its model's thread.

use coreml_bridge::State;

fn to_another_thread(state: State) {
    std::thread::spawn(move || drop(state));
}

fn main() {}
