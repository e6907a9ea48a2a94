//! Two predictions cannot use one state at once.

use coreml_bridge::{CoreMlHandle, Features, PredictOptions, State};

fn twice(model: &CoreMlHandle, inputs: &Features, state: &mut State) {
    let first = PredictOptions { state: Some(&mut *state), ..PredictOptions::default() };
    let second = PredictOptions { state: Some(&mut *state), ..PredictOptions::default() };
    let _ = model.predict_with(inputs, first);
    let _ = model.predict_with(inputs, second);
}

fn at_once(model: &CoreMlHandle, inputs: &Features, state: &mut State) {
    let options = PredictOptions { state: Some(&mut *state), ..PredictOptions::default() };
    let first = model.predict_async(inputs, options);
    let options = PredictOptions { state: Some(&mut *state), ..PredictOptions::default() };
    let second = model.predict_async(inputs, options);
    drop((first, second));
}

fn main() {}
