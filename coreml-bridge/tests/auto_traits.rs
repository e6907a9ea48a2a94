//! What may cross threads, shown when this file compiles. What may not is shown in `compile-fail`.

use coreml_bridge::{
    Bridge, BridgeError, Config, Dictionary, Error, FeatureError, Features, Image, ImageError,
    ModelDescription, ModelRef, NativeError, Prediction, Sequence, Tensor, TensorError, Value,
};

const fn crosses_threads<T: Send + Sync + 'static>() {}

const _: () = {
    crosses_threads::<Bridge>();
    crosses_threads::<Config>();
    crosses_threads::<ModelRef>();
    crosses_threads::<ModelDescription>();
    crosses_threads::<Tensor>();
    crosses_threads::<Image>();
    crosses_threads::<Dictionary>();
    crosses_threads::<Sequence>();
    crosses_threads::<Value>();
    crosses_threads::<Features>();
    crosses_threads::<Prediction>();
    crosses_threads::<Error>();
    crosses_threads::<NativeError>();
    crosses_threads::<BridgeError>();
    crosses_threads::<TensorError>();
    crosses_threads::<ImageError>();
    crosses_threads::<FeatureError>();
};

#[test]
fn a_reference_is_as_small_as_its_number() {
    assert_eq!(size_of::<ModelRef>(), 8);
}

#[test]
fn an_error_is_small_enough_to_return() {
    assert!(size_of::<Error>() <= 112, "{}", size_of::<Error>());
}
