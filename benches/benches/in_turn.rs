//! Where one way is to cost hardly more than another: predictions through the client against direct calls; a text as a stream against
//! the thread that makes it, a token late in a text against an early one, and four texts at once against the same in turn, on the
//! language model of the repository. Timed in turn; `--json` prints the figures for programs, `--quick` takes fewer rounds.

use std::collections::VecDeque;
use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use benches::{Figure, Way, bare_workers, compared, in_turn, inputs};
use coreml_bridge::{Bridge, Config, CoreMlHandle, Features, PredictOptions, State, Tensor};
use coreml_client::{InferenceRequest, ModelClient};
use coreml_testing::FakeBridge;
use coreml_text::{Generation, TextModel, TextStream};
use futures_util::{StreamExt, future};
use tokio::sync::oneshot;

fn main() {
    let has = |option: &str| std::env::args().any(|argument| argument == option);
    let rounds = if has("--quick") { 5 } else { 40 };
    let mut figures = throughput(rounds);
    figures.extend(text(rounds));
    if has("--json") {
        println!("{}", serde_json::to_string(&figures).expect("figures are JSON"));
        return;
    }
    for Figure { name, nanoseconds, reference, ratio } in figures {
        let against = reference.zip(ratio).map(|(reference, ratio)| format!("{ratio:.3} of {reference}"));
        println!("{name}: {:.3} ms  {}", nanoseconds / 1e6, against.unwrap_or_default());
    }
}

/// As many predictions as N threads can do: of a real model that takes a few hundredths of a millisecond, where every microsecond
/// of a hand-over shows, of arithmetic that takes about one, as small models do, and of a sentence encoder, where
/// `cargo xtask models` has brought it.
fn throughput(rounds: usize) -> Vec<Figure> {
    let image = || Tensor::from_vec(&[1, 1, 8, 8], vec![0.5_f32; 64]).expect("64 pixels");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/digits/digits-f32.mlpackage");
    let features = move || Features::new().with("image", image());
    let mut figures = compare(rounds, "throughput of 20 us", Bridge::platform(), &path, 2_000, &features);

    let arithmetic = FakeBridge::builder().compute(|_| {
        let sum = (0..200_000).fold(0.5_f32, |x, _| black_box(x.mul_add(0.999, 0.001)));
        Ok(Features::new().with("y", Tensor::from_vec(&[1], vec![sum]).expect("one element")))
    });
    let fake = arithmetic.build();
    let path = Path::new("fake.mlmodel");
    figures.extend(compare(rounds, "throughput of 1 ms", fake.bridge(), path, 200, &inputs));

    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/cache/minilm/minilm-f32.mlpackage");
    if path.exists() {
        let tokens = |first: i32| {
            Tensor::from_vec(&[1, 128], (0..128).map(|i| first + i).collect()).expect("128 tokens")
        };
        let ones = || Tensor::from_vec(&[1, 128], vec![1_i32; 128]).expect("128 ones");
        let features = move || Features::new().with("input_ids", tokens(2000)).with("attention_mask", ones());
        // So many that it does not count which thread is left with the last.
        let rounds = rounds.min(12);
        figures.extend(compare(rounds, "throughput of MiniLM", Bridge::platform(), &path, 64, &features));
    }
    figures
}

/// Direct calls on N threads, a bare channel with N threads, and the client with N threads.
fn compare(
    rounds: usize,
    name: &str,
    bridge: Bridge,
    path: &Path,
    each: u64,
    features: &(impl Fn() -> Features + Sync),
) -> Vec<Figure> {
    let runtime = &tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let mut figures = Vec::new();
    for threads in [1_usize, 2] {
        let sender = bare_workers(bridge, path, threads);
        let channel = move || {
            in_flight(runtime, threads, each, || {
                let (reply, answer) = oneshot::channel();
                sender.send((features(), reply)).expect("the workers live");
                async { drop(answer.await.expect("a worker answers")) }
            })
        };
        let client = ModelClient::builder().bridge(bridge).threads(threads).intra_op_threads(1).build();
        let model_ref = client.load_model(path).expect("the model loads");
        let client = move || {
            in_flight(runtime, threads, each, || {
                let request = InferenceRequest::new(model_ref, features());
                let answer = client.try_enqueue(request).expect("the queue has room");
                async { drop(answer.await.expect("it predicts")) }
            })
        };
        let title = |way: &str| format!("{name}/{way}/{threads}");
        let ways: Vec<Way<'_>> = vec![
            (title("direct"), Box::new(|| direct(bridge, path, threads, each, features))),
            (title("channel"), Box::new(channel)),
            (title("client"), Box::new(client)),
        ];
        figures.extend(in_turn(rounds, ways));
    }
    figures
}

