//! Networks that are planned for one shape at a time.
//!
//! A layer becomes ops by the ranks and sizes of its blobs. Flexible inputs may leave open what it needs: the rank of a blob whose
//! shape is an input, the size of a crop. Such a network is planned when it is first given inputs of some shapes, and the plans
//! used last are kept.

use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};

use coreml_proto::proto::model::Type as ModelType;

use crate::CustomLayers;
use crate::description::{FeatureKind, ModelDescription};
use crate::error::LoadError;
use crate::model::{Limits, Model};
use crate::nn;

/// How many plans a network keeps, and each of its sessions.
pub(crate) const KEPT: usize = 8;

/// A network as the file has it, and what it may use.
pub(crate) struct Network<'a> {
    pub(crate) kind: Cow<'a, ModelType>,
    pub(crate) specification_version: i32,
    pub(crate) custom: Cow<'a, CustomLayers>,
    pub(crate) limits: Limits,
}

impl Network<'_> {
    /// For the inputs of the description.
    pub(crate) fn plan(&self, name: &str, description: ModelDescription) -> Result<Model, LoadError> {
        let decoded = nn::decode(&self.kind, self.specification_version, &description, &self.custom)
            .map_err(|error| error.of(name))?;
        Model::of_program(name, description, decoded, &self.limits)
    }
}

/// A network, and its plans for inputs of certain shapes.
pub(crate) struct Shaped {
    network: Network<'static>,
    /// By the kinds of the inputs; the one used last is at the end.
    plans: Mutex<Vec<(Vec<FeatureKind>, Model)>>,
}

impl Shaped {
    /// Plans the network for the default shapes, so that what is wrong with it at every shape is seen.
    pub(crate) fn new(
        network: Network<'_>,
        name: &str,
        description: &ModelDescription,
    ) -> Result<Self, LoadError> {
        let Network { kind, specification_version, custom, limits } = network;
        let (kind, custom) = (Cow::Owned(kind.into_owned()), Cow::Owned(custom.into_owned()));
        let network = Network { kind, specification_version, custom, limits };
        let shaped = Self { network, plans: Mutex::default() };
        let inputs = description.fixed().inputs.into_iter().map(|input| input.kind).collect();
        shaped.plan(name, description, inputs)?;
        Ok(shaped)
    }

    /// The network for inputs of those kinds, in the order of the description.
    pub(crate) fn plan(
        &self,
        name: &str,
        description: &ModelDescription,
        inputs: Vec<FeatureKind>,
    ) -> Result<Model, LoadError> {
        let plans = || self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let known = {
            let mut plans = plans();
            let place = plans.iter().position(|(known, _)| *known == inputs);
            place.map(|i| plans.remove(i).1)
        };
        // Not under the lock: other sessions predict meanwhile.
        let model = match known {
            Some(model) => model,
            None => {
                let mut description = description.clone();
                for (feature, kind) in description.inputs.iter_mut().zip(&inputs) {
                    feature.kind.clone_from(kind);
                }
                self.network.plan(name, description)?
            }
        };
        let mut plans = plans();
        plans.retain(|(known, _)| *known != inputs);
        plans.push((inputs, model.clone()));
        let spare = plans.len().saturating_sub(KEPT);
        plans.drain(..spare);
        Ok(model)
    }

    /// The plan that was used last; what is said of the network is said of it.
    pub(crate) fn last(&self) -> Option<Model> {
        let plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        plans.last().map(|(_, model)| model.clone())
    }
}
