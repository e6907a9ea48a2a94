//! Compiled models: a folder `.mlmodelc`, as Apple's compiler writes it.
//!
//! | file | what |
//! |---|---|
//! | `coremldata.bin` | kind of model, specification version, description |
//! | `model.mil` | of an ML program: its functions as text |
//! | `weights/…` | of an ML program: the same files as in the package |
//! | `model0`, `model1`, … | of a pipeline: its models, each laid out as a model of its own |
//! | `modelNames/coremldata.bin` | of a pipeline: the names of its models |
//! | `metadata.json`, `analytics` | what the description says as well, and statistics; not read |
//!
//! Apple documents none of it. The layout of `coremldata.bin` is that of the files of its compiler, versions 3500 to 3600, all
//! little-endian: `u32` kind (the number of its field in the `Model` message), 24 bytes, `u64` length and text of the target
//! (`generic`), `u64` specification version, 24 bytes, `u64` length and `ModelDescription` message; then, for each function of
//! a program, `u32` kind and 12 bytes, or for a pipeline `u64` number of models and `u64` kind.
//!
//! So a compiled ML program is read back into the message that it was compiled from, and everything after that is the same;
//! [`compile`] goes the other way. The compiled form of other kinds (`model.espresso.net` of neural networks, and so on) is
//! refused by name.

use std::path::Path;

use coreml_proto::proto::{Model, ModelDescription, Pipeline, mil_spec, model::Type as ModelType};
use prost::Message;

use crate::error::LoadError;
use crate::mil_text;
pub use crate::mil_text::{SyntaxError, Unprintable};
use crate::package::{MANIFEST, ReadFile};

/// The numbers of the kinds that are read.
const PIPELINE: u32 = 202;
const ML_PROGRAM: u32 = 502;

/// What a program is compiled for.
const TARGET: &str = "generic";

/// Pipelines may hold pipelines; deeper than this is not a model.
const MAX_DEPTH: usize = 4;

/// No pipeline has more models.
const MAX_MODELS: u64 = 1 << 10;

