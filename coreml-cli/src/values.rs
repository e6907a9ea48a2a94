//! Values from files and to files: NumPy arrays, pictures, JSON.

use std::io::BufWriter;
use std::path::Path;

use anyhow::{Context, bail};
use coreml_bridge::{
    Color, Dictionary, Dtype, Element, FeatureKind, Image, ImageSpec, Sequence, Tensor, TensorSpec, Value,
};
use image::imageops::FilterType;
use npyz::WriterBuilder;
use serde_json::Value as Json;

/// Reads a value of that kind from a file, by its ending.
pub(crate) fn read(path: &Path, kind: &FeatureKind) -> anyhow::Result<Value> {
    let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    match ending.as_str() {
        "npy" => read_npy(path, kind),
        "json" => read_json(path, kind),
        "png" | "jpg" | "jpeg" => read_picture(path, kind),
        _ => bail!("expected a file ending in .npy, .json, .png, .jpg or .jpeg"),
    }
}

fn read_npy(path: &Path, kind: &FeatureKind) -> anyhow::Result<Value> {
    let file = std::io::BufReader::new(std::fs::File::open(path)?);
    let npy = npyz::NpyFile::new(file).context("not a NumPy file")?;
    let shape = npy
        .shape()
        .iter()
        .map(|&n| usize::try_from(n).context("a dimension does not fit this machine"))
        .collect::<anyhow::Result<Vec<_>>>()?;
    if npy.order() != npyz::Order::C {
        bail!("the array is in Fortran order; save it with numpy.ascontiguousarray");
    }
    let npyz::DType::Plain(found) = npy.dtype() else { bail!("structured arrays are not supported") };
    let numbers = match found.to_string().trim_start_matches(['<', '|', '=']) {
        "f4" => Numbers::Floats(Tensor::from_vec(&shape, npy.into_vec::<f32>()?)?),
        "f8" => Numbers::Floats(Tensor::from_vec(&shape, npy.into_vec::<f64>()?)?),
        "f2" => Numbers::Floats(Tensor::from_vec(&shape, npy.into_vec::<coreml_bridge::f16>()?)?),
        "i8" => Numbers::Integers(npy.into_vec()?),
        "i4" => Numbers::Integers(npy.into_vec::<i32>()?.into_iter().map(i64::from).collect()),
        "i1" => Numbers::Integers(npy.into_vec::<i8>()?.into_iter().map(i64::from).collect()),
        "u1" => Numbers::Integers(npy.into_vec::<u8>()?.into_iter().map(i64::from).collect()),
        other => bail!("element type {other} is not supported"),
    };
    Ok(match (kind, numbers) {
        (FeatureKind::Tensor(spec), Numbers::Integers(all)) => {
            Value::Tensor(integers(&shape, &all, spec.dtype)?)
        }
        (FeatureKind::Tensor(spec), Numbers::Floats(tensor)) => Value::Tensor(floats(&tensor, spec.dtype)?),
        (FeatureKind::Int64, Numbers::Integers(all)) if all.len() == 1 => Value::Int64(all[0]),
        (FeatureKind::Double, Numbers::Integers(all)) if all.len() == 1 => Value::Double(all[0] as f64),
        (FeatureKind::Double, Numbers::Floats(tensor)) if tensor.len() == 1 => {
            Value::Double(tensor.cast(Dtype::Float64).to_vec::<f64>()?[0])
        }
        (FeatureKind::Int64, Numbers::Floats(tensor)) => {
            bail!("the array has {} elements, the model takes an integer", tensor.dtype())
        }
        (FeatureKind::Int64 | FeatureKind::Double, _) => {
            bail!("the array has the shape {shape:?}, the model takes one number")
        }
        _ => bail!("an array cannot become that"),
    })
}

/// What an array holds: integers as they are, because a float does not hold all of them.
enum Numbers {
    Integers(Vec<i64>),
    Floats(Tensor),
}

/// Floats of another width; a float never silently becomes an integer.
fn floats(tensor: &Tensor, dtype: Dtype) -> anyhow::Result<Tensor> {
    if !dtype.is_float() {
        bail!("the array has {} elements, the model takes {dtype}", tensor.dtype());
    }
    Ok(tensor.cast(dtype))
}

