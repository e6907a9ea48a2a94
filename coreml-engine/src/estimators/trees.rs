//! Tree ensembles (`TreeEnsemble.proto`).
//!
//! A tree's root is the node that is nobody's child. A file whose trees have none, several, a child that does not exist, a
//! node with two parents or a cycle is refused, so that an evaluation ends after as many steps as the tree has nodes.

use std::collections::HashMap;

use coreml_proto::proto as spec;
use spec::TreeEnsemblePostEvaluationTransform as Transform;
use spec::tree_ensemble_parameters::TreeNode;
use spec::tree_ensemble_parameters::tree_node::TreeNodeBehavior as Behavior;

use super::linear::{logistic, softmax};
use super::{Answer, Built, Compute, Features, Makes, labels};
use crate::decode::DecodeError;
use crate::error::KernelError;

enum Node {
    Branch {
        behavior: Behavior,
        feature: usize,
        value: f64,
        /// Where to go if the test holds, does not, and if the feature is missing (NaN).
        children: [u32; 3],
    },
    /// What to add to which dimension: a part of `Trees::leaves`.
    Leaf { from: u32, to: u32 },
}

struct Trees {
    nodes: Vec<Node>,
    roots: Vec<u32>,
    leaves: Vec<(usize, f64)>,
    base: Vec<f64>,
    /// How many features the tests read.
    width: usize,
}

impl Trees {
    fn new(parameters: Option<&spec::TreeEnsembleParameters>) -> Result<Self, DecodeError> {
        let corrupt = |reason: String| DecodeError::corrupt("tree ensemble", reason);
        let parameters = parameters.ok_or_else(|| corrupt("it has no trees".into()))?;
        let spec::TreeEnsembleParameters { nodes: given, num_prediction_dimensions, base_prediction_value } =
            parameters;
        let place = |i: usize| u32::try_from(i).map_err(|_| corrupt(format!("{} nodes", given.len())));
        let mut places = HashMap::with_capacity(given.len());
        for (i, node) in given.iter().enumerate() {
            if places.insert((node.tree_id, node.node_id), place(i)?).is_some() {
                return Err(corrupt(format!("node {} of tree {} twice", node.node_id, node.tree_id)));
            }
        }
        let most = given.iter().flat_map(|node| &node.evaluation_info).map(|e| e.evaluation_index).max();
        let dimensions = match base_prediction_value.len() {
            0 => usize::try_from(*num_prediction_dimensions).ok().filter(|&n| {
                // No base: not more dimensions than the leaves have.
                n > 0 && (n == 1 || most.is_some_and(|most| n as u64 <= most.saturating_add(1)))
            }),
            n => Some(n).filter(|&n| n as u64 == *num_prediction_dimensions),
        };
        let dimensions = dimensions.ok_or_else(|| {
            let found = base_prediction_value.len();
            corrupt(format!("{found} base predictions for {num_prediction_dimensions} dimensions"))
        })?;
        let base = if base_prediction_value.is_empty() {
            vec![0.0; dimensions]
        } else {
            base_prediction_value.clone()
        };
        let mut trees =
            Self { nodes: Vec::with_capacity(given.len()), roots: vec![], leaves: vec![], base, width: 0 };
        let mut is_child = vec![false; given.len()];
        for node in given {
            let made = trees.node(node, &places, dimensions).map_err(|reason| {
                corrupt(format!("node {} of tree {}: {reason}", node.node_id, node.tree_id))
            })?;
            if let Node::Branch { children: [yes, no, _], .. } = made {
                for child in [yes, no] {
                    if std::mem::replace(&mut is_child[child as usize], true) {
                        return Err(corrupt(format!("two nodes of tree {} have one child", node.tree_id)));
                    }
                }
            }
            trees.nodes.push(made);
        }
        trees.find_roots(given, &is_child).map_err(corrupt)?;
        Ok(trees)
    }

    fn node(
        &mut self,
        node: &TreeNode,
        places: &HashMap<(u64, u64), u32>,
        dimensions: usize,
    ) -> Result<Node, String> {
        let behavior = Behavior::try_from(node.node_behavior)
            .map_err(|_| format!("unknown behavior {}", node.node_behavior))?;
        if behavior == Behavior::LeafNode {
            let from = self.leaves.len();
            for value in &node.evaluation_info {
                let index = usize::try_from(value.evaluation_index).ok().filter(|&i| i < dimensions);
                let index = index.ok_or_else(|| {
                    format!("evaluation index {} of {dimensions} dimensions", value.evaluation_index)
                })?;
                self.leaves.push((index, value.evaluation_value));
            }
            let place = |i: usize| u32::try_from(i).map_err(|_| "too many values of leaves".to_owned());
            return Ok(Node::Leaf { from: place(from)?, to: place(self.leaves.len())? });
        }
        let child = |id: u64| {
            places.get(&(node.tree_id, id)).copied().ok_or_else(|| format!("its child {id} does not exist"))
        };
        let (yes, no) = (child(node.true_child_node_id)?, child(node.false_child_node_id)?);
        let missing = if node.missing_value_tracks_true_child { yes } else { no };
        let feature = usize::try_from(node.branch_feature_index).unwrap_or(usize::MAX);
        self.width = self.width.max(feature.saturating_add(1));
        Ok(Node::Branch { behavior, feature, value: node.branch_feature_value, children: [yes, no, missing] })
    }

