//! Two bridges, one model, the same inputs: do they answer the same?
//!
//! `cargo xtask differential` holds Core ML against the portable engine with it.
//!
//! ```
//! use coreml_bridge::{Features, Tensor};
//! use coreml_testing::differential::difference;
//!
//! let answer = |x: f32| Features::new().with("y", Tensor::scalar(x));
//! assert_eq!(difference(&answer(1.0), &answer(1.0001)), None);
//! assert!(difference(&answer(1.0), &answer(1.1)).unwrap().contains("`y`"));
//! ```

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use coreml_bridge::{
    Bridge, Color, ComputeUnits, Config, Dictionary, Dtype, Feature, FeatureKind, Features, Image, KeyKind,
    ModelDescription, PredictOptions, Sequence, Tensor, Value, f16,
};

use crate::messages;

/// How often a model with states is asked: each answer depends on those before.
const STEPS: u64 = 3;

/// How far apart two numbers may be, relative to the larger one or to 1, as `docs/numerics.md` has it. Integers must be equal.
#[must_use]
pub fn tolerance(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::Float16 => 2e-2,
        Dtype::Float32 | Dtype::Float64 => 1e-3,
        _ => 0.0,
    }
}

/// What two bridges make of one model.
#[derive(Debug)]
pub enum Verdict {
    /// The same answers, this many.
    Same(usize),
    /// Neither runs it; why the second does not.
    NeitherRuns(String),
    /// Not the same.
    Different(Box<Difference>),
}

/// Where two bridges disagree.
#[derive(Debug)]
pub struct Difference {
    /// In words.
    pub what: String,
    /// What the model was given.
    pub inputs: Features,
    /// What the first bridge answered, or why it did not.
    pub first: Result<Features, String>,
    /// What the second bridge answered, or why it did not.
    pub second: Result<Features, String>,
}

impl Difference {
    /// Writes inputs and both answers, in full, into a folder, and returns their files.
    ///
    /// # Errors
    /// If the folder cannot be made, or a file cannot be written.
    pub fn keep(&self, folder: &Path) -> std::io::Result<Vec<PathBuf>> {
        std::fs::create_dir_all(folder)?;
        let answer = |answer: &Result<Features, String>| match answer {
            Ok(features) => text(features),
            Err(why) => format!("no answer: {why}\n"),
        };
        let files = [
            ("inputs.txt", text(&self.inputs)),
            ("first.txt", answer(&self.first)),
            ("second.txt", answer(&self.second)),
        ];
        let write = |(name, text): (&str, String)| {
            let path = folder.join(name);
            std::fs::write(&path, text).map(|()| path)
        };
        files.into_iter().map(write).collect()
    }
}

/// Every value in full.
fn text(features: &Features) -> String {
    let mut text = String::new();
    for (name, value) in features.iter() {
        // Writing to a `String` does not fail.
        let _ = match value {
            Value::Tensor(tensor) => {
                let numbers = numbers(tensor);
                writeln!(text, "{name}: {} {:?}\n{numbers:?}", tensor.dtype(), tensor.shape())
            }
            Value::Image(image) => {
                let (width, height) = (image.width(), image.height());
                writeln!(text, "{name}: {:?} {width}x{height}\n{:?}", image.format(), image.bytes())
            }
            value => writeln!(text, "{name}: {value:?}"),
        };
    }
    text
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    tensor.cast(Dtype::Float64).to_vec::<f64>().unwrap_or_default()
}

