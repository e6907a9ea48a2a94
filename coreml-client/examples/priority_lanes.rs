//! Two lanes to one model: people who wait for an answer, and a bulk job that takes what is left without starving.
//!
//! ```text
//! cargo run --release -p coreml-client --example priority_lanes
//! ```

use std::time::{Duration, Instant};

use coreml_client::{Error, Features, InferenceRequest, ModelClient, ModelRef, Priority, Tensor};

const RUN: Duration = Duration::from_millis(600);

/// Somebody who asks again and again, and how long he waited for each answer.
async fn ask(
    client: ModelClient,
    model_ref: ModelRef,
    inputs: Features,
    priority: Priority,
) -> Result<Vec<Duration>, Error> {
    let start = Instant::now();
    let mut waits = Vec::new();
    while start.elapsed() < RUN {
        let mut request = InferenceRequest::new(model_ref, inputs.clone()).priority(priority);
        if priority == Priority::High {
            // Nobody looks at an answer that comes later.
            request = request.timeout(Duration::from_secs(1));
        }
        let asked = Instant::now();
        match client.enqueue_inference(request).await {
            Ok(_) => waits.push(asked.elapsed()),
            Err(Error::DeadlineExceeded { .. }) => {}
            Err(error) => return Err(error),
        }
        if priority == Priority::High {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    waits.sort_unstable();
    Ok(waits)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
    let image = Tensor::from_vec(&[1, 1, 8, 8], vec![0.5_f32; 64])?;
    let inputs = Features::new().with("image", image);
    let client = ModelClient::builder()
        .threads(1)
        // However much bulk there is, it leaves room in the queue.
        .max_queued_of(Priority::Low, 32, 16 << 20)
        // Every 8th time the oldest request goes first, so that the bulk job moves on under any load.
        .fairness(8)
        .build();
    let model_ref = client.load(path).await?;

    let lane = |priority, askers: usize| -> Vec<_> {
        (0..askers).map(|_| tokio::spawn(ask(client.clone(), model_ref, inputs.clone(), priority))).collect()
    };
    let lanes = [("people (high)", lane(Priority::High, 2)), ("bulk (low)", lane(Priority::Low, 64))];
    for (name, askers) in lanes {
        let mut waits = Vec::new();
        for asker in askers {
            waits.extend(asker.await??);
        }
        waits.sort_unstable();
        let median = waits.get(waits.len() / 2).ok_or("a lane got no answers")?;
        println!("{name:<14} {:>6} answers, waited {median:.1?} in the median", waits.len());
    }
    println!("\n{}", client.stats());
    Ok(())
}

#[test]
fn runs() {
    main().expect("the example works");
}
