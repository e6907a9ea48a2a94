//! Reads handwritten digits with a Core ML model, from concurrent async tasks, on any platform.
//!
//! ```text
//! cargo run --release --example quickstart
//! ```

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use coreml_bridge::{Features, Tensor};
use coreml_client::{InferenceRequest, ModelClient, load_model_async};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Tasks that ask at the same time.
const TASKS: usize = 8;
/// Side of a picture, in pixels.
const SIDE: usize = 8;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/digits");
    let images: Arc<Vec<f32>> = Arc::new(read_npy(&folder.join("test_images.npy"))?);
    let labels: Arc<Vec<u8>> = Arc::new(read_npy(&folder.join("test_labels.npy"))?);

    let model_ref = load_model_async(folder.join("digits.mlpackage")).await?;
    let client = ModelClient::new();

    let start = Instant::now();
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let (client, images, count) = (client.clone(), Arc::clone(&images), labels.len());
            tokio::spawn(async move {
                let mut answers = Vec::new();
                for i in (task..count).step_by(TASKS) {
                    let pixels = images[i * SIDE * SIDE..][..SIDE * SIDE].to_vec();
                    let image = Tensor::from_vec(&[1, 1, SIDE, SIDE], pixels)?;
                    let request = InferenceRequest::new(model_ref, Features::new().with("image", image));
                    let result = client.enqueue_inference(request).await?;
                    answers.push((i, most_likely(result.outputs.tensor("probabilities")?)?));
                }
                Ok::<_, Error>(answers)
            })
        })
        .collect();
    let mut answers = vec![0; labels.len()];
    for task in tasks {
        for (i, digit) in task.await?? {
            answers[i] = digit;
        }
    }
    let elapsed = start.elapsed();

    let right = answers.iter().zip(labels.iter()).filter(|(a, b)| a == b).count();
    draw(&images, &answers, &labels);
    let stats = client.stats();
    let latency = &stats.models[0].total_time;
    println!("accuracy    {right} of {} = {:.2} %", labels.len(), 100.0 * right as f64 / labels.len() as f64);
    println!("latency     p50 {:.1?}, p99 {:.1?}", latency.quantile(0.5), latency.quantile(0.99));
    println!(
        "throughput  {:.0} images a second, from {TASKS} tasks",
        labels.len() as f64 / elapsed.as_secs_f64()
    );
    if right * 100 < labels.len() * 97 {
        return Err("the model should read 97 of 100".into());
    }
    Ok(())
}

/// The digit with the greatest probability.
fn most_likely(probabilities: &Tensor) -> Result<u8, Error> {
    let probabilities = probabilities.to_vec::<f32>()?;
    let best =
        (0..10_u8).max_by(|&a, &b| probabilities[usize::from(a)].total_cmp(&probabilities[usize::from(b)]));
    best.ok_or_else(|| "no classes".into())
}

/// Six right answers, and up to two wrong ones, side by side.
fn draw(images: &[f32], answers: &[u8], labels: &[u8]) {
    const SHADES: [char; 5] = [' ', '░', '▒', '▓', '█'];
    let wrong = (0..labels.len()).filter(|&i| answers[i] != labels[i]).take(2);
    let right = (0..labels.len()).filter(|&i| answers[i] == labels[i]).take(8 - wrong.clone().count());
    let shown: Vec<usize> = right.chain(wrong).collect();
    for row in 0..SIDE {
        let mut line = String::new();
        for &i in &shown {
            for column in 0..SIDE {
                let ink = images[(i * SIDE + row) * SIDE + column];
                let shade = SHADES[((ink * 4.0).round() as usize).min(4)];
                line.extend([shade, shade]);
            }
            line.push(' ');
        }
        println!("{line}");
    }
    let captions: Vec<String> = shown
        .iter()
        .map(|&i| {
            let caption = if answers[i] == labels[i] {
                format!("{}", answers[i])
            } else {
                format!("{}, but is {}", answers[i], labels[i])
            };
            format!("{caption:^width$}", width = SIDE * 2)
        })
        .collect();
    println!("{}\n", captions.join(" "));
}

fn read_npy<T: npyz::Deserialize>(path: &Path) -> Result<Vec<T>, Error> {
    let bytes = std::fs::read(path)?;
    Ok(npyz::NpyFile::new(&bytes[..])?.into_vec()?)
}
