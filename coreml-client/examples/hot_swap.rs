//! Replaces a model under load: every request is answered, each by the version that was current when it was handed in; then
//! goes back.
//!
//! ```text
//! cargo run --release -p coreml-client --example hot_swap
//! ```

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use coreml_client::{Features, InferenceRequest, ModelClient, ModelSource, Tensor};

type Error = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits");
    let image = Tensor::from_vec(&[1, 1, 8, 8], vec![0.5_f32; 64])?;
    let sample = Features::new().with("image", image);

    let client = ModelClient::new();
    let model_ref = client.load(&format!("{folder}/digits.mlpackage")).await?;

    let load = tokio::spawn({
        let (client, sample) = (client.clone(), sample.clone());
        async move {
            let mut served = BTreeMap::new();
            let start = Instant::now();
            while start.elapsed() < Duration::from_secs(1) {
                let request = InferenceRequest::new(model_ref, sample.clone());
                let result = client.enqueue_inference(request).await?;
                *served.entry(result.version).or_insert(0_u64) += 1;
            }
            Ok::<_, Error>(served)
        }
    });

    tokio::time::sleep(Duration::from_millis(300)).await;
    // Beside the old version: loaded, warmed up, checked; only then does it take over.
    let source = ModelSource::new(format!("{folder}/digits-f32.mlpackage")).warm_up(sample.clone());
    let check = move |trial: &mut coreml_client::Trial<'_>| -> Result<(), Error> {
        let outputs = trial.predict(sample)?;
        let sum: f32 = outputs.tensor("probabilities")?.to_vec::<f32>()?.iter().sum();
        if (sum - 1.0).abs() < 1e-3 { Ok(()) } else { Err("these are no probabilities".into()) }
    };
    let version = client.swap(model_ref, source).check(check).await?;
    println!("version {version} serves");

    tokio::time::sleep(Duration::from_millis(300)).await;
    println!("version {} serves again", client.rollback(model_ref)?);

    for (version, requests) in load.await?? {
        println!("version {version} answered {requests} requests");
    }
    Ok(())
}

#[test]
fn runs() {
    main().expect("the example works");
}