/// Integers in the type that the model takes, if they fit it.
fn integers(shape: &[usize], all: &[i64], dtype: Dtype) -> anyhow::Result<Tensor> {
    fn narrow<T: Element + TryFrom<i64>>(
        shape: &[usize],
        all: &[i64],
        dtype: Dtype,
    ) -> anyhow::Result<Tensor> {
        let fit = |&x: &i64| T::try_from(x).ok().with_context(|| format!("{x} does not fit {dtype}"));
        Ok(Tensor::from_vec(shape, all.iter().map(fit).collect::<anyhow::Result<Vec<T>>>()?)?)
    }
    match dtype {
        Dtype::Int32 => narrow::<i32>(shape, all, dtype),
        Dtype::Int8 => narrow::<i8>(shape, all, dtype),
        _ => Ok(Tensor::from_vec(shape, all.iter().map(|&x| x as f64).collect())?.cast(dtype)),
    }
}

fn read_json(path: &Path, kind: &FeatureKind) -> anyhow::Result<Value> {
    let json: Json = serde_json::from_slice(&std::fs::read(path)?)?;
    Ok(match kind {
        FeatureKind::Int64 => Value::Int64(json.as_i64().context("expected an integer")?),
        FeatureKind::Double => Value::Double(json.as_f64().context("expected a number")?),
        FeatureKind::String => json.as_str().context("expected a string")?.into(),
        FeatureKind::Tensor(spec) => Value::Tensor(json_tensor(&json, spec.dtype)?),
        FeatureKind::Dictionary(spec) => {
            let members = json.as_object().context("expected an object")?;
            let number = |x: &Json| x.as_f64().context("expected numbers as values");
            Value::Dictionary(match spec.key {
                coreml_bridge::KeyKind::String => members
                    .iter()
                    .map(|(key, x)| Ok((key.clone(), number(x)?)))
                    .collect::<anyhow::Result<Vec<_>>>()?
                    .into_iter()
                    .collect::<Dictionary>(),
                coreml_bridge::KeyKind::Int64 => members
                    .iter()
                    .map(|(key, x)| {
                        Ok((key.parse::<i64>().context("expected integers as keys")?, number(x)?))
                    })
                    .collect::<anyhow::Result<Vec<_>>>()?
                    .into_iter()
                    .collect::<Dictionary>(),
            })
        }
        FeatureKind::Sequence(spec) => {
            let elements = json.as_array().context("expected a list")?;
            Value::Sequence(match spec.element {
                coreml_bridge::KeyKind::String => elements
                    .iter()
                    .map(|x| x.as_str().map(str::to_owned).context("expected strings"))
                    .collect::<anyhow::Result<Vec<_>>>()?
                    .into_iter()
                    .collect::<Sequence>(),
                coreml_bridge::KeyKind::Int64 => elements
                    .iter()
                    .map(|x| x.as_i64().context("expected integers"))
                    .collect::<anyhow::Result<Vec<_>>>()?
                    .into_iter()
                    .collect::<Sequence>(),
            })
        }
        _ => bail!("JSON cannot become that"),
    })
}

/// Nested lists of numbers.
fn json_tensor(json: &Json, dtype: Dtype) -> anyhow::Result<Tensor> {
    fn flatten<'j>(
        json: &'j Json,
        depth: usize,
        shape: &mut Vec<usize>,
        out: &mut Vec<&'j serde_json::Number>,
    ) -> anyhow::Result<()> {
        match json {
            Json::Array(elements) => {
                if shape.len() == depth {
                    shape.push(elements.len());
                }
                if shape.get(depth) != Some(&elements.len()) {
                    bail!("the lists have different lengths");
                }
                elements.iter().try_for_each(|element| flatten(element, depth + 1, shape, out))
            }
            other if depth == shape.len() => {
                out.push(other.as_number().context("expected numbers")?);
                Ok(())
            }
            _ => bail!("a number where a list is expected"),
        }
    }
    let (mut shape, mut numbers) = (Vec::new(), Vec::new());
    flatten(json, 0, &mut shape, &mut numbers)?;
    if dtype.is_float() {
        let number = |x: &&serde_json::Number| x.as_f64().with_context(|| format!("{x} is too large"));
        let numbers = numbers.iter().map(number).collect::<anyhow::Result<Vec<_>>>()?;
        return Ok(Tensor::from_vec(&shape, numbers)?.cast(dtype));
    }
    let integer = |x: &&serde_json::Number| whole(x).with_context(|| format!("expected integers, found {x}"));
    integers(&shape, &numbers.iter().map(integer).collect::<anyhow::Result<Vec<_>>>()?, dtype)
}

