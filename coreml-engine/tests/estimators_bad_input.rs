//! Damaged estimators, pipelines and links give typed errors that say what is wrong. Nothing panics, hangs or allocates more
//! than the file justifies.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use common::{report, repository};
use coreml_engine::{Array, Elements, LoadError, LoadOptions, Model, Output};
use coreml_proto::proto as spec;
use proptest::prelude::*;
use prost::Message;
use spec::model::Type;
use spec::tree_ensemble_parameters::TreeNode;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/estimators")
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(folder().join(format!("{name}.mlmodel"))).unwrap()
}

fn proto(name: &str) -> spec::Model {
    spec::Model::decode(&bytes(name)[..]).unwrap()
}

fn load(model: &[u8]) -> Result<Model, LoadError> {
    Model::from_memory("test.mlmodel", model, &HashMap::new(), &LoadOptions::default())
}

fn refused(model: &spec::Model) -> String {
    report(&load(&model.encode_to_vec()).unwrap_err())
}

fn trees(change: impl FnOnce(&mut spec::TreeEnsembleParameters)) -> String {
    let mut model = proto("trees_modes");
    let Some(Type::TreeEnsembleRegressor(trees)) = &mut model.r#type else { panic!("trees") };
    change(trees.tree_ensemble.as_mut().unwrap());
    refused(&model)
}

#[test]
fn a_tree_that_is_none_is_refused() {
    // Nodes 9, 4 and 2 of each tree: the branch and its leaves.
    let text = trees(|t| t.nodes[0].true_child_node_id = 77);
    assert!(text.contains("node 9 of tree 0: its child 77 does not exist"), "{text}");
    let text = trees(|t| t.nodes[0].true_child_node_id = 2);
    assert!(text.contains("have one child"), "{text}");
    let text = trees(|t| t.nodes[0].true_child_node_id = 9);
    assert!(text.contains("circle") || text.contains("root"), "{text}");
    let text = trees(|t| {
        let again = t.nodes[1].clone();
        t.nodes.push(again);
    });
    assert!(text.contains("node 4 of tree 0 twice"), "{text}");
    let text = trees(|t| {
        // Two branches that lead to each other, beside a tree that is whole.
        for (a, b) in [(100, 101), (101, 100)] {
            let leaf = a + 10;
            t.nodes.push(TreeNode { node_id: leaf, node_behavior: 6, ..TreeNode::default() });
            let (yes, no) = (b, leaf);
            let branch = TreeNode { node_id: a, true_child_node_id: yes, ..TreeNode::default() };
            t.nodes.push(TreeNode { false_child_node_id: no, ..branch });
        }
    });
    assert!(text.contains("circle"), "{text}");
    let text = trees(|t| t.nodes.push(TreeNode { node_id: 55, node_behavior: 6, ..TreeNode::default() }));
    assert!(text.contains("more than one root"), "{text}");
    let text = trees(|t| t.nodes[1].evaluation_info[0].evaluation_index = u64::MAX);
    assert!(text.contains("evaluation index"), "{text}");
    let text = trees(|t| t.nodes[0].node_behavior = 40);
    assert!(text.contains("unknown behavior 40"), "{text}");
}

#[test]
fn dimensions_that_the_file_does_not_hold_are_not_allocated() {
    for count in [0, 2, u64::MAX] {
        let text = trees(|t| t.num_prediction_dimensions = count);
        assert!(text.contains("dimensions"), "{text}");
        let text = trees(|t| {
            t.num_prediction_dimensions = count;
            t.base_prediction_value.clear();
        });
        assert!(text.contains("dimensions"), "{text}");
    }
    let mut model = proto("feature_vectorizer");
    let Some(Type::FeatureVectorizer(vectorizer)) = &mut model.r#type else { panic!("a vectorizer") };
    vectorizer.input_list[2].input_dimensions = u64::MAX;
    assert!(refused(&model).contains("over the limit"));
    let mut model = proto("recommender");
    let Some(Type::ItemSimilarityRecommender(recommender)) = &mut model.r#type else { panic!() };
    recommender.item_string_ids = None;
    recommender.item_item_similarities[0].item_id = u64::MAX;
    assert!(refused(&model).contains("numbered"));
}