/// The time of `count` jobs, with so many of them under way that no thread ever waits for the next. Whoever asks sleeps until half of
/// them are done and hands in as many again, as a program with a backlog would: on a machine without a core to spare for it, waking it
/// for each answer takes the time of predictions.
fn in_flight<F: Future<Output = ()>>(
    runtime: &tokio::runtime::Runtime,
    threads: usize,
    count: u64,
    mut start: impl FnMut() -> F,
) -> Duration {
    let most = 16 * threads;
    let begin = Instant::now();
    runtime.block_on(async {
        let mut waiting = VecDeque::new();
        for _ in 0..count {
            if waiting.len() == most {
                let mut oldest: Vec<F> = waiting.drain(..most / 2).collect();
                // The last first: when it is done, so are the others, or nearly.
                while let Some(job) = oldest.pop() {
                    job.await;
                }
            }
            waiting.push_back(start());
        }
        for job in waiting {
            job.await;
        }
    });
    begin.elapsed()
}

/// The same number of predictions, shared out among threads that do nothing else.
fn direct(
    bridge: Bridge,
    path: &Path,
    threads: usize,
    count: u64,
    features: &(impl Fn() -> Features + Sync),
) -> Duration {
    let ready = std::sync::Barrier::new(threads + 1);
    let config = Config { threads: std::num::NonZeroU32::new(1), ..Config::default() };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads as u64)
            .map(|thread| {
                let (ready, config) = (&ready, &config);
                scope.spawn(move || {
                    let handle = bridge.load(path, config).expect("the model loads");
                    handle.predict(&features()).expect("it predicts");
                    ready.wait();
                    for _ in (thread..count).step_by(threads) {
                        handle.predict(&features()).expect("it predicts");
                    }
                })
            })
            .collect();
        ready.wait();
        let start = Instant::now();
        for worker in workers {
            worker.join().expect("no worker panics");
        }
        start.elapsed()
    })
}

const TOKENS: usize = 64;

/// Some beginning of a text, `count` tokens long; texts with different numbers share nothing.
fn prompt(count: usize, number: usize) -> Vec<u32> {
    (0..count).map(|i| u32::try_from(300 + (i * 37 + number * 611) % 3_500).expect("small")).collect()
}

