//! `WeightParams`: single precision, half precision, or quantised to 1 to 8 bits.
//!
//! Formats: the comments of `NeuralNetwork.proto`; the order of bits is that of coremltools'
//! `quantization_utils._convert_array_to_nbit_quantized_bytes`: most significant first, without gaps.

use coreml_proto::proto as spec;
use spec::quantization_params::QuantizationType;

use super::context::invalid;
use crate::error::OpError;
use crate::ir::widen_halves;
use crate::types::element_count;

/// The weights of that name as floats; as many as `shape` says, which is how they lie in the file.
pub(super) fn floats(
    name: &'static str,
    weights: Option<&spec::WeightParams>,
    shape: &[usize],
) -> Result<Vec<f32>, OpError> {
    floats_by_channel(name, weights, shape, 0)
}

/// As [`floats`]; quantised weights have a scale per element of dimension `channel`, or one.
pub(super) fn floats_by_channel(
    name: &'static str,
    weights: Option<&spec::WeightParams>,
    shape: &[usize],
    channel: usize,
) -> Result<Vec<f32>, OpError> {
    let weights = weights.ok_or(OpError::Missing(name))?;
    let wrong = |reason: String| OpError::Parameter { parameter: name, reason };
    let count = element_count(shape).ok_or_else(|| invalid(format!("the shape {shape:?} overflows")))?;
    let spec::WeightParams {
        float_value,
        float16_value,
        raw_value,
        int8_raw_value,
        quantization,
        is_updatable: _,
    } = weights;
    let lengths = [float_value.len(), float16_value.len(), raw_value.len(), int8_raw_value.len()];
    if lengths.iter().filter(|&&n| n > 0).count() > 1 {
        return Err(wrong("weights of several types".into()));
    }
    let expected = |found: usize, unit: &str| {
        wrong(format!("{shape:?} needs {count} elements, the file has {found} {unit}"))
    };
    if !float16_value.is_empty() {
        if Some(float16_value.len()) != count.checked_mul(2) {
            return Err(expected(float16_value.len(), "bytes of halves"));
        }
        return Ok(widen_halves(float16_value));
    }
    if raw_value.is_empty() && int8_raw_value.is_empty() {
        if float_value.len() != count {
            return Err(expected(float_value.len(), "floats"));
        }
        return Ok(float_value.clone());
    }
    let quantization =
        quantization.as_ref().ok_or_else(|| wrong("raw weights without quantisation".into()))?;
    let bits = usize::try_from(quantization.number_of_bits).ok().filter(|bits| (1..=8).contains(bits));
    let bits = bits.ok_or_else(|| wrong(format!("weights of {} bits", quantization.number_of_bits)))?;
    if !int8_raw_value.is_empty() {
        // Symmetric: the weights of layers with `int8DynamicQuantize`.
        let Some(QuantizationType::LinearQuantization(linear)) = &quantization.quantization_type else {
            return Err(wrong("signed weights that are not quantised linearly".into()));
        };
        if bits != 8 || !linear.bias.is_empty() {
            return Err(wrong("signed weights with a bias or without 8 bits".into()));
        }
        if int8_raw_value.len() != count {
            return Err(expected(int8_raw_value.len(), "bytes"));
        }
        return linear_weights(
            linear,
            int8_raw_value.iter().map(|&byte| f32::from(byte.cast_signed())),
            (shape, channel, count),
        )
        .map_err(wrong);
    }
    if count.checked_mul(bits).map(|n| n.div_ceil(8)) != Some(raw_value.len()) {
        return Err(expected(raw_value.len(), &format!("bytes of {bits} bits each")));
    }
    let codes = (0..count).map(|i| code(raw_value, i, bits));
    match quantization.quantization_type.as_ref() {
        Some(QuantizationType::LookupTableQuantization(table)) => {
            if table.float_value.len() != 1 << bits {
                return Err(wrong(format!("a table of {} floats for {bits} bits", table.float_value.len())));
            }
            Ok(codes.map(|code| table.float_value[usize::from(code)]).collect())
        }
        Some(QuantizationType::LinearQuantization(linear)) => {
            linear_weights(linear, codes.map(f32::from), (shape, channel, count)).map_err(wrong)
        }
        None => Err(wrong("a quantisation that is not known".into())),
    }
}

/// Codes times scales plus biases: one for all, one for each element of dimension `channel`, or one for each of the `count`.
fn linear_weights(
    linear: &spec::LinearQuantizationParams,
    codes: impl Iterator<Item = f32>,
    (shape, channel, count): (&[usize], usize, usize),
) -> Result<Vec<f32>, String> {
    let channels = shape.get(channel).copied().unwrap_or(1);
    let after: usize = shape.get(channel + 1..).unwrap_or(&[]).iter().product();
    let pick = |values: &[f32], i: usize| match values.len() {
        0 => 0.0,
        1 => values[0],
        n if n == channels => values[i / after.max(1) % n],
        _ => values[i],
    };
    for (what, values) in [("scales", &linear.scale), ("biases", &linear.bias)] {
        let n = values.len();
        let none = n == 0 && what == "biases";
        if !(none || n == 1 || n == channels || n == count) {
            return Err(format!("{n} {what} for {channels} channels"));
        }
    }
    let value = |(i, code): (usize, f32)| code * pick(&linear.scale, i) + pick(&linear.bias, i);
    Ok(codes.enumerate().map(value).collect())
}