#[test]
fn a_branch_on_a_feature_beyond_all_is_refused_when_it_is_asked() {
    let mut model = proto("trees_modes");
    let Some(Type::TreeEnsembleRegressor(trees)) = &mut model.r#type else { panic!("trees") };
    trees.tree_ensemble.as_mut().unwrap().nodes[0].branch_feature_index = u64::MAX;
    let model = load(&model.encode_to_vec()).unwrap();
    let x = Output::Array(Array { shape: vec![2], elements: Elements::Float64(vec![0.0; 2]) });
    let error = model.session(NonZeroUsize::MIN).predict(&[("x", x.as_input())], None, &[]).unwrap_err();
    assert!(report(&error).contains("found 2"), "{}", report(&error));
}

#[test]
fn parts_that_do_not_go_together_are_refused() {
    let change = |name: &str, change: &dyn Fn(&mut spec::Model)| {
        let mut model = proto(name);
        change(&mut model);
        refused(&model)
    };
    fn svc(model: &mut spec::Model) -> &mut spec::SupportVectorClassifier {
        let Some(Type::SupportVectorClassifier(svc)) = &mut model.r#type else { panic!("an SVM") };
        svc
    }
    fn curves(model: &mut spec::Model) -> &mut Vec<spec::PrecisionRecallCurve> {
        let Some(Type::ClassConfidenceThresholding(model)) = &mut model.r#type else { panic!("curves") };
        &mut model.precision_recall_curves
    }
    let name = "svm_classifier_rbf";
    for text in [
        change(name, &|m| svc(m).rho.truncate(2)),
        change(name, &|m| svc(m).number_of_support_vectors_per_class[0] = -1),
        change(name, &|m| svc(m).number_of_support_vectors_per_class[0] = i32::MAX),
        change(name, &|m| svc(m).coefficients[1].alpha.truncate(1)),
        change(name, &|m| svc(m).prob_a = vec![1.0]),
        change(name, &|m| svc(m).kernel = None),
        change(name, &|m| svc(m).class_labels = None),
        change("svm_classifier_probabilities_3", &|m| {
            svc(m).prob_a.clear();
            svc(m).prob_b.clear();
        }),
        change("glm_classifier_rest", &|m| {
            let Some(Type::GlmClassifier(glm)) = &mut m.r#type else { panic!() };
            glm.weights.truncate(2);
            glm.offset.truncate(2);
        }),
        change("glm_classifier_rest", &|m| {
            let Some(Type::GlmClassifier(glm)) = &mut m.r#type else { panic!() };
            glm.post_evaluation_transform = 1;
        }),
        change("neighbors_int64_uniform", &|m| {
            let Some(Type::KNearestNeighborsClassifier(knn)) = &mut m.r#type else { panic!() };
            knn.nearest_neighbors_index.as_mut().unwrap().float_samples[3].vector.pop();
        }),
        change("pipeline_regressor", &|m| {
            let Some(Type::PipelineRegressor(outer)) = &mut m.r#type else { panic!() };
            outer.pipeline.as_mut().unwrap().models.remove(1);
            outer.pipeline.as_mut().unwrap().models.remove(0);
        }),
        change("thresholding", &|m| curves(m).truncate(2)),
        change("thresholding", &|m| curves(m)[2].recall_values = None),
        change("thresholding", &|m| curves(m)[1].precision_values.as_mut().unwrap().vector[0] = f32::NAN),
        change("thresholding", &|m| {
            curves(m)[1].recall_confidence_thresholds.as_mut().unwrap().vector[0] = -0.5;
        }),
        change("thresholding", &|m| m.description.as_mut().unwrap().input.clear()),
        change("pipeline_regressor", &|m| m.r#type = Some(Type::PipelineRegressor(Default::default()))),
        change("one_hot_dense", &|m| {
            let other = m.description.as_ref().unwrap().output[0].clone();
            let other = spec::FeatureDescription { name: "z".into(), ..other };
            m.description.as_mut().unwrap().output.push(other);
        }),
    ] {
        assert!(text.starts_with("test.mlmodel is damaged: "), "{text}");
    }
}

#[test]
fn what_the_file_does_not_hold_is_refused_by_name() {
    use spec::core_ml_models as apple;
    let kinds = [
        (Type::VisionFeaturePrint(apple::VisionFeaturePrint::default()), "visionFeaturePrint"),
        (Type::AudioFeaturePrint(apple::AudioFeaturePrint::default()), "audioFeaturePrint"),
        (Type::SoundAnalysisPreprocessing(Default::default()), "soundAnalysisPreprocessing"),
        (Type::TextClassifier(apple::TextClassifier::default()), "textClassifier"),
        (Type::WordTagger(apple::WordTagger::default()), "wordTagger"),
        (Type::Gazetteer(apple::Gazetteer::default()), "gazetteer"),
        (Type::WordEmbedding(apple::WordEmbedding::default()), "wordEmbedding"),
        (Type::CustomModel(spec::CustomModel { class_name: "Mine".into(), ..Default::default() }), "`Mine`"),
        (Type::SerializedModel(Default::default()), "serializedModel"),
        (Type::BayesianProbitRegressor(Default::default()), "bayesianProbitRegressor (the \u{3b2} of"),
    ];
    for (kind, name) in kinds {
        let model = spec::Model { r#type: Some(kind), ..proto("glm_regressor") };
        let error = load(&model.encode_to_vec()).unwrap_err();
        assert!(
            matches!(error, LoadError::Unsupported { .. }) && error.to_string().contains(name),
            "{error}"
        );
    }
}

/// Pipelines inside each other, written from the inside out, as their decoder would recurse.
fn nested(depth: usize) -> Vec<u8> {
    let inner = proto("scaler");
    let description = inner.description.clone().unwrap().encode_to_vec();
    let mut bytes = inner.encode_to_vec();
    let wrap = |tag: u32, bytes: &[u8]| {
        let mut out = Vec::new();
        prost::encoding::encode_key(tag, prost::encoding::WireType::LengthDelimited, &mut out);
        prost::encoding::encode_varint(bytes.len() as u64, &mut out);
        out.extend_from_slice(bytes);
        out
    };
    for _ in 0..depth {
        bytes = [wrap(2, &description), wrap(202, &wrap(1, &bytes))].concat();
    }
    bytes
}

#[test]
fn pipelines_may_be_nested_but_not_without_end() {
    let model = load(&nested(10)).unwrap();
    let x = Output::Array(Array { shape: vec![4], elements: Elements::Float64(vec![1.0; 4]) });
    let mut sessions = [model, load(&bytes("scaler")).unwrap()].map(|model| model.session(NonZeroUsize::MIN));
    let [deep, flat] = sessions.each_mut().map(|s| s.predict(&[("x", x.as_input())], None, &[]).unwrap());
    assert_eq!(deep, flat);
    for depth in [17, 1000, 10_000] {
        let error = load(&nested(depth)).unwrap_err();
        assert!(matches!(error, LoadError::Corrupt { .. } | LoadError::Decode { .. }), "{error}");
    }
}

/// A folder of its own for a test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("coreml-{name}-{}", std::process::id()));
        std::fs::create_dir_all(path.join("sub")).unwrap();
        Self(path)
    }

    fn link(&self, name: &str, target: &str, search: &str) -> PathBuf {
        let text = |x: &str| Some(spec::StringParameter { default_value: x.into() });
        let file = spec::LinkedModelFile {
            linked_model_file_name: text(target),
            linked_model_search_path: text(search),
        };
        let link = spec::LinkedModel { link_type: Some(spec::linked_model::LinkType::LinkedModelFile(file)) };
        let model = spec::Model { r#type: Some(Type::LinkedModel(link)), ..proto("scaler") };
        let path = self.0.join(name);
        std::fs::write(&path, model.encode_to_vec()).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_linked_model_is_found_next_to_the_model_and_nowhere_else() {
    let folder = Folder::new("linked");
    std::fs::write(folder.0.join("sub/scaler.mlmodel"), bytes("scaler")).unwrap();
    let load = |path: &Path| Model::load(path, &LoadOptions::default()).map_err(|error| report(&error));
    let model = load(&folder.link("a.mlmodel", "scaler.mlmodelc", ".:sub")).unwrap();
    let x = Output::Array(Array { shape: vec![4], elements: Elements::Float64(vec![1.0; 4]) });
    model.session(NonZeroUsize::MIN).predict(&[("x", x.as_input())], None, &[]).unwrap();
    // A link to a link.
    load(&folder.link("b.mlmodel", "a.mlmodel", "")).unwrap();

    let outside = repository("models/digits/digits-f32.mlpackage").canonicalize().unwrap();
    for (target, search, word) in [
        ("../escape.mlmodel", "", "leaves the model's folder"),
        ("escape.mlmodel", "sub/../..", "leaves the model's folder"),
        (outside.to_str().unwrap(), "", "leaves the model's folder"),
        ("digits-f32.mlpackage", outside.parent().unwrap().to_str().unwrap(), "leaves the model's folder"),
        ("scaler.mlmodelc", "$BUNDLE_MAIN", "$BUNDLE_MAIN"),
        ("none.mlmodelc", "", "no `none.mlmodelc`"),
        ("", "", "names no file"),
    ] {
        let text = load(&folder.link("c.mlmodel", target, search)).unwrap_err();
        assert!(text.contains(word), "{target} in {search}: {text}");
    }
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(&outside, folder.0.join("out.mlpackage")).unwrap();
        let text = load(&folder.link("d.mlmodel", "out.mlpackage", "")).unwrap_err();
        assert!(text.contains("leaves the model's folder"), "{text}");
    }
}

#[test]
fn links_that_lead_back_are_refused() {
    let folder = Folder::new("circle");
    let own = folder.link("own.mlmodel", "own.mlmodel", "");
    folder.link("one.mlmodel", "two.mlmodel", "");
    let two = folder.link("two.mlmodel", "one.mlmodel", "");
    for path in [own, two] {
        let text = report(&Model::load(&path, &LoadOptions::default()).unwrap_err());
        assert!(text.contains("lead back"), "{text}");
    }
    for i in 0..40 {
        folder.link(&format!("chain{i}.mlmodel"), &format!("chain{}.mlmodel", i + 1), "");
    }
    let text = report(&Model::load(folder.0.join("chain0.mlmodel"), &LoadOptions::default()).unwrap_err());
    assert!(text.contains("too many"), "{text}");
}

fn fixtures() -> Vec<Vec<u8>> {
    let mut names: Vec<_> = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.retain(|path| path.extension().is_some_and(|ending| ending == "mlmodel"));
    names.sort();
    names.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// A value of the announced kind, small.
fn sample(kind: &coreml_engine::description::FeatureKind) -> Option<Output> {
    use coreml_engine::Key;
    use coreml_engine::description::{FeatureKind, KeyType};
    let key = |kind| match kind {
        KeyType::Int64 => Key::Int64(1),
        KeyType::String => Key::String("a".into()),
    };
    Some(match kind {
        FeatureKind::Int64 => Output::Key(Key::Int64(1)),
        FeatureKind::Double => Output::Double(0.5),
        FeatureKind::String => Output::Key(Key::String("a".into())),
        FeatureKind::Tensor { tensor } => {
            let count =
                tensor.shape.iter().try_fold(1_usize, |n, &m| n.checked_mul(m)).filter(|&n| n < 1 << 16)?;
            Output::Array(Array {
                shape: tensor.shape.clone(),
                elements: Elements::zeros(tensor.dtype, count),
            })
        }
        FeatureKind::Dictionary { dictionary } => Output::Dictionary(vec![(key(dictionary.key), 1.0)]),
        FeatureKind::Sequence { sequence } => Output::Sequence(vec![key(sequence.element)]),
        _ => return None,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_damage_to_a_file_is_an_error_or_another_model(
        which in any::<prop::sample::Index>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let all = fixtures();
        let mut bytes = which.get(&all).clone();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(model) = load(&bytes) {
            let inputs: Vec<_> = model.description().inputs.iter()
                .filter_map(|f| Some((f.name.clone(), sample(&f.kind)?))).collect();
            let inputs: Vec<_> = inputs.iter().map(|(name, x)| (name.as_str(), x.as_input())).collect();
            let _ = model.session(NonZeroUsize::MIN).predict(&inputs, None, &[]);
        }
    }
}
