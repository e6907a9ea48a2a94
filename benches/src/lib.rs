//! Benches of every layer; `cargo xtask bench` runs them and prints the ratios.
//!
//! Most are criterion's. Two ways of doing the same, of which the one is to cost hardly more than the other, are timed in turn
//! ([`in_turn`]): a machine that is slower for a minute is so for both.

use std::path::Path;
use std::time::Duration;

use coreml_bridge::{Bridge, Config, Features, Tensor};
use tokio::sync::oneshot;

/// A prediction on its way to a bare worker, and the way back.
pub type Job = (Features, oneshot::Sender<Features>);

/// Four numbers, `x`, for a model that does not care.
///
/// # Panics
/// Never.
///
/// ```
/// assert_eq!(benches::inputs().names().collect::<Vec<_>>(), ["x"]);
/// ```
#[must_use]
pub fn inputs() -> Features {
    Features::new().with("x", Tensor::from_vec(&[4], vec![1.0_f32, 2.0, 3.0, 4.0]).expect("four elements"))
}

/// Threads that each own the model and answer over a bare crossbeam channel.
///
/// # Panics
/// On one of the threads, if the model does not load or predict.
///
/// ```
/// let fake = coreml_testing::FakeBridge::new();
/// let sender = benches::bare_workers(fake.bridge(), "fake.mlmodel".as_ref(), 1);
/// let (reply, answer) = tokio::sync::oneshot::channel();
/// sender.send((benches::inputs(), reply)).unwrap();
/// assert_eq!(answer.blocking_recv().unwrap().len(), 1);
/// ```
#[must_use]
pub fn bare_workers(bridge: Bridge, path: &Path, threads: usize) -> crossbeam_channel::Sender<Job> {
    let (sender, receiver) = crossbeam_channel::unbounded::<Job>();
    let config = Config { threads: std::num::NonZeroU32::new(1), ..Config::default() };
    for _ in 0..threads {
        let (receiver, path, config) = (receiver.clone(), path.to_owned(), config.clone());
        std::thread::spawn(move || {
            let handle = bridge.load(path, &config).expect("the model loads");
            for (features, reply) in receiver {
                // Nobody may be waiting any more.
                drop(reply.send(handle.predict(&features).expect("it predicts")));
            }
        });
    }
    sender
}

/// One way of doing something, which tells how long it took.
pub type Way<'a> = (String, Box<dyn FnMut() -> Duration + 'a>);

/// What a way took.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Figure {
    /// Which way.
    pub name: String,
    /// The median of all rounds.
    pub nanoseconds: f64,
    /// The first way, unless this is it.
    pub reference: Option<String>,
    /// The median of the ratios to the first way, each within one round.
    pub ratio: Option<f64>,
}

/// Times all ways once per round, in turn, every other round backwards. A first round does not count.
///
/// ```
/// use std::time::Duration;
///
/// let mut speed = [1, 2, 8].into_iter().cycle().skip(2); // the machine's, of each round
/// let now = std::cell::Cell::new(1);
/// let ways: Vec<benches::Way> = vec![
///     ("once".into(), Box::new(|| Duration::from_secs(now.get()))),
///     ("twice".into(), Box::new(|| Duration::from_secs(2 * now.get()))),
///     ("tick".into(), Box::new(|| Duration::from_secs(now.replace(speed.next().unwrap())))),
/// ];
/// let figures = benches::in_turn(10, ways);
/// assert_eq!((figures[1].reference.as_deref(), figures[1].ratio), (Some("once"), Some(2.0)));
/// ```
#[must_use]
pub fn in_turn(rounds: usize, mut ways: Vec<Way<'_>>) -> Vec<Figure> {
    let mut times: Vec<Vec<Duration>> = vec![Vec::new(); ways.len()];
    for round in 0..=rounds {
        let mut order: Vec<usize> = (0..ways.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for way in order {
            let took = (ways[way].1)();
            if round > 0 {
                times[way].push(took);
            }
        }
    }
    compared(ways.into_iter().map(|(name, _)| name).zip(times).collect())
}

/// The times of several ways, round by round, against those of the first.
///
/// ```
/// use std::time::Duration;
///
/// let rounds = [1, 2, 8].map(Duration::from_secs);
/// let ways = vec![("once".into(), rounds.to_vec()), ("thrice".into(), rounds.map(|time| 3 * time).to_vec())];
/// let figures = benches::compared(ways);
/// assert_eq!((figures[0].nanoseconds, figures[0].ratio, figures[1].ratio), (2e9, None, Some(3.0)));
/// ```
#[must_use]
pub fn compared(ways: Vec<(String, Vec<Duration>)>) -> Vec<Figure> {
    let Some((reference, first)) = ways.first().cloned() else { return Vec::new() };
    let nanoseconds = |time: &Duration| time.as_secs_f64() * 1e9;
    let figure = |(way, (name, times)): (usize, (String, Vec<Duration>))| {
        let ratios = times.iter().zip(&first).map(|(time, first)| time.div_duration_f64(*first)).collect();
        Figure {
            name,
            nanoseconds: median(times.iter().map(nanoseconds).collect()),
            reference: (way > 0).then(|| reference.clone()),
            ratio: (way > 0).then(|| median(ratios)),
        }
    };
    ways.into_iter().enumerate().map(figure).collect()
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    let middle = numbers.len() / 2;
    match numbers.len() % 2 {
        0 if middle > 0 => f64::midpoint(numbers[middle - 1], numbers[middle]),
        _ => numbers.get(middle).copied().unwrap_or(f64::NAN),
    }
}