/// A file of a compiled model is not what it should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompiledError {
    /// `coremldata.bin` ends before what it announces.
    #[error("the file ends in its {0}")]
    Truncated(&'static str),
    /// `coremldata.bin` says something that cannot be.
    #[error("{0}")]
    Corrupt(String),
    /// The description does not decode.
    #[error("the description does not decode")]
    Description(#[source] prost::DecodeError),
    /// `model.mil` does not parse.
    #[error("the text of the program does not parse")]
    Program(#[from] SyntaxError),
}

/// What `coremldata.bin` says.
#[derive(Debug)]
struct Data {
    kind: u32,
    specification_version: i32,
    description: ModelDescription,
    /// What follows the description.
    trailer: Vec<u8>,
}

impl Data {
    fn parse(bytes: &[u8]) -> Result<Self, CompiledError> {
        let mut reader = Reader { rest: bytes };
        let kind = reader.u32("kind")?;
        reader.take(24, "header")?;
        let target = reader.u64("target")?;
        reader.take(target, "target")?;
        let version = reader.u64("specification version")?;
        let specification_version = i32::try_from(version)
            .map_err(|_| CompiledError::Corrupt(format!("specification version {version}")))?;
        reader.take(24, "header")?;
        let length = reader.u64("description")?;
        let description = reader.take(length, "description")?;
        let description = ModelDescription::decode(description).map_err(CompiledError::Description)?;
        Ok(Self { kind, specification_version, description, trailer: reader.rest.to_vec() })
    }

    fn model(self, kind: ModelType) -> Model {
        Model {
            specification_version: self.specification_version,
            description: Some(self.description),
            is_updatable: false,
            r#type: Some(kind),
        }
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: u64, what: &'static str) -> Result<&'a [u8], CompiledError> {
        let length = usize::try_from(length).map_err(|_| CompiledError::Truncated(what))?;
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(CompiledError::Truncated(what))?;
        self.rest = rest;
        Ok(taken)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, CompiledError> {
        let bytes = self.take(4, what)?;
        Ok(bytes.try_into().map_or(0, u32::from_le_bytes))
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, CompiledError> {
        let bytes = self.take(8, what)?;
        Ok(bytes.try_into().map_or(0, u64::from_le_bytes))
    }
}

/// What is compiled of the models of that kind.
fn kind_name(kind: u32) -> String {
    let name = match kind {
        200 => "pipeline classifier",
        201 => "pipeline regressor",
        PIPELINE => "pipeline",
        300 => "generalized linear regressor",
        301 => "support vector regressor",
        302 => "tree ensemble regressor",
        303 => "neural network regressor (model.espresso.net)",
        400 => "generalized linear classifier",
        401 => "support vector classifier",
        402 => "tree ensemble classifier",
        403 => "neural network classifier (model.espresso.net)",
        404 => "nearest neighbours classifier",
        500 => "neural network (model.espresso.net)",
        501 => "item similarity recommender",
        ML_PROGRAM => "ML program",
        555 => "custom model",
        556 => "linked model",
        other => return format!("the compiled form of models of kind {other}"),
    };
    format!("the compiled form of a {name}")
}

/// Whether the path is a folder that holds a compiled model. One with a manifest is a package, whatever else is in it.
///
/// ```
/// assert!(!coreml_engine::compiled::is_compiled("no/such/model.mlmodelc"));
/// ```
#[must_use]
pub fn is_compiled(path: impl AsRef<Path>) -> bool {
    let path = path.as_ref();
    path.join("coremldata.bin").is_file() && !path.join(MANIFEST).is_file()
}

/// Reads the message that the model in `folder` was compiled from; its weights are below `@model_path`, which is `folder`.
pub(crate) fn open(folder: &Path, read: ReadFile<'_>) -> Result<Model, LoadError> {
    open_below(folder, "", read, 0)
}

fn open_below(folder: &Path, below: &str, read: ReadFile<'_>, depth: usize) -> Result<Model, LoadError> {
    let path = folder.join(below);
    let file = |name: &str| {
        let path = path.join(name);
        read(&path).map_err(|source| LoadError::Io { path, source })
    };
    let wrong = |name: &str| {
        let path = path.join(name);
        move |source| LoadError::Compiled { path, source }
    };
    let unsupported = |what| LoadError::Unsupported { model: path.display().to_string(), what };
    let data = Data::parse(&file("coremldata.bin")?).map_err(wrong("coremldata.bin"))?;
    match data.kind {
        ML_PROGRAM if path.join("model.mil").is_file() => {
            let program = mil_text::parse(&file("model.mil")?, below)
                .map_err(|error| wrong("model.mil")(error.into()))?;
            Ok(data.model(ModelType::MlProgram(program)))
        }
        ML_PROGRAM => Err(unsupported("a compiled ML program without its text (model.mil)".into())),
        PIPELINE if depth < MAX_DEPTH => {
            let count = Reader { rest: &data.trailer }.u64("number of models");
            let count = count.map_err(wrong("coremldata.bin"))?;
            if count > MAX_MODELS {
                let source = CompiledError::Corrupt(format!("a pipeline of {count} models"));
                return Err(wrong("coremldata.bin")(source));
            }
            let models = (0..count)
                .map(|i| open_below(folder, &format!("{below}model{i}/"), read, depth + 1))
                .collect::<Result<_, _>>()?;
            let names = if path.join("modelNames/coremldata.bin").is_file() {
                names(&file("modelNames/coremldata.bin")?).map_err(wrong("modelNames/coremldata.bin"))?
            } else {
                Vec::new()
            };
            Ok(data.model(ModelType::Pipeline(Pipeline { models, names })))
        }
        PIPELINE => Err(unsupported(format!("a pipeline nested deeper than {MAX_DEPTH}"))),
        other => Err(unsupported(kind_name(other))),
    }
}

/// `u64` number of names, then each as `u64` length and text.
fn names(bytes: &[u8]) -> Result<Vec<String>, CompiledError> {
    let mut reader = Reader { rest: bytes };
    let count = reader.u64("number of names")?;
    if count > MAX_MODELS {
        return Err(CompiledError::Corrupt(format!("the names of {count} models")));
    }
    (0..count)
        .map(|_| {
            let length = reader.u64("names")?;
            let name = reader.take(length, "names")?;
            String::from_utf8(name.to_vec())
                .map_err(|_| CompiledError::Corrupt("a name is not UTF-8".to_owned()))
        })
        .collect()
}

/// The specification (a serialised `Model` message) that a compiled ML program was made from, out of the bytes of its
/// `coremldata.bin` and its `model.mil`. [`Model::from_memory`](crate::Model::from_memory) takes it.
///
/// # Errors
/// [`CompiledError`], which says where.
///
/// ```
/// use coreml_engine::compiled::{CompiledError, specification};
/// let error = specification(&[0xf6, 1, 0, 0], b"").unwrap_err();
/// assert!(matches!(error, CompiledError::Truncated("header")));
/// ```
pub fn specification(data: &[u8], program: &[u8]) -> Result<Vec<u8>, CompiledError> {
    specification_of(data, program).map(|model| model.encode_to_vec())
}

fn specification_of(data: &[u8], program: &[u8]) -> Result<Model, CompiledError> {
    let data = Data::parse(data)?;
    if data.kind != ML_PROGRAM {
        return Err(CompiledError::Corrupt(format!("{} has no text", kind_name(data.kind))));
    }
    let program: mil_spec::Program = mil_text::parse(program, "")?;
    Ok(data.model(ModelType::MlProgram(program)))
}

/// A compiled ML program, but for the files of its weights.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Compiled {
    /// `coremldata.bin`.
    pub data: Vec<u8>,
    /// `model.mil`.
    pub program: String,
}

/// A model has no compiled form here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// The specification does not decode.
    #[error("the specification does not decode")]
    Decode(#[source] prost::DecodeError),
    /// It is of another kind.
    #[error("the model is no ML program")]
    NoProgram,
    /// The program cannot be written as text.
    #[error(transparent)]
    Program(#[from] Unprintable),
    /// What was written cannot be read, as of a program in which nobody looked at something that is wrong.
    #[error("the compiled form cannot be read")]
    Unreadable(#[from] CompiledError),
}

/// Compiles a specification (a serialised `Model` message) of an ML program. What [`specification`] makes of it is the same
/// model: it lacks what no prediction depends on, such as documentation and blocks for other opsets.
///
/// # Errors
/// [`CompileError`], if the model is no ML program, or has something that the text has no form for.
///
/// ```
/// use coreml_engine::compiled::{CompileError, compile};
/// assert!(matches!(compile(b""), Err(CompileError::NoProgram)));
/// ```
pub fn compile(specification: &[u8]) -> Result<Compiled, CompileError> {
    let model = Model::decode(specification).map_err(CompileError::Decode)?;
    let Some(ModelType::MlProgram(program)) = model.r#type else { return Err(CompileError::NoProgram) };
    let text = mil_text::print(&program, model.specification_version)?;
    let version = i64::from(model.specification_version);
    let description = model.description.unwrap_or_default().encode_to_vec();
    let kind = ML_PROGRAM.to_le_bytes();
    let mut data = kind.to_vec();
    // A version, as major, minor and patch.
    data.extend([version, 0, 0].map(i64::to_le_bytes).as_flattened());
    data.extend((TARGET.len() as u64).to_le_bytes());
    data.extend(TARGET.as_bytes());
    data.extend([version, 0, 0, 0].map(i64::to_le_bytes).as_flattened());
    data.extend((description.len() as u64).to_le_bytes());
    data.extend(description);
    for _ in &program.functions {
        data.extend(kind.into_iter().chain([0; 12]));
    }
    specification_of(&data, text.as_bytes())?;
    Ok(Compiled { data, program: text })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Apple's compiler lays it out.
    fn data(kind: u32, description: &ModelDescription, trailer: &[u8]) -> Vec<u8> {
        let description = description.encode_to_vec();
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend([0; 24]);
        bytes.extend(7_u64.to_le_bytes());
        bytes.extend(b"generic");
        bytes.extend(8_u64.to_le_bytes());
        bytes.extend([0; 24]);
        bytes.extend((description.len() as u64).to_le_bytes());
        bytes.extend(description);
        bytes.extend(trailer);
        bytes
    }

    #[test]
    fn every_truncation_of_the_data_is_an_error() {
        let description =
            ModelDescription { predicted_feature_name: "label".into(), ..ModelDescription::default() };
        let whole = data(ML_PROGRAM, &description, &[1, 2, 3]);
        let parsed = Data::parse(&whole).unwrap();
        assert_eq!((parsed.kind, parsed.specification_version), (ML_PROGRAM, 8));
        assert_eq!((parsed.description, parsed.trailer), (description, vec![1, 2, 3]));
        for length in 0..whole.len() - 3 {
            assert!(Data::parse(&whole[..length]).is_err(), "{length} bytes");
        }
        let mut huge = whole.clone();
        huge[28..36].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(matches!(Data::parse(&huge), Err(CompiledError::Truncated("target"))));
    }

    #[test]
    fn names_are_read_and_lies_about_them_refused() {
        let mut bytes = 2_u64.to_le_bytes().to_vec();
        for name in ["first", "second"] {
            bytes.extend((name.len() as u64).to_le_bytes());
            bytes.extend(name.as_bytes());
        }
        assert_eq!(names(&bytes).unwrap(), ["first", "second"]);
        assert!(names(&bytes[..bytes.len() - 1]).is_err());
        assert!(names(&u64::MAX.to_le_bytes()).is_err());
    }

    #[test]
    fn a_neural_network_is_refused_by_name() {
        let bytes = data(500, &ModelDescription::default(), &[]);
        let files = move |path: &Path| {
            let found = path.ends_with("coremldata.bin").then(|| bytes.clone().into());
            found.ok_or_else(|| std::io::ErrorKind::NotFound.into())
        };
        let error = open(Path::new("net.mlmodelc"), &files).unwrap_err().to_string();
        assert!(error.contains("the compiled form of a neural network (model.espresso.net)"), "{error}");
    }

    #[test]
    fn the_models_of_a_pipeline_lie_in_folders_of_their_own() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/mlmodelc");
        let model = open(&folder.join("pipeline-weighted.mlmodelc"), &crate::package::read_file).unwrap();
        let Some(ModelType::Pipeline(pipeline)) = model.r#type else { panic!("a pipeline") };
        assert_eq!((pipeline.models.len(), pipeline.names.len()), (2, 2));
        for (i, model) in pipeline.models.iter().enumerate() {
            assert_eq!(model.description.as_ref().map(|d| d.output.len()), Some(1));
            let wanted = format!("@model_path/model{i}/weights/weights.bin");
            assert!(format!("{:?}", model.r#type).contains(&wanted), "{wanted}");
        }
    }
}