/// The number, if it is an integer; `2.0` is one.
fn whole(x: &serde_json::Number) -> Option<i64> {
    /// Up to here a float holds every integer.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let of_float = |x: f64| (x.fract() == 0.0 && x.abs() <= EXACT).then_some(x as i64);
    x.as_i64().or_else(|| of_float(x.as_f64()?))
}

fn read_picture(path: &Path, kind: &FeatureKind) -> anyhow::Result<Value> {
    let picture = image::open(path).context("not a picture")?;
    match kind {
        FeatureKind::Image(spec) => picture_image(picture, spec).map(Value::Image),
        FeatureKind::Tensor(spec) => picture_tensor(&picture, spec).map(Value::Tensor),
        _ => bail!("a picture cannot become that"),
    }
}

/// Scaled to the model's size, unless it takes this one.
fn picture_image(picture: image::DynamicImage, spec: &ImageSpec) -> anyhow::Result<Image> {
    let format = spec.color.pixel_format();
    let picture = if spec.accepts(format, picture.width(), picture.height()).is_ok() {
        picture
    } else {
        picture.resize_exact(spec.width, spec.height, FilterType::Triangle)
    };
    let (width, height) = (picture.width(), picture.height());
    Ok(match spec.color {
        Color::Gray => Image::from_gray(width, height, picture.into_luma8().into_raw())?,
        Color::GrayFloat16 => {
            let pixels: Vec<_> = picture
                .into_luma8()
                .into_raw()
                .into_iter()
                .map(|x| coreml_bridge::f16::from_f32(f32::from(x)))
                .collect();
            Image::from_gray16f(width, height, &pixels)?
        }
        _ => Image::from_rgba(width, height, picture.into_rgba8().as_raw())?,
    })
}

/// `[.., C, H, W]` with values 0 to 1; one channel is grey, three are red, green, blue.
fn picture_tensor(picture: &image::DynamicImage, spec: &TensorSpec) -> anyhow::Result<Tensor> {
    let [lead @ .., channels, height, width] = &spec.shape[..] else {
        bail!("the model takes shape {:?}, which is not [.., C, H, W]", spec.shape);
    };
    if lead.iter().any(|&n| n != 1) || ![1, 3].contains(channels) {
        bail!("the model takes shape {:?}, which is not one picture of 1 or 3 channels", spec.shape);
    }
    let size = |n: &usize| u32::try_from(*n).context("a dimension is too large for a picture");
    let picture = picture.resize_exact(size(width)?, size(height)?, FilterType::Triangle);
    let planes: Vec<f32> = if *channels == 1 {
        picture.to_luma8().into_raw().into_iter().map(|x| f32::from(x) / 255.0).collect()
    } else {
        let pixels = picture.to_rgb8().into_raw();
        (0..3).flat_map(|c| pixels.iter().skip(c).step_by(3).map(|&x| f32::from(x) / 255.0)).collect()
    };
    Ok(Tensor::from_vec(&spec.shape, planes)?.cast(spec.dtype))
}

/// A value in one line.
pub(crate) fn summary(value: &Value) -> anyhow::Result<String> {
    const SHOWN: usize = 8;
    Ok(match value {
        Value::Tensor(tensor) => {
            let numbers = tensor.cast(Dtype::Float64).to_vec::<f64>()?;
            let shown: Vec<String> = numbers.iter().take(SHOWN).map(|x| format!("{x:.6}")).collect();
            let more = if numbers.len() > SHOWN { ", …" } else { "" };
            let mut text = format!("{} {:?} [{}{more}]", tensor.dtype(), tensor.shape(), shown.join(", "));
            let best = numbers.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
            if let Some((index, most)) = best.filter(|_| numbers.len() > 1) {
                text.push_str(&format!(", greatest {most:.6} at {index}"));
            }
            text
        }
        Value::Image(image) => format!("image {} {}x{}", image.format(), image.width(), image.height()),
        other => to_json(other)?.to_string(),
    })
}

