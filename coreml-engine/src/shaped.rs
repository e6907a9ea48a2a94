//! Networks that are planned for one shape at a time.
//!
//! A layer becomes ops by the ranks and sizes of its blobs. Flexible inputs may leave open what it needs: the rank of a blob whose
//! shape is an input, the size of a crop. Such a network is planned when it is first given inputs of some shapes. The plans used last
//! are kept, each with weights of its own, and so are the network and its weights as the file has them.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coreml_proto::proto::model::Type as ModelType;

use crate::CustomLayers;
use crate::description::ModelDescription;
use crate::error::LoadError;
use crate::model::{Limits, Model};
use crate::nn;

/// How many plans are kept.
const KEPT: usize = 4;

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

    fn into_owned(self) -> Network<'static> {
        Network {
            kind: Cow::Owned(self.kind.into_owned()),
            custom: Cow::Owned(self.custom.into_owned()),
            specification_version: self.specification_version,
            limits: self.limits,
        }
    }
}

/// The shape of each input, in the order of the description, if it may have several; the default one if none is given.
pub(crate) type Shapes = Vec<Option<Vec<usize>>>;

/// The plan for certain shapes. Whoever needs it waits for whoever makes it.
type Slot = Arc<Mutex<Option<Model>>>;

/// A network, and its plans for inputs of certain shapes.
pub(crate) struct Shaped {
    network: Network<'static>,
    /// The one used last is at the end.
    plans: Mutex<Vec<(Shapes, Slot)>>,
    /// Steps and multiply-adds for the default shapes.
    pub(crate) size: (usize, usize),
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shaped {
    /// Plans the network for the default shapes, so that what is wrong with it at every shape is seen. Gives that plan, too.
    pub(crate) fn new(
        network: Network<'_>,
        name: &str,
        description: &ModelDescription,
    ) -> Result<(Self, Model), LoadError> {
        let mut shaped = Self { network: network.into_owned(), plans: Mutex::default(), size: (0, 0) };
        let plan = shaped.plan(name, description, &vec![None; description.inputs.len()])?;
        shaped.size = plan.plan_size();
        Ok((shaped, plan))
    }

    /// The network for inputs of those shapes.
    pub(crate) fn plan(
        &self,
        name: &str,
        description: &ModelDescription,
        shapes: &Shapes,
    ) -> Result<Model, LoadError> {
        let slot = {
            let mut plans = locked(&self.plans);
            let known = plans.iter().position(|(known, _)| known == shapes);
            let entry = known.map_or_else(|| (shapes.clone(), Slot::default()), |i| plans.remove(i));
            let slot = Arc::clone(&entry.1);
            plans.push(entry);
            let spare = plans.len().saturating_sub(KEPT);
            plans.drain(..spare);
            slot
        };
        let mut plan = locked(&slot);
        if let Some(plan) = &*plan {
            return Ok(plan.clone());
        }
        let made = self.network.plan(name, description.fixed(shapes));
        match &made {
            Ok(made) => *plan = Some(made.clone()),
            // What cannot be planned keeps nothing else out.
            Err(_) => locked(&self.plans).retain(|(_, other)| !Arc::ptr_eq(other, &slot)),
        }
        made
    }

    /// Bytes of the constants of all plans that are kept.
    pub(crate) fn constant_bytes(&self) -> usize {
        let slots: Vec<Slot> = locked(&self.plans).iter().map(|(_, slot)| Arc::clone(slot)).collect();
        let bytes = |slot: &Slot| slot.try_lock().ok()?.as_ref().map(Model::constant_bytes);
        slots.iter().filter_map(bytes).fold(0, usize::saturating_add)
    }
}