/// Runs a model on two bridges, on the CPU, with the same inputs.
#[must_use]
pub fn compare(first: Bridge, second: Bridge, model: &Path) -> Verdict {
    let config = Config { compute_units: ComputeUnits::CpuOnly, ..Config::default() };
    let load = |bridge: Bridge| bridge.load(model, &config).map_err(|error| chain(&error));
    let disagree = |what: String, inputs: &Features, first, second| {
        Verdict::Different(Box::new(Difference { what, inputs: inputs.clone(), first, second }))
    };
    let (one, other) = match (load(first), load(second)) {
        (Ok(one), Ok(other)) => (one, other),
        (Err(_), Err(why)) => return Verdict::NeitherRuns(why),
        (one, other) => {
            let loaded = |side: Result<_, String>| side.map(|_| Features::new());
            return disagree("only one loads it".into(), &Features::new(), loaded(one), loaded(other));
        }
    };
    if let Some(what) = described(one.description(), other.description()) {
        return disagree(what, &Features::new(), Ok(Features::new()), Ok(Features::new()));
    }
    let stateful = !one.description().states.is_empty();
    let mut states = None;
    if stateful {
        match (one.new_state(), other.new_state()) {
            (Ok(one), Ok(other)) => states = Some((one, other)),
            (Err(_), Err(why)) => return Verdict::NeitherRuns(chain(&why)),
            (one, other) => {
                let made = |side: Result<_, coreml_bridge::Error>| {
                    side.map(|_| Features::new()).map_err(|error| chain(&error))
                };
                return disagree("only one makes a state".into(), &Features::new(), made(one), made(other));
            }
        }
    }
    let steps = if stateful { STEPS } else { 1 };
    for step in 0..steps {
        let inputs = match inputs(one.description(), step + 1) {
            Ok(inputs) => inputs,
            Err(why) => return disagree(why, &Features::new(), Ok(Features::new()), Ok(Features::new())),
        };
        let (mine, others) = match &mut states {
            Some((mine, others)) => (Some(mine), Some(others)),
            None => (None, None),
        };
        let answer = |model: &coreml_bridge::CoreMlHandle, state| {
            let options = PredictOptions { state, ..PredictOptions::default() };
            model
                .predict_with(&inputs, options)
                .map(|prediction| prediction.outputs)
                .map_err(|error| chain(&error))
        };
        let (one, other) = (answer(&one, mine), answer(&other, others));
        let what = match (&one, &other) {
            (Ok(one), Ok(other)) => difference(one, other),
            (Err(_), Err(why)) => return Verdict::NeitherRuns(why.clone()),
            (Ok(_), Err(_)) => Some("only the first answers".into()),
            (Err(_), Ok(_)) => Some("only the second answers".into()),
        };
        if let Some(what) = what {
            let what = if stateful { format!("step {step}: {what}") } else { what };
            return disagree(what, &inputs, one, other);
        }
    }
    Verdict::Same(usize::try_from(steps).unwrap_or(usize::MAX))
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    messages(error).join(": ")
}

/// How two descriptions differ in what a prediction takes and gives: names and kinds.
fn described(first: &ModelDescription, second: &ModelDescription) -> Option<String> {
    let form = |features: &[Feature]| {
        let mut form: Vec<_> = features.iter().map(|f| format!("{} ({})", f.name, f.kind.kind())).collect();
        form.sort();
        form.join(", ")
    };
    let sides = [
        ("inputs", &first.inputs, &second.inputs),
        ("outputs", &first.outputs, &second.outputs),
        ("states", &first.states, &second.states),
    ];
    sides.into_iter().find_map(|(side, first, second)| {
        let (first, second) = (form(first), form(second));
        (first != second).then(|| format!("the {side} are {first}, but {second}"))
    })
}

/// How two answers differ, if they do: the first output in which they do, and where.
#[must_use]
pub fn difference(first: &Features, second: &Features) -> Option<String> {
    let names = |features: &Features| {
        let mut names: Vec<_> = features.names().map(str::to_owned).collect();
        names.sort();
        names
    };
    if names(first) != names(second) {
        return Some(format!("the outputs are {:?}, but {:?}", names(first), names(second)));
    }
    first.iter().find_map(|(name, one)| {
        let what = value_difference(one, second.get(name)?)?;
        Some(format!("`{name}`: {what}"))
    })
}

fn value_difference(first: &Value, second: &Value) -> Option<String> {
    match (first, second) {
        (Value::Tensor(first), Value::Tensor(second)) => {
            if (first.dtype(), first.shape()) != (second.dtype(), second.shape()) {
                let form = |tensor: &Tensor| format!("{} {:?}", tensor.dtype(), tensor.shape());
                return Some(format!("{}, but {}", form(first), form(second)));
            }
            let allowed = tolerance(first.dtype());
            let pairs = numbers(first).into_iter().zip(numbers(second));
            worst(pairs, allowed)
        }
        (Value::Image(first), Value::Image(second)) => {
            let form = |image: &Image| (image.format(), image.width(), image.height());
            if form(first) != form(second) {
                return Some(format!("{:?}, but {:?}", form(first), form(second)));
            }
            if first.format() == coreml_bridge::PixelFormat::Gray16F {
                let pixels = |image: &Image| -> Vec<f64> {
                    let halves = image.bytes().chunks_exact(2);
                    halves.map(|pair| f16::from_le_bytes([pair[0], pair[1]]).to_f64()).collect()
                };
                return worst(pixels(first).into_iter().zip(pixels(second)), tolerance(Dtype::Float16));
            }
            // One level of 256: rounding of colours is not specified.
            let levels = |image: &Image| image.bytes().to_vec();
            let apart = levels(first).into_iter().zip(levels(second)).map(|(a, b)| a.abs_diff(b)).max();
            apart.filter(|&apart| apart > 1).map(|apart| format!("a pixel is {apart} levels off"))
        }
        (Value::Double(first), Value::Double(second)) => {
            worst([(*first, *second)].into_iter(), tolerance(Dtype::Float32))
        }
        (Value::Dictionary(first), Value::Dictionary(second)) => match (first, second) {
            (Dictionary::Int64(first), Dictionary::Int64(second)) if first.keys().eq(second.keys()) => {
                let pairs = first.values().copied().zip(second.values().copied());
                worst(pairs, tolerance(Dtype::Float32))
            }
            (Dictionary::String(first), Dictionary::String(second)) if first.keys().eq(second.keys()) => {
                let pairs = first.values().copied().zip(second.values().copied());
                worst(pairs, tolerance(Dtype::Float32))
            }
            _ => Some(format!("{first:?}, but {second:?}")),
        },
        _ => (first != second).then(|| format!("{first:?}, but {second:?}")),
    }
}