    /// One root for every tree, from which all its nodes are reached.
    fn find_roots(&mut self, given: &[TreeNode], is_child: &[bool]) -> Result<(), String> {
        let mut roots: HashMap<u64, u32> = HashMap::new();
        let mut ids = Vec::new();
        for (i, (node, is_child)) in given.iter().zip(is_child).enumerate() {
            if !is_child {
                if roots.insert(node.tree_id, u32::try_from(i).unwrap_or(u32::MAX)).is_some() {
                    return Err(format!("tree {} has more than one root", node.tree_id));
                }
                ids.push(node.tree_id);
            }
        }
        // Every node has at most one parent, so what a root does not reach goes round in a circle.
        let mut reached = 0;
        let mut next: Vec<u32> = roots.values().copied().collect();
        while let Some(place) = next.pop() {
            reached += 1;
            if let Some(Node::Branch { children: [yes, no, _], .. }) = self.nodes.get(place as usize) {
                next.extend([*yes, *no]);
            }
        }
        if reached != given.len() {
            return Err("the nodes of a tree go round in a circle".into());
        }
        self.roots = ids.iter().filter_map(|id| roots.get(id).copied()).collect();
        Ok(())
    }

    fn apply(&self, features: &Features<'_>) -> Result<Vec<f64>, KernelError> {
        let x = features.numbers()?;
        if x.len() < self.width {
            return Err(KernelError::shape(format!(
                "the trees read {} features, found {}",
                self.width,
                x.len()
            )));
        }
        let mut sums = self.base.clone();
        for &root in &self.roots {
            let mut at = root;
            loop {
                match &self.nodes[at as usize] {
                    Node::Branch { behavior, feature, value, children: [yes, no, missing] } => {
                        let (x, value) = (x[*feature], *value);
                        let holds = match behavior {
                            _ if x.is_nan() => {
                                at = *missing;
                                continue;
                            }
                            Behavior::BranchOnValueLessThanEqual => x <= value,
                            Behavior::BranchOnValueLessThan => x < value,
                            Behavior::BranchOnValueGreaterThanEqual => x >= value,
                            Behavior::BranchOnValueGreaterThan => x > value,
                            Behavior::BranchOnValueEqual => x == value,
                            Behavior::BranchOnValueNotEqual => x != value,
                            // `node` makes no branch of it.
                            Behavior::LeafNode => false,
                        };
                        at = if holds { *yes } else { *no };
                    }
                    Node::Leaf { from, to } => {
                        for &(index, value) in &self.leaves[*from as usize..*to as usize] {
                            sums[index] += value;
                        }
                        break;
                    }
                }
            }
        }
        Ok(sums)
    }
}

fn transform_of(number: i32) -> Result<Transform, DecodeError> {
    Transform::try_from(number).map_err(|_| {
        DecodeError::corrupt("tree ensemble", format!("unknown post-evaluation transform {number}"))
    })
}

fn transformed(mut x: Vec<f64>, transform: Transform) -> Vec<f64> {
    match transform {
        Transform::NoTransform => x,
        Transform::ClassificationSoftMax => softmax(x),
        Transform::RegressionLogistic => x.into_iter().map(logistic).collect(),
        Transform::ClassificationSoftMaxWithZeroClassReference => {
            x.insert(0, 0.0);
            softmax(x)
        }
    }
}

struct Regressor {
    trees: Trees,
    transform: Transform,
}

pub(super) fn regressor(model: &spec::TreeEnsembleRegressor) -> Result<Built, DecodeError> {
    let spec::TreeEnsembleRegressor { tree_ensemble, post_evaluation_transform } = model;
    let trees = Trees::new(tree_ensemble.as_ref())?;
    Ok(Built::one(Regressor { trees, transform: transform_of(*post_evaluation_transform)? }))
}

impl Compute for Regressor {
    fn run(&self, features: &Features<'_>) -> Result<Answer, KernelError> {
        Ok(Answer::numbers(transformed(self.trees.apply(features)?, self.transform)))
    }
}

struct Classifier {
    trees: Trees,
    transform: Transform,
    /// Of two classes: the trees say how much the second is like.
    second: bool,
}

pub(super) fn classifier(model: &spec::TreeEnsembleClassifier) -> Result<Built, DecodeError> {
    let spec::TreeEnsembleClassifier { tree_ensemble, post_evaluation_transform, class_labels } = model;
    let labels = labels!(class_labels, spec::tree_ensemble_classifier::ClassLabels)?;
    let trees = Trees::new(tree_ensemble.as_ref())?;
    let transform = transform_of(*post_evaluation_transform)?;
    let reference = transform == Transform::ClassificationSoftMaxWithZeroClassReference;
    let made = trees.base.len() + usize::from(reference);
    // A softmax of one number is always 1; so only the others can say something of the second class.
    let second = made == 1 && labels.len() == 2 && transform != Transform::ClassificationSoftMax;
    if made != labels.len() && !second {
        let reason = format!("{made} scores ({}) for {} labels", transform.as_str_name(), labels.len());
        return Err(DecodeError::corrupt("tree ensemble", reason));
    }
    let compute = Box::new(Classifier { trees, transform, second });
    Ok(Built { compute, makes: Makes::Class { labels, probabilities: true } })
}

impl Compute for Classifier {
    fn run(&self, features: &Features<'_>) -> Result<Answer, KernelError> {
        let scores = transformed(self.trees.apply(features)?, self.transform);
        Ok(Answer::probabilities(match scores[..] {
            [second] if self.second => vec![1.0 - second, second],
            _ => scores,
        }))
    }
}
