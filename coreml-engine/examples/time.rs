//! Times the engine on the models of a folder that `models/bench.py` or `models/minilm.py` wrote.
//!
//! ```text
//! cargo run --release -p coreml-engine --example time -- DIR --threads 2 --rounds 20 [--kind f16] [--dump] [MODEL ..]
//! ```
//!
//! Prints JSON: `{"minilm": {"min_ms": .., "median_ms": .., "load_ms": ..}}`, in milliseconds. With `--dump` it also writes
//! the outputs to `DIR/MODEL.found/OUTPUT.npy`.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Instant;

use coreml_engine::description::{ArrayDtype, FeatureKind};
use coreml_engine::{ArrayRef, Elements, Input, LoadOptions, Model, Output};
use npyz::WriterBuilder;

type Error = Box<dyn std::error::Error>;

struct Arguments {
    folder: PathBuf,
    models: Vec<String>,
    threads: NonZeroUsize,
    rounds: usize,
    kind: String,
    dump: bool,
}

fn arguments() -> Result<Arguments, Error> {
    let mut found = Arguments {
        folder: PathBuf::new(),
        models: Vec::new(),
        threads: NonZeroUsize::MIN,
        rounds: 20,
        kind: "f32".into(),
        dump: false,
    };
    let mut list = std::env::args().skip(1);
    while let Some(argument) = list.next() {
        let mut value = || list.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--threads" => found.threads = value()?.parse()?,
            "--rounds" => found.rounds = value()?.parse()?,
            "--kind" => found.kind = value()?,
            "--dump" => found.dump = true,
            _ if found.folder.as_os_str().is_empty() => found.folder = argument.into(),
            _ => found.models.push(argument),
        }
    }
    if found.folder.as_os_str().is_empty() {
        return Err("which folder?".into());
    }
    if found.models.is_empty() {
        let ending = format!("-{}.mlpackage", found.kind);
        for entry in std::fs::read_dir(&found.folder)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            found.models.extend(name.strip_suffix(&ending).map(str::to_owned));
        }
        found.models.sort();
    }
    Ok(found)
}

fn main() -> Result<(), Error> {
    let arguments = arguments()?;
    let mut results = serde_json::Map::new();
    for name in &arguments.models {
        results.insert(name.clone(), time(&arguments, name)?);
    }
    println!("{}", serde_json::Value::Object(results));
    Ok(())
}

fn read(path: &Path, dtype: ArrayDtype) -> Result<(Vec<usize>, Elements), Error> {
    let bytes = std::fs::read(path)?;
    let npy = npyz::NpyFile::new(&bytes[..])?;
    let shape = npy.shape().iter().map(|&n| usize::try_from(n)).collect::<Result<_, _>>()?;
    let elements = match dtype {
        ArrayDtype::Int32 => Elements::Int32(npy.into_vec()?),
        _ => Elements::Float32(npy.into_vec()?),
    };
    Ok((shape, elements))
}

fn time(arguments: &Arguments, name: &str) -> Result<serde_json::Value, Error> {
    let path = arguments.folder.join(format!("{name}-{}.mlpackage", arguments.kind));
    let start = Instant::now();
    let model = Model::load(&path, &LoadOptions::default())?;
    let load_ms = start.elapsed().as_secs_f64() * 1e3;
    let inputs = arguments.folder.join(format!("{name}.inputs"));
    let mut arrays = Vec::new();
    for feature in &model.description().inputs {
        let FeatureKind::Tensor { tensor } = &feature.kind else {
            return Err("an input is not a tensor".into());
        };
        let (shape, elements) = read(&inputs.join(format!("{}.npy", feature.name)), tensor.dtype)?;
        arrays.push((feature.name.as_str(), shape, elements));
    }
    let inputs: Vec<_> = arrays
        .iter()
        .map(|(name, shape, elements)| {
            let array = ArrayRef { dtype: elements.dtype(), shape, strides: None, bytes: elements.bytes() };
            (*name, Input::Array(array))
        })
        .collect();
    let mut session = model.session(arguments.threads);
    let first = session.predict(&inputs, None, &[])?;
    if arguments.dump {
        dump(&arguments.folder.join(format!("{name}.found")), &first)?;
    }
    session.predict(&inputs, None, &[])?;
    let mut times = Vec::new();
    for _ in 0..arguments.rounds.max(1) {
        let start = Instant::now();
        session.predict(&inputs, None, &[])?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(serde_json::json!({ "min_ms": times[0], "median_ms": times[times.len() / 2], "load_ms": load_ms }))
}

fn dump(folder: &Path, outputs: &[(String, Output)]) -> Result<(), Error> {
    std::fs::create_dir_all(folder)?;
    for (name, output) in outputs {
        let Output::Array(array) = output else { continue };
        let Elements::Float32(data) = &array.elements else { continue };
        let shape: Vec<u64> = array.shape.iter().map(|&n| n as u64).collect();
        let file = std::fs::File::create(folder.join(format!("{name}.npy")))?;
        let mut writer =
            npyz::WriteOptions::<f32>::new().default_dtype().shape(&shape).writer(file).begin_nd()?;
        writer.extend(data.iter().copied())?;
        writer.finish()?;
    }
    Ok(())
}
