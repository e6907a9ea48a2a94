//! Item similarity recommender (`ItemSimilarityRecommender.proto`).

use std::collections::{HashMap, HashSet};

use coreml_proto::proto as spec;

use super::{Answer, Built, Compute, Features, Makes, numbers, wrong};
use crate::convert;
use crate::decode::DecodeError;
use crate::error::KernelError;
use crate::feature::{Input, Key, Output};

struct Recommender {
    keys: Vec<Key>,
    places: HashMap<Key, usize>,
    /// For every item those that are similar, and how much.
    similar: Vec<Vec<(usize, f64)>>,
    /// For every item what its score is adjusted by.
    shifts: Vec<f64>,
    /// Names of the inputs: items, number, restriction, exclusion.
    inputs: [String; 4],
    /// Names of the outputs: list, scores.
    outputs: [String; 2],
}

pub(super) fn recommender(model: &spec::ItemSimilarityRecommender) -> Result<Built, DecodeError> {
    let spec::ItemSimilarityRecommender {
        item_item_similarities,
        item_string_ids,
        item_int64_ids,
        item_input_feature_name,
        num_recommendations_input_feature_name,
        item_restriction_input_feature_name,
        item_exclusion_input_feature_name,
        recommended_item_list_output_feature_name,
        recommended_item_score_output_feature_name,
    } = model;
    let corrupt = |reason: String| DecodeError::corrupt("item similarity recommender", reason);
    let strings = item_string_ids.as_ref().map(|ids| &ids.vector).filter(|ids| !ids.is_empty());
    let ints = item_int64_ids.as_ref().map(|ids| &ids.vector).filter(|ids| !ids.is_empty());
    let keys: Vec<Key> = match (strings, ints) {
        (Some(_), Some(_)) => return Err(corrupt("its items have ids of both kinds".into())),
        (Some(ids), None) => ids.iter().cloned().map(Key::String).collect(),
        (None, Some(ids)) => ids.iter().copied().map(Key::Int64).collect(),
        (None, None) => {
            let mut ids = HashSet::new();
            for item in item_item_similarities {
                ids.insert(item.item_id);
                ids.extend(item.similar_item_list.iter().map(|other| other.item_id));
            }
            // They must number 0, 1 and so on, so there are not more than the file has.
            if ids.iter().any(|&id| id >= ids.len() as u64) {
                return Err(corrupt(
                    "its items have no ids and are not numbered from 0 without a gap".into(),
                ));
            }
            (0_i64..).map(Key::Int64).take(ids.len()).collect()
        }
    };
    let places: HashMap<Key, usize> = keys.iter().cloned().zip(0..).collect();
    if keys.is_empty() || places.len() != keys.len() {
        return Err(corrupt("it has no items, or one of them twice".into()));
    }
    let place = |id: u64| {
        let place = usize::try_from(id).ok().filter(|&id| id < keys.len());
        place.ok_or_else(|| corrupt(format!("item {id} of {}", keys.len())))
    };
    let mut similar = vec![Vec::new(); keys.len()];
    let mut shifts = vec![0.0; keys.len()];
    for item in item_item_similarities {
        let at = place(item.item_id)?;
        shifts[at] = item.item_score_adjustment;
        for other in &item.similar_item_list {
            similar[at].push((place(other.item_id)?, other.similarity_score));
        }
    }
    if item_input_feature_name.is_empty() {
        return Err(corrupt("it names no input of items".into()));
    }
    let outputs = [
        recommended_item_list_output_feature_name.clone(),
        recommended_item_score_output_feature_name.clone(),
    ];
    let names = outputs.iter().filter(|name| !name.is_empty()).cloned().collect();
    let inputs = [
        item_input_feature_name.clone(),
        num_recommendations_input_feature_name.clone(),
        item_restriction_input_feature_name.clone(),
        item_exclusion_input_feature_name.clone(),
    ];
    let compute = Recommender { keys, places, similar, shifts, inputs, outputs };
    Ok(Built { compute: Box::new(compute), makes: Makes::Named(names) })
}

impl Recommender {
    /// Places and scores of the items of a list (whose scores are 1) or a dictionary. Unknown items say nothing.
    fn items(&self, input: &Input<'_>) -> Result<Vec<(usize, f64)>, KernelError> {
        let place = |key: &Key| self.places.get(key).copied();
        Ok(match input {
            Input::Dictionary(entries) => {
                entries.iter().filter_map(|(key, x)| Some((place(key)?, *x))).collect()
            }
            Input::Sequence(keys) => keys.iter().filter_map(|key| Some((place(key)?, 1.0))).collect(),
            other => return Err(wrong("a dictionary or a sequence of items", other)),
        })
    }
}

impl Compute for Recommender {
    fn run(&self, features: &Features<'_>) -> Result<Answer, KernelError> {
        let [items, number, restriction, exclusion] = &self.inputs;
        let optional = |name: &String| features.find(name).filter(|_| !name.is_empty());
        let observed = self.items(&features.required(items)?)?;
        let most = match optional(number) {
            None => self.keys.len(),
            Some(input) => match numbers(&input)?[..] {
                [x] => convert::integer(x)
                    .ok()
                    .and_then(|n| usize::try_from(n).ok())
                    .ok_or_else(|| KernelError::value(format!("{x} recommendations")))?,
                _ => return Err(wrong("one number", &input)),
            },
        };
        let mut allowed = vec![true; self.keys.len()];
        if let Some(input) = optional(restriction) {
            allowed.fill(false);
            self.items(&input)?.into_iter().for_each(|(i, _)| allowed[i] = true);
        }
        let excluded = match optional(exclusion) {
            Some(input) => self.items(&input)?,
            None => observed.clone(),
        };
        excluded.into_iter().for_each(|(i, _)| allowed[i] = false);
        let mut scores = vec![0.0; self.keys.len()];
        for (i, score) in observed {
            for &(k, similarity) in &self.similar[i] {
                scores[k] += similarity * (score - self.shifts[k]);
            }
        }
        let mut order: Vec<usize> = (0..self.keys.len()).filter(|&k| allowed[k]).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        order.truncate(most);
        let [list, by_item] = self.outputs.clone();
        let scored = order.iter().map(|&k| (self.keys[k].clone(), scores[k])).collect();
        let listed = order.iter().map(|&k| self.keys[k].clone()).collect();
        Ok(Answer::Named(vec![(list, Output::Sequence(listed)), (by_item, Output::Dictionary(scored))]))
    }
}