/// Element `i` of the bits.
fn code(bytes: &[u8], i: usize, bits: usize) -> u8 {
    let first = i * bits;
    let high = u16::from(bytes[first / 8]);
    let low = bytes.get(first / 8 + 1).copied().map_or(0, u16::from);
    let shift = 16 - bits - first % 8;
    let value = (high << 8 | low) >> shift & ((1 << bits) - 1);
    value.to_le_bytes()[0]
}

#[cfg(test)]
mod tests {
    use half::f16;
    use spec::{LinearQuantizationParams, LookUpTableQuantizationParams, QuantizationParams, WeightParams};

    use super::*;

    fn quantised(raw: &[u8], bits: u64, ty: QuantizationType) -> WeightParams {
        let quantization = QuantizationParams { number_of_bits: bits, quantization_type: Some(ty) };
        WeightParams { raw_value: raw.to_vec(), quantization: Some(quantization), ..WeightParams::default() }
    }

    fn linear(scale: &[f32], bias: &[f32]) -> QuantizationType {
        let (scale, bias) = (scale.to_vec(), bias.to_vec());
        QuantizationType::LinearQuantization(LinearQuantizationParams { scale, bias })
    }

    #[test]
    fn three_bit_codes_cross_bytes_most_significant_bit_first() {
        // coremltools packs [5, 0, 7, 1, 2, 6] as 10100011 10010101 10000000.
        let weights = quantised(&[0b1010_0011, 0b1001_0101, 0b1000_0000], 3, linear(&[1.0], &[0.0]));
        let found = floats("weights", Some(&weights), &[6]).unwrap();
        assert_eq!(found, [5.0, 0.0, 7.0, 1.0, 2.0, 6.0]);
    }

    #[test]
    fn linear_scales_are_per_channel_of_the_axis_that_is_asked_for() {
        let weights = quantised(&[1, 2, 3, 4], 8, linear(&[1.0, 10.0], &[0.5, 0.0]));
        assert_eq!(floats("weights", Some(&weights), &[2, 2]).unwrap(), [1.5, 2.5, 30.0, 40.0]);
        assert_eq!(floats_by_channel("weights", Some(&weights), &[2, 2], 1).unwrap(), [1.5, 20.0, 3.5, 40.0]);
    }

    #[test]
    fn signed_weights_have_a_scale_and_no_bias() {
        let signed = |raw: &[u8], bias: &[f32]| WeightParams {
            int8_raw_value: raw.to_vec(),
            ..quantised(&[], 8, linear(&[0.5], bias))
        };
        let found = floats("weights", Some(&signed(&[1, 255, 128, 127], &[])), &[2, 2]);
        assert_eq!(found.unwrap(), [0.5, -0.5, -64.0, 63.5]);
        let error = floats("weights", Some(&signed(&[1, 2], &[1.0])), &[2]).unwrap_err();
        assert!(error.to_string().contains("with a bias"), "{error}");
        let error = floats("weights", Some(&signed(&[1], &[])), &[2]).unwrap_err();
        assert!(error.to_string().contains("needs 2 elements"), "{error}");
    }

    #[test]
    fn a_look_up_table_has_a_float_per_code() {
        let table = |n: u8| {
            let float_value = (0..n).map(|x| f32::from(x) - 0.5).collect();
            QuantizationType::LookupTableQuantization(LookUpTableQuantizationParams { float_value })
        };
        let weights = quantised(&[0b0110_1100], 2, table(4));
        assert_eq!(floats("weights", Some(&weights), &[4]).unwrap(), [0.5, 1.5, 2.5, -0.5]);
        let error = floats("weights", Some(&quantised(&[0], 2, table(3))), &[4]).unwrap_err();
        assert!(error.to_string().contains("a table of 3 floats for 2 bits"), "{error}");
    }

    #[test]
    fn halves_are_widened() {
        let bytes: Vec<u8> = [1.5, -2.0].iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
        let weights = WeightParams { float16_value: bytes, ..WeightParams::default() };
        assert_eq!(floats("weights", Some(&weights), &[2]).unwrap(), [1.5, -2.0]);
    }

    #[test]
    fn a_wrong_number_of_weights_is_refused() {
        let floats_of = |n: usize| WeightParams { float_value: vec![0.0; n], ..WeightParams::default() };
        for (weights, shape) in [
            (floats_of(5), &[2, 3][..]),
            (WeightParams { float16_value: vec![0; 11], ..WeightParams::default() }, &[2, 3]),
            (quantised(&[0; 3], 3, linear(&[1.0], &[])), &[2, 3, 3]),
            (quantised(&[0; 6], 8, linear(&[1.0; 4], &[])), &[2, 3]),
            (quantised(&[0; 6], 9, linear(&[1.0], &[])), &[2, 3]),
            (floats_of(1), &[usize::MAX, 2]),
        ] {
            assert!(floats("weights", Some(&weights), shape).is_err(), "{shape:?}");
        }
        assert!(matches!(floats("weights", None, &[1]), Err(OpError::Missing("weights"))));
    }
}