/// A value as JSON; an image as its size.
pub(crate) fn to_json(value: &Value) -> anyhow::Result<Json> {
    Ok(match value {
        Value::Tensor(tensor) => {
            let numbers = tensor.cast(Dtype::Float64).to_vec::<f64>()?;
            serde_json::json!({ "dtype": tensor.dtype().name(), "shape": tensor.shape(), "data": numbers })
        }
        Value::Image(image) => serde_json::json!({ "width": image.width(), "height": image.height() }),
        Value::Int64(x) => (*x).into(),
        Value::Double(x) => (*x).into(),
        Value::String(text) => (**text).into(),
        Value::Dictionary(Dictionary::Int64(entries)) => {
            Json::Object(entries.iter().map(|(key, &x)| (key.to_string(), x.into())).collect())
        }
        Value::Dictionary(Dictionary::String(entries)) => {
            Json::Object(entries.iter().map(|(key, &x)| (key.clone(), x.into())).collect())
        }
        Value::Sequence(Sequence::Int64(elements)) => elements.to_vec().into(),
        Value::Sequence(Sequence::String(elements)) => elements.to_vec().into(),
        other => bail!("a value of kind {} has no JSON form", other.kind()),
    })
}

/// Writes a value to `folder`, in the form that fits it.
pub(crate) fn write(folder: &Path, name: &str, value: &Value) -> anyhow::Result<()> {
    // A feature's name may hold what a file's may not.
    let name = name.replace(['/', '\\', ':'], "_");
    match value {
        Value::Tensor(tensor) => {
            let path = folder.join(name + ".npy");
            match tensor.dtype() {
                Dtype::Float16 => write_npy::<coreml_bridge::f16>(&path, tensor),
                Dtype::Float64 => write_npy::<f64>(&path, tensor),
                Dtype::Int8 => write_npy::<i8>(&path, tensor),
                Dtype::Int32 => write_npy::<i32>(&path, tensor),
                _ => write_npy::<f32>(&path, tensor),
            }
        }
        Value::Image(image) => {
            let path = folder.join(name + ".png");
            let (width, height) = (image.width(), image.height());
            let color = image::ExtendedColorType::Rgba8;
            Ok(image::save_buffer(path, &image.to_rgba(), width, height, color)?)
        }
        other => Ok(std::fs::write(folder.join(name + ".json"), format!("{:#}\n", to_json(other)?))?),
    }
}

fn write_npy<T: Element + npyz::AutoSerialize>(path: &Path, tensor: &Tensor) -> anyhow::Result<()> {
    let shape: Vec<u64> = tensor.shape().iter().map(|&n| n as u64).collect();
    let file = BufWriter::new(std::fs::File::create(path)?);
    let mut writer = npyz::WriteOptions::<T>::new().default_dtype().shape(&shape).writer(file).begin_nd()?;
    writer.extend(tensor.to_vec::<T>()?)?;
    Ok(writer.finish()?)
}

#[cfg(test)]
mod tests {
    use coreml_bridge::PixelFormat;

    use super::*;

    #[test]
    fn nested_lists_become_a_tensor_and_ragged_ones_do_not() {
        let tensor = json_tensor(&serde_json::json!([[1, 2], [3, 4.5]]), Dtype::Float32).unwrap();
        assert_eq!(
            (tensor.shape(), tensor.to_vec::<f32>().unwrap()),
            (&[2, 2][..], vec![1.0, 2.0, 3.0, 4.5])
        );
        assert!(json_tensor(&serde_json::json!([[1, 2], [3]]), Dtype::Float32).is_err());
        assert!(json_tensor(&serde_json::json!([[1, 2], 3]), Dtype::Float32).is_err());
    }

