//! Serves more models than fit in memory: idle ones are evicted and come back when they are asked for, one is pinned.
//!
//! ```text
//! cargo run --release -p coreml-client --example memory_budget
//! ```

use coreml_client::{Error, Features, InferenceRequest, InferenceResult, ModelClient, ModelSource, Tensor};

const MIB: usize = 1 << 20;

/// Asks a model, wherever it is: evicted, still loading for somebody else, or ready.
async fn ask(
    client: &ModelClient,
    source: &ModelSource,
    inputs: &Features,
) -> Result<InferenceResult, Error> {
    loop {
        // Costs next to nothing while the model is loaded. Otherwise this evicts the model that was idle for longest, or
        // waits until one is idle.
        let model_ref = client.load(source.clone()).await?;
        match client.enqueue_inference(InferenceRequest::new(model_ref, inputs.clone())).await {
            // Between the two lines somebody else needed the room.
            Err(Error::Evicted { .. }) => {}
            result => return result,
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits");
    // What a model takes is said: Core ML's memory may belong to another process, so nobody can measure it.
    let source = |name: &str| ModelSource::new(format!("{folder}/{name}")).memory(10 * MIB);
    let models = ["digits.mlpackage", "digits-f32.mlpackage", "digits.mlmodel"].map(source);
    let image = Tensor::from_vec(&[1, 1, 8, 8], vec![0.5_f32; 64])?;
    let inputs = Features::new().with("image", image);

    let client = ModelClient::builder().memory_budget(20 * MIB).build();
    // The one that must always answer at once is never evicted while this lives.
    let pinned = client.load_pinned(models[0].clone()).await?;
    for round in 1..=3 {
        for source in &models {
            ask(&client, source, &inputs).await?;
            let memory = client.stats().models_total.memory;
            assert!(memory <= 20 * MIB, "loads under way are counted, too");
            println!("round {round}: {} MiB in use", memory / MIB);
        }
    }
    let counts = client.stats().models_total;
    println!("{} loads, {} evictions to make room", counts.loads_ok, counts.evicted_for_room);
    drop(pinned);
    Ok(())
}

#[test]
fn runs() {
    main().expect("the example works");
}
