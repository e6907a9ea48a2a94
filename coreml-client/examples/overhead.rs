//! What the client adds to a round trip, against a bare crossbeam + oneshot ping-pong with the same prediction, in one run.
//!
//! ```text
//! taskset -c 0 cargo run --release -p coreml-client --example overhead
//! ```
//!
//! Both sides take turns, so that they see the same machine. Pin the process: between cores the cost of waking a thread
//! varies more than anything measured here.

use std::thread;
use std::time::Instant;

use coreml_client::{Config, Features, InferenceRequest, ModelClient, Tensor};
use coreml_testing::FakeBridge;
use tokio::sync::oneshot;

const ROUNDS: usize = 20;
const TRIPS: usize = 5_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let fake = FakeBridge::builder().compute(|_| Ok(Features::new())).build();
    let bridge = fake.bridge();
    let features = Features::new().with("x", Tensor::from_vec(&[1], vec![1.0_f32])?);

    let (sender, receiver) = crossbeam_channel::bounded::<(Features, oneshot::Sender<_>)>(64);
    thread::spawn(move || {
        let handle = bridge.load("fake.mlpackage", &Config::default()).expect("the fake loads anything");
        for (features, reply) in receiver {
            // Who asked may have gone.
            let _ = reply.send(handle.predict(&features));
        }
    });
    let client = ModelClient::builder().bridge(bridge).threads(1).build();
    let model_ref = client.load_model("fake.mlpackage")?;

    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let (mut bare, mut through) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for _ in 0..TRIPS {
            let start = Instant::now();
            runtime.block_on(async {
                let (reply, answer) = oneshot::channel();
                sender.send((features.clone(), reply)).expect("the thread lives");
                answer.await
            })??;
            bare.push(start.elapsed());
        }
        for _ in 0..TRIPS {
            let start = Instant::now();
            runtime.block_on(client.enqueue_inference(InferenceRequest::new(model_ref, features.clone())))?;
            through.push(start.elapsed());
        }
    }
    bare.sort_unstable();
    through.sort_unstable();
    for percent in [10, 50, 90, 99] {
        let (bare, through) = (bare[bare.len() * percent / 100], through[through.len() * percent / 100]);
        let ratio = through.as_secs_f64() / bare.as_secs_f64();
        println!("p{percent}: bare {bare:?}, client {through:?}, ratio {ratio:.2}");
    }
    println!("\n{}", client.stats());
    Ok(())
}