    fn kind(dtype: &str, shape: &str) -> FeatureKind {
        let json = format!(
            r#"{{"inputs": [{{"name": "x", "optional": false, "kind": "tensor",
                "tensor": {{"dtype": "{dtype}", "shape": {shape}}}}}], "outputs": []}}"#
        );
        let description = coreml_bridge::ModelDescription::from_json(json.as_bytes()).unwrap();
        description.inputs[0].kind.clone()
    }

    #[test]
    fn fractions_are_not_integers() {
        assert!(json_tensor(&serde_json::json!([1.5]), Dtype::Int32).is_err());
        let float = Tensor::from_vec(&[1], vec![1.0_f32]).unwrap();
        assert!(floats(&float, Dtype::Int32).is_err());
    }

    #[test]
    fn a_picture_is_scaled_to_what_the_model_takes() {
        let picture =
            image::DynamicImage::ImageRgb8(image::RgbImage::from_pixel(4, 6, image::Rgb([255, 0, 51])));
        let FeatureKind::Tensor(spec) = kind("float32", "[1, 3, 2, 2]") else { panic!("a tensor") };
        let tensor = picture_tensor(&picture, &spec).unwrap();
        let data = tensor.to_vec::<f32>().unwrap();
        assert_eq!((data[0], data[4], data[8]), (1.0, 0.0, 0.2));
    }

    #[test]
    fn an_array_survives_being_written_and_read() {
        let folder = std::env::temp_dir().join(format!("coreml-cli-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let tensor = Tensor::from_vec(&[2, 3], vec![1.0_f32, 2.0, 3.0, -4.0, 5.5, 6.0]).unwrap();
        write(&folder, "a:b", &Value::Tensor(tensor.clone())).unwrap();
        let read = read(&folder.join("a_b.npy"), &kind("float32", "[2, 3]")).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(read, Value::Tensor(tensor));
    }

    #[test]
    fn an_image_feature_takes_a_picture_of_any_size() {
        let picture = image::DynamicImage::ImageLuma8(image::GrayImage::from_pixel(8, 8, image::Luma([7])));
        let json = br#"{"inputs": [{"name": "x", "optional": false, "kind": "image",
            "image": {"width": 2, "height": 3, "color": "gray"}}], "outputs": []}"#;
        let description = coreml_bridge::ModelDescription::from_json(json).unwrap();
        let FeatureKind::Image(spec) = &description.inputs[0].kind else { panic!("an image") };
        let image = picture_image(picture, spec).unwrap();
        assert_eq!((image.format(), image.width(), image.height()), (PixelFormat::Gray8, 2, 3));
        assert!(image.bytes().iter().all(|&x| x == 7));
    }

    /// Reads an array of one type as a value of a kind.
    fn npy<T: npyz::AutoSerialize + Copy>(
        shape: &[u64],
        all: &[T],
        kind: &FeatureKind,
    ) -> Result<Value, String> {
        let name = format!("coreml-values-{}-{:?}.npy", std::process::id(), std::thread::current().id());
        let path = std::env::temp_dir().join(name);
        let file = std::fs::File::create(&path).unwrap();
        let options = npyz::WriteOptions::<T>::new().default_dtype().shape(shape).writer(file);
        let mut writer = options.begin_nd().unwrap();
        writer.extend(all.iter().copied()).unwrap();
        writer.finish().unwrap();
        let value = read(&path, kind).map_err(|error| format!("{error:#}"));
        std::fs::remove_file(path).unwrap();
        value
    }

    #[test]
    fn an_integer_is_never_made_of_something_else() {
        let int = |x: f64| npy(&[1], &[x], &FeatureKind::Int64).unwrap_err();
        for x in [2.7, 2.0, f64::NAN] {
            assert_eq!(int(x), "the array has float64 elements, the model takes an integer");
        }
        let big = i64::MAX - 1;
        assert!(matches!(npy(&[], &[big], &FeatureKind::Int64), Ok(Value::Int64(x)) if x == big));
        assert!(matches!(npy(&[1], &[3_i64], &FeatureKind::Double), Ok(Value::Double(3.0))));
        assert!(matches!(npy(&[1], &[2.5_f32], &FeatureKind::Double), Ok(Value::Double(2.5))));
        let error = npy(&[2], &[1_i64, 2], &FeatureKind::Int64).unwrap_err();
        assert_eq!(error, "the array has the shape [2], the model takes one number");
    }

    #[test]
    fn integers_fit_their_type_or_are_refused() {
        let tensor = |json: &str, dtype| {
            let json = serde_json::from_str(json).unwrap();
            json_tensor(&json, dtype).map_err(|error| error.to_string())
        };
        for (json, words) in [
            ("[1, 3000000000]", "3000000000 does not fit int32"),
            ("[2.5]", "expected integers, found 2.5"),
            ("[1e300]", "expected integers, found 1e+300"),
            ("[18446744073709551615]", "expected integers, found 18446744073709551615"),
        ] {
            assert_eq!(tensor(json, Dtype::Int32).unwrap_err(), words);
        }
        assert_eq!(tensor("[200]", Dtype::Int8).unwrap_err(), "200 does not fit int8");
        let whole = tensor("[[1, 2.0], [-2147483648, 3]]", Dtype::Int32).unwrap();
        assert_eq!((whole.shape(), whole.to_vec::<i32>().unwrap()), (&[2, 2][..], vec![1, 2, i32::MIN, 3]));
        // An int64 array for a model of floats is what NumPy makes of a list of integers.
        let floats = integers(&[2], &[3_000_000_000, -1], Dtype::Float32).unwrap();
        assert_eq!(floats.to_vec::<f32>().unwrap(), [3e9, -1.0]);
    }
}
