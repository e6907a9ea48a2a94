//! `docs/ops.md` says what the engine runs, and is derived from the code. `BLESS=1 cargo test -p coreml-engine --test ops_doc`
//! writes it anew.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use coreml_engine::{nn, ops};
use serde::Deserialize;

use common::{corpus, repository};

/// The ops that a program can hold: `SSAOpRegistry.core_ops` of coremltools 9.0, without those that it never serialises.
const REGISTRY: &str = "\
abs acos add affine argsort asin atan atanh avg_pool band_part batch_norm batch_to_space cast ceil clamped_relu classify clip \
concat cond constexpr_affine_dequantize constexpr_blockwise_shift_scale constexpr_cast constexpr_lut_to_dense \
constexpr_lut_to_sparse constexpr_sparse_blockwise_shift_scale constexpr_sparse_to_dense conv conv_quantized conv_transpose cos \
cosh crop crop_resize cumsum depth_to_space dequantize einsum elu equal erf exp exp2 expand_dims fill fill_like flatten2d floor \
floor_div gather gather_along_axis gather_nd gelu greater greater_equal gru identity instance_norm inverse l2_norm l2_pool \
layer_norm leaky_relu less less_equal linear linear_activation list_gather list_length list_read list_scatter list_write \
local_response_norm log logical_and logical_not logical_or logical_xor lstm make_list matmul max_pool maximum minimum mod mul \
non_maximum_suppression non_zero not_equal one_hot pad pixel_shuffle pixel_unshuffle pow prelu quantize random_bernoulli \
random_categorical random_normal random_uniform range_1d read_state real_div reduce_argmax reduce_argmin reduce_l1_norm \
reduce_l2_norm reduce_log_sum reduce_log_sum_exp reduce_max reduce_mean reduce_min reduce_prod reduce_sum reduce_sum_square relu \
relu6 resample reshape reshape_like resize resize_bilinear resize_nearest_neighbor reverse reverse_sequence rnn round rsqrt \
scaled_dot_product_attention scaled_tanh scatter scatter_along_axis scatter_nd select shape sigmoid sigmoid_hard sign silu sin \
sinh slice_by_index slice_by_size slice_update sliding_windows softmax softplus softplus_parametric softsign space_to_batch \
space_to_depth split sqrt square squeeze stack sub tan tanh threshold thresholded_relu tile topk transpose upsample_bilinear \
upsample_nearest_neighbor while_loop write_state";

#[derive(Default, Deserialize)]
struct File {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    inputs: Vec<Typed>,
    outputs: Vec<Typed>,
}

#[derive(Deserialize)]
struct Typed {
    dtype: String,
}

fn code<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// A case of the corpus; of its strata one is `op dtype opset` for each op.
#[derive(Deserialize)]
struct Recorded {
    strata: Vec<String>,
}

/// For each op, how many cases of coremltools' tests are recorded with it, and with which types.
fn recorded() -> BTreeMap<String, (usize, BTreeSet<String>)> {
    let mut ops: BTreeMap<String, (usize, BTreeSet<String>)> = BTreeMap::new();
    for case in corpus::<Recorded>() {
        let mut seen = BTreeSet::new();
        for stratum in &case.strata {
            let [op, dtype, opset] = stratum.split(' ').collect::<Vec<_>>()[..] else { continue };
            if opset.starts_with("CoreML") {
                let (cases, dtypes) = ops.entry(op.to_owned()).or_default();
                *cases += usize::from(seen.insert(op));
                dtypes.insert(dtype.to_owned());
            }
        }
    }
    ops
}

