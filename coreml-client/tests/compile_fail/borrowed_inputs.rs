//! A prediction may outlive the call that asked for it, so no borrowed memory may reach it.

use coreml_client::{Features, InferenceRequest, ModelClient, ModelRef};

fn ask(client: &ModelClient, model_ref: ModelRef, pixels: &[f32]) {
    let features = Features::new().with("image", pixels);
    drop(client.enqueue_inference(InferenceRequest::new(model_ref, features)));
}

fn main() {}