/// The pair that is farthest apart, if that is too far.
fn worst(pairs: impl Iterator<Item = (f64, f64)>, allowed: f64) -> Option<String> {
    let apart = |(a, b): (f64, f64)| {
        if a == b || (a.is_nan() && b.is_nan()) {
            0.0
        } else {
            let apart = (a - b).abs() / a.abs().max(b.abs()).max(1.0);
            if apart.is_nan() { f64::INFINITY } else { apart }
        }
    };
    let worst =
        pairs.enumerate().map(|(at, pair)| (apart(pair), at, pair)).max_by(|a, b| a.0.total_cmp(&b.0));
    let (apart, at, (a, b)) = worst?;
    (apart > allowed).then(|| format!("element {at} is {a}, but {b}; {allowed} is allowed"))
}

/// Inputs that a model takes, in its default shapes: the same for the same seed, everywhere.
///
/// # Errors
/// In words, if a feature is of a form that no value can have.
pub fn inputs(description: &ModelDescription, seed: u64) -> Result<Features, String> {
    let mut random = Random(seed);
    let mut features = Features::new();
    for feature in &description.inputs {
        let value = match &feature.kind {
            FeatureKind::Int64 => Value::from((random.unit() * 3.0) as i64),
            FeatureKind::Double => Value::from(random.unit()),
            FeatureKind::String => Value::from("a"),
            FeatureKind::Tensor(spec) => {
                let shape = if spec.shape.is_empty() { vec![1] } else { spec.shape.clone() };
                let numbers = (0..shape.iter().product()).map(|_| match spec.dtype {
                    // Also good as an index or a flag.
                    Dtype::Int8 | Dtype::Int32 => (random.unit() * 2.0).floor() as f32,
                    _ => random.unit() as f32,
                });
                let tensor = Tensor::from_vec(&shape, numbers.collect::<Vec<f32>>());
                tensor.map_err(|error| error.to_string())?.cast(spec.dtype).into()
            }
            FeatureKind::Image(spec) => {
                let count = spec.width as usize * spec.height as usize;
                let mut bytes = |n: usize| (0..n).map(|_| (random.unit() * 255.0) as u8).collect::<Vec<u8>>();
                let (width, height) = (spec.width, spec.height);
                let image = match spec.color {
                    Color::Gray => Image::from_gray(width, height, bytes(count)),
                    Color::GrayFloat16 => {
                        let pixels = bytes(count).into_iter().map(|level| f16::from_f32(f32::from(level)));
                        Image::from_gray16f(width, height, &pixels.collect::<Vec<_>>())
                    }
                    _ => Image::from_rgb(width, height, &bytes(count * 3)),
                };
                image.map_err(|error| error.to_string())?.into()
            }
            FeatureKind::Dictionary(spec) => match spec.key {
                KeyKind::Int64 => [(1, 0.5), (2, 0.25)].into_iter().collect::<Dictionary>().into(),
                _ => {
                    let entries = [("a", 0.5), ("b", 0.25)].map(|(key, number)| (key.to_owned(), number));
                    entries.into_iter().collect::<Dictionary>().into()
                }
            },
            FeatureKind::Sequence(spec) => match spec.element {
                KeyKind::Int64 => [1, 2].into_iter().collect::<Sequence>().into(),
                _ => ["a", "b"].map(str::to_owned).into_iter().collect::<Sequence>().into(),
            },
            other => return Err(format!("the input `{}` is of a new kind, {}", feature.name, other.kind())),
        };
        features.insert(feature.name.as_str(), value);
    }
    Ok(features)
}

/// Numbers that look random: splitmix64 (Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    /// At least 0, less than 1.
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((bits ^ (bits >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}