/// Texts of the repository's language model, always the likeliest token.
fn text(rounds: usize) -> Vec<Figure> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/handbook/handbook.mlpackage");
    let runtime = &tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let client = ModelClient::builder().threads(1).intra_op_threads(1).build();
    let model = &runtime.block_on(TextModel::load(&client, &package)).expect("it loads");
    let config = Config { threads: std::num::NonZeroU32::new(1), ..Config::default() };
    let handle = &Bridge::platform().load(&package, &config).expect("it loads");
    let start = |prompt: &[u32], most| {
        let generation = Generation { most, ..Generation::default() };
        model.start(prompt.to_vec(), generation).expect("it starts")
    };
    let complete =
        |prompt: &[u32], most| runtime.block_on(start(prompt, most).complete()).expect("it goes on").timings;
    let timed = |work: &dyn Fn()| {
        let begin = Instant::now();
        work();
        begin.elapsed()
    };

    // Less than what a memory is copied for, so that each text is read from its beginning on both sides.
    let short = &prompt(8, 0);
    let made = || runtime.block_on(streamed(start(short, TOKENS)));
    assert_eq!(made(), loop_of_predictions(handle, short, TOKENS));
    let bare: Way<'_> = (
        format!("{TOKENS} tokens/loop of predictions"),
        Box::new(|| timed(&|| drop(loop_of_predictions(handle, short, TOKENS)))),
    );
    let stream: Way<'_> = (format!("{TOKENS} tokens/streamed"), Box::new(|| timed(&|| drop(made()))));
    let mut figures = in_turn(rounds, vec![bare, stream]);

    // Of one text each round, so that nothing but the stream is between the two.
    let pair = |_| {
        let begin = Instant::now();
        let timings = complete(short, TOKENS);
        (timings.prompt + timings.decode, begin.elapsed())
    };
    let (inside, all) = (0..rounds).map(pair).unzip();
    figures.extend(compared(vec![
        ("streaming/on the inference thread".to_owned(), inside),
        ("streaming/until the last piece".to_owned(), all),
    ]));

    // The inference thread's own time in making tokens, not in reading the prompt.
    let tokens = [16, 512].map(|count| {
        const EACH: u32 = 16;
        let prompt = prompt(count, 1);
        let decode = move || complete(&prompt, 1 + EACH as usize).decode / EACH;
        (format!("a token/after {count}"), Box::new(decode) as Box<dyn FnMut() -> Duration>)
    });
    figures.extend(in_turn(rounds, tokens.into()));

    let prompts: &Vec<_> = &(2..6).map(|number| prompt(8, number)).collect();
    let one_by_one = || prompts.iter().for_each(|p| drop(runtime.block_on(streamed(start(p, TOKENS)))));
    let at_once = || {
        let texts = prompts.iter().map(|p| streamed(start(p, TOKENS)));
        drop(runtime.block_on(future::join_all(texts)));
    };
    let ways: Vec<Way<'_>> = vec![
        ("four texts/one after another".to_owned(), Box::new(|| timed(&one_by_one))),
        ("four texts/at once".to_owned(), Box::new(|| timed(&at_once))),
    ];
    figures.extend(in_turn(rounds.min(20), ways));
    figures
}

/// Reads tokens and gives the likeliest next one, by one call of the bridge.
fn step(model: &CoreMlHandle, state: &mut State, tokens: &[u32], before: usize) -> u32 {
    let count = tokens.len();
    let all = before + count;
    let ids = tokens.iter().map(|token| token.cast_signed()).collect();
    let hidden = half::f16::MIN;
    let row = |i: usize| (0..all).map(move |j| if j <= before + i { half::f16::ZERO } else { hidden });
    let mask: Vec<half::f16> = (0..count).flat_map(row).collect();
    let inputs = Features::new()
        .with("inputIds", Tensor::from_vec(&[1, count], ids).expect("as many"))
        .with("causalMask", Tensor::from_vec(&[1, 1, count, all], mask).expect("as many"));
    let options = PredictOptions { state: Some(state), ..PredictOptions::default() };
    let outputs = model.predict_with(&inputs, options).expect("it predicts").outputs;
    let logits = outputs.tensor("logits").expect("the output");
    let vocabulary = *logits.shape().last().expect("a vector for each token");
    let logits = logits.to_vec::<f32>().expect("float32");
    let last = &logits[logits.len() - vocabulary..];
    let best = (0..last.len()).max_by(|&a, &b| last[a].total_cmp(&last[b])).expect("a vocabulary");
    u32::try_from(best).expect("small")
}

fn loop_of_predictions(model: &CoreMlHandle, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut state = model.new_state().expect("it has states");
    let mut made = vec![step(model, &mut state, prompt, 0)];
    while made.len() < count {
        let before = prompt.len() + made.len() - 1;
        made.push(step(model, &mut state, &made[made.len() - 1..], before));
    }
    made
}

async fn streamed(mut stream: TextStream) -> Vec<u32> {
    let mut made = Vec::new();
    while let Some(piece) = stream.next().await {
        made.push(piece.expect("it goes on").token);
    }
    made
}
