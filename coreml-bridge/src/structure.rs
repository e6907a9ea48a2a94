//! What is inside a model, as a bridge tells it: `docs/abi.md`, "Structure".

use std::collections::BTreeMap;

use serde::Deserialize;

/// What is inside a model; see [`Bridge::structure`](crate::Bridge::structure) and
/// [`Bridge::compute_plan`](crate::Bridge::compute_plan).
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct ModelStructure {
    /// `ML program`, `neural network`, `pipeline`, and so on; none if the bridge does not say.
    pub kind: Option<String>,
    /// Version of the format; none if the bridge does not say.
    pub specification_version: Option<i32>,
    /// The functions of an ML program; the layers of a neural network are one function, `main`.
    #[serde(default)]
    pub functions: BTreeMap<String, Block>,
    /// The models of a pipeline, in their order.
    #[serde(default)]
    pub models: Vec<ModelStructure>,
}

/// A function, or a block inside an op.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct Block {
    /// What it takes; empty for the layers of a network if the bridge does not say.
    #[serde(default)]
    pub inputs: Vec<NamedValue>,
    /// Its ops or layers in their order; constants are none.
    #[serde(default)]
    pub ops: Vec<Op>,
    /// The names of what it gives.
    #[serde(default)]
    pub outputs: Vec<String>,
}

/// A value with a name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct NamedValue {
    /// Its name.
    pub name: String,
    /// `fp16[1, ?, 8]`; none if the bridge does not say.
    #[serde(rename = "type")]
    pub ty: Option<String>,
}

/// An op of a program, or a layer of a network.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct Op {
    /// `conv`, `innerProduct`, …
    pub kind: String,
    /// The name of a layer, if the bridge says it.
    pub name: Option<String>,
    /// The values of each parameter, by its name; those of a layer are under the empty name. A constant in the place of a value
    /// is `constant`, with its type if the bridge knows it.
    #[serde(default)]
    pub inputs: BTreeMap<String, Vec<String>>,
    /// What it makes.
    #[serde(default)]
    pub outputs: Vec<NamedValue>,
    /// Blocks inside it.
    #[serde(default)]
    pub blocks: Vec<Block>,
    /// Where it runs: in a compute plan, and only if it is planned.
    pub devices: Option<OpDevices>,
    /// What part of the function's work it is, from 0 to 1, as the framework estimates it: in a compute plan only.
    pub weight: Option<f64>,
}

/// Where an op runs, by the kinds of [`Device`](crate::Device).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct OpDevices {
    /// The one that it will run on; none if its kind has no name here.
    pub preferred: Option<String>,
    /// All that it can run on.
    #[serde(default)]
    pub supported: Vec<String>,
}