fn ops_of(family: &ops::Family, corpus: &BTreeMap<String, (usize, BTreeSet<String>)>) -> String {
    let mut text = format!(
        "\n### {}\n\n| op | opsets | `models/ops` | corpus | with |\n|---|---|---|---|---|\n",
        family.name
    );
    for op in family.ops {
        let opsets: Vec<&str> = op.opsets.iter().map(|opset| opset.name()).collect();
        let path = repository("models/ops").join(format!("{}.json", op.name));
        let file: File =
            std::fs::read(path).map(|bytes| serde_json::from_slice(&bytes).unwrap()).unwrap_or_default();
        let tensors = file.cases.iter().flat_map(|case| case.inputs.iter().chain(&case.outputs));
        let mut dtypes: BTreeSet<&str> = tensors.map(|tensor| tensor.dtype.as_str()).collect();
        let recorded = corpus.get(op.name);
        dtypes.extend(recorded.iter().flat_map(|(_, dtypes)| dtypes).map(String::as_str));
        let dtypes = dtypes.into_iter().collect::<Vec<_>>().join(", ");
        let count = |cases: usize| if cases == 0 { String::new() } else { cases.to_string() };
        let (own, recorded) = (count(file.cases.len()), count(recorded.map_or(0, |(cases, _)| *cases)));
        writeln!(text, "| `{}` | {} | {own} | {recorded} | {dtypes} |", op.name, opsets.join(", ")).unwrap();
    }
    text
}

#[test]
fn the_list_of_ops_is_current() {
    let mut text = String::from(
        "# Ops and layers\n\n\
         What the portable engine runs. Generated by `BLESS=1 cargo test -p coreml-engine --test ops_doc`.\n\n\
         ## Ops of ML programs\n\n\
         Every op with the opsets that define or redefine it, and where it is tested beside its own file: how many answers are\n\
         recorded in `models/ops` and from coremltools' own tests (`conformance/corpus`), and with which types of inputs and outputs.\n",
    );
    let recorded = recorded();
    ops::FAMILIES.iter().for_each(|family| text.push_str(&ops_of(family, &recorded)));
    let known: BTreeSet<&str> =
        ops::FAMILIES.iter().flat_map(|family| family.ops).map(|op| op.name).collect();
    let registry: BTreeSet<&str> = REGISTRY.split_whitespace().collect();
    let foreign: Vec<&&str> = known.difference(&registry).collect();
    assert!(foreign.is_empty(), "not an op of Core ML: {foreign:?}");
    writeln!(
        text,
        "\nBeside these, {}: they say something of the program, and the decoder takes them.",
        code(ops::DECODED.iter().copied())
    )
    .unwrap();
    let known = known.into_iter().chain(ops::DECODED.iter().copied()).collect();
    let missing = code(registry.difference(&known).copied());
    if !missing.is_empty() {
        write!(text, "\n### Not yet\n\nRefused at load, by name: {missing}.\n").unwrap();
    }

    text.push_str(
        "\n## Layers of neural networks\n\n\
         Each is tested against NumPy (`coreml-engine/tests/fixtures/make_nn.py`).\n\n\
         | family | layers |\n|---|---|\n",
    );
    for family in nn::FAMILIES {
        let names = code(family.layers.iter().map(|layer| layer.name));
        writeln!(text, "| {} | {names} |", family.name).unwrap();
    }
    let missing = code(nn::unsupported());
    if !missing.is_empty() {
        write!(text, "\nNot yet; refused at load, by name: {missing}.\n").unwrap();
    }

    let path = repository("docs/ops.md");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == text, "docs/ops.md is not current; run with BLESS=1 and commit it");
}

#[test]
fn the_page_on_adding_an_op_shows_the_engines_code() {
    let lines = |text: &str| text.lines().map(str::trim).collect::<Vec<_>>().join("\n");
    let page = std::fs::read_to_string(repository("docs/adding-an-op.md")).unwrap();
    let path = "coreml-engine/src/ops/elementwise_unary.rs";
    let code = lines(&std::fs::read_to_string(repository(path)).unwrap());
    let blocks: Vec<&str> =
        page.split("```rust").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(blocks.len() >= 3, "{} pieces of code", blocks.len());
    for block in blocks {
        assert!(code.contains(lines(block).trim()), "{path} has no\n{block}");
    }
}
